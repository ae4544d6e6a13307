//! Deadlines of calls without a timer per call.
//!
//! Every call has a deadline, and nearly none is ever reached. Registering each with the runtime's
//! timer and taking it out again would be a good part of what a local call costs. Instead, the
//! mailboxes that hold calls are visited every
//! [`TICK`]; each knows a lower bound of its deadlines, so a visit is one comparison until one is
//! due. Nobody is visited while nothing is called, and then the sweeper sleeps.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use purlin_core::{Clock, Instant};
use tokio::sync::Notify;

/// How late a deadline may be noticed, at most, beyond what the scheduler adds. Calls with less
/// than [`PRECISE_BELOW`] get a timer of their own.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// Below this the tick would be a large part of the deadline.
pub(crate) const PRECISE_BELOW: Duration = Duration::from_millis(100);

/// From this on, a reading of the clock that is one tick old is good enough.
const COARSE_FROM: Duration = Duration::from_secs(1);

/// Something that holds calls with deadlines.
pub trait Swept: Send + Sync {
    /// Expires what is due at `now`; whether to come back at the next tick.
    fn sweep(&self, now: Instant) -> bool;
}

/// The sweeper of one process system.
pub(crate) struct Deadlines {
    clock: Arc<dyn Clock>,
    shared: Arc<Shared>,
}

struct Shared {
    /// The sweeper's last reading of the clock, in nanoseconds; recent while anything is watched.
    recent: AtomicU64,
    watched: Mutex<Vec<Arc<dyn Swept>>>,
    running: AtomicBool,
    wake: Arc<Notify>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The sweeper holds a weak reference only: woken now, it finds nothing and ends.
        self.wake.notify_one();
    }
}

impl std::fmt::Debug for Deadlines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deadlines").field("watched", &self.shared.watched.lock().len()).finish()
    }
}

impl Deadlines {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            clock,
            shared: Arc::new(Shared {
                recent: AtomicU64::new(0),
                watched: Mutex::new(Vec::new()),
                running: AtomicBool::new(false),
                wake: Arc::new(Notify::new()),
            }),
        }
    }

    /// The moment `within` from now. `fresh` asks for a new reading of the clock; otherwise the
    /// sweeper's last is used and a tick added, so that the deadline is never early by it.
    pub(crate) fn deadline(&self, within: Duration, fresh: bool) -> Instant {
        if fresh || within < COARSE_FROM {
            let now = self.clock.now();
            if fresh {
                self.shared.recent.store(nanos(now), Ordering::Relaxed);
            }
            now + within
        } else {
            let recent = Duration::from_nanos(self.shared.recent.load(Ordering::Relaxed));
            Instant::from_start(recent) + within + TICK
        }
    }

    /// Visits `swept` at every tick until its [`Swept::sweep`] says no.
    pub(crate) fn watch(&self, swept: Arc<dyn Swept>) {
        let mut watched = self.shared.watched.lock();
        let first = watched.is_empty();
        watched.push(swept);
        drop(watched);
        if !self.shared.running.swap(true, Ordering::AcqRel) {
            let wake = Arc::clone(&self.shared.wake);
            tokio::spawn(run(Arc::clone(&self.clock), Arc::downgrade(&self.shared), wake));
        } else if first {
            self.shared.wake.notify_one();
        }
    }
}

/// Clears the flag when the runtime drops the sweeper, so that another runtime can start one.
struct Running(Weak<Shared>);

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(shared) = self.0.upgrade() {
            shared.running.store(false, Ordering::Release);
        }
    }
}

async fn run(clock: Arc<dyn Clock>, shared: Weak<Shared>, wake: Arc<Notify>) {
    let _running = Running(Weak::clone(&shared));
    while let Some(idle) = shared.upgrade().map(|shared| shared.watched.lock().is_empty()) {
        if idle {
            wake.notified().await;
        } else {
            tokio::time::sleep(TICK).await;
            if let Some(shared) = shared.upgrade() {
                sweep(clock.now(), &shared);
            }
        }
    }
}

fn sweep(now: Instant, shared: &Shared) {
    shared.recent.store(nanos(now), Ordering::Relaxed);
    let mut watched = std::mem::take(&mut *shared.watched.lock());
    watched.retain(|swept| swept.sweep(now));
    shared.watched.lock().append(&mut watched);
}

fn nanos(at: Instant) -> u64 {
    u64::try_from(at.since_start().as_nanos()).unwrap_or(u64::MAX)
}
