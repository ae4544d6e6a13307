//! The public face: start, look, wait, drain, leave.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use purlin_core::{Advice, Clock, Deadline, NodeId, NodeName, Outcome, Rng, watch};
use purlin_net::{ContactError, Transport};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    discovery::{Discovery, DiscoveryError},
    drain::{DrainHook, DrainProgress, Intake, Phase},
    drainer::Drainer,
    driver::{Command, Driver, FRAMES_MAX, Frames, SERVICE},
    seeding::{SEEDS_MAX, Seeding},
    swim::{Config, Meta, MetaError, State, Swim},
    view::{Board, Events, Member, View, Watch},
};

/// How long [`Cluster::leave`] waits for the members to confirm the farewell.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);
/// Commands waiting for the membership loop; askers wait for room.
const COMMANDS_MAX: usize = 64;

/// What a node needs to be a member.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct ClusterConfig {
    /// What this node says of itself. Its `cluster_addr` must be where others reach the transport,
    /// [`Transport::advertise`].
    pub meta: Meta,
    /// How failures are detected.
    pub swim: Config,
}

impl ClusterConfig {
    /// `meta`, and failure detection for one data centre.
    #[must_use]
    pub fn new(meta: Meta) -> Self {
        let swim = Config::lan().build().expect("the preset is within its bounds: tested");
        Self { meta, swim }
    }
}

/// Why the membership did not start. Nothing runs; correct the configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// What the node says of itself breaks a limit.
    #[error(transparent)]
    Meta(#[from] MetaError),
}

/// The cluster is gone from this process: [`Cluster::stop`] was called. Nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("membership has stopped")]
pub struct Stopped;

impl Stopped {
    /// Always [`Outcome::NotDone`].
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::NotDone
    }

    /// Always [`Advice::GiveUp`]: this node is on its way out.
    #[must_use]
    pub fn advice(&self) -> Advice {
        Advice::GiveUp
    }
}

/// Why [`Cluster::update_meta`] changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateMetaError {
    /// The result breaks a limit.
    #[error(transparent)]
    Meta(#[from] MetaError),
    /// There is no membership any more.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// Too few members in time: who was seen, and what stood in the way of the others.
///
/// The node goes on trying; wait again, or correct what the text names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooFewMembers {
    /// How many were wanted, this node included.
    pub wanted: usize,
    /// How long was waited.
    pub waited: Duration,
    /// Everybody seen, in whichever state.
    pub seen: Vec<(NodeName, State)>,
    /// The latest trouble with each seed address and with discovery.
    pub troubles: Vec<String>,
}

impl fmt::Display for TooFewMembers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alive = self.seen.iter().filter(|(_, state)| *state == State::Alive).count();
        write!(f, "{} members wanted within {:?}, {alive} alive:", self.wanted, self.waited)?;
        for (name, state) in &self.seen {
            write!(f, " {name}")?;
            if *state != State::Alive {
                write!(f, " ({state})")?;
            }
        }
        for trouble in &self.troubles {
            write!(f, "; {trouble}")?;
        }
        Ok(())
    }
}

impl std::error::Error for TooFewMembers {}

impl TooFewMembers {
    /// Always [`Outcome::NotDone`].
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::NotDone
    }

    /// Always [`Advice::Retry`]: members may still come.
    #[must_use]
    pub fn advice(&self) -> Advice {
        Advice::Retry
    }
}

/// The latest trouble on the way to other nodes. One per address, so bounded.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    contacts: Mutex<BTreeMap<SocketAddr, Option<String>>>,
    discovery: Mutex<Option<String>>,
}

impl Troubles {
    pub(crate) fn contact(&self, addr: SocketAddr, error: Option<&ContactError>) {
        let mut contacts = self.contacts.lock();
        if contacts.contains_key(&addr) || contacts.len() < SEEDS_MAX {
            contacts.insert(addr, error.map(ToString::to_string));
        }
    }

    pub(crate) fn discovered(&self, addrs: &BTreeSet<SocketAddr>) {
        self.contacts.lock().retain(|addr, _| addrs.contains(addr));
        *self.discovery.lock() = None;
    }

    pub(crate) fn discovery(&self, error: &DiscoveryError) {
        *self.discovery.lock() = Some(error.to_string());
    }

    fn all(&self) -> Vec<String> {
        let contacts = self.contacts.lock();
        let discovery = self.discovery.lock();
        discovery.iter().chain(contacts.values().flatten()).cloned().collect()
    }
}

struct Shared {
    node: NodeId,
    board: Arc<Board>,
    commands: mpsc::Sender<Command>,
    troubles: Arc<Troubles>,
    superseded: watch::Receiver<bool>,
    drainer: Drainer,
    clock: Arc<dyn Clock>,
}

/// This node's membership of its cluster. Cheap to clone.
///
/// Not a directory of services and not a lock: two sides of a cut both go on with the members
/// they see. Nothing is kept across a restart; a restarted node is a new member.
#[derive(Clone)]
pub struct Cluster(Arc<Shared>);

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let view = self.view();
        write!(f, "cluster of {} members seen by {}", view.members.len(), self.0.node)
    }
}

impl Cluster {
    /// Becomes a member: contacts what `discovery` finds, answers probes, and watches the others.
    ///
    /// Returns at once; [`wait_for_members`](Self::wait_for_members) is the barrier. Runs until
    /// [`stop`](Self::stop) or until the last clone is dropped. `rng` spreads probes in time; in
    /// production it is [`Rng::from_os`].
    ///
    /// # Errors
    /// [`StartError`] when the configuration breaks a limit; nothing runs then.
    ///
    /// # Guarantees
    /// Healthy: members that say goodbye are `Left` everywhere within milliseconds; killed ones
    /// `Down` as soon as the system refuses their connections; silent ones in 1 to 2 s (`lan`).
    /// Partitioned: each side sees the other as `Down`; it heals by itself within seconds.
    /// Restarted: the same name comes back as a new incarnation, and the old one never does.
    pub fn start(
        config: ClusterConfig,
        transport: Transport,
        discovery: Box<dyn Discovery>,
        mut rng: Rng,
    ) -> Result<Self, StartError> {
        let clock = Arc::clone(transport.clock());
        let node = transport.node().clone();
        let now = clock.now();
        let swim = Swim::new(config.swim, node.clone(), config.meta, now, rng.fork())?;
        let board = Arc::new(Board::new(node.clone(), swim.sightings()));
        let troubles = Arc::new(Troubles::default());
        let (commands, commands_rx) = mpsc::channel(COMMANDS_MAX);
        let (frames_tx, frames) = mpsc::channel(FRAMES_MAX);
        let (superseded_tx, superseded) = watch::channel(false);
        // Before registering, so that no peer's arrival is missed.
        let peer_events = transport.events();
        transport.register(SERVICE, Arc::new(Frames(frames_tx)));
        let driver = Driver {
            swim,
            seeding: Seeding::new(rng.fork()),
            board: Arc::clone(&board),
            transport: transport.clone(),
            clock: Arc::clone(&clock),
            discovery,
            troubles: Arc::clone(&troubles),
            superseded: superseded_tx,
            commands: commands_rx,
            frames,
            peer_events,
            contacts: JoinSet::new(),
            announced: None,
            heard_in_a_row: 0,
            refresh_at: now,
        };
        tokio::spawn(driver.run());
        let drainer = Drainer::new(commands.clone(), transport);
        Ok(Self(Arc::new(Shared { node, board, commands, troubles, superseded, drainer, clock })))
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.0.node
    }

    /// The membership as this node sees it now. Costs a reference count; call it each time.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        self.0.board.view()
    }

    /// The member called `name`, in whichever state.
    #[must_use]
    pub fn member(&self, name: &NodeName) -> Option<Member> {
        self.view().get(name).cloned()
    }

    /// Waits for changes of the view.
    #[must_use]
    pub fn watch(&self) -> Watch {
        self.0.board.watch()
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> Events {
        self.0.board.events_after(self.0.board.last_seq())
    }

    /// What happened after the event number `seq`; 0 for all that is remembered. To resume where
    /// a reader stopped.
    #[must_use]
    pub fn events_after(&self, seq: u64) -> Events {
        self.0.board.events_after(seq)
    }

    /// Waits until at least `count` members are alive, this node included: the barrier at boot.
    ///
    /// # Errors
    /// [`TooFewMembers`] after `within`, saying who was seen and why others may be missing.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn wait_for_members(
        &self,
        count: usize,
        within: Duration,
    ) -> Result<Arc<View>, TooFewMembers> {
        let mut watch = self.watch();
        let enough = async {
            let mut view = watch.view();
            while view.alive().count() < count {
                view = watch.changed().await;
            }
            view
        };
        if let Ok(view) = tokio::time::timeout(within, enough).await {
            return Ok(view);
        }
        Err(TooFewMembers {
            wanted: count,
            waited: within,
            seen: self.view().members.iter().map(|m| (m.name().clone(), m.state)).collect(),
            troubles: self.0.troubles.all(),
        })
    }

    /// Changes what this node says of itself; the others hear of it within about a second.
    ///
    /// # Errors
    /// [`UpdateMetaError`]; nothing was changed then.
    pub async fn update_meta(
        &self,
        change: impl FnOnce(&mut Meta) + Send + 'static,
    ) -> Result<(), UpdateMetaError> {
        let (done, answer) = oneshot::channel();
        let command = Command::Meta(Box::new(change), done);
        self.0.commands.send(command).await.map_err(|_closed| Stopped)?;
        Ok(answer.await.map_err(|_closed| Stopped)??)
    }

    /// Waits until a later life of this node's name is in the cluster, which ends this one: two
    /// processes were started under one name, or this one slept through its own replacement.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn superseded(&self) {
        let mut superseded = self.0.superseded.clone();
        if superseded.wait_for(|superseded| *superseded).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Registers what must happen when this node is drained. Hooks registered after a drain has
    /// begun its stage are not run.
    pub fn on_drain(&self, hook: Arc<dyn DrainHook>) {
        self.0.drainer.add_hook(hook);
    }

    /// Registers where requests come in, to be closed and emptied by a drain.
    pub fn add_intake(&self, intake: Arc<dyn Intake>) {
        self.0.drainer.add_intake(intake);
    }

    /// Leaves without losing anything: announces it, hands over, finishes what was accepted, says
    /// goodbye. See [`crate::drain`].
    ///
    /// Asking again joins the drain under way, and hurries it if `within` is over sooner.
    /// Afterwards the transport still runs; closing it is up to its owner.
    ///
    /// # Guarantees
    /// A request accepted before the drain is answered unless the deadline comes first; a request
    /// that comes later is refused with a typed "draining", nothing done. Partitioned: members
    /// that cannot be reached are not waited for beyond 2 s.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the drain.
    pub async fn drain(&self, within: Duration) -> DrainProgress {
        self.0.drainer.drain(Deadline::after(self.0.clock.now(), within)).await
    }

    /// How the drain stands, now and whenever it goes on.
    #[must_use]
    pub fn drain_progress(&self) -> watch::Receiver<DrainProgress> {
        self.0.drainer.progress()
    }

    /// Whether this node is being drained or has left: it is not ready for new work.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.0.drainer.progress().borrow().phase != Phase::Serving
    }

    /// Says goodbye without a drain, and waits up to 2 s until the members have confirmed it.
    /// Final for this incarnation. Repeating it is harmless.
    ///
    /// # Errors
    /// [`Stopped`] when there is no membership any more.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the farewell back.
    pub async fn leave(&self) -> Result<(), Stopped> {
        let (done, answer) = oneshot::channel();
        self.0.commands.send(Command::Leave(done)).await.map_err(|_closed| Stopped)?;
        // Not confirmed in time: the farewell is out, and the rest is the failure detector's.
        tokio::time::timeout(LEAVE_WITHIN, answer).await.ok();
        Ok(())
    }

    /// Ends the membership without a word: to the others it looks like a crash. For tests, and
    /// for the moment after [`leave`](Self::leave).
    pub async fn stop(&self) {
        // Already stopped is stopped.
        self.0.commands.send(Command::Stop).await.ok();
        self.0.commands.closed().await;
    }
}
