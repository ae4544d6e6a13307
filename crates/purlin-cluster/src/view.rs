//! The membership as others in this process see it: snapshots, watching, and what happened.
//!
//! Readers far outnumber changes, so a view is immutable and read without a lock. Each change
//! makes a new one with the next [`Epoch`]; who cares for every step follows the events instead.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use purlin_core::{Epoch, NodeId, NodeName, WallTime, watch};

use crate::swim::{Event, Meta, Sighting, State, Why};

/// How many events are kept for those who come later or fall behind.
pub const EVENTS_MAX: usize = 4_096;

/// A member as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Who, and which life of it.
    pub id: NodeId,
    /// What is believed of it.
    pub state: State,
    /// Why, when it is down.
    pub why: Option<Why>,
    /// What it says of itself.
    pub meta: Arc<Meta>,
    /// The smoothed round trip of direct probes; absent for this node, and until measured.
    pub rtt: Option<Duration>,
    /// Who gets no answer from it. Empty while it is alive.
    pub suspected_by: Vec<NodeName>,
}

impl Member {
    /// What the node is called.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.id.name
    }

    /// Where its transport is reached.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.meta.cluster_addr
    }

    /// Whether work may be sent there: alive or merely suspected.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        matches!(self.state, State::Alive | State::Suspect)
    }

    /// Whether new things may be placed there: alive and not being drained.
    #[must_use]
    pub fn is_placeable(&self) -> bool {
        self.state == State::Alive && !self.meta.draining
    }
}

/// The membership at one moment. Immutable; holding on to an old one is harmless but stale.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Counts the changes of this node's view; not comparable with another node's.
    pub epoch: Epoch,
    /// The node whose view this is.
    pub me: NodeId,
    /// All members that are remembered, this node included, in the order of their names. Members
    /// that left or are down stay for a while, see [`crate::swim::ConfigBuilder`].
    pub members: Vec<Member>,
}

impl View {
    /// The member called `name`, in whichever state.
    #[must_use]
    pub fn get(&self, name: &NodeName) -> Option<&Member> {
        self.members.binary_search_by(|m| m.id.name.cmp(name)).ok().map(|at| &self.members[at])
    }

    /// Members that are alive, this node included.
    pub fn alive(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|m| m.state == State::Alive)
    }

    /// Members that are alive and fit `selector`, this node included if it fits.
    pub fn select<'a>(&'a self, selector: &'a Selector) -> impl Iterator<Item = &'a Member> {
        self.alive().filter(|m| selector.fits(m))
    }

    /// Who suspects whom, as (accuser, accused).
    pub fn suspicions(&self) -> impl Iterator<Item = (&NodeName, &NodeName)> {
        self.members.iter().flat_map(|m| m.suspected_by.iter().map(|by| (by, &m.id.name)))
    }
}

/// Which members are meant: all that have everything asked for.
///
/// ```
/// use purlin_cluster::view::Selector;
/// let web_in_a = Selector::all().role("web").zone("a").placeable();
/// # drop(web_in_a);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Selector {
    zone: Option<String>,
    region: Option<String>,
    roles: Vec<String>,
    labels: BTreeMap<String, String>,
    placeable: bool,
    others: Option<NodeName>,
}

impl Selector {
    /// Everybody.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// Only members of this zone.
    #[must_use]
    pub fn zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// Only members of this region.
    #[must_use]
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = Some(region.into());
        self
    }

    /// Only members with this role. May be given several times: all are needed.
    #[must_use]
    pub fn role(mut self, role: impl Into<String>) -> Self {
        self.roles.push(role.into());
        self
    }

    /// Only members whose label `key` is `value`.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Only members that are not being drained.
    #[must_use]
    pub fn placeable(mut self) -> Self {
        self.placeable = true;
        self
    }

    /// Everybody but `me`.
    #[must_use]
    pub fn but(mut self, me: NodeName) -> Self {
        self.others = Some(me);
        self
    }

    /// Whether `member` has everything asked for. Its state is not looked at, except by
    /// [`placeable`](Self::placeable).
    #[must_use]
    pub fn fits(&self, member: &Member) -> bool {
        let meta = &member.meta;
        (self.zone.is_none() || self.zone == meta.zone)
            && (self.region.is_none() || self.region == meta.region)
            && self.roles.iter().all(|role| meta.roles.contains(role))
            && self.labels.iter().all(|(key, value)| meta.labels.get(key) == Some(value))
            && (!self.placeable || member.is_placeable())
            && self.others.as_ref() != Some(member.name())
    }
}

/// Something happened to the membership, as this node learned it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterEvent {
    /// Its number on this node, from 1, without gaps. Starts anew with the process.
    pub seq: u64,
    /// When, by this node's wall clock; for people.
    pub at: WallTime,
    /// The epoch of the first view that shows it.
    pub epoch: Epoch,
    /// What.
    pub what: Event,
}

impl Event {
    /// Whom it is about.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        match self {
            Self::Joined { node }
            | Self::Suspected { node, .. }
            | Self::Refuted { node, .. }
            | Self::Down { node, .. }
            | Self::Left { node }
            | Self::MetaChanged { node }
            | Self::Draining { node } => node,
        }
    }

    /// The word used in HTTP streams, logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Joined { .. } => "joined",
            Self::Suspected { .. } => "suspected",
            Self::Refuted { .. } => "refuted",
            Self::Down { .. } => "down",
            Self::Left { .. } => "left",
            Self::MetaChanged { .. } => "meta_changed",
            Self::Draining { .. } => "draining",
        }
    }
}

/// The board on which the driver pins views and events, and everybody else reads.
#[derive(Debug)]
pub(crate) struct Board {
    view: ArcSwap<View>,
    changed: watch::Sender<Epoch>,
    history: Mutex<VecDeque<ClusterEvent>>,
    last_seq: watch::Sender<u64>,
}

impl Board {
    pub(crate) fn new(me: NodeId, sightings: Vec<Sighting>) -> Self {
        let view = View { epoch: Epoch(0), me, members: members(sightings) };
        Self {
            view: ArcSwap::from_pointee(view),
            changed: watch::Sender::new(Epoch(0)),
            history: Mutex::new(VecDeque::new()),
            last_seq: watch::Sender::new(0),
        }
    }

    pub(crate) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Shows `sightings` and `events` that led there. A new epoch begins if more changed than
    /// round trips, which drift all the time.
    pub(crate) fn publish(&self, at: WallTime, sightings: Vec<Sighting>, events: Vec<Event>) {
        let old = self.view.load();
        let members = members(sightings);
        let same = members.len() == old.members.len()
            && members.iter().zip(&old.members).all(|(new, old)| is_same(new, old));
        let is_new = !same || !events.is_empty();
        let epoch = if is_new { old.epoch.next() } else { old.epoch };
        self.view.store(Arc::new(View { epoch, me: old.me.clone(), members }));
        if !events.is_empty() {
            self.record(at, epoch, events);
        }
        if is_new {
            self.changed.send_replace(epoch);
        }
    }

    fn record(&self, at: WallTime, epoch: Epoch, events: Vec<Event>) {
        let mut seq = *self.last_seq.borrow();
        let mut history = self.history.lock();
        for what in events {
            seq += 1;
            history.push_back(ClusterEvent { seq, at, epoch, what });
        }
        while history.len() > EVENTS_MAX {
            history.pop_front();
        }
        drop(history);
        self.last_seq.send_replace(seq);
    }

    pub(crate) fn watch(self: &Arc<Self>) -> Watch {
        Watch { changed: self.changed.subscribe(), board: Arc::clone(self) }
    }

    pub(crate) fn events_after(self: &Arc<Self>, seq: u64) -> Events {
        Events { after: seq, last_seq: self.last_seq.subscribe(), board: Arc::clone(self) }
    }

    pub(crate) fn last_seq(&self) -> u64 {
        *self.last_seq.borrow()
    }
}

fn members(sightings: Vec<Sighting>) -> Vec<Member> {
    let member = |s: Sighting| Member {
        id: s.node,
        state: s.state,
        why: s.why,
        meta: s.meta,
        rtt: s.rtt,
        suspected_by: s.accusers,
    };
    sightings.into_iter().map(member).collect()
}

fn is_same(new: &Member, old: &Member) -> bool {
    new.id == old.id
        && new.state == old.state
        && new.why == old.why
        && new.suspected_by == old.suspected_by
        && (Arc::ptr_eq(&new.meta, &old.meta) || new.meta == old.meta)
}

/// Waits for the view to change.
#[derive(Debug, Clone)]
pub struct Watch {
    changed: watch::Receiver<Epoch>,
    board: Arc<Board>,
}

impl Watch {
    /// Waits until the view has changed since the last call, and returns the latest one. Steps in
    /// between are skipped; [`Events`] has them all. After the node stopped there are no changes
    /// any more, and this waits for ever.
    ///
    /// # Cancel safety
    /// Safe: a change seen by nobody is returned by the next call.
    pub async fn changed(&mut self) -> Arc<View> {
        if self.changed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.board.view()
    }

    /// The latest view, and marks it as seen.
    #[must_use]
    pub fn view(&mut self) -> Arc<View> {
        self.changed.mark_unchanged();
        self.board.view()
    }
}

/// Follows the events, from any that is still remembered.
#[derive(Debug, Clone)]
pub struct Events {
    after: u64,
    last_seq: watch::Receiver<u64>,
    board: Arc<Board>,
}

/// The reader was too slow or came too late: these events are no longer remembered.
///
/// Nothing is lost but the story: the present view is complete. The next call continues with the
/// oldest event that is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("events {first} to {last} are no longer remembered, limit {EVENTS_MAX}")]
pub struct Missed {
    /// The first that is gone.
    pub first: u64,
    /// The last that is gone.
    pub last: u64,
}

impl Events {
    /// Waits for the next event.
    ///
    /// # Errors
    /// [`Missed`] once, when events between the last one read and the next are gone.
    ///
    /// # Cancel safety
    /// Safe: no event is skipped.
    pub async fn next(&mut self) -> Result<ClusterEvent, Missed> {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            if self.last_seq.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The next event, if it has happened already.
    pub fn try_next(&mut self) -> Option<Result<ClusterEvent, Missed>> {
        self.last_seq.mark_unchanged();
        let history = self.board.history.lock();
        let first = history.front()?.seq;
        if self.after + 1 < first {
            let missed = Missed { first: self.after + 1, last: first - 1 };
            self.after = missed.last;
            return Some(Err(missed));
        }
        let at = usize::try_from(self.after + 1 - first).ok()?;
        let event = history.get(at)?.clone();
        self.after = event.seq;
        Some(Ok(event))
    }
}

#[cfg(test)]
mod tests {
    use purlin_core::Incarnation;

    use super::*;
    use crate::swim::Refutation;

    fn id(name: &str) -> NodeId {
        NodeId::new(NodeName::parse(name).unwrap(), Incarnation(1))
    }

    fn sighting(name: &str, state: State) -> Sighting {
        let mut meta = Meta::new("127.0.0.1:1".parse().unwrap());
        meta.zone = Some("a".into());
        meta.roles.insert("web".into());
        Sighting {
            node: id(name),
            state,
            why: None,
            refutation: Refutation(0),
            meta: Arc::new(meta),
            meta_version: 1,
            rtt: None,
            accusers: Vec::new(),
        }
    }

    fn board() -> Arc<Board> {
        Arc::new(Board::new(id("n1"), vec![sighting("n1", State::Alive)]))
    }

    #[test]
    fn a_drifting_round_trip_is_shown_but_begins_no_epoch() {
        let board = board();
        let mut seen = sighting("n1", State::Alive);
        seen.rtt = Some(Duration::from_millis(1));
        board.publish(WallTime::default(), vec![seen.clone()], vec![]);
        assert_eq!(board.view().epoch, Epoch(0));
        assert_eq!(board.view().members[0].rtt, seen.rtt);
        board.publish(WallTime::default(), vec![sighting("n1", State::Left)], vec![]);
        assert_eq!(board.view().epoch, Epoch(1));
    }

    #[tokio::test]
    async fn events_are_read_in_order_from_any_remembered_number() {
        let board = board();
        let mut events = board.events_after(0);
        for _ in 0..3 {
            let joined = Event::Joined { node: id("n2") };
            board.publish(WallTime::default(), vec![sighting("n1", State::Alive)], vec![joined]);
        }
        for seq in 1..=3 {
            assert_eq!(events.next().await.unwrap().seq, seq);
        }
        assert_eq!(events.try_next(), None);
        assert_eq!(board.events_after(2).next().await.unwrap().seq, 3);
    }

    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_missed_and_goes_on() {
        let board = board();
        let mut events = board.events_after(0);
        let many = (0..EVENTS_MAX + 10).map(|_| Event::Joined { node: id("n2") }).collect();
        board.publish(WallTime::default(), vec![sighting("n1", State::Alive)], many);
        assert_eq!(events.next().await, Err(Missed { first: 1, last: 10 }));
        assert_eq!(events.next().await.unwrap().seq, 11);
    }

    #[tokio::test]
    async fn a_watch_skips_to_the_latest_view() {
        let board = board();
        let mut watch = board.watch();
        for state in [State::Suspect, State::Down] {
            board.publish(WallTime::default(), vec![sighting("n2", state)], vec![]);
        }
        assert_eq!(watch.changed().await.members[0].state, State::Down);
    }

    #[test]
    fn a_selector_wants_everything_it_asks_for() {
        let board =
            Board::new(id("n1"), vec![sighting("n1", State::Alive), sighting("n2", State::Down)]);
        let view = board.view();
        let count = |selector: Selector| view.select(&selector).count();
        assert_eq!(count(Selector::all()), 1, "only the living");
        assert_eq!(count(Selector::all().zone("a").role("web").placeable()), 1);
        assert_eq!(count(Selector::all().zone("b")), 0);
        assert_eq!(count(Selector::all().role("db")), 0);
        assert_eq!(count(Selector::all().label("k", "v")), 0);
        assert_eq!(count(Selector::all().but(NodeName::parse("n1").unwrap())), 0);
    }
}
