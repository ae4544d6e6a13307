//! The entries of one cache on one node, within an exact byte budget.
//!
//! The order in which entries leave is W-TinyLFU's (moka): what is used least, remembered over
//! more keys than are held. moka settles its accounts in the background; here a write that brings
//! the bytes over the budget settles them before it returns.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use moka::{Expiry, notification::RemovalCause, ops::compute::Op};
use parking_lot::RwLock;
use purlin_core::{Clock, HlcTimestamp, Instant};

use crate::{
    entry::Entry,
    events::CacheEvent,
    stats::{Counts, count},
};

/// What an entry costs besides its key and value: the entry, its place in the table, its queues
/// and timers (estimate from the sizes of moka's nodes).
pub const ENTRY_BYTES: usize = 256;

/// How often moka is asked to evict before entries are removed as they come.
const SETTLE_TRIES: u32 = 2;

type Entries = moka::sync::Cache<Bytes, Arc<Entry>>;

/// Entries, their budget, and a version up to which everything was cleared.
pub struct Store {
    entries: Entries,
    clock: Arc<dyn Clock>,
    bytes_max: u64,
    bytes: Arc<AtomicU64>,
    counts: Arc<Counts>,
    cleared: RwLock<Option<Cleared>>,
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Store({} of {} bytes)", self.bytes(), self.bytes_max)
    }
}

/// Everything up to here was cleared.
#[derive(Debug, Clone, Copy)]
struct Cleared {
    version: HlcTimestamp,
    at: Instant,
}

fn weight(key: &Bytes, entry: &Entry) -> u32 {
    let value = entry.value().map_or(0, Bytes::len);
    u32::try_from(key.len() + value + ENTRY_BYTES).unwrap_or(u32::MAX)
}

/// Lets moka drop what has ended. Readers look at the entry's own times.
struct Ends(Arc<dyn Clock>);

impl Ends {
    fn of(&self, entry: &Entry) -> Option<Duration> {
        entry.ends_at.map(|at| at.saturating_since(self.0.now()))
    }
}

impl Expiry<Bytes, Arc<Entry>> for Ends {
    fn expire_after_create(
        &self,
        _key: &Bytes,
        entry: &Arc<Entry>,
        _at: std::time::Instant,
    ) -> Option<Duration> {
        self.of(entry)
    }

    fn expire_after_update(
        &self,
        _key: &Bytes,
        entry: &Arc<Entry>,
        _at: std::time::Instant,
        _left: Option<Duration>,
    ) -> Option<Duration> {
        self.of(entry)
    }
}

impl Store {
    pub(crate) fn new(bytes_max: u64, clock: Arc<dyn Clock>, counts: Arc<Counts>) -> Self {
        let bytes = Arc::new(AtomicU64::new(0));
        let (held, counted) = (Arc::clone(&bytes), Arc::clone(&counts));
        let entries = Entries::builder()
            .max_capacity(bytes_max)
            .weigher(|key: &Bytes, entry: &Arc<Entry>| weight(key, entry))
            .expire_after(Ends(Arc::clone(&clock)))
            .eviction_listener(move |key: Arc<Bytes>, entry: Arc<Entry>, cause| {
                held.fetch_sub(u64::from(weight(&key, &entry)), Ordering::Relaxed);
                match cause {
                    RemovalCause::Size => {
                        count(&counted.evictions);
                        counted.events.tell(|| CacheEvent::Evicted((*key).clone()));
                    }
                    RemovalCause::Expired => {
                        count(&counted.expirations);
                        counted.events.tell(|| CacheEvent::Expired((*key).clone()));
                    }
                    RemovalCause::Explicit | RemovalCause::Replaced => {}
                }
            })
            .build();
        Self { entries, clock, bytes_max, bytes, counts, cleared: RwLock::new(None) }
    }

    /// What is kept under `key`, stale or a memory of a removal included, if it has not ended.
    #[must_use]
    pub fn get(&self, key: &[u8], now: Instant) -> Option<Arc<Entry>> {
        self.entries.get(key).filter(|entry| self.counts_at(entry, now))
    }

    fn counts_at(&self, entry: &Entry, now: Instant) -> bool {
        entry.is_live(now) && self.cleared.read().is_none_or(|floor| entry.version > floor.version)
    }

    /// Puts `entry` in the place of whatever is there.
    pub fn set(&self, key: Bytes, entry: Entry) {
        self.update(key, |_| (Some(entry), ()));
    }

    /// Takes `entry` in if it is later than what is there. Otherwise gives the later version.
    pub fn merge(&self, key: Bytes, entry: Entry) -> Result<(), HlcTimestamp> {
        if let Some(floor) = *self.cleared.read()
            && entry.version <= floor.version
        {
            return Err(floor.version);
        }
        self.update(key, |existing| match existing {
            Some(there) if there.version > entry.version => (None, Err(there.version)),
            Some(there) if there.version == entry.version => (None, Ok(())),
            Some(_) | None => (Some(entry), Ok(())),
        })
    }

    /// Takes in what a load found, unless something happened to the key since the load began:
    /// then what it found may be the past. Goes by the time here, so that no clock elsewhere can
    /// be wrong.
    pub fn fill(&self, key: Bytes, entry: Entry) -> bool {
        if self.cleared.read().is_some_and(|floor| entry.known_at <= floor.at) {
            return false;
        }
        self.update(key, |existing| match existing {
            Some(there) if there.known_at >= entry.known_at || there.version >= entry.version => {
                (None, false)
            }
            Some(_) | None => (Some(entry), true),
        })
    }

    /// As [`Store::fill`], for a load on another node: goes by the version that its reader saw
    /// before it began, because its times mean nothing here.
    pub fn fill_from_elsewhere(
        &self,
        key: Bytes,
        entry: Entry,
        seen: Option<HlcTimestamp>,
        began: HlcTimestamp,
    ) -> bool {
        if self.cleared.read().is_some_and(|floor| began <= floor.version) {
            return false;
        }
        self.update(key, |existing| match existing {
            Some(there) if Some(there.version) > seen || there.version >= entry.version => {
                (None, false)
            }
            Some(_) | None => (Some(entry), true),
        })
    }

    /// Replaces what is under `key` by what `decide` says, nobody else changing it meanwhile.
    pub fn update<R>(
        &self,
        key: Bytes,
        decide: impl FnOnce(Option<&Entry>) -> (Option<Entry>, R),
    ) -> R {
        let now = self.clock.now();
        // A share of the message it came in would keep the whole message alive.
        let key = Bytes::copy_from_slice(&key);
        let weighed = key.clone();
        let mut result = None;
        // Consumed: what it returns tells again what `decide` knew.
        drop(self.entries.entry(key).and_compute_with(|existing| {
            let existing = existing.map(moka::Entry::into_value);
            let counting = existing.as_deref().filter(|entry| self.counts_at(entry, now));
            let (next, told) = decide(counting);
            result = Some(told);
            match next {
                Some(entry) => {
                    let added = u64::from(weight(&weighed, &entry));
                    self.bytes.fetch_add(added, Ordering::Relaxed);
                    Op::Put(Arc::new(entry))
                }
                None => Op::Nop,
            }
        }));
        self.settle();
        result.expect("moka runs the closure exactly once")
    }

    /// Forgets `key` if it still has `version`.
    pub fn forget(&self, key: &Bytes, version: HlcTimestamp) {
        drop(self.entries.entry_by_ref(key).and_compute_with(|existing| match existing {
            Some(entry) if entry.value().version == version => Op::Remove,
            Some(_) | None => Op::Nop,
        }));
    }

    /// Forgets `key`, whatever its version.
    pub fn remove(&self, key: &[u8]) {
        self.entries.invalidate(key);
    }

    /// Forgets everything that is here now.
    pub fn remove_all(&self) {
        for (key, _) in &self.entries {
            self.entries.invalidate(&*key);
        }
        self.entries.run_pending_tasks();
    }

    /// Forgets everything up to `version`, now and whatever comes later.
    pub fn clear(&self, version: HlcTimestamp) {
        {
            let mut cleared = self.cleared.write();
            let version = cleared.map_or(version, |old| old.version.max(version));
            *cleared = Some(Cleared { version, at: self.clock.now() });
        }
        for (key, entry) in &self.entries {
            if entry.version <= version {
                self.forget(&key, entry.version);
            }
        }
        self.entries.run_pending_tasks();
    }

    /// Every entry that counts now; a moving picture.
    pub fn iter(&self) -> impl Iterator<Item = (Bytes, Arc<Entry>)> + '_ {
        let now = self.clock.now();
        self.entries
            .iter()
            .filter(move |(_, entry)| self.counts_at(entry, now))
            .map(|(key, entry)| ((*key).clone(), entry))
    }

    /// The bytes held. At most the budget when no write is under way.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// How many entries are held; those that ended included until they are swept.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.entries.run_pending_tasks();
        self.entries.entry_count()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn settle(&self) {
        let mut tries = 0;
        while self.bytes() > self.bytes_max && tries < SETTLE_TRIES {
            let before = self.bytes();
            self.entries.run_pending_tasks();
            // One run evicts a bounded batch; go on as long as it helps.
            tries = if self.bytes() < before { 0 } else { tries + 1 };
        }
        // moka passes over entries it has work noted for. The budget is exact all the same.
        for (key, entry) in &self.entries {
            if self.bytes() <= self.bytes_max {
                break;
            }
            self.forget(&key, entry.version);
            count(&self.counts.evictions);
            self.counts.events.tell(|| CacheEvent::Evicted((*key).clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use purlin_core::{Hlc, Incarnation, NodeId, NodeName, SystemClock};

    use super::*;
    use crate::entry::{Held, Life};

    struct Scene {
        store: Store,
        counts: Arc<Counts>,
        clock: Arc<dyn Clock>,
        hlc: Hlc,
    }

    fn scene(bytes_max: u64) -> Scene {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let counts = Arc::new(Counts::default());
        let store = Store::new(bytes_max, Arc::clone(&clock), Arc::clone(&counts));
        let node = NodeId::new(NodeName::parse("n1").unwrap(), Incarnation(1));
        Scene { store, counts, clock, hlc: Hlc::new(&node) }
    }

    impl Scene {
        fn entry(&self, bytes: usize, ttl: Option<Duration>) -> Entry {
            let version = self.hlc.now(self.clock.wall()).unwrap();
            let held = Held::Value(Bytes::from(vec![7; bytes]));
            Entry::new(version, held, self.clock.now(), Life { ttl, stale_for: Duration::ZERO })
        }

        fn has(&self, key: &str) -> bool {
            self.store.get(key.as_bytes(), self.clock.now()).is_some()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// After every write the bytes are within the budget, and they are the sum of what is held.
        #[test]
        fn the_budget_holds_after_every_write_and_the_sum_is_exact(
            writes in proptest::collection::vec((0..60_u8, 0..3_000_usize, 0..5_u8), 1..300),
        ) {
            let scene = scene(20_000);
            for (key, bytes, what) in writes {
                let key = Bytes::from(format!("k{key}"));
                match what {
                    0 => {
                        if let Some(entry) = scene.store.get(&key, scene.clock.now()) {
                            scene.store.forget(&key, entry.version);
                        }
                    }
                    1 => drop(scene.store.merge(key, scene.entry(bytes, None))),
                    _ => scene.store.set(key, scene.entry(bytes, None)),
                }
                prop_assert!(scene.store.bytes() <= 20_000, "{:?}", scene.store);
            }
            scene.store.entries.run_pending_tasks();
            let sum: u64 = scene.store.iter().map(|(k, e)| u64::from(weight(&k, &e))).sum();
            prop_assert_eq!(scene.store.bytes(), sum);
        }
    }

    #[test]
    fn what_is_used_often_stays_when_a_flood_comes_through() {
        let scene = scene(100_000);
        let popular = Bytes::from_static(b"popular");
        scene.store.set(popular.clone(), scene.entry(100, None));
        for n in 0..5_000 {
            for _ in 0..3 {
                drop(scene.store.get(&popular, scene.clock.now()));
            }
            scene.store.set(Bytes::from(format!("flood:{n}")), scene.entry(100, None));
        }
        assert!(scene.has("popular"));
        assert!(scene.counts.evictions.load(Ordering::Relaxed) > 4_000);
    }

    #[test]
    fn what_a_load_found_does_not_undo_what_happened_while_it_ran() {
        let scene = scene(100_000);
        let began = scene.entry(1, None);
        let key = Bytes::from_static(b"k");
        let removed = Entry::removed(scene.entry(1, None).version, scene.clock.now());
        scene.store.set(key.clone(), removed);
        let found = Entry { version: scene.entry(1, None).version, ..began.clone() };
        assert!(!scene.store.fill(key.clone(), found), "it was removed meanwhile");
        assert!(scene.store.fill(key, scene.entry(1, None)), "a load that began later counts");
        scene.store.clear(scene.entry(1, None).version);
        let found = Entry { version: scene.entry(1, None).version, ..began };
        assert!(!scene.store.fill(Bytes::from_static(b"j"), found), "all was cleared meanwhile");
    }

    #[test]
    fn clearing_forgets_all_and_refuses_what_is_older() {
        let scene = scene(100_000);
        let old = scene.entry(10, None);
        for n in 0..50 {
            scene.store.set(Bytes::from(format!("k{n}")), scene.entry(10, None));
        }
        scene.store.clear(scene.entry(1, None).version);
        assert_eq!((scene.store.bytes(), scene.store.len()), (0, 0));
        assert!(scene.store.merge(Bytes::from_static(b"k1"), old).is_err());
        assert!(scene.store.merge(Bytes::from_static(b"k1"), scene.entry(10, None)).is_ok());
        assert!(scene.has("k1"));
    }
}
