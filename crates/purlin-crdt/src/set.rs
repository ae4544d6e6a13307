//! Sets: grow-only, add-wins and remove-wins.
//!
//! # Source
//! Shapiro et al. 2011 (G-Set, OR-Set); Bieniusa et al. 2012 (OR-Set without tombstones);
//! Almeida et al. 2018, §7 (remove-wins set).

use std::{borrow::Borrow, collections::BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    Causal, CausalContext, Delta, DotMap, DotSet, DotStore, Knows, Lattice, Replica, causal::Change,
};

/// A set that only grows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GSet<E: Ord>(BTreeSet<E>);

impl<E: Ord> Default for GSet<E> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<E: Ord + Clone> GSet<E> {
    /// Adds `element` and returns the delta.
    #[must_use = "a delta that is not sent is an update nobody else hears of"]
    pub fn insert(&mut self, element: E) -> Self {
        self.0.insert(element.clone());
        Self(BTreeSet::from([element]))
    }

    /// Whether `element` was added.
    pub fn contains<Q: Ord + ?Sized>(&self, element: &Q) -> bool
    where
        E: Borrow<Q>,
    {
        self.0.contains(element)
    }

    /// The elements, in order.
    pub fn iter(&self) -> impl Iterator<Item = &E> {
        self.0.iter()
    }
}

impl<E: Ord + Clone> Lattice for GSet<E> {
    fn join(&mut self, other: &Self) {
        self.0.extend(other.0.iter().cloned());
    }
}

/// A set in which an add wins over a concurrent remove.
///
/// A removed element leaves nothing behind but its place in the context.
pub type OrSet<R, E> = Causal<R, DotMap<E, DotSet<R>>>;

impl<R: Replica, E: Ord + Clone> OrSet<R, E> {
    /// Adds `element` as `replica`.
    pub fn insert(&mut self, replica: &R, element: E) -> Delta<R, DotMap<E, DotSet<R>>> {
        self.write(replica, |set, dot| Change {
            replaced: DotMap::one(element.clone(), set.get(&element).cloned().unwrap_or_default()),
            store: DotMap::one(element, DotSet::one(dot)),
        })
    }

    /// Removes every add of `element` seen here; adds not yet seen survive.
    pub fn remove(&mut self, element: E) -> Delta<R, DotMap<E, DotSet<R>>> {
        Self::remove_key(self, element)
    }

    /// Whether `element` is in the set.
    pub fn contains<Q: Ord + ?Sized>(&self, element: &Q) -> bool
    where
        E: Borrow<Q>,
    {
        self.store().get(element).is_some()
    }

    /// The elements, in order.
    pub fn iter(&self) -> impl Iterator<Item = &E> {
        self.store().iter().map(|(element, _)| element)
    }
}

/// What a remove-wins element keeps: dots of adds, dots of removes.
type AddsRemoves<R> = (DotSet<R>, DotSet<R>);

/// A set in which a remove wins over a concurrent add.
///
/// For that a remove must be remembered: one dot per removed element, until
/// [`RwSet::prune`] is told that everybody has seen it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(
    serialize = "R: Serialize, E: Serialize",
    deserialize = "R: Deserialize<'de>, E: Deserialize<'de>"
))]
pub struct RwSet<R: Replica, E: Ord>(Causal<R, DotMap<E, AddsRemoves<R>>>);

impl<R: Replica, E: Ord> Default for RwSet<R, E> {
    fn default() -> Self {
        Self(Causal::default())
    }
}

impl<R: Replica, E: Ord + Clone> RwSet<R, E> {
    /// Adds `element` as `replica`.
    pub fn insert(&mut self, replica: &R, element: E) -> Delta<R, DotMap<E, AddsRemoves<R>>> {
        self.mark(replica, element, |dot| (dot, DotSet::default()))
    }

    /// Removes `element` as `replica`, and wins over adds made meanwhile elsewhere.
    pub fn remove(&mut self, replica: &R, element: E) -> Delta<R, DotMap<E, AddsRemoves<R>>> {
        self.mark(replica, element, |dot| (DotSet::default(), dot))
    }

    fn mark(
        &mut self,
        replica: &R,
        element: E,
        marks: impl FnOnce(DotSet<R>) -> AddsRemoves<R>,
    ) -> Delta<R, DotMap<E, AddsRemoves<R>>> {
        self.0.write(replica, |set, dot| Change {
            replaced: DotMap::one(element.clone(), set.get(&element).cloned().unwrap_or_default()),
            store: DotMap::one(element, marks(DotSet::one(dot))),
        })
    }

    /// Whether `element` is in the set.
    pub fn contains<Q: Ord + ?Sized>(&self, element: &Q) -> bool
    where
        E: Borrow<Q>,
    {
        self.0.store().get(element).is_some_and(is_in)
    }

    /// The elements, in order.
    pub fn iter(&self) -> impl Iterator<Item = &E> {
        self.0.store().iter().filter(|(_, marks)| is_in(marks)).map(|(element, _)| element)
    }

    /// Takes in an update.
    pub fn join_delta(&mut self, delta: &Delta<R, DotMap<E, AddsRemoves<R>>>) {
        self.0.join_delta(delta);
    }

    /// Forgets removed elements whose removal everybody has seen, as `stable` says. Sound only if
    /// no update made without having seen them can still arrive.
    pub fn prune(&mut self, stable: &CausalContext<R>) {
        self.0.forget(|(adds, removes)| {
            adds.is_empty() && removes.iter().all(|dot| Knows::contains(stable, dot))
        });
    }

    /// What was seen.
    #[must_use]
    pub fn context(&self) -> &CausalContext<R> {
        self.0.context()
    }
}

fn is_in<R: Replica>((adds, removes): &AddsRemoves<R>) -> bool {
    !adds.is_empty() && removes.is_empty()
}

impl<R: Replica, E: Ord + Clone> Lattice for RwSet<R, E> {
    fn join(&mut self, other: &Self) {
        self.0.join(&other.0);
    }
}
