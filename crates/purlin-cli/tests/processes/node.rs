//! `purlin node` and the commands around it: bad input is one clear sentence and an exit code.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpListener,
    thread,
};

use crate::support::{Scene, told};

/// A directory a node could start from: authority, certificate, gossip key, configuration.
fn prepared(scene: &Scene, more: &str) -> (u16, u16) {
    for args in [
        &["cert", "new-ca", "--out", "ca"][..],
        &["cert", "issue", "n1", "--ca", "ca", "--out", "n1"],
        &["cert", "gossip-key", "--out", "gossip.key"],
    ] {
        let (code, out, err) = told(&scene.run(args));
        assert_eq!(code, Some(0), "{args:?}: {out}{err}");
    }
    let (http, peers) = crate::support::free_ports(1);
    let config = format!(
        "[node]\nname = \"n1\"\n[cluster]\nbind = \"127.0.0.1:{peers}\"\n[http]\nbind = \"127.0.0.1:{http}\"\n\
         [tls]\nca = \"../ca/ca.pem\"\ncert = \"node.pem\"\nkey = \"node.key\"\n[gossip]\nkey_file = \"../gossip.key\"\n{more}"
    );
    fs::write(scene.path("n1/purlin.toml"), config).unwrap();
    (http, peers)
}

fn refusal(scene: &Scene, args: &[&str]) -> String {
    let (code, out, err) = told(&scene.run(args));
    assert_eq!(code, Some(1), "{out}{err}");
    assert_eq!(out, "");
    err
}

#[test]
fn an_unknown_config_key_names_file_line_and_nearest_match() {
    let scene = Scene::new();
    prepared(&scene, "[limits]\nmesage_bytes_max = 5\n");
    let err = refusal(&scene, &["node", "--data", "n1"]);
    assert!(err.contains("purlin.toml:14: limits.mesage_bytes_max is unknown; did you mean limits.message_bytes_max?"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    let err = refusal(&scene, &["config", "check", "--data", "n1"]);
    assert!(err.contains("did you mean limits.message_bytes_max?"), "{err}");
}

#[test]
fn an_unwritable_data_dir_is_one_sentence() {
    let scene = Scene::new();
    prepared(&scene, "");
    // A file in the way stops root too, which no permission does.
    fs::write(scene.path("n1/data"), "").unwrap();
    let err = refusal(&scene, &["node", "--data", "n1"]);
    assert!(err.contains("data dir") && err.contains("is not usable: cannot create"), "{err}");
    assert_eq!(err.lines().filter(|line| line.starts_with("purlin:")).count(), 1, "{err}");
}

#[test]
fn a_taken_port_names_the_setting() {
    let scene = Scene::new();
    let (http, peers) = prepared(&scene, "");
    let holder = TcpListener::bind(("127.0.0.1", http)).unwrap();
    let err = refusal(&scene, &["node", "--data", "n1"]);
    assert!(err.contains("http.bind") && err.contains(&http.to_string()), "{err}");
    drop(holder);
    let _holder = TcpListener::bind(("127.0.0.1", peers)).unwrap();
    let err = refusal(&scene, &["node", "--data", "n1"]);
    assert!(err.contains("cluster.bind") && err.contains(&peers.to_string()), "{err}");
}

#[test]
fn a_certificate_of_another_node_is_refused_by_name() {
    let scene = Scene::new();
    prepared(&scene, "");
    let err = refusal(&scene, &["node", "--data", "n1", "--name", "n9"]);
    assert!(err.contains("n9") && err.contains("certificate"), "{err}");
}

#[test]
fn missing_certificates_say_how_to_make_them() {
    let scene = Scene::new();
    let err = refusal(&scene, &["node", "--name", "n1", "--data", "n1"]);
    assert!(err.contains("tls.ca is not set") && err.contains("purlin cert new-ca"), "{err}");
}

#[test]
fn every_kind_of_setting_can_come_from_flag_or_variable() {
    let scene = Scene::new();
    prepared(&scene, "");
    let output = scene
        .purlin(&["config", "show", "--data", "n1", "--zone", "z1", "--set", "log.level=debug"])
        .env("PURLIN_NODE__REGION", "r1")
        .output()
        .unwrap();
    let (code, out, err) = told(&output);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    for line in [
        "zone = \"z1\"",
        "region = \"r1\"",
        "level = \"debug\"",
        "# PURLIN_NODE__REGION",
        "# --zone",
    ] {
        assert!(out.contains(line), "{line} is not in:\n{out}");
    }
    // What is shown is a config file.
    fs::write(scene.path("shown.toml"), &out).unwrap();
    let (code, out, err) = told(&scene.run(&["config", "check", "--config", "shown.toml"]));
    assert_eq!(code, Some(0), "{out}{err}");
}

#[test]
fn an_unknown_variable_is_refused() {
    let scene = Scene::new();
    prepared(&scene, "");
    let output = scene
        .purlin(&["config", "check", "--data", "n1"])
        .env("PURLIN_CLUSTER__SEED", "x:1")
        .output()
        .unwrap();
    let (code, _, err) = told(&output);
    assert_eq!(code, Some(1));
    assert!(
        err.contains("PURLIN_CLUSTER__SEED") && err.contains("did you mean cluster.seeds?"),
        "{err}"
    );
}

#[test]
fn certificates_are_shown_and_authorities_never_replaced() {
    let scene = Scene::new();
    prepared(&scene, "");
    let (code, out, _) = told(&scene.run(&["cert", "show", "n1/node.pem"]));
    assert_eq!(code, Some(0));
    assert!(out.contains("names    n1") && out.contains("valid"), "{out}");
    assert!(
        refusal(&scene, &["cert", "new-ca", "--out", "ca"]).contains("has an authority already")
    );
    assert!(refusal(&scene, &["cert", "show", "gossip.key"]).contains("gossip.key"));
}

#[test]
fn nobody_there_is_exit_code_4() {
    let scene = Scene::new();
    let (http, _) = crate::support::free_ports(1);
    let url = format!("http://127.0.0.1:{http}");
    for args in [
        &["status"][..],
        &["members"],
        &["ping", "n1"],
        &["pub", "t", "x"],
        &["sub", "t"],
        &["events"],
        &["drain", "n1"],
    ] {
        let (code, _, err) = told(&scene.purlin(args).args(["--node", &url]).output().unwrap());
        assert_eq!(code, Some(4), "{args:?}: {err}");
        assert!(err.contains(&url), "{args:?}: {err}");
    }
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let scene = Scene::new();
    for args in [
        &["nonsense"][..],
        &["up", "--nodes", "0"],
        &["up", "--http-port", "7400"],
        &["status", "--node", "https://127.0.0.1:1"],
        &["status", "--node", "no-such-node"],
        &["drain"],
        &["completions", "tcsh"],
    ] {
        // `drain` asks who is there before it can know that nobody was named.
        let (code, _, err) = told(&scene.run(args));
        let wanted: &[i32] = if args == ["drain"] { &[2, 4] } else { &[2] };
        assert!(wanted.contains(&code.unwrap()), "{args:?}: {code:?} {err}");
    }
}

#[test]
fn a_lost_answer_is_exit_code_3() {
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // Takes the request and hangs up: whether it was done, nobody can say.
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        stream.read(&mut request).unwrap()
    });
    let (code, _, err) = told(&scene.run(&["pub", "t", "x", "--node", &url]));
    assert_eq!(code, Some(3), "{err}");
    assert!(err.contains("may or may not"), "{err}");
    assert!(server.join().unwrap() > 0);
}

#[test]
fn a_problem_document_decides_between_not_done_and_unknown() {
    for (outcome, wanted) in [("not_done", 1), ("unknown", 3)] {
        let scene = Scene::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            let body = format!(
                "{{\"title\":\"t\",\"detail\":\"the reason\",\"code\":\"why\",\"outcome\":\"{outcome}\"}}"
            );
            write!(
                stream,
                "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/problem+json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .unwrap();
        });
        let (code, _, err) = told(&scene.run(&["pub", "t", "x", "--node", &url]));
        assert_eq!(code, Some(wanted), "{err}");
        assert!(err.contains("the reason (why)"), "{err}");
        server.join().unwrap();
    }
}

#[test]
fn completions_exist_for_the_usual_shells() {
    let scene = Scene::new();
    for shell in ["bash", "zsh", "fish"] {
        let (code, out, _) = told(&scene.run(&["completions", shell]));
        assert_eq!(code, Some(0));
        assert!(out.contains("purlin") && out.len() > 1000, "{shell}");
    }
}

#[test]
fn every_command_teaches_by_example() {
    let scene = Scene::new();
    let (code, out, _) = told(&scene.run(&["--help"]));
    assert_eq!(code, Some(0));
    assert!(out.contains("Exit codes"), "{out}");
    for command in ["up", "node", "members", "ping", "drain", "events", "pub", "sub", "completions"]
    {
        let (code, out, _) = told(&scene.run(&[command, "--help"]));
        assert_eq!(code, Some(0));
        assert!(out.contains("Examples:"), "{command}:\n{out}");
    }
}
