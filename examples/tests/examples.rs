//! Every example does what it says.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    net::{TcpListener, UdpSocket},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Runs a program to its end and looks for what it should have said.
fn says(program: &str, lines: &[&str]) {
    let output = Command::new(program).output().unwrap();
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{out}{}", String::from_utf8_lossy(&output.stderr));
    for line in lines {
        assert!(out.contains(line), "{line} is not in:\n{out}");
    }
}

#[test]
fn counter_service_counts_across_processes() {
    says(
        env!("CARGO_BIN_EXE_counter_service"),
        &["40 + 2 = 42", "after a hundred more: 142", "after a reset: 0"],
    );
}

#[test]
fn hello_cluster_greets_and_parts() {
    says(
        env!("CARGO_BIN_EXE_hello_cluster"),
        &[
            "n1 sees n1, n2, n3",
            "n3 sees n1, n2, n3",
            "hello world, says n3 to n1",
            "n2 heard on news/today: three nodes make a cluster",
            "n3 is left",
        ],
    );
}

#[test]
fn the_shopping_cart_loses_nothing_that_two_cut_off_nodes_put_in() {
    says(
        env!("CARGO_BIN_EXE_shopping_cart"),
        &[
            "the phone sees flour 500 g, milk 1 l",
            "cut off, the kitchen has eggs 6, flour 500 g\n",
            "cut off, the phone has apples 1 kg, flour 500 g, milk 2 l\n",
            "together again, both have apples 1 kg, eggs 6, flour 500 g, milk 2 l",
        ],
    );
}

#[test]
fn feature_flags_reach_the_same_users_on_every_node_and_can_be_killed() {
    says(
        env!("CARGO_BIN_EXE_feature_flags"),
        &[
            "on n2, staff: on; customers: off",
            "on both nodes the same: true",
            "killed: staff off, on n2 too",
            "bob on n1: it loses carts\nada on n2: a quarter\nada on n1: staff first",
        ],
    );
}

/// A participant of the chat: what it types and what it sees.
struct Participant {
    child: Child,
    seen: Arc<Mutex<String>>,
}

impl Participant {
    fn enter(keys: &std::path::Path, args: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_chat"))
            .args(args)
            .env("CHAT_KEYS", keys)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let seen = Arc::new(Mutex::new(String::new()));
        collect(child.stdout.take().unwrap(), Arc::clone(&seen));
        Self { child, seen }
    }

    fn types(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    fn sees(&self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.seen.lock().unwrap().contains(text) {
            assert!(
                Instant::now() < deadline,
                "{text:?} is not in:\n{}",
                self.seen.lock().unwrap()
            );
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn goes(mut self) {
        drop(self.child.stdin.take());
        assert!(self.child.wait().unwrap().success());
    }
}

fn collect(from: impl Read + Send + 'static, into: Arc<Mutex<String>>) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().unwrap().push_str(&format!("{line}\n"));
        }
    });
}

fn free_address() -> String {
    loop {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        if UdpSocket::bind(address).is_ok() {
            return address.to_string();
        }
    }
}

#[test]
fn chat_carries_lines_both_ways_and_tells_who_goes() {
    let keys = tempfile::tempdir().unwrap();
    let (first, second) = (free_address(), free_address());
    let mut ann = Participant::enter(keys.path(), &["ann", &first]);
    ann.sees("you are ann");
    let mut bob = Participant::enter(keys.path(), &["bob", &second, &first]);
    ann.sees("* bob is here");
    bob.sees("* ann is here");
    // A line is for those who listen when it is said: repeat until the other has tuned in.
    let deadline = Instant::now() + PATIENCE;
    while !bob.seen.lock().unwrap().contains("ann: hello bob") {
        assert!(Instant::now() < deadline, "bob never heard ann");
        ann.types("hello bob");
        thread::sleep(Duration::from_millis(200));
    }
    bob.types("hello ann");
    ann.sees("bob: hello ann");
    bob.goes();
    ann.sees("* bob has gone");
    ann.goes();
}
