//! What can go wrong when talking to a process, each with its outcome and what to do.

use std::time::Duration;

use purlin_core::{Advice, NodeId, Outcome};

use crate::{ExitReason, MessageKind, ProcessId};

/// Why a call has no answer.
///
/// [`CallError::outcome`] tells whether the callee may have acted, [`CallError::advice`] what the
/// caller may do now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// No such process: it has exited or never was. Nothing ran. Look it up again by name.
    #[error("no process {0}")]
    NoProcess(Callee),
    /// The callee belonged to an earlier life of its node. Nothing ran. Look it up again.
    #[error("process {process} belonged to {asked}, which is now {now}")]
    Stale {
        /// The process that was addressed.
        process: ProcessId,
        /// The life of the node it belonged to.
        asked: NodeId,
        /// The node's present life.
        now: NodeId,
    },
    /// The callee's mailbox is full. Nothing ran. Slow down or retry later.
    #[error(
        "mailbox full: {messages} messages and {bytes} bytes wait (limits {messages_max} and {bytes_max})"
    )]
    Overloaded {
        /// Messages waiting.
        messages: usize,
        /// Their bytes.
        bytes: usize,
        /// How many messages may wait.
        messages_max: usize,
        /// How many bytes may wait.
        bytes_max: usize,
    },
    /// The connection or this node's window to the remote process is full. Nothing was sent.
    #[error("the way to node {0} is full")]
    Full(NodeId),
    /// The deadline passed before the callee looked at the request. It will never run.
    #[error("not handled within {0:?}; the request was withdrawn")]
    Expired(Duration),
    /// The deadline passed while the callee was at it, or after the request left this node: it
    /// may have run, or may still. Repeat only what can be told apart from the first try.
    #[error("no answer within {0:?}")]
    NoReply(Duration),
    /// The callee exited with the request still waiting in its mailbox. It never ran.
    #[error("the process exited ({0}) before it looked at the request")]
    ExitedBefore(ExitReason),
    /// The callee exited while it was at the request: it may have acted in part.
    #[error("the process exited ({0}) while it handled the request")]
    ExitedDuring(ExitReason),
    /// The callee was asked to call itself; waiting for the answer would never end. Nothing ran.
    #[error("a process cannot call itself: it would wait for itself for ever")]
    CallsItself,
    /// The callee does not handle messages of this kind (another version, or not spawned for
    /// remote use). Nothing ran.
    #[error("{server} does not handle messages of kind {kind}")]
    UnknownMessage {
        /// The kind that was sent.
        kind: MessageKind,
        /// What kind of server the callee is.
        server: String,
    },
    /// The callee's node could not decode the request. Nothing ran.
    #[error("message of kind {kind} cannot be decoded: {reason}")]
    Undecodable {
        /// The kind that was sent.
        kind: MessageKind,
        /// What the decoder said.
        reason: String,
    },
    /// The request could not be encoded. Nothing was sent.
    #[error("the message cannot be encoded: {0}")]
    Unencodable(String),
    /// The encoded request exceeds the transport's limit. Nothing was sent.
    #[error("message of {bytes} bytes exceeds limit {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The most there may be.
        bytes_max: usize,
    },
    /// The answer came but could not be decoded: the callee did run.
    #[error("the answer cannot be decoded: {0}")]
    ReplyUndecodable(String),
    /// This node has no connection to the callee's node. Nothing was sent.
    #[error("node {0} cannot be reached")]
    Unreachable(NodeId),
    /// The connection broke after the request was sent: it may have run.
    #[error("the connection to node {0} broke before an answer came")]
    Disconnected(NodeId),
    /// The callee's node takes no new work: it drains or shuts down. Nothing ran.
    #[error("the node takes no new work: it is draining")]
    Draining,
}

impl CallError {
    /// Whether the callee may have acted.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NoProcess(_)
            | Self::Stale { .. }
            | Self::Overloaded { .. }
            | Self::Full(_)
            | Self::Expired(_)
            | Self::ExitedBefore(_)
            | Self::CallsItself
            | Self::UnknownMessage { .. }
            | Self::Undecodable { .. }
            | Self::Unencodable(_)
            | Self::TooLarge { .. }
            | Self::Unreachable(_)
            | Self::Draining => Outcome::NotDone,
            Self::NoReply(_)
            | Self::ExitedDuring(_)
            | Self::ReplyUndecodable(_)
            | Self::Disconnected(_) => Outcome::Unknown,
        }
    }

    /// What the caller may do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Overloaded { .. } | Self::Full(_) | Self::Expired(_) | Self::Unreachable(_) => {
                Advice::Retry
            }
            // A supervisor starts a successor under the same name: a fresh lookup finds it.
            Self::NoProcess(_) | Self::Stale { .. } | Self::ExitedBefore(_) => Advice::Retry,
            Self::Draining => Advice::RetryElsewhere(None),
            Self::NoReply(_)
            | Self::ExitedDuring(_)
            | Self::ReplyUndecodable(_)
            | Self::Disconnected(_) => Advice::SameRequestIdOnly,
            Self::CallsItself
            | Self::UnknownMessage { .. }
            | Self::Undecodable { .. }
            | Self::Unencodable(_)
            | Self::TooLarge { .. } => Advice::GiveUp,
        }
    }
}

/// Whom a message was meant for: a number or a registered name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Callee {
    /// A process by its number on the node.
    Id(ProcessId),
    /// A process by its registered name.
    Name(Box<str>),
}

impl std::fmt::Display for Callee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Name(name) => write!(f, "named {name:?}"),
        }
    }
}

/// Why a cast was not accepted. Its outcome is always [`Outcome::NotDone`].
///
/// A cast that was accepted may still be lost: with the callee, with its node, or with the
/// connection to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CastError {
    /// No such process: it has exited or never was.
    #[error("no process {0}")]
    NoProcess(Callee),
    /// The target belonged to an earlier life of its node.
    #[error("process {process} belonged to {asked}, which is now {now}")]
    Stale {
        /// The process that was addressed.
        process: ProcessId,
        /// The life of the node it belonged to.
        asked: NodeId,
        /// The node's present life.
        now: NodeId,
    },
    /// The target's mailbox is full.
    #[error(
        "mailbox full: {messages} messages and {bytes} bytes wait (limits {messages_max} and {bytes_max})"
    )]
    Overloaded {
        /// Messages waiting.
        messages: usize,
        /// Their bytes.
        bytes: usize,
        /// How many messages may wait.
        messages_max: usize,
        /// How many bytes may wait.
        bytes_max: usize,
    },
    /// The connection, or this node's window to the remote process, is full.
    #[error("the way to node {0} is full")]
    Full(NodeId),
    /// The message could not be encoded.
    #[error("the message cannot be encoded: {0}")]
    Unencodable(String),
    /// The encoded message exceeds the transport's limit.
    #[error("message of {bytes} bytes exceeds limit {bytes_max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The most there may be.
        bytes_max: usize,
    },
    /// This node has no connection to the target's node.
    #[error("node {0} cannot be reached")]
    Unreachable(NodeId),
    /// The node takes no new work: it drains or shuts down.
    #[error("the node takes no new work: it is draining")]
    Draining,
}

impl CastError {
    /// Always [`Outcome::NotDone`]: a refused cast has no effect.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::NotDone
    }

    /// What the sender may do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Overloaded { .. }
            | Self::Full(_)
            | Self::Unreachable(_)
            | Self::NoProcess(_)
            | Self::Stale { .. } => Advice::Retry,
            Self::Draining => Advice::RetryElsewhere(None),
            Self::Unencodable(_) | Self::TooLarge { .. } => Advice::GiveUp,
        }
    }
}

impl From<CastError> for CallError {
    fn from(error: CastError) -> Self {
        match error {
            CastError::NoProcess(callee) => Self::NoProcess(callee),
            CastError::Stale { process, asked, now } => Self::Stale { process, asked, now },
            CastError::Overloaded { messages, bytes, messages_max, bytes_max } => {
                Self::Overloaded { messages, bytes, messages_max, bytes_max }
            }
            CastError::Full(node) => Self::Full(node),
            CastError::Unencodable(reason) => Self::Unencodable(reason),
            CastError::TooLarge { bytes, bytes_max } => Self::TooLarge { bytes, bytes_max },
            CastError::Unreachable(node) => Self::Unreachable(node),
            CastError::Draining => Self::Draining,
        }
    }
}

/// Why a process was not started. No process is left behind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SpawnError {
    /// A live process has the name. Choose another, or talk to that one.
    #[error("name {name:?} is taken by process {by}")]
    NameTaken {
        /// The name asked for.
        name: String,
        /// Who has it.
        by: ProcessId,
    },
    /// The name cannot be registered.
    #[error("name {name:?} cannot be registered: {reason}")]
    Name {
        /// The name asked for.
        name: String,
        /// Which bound it breaks.
        reason: String,
    },
    /// `init` failed, panicked, or was interrupted.
    #[error("init ended: {0}")]
    Init(ExitReason),
    /// `init` took longer than [`SpawnOptions::start_within`](crate::SpawnOptions::start_within).
    #[error("init did not end within {0:?}")]
    InitTooSlow(Duration),
    /// The node already runs as many processes as its limits allow.
    #[error("{live} processes are alive; the limit is {processes_max}")]
    TooMany {
        /// How many are alive.
        live: usize,
        /// The most there may be.
        processes_max: usize,
    },
    /// The process system shuts down and starts nothing any more.
    #[error("the process system is shutting down")]
    ShuttingDown,
}

impl SpawnError {
    /// Whether something may have been left behind: `init` may have acted before it failed.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::NameTaken { .. }
            | Self::Name { .. }
            | Self::TooMany { .. }
            | Self::ShuttingDown => Outcome::NotDone,
            Self::Init(_) | Self::InitTooSlow(_) => Outcome::Unknown,
        }
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::NameTaken { .. } | Self::Name { .. } => Advice::GiveUp,
            Self::TooMany { .. } => Advice::Retry,
            Self::ShuttingDown => Advice::RetryElsewhere(None),
            Self::Init(_) | Self::InitTooSlow(_) => Advice::SameRequestIdOnly,
        }
    }
}
