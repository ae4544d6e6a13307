//! Which node a child goes to, and what little has to move when nodes come and go.
//!
//! "Hash the id over the members" looks simple and fails in four ways: one node gets far more than
//! the others, a child goes to a machine that cannot run it, two copies that should not fail
//! together do, and every join restarts children that were fine where they were. So placing here
//! weighs, in this order: what the child needs (pins), whom it wants to be near, whom it wants to
//! be far from, and then the load, by one of three [`Strategy`]s. And what runs stays: [`Placer::moves`]
//! proposes only what a rule requires and what levels the load, never a move between two nodes that
//! are within the slack of each other.
//!
//! Pure: no clock, no randomness, no member list of its own. The same candidates, counts and ids
//! give the same answer on every node.
//!
//! # Source
//! Bounded loads: Mirrokni et al. 2018. Weighted rendezvous: Schindelhauer and Schomaker 2005.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use purlin_cluster::view::Member;
use purlin_core::{NodeId, NodeName};
use purlin_ring::{Bucket, Ring, key_hash, rank, ring};
use serde::{Deserialize, Serialize};

/// The most a [`Candidate`] weighs; more counts as this.
pub const WEIGHT_MAX: u32 = 128;

/// The most candidates a [`Placer`] takes: as many points as a ring may have, at full weight.
pub const CANDIDATES_MAX: usize = ring::POINTS_MAX / WEIGHT_MAX as usize;

/// The label of a member that gives its weight, `0` to [`WEIGHT_MAX`].
pub const WEIGHT_LABEL: &str = "weight";

/// The most roles a [`Wish`] asks for, and the most labels.
pub const PINS_MAX: usize = 32;

/// The longest text in a [`Wish`], in bytes.
pub const WISH_TEXT_BYTES_MAX: usize = 255;

/// How far apart the loads of two nodes may be before [`Placer::moves`] levels them, unless chosen
/// otherwise. A guess: smaller moves more children for less effect.
pub const SLACK_PERCENT_DEFAULT: u32 = 10;

/// A node that can take children.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which node, and which life of it.
    pub node: NodeId,
    /// Where it fails together with others.
    pub zone: Option<String>,
    /// Its region.
    pub region: Option<String>,
    /// What it is for.
    pub roles: BTreeSet<String>,
    /// What else is known of it.
    pub labels: BTreeMap<String, String>,
    /// How much it takes, relative to the others; at most [`WEIGHT_MAX`]. 0 takes nothing, and
    /// what runs there moves away.
    pub weight: u32,
    /// What its children cost together, by a measure of the user's. [`Strategy::LeastLoaded`]
    /// counts children instead while a candidate has none.
    pub cost: Option<u64>,
}

impl Candidate {
    /// `node` with weight 1 and nothing else known.
    #[must_use]
    pub fn new(node: NodeId) -> Self {
        Self {
            node,
            zone: None,
            region: None,
            roles: BTreeSet::new(),
            labels: BTreeMap::new(),
            weight: 1,
            cost: None,
        }
    }

    /// What `member` says of itself. Its weight is its label [`WEIGHT_LABEL`], 1 without it or
    /// when it is no number. Whether the member may be given children is the caller's to ask.
    #[must_use]
    pub fn of(member: &Member) -> Self {
        let meta = &member.meta;
        Self {
            node: member.id.clone(),
            zone: meta.zone.clone(),
            region: meta.region.clone(),
            roles: meta.roles.clone(),
            labels: meta.labels.clone(),
            weight: meta.labels.get(WEIGHT_LABEL).and_then(|text| text.parse().ok()).unwrap_or(1),
            cost: None,
        }
    }

    /// Whether it is what `wish` is pinned to.
    #[must_use]
    pub fn fits(&self, wish: &Wish) -> bool {
        (wish.zone.is_none() || wish.zone == self.zone)
            && (wish.region.is_none() || wish.region == self.region)
            && wish.roles.is_subset(&self.roles)
            && wish.labels.iter().all(|(key, value)| self.labels.get(key) == Some(value))
    }
}

/// How a node is chosen among those that fit equally well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Strategy {
    /// Consistent hashing of the child's id; a node that is full passes it on to the next.
    ///
    /// For many like children: the same id comes back to the same node.
    Ring {
        /// By how much of its share a node may be over it: with 25, no node is given a child that
        /// would make it hold more than 1.25 times its share, rounded up.
        load_bound_percent: u32,
    },
    /// Highest random weight: spread by weight, and children [`apart`](Wish::apart) over zones.
    ///
    /// Costs a hash per node; no load is looked at.
    Rendezvous,
    /// The node that, with the child, has the least [`cost`](Candidate::cost) per weight, or the
    /// fewest children per weight while some node's cost is not known. Between equals the id
    /// decides.
    ///
    /// A child placed since the costs were learned counts as the mean child does, so that a burst
    /// does not go to one node.
    LeastLoaded,
}

impl Default for Strategy {
    /// The ring, 25 % over: the paper's example, at which a look-up meets few full nodes.
    fn default() -> Self {
        Self::Ring { load_bound_percent: 25 }
    }
}

/// What a child asks of the node it runs on.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Wish {
    /// Only in this zone.
    pub zone: Option<String>,
    /// Only in this region.
    pub region: Option<String>,
    /// Only on nodes with all of these roles.
    pub roles: BTreeSet<String>,
    /// Only on nodes with all of these labels.
    pub labels: BTreeMap<String, String>,
    /// On the node of the child with this id, if that one runs and its node fits.
    pub with: Option<String>,
    /// Not on a node that has another child with the same text here while there is a node without;
    /// and then in a zone with as few as can be.
    pub apart: Option<String>,
}

impl Wish {
    /// Whether it has no more than [`PINS_MAX`] roles and labels and no text longer than
    /// [`WISH_TEXT_BYTES_MAX`].
    ///
    /// # Errors
    /// [`WishError`] for the first field beyond.
    pub fn check(&self) -> Result<(), WishError> {
        for (field, len) in [("roles", self.roles.len()), ("labels", self.labels.len())] {
            if len > PINS_MAX {
                return Err(WishError::TooMany { field, len });
            }
        }
        let one = [
            ("zone", &self.zone),
            ("region", &self.region),
            ("with", &self.with),
            ("apart", &self.apart),
        ];
        let one = one.into_iter().filter_map(|(field, text)| Some((field, text.as_ref()?)));
        let roles = self.roles.iter().map(|text| ("roles", text));
        let labels = self.labels.iter().flat_map(|(k, v)| [("labels", k), ("labels", v)]);
        match one.chain(roles).chain(labels).find(|(_, text)| text.len() > WISH_TEXT_BYTES_MAX) {
            Some((field, text)) => Err(WishError::TextTooLong { field, len: text.len() }),
            None => Ok(()),
        }
    }

    /// Whether every node will do.
    fn is_free(&self) -> bool {
        *self == Self::default()
    }
}

impl fmt::Display for Wish {
    /// The pins, such as `role=gpu zone=a`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let roles = self.roles.iter().map(|role| format!("role={role}"));
        let zone = self.zone.iter().map(|zone| format!("zone={zone}"));
        let region = self.region.iter().map(|region| format!("region={region}"));
        let labels = self.labels.iter().map(|(key, value)| format!("{key}={value}"));
        f.write_str(&roles.chain(zone).chain(region).chain(labels).collect::<Vec<_>>().join(" "))
    }
}

/// Why a [`Wish`] is not accepted. Nothing was changed; ask for less.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WishError {
    /// It asks for too many roles or labels.
    #[error("wish has {len} {field}, limit {PINS_MAX}")]
    TooMany {
        /// `roles` or `labels`.
        field: &'static str,
        /// How many there are.
        len: usize,
    },
    /// One of its texts is too long.
    #[error("wish {field} of {len} bytes exceeds limit {WISH_TEXT_BYTES_MAX}")]
    TextTooLong {
        /// Which text.
        field: &'static str,
        /// How long it is.
        len: usize,
    },
}

/// Why no node was found for a child. Nothing was changed; ask again when the members change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unplaceable {
    /// There is no candidate at all.
    #[error("no node takes children now")]
    NoNode,
    /// There are candidates, none of which is what the child is pinned to.
    #[error("none of the {nodes} nodes that take children has {pins}")]
    NoneFits {
        /// How many candidates there are.
        nodes: usize,
        /// What was asked for.
        pins: String,
    },
}

/// Too many nodes were offered. The ones before stay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{len} candidates exceed limit {CANDIDATES_MAX}")]
pub struct TooManyCandidates {
    /// How many were offered.
    pub len: usize,
}

/// A child that has a node, for [`Placer::moves`].
#[derive(Debug, Clone, Copy)]
pub struct Placed<'a> {
    /// Which child.
    pub id: &'a str,
    /// What it asks for.
    pub wish: &'a Wish,
    /// Where it is.
    pub node: &'a NodeId,
    /// Whether it must not be moved while its node is there: a veto. It still counts as load.
    pub stays: bool,
}

/// A child that should go elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move {
    /// Which child.
    pub id: String,
    /// Where it is.
    pub from: NodeId,
    /// Where it should be.
    pub to: NodeId,
    /// What makes it so.
    pub why: Why,
}

/// What makes a child move; the order is that in which moves are proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Why {
    /// Its node takes no children any more: down, left, draining, or of weight 0.
    Gone,
    /// Its node is no longer what it is pinned to.
    Unfit,
    /// The child it wants to be with is elsewhere.
    With,
    /// Its node has another child it wants to be apart from, and there is one that has none.
    Apart,
    /// Its node has more than its share.
    Load,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "its node is gone",
            Self::Unfit => "its node no longer fits",
            Self::With => "to be with another child",
            Self::Apart => "to be apart from another child",
            Self::Load => "to level the load",
        })
    }
}

/// Chooses nodes for children, and keeps count of how many each node has.
///
/// Counting is the caller's to report: [`add`](Self::add) when a child is assigned,
/// [`remove`](Self::remove) when it no longer is; [`place`](Self::place) by itself counts nothing.
/// Not for finding out which nodes live: it is told.
///
/// Holds a few words per node and per [`apart`](Wish::apart) text on it, nothing per child.
///
/// ```
/// # use purlin_core::NodeId;
/// use purlin_dist::supervisor::placement::{Candidate, Placer, Strategy, Wish};
/// let mut placer = Placer::new(Strategy::default());
/// let nodes = ["n1@1", "n2@1", "n3@1"].map(|id| Candidate::new(id.parse().unwrap()));
/// placer.set_candidates(nodes.to_vec())?;
/// let wish = Wish::default();
/// let node = placer.place("room-7", &wish, |_| None)?;
/// placer.add(&node, &wish);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Placer {
    strategy: Strategy,
    /// In the order of their names; all have weight.
    nodes: Vec<Node>,
    /// The same nodes, in the same order, for hashing.
    buckets: Arc<[Bucket<Spot>]>,
    ring: Arc<Ring<Spot>>,
    /// What nodes have that are no candidates now: they may come back before their children go.
    elsewhere: BTreeMap<NodeId, Load>,
    /// What one child costs; 1 when children are counted.
    unit: u128,
}

#[derive(Debug, Clone)]
struct Node {
    candidate: Candidate,
    load: Load,
    /// What it cost when it had `costed` children.
    cost: u128,
    costed: u64,
}

/// What a node has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Load {
    children: u64,
    apart: BTreeMap<String, u64>,
}

/// A node on the ring, which knows its index.
#[derive(Debug, Clone)]
struct Spot {
    name: NodeName,
    at: usize,
}

impl AsRef<str> for Spot {
    fn as_ref(&self) -> &str {
        self.name.as_str()
    }
}

impl Placer {
    /// A placer without nodes.
    #[must_use]
    pub fn new(strategy: Strategy) -> Self {
        Self {
            strategy,
            nodes: Vec::new(),
            buckets: Arc::from([]),
            ring: Arc::new(Ring::new(Vec::new()).expect("no node is listed twice")),
            elsewhere: BTreeMap::new(),
            unit: 1,
        }
    }

    /// Takes `candidates` for the nodes there are from now on. Of two lives of one node the later
    /// one counts. What was counted stays counted, also for nodes that are no longer there.
    ///
    /// # Errors
    /// [`TooManyCandidates`] above [`CANDIDATES_MAX`]; nothing was changed then.
    pub fn set_candidates(&mut self, candidates: Vec<Candidate>) -> Result<(), TooManyCandidates> {
        if candidates.len() > CANDIDATES_MAX {
            return Err(TooManyCandidates { len: candidates.len() });
        }
        let mut latest: BTreeMap<NodeName, Candidate> = BTreeMap::new();
        for mut candidate in candidates {
            candidate.weight = candidate.weight.min(WEIGHT_MAX);
            let name = candidate.node.name.clone();
            if latest.get(&name).is_none_or(|other| candidate.node.supersedes(&other.node)) {
                latest.insert(name, candidate);
            }
        }
        for node in self.nodes.drain(..) {
            if node.load != Load::default() {
                self.elsewhere.insert(node.candidate.node, node.load);
            }
        }
        for candidate in latest.into_values().filter(|candidate| candidate.weight > 0) {
            let load = self.elsewhere.remove(&candidate.node).unwrap_or_default();
            self.nodes.push(Node { candidate, load, cost: 0, costed: 0 });
        }
        self.rehash();
        self.recost();
        Ok(())
    }

    /// Counts a child with `wish` on `node`, which may be one that is no candidate now.
    pub fn add(&mut self, node: &NodeId, wish: &Wish) {
        let load = match self.find(node) {
            Some(at) => &mut self.nodes[at].load,
            None => self.elsewhere.entry(node.clone()).or_default(),
        };
        load.children += 1;
        if let Some(tag) = &wish.apart {
            *load.apart.entry(tag.clone()).or_default() += 1;
        }
    }

    /// No longer counts a child with `wish` on `node`. Nothing happens when none was counted.
    pub fn remove(&mut self, node: &NodeId, wish: &Wish) {
        let load = match self.find(node) {
            Some(at) => &mut self.nodes[at].load,
            None => match self.elsewhere.get_mut(node) {
                Some(load) => load,
                None => return,
            },
        };
        load.children = load.children.saturating_sub(1);
        if let Some(tag) = &wish.apart
            && let Some(count) = load.apart.get_mut(tag)
        {
            *count -= 1;
            if *count == 0 {
                load.apart.remove(tag);
            }
        }
        if self.elsewhere.get(node) == Some(&Load::default()) {
            self.elsewhere.remove(node);
        }
    }

    /// The nodes there are, with how many children are counted on each, by name.
    pub fn candidates(&self) -> impl Iterator<Item = (&Candidate, u64)> {
        self.nodes.iter().map(|node| (&node.candidate, node.load.children))
    }

    /// The node for the child `id`, which has none yet. `where_is` tells where another child is.
    ///
    /// # Units and limits
    /// Looks at every candidate once; nothing is counted, see [`add`](Self::add).
    ///
    /// # Errors
    /// [`Unplaceable`] when there is no node, or none that fits the pins. The other wishes are
    /// met as far as they can be, and never in the way.
    ///
    /// # Guarantees
    /// Two nodes with different views or counts may answer differently: whoever asks for both must
    /// settle which answer holds.
    pub fn place(
        &self,
        id: &str,
        wish: &Wish,
        where_is: impl FnOnce(&str) -> Option<NodeId>,
    ) -> Result<NodeId, Unplaceable> {
        let with = wish.with.as_deref().and_then(where_is).and_then(|node| self.find(&node));
        Ok(self.nodes[self.choose(id, wish, with)?].candidate.node.clone())
    }

    /// What should move so that every rule holds again and no two nodes differ in load per weight
    /// by more than `slack_percent`: first what a rule requires, then what levels the load; at most
    /// `limit`, each child at most once.
    ///
    /// Counts are taken from `children`, not from what was [`add`](Self::add)ed. A child that no
    /// node fits stays where it is, and so is not listed. A child with the wish to be with
    /// another, and that other, are never moved for the load.
    ///
    /// # Units and limits
    /// Time and memory grow with the number of children, and with children times nodes while loads
    /// are far apart: 100,000 children over 5 nodes take well under a second.
    ///
    /// # Guarantees
    /// After a join, about the new node's share moves, all of it to the new node. Asking again
    /// after all moves were made gives none, unless wishes contradict each other or are about
    /// children that moved themselves.
    #[must_use]
    pub fn moves<'a>(
        &self,
        children: impl IntoIterator<Item = Placed<'a>>,
        slack_percent: u32,
        limit: usize,
    ) -> Vec<Move> {
        let mut plan = Plan::new(self, children.into_iter().collect());
        plan.mend(limit);
        plan.level(slack_percent, limit);
        plan.moves
    }

    fn find(&self, node: &NodeId) -> Option<usize> {
        let at =
            self.nodes.binary_search_by(|other| other.candidate.node.name.cmp(&node.name)).ok()?;
        (self.nodes[at].candidate.node == *node).then_some(at)
    }

    fn rehash(&mut self) {
        let weight: u32 = self.nodes.iter().map(|node| node.candidate.weight).sum();
        let buckets: Vec<_> = self.nodes.iter().enumerate().map(bucket).collect();
        let same = |(a, b): (&Bucket<Spot>, &Bucket<Spot>)| {
            (&a.node.name, a.weight, &a.zone) == (&b.node.name, b.weight, &b.zone)
        };
        if buckets.len() == self.buckets.len() && buckets.iter().zip(&*self.buckets).all(same) {
            return;
        }
        let points_max = u32::try_from(ring::POINTS_MAX).expect("a small constant");
        // A very large cluster gets fewer points per weight, rather than no ring.
        let per_weight = (points_max / weight.max(1)).clamp(1, ring::VIRTUAL_NODES_DEFAULT);
        self.buckets = buckets.into();
        self.ring = Arc::new(
            Ring::with_virtual_nodes(self.buckets.to_vec(), per_weight)
                .expect("names are unique, and CANDIDATES_MAX bounds the points"),
        );
    }

    /// Counts costs if the strategy asks for them and all are known.
    fn recost(&mut self) {
        let costs: Option<Vec<u64>> = match self.strategy {
            Strategy::LeastLoaded => self.nodes.iter().map(|node| node.candidate.cost).collect(),
            Strategy::Ring { .. } | Strategy::Rendezvous => None,
        };
        let Some(costs) = costs else {
            self.unit = 1;
            for node in &mut self.nodes {
                (node.cost, node.costed) = (0, 0);
            }
            return;
        };
        let children: u64 = self.nodes.iter().map(|node| node.load.children).sum();
        let total: u128 = costs.iter().map(|&cost| u128::from(cost)).sum();
        self.unit = (total / u128::from(children.max(1))).max(1);
        for (node, cost) in self.nodes.iter_mut().zip(costs) {
            (node.cost, node.costed) = (u128::from(cost), node.load.children);
        }
    }

    /// What the node carries, in the unit in which a child is one [`unit`](Self::unit).
    fn burden(&self, at: usize) -> u128 {
        let node = &self.nodes[at];
        let since = |more: u64, less: u64| u128::from(more.saturating_sub(less)) * self.unit;
        (node.cost + since(node.load.children, node.costed))
            .saturating_sub(since(node.costed, node.load.children))
    }

    /// Compares what two nodes carry per weight, each with `more` children.
    fn by_burden(&self, a: usize, b: usize, more: u128) -> Ordering {
        let weight = |at: usize| u128::from(self.nodes[at].candidate.weight);
        let burden = |at: usize| self.burden(at) + more * self.unit;
        (burden(a) * weight(b)).cmp(&(burden(b) * weight(a)))
    }

    fn fitting(&self, wish: &Wish) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&at| self.nodes[at].candidate.fits(wish)).collect()
    }

    fn choose(&self, id: &str, wish: &Wish, with: Option<usize>) -> Result<usize, Unplaceable> {
        if self.nodes.is_empty() {
            return Err(Unplaceable::NoNode);
        }
        let mut among = self.fitting(wish);
        if among.is_empty() {
            return Err(Unplaceable::NoneFits { nodes: self.nodes.len(), pins: wish.to_string() });
        }
        if let Some(with) = with
            && among.contains(&with)
        {
            return Ok(with);
        }
        if let Some(tag) = &wish.apart {
            let least = among.iter().map(|&at| self.crowd(tag, at)).min();
            among.retain(|&at| Some(self.crowd(tag, at)) == least);
        }
        Ok(match self.strategy {
            Strategy::Ring { load_bound_percent } => self.on_ring(id, &among, load_bound_percent),
            Strategy::Rendezvous => self.ranked(id, &among),
            Strategy::LeastLoaded => {
                let least = *among
                    .iter()
                    .min_by(|&&a, &&b| self.by_burden(a, b, 1))
                    .expect("a node fits, as was checked");
                among.retain(|&at| self.by_burden(at, least, 1).is_eq());
                self.ranked(id, &among)
            }
        })
    }

    /// How many children with this tag the node has, and how many its zone; less is better.
    fn crowd(&self, tag: &str, at: usize) -> (u64, u64) {
        let count = |node: &Node| node.load.apart.get(tag).copied().unwrap_or(0);
        let here = &self.nodes[at];
        let zone = match &here.candidate.zone {
            // A node without a zone shares its fate with nobody we know of.
            None => count(here),
            zone => self.nodes.iter().filter(|n| n.candidate.zone == *zone).map(count).sum(),
        };
        (count(here), zone)
    }

    /// The first node from the id on that is below its bound, where the bound is that of `among`.
    fn on_ring(&self, id: &str, among: &[usize], load_bound_percent: u32) -> usize {
        let weight = |at: usize| u128::from(self.nodes[at].candidate.weight);
        let children = |at: usize| u128::from(self.nodes[at].load.children);
        let total: u128 = among.iter().map(|&at| children(at)).sum::<u128>() + 1;
        let weights: u128 = among.iter().map(|&at| weight(at)).sum();
        let percent = 100 + u128::from(load_bound_percent);
        self.ring
            .walk(key_hash(id.as_bytes()))
            .map(|spot| spot.node.at)
            .filter(|at| among.binary_search(at).is_ok())
            .find(|&at| children(at) < (total * weight(at) * percent).div_ceil(weights * 100))
            .expect("the bounds sum to more than there are children, so a node is below its own")
    }

    fn ranked(&self, id: &str, among: &[usize]) -> usize {
        let key = key_hash(id.as_bytes());
        let first = |best: Vec<&Bucket<Spot>>| best.first().map(|bucket| bucket.node.at);
        let best = if among.len() == self.nodes.len() {
            first(rank(key, &self.buckets, 1))
        } else {
            let some: Vec<_> = among.iter().map(|&at| self.buckets[at].clone()).collect();
            first(rank(key, &some, 1))
        };
        best.expect("among is not empty, and all nodes have weight")
    }

    /// Where the strategy would have the child if there were no load; none for a strategy that is
    /// about nothing but load.
    fn home(&self, id: &str, wish: &Wish) -> Option<usize> {
        let fits = |at: &usize| wish.is_free() || self.nodes[*at].candidate.fits(wish);
        match self.strategy {
            Strategy::Ring { .. } => {
                self.ring.walk(key_hash(id.as_bytes())).map(|spot| spot.node.at).find(fits)
            }
            Strategy::Rendezvous => {
                let among = self.fitting(wish);
                (!among.is_empty()).then(|| self.ranked(id, &among))
            }
            Strategy::LeastLoaded => None,
        }
    }
}

fn bucket((at, node): (usize, &Node)) -> Bucket<Spot> {
    let candidate = &node.candidate;
    Bucket {
        node: Spot { name: candidate.node.name.clone(), at },
        weight: candidate.weight,
        zone: candidate.zone.clone(),
    }
}

/// A list of moves in the making: the counts as they will be once all so far are made.
struct Plan<'a> {
    after: Placer,
    children: Vec<Placed<'a>>,
    /// Where each child will be; absent while that is on no candidate.
    at: Vec<Option<usize>>,
    moved: Vec<bool>,
    moves: Vec<Move>,
}

impl<'a> Plan<'a> {
    fn new(placer: &Placer, children: Vec<Placed<'a>>) -> Self {
        let mut after = placer.clone();
        after.elsewhere.clear();
        for node in &mut after.nodes {
            node.load = Load::default();
        }
        let at: Vec<_> = children.iter().map(|child| after.find(child.node)).collect();
        for (child, at) in children.iter().zip(&at) {
            if at.is_some() {
                after.add(child.node, child.wish);
            }
        }
        after.recost();
        let moved = vec![false; children.len()];
        Self { after, children, at, moved, moves: Vec::new() }
    }

    /// What the rules require, the most pressing first.
    fn mend(&mut self, limit: usize) {
        let mut by_id: BTreeMap<&str, usize> = BTreeMap::new();
        if self.children.iter().any(|child| child.wish.with.is_some()) {
            by_id.extend((0..).zip(&self.children).map(|(n, child)| (child.id, n)));
        }
        for rule in [Why::Gone, Why::Unfit, Why::With, Why::Apart] {
            for n in 0..self.children.len() {
                if self.moves.len() >= limit {
                    return;
                }
                let wish = self.children[n].wish;
                let with = wish.with.as_deref().and_then(|id| self.at[*by_id.get(id)?]);
                if !self.moved[n] && self.breaks(n, with) == Some(rule) {
                    self.replace(n, with, rule);
                }
            }
        }
    }

    /// Which rule the place of the child breaks, if there may be a better one.
    fn breaks(&self, n: usize, with: Option<usize>) -> Option<Why> {
        let child = &self.children[n];
        let Some(at) = self.at[n] else {
            return Some(Why::Gone);
        };
        if child.stays || child.wish.is_free() {
            return None;
        }
        if !self.after.nodes[at].candidate.fits(child.wish) {
            return Some(Why::Unfit);
        }
        if let Some(with) = with
            && self.after.nodes[with].candidate.fits(child.wish)
        {
            return (with != at).then_some(Why::With);
        }
        let crowded = child.wish.apart.as_ref().is_some_and(|tag| self.after.crowd(tag, at).0 > 1);
        crowded.then_some(Why::Apart)
    }

    /// Gives the child the place it would get if it came now, if that is another one.
    fn replace(&mut self, n: usize, with: Option<usize>, why: Why) {
        let child = self.children[n];
        self.after.remove(child.node, child.wish);
        let chosen = self.after.choose(child.id, child.wish, with);
        if self.at[n].is_some() {
            self.after.add(child.node, child.wish);
        }
        if let Ok(to) = chosen
            && Some(to) != self.at[n]
        {
            // Another crowded node is no improvement.
            let tag = child.wish.apart.as_ref().filter(|_| why == Why::Apart);
            if tag.is_none_or(|tag| self.after.crowd(tag, to).0 == 0) {
                self.go(n, to, why);
            }
        }
    }

    fn go(&mut self, n: usize, to: usize, why: Why) {
        let child = self.children[n];
        let node = self.after.nodes[to].candidate.node.clone();
        self.after.remove(child.node, child.wish);
        self.after.add(&node, child.wish);
        (self.at[n], self.moved[n]) = (Some(to), true);
        self.moves.push(Move { id: child.id.to_owned(), from: child.node.clone(), to: node, why });
    }

    /// Moves children from the fullest node to the emptiest until they are within the slack.
    ///
    /// Each such move takes from a node that is above another by more than a child, so the loads
    /// come nearer with every one, and as few move as can be: nothing passes through a third node.
    fn level(&mut self, slack_percent: u32, limit: usize) {
        // Who others want to be with would have to be followed by all of them.
        let leaders: BTreeSet<&str> =
            self.children.iter().filter_map(|child| child.wish.with.as_deref()).collect();
        let mut donors: Vec<Donor> = self.after.nodes.iter().map(|_| Donor::default()).collect();
        for (n, child) in self.children.iter().enumerate() {
            if !self.moved[n]
                && !child.stays
                && child.wish.with.is_none()
                && !leaders.contains(child.id)
                && let Some(at) = self.at[n]
            {
                donors[at].children.push(n);
            }
        }
        while self.moves.len() < limit {
            let Some((from, to)) = self.widest(slack_percent, &donors) else { break };
            match self.fit_for(from, to, &mut donors[from]) {
                Some(n) => self.go(n, to, Why::Load),
                None => {
                    donors[from].nothing_for.insert(to);
                }
            }
        }
    }

    /// The fullest node and the emptiest that are farther apart than the slack and where a child
    /// may go from one to the other, as far as is known.
    fn widest(&self, slack_percent: u32, donors: &[Donor]) -> Option<(usize, usize)> {
        let after = &self.after;
        let sorted = |more| {
            let mut order: Vec<usize> = (0..after.nodes.len()).collect();
            order.sort_by(|&a, &b| after.by_burden(a, b, more));
            order
        };
        let (from, to) = (sorted(0), sorted(1));
        let wide = |from: usize, to: usize| {
            let weight = |at: usize| u128::from(after.nodes[at].candidate.weight);
            let then = after.burden(to) + after.unit;
            after.burden(from) * weight(to) * 100
                > then * weight(from) * (100 + u128::from(slack_percent))
        };
        from.iter().rev().find_map(|&from| {
            let mut wide = to.iter().take_while(|&&to| wide(from, to));
            Some((from, *wide.find(|to| !donors[from].nothing_for.contains(to))?))
        })
    }

    /// A child of `from` that may go to `to`: one that belongs there by its id rather than one that
    /// belongs nowhere, and that rather than one that is at home.
    fn fit_for(&mut self, from: usize, to: usize, donor: &mut Donor) -> Option<usize> {
        donor.find_homes(self);
        let mut cursor = donor.cursors.get(&to).copied().unwrap_or_default();
        let found = loop {
            let Some(&n) = donor.children.get(cursor.next) else {
                if cursor.pass == Pass::AtHome {
                    break None;
                }
                cursor = Cursor { pass: cursor.pass.after(), next: 0 };
                continue;
            };
            let home = donor.homes[cursor.next];
            cursor.next += 1;
            let its_pass = match home {
                Some(home) if home == to => Pass::BelongsThere,
                Some(home) if home == from => Pass::AtHome,
                _ => Pass::Neither,
            };
            if its_pass == cursor.pass && !self.moved[n] && self.may_go(n, from, to) {
                break Some(n);
            }
        };
        donor.cursors.insert(to, cursor);
        found
    }

    fn may_go(&self, n: usize, from: usize, to: usize) -> bool {
        let wish = self.children[n].wish;
        if wish.is_free() {
            return true;
        }
        let crowds = wish.apart.as_ref().map(|tag| {
            let ((here, zone_here), (there, zone_there)) =
                (self.after.crowd(tag, from), self.after.crowd(tag, to));
            let zone = |at: usize| &self.after.nodes[at].candidate.zone;
            // It counts itself where it is, and in both if they share the zone.
            let shared = u64::from(zone(from).is_some() && zone(from) == zone(to));
            (there, zone_there - shared) <= (here - 1, zone_here - 1)
        });
        crowds.unwrap_or(true) && self.after.nodes[to].candidate.fits(wish)
    }
}

/// The children that a node may give away, and how far they were looked through for each other.
#[derive(Debug, Default)]
struct Donor {
    children: Vec<usize>,
    /// Where each belongs by its id, found when first needed.
    homes: Vec<Option<usize>>,
    cursors: BTreeMap<usize, Cursor>,
    nothing_for: BTreeSet<usize>,
}

impl Donor {
    fn find_homes(&mut self, plan: &Plan<'_>) {
        if self.homes.is_empty() {
            let home = |&n: &usize| plan.after.home(plan.children[n].id, plan.children[n].wish);
            self.homes = self.children.iter().map(home).collect();
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Cursor {
    pass: Pass,
    next: usize,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Pass {
    #[default]
    BelongsThere,
    Neither,
    AtHome,
}

impl Pass {
    fn after(self) -> Self {
        match self {
            Self::BelongsThere => Self::Neither,
            Self::Neither | Self::AtHome => Self::AtHome,
        }
    }
}

#[cfg(test)]
mod tests;
