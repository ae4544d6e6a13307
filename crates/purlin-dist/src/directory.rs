//! What is visible, and why it changed: a pure state machine over rows and members.
//!
//! A registry that deletes a node's names when the node seems to be gone must send them all again
//! when it was not, and two of them that heal both ways at once delete each other's. Here a
//! verdict about a node only changes what is *visible*: rows of a node that is down are hidden,
//! and shown again when the same life of it is back, without a byte on the wire. For good they go
//! only when their owner left, was superseded by a later life, or is not remembered by anybody.
//!
//! # Conflicts
//! Two processes can come to hold one unique name: at the same moment on two nodes, or on two
//! sides of a cut. Among all visible holders the one that registered last, by hybrid logical
//! time, has the name; the identity of the row breaks ties. Every node that sees the same rows
//! sees the same winner, and only the owner of a losing row acts on it ([`Output::Lost`]): the
//! highest row of a name is nobody's loser, so never do all holders give up.
//!
//! Last rather than first, because a name that was taken over while its holder was unreachable
//! has its service on the new side.
//!
//! # Source
//! Row ownership and hiding: Phoenix.Tracker (Shapiro et al.'s ORSWOT per replica). The choice of
//! the later one: syn and OTP's `global` (`random_exit_name` aside); by HLC instead of wall time.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use purlin_core::{HlcTimestamp, Instant, NodeId, NodeName};

use crate::row::{End, Entry, RowKey, Space, Word};

/// How many rows of nodes that are gone are removed at once.
const SWEEP_ROWS: usize = 1_000;
/// How long after one such batch the next one follows: 20,000 rows a second.
const SWEEP_EVERY: Duration = Duration::from_millis(50);

/// How a member stands, as the membership sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Alive, or merely suspected.
    Present,
    /// It cannot be reached; the same life may come back.
    Down,
    /// It said goodbye; after a drain or just so.
    Left {
        /// Whether it had announced it.
        drained: bool,
    },
    /// A later life of it has joined.
    Superseded,
}

/// Why something is visible that was not, is no more, or changed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Why {
    /// It was registered, joined or tracked.
    Registered,
    /// Its metadata changed.
    Updated,
    /// It was unregistered, left or untracked on purpose.
    Unregistered,
    /// Its lease was not renewed.
    Expired,
    /// Its process ended as planned.
    Normal,
    /// Its process failed, in its own words.
    Crashed(Arc<str>),
    /// Of two holders of one name the later one has it now.
    Conflict,
    /// Its node cannot be reached.
    NodeDown,
    /// Its node was down, or not known, and is here.
    NodeBack,
    /// Its node left without a drain.
    NodeLeft,
    /// Its node was drained and left.
    NodeDrained,
    /// Its node was started again: the life that wrote it is over.
    NodeRestarted,
    /// Its node has been away for so long that nobody remembers it.
    NodeForgotten,
    /// It ended while this node could not hear why.
    Unexplained,
}

impl Why {
    /// The word used in HTTP bodies, logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Registered => "registered",
            Self::Updated => "updated",
            Self::Unregistered => "unregistered",
            Self::Expired => "expired",
            Self::Normal => "normal",
            Self::Crashed(_) => "crashed",
            Self::Conflict => "conflict",
            Self::NodeDown => "node_down",
            Self::NodeBack => "node_back",
            Self::NodeLeft => "node_left",
            Self::NodeDrained => "node_drained",
            Self::NodeRestarted => "node_restarted",
            Self::NodeForgotten => "node_forgotten",
            Self::Unexplained => "unexplained",
        }
    }
}

impl From<End> for Why {
    fn from(end: End) -> Self {
        match end {
            End::Asked => Self::Unregistered,
            End::Normal => Self::Normal,
            End::Crashed(text) => Self::Crashed(text),
            End::Conflict => Self::Conflict,
            End::Expired => Self::Expired,
        }
    }
}

/// A change of what is visible: of a unique name's holder, or of one entry elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What was there.
    pub before: Option<Arc<Entry>>,
    /// What is there now.
    pub now: Option<Arc<Entry>>,
    /// Why.
    pub why: Why,
}

impl Change {
    /// Whichever of the two there is; both are of one key.
    #[must_use]
    pub fn entry(&self) -> &Arc<Entry> {
        let either = self.now.as_ref().or(self.before.as_ref());
        either.expect("a change is from something or to something")
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The replica holds this under the row's key now; `None` for nothing.
    Row(RowKey, Option<Word>),
    /// These are all members now, this node included or not.
    Members(Vec<(NodeId, Standing)>),
    /// The time asked for has come. Early or repeated is harmless.
    Woke,
}

/// Something to do now, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Show this to readers and watchers.
    Changed(Change),
    /// A row of this node lost its name: end it, and tell its process.
    Lost {
        /// This node's row.
        mine: Arc<Entry>,
        /// Who has the name.
        winner: Arc<Entry>,
    },
    /// Remove this row from the replica: its owner will never be back.
    Sweep(RowKey),
    /// Write this row of this node again: somebody took its owner for gone and removed it.
    Restore(Arc<Entry>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Belief {
    /// Its rows are here, it is not: it may not have been introduced yet.
    Unknown {
        since: Instant,
    },
    Present,
    Down,
    Gone(Why),
}

impl Belief {
    fn of(standing: Standing) -> Self {
        match standing {
            Standing::Present => Self::Present,
            Standing::Down => Self::Down,
            Standing::Left { drained: true } => Self::Gone(Why::NodeDrained),
            Standing::Left { drained: false } => Self::Gone(Why::NodeLeft),
            Standing::Superseded => Self::Gone(Why::NodeRestarted),
        }
    }
}

#[derive(Debug)]
struct Owner {
    belief: Belief,
    rows: BTreeMap<u64, Arc<Entry>>,
    /// How many of its rows are of each space.
    counts: [usize; 4],
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    scope: Arc<str>,
    key: Arc<str>,
}

impl Name {
    fn of(entry: &Entry) -> Self {
        Self { scope: Arc::clone(&entry.scope), key: Arc::clone(&entry.key) }
    }
}

/// What one node knows of everybody's rows. Owned by one shell.
#[derive(Debug)]
pub struct Directory {
    me: NodeId,
    unknown_for: Duration,
    owners: BTreeMap<NodeId, Owner>,
    /// The visible holders of each unique name, the one that has it last.
    names: BTreeMap<Name, Vec<Arc<Entry>>>,
    members: BTreeMap<NodeName, (NodeId, Standing)>,
    sweep_at: Instant,
}

impl Directory {
    /// What `me` knows when it starts: nothing. Rows of owners that no view shows are kept for
    /// `unknown_for` before they count as left behind.
    #[must_use]
    pub fn new(me: NodeId, unknown_for: Duration) -> Self {
        Self {
            me,
            unknown_for,
            owners: BTreeMap::new(),
            names: BTreeMap::new(),
            members: BTreeMap::new(),
            sweep_at: Instant::ZERO,
        }
    }

    /// Applies one input. Never blocks, never fails; effects are pushed to `out`, in order.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Row(at, Some(Word::Held(entry))) => self.handle_held(now, at, entry, out),
            Input::Row(at, Some(Word::Ended(end))) => self.handle_gone(&at, end.into(), out),
            Input::Row(at, None) if at.owner == self.me => {
                out.extend(self.row(&at).cloned().map(Output::Restore));
            }
            Input::Row(at, None) => self.handle_gone(&at, Why::Unexplained, out),
            Input::Members(members) => {
                let by_name =
                    |(node, standing): (NodeId, Standing)| (node.name.clone(), (node, standing));
                self.members = members.into_iter().map(by_name).collect();
                self.look_at_owners(now, out);
            }
            Input::Woke => {
                self.look_at_owners(now, out);
                self.sweep(now, out);
            }
        }
    }

    /// When [`Input::Woke`] is due next, if ever.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        let mut wake = None;
        for owner in self.owners.values() {
            let due = match owner.belief {
                Belief::Unknown { since } => since + self.unknown_for,
                Belief::Gone(_) if self.is_sweeper() => self.sweep_at,
                Belief::Gone(_) | Belief::Present | Belief::Down => continue,
            };
            wake = Some(wake.map_or(due, |wake: Instant| wake.min(due)));
        }
        wake
    }

    /// The row `at`, visible or not.
    #[must_use]
    pub fn row(&self, at: &RowKey) -> Option<&Arc<Entry>> {
        self.owners.get(&at.owner)?.rows.get(&at.number)
    }

    /// Every row there is, visible or not.
    pub fn rows(&self) -> impl Iterator<Item = &Arc<Entry>> {
        self.owners.values().flat_map(|owner| owner.rows.values())
    }

    /// The rows that are visible, in the order of their owners and numbers. Of a unique name these
    /// are all its holders, for the short time in which it has several.
    pub fn visible(&self) -> impl Iterator<Item = &Arc<Entry>> {
        let visible = self.owners.values().filter(|owner| owner.belief == Belief::Present);
        visible.flat_map(|owner| owner.rows.values())
    }

    /// Who has the unique name `key` of `scope`.
    #[must_use]
    pub fn holder(&self, scope: &str, key: &str) -> Option<&Arc<Entry>> {
        self.names.get(&Name { scope: scope.into(), key: key.into() })?.last()
    }

    /// How many visible rows of `space` each node has.
    pub fn counts(&self, space: Space) -> impl Iterator<Item = (&NodeId, usize)> {
        let visible = self.owners.iter().filter(|(_, owner)| owner.belief == Belief::Present);
        let counts = visible.map(move |(node, owner)| (node, owner.counts[slot(space)]));
        counts.filter(|(_, count)| *count > 0)
    }

    /// How many rows of `space` this node has.
    #[must_use]
    pub fn own(&self, space: Space) -> usize {
        self.owners.get(&self.me).map_or(0, |owner| owner.counts[slot(space)])
    }

    fn handle_held(&mut self, now: Instant, at: RowKey, entry: Arc<Entry>, out: &mut Vec<Output>) {
        let belief = self.belief(now, &at.owner, None);
        let owner = self.owners.entry(at.owner.clone()).or_insert_with(|| Owner {
            belief,
            rows: BTreeMap::new(),
            counts: [0; 4],
        });
        let before = owner.rows.get(&at.number);
        if before.is_some_and(|before| before.version >= entry.version) {
            return;
        }
        let before = owner.rows.insert(at.number, Arc::clone(&entry));
        if let Some(before) = &before {
            owner.counts[slot(before.space)] -= 1;
        }
        owner.counts[slot(entry.space)] += 1;
        if owner.belief == Belief::Present {
            let why = if before.is_some() { Why::Updated } else { Why::Registered };
            self.show(before, Some(entry), why, out);
        }
    }

    fn handle_gone(&mut self, at: &RowKey, why: Why, out: &mut Vec<Output>) {
        let Some(owner) = self.owners.get_mut(&at.owner) else { return };
        let Some(before) = owner.rows.remove(&at.number) else { return };
        owner.counts[slot(before.space)] -= 1;
        let was_visible = owner.belief == Belief::Present;
        if owner.rows.is_empty() {
            self.owners.remove(&at.owner);
        }
        if was_visible {
            self.show(Some(before), None, why, out);
        }
    }

    /// What to think of `owner`, given what was thought before.
    fn belief(&self, now: Instant, owner: &NodeId, before: Option<&Belief>) -> Belief {
        if *owner == self.me {
            return Belief::Present;
        }
        match (self.members.get(&owner.name), before) {
            (Some((member, standing)), _) if member == owner => Belief::of(*standing),
            (Some((member, _)), _) if member.supersedes(owner) => Belief::Gone(Why::NodeRestarted),
            (_, Some(Belief::Unknown { since })) if now - *since >= self.unknown_for => {
                Belief::Gone(Why::NodeForgotten)
            }
            (_, Some(before @ (Belief::Unknown { .. } | Belief::Gone(_)))) => before.clone(),
            // It was a member and is none any more.
            (_, Some(Belief::Present | Belief::Down)) => Belief::Gone(Why::NodeForgotten),
            (_, None) => Belief::Unknown { since: now },
        }
    }

    fn look_at_owners(&mut self, now: Instant, out: &mut Vec<Output>) {
        let changed: Vec<(NodeId, Belief)> = self
            .owners
            .iter()
            .map(|(node, owner)| (node, owner, self.belief(now, node, Some(&owner.belief))))
            .filter(|(_, owner, belief)| owner.belief != *belief)
            .map(|(node, _, belief)| (node.clone(), belief))
            .collect();
        for (node, belief) in changed {
            let owner = self.owners.get_mut(&node).expect("it was just looked at");
            let was = std::mem::replace(&mut owner.belief, belief.clone());
            let why = match (was, belief) {
                (Belief::Present, Belief::Down) => Why::NodeDown,
                (Belief::Present, Belief::Gone(why)) => why,
                (Belief::Unknown { .. }, Belief::Present) => Why::Registered,
                (Belief::Down | Belief::Gone(_), Belief::Present) => Why::NodeBack,
                // Neither was it visible nor is it now.
                _ => continue,
            };
            let is_back = owner.belief == Belief::Present;
            let rows: Vec<Arc<Entry>> = owner.rows.values().cloned().collect();
            for row in rows {
                let (before, now) = if is_back { (None, Some(row)) } else { (Some(row), None) };
                self.show(before, now, why.clone(), out);
            }
        }
    }

    /// A visible row changed: what that means to readers.
    fn show(
        &mut self,
        before: Option<Arc<Entry>>,
        now: Option<Arc<Entry>>,
        why: Why,
        out: &mut Vec<Output>,
    ) {
        let of = now.as_ref().or(before.as_ref()).expect("something changed");
        if of.space != Space::Unique {
            out.push(Output::Changed(Change { before, now, why }));
            return;
        }
        let name = Name::of(of);
        let holders = self.names.entry(name.clone()).or_default();
        let had_it = holders.last().cloned();
        holders.retain(|holder| before.as_ref().is_none_or(|before| holder.at != before.at));
        holders.extend(now);
        holders.sort_by(|a, b| a.precedence().cmp(&b.precedence()));
        let has_it = holders.last().cloned();
        if had_it != has_it {
            let is_other = had_it.as_ref().zip(has_it.as_ref()).is_some_and(|(a, b)| a.at != b.at);
            // Why the present holder is there, unless the former one went: then why that is.
            let why = match why {
                Why::Registered | Why::NodeBack | Why::Updated if is_other => Why::Conflict,
                why => why,
            };
            out.push(Output::Changed(Change { before: had_it, now: has_it.clone(), why }));
        }
        match has_it {
            None => drop(self.names.remove(&name)),
            Some(winner) => {
                let losers = self.names[&name].iter().filter(|it| it.at != winner.at);
                let mine = losers.filter(|it| it.at.owner == self.me).cloned();
                out.extend(mine.map(|mine| Output::Lost { mine, winner: Arc::clone(&winner) }));
            }
        }
    }

    /// Whether this node is the one that removes what others left behind. During a cut each side
    /// has one; two of them remove the same rows, which is harmless.
    fn is_sweeper(&self) -> bool {
        let present = self.members.values().filter(|(_, standing)| *standing == Standing::Present);
        present.map(|(node, _)| node).min().is_none_or(|first| *first >= self.me)
    }

    fn sweep(&mut self, now: Instant, out: &mut Vec<Output>) {
        if now < self.sweep_at || !self.is_sweeper() {
            return;
        }
        self.sweep_at = now + SWEEP_EVERY;
        let gone = self.owners.values().filter(|owner| matches!(owner.belief, Belief::Gone(_)));
        let rows = gone.flat_map(|owner| owner.rows.values()).take(SWEEP_ROWS);
        out.extend(rows.map(|row| Output::Sweep(row.at.clone())));
    }

    /// The versions of all rows, to find what a comparison with the replica must look at.
    pub(crate) fn version(&self, at: &RowKey) -> Option<HlcTimestamp> {
        self.row(at).map(|row| row.version)
    }

    /// The keys of all rows.
    pub(crate) fn keys(&self) -> BTreeSet<RowKey> {
        self.rows().map(|row| row.at.clone()).collect()
    }
}

fn slot(space: Space) -> usize {
    match space {
        Space::Unique => 0,
        Space::Shared => 1,
        Space::Group => 2,
        Space::Presence => 3,
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
