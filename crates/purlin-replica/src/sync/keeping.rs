//! What two neighbours must know of each other before they exchange anything: versions, and keys.
//!
//! Beginning to keep more keys takes effect at once: their entries arrive by comparison. Ceasing to
//! keep keys takes effect for writers at once, and drops them here only after a comparison has shown
//! that somebody who goes on keeping them has every one of them. So no order of changes on several
//! nodes can drop the last copy; keys that nobody else wants stay.

use purlin_core::{Instant, NodeId};

use super::{Output, Standing, Sync, Theirs};
use crate::{
    interest::Interest,
    journal::Record,
    knowledge::CLAIMS_MAX,
    wire::{Greeting, Message, Versions},
};

/// The change of interest was refused; nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{CLAIMS_MAX} earlier changes of interest are still being caught up with; try again later")]
pub struct StillCatchingUp;

impl Sync {
    /// Which keys this replica keeps, and which of them it wants to go on keeping.
    #[must_use]
    pub fn interest(&self) -> (&Interest, &Interest) {
        (&self.keeps, &self.wants)
    }

    /// Keeps these keys from now on.
    ///
    /// # Errors
    /// [`StillCatchingUp`] when keys were added too often without the time to fetch them.
    pub fn set_interest(
        &mut self,
        now: Instant,
        wants: Interest,
        out: &mut Vec<Output>,
    ) -> Result<(), StillCatchingUp> {
        if wants == self.wants {
            return Ok(());
        }
        if !wants.is_within(&self.keeps) {
            let keeps = self.keeps.union(&wants);
            if !self.store.known_mut().widen(keeps.clone()) {
                return Err(StillCatchingUp);
            }
            self.keeps = keeps.clone();
            self.persist(out, || Record::Widened(keeps));
        }
        self.wants = wants;
        self.announce(now, out);
        Ok(())
    }

    /// Tells all neighbours what is kept now, and begins anew with each.
    fn announce(&mut self, now: Instant, out: &mut Vec<Output>) {
        self.number += 1;
        for peer in self.peers.values_mut() {
            peer.pull = None;
            peer.compare = true;
            if let Some(theirs) = &peer.theirs {
                peer.shared = self.keeps.intersection(&theirs.keeps);
            }
        }
        self.share();
        let nodes: Vec<NodeId> = self.peers.keys().cloned().collect();
        for node in &nodes {
            self.greet(now, node, out);
        }
    }

    /// Keeps digests for whatever is shared with neighbours and is not simply everything.
    pub(super) fn share(&mut self) {
        let shared = self.peers.values().filter(|peer| peer.theirs.is_some());
        let others = shared.map(|peer| &peer.shared).filter(|shared| **shared != self.keeps);
        let wanted = others.cloned().collect();
        self.store.share(wanted);
    }

    pub(super) fn greet(&mut self, now: Instant, node: &NodeId, out: &mut Vec<Output>) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        let is_answered = peer.heard == self.number && peer.theirs.is_some();
        let may_answer = !matches!(peer.standing, Standing::Incompatible(_));
        peer.greet_at = (!is_answered && may_answer).then(|| now + self.config.resend_after);
        let greeting = Greeting {
            speaks: Versions::OURS,
            number: self.number,
            heard: peer.theirs.as_ref().map_or(0, |theirs| theirs.number),
            asks: peer.heard < self.number,
            keeps: self.keeps.clone(),
            wants: self.wants.clone(),
            keeps_own: self.keeps_own,
        };
        out.push(Output::Send(node.clone(), Message::Greet(greeting)));
    }

    pub(super) fn handle_greeting(
        &mut self,
        now: Instant,
        from: &NodeId,
        greeting: Greeting,
        out: &mut Vec<Output>,
    ) {
        let Some(version) = Versions::OURS.common(greeting.speaks) else {
            let is_news = self.standing(from) != Some(Standing::Incompatible(greeting.speaks));
            self.set_incompatible(from, greeting.speaks, out);
            if is_news {
                let (heard, speaks) = (greeting.speaks.newest, Versions::OURS);
                out.push(Output::Send(from.clone(), Message::Unreadable { heard, speaks }));
            }
            return;
        };
        let Some(peer) = self.peers.get_mut(from) else { return };
        let known = peer.theirs.as_ref().map_or(0, |theirs| theirs.number);
        if greeting.number < known {
            // Overtaken by a later one.
            return;
        }
        peer.standing = Standing::Speaks(version);
        // An earlier one that was overtaken does not take back what a later one said.
        peer.heard = peer.heard.max(greeting.heard);
        let is_news = greeting.number > known;
        if is_news {
            // What is under way was made for what it kept before.
            peer.in_flight = None;
            peer.pull = None;
            peer.compare = true;
            peer.shared = self.keeps.intersection(&greeting.keeps);
            peer.theirs = Some(Theirs {
                number: greeting.number,
                keeps: greeting.keeps,
                wants: greeting.wants,
                keeps_own: greeting.keeps_own,
            });
        }
        let has_heard = peer.heard == self.number;
        if has_heard {
            peer.greet_at = None;
        }
        if is_news {
            self.share();
        }
        if greeting.asks || greeting.heard < self.number {
            self.greet(now, from, out);
        }
        if has_heard && self.peers.get(from).is_some_and(|peer| peer.compare) {
            self.compare(now, from, out);
        }
        self.flush(now, out);
    }

    fn standing(&self, node: &NodeId) -> Option<Standing> {
        self.peers.get(node).map(|peer| peer.standing)
    }

    /// A neighbour speaks nothing that this release does.
    pub(super) fn set_incompatible(
        &mut self,
        node: &NodeId,
        speaks: Versions,
        out: &mut Vec<Output>,
    ) {
        self.counters.incompatible += 1;
        let last = self.log.last();
        let Some(peer) = self.peers.get_mut(node) else { return };
        let standing = Standing::Incompatible(speaks);
        if std::mem::replace(&mut peer.standing, standing) != standing {
            out.push(Output::Incompatible(node.clone(), speaks));
        }
        peer.confirmed = last;
        peer.in_flight = None;
        peer.pull = None;
        peer.compare = false;
        peer.greet_at = None;
        self.trim();
    }

    /// A message came in a version that is not spoken here: its sender is told, in the one form that
    /// every release reads.
    pub(super) fn handle_unreadable(&mut self, from: &NodeId, heard: u8, out: &mut Vec<Output>) {
        if !self.peers.contains_key(from) {
            self.counters.strangers += 1;
            return;
        }
        self.set_incompatible(from, Versions { oldest: heard, newest: heard }, out);
        let speaks = Versions::OURS;
        out.push(Output::Send(from.clone(), Message::Unreadable { heard, speaks }));
    }

    /// After a comparison that found `with` to hold just what is held here: drops what is kept only
    /// until somebody else has it.
    pub(super) fn let_go(&mut self, now: Instant, with: &NodeId, out: &mut Vec<Output>) {
        if self.keeps == self.wants {
            return;
        }
        let last = self.log.last();
        let Some(peer) = self.peers.get(with) else { return };
        let Some(theirs) = &peer.theirs else { return };
        let has_all = peer.shared == self.keeps && peer.confirmed == last;
        if !has_all || !self.keeps.is_within(&theirs.wants.union(&self.wants)) {
            return;
        }
        let keys = self.wants.clone();
        let dropped = self.store.narrow(&keys);
        self.persist(out, || Record::Narrowed(keys.clone()));
        self.keeps = keys;
        self.keeps_own = false;
        for one in &dropped {
            self.note_expiry(&one.slot);
        }
        if !dropped.is_empty() {
            out.push(Output::Dropped(dropped));
        }
        self.announce(now, out);
    }
}
