//! Who is present where, said and seen through real nodes, one of which is killed.

use std::{
    process::{Child, Stdio},
    sync::{Arc, Mutex},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{Cluster, PATIENCE, collect, told, wait_until, wait_until_or};

/// A command in the background, with what it said and what it noted on standard error.
struct Running {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
    noted: Arc<Mutex<Vec<String>>>,
}

impl Running {
    fn start(cluster: &Cluster, node: u16, args: &[&str]) -> Self {
        let mut command = cluster.at(node, args);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (said, noted) = (Arc::default(), Arc::default());
        collect(child.stdout.take().unwrap(), Arc::clone(&said));
        collect(child.stderr.take().unwrap(), Arc::clone(&noted));
        Self { child, said, noted }
    }

    fn wait_until_said(&self, text: &str) {
        self.wait_until_in(&self.said, text);
    }

    fn wait_until_noted(&self, text: &str) {
        self.wait_until_in(&self.noted, text);
    }

    fn wait_until_in(&self, lines: &Mutex<Vec<String>>, text: &str) {
        let all = |lines: &Mutex<Vec<String>>| lines.lock().unwrap().join("\n");
        wait_until_or(
            &format!("it says {text:?}"),
            PATIENCE,
            || all(lines).contains(text).then_some(()),
            || format!("{}\n{}", all(&self.said), all(&self.noted)),
        );
    }

    fn end(mut self) -> Option<i32> {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        kill(pid, Signal::SIGINT).unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn presences_are_seen_by_all_and_those_of_a_killed_node_go_with_the_verdict() {
    let cluster = Cluster::start(3);
    let watch = Running::start(&cluster, 1, &["presence", "watch", "room/7"]);
    watch.wait_until_noted("watching presences");
    let eve = Running::start(&cluster, 2, &["presence", "track", "room/7", "eve"]);
    watch.wait_until_said("eve");
    let args = ["presence", "track", "room/7", "ada", "--meta", "device=phone", "--lease", "10m"];
    let ada = Running::start(&cluster, 3, &args);
    let listed = |node: u16| {
        let (code, out, err) =
            told(&cluster.at(node, &["presence", "ls", "room/7"]).output().unwrap());
        assert_eq!(code, Some(0), "{err}");
        out
    };
    wait_until("all list both", PATIENCE, || {
        (1..=3)
            .all(|node| listed(node).contains("eve") && listed(node).contains("device=phone"))
            .then_some(())
    });
    let counts = Running::start(&cluster, 1, &["presence", "counts", "--prefix", "room/"]);
    counts.wait_until_said("room/7  n2 1, n3 1");
    // Ctrl-C is a goodbye.
    assert_eq!(eve.end(), Some(0));
    counts.wait_until_said("room/7  n3 1");
    watch.wait_until_said("unregistered");
    // A killed node's presence does not wait for its lease, which is longer than our patience.
    drop(ada);
    cluster.signal(3, Signal::SIGKILL);
    watch.wait_until_said("node_down");
    wait_until("nobody is present for n2 either", PATIENCE, || {
        let (code, out, err) =
            told(&cluster.at(2, &["presence", "ls", "--output", "json"]).output().unwrap());
        assert_eq!((code, err.as_str()), (Some(0), ""));
        (out.contains("\"topics\":[]") || out.contains("\"topics\": []")).then_some(())
    });
}

#[test]
fn names_and_groups_of_a_fresh_cluster_are_empty_and_an_absent_one_is_not_done() {
    let cluster = Cluster::start(1);
    for args in [&["registry", "ls"][..], &["registry", "ls", "--local"], &["groups", "ls"]] {
        let (code, _, err) = told(&cluster.at(1, args).output().unwrap());
        assert_eq!(code, Some(0), "{args:?}: {err}");
    }
    let (code, _, err) =
        told(&cluster.at(1, &["registry", "whereis", "cart/42"]).output().unwrap());
    assert_eq!(code, Some(1));
    assert!(err.contains("nobody has the name"), "{err}");
}
