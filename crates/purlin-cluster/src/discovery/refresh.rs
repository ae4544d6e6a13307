//! When to look again, and what to believe meanwhile: the pure half of a source that asks others.
//!
//! A name server that does not answer says nothing about the nodes, so their addresses stay. One
//! that answers "no such name" may be right, or may have just lost a zone: the addresses stay for a
//! stated time. Answers say how long they are good for, within bounds; failures back off.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use purlin_core::{Instant, Rng};

/// How often a source looks, and how long it believes what it found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// The shortest time between two lookups, however short an answer's time to live; also the
    /// first pause after a failure. Default 1 s; sane from 0.1 s.
    pub refresh_min: Duration,
    /// The longest time between two lookups, however long an answer's time to live, and the
    /// longest pause after failures. Default 30 s, which bounds how late a new node is noticed.
    pub refresh_max: Duration,
    /// How long the last list stays in force once the source says there is nothing. Default
    /// 5 minutes (guess): longer than replacing a zone takes.
    pub keep_absent: Duration,
}

impl Default for Schedule {
    fn default() -> Self {
        Self {
            refresh_min: Duration::from_secs(1),
            refresh_max: Duration::from_secs(30),
            keep_absent: Duration::from_secs(300),
        }
    }
}

impl Schedule {
    fn clamp(&self, wanted: Duration) -> Duration {
        wanted.min(self.refresh_max).max(self.refresh_min)
    }
}

/// What a lookup came back with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Addresses, good for `ttl`.
    Found { addrs: BTreeSet<SocketAddr>, ttl: Duration },
    /// The source answered that there is nothing, which is good for `ttl`.
    Absent { ttl: Duration },
    /// The source did not answer, or not usefully.
    Failed,
}

/// What to tell, if anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Report {
    /// The list changed.
    List(BTreeSet<SocketAddr>),
    /// The source says there is nothing; the last list is kept so much longer.
    Absent { kept_for: Duration },
    /// The lookup failed; the next is after this time.
    Failed { retry_in: Duration },
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Refresh {
    schedule: Schedule,
    rng: Rng,
    /// The list in force; `None` before the first.
    list: Option<BTreeSet<SocketAddr>>,
    /// When the source first said that there is nothing, after it had said otherwise.
    absent_since: Option<Instant>,
    failures: u32,
    due: Instant,
}

impl Refresh {
    /// Due at once.
    pub(crate) fn new(schedule: Schedule, rng: Rng) -> Self {
        Self { schedule, rng, list: None, absent_since: None, failures: 0, due: Instant::ZERO }
    }

    /// When to look next.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Applies what a lookup that ended at `now` came back with.
    pub(crate) fn on_answer(&mut self, now: Instant, answer: Answer) -> Option<Report> {
        match answer {
            Answer::Found { addrs, ttl } => {
                (self.failures, self.absent_since) = (0, None);
                self.due = now + self.schedule.clamp(ttl);
                self.replace(addrs)
            }
            Answer::Absent { ttl } => self.on_absent(now, ttl),
            Answer::Failed => {
                self.failures = self.failures.saturating_add(1);
                let retry_in = self.backoff();
                self.due = now + retry_in;
                Some(Report::Failed { retry_in })
            }
        }
    }

    fn on_absent(&mut self, now: Instant, ttl: Duration) -> Option<Report> {
        self.failures = 0;
        let first = self.absent_since.is_none();
        let since = *self.absent_since.get_or_insert(now);
        let has_list = self.list.as_ref().is_some_and(|list| !list.is_empty());
        let patience = self.schedule.keep_absent.saturating_sub(now.saturating_since(since));
        let kept_for = if has_list { patience } else { Duration::ZERO };
        let again_in = self.schedule.clamp(ttl);
        self.due = now + if kept_for.is_zero() { again_in } else { again_in.min(kept_for) };
        if has_list && kept_for.is_zero() {
            return self.replace(BTreeSet::new());
        }
        // Said once; after that only a change is news.
        first.then_some(Report::Absent { kept_for })
    }

    fn replace(&mut self, addrs: BTreeSet<SocketAddr>) -> Option<Report> {
        if self.list.as_ref() == Some(&addrs) {
            return None;
        }
        self.list = Some(addrs.clone());
        Some(Report::List(addrs))
    }

    /// Doubles from the shortest to the longest pause; half of it is drawn, so that nodes that
    /// failed together do not ask together.
    fn backoff(&mut self) -> Duration {
        let doubled = self.schedule.refresh_min.saturating_mul(1 << (self.failures - 1).min(16));
        let full = self.schedule.clamp(doubled);
        full / 2 + self.rng.jitter(full / 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Instant {
        Instant::from_start(Duration::from_secs(seconds))
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn refresh() -> Refresh {
        let schedule =
            Schedule { refresh_min: secs(2), refresh_max: secs(60), keep_absent: secs(100) };
        Refresh::new(schedule, Rng::from_seed(7))
    }

    fn addrs(ports: &[u16]) -> BTreeSet<SocketAddr> {
        ports.iter().map(|port| SocketAddr::from(([10, 0, 0, 1], *port))).collect()
    }

    fn found(ports: &[u16], ttl: u64) -> Answer {
        Answer::Found { addrs: addrs(ports), ttl: secs(ttl) }
    }

    #[test]
    fn a_list_is_told_when_it_changes_and_looked_up_when_its_time_is_over() {
        let mut refresh = refresh();
        assert_eq!(refresh.on_answer(at(10), found(&[1], 20)), Some(Report::List(addrs(&[1]))));
        assert_eq!(refresh.due(), at(30));
        assert_eq!(refresh.on_answer(at(30), found(&[1], 20)), None);
        assert_eq!(
            refresh.on_answer(at(50), found(&[1, 2], 20)),
            Some(Report::List(addrs(&[1, 2])))
        );
    }

    #[test]
    fn a_time_to_live_is_kept_within_the_bounds() {
        let mut refresh = refresh();
        refresh.on_answer(at(0), found(&[1], 0));
        assert_eq!(refresh.due(), at(2));
        refresh.on_answer(at(2), found(&[1], 86_400));
        assert_eq!(refresh.due(), at(62));
    }

    #[test]
    fn failures_back_off_to_the_longest_pause_and_keep_the_list() {
        let mut refresh = refresh();
        refresh.on_answer(at(0), found(&[1], 5));
        let mut now = at(5);
        for full in [2, 4, 8, 16, 32, 60, 60, 60] {
            let Some(Report::Failed { retry_in }) = refresh.on_answer(now, Answer::Failed) else {
                panic!("a failure is told")
            };
            assert!((secs(full) / 2..=secs(full)).contains(&retry_in), "{retry_in:?} of {full}");
            now = refresh.due();
        }
        assert_eq!(
            refresh.on_answer(now, found(&[1], 5)),
            None,
            "the list was in force all the time"
        );
        let Some(Report::Failed { retry_in }) = refresh.on_answer(now, Answer::Failed) else {
            panic!()
        };
        assert!(retry_in <= secs(2), "an answer ends the backing off");
    }

    #[test]
    fn a_name_that_vanishes_keeps_its_addresses_for_the_stated_time() {
        let mut refresh = refresh();
        refresh.on_answer(at(0), found(&[1], 5));
        assert_eq!(
            refresh.on_answer(at(5), Answer::Absent { ttl: secs(60) }),
            Some(Report::Absent { kept_for: secs(100) })
        );
        assert_eq!(refresh.on_answer(at(65), Answer::Absent { ttl: secs(60) }), None);
        assert_eq!(refresh.due(), at(105), "looked up again just when the patience ends");
        assert_eq!(
            refresh.on_answer(at(105), Answer::Absent { ttl: secs(60) }),
            Some(Report::List(addrs(&[])))
        );
        assert_eq!(refresh.on_answer(at(165), Answer::Absent { ttl: secs(60) }), None);
    }

    #[test]
    fn a_name_that_comes_back_in_time_was_never_gone() {
        let mut refresh = refresh();
        refresh.on_answer(at(0), found(&[1], 5));
        refresh.on_answer(at(5), Answer::Absent { ttl: secs(60) });
        assert_eq!(refresh.on_answer(at(65), found(&[1], 5)), None);
        assert_eq!(
            refresh.on_answer(at(70), Answer::Absent { ttl: secs(60) }),
            Some(Report::Absent { kept_for: secs(100) })
        );
    }

    #[test]
    fn a_name_that_never_existed_is_told_once() {
        let mut refresh = refresh();
        assert_eq!(
            refresh.on_answer(at(0), Answer::Absent { ttl: secs(9) }),
            Some(Report::Absent { kept_for: secs(0) })
        );
        assert_eq!(refresh.due(), at(9));
        assert_eq!(refresh.on_answer(at(9), Answer::Absent { ttl: secs(9) }), None);
        assert_eq!(refresh.on_answer(at(18), found(&[1], 5)), Some(Report::List(addrs(&[1]))));
    }
}
