//! A real process killed the hard way: its peer knows within milliseconds.
#![expect(clippy::unwrap_used, reason = "a test that unwraps fails, as it should")]

mod world;

use std::{
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use purlin_net::{CallError, Cause, Method, PeerEvent, Rpc, TlsIdentity};
use world::*;

const HANG: Method<(), ()> = Method::new("test.hang");

/// How the child is told where its certificate is; without it the child's test does nothing.
const DIR: &str = "PURLIN_TEST_KILLED_DIR";

fn identity_in(dir: &Path, node: &str) -> TlsIdentity {
    TlsIdentity::from_pem_files(
        &dir.join("ca.pem"),
        &dir.join(format!("{node}.pem")),
        &dir.join(format!("{node}.key")),
    )
    .unwrap()
}

/// Not a test: the process that is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the test below"]
async fn child_node() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let mut config = config("n2", 1);
    config.tls = identity_in(&dir, "n2");
    let node = start(config).await;
    let rpc = Rpc::new(&node);
    rpc.serve(HANG, async |_, ()| std::future::pending().await).unwrap();
    println!("listens {}", node.local_addr());
    std::future::pending::<()>().await;
}

struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_process_is_down_as_refused_and_its_calls_are_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority("shop");
    authority.store(dir.path()).unwrap();
    for node in ["n1", "n2"] {
        let path = |ending: &str| dir.path().join(format!("{node}.{ending}"));
        issued(&authority, node).store(&path("pem"), &path("key")).unwrap();
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child_node", "--exact", "--ignored", "--nocapture"])
        .env(DIR, dir.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let mut victim = Victim(child);
    // The test harness may print on the same line, in front.
    let addr = stdout
        .lines()
        .find_map(|line| Some(line.unwrap().split_once("listens ")?.1.parse().unwrap()))
        .unwrap();

    let mut config = config("n1", 1);
    config.tls = identity_in(dir.path(), "n1");
    let one = start(config).await;
    let rpc = Rpc::new(&one);
    let mut events = one.events();
    let peer = one.add_peer(node("n2", 1), addr).unwrap();
    until("it is up", || peer.is_up()).await;
    let call = tokio::spawn({
        let (rpc, peer) = (rpc.clone(), peer.clone());
        async move { rpc.call(&peer, HANG, &(), 10 * PATIENCE).await }
    });
    until("the call is under way", || {
        one.stats().channels[1].connections == 1 && one.stats().channels[1].frames_sent == 1
    })
    .await;

    victim.0.kill().unwrap();
    let cause = event(&mut events, "it is down", |event| match event {
        PeerEvent::Down { cause, .. } => Some(cause),
        _ => None,
    })
    .await;
    // Told by the kernel, in milliseconds; whom nobody hears for long is `Silent`.
    assert_eq!(cause, Cause::Refused);
    let ended = within("the call's end", call).await.unwrap().unwrap_err();
    assert!(matches!(ended, CallError::Lost { .. }), "{ended}");
}
