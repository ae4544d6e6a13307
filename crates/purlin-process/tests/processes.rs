//! What processes promise, one sentence each.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test has no readers of its docs, and may fail"
)]

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use purlin_core::{Advice, Clock, Deadline, Incarnation, Outcome, TraceContext, WallTime};
use purlin_process::{
    Answer, AnyProcess, CallError, CastError, ConsumeRoute, Consumed, Context, Envelope,
    ExitReason, Handle, Inbound, Info, MailboxLimits, Message, MessageKind, Metadata, MonitorId,
    Overload, Phase, ProcessLimits, ProcessRef, Processes, RegisterError, RemoteServer, ReplyRoute,
    ReplyTo, Server, SpawnError, SpawnOptions, SummaryError, Target, Undelivered,
};
use tokio::sync::{Notify, mpsc};

/// A server that does what its messages say, and reports what happens to it.
struct Puppet {
    report: mpsc::UnboundedSender<Seen>,
    value: u32,
}

#[derive(Debug, PartialEq)]
enum Seen {
    Exit(ExitReason),
    Down(MonitorId, ExitReason),
    Timer(&'static str),
    Message(&'static str),
    Added(u32),
    Terminated(ExitReason),
}

type Report = mpsc::UnboundedReceiver<Seen>;

struct Wiring {
    report: mpsc::UnboundedSender<Seen>,
    init: Init,
}

enum Init {
    Succeeds,
    Fails,
    Panics,
    Hangs,
}

impl Server for Puppet {
    const KIND: &'static str = "Puppet";
    type Args = Wiring;

    async fn init(wiring: Wiring, _ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
        match wiring.init {
            Init::Succeeds => Ok(Self { report: wiring.report, value: 0 }),
            Init::Fails => Err(ExitReason::failed("no luck")),
            Init::Panics => panic!("no luck at all"),
            Init::Hangs => std::future::pending().await,
        }
    }

    async fn info(&mut self, info: Info, _ctx: &mut Context<Self>) {
        let seen = match info {
            Info::Exit { reason, .. } => Seen::Exit(reason),
            Info::Down { monitor, reason, .. } => Seen::Down(monitor, reason),
            Info::Timer(key) => Seen::Timer(key),
            Info::Message(message) => Seen::Message(message.downcast_ref::<&str>().unwrap()),
            other => panic!("{other:?}"),
        };
        drop(self.report.send(seen));
    }

    async fn terminate(&mut self, reason: &ExitReason, _ctx: &mut Context<Self>) {
        drop(self.report.send(Seen::Terminated(reason.clone())));
        if self.value == 666 {
            panic!("not even an end in peace");
        }
        if self.value == 999 {
            std::future::pending::<()>().await;
        }
    }

    fn summary(&self) -> String {
        format!("at {}", self.value)
    }
}

struct Add(u32);
struct Wait(Arc<Notify>);
struct Panic;
/// Something done with the context.
struct Do(Box<Deed>);
type Deed = dyn FnOnce(&mut Context<Puppet>) + Send;

impl Message for Add {
    type Reply = u32;
    const NAME: &'static str = "Puppet.add";
}
impl Message for Wait {
    type Reply = ();
    const NAME: &'static str = "Puppet.wait";
}
impl Message for Panic {
    type Reply = ();
    const NAME: &'static str = "Puppet.panic";
}
impl Message for Do {
    type Reply = ();
    const NAME: &'static str = "Puppet.do";
}

impl Handle<Add> for Puppet {
    async fn handle(&mut self, add: Add, _ctx: &mut Context<Self>) -> u32 {
        self.value += add.0;
        drop(self.report.send(Seen::Added(add.0)));
        self.value
    }
}
impl Handle<Wait> for Puppet {
    async fn handle(&mut self, wait: Wait, _ctx: &mut Context<Self>) {
        wait.0.notified().await;
    }
}
impl Handle<Panic> for Puppet {
    async fn handle(&mut self, _: Panic, _ctx: &mut Context<Self>) {
        panic!("as told");
    }
}
impl Handle<Do> for Puppet {
    async fn handle(&mut self, what: Do, ctx: &mut Context<Self>) {
        (what.0)(ctx);
    }
}

async fn puppet(processes: &Processes, options: SpawnOptions) -> (ProcessRef<Puppet>, Report) {
    let (report, seen) = mpsc::unbounded_channel();
    let wiring = Wiring { report, init: Init::Succeeds };
    (processes.spawn(wiring, options).await.unwrap(), seen)
}

async fn plain(processes: &Processes) -> (ProcessRef<Puppet>, Report) {
    puppet(processes, SpawnOptions::default()).await
}

async fn with(
    puppet: &ProcessRef<Puppet>,
    what: impl FnOnce(&mut Context<Puppet>) + Send + 'static,
) {
    puppet.call(Do(Box::new(what))).await.unwrap();
}

/// A process system whose time is that of the paused runtime: it passes only while everybody waits,
/// so no deadline is reached because this machine was busy with something else.
fn in_virtual_time() -> Processes {
    #[derive(Debug)]
    struct Virtual(tokio::time::Instant);
    impl Clock for Virtual {
        fn now(&self) -> purlin_core::Instant {
            purlin_core::Instant::from_start(self.0.elapsed())
        }

        fn wall(&self) -> WallTime {
            WallTime::from_millis(1_000_000_000_000)
        }
    }
    let node = Processes::for_tests().node().clone();
    Processes::new(node, Arc::new(Virtual(tokio::time::Instant::now())))
}

/// Waits for a condition; the bound is for a machine under load.
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

fn small(messages_max: usize, overload: Overload) -> SpawnOptions {
    SpawnOptions::default().mailbox(MailboxLimits {
        messages_max,
        overload,
        ..MailboxLimits::default()
    })
}

/// Makes the process wait in a message, and fills its mailbox behind that.
async fn stuck(puppet: &ProcessRef<Puppet>) -> Arc<Notify> {
    let release = Arc::new(Notify::new());
    puppet.try_cast(Wait(Arc::clone(&release))).unwrap();
    let process = puppet.untyped();
    until("the process waits", || process.info().handling == Some("Puppet.wait")).await;
    release
}

// --- calls and casts

#[tokio::test]
async fn messages_of_one_sender_are_handled_in_order() {
    let processes = Processes::for_tests();
    let (puppet, mut seen) = plain(&processes).await;
    for n in 0..1_000 {
        puppet.cast(Add(n)).await.unwrap();
    }
    for n in 0..1_000 {
        assert_eq!(seen.recv().await, Some(Seen::Added(n)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn calls_of_many_callers_each_get_their_own_answer() {
    let processes = Processes::for_tests();
    let (puppet, _seen) = plain(&processes).await;
    let callers = (0..32).map(|_| {
        let puppet = puppet.clone();
        tokio::spawn(async move {
            let mut last = 0;
            for _ in 0..500 {
                let now = puppet.call(Add(1)).await.unwrap();
                assert!(now > last, "{now} after {last}");
                last = now;
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    assert_eq!(puppet.call(Add(0)).await, Ok(16_000));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_behind_a_stuck_one_is_withdrawn_at_its_deadline() {
    let processes = in_virtual_time();
    let (puppet, mut seen) = plain(&processes).await;
    let release = stuck(&puppet).await;
    for within in [Duration::from_millis(20), Duration::from_millis(150)] {
        let start = tokio::time::Instant::now();
        let error = soon(puppet.call_within(Add(1), within)).await.unwrap_err();
        assert_eq!(error, CallError::Expired(within));
        assert_eq!((error.outcome(), error.advice()), (Outcome::NotDone, Advice::Retry));
        assert!(start.elapsed() >= within, "{:?} is early", start.elapsed());
    }
    release.notify_one();
    assert_eq!(puppet.call(Add(5)).await, Ok(5));
    assert_eq!(seen.recv().await, Some(Seen::Added(5)), "the withdrawn ones never ran");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_being_handled_at_its_deadline_is_unknown() {
    let processes = in_virtual_time();
    let (puppet, _seen) = plain(&processes).await;
    for within in [Duration::from_millis(20), Duration::from_millis(150)] {
        let release = Arc::new(Notify::new());
        let error = soon(puppet.call_within(Wait(Arc::clone(&release)), within)).await.unwrap_err();
        assert_eq!(error, CallError::NoReply(within));
        assert_eq!(
            (error.outcome(), error.advice()),
            (Outcome::Unknown, Advice::SameRequestIdOnly)
        );
        release.notify_one();
        // Its late answer is nobody's: the next call gets its own.
        assert_eq!(puppet.call(Add(0)).await, Ok(0));
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_takes_its_waiting_message_with_it() {
    let processes = Processes::for_tests();
    let (puppet, mut seen) = plain(&processes).await;
    let release = stuck(&puppet).await;
    {
        let mut call = Box::pin(puppet.call(Add(1)));
        let first = std::future::poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_pending()));
        assert!(first.await);
    }
    release.notify_one();
    puppet.call(Add(2)).await.unwrap();
    assert_eq!(seen.recv().await, Some(Seen::Added(2)));
}

#[tokio::test]
async fn a_process_that_calls_itself_is_told_so_instead_of_waiting_for_ever() {
    struct Narcissus;
    struct LookAtMyself;
    impl Message for LookAtMyself {
        type Reply = Result<(), CallError>;
        const NAME: &'static str = "Narcissus.look";
    }
    impl Server for Narcissus {
        const KIND: &'static str = "Narcissus";
        type Args = ();
        async fn init((): (), _ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
            Ok(Self)
        }
    }
    impl Handle<LookAtMyself> for Narcissus {
        async fn handle(
            &mut self,
            _: LookAtMyself,
            ctx: &mut Context<Self>,
        ) -> Result<(), CallError> {
            let me = ctx.me();
            Box::pin(async move { me.call(LookAtMyself).await.map(drop) }).await
        }
    }
    let processes = Processes::for_tests();
    let narcissus = processes.spawn::<Narcissus>((), SpawnOptions::default()).await.unwrap();
    assert_eq!(soon(narcissus.call(LookAtMyself)).await, Ok(Err(CallError::CallsItself)));
}

#[tokio::test(start_paused = true)]
async fn two_processes_that_call_each_other_wait_until_the_deadline_and_no_longer() {
    struct Partner(Option<ProcessRef<Self>>);
    struct Meet(ProcessRef<Partner>);
    struct Ask;
    impl Message for Meet {
        type Reply = ();
        const NAME: &'static str = "Partner.meet";
    }
    impl Message for Ask {
        type Reply = Result<(), CallError>;
        const NAME: &'static str = "Partner.ask";
    }
    impl Server for Partner {
        const KIND: &'static str = "Partner";
        type Args = ();
        async fn init((): (), _ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
            Ok(Self(None))
        }
    }
    impl Handle<Meet> for Partner {
        async fn handle(&mut self, meet: Meet, _ctx: &mut Context<Self>) {
            self.0 = Some(meet.0);
        }
    }
    impl Handle<Ask> for Partner {
        async fn handle(&mut self, _: Ask, _ctx: &mut Context<Self>) -> Result<(), CallError> {
            let other = self.0.clone().unwrap();
            let ask = async move { other.call_within(Ask, Duration::from_millis(120)).await };
            Box::pin(ask).await.map(drop)
        }
    }
    let processes = in_virtual_time();
    let a = processes.spawn::<Partner>((), SpawnOptions::default()).await.unwrap();
    let b = processes.spawn::<Partner>((), SpawnOptions::default()).await.unwrap();
    a.call(Meet(b.clone())).await.unwrap();
    b.call(Meet(a.clone())).await.unwrap();
    let answer = soon(a.call(Ask)).await.unwrap();
    // Whichever of the two deadlines is noticed first, both end.
    assert!(matches!(answer, Ok(()) | Err(CallError::NoReply(_))), "{answer:?}");
}

// --- overload

#[tokio::test]
async fn a_full_mailbox_that_rejects_says_how_full_it_is() {
    let processes = Processes::for_tests();
    let (puppet, _seen) = puppet(&processes, small(2, Overload::Reject)).await;
    let _release = stuck(&puppet).await;
    puppet.try_cast(Add(1)).unwrap();
    puppet.try_cast(Add(1)).unwrap();
    let full = puppet.try_cast(Add(1)).unwrap_err();
    assert!(matches!(full, CastError::Overloaded { messages: 2, messages_max: 2, .. }), "{full}");
    assert!(matches!(puppet.cast(Add(1)).await, Err(CastError::Overloaded { .. })));
    let full = puppet.call(Add(1)).await.unwrap_err();
    assert!(matches!(full, CallError::Overloaded { messages: 2, .. }), "{full}");
    assert_eq!(full.outcome(), Outcome::NotDone);
}

#[tokio::test]
async fn the_bound_in_bytes_holds_too_but_one_large_message_fits_an_empty_mailbox() {
    struct Blob(usize);
    impl Message for Blob {
        type Reply = ();
        const NAME: &'static str = "Puppet.blob";
        fn bytes(&self) -> usize {
            self.0
        }
    }
    impl Handle<Blob> for Puppet {
        async fn handle(&mut self, blob: Blob, _ctx: &mut Context<Self>) {
            drop(self.report.send(Seen::Added(u32::try_from(blob.0).unwrap())));
        }
    }
    let processes = Processes::for_tests();
    let limits =
        MailboxLimits { bytes_max: 1_000, overload: Overload::Reject, ..MailboxLimits::default() };
    let (puppet, mut seen) = puppet(&processes, SpawnOptions::default().mailbox(limits)).await;
    let release = stuck(&puppet).await;
    puppet.try_cast(Blob(5_000)).unwrap();
    let full = puppet.try_cast(Blob(1)).unwrap_err();
    assert!(matches!(full, CastError::Overloaded { bytes: 5_000, bytes_max: 1_000, .. }), "{full}");
    release.notify_one();
    assert_eq!(seen.recv().await, Some(Seen::Added(5_000)));
}

#[tokio::test]
async fn drop_oldest_makes_room_and_tells_the_caller_that_lost() {
    let processes = Processes::for_tests();
    let (puppet, mut seen) = puppet(&processes, small(2, Overload::DropOldest)).await;
    let release = stuck(&puppet).await;
    let oldest = tokio::spawn({
        let puppet = puppet.clone();
        async move { puppet.call(Add(1)).await }
    });
    let process = puppet.untyped();
    until("the call waits", || process.info().mailbox_messages == 1).await;
    puppet.try_cast(Add(2)).unwrap();
    puppet.try_cast(Add(3)).unwrap();
    assert!(matches!(oldest.await.unwrap(), Err(CallError::Overloaded { .. })));
    assert_eq!(process.info().dropped, 1);
    release.notify_one();
    assert_eq!(seen.recv().await, Some(Seen::Added(2)));
    assert_eq!(seen.recv().await, Some(Seen::Added(3)));
}

#[tokio::test]
async fn drop_oldest_also_finds_messages_already_taken_into_the_batch() {
    let processes = Processes::for_tests();
    let (puppet, mut seen) = puppet(&processes, small(3, Overload::DropOldest)).await;
    let release = Arc::new(Notify::new());
    // All in one batch: the process has not run in between on this single thread.
    puppet.try_cast(Wait(Arc::clone(&release))).unwrap();
    puppet.try_cast(Add(1)).unwrap();
    puppet.try_cast(Add(2)).unwrap();
    let process = puppet.untyped();
    until("the process waits", || process.info().handling == Some("Puppet.wait")).await;
    for n in 3..=5 {
        puppet.try_cast(Add(n)).unwrap();
    }
    release.notify_one();
    for n in 3..=5 {
        assert_eq!(seen.recv().await, Some(Seen::Added(n)));
    }
    assert_eq!(process.info().dropped, 2);
}

#[tokio::test(start_paused = true)]
async fn a_sender_waits_for_room_and_no_longer_than_the_policy_says() {
    let processes = in_virtual_time();
    let options = small(1, Overload::Wait(Duration::from_millis(100)));
    let (puppet, mut seen) = puppet(&processes, options).await;
    let release = stuck(&puppet).await;
    puppet.try_cast(Add(1)).unwrap();
    assert!(matches!(puppet.try_cast(Add(9)), Err(CastError::Overloaded { .. })));
    let start = tokio::time::Instant::now();
    assert!(matches!(soon(puppet.cast(Add(9))).await, Err(CastError::Overloaded { .. })));
    assert!(start.elapsed() >= Duration::from_millis(100));
    // A call's own deadline is the shorter one here.
    let within = Duration::from_millis(30);
    let error = soon(puppet.call_within(Add(9), within)).await.unwrap_err();
    assert!(matches!(error, CallError::Overloaded { .. }), "{error}");
    let casting = tokio::spawn({
        let puppet = puppet.clone();
        async move {
            // Beyond the policy's patience each, but room is made meanwhile.
            puppet.cast(Add(2)).await
        }
    });
    release.notify_one();
    soon(casting).await.unwrap().unwrap();
    assert_eq!(seen.recv().await, Some(Seen::Added(1)));
    assert_eq!(seen.recv().await, Some(Seen::Added(2)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_senders_at_a_small_mailbox_all_get_through() {
    let processes = Processes::for_tests();
    let options = small(4, Overload::Wait(Duration::from_secs(60)));
    let (puppet, _seen) = puppet(&processes, options).await;
    let senders: Vec<_> = (0..16)
        .map(|_| {
            let puppet = puppet.clone();
            tokio::spawn(async move {
                for _ in 0..200 {
                    puppet.cast(Add(1)).await.unwrap();
                }
            })
        })
        .collect();
    for sender in senders {
        soon(sender).await.unwrap();
    }
    assert_eq!(soon(puppet.call_within(Add(0), Duration::from_secs(60))).await, Ok(3_200));
}

// --- ends

#[tokio::test(start_paused = true)]
async fn an_init_that_fails_panics_or_hangs_leaves_nothing_behind() {
    let processes = in_virtual_time();
    let (report, _seen) = mpsc::unbounded_channel();
    let wiring = |init| Wiring { report: report.clone(), init };
    let options = || SpawnOptions {
        start_within: Duration::from_millis(30),
        ..SpawnOptions::named("puppet")
    };
    let failed = processes.spawn::<Puppet>(wiring(Init::Fails), options()).await.unwrap_err();
    assert_eq!(failed, SpawnError::Init(ExitReason::failed("no luck")));
    let panicked = processes.spawn::<Puppet>(wiring(Init::Panics), options()).await.unwrap_err();
    assert_eq!(panicked, SpawnError::Init(ExitReason::Panicked("no luck at all".into())));
    let hung = processes.spawn::<Puppet>(wiring(Init::Hangs), options()).await.unwrap_err();
    assert_eq!(hung, SpawnError::InitTooSlow(Duration::from_millis(30)));
    assert_eq!(processes.live(), 0);
    assert!(processes.registry().is_empty());
    let cancelled = tokio::time::timeout(
        Duration::from_millis(20),
        processes.spawn::<Puppet>(wiring(Init::Hangs), SpawnOptions::default()),
    );
    assert!(cancelled.await.is_err());
    until("a start nobody waits for any more is killed", || processes.live() == 0).await;
}

#[tokio::test]
async fn a_panic_is_an_exit_reason_and_reaches_the_caller_those_who_wait_and_terminate() {
    let processes = Processes::for_tests();
    let (puppet, mut seen) = plain(&processes).await;
    let release = stuck(&puppet).await;
    let panicking = tokio::spawn({
        let puppet = puppet.clone();
        async move { puppet.call(Panic).await }
    });
    let process = puppet.untyped();
    until("the panic waits", || process.info().mailbox_messages == 1).await;
    let behind = tokio::spawn({
        let puppet = puppet.clone();
        async move { puppet.call(Add(1)).await }
    });
    until("another waits", || process.info().mailbox_messages == 2).await;
    release.notify_one();
    let reason = ExitReason::Panicked("as told".into());
    let during = panicking.await.unwrap().unwrap_err();
    assert_eq!(during, CallError::ExitedDuring(reason.clone()));
    assert_eq!(during.outcome(), Outcome::Unknown);
    let before = behind.await.unwrap().unwrap_err();
    assert_eq!(before, CallError::ExitedBefore(reason.clone()));
    assert_eq!(before.outcome(), Outcome::NotDone);
    assert_eq!(seen.recv().await, Some(Seen::Terminated(reason)));
    until("it is gone", || processes.live() == 0).await;
    assert!(matches!(puppet.call(Add(1)).await, Err(CallError::NoProcess(_))));
    assert!(matches!(puppet.cast(Add(1)).await, Err(CastError::NoProcess(_))));
}

#[tokio::test(start_paused = true)]
async fn a_panic_or_a_hang_in_terminate_still_ends_the_process() {
    let processes = in_virtual_time();
    let (puppet_a, _seen) = plain(&processes).await;
    puppet_a.call(Add(666)).await.unwrap();
    puppet_a.stop(ExitReason::Normal);
    let reason = soon(puppet_a.exited()).await;
    assert!(matches!(reason, ExitReason::Panicked(_) | ExitReason::NoProcess), "{reason}");

    let options =
        SpawnOptions { terminate_within: Duration::from_millis(20), ..SpawnOptions::default() };
    let (puppet_b, _seen) = puppet(&processes, options).await;
    puppet_b.call(Add(999)).await.unwrap();
    let end = tokio::spawn({
        let puppet = puppet_b.clone();
        async move { puppet.exited().await }
    });
    tokio::task::yield_now().await;
    puppet_b.stop(ExitReason::Normal);
    assert_eq!(soon(end).await.unwrap(), ExitReason::Killed);
    until("both are gone", || processes.live() == 0).await;
}

#[tokio::test]
async fn a_kill_ends_a_process_inside_a_message_without_terminate() {
    let processes = Processes::for_tests();
    let (puppet, mut seen) = plain(&processes).await;
    let waiting = tokio::spawn({
        let puppet = puppet.clone();
        async move { puppet.call(Wait(Arc::new(Notify::new()))).await }
    });
    let process = puppet.untyped();
    until("it waits", || process.info().handling == Some("Puppet.wait")).await;
    puppet.kill();
    assert_eq!(waiting.await.unwrap(), Err(CallError::ExitedDuring(ExitReason::Killed)));
    assert_eq!(seen.recv().await, None, "terminate did not run, and the state is dropped");
    until("it is gone", || processes.live() == 0).await;
}

#[tokio::test]
async fn a_stop_finishes_the_current_message_and_a_drain_all_that_wait() {
    let processes = Processes::for_tests();
    let (puppet_a, mut seen) = plain(&processes).await;
    let release = stuck(&puppet_a).await;
    puppet_a.try_cast(Add(1)).unwrap();
    puppet_a.stop(ExitReason::stopped("enough"));
    release.notify_one();
    assert_eq!(seen.recv().await, Some(Seen::Terminated(ExitReason::stopped("enough"))));

    let (puppet_b, mut seen) = plain(&processes).await;
    let release = stuck(&puppet_b).await;
    let accepted = tokio::spawn({
        let puppet = puppet_b.clone();
        async move { puppet.call(Add(1)).await }
    });
    let process = puppet_b.untyped();
    until("the call waits", || process.info().mailbox_messages == 1).await;
    puppet_b.drain();
    assert!(matches!(puppet_b.cast(Add(2)).await, Err(CastError::NoProcess(_))));
    release.notify_one();
    assert_eq!(accepted.await.unwrap(), Ok(1), "what was accepted before the drain is done");
    assert_eq!(seen.recv().await, Some(Seen::Added(1)));
    assert_eq!(seen.recv().await, Some(Seen::Terminated(ExitReason::Shutdown)));
}

#[tokio::test]
async fn a_server_that_stops_itself_still_answers_the_message_it_is_at() {
    let processes = Processes::for_tests();
    let (puppet, mut seen) = plain(&processes).await;
    with(&puppet, |ctx| ctx.stop(ExitReason::Normal)).await;
    assert_eq!(seen.recv().await, Some(Seen::Terminated(ExitReason::Normal)));
}

// --- links and monitors

#[tokio::test]
async fn a_link_takes_the_other_down_unless_it_traps_or_the_end_was_normal() {
    let processes = Processes::for_tests();
    let (a, _seen_a) = plain(&processes).await;
    let (b, mut seen_b) = plain(&processes).await;
    let (c, mut seen_c) = puppet(&processes, SpawnOptions::default().trap_exit()).await;
    let (d, _seen_d) = plain(&processes).await;
    for other in [&b, &c] {
        let other = other.clone();
        with(&a, move |ctx| ctx.link(&other)).await;
    }
    let a_too = a.clone();
    with(&d, move |ctx| {
        ctx.link(&a_too);
        ctx.unlink(&a_too);
    })
    .await;
    drop(a.call(Panic).await);
    let reason = ExitReason::Panicked("as told".into());
    assert_eq!(seen_b.recv().await, Some(Seen::Terminated(reason.clone())));
    assert_eq!(seen_c.recv().await, Some(Seen::Exit(reason)));
    assert_eq!(c.call(Add(1)).await, Ok(1));
    assert_eq!(d.call(Add(1)).await, Ok(1), "the link was undone");

    let (e, _seen_e) = plain(&processes).await;
    let (f, _seen_f) = plain(&processes).await;
    let e_too = e.clone();
    with(&f, move |ctx| ctx.link(&e_too)).await;
    e.stop(ExitReason::Normal);
    e.exited().await;
    assert_eq!(f.call(Add(1)).await, Ok(1));
}

#[tokio::test]
async fn a_failing_link_interrupts_a_message_at_its_await_point() {
    let processes = Processes::for_tests();
    let (a, _seen_a) = plain(&processes).await;
    let (b, mut seen_b) = plain(&processes).await;
    let b_too = b.clone();
    with(&a, move |ctx| ctx.link(&b_too)).await;
    let _never = stuck(&b).await;
    drop(a.call(Panic).await);
    assert_eq!(
        soon(seen_b.recv()).await,
        Some(Seen::Terminated(ExitReason::Panicked("as told".into())))
    );
}

#[tokio::test]
async fn links_and_monitors_to_the_dead_fire_at_once() {
    let processes = Processes::for_tests();
    let (dead, _seen) = plain(&processes).await;
    dead.kill();
    dead.exited().await;
    assert_eq!(soon(dead.exited()).await, ExitReason::NoProcess);
    let (a, mut seen) = puppet(&processes, SpawnOptions::default().trap_exit()).await;
    let dead_too = dead.clone();
    with(&a, move |ctx| ctx.link(&dead_too)).await;
    assert_eq!(seen.recv().await, Some(Seen::Exit(ExitReason::NoProcess)));
    with(&a, move |ctx| {
        ctx.monitor(&dead);
    })
    .await;
    let down = seen.recv().await;
    assert!(matches!(down, Some(Seen::Down(_, ExitReason::NoProcess))), "{down:?}");
}

#[tokio::test]
async fn a_monitor_fires_once_after_the_last_message_and_not_when_cancelled() {
    let processes = Processes::for_tests();
    let (watcher, mut seen) = plain(&processes).await;
    let (watched, _seen) = plain(&processes).await;
    let target = watched.clone();
    with(&watcher, move |ctx| {
        let cancelled = ctx.monitor(&target);
        ctx.monitor(&target);
        assert!(ctx.demonitor(cancelled));
        assert!(!ctx.demonitor(cancelled));
    })
    .await;
    let to = watcher.clone();
    with(&watched, move |_| to.try_cast(Add(7)).unwrap()).await;
    watched.stop(ExitReason::stopped("done"));
    assert_eq!(seen.recv().await, Some(Seen::Added(7)), "sent before the end, seen before it");
    let down = seen.recv().await;
    let Some(Seen::Down(_, reason)) = down else { panic!("{down:?}") };
    assert_eq!(reason, ExitReason::stopped("done"));
    watcher.call(Add(0)).await.unwrap();
    assert_eq!(seen.recv().await, Some(Seen::Added(0)));
    assert!(seen.try_recv().is_err(), "nothing else came");
    assert_eq!(watcher.untyped().info().monitors, 0);
}

#[tokio::test]
async fn a_process_started_linked_dies_with_its_starter_even_if_it_traps() {
    struct Parent;
    struct Bear(mpsc::UnboundedSender<Seen>);
    impl Message for Bear {
        type Reply = ProcessRef<Puppet>;
        const NAME: &'static str = "Parent.bear";
    }
    impl Server for Parent {
        const KIND: &'static str = "Parent";
        type Args = ();
        async fn init((): (), _ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
            Ok(Self)
        }
    }
    impl Handle<Bear> for Parent {
        async fn handle(&mut self, bear: Bear, ctx: &mut Context<Self>) -> ProcessRef<Puppet> {
            let wiring = Wiring { report: bear.0, init: Init::Succeeds };
            ctx.spawn_linked(wiring, SpawnOptions::default().trap_exit()).await.unwrap()
        }
    }
    let processes = Processes::for_tests();
    let parent = processes.spawn::<Parent>((), SpawnOptions::default()).await.unwrap();
    let (report, mut seen) = mpsc::unbounded_channel();
    let child = parent.call(Bear(report)).await.unwrap();
    assert_eq!(child.untyped().info().parent, Some(parent.id()));
    parent.kill();
    assert_eq!(soon(seen.recv()).await, Some(Seen::Terminated(ExitReason::Killed)));
}

// --- timers and infos

#[tokio::test(start_paused = true)]
async fn timers_fire_between_messages_and_can_be_cancelled() {
    let processes = in_virtual_time();
    let (puppet, mut seen) = plain(&processes).await;
    with(&puppet, |ctx| {
        ctx.timer_once("late", Duration::from_millis(20));
        ctx.timer_once("never", Duration::from_millis(10));
        ctx.timer_every("tick", Duration::from_millis(5));
        assert!(ctx.timer_cancel("never"));
        assert!(!ctx.timer_cancel("never"));
    })
    .await;
    let mut ticks = 0;
    loop {
        match soon(seen.recv()).await {
            Some(Seen::Timer("tick")) => ticks += 1,
            Some(Seen::Timer("late")) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(ticks >= 1, "{ticks} ticks before 20 ms");
    with(&puppet, |ctx| {
        ctx.timer_cancel("tick");
    })
    .await;
    puppet.send_info("hello").unwrap();
    loop {
        match soon(seen.recv()).await {
            Some(Seen::Timer("tick")) => {}
            Some(Seen::Message("hello")) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(seen.try_recv().is_err());
}

#[tokio::test]
async fn timers_fire_though_messages_never_stop_coming() {
    let processes = Processes::for_tests();
    let (puppet, mut seen) = plain(&processes).await;
    with(&puppet, |ctx| ctx.timer_once("now", Duration::from_millis(5))).await;
    let stop = Arc::new(AtomicBool::new(false));
    let flood = tokio::spawn({
        let (puppet, stop) = (puppet.clone(), Arc::clone(&stop));
        async move {
            while !stop.load(Ordering::Relaxed) {
                puppet.cast(Add(0)).await.unwrap();
            }
        }
    });
    let fired = async { while seen.recv().await != Some(Seen::Timer("now")) {} };
    soon(fired).await;
    stop.store(true, Ordering::Relaxed);
    flood.await.unwrap();
}

#[tokio::test]
async fn a_hot_process_does_not_starve_the_others_of_its_thread() {
    struct Hot(Arc<AtomicU32>);
    struct Again;
    impl Message for Again {
        type Reply = ();
        const NAME: &'static str = "Hot.again";
    }
    impl Server for Hot {
        const KIND: &'static str = "Hot";
        type Args = Arc<AtomicU32>;
        async fn init(turns: Arc<AtomicU32>, _ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
            Ok(Self(turns))
        }
    }
    impl Handle<Again> for Hot {
        async fn handle(&mut self, _: Again, ctx: &mut Context<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
            ctx.me().try_cast(Again).unwrap();
        }
    }
    let processes = Processes::for_tests();
    let turns = Arc::new(AtomicU32::new(0));
    let hot = processes.spawn::<Hot>(Arc::clone(&turns), SpawnOptions::default()).await.unwrap();
    hot.try_cast(Again).unwrap();
    // One thread for all: without yielding, this would never get a turn again.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(turns.load(Ordering::Relaxed) > 0);
    hot.kill();
    soon(hot.exited()).await;
}

// --- names

#[tokio::test]
async fn a_name_is_taken_until_its_process_has_ended_and_free_when_the_end_is_told() {
    let processes = Processes::for_tests();
    let (first, _seen) = puppet(&processes, SpawnOptions::named("king")).await;
    let (report, _seen2) = mpsc::unbounded_channel();
    let wiring = Wiring { report: report.clone(), init: Init::Succeeds };
    let taken = processes.spawn::<Puppet>(wiring, SpawnOptions::named("king")).await.unwrap_err();
    assert_eq!(taken, SpawnError::NameTaken { name: "king".into(), by: first.id() });
    assert_eq!(processes.live(), 1, "the refused one was never there");
    assert_eq!(processes.whereis::<Puppet>("king"), Some(first.clone()));
    first.kill();
    first.exited().await;
    assert!(processes.registry().whereis("king").is_none());
    let wiring = Wiring { report, init: Init::Succeeds };
    processes.spawn::<Puppet>(wiring, SpawnOptions::named("king")).await.unwrap();
}

#[tokio::test]
async fn a_lookup_never_returns_a_process_that_takes_no_messages() {
    let processes = Processes::for_tests();
    let (puppet, _seen) = puppet(&processes, SpawnOptions::named("busy")).await;
    processes.registry().join("workers", &puppet, Metadata::default()).unwrap();
    let release = stuck(&puppet).await;
    puppet.drain();
    assert!(processes.registry().whereis("busy").is_none());
    assert!(processes.registry().members("workers").is_empty());
    assert!(processes.registry().select("").is_empty());
    let (report, _seen) = mpsc::unbounded_channel();
    let wiring = Wiring { report, init: Init::Succeeds };
    let taken = processes.spawn::<Puppet>(wiring, SpawnOptions::named("busy")).await;
    assert!(matches!(taken, Err(SpawnError::NameTaken { .. })), "its successor must wait");
    release.notify_one();
    until("the registrations are gone", || processes.registry().is_empty()).await;
}

#[tokio::test]
async fn keys_are_shared_carry_metadata_and_are_found_by_prefix() {
    let processes = Processes::for_tests();
    let registry = processes.registry();
    let (a, _seen_a) = plain(&processes).await;
    let (b, _seen_b) = plain(&processes).await;
    let zone = |zone: &str| Metadata::from_iter([("zone", zone)]);
    registry.join("room/1", &a, zone("x")).unwrap();
    registry.join("room/1", &b, zone("y")).unwrap();
    registry.join("room/1", &b, zone("z")).unwrap();
    registry.register("room/boss", &a, Metadata::default()).unwrap();
    registry.join("hall", &a, Metadata::default()).unwrap();
    let zones: Vec<_> = registry
        .members("room/1")
        .iter()
        .map(|member| member.metadata.get("zone").unwrap().to_owned())
        .collect();
    assert_eq!(zones, ["x", "z"]);
    let found: Vec<_> = registry
        .select("room/")
        .iter()
        .map(|found| (found.key.to_string(), found.unique, found.process.id()))
        .collect();
    assert_eq!(
        found,
        [
            ("room/1".to_owned(), false, a.id()),
            ("room/1".to_owned(), false, b.id()),
            ("room/boss".to_owned(), true, a.id())
        ]
    );
    assert!(registry.leave("room/1", &b));
    assert!(!registry.leave("room/1", &b));
    assert!(registry.unregister("room/boss"));
    a.kill();
    a.exited().await;
    assert!(registry.is_empty());
    assert_eq!(
        registry.register("late", &a, Metadata::default()),
        Err(RegisterError::NoProcess(a.id()))
    );
    assert_eq!(registry.register("", &b, Metadata::default()), Err(RegisterError::Length(0)));
}

// --- the whole

#[tokio::test(start_paused = true)]
async fn a_list_shows_what_everybody_is_at() {
    let processes = in_virtual_time();
    let (puppet, _seen) = puppet(&processes, SpawnOptions::named("busy")).await;
    puppet.call(Add(1)).await.unwrap();
    let release = stuck(&puppet).await;
    puppet.try_cast(Add(1)).unwrap();
    let [row] = &processes.list()[..] else { panic!("{:?}", processes.list()) };
    assert_eq!((row.kind, row.name.as_deref()), ("Puppet", Some("busy")));
    assert_eq!((row.phase, row.handling), (Phase::Running, Some("Puppet.wait")));
    assert_eq!((row.mailbox_messages, row.handled, row.restarts), (1, 2, 0));
    assert!(row.mailbox_bytes >= size_of::<Add>());
    let process = puppet.untyped();
    let busy = process.summary(Duration::from_millis(20)).await;
    assert!(matches!(busy, Err(SummaryError::Busy { .. })), "{busy:?}");
    release.notify_one();
    assert_eq!(soon(process.summary(Duration::from_secs(30))).await, Ok("at 1".into()));
    puppet.kill();
    puppet.exited().await;
    let gone = process.summary(Duration::from_secs(1)).await;
    assert_eq!(gone, Err(SummaryError::NoProcess(puppet.id())));
    assert!(processes.list().is_empty());
}

#[tokio::test]
async fn the_number_of_processes_is_bounded() {
    let limits = ProcessLimits { processes_max: 1 };
    let sample = Processes::for_tests();
    let processes =
        Processes::with_limits(sample.node().clone(), Arc::clone(sample.clock()), limits);
    let (only, _seen) = plain(&processes).await;
    let (report, _seen) = mpsc::unbounded_channel();
    let wiring = || Wiring { report: report.clone(), init: Init::Succeeds };
    let refused = processes.spawn::<Puppet>(wiring(), SpawnOptions::default()).await.unwrap_err();
    assert_eq!(refused, SpawnError::TooMany { live: 1, processes_max: 1 });
    only.kill();
    only.exited().await;
    processes.spawn::<Puppet>(wiring(), SpawnOptions::default()).await.unwrap();
}

#[tokio::test]
async fn a_shutdown_ends_the_youngest_first_does_accepted_work_and_starts_nothing() {
    let processes = Processes::for_tests();
    let (report, mut seen) = mpsc::unbounded_channel();
    let mut puppets = Vec::new();
    for n in 0..3 {
        let wiring = Wiring { report: report.clone(), init: Init::Succeeds };
        let puppet = processes.spawn::<Puppet>(wiring, SpawnOptions::default()).await.unwrap();
        puppet.try_cast(Add(n)).unwrap();
        puppets.push(puppet);
    }
    let shutdown = soon(processes.shutdown(Duration::from_secs(30))).await;
    assert_eq!((shutdown.drained, shutdown.killed, shutdown.stuck), (3, 0, 0));
    assert_eq!(processes.live(), 0);
    let mut added = Vec::new();
    while let Ok(seen) = seen.try_recv() {
        if let Seen::Added(n) = seen {
            added.push(n);
        }
    }
    added.sort_unstable();
    assert_eq!(added, [0, 1, 2]);
    let wiring = Wiring { report, init: Init::Succeeds };
    let refused = processes.spawn::<Puppet>(wiring, SpawnOptions::default()).await.unwrap_err();
    assert_eq!(refused, SpawnError::ShuttingDown);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_kills_what_does_not_end_in_time() {
    let processes = in_virtual_time();
    let options =
        SpawnOptions { drain_within: Duration::from_millis(20), ..SpawnOptions::default() };
    let (puppet, _seen) = puppet(&processes, options).await;
    let _never = stuck(&puppet).await;
    let shutdown = soon(processes.shutdown(Duration::from_secs(30))).await;
    assert_eq!((shutdown.drained, shutdown.killed), (0, 1));
}

#[tokio::test]
async fn a_reference_without_its_type_finds_it_again() {
    let processes = Processes::for_tests();
    let (puppet, _seen) = plain(&processes).await;
    let untyped: AnyProcess = (&puppet).into();
    assert_eq!(untyped.kind(), "Puppet");
    assert_eq!(untyped.downcast::<Puppet>(), Some(puppet));
    struct Other;
    impl Server for Other {
        const KIND: &'static str = "Other";
        type Args = ();
        async fn init((): (), _ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
            Ok(Self)
        }
    }
    assert_eq!(untyped.downcast::<Other>(), None);
}

#[test]
fn a_runtime_that_goes_away_takes_its_processes_out_of_the_count() {
    let processes = Processes::for_tests();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let (puppet, _seen) = runtime.block_on(plain(&processes));
    assert_eq!(processes.live(), 1);
    drop(runtime);
    assert_eq!(processes.live(), 0);
    assert!(!puppet.is_alive());
    // And another runtime can start anew, deadlines included.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (puppet, _seen) = plain(&processes).await;
        let _never = stuck(&puppet).await;
        let within = Duration::from_millis(150);
        let expired = soon(puppet.call_within(Add(1), within)).await;
        assert_eq!(expired, Err(CallError::Expired(within)));
    });
}

// --- what travels with messages

struct WhatTravels;

impl Message for WhatTravels {
    type Reply = (Option<TraceContext>, Option<Deadline>);
    const NAME: &'static str = "Puppet.what_travels";
}
impl Handle<WhatTravels> for Puppet {
    async fn handle(
        &mut self,
        _: WhatTravels,
        ctx: &mut Context<Self>,
    ) -> (Option<TraceContext>, Option<Deadline>) {
        assert_eq!(purlin_process::current_trace(), ctx.trace().copied());
        (ctx.trace().copied(), ctx.deadline())
    }
}

#[tokio::test]
async fn deadline_and_trace_travel_with_a_call() {
    let processes = Processes::for_tests();
    let (puppet, _seen) = plain(&processes).await;
    let trace: TraceContext =
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
    let before = processes.clock().now();
    let within = Duration::from_secs(3);
    let call = purlin_process::with_trace(trace, puppet.call_within(WhatTravels, within));
    let (seen, deadline) = call.await.unwrap();
    assert_eq!(seen, Some(trace));
    assert!(deadline.unwrap().at >= before + within);
    assert_eq!(puppet.call(WhatTravels).await.unwrap().0, None);
}

// --- the seam to other nodes

#[derive(serde::Serialize, serde::Deserialize)]
struct Put(u32);

impl Message for Put {
    type Reply = u32;
    const NAME: &'static str = "Puppet.put";
}
impl Handle<Put> for Puppet {
    async fn handle(&mut self, put: Put, _ctx: &mut Context<Self>) -> u32 {
        self.value += put.0;
        self.value
    }
}
impl RemoteServer for Puppet {
    fn receive(
        kind: MessageKind,
        payload: &[u8],
        inbound: Inbound,
    ) -> Result<Envelope<Self>, Undelivered> {
        match kind {
            Put::KIND => inbound.decode::<Self, Put>(payload),
            _ => Err(inbound.unknown::<Self>(kind)),
        }
    }
}

type Answered = Result<Vec<u8>, CallError>;

/// Collects what goes back to the other node.
#[derive(Default)]
struct Back {
    answers: Mutex<Vec<(u64, Answered)>>,
    consumed: AtomicU64,
}

impl ReplyRoute for Back {
    fn answer(&self, request: u64, answer: Answer<'_>) {
        let answer = match answer {
            Answer::Reply(value) => {
                let mut bytes = Vec::new();
                value.encode(&mut bytes).unwrap();
                Ok(bytes)
            }
            Answer::Failed(error) => Err(error.clone()),
        };
        self.answers.lock().push((request, answer));
    }
}

impl ConsumeRoute for Back {
    fn consumed(&self, amount: u64) {
        self.consumed.fetch_add(amount, Ordering::SeqCst);
    }
}

impl Back {
    fn call(self: &Arc<Self>, request: u64) -> Inbound {
        let reply = ReplyTo::new(Arc::clone(self) as Arc<dyn ReplyRoute>, request);
        Inbound { reply: Some(reply), ..self.cast() }
    }

    fn cast(self: &Arc<Self>) -> Inbound {
        let route = Arc::clone(self) as Arc<dyn ConsumeRoute>;
        Inbound { consumed: Some(Consumed::new(route, 1)), ..Inbound::default() }
    }

    async fn answer(&self, request: u64) -> Answered {
        let find = || {
            let answers = self.answers.lock();
            answers.iter().find(|(id, _)| *id == request).map(|(_, answer)| answer.clone())
        };
        until("the answer is there", || find().is_some()).await;
        find().unwrap()
    }
}

#[tokio::test]
async fn what_comes_from_elsewhere_is_delivered_answered_once_and_given_back() {
    let processes = Processes::for_tests();
    let (report, _seen) = mpsc::unbounded_channel();
    let wiring = Wiring { report, init: Init::Succeeds };
    let options = SpawnOptions::named("far")
        .mailbox(MailboxLimits { messages_max: 1, ..MailboxLimits::default() });
    let puppet = processes.spawn_remote::<Puppet>(wiring, options).await.unwrap();
    let me = processes.node().incarnation;
    let to = Target::Id(puppet.id());
    let back = Arc::new(Back::default());
    let two = postcard::to_stdvec(&Put(2)).unwrap();

    processes.deliver(me, to, Put::KIND, &two, back.call(1)).unwrap();
    assert_eq!(back.answer(1).await, Ok(vec![2]));
    processes.deliver(me, Target::Name("far"), Put::KIND, &two, back.cast()).unwrap();
    until("both were consumed", || back.consumed.load(Ordering::SeqCst) == 2).await;

    let stale = processes.deliver(Incarnation(0), to, Put::KIND, &two, back.call(2));
    assert!(matches!(stale, Err(CallError::Stale { .. })), "{stale:?}");
    let nobody = Target::Id(purlin_process::ProcessId(99));
    let unknown = processes.deliver(me, nobody, Put::KIND, &two, back.call(3));
    assert!(matches!(unknown, Err(CallError::NoProcess(_))), "{unknown:?}");
    let kind = MessageKind::of("Puppet.never_heard");
    let unheard = processes.deliver(me, to, kind, &two, back.call(4));
    assert!(matches!(unheard, Err(CallError::UnknownMessage { .. })), "{unheard:?}");
    for garbage in [&[][..], &[2, 2], &[0xff; 9]] {
        let undecodable = processes.deliver(me, to, Put::KIND, garbage, back.call(5));
        assert!(matches!(undecodable, Err(CallError::Undecodable { .. })), "{undecodable:?}");
    }
    let release = stuck(&puppet).await;
    let late = Inbound { deadline: Some(processes.clock().now()), ..back.call(6) };
    processes.deliver(me, to, Put::KIND, &two, late).unwrap();
    let full = processes.deliver(me, to, Put::KIND, &two, back.call(7));
    assert!(matches!(full, Err(CallError::Overloaded { .. })), "{full:?}");
    processes.refuse_inbound();
    let draining = processes.deliver(me, to, Put::KIND, &two, back.call(8));
    assert_eq!(draining, Err(CallError::Draining));
    for (request, error) in [(2, stale), (3, unknown), (4, unheard), (7, full), (8, draining)] {
        assert_eq!(back.answer(request).await.map(drop), error);
    }
    let counts = processes.inbound_counts();
    assert_eq!((counts.delivered, counts.stale, counts.no_process), (3, 1, 1));
    assert_eq!((counts.unknown_message, counts.undecodable), (1, 3));
    assert_eq!((counts.overloaded, counts.draining), (1, 1));

    release.notify_one();
    assert!(matches!(back.answer(6).await, Err(CallError::Expired(_))), "it never ran");
    assert_eq!(puppet.call(Add(0)).await, Ok(4));
    until("all was given back", || back.consumed.load(Ordering::SeqCst) == 11).await;
    // Each was answered once: six refusals and what ran, three for the garbage.
    assert_eq!(back.answers.lock().len(), 10);
}

#[tokio::test]
async fn a_caller_elsewhere_hears_of_a_crash_and_of_an_end() {
    let processes = Processes::for_tests();
    let (report, _seen) = mpsc::unbounded_channel();
    let wiring = Wiring { report, init: Init::Succeeds };
    let puppet = processes.spawn_remote::<Puppet>(wiring, SpawnOptions::default()).await.unwrap();
    let back = Arc::new(Back::default());
    let me = processes.node().incarnation;
    let payload = postcard::to_stdvec(&Put(1)).unwrap();
    let _release = stuck(&puppet).await;
    let to = Target::Id(puppet.id());
    processes.deliver(me, to, Put::KIND, &payload, back.call(1)).unwrap();
    puppet.kill();
    let before = back.answer(1).await.unwrap_err();
    assert_eq!(before, CallError::ExitedBefore(ExitReason::Killed));
}
