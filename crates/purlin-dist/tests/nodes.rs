//! Names and groups of real nodes in one process: TLS over loopback, kills, drains and cuts.
#![expect(clippy::unwrap_used, reason = "a broken fixture is a failed test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    ops::Bound,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use purlin_cluster::{
    Cluster, ClusterConfig, MembersRpc, Meta, Remote,
    discovery::{Discovery, DiscoveryError},
};
use purlin_core::{
    Advice, Clock, ClusterName, Hlc, Incarnation, NodeId, NodeName, Outcome, Rng, SystemClock,
};
use purlin_dist::{
    Counted, Dist, DistConfig, DistError, Entry, Fed, Feed, FeedOptions, FetchConfig, Ground, Lost,
    Missed, OnConflict, RegisterOptions, RowKey, SyncTo, Watch, Why,
};
use purlin_net::{
    Authority, FaultRule, GossipKeys, TlsIdentity, Transport, TransportConfig,
    certs::NODE_VALID_FOR, rpc::Rpc,
};
use purlin_process::{
    Address, Context, Envelope, ExitReason, Handle, Inbound, Message, MessageKind, Metadata,
    ProcessRef, Processes, RemoteServer, Server, SpawnOptions, Undelivered,
};
use purlin_replica::ReplicaSet;

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

/// A cart that knows how much it holds.
struct Cart(u64);

/// Adds some and tells how much there is now.
#[derive(Clone, serde::Serialize, serde::Deserialize)]
struct Add(u64);

impl Message for Add {
    type Reply = u64;
    const NAME: &'static str = "Cart.add";
}

impl Server for Cart {
    const KIND: &'static str = "Cart";
    type Args = u64;

    async fn init(items: u64, _ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
        Ok(Self(items))
    }
}

impl Handle<Add> for Cart {
    async fn handle(&mut self, add: Add, _ctx: &mut Context<Self>) -> u64 {
        self.0 += add.0;
        self.0
    }
}

impl RemoteServer for Cart {
    fn receive(
        kind: MessageKind,
        payload: &[u8],
        inbound: Inbound,
    ) -> Result<Envelope<Self>, Undelivered> {
        match kind {
            Add::KIND => inbound.decode::<Self, Add>(payload),
            _ => Err(inbound.unknown::<Self>(kind)),
        }
    }
}

/// Another kind of server, which takes nothing.
struct Sleeper;

impl Server for Sleeper {
    const KIND: &'static str = "Sleeper";
    type Args = ();

    async fn init((): (), _ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
        Ok(Self)
    }
}

impl RemoteServer for Sleeper {
    fn receive(
        kind: MessageKind,
        _payload: &[u8],
        inbound: Inbound,
    ) -> Result<Envelope<Self>, Undelivered> {
        Err(inbound.unknown::<Self>(kind))
    }
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
    processes: Processes,
    dist: Dist,
}

impl Node {
    async fn start(name: &str, life: u64, seeds: &[SocketAddr]) -> Self {
        Self::with(name, life, seeds, DistConfig::default()).await
    }

    async fn with(text: &str, life: u64, seeds: &[SocketAddr], config: DistConfig) -> Self {
        let name = NodeName::parse(text).unwrap();
        let issued = AUTHORITY.issue(&name, SystemClock::new().wall(), NODE_VALID_FOR).unwrap();
        let tls = TlsIdentity::from_issued(AUTHORITY.certificate_pem(), &issued).unwrap();
        let id = NodeId::new(name, Incarnation(life));
        let transport_config = TransportConfig::new(
            cluster_name(),
            id.clone(),
            "127.0.0.1:0".parse().unwrap(),
            tls,
            GossipKeys::parse(&"5a".repeat(32)).unwrap(),
        );
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let transport =
            Transport::bind(transport_config, Arc::clone(&clock), Rng::from_os()).await.unwrap();
        let processes = Processes::new(id, clock);
        let rpc = Rpc::new(&transport);
        let remote = Remote::start(&transport, &processes);
        let meta = Meta::new(transport.advertise());
        let seeds = Box::new(Seeds(Some(seeds.iter().copied().collect())));
        let cluster =
            Cluster::start(ClusterConfig::new(meta), transport.clone(), seeds, Rng::from_os())
                .unwrap();
        let hlc = Arc::new(Hlc::new(transport.node()));
        let rows =
            ReplicaSet::start(DistConfig::replica(), &transport, hlc, Rng::from_os()).unwrap();
        let rpc = MembersRpc::new(cluster.clone(), transport.clone(), rpc);
        let (members, local) = (cluster.clone(), processes.clone());
        let ground = Ground { cluster: members, rpc, remote, processes: local, rows };
        let dist = Dist::start(config, ground, Rng::from_os()).unwrap();
        Self { transport, cluster, processes, dist }
    }

    fn id(&self) -> &NodeId {
        self.transport.node()
    }

    async fn cart(&self, items: u64) -> ProcessRef<Cart> {
        self.processes.spawn_remote::<Cart>(items, SpawnOptions::default()).await.unwrap()
    }

    fn has(&self, key: &str, of: &Self) -> bool {
        self.dist.registry().lookup(key).is_some_and(|entry| entry.at.owner == *of.id())
    }

    /// As if its process had been killed: no goodbye, its address refuses.
    async fn kill(self) {
        self.cluster.stop().await;
        self.transport.close();
    }
}

async fn cluster_of(count: usize) -> Vec<Node> {
    let mut nodes = vec![Node::start("n1", 1, &[]).await];
    let seed = nodes[0].transport.local_addr();
    for n in 2..=count {
        nodes.push(Node::start(&format!("n{n}"), 1, &[seed]).await);
    }
    all_see(&nodes).await;
    nodes
}

async fn all_see(nodes: &[Node]) {
    for node in nodes {
        node.cluster.wait_for_members(nodes.len(), PATIENCE).await.unwrap();
        let left = || node.cluster.view().alive().count();
        until("nobody else is there", || left() == nodes.len()).await;
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain until {what}");
}

/// The next event in short words.
async fn next(watch: &mut Watch) -> String {
    let event = tokio::time::timeout(PATIENCE, watch.next()).await.expect("an event").unwrap();
    let side = |it: &Option<Arc<Entry>>| {
        it.as_ref().map_or_else(|| "-".into(), |it| it.at.owner.name.to_string())
    };
    let change = &event.change;
    let (before, now) = (side(&change.before), side(&change.now));
    format!("{} {before}>{now} {}", change.entry().key, change.why.as_str())
}

fn none() -> Metadata {
    Metadata::default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_found_here_at_once_and_soon_on_every_other_node_and_leads_to_its_process() {
    let nodes = cluster_of(3).await;
    let mut watch = nodes[2].dist.registry().watch("cart:", 0);
    let cart = nodes[0].cart(2).await;
    let registered = nodes[0].dist.registry().register("cart:1", &cart, none()).unwrap();
    assert_eq!(nodes[0].dist.registry().whereis("cart:1").as_ref(), Some(cart.pid()));
    for (node, items) in nodes.iter().zip(3..) {
        until("everybody finds it", || node.has("cart:1", &nodes[0])).await;
        let found = node.dist.registry().lookup("cart:1").unwrap();
        assert_eq!((found.version, found.pid()), (registered.version, Some(cart.pid().clone())));
        let address: Address<Cart> = node.dist.registry().address("cart:1").unwrap().unwrap();
        assert_eq!(address.call(Add(1)).await, Ok(items));
    }
    // What is of another kind is not called by mistake.
    let other = nodes[2].dist.registry().address::<Sleeper>("cart:1").unwrap_err();
    assert_eq!((other.found.as_str(), other.wanted), ("Cart", "Sleeper"));
    // Taken, here and elsewhere.
    let second = nodes[1].cart(0).await;
    let refused = nodes[1].dist.registry().register("cart:1", &second, none()).unwrap_err();
    assert!(
        matches!(refused, DistError::NameTaken { ref by, .. } if by == cart.pid()),
        "{refused}"
    );
    // It goes with its process, and everybody hears why.
    cart.stop(ExitReason::failed("out of stock"));
    cart.exited().await;
    assert_eq!(nodes[0].dist.registry().lookup("cart:1"), None);
    assert_eq!(next(&mut watch).await, "cart:1 ->n1 registered");
    assert_eq!(next(&mut watch).await, "cart:1 n1>- crashed");
    until("n2 has heard it", || nodes[1].dist.registry().lookup("cart:1").is_none()).await;
    nodes[1].dist.registry().register("cart:1", &second, none()).unwrap();
    assert_eq!(next(&mut watch).await, "cart:1 ->n2 registered");
    second.stop(ExitReason::Normal);
    assert_eq!(next(&mut watch).await, "cart:1 n2>- normal");
    // A watcher that comes back hears what it has not heard, and nothing twice.
    let mut again = nodes[2].dist.registry().watch("cart:", 2);
    assert_eq!(next(&mut again).await, "cart:1 ->n2 registered");
    assert_eq!(again.revision(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_names_of_a_node_go_with_it_and_its_next_life_begins_without_them() {
    let mut nodes = cluster_of(4).await;
    let seed = nodes[0].transport.local_addr();
    let mut carts = Vec::new();
    for (n, node) in nodes.iter().enumerate() {
        let cart = node.cart(0).await;
        node.dist.registry().register(&format!("of:{}", n + 1), &cart, none()).unwrap();
        carts.push(cart);
    }
    for node in &nodes {
        until("all see all", || node.dist.registry().scan("of:", None, 9).len() == 4).await;
    }
    let after = nodes[0].dist.registry().revision();
    let mut watch = nodes[0].dist.registry().watch("of:", after);
    // n4 is killed, n3 is drained.
    nodes.pop().unwrap().kill().await;
    assert_eq!(next(&mut watch).await, "of:4 n4>- node_down");
    let third = nodes.pop().unwrap();
    third.cluster.drain(PATIENCE).await;
    assert_eq!(next(&mut watch).await, "of:3 n3>- node_drained");
    third.kill().await;
    // A later life of n4 finally ends what the first one left behind.
    nodes.push(Node::start("n4", 2, &[seed]).await);
    all_see(&nodes).await;
    let cart = nodes[2].cart(0).await;
    nodes[2].dist.registry().register("of:4", &cart, none()).unwrap();
    assert_eq!(next(&mut watch).await, "of:4 ->n4 registered");
    let rows = |node: &Node| node.dist.rows().scan(b"", None, 100).len();
    for node in &nodes {
        until("only what lives is left", || rows(node) == 3).await;
    }
    assert_eq!(nodes[0].dist.stats().malformed, 0);
}

/// Cuts the first node off from the others, and waits until each side has noticed.
async fn cut_off_first(nodes: &[Node]) {
    let (first, others) = nodes.split_first().unwrap();
    for other in others {
        first.transport.faults().add(FaultRule::cut(other.id().name.clone())).unwrap();
        other.transport.faults().add(FaultRule::cut(first.id().name.clone())).unwrap();
    }
    until("the cut is seen", || {
        first.cluster.view().alive().count() == 1
            && others.iter().all(|node| node.cluster.view().alive().count() == others.len())
    })
    .await;
}

async fn heal(nodes: &[Node]) {
    for node in nodes {
        node.transport.faults().clear();
    }
    all_see(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_of_a_cut_use_a_name_and_after_the_heal_the_later_keeps_it_everywhere() {
    let nodes = cluster_of(3).await;
    let registry = |n: usize| nodes[n].dist.registry();
    let (old, kept) = (nodes[0].cart(5).await, nodes[0].cart(0).await);
    registry(0).register("shop", &old, none()).unwrap();
    registry(0).register("kept", &kept, none()).unwrap();
    for node in &nodes {
        until("all see both", || node.has("shop", &nodes[0]) && node.has("kept", &nodes[0])).await;
    }
    cut_off_first(&nodes).await;
    until("hidden on the other side", || registry(1).lookup("kept").is_none()).await;
    assert!(registry(0).lookup("shop").is_some(), "one's own is always there");
    let new = nodes[1].cart(100).await;
    registry(1).register("shop", &new, none()).unwrap();
    // What the loser holds is brought to the winner before the loser is stopped.
    let merged = Arc::new(AtomicUsize::new(0));
    let (counting, at_first) = (Arc::clone(&merged), registry(0).clone());
    registry(0).on_conflict(move |lost: Lost| {
        let (counting, registry) = (Arc::clone(&counting), at_first.clone());
        async move {
            counting.fetch_add(1, Ordering::SeqCst);
            let mine: ProcessRef<Cart> = lost.process.downcast().unwrap();
            let items = mine.call(Add(0)).await.unwrap();
            let winner: Address<Cart> = registry.address(&lost.winner.key).unwrap().unwrap();
            winner.call(Add(items)).await.unwrap();
        }
    });
    let mut watch = registry(0).watch("shop", registry(0).revision());
    // From before it can end: of a process that is gone already no reason is known.
    let end = tokio::spawn(async move { old.exited().await });
    tokio::task::yield_now().await;
    heal(&nodes).await;
    assert_eq!(next(&mut watch).await, "shop n1>n2 conflict");
    let reason = end.await.unwrap();
    assert!(matches!(&reason, ExitReason::Stopped(why) if why.contains("shop")), "{reason}");
    for node in &nodes {
        until("all see one holder", || node.has("shop", &nodes[1]) && node.has("kept", &nodes[0]))
            .await;
    }
    assert_eq!(merged.load(Ordering::SeqCst), 1);
    assert_eq!(new.call(Add(0)).await, Ok(105));
    assert_eq!(nodes[0].dist.stats().conflicts_lost, 1);
    assert_eq!(nodes[1].dist.stats().conflicts_lost, 0, "never both");
    assert!(nodes.iter().all(|node| node.dist.stats().restored == 0), "nothing was sent again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_register_at_once_agree_and_one_process_is_told() {
    let nodes = cluster_of(2).await;
    for round in 0..20 {
        let key = format!("race:{round}");
        let carts = [nodes[0].cart(0).await, nodes[1].cart(0).await];
        let options = || RegisterOptions { on_conflict: OnConflict::Tell, ..Default::default() };
        let both = [0, 1].map(|n| nodes[n].dist.registry().register(&key, &carts[n], options()));
        let holders = || [0, 1].map(|n| nodes[n].dist.registry().whereis(&key));
        until("both agree", || {
            let [a, b] = holders();
            a.is_some() && a == b
        })
        .await;
        let holder = holders()[0].clone().unwrap();
        assert!(carts.iter().any(|cart| *cart.pid() == holder), "{both:?}");
        assert!(carts.iter().all(|cart| cart.is_alive()), "told, not stopped");
    }
    let lost: u64 = nodes.iter().map(|node| node.dist.stats().conflicts_lost).sum();
    assert!(lost <= 20, "one loser per name at most: {lost}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_writer_waits_for_as_many_nodes_as_it_wants_and_hears_who_is_missing() {
    let nodes = cluster_of(3).await;
    let registry = nodes[0].dist.registry();
    let cart = nodes[0].cart(0).await;
    for n in 0..500 {
        registry.register(&format!("k:{n}"), &cart, none()).unwrap();
    }
    let confirmed = registry.sync_to(SyncTo::All, PATIENCE).await.unwrap();
    assert_eq!(confirmed.len(), 2);
    for node in &nodes[1..] {
        assert_eq!(node.dist.registry().scan("k:", None, 1_000).len(), 500, "at once");
        assert_eq!(node.dist.registry().counts(), [(nodes[0].id().clone(), 500)]);
    }
    // A cut that the membership has not noticed yet.
    let (third, first) = (nodes[2].id().name.clone(), nodes[0].id().name.clone());
    nodes[0].transport.faults().add(FaultRule::cut(third)).unwrap();
    nodes[2].transport.faults().add(FaultRule::cut(first)).unwrap();
    registry.register("late", &cart, none()).unwrap();
    let one = registry.sync_to(SyncTo::Nodes(1), PATIENCE).await.unwrap();
    assert_eq!(one, [nodes[1].id().clone()]);
    let error = registry.sync_to(SyncTo::Nodes(2), Duration::from_millis(300)).await.unwrap_err();
    assert_eq!((&*error.confirmed, error.wanted), (&[nodes[1].id().clone()][..], 2));
    assert_eq!((error.outcome(), error.advice()), (Outcome::Unknown, Advice::Retry));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metadata_is_changed_by_its_owner_against_the_version_that_was_read() {
    let nodes = cluster_of(2).await;
    let registry = nodes[0].dist.registry();
    let cart = nodes[0].cart(0).await;
    let meta = |color: &str| Metadata::from_iter([("color", color)]);
    let first = registry.register("a", &cart, meta("red")).unwrap();
    let second = registry.update("a", first.version, meta("green")).unwrap();
    assert!(second.version > first.version && second.since == first.since);
    let refused = registry.update("a", first.version, meta("blue")).unwrap_err();
    assert!(matches!(refused, DistError::Overwritten { is, .. } if is == second.version));
    assert_eq!(refused.advice(), Advice::Retry);
    let larger = |old: &Metadata| old.iter().chain([("size", "xl")]).collect();
    let third = registry.update_with("a", larger).unwrap();
    assert_eq!(
        (third.metadata.get("color"), third.metadata.get("size")),
        (Some("green"), Some("xl"))
    );
    let elsewhere = nodes[1].dist.registry();
    until("the other node has it", || {
        elsewhere.lookup("a").is_some_and(|entry| entry.version == third.version)
    })
    .await;
    let refused = elsewhere.update("a", third.version, none()).unwrap_err();
    let first_name = nodes[0].id().name.clone();
    assert_eq!(refused.advice(), Advice::RetryElsewhere(Some(first_name)));
    assert!(matches!(elsewhere.unregister("a"), Err(DistError::Elsewhere { .. })));
    assert_eq!(elsewhere.unregister("b"), Err(DistError::Absent("b".into())));
    registry.unregister("a").unwrap();
    until("it is gone there too", || elsewhere.lookup("a").is_none()).await;
    let mut watch = elsewhere.watch_key("a", 0);
    let whys: Vec<Why> =
        std::iter::from_fn(|| watch.try_next()).map(|it| it.unwrap().change.why.clone()).collect();
    assert_eq!((whys.first(), whys.last()), (Some(&Why::Registered), Some(&Why::Unregistered)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_are_listed_in_order_in_pages_and_scopes_do_not_see_each_other() {
    let nodes = cluster_of(2).await;
    let registry = nodes[0].dist.registry();
    let carts = [nodes[0].cart(0).await, nodes[1].cart(0).await];
    for n in 0..25 {
        registry.register(&format!("k:{n:02}"), &carts[0], none()).unwrap();
    }
    registry.register("other", &carts[0], none()).unwrap();
    let mut listed = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let page = registry.scan("k:", after.as_deref(), 10);
        let Some(last) = page.last() else { break };
        after = Some(last.key.to_string());
        listed.extend(page.iter().map(|entry| entry.key.to_string()));
    }
    assert_eq!(listed, (0..25).map(|n| format!("k:{n:02}")).collect::<Vec<_>>());
    let range = registry.range(Bound::Included("k:03"), Bound::Excluded("k:05"), 10);
    assert_eq!(range.iter().map(|entry| &*entry.key).collect::<Vec<_>>(), ["k:03", "k:04"]);
    assert!(registry.range(Bound::Included("z"), Bound::Excluded("a"), 10).is_empty());
    // Shared keys: many processes each, paged by place.
    for (cart, node) in carts.iter().zip(&nodes) {
        for key in ["pool", "pool2"] {
            node.dist.registry().register_shared(key, cart, none()).unwrap();
        }
    }
    until("all four are in", || registry.scan_shared("pool", None, 10).len() == 4).await;
    assert_eq!(registry.count_shared("pool"), 2);
    let first = registry.lookup_shared("pool", None, 1);
    let cursor = purlin_dist::Cursor::after(&first[0]).to_string().parse().unwrap();
    let second = registry.lookup_shared("pool", Some(&cursor), 10);
    assert_eq!((first.len(), second.len()), (1, 1));
    assert_eq!(registry.scan_shared("pool", Some(&cursor), 10).len(), 3);
    assert!(registry.unregister_shared("pool", &carts[0]));
    assert!(!registry.unregister_shared("pool", &carts[0]));
    assert_eq!(registry.count_shared("pool"), 1);
    // Another scope has names of its own.
    let night = registry.scope("night").unwrap();
    assert_eq!(night.lookup("other"), None);
    night.register("other", &carts[0], none()).unwrap();
    let there = nodes[1].dist.registry().scope("night").unwrap();
    until("the other node has the scope", || there.lookup("other").is_some()).await;
    let scopes = there.scopes("", None, 10);
    assert_eq!(scopes.iter().map(|scope| &**scope).collect::<Vec<_>>(), ["default", "night"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_out_of_bounds_is_refused_by_name_value_and_bound() {
    let config = DistConfig {
        entries_max: 3,
        metadata_bytes_max: 16,
        events_max: 2,
        scopes_max: 2,
        ..DistConfig::default()
    };
    let node = Node::with("n1", 1, &[], config).await;
    let registry = node.dist.registry();
    let cart = node.cart(0).await;
    let refused = |key: &str, meta| {
        let meta: Metadata = meta;
        registry.register(key, &cart, meta).unwrap_err().to_string()
    };
    assert_eq!(refused("", none()), "key of 0 bytes is outside 1 to 1024");
    assert_eq!(refused(&"k".repeat(1_025), none()), "key of 1025 bytes is outside 1 to 1024");
    assert_eq!(refused("a\0b", none()), "key holds a zero byte");
    let large = Metadata::from_iter([("note", "more than sixteen")]);
    assert_eq!(refused("a", large), "metadata of 21 bytes exceeds limit 16");
    assert_eq!(
        registry.scope(&"s".repeat(256)).unwrap_err().to_string(),
        "scope of 256 bytes is outside 1 to 255"
    );
    for n in 0..2 {
        registry.register(&format!("k{n}"), &cart, none()).unwrap();
    }
    // To look opens nothing, to register does.
    assert_eq!(registry.scope("elsewhere").unwrap().lookup("k"), None);
    registry.scope("second").unwrap().register("k", &cart, none()).unwrap();
    let refused = registry.register("k3", &cart, none()).unwrap_err();
    assert_eq!(refused, DistError::TooMany { count: 3, max: 3 });
    registry.scope("second").unwrap().unregister("k").unwrap();
    let refused = registry.scope("third").unwrap().register("k", &cart, none()).unwrap_err();
    assert_eq!(refused, DistError::TooManyScopes { count: 2, max: 2 });
    // A watcher that comes too late hears what it missed.
    let mut watch = registry.scope("second").unwrap().watch("", 0);
    assert_eq!(watch.next().await, Err(Missed { first: 1, last: 2 }));
    assert_eq!(watch.next().await.unwrap().revision, 3);
    // With the process go all of its names, and there is room again.
    cart.stop(ExitReason::Normal);
    cart.exited().await;
    assert!(registry.scan("", None, 10).is_empty());
    until("its rows are gone", || registry.counts().is_empty()).await;
    // A process that has ended, and one of another node.
    let error = registry.register("g", &cart, none()).unwrap_err();
    assert!(matches!(error, DistError::NoProcess(_)), "{error}");
    let foreign = Processes::for_tests();
    let foreign = foreign.spawn_remote::<Cart>(0, SpawnOptions::default()).await.unwrap();
    let error = registry.register("f", &foreign, none()).unwrap_err();
    assert!(matches!(error, DistError::Elsewhere { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_is_seen_called_and_told_as_one_from_every_node() {
    let nodes = cluster_of(3).await;
    let mut carts = Vec::new();
    let mut watch = nodes[0].dist.groups().monitor("carts", 0);
    for (n, node) in nodes.iter().enumerate() {
        let cart = node.cart(10).await;
        // n3's is never drawn by weight.
        let weight = if n == 2 { "0" } else { "5" };
        node.dist.groups().join("carts", &cart, none()).unwrap();
        let metadata = Metadata::from_iter([("weight", weight)]);
        node.dist.groups().join("carts", &cart, metadata).unwrap();
        carts.push(cart);
    }
    let sleeper =
        nodes[1].processes.spawn_remote::<Sleeper>((), SpawnOptions::default()).await.unwrap();
    let weightless = Metadata::from_iter([("weight", "0")]);
    nodes[1].dist.groups().join("carts", &sleeper, weightless).unwrap();
    for node in &nodes {
        node.dist.registry().sync_to(SyncTo::All, PATIENCE).await.unwrap();
    }
    for node in &nodes {
        assert_eq!(node.dist.groups().count("carts"), 4);
        assert_eq!(node.dist.groups().members("carts").len(), 4);
        assert_eq!(node.dist.groups().list("", None, 10), [("carts".into(), 4)]);
        let nearest = node.dist.groups().nearest("carts").unwrap();
        assert_eq!(nearest.at.owner, *node.id());
    }
    let groups = nodes[0].dist.groups();
    assert_eq!(nodes[1].dist.groups().local_members("carts").len(), 2);
    assert_eq!(groups.members_on("carts", nodes[2].id()).len(), 1);
    assert_eq!(groups.counts().iter().map(|(_, count)| count).sum::<usize>(), 4);
    let picked: BTreeSet<NodeId> =
        (0..200).filter_map(|_| groups.pick("carts")).map(|it| it.at.owner.clone()).collect();
    assert_eq!(picked, [nodes[0].id().clone(), nodes[1].id().clone()].into());
    assert_eq!(groups.pick_by("carts", |_| 0), None);
    let published = groups.publish::<Cart, Add>("carts", &Add(90));
    assert_eq!((published.sent, published.skipped, &*published.refused), (3, 1, &[][..]));
    let answers = groups.multi_call::<Cart, Add>("carts", &Add(1), PATIENCE).await;
    let answers: Vec<u64> = answers.into_iter().map(|(_, answer)| answer.unwrap()).collect();
    assert_eq!(answers, [101; 3]);
    // Who goes is seen to go, with the reason.
    assert!(nodes[1].dist.groups().leave("carts", &sleeper));
    carts[2].kill();
    until("two are left", || groups.count("carts") == 2).await;
    for node in nodes.iter() {
        let on = groups.members_on("carts", node.id()).len();
        assert_eq!(groups.count_on("carts", node.id()), on);
    }
    let mut whys = BTreeSet::new();
    while let Some(event) = watch.try_next() {
        whys.insert(event.unwrap().change.why.as_str());
    }
    assert!(whys.is_superset(&["crashed", "registered", "unregistered"].into()), "{whys:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_two_devices_is_present_until_the_last_is_gone_whichever_way_it_goes() {
    let mut nodes = cluster_of(3).await;
    let presence = nodes[0].dist.presence().clone();
    let device = |name: &str| Metadata::from_iter([("device", name)]);
    let socket = nodes[1].cart(0).await;
    nodes[1].dist.presence().track("room", "ada", &socket, device("phone")).unwrap();
    let held = nodes[2].dist.presence().track_while_held("room", "ada", device("desk")).unwrap();
    // Renewed at once, and for longer: it outlasts its first time.
    let short = Duration::from_secs(2);
    presence.lease("room", "bob", "tab", device("web"), short).unwrap();
    let begun = tokio::time::Instant::now();
    presence.lease("room", "bob", "tab", device("web"), 10 * PATIENCE).unwrap();
    assert_eq!(presence.get("room", "bob").len(), 1, "a writer reads what it wrote");
    until("all three are seen", || presence.count("room") == 3).await;
    assert_eq!(presence.get("room", "ada").len(), 2);
    let keys: Vec<_> = presence.list("room", None, 9).iter().map(|it| it.key.clone()).collect();
    assert_eq!(keys.iter().map(|key| &**key).collect::<Vec<_>>(), ["ada", "ada", "bob"]);
    assert_eq!(presence.topics("r", None, 9), [("room".into(), 3)]);
    let mut watch = presence.watch("room", presence.revision());
    held.update(device("sofa")).unwrap();
    assert_eq!(next(&mut watch).await, "ada n3>n3 updated");
    // A lease that is renewed goes on, one that is not ends by itself.
    tokio::time::sleep_until(begun + 2 * short).await;
    assert_eq!(presence.get("room", "bob").len(), 1);
    presence.lease("room", "bob", "tab", device("web"), Duration::from_millis(100)).unwrap();
    assert_eq!(next(&mut watch).await, "bob n1>- expired");
    assert!(!presence.release("room", "bob", "tab"));
    drop(held);
    assert_eq!(next(&mut watch).await, "ada n3>- unregistered");
    // The node of the last one is killed.
    nodes.remove(1).kill().await;
    assert_eq!(next(&mut watch).await, "ada n2>- node_down");
    assert_eq!((presence.count("room"), presence.topics("", None, 9).len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_is_no_flicker_and_a_handler_that_panics_is_called_again() {
    let mut nodes = cluster_of(2).await;
    let there = nodes[1].dist.presence().clone();
    let (ada, bob) = (
        there.track_while_held("room", "ada", none()).unwrap(),
        there.track_while_held("room", "bob", none()).unwrap(),
    );
    let presence = nodes[0].dist.presence().clone();
    until("both are seen", || presence.count("room") == 2).await;
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let handling = presence.on_diff("room", Duration::from_secs(5), move |diff| {
        let tell = tell.clone();
        async move {
            let names = |entries: Vec<&Arc<Entry>>| {
                entries.iter().map(|entry| entry.key.to_string()).collect::<Vec<_>>().join(" ")
            };
            let said = format!(
                "+{} ~{} -{}",
                names(diff.joins.iter().collect()),
                names(diff.updates.iter().map(|update| &update.now).collect()),
                names(diff.leaves.iter().map(|(left, _)| left).collect()),
            );
            tell.send(said.clone()).unwrap();
            assert!(!said.starts_with("+eve"), "a handler may fail");
        }
    });
    // The other node is drained; ada connects here at once, bob does not.
    nodes[1].cluster.drain(PATIENCE).await;
    until("its presences are gone", || presence.count("room") == 0).await;
    let back = presence.track_while_held("room", "ada", none()).unwrap();
    let mut next = async || tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    assert_eq!(next().await, "+ ~ada -");
    assert_eq!(next().await, "+ ~ -bob");
    let eve = presence.track_while_held("room", "eve", none()).unwrap();
    assert_eq!(next().await, "+eve ~ -");
    drop(eve);
    assert_eq!(next().await, "+ ~ -eve");
    drop(handling);
    drop(back);
    drop((ada, bob));
    nodes.pop().unwrap().kill().await;
}

/// What a client makes of a feed.
#[derive(Default)]
struct Copy {
    rows: BTreeMap<RowKey, Arc<Entry>>,
    pages: usize,
    is_complete: bool,
}

impl Copy {
    fn take(&mut self, fed: Fed) {
        match fed {
            Fed::Page(page) => {
                if page.first {
                    *self = Self::default();
                }
                assert!(!self.is_complete, "a page after the last");
                self.pages += 1;
                self.is_complete = page.last;
                page.entries.into_iter().for_each(|entry| self.put(entry));
            }
            Fed::Diff(diff) => {
                assert!(!diff.missed);
                diff.leaves.iter().for_each(|(left, _)| drop(self.rows.remove(&left.at)));
                for update in diff.updates {
                    self.rows.remove(&update.before.at);
                    self.put(update.now);
                }
                diff.joins.into_iter().for_each(|entry| self.put(entry));
            }
        }
    }

    fn put(&mut self, entry: Arc<Entry>) {
        let known = self.rows.get(&entry.at);
        if known.is_none_or(|known| known.version < entry.version) {
            self.rows.insert(entry.at.clone(), entry);
        }
    }

    fn keys(&self) -> BTreeSet<String> {
        self.rows.values().map(|entry| entry.key.to_string()).collect()
    }

    async fn until(&mut self, feed: &mut Feed, holds: impl Fn(&Self) -> bool) {
        let waited = tokio::time::timeout(PATIENCE, async {
            while !holds(self) {
                self.take(feed.next().await);
            }
        });
        assert!(waited.await.is_ok(), "the copy has {:?}", self.keys());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_is_a_copy_while_others_come_and_go_and_goes_on_where_it_was() {
    let nodes = [
        Node::with("n1", 1, &[], DistConfig { events_max: 64, ..DistConfig::default() }).await,
        Node::start("n2", 1, &[]).await,
    ];
    nodes[1].cluster.wait_for_members(1, PATIENCE).await.unwrap();
    let presence = nodes[0].dist.presence().clone();
    let come = |n: usize| presence.track_while_held("room", &format!("{n:03}"), none()).unwrap();
    let mut there: BTreeMap<usize, _> = (0..50).map(|n| (n * 2, come(n * 2))).collect();
    let options = FeedOptions { page: 10, calm_for: Duration::ZERO };
    let (mut feed, mut copy) = (presence.feed("room", None, options), Copy::default());
    copy.take(feed.next().await);
    // In front of the page, behind it, and on it.
    there.insert(1, come(1));
    there.insert(99, come(99));
    there.remove(&0);
    there.remove(&98);
    there[&2].update(Metadata::from_iter([("mood", "calm")])).unwrap();
    assert_eq!(feed.place(), None, "not all pages have been told");
    let names = |there: &BTreeMap<usize, _>| -> BTreeSet<String> {
        there.keys().map(|n| format!("{n:03}")).collect()
    };
    let whole = names(&there);
    copy.until(&mut feed, |copy| copy.is_complete && copy.keys() == whole).await;
    assert!(copy.pages >= 5 && copy.rows.values().any(|it| it.metadata.get("mood").is_some()));
    // Gone, and back where it was.
    let place = feed.place();
    drop(feed);
    there.remove(&4);
    there.insert(3, come(3));
    let mut feed = presence.feed("room", place, options);
    let (pages, whole) = (copy.pages, names(&there));
    copy.until(&mut feed, |copy| copy.keys() == whole).await;
    assert_eq!(copy.pages, pages, "nothing was sent again");
    // What is no longer remembered is sent again from the first page.
    let place = feed.place();
    drop(feed);
    (200..300).for_each(|n| drop(there.insert(n, come(n))));
    let mut feed = presence.feed("room", place, options);
    let whole = names(&there);
    copy.until(&mut feed, |copy| copy.is_complete && copy.keys() == whole).await;
    assert!(copy.pages >= 15, "{}", copy.pages);
    // A place of another life, which may be ahead, is none.
    let mut feed = presence.feed("room", Some(u64::MAX), options);
    assert!(
        matches!(feed.next().await, Fed::Page(page) if page.first && page.count == there.len())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_the_number_of_a_topic_gets_the_number_and_on_which_nodes() {
    let nodes = cluster_of(2).await;
    let presence = nodes[0].dist.presence().clone();
    let there = nodes[1].dist.presence().clone();
    let held = |n: usize| there.track_while_held("room/1", &format!("{n}"), none()).unwrap();
    let mut others: Vec<_> = (0..3).map(held).collect();
    let here = presence.track_while_held("room/1", "ada", none()).unwrap();
    let elsewhere = presence.track_while_held("street", "bob", none()).unwrap();
    until("all are there", || presence.count("room/1") == 4).await;
    let mut counts = presence.watch_counts("room/", None, Duration::from_millis(1));
    let said = |counted: Counted| -> Vec<String> {
        let nodes = |nodes: Vec<(NodeId, usize)>| {
            let nodes = nodes.into_iter().map(|(node, count)| format!("{}:{count}", node.name));
            nodes.collect::<Vec<_>>().join(" ")
        };
        let topics = counted.topics.into_iter();
        topics.map(|it| format!("{} {} {}", it.topic, it.count, nodes(it.nodes))).collect()
    };
    let first = counts.next().await;
    assert!(first.first && first.last);
    assert_eq!(said(first), ["room/1 4 n1:1 n2:3"]);
    drop(elsewhere);
    others.truncate(1);
    let mut last = Vec::new();
    while last != ["room/1 2 n1:1 n2:1"] {
        last = said(tokio::time::timeout(PATIENCE, counts.next()).await.expect("a count"));
    }
    let place = counts.place();
    drop(counts);
    drop(here);
    drop(others);
    until("nobody is there", || presence.count("room/1") == 0).await;
    let mut counts = presence.watch_counts("room/", place, Duration::ZERO);
    let gone = counts.next().await;
    assert!(!gone.first);
    assert_eq!(said(gone), ["room/1 0 "], "only what changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_key_cannot_use_up_the_place_of_all_others() {
    let config = DistConfig { presences_per_key_max: 2, ..DistConfig::default() };
    let node = Node::with("n1", 1, &[], config).await;
    let presence = node.dist.presence();
    let lease = |key: &str, session: &str| {
        presence.lease("room", key, session, none(), Duration::from_secs(60))
    };
    lease("ada", "a").unwrap();
    lease("ada", "b").unwrap();
    let refused = lease("ada", "c").unwrap_err();
    let expected = DistError::TooManyOfKey { key: "ada".into(), count: 2, max: 2 };
    assert_eq!((&refused, refused.outcome()), (&expected, Outcome::NotDone));
    lease("ada", "a").expect("what is there is renewed");
    lease("bob", "a").expect("another key");
    presence.release("room", "ada", "b");
    lease("ada", "c").expect("there is place again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_readers_of_a_topic_ask_the_database_once() {
    let node = Node::start("n1", 1, &[]).await;
    let presence = node.dist.presence();
    let held: Vec<_> = (0..100)
        .map(|n| presence.track_while_held("room", &format!("user:{n}"), none()).unwrap())
        .collect();
    let asked = Arc::new(AtomicUsize::new(0));
    let counting = Arc::clone(&asked);
    let fetcher =
        presence.fetcher(FetchConfig::default(), move |keys: Vec<Arc<str>>| {
            counting.fetch_add(keys.len(), Ordering::SeqCst);
            async move {
                Ok(keys.into_iter().map(|key| (Arc::clone(&key), key.to_uppercase())).collect())
            }
        });
    let readers = (0..1_000).map(|_| {
        let (fetcher, presence) = (fetcher.clone(), presence.clone());
        tokio::spawn(async move {
            let there = presence.list("room", None, 200);
            fetcher.get(there.iter().map(|entry| Arc::clone(&entry.key))).await.unwrap()
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        let names = reader.await.unwrap();
        assert_eq!((names.len(), names["user:7"].as_str()), (100, "USER:7"));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 100);
    drop(held);
}
