//! Draining under load: what was accepted is answered, what comes later is refused undone.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use purlin::{
    DevAuthority, Node,
    cluster::{MemberCallError, Phase},
    core::Outcome,
    net::Method,
    process::{CallError, SpawnOptions},
};
use tokio::task::{JoinHandle, JoinSet};

const WORK: Method<u64, u64> = Method::new("test.work");
const PATIENCE: Duration = Duration::from_secs(120);
/// Two callers, each this often: a thousand calls a second together.
const EVERY: Duration = Duration::from_millis(2);

/// What became of each call, written down on both sides.
#[derive(Debug, Default)]
struct Ledger {
    begun: Mutex<BTreeSet<u64>>,
    done: Mutex<BTreeSet<u64>>,
    refused: Mutex<Vec<(u64, Outcome, String)>>,
}

impl Ledger {
    fn ended<E: std::fmt::Display>(
        &self,
        id: u64,
        end: Result<u64, E>,
        outcome: impl Fn(&E) -> Outcome,
    ) {
        match end {
            Ok(_) => drop(self.done.lock().unwrap().insert(id)),
            Err(error) => {
                self.refused.lock().unwrap().push((id, outcome(&error), error.to_string()))
            }
        }
    }

    /// What was begun was answered; what was refused was not begun; nothing is unknown.
    fn check(&self) {
        let (begun, done) = (self.begun.lock().unwrap(), self.done.lock().unwrap());
        let lost: Vec<_> = begun.difference(&done).collect();
        assert!(lost.is_empty(), "accepted and not answered: {lost:?}");
        for (id, outcome, error) in self.refused.lock().unwrap().iter() {
            assert_eq!(*outcome, Outcome::NotDone, "call {id}: {error}");
            assert!(!begun.contains(id), "call {id} was refused ({error}) although it was begun");
        }
    }
}

async fn three_nodes() -> [Node; 3] {
    let authority = DevAuthority::new().unwrap();
    let n1 = Node::builder().name("n1").dev(&authority).start().await.unwrap();
    let seed = [n1.cluster_addr()];
    let n2 = Node::builder().name("n2").dev(&authority).join(seed).start().await.unwrap();
    let n3 = Node::builder().name("n3").dev(&authority).join(seed).start().await.unwrap();
    for node in [&n1, &n2, &n3] {
        node.cluster().wait_for_members(3, PATIENCE).await.unwrap();
    }
    [n1, n2, n3]
}

/// Calls on and on from n1 and n2 while n3 drains.
async fn drain_under_load<F>(nodes: [Node; 3], ledger: Arc<Ledger>, call: impl Fn(&Node, u64) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let [n1, n2, n3] = nodes;
    let mut calls = JoinSet::new();
    let mut ticks = tokio::time::interval(EVERY);
    // A slow machine gets fewer calls, not all of them at once.
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut id = 0;
    let mut draining = None;
    let deadline = Instant::now() + PATIENCE;
    loop {
        ticks.tick().await;
        for node in [&n1, &n2] {
            calls.spawn(call(node, id));
            id += 1;
        }
        if draining.is_none() && ledger.done.lock().unwrap().len() > 300 {
            let node = n3.clone();
            draining = Some(tokio::spawn(async move { node.drain(Some(PATIENCE)).await }));
        }
        let has_left = draining.as_ref().is_some_and(JoinHandle::is_finished);
        if has_left && ledger.refused.lock().unwrap().len() > 100 {
            break;
        }
        assert!(
            Instant::now() < deadline,
            "{} of {id} answered",
            ledger.done.lock().unwrap().len()
        );
    }
    let progress = draining.unwrap().await.unwrap();
    assert_eq!(progress.phase, Phase::Left, "{progress:?}");
    assert_eq!(progress.problems, Vec::<String>::new());
    while let Some(call) = calls.join_next().await {
        call.unwrap();
    }
    ledger.check();
    n2.shutdown().await;
    n1.shutdown().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_named_call_accepted_before_a_drain_is_lost() {
    let nodes = three_nodes().await;
    let ledger = Arc::new(Ledger::default());
    let record = Arc::clone(&ledger);
    let work = move |_call, id: u64| {
        record.begun.lock().unwrap().insert(id);
        async move {
            // Long enough that dozens are under way whenever the drain begins.
            tokio::time::sleep(Duration::from_millis(40)).await;
            Ok(id)
        }
    };
    nodes[2].rpc().serve(WORK, work).unwrap();
    let to = nodes[2].id().name.clone();
    let record = Arc::clone(&ledger);
    drain_under_load(nodes, ledger, move |node, id| {
        let (rpc, to, record) = (node.rpc().clone(), to.clone(), Arc::clone(&record));
        async move {
            let end = rpc.call(&to, WORK, &id, PATIENCE).await;
            record.ended(id, end, MemberCallError::outcome);
        }
    })
    .await;
}

struct Worker {
    ledger: Arc<Ledger>,
}

#[purlin::server]
impl Worker {
    #[init]
    fn hire(ledger: Arc<Ledger>) -> Self {
        Self { ledger }
    }

    #[call]
    async fn work(&mut self, id: u64) -> u64 {
        self.ledger.begun.lock().unwrap().insert(id);
        // One at a time, so that others wait in the mailbox when the drain begins.
        tokio::time::sleep(Duration::from_micros(500)).await;
        id
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_of_a_process_accepted_before_a_drain_is_lost() {
    let nodes = three_nodes().await;
    let ledger = Arc::new(Ledger::default());
    let hired = WorkerHandle::spawn_with(
        nodes[2].processes(),
        SpawnOptions::named("worker"),
        Arc::clone(&ledger),
    );
    let _kept = hired.await.unwrap();
    let mut handles = BTreeMap::new();
    for node in &nodes[..2] {
        let found = node.remote().whereis::<Worker>(&nodes[2].id().name, "worker", PATIENCE).await;
        let worker = WorkerHandle::from(found.unwrap().unwrap()).within(PATIENCE);
        handles.insert(node.id().clone(), worker);
    }
    let record = Arc::clone(&ledger);
    drain_under_load(nodes, ledger, move |node, id| {
        let (worker, record) = (handles[node.id()].clone(), Arc::clone(&record));
        async move {
            let end = worker.work(id).await;
            record.ended(id, end, CallError::outcome);
        }
    })
    .await;
}
