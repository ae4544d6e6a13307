//! The one source of randomness: seeded, so that a run can be repeated.

use std::convert::Infallible;

use rand::{Rng as _, SeedableRng, TryRng, rngs::StdRng};

/// A seeded random generator; the same seed gives the same draws on the same release of Purlin.
///
/// Fit for jitter, sampling and shuffling. Not for keys or tokens: those come from the TLS
/// library's own generator.
#[derive(Debug)]
pub struct Rng(StdRng);

impl Rng {
    /// A generator that repeats itself for the same `seed`.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self(StdRng::seed_from_u64(seed))
    }

    /// A generator seeded by the operating system. For shells; cores are handed theirs.
    ///
    /// # Panics
    /// When the operating system has no randomness to give, which Linux only does before boot.
    #[must_use]
    pub fn from_os() -> Self {
        let mut seed = [0_u8; 8];
        rand::rngs::SysRng
            .try_fill_bytes(&mut seed)
            .expect("the operating system gives randomness after boot");
        Self::from_seed(u64::from_le_bytes(seed))
    }

    /// A new generator drawn from this one, for a part that must not disturb this one's sequence.
    #[must_use]
    pub fn fork(&mut self) -> Self {
        Self::from_seed(self.next_u64())
    }

    /// The next 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in `0..bound`.
    ///
    /// # Panics
    /// When `bound` is 0.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "a draw below 0 has no answer");
        rand::RngExt::random_range(&mut self.0, 0..bound)
    }

    /// True with probability `p`; values outside `0.0..=1.0` are clamped.
    pub fn chance(&mut self, p: f64) -> bool {
        rand::RngExt::random_bool(&mut self.0, p.clamp(0.0, 1.0))
    }

    /// A duration drawn evenly from `0..=max`: full jitter.
    pub fn jitter(&mut self, max: std::time::Duration) -> std::time::Duration {
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        std::time::Duration::from_nanos(rand::RngExt::random_range(&mut self.0, 0..=nanos))
    }

    /// Puts `items` in random order.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        rand::seq::SliceRandom::shuffle(items, &mut self.0);
    }
}

impl TryRng for Rng {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        self.0.try_next_u32()
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        self.0.try_next_u64()
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        self.0.try_fill_bytes(dst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_draws() {
        let draws = |seed| {
            let mut rng = Rng::from_seed(seed);
            (0..32).map(|_| rng.next_u64()).collect::<Vec<_>>()
        };
        assert_eq!(draws(7), draws(7));
        assert_ne!(draws(7), draws(8));
    }

    #[test]
    fn two_generators_of_the_operating_system_differ() {
        assert_ne!(Rng::from_os().next_u64(), Rng::from_os().next_u64());
    }

    #[test]
    fn a_fork_leaves_the_parent_repeatable() {
        let mut one = Rng::from_seed(1);
        let mut two = Rng::from_seed(1);
        let mut child = one.fork();
        for _ in 0..100 {
            child.next_u64();
        }
        drop(two.fork());
        assert_eq!(one.next_u64(), two.next_u64());
    }
}
