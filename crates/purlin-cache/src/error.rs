//! What may go wrong with a cache.

use std::{error::Error, sync::Arc};

use purlin_core::{Advice, HlcError, Outcome};
use purlin_replica::StateError;

use crate::config::{ConfigError, KEY_BYTES_MAX, NAME_BYTES_MAX};

/// Why an operation on a cache was not done, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CacheError {
    /// The key is empty or too long. Nothing was done.
    #[error("key of {0} bytes is outside 1 to {KEY_BYTES_MAX}")]
    Key(usize),
    /// The cache's name is empty, too long, or has other characters than letters, digits, `.`,
    /// `_` and `-`. Nothing was done.
    #[error("{0:?} cannot name a cache: 1 to {NAME_BYTES_MAX} letters, digits, '.', '_' or '-'")]
    Name(String),
    /// The value exceeds [`crate::CacheConfig::value_bytes_max`]. Nothing was done; counted.
    #[error("value of {bytes} bytes exceeds limit {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// A setting is out of bounds. Nothing was opened.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A cache of this name is open here as something else. Nothing was opened.
    #[error("cache {0} is open already with another configuration")]
    Differs(String),
    /// This node has as many caches as it may. Nothing was opened.
    #[error("{caches} caches reach limit {max}")]
    TooManyCaches {
        /// How many there are.
        caches: usize,
        /// The bound.
        max: usize,
    },
    /// The value under the key is no number in decimal text. Nothing was done.
    #[error("the value of {bytes} bytes is no decimal number of 64 bits")]
    NotANumber {
        /// Its size.
        bytes: usize,
    },
    /// The sum does not fit 64 bits. Nothing was done.
    #[error("{number} plus {by} exceeds 64 bits")]
    Overflow {
        /// What is there.
        number: i64,
        /// What was to be added.
        by: i64,
    },
    /// The node's clock refuses to stamp the write. Nothing was done.
    #[error(transparent)]
    Clock(#[from] HlcError),
    /// The value cannot be written as JSON. Nothing was done.
    #[error("value cannot be encoded: {0}")]
    Encode(String),
    /// No node that should hold the key could be asked. Nothing was done.
    #[error("nothing done: {0}")]
    Unreachable(String),
    /// The write reached some of the nodes that should hold it, or may have. Writing again is
    /// safe: the later write holds everywhere.
    #[error("on {copies} of {wanted} nodes for certain: {why}")]
    Unknown {
        /// Nodes that confirmed it.
        copies: usize,
        /// Nodes that should hold it.
        wanted: usize,
        /// What happened at the others.
        why: String,
    },
    /// The replicated state refused the write. Nothing was done.
    #[error(transparent)]
    State(#[from] StateError),
}

impl CacheError {
    /// Whether it may have been done.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown { .. } => Outcome::Unknown,
            Self::Key(_)
            | Self::Name(_)
            | Self::TooLarge { .. }
            | Self::Config(_)
            | Self::Differs(_)
            | Self::TooManyCaches { .. }
            | Self::NotANumber { .. }
            | Self::Overflow { .. }
            | Self::Clock(_)
            | Self::Encode(_)
            | Self::Unreachable(_)
            | Self::State(_) => Outcome::NotDone,
        }
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Clock(_) | Self::Unreachable(_) | Self::Unknown { .. } => Advice::Retry,
            Self::State(error) => error.advice(),
            Self::Key(_)
            | Self::Name(_)
            | Self::TooLarge { .. }
            | Self::Config(_)
            | Self::Differs(_)
            | Self::TooManyCaches { .. }
            | Self::NotANumber { .. }
            | Self::Overflow { .. }
            | Self::Encode(_) => Advice::GiveUp,
        }
    }
}

/// Why [`get_or_load`](crate::Cache::get_or_load) has no answer. All who waited for the same load
/// get the same.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The loader said so.
    #[error("load failed: {0}")]
    Failed(Arc<dyn Error + Send + Sync>),
    /// The loader panicked.
    #[error("loader panicked: {0}")]
    Panicked(Arc<str>),
    /// The loader was still running after [`crate::CacheConfig::load_within`] and was dropped.
    #[error("load took longer than {0:?}")]
    Deadline(std::time::Duration),
    /// The node ends.
    #[error("the node ended before the load did")]
    Abandoned,
    /// The key or the loaded value is out of bounds.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl LoadError {
    /// That a loader failed with `error`.
    pub fn failed(error: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        // One that a loader got from another cache says what it says, not that it was said.
        match error.into().downcast::<Self>() {
            Ok(same) => *same,
            Err(other) => Self::Failed(Arc::from(other)),
        }
    }
}
