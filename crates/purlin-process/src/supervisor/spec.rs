//! What can be asked of a supervisor, and of it about each child.

use std::{fmt, sync::Arc, time::Duration};

use crate::{
    AnyProcess, Processes, RemoteServer, Server, SpawnError, SpawnOptions,
    process::{Birth, Decode},
    supervisor::driver::Supervisor,
};

/// Who goes down with a child that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Nobody.
    OneForOne,
    /// All the others, the last first; then all are started again in order.
    OneForAll,
    /// Those started after it, the last first; then it and they are started again in order.
    RestForOne,
    /// Nobody, and children have no order: they come and go at run time and are ended all at
    /// once. A child that has ended for good is forgotten.
    Dynamic,
}

/// Whether a child that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restart {
    /// Always.
    Permanent,
    /// When it failed: after an exit that is not normal.
    Transient,
    /// Never; and it is forgotten.
    Temporary,
}

/// How a supervisor ends a child.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shutdown {
    /// It may handle what waits in its mailbox and terminate, this long; then it is killed.
    Within(Duration),
    /// It may take for ever. For supervisors, whose children have their own limits.
    Unbounded,
    /// It is killed at once.
    Kill,
}

/// How many restarts in how long are too many: then the supervisor gives up and fails itself, so
/// that the one above can try with a fresh start of the whole.
///
/// # Source
/// Erlang/OTP `supervisor`. OTP's default is 1 in 5 s; ours is Elixir's 3 in 5 s.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Intensity {
    /// Restarts that are still fine.
    pub restarts_max: u32,
    /// The window they are counted in, sliding.
    pub within: Duration,
}

impl Default for Intensity {
    fn default() -> Self {
        Self { restarts_max: 3, within: Duration::from_secs(5) }
    }
}

/// How long to wait before a child is started again: `first`, doubled with each failure in a row,
/// up to `most`. A child that lived longer than `most` starts over.
///
/// The waits count against nothing: with `first` = 2 s, the default intensity is never exceeded.
/// No jitter: what restarts here shares nothing with other nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The wait after the first failure.
    pub first: Duration,
    /// The longest wait.
    pub most: Duration,
}

impl Backoff {
    /// The wait after `failures` failures in a row, at least one.
    #[must_use]
    pub fn after(&self, failures: u32) -> Duration {
        let doubled = 2_u32.checked_pow(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        self.first.checked_mul(doubled).unwrap_or(Duration::MAX).min(self.most)
    }
}

type Start =
    dyn Fn(&Processes, SpawnOptions, Birth) -> Result<AnyProcess, SpawnError> + Send + Sync;

/// One child: how to start it, and what to do about its end.
#[derive(Clone)]
pub struct ChildSpec {
    pub(crate) rule: super::lifecycle::Rule,
    pub(crate) is_supervisor: bool,
    options: SpawnOptions,
    start: Arc<Start>,
}

impl fmt::Debug for ChildSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildSpec").field("rule", &self.rule).finish_non_exhaustive()
    }
}

impl ChildSpec {
    /// A server, permanent, with 5 s to shut down. `args` makes what each `init` gets.
    #[must_use]
    pub fn server<S: Server>(
        id: impl Into<Arc<str>>,
        args: impl Fn() -> S::Args + Send + Sync + 'static,
    ) -> Self {
        Self::of::<S>(id.into(), args, None)
    }

    /// As [`ChildSpec::server`], and other nodes may send to it.
    #[must_use]
    pub fn remote_server<S: RemoteServer>(
        id: impl Into<Arc<str>>,
        args: impl Fn() -> S::Args + Send + Sync + 'static,
    ) -> Self {
        Self::of::<S>(id.into(), args, Some(S::receive))
    }

    /// A supervisor, permanent, with as long as it needs to shut down.
    #[must_use]
    pub fn supervisor(id: impl Into<Arc<str>>, spec: SupervisorSpec) -> Self {
        let options = spec.options();
        let child = Self::of::<Supervisor>(id.into(), move || spec.clone(), None);
        Self { is_supervisor: true, options, ..child }.shutdown(Shutdown::Unbounded)
    }

    fn of<S: Server>(
        id: Arc<str>,
        args: impl Fn() -> S::Args + Send + Sync + 'static,
        decode: Option<Decode<S>>,
    ) -> Self {
        let start = move |processes: &Processes, options, birth| {
            // Making the arguments is the user's code: its panic is the child's failure, not ours.
            let args = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&args));
            let args =
                args.map_err(|panic| SpawnError::Init(crate::ExitReason::from_panic(&*panic)))?;
            processes.launch::<S>(args, options, birth, decode).map(|process| process.untyped())
        };
        Self {
            rule: super::lifecycle::Rule {
                id,
                restart: Restart::Permanent,
                shutdown: Shutdown::Within(Duration::from_secs(5)),
                backoff: None,
                quarantine: None,
            },
            is_supervisor: false,
            options: SpawnOptions::default(),
            start: Arc::new(start),
        }
    }

    /// The same with other options for the process, such as a name.
    #[must_use]
    pub fn options(self, options: SpawnOptions) -> Self {
        Self { options, ..self }
    }

    /// The same with another rule of restart.
    #[must_use]
    pub fn restart(mut self, restart: Restart) -> Self {
        self.rule.restart = restart;
        self
    }

    /// The same with another way to be ended.
    #[must_use]
    pub fn shutdown(mut self, shutdown: Shutdown) -> Self {
        self.rule.shutdown = shutdown;
        self
    }

    /// The same with a wait before each restart.
    #[must_use]
    pub fn backoff(mut self, backoff: Backoff) -> Self {
        self.rule.backoff = Some(backoff);
        self
    }

    /// The same, put in quarantine when it fails more often than `limit`: it stays down, alone,
    /// until somebody restarts it, instead of taking the supervisor with it.
    #[must_use]
    pub fn quarantine(mut self, limit: Intensity) -> Self {
        self.rule.quarantine = Some(limit);
        self
    }

    /// What the child is called within its supervisor.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.rule.id
    }

    pub(crate) fn start(
        &self,
        processes: &Processes,
        birth: Birth,
    ) -> Result<AnyProcess, SpawnError> {
        (self.start)(processes, self.options.clone(), birth)
    }
}

/// A supervisor: its strategy, its patience and its first children.
#[derive(Debug, Clone)]
pub struct SupervisorSpec {
    /// Who goes down with a child that failed.
    pub strategy: Strategy,
    /// When to give up.
    pub intensity: Intensity,
    /// The children to start with, in this order, each once the one before is up.
    pub children: Vec<ChildSpec>,
    /// How many children there may be. Default 1,000,000 (guess).
    pub children_max: usize,
    /// The unique name to register it under.
    pub name: Option<String>,
}

impl SupervisorSpec {
    /// No children yet, 3 restarts in 5 s.
    #[must_use]
    pub fn new(strategy: Strategy) -> Self {
        Self {
            strategy,
            intensity: Intensity::default(),
            children: Vec::new(),
            children_max: 1_000_000,
            name: None,
        }
    }

    /// The same with `child` after the others.
    #[must_use]
    pub fn child(mut self, child: ChildSpec) -> Self {
        self.children.push(child);
        self
    }

    /// The same with another intensity.
    #[must_use]
    pub fn intensity(self, intensity: Intensity) -> Self {
        Self { intensity, ..self }
    }

    /// The same with another bound on its children.
    #[must_use]
    pub fn children_max(self, children_max: usize) -> Self {
        Self { children_max, ..self }
    }

    /// The same under a unique name.
    #[must_use]
    pub fn named(self, name: impl Into<String>) -> Self {
        Self { name: Some(name.into()), ..self }
    }

    /// A supervisor never dies of its children's exits, and takes as long as they take.
    pub(crate) fn options(&self) -> SpawnOptions {
        const LONG: Duration = Duration::from_secs(365 * 24 * 3_600);
        SpawnOptions {
            name: self.name.clone(),
            start_within: LONG,
            terminate_within: LONG,
            drain_within: LONG,
            trap_exit: true,
            ..SpawnOptions::default()
        }
    }
}
