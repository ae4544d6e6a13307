//! Children that survive their node: started, found, failed over, moved and stopped by real nodes
//! in one process.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

mod children;

use std::{sync::Arc, time::Duration};

use children::{
    Actors, Cluster, Counter, CounterHandle, Counters, PANICS, PATIENCE, REFUSED, id, until,
};
use purlin::{
    core::Outcome,
    dist::{
        lease::SoleLeases,
        singleton::{Fencing, Turn},
        supervisor::{
            Birth, ChildOptions, Kind, KindError, LostCopy, StartChildError, Stopped, Supervisor,
            SupervisorConfig, SupervisorError,
            core::{CoreConfig, OnHandOffFailure},
            split::{Policy, SplitConfig},
        },
    },
    process::{Backoff, Intensity, Restart, SpawnOptions},
};

fn counter(supervisor: &Supervisor, id: &str) -> CounterHandle {
    // No call is given up because this machine is busy.
    CounterHandle::from(supervisor.child::<Counter>(id).address()).within(PATIENCE)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_is_started_somewhere_found_everywhere_and_stopped_for_good() {
    let cluster = Cluster::of(3).await;
    cluster.start(30).await;
    cluster.until_all_run(30).await;
    for n in 1..=3 {
        let supervisor = cluster.at(n);
        assert_eq!(supervisor.counts().len(), 3, "all nodes have some");
        let page = supervisor.children("child-000", Some("child-0004"), 3);
        let page: Vec<&str> = page.iter().map(|info| &*info.id).collect();
        assert_eq!(page, ["child-0005", "child-0006", "child-0007"]);
        for i in 0..30 {
            let (start, fence, restarts) = counter(&supervisor, &id(i)).born().await.unwrap();
            assert_eq!((start, restarts), (u64::try_from(i).unwrap(), 0));
            assert_eq!(supervisor.which(&id(i)).unwrap().fence().0, fence);
        }
    }
    // The same again, and another under the same id.
    let supervisor = cluster.at(1);
    let again = |start: u64| {
        let supervisor = supervisor.clone();
        async move { supervisor.start_child::<Counters>(&id(4), &start, ChildOptions::default()).await }
    };
    let error = again(4).await.unwrap_err();
    assert_eq!(error, StartChildError::Exists { id: id(4), same: true });
    let error = again(5).await.unwrap_err();
    assert_eq!(error, StartChildError::Exists { id: id(4), same: false });
    let same = supervisor.ensure_child::<Counters>(&id(4), &4, ChildOptions::default()).await;
    assert_eq!(CounterHandle::from(same.unwrap().address()).add(1).await, Ok(5));
    // Stopped from a node that does not run it: gone there when this returns, and soon everywhere.
    for i in 0..30 {
        assert_eq!(cluster.at(1 + i % 3).stop_child(&id(i)).await, Ok(Stopped::Ended));
    }
    cluster.until_all_run(0).await;
    let error = counter(&supervisor, &id(1)).add(1).await.unwrap_err();
    assert_eq!(error.to_string(), "no process named \"child-0001\"");
    // Its fence goes on where it was.
    let before = supervisor.start_child::<Counters>("again", &1, ChildOptions::default()).await;
    let before = CounterHandle::from(before.unwrap().address()).born().await.unwrap().1;
    supervisor.stop_child("again").await.unwrap();
    supervisor.start_child::<Counters>("again", &1, ChildOptions::default()).await.unwrap();
    let there = cluster.at(2);
    let is_news = || there.which("again").is_some_and(|info| info.fence().0 > before);
    until("n2 has heard of it", is_news).await;
    assert!(counter(&there, "again").born().await.unwrap().1 > before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_children_of_a_killed_node_run_again_once_on_the_others() {
    let mut cluster = Cluster::of(3).await;
    cluster.start(1_000).await;
    cluster.until_all_run(1_000).await;
    let lost = cluster.at(1).counts()[cluster.nodes[&2].id()];
    assert!(lost > 200, "n2 has only {lost}");
    cluster.kill(2).await;
    cluster.until_all_run(1_000).await;
    let restarted = cluster.at(3).children("", None, usize::MAX);
    assert_eq!(restarted.iter().filter(|info| info.restarts() == 1).count(), lost);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_node_hands_its_children_over_with_their_state_and_no_call_fails() {
    let mut cluster = Cluster::of(3).await;
    cluster.start(60).await;
    cluster.until_all_run(60).await;
    let stop = Arc::new(tokio::sync::Notify::new());
    let mut callers = Vec::new();
    for n in [1, 3] {
        let supervisor = cluster.at(n);
        let stop = Arc::clone(&stop);
        callers.push(tokio::spawn(async move {
            let counters: Vec<_> = (0..60).map(|i| counter(&supervisor, &id(i))).collect();
            let mut rounds = 0_u64;
            let stopped = stop.notified();
            tokio::pin!(stopped);
            loop {
                for counter in &counters {
                    counter.add(1).await.unwrap();
                }
                rounds += 1;
                tokio::select! {
                    biased;
                    () = &mut stopped => return rounds,
                    () = tokio::time::sleep(Duration::from_millis(1)) => {}
                }
            }
        }));
    }
    let node = cluster.nodes.remove(&2).unwrap();
    let progress = node.drain(Some(PATIENCE)).await;
    assert!(progress.problems.is_empty(), "{:?}", progress.problems);
    cluster.until_all_run(60).await;
    stop.notify_waiters();
    let mut rounds = 0;
    for caller in callers {
        rounds += caller.await.unwrap();
    }
    for i in 0..60 {
        let had = u64::try_from(i).unwrap();
        assert_eq!(counter(&cluster.at(1), &id(i)).add(0).await, Ok(had + rounds), "{}", id(i));
    }
}

/// A kind whose processes never come up, or only after its patience.
struct Stuck;

impl Kind for Stuck {
    const NAME: &'static str = "stuck";
    type Server = children::Poison;
    type Args = bool;
    type State = ();

    fn args(&self, hangs: bool, _birth: Birth<()>) -> Result<bool, KindError> {
        Ok(hangs)
    }

    fn options(&self) -> SpawnOptions {
        SpawnOptions { start_within: Duration::from_secs(2), ..SpawnOptions::default() }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_started_is_refused_by_name_and_the_rest_goes_on() {
    let cluster = Cluster::of(2).await;
    let supervisor = cluster.at(1);
    let start = |id: &str, start: u64| {
        let (supervisor, id) = (supervisor.clone(), id.to_owned());
        async move {
            let options = ChildOptions::default();
            supervisor.start_child::<Counters>(&id, &start, options).await.map(drop)
        }
    };
    let said = |error: StartChildError| (error.to_string(), error.outcome());
    // Names and sizes.
    let error = start("", 1).await.unwrap_err();
    assert_eq!(said(error).0, "child id of 0 bytes is outside 1 to 1024");
    let error = start("a\0b", 1).await.unwrap_err();
    assert_eq!(said(error), ("child id holds a zero byte".to_owned(), Outcome::NotDone));
    let large = vec![0; 70_000];
    let error = supervisor.start_encoded("x", "counter", large.into(), ChildOptions::default());
    let error = error.await.unwrap_err();
    assert_eq!(error.to_string(), "arguments of 70000 bytes exceed limit 65536");
    let error = cluster.nodes[&1].supervisor(&"s".repeat(256)).unwrap_err();
    assert_eq!(error.to_string(), "supervisor of 256 bytes is outside 1 to 255");
    // Kinds and arguments.
    let encoded = |kind: &'static str, args: &'static [u8]| {
        supervisor.start_encoded("x", kind, args.into(), ChildOptions::default())
    };
    let error = encoded("unheard-of", b"").await.unwrap_err();
    assert_eq!(said(error), ("no node takes children now".to_owned(), Outcome::NotDone));
    let error = encoded("counter", b"\x80").await.unwrap_err();
    assert!(matches!(error, StartChildError::Kind(KindError::Args { .. })), "{error}");
    let error = start("x", REFUSED).await.unwrap_err();
    assert_eq!(said(error), ("refused: not that number".to_owned(), Outcome::NotDone));
    let error = start("x", PANICS).await.unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    assert_eq!(error.outcome(), Outcome::Unknown);
    let error = supervisor.register_kind(Counters).unwrap_err();
    assert_eq!(error, SupervisorError::KindTaken("counter".to_owned()));
    // A constructor that fails or never returns.
    for node in cluster.nodes.values() {
        node.supervisor("test").unwrap().register_kind(Stuck).unwrap();
    }
    until("both have the kind", || supervisor.hosts("stuck").len() == 2).await;
    for (hangs, said) in [(false, "poison"), (true, "did not end within 2s")] {
        let error = supervisor.start_child::<Stuck>("y", &hangs, ChildOptions::default());
        let error = error.await.unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    assert_eq!(supervisor.count(), 0);
    // All of that in between: nothing is left behind, and others run.
    start("good", 1).await.unwrap();
    cluster.until_all_run(1).await;
    assert_eq!(supervisor.stop_child("bad").await, Err(SupervisorError::Absent("bad".to_owned())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_that_crashes_for_ever_is_left_alone_until_it_is_released_and_others_run_on() {
    let cluster = Cluster::of(2).await;
    let supervisor = cluster.at(1);
    let options = ChildOptions {
        backoff: Backoff { first: Duration::from_millis(1), most: Duration::from_millis(4) },
        quarantine: Intensity { restarts_max: 2, within: Duration::from_secs(3_600) },
        ..ChildOptions::default()
    };
    supervisor.start_child::<Counters>("good", &1, options.clone()).await.unwrap();
    supervisor.start_child::<Counters>("bad", &7, options.clone()).await.unwrap();
    let mut events = supervisor.events_after(0);
    let bad = counter(&supervisor, "bad");
    for restarts in 0..3 {
        until("it is up", || {
            supervisor
                .which("bad")
                .is_some_and(|it| it.pid().is_some() && it.restarts() == restarts)
        })
        .await;
        bad.fail().await.unwrap();
    }
    for n in [1, 2] {
        let state = || cluster.at(n).which("bad").unwrap().state();
        until("it is in quarantine", || state() == "quarantined").await;
    }
    let why = cluster.at(2).which("bad").unwrap().cause().unwrap().to_string();
    assert_eq!(why, "its process ended: panicked: on purpose");
    let error = counter(&cluster.at(2), "bad").add(1).await.unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotDone);
    let mut whats = Vec::new();
    while let Some(event) = events.try_next() {
        let event = &event.unwrap().event;
        if &*event.id == "bad" {
            whats.push(event.what.as_str());
        }
    }
    assert_eq!(whats, ["started", "restarted", "restarted", "quarantined"]);
    assert_eq!(counter(&supervisor, "good").add(1).await, Ok(2));
    assert_eq!(supervisor.release("good"), Err(SupervisorError::NotReleased("good".to_owned())));
    cluster.at(2).release("bad").unwrap();
    until("n1 has heard it", || supervisor.which("bad").unwrap().state() == "running").await;
    assert_eq!(counter(&supervisor, "bad").add(1).await, Ok(8));
    // One that is not to be started again is forgotten.
    let once = ChildOptions { restart: Restart::Temporary, ..options };
    supervisor.start_child::<Counters>("once", &1, once).await.unwrap();
    counter(&supervisor, "once").fail().await.unwrap();
    until("it is forgotten", || cluster.at(2).which("once").is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_copies_of_a_cut_become_one_with_what_both_know() {
    let cluster = Cluster::of(3).await;
    for n in 1..=3 {
        let supervisor = cluster.at(n);
        let me = supervisor.clone();
        supervisor.on_conflict(move |lost: LostCopy| {
            let supervisor = me.clone();
            async move {
                let copy = lost.process.downcast::<Counter>().unwrap();
                let had = copy.visit(|counter, _| counter.count(), PATIENCE).await.unwrap();
                counter(&supervisor, &lost.id).add(had).await.unwrap();
            }
        });
    }
    let supervisor = cluster.at(1);
    for i in 0..9 {
        let options = ChildOptions::default();
        supervisor.start_child::<Counters>(&id(i), &0, options).await.unwrap();
    }
    cluster.until_all_run(9).await;
    cluster.cut_off(3).await;
    // Both sides run all of them, and count.
    for n in [1, 3] {
        let supervisor = cluster.at(n);
        for i in 0..9 {
            // The other copies start as soon as the planner of their side has seen the cut.
            let alone = cluster.nodes[&3].id();
            let runs_here = || {
                let pid = supervisor.which(&id(i)).and_then(|child| child.pid());
                pid.is_some_and(|pid| (pid.node == *alone) == (n == 3))
            };
            until("it runs on this side", runs_here).await;
            counter(&supervisor, &id(i)).add(if n == 1 { 1 } else { 100 }).await.unwrap();
        }
    }
    cluster.heal().await;
    cluster.until_all_run(9).await;
    for i in 0..9 {
        let counter = counter(&cluster.at(2), &id(i));
        let merged = async {
            while counter.add(0).await.unwrap() != 101 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let merged = tokio::time::timeout(PATIENCE, merged).await;
        assert!(merged.is_ok(), "{}: {:?}", id(i), counter.add(0).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_side_of_a_cut_without_a_majority_stops_its_children_until_it_heals() {
    let cluster = Cluster::of(3).await;
    let split = SplitConfig {
        voters: cluster.nodes.values().map(|node| node.id().name.clone()).collect(),
        stable_after: Duration::from_millis(300),
        takeover_after: Duration::from_millis(300),
        ..SplitConfig::new(Policy::KeepMajority)
    };
    for n in 1..=3 {
        let config = SupervisorConfig { split: split.clone(), ..SupervisorConfig::default() };
        cluster.at(n).configure(config).unwrap();
    }
    cluster.start(12).await;
    cluster.until_all_run(12).await;
    cluster.cut_off(3).await;
    let alone = cluster.nodes[&3].processes().clone();
    until("the minority has stopped", || {
        alone.list().iter().all(|process| process.kind != "Counter")
    })
    .await;
    let supervisor = cluster.at(1);
    until("the majority has taken over", || {
        supervisor
            .children("", None, 99)
            .iter()
            .all(|child| child.pid().is_some_and(|pid| pid.node != *cluster.nodes[&3].id()))
    })
    .await;
    let error = cluster.at(3).start_child::<Counters>("no", &1, ChildOptions::default()).await;
    assert!(matches!(error, Err(StartChildError::Refused(_))), "{error:?}");
    cluster.heal().await;
    cluster.until_all_run(12).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actors_wake_when_they_are_called_and_sleep_with_what_they_know() {
    let cluster = Cluster::of(3).await;
    let options =
        ChildOptions { idle_for: Some(Duration::from_millis(400)), ..ChildOptions::default() };
    let actor = |n: usize, key: &str| {
        let child = cluster.at(n).actor_with::<Actors>(key, options.clone());
        CounterHandle::from(child.address()).within(PATIENCE)
    };
    // Nobody started them; all three nodes call at once.
    let mut calls = Vec::new();
    for n in 1..=3 {
        for key in 0..20 {
            let actor = actor(n, &format!("actor-{key}"));
            calls.push(tokio::spawn(async move { actor.add(1).await }));
        }
    }
    for call in calls {
        call.await.unwrap().unwrap();
    }
    for key in 0..20 {
        assert_eq!(actor(1, &format!("actor-{key}")).add(0).await, Ok(3));
    }
    let supervisor = cluster.at(2);
    until("all sleep", || {
        supervisor.children("", None, 99).iter().all(|child| child.state() == "asleep")
    })
    .await;
    cluster.until_none_run("Counter").await;
    for key in 0..20 {
        assert_eq!(actor(3, &format!("actor-{key}")).add(1).await, Ok(4));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_joins_gets_its_share_with_state_unless_that_is_paused_or_vetoed() {
    let mut cluster = Cluster::of(2).await;
    for n in 1..=2 {
        let core = CoreConfig {
            rebalance_after: Duration::from_millis(100),
            moves_per_second: 10_000,
            ..CoreConfig::default()
        };
        cluster.at(n).configure(SupervisorConfig { core, ..SupervisorConfig::default() }).unwrap();
        cluster.at(n).veto(|plan| plan.id == "child-0001");
    }
    cluster.at(2).pause().unwrap();
    cluster.start(100).await;
    cluster.until_all_run(100).await;
    for i in 0..100 {
        counter(&cluster.at(1), &id(i)).add(1_000).await.unwrap();
    }
    cluster.join(3).await;
    let plan = cluster.at(1).plan(1_000);
    assert!((20..=38).contains(&plan.len()), "{} moves", plan.len());
    assert!(plan.iter().all(|one| one.to == *cluster.nodes[&3].id()), "{plan:?}");
    until("all know of the pause", || (1..=3).all(|n| cluster.at(n).is_paused())).await;
    assert_eq!(cluster.at(1).counts().get(cluster.nodes[&3].id()), None);
    cluster.at(1).rebalance();
    cluster.at(3).resume().unwrap();
    until("they have moved", || {
        cluster.at(1).counts().get(cluster.nodes[&3].id()).is_some_and(|&has| has + 1 >= plan.len())
    })
    .await;
    cluster.until_all_run(100).await;
    assert_ne!(cluster.at(1).which(&id(1)).unwrap().node(), Some(cluster.nodes[&3].id()));
    for i in 0..100 {
        let had = 1_000 + u64::try_from(i).unwrap();
        assert_eq!(counter(&cluster.at(3), &id(i)).add(0).await, Ok(had), "{}", id(i));
    }
}

/// Counters of an earlier or later release: they give a state of another version.
struct Release<const VERSION: u32>;

impl<const VERSION: u32> Kind for Release<VERSION> {
    const NAME: &'static str = "release";
    type Server = Counter;
    type Args = u64;
    type State = Vec<u8>;
    const STATE_VERSION: u32 = VERSION;

    fn args(&self, start: u64, birth: Birth<Vec<u8>>) -> Result<(u64, u64, u64, u32), KindError> {
        let count = birth.state.map_or(start, |state| u64::try_from(state.len()).unwrap());
        Ok((start, count, birth.fence.0, birth.restarts))
    }

    fn hand_off(&self, counter: &mut Counter) -> Option<Vec<u8>> {
        Some(vec![0; usize::try_from(counter.count()).unwrap()])
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_that_is_too_large_too_new_or_too_late_leaves_the_child_where_it_is() {
    let cluster = Cluster::of(3).await;
    cluster.at(1).register_kind(Release::<1>).unwrap();
    cluster.at(2).register_kind(Release::<2>).unwrap();
    for n in 1..=3 {
        let config = SupervisorConfig {
            state_bytes_max: 10_000,
            hand_off_within: Duration::from_millis(300),
            ..SupervisorConfig::default()
        };
        cluster.at(n).configure(config).unwrap();
    }
    let supervisor = cluster.at(3);
    until("both have the kind", || supervisor.hosts("release").len() == 2).await;
    let start = async |id: &str, start: u64| {
        let options = ChildOptions::default();
        supervisor.start_child::<Release<1>>(id, &start, options).await.unwrap();
        supervisor.which(id).unwrap().node().unwrap().clone()
    };
    let [one, two] = [1, 2].map(|n| cluster.nodes[&n].id().clone());
    let other = |node| if node == one { &two } else { &one };
    // Its state is of a version the other does not read, whichever it is on.
    let at = start("a", 5).await;
    assert_eq!(supervisor.move_child("a", other(at.clone())).await, Ok(false));
    assert_eq!(counter(&supervisor, "a").add(1).await, Ok(6), "with its state, where it was");
    assert_eq!(supervisor.which("a").unwrap().node(), Some(&at));
    // A gibibyte is not even encoded whole by who knows the bound: here it is too large.
    let at = start("b", 20_000).await;
    assert_eq!(supervisor.move_child("b", other(at.clone())).await, Ok(false));
    assert_eq!(counter(&supervisor, "b").add(1).await, Ok(20_001));
    // A process that is at something for long.
    let at = start("c", 7).await;
    let busy = counter(&supervisor, "c");
    let sleeper = tokio::spawn(async move { busy.sleep(6_000).await });
    until("it sleeps", || {
        let n = if at == one { 1 } else { 2 };
        let local = cluster.at(n).local::<Counter>("c").unwrap().unwrap();
        local.untyped().info().handling.is_some()
    })
    .await;
    assert_eq!(supervisor.move_child("c", other(at)).await, Ok(false));
    assert_eq!(sleeper.await.unwrap(), Ok(7));
    // To a node that does not have the kind, and to one that is not there.
    let three = cluster.nodes[&3].id().clone();
    assert_eq!(supervisor.move_child("a", &three).await, Ok(false));
    assert_eq!(counter(&supervisor, "a").add(1).await, Ok(7));
    let nobody = "nobody@1".parse().unwrap();
    assert_eq!(supervisor.move_child("a", &nobody).await, Ok(false));
    // With the other rule it moves without.
    for n in 1..=2 {
        let core =
            CoreConfig { on_hand_off_failure: OnHandOffFailure::Fresh, ..CoreConfig::default() };
        let config = SupervisorConfig { core, state_bytes_max: 1, ..SupervisorConfig::default() };
        cluster.at(n).configure(config).unwrap();
    }
    let at = supervisor.which("b").unwrap().node().unwrap().clone();
    assert_eq!(supervisor.move_child("b", other(at)).await, Ok(true));
    assert_eq!(counter(&supervisor, "b").add(0).await, Ok(20_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_singleton_runs_on_one_node_and_moves_on_with_a_greater_token() {
    let mut cluster = Cluster::of(3).await;
    let leases = Arc::new(SoleLeases::new(Arc::clone(cluster.nodes[&1].clock())));
    let fencing = Fencing { leases, ttl: Duration::from_secs(2) };
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    for (n, node) in &cluster.nodes {
        for fenced in [false, true] {
            let name = if fenced { "fenced" } else { "eventual" };
            let mut singleton = node.singleton(name).unwrap();
            if fenced {
                singleton = singleton.fenced(fencing.clone());
            }
            let (tell, n) = (tell.clone(), *n);
            let work = move |turn: Turn| {
                let tell = tell.clone();
                async move {
                    tell.send((n, turn)).unwrap();
                    std::future::pending::<Result<(), String>>().await
                }
            };
            singleton.run(work).await.unwrap();
            let known = |node: &purlin::Node| node.singleton(name).unwrap().which().is_some();
            until("all know of it", || cluster.nodes.values().all(known)).await;
        }
    }
    let mut next = async || tokio::time::timeout(PATIENCE, told.recv()).await.unwrap().unwrap();
    let mut first = [next().await, next().await];
    first.sort_by(|(_, a), (_, b)| a.name.cmp(&b.name));
    let [(at, eventual), (fenced_at, fenced)] = first;
    assert_eq!((&*eventual.name, &*fenced.name), ("eventual", "fenced"));
    // Drained, both go on elsewhere; the fenced one as soon as its lease is given back.
    for n in [at, fenced_at] {
        if let Some(node) = cluster.nodes.remove(&n) {
            node.drain(Some(PATIENCE)).await;
        }
    }
    let (mut tokens, mut last) = ((eventual.token, fenced.token), (0, 0));
    while last.0 == 0 || last.1 == 0 {
        let (n, turn) = next().await;
        let (before, at) = match &*turn.name {
            "eventual" => (&mut tokens.0, &mut last.0),
            _ => (&mut tokens.1, &mut last.1),
        };
        assert!(turn.token > *before, "{turn:?} after {before}");
        *before = turn.token;
        *at = if cluster.nodes.contains_key(&n) { n } else { 0 };
    }
    let node = cluster.nodes.values().next().unwrap();
    node.singleton("eventual").unwrap().stop().await.unwrap();
    assert_eq!(node.singleton("eventual").unwrap().which(), None);
}
