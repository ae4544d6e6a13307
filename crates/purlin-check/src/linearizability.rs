//! Every operation takes effect at one moment between its invocation and its return.
//!
//! A history of reads, writes and compare-and-sets on keys is linearizable if its operations can be
//! put in one order that respects real time (what returned before another was invoked comes
//! first) and in which each returned what a single copy would have. Keys are independent of each
//! other, so each is checked by itself.
//!
//! An operation whose outcome is *unknown* may have taken effect at any moment after its invocation,
//! or never; folding it into "failed" would let a lost write pass, and into "done" would blame
//! systems that did no wrong.
//!
//! The search is exponential in the worst case. It remembers every pair of (operations placed,
//! value) it has seen and gives up with an answer of its own after a bound: "undecided" is neither
//! "holds" nor "violated".
//!
//! # Source
//! Herlihy and Wing 1990 (linearizability, locality); Wing and Gong 1993 and Lowe 2017 (the search
//! and its memory). Ours rather than a kept crate, because those at hand know no unknown outcomes
//! or no bound.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Debug,
    time::Duration,
};

/// How many pairs of (operations placed, value) are remembered for one key before the check gives
/// up: some hundred megabytes at worst.
pub const STATES_MAX: usize = 2_000_000;

/// What somebody did to a key, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act<V> {
    /// Read it and saw this; `None` for absent.
    Read(Option<V>),
    /// Wrote this; `None` for a removal.
    Write(Option<V>),
    /// Wrote `new` if the value was `expected`.
    CompareAndSet {
        /// What had to be there.
        expected: Option<V>,
        /// What was to be there afterwards.
        new: Option<V>,
        /// Whether the answer was yes. Of no meaning while the outcome is unknown.
        done: bool,
    },
}

/// One operation of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation<K, V> {
    /// On which key.
    pub key: K,
    /// What, with its result.
    pub act: Act<V>,
    /// When it was invoked, counted from the start of the history by one observer's clock.
    pub invoked: Duration,
    /// When it returned; `None` when its outcome is unknown: it timed out, or the caller died.
    pub returned: Option<Duration>,
}

/// Why a history is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation<K: Debug, V: Debug> {
    /// There is no such order.
    #[error(
        "{key:?} is not linearizable: {placed} of {operations} operations fit one order, which \
         leaves {value:?}; then operation {stuck} ({act:?}) fits nowhere"
    )]
    NotLinearizable {
        /// The key.
        key: K,
        /// How many operations it has.
        operations: usize,
        /// How many the longest order found holds.
        placed: usize,
        /// The value behind that order.
        value: Option<V>,
        /// The operation that had to come next and could not, by its place in the history.
        stuck: usize,
        /// What it was.
        act: Act<V>,
    },
    /// It returned before it was invoked.
    #[error("operation {at} returned at {returned:?}, before it was invoked at {invoked:?}")]
    Backwards {
        /// Its place in the history.
        at: usize,
        /// When it was invoked.
        invoked: Duration,
        /// When it returned.
        returned: Duration,
    },
    /// The search was given up: neither linearizable nor not, as far as is known.
    #[error(
        "{key:?} is undecided after {states} states; check fewer concurrent operations at once"
    )]
    Undecided {
        /// The key.
        key: K,
        /// How many states were looked at.
        states: usize,
    },
}

/// Checks a history of a key-value store, in any order, that begins without values.
///
/// # Errors
/// The first [`Violation`], by key.
pub fn check<K, V>(history: &[Operation<K, V>]) -> Result<(), Violation<K, V>>
where
    K: Ord + Clone + Debug,
    V: Ord + Clone + Debug,
{
    check_within(history, STATES_MAX)
}

/// As [`check`], with a bound of the caller's own on the states remembered for one key.
///
/// # Errors
/// As [`check`].
pub fn check_within<K, V>(
    history: &[Operation<K, V>],
    states_max: usize,
) -> Result<(), Violation<K, V>>
where
    K: Ord + Clone + Debug,
    V: Ord + Clone + Debug,
{
    let mut keys: BTreeMap<&K, Vec<Numbered<'_, K, V>>> = BTreeMap::new();
    for (at, operation) in history.iter().enumerate() {
        let invoked = operation.invoked;
        if let Some(returned) = operation.returned.filter(|&returned| returned < invoked) {
            return Err(Violation::Backwards { at, invoked, returned });
        }
        // A read nobody heard the answer of says nothing.
        if operation.returned.is_some() || !matches!(operation.act, Act::Read(_)) {
            keys.entry(&operation.key).or_default().push((at, operation));
        }
    }
    keys.into_iter().try_for_each(|(key, operations)| Search::new(&operations, states_max).run(key))
}

/// An operation with its place in the history.
type Numbered<'a, K, V> = (usize, &'a Operation<K, V>);

/// The value behind `act` on `value`; `None` when it cannot have happened there.
fn apply<V: Clone + Eq>(value: &Option<V>, act: &Act<V>, is_known: bool) -> Option<Option<V>> {
    match act {
        Act::Read(seen) => (seen == value).then(|| value.clone()),
        Act::Write(new) => Some(new.clone()),
        Act::CompareAndSet { expected, new, .. } if !is_known => {
            // Where it would change nothing it need not be placed at all.
            (expected == value).then(|| new.clone())
        }
        Act::CompareAndSet { expected, new, done } => match (expected == value, done) {
            (true, true) => Some(new.clone()),
            (false, false) => Some(value.clone()),
            (true, false) | (false, true) => None,
        },
    }
}

/// An invocation or a return of the operation at this place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Call(usize),
    Return(usize),
}

/// A set of operations, one bit each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Placed(Vec<u64>);

impl Placed {
    fn toggle(&mut self, at: usize) {
        self.0[at / 64] ^= 1 << (at % 64);
    }
}

/// The search for an order of the operations of one key.
///
/// Events stand in a doubly linked list in the order of time. Placing an operation takes its two
/// events out; the first event that is a return belongs to an operation that has to be placed
/// before anything behind it.
struct Search<'a, K, V> {
    operations: &'a [Numbered<'a, K, V>],
    events: Vec<Event>,
    /// Where each operation's events stand.
    calls: Vec<usize>,
    returns: Vec<Option<usize>>,
    /// Neighbours of each event; the last element is both ends.
    next: Vec<usize>,
    before: Vec<usize>,
    states_max: usize,
}

impl<'a, K, V> Search<'a, K, V>
where
    K: Ord + Clone + Debug,
    V: Ord + Clone + Debug,
{
    fn new(operations: &'a [Numbered<'a, K, V>], states_max: usize) -> Self {
        let mut timed: Vec<(Duration, Event)> = Vec::new();
        for (n, (_, operation)) in operations.iter().enumerate() {
            timed.push((operation.invoked, Event::Call(n)));
            timed.extend(operation.returned.map(|at| (at, Event::Return(n))));
        }
        // At one moment invocations come first: what touches may overlap.
        timed.sort();
        let events: Vec<Event> = timed.into_iter().map(|(_, event)| event).collect();
        let mut calls = vec![0; operations.len()];
        let mut returns = vec![None; operations.len()];
        for (at, event) in events.iter().enumerate() {
            match *event {
                Event::Call(n) => calls[n] = at,
                Event::Return(n) => returns[n] = Some(at),
            }
        }
        let ends = events.len();
        let next = (1..=ends).chain([0]).collect();
        let before = std::iter::once(ends).chain(0..ends).collect();
        Self { operations, events, calls, returns, next, before, states_max }
    }

    fn take_out(&mut self, at: usize) {
        let (before, next) = (self.before[at], self.next[at]);
        self.next[before] = next;
        self.before[next] = before;
    }

    fn put_back(&mut self, at: usize) {
        let (before, next) = (self.before[at], self.next[at]);
        self.next[before] = at;
        self.before[next] = at;
    }

    fn place(&mut self, n: usize) {
        self.take_out(self.calls[n]);
        if let Some(at) = self.returns[n] {
            self.take_out(at);
        }
    }

    fn unplace(&mut self, n: usize) {
        if let Some(at) = self.returns[n] {
            self.put_back(at);
        }
        self.put_back(self.calls[n]);
    }

    fn run(mut self, key: &K) -> Result<(), Violation<K, V>> {
        let ends = self.events.len();
        let mut placed = Placed(vec![0; self.operations.len().div_ceil(64)]);
        let mut value: Option<V> = None;
        let mut seen: BTreeSet<(Placed, Option<V>)> = BTreeSet::new();
        let mut order: Vec<(usize, Option<V>)> = Vec::new();
        let mut longest: Option<(usize, Option<V>, usize)> = None;
        let mut at = self.next[ends];
        // Behind the last return only operations are left that need not have happened.
        while at != ends {
            match self.events[at] {
                Event::Call(n) => {
                    let operation = self.operations[n].1;
                    let is_known = operation.returned.is_some();
                    let after = apply(&value, &operation.act, is_known);
                    placed.toggle(n);
                    if let Some(after) = after
                        && seen.insert((placed.clone(), after.clone()))
                    {
                        if seen.len() > self.states_max {
                            let states = seen.len();
                            return Err(Violation::Undecided { key: key.clone(), states });
                        }
                        order.push((n, std::mem::replace(&mut value, after)));
                        self.place(n);
                        at = self.next[ends];
                    } else {
                        placed.toggle(n);
                        at = self.next[at];
                    }
                }
                Event::Return(stuck) => {
                    if longest.as_ref().is_none_or(|(many, ..)| order.len() > *many) {
                        longest = Some((order.len(), value.clone(), stuck));
                    }
                    let Some((n, was)) = order.pop() else {
                        let (many, value, stuck) = longest.expect("it was stuck just now");
                        let (place, operation) = self.operations[stuck];
                        return Err(Violation::NotLinearizable {
                            key: key.clone(),
                            operations: self.operations.len(),
                            placed: many,
                            value,
                            stuck: place,
                            act: operation.act.clone(),
                        });
                    };
                    self.unplace(n);
                    placed.toggle(n);
                    value = was;
                    at = self.next[self.calls[n]];
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Op = Operation<&'static str, u8>;

    fn op(key: &'static str, act: Act<u8>, invoked: u64, returned: Option<u64>) -> Op {
        let at = Duration::from_millis;
        Operation { key, act, invoked: at(invoked), returned: returned.map(at) }
    }

    fn write(value: u8, invoked: u64, returned: u64) -> Op {
        op("k", Act::Write(Some(value)), invoked, Some(returned))
    }

    fn read(seen: Option<u8>, invoked: u64, returned: u64) -> Op {
        op("k", Act::Read(seen), invoked, Some(returned))
    }

    fn swap(from: Option<u8>, to: u8, done: bool, invoked: u64, returned: u64) -> Op {
        let act = Act::CompareAndSet { expected: from, new: Some(to), done };
        op("k", act, invoked, Some(returned))
    }

    fn stuck_at(history: &[Op]) -> usize {
        match check(history) {
            Err(Violation::NotLinearizable { stuck, .. }) => stuck,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn concurrent_reads_may_see_either_side_of_a_write_in_real_time_order() {
        let history = [
            write(1, 0, 10),
            write(2, 20, 50),
            read(Some(1), 25, 30),
            read(Some(2), 35, 40),
            read(Some(2), 60, 70),
        ];
        assert_eq!(check(&history), Ok(()));
    }

    #[test]
    fn a_forged_stale_read_is_caught_and_named() {
        let history = [write(1, 0, 10), write(2, 20, 30), read(Some(1), 40, 50)];
        assert_eq!(
            check(&history).unwrap_err().to_string(),
            "\"k\" is not linearizable: 2 of 3 operations fit one order, which leaves Some(2); \
             then operation 2 (Read(Some(1))) fits nowhere"
        );
    }

    #[test]
    fn a_forged_read_that_goes_back_in_time_is_caught() {
        // Either may see either value, but not the new one first.
        let history =
            [write(1, 0, 10), write(2, 20, 90), read(Some(2), 30, 40), read(Some(1), 50, 60)];
        assert_eq!(stuck_at(&history), 3);
    }

    #[test]
    fn a_forged_lost_write_is_caught() {
        assert_eq!(stuck_at(&[write(1, 0, 10), read(None, 20, 30)]), 1);
    }

    #[test]
    fn a_forged_value_that_nobody_wrote_is_caught() {
        assert_eq!(stuck_at(&[write(1, 0, 10), read(Some(7), 5, 30)]), 1);
    }

    #[test]
    fn two_forged_winners_of_one_compare_and_set_are_caught() {
        let history = [swap(None, 1, true, 0, 50), swap(None, 2, true, 0, 50)];
        assert!(check(&history).is_err());
        let history = [swap(None, 1, true, 0, 50), swap(None, 2, false, 0, 50)];
        assert_eq!(check(&history), Ok(()));
    }

    #[test]
    fn a_refused_compare_and_set_must_have_had_a_reason() {
        assert!(check(&[write(1, 0, 10), swap(Some(1), 2, false, 20, 30)]).is_err());
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never_but_only_once() {
        let lost = op("k", Act::Write(Some(9)), 5, None);
        let with = |rest: &[Op]| {
            let mut history = vec![write(1, 0, 10), lost.clone()];
            history.extend_from_slice(rest);
            check(&history)
        };
        assert_eq!(with(&[read(Some(1), 20, 30)]), Ok(()));
        assert_eq!(with(&[read(Some(1), 20, 30), read(Some(9), 40, 50)]), Ok(()));
        assert!(with(&[read(Some(9), 20, 30), read(Some(1), 40, 50)]).is_err());
        let twice = [read(Some(9), 20, 30), write(2, 40, 50), read(Some(9), 60, 70)];
        assert!(with(&twice).is_err());
    }

    #[test]
    fn an_unknown_compare_and_set_happens_only_where_it_could() {
        let act = Act::CompareAndSet { expected: Some(1), new: Some(2), done: false };
        let lost = op("k", act, 5, None);
        assert_eq!(check(&[write(1, 0, 10), lost.clone(), read(Some(2), 20, 30)]), Ok(()));
        assert!(check(&[write(3, 0, 10), lost, read(Some(2), 20, 30)]).is_err());
    }

    #[test]
    fn keys_are_checked_by_themselves() {
        let other = |act, invoked, returned| op("j", act, invoked, Some(returned));
        let mut history = vec![write(1, 0, 10), other(Act::Write(Some(5)), 0, 10)];
        history.extend([read(Some(1), 20, 30), other(Act::Read(Some(5)), 20, 30)]);
        assert_eq!(check(&history), Ok(()));
        history.push(other(Act::Read(Some(1)), 40, 50));
        assert!(matches!(check(&history), Err(Violation::NotLinearizable { key: "j", .. })));
    }

    #[test]
    fn a_return_before_the_invocation_is_no_history() {
        assert!(matches!(check(&[write(1, 10, 5)]), Err(Violation::Backwards { at: 0, .. })));
    }

    #[test]
    fn the_search_gives_up_at_its_bound_and_says_so() {
        let mut history: Vec<Op> = (0..20).map(|n| write(n, 0, 100)).collect();
        history.push(read(Some(200), 200, 300));
        let undecided = check_within(&history, 1_000).unwrap_err();
        assert_eq!(
            undecided.to_string(),
            "\"k\" is undecided after 1001 states; check fewer concurrent operations at once"
        );
    }

    #[test]
    fn thousands_of_operations_in_turns_take_a_moment() {
        let mut history = Vec::new();
        for n in 0..5_000_u64 {
            let value = u8::try_from(n % 200).unwrap();
            history.push(write(value, 10 * n, 10 * n + 4));
            history.push(read(Some(value), 10 * n + 5, 10 * n + 9));
        }
        assert_eq!(check(&history), Ok(()));
        history.push(read(Some(201), 60_000, 60_001));
        assert!(check(&history).is_err());
    }

    fn acts() -> impl Strategy<Value = Act<u8>> {
        let value = || prop::option::weighted(0.8, 0..3_u8);
        prop_oneof![
            value().prop_map(Act::Read),
            value().prop_map(Act::Write),
            (value(), value(), any::<bool>())
                .prop_map(|(expected, new, done)| Act::CompareAndSet { expected, new, done }),
        ]
    }

    fn operations() -> impl Strategy<Value = Vec<Op>> {
        let operation = (acts(), 0..12_u64, prop::option::weighted(0.8, 0..8_u64));
        let operation = operation.prop_map(|(act, invoked, lasts)| {
            op("k", act, invoked, lasts.map(|lasts| invoked + lasts))
        });
        prop::collection::vec(operation, 0..6)
    }

    /// Tries every order of every choice of the operations that must or may have happened.
    fn by_brute_force(left: &[Op], value: &Option<u8>) -> bool {
        if left.iter().all(|op| op.returned.is_none()) {
            return true;
        }
        (0..left.len()).any(|n| {
            let first = &left[n];
            let others = || left.iter().enumerate().filter(|(m, _)| *m != n).map(|(_, op)| op);
            let may_be_first =
                others().all(|op| op.returned.is_none_or(|returned| returned >= first.invoked));
            let rest: Vec<Op> = others().cloned().collect();
            let after = apply(value, &first.act, first.returned.is_some());
            let reads_nothing = first.returned.is_none() && matches!(first.act, Act::Read(_));
            let goes_on = |value: &Option<u8>| by_brute_force(&rest, value);
            may_be_first && !reads_nothing && after.is_some_and(|after| goes_on(&after))
                || first.returned.is_none() && goes_on(value)
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

        #[test]
        fn it_agrees_with_trying_every_order(history in operations()) {
            prop_assert_eq!(check(&history).is_ok(), by_brute_force(&history, &None));
        }
    }
}
