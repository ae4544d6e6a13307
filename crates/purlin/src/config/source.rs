//! Where settings come from, and which of several wins.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use purlin_core::{ClusterName, NodeName};
use toml::de::{DeTable, DeValue};

use super::{
    Config, ConfigError, Key, Problem,
    value::{Raw, Value},
};

/// The place a setting was made.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of a file.
    File {
        /// The file.
        path: Arc<Path>,
        /// Its line, counted from 1.
        line: usize,
    },
    /// An environment variable.
    Env(String),
    /// A command-line flag or a call in the program.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) | Self::Flag(name) => f.write_str(name),
        }
    }
}

/// What to read a [`Config`] from. Later sources win: file, then environment, then flags.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    file: Option<PathBuf>,
    text: Option<String>,
    base: Option<PathBuf>,
    base_settings: Option<Settings>,
    env: Vec<(String, String)>,
    flags: Vec<(String, Raw, String)>,
}

impl Sources {
    /// Nothing but defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads this TOML file; it must exist.
    #[must_use]
    pub fn file(mut self, path: impl AsRef<Path>) -> Self {
        self.file = Some(path.as_ref().to_owned());
        self
    }

    /// Reads this text instead of a file.
    #[must_use]
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.text = Some(text.into());
        self
    }

    /// Where relative paths start when there is no file; otherwise its directory is taken.
    #[must_use]
    pub fn base(mut self, dir: impl AsRef<Path>) -> Self {
        self.base = Some(dir.as_ref().to_owned());
        self
    }

    /// Takes `PURLIN_SECTION__KEY` variables from here. Others are not looked at.
    #[must_use]
    pub fn env(mut self, variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let ours =
            |name: &str| name.strip_prefix("PURLIN_").is_some_and(|rest| rest.contains("__"));
        self.env.extend(variables.into_iter().filter(|(name, _)| ours(name)));
        // The environment has no order of its own; errors should have one.
        self.env.sort();
        self
    }

    /// Takes the variables of this process.
    #[must_use]
    pub fn process_env(self) -> Self {
        // A variable that is not UTF-8 cannot be one of ours.
        self.env(std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        }))
    }

    /// Sets `path` (`section.key`) over file and environment; `flag` is how errors name it.
    #[must_use]
    pub fn set(
        mut self,
        path: impl Into<String>,
        value: impl Into<String>,
        flag: impl Into<String>,
    ) -> Self {
        self.flags.push((path.into(), Raw::Word(value.into()), flag.into()));
        self
    }

    /// As [`Sources::set`], for values a program has in their own shape.
    pub(crate) fn give(&mut self, path: &str, value: Raw, by: &str) {
        self.flags.push((path.to_owned(), value, by.to_owned()));
    }

    /// Starts from a config that was read before instead of from the defaults.
    pub(crate) fn over(config: &Config) -> Self {
        Self { base_settings: Some(config.settings.clone()), ..Self::default() }
    }

    /// Whether `path` was set over file and environment.
    pub(crate) fn is_given(&self, path: &str) -> bool {
        let was_read = self
            .base_settings
            .as_ref()
            .is_some_and(|settings| settings.origin(path) != Origin::Default);
        was_read || self.flags.iter().any(|(given, _, _)| given == path)
    }

    /// Reads all sources into one checked value.
    ///
    /// # Errors
    /// [`ConfigError`] with every problem found: unreadable or malformed file, unknown keys,
    /// values of a wrong shape or out of bounds, required keys nobody set.
    pub fn load(self) -> Result<Config, ConfigError> {
        Config::build(self.settings()?)
    }

    fn settings(self) -> Result<Settings, ConfigError> {
        let base = match (&self.file, &self.base) {
            (Some(file), _) => file.parent().map_or_else(PathBuf::new, Path::to_owned),
            (None, Some(base)) => base.clone(),
            (None, None) => PathBuf::new(),
        };
        // Flags and variables are typed by somebody who stands in the working directory.
        let here = self.base.clone().unwrap_or_default();
        let mut reading = Reading::default();
        match self.base_settings {
            Some(settings) => reading.settings = settings,
            None => reading.defaults(&base),
        }
        if let Some(path) = &self.file {
            let path: Arc<Path> = Arc::from(path.as_path());
            let text = std::fs::read_to_string(&path).map_err(|error| {
                ConfigError::one(Problem {
                    origin: Origin::Default,
                    key: String::new(),
                    text: format!("cannot read {}: {error}", path.display()),
                })
            })?;
            reading.document(&path, &text, &base);
        }
        if let Some(text) = &self.text {
            reading.document(&Arc::from(Path::new("purlin.toml")), text, &base);
        }
        for (name, value) in self.env {
            let path = name
                .strip_prefix("PURLIN_")
                .and_then(|rest| rest.split_once("__"))
                .map(|(section, key)| format!("{}.{}", section.to_lowercase(), key.to_lowercase()))
                .expect("Sources::env keeps only PURLIN_…__…");
            reading.setting(&path, &Raw::Word(value), Origin::Env(name), &here);
        }
        for (path, value, flag) in self.flags {
            reading.setting(&path, &value, Origin::Flag(flag), &here);
        }
        ConfigError::unless_empty(reading.problems)?;
        Ok(reading.settings)
    }
}

#[derive(Default)]
struct Reading {
    settings: Settings,
    problems: Vec<Problem>,
}

impl Reading {
    fn defaults(&mut self, base: &Path) {
        for key in Key::all() {
            if let Some(default) = key.default {
                self.setting(&key.path(), &Raw::Word(default.to_owned()), Origin::Default, base);
            }
        }
    }

    fn document(&mut self, path: &Arc<Path>, text: &str, base: &Path) {
        let at =
            |offset: usize| Origin::File { path: Arc::clone(path), line: line_of(text, offset) };
        let table = match DeTable::parse(text) {
            Ok(table) => table,
            Err(error) => {
                let origin = at(error.span().map_or(0, |span| span.start));
                let text = format!("not TOML: {}", error.message());
                self.problems.push(Problem { origin, key: String::new(), text });
                return;
            }
        };
        for (section, content) in table.get_ref() {
            let name = section.get_ref().as_ref();
            if !Key::all().iter().any(|key| key.section == name) {
                let origin = at(section.span().start);
                self.problems.push(Problem {
                    origin,
                    key: name.to_owned(),
                    text: Key::suggest_section(name),
                });
                continue;
            }
            let DeValue::Table(entries) = content.get_ref() else {
                let origin = at(section.span().start);
                let text = format!(
                    "is {}, but must be a table: [{name}]",
                    Raw::from_toml(content.get_ref())
                );
                self.problems.push(Problem { origin, key: name.to_owned(), text });
                continue;
            };
            for (key, value) in entries {
                let path = format!("{name}.{}", key.get_ref());
                self.setting(&path, &Raw::from_toml(value.get_ref()), at(key.span().start), base);
            }
        }
    }

    fn setting(&mut self, path: &str, raw: &Raw, origin: Origin, base: &Path) {
        let Some(key) = Key::find(path) else {
            self.problems.push(Problem { origin, key: path.to_owned(), text: Key::suggest(path) });
            return;
        };
        match Value::read(key.kind, raw, base) {
            Ok(value) => {
                self.settings.values.insert(key.path(), (value, origin));
            }
            Err(text) => self.problems.push(Problem { origin, key: path.to_owned(), text }),
        }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    1 + before.iter().filter(|&&byte| byte == b'\n').count()
}

/// Every key that has a value, with the winner's origin.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    values: BTreeMap<String, (Value, Origin)>,
}

impl Settings {
    pub(super) fn get(&self, path: &str) -> Option<&Value> {
        self.values.get(path).map(|(value, _)| value)
    }

    pub(super) fn origin(&self, path: &str) -> Origin {
        self.values.get(path).map_or(Origin::Default, |(_, origin)| origin.clone())
    }

    pub(super) fn text(&self, path: &str) -> Option<String> {
        match self.get(path) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    pub(super) fn path(&self, path: &str) -> Option<PathBuf> {
        match self.get(path) {
            Some(Value::Path(path)) => Some(path.clone()),
            _ => None,
        }
    }

    pub(super) fn address(&self, path: &str) -> Option<SocketAddr> {
        match self.get(path) {
            Some(Value::Address(address)) => Some(*address),
            _ => None,
        }
    }

    pub(super) fn list(&self, path: &str) -> Vec<String> {
        match self.get(path) {
            Some(Value::List(items)) => items.clone(),
            _ => Vec::new(),
        }
    }

    pub(super) fn labels(&self, path: &str) -> BTreeMap<String, String> {
        match self.get(path) {
            Some(Value::Labels(labels)) => labels.clone(),
            _ => BTreeMap::new(),
        }
    }

    pub(super) fn count(&self, path: &str) -> usize {
        match self.get(path) {
            Some(Value::Count(count)) => *count,
            other => unreachable!("{path} is a count with a default, found {other:?}"),
        }
    }

    pub(super) fn duration(&self, path: &str) -> Duration {
        match self.get(path) {
            Some(Value::Duration(duration)) => *duration,
            other => unreachable!("{path} is a duration with a default, found {other:?}"),
        }
    }

    pub(super) fn switch(&self, path: &str) -> bool {
        match self.get(path) {
            Some(Value::Switch(is_on)) => *is_on,
            other => unreachable!("{path} is a switch with a default, found {other:?}"),
        }
    }

    pub(super) fn node_name(&self, path: &str) -> NodeName {
        match self.get(path) {
            Some(Value::NodeName(name)) => name.clone(),
            other => unreachable!("{path} is required, found {other:?}"),
        }
    }

    pub(super) fn cluster_name(&self, path: &str) -> ClusterName {
        match self.get(path) {
            Some(Value::ClusterName(name)) => name.clone(),
            other => unreachable!("{path} has a default, found {other:?}"),
        }
    }
}
