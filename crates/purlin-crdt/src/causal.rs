//! Whole states and the deltas that change them.

use std::fmt;

use purlin_core::Dot;
use serde::{Deserialize, Serialize};

use crate::{CausalContext, DotMap, DotStore, Lattice, Replica, context::Dots, store::Scope};

/// A replica's whole state: what it keeps, and every dot it has seen.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S: Serialize, R: Serialize",
    deserialize = "S: Deserialize<'de>, R: Deserialize<'de>"
))]
pub struct Causal<R: Replica, S> {
    store: S,
    context: CausalContext<R>,
}

/// One or more updates: small, self-contained, joined into any state in any order.
///
/// It names every key it touches, also those it empties, and its context holds only dots of those
/// keys. So joining it costs what it holds, not what the state holds, and says nothing about keys
/// it does not name.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "S: Serialize, R: Serialize",
    deserialize = "S: Deserialize<'de>, R: Deserialize<'de>"
))]
#[must_use = "a delta that is not sent is an update nobody else hears of"]
pub struct Delta<R: Replica, S> {
    store: S,
    context: Dots<R>,
}

impl<R: Replica, S: Default> Default for Causal<R, S> {
    fn default() -> Self {
        Self { store: S::default(), context: CausalContext::new() }
    }
}

impl<R: Replica, S: fmt::Debug> fmt::Debug for Causal<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Causal").field("store", &self.store).field("seen", &self.context).finish()
    }
}

impl<R: Replica, S: fmt::Debug> fmt::Debug for Delta<R, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delta").field("store", &self.store).field("seen", &self.context).finish()
    }
}

impl<R: Replica, S: DotStore<R>> Causal<R, S> {
    /// What is kept.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// What was seen.
    #[must_use]
    pub fn context(&self) -> &CausalContext<R> {
        &self.context
    }

    /// Writes as `replica`: `change` gets the present store and a fresh dot and says what to keep
    /// in place of what it names. Everything kept under the names given is replaced.
    pub(crate) fn write(
        &mut self,
        replica: &R,
        change: impl FnOnce(&S, Dot<R>) -> Change<S>,
    ) -> Delta<R, S>
    where
        R: Replica,
    {
        let dot = self.context.next_dot(replica);
        let Change { store, replaced } = change(&self.store, dot.clone());
        self.apply(store, replaced, std::iter::once(dot).collect())
    }

    /// Removes what `change` names without writing anything in its place.
    pub(crate) fn withdraw(&mut self, change: impl FnOnce(&S) -> Change<S>) -> Delta<R, S> {
        let Change { store, replaced } = change(&self.store);
        self.apply(store, replaced, Dots::default())
    }

    fn apply(&mut self, store: S, replaced: S, mut context: Dots<R>) -> Delta<R, S> {
        replaced.dots(&mut |dot| context.insert(dot.clone()));
        let delta = Delta { store, context };
        // The state has seen the fresh dot but does not keep it yet: join as one who has not.
        self.store.join(&Dots::default(), &delta.store, &delta.context, Scope::Named);
        delta
    }

    /// As [`Causal::update_with`] for a store that stands alone.
    pub(crate) fn write_with(
        &mut self,
        replica: &R,
        count: u64,
        change: impl FnOnce(&mut S, Dot<R>) -> S,
    ) -> Delta<R, S> {
        let dot = self.context.next_dots(replica, count);
        let mut context = Dots::default();
        context.insert_span(dot.node.clone(), dot.counter, dot.counter + (count - 1));
        Delta { store: change(&mut self.store, dot), context }
    }

    /// As [`Causal::withdraw_in_place`] for a store that stands alone.
    pub(crate) fn withdraw_with(&mut self, change: impl FnOnce(&mut S) -> Dots<R>) -> Delta<R, S> {
        Delta { context: change(&mut self.store), store: S::default() }
    }

    /// Changes how the store keeps what it keeps, without telling anybody.
    pub(crate) fn change_unseen(&mut self, change: impl FnOnce(&mut S)) {
        change(&mut self.store);
    }

    /// Takes in an update. Costs what the delta holds.
    pub fn join_delta(&mut self, delta: &Delta<R, S>) {
        self.store.join(&self.context, &delta.store, &delta.context, Scope::Named);
        self.context.insert_all(&delta.context);
    }
}

/// What a write keeps, and what it replaces.
pub(crate) struct Change<S> {
    pub(crate) store: S,
    pub(crate) replaced: S,
}

impl<R: Replica, S: DotStore<R>> Lattice for Causal<R, S> {
    fn join(&mut self, other: &Self) {
        self.store.join(&self.context, &other.store, &other.context, Scope::Whole);
        self.context.join(&other.context);
    }
}

impl<R: Replica, S: DotStore<R>> Lattice for Delta<R, S> {
    /// Makes one delta that does what both do: how a sender batches.
    fn join(&mut self, other: &Self) {
        self.store.merge(&self.context, &other.store, &other.context);
        self.context.join(&other.context);
    }
}

impl<R: Replica, S: DotStore<R>> Delta<R, S> {
    /// An update made by a caller that keeps store and context itself: `context` must hold every
    /// dot of `store` and every dot it replaces or removes, and `store` must name their keys.
    pub fn new(store: S, context: Dots<R>) -> Self {
        Self { store, context }
    }

    /// What it writes and the dots it brings and removes.
    #[must_use]
    pub fn into_inner(self) -> (S, Dots<R>) {
        (self.store, self.context)
    }

    /// What it writes.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.store
    }

    /// The dots it brings and removes.
    #[must_use]
    pub fn context(&self) -> &Dots<R> {
        &self.context
    }
}

impl<R: Replica, K: Ord + Clone, S: DotStore<R>> Causal<R, DotMap<K, S>> {
    /// Changes what is kept under `key` in place, as `replica`: the fast way for a writer.
    ///
    /// `change` gets the present store and a fresh dot. It must put the dot into it, may take out
    /// whatever it replaces, and returns what the delta holds: what was put in, under the same
    /// names, and the dots that were taken out. The result must be what joining that delta gives.
    pub fn update_in_place(
        &mut self,
        replica: &R,
        key: K,
        change: impl FnOnce(&mut S, Dot<R>) -> (S, Dots<R>),
    ) -> Delta<R, DotMap<K, S>> {
        self.update_with(replica, 1, key, change)
    }

    /// As [`Causal::update_in_place`] for a change that takes `count` dots, which follow each other:
    /// `change` gets the first and must put in all of them.
    pub fn update_with(
        &mut self,
        replica: &R,
        count: u64,
        key: K,
        change: impl FnOnce(&mut S, Dot<R>) -> (S, Dots<R>),
    ) -> Delta<R, DotMap<K, S>> {
        let dot = self.context.next_dots(replica, count);
        let last = dot.counter + (count - 1);
        let (store, mut context) = change(self.store.entry(key.clone()), dot.clone());
        context.insert_span(dot.node, dot.counter, last);
        Delta { store: DotMap::one(key, store), context }
    }

    /// Takes out a part of what is kept under `key` in place: the fast way for a writer.
    ///
    /// `change` returns the dots that it took out; it must not put anything in, and what it leaves
    /// must be what joining a delta with those dots and nothing in its store gives.
    pub fn withdraw_in_place(
        &mut self,
        key: K,
        change: impl FnOnce(&mut S) -> Dots<R>,
    ) -> Delta<R, DotMap<K, S>> {
        let kept = self.store.entry(key.clone());
        let context = change(kept);
        if kept.is_empty() {
            self.store.forget(&key);
        }
        Delta { store: DotMap::one(key, S::default()), context }
    }

    /// Compares `entries`, all that another replica keeps in a range of keys, with what is kept
    /// here under the same keys, and takes in the difference: how a state travels in pieces.
    ///
    /// `named` are the keys of that range kept *here*; `theirs` is everything the other has seen.
    /// Nothing is noted as seen except what `entries` hold: whoever notes `theirs` before all
    /// pieces have arrived would take the missing pieces for deletes. After the last piece call
    /// [`Causal::absorb`].
    pub fn join_piece(
        &mut self,
        entries: &DotMap<K, S>,
        named: impl IntoIterator<Item = K>,
        theirs: &CausalContext<R>,
    ) {
        let nothing = S::default();
        let absent = named.into_iter().filter(|key| entries.get(key).is_none());
        for key in absent {
            self.store.join_key(&key, &self.context, &nothing, theirs, Scope::Whole);
        }
        for (key, store) in entries.iter() {
            self.store.join_key(key, &self.context, store, theirs, Scope::Whole);
        }
        entries.dots(&mut |dot| self.context.insert(dot));
    }

    /// Keeps only entries for which `keep` says so, without a trace of the others.
    pub(crate) fn retain_entries(&mut self, keep: impl Fn(&S) -> bool) {
        self.store.retain(|_, store| keep(store));
    }

    /// Sets what is kept under `key` to what was kept here before, and notes its dots as seen: for
    /// reading back a replica's own state, never for what another one says.
    pub fn restore(&mut self, key: K, kept: Option<S>) {
        match kept {
            Some(store) => {
                store.dots(&mut |dot| self.context.insert(dot));
                self.store.set(key, store);
            }
            None => self.store.forget(&key),
        }
    }

    /// Notes that every piece of a state seen as `theirs` has arrived.
    pub fn absorb(&mut self, theirs: &CausalContext<R>) {
        self.context.join(theirs);
    }
}

impl<K: Ord, S> FromIterator<(K, S)> for DotMap<K, S> {
    fn from_iter<T: IntoIterator<Item = (K, S)>>(entries: T) -> Self {
        let mut map = Self::default();
        for (key, store) in entries {
            map.set(key, store);
        }
        map
    }
}
