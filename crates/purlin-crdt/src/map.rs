//! Maps: an add-wins map of any causal type, and the add-wins map of last-writer-wins values.
//!
//! # Source
//! Almeida et al. 2018, §7.4 (OR-Map); the AWLWWMap is the type of Elixir's `delta_crdt`, here
//! ordered by hybrid logical clocks and synchronised without inferring deletes from absence.

use std::borrow::Borrow;

use purlin_core::{Dot, HlcTimestamp};

use crate::{Causal, Delta, DotFun, DotMap, DotStore, Replica, causal::Change};

/// A map from keys to any dot store, in which an update wins over a concurrent removal of its key.
///
/// Values nest: a `DotMap` as value is a map in the map, under the same context.
pub type OrMap<R, K, S> = Causal<R, DotMap<K, S>>;

impl<R: Replica, K: Ord + Clone, S: DotStore<R>> OrMap<R, K, S> {
    /// Changes what is kept under `key` as `replica`: `change` gets the present store and a fresh
    /// dot, and returns what to write and what of the present it replaces.
    pub fn update(
        &mut self,
        replica: &R,
        key: K,
        change: impl FnOnce(&S, Dot<R>) -> (S, S),
    ) -> Delta<R, DotMap<K, S>> {
        self.write(replica, |map, dot| {
            let nothing = S::default();
            let (store, replaced) = change(map.get(&key).unwrap_or(&nothing), dot);
            Change { store: DotMap::one(key.clone(), store), replaced: DotMap::one(key, replaced) }
        })
    }

    /// Removes everything seen here under `key`; updates not yet seen survive.
    pub fn remove_key(&mut self, key: K) -> Delta<R, DotMap<K, S>> {
        let present = self.store().get(&key).cloned().unwrap_or_default();
        self.remove_within(key, present)
    }

    /// Removes `seen`, a part of what is kept under `key`, such as one field of a nested map.
    pub fn remove_within(&mut self, key: K, seen: S) -> Delta<R, DotMap<K, S>> {
        self.withdraw(|_| Change {
            store: DotMap::one(key.clone(), seen.emptied()),
            replaced: DotMap::one(key, seen),
        })
    }

    /// Removes everything seen here under every key.
    pub fn clear(&mut self) -> Delta<R, DotMap<K, S>> {
        self.withdraw(|map| Change { store: map.emptied(), replaced: map.clone() })
    }

    /// Forgets entries for which `gone` says so, without telling anybody.
    pub(crate) fn forget(&mut self, gone: impl Fn(&S) -> bool) {
        self.retain_entries(|store| !gone(store));
    }
}

/// A map of values in which an update wins over a concurrent removal, and of two concurrent
/// updates the later by hybrid timestamp is read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(bound(
    serialize = "R: serde::Serialize, K: serde::Serialize, V: serde::Serialize",
    deserialize = "R: serde::Deserialize<'de>, K: serde::Deserialize<'de>, V: serde::Deserialize<'de>"
))]
pub struct AwLwwMap<R: Replica, K: Ord, V>(OrMap<R, K, Stamped<R, V>>);

/// What an [`AwLwwMap`] keeps under a key: each concurrent value with its time.
pub type Stamped<R, V> = DotFun<R, (HlcTimestamp, V)>;

/// An update of an [`AwLwwMap`].
pub type AwLwwDelta<R, K, V> = Delta<R, DotMap<K, Stamped<R, V>>>;

impl<R: Replica, K: Ord, V> Default for AwLwwMap<R, K, V> {
    fn default() -> Self {
        Self(Causal::default())
    }
}

impl<R: Replica, K: Ord + Clone, V: Clone + Ord> AwLwwMap<R, K, V> {
    /// Writes `value` under `key` as `replica` at `at`, over every value seen here.
    pub fn insert(
        &mut self,
        replica: &R,
        at: HlcTimestamp,
        key: K,
        value: V,
    ) -> AwLwwDelta<R, K, V> {
        self.0.update(replica, key, |present, dot| (DotFun::one(dot, (at, value)), present.clone()))
    }

    /// Removes every value seen here under `key`.
    pub fn remove(&mut self, key: K) -> AwLwwDelta<R, K, V> {
        self.0.remove_key(key)
    }

    /// Removes every entry seen here.
    pub fn clear(&mut self) -> AwLwwDelta<R, K, V> {
        self.0.clear()
    }

    /// The value under `key`.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        self.entry(key).map(|(_, value)| value)
    }

    /// The value under `key` and when it was written.
    pub fn entry<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&(HlcTimestamp, V)>
    where
        K: Borrow<Q>,
    {
        self.0.store().get(key).and_then(latest)
    }

    /// The entries in key order.
    #[must_use]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.0.store().iter().filter_map(|(key, kept)| Some((key, &latest(kept)?.1)))
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.store().len()
    }

    /// Whether there is no entry.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.store().is_empty()
    }

    /// Takes in an update.
    pub fn join_delta(&mut self, delta: &AwLwwDelta<R, K, V>) {
        self.0.join_delta(delta);
    }

    /// The causal map underneath: for synchronisation in pieces.
    #[must_use]
    pub fn causal(&self) -> &OrMap<R, K, Stamped<R, V>> {
        &self.0
    }

    /// The causal map underneath, to join pieces into.
    pub fn causal_mut(&mut self) -> &mut OrMap<R, K, Stamped<R, V>> {
        &mut self.0
    }
}

/// Of concurrent values the one with the latest time; the value decides between equal times.
fn latest<R: Replica, V: Ord>(kept: &Stamped<R, V>) -> Option<&(HlcTimestamp, V)> {
    kept.values().max()
}

impl<R: Replica, K: Ord + Clone, V: Clone + Ord> crate::Lattice for AwLwwMap<R, K, V> {
    fn join(&mut self, other: &Self) {
        self.0.join(&other.0);
    }
}
