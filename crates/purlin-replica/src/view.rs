//! What readers see: every live entry in key order, read without a lock.

use std::{ops::Bound, sync::Arc};

use bytes::Bytes;
use crossbeam_skiplist::SkipMap;
use purlin_core::WallTime;

use crate::{cell::Cell, slot::Slot};

/// The entries of a replica, for readers. Written under the writer's lock, read by anybody.
#[derive(Default)]
pub(crate) struct View {
    entries: SkipMap<Arc<[u8]>, Cell>,
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("keys", &self.entries.len()).finish()
    }
}

impl View {
    /// Shows `now` under `slot` from now on; `None` for nothing.
    pub(crate) fn show(&self, slot: &Slot, now: Option<&Cell>) {
        match now {
            Some(cell) => drop(self.entries.insert(Arc::clone(slot.shared_key()), cell.clone())),
            None => drop(self.entries.remove(slot.key())),
        }
    }

    /// What was last shown under `slot`, whether its time is over or not.
    pub(crate) fn shown(&self, slot: &Slot) -> Option<Cell> {
        self.entries.get(slot.key()).map(|entry| entry.value().clone())
    }

    /// What is kept under `key`, unless its time is over at `now`.
    pub(crate) fn get(&self, key: &[u8], now: WallTime) -> Option<Cell> {
        let entry = self.entries.get(key)?;
        is_live(entry.value(), now).then(|| entry.value().clone())
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
        self.entries
            .range::<[u8], _>((start, Bound::Unbounded))
            .take_while(|entry| entry.key().starts_with(prefix))
            .filter(|entry| is_live(entry.value(), now))
            .take(limit)
            .map(|entry| (Bytes::copy_from_slice(entry.key()), entry.value().clone()))
            .collect()
    }

    /// How many entries there are, those included whose time ended this moment.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// Whether an entry counts at `now`: it is removed a moment after its time is over, and must not
/// be seen in that moment.
fn is_live(cell: &Cell, now: WallTime) -> bool {
    cell.register().is_none_or(|written| written.expires.is_none_or(|expires| now < expires))
}
