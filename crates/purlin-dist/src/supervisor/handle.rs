//! What users hold: [`Supervisors`] of a node, and one [`Supervisor`].

use std::{collections::BTreeMap, fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use purlin_cluster::MemberCallError;
use purlin_core::{Advice, NodeId, NodeName, Outcome};
use purlin_net::rpc::ServeError;
use purlin_process::{Pid, RemoteServer};
use purlin_replica::{ReplicaConfig, ReplicaSet, StateError};

use super::{
    core::{Gate, Refusal, StartHere},
    events::Events,
    kind::{self, AnyKind, Fence, KIND_BYTES_MAX, Kind, KindError},
    placement::{Move, Unplaceable, WishError},
    record::{
        self, ARGS_BYTES_MAX, Cause, ChildOptions, Control, Place, PlaceState, RecordKey, Spec,
    },
    route::Child,
    shell::{
        Footing, Hub, MergeCopies, NotStarted, Room, StartAtError, SupervisorConfig,
        TooManySupervisors,
    },
    split::SplitError,
};
use crate::{
    error::{DistError, check_key, check_scope},
    lease::Leases,
    registry::AnotherKind,
};

/// How long a start waits for an earlier process of the child to end.
const BUSY_FOR: Duration = Duration::from_secs(15);
/// How often it looks.
const BUSY_EVERY: Duration = Duration::from_millis(10);
/// How long another node may take to stop a child's process before that counts as unknown.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// How long an actor that was not called is kept awake, unless its options say otherwise.
pub const ACTOR_IDLE_FOR: Duration = Duration::from_secs(300);

/// The supervisors of a cluster, as this node sees them. Cheap to clone.
#[derive(Clone)]
pub struct Supervisors {
    hub: Arc<Hub>,
}

impl fmt::Debug for Supervisors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisors").field("names", &self.names()).finish_non_exhaustive()
    }
}

impl Supervisors {
    /// Starts them. Once per node, inside its runtime.
    ///
    /// # Errors
    /// [`ServeError`] when this was done before on the same `rpc`.
    pub fn start(footing: Footing) -> Result<Self, ServeError> {
        Ok(Self { hub: Hub::start(footing)? })
    }

    /// What the replica set must be like that [`Supervisors::start`] is given.
    #[must_use]
    pub fn replica() -> ReplicaConfig {
        Hub::replica()
    }

    /// The supervisor `name`, here and on every node.
    ///
    /// It exists as soon as somebody starts a child in it, and runs children on the nodes that
    /// registered their kinds.
    ///
    /// # Errors
    /// [`SupervisorError`] for a name of 0 or more than 255 bytes or with a zero byte, and when
    /// there are 1,024 supervisors.
    pub fn get(&self, name: &str) -> Result<Supervisor, SupervisorError> {
        check_scope("supervisor", name)?;
        let room = self.hub.room(name)?;
        Ok(Supervisor { hub: Arc::clone(&self.hub), room })
    }

    /// The names of all supervisors that this node knows of, in order.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<str>> {
        self.hub.rooms.read().keys().cloned().collect()
    }

    /// The replica set the records travel in, for its status.
    #[must_use]
    pub fn records(&self) -> &ReplicaSet {
        &self.hub.records
    }

    /// Records of other nodes that could not be read, so far.
    #[must_use]
    pub fn malformed(&self) -> u64 {
        self.hub.malformed.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// One supervisor: children that run once in the cluster, on whichever node. Cheap to clone.
///
/// # Guarantees
/// Healthy: a child that was started runs on one node, and is found from all. A node dies: its
/// children are started again on others once the membership says so, without their state.
/// Partitioned: by default both sides go on, each with all children; after the heal one copy of
/// each stays, the one that was placed later. With a [split policy](super::split) one side stops
/// its children first. Node restarted: it is a new host. All nodes restarted: children whose
/// records were kept on disk are started again.
/// At most one at any moment is not promised: that takes a fence, which every child is given
/// ([`Birth::fence`](super::Birth)).
///
/// ```no_run
/// # use purlin_dist::supervisor::{ChildOptions, Kind, Supervisor, Supervisors};
/// # async fn example<Rooms: Kind<Args = u32>>(supervisors: Supervisors, rooms: Rooms)
/// # -> Result<(), Box<dyn std::error::Error>> {
/// let supervisor = supervisors.get("rooms")?;
/// supervisor.register_kind(rooms)?;
/// let room = supervisor.start_child::<Rooms>("room-7", &40, ChildOptions::default()).await?;
/// println!("{:?} runs as {:?}", room, room.pid());
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Supervisor {
    hub: Arc<Hub>,
    room: Arc<Room>,
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("name", &self.room.name).finish_non_exhaustive()
    }
}

/// Why something was refused before anything was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SupervisorError {
    /// A name is empty, too long or holds a zero byte.
    #[error(transparent)]
    Name(#[from] DistError),
    /// There are as many supervisors as a node knows.
    #[error(transparent)]
    TooMany(#[from] TooManySupervisors),
    /// Another kind of the same name is registered here.
    #[error("kind {0:?} is registered already")]
    KindTaken(String),
    /// The kind's name is empty or too long.
    #[error("name of kind of {bytes} bytes is outside 1 to {KIND_BYTES_MAX}")]
    KindName {
        /// How long it is.
        bytes: usize,
    },
    /// There is no such child.
    #[error("there is no child {0:?}")]
    Absent(String),
    /// The child is not in quarantine, or no node can take it.
    #[error("child {0:?} cannot be released")]
    NotReleased(String),
    /// The split policy cannot keep its promise.
    #[error(transparent)]
    Split(#[from] SplitError),
    /// The records cannot be written.
    #[error(transparent)]
    State(#[from] StateError),
}

/// Why no child was started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartChildError {
    /// The id is empty, too long or holds a zero byte. Nothing was started.
    #[error(transparent)]
    Id(DistError),
    /// A wish is out of bounds. Nothing was started.
    #[error(transparent)]
    Wish(#[from] WishError),
    /// There is a child of this id. Nothing was started.
    #[error("child {id:?} exists{}", if *.same { "" } else { ", with other arguments or options" })]
    Exists {
        /// Its id.
        id: String,
        /// Whether it was started from the same arguments and options.
        same: bool,
    },
    /// The encoded arguments are too large. Nothing was started.
    #[error("arguments of {bytes} bytes exceed limit {ARGS_BYTES_MAX}")]
    ArgsTooLarge {
        /// Their size.
        bytes: usize,
    },
    /// There are as many children as there may be. Nothing was started.
    #[error("{count} children reach the limit {max}")]
    TooMany {
        /// How many there are.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// No node can take it now. Nothing was started.
    #[error(transparent)]
    Unplaceable(#[from] Unplaceable),
    /// The nodes that could take it refused. Nothing was started.
    #[error("no node started it: {0}")]
    Refused(String),
    /// Its kind could not start it. The child is not kept.
    #[error(transparent)]
    Kind(#[from] KindError),
    /// The records cannot be written. Nothing was started.
    #[error(transparent)]
    State(#[from] StateError),
    /// A node did not answer. The child is kept: it runs there, or will be started.
    #[error("node {node} gave no answer: {error}")]
    Unknown {
        /// Which node.
        node: NodeId,
        /// Why.
        error: String,
    },
}

impl StartChildError {
    /// Whether a child may run.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Unknown { .. } => Outcome::Unknown,
            Self::Kind(error) => error.outcome(),
            Self::Id(_)
            | Self::Wish(_)
            | Self::Exists { .. }
            | Self::ArgsTooLarge { .. }
            | Self::TooMany { .. }
            | Self::Unplaceable(_)
            | Self::Refused(_)
            | Self::State(_) => Outcome::NotDone,
        }
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            // The same id again is told whether it exists.
            Self::Unknown { .. } => Advice::SameRequestIdOnly,
            Self::Unplaceable(_) | Self::Refused(_) => Advice::Retry,
            Self::Kind(error) => error.advice(),
            Self::State(error) => error.advice(),
            Self::Id(_)
            | Self::Wish(_)
            | Self::Exists { .. }
            | Self::ArgsTooLarge { .. }
            | Self::TooMany { .. } => Advice::GiveUp,
        }
    }
}

/// How a child was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Its process has ended, or there was none.
    Ended,
    /// It is removed, and its node, which did not answer, ends its process when it hears of that.
    Removed,
}

/// A child, as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildInfo {
    /// What it is called.
    pub id: Arc<str>,
    /// Its kind.
    pub kind: Arc<str>,
    /// Its arguments, as the kind encoded them.
    pub args: Bytes,
    /// How it is kept running.
    pub options: Arc<ChildOptions>,
    /// Where it is; none while nobody has decided.
    pub place: Option<Place>,
}

impl ChildInfo {
    fn of(id: &Arc<str>, spec: &Spec, place: Option<&Place>) -> Self {
        Self {
            id: Arc::clone(id),
            kind: Arc::clone(&spec.kind),
            args: spec.args.clone(),
            options: Arc::clone(&spec.options),
            place: place.cloned(),
        }
    }

    /// The node it is on, or is to be started on.
    #[must_use]
    pub fn node(&self) -> Option<&NodeId> {
        self.place.as_ref().map(|place| &place.node)
    }

    /// Its process, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        let place = self.place.as_ref()?;
        let PlaceState::Running(process) = place.state else { return None };
        Some(Pid { node: place.node.clone(), process })
    }

    /// How it stands, in the word used in HTTP bodies: `starting`, `running`, `asleep`,
    /// `quarantined`, `refused`.
    #[must_use]
    pub fn state(&self) -> &'static str {
        self.place.as_ref().map_or("starting", |place| place.state.as_str())
    }

    /// The number of its latest start; 0 before the first.
    #[must_use]
    pub fn fence(&self) -> Fence {
        self.place.as_ref().map_or(Fence(0), |place| place.fence)
    }

    /// How often it was started again because it or its node failed.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.place.as_ref().map_or(0, |place| place.restarts)
    }

    /// Why it is where it is, or as it is.
    #[must_use]
    pub fn cause(&self) -> Option<&Cause> {
        self.place.as_ref().map(|place| &place.cause)
    }
}

impl Supervisor {
    /// What it is called.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.room.name
    }

    /// Behaves so from now on, on this node: give all nodes the same.
    ///
    /// # Errors
    /// [`SupervisorError::Split`]; nothing was changed.
    pub fn configure(&self, config: SupervisorConfig) -> Result<(), SupervisorError> {
        self.room.judge_by(config.split.clone())?;
        let core = config.core.clone();
        *self.room.config.write() = config;
        self.room.step(&self.hub, |it, now, _| it.configure(now, core));
        self.room.judge(&self.hub);
        Ok(())
    }

    /// Asks `leases` who goes on under [`Policy::Lease`](super::split::Policy::Lease). Without it
    /// that policy stops all sides.
    pub fn ask_leases(&self, leases: Arc<dyn Leases>) {
        self.room.judge.lock().leases = Some(leases);
    }

    /// No longer counts `node`, which is never to come back, in the split policy; see
    /// [`Split::forget`](super::split::Split::forget).
    pub fn forget(&self, node: &NodeName) {
        self.room.judge.lock().forget(node);
        self.room.judge(&self.hub);
    }

    /// Lets this node run children of the kind `K`, and tells the others so.
    ///
    /// # Errors
    /// [`SupervisorError::KindTaken`], [`SupervisorError::KindName`], [`SupervisorError::State`].
    pub fn register_kind<K: Kind>(&self, kind: K) -> Result<(), SupervisorError> {
        if K::NAME.is_empty() || K::NAME.len() > KIND_BYTES_MAX {
            return Err(SupervisorError::KindName { bytes: K::NAME.len() });
        }
        self.register(K::NAME.into(), Arc::new(kind))
    }

    pub(crate) fn register(
        &self,
        name: Arc<str>,
        kind: Arc<dyn AnyKind>,
    ) -> Result<(), SupervisorError> {
        {
            let mut kinds = self.room.kinds.write();
            if kinds.contains_key(&name) {
                return Err(SupervisorError::KindTaken(name.to_string()));
            }
            kinds.insert(Arc::clone(&name), kind);
        }
        let mut state = self.room.state.lock();
        let announced = self.room.announce(&self.hub, &mut state);
        if announced.is_err() {
            self.room.kinds.write().remove(&name);
        }
        Ok(announced?)
    }

    /// Starts the child `id` on the node that suits it, and waits for its `init`.
    ///
    /// # Units and limits
    /// `id` has 1 to 1,024 bytes and no zero byte; encoded arguments at most 64 KiB; how many
    /// children there may be and how long it may take as
    /// [`SupervisorConfig`] says.
    ///
    /// # Errors
    /// [`StartChildError`]; [`StartChildError::outcome`] says whether it may run.
    ///
    /// # Guarantees
    /// When it returns the child runs, and this node finds it. Two nodes that start one id at the
    /// same moment may both succeed; then one child stays, from the later arguments.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the child to be started.
    pub async fn start_child<K: Kind>(
        &self,
        id: &str,
        args: &K::Args,
        options: ChildOptions,
    ) -> Result<Child<K::Server>, StartChildError> {
        let args = kind::encode_args::<K>(args)?;
        let id: Arc<str> = id.into();
        let spec = Spec { kind: K::NAME.into(), args, options: Arc::new(options) };
        self.room.start_child(&self.hub, &id, Arc::new(spec), By::Strategy).await?;
        Ok(self.child_of(id, None))
    }

    /// As [`Supervisor::start_child`], but a child that exists with the same arguments and options
    /// is as good as started.
    ///
    /// # Errors
    /// As [`Supervisor::start_child`]; [`StartChildError::Exists`] only when it differs.
    ///
    /// # Cancel safety
    /// As [`Supervisor::start_child`].
    pub async fn ensure_child<K: Kind>(
        &self,
        id: &str,
        args: &K::Args,
        options: ChildOptions,
    ) -> Result<Child<K::Server>, StartChildError> {
        match self.start_child::<K>(id, args, options).await {
            Err(StartChildError::Exists { same: true, .. }) => Ok(self.child_of(id.into(), None)),
            settled => settled,
        }
    }

    /// As [`Supervisor::start_child`] for a kind known by name only, with encoded arguments.
    ///
    /// # Errors
    /// As [`Supervisor::start_child`].
    ///
    /// # Cancel safety
    /// As [`Supervisor::start_child`].
    pub async fn start_encoded(
        &self,
        id: &str,
        kind: &str,
        args: Bytes,
        options: ChildOptions,
    ) -> Result<ChildInfo, StartChildError> {
        let id: Arc<str> = id.into();
        let spec = Spec { kind: kind.into(), args, options: Arc::new(options) };
        let spec = Arc::new(spec);
        let place = self.room.start_child(&self.hub, &id, Arc::clone(&spec), By::Strategy).await?;
        Ok(ChildInfo::of(&id, &spec, Some(&place)))
    }

    /// Starts a child on the oldest host that fits.
    pub(crate) async fn start_on_oldest(
        &self,
        id: &Arc<str>,
        options: ChildOptions,
    ) -> Result<(), StartChildError> {
        let spec = Spec { kind: Arc::clone(id), args: Bytes::new(), options: Arc::new(options) };
        self.room.start_child(&self.hub, id, Arc::new(spec), By::Age).await.map(drop)
    }

    /// The address of the child `id`, which need not run yet. Whether it is an `S` shows when it
    /// is called.
    #[must_use]
    pub fn child<S: RemoteServer>(&self, id: &str) -> Child<S> {
        self.child_of(id.into(), None)
    }

    /// The address of the actor `key` of the kind `K`: it is started by the first call, and sleeps
    /// when it was not called for five minutes, with the state it gives then.
    ///
    /// # Guarantees
    /// As for every child; all nodes that see the same hosts start an actor on the same one.
    #[must_use]
    pub fn actor<K: Kind<Args = ()>>(&self, key: &str) -> Child<K::Server> {
        let idle_for = Some(ACTOR_IDLE_FOR);
        self.actor_with::<K>(key, ChildOptions { idle_for, ..ChildOptions::default() })
    }

    /// As [`Supervisor::actor`], with options of its own; used if it is started by this address.
    #[must_use]
    pub fn actor_with<K: Kind<Args = ()>>(
        &self,
        key: &str,
        options: ChildOptions,
    ) -> Child<K::Server> {
        let spec = Spec { kind: K::NAME.into(), args: Bytes::new(), options: Arc::new(options) };
        self.child_of(key.into(), Some(Arc::new(spec)))
    }

    fn child_of<S: RemoteServer>(&self, id: Arc<str>, actor: Option<Arc<Spec>>) -> Child<S> {
        Child::new(Arc::clone(&self.hub), Arc::clone(&self.room), id, actor)
    }

    /// Removes the child `id` and waits for the end of its process, which handles what waits and
    /// terminates.
    ///
    /// # Errors
    /// [`SupervisorError::Absent`], [`SupervisorError::State`].
    ///
    /// # Guarantees
    /// It is started nowhere again. Partitioned: the other side stops it when it hears of it.
    ///
    /// # Cancel safety
    /// Dropping the future does not keep the child.
    pub async fn stop_child(&self, id: &str) -> Result<Stopped, SupervisorError> {
        let id: Arc<str> = id.into();
        let (version, node) = {
            let state = self.room.state.lock();
            let version = state.core.version(&id);
            let version = version.ok_or_else(|| SupervisorError::Absent(id.to_string()))?;
            let place = state.core.child(&id).and_then(|(_, place)| place);
            (version, place.map(|place| place.node.clone()))
        };
        self.room.stop_here(&self.hub, &id, version).await;
        let Some(node) = node.filter(|node| *node != self.hub.me) else {
            return Ok(Stopped::Ended);
        };
        Ok(self.room.stop_there(&self.hub, &node, &id, version, STOP_WITHIN).await)
    }

    /// What is known of the child `id`. Local.
    #[must_use]
    pub fn which(&self, id: &str) -> Option<ChildInfo> {
        let state = self.room.state.lock();
        let (spec, place) = state.core.child(id)?;
        Some(ChildInfo::of(&id.into(), spec, place))
    }

    /// Up to `limit` children whose ids begin with `prefix`, in order, after the id `after`. Local;
    /// a moving picture, not a snapshot.
    #[must_use]
    pub fn children(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<ChildInfo> {
        let state = self.room.state.lock();
        let children = state.core.children(prefix, after).take(limit);
        children.map(|(id, spec, place)| ChildInfo::of(id, spec, place)).collect()
    }

    /// How many children there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.room.state.lock().core.count()
    }

    /// How many children each node has, or is to start.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<NodeId, usize> {
        self.room.state.lock().core.counts().clone()
    }

    /// The nodes that take children of the kind `kind`, whether they are up or not.
    #[must_use]
    pub fn hosts(&self, kind: &str) -> Vec<NodeId> {
        let state = self.room.state.lock();
        let hosts = state.core.hosts().iter();
        hosts.filter(|(_, host)| host.kinds.contains(kind)).map(|(node, _)| node.clone()).collect()
    }

    /// The node that places children whose node is lost.
    #[must_use]
    pub fn planner(&self) -> Option<NodeId> {
        self.room.state.lock().core.planner().cloned()
    }

    /// What happens to children from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        self.events_after(self.room.story.revision())
    }

    /// What happened to children after the event `after`; 0 for all that is remembered.
    #[must_use]
    pub fn events_after(&self, after: u64) -> Events {
        self.room.story.follow(after)
    }

    /// What would move now to level the load and satisfy all wishes: at most `limit` moves, none
    /// of which is made.
    #[must_use]
    pub fn plan(&self, limit: usize) -> Vec<Move> {
        self.room.state.lock().core.plan(limit)
    }

    /// Levels the load now, at the configured rate, driven by this node; returns how many moves it
    /// will be. Paused, it waits.
    #[expect(clippy::must_use_candidate, reason = "the number is for whoever is curious")]
    pub fn rebalance(&self) -> usize {
        self.room.step(&self.hub, |core, now, out| core.rebalance(now, out))
    }

    /// How many moves of this node's plan are still to be made.
    #[must_use]
    pub fn pending_moves(&self) -> usize {
        self.room.state.lock().core.pending_moves()
    }

    /// Whether moves that level the load wait, on all nodes.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.room.state.lock().core.is_paused()
    }

    /// Has moves that level the load wait, on all nodes. Failover and drains go on.
    ///
    /// # Errors
    /// [`SupervisorError::State`]; nothing was changed.
    pub fn pause(&self) -> Result<(), SupervisorError> {
        self.set_paused(true)
    }

    /// Takes [`Supervisor::pause`] back.
    ///
    /// # Errors
    /// [`SupervisorError::State`]; nothing was changed.
    pub fn resume(&self) -> Result<(), SupervisorError> {
        self.set_paused(false)
    }

    fn set_paused(&self, paused: bool) -> Result<(), SupervisorError> {
        let key = RecordKey::Control(Arc::clone(&self.room.name)).to_bytes();
        self.hub.records.put(key, record::encode(&Control { paused }), None)?;
        self.room.step(&self.hub, |core, now, out| {
            core.set_paused(paused);
            core.woke(now, out);
        });
        Ok(())
    }

    /// Asks `veto` before each move that this node plans to level the load; the child stays where
    /// it is when it says yes. It runs in a task; keep it short.
    pub fn veto(&self, veto: impl Fn(&Move) -> bool + Send + Sync + 'static) {
        *self.room.veto.write() = Some(Arc::new(veto));
    }

    /// Has `merge` bring together the states of two copies of a child, whenever one of them ends
    /// on this node because the other stays.
    pub fn on_conflict(&self, merge: impl MergeCopies) {
        *self.room.merge.write() = Some(Arc::new(merge));
    }

    /// Moves the child `id` to `to` with its state, and waits until it is there; whether it is.
    ///
    /// # Errors
    /// [`SupervisorError::Absent`].
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the move.
    pub async fn move_child(&self, id: &str, to: &NodeId) -> Result<bool, SupervisorError> {
        let info = self.which(id).ok_or_else(|| SupervisorError::Absent(id.to_owned()))?;
        let Some(from) = info.node().cloned() else { return Ok(false) };
        Ok(self.room.move_from(&self.hub, &from, &info.id, to).await)
    }

    /// Lets the child `id` out of quarantine: it is started again, and its failures are forgotten.
    ///
    /// # Errors
    /// [`SupervisorError::Absent`], or [`SupervisorError::NotReleased`] when it is not in
    /// quarantine or no node can take it.
    pub fn release(&self, id: &str) -> Result<(), SupervisorError> {
        let id: Arc<str> = id.into();
        if self.which(&id).is_none() {
            return Err(SupervisorError::Absent(id.to_string()));
        }
        let released = self.room.step(&self.hub, |core, now, out| core.release(now, &id, out));
        if released { Ok(()) } else { Err(SupervisorError::NotReleased(id.to_string())) }
    }

    /// Whether this node's side of a cut may run children.
    #[must_use]
    pub fn gate(&self) -> Gate {
        self.room.state.lock().core.gate().clone()
    }

    /// The typed process of the child `id`, if it runs on this node.
    ///
    /// # Errors
    /// [`AnotherKind`] when it is not an `S`.
    pub fn local<S: RemoteServer>(
        &self,
        id: &str,
    ) -> Result<Option<purlin_process::ProcessRef<S>>, AnotherKind> {
        let Some(pid) = self.which(id).and_then(|info| info.pid()) else { return Ok(None) };
        if pid.node != self.hub.me {
            return Ok(None);
        }
        let Some(process) = self.hub.processes.get(pid.process) else { return Ok(None) };
        let found = process.kind().to_owned();
        let (key, wanted) = (id.to_owned(), S::KIND);
        process.downcast().map(Some).ok_or(AnotherKind { key, pid, found, wanted })
    }
}

/// How the first node of a child is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum By {
    /// As the supervisor is configured.
    Strategy,
    /// By its id: all nodes that see the same hosts choose the same.
    Id,
    /// The host that has been one for longest.
    Age,
}

impl Room {
    /// Writes down that the child is to run, and has a node start it.
    pub(crate) async fn start_child(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        id: &Arc<str>,
        spec: Arc<Spec>,
        by: By,
    ) -> Result<Place, StartChildError> {
        check_key("child id", id).map_err(StartChildError::Id)?;
        spec.options.wish.check()?;
        if spec.args.len() > ARGS_BYTES_MAX {
            return Err(StartChildError::ArgsTooLarge { bytes: spec.args.len() });
        }
        let (children_max, within) = {
            let config = self.config.read();
            (config.children_max, config.start_within)
        };
        let (version, fence, first) = {
            let mut state = self.state.lock();
            if let Some((known, _)) = state.core.child(id) {
                let same = **known == *spec;
                return Err(StartChildError::Exists { id: id.to_string(), same });
            }
            match state.core.gate() {
                Gate::Open => {}
                Gate::Waiting => return Err(StartChildError::Refused("undecided cut".to_owned())),
                Gate::Shut(why) => return Err(StartChildError::Refused(why.to_string())),
            }
            let count = state.core.count();
            if count >= children_max {
                return Err(StartChildError::TooMany { count, max: children_max });
            }
            let wish = &spec.options.wish;
            let first = match by {
                By::Strategy => state.core.choose(id, &spec.kind, wish)?,
                By::Id => state.core.choose_fixed(id, &spec.kind, wish, &[])?,
                By::Age => state.core.choose_oldest(&spec.kind, wish)?,
            };
            let key = RecordKey::Spec(Arc::clone(&self.name), Arc::clone(id)).to_bytes();
            let version = hub.records.put(key, spec.to_bytes(), None)?;
            let known = Some((version, Arc::clone(&spec)));
            self.step_in(hub, &mut state, |core, now, out| core.spec_changed(now, id, known, out));
            (version, state.core.next_fence(id), first)
        };
        let ask = StartHere {
            version,
            spec: Arc::clone(&spec),
            fence,
            restarts: 0,
            state: None,
            cause: Cause::Asked,
        };
        let started = self.start_somewhere(hub, id, first, ask, within).await;
        match &started {
            Ok(_) | Err(StartChildError::Unknown { .. }) => {}
            Err(_) => drop(self.stop_here(hub, id, version).await),
        }
        started
    }

    /// Has `first` start the child or, if it refuses, another node.
    async fn start_somewhere(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        id: &Arc<str>,
        first: NodeId,
        ask: StartHere,
        within: Duration,
    ) -> Result<Place, StartChildError> {
        let mut node = first;
        let mut tried: Vec<NodeName> = Vec::new();
        let mut busy_until = None;
        loop {
            let outcome = hub.start_at(self, &node, id, ask.clone(), within).await;
            let refusal = match outcome {
                Ok((version, place)) => {
                    let known = (version, place.clone());
                    self.step(hub, |core, now, out| core.place_answered(now, id, known, out));
                    return Ok(place);
                }
                Err(StartAtError::Not(NotStarted::Refused(Refusal::Busy))) => {
                    let now = tokio::time::Instant::now();
                    if now < *busy_until.get_or_insert(now + BUSY_FOR) {
                        tokio::time::sleep(BUSY_EVERY).await;
                        continue;
                    }
                    Refusal::Busy.to_string()
                }
                Err(StartAtError::Not(NotStarted::Refused(Refusal::Removed))) => {
                    return Err(StartChildError::Refused(Refusal::Removed.to_string()));
                }
                Err(StartAtError::Not(NotStarted::Kind(error)))
                    if !matches!(error, KindError::Unknown(_) | KindError::NoRoom(_)) =>
                {
                    return Err(error.into());
                }
                Err(StartAtError::Call(error)) if error.outcome() == Outcome::Unknown => {
                    return Err(StartChildError::Unknown { node, error: error.to_string() });
                }
                Err(error) => error.to_string(),
            };
            tried.push(node.name.clone());
            let spec = &ask.spec;
            let next = {
                let state = self.state.lock();
                state.core.choose_fixed(id, &spec.kind, &spec.options.wish, &tried)
            };
            node = next.map_err(|_none_left| StartChildError::Refused(refusal))?;
        }
    }

    /// Starts the child, which sleeps, or the actor, which never ran; whether it runs.
    pub(crate) async fn activate(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        id: &Arc<str>,
        actor: Option<&Arc<Spec>>,
    ) -> bool {
        let within = self.config.read().start_within;
        match (self.to_wake(id), actor) {
            (ToWake::IsUp, _) => true,
            (ToWake::Asleep(node, ask), _) => {
                self.start_somewhere(hub, id, node, *ask, within).await.is_ok()
            }
            (ToWake::Unplaceable, _) | (ToWake::Unknown, None) => false,
            (ToWake::Unknown, Some(spec)) => {
                let started = self.start_child(hub, id, Arc::clone(spec), By::Id).await;
                matches!(started, Ok(_) | Err(StartChildError::Exists { .. }))
            }
        }
    }

    fn to_wake(&self, id: &Arc<str>) -> ToWake {
        let state = self.state.lock();
        let (spec, place) = match state.core.child(id) {
            None => return ToWake::Unknown,
            Some((_, None)) => return ToWake::IsUp,
            Some((spec, Some(place))) => (spec, place),
        };
        let PlaceState::Asleep(given) = &place.state else { return ToWake::IsUp };
        let wish = &spec.options.wish;
        let Ok(node) = state.core.choose_again(id, &spec.kind, wish, &place.node) else {
            return ToWake::Unplaceable;
        };
        let ask = StartHere {
            version: place.spec,
            spec: Arc::clone(spec),
            fence: state.core.next_fence(id),
            restarts: place.restarts,
            state: given.as_deref().cloned(),
            cause: Cause::Woken,
        };
        ToWake::Asleep(node, Box::new(ask))
    }

    pub(crate) async fn stop_there(
        &self,
        hub: &Hub,
        node: &NodeId,
        id: &Arc<str>,
        version: purlin_core::HlcTimestamp,
        within: Duration,
    ) -> Stopped {
        let what = (self.name.to_string(), id.to_string(), version);
        match hub.rpc.call(&node.name, super::shell::STOP, &what, within).await {
            Ok(_) => Stopped::Ended,
            // Whoever is gone runs nothing.
            Err(MemberCallError::Gone { node: gone, .. }) if gone.supersedes(node) => {
                Stopped::Ended
            }
            Err(_) => Stopped::Removed,
        }
    }

    pub(crate) async fn move_from(
        self: &Arc<Self>,
        hub: &Arc<Hub>,
        from: &NodeId,
        id: &Arc<str>,
        to: &NodeId,
    ) -> bool {
        if *from == hub.me {
            return self.move_here(hub, id, to).await;
        }
        let what = (self.name.to_string(), id.to_string(), to.clone());
        let within = super::shell::REQUEST_WITHIN;
        hub.rpc.call(&from.name, super::shell::MOVE, &what, within).await.unwrap_or(false)
    }
}

/// What it takes to have a child run.
enum ToWake {
    /// It runs, or somebody sees to it.
    IsUp,
    /// It sleeps; this node is to wake it.
    Asleep(NodeId, Box<StartHere>),
    /// It sleeps, and no node takes it now.
    Unplaceable,
    /// There is no such child.
    Unknown,
}
