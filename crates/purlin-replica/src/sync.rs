//! How replicas become equal: writes as they happen, and comparison for whatever was missed.
//!
//! Two mechanisms, because each alone fails. Sending single writes is fast but loses them when a
//! neighbour was away or slow; comparing whole states finds everything but costs a round trip per
//! level. So writes stream to each neighbour from one bounded log with confirmation, and digests
//! find the rest: when a neighbour appears, when its place fell off the log, and at a slow
//! rhythm always. What a comparison brings is joined by dots; absence alone deletes nothing.
//!
//! [`Sync`] is pure: told what happened and when, it answers with what to send and what changed.
//!
//! # Source
//! Almeida et al. 2018, §6 (delta intervals with acknowledgement); Enes et al. 2019 (what to
//! forward); DeCandia et al. 2007 (digest trees).

use std::{collections::BTreeMap, time::Duration};

use purlin_core::{Dot, Instant, NodeId, Rng, WallTime, hlc::NodeTag};
use purlin_crdt::{CausalContext, DotStore, Knows};

use crate::{
    cell::{Cell, Written},
    digest::{FANOUT, Leaf},
    expiry::Expiries,
    journal::Record,
    log::{Log, Next, Seq},
    slot::Slot,
    store::{Changed, Entries, Store, Update, WriteError},
    wire::{Message, MessageError, Piece, Session},
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
        }
    }
}

const FORGED: &str = "it claims writes of this node that this node did not make";

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// A neighbour can be reached.
    Up(NodeId),
    /// A neighbour is gone; another life of it is another neighbour.
    Down(NodeId),
    /// A neighbour said this.
    Heard(NodeId, Message),
    /// A neighbour said something that is no message.
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
    /// A neighbour's state has been taken in completely.
    CaughtUp(NodeId),
    /// Write this down, after what was to be written before; for durable replicas.
    Persist(Record),
    /// A neighbour refused our writes; they are kept and sent again later.
    Refused(NodeId, String),
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
    /// Updates refused for a timestamp from the future.
    pub updates_refused: u64,
    /// Messages that were none.
    pub malformed: u64,
    /// Contexts refused because they claimed more of us than we wrote.
    pub forged: u64,
    /// Comparisons begun.
    pub compared: u64,
    /// Comparisons that found a difference.
    pub differed: u64,
    /// Entries received in pieces.
    pub entries_pulled: u64,
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
}

#[derive(Debug)]
struct InFlight {
    upto: Seq,
    resend_at: Instant,
}

/// A comparison that we asked for.
#[derive(Debug)]
struct Pull {
    session: Session,
    give_up_at: Instant,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Asked,
    Fetching { seen: CausalContext<NodeTag>, branches: Vec<u8> },
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
}

impl Sync {
    /// An empty replica of `node`.
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
            config,
        }
    }

    /// Takes in what an earlier life wrote down, in the order in which it was written; before
    /// anything else.
    pub fn recover(&mut self, record: &Record) {
        self.store.redo(record);
    }

    /// What expires is found anew after [`Sync::recover`].
    pub fn recovered(&mut self) {
        let slots: Vec<Slot> = self.store.iter().map(|(slot, _)| slot.clone()).collect();
        slots.iter().for_each(|slot| self.note_expiry(slot));
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
        };
        self.peers.iter().map(lag).collect()
    }

    /// Writes here, and sends the write to every neighbour that is not waiting for an earlier one.
    ///
    /// # Errors
    /// As `change` says; nothing was changed.
    pub fn write(
        &mut self,
        now: Instant,
        slot: &Slot,
        change: impl FnOnce(&mut Store) -> Result<Option<Update>, WriteError>,
        out: &mut Vec<Output>,
    ) -> Result<bool, WriteError> {
        let Some(update) = change(&mut self.store)? else { return Ok(false) };
        self.persist(out, || Record::Update(update.clone()));
        self.note_expiry(slot);
        self.enqueue(update, None);
        self.flush(now, out);
        Ok(true)
    }

    /// Applies one input. Never blocks, never fails; what is to be done is pushed to `out`.
    pub fn step(&mut self, now: Instant, wall: WallTime, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Up(node) => self.handle_up(now, node, out),
            Input::Down(node) => {
                self.peers.remove(&node);
                self.trim();
            }
            Input::Heard(from, message) => self.handle_message(now, wall, &from, message, out),
            Input::Malformed(..) => self.counters.malformed += 1,
            Input::Woke => self.handle_woke(now, wall, out),
        }
    }

    /// When [`Input::Woke`] is due next; `wall` is the wall clock at `now`.
    #[must_use]
    pub fn wake_at(&self, now: Instant, wall: WallTime) -> Instant {
        let peers = self.peers.values().flat_map(|peer| {
            let resend = peer.in_flight.as_ref().map(|sent| sent.resend_at);
            resend.into_iter().chain(peer.pull.as_ref().map(|pull| pull.give_up_at))
        });
        let expiry = self
            .expiries
            .first()
            .map(|at| now + Duration::from_millis(at.as_millis().saturating_sub(wall.as_millis())));
        peers.chain(expiry).fold(self.compare_at, Instant::min)
    }

    fn handle_up(&mut self, now: Instant, node: NodeId, out: &mut Vec<Output>) {
        let last = self.log.last();
        let peer = self.peers.entry(node.clone()).or_insert(Peer {
            // What was written before it came, its own comparison with us brings it.
            confirmed: last,
            in_flight: None,
            pull: None,
            compare: false,
            last_caught_up: None,
        });
        // Up again without a Down: the connection was replaced, and what was in flight is in doubt.
        peer.in_flight = None;
        peer.pull = None;
        self.compare(now, &node, out);
        self.flush(now, out);
    }

    fn handle_woke(&mut self, now: Instant, wall: WallTime, out: &mut Vec<Output>) {
        for peer in self.peers.values_mut() {
            if peer.in_flight.as_ref().is_some_and(|sent| sent.resend_at <= now) {
                peer.in_flight = None;
            }
            if peer.pull.as_ref().is_some_and(|pull| pull.give_up_at <= now) {
                peer.pull = None;
                peer.compare = true;
            }
        }
        self.expire(wall, out);
        if self.compare_at <= now {
            self.compare_at = now + self.compare_pause;
            self.compare_pause = (self.compare_pause * 2).min(self.config.compare_every.1);
            let names: Vec<NodeId> = self.peers.keys().cloned().collect();
            if !names.is_empty() {
                let with = names[self.rng.below(names.len())].clone();
                self.compare(now, &with, out);
            }
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

    /// Sends every neighbour that waits for nothing what it lacks.
    fn flush(&mut self, now: Instant, out: &mut Vec<Output>) {
        for (node, peer) in &mut self.peers {
            while peer.in_flight.is_none() {
                match self.log.after(peer.confirmed, node, self.config.batch_bytes) {
                    Next::Nothing => break,
                    // Its own words: nothing to send, nothing to wait for.
                    Next::Batch { upto, update: None } => peer.confirmed = upto,
                    Next::Batch { upto, update: Some(update) } => {
                        let resend_at = now + self.config.resend_after;
                        peer.in_flight = Some(InFlight { upto, resend_at });
                        out.push(Output::Send(node.clone(), Message::Updates { upto, update }));
                    }
                    Next::TooOld => {
                        // It will find the rest when it compares; tell it to.
                        peer.confirmed = self.log.last();
                        out.push(Output::Send(node.clone(), Message::Behind));
                        break;
                    }
                }
            }
        }
        self.trim();
    }

    fn trim(&mut self) {
        let all = self.peers.values().map(|peer| peer.confirmed).min();
        self.log.confirmed(all.unwrap_or_else(|| self.log.last()));
    }

    fn enqueue(&mut self, update: Update, from: Option<NodeId>) {
        if self.peers.is_empty() {
            // Whoever comes will compare.
            return;
        }
        let bytes = weight(update.store());
        self.log.push(update, bytes, from);
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
            return;
        }
        match message {
            Message::Updates { upto, update } => {
                self.handle_updates(now, wall, from, upto, update, out)
            }
            Message::Confirm { upto } => self.handle_confirm(now, from, upto, out),
            // The batch stays in flight, so that it is sent again after the usual pause.
            Message::Refuse { reason, .. } => out.push(Output::Refused(from.clone(), reason)),
            Message::Behind => self.compare(now, from, out),
            Message::Compare { session, root, seen } => {
                self.handle_compare(from, session, root, &seen, out);
            }
            Message::Equal { session } => self.finish_pull(now, from, session, None, out),
            Message::Branches { session, seen, hashes } => {
                self.handle_branches(now, from, session, seen, &hashes, out);
            }
            Message::Fetch { session, branch, hashes, from: at } => {
                let (pieces, next) = self.pieces(branch, &hashes, at);
                let pieces = Message::Pieces { session, branch, pieces, next };
                out.push(Output::Send(from.clone(), pieces));
            }
            Message::Pieces { session, branch, pieces, next } => {
                self.handle_pieces(now, wall, from, session, branch, pieces, next, out);
            }
        }
    }

    fn handle_updates(
        &mut self,
        now: Instant,
        wall: WallTime,
        from: &NodeId,
        upto: Seq,
        update: Update,
        out: &mut Vec<Output>,
    ) {
        let checked = self
            .check(wall, update.store())
            .and_then(|()| self.check_dots(update.context().iter()));
        if let Err(reason) = checked {
            self.counters.updates_refused += 1;
            out.push(Output::Send(from.clone(), Message::Refuse { upto, reason }));
            return;
        }
        self.counters.updates_joined += 1;
        let changed = self.store.join(&update);
        self.persist(out, || Record::Update(update.clone()));
        self.after_change(from, changed, out);
        out.push(Output::Send(from.clone(), Message::Confirm { upto }));
        if self.config.forward && !update.store().is_empty() {
            self.enqueue(update, Some(from.clone()));
            self.flush(now, out);
        }
    }

    fn after_change(&mut self, from: &NodeId, changed: Vec<Changed>, out: &mut Vec<Output>) {
        if changed.is_empty() {
            return;
        }
        for one in &changed {
            self.note_expiry(&one.slot);
        }
        out.push(Output::Changed { from: from.clone(), changed });
    }

    /// Whether what a neighbour says can be true: no write from the future, no write of ours that
    /// we did not make.
    fn check(&mut self, wall: WallTime, entries: &Entries) -> Result<(), String> {
        let latest = wall.as_millis().saturating_add(millis(self.config.drift_max));
        let future = |written: &Written| written.at.millis().as_millis() > latest;
        for (slot, cell) in entries.iter() {
            if let Some(written) = cell.writes().find(|written| future(written)) {
                return Err(format!(
                    "key {slot:?} was written at {}, more than {:?} ahead of this node's clock",
                    written.at, self.config.drift_max
                ));
            }
        }
        let mut dots = Vec::new();
        entries.dots(&mut |dot| dots.push(*dot));
        self.check_dots(dots)
    }

    fn check_dots(&mut self, dots: impl IntoIterator<Item = Dot<NodeTag>>) -> Result<(), String> {
        let seen = self.store.context();
        if dots.into_iter().any(|dot| dot.node == self.me && !seen.contains(&dot)) {
            self.counters.forged += 1;
            return Err(FORGED.to_owned());
        }
        Ok(())
    }

    fn check_seen(&mut self, seen: &CausalContext<NodeTag>) -> Result<(), String> {
        let mut beyond = seen.missing_from(self.store.context());
        if beyond.any(|(tag, _, _)| *tag == self.me) {
            self.counters.forged += 1;
            return Err(FORGED.to_owned());
        }
        Ok(())
    }

    fn handle_confirm(&mut self, now: Instant, from: &NodeId, upto: Seq, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        if peer.in_flight.as_ref().is_some_and(|sent| sent.upto == upto) {
            peer.in_flight = None;
            peer.confirmed = upto;
            self.flush(now, out);
        }
    }

    fn compare(&mut self, now: Instant, with: &NodeId, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(with) else { return };
        if peer.pull.is_some() {
            peer.compare = true;
            return;
        }
        self.sessions = self.sessions.wrapping_add(1);
        let session = Session(self.sessions);
        peer.compare = false;
        peer.pull = Some(Pull {
            session,
            give_up_at: now + self.config.resend_after * 5,
            stage: Stage::Asked,
        });
        self.counters.compared += 1;
        let root = self.store.digests().root();
        let seen = self.store.context().clone();
        out.push(Output::Send(with.clone(), Message::Compare { session, root, seen }));
    }

    fn handle_compare(
        &mut self,
        from: &NodeId,
        session: Session,
        root: u64,
        seen: &CausalContext<NodeTag>,
        out: &mut Vec<Output>,
    ) {
        let ours = self.store.context();
        let answer = if root == self.store.digests().root() && seen.covers(ours) {
            Message::Equal { session }
        } else {
            let hashes = self.store.digests().branches();
            Message::Branches { session, seen: ours.clone(), hashes }
        };
        out.push(Output::Send(from.clone(), answer));
    }

    fn handle_branches(
        &mut self,
        now: Instant,
        from: &NodeId,
        session: Session,
        seen: CausalContext<NodeTag>,
        hashes: &[u64],
        out: &mut Vec<Output>,
    ) {
        if self.check_seen(&seen).is_err() {
            self.peers.get_mut(from).into_iter().for_each(|peer| peer.pull = None);
            return;
        }
        let own = self.store.digests().branches();
        let branches: Vec<u8> =
            (0..=u8::MAX).filter(|&n| own[usize::from(n)] != hashes[usize::from(n)]).collect();
        let give_up_at = now + self.config.resend_after * 5;
        let Some(pull) = self.pull(from, session) else { return };
        pull.give_up_at = give_up_at;
        match branches.last().copied() {
            None => self.finish_pull(now, from, session, Some(&seen), out),
            Some(branch) => {
                pull.stage = Stage::Fetching { seen, branches };
                self.counters.differed += 1;
                self.compare_soon(now);
                self.fetch(from, session, branch, None, out);
            }
        }
    }

    fn fetch(
        &mut self,
        from: &NodeId,
        session: Session,
        branch: u8,
        at: Option<Slot>,
        out: &mut Vec<Output>,
    ) {
        let leaves = self.store.digests().leaves(branch);
        let hashes = leaves.map(|leaves| leaves.to_vec()).unwrap_or_default();
        out.push(Output::Send(from.clone(), Message::Fetch { session, branch, hashes, from: at }));
    }

    /// What differs in a branch, from `at` on, up to a batch; and where to go on.
    fn pieces(&self, branch: u8, theirs: &[u64], at: Option<Slot>) -> (Vec<Piece>, Option<Slot>) {
        let ours = self.store.digests().leaves(branch).map_or([0; FANOUT], |leaves| *leaves);
        let theirs = |within: u8| theirs.get(usize::from(within)).copied().unwrap_or(0);
        let start = at.as_ref().map(Leaf::of);
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        for within in 0..=u8::MAX {
            let leaf = Leaf::at(branch, within);
            if start.is_some_and(|start| leaf < start) {
                continue;
            }
            // A leaf cut in two differs still, though its first half has been sent.
            let cut = start == Some(leaf);
            if ours[usize::from(within)] == theirs(within) && !cut {
                continue;
            }
            let from = at.clone().filter(|_| cut);
            let mut entries = Entries::default();
            let mut next = None;
            for (slot, cell) in self.store.leaf(leaf) {
                if from.as_ref().is_some_and(|from| slot < from) {
                    continue;
                }
                let weight = cell_weight(slot, cell);
                if bytes > 0 && bytes + weight > self.config.batch_bytes {
                    next = Some(slot.clone());
                    break;
                }
                bytes += weight;
                entries.set(slot.clone(), cell.clone());
            }
            pieces.push(Piece { leaf, from, to: next.clone(), entries });
            if next.is_some() {
                return (pieces, next);
            }
        }
        (pieces, None)
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    fn handle_pieces(
        &mut self,
        now: Instant,
        wall: WallTime,
        from: &NodeId,
        session: Session,
        branch: u8,
        pieces: Vec<Piece>,
        next: Option<Slot>,
        out: &mut Vec<Output>,
    ) {
        let give_up_at = now + self.config.resend_after * 5;
        let Some(pull) = self.pull(from, session) else { return };
        pull.give_up_at = give_up_at;
        let Stage::Fetching { seen, branches } = &mut pull.stage else { return };
        if branches.last() != Some(&branch) {
            return;
        }
        let seen = seen.clone();
        if next.is_none() {
            branches.pop();
        }
        let following = next.as_ref().map(|_| branch).or_else(|| branches.last().copied());
        let mut news = false;
        for piece in pieces {
            if self.check(wall, &piece.entries).is_err() {
                // The rest may be fine, but the whole must not count as seen: try again later.
                self.counters.updates_refused += 1;
                self.peers.get_mut(from).into_iter().for_each(|peer| peer.pull = None);
                return;
            }
            self.counters.entries_pulled += piece.entries.len() as u64;
            self.persist(out, || Record::Piece(piece.clone(), seen.clone()));
            let (start, end) = piece.range();
            let changed = self.store.join_piece(&start, end.as_ref(), &piece.entries, &seen);
            news |= !changed.is_empty();
            self.after_change(from, changed, out);
        }
        if news && self.config.forward {
            // What came in pieces is not in the log; whoever lacks it must compare with us.
            let others = self.peers.keys().filter(|node| *node != from);
            out.extend(others.map(|node| Output::Send(node.clone(), Message::Behind)));
        }
        match following {
            Some(branch) => self.fetch(from, session, branch, next, out),
            None => self.finish_pull(now, from, session, Some(&seen), out),
        }
        self.flush(now, out);
    }

    fn finish_pull(
        &mut self,
        now: Instant,
        from: &NodeId,
        session: Session,
        seen: Option<&CausalContext<NodeTag>>,
        out: &mut Vec<Output>,
    ) {
        if self.pull(from, session).is_none() {
            return;
        }
        if let Some(seen) = seen {
            self.store.absorb(seen);
            self.persist(out, || Record::Absorb(seen.clone()));
        }
        if let Some(peer) = self.peers.get_mut(from) {
            peer.pull = None;
            peer.last_caught_up = Some(now);
        }
        out.push(Output::CaughtUp(from.clone()));
    }

    fn pull(&mut self, from: &NodeId, session: Session) -> Option<&mut Pull> {
        self.peers.get_mut(from)?.pull.as_mut().filter(|pull| pull.session == session)
    }

    fn compare_soon(&mut self, now: Instant) {
        self.compare_pause = self.config.compare_every.0;
        self.compare_at = self.compare_at.min(now + self.compare_pause);
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
