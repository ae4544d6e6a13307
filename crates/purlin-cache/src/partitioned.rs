//! Partitioned caches: the shell around [`Placement`](crate::placement::Placement).

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use purlin_cluster::MemberCallError;
use purlin_core::{Deadline, HlcTimestamp, Instant, NodeName, Outcome};
use purlin_net::{
    CallOptions, ChannelId,
    rpc::{CallError, Rejection},
};
use purlin_ring::key_hash;

use crate::{
    cache::RawCache,
    caches::Inner,
    config::{KEY_BYTES_MAX, Kind},
    entry::{Answer, Change, Entry, Packed},
    error::CacheError,
    placement::Transfer,
    stats::count,
    wire::{CHANGE, GET, How, OFFER, STORE, Spec},
};

/// A pause between attempts, unless the members change sooner.
const RETRY_EVERY: Duration = Duration::from_millis(20);

/// How long a copy stays where it no longer belongs: readers who have not heard of the change yet
/// still look there.
const STRAYS_STAY_FOR: Duration = Duration::from_secs(3);

/// A batch of moved entries: so many offers, or so many bytes.
const BATCH_KEYS: usize = 256;
const BATCH_BYTES: usize = 512 << 10;

/// How long one batch may take; a stalled receiver must not hold up the others for ever.
const BATCH_WITHIN: Duration = Duration::from_secs(5);

/// Larger values go by the channel for bulk, so that small calls do not wait behind them.
const BULK_FROM_BYTES: usize = 64 << 10;

fn by(bytes: usize, within: Duration) -> CallOptions {
    let channel = if bytes >= BULK_FROM_BYTES { ChannelId::BULK } else { ChannelId::RPC };
    CallOptions { channel, ..CallOptions::from(within) }
}

impl RawCache {
    fn spec(&self) -> Spec {
        let is_copied = self.core.is_copied.load(Ordering::Relaxed);
        Spec { is_copied, ..Spec::of(&self.core.name, &self.core.config.read()) }
    }

    /// Whoever has no copies itself may still have to tell those who do.
    pub(crate) fn heard_of_copies(&self, spec: &Spec) {
        if spec.is_copied {
            self.core.is_copied.store(true, Ordering::Relaxed);
        }
    }

    /// The copy kept here of what other nodes hold, while it is sure to miss no write older than
    /// the lease.
    fn copy_here(&self, key: &Bytes, now: Instant) -> Option<Arc<Entry>> {
        let copy = self.core.copies.get()?.get(key, now)?;
        let lease = self.core.config.read().lease;
        let is_trusted = self.node.neighbours.covers(copy.known_at, lease, now);
        count(if is_trusted { &self.core.counts.near_hits } else { &self.core.counts.distrusted });
        is_trusted.then_some(copy)
    }

    /// The key changes through this node: no copy of before may be given out.
    fn drop_copy(&self, key: &Bytes) {
        if let Some(copies) = self.core.copies.get() {
            copies.change(key);
        }
    }

    /// What is kept here, as it travels. Keys out of bounds are simply not here.
    pub(crate) fn held_here(&self, key: &Bytes) -> Option<Packed> {
        let now = self.node.now();
        self.store()?.get(key, now).map(|entry| entry.pack(now))
    }

    async fn held_at(&self, name: NodeName, key: &Bytes, within: Duration) -> Asked {
        let answer = self.node.rpc().call(&name, GET, &(self.spec(), key.clone()), within).await;
        Asked { name, answer }
    }

    /// Looks at this node, then at the other owners, the nearest first, then where it was before
    /// the members changed.
    pub(crate) async fn find(&self, key: &Bytes) -> Result<Option<Arc<Entry>>, CacheError> {
        let node = &*self.node;
        let (hash, now) = (key_hash(key), node.now());
        let config = self.core.config.read().clone();
        let (mut owners, former) = {
            let placement = node.placement();
            let former = placement.former_owners(hash, config.replicas, now);
            (placement.owners(hash, config.replicas), former)
        };
        let me = &node.me().name;
        let here = self.store().and_then(|store| store.get(key, now));
        if here.is_some() {
            return Ok(here);
        }
        let is_mine = owners.contains(me);
        if !is_mine && let Some(copy) = self.copy_here(key, now) {
            return Ok(Some(copy));
        }
        let copies = self.core.copies.get().map(|copies| (copies, copies.note(key)));
        owners.retain(|owner| owner != me);
        self.nearest_first(&mut owners);
        let deadline = Deadline::after(now, config.within);
        let mut why = None;
        let mut answered = is_mine;
        let mut missing_at = Vec::new();
        let mut found =
            self.race(owners, key, deadline, &mut why, &mut answered, &mut missing_at).await;
        if found.is_none() {
            let former: Vec<_> = former.into_iter().filter(|name| name != me).collect();
            found =
                self.race(former, key, deadline, &mut why, &mut answered, &mut Vec::new()).await;
            if found.is_some() {
                count(&self.core.counts.found_elsewhere);
            }
        }
        let Some(packed) = found else {
            return match why {
                Some(why) if !answered => Err(CacheError::Unreachable(why)),
                Some(_) | None => Ok(None),
            };
        };
        let entry = packed.clone().unpack(node.now());
        if node.observe(entry.version).is_ok() && is_mine {
            self.store().map(|store| store.merge(key.clone(), entry.clone()).ok());
        } else if let Some((copies, noted)) = copies
            && entry.has_fresh_value(node.now())
        {
            copies.keep(key, Entry { known_at: now, ..entry.clone() }, noted);
        }
        self.repair(&missing_at, key, &packed);
        Ok(Some(Arc::new(entry)))
    }

    /// Asks `nodes` in turn, the next one also when one is slow; the first that has it ends it.
    async fn race(
        &self,
        nodes: Vec<NodeName>,
        key: &Bytes,
        deadline: Deadline,
        why: &mut Option<String>,
        answered: &mut bool,
        missing_at: &mut Vec<NodeName>,
    ) -> Option<Packed> {
        let hedge_after = self.core.config.read().hedge_after;
        let mut waiting = nodes.into_iter();
        let mut asked = FuturesUnordered::new();
        loop {
            if asked.is_empty() {
                let left = deadline.remaining(self.node.now())?;
                asked.push(self.held_at(waiting.next()?, key, left));
            }
            let has_more = !waiting.as_slice().is_empty();
            tokio::select! {
                // An answer spares the next question.
                biased;
                Some(end) = asked.next() => {
                    let Asked { name, answer } = end;
                    match answer {
                        Ok(Some(packed)) => return Some(packed),
                        Ok(None) => {
                            *answered = true;
                            missing_at.push(name);
                        }
                        Err(error) => *why = Some(format!("{name}: {error}")),
                    }
                }
                () = tokio::time::sleep(hedge_after), if has_more => {
                    count(&self.core.counts.hedges);
                    let left = deadline.remaining(self.node.now())?;
                    asked.push(self.held_at(waiting.next()?, key, left));
                }
            }
        }
    }

    /// Nodes of this zone first, then by round trip.
    fn nearest_first(&self, names: &mut [NodeName]) {
        let Some(peers) = self.node.peers() else { return };
        let view = peers.cluster.view();
        let zone = self.node.zone_of(&view, &self.node.me().name);
        names.sort_by_cached_key(|name| {
            let member = view.get(name);
            let is_far = zone.is_none() || member.is_none_or(|m| m.meta.zone != zone);
            (is_far, member.and_then(|m| m.rtt).unwrap_or(Duration::MAX))
        });
    }

    /// Gives owners that lack the entry a copy. Best effort: the next reader would do it again.
    fn repair(&self, missing_at: &[NodeName], key: &Bytes, packed: &Packed) {
        for name in missing_at {
            let message = (self.spec(), vec![(key.clone(), packed.clone())], How::Copy);
            let options = by(packed.value_bytes(), BATCH_WITHIN);
            drop(self.node.rpc().cast(name, STORE, &message, options));
        }
    }

    async fn store_at(
        &self,
        name: &NodeName,
        key: &Bytes,
        packed: &Packed,
        how: How,
        within: Duration,
    ) -> Result<Option<HlcTimestamp>, MemberCallError> {
        let message = (self.spec(), vec![(key.clone(), packed.clone())], how);
        if name == &self.node.me().name {
            return take_in(self, message.1, how).map_err(|refusal| {
                let text = refusal.text().to_owned();
                MemberCallError::Call(CallError::Rejected { text, elsewhere: true })
            });
        }
        let options = by(packed.value_bytes(), within);
        self.node.rpc().call(name, STORE, &message, options).await
    }

    /// Writes to all owners, again and again until all have confirmed or the time is over. The
    /// same version twice is the same write, so that trying again is always safe.
    pub(crate) async fn spread(
        &self,
        key: &Bytes,
        mut entry: Entry,
        later_one: LaterOne,
    ) -> Result<(), CacheError> {
        let node = &*self.node;
        let (within, replicas) = {
            let config = self.core.config.read();
            (config.within, config.replicas)
        };
        self.drop_copy(key);
        let deadline = Deadline::after(node.now(), within);
        let attempt_within = (within / 4).max(Duration::from_millis(100));
        let mut confirmed: Vec<NodeName> = Vec::new();
        let mut may_be_elsewhere = false;
        let mut why = String::from("no member holds entries");
        loop {
            let rehoused = node.rehoused.notified();
            let owners = node.placement().owners(key_hash(key), replicas);
            let packed = entry.pack(node.now());
            let missing: Vec<_> =
                owners.iter().filter(|owner| !confirmed.contains(owner)).cloned().collect();
            let left = deadline.remaining(node.now()).unwrap_or_default().min(attempt_within);
            let sent = missing.iter().map(|to| self.store_at(to, key, &packed, How::IfLater, left));
            let mut later: Option<HlcTimestamp> = None;
            for (name, end) in missing.iter().zip(join_all(sent).await) {
                match end {
                    Ok(None) => confirmed.push(name.clone()),
                    Ok(_) if later_one == LaterOne::Stays => confirmed.push(name.clone()),
                    Ok(version) => later = later.max(version),
                    Err(error) => {
                        may_be_elsewhere |= error.outcome() == Outcome::Unknown;
                        why = format!("{name}: {error}");
                    }
                }
            }
            if let Some(version) = later {
                node.hlc.observe(version, node.clock.wall())?;
                entry.version = node.stamp()?;
                may_be_elsewhere |= !confirmed.is_empty();
                confirmed.clear();
            }
            let present = node.placement().owners(key_hash(key), replicas);
            if !present.is_empty() && present.iter().all(|owner| confirmed.contains(owner)) {
                // One that was read while the write was on its way.
                self.drop_copy(key);
                return Ok(());
            }
            if deadline.is_past(node.now()) {
                count(&self.core.counts.writes_incomplete);
                return Err(if confirmed.is_empty() && !may_be_elsewhere {
                    CacheError::Unreachable(why)
                } else {
                    let copies = present.iter().filter(|o| confirmed.contains(o)).count();
                    CacheError::Unknown { copies, wanted: present.len(), why }
                });
            }
            if later.is_none() {
                drop(tokio::time::timeout(RETRY_EVERY, rehoused).await);
            }
        }
    }

    /// Gives all owners what a load found. Best effort: the next load would do it again.
    pub(crate) async fn fill_owners(&self, key: &Bytes, entry: &Entry, how: How) {
        let (within, replicas) = {
            let config = self.core.config.read();
            (config.within, config.replicas)
        };
        let owners = self.node.placement().owners(key_hash(key), replicas);
        let packed = entry.pack(self.node.now());
        let sent = owners.iter().map(|to| self.store_at(to, key, &packed, how, within));
        if join_all(sent).await.iter().any(Result::is_err) {
            count(&self.core.counts.writes_incomplete);
        }
    }

    /// Has the first owner decide. Asked again only when nothing was done.
    pub(crate) async fn change_at_owner(
        &self,
        key: &Bytes,
        change: Change,
    ) -> Result<Answer, CacheError> {
        let node = &*self.node;
        let (within, replicas) = {
            let config = self.core.config.read();
            (config.within, config.replicas)
        };
        let deadline = Deadline::after(node.now(), within);
        let mut why = String::from("no member holds entries");
        while let Some(left) = deadline.remaining(node.now()) {
            let rehoused = node.rehoused.notified();
            let first = node.placement().owners(key_hash(key), replicas).into_iter().next();
            match first {
                Some(name) if name == node.me().name => return self.decide(key, change).await,
                Some(name) => {
                    let message = (self.spec(), key.clone(), change.clone());
                    match node.rpc().call(&name, CHANGE, &message, left).await {
                        Ok(Some(answer)) => return Ok(answer),
                        Ok(None) => {
                            let (copies, wanted) = (1, replicas.get());
                            let why = format!("{name} heard not from all others");
                            return Err(CacheError::Unknown { copies, wanted, why });
                        }
                        Err(error) if error.outcome() == Outcome::Unknown => {
                            let wanted = replicas.get();
                            let why = format!("{name}: {error}");
                            return Err(CacheError::Unknown { copies: 0, wanted, why });
                        }
                        Err(error) => why = format!("{name}: {error}"),
                    }
                }
                None => {}
            }
            drop(tokio::time::timeout(RETRY_EVERY, rehoused).await);
        }
        Err(CacheError::Unreachable(why))
    }

    /// Decides as the first owner and tells the others.
    async fn decide(&self, key: &Bytes, change: Change) -> Result<Answer, CacheError> {
        let Some(store) = self.store() else {
            return Err(CacheError::Unreachable("not a partitioned cache".into()));
        };
        if store.get(key, self.node.now()).is_none() {
            // This node may own the key since a moment ago; then others have it.
            let _found = self.find(key).await?;
        }
        let now = self.node.now();
        let (changed, answer) =
            store.update(key.clone(), |existing| self.decide_now(&change, existing, now))?;
        if let Some(entry) = changed {
            self.spread(key, entry, LaterOne::Stays).await?;
        }
        Ok(answer)
    }
}

/// What a write does that finds a later version where it arrives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LaterOne {
    /// It was there before this write came, so this one is the later in fact: it takes a later
    /// version and replaces it.
    IsReplaced,
    /// This write was decided before the other, which has taken it into account or replaced it.
    Stays,
}

struct Asked {
    name: NodeName,
    answer: Result<Option<Packed>, MemberCallError>,
}

/// Another node asks this one to decide. `None`: decided, but not confirmed by all owners.
pub(crate) async fn change_asked(
    cache: RawCache,
    key: Bytes,
    change: Change,
) -> Result<Option<Answer>, Rejection> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        return Err(Rejection::new(CacheError::Key(key.len()).to_string()));
    }
    match cache.decide(&key, change).await {
        Err(error) if error.outcome() == Outcome::NotDone => {
            Err(Rejection::here(error.to_string()))
        }
        Err(error) => {
            tracing::debug!(%error, cache = %cache.core.name, "change not confirmed by all");
            Ok(None)
        }
        Ok(answer) => Ok(Some(answer)),
    }
}

/// Takes entries in; answers with the latest version that was there and is later.
pub(crate) fn take_in(
    cache: &RawCache,
    entries: Vec<(Bytes, Packed)>,
    how: How,
) -> Result<Option<HlcTimestamp>, Rejection> {
    let Some(store) = cache.store() else { return Ok(None) };
    let max = cache.core.config.read().value_bytes_max;
    let now = cache.node.now();
    let mut later = None;
    for (key, packed) in entries {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(Rejection::new(CacheError::Key(key.len()).to_string()));
        }
        if packed.value_bytes() > max {
            count(&cache.core.counts.refused_too_large);
            let bytes = packed.value_bytes();
            return Err(Rejection::new(CacheError::TooLarge { bytes, max }.to_string()));
        }
        cache.node.observe(packed.version())?;
        let entry = packed.unpack(now);
        let version = entry.version;
        // A copy from the time before this node held the key.
        cache.drop_copy(&key);
        let key_told = key.clone();
        let refused = |error: CacheError| Rejection::here(error.to_string());
        match how {
            How::Copy => later = later.max(store.merge(key, entry).err()),
            How::IfLater => {
                let merged = cache.write_telling(Some(&key_told), version, || {
                    let end = store.merge(key, entry);
                    (end, end.is_ok())
                });
                later = later.max(merged.map_err(refused)?.err());
            }
            How::IfStill { seen, began } => {
                let filled = cache.write_telling(Some(&key_told), version, || {
                    ((), store.fill_from_elsewhere(key, entry, seen, began))
                });
                filled.map_err(refused)?;
            }
        }
    }
    Ok(later)
}

/// Which of the offered entries are later than what is here.
pub(crate) fn wanted(cache: &RawCache, offered: &[(Bytes, HlcTimestamp)]) -> Vec<u32> {
    let now = cache.node.now();
    let Some(store) = cache.store() else { return Vec::new() };
    let lacks = |key: &Bytes, version: HlcTimestamp| {
        store.get(key, now).is_none_or(|there| there.version < version)
    };
    (0_u32..)
        .zip(offered)
        .filter(|(_, (key, version))| lacks(key, *version))
        .map(|(place, _)| place)
        .collect()
}

/// The partitioned caches open here.
fn caches(inner: &Arc<Inner>) -> Vec<RawCache> {
    let open = inner.open.read();
    let all = open.values().filter(|core| core.config.read().kind == Kind::Partitioned);
    all.map(|core| RawCache::new(Arc::clone(inner), Arc::clone(core))).collect()
}

/// Why entries stayed.
enum Stop {
    /// The members have changed again: another plan holds.
    Replan,
    /// They could not be sent.
    Failed(String),
}

/// After every change of the members, sends this node's entries where they belong now.
pub(crate) async fn keep_in_place(inner: Weak<Inner>) {
    let mut done = 0;
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let turn = strong.placement().turn();
        if turn == done {
            drop(tokio::time::timeout(Duration::from_secs(1), strong.rehoused.notified()).await);
            continue;
        }
        match move_all(&strong, turn).await {
            Ok(()) => done = turn,
            Err(Stop::Replan) => {}
            Err(Stop::Failed(why)) => {
                tracing::debug!(why, "entries not moved yet");
                drop(tokio::time::timeout(RETRY_EVERY * 10, strong.rehoused.notified()).await);
            }
        }
    }
}

/// Copies first, and only when everybody has heard of the change ends copies that do not belong.
async fn move_all(inner: &Arc<Inner>, turn: u64) -> Result<(), Stop> {
    for may_end in [false, true] {
        for cache in caches(inner) {
            cache.send_transfers(Pace::Limited, turn, may_end).await?;
        }
        if !may_end {
            inner.settle(turn);
            let until = tokio::time::Instant::now() + STRAYS_STAY_FOR;
            while tokio::time::Instant::now() < until {
                if inner.placement().turn() != turn {
                    return Err(Stop::Replan);
                }
                let left = until - tokio::time::Instant::now();
                drop(tokio::time::timeout(left, inner.rehoused.notified()).await);
            }
        }
    }
    Ok(())
}

/// Before this node leaves: everything it holds goes to those who own it without it.
pub(crate) async fn hand_over(inner: &Arc<Inner>, deadline: Deadline) -> Result<(), String> {
    loop {
        let turn = inner.placement().turn();
        let mut end = Ok(());
        for cache in caches(inner) {
            end = end.and(cache.send_transfers(Pace::Full, turn, false).await);
        }
        let problem = match end {
            Ok(()) => return Ok(()),
            Err(Stop::Replan) => "the members kept changing".to_owned(),
            Err(Stop::Failed(why)) => why,
        };
        if deadline.is_past(inner.now()) {
            return Err(problem);
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pace {
    Limited,
    Full,
}

impl RawCache {
    /// Offers this node's entries to those who should have them, and sends what they lack.
    async fn send_transfers(&self, pace: Pace, turn: u64, may_end: bool) -> Result<(), Stop> {
        let Some(store) = self.store() else { return Ok(()) };
        let (replicas, rate) = {
            let config = self.core.config.read();
            (config.replicas, config.move_bytes_per_second)
        };
        let transfers: Vec<Transfer<Bytes>> = {
            let mut keys: Vec<Bytes> = store.iter().map(|(key, _)| key).collect();
            keys.sort_unstable();
            self.node.placement().transfers(keys, replicas)
        };
        let mut by_target: BTreeMap<NodeName, Vec<Bytes>> = BTreeMap::new();
        let mut strays = Vec::new();
        for transfer in transfers {
            if transfer.is_stray {
                strays.push(transfer.key.clone());
            }
            for to in transfer.to {
                by_target.entry(to).or_default().push(transfer.key.clone());
            }
        }
        let versions: Vec<_> = strays
            .iter()
            .filter_map(|key| Some((key, store.get(key, self.node.now())?.version)))
            .collect();
        for (to, keys) in &by_target {
            for batch in keys.chunks(BATCH_KEYS) {
                if self.node.placement().turn() != turn {
                    return Err(Stop::Replan);
                }
                let sent = self.send_batch(to, batch).await.map_err(|error| {
                    Stop::Failed(format!("cache {}: {to}: {error}", self.core.name))
                })?;
                if pace == Pace::Limited && sent > 0 {
                    let micros = (sent as u64).saturating_mul(1_000_000) / rate.max(1);
                    tokio::time::sleep(Duration::from_micros(micros)).await;
                }
            }
        }
        if may_end {
            for (key, version) in versions {
                store.forget(key, version);
            }
        }
        Ok(())
    }

    /// Offers a batch and sends what is wanted of it; the bytes sent.
    async fn send_batch(&self, to: &NodeName, keys: &[Bytes]) -> Result<usize, MemberCallError> {
        let Some(store) = self.store() else { return Ok(0) };
        let now = self.node.now();
        let entries: Vec<_> =
            keys.iter().filter_map(|key| Some((key.clone(), store.get(key, now)?))).collect();
        let offered: Vec<_> = entries.iter().map(|(k, e)| (k.clone(), e.version)).collect();
        let options = CallOptions { channel: ChannelId::BULK, ..BATCH_WITHIN.into() };
        let rpc = self.node.rpc();
        let wanted = rpc.call(to, OFFER, &(self.spec(), offered), options).await?;
        let mut wanted = wanted
            .into_iter()
            .filter_map(|place| entries.get(usize::try_from(place).ok()?))
            .peekable();
        let mut sent = 0;
        while wanted.peek().is_some() {
            let (mut batch, mut bytes) = (Vec::new(), 0);
            while bytes < BATCH_BYTES
                && let Some((key, entry)) = wanted.next()
            {
                let packed = entry.pack(now);
                bytes += key.len() + packed.value_bytes();
                batch.push((key.clone(), packed));
            }
            let count = batch.len() as u64;
            rpc.call(to, STORE, &(self.spec(), batch, How::Copy), options).await?;
            self.core.counts.moved.fetch_add(count, Ordering::Relaxed);
            sent += bytes;
        }
        Ok(sent)
    }
}
