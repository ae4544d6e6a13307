//! Pubsub over real transports: mutual TLS on loopback, several nodes in one process.
#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests do")]

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use purlin_core::{Clock as _, ClusterName, Incarnation, NodeId, NodeName, Rng, SystemClock};
use purlin_net::{
    Authority, ChannelId, ChannelSpec, GossipKeys, TlsIdentity, Transport, TransportConfig,
};
use purlin_pubsub::{
    Closed, Limits, Overflow, PubSub, Publication, SubscribeOptions, Subscription,
};

/// Under load of a busy machine everything takes its time; a test that fails waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    Authority::generate(&ClusterName::parse("shop").unwrap(), SystemClock::new().wall()).unwrap()
});

/// Each test has its own cluster: a port that one test gave back may be another's a moment later,
/// and these nodes go on calling at the old address.
fn cluster_name() -> ClusterName {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let sum = test.bytes().fold(5_381_u64, |sum, byte| sum.wrapping_mul(33) ^ u64::from(byte));
    ClusterName::parse(&format!("shop-{sum}")).unwrap()
}

struct Node {
    transport: Transport,
    pubsub: PubSub,
}

impl Node {
    async fn start(name: &str, incarnation: u64, credit_bytes: u32) -> Self {
        let name = NodeName::parse(name).unwrap();
        let clock = SystemClock::new();
        let issued =
            AUTHORITY.issue(&name, clock.wall(), purlin_net::certs::NODE_VALID_FOR).unwrap();
        let tls = TlsIdentity::from_issued(AUTHORITY.certificate_pem(), &issued).unwrap();
        let mut config = TransportConfig::new(
            cluster_name(),
            NodeId::new(name, Incarnation(incarnation)),
            "127.0.0.1:0".parse().unwrap(),
            tls,
            GossipKeys::parse(&"5a".repeat(32)).unwrap(),
        );
        config.channels = ChannelSpec::built_in();
        config.channels[usize::from(ChannelId::STREAM.0)].credit_bytes = credit_bytes;
        let transport = Transport::bind(config, Arc::new(clock), Rng::from_os()).await.unwrap();
        let pubsub = PubSub::start(&transport, Limits::default()).unwrap();
        Self { transport, pubsub }
    }

    fn id(&self) -> &NodeId {
        self.transport.node()
    }

    fn join(&self, other: &Self) {
        self.transport.add_peer(other.id().clone(), other.transport.local_addr()).unwrap();
    }

    fn sent_to(&self, other: &Self) -> u64 {
        let stats = self.pubsub.stats();
        stats
            .peers
            .iter()
            .find(|peer| peer.node == *other.id())
            .map_or(0, |peer| peer.messages_sent)
    }
}

/// Nodes `n1`, `n2`, ... that all know each other's interest.
async fn cluster<const N: usize>() -> [Node; N] {
    cluster_with::<N>(8 << 20).await
}

async fn cluster_with<const N: usize>(credit_bytes: u32) -> [Node; N] {
    let mut nodes = Vec::new();
    for number in 1..=N {
        nodes.push(Node::start(&format!("n{number}"), 1, credit_bytes).await);
    }
    for (at, node) in nodes.iter().enumerate() {
        nodes[..at].iter().for_each(|earlier| node.join(earlier));
    }
    until("everybody knows everybody's interest", || {
        nodes.iter().all(|node| {
            let peers = node.pubsub.stats().peers;
            peers.len() == N - 1 && peers.iter().all(|peer| peer.interest_known)
        })
    })
    .await;
    nodes.try_into().unwrap_or_else(|_| unreachable!("as many as asked for"))
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited {PATIENCE:?} in vain until {what}");
}

async fn subscribe(node: &Node, pattern: &str, options: SubscribeOptions) -> Subscription {
    let subscription = node.pubsub.subscribe_with(pattern, options).unwrap();
    assert!(subscription.propagated(PATIENCE).await, "everybody knows of the subscription");
    subscription
}

fn push_back() -> SubscribeOptions {
    SubscribeOptions::new(Overflow::push_back())
}

async fn next(subscription: &mut Subscription) -> String {
    let delivery =
        tokio::time::timeout(PATIENCE, subscription.recv()).await.expect("a message in time");
    String::from_utf8(delivery.expect("the subscription is open").payload().to_vec()).unwrap()
}

/// Receives `0..count` in order, with nothing missing.
async fn expect_numbers(subscription: &mut Subscription, count: usize) {
    let (mut batch, mut expected) = (Vec::new(), 0);
    while expected < count {
        let received =
            tokio::time::timeout(PATIENCE, subscription.recv_many(&mut batch, 256)).await;
        assert_ne!(
            received.unwrap_or_else(|_| panic!("stuck at {expected}")),
            0,
            "ended at {expected}"
        );
        for delivery in batch.drain(..) {
            assert_eq!(delivery.missed(), 0);
            assert_eq!(delivery.payload(), &expected.to_string());
            expected += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_subscribers_receives_nothing() {
    let [n1, n2, n3] = cluster().await;
    let mut feed = subscribe(&n2, "feed/*", push_back()).await;
    let other = subscribe(&n3, "other", push_back()).await;
    for number in 0..1_000 {
        let published = n1.pubsub.publish("feed/a", number.to_string()).unwrap();
        assert_eq!((published.nodes, published.subscribers, published.full), (1, 0, 0));
    }
    expect_numbers(&mut feed, 1_000).await;
    assert_eq!((n1.sent_to(&n2), n1.sent_to(&n3)), (1_000, 0));
    assert_eq!(n3.pubsub.stats().received, 0, "counted where they would arrive, too");
    drop((feed, other));
    until("the last unsubscribe is known", || n1.pubsub.interested("feed/a").unwrap().is_empty())
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_thousand_messages_arrive_complete_and_in_order_on_two_nodes() {
    let [n1, n2, n3] = cluster().await;
    let mut on_n2 = subscribe(&n2, "feed", push_back()).await;
    let mut on_n3 = subscribe(&n3, "**", push_back()).await;
    let publisher = n1.pubsub.topic("feed").unwrap();
    let publishing = tokio::spawn(async move {
        for number in 0..100_000 {
            publisher.publish_within(number.to_string(), PATIENCE).await.unwrap();
        }
    });
    tokio::join!(expect_numbers(&mut on_n2, 100_000), expect_numbers(&mut on_n3, 100_000));
    publishing.await.unwrap();
    assert_eq!((on_n2.lagged(), on_n3.lagged()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_push_back_subscriber_slows_its_publisher_and_loses_nothing() {
    let [n1, n2] = cluster_with(64 << 10).await;
    let mut slow = subscribe(&n2, "feed", push_back().messages_max(8)).await;
    let publisher = n1.pubsub.clone();
    let publishing = tokio::spawn(async move {
        let filler = "x".repeat(1_000);
        for number in 0..2_000 {
            let message = Publication::new(number.to_string()).header("filler", &filler);
            publisher.publish_within("feed", message, PATIENCE).await.unwrap();
        }
    });
    let mut most_waiting = 0;
    for number in 0..2_000 {
        assert_eq!(next(&mut slow).await, number.to_string());
        most_waiting = most_waiting.max(slow.waiting());
        if number % 50 == 0 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    publishing.await.unwrap();
    assert_eq!(slow.lagged(), 0);
    assert!(most_waiting <= 8 + 2 * 64, "bound and credit limit what waits: {most_waiting}");
    assert!(n1.pubsub.stats().peers[0].full > 0, "the publisher did have to wait");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_that_never_reads_slows_nobody_who_does() {
    let [n1, n2] = cluster_with(64 << 10).await;
    let mut lazy = subscribe(&n2, "feed", SubscribeOptions::default().messages_max(10)).await;
    let keen = SubscribeOptions::new(Overflow::Disconnect).messages_max(5);
    let keen = subscribe(&n2, "feed", keen).await;
    let mut busy = subscribe(&n2, "feed", push_back()).await;
    let publisher = n1.pubsub.clone();
    let publishing = tokio::spawn(async move {
        for number in 0..20_000 {
            publisher.publish_within("feed", number.to_string(), PATIENCE).await.unwrap();
        }
    });
    expect_numbers(&mut busy, 20_000).await;
    publishing.await.unwrap();
    assert_eq!((lazy.lagged(), lazy.waiting()), (19_990, 10));
    let first = lazy.recv().await.unwrap();
    assert_eq!((first.missed(), first.payload()), (19_990, &"19990".into()));
    assert_eq!(
        keen.closed().map(|why| matches!(why, Closed::Overflow { messages: 5, .. })),
        Some(true)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_back_subscriber_that_stalls_is_ended_and_the_others_go_on() {
    let [n1, n2] = cluster_with(16 << 10).await;
    let stalling = SubscribeOptions::new(Overflow::PushBack { stall_max: Duration::from_secs(1) })
        .messages_max(4);
    let mut stalled = subscribe(&n2, "feed", stalling).await;
    let mut busy = subscribe(&n2, "feed", push_back()).await;
    let publisher = n1.pubsub.clone();
    let publishing = tokio::spawn(async move {
        for number in 0..5_000 {
            let message = Publication::new(number.to_string()).header("filler", &"x".repeat(100));
            publisher.publish_within("feed", message, PATIENCE).await.unwrap();
        }
    });
    expect_numbers(&mut busy, 5_000).await;
    publishing.await.unwrap();
    assert_eq!(stalled.closed(), Some(Closed::Stalled(Duration::from_secs(1))));
    assert_eq!(n2.pubsub.stats().stalled, 1);
    let mut kept = 0;
    while stalled.recv().await.is_some() {
        kept += 1;
    }
    assert!(kept >= 4, "what had been queued can still be received: {kept}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn interest_is_known_again_after_a_peer_was_away_and_after_it_restarted() {
    let [n1, n2] = cluster().await;
    let mut feed = subscribe(&n2, "feed", push_back()).await;
    let n2_addr = n2.transport.local_addr();

    until("both have forgotten the other", || {
        // Again and again: while one forgets, the other may be dialling.
        n2.transport.remove_peer(n1.id());
        n1.transport.remove_peer(n2.id());
        [&n1, &n2].into_iter().all(|node| node.pubsub.stats().peers.is_empty())
    })
    .await;
    assert_eq!(n1.pubsub.publish("feed", "lost").unwrap().nodes, 0);
    let mut late = n2.pubsub.subscribe("late").unwrap();
    n1.transport.add_peer(n2.id().clone(), n2_addr).unwrap();
    until("interest is back", || n1.pubsub.interested("late").unwrap().len() == 1).await;
    n1.pubsub.publish("feed", "back").unwrap();
    n1.pubsub.publish("late", "too").unwrap();
    assert_eq!(
        (next(&mut feed).await, next(&mut late).await),
        ("back".to_owned(), "too".to_owned())
    );

    n2.transport.close();
    until("the peer is down", || n1.pubsub.interested("feed").unwrap().is_empty()).await;
    let again = Node::start("n2", 2, 8 << 20).await;
    again.join(&n1);
    let mut anew = again.pubsub.subscribe("feed").unwrap();
    until("the new life's interest is known", || {
        n1.pubsub.interested("feed").unwrap() == [again.id().clone()]
    })
    .await;
    n1.pubsub.publish("feed", "anew").unwrap();
    assert_eq!(next(&mut anew).await, "anew");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn direct_and_local_messages_stay_where_they_belong() {
    let [n1, n2, n3] = cluster().await;
    let mut here = subscribe(&n1, "t", push_back()).await;
    let mut there = subscribe(&n2, "t", push_back()).await;
    let mut elsewhere = subscribe(&n3, "t", push_back()).await;
    n1.pubsub.publish_local("t", "local").unwrap();
    n1.pubsub.publish_to(n2.id(), "t", "direct").unwrap();
    n1.pubsub.publish_from(&here, "t", "others").unwrap();
    n1.pubsub.publish("t", "all").unwrap();
    assert_eq!([next(&mut here).await, next(&mut here).await], ["local", "all"]);
    assert_eq!(
        [next(&mut there).await, next(&mut there).await, next(&mut there).await],
        ["direct", "others", "all"]
    );
    assert_eq!([next(&mut elsewhere).await, next(&mut elsewhere).await], ["others", "all"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_message_crosses_and_one_above_the_limit_is_refused_here() {
    let [n1, n2] = cluster().await;
    let mut feed = subscribe(&n2, "feed", push_back()).await;
    n1.pubsub.publish("feed", vec![7; 1 << 20]).unwrap();
    let delivery = tokio::time::timeout(PATIENCE, feed.recv()).await.unwrap().unwrap();
    assert_eq!(delivery.payload().len(), 1 << 20);
    let error = n1.pubsub.publish("feed", vec![7; (1 << 20) + 1]).unwrap_err();
    assert_eq!(error.to_string(), "payload of 1048577 bytes exceeds limit 1048576");
    let limits = Limits { message_bytes_max: (4 << 20).try_into().unwrap(), ..Limits::default() };
    let error = PubSub::start(&n1.transport, limits).unwrap_err();
    assert!(error.to_string().starts_with("message_bytes_max of 4194304 with "), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_dropped_is_gone_for_the_others() {
    let (a, b) = (Node::start("a", 1, 1 << 20).await, Node::start("b", 1, 1 << 20).await);
    a.join(&b);
    let connected = async |wanted: bool| {
        let settled = async {
            while b.transport.peers().iter().any(purlin_net::Peer::is_up) != wanted {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.is_ok()
    };
    assert!(connected(true).await);
    drop(a);
    assert!(connected(false).await, "somebody holds what was dropped");
}
