//! Asking members whether they are there: rounds, helpers, confirmation.
//!
//! A probe is a short series of attempts, not one question: at 25 % loss one ping and its answer
//! fail together in 44 of 100 cases, the whole series in about one of 200. Helpers come in after
//! two pings of our own, so that a healthy but lossy network costs little extra.

use std::{collections::BTreeSet, time::Duration};

use purlin_core::{Instant, NodeId, NodeName};

use super::{
    Output, Path, Swim,
    config::SMALL_CLUSTER,
    member::{Recontact, Refutation, Standing, State, Why},
    suspicion,
    wire::{Fnv, Message},
};

/// How many members look for themselves when they hear of a suspicion. Twice the default number
/// of confirmations wanted: a few of them may be dead, cut off or of another opinion.
const CONFIRMERS: usize = 6;
/// Requests to ping somebody for others that are in work at once; further ones get a `Nack`.
const RELAYS_MAX: usize = 256;
/// How many of a probe's latest pings may still be answered.
const PINGS_MAX: usize = 8;
/// The least pause between two contacts to down members, whoever they are: after a large
/// partition the first success teaches the rest.
const RECONTACT_SPACING: Duration = Duration::from_millis(200);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The regular question.
    Round,
    /// Somebody is suspected: look for ourselves, quickly.
    Confirm,
    /// We got no answer: keep asking until the suspicion ends one way or the other.
    Hold,
}

/// A probe of one member.
#[derive(Debug)]
pub(crate) struct Probe {
    purpose: Purpose,
    stage: u32,
    pub(crate) next_at: Instant,
    /// One step of the series; fixed at the start.
    step: Duration,
    pings: Vec<(u32, Instant, Path)>,
    asks: Vec<u32>,
    asked: BTreeSet<NodeName>,
    heard: BTreeSet<NodeName>,
}

impl Probe {
    fn new(purpose: Purpose, now: Instant, step: Duration) -> Self {
        Self {
            purpose,
            stage: 0,
            next_at: now,
            step,
            pings: Vec::new(),
            asks: Vec::new(),
            asked: BTreeSet::new(),
            heard: BTreeSet::new(),
        }
    }

    pub(crate) fn is_round(&self) -> bool {
        self.purpose == Purpose::Round
    }
}

/// A ping made for somebody else.
#[derive(Debug)]
pub(crate) struct Relay {
    requester: NodeId,
    requester_seq: u32,
    target: NodeName,
    nack_at: Instant,
    nacked: bool,
}

impl Relay {
    pub(crate) fn due(&self) -> Instant {
        self.nack_at
    }
}

/// One attempt of a probe.
struct Attempt {
    helpers: usize,
    over_control: bool,
    /// In halves of a step.
    half_steps: u32,
}

fn attempt(purpose: Purpose, stage: u32, helpers: usize) -> Option<Attempt> {
    let attempt =
        |helpers, over_control, half_steps| Some(Attempt { helpers, over_control, half_steps });
    match (purpose, stage) {
        (Purpose::Round, 0 | 1) => attempt(0, false, 2),
        (Purpose::Round, 2) => attempt(helpers, false, 3),
        (Purpose::Round, 3) => attempt(helpers, true, 3),
        (Purpose::Confirm, 0) => attempt(helpers, false, 3),
        (Purpose::Confirm, 1) => attempt(helpers, true, 3),
        // Every third attempt also goes over the control channel, in case datagrams do not pass.
        (Purpose::Hold, stage) => attempt(helpers.min(2), stage % 3 == 2, 4),
        (Purpose::Round | Purpose::Confirm, _) => None,
    }
}

impl Swim {
    /// Starts the next regular probe and plans the one after.
    pub(super) fn probe_next(&mut self, now: Instant, out: &mut Vec<Output>) {
        let interval = self.probe_interval();
        let jittered = interval.mul_f64(0.9) + self.rng.jitter(interval.mul_f64(0.2));
        self.due.probe = now + self.health.stretch(jittered);
        if let Some(target) = self.next_target() {
            self.start_probe(now, &target, Purpose::Round, out);
        }
    }

    fn probe_interval(&self) -> Duration {
        let interval = self.config.settings().probe_interval;
        if self.members.len() < SMALL_CLUSTER { interval / 2 } else { interval }
    }

    /// In turn: the standing ward, which bounds how long a silent member goes unnoticed, and the
    /// next of a shuffled round through all, which leaves no pair blind to each other (SWIM §4.3).
    fn next_target(&mut self) -> Option<NodeName> {
        self.due.turn = self.due.turn.wrapping_add(1);
        if self.members.len() >= SMALL_CLUSTER
            && self.due.turn.is_multiple_of(2)
            && let Some(ward) = self.ward()
        {
            return Some(ward);
        }
        // Two passes: the rest of this round, then all of a new one.
        for _ in 0..2 {
            while let Some(name) = self.due.round.pop() {
                let can = self.members.get(&name).is_some_and(super::Member::is_contactable);
                if can && !self.probes.contains_key(&name) {
                    return Some(name);
                }
            }
            self.due.round = self
                .members
                .values()
                .filter(|m| m.is_contactable())
                .map(|m| m.id.name.clone())
                .collect();
            self.rng.shuffle(&mut self.due.round);
        }
        None
    }

    /// The member after us on a ring in the order of hashed names: everybody has one watcher.
    fn ward(&self) -> Option<NodeName> {
        let place = |name: &NodeName| Fnv::new().write(name.as_str().as_bytes()).finish();
        let mine = place(&self.me.id.name);
        self.members
            .values()
            .filter(|m| m.is_contactable() && !self.probes.contains_key(&m.id.name))
            .min_by_key(|m| place(&m.id.name).wrapping_sub(mine))
            .map(|m| m.id.name.clone())
    }

    pub(super) fn start_probe(
        &mut self,
        now: Instant,
        target: &NodeName,
        purpose: Purpose,
        out: &mut Vec<Output>,
    ) {
        let Some(member) = self.members.get(target) else { return };
        if let Some(running) = self.probes.get(target)
            && !(running.purpose == Purpose::Round && purpose == Purpose::Confirm)
        {
            return;
        }
        let base = self.config.settings().ack_timeout;
        // Three round trips, but a wild estimate must not stop detection.
        let by_rtt = member.rtt.unwrap_or_default().min(base * 4) * 3;
        let step = self.health.stretch(base.max(by_rtt));
        let earlier = self.probes.remove(target);
        let mut probe = Probe::new(purpose, now, step);
        probe.pings = earlier.map(|probe| probe.pings).unwrap_or_default();
        self.probes.insert(target.clone(), probe);
        self.advance_probe(now, target, out);
    }

    /// Makes the attempts that are due in all probes.
    pub(super) fn advance_probes(&mut self, now: Instant, out: &mut Vec<Output>) {
        let due: Vec<_> = self
            .probes
            .iter()
            .filter(|(_, probe)| probe.next_at <= now)
            .map(|(name, _)| name.clone())
            .collect();
        for target in due {
            self.advance_probe(now, &target, out);
        }
    }

    fn advance_probe(&mut self, now: Instant, target: &NodeName, out: &mut Vec<Output>) {
        let Some(mut probe) = self.probes.remove(target) else { return };
        if !self.members.get(target).is_some_and(super::Member::is_contactable) {
            return;
        }
        let Some(attempt) = attempt(probe.purpose, probe.stage, self.config.settings().helpers)
        else {
            self.probe_failed(now, target, probe, out);
            return;
        };
        self.ping(now, target, &mut probe, Path::Datagram, out);
        if attempt.over_control {
            self.ping(now, target, &mut probe, Path::Control, out);
        }
        if attempt.helpers > 0 {
            self.ask_helpers(target, &mut probe, attempt.helpers, out);
        }
        probe.stage += 1;
        probe.next_at = now + probe.step / 2 * attempt.half_steps;
        self.probes.insert(target.clone(), probe);
    }

    fn ping(
        &mut self,
        now: Instant,
        target: &NodeName,
        probe: &mut Probe,
        path: Path,
        out: &mut Vec<Output>,
    ) {
        let seq = self.next_seq();
        keep_latest(&mut probe.pings, (seq, now, path));
        self.counters.pings += 1;
        self.send(target, path, &Message::Ping { seq }, &[], out);
    }

    fn ask_helpers(
        &mut self,
        target: &NodeName,
        probe: &mut Probe,
        count: usize,
        out: &mut Vec<Output>,
    ) {
        let Some(target_id) = self.members.get(target).map(|m| m.id.clone()) else { return };
        let free = |asked: &BTreeSet<NodeName>| -> Vec<NodeName> {
            let alive = self.members.values().filter(|m| m.state == State::Alive);
            alive
                .map(|m| m.id.name.clone())
                .filter(|name| name != target && !asked.contains(name))
                .collect()
        };
        let mut candidates = free(&probe.asked);
        if candidates.is_empty() {
            candidates = free(&BTreeSet::new());
        }
        let seq = self.next_seq();
        keep_latest(&mut probe.asks, seq);
        for _ in 0..count.min(candidates.len()) {
            let helper = candidates.swap_remove(self.rng.below(candidates.len()));
            let request = Message::PingReq { seq, target: target_id.clone() };
            self.counters.ping_requests += 1;
            self.send(&helper, Path::Datagram, &request, std::slice::from_ref(target), out);
            probe.asked.insert(helper);
        }
    }

    fn probe_failed(
        &mut self,
        now: Instant,
        target: &NodeName,
        probe: Probe,
        out: &mut Vec<Output>,
    ) {
        self.counters.probes_failed += 1;
        let silent: Vec<_> = probe.asked.difference(&probe.heard).cloned().collect();
        // A helper owes us a word even when the target is dead; none at all, or nobody to ask,
        // means that we may be the one in trouble (Lifeguard §IV-A).
        if probe.asked.is_empty() || !silent.is_empty() {
            self.health.worsen();
        }
        if !silent.is_empty() && probe.heard.is_empty() {
            for helper in &silent {
                self.start_probe(now, helper, Purpose::Round, out);
            }
        }
        self.accuse(now, target, out);
        // The suspect must hear of it as soon as possible, and we keep looking.
        let mut hold = Probe::new(Purpose::Hold, now, probe.step);
        hold.pings = probe.pings;
        hold.asks = probe.asks;
        self.probes.insert(target.clone(), hold);
        self.advance_probe(now, target, out);
    }

    /// Says that `target` gave us no answer, to those who can confirm it and to whom it may
    /// concern.
    fn accuse(&mut self, now: Instant, target: &NodeName, out: &mut Vec<Output>) {
        let me = self.me.id.name.clone();
        let Some(member) = self.members.get(target) else { return };
        if member.state == State::Alive {
            let standing = Standing { state: State::Suspect, ..member.standing() };
            self.believe(now, target, standing, None, std::slice::from_ref(&me), out);
        }
        let Some(member) = self.members.get_mut(target) else { return };
        let Some(suspicion) = member.suspicion.as_mut() else { return };
        suspicion.observed_since.get_or_insert(now);
        suspicion.accuse(me.clone());
        self.spread_standing(now, target);
        let mut tell = self.confirmers(target);
        tell.extend(self.accusers(target));
        tell.remove(&me);
        for name in tell {
            self.send(&name, Path::Datagram, &Message::Gossip, std::slice::from_ref(target), out);
        }
    }

    /// Who should look for themselves when `suspect` is suspected: the same few on every node
    /// with the same view, so that nobody has to arrange it.
    pub(super) fn confirmers(&self, suspect: &NodeName) -> BTreeSet<NodeName> {
        let draw = |name: &NodeName| {
            let hash = Fnv::new().write(suspect.as_str().as_bytes()).write(&[0]);
            hash.write(name.as_str().as_bytes()).finish()
        };
        let alive = self.members.values().filter(|m| m.state == State::Alive);
        let mut drawn: Vec<_> = alive
            .map(|m| &m.id.name)
            .chain([&self.me.id.name])
            .filter(|name| *name != suspect)
            .map(|name| (draw(name), name.clone()))
            .collect();
        drawn.sort_unstable();
        drawn.into_iter().take(CONFIRMERS).map(|(_, name)| name).collect()
    }

    pub(super) fn accusers(&self, suspect: &NodeName) -> BTreeSet<NodeName> {
        let suspicion = self.members.get(suspect).and_then(|m| m.suspicion.as_ref());
        suspicion.map(|s| s.accusers.clone()).unwrap_or_default()
    }

    /// Passes verdicts whose time has come, and sends those who only heard to look.
    pub(super) fn judge(&mut self, now: Instant, out: &mut Vec<Output>) {
        let suspects: Vec<_> = self
            .members
            .values()
            .filter(|m| m.state == State::Suspect)
            .map(|m| m.id.name.clone())
            .collect();
        for name in suspects {
            let Some(due) = self.judgement_at(&name) else { continue };
            if due > now {
                continue;
            }
            let Some(member) = self.members.get(&name) else { continue };
            let observed = member.suspicion.as_ref().is_some_and(|s| s.observed_since.is_some());
            if observed {
                let standing = Standing { state: State::Down, ..member.standing() };
                let by: Vec<_> = self.accusers(&name).into_iter().collect();
                self.believe(now, &name, standing, Some(Why::Silent), &by, out);
            } else {
                let pause = self.longest_suspicion();
                if let Some(s) = self.members.get_mut(&name).and_then(|m| m.suspicion.as_mut()) {
                    s.look_at = now + pause;
                }
                self.start_probe(now, &name, Purpose::Confirm, out);
            }
        }
    }

    /// When something is due for the suspect `name`: a verdict, or a look of our own.
    pub(super) fn judgement_at(&self, name: &NodeName) -> Option<Instant> {
        let member = self.members.get(name)?;
        let suspicion = member.suspicion.as_ref()?;
        let settings = self.config.settings();
        let verdict = suspicion.verdict_at(
            &self.me.id.name,
            settings.suspicion_min,
            self.longest_suspicion(),
            settings.confirmations,
            self.members.values().filter(|m| m.state == State::Alive).count(),
        );
        // Whoever was heard just now, over whatever road, is not down.
        let heard = member.heard_at.map(|at| at + settings.suspicion_min);
        match verdict {
            Some(at) => Some(heard.map_or(at, |heard| at.max(heard))),
            None => Some(suspicion.look_at),
        }
    }

    pub(super) fn longest_suspicion(&self) -> Duration {
        let contactable = self.members.values().filter(|m| m.is_contactable()).count();
        suspicion::longest(self.config.settings().suspicion_min, contactable + 1)
    }

    pub(super) fn handle_ping(
        &mut self,
        from: &NodeName,
        path: Path,
        seq: u32,
        first: &[NodeName],
        out: &mut Vec<Output>,
    ) {
        self.send(from, path, &Message::Ack { seq }, first, out);
    }

    pub(super) fn handle_ack(&mut self, now: Instant, from: &NodeName, seq: u32) {
        let answered = self
            .probes
            .get(from)
            .and_then(|probe| probe.pings.iter().find(|(asked, ..)| *asked == seq).copied());
        if let Some((_, sent_at, path)) = answered {
            if path == Path::Datagram
                && let Some(member) = self.members.get_mut(from)
            {
                member.note_rtt(now - sent_at);
            }
            self.probe_succeeded(now, from);
        } else {
            self.counters.late_answers += 1;
        }
    }

    fn probe_succeeded(&mut self, now: Instant, target: &NodeName) {
        self.probes.remove(target);
        self.health.improve();
        let look_at = now + self.longest_suspicion();
        let Some(member) = self.members.get_mut(target) else { return };
        member.heard_at = Some(now);
        // It answered us but has not refuted yet: we are no witness any more. Clearing the
        // suspicion takes its own word, which is on its way.
        if let Some(suspicion) = member.suspicion.as_mut() {
            suspicion.observed_since = None;
            suspicion.look_at = look_at;
            suspicion.accusers.remove(&self.me.id.name);
        }
    }

    pub(super) fn handle_ping_request(
        &mut self,
        now: Instant,
        from: &NodeId,
        requester_seq: u32,
        target: &NodeId,
        first: &[NodeName],
        out: &mut Vec<Output>,
    ) {
        let known = self.members.get(&target.name);
        let can = known.is_some_and(|m| m.id == *target && m.state != State::Left);
        if !can || self.relays.len() >= RELAYS_MAX {
            self.send(
                &from.name,
                Path::Datagram,
                &Message::Nack { seq: requester_seq },
                first,
                out,
            );
            return;
        }
        let seq = self.next_seq();
        // Before the requester's own attempt ends (Lifeguard uses 80 % of it as well).
        let nack_at = now + self.config.settings().ack_timeout.mul_f64(0.8);
        self.relays.insert(
            seq,
            Relay {
                requester: from.clone(),
                requester_seq,
                target: target.name.clone(),
                nack_at,
                nacked: false,
            },
        );
        self.send(&target.name, Path::Datagram, &Message::Ping { seq }, &[], out);
    }

    /// Passes the target's answer on to whom we pinged it for.
    /// False if the answer is to a question of our own.
    pub(super) fn relay_ack(
        &mut self,
        from: &NodeName,
        seq: u32,
        said: Refutation,
        out: &mut Vec<Output>,
    ) -> bool {
        if self.relays.get(&seq).is_none_or(|relay| relay.target != *from) {
            return false;
        }
        if let Some(relay) = self.relays.remove(&seq) {
            let answer = Message::IndirectAck { seq: relay.requester_seq, refutation: said };
            self.send(&relay.requester.name, Path::Datagram, &answer, &[], out);
        }
        true
    }

    pub(super) fn expire_relays(&mut self, now: Instant, out: &mut Vec<Output>) {
        let grace = self.config.settings().ack_timeout;
        let due: Vec<_> =
            self.relays.iter().filter(|(_, r)| r.nack_at <= now).map(|(seq, _)| *seq).collect();
        for seq in due {
            let Some(relay) = self.relays.get_mut(&seq) else { continue };
            if relay.nacked {
                self.relays.remove(&seq);
                continue;
            }
            // A late answer is still worth passing on, for a while.
            relay.nacked = true;
            relay.nack_at = now + grace;
            let (to, seq) = (relay.requester.name.clone(), relay.requester_seq);
            self.send(&to, Path::Datagram, &Message::Nack { seq }, &[], out);
        }
    }

    pub(super) fn handle_indirect_ack(
        &mut self,
        now: Instant,
        from: &NodeName,
        seq: u32,
        refutation: Refutation,
        out: &mut Vec<Output>,
    ) {
        let Some(target) = self.asked_with(seq) else {
            self.counters.late_answers += 1;
            return;
        };
        if let Some(probe) = self.probes.get_mut(&target) {
            probe.heard.insert(from.clone());
        }
        self.probe_succeeded(now, &target);
        if let Some(member) = self.members.get(&target) {
            let standing = Standing { refutation, state: State::Alive, ..member.standing() };
            if standing > member.standing() {
                self.believe(now, &target, standing, None, &[], out);
            }
        }
    }

    pub(super) fn handle_nack(&mut self, from: &NodeName, seq: u32) {
        if let Some(target) = self.asked_with(seq)
            && let Some(probe) = self.probes.get_mut(&target)
        {
            probe.heard.insert(from.clone());
        }
    }

    fn asked_with(&self, seq: u32) -> Option<NodeName> {
        let asked = self.probes.iter().find(|(_, probe)| probe.asks.contains(&seq));
        asked.map(|(name, _)| name.clone())
    }

    /// Knocks at the door of down members, so that partitions heal by themselves.
    pub(super) fn recontact_due(&mut self, now: Instant, out: &mut Vec<Output>) {
        if now < self.due.recontact_free {
            return;
        }
        let next = self
            .members
            .values()
            .filter_map(|m| Some((m.recontact.as_ref()?.at, m.id.name.clone())))
            .min();
        let Some((at, name)) = next else { return };
        if at > now {
            return;
        }
        self.due.recontact_free = now + RECONTACT_SPACING;
        let longest = self.config.settings().recontact_max;
        if let Some(member) = self.members.get_mut(&name)
            && let Some(recontact) = member.recontact.as_mut()
        {
            let pause = (recontact.pause * 2).min(longest);
            let jitter = self.rng.jitter(pause / 4);
            *recontact = Recontact { at: now + pause.saturating_sub(jitter), pause };
            out.push(Output::Recontact { node: member.id.clone(), addr: member.meta.cluster_addr });
        }
        let seq = self.next_seq();
        self.send(&name, Path::Datagram, &Message::Ping { seq }, &[], out);
    }

    /// After a stall: whatever was being timed starts over, and we doubt ourselves for a while.
    pub(super) fn start_over(&mut self, now: Instant) {
        self.counters.stalls += 1;
        self.health.worsen();
        for probe in self.probes.values_mut() {
            probe.stage = 0;
            probe.next_at = now;
            probe.asked.clear();
            probe.heard.clear();
            if probe.purpose == Purpose::Hold {
                probe.purpose = Purpose::Confirm;
            }
        }
        for suspicion in self.members.values_mut().filter_map(|m| m.suspicion.as_mut()) {
            suspicion.started_at = now;
            suspicion.observed_since = None;
            suspicion.accusers.remove(&self.me.id.name);
        }
        for relay in self.relays.values_mut() {
            relay.nacked = true;
        }
    }
}

fn keep_latest<T>(list: &mut Vec<T>, item: T) {
    if list.len() == PINGS_MAX {
        list.remove(0);
    }
    list.push(item);
}
