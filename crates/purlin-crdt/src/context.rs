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

/// How many dots a [`Knows::window`] spans.
pub const WINDOW: u64 = u64::BITS as u64;

/// Who can tell whether a dot was seen.
pub trait Knows<R> {
    /// Whether `dot` was seen.
    fn contains(&self, dot: &Dot<R>) -> bool;

    /// Which of the 64 dots of `node` from `64 * window` on were seen: one bit each, the first the
    /// lowest.
    fn window(&self, node: &R, window: u64) -> u64;
}

/// The dots from `first` to `last` as bits of `window`.
fn bits_of(first: u64, last: u64, window: u64) -> u64 {
    let start = window.saturating_mul(WINDOW);
    let end = start.saturating_add(WINDOW - 1);
    let (low, high) = (first.max(start), last.min(end));
    if low > high {
        return 0;
    }
    (u64::MAX >> (WINDOW - 1 - (high - low))) << (low - start)
}

impl<R: Replica> Knows<R> for CausalContext<R> {
    fn contains(&self, dot: &Dot<R>) -> bool {
        self.seen.get(&dot.node).is_some_and(|seen| seen.contains(dot.counter))
    }

    fn window(&self, node: &R, window: u64) -> u64 {
        self.seen.get(node).map_or(0, |seen| seen.window(window))
    }
}

/// The most dots, beside one per span, that [`Dots`] from elsewhere may hold.
const DOTS_MAX: u64 = 1 << 24;

/// A few dots, such as one update brings and replaces: smaller and faster than a
/// [`CausalContext`]. Neighbouring dots of one life, such as a piece of text brings, stand as one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Dots<R>(Vec<Span<R>>);

/// Neighbouring dots of one life: `first` and so many `more` behind it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Span<R> {
    node: R,
    first: u64,
    more: u64,
}

impl<R> Span<R> {
    fn last(&self) -> u64 {
        self.first.saturating_add(self.more)
    }
}

impl<R> Default for Dots<R> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, R: Ord + Deserialize<'de>> Deserialize<'de> for Dots<R> {
    /// Refuses dots that repeat or stand out of order: equal dots must have one form.
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let spans = Vec::<Span<R>>::deserialize(input)?;
        let apart = |a: &Span<R>, b: &Span<R>| {
            a.node < b.node || (a.node == b.node && a.last().saturating_add(1) < b.first)
        };
        if spans.iter().any(|span| span.first.checked_add(span.more).is_none()) {
            return Err(serde::de::Error::custom("dots beyond 2^64 - 1"));
        }
        // A few bytes may claim any number of dots; whoever looks at them one by one must be safe.
        let dots = spans.iter().fold(0_u64, |sum, span| sum.saturating_add(span.more));
        if dots > DOTS_MAX {
            return Err(serde::de::Error::custom(format!("{dots} dots exceed limit {DOTS_MAX}")));
        }
        if spans.is_sorted_by(apart) {
            Ok(Self(spans))
        } else {
            Err(serde::de::Error::custom("dots repeat or stand out of order"))
        }
    }
}

impl<R: Replica> Dots<R> {
    /// Adds one dot.
    pub fn insert(&mut self, dot: Dot<R>) {
        self.insert_span(dot.node, dot.counter, dot.counter);
    }

    /// Adds the dots of `node` from `first` to `last`.
    pub fn insert_span(&mut self, node: R, first: u64, last: u64) {
        if first > last {
            return;
        }
        let before = |span: &Span<R>| {
            span.node < node || (span.node == node && span.last().saturating_add(1) < first)
        };
        let start = match self.0.last() {
            Some(end) if before(end) => self.0.len(),
            Some(_) => self.0.partition_point(before),
            None => 0,
        };
        let touches = |span: &&Span<R>| span.node == node && span.first <= last.saturating_add(1);
        let end = start + self.0[start..].iter().take_while(touches).count();
        match self.0.get(start..end) {
            Some([head, .., tail]) => {
                let (first, last) = (first.min(head.first), last.max(tail.last()));
                self.0.splice(start..end, [Span { node, first, more: last - first }]);
            }
            Some([_]) => {
                let only = &mut self.0[start];
                let (first, last) = (first.min(only.first), last.max(only.last()));
                (only.first, only.more) = (first, last - first);
            }
            Some([]) | None => self.0.insert(start, Span { node, first, more: last - first }),
        }
    }

    /// Adds the dots of `other`.
    pub fn join(&mut self, other: &Self) {
        for (node, first, last) in other.spans() {
            self.insert_span(node.clone(), first, last);
        }
    }

    /// The dots, in order.
    pub fn iter(&self) -> impl Iterator<Item = Dot<R>> {
        self.spans().flat_map(|(node, first, last)| {
            (first..=last).map(move |counter| Dot { node: node.clone(), counter })
        })
    }

    /// Neighbouring dots together, in order: whose, the first, the last.
    pub fn spans(&self) -> impl Iterator<Item = (&R, u64, u64)> {
        self.0.iter().map(|span| (&span.node, span.first, span.last()))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The spans of `node` that end at `from` or later.
    fn from<'a>(&'a self, node: &'a R, from: u64) -> impl Iterator<Item = &'a Span<R>> {
        let start = self.0.partition_point(|span| {
            span.node < *node || (span.node == *node && span.last() < from)
        });
        self.0[start..].iter().take_while(move |span| span.node == *node)
    }
}

impl<R: Replica> Knows<R> for Dots<R> {
    fn contains(&self, dot: &Dot<R>) -> bool {
        self.from(&dot.node, dot.counter).next().is_some_and(|span| span.first <= dot.counter)
    }

    fn window(&self, node: &R, window: u64) -> u64 {
        let end = window.saturating_mul(WINDOW).saturating_add(WINDOW - 1);
        self.from(node, window.saturating_mul(WINDOW))
            .take_while(|span| span.first <= end)
            .fold(0, |bits, span| bits | bits_of(span.first, span.last(), window))
    }
}

impl<R: Replica> FromIterator<Dot<R>> for Dots<R> {
    fn from_iter<T: IntoIterator<Item = Dot<R>>>(dots: T) -> Self {
        let mut all = Self::default();
        for dot in dots {
            all.insert(dot);
        }
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

    fn window(&self, window: u64) -> u64 {
        let start = window.saturating_mul(WINDOW);
        let end = start.saturating_add(WINDOW - 1);
        let runs = self.runs.range(..=end).rev().take_while(|&(_, &last)| last >= start);
        runs.fold(bits_of(0, self.upto, window), |bits, (&first, &last)| {
            bits | bits_of(first, last, window)
        })
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
        self.next_dots(replica, 1)
    }

    /// The first of the next `count` unused dots of `replica`, which follow each other; notes all
    /// of them. As [`CausalContext::next_dot`].
    ///
    /// # Panics
    /// After 2^64 - 1 writes of one life, and when `count` is 0.
    pub fn next_dots(&mut self, replica: &R, count: u64) -> Dot<R> {
        assert!(count > 0, "a write has at least one dot");
        let seen = self.seen.entry(replica.clone()).or_default();
        // A replica has seen all of its own dots, so its next one follows the highest.
        let highest = seen.runs.last_key_value().map_or(seen.upto, |(_, &last)| last);
        let last = highest.checked_add(count).expect("fewer than 2^64 writes in one life");
        seen.insert(highest + 1, last);
        Dot { node: replica.clone(), counter: highest + 1 }
    }

    /// Notes one dot.
    pub fn insert(&mut self, dot: &Dot<R>) {
        self.seen.entry(dot.node.clone()).or_default().insert(dot.counter, dot.counter);
    }

    /// Notes all of `dots`.
    pub fn insert_all(&mut self, dots: &Dots<R>) {
        for (node, first, last) in dots.spans() {
            self.seen.entry(node.clone()).or_default().insert(first, last);
        }
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

    /// Notes what `other` has seen of one life.
    pub fn join_life(&mut self, other: &Self, life: &R) {
        if let Some(theirs) = other.seen.get(life) {
            let ours = self.seen.entry(life.clone()).or_default();
            theirs.spans().for_each(|(first, last)| ours.insert(first, last));
        }
    }

    /// Whether everything `other` has seen of `life` was seen here too.
    #[must_use]
    pub fn covers_life(&self, other: &Self, life: &R) -> bool {
        let (ours, theirs) = (self.seen.get(life), other.seen.get(life));
        let mut spans = theirs.into_iter().flat_map(Seen::spans);
        spans.all(|(first, last)| gaps(ours, first, last).is_empty())
    }

    /// The highest dot seen of `life`; 0 for none.
    #[must_use]
    pub fn highest(&self, life: &R) -> u64 {
        self.seen
            .get(life)
            .map_or(0, |seen| seen.runs.last_key_value().map_or(seen.upto, |(_, &last)| last))
    }

    /// Notes every dot of `life` up to `last` as seen.
    pub fn fill(&mut self, life: &R, last: u64) {
        if last > 0 {
            self.seen.entry(life.clone()).or_default().insert(1, last);
        }
    }

    /// Whether anything was seen of `life`.
    #[must_use]
    pub fn has_life(&self, life: &R) -> bool {
        self.seen.contains_key(life)
    }

    /// How many lives it has seen something of.
    #[must_use]
    pub fn lives(&self) -> usize {
        self.seen.len()
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
        fn a_few_dots_are_the_set_of_them_too(a in dots(), b in dots()) {
            let few = |dots: &[(u8, u64)]| -> Dots<u8> {
                dots.iter().map(|&(node, counter)| Dot { node, counter }).collect()
            };
            let mut union = few(&a);
            union.join(&few(&b));
            let model: Model = a.iter().chain(&b).copied().collect();
            prop_assert_eq!(union.iter().map(|dot| (dot.node, dot.counter)).collect::<Model>(), model.clone());
            prop_assert_eq!(&union, &few(&model.iter().copied().collect::<Vec<_>>()), "one form");
            let seen = context(&model.iter().copied().collect::<Vec<_>>());
            for node in 0..3 {
                for counter in 1..22 {
                    prop_assert_eq!(union.contains(&Dot { node, counter }), model.contains(&(node, counter)));
                }
                let bits = (1..64).filter(|&n| model.contains(&(node, n))).fold(0_u64, |bits, n| bits | (1 << n));
                prop_assert_eq!(union.window(&node, 0), bits);
                // Counters run from 1: nobody asks for dot 0.
                prop_assert_eq!(seen.window(&node, 0) & !1, bits);
                prop_assert_eq!((union.window(&node, 1), seen.window(&node, u64::MAX)), (0, 0));
            }
            let bytes = postcard::to_stdvec(&union).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Dots<u8>>(&bytes).unwrap(), union);
        }

        #[test]
        fn bits_of_a_window_are_the_dots_in_it(first in 0..300_u64, length in 0..200_u64, window in 0..5_u64) {
            let last = first + length;
            let slow = (0..64_u64).filter(|n| (first..=last).contains(&(window * 64 + n)))
                .fold(0_u64, |bits, n| bits | (1 << n));
            prop_assert_eq!(bits_of(first, last, window), slow);
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
