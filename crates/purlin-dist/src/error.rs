//! Why something was not registered, joined, tracked or changed.

use purlin_core::{Advice, HlcTimestamp, NodeId, Outcome};
use purlin_process::{Pid, ProcessId};
use purlin_replica::StateError;

use crate::row::{KEY_BYTES_MAX, SCOPE_BYTES_MAX};

/// Why nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DistError {
    /// A key, scope, group or topic is empty or too long.
    #[error("{field} of {bytes} bytes is outside 1 to {max}")]
    Length {
        /// Which.
        field: &'static str,
        /// How long it is.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// It holds a zero byte, which divides keys from what follows them.
    #[error("{field} holds a zero byte")]
    ZeroByte {
        /// Which.
        field: &'static str,
    },
    /// The metadata is too large.
    #[error("metadata of {bytes} bytes exceeds limit {max}")]
    Metadata {
        /// How large it is: all names and values together.
        bytes: usize,
        /// The bound.
        max: usize,
    },
    /// This node has as many entries as it may.
    #[error("{count} entries of this node reach the limit {max}")]
    TooMany {
        /// How many there are.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// One key has as many presences in one topic as it may.
    #[error("{count} presences of {key:?} in one topic reach the limit {max}")]
    TooManyOfKey {
        /// Whose.
        key: String,
        /// How many there are.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// There are as many scopes as there may be.
    #[error("{count} scopes reach the limit {max}")]
    TooManyScopes {
        /// How many there are.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// A process has the name: here or, as far as this node has heard, elsewhere.
    #[error("name {key:?} is taken by process {by}")]
    NameTaken {
        /// The name.
        key: String,
        /// Who has it.
        by: Pid,
    },
    /// The process has ended.
    #[error("process {0} has ended")]
    NoProcess(ProcessId),
    /// It belongs to another node, and only that node may change it.
    #[error("{key:?} belongs to node {node}, which alone may change it")]
    Elsewhere {
        /// Which key.
        key: String,
        /// Whose it is.
        node: NodeId,
    },
    /// There is nothing under the key.
    #[error("there is nothing under {0:?}")]
    Absent(String),
    /// Somebody changed it meanwhile. Read again.
    #[error("{key:?} was changed at {is}, not at {expected}")]
    Overwritten {
        /// Which key.
        key: String,
        /// Its version now.
        is: HlcTimestamp,
        /// The caller's.
        expected: HlcTimestamp,
    },
    /// The replica or its clock refused the row.
    #[error(transparent)]
    State(#[from] StateError),
}

impl DistError {
    /// Always "not done".
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::NotDone
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Overwritten { .. } => Advice::Retry,
            Self::Elsewhere { node, .. } => Advice::RetryElsewhere(Some(node.name.clone())),
            Self::State(error) => error.advice(),
            Self::Length { .. }
            | Self::ZeroByte { .. }
            | Self::Metadata { .. }
            | Self::TooMany { .. }
            | Self::TooManyOfKey { .. }
            | Self::TooManyScopes { .. }
            | Self::NameTaken { .. }
            | Self::NoProcess(_)
            | Self::Absent(_) => Advice::GiveUp,
        }
    }
}

/// Checks a key of any kind.
pub(crate) fn check_key(field: &'static str, key: &str) -> Result<(), DistError> {
    check(field, key, KEY_BYTES_MAX)
}

/// Checks the name of a scope or topic.
pub(crate) fn check_scope(field: &'static str, scope: &str) -> Result<(), DistError> {
    check(field, scope, SCOPE_BYTES_MAX)
}

fn check(field: &'static str, text: &str, max: usize) -> Result<(), DistError> {
    if text.is_empty() || text.len() > max {
        return Err(DistError::Length { field, bytes: text.len(), max });
    }
    if text.contains('\0') {
        return Err(DistError::ZeroByte { field });
    }
    Ok(())
}

/// Not as many nodes as wanted have confirmed what was written here; some may have it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} of {wanted} nodes confirmed in time", confirmed.len())]
pub struct SyncError {
    /// Who confirmed.
    pub confirmed: Vec<NodeId>,
    /// How many were wanted.
    pub wanted: usize,
}

impl SyncError {
    /// Always "unknown": those that did not confirm may have it.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::Unknown
    }

    /// Waiting again does no harm.
    #[must_use]
    pub fn advice(&self) -> Advice {
        Advice::Retry
    }
}
