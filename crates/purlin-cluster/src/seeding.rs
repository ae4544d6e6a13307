//! Which seed addresses to contact, and when: a pure schedule.
//!
//! Discovery gives addresses, not members. An address is contacted until a member known to be
//! alive is behind it, and again when it is not any more: two halves of a cluster that were
//! started apart find each other this way. Addresses are few; each has its own pause.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use purlin_core::{Instant, Rng};

/// The first pause after a contact that did not lead to a member.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest one. A node that boots minutes before its seeds joins this late at worst.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// How many contacts are under way at once.
const AT_ONCE_MAX: usize = 8;
/// How many addresses are kept; discovery results beyond it are ignored, in address order.
pub(crate) const SEEDS_MAX: usize = 1_024;

#[derive(Debug)]
struct Seed {
    next_at: Instant,
    pause: Duration,
    under_way: bool,
}

/// The schedule.
#[derive(Debug)]
pub(crate) struct Seeding {
    seeds: BTreeMap<SocketAddr, Seed>,
    rng: Rng,
}

impl Seeding {
    pub(crate) fn new(rng: Rng) -> Self {
        Self { seeds: BTreeMap::new(), rng }
    }

    /// From now on these are the addresses; new ones are contacted at once.
    pub(crate) fn replace(&mut self, now: Instant, addrs: &BTreeSet<SocketAddr>) {
        self.seeds.retain(|addr, _| addrs.contains(addr));
        for addr in addrs.iter().take(SEEDS_MAX) {
            self.seeds.entry(*addr).or_insert(Seed {
                next_at: now,
                pause: PAUSE_MIN,
                under_way: false,
            });
        }
    }

    /// The addresses to contact now; each must be answered with [`contacted`](Self::contacted).
    /// `occupied` are the addresses of this node and of members alive.
    pub(crate) fn due(&mut self, now: Instant, occupied: &BTreeSet<SocketAddr>) -> Vec<SocketAddr> {
        let mut free =
            AT_ONCE_MAX.saturating_sub(self.seeds.values().filter(|s| s.under_way).count());
        let mut due = Vec::new();
        for (addr, seed) in &mut self.seeds {
            if seed.under_way || seed.next_at > now {
                continue;
            }
            if occupied.contains(addr) {
                seed.pause = PAUSE_MIN;
                seed.next_at = now + PAUSE_MAX;
            } else if free > 0 {
                free -= 1;
                seed.under_way = true;
                due.push(*addr);
            }
        }
        due
    }

    /// A contact to `addr` ended, well or not. The pause grows either way: if it went well, a
    /// member will soon occupy the address.
    pub(crate) fn contacted(&mut self, now: Instant, addr: SocketAddr) {
        if let Some(seed) = self.seeds.get_mut(&addr) {
            seed.under_way = false;
            seed.next_at = now + seed.pause / 2 + self.rng.jitter(seed.pause / 2);
            seed.pause = (seed.pause * 2).min(PAUSE_MAX);
        }
    }

    /// When something is due next; `None` while there is nothing to wait for.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        let waiting = self.seeds.values().filter(|seed| !seed.under_way);
        if self.seeds.values().filter(|s| s.under_way).count() >= AT_ONCE_MAX {
            return None;
        }
        waiting.map(|seed| seed.next_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn at(ms: u64) -> Instant {
        Instant::from_start(Duration::from_millis(ms))
    }

    #[test]
    fn a_seed_is_contacted_again_and_again_with_growing_pauses_until_a_member_is_there() {
        let mut seeding = Seeding::new(Rng::from_seed(1));
        seeding.replace(at(0), &[addr(1)].into());
        let nobody = BTreeSet::new();
        let mut now = at(0);
        let mut pauses = Vec::new();
        for _ in 0..8 {
            assert_eq!(seeding.due(now, &nobody), [addr(1)]);
            assert_eq!(seeding.due(now, &nobody), [], "one contact at a time");
            assert_eq!(seeding.wake_at(), None);
            seeding.contacted(now, addr(1));
            let next = seeding.wake_at().unwrap();
            pauses.push(next - now);
            now = next;
        }
        assert!(pauses[0] <= PAUSE_MIN && pauses.iter().all(|pause| *pause <= PAUSE_MAX));
        assert!(pauses[7] >= PAUSE_MAX / 2);
        assert_eq!(seeding.due(now, &[addr(1)].into()), [], "a member is there");
        now = now + PAUSE_MAX;
        assert_eq!(seeding.due(now, &nobody), [addr(1)], "and there no more");
    }

    #[test]
    fn an_address_that_discovery_dropped_is_forgotten() {
        let mut seeding = Seeding::new(Rng::from_seed(1));
        seeding.replace(at(0), &[addr(1), addr(2)].into());
        seeding.replace(at(0), &[addr(2)].into());
        assert_eq!(seeding.due(at(0), &BTreeSet::new()), [addr(2)]);
        seeding.contacted(at(0), addr(1));
    }

    #[test]
    fn contacts_at_once_are_bounded() {
        let mut seeding = Seeding::new(Rng::from_seed(1));
        seeding.replace(at(0), &(1..100).map(addr).collect());
        assert_eq!(seeding.due(at(0), &BTreeSet::new()).len(), AT_ONCE_MAX);
        assert_eq!(seeding.wake_at(), None);
        seeding.contacted(at(0), addr(1));
        assert_eq!(seeding.due(at(0), &BTreeSet::new()).len(), 1);
    }
}
