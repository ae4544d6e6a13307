//! `Input::Contacted` and `Input::Met`: strangers become members, the lost come back.

use super::*;

#[test]
fn a_stranger_found_at_a_seed_is_kept_met_and_asked_for_its_state() {
    let mut desk = Desk::knowing(&[]);
    let out = desk.tell(Input::Contacted { node: id("a"), addr: addr("a") });
    assert_eq!(out, [Output::Keep { node: id("a"), addr: addr("a") }]);
    let out = desk.tell(Input::Met { node: id("a") });
    let hello = packet_to(&out, "a");
    assert!(matches!(hello.message, Message::SyncDigest { .. }));
    assert_eq!(said_about(&hello, "me"), Some(standing(State::Alive, 0)));
}

#[test]
fn whoever_meets_us_only_hears_who_we_are() {
    let mut desk = Desk::knowing(&["a"]);
    let out = desk.tell(Input::Met { node: id("x") });
    let hello = packet_to(&out, "x");
    assert_eq!(hello.message, Message::Gossip);
    assert!(said_about(&hello, "me").is_some());
    assert_eq!(desk.state("x"), None, "it has not said who it is");
}

#[test]
fn a_down_member_met_again_hears_what_is_believed_of_it() {
    let mut desk = Desk::knowing(&["a", "b"]);
    desk.tell(Input::Refused { node: id("a") });
    let out = desk.tell(Input::Met { node: id("a") });
    assert_eq!(said_about(&packet_to(&out, "a"), "a"), Some(standing(State::Down, 0)));
}

#[test]
fn a_leaver_found_at_a_seed_is_left_alone_and_a_later_life_is_not() {
    let mut desk = Desk::knowing(&["a", "b"]);
    desk.hear("a", Message::Gossip, &[rumour("a", State::Left, 0, &[])]);
    assert_eq!(desk.tell(Input::Contacted { node: id("a"), addr: addr("a") }), []);
    let later = NodeId::new(name("a"), Incarnation(6));
    let out = desk.tell(Input::Contacted { node: later.clone(), addr: addr("a") });
    assert_eq!(out, [Output::Keep { node: later, addr: addr("a") }]);
}

#[test]
fn a_node_does_not_keep_itself() {
    let mut desk = Desk::knowing(&[]);
    assert_eq!(desk.tell(Input::Contacted { node: id("me"), addr: addr("me") }), []);
    assert_eq!(desk.tell(Input::Met { node: id("me") }), []);
}
