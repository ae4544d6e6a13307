//! What to run and how, checked before anything is started.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// Longest name of a program, in bytes: it becomes a file name.
pub const NAME_BYTES_MAX: usize = 128;
/// Most arguments and variables.
pub const ITEMS_MAX: usize = 1_024;
/// Most bytes of command, arguments, environment, directory and user together, so that they fit, with
/// their lengths, what a supervisor keeps of a child. Linux takes 128 KiB in one piece.
pub const SPEC_BYTES_MAX: usize = 56 << 10;
/// Longest grace between the stop signal and the end.
pub const GRACE_MAX: Duration = Duration::from_secs(3_600);
/// Least memory a program may be limited to. Below it most cannot even start.
pub const MEMORY_MIN: u64 = 1 << 20;
/// Least and most processor time, in thousandths of a core.
pub const CPU_MILLIS: std::ops::RangeInclusive<u32> = 10..=1_024_000;

/// A program to run: the arguments of kind `exec`.
///
/// Texts are UTF-8. What a node adds to the environment is in [`Exec`](super::Exec).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecSpec {
    /// The program: a path, absolute or relative to `cwd`, or a name to be looked for in `PATH`.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Variables beside those a node gives. Names that begin with `PURLIN_` are the node's own.
    pub env: BTreeMap<String, String>,
    /// The absolute directory it starts in, which must exist on the node it runs on. Default `/`.
    pub cwd: Option<String>,
    /// The user it runs as, by name or number. Default: the node's own. Only a node that runs as
    /// root can change it.
    pub user: Option<String>,
    /// What asks it to stop.
    pub stop_signal: StopSignal,
    /// How long it has from the stop signal until it is killed. At most an hour, default 10 s.
    pub grace: Duration,
    /// When to start it again after it ended by itself.
    pub restart: ExecRestart,
    /// Most memory in bytes, at least 1 MiB: of all its processes together where the node has a
    /// cgroup for it (`exec.cgroup`), else address space, for each of its processes.
    pub memory_max: Option<u64>,
    /// Most processor time in thousandths of a core, 10 to 1,024,000. Needs a cgroup.
    pub cpu_millis: Option<u32>,
    /// Whether two copies at once do harm. Then a node that has been silent for
    /// [`SILENT_MAX`](super::guard::SILENT_MAX), paused for instance, no longer has its copy.
    pub singleton: bool,
}

/// When a program that ended by itself is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ExecRestart {
    /// Always: it is a service.
    #[default]
    Always,
    /// When its status is not 0, or a signal ended it.
    OnFailure,
    /// Never.
    Never,
}

impl ExecRestart {
    const WORDS: [(Self, &str); 3] =
        [(Self::Always, "always"), (Self::OnFailure, "on-failure"), (Self::Never, "never")];

    /// `always`, `on-failure` or `never`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnFailure => "on-failure",
            Self::Never => "never",
        }
    }
}

impl FromStr for ExecRestart {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        let found = Self::WORDS.iter().find(|(_, word)| *word == text);
        found.map(|(restart, _)| *restart).ok_or_else(|| SpecError::Word {
            field: "restart",
            value: text.to_owned(),
            bound: "always, on-failure or never",
        })
    }
}

/// A signal that asks a program to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum StopSignal {
    /// `SIGTERM`.
    #[default]
    Term,
    /// `SIGINT`, what Ctrl-C sends.
    Int,
    /// `SIGQUIT`.
    Quit,
    /// `SIGHUP`.
    Hup,
    /// `SIGUSR1`.
    Usr1,
    /// `SIGUSR2`.
    Usr2,
    /// `SIGKILL`: no grace.
    Kill,
}

impl StopSignal {
    const ALL: [Self; 7] =
        [Self::Term, Self::Int, Self::Quit, Self::Hup, Self::Usr1, Self::Usr2, Self::Kill];

    /// `SIGTERM` and so on.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Term => "SIGTERM",
            Self::Int => "SIGINT",
            Self::Quit => "SIGQUIT",
            Self::Hup => "SIGHUP",
            Self::Usr1 => "SIGUSR1",
            Self::Usr2 => "SIGUSR2",
            Self::Kill => "SIGKILL",
        }
    }
}

impl FromStr for StopSignal {
    type Err = SpecError;

    /// With or without `SIG`, in either case.
    fn from_str(text: &str) -> Result<Self, SpecError> {
        let upper = text.to_ascii_uppercase();
        let short = upper.strip_prefix("SIG").unwrap_or(&upper);
        let found = Self::ALL.iter().find(|signal| &signal.as_str()[3..] == short);
        found.copied().ok_or_else(|| SpecError::Word {
            field: "stop_signal",
            value: text.to_owned(),
            bound: "TERM, INT, QUIT, HUP, USR1, USR2 or KILL",
        })
    }
}

/// Why a program cannot be run as asked. Nothing was started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The name cannot be one.
    #[error(
        "name {0:?} is not 1 to {NAME_BYTES_MAX} of a-z, A-Z, 0-9, '.', '_' and '-', the first a letter or digit"
    )]
    Name(String),
    /// There is no command.
    #[error("command is empty")]
    NoCommand,
    /// A text holds a zero byte, which no program can be given.
    #[error("{field} holds a zero byte")]
    ZeroByte {
        /// Which.
        field: &'static str,
    },
    /// A variable has a name that cannot be one.
    #[error("env name {0:?} is empty or holds '='")]
    Variable(String),
    /// A variable has a name that the node gives itself.
    #[error("env name {0:?} begins with PURLIN_, which the node sets itself")]
    OwnVariable(String),
    /// The directory is not absolute, and nobody knows what it would be relative to.
    #[error("cwd {0:?} is not an absolute path")]
    Relative(String),
    /// The user is empty.
    #[error("user is empty")]
    NoUser,
    /// There is too much of something.
    #[error("{field} of {value} exceeds limit {max}")]
    TooMuch {
        /// What.
        field: &'static str,
        /// How much.
        value: u128,
        /// The bound.
        max: u128,
    },
    /// A limit is too low or too high to mean anything.
    #[error("{field} of {value} is outside {min} to {max}")]
    Range {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// A word is none of those that are known.
    #[error("{field} {value:?} is not {bound}")]
    Word {
        /// Which.
        field: &'static str,
        /// The word.
        value: String,
        /// What is known.
        bound: &'static str,
    },
}

impl SpecError {
    /// The field at fault.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Name(_) => "name",
            Self::NoCommand => "command",
            Self::Variable(_) | Self::OwnVariable(_) => "env",
            Self::Relative(_) => "cwd",
            Self::NoUser => "user",
            Self::ZeroByte { field }
            | Self::TooMuch { field, .. }
            | Self::Range { field, .. }
            | Self::Word { field, .. } => field,
        }
    }
}

/// Whether `name` can name a program: it becomes part of paths, of files and of requests.
///
/// # Errors
/// [`SpecError::Name`].
pub fn check_name(name: &str) -> Result<(), SpecError> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let begins_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if begins_well && name.len() <= NAME_BYTES_MAX && name.bytes().all(is_word) {
        Ok(())
    } else {
        Err(SpecError::Name(name.chars().take(NAME_BYTES_MAX).collect()))
    }
}

impl ExecSpec {
    /// `command` with everything else as by default.
    #[must_use]
    pub fn new(command: impl Into<String>) -> Self {
        Self {
            command: command.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            stop_signal: StopSignal::default(),
            grace: Duration::from_secs(10),
            restart: ExecRestart::default(),
            memory_max: None,
            cpu_millis: None,
            singleton: false,
        }
    }

    /// The same with these arguments.
    #[must_use]
    pub fn args<T: Into<String>>(mut self, args: impl IntoIterator<Item = T>) -> Self {
        self.args = args.into_iter().map(Into::into).collect();
        self
    }

    /// Whether it is within all bounds. What only the node it runs on knows (whether the command,
    /// the directory and the user exist) it says when it starts.
    ///
    /// # Errors
    /// [`SpecError`], naming the field and the bound.
    pub fn check(&self) -> Result<(), SpecError> {
        if self.command.is_empty() {
            return Err(SpecError::NoCommand);
        }
        self.check_texts()?;
        let items = self.args.len().max(self.env.len());
        if items > ITEMS_MAX {
            let field = if self.args.len() == items { "args" } else { "env" };
            return Err(too_much(field, items as u128, ITEMS_MAX as u128));
        }
        let bytes = self.bytes();
        if bytes > SPEC_BYTES_MAX {
            let field = "command, args and env in bytes";
            return Err(too_much(field, bytes as u128, SPEC_BYTES_MAX as u128));
        }
        if let Some(cwd) = self.cwd.as_ref().filter(|cwd| !cwd.starts_with('/')) {
            return Err(SpecError::Relative(cwd.clone()));
        }
        if self.user.as_deref() == Some("") {
            return Err(SpecError::NoUser);
        }
        if self.grace > GRACE_MAX {
            let (value, max) = (self.grace.as_millis(), GRACE_MAX.as_millis());
            return Err(too_much("grace in ms", value, max));
        }
        if let Some(value) = self.memory_max.filter(|memory| *memory < MEMORY_MIN) {
            return Err(SpecError::Range {
                field: "memory_max in bytes",
                value,
                min: MEMORY_MIN,
                max: u64::MAX,
            });
        }
        if let Some(millis) = self.cpu_millis.filter(|millis| !CPU_MILLIS.contains(millis)) {
            return Err(SpecError::Range {
                field: "cpus in thousandths",
                value: millis.into(),
                min: (*CPU_MILLIS.start()).into(),
                max: (*CPU_MILLIS.end()).into(),
            });
        }
        Ok(())
    }

    fn check_texts(&self) -> Result<(), SpecError> {
        let one = |field: &'static str, text: &str| match text.contains('\0') {
            true => Err(SpecError::ZeroByte { field }),
            false => Ok(()),
        };
        one("command", &self.command)?;
        self.args.iter().try_for_each(|arg| one("args", arg))?;
        one("cwd", self.cwd.as_deref().unwrap_or_default())?;
        one("user", self.user.as_deref().unwrap_or_default())?;
        for (name, value) in &self.env {
            one("env", name)?;
            one("env", value)?;
            if name.is_empty() || name.contains('=') {
                return Err(SpecError::Variable(name.clone()));
            }
            if name.starts_with("PURLIN_") {
                return Err(SpecError::OwnVariable(name.clone()));
            }
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let args: usize = self.args.iter().map(String::len).sum();
        let env: usize = self.env.iter().map(|(name, value)| name.len() + value.len()).sum();
        let places = [&self.cwd, &self.user].map(|text| text.as_ref().map_or(0, String::len));
        self.command.len() + args + env + places.iter().sum::<usize>()
    }
}

impl fmt::Display for ExecSpec {
    /// The command line as one would type it, without the environment, which may hold secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.command)?;
        for arg in &self.args {
            if arg.is_empty() || arg.contains(|c: char| c.is_whitespace() || "'\"\\$`".contains(c))
            {
                write!(f, " '{}'", arg.replace('\'', "'\\''"))?;
            } else {
                write!(f, " {arg}")?;
            }
        }
        Ok(())
    }
}

fn too_much(field: &'static str, value: u128, max: u128) -> SpecError {
    SpecError::TooMuch { field, value, max }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_safe_as_a_file_and_in_a_path() {
        for good in ["nightly", "web.1", "A_b-c", "7"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", ".", "..", ".hidden", "-x", "a/b", "a b", "grün", "a\0", &"n".repeat(129)]
        {
            assert!(matches!(check_name(bad), Err(SpecError::Name(_))), "{bad}");
        }
    }

    #[test]
    fn each_bound_names_its_field_and_what_is_within_passes() {
        let good = ExecSpec::new("/bin/true").args(["a b", ""]);
        assert_eq!(good.check(), Ok(()));
        type Spoil = fn(&mut ExecSpec);
        let cases: [(&str, Spoil); 14] = [
            ("command", |spec| spec.command.clear()),
            ("command", |spec| spec.command.push('\0')),
            ("args", |spec| spec.args.push("a\0b".into())),
            ("args", |spec| spec.args = vec![String::new(); ITEMS_MAX + 1]),
            ("command, args and env in bytes", |spec| spec.args.push("x".repeat(SPEC_BYTES_MAX))),
            ("env", |spec| drop(spec.env.insert("A=B".into(), String::new()))),
            ("env", |spec| drop(spec.env.insert(String::new(), String::new()))),
            ("env", |spec| drop(spec.env.insert("PURLIN_FENCE".into(), "9".into()))),
            ("cwd", |spec| spec.cwd = Some("jobs".into())),
            ("cwd", |spec| spec.cwd = Some("/jobs\0".into())),
            ("user", |spec| spec.user = Some(String::new())),
            ("grace in ms", |spec| spec.grace = GRACE_MAX + Duration::from_millis(1)),
            ("memory_max in bytes", |spec| spec.memory_max = Some(MEMORY_MIN - 1)),
            ("cpus in thousandths", |spec| spec.cpu_millis = Some(0)),
        ];
        for (field, spoil) in cases {
            let mut spec = good.clone();
            spoil(&mut spec);
            let error = spec.check().unwrap_err();
            assert_eq!(error.field(), field, "{error}");
        }
    }

    #[test]
    fn signals_and_restarts_are_read_as_they_are_written() {
        for signal in StopSignal::ALL {
            assert_eq!(signal.as_str().parse(), Ok(signal));
            assert_eq!(signal.as_str()[3..].to_lowercase().parse(), Ok(signal));
        }
        for (restart, word) in ExecRestart::WORDS {
            assert_eq!((word.parse(), restart.as_str()), (Ok(restart), word));
        }
        let error = "STOP".parse::<StopSignal>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "stop_signal \"STOP\" is not TERM, INT, QUIT, HUP, USR1, USR2 or KILL"
        );
        assert!("sometimes".parse::<ExecRestart>().is_err());
    }

    #[test]
    fn a_command_line_is_shown_as_it_would_be_typed_and_without_its_environment() {
        let mut spec = ExecSpec::new("sh").args(["-c", "echo it's", ""]);
        spec.env.insert("SECRET".into(), "hush".into());
        assert_eq!(spec.to_string(), "sh -c 'echo it'\\''s' ''");
    }
}
