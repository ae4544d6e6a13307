//! A node of a cluster: its parts, and how it ends.

use std::{
    fmt, io,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use purlin_cache::{Cache, CacheConfig, CacheError, Caches};
use purlin_cluster::{Cluster, DrainProgress, MembersRpc, Remote};
use purlin_core::{Clock, Hlc, Instant, NodeId, watch};
use purlin_dist::{
    Dist, Groups, Presence, Registry,
    singleton::Singleton,
    supervisor::{Supervisor, SupervisorError, Supervisors},
};
use purlin_net::Transport;
use purlin_process::Processes;
use purlin_pubsub::PubSub;
use purlin_replica::{Flags, ReplicaSet};
use serde::{Serialize, de::DeserializeOwned};

use crate::{Config, DataDir, NodeBuilder};

/// How long processes may take to end once the node has left: by then nobody waits for them.
const PROCESSES_END_WITHIN: Duration = Duration::from_secs(5);

/// Signals this close together are one request: `timeout` and some supervisors signal a process
/// and then its whole group, and nobody presses Ctrl-C twice as fast.
const ONE_REQUEST: Duration = Duration::from_millis(250);

/// A node of a cluster. Clones are the same node.
///
/// The accessors are the rungs of one ladder; each says which guarantee it gives. A node that is
/// dropped without [`drain`](Node::drain) or [`shutdown`](Node::shutdown) looks to the others as
/// if it had crashed. Kept across a restart: the incarnation, when there is a data dir.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use purlin::{DevAuthority, Node};
///
/// let authority = DevAuthority::new()?;
/// let n1 = Node::builder().name("n1").dev(&authority).start().await?;
/// let n2 = Node::builder().name("n2").dev(&authority).join([n1.cluster_addr()]).start().await?;
/// n1.cluster().wait_for_members(2, Duration::from_secs(10)).await?;
/// # n2.shutdown().await; n1.shutdown().await;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

/// What a node is made of.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) config: Config,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) transport: Transport,
    pub(crate) rpc: MembersRpc,
    pub(crate) processes: Processes,
    pub(crate) remote: Remote,
    pub(crate) cluster: Cluster,
    pub(crate) pubsub: PubSub,
    pub(crate) hlc: Arc<Hlc>,
    pub(crate) state: State,
    pub(crate) caches: Caches,
    pub(crate) dist: Dist,
    pub(crate) supervisors: Supervisors,
    #[cfg(unix)]
    pub(crate) programs: purlin_dist::exec::Programs,
    // Held for its lock.
    pub(crate) _data: Option<Arc<DataDir>>,
}

/// The replica sets every node has.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) crdt: ReplicaSet,
    pub(crate) ephemeral: ReplicaSet,
    pub(crate) flags: Flags,
}

struct Inner {
    parts: Parts,
    started: Instant,
    /// Filled by the first drain; later ones wait for the same end.
    ending: OnceLock<watch::Receiver<Option<DrainProgress>>>,
    stopped: watch::Sender<bool>,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} at {}", self.id(), self.cluster_addr())
    }
}

/// Why [`Node::until_signal`] returned.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stop {
    /// The node has drained and left.
    Drained,
    /// A second signal came before the drain was over; what was accepted may be lost.
    AtOnce,
    /// A later process took this node's name; this one has been declared over.
    Superseded,
}

impl Node {
    /// Starts collecting what a node needs.
    #[must_use]
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    pub(crate) fn assemble(parts: Parts) -> Self {
        let started = parts.clock.now();
        let inner =
            Inner { parts, started, ending: OnceLock::new(), stopped: watch::Sender::new(false) };
        Self { inner: Arc::new(inner) }
    }

    /// Who this is.
    #[must_use]
    pub fn id(&self) -> &NodeId {
        self.inner.parts.transport.node()
    }

    /// What it was started from.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.inner.parts.config
    }

    /// Where other nodes reach it.
    #[must_use]
    pub fn cluster_addr(&self) -> SocketAddr {
        self.inner.parts.transport.advertise()
    }

    /// How long it has been running.
    #[must_use]
    pub fn uptime(&self) -> Duration {
        self.inner.parts.clock.now().saturating_since(self.inner.started)
    }

    /// The clock everything in this node goes by.
    #[must_use]
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.parts.clock
    }

    /// Level 0: processes, supervisors, the local registry, timers. Guarantee: local.
    #[must_use]
    pub fn processes(&self) -> &Processes {
        &self.inner.parts.processes
    }

    /// Level 1: who is in the cluster, as this node sees it. Guarantee: each side of a cut goes
    /// on with the members it sees.
    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.inner.parts.cluster
    }

    /// Level 1: named calls between members. Guarantee: at most once; three outcomes.
    #[must_use]
    pub fn rpc(&self) -> &MembersRpc {
        &self.inner.parts.rpc
    }

    /// Level 1: processes of other members, as if they were here. Guarantee: at most once; three
    /// outcomes; an earlier life of a process is told apart from none.
    ///
    /// [`Remote::whereis`] finds one by its name on a member; what it returns turns into the handle
    /// that `#[purlin::server]` wrote.
    #[must_use]
    pub fn remote(&self) -> &Remote {
        &self.inner.parts.remote
    }

    /// Level 1: publish and subscribe. Guarantee: at most once, ordered per publisher while
    /// connected.
    #[must_use]
    pub fn pubsub(&self) -> &PubSub {
        &self.inner.parts.pubsub
    }

    /// Level 2: names of processes, known on every node. Guarantee: eventual, a writer reads what it
    /// wrote; of two holders of one name the later keeps it.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        self.dist().registry()
    }

    /// Level 2: groups of processes, known on every node. Guarantee: eventual, a writer reads what
    /// it wrote.
    #[must_use]
    pub fn groups(&self) -> &Groups {
        self.dist().groups()
    }

    /// Level 2: who is present in which topic, known on every node. Guarantee: eventual, a writer
    /// reads what it wrote; what a dead node held goes with the verdict about it.
    #[must_use]
    pub fn presence(&self) -> &Presence {
        self.dist().presence()
    }

    /// Level 2: the supervisor `name`: children that run once in the cluster, on whichever node, and
    /// survive the one they are on. Guarantee: each side of a cut goes on as its split policy says;
    /// after the heal one copy of each child stays. Records are kept across a restart when there is
    /// a data dir.
    ///
    /// # Errors
    /// [`SupervisorError`] for a name out of bounds, and for one supervisor too many.
    pub fn supervisor(&self, name: &str) -> Result<Supervisor, SupervisorError> {
        self.supervisors().get(name)
    }

    /// Level 2: programs of the operating system that run somewhere in the cluster. Guarantee: at least
    /// one; two at once on the sides of a cut, told apart by `PURLIN_FENCE`.
    #[cfg(unix)]
    #[must_use]
    pub fn programs(&self) -> &purlin_dist::exec::Programs {
        &self.inner.parts.programs
    }

    /// Level 2: the singleton `name`: work that runs on one node at a time. Guarantee: eventual, as
    /// of a supervisor's child; fenced by leases ([`Singleton::fenced`]) at most one at any moment.
    ///
    /// # Errors
    /// [`SupervisorError`] for a name out of bounds.
    pub fn singleton(&self, name: &str) -> Result<Singleton, SupervisorError> {
        Singleton::new(self.supervisors(), name)
    }

    /// Level 2: all supervisors that this node knows of.
    #[must_use]
    pub fn supervisors(&self) -> &Supervisors {
        &self.inner.parts.supervisors
    }

    /// Level 2: what names, groups and presences stand on, and its counts.
    #[must_use]
    pub fn dist(&self) -> &Dist {
        &self.inner.parts.dist
    }

    /// Level 4: named state that every side of a cut may write. Guarantee: strong eventual
    /// consistency, nothing lost that nobody removed knowingly; kept across a restart when there is
    /// a data dir.
    ///
    /// A name holds one kind, and the method that writes it first says which:
    ///
    /// | | methods of [`ReplicaSet`] |
    /// |---|---|
    /// | counters | [`add`](ReplicaSet::add), [`grow`](ReplicaSet::grow), [`add_resettable`](ReplicaSet::add_resettable) and [`reset`](ReplicaSet::reset) |
    /// | sets | [`set`](ReplicaSet::set), [`grow_set`](ReplicaSet::grow_set), [`remove_wins_set`](ReplicaSet::remove_wins_set) |
    /// | maps | [`map`](ReplicaSet::map); maps in maps: [`put_at`](ReplicaSet::put_at) |
    /// | registers | [`put`](ReplicaSet::put); every concurrent value: [`set_value`](ReplicaSet::set_value) |
    /// | switches | [`switch`](ReplicaSet::switch) |
    /// | text | [`insert_text`](ReplicaSet::insert_text), [`replace_text`](ReplicaSet::replace_text) |
    /// | all | [`get`](ReplicaSet::get), [`remove`](ReplicaSet::remove), [`watch`](ReplicaSet::watch): changes in order, each with what was before and where it came from |
    #[must_use]
    pub fn crdt(&self) -> &ReplicaSet {
        &self.inner.parts.state.crdt
    }

    /// Level 4: small values that are everywhere and may end by themselves. Guarantee: as
    /// [`Node::crdt`], but in memory only; of two concurrent writes the later by hybrid time holds.
    #[must_use]
    pub fn ephemeral(&self) -> &ReplicaSet {
        &self.inner.parts.state.ephemeral
    }

    /// Level 4: feature flags, evaluated locally. Guarantee: as [`Node::crdt`], durability included.
    #[must_use]
    pub fn flags(&self) -> &Flags {
        &self.inner.parts.state.flags
    }

    /// Level 4: the cache `name` with values of type `V`, opened now if it is not open yet. See
    /// [`Caches::open`]. Guarantee: it may forget at any time; how stale it may be is stated by
    /// its [`Kind`](purlin_cache::Kind). What others hold survives a restart by drain.
    ///
    /// # Errors
    /// As [`Caches::open`].
    pub fn cache<V: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        config: CacheConfig,
    ) -> Result<Cache<V>, CacheError> {
        self.caches().open(name, config)
    }

    /// Level 4: all caches of this node, those included that others opened here.
    #[must_use]
    pub fn caches(&self) -> &Caches {
        &self.inner.parts.caches
    }

    /// The node's hybrid logical clock; with a data dir no timestamp is ever issued twice.
    #[must_use]
    pub fn hlc(&self) -> &Arc<Hlc> {
        &self.inner.parts.hlc
    }

    /// What all of it travels on: channels, datagrams, statistics, faults on purpose.
    #[must_use]
    pub fn transport(&self) -> &Transport {
        &self.inner.parts.transport
    }

    /// Leaves without losing anything: announces it, stops taking work, hands over, finishes what
    /// was accepted, says goodbye; then ends all processes and closes all connections.
    ///
    /// `within` bounds the part before the goodbye; `None` takes `node.drain_deadline`. Asking
    /// again joins the drain under way and hurries it if `within` is over sooner.
    ///
    /// # Guarantees
    /// A request accepted before the drain is answered unless the deadline comes first; a later
    /// one is refused with a typed "draining", nothing done.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the drain.
    pub async fn drain(&self, within: Option<Duration>) -> DrainProgress {
        let within = within.unwrap_or_else(|| self.config().node.drain_deadline);
        let mut first = None;
        let mut ending = self
            .inner
            .ending
            .get_or_init(|| {
                let (done, ending) = watch::channel(None);
                first = Some(done);
                ending
            })
            .clone();
        match first {
            Some(done) => {
                let node = self.clone();
                // In a task of its own, so that the drain outlives an asker who gives up.
                tokio::spawn(async move {
                    let progress = node.cluster().drain(within).await;
                    node.end().await;
                    drop(done.send_replace(Some(progress)));
                    node.inner.stopped.send_replace(true);
                });
            }
            None => drop(self.cluster().drain(within).await),
        }
        let progress =
            ending.wait_for(Option::is_some).await.ok().and_then(|progress| progress.clone());
        // The task can only be gone with its runtime, and then so are we.
        progress.unwrap_or_else(|| self.cluster().drain_progress().borrow().clone())
    }

    /// Leaves at once: says goodbye without handing over or waiting, ends all processes and closes
    /// all connections. Calls under way end as unknown for their callers.
    pub async fn shutdown(&self) {
        // It had stopped already: then there is no goodbye to say.
        self.cluster().leave().await.ok();
        self.end().await;
        self.inner.stopped.send_replace(true);
    }

    async fn end(&self) {
        // Subscribers are told that it is over, instead of waiting for what never comes.
        self.pubsub().shut_down();
        let report = self.processes().shutdown(PROCESSES_END_WITHIN).await;
        if report.killed + report.stuck > 0 {
            tracing::warn!(
                killed = report.killed,
                stuck = report.stuck,
                "some processes did not end by themselves"
            );
        }
        self.cluster().stop().await;
        self.transport().close();
    }

    /// Waits until the node has ended, whoever asked for it.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn stopped(&self) {
        let mut stopped = self.inner.stopped.subscribe();
        // The sender lives in this very node.
        drop(stopped.wait_for(|stopped| *stopped).await);
    }

    /// Runs until Ctrl-C or SIGTERM, then drains; a second signal ends the wait at once. Also
    /// returns when somebody else has drained the node, or when a later process took its name.
    ///
    /// # Errors
    /// When the operating system lets nobody listen for signals; the node goes on running.
    pub async fn until_signal(&self) -> io::Result<Stop> {
        let mut signals = Signals::listen()?;
        tokio::select! {
            biased;
            () = signals.next() => {}
            () = self.stopped() => return Ok(Stop::Drained),
            () = self.cluster().superseded() => {
                tracing::error!(node = %self.id(), "a later process has this node's name; ending");
                self.shutdown().await;
                return Ok(Stop::Superseded);
            }
        }
        tracing::info!("draining; a second signal stops at once");
        let first_at = tokio::time::Instant::now();
        let second = async {
            while first_at.elapsed() < ONE_REQUEST {
                signals.next().await;
            }
        };
        tokio::select! {
            biased;
            _ = self.drain(None) => Ok(Stop::Drained),
            () = second => Ok(Stop::AtOnce),
        }
    }
}

/// Ctrl-C and, where there is one, SIGTERM.
struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn listen() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    #[cfg(unix)]
    async fn next(&mut self) {
        tokio::select! {
            biased;
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    fn listen() -> io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(not(unix))]
    async fn next(&mut self) {
        // An error means nobody will ever press Ctrl-C.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
