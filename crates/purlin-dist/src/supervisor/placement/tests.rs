use proptest::{
    prelude::{
        Just, ProptestConfig, any, prop_assert, prop_assert_eq, prop_assert_ne, prop_oneof,
        proptest,
    },
    strategy::Strategy as _,
};

use super::*;

fn node(name: &str) -> NodeId {
    format!("{name}@1").parse().unwrap()
}

fn nodes(count: usize) -> Vec<Candidate> {
    (1..=count).map(|n| Candidate::new(node(&format!("n{n}")))).collect()
}

fn zoned(zones: &[&str]) -> Vec<Candidate> {
    let mut nodes = nodes(zones.len());
    for (node, zone) in nodes.iter_mut().zip(zones) {
        node.zone = Some((*zone).to_owned());
    }
    nodes
}

fn placer(strategy: Strategy, candidates: Vec<Candidate>) -> Placer {
    let mut placer = Placer::new(strategy);
    placer.set_candidates(candidates).unwrap();
    placer
}

fn ring(load_bound_percent: u32) -> Strategy {
    Strategy::Ring { load_bound_percent }
}

fn apart(tag: &str) -> Wish {
    Wish { apart: Some(tag.to_owned()), ..Wish::default() }
}

fn role(role: &str) -> Wish {
    Wish { roles: BTreeSet::from([role.to_owned()]), ..Wish::default() }
}

/// Children as a supervisor would keep them.
#[derive(Clone, Default)]
struct Children(BTreeMap<String, (Wish, NodeId, bool)>);

impl Children {
    /// Places `count` children with `wish`, one by one.
    fn start(&mut self, placer: &mut Placer, prefix: &str, count: usize, wish: &Wish) {
        for n in 0..count {
            let id = format!("{prefix}-{n}");
            let node = placer.place(&id, wish, |other| self.where_is(other)).unwrap();
            placer.add(&node, wish);
            self.0.insert(id, (wish.clone(), node, false));
        }
    }

    fn where_is(&self, id: &str) -> Option<NodeId> {
        self.0.get(id).map(|(_, node, _)| node.clone())
    }

    fn moves(&self, placer: &Placer, slack_percent: u32, limit: usize) -> Vec<Move> {
        let placed =
            self.0.iter().map(|(id, (wish, node, stays))| Placed { id, wish, node, stays: *stays });
        placer.moves(placed, slack_percent, limit)
    }

    fn make(&mut self, moves: &[Move]) {
        for step in moves {
            let child = self.0.get_mut(&step.id).unwrap();
            assert_eq!(child.1, step.from, "{step:?}");
            child.1 = step.to.clone();
        }
    }

    fn on(&self, node: &NodeId) -> usize {
        self.0.values().filter(|(_, other, _)| other == node).count()
    }
}

#[test]
fn a_join_moves_the_new_nodes_share_and_only_to_it() {
    for strategy in [ring(25), Strategy::Rendezvous, Strategy::LeastLoaded] {
        let mut placer = placer(strategy, nodes(4));
        let mut children = Children::default();
        children.start(&mut placer, "room", 100_000, &Wish::default());
        placer.set_candidates(nodes(5)).unwrap();

        let moves = children.moves(&placer, SLACK_PERCENT_DEFAULT, usize::MAX);

        assert!((15_000..=25_000).contains(&moves.len()), "{strategy:?} {}", moves.len());
        assert!(moves.iter().all(|step| step.why == Why::Load));
        let to_new = moves.iter().filter(|step| step.to == node("n5")).count();
        assert!(to_new * 100 >= moves.len() * 95, "{strategy:?} {to_new} of {}", moves.len());
        children.make(&moves);
        let fullest = (1..=5).map(|n| children.on(&node(&format!("n{n}")))).max().unwrap();
        assert!(fullest <= 22_500, "{strategy:?} {fullest}");
        assert_eq!(children.moves(&placer, SLACK_PERCENT_DEFAULT, usize::MAX), []);
    }
}

#[test]
fn those_that_the_ring_gives_to_the_new_node_move_first() {
    let mut placer = placer(ring(25), nodes(4));
    let mut children = Children::default();
    children.start(&mut placer, "room", 1_000, &Wish::default());
    placer.set_candidates(nodes(5)).unwrap();
    for step in children.moves(&placer, 10, 50) {
        assert_eq!(placer.home(&step.id, &Wish::default()), placer.find(&node("n5")), "{step:?}");
    }
}

#[test]
fn the_children_of_a_lost_node_are_spread_and_no_other_moves() {
    let mut placer = placer(ring(25), nodes(3));
    let mut children = Children::default();
    children.start(&mut placer, "room", 999, &Wish::default());
    placer.set_candidates(nodes(2)).unwrap();
    let lost = children.on(&node("n3"));

    let moves = children.moves(&placer, 25, usize::MAX);

    assert_eq!(moves.iter().filter(|step| step.why == Why::Gone).count(), lost);
    assert!(moves.iter().all(|step| step.from == node("n3")), "{moves:?}");
    children.make(&moves);
    assert!(children.on(&node("n1")) <= 625 && children.on(&node("n2")) <= 625);
}

#[test]
fn a_later_life_of_a_node_is_another_node() {
    let mut placer = placer(ring(25), nodes(1));
    let mut children = Children::default();
    children.start(&mut placer, "room", 3, &Wish::default());
    let reborn: NodeId = "n1@2".parse().unwrap();
    placer.set_candidates(vec![nodes(1).remove(0), Candidate::new(reborn.clone())]).unwrap();

    let moves = children.moves(&placer, 10, usize::MAX);

    assert!(moves.iter().all(|step| step.why == Why::Gone && step.to == reborn), "{moves:?}");
    assert_eq!(moves.len(), 3);
}

#[test]
fn what_a_node_had_is_still_counted_when_it_comes_back() {
    let mut placer = placer(Strategy::LeastLoaded, nodes(2));
    for _ in 0..2 {
        placer.add(&node("n1"), &apart("a"));
    }
    placer.set_candidates(nodes(2).split_off(1)).unwrap();
    placer.remove(&node("n1"), &apart("a"));
    placer.set_candidates(nodes(2)).unwrap();
    assert_eq!(placer.candidates().map(|(_, count)| count).collect::<Vec<_>>(), [1, 0]);
    placer.remove(&node("n1"), &apart("a"));
    placer.remove(&node("n1"), &apart("a"));
    assert!(placer.candidates().all(|(_, count)| count == 0));
}

#[test]
fn no_node_and_no_fitting_node_are_told_apart() {
    let none = placer(ring(25), vec![]);
    assert_eq!(none.place("a", &Wish::default(), |_| None), Err(Unplaceable::NoNode));
    let some = placer(ring(25), zoned(&["a", "b"]));
    let mut wish = role("gpu");
    wish.zone = Some("a".to_owned());
    assert_eq!(
        some.place("a", &wish, |_| None).unwrap_err().to_string(),
        "none of the 2 nodes that take children has role=gpu zone=a"
    );
}

#[test]
fn a_node_without_weight_takes_nothing_and_is_emptied() {
    let mut nodes = nodes(2);
    nodes[0].weight = 0;
    let placer = placer(ring(25), nodes);
    assert_eq!(placer.place("a", &Wish::default(), |_| None).unwrap(), node("n2"));
    let wish = Wish::default();
    let child = Placed { id: "a", wish: &wish, node: &node("n1"), stays: true };
    let moves = placer.moves([child], 10, 10);
    assert_eq!((moves.len(), moves[0].why), (1, Why::Gone));
}

#[test]
fn children_pinned_to_few_nodes_do_not_push_the_others_around() {
    let mut candidates = nodes(5);
    for candidate in &mut candidates[..2] {
        candidate.roles.insert("gpu".to_owned());
    }
    let mut placer = placer(ring(25), candidates);
    let mut children = Children::default();
    children.start(&mut placer, "gpu", 300, &role("gpu"));
    children.start(&mut placer, "web", 300, &Wish::default());

    let moves = children.moves(&placer, 10, usize::MAX);

    let gpus = [node("n1"), node("n2")];
    assert!(moves.iter().all(|step| step.id.starts_with("web") || gpus.contains(&step.to)));
    children.make(&moves);
    // The two have the 300 that only they can take, the others share the rest.
    for n in ["n3", "n4", "n5"] {
        assert!((90..=110).contains(&children.on(&node(n))), "{}", children.on(&node(n)));
    }
}

#[test]
fn a_child_that_no_longer_fits_moves_to_where_it_does_unless_it_must_stay() {
    let mut candidates = nodes(3);
    candidates[2].roles.insert("gpu".to_owned());
    let placer = placer(ring(25), candidates);
    let (gpu, on) = (role("gpu"), node("n1"));
    let child = |id, stays| Placed { id, wish: &gpu, node: &on, stays };
    let moves = placer.moves([child("a", false), child("b", true)], 10, 10);
    assert_eq!(
        moves,
        [Move { id: "a".to_owned(), from: on.clone(), to: node("n3"), why: Why::Unfit }]
    );
}

#[test]
fn a_child_follows_the_one_it_wants_to_be_with() {
    let mut placer = placer(Strategy::LeastLoaded, nodes(4));
    let mut children = Children::default();
    children.start(&mut placer, "db", 1, &Wish::default());
    let near = Wish { with: Some("db-0".to_owned()), ..Wish::default() };
    children.start(&mut placer, "cache", 5, &near);
    let home = children.where_is("db-0").unwrap();
    assert_eq!(children.on(&home), 6);
    assert_eq!(children.moves(&placer, 10, usize::MAX), [], "load does not part them");

    let elsewhere = placer.candidates().map(|(c, _)| c.node.clone()).find(|n| *n != home).unwrap();
    children.0.get_mut("db-0").unwrap().1 = elsewhere.clone();
    let moves = children.moves(&placer, 10, usize::MAX);
    assert_eq!(moves.len(), 5);
    assert!(moves.iter().all(|step| step.why == Why::With && step.to == elsewhere), "{moves:?}");
}

#[test]
fn two_that_want_to_be_with_each_other_meet_rather_than_change_places() {
    let placer = placer(ring(25), nodes(2));
    let with = |id: &str| Wish { with: Some(id.to_owned()), ..Wish::default() };
    let mut children = Children::default();
    children.0.insert("a".to_owned(), (with("b"), node("n1"), false));
    children.0.insert("b".to_owned(), (with("a"), node("n2"), false));
    let moves = children.moves(&placer, 10, 10);
    assert_eq!(moves.len(), 1);
    children.make(&moves);
    assert_eq!(children.moves(&placer, 10, 10), []);
}

#[test]
fn a_burst_onto_nodes_of_known_cost_does_not_go_to_one() {
    let mut candidates = nodes(3);
    for (candidate, cost) in candidates.iter_mut().zip([900, 500, 520]) {
        candidate.cost = Some(cost);
    }
    let mut placer = placer(Strategy::LeastLoaded, candidates.clone());
    for candidate in &candidates {
        for _ in 0..100 {
            placer.add(&candidate.node, &Wish::default());
        }
    }
    placer.set_candidates(candidates).unwrap();
    let mut children = Children::default();
    children.start(&mut placer, "job", 100, &Wish::default());
    let taken = ["n1", "n2", "n3"].map(|n| children.on(&node(n)));
    assert_eq!(taken[0], 0, "{taken:?}");
    assert!(taken[1].abs_diff(taken[2]) <= 6, "{taken:?}");
}

#[test]
fn an_unknown_cost_makes_children_count() {
    let mut candidates = nodes(2);
    candidates[0].cost = Some(1_000_000);
    let mut placer = placer(Strategy::LeastLoaded, candidates);
    placer.add(&node("n2"), &Wish::default());
    assert_eq!(placer.place("a", &Wish::default(), |_| None).unwrap(), node("n1"));
}

#[test]
fn a_plan_ends_at_its_limit() {
    let mut placer = placer(ring(25), nodes(4));
    let mut children = Children::default();
    children.start(&mut placer, "room", 1_000, &Wish::default());
    placer.set_candidates(nodes(5)).unwrap();
    assert_eq!(children.moves(&placer, 10, 7).len(), 7);
    assert_eq!(children.moves(&placer, 10, 0).len(), 0);
}

#[test]
fn a_wish_beyond_its_bounds_says_which() {
    let many = (0..33).map(|n| format!("r{n}")).collect();
    let wish = Wish { roles: many, ..Wish::default() };
    assert_eq!(wish.check().unwrap_err().to_string(), "wish has 33 roles, limit 32");
    let wish = apart(&"x".repeat(256));
    assert_eq!(wish.check().unwrap_err().to_string(), "wish apart of 256 bytes exceeds limit 255");
    let wish = Wish { labels: BTreeMap::from([("k".into(), "v".repeat(999))]), ..Wish::default() };
    assert_eq!(wish.check().unwrap_err().to_string(), "wish labels of 999 bytes exceeds limit 255");
    assert_eq!(role("gpu").check(), Ok(()));
}

#[test]
fn more_candidates_than_a_ring_can_hold_are_refused_and_the_old_ones_stay() {
    let mut placer = placer(ring(25), nodes(2));
    let error = placer.set_candidates(nodes(CANDIDATES_MAX + 1)).unwrap_err();
    assert_eq!(error.to_string(), "32769 candidates exceed limit 32768");
    assert_eq!(placer.candidates().count(), 2);
}

fn strategies() -> impl proptest::strategy::Strategy<Value = Strategy> {
    prop_oneof![
        (0..100_u32).prop_map(|load_bound_percent| Strategy::Ring { load_bound_percent }),
        Just(Strategy::Rendezvous),
        Just(Strategy::LeastLoaded),
    ]
}

/// Up to eight nodes with zones, weights and roles drawn.
fn clusters() -> impl proptest::strategy::Strategy<Value = Vec<Candidate>> {
    proptest::collection::vec((0..4_usize, 1..4_u32, any::<bool>()), 1..8).prop_map(|drawn| {
        let mut candidates = nodes(drawn.len());
        for (candidate, (zone, weight, gpu)) in candidates.iter_mut().zip(drawn) {
            candidate.zone = (zone > 0).then(|| format!("z{zone}"));
            candidate.weight = weight;
            candidate.roles = gpu.then(|| "gpu".to_owned()).into_iter().collect();
        }
        candidates
    })
}

fn wishes() -> impl proptest::strategy::Strategy<Value = Wish> {
    (any::<bool>(), 0..4_usize, 0..4_usize, proptest::option::of(0..20_usize)).prop_map(
        |(gpu, zone, tag, with)| Wish {
            roles: gpu.then(|| "gpu".to_owned()).into_iter().collect(),
            zone: (zone > 2).then(|| "z1".to_owned()),
            apart: (tag > 1).then(|| format!("t{tag}")),
            with: with.map(|n| format!("c-{n}")),
            ..Wish::default()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_node_is_given_more_than_its_bound(
        weights in proptest::collection::vec(1..6_u32, 1..9),
        percent in 0..60_u32,
        count in 1..400_usize,
    ) {
        let mut candidates = nodes(weights.len());
        for (candidate, weight) in candidates.iter_mut().zip(&weights) {
            candidate.weight = *weight;
        }
        let mut placer = placer(ring(percent), candidates.clone());
        let mut children = Children::default();
        children.start(&mut placer, "c", count, &Wish::default());
        let all: u32 = weights.iter().sum();
        for candidate in candidates {
            let share = f64::from(candidate.weight) / f64::from(all) * count as f64;
            let bound = (share * f64::from(100 + percent) / 100.0).ceil();
            let on = children.on(&candidate.node);
            prop_assert!(on as f64 <= bound, "{on} > {bound}");
        }
    }

    #[test]
    fn the_least_loaded_strategy_keeps_loads_within_a_child(
        weights in proptest::collection::vec(1..6_u32, 1..9),
        count in 1..200_usize,
    ) {
        let mut candidates = nodes(weights.len());
        for (candidate, weight) in candidates.iter_mut().zip(&weights) {
            candidate.weight = *weight;
        }
        let mut placer = placer(Strategy::LeastLoaded, candidates.clone());
        let mut children = Children::default();
        children.start(&mut placer, "c", count, &Wish::default());
        for a in &candidates {
            for b in &candidates {
                let (on_a, on_b) = (children.on(&a.node) as f64, children.on(&b.node) as f64);
                prop_assert!(on_a / f64::from(a.weight) <= (on_b + 1.0) / f64::from(b.weight) + 1e-9);
            }
        }
    }

    #[test]
    fn a_pinned_child_is_never_where_it_does_not_fit(
        strategy in strategies(),
        before in clusters(),
        after in clusters(),
        wishes in proptest::collection::vec(wishes(), 0..40),
    ) {
        let mut placer = placer(strategy, before.clone());
        let mut children = Children::default();
        for (n, wish) in wishes.iter().enumerate() {
            let id = format!("c-{n}");
            match placer.place(&id, wish, |other| children.where_is(other)) {
                Ok(node) => {
                    let chosen = before.iter().find(|c| c.node == node).unwrap();
                    prop_assert!(chosen.fits(wish));
                    placer.add(&node, wish);
                    children.0.insert(id, (wish.clone(), node, false));
                }
                Err(_) => prop_assert!(!before.iter().any(|c| c.fits(wish))),
            }
        }
        placer.set_candidates(after.clone()).unwrap();
        // As long as a chain of affinities may be, and then some.
        for _ in 0..50 {
            let moves = children.moves(&placer, 10, usize::MAX);
            let ids: BTreeSet<_> = moves.iter().map(|step| &step.id).collect();
            prop_assert_eq!(ids.len(), moves.len(), "one child moves twice");
            for step in &moves {
                let wish = &children.0[&step.id].0;
                prop_assert!(after.iter().any(|c| c.node == step.to && c.fits(wish)), "{:?}", step);
                prop_assert_ne!(&step.to, &step.from);
            }
            children.make(&moves);
        }
        for (wish, node, _) in children.0.values() {
            let fits = after.iter().any(|c| c.node == *node && c.fits(wish));
            prop_assert!(fits || !after.iter().any(|c| c.fits(wish)), "{wish:?} left on {node}");
        }
    }

    #[test]
    fn those_apart_share_no_node_while_there_is_one_and_spread_over_zones(
        strategy in strategies(),
        candidates in clusters(),
        copies in 1..12_usize,
        others in 0..50_usize,
    ) {
        let mut placer = placer(strategy, candidates.clone());
        let mut children = Children::default();
        children.start(&mut placer, "other", others, &Wish::default());
        children.start(&mut placer, "copy", copies, &apart("copies"));
        let mut on: BTreeMap<&NodeId, usize> = BTreeMap::new();
        let mut zones: BTreeMap<&Option<String>, usize> = BTreeMap::new();
        for (_, node, _) in children.0.values().filter(|(wish, ..)| wish.apart.is_some()) {
            let candidate = candidates.iter().find(|c| c.node == *node).unwrap();
            *on.entry(&candidate.node).or_default() += 1;
            *zones.entry(&candidate.zone).or_default() += 1;
        }
        let most = on.values().max().copied().unwrap_or(0);
        prop_assert_eq!(most, copies.div_ceil(candidates.len()));
        let named: BTreeSet<_> = candidates.iter().filter_map(|c| c.zone.as_ref()).collect();
        let lone = candidates.iter().filter(|c| c.zone.is_none()).count();
        // Each named zone, and each node that shares its fate with nobody, is used before any
        // is used again.
        if copies <= named.len() + lone {
            for (zone, count) in zones {
                prop_assert!(zone.is_none() || count == 1, "{zone:?} has {count}");
            }
        }
    }

    #[test]
    fn plans_end_and_never_make_the_fullest_fuller(
        strategy in strategies(),
        before in clusters(),
        joined in clusters(),
        count in 0..200_usize,
        slack in 0..40_u32,
    ) {
        let mut placer = placer(strategy, before.clone());
        let mut children = Children::default();
        children.start(&mut placer, "c", count, &Wish::default());
        // Those there were stay as they were; some come in addition.
        let mut after = before;
        after.extend(joined.into_iter().skip(after.len()));
        placer.set_candidates(after.clone()).unwrap();
        let load = |children: &Children| {
            let per = |c: &Candidate| children.on(&c.node) as f64 / f64::from(c.weight);
            after.iter().map(per).fold(0.0, f64::max)
        };
        let fullest = load(&children);
        let moves = children.moves(&placer, slack, usize::MAX);
        children.make(&moves);
        prop_assert!(load(&children) <= fullest);
        prop_assert_eq!(children.moves(&placer, slack, usize::MAX), []);
        for a in &after {
            for b in &after {
                let (on_a, on_b) = (children.on(&a.node) as f64, children.on(&b.node) as f64);
                let bound = (on_b + 1.0) / f64::from(b.weight) * f64::from(100 + slack) / 100.0;
                prop_assert!(on_a / f64::from(a.weight) <= bound + 1e-9, "{on_a} {on_b}");
            }
        }
    }

    #[test]
    fn the_order_in_which_nodes_are_learned_changes_nothing(
        strategy in strategies(),
        candidates in clusters(),
        ids in proptest::collection::vec("[a-z]{1,8}", 1..20),
    ) {
        let one = placer(strategy, candidates.clone());
        let other = placer(strategy, candidates.into_iter().rev().collect());
        for id in ids {
            let wish = Wish::default();
            prop_assert_eq!(one.place(&id, &wish, |_| None), other.place(&id, &wish, |_| None));
        }
    }
}
