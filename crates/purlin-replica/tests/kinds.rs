//! Every kind a key can hold, against the types of `purlin-crdt`, whose laws are proved there: the
//! same operations, the same deltas lost, doubled and out of order, and on every replica at every
//! step the same to read.

#![expect(clippy::unwrap_used, reason = "a test that cannot build its input should fail loudly")]

use bytes::Bytes;
use proptest::prelude::*;
use purlin_core::{Hlc, Incarnation, NodeId, NodeName, WallTime, hlc::NodeTag};
use purlin_crdt::{
    Delta, DotSet, DwFlag, EwFlag, GCounter, Lattice as _, ResettableCounter, Text, TextStore,
};
use purlin_replica::{
    Cell, Kind, Splice, Wins, WriteError, Written,
    slot::Slot,
    store::{Store, Update},
};

const REPLICAS: usize = 3;

#[derive(Debug, Clone)]
enum Op {
    Grow(u8),
    Add(i8),
    Reset,
    Alarm(bool),
    Stop(bool),
    Insert(u16, u8),
    Delete(u16, u8),
    PutAt(Vec<u8>, u8),
    RemoveAt(Vec<u8>),
}

#[derive(Debug, Clone)]
enum Step {
    Apply(usize, Op),
    Deliver(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let path = || prop::collection::vec(0..2_u8, 1..4);
    let op = prop_oneof![
        any::<u8>().prop_map(Op::Grow),
        any::<i8>().prop_map(Op::Add),
        Just(Op::Reset),
        any::<bool>().prop_map(Op::Alarm),
        any::<bool>().prop_map(Op::Stop),
        (any::<u16>(), 1..5_u8).prop_map(|(at, n)| Op::Insert(at, n)),
        (any::<u16>(), 1..5_u8).prop_map(|(at, n)| Op::Delete(at, n)),
        (path(), any::<u8>()).prop_map(|(path, value)| Op::PutAt(path, value)),
        path().prop_map(Op::RemoveAt),
    ];
    let step = prop_oneof![
        1 => (0..REPLICAS, op).prop_map(|(at, op)| Step::Apply(at, op)),
        1 => (0..REPLICAS, any::<usize>()).prop_map(|(to, n)| Step::Deliver(to, n)),
    ];
    prop::collection::vec(step, 0..80)
}

/// The delta of the type beside.
#[derive(Debug, Clone)]
enum Beside {
    Grown(GCounter<NodeTag>),
    Added(ResettableCounter<NodeTag>),
    Alarm(Delta<NodeTag, DotSet<NodeTag>>),
    Stop(Delta<NodeTag, (DotSet<NodeTag>, DotSet<NodeTag>)>),
    Text(Delta<NodeTag, TextStore<NodeTag>>),
    Nothing,
}

#[derive(Default, Clone, Debug)]
struct Model {
    grown: GCounter<NodeTag>,
    added: ResettableCounter<NodeTag>,
    alarm: EwFlag<NodeTag>,
    stop: DwFlag<NodeTag>,
    text: Text<NodeTag>,
}

struct Replica {
    me: NodeTag,
    store: Store,
    model: Model,
    /// What this life added: it travels as one number each way.
    own: ResettableCounter<NodeTag>,
    clock: Hlc,
}

fn slot(name: &str) -> Slot {
    Slot::new(name.to_owned()).unwrap()
}

fn path(keys: &[u8]) -> Vec<Bytes> {
    keys.iter().map(|key| Bytes::from(vec![b'a' + key])).collect()
}

impl Replica {
    fn new(n: usize) -> Self {
        let node = NodeId::new(NodeName::parse(&format!("n{n}")).unwrap(), Incarnation(1));
        let me = NodeTag::of(&node);
        let own = ResettableCounter::default();
        Self { me, store: Store::new(me), model: Model::default(), own, clock: Hlc::new(&node) }
    }

    fn apply(&mut self, op: &Op) -> (Option<Update>, Beside) {
        let (store, model, me) = (&mut self.store, &mut self.model, &self.me);
        let chars = model.text.chars();
        let place = |at: u16| usize::from(at) % (chars + 1);
        match op {
            Op::Grow(by) => {
                let update = store.grow(slot("grown"), u64::from(*by)).unwrap();
                (Some(update), Beside::Grown(model.grown.increment(me, u64::from(*by)).unwrap()))
            }
            Op::Add(by) => {
                let update = store.add_resettable(slot("added"), i64::from(*by)).unwrap();
                self.own.join(&model.added.add(me, i64::from(*by)).unwrap());
                (Some(update), Beside::Added(self.own.clone()))
            }
            Op::Reset => (store.reset(slot("added")).unwrap(), Beside::Added(model.added.reset())),
            Op::Alarm(on) => {
                let update = store.switch(slot("alarm"), Wins::Enabling, *on).unwrap();
                let alarm = &mut model.alarm;
                (update, Beside::Alarm(if *on { alarm.enable(me) } else { alarm.disable() }))
            }
            Op::Stop(on) => {
                let update = store.switch(slot("stop"), Wins::Disabling, *on).unwrap();
                let stop = &mut model.stop;
                (update, Beside::Stop(if *on { stop.enable(me) } else { stop.disable(me) }))
            }
            Op::Insert(at, count) => {
                let text = "xyzzy"[..usize::from(*count)].to_uppercase();
                let update =
                    store.splice_text(&slot("text"), place(*at)..place(*at), &text).unwrap();
                (update, Beside::Text(model.text.insert(me, place(*at), &text).unwrap()))
            }
            Op::Delete(at, count) => {
                let range = place(*at)..chars.min(place(*at) + usize::from(*count));
                let update = store.splice_text(&slot("text"), range.clone(), "").unwrap();
                (update, Beside::Text(model.text.delete(range).unwrap()))
            }
            Op::PutAt(keys, value) => {
                let at = self.clock.now(WallTime::from_millis(1)).unwrap();
                let written = Written { at, expires: None, value: vec![*value].into() };
                let update = store.put_at(slot("nested"), path(keys), written).unwrap();
                let cell = store.get(&slot("nested")).unwrap();
                let on_it =
                    |at: &[Bytes]| at.starts_with(&path(keys)) || path(keys).starts_with(at);
                let seen: Vec<_> = cell.leaves().filter(|(at, _)| on_it(at)).collect();
                assert_eq!(seen.len(), 1, "a value stands in place of what was there: {seen:?}");
                assert_eq!(cell.leaf(&path(keys)).unwrap().value, vec![*value]);
                (Some(update), Beside::Nothing)
            }
            Op::RemoveAt(keys) => {
                let update = store.remove_at(&slot("nested"), &path(keys)).unwrap();
                let cell = store.get(&slot("nested")).cloned().unwrap_or_default();
                assert!(!cell.leaves().any(|(at, _)| at.starts_with(&path(keys))));
                (update, Beside::Nothing)
            }
        }
    }

    fn take(&mut self, update: Option<&Update>, beside: &Beside) {
        if let Some(update) = update {
            let bytes = postcard::to_stdvec(update).unwrap();
            self.store.join(&postcard::from_bytes(&bytes).unwrap());
        }
        let model = &mut self.model;
        match beside {
            Beside::Grown(delta) => model.grown.join(delta),
            Beside::Added(delta) => model.added.join(delta),
            Beside::Alarm(delta) => model.alarm.join_delta(delta),
            Beside::Stop(delta) => model.stop.join_delta(delta),
            Beside::Text(delta) => model.text.join_delta(delta),
            Beside::Nothing => {}
        }
    }

    fn check(&self) {
        let read = |name: &str| self.store.get(&slot(name)).cloned().unwrap_or_default();
        assert_eq!(read("grown").grown(), self.model.grown.value());
        assert_eq!(read("added").since_reset(), self.model.added.value());
        assert_eq!(read("alarm").is_on(Wins::Enabling), self.model.alarm.is_enabled());
        assert_eq!(read("stop").is_on(Wins::Disabling), self.model.stop.is_enabled());
        let text = read("text").text().map(ToString::to_string).unwrap_or_default();
        // Two stores number their writes differently, so what is concurrent may stand in another
        // order; its characters are the same.
        let sorted = |text: String| {
            let mut chars: Vec<char> = text.chars().collect();
            chars.sort_unstable();
            chars
        };
        assert_eq!(sorted(text), sorted(self.model.text.to_string()));
    }
}

fn entries(store: &Store) -> Vec<(Slot, Cell)> {
    store.iter().map(|(slot, cell)| (slot.clone(), cell.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_kind_reads_as_the_type_beside_it_and_converges(steps in steps()) {
        let mut replicas: Vec<Replica> = (0..REPLICAS).map(Replica::new).collect();
        let mut updates: Vec<(Option<Update>, Beside)> = Vec::new();
        for step in &steps {
            match step {
                // Positions mean the same only where both read the same text: alone, or caught up.
                Step::Apply(at, op) if matches!(op, Op::Insert(..) | Op::Delete(..)) => {
                    for (update, beside) in &updates {
                        replicas[*at].take(update.as_ref(), beside);
                    }
                    updates.push(replicas[*at].apply(op));
                }
                Step::Apply(at, op) => updates.push(replicas[*at].apply(op)),
                Step::Deliver(to, n) if !updates.is_empty() => {
                    let (update, beside) = &updates[n % updates.len()];
                    if !matches!(beside, Beside::Text(_)) {
                        replicas[*to].take(update.as_ref(), beside);
                    }
                }
                Step::Deliver(..) => {}
            }
            replicas.iter().for_each(Replica::check);
        }
        for (n, replica) in replicas.iter_mut().enumerate() {
            for at in 0..updates.len() {
                // Everybody in an order of their own.
                let (update, beside) = &updates[(at * (2 * n + 1) + n) % updates.len()];
                replica.take(update.as_ref(), beside);
            }
            for (update, beside) in &updates {
                replica.take(update.as_ref(), beside);
            }
            replica.check();
        }
        for replica in &replicas {
            prop_assert_eq!(entries(&replica.store), entries(&replicas[0].store));
        }
        // What one sends to another in one piece is what it has.
        for (slot, cell) in entries(&replicas[0].store) {
            let bytes = postcard::to_stdvec(&cell).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Cell>(&bytes).unwrap(), cell, "{:?}", slot);
        }
    }

    #[test]
    fn hostile_cells_are_refused_or_have_one_form(bytes in prop::collection::vec(prop_oneof![0..14_u8, any::<u8>()], 0..60)) {
        if let Ok(cell) = postcard::from_bytes::<Cell>(&bytes) {
            let again = postcard::to_stdvec(&cell).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Cell>(&again).unwrap(), cell.clone());
            let _read = (cell.bytes(), cell.writers(), cell.text().map(ToString::to_string));
        }
    }
}

#[test]
fn a_wrong_kind_names_both() {
    let mut store = Replica::new(0).store;
    drop(store.grow(slot("k"), 1).unwrap());
    for refused in [
        store.add(slot("k"), 1).unwrap_err(),
        store.switch(slot("k"), Wins::Enabling, true).unwrap_err(),
        store.splice_text(&slot("k"), 0..0, "x").unwrap_err(),
        store.reset(slot("k")).unwrap_err(),
    ] {
        let WriteError::WrongKind { is, asked, .. } = &refused else { panic!("{refused}") };
        assert_eq!(*is, Kind::GrowCounter);
        let text = refused.to_string();
        assert!(text.contains("grow_counter") && text.contains(asked.word()), "{text}");
    }
}

#[test]
fn a_counter_removed_while_another_side_resets_it_begins_anew() {
    let (mut a, mut b) = (Replica::new(0).store, Replica::new(1).store);
    b.join(&a.add_resettable(slot("n"), 5).unwrap());
    let reset = b.reset(slot("n")).unwrap().unwrap();
    let removed = a.remove_kind(&slot("n"), Kind::ResettableCounter).unwrap().unwrap();
    let added = a.add_resettable(slot("n"), 1).unwrap();
    a.join(&reset);
    b.join(&added);
    b.join(&removed);
    for store in [&a, &b] {
        assert_eq!(
            store.get(&slot("n")).unwrap().since_reset(),
            1,
            "no reset eats what it never saw"
        );
    }
}

#[test]
fn every_word_is_a_kind_and_every_kind_has_one() {
    for kind in Kind::ALL {
        assert_eq!(kind.word().parse::<Kind>().unwrap(), *kind);
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.word());
    }
    assert!("gcounter".parse::<Kind>().is_err());
}

#[test]
fn a_text_saved_as_a_whole_changes_only_what_differs() {
    let (mut a, mut b) = (Replica::new(0).store, Replica::new(1).store);
    b.join(&a.replace_text(&slot("t"), "dear all,\nsee you at 9\nada").unwrap().unwrap());
    let theirs =
        b.replace_text(&slot("t"), "dear all,\nsee you at 9\nada and bob").unwrap().unwrap();
    let mine = a.replace_text(&slot("t"), "dear all,\nsee you at 10:30\nada").unwrap().unwrap();
    a.join(&theirs);
    b.join(&mine);
    for store in [&a, &b] {
        let text = store.get(&slot("t")).unwrap().text().unwrap().to_string();
        assert_eq!(text, "dear all,\nsee you at 10:30\nada and bob");
    }
    assert!(
        a.replace_text(&slot("t"), "dear all,\nsee you at 10:30\nada and bob").unwrap().is_none()
    );
}

proptest! {
    #[test]
    fn a_splice_between_two_texts_makes_the_one_of_the_other(a in "[abß]{0,8}", b in "[abß]{0,8}") {
        let splice = Splice::between(&a, &b);
        let mut chars: Vec<char> = a.chars().collect();
        chars.splice(splice.at..splice.at + splice.delete, splice.insert.chars());
        prop_assert_eq!(chars.into_iter().collect::<String>(), b);
    }
}
