//! `purlin pub` and `purlin sub` across nodes.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use crate::support::{Cluster, PATIENCE, big_file, told, wait_until, wait_until_or};
use nix::sys::signal::{Signal, kill};

/// A `purlin sub` writing to a file, listening when this returns.
struct Listener {
    child: Child,
    notes: Arc<Mutex<Vec<String>>>,
}

impl Listener {
    fn start(command: &mut Command, out: &Path) -> Self {
        let mut child =
            command.stdout(File::create(out).unwrap()).stderr(Stdio::piped()).spawn().unwrap();
        let notes = Arc::new(Mutex::new(Vec::new()));
        crate::support::collect(child.stderr.take().unwrap(), Arc::clone(&notes));
        let mut listener = Self { child, notes };
        wait_until_or(
            "sub has subscribed",
            PATIENCE,
            || listener.notes().contains("subscribed to").then_some(()),
            || "it said nothing".to_owned(),
        );
        listener.assert_running();
        listener
    }

    fn notes(&self) -> String {
        self.notes.lock().unwrap().join("\n")
    }

    fn assert_running(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "sub ended: {}", self.notes());
    }

    fn wait_for_end(&mut self, cluster: &Cluster) -> Option<i32> {
        let notes = Arc::clone(&self.notes);
        wait_until_or(
            "sub ends",
            PATIENCE,
            || self.child.try_wait().unwrap(),
            || {
                let notes = notes.lock().unwrap().join("\n");
                format!("it still runs; sub noted:\n{notes}\n{}", cluster.logs())
            },
        )
        .code()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

const LINES: usize = 100_000;

fn assert_same(file: &Path, arrived: &Path, cluster: &Cluster, notes: &str) {
    let (sent, got) = (fs::read(file).unwrap(), fs::read(arrived).unwrap());
    if sent != got {
        let lines = |bytes: &[u8]| bytes.iter().filter(|&&byte| byte == b'\n').count();
        let first = sent.iter().zip(&got).position(|(one, other)| one != other);
        panic!(
            "{} lines sent, {} arrived, first difference at byte {first:?}; sub noted: {notes}\n{}",
            lines(&sent),
            lines(&got),
            cluster.logs()
        );
    }
}

#[test]
fn a_file_of_100_000_lines_arrives_complete_and_in_order() {
    let cluster = Cluster::start(3);
    let file = big_file(cluster.scene.dir.path(), LINES);
    let arrived = cluster.scene.path("arrived.txt");
    let mut listener = Listener::start(
        &mut cluster.at(3, &["sub", "feed", "--count", &LINES.to_string()]),
        &arrived,
    );
    let publish =
        cluster.at(1, &["pub", "feed", "-"]).stdin(File::open(&file).unwrap()).output().unwrap();
    let (code, out, err) = told(&publish);
    assert_eq!(code, Some(0), "{err}");
    assert!(out.contains(&format!("published {LINES} messages to feed")), "{out}");
    assert_eq!(listener.wait_for_end(&cluster), Some(0), "{}", listener.notes());
    assert_same(&file, &arrived, &cluster, &listener.notes());
}

#[test]
fn the_death_of_a_third_node_half_way_disturbs_nothing() {
    let cluster = Cluster::start(3);
    let file = big_file(cluster.scene.dir.path(), LINES);
    let arrived = cluster.scene.path("arrived.txt");
    let mut listener = Listener::start(
        &mut cluster.at(3, &["sub", "feed", "--count", &LINES.to_string()]),
        &arrived,
    );
    // n2 listens as well, so that its death cuts a delivery under way.
    let _victim =
        Listener::start(&mut cluster.at(2, &["sub", "feed"]), &cluster.scene.path("victim.txt"));

    let mut publish = cluster
        .at(1, &["pub", "feed", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = publish.stdin.take().unwrap();
    let text = fs::read(&file).unwrap();
    let victim = cluster.pid(2);
    let feeder = thread::spawn(move || {
        let half = text.len() / 2;
        input.write_all(&text[..half]).unwrap();
        kill(nix::unistd::Pid::from_raw(victim), Signal::SIGKILL).unwrap();
        input.write_all(&text[half..]).unwrap();
    });
    feeder.join().unwrap();
    let (code, out, err) = told(&publish.wait_with_output().unwrap());
    assert_eq!(code, Some(0), "{err}{}", cluster.logs());
    assert!(out.contains(&format!("published {LINES} messages")), "{out}");
    assert_eq!(listener.wait_for_end(&cluster), Some(0), "{}", listener.notes());
    assert_same(&file, &arrived, &cluster, &listener.notes());
}

#[test]
fn bytes_that_are_not_text_arrive_as_they_are() {
    let cluster = Cluster::start(2);
    let file = cluster.scene.path("bytes");
    fs::write(&file, b"plain\n\xff\xfe\x00\x01\n\ncarriage\r\nlast").unwrap();
    let arrived = cluster.scene.path("arrived");
    let mut listener =
        Listener::start(&mut cluster.at(2, &["sub", "a/*", "--count", "5"]), &arrived);
    let publish =
        cluster.at(1, &["pub", "a/b"]).stdin(File::open(&file).unwrap()).output().unwrap();
    assert_eq!(told(&publish).0, Some(0));
    assert_eq!(listener.wait_for_end(&cluster), Some(0), "{}", listener.notes());
    assert_eq!(fs::read(&arrived).unwrap(), b"plain\n\xff\xfe\x00\x01\n\ncarriage\r\nlast\n");
}

#[test]
fn a_slow_line_is_not_kept_waiting_for_the_next() {
    let cluster = Cluster::start(2);
    let arrived = cluster.scene.path("arrived");
    let _listener = Listener::start(&mut cluster.at(2, &["sub", "feed/**"]), &arrived);
    let mut publish = cluster
        .at(1, &["pub", "feed/x"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = publish.stdin.take().unwrap();
    for round in 1..=3 {
        writeln!(input, "line {round}").unwrap();
        wait_until("the line arrives while the input stays open", PATIENCE, || {
            fs::read_to_string(&arrived).unwrap().contains(&format!("line {round}\n")).then_some(())
        });
    }
    drop(input);
    assert!(publish.wait().unwrap().success());
}

#[test]
fn one_text_is_one_message_and_json_tells_topic_and_publisher() {
    let cluster = Cluster::start(2);
    let arrived = cluster.scene.path("arrived");
    let mut listener = Listener::start(
        &mut cluster.at(2, &["sub", "logs/**", "--count", "1", "--json"]),
        &arrived,
    );
    let (code, out, err) = told(
        &cluster
            .at(1, &["pub", "logs/app/error", "it broke", "--output", "json"])
            .output()
            .unwrap(),
    );
    assert_eq!(code, Some(0), "{err}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["published"], 1);
    assert_eq!(listener.wait_for_end(&cluster), Some(0));
    let message: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&arrived).unwrap()).unwrap();
    assert_eq!(message["topic"], "logs/app/error");
    assert_eq!(message["payload"], "it broke");
    assert!(message["publisher"].as_str().unwrap().starts_with("n1@"), "{message}");
}

#[test]
fn a_reader_that_has_seen_enough_ends_sub_quietly() {
    let cluster = Cluster::start(1);
    let mut listener = cluster
        .at(1, &["sub", "feed"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let notes = Arc::new(Mutex::new(Vec::new()));
    crate::support::collect(listener.stderr.take().unwrap(), Arc::clone(&notes));
    wait_until("sub has subscribed", PATIENCE, || {
        notes.lock().unwrap().iter().any(|note| note.contains("subscribed")).then_some(())
    });
    drop(listener.stdout.take());
    let end = wait_until("sub ends", PATIENCE, || {
        cluster.at(1, &["pub", "feed", "x"]).output().unwrap();
        listener.try_wait().unwrap()
    });
    assert_eq!(end.code(), Some(0));
    assert!(!notes.lock().unwrap().iter().any(|note| note.contains("panicked")));
}

#[test]
fn sub_says_what_may_be_missing_when_its_node_comes_back() {
    let mut cluster = Cluster::start(2);
    let arrived = cluster.scene.path("arrived");
    let listener = Listener::start(&mut cluster.at(2, &["sub", "feed"]), &arrived);
    cluster.signal(2, Signal::SIGKILL);
    wait_until("sub notes the loss", PATIENCE, || listener.notes().contains("ended").then_some(()));
    cluster.wait_for_state(1, "n2", "down", PATIENCE);
    cluster.start_by_hand(2);
    wait_until("sub is back", PATIENCE, || {
        listener.notes().contains("may be missing").then_some(())
    });
    wait_until("messages flow again", PATIENCE, || {
        cluster.at(1, &["pub", "feed", "again"]).output().unwrap();
        fs::read_to_string(&arrived).unwrap().contains("again\n").then_some(())
    });
}
