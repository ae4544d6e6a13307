//! When ephemeral entries end: one place per key, so that rewriting a key costs no memory.

use std::collections::{BTreeMap, BTreeSet};

use purlin_core::WallTime;

use crate::slot::Slot;

#[derive(Debug, Default)]
pub(crate) struct Expiries {
    of: BTreeMap<Slot, WallTime>,
    queue: BTreeSet<(WallTime, Slot)>,
}

impl Expiries {
    /// Notes when the entry under `slot` ends now; `None` for never or no entry.
    pub(crate) fn set(&mut self, slot: &Slot, expires: Option<WallTime>) {
        let old = match expires {
            Some(at) => self.of.insert(slot.clone(), at),
            None => self.of.remove(slot),
        };
        if let Some(old) = old {
            self.queue.remove(&(old, slot.clone()));
        }
        if let Some(at) = expires {
            self.queue.insert((at, slot.clone()));
        }
    }

    /// Whether no entry ends.
    pub(crate) fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// When the first entry ends.
    pub(crate) fn first(&self) -> Option<WallTime> {
        self.queue.first().map(|&(at, _)| at)
    }

    /// Takes out one entry that has ended at `now`.
    pub(crate) fn pop_due(&mut self, now: WallTime) -> Option<Slot> {
        self.first().filter(|&at| at <= now)?;
        let (_, slot) = self.queue.pop_first()?;
        self.of.remove(&slot);
        Some(slot)
    }
}
