//! What happened to the children of a supervisor: numbered, remembered for a while, and followed
//! from any number that is still remembered.

use std::{collections::VecDeque, sync::Arc};

use parking_lot::Mutex;
use purlin_core::{WallTime, watch};

use super::core::Event;
use crate::history::Missed;

/// One event, with its number on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// Its number: from 1, without gaps, on this node and in this life of it.
    pub revision: u64,
    /// When this node saw it, by its wall clock; for people.
    pub at: WallTime,
    /// What happened.
    pub event: Event,
}

#[derive(Debug)]
pub(crate) struct Story {
    events: Mutex<VecDeque<Arc<Happened>>>,
    events_max: usize,
    last: watch::Sender<u64>,
}

impl Story {
    pub(crate) fn new(events_max: usize) -> Arc<Self> {
        let (events, last) = (Mutex::default(), watch::Sender::new(0));
        Arc::new(Self { events, events_max: events_max.max(1), last })
    }

    /// Called by one task at a time.
    pub(crate) fn push(&self, at: WallTime, event: Event) {
        let revision = *self.last.borrow() + 1;
        let mut events = self.events.lock();
        events.push_back(Arc::new(Happened { revision, at, event }));
        let old = if events.len() > self.events_max { events.pop_front() } else { None };
        drop(events);
        drop(old);
        self.last.send_replace(revision);
    }

    pub(crate) fn revision(&self) -> u64 {
        *self.last.borrow()
    }

    pub(crate) fn follow(self: &Arc<Self>, after: u64) -> Events {
        Events { after, last: self.last.subscribe(), story: Arc::clone(self) }
    }
}

/// Follows what happens to the children of a supervisor, from any event that is still remembered.
///
/// Starts, moves and ends are seen on every node, as its records change; what only one node knows
/// (a copy that lost, a state that could not be handed over) is seen on that node.
#[derive(Debug, Clone)]
pub struct Events {
    after: u64,
    last: watch::Receiver<u64>,
    story: Arc<Story>,
}

impl Events {
    /// Waits for the next event; for ever once the node has stopped.
    ///
    /// # Errors
    /// [`Missed`] once, when events between the last one read and the next are gone.
    ///
    /// # Cancel safety
    /// Safe: no event is skipped.
    pub async fn next(&mut self) -> Result<Arc<Happened>, Missed> {
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
    pub fn try_next(&mut self) -> Option<Result<Arc<Happened>, Missed>> {
        self.last.mark_unchanged();
        let events = self.story.events.lock();
        let first = events.front()?.revision;
        if self.after + 1 < first {
            let missed = Missed { first: self.after + 1, last: first - 1 };
            self.after = missed.last;
            return Some(Err(missed));
        }
        let event = events.get(usize::try_from(self.after + 1 - first).ok()?)?;
        self.after = event.revision;
        Some(Ok(Arc::clone(event)))
    }

    /// The number of the last event this gave; one that follows from here misses nothing.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.after
    }
}
