//! Which news to pass on, and how often.
//!
//! The queue holds *about whom* there is news, never the news itself: what is sent is always the
//! present belief, so a rumour that was overtaken while it waited costs nothing.

use std::collections::{BTreeMap, BTreeSet};

use purlin_core::NodeName;

/// The most entries waiting; at the bound the one passed on most often is dropped. Full sync
/// carries what was dropped.
pub(crate) const RUMOURS_MAX: usize = 2_048;

/// What kind of news; the order is the order of sending among equals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A state changed: a few bytes, and somebody's timer may be running.
    Standing,
    /// A member is new or changed what it says of itself.
    Whole,
}

#[derive(Debug, Clone, Copy)]
struct Spread {
    sent: u32,
    /// Worth packets of its own, not only a ride on others.
    is_urgent: bool,
}

/// About whom, and what kind.
pub(crate) type Key = (NodeName, Kind);

/// News waiting to be passed on, each a bounded number of times.
#[derive(Debug, Default)]
pub(crate) struct Rumours {
    waiting: BTreeMap<Key, Spread>,
    /// The same, the least often sent first.
    order: BTreeSet<(u32, Kind, NodeName)>,
    urgent: usize,
}

impl Rumours {
    /// Starts passing on the present belief about `name` afresh.
    pub(crate) fn spread(&mut self, name: NodeName, kind: Kind, is_urgent: bool) {
        if kind == Kind::Whole {
            // Everything about a member includes its standing.
            self.remove(&(name.clone(), Kind::Standing));
            self.insert((name, kind), is_urgent);
        } else {
            let whole = (name, Kind::Whole);
            match self.remove(&whole) {
                Some(spread) => self.insert(whole, spread.is_urgent || is_urgent),
                None => self.insert((whole.0, kind), is_urgent),
            }
        }
        if self.waiting.len() > RUMOURS_MAX
            && let Some((_, kind, name)) = self.order.last().cloned()
        {
            self.remove(&(name, kind));
        }
    }

    pub(crate) fn forget(&mut self, name: &NodeName) {
        self.remove(&(name.clone(), Kind::Standing));
        self.remove(&(name.clone(), Kind::Whole));
    }

    /// Up to `count` of what is waiting, the least often sent first.
    pub(crate) fn first(&self, count: usize) -> Vec<Key> {
        self.order.iter().take(count).map(|(_, kind, name)| (name.clone(), *kind)).collect()
    }

    /// Notes that the news was put into one packet; after `limit` times it is old.
    pub(crate) fn sent(&mut self, key: &Key, limit: u32) {
        let Some(spread) = self.remove(key) else { return };
        let sent = spread.sent + 1;
        if sent < limit {
            self.put(key.clone(), Spread { sent, ..spread });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(crate) fn has_urgent(&self) -> bool {
        self.urgent > 0
    }

    fn insert(&mut self, key: Key, is_urgent: bool) {
        self.remove(&key);
        self.put(key, Spread { sent: 0, is_urgent });
    }

    fn put(&mut self, key: Key, spread: Spread) {
        self.urgent += usize::from(spread.is_urgent);
        self.order.insert((spread.sent, key.1, key.0.clone()));
        self.waiting.insert(key, spread);
    }

    fn remove(&mut self, key: &Key) -> Option<Spread> {
        let spread = self.waiting.remove(key)?;
        self.urgent -= usize::from(spread.is_urgent);
        self.order.remove(&(spread.sent, key.1, key.0.clone()));
        Some(spread)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        assert_eq!(self.waiting.len(), self.order.len());
        self.waiting.len()
    }
}

/// How often each node passes on one piece of news: a rumour sent `c·log n` times by everybody
/// who hears it reaches all but a vanishing part (SWIM §4.3); what it misses full sync carries.
pub(crate) fn transmissions(members: usize) -> u32 {
    3 + usize::BITS - members.leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(n: usize) -> NodeName {
        NodeName::parse(&format!("n{n}")).unwrap()
    }

    #[test]
    fn news_is_passed_on_a_bounded_number_of_times() {
        let mut rumours = Rumours::default();
        rumours.spread(name(1), Kind::Standing, true);
        let key = (name(1), Kind::Standing);
        for _ in 0..transmissions(3) {
            assert_eq!(rumours.first(9), std::slice::from_ref(&key));
            rumours.sent(&key, transmissions(3));
        }
        assert!(rumours.is_empty() && !rumours.has_urgent());
    }

    #[test]
    fn the_least_often_sent_goes_first_and_states_before_metadata() {
        let mut rumours = Rumours::default();
        rumours.spread(name(1), Kind::Whole, false);
        rumours.spread(name(2), Kind::Standing, true);
        rumours.spread(name(3), Kind::Standing, true);
        rumours.sent(&(name(2), Kind::Standing), 9);
        let order: Vec<_> = rumours.first(9).into_iter().map(|(name, _)| name).collect();
        assert_eq!(order, [name(3), name(1), name(2)]);
    }

    #[test]
    fn everything_about_a_member_includes_its_state() {
        let mut rumours = Rumours::default();
        rumours.spread(name(1), Kind::Standing, true);
        rumours.spread(name(1), Kind::Whole, false);
        rumours.spread(name(1), Kind::Standing, true);
        assert_eq!(rumours.first(9), [(name(1), Kind::Whole)]);
        assert!(rumours.has_urgent());
    }

    #[test]
    fn the_queue_is_bounded() {
        let mut rumours = Rumours::default();
        for n in 0..RUMOURS_MAX + 5 {
            rumours.spread(name(n), Kind::Standing, false);
        }
        assert_eq!(rumours.len(), RUMOURS_MAX);
    }
}
