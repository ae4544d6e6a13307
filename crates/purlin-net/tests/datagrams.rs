//! Datagrams between two real transports, and what others make of them.
#![expect(clippy::unwrap_used, reason = "a test that unwraps fails, as it should")]

mod world;

use purlin_core::ClusterName;
use purlin_net::{
    DATAGRAM_PAYLOAD_BYTES_MAX, DatagramError, Direction, Effect, FaultRule, GossipKeys, Lane,
    Transport,
    datagram::seal::{GossipKey, Sealer},
};
use tokio::net::UdpSocket;
use world::*;

async fn two() -> (Transport, Transport) {
    (transport("n1").await, transport("n2").await)
}

async fn recv(transport: &Transport) -> Vec<u8> {
    within("a datagram", transport.datagrams().recv()).await.2.to_vec()
}

/// Pulls datagrams so that bad ones are judged; none may come out.
fn judge(transport: &Transport) -> tokio::task::JoinHandle<()> {
    let datagrams = transport.datagrams().clone();
    tokio::spawn(async move {
        let (from, _, payload) = datagrams.recv().await;
        panic!("{payload:?} of {from} came out");
    })
}

async fn raw() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.unwrap()
}

fn sealer(key: u8, cluster: &str) -> Sealer {
    let cluster = ClusterName::parse(cluster).unwrap();
    Sealer::new(&GossipKey::new([key; 32]), &cluster, node("n1", 1), [3; 8])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_datagram_arrives_with_its_sender() {
    let (one, two) = two().await;
    one.datagrams().send(two.node(), two.local_addr(), b"ping").unwrap();
    let (from, addr, payload) = within("it", two.datagrams().recv()).await;
    assert_eq!((&from, addr, &payload[..]), (one.node(), one.local_addr(), &b"ping"[..]));
    two.datagrams().send(&from, addr, b"ack").unwrap();
    assert_eq!(recv(&one).await, b"ack");
    assert_eq!(one.stats().datagrams_sent, 1);
    assert_eq!(two.stats().datagrams_received, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_size_is_bounded() {
    let (one, two) = two().await;
    let largest = vec![7; DATAGRAM_PAYLOAD_BYTES_MAX];
    one.datagrams().send(two.node(), two.local_addr(), &largest).unwrap();
    assert_eq!(recv(&two).await, largest);
    let refused = one
        .datagrams()
        .send(two.node(), two.local_addr(), &vec![7; DATAGRAM_PAYLOAD_BYTES_MAX + 1])
        .unwrap_err();
    let max = DATAGRAM_PAYLOAD_BYTES_MAX;
    assert_eq!(refused, DatagramError::TooLarge { bytes: max + 1, max });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replayed_datagram_is_dropped_and_counted() {
    let (_one, two) = two().await;
    let socket = raw().await;
    let packet = sealer(0x5a, "shop").seal(two.node(), 7, b"once");
    socket.send_to(&packet, two.local_addr()).await.unwrap();
    assert_eq!(recv(&two).await, b"once");
    let judging = judge(&two);
    socket.send_to(&packet, two.local_addr()).await.unwrap();
    until("it is counted", || two.stats().datagrams_replayed == 1).await;
    assert!(!judging.is_finished());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_datagram_is_counted_for_what_it_is() {
    let (_one, two) = two().await;
    let (socket, addr) = (raw().await, two.local_addr());
    let judging = judge(&two);
    let good = sealer(0x5a, "shop").seal(two.node(), 1, b"x");
    let mut damaged = good.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let packets = [
        b"garbage".to_vec(),
        vec![],
        vec![1; 1300],
        sealer(0x11, "shop").seal(two.node(), 1, b"x"),
        sealer(0x5a, "bank").seal(two.node(), 1, b"x"),
        sealer(0x5a, "shop").seal(&node("n3", 1), 1, b"x"),
        sealer(0x5a, "shop").seal(&node("n2", 9), 1, b"x"),
        damaged,
    ];
    for packet in packets {
        socket.send_to(&packet, addr).await.unwrap();
    }
    until("all are counted", || {
        let stats = two.stats();
        (stats.datagrams_malformed, stats.datagrams_unknown_key, stats.datagrams_forged)
            == (3, 1, 4)
    })
    .await;
    assert!(!judging.is_finished());
    assert_eq!(two.stats().datagrams_received, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_rotated_without_a_gap() {
    let (old, new) = ("5a".repeat(32), "6b".repeat(32));
    let with = |text: &str, keys: String| {
        let mut config = config(text, 1);
        config.gossip_keys = GossipKeys::parse(&keys).unwrap();
        config
    };
    // One seals with the old key, the other already with the new one; both know both.
    let one = start(with("n1", format!("{old}\n{new}"))).await;
    let two = start(with("n2", format!("{new}\n{old}"))).await;
    one.datagrams().send(two.node(), two.local_addr(), b"old").unwrap();
    assert_eq!(recv(&two).await, b"old");
    two.datagrams().send(one.node(), one.local_addr(), b"new").unwrap();
    assert_eq!(recv(&one).await, b"new");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_apply_to_datagrams() {
    let (one, two) = two().await;
    let rule =
        |direction, effect| FaultRule { peer: None, lane: Lane::Datagrams, direction, effect };
    let lost = Effect::Drop { probability: 1.0 };
    let send = |text: &[u8]| one.datagrams().send(two.node(), two.local_addr(), text).unwrap();

    let outgoing = one.faults().add(rule(Direction::Outgoing, lost)).unwrap();
    send(b"lost here");
    assert!(one.faults().remove(outgoing));
    let doubled = Effect::Duplicate { probability: 1.0 };
    let doubling = one.faults().add(rule(Direction::Outgoing, doubled)).unwrap();
    send(b"twice");
    assert!(one.faults().remove(doubling));
    assert_eq!(recv(&two).await, b"twice");

    let incoming = two.faults().add(rule(Direction::Incoming, lost)).unwrap();
    send(b"lost there");
    let judging = judge(&two);
    // The copy of the doubled one is a replay: the network may double, the receiver does not.
    until("both are judged", || {
        two.stats().datagrams_replayed == 1 && two.stats().faults_lost == 1
    })
    .await;
    judging.abort();
    assert!(two.faults().remove(incoming));
    assert_eq!(one.stats().faults_lost, 1);
}
