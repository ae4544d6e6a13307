//! What a callback can do beyond its own state.

use std::{collections::BTreeMap, fmt, sync::Arc, task::Poll, time::Duration};

use purlin_core::{Deadline, Instant, TraceContext};

use crate::{
    AnyProcess, ExitReason, MonitorId, Monitored, Pid, ProcessId, ProcessRef, Processes, Server,
    SpawnError, SpawnOptions, Unwatch,
    link::{self, DownToProcess},
    process::{Process, Ready},
    timer::Timers,
};

/// The process a callback runs in: its identity, timers, links, monitors and end.
///
/// Lent to each callback; it cannot be kept.
pub struct Context<S: Server> {
    process: Arc<Process<S>>,
    timers: Timers,
    watching: BTreeMap<MonitorId, Unwatch>,
    pub(crate) stopping: Option<ExitReason>,
    /// Who is told that the process is up; gone once told.
    ready: Option<Ready>,
    /// Whether the end of `init` is not yet the end of the start.
    holds_ready: bool,
    pub(crate) deadline: Option<Deadline>,
    pub(crate) trace: Option<TraceContext>,
}

impl<S: Server> fmt::Debug for Context<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context")
            .field("pid", self.pid())
            .field("timers", &self.timers)
            .field("watching", &self.watching.len())
            .field("stopping", &self.stopping)
            .finish_non_exhaustive()
    }
}

impl<S: Server> Context<S> {
    pub(crate) fn new(process: Arc<Process<S>>, ready: Ready) -> Self {
        Self {
            process,
            ready: Some(ready),
            holds_ready: false,
            timers: Timers::default(),
            watching: BTreeMap::new(),
            stopping: None,
            deadline: None,
            trace: None,
        }
    }

    /// A reference to this process, to hand out.
    #[must_use]
    pub fn me(&self) -> ProcessRef<S> {
        ProcessRef(Arc::clone(&self.process))
    }

    /// This process's number on its node.
    #[must_use]
    pub fn id(&self) -> ProcessId {
        self.pid().process
    }

    /// This process's identity in the cluster.
    #[must_use]
    pub fn pid(&self) -> &Pid {
        &self.process.core.pid
    }

    /// How often a supervisor started this child again before this life of it.
    #[must_use]
    pub fn restarts(&self) -> u32 {
        self.process.core.restarts
    }

    /// The process system this process belongs to.
    #[must_use]
    pub fn processes(&self) -> Processes {
        Processes::of(&self.process.core.system)
    }

    /// The trace the message being handled belongs to: that of its sender's task
    /// ([`with_trace`](crate::with_trace)), here or on another node. What the callback sends goes
    /// on with it.
    #[must_use]
    pub fn trace(&self) -> Option<&TraceContext> {
        self.trace.as_ref()
    }

    /// When the caller of the call being handled stops waiting; `None` for what nobody waits for.
    ///
    /// Work that cannot be done by then is better refused than begun.
    #[must_use]
    pub fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    /// Ends this process with `reason` once the current callback has returned; its reply is still
    /// delivered. In `init`, return the reason as the error instead.
    pub fn stop(&mut self, reason: ExitReason) {
        self.stopping.get_or_insert(reason);
    }

    /// Whether exits of linked processes arrive as [`Info::Exit`](crate::Info::Exit) from now on,
    /// instead of ending this process. Returns what held before.
    ///
    /// The exit of the process that started this one linked, such as its supervisor, cannot be
    /// trapped: it ends this process in order, whatever its reason.
    pub fn trap_exit(&mut self, trap: bool) -> bool {
        let before = self.process.core.traps_exit();
        self.process.core.set_traps_exit(trap);
        before
    }

    /// Fires [`Info::Timer`](crate::Info::Timer) with `key` once, `after` from now.
    ///
    /// Never early; late by what is being handled. A timer already running under `key` is
    /// replaced. Timers end with the process.
    pub fn timer_once(&mut self, key: &'static str, after: Duration) {
        let due = self.process.core.system.clock.now() + after;
        self.timers.once(key, due);
    }

    /// Fires [`Info::Timer`](crate::Info::Timer) with `key` every `every`, at least 1 ms, from
    /// now on. Turns missed while the process was busy are fired once, not one by one.
    pub fn timer_every(&mut self, key: &'static str, every: Duration) {
        let now = self.process.core.system.clock.now();
        self.timers.every(key, now, every);
    }

    /// Cancels the timer under `key`; whether there was one. Once cancelled it does not fire.
    pub fn timer_cancel(&mut self, key: &str) -> bool {
        self.timers.cancel(key)
    }

    /// Links this process with `other`: when one fails, so does the other, unless it traps exits.
    ///
    /// A link to a process that has ended fires at once with [`ExitReason::NoProcess`].
    pub fn link(&self, other: impl Into<AnyProcess>) {
        link::link(&self.me().untyped(), &other.into());
    }

    /// Ends the link with `other`, if there is one. An exit already on its way still arrives.
    pub fn unlink(&self, other: impl Into<AnyProcess>) {
        link::unlink(&self.me().untyped(), &other.into());
    }

    /// Watches `target`: one [`Info::Down`](crate::Info::Down) with the returned id arrives when
    /// it ends; at once if it has ended.
    pub fn monitor(&mut self, target: &impl Monitored) -> MonitorId {
        let monitor = self.process.core.system.next_monitor();
        let sink = Arc::new(DownToProcess(self.me().untyped()));
        let unwatch = target.watch(monitor, sink);
        self.watching.insert(monitor, unwatch);
        monitor
    }

    /// Stops watching; whether it still watched. Afterwards no `Down` of this monitor arrives,
    /// not even one already on its way.
    pub fn demonitor(&mut self, monitor: MonitorId) -> bool {
        self.end_watching(monitor)
    }

    /// Starts a process linked to this one and waits for its `init`.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing is left running then. If `init` fails, the link carries its exit
    /// too.
    ///
    /// # Cancel safety
    /// Dropping the future kills a process whose `init` has not ended.
    pub async fn spawn_linked<T: Server>(
        &self,
        args: T::Args,
        options: SpawnOptions,
    ) -> Result<ProcessRef<T>, SpawnError> {
        let me = self.me().untyped();
        self.processes().spawn_from(me, args, options).await
    }

    pub(crate) fn now(&self) -> Instant {
        self.process.core.system.clock.now()
    }

    /// Leaves it to [`Context::tell_ready`] to say that the process is up.
    pub(crate) fn hold_ready(&mut self) {
        self.holds_ready = true;
    }

    pub(crate) fn tell_ready(&mut self) {
        if let Some(ready) = self.ready.take() {
            ready.tell(self.pid(), Ok(()));
        }
    }

    pub(crate) fn init_ended(&mut self) {
        if !self.holds_ready {
            self.tell_ready();
        }
    }

    /// Who waits to hear that the process is up, and must hear now that it is not.
    pub(crate) fn take_ready(&mut self) -> Option<Ready> {
        self.ready.take()
    }

    pub(crate) fn timer_at(&mut self, key: &'static str, due: Instant) {
        self.timers.once(key, due);
    }

    /// Waits for the next timer and takes it; for ever if there is none.
    pub(crate) async fn timer_due(&mut self) {
        while self.take_due_timer().is_none() {
            std::future::poll_fn(|cx| self.poll_timers(cx)).await;
        }
    }

    pub(crate) fn end_watching(&mut self, monitor: MonitorId) -> bool {
        self.watching.remove(&monitor).is_some()
    }

    pub(crate) fn take_due_timer(&mut self) -> Option<&'static str> {
        if self.timers.is_empty() {
            return None;
        }
        self.timers.take_due(self.process.core.system.clock.now())
    }

    pub(crate) fn poll_timers(&mut self, cx: &mut std::task::Context<'_>) -> Poll<()> {
        if self.timers.is_empty() {
            return Poll::Pending;
        }
        let clock = &self.process.core.system.clock;
        self.timers.poll_due(|| clock.now(), cx)
    }
}
