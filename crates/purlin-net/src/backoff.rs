//! When to dial again: exponential backoff with full jitter, pure.

use std::time::Duration;

use purlin_core::Rng;

/// How a lost connection is dialled again.
///
/// The delay before attempt *n* is drawn evenly between zero and `first` · 2ⁿ, at most `max`, so
/// that a hundred nodes that lost the same peer do not come back in step.
///
/// # Source
/// "Full jitter" of the AWS Architecture Blog (2015), which measured it to cost the least work.
#[derive(Debug, Clone, Copy)]
pub struct Reconnect {
    /// Upper end of the first delay. Default 50 ms (guess).
    pub first: Duration,
    /// Upper end of every later delay. Default 2 s: a healed partition is noticed within it.
    pub max: Duration,
    /// How long a TCP connect and the handshake may take together. Default 3 s.
    pub connect_within: Duration,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(50),
            max: Duration::from_secs(2),
            connect_within: Duration::from_secs(3),
        }
    }
}

/// Counts attempts and draws delays.
#[derive(Debug)]
pub(crate) struct Backoff {
    reconnect: Reconnect,
    attempt: u32,
}

impl Backoff {
    pub(crate) fn new(reconnect: Reconnect) -> Self {
        Self { reconnect, attempt: 0 }
    }

    pub(crate) fn reset(&mut self) {
        self.attempt = 0;
    }

    pub(crate) fn next_delay(&mut self, rng: &mut Rng) -> Duration {
        let ceiling = 2_u32
            .checked_pow(self.attempt)
            .and_then(|factor| self.reconnect.first.checked_mul(factor))
            .map_or(self.reconnect.max, |delay| delay.min(self.reconnect.max));
        self.attempt = self.attempt.saturating_add(1);
        rng.jitter(ceiling)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_the_maximum_and_start_over_after_a_success() {
        let reconnect = Reconnect::default();
        let mut backoff = Backoff::new(reconnect);
        let mut rng = Rng::from_seed(1);
        let mut longest = Duration::ZERO;
        for attempt in 0..200 {
            let delay = backoff.next_delay(&mut rng);
            assert!(delay <= reconnect.max, "attempt {attempt}: {delay:?}");
            longest = longest.max(delay);
        }
        assert!(longest > reconnect.max / 2, "{longest:?}");
        backoff.reset();
        assert!(backoff.next_delay(&mut rng) <= reconnect.first);
    }

    #[test]
    fn nodes_do_not_come_back_in_step() {
        let delay = |seed| Backoff::new(Reconnect::default()).next_delay(&mut Rng::from_seed(seed));
        let distinct: std::collections::BTreeSet<_> = (0..100).map(delay).collect();
        assert!(distinct.len() > 90);
    }
}
