//! All processes of one node: starting them, finding them, ending them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use purlin_core::{Clock, Incarnation, NodeId, NodeName, SystemClock};
use tokio::sync::oneshot;

use crate::{
    AnyProcess, CallError, Callee, ExitReason, Inbound, MessageKind, MonitorId, ProcessId,
    ProcessRef, RegisterError, Registry, RemoteServer, Server, SpawnError, SpawnOptions,
    deadline::{Deadlines, Swept},
    link,
    process::{Birth, Control, Core, Decode, Process, Ready, run},
    remote::Target,
};

/// The bounds of one process system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessLimits {
    /// How many processes may be alive. An idle one occupies 1.9 KB (measured). Default 1,000,000 (guess).
    pub processes_max: usize,
}

impl Default for ProcessLimits {
    fn default() -> Self {
        Self { processes_max: 1_000_000 }
    }
}

const SHARDS: usize = 16;

/// What all processes of a node share.
pub(crate) struct System {
    pub(crate) node: NodeId,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) deadlines: Deadlines,
    pub(crate) registry: Registry,
    limits: ProcessLimits,
    table: [Mutex<BTreeMap<ProcessId, Arc<dyn Control>>>; SHARDS],
    live: AtomicUsize,
    spawned: AtomicU64,
    processes: AtomicU64,
    monitors: AtomicU64,
    shutting_down: AtomicBool,
    refusing_inbound: AtomicBool,
    inbound: InboundCounters,
}

#[derive(Debug, Default)]
struct InboundCounters {
    delivered: AtomicU64,
    stale: AtomicU64,
    no_process: AtomicU64,
    unknown_message: AtomicU64,
    undecodable: AtomicU64,
    overloaded: AtomicU64,
    draining: AtomicU64,
}

/// How messages from other nodes fared, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InboundCounts {
    /// Put into a mailbox.
    pub delivered: u64,
    /// Meant for an earlier life of this node.
    pub stale: u64,
    /// Meant for a process that does not exist here.
    pub no_process: u64,
    /// Of a kind their target does not handle.
    pub unknown_message: u64,
    /// Of a known kind, but not decodable.
    pub undecodable: u64,
    /// Refused by a full mailbox.
    pub overloaded: u64,
    /// Refused because this node drains.
    pub draining: u64,
}

impl System {
    pub(crate) fn next_monitor(&self) -> MonitorId {
        MonitorId(self.monitors.fetch_add(1, Ordering::Relaxed))
    }

    /// Forgets a process that has ended.
    pub(crate) fn ended(&self, core: &Core, reason: &ExitReason) {
        let removed = self.shard(core.pid.process).lock().remove(&core.pid.process);
        if removed.is_some() {
            self.live.fetch_sub(1, Ordering::AcqRel);
        }
        metrics::counter!("purlin_process_exits_total", "kind" => core.kind, "reason" => reason.as_str())
            .increment(1);
        match reason {
            ExitReason::Panicked(_) | ExitReason::Failed(_) => {
                tracing::warn!(process = %core.pid, kind = core.kind, %reason, "process failed");
            }
            ExitReason::Normal
            | ExitReason::Shutdown
            | ExitReason::Stopped(_)
            | ExitReason::Killed
            | ExitReason::NoProcess
            | ExitReason::NodeDown(_) => {
                tracing::debug!(process = %core.pid, kind = core.kind, %reason, "process ended");
            }
        }
    }

    fn shard(&self, process: ProcessId) -> &Mutex<BTreeMap<ProcessId, Arc<dyn Control>>> {
        &self.table[usize::try_from(process.0 % SHARDS as u64).expect("less than SHARDS")]
    }
}

/// The process system of one node. Cheap to clone; all clones are the same system.
///
/// Processes run as tokio tasks, so whatever starts one must run inside a tokio runtime.
#[derive(Clone)]
pub struct Processes(Arc<System>);

impl fmt::Debug for Processes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Processes").field("node", &self.0.node).field("live", &self.live()).finish()
    }
}

impl Processes {
    /// The process system of the node `node`, with the default limits.
    #[must_use]
    pub fn new(node: NodeId, clock: Arc<dyn Clock>) -> Self {
        Self::with_limits(node, clock, ProcessLimits::default())
    }

    /// The process system of the node `node`.
    #[must_use]
    pub fn with_limits(node: NodeId, clock: Arc<dyn Clock>, limits: ProcessLimits) -> Self {
        Self(Arc::new(System {
            node,
            deadlines: Deadlines::new(Arc::clone(&clock)),
            clock,
            registry: Registry::default(),
            limits,
            table: Default::default(),
            live: AtomicUsize::new(0),
            spawned: AtomicU64::new(0),
            processes: AtomicU64::new(1),
            monitors: AtomicU64::new(1),
            shutting_down: AtomicBool::new(false),
            refusing_inbound: AtomicBool::new(false),
            inbound: InboundCounters::default(),
        }))
    }

    /// A process system for tests and examples: node `test@1` on the system clock.
    #[must_use]
    pub fn for_tests() -> Self {
        let name = NodeName::parse("test").expect("`test` is a node name");
        Self::new(NodeId::new(name, Incarnation(1)), Arc::new(SystemClock::new()))
    }

    pub(crate) fn of(system: &Arc<System>) -> Self {
        Self(Arc::clone(system))
    }

    /// The node this system belongs to.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.0.node
    }

    /// Its clock.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.0.clock
    }

    /// The local registry.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.0.registry
    }

    /// The process of type `S` with the unique name `name`, if it still takes messages.
    #[must_use]
    pub fn whereis<S: Server>(&self, name: &str) -> Option<ProcessRef<S>> {
        self.0.registry.whereis(name)?.downcast()
    }

    /// The process with number `process`, if it has not ended.
    #[must_use]
    pub fn get(&self, process: ProcessId) -> Option<AnyProcess> {
        self.0.shard(process).lock().get(&process).cloned().map(AnyProcess)
    }

    /// How many processes have not ended: each is one task of the runtime.
    #[must_use]
    pub fn live(&self) -> usize {
        self.0.live.load(Ordering::Acquire)
    }

    /// How many processes were started, ever.
    #[must_use]
    pub fn spawned(&self) -> u64 {
        self.0.spawned.load(Ordering::Relaxed)
    }

    /// Every process that has not ended, oldest first.
    #[must_use]
    pub fn all(&self) -> Vec<AnyProcess> {
        let mut all: Vec<AnyProcess> = Vec::with_capacity(self.live());
        for shard in &self.0.table {
            all.extend(shard.lock().values().cloned().map(AnyProcess));
        }
        all.sort_by_key(AnyProcess::id);
        all
    }

    /// Starts a process and waits for its `init`.
    ///
    /// # Errors
    /// [`SpawnError`]; no process is left behind then.
    ///
    /// # Cancel safety
    /// Dropping the future kills a process whose `init` has not ended.
    pub async fn spawn<S: Server>(
        &self,
        args: S::Args,
        options: SpawnOptions,
    ) -> Result<ProcessRef<S>, SpawnError> {
        self.start(args, options, None, false, None).await
    }

    /// Starts a process that other nodes may send to, and waits for its `init`.
    ///
    /// # Errors
    /// [`SpawnError`]; no process is left behind then.
    ///
    /// # Cancel safety
    /// Dropping the future kills a process whose `init` has not ended.
    pub async fn spawn_remote<S: RemoteServer>(
        &self,
        args: S::Args,
        options: SpawnOptions,
    ) -> Result<ProcessRef<S>, SpawnError> {
        self.start(args, options, None, false, Some(S::receive)).await
    }

    pub(crate) async fn spawn_from<S: Server>(
        &self,
        parent: AnyProcess,
        args: S::Args,
        options: SpawnOptions,
    ) -> Result<ProcessRef<S>, SpawnError> {
        self.start(args, options, Some(parent), true, None).await
    }

    async fn start<S: Server>(
        &self,
        args: S::Args,
        options: SpawnOptions,
        parent: Option<AnyProcess>,
        linked: bool,
        decode: Option<Decode<S>>,
    ) -> Result<ProcessRef<S>, SpawnError> {
        let (tell, told) = oneshot::channel();
        let birth = Birth { parent, linked, restarts: 0, ready: Ready::Waiter(tell) };
        let process = self.launch(args, options, birth, decode)?;
        let mut unless_ready = KillOnDrop(Some(process.clone()));
        let outcome = told.await;
        unless_ready.0 = None;
        match outcome {
            Ok(Ok(())) => Ok(process),
            Ok(Err(error)) => Err(error),
            // The runtime dropped the task.
            Err(_) => Err(SpawnError::Init(ExitReason::Killed)),
        }
    }

    /// Starts a process without waiting for its `init`.
    pub(crate) fn launch<S: Server>(
        &self,
        args: S::Args,
        options: SpawnOptions,
        birth: Birth,
        decode: Option<Decode<S>>,
    ) -> Result<ProcessRef<S>, SpawnError> {
        let system = &self.0;
        let live = system.live.fetch_add(1, Ordering::AcqRel);
        let counted = CountedLive(Some(system));
        if system.shutting_down.load(Ordering::Acquire) {
            return Err(SpawnError::ShuttingDown);
        }
        if live >= system.limits.processes_max {
            return Err(SpawnError::TooMany { live, processes_max: system.limits.processes_max });
        }
        let id = ProcessId(system.processes.fetch_add(1, Ordering::Relaxed));
        let process = Process::new(system, id, &options, &birth, decode);
        let untyped = AnyProcess(Arc::clone(&process) as Arc<dyn Control>);
        if let Some(name) = &options.name {
            let registered =
                system.registry.register(name, untyped.clone(), options.metadata.clone());
            registered.map_err(|error| name_refused(name, error))?;
        }
        system.shard(id).lock().insert(id, Arc::clone(&process) as Arc<dyn Control>);
        system.spawned.fetch_add(1, Ordering::Relaxed);
        // From here on the end of the task takes it out of the count.
        counted.keep();
        if birth.linked
            && let Some(parent) = &birth.parent
        {
            link::link(parent, &untyped);
        }
        metrics::counter!("purlin_process_spawns_total", "kind" => S::KIND).increment(1);
        tokio::spawn(run(Arc::clone(&process), args, options, birth.ready));
        Ok(ProcessRef(process))
    }

    /// Puts a message from another node into the mailbox of its target, without a task and
    /// without waiting.
    ///
    /// `asked` is the life of this node that the sender means. A call's reply, or the error
    /// returned here, goes to [`Inbound::reply`] exactly once; a full mailbox refuses whatever its
    /// policy, except [`Overload::DropOldest`](crate::Overload::DropOldest).
    ///
    /// # Errors
    /// [`CallError::Stale`], [`CallError::NoProcess`], [`CallError::UnknownMessage`],
    /// [`CallError::Undecodable`], [`CallError::Overloaded`] or [`CallError::Draining`], each
    /// counted in [`Processes::inbound_counts`]. Nothing ran then.
    pub fn deliver(
        &self,
        asked: Incarnation,
        target: Target<'_>,
        kind: MessageKind,
        payload: &[u8],
        inbound: Inbound,
    ) -> Result<(), CallError> {
        match self.admit(asked, target) {
            Ok(process) => self.deliver_to(&process, kind, payload, inbound),
            Err(error) => {
                let outcome = Err(inbound.refuse(error));
                self.count_inbound(&outcome);
                outcome
            }
        }
    }

    /// As [`Processes::deliver`], to a process that was looked up before; saves the lookup.
    ///
    /// # Errors
    /// As [`Processes::deliver`], but never [`CallError::Stale`].
    pub fn deliver_to(
        &self,
        process: &AnyProcess,
        kind: MessageKind,
        payload: &[u8],
        inbound: Inbound,
    ) -> Result<(), CallError> {
        let outcome = if self.0.refusing_inbound.load(Ordering::Acquire) {
            Err(inbound.refuse(CallError::Draining))
        } else {
            process.0.receive(kind, payload, inbound)
        };
        self.count_inbound(&outcome);
        outcome
    }

    /// Finds the target of a message from another node.
    ///
    /// # Errors
    /// [`CallError::Stale`] or [`CallError::NoProcess`].
    pub fn admit(&self, asked: Incarnation, target: Target<'_>) -> Result<AnyProcess, CallError> {
        let system = &self.0;
        if asked != system.node.incarnation {
            let process = match target {
                Target::Id(process) => process,
                Target::Name(_) => ProcessId(0),
            };
            let asked = NodeId::new(system.node.name.clone(), asked);
            return Err(CallError::Stale { process, asked, now: system.node.clone() });
        }
        match target {
            Target::Id(process) => {
                self.get(process).ok_or(CallError::NoProcess(Callee::Id(process)))
            }
            Target::Name(name) => system
                .registry
                .whereis(name)
                .ok_or_else(|| CallError::NoProcess(Callee::Name(name.into()))),
        }
    }

    fn count_inbound(&self, outcome: &Result<(), CallError>) {
        let counters = &self.0.inbound;
        let (counter, what) = match outcome {
            Ok(()) => {
                counters.delivered.fetch_add(1, Ordering::Relaxed);
                return;
            }
            Err(CallError::Stale { .. }) => (&counters.stale, "stale"),
            Err(CallError::NoProcess(_)) => (&counters.no_process, "no_process"),
            Err(CallError::UnknownMessage { .. }) => (&counters.unknown_message, "unknown_message"),
            Err(CallError::Undecodable { .. }) => (&counters.undecodable, "undecodable"),
            Err(CallError::Draining) => (&counters.draining, "draining"),
            Err(_) => (&counters.overloaded, "overloaded"),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        metrics::counter!("purlin_process_inbound_refused_total", "reason" => what).increment(1);
    }

    /// How messages from other nodes fared.
    #[must_use]
    pub fn inbound_counts(&self) -> InboundCounts {
        let counters = &self.0.inbound;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        InboundCounts {
            delivered: read(&counters.delivered),
            stale: read(&counters.stale),
            no_process: read(&counters.no_process),
            unknown_message: read(&counters.unknown_message),
            undecodable: read(&counters.undecodable),
            overloaded: read(&counters.overloaded),
            draining: read(&counters.draining),
        }
    }

    /// From now on refuses messages from other nodes with [`CallError::Draining`]; those already
    /// in mailboxes are handled. For the last step of a drain.
    pub fn refuse_inbound(&self) {
        self.0.refusing_inbound.store(true, Ordering::Release);
    }

    /// Has `swept` visited every 10 ms until it says no; for tables of calls to other nodes.
    pub fn watch_deadlines(&self, swept: Arc<dyn Swept>) {
        self.0.deadlines.watch(swept);
    }

    /// A number for a monitor that no process owns.
    #[must_use]
    pub fn next_monitor(&self) -> MonitorId {
        self.0.next_monitor()
    }

    /// Ends all processes, `within` at most.
    ///
    /// From now on nothing is started. Processes without a living parent are drained one after
    /// the other, the youngest first, so what was started later, and may lean on what was there,
    /// goes first; supervisors end their children in the same manner. Who does not end in time is
    /// killed.
    ///
    /// # Cancel safety
    /// Dropping the future stops the work where it is; nothing is started afterwards either way.
    pub async fn shutdown(&self, within: Duration) -> ShutdownReport {
        self.0.shutting_down.store(true, Ordering::Release);
        let deadline = tokio::time::Instant::now() + within;
        let mut report = ShutdownReport::default();
        while let Some(root) = self.youngest_root() {
            root.drain();
            let patience = deadline.min(tokio::time::Instant::now() + root.0.core().drain_within);
            if tokio::time::timeout_at(patience, root.exited()).await.is_ok() {
                report.drained += 1;
                continue;
            }
            root.kill();
            if tokio::time::timeout(KILL_GRACE, root.exited()).await.is_ok() {
                report.killed += 1;
            } else {
                // It blocks its thread; nothing in the process can end it.
                tracing::error!(process = ?root, "a process does not reach an await point and cannot be killed");
                report.stuck += 1;
                self.0.ended(root.0.core(), &ExitReason::Killed);
            }
        }
        report
    }

    fn youngest_root(&self) -> Option<AnyProcess> {
        let all = self.all();
        let lives = |id: ProcessId| all.binary_search_by_key(&id, AnyProcess::id).is_ok();
        all.iter().rev().find(|process| !process.0.core().parent.is_some_and(lives)).cloned()
    }
}

/// How long a killed process may take to reach an await point.
const KILL_GRACE: Duration = Duration::from_secs(1);

/// How a shutdown went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShutdownReport {
    /// Processes without a parent that ended by themselves, their children with them.
    pub drained: usize,
    /// Processes that had to be killed.
    pub killed: usize,
    /// Processes that block their thread and could not even be killed.
    pub stuck: usize,
}

fn name_refused(name: &str, error: RegisterError) -> SpawnError {
    match error {
        RegisterError::NameTaken { name, by } => SpawnError::NameTaken { name, by },
        RegisterError::NoProcess(_) | RegisterError::Length(_) | RegisterError::TooMany => {
            SpawnError::Name { name: name.to_owned(), reason: error.to_string() }
        }
    }
}

/// One place in the count of live processes, given back unless the process takes it over.
struct CountedLive<'a>(Option<&'a System>);

impl CountedLive<'_> {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for CountedLive<'_> {
    fn drop(&mut self) {
        if let Some(system) = self.0 {
            system.live.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

struct KillOnDrop<S: Server>(Option<ProcessRef<S>>);

impl<S: Server> Drop for KillOnDrop<S> {
    fn drop(&mut self) {
        if let Some(process) = &self.0 {
            process.kill();
        }
    }
}
