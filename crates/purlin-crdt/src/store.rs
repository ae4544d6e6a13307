//! What is kept under which dots, and how two replicas' stores join.
//!
//! One rule decides every join: an item survives if both sides have it, or if the side that lacks
//! it has not seen its dot. Seen but absent means deleted; unseen and absent means not yet heard.

use std::{borrow::Borrow, collections::BTreeMap, fmt, ops::Bound};

use purlin_core::Dot;
use serde::{Deserialize, Serialize};

use crate::{
    Replica,
    context::{Dots, Knows},
};

/// How much of the other side's store is before us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// All of it: what the other side lacks but has seen, it deleted.
    Whole,
    /// Only the keys it names, as in a delta: nothing is said about any other key.
    Named,
}

/// Items kept under dots, joined by the rule of this module.
pub trait DotStore<R: Replica>: Default + Clone {
    /// Whether nothing is kept, not even a dot.
    fn is_empty(&self) -> bool;

    /// Calls `visit` with every dot kept.
    fn dots(&self, visit: &mut dyn FnMut(&Dot<R>));

    /// Joins `other`, whose owner has seen `theirs`, into `self`, whose owner has seen `ours`.
    fn join(&mut self, ours: &impl Knows<R>, other: &Self, theirs: &impl Knows<R>, scope: Scope);

    /// Joins two deltas' stores into the store of a delta that does what both do: like
    /// [`DotStore::join`], but keys stay named after their last item is gone.
    fn merge(&mut self, ours: &impl Knows<R>, other: &Self, theirs: &impl Knows<R>);

    /// The same names, without the items: what a delta says to remove all that is kept here.
    #[must_use]
    fn emptied(&self) -> Self;
}

/// Dots alone: their presence is the information.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent, bound(deserialize = "R: Ord + Deserialize<'de>"))]
pub struct DotSet<R>(DotFun<R, ()>);

/// Values, each under the dot of the write that made it.
///
/// Mostly one value, so it is a sorted vector rather than a tree.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct DotFun<R, V>(Vec<(Dot<R>, V)>);

impl<'de, R: Ord + Deserialize<'de>, V: Deserialize<'de>> Deserialize<'de> for DotFun<R, V> {
    /// Refuses dots that repeat or stand out of order: equal stores must have one form.
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let items = Vec::<(Dot<R>, V)>::deserialize(input)?;
        if items.is_sorted_by(|(a, _), (b, _)| a < b) {
            Ok(Self(items))
        } else {
            Err(serde::de::Error::custom("dots repeat or stand out of order"))
        }
    }
}

impl<R, V> Default for DotFun<R, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<R> Default for DotSet<R> {
    fn default() -> Self {
        Self(DotFun::default())
    }
}

impl<R: fmt::Debug, V: fmt::Debug> fmt::Debug for DotFun<R, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(dot, value)| (dot, value))).finish()
    }
}

impl<R: fmt::Debug> fmt::Debug for DotSet<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.0.iter().map(|(dot, ())| dot)).finish()
    }
}

impl<R: Replica, V> DotFun<R, V> {
    /// One value under one dot.
    #[must_use]
    pub fn one(dot: Dot<R>, value: V) -> Self {
        Self(vec![(dot, value)])
    }

    /// The values, in dot order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    /// The values with their dots, in dot order.
    pub fn iter(&self) -> impl Iterator<Item = (&Dot<R>, &V)> {
        self.0.iter().map(|(dot, value)| (dot, value))
    }

    /// Puts `value` under `dot`, in place of all that is kept; returns the dots of that.
    pub fn replace(&mut self, dot: Dot<R>, value: V) -> Dots<R> {
        let replaced = self.0.iter().map(|(dot, _)| dot.clone()).collect();
        self.0.clear();
        self.0.push((dot, value));
        replaced
    }

    /// Puts `value` under `dot`, in place of what `node` keeps here; returns the dots of that.
    pub fn replace_own(&mut self, dot: Dot<R>, value: V) -> Dots<R> {
        let own = |(kept, _): &(Dot<R>, V)| kept.node == dot.node;
        let replaced = self.0.iter().filter(|item| own(item)).map(|(dot, _)| dot.clone()).collect();
        self.0.retain(|item| !own(item));
        let at = self.0.partition_point(|(kept, _)| *kept < dot);
        self.0.insert(at, (dot, value));
        replaced
    }

    fn contains(&self, dot: &Dot<R>) -> bool {
        self.0.binary_search_by(|(kept, _)| kept.cmp(dot)).is_ok()
    }
}

impl<R: Replica> DotSet<R> {
    /// One dot.
    #[must_use]
    pub fn one(dot: Dot<R>) -> Self {
        Self(DotFun::one(dot, ()))
    }

    /// Puts `dot` in place of all that are kept; returns those.
    pub fn replace(&mut self, dot: Dot<R>) -> Dots<R> {
        self.0.replace(dot, ())
    }

    /// The dots, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Dot<R>> {
        self.0.iter().map(|(dot, ())| dot)
    }
}

impl<R: Replica, V: Clone> DotStore<R> for DotFun<R, V> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn dots(&self, visit: &mut dyn FnMut(&Dot<R>)) {
        self.0.iter().for_each(|(dot, _)| visit(dot));
    }

    fn join(&mut self, ours: &impl Knows<R>, other: &Self, theirs: &impl Knows<R>, _: Scope) {
        self.0.retain(|(dot, _)| !theirs.contains(dot) || other.contains(dot));
        for (dot, value) in &other.0 {
            if !ours.contains(dot)
                && let Err(at) = self.0.binary_search_by(|(kept, _)| kept.cmp(dot))
            {
                self.0.insert(at, (dot.clone(), value.clone()));
            }
        }
    }

    fn merge(&mut self, ours: &impl Knows<R>, other: &Self, theirs: &impl Knows<R>) {
        self.join(ours, other, theirs, Scope::Named);
    }

    fn emptied(&self) -> Self {
        Self::default()
    }
}

impl<R: Replica> DotStore<R> for DotSet<R> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn dots(&self, visit: &mut dyn FnMut(&Dot<R>)) {
        self.0.dots(visit);
    }

    fn join(&mut self, ours: &impl Knows<R>, other: &Self, theirs: &impl Knows<R>, scope: Scope) {
        self.0.join(ours, &other.0, theirs, scope);
    }

    fn merge(&mut self, ours: &impl Knows<R>, other: &Self, theirs: &impl Knows<R>) {
        self.0.merge(ours, &other.0, theirs);
    }

    fn emptied(&self) -> Self {
        Self::default()
    }
}

/// Two stores side by side under one context.
impl<R: Replica, A: DotStore<R>, B: DotStore<R>> DotStore<R> for (A, B) {
    fn is_empty(&self) -> bool {
        self.0.is_empty() && self.1.is_empty()
    }

    fn dots(&self, visit: &mut dyn FnMut(&Dot<R>)) {
        self.0.dots(visit);
        self.1.dots(visit);
    }

    fn join(&mut self, ours: &impl Knows<R>, other: &Self, theirs: &impl Knows<R>, scope: Scope) {
        self.0.join(ours, &other.0, theirs, scope);
        self.1.join(ours, &other.1, theirs, scope);
    }

    fn merge(&mut self, ours: &impl Knows<R>, other: &Self, theirs: &impl Knows<R>) {
        self.0.merge(ours, &other.0, theirs);
        self.1.merge(ours, &other.1, theirs);
    }

    fn emptied(&self) -> Self {
        (self.0.emptied(), self.1.emptied())
    }
}

/// A store per key. In a state no key is without items; in a delta a key without items names
/// what was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DotMap<K: Ord, S>(BTreeMap<K, S>);

impl<K: Ord, S> Default for DotMap<K, S> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: Ord, S> DotMap<K, S> {
    /// One store under one key.
    #[must_use]
    pub fn one(key: K, store: S) -> Self {
        // Cheaper than from an array, which would be sorted first: most deltas are of one key.
        let mut one = BTreeMap::new();
        one.insert(key, store);
        Self(one)
    }

    /// What is kept under `key`.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&S>
    where
        K: Borrow<Q>,
    {
        self.0.get(key)
    }

    /// Every key with what is kept under it, in order.
    #[must_use]
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &S)> {
        self.0.iter()
    }

    /// The keys from `from` to `to` with what is kept under them, in order.
    #[must_use]
    pub fn range<'a, Q: Ord + ?Sized>(
        &'a self,
        from: Bound<&Q>,
        to: Bound<&Q>,
    ) -> impl DoubleEndedIterator<Item = (&'a K, &'a S)> + use<'a, K, S, Q>
    where
        K: Borrow<Q>,
    {
        self.0.range((from, to))
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keeps only the entries for which `keep` says so.
    pub(crate) fn retain(&mut self, keep: impl FnMut(&K, &mut S) -> bool) {
        self.0.retain(keep);
    }

    /// Joins `store`, what the other side keeps under `key`, into what is kept here; a side that
    /// keeps nothing is an empty store. For callers that keep the contexts themselves: `ours` must
    /// be what was seen *before* `store` was heard, and its dots be noted afterwards.
    pub fn join_key<R: Replica>(
        &mut self,
        key: &K,
        ours: &impl Knows<R>,
        store: &S,
        theirs: &impl Knows<R>,
        scope: Scope,
    ) where
        K: Clone,
        S: DotStore<R>,
    {
        if let Some(kept) = self.0.get_mut(key) {
            kept.join(ours, store, theirs, scope);
            if kept.is_empty() {
                self.0.remove(key);
            }
        } else {
            let mut heard = S::default();
            heard.join(ours, store, theirs, scope);
            if !heard.is_empty() {
                self.0.insert(key.clone(), heard);
            }
        }
    }

    /// What is kept under `key`, to be changed in place; made empty if there is nothing.
    pub fn entry(&mut self, key: K) -> &mut S
    where
        S: Default,
    {
        self.0.entry(key).or_default()
    }

    /// Takes `key` out without a trace: not a removal, which others would hear of.
    pub fn forget(&mut self, key: &K) {
        self.0.remove(key);
    }

    /// Takes out what is kept under `key`.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<S>
    where
        K: Borrow<Q>,
    {
        self.0.remove(key)
    }

    /// Sets what is kept under `key`.
    pub fn set(&mut self, key: K, store: S) {
        self.0.insert(key, store);
    }
}

impl<K: Ord + Clone, R: Replica, S: DotStore<R>> DotStore<R> for DotMap<K, S> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn dots(&self, visit: &mut dyn FnMut(&Dot<R>)) {
        self.0.values().for_each(|store| store.dots(visit));
    }

    fn join(&mut self, ours: &impl Knows<R>, other: &Self, theirs: &impl Knows<R>, scope: Scope) {
        for (key, store) in &other.0 {
            self.join_key(key, ours, store, theirs, scope);
        }
        if scope == Scope::Whole {
            let nothing = S::default();
            self.0.retain(|key, kept| {
                if !other.0.contains_key(key) {
                    kept.join(ours, &nothing, theirs, scope);
                }
                !kept.is_empty()
            });
        }
    }

    fn merge(&mut self, ours: &impl Knows<R>, other: &Self, theirs: &impl Knows<R>) {
        for (key, store) in &other.0 {
            self.0.entry(key.clone()).or_default().merge(ours, store, theirs);
        }
    }

    fn emptied(&self) -> Self {
        self.iter().map(|(key, store)| (key.clone(), store.emptied())).collect()
    }
}
