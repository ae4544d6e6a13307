//! What the others see when a node is killed or paused.

use std::time::{Duration, Instant};

use crate::support::{Cluster, Member, PATIENCE, told, wait_until, wait_until_or};
use nix::sys::signal::Signal;
use serde_json::Value;

#[test]
fn a_killed_node_is_down_for_the_others_and_comes_back_under_a_new_incarnation() {
    let mut cluster = Cluster::start(3);
    let mut lives = vec![cluster.latest(1, "n2").unwrap().incarnation];
    // The promise is two seconds. A machine that is busy with something else may fail to give the
    // others that much time once, not again and again.
    let mut noticed = Vec::new();
    while noticed.iter().all(|after| *after >= Duration::from_secs(2)) {
        assert!(noticed.len() < 5, "down after {noticed:?}, never within two seconds");
        let before = *lives.last().expect("its first life is there from the start");
        cluster.signal(2, Signal::SIGKILL);
        let killed = Instant::now();
        for node in [1, 3] {
            let seen = cluster.wait_for_state(node, "n2", "down", PATIENCE);
            assert_eq!(seen.incarnation, before);
        }
        noticed.push(killed.elapsed());

        cluster.start_by_hand(2);
        let [one, other] = [1, 3].map(|node| {
            wait_until_or(
                "the new life is alive",
                PATIENCE,
                || {
                    cluster
                        .latest(node, "n2")
                        .filter(|now| now.state == "alive" && now.incarnation > before)
                },
                || cluster.logs(),
            )
        });
        assert_eq!(one.incarnation, other.incarnation);
        lives.push(one.incarnation);
    }
    lives.pop();
    // An old life is over for good: at no time does anybody call it alive again.
    let watch = Instant::now();
    while watch.elapsed() < Duration::from_secs(3) {
        for node in 1..=3 {
            for member in cluster.members(node).unwrap_or_default() {
                let is_old = member.name == "n2" && lives.contains(&member.incarnation);
                assert!(
                    !is_old || matches!(member.state.as_str(), "down" | "left"),
                    "n{node} sees {member:?}"
                );
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_paused_node_is_suspected_then_down_then_back_and_nobody_else_flaps() {
    let cluster = Cluster::start(3);
    let before = cluster.latest(1, "n2").unwrap();
    cluster.signal(2, Signal::SIGSTOP);
    for node in [1, 3] {
        cluster.wait_for_state(node, "n2", "down", PATIENCE);
    }
    // Long enough for every back-off to have grown, and for a verdict on the living to come.
    let paused = Instant::now();
    while paused.elapsed() < Duration::from_secs(5) {
        nobody_else_flaps(&cluster);
        std::thread::sleep(Duration::from_millis(50));
    }
    cluster.signal(2, Signal::SIGCONT);
    wait_until("n2 is alive for n1 and n3, and they for n2", PATIENCE, || {
        nobody_else_flaps(&cluster);
        let ok = |node: u16, name: &str| {
            cluster.latest(node, name).is_some_and(|member| member.state == "alive")
        };
        (ok(1, "n2") && ok(3, "n2") && ok(2, "n1") && ok(2, "n3")).then_some(())
    });
    assert!(cluster.latest(1, "n2").unwrap().incarnation >= before.incarnation);
    // A suspicion may be over before anybody looks; what was published stays. One node may hear of
    // the verdict only; whoever passed it suspected first.
    let mut is_suspected_first = false;
    for node in [1, 3] {
        let (code, out, err) =
            told(&cluster.at(node, &["events", "--output", "json"]).output().unwrap());
        assert_eq!(code, Some(0), "{err}");
        let told_of = |name: &str| -> Vec<String> {
            let events = out.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            let events = events.filter(|event| event["node"] == name);
            events.filter_map(|event| event["kind"].as_str().map(str::to_owned)).collect()
        };
        let story = told_of("n2");
        let at = |kind: &str| story.iter().position(|told| told == kind);
        assert!(at("down").is_some(), "n{node}: {out}");
        is_suspected_first |= at("suspected").is_some() && at("suspected") < at("down");
        let other = if node == 1 { "n3" } else { "n1" };
        assert!(!told_of(other).contains(&"down".to_owned()), "n{node}: {out}");
    }
    assert!(is_suspected_first, "nobody suspected n2 before it was down");
}

/// n1 and n3 hear each other all the time.
fn nobody_else_flaps(cluster: &Cluster) {
    for (node, other) in [(1, "n3"), (3, "n1")] {
        let Some(Member { state, .. }) = cluster.latest(node, other) else { continue };
        assert!(matches!(state.as_str(), "alive" | "suspect"), "n{node} says {other} is {state}");
    }
}
