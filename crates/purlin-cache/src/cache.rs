//! One cache as programs use it: typed, and as bytes.

use std::{
    error::Error,
    fmt,
    marker::PhantomData,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::RwLock;
use purlin_cluster::Selector;
use purlin_core::{HlcTimestamp, Instant, Outcome};
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::broadcast::Receiver;

use crate::{
    caches::Inner,
    config::{CacheConfig, KEY_BYTES_MAX, Kind},
    copies::Copies,
    entry::{Answer, Change, Entry, Held, Life, number},
    error::{CacheError, LoadError},
    events::CacheEvent,
    flight::{Flights, Landed, Ticket},
    invalidation::Invalidation,
    partitioned::LaterOne,
    replicated::Index,
    stats::{CacheStats, Counts, count},
    store::Store,
    wire::{CLEAR, How, Spec},
};

/// What all handles of one cache share.
pub(crate) struct Core {
    pub(crate) name: String,
    pub(crate) config: RwLock<CacheConfig>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) place: Place,
    pub(crate) flights: Arc<Flights>,
    /// Whether this program opened it, and not only another node.
    pub(crate) is_ours: AtomicBool,
    /// Partitioned: copies of what other nodes hold.
    pub(crate) copies: OnceLock<Copies>,
    /// Partitioned: somebody keeps copies, and is told of writes.
    pub(crate) is_copied: AtomicBool,
}

/// Where a cache's entries are on this node.
pub(crate) enum Place {
    Store(Store),
    Replicated(Index),
}

impl Core {
    pub(crate) fn new(
        name: &str,
        config: CacheConfig,
        counts: Arc<Counts>,
        place: Place,
        is_ours: bool,
    ) -> Self {
        Self {
            name: name.to_owned(),
            config: RwLock::new(config),
            counts,
            place,
            flights: Arc::default(),
            is_ours: AtomicBool::new(is_ours),
            copies: OnceLock::new(),
            is_copied: AtomicBool::new(false),
        }
    }

    pub(crate) fn stats(&self) -> CacheStats {
        let config = self.config.read();
        let mut stats = self.counts.stats(&self.name, config.kind);
        stats.bytes_max = config.bytes_max;
        stats.near_bytes = self.copies.get().map_or(0, Copies::bytes);
        (stats.entries, stats.bytes) = match &self.place {
            Place::Store(store) => (store.len(), store.bytes()),
            Place::Replicated(index) => (index.len(), index.bytes()),
        };
        stats
    }
}

/// How long a value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ttl {
    /// As [`CacheConfig::ttl`] says, shortened at random.
    #[default]
    Usual,
    /// Exactly so long.
    For(Duration),
    /// Until it is pushed out or removed.
    Unlimited,
}

impl From<Duration> for Ttl {
    fn from(ttl: Duration) -> Self {
        Self::For(ttl)
    }
}

/// A cache of bytes. Clones are the same cache.
///
/// For those who encode themselves, like the HTTP API; programs use [`Cache`].
#[derive(Clone)]
pub struct RawCache {
    pub(crate) node: Arc<Inner>,
    pub(crate) core: Arc<Core>,
}

impl fmt::Debug for RawCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} cache {}", self.kind(), self.name())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What becomes of an entry, and what the caller is told.
type Decided = (Option<Entry>, Answer);

/// What a reader finds.
enum Found {
    Fresh(Option<Bytes>),
    Stale(Bytes),
    Nothing,
}

impl RawCache {
    pub(crate) fn new(node: Arc<Inner>, core: Arc<Core>) -> Self {
        Self { node, core }
    }

    pub(crate) fn store(&self) -> Option<&Store> {
        match &self.core.place {
            Place::Store(store) => Some(store),
            Place::Replicated(_) => None,
        }
    }

    /// The same cache with values of type `V`.
    #[must_use]
    pub fn typed<V>(self) -> Cache<V> {
        Cache { raw: self, values: PhantomData }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Where its values are.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.core.config.read().kind
    }

    /// What it did and holds on this node.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.core.stats()
    }

    fn key(key: &[u8]) -> Result<Bytes, CacheError> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(CacheError::Key(key.len()));
        }
        Ok(Bytes::copy_from_slice(key))
    }

    fn life(&self, ttl: Ttl) -> Life {
        let config = self.core.config.read();
        let ttl = match ttl {
            Ttl::Usual => config.ttl.map(|ttl| {
                let most = ttl * u32::from(config.ttl_jitter_percent) / 100;
                ttl - self.node.rng.lock().jitter(most)
            }),
            Ttl::For(ttl) => Some(ttl),
            Ttl::Unlimited => None,
        };
        Life { ttl, stale_for: config.stale_for }
    }

    fn entry(&self, value: Bytes, ttl: Ttl) -> Result<Entry, CacheError> {
        let max = self.core.config.read().value_bytes_max;
        if value.len() > max {
            count(&self.core.counts.refused_too_large);
            return Err(CacheError::TooLarge { bytes: value.len(), max });
        }
        let held = Held::Value(value);
        Ok(Entry::new(self.node.stamp()?, held, self.node.now(), self.life(ttl)))
    }

    /// What is kept under `key`: stale, known to be absent or removed included.
    async fn look(&self, key: &Bytes) -> Result<Option<Arc<Entry>>, CacheError> {
        let found = match self.kind() {
            Kind::Local | Kind::Near | Kind::Replicated => self.look_here(key),
            Kind::Partitioned => self.find(key).await?,
        };
        Ok(found.filter(|entry| entry.is_live(self.node.now())))
    }

    /// What this node knows by itself.
    fn look_here(&self, key: &[u8]) -> Option<Arc<Entry>> {
        let now = self.node.now();
        match &self.core.place {
            Place::Replicated(_) => self.replicated(key),
            Place::Store(store) => {
                let entry = store.get(key, now)?;
                let (kind, lease) = {
                    let config = self.core.config.read();
                    (config.kind, config.lease)
                };
                if kind == Kind::Near && !self.node.neighbours.covers(entry.known_at, lease, now) {
                    count(&self.core.counts.distrusted);
                    return None;
                }
                Some(entry)
            }
        }
    }

    fn judge(&self, entry: Option<&Entry>) -> Found {
        let now = self.node.now();
        match entry {
            Some(entry) => match (&entry.held, entry.is_fresh(now)) {
                (Held::Value(value), true) => Found::Fresh(Some(value.clone())),
                (Held::Absent, true) => Found::Fresh(None),
                (Held::Value(value), false) => Found::Stale(value.clone()),
                (Held::Absent, false) | (Held::Removed, _) => Found::Nothing,
            },
            None => Found::Nothing,
        }
    }

    /// The value under `key`, if it is within its TTL.
    ///
    /// # Errors
    /// [`CacheError::Key`]; for a partitioned cache [`CacheError::Unreachable`] when none of those
    /// who should hold it answered.
    ///
    /// # Guarantees
    /// See the table of the crate for how stale it may be.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, CacheError> {
        let key = Self::key(key.as_ref())?;
        let entry = self.look(&key).await?;
        let value = match self.judge(entry.as_deref()) {
            Found::Fresh(value) => value,
            Found::Stale(_) | Found::Nothing => None,
        };
        self.saw(&key, value.is_some());
        Ok(value)
    }

    /// Counts a read, and tells of it.
    fn saw(&self, key: &Bytes, is_hit: bool) {
        let counts = &self.core.counts;
        let counter = if is_hit { &counts.hits } else { &counts.misses };
        counts.heat.note(counter.fetch_add(1, Ordering::Relaxed), key);
        counts.events.tell(|| {
            let key = key.clone();
            if is_hit { CacheEvent::Hit(key) } else { CacheEvent::Miss(key) }
        });
    }

    /// What happens from now on: reads through this node, and entries this node pushes out or
    /// sweeps. A watcher more than [`EVENTS_KEPT`](crate::events::EVENTS_KEPT) behind is told how
    /// many it missed.
    #[must_use]
    pub fn watch(&self) -> Receiver<CacheEvent> {
        self.core.counts.events.watch()
    }

    /// Several at once, in the order of the keys; each as [`RawCache::get`].
    ///
    /// # Errors
    /// The first error among them.
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn get_all<K: AsRef<[u8]>>(
        &self,
        keys: &[K],
    ) -> Result<Vec<Option<Bytes>>, CacheError> {
        join_all(keys.iter().map(|key| self.get(key))).await.into_iter().collect()
    }

    /// How long the value under `key` still counts: `Some(None)` for no end, `None` for no value.
    ///
    /// # Errors
    /// As [`RawCache::get`].
    ///
    /// # Cancel safety
    /// Safe.
    pub async fn ttl(&self, key: impl AsRef<[u8]>) -> Result<Option<Option<Duration>>, CacheError> {
        let entry = self.look(&Self::key(key.as_ref())?).await?;
        let now = self.node.now();
        let present = entry.filter(|entry| entry.has_fresh_value(now));
        Ok(present.map(|entry| entry.stale_at.map(|at| at.saturating_since(now))))
    }

    /// Writes `value`.
    ///
    /// # Units and limits
    /// At most [`CacheConfig::value_bytes_max`]. What is used least makes room.
    ///
    /// # Errors
    /// [`CacheError`]; [`CacheError::outcome`] says whether it may have been done. Doing it again
    /// is always safe.
    ///
    /// # Guarantees
    /// Healthy: on every node that should hold it when this returns; the others stop giving out an
    /// older one. Partitioned: each side goes on; after the heal the later write holds, by hybrid
    /// time. Restarted: see [`Kind`].
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown.
    pub async fn put(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        ttl: impl Into<Ttl>,
    ) -> Result<(), CacheError> {
        let key = Self::key(key.as_ref())?;
        let entry = self.entry(value.into(), ttl.into())?;
        count(&self.core.counts.writes);
        self.write(key, entry).await
    }

    async fn write(&self, key: Bytes, entry: Entry) -> Result<(), CacheError> {
        match (self.kind(), self.store()) {
            (Kind::Partitioned, _) => self.spread(&key, entry, LaterOne::IsReplaced).await,
            (Kind::Near, Some(store)) => {
                self.core.flights.spoil(&key);
                self.tell_of(Some(&key), &entry)?;
                store.set(key, entry);
                Ok(())
            }
            (_, Some(store)) => {
                self.core.flights.spoil(&key);
                store.set(key, entry);
                Ok(())
            }
            (_, None) => self.put_replicated(&key, &entry),
        }
    }

    fn tell_of(&self, key: Option<&Bytes>, entry: &Entry) -> Result<(), CacheError> {
        let cache = self.core.name.clone();
        self.node.tell(Invalidation { cache, key: key.cloned(), version: entry.version })
    }

    /// Writes only where there is no value; whether it did.
    ///
    /// # Errors
    /// As [`RawCache::put`].
    ///
    /// # Guarantees
    /// Decided on one node: for a partitioned cache by the key's first owner, otherwise by this
    /// one. Two nodes may both succeed on a near or replicated cache, on the sides of a cut, and
    /// while the members change: until all have heard of it, two nodes take themselves for the
    /// first owner.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown.
    pub async fn put_new(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        ttl: impl Into<Ttl>,
    ) -> Result<bool, CacheError> {
        let entry = self.entry(value.into(), ttl.into())?;
        count(&self.core.counts.writes);
        let change = Change::PutNew(entry.pack(self.node.now()));
        Ok(self.change(key.as_ref(), change).await?.done)
    }

    /// Writes only where there is a value; whether it did.
    ///
    /// # Errors
    /// As [`RawCache::put`]. Guarantees and cancel safety as [`RawCache::put_new`].
    pub async fn replace(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
        ttl: impl Into<Ttl>,
    ) -> Result<bool, CacheError> {
        let entry = self.entry(value.into(), ttl.into())?;
        count(&self.core.counts.writes);
        let change = Change::Replace(entry.pack(self.node.now()));
        Ok(self.change(key.as_ref(), change).await?.done)
    }

    /// Removes the value and gives it.
    ///
    /// # Errors
    /// As [`RawCache::put`]. Guarantees and cancel safety as [`RawCache::put_new`].
    pub async fn take(&self, key: impl AsRef<[u8]>) -> Result<Option<Bytes>, CacheError> {
        count(&self.core.counts.removes);
        Ok(self.change(key.as_ref(), Change::Take).await?.value)
    }

    /// Gives the value under `key` a new TTL from now; whether there is one.
    ///
    /// # Errors
    /// As [`RawCache::put`]. Guarantees and cancel safety as [`RawCache::put_new`].
    pub async fn touch(
        &self,
        key: impl AsRef<[u8]>,
        ttl: impl Into<Ttl>,
    ) -> Result<bool, CacheError> {
        let life = self.life(ttl.into());
        let (ttl_ms, stale_ms) = (life.ttl.map(millis), millis(life.stale_for));
        let change = Change::Touch { ttl_ms, stale_ms };
        Ok(self.change(key.as_ref(), change).await?.done)
    }

    /// Adds `by` to the number under `key`, decimal text, and gives the sum. Nothing there is 0, and
    /// then `ttl` counts from now; a number that is there keeps its own.
    ///
    /// # Errors
    /// [`CacheError::NotANumber`], [`CacheError::Overflow`]; otherwise as [`RawCache::put`], but
    /// after [`Outcome::Unknown`] doing it again may count twice. Guarantees and cancel safety as
    /// [`RawCache::put_new`].
    pub async fn incr(
        &self,
        key: impl AsRef<[u8]>,
        by: i64,
        ttl: impl Into<Ttl>,
    ) -> Result<i64, CacheError> {
        let life = self.life(ttl.into());
        count(&self.core.counts.writes);
        let (ttl_ms, stale_ms) = (life.ttl.map(millis), millis(life.stale_for));
        let answer = self.change(key.as_ref(), Change::Add { by, ttl_ms, stale_ms }).await?;
        let value = answer.value.unwrap_or_default();
        match (number(&value), answer.done) {
            (Some(sum), true) => Ok(sum),
            (Some(number), false) => Err(CacheError::Overflow { number, by }),
            (None, _) => Err(CacheError::NotANumber { bytes: value.len() }),
        }
    }

    /// What becomes of `existing`, twice: for the store, and with the answer for the caller. To be
    /// called while nobody else changes the key: of two changes the second must have the later
    /// version, or the first would replace it elsewhere.
    pub(crate) fn decide_now(
        &self,
        change: &Change,
        existing: Option<&Entry>,
        now: Instant,
    ) -> (Option<Entry>, Result<Decided, CacheError>) {
        match self.node.stamp() {
            Ok(version) => {
                let (next, answer) = change.decide(existing, version, now);
                (next.clone(), Ok((next, answer)))
            }
            Err(error) => (None, Err(error)),
        }
    }

    async fn change(&self, key: &[u8], change: Change) -> Result<Answer, CacheError> {
        let key = Self::key(key)?;
        let (kind, store) = (self.kind(), self.store());
        let Some(store) = store else { return self.change_replicated(&key, &change) };
        if kind == Kind::Partitioned {
            return self.change_at_owner(&key, change).await;
        }
        let (now, lease) = (self.node.now(), self.core.config.read().lease);
        if kind == Kind::Near {
            self.node.neighbours.may_write()?;
        }
        let trusts = |entry: &&Entry| {
            kind != Kind::Near || self.node.neighbours.covers(entry.known_at, lease, now)
        };
        let is_touch = matches!(change, Change::Touch { .. });
        let (changed, answer) = store.update(key.clone(), |existing| {
            self.decide_now(&change, existing.filter(trusts), now)
        })?;
        if changed.is_some() {
            self.core.flights.spoil(&key);
        }
        // A longer life here is nobody else's concern.
        if kind == Kind::Near
            && !is_touch
            && let Some(entry) = changed
        {
            self.tell_of(Some(&key), &entry)?;
        }
        Ok(answer)
    }

    /// Removes whatever is under `key`.
    ///
    /// # Errors
    /// As [`RawCache::put`].
    ///
    /// # Guarantees
    /// A load that is under way does not bring it back, nor does an older copy on its way.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown.
    pub async fn remove(&self, key: impl AsRef<[u8]>) -> Result<(), CacheError> {
        let key = Self::key(key.as_ref())?;
        count(&self.core.counts.removes);
        if self.store().is_none() {
            return self.remove_replicated(&key);
        }
        let removed = Entry::removed(self.node.stamp()?, self.node.now());
        self.write(key, removed).await
    }

    /// Removes everything, on all nodes that can be reached (a local cache: here).
    ///
    /// # Errors
    /// [`CacheError::Unknown`] when a reachable node did not confirm.
    ///
    /// # Cancel safety
    /// Dropping the future leaves it unknown.
    pub async fn clear(&self) -> Result<(), CacheError> {
        count(&self.core.counts.removes);
        let Some(store) = self.store() else { return self.clear_replicated() };
        let version = self.node.stamp()?;
        match self.kind() {
            Kind::Near => {
                self.tell_of(None, &Entry::removed(version, self.node.now()))?;
                store.clear(version);
                Ok(())
            }
            Kind::Partitioned => self.clear_everywhere().await,
            Kind::Local | Kind::Replicated => {
                store.clear(version);
                Ok(())
            }
        }
    }

    /// Forgets what is here now.
    pub(crate) fn clear_here(&self) -> Result<(), CacheError> {
        let version = self.node.stamp()?;
        if let Some(copies) = self.core.copies.get() {
            copies.change_all();
        }
        let Some(store) = self.store() else { return Ok(()) };
        self.write_telling(None, version, || (store.clear(version), true))
    }

    /// Changes what is held here of a partitioned cache, and tells those who keep copies if there
    /// are any and `change` says that it was news.
    pub(crate) fn write_telling<R>(
        &self,
        key: Option<&Bytes>,
        version: HlcTimestamp,
        change: impl FnOnce() -> (R, bool),
    ) -> Result<R, CacheError> {
        if !self.core.is_copied.load(Ordering::Relaxed) {
            return Ok(change().0);
        }
        let cache = self.core.name.clone();
        self.node.write_and_tell(Invalidation { cache, key: key.cloned(), version }, change)
    }

    async fn clear_everywhere(&self) -> Result<(), CacheError> {
        self.clear_here()?;
        let Some(peers) = self.node.peers() else { return Ok(()) };
        let (spec, within) = {
            let config = self.core.config.read();
            (Spec::of(&self.core.name, &config), config.within)
        };
        let message = (spec, self.node.stamp()?);
        let ends = peers.rpc.multi_call(&Selector::all(), CLEAR, &message, within).await;
        let wanted = ends.len() + 1;
        let failed: Vec<String> = ends
            .iter()
            .filter_map(|(node, end)| end.as_ref().err().map(|error| format!("{node}: {error}")))
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        count(&self.core.counts.writes_incomplete);
        let (copies, why) = (wanted - failed.len(), failed.join("; "));
        Err(CacheError::Unknown { copies, wanted, why })
    }

    /// The value under `key`; if there is none, what `load` finds, kept from then on.
    ///
    /// On this node one load per key runs at a time, in a task of its own: who comes meanwhile
    /// waits for it and gets the same end, error and panic included. A value past its TTL but
    /// within [`CacheConfig::stale_for`] is returned at once while it is loaded anew.
    ///
    /// # Units and limits
    /// A load may take [`CacheConfig::load_within`]. A value over the limit is an error for all
    /// who wait.
    ///
    /// # Errors
    /// [`LoadError`]. That the cache cannot be reached is none: then it is loaded and counted.
    ///
    /// # Guarantees
    /// What was written or removed while the load ran is not overwritten by what it found.
    ///
    /// # Cancel safety
    /// Dropping the future does not stop the load; the others get its end.
    pub async fn get_or_load<F, Fut, E>(
        &self,
        key: impl AsRef<[u8]>,
        load: F,
    ) -> Result<Option<Bytes>, LoadError>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<Bytes>, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
    {
        let key = Self::key(key.as_ref())?;
        let entry = match self.look(&key).await {
            Ok(entry) => entry,
            Err(error) => {
                tracing::debug!(%error, cache = %self.core.name, "not readable; loading");
                None
            }
        };
        let counts = &self.core.counts;
        match self.judge(entry.as_deref()) {
            Found::Fresh(value) => {
                self.saw(&key, true);
                Ok(value)
            }
            Found::Stale(value) => {
                count(&counts.stale_hits);
                drop(self.fly(&key, entry.as_deref(), load));
                Ok(Some(value))
            }
            Found::Nothing => {
                self.saw(&key, false);
                let ticket = self.fly(&key, entry.as_deref(), load);
                if !ticket.is_first {
                    count(&counts.loads_shared);
                }
                ticket.wait().await
            }
        }
    }

    fn fly<F, Fut, E>(&self, key: &Bytes, seen: Option<&Entry>, load: F) -> Ticket
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<Bytes>, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
    {
        let (cache, for_key) = (self.clone(), key.clone());
        let seen = seen.map(|entry| entry.version);
        self.core.flights.join(key, move |spoiled| {
            // Read before the loader can: what changes from here on is later than what it finds.
            let known_at = cache.node.now();
            let here = cache.look_here(&for_key);
            let began = cache.node.stamp();
            let in_set = cache.replicated_version(&for_key);
            async move {
                // Somebody's load may have ended between our look and our flight.
                if let Found::Fresh(value) = cache.judge(here.as_deref()) {
                    return Ok(value);
                }
                count(&cache.core.counts.loads);
                let within = cache.core.config.read().load_within;
                let end = cache.run(load, within).await;
                if end.is_err() {
                    count(&cache.core.counts.load_failures);
                }
                let found = end?;
                let (held, ttl) = match (&found, cache.core.config.read().absent_for) {
                    (Some(value), _) => (Held::Value(value.clone()), Ttl::Usual),
                    (None, Some(absent_for)) => (Held::Absent, Ttl::For(absent_for)),
                    (None, None) => return Ok(None),
                };
                let (Ok(began), Ok(version)) = (began, cache.node.stamp()) else {
                    return Ok(found);
                };
                let now = cache.node.now();
                let entry = Entry { known_at, ..Entry::new(version, held, now, cache.life(ttl)) };
                match (cache.kind(), cache.store()) {
                    (Kind::Partitioned, _) => {
                        cache.fill_owners(&for_key, &entry, How::IfStill { seen, began }).await;
                    }
                    (_, Some(_)) if spoiled.is_spoiled() => {}
                    (_, Some(store)) => drop(store.fill(for_key, entry)),
                    (_, None) => cache.fill_replicated(&for_key, &entry, in_set, &spoiled),
                }
                Ok(found)
            }
        })
    }

    fn replicated_version(&self, key: &[u8]) -> Option<HlcTimestamp> {
        self.store().is_none().then(|| self.replicated(key)).flatten().map(|entry| entry.version)
    }

    async fn run<F, Fut, E>(&self, load: F, within: Duration) -> Landed
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<Bytes>, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
    {
        let found = tokio::time::timeout(within, load()).await;
        let found = found.map_err(|_late| LoadError::Deadline(within))?;
        let found = found.map_err(LoadError::failed)?;
        let max = self.core.config.read().value_bytes_max;
        match found {
            Some(value) if value.len() > max => {
                count(&self.core.counts.refused_too_large);
                Err(CacheError::TooLarge { bytes: value.len(), max }.into())
            }
            found => Ok(found),
        }
    }
}

/// A cache of values of type `V`, kept as JSON. Clones are the same cache.
///
/// Not a store: an entry may be pushed out at any time. Kept across a restart of this node:
/// nothing of a local or near cache; a partitioned or replicated one lives on with the others.
///
/// The operations are those of [`RawCache`], which documents them; a value that is not what `V`
/// expects counts as missing, so that two releases may disagree.
pub struct Cache<V> {
    raw: RawCache,
    values: PhantomData<fn(V) -> V>,
}

impl<V> Clone for Cache<V> {
    fn clone(&self) -> Self {
        self.raw.clone().typed()
    }
}

impl<V> fmt::Debug for Cache<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw.fmt(f)
    }
}

impl<V: Serialize + DeserializeOwned> Cache<V> {
    /// The same cache, as bytes.
    #[must_use]
    pub fn raw(&self) -> &RawCache {
        &self.raw
    }

    /// What it did and holds on this node.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        self.raw.stats()
    }

    fn encode(value: &V) -> Result<Bytes, CacheError> {
        let json = serde_json::to_vec(value);
        json.map(Bytes::from).map_err(|error| CacheError::Encode(error.to_string()))
    }

    fn decode(&self, json: Option<Bytes>) -> Option<V> {
        let value = serde_json::from_slice(&json?);
        if value.is_err() {
            count(&self.raw.core.counts.undecodable);
        }
        value.ok()
    }

    /// See [`RawCache::get`].
    ///
    /// # Errors
    /// As there.
    pub async fn get(&self, key: impl AsRef<[u8]>) -> Result<Option<V>, CacheError> {
        Ok(self.decode(self.raw.get(key).await?))
    }

    /// See [`RawCache::get_all`].
    ///
    /// # Errors
    /// As there.
    pub async fn get_all<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Vec<Option<V>>, CacheError> {
        let found = self.raw.get_all(keys).await?;
        Ok(found.into_iter().map(|json| self.decode(json)).collect())
    }

    /// See [`RawCache::ttl`].
    ///
    /// # Errors
    /// As there.
    pub async fn ttl(&self, key: impl AsRef<[u8]>) -> Result<Option<Option<Duration>>, CacheError> {
        self.raw.ttl(key).await
    }

    /// See [`RawCache::put`], with the usual TTL.
    ///
    /// # Errors
    /// As there.
    pub async fn put(&self, key: impl AsRef<[u8]>, value: &V) -> Result<(), CacheError> {
        self.raw.put(key, Self::encode(value)?, Ttl::Usual).await
    }

    /// See [`RawCache::put`].
    ///
    /// # Errors
    /// As there.
    pub async fn put_for(
        &self,
        key: impl AsRef<[u8]>,
        value: &V,
        ttl: impl Into<Ttl>,
    ) -> Result<(), CacheError> {
        self.raw.put(key, Self::encode(value)?, ttl).await
    }

    /// See [`RawCache::put_new`].
    ///
    /// # Errors
    /// As there.
    pub async fn put_new(&self, key: impl AsRef<[u8]>, value: &V) -> Result<bool, CacheError> {
        self.raw.put_new(key, Self::encode(value)?, Ttl::Usual).await
    }

    /// See [`RawCache::replace`].
    ///
    /// # Errors
    /// As there.
    pub async fn replace(&self, key: impl AsRef<[u8]>, value: &V) -> Result<bool, CacheError> {
        self.raw.replace(key, Self::encode(value)?, Ttl::Usual).await
    }

    /// See [`RawCache::take`].
    ///
    /// # Errors
    /// As there.
    pub async fn take(&self, key: impl AsRef<[u8]>) -> Result<Option<V>, CacheError> {
        Ok(self.decode(self.raw.take(key).await?))
    }

    /// See [`RawCache::touch`].
    ///
    /// # Errors
    /// As there.
    pub async fn touch(
        &self,
        key: impl AsRef<[u8]>,
        ttl: impl Into<Ttl>,
    ) -> Result<bool, CacheError> {
        self.raw.touch(key, ttl).await
    }

    /// See [`RawCache::remove`].
    ///
    /// # Errors
    /// As there.
    pub async fn remove(&self, key: impl AsRef<[u8]>) -> Result<(), CacheError> {
        self.raw.remove(key).await
    }

    /// See [`RawCache::clear`].
    ///
    /// # Errors
    /// As there.
    pub async fn clear(&self) -> Result<(), CacheError> {
        self.raw.clear().await
    }

    /// See [`RawCache::get_or_load`]. `load` finds a value, or that there is none.
    ///
    /// # Errors
    /// As there.
    pub async fn get_or_load<F, Fut, E>(
        &self,
        key: impl AsRef<[u8]>,
        load: F,
    ) -> Result<Option<V>, LoadError>
    where
        F: FnOnce() -> Fut + Send + 'static,
        Fut: Future<Output = Result<Option<V>, E>> + Send + 'static,
        E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
        V: Send + 'static,
    {
        let key = key.as_ref();
        let encoded = move || async move {
            let found: Option<V> = load().await.map_err(Into::into)?;
            let json = found.map(|value| Self::encode(&value)).transpose()?;
            Ok::<_, Box<dyn Error + Send + Sync>>(json)
        };
        Ok(self.decode(self.raw.get_or_load(key, encoded).await?))
    }
}

impl Cache<i64> {
    /// See [`RawCache::incr`], with the usual TTL.
    ///
    /// # Errors
    /// As there.
    pub async fn incr(&self, key: impl AsRef<[u8]>, by: i64) -> Result<i64, CacheError> {
        self.raw.incr(key, by, Ttl::Usual).await
    }
}

impl LoadError {
    /// Always "not done": the cache is as it was.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::NotDone
    }
}
