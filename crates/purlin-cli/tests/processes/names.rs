//! Who is present where, said and seen through real nodes, one of which is killed.

use std::{
    process::{Child, Stdio},
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{Cluster, PATIENCE, collect, told, wait_until, wait_until_or};

/// A command in the background, with what it said.
struct Running {
    child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Running {
    fn start(cluster: &Cluster, node: u16, args: &[&str]) -> Self {
        let mut command = cluster.at(node, args);
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

    /// Waits until a watcher has heard of `key`, or it is there to be listed.
    fn wait_until_said_or_listed(&self, cluster: &Cluster, key: &str) {
        wait_until("it is heard or listed", PATIENCE, || {
            let is_said = self.said.lock().unwrap().iter().any(|line| line.contains(key));
            let listed = cluster.at(1, &["presence", "ls", "room/7"]).output().unwrap();
            (is_said || told(&listed).1.contains(key)).then_some(())
        });
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
    // Said until the watcher, which may still be connecting, has heard it.
    let eve = Running::start(&cluster, 2, &["presence", "track", "room/7", "eve"]);
    watch.wait_until_said_or_listed(&cluster, "eve");
    let args = ["presence", "track", "room/7", "ada", "--meta", "device=phone", "--lease", "60s"];
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
    // Ctrl-C is a goodbye.
    assert_eq!(eve.end(), Some(0));
    watch.wait_until_said("unregistered");
    // A killed node's presence does not wait for its lease of a minute.
    drop(ada);
    cluster.signal(3, Signal::SIGKILL);
    let killed = std::time::Instant::now();
    watch.wait_until_said("node_down");
    assert!(killed.elapsed() < Duration::from_millis(2_500), "gone after {:?}", killed.elapsed());
    let (code, out, err) =
        told(&cluster.at(2, &["presence", "ls", "--output", "json"]).output().unwrap());
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("\"topics\":[]") || out.contains("\"topics\": []"), "{out}");
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
