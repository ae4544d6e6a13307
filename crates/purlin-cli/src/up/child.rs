//! One node's process.

use std::{
    fmt,
    fs::OpenOptions,
    os::unix::process::ExitStatusExt as _,
    process::{ExitStatus, Stdio},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{ChildStdin, Command},
    sync::mpsc,
};

use super::layout::NodeFiles;
use crate::exit::Failure;

/// A running node. Dropping it ends the pipe, upon which the node drains.
#[derive(Debug)]
pub(super) struct NodeProcess {
    pid: u32,
    _tie: Option<ChildStdin>,
}

/// A process has ended.
#[derive(Debug)]
pub(super) struct Ending {
    pub(super) name: String,
    pub(super) pid: u32,
    status: std::io::Result<ExitStatus>,
}

impl Ending {
    /// It ended because it was asked to, with everything handed over.
    pub(super) fn is_drained(&self) -> bool {
        self.status.as_ref().is_ok_and(ExitStatus::success)
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid {}, ", self.pid)?;
        match &self.status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(code), _) => write!(f, "exit code {code}"),
                (None, Some(signal)) => match Signal::try_from(signal) {
                    Ok(signal) => write!(f, "{signal}"),
                    Err(_) => write!(f, "signal {signal}"),
                },
                (None, None) => write!(f, "{status}"),
            },
            Err(error) => write!(f, "lost: {error}"),
        }
    }
}

impl NodeProcess {
    /// Starts `files`' node; its end is reported to `ended`.
    pub(super) fn spawn(files: &NodeFiles, ended: mpsc::Sender<Ending>) -> Result<Self, Failure> {
        let failed = |what: &str, error: std::io::Error| {
            Failure::NotDone(format!("cannot start {}: {what}: {error}", files.name))
        };
        files.keep_log_bounded().map_err(|error| failed("its log", error))?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&files.log)
            .map_err(|error| failed("its log", error))?;
        let log_too = log.try_clone().map_err(|error| failed("its log", error))?;
        let program =
            std::env::current_exe().map_err(|error| failed("this program's own path", error))?;
        let mut command = Command::new(program);
        command
            .arg("node")
            .arg("--data")
            .arg(&files.dir)
            .arg("--stop-with-stdin")
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(log_too)
            // A terminal sends Ctrl-C to its whole foreground group; each node must get exactly
            // one request to drain, ours, or it would take the pair as "stop at once".
            .process_group(0);
        for variable in files.own_variables() {
            command.env_remove(variable);
        }
        let mut child = command.spawn().map_err(|error| failed("the process", error))?;
        let pid = child.id().expect("a child just spawned has not been waited for");
        // Waiting would close it.
        let tie = child.stdin.take();
        let name = files.name.clone();
        tokio::spawn(async move {
            let status = child.wait().await;
            // Nobody listens any more once `up` itself is on its way out.
            drop(ended.send(Ending { name, pid, status }).await);
        });
        Ok(Self { pid, _tie: tie })
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn ask_to_drain(&self) {
        self.signal(Signal::SIGTERM);
    }

    pub(super) fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid).expect("process ids are positive i32 by POSIX");
        // It may have ended in this very moment; its ending is reported anyway.
        kill(Pid::from_raw(pid), signal).ok();
    }
}
