//! Children that survive their node: started, found, failed over, moved and stopped by real nodes
//! in one process.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

mod children;

use std::{sync::Arc, time::Duration};

use children::{Cluster, Counter, CounterHandle, Counters, PATIENCE, id};
use purlin::dist::supervisor::{ChildOptions, StartChildError, Stopped, Supervisor};

fn counter(supervisor: &Supervisor, id: &str) -> CounterHandle {
    CounterHandle::from(supervisor.child::<Counter>(id).address())
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
    assert!(counter(&cluster.at(2), "again").born().await.unwrap().1 > before);
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
