//! Who: node names, incarnations and epochs.
//!
//! A name alone is not an identity: after a crash the same name comes back with an empty memory,
//! and a message meant for the old life must not reach the new one. So everything that can outlive
//! a crash carries a [`NodeId`]: the name and the [`Incarnation`] of one process start.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

/// The most bytes a [`NodeName`] or [`ClusterName`] may have.
///
/// 63 is the longest DNS label; names double as the DNS name in a node's certificate.
pub const NAME_BYTES_MAX: usize = 63;

/// Why a text is not a node or cluster name. Nothing was changed; choose another name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// The name has no characters.
    #[error("{what} is empty; it needs 1 to {NAME_BYTES_MAX} characters")]
    Empty {
        /// Which kind of name: `node name` or `cluster name`.
        what: &'static str,
    },
    /// The name is longer than [`NAME_BYTES_MAX`] bytes.
    #[error("{what} of {len} bytes exceeds limit {NAME_BYTES_MAX}")]
    TooLong {
        /// Which kind of name.
        what: &'static str,
        /// How many bytes it has.
        len: usize,
    },
    /// The name holds a character that certificates, files and URLs would not carry unharmed.
    #[error(
        "{what} {name:?} has {found:?} at byte {at}; allowed are ASCII letters, digits and `-`, and not at either end `-`"
    )]
    Character {
        /// Which kind of name.
        what: &'static str,
        /// The whole offending name.
        name: String,
        /// The offending character.
        found: char,
        /// Its byte offset.
        at: usize,
    },
}

fn check_name(what: &'static str, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(NameError::TooLong { what, len: name.len() });
    }
    let last = name.len() - 1;
    let offender = name
        .char_indices()
        .find(|&(at, c)| !(c.is_ascii_alphanumeric() || (c == '-' && at != 0 && at != last)));
    match offender {
        Some((at, found)) => Err(NameError::Character { what, name: name.to_owned(), found, at }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks `text` and makes it a name.
            ///
            /// # Errors
            /// [`NameError`] when `text` is empty, longer than [`NAME_BYTES_MAX`] bytes, or holds
            /// anything but ASCII letters, digits and inner hyphens.
            pub fn parse(text: &str) -> Result<Self, NameError> {
                check_name($what, text)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::parse(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::parse(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name! {
    /// What an operator calls a node, such as `n1`: a DNS label of 1 to 63 bytes.
    ///
    /// Stable across restarts; unique in a cluster. It is the name in the node's certificate.
    /// Cheap to clone.
    NodeName, "node name"
}

name! {
    /// What a cluster is called; nodes of differently named clusters refuse each other.
    ClusterName, "cluster name"
}

/// One life of a node: unique per process start, and growing from one start to the next.
///
/// A node takes the larger of its wall clock in milliseconds and its last recorded incarnation
/// plus one, so a lost disk or a clock set back does not by itself reuse a number. Not to be
/// confused with SWIM's incarnation number, which Purlin calls a *refutation*.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// The incarnation of a node that starts at `wall` and last ran as `recorded`, if ever.
    #[must_use]
    pub fn at_start(wall: crate::WallTime, recorded: Option<Self>) -> Self {
        let after_last = recorded.map_or(1, |Self(last)| last.saturating_add(1));
        Self(wall.as_millis().max(after_last))
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// One life of one node: `name@incarnation`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId {
    /// What the node is called.
    pub name: NodeName,
    /// Which of its lives is meant.
    pub incarnation: Incarnation,
}

impl NodeId {
    /// The life `incarnation` of the node called `name`.
    #[must_use]
    pub fn new(name: NodeName, incarnation: Incarnation) -> Self {
        Self { name, incarnation }
    }

    /// Whether `self` is a later life of the same node as `other`.
    #[must_use]
    pub fn supersedes(&self, other: &Self) -> bool {
        self.name == other.name && self.incarnation > other.incarnation
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.incarnation)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a text is not a [`NodeId`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NodeIdError {
    /// There is no `@` between name and incarnation.
    #[error("node id {0:?} has no `@`; it looks like `n1@1763617920000`")]
    NoIncarnation(String),
    /// The part before `@` is not a node name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The part after `@` is not a number.
    #[error("node id {0:?} does not end in a number; it looks like `n1@1763617920000`")]
    Incarnation(String),
}

impl FromStr for NodeId {
    type Err = NodeIdError;

    fn from_str(text: &str) -> Result<Self, NodeIdError> {
        let (name, incarnation) =
            text.split_once('@').ok_or_else(|| NodeIdError::NoIncarnation(text.to_owned()))?;
        match incarnation.parse() {
            Ok(number) => Ok(Self::new(NodeName::parse(name)?, Incarnation(number))),
            Err(_) => Err(NodeIdError::Incarnation(text.to_owned())),
        }
    }
}

/// How many times a view has changed; grows by one with every change, on one node.
///
/// Epochs of different nodes are not comparable: each node counts its own view.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::WallTime;

    #[test]
    fn a_name_outside_the_bounds_says_which_bound() {
        assert_eq!(
            NodeName::parse("").unwrap_err().to_string(),
            "node name is empty; it needs 1 to 63 characters"
        );
        assert_eq!(
            NodeName::parse(&"a".repeat(64)).unwrap_err().to_string(),
            "node name of 64 bytes exceeds limit 63"
        );
        let error = ClusterName::parse("a/b").unwrap_err();
        assert!(matches!(error, NameError::Character { found: '/', at: 1, .. }), "{error}");
        for edge in ["-a", "a-", "-"] {
            assert!(NodeName::parse(edge).is_err(), "{edge}");
        }
        assert!(NodeName::parse(&"a".repeat(63)).is_ok());
    }

    #[test]
    fn a_restart_never_reuses_an_incarnation_even_when_the_clock_was_set_back() {
        let first = Incarnation::at_start(WallTime::from_millis(1_000), None);
        assert_eq!(first, Incarnation(1_000));
        let second = Incarnation::at_start(WallTime::from_millis(10), Some(first));
        assert_eq!(second, Incarnation(1_001));
    }

    #[test]
    fn a_hostile_name_is_refused_by_deserialization_too() {
        assert!(serde_json::from_str::<NodeName>("\"n 1\"").is_err());
        assert_eq!(serde_json::from_str::<NodeName>("\"n1\"").unwrap().as_str(), "n1");
    }

    proptest! {
        #[test]
        fn a_node_id_survives_its_text_form(name in "[a-zA-Z0-9]([a-zA-Z0-9-]{0,20}[a-zA-Z0-9])?", n: u64) {
            let id = NodeId::new(NodeName::parse(&name).unwrap(), Incarnation(n));
            prop_assert_eq!(id.to_string().parse::<NodeId>().unwrap(), id);
        }

        #[test]
        fn any_text_is_a_name_or_a_typed_refusal(text: String) {
            if let Ok(name) = NodeName::parse(&text) {
                prop_assert_eq!(name.as_str(), text.as_str());
            }
        }
    }
}
