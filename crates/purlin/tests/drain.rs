//! Draining under load: what was accepted is answered, what comes later is refused undone.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use purlin::{
    DevAuthority, Node,
    cluster::{MemberCallError, Phase},
    core::{NodeName, Outcome},
    net::Method,
};

const WORK: Method<u64, u64> = Method::new("test.work");
const PATIENCE: Duration = Duration::from_secs(30);
/// Two callers, each this often: a thousand calls a second together.
const EVERY: Duration = Duration::from_millis(2);

#[derive(Debug, Default)]
struct Ledger {
    begun: Mutex<BTreeSet<u64>>,
    done: Mutex<BTreeSet<u64>>,
    refused: Mutex<Vec<(u64, MemberCallError)>>,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_accepted_before_a_drain_is_lost_and_none_after_it_is_begun() {
    let authority = DevAuthority::new().unwrap();
    let n1 = Node::builder().name("n1").dev(&authority).start().await.unwrap();
    let seed = [n1.cluster_addr()];
    let n2 = Node::builder().name("n2").dev(&authority).join(seed).start().await.unwrap();
    let n3 = Node::builder().name("n3").dev(&authority).join(seed).start().await.unwrap();
    for node in [&n1, &n2, &n3] {
        node.cluster().wait_for_members(3, PATIENCE).await.unwrap();
    }

    let ledger = Arc::new(Ledger::default());
    let record = Arc::clone(&ledger);
    n3.rpc()
        .serve(WORK, move |_call, id: u64| {
            record.begun.lock().unwrap().insert(id);
            async move {
                // Long enough that dozens are under way whenever the drain begins.
                tokio::time::sleep(Duration::from_millis(40)).await;
                Ok(id)
            }
        })
        .unwrap();

    let enough = Arc::new(AtomicBool::new(false));
    let callers = [(&n1, 0), (&n2, 1)].map(|(node, lane)| {
        tokio::spawn(call_on_and_on(
            node.clone(),
            n3.id().name.clone(),
            lane,
            Arc::clone(&ledger),
            Arc::clone(&enough),
        ))
    });
    until("calls are being answered", || ledger.done.lock().unwrap().len() > 300).await;
    let progress = n3.drain(Some(PATIENCE)).await;
    assert_eq!(progress.phase, Phase::Left, "{progress:?}");
    until("later calls are refused", || ledger.refused.lock().unwrap().len() > 100).await;
    enough.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.unwrap();
    }

    let (begun, done) = (ledger.begun.lock().unwrap().clone(), ledger.done.lock().unwrap().clone());
    let lost: Vec<_> = begun.difference(&done).collect();
    assert!(lost.is_empty(), "accepted and not answered: {lost:?}");
    for (id, error) in ledger.refused.lock().unwrap().iter() {
        assert_eq!(error.outcome(), Outcome::NotDone, "call {id}: {error}");
        assert!(!begun.contains(id), "call {id} was refused ({error}) although it was begun");
    }
    n2.shutdown().await;
    n1.shutdown().await;
}

async fn call_on_and_on(
    from: Node,
    to: NodeName,
    lane: u64,
    ledger: Arc<Ledger>,
    enough: Arc<AtomicBool>,
) {
    let mut ticks = tokio::time::interval(EVERY);
    let mut calls = tokio::task::JoinSet::new();
    for number in 0.. {
        if enough.load(Ordering::Relaxed) {
            break;
        }
        ticks.tick().await;
        let (id, from, to, ledger) =
            (number * 2 + lane, from.clone(), to.clone(), Arc::clone(&ledger));
        calls.spawn(async move {
            match from.rpc().call(&to, WORK, &id, PATIENCE).await {
                Ok(_) => drop(ledger.done.lock().unwrap().insert(id)),
                Err(error) => ledger.refused.lock().unwrap().push((id, error)),
            }
        });
    }
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let waiting = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .unwrap_or_else(|_| panic!("waited in vain until {what}"));
}
