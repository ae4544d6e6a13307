//! The transport of one node: its listener, its peers, its services.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use purlin_core::{
    Clock, ClusterName, Deadline, Incarnation, Instant, NodeId, NodeName, Rng, watch,
};
use tokio::sync::{Semaphore, broadcast};

use crate::{
    backoff::Reconnect,
    channel::{ChannelId, ChannelName, ChannelSpec},
    connection::{Connection, Surroundings},
    datagram::{Datagrams, GossipKeys},
    dial::{self, Contact},
    error::Cause,
    event::PeerEvent,
    fault::Faults,
    frame::ServiceId,
    handshake::{FRAME_BYTES_LEAST, Refusal, RefusalCode, VERSION, VERSION_MIN},
    network::{Accept, Kernel, Network},
    peer::Peer,
    service::Service,
    stats::{ChannelStats, Counters, TransportStats},
    tls::TlsIdentity,
};

/// How a silent peer is told from a quiet one.
///
/// Every connection carries a ping each `interval`; one on which nothing at all was received for
/// `silent_after` is closed with [`Cause::Silent`]. A slow peer still answers pings, so slowness
/// never closes a connection.
#[derive(Debug, Clone, Copy)]
pub struct KeepAlive {
    /// Time between pings. Default 1 s (guess); half a millisecond of work per peer and minute.
    pub interval: Duration,
    /// At least three intervals, so that one lost segment is no verdict. Default 4 s.
    pub silent_after: Duration,
}

impl Default for KeepAlive {
    fn default() -> Self {
        Self { interval: Duration::from_secs(1), silent_after: Duration::from_secs(4) }
    }
}

/// Bounds of a whole transport.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The longest frame payload accepted; longer messages travel as fragments. 16 KiB to 16 MiB,
    /// default 256 KiB: large enough that headers do not matter, small enough to buffer.
    pub frame_bytes_max: u32,
    /// Handshakes in progress at once; more are closed unanswered and counted. Default 256.
    pub handshakes_max: usize,
    /// Peers known at once; more are refused as [`RefusalCode::Busy`]. Default 1024.
    pub peers_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { frame_bytes_max: 256 << 10, handshakes_max: 256, peers_max: 1024 }
    }
}

/// Everything [`Transport::bind`] needs to know.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TransportConfig {
    /// The cluster's name; nodes of another are refused.
    pub cluster: ClusterName,
    /// Who this node is.
    pub node: NodeId,
    /// Where to listen, TCP and UDP alike. Port 0 takes a free one.
    pub bind: SocketAddr,
    /// What to tell others to dial, behind address translation or when `bind` is a wildcard;
    /// `None` for the bound address.
    pub advertise: Option<SocketAddr>,
    /// This node's certificate and its authority.
    pub tls: TlsIdentity,
    /// The keys that seal datagrams.
    pub gossip_keys: GossipKeys,
    /// The channels, [`ChannelSpec::built_in`] first, then the user's own.
    pub channels: Vec<ChannelSpec>,
    /// Bounds.
    pub limits: Limits,
    /// How a silent peer is noticed.
    pub keep_alive: KeepAlive,
    /// How a lost connection is dialled again.
    pub reconnect: Reconnect,
    /// The oldest and newest protocol version to speak. Narrow it only to test upgrades.
    pub versions: (u16, u16),
    /// Where its sockets come from. Default [`Kernel`]; a simulator puts its own here.
    pub network: Arc<dyn Network>,
}

impl TransportConfig {
    /// The defaults for a node.
    #[must_use]
    pub fn new(
        cluster: ClusterName,
        node: NodeId,
        bind: SocketAddr,
        tls: TlsIdentity,
        gossip_keys: GossipKeys,
    ) -> Self {
        Self {
            cluster,
            node,
            bind,
            advertise: None,
            tls,
            gossip_keys,
            channels: ChannelSpec::built_in(),
            limits: Limits::default(),
            keep_alive: KeepAlive::default(),
            reconnect: Reconnect::default(),
            versions: (VERSION_MIN, VERSION),
            network: Arc::new(Kernel),
        }
    }

    fn check(&self) -> Result<(), BindError> {
        let wrong =
            |field: &str, why: String| Err(BindError::Config { field: field.to_owned(), why });
        let frame_max = self.limits.frame_bytes_max;
        if !(FRAME_BYTES_LEAST..=16 << 20).contains(&frame_max) {
            let why = format!("{frame_max} is not {FRAME_BYTES_LEAST} to 16777216");
            return wrong("limits.frame_bytes_max", why);
        }
        if self.keep_alive.silent_after < 3 * self.keep_alive.interval {
            let KeepAlive { interval, silent_after } = self.keep_alive;
            let why = format!("{silent_after:?} is less than three intervals of {interval:?}");
            return wrong("keep_alive.silent_after", why);
        }
        if self.versions.0 > self.versions.1 {
            return wrong("versions", format!("{:?} is an empty range", self.versions));
        }
        if self.channels.len() > 64 {
            let why = format!("{} channels exceed limit 64", self.channels.len());
            return wrong("channels", why);
        }
        let built_in = ChannelSpec::built_in();
        for (at, expected) in built_in.iter().enumerate() {
            if self.channels.get(at).is_none_or(|spec| spec.name != expected.name) {
                let why = format!("number {at} must be `{}`", expected.name);
                return wrong("channels", why);
            }
        }
        for (at, spec) in self.channels.iter().enumerate() {
            let field = |name: &str| format!("channels.{}.{name}", spec.name);
            if self.channels[..at].iter().any(|other| other.name == spec.name) {
                return wrong("channels", format!("`{}` occurs twice", spec.name));
            }
            if !(1..=16).contains(&spec.parallelism) {
                let why = format!("{} is not 1 to 16", spec.parallelism);
                return wrong(&field("parallelism"), why);
            }
            if spec.credit_bytes < 1024 {
                let why = format!("{} is less than 1024", spec.credit_bytes);
                return wrong(&field("credit_bytes"), why);
            }
            let overhead = 16 * (spec.payload_bytes_max / frame_max as usize + 2);
            if spec.payload_bytes_max + overhead > spec.backlog_bytes_max {
                let why = format!(
                    "{} does not fit into a backlog of {}",
                    spec.payload_bytes_max, spec.backlog_bytes_max
                );
                return wrong(&field("payload_bytes_max"), why);
            }
            if u32::try_from(spec.payload_bytes_max).is_err() {
                let why = format!("{} exceeds 4294967295", spec.payload_bytes_max);
                return wrong(&field("payload_bytes_max"), why);
            }
        }
        Ok(())
    }
}

/// Why a transport cannot start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another process listens there. Stop it or choose another port.
    #[error("{addr} is in use by another process")]
    InUse {
        /// The address asked for.
        addr: SocketAddr,
    },
    /// The system refuses the address.
    #[error("cannot listen on {addr}: {error}")]
    Io {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// A setting makes no sense.
    #[error("setting `{field}`: {why}")]
    Config {
        /// Which one.
        field: String,
        /// The value and the bound.
        why: String,
    },
    /// The certificate is for another node than this one.
    #[error("certificate is for {found:?}, this node is `{node}`")]
    Certificate {
        /// The names in the certificate.
        found: Vec<String>,
        /// This node.
        node: NodeName,
    },
    /// The certificate is no longer valid. Issue a new one.
    #[error("certificate of node `{node}` has expired")]
    Expired {
        /// This node.
        node: NodeName,
    },
}

/// Why a node could not be asked who it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot contact {addr}: {cause}")]
pub struct ContactError {
    /// The address.
    pub addr: SocketAddr,
    /// Why.
    pub cause: Cause,
}

/// Why a node cannot be a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddPeerError {
    /// It is this node.
    #[error("{0} is this node")]
    Myself(NodeId),
    /// A later incarnation is known.
    #[error("{peer} is superseded by incarnation {latest}")]
    Superseded {
        /// The node asked for.
        peer: NodeId,
        /// The latest incarnation known.
        latest: Incarnation,
    },
    /// [`Limits::peers_max`] is reached.
    #[error("{peers} peers reach limit {max}")]
    TooMany {
        /// How many there are.
        peers: usize,
        /// The limit.
        max: usize,
    },
    /// The transport is closed.
    #[error("the transport is closed")]
    Closed,
}

/// Decides whether a node may connect; see [`Transport::set_admission`].
pub type Admission = Arc<dyn Fn(&NodeId) -> Result<(), String> + Send + Sync>;

/// One slot per [`ServiceId`].
pub(crate) type Services = Vec<Option<Arc<dyn Service>>>;

pub(crate) fn no_services() -> Arc<Services> {
    static NONE: OnceLock<Arc<Services>> = OnceLock::new();
    Arc::clone(NONE.get_or_init(|| Arc::new(vec![None; 256])))
}

pub(crate) struct Inner {
    config: TransportConfig,
    advertise: SocketAddr,
    local: SocketAddr,
    around: Arc<Surroundings>,
    rng: Mutex<Rng>,
    services: ArcSwap<Services>,
    events: broadcast::Sender<PeerEvent>,
    peers: RwLock<BTreeMap<NodeName, Peer>>,
    /// The latest incarnation seen per name; outlives the peers, so that no old life comes back.
    latest: Mutex<BTreeMap<NodeName, Incarnation>>,
    admission: RwLock<Option<Admission>>,
    next_connection: AtomicU64,
    /// Traffic of connections that ended, per channel.
    retired: Vec<Mutex<ChannelStats>>,
    closing: watch::Sender<bool>,
    is_closed: AtomicBool,
    handshakes: Arc<Semaphore>,
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "transport of {} at {}", self.config.node, self.local)
    }
}

/// A node's side of all its connections. Cheap to clone; closes when the last clone is dropped.
///
/// Not a membership: it connects to whom it is told and to whom dials it, and reports what it
/// sees. Nothing is kept across a restart.
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
    datagrams: Datagrams,
    _close: Arc<CloseOnDrop>,
}

/// A [`Transport`] seen by those it keeps: holding it does not keep the transport open.
#[derive(Debug, Clone)]
pub struct WeakTransport(Weak<Inner>);

impl WeakTransport {
    /// As [`Transport::peers`]; none once the transport is gone.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        let inner = self.0.upgrade();
        inner.map_or_else(Vec::new, |inner| inner.peers.read().values().cloned().collect())
    }
}

struct CloseOnDrop(Arc<Inner>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// At most so many events wait for a reader that is behind; it then hears how many it missed.
const EVENTS_MAX: usize = 4096;

impl Transport {
    /// Listens for streams and datagrams and begins to accept.
    ///
    /// Call it inside a tokio runtime with time, and with IO if the network is [`Kernel`]; its
    /// tasks run there.
    ///
    /// # Errors
    /// [`BindError`], before anything is started.
    pub async fn bind(
        config: TransportConfig,
        clock: Arc<dyn Clock>,
        mut rng: Rng,
    ) -> Result<Self, BindError> {
        config.check()?;
        let node = config.node.name.clone();
        if !config.tls.is_for(&node) {
            return Err(BindError::Certificate { found: config.tls.summary().names, node });
        }
        if config.tls.is_expired(clock.wall()) {
            return Err(BindError::Expired { node });
        }
        let addr = config.bind;
        let listening = config.network.listen(addr).await.map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => BindError::InUse { addr },
            _ => BindError::Io { addr, error },
        })?;
        let local = listening.addr;
        let around = Arc::new(Surroundings {
            clock,
            faults: Faults::new(rng.fork()),
            counters: Counters::default(),
        });
        let datagrams = Datagrams::new(
            &config.cluster,
            config.node.clone(),
            &config.gossip_keys,
            listening.datagrams,
            Arc::clone(&around),
            &mut rng,
        );
        let retired = config
            .channels
            .iter()
            .map(|spec| Mutex::new(ChannelStats::new(spec.name.clone())))
            .collect();
        let inner = Arc::new(Inner {
            advertise: config.advertise.unwrap_or(local),
            local,
            around,
            rng: Mutex::new(rng),
            services: ArcSwap::new(no_services()),
            events: broadcast::Sender::new(EVENTS_MAX),
            peers: RwLock::new(BTreeMap::new()),
            latest: Mutex::new(BTreeMap::new()),
            admission: RwLock::new(None),
            next_connection: AtomicU64::new(1),
            retired,
            closing: watch::Sender::new(false),
            is_closed: AtomicBool::new(false),
            handshakes: Arc::new(Semaphore::new(config.limits.handshakes_max)),
            config,
        });
        inner.spawn(accept_loop(Arc::downgrade(&inner), listening.streams));
        inner.spawn(tick_loop(Arc::downgrade(&inner), inner.config.keep_alive));
        tracing::info!(node = %inner.config.node, %local, "transport listens");
        let close = Arc::new(CloseOnDrop(Arc::clone(&inner)));
        Ok(Self { inner, datagrams, _close: close })
    }

    /// Who this node is.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.inner.config.node
    }

    /// The cluster this node belongs to.
    #[must_use]
    pub fn cluster(&self) -> &ClusterName {
        &self.inner.config.cluster
    }

    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.local
    }

    /// What it tells others to dial.
    #[must_use]
    pub fn advertise(&self) -> SocketAddr {
        self.inner.advertise
    }

    /// The clock it runs on.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.around.clock
    }

    /// The channel called `name`.
    #[must_use]
    pub fn channel(&self, name: &ChannelName) -> Option<ChannelId> {
        let mut numbered = self.inner.config.channels.iter().zip(0..);
        numbered.find(|(spec, _)| spec.name == *name).map(|(_, at)| ChannelId(at))
    }

    /// The largest message of `channel`, if there is such a channel.
    #[must_use]
    pub fn payload_bytes_max(&self, channel: ChannelId) -> Option<usize> {
        Some(self.inner.config.channels.get(channel.index())?.payload_bytes_max)
    }

    /// Asks who listens at `addr`: a TLS connection and a handshake that makes nobody a peer.
    ///
    /// # Errors
    /// [`ContactError`] with the cause, for instance the refusal of a node of another cluster.
    ///
    /// # Cancel safety
    /// Dropping the future closes the connection.
    pub async fn contact(
        &self,
        addr: SocketAddr,
        deadline: Deadline,
    ) -> Result<Contact, ContactError> {
        let remaining = deadline.remaining(self.inner.now()).unwrap_or_default();
        let asked = tokio::time::timeout(remaining, dial::contact(&self.inner, addr));
        let cause = match asked.await {
            Ok(Ok(contact)) => return Ok(contact),
            Ok(Err(cause)) => cause,
            Err(_elapsed) => Cause::Unreachable,
        };
        Err(ContactError { addr, cause })
    }

    /// Makes `node` a peer: its control channel is dialled, and dialled again, until it is
    /// removed. Adding it again only updates its address. A later incarnation replaces an earlier
    /// one, which ends as [`Cause::Superseded`].
    ///
    /// # Errors
    /// [`AddPeerError`].
    pub fn add_peer(&self, node: NodeId, addr: SocketAddr) -> Result<Peer, AddPeerError> {
        self.inner.add_peer(node, addr, true)
    }

    /// Closes all connections to `node`, saying goodbye, and dials it no more. It may still dial
    /// us; refuse it by [`Transport::set_admission`]. Does nothing when it is no peer.
    pub fn remove_peer(&self, node: &NodeId) {
        if let Some(peer) = self.peer(node) {
            self.inner.forget(&peer);
        }
    }

    /// Dials `node` no more, but leaves its connections open until they end: what is under way
    /// still arrives. For a peer that said goodbye.
    pub fn release_peer(&self, node: &NodeId) {
        if let Some(peer) = self.peer(node) {
            peer.release();
        }
    }

    /// The peer with exactly this incarnation.
    #[must_use]
    pub fn peer(&self, node: &NodeId) -> Option<Peer> {
        self.inner.peer(node)
    }

    /// All peers, by name.
    #[must_use]
    pub fn peers(&self) -> Vec<Peer> {
        self.inner.peers.read().values().cloned().collect()
    }

    /// A handle that does not keep the transport open: for services, which the transport keeps.
    #[must_use]
    pub fn downgrade(&self) -> WeakTransport {
        WeakTransport(Arc::downgrade(&self.inner))
    }

    /// What happens to peers from now on. A reader that falls 4096 events behind hears
    /// `Lagged(missed)` and should look at [`Transport::peers`].
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<PeerEvent> {
        self.inner.events.subscribe()
    }

    /// Hands messages for `id` to `service` from now on, replacing who had them before.
    pub fn register(&self, id: ServiceId, service: Arc<dyn Service>) {
        self.inner.services.rcu(|services| {
            let mut services = Services::clone(services);
            services[usize::from(id.0)] = Some(Arc::clone(&service));
            services
        });
    }

    /// Asks `admission` about every node that dials; its reason is sent back and reported. Nodes
    /// already connected stay.
    pub fn set_admission(&self, admission: Admission) {
        *self.inner.admission.write() = Some(admission);
    }

    /// The datagram side of the same port.
    #[must_use]
    pub fn datagrams(&self) -> &Datagrams {
        &self.datagrams
    }

    /// The fault hook.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.inner.around.faults
    }

    /// This node's certificate, for reloading it.
    #[must_use]
    pub fn tls(&self) -> &TlsIdentity {
        &self.inner.config.tls
    }

    /// Counts since start.
    #[must_use]
    pub fn stats(&self) -> TransportStats {
        self.inner.stats()
    }

    /// Closes everything; peers hear a goodbye. Other clones are closed too.
    pub fn close(&self) {
        self.inner.close();
    }
}

async fn accept_loop(inner: Weak<Inner>, mut streams: Box<dyn Accept>) {
    loop {
        let accepted = streams.accept().await;
        let Some(inner) = inner.upgrade() else { return };
        match accepted {
            Ok((stream, addr)) => {
                inner.counters().connections_accepted(1);
                let Ok(permit) = Arc::clone(&inner.handshakes).try_acquire_owned() else {
                    inner.counters().refused(RefusalCode::Busy);
                    continue;
                };
                let shaking = dial::accept(Arc::clone(&inner), stream, addr);
                inner.spawn(async move {
                    shaking.await;
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of file descriptors, say: the node stays up and tries again.
                tracing::warn!(%error, "cannot accept");
                drop(inner);
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Looks at every connection a few times per interval, and publishes traffic once a second.
async fn tick_loop(inner: Weak<Inner>, keep_alive: KeepAlive) {
    let every = (keep_alive.interval / 2).clamp(Duration::from_millis(5), Duration::from_secs(1));
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut published_at = Instant::ZERO;
    loop {
        ticks.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        let now = inner.now();
        let peers: Vec<_> = inner.peers.read().values().cloned().collect();
        for connection in peers.iter().flat_map(Peer::connections) {
            connection.keep_alive(now, keep_alive.interval, keep_alive.silent_after);
        }
        if now - published_at >= Duration::from_secs(1) {
            published_at = now;
            for channel in inner.stats().channels {
                channel.publish();
            }
        }
    }
}

impl Inner {
    pub(crate) fn node(&self) -> &NodeId {
        &self.config.node
    }

    pub(crate) fn config(&self) -> &TransportConfig {
        &self.config
    }

    pub(crate) fn advertise(&self) -> SocketAddr {
        self.advertise
    }

    pub(crate) fn around(&self) -> &Arc<Surroundings> {
        &self.around
    }

    pub(crate) fn counters(&self) -> &Counters {
        &self.around.counters
    }

    pub(crate) fn now(&self) -> Instant {
        self.around.clock.now()
    }

    pub(crate) fn with_rng<T>(&self, draw: impl FnOnce(&mut Rng) -> T) -> T {
        draw(&mut self.rng.lock())
    }

    pub(crate) fn services(&self) -> Arc<Services> {
        self.services.load_full()
    }

    pub(crate) fn next_connection_id(&self) -> u64 {
        self.next_connection.fetch_add(1, Ordering::Relaxed)
    }

    /// Spawns a task that ends with the transport at the latest.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut closing = self.closing.subscribe();
        tokio::spawn(async move {
            tokio::select! {
                biased;
                () = task => {}
                _closed = closing.wait_for(|closed| *closed) => {}
            }
        });
    }

    pub(crate) fn tell(&self, event: PeerEvent) {
        // Nobody has to listen.
        drop(self.events.send(event));
    }

    pub(crate) fn on_refusal(
        &self,
        addr: SocketAddr,
        peer: Option<NodeId>,
        by_us: bool,
        refusal: &Refusal,
    ) {
        self.counters().refused(refusal.code);
        tracing::warn!(%addr, ?peer, by_us, reason = %refusal, "handshake refused");
        self.tell(PeerEvent::HandshakeRefused { addr, peer, by_us, reason: refusal.clone() });
    }

    pub(crate) fn peer(&self, node: &NodeId) -> Option<Peer> {
        let peers = self.peers.read();
        peers.get(&node.name).filter(|peer| peer.node() == node).cloned()
    }

    pub(crate) fn latest_incarnation(&self, name: &NodeName) -> Option<Incarnation> {
        self.latest.lock().get(name).copied()
    }

    pub(crate) fn admit(&self, node: &NodeId) -> Result<(), Refusal> {
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(Refusal::new(RefusalCode::Closing, "this node is closing"));
        }
        let admission = self.admission.read().clone();
        match admission {
            Some(admission) => {
                admission(node).map_err(|reason| Refusal::new(RefusalCode::NotAdmitted, reason))
            }
            None => Ok(()),
        }
    }

    pub(crate) fn peer_that_dialled(
        self: &Arc<Self>,
        node: &NodeId,
        advertise: SocketAddr,
    ) -> Result<Peer, Refusal> {
        if let Some(peer) = self.peer(node) {
            return Ok(peer);
        }
        self.add_peer(node.clone(), advertise, false).map_err(|error| {
            let code = match error {
                AddPeerError::Superseded { .. } => RefusalCode::Superseded,
                AddPeerError::Myself(_) => RefusalCode::WrongNode,
                AddPeerError::TooMany { .. } => RefusalCode::Busy,
                AddPeerError::Closed => RefusalCode::Closing,
            };
            Refusal::new(code, error.to_string())
        })
    }

    fn add_peer(
        self: &Arc<Self>,
        node: NodeId,
        addr: SocketAddr,
        is_added: bool,
    ) -> Result<Peer, AddPeerError> {
        if node.name == self.config.node.name {
            return Err(AddPeerError::Myself(node));
        }
        if self.is_closed.load(Ordering::Relaxed) {
            return Err(AddPeerError::Closed);
        }
        self.note_incarnation(&node)?;
        let (peer, superseded) = {
            let mut peers = self.peers.write();
            let known = peers.get(&node.name).cloned();
            if let Some(peer) = known.as_ref().filter(|peer| *peer.node() == node) {
                if is_added {
                    peer.add(addr);
                }
                return Ok(peer.clone());
            }
            let max = self.config.limits.peers_max;
            if known.is_none() && peers.len() >= max {
                return Err(AddPeerError::TooMany { peers: peers.len(), max });
            }
            let peer = Peer::new(self, node.clone(), addr, is_added);
            peers.insert(node.name.clone(), peer.clone());
            (peer, known)
        };
        if let Some(old) = superseded {
            old.remove(&Cause::Superseded);
        }
        self.spawn(dial::maintain(peer.clone()));
        Ok(peer)
    }

    fn note_incarnation(&self, node: &NodeId) -> Result<(), AddPeerError> {
        let mut latest = self.latest.lock();
        if let Some(&latest) = latest.get(&node.name)
            && latest > node.incarnation
        {
            return Err(AddPeerError::Superseded { peer: node.clone(), latest });
        }
        // Names are bounded by the certificates issued; still, a bound is a bound.
        if latest.len() >= 16 * self.config.limits.peers_max && !latest.contains_key(&node.name) {
            latest.pop_first();
        }
        latest.insert(node.name.clone(), node.incarnation);
        Ok(())
    }

    pub(crate) fn forget(&self, peer: &Peer) {
        {
            let mut peers = self.peers.write();
            if peers.get(peer.name()).is_some_and(|known| known.node() == peer.node()) {
                peers.remove(peer.name());
            }
        }
        peer.remove(&Cause::Closed);
    }

    pub(crate) fn retire(&self, connection: &Connection) {
        let mut total = self.retired[connection.channel.index()].lock();
        add_traffic(&mut total, connection);
    }

    fn stats(&self) -> TransportStats {
        let mut stats = self.counters().snapshot();
        stats.channels = self.retired.iter().map(|total| total.lock().clone()).collect();
        let peers: Vec<_> = self.peers.read().values().cloned().collect();
        for connection in peers.iter().flat_map(Peer::connections) {
            let channel = &mut stats.channels[connection.channel.index()];
            add_traffic(channel, &connection);
            if connection.is_open() {
                let (backlog, credit) = connection.backlog_and_credit();
                channel.connections += 1;
                channel.backlog_bytes += backlog;
                channel.credit_bytes += credit;
            }
        }
        stats
    }

    fn close(&self) {
        if self.is_closed.swap(true, Ordering::AcqRel) {
            return;
        }
        let peers = std::mem::take(&mut *self.peers.write());
        for peer in peers.values() {
            peer.remove(&Cause::Closed);
        }
        self.services.store(no_services());
        self.closing.send_replace(true);
        tracing::info!(node = %self.config.node, "transport closed");
    }
}

fn add_traffic(total: &mut ChannelStats, connection: &Connection) {
    let sent = connection.sent();
    total.frames_sent += sent.frames;
    total.bytes_sent += sent.bytes;
    total.full += sent.full;
    total.frames_received += connection.received_frames.load(Ordering::Relaxed);
    total.bytes_received += connection.received_bytes.load(Ordering::Relaxed);
}
