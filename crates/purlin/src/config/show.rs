//! A config as its reader would have to write it, with origins.

use std::time::Duration;

use super::{Key, Origin, source::Settings, value::Value};

/// One key as it stands after all sources were read.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Shown {
    /// The key.
    pub key: &'static Key,
    /// Its value as TOML; `None` when it is unset.
    pub value: Option<String>,
    /// Who set it.
    pub origin: Origin,
}

pub(super) fn shown(settings: &Settings) -> Vec<Shown> {
    Key::all()
        .iter()
        .map(|key| Shown {
            key,
            value: settings.get(&key.path()).map(written),
            origin: settings.origin(&key.path()),
        })
        .collect()
}

fn written(value: &Value) -> String {
    match value {
        Value::NodeName(name) => quoted(name.as_str()),
        Value::ClusterName(name) => quoted(name.as_str()),
        Value::Text(text) => quoted(text),
        Value::Path(path) => quoted(&path.display().to_string()),
        Value::Address(address) => quoted(&address.to_string()),
        Value::List(items) => {
            let items: Vec<_> = items.iter().map(|item| quoted(item)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Labels(labels) => {
            let pairs: Vec<_> = labels
                .iter()
                .map(|(key, value)| format!("{} = {}", quoted(key), quoted(value)))
                .collect();
            format!("{{ {} }}", pairs.join(", "))
        }
        Value::Count(count) => count.to_string(),
        Value::Switch(is_on) => is_on.to_string(),
        Value::Duration(duration) => quoted(&with_unit(*duration)),
    }
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn with_unit(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{}s", duration.as_secs())
    } else {
        format!("{}ms", duration.as_millis())
    }
}
