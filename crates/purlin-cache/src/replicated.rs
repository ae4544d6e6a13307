//! Replicated caches: every value on every node, in a replica set, within a byte budget.
//!
//! The set converges whatever happens; the budget is kept by removing what was written longest
//! ago. All nodes see the same ages, so they remove the same entries and not each its own.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use purlin_core::HlcTimestamp;
use purlin_replica::{Cell, Origin, ReplicaSet, StateError, WriteError};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use crate::{
    cache::{Place, RawCache},
    caches::Inner,
    entry::{Answer, Change, Entry, Held},
    error::CacheError,
    flight::Spoiled,
    stats::count,
    store::ENTRY_BYTES,
};

/// How many entries one look at the set takes.
const PAGE: usize = 1_024;

/// How often a conditional change tries again when others write the same key.
const ATTEMPTS: usize = 32;

/// What is kept in the set.
#[derive(Serialize, Deserialize)]
struct Kept {
    /// Wall time in milliseconds, because every node reads it.
    stale_at: Option<u64>,
    held: Held,
}

/// The ages and sizes of one cache's entries.
pub(crate) struct Index {
    prefix: Bytes,
    held: Mutex<Ages>,
}

#[derive(Default)]
struct Ages {
    by_age: BTreeMap<(HlcTimestamp, Bytes), u64>,
    by_key: HashMap<Bytes, HlcTimestamp>,
    bytes: u64,
}

impl Ages {
    fn set(&mut self, key: &Bytes, now: Option<(HlcTimestamp, u64)>) {
        if let Some(old) = self.by_key.remove(key) {
            self.bytes -= self.by_age.remove(&(old, key.clone())).unwrap_or(0);
        }
        if let Some((version, bytes)) = now {
            self.by_key.insert(key.clone(), version);
            self.by_age.insert((version, key.clone()), bytes);
            self.bytes += bytes;
        }
    }
}

fn weight(key: &Bytes, value_bytes: usize) -> u64 {
    (key.len() + value_bytes + ENTRY_BYTES) as u64
}

impl Index {
    /// The index of the cache `name`, of what is in the set already.
    pub(crate) fn of(name: &str, set: &ReplicaSet) -> Self {
        let index = Self { prefix: format!("{name}\0").into(), held: Mutex::default() };
        index.look_at_all(set);
        index
    }

    fn full_key(&self, key: &[u8]) -> Bytes {
        [&self.prefix[..], key].concat().into()
    }

    fn look_at_all(&self, set: &ReplicaSet) {
        let mut after: Option<Bytes> = None;
        let mut seen: Vec<(Bytes, Cell)> = Vec::new();
        loop {
            let page = set.scan(&self.prefix, after.as_deref(), PAGE);
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            seen.extend(page);
        }
        let mut held = self.held.lock();
        *held = Ages::default();
        for (key, cell) in seen {
            held.set(&key, of_cell(&key, Some(&cell)));
        }
    }

    /// Looks at one entry as it is now, under the index's lock: the last to look sees the last.
    fn look_at(&self, key: &Bytes, set: &ReplicaSet) {
        let mut held = self.held.lock();
        let cell = set.get(key);
        held.set(key, of_cell(key, cell.as_ref()));
    }

    /// The entry that should go next when `more` bytes are to come.
    fn in_excess(&self, more: u64, bytes_max: u64) -> Option<Bytes> {
        let held = self.held.lock();
        let is_over = held.bytes + more > bytes_max;
        held.by_age.first_key_value().filter(|_| is_over).map(|((_, key), _)| key.clone())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.held.lock().bytes
    }

    pub(crate) fn len(&self) -> u64 {
        self.held.lock().by_age.len() as u64
    }

    fn keys(&self) -> Vec<Bytes> {
        self.held.lock().by_age.keys().map(|(_, key)| key.clone()).collect()
    }
}

fn of_cell(key: &Bytes, cell: Option<&Cell>) -> Option<(HlcTimestamp, u64)> {
    let written = cell?.register()?;
    Some((written.at, weight(key, written.value.len())))
}

impl RawCache {
    fn index(&self) -> Option<&Index> {
        match &self.core.place {
            Place::Replicated(index) => Some(index),
            Place::Store(_) => None,
        }
    }

    /// What is kept under `key` and which version of the set that is.
    pub(crate) fn replicated(&self, key: &[u8]) -> Option<Arc<Entry>> {
        let (now, wall) = (self.node.now(), self.node.clock.wall());
        let cell = self.node.state().get(&self.index()?.full_key(key))?;
        let written = cell.register()?;
        let Ok(kept) = postcard::from_bytes::<Kept>(&written.value) else {
            count(&self.core.counts.undecodable);
            return None;
        };
        let left = |at: u64| Duration::from_millis(at.saturating_sub(wall.as_millis()));
        Some(Arc::new(Entry {
            version: written.at,
            held: kept.held,
            known_at: now,
            stale_at: kept.stale_at.map(|at| now + left(at)),
            ends_at: written.expires.map(|at| now + left(at.as_millis())),
        }))
    }

    fn kept(&self, entry: &Entry) -> Result<(Bytes, Option<Duration>), CacheError> {
        let (now, wall) = (self.node.now(), self.node.clock.wall());
        let wall_at = |left: Duration| {
            let ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            wall.as_millis().saturating_add(ms)
        };
        let kept = Kept {
            stale_at: entry.stale_at.map(|at| wall_at(at.saturating_since(now))),
            held: entry.held.clone(),
        };
        let bytes =
            postcard::to_allocvec(&kept).map_err(|error| CacheError::Encode(error.to_string()))?;
        Ok((bytes.into(), entry.ends_at.map(|at| at.saturating_since(now))))
    }

    /// Writes to the set, after making room. `expected` is the version that must be there still.
    fn put_in_set(
        &self,
        key: &[u8],
        entry: &Entry,
        expected: Option<Option<HlcTimestamp>>,
    ) -> Result<(), CacheError> {
        let Some(index) = self.index() else { return Ok(()) };
        let full = index.full_key(key);
        let (value, ttl) = self.kept(entry)?;
        self.make_room(weight(&full, value.len()));
        match expected {
            None => self.node.state().put(full.clone(), value, ttl)?,
            Some(expected) => self.node.state().put_if(full.clone(), value, ttl, expected)?,
        };
        index.look_at(&full, self.node.state());
        // Room was made for one; two writers at once may still have gone over.
        self.make_room(0);
        Ok(())
    }

    /// Removes the oldest entries until `more` bytes fit.
    fn make_room(&self, more: u64) {
        let Some(index) = self.index() else { return };
        let bytes_max = self.core.config.read().bytes_max;
        while let Some(oldest) = index.in_excess(more, bytes_max) {
            if let Err(error) = self.node.state().remove(oldest.clone()) {
                tracing::warn!(%error, cache = %self.core.name, "no room made");
                return;
            }
            count(&self.core.counts.evictions);
            index.look_at(&oldest, self.node.state());
        }
    }

    pub(crate) fn put_replicated(&self, key: &[u8], entry: &Entry) -> Result<(), CacheError> {
        self.core.flights.spoil(key);
        self.put_in_set(key, entry, None)
    }

    /// Keeps what a load found, unless the key changed since it began with version `began`.
    pub(crate) fn fill_replicated(
        &self,
        key: &[u8],
        entry: &Entry,
        began: Option<HlcTimestamp>,
        spoiled: &Spoiled,
    ) {
        if spoiled.is_spoiled() {
            return;
        }
        if let Err(error) = self.put_in_set(key, entry, Some(began)) {
            tracing::debug!(%error, cache = %self.core.name, "load not kept");
        }
    }

    pub(crate) fn remove_replicated(&self, key: &[u8]) -> Result<(), CacheError> {
        let Some(index) = self.index() else { return Ok(()) };
        self.core.flights.spoil(key);
        let full = index.full_key(key);
        self.node.state().remove(full.clone())?;
        index.look_at(&full, self.node.state());
        Ok(())
    }

    pub(crate) fn clear_replicated(&self) -> Result<(), CacheError> {
        let Some(index) = self.index() else { return Ok(()) };
        self.core.flights.spoil_all();
        for key in index.keys() {
            self.node.state().remove(key.clone())?;
            index.look_at(&key, self.node.state());
        }
        Ok(())
    }

    pub(crate) fn change_replicated(
        &self,
        key: &[u8],
        change: &Change,
    ) -> Result<Answer, CacheError> {
        self.core.flights.spoil(key);
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let existing = self.replicated(key);
            let version = self.node.stamp()?;
            let (next, answer) = change.decide(existing.as_deref(), version, self.node.now());
            let Some(entry) = next else { return Ok(answer) };
            if entry.held == Held::Removed {
                self.remove_replicated(key)?;
                return Ok(answer);
            }
            match self.put_in_set(key, &entry, Some(existing.map(|entry| entry.version))) {
                Err(CacheError::State(StateError::Write(
                    error @ WriteError::Overwritten { .. },
                ))) => {
                    last = Some(error);
                }
                Err(error) => return Err(error),
                Ok(()) => return Ok(answer),
            }
        }
        let error = last.expect("at least one attempt was overwritten");
        Err(CacheError::State(StateError::Write(error)))
    }
}

/// Follows what other nodes write: sizes, budget, loads that are the past.
pub(crate) async fn follow(inner: Weak<Inner>, mut changes: Receiver<purlin_replica::Change>) {
    loop {
        let change = tokio::time::timeout(Duration::from_secs(1), changes.recv()).await;
        let Some(inner) = inner.upgrade() else { return };
        match change {
            Ok(Ok(change)) => {
                let Some(end) = change.key.iter().position(|&byte| byte == 0) else { continue };
                let Ok(name) = std::str::from_utf8(&change.key[..end]) else { continue };
                let Some(cache) = cache(&inner, name) else { continue };
                if matches!(change.origin, Origin::Told(_)) {
                    cache.core.flights.spoil(&change.key[end + 1..]);
                }
                if let Some(index) = cache.index() {
                    index.look_at(&change.key, inner.state());
                    cache.make_room(0);
                }
            }
            Ok(Err(RecvError::Lagged(_))) => {
                let names: Vec<String> = inner.open.read().keys().cloned().collect();
                for cache in names.iter().filter_map(|name| cache(&inner, name)) {
                    if let Some(index) = cache.index() {
                        cache.core.flights.spoil_all();
                        index.look_at_all(inner.state());
                        cache.make_room(0);
                    }
                }
            }
            Ok(Err(RecvError::Closed)) => return,
            Err(_quiet) => {}
        }
    }
}

fn cache(inner: &Arc<Inner>, name: &str) -> Option<RawCache> {
    let core = inner.open.read().get(name).cloned()?;
    Some(RawCache::new(Arc::clone(inner), core))
}
