//! Jump consistent hashing: numbered buckets, no memory, perfect balance.
//!
//! For shards that are counted rather than named. A bucket may only be added or removed at the
//! end: taking one out of the middle renumbers the others.
//!
//! # Source
//! Lamping and Veach 2014, "A Fast, Minimal Memory, Consistent Hash Algorithm", figure 1.

use std::num::NonZeroU32;

use crate::KeyHash;

/// The bucket of `key` among `buckets`, numbered from 0.
///
/// From n to n + 1 buckets one key in n + 1 moves, and only to the new bucket.
#[must_use]
pub fn jump(key: KeyHash, buckets: NonZeroU32) -> u32 {
    let buckets = i64::from(buckets.get());
    let mut state = key.0;
    let (mut bucket, mut next) = (0, 0);
    while next < buckets {
        bucket = next;
        state = state.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        // In the paper's own floating point: every step is exactly rounded by IEEE 754, so all
        // machines agree, and agree with the other implementations.
        next = scaled(bucket + 1, f64::from(1_u32 << 31) / f64::from(top_bits(state) + 1));
    }
    u32::try_from(bucket).expect("below the number of buckets, a u32")
}

/// The upper 31 bits.
fn top_bits(state: u64) -> u32 {
    u32::try_from(state >> 33).expect("31 bits")
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    reason = "at most 2^32, which an f64 holds, times at most 2^31: rounded down on purpose"
)]
fn scaled(bucket: i64, step: f64) -> i64 {
    (bucket as f64 * step) as i64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn among(buckets: u32) -> NonZeroU32 {
        NonZeroU32::new(buckets).unwrap()
    }

    #[test]
    fn the_published_vectors_hold() {
        // From the reference implementations in Guava and the Go port of the paper's code.
        for (key, buckets, expected) in [
            (1, 1, 0),
            (42, 57, 43),
            (0xDEAD_10CC, 1, 0),
            (0xDEAD_10CC, 666, 361),
            (256, 1024, 520),
        ] {
            assert_eq!(jump(KeyHash(key), among(buckets)), expected, "{key} among {buckets}");
        }
    }

    proptest! {
        #[test]
        fn a_new_bucket_takes_keys_and_nobody_else_does(key: u64, buckets in 1..5_000_u32) {
            let before = jump(KeyHash(key), among(buckets));
            let after = jump(KeyHash(key), among(buckets + 1));
            prop_assert!(after == before || after == buckets);
            prop_assert!(before < buckets);
        }
    }
}
