//! How replicas become equal: writes as they happen, and comparison for whatever was missed.
//!
//! Two mechanisms, because each alone fails. Sending single writes is fast but loses them when a
//! neighbour was away or slow; comparing whole states finds everything but costs a round trip per
//! level. So writes stream to each neighbour from one bounded log with confirmation, and digests
//! find the rest: when a neighbour appears, when its place fell off the log, and at a slow
//! rhythm always. What a comparison brings is joined by dots; absence alone deletes nothing.
//!
//! Two neighbours greet each other before anything else: which versions they speak, and which keys
//! each keeps. From then on both mechanisms run over the keys that both keep, and a message says
//! under which greeting it was made, so that none is taken for more than it covers.
//!
//! [`Sync`] is pure: told what happened and when, it answers with what to send and what changed.
//!
//! # Source
//! Almeida et al. 2018, §6 (delta intervals with acknowledgement); Enes et al. 2019 (what to
//! forward); DeCandia et al. 2007 (digest trees).

mod compare;
mod keeping;
mod lives;
mod stream;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use purlin_core::{Instant, NodeId, Rng, WallTime, hlc::NodeTag};
use purlin_crdt::DotStore;

use self::{compare::Pull, lives::Lives};
pub use self::{
    keeping::StillCatchingUp,
    lives::{KnownLives, Membership},
};
use crate::{
    cell::Cell,
    expiry::Expiries,
    interest::Interest,
    journal::Record,
    knowledge::{Claim, Knowledge},
    log::{Log, Seq},
    slot::Slot,
    store::{Changed, Entries, Made, Store, Update, WriteError},
    wire::{Message, MessageError, Versions},
};

/// What a replica set trades.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncConfig {
    /// How many bytes of unconfirmed writes are kept for slow neighbours. Default 8 MiB (guess):
    /// some seconds of a busy writer.
    pub log_bytes_max: usize,
    /// About how many bytes one message carries. Default 256 KiB: fits a frame without fragments
    /// and amortises a round trip.
    pub batch_bytes: usize,
    /// How long an unanswered message waits before it is sent again. Default 1 s.
    pub resend_after: Duration,
    /// The shortest and longest pause between two comparisons with a random neighbour: short
    /// after a difference was found, doubling while none is. Defaults 1 s and 30 s.
    pub compare_every: (Duration, Duration),
    /// Whether writes heard from one neighbour are passed on to the others: needed where
    /// neighbours are not everybody.
    pub forward: bool,
    /// Whether changes are to be written down ([`Output::Persist`]).
    pub durable: bool,
    /// How far ahead of this node's wall clock a write may be stamped. Default 10 s.
    pub drift_max: Duration,
    /// How long a life must have been over, in the eyes of a replica that ran all the time, before
    /// it may be pruned. Default 24 h: members that were all restarted during a partition, some of
    /// them without their disks, may know nothing of those on the other side, who still have
    /// something new to tell. A partition with such restarts must be healed within this time.
    pub prune_after: Duration,
}

impl Default for SyncConfig {
    fn default() -> Self {
        Self {
            log_bytes_max: 8 << 20,
            batch_bytes: 256 << 10,
            resend_after: Duration::from_secs(1),
            compare_every: (Duration::from_secs(1), Duration::from_secs(30)),
            forward: false,
            durable: false,
            drift_max: purlin_core::hlc::DRIFT_MAX_DEFAULT,
            prune_after: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A neighbour can be reached.
    Up(NodeId),
    /// A neighbour is gone; another life of it is another neighbour.
    Down(NodeId),
    /// Who is a member now.
    Members(Membership),
    /// A neighbour said this.
    Heard(NodeId, Message),
    /// A neighbour said something that is no message, or none of a version spoken here.
    Malformed(NodeId, MessageError),
    /// The time asked for has come. Early or repeated is harmless.
    Woke,
}

/// Something to do now, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send this; losing it costs time and nothing else.
    Send(NodeId, Message),
    /// These entries changed because of what a neighbour told.
    Changed {
        /// Who told.
        from: NodeId,
        /// The entries.
        changed: Vec<Changed>,
    },
    /// These entries' time is over.
    Expired(Vec<Changed>),
    /// These entries are not kept here any more; others have them.
    Dropped(Vec<Changed>),
    /// A neighbour's state has been taken in completely.
    CaughtUp(NodeId),
    /// Write this down, after what was to be written before; for durable replicas.
    Persist(Record),
    /// A neighbour refused our writes; they are kept and sent again later.
    Refused(NodeId, String),
    /// There is no version that a neighbour and this node both speak: nothing goes either way
    /// until one of them runs another release.
    Incompatible(NodeId, Versions),
    /// This life of a neighbour had been taken to be over for good; it must be restarted.
    Revenant(NodeId),
}

impl Output {
    /// Whether it is a message.
    pub(crate) fn is_send(&self) -> bool {
        matches!(self, Self::Send(..))
    }
}

/// What happened so far; everything only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Updates taken in from neighbours.
    pub updates_joined: u64,
    /// Updates and pieces of which something was refused: the sum of the reasons below, and claims
    /// of this node's own writes.
    pub updates_refused: u64,
    /// Entries refused because they were written in the future.
    pub future: u64,
    /// Entries refused because a value in them is too large.
    pub too_large: u64,
    /// Messages that were none.
    pub malformed: u64,
    /// Messages and greetings of versions that this release does not speak.
    pub incompatible: u64,
    /// Contexts refused because they claimed more of us than we wrote.
    pub forged: u64,
    /// Messages from somebody who is no neighbour at that moment.
    pub strangers: u64,
    /// Neighbours that came back after they had been taken to be over for good.
    pub revenants: u64,
    /// Keys that were heard to hold two kinds of value.
    pub mixed: u64,
    /// Comparisons begun.
    pub compared: u64,
    /// Comparisons that found a difference.
    pub differed: u64,
    /// Entries received in pieces.
    pub entries_pulled: u64,
    /// Lives forgotten because everybody had seen all of them and nothing of them was left.
    pub pruned: u64,
}

#[derive(Debug)]
struct Peer {
    /// Everything up to here has been confirmed.
    confirmed: Seq,
    in_flight: Option<InFlight>,
    pull: Option<Pull>,
    /// Its state must be compared with as soon as no comparison runs.
    compare: bool,
    last_caught_up: Option<Instant>,
    standing: Standing,
    /// What it last said that it keeps.
    theirs: Option<Theirs>,
    /// Which of our greetings it has heard.
    heard: u32,
    /// When to greet it again if it has not answered.
    greet_at: Option<Instant>,
    /// The keys both keep.
    shared: Interest,
    /// Lives it calls over and of which it has seen no more than we have.
    covered: BTreeSet<NodeTag>,
    /// Why it last refused what we sent, until it takes something in.
    refused: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Greeted, and not heard from yet.
    Greeted,
    /// It speaks this version.
    Speaks(u8),
    /// It speaks none of ours.
    Incompatible(Versions),
}

#[derive(Debug)]
struct Theirs {
    number: u32,
    keeps: Interest,
    wants: Interest,
    keeps_own: bool,
}

#[derive(Debug)]
struct InFlight {
    upto: Seq,
    resend_at: Instant,
}

/// How one neighbour stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    /// Who.
    pub node: NodeId,
    /// Writes it has not confirmed.
    pub writes: u64,
    /// How long ago its state was last taken in completely; `None` if it never was.
    pub caught_up: Option<Duration>,
    /// The version both speak; `None` before it has answered the greeting.
    pub version: Option<u8>,
    /// What it speaks, when that is nothing this release does: nothing is exchanged with it.
    pub incompatible: Option<Versions>,
    /// Which keys it keeps; `None` before it has said so.
    pub keeps: Option<Interest>,
    /// Why it last refused what was sent to it, unless it has taken something in since.
    pub refused: Option<String>,
}

/// What a replica remembers besides its entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ContextSize {
    /// Lives in its causal contexts.
    pub lives: usize,
    /// Runs of dots kept apart because something before them has not been heard.
    pub gaps: usize,
    /// Contexts: more than one while it catches up with keys it began to keep.
    pub claims: usize,
    /// Lives that take 16 bytes each because everything of them was seen and nothing is left.
    pub pruned: usize,
}

/// One replica of a set and its dealings with its neighbours. Owned by one loop.
#[derive(Debug)]
pub struct Sync {
    config: SyncConfig,
    me: NodeTag,
    store: Store,
    log: Log,
    peers: BTreeMap<NodeId, Peer>,
    expiries: Expiries,
    compare_at: Instant,
    compare_pause: Duration,
    sessions: u32,
    rng: Rng,
    counters: Counters,
    /// The number of our greeting.
    number: u32,
    keeps: Interest,
    wants: Interest,
    keeps_own: bool,
    lives: Lives,
    /// While the log is read back: a rewriting of the whole state whose end has not come yet.
    rewriting: Option<(Knowledge, Vec<Record>)>,
}

impl Sync {
    /// An empty replica of `node` that keeps every key.
    #[must_use]
    pub fn new(config: SyncConfig, node: &NodeId, now: Instant, rng: Rng) -> Self {
        let me = NodeTag::of(node);
        Self {
            me,
            store: Store::new(me),
            log: Log::new(config.log_bytes_max),
            peers: BTreeMap::new(),
            expiries: Expiries::default(),
            compare_at: now + config.compare_every.0,
            compare_pause: config.compare_every.0,
            sessions: 0,
            rng,
            counters: Counters::default(),
            rewriting: None,
            number: 1,
            keeps: Interest::all(),
            wants: Interest::all(),
            keeps_own: true,
            lives: Lives::default(),
            config,
        }
    }

    /// Takes in what an earlier life wrote down, in the order in which it was written; before
    /// anything else.
    pub fn recover(&mut self, record: &Record) {
        match record {
            Record::Rewriting(known) => {
                self.end_rewriting(false);
                self.rewriting = Some((known.clone(), Vec::new()));
            }
            // A life began behind a rewriting that its predecessor did not finish.
            Record::Known(_) => {
                self.end_rewriting(false);
                self.redo(record);
            }
            other => match &mut self.rewriting {
                None => self.redo(other),
                Some((_, held)) => {
                    held.push(other.clone());
                    if matches!(other, Record::Part(part) if part.to.is_none()) {
                        self.end_rewriting(true);
                    }
                }
            },
        }
    }

    fn redo(&mut self, record: &Record) {
        match record {
            Record::Lives(known) => self.recover_lives(known),
            other => self.store.redo(other),
        }
    }

    /// Takes in a rewriting of the whole state, with what was changed meanwhile. Of one that was
    /// not finished nothing counts that claims to have seen more than what is there.
    fn end_rewriting(&mut self, is_whole: bool) {
        let Some((known, held)) = self.rewriting.take() else { return };
        if is_whole {
            self.store.redo(&Record::Known(known));
        }
        for record in held {
            if is_whole || !matches!(record, Record::Absorb(..)) {
                self.redo(&record);
            }
        }
    }

    /// Begins this life after [`Sync::recover`]: what expires and what is kept is found anew. An
    /// empty replica keeps `wants`, any other what it kept, until [`Sync::set_interest`].
    pub fn begin(&mut self, wants: &Interest, out: &mut Vec<Output>) {
        self.end_rewriting(false);
        if self.store.is_empty() && self.store.context().is_empty() {
            self.store.set_known(Knowledge::nothing_of(wants.clone()));
        }
        self.begin_life();
        let slots: Vec<Slot> = self.store.iter().map(|(slot, _)| slot.clone()).collect();
        slots.iter().for_each(|slot| self.note_expiry(slot));
        let claims = self.store.known().claims();
        self.keeps = claims.iter().fold(Interest::none(), |all, claim| all.union(&claim.keys));
        self.wants = self.keeps.clone();
        for record in self.remembered() {
            self.persist(out, || record);
        }
    }

    fn remembered(&self) -> [Record; 2] {
        [Record::Known(self.store.known().clone()), Record::Lives(self.known_lives().clone())]
    }

    /// What goes in front of the whole state when it is written down: whatever is heard again
    /// behind it must be known as heard.
    #[must_use]
    pub fn rewriting(&self) -> [Record; 2] {
        [Record::Rewriting(self.store.known().clone()), Record::Lives(self.known_lives().clone())]
    }

    fn persist(&self, out: &mut Vec<Output>, record: impl FnOnce() -> Record) {
        if self.config.durable {
            out.push(Output::Persist(record()));
        }
    }

    /// What is kept.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What happened so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How every neighbour stands.
    #[must_use]
    pub fn lag(&self, now: Instant) -> Vec<Lag> {
        let last = self.log.last();
        let lag = |(node, peer): (&NodeId, &Peer)| Lag {
            node: node.clone(),
            writes: last - peer.confirmed.min(last),
            caught_up: peer.last_caught_up.map(|at| now - at),
            version: match peer.standing {
                Standing::Speaks(version) => Some(version),
                Standing::Greeted | Standing::Incompatible(_) => None,
            },
            incompatible: match peer.standing {
                Standing::Incompatible(versions) => Some(versions),
                Standing::Greeted | Standing::Speaks(_) => None,
            },
            keeps: peer.theirs.as_ref().map(|theirs| theirs.keeps.clone()),
            refused: peer.refused.clone(),
        };
        self.peers.iter().map(lag).collect()
    }

    /// About how many bytes of writes are kept for neighbours that have not confirmed them.
    #[must_use]
    pub fn log_bytes(&self) -> usize {
        self.log.bytes()
    }

    /// What is remembered besides the entries.
    #[must_use]
    pub fn context_size(&self) -> ContextSize {
        let known = self.store.known();
        let largest = |of: fn(&Claim) -> usize| known.claims().iter().map(of).max();
        ContextSize {
            lives: largest(|claim| claim.seen.lives()).unwrap_or(0),
            gaps: largest(|claim| claim.seen.gaps()).unwrap_or(0),
            claims: known.claims().len(),
            pruned: known.pruned().len(),
        }
    }

    /// Writes here, and sends the write to every neighbour that is not waiting for an earlier one.
    ///
    /// # Errors
    /// [`WriteError::OutsideInterest`] for a key that is not kept here, or not for much longer; and
    /// as `change` says. Nothing was changed.
    pub fn write<M: Into<Made>>(
        &mut self,
        now: Instant,
        slot: &Slot,
        change: impl FnOnce(&mut Store) -> Result<Option<M>, WriteError>,
        out: &mut Vec<Output>,
    ) -> Result<bool, WriteError> {
        if !self.wants.covers(slot.key()) {
            let (key, keeps) = (slot.clone(), self.wants.clone());
            return Err(WriteError::OutsideInterest { key, keeps });
        }
        let Some(made) = change(&mut self.store)? else { return Ok(false) };
        let ends = |cell: &Cell| cell.register().is_some_and(|written| written.expires.is_some());
        if !self.expiries.is_empty() || self.store.get(slot).is_some_and(ends) {
            self.note_expiry(slot);
        }
        // Whoever comes will compare: for nobody there is nothing to be made.
        if self.config.durable || !self.peers.is_empty() {
            let update = Update::from(made.into());
            self.persist(out, || Record::Update(update.clone()));
            self.enqueue(update, None);
            self.flush(now, out);
        }
        Ok(true)
    }

    /// Applies one input. Never blocks, never fails; what is to be done is pushed to `out`.
    pub fn step(&mut self, now: Instant, wall: WallTime, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Up(node) => self.handle_up(now, node, out),
            Input::Down(node) => {
                self.peers.remove(&node);
                self.share();
                self.trim();
            }
            Input::Members(membership) => self.handle_members(membership, out),
            Input::Heard(from, message) => self.handle_message(now, wall, &from, message, out),
            Input::Malformed(from, MessageError::Version(heard)) => {
                self.handle_unreadable(&from, heard, out);
            }
            Input::Malformed(..) => self.counters.malformed += 1,
            Input::Woke => self.handle_woke(now, wall, out),
        }
    }

    /// When [`Input::Woke`] is due next; `wall` is the wall clock at `now`.
    #[must_use]
    pub fn wake_at(&self, now: Instant, wall: WallTime) -> Instant {
        let peers = self.peers.values().flat_map(|peer| {
            let resend = peer.in_flight.as_ref().map(|sent| sent.resend_at);
            let pull = peer.pull.as_ref().map(|pull| pull.give_up_at);
            resend.into_iter().chain(pull).chain(peer.greet_at)
        });
        let expiry = self
            .expiries
            .first()
            .map(|at| now + Duration::from_millis(at.as_millis().saturating_sub(wall.as_millis())));
        peers.chain(expiry).fold(self.compare_at, Instant::min)
    }

    fn handle_up(&mut self, now: Instant, node: NodeId, out: &mut Vec<Output>) {
        let tag = NodeTag::of(&node);
        if self.lives.is_over(tag) || self.store.known().is_pruned(tag) {
            // Others were told that nothing more will come of it; what it wrote since would pass for
            // deleted. It keeps its writes and is told so by never being confirmed.
            self.counters.revenants += 1;
            out.push(Output::Revenant(node));
            return;
        }
        let last = self.log.last();
        let peer = self.peers.entry(node.clone()).or_insert(Peer {
            // What was written before it came, its own comparison with us brings it.
            confirmed: last,
            in_flight: None,
            pull: None,
            compare: true,
            last_caught_up: None,
            standing: Standing::Greeted,
            theirs: None,
            heard: 0,
            greet_at: None,
            shared: Interest::none(),
            covered: BTreeSet::new(),
            refused: None,
        });
        // Up again without a Down: the connection was replaced, and what was in flight is in doubt.
        peer.in_flight = None;
        peer.pull = None;
        peer.compare = true;
        if matches!(peer.standing, Standing::Incompatible(_)) {
            peer.standing = Standing::Greeted;
        }
        self.greet(now, &node, out);
        self.compare(now, &node, out);
        self.flush(now, out);
    }

    fn handle_woke(&mut self, now: Instant, wall: WallTime, out: &mut Vec<Output>) {
        let mut silent = Vec::new();
        for (node, peer) in &mut self.peers {
            if peer.in_flight.as_ref().is_some_and(|sent| sent.resend_at <= now) {
                peer.in_flight = None;
            }
            if peer.pull.as_ref().is_some_and(|pull| pull.give_up_at <= now) {
                peer.pull = None;
                peer.compare = true;
            }
            if peer.greet_at.is_some_and(|at| at <= now) {
                silent.push(node.clone());
            }
        }
        for node in &silent {
            self.greet(now, node, out);
        }
        self.expire(wall, out);
        if self.compare_at <= now {
            self.compare_at = now + self.compare_pause;
            // Keys that are to go wait for a comparison that shows them safe elsewhere.
            let is_leaving = self.keeps != self.wants;
            let longer = (self.compare_pause * 2).min(self.config.compare_every.1);
            self.compare_pause = if is_leaving { self.config.compare_every.0 } else { longer };
            let names: Vec<NodeId> = self.peers.keys().cloned().collect();
            if !names.is_empty() {
                let with = names[self.rng.below(names.len())].clone();
                self.compare(now, &with, out);
            }
            self.prune(now, out);
        }
        let due: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.compare && peer.pull.is_none())
            .map(|(node, _)| node.clone())
            .collect();
        for node in due {
            self.compare(now, &node, out);
        }
        self.flush(now, out);
    }

    fn expire(&mut self, wall: WallTime, out: &mut Vec<Output>) {
        let mut expired = Vec::new();
        while let Some(slot) = self.expiries.pop_due(wall) {
            if self.store.expire(&slot, wall).is_some() {
                expired.push(Changed { now: self.store.get(&slot).cloned(), slot });
            }
        }
        if !expired.is_empty() {
            out.push(Output::Expired(expired));
        }
    }

    /// When the first entry ends.
    pub(crate) fn first_expiry(&self) -> Option<WallTime> {
        self.expiries.first()
    }

    fn note_expiry(&mut self, slot: &Slot) {
        let expires = self.store.get(slot).and_then(Cell::register).and_then(|it| it.expires);
        self.expiries.set(slot, expires);
    }

    fn handle_message(
        &mut self,
        now: Instant,
        wall: WallTime,
        from: &NodeId,
        message: Message,
        out: &mut Vec<Output>,
    ) {
        if !self.peers.contains_key(from) {
            self.counters.strangers += 1;
            return;
        }
        match message {
            Message::Greet(greeting) => self.handle_greeting(now, from, greeting, out),
            Message::Unreadable { speaks, .. } => self.set_incompatible(from, speaks, out),
            Message::Updates { upto, update, by, whole } => {
                let heard = stream::Heard { upto, by, whole };
                self.handle_updates(now, wall, from, heard, update, out);
            }
            Message::Confirm { upto } => self.handle_confirm(now, from, upto, out),
            Message::Refuse { reason, .. } => self.handle_refuse(from, reason, out),
            Message::Behind => self.compare(now, from, out),
            Message::Compare { session, terms, root, seen, ended } => {
                let asked = compare::Asked { session, terms, root };
                self.handle_compare(now, from, &asked, &seen, &ended, out);
            }
            Message::Equal { session, ended } => {
                // It has seen no more than we: it said so.
                self.note_covered(from, &[], &ended);
                self.handle_equal(now, from, session, out);
            }
            Message::Branches { session, seen, ended, hashes } => {
                self.note_covered(from, &seen, &ended);
                self.handle_branches(now, from, session, seen, &hashes, out);
            }
            Message::Fetch { session, terms, branch, hashes, from: at } => {
                self.handle_fetch(now, from, session, terms, branch, &hashes, at, out);
            }
            Message::Pieces { session, branch, pieces, next } => {
                let answer = compare::Answer { session, branch, next };
                self.handle_pieces(now, wall, from, answer, pieces, out);
            }
        }
    }

    fn after_change(&mut self, from: &NodeId, changed: Vec<Changed>, out: &mut Vec<Output>) {
        if changed.is_empty() {
            return;
        }
        for one in &changed {
            self.note_expiry(&one.slot);
            let kinds = one.now.as_ref().map_or(0, |cell| cell.kinds().count());
            self.counters.mixed += u64::from(kinds > 1);
        }
        out.push(Output::Changed { from: from.clone(), changed });
    }
}

fn millis(of: Duration) -> u64 {
    u64::try_from(of.as_millis()).unwrap_or(u64::MAX)
}

/// About how many bytes entries take on the wire: dots at 12 bytes, and the contents.
fn weight(entries: &Entries) -> usize {
    entries.iter().map(|(slot, cell)| cell_weight(slot, cell)).sum::<usize>() + 16
}

pub(crate) fn cell_weight(slot: &Slot, cell: &Cell) -> usize {
    let mut dots = 0;
    // The dots of a text stand together.
    let text = cell.text().map_or(0, purlin_crdt::TextStore::overhead);
    if text == 0 {
        cell.dots(&mut |_| dots += 1);
    }
    slot.key().len() + 12 * dots + text + cell.bytes() + 20 * cell.writes().count() + 8
}
