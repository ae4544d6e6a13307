//! The shell around the [`Directory`]: rows come from a replica set and the members from the
//! cluster, processes that end take their rows with them, and readers see what came out.
//!
//! A write runs in the writer's task: it changes the directory, shows the change and hands the row
//! to the replica set, so whoever wrote reads it at once. One task takes in what other nodes said
//! and how members stand; it decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use purlin_cluster::{Cluster, MembersRpc, Remote, State as Liveness, View, Why as DownWhy};
use purlin_core::{Clock, HlcTimestamp, Instant, NodeId, Rng};
use purlin_net::{ServiceId, rpc::ServeError};
use purlin_process::{
    AnyProcess, DownSink, ExitReason, Metadata, MonitorId, Monitored as _, Pid, ProcessId,
    Processes, Unwatch,
};
use purlin_replica::{Cell, Change as Told, Origin, ReplicaConfig, ReplicaSet};
use tokio::sync::{Notify, Semaphore, broadcast, mpsc, oneshot};

use crate::{
    confirm,
    directory::{Directory, Input, Output, Standing},
    error::{DistError, check_key, check_scope},
    groups::Groups,
    history::History,
    index::Index,
    presence::Presence,
    registry::{NameLost, OnConflict, Registry},
    row::{self, End, Entry, RowKey, Space, Word},
};

/// The replica set of all rows, on the wire.
pub const ROWS: ServiceId = ServiceId(12);

/// The scope of names and groups for which none was given.
pub const DEFAULT_SCOPE: &str = "default";

/// How long the reason of an end is kept for those who have not heard it yet. Who hears of the end
/// later only hears that it ended. Default: some round trips and retries.
const REASON_KEPT_FOR: Duration = Duration::from_secs(5);
/// How often what the clock or the disk refused is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(100);
/// How many changes are taken in under one lock.
const BATCH: usize = 256;
/// Keys per page when everything is compared.
const PAGE: usize = 1_000;
/// How many merges of conflicting names run at once.
const MERGES_MAX: usize = 64;
/// How long one merge may take before the loser is told without it.
const MERGE_WITHIN: Duration = Duration::from_secs(5);

/// The bounds of names, groups and presences of one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DistConfig {
    /// How many entries of each kind (names and shared keys, group memberships, presences) this
    /// node may have. Each costs about 1.5 KB here and as much on every other node. Default 1
    /// million.
    pub entries_max: usize,
    /// How many presences one key may have in one topic, on all nodes together, for this node to
    /// add another: a client that comes under ever new sessions must not use up the place of all
    /// others. Default 1,000.
    pub presences_per_key_max: usize,
    /// The most bytes of metadata an entry may have. At most
    /// [`METADATA_BYTES_LIMIT`](row::METADATA_BYTES_LIMIT), which others refuse. Default 4 KiB.
    pub metadata_bytes_max: usize,
    /// How many events are kept for watchers that come later or fall behind. Default 16,384.
    pub events_max: usize,
    /// How many scopes of names, and how many of groups, there may be for this node to open
    /// another. Default 1,024.
    pub scopes_max: usize,
    /// How long rows of a node that this one has not been introduced to are kept. Default 60 s.
    pub unknown_for: Duration,
}

impl Default for DistConfig {
    fn default() -> Self {
        Self {
            entries_max: 1_000_000,
            presences_per_key_max: 1_000,
            metadata_bytes_max: 4 << 10,
            events_max: 16_384,
            scopes_max: 1_024,
            unknown_for: Duration::from_secs(60),
        }
    }
}

impl DistConfig {
    /// What the replica set must be like that [`Dist::start`] is given.
    #[must_use]
    pub fn replica() -> ReplicaConfig {
        let mut config = ReplicaConfig::new(ROWS, "rows");
        // Bounded above, per node and kind.
        config.keys_max = usize::MAX;
        config
    }
}

/// What happened to rows so far; everything only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DistStats {
    /// Rows of other nodes that could not be read.
    pub malformed: u64,
    /// Names that this node's processes lost to others.
    pub conflicts_lost: u64,
    /// Rows removed because their owner will never be back.
    pub swept: u64,
    /// Rows of this node written again because others had removed them.
    pub restored: u64,
    /// Times everything was compared because changes came faster than they were taken in.
    pub compared: u64,
}

#[derive(Debug, Default)]
struct Counts {
    malformed: AtomicU64,
    conflicts_lost: AtomicU64,
    swept: AtomicU64,
    restored: AtomicU64,
    compared: AtomicU64,
}

/// Names, groups and presences of a cluster, as this node sees and writes them. Cheap to clone.
#[derive(Clone)]
pub struct Dist {
    pub(crate) inner: Arc<Inner>,
    registry: Registry,
    groups: Groups,
    presence: Presence,
}

impl fmt::Debug for Dist {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dist").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

/// What a node's names, groups and presences stand on.
#[derive(Debug, Clone)]
pub struct Ground {
    /// Who is here.
    pub cluster: Cluster,
    /// Calls between members.
    pub rpc: MembersRpc,
    /// Processes elsewhere.
    pub remote: Remote,
    /// The processes of this node.
    pub processes: Processes,
    /// A replica set of its own, as [`DistConfig::replica`] says.
    pub rows: ReplicaSet,
}

impl Dist {
    /// Starts them. Once per node, inside its runtime.
    ///
    /// # Errors
    /// [`ServeError`] when this was done before on the same `rpc`.
    pub fn start(config: DistConfig, ground: Ground, rng: Rng) -> Result<Self, ServeError> {
        let Ground { cluster, rpc, remote, processes, rows } = ground;
        let me = cluster.node().clone();
        rows.follow(&cluster);
        // Before anything is read, so that no change falls between.
        let (told, views) = (rows.watch(), cluster.watch());
        let (barriers, asked) = mpsc::channel(confirm::WAITING_MAX);
        let inner = Arc::new_cyclic(|weak| Inner {
            me: me.clone(),
            config,
            clock: Arc::clone(processes.clock()),
            weak: Weak::clone(weak),
            cluster,
            rpc,
            remote,
            processes,
            rows,
            index: Index::default(),
            names: History::new(config.events_max),
            groups: History::new(config.events_max),
            presences: History::new(config.events_max),
            state: Mutex::new(State::new(Directory::new(me, config.unknown_for))),
            merges: RwLock::default(),
            merging: Arc::new(Semaphore::new(MERGES_MAX)),
            wake: Notify::new(),
            rng: Mutex::new(rng),
            counts: Counts::default(),
            barriers,
        });
        confirm::serve(&inner)?;
        inner.look(&inner.cluster.view());
        inner.compare();
        tokio::spawn(follow(Arc::downgrade(&inner), told, views, asked));
        let registry = Registry::new(Arc::clone(&inner), DEFAULT_SCOPE);
        let groups = Groups::new(Arc::clone(&inner), DEFAULT_SCOPE);
        let presence = Presence::new(Arc::clone(&inner));
        Ok(Self { inner, registry, groups, presence })
    }

    /// Names of processes, in the default scope.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// Groups of processes, in the default scope.
    #[must_use]
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Who is present where.
    #[must_use]
    pub fn presence(&self) -> &Presence {
        &self.presence
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> DistStats {
        let counts = &self.inner.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DistStats {
            malformed: read(&counts.malformed),
            conflicts_lost: read(&counts.conflicts_lost),
            swept: read(&counts.swept),
            restored: read(&counts.restored),
            compared: read(&counts.compared),
        }
    }

    /// The replica set the rows travel in, for its status.
    #[must_use]
    pub fn rows(&self) -> &ReplicaSet {
        &self.inner.rows
    }

    /// Publishes the counts as metrics; call it now and then, for instance at every scrape.
    pub fn publish_metrics(&self) {
        let stats = self.stats();
        for (name, value) in [
            ("purlin_dist_rows_malformed_total", stats.malformed),
            ("purlin_dist_conflicts_lost_total", stats.conflicts_lost),
            ("purlin_dist_rows_swept_total", stats.swept),
            ("purlin_dist_rows_restored_total", stats.restored),
            ("purlin_dist_compared_total", stats.compared),
        ] {
            metrics::counter!(name).absolute(value);
        }
    }
}

/// Told when a name is held twice, on the node whose process loses it, before that process is told.
///
/// This is where the states of two copies become one: ask the loser for what it knows and give it
/// to the winner, which has the name already. Runs in a task of its own, away from reads and
/// writes; after 5 s, or when it panics, the loser is told all the same.
pub trait Merge: Send + Sync + 'static {
    /// Brings what `lost.process` knows to `lost.winner`.
    fn merge(&self, lost: Lost) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

impl<F, Fut> Merge for F
where
    F: Fn(Lost) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    fn merge(&self, lost: Lost) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(self(lost))
    }
}

/// A name that a process of this node lost.
#[derive(Debug, Clone)]
pub struct Lost {
    /// The process that lost it; it still runs.
    pub process: AnyProcess,
    /// What it was registered as.
    pub mine: Arc<Entry>,
    /// Who has the name now.
    pub winner: Arc<Entry>,
}

pub(crate) struct Inner {
    pub(crate) me: NodeId,
    pub(crate) config: DistConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) weak: Weak<Self>,
    pub(crate) cluster: Cluster,
    pub(crate) rpc: MembersRpc,
    pub(crate) remote: Remote,
    pub(crate) processes: Processes,
    pub(crate) rows: ReplicaSet,
    pub(crate) index: Index,
    pub(crate) names: Arc<History>,
    pub(crate) groups: Arc<History>,
    pub(crate) presences: Arc<History>,
    state: Mutex<State>,
    merges: RwLock<BTreeMap<Arc<str>, Arc<dyn Merge>>>,
    merging: Arc<Semaphore>,
    wake: Notify,
    pub(crate) rng: Mutex<Rng>,
    counts: Counts,
    pub(crate) barriers: mpsc::Sender<oneshot::Sender<()>>,
}

struct State {
    directory: Directory,
    bound: BTreeMap<ProcessId, Bound>,
    /// What to do with processes that lose their names.
    on_conflict: BTreeMap<u64, OnConflict>,
    next_row: u64,
    /// Ends that the replica set has refused so far.
    owed: BTreeMap<u64, End>,
    leases: BTreeMap<u64, Lease>,
    /// Who holds which row by a lease.
    sessions: BTreeMap<Session, u64>,
    /// When leases end, first to last.
    ends: BTreeSet<(Instant, u64)>,
}

/// Topic, key and session.
type Session = (Arc<str>, Arc<str>, Arc<str>);

/// What keeps a row that no process does.
struct Lease {
    session: Session,
    until: Instant,
}

/// A process with rows, which end with it.
struct Bound {
    rows: BTreeMap<(Space, Arc<str>, Arc<str>), u64>,
    watching: Option<Unwatch>,
}

/// What to write.
pub(crate) struct Draft<'a> {
    pub(crate) space: Space,
    pub(crate) scope: &'a Arc<str>,
    pub(crate) key: &'a str,
    pub(crate) metadata: Metadata,
    pub(crate) on_conflict: OnConflict,
}

impl State {
    fn new(directory: Directory) -> Self {
        Self {
            directory,
            bound: BTreeMap::new(),
            on_conflict: BTreeMap::new(),
            next_row: 1,
            owed: BTreeMap::new(),
            leases: BTreeMap::new(),
            sessions: BTreeMap::new(),
            ends: BTreeSet::new(),
        }
    }
}

/// Writing.
impl Inner {
    /// Writes a row for `process`, which it ends with. A second one of the same kind, scope and
    /// key replaces the metadata of the first, unless the key is unique.
    pub(crate) fn add(
        &self,
        draft: &Draft<'_>,
        process: &AnyProcess,
    ) -> Result<Arc<Entry>, DistError> {
        self.check(draft)?;
        if process.pid().node != self.me {
            let node = process.pid().node.clone();
            return Err(DistError::Elsewhere { key: process.pid().to_string(), node });
        }
        loop {
            self.bind(process)?;
            let mut state = self.state.lock();
            let Some(bound) = state.bound.get(&process.id()) else {
                // Its last row went in between, and the watch with it.
                continue;
            };
            let place = (draft.space, Arc::clone(draft.scope), Arc::from(draft.key));
            if draft.space == Space::Unique {
                if let Some(holder) = state.directory.holder(draft.scope, draft.key) {
                    let by = holder.pid().expect("names are of processes");
                    self.unbind_if_idle(&mut state, process.id());
                    return Err(DistError::NameTaken { key: draft.key.to_owned(), by });
                }
            } else if let Some(&number) = bound.rows.get(&place) {
                return self.rewrite(&mut state, number, draft.metadata.clone());
            }
            let added = self.write_new(&mut state, draft, Some(process));
            match &added {
                Ok(entry) => {
                    let bound = state.bound.get_mut(&process.id()).expect("it was just seen");
                    bound.rows.insert(place, entry.at.number);
                }
                Err(_) => self.unbind_if_idle(&mut state, process.id()),
            }
            return added;
        }
    }

    /// Writes a row that no process ends.
    pub(crate) fn add_free(&self, draft: &Draft<'_>) -> Result<Arc<Entry>, DistError> {
        self.check(draft)?;
        self.write_new(&mut self.state.lock(), draft, None)
    }

    /// Writes or renews a row that ends by itself after `lease`.
    pub(crate) fn lease(
        &self,
        draft: &Draft<'_>,
        session: &str,
        lease: Duration,
    ) -> Result<Arc<Entry>, DistError> {
        self.check(draft)?;
        check_session(session)?;
        let session = (Arc::clone(draft.scope), Arc::from(draft.key), Arc::from(session));
        let until = self.clock.now() + lease;
        let mut state = self.state.lock();
        let state = &mut *state;
        let entry = match state.sessions.get(&session).copied() {
            None => self.write_new(state, draft, None)?,
            Some(number) => {
                let at = RowKey { owner: self.me.clone(), number };
                let entry = Arc::clone(state.directory.row(&at).expect("leased rows exist"));
                if entry.metadata == draft.metadata {
                    entry
                } else {
                    self.rewrite(state, number, draft.metadata.clone())?
                }
            }
        };
        let number = entry.at.number;
        state.sessions.insert(session.clone(), number);
        if let Some(before) = state.leases.insert(number, Lease { session, until }) {
            state.ends.remove(&(before.until, number));
        }
        state.ends.insert((until, number));
        if state.ends.first() == Some(&(until, number)) {
            self.wake.notify_one();
        }
        Ok(entry)
    }

    /// Ends what a session holds; whether there was anything.
    pub(crate) fn release(&self, topic: &str, key: &str, session: &str) -> bool {
        let session: Session = (topic.into(), key.into(), session.into());
        let mut state = self.state.lock();
        let number = state.sessions.get(&session).copied();
        if let Some(number) = number {
            self.end(&mut state, number, End::Asked);
        }
        number.is_some()
    }

    /// Gives the row `number` of this node new metadata.
    pub(crate) fn update_row(
        &self,
        number: u64,
        metadata: Metadata,
    ) -> Result<Arc<Entry>, DistError> {
        self.check_metadata(&metadata)?;
        self.rewrite(&mut self.state.lock(), number, metadata)
    }

    /// Ends the row `number` of this node.
    pub(crate) fn end_row(&self, number: u64, end: End) {
        self.end(&mut self.state.lock(), number, end);
    }

    /// Checks what a user said.
    fn check(&self, draft: &Draft<'_>) -> Result<(), DistError> {
        let (scope, key) = match draft.space {
            Space::Unique | Space::Shared => ("scope", "key"),
            Space::Group => ("scope", "group"),
            Space::Presence => ("topic", "key"),
        };
        check_scope(scope, draft.scope)?;
        check_key(key, draft.key)?;
        self.check_metadata(&draft.metadata)
    }

    pub(crate) fn check_metadata(&self, metadata: &Metadata) -> Result<(), DistError> {
        let bytes = row::metadata_bytes(metadata);
        let max = self.config.metadata_bytes_max.min(row::METADATA_BYTES_LIMIT);
        if bytes > max { Err(DistError::Metadata { bytes, max }) } else { Ok(()) }
    }

    fn write_new(
        &self,
        state: &mut State,
        draft: &Draft<'_>,
        process: Option<&AnyProcess>,
    ) -> Result<Arc<Entry>, DistError> {
        let (count, max) = (state.directory.own(draft.space), self.config.entries_max);
        if count >= max {
            return Err(DistError::TooMany { count, max });
        }
        let (count, max) = (self.index.len(draft.space), self.config.scopes_max);
        let is_scope = draft.space != Space::Presence;
        if is_scope && count >= max && self.index.get(draft.space, draft.scope).is_none() {
            return Err(DistError::TooManyScopes { count, max });
        }
        if draft.space == Space::Presence {
            let shelf = self.index.get(draft.space, draft.scope);
            let count = shelf.map_or(0, |shelf| shelf.count(draft.key));
            let max = self.config.presences_per_key_max;
            if count >= max {
                return Err(DistError::TooManyOfKey { key: draft.key.to_owned(), count, max });
            }
        }
        let since = self.rows.now()?;
        let number = state.next_row;
        let entry = Entry {
            at: RowKey { owner: self.me.clone(), number },
            space: draft.space,
            scope: Arc::clone(draft.scope),
            key: draft.key.into(),
            process: process.map(AnyProcess::id),
            kind: process.map_or("", AnyProcess::kind).into(),
            metadata: draft.metadata.clone(),
            since,
            version: since,
            local: process.cloned(),
        };
        let entry = self.publish(state, entry)?;
        state.next_row += 1;
        if draft.on_conflict != OnConflict::default() {
            state.on_conflict.insert(number, draft.on_conflict);
        }
        Ok(entry)
    }

    /// Gives the row `number` of this node new metadata.
    fn rewrite(
        &self,
        state: &mut State,
        number: u64,
        metadata: Metadata,
    ) -> Result<Arc<Entry>, DistError> {
        let at = RowKey { owner: self.me.clone(), number };
        let entry = Entry::clone(state.directory.row(&at).expect("bound rows exist"));
        self.publish(state, Entry { metadata, ..entry })
    }

    /// Hands a row of this node to the replica set and shows it.
    fn publish(&self, state: &mut State, entry: Entry) -> Result<Arc<Entry>, DistError> {
        let version = self.rows.put(entry.at.to_bytes(), row::held(&entry), None)?;
        let entry = Arc::new(Entry { version, ..entry });
        let held = Word::Held(Arc::clone(&entry));
        self.step(state, Input::Row(entry.at.clone(), Some(held)));
        Ok(entry)
    }

    /// Ends whatever `process` has under a key; whether there was anything.
    pub(crate) fn remove(
        &self,
        space: Space,
        scope: &Arc<str>,
        key: &str,
        process: ProcessId,
    ) -> bool {
        let mut state = self.state.lock();
        let place = (space, Arc::clone(scope), Arc::from(key));
        let number = state.bound.get(&process).and_then(|bound| bound.rows.get(&place)).copied();
        if let Some(number) = number {
            self.end(&mut state, number, End::Asked);
        }
        number.is_some()
    }

    /// Who of this node has the unique name `key`, or why nobody of this node does.
    fn own_name<'a>(
        &self,
        state: &'a State,
        scope: &str,
        key: &str,
    ) -> Result<&'a Arc<Entry>, DistError> {
        match state.directory.holder(scope, key) {
            None => Err(DistError::Absent(key.to_owned())),
            Some(holder) if holder.at.owner == self.me => Ok(holder),
            Some(holder) => {
                Err(DistError::Elsewhere { key: key.to_owned(), node: holder.at.owner.clone() })
            }
        }
    }

    /// Ends the unique name `key`, if a process of this node has it.
    pub(crate) fn remove_name(&self, scope: &str, key: &str) -> Result<(), DistError> {
        let mut state = self.state.lock();
        let number = self.own_name(&state, scope, key)?.at.number;
        self.end(&mut state, number, End::Asked);
        Ok(())
    }

    /// Changes the metadata of the unique name `key`, if a process of this node has it and its
    /// version is still `expected`.
    pub(crate) fn update_name(
        &self,
        scope: &str,
        key: &str,
        expected: Option<HlcTimestamp>,
        change: impl FnOnce(&Metadata) -> Metadata,
    ) -> Result<Arc<Entry>, DistError> {
        let mut state = self.state.lock();
        let holder = self.own_name(&state, scope, key)?;
        if let Some(expected) = expected.filter(|expected| *expected != holder.version) {
            let (key, is) = (key.to_owned(), holder.version);
            return Err(DistError::Overwritten { key, is, expected });
        }
        let number = holder.at.number;
        let metadata = change(&holder.metadata);
        self.check_metadata(&metadata)?;
        self.rewrite(&mut state, number, metadata)
    }

    /// Ends a row of this node: hidden at once, and told to the others with the reason.
    fn end(&self, state: &mut State, number: u64, end: End) {
        let at = RowKey { owner: self.me.clone(), number };
        let Some(entry) = state.directory.row(&at).cloned() else { return };
        state.on_conflict.remove(&number);
        if let Some(lease) = state.leases.remove(&number) {
            state.sessions.remove(&lease.session);
            state.ends.remove(&(lease.until, number));
        }
        if let Some(process) = entry.process
            && let Some(bound) = state.bound.get_mut(&process)
        {
            bound.rows.remove(&(entry.space, Arc::clone(&entry.scope), Arc::clone(&entry.key)));
            self.unbind_if_idle(state, process);
        }
        self.step(state, Input::Row(at, Some(Word::Ended(end.clone()))));
        self.tell_end(state, number, end);
        if state.owed.contains_key(&number) {
            // So that the retry is on its way. The retry itself wakes nobody: it would never rest.
            self.wake.notify_one();
        }
    }

    /// Tells the others why a row ended; what is refused now is owed, and tried again after a pause.
    fn tell_end(&self, state: &mut State, number: u64, end: End) {
        let at = RowKey { owner: self.me.clone(), number };
        // It ends by itself everywhere: no second message is needed to forget it.
        let told = self.rows.put(at.to_bytes(), row::ended(&end), Some(REASON_KEPT_FOR));
        if let Err(error) = told {
            tracing::warn!(?at, %error, "end of a row is told later");
            state.owed.insert(number, end);
        }
    }

    /// Makes sure that rows of `process` end with it.
    fn bind(&self, process: &AnyProcess) -> Result<(), DistError> {
        let id = process.id();
        {
            let mut state = self.state.lock();
            if state.bound.contains_key(&id) {
                return Ok(());
            }
            state.bound.insert(id, Bound { rows: BTreeMap::new(), watching: None });
        }
        // Not under the lock: of a process that has ended, the end is told within this call.
        let sink = Arc::new(EndsWith(Weak::clone(&self.weak)));
        let watching = process.watch(self.processes.next_monitor(), sink);
        let mut state = self.state.lock();
        let Some(bound) = state.bound.get_mut(&id) else {
            drop(state);
            drop(watching);
            return Err(DistError::NoProcess(id));
        };
        bound.watching = Some(watching);
        Ok(())
    }

    fn unbind_if_idle(&self, state: &mut State, process: ProcessId) {
        // One that is not watched yet is being bound by another task right now.
        let is_idle = |bound: &Bound| bound.rows.is_empty() && bound.watching.is_some();
        if state.bound.get(&process).is_some_and(is_idle) {
            state.bound.remove(&process);
        }
    }

    fn process_ended(&self, process: ProcessId, reason: &ExitReason) {
        let mut state = self.state.lock();
        let Some(bound) = state.bound.remove(&process) else { return };
        let end = if reason.is_normal() { End::Normal } else { End::crashed(reason) };
        for number in bound.rows.into_values() {
            self.end(&mut state, number, end.clone());
        }
    }
}

/// What becomes of inputs.
impl Inner {
    fn step(&self, state: &mut State, input: Input) {
        let mut out = Vec::new();
        state.directory.step(self.clock.now(), input, &mut out);
        for output in out {
            match output {
                Output::Changed(change) => {
                    self.index.apply(&change);
                    let history = match change.entry().space {
                        Space::Unique | Space::Shared => &self.names,
                        Space::Group => &self.groups,
                        Space::Presence => &self.presences,
                    };
                    history.push(self.clock.wall(), change);
                }
                Output::Lost { mine, winner } => self.lose(state, &mine, winner),
                Output::Sweep(at) => {
                    if let Ok(was_there) = self.rows.remove(at.to_bytes()) {
                        if was_there {
                            count(&self.counts.swept);
                        }
                        // What this node does itself it is not told: the next batch would be the
                        // same one again.
                        self.step(state, Input::Row(at, None));
                    }
                }
                Output::Restore(entry) => {
                    count(&self.counts.restored);
                    if let Err(error) = self.publish(state, Entry::clone(&entry)) {
                        // The next comparison with the replica set finds it missing again.
                        tracing::warn!(at = ?entry.at, %error, "row not restored");
                    }
                }
            }
        }
    }

    fn lose(&self, state: &mut State, mine: &Arc<Entry>, winner: Arc<Entry>) {
        if state.directory.row(&mine.at).is_none() {
            return;
        }
        count(&self.counts.conflicts_lost);
        let then = state.on_conflict.get(&mine.at.number).copied().unwrap_or_default();
        self.end(state, mine.at.number, End::Conflict);
        let Some(process) = mine.local.clone() else { return };
        tracing::warn!(key = %mine.key, ?process, winner = ?winner.pid(), "name lost in a conflict");
        let lost = Lost { process, mine: Arc::clone(mine), winner };
        let merge = self.merges.read().get(&mine.scope).cloned();
        tokio::spawn(settle(lost, merge, then, Arc::clone(&self.merging)));
    }

    pub(crate) fn on_conflict(&self, scope: &Arc<str>, merge: Arc<dyn Merge>) {
        self.merges.write().insert(Arc::clone(scope), merge);
    }

    /// Takes in that the replica set holds something else under `key`.
    fn hear(&self, state: &mut State, key: &[u8]) {
        let Some(at) = RowKey::from_bytes(key) else {
            count(&self.counts.malformed);
            return;
        };
        let cell = self.rows.get(key);
        let written = cell.as_ref().and_then(Cell::register);
        if at.owner == self.me {
            // What we wrote we know; what matters is whether somebody removed it.
            if written.is_none() {
                self.step(state, Input::Row(at, None));
            }
            return;
        }
        let Some(written) = written else {
            self.step(state, Input::Row(at, None));
            return;
        };
        if state.directory.version(&at).is_some_and(|version| version >= written.at) {
            return;
        }
        match row::decode(&at, written.at, &written.value) {
            Ok(word) => self.step(state, Input::Row(at, Some(word))),
            Err(error) => {
                count(&self.counts.malformed);
                tracing::debug!(?at, %error, "row of another node not understood");
            }
        }
    }

    fn look(&self, view: &View) {
        let standing = |member: &purlin_cluster::Member| match (member.state, member.why) {
            (Liveness::Alive | Liveness::Suspect, _) => Standing::Present,
            (Liveness::Down, Some(DownWhy::Superseded)) => Standing::Superseded,
            (Liveness::Down, _) => Standing::Down,
            (Liveness::Left, _) => Standing::Left { drained: member.meta.draining },
        };
        let members = view.members.iter().map(|member| (member.id.clone(), standing(member)));
        let members = members.collect();
        self.step(&mut self.state.lock(), Input::Members(members));
    }

    /// Compares everything with the replica set: at the start, and when changes were missed.
    fn compare(&self) {
        count(&self.counts.compared);
        let mut missing = self.state.lock().directory.keys();
        let mut after: Option<Bytes> = None;
        loop {
            let page = self.rows.scan(b"", after.as_deref(), PAGE);
            let mut state = self.state.lock();
            for (key, _) in &page {
                if let Some(at) = RowKey::from_bytes(key) {
                    missing.remove(&at);
                }
                self.hear(&mut state, key);
            }
            match page.last() {
                Some((last, _)) if page.len() == PAGE => after = Some(last.clone()),
                _ => break,
            }
        }
        let mut state = self.state.lock();
        for at in missing {
            self.hear(&mut state, &at.to_bytes());
        }
    }

    fn woke(&self) {
        let mut state = self.state.lock();
        self.step(&mut state, Input::Woke);
        let now = self.clock.now();
        while let Some(&(until, number)) = state.ends.first()
            && until <= now
        {
            self.end(&mut state, number, End::Expired);
        }
        let owed = std::mem::take(&mut state.owed);
        for (number, end) in owed {
            self.tell_end(&mut state, number, end);
        }
    }

    fn pause(&self) -> Duration {
        let now = self.clock.now();
        let state = self.state.lock();
        // At most a second before looking whether anybody is left.
        let mut pause = Duration::from_secs(1);
        if !state.owed.is_empty() {
            pause = RETRY_EVERY;
        }
        let due = |at: Instant| at.saturating_since(now).max(Duration::from_millis(1));
        let lease = state.ends.first().map(|&(until, _)| until);
        let wake = [state.directory.wake_at(), lease].into_iter().flatten().min();
        wake.map_or(pause, |at| pause.min(due(at)))
    }

    /// How many visible entries of a kind each node has.
    pub(crate) fn counts(&self, space: Space) -> BTreeMap<NodeId, usize> {
        let state = self.state.lock();
        let counts = state.directory.counts(space).map(|(node, count)| (node.clone(), count));
        counts.collect()
    }
}

/// A session may have no name: then it is the only one.
fn check_session(session: &str) -> Result<(), DistError> {
    if session.is_empty() { Ok(()) } else { check_scope("session", session) }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Ends the rows of a process with it.
struct EndsWith(Weak<Inner>);

impl DownSink for EndsWith {
    fn down(&self, _monitor: MonitorId, process: &Pid, reason: &ExitReason) {
        if let Some(inner) = self.0.upgrade() {
            inner.process_ended(process.process, reason);
        }
    }
}

/// Lets the user merge two holders of a name, then tells the loser.
async fn settle(
    lost: Lost,
    merge: Option<Arc<dyn Merge>>,
    then: OnConflict,
    merging: Arc<Semaphore>,
) {
    if let Some(merge) = merge {
        let _place = merging.acquire().await;
        // In a task of its own: a panic of the user's is a failed merge, not a lost message.
        let user = merge.merge(lost.clone());
        let mut user = tokio::spawn(user);
        match tokio::time::timeout(MERGE_WITHIN, &mut user).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(key = %lost.mine.key, %error, "merge failed"),
            Err(_late) => {
                user.abort();
                tracing::error!(key = %lost.mine.key, "merge took longer than {MERGE_WITHIN:?}");
            }
        }
    }
    let Lost { process, mine, winner } = lost;
    let reason = match winner.pid() {
        Some(winner) => ExitReason::stopped(format!("name {:?} went to {winner}", mine.key)),
        None => ExitReason::stopped(format!("name {:?} went to another", mine.key)),
    };
    // A process that is ending or overwhelmed is stopped all the same.
    process.send_info(NameLost { mine, winner }).ok();
    match then {
        OnConflict::Stop => process.stop(reason),
        OnConflict::Tell => {}
    }
}

/// Takes in what others wrote and how the members stand. Ends with the last handle.
async fn follow(
    weak: Weak<Inner>,
    mut told: broadcast::Receiver<Told>,
    mut views: purlin_cluster::Watch,
    mut barriers: mpsc::Receiver<oneshot::Sender<()>>,
) {
    let mut keys: BTreeSet<Bytes> = BTreeSet::new();
    loop {
        let pause = {
            let Some(inner) = weak.upgrade() else { return };
            inner.pause()
        };
        let Some(inner) = weak.upgrade() else { return };
        tokio::select! {
            biased;
            // Members first: they are few, and rows are shown by them.
            view = views.changed() => inner.look(&view),
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
                    inner.compare();
                } else {
                    let mut state = inner.state.lock();
                    for key in std::mem::take(&mut keys) {
                        inner.hear(&mut state, &key);
                    }
                }
            }
            // After the changes that came before it.
            Some(done) = barriers.recv() => drop(done.send(())),
            () = inner.wake.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
        inner.woke();
    }
}
