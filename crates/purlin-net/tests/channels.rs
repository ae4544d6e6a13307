//! Messages between two real transports on loopback, TLS included.

mod world;

use std::{sync::Arc, time::Duration};

use purlin_core::Deadline;
use purlin_net::{Bound, ChannelId, ChannelSpec, PartitionKey, SendError, Urgency};
use world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_arrives() {
    let (_one, two, peer) = pair().await;
    let collector = Collector::on(&two);
    send(&peer, b"hello");
    until("it arrives", || collector.count() == 1).await;
    assert_eq!(collector.messages.lock()[0], b"hello");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_message_waits_for_its_connection_and_answers_come_back() {
    let (one, two, peer) = pair().await;
    let (at_one, at_two) = (Collector::on(&one), Collector::on(&two));
    for number in 0..100_u32 {
        send(&peer, &number.to_le_bytes());
    }
    until("all arrive", || at_two.count() == 100).await;
    let back = two.peer(one.node()).unwrap();
    send(&back, b"answer");
    until("the answer arrives", || at_one.count() == 1).await;
    assert_eq!(two.stats().channels[2].connections, 1, "one connection carries both directions");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn order_holds_per_key_under_concurrency() {
    let mut one = config("n1", 1);
    one.channels[2].parallelism = 4;
    let mut two = config("n2", 1);
    two.channels[2].parallelism = 4;
    let (_one, two, peer) = pair_of(one, two).await;
    let collector = Collector::on(&two);
    let senders: Vec<_> = (0..8_u64)
        .map(|key| {
            let peer = peer.clone();
            tokio::spawn(async move {
                for number in 0..2_000_u64 {
                    let urgency = if number % 3 == 0 { Urgency::Now } else { Urgency::Batch };
                    peer.send(ChannelId::STREAM, SERVICE, PartitionKey(key), urgency, |payload| {
                        payload.put(&key.to_le_bytes());
                        payload.put(&number.to_le_bytes());
                    })
                    .unwrap();
                    if number % 50 == 0 {
                        tokio::task::yield_now().await;
                    }
                }
            })
        })
        .collect();
    for sender in senders {
        sender.await.unwrap();
    }
    until("all arrive", || collector.count() == 16_000).await;
    let mut next = [0_u64; 8];
    for message in collector.messages.lock().iter() {
        let key = u64::from_le_bytes(message[..8].try_into().unwrap());
        let number = u64::from_le_bytes(message[8..].try_into().unwrap());
        let expected = &mut next[usize::try_from(key).unwrap()];
        assert_eq!(number, *expected, "key {key}");
        *expected += 1;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_payloads_travel_in_fragments_in_order_with_small_ones() {
    let (_one, two, peer) = pair().await;
    let collector = Collector::on(&two);
    let mut expected = Vec::new();
    for size in [10, 3 << 20, 11, 256 << 10, (256 << 10) + 1, 12] {
        let message: Vec<u8> = (0..size).map(|at: usize| u8::try_from(at % 251).unwrap()).collect();
        let deadline = Deadline::after(_one.clock().now(), PATIENCE);
        peer.send_wait(ChannelId::STREAM, SERVICE, PartitionKey::ZERO, deadline, |payload| {
            payload.put(&message);
        })
        .await
        .unwrap();
        expected.push(message);
    }
    until("all arrive", || collector.count() == expected.len()).await;
    assert!(*collector.messages.lock() == expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_payload_above_the_limit_is_refused_and_the_channel_stays_up() {
    let (_one, two, peer) = pair().await;
    let collector = Collector::on(&two);
    let refused = peer
        .send(ChannelId::STREAM, SERVICE, PartitionKey::ZERO, Urgency::Now, |payload| {
            payload.put(&vec![0; (4 << 20) + 1]);
        })
        .unwrap_err();
    assert_eq!(refused, SendError::TooLarge { bytes: (4 << 20) + 1, max: 4 << 20 });
    send(&peer, b"still here");
    until("it arrives", || collector.count() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_credit_stops_the_sender_with_full_and_nothing_else() {
    let mut two = config("n2", 1);
    two.channels[2].credit_bytes = 10_000;
    let (one, two, peer) = pair_of(config("n1", 1), two).await;
    let collector = Collector::on(&two);
    collector.hold.store(true, std::sync::atomic::Ordering::Relaxed);
    // Open the channel first: credit is known once the peer has said how much it gives.
    send(&peer, &[0; 1_000]);
    until("the channel is open", || collector.count() == 1).await;
    let mut accepted = 1;
    let refused = loop {
        let sent =
            peer.send(ChannelId::STREAM, SERVICE, PartitionKey::ZERO, Urgency::Now, |payload| {
                payload.put(&[0; 1_000]);
            });
        match sent {
            Ok(()) => accepted += 1,
            Err(refused) => break refused,
        }
    };
    assert_eq!(accepted, 10);
    assert_eq!(refused, SendError::Full { bound: Bound::Credit, bytes: 10_000, max: 10_000 });
    assert_eq!(one.stats().channels[2].full, 1);

    // Other channels do not notice.
    peer.send(ChannelId::BULK, SERVICE, PartitionKey::ZERO, Urgency::Now, |p| p.put(b"bulk"))
        .unwrap();
    until("bulk arrives", || collector.messages.lock().iter().any(|m| m == b"bulk")).await;

    // Waiting ends when the receiver consumes, and not before.
    let impatient = Deadline::after(one.clock().now(), Duration::from_millis(30));
    let wait = |deadline| {
        let peer = peer.clone();
        async move {
            peer.send_wait(ChannelId::STREAM, SERVICE, PartitionKey::ZERO, deadline, |payload| {
                payload.put(b"waited");
            })
            .await
        }
    };
    assert_eq!(wait(impatient).await, Err(SendError::Deadline { bound: Bound::Credit }));
    let patient = Deadline::after(one.clock().now(), PATIENCE);
    let waiting = tokio::spawn(wait(patient));
    collector.release();
    within("room", waiting).await.unwrap().unwrap();
    until("it arrives", || collector.messages.lock().iter().any(|m| m == b"waited")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_backlog_is_explicit_and_the_channel_recovers() {
    let mut one = config("n1", 1);
    one.channels[2].backlog_bytes_max = 1 << 20;
    one.channels[2].payload_bytes_max = 512 << 10;
    let (_one, two, peer) = pair_of(one, config("n2", 1)).await;
    let collector = Collector::on(&two);
    // Without awaiting in between, the socket fills and the backlog after it.
    let mut accepted = 0_usize;
    let refused = loop {
        let sent =
            peer.send(ChannelId::STREAM, SERVICE, PartitionKey::ZERO, Urgency::Batch, |payload| {
                payload.put(&[7; 100_000]);
            });
        match sent {
            Ok(()) => accepted += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, SendError::Full { .. }), "{refused}");
    until("what was accepted arrives", || collector.count() == accepted).await;
    send(&peer, b"after");
    until("the channel works again", || collector.count() == accepted + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_named_channel_works_like_the_built_in_ones() {
    let with_lane = |text| {
        let mut config = config(text, 1);
        let name = purlin_net::ChannelName::parse("lane").unwrap();
        config.channels.push(ChannelSpec { parallelism: 2, ..ChannelSpec::named(name) });
        config
    };
    let (one, two, peer) = pair_of(with_lane("n1"), with_lane("n2")).await;
    let lane = one.channel(&purlin_net::ChannelName::parse("lane").unwrap()).unwrap();
    let collector = Collector::on(&two);
    for key in 0..4 {
        peer.send(lane, SERVICE, PartitionKey(key), Urgency::Now, |p| p.put(b"x")).unwrap();
    }
    until("all arrive", || collector.count() == 4).await;
    assert_eq!(one.stats().channels[4].connections, 2);
    let unknown = ChannelId(9);
    assert_eq!(
        peer.send(unknown, SERVICE, PartitionKey::ZERO, Urgency::Now, |p| p.put(b"x")),
        Err(SendError::UnknownChannel(unknown))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unknown_service_is_counted_and_its_sender_told() {
    let (one, two, peer) = pair().await;
    send(&peer, b"anybody?");
    until("the receiver counts it", || two.stats().unknown_service == 1).await;
    until("the sender is told", || one.stats().errors_received == 1).await;
    let collector = Collector::on(&two);
    send(&peer, b"now");
    until("the connection goes on", || collector.count() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_panics_harms_nobody_else() {
    struct Clumsy;
    impl purlin_net::Service for Clumsy {
        fn on_frame(&self, _frame: purlin_net::Incoming<'_>) {
            panic!("clumsy");
        }
    }
    let (_one, two, peer) = pair().await;
    let collector = Collector::on(&two);
    let clumsy = purlin_net::ServiceId(21);
    two.register(clumsy, Arc::new(Clumsy));
    peer.send(ChannelId::STREAM, clumsy, PartitionKey::ZERO, Urgency::Now, |p| p.put(b"x"))
        .unwrap();
    send(&peer, b"after");
    until("it arrives", || collector.count() == 1).await;
    assert_eq!(two.stats().service_panics, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn round_trips_are_measured() {
    let fast = |text| {
        let mut config = config(text, 1);
        config.keep_alive.interval = Duration::from_millis(20);
        config
    };
    let (_one, _two, peer) = pair_of(fast("n1"), fast("n2")).await;
    until("a ping came back", || peer.rtt().is_some()).await;
    assert!(peer.rtt().unwrap() < PATIENCE);
}
