//! Replicated state and flags from the command line: written on one node, read on another.

use std::io::{BufRead as _, Write as _};
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
    wait_until("all tell of their caches", PATIENCE, || {
        let everywhere = done(&cluster, 2, &["cache", "stats", "--everywhere"]);
        let of_hits = everywhere.lines().filter(|line| line.contains("hits")).count();
        (everywhere.contains("n3") && of_hits >= 3).then_some(())
    });
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
    // Without the token, which the state directory keeps, nobody is told who it was.
    let url = cluster.url(2);
    let mut stranger = cluster.scene.purlin(&["--node", &url, "flag", "audit", "shop/cart"]);
    let (code, _, err) = told(&stranger.env("XDG_STATE_HOME", "/nowhere").output().unwrap());
    assert_eq!((code, err.contains("needs the token")), (Some(1), true), "{err}");
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

#[test]
fn every_kind_is_made_read_and_followed_from_the_command_line() {
    let cluster = Cluster::start(2);
    let url = cluster.url(2);
    let mut watch = cluster.scene.purlin(&["--node", &url, "state", "watch", "w/", "--count", "4"]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut begun = String::new();
    std::io::BufReader::new(watch.stderr.take().unwrap()).read_line(&mut begun).unwrap();
    assert!(begun.contains("watching"), "{begun}");

    done(&cluster, 1, &["counter", "add", "served", "7", "--type", "grow_counter"]);
    seen(&cluster, 2, &["counter", "get", "served"], "7");
    assert_eq!(ask(&cluster, 2, &["counter", "add", "served", "-1"]).0, Some(1));
    done(&cluster, 1, &["counter", "add", "since", "5", "--type", "resettable_counter"]);
    seen(&cluster, 2, &["counter", "get", "since"], "5");
    assert_eq!(done(&cluster, 2, &["counter", "reset", "since"]), "0");
    seen(&cluster, 1, &["counter", "get", "since"], "0");

    done(&cluster, 1, &["set", "add", "banned", "eve", "bob", "--type", "remove_wins_set"]);
    seen(&cluster, 2, &["set", "ls", "banned"], "bob\neve");
    done(&cluster, 2, &["set", "remove", "banned", "eve"]);
    seen(&cluster, 1, &["set", "ls", "banned"], "bob");
    done(&cluster, 1, &["set", "add", "seen", "a", "--type", "grow_set"]);
    let (code, _, err) = ask(&cluster, 1, &["set", "remove", "seen", "a"]);
    assert_eq!((code, err.contains("only_grows")), (Some(1), true), "{err}");

    done(&cluster, 1, &["switch", "on", "line", "--type", "disable_wins"]);
    seen(&cluster, 2, &["switch", "get", "line"], "on");
    done(&cluster, 2, &["switch", "off", "line"]);
    seen(&cluster, 1, &["switch", "get", "line"], "off");
    let (code, _, err) = ask(&cluster, 1, &["switch", "on", "line", "--type", "enable_wins"]);
    assert_eq!(code, Some(1));
    assert!(err.contains("disable_wins") && err.contains("enable_wins"), "{err}");

    done(&cluster, 1, &["map", "put", "shop", "eu/de/vat", "19", "--type", "nested_map"]);
    done(&cluster, 1, &["map", "put", "shop", "eu/fr/vat", "20"]);
    seen(&cluster, 2, &["map", "get", "shop", "eu/de/vat"], "19");
    seen(&cluster, 2, &["map", "get", "shop", "eu/fr/vat"], "20");
    done(&cluster, 2, &["map", "delete", "shop", "eu/de"]);
    wait_until("the inner map is gone", PATIENCE, || {
        let listed = ask(&cluster, 1, &["map", "ls", "shop"]).1;
        (listed.contains("eu/fr/vat") && !listed.contains("eu/de/vat")).then_some(())
    });

    done(&cluster, 1, &["text", "put", "w/notes", "milk"]);
    seen(&cluster, 2, &["text", "get", "w/notes"], "milk");
    assert_eq!(done(&cluster, 2, &["text", "insert", "w/notes", ", eggs"]), "10");
    seen(&cluster, 1, &["text", "get", "w/notes"], "milk, eggs");
    done(&cluster, 1, &["text", "insert", "w/notes", "M", "--at", "0", "--delete", "1"]);
    seen(&cluster, 2, &["text", "get", "w/notes"], "Milk, eggs");
    assert_eq!(ask(&cluster, 2, &["text", "insert", "w/notes", "x", "--at", "99"]).0, Some(1));
    done(&cluster, 1, &["text", "delete", "w/notes"]);

    let followed = watch.wait_with_output().unwrap();
    let followed = String::from_utf8_lossy(&followed.stdout);
    for line in ["at 0: -0 +\"milk\"", "at 4: -0 +\", eggs\"", "at 0: -1 +\"M\"", "deleted"] {
        assert!(followed.contains(line), "{line} in {followed}");
    }
    assert!(followed.contains("told by n1"), "{followed}");

    let listed = done(&cluster, 2, &["state", "ls"]);
    for part in ["served", "grow_counter", "remove_wins_set", "nested_map", "disable_wins"] {
        assert!(listed.contains(part), "{part} in {listed}");
    }
    let lag = done(&cluster, 1, &["state", "lag"]);
    assert!(lag.contains("crdt") && lag.contains("n2"), "{lag}");
    assert_eq!(ask(&cluster, 1, &["text", "get", "w/notes"]).0, Some(1));
    assert_eq!(ask(&cluster, 1, &["counter", "add", "x", "--type", "gauge"]).0, Some(2));
}
