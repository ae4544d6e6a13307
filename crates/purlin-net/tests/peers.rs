//! How peers come, go and come back.

mod world;

use std::{sync::Arc, time::Duration};

use purlin_core::Deadline;
use purlin_net::{
    Cause, ChannelId, Direction, Effect, FaultRule, Lane, PartitionKey, PeerEvent, SendError,
    Transport, TransportConfig, Urgency,
};
use world::*;

fn eager(text: &str, incarnation: u64) -> TransportConfig {
    let mut config = config(text, incarnation);
    config.keep_alive.interval = Duration::from_millis(50);
    // Not so eager that somebody who waits for a core is taken for silent.
    config.keep_alive.silent_after = Duration::from_secs(30);
    config.reconnect.max = Duration::from_millis(200);
    config.reconnect.connect_within = Duration::from_millis(500);
    config
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_contact_tells_who_listens_and_makes_nobody_a_peer() {
    let (one, two) = (transport("n1").await, transport("n2").await);
    let deadline = Deadline::after(one.clock().now(), PATIENCE);
    let contact = one.contact(two.local_addr(), deadline).await.unwrap();
    assert_eq!(contact.node, *two.node());
    assert_eq!(contact.advertise, two.local_addr());
    assert!(one.peers().is_empty());
    assert!(two.peers().is_empty());
    let addr = two.local_addr();
    drop(two);
    within("a refusal", async {
        loop {
            match one.contact(addr, deadline).await {
                Err(refused) if refused.cause == Cause::Refused => return,
                // The listener is about to close.
                Ok(_) | Err(_) => tokio::task::yield_now().await,
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn simultaneous_dials_become_one_connection_and_lose_nothing() {
    for round in 0..10 {
        let (one, two) = (transport("n1").await, transport("n2").await);
        let (at_one, at_two) = (Collector::on(&one), Collector::on(&two));
        let to_two = one.add_peer(two.node().clone(), two.local_addr()).unwrap();
        let to_one = two.add_peer(one.node().clone(), one.local_addr()).unwrap();
        // Both sides open every channel at once and send at once.
        for number in 0..50_u8 {
            send(&to_two, &[number]);
            send(&to_one, &[number]);
        }
        let expected: Vec<_> = (0..50_u8).map(|number| vec![number]).collect();
        until("all arrive", || at_one.count() == 50 && at_two.count() == 50).await;
        assert_eq!(*at_one.messages.lock(), expected, "round {round}");
        assert_eq!(*at_two.messages.lock(), expected, "round {round}");
        until("both are up", || to_one.is_up() && to_two.is_up()).await;
        assert_eq!(one.stats().channels[2].connections, 1, "round {round}");
        assert_eq!(two.stats().channels[2].connections, 1, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_holed_dial_does_not_keep_the_other_from_connecting() {
    for (blocked, open) in [("n1", "n2"), ("n2", "n1")] {
        let (blocked, open) = (transport(blocked).await, transport(open).await);
        // Packets of this side's dials go nowhere: an address that never answers.
        let nowhere = "192.0.2.1:9".parse().unwrap();
        let to_open = blocked.add_peer(open.node().clone(), nowhere).unwrap();
        let to_blocked = open.add_peer(blocked.node().clone(), blocked.local_addr()).unwrap();
        until("both are up", || to_open.is_up() && to_blocked.is_up()).await;
        let collector = Collector::on(&blocked);
        send(&to_blocked, b"through");
        until("it arrives", || collector.count() == 1).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_node_is_down_at_once_and_up_again_under_its_next_life() {
    let (one, two, peer) = pair_of(eager("n1", 1), eager("n2", 1)).await;
    let mut events = one.events();
    let addr = two.local_addr();
    two.close();
    drop(two);
    let (down, cause) = event(&mut events, "the peer is down", |event| match event {
        PeerEvent::Down { peer, cause } => Some((peer, cause)),
        _ => None,
    })
    .await;
    assert_eq!(down, *peer.node());
    assert!(matches!(cause, Cause::Closed | Cause::Refused), "{cause}");
    assert!(!peer.is_up());

    let mut next = eager("n2", 2);
    next.bind = addr;
    let two = start(next).await;
    one.add_peer(two.node().clone(), addr).unwrap();
    let up = event(&mut events, "the next life is up", |event| match event {
        PeerEvent::Up { peer } => Some(peer.node().clone()),
        _ => None,
    })
    .await;
    assert_eq!(up, node("n2", 2));
    assert!(one.peer(peer.node()).is_none(), "the earlier life is no peer any more");
    assert!(matches!(
        peer.send(ChannelId::RPC, SERVICE, PartitionKey::ZERO, Urgency::Now, |p| p.put(b"x")),
        Err(SendError::NotAPeer(_))
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_added_peer_is_found_again_when_it_comes_back() {
    let (one, two, peer) = pair_of(eager("n1", 1), eager("n2", 1)).await;
    let addr = two.local_addr();
    two.close();
    drop(two);
    until("it is down", || !peer.is_up()).await;
    // The same life again, as after a partition: nobody has to tell `one`.
    let mut again = eager("n2", 1);
    again.bind = addr;
    let two = start(again).await;
    until("it is up again", || peer.is_up()).await;
    let collector = Collector::on(&two);
    until("sending works again", || {
        peer.send(ChannelId::STREAM, SERVICE, PartitionKey::ZERO, Urgency::Now, |p| p.put(b"x"))
            .is_ok()
    })
    .await;
    until("it arrives", || collector.count() > 0).await;
    drop(one);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_peer_is_not_dialled_again() {
    let (one, two, peer) = pair_of(eager("n1", 1), eager("n2", 1)).await;
    let mut events = two.events();
    one.remove_peer(peer.node());
    let cause = event(&mut events, "the goodbye", |event| match event {
        PeerEvent::Down { cause, .. } => Some(cause),
        _ => None,
    })
    .await;
    assert_eq!(cause, Cause::Closed);
    assert!(one.peers().is_empty());
    // It was never added there, so it is forgotten there too.
    until("both forgot", || two.peers().is_empty()).await;
    let dials = one.stats().dials;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(one.stats().dials, dials);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_peer_is_noticed_and_a_healed_cut_reconnects() {
    let suspicious = |text| {
        let mut config = eager(text, 1);
        config.keep_alive.silent_after = Duration::from_millis(500);
        config
    };
    let (one, two, peer) = pair_of(suspicious("n1"), suspicious("n2")).await;
    let mut events = one.events();
    let cut = one.faults().add(FaultRule::cut(name("n2"))).unwrap();
    let cause = event(&mut events, "the peer is down", |event| match event {
        PeerEvent::Down { cause, .. } => Some(cause),
        _ => None,
    })
    .await;
    // Whichever side notices first.
    assert!(matches!(cause, Cause::Silent | Cause::Unreachable), "{cause}");
    until("it is counted", || one.stats().silent + two.stats().silent >= 1).await;
    assert!(one.faults().remove(cut));
    until("it is up again", || peer.is_up()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_service_keeps_its_connection() {
    struct Slow;
    impl purlin_net::Service for Slow {
        fn on_frame(&self, _frame: purlin_net::Incoming<'_>) {
            // Far too long, but not silent: other frames were heard in between.
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    let (one, two, peer) = pair_of(eager("n1", 1), eager("n2", 1)).await;
    two.register(SERVICE, Arc::new(Slow));
    for _ in 0..10 {
        send(&peer, b"x");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    until("all are handled", || two.stats().channels[2].frames_received >= 10).await;
    assert_eq!(one.stats().silent + two.stats().silent, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn faults_drop_delay_and_double_messages_and_cost_nothing_afterwards() {
    let (one, two, peer) = pair().await;
    let collector = Collector::on(&two);
    let rule = |effect, direction| FaultRule {
        peer: Some(name("n2")),
        lane: Lane::Channel(ChannelId::STREAM),
        direction,
        effect,
    };
    send(&peer, b"open");
    until("the channel is open", || collector.count() == 1).await;
    let add = |rule| one.faults().add(rule).unwrap();

    let lossy = add(rule(Effect::Drop { probability: 1.0 }, Direction::Outgoing));
    send(&peer, b"lost");
    assert!(one.faults().remove(lossy));
    send(&peer, b"kept");
    until("what followed arrives", || collector.count() == 2).await;
    assert_eq!(collector.messages.lock()[1], b"kept");
    assert_eq!(one.stats().faults_lost, 1);

    let doubling = add(rule(Effect::Duplicate { probability: 1.0 }, Direction::Outgoing));
    send(&peer, b"twice");
    until("it arrives twice", || collector.count() == 4).await;
    assert!(one.faults().remove(doubling));

    let by = Duration::from_millis(100);
    let late = add(rule(Effect::Delay { by, jitter: Duration::ZERO }, Direction::Outgoing));
    let sent_at = one.clock().now();
    send(&peer, b"late");
    assert!(one.faults().remove(late));
    send(&peer, b"after");
    until("both arrive", || collector.count() == 6).await;
    assert!(one.clock().now() - sent_at >= by);
    assert_eq!(collector.messages.lock()[4..], [b"late".to_vec(), b"after".to_vec()]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewed_certificate_is_taken_up_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let authority = authority("shop");
    let path = |file: &str| dir.path().join(file);
    authority.store(dir.path()).unwrap();
    let store = |valid: Duration| {
        drop(std::fs::remove_file(path("n1.key")));
        authority
            .issue(&name("n1"), now(), valid)
            .unwrap()
            .store(&path("n1.pem"), &path("n1.key"))
            .unwrap();
    };
    store(Duration::from_secs(3600));
    let identity = || {
        purlin_net::TlsIdentity::from_pem_files(&path("ca.pem"), &path("n1.pem"), &path("n1.key"))
            .unwrap()
    };
    let mut one = config("n1", 1);
    one.tls = identity();
    let mut two = config("n2", 1);
    two.tls = identity_of(&authority, "n2");
    let (one, two): (Transport, Transport) = (start(one).await, start(two).await);
    let before = one.tls().summary().not_after;
    store(Duration::from_secs(7200));
    one.tls().reload().unwrap();
    assert!(one.tls().summary().not_after > before);
    let peer = one.add_peer(two.node().clone(), two.local_addr()).unwrap();
    until("it is up", || peer.is_up()).await;
    // A broken file changes nothing.
    std::fs::write(path("n1.pem"), "broken").unwrap();
    assert!(one.tls().reload().is_err());
    assert!(one.tls().summary().not_after > before);
}
