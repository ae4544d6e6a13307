//! `Input::Packet`: questions are answered, news is believed, contradicted or passed on.

use super::*;

#[test]
fn a_ping_is_answered_by_the_road_it_came() {
    let mut desk = Desk::knowing(&["a", "b"]);
    for path in [Path::Datagram, Path::Control] {
        let out = desk.hear_from(id("a"), path, Message::Ping { seq: 7 }, &[]);
        assert!(matches!(&out[..], [Output::Send { path: back, .. }] if *back == path), "{out:?}");
        assert_eq!(packet_to(&out, "a").message, Message::Ack { seq: 7 });
    }
}

#[test]
fn who_pings_while_suspected_hears_of_it_first() {
    let mut desk = Desk::knowing(&["a", "b"]);
    desk.hear("b", Message::Gossip, &[rumour("a", State::Suspect, 0, &["b"])]);
    let out = desk.hear("a", Message::Ping { seq: 1 }, &[]);
    let ack = packet_to(&out, "a");
    assert_eq!(said_about(&ack, "a"), Some(standing(State::Suspect, 0)));
}

#[test]
fn news_that_i_am_suspected_is_refuted_in_the_answer() {
    for state in [State::Suspect, State::Down] {
        let mut desk = Desk::knowing(&["a", "b"]);
        let out = desk.hear("a", Message::Ping { seq: 1 }, &[rumour("me", state, 0, &["b"])]);
        let ack = packet_to(&out, "a");
        assert_eq!(said_about(&ack, "me"), Some(standing(State::Alive, 1)));
        assert_eq!(ack.header.refutation, Refutation(1));
        // The same accusation again is old news, and is told so again.
        let out = desk.hear("a", Message::Gossip, &[rumour("me", state, 0, &["b"])]);
        assert_eq!(said_about(&packet_to(&out, "a"), "me"), Some(standing(State::Alive, 1)));
        assert_eq!(desk.swim.counters().refutations, 1);
    }
}

#[test]
fn a_suspicion_is_believed_passed_on_and_cleared_only_by_a_higher_refutation() {
    let mut desk = Desk::knowing(&["a", "b", "c"]);
    desk.hear("b", Message::Gossip, &[rumour("a", State::Suspect, 0, &["b"])]);
    assert_eq!(desk.events(), [Event::Suspected { node: id("a"), by: Some(name("b")) }]);
    desk.hear("c", Message::Gossip, &[rumour("a", State::Alive, 0, &[])]);
    assert_eq!(desk.state("a"), Some(State::Suspect), "an equal refutation proves nothing");
    desk.hear("c", Message::Gossip, &[rumour("a", State::Alive, 1, &[])]);
    assert_eq!(desk.events(), [Event::Refuted { node: id("a"), was: State::Suspect }]);
}

#[test]
fn whoever_repeats_refuted_news_is_corrected_at_once() {
    let mut desk = Desk::knowing(&["a", "b"]);
    desk.hear("b", Message::Gossip, &[rumour("a", State::Alive, 3, &[])]);
    for state in [State::Suspect, State::Down] {
        let out = desk.hear("b", Message::Gossip, &[rumour("a", state, 2, &["b"])]);
        assert_eq!(said_about(&packet_to(&out, "b"), "a"), Some(standing(State::Alive, 3)));
    }
    assert_eq!(desk.state("a"), Some(State::Alive));
}

#[test]
fn a_verdict_on_somebody_who_spoke_just_now_is_only_a_suspicion() {
    let mut desk = Desk::knowing(&["a", "b", "c"]);
    desk.hear("a", Message::Gossip, &[]);
    desk.hear("b", Message::Gossip, &[rumour("a", State::Down, 0, &["b"])]);
    assert_eq!(desk.state("a"), Some(State::Suspect));
    assert_eq!(desk.swim.counters().objections, 1);
}

#[test]
fn a_verdict_on_somebody_long_silent_is_believed() {
    let mut desk = Desk::knowing(&["a", "b", "c"]);
    desk.run_answered(Duration::from_millis(700), &["b", "c"]);
    desk.out.clear();
    desk.hear("b", Message::Gossip, &[rumour("a", State::Down, 0, &["b", "c"])]);
    let down = Event::Down { node: id("a"), why: Why::Silent };
    assert!(desk.events().contains(&down));
    assert_eq!(desk.state("a"), Some(State::Down));
}

#[test]
fn a_down_member_comes_back_by_its_own_word_and_the_connection_with_it() {
    let mut desk = Desk::knowing(&["a", "b"]);
    desk.tell(Input::Refused { node: id("a") });
    desk.out.clear();
    desk.hear("b", Message::Gossip, &[rumour("a", State::Alive, 0, &[])]);
    assert_eq!(desk.state("a"), Some(State::Down), "old news raises nobody");
    let out = desk.hear("b", Message::Gossip, &[rumour("a", State::Alive, 1, &[])]);
    assert!(out.contains(&Output::Keep { node: id("a"), addr: addr("a") }));
    assert_eq!(desk.events(), [Event::Refuted { node: id("a"), was: State::Down }]);
}

#[test]
fn a_farewell_is_final_and_the_connection_may_still_bring_the_last_answers() {
    let mut desk = Desk::knowing(&["a", "b"]);
    let out = desk.hear("a", Message::Announce { seq: 4 }, &[rumour("a", State::Left, 0, &[])]);
    assert!(
        out.contains(&Output::Release { node: id("a") })
            && !out.contains(&Output::Forget { node: id("a") })
    );
    assert_eq!(packet_to(&out, "a").message, Message::Seen { seq: 4 });
    desk.hear("b", Message::Gossip, &[rumour("a", State::Alive, 9, &[])]);
    desk.hear("b", Message::Gossip, &[rumour("a", State::Down, 9, &["b"])]);
    assert_eq!(desk.state("a"), Some(State::Left));
    assert_eq!(desk.events(), [Event::Left { node: id("a") }]);
    // The leaver may not have heard that we know: it asks again and is answered again.
    let out = desk.hear("a", Message::Announce { seq: 4 }, &[]);
    assert_eq!(packet_to(&out, "a").message, Message::Seen { seq: 4 });
}

#[test]
fn a_later_life_takes_the_place_of_an_earlier_one_which_never_comes_back() {
    let mut desk = Desk::knowing(&["a", "b"]);
    let out = desk.hear("b", Message::Gossip, &[whole("a", 6, 1, meta("a"))]);
    assert!(out.contains(&Output::Forget { node: id("a") }));
    let new = NodeId::new(name("a"), Incarnation(6));
    let expected =
        [Event::Down { node: id("a"), why: Why::Superseded }, Event::Joined { node: new.clone() }];
    assert_eq!(desk.events(), expected);
    let out = desk.hear("b", Message::Gossip, &[whole("a", 5, 9, meta("a"))]);
    assert_eq!(desk.swim.state_of(&name("a")), Some((Incarnation(6), State::Alive)));
    assert!(said_about(&packet_to(&out, "b"), "a").is_some(), "b is corrected");
    // The old life itself hears that it is over, where it is.
    let out = desk.hear("a", Message::Ping { seq: 1 }, &[]);
    let [Output::Send { to, addr: at, .. }] = &out[..] else { panic!("{out:?}") };
    assert_eq!((to, *at), (&id("a"), Some(addr("a"))));
    let Message::Gossip = packet_to(&out, "a").message else { panic!("no ack: {out:?}") };
}

#[test]
fn news_of_my_own_later_life_ends_this_one() {
    let mut desk = Desk::knowing(&["a"]);
    let out = desk.hear("a", Message::Gossip, &[whole("me", 6, 1, meta("me"))]);
    assert!(out.contains(&Output::Superseded));
    assert_eq!(desk.hear("a", Message::Ping { seq: 1 }, &[]), []);
    desk.run_answered(Duration::from_secs(3), &[]);
    assert_eq!(all_sent(&desk.tell(Input::Woke)), []);
}

#[test]
fn a_stranger_is_asked_for_its_state_unless_it_introduces_itself() {
    let mut desk = Desk::knowing(&["a"]);
    desk.hear("x", Message::Gossip, &[]);
    let out = desk.tell(Input::Woke);
    assert!(matches!(packet_to(&out, "x").message, Message::SyncDigest { .. }));
    let mut desk = Desk::knowing(&["a"]);
    desk.hear("x", Message::Gossip, &[whole("x", 5, 1, meta("x"))]);
    assert_eq!(desk.events(), [Event::Joined { node: id("x") }]);
    assert!(!all_sent(&desk.tell(Input::Woke)).iter().any(|(to, _)| *to == name("x")));
}

#[test]
fn equal_states_are_not_sent_and_unequal_ones_are_both_ways() {
    let mut desk = Desk::knowing(&["a"]);
    let digest = desk.swim.digest();
    assert_eq!(desk.hear("a", Message::SyncDigest { digest }, &[]), []);
    let out = desk.hear("a", Message::SyncDigest { digest: digest ^ 1 }, &[]);
    let packets = all_sent(&out);
    assert!(packets.iter().any(|(_, p)| p.message == Message::SyncState { answer: true }));
    assert!(packets.iter().any(|(_, p)| said_about(p, "me").is_some()));
    let out = desk.hear("a", Message::SyncState { answer: true }, &[whole("b", 5, 1, meta("b"))]);
    assert_eq!(desk.state("b"), Some(State::Alive));
    assert!(all_sent(&out).iter().all(|(_, p)| p.message == Message::SyncState { answer: false }));
}

#[test]
fn a_ping_request_is_relayed_and_the_answer_brought_back() {
    let mut desk = Desk::knowing(&["a", "b"]);
    let out = desk.hear("a", Message::PingReq { seq: 40, target: id("b") }, &[]);
    let Message::Ping { seq } = packet_to(&out, "b").message else { panic!("{out:?}") };
    let out = desk.hear("b", Message::Ack { seq }, &[]);
    let expected = Message::IndirectAck { seq: 40, refutation: Refutation(0) };
    assert_eq!(packet_to(&out, "a").message, expected);
    assert_eq!(desk.hear("b", Message::Ack { seq }, &[]), [], "doubled");
}

#[test]
fn a_helper_that_gets_no_answer_says_so_in_time_and_brings_a_late_one() {
    let mut desk = Desk::knowing(&["a", "b"]);
    let out = desk.hear("a", Message::PingReq { seq: 40, target: id("b") }, &[]);
    let Message::Ping { seq } = packet_to(&out, "b").message else { panic!("{out:?}") };
    desk.out.clear();
    desk.run_answered(Duration::from_millis(85), &["a"]);
    let nacks =
        all_sent(&desk.out).into_iter().filter(|(_, p)| p.message == Message::Nack { seq: 40 });
    assert_eq!(nacks.count(), 1);
    let out = desk.hear("b", Message::Ack { seq }, &[]);
    assert!(matches!(packet_to(&out, "a").message, Message::IndirectAck { .. }));
}

#[test]
fn who_cannot_help_says_so_at_once() {
    let mut desk = Desk::knowing(&["a"]);
    let out = desk.hear("a", Message::PingReq { seq: 40, target: id("nobody") }, &[]);
    assert_eq!(packet_to(&out, "a").message, Message::Nack { seq: 40 });
}

#[test]
fn garbage_is_counted_and_changes_nothing() {
    let mut desk = Desk::knowing(&["a"]);
    for bytes in [&[][..], &[9, 9, 9], &[WIRE_VERSION, 0, 0, 200]] {
        let (from, addr, path) = (id("a"), None, Path::Datagram);
        assert_eq!(desk.tell(Input::Packet { from, addr, path, bytes }), []);
    }
    assert_eq!(desk.swim.counters().malformed, 3);
}

#[test]
fn a_member_that_breaks_a_limit_is_refused_and_counted() {
    let mut desk = Desk::knowing(&["a"]);
    let mut large = meta("x");
    large.zone = Some("z".repeat(500));
    desk.hear("a", Message::Gossip, &[whole("x", 5, 1, large)]);
    assert_eq!((desk.state("x"), desk.swim.counters().refused_members), (None, 1));
}
