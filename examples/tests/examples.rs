//! Every example does what it says.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

use std::{
    io::{BufRead as _, BufReader, Read, Write as _},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(120);

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

#[test]
fn game_rooms_move_with_their_scores_and_no_player_notices() {
    says(
        env!("CARGO_BIN_EXE_game_room"),
        &[
            "12 rooms are open on n1, n2, n3",
            "n2 is drained: its rooms moved on",
            "ada and bob played on, and not one call failed",
            "every room has kept its score",
        ],
    );
}

#[test]
fn virtual_actors_fail_no_call_and_lose_no_count_in_a_rolling_restart() {
    says(
        env!("CARGO_BIN_EXE_virtual_actors"),
        &[
            "1000 meters are awake",
            "n1 was drained and started again",
            "n5 was drained and started again",
            " 0 failed, ",
            " 0 meters with a wrong count",
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
        self.until(text, |seen| seen.contains(text).then_some(()));
    }

    fn hears_its_address(&self) -> String {
        let ending = ", listening on ";
        self.until(ending, |seen| {
            let line = seen.lines().find(|line| line.starts_with("you are "))?;
            Some(line.split_once(ending)?.1.to_owned())
        })
    }

    fn until<T>(&self, text: &str, look: impl Fn(&str) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let seen = self.seen.lock().unwrap().clone();
            if let Some(found) = look(&seen) {
                return found;
            }
            assert!(Instant::now() < deadline, "{text:?} is not in:\n{seen}");
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

#[test]
fn chat_carries_lines_both_ways_and_tells_who_goes() {
    let keys = tempfile::tempdir().unwrap();
    // Any free port: who listens on it says which it got.
    let mut ann = Participant::enter(keys.path(), &["ann", "127.0.0.1:0"]);
    let address = ann.hears_its_address();
    let mut bob = Participant::enter(keys.path(), &["bob", "127.0.0.1:0", &address]);
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
