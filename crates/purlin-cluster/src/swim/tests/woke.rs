//! `Input::Woke`: probes, suspicions and verdicts take their course; early and late is harmless.

use super::*;

/// Packets to `to` since the last look.
fn pings(desk: &mut Desk, to: &str) -> usize {
    let out = std::mem::take(&mut desk.out);
    let to = name(to);
    all_sent(&out)
        .iter()
        .filter(|(node, p)| *node == to && matches!(p.message, Message::Ping { .. }))
        .count()
}

#[test]
fn everybody_is_probed_again_and_again() {
    let mut desk = Desk::knowing(&["a", "b", "c"]);
    desk.run_answered(Duration::from_secs(3), &["a", "b", "c"]);
    let out = std::mem::take(&mut desk.out);
    for to in ["a", "b", "c"] {
        desk.out.clone_from(&out);
        assert!(pings(&mut desk, to) >= 2, "{to}");
    }
}

#[test]
fn an_early_or_repeated_wake_up_does_nothing() {
    let mut desk = Desk::knowing(&["a", "b"]);
    desk.tell(Input::Woke);
    for _ in 0..10 {
        assert_eq!(desk.tell(Input::Woke), []);
    }
}

#[test]
fn a_silent_member_is_asked_again_asked_for_by_others_suspected_and_down() {
    let mut desk = Desk::knowing(&["a", "b", "c"]);
    desk.run_answered(Duration::from_secs(5), &["b", "c"]);
    let out = std::mem::take(&mut desk.out);
    let requests = all_sent(&out)
        .into_iter()
        .filter(
            |(_, p)| matches!(&p.message, Message::PingReq { target, .. } if *target == id("a")),
        )
        .count();
    assert!(requests >= 2, "{requests} requests");
    let over_control = out
        .iter()
        .any(|o| matches!(o, Output::Send { to, path: Path::Control, .. } if *to == id("a")));
    assert!(over_control, "the last attempt takes both roads");
    desk.out = out;
    let me = Some(name("me"));
    let expected = [
        Event::Suspected { node: id("a"), by: me },
        Event::Down { node: id("a"), why: Why::Silent },
    ];
    assert_eq!(desk.events(), expected);
}

#[test]
fn a_suspect_that_answers_in_time_is_never_down() {
    let mut desk = Desk::knowing(&["a", "b", "c"]);
    desk.hear("b", Message::Gossip, &[rumour("a", State::Suspect, 0, &["b", "c"])]);
    desk.run_answered(Duration::from_secs(5), &["a", "b", "c"]);
    assert_eq!(desk.state("a"), Some(State::Suspect), "it has not refuted to us yet");
    desk.hear("a", Message::Gossip, &[rumour("a", State::Alive, 1, &[])]);
    assert_eq!(desk.state("a"), Some(State::Alive));
}

#[test]
fn a_down_member_is_knocked_at_with_growing_pauses_and_a_leaver_never() {
    let mut desk = Desk::knowing(&["a", "b"]);
    desk.tell(Input::Refused { node: id("a") });
    desk.hear("b", Message::Gossip, &[rumour("b", State::Left, 0, &[])]);
    desk.out.clear();
    desk.run_answered(Duration::from_secs(20), &[]);
    let knocks: Vec<_> =
        desk.out.iter().filter(|o| matches!(o, Output::Recontact { .. })).cloned().collect();
    assert!((9..=16).contains(&knocks.len()), "{} knocks in 20 s", knocks.len());
    assert!(knocks.iter().all(|k| *k == Output::Recontact { node: id("a"), addr: addr("a") }));
}

#[test]
fn the_knock_tells_a_down_member_what_is_believed_of_it() {
    let mut desk = Desk::knowing(&["a", "b"]);
    desk.tell(Input::Refused { node: id("a") });
    desk.out.clear();
    desk.run_answered(Duration::from_millis(700), &["b"]);
    let out = std::mem::take(&mut desk.out);
    let knock = all_sent(&out).into_iter().find(|(to, _)| *to == name("a")).expect("a knock").1;
    assert_eq!(said_about(&knock, "a"), Some(standing(State::Down, 0)));
}

#[test]
fn after_a_stall_nobody_is_accused_for_the_time_we_did_not_run() {
    let mut desk = Desk::knowing(&["a", "b"]);
    desk.tell(Input::Woke);
    // In the middle of probing both, stopped for ten seconds.
    desk.run_answered(Duration::from_millis(300), &[]);
    desk.out.clear();
    desk.now = desk.now + Duration::from_secs(10);
    desk.tell(Input::Woke);
    assert_eq!(desk.swim.counters().stalls, 1);
    desk.run_answered(Duration::from_secs(2), &["a", "b"]);
    assert_eq!(desk.events(), []);
}

#[test]
fn a_forgotten_leaver_cannot_be_raised_by_an_old_rumour() {
    let mut desk = Desk::knowing(&["a", "b"]);
    desk.hear("b", Message::Gossip, &[rumour("a", State::Left, 0, &[])]);
    desk.run_answered(Duration::from_secs(601), &["b"]);
    assert_eq!(desk.state("a"), None);
    desk.out.clear();
    let out = desk.hear("b", Message::Gossip, &[whole("a", 5, 1, meta("a"))]);
    assert_eq!(desk.state("a"), None);
    assert_eq!(said_about(&packet_to(&out, "b"), "a").map(|s| s.state), Some(State::Left));
    desk.hear("b", Message::Gossip, &[whole("a", 6, 1, meta("a"))]);
    assert_eq!(desk.state("a"), Some(State::Alive), "a later life may come");
}
