//! Real nodes in one process: transports on loopback with TLS, and the membership above them.
#![expect(clippy::unwrap_used, reason = "a broken fixture is a failed test")]

use std::{
    collections::BTreeSet,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use purlin_cluster::{
    Cluster, ClusterConfig, DrainHook, Event, Intake, MemberCallError, MembersRpc, Meta, Phase,
    Selector, Stage, State, View,
    discovery::{Discovery, DiscoveryError},
};
use purlin_core::{
    Advice, Clock as _, ClusterName, Deadline, Incarnation, NodeId, NodeName, Outcome, Rng,
    SystemClock,
};
use purlin_net::{
    Authority, FaultRule, GossipKeys, TlsIdentity, Transport, TransportConfig,
    certs::NODE_VALID_FOR,
    rpc::{CallError, Method, Rpc},
};

/// Under load of a busy machine everything takes its time; a test that fails waits this long.
const PATIENCE: Duration = Duration::from_secs(60);

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    Authority::generate(&ClusterName::parse("shop").unwrap(), SystemClock::new().wall()).unwrap()
});

/// Each run of the tests has its own key.
static KEY: LazyLock<String> = LazyLock::new(GossipKeys::generate);

/// Each test has its own cluster: a port that one test gave back may be another's a moment later,
/// and these nodes go on calling at the old address.
fn cluster_name() -> ClusterName {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let sum = test.bytes().fold(5_381_u64, |sum, byte| sum.wrapping_mul(33) ^ u64::from(byte));
    ClusterName::parse(&format!("shop-{sum}")).unwrap()
}

#[derive(Debug)]
struct Seeds(Option<BTreeSet<SocketAddr>>);

impl Discovery for Seeds {
    fn describe(&self) -> String {
        "seeds of the test".into()
    }

    fn next(&mut self) -> BoxFuture<'_, Result<BTreeSet<SocketAddr>, DiscoveryError>> {
        match self.0.take() {
            Some(seeds) => Box::pin(async { Ok(seeds) }),
            None => Box::pin(std::future::pending()),
        }
    }
}

struct Node {
    transport: Transport,
    cluster: Cluster,
}

fn name(text: &str) -> NodeName {
    NodeName::parse(text).unwrap()
}

async fn start_at(text: &str, incarnation: u64, bind: SocketAddr, seeds: &[SocketAddr]) -> Node {
    let wall = SystemClock::new().wall();
    let issued = AUTHORITY.issue(&name(text), wall, NODE_VALID_FOR).unwrap();
    let tls = TlsIdentity::from_issued(AUTHORITY.certificate_pem(), &issued).unwrap();
    let config = TransportConfig::new(
        cluster_name(),
        NodeId::new(name(text), Incarnation(incarnation)),
        bind,
        tls,
        GossipKeys::parse(&KEY).unwrap(),
    );
    let clock = Arc::new(SystemClock::new());
    let transport = Transport::bind(config, clock, Rng::from_os()).await.unwrap();
    let mut meta = Meta::new(transport.advertise());
    meta.zone = Some("a".into());
    meta.roles.insert(format!("role-of-{text}"));
    let seeds = Box::new(Seeds(Some(seeds.iter().copied().collect())));
    let cluster =
        Cluster::start(ClusterConfig::new(meta), transport.clone(), seeds, Rng::from_os()).unwrap();
    Node { transport, cluster }
}

async fn start(text: &str, seeds: &[SocketAddr]) -> Node {
    start_at(text, 1, "127.0.0.1:0".parse().unwrap(), seeds).await
}

/// `n1`, `n2`, ..., all seeing each other.
async fn cluster_of(count: usize) -> Vec<Node> {
    let mut nodes = vec![start("n1", &[]).await];
    let seed = nodes[0].transport.local_addr();
    for n in 2..=count {
        nodes.push(start(&format!("n{n}"), &[seed]).await);
    }
    for node in &nodes {
        node.cluster.wait_for_members(count, PATIENCE).await.unwrap();
    }
    nodes
}

/// Waits until `node`'s view is as it should be.
async fn until(node: &Node, what: &str, mut holds: impl FnMut(&View) -> bool) {
    let mut watch = node.cluster.watch();
    let waited = tokio::time::timeout(PATIENCE, async {
        let mut view = watch.view();
        while !holds(&view) {
            view = watch.changed().await;
        }
    });
    let seen = waited.await;
    assert!(seen.is_ok(), "{}: not {what}: {:?}", node.cluster.node(), node.cluster.view());
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited {PATIENCE:?} in vain until {what}");
}

fn state(view: &View, of: &str) -> Option<State> {
    view.get(&name(of)).map(|m| m.state)
}

/// What happened to `of`, as `node` remembers it.
fn story(node: &Node, of: &str) -> Vec<&'static str> {
    let mut events = node.cluster.events_after(0);
    let mut story = Vec::new();
    while let Some(event) = events.try_next() {
        let event = event.unwrap();
        if event.what.node().name == name(of) {
            story.push(event.what.as_str());
        }
    }
    story
}

#[tokio::test(flavor = "multi_thread")]
async fn three_nodes_with_one_seed_see_each_other_and_what_they_say_of_themselves() {
    let nodes = cluster_of(3).await;
    for node in &nodes {
        let view = node.cluster.view();
        assert_eq!(view.members.len(), 3);
        let n3 = view.get(&name("n3")).unwrap();
        assert_eq!(n3.addr(), nodes[2].transport.local_addr());
        assert!(n3.meta.roles.contains("role-of-n3"));
        assert_eq!(view.select(&Selector::all().role("role-of-n2")).count(), 1);
    }
    nodes[1].cluster.update_meta(|meta| meta.zone = Some("b".into())).await.unwrap();
    for node in &nodes {
        until(node, "n2 in zone b", |view| {
            view.get(&name("n2")).unwrap().meta.zone.as_deref() == Some("b")
        })
        .await;
    }
    let too_large = |meta: &mut Meta| meta.zone = Some("z".repeat(1_000));
    let error = nodes[1].cluster.update_meta(too_large).await.unwrap_err();
    assert_eq!(error.to_string(), "member zone of 1000 bytes exceeds limit 128");
    for node in &nodes[..2] {
        let rtt = || node.cluster.member(&name("n3")).and_then(|n3| n3.rtt);
        eventually("a round trip is measured", || rtt().is_some()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_boot_barrier_says_who_was_seen_and_what_stood_in_the_way() {
    let nobody = "127.0.0.1:1".parse().unwrap();
    let alone = start("n1", &[nobody]).await;
    let error = alone.cluster.wait_for_members(3, Duration::from_millis(500)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("3 members wanted within 500ms, 1 alive: n1"), "{text}");
    assert!(text.contains("cannot contact 127.0.0.1:1: connection refused"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_whose_process_is_gone_is_down_and_comes_back_as_a_new_life() {
    let mut nodes = cluster_of(3).await;
    let n2 = nodes.remove(1);
    let addr = n2.transport.local_addr();
    n2.cluster.stop().await;
    n2.transport.close();
    drop(n2);
    for node in &nodes {
        until(node, "n2 down", |view| state(view, "n2") == Some(State::Down)).await;
    }
    let seed = nodes[0].transport.local_addr();
    let again = start_at("n2", 2, addr, &[seed]).await;
    for node in nodes.iter().chain([&again]) {
        until(node, "n2 alive again", |view| {
            let n2 = view.get(&name("n2"));
            n2.is_some_and(|n2| n2.id.incarnation == Incarnation(2) && n2.state == State::Alive)
                && view.alive().count() == 3
        })
        .await;
    }
    let of_n3 = story(&nodes[0], "n3");
    assert!(!of_n3.contains(&"down"), "{of_n3:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_node_is_suspected_and_down_and_refutes_when_it_is_heard_again() {
    let nodes = cluster_of(3).await;
    for other in ["n1", "n2"] {
        nodes[2].transport.faults().add(FaultRule::cut(name(other))).unwrap();
    }
    for node in &nodes[..2] {
        until(node, "n3 down", |view| state(view, "n3") == Some(State::Down)).await;
    }
    until(&nodes[2], "n1 and n2 down", |view| {
        ["n1", "n2"].iter().all(|of| state(view, of) == Some(State::Down))
    })
    .await;
    nodes[2].transport.faults().clear();
    for node in &nodes {
        until(node, "healed", |view| view.alive().count() == 3).await;
        assert_eq!(node.cluster.view().get(&name("n3")).unwrap().id.incarnation, Incarnation(1));
    }
    let story = story(&nodes[0], "n3");
    assert!(story.contains(&"suspected") && story.contains(&"refuted"), "{story:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_way_loss_between_two_of_three_takes_nobody_down() {
    let nodes = cluster_of(3).await;
    let rule = FaultRule::one_way_cut(name("n2"), purlin_net::Direction::Outgoing);
    nodes[0].transport.faults().add(rule).unwrap();
    // Longer than the keepalive's patience and several suspicions.
    tokio::time::sleep(Duration::from_secs(8)).await;
    for node in &nodes {
        for of in ["n1", "n2", "n3"] {
            assert!(!story(node, of).contains(&"down"), "{of}: {:?}", story(node, of));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leaver_is_left_everywhere_and_is_not_dialled_again() {
    let nodes = cluster_of(3).await;
    nodes[2].cluster.leave().await.unwrap();
    for node in &nodes {
        until(node, "n3 left", |view| state(view, "n3") == Some(State::Left)).await;
    }
    nodes[2].cluster.leave().await.unwrap();
    let dials: u64 = nodes[..2].iter().map(|node| node.transport.stats().dials).sum();
    nodes[2].cluster.stop().await;
    nodes[2].transport.close();
    for node in &nodes[..2] {
        eventually("n3 is no peer", || node.transport.peer(nodes[2].cluster.node()).is_none())
            .await;
    }
    // Longer than the pauses between contacts to down members, who would be dialled.
    tokio::time::sleep(Duration::from_secs(3)).await;
    for node in &nodes[..2] {
        assert!(!story(node, "n3").contains(&"down"));
        assert_eq!(state(&node.cluster.view(), "n3"), Some(State::Left));
    }
    assert_eq!(dials, nodes[..2].iter().map(|node| node.transport.stats().dials).sum::<u64>());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_with_one_name_the_older_hears_that_it_is_over() {
    let nodes = cluster_of(2).await;
    let seed = nodes[0].transport.local_addr();
    let twin = start_at("n2", 7, "127.0.0.1:0".parse().unwrap(), &[seed]).await;
    tokio::time::timeout(PATIENCE, nodes[1].cluster.superseded()).await.unwrap();
    until(&nodes[0], "the twin alive", |view| {
        view.get(&name("n2")).unwrap().id == *twin.cluster.node()
    })
    .await;
}

#[derive(Default)]
struct Desk {
    closed: AtomicBool,
    unanswered: AtomicUsize,
}

impl Intake for Desk {
    fn name(&self) -> &str {
        "desk"
    }
    fn refuse_new(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }
    fn in_flight(&self) -> usize {
        self.unanswered.load(Ordering::SeqCst)
    }
}

struct HandOver {
    stage: Stage,
    order: Arc<AtomicUsize>,
    ran_as: AtomicUsize,
    result: Result<(), String>,
}

impl DrainHook for HandOver {
    fn name(&self) -> &str {
        "hand over"
    }
    fn stage(&self) -> Stage {
        self.stage
    }
    fn run(
        &self,
        _deadline: Deadline,
    ) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>> {
        Box::pin(async {
            self.ran_as.store(self.order.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            self.result.clone()
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_announces_hands_over_finishes_and_leaves() {
    let nodes = cluster_of(3).await;
    let n3 = &nodes[2];
    let order = Arc::new(AtomicUsize::new(0));
    let hook = |stage, result| {
        let (order, ran_as) = (Arc::clone(&order), AtomicUsize::new(0));
        Arc::new(HandOver { stage, order, ran_as, result })
    };
    let transfer = hook(Stage::Transfer, Err("one leadership stayed".into()));
    let hand_off = hook(Stage::HandOff, Ok(()));
    n3.cluster.on_drain(Arc::clone(&transfer) as Arc<dyn DrainHook>);
    n3.cluster.on_drain(Arc::clone(&hand_off) as Arc<dyn DrainHook>);
    let desk = Arc::new(Desk::default());
    desk.unanswered.store(2, Ordering::SeqCst);
    n3.cluster.add_intake(Arc::clone(&desk) as Arc<dyn Intake>);

    let draining = n3.cluster.clone();
    let drain = tokio::spawn(async move { draining.drain(PATIENCE).await });
    let mut progress = n3.cluster.drain_progress();
    let finishing = progress.wait_for(|p| p.phase == Phase::Finishing && p.in_flight == 2);
    tokio::time::timeout(PATIENCE, finishing).await.unwrap().unwrap();
    assert!(desk.closed.load(Ordering::SeqCst) && n3.cluster.is_draining());
    for node in &nodes[..2] {
        // Confirmed by everybody before anything else was done.
        let n3 = node.cluster.member(&name("n3")).unwrap();
        assert!(n3.meta.draining && !n3.is_placeable() && n3.state == State::Alive);
        assert!(story(node, "n3").contains(&"draining"));
    }
    assert_eq!(hand_off.ran_as.load(Ordering::SeqCst), 1);
    assert_eq!(transfer.ran_as.load(Ordering::SeqCst), 2);

    desk.unanswered.store(0, Ordering::SeqCst);
    let report = tokio::time::timeout(PATIENCE, drain).await.unwrap().unwrap();
    assert_eq!(report.phase, Phase::Left);
    assert_eq!(report.problems, ["hand over: one leadership stayed"]);
    for node in &nodes[..2] {
        until(node, "n3 left", |view| state(view, "n3") == Some(State::Left)).await;
    }
    assert_eq!(n3.cluster.drain(PATIENCE).await.phase, Phase::Left, "idempotent");
}

const ECHO: Method<u64, u64> = Method::new("test.echo");

/// Serves `ECHO`, slowly; returns the calls between members.
fn serve_echo(node: &Node) -> MembersRpc {
    serve_noting(node, Arc::default())
}

/// As `serve_echo`, and notes which requests were accepted.
fn serve_noting(node: &Node, accepted: Arc<Mutex<BTreeSet<u64>>>) -> MembersRpc {
    let rpc = Rpc::new(&node.transport);
    let members = MembersRpc::new(node.cluster.clone(), node.transport.clone(), rpc);
    let echo = move |_context, number| {
        accepted.lock().insert(number);
        async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(number)
        }
    };
    members.serve(ECHO, echo).unwrap();
    members
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_called_by_name_and_by_selector() {
    let nodes = cluster_of(3).await;
    let rpcs: Vec<_> = nodes.iter().map(serve_echo).collect();
    assert_eq!(rpcs[0].call(&name("n2"), ECHO, &7, PATIENCE).await, Ok(7));
    let all = rpcs[0].multi_call(&Selector::all(), ECHO, &8, PATIENCE).await;
    let names: Vec<_> = all.iter().map(|(node, end)| (node.name.as_str(), end.clone())).collect();
    assert_eq!(names, [("n2", Ok(8)), ("n3", Ok(8))]);
    let some = Selector::all().role("role-of-n3");
    assert_eq!(rpcs[0].multi_call(&some, ECHO, &9, PATIENCE).await.len(), 1);

    let error = rpcs[0].call(&name("n9"), ECHO, &7, PATIENCE).await.unwrap_err();
    assert_eq!(
        (error.to_string().as_str(), error.outcome()),
        ("no member is called n9", Outcome::NotDone)
    );
    nodes[2].cluster.leave().await.unwrap();
    until(&nodes[0], "n3 left", |view| state(view, "n3") == Some(State::Left)).await;
    let error = rpcs[0].call(&name("n3"), ECHO, &7, PATIENCE).await.unwrap_err();
    assert_eq!(error.to_string(), "member n3@1 is left");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_accepted_before_a_drain_are_answered_and_later_ones_refused_with_nothing_done() {
    let nodes = cluster_of(3).await;
    let accepted: Arc<Mutex<BTreeSet<u64>>> = Arc::default();
    let caller = serve_echo(&nodes[0]);
    let _served = serve_noting(&nodes[2], Arc::clone(&accepted));
    let mut calls = tokio::task::JoinSet::new();
    let mut before = BTreeSet::new();
    let mut every_millisecond = tokio::time::interval(Duration::from_millis(1));
    // A slow machine gets fewer calls, not all of them at once.
    every_millisecond.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let draining = nodes[2].cluster.clone();
    let mut drain = None;
    let mut sent = 0;
    // About a thousand calls per second, before, during and after the drain.
    loop {
        every_millisecond.tick().await;
        sent += 1;
        let (caller, number) = (caller.clone(), sent);
        calls.spawn(async move {
            let end = caller.call(&name("n3"), ECHO, &number, PATIENCE).await;
            (number, end)
        });
        if sent == 300 {
            eventually("some are accepted", || accepted.lock().len() > 100).await;
            before = accepted.lock().clone();
            let draining = draining.clone();
            drain = Some(tokio::spawn(async move { draining.drain(PATIENCE).await }));
        }
        if drain.as_ref().is_some_and(tokio::task::JoinHandle::is_finished) && sent > 1_000 {
            break;
        }
        assert!(sent < 60_000, "the drain never ended");
    }
    nodes[2].cluster.stop().await;
    nodes[2].transport.close();
    let report = drain.unwrap().await.unwrap();
    assert_eq!((report.phase, report.problems), (Phase::Left, vec![]));
    let (mut answered, mut refused, mut gone) = (0, 0, 0);
    while let Some(ended) = calls.join_next().await {
        match ended.unwrap() {
            (number, Ok(reply)) => {
                assert_eq!(reply, number);
                answered += 1;
            }
            (number, Err(error)) => {
                assert!(!before.contains(&number), "call {number}, accepted before: {error}");
                assert_eq!(error.outcome(), Outcome::NotDone, "call {number}: {error}");
                assert_eq!(error.advice(), Advice::RetryElsewhere(None), "call {number}: {error}");
                match error {
                    MemberCallError::Call(CallError::Draining(_)) => refused += 1,
                    MemberCallError::Gone { .. } => gone += 1,
                    other => panic!("call {number}: {other}"),
                }
            }
        }
    }
    println!("{answered} answered, {refused} refused as draining, {gone} never sent");
    assert!(answered >= before.len() && gone > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn events_can_be_resumed_by_number() {
    let nodes = cluster_of(2).await;
    let mut events = nodes[0].cluster.events_after(0);
    let first = events.next().await.unwrap();
    assert!(matches!(first.what, Event::Joined { .. }) && first.seq == 1, "{first:?}");
    nodes[1].cluster.leave().await.unwrap();
    let mut rest = nodes[0].cluster.events_after(first.seq);
    let left = async {
        loop {
            let event = rest.next().await.unwrap();
            if matches!(event.what, Event::Left { .. }) {
                return event;
            }
        }
    };
    let left = tokio::time::timeout(PATIENCE, left).await.unwrap();
    assert!(left.seq > first.seq && left.epoch > first.epoch);
}
