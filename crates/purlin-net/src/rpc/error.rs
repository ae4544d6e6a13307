//! How a call ends when it does not end with a reply.

use purlin_core::{Advice, NodeId, Outcome};

use super::wire::FailureCode;
use crate::error::{Cause, SendError};

/// Why a call has no reply.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// It never left this node.
    #[error("not sent: {0}")]
    NotSent(SendError),
    /// Too many calls of this node wait for replies. Nothing was sent.
    #[error("{calls} pending calls reach limit {max}")]
    TooMany {
        /// How many wait.
        calls: usize,
        /// [`super::RpcLimits::calls_max`].
        max: usize,
    },
    /// No reply by the deadline. It may have run, or may still run.
    #[error("no reply by the deadline")]
    Deadline,
    /// The connection ended before the reply. It may have run.
    #[error("connection to {peer} ended before the reply: {cause}")]
    Lost {
        /// Whom was called.
        peer: NodeId,
        /// Why the connection ended.
        cause: Cause,
    },
    /// The peer does not serve calls at all. Nothing ran.
    #[error("{0} serves no calls")]
    NoService(NodeId),
    /// The peer does not know the method. Nothing ran.
    #[error("no such method: {0}")]
    NoMethod(String),
    /// The peer could not decode the request: the two sides mean different types. Nothing ran.
    #[error("request cannot be decoded: {0}")]
    Undecodable(String),
    /// The handler refused; it says that nothing was done.
    #[error("rejected: {text}")]
    Rejected {
        /// What it said.
        text: String,
        /// Whether another node may accept it.
        elsewhere: bool,
    },
    /// The peer handles as many requests as it may. Nothing ran.
    #[error("overloaded: {0}")]
    Overloaded(String),
    /// The peer is being drained and takes no new calls. Nothing ran; call another node.
    #[error("draining: {0}")]
    Draining(String),
    /// The handler panicked half-way.
    #[error("handler panicked: {0}")]
    Panicked(String),
    /// The handler ended without an answer, for instance because its process died.
    #[error("abandoned: {0}")]
    Abandoned(String),
    /// It ran, but its reply could not be sent: too large, or not encodable.
    #[error("reply cannot be sent: {0}")]
    ReplyUnsendable(String),
    /// It ran, but its reply cannot be decoded here: the two sides mean different types.
    #[error("reply cannot be decoded: {0}")]
    BadReply(String),
    /// The process called is not there; for handlers that stand for processes.
    #[error("no such process: {0}")]
    NoProcess(String),
    /// The process called is a later life than the one meant; for handlers that stand for
    /// processes.
    #[error("stale: {0}")]
    Stale(String),
    /// A failure of a later version.
    #[error("failed with unknown code: {0}")]
    Other(String),
}

impl CallError {
    pub(crate) fn of_failure(code: FailureCode, text: &str) -> Self {
        let text = text.to_owned();
        match code {
            FailureCode::NoMethod => Self::NoMethod(text),
            FailureCode::Undecodable => Self::Undecodable(text),
            FailureCode::Rejected => Self::Rejected { text, elsewhere: false },
            FailureCode::RejectedHere => Self::Rejected { text, elsewhere: true },
            FailureCode::Overloaded => Self::Overloaded(text),
            FailureCode::Panicked => Self::Panicked(text),
            FailureCode::Abandoned => Self::Abandoned(text),
            FailureCode::ReplyUnsendable => Self::ReplyUnsendable(text),
            FailureCode::Deadline => Self::Deadline,
            FailureCode::NoProcess => Self::NoProcess(text),
            FailureCode::Stale => Self::Stale(text),
            FailureCode::Draining => Self::Draining(text),
            FailureCode::Other => Self::Other(text),
        }
    }

    /// Whether it may have run.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NotSent(_)
            | Self::TooMany { .. }
            | Self::NoService(_)
            | Self::NoMethod(_)
            | Self::Undecodable(_)
            | Self::Rejected { .. }
            | Self::Overloaded(_)
            | Self::Draining(_)
            | Self::NoProcess(_)
            | Self::Stale(_) => Outcome::NotDone,
            Self::Deadline
            | Self::Lost { .. }
            | Self::Panicked(_)
            | Self::Abandoned(_)
            | Self::ReplyUnsendable(_)
            | Self::BadReply(_)
            | Self::Other(_) => Outcome::Unknown,
        }
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::NotSent(error) => error.advice(),
            Self::TooMany { .. } => Advice::Retry,
            Self::NoService(_)
            | Self::NoMethod(_)
            | Self::Overloaded(_)
            | Self::Draining(_)
            | Self::Rejected { elsewhere: true, .. } => Advice::RetryElsewhere(None),
            Self::Deadline | Self::Lost { .. } | Self::Panicked(_) | Self::Abandoned(_) => {
                Advice::SameRequestIdOnly
            }
            Self::Undecodable(_)
            | Self::Rejected { elsewhere: false, .. }
            | Self::ReplyUnsendable(_)
            | Self::BadReply(_)
            | Self::NoProcess(_)
            | Self::Stale(_)
            | Self::Other(_) => Advice::GiveUp,
        }
    }
}

/// A handler's refusal. Return it only when nothing was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    text: String,
    elsewhere: bool,
}

impl Rejection {
    /// Refuses for a reason that holds on every node.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), elsewhere: false }
    }

    /// Refuses because of this node, for instance while it drains; another may accept.
    #[must_use]
    pub fn here(text: impl Into<String>) -> Self {
        Self { text: text.into(), elsewhere: true }
    }

    /// The reason.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    pub(crate) fn code(&self) -> FailureCode {
        if self.elsewhere { FailureCode::RejectedHere } else { FailureCode::Rejected }
    }
}

/// Why a method cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// It has a handler already.
    #[error("method `{0}` is served already")]
    Taken(String),
    /// Two names have the same number on the wire; rename one.
    #[error("methods `{name}` and `{other}` have the same hash")]
    Collision {
        /// The new name.
        name: String,
        /// The name served already.
        other: String,
    },
}
