//! Writes as they happen: one bounded log, a place in it for each neighbour.

use std::collections::BTreeSet;

use purlin_core::{Instant, NodeId, WallTime, hlc::NodeTag};
use purlin_crdt::{DotStore as _, Dots};

use super::{InFlight, Output, Standing, Sync, millis, weight};
use crate::{
    cell::{Cell, Written},
    interest::Interest,
    journal::Record,
    log::{Next, Seq},
    slot::Slot,
    store::{Entries, Update, VALUE_BYTES_MAX},
    wire::Message,
};

const FORGED: &str = "it claims writes of this node that this node did not make";

/// What comes with an update.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heard {
    pub(super) upto: Seq,
    pub(super) by: u32,
    pub(super) whole: bool,
}

/// Why an entry is not taken in.
enum Unfit {
    Future(String),
    TooLarge(String),
}

impl Sync {
    /// Sends every neighbour that waits for nothing what it lacks.
    pub(super) fn flush(&mut self, now: Instant, out: &mut Vec<Output>) {
        for (node, peer) in &mut self.peers {
            match peer.standing {
                Standing::Speaks(_) if peer.heard == self.number => {}
                Standing::Speaks(_) | Standing::Greeted => continue,
                // It takes nothing, so nothing is kept for it.
                Standing::Incompatible(_) => {
                    peer.confirmed = self.log.last();
                    continue;
                }
            }
            let Some(theirs) = &peer.theirs else { continue };
            while peer.in_flight.is_none() {
                match self.log.after(peer.confirmed, node, self.config.batch_bytes) {
                    Next::Nothing => break,
                    // Its own words: nothing to send, nothing to wait for.
                    Next::Batch { upto, update: None } => peer.confirmed = upto,
                    Next::Batch { upto, update: Some(update) } => {
                        let (update, whole) = part_of(update, &theirs.keeps);
                        let Some(update) = update else {
                            peer.confirmed = upto;
                            continue;
                        };
                        let resend_at = now + self.config.resend_after;
                        peer.in_flight = Some(InFlight { upto, resend_at });
                        let by = theirs.number;
                        let message = Message::Updates { upto, update, by, whole };
                        out.push(Output::Send(node.clone(), message));
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

    pub(super) fn trim(&mut self) {
        let all = self.peers.values().map(|peer| peer.confirmed).min();
        self.log.confirmed(all.unwrap_or_else(|| self.log.last()));
    }

    pub(super) fn enqueue(&mut self, update: Update, from: Option<NodeId>) {
        if self.peers.is_empty() {
            // Whoever comes will compare.
            return;
        }
        let bytes = weight(update.store());
        self.log.push(update, bytes, from);
    }

    pub(super) fn handle_updates(
        &mut self,
        now: Instant,
        wall: WallTime,
        from: &NodeId,
        heard: Heard,
        update: Update,
        out: &mut Vec<Output>,
    ) {
        if heard.by != self.number {
            // Made for what was kept here before: dots of keys left out then would pass for seen.
            self.greet(now, from, out);
            return;
        }
        if let Err(reason) = self.check_dots(update.context()) {
            self.counters.updates_refused += 1;
            let upto = heard.upto;
            out.push(Output::Send(from.clone(), Message::Refuse { upto, reason }));
            return;
        }
        let (update, unfit) = self.fit_update(wall, update);
        if !update.context().is_empty() {
            self.counters.updates_joined += 1;
            let changed = self.store.join(&update);
            self.persist(out, || Record::Update(update.clone()));
            self.after_change(from, changed, out);
        }
        let upto = heard.upto;
        match &unfit {
            None => out.push(Output::Send(from.clone(), Message::Confirm { upto })),
            // What was fit is in; the rest is sent again, with all that follows.
            Some(reason) => {
                self.counters.updates_refused += 1;
                let reason = reason.clone();
                out.push(Output::Send(from.clone(), Message::Refuse { upto, reason }));
            }
        }
        if !self.config.forward || update.store().is_empty() {
            return;
        }
        if heard.whole && unfit.is_none() {
            self.enqueue(update, Some(from.clone()));
            self.flush(now, out);
        } else {
            // It has dots of keys that it does not name: only for one who keeps no more than we do.
            self.tell_others_to_compare(from, out);
        }
    }

    pub(super) fn tell_others_to_compare(&self, from: &NodeId, out: &mut Vec<Output>) {
        let others = self.peers.keys().filter(|node| *node != from);
        out.extend(others.map(|node| Output::Send(node.clone(), Message::Behind)));
    }

    /// An update without what cannot be true or has no room; and why something was left out.
    ///
    /// An update's dots are noted as seen, so one of which something is left out is cut down to
    /// the entries that are taken in and the dots that these hold: what they replaced will be
    /// heard again.
    fn fit_update(&mut self, wall: WallTime, update: Update) -> (Update, Option<String>) {
        let (unfit, reason) = self.unfit(wall, update.store());
        let Some(reason) = reason else {
            return (update, None);
        };
        let fit: Entries = update
            .store()
            .iter()
            .filter(|(slot, _)| !unfit.contains(slot))
            .map(|(slot, cell)| (slot.clone(), cell.clone()))
            .collect();
        let mut dots = Dots::default();
        fit.dots(&mut |dot| dots.insert(*dot));
        (Update::new(fit, dots), Some(reason))
    }

    /// Which entries cannot be taken in, and the first reason; each is counted.
    pub(super) fn unfit(
        &mut self,
        wall: WallTime,
        entries: &Entries,
    ) -> (BTreeSet<Slot>, Option<String>) {
        let latest = wall.as_millis().saturating_add(millis(self.config.drift_max));
        let mut unfit = BTreeSet::new();
        let mut first = None;
        for (slot, cell) in entries.iter() {
            let reason = match self.unfit_cell(latest, slot, cell) {
                None => continue,
                Some(Unfit::Future(reason)) => {
                    self.counters.future += 1;
                    reason
                }
                Some(Unfit::TooLarge(reason)) => {
                    self.counters.too_large += 1;
                    reason
                }
            };
            first.get_or_insert(reason);
            unfit.insert(slot.clone());
        }
        (unfit, first)
    }

    fn unfit_cell(&self, latest: u64, slot: &Slot, cell: &Cell) -> Option<Unfit> {
        let future = |written: &&Written| written.at.millis().as_millis() > latest;
        if let Some(written) = cell.writes().find(future) {
            return Some(Unfit::Future(format!(
                "key {slot:?} was written at {}, more than {:?} ahead of this node's clock",
                written.at, self.config.drift_max
            )));
        }
        let bytes = cell.longest();
        (bytes > VALUE_BYTES_MAX).then(|| {
            Unfit::TooLarge(format!(
                "key {slot:?} holds a value of {bytes} bytes, which exceeds limit {VALUE_BYTES_MAX}"
            ))
        })
    }

    /// Whether all of these dots can be: none of this life that was not written here.
    pub(super) fn check_dots(&mut self, dots: &Dots<NodeTag>) -> Result<(), String> {
        let written = self.store.written();
        if dots.spans().any(|(life, _, last)| *life == self.me && last > written) {
            self.counters.forged += 1;
            return Err(FORGED.to_owned());
        }
        Ok(())
    }

    pub(super) fn handle_confirm(
        &mut self,
        now: Instant,
        from: &NodeId,
        upto: Seq,
        out: &mut Vec<Output>,
    ) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        if peer.in_flight.as_ref().is_some_and(|sent| sent.upto == upto) {
            peer.in_flight = None;
            peer.refused = None;
            peer.confirmed = upto;
            self.flush(now, out);
        }
    }

    /// The batch stays in flight, so that it is sent again after the usual pause.
    pub(super) fn handle_refuse(&mut self, from: &NodeId, reason: String, out: &mut Vec<Output>) {
        if let Some(peer) = self.peers.get_mut(from) {
            peer.refused = Some(reason.clone());
        }
        out.push(Output::Refused(from.clone(), reason));
    }
}

/// What of `update` is under `keys`, all that its receiver keeps, and whether that is all of it. Its
/// dots all stay: to somebody who does not keep a key it makes no difference whether its dots were
/// seen, and what he has seen stays without gaps.
fn part_of(update: Update, keys: &Interest) -> (Option<Update>, bool) {
    if update.store().iter().all(|(slot, _)| keys.covers(slot.key())) {
        return (Some(update), true);
    }
    let (store, dots) = update.into_inner();
    let kept: Entries = store
        .iter()
        .filter(|(slot, _)| keys.covers(slot.key()))
        .map(|(slot, cell)| (slot.clone(), cell.clone()))
        .collect();
    ((!kept.is_empty()).then(|| Update::new(kept, dots)), false)
}
