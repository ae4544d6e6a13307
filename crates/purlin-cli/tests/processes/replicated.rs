//! Replicated state and flags from the command line: written on one node, read on another.

use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;

use crate::support::{Cluster, PATIENCE, told, wait_until};

/// Runs the binary against `node`; exit code, standard output, standard error.
fn ask(cluster: &Cluster, node: u16, args: &[&str]) -> (Option<i32>, String, String) {
    let url = cluster.url(node);
    told(&cluster.scene.run(&[&["--node", &url], args].concat()))
}

/// Runs it and takes the output of a success.
fn done(cluster: &Cluster, node: u16, args: &[&str]) -> String {
    let (code, out, err) = ask(cluster, node, args);
    assert_eq!(code, Some(0), "{args:?}: {err}");
    out.trim_end().to_owned()
}

/// Waits until `node` answers `args` with `wanted`.
fn seen(cluster: &Cluster, node: u16, args: &[&str], wanted: &str) {
    wait_until(&format!("{args:?} says {wanted:?}"), PATIENCE, || {
        (ask(cluster, node, args).1.trim_end() == wanted).then_some(())
    });
}

#[test]
fn what_one_node_was_told_every_node_says_and_a_no_has_its_own_exit_code() {
    let cluster = Cluster::start(3);

    assert_eq!(done(&cluster, 1, &["counter", "get", "visits"]), "0");
    assert_eq!(done(&cluster, 1, &["counter", "add", "visits", "5"]), "5");
    done(&cluster, 2, &["counter", "add", "visits", "-2"]);
    seen(&cluster, 3, &["counter", "get", "visits"], "3");

    done(&cluster, 1, &["set", "add", "tags", "red", "deep/blue sea"]);
    seen(&cluster, 2, &["set", "ls", "tags"], "deep/blue sea\nred");
    assert_eq!(ask(&cluster, 2, &["set", "has", "tags", "red"]).0, Some(0));
    assert_eq!(ask(&cluster, 2, &["set", "has", "tags", "green"]).0, Some(1));
    done(&cluster, 2, &["set", "remove", "tags", "red"]);
    seen(&cluster, 1, &["set", "ls", "tags"], "deep/blue sea");

    let mut put =
        cluster.scene.purlin(&["--node", &cluster.url(1), "map", "put", "cart", "a/b", "-"]);
    let mut put = put.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(b"one\nline\n").unwrap();
    assert!(put.wait().unwrap().success());
    wait_until("the value arrives byte for byte", PATIENCE, || {
        (ask(&cluster, 3, &["map", "get", "cart", "a/b"]).1 == "one\nline\n").then_some(())
    });
    let listed = done(&cluster, 3, &["map", "ls", "cart", "--output", "json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(
        (&listed["entries"][0]["key"], &listed["entries"][0]["origin"]),
        (&"a/b".into(), &"n1".into())
    );
    assert!(done(&cluster, 3, &["map", "ls", "cart"]).contains("one line"));

    done(&cluster, 1, &["register", "put", "motd", "hello"]);
    seen(&cluster, 2, &["register", "get", "motd"], "hello");
    done(&cluster, 2, &["register", "put", "owner", "ada", "--multi"]);
    seen(&cluster, 1, &["register", "get", "owner", "--multi"], "ada");

    let (code, _, err) = ask(&cluster, 1, &["counter", "add", "motd", "1"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("wrong_kind"), "{err}");
    assert_eq!(ask(&cluster, 1, &["map", "get", "cart", "nothing"]).0, Some(1));
    assert_eq!(ask(&cluster, 1, &["counter", "add", "visits", "many"]).0, Some(2));
    let (code, _, _) =
        told(&cluster.scene.run(&["--node", "http://127.0.0.1:1", "set", "ls", "x"]));
    assert_eq!(code, Some(4));

    let version = done(&cluster, 1, &["ephemeral", "put", "leader", "n1", "--if-absent"]);
    assert_eq!(ask(&cluster, 1, &["ephemeral", "put", "leader", "n2", "--if-absent"]).0, Some(1));
    done(
        &cluster,
        1,
        &["ephemeral", "put", "leader", "n2", "--if-version", &version, "--ttl", "30s"],
    );
    seen(&cluster, 3, &["ephemeral", "get", "leader"], "n2");
    assert!(done(&cluster, 3, &["ephemeral", "ls"]).contains("ends in"));
    done(&cluster, 3, &["ephemeral", "delete", "leader"]);

    done(&cluster, 1, &["cache", "put", "cart", "user/42", "apples", "--ttl", "10m"]);
    for node in 1..=3 {
        assert_eq!(done(&cluster, node, &["cache", "get", "cart", "user/42"]), "apples");
    }
    let taken = ["cache", "put", "cart", "user/42", "pears", "--if-absent"];
    assert_eq!(ask(&cluster, 2, &taken).0, Some(1));
    assert!(done(&cluster, 1, &["cache", "stats", "cart"]).contains("partitioned"));
    assert_eq!(done(&cluster, 2, &["cache", "incr", "hits", "page", "3"]).trim(), "3");
    assert_eq!(done(&cluster, 3, &["cache", "incr", "hits", "page", "-1"]).trim(), "2");
    done(&cluster, 1, &["cache", "touch", "hits", "page", "--ttl", "5m"]);
    assert_eq!(done(&cluster, 1, &["cache", "take", "hits", "page"]).trim(), "2");
    let everywhere = done(&cluster, 2, &["cache", "stats", "--everywhere"]);
    assert!(everywhere.contains("n3") && everywhere.contains("hits"), "{everywhere}");
    done(&cluster, 2, &["cache", "clear", "hits"]);
    done(&cluster, 3, &["cache", "delete", "cart", "user/42"]);
    assert_eq!(ask(&cluster, 1, &["cache", "get", "cart", "user/42"]).0, Some(1));
    seen(&cluster, 1, &["ephemeral", "get", "leader"], "");
}

#[test]
fn a_flag_goes_from_staff_to_a_share_to_everybody_and_its_history_says_who_and_why() {
    let cluster = Cluster::start(2);
    let staff = r#"{"description": "new cart", "rules": [{"groups": ["staff"], "then": "on"}]}"#;
    done(&cluster, 1, &["flag", "set", "shop/cart", staff, "--who", "ada", "--why", "staff first"]);
    let ada = ["flag", "eval", "shop/cart", "--actor", "ada", "--group", "staff"];
    seen(&cluster, 2, &ada, "on for \"ada\": rule 1 matches: on for everybody");
    done(&cluster, 2, &["flag", "percent", "shop/cart", "12.5", "--who", "bob"]);
    let defined = done(&cluster, 2, &["flag", "get", "shop/cart"]);
    let defined: Value = serde_json::from_str(&defined).unwrap();
    assert_eq!(defined["otherwise"]["basis_points"], 1250);
    assert_eq!(defined["rules"][0]["groups"][0], "staff", "rules stay");
    done(&cluster, 2, &["flag", "kill", "shop/cart", "--who", "bob", "--why", "it loses carts"]);
    seen(&cluster, 1, &ada, "off for \"ada\": the kill switch is on");
    done(&cluster, 1, &["flag", "on", "shop/cart", "--who", "ada", "--why", "launch"]);
    seen(&cluster, 1, &ada, "off for \"ada\": the kill switch is on");
    done(&cluster, 1, &["flag", "unkill", "shop/cart", "--who", "ada", "--why", "fixed"]);
    let anyone = ["flag", "eval", "shop/cart", "--actor", "eve"];
    seen(&cluster, 2, &anyone, "on for \"eve\": no rule matches: on for everybody");

    wait_until("the history has arrived", PATIENCE, || {
        (ask(&cluster, 2, &["flag", "audit", "shop/cart"]).1.lines().count() == 6).then_some(())
    });
    let audit = done(&cluster, 2, &["flag", "audit", "shop/cart", "--output", "json"]);
    let audit: Value = serde_json::from_str(&audit).unwrap();
    let said: Vec<(&str, &str)> = audit
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| (entry["who"].as_str().unwrap(), entry["why"].as_str().unwrap()))
        .collect();
    assert_eq!(
        said,
        [
            ("ada", "fixed"),
            ("ada", "launch"),
            ("bob", "it loses carts"),
            ("bob", ""),
            ("ada", "staff first")
        ]
    );
    assert!(done(&cluster, 2, &["flag", "ls"]).contains("on for everybody, 1 rule"));

    done(&cluster, 2, &["flag", "delete", "shop/cart", "--who", "ada", "--why", "done"]);
    assert_eq!(ask(&cluster, 2, &["flag", "get", "shop/cart"]).0, Some(1));
    assert_eq!(ask(&cluster, 2, &["flag", "kill", "shop/cart"]).0, Some(1));
    assert_eq!(ask(&cluster, 2, &["flag", "percent", "shop/cart", "101"]).0, Some(2));
    assert_eq!(ask(&cluster, 2, &["flag", "set", "shop/cart", "{"]).0, Some(2));
}
