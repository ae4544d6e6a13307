//! Scenarios: inputs in, outputs and states compared. Bad input has a test each; figures that count
//! bytes and rounds are taken here, where neither time nor a machine can change them.

use std::collections::BTreeMap;

use purlin_core::{Hlc, Incarnation, NodeName};

use super::*;
use crate::{
    cell::{Kind, Written},
    store::VALUE_BYTES_MAX,
    wire::{Greeting, Terms},
};

const WALL: WallTime = WallTime::from_millis(1_000_000);

fn id(name: &str) -> NodeId {
    NodeId::new(NodeName::parse(name).unwrap(), Incarnation(1))
}

fn slot(key: &str) -> Slot {
    Slot::new(key.to_owned()).unwrap()
}

struct One {
    id: NodeId,
    sync: Sync,
    hlc: Hlc,
    told: Vec<Output>,
}

/// A few replicas and what is on the way between them, delivered in order and at once.
struct Few {
    nodes: Vec<One>,
    now: Instant,
    wire: std::collections::VecDeque<(NodeId, NodeId, Vec<u8>)>,
    /// Bytes from one to another, and messages.
    sent: BTreeMap<(NodeId, NodeId), (usize, usize)>,
    largest: usize,
}

impl Few {
    fn new<const N: usize>(names: [&str; N]) -> Self {
        Self::with(names, SyncConfig::default())
    }

    fn with<const N: usize>(names: [&str; N], config: SyncConfig) -> Self {
        let nodes = names.map(|name| {
            let id = id(name);
            let mut sync = Sync::new(config, &id, Instant::ZERO, Rng::from_seed(7));
            sync.begin(&Interest::all(), &mut Vec::new());
            One { hlc: Hlc::new(&id), sync, id, told: Vec::new() }
        });
        let wire = std::collections::VecDeque::new();
        let nodes = nodes.into_iter().collect();
        Self { nodes, now: Instant::ZERO, wire, sent: BTreeMap::new(), largest: 0 }
    }

    fn input(&mut self, n: usize, input: Input) {
        self.input_at(n, WALL, input);
    }

    fn input_at(&mut self, n: usize, wall: WallTime, input: Input) {
        let mut out = Vec::new();
        self.nodes[n].sync.step(self.now, wall, input, &mut out);
        self.carry_out(n, out);
    }

    fn carry_out(&mut self, n: usize, out: Vec<Output>) {
        for output in out {
            let Output::Send(to, message) = output else {
                self.nodes[n].told.push(output);
                continue;
            };
            let bytes = message.encode();
            let from = self.nodes[n].id.clone();
            let sent = self.sent.entry((from.clone(), to.clone())).or_default();
            *sent = (sent.0 + bytes.len(), sent.1 + 1);
            self.largest = self.largest.max(bytes.len());
            self.wire.push_back((from, to, bytes));
        }
    }

    /// Delivers all that is on the way, and what it leads to.
    fn settle(&mut self) {
        while let Some((from, to, bytes)) = self.wire.pop_front() {
            if let Some(n) = self.nodes.iter().position(|node| node.id == to) {
                let message = Message::decode(&bytes).unwrap();
                self.input(n, Input::Heard(from, message));
            }
        }
    }

    fn wait(&mut self, pause: Duration) {
        self.now = self.now + pause;
        for n in 0..self.nodes.len() {
            self.input(n, Input::Woke);
        }
        self.settle();
    }

    fn connect(&mut self) {
        let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id.clone()).collect();
        for n in 0..ids.len() {
            for other in ids.iter().filter(|id| **id != ids[n]) {
                self.input(n, Input::Up(other.clone()));
            }
        }
        self.settle();
    }

    fn cut(&mut self) {
        let ids: Vec<NodeId> = self.nodes.iter().map(|node| node.id.clone()).collect();
        for n in 0..ids.len() {
            for other in ids.iter().filter(|id| **id != ids[n]) {
                self.input(n, Input::Down(other.clone()));
            }
        }
        self.wire.clear();
    }

    fn write(
        &mut self,
        n: usize,
        key: &str,
        change: impl FnOnce(&mut Store, Slot, Written) -> Result<Update, WriteError>,
    ) -> Result<bool, WriteError> {
        let at = self.nodes[n].hlc.now(WALL).unwrap();
        let written = Written { at, expires: None, value: b"value"[..].into() };
        let mut out = Vec::new();
        let slot = slot(key);
        let done = self.nodes[n].sync.write(
            self.now,
            &slot,
            |store| change(store, slot.clone(), written).map(Some),
            &mut out,
        );
        self.carry_out(n, out);
        done
    }

    fn put(&mut self, n: usize, key: &str) {
        self.write(n, key, |store, slot, written| store.put(slot, written)).unwrap();
    }

    fn has(&self, n: usize, key: &str) -> bool {
        self.nodes[n].sync.store().get(&slot(key)).is_some()
    }

    fn counters(&self, n: usize) -> Counters {
        self.nodes[n].sync.counters()
    }

    fn lag(&self, n: usize) -> Lag {
        self.nodes[n].sync.lag(self.now).remove(0)
    }

    fn assert_equal(&self) {
        let all = Interest::all();
        let root = |node: &One| node.sync.store().digests(&all).root();
        assert!(self.nodes.iter().all(|node| root(node) == root(&self.nodes[0])));
    }
}

/// An update as a node called `life` would make it.
fn update_of(life: &str, key: &str, millis: u64, value: usize) -> Update {
    let node = id(life);
    let at = Hlc::new(&node).now(WallTime::from_millis(millis)).unwrap();
    let dot = purlin_core::Dot { node: NodeTag::of(&node), counter: 1 };
    let cell = Cell::one(dot, Written { at, expires: None, value: vec![1; value].into() });
    Update::new(Entries::one(slot(key), cell), std::iter::once(dot).collect())
}

fn updates(update: Update) -> Message {
    Message::Updates { upto: 1, update, by: 1, whole: true }
}

#[test]
fn a_delta_of_a_life_never_heard_of_is_taken_in_like_any_other() {
    let mut few = Few::new(["a", "b"]);
    few.connect();
    // It came through b, whose neighbour the unknown is.
    let update = update_of("unknown", "k", 1_000_000, 5);
    few.input(0, Input::Heard(id("b"), updates(update)));
    assert!(few.has(0, "k"));
    assert_eq!(few.nodes[0].sync.context_size().lives, 1);
    // From the unknown itself, who is no neighbour: counted, and left to whoever is one.
    let update = update_of("unknown", "j", 1_000_000, 5);
    few.input(0, Input::Heard(id("unknown"), updates(update)));
    assert!(!few.has(0, "j"));
    assert_eq!(few.counters(0).strangers, 1);
}

#[test]
fn a_message_of_a_newer_version_is_answered_with_both_versions_and_shown() {
    let mut few = Few::new(["a", "b"]);
    few.connect();
    few.put(0, "before");
    few.settle();
    let newer = Message::decode(&[9, 1, 2, 3]).unwrap_err();
    assert_eq!(newer, MessageError::Version(9));
    few.input(0, Input::Malformed(id("b"), newer));
    let (_, _, answer) = few.wire.back().unwrap().clone();
    let speaks = Versions::OURS;
    assert_eq!(Message::decode(&answer).unwrap(), Message::Unreadable { heard: 9, speaks });
    few.settle();
    assert_eq!((few.counters(0).incompatible, few.counters(1).incompatible), (1, 1));
    assert_eq!(few.lag(0).incompatible, Some(Versions { oldest: 9, newest: 9 }));
    assert_eq!(few.lag(1).incompatible, Some(speaks));
    assert!(matches!(few.nodes[0].told[..], [.., Output::Incompatible(..)]));
    // Nothing is kept for it meanwhile, and nothing is lost: a new connection begins anew.
    few.put(0, "meanwhile");
    assert_eq!(few.lag(0).writes, 0);
    few.connect();
    few.wait(Duration::from_secs(2));
    assert!(few.has(1, "meanwhile") && few.lag(0).incompatible.is_none());
}

#[test]
fn releases_without_a_common_version_tell_each_other_in_their_greetings() {
    let mut few = Few::new(["a", "b"]);
    few.input(0, Input::Up(id("b")));
    let theirs = Versions { oldest: 2, newest: 3 };
    let greeting = Greeting {
        speaks: theirs,
        number: 1,
        heard: 0,
        asks: true,
        keeps: Interest::all(),
        wants: Interest::all(),
        keeps_own: true,
    };
    // A later release says more behind what is known here.
    let mut bytes = Message::Greet(greeting).encode();
    bytes.extend([42; 10]);
    few.input(0, Input::Heard(id("b"), Message::decode(&bytes).unwrap()));
    assert_eq!(few.lag(0).incompatible, Some(theirs));
    assert_eq!(few.lag(0).version, None);
    assert_eq!(few.counters(0).incompatible, 1);
}

#[test]
fn neighbouring_versions_find_the_highest_both_speak() {
    let versions = |oldest, newest| Versions { oldest, newest };
    for (ours, theirs, common) in [
        (versions(1, 1), versions(1, 2), Some(1)),
        (versions(2, 3), versions(1, 2), Some(2)),
        (versions(2, 3), versions(3, 4), Some(3)),
        (versions(1, 1), versions(2, 3), None),
        (versions(3, 4), versions(1, 2), None),
    ] {
        assert_eq!(ours.common(theirs), common, "{ours} and {theirs}");
        assert_eq!(theirs.common(ours), common, "{theirs} and {ours}");
    }
}

#[test]
fn a_delta_of_the_wrong_type_loses_neither_side_and_is_counted() {
    let mut few = Few::new(["a", "b"]);
    few.put(0, "k");
    few.write(1, "k", |store, slot, _| store.add(slot, 5)).unwrap();
    few.connect();
    few.assert_equal();
    for n in 0..2 {
        let cell = few.nodes[n].sync.store().get(&slot("k")).unwrap();
        assert_eq!(cell.kinds().collect::<Vec<_>>(), [Kind::Register, Kind::Counter]);
        assert_eq!(few.counters(n).mixed, 1);
    }
    let refused = few.write(0, "k", |store, slot, _| store.add(slot, 1)).unwrap_err();
    assert!(matches!(refused, WriteError::WrongKind { .. }), "{refused}");
}

#[test]
fn a_value_over_the_limit_is_refused_and_the_rest_of_the_batch_is_not() {
    let mut few = Few::new(["a", "b"]);
    few.connect();
    let refused = few.write(0, "k", |store, slot, written| {
        store.put(slot, Written { value: vec![0; VALUE_BYTES_MAX + 1].into(), ..written })
    });
    assert_eq!(refused.unwrap_err().to_string(), "value of 1048577 bytes exceeds limit 1048576");
    assert!(!few.has(0, "k"), "nothing was changed");
    let mut update = update_of("b", "large", 1_000_000, VALUE_BYTES_MAX + 1);
    purlin_crdt::Lattice::join(&mut update, &update_of("c", "fine", 1_000_000, 5));
    few.input(0, Input::Heard(id("b"), updates(update)));
    assert!(few.has(0, "fine") && !few.has(0, "large"));
    assert_eq!((few.counters(0).too_large, few.counters(0).updates_refused), (1, 1));
    let (_, _, answer) = few.wire.back().unwrap().clone();
    let Message::Refuse { reason, .. } = Message::decode(&answer).unwrap() else {
        panic!("it is confirmed");
    };
    assert_eq!(reason, "key large holds a value of 1048577 bytes, which exceeds limit 1048576");
    few.settle();
    assert_eq!(few.lag(1).refused.as_deref(), Some(&reason[..]), "and shown where it came from");
}

#[test]
fn a_write_ten_minutes_ahead_is_refused_counted_and_taken_in_when_its_time_comes() {
    let mut few = Few::new(["a", "b"]);
    few.connect();
    // The clock of b is ten minutes fast; its own writes hold there.
    let ahead = WallTime::from_millis(WALL.as_millis() + 600_000);
    let at = Hlc::new(&id("b")).now(ahead).unwrap();
    few.write(1, "early", |store, slot, written| store.put(slot, Written { at, ..written }))
        .unwrap();
    few.put(1, "fine");
    few.settle();
    assert!(few.has(1, "early") && !few.has(0, "early"));
    few.wait(Duration::from_secs(2));
    assert!(few.has(0, "fine"), "the rest of the batch is taken in");
    assert!(few.counters(0).future >= 2 && few.lag(1).writes > 0);
    let refused = few.lag(1).refused.unwrap();
    assert!(refused.contains("more than 10s ahead of this node's clock"), "{refused}");
    // Comparisons bring no more than updates do, and do not pass for caught up.
    few.cut();
    few.connect();
    assert!(!few.has(0, "early") && few.lag(0).caught_up.is_none());
    few.now = few.now + Duration::from_secs(40);
    for n in 0..2 {
        few.input_at(n, ahead, Input::Woke);
    }
    while let Some((from, to, bytes)) = few.wire.pop_front() {
        let n = few.nodes.iter().position(|node| node.id == to).unwrap();
        few.input_at(n, ahead, Input::Heard(from, Message::decode(&bytes).unwrap()));
    }
    assert!(few.has(0, "early"), "nothing is lost");
    few.assert_equal();
}

#[test]
fn a_counter_never_wraps_here_nor_when_shares_are_summed() {
    let mut few = Few::new(["a", "b"]);
    few.connect();
    for n in 0..2 {
        few.write(n, "k", |store, slot, _| store.add(slot, i64::MAX)).unwrap();
        few.settle();
    }
    let refused = few.write(0, "k", |store, slot, _| store.add(slot, 1)).unwrap_err();
    assert_eq!(
        refused.to_string(),
        format!("adding 1 to this node's count of {} leaves the range of 64 bits", i64::MAX)
    );
    for n in 0..2 {
        let cell = few.nodes[n].sync.store().get(&slot("k")).unwrap();
        assert_eq!(cell.count(), 2 * i128::from(i64::MAX));
    }
}

#[test]
fn claims_of_writes_never_made_here_are_refused_and_counted() {
    let mut few = Few::new(["a", "b"]);
    few.connect();
    let forged = update_of("a", "forged", 1_000_000, 5);
    few.input(0, Input::Heard(id("b"), updates(forged)));
    assert!(!few.has(0, "forged"));
    assert_eq!((few.counters(0).forged, few.counters(0).updates_refused), (1, 1));
    few.put(0, "mine");
    few.settle();
    assert!(few.has(0, "mine") && few.has(1, "mine"), "its own dots are its own still");
}

#[test]
fn hostile_bytes_are_no_message_or_a_bounded_one() {
    let mut rng = Rng::from_seed(3);
    let mut few = Few::new(["a", "b"]);
    few.connect();
    few.put(0, "k");
    let valid: Vec<Vec<u8>> = few.wire.iter().map(|(_, _, bytes)| bytes.clone()).collect();
    for _ in 0..20_000 {
        let mut bytes = valid[rng.below(valid.len())].clone();
        for _ in 0..=rng.below(4) {
            let at = rng.below(bytes.len());
            bytes[at] = u8::try_from(rng.below(256)).unwrap();
        }
        bytes.truncate(1 + rng.below(bytes.len()));
        let input = match Message::decode(&bytes) {
            Ok(message) => Input::Heard(id("b"), message),
            Err(error) => Input::Malformed(id("b"), error),
        };
        few.input(0, input);
        few.wire.clear();
    }
    assert!(few.counters(0).malformed > 1_000);
    assert!(few.has(0, "k"), "what is here stays");
}

#[test]
fn three_replicas_take_in_ten_thousand_puts_within_twice_their_bytes() {
    let mut few = Few::new(["a", "b", "c"]);
    few.connect();
    few.sent.clear();
    let mut payload = 0;
    for n in 0..10_000 {
        let key = format!("key:{n:06}");
        few.put(0, &key);
        payload += key.len() + "value".len();
        // A round trip takes as long as some writes.
        if n % 40 == 0 {
            few.settle();
        }
    }
    few.settle();
    few.assert_equal();
    assert_eq!(few.nodes[2].sync.store().len(), 10_000);
    for to in ["b", "c"] {
        let there = few.sent[&(id("a"), id(to))].0;
        let back = few.sent[&(id(to), id("a"))].0;
        assert!(there + back <= 2 * payload, "{there} + {back} bytes for {payload} to {to}");
    }
}

#[test]
fn one_change_among_a_million_keys_takes_three_rounds_and_fifty_kilobytes() {
    let mut few = Few::new(["a", "b"]);
    // The other gets it all in pieces, of bounded size and one at a time.
    for n in 0..1_000_000 {
        few.put(0, &format!("{n}"));
    }
    few.connect();
    few.assert_equal();
    assert!(few.largest < 600 << 10, "no message is larger: {}", few.largest);
    assert_eq!(few.counters(1).entries_pulled, 1_000_000, "each entry once");
    few.cut();
    few.put(0, "777");
    few.sent.clear();
    // Rounds of the side that lacks the change: what it asked, once both have greeted.
    few.connect();
    few.assert_equal();
    let (bytes, messages) =
        few.sent.values().fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1));
    assert!(bytes <= 50_000, "{bytes} bytes");
    assert!(messages <= 16, "{messages} messages");
    assert_eq!((few.counters(1).compared, few.counters(1).differed), (2, 2));
}

#[test]
fn a_million_keys_at_once_wait_within_the_bound_of_the_log() {
    let config =
        SyncConfig { log_bytes_max: 1 << 20, batch_bytes: 64 << 10, ..SyncConfig::default() };
    let mut few = Few::with(["a", "b"], config);
    few.connect();
    // b answers nothing for a while.
    for n in 0..200_000 {
        few.put(0, &format!("{n}"));
    }
    assert!(few.nodes[0].sync.log_bytes() <= 1 << 20);
    assert_eq!(few.wire.len(), 1, "one batch is under way, the rest waits for its confirmation");
    few.settle();
    few.wait(Duration::from_secs(2));
    few.assert_equal();
    assert!(few.largest <= 3 * (64 << 10), "{}", few.largest);
}

#[test]
fn terms_that_changed_meanwhile_end_a_comparison_and_drop_nothing() {
    let mut few = Few::new(["a", "b"]);
    few.connect();
    few.put(0, "x:1");
    few.put(0, "y:1");
    few.settle();
    // b keeps fewer keys, but a still asks by what it knew before.
    let mut out = Vec::new();
    let only_x = Interest::prefixes(["x:"]).unwrap();
    few.nodes[1].sync.set_interest(few.now, only_x.clone(), &mut out).unwrap();
    let terms = Terms { asker: 1, answerer: 1 };
    let fetch = Message::Fetch {
        session: crate::wire::Session(1),
        terms,
        branch: 0,
        hashes: Vec::new(),
        from: None,
    };
    few.input(1, Input::Heard(id("a"), fetch));
    let answers: Vec<Message> =
        few.wire.drain(..).map(|(_, _, bytes)| Message::decode(&bytes).unwrap()).collect();
    assert!(answers.iter().all(|answer| matches!(answer, Message::Greet(_))), "{answers:?}");
    few.carry_out(1, out);
    few.settle();
    few.wait(Duration::from_secs(2));
    assert!(few.has(0, "y:1") && few.has(1, "x:1"));
    assert!(!few.has(1, "y:1"), "a has it, so b lets it go");
    assert_eq!(few.nodes[1].sync.interest(), (&only_x, &only_x));
    let refused = few.write(1, "y:2", |store, slot, written| store.put(slot, written));
    assert_eq!(
        refused.unwrap_err().to_string(),
        "key y:2 is outside of what this node keeps: keys from x:"
    );
}

#[test]
fn the_last_to_keep_a_key_does_not_let_go_of_it() {
    let mut few = Few::new(["a", "b"]);
    few.connect();
    few.put(0, "y:1");
    few.settle();
    for n in 0..2 {
        let mut out = Vec::new();
        let only_x = Interest::prefixes(["x:"]).unwrap();
        few.nodes[n].sync.set_interest(few.now, only_x, &mut out).unwrap();
        few.carry_out(n, out);
    }
    few.settle();
    for _ in 0..20 {
        few.wait(Duration::from_secs(5));
    }
    assert!(few.has(0, "y:1") && few.has(1, "y:1"), "nobody else wants it");
    let mut out = Vec::new();
    few.nodes[0].sync.set_interest(few.now, Interest::all(), &mut out).unwrap();
    few.carry_out(0, out);
    few.settle();
    few.wait(Duration::from_secs(5));
    assert!(few.has(0, "y:1") && !few.has(1, "y:1"));
}

#[test]
fn only_keys_of_both_travel() {
    let mut few = Few::new(["a", "b"]);
    let only_x = Interest::prefixes(["x:"]).unwrap();
    let mut fresh = Sync::new(SyncConfig::default(), &id("b"), few.now, Rng::from_seed(7));
    fresh.begin(&only_x, &mut Vec::new());
    few.nodes[1].sync = fresh;
    for n in 0..1_000 {
        few.put(0, &format!("y:{n}"));
    }
    few.put(0, "x:1");
    few.connect();
    assert!(few.has(1, "x:1"));
    assert_eq!(few.nodes[1].sync.store().len(), 1);
    few.sent.clear();
    for n in 0..1_000 {
        few.put(0, &format!("y:{n}"));
        few.settle();
    }
    assert_eq!(few.sent.values().map(|sent| sent.1).sum::<usize>(), 0, "nothing is said of others");
    few.put(0, "x:2");
    few.settle();
    assert!(few.has(1, "x:2"));
}
