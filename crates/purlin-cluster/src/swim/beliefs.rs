//! What changes when news arrives: one function per question.

use std::{collections::BTreeSet, sync::Arc};

use purlin_core::{Instant, NodeId, NodeName};

use super::{
    Event, MeState, Output, Swim,
    dissemination::Kind,
    member::{Member, Meta, Recontact, Standing, State, Why},
    probing::Purpose,
    suspicion::Suspicion,
    wire::Rumour,
};

/// The most accusers passed on with a rumour.
const ACCUSERS_TOLD_MAX: usize = 4;

/// What the handling of one packet gathers besides its effects.
#[derive(Debug, Default)]
pub(super) struct Hearing {
    /// About whom the sender is out of date; the answer tells it.
    pub(super) correct: BTreeSet<NodeName>,
    /// Whether the sender knows something whose beginning we missed.
    pub(super) pull: bool,
}

impl Swim {
    pub(super) fn hear(
        &mut self,
        now: Instant,
        rumour: Rumour,
        hearing: &mut Hearing,
        out: &mut Vec<Output>,
    ) {
        let (name, standing, why, by, whole) = match rumour {
            Rumour::Standing { name, standing, why, by } => (name, standing, why, by, None),
            Rumour::Whole { name, standing, why, meta_version, meta } => {
                (name, standing, why, Vec::new(), Some((meta_version, meta)))
            }
        };
        if name == self.me.id.name {
            self.hear_of_me(now, standing, hearing, out);
            return;
        }
        let known = self.members.get(&name).map(|m| (m.standing(), m.meta_version));
        let Some((known, known_version)) = known else {
            if self.tombstones.forbids(&name, standing).is_some() {
                self.counters.stale += 1;
                hearing.correct.insert(name);
            } else if let Some((version, meta)) = whole {
                self.admit(now, &name, standing, why, version, meta, out);
            } else if standing.state == State::Left {
                self.tombstones.bar(name, standing);
            } else {
                hearing.pull = true;
            }
            return;
        };
        if standing.incarnation > known.incarnation {
            match whole {
                Some((version, meta)) => {
                    self.admit(now, &name, standing, why, version, meta, out);
                }
                None => hearing.pull = true,
            }
            return;
        }
        if standing.incarnation == known.incarnation
            && let Some((version, meta)) = whole
            && version > known_version
            && known.state != State::Left
        {
            self.update_meta(now, &name, version, meta, out);
        }
        if standing > known {
            self.take_over(now, &name, standing, why, &by, out);
        } else if standing == known && known.state == State::Suspect {
            self.confirm(now, &name, &by);
        } else if standing < known {
            self.counters.stale += 1;
            // Bad news that was refuted may have a verdict running behind it: say so at once.
            if matches!(standing.state, State::Suspect | State::Down)
                || standing.incarnation < known.incarnation
            {
                hearing.correct.insert(name);
            }
        }
    }

    fn hear_of_me(
        &mut self,
        now: Instant,
        standing: Standing,
        hearing: &mut Hearing,
        out: &mut Vec<Output>,
    ) {
        let mine = self.my_standing();
        if standing.incarnation > mine.incarnation {
            self.handle_outlived(out);
            return;
        }
        if standing.incarnation < mine.incarnation {
            hearing.correct.insert(self.me.id.name.clone());
            return;
        }
        match standing.state {
            _ if self.me.state != MeState::Here => {}
            State::Suspect | State::Down | State::Left
                if standing.refutation >= mine.refutation =>
            {
                self.me.refutation = standing.refutation.next();
                self.counters.refutations += 1;
                // Who is suspected for nothing was perhaps slow to answer (Lifeguard §IV-A).
                self.health.worsen();
                self.spread_standing(now, &self.me.id.name.clone());
                hearing.correct.insert(self.me.id.name.clone());
            }
            State::Suspect | State::Down | State::Left => {
                hearing.correct.insert(self.me.id.name.clone());
            }
            State::Alive => self.me.refutation = self.me.refutation.max(standing.refutation),
        }
    }

    /// Adds a member, or a later life of one.
    #[expect(clippy::too_many_arguments, reason = "the fields of one rumour")]
    fn admit(
        &mut self,
        now: Instant,
        name: &NodeName,
        standing: Standing,
        why: Option<Why>,
        meta_version: u32,
        meta: Arc<Meta>,
        out: &mut Vec<Output>,
    ) {
        if meta.check().is_err() {
            self.counters.refused_members += 1;
            return;
        }
        let earlier = self.members.contains_key(name);
        if !earlier && self.members.len() >= self.config.settings().members_max {
            self.counters.refused_members += 1;
            return;
        }
        if earlier {
            self.supersede(name, out);
        }
        if standing.state == State::Left {
            self.tombstones.bar(name.clone(), standing);
            return;
        }
        let id = NodeId::new(name.clone(), standing.incarnation);
        let addr = meta.cluster_addr;
        let draining = meta.draining;
        let was_met = self.met_strangers.remove(name) == Some(id.incarnation);
        self.members.insert(
            name.clone(),
            Member {
                id: id.clone(),
                refutation: standing.refutation,
                state: State::Alive,
                since: now,
                why: None,
                meta,
                meta_version,
                rtt: None,
                heard_at: None,
                was_met,
                suspicion: None,
                recontact: None,
                accusers: BTreeSet::new(),
            },
        );
        if standing.state == State::Down {
            // Never seen alive by us, so there is no event; but it will be knocked at.
            if let Some(member) = self.members.get_mut(name) {
                member.state = State::Down;
                self.unsettled.insert(name.clone());
                member.why = why.or(Some(Why::Silent));
                member.recontact = Some(Recontact {
                    at: now + self.config.settings().recontact_min,
                    pause: self.config.settings().recontact_min,
                });
            }
            out.push(Output::Changed);
        } else {
            out.push(Output::Keep { node: id.clone(), addr });
            out.push(Output::Event(Event::Joined { node: id.clone() }));
            if draining {
                out.push(Output::Event(Event::Draining { node: id }));
            }
            // A place at random in the round, as SWIM §4.3 asks: appended, all would probe the
            // newcomer at the same time.
            let at = self.rng.below(self.due.round.len() + 1);
            self.due.round.insert(at, name.clone());
        }
        if self.pass_on {
            self.rumours.spread(name.clone(), Kind::Whole, true);
            self.hurry_gossip(now);
        }
        if standing.state == State::Suspect {
            self.believe(now, name, standing, None, &[], out);
        }
    }

    fn supersede(&mut self, name: &NodeName, out: &mut Vec<Output>) {
        let Some(old) = self.members.remove(name) else { return };
        self.unsettled.remove(name);
        self.probes.remove(name);
        self.rumours.forget(name);
        if old.is_contactable() {
            out.push(Output::Event(Event::Down { node: old.id.clone(), why: Why::Superseded }));
            out.push(Output::Forget { node: old.id });
        }
    }

    fn update_meta(
        &mut self,
        now: Instant,
        name: &NodeName,
        version: u32,
        meta: Arc<Meta>,
        out: &mut Vec<Output>,
    ) {
        if meta.check().is_err() {
            self.counters.refused_members += 1;
            return;
        }
        let Some(member) = self.members.get_mut(name) else { return };
        let started_draining = meta.draining && !member.meta.draining;
        let moved = member.meta.cluster_addr != meta.cluster_addr;
        member.meta_version = version;
        member.meta = meta;
        let node = member.id.clone();
        if moved && member.is_contactable() {
            out.push(Output::Keep { node: node.clone(), addr: member.meta.cluster_addr });
        }
        out.push(Output::Event(Event::MetaChanged { node: node.clone() }));
        if started_draining {
            out.push(Output::Event(Event::Draining { node }));
        }
        if self.pass_on {
            self.rumours.spread(name.clone(), Kind::Whole, true);
            self.hurry_gossip(now);
        }
    }

    /// Believes what another node says, unless we know better.
    fn take_over(
        &mut self,
        now: Instant,
        name: &NodeName,
        standing: Standing,
        why: Option<Why>,
        by: &[NodeName],
        out: &mut Vec<Output>,
    ) {
        let Some(member) = self.members.get(name) else { return };
        if standing.state != State::Down || !self.objects(now, member) {
            self.believe(now, name, standing, why, by, out);
            return;
        }
        self.counters.objections += 1;
        let doubt = Standing { state: State::Suspect, ..standing };
        if doubt > member.standing() {
            self.believe(now, name, doubt, None, by, out);
        } else {
            self.confirm(now, name, by);
        }
        self.start_probe(now, name, Purpose::Confirm, out);
    }

    /// Takes over `standing`, which must override what is believed of `name`, and does what
    /// follows from it.
    pub(super) fn believe(
        &mut self,
        now: Instant,
        name: &NodeName,
        standing: Standing,
        why: Option<Why>,
        by: &[NodeName],
        out: &mut Vec<Output>,
    ) {
        let longest = self.longest_suspicion();
        let look_at = now + longest + self.rng.jitter(longest);
        let settings = self.config.settings();
        let recontact =
            Recontact { at: now + settings.recontact_min, pause: settings.recontact_min };
        let Some(member) = self.members.get_mut(name) else { return };
        assert!(standing > member.standing(), "{standing:?} overrides {:?}", member.standing());
        let (was, node, addr) = (member.state, member.id.clone(), member.meta.cluster_addr);
        let accusers: BTreeSet<_> =
            by.iter().take(super::suspicion::ACCUSERS_MAX).cloned().collect();
        member.refutation = standing.refutation;
        member.state = standing.state;
        match standing.state {
            State::Suspect | State::Down => self.unsettled.insert(name.clone()),
            State::Alive | State::Left => self.unsettled.remove(name),
        };
        member.suspicion = None;
        member.recontact = None;
        member.why = None;
        if was != standing.state {
            member.since = now;
        }
        if was == State::Down && member.is_contactable() {
            out.push(Output::Keep { node: node.clone(), addr });
            // It missed our news while it was away, and we missed its.
            self.due.pull_from = Some(name.clone());
        }
        match standing.state {
            State::Alive => {
                member.accusers.clear();
                if was != State::Alive {
                    out.push(Output::Event(Event::Refuted { node, was }));
                }
                if self.probes.get(name).is_some_and(|probe| !probe.is_round()) {
                    self.probes.remove(name);
                }
            }
            State::Suspect => {
                member.suspicion = Some(Suspicion {
                    started_at: now,
                    observed_since: None,
                    look_at,
                    accusers: accusers.clone(),
                });
                member.accusers = accusers;
                if was == State::Down {
                    out.push(Output::Event(Event::Refuted { node: node.clone(), was }));
                }
                let by = by.first().cloned();
                out.push(Output::Event(Event::Suspected { node, by }));
                let me = &self.me.id.name;
                let i_accuse = self.accusers(name).contains(me);
                if !i_accuse && self.confirmers(name).contains(me) {
                    self.start_probe(now, name, Purpose::Confirm, out);
                }
            }
            State::Down => {
                member.accusers = accusers;
                member.why = why.or(Some(Why::Silent));
                member.recontact = Some(recontact);
                member.was_met = false;
                self.probes.remove(name);
                let why = why.unwrap_or(Why::Silent);
                out.push(Output::Event(Event::Down { node: node.clone(), why }));
                out.push(Output::Forget { node });
            }
            State::Left => {
                member.accusers.clear();
                self.probes.remove(name);
                out.push(Output::Event(Event::Left { node: node.clone() }));
                // Not `Forget`: its last answers may still be on their way.
                out.push(Output::Release { node });
            }
        }
        if self.pass_on {
            self.spread_standing(now, name);
        }
    }

    /// Whether we know better than somebody who says that `member` is down: it spoke to us so
    /// recently that their silence must have been theirs alone.
    fn objects(&self, now: Instant, member: &Member) -> bool {
        member.is_contactable()
            && member.heard_at.is_some_and(|at| now - at < self.config.settings().suspicion_min)
    }

    /// More accusers for a suspicion that is already known.
    fn confirm(&mut self, now: Instant, name: &NodeName, by: &[NodeName]) {
        let wanted = self.config.settings().confirmations + 1;
        let Some(member) = self.members.get_mut(name) else { return };
        let Some(suspicion) = member.suspicion.as_mut() else { return };
        let had = suspicion.accusers.len();
        for accuser in by {
            // Our own word comes only from our own probes, never from an echo.
            if *accuser != self.me.id.name {
                suspicion.accuse(accuser.clone());
            }
        }
        member.accusers = suspicion.accusers.clone();
        if suspicion.accusers.len() > had && had < wanted {
            self.spread_standing(now, name);
        }
    }

    pub(super) fn spread_standing(&mut self, now: Instant, name: &NodeName) {
        self.rumours.spread(name.clone(), Kind::Standing, true);
        self.hurry_gossip(now);
    }

    pub(super) fn hurry_gossip(&mut self, now: Instant) {
        // A moment to gather what arrives together.
        let soon = now + self.config.settings().gossip_interval / 5;
        self.due.gossip = Some(self.due.gossip.map_or(soon, |at| at.min(soon)));
    }

    pub(super) fn rumour_about(&self, name: &NodeName, kind: Kind) -> Option<Rumour> {
        if *name == self.me.id.name {
            let standing = self.my_standing();
            let name = name.clone();
            return Some(match kind {
                Kind::Standing => Rumour::Standing { name, standing, why: None, by: Vec::new() },
                Kind::Whole => Rumour::Whole {
                    name,
                    standing,
                    why: None,
                    meta_version: self.me.meta_version,
                    meta: Arc::clone(&self.me.meta),
                },
            });
        }
        let Some(member) = self.members.get(name) else {
            let standing = self.tombstones.get(name)?;
            return Some(Rumour::Standing {
                name: name.clone(),
                standing,
                why: None,
                by: Vec::new(),
            });
        };
        let (name, standing, why) = (name.clone(), member.standing(), member.why);
        Some(match kind {
            Kind::Standing => {
                let by = member.suspicion.as_ref().map_or(&member.accusers, |s| &s.accusers);
                // Our own finding first: the reader may be waiting for exactly that.
                let me = by.get(&self.me.id.name);
                let others = by.iter().filter(|by| **by != self.me.id.name);
                let by = me.into_iter().chain(others).take(ACCUSERS_TOLD_MAX).cloned().collect();
                Rumour::Standing { name, standing, why, by }
            }
            Kind::Whole => Rumour::Whole {
                name,
                standing,
                why,
                meta_version: member.meta_version,
                meta: Arc::clone(&member.meta),
            },
        })
    }
}
