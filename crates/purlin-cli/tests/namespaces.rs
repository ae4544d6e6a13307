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
#[path = "namespaces/writers.rs"]
mod writers;

use std::net::UdpSocket;
use std::sync::mpsc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cluster::Cluster;
use members::Sample;
use network::Network;
use writers::{Fate, Readable, Writer};

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

/// Under `exec.split = "keep-majority"`, which these nodes have.
#[test]
fn the_smaller_side_of_a_cut_stops_its_programs_and_the_larger_goes_on_with_them() {
    let Some((_alone, cluster)) = three_nodes() else {
        return;
    };
    const PATIENCE: Duration = Duration::from_secs(60);
    let script = "echo pid $$; sleep 1000";
    let run = ["run", "--singleton", "nightly", "--", "sh", "-c", script];
    wait_for("it runs", PATIENCE, &cluster, || cluster.ask(1, &run));
    // The host it is on, by its own number, and the number of its start.
    let place = |host: usize| {
        let json = cluster.ask(host, &["--output", "json", "ps", "nightly"])?;
        let page: serde_json::Value = serde_json::from_str(&json).ok()?;
        let it = page["programs"].get(0).filter(|it| it["state"] == "running")?;
        let on = it["node"].as_str()?.trim_start_matches('n').parse::<usize>().ok()?;
        Some((on, it["fence"].as_u64()?))
    };
    let pid = |host: usize| {
        let said = cluster.ask(host, &["logs", "nightly", "--tail", "1000"])?;
        said.lines().rev().find_map(|line| line.strip_prefix("pid ")?.parse::<i32>().ok())
    };
    let is_gone = |pid: i32| !std::path::Path::new(&format!("/proc/{pid}")).exists();
    let (small, fence) = wait_for("all know where", PATIENCE, &cluster, || {
        place(1).filter(|at| [2, 3].iter().all(|host| place(*host) == Some(*at)))
    });
    let first = wait_for("its number is known", PATIENCE, &cluster, || pid(small));
    let large: Vec<usize> = (1..=3).filter(|host| *host != small).collect();
    cluster.network.cut(&[small], &large);
    wait_for("the small side stops it", PATIENCE, &cluster, || is_gone(first).then_some(()));
    let (on, later) = wait_for("the large side runs it", PATIENCE, &cluster, || {
        place(large[0]).filter(|(on, later)| *on != small && *later > fence)
    });
    let second = wait_for("its number is known", PATIENCE, &cluster, || pid(on));
    assert!(!is_gone(second), "the small side has ended what runs on the large one");
    let dropped = cluster.network.heal();
    assert!(dropped > 0, "the cut dropped nothing, so it proved nothing");
    cluster.wait_until_all_alive(PATIENCE);
    // It may have been started once more, to have a greater number than any copy of the cut.
    wait_for("all know one, and only it runs", PATIENCE, &cluster, || {
        let at = place(1).filter(|(_, now)| *now >= later)?;
        let all_know = [2, 3].iter().all(|host| place(*host) == Some(at));
        let all = (1..=3)
            .filter_map(|host| cluster.ask(1, &["logs", "nightly", "--on", &members::name(host)]));
        let pids: Vec<i32> = all
            .flat_map(|said| said.lines().map(str::to_owned).collect::<Vec<_>>())
            .filter_map(|line| line.strip_prefix("pid ")?.parse().ok())
            .collect();
        let running = pids.iter().filter(|pid| !is_gone(**pid)).count();
        (all_know && running == 1).then_some(())
    });
}

/// Looks until there is something to see.
fn wait_for<T>(
    what: &str,
    within: Duration,
    cluster: &Cluster,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < within, "not within {within:?}: {what}\n{}", cluster.logs());
        std::thread::sleep(Duration::from_millis(100));
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

/// A minute of writing on three nodes of five while two are killed and restarted and a partition
/// comes and goes; a fourth writer's node is cut off, killed, and loses its disk.
#[test]
fn what_was_acknowledged_survives_kills_and_a_partition() {
    let Some((_alone, mut cluster)) = nodes(5) else {
        return;
    };
    let started = Instant::now();
    let until = |second: u64| {
        let left = Duration::from_secs(second).saturating_sub(started.elapsed());
        std::thread::sleep(left);
    };
    let hosts = [1, 2, 3, 5];
    let mut writers = hosts
        .map(|host| Writer::start(&cluster.network, host, cluster::api()))
        .into_iter()
        .collect::<Vec<_>>();
    let doomed = writers.pop().expect("four were started");

    until(8);
    cluster.kill(2);
    until(14);
    cluster.restart(2);
    until(20);
    cluster.network.cut(&[1, 4], &[2, 3, 5]);
    until(32);
    let mut dropped = cluster.network.heal();
    until(36);
    cluster.kill(4);
    until(42);
    cluster.restart(4);
    until(47);
    // Some time before the cut: an acknowledgement may overtake the news of its write.
    doomed.expects(Fate::Doomed);
    until(48);
    cluster.network.cut(&[5], &[1, 2, 3, 4]);
    until(50);
    let mut records = vec![doomed.stop()];
    cluster.kill(5);
    cluster.lose_disk(5);
    dropped += cluster.network.heal();
    cluster.restart(5);
    until(60);
    records.extend(writers.into_iter().map(Writer::stop));

    assert!(dropped > 0, "the cuts dropped nothing, so they proved nothing");
    let (readable, after) = all_alike(&cluster, hosts, Duration::from_secs(60));
    match writers::check(&records, &readable) {
        Ok(verdict) => println!(
            "{} writes acknowledged, {} of unknown outcome, {} refused; all five nodes alike \
             {after:?} after the last write: {}; lost with the disk of n5, of which nobody else knew: \
             {} writes: {}",
            verdict.acknowledged,
            verdict.unknown,
            verdict.refused,
            readable.size(),
            verdict.lost_with_the_disk.len(),
            verdict.lost_with_the_disk.join(", ")
        ),
        Err(violation) => panic!("{violation}\n{}", cluster.logs()),
    }
}

/// Waits until all five nodes read alike, and tells what and after how long.
fn all_alike(cluster: &Cluster, writers: [usize; 4], within: Duration) -> (Readable, Duration) {
    let started = Instant::now();
    loop {
        let reads = (1..=5)
            .map(|host| {
                let read = move || Readable::at(cluster::api(), &writers);
                cluster.network.on_host(host, read).join().expect("the thread only reads")
            })
            .collect::<Vec<_>>();
        if let [Some(first), others @ ..] = &*reads
            && others.iter().all(|other| other.as_ref() == Some(first))
        {
            return (first.clone(), started.elapsed());
        }
        if started.elapsed() > within {
            let sizes = reads
                .iter()
                .map(|read| read.as_ref().map_or_else(|| "no answer".to_owned(), Readable::size));
            panic!(
                "the nodes differ after {within:?}: {:?}\n{}",
                sizes.collect::<Vec<_>>(),
                cluster.logs()
            );
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn three_nodes() -> Option<(MutexGuard<'static, ()>, Cluster)> {
    nodes(3)
}

/// Nodes that see each other, alone on this machine as far as this file goes: the promises are in
/// seconds, and three clusters at once on two cores would measure the scheduler.
fn nodes(count: usize) -> Option<(MutexGuard<'static, ()>, Cluster)> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let network = Network::of(count)?;
    Some((alone, Cluster::start(network, count)))
}

/// Nobody was unheard for so long that a verdict could have come and gone.
fn assert_steady(history: &members::History) {
    let gap = history.longest_gap();
    assert!(gap < Duration::from_secs(3), "a node was not heard for {gap:?}");
}
