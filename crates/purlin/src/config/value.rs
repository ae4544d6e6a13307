//! From what was written to what was meant.

use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use purlin_core::{ClusterName, NodeName};
use toml::de::DeValue;

use super::Kind;

/// A value as written, before anybody asked what it should be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Raw {
    /// Text of a file: says exactly what it is.
    Text(String),
    /// Text of an environment variable or flag: may stand for a list or a number.
    Word(String),
    Integer(String),
    List(Vec<Self>),
    Table(Vec<(String, Self)>),
    Switch(bool),
    Other(&'static str),
}

impl Raw {
    pub(super) fn from_toml(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => Self::Integer(
                i128::from_str_radix(number.as_str(), number.radix())
                    .map_or_else(|_| number.as_str().to_owned(), |number| number.to_string()),
            ),
            DeValue::Array(items) => {
                Self::List(items.iter().map(|item| Self::from_toml(item.get_ref())).collect())
            }
            DeValue::Table(table) => Self::Table(
                table
                    .iter()
                    .map(|(key, value)| {
                        (key.get_ref().to_string(), Self::from_toml(value.get_ref()))
                    })
                    .collect(),
            ),
            DeValue::Boolean(is_on) => Self::Switch(*is_on),
            DeValue::Float(_) | DeValue::Datetime(_) => Self::Other(value.type_str()),
        }
    }
}

impl fmt::Display for Raw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) | Self::Word(text) => write!(f, "{text:?}"),
            Self::Integer(digits) => f.write_str(digits),
            Self::List(_) => f.write_str("a list"),
            Self::Table(_) => f.write_str("a table"),
            Self::Switch(is_on) => write!(f, "{is_on}"),
            Self::Other(kind) => write!(f, "a {kind}"),
        }
    }
}

/// A value of the shape its key asked for, within its bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    NodeName(NodeName),
    ClusterName(ClusterName),
    Text(String),
    Path(PathBuf),
    Address(SocketAddr),
    List(Vec<String>),
    Labels(BTreeMap<String, String>),
    Count(usize),
    Duration(Duration),
    Switch(bool),
}

impl Value {
    /// Reads `raw` as `kind`; relative paths start at `base`.
    pub(super) fn read(kind: Kind, raw: &Raw, base: &Path) -> Result<Self, String> {
        let refuse = || format!("is {raw}, but must be {}", kind.wants());
        match (kind, raw) {
            (Kind::NodeName, Raw::Text(text) | Raw::Word(text)) => NodeName::parse(text)
                .map(Self::NodeName)
                .map_err(|error| format!("is {raw}: {error}")),
            (Kind::ClusterName, Raw::Text(text) | Raw::Word(text)) => ClusterName::parse(text)
                .map(Self::ClusterName)
                .map_err(|error| format!("is {raw}: {error}")),
            (Kind::Text, Raw::Text(text) | Raw::Word(text)) if !text.is_empty() => {
                Ok(Self::Text(text.clone()))
            }
            (Kind::Path, Raw::Text(text) | Raw::Word(text)) if !text.is_empty() => {
                Ok(Self::Path(base.join(text)))
            }
            (Kind::Address, Raw::Text(text) | Raw::Word(text)) => {
                address(text).map(Self::Address).ok_or_else(refuse)
            }
            (Kind::List | Kind::HostPorts, Raw::List(items)) => {
                let mut texts = Vec::with_capacity(items.len());
                for item in items {
                    match item {
                        Raw::Text(text) if fits(kind, text) => texts.push(text.clone()),
                        other => {
                            return Err(format!("holds {other}, but must be {}", kind.wants()));
                        }
                    }
                }
                Ok(Self::List(texts))
            }
            (Kind::List | Kind::HostPorts, Raw::Word(words)) => {
                let texts: Vec<_> =
                    words.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
                match texts.iter().find(|text| !fits(kind, text)) {
                    Some(wrong) => Err(format!("holds {wrong:?}, but must be {}", kind.wants())),
                    None => Ok(Self::List(texts.into_iter().map(str::to_owned).collect())),
                }
            }
            (Kind::Labels, Raw::Table(entries)) => entries
                .iter()
                .map(|(key, value)| match value {
                    Raw::Text(text) => Ok((key.clone(), text.clone())),
                    other => Err(format!("holds {key} = {other}, but must be {}", kind.wants())),
                })
                .collect::<Result<_, _>>()
                .map(Self::Labels),
            (Kind::Labels, Raw::Word(words)) => words
                .split(',')
                .filter(|pair| !pair.trim().is_empty())
                .map(|pair| {
                    let (key, value) = pair.split_once('=').ok_or_else(refuse)?;
                    Ok((key.trim().to_owned(), value.trim().to_owned()))
                })
                .collect::<Result<_, _>>()
                .map(Self::Labels),
            (Kind::Count { min, max }, Raw::Integer(digits) | Raw::Word(digits)) => {
                within(digits.parse().ok(), min, max).map(Self::Count).ok_or_else(refuse)
            }
            (Kind::Bytes { min, max }, Raw::Integer(text) | Raw::Word(text) | Raw::Text(text)) => {
                within(bytes(text), min, max).map(Self::Count).ok_or_else(refuse)
            }
            (Kind::Duration { min, max }, Raw::Word(text) | Raw::Text(text)) => {
                within(parse_duration(text), min, max).map(Self::Duration).ok_or_else(refuse)
            }
            (Kind::Choice(words), Raw::Word(text) | Raw::Text(text))
                if words.contains(&text.as_str()) =>
            {
                Ok(Self::Text(text.clone()))
            }
            (Kind::Switch, Raw::Switch(is_on)) => Ok(Self::Switch(*is_on)),
            (Kind::Switch, Raw::Word(word)) => {
                word.parse().map(Self::Switch).map_err(|_neither| refuse())
            }
            _ => Err(refuse()),
        }
    }
}

fn within<T: PartialOrd>(value: Option<T>, min: T, max: T) -> Option<T> {
    value.filter(|value| *value >= min && *value <= max)
}

fn fits(kind: Kind, text: &str) -> bool {
    match kind {
        Kind::HostPorts => text.rsplit_once(':').is_some_and(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        }),
        _ => !text.is_empty(),
    }
}

fn address(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => port.parse().ok().map(|port| SocketAddr::from(([127, 0, 0, 1], port))),
        None => text.parse().ok(),
    }
}

/// `4096`, `64KiB`, `16 MiB`, `1GiB`.
fn bytes(text: &str) -> Option<usize> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(digits_end);
    let factor: usize = match unit.trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<usize>().ok()?.checked_mul(factor)
}

/// Reads `250ms`, `5s`, `2m` or `1h`, the form every duration in `purlin.toml` has.
///
/// `None` for anything else; a number without unit is refused, because nobody agrees on which.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let digits_end = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at(digits_end);
    let number: u64 = digits.parse().ok()?;
    match unit.trim() {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}
