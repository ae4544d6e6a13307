//! Level 0: a node without a network.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use purlin_cache::{Cache, CacheConfig, CacheError, Caches};
use purlin_core::{Incarnation, NodeId};
use purlin_process::{ProcessLimits, Processes, ShutdownReport};
use purlin_pubsub::PubSub;

use serde::{Serialize, de::DeserializeOwned};

use crate::{Config, DataDir, Environment, Sources, StartError, high_water};

/// What a [`LocalNode`] starts from; made by [`NodeBuilder::local`](crate::NodeBuilder::local).
#[derive(Debug)]
pub struct LocalBuilder {
    pub(crate) settings: Sources,
    pub(crate) keeps_data: bool,
    pub(crate) environment: Option<Environment>,
}

impl LocalBuilder {
    /// Starts the node. Opens no socket; must run inside a tokio runtime.
    ///
    /// # Errors
    /// [`StartError`] for a name that is none or a data dir that cannot be used.
    // Async so that going to a cluster, which has to wait, changes the builder's line only.
    #[expect(clippy::unused_async, reason = "the same shape as NodeBuilder::start")]
    pub async fn start(self) -> Result<LocalNode, StartError> {
        let config = self.settings.load()?;
        let mut environment = self.environment.unwrap_or_else(Environment::system);
        let (data, id) = identity(&config, self.keeps_data, &environment)?;
        let data = data.map(Arc::new);
        let clock = environment.clock;
        let hlc = high_water::clock(&id, data.as_ref(), &clock)?;
        let rng = environment.rng.fork();
        let caches = Caches::on_one_node(id.clone(), hlc, Arc::clone(&clock), rng);
        let limits = ProcessLimits { processes_max: config.limits.processes_max };
        let pubsub = PubSub::on_one_node(id.clone(), pubsub_limits(&config), Arc::clone(&clock));
        let processes = Processes::with_limits(id, clock, limits);
        Ok(LocalNode { processes, pubsub, caches, _data: data })
    }
}

/// Settles who this process is: name, and an incarnation no earlier process had.
pub(crate) fn identity(
    config: &Config,
    keeps_data: bool,
    environment: &Environment,
) -> Result<(Option<DataDir>, NodeId), StartError> {
    let open = || DataDir::open(Arc::clone(&environment.disk), &config.node.data_dir);
    let data = keeps_data.then(open).transpose()?;
    let wall = environment.clock.wall();
    let incarnation = match &data {
        Some(data) => data.next_incarnation(wall)?,
        // Without a disk the wall clock is all there is to tell one life from the next.
        None => Incarnation::at_start(wall, None),
    };
    Ok((data, NodeId::new(config.node.name.clone(), incarnation)))
}

pub(crate) fn pubsub_limits(config: &Config) -> purlin_pubsub::Limits {
    let message = NonZeroUsize::new(config.limits.message_bytes_max)
        .expect("at least 1 KiB: its key says so");
    purlin_pubsub::Limits { message_bytes_max: message, ..purlin_pubsub::Limits::default() }
}

/// A node that stands alone: processes, supervisors, the local registry, timers, publish and
/// subscribe, caches; no network.
///
/// For programs that want these today and perhaps a cluster later: the same code then runs on a
/// [`Node`](crate::Node), and only the line that starts it changes. What needs a cluster does not
/// exist here, so asking for it is a compile error and not a surprise at run time.
///
/// Clones are the same node. Kept across a restart: the incarnation, when there is a data dir.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), purlin::StartError> {
/// let node = purlin::Node::builder().name("n1").local().start().await?;
/// assert_eq!(node.id().name.as_str(), "n1");
/// assert_eq!(node.processes().live(), 0);
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct LocalNode {
    processes: Processes,
    pubsub: PubSub,
    caches: Caches,
    // Held for its lock.
    _data: Option<Arc<DataDir>>,
}

impl LocalNode {
    /// Who this is.
    #[must_use]
    pub fn id(&self) -> &NodeId {
        self.processes.node()
    }

    /// Level 0: processes, their registry and their supervisors.
    #[must_use]
    pub fn processes(&self) -> &Processes {
        &self.processes
    }

    /// Publish and subscribe among the subscribers of this process.
    #[must_use]
    pub fn pubsub(&self) -> &PubSub {
        &self.pubsub
    }

    /// The cache `name`; opened now if it is not open yet. Every kind is kept in this process.
    ///
    /// # Errors
    /// As [`Caches::open`].
    pub fn cache<V: Serialize + DeserializeOwned>(
        &self,
        name: &str,
        config: CacheConfig,
    ) -> Result<Cache<V>, CacheError> {
        self.caches().open(name, config)
    }

    /// All caches of this process.
    #[must_use]
    pub fn caches(&self) -> &Caches {
        &self.caches
    }

    /// Ends all subscriptions, then all processes, the youngest first, `within` at most; see
    /// [`Processes::shutdown`].
    pub async fn shutdown(&self, within: Duration) -> ShutdownReport {
        self.pubsub.shut_down();
        self.processes.shutdown(within).await
    }
}
