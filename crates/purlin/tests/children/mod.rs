//! What tests of supervisors share: a kind that counts, clusters, and waiting for conditions.

#![expect(unreachable_pub, reason = "shared by tests, each of which uses a part")]

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use purlin::{
    DevAuthority, Node,
    dist::supervisor::{Birth, ChildOptions, Kind, KindError, Supervisor},
    net::FaultRule,
    process::ExitReason,
};

/// Under load of a busy machine everything takes its time; a test that fails waits this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Counters of this start are refused by their kind.
pub const REFUSED: u64 = 1_000_001;
/// The kind panics at counters of this start.
pub const PANICS: u64 = 1_000_002;

/// Counts what it is told to, and knows what it was told at birth.
pub struct Counter {
    start: u64,
    count: u64,
    fence: u64,
    restarts: u32,
}

#[purlin::server]
impl Counter {
    #[init]
    pub fn open(start: u64, count: u64, fence: u64, restarts: u32) -> Self {
        Self { start, count, fence, restarts }
    }

    /// Adds to the count and tells what it is now.
    #[call]
    pub fn add(&mut self, by: u64) -> u64 {
        self.count += by;
        self.count
    }

    /// What it was started from, its fence and how often it was started again.
    #[call]
    pub fn born(&self) -> (u64, u64, u32) {
        (self.start, self.fence, self.restarts)
    }

    /// Fails.
    #[cast]
    pub fn fail(&mut self) {
        panic!("on purpose");
    }

    /// Takes its time.
    #[call]
    pub async fn sleep(&mut self, millis: u64) -> u64 {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        self.count
    }
}

/// [`Counter`]s that take their count along.
pub struct Counters;

impl Kind for Counters {
    const NAME: &'static str = "counter";
    type Server = Counter;
    type Args = u64;
    type State = u64;

    fn args(&self, start: u64, birth: Birth<u64>) -> Result<(u64, u64, u64, u32), KindError> {
        if start == REFUSED {
            return Err(KindError::refused("not that number"));
        }
        assert_ne!(start, PANICS, "a constructor may panic");
        Ok((start, birth.state.unwrap_or(start), birth.fence.0, birth.restarts))
    }

    fn hand_off(&self, counter: &mut Counter) -> Option<u64> {
        Some(counter.count)
    }
}

/// The same without arguments, for actors.
pub struct Actors;

impl Kind for Actors {
    const NAME: &'static str = "actor";
    type Server = Counter;
    type Args = ();
    type State = u64;

    fn args(&self, (): (), birth: Birth<u64>) -> Result<(u64, u64, u64, u32), KindError> {
        Ok((0, birth.state.unwrap_or(0), birth.fence.0, birth.restarts))
    }

    fn hand_off(&self, counter: &mut Counter) -> Option<u64> {
        Some(counter.count)
    }
}

impl Counter {
    /// What it counted since it was started from nothing.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// Fails in `init`, each time.
pub struct Poison;

#[purlin::server]
impl Poison {
    #[init]
    pub async fn open(hangs: bool) -> Result<Self, ExitReason> {
        if hangs {
            std::future::pending::<()>().await;
        }
        tokio::task::yield_now().await;
        Err(ExitReason::failed("poison"))
    }
}

pub struct Cluster {
    pub nodes: BTreeMap<usize, Node>,
    authority: DevAuthority,
    life: AtomicU64,
}

impl Cluster {
    pub async fn of(count: usize) -> Self {
        let authority = DevAuthority::new().unwrap();
        let mut cluster = Self { nodes: BTreeMap::new(), authority, life: AtomicU64::new(1) };
        for n in 1..=count {
            cluster.join(n).await;
        }
        cluster
    }

    /// The node `n` joins, and has the kinds.
    pub async fn join(&mut self, n: usize) {
        let seeds: Vec<_> = self.nodes.values().map(Node::cluster_addr).collect();
        self.life.fetch_add(1, Ordering::Relaxed);
        let builder = Node::builder().name(format!("n{n}")).dev(&self.authority).join(seeds);
        let node = builder.start().await.unwrap();
        let supervisor = node.supervisor("test").unwrap();
        supervisor.register_kind(Counters).unwrap();
        supervisor.register_kind(Actors).unwrap();
        self.nodes.insert(n, node);
        self.settle().await;
    }

    /// All see each other, and each other's kinds.
    pub async fn settle(&self) {
        for node in self.nodes.values() {
            let alive = || node.cluster().view().alive().count() == self.nodes.len();
            until("everybody is there, and nobody else", alive).await;
            let supervisor = node.supervisor("test").unwrap();
            let ids: Vec<_> = self.nodes.values().map(|node| node.id().clone()).collect();
            let known = || {
                let hosts = supervisor.hosts("actor");
                ids.iter().all(|id| hosts.contains(id))
            };
            until("everybody's kinds are known", known).await;
        }
    }

    pub fn at(&self, n: usize) -> Supervisor {
        self.nodes[&n].supervisor("test").unwrap()
    }

    /// As if its process had been killed: no goodbye, its address refuses.
    pub async fn kill(&mut self, n: usize) {
        let node = self.nodes.remove(&n).unwrap();
        node.cluster().stop().await;
        node.transport().close();
    }

    /// Cuts the node `alone` off from all others, until all have seen it.
    pub async fn cut_off(&self, alone: usize) {
        let first = &self.nodes[&alone];
        let others: Vec<_> = self.nodes.iter().filter(|(n, _)| **n != alone).collect();
        for (_, other) in &others {
            let cut = |node: &Node| FaultRule::cut(node.id().name.clone());
            first.transport().faults().add(cut(other)).unwrap();
            other.transport().faults().add(cut(first)).unwrap();
        }
        let alive = |node: &Node| node.cluster().view().alive().count();
        let seen =
            || alive(first) == 1 && others.iter().all(|(_, node)| alive(node) == others.len());
        until("the cut is seen", seen).await;
    }

    pub async fn heal(&self) {
        for node in self.nodes.values() {
            node.transport().faults().clear();
        }
        self.settle().await;
    }

    /// Starts `count` children by turns from all nodes.
    pub async fn start(&self, count: usize) {
        let supervisors: Vec<_> = self.nodes.keys().map(|&n| self.at(n)).collect();
        for i in 0..count {
            let supervisor = &supervisors[i % supervisors.len()];
            let start = u64::try_from(i).unwrap();
            let options = ChildOptions::default();
            supervisor.start_child::<Counters>(&id(i), &start, options).await.unwrap();
        }
    }

    /// Whether each of `count` children runs on a node that is there, as all nodes say, and
    /// nothing else does.
    pub fn all_run(&self, count: usize) -> Result<(), String> {
        let mut running = 0;
        for node in self.nodes.values() {
            let counters = node.processes().list();
            running += counters.iter().filter(|it| it.kind == "Counter").count();
        }
        if running != count {
            return Err(format!("{running} processes run"));
        }
        for n in self.nodes.keys() {
            let children = self.at(*n).children("", None, usize::MAX);
            if children.len() != count {
                return Err(format!("n{n} knows {} children", children.len()));
            }
            for child in children {
                let pid = child.pid().ok_or_else(|| format!("{child:?} does not run"))?;
                let node = self.nodes.values().find(|node| *node.id() == pid.node);
                let node = node.ok_or_else(|| format!("{child:?} is on a node that is gone"))?;
                if node.processes().get(pid.process).is_none() {
                    return Err(format!("n{n}: {child:?} has no process"));
                }
            }
        }
        Ok(())
    }

    pub async fn until_none_run(&self, kind: &str) {
        let runs = |node: &Node| node.processes().list().iter().any(|it| it.kind == kind);
        until("no process is left", || !self.nodes.values().any(runs)).await;
    }

    pub async fn until_all_run(&self, count: usize) {
        let mut last = Ok(());
        let waited = tokio::time::timeout(PATIENCE, async {
            loop {
                last = self.all_run(count);
                if last.is_ok() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let over = waited.await;
        assert!(over.is_ok(), "{last:?}");
    }
}

pub fn id(n: usize) -> String {
    format!("child-{n:04}")
}

pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited in vain until {what}");
}
