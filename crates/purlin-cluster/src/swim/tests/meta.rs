//! `Input::Meta` and `Input::Announce`: what a member says of itself.

use super::*;

#[test]
fn a_change_is_numbered_and_told() {
    let mut desk = Desk::knowing(&["a"]);
    let mut new = meta("me");
    new.zone = Some("b".into());
    desk.tell(Input::Meta(new.clone()));
    desk.out.clear();
    desk.run_answered(Duration::from_secs(1), &["a"]);
    let told = all_sent(&desk.out).into_iter().flat_map(|(_, p)| p.news).any(
        |rumour| matches!(rumour, Rumour::Whole { meta_version: 2, meta, .. } if *meta == new),
    );
    assert!(told);
}

#[test]
fn no_change_is_no_news() {
    let mut desk = Desk::knowing(&["a"]);
    assert_eq!(desk.tell(Input::Meta(meta("me"))), []);
}

#[test]
fn a_member_that_starts_draining_is_an_event_of_its_own_and_old_versions_are_ignored() {
    let mut desk = Desk::knowing(&["a", "b"]);
    let mut draining = meta("a");
    draining.draining = true;
    desk.hear("b", Message::Gossip, &[whole("a", 5, 2, draining.clone())]);
    let expected = [Event::MetaChanged { node: id("a") }, Event::Draining { node: id("a") }];
    assert_eq!(desk.events(), expected);
    desk.hear("b", Message::Gossip, &[whole("a", 5, 1, meta("a"))]);
    desk.hear("b", Message::Gossip, &[whole("a", 5, 2, meta("a"))]);
    assert_eq!(desk.events(), []);
    assert!(desk.swim.sightings().iter().any(|s| s.node == id("a") && *s.meta == draining));
}

#[test]
fn an_announcement_is_repeated_until_all_who_can_be_reached_have_seen_it() {
    let mut desk = Desk::knowing(&["a", "b"]);
    let out = desk.tell(Input::Announce);
    let Message::Announce { seq } = packet_to(&out, "a").message else { panic!("{out:?}") };
    assert!(!desk.hear("a", Message::Seen { seq }, &[]).contains(&Output::Announced));
    assert_eq!(desk.swim.unannounced(), [name("b")]);
    desk.out.clear();
    desk.run_answered(Duration::from_millis(500), &["a", "b"]);
    let again: Vec<_> = all_sent(&desk.out)
        .into_iter()
        .filter(|(_, p)| p.message == Message::Announce { seq })
        .map(|(to, _)| to)
        .collect();
    assert!(again.len() >= 2 && again.iter().all(|to| *to == name("b")), "{again:?}");
    assert!(desk.hear("b", Message::Seen { seq }, &[]).contains(&Output::Announced));
}

#[test]
fn who_goes_down_is_not_waited_for() {
    let mut desk = Desk::knowing(&["a"]);
    desk.tell(Input::Announce);
    desk.tell(Input::Refused { node: id("a") });
    desk.out.clear();
    desk.run_answered(Duration::from_secs(1), &[]);
    assert!(desk.out.contains(&Output::Announced));
}
