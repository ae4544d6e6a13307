//! Who came and who went, without the flicker of a drain: pure.
//!
//! When a node is drained its clients connect to another one a moment later, and everybody else
//! would see each of them leave and join. So a leave because its node went in peace is held back
//! for a while; who is there again by then has merely changed.
//!
//! Changes that are taken together are one [`Diff`], in which everybody has at most one place: who
//! was lost and found again in between did nothing, so a diff may be applied in any order.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use purlin_core::Instant;

use crate::{
    directory::Why,
    history::Event,
    row::{Entry, RowKey},
};

/// How many leaves are held back at most; the oldest is told early for one more. Bounds what a
/// drain costs each reader of diffs.
pub const HELD_MAX: usize = 10_000;

/// What changed in a topic since the last one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Diff {
    /// Who is there now that was not.
    pub joins: Vec<Arc<Entry>>,
    /// Who was there before and after.
    pub updates: Vec<Update>,
    /// Who is there no more, and why.
    pub leaves: Vec<(Arc<Entry>, Why)>,
    /// Changes are missing here because they came faster than they were taken: list anew.
    pub missed: bool,
}

impl Diff {
    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && !self.missed
    }

    /// How many changes it holds.
    #[must_use]
    pub fn len(&self) -> usize {
        self.joins.len() + self.updates.len() + self.leaves.len()
    }

    /// The keys of who is there now: joined or changed. With these a
    /// [`Fetcher`](crate::fetch::Fetcher) is asked.
    pub fn keys(&self) -> impl Iterator<Item = &Arc<str>> {
        let updated = self.updates.iter().map(|update| &update.now);
        self.joins.iter().chain(updated).map(|entry| &entry.key)
    }
}

/// Who was there before and after a change, with what was said then and now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Update {
    /// What was said before.
    pub before: Arc<Entry>,
    /// What is said now; in the same row, unless its client came back elsewhere after a drain.
    pub now: Arc<Entry>,
}

impl Update {
    /// What of the metadata differs, by name. Empty when only the row changed.
    #[must_use]
    pub fn fields(&self) -> Vec<Field<'_>> {
        let (was, is) = (&self.before.metadata, &self.now.metadata);
        let mut names: Vec<&str> = was.iter().chain(is.iter()).map(|(name, _)| name).collect();
        names.sort_unstable();
        names.dedup();
        names
            .into_iter()
            .map(|name| Field { name, before: was.get(name), now: is.get(name) })
            .filter(|field| field.before != field.now)
            .collect()
    }
}

/// One name of the metadata whose value differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field<'a> {
    /// Which.
    pub name: &'a str,
    /// Its value before; `None` when it had none.
    pub before: Option<&'a str>,
    /// Its value now; `None` when it has none any more.
    pub now: Option<&'a str>,
}

/// A leave that is held back.
#[derive(Debug)]
struct Held {
    until: Instant,
    entry: Arc<Entry>,
    why: Why,
}

/// What became of one row since the last diff.
#[derive(Debug)]
struct Net {
    before: Option<Arc<Entry>>,
    now: Option<Arc<Entry>>,
    why: Why,
}

/// Makes the changes of one topic into diffs.
#[derive(Debug)]
pub struct Diffs {
    calm_for: Duration,
    /// Leaves held back, by the number of their event.
    held: BTreeMap<u64, Held>,
    /// Whose they are, oldest first.
    held_of: BTreeMap<Arc<str>, VecDeque<u64>>,
    /// Since the last diff, in the order in which it began.
    nets: Vec<Net>,
    /// Where in `nets` each row is that is, or was, there.
    places: BTreeMap<RowKey, usize>,
    missed: bool,
}

impl Diffs {
    /// Holds leaves of drained nodes back for `calm_for`.
    #[must_use]
    pub fn new(calm_for: Duration) -> Self {
        Self {
            calm_for,
            held: BTreeMap::new(),
            held_of: BTreeMap::new(),
            nets: Vec::new(),
            places: BTreeMap::new(),
            missed: false,
        }
    }

    /// Takes in what happened.
    pub fn step(&mut self, now: Instant, event: &Event) {
        let change = &event.change;
        match (&change.before, &change.now) {
            (None, Some(joined)) => {
                let before = self.take_held(&joined.key);
                self.add(before, Some(Arc::clone(joined)), change.why.clone());
            }
            (Some(left), None) => {
                let is_calm = matches!(change.why, Why::NodeDrained | Why::NodeLeft);
                if !is_calm || self.calm_for.is_zero() {
                    self.add(Some(Arc::clone(left)), None, change.why.clone());
                    return;
                }
                if self.held.len() >= HELD_MAX {
                    self.let_first_go();
                }
                let (entry, why) = (Arc::clone(left), change.why.clone());
                self.held_of.entry(Arc::clone(&left.key)).or_default().push_back(event.revision);
                self.held.insert(event.revision, Held { until: now + self.calm_for, entry, why });
            }
            (before, after) => self.add(before.clone(), after.clone(), change.why.clone()),
        }
    }

    /// Takes in that events are missing.
    pub fn missed(&mut self) {
        self.missed = true;
    }

    /// Lets go of what was held back long enough.
    pub fn woke(&mut self, now: Instant) {
        while self.held.first_key_value().is_some_and(|(_, held)| held.until <= now) {
            self.let_first_go();
        }
    }

    /// When [`Diffs::woke`] is due next, if ever.
    #[must_use]
    pub fn wake_at(&self) -> Option<Instant> {
        self.held.first_key_value().map(|(_, held)| held.until)
    }

    /// How many changes the next diff has at most.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.nets.len()
    }

    /// What changed since the last one.
    pub fn take(&mut self) -> Diff {
        self.places.clear();
        let mut diff = Diff { missed: std::mem::take(&mut self.missed), ..Diff::default() };
        for Net { before, now, why } in self.nets.drain(..) {
            match (before, now) {
                (Some(before), Some(now)) if before != now => {
                    diff.updates.push(Update { before, now });
                }
                (Some(_), Some(_)) | (None, None) => {}
                (None, Some(joined)) => diff.joins.push(joined),
                (Some(left), None) => diff.leaves.push((left, why)),
            }
        }
        diff
    }

    /// The number of the last event after which a new reader misses nothing, given that all up to
    /// `read` were taken in: those held back have not been told yet.
    #[must_use]
    pub fn told_until(&self, read: u64) -> u64 {
        self.held.first_key_value().map_or(read, |(revision, _)| revision - 1)
    }

    fn add(&mut self, before: Option<Arc<Entry>>, now: Option<Arc<Entry>>, why: Why) {
        let Some(at) = before.as_ref().or(now.as_ref()).map(|entry| entry.at.clone()) else {
            return;
        };
        let moved_to = now.as_ref().map(|now| now.at.clone()).filter(|to| *to != at);
        let place = match self.places.get(&at) {
            Some(&place) => {
                self.nets[place] = Net { before: self.nets[place].before.take(), now, why };
                place
            }
            None => {
                self.nets.push(Net { before, now, why });
                self.places.insert(at, self.nets.len() - 1);
                self.nets.len() - 1
            }
        };
        if let Some(at) = moved_to {
            self.places.insert(at, place);
        }
    }

    fn let_first_go(&mut self) {
        let Some((revision, Held { entry, why, .. })) = self.held.pop_first() else { return };
        if let Some(revisions) = self.held_of.get_mut(&entry.key) {
            revisions.retain(|it| *it != revision);
            if revisions.is_empty() {
                self.held_of.remove(&entry.key);
            }
        }
        self.add(Some(entry), None, why);
    }

    /// The oldest leave of `key` that is held back.
    fn take_held(&mut self, key: &str) -> Option<Arc<Entry>> {
        let revisions = self.held_of.get_mut(key)?;
        let revision = revisions.pop_front()?;
        if revisions.is_empty() {
            self.held_of.remove(key);
        }
        self.held.remove(&revision).map(|held| held.entry)
    }
}

#[cfg(test)]
mod tests {
    use purlin_core::{Hlc, Incarnation, NodeId, NodeName, WallTime};
    use purlin_process::Metadata;

    use super::*;
    use crate::{directory::Change, row::Space};

    fn entry(node: &str, key: &str) -> Arc<Entry> {
        said(node, key, 1, &[])
    }

    fn said(node: &str, key: &str, millis: u64, metadata: &[(&str, &str)]) -> Arc<Entry> {
        let owner = NodeId::new(NodeName::parse(node).unwrap(), Incarnation(1));
        let version = Hlc::new(&owner).now(WallTime::from_millis(millis)).unwrap();
        // A row per key, as the tests need it.
        let number = key
            .bytes()
            .fold(7, |sum: u64, byte| sum.wrapping_mul(1_000_003).wrapping_add(byte.into()));
        Arc::new(Entry {
            at: RowKey { owner, number },
            space: Space::Presence,
            scope: "room".into(),
            key: key.into(),
            process: None,
            kind: "".into(),
            metadata: metadata.iter().copied().collect::<Metadata>(),
            since: version,
            version,
            local: None,
        })
    }

    fn seconds(seconds: u64) -> Instant {
        Instant::from_start(Duration::from_secs(seconds))
    }

    fn event(
        revision: u64,
        before: Option<&Arc<Entry>>,
        now: Option<&Arc<Entry>>,
        why: Why,
    ) -> Event {
        let change = Change { before: before.cloned(), now: now.cloned(), why };
        Event { revision, at: WallTime::from_millis(1), change }
    }

    #[test]
    fn who_is_back_soon_after_a_drain_has_not_left() {
        let mut diffs = Diffs::new(Duration::from_secs(5));
        let (ada, bob) = (entry("n1", "ada"), entry("n1", "bob"));
        diffs.step(seconds(1), &event(7, Some(&ada), None, Why::NodeDrained));
        diffs.step(seconds(1), &event(8, Some(&bob), None, Why::NodeDrained));
        assert!(diffs.take().is_empty());
        assert_eq!((diffs.wake_at(), diffs.told_until(8)), (Some(seconds(6)), 6));
        let again = entry("n2", "ada");
        diffs.step(seconds(2), &event(9, None, Some(&again), Why::Registered));
        assert_eq!(diffs.take().updates, [Update { before: ada, now: again }]);
        assert_eq!(diffs.told_until(9), 7, "bob's leave is still to be told");
        diffs.woke(seconds(6));
        let late = diffs.take();
        assert_eq!(late.leaves, [(bob, Why::NodeDrained)]);
        assert_eq!((late.len(), diffs.wake_at(), diffs.told_until(9)), (1, None, 9));
    }

    #[test]
    fn a_crash_is_a_leave_at_once() {
        let mut diffs = Diffs::new(Duration::from_secs(5));
        let ada = entry("n1", "ada");
        for why in [Why::NodeDown, Why::Normal, Why::Unregistered] {
            diffs.step(seconds(1), &event(1, Some(&ada), None, why.clone()));
            assert_eq!(diffs.take().leaves, [(Arc::clone(&ada), why)]);
        }
    }

    #[test]
    fn an_update_names_the_fields_that_differ_and_no_others() {
        let before = said("n1", "ada", 1, &[("device", "phone"), ("mood", "calm"), ("x", "1")]);
        let now = said("n1", "ada", 2, &[("device", "desk"), ("mood", "calm"), ("y", "2")]);
        let mut diffs = Diffs::new(Duration::ZERO);
        diffs.step(seconds(1), &event(1, Some(&before), Some(&now), Why::Updated));
        let diff = diffs.take();
        assert_eq!(
            diff.updates[0].fields(),
            [
                Field { name: "device", before: Some("phone"), now: Some("desk") },
                Field { name: "x", before: Some("1"), now: None },
                Field { name: "y", before: None, now: Some("2") },
            ]
        );
    }

    #[test]
    fn everybody_has_one_place_in_a_diff_whatever_happened_in_between() {
        let mut diffs = Diffs::new(Duration::ZERO);
        let lost = entry("n1", "lost and found");
        diffs.step(seconds(1), &event(1, Some(&lost), None, Why::NodeDown));
        diffs.step(seconds(1), &event(2, None, Some(&lost), Why::NodeBack));
        let brief = entry("n1", "brief");
        diffs.step(seconds(1), &event(3, None, Some(&brief), Why::Registered));
        diffs.step(seconds(1), &event(4, Some(&brief), None, Why::Unregistered));
        let (first, last) = (said("n1", "new", 1, &[]), said("n1", "new", 2, &[("a", "b")]));
        diffs.step(seconds(1), &event(5, None, Some(&first), Why::Registered));
        diffs.step(seconds(1), &event(6, Some(&first), Some(&last), Why::Updated));
        let diff = diffs.take();
        assert_eq!((diff.joins.as_slice(), diff.len()), (&[last][..], 1));
    }

    #[test]
    fn a_drain_of_more_than_can_be_held_back_is_told_early_and_whole() {
        let mut diffs = Diffs::new(Duration::from_secs(5));
        let count = HELD_MAX + 10;
        for n in 0..count {
            let left = entry("n1", &format!("{n:06}"));
            let revision = u64::try_from(n).unwrap() + 1;
            diffs.step(seconds(1), &event(revision, Some(&left), None, Why::NodeDrained));
        }
        assert_eq!(diffs.take().leaves.len(), 10);
        diffs.woke(seconds(6));
        assert_eq!(diffs.take().leaves.len(), HELD_MAX);
        assert!(diffs.held_of.is_empty());
    }
}
