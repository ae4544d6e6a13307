//! The loop around the drain: runs hooks, counts, waits.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use purlin_core::{Clock, Deadline, watch};
use purlin_net::{ChannelId, Transport};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    drain::{Drain, DrainHook, DrainProgress, Input, Intake, Output, Phase, Stage},
    driver::Command,
};

/// How often unanswered requests are counted while finishing. A drain happens once in a process's
/// life; asking is cheaper than a counter that wakes somebody on every answer.
const COUNT_EVERY: Duration = Duration::from_millis(2);

#[derive(Clone)]
pub(crate) struct Drainer(Arc<Shared>);

struct Shared {
    hooks: Mutex<Vec<Arc<dyn DrainHook>>>,
    intakes: Mutex<Vec<Arc<dyn Intake>>>,
    wishes: mpsc::UnboundedSender<Deadline>,
    /// Taken by the first wish.
    runner: Mutex<Option<Runner>>,
    transport: Transport,
    progress: watch::Sender<DrainProgress>,
}

struct Runner {
    drain: Drain,
    commands: mpsc::Sender<Command>,
    clock: Arc<dyn Clock>,
    wishes: mpsc::UnboundedReceiver<Deadline>,
}

impl Drainer {
    pub(crate) fn new(commands: mpsc::Sender<Command>, transport: Transport) -> Self {
        let clock = Arc::clone(transport.clock());
        let (wishes, wishes_rx) = mpsc::unbounded_channel();
        let drain = Drain::new();
        let progress = watch::Sender::new(drain.progress());
        let runner = Mutex::new(Some(Runner { drain, commands, clock, wishes: wishes_rx }));
        let (hooks, intakes) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Shared { hooks, intakes, wishes, runner, transport, progress }))
    }

    pub(crate) fn add_hook(&self, hook: Arc<dyn DrainHook>) {
        self.0.hooks.lock().push(hook);
    }

    pub(crate) fn add_intake(&self, intake: Arc<dyn Intake>) {
        self.0.intakes.lock().push(intake);
    }

    pub(crate) fn progress(&self) -> watch::Receiver<DrainProgress> {
        self.0.progress.subscribe()
    }

    pub(crate) async fn drain(&self, deadline: Deadline) -> DrainProgress {
        let runner = self.0.runner.lock().take();
        if let Some(runner) = runner {
            tokio::spawn(runner.run(Arc::clone(&self.0)));
        }
        // Refused only when the drain is over.
        self.0.wishes.send(deadline).ok();
        let mut progress = self.progress();
        let over = progress.wait_for(|progress| progress.phase == Phase::Left).await;
        let over = over.expect("the sender is in `self`");
        over.clone()
    }
}

impl Shared {
    /// Requests without an answer and, once there are none, connections with answers that are not
    /// written yet. In this order: an answer is first written, then no longer counted.
    fn in_flight(&self) -> usize {
        let unanswered: usize = self.intakes.lock().iter().map(|intake| intake.in_flight()).sum();
        if unanswered > 0 {
            return unanswered;
        }
        let connections = self.transport.peers().into_iter().flat_map(|peer| peer.stats());
        connections.filter(|c| c.channel != ChannelId::STREAM && c.backlog_bytes > 0).count()
    }
}

impl Runner {
    async fn run(mut self, shared: Arc<Shared>) {
        let mut tasks: JoinSet<Input> = JoinSet::new();
        let mut counting = false;
        loop {
            let input = self.wait(&mut tasks, counting, &shared).await;
            let mut out = Vec::new();
            self.drain.step(self.clock.now(), input, &mut out);
            for output in out {
                tracing::info!(?output, phase = %self.drain.progress().phase, "drain");
                match output {
                    Output::Announce => self.announce(&mut tasks),
                    Output::Run(stage) => {
                        tasks.abort_all();
                        self.run_hooks(stage, &shared, &mut tasks);
                    }
                    Output::RefuseNew => {
                        tasks.abort_all();
                        for intake in shared.intakes.lock().iter() {
                            intake.refuse_new();
                        }
                        counting = true;
                    }
                    Output::Leave => {
                        counting = false;
                        self.leave(&mut tasks);
                    }
                    Output::Done => {
                        shared.progress.send_replace(self.drain.progress());
                        return;
                    }
                }
            }
            shared.progress.send_replace(self.drain.progress());
        }
    }

    async fn wait(&mut self, tasks: &mut JoinSet<Input>, counting: bool, shared: &Shared) -> Input {
        let now = self.clock.now();
        let until_wake = self.drain.wake_at().map(|at| at - now);
        tokio::select! {
            // Rare things first; counting again and again must not put off the deadline.
            biased;
            Some(deadline) = self.wishes.recv() => Input::Begin(deadline),
            Some(Ok(input)) = tasks.join_next() => input,
            () = tokio::time::sleep(until_wake.unwrap_or_default()), if until_wake.is_some() => {
                Input::Woke
            }
            () = tokio::time::sleep(COUNT_EVERY), if counting => {
                Input::InFlight(shared.in_flight())
            }
        }
    }

    fn announce(&self, tasks: &mut JoinSet<Input>) {
        let commands = self.commands.clone();
        tasks.spawn(async move {
            let (done, _changed) = oneshot::channel();
            let change = Box::new(|meta: &mut crate::swim::Meta| meta.draining = true);
            commands.send(Command::Meta(change, done)).await.ok();
            ask(commands, Command::Announce).await
        });
    }

    fn leave(&self, tasks: &mut JoinSet<Input>) {
        tasks.spawn(ask(self.commands.clone(), Command::Leave));
    }

    fn run_hooks(&self, stage: Stage, shared: &Shared, tasks: &mut JoinSet<Input>) {
        let deadline = self.drain.deadline().expect("a stage runs only in a drain that has begun");
        let hooks: Vec<_> =
            shared.hooks.lock().iter().filter(|hook| hook.stage() == stage).cloned().collect();
        tasks.spawn(async move {
            let mut running = JoinSet::new();
            for hook in hooks {
                running.spawn(async move {
                    let name = hook.name().to_owned();
                    hook.run(deadline).await.map_err(|problem| format!("{name}: {problem}"))
                });
            }
            let mut problems = Vec::new();
            while let Some(ended) = running.join_next().await {
                match ended {
                    Ok(Ok(())) => {}
                    Ok(Err(problem)) => problems.push(problem),
                    Err(panic) => problems.push(format!("a drain hook failed: {panic}")),
                }
            }
            Input::StageDone(stage, problems)
        });
    }
}

/// Sends a command that is answered when all members have confirmed. If the membership has
/// stopped there is nobody to tell.
async fn ask(
    commands: mpsc::Sender<Command>,
    command: impl FnOnce(oneshot::Sender<()>) -> Command,
) -> Input {
    let (done, confirmed) = oneshot::channel();
    if commands.send(command(done)).await.is_ok() {
        confirmed.await.ok();
    }
    Input::Announced
}
