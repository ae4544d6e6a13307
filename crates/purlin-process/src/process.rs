//! One process: its task, its end, and the references others hold to it.

use std::{
    any::Any,
    fmt,
    future::{Future, poll_fn},
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt;
use parking_lot::Mutex;
use purlin_core::{Deadline, Instant};
use tokio::sync::oneshot;

use crate::{
    Call, CallError, Callee, CastError, Context, DownSink, Envelope, ExitReason, Handle, Inbound,
    Info, MailboxLimits, Message, MessageKind, Metadata, MonitorId, Monitored, Overload, Pid,
    ProcessId, Server, SpawnError, Unwatch,
    call::CALL_WITHIN,
    deadline::Swept,
    link::{DownToWaiter, Ties},
    mailbox::{Body, Fill, Handling, Mailbox, Next, Refused, Signal, Told, Watch, far},
    remote::{TRACE, Undelivered, current_trace},
    system::System,
};

/// How to start a process.
#[derive(Debug, Clone)]
pub struct SpawnOptions {
    /// The unique name to register it under before `init` runs; none by default.
    pub name: Option<String>,
    /// What lookups of the name find beside the process.
    pub metadata: Metadata,
    /// The bounds of its mailbox.
    pub mailbox: MailboxLimits,
    /// How long `init` may take before the process is killed. Default 30 s (guess).
    pub start_within: Duration,
    /// How long `terminate` may take before the process is killed; a supervisor's shutdown
    /// timeout bounds it too. Default 5 s, as in OTP.
    pub terminate_within: Duration,
    /// How long a shutdown of the whole system waits for it to handle what waits and to
    /// terminate. Default 5 s (guess).
    pub drain_within: Duration,
    /// Whether exits of linked processes arrive as [`Info::Exit`] instead of ending this one.
    /// [`Context::trap_exit`] changes it later.
    pub trap_exit: bool,
}

impl Default for SpawnOptions {
    fn default() -> Self {
        Self {
            name: None,
            metadata: Metadata::default(),
            mailbox: MailboxLimits::default(),
            start_within: Duration::from_secs(30),
            terminate_within: Duration::from_secs(5),
            drain_within: Duration::from_secs(5),
            trap_exit: false,
        }
    }
}

impl SpawnOptions {
    /// The defaults, with a unique name.
    #[must_use]
    pub fn named(name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..Self::default() }
    }

    /// The same with other mailbox bounds.
    #[must_use]
    pub fn mailbox(self, mailbox: MailboxLimits) -> Self {
        Self { mailbox, ..self }
    }

    /// The same, trapping exits from the start.
    #[must_use]
    pub fn trap_exit(self) -> Self {
        Self { trap_exit: true, ..self }
    }
}

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// `init` runs.
    Starting,
    /// It handles messages or waits for them.
    Running,
    /// It takes nothing new and handles what waits.
    Draining,
    /// `terminate` runs.
    Terminating,
}

impl Phase {
    const ALL: [Self; 4] = [Self::Starting, Self::Running, Self::Draining, Self::Terminating];
}

/// The part of a process that does not depend on its type.
pub(crate) struct Core {
    pub(crate) pid: Pid,
    pub(crate) kind: &'static str,
    pub(crate) name: Option<Arc<str>>,
    pub(crate) parent: Option<ProcessId>,
    /// How often a supervisor had to start this child again before this life of it.
    pub(crate) restarts: u32,
    pub(crate) started_at: Instant,
    pub(crate) drain_within: Duration,
    pub(crate) system: Arc<System>,
    pub(crate) ties: Ties,
    traps_exit: AtomicBool,
    phase: AtomicU8,
    task: OnceLock<tokio::task::Id>,
}

impl Core {
    pub(crate) fn traps_exit(&self) -> bool {
        self.traps_exit.load(Ordering::Acquire)
    }

    pub(crate) fn set_traps_exit(&self, traps: bool) {
        self.traps_exit.store(traps, Ordering::Release);
    }

    pub(crate) fn phase(&self) -> Phase {
        Phase::ALL[usize::from(self.phase.load(Ordering::Relaxed)).min(3)]
    }

    fn enter(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::Relaxed);
    }

    /// Whether the caller runs inside this process's own task.
    pub(crate) fn is_current_task(&self) -> bool {
        self.task.get().is_some_and(|&task| tokio::task::try_id() == Some(task))
    }
}

/// How a remote message of a kind becomes an envelope; only for processes spawned for remote use.
pub(crate) type Decode<S> = fn(MessageKind, &[u8], Inbound) -> Result<Envelope<S>, Undelivered>;

pub(crate) struct Process<S: Server> {
    pub(crate) core: Core,
    pub(crate) mailbox: Mailbox<S>,
    decode: Option<Decode<S>>,
}

impl<S: Server> Process<S> {
    pub(crate) fn push(
        self: &Arc<Self>,
        envelope: Envelope<S>,
        within: Option<Duration>,
    ) -> Result<(), Refused<S>> {
        let deadlines = &self.core.system.deadlines;
        let watch = self.mailbox.push(envelope, within, deadlines)?;
        if watch.0 {
            deadlines.watch(Arc::clone(self) as Arc<dyn Swept>);
        }
        Ok(())
    }

    /// Pushes, waiting for room at most `at_most`.
    pub(crate) async fn push_within(
        self: &Arc<Self>,
        mut envelope: Envelope<S>,
        at_most: Duration,
        within: Option<Duration>,
    ) -> Result<(), CastError> {
        let clock = &self.core.system.clock;
        let start = clock.now();
        loop {
            let waited = clock.now() - start;
            let left = within.map(|within| within.saturating_sub(waited));
            match self.push(envelope, left) {
                Ok(()) => {
                    self.mailbox.pass_on_room();
                    return Ok(());
                }
                Err(Refused::Closed(_)) => {
                    return Err(CastError::NoProcess(Callee::Id(self.core.pid.process)));
                }
                Err(Refused::Full(refused, fill)) => {
                    envelope = refused;
                    let patience = at_most.saturating_sub(waited);
                    let room = tokio::time::timeout(patience, self.mailbox.room(fill)).await;
                    if room.is_err() {
                        return Err(self.overloaded(fill));
                    }
                }
            }
        }
    }

    pub(crate) fn overloaded(&self, fill: Fill) -> CastError {
        let limits = &self.mailbox.limits;
        CastError::Overloaded {
            messages: fill.messages,
            bytes: fill.bytes,
            messages_max: limits.messages_max,
            bytes_max: limits.bytes_max,
        }
    }
}

impl<S: Server> Swept for Process<S> {
    fn sweep(&self, now: Instant) -> bool {
        self.mailbox.sweep(now)
    }
}

/// A process of any type, behind the same few operations.
pub(crate) trait Control: Send + Sync {
    fn core(&self) -> &Core;
    fn raise(&self, signal: Signal) -> bool;
    fn push_info(&self, info: Info);
    fn send_info(self: Arc<Self>, value: Box<dyn Any + Send>) -> Result<(), CastError>;
    fn receive(&self, kind: MessageKind, payload: &[u8], inbound: Inbound)
    -> Result<(), CallError>;
    fn is_open(&self) -> bool;
    fn fill(&self) -> Fill;
    fn limits(&self) -> MailboxLimits;
    fn handled(&self) -> u64;
    fn dropped(&self) -> u64;
    fn current_name(&self) -> &'static str;
    fn is_remote(&self) -> bool;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<S: Server> Control for Process<S> {
    fn core(&self) -> &Core {
        &self.core
    }

    fn raise(&self, signal: Signal) -> bool {
        self.mailbox.raise(signal)
    }

    fn push_info(&self, info: Info) {
        self.mailbox.push_info(info);
    }

    fn send_info(self: Arc<Self>, value: Box<dyn Any + Send>) -> Result<(), CastError> {
        match self.push(Envelope::info(Info::Message(value)), None) {
            Ok(()) => Ok(()),
            Err(Refused::Full(_, fill)) => Err(self.overloaded(fill)),
            Err(Refused::Closed(_)) => Err(CastError::NoProcess(Callee::Id(self.core.pid.process))),
        }
    }

    fn receive(
        &self,
        kind: MessageKind,
        payload: &[u8],
        inbound: Inbound,
    ) -> Result<(), CallError> {
        let Some(decode) = self.decode else {
            let error = CallError::UnknownMessage { kind, server: S::KIND.to_owned() };
            return Err(inbound.refuse(error));
        };
        let mut envelope = match decode(kind, payload, inbound) {
            Ok(envelope) => envelope,
            Err(undelivered) => return Err(undelivered.refuse()),
        };
        envelope.bytes = envelope.bytes.max(payload.len());
        // Without a deadline of its own here there is nothing to watch.
        let (envelope, error) = match self.mailbox.push(envelope, None, &self.core.system.deadlines)
        {
            Ok(Watch(_)) => return Ok(()),
            Err(Refused::Full(envelope, fill)) => (envelope, self.overloaded(fill)),
            Err(Refused::Closed(envelope)) => {
                (envelope, CastError::NoProcess(Callee::Id(self.core.pid.process)))
            }
        };
        let error = CallError::from(error);
        envelope.fail(error.clone());
        Err(error)
    }

    fn is_open(&self) -> bool {
        self.mailbox.is_open()
    }

    fn fill(&self) -> Fill {
        self.mailbox.fill()
    }

    fn limits(&self) -> MailboxLimits {
        self.mailbox.limits
    }

    fn handled(&self) -> u64 {
        self.mailbox.handled()
    }

    fn dropped(&self) -> u64 {
        self.mailbox.dropped()
    }

    fn current_name(&self) -> &'static str {
        self.mailbox.current_name()
    }

    fn is_remote(&self) -> bool {
        self.decode.is_some()
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// A reference to a process on this node. Cheap to clone; does not keep the process running.
pub struct ProcessRef<S: Server>(pub(crate) Arc<Process<S>>);

impl<S: Server> Clone for ProcessRef<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S: Server> fmt::Debug for ProcessRef<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", S::KIND, self.0.core.pid)
    }
}

impl<S: Server> PartialEq for ProcessRef<S> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<S: Server> Eq for ProcessRef<S> {}

impl<S: Server> ProcessRef<S> {
    /// Its number on this node.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.0.core.pid.process
    }

    /// Its identity in the cluster.
    #[must_use]
    pub fn pid(&self) -> &Pid {
        &self.0.core.pid
    }

    /// Whether it still takes messages. It may stop doing so at any moment.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.0.mailbox.is_open()
    }

    /// Sends `message` and waits for its reply, 5 s at most.
    ///
    /// See [`ProcessRef::call_within`].
    pub fn call<M: Message>(&self, message: M) -> Call<'_, S, M>
    where
        S: Handle<M>,
    {
        Call::new(self, message, CALL_WITHIN)
    }

    /// Sends `message` and waits for its reply, `within` at most.
    ///
    /// # Units and limits
    /// `within` counts from the first poll and includes waiting for room in the mailbox. It is
    /// honoured whatever the process does, up to 10 ms late; below 100 ms it has its own timer.
    ///
    /// # Errors
    /// Every [`CallError`] says whether the process may have acted. A request whose deadline
    /// passes in the mailbox is withdrawn ([`CallError::Expired`], not done); one that is being
    /// handled is not ([`CallError::NoReply`], unknown). A process that calls itself would wait
    /// for itself for ever; it gets [`CallError::CallsItself`] instead. Two processes that call
    /// each other at the same time do wait, until the deadline.
    ///
    /// # Guarantees
    /// One task's messages to one process are handled in the order they were sent. A call is
    /// handled at most once. Callee restarted: the reference stays with the old life and says
    /// [`CallError::NoProcess`]; look the successor up by name.
    ///
    /// # Cancel safety
    /// Dropping the future withdraws a request that still waits, and abandons the reply of one
    /// that is being handled.
    ///
    /// # Source
    /// Erlang/OTP `gen_server:call/3`; we differ by withdrawing what has not begun, and by having
    /// no late replies to flush.
    pub fn call_within<M: Message>(&self, message: M, within: Duration) -> Call<'_, S, M>
    where
        S: Handle<M>,
    {
        Call::new(self, message, within)
    }

    /// Sends `message` without waiting for it to be handled.
    ///
    /// Waits for room if the mailbox is full and its policy is [`Overload::Wait`].
    ///
    /// # Errors
    /// [`CastError`]; nothing was sent then.
    ///
    /// # Cancel safety
    /// Dropping the future before it is done sends nothing.
    pub async fn cast<M: Message>(&self, message: M) -> Result<(), CastError>
    where
        S: Handle<M>,
    {
        match self.0.push(told(message), None) {
            Ok(()) => Ok(()),
            Err(Refused::Closed(_)) => Err(CastError::NoProcess(Callee::Id(self.id()))),
            Err(Refused::Full(envelope, fill)) => {
                let Overload::Wait(at_most) = self.0.mailbox.limits.overload else {
                    return Err(self.0.overloaded(fill));
                };
                // Boxed: this rare wait must not make every cast's future large.
                Box::pin(self.0.push_within(envelope, at_most, None)).await
            }
        }
    }

    /// Sends `message` now or not at all.
    ///
    /// # Errors
    /// [`CastError`]; nothing was sent then. A full mailbox is [`CastError::Overloaded`] whatever
    /// its policy, except [`Overload::DropOldest`], which makes room.
    pub fn try_cast<M: Message>(&self, message: M) -> Result<(), CastError>
    where
        S: Handle<M>,
    {
        match self.0.push(told(message), None) {
            Ok(()) => Ok(()),
            Err(Refused::Closed(_)) => Err(CastError::NoProcess(Callee::Id(self.id()))),
            Err(Refused::Full(_, fill)) => Err(self.0.overloaded(fill)),
        }
    }

    /// Sends `value` as [`Info::Message`], now or not at all.
    ///
    /// # Errors
    /// [`CastError`]; nothing was sent then.
    pub fn send_info(&self, value: impl Any + Send) -> Result<(), CastError> {
        (Arc::clone(&self.0) as Arc<dyn Control>).send_info(Box::new(value))
    }

    /// The same process without its type.
    #[must_use]
    pub fn untyped(&self) -> AnyProcess {
        AnyProcess(Arc::clone(&self.0) as Arc<dyn Control>)
    }

    /// Asks it to take nothing new, handle what waits, terminate and exit with
    /// [`ExitReason::Shutdown`]. Returns at once; [`ProcessRef::exited`] waits for it.
    pub fn drain(&self) {
        self.0.mailbox.raise(Signal::Drain(ExitReason::Shutdown));
    }

    /// Asks it to finish the current message, terminate and exit with `reason`. What waits in
    /// its mailbox is answered [`CallError::ExitedBefore`]. Returns at once.
    pub fn stop(&self, reason: ExitReason) {
        self.0.mailbox.raise(Signal::Stop(reason));
    }

    /// Ends it at its next await point; nothing of it runs after that. Returns at once.
    pub fn kill(&self) {
        self.0.mailbox.raise(Signal::Kill);
    }

    /// Waits for its end; at once, with [`ExitReason::NoProcess`], if it has ended already.
    ///
    /// # Cancel safety
    /// Dropping the future stops waiting and changes nothing.
    pub async fn exited(&self) -> ExitReason {
        self.untyped().exited().await
    }
}

impl<S: Server> Monitored for ProcessRef<S> {
    fn watch(&self, monitor: MonitorId, sink: Arc<dyn DownSink>) -> Unwatch {
        self.untyped().watch(monitor, sink)
    }
}

impl<S: Server> From<&ProcessRef<S>> for AnyProcess {
    fn from(process: &ProcessRef<S>) -> Self {
        process.untyped()
    }
}

/// A reference to a process on this node whose type is not known here.
#[derive(Clone)]
pub struct AnyProcess(pub(crate) Arc<dyn Control>);

impl fmt::Debug for AnyProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", self.kind(), self.pid())
    }
}

impl AnyProcess {
    pub(crate) fn control(&self) -> &Arc<dyn Control> {
        &self.0
    }

    /// Its number on this node.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.pid().process
    }

    /// Its identity in the cluster.
    #[must_use]
    pub fn pid(&self) -> &Pid {
        &self.0.core().pid
    }

    /// What kind of server it is.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        self.0.core().kind
    }

    /// The unique name it was spawned with.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.0.core().name.as_deref()
    }

    /// Whether it still takes messages.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.0.is_open()
    }

    /// Whether other nodes may send to it.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.0.is_remote()
    }

    /// The typed reference, if it is a process of type `S`.
    #[must_use]
    pub fn downcast<S: Server>(&self) -> Option<ProcessRef<S>> {
        Arc::clone(&self.0).into_any().downcast().ok().map(ProcessRef)
    }

    /// Sends `value` as [`Info::Message`], now or not at all.
    ///
    /// # Errors
    /// [`CastError`]; nothing was sent then.
    pub fn send_info(&self, value: impl Any + Send) -> Result<(), CastError> {
        Arc::clone(&self.0).send_info(Box::new(value))
    }

    /// See [`ProcessRef::drain`].
    pub fn drain(&self) {
        self.0.raise(Signal::Drain(ExitReason::Shutdown));
    }

    /// See [`ProcessRef::stop`].
    pub fn stop(&self, reason: ExitReason) {
        self.0.raise(Signal::Stop(reason));
    }

    /// See [`ProcessRef::kill`].
    pub fn kill(&self) {
        self.0.raise(Signal::Kill);
    }

    /// See [`ProcessRef::exited`].
    pub async fn exited(&self) -> ExitReason {
        let (tell, told) = oneshot::channel();
        let monitor = self.0.core().system.next_monitor();
        let _unwatch = self.watch(monitor, Arc::new(DownToWaiter(Mutex::new(Some(tell)))));
        told.await.unwrap_or(ExitReason::Killed)
    }
}

impl Monitored for AnyProcess {
    fn watch(&self, monitor: MonitorId, sink: Arc<dyn DownSink>) -> Unwatch {
        let core = self.0.core();
        core.ties.watch(&core.pid, monitor, sink);
        let weak = Arc::downgrade(&self.0);
        Unwatch::new(move || {
            if let Some(control) = weak.upgrade() {
                control.core().ties.unwatch(monitor);
            }
        })
    }
}

struct CastOf<M>(M);

impl<S: Handle<M>, M: Message> Told<S> for CastOf<M> {
    fn handle<'a>(
        self: Box<Self>,
        server: &'a mut S,
        ctx: &'a mut Context<S>,
    ) -> Option<Handling<'a>> {
        let message = server.handle_now(self.0, ctx).err()?;
        Some(Box::pin(async move {
            drop(server.handle(message, ctx).await);
        }))
    }

    fn fail(self: Box<Self>, _error: CallError) {}

    fn name(&self) -> &'static str {
        M::NAME
    }
}

fn told<S: Handle<M>, M: Message>(message: M) -> Envelope<S> {
    let bytes = message.bytes();
    let trace = current_trace().map(Box::new);
    Envelope { body: Body::Cast(Box::new(CastOf(message))), bytes, deadline: far(), trace }
}

/// Who starts a process: what it is tied to before it runs.
pub(crate) struct Birth {
    pub(crate) parent: Option<AnyProcess>,
    pub(crate) linked: bool,
    pub(crate) restarts: u32,
    pub(crate) ready: Ready,
}

/// Who is told that `init` has ended.
pub(crate) enum Ready {
    /// A task that waits for it.
    Waiter(oneshot::Sender<Result<(), SpawnError>>),
    /// The supervisor, by an info; a failure reaches it as the child's exit.
    Supervisor(AnyProcess),
}

/// The info a supervisor gets when a child's `init` has succeeded.
#[derive(Debug)]
pub(crate) struct ChildStarted(pub(crate) ProcessId);

impl Ready {
    pub(crate) fn tell(self, pid: &Pid, outcome: Result<(), SpawnError>) {
        match self {
            // The waiter may have gone, and kills the process then.
            Self::Waiter(waiter) => drop(waiter.send(outcome)),
            Self::Supervisor(supervisor) => {
                if outcome.is_ok() {
                    supervisor
                        .control()
                        .push_info(Info::Message(Box::new(ChildStarted(pid.process))));
                }
            }
        }
    }
}

impl<S: Server> Process<S> {
    pub(crate) fn new(
        system: &Arc<System>,
        process: ProcessId,
        options: &SpawnOptions,
        birth: &Birth,
        decode: Option<Decode<S>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            core: Core {
                pid: Pid { node: system.node.clone(), process },
                kind: S::KIND,
                name: options.name.as_deref().map(Arc::from),
                parent: birth.parent.as_ref().map(AnyProcess::id),
                restarts: birth.restarts,
                started_at: system.clock.now(),
                drain_within: options.drain_within,
                system: Arc::clone(system),
                ties: Ties::default(),
                traps_exit: AtomicBool::new(options.trap_exit),
                phase: AtomicU8::new(Phase::Starting as u8),
                task: OnceLock::new(),
            },
            mailbox: Mailbox::new(options.mailbox),
            decode,
        })
    }
}

/// Undoes and tells everything when the process's task ends, however it ends: also when the
/// runtime drops it.
struct Ending<S: Server> {
    process: Arc<Process<S>>,
    reason: ExitReason,
}

impl<S: Server> Drop for Ending<S> {
    fn drop(&mut self) {
        let core = &self.process.core;
        self.process.mailbox.close(&self.reason);
        let (untied, registered) = core.ties.end();
        core.system.registry.remove_all(core.pid.process, registered);
        core.system.ended(core, &self.reason);
        untied.tell(&core.pid, &self.reason);
    }
}

/// The task of one process, from `init` to the last word.
pub(crate) async fn run<S: Server>(
    process: Arc<Process<S>>,
    args: S::Args,
    options: SpawnOptions,
    ready: Ready,
) {
    let mut ending = Ending { process: Arc::clone(&process), reason: ExitReason::Killed };
    if let Some(task) = tokio::task::try_id() {
        process.core.task.get_or_init(|| task);
    }
    let mut ctx = Context::new(Arc::clone(&process), ready);
    let mut server = match init::<S>(&process, args, &mut ctx, options.start_within).await {
        Ok(server) => server,
        Err((reason, error)) => {
            ending.reason = reason;
            let ready = ctx.take_ready();
            drop(ctx);
            // Told last: who hears of the failure finds the name free and the process gone.
            drop(ending);
            if let Some(ready) = ready {
                ready.tell(&process.core.pid, Err(error));
            }
            return;
        }
    };
    process.core.enter(Phase::Running);
    ctx.init_ended();
    let ended = AssertUnwindSafe(live(&process, &mut server, &mut ctx)).catch_unwind().await;
    let reason = ended.unwrap_or_else(|panic| ExitReason::from_panic(&*panic));
    process.core.enter(Phase::Terminating);
    process.mailbox.close(&reason);
    // Not the reason decides: a link can carry another's `Killed` to a process that may clean up.
    ending.reason = if process.mailbox.is_killed() {
        ExitReason::Killed
    } else {
        terminate(&process, &mut server, &mut ctx, reason, options.terminate_within).await
    };
    // The state goes before the end is told: what it owns (a port, a file) is free by then. Its
    // drop is user code too.
    let dropped = std::panic::catch_unwind(AssertUnwindSafe(|| drop(server)));
    if let Err(panic) = dropped {
        tracing::error!(process = %process.core.pid, kind = S::KIND, reason = %ExitReason::from_panic(&*panic), "dropping the state panicked");
    }
    let ready = ctx.take_ready();
    drop(ctx);
    if let Some(ready) = ready {
        let error = SpawnError::Init(ending.reason.clone());
        drop(ending);
        ready.tell(&process.core.pid, Err(error));
    }
}

async fn init<S: Server>(
    process: &Arc<Process<S>>,
    args: S::Args,
    ctx: &mut Context<S>,
    within: Duration,
) -> Result<S, (ExitReason, SpawnError)> {
    let init = AssertUnwindSafe(S::init(args, ctx)).catch_unwind();
    let init = until(process, || process.mailbox.must_end(), init);
    match tokio::time::timeout(within, init).await {
        Ok(Some(Ok(Ok(server)))) => Ok(server),
        Ok(Some(Ok(Err(reason)))) => Err((reason.clone(), SpawnError::Init(reason))),
        Ok(Some(Err(panic))) => {
            let reason = ExitReason::from_panic(&*panic);
            Err((reason.clone(), SpawnError::Init(reason)))
        }
        Ok(None) => {
            let reason = match process.mailbox.next_end() {
                Some(Signal::Exit(reason) | Signal::Stop(reason) | Signal::Drain(reason)) => reason,
                Some(Signal::Kill | Signal::Summarize(_)) | None => ExitReason::Killed,
            };
            Err((reason.clone(), SpawnError::Init(reason)))
        }
        Err(_elapsed) => Err((
            ExitReason::Failed(format!("init did not end within {within:?}").into()),
            SpawnError::InitTooSlow(within),
        )),
    }
}

async fn terminate<S: Server>(
    process: &Arc<Process<S>>,
    server: &mut S,
    ctx: &mut Context<S>,
    reason: ExitReason,
    within: Duration,
) -> ExitReason {
    let terminate = AssertUnwindSafe(server.terminate(&reason, ctx)).catch_unwind();
    let terminate = until(process, || process.mailbox.is_killed(), terminate);
    match tokio::time::timeout(within, terminate).await {
        Ok(Some(Ok(()))) => reason,
        Ok(Some(Err(panic))) => {
            let panicked = ExitReason::from_panic(&*panic);
            tracing::error!(process = %process.core.pid, kind = S::KIND, %reason, %panicked, "terminate panicked");
            panicked
        }
        Ok(None) => ExitReason::Killed,
        Err(_elapsed) => {
            tracing::error!(process = %process.core.pid, kind = S::KIND, %reason, ?within, "terminate took too long");
            ExitReason::Killed
        }
    }
}

/// Runs `callback`, dropping it (`None`) at an await point where `stop` says so. Signals wake it.
async fn until<S: Server, T>(
    process: &Process<S>,
    stop: impl Fn() -> bool,
    callback: impl Future<Output = T>,
) -> Option<T> {
    let mut callback = pin!(callback);
    poll_fn(|cx| {
        if let Poll::Ready(value) = callback.as_mut().poll(cx) {
            return Poll::Ready(Some(value));
        }
        process.mailbox.wake_on_signal(cx.waker());
        // Looked at after the waker is in place: a signal in between is not missed.
        if stop() { Poll::Ready(None) } else { Poll::Pending }
    })
    .await
}

/// After this many messages in one go other tasks of this worker get their turn.
const STREAK_MAX: u32 = 128;

async fn live<S: Server>(
    process: &Arc<Process<S>>,
    server: &mut S,
    ctx: &mut Context<S>,
) -> ExitReason {
    let mailbox = &process.mailbox;
    let mut draining = None;
    let mut streak = 0;
    loop {
        while let Some(signal) = mailbox.next_signal() {
            match signal {
                Signal::Kill => return ExitReason::Killed,
                Signal::Exit(reason) | Signal::Stop(reason) => return reason,
                Signal::Drain(reason) => {
                    process.core.enter(Phase::Draining);
                    draining.get_or_insert(reason);
                }
                // Whoever asked may have stopped waiting.
                Signal::Summarize(asker) => drop(asker.send(server.summary())),
            }
        }
        match mailbox.next() {
            Next::Message(envelope) => {
                handle(mailbox, server, ctx, envelope).await;
                if let Some(reason) = ctx.stopping.take() {
                    return reason;
                }
                streak += 1;
                if streak >= STREAK_MAX {
                    streak = 0;
                    tokio::task::yield_now().await;
                }
            }
            Next::Empty => {
                while let Some(key) = ctx.take_due_timer() {
                    settle(mailbox, Box::pin(server.info(Info::Timer(key), ctx))).await;
                    if let Some(reason) = ctx.stopping.take() {
                        return reason;
                    }
                    if mailbox.must_end() {
                        break;
                    }
                }
                let more = poll_fn(|cx| match mailbox.poll_batch(cx) {
                    Poll::Pending => ctx.poll_timers(cx).map(|()| true),
                    ready @ Poll::Ready(_) => ready,
                })
                .await;
                if !more {
                    return draining.unwrap_or(ExitReason::Shutdown);
                }
            }
        }
    }
}

/// Handles one message, unless nobody wants it any more.
async fn handle<S: Server>(
    mailbox: &Mailbox<S>,
    server: &mut S,
    ctx: &mut Context<S>,
    envelope: Envelope<S>,
) {
    let Envelope { body, deadline, trace, .. } = envelope;
    ctx.deadline = (deadline != far()).then_some(Deadline { at: deadline });
    ctx.trace = trace.as_deref().copied();
    match trace {
        None => {
            if let Some(handling) = begin(server, ctx, body) {
                settle(mailbox, handling).await;
            }
        }
        Some(trace) => {
            let handling = TRACE.sync_scope(*trace, || begin(server, ctx, body));
            if let Some(handling) = handling {
                TRACE.scope(*trace, settle(mailbox, handling)).await;
            }
        }
    }
    ctx.deadline = None;
    ctx.trace = None;
}

fn begin<'a, S: Server>(
    server: &'a mut S,
    ctx: &'a mut Context<S>,
    body: Body<S>,
) -> Option<Handling<'a>> {
    match body {
        Body::Call(asked) => asked.handle(server, ctx),
        Body::Cast(told) => told.handle(server, ctx),
        Body::Info(info) => inform(server, ctx, info),
    }
}

fn inform<'a, S: Server>(
    server: &'a mut S,
    ctx: &'a mut Context<S>,
    info: Info,
) -> Option<Handling<'a>> {
    if let Info::Down { monitor, .. } = &info
        && !ctx.end_watching(*monitor)
    {
        // Cancelled after it had fired: the canceller must not hear of it any more.
        return None;
    }
    Some(Box::pin(server.info(info, ctx)))
}

/// Runs one callback to its end, or drops it at an await point where the process must end.
fn settle<S: Server>(mailbox: &Mailbox<S>, mut handling: Handling<'_>) -> impl Future<Output = ()> {
    poll_fn(move |cx| {
        if handling.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        mailbox.wake_on_signal(cx.waker());
        if mailbox.is_interrupted() { Poll::Ready(()) } else { Poll::Pending }
    })
}
