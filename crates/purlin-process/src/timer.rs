//! Timers of one process: they fire into its own [`Info::Timer`](crate::Info::Timer), between two
//! messages, and end with it.

use std::{collections::BTreeMap, pin::Pin, task::Poll, time::Duration};

use purlin_core::Instant;
use tokio::time::Sleep;

/// The timers of one process, by key; a second timer under the same key replaces the first.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    by_key: BTreeMap<&'static str, Timer>,
    /// One runtime timer serves all, set to the earliest.
    sleep: Option<(Instant, Pin<Box<Sleep>>)>,
}

#[derive(Debug, Clone, Copy)]
struct Timer {
    due: Instant,
    every: Option<Duration>,
}

impl Timers {
    pub(crate) fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    pub(crate) fn once(&mut self, key: &'static str, due: Instant) {
        self.by_key.insert(key, Timer { due, every: None });
    }

    pub(crate) fn every(&mut self, key: &'static str, now: Instant, every: Duration) {
        // A zero interval would fire for ever without letting a message through.
        let every = every.max(Duration::from_millis(1));
        self.by_key.insert(key, Timer { due: now + every, every: Some(every) });
    }

    pub(crate) fn cancel(&mut self, key: &str) -> bool {
        self.by_key.remove(key).is_some()
    }

    /// Takes the earliest timer due at `now`. An interval that missed several turns fires once
    /// and goes on in its old rhythm.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<&'static str> {
        let (&key, &timer) = self
            .by_key
            .iter()
            .filter(|(_, timer)| timer.due <= now)
            .min_by_key(|(_, timer)| timer.due)?;
        match timer.every {
            None => {
                self.by_key.remove(key);
            }
            Some(every) => {
                let late = (now - timer.due).as_nanos();
                let turns = u32::try_from(late / every.as_nanos() + 1).unwrap_or(u32::MAX);
                self.by_key.insert(key, Timer { due: timer.due + every * turns, ..timer });
            }
        }
        Some(key)
    }

    /// Pending until the earliest timer is due; for ever if there is none.
    pub(crate) fn poll_due(
        &mut self,
        now: impl FnOnce() -> Instant,
        cx: &mut std::task::Context<'_>,
    ) -> Poll<()> {
        let Some(due) = self.by_key.values().map(|timer| timer.due).min() else {
            self.sleep = None;
            return Poll::Pending;
        };
        let sleep = match &mut self.sleep {
            Some((at, sleep)) if *at == due => sleep,
            slot => {
                let sleep = Box::pin(tokio::time::sleep(due - now()));
                &mut slot.insert((due, sleep)).1
            }
        };
        let fired = sleep.as_mut().poll(cx);
        if fired.is_ready() {
            self.sleep = None;
        }
        fired
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_start(Duration::from_millis(ms))
    }

    #[test]
    fn a_timer_fires_once_and_not_early() {
        let mut timers = Timers::default();
        timers.once("a", at(10));
        assert_eq!(timers.take_due(at(9)), None);
        assert_eq!(timers.take_due(at(10)), Some("a"));
        assert_eq!(timers.take_due(at(11)), None);
        assert!(timers.is_empty());
    }

    #[test]
    fn an_interval_that_overslept_fires_once_and_keeps_its_rhythm() {
        let mut timers = Timers::default();
        timers.every("tick", at(0), Duration::from_millis(10));
        assert_eq!(timers.take_due(at(35)), Some("tick"));
        assert_eq!(timers.take_due(at(35)), None);
        assert_eq!(timers.take_due(at(39)), None);
        assert_eq!(timers.take_due(at(40)), Some("tick"));
    }

    #[test]
    fn timers_fire_in_the_order_they_are_due_whatever_their_names() {
        let mut timers = Timers::default();
        timers.once("z", at(1));
        timers.once("a", at(2));
        assert_eq!(timers.take_due(at(5)), Some("z"));
        assert_eq!(timers.take_due(at(5)), Some("a"));
    }

    #[test]
    fn the_same_key_replaces_and_cancel_says_whether_there_was_one() {
        let mut timers = Timers::default();
        timers.once("a", at(1));
        timers.once("a", at(20));
        assert_eq!(timers.take_due(at(10)), None);
        assert!(timers.cancel("a"));
        assert!(!timers.cancel("a"));
        assert_eq!(timers.take_due(at(30)), None);
    }
}
