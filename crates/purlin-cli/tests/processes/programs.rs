//! Programs run through real nodes, one of which is killed.

use std::{
    fs,
    process::{Child, Stdio},
    sync::{Arc, Mutex},
};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::support::{
    Cluster, PATIENCE, collect, get_json, is_gone, told, wait_until, wait_until_or,
};

/// The program `name` as `node` knows it.
fn program(cluster: &Cluster, node: u16, name: &str) -> Option<Value> {
    get_json(cluster.http_port + node - 1, &format!("/v1/supervised/{name}"))
}

fn wait_for_state(cluster: &Cluster, node: u16, name: &str, state: &str) -> Value {
    wait_until_or(
        &format!("n{node} knows {name} {state}"),
        PATIENCE,
        || program(cluster, node, name).filter(|it| it["state"] == state),
        || format!("{:?}\n{}", program(cluster, node, name), cluster.logs()),
    )
}

fn number(node: &Value) -> u16 {
    node.as_str().unwrap().trim_start_matches('n').parse().unwrap()
}

/// A command that asks `node`. What stands behind `--` stays the last.
fn ask(cluster: &Cluster, node: u16, args: &[&str]) -> (Option<i32>, String, String) {
    let url = cluster.url(node);
    told(&cluster.scene.purlin(&[&["--node", &url], args].concat()).output().unwrap())
}

/// What it wrote, as `node` tells it.
fn logs(cluster: &Cluster, node: u16, args: &[&str]) -> (Option<i32>, String, String) {
    ask(cluster, node, &[&["logs"], args].concat())
}

/// `purlin logs -f` in the background, with what it said.
struct Following {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Following {
    fn start(cluster: &Cluster, node: u16, name: &str) -> Self {
        let mut command = cluster.at(node, &["logs", "-f", name]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let said = Arc::default();
        collect(child.stdout.take().unwrap(), Arc::clone(&said));
        Self { child, said }
    }

    fn wait_until_said(&self, text: &str) {
        wait_until_or(
            &format!("it says {text:?}"),
            PATIENCE,
            || self.said.lock().unwrap().iter().any(|line| line.contains(text)).then_some(()),
            || self.said.lock().unwrap().join("\n"),
        );
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_program_runs_elsewhere_when_its_node_is_killed_and_no_copy_of_it_is_left() {
    let mut cluster = Cluster::start(3);
    let script = "echo here $PURLIN_NODE_NAME fence $PURLIN_FENCE again $PURLIN_RESTARTS; \
                  setsid sleep 1000 & echo pids $$ $!; wait";
    let run = ["run", "--singleton", "nightly", "--", "sh", "-c", script];
    let (code, out, err) = ask(&cluster, 1, &run);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.starts_with("nightly runs on n"), "{out}");
    let first = wait_for_state(&cluster, 1, "nightly", "running");
    let (dead, fence) = (number(&first["node"]), first["fence"].as_u64().unwrap());
    let here = format!("here n{dead} fence {fence} again 0");
    let (reader, other) = if dead == 1 { (2, 3) } else { (1, 5 - dead) };
    let pids: Vec<i32> = wait_until("it has said who it is", PATIENCE, || {
        let (_, out, _) = logs(&cluster, reader, &["nightly"]);
        let pids = out.lines().find_map(|line| line.strip_prefix("pids "))?;
        assert!(out.contains(&here), "{out}");
        Some(pids.split(' ').map(|pid| pid.parse().unwrap()).collect())
    });
    assert!(pids.len() == 2 && pids.iter().all(|pid| !is_gone(*pid)));
    // Asked for again, it is there already; something else of that name is refused.
    let (code, out, err) = ask(&cluster, reader, &run);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("is there already"), "{out}");
    let (code, _, err) = ask(&cluster, 1, &["run", "nightly", "--", "true"]);
    assert_eq!(code, Some(1), "{err}");
    assert!(err.contains("is something else already"), "{err}");

    let following = Following::start(&cluster, reader, "nightly");
    following.wait_until_said(&here);
    cluster.signal(dead, Signal::SIGKILL);
    for pid in pids {
        wait_until(&format!("{pid} is gone"), PATIENCE, || is_gone(pid).then_some(()));
    }
    let second = wait_until("it runs elsewhere", PATIENCE, || {
        program(&cluster, reader, "nightly")
            .filter(|it| it["state"] == "running" && it["node"] != first["node"])
    });
    let now = second["fence"].as_u64().unwrap();
    assert!(now > fence, "{second}");
    let here_now = format!("here {} fence {now} again 1", second["node"].as_str().unwrap());
    following.wait_until_said(&here_now);
    // Each of those left tells the same, whichever runs it.
    for node in [reader, other] {
        wait_until("its output is read", PATIENCE, || {
            logs(&cluster, node, &["nightly"]).1.contains(&here_now).then_some(())
        });
    }
    // What the dead node kept is there when it is back.
    cluster.start_by_hand(dead);
    wait_until_or(
        "the old output is read",
        PATIENCE,
        || {
            let (_, out, _) = logs(&cluster, reader, &["nightly", "--on", &format!("n{dead}")]);
            out.contains(&here).then_some(())
        },
        || cluster.logs(),
    );
    let (code, out, err) = ask(&cluster, other, &["stop", "nightly"]);
    assert_eq!((code, out.trim()), (Some(0), "nightly has ended"), "{err}");
    let mut following = following;
    assert!(following.child.wait().unwrap().success());
    wait_until("nobody knows it any more", PATIENCE, || {
        let gone = |node| {
            let (code, out, _) = ask(&cluster, node, &["ps"]);
            code == Some(0) && !out.contains("nightly")
        };
        (gone(reader) && gone(other)).then_some(())
    });
    let (code, _, err) = ask(&cluster, reader, &["stop", "nightly"]);
    assert_eq!(code, Some(1), "{err}");
    // Its output outlives it.
    let (code, out, err) = logs(&cluster, reader, &["nightly"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains(&here_now) && err.contains("-- ended: killed by SIGTERM"), "{out}{err}");
}

#[test]
fn a_program_that_fails_again_and_again_is_left_alone_until_it_is_run_again() {
    let cluster = Cluster::start(1);
    let go = cluster.scene.path("go");
    let script =
        format!("[ -e {} ] && exec sleep 1000; echo life $PURLIN_RESTARTS; exit 7", go.display());
    let run = ["run", "sick", "--", "sh", "-c", &script];
    let (code, _, err) = ask(&cluster, 1, &run);
    assert_eq!(code, Some(0), "{err}");
    let sick = wait_for_state(&cluster, 1, "sick", "quarantined");
    assert!(sick["cause"].as_str().unwrap().contains("exit status 7"), "{sick}");
    let (_, out, err) = logs(&cluster, 1, &["sick"]);
    assert!(out.starts_with("life 0\nlife 1\n"), "{out}");
    assert!(err.contains("-- ended: exit status 7"), "{err}");
    let (_, out, _) = ask(&cluster, 1, &["ps"]);
    assert!(out.contains("quarantined") && out.contains("exit status 7"), "{out}");
    fs::write(go, "").unwrap();
    let (code, out, err) = ask(&cluster, 1, &run);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("is started again"), "{out}");
    wait_for_state(&cluster, 1, "sick", "running");
}

#[test]
fn what_cannot_be_run_is_refused_in_a_sentence_and_nothing_of_it_stays() {
    let cluster = Cluster::start(1);
    let cases: [(&[&str], i32, &str); 9] = [
        (&["run", "job"], 2, "COMMAND"),
        (&["run", "a/b", "--", "true"], 1, "name \"a/b\" is not 1 to 128"),
        (&["run", "job", "--", "/no/such/program"], 1, "cannot run /no/such/program: No such file"),
        (&["run", "job", "--cwd", "/no/such/dir", "--", "true"], 1, "cannot start in"),
        (&["run", "job", "--user", "nobody-knows", "--", "true"], 1, "there is no user"),
        (&["run", "job", "--cpus", "0.5", "--", "true"], 1, "needs a cgroup"),
        (&["run", "job", "--memory-max", "1KiB", "--", "true"], 1, "is outside 1048576"),
        (&["run", "job", "--env", "PURLIN_FENCE=9", "--", "true"], 1, "begins with PURLIN_"),
        (&["run", "job", "--stop-signal", "STOP", "--", "true"], 1, "is not TERM, INT"),
    ];
    for (args, expected, text) in cases {
        let (code, out, err) = ask(&cluster, 1, args);
        assert_eq!(code, Some(expected), "{args:?}: {out}{err}");
        assert!(err.contains(text), "{args:?}: {err:?} does not say {text:?}");
    }
    let (code, out, err) = ask(&cluster, 1, &["ps", "--output", "json"]);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains("\"programs\":[]"), "{out}");
    for args in [&["stop", "job"][..], &["logs", "nobody"]] {
        let (code, _, err) = ask(&cluster, 1, args);
        assert_eq!(code, Some(1), "{args:?}: {err}");
    }
    // One that runs once is forgotten and leaves its output.
    let once = ["run", "once", "--restart", "never", "--", "sh", "-c", "pwd; echo $PURLIN_NODE"];
    let (code, _, err) = ask(&cluster, 1, &once);
    assert_eq!(code, Some(0), "{err}");
    // The directory that the command line was in.
    let here = cluster.scene.dir.path().canonicalize().unwrap();
    let expected = format!("{}\n{}\n", here.display(), cluster.url(1));
    wait_until_or(
        "it has run, here",
        PATIENCE,
        || (logs(&cluster, 1, &["once"]).1 == expected).then_some(()),
        || format!("{:?}", logs(&cluster, 1, &["once"])),
    );
    wait_until("it is forgotten", PATIENCE, || {
        program(&cluster, 1, "once").is_none().then_some(())
    });
}

/// Without the token nobody runs, stops or reads anything.
#[test]
fn programs_need_the_token() {
    let cluster = Cluster::start(1);
    let token = cluster.scene.path("no-token");
    fs::write(&token, "wrong\n").unwrap();
    for args in [&["run", "job", "--", "true"][..], &["stop", "job"], &["logs", "job"]] {
        let mut command =
            cluster.at(1, &[&["--token-file", token.to_str().unwrap()], args].concat());
        let (code, _, err) = told(&command.output().unwrap());
        assert_eq!(code, Some(1), "{args:?}: {err}");
        assert!(err.contains("token"), "{args:?}: {err}");
    }
}
