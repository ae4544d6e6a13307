//! Why a process ended.
//!
//! The reason decides what others do: a supervisor restarts a transient child only after an
//! abnormal exit, and a link carries only abnormal exits to processes that do not trap them.

use std::{any::Any, fmt, sync::Arc};

use purlin_core::NodeId;

/// Why a process ended, or why it is asked to.
///
/// # Source
/// Erlang/OTP's exit reasons; a panic takes the place of an uncaught error.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ExitReason {
    /// It had nothing left to do.
    Normal,
    /// It was asked to stop: by its supervisor, or because the node shuts down.
    Shutdown,
    /// It stopped on purpose and says why; as calm as [`ExitReason::Shutdown`].
    Stopped(Arc<str>),
    /// It was killed: nothing of it ran after that, not even `terminate`.
    Killed,
    /// A callback panicked. Holds the panic message.
    Panicked(Arc<str>),
    /// It gave up with an error, in its own words.
    Failed(Arc<str>),
    /// There was no such process to begin with; seen by monitors and links made too late.
    NoProcess,
    /// The node it ran on is down or unreachable; whether the process still runs is unknown.
    NodeDown(NodeId),
}

impl ExitReason {
    /// A failure described by `error`.
    #[must_use]
    pub fn failed(error: impl fmt::Display) -> Self {
        Self::Failed(error.to_string().into())
    }

    /// A stop on purpose, explained by `why`.
    #[must_use]
    pub fn stopped(why: impl fmt::Display) -> Self {
        Self::Stopped(why.to_string().into())
    }

    /// Whether the process ended as planned: links ignore it and transient children stay down.
    #[must_use]
    pub fn is_normal(&self) -> bool {
        match self {
            Self::Normal | Self::Shutdown | Self::Stopped(_) => true,
            Self::Killed
            | Self::Panicked(_)
            | Self::Failed(_)
            | Self::NoProcess
            | Self::NodeDown(_) => false,
        }
    }

    /// The reason's kind as one word, for logs and metrics: `panicked`, `killed`, ...
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Normal => "normal",
            Self::Shutdown => "shutdown",
            Self::Stopped(_) => "stopped",
            Self::Killed => "killed",
            Self::Panicked(_) => "panicked",
            Self::Failed(_) => "failed",
            Self::NoProcess => "no_process",
            Self::NodeDown(_) => "node_down",
        }
    }

    pub(crate) fn from_panic(payload: &(dyn Any + Send)) -> Self {
        let text = payload
            .downcast_ref::<&'static str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "panic without a text".to_owned());
        Self::Panicked(text.into())
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal | Self::Shutdown | Self::Killed | Self::NoProcess => {
                f.write_str(self.as_str())
            }
            Self::Stopped(why) => write!(f, "stopped: {why}"),
            Self::Panicked(text) => write!(f, "panicked: {text}"),
            Self::Failed(error) => write!(f, "failed: {error}"),
            Self::NodeDown(node) => write!(f, "node {node} is down"),
        }
    }
}

/// Turns what an `init` may fail with into an [`ExitReason`]; used by `#[server]`.
///
/// Every error that can be displayed becomes [`ExitReason::Failed`]; an [`ExitReason`] stays itself.
pub trait IntoExitReason {
    /// The reason to exit with.
    fn into_exit_reason(self) -> ExitReason;
}

impl<E: fmt::Display + 'static> IntoExitReason for E {
    fn into_exit_reason(self) -> ExitReason {
        let any: &dyn Any = &self;
        any.downcast_ref::<ExitReason>().cloned().unwrap_or_else(|| ExitReason::failed(&self))
    }
}
