//! What happened to names, groups or presences: numbered, remembered for a while, and followed
//! from any number that is still remembered.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use purlin_core::{WallTime, watch};

use crate::directory::Change;

/// One change, with its number on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its number: from 1, without gaps, on this node and in this life of it.
    pub revision: u64,
    /// When this node saw it, by its wall clock; for people.
    pub at: WallTime,
    /// What changed, and why.
    pub change: Change,
}

/// The reader was too slow or came too late: these events are no longer remembered.
///
/// Nothing is lost but the story: what is visible now is complete. The next call continues with
/// the oldest event that is remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("events {first} to {last} are no longer remembered, read anew what you care for")]
pub struct Missed {
    /// The first that is gone.
    pub first: u64,
    /// The last that is gone.
    pub last: u64,
}

#[derive(Debug)]
pub(crate) struct History {
    events: Mutex<VecDeque<Arc<Event>>>,
    events_max: usize,
    last: watch::Sender<u64>,
}

impl History {
    pub(crate) fn new(events_max: usize) -> Arc<Self> {
        let (events, last) = (Mutex::default(), watch::Sender::new(0));
        Arc::new(Self { events, events_max: events_max.max(1), last })
    }

    /// Called by one task at a time.
    pub(crate) fn push(&self, at: WallTime, change: Change) {
        let revision = *self.last.borrow() + 1;
        let mut events = self.events.lock();
        events.push_back(Arc::new(Event { revision, at, change }));
        let old = if events.len() > self.events_max { events.pop_front() } else { None };
        drop(events);
        drop(old);
        self.last.send_replace(revision);
    }

    pub(crate) fn revision(&self) -> u64 {
        *self.last.borrow()
    }

    pub(crate) fn watch(self: &Arc<Self>, filter: Filter, after: u64) -> Watch {
        Watch { filter, after, last: self.last.subscribe(), history: Arc::clone(self) }
    }
}

/// What a watcher wants to hear of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Filter {
    /// Keys of a scope that begin with this.
    Prefix(Arc<str>, Arc<str>),
    /// One key of a scope.
    Key(Arc<str>, Arc<str>),
    /// Every key of the scopes that begin with this.
    Scopes(Arc<str>),
}

impl Filter {
    fn fits(&self, change: &Change) -> bool {
        let entry = change.entry();
        match self {
            Self::Prefix(scope, prefix) => {
                entry.scope == *scope && entry.key.starts_with(&**prefix)
            }
            Self::Key(scope, key) => entry.scope == *scope && entry.key == *key,
            Self::Scopes(prefix) => entry.scope.starts_with(&**prefix),
        }
    }
}

/// Follows the changes of some keys, from any event that is still remembered.
///
/// To miss nothing, take the revision first, read second, and watch from that revision: what is
/// then told twice says the same twice.
#[derive(Debug, Clone)]
pub struct Watch {
    filter: Filter,
    after: u64,
    last: watch::Receiver<u64>,
    history: Arc<History>,
}

impl Watch {
    /// Waits for the next event. After the node stopped there is none any more, and this waits for
    /// ever.
    ///
    /// # Errors
    /// [`Missed`] once, when events between the last one read and the next are gone.
    ///
    /// # Cancel safety
    /// Safe: no event is skipped.
    pub async fn next(&mut self) -> Result<Arc<Event>, Missed> {
        loop {
            if let Some(next) = self.try_next() {
                return next;
            }
            if self.last.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The next event, if it has happened already.
    pub fn try_next(&mut self) -> Option<Result<Arc<Event>, Missed>> {
        self.last.mark_unchanged();
        let events = self.history.events.lock();
        loop {
            let first = events.front()?.revision;
            if self.after + 1 < first {
                let missed = Missed { first: self.after + 1, last: first - 1 };
                self.after = missed.last;
                return Some(Err(missed));
            }
            let event = events.get(usize::try_from(self.after + 1 - first).ok()?)?;
            self.after = event.revision;
            if self.filter.fits(&event.change) {
                return Some(Ok(Arc::clone(event)));
            }
        }
    }

    /// The number of the last event this looked at; a watch from here misses nothing.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.after
    }
}
