//! All caches of a node: opening them, serving other nodes, following the members.

use std::{
    collections::BTreeMap,
    fmt,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use purlin_cluster::{
    Cluster, DrainHook, MemberCallError, MembersRpc, Selector, Stage, View, Watch, Why,
};
use purlin_core::{Clock, Deadline, Hlc, HlcTimestamp, Instant, NodeId, NodeName, Rng};
use purlin_net::rpc::{Rejection, ServeError};
use purlin_replica::ReplicaSet;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::Notify;

use crate::{
    cache::{Cache, Core, Place, RawCache},
    config::{CacheConfig, Kind, NAME_BYTES_MAX},
    copies::Copies,
    error::CacheError,
    near::Neighbours,
    partitioned,
    placement::{Host, Placement},
    replicated,
    stats::CacheStats,
    store::Store,
    wire::{self, Spec},
};

/// The most caches of one node.
pub const CACHES_MAX: usize = 1_024;

/// How long a look at the members may be old when nothing seems to happen.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// All caches of a node. Cheap to clone.
#[derive(Clone)]
pub struct Caches {
    inner: Arc<Inner>,
}

impl fmt::Debug for Caches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.inner.open.read().keys()).finish()
    }
}

pub(crate) struct Inner {
    me: NodeId,
    /// `None` on a node that stands alone.
    peers: Option<Peers>,
    pub(crate) hlc: Arc<Hlc>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rng: Mutex<Rng>,
    placement: RwLock<Placement>,
    /// The epoch of the view behind `placement`, plus one.
    looked: AtomicU64,
    pub(crate) neighbours: Neighbours,
    /// Rings whenever the members that hold entries are others.
    pub(crate) rehoused: Notify,
    pub(crate) open: RwLock<BTreeMap<String, Arc<Core>>>,
}

/// The other members, and what is shared with them.
pub(crate) struct Peers {
    pub(crate) cluster: Cluster,
    pub(crate) rpc: MembersRpc,
    pub(crate) state: ReplicaSet,
}

impl Caches {
    /// Caches of a node without a cluster: every kind is kept here, so that the same program runs
    /// later among others.
    #[must_use]
    pub fn on_one_node(me: NodeId, hlc: Arc<Hlc>, clock: Arc<dyn Clock>, rng: Rng) -> Self {
        let alone = Host { node: me.clone(), zone: None };
        let inner = Inner::new(me, None, hlc, clock, rng);
        inner.placement.write().hosts(vec![alone], inner.now());
        inner.neighbours.members(std::iter::empty(), inner.now());
        Self { inner: Arc::new(inner) }
    }

    /// Caches among the members of `cluster`. `state` is a replica set of their own, for
    /// replicated caches. Once per node, before it is told to others; inside its runtime.
    ///
    /// # Errors
    /// [`ServeError`] when this was done before on the same `rpc`.
    pub fn start(
        cluster: Cluster,
        rpc: MembersRpc,
        state: ReplicaSet,
        hlc: Arc<Hlc>,
        clock: Arc<dyn Clock>,
        rng: Rng,
    ) -> Result<Self, ServeError> {
        let me = cluster.node().clone();
        // Before the first look: what changes between the two would never be heard of.
        let (views, changes) = (cluster.watch(), state.watch());
        let peers = Peers { cluster: cluster.clone(), rpc: rpc.clone(), state };
        let inner = Arc::new(Inner::new(me, Some(peers), hlc, clock, rng));
        inner.look(&cluster.view());
        serve(&inner, &rpc)?;
        cluster.on_drain(Arc::new(HandOver(Arc::downgrade(&inner))));
        cluster.on_drain(Arc::new(Farewell(Arc::downgrade(&inner))));
        tokio::spawn(follow_members(Arc::downgrade(&inner), views));
        tokio::spawn(partitioned::keep_in_place(Arc::downgrade(&inner)));
        tokio::spawn(crate::near::keep_asking(Arc::downgrade(&inner)));
        tokio::spawn(replicated::follow(Arc::downgrade(&inner), changes));
        Ok(Self { inner })
    }

    /// The cache `name`, with values of type `V`; opened now if it is not open yet.
    ///
    /// Values travel and are kept as JSON, so that a release that adds a field reads what the one
    /// before wrote, and other languages read them over HTTP.
    ///
    /// # Errors
    /// [`CacheError::Differs`] when it is open with another configuration,
    /// [`CacheError::Config`], [`CacheError::Name`] or [`CacheError::TooManyCaches`].
    pub fn open<V: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        config: CacheConfig,
    ) -> Result<Cache<V>, CacheError> {
        Ok(self.open_raw(name, config)?.typed())
    }

    /// As [`Caches::open`], with bytes for values.
    ///
    /// # Errors
    /// As [`Caches::open`].
    pub fn open_raw(&self, name: &str, config: CacheConfig) -> Result<RawCache, CacheError> {
        let core = self.inner.open(name, config, true)?;
        Ok(RawCache::new(Arc::clone(&self.inner), core))
    }

    /// The cache `name` if it is open here: by this program, or because another node keeps
    /// entries of it here.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<RawCache> {
        let core = self.inner.open.read().get(name).cloned()?;
        Some(RawCache::new(Arc::clone(&self.inner), core))
    }

    /// The cache `name` as [`Caches::get`]; if it is not open here, a way to what other nodes hold
    /// of it, if it is partitioned. Opens nothing here.
    ///
    /// # Errors
    /// [`CacheError::Name`].
    pub fn look_up(&self, name: &str) -> Result<RawCache, CacheError> {
        if let Some(cache) = self.get(name) {
            return Ok(cache);
        }
        check_name(name)?;
        let config = CacheConfig::partitioned();
        let core = self.inner.core(name, config, false);
        Ok(RawCache::new(Arc::clone(&self.inner), Arc::new(core)))
    }

    /// Who may hold entries, as this node sees it: the reachable members that do not leave.
    #[must_use]
    pub fn hosts(&self) -> Vec<NodeId> {
        self.inner.placement().present().map(|host| host.node.clone()).collect()
    }

    /// All caches open here, by name.
    #[must_use]
    pub fn stats(&self) -> Vec<CacheStats> {
        stats_of(&self.inner)
    }

    /// All caches of all members that answer `within`, this node's included, by node.
    pub async fn stats_everywhere(
        &self,
        within: Duration,
    ) -> Vec<(NodeId, Result<Vec<CacheStats>, MemberCallError>)> {
        let mut all = vec![(self.inner.me().clone(), Ok(self.stats()))];
        if let Some(peers) = self.inner.peers() {
            let reachable = Selector::all();
            all.extend(peers.rpc.multi_call(&reachable, wire::STATS, &(), within).await);
        }
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    /// Publishes the counts of all caches as metrics; call it now and then, for instance at every
    /// scrape.
    pub fn publish_metrics(&self) {
        for stats in self.stats() {
            stats.publish();
        }
    }
}

impl Inner {
    fn new(
        me: NodeId,
        peers: Option<Peers>,
        hlc: Arc<Hlc>,
        clock: Arc<dyn Clock>,
        rng: Rng,
    ) -> Self {
        Self {
            placement: RwLock::new(Placement::new(me.name.clone(), clock.now())),
            looked: AtomicU64::new(0),
            neighbours: Neighbours::new(me.incarnation.0),
            rehoused: Notify::new(),
            open: RwLock::new(BTreeMap::new()),
            rng: Mutex::new(rng),
            me,
            peers,
            hlc,
            clock,
        }
    }

    pub(crate) fn me(&self) -> &NodeId {
        &self.me
    }

    /// The other members, if this node has any.
    pub(crate) fn peers(&self) -> Option<&Peers> {
        self.peers.as_ref()
    }

    /// Calls to the other members.
    pub(crate) fn rpc(&self) -> &MembersRpc {
        &self.peers.as_ref().expect("a node alone places and tells nothing elsewhere").rpc
    }

    /// The set of replicated caches.
    pub(crate) fn state(&self) -> &ReplicaSet {
        &self.peers.as_ref().expect("a node alone keeps replicated caches in a store").state
    }

    fn is_draining(&self) -> bool {
        self.peers.as_ref().is_some_and(|peers| peers.cluster.is_draining())
    }

    pub(crate) fn now(&self) -> Instant {
        self.clock.now()
    }

    pub(crate) fn stamp(&self) -> Result<HlcTimestamp, CacheError> {
        Ok(self.hlc.now(self.clock.wall())?)
    }

    /// Opens `name`. `is_ours` is whether this program asked; what another node opened here has
    /// only the settings that matter for holding entries, so our own may complete them.
    fn open(
        &self,
        name: &str,
        config: CacheConfig,
        is_ours: bool,
    ) -> Result<Arc<Core>, CacheError> {
        check_name(name)?;
        config.check()?;
        let mut open = self.open.write();
        if let Some(core) = open.get(name) {
            let there = core.config.read();
            if !is_ours || *there == config {
                drop(there);
                return Ok(Arc::clone(core));
            }
            let holds_alike = there.kind == config.kind
                && Spec::of(name, &there) == Spec::of(name, &config)
                && there.ttl.is_none();
            drop(there);
            if !holds_alike || core.is_ours.load(Ordering::Relaxed) {
                return Err(CacheError::Differs(name.to_owned()));
            }
            core.is_ours.store(true, Ordering::Relaxed);
            self.prepare_copies(core, &config);
            *core.config.write() = config;
            return Ok(Arc::clone(core));
        }
        if open.len() >= CACHES_MAX {
            return Err(CacheError::TooManyCaches { caches: open.len(), max: CACHES_MAX });
        }
        if config.kind == Kind::Near {
            self.neighbours.lease(config.lease);
        }
        let core = Arc::new(self.core(name, config.clone(), is_ours));
        self.prepare_copies(&core, &config);
        open.insert(name.to_owned(), Arc::clone(&core));
        Ok(core)
    }

    fn core(&self, name: &str, config: CacheConfig, is_ours: bool) -> Core {
        let counts = Arc::default();
        let place = match (config.kind, &self.peers) {
            (Kind::Replicated, Some(peers)) => {
                Place::Replicated(replicated::Index::of(name, &peers.state))
            }
            (Kind::Local | Kind::Near | Kind::Partitioned | Kind::Replicated, _) => Place::Store(
                Store::new(config.bytes_max, Arc::clone(&self.clock), Arc::clone(&counts)),
            ),
        };
        Core::new(name, config, counts, place, is_ours)
    }

    fn prepare_copies(&self, core: &Core, config: &CacheConfig) {
        if config.has_copies() {
            self.neighbours.lease(config.lease);
            core.is_copied.store(true, Ordering::Relaxed);
            core.copies.get_or_init(|| {
                let (clock, counts) = (Arc::clone(&self.clock), Arc::clone(&core.counts));
                Copies::new(Store::new(config.near_bytes_max, clock, counts))
            });
        }
    }

    /// The partitioned cache another node asks for, if it is open here.
    fn asked_for(self: &Arc<Self>, spec: &Spec) -> Option<RawCache> {
        let core = self.open.read().get(&spec.name).cloned()?;
        let cache = RawCache::new(Arc::clone(self), core);
        cache.heard_of_copies(spec);
        (cache.kind() == Kind::Partitioned).then_some(cache)
    }

    /// The partitioned cache another node means; opened now if it is not open yet.
    fn meant(self: &Arc<Self>, spec: &Spec) -> Result<RawCache, Rejection> {
        let core = self
            .open(&spec.name, spec.to_config(), false)
            .map_err(|error| Rejection::here(error.to_string()))?;
        if core.config.read().kind != Kind::Partitioned {
            return Err(Rejection::here(format!("cache {} is not partitioned here", spec.name)));
        }
        let cache = RawCache::new(Arc::clone(self), core);
        cache.heard_of_copies(spec);
        Ok(cache)
    }

    /// Takes in who the members are now.
    fn look(&self, view: &View) {
        let mut placement = self.placement.write();
        let seen = view.epoch.0 + 1;
        // Of two who look at once the later view holds.
        if self.looked.load(Ordering::Relaxed) > seen {
            return;
        }
        let hosts = view.members.iter().filter(|m| m.is_reachable() && !m.meta.draining);
        let hosts = hosts.map(|m| Host { node: m.id.clone(), zone: m.meta.zone.clone() }).collect();
        let is_rehoused = placement.hosts(hosts, self.now());
        // A silent member may be writing on its side of a cut; one whose address refuses
        // connections is no more.
        let writers = view.members.iter().filter(|m| {
            m.id != *self.me()
                && (m.is_reachable()
                    || (m.state == purlin_cluster::State::Down && m.why == Some(Why::Silent)))
        });
        self.neighbours.members(writers.map(|m| m.id.clone()), self.now());
        self.looked.store(seen, Ordering::Release);
        drop(placement);
        if is_rehoused {
            self.rehoused.notify_waiters();
        }
    }

    /// Everything here is where it belongs, as of the `turn` of the members.
    pub(crate) fn settle(&self, turn: u64) {
        self.placement.write().settle(turn);
    }

    /// Who holds what, by the latest view: an operation that begins after this node has learnt of
    /// a member asks that member, whatever task has run meanwhile.
    pub(crate) fn placement(&self) -> RwLockReadGuard<'_, Placement> {
        if let Some(peers) = &self.peers {
            let view = peers.cluster.view();
            if self.looked.load(Ordering::Acquire) != view.epoch.0 + 1 {
                self.look(&view);
            }
        }
        self.placement.read()
    }

    /// A timestamp from elsewhere: later ones here are later than it.
    pub(crate) fn observe(&self, version: HlcTimestamp) -> Result<(), Rejection> {
        self.hlc
            .observe(version, self.clock.wall())
            .map(drop)
            .map_err(|error| Rejection::here(error.to_string()))
    }

    pub(crate) fn zone_of(&self, view: &View, name: &NodeName) -> Option<String> {
        view.get(name).and_then(|member| member.meta.zone.clone())
    }
}

fn stats_of(inner: &Inner) -> Vec<CacheStats> {
    inner.open.read().values().map(|core| core.stats()).collect()
}

fn check_name(name: &str) -> Result<(), CacheError> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(fits) {
        return Err(CacheError::Name(name.to_owned()));
    }
    Ok(())
}

fn serve(inner: &Arc<Inner>, rpc: &MembersRpc) -> Result<(), ServeError> {
    let gone = || Rejection::here("this node has ended");
    let weak = Arc::downgrade(inner);
    let upgrade = move || Weak::upgrade(&weak).ok_or_else(gone);
    let node = upgrade.clone();
    rpc.serve(wire::GET, move |_, (spec, key)| {
        let found = node().map(|node| node.asked_for(&spec)?.held_here(&key));
        std::future::ready(found)
    })?;
    let node = upgrade.clone();
    rpc.serve(wire::STORE, move |_, (spec, entries, how)| {
        let stored = node().and_then(|node| {
            if node.is_draining() {
                return Err(Rejection::here("this node is being drained"));
            }
            partitioned::take_in(&node.meant(&spec)?, entries, how)
        });
        std::future::ready(stored)
    })?;
    let node = upgrade.clone();
    rpc.serve(wire::OFFER, move |_, (spec, offered)| {
        let wanted = node().and_then(|node| Ok(partitioned::wanted(&node.meant(&spec)?, &offered)));
        std::future::ready(wanted)
    })?;
    let node = upgrade.clone();
    rpc.serve(wire::CHANGE, move |_, (spec, key, change)| {
        let cache = node().and_then(|node| {
            if node.is_draining() {
                return Err(Rejection::here("this node is being drained"));
            }
            node.meant(&spec)
        });
        async move { partitioned::change_asked(cache?, key, change).await }
    })?;
    let node = upgrade.clone();
    rpc.serve(wire::CLEAR, move |_, (spec, version)| {
        let cleared = node().and_then(|node| {
            node.observe(version)?;
            match node.asked_for(&spec) {
                Some(cache) => {
                    cache.clear_here().map_err(|error| Rejection::here(error.to_string()))
                }
                None => Ok(()),
            }
        });
        std::future::ready(cleared)
    })?;
    let node = upgrade.clone();
    rpc.serve(wire::STATS, move |_, ()| {
        let stats = node().map(|node| stats_of(&node));
        std::future::ready(stats)
    })?;
    let node = upgrade.clone();
    rpc.serve(wire::MISSED, move |context, question| {
        let told = node().map(|node| node.neighbours.asked(context.from, question, node.now()));
        std::future::ready(told)
    })?;
    let node = upgrade;
    rpc.serve(wire::TOLD, move |context, told| {
        let taken = node().map(|node| node.told(&context.from, told));
        std::future::ready(taken)
    })
}

async fn follow_members(inner: Weak<Inner>, mut watch: Watch) {
    loop {
        let changed = tokio::time::timeout(LOOK_EVERY, watch.changed()).await;
        let Some(inner) = inner.upgrade() else { return };
        if let Ok(view) = changed {
            inner.look(&view);
        }
    }
}

/// Gives the entries of partitioned caches to those who hold them from now on.
struct HandOver(Weak<Inner>);

impl DrainHook for HandOver {
    fn name(&self) -> &str {
        "cache entries"
    }

    fn stage(&self) -> Stage {
        Stage::HandOff
    }

    fn run(
        &self,
        deadline: Deadline,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async move {
            let Some(inner) = self.0.upgrade() else { return Ok(()) };
            if let Some(peers) = inner.peers() {
                inner.look(&peers.cluster.view());
            }
            partitioned::hand_over(&inner, deadline).await
        })
    }
}

/// Lets the others hear everything this node wrote to near caches before it goes.
struct Farewell(Weak<Inner>);

impl DrainHook for Farewell {
    fn name(&self) -> &str {
        "near caches"
    }

    fn stage(&self) -> Stage {
        Stage::HandOff
    }

    fn run(
        &self,
        deadline: Deadline,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async move {
            let Some(inner) = self.0.upgrade() else { return Ok(()) };
            crate::near::say_farewell(&inner, deadline).await
        })
    }
}
