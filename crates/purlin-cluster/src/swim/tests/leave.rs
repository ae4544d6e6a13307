//! `Input::Leave`: the farewell.

use super::*;

#[test]
fn a_farewell_goes_to_everybody_and_ends_when_all_have_seen_it() {
    let mut desk = Desk::knowing(&["a", "b"]);
    let out = desk.tell(Input::Leave);
    for to in ["a", "b"] {
        let goodbye = packet_to(&out, to);
        assert_eq!(said_about(&goodbye, "me").map(|s| s.state), Some(State::Left));
        assert!(out.contains(&Output::Release { node: id(to) }));
        let Message::Announce { seq } = goodbye.message else { panic!("{goodbye:?}") };
        desk.hear(to, Message::Seen { seq }, &[]);
    }
    assert!(desk.out.contains(&Output::Announced));
}

#[test]
fn a_leaver_probes_nobody_and_still_says_that_it_left() {
    let mut desk = Desk::knowing(&["a", "b"]);
    desk.tell(Input::Leave);
    desk.out.clear();
    desk.run_answered(Duration::from_secs(5), &[]);
    assert!(!all_sent(&desk.out).iter().any(|(_, p)| matches!(p.message, Message::Ping { .. })));
    let out = desk.hear("a", Message::Ping { seq: 1 }, &[]);
    assert_eq!(said_about(&packet_to(&out, "a"), "me").map(|s| s.state), Some(State::Left));
    // Nothing it hears can bring it back or make it argue.
    let out = desk.hear("a", Message::Gossip, &[rumour("me", State::Down, 3, &["a"])]);
    assert_eq!(all_sent(&out), []);
}

#[test]
fn alone_a_farewell_is_over_at_once_and_twice_is_once() {
    let mut desk = Desk::knowing(&[]);
    assert!(desk.tell(Input::Leave).contains(&Output::Announced));
    assert_eq!(desk.tell(Input::Leave), []);
}
