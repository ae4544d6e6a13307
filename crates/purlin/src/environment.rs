//! The world a node runs in: time, randomness, network and disk.

use std::{fmt, sync::Arc};

use purlin_core::{Clock, Rng, SystemClock};
use purlin_net::{Kernel, Network};
use purlin_store::{Disk, RealDisk};

/// Everything a node takes from outside. What happens in a node is a function of these and of what
/// it is asked to do, which is what lets a simulator repeat it.
///
/// With a network other than [`Kernel`] and a disk that [sleeps](purlin_store::Pace::Sleeps) a node
/// opens no socket and no file and starts no thread; it needs a tokio runtime with time only. Left
/// out on purpose: the bytes of keys, which nothing that others can observe depends on, and what
/// the configuration names by path or host name (certificates, a seed file, DNS), which a
/// simulation does without.
#[non_exhaustive]
pub struct Environment {
    /// Monotonic and wall time. Must keep step with the runtime's own clock, by which tasks sleep.
    pub clock: Arc<dyn Clock>,
    /// Where every random choice is drawn from.
    pub rng: Rng,
    /// Where sockets come from.
    pub network: Arc<dyn Network>,
    /// Where the data dir and the logs are.
    pub disk: Arc<dyn Disk>,
}

impl Environment {
    /// An environment of these parts.
    #[must_use]
    pub fn new(
        clock: Arc<dyn Clock>,
        rng: Rng,
        network: Arc<dyn Network>,
        disk: Arc<dyn Disk>,
    ) -> Self {
        Self { clock, rng, network, disk }
    }

    /// The operating system's clock, randomness, sockets and files.
    #[must_use]
    pub fn system() -> Self {
        let clock = Arc::new(SystemClock::new());
        Self::new(clock, Rng::from_os(), Arc::new(Kernel), RealDisk::shared())
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the generator: who knows its state knows all that it will draw.
        let Self { clock, network, disk, .. } = self;
        f.debug_struct("Environment")
            .field("clock", clock)
            .field("network", network)
            .field("disk", disk)
            .finish_non_exhaustive()
    }
}
