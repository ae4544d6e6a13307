//! How it ended: done, not done, or **unknown**, and what to do about it.
//!
//! A timeout after a request left this node proves nothing about whether it ran. Folding that case
//! into "failed" is how payments run twice, so every Purlin error answers two questions:
//! [`Outcome`] (was anything done?) and [`Advice`] (what may I do now?). Each operation family has
//! its own error enum with `outcome()` and `advice()`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::NodeName;

/// Whether an operation that did not succeed may still have had an effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// Nothing was changed anywhere, and nothing will be.
    NotDone,
    /// It may have run, may be running, or may never run: this node cannot tell.
    Unknown,
}

impl Outcome {
    /// The word used in HTTP bodies, logs and metrics: `not_done` or `unknown`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotDone => "not_done",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the caller may do after an error.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Advice {
    /// The same request may be sent again, after a pause.
    Retry,
    /// The same request may be sent again, to another node; to this one if a name is given.
    RetryElsewhere(Option<NodeName>),
    /// Send it again only if the receiver can tell that it is the same request: it may have run.
    SameRequestIdOnly,
    /// Repeating it cannot help: change the request, the configuration or the code.
    GiveUp,
}

impl Advice {
    /// The word used in HTTP bodies, logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Retry => "retry",
            Self::RetryElsewhere(_) => "retry_elsewhere",
            Self::SameRequestIdOnly => "same_request_id_only",
            Self::GiveUp => "give_up",
        }
    }
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RetryElsewhere(Some(node)) => write!(f, "retry_elsewhere: {node}"),
            Self::Retry | Self::RetryElsewhere(None) | Self::SameRequestIdOnly | Self::GiveUp => {
                f.write_str(self.as_str())
            }
        }
    }
}
