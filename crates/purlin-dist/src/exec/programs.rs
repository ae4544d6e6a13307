//! Programs that run somewhere in the cluster: started, found, read and stopped from any node.

use std::{fmt, sync::Arc, time::Duration};

use purlin_cluster::{MemberCallError, MembersRpc, Selector};
use purlin_core::{Advice, Clock, NodeId, NodeName, Outcome};
use purlin_net::rpc::ServeError;
use purlin_process::{Backoff, Intensity, Restart, SpawnOptions};
use serde::{Deserialize, Serialize};

use super::{
    logs::{self, LogRead, Logs, ReadFrom, ReadLog},
    server::{Exec, ExecArgs, ExecHost, KILL_WITHIN},
    spec::{ExecRestart, ExecSpec, GRACE_MAX, SpecError, check_name},
};
use crate::supervisor::{
    Birth, ChildInfo, ChildOptions, Kind, KindError, StartChildError, Stopped, Supervisor,
    SupervisorConfig, SupervisorError, Supervisors, split::SplitConfig,
};

/// The supervisor that programs are children of, and the name of their kind.
pub const PROGRAMS: &str = "exec";

/// How long other nodes have to say whether they know a name that nobody runs.
const FIND_WITHIN: Duration = Duration::from_secs(2);

/// A spec as it is kept. Another version is another variant, which an older release refuses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoredSpec {
    /// As of 0.1.
    V1(ExecSpec),
}

/// The kind `exec`: programs on one node.
#[derive(Debug, Clone)]
pub struct ExecKind(Arc<ExecHost>);

impl ExecKind {
    /// Programs that run on `host`.
    #[must_use]
    pub fn new(host: Arc<ExecHost>) -> Self {
        Self(host)
    }
}

impl Kind for ExecKind {
    const NAME: &'static str = PROGRAMS;
    type Server = Exec;
    type Args = StoredSpec;
    type State = ();

    fn args(&self, stored: StoredSpec, birth: Birth<()>) -> Result<ExecArgs, KindError> {
        let StoredSpec::V1(spec) = stored;
        let args = ExecArgs {
            host: Arc::clone(&self.0),
            name: birth.id,
            spec,
            fence: birth.fence.0,
            restarts: birth.restarts,
        };
        // What another node may be able to do is refused before anything is begun.
        args.check().map_err(KindError::refused)?;
        Ok(args)
    }

    fn options(&self) -> SpawnOptions {
        // Its own grace decides; these are only for what hangs in spite of it.
        let within = GRACE_MAX + 2 * KILL_WITHIN;
        SpawnOptions { terminate_within: within, drain_within: within, ..SpawnOptions::default() }
    }
}

/// The programs of a cluster, as one node sees them. Cheap to clone.
///
/// # Guarantees
/// Those of [`Supervisor`]: a program runs on one node; when that dies it is started on another, once
/// the membership says so. Without a split policy both sides of a cut run it, and after the heal the
/// one that was placed later stays; with one, the side that loses stops its programs, and the other
/// starts them after it has waited. Every start has a greater `PURLIN_FENCE`. A node that comes
/// moves nothing: a program has no state to take along, so moving it for the sake of load would only
/// end it. A drain moves all.
#[derive(Clone)]
pub struct Programs {
    supervisor: Supervisor,
    logs: Logs,
    rpc: MembersRpc,
    me: NodeId,
    is_host: bool,
}

impl fmt::Debug for Programs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Programs")
            .field("logs", &self.logs)
            .field("is_host", &self.is_host)
            .finish_non_exhaustive()
    }
}

/// A program, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it is and how it stands.
    pub child: ChildInfo,
    /// What it is; none when a later release wrote it.
    pub spec: Option<ExecSpec>,
}

impl From<ChildInfo> for Program {
    fn from(child: ChildInfo) -> Self {
        let stored = postcard::take_from_bytes::<StoredSpec>(&child.args);
        let spec = stored.ok().map(|(StoredSpec::V1(spec), _)| spec);
        Self { child, spec }
    }
}

/// Whether a program was started by this very request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ran {
    /// It was.
    Started,
    /// It was in quarantine and is started again.
    Released,
    /// It is there already, exactly so.
    Already,
}

/// Why a program was not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// The name or what to run is out of bounds.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No node that is up runs programs.
    #[error("no node runs programs: set exec.enabled in the purlin.toml of those that may")]
    NoHost,
    /// It was not started.
    #[error(transparent)]
    Start(#[from] StartChildError),
}

impl RunError {
    /// Whether it may run.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            // What did not get as far as running is ended by its guard.
            Self::Start(StartChildError::Kind(_)) | Self::Spec(_) | Self::NoHost => {
                Outcome::NotDone
            }
            Self::Start(error) => error.outcome(),
        }
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Start(StartChildError::Kind(_)) | Self::Spec(_) | Self::NoHost => Advice::GiveUp,
            Self::Start(error) => error.advice(),
        }
    }
}

/// Why a log was not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// No node that answered has one of that name.
    #[error("no node has output of {0:?}")]
    Absent(String),
    /// The node that has it did not answer.
    #[error(transparent)]
    Call(#[from] MemberCallError),
}

impl Programs {
    /// Takes part: always as one who starts, finds and reads, and as a host of programs if there is
    /// one. `split` says which side of a cut runs them; the same on all nodes. Once per node.
    ///
    /// # Errors
    /// [`TakePartError`].
    pub fn start(
        supervisors: &Supervisors,
        rpc: &MembersRpc,
        me: &NodeId,
        clock: &Arc<dyn Clock>,
        split: SplitConfig,
        host: Option<Arc<ExecHost>>,
    ) -> Result<Self, TakePartError> {
        let supervisor = supervisors.get(PROGRAMS)?;
        supervisor.configure(SupervisorConfig { split, ..SupervisorConfig::default() })?;
        let (is_host, logs) = match host {
            Some(host) => {
                let logs = host.logs.clone();
                supervisor.register_kind(ExecKind::new(host))?;
                (true, logs)
            }
            None => (false, Logs::new(super::LogLimits::default(), None, Arc::clone(clock))),
        };
        logs.serve(rpc, me.clone())?;
        let (rpc, me) = (rpc.clone(), me.clone());
        Ok(Self { supervisor, logs, rpc, me, is_host })
    }

    /// Whether this node runs programs itself.
    #[must_use]
    pub fn is_host(&self) -> bool {
        self.is_host
    }

    /// The supervisor they are children of: its events, plan and pauses.
    #[must_use]
    pub fn supervisor(&self) -> &Supervisor {
        &self.supervisor
    }

    /// Has `spec` run under `name` on some node, and waits until it does. What runs already exactly
    /// so goes on; what was in quarantine is started again.
    ///
    /// # Errors
    /// [`RunError`]; [`StartChildError::Exists`] when something else has the name.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the program to be started.
    pub async fn run(&self, name: &str, spec: ExecSpec) -> Result<Ran, RunError> {
        check_name(name)?;
        spec.check()?;
        let options = options(&spec);
        match self.supervisor.start_child::<ExecKind>(name, &StoredSpec::V1(spec), options).await {
            Ok(_) => Ok(Ran::Started),
            Err(StartChildError::Exists { same: true, .. }) => {
                match self.supervisor.release(name) {
                    Ok(()) => Ok(Ran::Released),
                    Err(_not_in_quarantine) => Ok(Ran::Already),
                }
            }
            Err(StartChildError::Unplaceable(_)) if self.hosts().is_empty() => {
                Err(RunError::NoHost)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Stops the program `name` and forgets it.
    ///
    /// # Errors
    /// [`SupervisorError::Absent`] when there is none.
    ///
    /// # Cancel safety
    /// Dropping the future does not bring it back.
    pub async fn stop(&self, name: &str) -> Result<Stopped, SupervisorError> {
        self.supervisor.stop_child(name).await
    }

    /// What is known of the program `name`. Local.
    #[must_use]
    pub fn which(&self, name: &str) -> Option<Program> {
        self.supervisor.which(name).map(Program::from)
    }

    /// Up to `limit` programs whose names begin with `prefix`, in order, after the name `after`.
    /// Local; a moving picture, not a snapshot.
    #[must_use]
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<Program> {
        self.supervisor.children(prefix, after, limit).into_iter().map(Program::from).collect()
    }

    /// The nodes that run programs.
    #[must_use]
    pub fn hosts(&self) -> Vec<NodeId> {
        self.supervisor.hosts(PROGRAMS)
    }

    /// The node that has the latest output of `name`: where it is or, when nobody runs it any more,
    /// of all that answer the one that wrote last.
    ///
    /// # Errors
    /// [`LogError::Absent`].
    pub async fn has_log(&self, name: &str) -> Result<NodeName, LogError> {
        if let Some(child) = self.supervisor.which(name)
            && let Some(node) = child.node()
        {
            return Ok(node.name.clone());
        }
        let from = ReadFrom::Last(1);
        let request = ReadLog { name: name.to_owned(), from, bytes_max: 1, wait_ms: 0 };
        let mut reads = vec![self.logs.read_here(&self.me, &request).await];
        let all = Selector::all();
        let others = self.rpc.multi_call(&all, logs::READ, &request, FIND_WITHIN).await;
        reads.extend(others.into_iter().filter_map(|(_, read)| read.ok()));
        let known = reads.into_iter().filter(|read| read.is_known);
        let latest = known.max_by_key(|read| read.page.lines.last().map(|line| line.at));
        latest.map(|read| read.node.name).ok_or_else(|| LogError::Absent(name.to_owned()))
    }

    /// Reads the log of `request.name` that `node` has.
    ///
    /// # Errors
    /// [`LogError`]; reading changes nothing, so asking again is always right.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn read_log(&self, node: &NodeName, request: &ReadLog) -> Result<LogRead, LogError> {
        let read = match *node == self.me.name {
            true => self.logs.read_here(&self.me, request).await,
            false => logs::read_there(&self.rpc, node, request).await?,
        };
        if read.is_known { Ok(read) } else { Err(LogError::Absent(request.name.clone())) }
    }
}

/// Why a node cannot take part.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TakePartError {
    /// The supervisor cannot be had.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    /// Somebody answers its calls already.
    #[error(transparent)]
    Calls(#[from] ServeError),
}

fn options(spec: &ExecSpec) -> ChildOptions {
    ChildOptions {
        restart: match spec.restart {
            ExecRestart::Always => Restart::Permanent,
            ExecRestart::OnFailure => Restart::Transient,
            ExecRestart::Never => Restart::Temporary,
        },
        // One that fails at once is given up after about six seconds; one that lives for five
        // seconds each time never is.
        backoff: Backoff { first: Duration::from_millis(200), most: Duration::from_secs(30) },
        quarantine: Intensity { restarts_max: 5, within: Duration::from_secs(30) },
        stays: true,
        ..ChildOptions::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_spec_is_read_as_it_was_written_and_another_version_is_told_apart() {
        let spec = ExecSpec::new("true").args(["a"]);
        let bytes = postcard::to_stdvec(&StoredSpec::V1(spec.clone())).unwrap();
        assert_eq!(postcard::from_bytes::<StoredSpec>(&bytes).unwrap(), StoredSpec::V1(spec));
        let mut later = bytes;
        later[0] = 1;
        assert!(postcard::from_bytes::<StoredSpec>(&later).is_err());
    }

    #[test]
    fn the_shortest_spec_and_the_longest_fit_what_a_supervisor_keeps() {
        let mut spec =
            ExecSpec::new("x").args([" ".repeat(super::super::spec::SPEC_BYTES_MAX - 1)]);
        assert_eq!(spec.check(), Ok(()));
        spec.cwd = None;
        let bytes = postcard::to_stdvec(&StoredSpec::V1(spec)).unwrap();
        assert!(bytes.len() <= crate::supervisor::record::ARGS_BYTES_MAX);
    }
}
