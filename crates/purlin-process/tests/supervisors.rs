//! What supervision promises with real processes; its decisions are tested beside `lifecycle.rs`.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test has no readers of its docs, and may fail"
)]

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use purlin_process::{
    AnyProcess, Backoff, ChildError, ChildSpec, ChildState, Context, ExitReason, Handle, Info,
    Intensity, Message, Monitored, ProcessRef, Processes, Restart, Server, Shutdown, SpawnError,
    SpawnOptions, Strategy, SupervisorSpec,
};

/// What all workers of a test write down: who started and ended, in order.
type Log = Arc<Mutex<Vec<String>>>;

#[derive(Clone)]
struct Job {
    name: String,
    log: Log,
    /// How many starts fail from now on.
    fails: Arc<AtomicU32>,
}

struct Worker(Job);

impl Server for Worker {
    const KIND: &'static str = "Worker";
    type Args = Job;

    async fn init(job: Job, _ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
        let left = job.fails.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        if left.is_ok() {
            return Err(ExitReason::failed("not yet"));
        }
        job.log.lock().push(format!("+{}", job.name));
        Ok(Self(job))
    }

    async fn info(&mut self, info: Info, ctx: &mut Context<Self>) {
        if let Info::Message(_) = info {
            ctx.stop(ExitReason::failed("told to"));
        }
    }

    async fn terminate(&mut self, reason: &ExitReason, _ctx: &mut Context<Self>) {
        self.0.log.lock().push(format!("-{} {}", self.0.name, reason.as_str()));
    }
}

struct Crash;
impl Message for Crash {
    type Reply = ();
    const NAME: &'static str = "Worker.crash";
}
impl Handle<Crash> for Worker {
    async fn handle(&mut self, _: Crash, _ctx: &mut Context<Self>) {
        panic!("crash");
    }
}

struct Hang;
impl Message for Hang {
    type Reply = ();
    const NAME: &'static str = "Worker.hang";
}
impl Handle<Hang> for Worker {
    async fn handle(&mut self, _: Hang, _ctx: &mut Context<Self>) {
        std::future::pending().await
    }
}

struct Stage {
    processes: Processes,
    log: Log,
    fails: Arc<AtomicU32>,
}

impl Stage {
    fn new() -> Self {
        Self { processes: Processes::for_tests(), log: Log::default(), fails: Arc::default() }
    }

    fn worker(&self, name: &str) -> ChildSpec {
        let job = Job {
            name: name.to_owned(),
            log: Arc::clone(&self.log),
            fails: Arc::clone(&self.fails),
        };
        ChildSpec::server::<Worker>(name, move || job.clone()).options(SpawnOptions::named(name))
    }

    fn spec(&self, strategy: Strategy, names: &[&str]) -> SupervisorSpec {
        names.iter().fold(SupervisorSpec::new(strategy), |spec, name| spec.child(self.worker(name)))
    }

    fn whereis(&self, name: &str) -> ProcessRef<Worker> {
        self.processes.whereis(name).unwrap_or_else(|| panic!("{name} is not there"))
    }

    /// Crashes a worker and waits for its successor.
    async fn crash(&self, name: &str) {
        let before = self.whereis(name).id();
        drop(self.whereis(name).call(Crash).await);
        self.until_up_again(name, before).await;
    }

    async fn until_up_again(&self, name: &str, before: purlin_process::ProcessId) {
        until("a successor is up", || {
            self.processes.registry().whereis(name).is_some_and(|process| {
                process.id() != before && process.info().phase == purlin_process::Phase::Running
            })
        })
        .await;
    }

    fn taken_log(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock())
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("happens in time")
}

#[tokio::test]
async fn a_supervisor_is_there_once_its_children_are_and_ends_them_backwards() {
    let stage = Stage::new();
    let spec = stage.spec(Strategy::OneForOne, &["a", "b", "c"]).named("top");
    let top = stage.processes.supervise(spec).await.unwrap();
    assert_eq!(stage.taken_log(), ["+a", "+b", "+c"]);
    let children = top.children().await.unwrap();
    assert_eq!(children.iter().map(|child| &*child.id).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(children.iter().all(|child| child.state == ChildState::Running));
    let counts = top.count().await.unwrap();
    assert_eq!((counts.children, counts.running, counts.supervisors), (3, 3, 0));
    assert_eq!(soon(top.shutdown()).await, ExitReason::Shutdown);
    assert_eq!(stage.taken_log(), ["-c shutdown", "-b shutdown", "-a shutdown"]);
    assert_eq!(stage.processes.live(), 0);
}

#[tokio::test]
async fn a_first_child_that_fails_fails_the_start_and_leaves_nothing() {
    let stage = Stage::new();
    let fails = Arc::new(AtomicU32::new(u32::MAX));
    let job = Job { name: "b".into(), log: Arc::clone(&stage.log), fails };
    let bad = ChildSpec::server::<Worker>("b", move || job.clone());
    let spec = stage.spec(Strategy::OneForOne, &["a"]).child(bad).named("top");
    let error = soon(stage.processes.supervise(spec)).await.unwrap_err();
    let SpawnError::Init(ExitReason::Failed(why)) = &error else { panic!("{error}") };
    assert_eq!(&**why, "child \"b\" did not start: failed: not yet");
    assert_eq!(stage.taken_log(), ["+a", "-a shutdown"]);
    assert_eq!(stage.processes.live(), 0);
    assert!(stage.processes.registry().is_empty());
}

#[tokio::test]
async fn a_child_that_crashed_is_back_under_its_name_with_its_restarts_counted() {
    let stage = Stage::new();
    let top =
        stage.processes.supervise(stage.spec(Strategy::OneForOne, &["a", "b"])).await.unwrap();
    let b = stage.whereis("b");
    stage.crash("a").await;
    stage.crash("a").await;
    assert_eq!(stage.whereis("a").untyped().info().restarts, 2);
    assert_eq!(stage.whereis("b"), b, "b was left alone");
    assert_eq!(top.children().await.unwrap()[0].restarts, 2);
    soon(top.shutdown()).await;
}

#[tokio::test]
async fn the_strategies_take_down_whom_they_say_in_order() {
    for (strategy, expected) in [
        (Strategy::OneForOne, vec!["-b panicked", "+b"]),
        (Strategy::RestForOne, vec!["-b panicked", "-c shutdown", "+b", "+c"]),
        (Strategy::OneForAll, vec!["-b panicked", "-c shutdown", "-a shutdown", "+a", "+b", "+c"]),
    ] {
        let stage = Stage::new();
        let top = stage.processes.supervise(stage.spec(strategy, &["a", "b", "c"])).await.unwrap();
        stage.taken_log();
        drop(stage.whereis("b").call(Crash).await);
        until("all is done", || stage.log.lock().len() == expected.len()).await;
        assert_eq!(stage.taken_log(), expected, "{strategy:?}");
        soon(top.shutdown()).await;
        assert_eq!(stage.processes.live(), 0);
    }
}

#[tokio::test]
async fn a_supervisor_that_gives_up_says_why_and_the_one_above_starts_it_afresh() {
    let stage = Stage::new();
    let inner = stage.spec(Strategy::OneForOne, &["a"]).named("inner");
    let top = SupervisorSpec::new(Strategy::OneForOne).child(ChildSpec::supervisor("inner", inner));
    let top = stage.processes.supervise(top).await.unwrap();
    let before = stage.processes.registry().whereis("inner").unwrap();
    let end = tokio::spawn({
        let before = before.clone();
        async move { before.exited().await }
    });
    tokio::task::yield_now().await;
    for _ in 0..3 {
        stage.crash("a").await;
    }
    drop(stage.whereis("a").call(Crash).await);
    let ExitReason::Failed(why) = soon(end).await.unwrap() else { panic!("it failed") };
    assert_eq!(&*why, "more than 3 restarts in 5s; last, child \"a\": panicked: crash");
    stage.until_up_again("inner", before.id()).await;
    until("the worker is up", || stage.processes.whereis::<Worker>("a").is_some()).await;
    assert_eq!(top.count().await.unwrap().supervisors, 1);
    soon(top.shutdown()).await;
    assert_eq!(stage.processes.live(), 0);
}

#[tokio::test]
async fn a_supervisor_that_is_killed_takes_its_whole_tree_with_it() {
    let stage = Stage::new();
    let inner = stage.spec(Strategy::OneForOne, &["a", "b"]).named("inner");
    let top = SupervisorSpec::new(Strategy::OneForOne).child(ChildSpec::supervisor("inner", inner));
    let top = stage.processes.supervise(top).await.unwrap();
    assert_eq!(stage.processes.live(), 4);
    top.process().kill();
    until("nobody is left", || stage.processes.live() == 0).await;
    let log = stage.taken_log();
    assert!(
        log.contains(&"-a shutdown".to_owned()) && log.contains(&"-b shutdown".to_owned()),
        "{log:?}"
    );
}

#[tokio::test]
async fn children_come_and_go_at_run_time() {
    let stage = Stage::new();
    let spec = SupervisorSpec::new(Strategy::Dynamic).children_max(2);
    let top = stage.processes.supervise(spec).await.unwrap();
    let a = top.start::<Worker>(stage.worker("a")).await.unwrap();
    let duplicate = top.start_child(stage.worker("a")).await.unwrap_err();
    assert_eq!(duplicate.to_string(), "child \"a\" exists already");
    top.start_child(stage.worker("b")).await.unwrap();
    let many = top.start_child(stage.worker("c")).await.unwrap_err();
    assert_eq!(many.to_string(), "2 children exist; the limit is 2");
    top.stop_child("a").await.unwrap();
    assert!(!a.is_alive());
    assert_eq!(top.children().await.unwrap()[0].state, ChildState::Down);
    let again = top.restart_child("a").await.unwrap();
    assert_ne!(again.id(), a.id());
    let once_more = top.restart_child("a").await.unwrap();
    assert_ne!(once_more.id(), again.id(), "one that runs is taken down first");
    top.remove_child("a").await.unwrap();
    let unknown = top.remove_child("a").await.unwrap_err();
    assert_eq!(unknown.to_string(), "no child \"a\"");
    stage.fails.store(1, Ordering::SeqCst);
    let failed = top.start_child(stage.worker("d")).await.unwrap_err();
    assert!(matches!(failed, ChildError::NotStarted(ExitReason::Failed(_))), "{failed}");
    let clash = top.start_child(
        ChildSpec::server::<Worker>("e", {
            let (log, fails) = (Arc::clone(&stage.log), Arc::clone(&stage.fails));
            move || Job { name: "e".into(), log: Arc::clone(&log), fails: Arc::clone(&fails) }
        })
        .options(SpawnOptions::named("b")),
    );
    let clash = clash.await.unwrap_err();
    assert!(clash.to_string().contains("name \"b\" is taken"), "{clash}");
    assert_eq!(top.count().await.unwrap().children, 1);
    soon(top.shutdown()).await;
    assert_eq!(stage.processes.live(), 0);
    let ended = top.start_child(stage.worker("f")).await.unwrap_err();
    assert!(matches!(ended, ChildError::Unreachable(_)), "{ended}");
}

#[tokio::test]
async fn arguments_that_panic_while_they_are_made_are_the_childs_failure() {
    let stage = Stage::new();
    let top = stage.processes.supervise(SupervisorSpec::new(Strategy::Dynamic)).await.unwrap();
    let spec = ChildSpec::server::<Worker>("a", || panic!("no arguments today"));
    let failed = top.start_child(spec).await.unwrap_err();
    assert!(failed.to_string().contains("no arguments today"), "{failed}");
    assert!(top.process().is_alive());
    soon(top.shutdown()).await;
}

#[tokio::test]
async fn transient_and_temporary_children_follow_their_rules() {
    let stage = Stage::new();
    let spec = SupervisorSpec::new(Strategy::OneForOne)
        .child(stage.worker("transient").restart(Restart::Transient))
        .child(stage.worker("temporary").restart(Restart::Temporary));
    let top = stage.processes.supervise(spec).await.unwrap();
    stage.crash("transient").await;
    let transient = stage.whereis("transient");
    transient.stop(ExitReason::Normal);
    transient.exited().await;
    drop(stage.whereis("temporary").call(Crash).await);
    let start = Instant::now();
    loop {
        let children = top.children().await.unwrap();
        if children.len() == 1 && children[0].state == ChildState::Down {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{children:?}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    soon(top.shutdown()).await;
}

#[tokio::test]
async fn a_child_that_does_not_end_is_killed_and_a_brutal_one_at_once() {
    let stage = Stage::new();
    let spec = SupervisorSpec::new(Strategy::OneForOne)
        .child(stage.worker("a").shutdown(Shutdown::Within(Duration::from_millis(50))))
        .child(stage.worker("b").shutdown(Shutdown::Kill));
    let top = stage.processes.supervise(spec).await.unwrap();
    stage.whereis("a").try_cast(Hang).unwrap();
    let a = stage.whereis("a").untyped();
    until("a hangs", || a.info().handling.is_some()).await;
    assert_eq!(soon(top.shutdown()).await, ExitReason::Shutdown);
    assert_eq!(stage.taken_log(), ["+a", "+b"], "neither ran its terminate");
    assert_eq!(stage.processes.live(), 0);
}

#[tokio::test]
async fn backoff_spaces_restarts_out_and_quarantine_ends_them_alone() {
    let stage = Stage::new();
    let first = Duration::from_millis(60);
    let limit = Intensity { restarts_max: 1, within: Duration::from_secs(60) };
    let spec = SupervisorSpec::new(Strategy::OneForOne)
        .child(stage.worker("slow").backoff(Backoff { first, most: Duration::from_secs(1) }))
        .child(stage.worker("poison").quarantine(limit));
    let top = stage.processes.supervise(spec).await.unwrap();
    let start = Instant::now();
    stage.crash("slow").await;
    assert!(start.elapsed() >= first, "{:?}", start.elapsed());
    stage.crash("poison").await;
    drop(stage.whereis("poison").call(Crash).await);
    let start = Instant::now();
    while top.count().await.unwrap().quarantined != 1 {
        assert!(start.elapsed() < Duration::from_secs(60));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    top.restart_child("poison").await.unwrap();
    assert_eq!(top.count().await.unwrap().running, 2);
    soon(top.shutdown()).await;
}

#[tokio::test]
async fn a_start_that_fails_on_restart_is_tried_again_within_the_intensity() {
    let stage = Stage::new();
    let top = stage.processes.supervise(stage.spec(Strategy::OneForOne, &["a"])).await.unwrap();
    stage.fails.store(2, Ordering::SeqCst);
    stage.crash("a").await;
    assert_eq!(stage.whereis("a").untyped().info().restarts, 3);
    soon(top.shutdown()).await;
}

#[tokio::test]
async fn the_whole_system_shuts_down_through_its_supervisors_in_order() {
    let stage = Stage::new();
    let inner = stage.spec(Strategy::OneForOne, &["b", "c"]);
    let top = stage
        .spec(Strategy::OneForOne, &["a"])
        .child(ChildSpec::supervisor("inner", inner))
        .child(stage.worker("d"));
    let _top = stage.processes.supervise(top).await.unwrap();
    stage.taken_log();
    let report = soon(stage.processes.shutdown(Duration::from_secs(30))).await;
    assert_eq!((report.drained, report.killed), (1, 0));
    assert_eq!(stage.taken_log(), ["-d shutdown", "-c shutdown", "-b shutdown", "-a shutdown"]);
    assert_eq!(stage.processes.live(), 0);
}

// --- the storm

/// Writes down every end of every supervisor and worker life, with the time.
struct Ends {
    /// Per supervisor life: when its children crashed.
    crashes: Mutex<BTreeMap<u64, Vec<Instant>>>,
    total: AtomicUsize,
}

struct Bomb;

impl Server for Bomb {
    const KIND: &'static str = "Bomb";
    type Args = Arc<Ends>;

    async fn init(ends: Arc<Ends>, ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
        let parent = ctx.me().untyped().info().parent.unwrap();
        // Every life ends in a crash: counted here, since each start is followed by one.
        ends.crashes.lock().entry(parent.0).or_default().push(Instant::now());
        ends.total.fetch_add(1, Ordering::SeqCst);
        ctx.timer_once("boom", Duration::ZERO);
        Ok(Self)
    }

    async fn info(&mut self, _: Info, _ctx: &mut Context<Self>) {
        panic!("boom");
    }
}

/// Acceptance: ten thousand crashes under a tree of supervisors. Each life of a supervisor
/// restarts its bomb at most three times and then gives up; the one above starts a fresh life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_ten_thousand_crashes_keeps_the_intensity_and_leaks_no_task() {
    const CRASHES: usize = 10_000;
    // The storm's panics are meant; a backtrace for each would take longer than the storm.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if panic.payload().downcast_ref::<&str>() != Some(&"boom") {
            hook(panic);
        }
    }));
    let processes = Processes::for_tests();
    let tasks_before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let ends = Arc::new(Ends { crashes: Mutex::default(), total: AtomicUsize::new(0) });
    let endless = Intensity { restarts_max: u32::MAX, within: Duration::from_secs(1) };
    let mut top = SupervisorSpec::new(Strategy::OneForOne).intensity(endless);
    for squad in 0..8 {
        let bomb = ChildSpec::server::<Bomb>("bomb", {
            let ends = Arc::clone(&ends);
            move || Arc::clone(&ends)
        });
        let squad_spec = SupervisorSpec::new(Strategy::OneForOne).child(bomb);
        top = top.child(ChildSpec::supervisor(format!("squad {squad}"), squad_spec));
    }
    let top = processes.supervise(top).await.unwrap();
    let start = Instant::now();
    while ends.total.load(Ordering::SeqCst) < CRASHES {
        assert!(
            start.elapsed() < Duration::from_secs(300),
            "{}",
            ends.total.load(Ordering::SeqCst)
        );
        assert!(processes.live() <= 1 + 8 + 8, "{} alive", processes.live());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(soon(top.shutdown()).await, ExitReason::Shutdown);
    let crashes = std::mem::take(&mut *ends.crashes.lock());
    let Intensity { restarts_max, within } = Intensity::default();
    for (supervisor, starts) in &crashes {
        for (first, from) in starts.iter().enumerate() {
            // A start after `first` is a restart: at most so many may lie within the window.
            let restarts = starts[first..].iter().skip(1).take_while(|at| **at - *from <= within);
            let restarts = restarts.count();
            assert!(
                restarts <= restarts_max as usize,
                "supervisor {supervisor}: {restarts} restarts in {within:?}"
            );
        }
    }
    assert!(crashes.len() >= CRASHES / 4, "each life had at most four starts");
    assert_eq!(processes.live(), 0);
    assert!(processes.spawned() >= CRASHES as u64);
    // The deadline sweeper is the one task a process system keeps.
    let metrics = tokio::runtime::Handle::current().metrics();
    until("no task is left over", || metrics.num_alive_tasks() <= tasks_before + 1).await;
}

/// A child is monitored across its restarts by anybody, as any process.
#[tokio::test]
async fn a_child_can_be_watched_like_any_process() {
    let stage = Stage::new();
    let top = stage.processes.supervise(stage.spec(Strategy::OneForOne, &["a"])).await.unwrap();
    let child: AnyProcess = stage.whereis("a").untyped();
    struct Sink(Mutex<Option<tokio::sync::oneshot::Sender<ExitReason>>>);
    impl purlin_process::DownSink for Sink {
        fn down(&self, _: purlin_process::MonitorId, _: &purlin_process::Pid, reason: &ExitReason) {
            drop(self.0.lock().take().unwrap().send(reason.clone()));
        }
    }
    let (tell, told) = tokio::sync::oneshot::channel();
    let monitor = stage.processes.next_monitor();
    let watch = child.watch(monitor, Arc::new(Sink(Mutex::new(Some(tell)))));
    drop(stage.whereis("a").call(Crash).await);
    assert_eq!(soon(told).await.unwrap(), ExitReason::Panicked("crash".into()));
    drop(watch);
    soon(top.shutdown()).await;
}
