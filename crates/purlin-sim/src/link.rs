//! The way from one host to another, and what is wrong with it.

use std::{collections::BTreeMap, time::Duration};

use purlin_core::Rng;

use crate::trace::HostId;

/// How long a message takes when nothing is wrong: evenly distributed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Latency {
    /// At least; whole milliseconds, 1 or more. Hosts are stepped so far at once: a larger
    /// minimum makes a simulation faster.
    pub min: Duration,
    /// At most.
    pub max: Duration,
}

impl Latency {
    /// From `min` to `max`.
    ///
    /// # Panics
    /// When `min` is less than a millisecond or not a whole number of them, or above `max`.
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        let whole = min.subsec_nanos().is_multiple_of(1_000_000) && !min.is_zero();
        assert!(whole, "a latency of at least {min:?} is no whole number of milliseconds");
        assert!(min <= max, "a latency from {min:?} to {max:?} is an empty range");
        Self { min, max }
    }
}

impl Default for Latency {
    /// One to two milliseconds: a network inside one region.
    fn default() -> Self {
        Self::new(Duration::from_millis(1), Duration::from_millis(2))
    }
}

/// What is wrong with a way, beyond latency. The default is nothing.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(crate) struct Wrong {
    pub(crate) streams_cut: bool,
    pub(crate) datagrams_cut: bool,
    pub(crate) loss: f64,
    pub(crate) duplicate: f64,
    pub(crate) delay: Duration,
    pub(crate) jitter: Duration,
}

impl Wrong {
    fn and(&self, other: &Self) -> Self {
        Self {
            streams_cut: self.streams_cut || other.streams_cut,
            datagrams_cut: self.datagrams_cut || other.datagrams_cut,
            loss: 1.0 - (1.0 - self.loss) * (1.0 - other.loss),
            duplicate: 1.0 - (1.0 - self.duplicate) * (1.0 - other.duplicate),
            delay: self.delay + other.delay,
            jitter: self.jitter + other.jitter,
        }
    }

    pub(crate) fn cut(&mut self) {
        self.streams_cut = true;
        self.datagrams_cut = true;
    }
}

/// All ways of a world.
#[derive(Debug)]
pub(crate) struct Links {
    latency: Latency,
    pub(crate) everywhere: Wrong,
    ways: BTreeMap<(HostId, HostId), Wrong>,
}

impl Links {
    pub(crate) fn new(latency: Latency) -> Self {
        Self { latency, everywhere: Wrong::default(), ways: BTreeMap::new() }
    }

    pub(crate) fn way(&mut self, from: HostId, to: HostId) -> &mut Wrong {
        self.ways.entry((from, to)).or_default()
    }

    pub(crate) fn heal(&mut self) {
        self.everywhere = Wrong::default();
        self.ways.clear();
    }

    /// What is wrong with the way, all in all. A host always reaches itself.
    pub(crate) fn wrong(&self, from: HostId, to: HostId) -> Wrong {
        if from == to {
            return Wrong::default();
        }
        match self.ways.get(&(from, to)) {
            None => self.everywhere,
            Some(wrong) => wrong.and(&self.everywhere),
        }
    }

    /// How long a message takes that is sent now.
    pub(crate) fn delay(&self, wrong: &Wrong, rng: &mut Rng) -> Duration {
        let usual = self.latency.min + rng.jitter(self.latency.max - self.latency.min);
        if wrong.jitter.is_zero() {
            usual + wrong.delay
        } else {
            usual + wrong.delay + rng.jitter(wrong.jitter)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::World;

    #[test]
    fn a_way_adds_its_own_faults_to_those_everywhere() {
        let mut links = Links::new(Latency::default());
        let (a, b) = (HostId(0), HostId(1));
        links.everywhere.loss = 0.5;
        links.way(a, b).loss = 0.5;
        links.way(a, b).cut();
        let wrong = links.wrong(a, b);
        assert!(wrong.streams_cut && wrong.datagrams_cut);
        assert!((wrong.loss - 0.75).abs() < 1e-9);
        assert!(!links.wrong(b, a).streams_cut, "the other way is another one");
        assert_eq!(links.wrong(a, a), Wrong::default());
        links.heal();
        assert_eq!(links.wrong(a, b), Wrong::default());
    }

    #[test]
    #[should_panic(expected = "no whole number of milliseconds")]
    fn a_latency_below_the_resolution_of_time_is_refused() {
        drop(World::builder(1).latency(Duration::from_micros(1500), Duration::from_millis(2)));
    }
}
