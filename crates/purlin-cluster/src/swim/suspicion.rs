//! How long a suspect has, and who accuses it.

use std::{collections::BTreeSet, time::Duration};

use purlin_core::{Instant, NodeName};

/// The most accusers remembered per suspect; more would change nothing.
pub(crate) const ACCUSERS_MAX: usize = 8;

/// A member's time to refute.
///
/// A node that only heard of the suspicion never passes the verdict: it first looks for itself.
/// So a false `Down` takes several nodes that each got no answer on their own.
#[derive(Debug, Clone)]
pub(crate) struct Suspicion {
    pub(crate) started_at: Instant,
    /// Since when our own probes get no answer; `None` while we only repeat others.
    pub(crate) observed_since: Option<Instant>,
    /// When a node that only heard of it goes and looks.
    pub(crate) look_at: Instant,
    pub(crate) accusers: BTreeSet<NodeName>,
}

impl Suspicion {
    /// Adds `by`; true if that is news and there was room.
    pub(crate) fn accuse(&mut self, by: NodeName) -> bool {
        self.accusers.len() < ACCUSERS_MAX && self.accusers.insert(by)
    }

    /// When the verdict falls, if nothing clears it: never for a node that has not looked.
    ///
    /// `possible` is how many other members could confirm.
    pub(crate) fn verdict_at(
        &self,
        me: &NodeName,
        min: Duration,
        max: Duration,
        wanted: usize,
        possible: usize,
    ) -> Option<Instant> {
        let observed = self.observed_since?;
        let wanted = wanted.min(possible);
        let have = self.accusers.iter().filter(|by| *by != me).count().min(wanted);
        let given = timeout(min, max, have, wanted);
        // Our own evidence must cover the least time too: a late observer starts late.
        Some((self.started_at + given).max(observed + min / 2))
    }
}

/// Lifeguard §IV-B: from `max` without confirmations down to `min` with all, by logarithm, so
/// that the first confirmation counts most.
pub(crate) fn timeout(min: Duration, max: Duration, have: usize, wanted: usize) -> Duration {
    if wanted == 0 || have >= wanted {
        return min;
    }
    let ratio = log2(have + 1) / log2(wanted + 1);
    max.saturating_sub(max.saturating_sub(min).mul_f64(ratio))
}

/// The longest suspicion among `members`: grows with the logarithm, as dissemination does.
pub(crate) fn longest(min: Duration, members: usize) -> Duration {
    min.mul_f64(1.0 + log2(members.max(1)) / 2.0)
}

fn log2(n: usize) -> f64 {
    f64::from(u32::try_from(n).unwrap_or(u32::MAX)).log2()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIN: Duration = Duration::from_millis(600);
    const MAX: Duration = Duration::from_millis(2_400);

    #[test]
    fn each_confirmation_shortens_the_wait_and_the_first_shortens_it_most() {
        let waits: Vec<_> = (0..=3).map(|have| timeout(MIN, MAX, have, 3)).collect();
        assert_eq!((waits[0], waits[3]), (MAX, MIN));
        let steps: Vec<_> = waits.windows(2).map(|w| w[0] - w[1]).collect();
        assert!(steps[0] > steps[1] && steps[1] > steps[2], "{steps:?}");
    }

    #[test]
    fn where_nobody_could_confirm_nobody_is_waited_for() {
        assert_eq!(timeout(MIN, MAX, 0, 0), MIN);
    }

    #[test]
    fn who_only_heard_of_it_passes_no_verdict() {
        let me = NodeName::parse("me").unwrap();
        let mut suspicion = Suspicion {
            started_at: Instant::ZERO,
            observed_since: None,
            look_at: Instant::ZERO,
            accusers: BTreeSet::new(),
        };
        assert_eq!(suspicion.verdict_at(&me, MIN, MAX, 3, 0), None);
        suspicion.observed_since = Some(Instant::ZERO + MAX);
        assert_eq!(suspicion.verdict_at(&me, MIN, MAX, 3, 0), Some(Instant::ZERO + MAX + MIN / 2));
    }
}
