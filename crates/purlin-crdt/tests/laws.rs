//! The laws, for every type, under random histories of three replicas: joins commute, associate
//! and repeat harmlessly; deltas in any order, doubled or batched, end where whole states end;
//! and what is read agrees with a naive model that remembers every operation and who had seen it.

#![expect(clippy::unwrap_used, reason = "a test that cannot build its input should fail loudly")]

use std::{collections::BTreeSet, fmt::Debug};

use proptest::prelude::*;
use purlin_core::{Hlc, HlcTimestamp, Incarnation, NodeId, NodeName, WallTime};
use purlin_crdt::{
    AwLwwMap, Causal, Delta, DotMap, DotSet, DotStore, DwFlag, EwFlag, GCounter, GSet, Lattice,
    LwwRegister, MvRegister, OrMap, OrSet, PnCounter, ResettableCounter, RwSet, Text, TextStore,
};

const REPLICAS: u8 = 3;

/// A replicated type under test: how to apply an operation and how to take in its delta.
trait Subject: Lattice + Clone + PartialEq + Debug + Default {
    type Op: Clone + Debug;
    type Update: Clone + Lattice;
    fn apply(&mut self, replica: u8, at: HlcTimestamp, op: &Self::Op) -> Self::Update;
    fn take(&mut self, update: &Self::Update);
}

#[derive(Debug, Clone)]
enum Step<Op> {
    /// A replica applies an operation.
    Apply(u8, Op),
    /// A replica takes in the update at this place of the history (wrapped), again or for once.
    Deliver(u8, usize),
    /// A replica takes in two updates merged into one.
    DeliverBatch(u8, usize, usize),
    /// A replica takes in another's whole state.
    Join(u8, u8),
}

fn steps<Op: Clone + Debug + 'static>(
    op: impl Strategy<Value = Op> + 'static,
) -> impl Strategy<Value = Vec<Step<Op>>> {
    let who = 0..REPLICAS;
    let step = prop_oneof![
        4 => (who.clone(), op).prop_map(|(at, op)| Step::Apply(at, op)),
        3 => (who.clone(), any::<usize>()).prop_map(|(to, n)| Step::Deliver(to, n)),
        1 => (who.clone(), any::<usize>(), any::<usize>()).prop_map(|(to, a, b)| Step::DeliverBatch(to, a, b)),
        1 => (who.clone(), who).prop_map(|(to, from)| Step::Join(to, from)),
    ];
    prop::collection::vec(step, 0..40)
}

struct History<S: Subject> {
    replicas: Vec<S>,
    updates: Vec<S::Update>,
}

fn run<S: Subject>(steps: &[Step<S::Op>]) -> History<S> {
    let mut replicas = vec![S::default(); usize::from(REPLICAS)];
    let mut updates: Vec<S::Update> = Vec::new();
    let node = NodeId::new(NodeName::parse("n").unwrap(), Incarnation(1));
    let clock = Hlc::new(&node);
    for step in steps {
        match step {
            Step::Apply(at, op) => {
                let now = clock.now(WallTime::from_millis(1)).unwrap();
                let before = replicas[usize::from(*at)].clone();
                let update = replicas[usize::from(*at)].apply(*at, now, op);
                // An update does to the state before it what the operation did.
                let mut redone = before;
                redone.take(&update);
                assert_eq!(redone, replicas[usize::from(*at)], "delta of {op:?}");
                updates.push(update);
            }
            Step::Deliver(to, n) if !updates.is_empty() => {
                let update = &updates[n % updates.len()];
                replicas[usize::from(*to)].take(update);
            }
            Step::DeliverBatch(to, a, b) if !updates.is_empty() => {
                let mut batch = updates[a % updates.len()].clone();
                batch.join(&updates[b % updates.len()]);
                let mut apart = replicas[usize::from(*to)].clone();
                apart.take(&updates[a % updates.len()]);
                apart.take(&updates[b % updates.len()]);
                replicas[usize::from(*to)].take(&batch);
                assert_eq!(replicas[usize::from(*to)], apart, "a batch is the sum of its parts");
            }
            Step::Join(to, from) => {
                let other = replicas[usize::from(*from)].clone();
                replicas[usize::from(*to)].join(&other);
            }
            Step::Deliver(..) | Step::DeliverBatch(..) => {}
        }
    }
    History { replicas, updates }
}

fn joined<L: Lattice + Clone>(a: &L, b: &L) -> L {
    let mut both = a.clone();
    both.join(b);
    both
}

/// Every law that holds for all types; returns where all replicas end.
fn laws<S: Subject>(steps: &[Step<S::Op>]) -> S {
    let History { replicas, updates } = run::<S>(steps);
    let [a, b, c] = [0, 1, 2].map(|n| &replicas[n]);
    assert_eq!(joined(a, b), joined(b, a), "commutative");
    assert_eq!(joined(&joined(a, b), c), joined(a, &joined(b, c)), "associative");
    assert_eq!(joined(a, a), *a, "idempotent");
    assert_eq!(joined(&joined(a, b), b), joined(a, b), "monotone");
    let all = joined(&joined(a, b), c);
    // Every update once, in order and in reverse, into a replica that has nothing.
    let mut forward = S::default();
    updates.iter().for_each(|update| forward.take(update));
    let mut backward = S::default();
    updates.iter().rev().for_each(|update| backward.take(update));
    assert_eq!(forward, all, "deltas end where states end");
    assert_eq!(backward, all, "in any order");
    all
}

macro_rules! subject {
    ($type:ty, $op:ty, $update:ty, |$state:ident, $replica:ident, $at:ident, $o:ident| $apply:expr, $take:ident) => {
        impl Subject for $type {
            type Op = $op;
            type Update = $update;
            fn apply(&mut self, $replica: u8, $at: HlcTimestamp, $o: &$op) -> $update {
                let _ = ($replica, $at);
                let $state = self;
                $apply
            }
            fn take(&mut self, update: &$update) {
                self.$take(update);
            }
        }
    };
}

#[derive(Debug, Clone)]
enum SetOp {
    Insert(u8),
    Remove(u8),
}

fn set_ops() -> impl Strategy<Value = SetOp> {
    prop_oneof![(0..4_u8).prop_map(SetOp::Insert), (0..4_u8).prop_map(SetOp::Remove)]
}

#[derive(Debug, Clone)]
enum MapOp {
    Insert(u8, u8),
    Remove(u8),
    Clear,
}

fn map_ops() -> impl Strategy<Value = MapOp> {
    prop_oneof![
        6 => (0..4_u8, any::<u8>()).prop_map(|(key, value)| MapOp::Insert(key, value)),
        3 => (0..4_u8).prop_map(MapOp::Remove),
        1 => Just(MapOp::Clear),
    ]
}

type Nested = OrMap<u8, u8, DotMap<u8, DotSet<u8>>>;

subject!(
    GCounter<u8>,
    u8,
    GCounter<u8>,
    |s, r, at, op| s.increment(&r, u64::from(*op)).unwrap(),
    join
);
subject!(PnCounter<u8>, i8, PnCounter<u8>, |s, r, at, op| s.add(&r, i64::from(*op)).unwrap(), join);
subject!(
    ResettableCounter<u8>,
    Option<i8>,
    ResettableCounter<u8>,
    |s, r, at, op| match op {
        Some(by) => s.add(&r, i64::from(*by)).unwrap(),
        None => s.reset(),
    },
    join
);
subject!(GSet<u8>, u8, GSet<u8>, |s, r, at, op| s.insert(*op), join);
subject!(
    OrSet<u8, u8>, SetOp, Delta<u8, DotMap<u8, DotSet<u8>>>,
    |s, r, at, op| match op {
        SetOp::Insert(e) => s.insert(&r, *e),
        SetOp::Remove(e) => s.remove(*e),
    },
    join_delta
);
subject!(
    RwSet<u8, u8>, SetOp, Delta<u8, DotMap<u8, (DotSet<u8>, DotSet<u8>)>>,
    |s, r, at, op| match op {
        SetOp::Insert(e) => s.insert(&r, *e),
        SetOp::Remove(e) => s.remove(&r, *e),
    },
    join_delta
);
subject!(LwwRegister<u8>, u8, LwwRegister<u8>, |s, r, at, op| s.set(at, *op), join);
subject!(
    MvRegister<u8, u8>, Option<u8>, Delta<u8, purlin_crdt::DotFun<u8, u8>>,
    |s, r, at, op| match op {
        Some(value) => s.set(&r, *value),
        None => s.clear(),
    },
    join_delta
);
subject!(
    EwFlag<u8>, bool, Delta<u8, DotSet<u8>>,
    |s, r, at, op| if *op { s.enable(&r) } else { s.disable() },
    join_delta
);
subject!(
    DwFlag<u8>, bool, Delta<u8, (DotSet<u8>, DotSet<u8>)>,
    |s, r, at, op| if *op { s.enable(&r) } else { s.disable(&r) },
    join_delta
);
subject!(
    AwLwwMap<u8, u8, u8>, MapOp, purlin_crdt::map::AwLwwDelta<u8, u8, u8>,
    |s, r, at, op| match op {
        MapOp::Insert(key, value) => s.insert(&r, at, *key, *value),
        MapOp::Remove(key) => s.remove(*key),
        MapOp::Clear => s.clear(),
    },
    join_delta
);
subject!(
    Nested, MapOp, Delta<u8, DotMap<u8, DotMap<u8, DotSet<u8>>>>,
    |s, r, at, op| match op {
        MapOp::Insert(key, inner) => s.update(&r, *key, |present, dot| {
            let inner = inner % 4;
            let replaced = present.get(&inner).cloned().unwrap_or_default();
            (DotMap::one(inner, DotSet::one(dot)), DotMap::one(inner, replaced))
        }),
        MapOp::Remove(key) => s.remove_key(*key),
        MapOp::Clear => s.clear(),
    },
    join_delta
);

#[derive(Debug, Clone)]
enum TextOp {
    /// Where, wrapped into the text, and what.
    Insert(u8, String),
    Delete(u8, u8),
}

fn text_ops() -> impl Strategy<Value = TextOp> {
    prop_oneof![
        3 => (any::<u8>(), "[a-zß–🦀]{1,5}").prop_map(|(at, text)| TextOp::Insert(at, text)),
        1 => (any::<u8>(), 1..5_u8).prop_map(|(at, count)| TextOp::Delete(at, count)),
    ]
}

subject!(
    Text<u8>, TextOp, Delta<u8, TextStore<u8>>,
    |s, r, at, op| {
        let chars = s.chars();
        match op {
            TextOp::Insert(at, text) => s.insert(&r, usize::from(*at) % (chars + 1), text).unwrap(),
            TextOp::Delete(at, count) => {
                let begin = usize::from(*at) % (chars + 1);
                s.delete(begin..chars.min(begin + usize::from(*count))).unwrap()
            }
        }
    },
    join_delta
);

/// One operation of a naive model: who did what, and which earlier operations it had seen.
struct Did<Op> {
    op: Op,
    seen: BTreeSet<usize>,
}

/// Replays steps on sets of operation numbers: the definition of "seen", without any CRDT.
fn model<Op: Clone>(steps: &[Step<Op>]) -> Vec<Did<Op>> {
    let mut seen = vec![BTreeSet::new(); usize::from(REPLICAS)];
    let mut done: Vec<Did<Op>> = Vec::new();
    for step in steps {
        match step {
            Step::Apply(at, op) => {
                let mine = &mut seen[usize::from(*at)];
                done.push(Did { op: op.clone(), seen: mine.clone() });
                mine.insert(done.len() - 1);
            }
            // A delta carries its own operation only; what it removed is inside it.
            Step::Deliver(to, n) if !done.is_empty() => {
                seen[usize::from(*to)].insert(n % done.len());
            }
            Step::DeliverBatch(to, a, b) if !done.is_empty() => {
                seen[usize::from(*to)].extend([a % done.len(), b % done.len()]);
            }
            Step::Join(to, from) => {
                let theirs = seen[usize::from(*from)].clone();
                seen[usize::from(*to)].extend(theirs);
            }
            Step::Deliver(..) | Step::DeliverBatch(..) => {}
        }
    }
    done
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn g_counter(steps in steps(any::<u8>())) {
        let end = laws::<GCounter<u8>>(&steps);
        let sum: u128 = model(&steps).iter().map(|did| u128::from(did.op)).sum();
        prop_assert_eq!(end.value(), sum);
    }

    #[test]
    fn pn_counter(steps in steps(any::<i8>())) {
        let end = laws::<PnCounter<u8>>(&steps);
        let sum: i128 = model(&steps).iter().map(|did| i128::from(did.op)).sum();
        prop_assert_eq!(end.value(), sum);
    }

    #[test]
    fn resettable_counter(steps in steps(prop::option::weighted(0.8, any::<i8>()))) {
        let end = laws::<ResettableCounter<u8>>(&steps);
        if steps.iter().all(|step| !matches!(step, Step::Apply(_, None))) {
            let sum: i128 = model(&steps).iter().filter_map(|did| did.op).map(i128::from).sum();
            prop_assert_eq!(end.value(), sum);
        }
    }

    #[test]
    fn g_set(steps in steps(any::<u8>())) {
        let end = laws::<GSet<u8>>(&steps);
        let all: BTreeSet<u8> = model(&steps).iter().map(|did| did.op).collect();
        prop_assert_eq!(end.iter().copied().collect::<BTreeSet<_>>(), all);
    }

    #[test]
    fn or_set(steps in steps(set_ops())) {
        let end = laws::<OrSet<u8, u8>>(&steps);
        let done = model(&steps);
        // An add survives unless some operation on the same element had seen it.
        let expected: BTreeSet<u8> = done.iter().enumerate().filter_map(|(n, did)| match did.op {
            SetOp::Insert(e) => {
                let removed = done.iter().any(|later| {
                    matches!(later.op, SetOp::Remove(other) if other == e) && later.seen.contains(&n)
                });
                (!removed).then_some(e)
            }
            SetOp::Remove(_) => None,
        }).collect();
        let read: BTreeSet<u8> = end.iter().copied().collect();
        // A re-add replaces the dots it saw, and a remove of the re-add then removes both: the
        // model above only knows direct sight, so it may keep what the re-add already replaced.
        prop_assert!(read.is_subset(&expected), "resurrected: read {read:?}, model {expected:?}");
        for element in &expected {
            let last_unseen = done.iter().enumerate().any(|(n, did)| {
                matches!(did.op, SetOp::Insert(e) if e == *element)
                    && !done.iter().any(|later| {
                        matches!(later.op, SetOp::Insert(e) | SetOp::Remove(e) if e == *element)
                            && later.seen.contains(&n)
                    })
            });
            prop_assert!(!last_unseen || read.contains(element), "lost {element}");
        }
    }

    #[test]
    fn rw_set(steps in steps(set_ops())) {
        let end = laws::<RwSet<u8, u8>>(&steps);
        let done = model(&steps);
        for element in 0..4_u8 {
            // The operations on this element that no other operation on it had seen.
            let last: Vec<_> = done.iter().enumerate().filter(|(n, did)| {
                matches!(did.op, SetOp::Insert(e) | SetOp::Remove(e) if e == element)
                    && !done.iter().any(|later| {
                        matches!(later.op, SetOp::Insert(e) | SetOp::Remove(e) if e == element)
                            && later.seen.contains(n)
                    })
            }).map(|(_, did)| matches!(did.op, SetOp::Insert(_))).collect();
            let expected = !last.is_empty() && last.iter().all(|&is_insert| is_insert);
            prop_assert_eq!(end.contains(&element), expected, "element {}", element);
        }
    }

    #[test]
    fn lww_register(steps in steps(any::<u8>())) {
        let end = laws::<LwwRegister<u8>>(&steps);
        prop_assert_eq!(end.get().copied(), model(&steps).last().map(|did| did.op));
    }

    #[test]
    fn mv_register(steps in steps(prop::option::weighted(0.8, any::<u8>()))) {
        let end = laws::<MvRegister<u8, u8>>(&steps);
        let done = model(&steps);
        let unseen = |n: usize| !done.iter().any(|later| later.seen.contains(&n));
        let mut expected: Vec<u8> = done.iter().enumerate()
            .filter(|&(n, _)| unseen(n)).filter_map(|(_, did)| did.op).collect();
        let mut read: Vec<u8> = end.values().copied().collect();
        expected.sort_unstable();
        read.sort_unstable();
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn ew_flag(steps in steps(any::<bool>())) {
        let end = laws::<EwFlag<u8>>(&steps);
        let done = model(&steps);
        let unseen = |n: usize| !done.iter().any(|later| later.seen.contains(&n));
        let expected = done.iter().enumerate().any(|(n, did)| did.op && unseen(n));
        prop_assert_eq!(end.is_enabled(), expected);
    }

    #[test]
    fn dw_flag(steps in steps(any::<bool>())) {
        let end = laws::<DwFlag<u8>>(&steps);
        let done = model(&steps);
        let last: Vec<bool> = (0..done.len())
            .filter(|n| !done.iter().any(|later| later.seen.contains(n)))
            .map(|n| done[n].op).collect();
        prop_assert_eq!(end.is_enabled(), !last.is_empty() && last.iter().all(|&on| on));
    }

    #[test]
    fn aw_lww_map(steps in steps(map_ops())) {
        let end = laws::<AwLwwMap<u8, u8, u8>>(&steps);
        let done = model(&steps);
        for key in 0..4_u8 {
            let touches = |op: &MapOp| matches!(op, MapOp::Insert(k, _) | MapOp::Remove(k) if *k == key)
                || matches!(op, MapOp::Clear);
            let expected = done.iter().enumerate().rev().find_map(|(n, did)| match did.op {
                MapOp::Insert(k, value) if k == key => {
                    let gone = done.iter().any(|later| touches(&later.op) && later.seen.contains(&n));
                    (!gone).then_some(value)
                }
                MapOp::Insert(..) | MapOp::Remove(_) | MapOp::Clear => None,
            });
            prop_assert_eq!(end.get(&key).copied(), expected, "key {}", key);
        }
    }

    #[test]
    fn text(steps in steps(text_ops())) {
        // What is read is compared with a naive model in `text.rs`.
        let end = laws::<Text<u8>>(&steps);
        let bytes = postcard::to_stdvec(&end).unwrap();
        let again: Text<u8> = postcard::from_bytes(&bytes).unwrap();
        prop_assert_eq!(again.to_string(), end.to_string());
        prop_assert_eq!(again, end);
    }

    #[test]
    fn nested_or_map(steps in steps(map_ops())) {
        laws::<Nested>(&steps);
    }

    #[test]
    fn a_state_that_travels_in_pieces_loses_nothing_and_raises_nothing(steps in steps(map_ops()), piece in 1..4_usize) {
        let History { replicas, .. } = run::<AwLwwMap<u8, u8, u8>>(&steps);
        let from = &replicas[0];
        let mut to = replicas[1].clone();
        let whole = joined(&to, from);
        let keys: Vec<u8> = (0..4).collect();
        for range in keys.chunks(piece) {
            let entries: DotMap<u8, _> = from.causal().store().iter()
                .filter(|(key, _)| range.contains(key))
                .map(|(key, kept)| (*key, kept.clone())).collect();
            let before: Vec<_> = to.iter().map(|(key, _)| *key).filter(|key| !range.contains(key)).collect();
            to.causal_mut().join_piece(&entries, range.iter().copied(), from.causal().context());
            let after: Vec<_> = to.iter().map(|(key, _)| *key).filter(|key| !range.contains(key)).collect();
            prop_assert_eq!(before, after, "a piece says nothing about other keys");
        }
        to.causal_mut().absorb(from.causal().context());
        prop_assert_eq!(to, whole);
    }

    #[test]
    fn nested_maps_travel_in_pieces_too(steps in steps(map_ops())) {
        let History { replicas, .. } = run::<Nested>(&steps);
        let (from, mut to) = (&replicas[0], replicas[1].clone());
        let whole = joined(&to, from);
        for key in 0..4 {
            let entries = from.store().iter().filter(|(k, _)| **k == key)
                .map(|(key, kept)| (*key, kept.clone())).collect();
            to.join_piece(&entries, [key], from.context());
        }
        to.absorb(from.context());
        prop_assert_eq!(to, whole);
    }

    #[test]
    fn hostile_bytes_are_refused_or_obey_the_laws(a in prop::collection::vec(any::<u8>(), 0..120), b in prop::collection::vec(any::<u8>(), 0..120)) {
        type Map = Causal<u8, DotMap<u8, DotSet<u8>>>;
        if let (Ok(a), Ok(b)) = (postcard::from_bytes::<Map>(&a), postcard::from_bytes::<Map>(&b)) {
            let both = joined(&a, &b);
            let bytes = postcard::to_stdvec(&both).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Map>(&bytes).unwrap(), both);
        }
    }
}

#[test]
fn a_counter_at_its_end_says_so_and_keeps_its_value() {
    let mut counter = PnCounter::<u8>::default();
    counter.add(&1, i64::MAX).unwrap();
    counter.add(&1, i64::MAX).unwrap();
    let error = counter.add(&1, i64::MAX).unwrap_err();
    assert_eq!(error.count, u64::MAX - 1);
    assert_eq!(counter.value(), i128::from(i64::MAX) * 2);
}

#[test]
fn a_thousand_puts_are_a_thousand_keys_on_every_replica() {
    // The peer this answers ends with 200 of them, for good.
    let node = NodeId::new(NodeName::parse("n").unwrap(), Incarnation(1));
    let clock = Hlc::new(&node);
    let mut writer = AwLwwMap::<u8, u32, u32>::default();
    let mut reader = AwLwwMap::<u8, u32, u32>::default();
    for key in 0..1_000 {
        let at = clock.now(WallTime::from_millis(1)).unwrap();
        let delta = writer.insert(&1, at, key, key);
        if key % 3 != 0 {
            reader.join_delta(&delta);
        }
    }
    assert!(reader.len() < 1_000);
    reader.join(&writer);
    assert_eq!((reader.len(), reader), (1_000, writer));
}

/// Joins the second into the first and back; returns how many bytes the first has then.
fn settled<S: Lattice + serde::Serialize + PartialEq + Debug>(a: &mut S, b: &mut S) -> usize {
    a.join(b);
    b.join(a);
    assert_eq!(a, b);
    postcard::to_stdvec(a).unwrap().len()
}

#[test]
fn a_removed_element_leaves_nothing_but_its_place_in_the_context() {
    // Two lives, one number each and nothing besides: what 10,000 adds and removes leave behind.
    const BYTES_MAX: usize = 16;
    let clock = Hlc::new(&NodeId::new(NodeName::parse("n").unwrap(), Incarnation(1)));
    let now = || clock.now(WallTime::from_millis(1)).unwrap();
    let (mut set, mut other_set) = (OrSet::<u8, u32>::default(), OrSet::<u8, u32>::default());
    let (mut map, mut other_map) = (AwLwwMap::<u8, u32, u32>::default(), AwLwwMap::default());
    let (mut nested, mut other_nested) = (Nested::default(), Nested::default());
    for n in 0..10_000 {
        let key = u8::try_from(n % 251).unwrap();
        // Each side writes, the other removes: alone, and at the same time as a rewrite.
        other_set.join_delta(&set.insert(&1, n));
        set.join_delta(&other_set.remove(n));
        other_map.join_delta(&map.insert(&1, now(), n % 7, n));
        let rewritten = other_map.insert(&2, now(), n % 7, n);
        let removed = map.remove(n % 7);
        other_map.join_delta(&removed);
        map.join_delta(&rewritten);
        drop(map.remove(n % 7));
        let inner = |_: &_, dot| (DotMap::one(key, DotSet::one(dot)), DotMap::default());
        other_nested.join_delta(&nested.update(&1, key, inner));
        nested.join_delta(&other_nested.remove_key(key));
        if n % 1_000 == 999 {
            let bytes = [
                settled(&mut set, &mut other_set),
                settled(&mut map, &mut other_map),
                settled(&mut nested, &mut other_nested),
            ];
            assert!(bytes.iter().all(|&bytes| bytes <= BYTES_MAX), "after {n}: {bytes:?}");
            let gaps =
                [set.context().gaps(), map.causal().context().gaps(), nested.context().gaps()];
            assert_eq!(gaps, [0; 3]);
        }
    }
    assert!(set.store().is_empty() && map.is_empty() && nested.store().is_empty());
    let mut dots = 0;
    set.store().dots(&mut |_| dots += 1);
    assert_eq!(dots, 0);
}
