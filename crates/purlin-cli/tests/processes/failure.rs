//! What the others see when a node is killed or paused.

use std::time::{Duration, Instant};

use crate::support::{Cluster, Member, PATIENCE, wait_until, wait_until_or};
use nix::sys::signal::Signal;

#[test]
fn a_killed_node_is_down_for_the_others_and_comes_back_under_a_new_incarnation() {
    let mut cluster = Cluster::start(3);
    let before = cluster.latest(1, "n2").unwrap();
    cluster.signal(2, Signal::SIGKILL);
    let killed = Instant::now();
    for node in [1, 3] {
        let seen = cluster.wait_for_state(node, "n2", "down", Duration::from_secs(10));
        assert_eq!(seen.incarnation, before.incarnation);
    }
    let noticed = killed.elapsed();
    assert!(noticed < Duration::from_secs(2), "down after {noticed:?}, the promise is two seconds");

    cluster.start_by_hand(2);
    for node in [1, 3] {
        wait_until_or(
            "the new life is alive",
            PATIENCE,
            || {
                cluster
                    .latest(node, "n2")
                    .filter(|now| now.state == "alive" && now.incarnation > before.incarnation)
            },
            || cluster.logs(),
        );
    }
    // The old life is over for good: at no time does anybody call it alive again.
    let watch = Instant::now();
    while watch.elapsed() < Duration::from_secs(3) {
        for node in 1..=3 {
            for member in cluster.members(node).unwrap_or_default() {
                let is_old = member.name == "n2" && member.incarnation == before.incarnation;
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
    let paused = Instant::now();
    let mut seen = Vec::new();
    while paused.elapsed() < Duration::from_secs(10) {
        note_n2(&cluster, &mut seen);
        std::thread::sleep(Duration::from_millis(10));
    }
    cluster.signal(2, Signal::SIGCONT);
    wait_until("n2 is alive for n1 and n3, and they for n2", PATIENCE, || {
        note_n2(&cluster, &mut seen);
        let ok = |node: u16, name: &str| {
            cluster.latest(node, name).is_some_and(|member| member.state == "alive")
        };
        (ok(1, "n2") && ok(3, "n2") && ok(2, "n1") && ok(2, "n3")).then_some(())
    });
    note_n2(&cluster, &mut seen);
    assert!(seen.contains(&"suspect".to_owned()), "{seen:?}");
    assert!(seen.contains(&"down".to_owned()), "{seen:?}");
    assert_eq!(seen.last().map(String::as_str), Some("alive"), "{seen:?}");
    assert!(cluster.latest(1, "n2").unwrap().incarnation >= before.incarnation);
}

/// Writes down n2's state as n1 sees it when it is a new one; n1 and n3 must not doubt each other.
fn note_n2(cluster: &Cluster, seen: &mut Vec<String>) {
    for (node, other) in [(1, "n3"), (3, "n1")] {
        let Some(Member { state, .. }) = cluster.latest(node, other) else { continue };
        assert!(matches!(state.as_str(), "alive" | "suspect"), "n{node} says {other} is {state}");
    }
    if let Some(n2) = cluster.latest(1, "n2")
        && seen.last() != Some(&n2.state)
    {
        seen.push(n2.state);
    }
}
