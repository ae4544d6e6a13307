//! What one node does about the children of one supervisor: a pure state machine over records,
//! members and its own processes.
//!
//! The easy supervisor asks its peers what they run and starts what is missing. Two that ask at
//! the same moment start it twice, one that asks while a message is on its way loses it for good,
//! and after a cut each stops the other's. Here a child's [`Place`] is written down, on every
//! node, and there is one rule: *a node runs what a place says it runs, and nothing else*. Who
//! writes places:
//!
//! - the node that runs a child, about that child;
//! - the *planner*, the present host that has been one for longest, about children whose node is
//!   lost and children that have no place. A node plans for nobody before it has the records of all
//!   members ([`Core::records_complete`]): it would miss what is merely on its way.
//!
//! # Conflicts
//! On two sides of a cut a child can come to have two places. Of the two the one written later
//! holds, on all nodes, once the replicas are equal. Only the node that is not named by it acts: it
//! lets the user merge the two copies and stops its own ([`Output::Lose`]), so never do both end.
//! If the copy that ends had the greater fence, the other is started again with a greater one, for
//! whoever has seen the fence of the ended copy would refuse it otherwise.
//!
//! # Source
//! Assignment by one planner: Helix and Kafka's group leader; the rest is Erlang/OTP's
//! `supervisor` for children that have a place.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    ops::Bound,
    sync::Arc,
    time::Duration,
};

use purlin_core::{HlcTimestamp, Instant, NodeId, NodeName};
use purlin_process::{ExitReason, ProcessId, Restart};

use super::{
    kind::{Fence, Handed, KindError},
    placement::{self, Candidate, Placed, Placer, Strategy, Unplaceable, Wish},
    record::{Cause, Host, Place, PlaceState, Spec},
};
use crate::directory::Standing;

/// How many children are given a place in one step: a lost node with a million children must not
/// hold up everything else.
const PLAN_AT_ONCE: usize = 500;
/// How long a removed child's version is remembered, so that a record that is late does not start
/// it again.
const REMOVED_FOR: Duration = Duration::from_secs(60);
/// How many removed children are remembered.
const REMOVED_MAX: usize = 100_000;
/// How long a spec that came with a call may be missing in the replica before it counts as removed.
const PROVISIONAL_FOR: Duration = Duration::from_secs(15);
/// How long a place without a spec is kept: its spec may be on its way.
const SPECLESS_FOR: Duration = Duration::from_secs(30);
/// After how long a start is made known before it is done.
const SLOW_START: Duration = Duration::from_millis(500);
/// How long after the farewell of a drained node children that still seem to be on it are left
/// alone: the word that they moved comes by another way.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(2);
/// How often hosts that are gone are looked for.
const FORGET_EVERY: Duration = Duration::from_secs(10);
/// How long the host record of a node that is down is kept.
const HOST_KEPT_FOR: Duration = Duration::from_secs(60);
/// How often a drain tries to hand one child over before it leaves it to failover.
const HAND_OFFS_MAX: u32 = 3;
/// How many moves a plan may hold.
const MOVES_MAX: usize = 100_000;

/// How one supervisor behaves; equal on all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreConfig {
    /// How nodes are chosen. Default the ring with 25 %.
    pub strategy: Strategy,
    /// How long a node must be down before its children are started elsewhere. Default at once:
    /// the failure detector has made sure already.
    pub failover_after: Duration,
    /// How long a child may have no place before the planner gives it one. Default 3 s: the node
    /// that starts it says so after 500 ms at the latest.
    pub orphan_after: Duration,
    /// How long a node that this one has not been introduced to may have children. Default 20 s.
    pub unknown_for: Duration,
    /// Whether load is levelled when a host comes. Default true.
    pub rebalance_on_join: bool,
    /// How long the hosts must have been the same before load is levelled. Default 3 s.
    pub rebalance_after: Duration,
    /// By how many percent loads may differ before they are levelled. Default 10.
    pub slack_percent: u32,
    /// How many children are moved in a second to level the load. Default 200.
    pub moves_per_second: u32,
    /// How many such moves are under way at once. Default 16.
    pub moves_at_once: usize,
    /// What becomes of a child that gives no state in time when it is to move. Default
    /// [`OnHandOffFailure::Keep`]; a drain starts it fresh in any case.
    pub on_hand_off_failure: OnHandOffFailure,
}

impl Default for CoreConfig {
    fn default() -> Self {
        Self {
            strategy: Strategy::default(),
            failover_after: Duration::ZERO,
            orphan_after: Duration::from_secs(3),
            unknown_for: Duration::from_secs(20),
            rebalance_on_join: true,
            rebalance_after: Duration::from_secs(3),
            slack_percent: placement::SLACK_PERCENT_DEFAULT,
            moves_per_second: 200,
            moves_at_once: 16,
            on_hand_off_failure: OnHandOffFailure::Keep,
        }
    }
}

/// What becomes of a child whose state could not be handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnHandOffFailure {
    /// It stays where it is.
    Keep,
    /// It moves without its state.
    Fresh,
}

/// Whether this side of a cut may run children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gate {
    /// It may.
    Open,
    /// It goes on with what runs, and starts nothing until that is decided.
    Waiting,
    /// It stops all children and starts none.
    Shut(Arc<str>),
}

/// A member as the core needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Who.
    pub node: NodeId,
    /// How it stands.
    pub standing: Standing,
    /// What it offers, if it may be given children now.
    pub candidate: Option<Candidate>,
}

/// What a process is to do after it gave its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Then {
    /// Its successor starts there.
    Move {
        /// Where.
        to: NodeId,
        /// Why.
        cause: Cause,
    },
    /// Its successor starts here, with a greater fence.
    Again,
    /// It sleeps.
    Sleep,
}

/// Why a process is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopWhy {
    /// The child was removed.
    Removed,
    /// The child was started anew from other arguments.
    Replaced,
    /// This side of a cut may run no children.
    Split(Arc<str>),
    /// It is no longer to run here.
    Elsewhere,
    /// It gave no state, and moves without.
    Fresh,
}

/// Something to do. In order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Start a process; then [`Core::started`] or [`Core::start_failed`].
    Start {
        /// Which child.
        id: Arc<str>,
        /// From what.
        spec: Arc<Spec>,
        /// The number of the start.
        fence: Fence,
        /// How often it was started again.
        restarts: u32,
        /// What its predecessor gave.
        state: Option<Handed>,
    },
    /// Stop a process; then [`Core::ended`].
    Stop(Arc<str>, ProcessId, StopWhy),
    /// Let the user merge this copy into the one that stays, then stop it; then [`Core::ended`].
    Lose {
        /// Which child.
        id: Arc<str>,
        /// The copy here.
        process: ProcessId,
        /// Where the other is.
        winner: Place,
    },
    /// Take the state out of a process, which ends; then [`Core::handed`].
    HandOff {
        /// Which child.
        id: Arc<str>,
        /// Which process.
        process: ProcessId,
        /// The number of its start.
        fence: Fence,
    },
    /// Have the node start the successor; then [`Core::delivered`].
    Deliver {
        /// Which child.
        id: Arc<str>,
        /// Where.
        to: NodeId,
        /// With what.
        ask: StartHere,
    },
    /// Write the place; then [`Core::place_changed`] with its version.
    Write(Arc<str>, Place),
    /// Remove the place.
    Erase(Arc<str>),
    /// Remove the spec of this version: the child is over.
    Remove(Arc<str>, HlcTimestamp),
    /// Look how many messages the process has handled; then [`Core::probed`].
    Probe(Arc<str>, ProcessId),
    /// Ask the node to move a child; then [`Core::move_done`].
    RequestMove(placement::Move),
    /// Remove what a node that is gone said of itself.
    Forget(NodeId),
    /// Tell watchers.
    Event(Event),
}

/// What happened to a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Which child.
    pub id: Arc<str>,
    /// What.
    pub what: What,
    /// On which node.
    pub node: Option<NodeId>,
    /// The number of its latest start.
    pub fence: Fence,
    /// Why, as far as that is known.
    pub cause: Option<Cause>,
}

/// What happened to a child, in a word.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum What {
    /// It runs for the first time.
    Started,
    /// It runs again on the node it was on.
    Restarted,
    /// It was taken to another node, or runs there.
    Moved,
    /// It is left alone until it is released.
    Quarantined,
    /// It sleeps until it is called.
    Slept,
    /// A node could not start it.
    Refused,
    /// It was stopped for good.
    Removed,
    /// It was started anew from other arguments.
    Replaced,
    /// The copy here ends, since another holds.
    Lost,
    /// It could not be handed over, and why.
    HandOffFailed(Arc<str>),
    /// It was stopped here because of a cut, and by which rule.
    SplitStopped(Arc<str>),
}

impl What {
    /// The word used in HTTP bodies, logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Restarted => "restarted",
            Self::Moved => "moved",
            Self::Quarantined => "quarantined",
            Self::Slept => "slept",
            Self::Refused => "refused",
            Self::Removed => "removed",
            Self::Replaced => "replaced",
            Self::Lost => "lost",
            Self::HandOffFailed(_) => "hand_off_failed",
            Self::SplitStopped(_) => "split_stopped",
        }
    }
}

/// A start asked for by another node, or by the user on this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartHere {
    /// The version of the spec.
    pub version: HlcTimestamp,
    /// What to start.
    pub spec: Arc<Spec>,
    /// A fence above all that the asker knows.
    pub fence: Fence,
    /// How often it was started again.
    pub restarts: u32,
    /// What its predecessor gave.
    pub state: Option<Handed>,
    /// Why.
    pub cause: Cause,
}

/// What becomes of a [`StartHere`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartAnswer {
    /// It is being started; somebody else may have asked before.
    Starting,
    /// It has a place already.
    At(Place),
    /// This node starts nothing now; and why.
    Refused(Refusal),
}

/// Why a node starts nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub enum Refusal {
    /// It is being drained.
    #[error("the node is being drained")]
    Draining,
    /// Its side of a cut may run no children.
    #[error("this side of a cut starts no children: {0}")]
    Split(String),
    /// The child is just ending there.
    #[error("an earlier process of the child is just ending")]
    Busy,
    /// The child was removed meanwhile.
    #[error("the child was removed")]
    Removed,
}

#[derive(Debug, Default)]
struct Child {
    spec: Option<(HlcTimestamp, Arc<Spec>)>,
    place: Option<(HlcTimestamp, Place)>,
    /// Until when the place, which came as an answer, may be missing in the replica.
    answered: Option<Instant>,
    local: Option<Box<Local>>,
    /// Until when the spec, which came with a call, may be missing in the replica.
    provisional: Option<Instant>,
    /// Since when it lacks the other record, or its node is lost.
    lacking: Option<Instant>,
    due: Option<Instant>,
    /// What is counted in the placers.
    counted: Option<(Arc<Spec>, NodeId)>,
}

/// A child's process here, or its absence for the moment.
#[derive(Debug)]
struct Local {
    spec: HlcTimestamp,
    fence: Fence,
    restarts: u32,
    stage: Stage,
    cause: Cause,
    /// Whether somebody waits for the outcome, and settles a failure himself.
    asked: bool,
    since: Instant,
    in_a_row: u32,
    failures: VecDeque<Instant>,
    handled: u64,
    hand_offs: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Stage {
    Starting,
    Running(ProcessId),
    /// For its time to be started again.
    Waiting,
    /// For its end; without a number while its start is not over.
    Stopping(Option<ProcessId>),
    /// For its state.
    Handing(ProcessId, Then),
    /// For the end of a process that gives no state and moves without.
    Leaving(ProcessId, NodeId, Cause),
    /// For the node that starts its successor.
    Delivering(NodeId, Option<Handed>),
}

/// The children of one supervisor, as one node knows them. Owned by one shell.
#[derive(Debug)]
pub struct Core {
    me: NodeId,
    config: CoreConfig,
    children: BTreeMap<Arc<str>, Child>,
    timers: BTreeSet<(Instant, Arc<str>)>,
    members: BTreeMap<NodeName, Seen>,
    gone_since: BTreeMap<NodeId, Instant>,
    unknown_since: BTreeMap<NodeId, Instant>,
    hosts: BTreeMap<NodeId, Host>,
    placers: BTreeMap<Arc<str>, Placer>,
    on_node: BTreeMap<NodeId, usize>,
    to_plan: BTreeSet<Arc<str>>,
    removed: BTreeMap<Arc<str>, (HlcTimestamp, Instant)>,
    specs: usize,
    gate: Gate,
    /// Whether the records of all others are here: before that, what seems to be missing is not.
    complete: bool,
    draining: bool,
    paused: bool,
    forget_at: Instant,
    /// When the load is looked at, since the hosts have changed.
    level_at: Option<Instant>,
    moves: VecDeque<placement::Move>,
    moving: usize,
    next_move_at: Instant,
}

impl Core {
    /// What `me` knows when it starts: nothing.
    #[must_use]
    pub fn new(me: NodeId, config: CoreConfig) -> Self {
        Self {
            me,
            config,
            children: BTreeMap::new(),
            timers: BTreeSet::new(),
            members: BTreeMap::new(),
            gone_since: BTreeMap::new(),
            unknown_since: BTreeMap::new(),
            hosts: BTreeMap::new(),
            placers: BTreeMap::new(),
            on_node: BTreeMap::new(),
            to_plan: BTreeSet::new(),
            removed: BTreeMap::new(),
            specs: 0,
            gate: Gate::Open,
            complete: true,
            draining: false,
            paused: false,
            forget_at: Instant::ZERO,
            level_at: None,
            moves: VecDeque::new(),
            moving: 0,
            next_move_at: Instant::ZERO,
        }
    }

    /// Behaves so from now on. What was decided stays decided.
    pub fn configure(&mut self, now: Instant, config: CoreConfig) {
        if self.config.strategy != config.strategy {
            self.placers.clear();
        }
        self.config = config;
        self.rebuild_placers(now);
    }
}

/// Questions.
impl Core {
    /// What is known of the child `id`, if it is to run.
    #[must_use]
    pub fn child(&self, id: &str) -> Option<(&Arc<Spec>, Option<&Place>)> {
        let child = self.children.get(id)?;
        let (version, spec) = child.spec.as_ref()?;
        let place = child.place.as_ref().map(|(_, place)| place);
        Some((spec, place.filter(|place| place.spec == *version)))
    }

    /// The version of the spec of `id`.
    #[must_use]
    pub fn version(&self, id: &str) -> Option<HlcTimestamp> {
        self.children.get(id)?.spec.as_ref().map(|(version, _)| *version)
    }

    /// The version of the place of `id`.
    pub(crate) fn place_version(&self, id: &str) -> Option<HlcTimestamp> {
        self.children.get(id)?.place.as_ref().map(|(version, _)| *version)
    }

    /// Children in the order of their ids, from after `after`.
    pub fn children<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&str>,
    ) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<Spec>, Option<&'a Place>)> {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let range = self.children.range::<str, _>((from, Bound::Unbounded));
        range.take_while(move |(id, _)| id.starts_with(prefix)).filter_map(|(id, _)| {
            let (spec, place) = self.child(id)?;
            Some((id, spec, place))
        })
    }

    /// Every id anything is known of.
    pub(crate) fn ids(&self) -> impl Iterator<Item = &Arc<str>> {
        self.children.keys()
    }

    /// How many children are to run.
    #[must_use]
    pub fn count(&self) -> usize {
        self.specs
    }

    /// How many children each node has or is to start.
    #[must_use]
    pub fn counts(&self) -> &BTreeMap<NodeId, usize> {
        &self.on_node
    }

    /// How many children have something of theirs here: a process, or one to come.
    #[must_use]
    pub fn here(&self) -> usize {
        self.children.values().filter(|child| child.local.is_some()).count()
    }

    /// Whether the process of the child here gives its state to another node right now.
    #[must_use]
    pub fn is_moving(&self, id: &str) -> bool {
        let local = self.children.get(id).and_then(|child| child.local.as_ref());
        local.is_some_and(|local| {
            matches!(local.stage, Stage::Handing(..) | Stage::Leaving(..) | Stage::Delivering(..))
        })
    }

    /// The hosts there are.
    #[must_use]
    pub fn hosts(&self) -> &BTreeMap<NodeId, Host> {
        &self.hosts
    }

    /// Which host writes the places of children whose node is lost.
    #[must_use]
    pub fn planner(&self) -> Option<&NodeId> {
        let present = self.hosts.iter().filter(|(node, _)| self.is_present(node));
        present.min_by_key(|(node, host)| (host.since, *node)).map(|(node, _)| node)
    }

    /// Whether moves that level the load wait.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.paused
    }

    /// Whether this side may run children.
    #[must_use]
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// The moves that are still to be made.
    #[must_use]
    pub fn pending_moves(&self) -> usize {
        self.moves.len() + self.moving
    }

    /// The node for a child that has none.
    ///
    /// # Errors
    /// [`Unplaceable`].
    pub fn choose(&self, id: &str, kind: &str, wish: &Wish) -> Result<NodeId, Unplaceable> {
        let placer = self.placers.get(kind).ok_or(Unplaceable::NoNode)?;
        placer.place(id, wish, |other| self.node_of(other).cloned())
    }

    /// The node for a child that has none, the same on all nodes that see the same hosts, whatever
    /// their load; never one of `tried`.
    ///
    /// # Errors
    /// [`Unplaceable`].
    pub fn choose_fixed(
        &self,
        id: &str,
        kind: &str,
        wish: &Wish,
        tried: &[NodeName],
    ) -> Result<NodeId, Unplaceable> {
        let mut placer = Placer::new(Strategy::Rendezvous);
        let candidates = self.candidates(kind).filter(|it| !tried.contains(&it.node.name));
        // Fewer than all, which fitted.
        placer.set_candidates(candidates.cloned().collect()).ok();
        placer.place(id, wish, |other| self.node_of(other).cloned())
    }

    /// The node for a child that is to be disturbed least: of those that fit, the one that has been
    /// a host for longest. Whoever comes later does not change it.
    ///
    /// # Errors
    /// [`Unplaceable`].
    pub fn choose_oldest(&self, kind: &str, wish: &Wish) -> Result<NodeId, Unplaceable> {
        let fitting = self.candidates(kind).filter(|it| it.weight > 0 && it.fits(wish));
        let oldest =
            fitting.min_by_key(|it| (self.hosts.get(&it.node).map(|it| it.since), &it.node));
        oldest.map(|it| it.node.clone()).ok_or(Unplaceable::NoNode)
    }

    /// The node for a child that was on `before`: that one, if it takes it.
    ///
    /// # Errors
    /// [`Unplaceable`].
    pub fn choose_again(
        &self,
        id: &str,
        kind: &str,
        wish: &Wish,
        before: &NodeId,
    ) -> Result<NodeId, Unplaceable> {
        let fits = |it: &Candidate| it.node == *before && it.weight > 0 && it.fits(wish);
        match self.candidates(kind).any(fits) {
            true => Ok(before.clone()),
            false => self.choose_fixed(id, kind, wish, &[]),
        }
    }

    /// A fence above all known starts of `id`.
    #[must_use]
    pub fn next_fence(&self, id: &str) -> Fence {
        let Some(child) = self.children.get(id) else { return Fence(1) };
        // Ids that come back after they were removed go on above what they had.
        let first = child.spec.as_ref().map_or(0, |(version, _)| version.millis().as_millis());
        let placed = child.place.as_ref().map_or(0, |(_, place)| place.fence.0);
        let local = child.local.as_ref().map_or(0, |local| local.fence.0);
        Fence(first.max(placed.max(local).saturating_add(1)))
    }

    /// What would move now to level the load and satisfy all wishes, at most `limit`.
    #[must_use]
    pub fn plan(&self, limit: usize) -> Vec<placement::Move> {
        let mut moves = Vec::new();
        for (kind, placer) in &self.placers {
            let placed = self.children.iter().filter_map(|(id, child)| {
                let (spec, place) = (self.child(id)?.0, self.child(id)?.1?);
                let PlaceState::Running(_) = place.state else { return None };
                let is_ours = spec.kind == *kind && child.spec.is_some();
                is_ours.then(|| Placed {
                    id,
                    wish: &spec.options.wish,
                    node: &place.node,
                    stays: spec.options.stays,
                })
            });
            let left = limit.saturating_sub(moves.len());
            moves.extend(placer.moves(placed, self.config.slack_percent, left));
        }
        // What has no node any more is failover's business.
        moves.retain(|it| self.is_present(&it.from));
        moves
    }

    /// When [`Core::woke`] is due next, if ever.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        if !self.to_plan.is_empty() && self.may_plan() {
            return Some(Instant::ZERO);
        }
        let timer = self.timers.first().map(|(at, _)| *at);
        let forget = (!self.hosts.is_empty()).then_some(self.forget_at);
        let level = self.level_at;
        let can_move = !self.moves.is_empty() && self.can_move();
        let next = can_move.then_some(self.next_move_at);
        [timer, forget, level, next].into_iter().flatten().min()
    }

    fn node_of(&self, id: &str) -> Option<&NodeId> {
        self.child(id)?.1.map(|place| &place.node)
    }

    fn is_present(&self, node: &NodeId) -> bool {
        let seen = self.members.get(&node.name);
        *node == self.me
            || seen.is_some_and(|it| it.node == *node && it.standing == Standing::Present)
    }

    fn may_plan(&self) -> bool {
        self.complete && self.gate == Gate::Open && self.planner() == Some(&self.me)
    }

    fn can_move(&self) -> bool {
        !self.paused && self.gate == Gate::Open && self.moving < self.config.moves_at_once.max(1)
    }

    fn candidates(&self, kind: &str) -> impl Iterator<Item = &Candidate> {
        let able = |seen: &&Seen| {
            let is_host = |host: &Host| host.kinds.contains(kind);
            seen.standing == Standing::Present && self.hosts.get(&seen.node).is_some_and(is_host)
        };
        self.members.values().filter(able).filter_map(|seen| seen.candidate.as_ref())
    }

    /// Since when `node` is lost, if it is.
    fn gone(&self, node: &NodeId) -> Option<Instant> {
        if *node == self.me {
            return None;
        }
        match self.members.get(&node.name) {
            Some(seen) if seen.node.supersedes(node) => Some(Instant::ZERO),
            Some(seen) if seen.node == *node => match seen.standing {
                Standing::Present => None,
                Standing::Down => Some(self.gone_since.get(node).copied().unwrap_or(Instant::ZERO)),
                // It has handed its children over, and that may be heard later than the farewell.
                Standing::Left { drained: true } => {
                    let since = self.gone_since.get(node).copied().unwrap_or(Instant::ZERO);
                    Some(since + HANDED_OVER_WITHIN)
                }
                Standing::Left { drained: false } | Standing::Superseded => Some(Instant::ZERO),
            },
            Some(_) | None => None,
        }
    }

    /// From when on a child on `node` may be started elsewhere; `None` while its node is there.
    fn lost_from(&self, node: &NodeId) -> Option<Instant> {
        if let Some(since) = self.gone(node) {
            let waits = since != Instant::ZERO;
            return Some(if waits { since + self.config.failover_after } else { since });
        }
        let is_known = *node == self.me || self.members.contains_key(&node.name);
        if is_known && self.members.get(&node.name).is_none_or(|seen| seen.node == *node) {
            return None;
        }
        let since = self.unknown_since.get(node)?;
        Some(*since + self.config.unknown_for)
    }
}

/// What others said.
impl Core {
    /// The replica holds something else for the spec of `id`; `None` when it holds nothing.
    pub fn spec_changed(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        spec: Option<(HlcTimestamp, Arc<Spec>)>,
        out: &mut Vec<Output>,
    ) {
        if let Some((version, spec)) = spec {
            let known = self.children.get(id).filter(|child| child.provisional.is_none());
            let known = known.and_then(|child| child.spec.as_ref());
            if known.is_some_and(|(known, _)| *known > version) {
                // It was written at the same time as what was known, which is removed: so is it.
                self.drop_spec(now, id, out);
            }
            if self.take_spec(id, version, &spec, out) {
                self.children.get_mut(id).expect("it was just seen").provisional = None;
            }
        } else if let Some(child) = self.children.get(id)
            && child.provisional.is_none()
        {
            self.drop_spec(now, id, out);
        }
        self.reconcile(now, id, out);
    }

    /// The child `id` is removed, as of this version of its spec; whether a process of it is here.
    pub fn removed(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        version: HlcTimestamp,
        out: &mut Vec<Output>,
    ) -> bool {
        self.prune_removed(now);
        self.removed.insert(Arc::clone(id), (version, now));
        if self.version(id).is_some_and(|known| known <= version) {
            self.drop_spec(now, id, out);
            self.reconcile(now, id, out);
        }
        self.children.get(id).is_some_and(|child| child.local.is_some())
    }

    /// The replica holds something else for the place of `id`; `None` when it holds nothing.
    pub fn place_changed(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        place: Option<(HlcTimestamp, Place)>,
        out: &mut Vec<Output>,
    ) {
        match place {
            Some((version, place)) => {
                let child = self.children.entry(Arc::clone(id)).or_default();
                if child.place.as_ref().is_some_and(|(known, _)| *known >= version) {
                    return;
                }
                self.meet(now, &place.node);
                self.set_place(id, version, place, out);
            }
            None => {
                let Some(child) = self.children.get_mut(id) else { return };
                // An earlier place was removed, and the one we were told of is on its way. If it
                // was removed as well, so was the spec, and without that it ends all the same.
                if child.spec.is_some() && child.answered.is_some_and(|until| now < until) {
                    return;
                }
                child.place = None;
                self.count_child(id);
            }
        }
        self.reconcile(now, id, out);
    }

    /// The node that was asked to start `id` says where it is; the replica may not know yet.
    pub fn place_answered(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        place: (HlcTimestamp, Place),
        out: &mut Vec<Output>,
    ) {
        self.children.entry(Arc::clone(id)).or_default().answered = Some(now + PROVISIONAL_FOR);
        self.place_changed(now, id, Some(place), out);
    }

    /// A node says something else of itself; `None` when that was removed.
    pub fn host_changed(&mut self, now: Instant, node: &NodeId, host: Option<Host>) {
        let before = match host {
            Some(host) if self.hosts.get(node) == Some(&host) => return,
            Some(host) => self.hosts.insert(node.clone(), host),
            None => self.hosts.remove(node),
        };
        drop(before);
        self.meet(now, node);
        self.hosts_changed(now);
    }

    /// The members are these now.
    pub fn members_changed(&mut self, now: Instant, members: Vec<Seen>, out: &mut Vec<Output>) {
        self.members = members.into_iter().map(|seen| (seen.node.name.clone(), seen)).collect();
        let mut gone_since = BTreeMap::new();
        for seen in self.members.values().filter(|seen| seen.standing != Standing::Present) {
            let since = self.gone_since.get(&seen.node).copied().unwrap_or(now);
            gone_since.insert(seen.node.clone(), since);
        }
        self.gone_since = gone_since;
        self.unknown_since.retain(|node, _| !self.members.contains_key(&node.name));
        let strangers: Vec<NodeId> =
            self.on_node.keys().filter(|node| !self.is_known(node)).cloned().collect();
        for node in strangers {
            self.meet(now, &node);
        }
        self.hosts_changed(now);
        self.woke(now, out);
    }

    /// Whether this side of a cut may run children.
    pub fn gate_changed(&mut self, now: Instant, gate: Gate, out: &mut Vec<Output>) {
        if self.gate == gate {
            return;
        }
        self.gate = gate;
        let ids: Vec<Arc<str>> = self.children.keys().cloned().collect();
        for id in ids {
            self.reconcile(now, &id, out);
        }
        self.plan_lost();
        self.plan_some(now, out);
    }

    /// Whether the records of all members are here. At first they count as complete.
    ///
    /// A node that has just come and has heard of a child but not yet where it runs would start it
    /// a second time, and without its state.
    pub fn records_complete(&mut self, now: Instant, complete: bool, out: &mut Vec<Output>) {
        let was = std::mem::replace(&mut self.complete, complete);
        if complete && !was {
            self.plan_lost();
            self.plan_some(now, out);
        }
    }

    /// Whether a child that is not known here is known nowhere.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// Whether moves that level the load wait.
    pub fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    fn is_known(&self, node: &NodeId) -> bool {
        *node == self.me || self.members.contains_key(&node.name)
    }

    fn meet(&mut self, now: Instant, node: &NodeId) {
        if !self.is_known(node) {
            self.unknown_since.entry(node.clone()).or_insert(now);
        }
    }

    /// Takes in a spec, if it is later than what is known; whether what is known is it now.
    fn take_spec(
        &mut self,
        id: &Arc<str>,
        version: HlcTimestamp,
        spec: &Arc<Spec>,
        out: &mut Vec<Output>,
    ) -> bool {
        if self.removed.get(id).is_some_and(|(removed, _)| *removed >= version) {
            // It was not here yet when it was removed.
            out.push(Output::Remove(Arc::clone(id), version));
            return false;
        }
        let child = self.children.entry(Arc::clone(id)).or_default();
        match &child.spec {
            Some((known, _)) if *known > version => return false,
            Some((known, _)) if *known == version => return true,
            // Two started the same at once: it is one child, under the later version.
            Some((before, known)) if **known == **spec => {
                let before = *before;
                child.spec = Some((version, Arc::clone(spec)));
                if let Some(local) = child.local.as_mut().filter(|it| it.spec == before) {
                    local.spec = version;
                }
                if let Some((_, place)) = child.place.as_mut().filter(|(_, it)| it.spec == before) {
                    place.spec = version;
                    // Others have to hear it from whoever runs it.
                    self.write_running(id, out);
                }
                self.count_child(id);
                return true;
            }
            Some(_) => out.push(event(id, What::Replaced, child.place.as_ref().map(|it| &it.1))),
            None => self.specs += 1,
        }
        child.spec = Some((version, Arc::clone(spec)));
        self.count_child(id);
        true
    }

    fn drop_spec(&mut self, now: Instant, id: &Arc<str>, out: &mut Vec<Output>) {
        let Some(child) = self.children.get_mut(id) else { return };
        // Of what was never in the replica it is not known that it was removed.
        let was_provisional = child.provisional.take().is_some();
        let Some((version, _)) = child.spec.take() else { return };
        out.push(event(id, What::Removed, child.place.as_ref().map(|(_, place)| place)));
        self.specs -= 1;
        self.count_child(id);
        if !was_provisional {
            self.prune_removed(now);
            self.removed.insert(Arc::clone(id), (version, now));
        }
    }

    fn prune_removed(&mut self, now: Instant) {
        if self.removed.len() >= REMOVED_MAX {
            self.removed.retain(|_, (_, at)| now.saturating_since(*at) < REMOVED_FOR / 2);
        }
        if self.removed.len() >= REMOVED_MAX {
            self.removed.pop_first();
        }
    }

    fn set_place(
        &mut self,
        id: &Arc<str>,
        version: HlcTimestamp,
        place: Place,
        out: &mut Vec<Output>,
    ) {
        let child = self.children.entry(Arc::clone(id)).or_default();
        let before = child.place.replace((version, place));
        let (_, place) = child.place.as_ref().expect("it was just set");
        let before = before.map(|(_, before)| before).filter(|it| it.spec == place.spec);
        let what = match (&before, &place.state) {
            (Some(before), _) if before == place => None,
            (_, PlaceState::Quarantined) => Some(What::Quarantined),
            (_, PlaceState::Asleep(_)) => Some(What::Slept),
            (_, PlaceState::Refused { .. }) => Some(What::Refused),
            (Some(before), _) if before.node != place.node => Some(What::Moved),
            (_, PlaceState::Assigned { .. }) => None,
            (None, PlaceState::Running(_)) => Some(What::Started),
            (Some(before), PlaceState::Running(_)) => match before.state {
                PlaceState::Assigned { .. } if before.restarts == 0 => Some(What::Started),
                _ => Some(What::Restarted),
            },
        };
        out.extend(what.map(|what| event(id, what, Some(place))));
        self.count_child(id);
    }

    /// Keeps the placers' counts in step with the records of `id`.
    fn count_child(&mut self, id: &str) {
        let Some(child) = self.children.get_mut(id) else { return };
        let now = match (&child.spec, &child.place) {
            (Some((version, spec)), Some((_, place))) if place.spec == *version => {
                match place.state {
                    PlaceState::Assigned { .. } | PlaceState::Running(_) => {
                        Some((Arc::clone(spec), place.node.clone()))
                    }
                    PlaceState::Refused { .. }
                    | PlaceState::Asleep(_)
                    | PlaceState::Quarantined => None,
                }
            }
            _ => None,
        };
        if child.counted == now {
            return;
        }
        let before = std::mem::replace(&mut child.counted, now.clone());
        if let Some((spec, node)) = before {
            if let Some(placer) = self.placers.get_mut(&spec.kind) {
                placer.remove(&node, &spec.options.wish);
            }
            if let Some(count) = self.on_node.get_mut(&node) {
                *count -= 1;
                if *count == 0 {
                    self.on_node.remove(&node);
                }
            }
        }
        if let Some((spec, node)) = now {
            if let Some(placer) = self.placers.get_mut(&spec.kind) {
                placer.add(&node, &spec.options.wish);
            }
            *self.on_node.entry(node).or_default() += 1;
        }
    }

    fn hosts_changed(&mut self, now: Instant) {
        if self.rebuild_placers(now) && self.config.rebalance_on_join {
            self.level_at = Some(now + self.config.rebalance_after);
        }
        self.plan_lost();
    }

    /// Tells the placers who takes children; whether somebody came.
    fn rebuild_placers(&mut self, now: Instant) -> bool {
        let kinds: BTreeSet<Arc<str>> =
            self.hosts.values().flat_map(|host| host.kinds.iter().cloned()).collect();
        let mut came = false;
        for kind in kinds {
            let candidates: Vec<Candidate> = self.candidates(&kind).cloned().collect();
            let mut placer = match self.placers.remove(&kind) {
                Some(placer) => placer,
                None => self.new_placer(&kind),
            };
            let before: BTreeSet<NodeId> =
                placer.candidates().map(|(it, _)| it.node.clone()).collect();
            came |= candidates.iter().any(|it| !before.contains(&it.node));
            if let Err(error) = placer.set_candidates(candidates) {
                tracing::warn!(%kind, %error, ?now, "more hosts than can be looked at");
            }
            self.placers.insert(kind, placer);
        }
        came
    }

    fn new_placer(&self, kind: &str) -> Placer {
        let mut placer = Placer::new(self.config.strategy);
        let counted = self.children.values().filter_map(|child| child.counted.as_ref());
        for (spec, node) in counted.filter(|(spec, _)| *spec.kind == *kind) {
            placer.add(node, &spec.options.wish);
        }
        placer
    }
}

/// What happens here.
impl Core {
    /// Somebody wants the child to be started on this node, and settles a failure himself.
    /// `is_written` tells whether its spec is in the replica here.
    pub fn start_here(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        ask: StartHere,
        is_written: bool,
        out: &mut Vec<Output>,
    ) -> StartAnswer {
        if self.draining {
            return StartAnswer::Refused(Refusal::Draining);
        }
        match &self.gate {
            Gate::Open => {}
            Gate::Waiting => return StartAnswer::Refused(Refusal::Split("undecided".to_owned())),
            Gate::Shut(why) => return StartAnswer::Refused(Refusal::Split(why.to_string())),
        }
        if !self.take_spec(id, ask.version, &ask.spec, out) {
            return StartAnswer::Refused(Refusal::Removed);
        }
        let fence = ask.fence.max(self.next_fence(id));
        let elsewhere = self.runs_elsewhere(id);
        let child = self.children.get_mut(id).expect("its spec was just taken");
        if !is_written {
            child.provisional = Some(now + PROVISIONAL_FOR);
        }
        let place = child.place.as_ref().map(|(_, place)| place);
        let place = place.filter(|place| place.spec == ask.version);
        let is_move = match &ask.cause {
            Cause::Drained(from) | Cause::Rebalanced(from) => {
                place.is_some_and(|place| place.node == *from && place.fence < ask.fence)
            }
            _ => false,
        };
        let answer = match (&child.local, place) {
            (Some(local), place) if local.spec == ask.version => match (&local.stage, place) {
                (Stage::Running(_), Some(place)) => StartAnswer::At(place.clone()),
                (Stage::Starting, _) => StartAnswer::Starting,
                _ => StartAnswer::Refused(Refusal::Busy),
            },
            (Some(_), _) => StartAnswer::Refused(Refusal::Busy),
            (None, Some(place)) if matches!(place.state, PlaceState::Quarantined) => {
                StartAnswer::At(place.clone())
            }
            // Whoever ran it has just given it up for this, or nobody runs it.
            (None, _) if is_move || !elsewhere => {
                let StartHere { version, spec, restarts, state, cause, .. } = ask;
                let state = state.or_else(|| self.asleep_state(id));
                let local = Local::new(now, version, fence, restarts, cause, true);
                let child = self.children.get_mut(id).expect("its spec was just taken");
                child.local = Some(Box::new(local));
                out.push(Output::Start { id: Arc::clone(id), spec, fence, restarts, state });
                StartAnswer::Starting
            }
            (None, _) => {
                let place = self.child(id).and_then(|(_, place)| place.cloned());
                StartAnswer::At(place.expect("it runs elsewhere"))
            }
        };
        self.reconcile(now, id, out);
        answer
    }

    /// A process was started as asked.
    pub fn started(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        fence: Fence,
        process: ProcessId,
        out: &mut Vec<Output>,
    ) {
        let Some(local) = self.local_of(id, fence) else {
            // Nobody remembers why.
            out.push(Output::Stop(Arc::clone(id), process, StopWhy::Elsewhere));
            return;
        };
        match local.stage {
            Stage::Starting => {
                local.stage = Stage::Running(process);
                (local.since, local.asked) = (now, false);
                self.write_running(id, out);
                if self.draining {
                    self.hand_off(now, id, out);
                }
            }
            Stage::Stopping(_) => {
                local.stage = Stage::Stopping(Some(process));
                out.push(Output::Stop(Arc::clone(id), process, StopWhy::Elsewhere));
                self.outdo(id, fence, out);
            }
            Stage::Running(_)
            | Stage::Waiting
            | Stage::Handing(..)
            | Stage::Leaving(..)
            | Stage::Delivering(..) => {
                out.push(Output::Stop(Arc::clone(id), process, StopWhy::Elsewhere));
            }
        }
        self.reconcile(now, id, out);
    }

    /// No process came of a start.
    pub fn start_failed(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        fence: Fence,
        error: &KindError,
        out: &mut Vec<Output>,
    ) {
        let me = self.me.clone();
        let Some(local) = self.local_of(id, fence) else { return };
        match local.stage {
            Stage::Starting if local.asked => {
                self.forget_local(id);
            }
            Stage::Starting if error.is_passing() => {
                self.failed(now, id, Cause::Ended(Cause::words(error)), out);
            }
            Stage::Starting => {
                let (restarts, fence) = (local.restarts, local.fence);
                let mut refused = self.refusals(id);
                refused.push(me.name.clone());
                self.forget_local(id);
                let state = PlaceState::Refused { refused };
                let cause = Cause::Refused(Cause::words(error));
                self.write_place(id, me, fence, restarts, state, cause, out);
                self.to_plan.insert(Arc::clone(id));
            }
            Stage::Stopping(_) => self.forget_local(id),
            Stage::Running(_)
            | Stage::Waiting
            | Stage::Handing(..)
            | Stage::Leaving(..)
            | Stage::Delivering(..) => {}
        }
        self.reconcile(now, id, out);
        self.plan_some(now, out);
    }

    /// A process has ended.
    pub fn ended(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        process: ProcessId,
        reason: &ExitReason,
        out: &mut Vec<Output>,
    ) {
        let Some(child) = self.children.get(id) else { return };
        let Some(local) = &child.local else { return };
        let restart = child.spec.as_ref().map(|(_, spec)| spec.options.restart);
        match &local.stage {
            Stage::Running(it) if *it == process => {
                let again = match restart {
                    Some(Restart::Permanent) => true,
                    Some(Restart::Transient) => !reason.is_normal(),
                    Some(Restart::Temporary) | None => false,
                };
                if again {
                    self.failed(now, id, Cause::Ended(Cause::words(reason)), out);
                } else {
                    self.forget_local(id);
                    self.over(now, id, out);
                }
            }
            Stage::Stopping(Some(it)) if *it == process => self.forget_local(id),
            Stage::Leaving(it, to, cause) if *it == process => {
                let (to, cause) = (to.clone(), cause.clone());
                match self.is_mine(id) {
                    true => self.deliver(id, to, cause, None, out),
                    false => self.give_up(id, out),
                }
            }
            _ => return,
        }
        self.reconcile(now, id, out);
    }

    /// A process gave its state and ended, or did not; `is_alive` tells whether it goes on then.
    pub fn handed(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        fence: Fence,
        given: Result<Option<Handed>, (Arc<str>, bool)>,
        out: &mut Vec<Output>,
    ) {
        let (me, draining) = (self.me.clone(), self.draining);
        let keep = self.config.on_hand_off_failure == OnHandOffFailure::Keep;
        let Some(local) = self.local_of(id, fence) else { return };
        let Stage::Handing(process, then) = local.stage.clone() else { return };
        let state = match given {
            Ok(state) => state,
            Err((why, is_alive)) => {
                local.stage = Stage::Running(process);
                out.push(event_here(&me, id, What::HandOffFailed(Arc::clone(&why)), fence));
                match then {
                    _ if !is_alive => self.failed(now, id, Cause::Ended(why), out),
                    Then::Move { to, cause } if draining || !keep => {
                        local.stage = Stage::Leaving(process, to, cause);
                        out.push(Output::Stop(Arc::clone(id), process, StopWhy::Fresh));
                    }
                    Then::Move { .. } | Then::Again | Then::Sleep => {}
                }
                self.reconcile(now, id, out);
                return;
            }
        };
        if !self.is_mine(id) {
            // Removed, or placed elsewhere, while it gave its state.
            self.give_up(id, out);
            self.reconcile(now, id, out);
            return;
        }
        match then {
            Then::Move { to, cause } => self.deliver(id, to, cause, state, out),
            Then::Again => self.start_again(now, id, None, state, out),
            Then::Sleep => {
                let local = self.local_of(id, fence).expect("it was just seen");
                let (fence, restarts) = (local.fence, local.restarts);
                self.forget_local(id);
                let state = PlaceState::Asleep(state.map(Box::new));
                let me = self.me.clone();
                self.write_place(id, me, fence, restarts, state, Cause::Idle, out);
            }
        }
        self.reconcile(now, id, out);
    }

    /// The node that was to start a successor did, at this place and version, or did not.
    pub fn delivered(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        outcome: Result<(HlcTimestamp, Place), Arc<str>>,
        out: &mut Vec<Output>,
    ) {
        let Some(child) = self.children.get_mut(id) else { return };
        let Some(local) = &mut child.local else { return };
        let Stage::Delivering(_, state) = &mut local.stage else { return };
        let state = state.take();
        let fence = local.fence;
        match outcome {
            Ok((version, place)) => {
                self.forget_local(id);
                self.place_answered(now, id, (version, place), out);
            }
            Err(why) => {
                out.push(event_here(&self.me, id, What::HandOffFailed(why), fence));
                if self.is_mine(id) {
                    // Above the fence that the other node was given.
                    let fence = Fence(fence.0.saturating_add(1));
                    let local = self.local_of_any(id).expect("it was just seen");
                    local.fence = local.fence.max(fence);
                    self.start_again(now, id, None, state, out);
                } else {
                    self.give_up(id, out);
                }
            }
        }
        self.reconcile(now, id, out);
    }

    /// Move the child from here to there; whether it is being moved.
    pub fn move_here(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        to: &NodeId,
        out: &mut Vec<Output>,
    ) -> bool {
        let fits = *to != self.me && self.is_present(to) && self.is_mine(id);
        let cause = Cause::Rebalanced(self.me.clone());
        let Some(local) = self.local_of_any(id).filter(|_| fits) else { return false };
        let Stage::Running(process) = local.stage else { return false };
        local.stage = Stage::Handing(process, Then::Move { to: to.clone(), cause });
        let (id, fence) = (Arc::clone(id), local.fence);
        self.reschedule(now, &id);
        out.push(Output::HandOff { id, process, fence });
        true
    }

    /// The move of a child that was requested is over.
    pub fn move_done(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.moving = self.moving.saturating_sub(1);
        self.make_moves(now, out);
    }

    /// Levels the load now.
    pub fn rebalance(&mut self, now: Instant, out: &mut Vec<Output>) -> usize {
        self.moves = self.plan(MOVES_MAX).into();
        self.level_at = None;
        self.make_moves(now, out);
        self.moves.len() + self.moving
    }

    /// This node is being drained: it starts nothing more, and hands over what it has.
    pub fn drain(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.draining = true;
        let here = self.children.iter().filter(|(_, child)| child.local.is_some());
        let here: Vec<Arc<str>> = here.map(|(id, _)| Arc::clone(id)).collect();
        for id in here {
            self.hand_off(now, &id, out);
            self.reschedule(now, &id);
        }
    }

    /// Somebody lets the child out of quarantine; whether it was there.
    pub fn release(&mut self, now: Instant, id: &Arc<str>, out: &mut Vec<Output>) -> bool {
        let Some((spec, Some(place))) = self.child(id) else { return false };
        if place.state != PlaceState::Quarantined {
            return false;
        }
        let (spec, restarts) = (Arc::clone(spec), place.restarts);
        let Ok(to) = self.choose(id, &spec.kind, &spec.options.wish) else { return false };
        self.assign(id, to, restarts, Vec::new(), Cause::Released, out);
        self.reconcile(now, id, out);
        true
    }

    /// A process that was looked at has handled so many messages, and so many wait.
    pub fn probed(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        handled: u64,
        waiting: usize,
        out: &mut Vec<Output>,
    ) {
        let Some(idle_for) = self.idle_for(id) else { return };
        let Some(local) = self.local_of_any(id) else { return };
        let Stage::Running(process) = local.stage else { return };
        if local.handled != handled || waiting > 0 {
            (local.handled, local.since) = (handled, now);
        } else if now.saturating_since(local.since) >= idle_for {
            local.stage = Stage::Handing(process, Then::Sleep);
            let (id, fence) = (Arc::clone(id), local.fence);
            out.push(Output::HandOff { id, process, fence });
        }
        self.reschedule(now, id);
    }

    /// Time has passed.
    pub fn woke(&mut self, now: Instant, out: &mut Vec<Output>) {
        while let Some((at, id)) = self.timers.first().cloned()
            && at <= now
        {
            self.timers.remove(&(at, Arc::clone(&id)));
            if let Some(child) = self.children.get_mut(&id) {
                child.due = None;
            }
            self.child_due(now, &id, out);
        }
        self.plan_some(now, out);
        self.forget_hosts(now, out);
        if self.level_at.is_some_and(|at| at <= now) {
            self.level_at = None;
            if self.may_plan() && !self.paused {
                self.moves = self.plan(MOVES_MAX).into();
            }
        }
        self.make_moves(now, out);
    }

    fn local_of(&mut self, id: &str, fence: Fence) -> Option<&mut Local> {
        self.local_of_any(id).filter(|local| local.fence == fence)
    }

    fn local_of_any(&mut self, id: &str) -> Option<&mut Local> {
        self.children.get_mut(id)?.local.as_deref_mut()
    }

    fn forget_local(&mut self, id: &str) {
        if let Some(child) = self.children.get_mut(id) {
            child.local = None;
        }
    }

    fn idle_for(&self, id: &str) -> Option<Duration> {
        self.children.get(id)?.spec.as_ref()?.1.options.idle_for
    }

    /// Whether the records say that the child is to run here.
    fn is_mine(&self, id: &str) -> bool {
        self.child(id).is_some_and(|(_, place)| {
            place.is_some_and(|place| {
                let runs =
                    matches!(place.state, PlaceState::Running(_) | PlaceState::Assigned { .. });
                place.node == self.me && runs
            })
        })
    }

    fn runs_elsewhere(&self, id: &str) -> bool {
        let Some((_, Some(place))) = self.child(id) else { return false };
        let runs = matches!(place.state, PlaceState::Running(_) | PlaceState::Assigned { .. });
        runs && place.node != self.me && self.lost_from(&place.node).is_none()
    }

    fn asleep_state(&self, id: &str) -> Option<Handed> {
        match &self.child(id)?.1?.state {
            PlaceState::Asleep(state) => state.as_deref().cloned(),
            _ => None,
        }
    }

    fn refusals(&self, id: &str) -> Vec<NodeName> {
        match self.child(id).and_then(|(_, place)| place).map(|place| &place.state) {
            Some(PlaceState::Assigned { refused } | PlaceState::Refused { refused }) => {
                refused.clone()
            }
            _ => Vec::new(),
        }
    }

    /// A process or its start failed: again after a pause, unless it was too often.
    fn failed(&mut self, now: Instant, id: &Arc<str>, cause: Cause, out: &mut Vec<Output>) {
        let Some(child) = self.children.get_mut(id) else { return };
        let (Some((_, spec)), Some(local)) = (&child.spec, &mut child.local) else {
            child.local = None;
            return;
        };
        let options = &spec.options;
        let lived = now.saturating_since(local.since);
        let was_running = matches!(local.stage, Stage::Running(_));
        local.in_a_row =
            if was_running && lived > options.backoff.most { 1 } else { local.in_a_row + 1 };
        let window = options.quarantine.within;
        while local.failures.front().is_some_and(|&at| now.saturating_since(at) > window) {
            local.failures.pop_front();
        }
        local.failures.push_back(now);
        local.cause = cause.clone();
        let failures = u32::try_from(local.failures.len()).unwrap_or(u32::MAX);
        if failures > options.quarantine.restarts_max {
            let (fence, restarts) = (local.fence, local.restarts);
            self.forget_local(id);
            let (me, state) = (self.me.clone(), PlaceState::Quarantined);
            self.write_place(id, me, fence, restarts, state, cause, out);
        } else {
            local.stage = Stage::Waiting;
            local.since = now + options.backoff.after(local.in_a_row);
        }
        self.reschedule(now, id);
    }

    /// The child is over by itself.
    fn over(&mut self, now: Instant, id: &Arc<str>, out: &mut Vec<Output>) {
        if let Some(version) = self.version(id) {
            out.push(Output::Remove(Arc::clone(id), version));
            self.drop_spec(now, id, out);
            // Also when its spec came with a call and is not in the replica here yet.
            self.removed.insert(Arc::clone(id), (version, now));
        }
    }

    /// Starts the child here once more, above every fence it had.
    fn start_again(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        cause: Option<Cause>,
        state: Option<Handed>,
        out: &mut Vec<Output>,
    ) {
        let fence = self.next_fence(id);
        let Some(child) = self.children.get_mut(id) else { return };
        let (Some((version, spec)), Some(local)) = (&child.spec, &mut child.local) else { return };
        (local.spec, local.fence, local.stage, local.since) =
            (*version, fence, Stage::Starting, now);
        local.asked = false;
        if let Some(cause) = cause {
            local.cause = cause;
            local.restarts = local.restarts.saturating_add(1);
        }
        let (spec, restarts) = (Arc::clone(spec), local.restarts);
        out.push(Output::Start { id: Arc::clone(id), spec, fence, restarts, state });
        self.reschedule(now, id);
    }

    fn write_running(&mut self, id: &Arc<str>, out: &mut Vec<Output>) {
        let (me, version) = (self.me.clone(), self.version(id));
        let Some(local) = self.local_of_any(id) else { return };
        let Stage::Running(process) = local.stage else { return };
        if version == Some(local.spec) {
            let (fence, restarts, cause) = (local.fence, local.restarts, local.cause.clone());
            self.write_place(id, me, fence, restarts, PlaceState::Running(process), cause, out);
        }
    }

    fn erase(&mut self, id: &Arc<str>, out: &mut Vec<Output>) {
        let Some(child) = self.children.get_mut(id) else { return };
        if child.place.take().is_some() {
            out.push(Output::Erase(Arc::clone(id)));
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a place has as many parts")]
    fn write_place(
        &mut self,
        id: &Arc<str>,
        node: NodeId,
        fence: Fence,
        restarts: u32,
        state: PlaceState,
        cause: Cause,
        out: &mut Vec<Output>,
    ) {
        let Some(spec) = self.version(id) else { return };
        let place = Place { spec, node, fence, restarts, state, cause };
        // As if it had been heard already; the version follows with the next word about it.
        let before = self.place_version(id).unwrap_or(spec);
        self.set_place(id, before, place.clone(), out);
        out.push(Output::Write(Arc::clone(id), place));
    }

    fn assign(
        &mut self,
        id: &Arc<str>,
        to: NodeId,
        restarts: u32,
        refused: Vec<NodeName>,
        cause: Cause,
        out: &mut Vec<Output>,
    ) {
        let fence = self.next_fence(id);
        self.write_place(id, to, fence, restarts, PlaceState::Assigned { refused }, cause, out);
    }

    fn deliver(
        &mut self,
        id: &Arc<str>,
        to: NodeId,
        cause: Cause,
        state: Option<Handed>,
        out: &mut Vec<Output>,
    ) {
        let fence = self.next_fence(id);
        let Some(child) = self.children.get_mut(id) else { return };
        let (Some((version, spec)), Some(local)) = (&child.spec, &mut child.local) else { return };
        let ask = StartHere {
            version: *version,
            spec: Arc::clone(spec),
            fence,
            restarts: local.restarts,
            state: state.clone(),
            cause,
        };
        local.fence = fence;
        local.stage = Stage::Delivering(to.clone(), state);
        out.push(Output::Deliver { id: Arc::clone(id), to, ask });
    }

    /// Gives the child, of which nothing runs here, to another node, because this one is being
    /// drained.
    fn pass_on(&mut self, id: &Arc<str>, out: &mut Vec<Output>) {
        let Some((spec, Some(place))) = self.child(id) else { return };
        let restarts = place.restarts;
        if let Ok(to) = self.choose(id, &spec.kind, &spec.options.wish) {
            let cause = Cause::Drained(self.me.clone());
            self.assign(id, to, restarts, Vec::new(), cause, out);
        }
    }

    /// Hands the child over to another node, because this one is being drained.
    fn hand_off(&mut self, now: Instant, id: &Arc<str>, out: &mut Vec<Output>) {
        let Some((spec, _)) = self.child(id) else { return };
        let spec = Arc::clone(spec);
        let chosen = self.choose(id, &spec.kind, &spec.options.wish);
        let cause = Cause::Drained(self.me.clone());
        let Some(local) = self.local_of_any(id) else { return };
        let Ok(to) = chosen else { return };
        match local.stage {
            Stage::Running(process) if local.hand_offs < HAND_OFFS_MAX => {
                local.hand_offs += 1;
                local.stage = Stage::Handing(process, Then::Move { to, cause });
                let (id, fence) = (Arc::clone(id), local.fence);
                out.push(Output::HandOff { id, process, fence });
            }
            Stage::Waiting => {
                self.forget_local(id);
                self.pass_on(id, out);
            }
            _ => {}
        }
        self.reschedule(now, id);
    }
}

/// Bringing what runs here in step with what is written.
impl Core {
    fn reconcile(&mut self, now: Instant, id: &Arc<str>, out: &mut Vec<Output>) {
        self.bring_in_step(now, id, out);
        self.note_lack(now, id);
        self.reschedule(now, id);
        let child = self.children.get(id);
        let is_nothing = child.is_some_and(|child| {
            child.spec.is_none() && child.place.is_none() && child.local.is_none()
        });
        if is_nothing {
            if let Some(due) = child.and_then(|child| child.due) {
                self.timers.remove(&(due, Arc::clone(id)));
            }
            self.children.remove(id);
        }
    }

    fn bring_in_step(&mut self, now: Instant, id: &Arc<str>, out: &mut Vec<Output>) {
        let mine = self.is_mine(id);
        let shut = if let Gate::Shut(why) = &self.gate { Some(Arc::clone(why)) } else { None };
        let Some(child) = self.children.get_mut(id) else { return };
        let version = child.spec.as_ref().map(|(version, _)| *version);
        let place = child.place.as_ref().map(|(_, place)| place.clone());
        let Some(local) = &mut child.local else {
            let is_over = version.is_none() && self.removed.contains_key(id);
            if is_over && place.is_some_and(|place| place.node == self.me) {
                self.erase(id, out);
            } else if mine && self.draining {
                self.pass_on(id, out);
            } else if mine && self.gate == Gate::Open {
                self.begin(now, id, out);
            }
            return;
        };
        let Stage::Running(process) = local.stage else {
            self.bring_unready_in_step(now, id, mine, out);
            return;
        };
        if let Some(why) = shut {
            local.stage = Stage::Stopping(Some(process));
            out.push(event_here(&self.me, id, What::SplitStopped(Arc::clone(&why)), local.fence));
            out.push(Output::Stop(Arc::clone(id), process, StopWhy::Split(why)));
        } else if version.is_none() {
            local.stage = Stage::Stopping(Some(process));
            out.push(Output::Stop(Arc::clone(id), process, StopWhy::Removed));
        } else if version != Some(local.spec) {
            local.stage = Stage::Stopping(Some(process));
            out.push(Output::Stop(Arc::clone(id), process, StopWhy::Replaced));
        } else if let Some(place) = place.filter(|place| Some(place.spec) == version) {
            if mine {
                self.confirm(id, &place, out);
            } else {
                self.lose(id, place, out);
            }
        } else {
            // Somebody who had not heard of the child has removed its place.
            self.write_running(id, out);
        }
    }

    /// A child without a running process, of which something is here.
    fn bring_unready_in_step(
        &mut self,
        now: Instant,
        id: &Arc<str>,
        mine: bool,
        out: &mut Vec<Output>,
    ) {
        let open = self.gate == Gate::Open;
        let Some(child) = self.children.get_mut(id) else { return };
        let version = child.spec.as_ref().map(|(version, _)| *version);
        let place = child.place.as_ref().map(|(_, place)| place);
        let Some(local) = &mut child.local else { return };
        let is_current = version == Some(local.spec);
        // Of a first start there is no place yet.
        let is_placed = place.is_some_and(|place| Some(place.spec) == version);
        match local.stage {
            Stage::Starting => {
                let elsewhere = is_placed && !mine && !local.asked;
                if !is_current || elsewhere || matches!(self.gate, Gate::Shut(_)) {
                    local.stage = Stage::Stopping(None);
                }
            }
            Stage::Waiting if !is_current || !mine => {
                self.give_up(id, out);
                self.bring_in_step(now, id, out);
            }
            Stage::Waiting => {
                let fence = local.fence;
                let newer = place.is_some_and(|place| place.fence > fence);
                if newer && open {
                    self.forget_local(id);
                    self.begin(now, id, out);
                }
            }
            Stage::Running(_)
            | Stage::Stopping(_)
            | Stage::Handing(..)
            | Stage::Leaving(..)
            | Stage::Delivering(..) => {}
        }
    }

    /// A process runs where it is to run: whether the place says so too.
    fn confirm(&mut self, id: &Arc<str>, place: &Place, out: &mut Vec<Output>) {
        let Some(local) = self.local_of_any(id) else { return };
        let Stage::Running(process) = local.stage else { return };
        if place.fence > local.fence {
            // Whoever has seen a greater fence would refuse this one.
            let fence = local.fence;
            local.stage = Stage::Handing(process, Then::Again);
            local.cause = place.cause.clone();
            out.push(Output::HandOff { id: Arc::clone(id), process, fence });
        } else if place.state != PlaceState::Running(process) || place.fence < local.fence {
            self.write_running(id, out);
        }
    }

    /// A process runs that is placed elsewhere.
    fn lose(&mut self, id: &Arc<str>, winner: Place, out: &mut Vec<Output>) {
        let me = self.me.clone();
        let Some(local) = self.local_of_any(id) else { return };
        let Stage::Running(process) = local.stage else { return };
        local.stage = Stage::Stopping(Some(process));
        let fence = local.fence;
        out.push(event_here(&me, id, What::Lost, fence));
        out.push(Output::Lose { id: Arc::clone(id), process, winner: winner.clone() });
        self.outdo(id, fence, out);
    }

    /// Forgets a child that had a process here and is elsewhere by now.
    fn give_up(&mut self, id: &Arc<str>, out: &mut Vec<Output>) {
        let fence = self.local_of_any(id).map(|local| local.fence);
        self.forget_local(id);
        if let Some(fence) = fence {
            self.outdo(id, fence, out);
        }
    }

    /// If a process here had a fence that the child's place elsewhere does not have, that one gets
    /// a greater one.
    fn outdo(&mut self, id: &Arc<str>, fence: Fence, out: &mut Vec<Output>) {
        let Some((_, Some(place))) = self.child(id) else { return };
        let runs = matches!(place.state, PlaceState::Running(_) | PlaceState::Assigned { .. });
        if fence >= place.fence && runs && place.node != self.me {
            let (to, restarts) = (place.node.clone(), place.restarts);
            self.assign(id, to, restarts, Vec::new(), Cause::Conflict(self.me.clone()), out);
        }
    }

    /// Starts a child that is placed here.
    fn begin(&mut self, now: Instant, id: &Arc<str>, out: &mut Vec<Output>) {
        let next = self.next_fence(id);
        let Some(child) = self.children.get_mut(id) else { return };
        let (Some((version, spec)), Some((_, place))) = (&child.spec, &child.place) else { return };
        let (fence, cause, restarts) = match &place.state {
            PlaceState::Assigned { .. } => (place.fence, place.cause.clone(), place.restarts),
            // It ran here, and no process of it does: this side of a cut had to stop it.
            _ => (next, Cause::SplitHealed, place.restarts),
        };
        let spec = Arc::clone(spec);
        let local = Local::new(now, *version, fence, restarts, cause, false);
        child.local = Some(Box::new(local));
        out.push(Output::Start { id: Arc::clone(id), spec, fence, restarts, state: None });
    }

    /// Notes since when a child lacks something the planner can give it.
    fn note_lack(&mut self, now: Instant, id: &Arc<str>) {
        let Some(child) = self.children.get(id) else { return };
        let lacks = match (&child.spec, &child.place) {
            (Some(_), None) | (None, Some(_)) => child.local.is_none(),
            (Some((version, _)), Some((_, place))) => {
                let is_unplaced =
                    place.spec != *version || matches!(place.state, PlaceState::Refused { .. });
                let runs =
                    matches!(place.state, PlaceState::Running(_) | PlaceState::Assigned { .. });
                is_unplaced && child.local.is_none()
                    || runs && self.lost_from(&place.node).is_some()
            }
            (None, None) => false,
        };
        let child = self.children.get_mut(id).expect("it was just seen");
        child.lacking = if lacks { child.lacking.or(Some(now)) } else { None };
    }

    /// When something is to be done about the child by itself.
    fn reschedule(&mut self, now: Instant, id: &Arc<str>) {
        let Some(child) = self.children.get(id) else { return };
        let mut due = child.provisional;
        let mut sooner = |at: Instant| due = Some(due.map_or(at, |due| due.min(at)));
        if let Some(since) = child.lacking {
            sooner(match (&child.spec, &child.place) {
                (None, Some(_)) => since + SPECLESS_FOR,
                (Some((version, _)), Some((_, place))) if place.spec == *version => {
                    self.lost_from(&place.node).unwrap_or(since).max(since)
                }
                _ => since + self.config.orphan_after,
            });
        }
        if let Some(local) = &child.local {
            match &local.stage {
                Stage::Waiting => sooner(local.since),
                Stage::Starting if local.asked => sooner(local.since + SLOW_START),
                Stage::Running(_) => {
                    if let Some(idle_for) = self.idle_for(id) {
                        sooner(now + idle_for / 2);
                    }
                }
                _ => {}
            }
        }
        let child = self.children.get_mut(id).expect("it was just seen");
        if child.due == due {
            return;
        }
        if let Some(before) = child.due.take() {
            self.timers.remove(&(before, Arc::clone(id)));
        }
        child.due = due;
        if let Some(due) = due {
            self.timers.insert((due, Arc::clone(id)));
        }
    }

    fn child_due(&mut self, now: Instant, id: &Arc<str>, out: &mut Vec<Output>) {
        let open = self.gate == Gate::Open;
        let Some(child) = self.children.get_mut(id) else { return };
        if child.provisional.is_some_and(|until| until <= now) {
            // Nobody but the caller ever heard of it: it was removed before it was known.
            self.drop_spec(now, id, out);
            self.reconcile(now, id, out);
            return;
        }
        let lacking = child.lacking;
        if let Some(local) = &mut child.local {
            match local.stage.clone() {
                Stage::Waiting if local.since <= now && open => {
                    let cause = local.cause.clone();
                    self.start_again(now, id, Some(cause), None, out);
                }
                Stage::Waiting if local.since <= now => local.since = now + SLOW_START,
                Stage::Starting if local.asked && now >= local.since + SLOW_START => {
                    let (fence, restarts) = (local.fence, local.restarts);
                    let cause = local.cause.clone();
                    let is_new = child.place.as_ref().is_none_or(|(_, place)| place.fence < fence);
                    // Once: whoever asked still settles a failure.
                    local.since = now + SLOW_START * 20;
                    if is_new {
                        let (me, refused) = (self.me.clone(), Vec::new());
                        let state = PlaceState::Assigned { refused };
                        self.write_place(id, me, fence, restarts, state, cause, out);
                    }
                }
                Stage::Running(process) if self.idle_for(id).is_some() => {
                    out.push(Output::Probe(Arc::clone(id), process));
                }
                _ => {}
            }
        }
        if lacking.is_some() {
            self.to_plan.insert(Arc::clone(id));
        }
        self.reschedule_later(now, id);
    }

    /// As [`Core::reschedule`], but not for this very moment again.
    fn reschedule_later(&mut self, now: Instant, id: &Arc<str>) {
        self.reschedule(now, id);
        let Some(child) = self.children.get_mut(id) else { return };
        if let Some(due) = child.due
            && due <= now
        {
            self.timers.remove(&(due, Arc::clone(id)));
            let later = now + self.config.orphan_after;
            child.due = Some(later);
            self.timers.insert((later, Arc::clone(id)));
        }
    }
}

/// Planning for others.
impl Core {
    /// Looks for children whose node is lost.
    fn plan_lost(&mut self) {
        if !self.may_plan() {
            return;
        }
        for (id, child) in &self.children {
            let is_lost = match (&child.spec, &child.place) {
                (Some((version, _)), Some((_, place))) => {
                    place.spec != *version
                        || matches!(place.state, PlaceState::Refused { .. })
                        || self.lost_from(&place.node).is_some()
                }
                (Some(_), None) | (None, Some(_)) => true,
                (None, None) => false,
            };
            if is_lost {
                self.to_plan.insert(Arc::clone(id));
            }
        }
    }

    fn plan_some(&mut self, now: Instant, out: &mut Vec<Output>) {
        if !self.may_plan() {
            self.to_plan.clear();
            return;
        }
        for _ in 0..PLAN_AT_ONCE {
            let Some(id) = self.to_plan.pop_first() else { return };
            self.plan_child(now, &id, out);
            self.reconcile(now, &id, out);
            self.reschedule_later(now, &id);
        }
    }

    /// Gives a child a place, if it needs one from the planner and its time has come.
    fn plan_child(&mut self, now: Instant, id: &Arc<str>, out: &mut Vec<Output>) {
        let Some(child) = self.children.get(id) else { return };
        if child.local.is_some() {
            return;
        }
        let waited = child.lacking.map(|since| now.saturating_since(since)).unwrap_or_default();
        let Some((version, spec)) = child.spec.clone() else {
            if waited >= SPECLESS_FOR {
                self.erase(id, out);
            }
            return;
        };
        let place = child.place.as_ref().map(|(_, place)| place.clone());
        let Some(place) = place.filter(|place| place.spec == version) else {
            if waited >= self.config.orphan_after {
                self.give(id, &spec, 0, Vec::new(), Cause::Asked, out);
            }
            return;
        };
        match place.state {
            PlaceState::Refused { refused } => {
                if !self.give(id, &spec, place.restarts, refused, place.cause.clone(), out) {
                    let (node, fence, state) = (place.node, place.fence, PlaceState::Quarantined);
                    let (restarts, cause) = (place.restarts, place.cause);
                    self.write_place(id, node, fence, restarts, state, cause, out);
                }
            }
            PlaceState::Running(_) | PlaceState::Assigned { .. } => {
                if self.lost_from(&place.node).is_none_or(|from| from > now) {
                    return;
                }
                if spec.options.restart == Restart::Temporary {
                    self.over(now, id, out);
                    self.erase(id, out);
                    return;
                }
                let refused = match place.state {
                    PlaceState::Assigned { refused } => refused,
                    _ => Vec::new(),
                };
                let (restarts, cause) = (place.restarts + 1, Cause::NodeLost(place.node));
                self.give(id, &spec, restarts, refused, cause, out);
            }
            PlaceState::Asleep(_) | PlaceState::Quarantined => {}
        }
    }

    /// Assigns the child to some node; whether there is one.
    fn give(
        &mut self,
        id: &Arc<str>,
        spec: &Spec,
        restarts: u32,
        refused: Vec<NodeName>,
        cause: Cause,
        out: &mut Vec<Output>,
    ) -> bool {
        let wish = &spec.options.wish;
        let chosen = if refused.is_empty() {
            self.choose(id, &spec.kind, wish)
        } else {
            self.choose_fixed(id, &spec.kind, wish, &refused)
        };
        let Ok(to) = chosen else { return false };
        self.assign(id, to, restarts, refused, cause, out);
        true
    }

    fn forget_hosts(&mut self, now: Instant, out: &mut Vec<Output>) {
        if now < self.forget_at {
            return;
        }
        self.forget_at = now + FORGET_EVERY;
        self.removed.retain(|_, (_, at)| now.saturating_since(*at) < REMOVED_FOR);
        if self.planner() != Some(&self.me) {
            return;
        }
        for node in self.hosts.keys() {
            let since = self.gone(node).or_else(|| self.lost_from(node));
            if since.is_some_and(|since| since == Instant::ZERO || now >= since + HOST_KEPT_FOR) {
                out.push(Output::Forget(node.clone()));
            }
        }
    }

    /// Requests as many moves as may be made now.
    fn make_moves(&mut self, now: Instant, out: &mut Vec<Output>) {
        let pause = Duration::from_secs(1) / self.config.moves_per_second.max(1);
        // What could not be made in time is not made all at once later.
        if self.next_move_at + pause * 8 < now {
            self.next_move_at = now;
        }
        while self.can_move() && self.next_move_at <= now {
            let Some(next) = self.moves.pop_front() else { return };
            let is_current = self.node_of(&next.id) == Some(&next.from);
            if is_current && self.is_present(&next.from) && self.is_present(&next.to) {
                self.next_move_at = self.next_move_at + pause;
                self.moving += 1;
                out.push(Output::RequestMove(next));
            }
        }
    }
}

impl Local {
    fn new(
        now: Instant,
        spec: HlcTimestamp,
        fence: Fence,
        restarts: u32,
        cause: Cause,
        asked: bool,
    ) -> Self {
        Self {
            spec,
            fence,
            restarts,
            stage: Stage::Starting,
            cause,
            asked,
            since: now,
            in_a_row: 0,
            failures: VecDeque::new(),
            handled: 0,
            hand_offs: 0,
        }
    }
}

fn event(id: &Arc<str>, what: What, place: Option<&Place>) -> Output {
    Output::Event(Event {
        id: Arc::clone(id),
        what,
        node: place.map(|place| place.node.clone()),
        fence: place.map_or(Fence(0), |place| place.fence),
        cause: place.map(|place| place.cause.clone()),
    })
}

fn event_here(me: &NodeId, id: &Arc<str>, what: What, fence: Fence) -> Output {
    Output::Event(Event { id: Arc::clone(id), what, node: Some(me.clone()), fence, cause: None })
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
