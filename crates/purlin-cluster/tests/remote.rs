//! Processes across nodes: two real transports, TLS included, in one test process.

#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a test has no readers of its docs, and may fail"
)]

use std::{
    future::Future,
    sync::{Arc, LazyLock},
    time::Duration,
};

use purlin_cluster::{Remote, RemoteLimits, WhereisError};
use purlin_core::{
    Advice, Clock, ClusterName, Incarnation, NodeId, NodeName, Outcome, Rng, SystemClock,
    TraceContext,
};
use purlin_net::{
    Authority, ChannelId, FaultRule, GossipKeys, PartitionKey, Peer, ServiceId, TlsIdentity,
    Transport, TransportConfig, Urgency,
};
use purlin_process::{
    Address, CallError, CastError, Context, ExitReason, Handle, Info, MailboxLimits, Message,
    Monitored, Overload, Pid, ProcessId, Processes, RemoteRef, Server, SpawnOptions, server,
};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(60);

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| {
    Authority::generate(&ClusterName::parse("shop").unwrap(), SystemClock::new().wall()).unwrap()
});

/// Each test has its own cluster: a port that one test gave back may be another's a moment later,
/// and these nodes go on calling at the old address.
fn cluster_name() -> ClusterName {
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let sum = test.bytes().fold(5_381_u64, |sum, byte| sum.wrapping_mul(33) ^ u64::from(byte));
    ClusterName::parse(&format!("shop-{sum}")).unwrap()
}

/// One node: its transport, its processes, and the way between them.
struct Node {
    transport: Transport,
    processes: Processes,
    remote: Remote,
}

fn name(text: &str) -> NodeName {
    NodeName::parse(text).unwrap()
}

async fn node(text: &str, incarnation: u64, limits: RemoteLimits) -> Node {
    let now = SystemClock::new().wall();
    let issued = AUTHORITY.issue(&name(text), now, purlin_net::certs::NODE_VALID_FOR).unwrap();
    let tls = TlsIdentity::from_issued(AUTHORITY.certificate_pem(), &issued).unwrap();
    let id = NodeId::new(name(text), Incarnation(incarnation));
    let config = TransportConfig::new(
        cluster_name(),
        id.clone(),
        "127.0.0.1:0".parse().unwrap(),
        tls,
        GossipKeys::parse(&"5a".repeat(32)).unwrap(),
    );
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let transport = Transport::bind(config, Arc::clone(&clock), Rng::from_os()).await.unwrap();
    let processes = Processes::new(id, clock);
    let remote = Remote::with_limits(&transport, &processes, limits);
    Node { transport, processes, remote }
}

impl Node {
    async fn meet(&self, other: &Self) -> Peer {
        let (id, addr) = (other.transport.node().clone(), other.transport.local_addr());
        let peer = self.transport.add_peer(id, addr).unwrap();
        until("the peers are up", || {
            let met = other.transport.peer(self.transport.node());
            peer.is_up() && met.is_some_and(|met| met.is_up())
        })
        .await;
        peer
    }

    fn name(&self) -> &NodeName {
        &self.transport.node().name
    }
}

async fn pair() -> (Node, Node) {
    pair_with(RemoteLimits::default()).await
}

async fn pair_with(limits: RemoteLimits) -> (Node, Node) {
    let (one, two) = (node("n1", 1, limits).await, node("n2", 1, limits).await);
    one.meet(&two).await;
    (one, two)
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "never: {what}");
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("happens in time")
}

// --- the server of these tests

struct Ledger {
    entries: Vec<u64>,
    stuck: Arc<tokio::sync::Notify>,
}

#[server(crate = "::purlin_process")]
impl Ledger {
    #[init]
    fn open(stuck: Arc<tokio::sync::Notify>) -> Self {
        Self { entries: Vec::new(), stuck }
    }

    #[call]
    fn add(&mut self, entry: u64) -> Vec<u64> {
        self.entries.push(entry);
        self.entries.clone()
    }

    #[cast]
    fn note(&mut self, entry: u64) {
        self.entries.push(entry);
    }

    #[call]
    fn in_order(&self) -> (usize, bool) {
        (self.entries.len(), self.entries.is_sorted())
    }

    #[call]
    async fn wait(&mut self) {
        self.stuck.notified().await;
    }

    #[cast]
    async fn pause(&mut self) {
        self.stuck.notified().await;
    }

    #[call]
    fn divide(&self, a: u64, b: u64) -> Result<u64, String> {
        a.checked_div(b).ok_or_else(|| "division by zero".to_owned())
    }

    #[call]
    fn fail(&mut self) {
        panic!("as told");
    }

    #[call]
    fn trace(&self, ctx: &mut Context<Self>) -> Option<TraceContext> {
        assert_eq!(purlin_process::current_trace(), ctx.trace().copied());
        ctx.trace().copied()
    }

    #[call]
    fn large(&self, bytes: usize) -> Vec<u8> {
        vec![7; bytes]
    }
}

/// A ledger on a node, by name, and what releases it when it waits.
async fn ledger(on: &Node, name: &str) -> (LedgerHandle, Arc<tokio::sync::Notify>) {
    let stuck = Arc::new(tokio::sync::Notify::new());
    let options = SpawnOptions::named(name);
    let handle = LedgerHandle::spawn_with(&on.processes, options, Arc::clone(&stuck)).await;
    (handle.unwrap(), stuck)
}

async fn find(from: &Node, on: &Node, name: &str) -> LedgerHandle {
    let found = soon(from.remote.whereis::<Ledger>(on.name(), name, PATIENCE)).await.unwrap();
    found.expect("it is there").into()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handle_works_alike_here_and_there() {
    let (one, two) = pair().await;
    let (local, _) = ledger(&two, "ledger").await;
    let remote = find(&one, &two, "ledger").await;
    assert!(matches!(remote.address(), Address::Remote(_)));
    assert_eq!(remote.pid(), local.pid());
    for handle in [&local, &remote] {
        assert_eq!(handle.divide(42, 2).await.unwrap(), Ok(21));
        assert_eq!(handle.divide(1, 0).await.unwrap(), Err("division by zero".to_owned()));
        handle.note(1).await.unwrap();
    }
    assert_eq!(remote.add(2).await.unwrap(), [1, 1, 2]);
    // Asked on its own node, the same name gives the local way.
    let own = find(&two, &two, "ledger").await;
    assert!(matches!(own.address(), Address::Local(_)));
    assert_eq!(one.remote.stats().calls_pending, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_is_found_only_where_it_is_and_only_as_what_it_is() {
    struct Other;
    #[server(crate = "::purlin_process")]
    impl Other {
        #[init]
        fn new() -> Self {
            Self
        }

        #[call]
        fn hello(&self) {}
    }
    let (one, two) = pair().await;
    let (_ledger, _) = ledger(&two, "ledger").await;
    let missing = one.remote.whereis::<Ledger>(two.name(), "nobody", PATIENCE).await;
    assert!(matches!(missing, Ok(None)), "{missing:?}");
    let wrong = one.remote.whereis::<Other>(two.name(), "ledger", PATIENCE).await.unwrap_err();
    let WhereisError::AnotherKind { found, wanted, .. } = &wrong else { panic!("{wrong}") };
    assert_eq!((found.as_str(), *wanted), ("Ledger", "Other"));
    let nowhere = one.remote.whereis::<Ledger>(&name("n9"), "ledger", PATIENCE).await.unwrap_err();
    assert_eq!(nowhere, WhereisError::NoNode(name("n9")));
    OtherHandle::spawn(&one.processes).await.unwrap().hello().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn casts_and_calls_of_one_sender_arrive_in_order() {
    let (one, two) = pair().await;
    let (_local, _) = ledger(&two, "ledger").await;
    let remote = find(&one, &two, "ledger").await;
    const CASTS: u64 = 50_000;
    for n in 0..CASTS {
        remote.note(n).await.unwrap();
    }
    let (count, in_order) = remote.within(PATIENCE).in_order().await.unwrap();
    assert_eq!((count as u64, in_order), (CASTS, true), "the call arrives after all casts");
    assert_eq!(two.processes.inbound_counts().overloaded, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_callers_each_get_their_own_answer() {
    let (one, two) = pair().await;
    let (_local, _) = ledger(&two, "ledger").await;
    let remote = find(&one, &two, "ledger").await.within(PATIENCE);
    let callers: Vec<_> = (1..=64_u64)
        .map(|n| {
            let remote = remote.clone();
            tokio::spawn(async move {
                for m in 1..=50 {
                    assert_eq!(remote.divide(n * m, m).await.unwrap(), Ok(n));
                }
            })
        })
        .collect();
    for caller in callers {
        soon(caller).await.unwrap();
    }
    let stats = one.remote.stats();
    assert_eq!((stats.calls, stats.calls_pending, stats.answers_late), (64 * 50, 0, 0));
}

// --- what can go wrong

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stale_incarnation_is_told_apart_from_an_unknown_process() {
    let (one, two) = pair().await;
    let (_ledger, _) = ledger(&two, "ledger").await;
    let old = find(&one, &two, "ledger").await;
    let old_id = two.transport.node().clone();
    let unknown: LedgerHandle =
        one.remote.address(&Pid { node: old_id.clone(), process: ProcessId(4_711) }).into();
    let error = soon(unknown.add(1)).await.unwrap_err();
    assert!(matches!(error, CallError::NoProcess(_)), "{error}");
    assert_eq!((error.outcome(), error.advice()), (Outcome::NotDone, Advice::Retry));
    assert_eq!(two.processes.inbound_counts().no_process, 1);

    two.transport.close();
    drop(two);
    let two = node("n2", 2, RemoteLimits::default()).await;
    one.meet(&two).await;
    let (_new_ledger, _) = ledger(&two, "ledger").await;
    let error = soon(old.add(1)).await.unwrap_err();
    let CallError::Stale { process, asked, now } = &error else { panic!("{error}") };
    assert_eq!((process, asked, now), (&old.pid().process, &old_id, two.transport.node()));
    assert_eq!(error.outcome(), Outcome::NotDone);
    let error = soon(old.note(1)).await.unwrap_err();
    assert!(matches!(error, CastError::Stale { .. }), "{error}");
    assert_eq!(find(&one, &two, "ledger").await.add(1).await.unwrap(), [1]);
}

/// Another release's idea of the ledger: one message the real one does not know, one that looks
/// different inside.
struct Newer;

#[derive(Debug, Serialize, Deserialize)]
struct Unheard(u64);
#[derive(Debug, Serialize, Deserialize)]
struct Differently(String);

impl Message for Unheard {
    type Reply = u64;
    const NAME: &'static str = "Ledger.unheard";
}
impl Message for Differently {
    type Reply = u64;
    const NAME: &'static str = "Ledger.divide";
}
impl Server for Newer {
    const KIND: &'static str = "Ledger";
    type Args = ();
    async fn init((): (), _ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
        Ok(Self)
    }
}
impl Handle<Unheard> for Newer {
    async fn handle(&mut self, message: Unheard, _ctx: &mut Context<Self>) -> u64 {
        message.0
    }
}
impl Handle<Differently> for Newer {
    async fn handle(&mut self, _: Differently, _ctx: &mut Context<Self>) -> u64 {
        0
    }
}
impl purlin_process::RemoteServer for Newer {
    fn receive(
        kind: purlin_process::MessageKind,
        payload: &[u8],
        inbound: purlin_process::Inbound,
    ) -> Result<purlin_process::Envelope<Self>, purlin_process::Undelivered> {
        match kind {
            Unheard::KIND => inbound.decode::<Self, Unheard>(payload),
            Differently::KIND => inbound.decode::<Self, Differently>(payload),
            _ => Err(inbound.unknown::<Self>(kind)),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_and_undecodable_messages_are_told_and_counted_and_harm_nobody() {
    let (one, two) = pair().await;
    let (local, _) = ledger(&two, "ledger").await;
    let Address::Remote(newer) = one.remote.address::<Newer>(local.pid()) else { panic!() };
    let error = soon(newer.call(Unheard(1))).await.unwrap_err();
    let expected = CallError::UnknownMessage { kind: Unheard::KIND, server: "Ledger".to_owned() };
    assert_eq!(error, expected);
    assert_eq!((error.outcome(), error.advice()), (Outcome::NotDone, Advice::GiveUp));
    let error = soon(newer.call(Differently("x".repeat(40)))).await.unwrap_err();
    assert!(matches!(error, CallError::Undecodable { kind: Differently::KIND, .. }), "{error}");
    assert_eq!(error.outcome(), Outcome::NotDone);
    newer.cast(Unheard(1)).await.unwrap();
    newer.cast(Differently("x".repeat(40))).await.unwrap();
    until("the casts are counted", || two.remote.stats().casts_refused == 2).await;
    let counts = two.processes.inbound_counts();
    assert_eq!((counts.unknown_message, counts.undecodable, counts.delivered), (2, 2, 0));
    assert_eq!(local.add(1).await.unwrap(), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_was_not_started_for_remote_use_is_not_reachable() {
    let (one, two) = pair().await;
    let hidden =
        two.processes.spawn::<Ledger>(Arc::default(), SpawnOptions::named("hidden")).await.unwrap();
    let found = one.remote.whereis::<Ledger>(two.name(), "hidden", PATIENCE).await;
    assert!(matches!(found, Ok(None)), "{found:?}");
    let guessed: LedgerHandle = one.remote.address(hidden.pid()).into();
    let error = soon(guessed.add(1)).await.unwrap_err();
    assert!(matches!(error, CallError::UnknownMessage { .. }), "{error}");
    let down = soon(monitored(&one, guessed.address())).await;
    assert_eq!(down, ExitReason::NoProcess);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn garbage_for_this_service_is_counted_and_the_connection_lives() {
    let (one, two) = pair().await;
    let (_local, _) = ledger(&two, "ledger").await;
    let remote = find(&one, &two, "ledger").await;
    let peer = one.transport.peer(two.transport.node()).unwrap();
    for garbage in [&[][..], &[0], &[1, 0, 7], &[99; 40], &[6, 1, 2, 3, 4, 5, 6, 7, 8, 0xff]] {
        peer.send(ChannelId::RPC, ServiceId(4), PartitionKey::ZERO, Urgency::Now, |payload| {
            payload.put(garbage);
        })
        .unwrap();
    }
    until("all of it is counted", || two.remote.stats().malformed == 5).await;
    assert_eq!(soon(remote.add(1)).await.unwrap(), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deadline_is_kept_and_the_answer_that_comes_late_is_nobodys() {
    let (one, two) = pair().await;
    let (local, stuck) = ledger(&two, "ledger").await;
    let remote = find(&one, &two, "ledger").await;
    // Long enough for the call to be begun, on a busy machine too.
    let within = Duration::from_secs(2);
    let error = soon(remote.within(within).wait()).await.unwrap_err();
    assert_eq!(error, CallError::NoReply(within));
    let process = local.address().local().unwrap().untyped();
    assert_eq!(process.info().handling, Some("Ledger.wait"), "it was not begun in {within:?}");
    let within = Duration::from_millis(60);
    assert_eq!((error.outcome(), error.advice()), (Outcome::Unknown, Advice::SameRequestIdOnly));
    // One that waits behind it in the mailbox past its deadline never runs.
    let error = soon(remote.within(within).add(1)).await.unwrap_err();
    assert_eq!(error, CallError::NoReply(within));
    stuck.notify_one();
    assert_eq!(soon(remote.add(2)).await.unwrap(), [2]);
    until("the late answers are counted", || one.remote.stats().answers_late == 2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_goes_away_leaves_nothing_behind() {
    let (one, two) = pair().await;
    let (_local, stuck) = ledger(&two, "ledger").await;
    let remote = find(&one, &two, "ledger").await;
    assert!(tokio::time::timeout(Duration::from_millis(20), remote.wait()).await.is_err());
    assert_eq!(one.remote.stats().calls_pending, 0);
    stuck.notify_one();
    assert_eq!(soon(remote.add(1)).await.unwrap(), [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_and_a_large_reply_reach_the_caller_as_what_they_are() {
    let (one, two) = pair().await;
    let (local, _) = ledger(&two, "ledger").await;
    let remote = find(&one, &two, "ledger").await;
    let big = soon(remote.large(100_000)).await.unwrap();
    assert_eq!(big.len(), 100_000);
    let error = soon(remote.large(5 << 20)).await.unwrap_err();
    assert!(matches!(error, CallError::ReplyUndecodable(_)), "{error}");
    assert_eq!(error.outcome(), Outcome::Unknown);
    let error = soon(remote.fail()).await.unwrap_err();
    assert!(matches!(error, CallError::ExitedDuring(ExitReason::Panicked(_))), "{error}");
    assert_eq!(error.outcome(), Outcome::Unknown);
    until("it is gone", || local.address().local().is_some_and(|local| !local.is_alive())).await;
    let error = soon(remote.add(1)).await.unwrap_err();
    assert!(matches!(error, CallError::NoProcess(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_mailbox_is_told_to_callers_elsewhere() {
    let (one, two) = pair().await;
    let stuck = Arc::new(tokio::sync::Notify::new());
    let mailbox =
        MailboxLimits { messages_max: 2, overload: Overload::Reject, ..MailboxLimits::default() };
    let options = SpawnOptions::named("small").mailbox(mailbox);
    let local =
        LedgerHandle::spawn_with(&two.processes, options, Arc::clone(&stuck)).await.unwrap();
    let remote = find(&one, &two, "small").await;
    local.pause().await.unwrap();
    let process = local.address().local().unwrap().untyped();
    until("it is stuck", || process.info().handling == Some("Ledger.pause")).await;
    remote.note(1).await.unwrap();
    remote.note(2).await.unwrap();
    let error = soon(remote.add(3)).await.unwrap_err();
    assert!(matches!(error, CallError::Overloaded { messages: 2, messages_max: 2, .. }), "{error}");
    assert_eq!((error.outcome(), error.advice()), (Outcome::NotDone, Advice::Retry));
    stuck.notify_one();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_window_holds_up_its_own_target_and_nobody_else() {
    let limits = RemoteLimits { window: 128, ..RemoteLimits::default() };
    let (one, two) = pair_with(limits).await;
    let (slow, stuck) = ledger(&two, "slow").await;
    let (_quick, _) = ledger(&two, "quick").await;
    let (to_slow, to_quick) = (find(&one, &two, "slow").await, find(&one, &two, "quick").await);
    slow.pause().await.unwrap();
    let Address::Remote(target) = to_slow.address() else { panic!() };
    let mut sent = 0;
    let full = loop {
        match target.try_cast(&LedgerNote { entry: sent }) {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full, CastError::Full(two.transport.node().clone()));
    assert_eq!(full.advice(), Advice::Retry);
    assert_eq!(sent, 128);
    assert_eq!(one.remote.stats().window_full, 1);
    // The same channel, another process: nothing waits.
    for n in 0..1_000 {
        soon(to_quick.note(n)).await.unwrap();
    }
    assert_eq!(soon(to_quick.in_order()).await.unwrap(), (1_000, true));
    // A sender that is willing to wait does, and gets through when the process goes on.
    let impatient = target.clone().overload(Overload::Wait(Duration::from_millis(30)));
    let refused = soon(impatient.cast(LedgerNote { entry: 0 })).await.unwrap_err();
    assert!(matches!(refused, CastError::Full(_)), "{refused}");
    let waiting = tokio::spawn({
        let to_slow = to_slow.clone();
        async move { to_slow.note(sent).await }
    });
    stuck.notify_one();
    soon(waiting).await.unwrap().unwrap();
    for n in sent + 1..5_000 {
        soon(to_slow.note(n)).await.unwrap();
    }
    assert_eq!(soon(to_slow.within(PATIENCE).in_order()).await.unwrap(), (5_000, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn casts_to_the_dead_are_refused_once_their_node_has_said_so() {
    let limits = RemoteLimits { window: 128, ..RemoteLimits::default() };
    let (one, two) = pair_with(limits).await;
    let pid = Pid { node: two.transport.node().clone(), process: ProcessId(4_711) };
    let nobody: LedgerHandle = one.remote.address(&pid).into();
    let refused = soon(async {
        loop {
            if let Err(error) = nobody.note(1).await {
                break error;
            }
            tokio::task::yield_now().await;
        }
    });
    let error = refused.await;
    assert!(matches!(error, CastError::NoProcess(_) | CastError::Full(_)), "{error}");
    until("it is known to be gone", || {
        let Address::Remote(nobody) = nobody.address() else { return false };
        matches!(nobody.try_cast(&LedgerNote { entry: 1 }), Err(CastError::NoProcess(_)))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trace_of_a_call_travels_along() {
    let (one, two) = pair().await;
    let (_local, _) = ledger(&two, "ledger").await;
    let remote = find(&one, &two, "ledger").await;
    let trace: TraceContext =
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse().unwrap();
    let seen = purlin_process::with_trace(trace, remote.trace()).await.unwrap();
    assert_eq!(seen, Some(trace));
    assert_eq!(remote.trace().await.unwrap(), None);
}

// --- ends

/// Watches from a process of `from`, and waits for the end.
async fn monitored(from: &Node, target: &Address<Ledger>) -> ExitReason {
    let (_watcher, mut seen) = watch(from, target).await;
    seen.recv().await.unwrap()
}

struct Watcher(mpsc::UnboundedSender<ExitReason>);

struct Watch(Address<Ledger>);

impl Message for Watch {
    type Reply = ();
    const NAME: &'static str = "Watcher.watch";
}
impl Server for Watcher {
    const KIND: &'static str = "Watcher";
    type Args = mpsc::UnboundedSender<ExitReason>;
    async fn init(tell: Self::Args, _ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
        Ok(Self(tell))
    }
    async fn info(&mut self, info: Info, _ctx: &mut Context<Self>) {
        if let Info::Down { reason, .. } = info {
            drop(self.0.send(reason));
        }
    }
}
impl Handle<Watch> for Watcher {
    async fn handle(&mut self, watch: Watch, ctx: &mut Context<Self>) {
        ctx.monitor(&watch.0);
    }
}

async fn watch(
    from: &Node,
    target: &Address<Ledger>,
) -> (purlin_process::ProcessRef<Watcher>, mpsc::UnboundedReceiver<ExitReason>) {
    let (tell, seen) = mpsc::unbounded_channel();
    let watcher = from.processes.spawn::<Watcher>(tell, SpawnOptions::default()).await.unwrap();
    watcher.call(Watch(target.clone())).await.unwrap();
    (watcher, seen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_monitor_elsewhere_fires_with_the_reason_and_on_the_dead_at_once() {
    let (one, two) = pair().await;
    let (local, _) = ledger(&two, "ledger").await;
    let remote = find(&one, &two, "ledger").await;
    let process = local.address().local().unwrap().untyped();
    let (_watcher, mut seen) = watch(&one, remote.address()).await;
    until("it is watched", || process.info().monitors == 1).await;
    drop(local.fail().await);
    assert_eq!(soon(seen.recv()).await, Some(ExitReason::Panicked("as told".into())));
    assert_eq!(soon(monitored(&one, remote.address())).await, ExitReason::NoProcess);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_ends_watches_no_more() {
    let (one, two) = pair().await;
    let (local, _) = ledger(&two, "ledger").await;
    let remote = find(&one, &two, "ledger").await;
    let process = local.address().local().unwrap().untyped();
    let (watcher, _seen) = watch(&one, remote.address()).await;
    until("it is watched", || process.info().monitors == 1).await;
    watcher.kill();
    until("it is watched no more", || process.info().monitors == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_that_was_watched_on_a_node_ends_with_it() {
    let (one, two) = pair().await;
    let (_local, _) = ledger(&two, "ledger").await;
    let remote = find(&one, &two, "ledger").await;
    let node = two.transport.node().clone();
    let (_watcher, mut seen) = watch(&one, remote.address()).await;
    let waiting = tokio::spawn({
        let remote = remote.clone();
        async move { remote.wait().await }
    });
    until("the call is there", || two.processes.inbound_counts().delivered == 1).await;
    two.transport.close();
    assert_eq!(soon(seen.recv()).await, Some(ExitReason::NodeDown(node.clone())));
    let error = soon(waiting).await.unwrap().unwrap_err();
    assert_eq!(error, CallError::Disconnected(node.clone()));
    assert_eq!(error.outcome(), Outcome::Unknown);
    let error = soon(remote.add(1)).await.unwrap_err();
    assert!(matches!(error, CallError::Unreachable(_) | CallError::Disconnected(_)), "{error}");
    // Who watches only now hears it at once, or when the dial has failed.
    assert_eq!(soon(monitored(&one, remote.address())).await, ExitReason::NodeDown(node));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_watched_and_went_down_is_forgotten_by_the_watched() {
    let (one, two) = pair().await;
    let (local, _) = ledger(&two, "ledger").await;
    let remote = find(&one, &two, "ledger").await;
    let process = local.address().local().unwrap().untyped();
    let (_watcher, _seen) = watch(&one, remote.address()).await;
    until("it is watched", || process.info().monitors == 1).await;
    one.transport.close();
    until("it is watched no more", || process.info().monitors == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_that_is_lost_on_the_way_expires() {
    let (one, two) = pair().await;
    let (_local, _) = ledger(&two, "ledger").await;
    let remote = find(&one, &two, "ledger").await;
    assert!(two.transport.faults().add(FaultRule::cut(name("n1"))).is_some());
    let within = Duration::from_millis(50);
    let error = soon(remote.within(within).add(1)).await.unwrap_err();
    assert_eq!(error, CallError::NoReply(within));
    let error = one.remote.whereis::<Ledger>(two.name(), "ledger", within).await.unwrap_err();
    assert!(
        matches!(error, WhereisError::NoAnswer { error: CallError::NoReply(_), .. }),
        "{error}"
    );
}

#[tokio::test]
async fn a_process_of_this_node_that_has_ended_says_so_by_its_address_too() {
    let (one, _two) = pair().await;
    let pid = Pid { node: one.transport.node().clone(), process: ProcessId(4_711) };
    let Address::Remote(nobody) = one.remote.address::<Ledger>(&pid) else { panic!() };
    let nobody: RemoteRef<Ledger> = nobody;
    let error = nobody.call(LedgerAdd { entry: 1 }).await.unwrap_err();
    assert!(matches!(error, CallError::NoProcess(_)), "{error}");
    let (tell, mut told) = mpsc::unbounded_channel();
    struct Sink(mpsc::UnboundedSender<ExitReason>);
    impl purlin_process::DownSink for Sink {
        fn down(&self, _: purlin_process::MonitorId, _: &Pid, reason: &ExitReason) {
            drop(self.0.send(reason.clone()));
        }
    }
    let monitor = one.processes.next_monitor();
    let _unwatch = nobody.watch(monitor, Arc::new(Sink(tell)));
    assert!(told.recv().await.is_some());
}
