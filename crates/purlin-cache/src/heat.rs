//! Which keys are read most: the few that make a node hot.
//!
//! Every sixteenth read is looked at, so that the others cost nothing; what is remembered is halved
//! now and then, so that yesterday's heat cools. Pure, and bounded by [`KEYS_MAX`].
//!
//! # Source
//! Metwally, Agrawal, El Abbadi, *Efficient computation of frequent and top-k elements in data
//! streams* (2005): the Space-Saving algorithm, which never misses a key that is read often enough.

use bytes::Bytes;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// How many keys are followed.
pub const KEYS_MAX: usize = 32;
/// One read of so many is looked at.
const EVERY: u64 = 16;
/// After so many looks all counts are halved: about the last 130,000 reads weigh as much as all
/// before them.
const HALVE_AT: u64 = 8_192;

/// One key and its part of the reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HotKey {
    /// The key.
    pub key: Vec<u8>,
    /// At least so many of a thousand lately looked at reads were of it.
    pub per_mille: u16,
}

/// The hottest keys of one cache on one node.
#[derive(Debug, Default)]
pub(crate) struct Heat(Mutex<Sketch>);

#[derive(Debug, Default)]
struct Sketch {
    looks: u64,
    keys: Vec<Followed>,
}

#[derive(Debug)]
struct Followed {
    key: Bytes,
    count: u64,
    /// How much of the count belongs to the key whose place it took.
    inherited: u64,
}

impl Heat {
    /// Notes the read number `read`, counted from 0, of `key`.
    pub(crate) fn note(&self, read: u64, key: &[u8]) {
        if read.is_multiple_of(EVERY)
            // Somebody else is noting: one look less.
            && let Some(mut sketch) = self.0.try_lock()
        {
            sketch.look(key);
        }
    }

    /// The keys that are surely hot, the hottest first.
    pub(crate) fn hottest(&self) -> Vec<HotKey> {
        let sketch = self.0.lock();
        let share = |followed: &Followed| {
            let sure = followed.count - followed.inherited;
            let per_mille = sure * 1_000 / sketch.looks.max(1);
            HotKey {
                key: followed.key.to_vec(),
                per_mille: u16::try_from(per_mille).expect("a part is at most the whole"),
            }
        };
        let mut hottest: Vec<HotKey> = sketch.keys.iter().map(share).collect();
        hottest.retain(|hot| hot.per_mille > 0);
        hottest.sort_by(|a, b| b.per_mille.cmp(&a.per_mille).then_with(|| a.key.cmp(&b.key)));
        hottest
    }
}

impl Sketch {
    fn look(&mut self, key: &[u8]) {
        self.looks += 1;
        if let Some(known) = self.keys.iter_mut().find(|known| known.key == key) {
            known.count += 1;
        } else if self.keys.len() < KEYS_MAX {
            // A copy: the caller's bytes may be a piece of something large.
            self.keys.push(Followed { key: Bytes::copy_from_slice(key), count: 1, inherited: 0 });
        } else {
            let coldest = self.keys.iter_mut().min_by_key(|known| known.count);
            let coldest = coldest.expect("there are as many as there may be");
            *coldest = Followed {
                key: Bytes::copy_from_slice(key),
                count: coldest.count + 1,
                inherited: coldest.count,
            };
        }
        if self.looks >= HALVE_AT {
            self.looks /= 2;
            for known in &mut self.keys {
                known.count /= 2;
                known.inherited = known.inherited.div_ceil(2).min(known.count);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use purlin_core::Rng;

    use super::*;

    fn read(heat: &Heat, keys: impl IntoIterator<Item = String>) {
        for (read, key) in (0..).zip(keys) {
            heat.note(read * EVERY, key.as_bytes());
        }
    }

    #[test]
    fn a_key_with_a_tenth_of_the_reads_is_found_among_any_number_of_others() {
        let heat = Heat::default();
        let mut rng = Rng::from_seed(7);
        let mut cold = 0;
        read(
            &heat,
            (0..50_000).map(|_| {
                cold += 1;
                if rng.below(10) == 0 { "hot".to_owned() } else { format!("cold/{cold}") }
            }),
        );
        let hottest = heat.hottest();
        assert_eq!(hottest[0].key, b"hot");
        assert!((50..=120).contains(&hottest[0].per_mille), "{hottest:?}");
        assert!(hottest.len() <= KEYS_MAX && heat.0.lock().keys.len() == KEYS_MAX);
        // No key that was read once is called hot.
        assert!(hottest[1..].iter().all(|other| other.per_mille <= 1), "{hottest:?}");
    }

    #[test]
    fn what_was_hot_yesterday_cools() {
        let heat = Heat::default();
        read(&heat, (0..20_000).map(|_| "old".to_owned()));
        assert_eq!(heat.hottest()[0].per_mille, 1_000);
        read(&heat, (0..60_000).map(|_| "new".to_owned()));
        let hottest = heat.hottest();
        assert_eq!(hottest[0].key, b"new");
        assert!(hottest[0].per_mille >= 990, "{hottest:?}");
    }

    #[test]
    fn reads_between_the_looks_cost_nothing_and_count_for_nothing() {
        let heat = Heat::default();
        (1..EVERY).for_each(|read| heat.note(read, b"k"));
        assert_eq!(heat.hottest(), []);
        heat.note(EVERY, b"k");
        assert_eq!(heat.hottest(), [HotKey { key: b"k".to_vec(), per_mille: 1_000 }]);
    }
}
