//! Virtual time: one for the world, and what each host makes of it.
//!
//! A host's tokio runtime is paused: its clock stands still while anything can run and then jumps
//! to the next timer. So a host's time is its runtime's, as long as its code runs; when it does
//! not, it is the moment at which it stopped. Code of one host must never read the clock of
//! another's runtime, which began elsewhere; [`HostTime`] knows whose code runs.
//!
//! tokio's timers have a resolution of one millisecond, so virtual time moves in whole ones.

use std::{
    cell::Cell,
    fmt,
    sync::atomic::{AtomicI64, AtomicU64, Ordering},
    sync::{Arc, OnceLock},
    time::Duration,
};

use purlin_core::{Clock, Instant, WallTime};

/// What every wall clock in a world shows at its start: 2026-01-01 00:00 UTC.
pub const EPOCH: WallTime = WallTime::from_millis(1_767_225_600_000);

thread_local! {
    /// The life whose code runs on this thread; 0 is none.
    static RUNNING: Cell<u64> = const { Cell::new(0) };
}

/// While it lives, code on this thread belongs to a life of a host.
pub(crate) struct Running {
    before: u64,
}

impl Running {
    pub(crate) fn enter(life: u64) -> Self {
        Self { before: RUNNING.replace(life) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.set(self.before);
    }
}

/// The time of one life of a host, on the world's axis.
#[derive(Debug)]
pub(crate) struct HostTime {
    life: u64,
    /// The world's time when this life began.
    began: Duration,
    /// What the runtime's clock showed then.
    base: OnceLock<tokio::time::Instant>,
    /// Where it stood when its code last ran, in nanoseconds.
    stood: AtomicU64,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).expect("a simulation ends before 584 years are over")
}

impl HostTime {
    pub(crate) fn new(life: u64, began: Duration) -> Self {
        Self { life, began, base: OnceLock::new(), stood: AtomicU64::new(nanos(began)) }
    }

    /// Takes the present reading of this life's runtime as its beginning; call it inside.
    pub(crate) fn begin(&self) {
        self.base.get_or_init(tokio::time::Instant::now);
    }

    /// The reading of the runtime's clock at `at`.
    pub(crate) fn reading(&self, at: Duration) -> tokio::time::Instant {
        let base = self.base.get().expect("a life begins before it runs");
        *base + at.saturating_sub(self.began)
    }

    pub(crate) fn now(&self) -> Duration {
        match self.base.get() {
            Some(base) if RUNNING.get() == self.life => self.began + base.elapsed(),
            _ => self.stood(),
        }
    }

    /// Remembers where the runtime stands, for whoever asks from outside.
    pub(crate) fn stand(&self, at: Duration) {
        self.stood.store(nanos(at), Ordering::Relaxed);
    }

    /// Where the runtime stands while its code does not run.
    pub(crate) fn stood(&self) -> Duration {
        Duration::from_nanos(self.stood.load(Ordering::Relaxed))
    }
}

/// How far a host's wall clock is from the truth; outlives the host's lives.
#[derive(Debug, Default)]
pub(crate) struct Skew(AtomicI64);

impl Skew {
    /// Sets the distance, in milliseconds: positive is ahead.
    pub(crate) fn set(&self, millis: i64) {
        self.0.store(millis, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A host's clocks: the monotonic one is right, the wall clock as wrong as its [`Skew`] says.
pub(crate) struct HostClock {
    pub(crate) time: Arc<HostTime>,
    pub(crate) skew: Arc<Skew>,
}

impl fmt::Debug for HostClock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated clock at {:?}, {} ms off", self.time.now(), self.skew.get())
    }
}

impl Clock for HostClock {
    fn now(&self) -> Instant {
        Instant::from_start(self.time.now())
    }

    fn wall(&self) -> WallTime {
        let passed = u64::try_from(self.time.now().as_millis()).expect("milliseconds fit");
        let shown = (EPOCH.as_millis() + passed).saturating_add_signed(self.skew.get());
        WallTime::from_millis(shown)
    }
}
