use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

use super::*;

fn name(n: usize) -> NodeName {
    NodeName::parse(&format!("n{n}")).unwrap()
}

fn names(text: &str) -> BTreeSet<NodeName> {
    text.split(',').filter(|t| !t.is_empty()).map(|t| NodeName::parse(t).unwrap()).collect()
}

/// `n1` to `n{count}`, the first the oldest.
fn cluster(count: usize) -> BTreeMap<NodeName, Fact> {
    (1..=count)
        .map(|n| (name(n), Fact { since: u64::try_from(n).unwrap(), ..Fact::default() }))
        .collect()
}

fn quorum(size: u32) -> Policy {
    Policy::StaticQuorum { size: NonZeroU32::new(size).unwrap() }
}

fn sides(text: &str) -> Cut {
    Cut { sides: text.split('/').map(names).collect(), ..Cut::default() }
}

/// The nodes that go on under `config` in a cluster of `count`, as text.
fn keepers(config: &SplitConfig, count: usize, cut: &Cut) -> String {
    let sides = simulate(config, &cluster(count), cut);
    let keeps = sides.iter().flat_map(|side| &side.nodes).filter(|(_, opinion)| opinion.keeps);
    keeps.map(|(node, _)| node.to_string()).collect::<Vec<_>>().join(",")
}

fn kept(policy: Policy, count: usize, cut: &str) -> String {
    keepers(&SplitConfig::new(policy), count, &sides(cut))
}

#[test]
fn the_majority_goes_on_and_of_two_halves_the_one_with_the_least_name() {
    assert_eq!(kept(Policy::KeepMajority, 5, "n1,n2/n3,n4,n5"), "n3,n4,n5");
    assert_eq!(kept(Policy::KeepMajority, 4, "n1,n4/n2,n3"), "n1,n4");
    assert_eq!(kept(Policy::KeepMajority, 3, "n1/n2/n3"), "");
}

#[test]
fn configured_voters_count_whether_they_were_ever_seen_or_not() {
    let mut config = SplitConfig::new(Policy::KeepMajority);
    config.voters = names("n1,n2,n3,n4,n5");
    assert_eq!(keepers(&config, 3, &Cut::default()), "n1,n2,n3");
    assert_eq!(keepers(&config, 2, &Cut::default()), "", "two of five, though nobody was lost");
}

#[test]
fn a_static_quorum_holds_also_when_nobody_is_missing() {
    assert_eq!(kept(quorum(3), 5, "n1,n2/n3,n4,n5"), "n3,n4,n5");
    assert_eq!(kept(quorum(3), 2, "n1,n2"), "");
    assert_eq!(kept(quorum(2), 4, "n1,n2/n3,n4"), "", "two sides could have it");
}

#[test]
fn the_oldest_goes_on_unless_it_is_alone() {
    let (careful, stubborn) =
        (Policy::KeepOldest { down_if_alone: true }, Policy::KeepOldest { down_if_alone: false });
    assert_eq!(kept(careful, 5, "n1,n2/n3,n4,n5"), "n1,n2");
    assert_eq!(kept(careful, 5, "n1/n2,n3,n4,n5"), "n2,n3,n4,n5");
    assert_eq!(kept(stubborn, 5, "n1/n2,n3,n4,n5"), "n1");
    assert_eq!(kept(careful, 2, "n1/n2"), "n2");
    assert_eq!(kept(careful, 3, "n1/n2/n3"), "", "nobody else knows whether it is alone");
    assert_eq!(kept(careful, 1, "n1"), "n1");
}

#[test]
fn a_voter_of_unknown_age_may_be_the_oldest() {
    let mut config = SplitConfig::new(Policy::KeepOldest { down_if_alone: true });
    config.voters = names("n1,n2,n9");
    assert_eq!(keepers(&config, 2, &Cut::default()), "");
}

#[test]
fn down_all_stops_all_and_none_stops_nobody() {
    assert_eq!(kept(Policy::DownAll, 3, "n1,n2/n3"), "");
    assert_eq!(kept(Policy::DownAll, 3, "n1,n2,n3"), "n1,n2,n3", "nothing is cut");
    assert_eq!(kept(Policy::None, 3, "n1,n2/n3"), "n1,n2,n3");
}

#[test]
fn the_lease_goes_to_one_side_with_a_majority_if_there_is_one() {
    assert_eq!(kept(Policy::Lease, 5, "n1,n2/n3,n4,n5"), "n3,n4,n5");
    assert_eq!(kept(Policy::Lease, 3, "n1/n2/n3"), "n1");
}

#[test]
fn a_crash_looks_like_a_cut_to_those_who_are_left() {
    let cut = Cut { crashed: names("n3,n4,n5"), ..Cut::default() };
    assert_eq!(keepers(&SplitConfig::new(Policy::KeepMajority), 5, &cut), "");
    assert_eq!(keepers(&SplitConfig::new(Policy::Lease), 5, &cut), "n1,n2");
}

#[test]
fn both_ends_of_a_broken_link_stop_and_the_others_decide_without_them() {
    let broken = Cut { broken: [(name(2), name(1))].into(), ..Cut::default() };
    assert_eq!(keepers(&SplitConfig::new(Policy::KeepMajority), 5, &broken), "n3,n4,n5");
    assert_eq!(keepers(&SplitConfig::new(Policy::KeepMajority), 3, &broken), "");
    let sides = simulate(&SplitConfig::new(Policy::KeepMajority), &cluster(5), &broken);
    assert_eq!(sides.len(), 1);
    assert_eq!(sides[0].nodes[&name(1)].why.to_string(), "does not reach n2, which others do");
}

#[test]
fn only_members_with_the_role_count() {
    let mut cluster = cluster(5);
    for n in [1, 2, 3] {
        cluster.get_mut(&name(n)).unwrap().roles.insert("voter".to_owned());
    }
    let mut config = SplitConfig::new(Policy::KeepMajority);
    config.role = Some("voter".to_owned());
    let sides = simulate(&config, &cluster, &sides("n1,n2/n3,n4,n5"));
    let why = |at: usize, n| sides[at].nodes[&name(n)].why.to_string();
    assert_eq!((sides[0].keeps(), why(0, 4)), (false, "1 of 3 voters".to_owned()));
    assert_eq!((sides[1].keeps(), why(1, 1)), (true, "2 of 3 voters".to_owned()));
}

#[test]
fn a_configuration_that_cannot_keep_its_promise_is_refused_with_the_reason() {
    let refusal = |change: fn(&mut SplitConfig)| {
        let mut config = SplitConfig::new(quorum(2));
        config.voters = names("n1,n2,n3");
        assert_eq!(config.check(), Ok(()));
        change(&mut config);
        Split::new(config).unwrap_err().to_string()
    };
    let no_quorum =
        "a quorum of 4 does not suit 3 voters: it takes more than half of them and at most all";
    assert_eq!(refusal(|config| config.policy = quorum(4)), no_quorum);
    assert!(refusal(|config| config.policy = quorum(1)).contains("a quorum of 1 does not suit"));
    assert_eq!(
        refusal(|config| config.role = Some("db".to_owned())),
        "role \"db\" and voters both say who counts; give one"
    );
    assert_eq!(
        refusal(|config| config.stable_after = Duration::from_secs(601)),
        "stable_after of 601s exceeds limit 600s"
    );
    assert_eq!(
        refusal(|config| config.voters = (0..2_000).map(name).collect()),
        "2000 voters exceed limit 1024"
    );
}

#[test]
fn every_policy_reads_back_from_its_text() {
    for policy in Policy::all(NonZeroU32::new(3).unwrap()) {
        assert_eq!(policy.to_string().parse(), Ok(policy));
    }
    for text in ["", "majority", "static-quorum", "static-quorum=0", "static-quorum=x", "None"] {
        let error = text.parse::<Policy>().unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("policy {text:?} is none of none, keep-maj")),
            "{error}"
        );
    }
}

fn at(seconds: u64) -> Instant {
    Instant::from_start(Duration::from_secs(seconds))
}

/// What `n{me}` sees in a cluster of `count` of which it reaches `reached`.
fn seen(me: usize, count: usize, reached: &str) -> Sight {
    Sight {
        me: name(me),
        members: cluster(count),
        left: BTreeSet::new(),
        reached: names(reached),
        broken: BTreeSet::new(),
        lease: LeaseSight::Unknown,
    }
}

fn split(policy: Policy) -> Split {
    Split::new(SplitConfig::new(policy)).unwrap()
}

fn is_keep(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Keep { .. })
}

fn is_stop(verdict: &Verdict) -> bool {
    matches!(verdict, Verdict::Stop { .. })
}

#[test]
fn the_loser_stops_when_the_view_is_stable_and_the_winner_takes_over_later() {
    let (mut few, mut many) = (split(Policy::KeepMajority), split(Policy::KeepMajority));
    assert!(is_keep(&few.step(at(0), &seen(1, 3, "n1,n2,n3"))));
    assert!(is_keep(&many.step(at(0), &seen(2, 3, "n1,n2,n3"))));

    let (alone, both) = (seen(1, 3, "n1"), seen(2, 3, "n2,n3"));
    let Verdict::Undecided { until, leaning, ask_lease: false } = few.step(at(10), &alone) else {
        panic!("decided at once");
    };
    assert_eq!((until, leaning.keeps), (at(15), false));
    let Verdict::Undecided { until, leaning, .. } = many.step(at(10), &both) else {
        panic!("decided at once");
    };
    assert_eq!((until, leaning.keeps), (at(15), true));
    assert!(is_stop(&few.step(at(15), &alone)));
    assert!(
        matches!(many.step(at(15), &both), Verdict::Undecided { until, .. } if until == at(20))
    );
    assert_eq!(many.step(at(20), &both), Verdict::Keep { why: Why::Votes { here: 2, of: 3 } });
    assert!(is_keep(&few.step(at(30), &seen(1, 3, "n1,n2,n3"))), "healed");
}

#[test]
fn what_joins_during_a_cut_does_not_make_a_majority() {
    let mut split = split(Policy::KeepMajority);
    split.step(at(0), &seen(1, 5, "n1,n2,n3,n4,n5"));
    split.step(at(10), &seen(1, 5, "n1,n2"));
    // Three more come to the smaller side, and are there for long.
    split.step(at(11), &seen(1, 8, "n1,n2,n6,n7,n8"));
    let verdict = split.step(at(100), &seen(1, 8, "n1,n2,n6,n7,n8"));
    assert_eq!(verdict, Verdict::Stop { why: Why::Votes { here: 2, of: 5 } });
}

#[test]
fn members_that_are_only_forgotten_still_count_until_somebody_says_they_are_dead() {
    let mut split = split(Policy::KeepMajority);
    split.step(at(0), &seen(1, 3, "n1,n2,n3"));
    split.step(at(10), &seen(1, 3, "n1"));
    // The membership no longer remembers the others.
    assert!(is_stop(&split.step(at(100_000), &seen(1, 1, "n1"))));
    split.forget(&name(2));
    split.forget(&name(3));
    assert!(is_keep(&split.step(at(100_001), &seen(1, 1, "n1"))));
}

#[test]
fn whoever_leaves_in_peace_no_longer_counts() {
    let mut split = split(Policy::KeepMajority);
    split.step(at(0), &seen(1, 3, "n1,n2,n3"));
    let mut sight = seen(1, 1, "n1");
    sight.left = names("n2,n3");
    assert!(is_keep(&split.step(at(1), &sight)));
}

#[test]
fn a_view_that_never_rests_stops_all_unless_that_is_off() {
    let flapping = |stop_when_unstable| {
        let mut config = SplitConfig::new(Policy::KeepMajority);
        config.stop_when_unstable = stop_when_unstable;
        let mut split = Split::new(config).unwrap();
        split.step(at(0), &seen(1, 3, "n1,n2,n3"));
        let views = ["n1,n2", "n1,n3"];
        (10..30)
            .map(|t| split.step(at(t), &seen(1, 3, views[(t % 2) as usize])))
            .collect::<Vec<_>>()
    };
    let verdicts = flapping(true);
    assert!(verdicts[..8].iter().all(|v| !is_stop(v)), "{verdicts:?}");
    assert!(verdicts[9..].iter().all(|v| *v == Verdict::Stop { why: Why::Unstable }));
    assert!(flapping(false).iter().all(|v| matches!(v, Verdict::Undecided { .. })));
}

#[test]
fn it_recovers_from_an_unstable_view_when_that_rests() {
    let mut split = split(Policy::KeepMajority);
    split.step(at(0), &seen(1, 3, "n1,n2,n3"));
    for t in 10..30 {
        split.step(at(t), &seen(1, 3, ["n1,n2", "n1,n3"][(t % 2) as usize]));
    }
    assert!(is_keep(&split.step(at(40), &seen(1, 3, "n1,n3"))));
}

#[test]
fn a_smaller_side_asks_for_the_lease_later_and_stops_when_another_has_it() {
    let (mut few, mut many) = (split(Policy::Lease), split(Policy::Lease));
    few.step(at(0), &seen(1, 3, "n1,n2,n3"));
    many.step(at(0), &seen(2, 3, "n1,n2,n3"));
    let (mut alone, mut both) = (seen(1, 3, "n1"), seen(2, 3, "n2,n3"));
    few.step(at(10), &alone);
    many.step(at(10), &both);
    let asks = |verdict| matches!(verdict, Verdict::Undecided { ask_lease: true, .. });
    assert!(asks(many.step(at(15), &both)));
    assert!(!asks(few.step(at(15), &alone)));
    assert!(asks(few.step(at(18), &alone)));
    alone.lease = LeaseSight::Held(name(2));
    both.lease = LeaseSight::Held(name(2));
    assert!(is_stop(&few.step(at(18), &alone)));
    assert!(is_keep(&many.step(at(20), &both)));
    both.lease = LeaseSight::Unreachable;
    assert_eq!(many.step(at(30), &both), Verdict::Stop { why: Why::LeaseUnreachable });
}

#[test]
fn a_node_that_starts_alone_waits_for_the_configured_voters() {
    let mut config = SplitConfig::new(Policy::KeepMajority);
    config.voters = names("n1,n2,n3");
    let mut split = Split::new(config).unwrap();
    let first = split.step(at(1), &seen(1, 1, "n1"));
    assert!(matches!(first, Verdict::Undecided { leaning: Opinion { keeps: false, .. }, .. }));
    assert!(is_stop(&split.step(at(10), &seen(1, 1, "n1"))));
    let enough = seen(1, 2, "n1,n2");
    assert!(!is_keep(&split.step(at(11), &enough)));
    assert!(is_keep(&split.step(at(30), &enough)));
}

fn safe_policies(voters: usize) -> Vec<Policy> {
    let majority = u32::try_from(voters / 2 + 1).unwrap();
    let mut policies = Policy::all(NonZeroU32::new(majority).unwrap());
    policies.retain(|policy| *policy != Policy::None);
    policies
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn two_nodes_that_do_not_reach_each_other_never_both_go_on(
        count in 1..9_usize,
        sides in proptest::collection::vec(0..3_usize, 9),
        broken in proptest::collection::vec((1..9_usize, 1..9_usize), 0..4),
        crashed in proptest::collection::vec(1..9_usize, 0..3),
        roles in proptest::collection::vec(any::<bool>(), 9),
        scope in 0..3_usize,
    ) {
        let mut cluster = cluster(count);
        for (fact, has_role) in cluster.values_mut().zip(&roles) {
            fact.roles = has_role.then(|| "voter".to_owned()).into_iter().collect();
        }
        let mut cut = Cut { sides: vec![BTreeSet::new(); 3], ..Cut::default() };
        for (node, side) in cluster.keys().zip(&sides) {
            cut.sides[*side].insert(node.clone());
        }
        cut.broken = broken.into_iter().map(|(a, b)| (name(a), name(b))).filter(|(a, b)| a != b).collect();
        cut.crashed = crashed.into_iter().map(name).collect();
        for policy in safe_policies(count) {
            let mut config = SplitConfig::new(policy);
            match scope {
                0 => config.role = Some("voter".to_owned()),
                1 => config.voters = (1..=count).map(name).collect(),
                _ => {}
            }
            let sides = simulate(&config, &cluster, &cut);
            let nodes: Vec<_> = sides.iter().flat_map(|side| &side.nodes).collect();
            prop_assert_eq!(nodes.len(), cluster.len() - cut.crashed.iter().filter(|n| cluster.contains_key(*n)).count());
            let keepers: Vec<_> = nodes.iter().filter(|(_, o)| o.keeps).map(|(node, _)| node).collect();
            for a in &keepers {
                for b in &keepers {
                    prop_assert!(a == b || cut.reaches(a, b), "{policy}: {a} and {b} both go on");
                }
            }
        }
    }

    #[test]
    fn whoever_loses_has_stopped_when_the_winner_takes_over_if_they_notice_within_the_margin(
        count in 2..8_usize,
        left in 1..7_usize,
        skew in 0..5_000_u64,
        wobble in 0..5_000_u64,
    ) {
        let left = left.min(count - 1);
        let all = |from: usize, to: usize| (from..=to).map(|n| n.to_string()).collect::<Vec<_>>().join(",n");
        let ms = |ms| Instant::from_start(Duration::from_millis(ms));
        for policy in safe_policies(count) {
            let (mut one, mut other) = (split(policy), split(policy));
            let whole = format!("n{}", all(1, count));
            one.step(ms(0), &seen(1, count, &whole));
            other.step(ms(0), &seen(count, count, &whole));
            let a = seen(1, count, &format!("n{}", all(1, left)));
            let b = seen(count, count, &format!("n{}", all(left + 1, count)));
            let steps = (10_000..40_000_u64).step_by(500);
            for now in steps {
                let one = one.step(ms(now), &a);
                // The other notices later, and sees somebody come and go meanwhile.
                let other = if now < 10_000 + skew {
                    other.step(ms(now), &seen(count, count, &whole))
                } else if now < 10_000 + wobble {
                    other.step(ms(now), &seen(count, count, &format!("n{count}")))
                } else {
                    other.step(ms(now), &b)
                };
                if now >= 10_000 + skew {
                    prop_assert!(!is_keep(&one) || is_stop(&other), "{policy}: {one:?} {other:?}");
                    prop_assert!(!is_keep(&other) || is_stop(&one), "{policy}: {one:?} {other:?}");
                }
            }
        }
    }
}
