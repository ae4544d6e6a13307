//! When: monotonic instants for intervals, wall time for people, deadlines for calls.
//!
//! Intervals use [`Instant`], which never goes back. [`WallTime`] can jump and so decides nothing
//! alone; ordering between nodes is the business of [`crate::hlc`]. Cores take `now` as an
//! argument; only a [`Clock`], owned by a shell, reads the real one.

use std::{
    fmt,
    ops::{Add, Sub},
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// A moment on one node's monotonic clock: nanoseconds since an arbitrary start.
///
/// Comparable only with instants of the same clock; means nothing on another node, which is why
/// it cannot be serialised.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The start of the clock.
    pub const ZERO: Self = Self(0);

    /// The moment `since_start` after the clock's start. Saturates after 584 years.
    #[must_use]
    pub fn from_start(since_start: Duration) -> Self {
        Self::ZERO + since_start
    }

    /// How long after the clock's start this is.
    #[must_use]
    pub fn since_start(self) -> Duration {
        Duration::from_nanos(self.0)
    }

    /// How long after `earlier` this is; zero when it is not after it.
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    fn add(self, by: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(by.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub for Instant {
    type Output = Duration;
    /// Saturates at zero: see [`Instant::saturating_since`].
    fn sub(self, earlier: Self) -> Duration {
        self.saturating_since(earlier)
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "+{:?}", self.since_start())
    }
}

/// A reading of the wall clock: milliseconds since 1970-01-01 UTC. It may jump either way.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WallTime(u64);

impl WallTime {
    /// The reading `millis` milliseconds after the Unix epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }
}

/// Where a shell gets its time from: the system in production, virtual time in a simulation.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The monotonic clock; never goes back.
    fn now(&self) -> Instant;
    /// The wall clock; may jump.
    fn wall(&self) -> WallTime;
}

/// The operating system's clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    start: std::time::Instant,
}

impl SystemClock {
    /// A clock that starts now.
    #[must_use]
    #[expect(clippy::disallowed_methods, reason = "the one place where real time enters")]
    pub fn new() -> Self {
        Self { start: std::time::Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Instant {
        Instant::from_start(self.start.elapsed())
    }

    #[expect(clippy::disallowed_methods, reason = "the one place where wall time enters")]
    fn wall(&self) -> WallTime {
        // A clock before 1970 reads as 0: the incarnation and HLC rules still move forward then.
        let since =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        WallTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }
}

/// The moment after which a caller no longer wants the answer, on this node's monotonic clock.
///
/// Between nodes the *remaining* time travels, never the moment: clocks differ, and the time on
/// the wire counts against nobody's guess of the other's clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline {
    /// When it passes.
    pub at: Instant,
}

impl Deadline {
    /// The deadline `within` from `now`.
    #[must_use]
    pub fn after(now: Instant, within: Duration) -> Self {
        Self { at: now + within }
    }

    /// What is left of it at `now`; `None` once it has passed.
    #[must_use]
    pub fn remaining(self, now: Instant) -> Option<Duration> {
        (self.at > now).then(|| self.at - now)
    }

    /// Whether it has passed at `now`.
    #[must_use]
    pub fn is_past(self, now: Instant) -> bool {
        self.at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_past_exactly_when_nothing_remains() {
        let deadline = Deadline::after(Instant::ZERO, Duration::from_secs(1));
        let just_before = Instant::from_start(Duration::from_nanos(999_999_999));
        assert_eq!(deadline.remaining(just_before), Some(Duration::from_nanos(1)));
        assert!(!deadline.is_past(just_before));
        assert_eq!(deadline.remaining(deadline.at), None);
        assert!(deadline.is_past(deadline.at));
    }

    #[test]
    fn instants_saturate_instead_of_wrapping() {
        let end = Instant::ZERO + Duration::MAX;
        assert_eq!(end + Duration::from_secs(1), end);
        assert_eq!(Instant::ZERO - end, Duration::ZERO);
    }

    #[test]
    fn the_system_clock_does_not_go_back() {
        let clock = SystemClock::new();
        let first = clock.now();
        assert!(clock.now() >= first);
        assert!(clock.wall() > WallTime::from_millis(1_700_000_000_000));
    }
}
