//! Faults on purpose: what a network does on its bad days, at run time and per peer.
//!
//! A test that cuts cables needs root and a second machine; a hook inside the transport needs
//! neither and works in production rehearsals. Rules apply to messages, keepalives, dials and
//! datagrams. Unused, the hook costs one relaxed load per message.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use purlin_core::{NodeName, Rng};

use crate::ChannelId;

/// What a rule applies to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// All channels and datagrams.
    Everything,
    /// One channel.
    Channel(ChannelId),
    /// Only datagrams.
    Datagrams,
}

/// Seen from this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What this node sends.
    Outgoing,
    /// What this node receives.
    Incoming,
    /// Both.
    Both,
}

/// What happens to a message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Effect {
    /// It is lost with this probability. A dial under a rule of probability 1 is black-holed.
    Drop {
        /// From 0 to 1.
        probability: f64,
    },
    /// It arrives later; order on a channel is kept. Each received batch, or each sent message, is
    /// held for `by` plus up to `jitter`.
    Delay {
        /// At least this long.
        by: Duration,
        /// And up to this much longer.
        jitter: Duration,
    },
    /// It arrives twice with this probability.
    Duplicate {
        /// From 0 to 1.
        probability: f64,
    },
}

/// One fault. One-way loss is a [`Effect::Drop`] in one [`Direction`].
#[derive(Debug, Clone, PartialEq)]
pub struct FaultRule {
    /// Which peer; `None` for all.
    pub peer: Option<NodeName>,
    /// Which traffic.
    pub lane: Lane,
    /// Which way.
    pub direction: Direction,
    /// What happens.
    pub effect: Effect,
}

impl FaultRule {
    /// Loses everything from and to `peer`.
    #[must_use]
    pub fn cut(peer: NodeName) -> Self {
        Self::one_way_cut(peer, Direction::Both)
    }

    /// Loses everything in one direction.
    #[must_use]
    pub fn one_way_cut(peer: NodeName, direction: Direction) -> Self {
        let effect = Effect::Drop { probability: 1.0 };
        Self { peer: Some(peer), lane: Lane::Everything, direction, effect }
    }
}

/// Names a rule, for taking it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FaultId(u64);

/// At most this many rules; more are refused by [`Faults::add`].
pub const RULES_MAX: usize = 1024;

/// The faults of one transport; see [`Transport::faults`](crate::Transport::faults).
#[derive(Debug)]
pub struct Faults {
    active: AtomicBool,
    next: AtomicU64,
    rules: Mutex<(Vec<(FaultId, FaultRule)>, Rng)>,
}

/// What is decided for one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Fate {
    pub(crate) lost: bool,
    pub(crate) doubled: bool,
    pub(crate) delay: Duration,
}

impl Faults {
    pub(crate) fn new(rng: Rng) -> Self {
        Self {
            active: AtomicBool::new(false),
            next: AtomicU64::new(1),
            rules: Mutex::new((Vec::new(), rng)),
        }
    }

    /// Adds a rule; it holds for what is sent and received from now on. `None` when there are
    /// [`RULES_MAX`] already.
    #[must_use]
    pub fn add(&self, rule: FaultRule) -> Option<FaultId> {
        let mut rules = self.rules.lock();
        if rules.0.len() >= RULES_MAX {
            return None;
        }
        let id = FaultId(self.next.fetch_add(1, Ordering::Relaxed));
        rules.0.push((id, rule));
        self.active.store(true, Ordering::Relaxed);
        Some(id)
    }

    /// Takes a rule back. Whether it was there.
    pub fn remove(&self, id: FaultId) -> bool {
        let mut rules = self.rules.lock();
        let before = rules.0.len();
        rules.0.retain(|(other, _)| *other != id);
        self.active.store(!rules.0.is_empty(), Ordering::Relaxed);
        rules.0.len() < before
    }

    /// Takes all rules back.
    pub fn clear(&self) {
        self.rules.lock().0.clear();
        self.active.store(false, Ordering::Relaxed);
    }

    /// The rules in force.
    #[must_use]
    pub fn rules(&self) -> Vec<(FaultId, FaultRule)> {
        self.rules.lock().0.clone()
    }

    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::Relaxed)
    }

    pub(crate) fn fate(&self, peer: &NodeName, lane: Lane, direction: Direction) -> Fate {
        let mut fate = Fate::default();
        if !self.is_active() {
            return fate;
        }
        let (rules, rng) = &mut *self.rules.lock();
        let applies = |rule: &FaultRule| {
            rule.peer.as_ref().is_none_or(|name| name == peer)
                && (rule.lane == Lane::Everything || rule.lane == lane)
                && (rule.direction == Direction::Both || rule.direction == direction)
        };
        for (_, rule) in rules.iter().filter(|(_, rule)| applies(rule)) {
            match rule.effect {
                Effect::Drop { probability } => fate.lost |= rng.chance(probability),
                Effect::Duplicate { probability } => fate.doubled |= rng.chance(probability),
                Effect::Delay { by, jitter } => fate.delay += by + rng.jitter(jitter),
            }
        }
        fate
    }

    /// Whether a handshake with `peer` on `channel` gets through.
    pub(crate) fn lets_dial(&self, peer: &NodeName, channel: ChannelId) -> bool {
        if !self.is_active() {
            return true;
        }
        let lane = Lane::Channel(channel);
        !self.fate(peer, lane, Direction::Outgoing).lost
            && !self.fate(peer, lane, Direction::Incoming).lost
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> NodeName {
        NodeName::parse(text).unwrap()
    }

    #[test]
    fn a_rule_hits_its_peer_lane_and_direction_only() {
        let faults = Faults::new(Rng::from_seed(1));
        assert!(!faults.is_active());
        let id = faults
            .add(FaultRule {
                peer: Some(name("n2")),
                lane: Lane::Channel(ChannelId::RPC),
                direction: Direction::Outgoing,
                effect: Effect::Drop { probability: 1.0 },
            })
            .unwrap();
        let lost = |peer, lane, direction| faults.fate(&name(peer), lane, direction).lost;
        let rpc = Lane::Channel(ChannelId::RPC);
        assert!(lost("n2", rpc, Direction::Outgoing));
        assert!(!lost("n2", rpc, Direction::Incoming));
        assert!(!lost("n3", rpc, Direction::Outgoing));
        assert!(!lost("n2", Lane::Datagrams, Direction::Outgoing));
        assert!(faults.remove(id));
        assert!(!faults.remove(id));
        assert!(!faults.is_active());
    }

    #[test]
    fn delays_add_up_and_a_cut_stops_dials() {
        let faults = Faults::new(Rng::from_seed(1));
        let by = Duration::from_millis(5);
        for _ in 0..2 {
            faults
                .add(FaultRule {
                    peer: None,
                    lane: Lane::Everything,
                    direction: Direction::Both,
                    effect: Effect::Delay { by, jitter: Duration::ZERO },
                })
                .unwrap();
        }
        assert_eq!(faults.fate(&name("n2"), Lane::Datagrams, Direction::Incoming).delay, 2 * by);
        assert!(faults.lets_dial(&name("n2"), ChannelId::CONTROL));
        faults.add(FaultRule::one_way_cut(name("n2"), Direction::Incoming)).unwrap();
        assert!(!faults.lets_dial(&name("n2"), ChannelId::CONTROL));
        faults.clear();
        assert!(faults.lets_dial(&name("n2"), ChannelId::CONTROL));
    }

    #[test]
    fn the_number_of_rules_is_bounded() {
        let faults = Faults::new(Rng::from_seed(1));
        for _ in 0..RULES_MAX {
            assert!(faults.add(FaultRule::cut(name("n2"))).is_some());
        }
        assert!(faults.add(FaultRule::cut(name("n2"))).is_none());
    }
}
