//! Doubting oneself first: local health and stalls.
//!
//! A node that is short of CPU sees everybody else as slow. Lifeguard's answer is a score that
//! grows with signs of own trouble and stretches this node's timeouts. A node that did not run at
//! all (stopped, paused, swapped out) needs more: on waking up every deadline it ever set has
//! passed, and none of that is anybody's fault.

use std::time::Duration;

use purlin_core::Instant;

use super::config::LOCAL_HEALTH_MAX;

/// Lifeguard's local health multiplier: 0 is healthy.
#[derive(Debug, Default)]
pub(crate) struct LocalHealth(u32);

impl LocalHealth {
    pub(crate) fn worsen(&mut self) {
        self.0 = (self.0 + 1).min(LOCAL_HEALTH_MAX);
    }

    pub(crate) fn improve(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }

    pub(crate) fn score(&self) -> u32 {
        self.0
    }

    pub(crate) fn stretch(&self, wait: Duration) -> Duration {
        wait * (self.0 + 1)
    }
}

/// The node's clock with the time taken out in which it did not run.
#[derive(Debug)]
pub(crate) struct RunningTime {
    stalled: Duration,
    /// The wake-up last asked for, on the real clock.
    planned: Option<Instant>,
    latest: Instant,
}

impl RunningTime {
    pub(crate) fn new(now: Instant) -> Self {
        Self { stalled: Duration::ZERO, planned: None, latest: now }
    }

    /// The running time at `now`, and how long the node stood still since the last call.
    pub(crate) fn advance(&mut self, now: Instant, tolerance: Duration) -> (Instant, Duration) {
        let late = self.planned.map_or(Duration::ZERO, |planned| now - planned);
        let stall = if late > tolerance { late } else { Duration::ZERO };
        self.stalled += stall;
        // A shell may hand in readings taken slightly out of order.
        self.latest = self.latest.max(self.running(now));
        (self.latest, stall)
    }

    pub(crate) fn plan(&mut self, wake: Instant) -> Instant {
        // What is overdue comes now; it must not look as if we had slept since then.
        let real = wake.max(self.latest) + self.stalled;
        self.planned = Some(real);
        real
    }

    fn running(&self, now: Instant) -> Instant {
        Instant::from_start(now.since_start().saturating_sub(self.stalled))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_start(Duration::from_millis(ms))
    }

    #[test]
    fn time_spent_stopped_does_not_count() {
        let tolerance = Duration::from_millis(100);
        let mut time = RunningTime::new(at(0));
        time.plan(at(500));
        assert_eq!(time.advance(at(550), tolerance), (at(550), Duration::ZERO));
        assert_eq!(time.plan(at(600)), at(600));
        assert_eq!(
            time.advance(at(10_600), tolerance),
            (at(600), Duration::from_secs(10)),
            "stopped for 10 s"
        );
        assert_eq!(time.plan(at(700)), at(10_700), "wake-ups are on the real clock");
        assert_eq!(time.advance(at(10_700), tolerance).0, at(700));
        assert_eq!(time.plan(at(5)), at(10_700), "overdue is now");
        assert_eq!(time.advance(at(10_750), tolerance), (at(750), Duration::ZERO));
    }

    #[test]
    fn health_is_bounded_both_ways() {
        let mut health = LocalHealth::default();
        health.improve();
        assert_eq!(health.score(), 0);
        (0..100).for_each(|_| health.worsen());
        assert_eq!(health.stretch(Duration::from_secs(1)), Duration::from_secs(5));
    }
}
