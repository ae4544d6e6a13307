//! Names of topics: `/`-separated levels, checked once at the edge.
//!
//! Everything behind the edge (wire, registry, interest) relies on the bounds here, so a topic from
//! a peer goes through the same parser as one from a caller.

use std::{borrow::Borrow, fmt, str::FromStr, sync::Arc};

/// The longest topic or pattern, in bytes of UTF-8. Fits the one length byte of the wire format.
pub const TOPIC_BYTES_MAX: usize = 255;

/// The most levels a topic or pattern may have. Bounds the depth of every walk over patterns.
pub const TOPIC_LEVELS_MAX: usize = 16;

/// The name messages are published under, such as `orders/eu/created`.
///
/// One to [`TOPIC_LEVELS_MAX`] non-empty levels separated by `/`, at most [`TOPIC_BYTES_MAX`] bytes.
/// A level holds any characters but whitespace, control characters, `/` and `*`; case matters.
/// Cloning is cheap: clones share one allocation.
///
/// ```
/// use purlin_pubsub::Topic;
/// let topic: Topic = "orders/eu/created".parse().unwrap();
/// assert_eq!(topic.levels().count(), 3);
/// assert!("orders//created".parse::<Topic>().is_err());
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Checks `text` and makes it a topic.
    ///
    /// # Errors
    /// A [`TopicError`] that names the value and the rule it breaks.
    pub fn parse(text: &str) -> Result<Self, TopicError> {
        check_shape(text)?;
        for level in text.split('/') {
            if level.contains('*') {
                return Err(TopicError::Wildcard { topic: text.into() });
            }
        }
        Ok(Self(text.into()))
    }

    /// The topic as it was written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The levels from left to right; never empty.
    pub fn levels(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Takes text that [`crate::Pattern`] has already checked to be without wildcards.
    pub(crate) fn from_checked(text: Arc<str>) -> Self {
        debug_assert!(Self::parse(&text).is_ok(), "topic {text:?} was not checked");
        Self(text)
    }
}

impl FromStr for Topic {
    type Err = TopicError;

    fn from_str(text: &str) -> Result<Self, TopicError> {
        Self::parse(text)
    }
}

impl Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for Topic {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Topic({})", self.0)
    }
}

/// Why a text is no topic or no pattern. The caller made it; nothing was done; correct the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// There is no text at all.
    #[error("topic is empty: it needs 1 to {TOPIC_BYTES_MAX} bytes")]
    Empty,
    /// Longer than [`TOPIC_BYTES_MAX`].
    #[error("topic of {bytes} bytes exceeds limit {TOPIC_BYTES_MAX}")]
    TooLong {
        /// Length of the text in bytes.
        bytes: usize,
    },
    /// More than [`TOPIC_LEVELS_MAX`] levels.
    #[error("topic {topic:?} has {levels} levels, exceeds limit {TOPIC_LEVELS_MAX}")]
    TooDeep {
        /// The offending text.
        topic: String,
        /// How many levels it has.
        levels: usize,
    },
    /// Two separators touch, or one stands at an end.
    #[error(
        "topic {topic:?} has an empty level at position {level}: every level needs a character"
    )]
    EmptyLevel {
        /// The offending text.
        topic: String,
        /// Which level is empty, counted from 1.
        level: usize,
    },
    /// Whitespace or a control character.
    #[error(
        "topic {topic:?} holds {character:?} at byte {at}: whitespace and control characters are not allowed"
    )]
    Character {
        /// The offending text.
        topic: String,
        /// The character that is not allowed.
        character: char,
        /// Its offset in bytes.
        at: usize,
    },
    /// A `*` in a place where only a concrete topic may stand, such as a publish.
    #[error("topic {topic:?} holds '*': wildcards are for subscriptions")]
    Wildcard {
        /// The offending text.
        topic: String,
    },
    /// `*` or `**` beside other characters in one level.
    #[error(
        "pattern {pattern:?} mixes '*' with other characters in level {level}: a wildcard fills a whole level"
    )]
    PartialWildcard {
        /// The offending text.
        pattern: String,
        /// Which level, counted from 1.
        level: usize,
    },
    /// `**` before the last level.
    #[error("pattern {pattern:?} has '**' in level {level}: it may only be the last level")]
    RestNotLast {
        /// The offending text.
        pattern: String,
        /// Which level, counted from 1.
        level: usize,
    },
}

/// The rules topics and patterns share.
pub(crate) fn check_shape(text: &str) -> Result<(), TopicError> {
    if text.is_empty() {
        return Err(TopicError::Empty);
    }
    if text.len() > TOPIC_BYTES_MAX {
        return Err(TopicError::TooLong { bytes: text.len() });
    }
    if let Some((at, character)) =
        text.char_indices().find(|(_, c)| c.is_whitespace() || c.is_control())
    {
        return Err(TopicError::Character { topic: text.into(), character, at });
    }
    let levels = text.split('/').count();
    if levels > TOPIC_LEVELS_MAX {
        return Err(TopicError::TooDeep { topic: text.into(), levels });
    }
    if let Some(empty) = text.split('/').position(str::is_empty) {
        return Err(TopicError::EmptyLevel { topic: text.into(), level: empty + 1 });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_topics() {
        for text in [
            "feed",
            "a/b/c",
            "orders/eu-west.1/created",
            "größe/µ",
            "user:42/@home",
            &"x".repeat(TOPIC_BYTES_MAX),
        ] {
            assert_eq!(Topic::parse(text).unwrap().as_str(), text);
        }
    }

    #[test]
    fn each_rule_names_the_value_and_the_bound() {
        let cases = [
            ("", "topic is empty: it needs 1 to 255 bytes"),
            (
                "a//b",
                "topic \"a//b\" has an empty level at position 2: every level needs a character",
            ),
            ("/a", "topic \"/a\" has an empty level at position 1: every level needs a character"),
            ("a/", "topic \"a/\" has an empty level at position 2: every level needs a character"),
            (
                "a b",
                "topic \"a b\" holds ' ' at byte 1: whitespace and control characters are not allowed",
            ),
            ("a/*", "topic \"a/*\" holds '*': wildcards are for subscriptions"),
        ];
        for (text, sentence) in cases {
            assert_eq!(Topic::parse(text).unwrap_err().to_string(), sentence);
        }
        assert_eq!(
            Topic::parse(&"x".repeat(256)).unwrap_err().to_string(),
            "topic of 256 bytes exceeds limit 255"
        );
        let deep = ["a"; 17].join("/");
        assert_eq!(
            Topic::parse(&deep).unwrap_err().to_string(),
            format!("topic {deep:?} has 17 levels, exceeds limit 16")
        );
    }
}
