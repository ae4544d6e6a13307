//! What runs here: a row per process, and a word from the process itself on request.

use std::time::Duration;

use tokio::sync::oneshot;

use crate::{AnyProcess, Phase, Pid, ProcessId, Processes, mailbox::Signal};

/// One process as others see it, without disturbing it. Counts are a moment old.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ProcessInfo {
    /// Its identity.
    pub pid: Pid,
    /// What kind of server it is.
    pub kind: &'static str,
    /// The unique name it was spawned with.
    pub name: Option<String>,
    /// The supervisor or process that started it.
    pub parent: Option<ProcessId>,
    /// Where it is in its life.
    pub phase: Phase,
    /// The message it is at; none while it waits.
    pub handling: Option<&'static str>,
    /// Messages waiting.
    pub mailbox_messages: usize,
    /// Their bytes.
    pub mailbox_bytes: usize,
    /// How many may wait.
    pub mailbox_messages_max: usize,
    /// How many bytes may wait.
    pub mailbox_bytes_max: usize,
    /// Messages taken out of the mailbox so far.
    pub handled: u64,
    /// Messages dropped to make room for newer ones so far.
    pub dropped: u64,
    /// How often its supervisor started it again before this life.
    pub restarts: u32,
    /// How long it has lived.
    pub age: Duration,
    /// Processes linked to it.
    pub links: usize,
    /// Monitors that watch it.
    pub monitors: usize,
    /// Whether other nodes may send to it.
    pub remote: bool,
}

/// Why a process gave no summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SummaryError {
    /// It has ended, or ended meanwhile.
    #[error("no process {0}")]
    NoProcess(ProcessId),
    /// It was busy for that long.
    #[error("process {process} gave no summary within {within:?}")]
    Busy {
        /// The process.
        process: ProcessId,
        /// How long it was given.
        within: Duration,
    },
    /// Too many summaries are asked for already.
    #[error("too many summaries of process {0} are asked for already")]
    TooManyAsk(ProcessId),
}

impl AnyProcess {
    /// What can be seen of it from outside.
    #[must_use]
    pub fn info(&self) -> ProcessInfo {
        let control = self.control();
        let core = control.core();
        let fill = control.fill();
        let limits = control.limits();
        let handling = control.current_name();
        let (links, monitors) = core.ties.counts();
        ProcessInfo {
            pid: core.pid.clone(),
            kind: core.kind,
            name: core.name.as_deref().map(str::to_owned),
            parent: core.parent,
            phase: core.phase(),
            handling: (!handling.is_empty()).then_some(handling),
            mailbox_messages: fill.messages,
            mailbox_bytes: fill.bytes,
            mailbox_messages_max: limits.messages_max,
            mailbox_bytes_max: limits.bytes_max,
            handled: control.handled(),
            dropped: control.dropped(),
            restarts: core.restarts,
            age: core.system.clock.now() - core.started_at,
            links,
            monitors,
            remote: control.is_remote(),
        }
    }

    /// Its state in its own words ([`Server::summary`](crate::Server::summary)), between two
    /// messages.
    ///
    /// # Errors
    /// [`SummaryError`]; it goes on undisturbed.
    ///
    /// # Cancel safety
    /// Dropping the future drops the summary.
    pub async fn summary(&self, within: Duration) -> Result<String, SummaryError> {
        let (tell, told) = oneshot::channel();
        if !self.control().raise(Signal::Summarize(tell)) {
            return Err(if self.is_alive() {
                SummaryError::TooManyAsk(self.id())
            } else {
                SummaryError::NoProcess(self.id())
            });
        }
        match tokio::time::timeout(within, told).await {
            Ok(Ok(summary)) => Ok(summary),
            Ok(Err(_)) => Err(SummaryError::NoProcess(self.id())),
            Err(_) => Err(SummaryError::Busy { process: self.id(), within }),
        }
    }
}

impl Processes {
    /// A row per process, oldest first. Takes each process's locks for a moment, one at a time.
    #[must_use]
    pub fn list(&self) -> Vec<ProcessInfo> {
        self.all().iter().map(AnyProcess::info).collect()
    }
}
