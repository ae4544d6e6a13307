//! What moves when the members change: exactly, before anything moves.

use std::num::NonZeroUsize;

use crate::{KeyHash, Ring};

/// One key that changes hands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Move<K, N> {
    /// The key.
    pub key: K,
    /// Nodes that held it and no longer do.
    pub from: Vec<N>,
    /// Nodes that did not hold it and now do.
    pub to: Vec<N>,
}

/// The exact moves between two memberships, for keys that exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MovePlan<K, N> {
    /// Keys that change hands, in the order given.
    pub moves: Vec<Move<K, N>>,
    /// How many keys stay where they are.
    pub staying: usize,
}

impl<K, N: AsRef<str> + Clone + PartialEq> MovePlan<K, N> {
    /// Compares who holds each of `keys` on `before` and on `after`, with `replicas` holders each.
    pub fn between(
        before: &Ring<N>,
        after: &Ring<N>,
        keys: impl IntoIterator<Item = (K, KeyHash)>,
        replicas: NonZeroUsize,
    ) -> Self {
        let holders = |ring: &Ring<N>, hash| -> Vec<N> {
            ring.owners(hash, replicas).into_iter().map(|bucket| bucket.node.clone()).collect()
        };
        Self::of(
            keys.into_iter().map(|(key, hash)| (key, holders(before, hash), holders(after, hash))),
        )
    }
}

impl<K, N: Clone + PartialEq> MovePlan<K, N> {
    /// The plan for keys with those who held them and those who will.
    pub(crate) fn of(keys: impl Iterator<Item = (K, Vec<N>, Vec<N>)>) -> Self {
        let mut plan = Self { moves: Vec::new(), staying: 0 };
        for (key, old, new) in keys {
            let without = |nodes: &[N], others: &[N]| -> Vec<N> {
                nodes.iter().filter(|node| !others.contains(node)).cloned().collect()
            };
            let (from, to) = (without(&old, &new), without(&new, &old));
            if from.is_empty() && to.is_empty() {
                plan.staying += 1;
            } else {
                plan.moves.push(Move { key, from, to });
            }
        }
        plan
    }
}
