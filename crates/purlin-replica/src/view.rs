//! What readers see: every live entry, found by key or in key order, read without a lock.
//!
//! A read of one key should cost a hash and a look, not a walk down a list; a scan needs order. So
//! there are two indexes: buckets by hash, each an immutable little list that a writer replaces, and
//! the keys alone in order. Overwriting a value touches the first only.

use std::{
    ops::Bound,
    sync::{Arc, OnceLock},
};

use arc_swap::ArcSwapOption;
use bytes::Bytes;
use crossbeam_skiplist::SkipSet;
use purlin_core::WallTime;
use purlin_ring::key_hash;

use crate::{cell::Cell, slot::Slot};

/// Tables of 256 buckets each, made when first needed: a million keys are eight to a bucket, and an
/// empty set costs 8 KiB.
const TABLES: usize = 512;
const BUCKETS: usize = 256;

type Bucket = ArcSwapOption<Vec<(Arc<[u8]>, Cell)>>;

/// The entries of a replica, for readers. Written under the writer's lock, read by anybody.
pub(crate) struct View {
    tables: Box<[OnceLock<Box<[Bucket]>>]>,
    keys: SkipSet<Arc<[u8]>>,
}

impl Default for View {
    fn default() -> Self {
        let tables = (0..TABLES).map(|_| OnceLock::new()).collect();
        Self { tables, keys: SkipSet::new() }
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

/// Which table and which of its buckets a key of this hash is in.
fn place(hash: u64) -> (usize, usize) {
    let bits = usize::try_from(hash >> 47).expect("17 bits");
    (bits / BUCKETS, bits % BUCKETS)
}

impl View {
    /// Shows `now` under `slot` from now on; `None` for nothing.
    pub(crate) fn show(&self, slot: &Slot, now: Option<&Cell>) {
        let (table, bucket) = place(slot.hash());
        let table = self.tables[table]
            .get_or_init(|| (0..BUCKETS).map(|_| ArcSwapOption::const_empty()).collect());
        let bucket = &table[bucket];
        let held = bucket.load();
        let held = held.as_deref().map_or(&[][..], Vec::as_slice);
        let at = held.iter().position(|(key, _)| **key == *slot.key());
        match (at, now) {
            (None, None) => {}
            (Some(at), Some(cell)) => {
                let mut shown = held.to_vec();
                shown[at].1 = cell.clone();
                bucket.store(Some(Arc::new(shown)));
            }
            (None, Some(cell)) => {
                let mut shown = Vec::with_capacity(held.len() + 1);
                shown.extend_from_slice(held);
                shown.push((Arc::clone(slot.shared_key()), cell.clone()));
                bucket.store(Some(Arc::new(shown)));
                self.keys.insert(Arc::clone(slot.shared_key()));
            }
            (Some(at), None) => {
                self.keys.remove(slot.key());
                let others = held.iter().enumerate().filter(|(n, _)| *n != at);
                let shown: Vec<_> = others.map(|(_, entry)| entry.clone()).collect();
                bucket.store((!shown.is_empty()).then(|| Arc::new(shown)));
            }
        }
    }

    /// What was last shown under `slot`, whether its time is over or not.
    pub(crate) fn shown(&self, slot: &Slot) -> Option<Cell> {
        self.find(slot.hash(), slot.key(), |_| true)
    }

    /// What is kept under `key`, unless its time is over. Asks for the time only if that matters.
    pub(crate) fn get(&self, key: &[u8], now: impl FnOnce() -> WallTime) -> Option<Cell> {
        self.find(key_hash(key).0, key, |cell| {
            // It is removed a moment after its time is over, and must not be seen in that moment.
            let expires = cell.register().and_then(|written| written.expires);
            expires.is_none_or(|expires| now() < expires)
        })
    }

    fn find(&self, hash: u64, key: &[u8], is_shown: impl FnOnce(&Cell) -> bool) -> Option<Cell> {
        let (table, bucket) = place(hash);
        let bucket = self.tables[table].get()?[bucket].load();
        let (_, cell) = bucket.as_ref()?.iter().find(|(held, _)| **held == *key)?;
        is_shown(cell).then(|| cell.clone())
    }

    /// Up to `limit` live entries whose keys begin with `prefix`, after the key `after`.
    pub(crate) fn scan(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
        now: WallTime,
    ) -> Vec<(Bytes, Cell)> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            Some(_) | None => Bound::Included(prefix),
        };
        self.keys
            .range::<[u8], _>((start, Bound::Unbounded))
            .take_while(|entry| entry.value().starts_with(prefix))
            .filter_map(|entry| {
                let key = entry.value();
                Some((Bytes::copy_from_slice(key), self.get(key, || now)?))
            })
            .take(limit)
            .collect()
    }

    /// How many entries there are, those included whose time ended this moment.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use purlin_core::{Dot, Hlc, Incarnation, NodeId, NodeName, Rng, hlc::NodeTag};

    use super::*;
    use crate::cell::Written;

    #[test]
    fn it_shows_what_was_shown_last_by_key_and_in_order() {
        let node = NodeId::new(NodeName::parse("a").unwrap(), Incarnation(1));
        let at = Hlc::new(&node).now(WallTime::from_millis(1)).unwrap();
        let (view, mut model, mut rng) = (View::default(), BTreeMap::new(), Rng::from_seed(1));
        for counter in 1..50_000_u64 {
            let key = format!("k{}", rng.below(20_000));
            let slot = Slot::new(key.clone()).unwrap();
            if rng.chance(0.3) {
                view.show(&slot, None);
                model.remove(&key);
            } else {
                let value = counter.to_string().into();
                let dot = Dot { node: NodeTag(1), counter };
                let cell = Cell::one(dot, Written { at, expires: None, value });
                view.show(&slot, Some(&cell));
                model.insert(key, cell);
            }
        }
        let now = WallTime::from_millis(1);
        assert_eq!(view.len(), model.len());
        for n in 0..20_000 {
            let key = format!("k{n}");
            assert_eq!(view.get(key.as_bytes(), || now), model.get(&key).cloned());
        }
        let shown = view.scan(b"k1", Some(b"k12"), 100, now);
        let wanted =
            model.range("k12".to_owned()..).filter(|(key, _)| key.as_str() > "k12").take(100);
        let wanted: Vec<_> =
            wanted.map(|(key, cell)| (Bytes::from(key.clone()), cell.clone())).collect();
        assert_eq!(shown, wanted);
    }
}
