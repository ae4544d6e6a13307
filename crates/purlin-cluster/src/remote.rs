//! Processes across nodes: the same calls, casts and monitors, over the network.
//!
//! `purlin-process` knows addresses and mailboxes, `purlin-net` channels; here they meet. A call
//! is encoded straight into its connection's buffer, and its reply is decoded by the reader into
//! the slot the caller waits at. A message arrives in the mailbox of its target without a task of
//! its own. Three things the network adds are decided here:
//!
//! - **One slow process must not stall the others.** Casts to one process count against a window
//!   per sending node until it takes them out of its mailbox; a full window is
//!   [`CastError::Full`](purlin_process::CastError), on the sender, at once.
//! - **An old life must not be mistaken for the new one.** A [`Pid`] carries the incarnation; one
//!   of an earlier life is [`CallError::Stale`](purlin_process::CallError), told apart from a
//!   process that does not exist.
//! - **An end must not be missed.** Monitors are sent again when a connection comes back; a node
//!   that goes down ends all that were watched there.
//!
//! In reading order: `wire` (what is said), `pending` (calls that wait), `target` (sending),
//! `inbound` (receiving), `watching` (monitors).

mod inbound;
mod pending;
mod target;
mod watching;
pub mod wire;

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering, fence},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use purlin_core::{NodeId, NodeName};
use purlin_net::{
    Cause, ChannelId, Incoming, PeerEvent, ReturnPath, SendError, Service, ServiceId, Transport,
};
use purlin_process::{
    Address, CallError, Pid, ProcessId, Processes, RemoteRef, RemoteServer, RemoteTarget, Swept,
};
use tokio::sync::broadcast;

use crate::drain::Intake;

use self::{inbound::Route, pending::Pending, target::Target, watching::Watching};

/// The service number of remote processes.
pub(crate) const SERVICE: ServiceId = ServiceId(4);

/// Bounds of one node's traffic with processes elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoteLimits {
    /// Calls of this node that wait for replies; more are refused as full. Default 100,000.
    pub calls_max: usize,
    /// Casts to one process elsewhere that it has not taken out of its mailbox yet. More keep a
    /// distant process busier, and fill its mailbox sooner; at least 128. Default 4,096: a quarter
    /// of a mailbox, and more than fits into a millisecond.
    pub window: u32,
    /// Monitors that one other node may have here; more fire at once as failed. Default 100,000.
    pub monitors_per_node_max: usize,
}

impl Default for RemoteLimits {
    fn default() -> Self {
        Self { calls_max: 100_000, window: 4_096, monitors_per_node_max: 100_000 }
    }
}

/// Counts since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RemoteStats {
    /// Calls sent.
    pub calls: u64,
    /// Casts sent.
    pub casts: u64,
    /// Calls that wait for their answer now.
    pub calls_pending: u64,
    /// Answers that came after their call had ended; dropped.
    pub answers_late: u64,
    /// Answers of processes here that could not be sent.
    pub answers_unsent: u64,
    /// Casts refused because the window to their target was full.
    pub window_full: u64,
    /// Casts from elsewhere that did not reach a mailbox; the reasons are in
    /// [`Processes::inbound_counts`].
    pub casts_refused: u64,
    /// Messages that make no sense; dropped.
    pub malformed: u64,
}

#[derive(Debug, Default)]
struct Counts {
    calls: AtomicU64,
    casts: AtomicU64,
    answers_late: AtomicU64,
    answers_unsent: AtomicU64,
    window_full: AtomicU64,
    casts_refused: AtomicU64,
    malformed: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Why a process could not be found by its name on another node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WhereisError {
    /// No node of that name is connected.
    #[error("node {0} is not connected")]
    NoNode(NodeName),
    /// The process there is of another kind.
    #[error("process {name:?} on {node} is a {found}, not a {wanted}")]
    AnotherKind {
        /// Where.
        node: NodeId,
        /// The name asked for.
        name: String,
        /// What it is.
        found: String,
        /// What was asked for.
        wanted: &'static str,
    },
    /// The node gave no answer. Asking again does no harm.
    #[error("node {node} could not be asked: {error}")]
    NoAnswer {
        /// Where.
        node: NodeId,
        /// Why.
        error: CallError,
    },
}

/// This node's side of all processes elsewhere. Cheap to clone; all clones are the same.
///
/// One per transport: a second one replaces the first as receiver.
#[derive(Clone)]
pub struct Remote(Arc<Inner>);

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("node", self.0.transport.node())
            .field("stats", &self.stats())
            .finish()
    }
}

pub(crate) struct Inner {
    me: Weak<Self>,
    transport: Transport,
    processes: Processes,
    limits: RemoteLimits,
    pending: Pending,
    targets: Mutex<BTreeMap<Pid, Weak<Target>>>,
    /// One per connection that brought something.
    routes: RwLock<Vec<(u64, Arc<Route>)>>,
    watching: Watching,
    counts: Counts,
    /// Calls from elsewhere whose answer is not on its way yet.
    unanswered: Arc<AtomicUsize>,
}

impl Remote {
    /// Lets the processes of this node and those of others talk over `transport`, within the
    /// default limits.
    #[must_use]
    pub fn start(transport: &Transport, processes: &Processes) -> Self {
        Self::with_limits(transport, processes, RemoteLimits::default())
    }

    /// Lets the processes of this node and those of others talk over `transport`. Call it inside
    /// the transport's runtime.
    #[must_use]
    pub fn with_limits(transport: &Transport, processes: &Processes, limits: RemoteLimits) -> Self {
        let limits = RemoteLimits { window: limits.window.max(2 * wire::RETURN_EVERY), ..limits };
        let inner = Arc::new_cyclic(|me| Inner {
            me: Weak::clone(me),
            transport: transport.clone(),
            processes: processes.clone(),
            limits,
            pending: Pending::new(limits.calls_max),
            targets: Mutex::new(BTreeMap::new()),
            routes: RwLock::new(Vec::new()),
            watching: Watching::new(limits.monitors_per_node_max),
            counts: Counts::default(),
            unanswered: Arc::default(),
        });
        // The transport must not keep itself alive through its own service.
        transport.register(SERVICE, Arc::new(Receiver(Arc::downgrade(&inner))));
        tokio::spawn(follow(transport.events(), Arc::downgrade(&inner)));
        Self(inner)
    }

    /// The process `pid`, wherever it is, taken to be of type `S`; if it is not, it refuses what
    /// it does not handle.
    ///
    /// A process of this node that has ended, or is of another type, is addressed by the network's
    /// path all the same, and answers that there is no process.
    #[must_use]
    pub fn address<S: RemoteServer>(&self, pid: &Pid) -> Address<S> {
        if pid.node == *self.0.processes.node()
            && let Some(process) = self.0.processes.get(pid.process)
            && let Some(process) = process.downcast()
        {
            return Address::Local(process);
        }
        let target: Arc<dyn RemoteTarget> = self.0.target(pid);
        Address::Remote(RemoteRef::new(target))
    }

    /// The way to the process `pid` of another node, without a type: for addresses that choose
    /// their process anew with every message.
    #[must_use]
    pub fn target(&self, pid: &Pid) -> Arc<dyn RemoteTarget> {
        self.0.target(pid)
    }

    /// Asks the node called `node` for its process with the unique name `name`; `None` if it has
    /// none that other nodes may send to. The own node is not asked but looked at.
    ///
    /// The answer is a moment old: the process may have ended meanwhile, and then says so.
    ///
    /// # Errors
    /// [`WhereisError`].
    ///
    /// # Cancel safety
    /// Dropping the future forgets the question.
    pub async fn whereis<S: RemoteServer>(
        &self,
        node: &NodeName,
        name: &str,
        within: Duration,
    ) -> Result<Option<Address<S>>, WhereisError> {
        let inner = &self.0;
        let (node, found) = if *node == inner.processes.node().name {
            let process = inner.processes.registry().whereis(name);
            let found = process.map(|process| (process.id(), process.kind().to_owned()));
            (inner.processes.node().clone(), found)
        } else {
            let peer = inner.transport.peers().into_iter().find(|peer| peer.name() == node);
            let peer = peer.ok_or_else(|| WhereisError::NoNode(node.clone()))?;
            let node = peer.node().clone();
            let found = inner.ask_whereis(&peer, name, within).await;
            let found =
                found.map_err(|error| WhereisError::NoAnswer { node: node.clone(), error })?;
            (node, found)
        };
        match found {
            None => Ok(None),
            Some((process, kind)) if kind == S::KIND => {
                Ok(Some(self.address(&Pid { node, process })))
            }
            Some((_, found)) => Err(WhereisError::AnotherKind {
                node,
                name: name.to_owned(),
                found,
                wanted: S::KIND,
            }),
        }
    }

    /// Counts since start.
    #[must_use]
    pub fn stats(&self) -> RemoteStats {
        let counts = &self.0.counts;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RemoteStats {
            calls: read(&counts.calls),
            casts: read(&counts.casts),
            calls_pending: self.0.pending.len() as u64,
            answers_late: read(&counts.answers_late),
            answers_unsent: read(&counts.answers_unsent),
            window_full: read(&counts.window_full),
            casts_refused: read(&counts.casts_refused),
            malformed: read(&counts.malformed),
        }
    }

    /// Publishes the counts as metrics; call it now and then, for instance at every scrape.
    pub fn publish_metrics(&self) {
        let stats = self.stats();
        for (name, value) in [
            ("purlin_cluster_remote_calls_total", stats.calls),
            ("purlin_cluster_remote_casts_total", stats.casts),
            ("purlin_cluster_remote_answers_late_total", stats.answers_late),
            ("purlin_cluster_remote_answers_unsent_total", stats.answers_unsent),
            ("purlin_cluster_remote_window_full_total", stats.window_full),
            ("purlin_cluster_remote_casts_refused_total", stats.casts_refused),
            ("purlin_cluster_remote_malformed_total", stats.malformed),
        ] {
            metrics::counter!(name).absolute(value);
        }
    }
}

/// What a drain closes and empties: messages from other nodes to processes here.
impl Intake for Remote {
    fn name(&self) -> &str {
        "calls of processes"
    }

    fn refuse_new(&self) {
        self.0.processes.refuse_inbound();
        // A call is counted before it looks whether it is refused, so whoever counts from here on
        // sees every call that was not refused.
        fence(Ordering::SeqCst);
    }

    fn in_flight(&self) -> usize {
        self.0.unanswered.load(Ordering::SeqCst)
    }
}

impl Inner {
    /// The one target for `pid`, so that all references share its window.
    fn target(&self, pid: &Pid) -> Arc<Target> {
        let mut targets = self.targets.lock();
        if let Some(target) = targets.get(pid).and_then(Weak::upgrade) {
            return target;
        }
        let target = Arc::new(Target::new(Weak::clone(&self.me), pid.clone()));
        targets.insert(pid.clone(), Arc::downgrade(&target));
        target
    }

    /// Forgets a target nobody refers to any more.
    fn forget_target(&self, pid: &Pid) {
        let mut targets = self.targets.lock();
        // Somebody may have asked for it anew meanwhile.
        if targets.get(pid).is_some_and(|target| target.strong_count() == 0) {
            targets.remove(pid);
        }
    }

    fn targets_on(&self, node: &NodeId) -> Vec<Arc<Target>> {
        let from = Pid { node: node.clone(), process: ProcessId(0) };
        let targets = self.targets.lock();
        let on_node = targets.range(from..).take_while(|(pid, _)| pid.node == *node);
        on_node.filter_map(|(_, target)| target.upgrade()).collect()
    }

    /// Why nothing can be sent to `pid`'s node: a later life of it is known, or it is not there.
    fn absent(&self, pid: &Pid) -> CallError {
        let peers = self.transport.peers();
        let later =
            peers.iter().map(purlin_net::Peer::node).find(|node| node.supersedes(&pid.node));
        let own = Some(self.transport.node()).filter(|node| node.supersedes(&pid.node));
        match later.or(own) {
            Some(now) => {
                CallError::Stale { process: pid.process, asked: pid.node.clone(), now: now.clone() }
            }
            None if pid.node == *self.transport.node() => {
                CallError::NoProcess(purlin_process::Callee::Id(pid.process))
            }
            None => CallError::Unreachable(pid.node.clone()),
        }
    }

    /// What a failed send means to the caller. Nothing was sent in any case.
    fn unsent(&self, error: SendError, pid: &Pid) -> CallError {
        match error {
            SendError::Full { .. } | SendError::Deadline { .. } => {
                CallError::Full(pid.node.clone())
            }
            SendError::TooLarge { bytes, max } => CallError::TooLarge { bytes, bytes_max: max },
            SendError::Encode(reason) => CallError::Unencodable(reason),
            SendError::NotConnected { .. }
            | SendError::NotAPeer(_)
            | SendError::UnknownChannel(_) => self.absent(pid),
            // `SendError` may grow; whatever comes, nothing was sent.
            _ => CallError::Unreachable(pid.node.clone()),
        }
    }
}

/// What the transport hands frames to.
struct Receiver(Weak<Inner>);

impl Service for Receiver {
    fn on_frame(&self, frame: Incoming<'_>) {
        if let Some(inner) = self.0.upgrade() {
            inner.receive(frame);
        }
    }

    fn on_close(&self, path: &ReturnPath, was_open: bool, _cause: &Cause) {
        if let Some(inner) = self.0.upgrade() {
            inner.closed(path, was_open);
        }
    }
}

impl Inner {
    fn closed(&self, path: &ReturnPath, was_open: bool) {
        let connection = path.connection();
        self.routes.write().retain(|(id, _)| *id != connection);
        let node = path.node();
        self.pending.fail_all(connection, || {
            if was_open {
                CallError::Disconnected(node.clone())
            } else {
                CallError::Unreachable(node.clone())
            }
        });
        // A connection that never opened carried no question for ends either; the transport tells
        // nobody that a node which was down is still down.
        if !was_open && path.channel() == ChannelId::CONTROL {
            self.node_down(node);
        }
        // What was outstanding on this connection is lost; whoever waits for room may go on.
        for target in self.targets_on(node) {
            target.disconnected(connection);
        }
    }
}

impl Swept for Inner {
    fn sweep(&self, now: purlin_core::Instant) -> bool {
        self.pending.sweep(now)
    }
}

/// Keeps monitors true as nodes come and go.
async fn follow(mut events: broadcast::Receiver<PeerEvent>, inner: Weak<Inner>) {
    loop {
        let event = events.recv().await;
        let Some(inner) = inner.upgrade() else { return };
        match event {
            Ok(PeerEvent::Up { peer }) => inner.watch_again(&peer),
            Ok(PeerEvent::ChannelUp { peer, channel: ChannelId::CONTROL }) => {
                if let Some(peer) = inner.transport.peer(&peer) {
                    inner.watch_again(&peer);
                }
            }
            Ok(PeerEvent::Down { peer, .. }) => inner.node_down(&peer),
            Ok(_) => {}
            Err(broadcast::error::RecvError::Lagged(_)) => inner.look_around(),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}
