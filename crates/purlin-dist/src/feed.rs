//! Copies of topics for clients: everybody in pages and then what changes, or only how many.
//!
//! A client that lists first and watches second misses what happens in between; one that watches
//! first keeps everything that comes until the list is there. Here both are one [`Feed`]: changes
//! come between the pages as they happen, none is missing and any order of applying them is right,
//! because a row's version only grows. A reader that comes back with its place gets what it missed;
//! one whose place is no longer remembered, or that was too slow, starts over with a first page.
//!
//! # Source
//! Phoenix's `presence_state` and `presence_diff`. We differ by pages, and by resuming.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use purlin_core::{Clock, Instant, NodeId};

use crate::{
    diffs::{Diff, Diffs},
    history::{Event, Missed, Watch},
    presence::{CALM_FOR, Presence},
    registry::Cursor,
    row::Entry,
};

/// How many changes one diff holds; what comes faster waits for the next.
const DIFF_MAX: usize = 1_000;
/// How many topics one [`Counted`] holds at most.
const TOPICS_MAX: usize = 1_000;

/// How a [`Feed`] is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeedOptions {
    /// How many presences a page has at most; 0 counts as 1. Default 1,000.
    pub page: usize,
    /// How long leaves of drained nodes are held back. Default [`CALM_FOR`].
    pub calm_for: Duration,
}

impl Default for FeedOptions {
    fn default() -> Self {
        Self { page: 1_000, calm_for: CALM_FOR }
    }
}

/// The next piece of a [`Feed`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fed {
    /// Some of those who are there.
    Page(Page),
    /// What changed, also between two pages. It never says [`Diff::missed`]: a first page says so.
    Diff(Diff),
}

/// Some of those who are in a topic, by key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Who.
    pub entries: Vec<Arc<Entry>>,
    /// Whether it is the first: forget everything known so far.
    pub first: bool,
    /// Whether it is the last: the copy is complete.
    pub last: bool,
    /// How many are in the topic now.
    pub count: usize,
}

/// Everybody in a topic, in pages, and then what changes. See [`Presence::feed`].
pub struct Feed {
    presence: Presence,
    topic: Arc<str>,
    options: FeedOptions,
    following: Following,
    /// Which page is next, until there is none.
    paging: Option<Paging>,
    /// Whether what changed comes before the next page.
    is_turn_of_diff: bool,
    place: Option<u64>,
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed").field("topic", &self.topic).field("place", &self.place).finish()
    }
}

#[derive(Debug)]
struct Paging {
    after: Option<Cursor>,
}

impl Feed {
    pub(crate) fn new(
        presence: Presence,
        topic: &str,
        after: Option<u64>,
        options: FeedOptions,
    ) -> Self {
        // Before anything is listed, so that nothing falls between.
        let revision = presence.revision();
        let after = after.filter(|after| *after <= revision);
        let watch = presence.watch(topic, after.unwrap_or(revision));
        let clock = Arc::clone(presence.clock());
        Self {
            following: Following::new(watch, options.calm_for, clock),
            paging: after.is_none().then_some(Paging { after: None }),
            is_turn_of_diff: false,
            place: after,
            topic: topic.into(),
            presence,
            options,
        }
    }

    /// Waits for the next piece.
    ///
    /// # Cancel safety
    /// Safe: no piece is skipped.
    pub async fn next(&mut self) -> Fed {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            // Pages never wait, so this is about changes.
            self.following.wait().await;
        }
    }

    /// The next piece, if there is one already.
    pub fn try_next(&mut self) -> Option<Fed> {
        if self.paging.is_some() && !std::mem::take(&mut self.is_turn_of_diff) {
            return self.page().map(Fed::Page);
        }
        match self.following.try_diff() {
            Some(diff) if diff.missed => {
                self.start_over();
                self.page().map(Fed::Page)
            }
            Some(diff) => {
                if self.paging.is_none() {
                    self.place = Some(self.following.told_until());
                }
                Some(Fed::Diff(diff))
            }
            None => self.page().map(Fed::Page),
        }
    }

    /// Where a later feed of this node goes on; `None` until the last page was told.
    #[must_use]
    pub fn place(&self) -> Option<u64> {
        self.place
    }

    fn start_over(&mut self) {
        let watch = self.presence.watch(&self.topic, self.presence.revision());
        let clock = Arc::clone(self.presence.clock());
        self.following = Following::new(watch, self.options.calm_for, clock);
        self.paging = Some(Paging { after: None });
        self.place = None;
    }

    fn page(&mut self) -> Option<Page> {
        let Paging { after } = self.paging.take()?;
        let limit = self.options.page.max(1);
        let entries = self.presence.list(&self.topic, after.as_ref(), limit);
        let next =
            entries.last().filter(|_| entries.len() == limit).map(|last| Cursor::after(last));
        let (first, last) = (after.is_none(), next.is_none());
        match next {
            Some(next) => self.paging = Some(Paging { after: Some(next) }),
            None => self.place = Some(self.following.told_until()),
        }
        self.is_turn_of_diff = true;
        Some(Page { entries, first, last, count: self.presence.count(&self.topic) })
    }
}

/// The changes of one topic as diffs, as they come.
pub(crate) struct Following {
    watch: Watch,
    diffs: Diffs,
    clock: Arc<dyn Clock>,
    /// Up to here everything was handed out, except what is held back.
    taken: u64,
}

impl Following {
    pub(crate) fn new(watch: Watch, calm_for: Duration, clock: Arc<dyn Clock>) -> Self {
        let taken = watch.revision();
        Self { watch, diffs: Diffs::new(calm_for), clock, taken }
    }

    /// Waits for the next diff that says something. Cancel-safe.
    pub(crate) async fn diff(&mut self) -> Diff {
        loop {
            if let Some(diff) = self.try_diff() {
                return diff;
            }
            self.wait().await;
        }
    }

    /// What changed already, if anything did.
    pub(crate) fn try_diff(&mut self) -> Option<Diff> {
        while self.diffs.waiting() < DIFF_MAX
            && let Some(next) = self.watch.try_next()
        {
            self.take_in(next);
        }
        self.diffs.woke(self.clock.now());
        let diff = self.diffs.take();
        self.taken = self.watch.revision();
        Some(diff).filter(|diff| !diff.is_empty())
    }

    /// Waits until there may be something. Cancel-safe: what was taken in stays.
    pub(crate) async fn wait(&mut self) {
        let now = self.clock.now();
        let pause = self.diffs.wake_at().map(|at| at.saturating_since(now));
        tokio::select! {
            biased;
            next = self.watch.next() => self.take_in(next),
            () = sleep_if(pause) => {}
        }
    }

    /// After which event somebody who was told all diffs so far goes on.
    pub(crate) fn told_until(&self) -> u64 {
        self.diffs.told_until(self.taken)
    }

    fn take_in(&mut self, next: Result<Arc<Event>, Missed>) {
        match next {
            Ok(event) => self.diffs.step(self.clock.now(), &event),
            Err(_missed) => self.diffs.missed(),
        }
    }
}

async fn sleep_if(pause: Option<Duration>) {
    match pause {
        // The clock's resolution, so that what is due is due.
        Some(pause) => tokio::time::sleep(pause.max(Duration::from_millis(1))).await,
        None => std::future::pending().await,
    }
}

/// How many are in some topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counted {
    /// Which, by topic; those that nobody is in any more with 0.
    pub topics: Vec<TopicCount>,
    /// Whether everything known so far is to be forgotten.
    pub first: bool,
    /// Whether all topics have been told by now.
    pub last: bool,
}

/// How many are in a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicCount {
    /// Which.
    pub topic: Arc<str>,
    /// How many.
    pub count: usize,
    /// On which nodes, and how many on each.
    pub nodes: Vec<(NodeId, usize)>,
}

/// How many are in each topic, and then in those where it changes. See
/// [`Presence::watch_counts`].
///
/// However many come and go, what is told is at most one number per topic and answer.
#[derive(Debug)]
pub struct Counts {
    presence: Presence,
    prefix: Arc<str>,
    every: Duration,
    watch: Watch,
    /// After which topic the rest is to be told, until all are.
    paging: Option<Option<Arc<str>>>,
    changed: BTreeSet<Arc<str>>,
    /// When the last changes were told.
    told_at: Option<Instant>,
    place: Option<u64>,
}

impl Counts {
    pub(crate) fn new(
        presence: Presence,
        prefix: &str,
        after: Option<u64>,
        every: Duration,
    ) -> Self {
        let revision = presence.revision();
        let after = after.filter(|after| *after <= revision);
        Self {
            watch: presence.watch_topics(prefix, after.unwrap_or(revision)),
            paging: after.is_none().then_some(None),
            changed: BTreeSet::new(),
            told_at: None,
            place: after,
            prefix: prefix.into(),
            presence,
            every,
        }
    }

    /// Waits for the next counts: up to 1,000 topics.
    ///
    /// # Cancel safety
    /// Safe: no count is skipped.
    pub async fn next(&mut self) -> Counted {
        loop {
            if let Some(after) = self.paging.take() {
                return self.page(after);
            }
            if self.changed.is_empty() {
                match self.watch.next().await {
                    Ok(event) => drop(self.changed.insert(Arc::clone(&event.change.entry().scope))),
                    Err(_missed) => self.start_over(),
                }
                continue;
            }
            let now = self.presence.clock().now();
            let due = self.told_at.map_or(now, |at| at + self.every);
            let pause = due.saturating_since(now);
            if !pause.is_zero() {
                tokio::time::sleep(pause.max(Duration::from_millis(1))).await;
                continue;
            }
            if let Some(counted) = self.gather() {
                return counted;
            }
        }
    }

    /// Where a later one of this node goes on; `None` until all topics were told.
    #[must_use]
    pub fn place(&self) -> Option<u64> {
        self.place
    }

    fn start_over(&mut self) {
        self.watch = self.presence.watch_topics(&self.prefix, self.presence.revision());
        (self.paging, self.place) = (Some(None), None);
        self.changed.clear();
    }

    fn page(&mut self, after: Option<Arc<str>>) -> Counted {
        let found = self.presence.topics(&self.prefix, after.as_deref(), TOPICS_MAX);
        let next = found.last().filter(|_| found.len() == TOPICS_MAX);
        let next = next.map(|(topic, _)| Arc::clone(topic));
        let (first, last) = (after.is_none(), next.is_none());
        match next {
            Some(next) => self.paging = Some(Some(next)),
            None => self.place = Some(self.watch.revision()),
        }
        let topics = found.into_iter().map(|(topic, _)| self.count(topic)).collect();
        Counted { topics, first, last }
    }

    /// What changed, unless events are missing.
    fn gather(&mut self) -> Option<Counted> {
        while self.changed.len() < TOPICS_MAX
            && let Some(next) = self.watch.try_next()
        {
            match next {
                Ok(event) => drop(self.changed.insert(Arc::clone(&event.change.entry().scope))),
                Err(_missed) => {
                    self.start_over();
                    return None;
                }
            }
        }
        let topics = std::mem::take(&mut self.changed);
        let topics = topics.into_iter().map(|topic| self.count(topic)).collect();
        self.told_at = Some(self.presence.clock().now());
        self.place = Some(self.watch.revision());
        Some(Counted { topics, first: false, last: true })
    }

    fn count(&self, topic: Arc<str>) -> TopicCount {
        let nodes = self.presence.counts_in(&topic);
        // From one reading, so that the sum is the sum.
        TopicCount { count: nodes.iter().map(|(_, count)| count).sum(), topic, nodes }
    }
}
