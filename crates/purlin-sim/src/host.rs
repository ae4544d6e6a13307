//! A host: a disk, a wall clock, an address, and at times a process.

use std::{fmt, future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use purlin::{Environment, Node, NodeBuilder};
use purlin_core::Rng;
use purlin_net::fault::FaultRule;
use purlin_store::FaultyDisk;
use tokio::{
    runtime::{Builder as RuntimeBuilder, Runtime},
    task::JoinHandle,
};

use crate::{
    net::{HostNetwork, SharedNet, Wake},
    time::{HostClock, HostTime, Running, Skew},
    trace::HostId,
};

/// The next whole millisecond, or `time` itself.
fn up_to_millis(time: Duration) -> Duration {
    let beyond = time.subsec_nanos() % 1_000_000;
    if beyond == 0 { time } else { time + Duration::from_nanos(u64::from(1_000_000 - beyond)) }
}

/// How a host's node is configured, at every start.
pub(crate) type Setup = Arc<dyn Fn(NodeBuilder) -> NodeBuilder + Send + Sync>;
/// What runs on a host beside its node, from every start on.
pub(crate) type Program =
    Arc<dyn Fn(Node) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// How fast a host's code runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    Steady,
    /// Not at all, until then or until somebody says so: `SIGSTOP`. Its kernel goes on.
    Paused {
        until: Option<Duration>,
    },
    /// One step in every so much time: a machine whose processor is taken by others.
    Slow {
        every: Duration,
        next: Duration,
    },
}

pub(crate) struct Host {
    pub(crate) id: HostId,
    pub(crate) name: String,
    pub(crate) addr: SocketAddr,
    pub(crate) disk: FaultyDisk,
    pub(crate) skew: Arc<Skew>,
    /// `None` for a host without a node.
    pub(crate) setup: Option<Setup>,
    pub(crate) program: Option<Program>,
    pub(crate) pace: Pace,
    pub(crate) life: Option<Life>,
    /// Cuts of single channels, which a restart must not undo.
    pub(crate) channel_cuts: Vec<FaultRule>,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, addr, pace, life, .. } = self;
        let life = life.as_ref().map(|life| life.number);
        write!(f, "host {name} at {addr}, {pace:?}, life {life:?}")
    }
}

/// One life of a process on a host.
pub(crate) struct Life {
    pub(crate) number: u64,
    net: SharedNet,
    host: HostId,
    time: Arc<HostTime>,
    runtime: Runtime,
    pub(crate) node: Option<Node>,
    pub(crate) clock: Arc<HostClock>,
    pub(crate) network: Arc<HostNetwork>,
    pub(crate) disk: Arc<dyn purlin_store::Disk>,
}

impl Life {
    pub(crate) fn begin(number: u64, host: &Host, net: &SharedNet, now: Duration) -> Self {
        let runtime = RuntimeBuilder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .expect("a runtime without IO asks the system for nothing");
        let time = Arc::new(HostTime::new(number, now));
        {
            let _inside = runtime.enter();
            time.begin();
        }
        net.lock().start(host.id, number);
        let network = HostNetwork::new(Arc::clone(net), host.id, number, Arc::clone(&time));
        Self {
            number,
            net: Arc::clone(net),
            host: host.id,
            clock: Arc::new(HostClock { time: Arc::clone(&time), skew: Arc::clone(&host.skew) }),
            time,
            runtime,
            node: None,
            network: Arc::new(network),
            disk: host.disk.mount(),
        }
    }

    /// What this life's code may touch.
    pub(crate) fn environment(&self, rng: Rng) -> Environment {
        let (clock, network) = (Arc::clone(&self.clock) as _, Arc::clone(&self.network) as _);
        Environment::new(clock, rng, network, Arc::clone(&self.disk))
    }

    /// Does something as this host, without time passing.
    pub(crate) fn inside<T>(&self, act: impl FnOnce() -> T) -> T {
        let _running = Running::enter(self.number);
        let _inside = self.runtime.enter();
        act()
    }

    pub(crate) fn spawn<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> JoinHandle<T> {
        self.inside(|| tokio::spawn(future))
    }

    /// The result of a task that has ended; `None` when it panicked or was aborted.
    pub(crate) fn result<T>(&self, ended: JoinHandle<T>) -> Option<T> {
        let _running = Running::enter(self.number);
        self.runtime.block_on(ended).ok()
    }

    /// Lets its code run until the world's time is `end`. What lies between where it stood and
    /// `from` is skipped at once, as for a process that was stopped.
    pub(crate) fn step(&self, from: Duration, end: Duration, wake: &mut Wake) {
        let _running = Running::enter(self.number);
        self.runtime.block_on(async {
            let missed = from.saturating_sub(self.time.stood());
            if !missed.is_zero() {
                tokio::time::advance(missed).await;
            }
            // The clock is not read here: it stands where the last sleep ended.
            let mut now = from;
            loop {
                let next = self.net.lock().deliver(self.host, now, wake);
                for waker in wake.drain(..) {
                    waker.wake();
                }
                if now >= end {
                    break;
                }
                // A whole millisecond, as timers are.
                now = next.map_or(end, |next| up_to_millis(next).min(end));
                tokio::time::sleep_until(self.time.reading(now)).await;
            }
            debug_assert_eq!(self.time.now(), end, "a paused clock goes from timer to timer");
        });
        self.time.stand(end);
    }

    /// Everything this process had is gone, without any of its code having a say.
    pub(crate) fn end(mut self) {
        let node = self.node.take();
        self.inside(|| drop(node));
        drop(self.runtime);
    }
}
