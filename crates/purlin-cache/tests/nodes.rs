//! Caches of real nodes in one process: TLS over loopback, drains, kills and cuts.
#![expect(clippy::unwrap_used, reason = "a broken fixture is a failed test")]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    num::NonZeroUsize,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::{BoxFuture, join_all};
use purlin_cache::{
    Cache, CacheConfig, CacheError, CacheEvent, Caches, LoadError, RawCache, cache::Ttl,
};
use purlin_cluster::{
    Cluster, ClusterConfig, MembersRpc, Meta, Phase, State,
    discovery::{Discovery, DiscoveryError},
};
use purlin_core::{
    Clock, ClusterName, Hlc, Incarnation, NodeId, NodeName, Outcome, Rng, SystemClock,
};
use purlin_net::{
    Authority, FaultRule, GossipKeys, TlsIdentity, Transport, TransportConfig,
    certs::NODE_VALID_FOR, rpc::Rpc,
};
use purlin_replica::{ReplicaConfig, ReplicaSet, replica};
use tokio::{sync::Notify, time::Instant};

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
    caches: Caches,
}

impl Node {
    async fn start(text: &str, life: u64, seeds: &[SocketAddr]) -> Self {
        let name = NodeName::parse(text).unwrap();
        let issued = AUTHORITY.issue(&name, SystemClock::new().wall(), NODE_VALID_FOR).unwrap();
        let tls = TlsIdentity::from_issued(AUTHORITY.certificate_pem(), &issued).unwrap();
        let config = TransportConfig::new(
            cluster_name(),
            NodeId::new(name, Incarnation(life)),
            "127.0.0.1:0".parse().unwrap(),
            tls,
            GossipKeys::parse(&"5a".repeat(32)).unwrap(),
        );
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let transport = Transport::bind(config, Arc::clone(&clock), Rng::from_os()).await.unwrap();
        let rpc = Rpc::new(&transport);
        let meta = Meta::new(transport.advertise());
        let seeds = Box::new(Seeds(Some(seeds.iter().copied().collect())));
        let cluster =
            Cluster::start(ClusterConfig::new(meta), transport.clone(), seeds, Rng::from_os())
                .unwrap();
        let hlc = Arc::new(Hlc::new(transport.node()));
        let config = ReplicaConfig::new(replica::CACHES, "caches");
        let state =
            ReplicaSet::start(config, &transport, Arc::clone(&hlc), Rng::from_os()).unwrap();
        let rpc = MembersRpc::new(cluster.clone(), transport.clone(), rpc);
        let caches =
            Caches::start(cluster.clone(), rpc, state, hlc, clock, Rng::from_os()).unwrap();
        Self { transport, cluster, caches }
    }

    fn name(&self) -> NodeName {
        self.transport.node().name.clone()
    }

    fn open(&self, config: &CacheConfig) -> RawCache {
        self.caches.open_raw("cart", config.clone()).unwrap()
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
        until("its caches know", || node.caches.hosts().len() == nodes.len()).await;
    }
    // One after another: of two connections that both sides make at once, one is given up.
    for node in nodes {
        let talk = async {
            while node.caches.stats_everywhere(PATIENCE).await.iter().any(|(_, end)| end.is_err()) {
            }
        };
        tokio::time::timeout(PATIENCE, talk).await.expect("everybody answers");
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

fn key(n: usize) -> String {
    format!("user:{n}")
}

/// Partitioned, and no operation is given up because this machine is busy.
fn patient() -> CacheConfig {
    CacheConfig { within: PATIENCE, ..CacheConfig::partitioned() }
}

fn copies(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).unwrap()
}

/// Reads until something is found, or nothing is.
async fn reads(cache: &RawCache, key: &str, is_found: bool, what: &str) {
    let read = async {
        while cache.get(key).await.unwrap().is_some() != is_found {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, read).await.is_ok(), "never: {what}");
}

async fn missing(cache: &RawCache, keys: usize) -> Vec<usize> {
    let names: Vec<String> = (0..keys).map(key).collect();
    let mut missing = Vec::new();
    for (chunk, names) in names.chunks(100).enumerate() {
        let found = cache.get_all(names).await.unwrap();
        missing.extend((0..).zip(found).filter(|(_, v)| v.is_none()).map(|(n, _)| chunk * 100 + n));
    }
    missing
}

async fn fill(nodes: &[Node], config: &CacheConfig, keys: usize) {
    let caches: Vec<_> = nodes.iter().map(|node| node.open(config)).collect();
    let names: Vec<String> = (0..keys).map(key).collect();
    for names in names.chunks(64) {
        let puts = names.iter().zip(caches.iter().cycle());
        for end in join_all(puts.map(|(k, c)| c.put(k, k.clone(), Ttl::Usual))).await {
            end.unwrap();
        }
    }
}

/// With one copy of everything there is nobody to restore it from: only the handing over counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_by_drain_loses_no_entry_even_without_replicas() {
    const KEYS: usize = 2_000;
    let config = patient().replicas(copies(1));
    let mut nodes = cluster_of(3).await;
    fill(&nodes, &config, KEYS).await;
    let (mut reads, mut hits) = (0, 0);
    for round in 0..3 {
        let leaver = nodes.remove(0);
        let name = leaver.name();
        let progress = leaver.cluster.drain(PATIENCE).await;
        assert_eq!(progress.phase, Phase::Left);
        assert!(progress.problems.is_empty(), "{progress:?}");
        leaver.cluster.stop().await;
        leaver.transport.close();
        let lost = missing(&nodes[0].open(&config), KEYS).await;
        (reads, hits) = (reads + KEYS, hits + KEYS - lost.len());
        assert!(lost.is_empty(), "round {round}: {} entries lost: {lost:?}", lost.len());
        let seed = nodes[0].transport.local_addr();
        nodes.push(Node::start(name.as_str(), round + 2, &[seed]).await);
        all_see(&nodes).await;
        for node in &nodes {
            let lost = missing(&node.open(&config), KEYS).await;
            (reads, hits) = (reads + KEYS, hits + KEYS - lost.len());
            let who = node.name();
            assert!(lost.is_empty(), "round {round}, seen by {who}: {} lost", lost.len());
        }
    }
    println!("{hits} of {reads} reads during and after the deploy were hits");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_one_of_three_loses_none_of_two_copies_and_both_are_restored() {
    const KEYS: usize = 1_500;
    let config = patient();
    let mut nodes = cluster_of(3).await;
    fill(&nodes, &config, KEYS).await;
    let held = |nodes: &[Node]| -> u64 {
        nodes.iter().map(|node| node.caches.get("cart").map_or(0, |c| c.stats().entries)).sum()
    };
    // Nodes that learned of each other while the entries came have strays for a while.
    until("there are two copies", || held(&nodes) == 2 * KEYS as u64).await;
    let killed = nodes.remove(1);
    let name = killed.name();
    killed.kill().await;
    let lost = missing(&nodes[0].open(&config), KEYS).await;
    assert!(lost.is_empty(), "lost at once: {}", lost.len());
    until("the kill is noticed", || {
        nodes.iter().all(|n| n.cluster.member(&name).is_none_or(|m| m.state == State::Down))
    })
    .await;
    until("there are two copies again", || held(&nodes) == 2 * KEYS as u64).await;
    for node in &nodes {
        assert!(missing(&node.open(&config), KEYS).await.is_empty());
    }
    // And writes go on.
    nodes[0].open(&config).put("after", "x", Ttl::Usual).await.unwrap();
    assert!(nodes[1].open(&config).get("after").await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partitioned_cache_is_one_cache_for_all_nodes() {
    let nodes = cluster_of(3).await;
    let config = patient();
    let caches: Vec<_> = nodes.iter().map(|node| node.open(&config)).collect();
    for n in 0..30 {
        let wins = join_all(caches.iter().map(|c| c.put_new(key(n), "first", Ttl::Usual))).await;
        let wins = wins.into_iter().filter(|won| *won.as_ref().unwrap()).count();
        assert_eq!(wins, 1, "one of three puts the new value of {}", key(n));
        assert!(caches[n % 3].replace(key(n), "second", Ttl::Usual).await.unwrap());
        assert_eq!(caches[(n + 1) % 3].get(key(n)).await.unwrap().unwrap(), "second");
        let taken = join_all(caches.iter().map(|cache| cache.take(key(n)))).await;
        let taken = taken.into_iter().filter(|taken| taken.as_ref().unwrap().is_some()).count();
        assert_eq!(taken, 1, "one of three takes {}", key(n));
        assert!(!caches[n % 3].replace(key(n), "x", Ttl::Usual).await.unwrap());
        assert!(caches[n % 3].get(key(n)).await.unwrap().is_none());
    }
    caches[0].put("short", "x", Duration::from_millis(300)).await.unwrap();
    let left = caches[1].ttl("short").await.unwrap().flatten();
    assert!(left.is_none_or(|left| left <= Duration::from_millis(300)), "{left:?}");
    assert!(caches[0].put("long", "x", Ttl::Unlimited).await.is_ok());
    assert!(caches[2].touch("long", Duration::from_secs(100)).await.unwrap());
    let left = caches[1].ttl("long").await.unwrap().flatten().unwrap();
    assert!(left > Duration::from_secs(50) && left <= Duration::from_secs(100), "{left:?}");
    caches[0].remove("long").await.unwrap();
    assert!(caches[1].get("long").await.unwrap().is_none());
    fill(&nodes, &config, 50).await;
    caches[1].clear().await.unwrap();
    assert_eq!(missing(&caches[0], 50).await.len(), 50, "cleared everywhere");
    caches[2].put("later", "x", Ttl::Usual).await.unwrap();
    assert!(caches[0].get("later").await.unwrap().is_some(), "a cleared cache takes new values");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn additions_of_all_nodes_add_up_and_what_is_no_number_stays() {
    let nodes = cluster_of(3).await;
    let caches: Vec<_> = nodes.iter().map(|node| node.open(&patient())).collect();
    let each = |cache: &RawCache| {
        let cache = cache.clone();
        async move {
            for _ in 0..50 {
                cache.incr("visits", 2, Ttl::Usual).await.unwrap();
            }
        }
    };
    join_all(caches.iter().map(each)).await;
    assert_eq!(caches[1].incr("visits", -300, Ttl::Usual).await.unwrap(), 0);
    caches[0].put("name", "Ada", Ttl::Usual).await.unwrap();
    let refused = caches[2].incr("name", 1, Ttl::Usual).await.unwrap_err();
    assert_eq!(refused, CacheError::NotANumber { bytes: 3 });
    caches[0].put("most", i64::MAX.to_string(), Ttl::Usual).await.unwrap();
    let refused = caches[1].incr("most", 1, Ttl::Usual).await.unwrap_err();
    assert_eq!(refused, CacheError::Overflow { number: i64::MAX, by: 1 });
    assert_eq!(refused.outcome(), Outcome::NotDone);
    assert_eq!(caches[0].get("name").await.unwrap().unwrap(), "Ada");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_in_front_is_read_here_and_never_serves_the_past_beyond_its_lease() {
    const LEASE: Duration = Duration::from_millis(800);
    let nodes = cluster_of(3).await;
    let config = CacheConfig { lease: LEASE, ..CacheConfig::partitioned().replicas(copies(1)) };
    let config = config.near_bytes_max(4 << 20);
    let caches: Vec<_> = nodes.iter().map(|node| node.open(&config)).collect();
    // A key that the reader does not hold and neither does the writer.
    let (reader, writer) = (&caches[0], &caches[1]);
    let mut held_by_third = None;
    for n in 0..200 {
        let (before, key) = (caches[2].stats().entries, key(n));
        writer.put(&key, "1", Ttl::Usual).await.unwrap();
        if caches[2].stats().entries > before {
            held_by_third = Some(key);
            break;
        }
    }
    let key = held_by_third.expect("one key in three is the third's");
    assert_eq!(reader.get(&key).await.unwrap().unwrap(), "1");
    let served = || reader.stats().near_hits;
    let first = served();
    let copied = async {
        while served() == first {
            assert!(reader.get(&key).await.unwrap().is_some());
        }
    };
    tokio::time::timeout(PATIENCE, copied).await.expect("a second read is served here");

    writer.put(&key, "2", Ttl::Usual).await.unwrap();
    // When it was asked counts, not when the answer was looked at.
    let within_its_lease = async |written: Instant, now: &str| {
        loop {
            let asked = written.elapsed();
            if reader.get(&key).await.unwrap().unwrap() == now {
                break;
            }
            assert!(asked <= LEASE, "the past {asked:?} after {now} was written");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    within_its_lease(Instant::now(), "2").await;
    assert_eq!(writer.incr(&key, 40, Ttl::Usual).await.unwrap(), 42);
    within_its_lease(Instant::now(), "42").await;
    writer.put(&key, "3", Ttl::Usual).await.unwrap();
    assert_eq!(writer.get(&key).await.unwrap().unwrap(), "3", "who wrote reads what it wrote");
    reader.put(&key, "4", Ttl::Usual).await.unwrap();
    assert_eq!(reader.get(&key).await.unwrap().unwrap(), "4", "who wrote reads what it wrote");

    // Nothing gets through between the reader and the node that holds the key.
    for (one, other) in [(&nodes[0], &nodes[2]), (&nodes[2], &nodes[0])] {
        one.transport.faults().add(FaultRule::cut(other.name())).unwrap();
    }
    writer.put(&key, "5", Ttl::Usual).await.unwrap();
    let written = Instant::now();
    let mut last_stale = Duration::ZERO;
    while written.elapsed() < LEASE * 2 {
        let asked = written.elapsed();
        let read = tokio::time::timeout(Duration::from_millis(20), reader.get(&key)).await;
        if let Ok(Ok(Some(value))) = read
            && value == "4"
        {
            last_stale = asked;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(last_stale <= LEASE, "stale for {last_stale:?}, lease {LEASE:?}");
    for node in &nodes {
        node.transport.faults().clear();
    }
    let healed = async {
        while reader.get(&key).await.ok().flatten().is_none_or(|value| value != "5") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, healed).await.expect("the heal brings the later value");
    caches[2].clear().await.unwrap();
    reads(reader, &key, false, "a clear ends the copies").await;
}

/// Level 0: the program that later runs in a cluster runs alone.
#[tokio::test]
async fn every_kind_of_cache_works_on_a_node_that_stands_alone() {
    let me = NodeId::new(NodeName::parse("n1").unwrap(), Incarnation(1));
    let (hlc, clock) = (Arc::new(Hlc::new(&me)), Arc::new(SystemClock::new()));
    let caches = Caches::on_one_node(me.clone(), hlc, clock, Rng::from_seed(1));
    for (name, config) in [
        ("local", CacheConfig::local()),
        ("near", CacheConfig::near()),
        ("partitioned", CacheConfig::partitioned()),
        ("copied", CacheConfig::partitioned().near_bytes_max(2 << 20)),
        ("replicated", CacheConfig::replicated()),
    ] {
        let cache = caches.open_raw(name, config).unwrap();
        let mut events = cache.watch();
        cache.put("k", "v", Ttl::Usual).await.unwrap();
        assert_eq!(cache.get("k").await.unwrap().unwrap(), "v", "{name}");
        assert!(!cache.put_new("k", "w", Ttl::Usual).await.unwrap());
        assert!(cache.touch("k", Duration::from_secs(5)).await.unwrap());
        assert!(cache.ttl("k").await.unwrap().flatten().unwrap() <= Duration::from_secs(5));
        assert_eq!(cache.take("k").await.unwrap().unwrap(), "v");
        assert_eq!(cache.get("k").await.unwrap(), None);
        assert_eq!(events.recv().await.unwrap(), CacheEvent::Hit("k".into()));
        assert_eq!(events.recv().await.unwrap(), CacheEvent::Miss("k".into()));
        assert_eq!(cache.incr("n", 3, Ttl::Usual).await.unwrap(), 3);
        let load = || async { Ok::<_, String>(Some(Bytes::from_static(b"loaded"))) };
        assert_eq!(cache.get_or_load("l", load).await.unwrap().unwrap(), "loaded");
        cache.remove("l").await.unwrap();
        cache.clear().await.unwrap();
        assert_eq!(cache.get("n").await.unwrap(), None, "{name}");
        assert_eq!(cache.stats().hit_rate(), Some(1.0 / 4.0), "{name}: {:?}", cache.stats());
    }
    let everywhere = caches.stats_everywhere(PATIENCE).await;
    assert_eq!((everywhere.len(), &everywhere[0].0), (1, &me));
    assert_eq!(everywhere[0].1.as_ref().unwrap().len(), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_near_cache_never_serves_the_past_beyond_its_lease_whatever_is_cut() {
    const LEASE: Duration = Duration::from_millis(1_500);
    let nodes = cluster_of(2).await;
    let config = CacheConfig { lease: LEASE, ..CacheConfig::near() };
    let (writer, reader) = (nodes[0].open(&config), nodes[1].open(&config));
    reader.put("price", "1", Ttl::Usual).await.unwrap();
    reader.put("other", "1", Ttl::Usual).await.unwrap();
    // Then what is here is no longer trusted for its youth alone.
    tokio::time::sleep(LEASE).await;
    reads(&reader, "price", true, "trusted while all writers are heard").await;

    // Connected, a write is told before a lease is over; a busy machine may be late for it, not
    // again and again.
    let mut took = Vec::new();
    while took.iter().all(|took| *took >= LEASE) {
        assert!(took.len() < 10, "never told, only distrusted: {took:?}");
        reader.put("price", "1", Ttl::Usual).await.unwrap();
        writer.put("price", "2", Ttl::Usual).await.unwrap();
        let told = Instant::now();
        reads(&reader, "price", false, "a write is heard of").await;
        took.push(told.elapsed());
    }

    reader.put("price", "3", Ttl::Usual).await.unwrap();
    tokio::time::sleep(LEASE).await;
    reads(&reader, "price", true, "trusted while all writers are heard").await;
    for (one, other) in [(&nodes[0], &nodes[1]), (&nodes[1], &nodes[0])] {
        one.transport.faults().add(FaultRule::cut(other.name())).unwrap();
    }
    writer.put("price", "4", Ttl::Usual).await.unwrap();
    let written = Instant::now();
    let mut last_stale = Duration::ZERO;
    // Far beyond the time in which each side declares the other down.
    while written.elapsed() < LEASE * 4 {
        // When it was asked counts, not when the answer was looked at.
        let asked = written.elapsed();
        if reader.get("price").await.unwrap().is_some() {
            last_stale = asked;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(last_stale <= LEASE, "stale for {last_stale:?}, lease {LEASE:?}");
    assert!(reader.stats().distrusted > 0);
    // What is loaded during the cut is given out for a lease, too.
    let fresh = async {
        loop {
            reader.put("fresh", "1", Ttl::Usual).await.unwrap();
            if reader.get("fresh").await.unwrap().is_some() {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, fresh).await.expect("a young value is given out");

    for node in &nodes {
        node.transport.faults().clear();
    }
    reads(&reader, "other", true, "what nobody wrote is trusted again").await;
    assert!(reader.get("price").await.unwrap().is_none(), "the missed write was heard of");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_writer_costs_a_near_cache_nothing_and_a_killed_one_all_of_it() {
    const LEASE: Duration = Duration::from_millis(400);
    let mut nodes = cluster_of(3).await;
    let config = CacheConfig { lease: LEASE, ..CacheConfig::near() };
    let reader = nodes[0].open(&config);
    let writer = nodes[2].open(&config);
    reader.put("a", "1", Ttl::Usual).await.unwrap();
    writer.put("b", "1", Ttl::Usual).await.unwrap();
    // No longer trusted for its youth alone, so everybody has been heard.
    tokio::time::sleep(LEASE).await;
    reads(&reader, "a", true, "everybody is heard").await;
    let leaver = nodes.pop().unwrap();
    let progress = leaver.cluster.drain(PATIENCE).await;
    assert!(progress.problems.is_empty(), "{progress:?}");
    let refused = writer.put("b", "2", Ttl::Usual).await.unwrap_err();
    assert_eq!(refused.outcome(), Outcome::NotDone, "{refused}");
    leaver.kill().await;
    tokio::time::sleep(LEASE).await;
    reads(&reader, "a", true, "a drain costs no entry").await;
    let killed = nodes.pop().unwrap();
    let name = killed.name();
    killed.kill().await;
    until("the kill is noticed", || {
        nodes[0].cluster.member(&name).is_none_or(|member| member.state == State::Down)
    })
    .await;
    reads(&reader, "a", false, "its last writes may be unknown").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicated_cache_is_everywhere_and_within_its_budget_on_every_node() {
    let nodes = cluster_of(3).await;
    let config = CacheConfig { value_bytes_max: 4_000, ..CacheConfig::replicated() };
    let config = config.bytes_max(100_000);
    let caches: Vec<_> = nodes.iter().map(|node| node.open(&config)).collect();
    caches[0].put("a", "1", Ttl::Usual).await.unwrap();
    for cache in &caches {
        reads(cache, "a", true, "it is everywhere").await;
    }
    for n in 0..300 {
        caches[n % 3].put(key(n), vec![7; 1_000], Ttl::Usual).await.unwrap();
        // What others write arrives whenever it does, and room is made then.
        until("room was made", || caches[n % 3].stats().bytes <= 100_000).await;
    }
    until("all nodes are within the budget and agree", || {
        let all: Vec<_> = caches.iter().map(RawCache::stats).collect();
        all.iter().all(|stats| stats.bytes <= 100_000 && stats.entries == all[0].entries)
    })
    .await;
    let stats = caches[0].stats();
    assert!(stats.entries > 60, "the budget is used: {stats:?}");
    // Equal counts do not mean equal entries yet.
    for cache in &caches {
        reads(cache, &key(299), true, "the latest stay").await;
        reads(cache, "a", false, "the oldest left").await;
    }
    assert!(!caches[1].put_new(key(299), "x", Ttl::Usual).await.unwrap());
    assert!(caches[2].take(key(299)).await.unwrap().is_some());
    assert!(caches[2].get(key(299)).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_load_serves_all_who_wait_and_its_failures_reach_all_of_them() {
    let node = Node::start("n1", 1, &[]).await;
    for config in [
        CacheConfig::local(),
        CacheConfig::near(),
        CacheConfig::partitioned(),
        CacheConfig::replicated(),
    ] {
        let name = format!("{:?}", config.kind);
        let cache: Cache<String> = node.caches.open(&name, config).unwrap();
        let loads = Arc::new(AtomicUsize::new(0));
        let go = Arc::new(Notify::new());
        let load = |key: &'static str, end: fn() -> Result<Option<String>, String>| {
            let (cache, loads, go) = (cache.clone(), Arc::clone(&loads), Arc::clone(&go));
            tokio::spawn(async move {
                let loader = move || async move {
                    loads.fetch_add(1, Ordering::SeqCst);
                    go.notified().await;
                    end()
                };
                cache.get_or_load(key, loader).await
            })
        };
        let first = load("k", || Ok(Some("found".into())));
        until("the load runs", || loads.load(Ordering::SeqCst) == 1).await;
        let others: Vec<_> = (0..20).map(|_| load("k", || Ok(Some("twice".into())))).collect();
        until("the others wait", || cache.stats().loads_shared == 20).await;
        // Who came first gives up: the load goes on.
        first.abort();
        go.notify_one();
        for other in others {
            assert_eq!(other.await.unwrap().unwrap().unwrap(), "found", "{name}");
        }
        assert_eq!(loads.load(Ordering::SeqCst), 1, "{name}");
        assert_eq!(cache.get("k").await.unwrap().unwrap(), "found", "{name}");

        for (key, end) in [
            ("fails", (|| Err("no database".into())) as fn() -> Result<Option<String>, String>),
            ("panics", || panic!("no sense")),
        ] {
            let before = (loads.load(Ordering::SeqCst), cache.stats().loads_shared);
            let first = load(key, end);
            until("the load runs", || loads.load(Ordering::SeqCst) == before.0 + 1).await;
            let other = load(key, end);
            until("the other waits", || cache.stats().loads_shared == before.1 + 1).await;
            go.notify_one();
            for waiter in [first, other] {
                let error = waiter.await.unwrap().unwrap_err();
                match key {
                    "fails" => assert!(matches!(&error, LoadError::Failed(_)), "{error}"),
                    _ => assert_eq!(error.to_string(), "loader panicked: no sense"),
                }
            }
            assert!(cache.get(key).await.unwrap().is_none(), "{name}: a failure is not kept");
        }

        // What is removed while its load runs does not come back with it.
        let running = loads.load(Ordering::SeqCst);
        let loading = load("gone", || Ok(Some("past".into())));
        until("the load runs", || loads.load(Ordering::SeqCst) == running + 1).await;
        cache.put("gone", &"present".into()).await.unwrap();
        cache.remove("gone").await.unwrap();
        go.notify_one();
        assert_eq!(loading.await.unwrap().unwrap().unwrap(), "past", "its waiter gets it");
        assert!(cache.get("gone").await.unwrap().is_none(), "{name}: the cache does not");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_value_is_given_out_while_one_task_loads_it_anew() {
    let node = Node::start("n1", 1, &[]).await;
    let config = CacheConfig {
        stale_for: Duration::from_secs(60),
        absent_for: Some(Duration::from_secs(60)),
        ..CacheConfig::local().ttl(Duration::from_millis(50))
    };
    let cache: Cache<u32> = node.caches.open("prices", config).unwrap();
    cache.put("k", &1).await.unwrap();
    tokio::time::sleep(Duration::from_millis(60)).await;
    assert_eq!(cache.get("k").await.unwrap(), None, "past its TTL it is not simply read");
    let load = |value| move || async move { Ok::<_, String>(value) };
    assert_eq!(cache.get_or_load("k", load(Some(2))).await.unwrap(), Some(1), "the old one now");
    until("it was loaded anew", || cache.stats().loads == 1).await;
    let renewed = async {
        while cache.get_or_load("k", load(Some(3))).await.unwrap() == Some(1) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, renewed).await.expect("the new one later");
    assert!(cache.stats().stale_hits >= 1);
    assert_eq!(cache.get_or_load("none", load(None)).await.unwrap(), None);
    let again = || async { Err("it is not loaded again".to_owned()) };
    assert_eq!(cache.get_or_load("none", again).await.unwrap(), None, "remembered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_out_of_bounds_is_refused_with_its_bound_and_counted() {
    let node = Node::start("n1", 1, &[]).await;
    let config = CacheConfig { value_bytes_max: 1_000, ..CacheConfig::local() };
    let config = config.bytes_max(50_000);
    let cache = node.open(&config);
    let refused = cache.put("k", vec![0; 1_001], Ttl::Usual).await.unwrap_err();
    assert_eq!(refused.to_string(), "value of 1001 bytes exceeds limit 1000");
    assert_eq!(refused.outcome(), Outcome::NotDone);
    assert!(matches!(cache.get("").await.unwrap_err(), CacheError::Key(0)));
    assert!(cache.put("k".repeat(2_000), "x", Ttl::Usual).await.is_err());
    for n in 0..500 {
        cache.put(key(n), vec![0; 900], Ttl::Usual).await.unwrap();
    }
    let stats = cache.stats();
    assert!(stats.bytes <= 50_000 && stats.evictions > 400, "{stats:?}");
    assert_eq!(stats.refused_too_large, 1);
    let other = node.caches.open_raw("cart", CacheConfig::near()).unwrap_err();
    assert_eq!(other, CacheError::Differs("cart".into()));
    assert!(matches!(node.caches.open_raw("a/b", config).unwrap_err(), CacheError::Name(_)));
    let odd = CacheConfig::local().bytes_max(10);
    assert!(matches!(node.caches.open_raw("odd", odd).unwrap_err(), CacheError::Config(_)));
    // A value of an earlier release that this one cannot read is a miss, not an error.
    let words: Cache<String> = node.caches.get("cart").unwrap().typed();
    words.raw().put("w", Bytes::from_static(b"{"), Ttl::Usual).await.unwrap();
    assert_eq!(words.get("w").await.unwrap(), None);
    assert_eq!(words.stats().undecodable, 1);
}
