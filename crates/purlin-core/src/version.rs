//! In what causal order: dots and version vectors.
//!
//! A dot names one event of one node's life; a version vector says how many events of each life
//! somebody has seen. Together they tell "I have not seen it" from "I have seen it and it was
//! deleted", which timestamps alone cannot.
//!
//! # Source
//! Parker et al. 1983 (version vectors); Almeida et al. 2014 (dots, dotted version vectors).

use std::{cmp::Ordering, collections::BTreeMap};

use serde::{Deserialize, Serialize};

use crate::NodeId;

/// One event: the `counter`-th of one life of a node, counted from 1.
///
/// `N` names the life: a [`NodeId`], or something smaller that stands for one where millions of
/// dots are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Dot<N = NodeId> {
    /// Whose event it is.
    pub node: N,
    /// Which of its events, from 1.
    pub counter: u64,
}

/// How many events of each node's life have been seen, without gaps.
///
/// Grows by one entry per life that ever wrote; [`VersionVector::retain`] prunes lives that the
/// membership has retired. Ordered, so that iteration is the same everywhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct VersionVector<N: Ord = NodeId>(BTreeMap<N, u64>);

impl<N: Ord> Default for VersionVector<N> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<N: Ord + Clone> VersionVector<N> {
    /// A vector that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// How many events of `node` have been seen.
    #[must_use]
    pub fn get(&self, node: &N) -> u64 {
        self.0.get(node).copied().unwrap_or(0)
    }

    /// Counts the next event of `node` and returns its dot.
    pub fn next_dot(&mut self, node: &N) -> Dot<N> {
        let counter = self.0.entry(node.clone()).or_insert(0);
        *counter += 1;
        Dot { node: node.clone(), counter: *counter }
    }

    /// Whether the event of `dot` has been seen.
    #[must_use]
    pub fn contains(&self, dot: &Dot<N>) -> bool {
        self.get(&dot.node) >= dot.counter
    }

    /// Notes that `dot` was seen. Returns false, and changes nothing, when an earlier event of the
    /// same node is missing: a vector has no gaps. Seeing a dot twice is harmless.
    #[must_use = "false means the dot was not noted"]
    pub fn advance(&mut self, dot: &Dot<N>) -> bool {
        let seen = self.get(&dot.node);
        if dot.counter == seen + 1 {
            self.0.insert(dot.node.clone(), dot.counter);
        }
        dot.counter <= seen + 1
    }

    /// Takes note of everything `other` has seen: the least upper bound of both.
    pub fn join(&mut self, other: &Self) {
        for (node, &counter) in &other.0 {
            let seen = self.0.entry(node.clone()).or_insert(0);
            *seen = (*seen).max(counter);
        }
    }

    /// Keeps only the lives for which `keep` says so: how a membership epoch retires the dead.
    pub fn retain(&mut self, mut keep: impl FnMut(&N) -> bool) {
        self.0.retain(|node, _| keep(node));
    }

    /// Each life that wrote, with how many of its events were seen, in order.
    pub fn iter(&self) -> impl Iterator<Item = (&N, u64)> {
        self.0.iter().map(|(node, &counter)| (node, counter))
    }

    /// How many lives it knows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has seen nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|(node, &counter)| self.get(node) >= counter)
    }
}

impl<N: Ord + Clone> PartialOrd for VersionVector<N> {
    /// `None` when each has seen something the other has not: the two are concurrent.
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self.covers(other), other.covers(self)) {
            (true, true) => Some(Ordering::Equal),
            (true, false) => Some(Ordering::Greater),
            (false, true) => Some(Ordering::Less),
            (false, false) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Incarnation, NodeName};

    fn node(number: u64) -> NodeId {
        NodeId::new(NodeName::parse("n").unwrap(), Incarnation(number))
    }

    fn vectors() -> impl Strategy<Value = VersionVector> {
        prop::collection::btree_map((0..4_u64).prop_map(node), 1..5_u64, 0..4)
            .prop_map(VersionVector)
    }

    fn joined(a: &VersionVector, b: &VersionVector) -> VersionVector {
        let mut joined = a.clone();
        joined.join(b);
        joined
    }

    #[test]
    fn two_lives_of_one_node_count_apart() {
        let mut seen = VersionVector::new();
        assert_eq!(seen.next_dot(&node(1)).counter, 1);
        assert_eq!(seen.next_dot(&node(2)).counter, 1);
        assert_eq!(seen.next_dot(&node(1)).counter, 2);
        assert!(!seen.contains(&Dot { node: node(2), counter: 2 }));
    }

    #[test]
    fn a_gap_is_not_noted() {
        let mut seen = VersionVector::new();
        assert!(!seen.advance(&Dot { node: node(1), counter: 2 }));
        assert!(seen.is_empty());
        assert!(seen.advance(&Dot { node: node(1), counter: 1 }));
        assert!(seen.advance(&Dot { node: node(1), counter: 1 }), "twice is harmless");
        assert_eq!(seen.get(&node(1)), 1);
    }

    proptest! {
        #[test]
        fn join_is_commutative_associative_and_idempotent(a in vectors(), b in vectors(), c in vectors()) {
            prop_assert_eq!(joined(&a, &b), joined(&b, &a));
            prop_assert_eq!(joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)));
            prop_assert_eq!(joined(&a, &a), a);
        }

        #[test]
        fn join_is_an_upper_bound(a in vectors(), b in vectors()) {
            let both = joined(&a, &b);
            prop_assert!(both >= a && both >= b);
        }

        #[test]
        fn the_order_is_antisymmetric(a in vectors(), b in vectors()) {
            let turned = b.partial_cmp(&a).map(Ordering::reverse);
            prop_assert_eq!(a.partial_cmp(&b), turned);
            prop_assert_eq!(a.partial_cmp(&b) == Some(Ordering::Equal), a == b);
        }
    }
}
