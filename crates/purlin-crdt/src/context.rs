//! What a replica has seen: every dot up to a point per life, and a few beyond it.
//!
//! A delete in a delta CRDT is the *absence* of a dot that the context says was seen. So the
//! context must be exact: one dot too many turns somebody's unseen write into a delete, which is
//! how other systems lose entries for good. Here a context never rounds up: dots received out of
//! order stay apart until the gap before them is filled.
//!
//! # Source
//! Almeida, Shoker, Baquero 2018, "Delta State Replicated Data Types", §4 (causal contexts);
//! the runs in place of a set of dots are ours.

use std::collections::BTreeMap;

use purlin_core::Dot;
use serde::{Deserialize, Serialize};

use crate::Replica;

/// Who can tell whether a dot was seen.
pub trait Knows<R> {
    /// Whether `dot` was seen.
    fn contains(&self, dot: &Dot<R>) -> bool;
}

impl<R: Replica> Knows<R> for CausalContext<R> {
    fn contains(&self, dot: &Dot<R>) -> bool {
        self.seen.get(&dot.node).is_some_and(|seen| seen.contains(dot.counter))
    }
}

/// Up to how many dots are put in one by one.
const FEW: usize = 8;

/// A few dots, such as one update brings and replaces: smaller and faster than a
/// [`CausalContext`], without its compression.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Dots<R>(Vec<Dot<R>>);

impl<R> Default for Dots<R> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, R: Ord + Deserialize<'de>> Deserialize<'de> for Dots<R> {
    /// Refuses dots that repeat or stand out of order.
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let dots = Vec::<Dot<R>>::deserialize(input)?;
        if dots.is_sorted_by(|a, b| a < b) {
            Ok(Self(dots))
        } else {
            Err(serde::de::Error::custom("dots repeat or stand out of order"))
        }
    }
}

impl<R: Replica> Dots<R> {
    /// Adds one dot.
    pub fn insert(&mut self, dot: Dot<R>) {
        match self.0.last() {
            Some(last) if *last >= dot => {
                if let Err(at) = self.0.binary_search(&dot) {
                    self.0.insert(at, dot);
                }
            }
            Some(_) | None => self.0.push(dot),
        }
    }

    /// Adds the dots of `other`.
    pub fn join(&mut self, other: &Self) {
        if other.0.len() <= FEW {
            // Batches grow by one update at a time: sorting them anew each time would cost more
            // than everything else.
            other.0.iter().for_each(|dot| self.insert(dot.clone()));
            return;
        }
        self.0.extend(other.0.iter().cloned());
        self.0.sort_unstable();
        self.0.dedup();
    }

    /// The dots, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Dot<R>> {
        self.0.iter()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<R: Replica> Knows<R> for Dots<R> {
    fn contains(&self, dot: &Dot<R>) -> bool {
        self.0.binary_search(dot).is_ok()
    }
}

impl<R: Replica> FromIterator<Dot<R>> for Dots<R> {
    fn from_iter<T: IntoIterator<Item = Dot<R>>>(dots: T) -> Self {
        let mut all = Self(dots.into_iter().collect());
        all.0.sort_unstable();
        all.0.dedup();
        all
    }
}

/// The dots of one life: all of `1..=upto`, and the runs beyond.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Seen {
    upto: u64,
    /// First and last dot of each run: ascending, disjoint, not adjacent, all above `upto + 1`.
    runs: BTreeMap<u64, u64>,
}

impl Seen {
    fn contains(&self, counter: u64) -> bool {
        counter <= self.upto
            || self.runs.range(..=counter).next_back().is_some_and(|(_, &last)| counter <= last)
    }

    /// Adds the run `first..=last` and melts it with what it touches.
    fn insert(&mut self, first: u64, last: u64) {
        if last <= self.upto || first > last {
            return;
        }
        let (mut first, mut last) = (first, last);
        // The one run before that may reach into ours, then all that start within or just after it.
        if let Some((&start, &end)) = self.runs.range(..=first).next_back()
            && end >= first.saturating_sub(1)
        {
            first = start;
            last = last.max(end);
            self.runs.remove(&start);
        }
        while let Some((&start, &end)) = self.runs.range(first..=last.saturating_add(1)).next() {
            last = last.max(end);
            self.runs.remove(&start);
        }
        if first <= self.upto.saturating_add(1) {
            self.upto = last;
        } else {
            self.runs.insert(first, last);
        }
    }

    fn spans(&self) -> impl Iterator<Item = (u64, u64)> {
        let prefix = (self.upto > 0).then_some((1, self.upto));
        prefix.into_iter().chain(self.runs.iter().map(|(&first, &last)| (first, last)))
    }

    fn is_well_formed(&self) -> bool {
        let mut below = self.upto;
        self.runs.iter().all(|(&first, &last)| {
            let apart = first > below.saturating_add(1) && last >= first;
            below = last;
            apart
        })
    }
}

/// The exact set of dots a replica or a delta has seen.
///
/// Its size follows the number of lives that ever wrote and the gaps in what arrived, never the
/// number of writes or deletes. [`CausalContext::retain`] forgets lives that the membership has
/// retired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct CausalContext<R: Ord> {
    seen: BTreeMap<R, Seen>,
}

impl<R: Ord> Default for CausalContext<R> {
    fn default() -> Self {
        Self { seen: BTreeMap::new() }
    }
}

impl<'de, R: Ord + Deserialize<'de>> Deserialize<'de> for CausalContext<R> {
    /// Refuses contexts whose runs overlap or stand out of order: equal sets must have one form.
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let seen = BTreeMap::<R, Seen>::deserialize(input)?;
        if seen.values().all(|seen| seen.is_well_formed() && *seen != Seen::default()) {
            Ok(Self { seen })
        } else {
            Err(serde::de::Error::custom("causal context has overlapping, empty or unordered runs"))
        }
    }
}

impl<R: Replica> CausalContext<R> {
    /// A context that has seen nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The next unused dot of `replica`, and notes it. Only `replica` itself may ask: two writers
    /// under one name would give one dot two meanings.
    ///
    /// # Panics
    /// After 2^64 - 1 writes of one life.
    pub fn next_dot(&mut self, replica: &R) -> Dot<R> {
        let seen = self.seen.entry(replica.clone()).or_default();
        // A replica has seen all of its own dots, so its next one follows the highest.
        let highest = seen.runs.last_key_value().map_or(seen.upto, |(_, &last)| last);
        let counter = highest.checked_add(1).expect("fewer than 2^64 writes in one life");
        seen.insert(counter, counter);
        Dot { node: replica.clone(), counter }
    }

    /// Notes one dot.
    pub fn insert(&mut self, dot: &Dot<R>) {
        self.seen.entry(dot.node.clone()).or_default().insert(dot.counter, dot.counter);
    }

    /// Notes everything `other` has seen: the union of both.
    pub fn join(&mut self, other: &Self) {
        for (replica, theirs) in &other.seen {
            let ours = self.seen.entry(replica.clone()).or_default();
            for (first, last) in theirs.spans() {
                ours.insert(first, last);
            }
        }
    }

    /// Whether everything `other` has seen was seen here too.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.missing_from(self).next().is_none()
    }

    /// What `self` has seen and `other` has not, as spans `(replica, first, last)`.
    pub fn missing_from<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (&'a R, u64, u64)> {
        self.seen.iter().flat_map(move |(replica, ours)| {
            let theirs = other.seen.get(replica);
            ours.spans()
                .flat_map(move |(first, last)| gaps(theirs, first, last))
                .map(move |(first, last)| (replica, first, last))
        })
    }

    /// Keeps only the lives for which `keep` says so. Safe only for lives whose every dot has
    /// reached every replica, or that the membership has retired for good: forgetting a life
    /// makes its dots look unseen again.
    pub fn retain(&mut self, mut keep: impl FnMut(&R) -> bool) {
        self.seen.retain(|replica, _| keep(replica));
    }

    /// The lives that wrote, with the highest dot below which nothing is missing.
    pub fn iter(&self) -> impl Iterator<Item = (&R, u64)> {
        self.seen.iter().map(|(replica, seen)| (replica, seen.upto))
    }

    /// How many runs it keeps apart: 0 once everything has arrived.
    #[must_use]
    pub fn gaps(&self) -> usize {
        self.seen.values().map(|seen| seen.runs.len()).sum()
    }

    /// Whether it has seen nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }
}

/// The parts of `first..=last` that `seen` lacks.
fn gaps(seen: Option<&Seen>, first: u64, last: u64) -> Vec<(u64, u64)> {
    let mut at = first;
    let mut missing = Vec::new();
    for (start, end) in seen.into_iter().flat_map(Seen::spans) {
        if start > last {
            break;
        }
        if end < at {
            continue;
        }
        if start > at {
            missing.push((at, start - 1));
        }
        at = end.saturating_add(1);
        if end == u64::MAX {
            return missing;
        }
    }
    if at <= last {
        missing.push((at, last));
    }
    missing
}

impl<R: Replica> FromIterator<Dot<R>> for CausalContext<R> {
    fn from_iter<T: IntoIterator<Item = Dot<R>>>(dots: T) -> Self {
        let mut context = Self::new();
        for dot in dots {
            context.insert(&dot);
        }
        context
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    type Model = BTreeSet<(u8, u64)>;

    fn dots() -> impl Strategy<Value = Vec<(u8, u64)>> {
        prop::collection::vec((0..3_u8, 1..20_u64), 0..40)
    }

    fn context(dots: &[(u8, u64)]) -> CausalContext<u8> {
        dots.iter().map(|&(node, counter)| Dot { node, counter }).collect()
    }

    #[test]
    fn a_dot_beyond_a_gap_does_not_imply_the_dots_before_it() {
        let seen = context(&[(1, 1), (1, 3)]);
        assert!(!seen.contains(&Dot { node: 1, counter: 2 }));
        assert_eq!(seen.gaps(), 1);
        let mut seen = seen;
        seen.insert(&Dot { node: 1, counter: 2 });
        assert_eq!((seen.gaps(), seen.iter().collect::<Vec<_>>()), (0, vec![(&1, 3)]));
    }

    #[test]
    fn an_unordered_context_from_the_wire_is_refused() {
        let forged: BTreeMap<u8, (u64, BTreeMap<u64, u64>)> =
            BTreeMap::from([(1, (5, BTreeMap::from([(6, 9)])))]);
        let bytes = postcard::to_stdvec(&forged).unwrap();
        assert!(postcard::from_bytes::<CausalContext<u8>>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn it_is_the_set_of_its_dots(a in dots(), b in dots()) {
            let (model_a, model_b): (Model, Model) = (a.iter().copied().collect(), b.iter().copied().collect());
            let (ctx_a, ctx_b) = (context(&a), context(&b));
            for node in 0..3 {
                for counter in 1..22 {
                    prop_assert_eq!(ctx_a.contains(&Dot { node, counter }), model_a.contains(&(node, counter)));
                }
            }
            prop_assert_eq!(ctx_a.covers(&ctx_b), model_a.is_superset(&model_b));
            let missing: Model = ctx_a.missing_from(&ctx_b)
                .flat_map(|(&node, first, last)| (first..=last).map(move |counter| (node, counter)))
                .collect();
            prop_assert_eq!(missing, model_a.difference(&model_b).copied().collect::<Model>());
            let mut union = ctx_a.clone();
            union.join(&ctx_b);
            prop_assert_eq!(&union, &context(&model_a.union(&model_b).copied().collect::<Vec<_>>()));
            let bytes = postcard::to_stdvec(&union).unwrap();
            prop_assert_eq!(postcard::from_bytes::<CausalContext<u8>>(&bytes).unwrap(), union);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(context) = postcard::from_bytes::<CausalContext<u8>>(&bytes) {
                let mut copy = context.clone();
                copy.join(&context);
                prop_assert_eq!(copy, context);
            }
        }
    }
}
