//! `purlin up`: what it starts, what it says, how it ends.

use std::{fs, net::TcpListener};

use crate::support::{Cluster, PATIENCE, Scene, is_gone, told, wait_until};
use nix::sys::signal::Signal;

#[test]
fn up_starts_three_nodes_that_see_each_other_and_says_what_to_try() {
    let cluster = Cluster::start(3);
    let said = cluster.said();
    for node in 1..=3 {
        assert!(said.contains(&format!("{}/#token=", cluster.url(node))), "{said}");
        assert!(said.contains(&cluster.pid(node).to_string()), "{said}");
        let alive = cluster
            .members(node)
            .unwrap()
            .into_iter()
            .filter(|member| member.state == "alive")
            .count();
        assert_eq!(alive, 3, "when up says so, every node sees all three");
    }
    for hint in [
        "purlin members --watch",
        "purlin sub feed",
        "purlin pub feed",
        "curl ",
        "kill -9",
        "purlin node --data",
    ] {
        assert!(said.contains(hint), "{hint} is not in:\n{said}");
    }
    let dir = cluster.dir();
    for file in
        ["admin.token", "ca/ca.pem", "n1/purlin.toml", "n2/pid", "n3/log", "n3/data/incarnation"]
    {
        assert!(dir.join(file).exists(), "{file}");
    }
}

#[test]
fn the_other_commands_find_the_cluster_and_its_token_by_themselves() {
    let cluster = Cluster::start(2);
    let (code, out, err) = told(&cluster.scene.run(&["status"]));
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("2 alive"), "{out}");
    let (code, out, _) = told(&cluster.scene.run(&["members", "--output", "json", "--node", "n2"]));
    assert_eq!(code, Some(0));
    let members: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(members["members"].as_array().unwrap().len(), 2);
    // A dead node among the known ones does not matter.
    cluster.signal(1, Signal::SIGKILL);
    let (code, out, err) = told(&cluster.scene.run(&["status"]));
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("n2"), "{out}");
}

#[test]
fn a_second_up_on_the_same_ports_says_which_is_taken_and_by_what_setting_to_change_it() {
    let cluster = Cluster::start(2);
    let (http, peers) = (cluster.http_port.to_string(), cluster.cluster_port.to_string());
    let (code, _, err) = told(&cluster.scene.run(&[
        "up",
        "--nodes",
        "2",
        "--data",
        "elsewhere",
        "--http-port",
        &http,
        "--cluster-port",
        &peers,
    ]));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains(&format!("TCP port {http}, wanted for n1, is taken")), "{err}");
    assert!(err.contains("choose another with --http-port"), "{err}");
    assert!(err.contains(&cluster.dir().display().to_string()), "{err}");
    assert!(!cluster.scene.path("elsewhere").exists(), "nothing was made");
}

#[test]
fn a_port_of_a_later_node_is_named_with_that_node() {
    let scene = Scene::new();
    let (http, peers) = crate::support::free_ports(3);
    let _holder = TcpListener::bind(("127.0.0.1", peers + 1)).unwrap();
    let (code, _, err) = told(&scene.run(&[
        "up",
        "--data",
        "up",
        "--http-port",
        &http.to_string(),
        "--cluster-port",
        &peers.to_string(),
    ]));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains(&format!("TCP port {}, wanted for n2, is taken", peers + 1)), "{err}");
    assert!(err.contains("choose another with --cluster-port"), "{err}");
}

#[test]
fn a_second_up_on_the_same_directory_is_refused_while_it_runs_and_resumes_it_afterwards() {
    let mut cluster = Cluster::start(2);
    let (http, peers) = crate::support::free_ports(2);
    let dir = cluster.dir();
    let (code, _, err) = told(&cluster.scene.run(&[
        "up",
        "--nodes",
        "2",
        "--data",
        dir.to_str().unwrap(),
        "--http-port",
        &http.to_string(),
        "--cluster-port",
        &peers.to_string(),
    ]));
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("is already running (pid"), "{err}");

    let before = cluster.latest(1, "n1").unwrap().incarnation;
    let token = fs::read_to_string(dir.join("admin.token")).unwrap();
    cluster.signal_up(Signal::SIGTERM);
    assert_eq!(cluster.wait_for_end(), Some(0), "{}", cluster.said());
    let scene = std::mem::replace(&mut cluster.scene, Scene::new());
    drop(cluster);
    let again = Cluster::start_with(scene, 2, &[]);
    assert!(again.latest(2, "n1").unwrap().incarnation > before);
    assert_eq!(fs::read_to_string(dir.join("admin.token")).unwrap(), token);
}

#[test]
fn ctrl_c_drains_all_nodes() {
    let mut cluster = Cluster::start(3);
    cluster.signal_up(Signal::SIGINT);
    assert_eq!(cluster.wait_for_end(), Some(0), "{}", cluster.logs());
    cluster.wait_until_said("all nodes have left");
    assert!(!cluster.said().contains("without draining"), "{}", cluster.said());
    for node in 1..=3 {
        assert!(
            !cluster.dir().join(format!("n{node}/pid")).exists(),
            "a node that left has no pid"
        );
        assert!(crate::support::get_json(cluster.http_port + node - 1, "/v1/members").is_none());
    }
    let announced = fs::read_to_string(cluster.scene.path("state/purlin/clusters.json")).unwrap();
    assert!(!announced.contains(cluster.dir().to_str().unwrap()), "{announced}");
}

#[test]
fn a_second_ctrl_c_stops_at_once() {
    let mut cluster = Cluster::start(2);
    // A stopped process cannot drain, so the first signal alone would wait for its deadline.
    let stopped = cluster.pid(2);
    cluster.signal(2, Signal::SIGSTOP);
    cluster.signal_up(Signal::SIGINT);
    cluster.wait_until_said("draining");
    // Right after the first it would count as the same request.
    std::thread::sleep(std::time::Duration::from_millis(400));
    cluster.signal_up(Signal::SIGINT);
    assert_eq!(cluster.wait_for_end(), Some(1), "{}", cluster.said());
    cluster.wait_until_said("stopped at once");
    wait_until("the stopped node is gone", PATIENCE, || is_gone(stopped).then_some(()));
}

#[test]
fn nodes_do_not_outlive_an_up_that_was_killed() {
    let mut cluster = Cluster::start(2);
    let pids = [cluster.pid(1), cluster.pid(2)];
    cluster.signal_up(Signal::SIGKILL);
    cluster.wait_for_end();
    for pid in pids {
        wait_until("its nodes drain and end", PATIENCE, || is_gone(pid).then_some(()));
    }
}

#[test]
fn a_node_that_dies_is_told_and_comes_back_by_the_command_told() {
    let mut cluster = Cluster::start(2);
    cluster.signal(2, Signal::SIGKILL);
    cluster.wait_until_said("n2 died (pid ");
    let command =
        format!("bring it back with: purlin node --data {}", cluster.dir().join("n2").display());
    assert!(cluster.said().contains(&command), "{}", cluster.said());
    cluster.start_by_hand(2);
    cluster.wait_until_said("n2 is back");
    cluster.signal_up(Signal::SIGTERM);
    cluster.wait_until_said("n2 was started by hand and keeps running");
}

#[test]
fn with_restart_a_dead_node_is_started_again() {
    let cluster = Cluster::start_with(Scene::new(), 2, &["--restart"]);
    let before = cluster.latest(1, "n2").unwrap();
    cluster.signal(2, Signal::SIGKILL);
    cluster.wait_until_said("restarting it");
    wait_until("n2 is there with a new incarnation", PATIENCE, || {
        cluster
            .latest(1, "n2")
            .filter(|now| now.state == "alive" && now.incarnation > before.incarnation)
    });
}

#[test]
fn a_directory_that_cannot_be_used_is_told_in_one_sentence() {
    let scene = Scene::new();
    fs::write(scene.path("file"), "").unwrap();
    let (http, peers) = crate::support::free_ports(3);
    let (code, _, err) = told(&scene.run(&[
        "up",
        "--data",
        "file/dir",
        "--http-port",
        &http.to_string(),
        "--cluster-port",
        &peers.to_string(),
    ]));
    assert_eq!(code, Some(1), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    assert!(err.contains("(--data) is not usable"), "{err}");
}

#[test]
#[cfg(not(debug_assertions))]
fn up_is_ready_within_three_seconds() {
    let started = std::time::Instant::now();
    let _cluster = Cluster::start(3);
    assert!(started.elapsed() < std::time::Duration::from_secs(3), "{:?}", started.elapsed());
}
