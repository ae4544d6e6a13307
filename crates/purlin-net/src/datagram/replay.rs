//! Recognising copies: a sliding window of packet numbers per sender. Pure.
//!
//! A sealed datagram stays valid for whoever recorded it. Each sender numbers its packets, and the
//! receiver remembers the highest number and which of the 1024 below it were seen: copies and
//! packets too old to tell are dropped, reordered ones pass.
//!
//! # Source
//! The anti-replay window of IPsec (RFC 6479), in blocks of 64 so that sliding moves no bits.

use std::collections::BTreeMap;

use purlin_core::{Incarnation, NodeId, NodeName};

const BLOCKS: u64 = 17;
/// Packets this far behind the highest are still told apart.
pub const WINDOW: u64 = (BLOCKS - 1) * 64;

/// At most so many senders are remembered; then the one unheard for longest is forgotten. Only
/// genuine packets make an entry.
pub const SENDERS_MAX: usize = 4096;

/// What a packet number means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// Never seen: deliver it.
    New,
    /// Seen, or so old that nobody can tell.
    Before,
    /// Of an incarnation that a later one replaced.
    Stale,
}

/// The numbers seen of one sender.
#[derive(Debug, Clone, Default)]
pub struct Window {
    /// One above the highest number seen.
    end: u64,
    blocks: [u64; 17],
}

impl Window {
    /// Notes `number`; whether it is new.
    pub fn insert(&mut self, number: u64) -> bool {
        if number == u64::MAX || number.saturating_add(WINDOW) < self.end {
            return false;
        }
        let block = number / 64;
        if number >= self.end {
            let current = if self.end == 0 { 0 } else { (self.end - 1) / 64 };
            let steps = block.saturating_sub(current).min(BLOCKS);
            for step in 1..=steps {
                self.blocks[slot(current + step)] = 0;
            }
            if steps == BLOCKS {
                self.blocks = [0; 17];
            }
            self.end = number + 1;
        }
        let bit = 1 << (number % 64);
        let word = &mut self.blocks[slot(block)];
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }
}

fn slot(block: u64) -> usize {
    usize::try_from(block % BLOCKS).expect("below 17")
}

#[derive(Debug)]
struct Sender {
    incarnation: Incarnation,
    salt: [u8; 8],
    window: Window,
    heard: u64,
}

/// The windows of all senders.
#[derive(Debug, Default)]
pub struct ReplayGuard {
    senders: BTreeMap<NodeName, Sender>,
    clock: u64,
}

impl ReplayGuard {
    /// Knows nobody.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Judges packet `number` of a genuine sender. A later incarnation starts over and makes the
    /// earlier one stale. The same incarnation keeps its salt, drawn at its start.
    pub fn check(&mut self, sender: &NodeId, salt: [u8; 8], number: u64) -> Seen {
        self.clock += 1;
        let heard = self.clock;
        if let Some(known) = self.senders.get_mut(&sender.name) {
            if sender.incarnation < known.incarnation {
                return Seen::Stale;
            }
            if sender.incarnation > known.incarnation {
                *known = Sender {
                    incarnation: sender.incarnation,
                    salt,
                    window: Window::default(),
                    heard,
                };
            }
            known.heard = heard;
            let is_new = known.salt == salt && known.window.insert(number);
            return if is_new { Seen::New } else { Seen::Before };
        }
        self.make_room();
        let mut window = Window::default();
        window.insert(number);
        let entry = Sender { incarnation: sender.incarnation, salt, window, heard };
        self.senders.insert(sender.name.clone(), entry);
        Seen::New
    }

    fn make_room(&mut self) {
        if self.senders.len() < SENDERS_MAX {
            return;
        }
        let oldest = self.senders.iter().min_by_key(|(_, sender)| sender.heard);
        if let Some(name) = oldest.map(|(name, _)| name.clone()) {
            self.senders.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn node(name: &str, incarnation: u64) -> NodeId {
        NodeId::new(NodeName::parse(name).unwrap(), Incarnation(incarnation))
    }

    const SALT: [u8; 8] = [1; 8];

    #[test]
    fn a_copy_is_seen_before_and_a_late_packet_is_new() {
        let mut guard = ReplayGuard::new();
        let n1 = node("n1", 1);
        assert_eq!(guard.check(&n1, SALT, 5), Seen::New);
        assert_eq!(guard.check(&n1, SALT, 5), Seen::Before);
        assert_eq!(guard.check(&n1, SALT, 3), Seen::New);
        assert_eq!(guard.check(&n1, SALT, 3), Seen::Before);
    }

    #[test]
    fn a_packet_too_old_to_tell_is_dropped() {
        let mut window = Window::default();
        assert!(window.insert(10_000));
        assert!(window.insert(10_001 - WINDOW));
        assert!(!window.insert(10_000 - WINDOW));
        assert!(!window.insert(0));
    }

    #[test]
    fn a_later_life_starts_over_and_the_earlier_is_stale() {
        let mut guard = ReplayGuard::new();
        assert_eq!(guard.check(&node("n1", 1), SALT, 0), Seen::New);
        assert_eq!(guard.check(&node("n1", 2), [2; 8], 0), Seen::New);
        assert_eq!(guard.check(&node("n1", 1), SALT, 1), Seen::Stale);
        assert_eq!(guard.check(&node("n1", 2), [2; 8], 0), Seen::Before);
    }

    #[test]
    fn senders_are_bounded_and_the_unheard_go_first() {
        let mut guard = ReplayGuard::new();
        for at in 0..SENDERS_MAX + 10 {
            assert_eq!(guard.check(&node("keeper", 1), SALT, at as u64), Seen::New);
            assert_eq!(guard.check(&node(&format!("n{at}"), 1), SALT, 0), Seen::New);
        }
        assert!(guard.senders.len() <= SENDERS_MAX);
        assert_eq!(guard.check(&node("keeper", 1), SALT, 0), Seen::Before);
    }

    proptest! {
        #[test]
        fn the_window_agrees_with_a_set(steps in prop::collection::vec((0_u64..300, any::<bool>()), 1..400)) {
            let mut window = Window::default();
            let mut seen = BTreeSet::new();
            let mut base = 0;
            for (offset, jump) in steps {
                if jump { base += offset * 5; }
                let number = base + offset;
                let highest = seen.last().copied().unwrap_or(0);
                let is_new = window.insert(number);
                if number + WINDOW > highest {
                    prop_assert_eq!(is_new, !seen.contains(&number), "{}", number);
                } else {
                    prop_assert!(!is_new || !seen.contains(&number), "{}", number);
                }
                seen.insert(number);
            }
        }

        #[test]
        fn no_number_is_new_twice(numbers in prop::collection::vec(any::<u64>(), 1..200)) {
            let mut window = Window::default();
            let mut accepted = BTreeSet::new();
            for number in numbers.iter().chain(&numbers) {
                if window.insert(*number) {
                    prop_assert!(accepted.insert(*number));
                }
            }
        }
    }
}
