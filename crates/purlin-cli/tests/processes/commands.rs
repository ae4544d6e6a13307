//! The commands that ask a running cluster.

use std::process::Stdio;

use crate::support::{Cluster, PATIENCE, told, wait_until};

#[test]
fn ping_measures_and_knows_who_is_not_there() {
    let cluster = Cluster::start(2);
    let (code, out, err) = told(&cluster.at(1, &["ping", "n2"]).output().unwrap());
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("n2@") && out.contains("answered in"), "{out}");
    let (code, _, err) = told(&cluster.at(1, &["ping", "n9"]).output().unwrap());
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("n9"), "{err}");
}

#[test]
fn drain_waits_until_the_node_has_left_and_its_process_has_ended() {
    let cluster = Cluster::start(3);
    let (code, out, err) = told(&cluster.scene.run(&["drain", "n3"]));
    assert_eq!(code, Some(0), "{err}{}", cluster.logs());
    assert!(out.contains("n3 has left"), "{out}");
    for node in [1, 2] {
        cluster.wait_for_state(node, "n3", "left", PATIENCE);
    }
    cluster.wait_until_said("n3 has left; start it again with");
    let (code, _, err) = told(&cluster.scene.run(&["drain", "n3"]));
    assert_eq!(code, Some(1));
    assert!(err.contains("n3 is left already"), "{err}");
}

#[test]
fn drain_needs_the_token() {
    let cluster = Cluster::start(2);
    let token = cluster.scene.path("wrong.token");
    std::fs::write(&token, "not-the-token-but-long-enough-for-one\n").unwrap();
    let (code, _, err) = told(
        &cluster.at(1, &["drain", "n2", "--token-file", token.to_str().unwrap()]).output().unwrap(),
    );
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("--token-file"), "{err}");
    assert_eq!(cluster.latest(1, "n2").unwrap().state, "alive");
}

#[test]
fn drain_without_a_name_needs_an_explicit_node() {
    let cluster = Cluster::start(2);
    let (code, _, err) = told(&cluster.scene.run(&["drain"]));
    assert_eq!(code, Some(2), "{err}");
    let (code, out, err) = told(&cluster.at(2, &["drain"]).output().unwrap());
    assert_eq!(code, Some(0), "{out}{err}");
    cluster.wait_for_state(1, "n2", "left", PATIENCE);
}

#[test]
fn events_tell_what_happened_and_follow_what_happens() {
    let cluster = Cluster::start(2);
    let mut follow = cluster
        .at(1, &["events", "--follow"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told_so_far = std::sync::Arc::default();
    crate::support::collect(follow.stdout.take().unwrap(), std::sync::Arc::clone(&told_so_far));
    cluster.signal(2, nix::sys::signal::Signal::SIGKILL);
    wait_until("the death of n2 is told", PATIENCE, || {
        told_so_far
            .lock()
            .unwrap()
            .iter()
            .any(|line: &String| line.contains("n2") && line.contains("down"))
            .then_some(())
    });
    follow.kill().unwrap();
    follow.wait().unwrap();
    let (code, out, _) = told(&cluster.at(1, &["events"]).output().unwrap());
    assert_eq!(code, Some(0));
    assert!(out.lines().any(|line| line.contains("n2") && line.contains("down")), "{out}");
}

#[test]
fn members_shows_a_table_and_watch_shows_changes() {
    let cluster = Cluster::start(2);
    let (code, out, _) = told(&cluster.scene.run(&["members"]));
    assert_eq!(code, Some(0));
    assert!(out.starts_with("NAME"), "{out}");
    assert!(out.contains("2 alive"), "{out}");
    let mut watch = cluster
        .at(1, &["members", "--watch"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told_so_far = std::sync::Arc::default();
    crate::support::collect(watch.stdout.take().unwrap(), std::sync::Arc::clone(&told_so_far));
    let contains = |text: &str| {
        told_so_far.lock().unwrap().iter().any(|line: &String| line.contains(text)).then_some(())
    };
    wait_until("both are shown", PATIENCE, || contains("2 alive"));
    cluster.signal(2, nix::sys::signal::Signal::SIGKILL);
    wait_until("the change is shown", PATIENCE, || contains("1 down"));
    watch.kill().unwrap();
    watch.wait().unwrap();
}

#[test]
fn a_node_that_does_not_answer_is_passed_over() {
    let cluster = Cluster::start(2);
    // It still accepts connections: only the missing answer gives it away.
    cluster.signal(1, nix::sys::signal::Signal::SIGSTOP);
    let (code, out, err) = told(&cluster.scene.run(&["status"]));
    cluster.signal(1, nix::sys::signal::Signal::SIGCONT);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("asked    n2"), "{out}");
}

#[test]
fn a_cut_is_simulated_for_the_members_there_are_and_for_imagined_ones() {
    let cluster = Cluster::start(2);
    let cut = ["supervisor", "simulate-split", "--cut", "n2/*", "--policy", "keep-majority"];
    let (code, out, err) = told(&cluster.at(1, &cut).output().unwrap());
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("one goes on"), "{out}");
    assert!(out.contains("goes on: half of the voters; n1 decides"), "{out}");
    let cut = ["supervisor", "simulate-split", "--cut", "n1/n2/n3", "--members", "n1..n3"];
    let (code, out, err) = told(&cluster.scene.run(&[&cut[..], &["--output", "json"]].concat()));
    assert_eq!(code, Some(0), "{err}");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    let apart = &report["policies"][0];
    assert_eq!((&apart["policy"], &apart["sides_that_go_on"]), (&"none".into(), &3.into()));
    let (code, _, err) = told(&cluster.scene.run(&[&cut[..], &["--crash", "n9"]].concat()));
    assert_eq!(code, Some(2), "{err}");
    assert!(err.contains("n9 is no member; there are n1, n2, n3"), "{err}");
}

#[test]
fn supervisors_are_listed_and_one_that_is_not_there_is_told_apart() {
    let cluster = Cluster::start(2);
    let (code, out, err) = told(&cluster.at(1, &["supervisor", "ls"]).output().unwrap());
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("SUPERVISOR"), "{out}");
    for verb in ["ls", "plan", "pause", "resume", "rebalance"] {
        let (code, _, err) =
            told(&cluster.at(1, &["supervisor", verb, "nowhere"]).output().unwrap());
        assert_eq!(code, Some(1), "{verb}: {err}");
        assert!(err.contains("nowhere"), "{verb}: {err}");
    }
    let (code, _, err) = told(&cluster.at(1, &["supervisor", "plan"]).output().unwrap());
    assert_eq!(code, Some(2), "{err}");
}
