use std::collections::VecDeque;

use proptest::prelude::*;
use purlin_core::{Incarnation, NodeName};

use super::*;

const LIMITS: InterestLimits = InterestLimits { entries_max: 8 };

fn node(name: &str) -> NodeId {
    NodeId::new(NodeName::parse(name).unwrap(), Incarnation(1))
}

fn at(millis: u64) -> Instant {
    Instant::from_start(Duration::from_millis(millis))
}

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap()
}

fn text(entries: &[&str]) -> Vec<Arc<str>> {
    entries.iter().map(|entry| Arc::from(*entry)).collect()
}

/// One announcer, one listener, and the two directions of `control` between them.
struct Pair {
    announcer: Announcer,
    listener: PeerInterest,
    to_listener: VecDeque<InterestFrame>,
    to_announcer: VecDeque<InterestFrame>,
    now: u64,
}

impl Pair {
    fn connected() -> Self {
        let mut pair = Self {
            announcer: Announcer::new(LIMITS),
            listener: PeerInterest::new(LIMITS),
            to_listener: VecDeque::new(),
            to_announcer: VecDeque::new(),
            now: 0,
        };
        pair.announcer.peer_up(node("b"));
        pair
    }

    fn flush(&mut self) {
        let mut out = Vec::new();
        self.announcer.flush(at(self.now), &mut out);
        self.to_listener.extend(out.into_iter().map(|send| send.frame));
        self.to_announcer.extend(self.listener.question(at(self.now)));
    }

    fn deliver_one(&mut self) -> bool {
        if let Some(frame) = self.to_listener.pop_front() {
            let frame = InterestFrame::decode(&frame.encode()).unwrap();
            self.to_announcer.extend(self.listener.apply(at(self.now), frame).answer);
            return true;
        }
        match self.to_announcer.pop_front() {
            Some(InterestFrame::Ask) => self.announcer.resend(&node("b"), true),
            Some(InterestFrame::Known { version }) => {
                self.announcer.known(at(self.now), &node("b"), version)
            }
            Some(other) => panic!("a listener never sends {other:?}"),
            None => return false,
        }
        true
    }

    fn run(&mut self) {
        for _ in 0..6 {
            self.flush();
            while self.deliver_one() {}
            self.now += 1_500;
        }
    }
}

#[test]
fn a_peer_hears_nothing_before_it_asks_and_everything_after() {
    let mut pair = Pair::connected();
    pair.announcer.subscribed(&pattern("a"));
    let mut out = Vec::new();
    pair.announcer.flush(at(0), &mut out);
    assert_eq!(out, []);
    pair.announcer.resend(&node("b"), true);
    pair.announcer.flush(at(0), &mut out);
    let frame = InterestFrame::Snapshot { version: 2, part: 0, last: true, entries: text(&["a"]) };
    assert_eq!(out, [Send { to: node("b"), frame }]);
}

#[test]
fn only_the_first_and_the_last_subscriber_of_a_topic_are_announced() {
    let mut announcer = Announcer::new(LIMITS);
    assert!(announcer.subscribed(&pattern("a")));
    assert!(!announcer.subscribed(&pattern("a")));
    assert!(!announcer.unsubscribed(&pattern("a")));
    assert!(announcer.unsubscribed(&pattern("a")));
}

#[test]
fn changes_of_one_flush_travel_in_one_delta() {
    let mut pair = Pair::connected();
    pair.run();
    for topic in ["a", "b", "gone"] {
        pair.announcer.subscribed(&pattern(topic));
    }
    pair.announcer.unsubscribed(&pattern("gone"));
    pair.flush();
    let delta = InterestFrame::Delta { from: 1, added: text(&["a", "b"]), removed: vec![] };
    assert_eq!(pair.to_listener, [delta]);
    pair.run();
    assert!(pair.listener.wants("a") && !pair.listener.wants("gone"));
    assert!(pair.announcer.is_known_everywhere(2, &[]));
}

#[test]
fn a_lost_delta_is_noticed_by_the_next_one() {
    let mut pair = Pair::connected();
    pair.run();
    pair.announcer.subscribed(&pattern("lost"));
    pair.flush();
    pair.to_listener.clear();
    pair.announcer.subscribed(&pattern("next"));
    pair.flush();
    assert!(pair.deliver_one());
    assert_eq!(pair.to_announcer, [InterestFrame::Ask]);
    pair.run();
    assert!(pair.listener.wants("lost") && pair.listener.wants("next"));
}

#[test]
fn a_lost_last_delta_is_noticed_by_its_missing_answer() {
    let mut pair = Pair::connected();
    pair.run();
    pair.announcer.subscribed(&pattern("lost"));
    pair.flush();
    pair.to_listener.clear();
    assert!(pair.announcer.is_waiting());
    pair.run();
    assert!(pair.listener.wants("lost"));
    assert!(!pair.announcer.is_waiting());
}

#[test]
fn a_node_that_stops_wants_nothing_any_more() {
    let mut pair = Pair::connected();
    pair.announcer.subscribed(&pattern("a"));
    pair.run();
    pair.announcer.withdraw();
    pair.announcer.subscribed(&pattern("b"));
    pair.announcer.unsubscribed(&pattern("a"));
    pair.run();
    assert!(pair.listener.is_known() && !pair.listener.wants("a") && !pair.listener.wants("b"));
}

#[test]
fn above_the_bound_a_node_announces_everything_and_comes_back() {
    let mut pair = Pair::connected();
    let topics: Vec<Pattern> = (0..9).map(|i| pattern(&format!("t{i}"))).collect();
    for topic in &topics {
        pair.announcer.subscribed(topic);
    }
    pair.run();
    assert!(pair.announcer.is_coarse() && pair.listener.is_coarse());
    assert!(pair.listener.wants("never/announced"));
    for topic in &topics[4..] {
        pair.announcer.unsubscribed(topic);
    }
    pair.run();
    assert!(!pair.announcer.is_coarse() && !pair.listener.is_coarse());
    assert!(pair.listener.wants("t3") && !pair.listener.wants("t8"));
}

#[test]
fn a_listener_with_a_lower_bound_takes_everything_rather_than_losing_some() {
    let mut pair = Pair::connected();
    pair.listener = PeerInterest::new(InterestLimits { entries_max: 2 });
    for topic in ["a", "b", "c"] {
        pair.announcer.subscribed(&pattern(topic));
        pair.run();
    }
    assert!(pair.listener.is_coarse() && pair.listener.wants("d"));
    assert_eq!(pair.listener.entries(), 0);
}

#[test]
fn junk_entries_are_counted_and_the_rest_is_kept() {
    let mut listener = PeerInterest::new(LIMITS);
    let frame =
        InterestFrame::Snapshot { version: 1, part: 0, last: true, entries: text(&["a//b", "ok"]) };
    let applied = listener.apply(at(0), frame);
    assert_eq!(applied.malformed, 1);
    assert!(listener.wants("ok"));
}

#[test]
fn a_frame_above_the_limit_is_not_even_read() {
    assert_eq!(InterestFrame::decode(&vec![0; FRAME_BYTES_MAX + 1]), None);
    assert_eq!(InterestFrame::decode(&[250, 1, 2]), None);
}

#[test]
fn a_snapshot_of_many_parts_counts_only_when_complete() {
    let entries = |part: u32| text(&[if part == 0 { "a" } else { "b" }]);
    let mut listener = PeerInterest::new(LIMITS);
    let part = |part: u32| InterestFrame::Snapshot {
        version: 7,
        part,
        last: part == 1,
        entries: entries(part),
    };
    listener.question(at(0));
    assert_eq!(listener.apply(at(0), part(0)), Applied::default());
    assert!(!listener.wants("a") && !listener.is_known());
    assert_eq!(listener.apply(at(0), part(1)).answer, Some(InterestFrame::Known { version: 7 }));
    assert!(listener.wants("a") && listener.wants("b"));
}

#[derive(Debug, Clone)]
enum Step {
    Subscribe(usize),
    Unsubscribe(usize),
    Flush,
    Deliver,
    LoseToListener,
    LoseToAnnouncer,
    Reconnect,
    Wait,
}

const NAMES: [&str; 12] = ["a", "b", "c/d", "c/*", "e/**", "f", "g", "h", "i", "j/k", "l", "m"];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..NAMES.len()).prop_map(Step::Subscribe),
        3 => (0..NAMES.len()).prop_map(Step::Unsubscribe),
        4 => Just(Step::Flush),
        6 => Just(Step::Deliver),
        1 => Just(Step::LoseToListener),
        1 => Just(Step::LoseToAnnouncer),
        1 => Just(Step::Reconnect),
        1 => Just(Step::Wait),
    ];
    proptest::collection::vec(step, 0..120)
}

proptest! {
    /// Junk from a peer costs a refusal, not a panic and not memory.
    #[test]
    fn junk_frames_are_refused_or_applied_within_bounds(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..20)) {
        let mut listener = PeerInterest::new(LIMITS);
        for frame in frames {
            if let Some(frame) = InterestFrame::decode(&frame) {
                listener.apply(at(0), frame);
            }
            prop_assert!(listener.entries() <= LIMITS.entries_max);
        }
    }

    /// Whatever is lost on the way, once frames arrive again the listener knows what is wanted.
    #[test]
    fn interest_converges_after_losses(steps in steps()) {
        let mut pair = Pair::connected();
        let mut counts = [0_usize; NAMES.len()];
        for step in steps {
            match step {
                Step::Subscribe(i) => { counts[i] += 1; pair.announcer.subscribed(&pattern(NAMES[i])); }
                Step::Unsubscribe(i) => if counts[i] > 0 { counts[i] -= 1; pair.announcer.unsubscribed(&pattern(NAMES[i])); },
                Step::Flush => pair.flush(),
                Step::Deliver => drop(pair.deliver_one()),
                Step::LoseToListener => drop(pair.to_listener.pop_front()),
                Step::LoseToAnnouncer => drop(pair.to_announcer.pop_front()),
                Step::Reconnect => {
                    pair.to_listener.clear();
                    pair.to_announcer.clear();
                    pair.announcer.resend(&node("b"), false);
                    pair.listener.doubt();
                }
                Step::Wait => pair.now += 700,
            }
        }
        pair.run();
        prop_assert!(pair.announcer.is_known_everywhere(pair.announcer.version(), &[]));
        prop_assert!(!pair.announcer.is_waiting());
        let wanted: Vec<Pattern> = (0..NAMES.len()).filter(|i| counts[*i] > 0).map(|i| pattern(NAMES[i])).collect();
        for topic in ["a", "b", "c/d", "c/x", "e", "e/x/y", "f", "g", "h", "i", "j/k", "l", "m", "z"] {
            let expected = pair.announcer.is_coarse() || wanted.iter().any(|p| p.matches(topic));
            prop_assert_eq!(pair.listener.wants(topic), expected, "{}", topic);
        }
    }
}
