//! Near caches: the shell around [`Coherence`] and [`Log`].

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::{Mutex, RwLock};
use purlin_core::{Deadline, Instant, NodeId};
use purlin_net::CallOptions;
use tokio::sync::Notify;

use crate::{
    cache::Place,
    caches::Inner,
    coherence::{Coherence, Trust},
    config::Kind,
    entry::Entry,
    error::CacheError,
    invalidation::{Catchup, Invalidation, Log, Position},
    wire::{MISSED, Question, TOLD, Told},
};

/// How often every other writer is asked, per lease.
const QUESTIONS_PER_LEASE: u32 = 4;

/// A reader that has not asked for so many leases is no longer told of writes.
const FORGET_AFTER_LEASES: u32 = 3;

/// How long a node that leaves waits for the readers to have heard its last writes.
const FAREWELL_WITHIN: Duration = Duration::from_secs(10);

/// What this node knows of other writers, and they of it.
pub(crate) struct Neighbours {
    log: Mutex<Log>,
    coherence: Mutex<Coherence>,
    trust: RwLock<Trust>,
    /// Readers of what is written here: when each asked last, and until when it is told.
    readers: Mutex<BTreeMap<NodeId, Reader>>,
    /// The shortest lease of the near caches here, in nanoseconds; `u64::MAX` without any.
    lease_ns: AtomicU64,
    opened: Notify,
    /// Held for writing by whoever says the last word of this node.
    farewell: RwLock<()>,
}

/// A write in the log, and who is to hear of it.
struct Recorded {
    at: Position,
    readers: Vec<NodeId>,
}

struct Reader {
    asked_at: Instant,
    until: Instant,
}

impl Neighbours {
    pub(crate) fn new(stream: u64) -> Self {
        let coherence = Coherence::default();
        Self {
            log: Mutex::new(Log::new(stream)),
            trust: RwLock::new(coherence.trust()),
            coherence: Mutex::new(coherence),
            readers: Mutex::new(BTreeMap::new()),
            lease_ns: AtomicU64::new(u64::MAX),
            opened: Notify::new(),
            farewell: RwLock::new(()),
        }
    }

    /// A near cache with this lease was opened.
    pub(crate) fn lease(&self, lease: Duration) {
        let ns = u64::try_from(lease.as_nanos()).unwrap_or(u64::MAX);
        self.lease_ns.fetch_min(ns, Ordering::Relaxed);
        self.opened.notify_one();
    }

    fn shortest_lease(&self) -> Option<Duration> {
        let ns = self.lease_ns.load(Ordering::Relaxed);
        (ns != u64::MAX).then(|| Duration::from_nanos(ns))
    }

    pub(crate) fn members(&self, writers: impl Iterator<Item = NodeId>, now: Instant) {
        let mut coherence = self.coherence.lock();
        coherence.writers(writers, now);
        *self.trust.write() = coherence.trust();
    }

    pub(crate) fn covers(&self, known_at: Instant, lease: Duration, now: Instant) -> bool {
        self.trust.read().covers(known_at, lease, now)
    }

    /// A reader asks what it missed.
    pub(crate) fn asked(&self, from: NodeId, question: Question, now: Instant) -> Catchup {
        let lease = Duration::from_millis(question.lease_ms.min(3_600_000));
        let until = now + lease * FORGET_AFTER_LEASES;
        // The log is looked at under the readers' lock, and a writer looks for readers after it
        // has written to the log: a write is either in this answer or told to this reader.
        let mut readers = self.readers.lock();
        readers.insert(from, Reader { asked_at: now, until });
        self.log.lock().since(question.at)
    }

    /// Does `write`, which changes what others may have copies of, and records it as
    /// `invalidation` if it did: both or neither before the last write of this node.
    ///
    /// # Errors
    /// When this node leaves and has promised to write no more. Nothing was done.
    fn write_and_record<R>(
        &self,
        invalidation: &Invalidation,
        now: Instant,
        write: impl FnOnce() -> (R, bool),
    ) -> Result<(R, Option<Recorded>), CacheError> {
        let _until_recorded = self.farewell.read();
        self.may_write()?;
        let (end, is_news) = write();
        let recorded = is_news.then(|| {
            self.record(invalidation, now).expect("no farewell while its lock is held for reading")
        });
        Ok((end, recorded))
    }

    pub(crate) fn may_write(&self) -> Result<(), CacheError> {
        if self.log.lock().is_final() { Err(no_more_writes()) } else { Ok(()) }
    }

    fn record(&self, write: &Invalidation, now: Instant) -> Option<Recorded> {
        let at = self.log.lock().record(write.clone())?;
        let mut readers = self.readers.lock();
        readers.retain(|_, reader| now < reader.until);
        Some(Recorded { at, readers: readers.keys().cloned().collect() })
    }
}

fn no_more_writes() -> CacheError {
    CacheError::Unreachable("this node is being drained and has said its last write".into())
}

impl Inner {
    /// Tells whoever may have a copy that it is the past.
    ///
    /// # Errors
    /// When this node leaves and has promised to write no more.
    pub(crate) fn tell(&self, write: Invalidation) -> Result<(), CacheError> {
        let recorded = self.neighbours.record(&write, self.now()).ok_or_else(no_more_writes)?;
        self.spread_word(recorded, write);
        Ok(())
    }

    /// Changes what this node holds of the key of `write`, and tells whoever may have a copy when
    /// that was news.
    ///
    /// # Errors
    /// As [`Inner::tell`]; then nothing was done.
    pub(crate) fn write_and_tell<R>(
        &self,
        write: Invalidation,
        change: impl FnOnce() -> (R, bool),
    ) -> Result<R, CacheError> {
        let (end, recorded) = self.neighbours.write_and_record(&write, self.now(), change)?;
        if let Some(recorded) = recorded {
            self.spread_word(recorded, write);
        }
        Ok(end)
    }

    fn spread_word(&self, Recorded { at, readers }: Recorded, write: Invalidation) {
        let told = Told { at, write };
        for reader in readers {
            // Whom it does not reach finds it in the log when it asks again.
            if let Err(error) = self.rpc().cast(&reader.name, TOLD, &told, CallOptions::default()) {
                tracing::debug!(%reader, %error, "not told of a write");
            }
        }
    }

    /// A writer told of a write.
    pub(crate) fn told(&self, by: &NodeId, told: Told) {
        self.apply(&told.write);
        self.neighbours.coherence.lock().told(by, told.at);
    }

    fn apply(&self, write: &Invalidation) {
        let core = self.open.read().get(&write.cache).cloned();
        let Some(core) = core else { return };
        if let Some(copies) = core.copies.get() {
            write.key.as_ref().map_or_else(|| copies.change_all(), |key| copies.change(key));
        }
        let Place::Store(store) = &core.place else { return };
        if core.config.read().kind != Kind::Near {
            return;
        }
        write.key.as_ref().map_or_else(|| core.flights.spoil_all(), |key| core.flights.spoil(key));
        // Whatever is here goes, whatever its version: versions go by clocks, and a copy too many
        // that goes costs a load, one that stays is the past.
        match (&write.key, self.stamp()) {
            (Some(key), Ok(version)) => {
                store.set(key.clone(), Entry::removed(version, self.now()));
            }
            (None, Ok(version)) => store.clear(version),
            (Some(_) | None, Err(error)) => {
                tracing::error!(%error, cache = write.cache, "cannot stamp; clearing");
                store.clear(write.version);
            }
        }
    }

    async fn ask(&self, writer: NodeId, at: Option<Position>, lease: Duration) {
        let asked_at = self.now();
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        let within = lease / QUESTIONS_PER_LEASE;
        let question = Question { at, lease_ms };
        match self.rpc().call(&writer.name, MISSED, &question, within).await {
            Ok(catchup) => {
                let missed = {
                    let mut coherence = self.neighbours.coherence.lock();
                    let missed = coherence.answered(&writer, asked_at, catchup);
                    // Entries go before trust comes back.
                    for write in &missed {
                        self.apply(write);
                    }
                    *self.neighbours.trust.write() = coherence.trust();
                    missed
                };
                if !missed.is_empty() {
                    tracing::debug!(%writer, missed = missed.len(), "heard of missed writes");
                }
            }
            Err(error) => tracing::debug!(%writer, %error, "not heard"),
        }
    }
}

/// Asks every other writer what was missed, as often as the shortest lease demands.
pub(crate) async fn keep_asking(inner: Weak<Inner>) {
    loop {
        let Some(strong) = inner.upgrade() else { return };
        let Some(lease) = strong.neighbours.shortest_lease() else {
            // A second at most, so that the task ends soon after the last handle.
            let opened = strong.neighbours.opened.notified();
            drop(tokio::time::timeout(Duration::from_secs(1), opened).await);
            continue;
        };
        let next = tokio::time::Instant::now() + lease / QUESTIONS_PER_LEASE;
        let questions: Vec<_> = {
            let coherence = strong.neighbours.coherence.lock();
            coherence.questions().map(|(node, at)| (node.clone(), at)).collect()
        };
        let asked = questions.into_iter().map(|(node, at)| strong.ask(node, at, lease));
        futures_util::future::join_all(asked).await;
        drop(strong);
        tokio::time::sleep_until(next).await;
    }
}

/// Writes no more to near caches from here, and waits until every reader has asked since.
pub(crate) async fn say_farewell(inner: &Arc<Inner>, deadline: Deadline) -> Result<(), String> {
    {
        let _nobody_writes = inner.neighbours.farewell.write();
        inner.neighbours.log.lock().finish();
    }
    let finished_at = inner.now();
    let deadline = deadline.min(Deadline::after(finished_at, FAREWELL_WITHIN));
    loop {
        let now = inner.now();
        let waiting: Vec<String> = {
            let readers = inner.neighbours.readers.lock();
            let waits = |reader: &Reader| reader.asked_at <= finished_at && now < reader.until;
            readers.iter().filter(|(_, r)| waits(r)).map(|(node, _)| node.to_string()).collect()
        };
        if waiting.is_empty() {
            return Ok(());
        }
        if deadline.is_past(now) {
            let who = waiting.join(", ");
            return Err(format!("{who} did not hear the last writes and will forget all copies"));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
