//! Copies that a node keeps of values which other nodes hold, in front of a partitioned cache.
//!
//! A copy is read from its owner while somebody may be changing the key. If the word of the change
//! comes before the copy, the copy is the past and nobody will say so again. So who reads notes
//! how many changes there were, and keeps the copy only when there was none since: no memory of
//! changes is needed, which a full cache might push out.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use purlin_core::Instant;
use purlin_ring::key_hash;

use crate::{entry::Entry, store::Store};

/// Changes are counted in so many groups of keys; two keys of one group disturb each other's reads,
/// which then are just not kept.
const GROUPS: usize = 256;

/// The copies of one cache on one node.
pub(crate) struct Copies {
    store: Store,
    changes: [AtomicU64; GROUPS],
}

/// How many changes there were when a read began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Noted(u64);

impl fmt::Debug for Copies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Copies({:?})", self.store)
    }
}

impl Copies {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, changes: std::array::from_fn(|_| AtomicU64::new(0)) }
    }

    fn group(&self, key: &[u8]) -> &AtomicU64 {
        let group = usize::try_from(key_hash(key).0 >> 56).expect("8 bits");
        &self.changes[group]
    }

    pub(crate) fn get(&self, key: &[u8], now: Instant) -> Option<Arc<Entry>> {
        self.store.get(key, now).filter(|copy| copy.has_fresh_value(now))
    }

    /// To be called before the owner is asked.
    pub(crate) fn note(&self, key: &[u8]) -> Noted {
        Noted(self.group(key).load(Ordering::SeqCst))
    }

    /// Keeps what the owner said, unless the key may have changed since `noted`.
    pub(crate) fn keep(&self, key: &Bytes, copy: Entry, noted: Noted) {
        if self.note(key) != noted {
            return;
        }
        self.store.set(key.clone(), copy);
        // Who changes counts first and removes then: one of us two sees the other.
        if self.note(key) != noted {
            self.store.remove(key);
        }
    }

    /// The key changes: its copy is the past, and so are those being read.
    pub(crate) fn change(&self, key: &[u8]) {
        self.group(key).fetch_add(1, Ordering::SeqCst);
        self.store.remove(key);
    }

    /// All keys change.
    pub(crate) fn change_all(&self) {
        for group in &self.changes {
            group.fetch_add(1, Ordering::SeqCst);
        }
        self.store.remove_all();
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.store.bytes()
    }
}

#[cfg(test)]
mod tests {
    use purlin_core::{
        Clock, Hlc, HlcTimestamp, Incarnation, NodeId, NodeName, SystemClock, WallTime,
    };

    use super::*;
    use crate::entry::{Held, Life};

    fn version() -> HlcTimestamp {
        let node = NodeId::new(NodeName::parse("n1").unwrap(), Incarnation(1));
        Hlc::new(&node).now(WallTime::from_millis(1)).unwrap()
    }

    fn copy(value: &str) -> Entry {
        let held = Held::Value(Bytes::copy_from_slice(value.as_bytes()));
        Entry::new(version(), held, SystemClock::new().now(), Life::default())
    }

    fn copies(bytes_max: u64) -> (Copies, Instant) {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let now = clock.now();
        (Copies::new(Store::new(bytes_max, clock, Arc::default())), now)
    }

    #[test]
    fn what_was_read_while_the_key_changed_is_not_kept() {
        let (copies, now) = copies(100_000);
        let key = Bytes::from_static(b"k");
        let noted = copies.note(&key);
        copies.change(&key);
        copies.keep(&key, copy("old"), noted);
        assert!(copies.get(&key, now).is_none());
        copies.keep(&key, copy("new"), copies.note(&key));
        assert!(copies.get(&key, now).is_some());
        let noted = copies.note(&key);
        copies.change_all();
        copies.keep(&key, copy("old"), noted);
        assert!(copies.get(&key, now).is_none());
        assert_eq!(copies.bytes(), 0);
    }

    #[test]
    fn no_order_of_a_change_and_a_read_leaves_the_past() {
        let (copies, now) = copies(100_000);
        let key = Bytes::from_static(b"k");
        for _ in 0..2_000 {
            let noted = copies.note(&key);
            std::thread::scope(|scope| {
                scope.spawn(|| copies.keep(&key, copy("old"), noted));
                scope.spawn(|| copies.change(&key));
            });
            assert!(copies.get(&key, now).is_none(), "the change ended after it began");
        }
    }

    #[test]
    fn copies_stay_within_their_bytes() {
        let (copies, _) = copies(10_000);
        for n in 0..500 {
            let key = Bytes::from(format!("k{n}"));
            copies.keep(&key, copy(&"v".repeat(100)), copies.note(&key));
            assert!(copies.bytes() <= 10_000);
        }
    }
}
