//! The process that is a supervisor: it starts, stops and listens as `lifecycle` says.

use std::{collections::BTreeMap, fmt, sync::Arc};

use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::oneshot;

use crate::{
    AnyProcess, CastError, Context, ExitReason, Handle, Info, Message, ProcessId, ProcessRef,
    Processes, Server, SpawnError,
    process::{Birth, ChildStarted, Ready},
    supervisor::{
        ChildSpec, ChildState, Restart, SupervisorSpec,
        lifecycle::{ChildNumber, Input, Lifecycle, Output, Refusal},
    },
};

/// One child as others see it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChildInfo {
    /// What it is called within its supervisor.
    pub id: Arc<str>,
    /// Its process, while it has one.
    pub process: Option<ProcessId>,
    /// Where it is.
    pub state: ChildState,
    /// Whether it is started again.
    pub restart: Restart,
    /// How often it was started again.
    pub restarts: u32,
    /// Whether it is a supervisor.
    pub is_supervisor: bool,
}

/// Why a request about a child did not lead to what was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChildError {
    /// Refused; nothing was changed.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The child did not start; one that was just added is forgotten again.
    #[error("the child did not start: {0}")]
    NotStarted(ExitReason),
    /// Another request took the child down meanwhile, or the supervisor shuts down.
    #[error("the child was taken down meanwhile")]
    TakenDown,
    /// The supervisor has ended, or its mailbox is full.
    #[error("the supervisor cannot be asked: {0}")]
    Unreachable(String),
}

impl From<CastError> for ChildError {
    fn from(error: CastError) -> Self {
        Self::Unreachable(error.to_string())
    }
}

type Waiter<T> = oneshot::Sender<Result<T, ChildError>>;

/// Who waits for what to become of a child.
enum Waiting {
    Up(Waiter<AnyProcess>),
    Down(Waiter<()>),
}

/// The process behind a [`SupervisorRef`]. Started by [`Processes::supervise`] or as a child.
pub struct Supervisor {
    lifecycle: Lifecycle,
    specs: BTreeMap<ChildNumber, ChildSpec>,
    running: BTreeMap<ChildNumber, AnyProcess>,
    children: BTreeMap<ProcessId, ChildNumber>,
    waiting: BTreeMap<ChildNumber, Vec<Waiting>>,
    /// While ending: the ends of the children, since the mailbox is closed then.
    ends: FuturesUnordered<BoxFuture<'static, (ChildNumber, ExitReason)>>,
    restarts: u64,
    done: bool,
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("lifecycle", &self.lifecycle).finish_non_exhaustive()
    }
}

/// The timer that brings [`Input::Woke`].
const WAKE: &str = "lifecycle";

impl Server for Supervisor {
    const KIND: &'static str = "Supervisor";
    type Args = SupervisorSpec;

    async fn init(spec: SupervisorSpec, ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
        ctx.trap_exit(true);
        let rules: Vec<_> = spec.children.iter().map(|child| child.rule.clone()).collect();
        let lifecycle = Lifecycle::new(spec.strategy, spec.intensity, spec.children_max, rules)
            .map_err(ExitReason::failed)?;
        let numbers: Vec<_> = lifecycle.children().map(|(number, ..)| number).collect();
        let mut supervisor = Self {
            lifecycle,
            specs: numbers.into_iter().zip(spec.children).collect(),
            running: BTreeMap::new(),
            children: BTreeMap::new(),
            waiting: BTreeMap::new(),
            ends: FuturesUnordered::new(),
            restarts: 0,
            done: false,
        };
        // Whoever starts a supervisor gets it with its children up.
        ctx.hold_ready();
        let mut out = Vec::new();
        supervisor.lifecycle.boot(ctx.now(), &mut out);
        supervisor.perform(out, ctx);
        Ok(supervisor)
    }

    async fn info(&mut self, info: Info, ctx: &mut Context<Self>) {
        match info {
            Info::Exit { from, reason } => {
                if let Some(child) = self.children.remove(&from.process) {
                    self.running.remove(&child);
                    self.step(Input::Exited(child, reason), ctx);
                }
            }
            Info::Timer(_) => self.step(Input::Woke, ctx),
            Info::Message(message) => {
                if let Ok(started) = message.downcast::<ChildStarted>()
                    && let Some(&child) = self.children.get(&started.0)
                {
                    self.step(Input::Started(child), ctx);
                }
            }
            Info::Down { .. } => {}
        }
    }

    async fn terminate(&mut self, _reason: &ExitReason, ctx: &mut Context<Self>) {
        for waiting in std::mem::take(&mut self.waiting).into_values().flatten() {
            match waiting {
                Waiting::Up(waiter) => drop(waiter.send(Err(ChildError::TakenDown))),
                Waiting::Down(waiter) => drop(waiter.send(Err(ChildError::TakenDown))),
            }
        }
        // The mailbox is closed, so ends come by monitors; one that happened before this, and
        // whose info was lost with the mailbox, comes at once.
        for (&number, process) in &self.running {
            let process = process.clone();
            self.ends.push(Box::pin(async move { (number, process.exited().await) }));
        }
        self.step(Input::Shutdown, ctx);
        while !self.done {
            let input = tokio::select! {
                // Children are finitely many; a timer only hurries those that linger.
                biased;
                Some((child, reason)) = self.ends.next() => {
                    self.running.remove(&child);
                    Input::Exited(child, reason)
                }
                () = ctx.timer_due() => Input::Woke,
            };
            self.step(input, ctx);
        }
    }

    fn summary(&self) -> String {
        let up = self.running.len();
        format!("{up} of {} children up, {} restarts", self.lifecycle.len(), self.restarts)
    }
}

impl Supervisor {
    fn step(&mut self, input: Input, ctx: &mut Context<Self>) {
        let mut out = Vec::new();
        self.lifecycle.step(ctx.now(), input, &mut out);
        self.perform(out, ctx);
    }

    /// Does what the lifecycle says. A child that cannot even be launched is an input again.
    fn perform(&mut self, mut outputs: Vec<Output>, ctx: &mut Context<Self>) {
        ctx.timer_cancel(WAKE);
        let mut failed = Vec::new();
        loop {
            for output in outputs.drain(..) {
                if let Output::Start { child, restarts } = output
                    && let Err(error) = self.start(child, restarts, ctx)
                {
                    failed.push(Input::Exited(child, ExitReason::failed(error)));
                    continue;
                }
                self.perform_one(output, ctx);
            }
            let Some(input) = failed.pop() else { return };
            self.lifecycle.step(ctx.now(), input, &mut outputs);
        }
    }

    fn start(
        &mut self,
        child: ChildNumber,
        restarts: u32,
        ctx: &mut Context<Self>,
    ) -> Result<(), SpawnError> {
        let me = ctx.me().untyped();
        let birth = Birth {
            parent: Some(me.clone()),
            linked: true,
            restarts,
            ready: Ready::Supervisor(me),
        };
        let spec = self.specs.get(&child).expect("every child has a spec until it is forgotten");
        let process = spec.start(&ctx.processes(), birth)?;
        self.children.insert(process.id(), child);
        self.running.insert(child, process);
        Ok(())
    }

    fn perform_one(&mut self, output: Output, ctx: &mut Context<Self>) {
        match output {
            Output::Start { .. } => {}
            Output::Stop(child) => {
                if let Some(process) = self.running.get(&child) {
                    process.drain();
                }
            }
            Output::Kill(child) => {
                if let Some(process) = self.running.get(&child) {
                    process.kill();
                }
            }
            Output::Up(child) => {
                if let Some(process) = self.running.get(&child).cloned() {
                    self.tell_up(child, &Ok(process));
                }
            }
            Output::Restarting(child, after) => {
                self.restarts += 1;
                let id = self.specs.get(&child).map(|spec| spec.id().to_owned());
                metrics::counter!("purlin_process_restarts_total").increment(1);
                tracing::warn!(supervisor = %ctx.pid(), child = id, ?after, "restarting a child");
            }
            Output::StartFailed(child, reason) => {
                self.tell_up(child, &Err(ChildError::NotStarted(reason)));
            }
            Output::Down(child) => {
                self.tell_up(child, &Err(ChildError::TakenDown));
                self.tell_down(child);
            }
            Output::Quarantined(child) => {
                let id = self.specs.get(&child).map(|spec| spec.id().to_owned());
                metrics::counter!("purlin_process_quarantined_total").increment(1);
                tracing::error!(supervisor = %ctx.pid(), child = id, "a child failed too often and is quarantined");
            }
            Output::Abandoned(child) => {
                let process = self.running.remove(&child);
                tracing::error!(supervisor = %ctx.pid(), ?process, "a child does not reach an await point and cannot be killed");
                if let Some(process) = process {
                    self.children.remove(&process.id());
                }
            }
            Output::Forgotten(child) => {
                self.specs.remove(&child);
            }
            Output::Ready => ctx.tell_ready(),
            Output::GiveUp(reason) => ctx.stop(reason),
            Output::Done => self.done = true,
            Output::WakeAt(at) => ctx.timer_at(WAKE, at),
        }
    }

    fn tell_up(&mut self, child: ChildNumber, outcome: &Result<AnyProcess, ChildError>) {
        self.tell(child, |waiting| match waiting {
            Waiting::Up(waiter) => {
                drop(waiter.send(outcome.clone()));
                None
            }
            Waiting::Down(_) => Some(waiting),
        });
    }

    fn tell_down(&mut self, child: ChildNumber) {
        self.tell(child, |waiting| match waiting {
            Waiting::Down(waiter) => {
                drop(waiter.send(Ok(())));
                None
            }
            Waiting::Up(_) => Some(waiting),
        });
    }

    fn tell(&mut self, child: ChildNumber, each: impl FnMut(Waiting) -> Option<Waiting>) {
        if let Some(waiting) = self.waiting.remove(&child) {
            let left: Vec<_> = waiting.into_iter().filter_map(each).collect();
            if !left.is_empty() {
                self.waiting.insert(child, left);
            }
        }
    }

    fn wait(&mut self, child: ChildNumber, waiting: Waiting) {
        self.waiting.entry(child).or_default().push(waiting);
    }
}

/// What to do with a child.
enum Request {
    Add(Box<ChildSpec>, Waiter<AnyProcess>),
    Restart(Box<str>, Waiter<AnyProcess>),
    Stop(Box<str>, Waiter<()>),
    Remove(Box<str>, Waiter<()>),
}

impl Message for Request {
    type Reply = ();
    const NAME: &'static str = "Supervisor.request";
}

impl Handle<Request> for Supervisor {
    async fn handle(&mut self, request: Request, ctx: &mut Context<Self>) {
        let mut out = Vec::new();
        let now = ctx.now();
        // The waiter is put in place before the outputs are performed: they may settle it.
        match request {
            Request::Add(spec, waiter) => {
                match self.lifecycle.add(now, spec.rule.clone(), &mut out) {
                    Ok(child) => {
                        self.specs.insert(child, *spec);
                        self.wait(child, Waiting::Up(waiter));
                    }
                    Err(refusal) => drop(waiter.send(Err(refusal.into()))),
                }
            }
            Request::Restart(id, waiter) => match self.lifecycle.restart(now, &id, &mut out) {
                Ok(child) => self.wait(child, Waiting::Up(waiter)),
                Err(refusal) => drop(waiter.send(Err(refusal.into()))),
            },
            Request::Stop(id, waiter) => match self.lifecycle.stop(now, &id, &mut out) {
                Ok(child) => self.wait(child, Waiting::Down(waiter)),
                Err(refusal) => drop(waiter.send(Err(refusal.into()))),
            },
            Request::Remove(id, waiter) => match self.lifecycle.remove(now, &id, &mut out) {
                Ok(child) => self.wait(child, Waiting::Down(waiter)),
                Err(refusal) => drop(waiter.send(Err(refusal.into()))),
            },
        }
        self.perform(out, ctx);
    }
}

struct Children;

impl Message for Children {
    type Reply = Vec<ChildInfo>;
    const NAME: &'static str = "Supervisor.children";
}

impl Handle<Children> for Supervisor {
    async fn handle(&mut self, _: Children, _ctx: &mut Context<Self>) -> Vec<ChildInfo> {
        self.lifecycle
            .children()
            .map(|(number, rule, state, restarts)| ChildInfo {
                id: Arc::clone(&rule.id),
                process: self.running.get(&number).map(AnyProcess::id),
                state,
                restart: rule.restart,
                restarts,
                is_supervisor: self.specs.get(&number).is_some_and(|spec| spec.is_supervisor),
            })
            .collect()
    }
}

/// A reference to a supervisor. Cheap to clone; does not keep it running.
#[derive(Debug, Clone)]
pub struct SupervisorRef(ProcessRef<Supervisor>);

impl SupervisorRef {
    /// The supervisor's process.
    #[must_use]
    pub fn process(&self) -> &ProcessRef<Supervisor> {
        &self.0
    }

    /// Adds a child after the others, and waits until it is up.
    ///
    /// # Errors
    /// [`ChildError`]; the child is not there then, unless the supervisor could not answer.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the child to the supervisor.
    pub async fn start_child(&self, spec: ChildSpec) -> Result<AnyProcess, ChildError> {
        self.ask(|waiter| Request::Add(Box::new(spec), waiter)).await
    }

    /// Adds a child and gives back its typed reference; see [`SupervisorRef::start_child`].
    ///
    /// # Errors
    /// [`ChildError`]; [`ChildError::TakenDown`] also if `spec` starts another type of process.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the child to the supervisor.
    pub async fn start<S: Server>(&self, spec: ChildSpec) -> Result<ProcessRef<S>, ChildError> {
        self.start_child(spec).await?.downcast().ok_or(ChildError::TakenDown)
    }

    /// Starts a child that is down or in quarantine, or takes one that runs down and starts it
    /// again, and waits until it is up.
    ///
    /// # Errors
    /// [`ChildError`]; a child that did not start stays down.
    ///
    /// # Cancel safety
    /// Dropping the future leaves the child to the supervisor.
    pub async fn restart_child(&self, id: &str) -> Result<AnyProcess, ChildError> {
        self.ask(|waiter| Request::Restart(id.into(), waiter)).await
    }

    /// Takes a child down, and waits until it is. It stays, to be restarted.
    ///
    /// # Errors
    /// [`ChildError`].
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the stop.
    pub async fn stop_child(&self, id: &str) -> Result<(), ChildError> {
        self.ask(|waiter| Request::Stop(id.into(), waiter)).await
    }

    /// Takes a child down, waits until it is, and forgets it.
    ///
    /// # Errors
    /// [`ChildError`].
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the removal.
    pub async fn remove_child(&self, id: &str) -> Result<(), ChildError> {
        self.ask(|waiter| Request::Remove(id.into(), waiter)).await
    }

    /// All children, in the order of starting.
    ///
    /// # Errors
    /// [`CallError`](crate::CallError) when the supervisor does not answer.
    pub async fn children(&self) -> Result<Vec<ChildInfo>, crate::CallError> {
        self.0.call(Children).await
    }

    /// How many children there are.
    ///
    /// # Errors
    /// [`CallError`](crate::CallError) when the supervisor does not answer.
    pub async fn count(&self) -> Result<ChildCounts, crate::CallError> {
        let children = self.children().await?;
        let of = |test: fn(&ChildInfo) -> bool| children.iter().filter(|child| test(child)).count();
        Ok(ChildCounts {
            children: children.len(),
            running: of(|child| child.state == ChildState::Running),
            supervisors: of(|child| child.is_supervisor),
            quarantined: of(|child| child.state == ChildState::Quarantined),
        })
    }

    /// Ends the supervisor and its children, the last first, and waits for it.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the shutdown.
    pub async fn shutdown(&self) -> ExitReason {
        self.0.drain();
        self.0.exited().await
    }

    async fn ask<T>(&self, request: impl FnOnce(Waiter<T>) -> Request) -> Result<T, ChildError> {
        let (tell, told) = oneshot::channel();
        self.0.cast(request(tell)).await?;
        told.await.unwrap_or_else(|_| Err(ChildError::Unreachable("it has ended".to_owned())))
    }
}

impl From<&SupervisorRef> for AnyProcess {
    fn from(supervisor: &SupervisorRef) -> Self {
        supervisor.0.untyped()
    }
}

/// How many children a supervisor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChildCounts {
    /// All of them, up or not.
    pub children: usize,
    /// Those that run.
    pub running: usize,
    /// Those that are supervisors.
    pub supervisors: usize,
    /// Those in quarantine.
    pub quarantined: usize,
}

impl Processes {
    /// Starts a supervisor and waits until its children are up.
    ///
    /// # Errors
    /// [`SpawnError`]; neither it nor its children are left behind then.
    ///
    /// # Cancel safety
    /// Dropping the future ends a supervisor whose children are not all up.
    pub async fn supervise(&self, spec: SupervisorSpec) -> Result<SupervisorRef, SpawnError> {
        let options = spec.options();
        self.spawn::<Supervisor>(spec, options).await.map(SupervisorRef)
    }
}
