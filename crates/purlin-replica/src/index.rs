//! Values by key, read without a lock while a writer replaces them.
//!
//! What nearly every read asks for is one key, and that should cost a hash and a look, not a walk down
//! an ordered list. Order is kept beside it by whoever needs it.
//!
//! # Source
//! The table is papaya's: open addressing, reclaimed by what seize calls hazard eras and grown a few
//! entries at a time.

use std::{
    fmt,
    hash::{BuildHasherDefault, Hash, Hasher},
    sync::Arc,
};

use papaya::{Equivalent, HashMap};
use purlin_ring::key_hash;

/// Values by key. Any number of readers, and writers too, though two writers of one key had better
/// agree on who is last.
///
/// What is replaced or removed is dropped a little later: when no reader can hold it any more and
/// some dozens of others have gone the same way.
pub struct Index<V> {
    values: HashMap<Key, V, BuildHasherDefault<AsItIs>>,
}

impl<V> Default for Index<V> {
    fn default() -> Self {
        Self { values: HashMap::default() }
    }
}

impl<V> fmt::Debug for Index<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Index").finish_non_exhaustive()
    }
}

impl<V> Index<V> {
    /// What `read` makes of the value under `key`. It should be quick: as long as it runs, nothing
    /// that was replaced in any index is dropped.
    pub fn read<T>(&self, key: &[u8], read: impl FnOnce(&V) -> T) -> Option<T> {
        self.values.pin().get(&Sought { hash: key_hash(key).0, key }).map(read)
    }

    /// Puts `value` under `key`; whether there was none.
    pub fn insert(&self, key: Arc<[u8]>, value: V) -> bool {
        self.values.pin().insert(Key(key), value).is_none()
    }

    /// Takes out what is under `key`; whether there was anything.
    pub fn remove(&self, key: &[u8]) -> bool {
        self.values.pin().remove(&Sought { hash: key_hash(key).0, key }).is_some()
    }
}

/// A key as it is kept: its hash is cheaper to make again, when the table grows, than to keep.
struct Key(Arc<[u8]>);

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        // Mostly the very same key: no need to fetch its bytes.
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(key_hash(&self.0).0);
    }
}

/// A key as it is looked for.
struct Sought<'a> {
    hash: u64,
    key: &'a [u8],
}

impl Hash for Sought<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Equivalent<Key> for Sought<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        *self.key == *key.0
    }
}

/// Takes a number for a hash: keys come hashed.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = key_hash(bytes).0;
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicBool, Ordering},
    };

    use purlin_core::Rng;

    use super::*;

    #[test]
    fn it_is_a_map() {
        let (index, mut model, mut rng) = (Index::default(), BTreeMap::new(), Rng::from_seed(1));
        for n in 0..50_000 {
            let key = format!("k{}", rng.below(5_000));
            if rng.chance(0.3) {
                assert_eq!(index.remove(key.as_bytes()), model.remove(&key).is_some());
            } else {
                assert_eq!(index.insert(key.as_bytes().into(), n), model.insert(key, n).is_none());
            }
        }
        for n in 0..5_000 {
            let key = format!("k{n}");
            assert_eq!(index.read(key.as_bytes(), |value| *value), model.get(&key).copied());
        }
    }

    #[test]
    fn a_reader_beside_a_writer_finds_every_key_that_is_only_ever_replaced() {
        let (index, done) = (Index::default(), AtomicBool::new(false));
        let key = |n: u64| -> Arc<[u8]> { n.to_be_bytes().into() };
        assert!((0..100).all(|n| index.insert(key(n), 0_u64)));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // The table grows on the way, and what is read moves into the next one.
                for n in 0..100_000 {
                    index.insert(key(n), n);
                    index.insert(key(n % 100), n);
                }
                done.store(true, Ordering::Release);
            });
            let mut last = [0; 100];
            while !done.load(Ordering::Acquire) {
                for (n, last) in (0..).zip(&mut last) {
                    let found = index.read(&key(n), |value| *value).expect("it is never removed");
                    assert!(found >= *last, "{n}: {found} after {last}");
                    *last = found;
                }
            }
        });
    }
}
