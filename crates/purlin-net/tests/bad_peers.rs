//! Bad input from the network: each kind is refused with a reason, counted, and the node stays up.
#![expect(clippy::unwrap_used, reason = "a test that unwraps fails, as it should")]

mod world;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
};

use purlin_core::ClusterName;
use purlin_net::{
    Cause, PeerEvent, RefusalCode, SendError, ServiceId, Transport,
    frame::{self, FLAG_FIRST, Kind},
    handshake::{Answer, Confirm},
};
use world::*;

/// The node still does its work for good peers.
async fn still_up(transport: &Transport) {
    let collector = Collector::on(transport);
    let friend = crate::transport("friend").await;
    let peer = friend.add_peer(transport.node().clone(), transport.local_addr()).unwrap();
    until("a good peer gets through", || {
        // Again and again: a dial on a busy machine may fail, and what waited for it is lost.
        let ask = |payload: &mut purlin_net::PayloadBuf<'_>| payload.put(b"still up?");
        let (key, urgency) = (purlin_net::PartitionKey::ZERO, purlin_net::Urgency::Batch);
        drop(peer.send(purlin_net::ChannelId::STREAM, SERVICE, key, urgency, ask));
        collector.count() > 0
    })
    .await;
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    within("the raw peer", tokio::task::spawn_blocking(work)).await.unwrap()
}

fn raw_tcp(addr: SocketAddr, bytes: &[u8]) {
    let mut socket = TcpStream::connect(addr).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // The node may have hung up already.
    drop(socket.write_all(bytes));
    drop(socket.shutdown(std::net::Shutdown::Write));
    drop(socket.read_to_end(&mut Vec::new()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_bytes() {
    let node = transport("n2").await;
    let addr = node.local_addr();
    blocking(move || raw_tcp(addr, b"GET / HTTP/1.1\r\nHost: purlin\r\n\r\n")).await;
    until("it is counted", || node.stats().tls_failed == 1).await;
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_says_nothing_and_closes() {
    let node = transport("n2").await;
    let addr = node.local_addr();
    blocking(move || raw_tcp(addr, b"")).await;
    until("it is counted", || node.stats().handshakes_cut == 1).await;
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_says_nothing_and_stays() {
    let mut config = config("n2", 1);
    config.reconnect.connect_within = std::time::Duration::from_millis(200);
    let node = start(config).await;
    let _socket = TcpStream::connect(node.local_addr()).unwrap();
    until("it is counted", || node.stats().handshakes_slow == 1).await;
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_after_tls() {
    let node = transport("n2").await;
    let addr = node.local_addr();
    let answer = blocking(move || {
        let mut raw = RawPeer::connect(addr, "n1", "n2");
        raw.write(b"not a handshake at all").unwrap();
        raw.read_handshake()
    })
    .await;
    let Ok(Answer::Refused(refusal)) = Answer::decode(&answer) else { panic!("{answer:?}") };
    assert_eq!(refusal.code, RefusalCode::Malformed);
    assert_eq!(node.stats().refused(RefusalCode::Malformed), 1);
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_protocol_version() {
    let node = transport("n2").await;
    let addr = node.local_addr();
    let answer = blocking(move || {
        let mut raw = RawPeer::connect(addr, "n1", "n2");
        let mut hello = hello(world::node("n1", 1));
        hello.versions = (900, 901);
        raw.write(&hello.encode()).unwrap();
        raw.read_handshake()
    })
    .await;
    let Ok(Answer::Refused(refusal)) = Answer::decode(&answer) else { panic!("{answer:?}") };
    assert_eq!(refusal.code, RefusalCode::Version);
    assert_eq!(refusal.detail, "protocol versions 900 to 901; this node speaks 1 to 1");
    assert_eq!(node.stats().refused(RefusalCode::Version), 1);
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn neighbouring_versions_interoperate() {
    let mut newer = config("n2", 1);
    newer.versions = (1, 2);
    let (_old, newer, peer) = pair_of(config("n1", 1), newer).await;
    let collector = Collector::on(&newer);
    send(&peer, b"across releases");
    until("it arrives", || collector.count() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_refused_and_both_sides_report_it() {
    let mut stranger = config("n1", 1);
    stranger.cluster = ClusterName::parse("bank").unwrap();
    let (stranger, node) = (start(stranger).await, transport("n2").await);
    let (mut there, mut here) = (stranger.events(), node.events());
    stranger.add_peer(node.node().clone(), node.local_addr()).unwrap();
    let refusal = |by_us| {
        move |event| match event {
            PeerEvent::HandshakeRefused { by_us: by, reason, .. } if by == by_us => Some(reason),
            _ => None,
        }
    };
    let reason = event(&mut here, "the refusal here", refusal(true)).await;
    assert_eq!(reason.code, RefusalCode::Cluster);
    assert_eq!(reason.detail, "cluster is `bank` there and `shop` here");
    assert_eq!(event(&mut there, "the refusal there", refusal(false)).await, reason);
    assert!(node.stats().refused(RefusalCode::Cluster) >= 1);
    assert!(stranger.stats().refused(RefusalCode::Cluster) >= 1);
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_of_another_authority() {
    let mut stranger = config("n1", 1);
    stranger.tls = identity_of(&authority("shop"), "n1");
    let (stranger, node) = (start(stranger).await, transport("n2").await);
    let mut there = stranger.events();
    stranger.add_peer(node.node().clone(), node.local_addr()).unwrap();
    let cause = event(&mut there, "the peer is down", |event| match event {
        PeerEvent::Down { cause, .. } => Some(cause),
        _ => None,
    })
    .await;
    assert!(matches!(cause, Cause::Tls(_)), "{cause}");
    until("both count it", || node.stats().tls_failed > 0 && stranger.stats().tls_failed > 0).await;
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_certificate_of_another_authority_is_refused_by_the_acceptor() {
    let node = transport("n2").await;
    let addr = node.local_addr();
    let root = {
        // The client trusts our authority, but its own certificate is from another.
        let other = authority("shop");
        let issued = issued(&other, "n1");
        move || RawPeer::connect_as(addr, &issued, &authority_pem(), "n2")
    };
    let heard = blocking(move || {
        let mut raw = root();
        drop(raw.write(&hello(world::node("n1", 1)).encode()));
        raw.read_to_end()
    })
    .await;
    assert!(heard.is_empty(), "{heard:?}");
    until("it is counted", || node.stats().tls_failed == 1).await;
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_for_another_node() {
    let node = transport("n2").await;
    let addr = node.local_addr();
    let answer = blocking(move || {
        let mut raw = RawPeer::connect(addr, "mallory", "n2");
        raw.write(&hello(world::node("n1", 1)).encode()).unwrap();
        raw.read_handshake()
    })
    .await;
    let Ok(Answer::Refused(refusal)) = Answer::decode(&answer) else { panic!("{answer:?}") };
    assert_eq!(refusal.code, RefusalCode::Certificate);
    assert_eq!(refusal.detail, "certificate is not for node `n1`");
    assert_eq!(node.stats().refused(RefusalCode::Certificate), 1);
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_differ_only_in_case_are_different_nodes() {
    let node = transport("n2").await;
    let addr = node.local_addr();
    let answer = blocking(move || {
        let mut raw = RawPeer::connect(addr, "N1", "n2");
        raw.write(&hello(world::node("n1", 1)).encode()).unwrap();
        raw.read_handshake()
    })
    .await;
    assert!(matches!(Answer::decode(&answer), Ok(Answer::Refused(_))), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dialler_that_finds_somebody_else_says_so() {
    let (one, two) = (transport("n1").await, transport("n2").await);
    let (mut here, mut there) = (one.events(), two.events());
    one.add_peer(node("n3", 1), two.local_addr()).unwrap();
    let refused = |event| match event {
        PeerEvent::HandshakeRefused { reason, .. } => Some(reason.code),
        _ => None,
    };
    assert_eq!(event(&mut here, "here", refused).await, RefusalCode::WrongNode);
    assert_eq!(event(&mut there, "there", refused).await, RefusalCode::WrongNode);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_incarnation_is_refused_once_a_later_is_known() {
    let node = transport("n2").await;
    node.add_peer(world::node("n1", 5), "127.0.0.1:1".parse().unwrap()).unwrap();
    let addr = node.local_addr();
    let answer = blocking(move || {
        let mut raw = RawPeer::connect(addr, "n1", "n2");
        raw.write(&hello(world::node("n1", 4)).encode()).unwrap();
        raw.read_handshake()
    })
    .await;
    let Ok(Answer::Refused(refusal)) = Answer::decode(&answer) else { panic!("{answer:?}") };
    assert_eq!(refusal.code, RefusalCode::Superseded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_channel() {
    let node = transport("n2").await;
    let mut strange = config("n1", 1);
    let name = purlin_net::ChannelName::parse("nowhere").unwrap();
    strange.channels.push(purlin_net::ChannelSpec::named(name));
    let strange = start(strange).await;
    let mut events = strange.events();
    let peer = strange.add_peer(node.node().clone(), node.local_addr()).unwrap();
    let lane = purlin_net::ChannelId(4);
    let sent =
        peer.send(lane, SERVICE, purlin_net::PartitionKey::ZERO, purlin_net::Urgency::Now, |p| {
            p.put(b"x");
        });
    let told = event(&mut events, "the channel is refused", |event| match event {
        PeerEvent::ChannelDown { channel, cause, .. } if channel == lane => Some(cause),
        _ => None,
    })
    .await;
    // The refusal may have come before the message: then that was told the same.
    let early = sent.err().map(|error| match error {
        SendError::NotConnected { cause, .. } => cause,
        other => panic!("{other}"),
    });
    for cause in early.into_iter().chain([told]) {
        let Cause::Handshake(refusal) = cause else { panic!("{cause}") };
        assert_eq!(refusal.code, RefusalCode::Channel);
        assert_eq!(refusal.detail, "channel `nowhere` is not configured here");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_membership_does_not_admit() {
    let (one, two) = (transport("n1").await, transport("n2").await);
    two.set_admission(std::sync::Arc::new(|node| Err(format!("{node} has left"))));
    let mut events = one.events();
    one.add_peer(two.node().clone(), two.local_addr()).unwrap();
    let reason = event(&mut events, "the refusal", |event| match event {
        PeerEvent::HandshakeRefused { reason, .. } => Some(reason),
        _ => None,
    })
    .await;
    assert_eq!(reason.code, RefusalCode::NotAdmitted);
    assert_eq!(reason.detail, "n1@1 has left");
}

/// Shakes hands properly on the stream channel, then sends `bytes` and reads to the end.
async fn after_handshake(node: &Transport, bytes: Vec<u8>) -> Vec<u8> {
    let addr = node.local_addr();
    let name = node.node().name.to_string();
    blocking(move || {
        let mut raw = RawPeer::connect(addr, "n1", &name);
        raw.write(&hello(world::node("n1", 1)).encode()).unwrap();
        let answer = raw.read_handshake();
        assert!(matches!(Answer::decode(&answer), Ok(Answer::Welcome(_))), "{answer:?}");
        raw.write(&Confirm::Go.encode((1, 1))).unwrap();
        drop(raw.write(&bytes));
        raw.read_to_end()
    })
    .await
}

/// The last frame before the end is a goodbye with `reason`.
fn assert_goodbye(heard: &[u8], reason: frame::Farewell) {
    let mut tail = Vec::new();
    frame::append(&mut tail, Kind::Goodbye, ServiceId(0), 0, &[reason as u8]);
    assert!(heard.ends_with(&tail), "{heard:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_that_claims_four_gibibytes() {
    let node = transport("n2").await;
    let heard = after_handshake(&node, vec![0xff, 0xff, 0xff, 0xff, 1, 20, 0, 0]).await;
    assert_goodbye(&heard, frame::Farewell::Malformed);
    assert_eq!(node.stats().frames_malformed, 1);
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_of_an_unknown_kind() {
    let node = transport("n2").await;
    let heard = after_handshake(&node, vec![0, 0, 0, 0, 99, 0, 0, 0]).await;
    assert_goodbye(&heard, frame::Farewell::Malformed);
    assert_eq!(node.stats().frames_malformed, 1);
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_a_frame_and_then_nothing() {
    let node = transport("n2").await;
    let addr = node.local_addr();
    let mut events = node.events();
    blocking(move || {
        let mut raw = RawPeer::connect(addr, "n1", "n2");
        raw.write(&hello(world::node("n1", 1)).encode()).unwrap();
        raw.read_handshake();
        raw.write(&Confirm::Go.encode((1, 1))).unwrap();
        raw.write(&[100, 0, 0, 0, 1, 20, 0, 0, b'h', b'a', b'l', b'f']).unwrap();
    })
    .await;
    event(&mut events, "the connection ends", |event| match event {
        PeerEvent::ChannelDown { cause: Cause::Reset, .. } => Some(()),
        _ => None,
    })
    .await;
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fragment_that_announces_four_gibibytes() {
    let node = transport("n2").await;
    let mut bytes = Vec::new();
    frame::append(&mut bytes, Kind::Fragment, SERVICE, FLAG_FIRST, &u32::MAX.to_le_bytes());
    let heard = after_handshake(&node, bytes).await;
    assert_goodbye(&heard, frame::Farewell::Violation);
    assert_eq!(node.stats().violations, 1);
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_ignores_its_credit() {
    let mut config = config("n2", 1);
    config.channels[2].credit_bytes = 1024;
    config.channels[2].payload_bytes_max = 64 << 10;
    let node = start(config).await;
    let collector = Collector::on(&node);
    collector.hold.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut bytes = Vec::new();
    for _ in 0..10 {
        frame::append(&mut bytes, Kind::Data, SERVICE, 0, &[7; 60 << 10]);
    }
    let heard = after_handshake(&node, bytes).await;
    assert_goodbye(&heard, frame::Farewell::Violation);
    assert_eq!(node.stats().violations, 1);
    assert!(collector.count() < 3, "{}", collector.count());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credit_that_was_never_used() {
    let node = transport("n2").await;
    let mut bytes = Vec::new();
    frame::append(&mut bytes, Kind::Credit, ServiceId(0), 0, &u64::MAX.to_le_bytes());
    let heard = after_handshake(&node, bytes).await;
    assert_goodbye(&heard, frame::Farewell::Violation);
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_in_use() {
    let node = transport("n2").await;
    let mut second = config("n3", 1);
    second.bind = node.local_addr();
    let clock = std::sync::Arc::new(purlin_core::SystemClock::new());
    let refused = Transport::bind(second, clock, purlin_core::Rng::from_os()).await.unwrap_err();
    assert_eq!(refused.to_string(), format!("{} is in use by another process", node.local_addr()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn settings_that_make_no_sense_are_named() {
    let bind = |config| async {
        let clock = std::sync::Arc::new(purlin_core::SystemClock::new());
        let bound = Transport::bind(config, clock, purlin_core::Rng::from_os()).await;
        bound.unwrap_err().to_string()
    };
    let mut bad = config("n1", 1);
    bad.channels[1].parallelism = 0;
    assert_eq!(bind(bad).await, "setting `channels.rpc.parallelism`: 0 is not 1 to 16");
    let mut bad = config("n1", 1);
    bad.keep_alive.silent_after = std::time::Duration::from_secs(1);
    assert!(bind(bad).await.starts_with("setting `keep_alive.silent_after`: 1s is less"));
    let mut bad = config("n1", 1);
    bad.tls = identity("n2");
    assert_eq!(bind(bad).await, "certificate is for [\"n2\"], this node is `n1`");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_says_goodbye_to_tls_and_talks_on() {
    let node = transport("n2").await;
    let addr = node.local_addr();
    blocking(move || {
        let mut raw = RawPeer::connect(addr, "n1", "n2");
        let mut hello = hello(world::node("n1", 1));
        hello.cluster = ClusterName::parse("bank").unwrap();
        raw.write(&hello.encode()).unwrap();
        raw.close_notify_and_write(b"more");
        raw.read_to_end();
    })
    .await;
    until("it is refused", || node.stats().refused(RefusalCode::Cluster) == 1).await;
    still_up(&node).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_pings_without_reading() {
    let node = transport("n2").await;
    let mut bytes = Vec::new();
    for number in 0..100_000_u64 {
        frame::append(&mut bytes, Kind::Ping, ServiceId(0), 0, &number.to_le_bytes());
    }
    frame::append(&mut bytes, Kind::Goodbye, ServiceId(0), 0, &[1]);
    after_handshake(&node, bytes).await;
    still_up(&node).await;
}
