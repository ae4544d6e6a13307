use std::{rc::Rc, time::Duration};

use proptest::prelude::*;
use purlin_core::{HlcTimestamp, Incarnation, NodeId, NodeName};

use super::*;
use crate::{Topic, message::Headers};

fn keyed(topic: &str, key: Option<&str>, payload: &str) -> Message {
    let mut headers = Headers::default();
    if let Some(key) = key {
        headers.set(crate::message::KEY, key);
    }
    let publisher = NodeId::new(NodeName::parse("n1").unwrap(), Incarnation(1));
    let payload = bytes::Bytes::copy_from_slice(payload.as_bytes());
    Message::new(
        Topic::parse(topic).unwrap(),
        payload,
        headers,
        publisher,
        HlcTimestamp::from_bytes([0; 16]),
    )
}

fn message(payload: &str) -> Message {
    keyed("t", None, payload)
}

fn at(seconds: u64) -> Instant {
    Instant::from_start(Duration::from_secs(seconds))
}

fn queue(overflow: Overflow, messages_max: usize, bytes_max: usize) -> Queue<Rc<()>> {
    Queue::new(overflow, messages_max, bytes_max)
}

fn take_all(queue: &mut Queue<Rc<()>>) -> Vec<(String, u64)> {
    std::iter::from_fn(|| queue.take())
        .map(|taken| (String::from_utf8(taken.message.payload().to_vec()).unwrap(), taken.missed))
        .collect()
}

fn text(items: &[(&str, u64)]) -> Vec<(String, u64)> {
    items.iter().map(|(payload, missed)| ((*payload).to_owned(), *missed)).collect()
}

#[test]
fn the_oldest_makes_room_and_the_gap_is_reported_where_it_is() {
    let mut queue = queue(Overflow::DropOldest, 2, 1000);
    for payload in ["1", "2", "3", "4"] {
        queue.push(&message(payload));
    }
    assert_eq!(queue.lagged(), 2);
    assert_eq!(queue.take().map(|t| t.missed), Some(2));
    queue.push(&message("5"));
    assert_eq!(take_all(&mut queue), text(&[("4", 0), ("5", 0)]));
}

#[test]
fn bytes_count_against_the_bound_like_messages_do() {
    let mut queue = queue(Overflow::DropOldest, 100, 10);
    queue.push(&message("aaaa"));
    queue.push(&message("bbbb"));
    assert_eq!(queue.push(&message("cccccc")), Pushed::Queued { lost: 1 });
    assert_eq!(queue.bytes(), 10);
    assert_eq!(take_all(&mut queue), text(&[("bbbb", 1), ("cccccc", 0)]));
}

#[test]
fn one_message_above_the_byte_bound_still_arrives() {
    let mut queue = queue(Overflow::DropOldest, 100, 4);
    queue.push(&message("1"));
    assert_eq!(queue.push(&message("0123456789")), Pushed::Queued { lost: 1 });
    assert_eq!(take_all(&mut queue), text(&[("0123456789", 1)]));
}

#[test]
fn a_newer_value_takes_the_place_of_the_older_one_of_its_key() {
    let mut queue = queue(Overflow::ConflateByKey, 10, 1000);
    for (key, payload) in [("a", "a1"), ("b", "b1"), ("a", "a2"), ("a", "a3"), ("c", "c1")] {
        queue.push(&keyed("t", Some(key), payload));
    }
    assert_eq!(queue.lagged(), 2);
    assert_eq!(take_all(&mut queue), text(&[("a3", 2), ("b1", 0), ("c1", 0)]));
    assert_eq!(
        queue.push(&keyed("t", Some("a"), "a4")),
        Pushed::Queued { lost: 0 },
        "a taken key starts afresh"
    );
}

#[test]
fn without_a_key_the_topic_is_the_key() {
    let mut queue = queue(Overflow::ConflateByKey, 10, 1000);
    for (topic, payload) in [("prices/a", "1"), ("prices/b", "2"), ("prices/a", "3")] {
        queue.push(&keyed(topic, None, payload));
    }
    assert_eq!(take_all(&mut queue), text(&[("3", 1), ("2", 0)]));
}

#[test]
fn conflation_keeps_to_its_bounds_with_too_many_or_growing_keys() {
    let mut queue = queue(Overflow::ConflateByKey, 2, 8);
    for (key, payload) in [("a", "a1"), ("b", "b1"), ("c", "c1")] {
        queue.push(&keyed("t", Some(key), payload));
    }
    // Headers count too: "key" and one letter are 7 bytes, so two entries never fit in 8.
    assert_eq!(take_all(&mut queue), text(&[("c1", 2)]));
}

#[test]
fn an_overflow_ends_a_subscription_that_must_not_miss_one() {
    let mut queue = queue(Overflow::Disconnect, 2, 1000);
    queue.push(&message("1"));
    queue.push(&message("2"));
    assert_eq!(queue.push(&message("3")), Pushed::Closed);
    assert_eq!(queue.closed(), Some(Closed::Overflow { messages: 2, bytes: 2 }));
    assert_eq!(queue.lagged(), 1);
    assert_eq!(take_all(&mut queue), text(&[("1", 0), ("2", 0)]), "what was queued is not lost");
}

#[test]
fn push_back_refuses_here_and_holds_credit_there() {
    let mut queue = queue(Overflow::push_back(), 2, 1000);
    let credit = Rc::new(());
    assert_eq!(
        queue.push_held(&message("1"), || Some(Rc::clone(&credit))),
        Pushed::Queued { lost: 0 }
    );
    queue.push(&message("2"));
    assert_eq!(Rc::strong_count(&credit), 1, "below the bound nothing is held");
    assert_eq!(queue.push(&message("3")), Pushed::Full);
    queue.push_held(&message("3"), || Some(Rc::clone(&credit)));
    assert_eq!(Rc::strong_count(&credit), 2, "above the bound the sender waits");
    assert_eq!(take_all(&mut queue), text(&[("1", 0), ("2", 0), ("3", 0)]));
    assert_eq!(Rc::strong_count(&credit), 1);
    assert_eq!(queue.lagged(), 0);
}

#[test]
fn a_stalled_push_back_queue_gives_the_credit_back_and_ends() {
    let mut queue = queue(Overflow::PushBack { stall_max: Duration::from_secs(5) }, 1, 1000);
    let credit = Rc::new(());
    queue.push_held(&message("1"), || Some(Rc::clone(&credit)));
    queue.push_held(&message("2"), || Some(Rc::clone(&credit)));
    let mut released = Vec::new();
    assert!(!queue.close_if_stalled(at(1), &mut released), "the first look starts the patience");
    assert!(!queue.close_if_stalled(at(5), &mut released));
    assert!(queue.close_if_stalled(at(6), &mut released));
    assert_eq!(
        (released.len(), queue.closed()),
        (1, Some(Closed::Stalled(Duration::from_secs(5))))
    );
    assert!(!queue.close_if_stalled(at(20), &mut released), "it ends once");
    assert_eq!(take_all(&mut queue).len(), 2);
}

#[test]
fn a_subscriber_that_receives_now_and_then_is_not_stalled() {
    let mut queue = queue(Overflow::PushBack { stall_max: Duration::from_secs(5) }, 1, 1000);
    for payload in ["1", "2", "3"] {
        queue.push_held(&message(payload), || None);
    }
    assert!(!queue.close_if_stalled(at(0), &mut Vec::new()));
    queue.take();
    assert!(queue.is_full());
    assert!(!queue.close_if_stalled(at(8), &mut Vec::new()));
    assert!(!queue.close_if_stalled(at(12), &mut Vec::new()));
    assert!(queue.close_if_stalled(at(13), &mut Vec::new()));
}

#[derive(Debug, Clone)]
enum Step {
    Push(u8, usize),
    Take,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![3 => (0_u8..4, 0_usize..6).prop_map(|(key, len)| Step::Push(key, len)), 1 => Just(Step::Take)];
    proptest::collection::vec(step, 0..80)
}

proptest! {
    /// Whatever happens: within bounds, in order, and every message is either taken or counted.
    #[test]
    fn nothing_vanishes_uncounted(
        steps in steps(),
        overflow in proptest::sample::select(vec![Overflow::DropOldest, Overflow::ConflateByKey, Overflow::Disconnect, Overflow::push_back()]),
        messages_max in 1_usize..6,
        bytes_max in 1_usize..40,
    ) {
        let mut queue = queue(overflow, messages_max, bytes_max);
        let (mut pushed, mut refused, mut taken, mut missed) = (0_u64, 0, 0, 0);
        let mut newest = HashMap::new();
        let mut account = |queue: &Queue<Rc<()>>, got: Taken<Rc<()>>| -> Result<(), TestCaseError> {
            taken += 1;
            missed += got.missed;
            let body = String::from_utf8(got.message.payload().to_vec()).unwrap();
            let number: u64 = body.trim_end_matches('x').parse().unwrap();
            let key = got.message.conflation_key().to_owned();
            prop_assert!(newest.insert(key, number).is_none_or(|before| before < number), "order per key");
            prop_assert!(queue.len() <= messages_max);
            Ok(())
        };
        for step in steps {
            match step {
                Step::Push(key, len) => {
                    let body = format!("{pushed}{}", "x".repeat(len));
                    pushed += 1;
                    match queue.push(&keyed("t", Some(&key.to_string()), &body)) {
                        Pushed::Queued { .. } => {}
                        Pushed::Full => refused += 1,
                        Pushed::Closed => refused += 1,
                    }
                    prop_assert!(queue.len() <= messages_max);
                    prop_assert!(queue.bytes() <= bytes_max || queue.len() == 1);
                }
                Step::Take => if let Some(got) = queue.take() { account(&queue, got)?; },
            }
        }
        while let Some(got) = queue.take() {
            account(&queue, got)?;
        }
        prop_assert_eq!(queue.bytes(), 0);
        prop_assert!(queue.places.is_empty());
        prop_assert_eq!(taken + missed + refused, pushed);
        if matches!(overflow, Overflow::DropOldest | Overflow::ConflateByKey) {
            prop_assert_eq!(queue.lagged(), missed);
        }
    }
}
