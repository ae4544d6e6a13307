//! Partitions in a real kernel: nodes in network namespaces, packets dropped by nftables.
//!
//! Needs root. Elsewhere each test says on standard output that it was skipped and why;
//! `cargo xtask test` repeats that in its summary.
#![cfg(target_os = "linux")]
#![expect(
    clippy::print_stdout,
    reason = "a skipped test says so, a timed one says how long it took"
)]

#[path = "namespaces/cluster.rs"]
mod cluster;
#[path = "namespaces/members.rs"]
mod members;
#[path = "namespaces/network.rs"]
mod network;

use std::net::UdpSocket;
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cluster::Cluster;
use members::Sample;
use network::Network;

#[test]
fn one_way_loss_between_two_members_takes_nobody_down() {
    let Some((_alone, cluster)) = three_nodes() else {
        return;
    };
    let cut = Instant::now();
    cluster.network.cut_one_way(1, 2);
    let history = cluster.observe(Duration::from_secs(30));
    let dropped = cluster.network.heal();

    assert!(dropped > 0, "the cut dropped nothing, so it proved nothing");
    assert_eq!(
        history.false_verdicts(3),
        Vec::<String>::new(),
        "what the nodes said:\n{}\n{}",
        history.told(cut),
        cluster.logs()
    );
    assert_steady(&history);
    cluster.wait_until_all_alive(Duration::from_secs(5));
}

#[test]
fn a_cut_shows_on_both_sides_within_3_s_and_heals_by_itself_within_5_s() {
    let Some((_alone, cluster)) = three_nodes() else {
        return;
    };
    let before = cluster.lives();
    cluster.network.cut(&[1, 2], &[3]);
    let shown = cluster.wait_until(
        "n1 and n2 call n3 down, n3 calls both down",
        Duration::from_secs(3),
        |latest| latest.iter().all(sees_the_cut),
    );
    // Long enough for every back-off to have grown; nobody may waver or lose its own side.
    let meanwhile = cluster.observe(Duration::from_secs(10));
    for sample in &meanwhile.samples {
        assert!(sees_the_cut(sample), "{sample:?}");
        assert!(!(sample.host == 1 && sample.calls_down(2)), "{sample:?}");
        assert!(!(sample.host == 2 && sample.calls_down(1)), "{sample:?}");
    }
    let dropped = cluster.network.heal();
    let healed = cluster.wait_until_all_alive(Duration::from_secs(5));

    assert!(dropped > 0, "the cut dropped nothing, so it proved nothing");
    assert_eq!(cluster.lives(), before, "a cut must not cost anybody its identity");
    println!("cut shown after {shown:?}, healed after {healed:?}");
}

/// Whether this node calls down whom the cut {n1, n2} | {n3} took from it.
fn sees_the_cut(sample: &Sample) -> bool {
    match sample.host {
        3 => sample.calls_down(1) && sample.calls_down(2),
        _ => sample.calls_down(3),
    }
}

#[test]
fn a_quarter_of_all_datagrams_lost_kills_nobody() {
    let Some((_alone, cluster)) = three_nodes() else {
        return;
    };
    let cut = Instant::now();
    for host in 1..=3 {
        cluster.network.lose_datagrams(host, 25);
    }
    let history = cluster.observe(Duration::from_secs(20));
    let dropped = cluster.network.heal();

    assert!(dropped > 0, "no datagram was lost, so nothing was proved");
    assert_eq!(
        history.false_verdicts(3),
        Vec::<String>::new(),
        "what the nodes said:\n{}\n{}",
        history.told(cut),
        cluster.logs()
    );
    assert_steady(&history);
    cluster.wait_until_all_alive(Duration::from_secs(5));
}

#[test]
fn a_cut_in_one_direction_leaves_the_other_open() {
    let Some(network) = Network::of(2) else {
        return;
    };
    assert!(passes(&network, 1, 2) && passes(&network, 2, 1));
    network.cut_one_way(1, 2);
    assert!(!passes(&network, 1, 2), "the cut lets datagrams through");
    assert!(passes(&network, 2, 1), "the cut stops the way back as well");
    assert!(network.heal() > 0, "the drops were not counted");
    assert!(passes(&network, 1, 2), "healing did not end the cut");
}

/// Whether one of several datagrams from one host reaches the other.
fn passes(network: &Network, from: usize, to: usize) -> bool {
    const ATTEMPTS: usize = 5;
    let target = format!("{}:9999", network.address(to));
    let (ready, is_ready) = mpsc::channel();
    let bind = target.clone();
    let receiver = network.on_host(to, move || {
        let socket = UdpSocket::bind(bind).expect("a free port in a fresh namespace");
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .expect("a timeout that is not zero");
        ready.send(()).expect("the test waits");
        socket.recv(&mut [0; 8]).is_ok()
    });
    is_ready.recv().expect("the receiver binds");
    let sender = network.on_host(from, move || {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
        for _ in 0..ATTEMPTS {
            socket.send_to(b"hello", &target).expect("dropped only on arrival");
        }
    });
    sender.join().expect("the sender sends");
    receiver.join().expect("the receiver waits")
}

/// Three nodes that see each other, alone on this machine as far as this file goes: the promises
/// are in seconds, and three clusters at once on two cores would measure the scheduler.
fn three_nodes() -> Option<(MutexGuard<'static, ()>, Cluster)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let network = Network::of(3)?;
    Some((alone, Cluster::start(network, 3)))
}

/// Nobody was unheard for so long that a verdict could have come and gone.
fn assert_steady(history: &members::History) {
    let gap = history.longest_gap();
    assert!(gap < Duration::from_secs(3), "a node was not heard for {gap:?}");
}
