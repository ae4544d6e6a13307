//! `Input::Refused` and `Input::Silent`: what connections prove about members.

use super::*;

#[test]
fn a_member_whose_channel_stood_is_down_when_its_address_refuses() {
    let mut desk = Desk::knowing(&["a", "b"]);
    // Even if it spoke a moment ago: the kernel says that nobody listens.
    desk.hear("a", Message::Gossip, &[]);
    let out = desk.tell(Input::Refused { node: id("a") });
    assert!(out.contains(&Output::Forget { node: id("a") }));
    assert_eq!(desk.events(), [Event::Down { node: id("a"), why: Why::Refused }]);
}

#[test]
fn a_member_never_met_is_only_looked_for_when_its_address_refuses() {
    let mut desk = Desk::knowing(&["b"]);
    desk.hear("b", Message::Gossip, &[whole("a", 5, 1, meta("a"))]);
    let out = desk.tell(Input::Refused { node: id("a") });
    assert!(matches!(packet_to(&out, "a").message, Message::Ping { .. }));
    assert_eq!(desk.state("a"), Some(State::Alive));
}

#[test]
fn a_refusal_of_another_life_proves_nothing() {
    let mut desk = Desk::knowing(&["a"]);
    let earlier = NodeId::new(name("a"), Incarnation(4));
    assert_eq!(desk.tell(Input::Refused { node: earlier }), []);
    assert_eq!(desk.tell(Input::Refused { node: id("stranger") }), []);
    assert_eq!(desk.state("a"), Some(State::Alive));
}

#[test]
fn a_mute_channel_alone_downs_nobody_but_is_a_reason_to_look() {
    let mut desk = Desk::knowing(&["a", "b"]);
    let out = desk.tell(Input::Silent { node: id("a") });
    assert!(matches!(packet_to(&out, "a").message, Message::Ping { .. }));
    assert_eq!(desk.tell(Input::Silent { node: id("a") }), [], "one look at a time");
    desk.run_answered(Duration::from_secs(5), &["a", "b"]);
    assert_eq!(desk.state("a"), Some(State::Alive));
}
