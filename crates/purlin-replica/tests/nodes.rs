//! Replica sets on real transports: TLS over loopback, connections that break, nodes that restart.
#![expect(clippy::unwrap_used, reason = "a test that cannot build its input should fail loudly")]

use std::{
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use purlin_core::{Clock as _, ClusterName, Hlc, Incarnation, NodeId, NodeName, Rng, SystemClock};
use purlin_net::{
    Authority, GossipKeys, ServiceId, TlsIdentity, Transport, TransportConfig, fault::FaultRule,
};
use purlin_replica::{
    Flags, Interest, Kind, Origin, ReplicaConfig, ReplicaSet, StateError, WriteError,
    flag::{Asker, Because, Flag, Rollout},
    flags::Reason,
    replica::StartError,
};

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
    set: ReplicaSet,
}

async fn node(name: &str, incarnation: u64) -> Node {
    node_in(name, incarnation, None).await
}

async fn node_in(name: &str, incarnation: u64, dir: Option<&std::path::Path>) -> Node {
    try_node_in(name, incarnation, dir).await.unwrap()
}

async fn try_node_in(
    name: &str,
    incarnation: u64,
    dir: Option<&std::path::Path>,
) -> Result<Node, StartError> {
    let name = NodeName::parse(name).unwrap();
    let valid = purlin_net::certs::NODE_VALID_FOR;
    let issued = AUTHORITY.issue(&name, SystemClock::new().wall(), valid).unwrap();
    let config = TransportConfig::new(
        cluster_name(),
        NodeId::new(name, Incarnation(incarnation)),
        "127.0.0.1:0".parse::<SocketAddr>().unwrap(),
        TlsIdentity::from_issued(AUTHORITY.certificate_pem(), &issued).unwrap(),
        GossipKeys::parse(&"5a".repeat(32)).unwrap(),
    );
    let transport =
        Transport::bind(config, Arc::new(SystemClock::new()), Rng::from_os()).await.unwrap();
    let hlc = Arc::new(Hlc::new(transport.node()));
    let mut config = ReplicaConfig::new(ServiceId(30), "state");
    config.dir = dir.map(std::path::Path::to_owned);
    let set = ReplicaSet::start(config, &transport, hlc, Rng::from_os())?;
    Ok(Node { transport, set })
}

fn introduce(nodes: &[&Node]) {
    for one in nodes {
        for other in nodes {
            if one.transport.node() != other.transport.node() {
                let (id, addr) = (other.transport.node().clone(), other.transport.local_addr());
                drop(one.transport.add_peer(id, addr).unwrap());
            }
        }
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(60), async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain until {what}");
}

fn value(set: &ReplicaSet, key: &str) -> Option<Bytes> {
    set.get(key.as_bytes())?.register().map(|written| written.value.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_is_read_at_once_here_and_soon_on_every_other_node() {
    let (a, b, c) = (node("a", 1).await, node("b", 1).await, node("c", 1).await);
    introduce(&[&a, &b, &c]);
    a.set.put("cart:1", "apple", None).unwrap();
    assert_eq!(value(&a.set, "cart:1").unwrap(), "apple");
    until("b and c read it", || {
        [&b, &c].iter().all(|n| value(&n.set, "cart:1").is_some_and(|v| v == "apple"))
    })
    .await;
    b.set.add("visits", 5).unwrap();
    c.set.add("visits", -2).unwrap();
    until("all count 3", || {
        [&a, &b, &c].iter().all(|n| n.set.get(b"visits").is_some_and(|cell| cell.count() == 3))
    })
    .await;
    let refused = a.set.put("visits", "five", None).unwrap_err();
    assert!(
        matches!(refused, StateError::Write(WriteError::WrongKind { is: Kind::Counter, .. })),
        "{refused}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_sides_of_a_cut_write_and_nothing_is_lost_after_the_heal() {
    let (a, b) = (node("a", 1).await, node("b", 1).await);
    introduce(&[&a, &b]);
    a.set.put("before", "1", None).unwrap();
    until("they are in touch", || value(&b.set, "before").is_some()).await;
    let mut changes = b.set.watch();
    for (one, other) in [(&a, &b), (&b, &a)] {
        let name = other.transport.node().name.clone();
        one.transport.faults().add(FaultRule::cut(name)).unwrap();
    }
    for n in 0..500 {
        a.set.put(format!("a:{n}"), "x", None).unwrap();
        b.set.insert("members", format!("b:{n}")).unwrap();
    }
    a.set.insert("members", "from a").unwrap();
    a.set.remove("before").unwrap();
    assert!(value(&b.set, "before").is_some(), "the cut holds");
    a.transport.faults().clear();
    b.transport.faults().clear();
    until("all writes are on both sides", || {
        [&a, &b].iter().all(|n| {
            n.set.scan(b"a:", None, 1_000).len() == 500
                && n.set.get(b"members").is_some_and(|cell| cell.elements().count() == 501)
                && value(&n.set, "before").is_none()
        })
    })
    .await;
    let mut told = 0;
    while let Ok(change) = changes.try_recv() {
        told +=
            usize::from(matches!(&change.origin, Origin::Told(node) if node == a.transport.node()));
    }
    assert!(told >= 500, "watchers hear what came from the other side: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newcomer_takes_over_a_large_state_in_pieces() {
    let a = node("a", 1).await;
    for n in 0..20_000 {
        a.set.put(format!("key:{n:05}"), vec![7; 100], None).unwrap();
    }
    for n in 0..1_000 {
        a.set.remove(format!("key:{n:05}")).unwrap();
    }
    let b = node("b", 1).await;
    introduce(&[&a, &b]);
    until("the newcomer has it all", || b.set.status().keys == 19_000).await;
    assert_eq!(b.set.status().counters.entries_pulled, 19_000, "each entry once");
    let page = b.set.scan(b"key:", Some(b"key:10000"), 10);
    assert_eq!(page.len(), 10);
    assert_eq!(page[0].0, "key:10001");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_ephemeral_entry_ends_on_every_node_at_its_time() {
    let (a, b) = (node("a", 1).await, node("b", 1).await);
    introduce(&[&a, &b]);
    a.set.put("session", "x", Some(Duration::from_millis(800))).unwrap();
    until("b sees it", || value(&b.set, "session").is_some()).await;
    until("it ends here", || value(&a.set, "session").is_none()).await;
    until("it ends there", || value(&b.set, "session").is_none()).await;
    until("it is removed for good", || a.set.status().keys == 0 && b.set.status().keys == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conditional_write_fails_when_the_value_was_overwritten() {
    let a = node("a", 1).await;
    let first = a.set.put_if("k", "1", None, None).unwrap();
    let taken = a.set.put_if("k", "2", None, None).unwrap_err();
    assert!(matches!(taken, StateError::Write(WriteError::Overwritten { .. })), "{taken}");
    let second = a.set.put_if("k", "2", None, Some(first)).unwrap();
    assert!(a.set.put_if("k", "3", None, Some(first)).is_err());
    assert!(a.set.put_if("k", "3", None, Some(second)).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_node_gets_its_own_old_writes_back_from_the_others() {
    let (a, b) = (node("a", 1).await, node("b", 1).await);
    introduce(&[&a, &b]);
    a.set.put("mine", "1", None).unwrap();
    until("b has it", || value(&b.set, "mine").is_some()).await;
    a.transport.close();
    drop(a);
    let again = node("a", 2).await;
    introduce(&[&again, &b]);
    until("the new life has it", || value(&again.set, "mine").is_some()).await;
    again.set.put("mine", "2", None).unwrap();
    until("b follows the new life", || value(&b.set, "mine").is_some_and(|v| v == "2")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flag_changed_on_one_node_counts_on_all_with_its_history() {
    let (a, b) = (node("a", 1).await, node("b", 1).await);
    introduce(&[&a, &b]);
    let flags = |n: &Node| {
        let name = n.transport.node().name.clone();
        Flags::new(n.set.clone(), Arc::new(SystemClock::new()), name)
    };
    let (on_a, on_b) = (flags(&a), flags(&b));
    let reason = Reason { who: "ann".into(), why: "launch".into() };
    let flag = Flag { otherwise: Rollout::On, ..Flag::default() };
    on_a.define("checkout/new", flag, &reason).unwrap();
    until("it is on at b", || on_b.evaluate("checkout/new", &Asker::default()).on).await;
    on_b.kill("checkout/new", true, &Reason { who: "bob".into(), why: "errors".into() }).unwrap();
    until("it is killed at a", || {
        on_a.evaluate("checkout/new", &Asker::default()).because == Because::Killed
    })
    .await;
    until("a sees who killed it", || on_a.audit("checkout/new").len() == 2).await;
    assert_eq!(on_a.audit("checkout/new")[0].who, "bob", "the newest first");
    assert_eq!(on_a.list("checkout/", None, 10).len(), 1);
    assert_eq!(on_a.list("", None, 10).len(), 1, "histories are no flags");
    let unknown = on_a.kill("nothing", true, &reason).unwrap_err();
    assert_eq!(unknown.to_string(), "there is no flag \"nothing\"");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_durable_set_comes_back_alone_after_all_nodes_were_gone() {
    let dir = tempfile::tempdir().unwrap();
    let a = node_in("a", 1, Some(dir.path())).await;
    let b = node("b", 1).await;
    introduce(&[&a, &b]);
    a.set.put("here", "1", None).unwrap();
    b.set.put("there", "2", None).unwrap();
    b.set.add("visits", 3).unwrap();
    until("a heard b", || value(&a.set, "there").is_some() && a.set.get(b"visits").is_some()).await;
    // Enough to write the whole state anew behind the changes.
    for n in 0..60_000 {
        a.set.put(format!("hot:{}", n % 50), vec![1; 200], None).unwrap();
    }
    a.set.remove("hot:7").unwrap();
    a.set.persisted().await.unwrap();
    let segments = || std::fs::read_dir(dir.path()).unwrap().count();
    until("old changes are forgotten", || segments() <= 3).await;
    for node in [a, b] {
        node.transport.close();
    }
    let again = node_in("a", 2, Some(dir.path())).await;
    assert_eq!(value(&again.set, "here").unwrap(), "1");
    assert_eq!(value(&again.set, "there").unwrap(), "2");
    assert_eq!(again.set.get(b"visits").unwrap().count(), 3);
    assert_eq!(again.set.scan(b"hot:", None, 100).len(), 49);
    assert_eq!(value(&again.set, "hot:7"), None);
    again.set.put("here", "3", None).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_a_later_release_refuses_the_start_and_names_file_and_version() {
    let dir = tempfile::tempdir().unwrap();
    {
        let config = purlin_store::LogConfig::default();
        let disk = purlin_store::RealDisk::shared();
        let (log, _) = purlin_store::Log::open(disk, dir.path(), config, |_, _| {}).unwrap();
        log.append_later(vec![9, 1, 2]).unwrap().await.unwrap().unwrap();
    }
    let Err(refused) = try_node_in("a", 1, Some(dir.path())).await else { panic!("it started") };
    let text = refused.to_string();
    assert!(text.contains("00000000000000000001.seg: record 1: record of version 9"), "{text}");
    assert!(text.contains("this release reads versions"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_keeps_the_keys_it_is_told_to_and_takes_over_more_when_told_so() {
    let (a, b) = (node("a", 1).await, node("b", 1).await);
    introduce(&[&a, &b]);
    b.set.set_interest(Interest::prefixes(["x:"]).unwrap()).unwrap();
    until("it lets go of the rest", || b.set.status().keeps == b.set.status().wants).await;
    for n in 0..500 {
        a.set.put(format!("x:{n}"), "1", None).unwrap();
        a.set.put(format!("y:{n}"), "1", None).unwrap();
    }
    until("b has its keys", || b.set.status().keys == 500).await;
    assert!(value(&b.set, "y:1").is_none());
    let refused = b.set.put("y:1", "2", None).unwrap_err();
    let outside = matches!(refused, StateError::Write(WriteError::OutsideInterest { .. }));
    assert!(outside, "{refused}");
    a.set.remove("x:7").unwrap();
    b.set.set_interest(Interest::all()).unwrap();
    until("b has all", || b.set.status().keys == 999).await;
    b.set.set_interest(Interest::prefixes(["y:"]).unwrap()).unwrap();
    until("b keeps the others only", || b.set.status().keys == 500).await;
    assert_eq!(a.set.status().keys, 999, "what b dropped is no delete");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_takes_thousands_of_entries_from_two_sides_and_a_catalogue_shows_one_row() {
    let (a, b) = (node("a", 1).await, node("b", 1).await);
    introduce(&[&a, &b]);
    let (here, there) = (a.set.map("cart").unwrap(), b.set.map("cart").unwrap());
    for n in 0..2_500 {
        here.put(format!("a{n:04}"), "1").unwrap();
        there.put(format!("b{n:04}"), "2").unwrap();
    }
    until("both have all", || {
        [&here, &there].iter().all(|map| map.entries(None, 10_000).len() == 5_000)
    })
    .await;
    let page = here.entries(Some(b"a2499"), 2);
    assert_eq!(page.iter().map(|(key, _)| &key[..]).collect::<Vec<_>>(), [b"b0000", b"b0001"]);

    a.set.set("cart-tags").unwrap().insert("new").unwrap();
    a.set.add("cart-visits", 1).unwrap();
    let rows = a.set.catalogue(b"cart", None, 10);
    let names: Vec<&[u8]> = rows.iter().map(|row| &row.name[..]).collect();
    assert_eq!(names, [&b"cart"[..], b"cart-tags", b"cart-visits"]);
    assert_eq!((&rows[0].kinds[..], rows[0].entries), (&[Kind::Map][..], 1_000), "counted so far");
    assert_eq!(a.set.catalogue(b"cart", Some(b"cart"), 1)[0].name, "cart-tags");

    let wrong = a.set.set("cart").unwrap().insert("x").unwrap_err();
    assert!(matches!(wrong, StateError::Write(WriteError::WrongKind { is: Kind::Map, .. })));
    let wrong = a.set.map("cart-visits").unwrap().put("x", "y").unwrap_err();
    assert!(matches!(wrong, StateError::Write(WriteError::WrongKind { is: Kind::Counter, .. })));
    assert!(matches!(a.set.map("a\0b"), Err(StateError::Name)));

    assert!(here.remove("a0000").unwrap() && !here.remove("a0000").unwrap());
    assert_eq!(here.clear().unwrap(), 4_999);
    until("it is empty there too", || there.entries(None, 1).is_empty()).await;
    assert_eq!(a.set.kinds_of(b"cart"), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_takes_the_kind_and_the_version_it_names_and_nothing_else() {
    let a = node("a", 1).await;
    let first = a.set.put("k", "1", None).unwrap();
    let second = a.set.put_if("k", "2", None, Some(first)).unwrap();
    let stale = a.set.remove_if("k", first).unwrap_err();
    assert!(matches!(
        stale,
        StateError::Write(WriteError::Overwritten { is: Some(is), .. }) if is == second
    ));
    let wrong = a.set.remove_kind("k", Kind::Counter).unwrap_err();
    assert!(matches!(wrong, StateError::Write(WriteError::WrongKind { .. })));
    assert!(a.set.remove_if("k", second).unwrap());
    assert!(!a.set.remove_kind("k", Kind::Counter).unwrap());
    assert_eq!(value(&a.set, "k"), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_map_or_set_kept_as_one_is_read_and_removed_by_its_name_like_any_other() {
    let a = node("a", 1).await;
    let (map, tags) = (a.set.map("m").unwrap(), a.set.set("tags").unwrap());
    a.set.put_field("m", "b", "as one").unwrap();
    map.put("a", "apart").unwrap();
    map.put("c", "apart").unwrap();
    let keys = |after: Option<&[u8]>, limit| -> Vec<Bytes> {
        map.entries(after, limit).into_iter().map(|(key, _)| key).collect()
    };
    assert_eq!(keys(None, 10), ["a", "b", "c"]);
    assert_eq!(
        (keys(None, 2), keys(Some(b"a"), 1)),
        (vec!["a".into(), "b".into()], vec!["b".into()])
    );
    assert_eq!(map.get("b").unwrap().value, "as one");
    map.put("b", "later").unwrap();
    assert_eq!(map.get("b").unwrap().value, "later");
    assert!(map.remove("b").unwrap() && map.get("b").is_none());

    a.set.insert("tags", "red").unwrap();
    tags.insert("blue").unwrap();
    assert_eq!(tags.elements(None, 10), ["blue", "red"]);
    assert!(tags.contains("red") && tags.remove("red").unwrap() && !tags.contains("red"));
    a.set.insert("tags", "red").unwrap();
    assert_eq!(a.set.catalogue(b"tags", None, 10)[0].kinds, [Kind::Set]);
    assert_eq!((tags.clear().unwrap(), tags.elements(None, 1).len()), (2, 0));
}
