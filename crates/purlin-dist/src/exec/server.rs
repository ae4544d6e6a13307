//! A program as a process of the cluster.

use std::{
    ffi::OsString, fmt, os::unix::ffi::OsStrExt as _, path::PathBuf, sync::Arc, time::Duration,
};

use nix::sys::signal::Signal;
use purlin_core::{Clock, NodeId, WallTime};
use purlin_process::{Context, ExitReason};
use serde::{Deserialize, Serialize};

use super::{
    guard::{GuardCommand, SILENT_MAX},
    logs::{Logs, Writer},
    run::{self, Running},
    spec::{ExecSpec, StopSignal, check_name},
    wire::{Limits, Order},
};

/// How long the end may take after `SIGKILL`: a process in the middle of a write to a dead file
/// server does not end before that does.
pub(super) const KILL_WITHIN: Duration = Duration::from_secs(10);

/// Variables of the node that a program gets too. All others stay with the node: they hold its
/// configuration, and who knows what else.
const INHERITED: [&str; 8] = ["PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR"];
/// Those that belong to a user.
const OF_A_USER: [&str; 4] = ["HOME", "USER", "LOGNAME", "SHELL"];
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What programs of a node run on.
pub struct ExecHost {
    /// The node.
    pub node: NodeId,
    /// Its time.
    pub clock: Arc<dyn Clock>,
    /// How to start guards.
    pub guard: GuardCommand,
    /// Where output is kept.
    pub logs: Logs,
    /// A directory of a cgroup v2 below which the node may make others, with the controllers it needs
    /// enabled for them. Without one, `memory_max` bounds the address space of each process, and
    /// `cpu_millis` is refused.
    pub cgroup: Option<PathBuf>,
    /// The node's HTTP API, which programs find in `PURLIN_NODE`.
    pub url: Option<String>,
}

impl fmt::Debug for ExecHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, logs, cgroup, .. } = self;
        f.debug_struct("ExecHost")
            .field("node", node)
            .field("logs", logs)
            .field("cgroup", cgroup)
            .finish_non_exhaustive()
    }
}

/// Why a node cannot run programs at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The main function of this program is not prepared to be started as a guard.
    #[error("this program cannot guard others: its main must begin with exec::guarded()")]
    NotGuarded,
}

/// What an [`Exec`] is started from.
#[derive(Debug, Clone)]
pub struct ExecArgs {
    /// What it runs on.
    pub host: Arc<ExecHost>,
    /// Its name.
    pub name: Arc<str>,
    /// What to run.
    pub spec: ExecSpec,
    /// The number of this start of the name: greater than of every earlier one.
    pub fence: u64,
    /// How often it was started again before.
    pub restarts: u32,
}

/// How a program stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramStatus {
    /// Its name.
    pub name: String,
    /// Where it runs.
    pub node: NodeId,
    /// Its number there, which is its group's too.
    pub pid: i32,
    /// The number of this start of the name.
    pub fence: u64,
    /// How often it was started again before.
    pub restarts: u32,
    /// When it was started.
    pub started_at: WallTime,
    /// What it is, as one would type it.
    pub command: String,
}

/// One program that runs, as a process.
///
/// It ends when the program does: with [`ExitReason::Normal`] for status 0, else with
/// [`ExitReason::Failed`] that names the status or the signal. Asked to stop, it sends the stop
/// signal to the program's group, waits for the grace and kills the group. Killed itself, or with its
/// node, it takes the program along: see [`guard`](mod@super::guard). When the program has ended,
/// what it left behind is killed.
///
/// The program's standard input is empty. Of the node's environment it gets `PATH`, `HOME`,
/// `USER`, `LOGNAME`, `SHELL`, `LANG`, `TZ`, `TMPDIR` and `LC_*`; then its own; then:
///
/// | variable | what |
/// |---|---|
/// | `PURLIN_CHILD` | its name |
/// | `PURLIN_FENCE` | the number of this start; whoever it writes to can refuse a smaller one |
/// | `PURLIN_RESTARTS` | how often it was started again before |
/// | `PURLIN_NODE_NAME` | the node it runs on |
/// | `PURLIN_NODE` | that node's HTTP API, if it has one: the node that `purlin` asks |
#[derive(Debug)]
pub struct Exec {
    args: ExecArgs,
    running: Running,
    log: Arc<Writer>,
    started_at: WallTime,
}

#[purlin_process::server(crate = "::purlin_process", kind = "exec")]
impl Exec {
    #[init]
    pub(super) async fn start(args: ExecArgs, ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
        check_name(&args.name).map_err(ExitReason::failed)?;
        let log = Arc::new(args.host.logs.open(&args.name).await);
        let order = args.order().map_err(|why| refused(&log, &why))?;
        let (me, guard) = (ctx.me(), args.host.guard.command(&args.name));
        // A signal, not a message: it arrives however full the mailbox is.
        let at_end = move |outcome: run::Outcome| me.stop(outcome.reason());
        let running = run::start(guard, order, Arc::clone(&log), at_end).await;
        let running = running.map_err(|why| refused(&log, &why))?;
        let (node, pid, fence) = (&args.host.node.name, running.pid, args.fence);
        log.note(format_args!("started on {node} as {pid}, fence {fence}: {}", args.spec));
        let started_at = args.host.clock.wall();
        Ok(Self { args, running, log, started_at })
    }

    /// How it stands.
    #[call]
    #[must_use]
    pub fn status(&self) -> ProgramStatus {
        ProgramStatus {
            name: self.args.name.to_string(),
            node: self.args.host.node.clone(),
            pid: self.running.pid,
            fence: self.args.fence,
            restarts: self.args.restarts,
            started_at: self.started_at,
            command: self.args.spec.to_string(),
        }
    }

    #[terminate]
    async fn stop(&mut self, reason: &ExitReason) {
        if self.running.ended(Duration::ZERO).await.is_some() {
            return;
        }
        let ExecSpec { stop_signal, grace, .. } = self.args.spec;
        self.log.note(format_args!("stopping with {}: {reason}", stop_signal.as_str()));
        self.running.signal(signal(stop_signal)).await;
        if self.running.ended(grace).await.is_some() {
            return;
        }
        self.log.note(format_args!("still there after {grace:?}: killing it"));
        self.running.signal(Signal::SIGKILL).await;
        if self.running.ended(KILL_WITHIN).await.is_none() {
            tracing::error!(name = %self.args.name, pid = self.running.pid, "a killed program does not end");
        }
    }

    #[summary]
    fn summary(&self) -> String {
        format!("pid {}: {}", self.running.pid, self.args.spec)
    }
}

fn refused(log: &Writer, why: &dyn fmt::Display) -> ExitReason {
    log.note(format_args!("cannot start: {why}"));
    ExitReason::failed(why)
}

fn signal(stop: StopSignal) -> Signal {
    match stop {
        StopSignal::Term => Signal::SIGTERM,
        StopSignal::Int => Signal::SIGINT,
        StopSignal::Quit => Signal::SIGQUIT,
        StopSignal::Hup => Signal::SIGHUP,
        StopSignal::Usr1 => Signal::SIGUSR1,
        StopSignal::Usr2 => Signal::SIGUSR2,
        StopSignal::Kill => Signal::SIGKILL,
    }
}

impl ExecArgs {
    /// Whether this node can run it, as far as that can be told without trying.
    pub(super) fn check(&self) -> Result<(), String> {
        let Self { host, spec, .. } = self;
        check_name(&self.name).map_err(|error| error.to_string())?;
        spec.check().map_err(|error| error.to_string())?;
        if let (Some(millis), None) = (spec.cpu_millis, &host.cgroup) {
            return Err(format!(
                "cpus of {}.{:03} needs a cgroup: set exec.cgroup on {} to a directory of a cgroup v2 with the cpu controller",
                millis / 1_000,
                millis % 1_000,
                host.node.name
            ));
        }
        Ok(())
    }

    fn order(&self) -> Result<Order, String> {
        self.check()?;
        let Self { host, spec, .. } = self;
        let is_limited = spec.memory_max.is_some() || spec.cpu_millis.is_some();
        let cgroup = host.cgroup.as_ref().map(|dir| dir.to_string_lossy().into_owned());
        Ok(Order {
            name: self.name.to_string(),
            command: spec.command.clone(),
            args: spec.args.clone(),
            env: self.environment(std::env::vars_os()),
            cwd: spec.cwd.clone().unwrap_or_else(|| "/".to_owned()),
            user: spec.user.clone(),
            limits: Limits {
                cgroup: cgroup.filter(|_| is_limited),
                memory_max: spec.memory_max,
                cpu_millis: spec.cpu_millis,
            },
            silent_max_ms: spec
                .singleton
                .then(|| u64::try_from(SILENT_MAX.as_millis()).unwrap_or(u64::MAX)),
        })
    }

    /// The program's variables, given the node's.
    fn environment(
        &self,
        nodes: impl Iterator<Item = (OsString, OsString)>,
    ) -> Vec<(Vec<u8>, Vec<u8>)> {
        let is_another_user = self.spec.user.is_some();
        let mut all = std::collections::BTreeMap::new();
        all.insert(b"PATH".to_vec(), PATH_DEFAULT.as_bytes().to_vec());
        for (name, value) in nodes {
            let Some(text) = name.to_str() else { continue };
            let is_inherited = INHERITED.contains(&text) || text.starts_with("LC_");
            if is_inherited && !(is_another_user && OF_A_USER.contains(&text)) {
                all.insert(text.as_bytes().to_vec(), value.as_bytes().to_vec());
            }
        }
        let host = &self.host;
        let mut set = |name: &str, value: &str| {
            all.insert(name.as_bytes().to_vec(), value.as_bytes().to_vec());
        };
        for (name, value) in &self.spec.env {
            set(name, value);
        }
        set("PURLIN_CHILD", &self.name);
        set("PURLIN_FENCE", &self.fence.to_string());
        set("PURLIN_RESTARTS", &self.restarts.to_string());
        set("PURLIN_NODE_NAME", host.node.name.as_str());
        if let Some(url) = &host.url {
            set("PURLIN_NODE", url);
        }
        all.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use purlin_core::{Incarnation, SystemClock};

    use super::*;
    use crate::exec::LogLimits;

    fn args(spec: ExecSpec) -> ExecArgs {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let host = ExecHost {
            node: NodeId { name: "n2".parse().unwrap(), incarnation: Incarnation(3) },
            guard: GuardCommand::program("/bin/false"),
            logs: Logs::new(LogLimits::default(), None, Arc::clone(&clock)),
            clock,
            cgroup: None,
            url: Some("http://127.0.0.1:4901".to_owned()),
        };
        ExecArgs { host: Arc::new(host), name: "job".into(), spec, fence: 7, restarts: 2 }
    }

    #[test]
    fn a_program_gets_its_own_variables_and_few_of_the_nodes() {
        let mut spec = ExecSpec::new("x");
        spec.env.insert("TZ".into(), "UTC".into());
        let nodes =
            [("HOME", "/root"), ("TZ", "CET"), ("LC_ALL", "C"), ("PURLIN_HTTP__TOKEN", "s")];
        let nodes = || nodes.iter().map(|(name, value)| (name.into(), value.into()));
        let text = |args: &ExecArgs| {
            let env = args.environment(nodes());
            let line = |(name, value): &(Vec<u8>, Vec<u8>)| {
                format!("{}={}", String::from_utf8_lossy(name), String::from_utf8_lossy(value))
            };
            env.iter().map(line).collect::<Vec<_>>()
        };
        let path = format!("PATH={PATH_DEFAULT}");
        let own = [
            "PURLIN_CHILD=job",
            "PURLIN_FENCE=7",
            "PURLIN_NODE=http://127.0.0.1:4901",
            "PURLIN_NODE_NAME=n2",
            "PURLIN_RESTARTS=2",
            "TZ=UTC",
        ];
        let expected = ["HOME=/root", "LC_ALL=C", &path].into_iter().chain(own);
        assert_eq!(text(&args(spec.clone())), expected.collect::<Vec<_>>());
        // Another user has another home.
        spec.user = Some("nobody".into());
        let expected = ["LC_ALL=C", &path].into_iter().chain(own);
        assert_eq!(text(&args(spec)), expected.collect::<Vec<_>>());
    }

    #[test]
    fn a_limit_that_cannot_be_set_is_refused_and_says_what_would_help() {
        let mut spec = ExecSpec::new("x");
        spec.cpu_millis = Some(1_500);
        let error = args(spec).order().unwrap_err();
        assert!(
            error.starts_with("cpus of 1.500 needs a cgroup: set exec.cgroup on n2"),
            "{error}"
        );
    }

    #[test]
    fn only_a_singleton_is_killed_when_its_node_is_silent() {
        let mut spec = ExecSpec::new("x");
        assert_eq!(args(spec.clone()).order().unwrap().silent_max_ms, None);
        spec.singleton = true;
        assert_eq!(args(spec).order().unwrap().silent_max_ms, Some(5_000));
    }
}
