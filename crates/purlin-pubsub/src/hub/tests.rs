use std::{collections::VecDeque, num::NonZeroUsize};

use futures_util::future::BoxFuture;
use purlin_core::{Incarnation, NodeName, SystemClock};

use super::*;
use crate::{Overflow, PubSub, subscription::Delivery};

fn node(name: &str) -> NodeId {
    NodeId::new(NodeName::parse(name).unwrap(), Incarnation(1))
}

#[derive(Debug)]
enum Frame {
    Message(Vec<u8>),
    Interest(Vec<u8>),
}

/// Frames on their way from one node to another.
#[derive(Debug, Default)]
struct Pipe {
    frames: VecDeque<(NodeId, NodeId, Frame)>,
    messages_max: Option<usize>,
    cut: bool,
}

type Pipes = Arc<Mutex<Pipe>>;

#[derive(Debug)]
struct PipePort {
    from: NodeId,
    to: NodeId,
    pipe: Pipes,
}

impl PeerPort for PipePort {
    fn send_message(&self, head: &[u8], payload: &[u8]) -> Result<(), Unsent> {
        let mut pipe = self.pipe.lock();
        let on_the_way = pipe
            .frames
            .iter()
            .filter(|(_, to, frame)| *to == self.to && matches!(frame, Frame::Message(_)));
        if pipe.messages_max.is_some_and(|max| on_the_way.count() >= max) {
            return Err(Unsent::Full);
        }
        pipe.frames.push_back((
            self.from.clone(),
            self.to.clone(),
            Frame::Message([head, payload].concat()),
        ));
        Ok(())
    }

    fn send_message_within<'a>(
        &'a self,
        head: &'a [u8],
        payload: &'a [u8],
        within: Duration,
    ) -> BoxFuture<'a, Result<(), Unsent>> {
        Box::pin(async move {
            let sent = async {
                while self.send_message(head, payload).is_err() {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(within, sent).await.map_err(|_elapsed| Unsent::Full)
        })
    }

    fn send_interest(&self, frame: &[u8]) -> Result<(), Unsent> {
        self.pipe.lock().frames.push_back((
            self.from.clone(),
            self.to.clone(),
            Frame::Interest(frame.to_vec()),
        ));
        Ok(())
    }

    fn is_up(&self) -> bool {
        !self.pipe.lock().cut
    }
}

/// A few nodes in one thread, joined by pipes that move only when told to.
struct World {
    hubs: BTreeMap<NodeId, Arc<Hub>>,
    pipe: Pipes,
}

impl World {
    fn of(names: &[&str]) -> Self {
        Self::with_limits(names, &Limits::default())
    }

    fn with_limits(names: &[&str], limits: &Limits) -> Self {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let hub = |name: &&str| {
            (node(name), Arc::new(Hub::new(node(name), limits.clone(), Arc::clone(&clock))))
        };
        let world = Self { hubs: names.iter().map(hub).collect(), pipe: Pipes::default() };
        for name in names {
            world.connect_all(name);
        }
        world.settle();
        world
    }

    fn connect_all(&self, name: &str) {
        let me = node(name);
        for other in self.hubs.keys().filter(|other| **other != me) {
            self.hubs[&me].peer_up(other, self.port(&me, other));
            self.hubs[other].peer_up(&me, self.port(other, &me));
        }
    }

    fn disconnect_all(&self, name: &str) {
        let me = node(name);
        self.pipe.lock().cut = true;
        for other in self.hubs.keys().filter(|other| **other != me) {
            self.hubs[&me].peer_down(other);
            self.hubs[other].peer_down(&me);
        }
        let mut pipe = self.pipe.lock();
        pipe.frames.retain(|(from, to, _)| *from != me && *to != me);
        pipe.cut = false;
    }

    fn port(&self, from: &NodeId, to: &NodeId) -> Box<dyn PeerPort> {
        Box::new(PipePort { from: from.clone(), to: to.clone(), pipe: Arc::clone(&self.pipe) })
    }

    fn pubsub(&self, name: &str) -> PubSub {
        PubSub::new(Arc::clone(&self.hubs[&node(name)]))
    }

    /// Delivers what is on the way.
    fn deliver(&self) {
        while let Some((from, to, frame)) = { self.pipe.lock().frames.pop_front() } {
            let hub = &self.hubs[&to];
            match frame {
                Frame::Interest(frame) => hub.on_interest(&from, &frame, || self.port(&to, &from)),
                Frame::Message(frame) => {
                    if let Some(accepted) = hub.accept(&from, &frame) {
                        hub.deliver_arrived(&accepted.slot, &[accepted.message], None);
                    }
                }
            }
        }
    }

    /// Lets interest spread everywhere.
    fn settle(&self) {
        for _ in 0..3 {
            self.hubs.values().for_each(|hub| hub.flush_interest());
            self.deliver();
        }
    }

    fn sent(&self, from: &str, to: &str) -> u64 {
        let stats = self.pubsub(from).stats();
        stats
            .peers
            .into_iter()
            .find(|peer| peer.node == node(to))
            .map_or(0, |peer| peer.messages_sent)
    }
}

fn bodies(subscription: &mut Subscription) -> Vec<String> {
    let text = |delivery: Delivery| String::from_utf8(delivery.payload().to_vec()).unwrap();
    std::iter::from_fn(|| subscription.try_recv()).map(text).collect()
}

#[test]
fn only_nodes_with_subscribers_are_sent_anything() {
    let world = World::of(&["a", "b", "c"]);
    let mut feed = world.pubsub("b").subscribe("feed").unwrap();
    world.settle();
    for i in 0..100 {
        let published = world.pubsub("a").publish("feed", format!("{i}")).unwrap();
        assert_eq!(published, Published { nodes: 1, ..Published::default() });
    }
    world.deliver();
    assert_eq!(bodies(&mut feed), (0..100).map(|i| i.to_string()).collect::<Vec<_>>());
    assert_eq!((world.sent("a", "b"), world.sent("a", "c")), (100, 0));
    assert_eq!(world.pubsub("c").stats().received, 0);
}

#[test]
fn a_node_with_many_subscribers_is_sent_each_message_once() {
    let world = World::of(&["a", "b"]);
    let mut subscriptions: Vec<_> =
        (0..50).map(|_| world.pubsub("b").subscribe("feed").unwrap()).collect();
    subscriptions.push(world.pubsub("b").subscribe("*").unwrap());
    subscriptions.push(world.pubsub("b").subscribe("**").unwrap());
    world.settle();
    world.pubsub("a").publish("feed", "x").unwrap();
    world.deliver();
    assert_eq!(world.sent("a", "b"), 1);
    subscriptions.iter_mut().for_each(|subscription| assert_eq!(bodies(subscription), ["x"]));
}

#[test]
fn local_direct_and_from_reach_whom_they_say() {
    let world = World::of(&["a", "b", "c"]);
    let a = world.pubsub("a");
    let mut own = a.subscribe("t").unwrap();
    let [mut here, mut on_b, mut on_c] =
        ["a", "b", "c"].map(|name| world.pubsub(name).subscribe("t").unwrap());
    world.settle();
    a.publish_local("t", "local").unwrap();
    a.publish_to(&node("b"), "t", "direct").unwrap();
    a.publish_to(&node("a"), "t", "self").unwrap();
    a.publish_from(&own, "t", "from").unwrap();
    world.deliver();
    assert_eq!(bodies(&mut own), ["local", "self"]);
    assert_eq!(bodies(&mut here), ["local", "self", "from"]);
    assert_eq!(bodies(&mut on_b), ["direct", "from"]);
    assert_eq!(bodies(&mut on_c), ["from"]);
    assert_eq!(a.publish_to(&node("z"), "t", "x"), Err(PublishError::NotAPeer(node("z"))));
    assert_eq!(
        a.publish_to(&node("b"), "other", "x"),
        Ok(Published::default()),
        "b has no subscriber for it"
    );
}

#[test]
fn unsubscribing_stops_the_traffic() {
    let world = World::of(&["a", "b"]);
    let subscription = world.pubsub("b").subscribe("t").unwrap();
    let pattern = world.pubsub("b").subscribe("t/**").unwrap();
    world.settle();
    assert_eq!(world.pubsub("a").interested("t").unwrap(), [node("b")]);
    drop((subscription, pattern));
    world.settle();
    assert_eq!(world.pubsub("a").interested("t").unwrap(), []);
    assert_eq!(world.pubsub("a").publish("t", "x"), Ok(Published::default()));
    assert_eq!(world.pubsub("b").stats().subscriptions, 0);
}

#[test]
fn a_route_follows_every_change_of_subscribers() {
    let world = World::of(&["a", "b"]);
    let a = world.pubsub("a");
    let topic = a.topic("x/y").unwrap();
    assert_eq!(topic.publish("0"), Ok(Published::default()));
    let mut exact = a.subscribe("x/y").unwrap();
    topic.publish("1").unwrap();
    let mut pattern = a.subscribe("x/*").unwrap();
    topic.publish("2").unwrap();
    let mut remote = world.pubsub("b").subscribe("x/y").unwrap();
    world.settle();
    topic.publish("3").unwrap();
    world.deliver();
    let mut remote_pattern = world.pubsub("b").subscribe("*/y").unwrap();
    world.settle();
    topic.publish("4").unwrap();
    world.deliver();
    assert_eq!(bodies(&mut exact), ["1", "2", "3", "4"]);
    assert_eq!(bodies(&mut pattern), ["2", "3", "4"]);
    assert_eq!(bodies(&mut remote), ["3", "4"]);
    assert_eq!(bodies(&mut remote_pattern), ["4"]);
}

#[test]
fn interest_is_forgotten_with_a_peer_and_learnt_again_when_it_is_back() {
    let world = World::of(&["a", "b"]);
    let mut feed = world.pubsub("b").subscribe("feed").unwrap();
    world.settle();
    world.disconnect_all("b");
    assert_eq!(world.pubsub("a").publish("feed", "lost"), Ok(Published::default()));
    let mut late = world.pubsub("b").subscribe("late").unwrap();
    world.connect_all("b");
    world.settle();
    for topic in ["feed", "late"] {
        assert_eq!(world.pubsub("a").publish(topic, "back").unwrap().nodes, 1);
    }
    world.deliver();
    assert_eq!(
        (bodies(&mut feed), bodies(&mut late)),
        (vec!["back".to_owned()], vec!["back".to_owned()])
    );
}

#[test]
fn late_news_of_a_peers_end_does_not_undo_its_return() {
    let world = World::of(&["a", "b"]);
    let _feed = world.pubsub("b").subscribe("feed").unwrap();
    world.settle();
    world.hubs[&node("a")].peer_down(&node("b"));
    assert_eq!(world.pubsub("a").interested("feed").unwrap(), [node("b")]);
}

#[test]
fn a_node_that_shuts_down_is_sent_nothing_more() {
    let world = World::of(&["a", "b"]);
    let _feed = world.pubsub("b").subscribe("feed").unwrap();
    world.settle();
    world.pubsub("b").shut_down();
    world.deliver();
    assert_eq!(world.pubsub("a").interested("feed").unwrap(), []);
}

#[test]
fn headers_publisher_and_time_travel_with_a_message() {
    let world = World::of(&["a", "b"]);
    let mut feed = world.pubsub("b").subscribe("feed").unwrap();
    let mut local = world.pubsub("a").subscribe("feed").unwrap();
    world.settle();
    let publication = Publication::new("x").content_type("text/plain").key("k");
    world.pubsub("a").publish("feed", publication).unwrap();
    world.deliver();
    let (there, here) = (feed.try_recv().unwrap(), local.try_recv().unwrap());
    assert_eq!(there.content_type(), Some("text/plain"));
    assert_eq!(there.conflation_key(), "k");
    assert_eq!(there.publisher(), &node("a"));
    assert_eq!(there.published_at(), here.published_at());
    world.pubsub("b").publish("answer", "y").unwrap();
    let mut answers = world.pubsub("b").subscribe("answer").unwrap();
    world.pubsub("b").publish("answer", "y").unwrap();
    assert!(
        answers.try_recv().unwrap().published_at() > there.published_at(),
        "an answer is later than its question"
    );
}

#[test]
fn bounds_are_refused_with_the_value_and_the_limit() {
    let limits = Limits {
        message_bytes_max: NonZeroUsize::new(10).unwrap(),
        subscriptions_max: NonZeroUsize::new(1).unwrap(),
        ..Limits::default()
    };
    let world = World::with_limits(&["a"], &limits);
    let a = world.pubsub("a");
    assert_eq!(
        a.publish("t", "0123456789x").unwrap_err().to_string(),
        "payload of 11 bytes exceeds limit 10"
    );
    assert_eq!(
        a.publish("t/*", "x").unwrap_err().to_string(),
        "topic \"t/*\" holds '*': wildcards are for subscriptions"
    );
    let headers = Publication::new("x").header("h", &"v".repeat(1021));
    assert_eq!(
        a.publish("t", headers).unwrap_err().to_string(),
        "headers of 1025 bytes exceed limit 1024"
    );
    let first = a.subscribe("t").unwrap();
    assert_eq!(
        a.subscribe("t").unwrap_err().to_string(),
        "this node already has its limit of 1 subscriptions"
    );
    drop(first);
    let long = SubscribeOptions::default().metadata("m".repeat(257));
    assert_eq!(
        a.subscribe_with("t", long).unwrap_err().to_string(),
        "subscription metadata of 257 bytes exceeds limit 256"
    );
    assert!(a.subscribe("t").is_ok(), "a refused subscription leaves nothing behind");
}

#[test]
fn junk_from_a_peer_is_counted_and_nothing_else() {
    let world = World::of(&["a", "b"]);
    let hub = &world.hubs[&node("a")];
    for frame in
        [&b""[..], &[0x10], &[0xff; 40], &[0x10, 0, 0, 0, 0, 0, 0, 0, 0, 3, b'a', b'/', b'/']]
    {
        assert!(hub.accept(&node("b"), frame).is_none());
    }
    hub.on_interest(&node("b"), &[99, 1, 2], || world.port(&node("a"), &node("b")));
    assert_eq!(world.pubsub("a").stats().malformed, 5);
    assert_eq!(world.pubsub("a").stats().topics_tracked, 0);
}

#[test]
fn a_slow_subscriber_slows_no_other_and_sees_what_it_missed() {
    let world = World::of(&["a", "b"]);
    let b = world.pubsub("b");
    let mut slow = b.subscribe_with("t", SubscribeOptions::default().messages_max(10)).unwrap();
    let mut fast = b.subscribe("t").unwrap();
    world.settle();
    for i in 0..1000 {
        world.pubsub("a").publish("t", format!("{i}")).unwrap();
        world.deliver();
        assert_eq!(bodies(&mut fast), [i.to_string()]);
    }
    assert_eq!(slow.lagged(), 990);
    assert_eq!(slow.try_recv().unwrap().missed(), 990);
    assert_eq!(b.stats().lost, 990);
    assert_eq!(b.topics(1)[0].lost, 990);
    assert_eq!(b.subscriptions(10)[0].lagged, 990);
}

#[tokio::test]
async fn a_publisher_that_waits_loses_nothing_to_a_slow_push_back_subscriber() {
    let world = World::of(&["a"]);
    let a = world.pubsub("a");
    let mut slow = a
        .subscribe_with("t", SubscribeOptions::new(Overflow::push_back()).messages_max(3))
        .unwrap();
    let publisher = a.clone();
    let publishing = tokio::spawn(async move {
        for i in 0..500 {
            publisher.publish_within("t", format!("{i}"), Duration::from_secs(20)).await.unwrap();
        }
    });
    for i in 0..500 {
        assert_eq!(slow.recv().await.unwrap().payload(), &i.to_string());
        assert!(slow.waiting() <= 3);
        tokio::task::yield_now().await;
    }
    publishing.await.unwrap();
    assert_eq!(slow.lagged(), 0);
}

#[tokio::test]
async fn who_does_not_wait_is_told_that_a_push_back_subscriber_is_full() {
    let world = World::of(&["a"]);
    let a = world.pubsub("a");
    let _slow = a
        .subscribe_with("t", SubscribeOptions::new(Overflow::push_back()).messages_max(1))
        .unwrap();
    let mut other = a.subscribe("t").unwrap();
    a.publish("t", "1").unwrap();
    assert_eq!(
        a.publish("t", "2"),
        Ok(Published { subscribers: 1, full: 1, ..Published::default() })
    );
    let error = a.publish_within("t", "3", Duration::from_millis(1)).await.unwrap_err();
    assert_eq!(error.to_string(), "1 of the receivers stayed full for 1ms");
    assert_eq!(error.outcome(), purlin_core::Outcome::Unknown);
    assert_eq!(bodies(&mut other), ["1", "2", "3"]);
}

#[tokio::test]
async fn a_publisher_waits_for_a_full_connection() {
    let world = World::of(&["a", "b"]);
    let b = world.pubsub("b");
    let mut feed = b.subscribe("t").unwrap();
    world.settle();
    world.pipe.lock().messages_max = Some(2);
    let a = world.pubsub("a");
    a.publish("t", "1").unwrap();
    a.publish("t", "2").unwrap();
    assert_eq!(a.publish("t", "lost").unwrap().full, 1);
    let waiting =
        tokio::spawn(async move { a.publish_within("t", "3", Duration::from_secs(20)).await });
    tokio::task::yield_now().await;
    world.deliver();
    assert_eq!(waiting.await.unwrap().unwrap().nodes, 1);
    world.deliver();
    assert_eq!(bodies(&mut feed), ["1", "2", "3"]);
    assert_eq!(world.pubsub("a").stats().peers[0].messages_sent, 3);
}

#[tokio::test]
async fn a_shut_down_hub_ends_its_subscriptions_and_takes_no_more() {
    let world = World::of(&["a"]);
    let a = world.pubsub("a");
    let [mut exact, mut pattern] = ["t", "**"].map(|p| a.subscribe(p).unwrap());
    a.publish("t", "last").unwrap();
    a.shut_down();
    for subscription in [&mut exact, &mut pattern] {
        assert_eq!(subscription.recv().await.unwrap().payload(), "last");
        assert!(subscription.recv().await.is_none());
        assert_eq!(subscription.closed(), Some(Closed::ShutDown));
    }
    assert_eq!(a.publish("t", "x"), Err(PublishError::ShutDown));
    assert_eq!(a.subscribe("t").unwrap_err(), SubscribeError::ShutDown);
}

#[tokio::test]
async fn a_subscriber_that_waits_is_woken_and_gets_a_batch() {
    let world = World::of(&["a"]);
    let a = world.pubsub("a");
    let mut subscription = a.subscribe("t").unwrap();
    let reader = tokio::spawn(async move {
        let mut got = Vec::new();
        while got.len() < 100 {
            assert!(subscription.recv_many(&mut got, 64).await > 0);
        }
        got.iter().map(|d| String::from_utf8(d.payload().to_vec()).unwrap()).collect::<Vec<_>>()
    });
    tokio::task::yield_now().await;
    for i in 0..100 {
        a.publish("t", i.to_string()).unwrap();
    }
    assert_eq!(reader.await.unwrap(), (0..100).map(|i| i.to_string()).collect::<Vec<_>>());
}

#[tokio::test]
async fn typed_topics_carry_values_and_name_what_is_none() {
    let world = World::of(&["a"]);
    let a = world.pubsub("a");
    let topic = a.topic("prices").unwrap().typed::<(String, u32)>();
    let mut prices = topic.subscribe().unwrap();
    topic.publish(&("EUR".to_owned(), 7)).unwrap();
    a.publish("prices", "\u{ff}junk").unwrap();
    let (value, delivery) = prices.recv().await.unwrap().unwrap();
    assert_eq!(value, ("EUR".to_owned(), 7));
    assert_eq!(delivery.content_type(), Some(crate::typed::POSTCARD));
    let error = prices.recv().await.unwrap().unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("message on topic prices is no (alloc::string::String, u32): "),
        "{error}"
    );
}

#[test]
fn publishing_and_subscribing_from_many_threads_loses_nothing() {
    let world = World::of(&["a"]);
    let a = world.pubsub("a");
    let mut steady =
        a.subscribe_with("hot", SubscribeOptions::default().messages_max(1 << 20)).unwrap();
    std::thread::scope(|scope| {
        for publisher in 0..4 {
            let a = a.clone();
            scope.spawn(move || {
                for i in 0..5_000 {
                    a.publish("hot", format!("{publisher} {i}")).unwrap();
                }
            });
        }
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..2_000 {
                    drop(a.subscribe("hot").unwrap());
                    drop(a.subscribe("*").unwrap());
                }
            });
        }
    });
    let mut next = [0; 4];
    for body in bodies(&mut steady) {
        let (publisher, i) = body.split_once(' ').unwrap();
        let publisher: usize = publisher.parse().unwrap();
        assert_eq!(i.parse::<usize>().unwrap(), next[publisher], "order of each publisher");
        next[publisher] += 1;
    }
    assert_eq!(next, [5_000; 4]);
    assert_eq!(a.stats().subscriptions, 1);
}

#[tokio::test]
async fn a_single_node_measures_rates_and_ends_stalled_subscriptions() {
    let a = PubSub::on_one_node(node("a"), Limits::default(), Arc::new(SystemClock::new()));
    let stalling = Overflow::PushBack { stall_max: Duration::from_millis(500) };
    let slow = a.subscribe_with("t", SubscribeOptions::new(stalling).messages_max(1)).unwrap();
    a.publish("t", "1").unwrap();
    let busy = async {
        while a.topics(1)[0].rate == 0 || slow.closed().is_none() {
            a.publish("t", "2").unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), busy).await.expect("measured and ended");
    assert_eq!(slow.closed(), Some(Closed::Stalled(Duration::from_millis(500))));
}

/// A peer that the transport has been told of and has not reached yet.
#[derive(Debug)]
struct About(NodeId);

impl Expected for About {
    fn peers(&self) -> Vec<NodeId> {
        vec![self.0.clone()]
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_about_to_be_connected_is_waited_for() {
    let world = World::of(&["a"]);
    let hub = &world.hubs[&node("a")];
    hub.expect(Box::new(About(node("b"))));
    let feed = world.pubsub("a").subscribe("feed").unwrap();
    let within = Duration::from_secs(5);
    assert!(!feed.propagated(within).await, "b may publish before it has heard");

    let known = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        hub.peer_up(&node("b"), world.port(&node("a"), &node("b")));
        let say = |frame: InterestFrame| {
            hub.on_interest(&node("b"), &frame.encode(), || world.port(&node("a"), &node("b")));
        };
        say(InterestFrame::Ask);
        hub.flush_interest();
        let version = hub.announcer.lock().version();
        say(InterestFrame::Known { version });
    };
    assert!(tokio::join!(feed.propagated(within), known).0);
}
