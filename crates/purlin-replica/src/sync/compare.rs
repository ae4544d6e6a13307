//! Comparison: where two states differ, found by digests, and brought over in bounded pieces.

use purlin_core::{Instant, NodeId, WallTime, hlc::NodeTag};
use purlin_crdt::{DotStore as _, Dots};

use super::{Output, Sync, cell_weight};
use crate::{
    digest::{FANOUT, Leaf},
    journal::Record,
    knowledge::{Claim, Claims},
    slot::Slot,
    store::Entries,
    wire::{Message, Piece, Session, Terms},
};

/// A comparison that we asked for.
#[derive(Debug)]
pub(super) struct Pull {
    session: Session,
    terms: Terms,
    pub(super) give_up_at: Instant,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Asked {
        /// Our root at that moment.
        root: u64,
    },
    Fetching {
        seen: Claims,
        branches: Vec<u8>,
        /// Whether something was left out because it cannot be true: then the whole does not count
        /// as seen.
        partial: bool,
    },
}

/// What somebody asks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked {
    pub(super) session: Session,
    pub(super) terms: Terms,
    pub(super) root: u64,
}

/// What pieces are an answer to.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) session: Session,
    pub(super) branch: u8,
    pub(super) next: Option<Slot>,
}

impl Sync {
    /// Compares with a neighbour now, or as soon as both know what the other keeps.
    pub(super) fn compare(&mut self, now: Instant, with: &NodeId, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(with) else { return };
        let greeted = peer.theirs.as_ref().filter(|_| peer.heard == self.number);
        let Some(theirs) = greeted.filter(|_| peer.pull.is_none()) else {
            peer.compare = true;
            return;
        };
        if peer.shared.is_none() {
            peer.compare = false;
            return;
        }
        self.sessions = self.sessions.wrapping_add(1);
        let session = Session(self.sessions);
        let terms = Terms { asker: self.number, answerer: theirs.number };
        let root = self.store.digests(&peer.shared).root();
        peer.compare = false;
        peer.pull = Some(Pull {
            session,
            terms,
            give_up_at: now + self.config.resend_after * 5,
            stage: Stage::Asked { root },
        });
        self.counters.compared += 1;
        let seen = self.store.known().claims().clone();
        let ended = self.over();
        let compare = Message::Compare { session, terms, root, seen, ended };
        out.push(Output::Send(with.clone(), compare));
    }

    /// Whether `from` asks for what we both keep now; else it is told what that is.
    fn agrees(&mut self, now: Instant, from: &NodeId, terms: Terms, out: &mut Vec<Output>) -> bool {
        let theirs = self.peers.get(from).and_then(|peer| peer.theirs.as_ref());
        let agrees = terms.answerer == self.number
            && theirs.is_some_and(|theirs| theirs.number == terms.asker);
        if !agrees {
            self.greet(now, from, out);
        }
        agrees
    }

    pub(super) fn handle_compare(
        &mut self,
        now: Instant,
        from: &NodeId,
        asked: &Asked,
        seen: &[Claim],
        ended: &[NodeTag],
        out: &mut Vec<Output>,
    ) {
        self.note_covered(from, seen, ended);
        if !self.agrees(now, from, asked.terms, out) {
            return;
        }
        let Some(peer) = self.peers.get(from) else { return };
        let session = asked.session;
        let digests = self.store.digests(&peer.shared);
        let ours = self.store.known().claims();
        let covered = match (seen, &ours[..]) {
            ([theirs], [ours]) => theirs.seen.covers(&ours.seen),
            _ => false,
        };
        let ended = self.over_for(seen);
        let answer = if asked.root == digests.root() && covered {
            Message::Equal { session, ended }
        } else {
            let hashes = digests.branches();
            let seen = self.store.known().claims_for(seen);
            Message::Branches { session, seen, ended, hashes }
        };
        out.push(Output::Send(from.clone(), answer));
    }

    pub(super) fn handle_equal(
        &mut self,
        now: Instant,
        from: &NodeId,
        session: Session,
        out: &mut Vec<Output>,
    ) {
        let Some(pull) = self.pull(from, session) else { return };
        let Stage::Asked { root } = pull.stage else { return };
        let is_equal = self
            .peers
            .get(from)
            .is_some_and(|peer| self.store.digests(&peer.shared).root() == root);
        self.finish_pull(now, from, session, None, out);
        if is_equal {
            self.let_go(now, from, out);
        }
    }

    pub(super) fn handle_branches(
        &mut self,
        now: Instant,
        from: &NodeId,
        session: Session,
        seen: Claims,
        hashes: &[u64],
        out: &mut Vec<Output>,
    ) {
        let written = self.store.written();
        if seen.iter().any(|claim| claim.seen.highest(&self.me) > written) {
            self.counters.forged += 1;
            self.peers.get_mut(from).into_iter().for_each(|peer| peer.pull = None);
            return;
        }
        let Some(peer) = self.peers.get(from) else { return };
        let own = self.store.digests(&peer.shared).branches();
        let branches: Vec<u8> =
            (0..=u8::MAX).filter(|&n| own[usize::from(n)] != hashes[usize::from(n)]).collect();
        let give_up_at = now + self.config.resend_after * 5;
        let Some(pull) = self.pull(from, session) else { return };
        pull.give_up_at = give_up_at;
        let terms = pull.terms;
        match branches.last().copied() {
            None => {
                self.finish_pull(now, from, session, Some(&seen), out);
                self.let_go(now, from, out);
            }
            Some(branch) => {
                pull.stage = Stage::Fetching { seen, branches, partial: false };
                self.counters.differed += 1;
                self.compare_soon(now);
                self.fetch(from, session, terms, branch, None, out);
            }
        }
    }

    fn fetch(
        &mut self,
        from: &NodeId,
        session: Session,
        terms: Terms,
        branch: u8,
        at: Option<Slot>,
        out: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.get(from) else { return };
        let leaves = self.store.digests(&peer.shared).leaves(branch);
        let hashes = leaves.map(|leaves| leaves.to_vec()).unwrap_or_default();
        let fetch = Message::Fetch { session, terms, branch, hashes, from: at };
        out.push(Output::Send(from.clone(), fetch));
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one message")]
    pub(super) fn handle_fetch(
        &mut self,
        now: Instant,
        from: &NodeId,
        session: Session,
        terms: Terms,
        branch: u8,
        hashes: &[u64],
        at: Option<Slot>,
        out: &mut Vec<Output>,
    ) {
        // Keys dropped since the comparison began would pass for deleted.
        if !self.agrees(now, from, terms, out) {
            return;
        }
        let (pieces, next) = self.pieces(from, branch, hashes, at);
        out.push(Output::Send(from.clone(), Message::Pieces { session, branch, pieces, next }));
    }

    /// What differs in a branch, from `at` on, up to a batch; and where to go on.
    fn pieces(
        &self,
        with: &NodeId,
        branch: u8,
        theirs: &[u64],
        at: Option<Slot>,
    ) -> (Vec<Piece>, Option<Slot>) {
        let Some(peer) = self.peers.get(with) else { return (Vec::new(), None) };
        let digests = self.store.digests(&peer.shared);
        let ours = digests.leaves(branch).unwrap_or([0; FANOUT]);
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
                if from.as_ref().is_some_and(|from| slot < from) || !peer.shared.covers(slot.key())
                {
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

    pub(super) fn handle_pieces(
        &mut self,
        now: Instant,
        wall: WallTime,
        from: &NodeId,
        answer: Answer,
        pieces: Vec<Piece>,
        out: &mut Vec<Output>,
    ) {
        let Answer { session, branch, next } = answer;
        let give_up_at = now + self.config.resend_after * 5;
        let Some(pull) = self.pull(from, session) else { return };
        pull.give_up_at = give_up_at;
        let terms = pull.terms;
        let Stage::Fetching { seen, branches, .. } = &mut pull.stage else { return };
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
            match self.take_in(wall, from, piece, &seen, out) {
                Ok(changed) => news |= changed,
                Err(()) => {
                    self.peers.get_mut(from).into_iter().for_each(|peer| peer.pull = None);
                    return;
                }
            }
        }
        if news && self.config.forward {
            // What came in pieces is not in the log; whoever lacks it must compare with us.
            self.tell_others_to_compare(from, out);
        }
        match following {
            Some(branch) => self.fetch(from, session, terms, branch, next, out),
            None => self.finish_pull(now, from, session, Some(&seen), out),
        }
        self.flush(now, out);
    }

    /// Takes in a piece, except entries that cannot be true; whether anything changed. `Err` when
    /// the whole is a lie.
    fn take_in(
        &mut self,
        wall: WallTime,
        from: &NodeId,
        mut piece: Piece,
        seen: &[Claim],
        out: &mut Vec<Output>,
    ) -> Result<bool, ()> {
        let mut dots = Dots::default();
        piece.entries.dots(&mut |dot| dots.insert(*dot));
        if self.check_dots(&dots).is_err() {
            self.counters.updates_refused += 1;
            return Err(());
        }
        let Some(peer) = self.peers.get(from) else { return Err(()) };
        let keys = peer.shared.clone();
        let (unfit, reason) = self.unfit(wall, &piece.entries);
        if reason.is_some() {
            self.counters.updates_refused += 1;
            // What is here under those keys stays as it is: they count as not heard of.
            for slot in &unfit {
                match self.store.get(slot).cloned() {
                    Some(cell) => piece.entries.set(slot.clone(), cell),
                    None => piece.entries.forget(slot),
                }
            }
            if let Some(peer) = self.peers.get_mut(from)
                && let Some(Pull { stage: Stage::Fetching { partial, .. }, .. }) = &mut peer.pull
            {
                *partial = true;
            }
        }
        self.counters.entries_pulled += piece.entries.len() as u64;
        let (start, end) = piece.range();
        let changed = self.store.join_piece(&keys, &start, end.as_ref(), &piece.entries, seen);
        self.persist(out, || Record::Piece { piece, keys, theirs: seen.to_vec() });
        let is_news = !changed.is_empty();
        self.after_change(from, changed, out);
        Ok(is_news)
    }

    fn finish_pull(
        &mut self,
        now: Instant,
        from: &NodeId,
        session: Session,
        seen: Option<&Claims>,
        out: &mut Vec<Output>,
    ) {
        let Some(pull) = self.pull(from, session) else { return };
        let is_partial = matches!(pull.stage, Stage::Fetching { partial: true, .. });
        let Some(peer) = self.peers.get_mut(from) else { return };
        peer.pull = None;
        if is_partial {
            // Not caught up: what was left out is asked for again with the next comparison.
            return;
        }
        peer.last_caught_up = Some(now);
        let keeps_own = peer.theirs.as_ref().is_some_and(|theirs| theirs.keeps_own);
        if let Some(seen) = seen {
            let author = keeps_own.then(|| NodeTag::of(from));
            self.store.absorb(seen, author);
            self.persist(out, || Record::Absorb(seen.clone(), author));
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
