//! What placement promises, over random memberships and keys.
#![expect(clippy::unwrap_used, reason = "a test that cannot build its input should fail loudly")]

use std::{collections::BTreeMap, num::NonZeroUsize};

use proptest::prelude::*;
use purlin_ring::{Bucket, KeyHash, MovePlan, Ring, RingError, key_hash, rank};

fn names(count: usize) -> Vec<Bucket<String>> {
    (0..count).map(|n| Bucket::new(format!("n{n}"))).collect()
}

fn keys(count: u32) -> Vec<(u32, KeyHash)> {
    (0..count).map(|n| (n, key_hash(format!("key:{n}").as_bytes()))).collect()
}

fn replicas(count: usize) -> NonZeroUsize {
    NonZeroUsize::new(count).unwrap()
}

fn spread_over(ring: &Ring<String>, count: u32) -> BTreeMap<String, usize> {
    let mut held = BTreeMap::new();
    for (_, hash) in keys(count) {
        *held.entry(ring.owner(hash).unwrap().node.clone()).or_insert(0) += 1;
    }
    held
}

#[test]
fn owners_are_the_same_on_every_release() {
    let ring = Ring::new(names(5)).unwrap();
    let owners: Vec<&str> = ["", "a", "b", "user:1", "user:2", "cart:42", "purlin"]
        .iter()
        .map(|key| ring.owner(key_hash(key.as_bytes())).unwrap().node.as_str())
        .collect();
    assert_eq!(owners, ["n0", "n4", "n1", "n1", "n0", "n3", "n2"]);
    let nodes = names(5);
    let ranked: Vec<&str> =
        rank(key_hash(b"cart:42"), &nodes, 5).iter().map(|bucket| bucket.node.as_str()).collect();
    assert_eq!(ranked, ["n0", "n3", "n1", "n2", "n4"]);
}

#[test]
fn ten_equal_nodes_share_within_a_quarter() {
    let held = spread_over(&Ring::new(names(10)).unwrap(), 100_000);
    assert!(held.values().all(|&count| (7_500..12_500).contains(&count)), "{held:?}");
}

#[test]
fn a_node_of_double_weight_takes_double() {
    let mut nodes = names(4);
    nodes[0].weight = 2;
    nodes[3].weight = 0;
    let held = spread_over(&Ring::with_virtual_nodes(nodes, 512).unwrap(), 100_000);
    assert!((45_000..55_000).contains(&held["n0"]), "{held:?}");
    assert_eq!(held.get("n3"), None, "no weight, no keys");
}

#[test]
fn a_ring_without_weight_owns_nothing() {
    let ring = Ring::<String>::new(vec![]).unwrap();
    assert_eq!(ring.owner(KeyHash(7)), None);
    assert!(ring.owners(KeyHash(7), replicas(3)).is_empty());
}

#[test]
fn a_ring_refuses_twins_and_absurd_weights() {
    let twins = vec![Bucket::new("a"), Bucket::new("a")];
    assert_eq!(Ring::new(twins).unwrap_err(), RingError::Twice("a".into()));
    let heavy = vec![Bucket { node: "a", weight: u32::MAX, zone: None }];
    assert!(matches!(Ring::new(heavy), Err(RingError::TooManyPoints { .. })));
}

#[test]
fn one_node_more_moves_about_its_share_and_only_to_it() {
    let (before, after) = (Ring::new(names(10)).unwrap(), Ring::new(names(11)).unwrap());
    let plan = MovePlan::between(&before, &after, keys(100_000), replicas(1));
    assert!((6_000..12_500).contains(&plan.moves.len()), "{}", plan.moves.len());
    assert!(plan.moves.iter().all(|one| one.to == ["n10"]));
    assert_eq!(plan.moves.len() + plan.staying, 100_000);
}

#[test]
fn bounded_loads_are_never_exceeded_and_lose_no_key() {
    let ring = Ring::new(names(7)).unwrap();
    let mut held: BTreeMap<String, u64> = BTreeMap::new();
    for (total, (_, hash)) in (0..).zip(keys(7_000)) {
        let owner = ring
            .owner_bounded(hash, total, 10, |node| held.get(node).copied().unwrap_or(0))
            .unwrap();
        *held.entry(owner.node.clone()).or_insert(0) += 1;
    }
    assert_eq!(held.values().sum::<u64>(), 7_000);
    assert!(held.values().all(|&count| count <= 1_100), "{held:?}");
}

proptest! {
    #[test]
    fn nobody_who_stays_trades_keys_with_another_who_stays(
        before in prop::collection::btree_set(0..12_u8, 1..8),
        after in prop::collection::btree_set(0..12_u8, 1..8),
    ) {
        let ring = |members: &std::collections::BTreeSet<u8>| {
            Ring::with_virtual_nodes(members.iter().map(|n| Bucket::new(format!("n{n}"))).collect(), 32).unwrap()
        };
        let plan = MovePlan::between(&ring(&before), &ring(&after), keys(500), replicas(1));
        let has = |members: &std::collections::BTreeSet<u8>, node: &String| {
            members.iter().any(|n| format!("n{n}") == *node)
        };
        for one in &plan.moves {
            prop_assert!(!has(&after, &one.from[0]) || !has(&before, &one.to[0]), "{:?}", one);
        }
    }

    #[test]
    fn replicas_are_distinct_and_use_every_zone_there_is(count in 1..9_usize, zones in 1..4_usize, wanted in 1..6_usize, key: u64) {
        let nodes: Vec<_> = names(count).into_iter().enumerate()
            .map(|(n, bucket)| Bucket { zone: Some(format!("z{}", n % zones)), ..bucket })
            .collect();
        let ring = Ring::with_virtual_nodes(nodes.clone(), 32).unwrap();
        for chosen in [ring.owners(KeyHash(key), replicas(wanted)), rank(KeyHash(key), &nodes, wanted)] {
            prop_assert_eq!(chosen.len(), wanted.min(count));
            let names: std::collections::BTreeSet<_> = chosen.iter().map(|one| &one.node).collect();
            prop_assert_eq!(names.len(), chosen.len(), "distinct");
            let used: std::collections::BTreeSet<_> = chosen.iter().map(|one| &one.zone).collect();
            prop_assert_eq!(used.len(), wanted.min(zones).min(count), "zones");
        }
        prop_assert_eq!(ring.owners(KeyHash(key), replicas(1))[0], ring.owner(KeyHash(key)).unwrap());
    }

    #[test]
    fn the_owner_is_the_first_point_not_below_the_key(count in 1..20_usize, key: u64) {
        // Against the definition: the index must not change what a plain search finds.
        let ring = Ring::with_virtual_nodes(names(count), 16).unwrap();
        let same = Ring::with_virtual_nodes(names(count).into_iter().rev().collect(), 16).unwrap();
        prop_assert_eq!(ring.owner(KeyHash(key)), same.owner(KeyHash(key)), "order of members");
        let edge = [0, u64::MAX, key, key.wrapping_add(1)];
        for hash in edge {
            prop_assert!(ring.owner(KeyHash(hash)).is_some());
        }
    }
}
