//! Who came and who went, without the flicker of a drain: pure.
//!
//! When a node is drained its clients connect to another one a moment later, and everybody else
//! would see each of them leave and join. So a leave because its node went in peace is held back
//! for a while; who is there again by then has merely changed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use purlin_core::Instant;

use crate::{
    directory::{Change, Why},
    row::Entry,
};

/// What changed in a topic since the last one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// Who is there now that was not.
    pub joins: Vec<Arc<Entry>>,
    /// Who was there before and after, with what was said then and now.
    pub updates: Vec<(Arc<Entry>, Arc<Entry>)>,
    /// Who is there no more, and why.
    pub leaves: Vec<(Arc<Entry>, Why)>,
    /// Changes are missing here because they came faster than they were taken: list anew.
    pub missed: bool,
}

impl Diff {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many changes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.joins.len() + self.updates.len() + self.leaves.len()
    }
}

/// A leave that is held back until then.
type Held = (Instant, Arc<Entry>, Why);

/// Makes changes into diffs.
#[derive(Debug)]
pub struct Diffs {
    calm_for: Duration,
    /// Leaves held back, by who it is about, oldest first.
    held: BTreeMap<Arc<str>, Vec<Held>>,
}

impl Diffs {
    /// Holds leaves of drained nodes back for `calm_for`.
    #[must_use]
    pub fn new(calm_for: Duration) -> Self {
        Self { calm_for, held: BTreeMap::new() }
    }

    /// Takes in a change.
    pub fn step(&mut self, now: Instant, change: &Change, diff: &mut Diff) {
        match (&change.before, &change.now) {
            (None, Some(joined)) => match self.take(&joined.key) {
                Some(before) => diff.updates.push((before, Arc::clone(joined))),
                None => diff.joins.push(Arc::clone(joined)),
            },
            (Some(before), Some(after)) => {
                diff.updates.push((Arc::clone(before), Arc::clone(after)));
            }
            (Some(left), None) => {
                let is_calm = matches!(change.why, Why::NodeDrained | Why::NodeLeft);
                if is_calm && !self.calm_for.is_zero() {
                    let held = self.held.entry(Arc::clone(&left.key)).or_default();
                    held.push((now + self.calm_for, Arc::clone(left), change.why.clone()));
                } else {
                    diff.leaves.push((Arc::clone(left), change.why.clone()));
                }
            }
            (None, None) => {}
        }
    }

    /// Lets go of what was held back long enough.
    pub fn woke(&mut self, now: Instant, diff: &mut Diff) {
        self.held.retain(|_, held| {
            let due = held.iter().take_while(|(at, ..)| *at <= now).count();
            diff.leaves.extend(held.drain(..due).map(|(_, entry, why)| (entry, why)));
            !held.is_empty()
        });
    }

    /// When [`Diffs::woke`] is due next, if ever.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.held.values().filter_map(|held| held.first()).map(|(at, ..)| *at).min()
    }

    /// The oldest leave of `key` that is held back.
    fn take(&mut self, key: &str) -> Option<Arc<Entry>> {
        let held = self.held.get_mut(key)?;
        let (_, entry, _) = held.remove(0);
        if held.is_empty() {
            self.held.remove(key);
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use purlin_core::{Hlc, Incarnation, NodeId, NodeName, WallTime};
    use purlin_process::Metadata;

    use super::*;
    use crate::row::{RowKey, Space};

    fn entry(node: &str, key: &str) -> Arc<Entry> {
        let owner = NodeId::new(NodeName::parse(node).unwrap(), Incarnation(1));
        let version = Hlc::new(&owner).now(WallTime::from_millis(1)).unwrap();
        Arc::new(Entry {
            at: RowKey { owner, number: 1 },
            space: Space::Presence,
            scope: "room".into(),
            key: key.into(),
            process: None,
            kind: "".into(),
            metadata: Metadata::default(),
            since: version,
            version,
            local: None,
        })
    }

    fn seconds(seconds: u64) -> Instant {
        Instant::from_start(Duration::from_secs(seconds))
    }

    #[test]
    fn who_is_back_soon_after_a_drain_has_not_left() {
        let mut diffs = Diffs::new(Duration::from_secs(5));
        let (ada, bob) = (entry("n1", "ada"), entry("n1", "bob"));
        let mut diff = Diff::default();
        for gone in [&ada, &bob] {
            let (before, why) = (Some(Arc::clone(gone)), Why::NodeDrained);
            diffs.step(seconds(1), &Change { before, now: None, why }, &mut diff);
        }
        assert!(diff.is_empty());
        assert_eq!(diffs.wake_at(), Some(seconds(6)));
        let again = entry("n2", "ada");
        let change = Change { before: None, now: Some(Arc::clone(&again)), why: Why::Registered };
        diffs.step(seconds(2), &change, &mut diff);
        assert_eq!(diff.updates, [(ada, again)]);
        let mut late = Diff::default();
        diffs.woke(seconds(6), &mut late);
        assert_eq!(late.leaves, [(bob, Why::NodeDrained)]);
        assert_eq!((late.len(), diffs.wake_at()), (1, None));
    }

    #[test]
    fn a_crash_is_a_leave_at_once() {
        let mut diffs = Diffs::new(Duration::from_secs(5));
        let ada = entry("n1", "ada");
        for why in [Why::NodeDown, Why::Normal, Why::Unregistered] {
            let mut diff = Diff::default();
            let change = Change { before: Some(Arc::clone(&ada)), now: None, why: why.clone() };
            diffs.step(seconds(1), &change, &mut diff);
            assert_eq!(diff.leaves, [(Arc::clone(&ada), why)]);
        }
    }
}
