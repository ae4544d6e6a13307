//! Which news to pass on, and how often.
//!
//! The queue holds *about whom* there is news, never the news itself: what is sent is always the
//! present belief, so a rumour that was overtaken while it waited costs nothing.

use std::collections::BTreeMap;

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
    urgent: bool,
}

/// News waiting to be passed on, each a bounded number of times.
#[derive(Debug, Default)]
pub(crate) struct Rumours(BTreeMap<(NodeName, Kind), Spread>);

impl Rumours {
    /// Starts passing on the present belief about `name` afresh.
    pub(crate) fn spread(&mut self, name: NodeName, kind: Kind, urgent: bool) {
        if kind == Kind::Whole {
            // Everything about a member includes its standing.
            self.0.remove(&(name.clone(), Kind::Standing));
        } else if let Some(whole) = self.0.get_mut(&(name.clone(), Kind::Whole)) {
            *whole = Spread { sent: 0, urgent: whole.urgent || urgent };
            return;
        }
        self.0.insert((name, kind), Spread { sent: 0, urgent });
        if self.0.len() > RUMOURS_MAX
            && let Some(stalest) = self.in_order().pop()
        {
            self.0.remove(&stalest);
        }
    }

    pub(crate) fn forget(&mut self, name: &NodeName) {
        self.0.remove(&(name.clone(), Kind::Standing));
        self.0.remove(&(name.clone(), Kind::Whole));
    }

    /// Everything waiting, the least often sent first.
    pub(crate) fn in_order(&self) -> Vec<(NodeName, Kind)> {
        let mut waiting: Vec<_> = self.0.iter().collect();
        waiting.sort_by_key(|((_, kind), spread)| (spread.sent, *kind));
        waiting.into_iter().map(|(key, _)| key.clone()).collect()
    }

    /// Notes that the news was put into one packet; after `limit` times it is old.
    pub(crate) fn sent(&mut self, key: &(NodeName, Kind), limit: u32) {
        if let Some(spread) = self.0.get_mut(key) {
            spread.sent += 1;
            if spread.sent >= limit {
                self.0.remove(key);
            }
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn is_urgent(&self) -> bool {
        self.0.values().any(|spread| spread.urgent)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.0.len()
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
            assert_eq!(rumours.in_order(), std::slice::from_ref(&key));
            rumours.sent(&key, transmissions(3));
        }
        assert!(rumours.is_empty() && !rumours.is_urgent());
    }

    #[test]
    fn the_least_often_sent_goes_first_and_states_before_metadata() {
        let mut rumours = Rumours::default();
        rumours.spread(name(1), Kind::Whole, false);
        rumours.spread(name(2), Kind::Standing, true);
        rumours.spread(name(3), Kind::Standing, true);
        rumours.sent(&(name(2), Kind::Standing), 9);
        let order: Vec<_> = rumours.in_order().into_iter().map(|(name, _)| name).collect();
        assert_eq!(order, [name(3), name(1), name(2)]);
    }

    #[test]
    fn everything_about_a_member_includes_its_state() {
        let mut rumours = Rumours::default();
        rumours.spread(name(1), Kind::Standing, true);
        rumours.spread(name(1), Kind::Whole, false);
        rumours.spread(name(1), Kind::Standing, true);
        assert_eq!(rumours.in_order(), [(name(1), Kind::Whole)]);
        assert!(rumours.is_urgent());
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
