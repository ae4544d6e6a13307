//! What readers see: visible entries by name, read without a lock.
//!
//! To look a unique name up costs a hash and a look; what has an order is found by it.
//!
//! Written under the shell's lock from the [`Change`]s of the directory, read by anybody.

use std::{
    ops::Bound,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crossbeam_skiplist::{SkipMap, SkipSet};
use purlin_core::NodeId;
use purlin_replica::index::Index as ByKey;

use crate::{
    directory::Change,
    row::{Entry, RowKey, Space},
};

/// All entries of one scope of one space.
#[derive(Default)]
pub(crate) struct Shelf {
    /// Who has each unique name.
    holders: ByKey<Arc<Entry>>,
    /// The unique names, in order.
    names: SkipSet<Arc<str>>,
    /// Entries of keys that may have several, by key and row: see [`place`].
    entries: SkipMap<Box<[u8]>, Arc<Entry>>,
    /// How many entries each such key has.
    keys: SkipMap<Arc<str>, Arc<AtomicUsize>>,
    /// How many entries there are of all such keys.
    entry_count: AtomicUsize,
    /// How many of them each node owns.
    on_nodes: SkipMap<NodeId, AtomicUsize>,
    /// How many members each group has on each node, by the place of its first possible row.
    groups_on: SkipMap<Box<[u8]>, AtomicUsize>,
}

impl std::fmt::Debug for Shelf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (names, entries) = (self.names.len(), self.entries.len());
        f.debug_struct("Shelf").field("names", &names).field("entries", &entries).finish()
    }
}

impl Shelf {
    /// Who has the unique name `key`, if it still takes messages as far as this node knows.
    pub(crate) fn name(&self, key: &str) -> Option<Arc<Entry>> {
        self.holders.read(key.as_bytes(), |entry| entry.is_live().then(|| Arc::clone(entry)))?
    }

    /// Up to `limit` unique names from `from` that begin with `prefix`, in order.
    pub(crate) fn names(
        &self,
        prefix: &str,
        from: Bound<&str>,
        until: Bound<&str>,
        limit: usize,
    ) -> Vec<Arc<Entry>> {
        let start = later(from, prefix);
        if is_empty_range(start, until) {
            return Vec::new();
        }
        self.names
            .range::<str, _>((start, until))
            .take_while(|found| found.value().starts_with(prefix))
            .filter_map(|found| self.name(found.value()))
            .take(limit)
            .collect()
    }

    /// Up to `limit` entries of the key `key`, after `after`.
    pub(crate) fn of_key(
        &self,
        key: &str,
        after: Option<&RowKey>,
        limit: usize,
    ) -> Vec<Arc<Entry>> {
        let first = [key.as_bytes(), &[0]].concat();
        let start = match after {
            Some(at) => Bound::Excluded(place(key, at)),
            None => Bound::Included(first.clone().into()),
        };
        self.entries
            .range::<[u8], _>((start.as_ref().map(|at| &**at), Bound::Unbounded))
            .take_while(|found| found.key().starts_with(&first))
            .filter(|found| found.value().is_live())
            .take(limit)
            .map(|found| Arc::clone(found.value()))
            .collect()
    }

    /// The entries of the key `key` whose rows `node` owns.
    pub(crate) fn of_key_on(&self, key: &str, node: &NodeId) -> Vec<Arc<Entry>> {
        let first = place(key, &RowKey { owner: node.clone(), number: 0 });
        let owned = &first[..first.len() - size_of::<u64>()];
        self.entries
            .range::<[u8], _>((Bound::Included(&*first), Bound::Unbounded))
            .take_while(|found| found.key().starts_with(owned))
            .filter(|found| found.value().is_live())
            .map(|found| Arc::clone(found.value()))
            .collect()
    }

    /// Up to `limit` entries whose keys begin with `prefix`, after the row `after` of a key.
    pub(crate) fn entries(
        &self,
        prefix: &str,
        after: Option<(&str, &RowKey)>,
        limit: usize,
    ) -> Vec<Arc<Entry>> {
        let start = match after.map(|(key, at)| place(key, at)) {
            Some(after) if *after >= *prefix.as_bytes() => Bound::Excluded(after),
            Some(_) | None => Bound::Included(prefix.as_bytes().into()),
        };
        self.entries
            .range::<[u8], _>((start.as_ref().map(|at| &**at), Bound::Unbounded))
            .take_while(|found| found.key().starts_with(prefix.as_bytes()))
            .filter(|found| found.value().is_live())
            .take(limit)
            .map(|found| Arc::clone(found.value()))
            .collect()
    }

    /// How many entries the key `key` has.
    pub(crate) fn count(&self, key: &str) -> usize {
        self.keys.get(key).map_or(0, |count| count.value().load(Ordering::Relaxed))
    }

    /// How many entries all keys have that may have several.
    pub(crate) fn entry_count(&self) -> usize {
        self.entry_count.load(Ordering::Relaxed)
    }

    /// How many entries of keys that may have several each node owns.
    pub(crate) fn node_counts(&self) -> Vec<(NodeId, usize)> {
        let counts = self.on_nodes.iter();
        counts.map(|it| (it.key().clone(), it.value().load(Ordering::Relaxed))).collect()
    }

    /// How many members the group `key` has on `node`.
    pub(crate) fn count_on(&self, key: &str, node: &NodeId) -> usize {
        let found = self.groups_on.get(&*place(key, &RowKey { owner: node.clone(), number: 0 }));
        found.map_or(0, |count| count.value().load(Ordering::Relaxed))
    }

    /// Up to `limit` keys that begin with `prefix`, after `after`, with how many entries each has.
    pub(crate) fn keys(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<(Arc<str>, usize)> {
        let start = later(after.map_or(Bound::Unbounded, Bound::Excluded), prefix);
        self.keys
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|found| found.key().starts_with(prefix))
            .take(limit)
            .map(|found| (Arc::clone(found.key()), found.value().load(Ordering::Relaxed)))
            .collect()
    }

    fn is_empty(&self) -> bool {
        self.names.is_empty() && self.entries.is_empty()
    }

    fn apply(&self, change: &Change) {
        match (&change.before, &change.now) {
            (_, Some(now)) if now.space == Space::Unique => {
                // Found by name before it is found in order: who scans looks it up.
                if self.holders.insert(Arc::clone(&now.key).into(), Arc::clone(now)) {
                    self.names.insert(Arc::clone(&now.key));
                }
            }
            (Some(before), None) if before.space == Space::Unique => {
                self.names.remove(&*before.key);
                self.holders.remove(before.key.as_bytes());
            }
            (before, Some(now)) => {
                drop(self.entries.insert(place(&now.key, &now.at), Arc::clone(now)));
                if before.is_none() {
                    self.entry_count.fetch_add(1, Ordering::Relaxed);
                    let count = self.keys.get_or_insert_with(Arc::clone(&now.key), Arc::default);
                    count.value().fetch_add(1, Ordering::Relaxed);
                    one_more(&self.on_nodes, now.at.owner.clone());
                    if now.space == Space::Group {
                        one_more(&self.groups_on, group_on(now));
                    }
                }
            }
            (Some(before), None) => {
                drop(self.entries.remove(&*place(&before.key, &before.at)));
                self.entry_count.fetch_sub(1, Ordering::Relaxed);
                let count = self.keys.get(&*before.key);
                // Only one task at a time changes the counts: nobody joins in between.
                if let Some(count) = count
                    && count.value().fetch_sub(1, Ordering::Relaxed) == 1
                {
                    count.remove();
                }
                one_less(&self.on_nodes, &before.at.owner);
                if before.space == Space::Group {
                    one_less(&self.groups_on, &group_on(before));
                }
            }
            (None, None) => {}
        }
    }
}

/// Where an entry of a key that may have several stands: keys hold no zero byte, so those of one
/// key stand together and in front of all longer keys.
fn place(key: &str, at: &RowKey) -> Box<[u8]> {
    [key.as_bytes(), &[0], &at.to_bytes()].concat().into()
}

/// Under what the members of a group on one node are counted.
fn group_on(entry: &Entry) -> Box<[u8]> {
    place(&entry.key, &RowKey { owner: entry.at.owner.clone(), number: 0 })
}

fn one_more<K: Ord + Send + 'static>(counts: &SkipMap<K, AtomicUsize>, key: K) {
    counts.get_or_insert_with(key, AtomicUsize::default).value().fetch_add(1, Ordering::Relaxed);
}

/// Only one task at a time changes the counts: nobody joins between the last leave and the removal.
fn one_less<K: Ord + Send + 'static>(counts: &SkipMap<K, AtomicUsize>, key: &K) {
    if let Some(count) = counts.get(key)
        && count.value().fetch_sub(1, Ordering::Relaxed) == 1
    {
        count.remove();
    }
}

fn later<'a>(from: Bound<&'a str>, prefix: &'a str) -> Bound<&'a str> {
    match from {
        Bound::Included(key) | Bound::Excluded(key) if key >= prefix => from,
        Bound::Included(_) | Bound::Excluded(_) | Bound::Unbounded => Bound::Included(prefix),
    }
}

fn is_empty_range(from: Bound<&str>, until: Bound<&str>) -> bool {
    match (from, until) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(from), Bound::Included(until)) => from > until,
        (
            Bound::Included(from) | Bound::Excluded(from),
            Bound::Included(until) | Bound::Excluded(until),
        ) => from >= until,
    }
}

/// Every shelf.
#[derive(Debug, Default)]
pub(crate) struct Index {
    names: Scopes,
    groups: Scopes,
    presence: Scopes,
}

#[derive(Default)]
struct Scopes(SkipMap<Arc<str>, Arc<Shelf>>);

impl std::fmt::Debug for Scopes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.0.iter().map(|e| (e.key().clone(), e.value().clone()))).finish()
    }
}

impl Index {
    fn scopes(&self, space: Space) -> &Scopes {
        match space {
            Space::Unique | Space::Shared => &self.names,
            Space::Group => &self.groups,
            Space::Presence => &self.presence,
        }
    }

    /// The shelf of `scope`, made now if there is none.
    pub(crate) fn open(&self, space: Space, scope: &str) -> Arc<Shelf> {
        let scopes = &self.scopes(space).0;
        match scopes.get(scope) {
            Some(found) => Arc::clone(found.value()),
            None => Arc::clone(scopes.get_or_insert_with(scope.into(), Arc::default).value()),
        }
    }

    /// The shelf of `scope`, if there is one.
    pub(crate) fn get(&self, space: Space, scope: &str) -> Option<Arc<Shelf>> {
        Some(Arc::clone(self.scopes(space).0.get(scope)?.value()))
    }

    /// Up to `limit` scopes that begin with `prefix`, after `after`.
    pub(crate) fn list(
        &self,
        space: Space,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<(Arc<str>, Arc<Shelf>)> {
        let start = later(after.map_or(Bound::Unbounded, Bound::Excluded), prefix);
        self.scopes(space)
            .0
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(|found| found.key().starts_with(prefix))
            .take(limit)
            .map(|found| (Arc::clone(found.key()), Arc::clone(found.value())))
            .collect()
    }

    /// How many scopes there are.
    pub(crate) fn len(&self, space: Space) -> usize {
        self.scopes(space).0.len()
    }

    /// Shows a change. Called by one task at a time.
    pub(crate) fn apply(&self, change: &Change) {
        let entry = change.entry();
        let shelf = self.open(entry.space, &entry.scope);
        shelf.apply(change);
        // Topics come and go; scopes of names are few, and their handles keep the shelf.
        if entry.space == Space::Presence && shelf.is_empty() {
            self.scopes(entry.space).0.remove(&entry.scope);
        }
    }
}
