//! What readers see: every live entry, found by key or in key order, read without a lock.
//!
//! A read of one key should cost a hash and a look, a scan needs order. So there are two indexes, and
//! overwriting a value touches the first only.

use std::{ops::Bound, sync::Arc};

use bytes::Bytes;
use crossbeam_skiplist::SkipSet;
use purlin_core::WallTime;

use crate::{cell::Cell, index::Index, slot::Slot};

/// The entries of a replica, for readers. Written under the writer's lock, read by anybody.
#[derive(Default)]
pub(crate) struct View {
    entries: Index<Cell>,
    keys: SkipSet<Arc<[u8]>>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("keys", &self.keys.len()).finish_non_exhaustive()
    }
}

impl View {
    /// Shows `now` under `slot` from now on; `None` for nothing.
    pub(crate) fn show(&self, slot: &Slot, now: Option<&Cell>) {
        match now {
            Some(cell) => {
                if self.entries.insert(Arc::clone(slot.shared_key()), cell.clone()) {
                    self.keys.insert(Arc::clone(slot.shared_key()));
                }
            }
            None => {
                if self.entries.remove(slot.key()) {
                    self.keys.remove(slot.key());
                }
            }
        }
    }

    /// What was last shown under `slot`, whether its time is over or not.
    pub(crate) fn shown(&self, slot: &Slot) -> Option<Cell> {
        self.entries.read(slot.key(), Cell::clone)
    }

    /// What is kept under `key`, unless its time is over. Asks for the time only if that matters.
    pub(crate) fn get(&self, key: &[u8], now: impl FnOnce() -> WallTime) -> Option<Cell> {
        let live = |cell: &Cell| {
            // It is removed a moment after its time is over, and must not be seen in that moment.
            let expires = cell.register().and_then(|written| written.expires);
            expires.is_none_or(|expires| now() < expires).then(|| cell.clone())
        };
        self.entries.read(key, live)?
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
