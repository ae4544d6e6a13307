//! A replica set among the nodes of a cluster: the shell around [`Sync`].
//!
//! There is no task in the path of a write or a read: the writer's own task changes the state,
//! shows the change to readers and hands it to the channels; a reader of a connection joins what
//! it brings. One task per set sleeps until something must be sent again or compared.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use purlin_cluster::{Cluster, view::Watch};
use purlin_core::{Clock, Hlc, HlcError, HlcTimestamp, NodeId, Rng, WallTime, hlc::NodeTag, watch};
use purlin_net::{
    ChannelId, Incoming, PartitionKey, PeerEvent, Service, ServiceId, Transport, Urgency,
};
use purlin_store::{AppendError, Disk, Log, LogConfig, Lsn, OpenError, RealDisk};
use tokio::sync::{Notify, broadcast, mpsc, oneshot};

use crate::{
    cell::{Cell, Kind, Written},
    digest::Leaf,
    interest::Interest,
    journal::{COMPACT_AFTER_BYTES, Record, RecordError},
    slot::{KeyError, Slot},
    store::{Changed, Made, Store, WriteError},
    sync::{
        ContextSize, Counters, Input, Lag, Membership, Output, StillCatchingUp, Sync, SyncConfig,
    },
    view::View,
    wire::{Message, Versions},
};

/// How many changes a slow watcher may fall behind before it hears how many it missed.
const CHANGES_MAX: usize = 4_096;

/// The set of all named state that is kept, on the wire.
pub const CRDT: ServiceId = ServiceId(8);
/// The set of ephemeral values, on the wire.
pub const EPHEMERAL: ServiceId = ServiceId(9);
/// The set of flags, on the wire.
pub const FLAGS: ServiceId = ServiceId(10);
/// The set of replicated caches, on the wire.
pub const CACHES: ServiceId = ServiceId(11);

/// Segments small enough that a set of flags does not take 64 MiB of disk.
const LOG: LogConfig = LogConfig { segment_bytes: 4 << 20, waiting_bytes_max: 64 << 20 };

/// What a set is called, and its bounds.
#[derive(Debug, Clone)]
pub struct ReplicaConfig {
    /// Its number on the wire, equal on all nodes; one set per number.
    pub service: ServiceId,
    /// What it is called in metrics and on the console.
    pub name: &'static str,
    /// The most keys it takes from writers here. What other nodes wrote is always taken in: to
    /// refuse it would leave replicas unequal for ever. Default 2 million.
    pub keys_max: usize,
    /// Which keys this node keeps. Default all. Others are neither written nor read here, and cost
    /// nothing; each key should be kept by as many nodes as may be lost at once, plus one.
    pub interest: Interest,
    /// How it talks to its neighbours.
    pub sync: SyncConfig,
    /// Where it is kept across restarts; `None` keeps it in memory only.
    pub dir: Option<PathBuf>,
    /// The disk that `dir` is on. Default [`RealDisk`]; a simulator puts its own here.
    pub disk: Arc<dyn Disk>,
}

impl ReplicaConfig {
    /// The set `name` under the number `service`, with the default bounds.
    #[must_use]
    pub fn new(service: ServiceId, name: &'static str) -> Self {
        Self {
            service,
            name,
            keys_max: 2_000_000,
            interest: Interest::all(),
            sync: SyncConfig::default(),
            dir: None,
            disk: RealDisk::shared(),
        }
    }
}

/// Why a write was not made. Nothing was changed anywhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The key is empty or too long.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The name holds a zero byte, which divides a collection's name from its keys.
    #[error("a name holds no zero byte")]
    Name,
    /// The value does not fit what is there.
    #[error(transparent)]
    Write(#[from] WriteError),
    /// The set is full.
    #[error("{keys} keys reach the limit {max}")]
    Full {
        /// How many keys there are.
        keys: usize,
        /// The bound.
        max: usize,
    },
    /// The clock refuses to issue a timestamp.
    #[error(transparent)]
    Clock(#[from] HlcError),
}

impl StateError {
    /// Always "not done".
    #[must_use]
    pub fn outcome(&self) -> purlin_core::Outcome {
        purlin_core::Outcome::NotDone
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> purlin_core::Advice {
        match self {
            Self::Write(WriteError::Overwritten { .. }) | Self::Clock(_) => {
                purlin_core::Advice::Retry
            }
            Self::Key(_) | Self::Name | Self::Write(_) | Self::Full { .. } => {
                purlin_core::Advice::GiveUp
            }
        }
    }
}

/// Why a set was not started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Its log cannot be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A record of its log cannot be understood, so starting would lose what it holds.
    #[error("{file}: record {lsn}: {error}")]
    Record {
        /// The file it is in.
        file: PathBuf,
        /// Which record.
        lsn: Lsn,
        /// Why.
        error: RecordError,
    },
}

/// A change of one entry, as watchers see it: in order per node.
#[derive(Debug, Clone)]
pub struct Change {
    /// The key.
    pub key: Bytes,
    /// What it held before, as the watcher was last told.
    pub before: Option<Cell>,
    /// What it holds now; `None` when it is gone.
    pub now: Option<Cell>,
    /// Why it changed.
    pub origin: Origin,
}

/// Where a change came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// It was written on this node.
    Here,
    /// This node told us; it need not have written it.
    Told(NodeId),
    /// Its time was over.
    Expired,
    /// This node does not keep such keys any more; others do.
    Dropped,
}

/// What is known of a set.
#[derive(Debug, Clone)]
pub struct SetStatus {
    /// Its name.
    pub name: &'static str,
    /// How many keys it has.
    pub keys: usize,
    /// Which keys this node keeps.
    pub keeps: Interest,
    /// Which of them it wants to go on keeping; the rest goes once others are known to have it.
    pub wants: Interest,
    /// How every neighbour stands.
    pub lag: Vec<Lag>,
    /// What is remembered besides the keys.
    pub context: ContextSize,
    /// What happened so far.
    pub counters: Counters,
    /// Messages that could not be handed to a channel; they are sent again.
    pub unsent: u64,
    /// Changes that the disk refused; they are lost if this node stops before it is compared with
    /// another.
    pub unpersisted: u64,
}

/// A replica of a set on this node: cheap to clone, shared by everybody.
///
/// # Guarantees
/// Healthy: a write is readable here when the call returns and elsewhere a round trip later.
/// Partitioned: every side reads and writes; after the heal all sides are equal and every write
/// that nobody overwrote or removed knowingly is there. Restarted: a replica takes over what
/// it lacks from its neighbours in bounded pieces. A set in memory is gone when all nodes stop at
/// once; one with a directory comes back with everything that [`ReplicaSet::persisted`] waited for.
///
/// One thing is weaker than that: when a node dies before its disk has a write, and others have the
/// write only from a comparison with it that its death cut short, then they have what was written
/// and may lack what it replaced. That can come back *beside* the newer write, as if both had been
/// made at once; it never takes its place.
#[derive(Clone)]
pub struct ReplicaSet {
    inner: Arc<Inner>,
}

struct Inner {
    config: ReplicaConfig,
    transport: Transport,
    clock: Arc<dyn Clock>,
    hlc: Arc<Hlc>,
    sync: Mutex<Sync>,
    view: View,
    changes: broadcast::Sender<Change>,
    wake: Notify,
    shown: AtomicU64,
    unsent: AtomicU64,
    unpersisted: AtomicU64,
    log: Option<Log>,
    /// Bytes written since the whole state was.
    unwritten_bytes: AtomicUsize,
    /// Records handed to the log so far.
    recorded: AtomicU64,
    /// How many refusals of the log are made up for; [`GAP`] while one is not.
    refusals: AtomicU64,
    flushing: mpsc::UnboundedSender<Flushing>,
    flushed: watch::Sender<Flushed>,
    compact: Notify,
}

/// No log has so many refusals: nothing may be recorded.
const GAP: u64 = u64::MAX;

/// A record on its way to the disk, with its number.
type Flushing = (u64, oneshot::Receiver<Result<Lsn, AppendError>>);

/// How far the disk has come.
#[derive(Debug, Default)]
struct Flushed {
    /// The number of the last record whose fate is known.
    upto: u64,
    /// The last record that the disk refused, unless the whole state was written since.
    failed: Option<(u64, AppendError)>,
}

impl fmt::Debug for ReplicaSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicaSet")
            .field("name", &self.inner.config.name)
            .field("keys", &self.inner.view.len())
            .finish_non_exhaustive()
    }
}

impl ReplicaSet {
    /// Starts a replica that syncs with every peer of `transport`, present and future: empty, or
    /// with what it was when its directory was last written.
    ///
    /// # Errors
    /// [`OpenError`] inside [`StartError`] when the directory cannot be
    /// read or is damaged; nothing was started.
    pub fn start(
        mut config: ReplicaConfig,
        transport: &Transport,
        hlc: Arc<Hlc>,
        rng: Rng,
    ) -> Result<Self, StartError> {
        let clock = Arc::clone(transport.clock());
        config.sync.durable = config.dir.is_some();
        let mut sync = Sync::new(config.sync, transport.node(), clock.now(), rng);
        let view = View::default();
        let log = match &config.dir {
            Some(dir) => Some(recover(Arc::clone(&config.disk), dir, &mut sync, &view)?),
            None => None,
        };
        let mut begun = Vec::new();
        sync.begin(&config.interest, &mut begun);
        let asked = sync.set_interest(clock.now(), config.interest.clone(), &mut begun);
        if let Err(error) = asked {
            // What it kept goes on being kept; the state report shows the difference.
            tracing::error!(set = config.name, interest = %config.interest, %error, "as before");
        }
        // Bounded by the bytes that may wait for the disk: the log refuses more.
        let (flushing, fates) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            transport: transport.clone(),
            clock,
            hlc,
            sync: Mutex::new(sync),
            view,
            log,
            unwritten_bytes: AtomicUsize::new(0),
            recorded: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
            flushing,
            flushed: watch::Sender::new(Flushed::default()),
            compact: Notify::new(),
            changes: broadcast::channel(CHANGES_MAX).0,
            wake: Notify::new(),
            shown: AtomicU64::new(0),
            unsent: AtomicU64::new(0),
            unpersisted: AtomicU64::new(0),
            config,
        });
        inner.carry_out(&inner.sync.lock(), begun);
        let events = transport.events();
        transport.register(inner.config.service, Arc::new(Ear(Arc::downgrade(&inner))));
        tokio::spawn(follow_peers(Arc::downgrade(&inner), events));
        tokio::spawn(keep_time(Arc::downgrade(&inner)));
        if inner.log.is_some() {
            tokio::spawn(note_fates(Arc::downgrade(&inner), fates));
            tokio::spawn(keep_small(Arc::downgrade(&inner)));
        }
        Ok(Self { inner })
    }

    /// What is kept under `key` now. Local, takes no lock.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Cell> {
        self.inner.view.get(key, || self.inner.clock.wall())
    }

    /// Up to `limit` entries whose keys begin with `prefix`, in key order, after the key `after`.
    /// Local, takes no lock; a moving picture, not a snapshot.
    #[must_use]
    pub fn scan(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Vec<(Bytes, Cell)> {
        self.inner.view.scan(prefix, after, limit, self.inner.clock.wall())
    }

    /// Whether it is kept on disk.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.inner.log.is_some()
    }

    /// Changes from now on. A watcher more than 4,096 changes behind hears how many it missed, and
    /// should read again what it cares for.
    #[must_use]
    pub fn watch(&self) -> broadcast::Receiver<Change> {
        self.inner.changes.subscribe()
    }

    /// How the set stands.
    #[must_use]
    pub fn status(&self) -> SetStatus {
        let sync = self.inner.sync.lock();
        let (keeps, wants) = sync.interest();
        SetStatus {
            keeps: keeps.clone(),
            wants: wants.clone(),
            context: sync.context_size(),
            name: self.inner.config.name,
            keys: sync.store().len(),
            lag: sync.lag(self.inner.clock.now()),
            counters: sync.counters(),
            unsent: self.inner.unsent.load(Ordering::Relaxed),
            unpersisted: self.inner.unpersisted.load(Ordering::Relaxed),
        }
    }

    /// Keeps these keys from now on, on this node.
    ///
    /// More keys arrive from neighbours in bounded pieces. Of fewer keys none is written here any
    /// more, at once; what is held of the others is dropped here, and nowhere else, after a neighbour
    /// that goes on keeping them is known to have all of it. Until then it is still read here.
    ///
    /// # Errors
    /// [`StillCatchingUp`] when keys were added several times without the time to fetch them;
    /// nothing was changed.
    pub fn set_interest(&self, interest: Interest) -> Result<(), StillCatchingUp> {
        let mut out = Vec::new();
        let mut sync = self.inner.sync.lock();
        let done = sync.set_interest(self.inner.clock.now(), interest, &mut out);
        self.inner.carry_out(&sync, out);
        self.inner.wake.notify_one();
        done
    }

    /// Tells the set who is a member, whenever that changes: so that it can forget what it remembers
    /// of lives that are over. Without it nothing is ever forgotten.
    pub fn members(&self, membership: Membership) {
        self.inner.step(Input::Members(membership));
    }

    /// Tells the set who is a member of `cluster`, now and whenever that changes, for as long as
    /// there are handles of the set.
    pub fn follow(&self, cluster: &Cluster) {
        tokio::spawn(follow_members(Arc::downgrade(&self.inner), cluster.watch()));
    }

    /// Writes a register; with `ttl` it ends by itself. Returns the version written.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn put(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        ttl: Option<Duration>,
    ) -> Result<HlcTimestamp, StateError> {
        let written = self.stamp(value.into(), ttl)?;
        let at = written.at;
        self.write(key.into(), |store, slot| store.put_over(slot, written).map(Some))?;
        Ok(at)
    }

    /// Writes a register if its version here is still `expected`; `None` expects no value.
    ///
    /// # Errors
    /// [`WriteError::Overwritten`] inside [`StateError`] when it is not. Two sides of a partition
    /// may both succeed; the later write wins then.
    pub fn put_if(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
        ttl: Option<Duration>,
        expected: Option<HlcTimestamp>,
    ) -> Result<HlcTimestamp, StateError> {
        let written = self.stamp(value.into(), ttl)?;
        let at = written.at;
        let put = |store: &mut Store, slot| store.put_over_if(slot, written, expected).map(Some);
        self.write(key.into(), put)?;
        Ok(at)
    }

    /// Writes a register that keeps concurrent values.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn set_value(
        &self,
        key: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<(), StateError> {
        let value = value.into();
        self.write(key.into(), |store, slot| store.set_value(slot, value).map(Some)).map(drop)
    }

    /// Adds to a counter and returns its value here.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn add(&self, key: impl Into<Bytes>, by: i64) -> Result<i128, StateError> {
        let key = key.into();
        self.write(key.clone(), |store, slot| store.add(slot, by).map(Some))?;
        Ok(self.get(&key).map_or(0, |cell| cell.count()))
    }

    /// Adds an element to a set.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn insert(
        &self,
        key: impl Into<Bytes>,
        element: impl Into<Bytes>,
    ) -> Result<(), StateError> {
        let element = element.into();
        self.write(key.into(), |store, slot| store.insert(slot, element).map(Some)).map(drop)
    }

    /// Removes an element of a set; `false` when it was not in it here.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn remove_element(
        &self,
        key: impl Into<Bytes>,
        element: &Bytes,
    ) -> Result<bool, StateError> {
        self.write(key.into(), |store, slot| Ok(store.remove_element(&slot, element)))
    }

    /// Writes a field of a map. Returns the version written.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn put_field(
        &self,
        key: impl Into<Bytes>,
        field: impl Into<Bytes>,
        value: impl Into<Bytes>,
    ) -> Result<HlcTimestamp, StateError> {
        let (field, written) = (field.into(), self.stamp(value.into(), None)?);
        let at = written.at;
        self.write(key.into(), |store, slot| store.put_field(slot, field, written).map(Some))?;
        Ok(at)
    }

    /// Removes a field of a map; `false` when it has none of that name here.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn remove_field(&self, key: impl Into<Bytes>, field: &Bytes) -> Result<bool, StateError> {
        self.write(key.into(), |store, slot| Ok(store.remove_field(&slot, field)))
    }

    /// Removes whatever is kept under `key`, as far as it was seen here; `false` when there is
    /// nothing.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn remove(&self, key: impl Into<Bytes>) -> Result<bool, StateError> {
        self.write(key.into(), |store, slot| Ok(store.remove(&slot)))
    }

    /// Removes the value of one kind under `key`, as far as it was seen here; `false` when there is
    /// none. Of a key that holds two kinds since a heal the other stays.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`] inside [`StateError`] when the key holds only another kind.
    pub fn remove_kind(&self, key: impl Into<Bytes>, kind: Kind) -> Result<bool, StateError> {
        self.write(key.into(), |store, slot| store.remove_kind(&slot, kind))
    }

    /// Removes a register if its version here is still `expected`.
    ///
    /// # Errors
    /// [`WriteError::Overwritten`] inside [`StateError`] when it is not; nothing was changed.
    pub fn remove_if(
        &self,
        key: impl Into<Bytes>,
        expected: HlcTimestamp,
    ) -> Result<bool, StateError> {
        let now = self.inner.clock.wall();
        self.write(key.into(), |store, slot| store.remove_if(&slot, expected, now))
    }

    /// A timestamp later than everything read or written here so far.
    ///
    /// # Errors
    /// [`StateError::Clock`] when the clock refuses.
    pub fn now(&self) -> Result<HlcTimestamp, StateError> {
        Ok(self.inner.hlc.now(self.inner.clock.wall())?)
    }

    /// Waits until everything written here so far is on disk. Returns at once for a set in memory.
    ///
    /// # Errors
    /// [`AppendError`] when the disk refused a change. The change holds in memory, here and on
    /// whoever heard of it, so it may last all the same: treat it as unknown. It stays an error
    /// until the whole state has been written again, which is tried by itself.
    ///
    /// # Cancel safety
    /// Safe: dropping it only stops waiting.
    pub async fn persisted(&self) -> Result<(), AppendError> {
        if self.inner.log.is_none() {
            return Ok(());
        }
        let wanted = self.inner.recorded.load(Ordering::Acquire);
        let mut flushed = self.inner.flushed.subscribe();
        let settled = flushed.wait_for(|flushed| flushed.upto >= wanted).await;
        match settled.map(|flushed| flushed.failed.clone()) {
            Ok(None) => Ok(()),
            Ok(Some((_, error))) => Err(error),
            Err(_gone) => Err(AppendError::Closed),
        }
    }

    /// How many writes this node has made so far; what [`ReplicaSet::seen`] says elsewhere when
    /// they have all arrived there.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.seen(NodeTag::of(self.inner.transport.node()))
    }

    /// Up to which of its writes everything that `life` wrote has been seen here, by whichever way
    /// it came. Readers here have been shown those, and watchers have been told.
    #[must_use]
    pub fn seen(&self, life: NodeTag) -> u64 {
        let sync = self.inner.sync.lock();
        sync.store().known().seen_of(life)
    }

    /// How many changes readers here were shown so far, wherever they were made.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.inner.shown.load(Ordering::Relaxed)
    }

    pub(crate) fn stamp(&self, value: Bytes, ttl: Option<Duration>) -> Result<Written, StateError> {
        let at = self.now()?;
        let expires = ttl.map(|ttl| {
            let ttl = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            WallTime::from_millis(at.millis().as_millis().saturating_add(ttl))
        });
        Ok(Written { at, expires, value })
    }

    pub(crate) fn write<M: Into<Made>>(
        &self,
        key: Bytes,
        change: impl FnOnce(&mut Store, Slot) -> Result<Option<M>, WriteError>,
    ) -> Result<bool, StateError> {
        let inner = &*self.inner;
        let mut out = Vec::new();
        let mut sync = inner.sync.lock();
        let slot = sync.store().slot(&key)?;
        let keys = sync.store().len();
        if keys >= inner.config.keys_max && sync.store().get(&slot).is_none() {
            return Err(StateError::Full { keys, max: inner.config.keys_max });
        }
        let ends_first = sync.first_expiry();
        let done =
            sync.write(inner.clock.now(), &slot, |store| change(store, slot.clone()), &mut out)?;
        if done {
            inner.show(&sync, &slot, &Origin::Here);
        }
        // Only what was sent, and may have to be sent again, and what ends earlier than all else
        // bring the next waking forward.
        if sync.first_expiry() != ends_first || out.iter().any(Output::is_send) {
            inner.wake.notify_one();
        }
        inner.carry_out(&sync, out);
        Ok(done)
    }

    /// Of a key that holds two kinds since a heal, which; for whoever has to decide between them.
    #[must_use]
    pub fn kinds(&self, key: &[u8]) -> Vec<Kind> {
        self.get(key).map(|cell| cell.kinds().collect()).unwrap_or_default()
    }
}

impl Inner {
    fn step(&self, input: Input) {
        let (now, wall) = (self.clock.now(), self.clock.wall());
        let mut out = Vec::new();
        let mut sync = self.sync.lock();
        sync.step(now, wall, input, &mut out);
        self.carry_out(&sync, out);
    }

    /// Shows an entry as it is now to readers and watchers. Called under the writer's lock, so
    /// that watchers see changes in the order in which readers do.
    fn show(&self, sync: &Sync, slot: &Slot, origin: &Origin) {
        let now = sync.store().get(slot);
        let is_watched = self.changes.receiver_count() > 0;
        let before = if is_watched { self.view.shown(slot) } else { None };
        self.view.show(slot, now);
        self.shown.fetch_add(1, Ordering::Relaxed);
        if is_watched {
            let now = now.cloned();
            let key = Bytes::copy_from_slice(slot.key());
            let change = Change { key, before, now, origin: origin.clone() };
            // Nobody listens any more: fine.
            drop(self.changes.send(change));
        }
    }

    fn carry_out(&self, sync: &Sync, out: Vec<Output>) {
        for output in out {
            match output {
                Output::Send(to, message) => self.send(&to, &message),
                Output::Changed { from, changed } => {
                    self.observe(&changed);
                    self.show_all(sync, &changed, &Origin::Told(from));
                }
                Output::Expired(changed) => self.show_all(sync, &changed, &Origin::Expired),
                Output::Dropped(changed) => self.show_all(sync, &changed, &Origin::Dropped),
                Output::Persist(record) => self.persist(&record),
                Output::CaughtUp(node) => {
                    tracing::debug!(set = self.config.name, %node, "caught up");
                }
                Output::Refused(node, reason) => {
                    tracing::warn!(set = self.config.name, %node, %reason, "writes refused");
                }
                Output::Incompatible(node, theirs) => {
                    let (set, ours) = (self.config.name, Versions::OURS);
                    tracing::warn!(set, %node, %theirs, %ours, "nothing is exchanged: no common version");
                }
                Output::Revenant(node) => {
                    tracing::error!(set = self.config.name, %node, "was taken to be over: restart it");
                }
            }
        }
    }

    /// Hands a record to the log. Called under the writer's lock, so records keep their order.
    fn persist(&self, record: &Record) {
        let Some(log) = &self.log else { return };
        let bytes = record.encode();
        let held = self.unwritten_bytes.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len();
        if held > COMPACT_AFTER_BYTES {
            self.compact.notify_one();
        }
        // Only ever called under the writer's lock: numbers and records have one order.
        let number = self.recorded.load(Ordering::Relaxed) + 1;
        // Behind a record that the disk refused, one that claims to have seen it would lose it for
        // everybody: seen and not kept is removed. So nothing is recorded until all of it is again.
        let refusals = self.refusals.load(Ordering::Relaxed);
        let done = log.append_without_gap(bytes, refusals).unwrap_or_else(|error| {
            self.refusals.store(GAP, Ordering::Relaxed);
            let (tell, done) = oneshot::channel();
            drop(tell.send(Err(error)));
            done
        });
        // Nobody takes it only when the set is being dropped.
        drop(self.flushing.send((number, done)));
        self.recorded.store(number, Ordering::Release);
    }

    /// Moves this node's clock past what it has read, so that a write made now is later than it.
    fn observe(&self, changed: &[Changed]) {
        let cells = changed.iter().filter_map(|one| one.now.as_ref());
        let latest = cells.filter_map(Cell::last_written).max();
        if let Some(latest) = latest
            && let Err(error) = self.hlc.observe(latest, self.clock.wall())
        {
            tracing::warn!(set = self.config.name, %error, "clock");
        }
    }

    fn show_all(&self, sync: &Sync, changed: &[Changed], origin: &Origin) {
        for one in changed {
            self.show(sync, &one.slot, origin);
        }
    }

    /// Whether the disk lacks changes that writing the whole state again may bring to it.
    fn is_behind(&self) -> bool {
        match &self.flushed.borrow().failed {
            Some((_, AppendError::Flush(_) | AppendError::Closed)) | None => false,
            Some(_) => true,
        }
    }

    async fn compact(&self) -> Result<(), AppendError> {
        let Some(log) = &self.log else { return Ok(()) };
        // What was seen goes first: whatever is heard again behind it must be known as heard. Then
        // every part is at least as new, and sets what it covers.
        let (from, covered, refusals) = {
            let sync = self.sync.lock();
            self.unwritten_bytes.store(0, Ordering::Relaxed);
            let covered = self.recorded.load(Ordering::Relaxed);
            let (from, refusals) = (log.next(), log.refusals());
            for record in sync.rewriting() {
                drop(log.append_without_gap(record.encode(), refusals)?);
            }
            // What changes from here on can be recorded again: it lies behind the whole state.
            self.refusals.store(refusals, Ordering::Relaxed);
            (from, covered, refusals)
        };
        let mut leaf = Some(Leaf(0));
        while let Some(at) = leaf {
            let written = {
                let sync = self.sync.lock();
                let part = sync.store().part(at, self.config.sync.batch_bytes);
                leaf = part.to;
                log.append_without_gap(Record::Part(part).encode(), refusals)?
            };
            written.await.unwrap_or(Err(AppendError::Closed))?;
        }
        log.forget_before(from);
        self.flushed.send_if_modified(|flushed| {
            // What the disk had refused up to there is in the parts just written.
            flushed.failed.take_if(|(number, _)| *number <= covered).is_some()
        });
        Ok(())
    }

    fn send(&self, to: &NodeId, message: &Message) {
        let bytes = message.encode();
        let sent = self.transport.peer(to).is_some_and(|peer| {
            let put = |payload: &mut purlin_net::PayloadBuf<'_>| payload.put(&bytes);
            let service = self.config.service;
            peer.send(ChannelId::STREAM, service, PartitionKey::ZERO, Urgency::Batch, put).is_ok()
        });
        if !sent {
            self.unsent.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Where connections deliver what other replicas say.
struct Ear(Weak<Inner>);

impl Service for Ear {
    fn on_frame(&self, frame: Incoming<'_>) {
        let Some(inner) = self.0.upgrade() else { return };
        let from = frame.peer().node().clone();
        match Message::decode(frame.payload()) {
            Ok(message) => inner.step(Input::Heard(from, message)),
            Err(error) => {
                tracing::warn!(set = inner.config.name, %from, %error, "message dropped");
                inner.step(Input::Malformed(from, error));
            }
        }
        inner.wake.notify_one();
    }
}

async fn follow_peers(inner: Weak<Inner>, mut events: broadcast::Receiver<PeerEvent>) {
    let known = |inner: &Inner| {
        for peer in inner.transport.peers() {
            if peer.is_up() {
                inner.step(Input::Up(peer.node().clone()));
            }
        }
    };
    if let Some(inner) = inner.upgrade() {
        known(&inner);
    }
    loop {
        let event = events.recv().await;
        let Some(inner) = inner.upgrade() else { return };
        match event {
            Ok(PeerEvent::Up { peer }) => inner.step(Input::Up(peer.node().clone())),
            Ok(PeerEvent::Down { peer, .. }) => inner.step(Input::Down(peer)),
            Ok(_) => continue,
            // An extra Up is harmless: it costs a comparison.
            Err(broadcast::error::RecvError::Lagged(_)) => known(&inner),
            Err(broadcast::error::RecvError::Closed) => return,
        }
        inner.wake.notify_one();
    }
}

async fn follow_members(inner: Weak<Inner>, mut members: Watch) {
    let mut view = members.view();
    loop {
        let Some(inner) = inner.upgrade() else { return };
        inner.step(Input::Members(Membership::of(&view)));
        drop(inner);
        view = members.changed().await;
    }
}

/// Reads what an earlier life wrote down.
fn recover(
    disk: Arc<dyn Disk>,
    dir: &Path,
    sync: &mut Sync,
    view: &View,
) -> Result<Log, StartError> {
    let mut failed = None;
    let each = |lsn, bytes: &[u8]| match Record::decode(bytes) {
        Ok(record) => sync.recover(&record),
        Err(error) => drop(failed.get_or_insert((lsn, error))),
    };
    let (log, recovered) = Log::open(Arc::clone(&disk), dir, LOG, each)?;
    if let Some((lsn, error)) = failed {
        let file = Log::file_of(&*disk, dir, lsn);
        return Err(StartError::Record { file, lsn, error });
    }
    for (slot, cell) in sync.store().iter() {
        view.show(slot, Some(cell));
    }
    if recovered.torn_bytes > 0 {
        let bytes = recovered.torn_bytes;
        tracing::warn!(dir = %dir.display(), bytes, "cut off an unfinished write");
    }
    Ok(log)
}

/// Learns what became of each record, in order.
async fn note_fates(inner: Weak<Inner>, mut fates: mpsc::UnboundedReceiver<Flushing>) {
    while let Some((number, done)) = fates.recv().await {
        let fate = done.await.unwrap_or(Err(AppendError::Closed));
        let Some(inner) = inner.upgrade() else { return };
        inner.flushed.send_modify(|flushed| {
            flushed.upto = number;
            if let Err(error) = fate {
                // The state here goes on; it is the disk that is behind, and says so.
                inner.unpersisted.fetch_add(1, Ordering::Relaxed);
                tracing::error!(set = inner.config.name, %error, "change not written down");
                flushed.failed = Some((number, error));
            }
        });
    }
}

/// Writes the whole state behind the changes when those have grown, and forgets what is before.
async fn keep_small(inner: Weak<Inner>) {
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let grown = tokio::time::timeout(Duration::from_secs(1), strong.compact.notified()).await;
        if grown.is_err() && !strong.is_behind() {
            continue;
        }
        if let Err(error) = strong.compact().await {
            tracing::error!(set = strong.config.name, %error, "state not compacted");
        }
    }
}

/// Wakes the core when it asked to be woken. Ends with the last handle.
async fn keep_time(inner: Weak<Inner>) {
    loop {
        let pause = {
            let Some(inner) = inner.upgrade() else { return };
            let now = inner.clock.now();
            inner.sync.lock().wake_at(now, inner.clock.wall()) - now
        };
        {
            // At least the clock's resolution for expiries, at most a second before looking
            // whether anybody is left.
            let pause = pause.clamp(Duration::from_millis(1), Duration::from_secs(1));
            let Some(strong) = inner.upgrade() else { return };
            let woken = tokio::time::timeout(pause, strong.wake.notified()).await.is_ok();
            if !woken {
                strong.step(Input::Woke);
            }
        }
    }
}
