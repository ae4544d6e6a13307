//! Who is here? SWIM with Lifeguard, as a pure state machine: no sockets, no clock, no tasks.
//!
//! The easy answer, heartbeats from everybody to everybody, costs a square of the cluster and
//! takes one lost link for a death. SWIM asks one member at a time, lets others ask on its behalf,
//! and rides the news on the questions. What is added here, and why:
//!
//! - **Doubt yourself first** (Lifeguard): missing words from helpers and accusations against
//!   oneself stretch one's own timeouts; time in which this process did not run counts against
//!   nobody.
//! - **Several independent observers**: a node that only heard of a suspicion never passes the
//!   verdict. A few members, the same on every node, look for themselves; their findings shorten
//!   the suspicion, and without findings of one's own there is no verdict at all.
//! - **The accused hears first**, and whoever repeats refuted news is corrected in the answer.
//! - **Two roads**: probes go as datagrams, and in their last attempt over the control channel
//!   too. Neither a dead TCP link nor blocked datagrams alone take a member down.
//!
//! [`Swim`] is told what happened and when ([`Input`]); it answers with what to do ([`Output`]).
//! The driver and the simulator in the tests are the two loops around it.
//!
//! In reading order: [`config`](Config), `member` (states and their order), `wire`, `beliefs`
//! (what news changes), `probing`, `suspicion`, `health`, `dissemination`, `exchange`.
//!
//! # Source
//! Das, Gupta, Motivala 2002 (SWIM); Dadgar, Phillips, Currey 2017 (Lifeguard); Suresh et al.
//! 2018 (Rapid) for the idea of several observers per member. We differ from SWIM in that a
//! `Down` member of the same incarnation may refute, see `docs/decisions/0002-down-is-refutable.md`.

mod beliefs;
mod config;
mod dissemination;
mod exchange;
mod health;
mod member;
mod probing;
mod suspicion;
mod wire;

#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use purlin_core::{Incarnation, Instant, NodeId, NodeName, Rng};

pub use config::{
    Config, ConfigBuilder, ConfigError, LOCAL_HEALTH_MAX, SMALL_CLUSTER, TOMBSTONES_MAX,
};
use dissemination::{Kind, Rumours};
use exchange::{Announcement, Road};
use health::{LocalHealth, RunningTime};
pub use member::{
    LABELS_MAX, META_BYTES_MAX, META_TEXT_BYTES_MAX, Meta, MetaError, ROLES_MAX, Refutation, State,
    Why,
};
use member::{Member, Standing, Tombstones};
use probing::{Probe, Purpose, Relay};

/// Which road a packet takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Path {
    /// A sealed datagram: may be lost, doubled or late.
    Datagram,
    /// The `control` channel: in order while the connection lives.
    Control,
}

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Input<'a> {
    /// The time of the last [`Swim::wake_at`] has come. Early and repeated is harmless.
    Woke,
    /// A packet from `from`, whose identity the road has authenticated.
    Packet {
        /// Who sent it.
        from: NodeId,
        /// Where a datagram came from, for telling a stranger that it is out of date.
        addr: Option<SocketAddr>,
        /// How it came.
        path: Path,
        /// What it holds; not trusted to be well-formed.
        bytes: &'a [u8],
    },
    /// We found `node` at `addr`, a seed's address or that of a down member. It has proved who
    /// it is.
    Contacted {
        /// Who listens there.
        node: NodeId,
        /// Where.
        addr: SocketAddr,
    },
    /// The control channel to `node` stands, whoever of the two made it.
    Met {
        /// Who is at the other end.
        node: NodeId,
    },
    /// Its address refuses connections. After the control channel stood this proves that the
    /// process is gone; before, it may as well be the wrong address.
    Refused {
        /// Whose.
        node: NodeId,
    },
    /// The control channel to it is dead or mute. No verdict, but a reason to look.
    Silent {
        /// Whose.
        node: NodeId,
    },
    /// A member refuses our connections because it knows a later life of our name.
    Outlived,
    /// From now on we say this of ourselves.
    Meta(Meta),
    /// Make sure that all members have read what we now say of ourselves.
    Announce,
    /// Say goodbye: from now on we are `Left`, for good.
    Leave,
}

/// Something to do now, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send `bytes`; losing them is fine.
    Send {
        /// To whom: exactly this incarnation.
        to: NodeId,
        /// Where it is; absent for strangers, whom only their connection leads to.
        addr: Option<SocketAddr>,
        /// By which road.
        path: Path,
        /// The packet.
        bytes: Vec<u8>,
    },
    /// The view changed in this way.
    Event(Event),
    /// The view changed in a way that is no event.
    Changed,
    /// Keep connections to this member.
    Keep {
        /// Whom.
        node: NodeId,
        /// Where.
        addr: SocketAddr,
    },
    /// Open no new connections to this member; those that stand may bring what is under way.
    Release {
        /// Whom.
        node: NodeId,
    },
    /// Close connections to this member and open no new ones.
    Forget {
        /// Whom.
        node: NodeId,
    },
    /// Find out who listens at `addr` now: `node` used to, and is down.
    Recontact {
        /// Who was there.
        node: NodeId,
        /// Where to look.
        addr: SocketAddr,
    },
    /// Every member that can be reached has confirmed the last [`Input::Announce`] or
    /// [`Input::Leave`].
    Announced,
    /// A later life of our own name exists, so this one is over.
    Superseded,
}

/// How the view changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A member is new to us.
    Joined {
        /// Who.
        node: NodeId,
    },
    /// Somebody gets no answer from it.
    Suspected {
        /// Who.
        node: NodeId,
        /// Who said so first, if known.
        by: Option<NodeName>,
    },
    /// It is alive after all.
    Refuted {
        /// Who.
        node: NodeId,
        /// What it had been taken for.
        was: State,
    },
    /// It cannot be reached.
    Down {
        /// Who.
        node: NodeId,
        /// How that is known.
        why: Why,
    },
    /// It said goodbye.
    Left {
        /// Who.
        node: NodeId,
    },
    /// It says something new of itself.
    MetaChanged {
        /// Who.
        node: NodeId,
    },
    /// It is being drained. Also reported as [`Event::MetaChanged`].
    Draining {
        /// Who.
        node: NodeId,
    },
}

/// What the detector has done so far; all only grow, except `local_health`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets handed out to be sent.
    pub packets_sent: u64,
    /// Packets handed in, good or bad.
    pub packets_received: u64,
    /// Packets dropped as malformed or of another version.
    pub malformed: u64,
    /// Rumours that had been overtaken.
    pub stale: u64,
    /// Pings of our own probes.
    pub pings: u64,
    /// Requests to others to ping for us.
    pub ping_requests: u64,
    /// Probes that got no answer in all their attempts.
    pub probes_failed: u64,
    /// Answers to questions we no longer remember.
    pub late_answers: u64,
    /// Times we contradicted bad news about ourselves.
    pub refutations: u64,
    /// Verdicts of others we did not take over because the member had just spoken to us.
    pub objections: u64,
    /// Times this process stood still.
    pub stalls: u64,
    /// Full syncs we started.
    pub syncs: u64,
    /// Members refused for their metadata or for lack of room.
    pub refused_members: u64,
    /// The local health score now: 0 is healthy, [`LOCAL_HEALTH_MAX`] is worst.
    pub local_health: u32,
}

/// A member as this node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sighting {
    /// Who.
    pub node: NodeId,
    /// What is believed of it.
    pub state: State,
    /// Why, when it is down.
    pub why: Option<Why>,
    /// How often it has refuted.
    pub refutation: Refutation,
    /// What it says of itself.
    pub meta: Arc<Meta>,
    /// Which version of that.
    pub meta_version: u32,
    /// Smoothed round trip of direct probes, once measured.
    pub rtt: Option<Duration>,
    /// Who gets no answer from it, while it is suspect or down.
    pub accusers: Vec<NodeName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MeState {
    Here,
    Left,
    Superseded,
}

#[derive(Debug)]
struct Me {
    id: NodeId,
    refutation: Refutation,
    meta: Arc<Meta>,
    meta_version: u32,
    state: MeState,
}

/// What comes up when, on the running clock.
#[derive(Debug)]
struct Due {
    probe: Instant,
    /// Counts probes, to alternate between ward and round.
    turn: u32,
    round: Vec<NodeName>,
    gossip: Option<Instant>,
    sync: Instant,
    pull_from: Option<NodeName>,
    /// The full identity of `pull_from` while it is a stranger.
    pull_id: Option<NodeId>,
    pull_free: Instant,
    recontact_free: Instant,
    forget: Instant,
}

/// How often departed members are looked through for those to forget.
const FORGET_INTERVAL: Duration = Duration::from_secs(1);
/// Strangers contacted and not met yet; of more, only the identity is learnt when they are met.
const CONTACTED_MAX: usize = 1_024;

/// Membership and failure detection of one node. See the module's documentation.
///
/// Owned by one loop; nothing in it is shared. Nothing is kept across a restart: a restarted node
/// joins as a new incarnation and learns everything anew.
#[derive(Debug)]
pub struct Swim {
    config: Config,
    me: Me,
    members: BTreeMap<NodeName, Member>,
    /// Those of them that are suspected or down, who alone have a date of their own: asked for
    /// after every packet, which must not cost a look at all members.
    unsettled: BTreeSet<NodeName>,
    /// Control channels that stand to nodes of which nothing is known yet: their packets are a
    /// moment behind. At most `members_max`; one that does not fit is a slower verdict, not a wrong
    /// one.
    met_strangers: BTreeMap<NodeName, Incarnation>,
    tombstones: Tombstones,
    rumours: Rumours,
    probes: BTreeMap<NodeName, Probe>,
    relays: BTreeMap<u32, Relay>,
    /// Whom we found at an address and want to learn the cluster from.
    contacted: BTreeSet<NodeId>,
    announcement: Option<Announcement>,
    health: LocalHealth,
    time: RunningTime,
    due: Due,
    /// Whether beliefs taken over are news to others; false only inside a newcomer's first sync.
    pass_on: bool,
    seq: u32,
    rng: Rng,
    counters: Counters,
}

impl Swim {
    /// A node alone, that will say `meta` of itself.
    ///
    /// # Errors
    /// [`MetaError`] when `meta` breaks a limit.
    pub fn new(
        config: Config,
        id: NodeId,
        meta: Meta,
        now: Instant,
        mut rng: Rng,
    ) -> Result<Self, MetaError> {
        meta.check()?;
        let settings = config.settings();
        let due = Due {
            // Nodes started together must not probe in step.
            probe: now + rng.jitter(settings.probe_interval),
            turn: 0,
            round: Vec::new(),
            gossip: None,
            sync: now + rng.jitter(settings.sync_interval),
            pull_from: None,
            pull_id: None,
            pull_free: now,
            recontact_free: now,
            forget: now + FORGET_INTERVAL,
        };
        Ok(Self {
            config,
            me: Me {
                id,
                refutation: Refutation(0),
                meta: Arc::new(meta),
                meta_version: 1,
                state: MeState::Here,
            },
            members: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            met_strangers: BTreeMap::new(),
            tombstones: Tombstones::default(),
            rumours: Rumours::default(),
            probes: BTreeMap::new(),
            relays: BTreeMap::new(),
            contacted: BTreeSet::new(),
            announcement: None,
            health: LocalHealth::default(),
            time: RunningTime::new(now),
            due,
            pass_on: true,
            seq: 0,
            rng,
            counters: Counters::default(),
        })
    }

    /// Applies one input. Never blocks, never fails; effects are pushed to `out`, in order.
    ///
    /// Call [`wake_at`](Self::wake_at) afterwards to learn when to call again.
    pub fn step(&mut self, now: Instant, input: Input<'_>, out: &mut Vec<Output>) {
        let now = self.running(now);
        match input {
            Input::Woke => self.handle_woke(now, out),
            Input::Packet { from, addr, path, bytes } => {
                let road = Road { from: &from, addr, path };
                self.handle_packet(now, road, bytes, out);
            }
            Input::Contacted { node, addr } => self.handle_contacted(node, addr, out),
            Input::Met { node } => self.handle_met(&node, out),
            Input::Refused { node } => self.handle_refused(now, &node, out),
            Input::Silent { node } => self.handle_silent(now, &node, out),
            Input::Outlived => self.handle_outlived(out),
            Input::Meta(meta) => self.handle_meta(now, meta, out),
            Input::Announce => self.announce(now, out),
            Input::Leave => self.handle_leave(now, out),
        }
    }

    /// When [`Input::Woke`] is due next, on the real clock. Ask again after every step.
    pub fn wake_at(&mut self) -> Instant {
        let wake = self.next_due();
        self.time.plan(wake)
    }

    fn handle_woke(&mut self, now: Instant, out: &mut Vec<Output>) {
        match self.me.state {
            MeState::Superseded | MeState::Left => {
                self.due.probe = now + FORGET_INTERVAL;
                self.due.forget = now + FORGET_INTERVAL;
                self.gossip_due(now, out);
                self.announcement_due(now, out);
                return;
            }
            MeState::Here => {}
        }
        self.expire_relays(now, out);
        self.advance_probes(now, out);
        self.judge(now, out);
        if self.due.probe <= now {
            self.probe_next(now, out);
        }
        self.sync_due(now, out);
        self.recontact_due(now, out);
        self.announcement_due(now, out);
        self.gossip_due(now, out);
        if self.due.forget <= now {
            self.due.forget = now + FORGET_INTERVAL;
            self.forget_departed(now, out);
        }
    }

    fn handle_contacted(&mut self, node: NodeId, addr: SocketAddr, out: &mut Vec<Output>) {
        if !self.is_here() || node.name == self.me.id.name {
            return;
        }
        let has_left = |standing: Option<Standing>| {
            standing.is_some_and(|s| s.state == State::Left && s.incarnation >= node.incarnation)
        };
        let wanted = match self.members.get(&node.name) {
            Some(known) if known.id == node => known.state == State::Down,
            Some(known) => node.supersedes(&known.id),
            None => !has_left(self.tombstones.get(&node.name)),
        };
        if wanted {
            if self.contacted.len() < CONTACTED_MAX {
                self.contacted.insert(node.clone());
            }
            out.push(Output::Keep { node, addr });
        }
    }

    /// A control channel stands, whoever made it: we say who we are, so that either side knows
    /// the other whatever it knew before. Whole states are compared only with those we asked for
    /// and with those we had lost: in a growing cluster everybody meets everybody.
    fn handle_met(&mut self, node: &NodeId, out: &mut Vec<Output>) {
        if !self.is_here() || node.name == self.me.id.name {
            return;
        }
        let was_contacted = self.contacted.remove(node);
        let known = self.members.get_mut(&node.name).filter(|m| m.id == *node);
        let was_lost = known.as_ref().is_some_and(|m| m.state != State::Alive);
        if let Some(member) = known {
            member.was_met = true;
        } else if self.met_strangers.len() < self.config.settings().members_max {
            self.met_strangers.insert(node.name.clone(), node.incarnation);
        }
        self.greet(node, was_contacted || was_lost, out);
    }

    fn handle_refused(&mut self, now: Instant, node: &NodeId, out: &mut Vec<Output>) {
        self.met_strangers.remove(&node.name);
        let Some(member) = self.members.get(&node.name) else { return };
        if member.id != *node || !member.is_contactable() || !self.is_here() {
            return;
        }
        if !member.was_met {
            self.start_probe(now, &node.name, Purpose::Round, out);
            return;
        }
        let standing = Standing { state: State::Down, ..member.standing() };
        let me = self.me.id.name.clone();
        self.believe(now, &node.name, standing, Some(Why::Refused), &[me], out);
    }

    fn handle_silent(&mut self, now: Instant, node: &NodeId, out: &mut Vec<Output>) {
        self.met_strangers.remove(&node.name);
        if self.members.get(&node.name).is_some_and(|m| m.id == *node) && self.is_here() {
            self.start_probe(now, &node.name, Purpose::Round, out);
        }
    }

    fn handle_meta(&mut self, now: Instant, meta: Meta, out: &mut Vec<Output>) {
        assert_eq!(meta.check(), Ok(()), "the shell checks metadata before it hands it in");
        if *self.me.meta == meta || !self.is_here() {
            return;
        }
        self.me.meta = Arc::new(meta);
        self.me.meta_version += 1;
        self.rumours.spread(self.me.id.name.clone(), Kind::Whole, true);
        self.hurry_gossip(now);
        out.push(Output::Changed);
    }

    fn handle_outlived(&mut self, out: &mut Vec<Output>) {
        if self.me.state == MeState::Superseded {
            return;
        }
        self.me.state = MeState::Superseded;
        self.probes.clear();
        self.relays.clear();
        self.announcement = None;
        out.push(Output::Superseded);
        out.push(Output::Changed);
    }

    fn handle_leave(&mut self, now: Instant, out: &mut Vec<Output>) {
        if !self.is_here() {
            return;
        }
        self.me.state = MeState::Left;
        self.probes.clear();
        self.relays.clear();
        self.spread_standing(now, &self.me.id.name.clone());
        out.push(Output::Changed);
        let members = self.members.values().filter(|m| m.is_contactable());
        out.extend(members.map(|m| Output::Release { node: m.id.clone() }));
        self.announce(now, out);
    }

    fn forget_departed(&mut self, now: Instant, out: &mut Vec<Output>) {
        let settings = self.config.settings();
        let (down, left) = (settings.forget_down_after, settings.forget_left_after);
        let expired = |m: &Member| match m.state {
            State::Alive | State::Suspect => false,
            State::Down => now - m.since >= down,
            State::Left => now - m.since >= left,
        };
        debug_assert!(
            self.members
                .iter()
                .filter(|(_, m)| matches!(m.state, State::Suspect | State::Down))
                .map(|(name, _)| name)
                .eq(&self.unsettled),
            "{:?} are unsettled",
            self.unsettled
        );
        let names: Vec<_> =
            self.members.values().filter(|m| expired(m)).map(|m| m.id.name.clone()).collect();
        for name in names {
            if let Some(member) = self.members.remove(&name) {
                self.unsettled.remove(&name);
                out.push(Output::Forget { node: member.id.clone() });
                self.rumours.forget(&name);
                self.tombstones.bar(name, member.standing());
                out.push(Output::Changed);
            }
        }
    }

    fn running(&mut self, now: Instant) -> Instant {
        let (now, stall) = self.time.advance(now, self.config.settings().stall_tolerance);
        if !stall.is_zero() {
            self.start_over(now);
            if stall >= self.config.settings().suspicion_min {
                // Long enough to have missed news.
                self.due.sync = now;
            }
        }
        now
    }

    fn next_due(&self) -> Instant {
        // Also the longest sleep, so that a stall of an idle node is noticed.
        let mut next = self.due.probe.min(self.due.forget);
        let mut at = |when: Option<Instant>| {
            if let Some(when) = when {
                next = next.min(when);
            }
        };
        at(self.due.gossip);
        at(self.announcement.as_ref().map(|a| a.resend_at));
        if self.is_here() {
            at(Some(self.due.sync));
            at(self.due.pull_from.as_ref().map(|_| self.due.pull_free));
            at(self.probes.values().map(|probe| probe.next_at).min());
            at(self.relays.values().map(Relay::due).min());
            for member in self.unsettled.iter().filter_map(|name| self.members.get(name)) {
                match member.state {
                    State::Suspect => at(self.judgement_at(&member.id.name)),
                    State::Down => at(member
                        .recontact
                        .as_ref()
                        .map(|recontact| recontact.at.max(self.due.recontact_free))),
                    State::Alive | State::Left => {}
                }
            }
        }
        next
    }

    fn is_here(&self) -> bool {
        self.me.state == MeState::Here
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1);
        self.seq
    }

    fn my_standing(&self) -> Standing {
        Standing {
            incarnation: self.me.id.incarnation,
            refutation: self.me.refutation,
            state: if self.me.state == MeState::Here { State::Alive } else { State::Left },
        }
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.me.id
    }

    /// What this node says of itself.
    #[must_use]
    pub fn meta(&self) -> &Arc<Meta> {
        &self.me.meta
    }

    /// All members this node remembers, itself included, in the order of their names.
    #[must_use]
    pub fn sightings(&self) -> Vec<Sighting> {
        let me = Sighting {
            node: self.me.id.clone(),
            state: self.my_standing().state,
            why: None,
            refutation: self.me.refutation,
            meta: Arc::clone(&self.me.meta),
            meta_version: self.me.meta_version,
            rtt: None,
            accusers: Vec::new(),
        };
        let mut all: Vec<_> = self
            .members
            .values()
            .map(|m| Sighting {
                node: m.id.clone(),
                state: m.state,
                why: m.why,
                refutation: m.refutation,
                meta: Arc::clone(&m.meta),
                meta_version: m.meta_version,
                rtt: m.rtt,
                accusers: m
                    .suspicion
                    .as_ref()
                    .map_or(&m.accusers, |s| &s.accusers)
                    .iter()
                    .cloned()
                    .collect(),
            })
            .chain([me])
            .collect();
        all.sort_by(|a, b| a.node.cmp(&b.node));
        all
    }

    /// The state of the member called `name`, if it is remembered, and which life is meant.
    #[must_use]
    pub fn state_of(&self, name: &NodeName) -> Option<(Incarnation, State)> {
        self.members.get(name).map(|m| (m.id.incarnation, m.state))
    }

    /// Who has not confirmed the announcement under way.
    #[must_use]
    pub fn unannounced(&self) -> Vec<NodeName> {
        self.announcement.iter().flat_map(|a| a.waiting.iter().cloned()).collect()
    }

    /// What the detector has done so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters { local_health: self.health.score(), ..self.counters }
    }
}
