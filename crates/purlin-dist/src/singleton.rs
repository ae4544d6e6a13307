//! Work that runs once in the cluster: on one node at a time, taken over when that one goes.
//!
//! Every node offers the same work under one name; one of them runs it, with a token that only
//! grows. *Eventual*: chosen by the supervisor, at once and without asking anybody; two sides of a
//! cut may both run it, until the cut heals. *Fenced*: whoever runs it holds a lease, and stops
//! before that can be another's; at most one runs at any moment, and none while the lease service
//! cannot be reached.
//!
//! Either way the work should give its token to what it writes to: a process that was paused may
//! wake up after its time, and only a token tells.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use purlin_core::NodeId;
use purlin_process::{
    AnyProcess, Backoff, Context, ExitReason, Info, Intensity, Processes, Restart, Server,
    SpawnOptions,
};
use tokio::task::JoinHandle;

use crate::{
    error::check_key,
    lease::{Lease, LeaseError, Leases},
    supervisor::{
        Birth, ChildInfo, ChildOptions, Handed, KindError, StartChildError, Stopped, Supervisor,
        SupervisorError, Supervisors,
        kind::{AnyKind, Boxed, HandOffError},
    },
};

/// The supervisor that singletons are children of.
pub const SINGLETONS: &str = "purlin.singletons";
/// The shortest time a lease may be held for. Default of [`Fencing`]: 10 s.
const TTL_MIN: Duration = Duration::from_secs(1);
/// How much of a lease's time is kept back, as one part of so many: for clocks that run at
/// different rates, and for the work to end.
const KEPT_BACK: u32 = 4;
/// How often a lease that another holds is asked for.
const ASK_EVERY: Duration = Duration::from_millis(500);

/// By which lease service a singleton is fenced, and for how long it is leased.
#[derive(Debug, Clone)]
pub struct Fencing {
    /// The service.
    pub leases: Arc<dyn Leases>,
    /// For how long, at least 1 s. Shorter takes over sooner after a crash, and stops sooner when
    /// the service is slow. It is renewed three times in that time.
    pub ttl: Duration,
}

/// What the work is told when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// What it is called.
    pub name: Arc<str>,
    /// Greater than that of every earlier turn: of every one that its starter knew of when it is
    /// eventual, of every one there ever was when it is fenced.
    pub token: u64,
}

type Work = dyn Fn(Turn) -> Boxed<'static, Result<(), String>> + Send + Sync;

/// A singleton: see the [module](self). Cheap to clone.
///
/// ```no_run
/// # use purlin_dist::{singleton::{Singleton, Turn}, supervisor::Supervisors};
/// # async fn example(supervisors: &Supervisors) -> Result<(), Box<dyn std::error::Error>> {
/// let billing = Singleton::new(supervisors, "billing")?;
/// billing
///     .run(|turn: Turn| async move {
///         println!("my token is {}", turn.token);
///         std::future::pending::<Result<(), String>>().await
///     })
///     .await?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Singleton {
    supervisor: Supervisor,
    name: Arc<str>,
    fencing: Option<Fencing>,
}

impl Singleton {
    /// The eventual singleton `name`.
    ///
    /// # Errors
    /// [`SupervisorError`] for a name of 0 or more than 255 bytes or with a zero byte.
    pub fn new(supervisors: &Supervisors, name: &str) -> Result<Self, SupervisorError> {
        check_key("singleton", name)?;
        let bytes = name.len();
        if bytes > crate::supervisor::kind::KIND_BYTES_MAX {
            return Err(SupervisorError::KindName { bytes });
        }
        Ok(Self { supervisor: supervisors.get(SINGLETONS)?, name: name.into(), fencing: None })
    }

    /// The same, fenced by leases.
    #[must_use]
    pub fn fenced(self, fencing: Fencing) -> Self {
        let ttl = fencing.ttl.max(TTL_MIN);
        Self { fencing: Some(Fencing { ttl, ..fencing }), ..self }
    }

    /// Offers to run `work` on this node, and has it run on one that offers it. Call it once on
    /// each node, with the same work.
    ///
    /// The work is over for the whole cluster when it returns `Ok`; after an error it is started
    /// again, a moment later. On a node that is no longer to run it, its future is dropped at its
    /// next await.
    ///
    /// # Errors
    /// [`RunError`]. When it is [`RunError::Start`], this node offers the work all the same.
    ///
    /// # Cancel safety
    /// Dropping the future does not take the offer back.
    pub async fn run<F, Fut, E>(&self, work: F) -> Result<(), RunError>
    where
        F: Fn(Turn) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display,
    {
        let work: Arc<Work> = Arc::new(move |turn| {
            let work = work(turn);
            Box::pin(async move { work.await.map_err(|error| error.to_string()) })
        });
        let offer = Offer { name: Arc::clone(&self.name), work, fencing: self.fencing.clone() };
        self.supervisor.register(Arc::clone(&self.name), Arc::new(offer))?;
        let options = ChildOptions {
            restart: Restart::Transient,
            backoff: Backoff { first: Duration::from_millis(100), most: Duration::from_secs(10) },
            // It is never left alone: that is what it is for.
            quarantine: Intensity { restarts_max: u32::MAX, within: Duration::from_secs(60) },
            ..ChildOptions::default()
        };
        // All who offer it at once choose the same.
        let started = self.supervisor.start_on_oldest(&self.name, options).await;
        match started {
            Ok(()) | Err(StartChildError::Exists { .. }) => Ok(()),
            Err(error) => Err(RunError::Start(error)),
        }
    }

    /// Where it runs, and its fence as an eventual singleton.
    #[must_use]
    pub fn which(&self) -> Option<ChildInfo> {
        self.supervisor.which(&self.name)
    }

    /// Ends it on all nodes, until somebody runs it again.
    ///
    /// # Errors
    /// [`SupervisorError::Absent`] when it does not run.
    ///
    /// # Cancel safety
    /// As [`Supervisor::stop_child`].
    pub async fn stop(&self) -> Result<Stopped, SupervisorError> {
        self.supervisor.stop_child(&self.name).await
    }
}

/// Why a singleton was not started by this call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// This node offers work under the name already, or cannot tell the others that it does.
    #[error(transparent)]
    Offer(#[from] SupervisorError),
    /// No node was found to have started it.
    #[error(transparent)]
    Start(StartChildError),
}

/// The work as a kind of child.
struct Offer {
    name: Arc<str>,
    work: Arc<Work>,
    fencing: Option<Fencing>,
}

impl AnyKind for Offer {
    fn start<'a>(
        &'a self,
        processes: &'a Processes,
        _args: &'a [u8],
        birth: Birth<Handed>,
    ) -> Boxed<'a, Result<AnyProcess, KindError>> {
        let args = (
            Arc::clone(&self.work),
            Turn { name: Arc::clone(&self.name), token: birth.fence.0 },
            self.fencing.clone(),
        );
        Box::pin(async move {
            let process = processes.spawn::<Worker>(args, SpawnOptions::default()).await?;
            Ok(process.untyped())
        })
    }

    fn check(&self, _args: &[u8]) -> Result<(), KindError> {
        Ok(())
    }

    fn terminate_within(&self) -> Duration {
        SpawnOptions::default().terminate_within
    }

    fn hand_off(
        self: Arc<Self>,
        process: AnyProcess,
        _bytes_max: usize,
        within: Duration,
    ) -> Boxed<'static, Result<Option<Handed>, HandOffError>> {
        Box::pin(async move {
            process.stop(ExitReason::stopped(crate::supervisor::kind::MOVED));
            // The next turn begins when this one is over.
            if tokio::time::timeout(within, process.exited()).await.is_err() {
                process.kill();
                process.exited().await;
            }
            Ok(None)
        })
    }
}

/// The process that runs the work.
struct Worker {
    work: JoinHandle<()>,
}

/// The work is over.
struct Over(Result<(), String>);

impl Server for Worker {
    const KIND: &'static str = "Singleton";
    type Args = (Arc<Work>, Turn, Option<Fencing>);

    async fn init(
        (work, turn, fencing): Self::Args,
        ctx: &mut Context<Self>,
    ) -> Result<Self, ExitReason> {
        let (me, holder) = (ctx.me(), ctx.pid().node.clone());
        let running = async move {
            let over = match fencing {
                None => work(turn).await,
                Some(fencing) => run_fenced(&work, turn, &holder, &fencing).await,
            };
            // If it is ending already, it does not need to know.
            me.send_info(Over(over)).ok();
        };
        Ok(Self { work: tokio::spawn(running) })
    }

    async fn info(&mut self, info: Info, ctx: &mut Context<Self>) {
        let Info::Message(message) = info else { return };
        if let Ok(over) = message.downcast::<Over>() {
            ctx.stop(match over.0 {
                Ok(()) => ExitReason::Normal,
                Err(why) => ExitReason::failed(why),
            });
        }
    }

    async fn terminate(&mut self, _reason: &ExitReason, _ctx: &mut Context<Self>) {
        self.work.abort();
        // Only then is it certain that it does nothing more.
        (&mut self.work).await.ok();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Killed: nothing of ours runs after that either.
        self.work.abort();
    }
}

/// Waits for the lease, and runs the work while it lasts.
async fn run_fenced(
    work: &Arc<Work>,
    turn: Turn,
    holder: &NodeId,
    fencing: &Fencing,
) -> Result<(), String> {
    let Fencing { leases, ttl } = fencing;
    let name = format!("singleton/{}", turn.name);
    let usable = *ttl - *ttl / KEPT_BACK;
    let (lease, asked_at) = loop {
        let asked_at = tokio::time::Instant::now();
        match leases.acquire(&name, holder, *ttl).await {
            Ok(lease) => break (lease, asked_at),
            Err(LeaseError::Held { .. } | LeaseError::Unreachable(_) | LeaseError::Over(_)) => {
                tokio::time::sleep(ASK_EVERY).await;
            }
        }
    };
    let turn = Turn { token: lease.token, ..turn };
    let mut running = work(turn);
    let over = tokio::select! {
        biased;
        // First: the work must not run on for one more step when the lease is over.
        why = keep(leases, &lease, *ttl, asked_at, usable) => Err(why),
        over = &mut running => over,
    };
    drop(running);
    // It runs out by itself if this does not arrive.
    leases.release(&lease).await.ok();
    over
}

/// Renews the lease for as long as that succeeds; returns why it must be taken for over.
async fn keep(
    leases: &Arc<dyn Leases>,
    lease: &Lease,
    ttl: Duration,
    asked_at: tokio::time::Instant,
    usable: Duration,
) -> String {
    let mut until = asked_at + usable;
    loop {
        let ask_at = tokio::time::Instant::now() + ttl / 3;
        tokio::time::sleep_until(ask_at.min(until)).await;
        let asked_at = tokio::time::Instant::now();
        match tokio::time::timeout_at(until, leases.renew(lease, ttl)).await {
            Ok(Ok(())) => until = asked_at + usable,
            Ok(Err(error @ (LeaseError::Over(_) | LeaseError::Held { .. }))) => {
                return error.to_string();
            }
            Ok(Err(LeaseError::Unreachable(_))) if asked_at + ASK_EVERY < until => {
                tokio::time::sleep(ASK_EVERY).await;
            }
            Ok(Err(error)) => {
                tokio::time::sleep_until(until).await;
                return error.to_string();
            }
            Err(_late) => return "the lease could not be renewed in time".to_owned(),
        }
    }
}
