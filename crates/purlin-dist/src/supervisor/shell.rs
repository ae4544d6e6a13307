//! The shell around the [`Core`]s: records come from a replica set, members from the cluster, and
//! processes are started and stopped.
//!
//! Whoever changes something runs the core himself, under one lock per supervisor, and carries out
//! what it says; what takes time (starts, stops, states given) runs in tasks that report to the
//! core when they are done. One task takes in what other nodes said, how members stand, and time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    future::Future,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use purlin_cluster::{
    Cluster, MemberCallError, MembersRpc, Remote, State as Liveness, View, Why as DownWhy,
    drain::{DrainHook, Stage},
};
use purlin_core::{Clock, Deadline, Epoch, HlcTimestamp, Instant, NodeId, NodeName, Outcome};
use purlin_net::{
    Method, ServiceId,
    rpc::{CallOptions, Rejection, ServeError},
};
use purlin_process::{
    AnyProcess, DownSink, ExitReason, MonitorId, Monitored as _, Pid, ProcessId, Processes,
};
use purlin_replica::{Cell, Change as Told, Origin, ReplicaConfig, ReplicaSet, StateError};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, Semaphore, broadcast, oneshot};

use super::{
    core::{Core, CoreConfig, Gate, Output, Refusal, Seen, StartAnswer, StartHere, StopWhy},
    events::Story,
    kind::{AnyKind, Birth, Fence, Handed, KindError},
    placement::{self, Candidate},
    record::{self, Cause, Control, Host, Place, PlaceState, RecordKey, Spec, SpecReader},
    split::{LeaseSight, Policy, Sight, Split, SplitConfig, SplitError, Verdict},
};
use crate::{
    directory::Standing,
    lease::{LeaseError, Leases},
};

/// The replica set of all children's records, on the wire.
pub const CHILDREN: ServiceId = ServiceId(13);

/// How many supervisors a node knows of; records of more are counted and not acted on.
pub const SUPERVISORS_MAX: usize = 1_024;

/// How many changes are taken in under one lock.
const BATCH: usize = 256;
/// Keys per page when everything is compared.
const PAGE: usize = 1_000;
/// How long the records of a member are waited for before children that seem to be missing are
/// started all the same: it may be one that others see and this node does not reach.
const RECORDS_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked whether they have come.
const RECORDS_EVERY: Duration = Duration::from_millis(20);
/// How often what the clock or the replica refused is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(100);
/// How long a process may take to handle what waits and to terminate before it is killed, unless its
/// kind takes longer to terminate.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// How many states are given, and successors started, at once.
const HAND_OFFS_AT_ONCE: usize = 64;
/// How long one merge of two copies may take before the loser is stopped without it.
const MERGE_WITHIN: Duration = Duration::from_secs(5);
/// How long a request to move a child may take, beyond giving its state and starting it.
pub(crate) const REQUEST_WITHIN: Duration = Duration::from_secs(60);
/// How much of a drain's time is left to what comes after the children.
const DRAIN_RESERVE: Duration = Duration::from_millis(500);

/// How one supervisor behaves; equal on all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SupervisorConfig {
    /// Placing, failover and levelling.
    pub core: CoreConfig,
    /// Which side of a cut runs children. Default both.
    pub split: SplitConfig,
    /// How many children there may be for this node to start another. Default 1 million.
    pub children_max: usize,
    /// How many events are remembered. Default 16,384.
    pub events_max: usize,
    /// The most bytes of state that move from one process to the next. Default 1 MiB.
    pub state_bytes_max: usize,
    /// How long a process may take to give its state, with what waits before that. Default 5 s.
    pub hand_off_within: Duration,
    /// How long a start asked for by the user may take, its `init` included. Default 35 s.
    pub start_within: Duration,
}

impl Default for SupervisorConfig {
    fn default() -> Self {
        Self {
            core: CoreConfig::default(),
            split: SplitConfig::new(Policy::None),
            children_max: 1_000_000,
            events_max: 16_384,
            state_bytes_max: 1 << 20,
            hand_off_within: Duration::from_secs(5),
            start_within: Duration::from_secs(35),
        }
    }
}

/// What a node's supervisors stand on.
#[derive(Debug, Clone)]
pub struct Footing {
    /// Who is here.
    pub cluster: Cluster,
    /// Calls between members.
    pub rpc: MembersRpc,
    /// Processes elsewhere.
    pub remote: Remote,
    /// The processes of this node.
    pub processes: Processes,
    /// A replica set of its own, as [`Supervisors::replica`](super::Supervisors::replica) says.
    pub records: ReplicaSet,
}

/// Told when two copies of a child run since a cut, on the node whose copy ends, before it does.
///
/// This is where what both know becomes one: ask the copy here, and give it to the one that stays,
/// which is found by the child's address. After 5 s, or when it panics, the copy ends all the same.
pub trait MergeCopies: Send + Sync + 'static {
    /// Brings what `lost.process` knows to the copy that stays.
    fn merge(&self, lost: LostCopy) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;
}

impl<F, Fut> MergeCopies for F
where
    F: Fn(LostCopy) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    fn merge(&self, lost: LostCopy) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self(lost))
    }
}

/// A copy of a child that ends because another stays.
#[derive(Debug, Clone)]
pub struct LostCopy {
    /// Which child.
    pub id: Arc<str>,
    /// The copy that ends; it still runs.
    pub process: AnyProcess,
    /// Where the other is, or is about to be.
    pub winner: NodeId,
}

type Veto = dyn Fn(&placement::Move) -> bool + Send + Sync;

#[derive(Debug, Serialize, Deserialize)]
struct WireStart {
    supervisor: String,
    id: String,
    version: HlcTimestamp,
    spec: Bytes,
    fence: Fence,
    restarts: u32,
    state: Option<Handed>,
    cause: Cause,
}

/// Why a node did not start a child.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub(crate) enum NotStarted {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Kind(#[from] KindError),
    #[error("not understood: {0}")]
    Malformed(String),
}

/// Why a node was not found to have started a child.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StartAtError {
    #[error(transparent)]
    Not(#[from] NotStarted),
    #[error(transparent)]
    Call(#[from] MemberCallError),
}

type Started = Result<(HlcTimestamp, Place), NotStarted>;

const START: Method<WireStart, Started> = Method::new("supervisor.start");
pub(crate) const STOP: Method<(String, String, HlcTimestamp), bool> =
    Method::new("supervisor.stop");
pub(crate) const MOVE: Method<(String, String, NodeId), bool> = Method::new("supervisor.move");

/// What all supervisors of a node share.
pub(crate) struct Hub {
    pub(crate) me: NodeId,
    pub(crate) clock: Arc<dyn Clock>,
    weak: Weak<Self>,
    pub(crate) cluster: Cluster,
    pub(crate) rpc: MembersRpc,
    pub(crate) remote: Remote,
    pub(crate) processes: Processes,
    pub(crate) records: ReplicaSet,
    pub(crate) rooms: RwLock<BTreeMap<Arc<str>, Arc<Room>>>,
    handing: Arc<Semaphore>,
    wake: Notify,
    /// Until when the following task sleeps, in nanoseconds since the start of the clock.
    sleeps_until: AtomicU64,
    arrivals: Mutex<Arrivals>,
    pub(crate) malformed: AtomicU64,
}

/// Whether the records of all members are here, and since when each is waited for.
#[derive(Default)]
struct Arrivals {
    /// As the rooms were last told.
    is_complete: bool,
    /// The view that this was found out for.
    of: Epoch,
    since: BTreeMap<NodeId, Instant>,
}

/// One supervisor on this node.
pub(crate) struct Room {
    pub(crate) name: Arc<str>,
    hub: Weak<Hub>,
    weak: Weak<Self>,
    pub(crate) state: Mutex<State>,
    pub(crate) kinds: RwLock<BTreeMap<Arc<str>, Arc<dyn AnyKind>>>,
    pub(crate) config: RwLock<SupervisorConfig>,
    pub(crate) story: Arc<Story>,
    pub(crate) judge: Mutex<Judge>,
    pub(crate) merge: RwLock<Option<Arc<dyn MergeCopies>>>,
    pub(crate) veto: RwLock<Option<Arc<Veto>>>,
    /// Calls that wait for a child to be somewhere.
    pub(crate) waiting_calls: Arc<Semaphore>,
}

/// Whether this side of a cut may run children.
#[derive(Default)]
pub(crate) struct Judge {
    split: Option<Split>,
    /// When to look again.
    at: Option<Instant>,
    pub(crate) leases: Option<Arc<dyn Leases>>,
    lease: LeaseSight,
    /// Until when what is known of the lease holds.
    lease_until: Option<Instant>,
    asks: bool,
}

impl Judge {
    pub(crate) fn forget(&mut self, node: &NodeName) {
        if let Some(split) = &mut self.split {
            split.forget(node);
        }
    }
}

pub(crate) struct State {
    pub(crate) core: Core,
    reader: SpecReader,
    /// Who waits for the outcome of a start here.
    starting: BTreeMap<Arc<str>, Vec<oneshot::Sender<Started>>>,
    /// Who waits for a child to be somewhere else.
    elsewhere: BTreeMap<Arc<str>, Vec<oneshot::Sender<()>>>,
    /// Whose end is told.
    watched: BTreeMap<ProcessId, Arc<str>>,
    /// Places that the replica set has refused so far.
    owed: BTreeSet<Arc<str>>,
    /// What this node says of itself.
    pub(crate) host: Option<Host>,
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Hub {
    /// The bounds of the replica set.
    pub(crate) fn replica() -> ReplicaConfig {
        let mut config = ReplicaConfig::new(CHILDREN, "children");
        // Bounded above, per supervisor.
        config.keys_max = usize::MAX;
        config
    }

    pub(crate) fn start(footing: Footing) -> Result<Arc<Self>, ServeError> {
        let Footing { cluster, rpc, remote, processes, records } = footing;
        records.follow(&cluster);
        // Before anything is read, so that no change falls between.
        let (told, views) = (records.watch(), cluster.watch());
        let hub = Arc::new_cyclic(|weak| Self {
            me: cluster.node().clone(),
            clock: Arc::clone(processes.clock()),
            weak: Weak::clone(weak),
            cluster,
            rpc,
            remote,
            processes,
            records,
            rooms: RwLock::default(),
            handing: Arc::new(Semaphore::new(HAND_OFFS_AT_ONCE)),
            wake: Notify::new(),
            sleeps_until: AtomicU64::new(0),
            arrivals: Mutex::default(),
            malformed: AtomicU64::new(0),
        });
        hub.serve()?;
        hub.compare();
        hub.cluster.on_drain(Arc::new(HandOver(Arc::downgrade(&hub))));
        tokio::spawn(follow(Arc::downgrade(&hub), told, views));
        Ok(hub)
    }

    /// The supervisor `name`, opened now if it is not open yet.
    pub(crate) fn room(&self, name: &str) -> Result<Arc<Room>, TooManySupervisors> {
        if let Some(room) = self.rooms.read().get(name) {
            return Ok(Arc::clone(room));
        }
        let mut rooms = self.rooms.write();
        if let Some(room) = rooms.get(name) {
            return Ok(Arc::clone(room));
        }
        if rooms.len() >= SUPERVISORS_MAX {
            return Err(TooManySupervisors);
        }
        let config = SupervisorConfig::default();
        let name: Arc<str> = name.into();
        let room = Arc::new_cyclic(|weak| Room {
            name: Arc::clone(&name),
            hub: Weak::clone(&self.weak),
            weak: Weak::clone(weak),
            state: Mutex::new(State {
                core: Core::new(self.me.clone(), config.core.clone()),
                reader: SpecReader::default(),
                starting: BTreeMap::new(),
                elsewhere: BTreeMap::new(),
                watched: BTreeMap::new(),
                owed: BTreeSet::new(),
                host: None,
            }),
            kinds: RwLock::default(),
            story: Story::new(config.events_max),
            config: RwLock::new(config),
            judge: Mutex::default(),
            merge: RwLock::default(),
            veto: RwLock::default(),
            waiting_calls: Arc::new(Semaphore::new(super::route::WAITING_CALLS_MAX)),
        });
        rooms.insert(name, Arc::clone(&room));
        drop(rooms);
        let is_complete = self.arrivals.lock().is_complete;
        room.step(self, |core, now, out| core.records_complete(now, is_complete, out));
        let members = seen(&self.cluster.view());
        room.step(self, |core, now, out| core.members_changed(now, members, out));
        Ok(room)
    }

    pub(crate) fn all(&self) -> Vec<Arc<Room>> {
        self.rooms.read().values().cloned().collect()
    }

    fn serve(&self) -> Result<(), ServeError> {
        let gone = || Rejection::here("this node has ended");
        let weak = Weak::clone(&self.weak);
        self.rpc.serve(START, move |_context, wire| {
            let hub = weak.upgrade();
            async move {
                let hub = hub.ok_or_else(gone)?;
                Ok(hub.start_for(wire).await)
            }
        })?;
        let weak = Weak::clone(&self.weak);
        self.rpc.serve(STOP, move |_context, (supervisor, id, version)| {
            let hub = weak.upgrade();
            async move {
                let hub = hub.ok_or_else(gone)?;
                let room =
                    hub.room(&supervisor).map_err(|error| Rejection::new(error.to_string()))?;
                Ok(room.stop_here(&hub, &id.into(), version).await)
            }
        })?;
        let weak = Weak::clone(&self.weak);
        self.rpc.serve(MOVE, move |_context, (supervisor, id, to)| {
            let hub = weak.upgrade();
            async move {
                let hub = hub.ok_or_else(gone)?;
                let room =
                    hub.room(&supervisor).map_err(|error| Rejection::new(error.to_string()))?;
                Ok(room.move_here(&hub, &id.into(), &to).await)
            }
        })
    }

    async fn start_for(self: Arc<Self>, wire: WireStart) -> Started {
        let malformed = |text: &dyn fmt::Display| NotStarted::Malformed(text.to_string());
        let room = self.room(&wire.supervisor).map_err(|error| malformed(&error))?;
        let spec = room.state.lock().reader.read(&wire.spec).map_err(|error| malformed(&error))?;
        let ask = StartHere {
            version: wire.version,
            spec: Arc::new(spec),
            fence: wire.fence,
            restarts: wire.restarts,
            state: wire.state,
            cause: wire.cause,
        };
        room.start_here(&self, &wire.id.into(), ask).await
    }

    /// Compares everything with the replica set: at the start, and when changes were missed.
    fn compare(&self) {
        let mut after: Option<Bytes> = None;
        loop {
            let page = self.records.scan(b"", after.as_deref(), PAGE);
            for (key, _) in &page {
                self.hear(key);
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => after = Some(last.clone()),
                _ => break,
            }
        }
        for room in self.all() {
            let ids: Vec<Arc<str>> = room.state.lock().core.ids().cloned().collect();
            for id in ids {
                let (of, id) = (Arc::clone(&room.name), id);
                self.hear(&RecordKey::Spec(Arc::clone(&of), Arc::clone(&id)).to_bytes());
                self.hear(&RecordKey::Place(of, id).to_bytes());
            }
        }
    }

    /// Takes in that the replica set holds something else under `key`.
    fn hear(&self, key: &[u8]) {
        let Some(key) = RecordKey::from_bytes(key) else {
            self.malformed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let Ok(room) = self.room(key.supervisor()) else {
            self.malformed.fetch_add(1, Ordering::Relaxed);
            return;
        };
        if room.hear(self, &key).is_err() {
            self.malformed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(?key, "record of another node not understood");
        }
    }

    fn look(&self, view: &View) {
        let members = seen(view);
        for room in self.all() {
            let members = members.clone();
            // First: nothing is taken over by a view that stops this side.
            room.judge(self);
            room.step(self, |core, now, out| core.members_changed(now, members, out));
        }
    }

    /// Finds out whether the records of all members are here, and tells the rooms when that changes.
    fn look_for_records(&self) {
        let now = self.clock.now();
        let view = self.cluster.view();
        {
            let arrivals = self.arrivals.lock();
            if arrivals.is_complete && arrivals.of == view.epoch {
                return;
            }
        }
        let lag = self.records.status().lag;
        let has_come =
            |node: &NodeId| lag.iter().any(|peer| peer.node == *node && peer.caught_up.is_some());
        let complete = {
            let mut arrivals = self.arrivals.lock();
            let present = view.alive().filter(|member| member.id != self.me);
            let missing: BTreeMap<NodeId, Instant> = present
                .filter(|member| !has_come(&member.id))
                .map(|member| {
                    let since = arrivals.since.get(&member.id).copied().unwrap_or(now);
                    (member.id.clone(), since)
                })
                .collect();
            let complete = missing.values().all(|since| *since + RECORDS_WITHIN <= now);
            arrivals.since = missing;
            arrivals.of = view.epoch;
            if std::mem::replace(&mut arrivals.is_complete, complete) == complete {
                return;
            }
            complete
        };
        for room in self.all() {
            room.step(self, |core, now, out| core.records_complete(now, complete, out));
        }
    }

    fn woke(&self) {
        let now = self.clock.now();
        for room in self.all() {
            let judge_at = room.judge.lock().at;
            if judge_at.is_some_and(|at| at <= now) {
                room.judge(self);
            }
            let is_due = {
                let state = room.state.lock();
                !state.owed.is_empty() || state.core.wake_at().is_some_and(|at| at <= now)
            };
            if is_due {
                room.pay(self);
                room.step(self, |core, now, out| core.woke(now, out));
            }
        }
    }

    fn pause(&self) -> Duration {
        let now = self.clock.now();
        // At most a second before looking whether anybody is left.
        let is_complete = self.arrivals.lock().is_complete;
        let mut pause = if is_complete { Duration::from_secs(1) } else { RECORDS_EVERY };
        for room in self.all() {
            let state = room.state.lock();
            if !state.owed.is_empty() {
                pause = pause.min(RETRY_EVERY);
            }
            let judge_at = room.judge.lock().at;
            for at in [state.core.wake_at(), judge_at].into_iter().flatten() {
                pause = pause.min(at.saturating_since(now));
            }
        }
        let until = (now + pause).since_start().as_nanos();
        self.sleeps_until.store(u64::try_from(until).unwrap_or(u64::MAX), Ordering::Relaxed);
        pause
    }

    /// Has the following task look at the time again if something is due earlier than it thinks.
    fn wake_by(&self, at: Option<Instant>) {
        let Some(at) = at else { return };
        let at = u64::try_from(at.since_start().as_nanos()).unwrap_or(u64::MAX);
        if at < self.sleeps_until.load(Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    /// Has `node` start the child.
    pub(crate) async fn start_at(
        self: &Arc<Self>,
        room: &Arc<Room>,
        node: &NodeId,
        id: &Arc<str>,
        ask: StartHere,
        within: Duration,
    ) -> Result<(HlcTimestamp, Place), StartAtError> {
        if *node == self.me {
            return Ok(room.start_here(self, id, ask).await?);
        }
        let wire = WireStart {
            supervisor: room.name.to_string(),
            id: id.to_string(),
            version: ask.version,
            spec: ask.spec.to_bytes(),
            fence: ask.fence,
            restarts: ask.restarts,
            state: ask.state,
            cause: ask.cause,
        };
        let mut options = CallOptions::from(within);
        if wire.state.as_ref().is_some_and(|state| state.bytes.len() > LARGE_BYTES) {
            options.channel = purlin_net::ChannelId::BULK;
        }
        Ok(self.rpc.call(&node.name, START, &wire, options).await??)
    }
}

/// For how long a side of a cut leases the right to go on.
const SPLIT_LEASE: Duration = Duration::from_secs(30);
/// How often a side that was stopped looks whether it may go on.
const STOPPED_AGAIN: Duration = Duration::from_millis(500);
/// How soon after one look at a cut the next one follows.
const JUDGE_AGAIN: Duration = Duration::from_millis(20);
/// From what size on a state travels on the channel for large things.
const LARGE_BYTES: usize = 64 << 10;

/// There are as many supervisors as a node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a node knows at most {SUPERVISORS_MAX} supervisors")]
pub struct TooManySupervisors;

fn seen(view: &View) -> Vec<Seen> {
    let standing = |member: &purlin_cluster::Member| match (member.state, member.why) {
        (Liveness::Alive | Liveness::Suspect, _) => Standing::Present,
        (Liveness::Down, Some(DownWhy::Superseded)) => Standing::Superseded,
        (Liveness::Down, _) => Standing::Down,
        (Liveness::Left, _) => Standing::Left { drained: member.meta.draining },
    };
    let members = view.members.iter().map(|member| Seen {
        node: member.id.clone(),
        standing: standing(member),
        candidate: member.is_placeable().then(|| Candidate::of(member)),
    });
    members.collect()
}

/// Starts a task, unless the runtime is just ending, and we with it.
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    if let Ok(runtime) = tokio::runtime::Handle::try_current() {
        runtime.spawn(task);
    }
}

impl Room {
    /// Lets the core take one step and carries out what it says.
    pub(crate) fn step<T>(
        &self,
        hub: &Hub,
        step: impl FnOnce(&mut Core, Instant, &mut Vec<Output>) -> T,
    ) -> T {
        let mut state = self.state.lock();
        self.step_in(hub, &mut state, step)
    }

    pub(crate) fn step_in<T>(
        &self,
        hub: &Hub,
        state: &mut State,
        step: impl FnOnce(&mut Core, Instant, &mut Vec<Output>) -> T,
    ) -> T {
        let mut out = Vec::new();
        let answer = step(&mut state.core, hub.clock.now(), &mut out);
        self.carry_out(hub, state, out);
        hub.wake_by(state.core.wake_at());
        answer
    }

    fn carry_out(&self, hub: &Hub, state: &mut State, out: Vec<Output>) {
        let mut todo: VecDeque<Output> = out.into();
        while let Some(output) = todo.pop_front() {
            match output {
                Output::Write(id, place) => todo.extend(self.write(hub, state, &id, place)),
                Output::Erase(id) => {
                    let key = RecordKey::Place(Arc::clone(&self.name), id).to_bytes();
                    if let Err(error) = hub.records.remove(key) {
                        // Who comes to it next without its spec removes it.
                        tracing::debug!(%error, "place not removed");
                    }
                }
                Output::Remove(id, version) => {
                    let key = RecordKey::Spec(Arc::clone(&self.name), id).to_bytes();
                    // Overwritten: then it is another child by now.
                    hub.records.remove_if(key, version).ok();
                }
                Output::Start { id, spec, fence, restarts, state } => {
                    let supervisor = Arc::clone(&self.name);
                    let birth = Birth { supervisor, id, fence, restarts, state };
                    self.with(hub, |hub, room| async move { room.start(hub, spec, birth).await });
                }
                Output::Stop(_, process, why) => {
                    if let Some(process) = hub.processes.get(process) {
                        spawn(stop(process, why, self.stop_within()));
                    }
                }
                Output::Lose { id, process, winner } => {
                    if let Some(process) = hub.processes.get(process) {
                        let merge = self.merge.read().clone();
                        let lost = LostCopy { id, process, winner: winner.node };
                        spawn(lose(lost, merge, self.stop_within()));
                    }
                }
                Output::HandOff { id, process, fence } => {
                    self.with(hub, move |hub, room| async move {
                        room.hand_off(&hub, id, process, fence).await;
                    });
                }
                Output::Deliver { id, to, ask } => {
                    self.with(hub, move |hub, room| async move {
                        room.deliver(&hub, id, to, ask).await;
                    });
                }
                Output::Probe(id, process) => {
                    if let Some(process) = hub.processes.get(process) {
                        let info = process.info();
                        let mut more = Vec::new();
                        let (handled, waiting) = (info.handled, info.mailbox_messages);
                        let waiting = waiting + usize::from(info.handling.is_some());
                        let now = hub.clock.now();
                        state.core.probed(now, &id, handled, waiting, &mut more);
                        todo.extend(more);
                    }
                }
                Output::RequestMove(plan) => {
                    self.with(hub, move |hub, room| async move {
                        room.request_move(&hub, plan).await;
                    });
                }
                Output::Forget(node) => {
                    let key = RecordKey::Host(Arc::clone(&self.name), node).to_bytes();
                    hub.records.remove(key).ok();
                }
                Output::Event(event) => {
                    state.tell_elsewhere(&event.id);
                    self.story.push(hub.clock.wall(), event);
                }
            }
        }
    }

    /// Runs `work` in a task of its own, as long as node and supervisor are there.
    fn with<F, Fut>(&self, hub: &Hub, work: F)
    where
        F: FnOnce(Arc<Hub>, Arc<Self>) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        if let (Some(hub), Some(room)) = (hub.weak.upgrade(), self.weak.upgrade()) {
            spawn(work(hub, room));
        }
    }

    fn write(&self, hub: &Hub, state: &mut State, id: &Arc<str>, place: Place) -> Vec<Output> {
        let key = RecordKey::Place(Arc::clone(&self.name), Arc::clone(id)).to_bytes();
        let mut more = Vec::new();
        match hub.records.put(key, record::encode(&place), None) {
            Ok(version) => {
                state.owed.remove(id);
                if matches!(place.state, PlaceState::Running(_)) && place.node == hub.me {
                    for waiter in state.starting.remove(id).unwrap_or_default() {
                        // Who no longer waits needs no answer.
                        waiter.send(Ok((version, place.clone()))).ok();
                    }
                }
                let now = hub.clock.now();
                state.core.place_changed(now, id, Some((version, place)), &mut more);
                state.tell_elsewhere(id);
            }
            Err(error) => {
                tracing::warn!(supervisor = %self.name, %id, %error, "place is written later");
                state.owed.insert(Arc::clone(id));
            }
        }
        more
    }

    /// Takes another policy.
    pub(crate) fn judge_by(&self, config: SplitConfig) -> Result<(), SplitError> {
        let split = Split::new(config)?;
        let is_none = split.config().policy == Policy::None;
        let mut judge = self.judge.lock();
        judge.at = None;
        judge.split = (!is_none).then_some(split);
        Ok(())
    }

    /// Looks whether this side may run children.
    pub(crate) fn judge(&self, hub: &Hub) {
        let view = hub.cluster.view();
        let (gate, ask) = {
            let mut judge = self.judge.lock();
            let now = hub.clock.now();
            if judge.lease_until.is_some_and(|until| until <= now) {
                (judge.lease, judge.lease_until) = (LeaseSight::Unknown, None);
            }
            let sight = Sight::of(&view, judge.lease.clone());
            let Some(split) = &mut judge.split else {
                drop(judge);
                self.step(hub, |core, now, out| core.gate_changed(now, Gate::Open, out));
                return;
            };
            let verdict = split.step(now, &sight);
            let (gate, at, ask) = match verdict {
                Verdict::Keep { .. } => (Gate::Open, None, false),
                // What was unstable settles without another word about it.
                Verdict::Stop { why } => {
                    (Gate::Shut(why.to_string().into()), Some(now + STOPPED_AGAIN), false)
                }
                Verdict::Undecided { until, ask_lease, .. } => {
                    (Gate::Waiting, Some(until.max(now + JUDGE_AGAIN)), ask_lease)
                }
            };
            judge.at = at;
            let ask = ask && !judge.asks;
            judge.asks |= ask;
            // The first of those who are here acquires it for its side, the others look.
            let is_first = sight.reached.first() == Some(&sight.me);
            (gate, ask.then(|| (judge.leases.clone(), is_first)))
        };
        if let Some((leases, is_first)) = ask {
            self.with(hub, move |hub, room| async move {
                room.ask_lease(&hub, leases, is_first).await;
            });
        }
        self.step(hub, |core, now, out| core.gate_changed(now, gate, out));
    }

    async fn ask_lease(&self, hub: &Hub, leases: Option<Arc<dyn Leases>>, is_first: bool) {
        let name = format!("split/{}", self.name);
        let asked_at = hub.clock.now();
        let answer = match &leases {
            None => None,
            Some(leases) if is_first => match leases.acquire(&name, &hub.me, SPLIT_LEASE).await {
                Ok(lease) => Some(lease.holder.name),
                Err(LeaseError::Held { by, .. }) => Some(by.name),
                Err(_) => None,
            },
            Some(leases) => match leases.holder(&name).await {
                Ok(holder) => holder.map(|holder| holder.name),
                Err(_) => None,
            },
        };
        {
            let mut judge = self.judge.lock();
            judge.asks = false;
            judge.lease = match answer {
                Some(holder) => LeaseSight::Held(holder),
                None => LeaseSight::Unreachable,
            };
            judge.lease_until = Some(asked_at + (SPLIT_LEASE - SPLIT_LEASE / 4));
        }
        self.judge(hub);
    }

    /// Writes again what could not be written.
    fn pay(&self, hub: &Hub) {
        let mut state = self.state.lock();
        for id in std::mem::take(&mut state.owed) {
            let place = state.core.child(&id).and_then(|(_, place)| place.cloned());
            if let Some(place) = place.filter(|place| place.node == hub.me) {
                let more = self.write(hub, &mut state, &id, place);
                self.carry_out(hub, &mut state, more);
            }
        }
    }

    /// Takes in what the replica set holds under `key`.
    fn hear(&self, hub: &Hub, key: &RecordKey) -> Result<(), record::RecordError> {
        let mut state = self.state.lock();
        // Under the lock, under which we write: nothing of ours is newer than what is read.
        let cell = hub.records.get(&key.to_bytes());
        let written = cell.as_ref().and_then(Cell::register).map(|it| (it.at, &it.value));
        match key {
            RecordKey::Spec(_, id) => {
                let spec = match written {
                    Some((version, value)) => Some((version, Arc::new(state.reader.read(value)?))),
                    None => None,
                };
                self.step_in(hub, &mut state, |core, now, out| {
                    core.spec_changed(now, id, spec, out);
                });
                state.tell_elsewhere(id);
            }
            RecordKey::Place(_, id) => {
                let known = state.core.place_version(id);
                let place = match written {
                    Some((version, _)) if known.is_some_and(|known| known >= version) => {
                        return Ok(());
                    }
                    Some((version, value)) => Some((version, record::decode::<Place>(value)?)),
                    None => None,
                };
                self.step_in(hub, &mut state, |core, now, out| {
                    core.place_changed(now, id, place, out);
                });
                state.tell_elsewhere(id);
            }
            RecordKey::Host(_, node) => {
                let host = match written {
                    Some((_, value)) => Some(record::decode::<Host>(value)?),
                    None => None,
                };
                let is_me = *node == hub.me;
                self.step_in(hub, &mut state, |core, now, out| {
                    core.host_changed(now, node, host.clone());
                    core.woke(now, out);
                });
                if is_me && host.is_none() && state.host.is_some() {
                    // Somebody thought we were gone.
                    self.announce(hub, &mut state).ok();
                }
            }
            RecordKey::Control(_) => {
                let control = match written {
                    Some((_, value)) => record::decode::<Control>(value)?,
                    None => Control::default(),
                };
                self.step_in(hub, &mut state, |core, now, out| {
                    core.set_paused(control.paused);
                    core.woke(now, out);
                });
            }
        }
        Ok(())
    }

    /// Says to all nodes which kinds this one can start.
    pub(crate) fn announce(&self, hub: &Hub, state: &mut State) -> Result<(), StateError> {
        let since = match &state.host {
            Some(host) => host.since,
            None => hub.records.now()?,
        };
        let kinds = self.kinds.read().keys().cloned().collect();
        let host = Host { since, kinds };
        let key = RecordKey::Host(Arc::clone(&self.name), hub.me.clone()).to_bytes();
        hub.records.put(key, record::encode(&host), None)?;
        state.host = Some(host.clone());
        self.step_in(hub, state, |core, now, out| {
            core.host_changed(now, &hub.me, Some(host));
            core.woke(now, out);
        });
        Ok(())
    }

    /// Starts the child here, or says where it is.
    pub(crate) async fn start_here(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        id: &Arc<str>,
        ask: StartHere,
    ) -> Started {
        let told = {
            let kind = self.kinds.read().get(&ask.spec.kind).cloned();
            let kind = kind.ok_or_else(|| KindError::Unknown(ask.spec.kind.to_string()))?;
            kind.check(&ask.spec.args)?;
            let key = RecordKey::Spec(Arc::clone(&self.name), Arc::clone(id)).to_bytes();
            let cell = hub.records.get(&key);
            let held = cell.as_ref().and_then(Cell::register);
            let is_written = held.is_some_and(|held| held.at >= ask.version);
            let (tell, told) = oneshot::channel();
            let mut state = self.state.lock();
            // Before the step: the start may be over when it returns.
            state.starting.entry(Arc::clone(id)).or_default().push(tell);
            let answer = self.step_in(hub, &mut state, |core, now, out| {
                core.start_here(now, id, ask, is_written, out)
            });
            match answer {
                StartAnswer::Starting => told,
                StartAnswer::At(place) => {
                    state.no_longer_starting(id);
                    let version = state.core.place_version(id).expect("it has a place");
                    return Ok((version, place));
                }
                StartAnswer::Refused(refusal) => {
                    state.no_longer_starting(id);
                    return Err(refusal.into());
                }
            }
        };
        // Gone only with the node.
        told.await.unwrap_or(Err(NotStarted::Refused(Refusal::Draining)))
    }

    /// Makes the process and tells the core.
    async fn start(self: Arc<Self>, hub: Arc<Hub>, spec: Arc<Spec>, birth: Birth<Handed>) {
        let (id, fence) = (Arc::clone(&birth.id), birth.fence);
        let kind = self.kinds.read().get(&spec.kind).cloned();
        let started = match kind {
            None => Err(KindError::Unknown(spec.kind.to_string())),
            Some(kind) => {
                // In a task of its own: a panic of the user's is a failed start, not a lost one.
                let processes = hub.processes.clone();
                let args = spec.args.clone();
                kind.start(&processes, &args, birth).await
            }
        };
        match started {
            Ok(process) => {
                let number = process.id();
                {
                    let mut state = self.state.lock();
                    state.watched.insert(number, Arc::clone(&id));
                    self.step_in(&hub, &mut state, |core, now, out| {
                        core.started(now, &id, fence, number, out);
                    });
                }
                // Not under the lock: of a process that has ended, the end is told within this
                // call.
                let sink = Arc::new(EndsHere { room: Weak::clone(&self.weak) });
                process.watch(hub.processes.next_monitor(), sink).forever();
            }
            Err(error) => {
                let mut state = self.state.lock();
                for waiter in state.starting.remove(&id).unwrap_or_default() {
                    waiter.send(Err(error.clone().into())).ok();
                }
                self.step_in(&hub, &mut state, |core, now, out| {
                    core.start_failed(now, &id, fence, &error, out);
                });
            }
        }
    }

    fn process_ended(&self, process: ProcessId, reason: &ExitReason) {
        let Some(hub) = self.hub.upgrade() else { return };
        let mut state = self.state.lock();
        let Some(id) = state.watched.remove(&process) else { return };
        self.step_in(&hub, &mut state, |core, now, out| {
            core.ended(now, &id, process, reason, out);
        });
    }

    fn stop_within(&self) -> Duration {
        let kinds = self.kinds.read();
        kinds.values().map(|kind| kind.terminate_within()).fold(STOP_WITHIN, Duration::max)
    }

    async fn hand_off(
        self: Arc<Self>,
        hub: &Arc<Hub>,
        id: Arc<str>,
        process: ProcessId,
        fence: Fence,
    ) {
        let permit = Arc::clone(&hub.handing).acquire_owned().await;
        let kind = {
            let state = self.state.lock();
            let kind = state.core.child(&id).map(|(spec, _)| Arc::clone(&spec.kind));
            kind.and_then(|kind| self.kinds.read().get(&kind).cloned())
        };
        let (bytes_max, within) = {
            let config = self.config.read();
            (config.state_bytes_max, config.hand_off_within)
        };
        let given = match (kind, hub.processes.get(process)) {
            (Some(kind), Some(process)) => {
                let given = kind.hand_off(process.clone(), bytes_max, within).await;
                match given {
                    Ok(state) => {
                        // What it owns is free by then.
                        let within = self.stop_within();
                        if tokio::time::timeout(within, process.exited()).await.is_err() {
                            process.kill();
                        }
                        Ok(state)
                    }
                    Err(error) => Err((Cause::words(&error), process.is_alive())),
                }
            }
            _ => Err((Cause::words(&"its process has ended"), false)),
        };
        drop(permit);
        self.step(hub, |core, now, out| core.handed(now, &id, fence, given, out));
    }

    async fn deliver(self: Arc<Self>, hub: &Arc<Hub>, id: Arc<str>, to: NodeId, ask: StartHere) {
        let within = self.config.read().start_within;
        let outcome = hub.start_at(&self, &to, &id, ask, within).await;
        let outcome = match outcome {
            Ok(at) => Ok(at),
            Err(error) => {
                let unknown = matches!(&error, StartAtError::Call(error) if error.outcome() == Outcome::Unknown);
                if unknown {
                    // It may run there: what its node wrote tells.
                    tokio::time::sleep(UNKNOWN_FOR).await;
                }
                Err(Cause::words(&error))
            }
        };
        self.step(hub, |core, now, out| core.delivered(now, &id, outcome, out));
    }

    async fn request_move(self: Arc<Self>, hub: &Arc<Hub>, plan: placement::Move) {
        let veto = self.veto.read().clone();
        if !veto.is_some_and(|veto| veto(&plan)) {
            self.move_from(hub, &plan.from, &plan.id.as_str().into(), &plan.to).await;
        }
        self.step(hub, |core, now, out| core.move_done(now, out));
    }

    /// Moves the child from here to there and waits until it is there; whether it was moved.
    pub(crate) async fn move_here(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        id: &Arc<str>,
        to: &NodeId,
    ) -> bool {
        if !self.step(hub, |core, now, out| core.move_here(now, id, to, out)) {
            return false;
        }
        loop {
            let changed = {
                let mut state = self.state.lock();
                match state.core.child(id) {
                    Some((_, Some(place))) if place.node == hub.me => {}
                    Some((_, place)) => return place.is_some_and(|place| place.node == *to),
                    None => return false,
                }
                if !state.core.is_moving(id) {
                    return false;
                }
                state.wait_elsewhere(id)
            };
            // Its events tell, also those of a failure.
            changed.await.ok();
        }
    }

    /// Removes the child here and waits for the end of its process; whether there was one.
    pub(crate) async fn stop_here(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        id: &Arc<str>,
        version: HlcTimestamp,
    ) -> bool {
        let process = {
            let mut state = self.state.lock();
            let process = match state.core.child(id) {
                Some((_, Some(Place { state: PlaceState::Running(process), node, .. })))
                    if *node == hub.me =>
                {
                    hub.processes.get(*process)
                }
                _ => None,
            };
            let key = RecordKey::Spec(Arc::clone(&self.name), Arc::clone(id)).to_bytes();
            // It may not have arrived here yet, or be gone already.
            hub.records.remove_if(key, version).ok();
            self.step_in(hub, &mut state, |core, now, out| core.removed(now, id, version, out));
            state.tell_elsewhere(id);
            process
        };
        match process {
            Some(process) => {
                process.exited().await;
                true
            }
            None => false,
        }
    }
}

/// How long a node whose answer is missing has to say what became of a start.
const UNKNOWN_FOR: Duration = Duration::from_secs(1);

impl State {
    /// Forgets whoever registered last for the outcome of a start, and all with him.
    fn no_longer_starting(&mut self, id: &str) {
        if let Some(waiters) = self.starting.get_mut(id) {
            waiters.pop();
            if waiters.is_empty() {
                self.starting.remove(id);
            }
        }
    }

    /// To hear when something about the child changes.
    pub(crate) fn wait_elsewhere(&mut self, id: &Arc<str>) -> oneshot::Receiver<()> {
        let (tell, told) = oneshot::channel();
        let waiting = self.elsewhere.entry(Arc::clone(id)).or_default();
        waiting.retain(|waiter| !waiter.is_closed());
        waiting.push(tell);
        told
    }

    fn tell_elsewhere(&mut self, id: &str) {
        for waiter in self.elsewhere.remove(id).unwrap_or_default() {
            waiter.send(()).ok();
        }
    }
}

async fn stop(process: AnyProcess, why: StopWhy, within: Duration) {
    match why {
        // Nobody else will handle what waits.
        StopWhy::Removed => process.drain(),
        StopWhy::Replaced => process.stop(ExitReason::stopped("started anew from other arguments")),
        StopWhy::Split(why) => process.stop(ExitReason::stopped(why)),
        StopWhy::Elsewhere => process.stop(ExitReason::stopped("it is to run elsewhere")),
        StopWhy::Fresh => process.kill(),
    }
    if tokio::time::timeout(within, process.exited()).await.is_err() {
        process.kill();
    }
}

async fn lose(lost: LostCopy, merge: Option<Arc<dyn MergeCopies>>, within: Duration) {
    let (process, winner, id) = (lost.process.clone(), lost.winner.clone(), Arc::clone(&lost.id));
    if let Some(merge) = merge {
        // In a task of its own: a panic of the user's is a failed merge, not a copy that stays.
        let mut user = tokio::spawn(async move { merge.merge(lost).await });
        match tokio::time::timeout(MERGE_WITHIN, &mut user).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%id, %error, "merge failed"),
            Err(_late) => {
                user.abort();
                tracing::error!(%id, "merge took longer than {MERGE_WITHIN:?}");
            }
        }
    }
    process.stop(ExitReason::stopped(format!("the copy on {winner} stays")));
    if tokio::time::timeout(within, process.exited()).await.is_err() {
        process.kill();
    }
}

/// Hears of the ends of children's processes.
struct EndsHere {
    room: Weak<Room>,
}

impl DownSink for EndsHere {
    fn down(&self, _monitor: MonitorId, process: &Pid, reason: &ExitReason) {
        if let Some(room) = self.room.upgrade() {
            room.process_ended(process.process, reason);
        }
    }
}

/// Hands all children over when the node is drained.
struct HandOver(Weak<Hub>);

impl DrainHook for HandOver {
    fn name(&self) -> &str {
        "supervised children"
    }

    fn stage(&self) -> Stage {
        Stage::HandOff
    }

    fn run(
        &self,
        deadline: Deadline,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async move {
            let Some(hub) = self.0.upgrade() else { return Ok(()) };
            for room in hub.all() {
                room.step(&hub, |core, now, out| core.drain(now, out));
            }
            loop {
                let here: usize = hub.all().iter().map(|room| room.state.lock().core.here()).sum();
                if here == 0 {
                    return Ok(());
                }
                let left = deadline.remaining(hub.clock.now()).unwrap_or_default();
                if left < DRAIN_RESERVE {
                    return Err(format!("{here} children stay behind; others start them afresh"));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
    }
}

/// Takes in what others wrote, how the members stand and time. Ends with the last handle.
async fn follow(
    weak: Weak<Hub>,
    mut told: broadcast::Receiver<Told>,
    mut views: purlin_cluster::Watch,
) {
    let mut keys: BTreeSet<Bytes> = BTreeSet::new();
    loop {
        let pause = {
            let Some(hub) = weak.upgrade() else { return };
            hub.pause()
        };
        let Some(hub) = weak.upgrade() else { return };
        tokio::select! {
            biased;
            // Members first: they are few, and much follows from them.
            view = views.changed() => hub.look(&view),
            change = told.recv() => {
                let mut lagged = false;
                let mut next = change.map_err(|error| match error {
                    broadcast::error::RecvError::Lagged(_) => true,
                    broadcast::error::RecvError::Closed => false,
                });
                loop {
                    match next {
                        // Our own writes are known before they are handed over.
                        Ok(Told { origin: Origin::Here, .. }) => {}
                        Ok(change) => drop(keys.insert(change.key)),
                        Err(true) => lagged = true,
                        Err(false) => return,
                    }
                    if keys.len() >= BATCH {
                        break;
                    }
                    next = match told.try_recv() {
                        Ok(change) => Ok(change),
                        Err(broadcast::error::TryRecvError::Lagged(_)) => Err(true),
                        Err(_) => break,
                    };
                }
                if lagged {
                    keys.clear();
                    hub.compare();
                } else {
                    for key in std::mem::take(&mut keys) {
                        hub.hear(&key);
                    }
                }
            }
            () = hub.wake.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        // What has come but not been taken in is not here.
        if told.is_empty() {
            hub.look_for_records();
        }
        hub.woke();
    }
}
