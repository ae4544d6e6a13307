//! Who is present in which topic, known on every node.
//!
//! A presence that outlives its client is a lie, and one that flickers at every deploy is noise.
//! Here each presence ends with the process, the handle or the lease behind it, a dead node's end
//! with the verdict of the membership instead of a timer of their own, and the leaves of a drained
//! node wait a moment for their clients to be back.

use std::{fmt, future::Future, sync::Arc, time::Duration};

use purlin_core::{Clock, NodeId};
use purlin_process::Metadata;

use crate::{
    diffs::Diff,
    dist::{Draft, Inner},
    error::DistError,
    feed::{Counts, Feed, FeedOptions, Following},
    fetch::{FetchConfig, Fetched, Fetcher},
    history::{Filter, Watch},
    registry::{Cursor, OnConflict, ProcessOf},
    row::{End, Entry, Space},
};

/// How long the leaves of a drained node are held back, unless said otherwise. Default: as long as
/// clients take to connect again, jitter included.
pub const CALM_FOR: Duration = Duration::from_secs(5);

/// Who is present where. Cheap to clone.
///
/// One key may be present several times, as a user with two devices is; each has its own metadata.
///
/// # Guarantees
/// Healthy: seen here when `track` returns, elsewhere a round trip later. A node that was killed:
/// its presences go when the membership says so. Drained: when it leaves, and diffs hold the
/// leaves back for a moment. Partitioned: each side sees its own once the other counts as down,
/// and all again after the heal, without their being sent again. Restarted: nothing is kept.
///
/// # Source
/// Phoenix.Tracker and Phoenix.Presence. We differ by leaving detection to the membership, and by
/// never sending a whole state: what a node lacks is found by digests.
#[derive(Clone)]
pub struct Presence {
    inner: Arc<Inner>,
}

impl fmt::Debug for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Presence").finish_non_exhaustive()
    }
}

/// A presence that lasts as long as this handle.
#[must_use = "dropping it ends the presence"]
pub struct Tracked {
    inner: Arc<Inner>,
    number: u64,
}

impl fmt::Debug for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracked").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Tracked {
    /// Says something else about it.
    ///
    /// # Errors
    /// [`DistError::Metadata`] or [`DistError::State`]; nothing was changed.
    pub fn update(&self, metadata: Metadata) -> Result<Arc<Entry>, DistError> {
        self.inner.update_row(self.number, metadata)
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        self.inner.end_row(self.number, End::Asked);
    }
}

/// Diffs are handed to a callback until this is dropped.
#[must_use = "dropping it ends the callbacks"]
#[derive(Debug)]
pub struct Handling(tokio::task::AbortHandle);

impl Drop for Handling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Presence {
    pub(crate) fn new(inner: Arc<Inner>) -> Self {
        Self { inner }
    }

    /// Makes `key` present in `topic` for as long as the process of this node lives, or until
    /// [`Presence::untrack`]. A second time replaces the metadata.
    ///
    /// # Units and limits
    /// `topic` has 1 to 255 bytes, `key` 1 to 1,024, neither a zero byte; metadata, presences per
    /// node and of one key as [`DistConfig`](crate::DistConfig) says.
    ///
    /// # Errors
    /// [`DistError`], but never [`DistError::NameTaken`]; nothing was changed.
    pub fn track<'a>(
        &self,
        topic: &str,
        key: &str,
        process: impl Into<ProcessOf<'a>>,
        metadata: Metadata,
    ) -> Result<Arc<Entry>, DistError> {
        self.inner.add(&draft(&topic.into(), key, metadata), &process.into().0)
    }

    /// Ends the presence of `key` in `topic` that goes with the process; whether there was one.
    pub fn untrack<'a>(&self, topic: &str, key: &str, process: impl Into<ProcessOf<'a>>) -> bool {
        self.inner.remove(Space::Presence, &topic.into(), key, process.into().0.id())
    }

    /// Makes `key` present in `topic` for as long as the handle is kept.
    ///
    /// # Errors
    /// As [`Presence::track`].
    pub fn track_while_held(
        &self,
        topic: &str,
        key: &str,
        metadata: Metadata,
    ) -> Result<Tracked, DistError> {
        let entry = self.inner.add_free(&draft(&topic.into(), key, metadata))?;
        Ok(Tracked { inner: Arc::clone(&self.inner), number: entry.at.number })
    }

    /// Makes `key` present in `topic` as `session` for `lease`; saying it again renews the lease
    /// and replaces the metadata. For clients that have no process here.
    ///
    /// # Units and limits
    /// As [`Presence::track`]; `session` has at most 255 bytes and tells apart several presences of
    /// one key. The lease runs on this node's monotonic clock.
    ///
    /// # Errors
    /// As [`Presence::track`].
    pub fn lease(
        &self,
        topic: &str,
        key: &str,
        session: &str,
        metadata: Metadata,
        lease: Duration,
    ) -> Result<Arc<Entry>, DistError> {
        self.inner.lease(&draft(&topic.into(), key, metadata), session, lease)
    }

    /// Ends the presence of `key` in `topic` as `session`; whether there was one on this node.
    #[expect(clippy::must_use_candidate, reason = "it ends something; whether it did is extra")]
    pub fn release(&self, topic: &str, key: &str, session: &str) -> bool {
        self.inner.release(topic, key, session)
    }

    /// Everybody in `topic`, by key: up to `limit` presences, after the place `after`. Local; takes
    /// no lock.
    #[must_use]
    pub fn list(&self, topic: &str, after: Option<&Cursor>, limit: usize) -> Vec<Arc<Entry>> {
        let Some(shelf) = self.inner.index.get(Space::Presence, topic) else { return Vec::new() };
        shelf.entries("", after.map(Cursor::place), limit)
    }

    /// The presences of `key` in `topic`.
    #[must_use]
    pub fn get(&self, topic: &str, key: &str) -> Vec<Arc<Entry>> {
        let Some(shelf) = self.inner.index.get(Space::Presence, topic) else { return Vec::new() };
        shelf.of_key(key, None, usize::MAX)
    }

    /// How many presences `topic` has. Costs one lookup, however many they are.
    #[must_use]
    pub fn count(&self, topic: &str) -> usize {
        self.inner.index.get(Space::Presence, topic).map_or(0, |shelf| shelf.entry_count())
    }

    /// How many presences each node has, in all topics. Costs as much as there are nodes.
    #[must_use]
    pub fn counts(&self) -> Vec<(NodeId, usize)> {
        self.inner.counts(Space::Presence).into_iter().collect()
    }

    /// Up to `limit` topics that begin with `prefix`, in order, after the topic `after`, with how
    /// many presences each has.
    #[must_use]
    pub fn topics(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Vec<(Arc<str>, usize)> {
        let topics = self.inner.index.list(Space::Presence, prefix, after, limit);
        topics.into_iter().map(|(topic, shelf)| (topic, shelf.entry_count())).collect()
    }

    /// The number of the last event of presences so far.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.inner.presences.revision()
    }

    /// Follows who comes and goes in `topic`, after the event `after`; 0 for all that are
    /// remembered. Every change as it is, drains included.
    #[must_use]
    pub fn watch(&self, topic: &str, after: u64) -> Watch {
        self.inner.presences.watch(Filter::Prefix(topic.into(), "".into()), after)
    }

    /// Calls `handler` with what changed in `topic` from now on, until the handle is dropped.
    ///
    /// Changes that come together are one [`Diff`]. Leaves of drained nodes are held back for
    /// `calm_for` ([`CALM_FOR`] is a good one): who is there again by then is an update. The handler
    /// runs in a task of its own, one call after the other: a slow one makes diffs larger and at
    /// last miss some, and says so; one that panics is called again with the next diff; one that
    /// never returns is called no more, and is dropped with the handle. None of them disturbs
    /// anybody else.
    ///
    /// # Units and limits
    /// A diff has at most about 1,000 changes. What waits for a slow handler is the node's history
    /// ([`DistConfig::events_max`](crate::DistConfig::events_max)), which all readers share, and at
    /// most [`HELD_MAX`](crate::diffs::HELD_MAX) leaves that are held back.
    pub fn on_diff<F, Fut>(&self, topic: &str, calm_for: Duration, handler: F) -> Handling
    where
        F: Fn(Diff) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let watch = self.watch(topic, self.revision());
        let mut following = Following::new(watch, calm_for, Arc::clone(&self.inner.clock));
        let topic: Arc<str> = topic.into();
        let task = tokio::spawn(async move {
            loop {
                let diff = following.diff().await;
                // In a task of its own, so that a panic ends nothing but that.
                let mut handling = tokio::spawn(handler(diff));
                let _end = Handling(handling.abort_handle());
                if (&mut handling).await.is_err() {
                    tracing::error!(%topic, "the handler of a presence diff panicked");
                }
            }
        });
        Handling(task.abort_handle())
    }

    /// Everybody in `topic`, in pages, and then what changes: for a client that keeps a copy.
    ///
    /// With `after`, what [`Feed::place`] said to an earlier feed of this node, only what changed
    /// since then, if that is still remembered.
    #[must_use]
    pub fn feed(&self, topic: &str, after: Option<u64>, options: FeedOptions) -> Feed {
        Feed::new(self.clone(), topic, after, options)
    }

    /// How many are in the topics that begin with `prefix`, and then how many in those where it
    /// changes: for who wants the numbers and not the rows. With `after`, only those that have
    /// changed after that event; at most one answer each `every`.
    #[must_use]
    pub fn watch_counts(&self, prefix: &str, after: Option<u64>, every: Duration) -> Counts {
        Counts::new(self.clone(), prefix, after, every)
    }

    /// How many presences each node has in `topic`. Costs as much as there are nodes in it.
    #[must_use]
    pub fn counts_in(&self, topic: &str) -> Vec<(NodeId, usize)> {
        let shelf = self.inner.index.get(Space::Presence, topic);
        shelf.map(|shelf| shelf.node_counts()).unwrap_or_default()
    }

    /// Brings what is not in the rows, such as names and pictures of users, from where `fetch`
    /// finds it: many keys at once, each once however many ask, and kept for a while. See
    /// [`Fetcher`].
    pub fn fetcher<V, F, Fut>(&self, config: FetchConfig, fetch: F) -> Fetcher<V>
    where
        V: Clone + Send + Sync + 'static,
        F: Fn(Vec<Arc<str>>) -> Fut + Send + 'static,
        Fut: Future<Output = Fetched<V>> + Send + 'static,
    {
        Fetcher::start(config, Arc::clone(&self.inner.clock), fetch)
    }

    pub(crate) fn watch_topics(&self, prefix: &str, after: u64) -> Watch {
        self.inner.presences.watch(Filter::Scopes(prefix.into()), after)
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.inner.clock
    }
}

fn draft<'a>(topic: &'a Arc<str>, key: &'a str, metadata: Metadata) -> Draft<'a> {
    let (space, on_conflict) = (Space::Presence, OnConflict::Tell);
    Draft { space, scope: topic, key, metadata, on_conflict }
}
