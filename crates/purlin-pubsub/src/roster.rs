//! The subscribers of one topic or pattern, readable by any number of publishers without a lock.
//!
//! Publishers load a snapshot; subscribing and unsubscribing build the next one. A flat list would
//! make the ten-thousandth subscriber copy the 9,999 before it, so the list is in chunks, and a
//! change copies one chunk and the list of chunks.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::inbox::Inbox;

/// Subscribers per chunk: the square root of a large roster (4,096), so that both copies are small.
const CHUNK: usize = 64;

type Chunk = Arc<[Arc<Inbox>]>;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Roster {
    chunks: ArcSwap<Vec<Chunk>>,
    editing: Mutex<()>,
    pushing_back: AtomicUsize,
}

impl Roster {
    pub(crate) fn add(&self, inbox: Arc<Inbox>) {
        let _editing = self.editing.lock();
        let pushing_back = usize::from(inbox.pushes_back());
        let mut chunks = Vec::clone(&self.chunks.load());
        match chunks.last_mut().filter(|last| last.len() < CHUNK) {
            Some(last) => *last = last.iter().cloned().chain([inbox]).collect(),
            None => chunks.push([inbox].into()),
        }
        self.chunks.store(Arc::new(chunks));
        self.pushing_back.fetch_add(pushing_back, Ordering::Relaxed);
    }

    /// Takes `inbox` out. Its place goes to the last subscriber: a roster has no order.
    pub(crate) fn remove(&self, inbox: &Arc<Inbox>) {
        let _editing = self.editing.lock();
        let mut chunks = Vec::clone(&self.chunks.load());
        let place = chunks.iter().enumerate().find_map(|(at, chunk)| {
            Some((at, chunk.iter().position(|other| Arc::ptr_eq(other, inbox))?))
        });
        let Some((at, within)) = place else { return };
        let last = chunks.pop().expect("the subscriber was found in some chunk");
        let (mover, rest) = last.split_last().expect("a chunk is never empty");
        let mut rest: Vec<_> = rest.to_vec();
        if at == chunks.len() {
            if within < rest.len() {
                rest[within] = Arc::clone(mover);
            }
        } else {
            let mut chunk: Vec<_> = chunks[at].to_vec();
            chunk[within] = Arc::clone(mover);
            chunks[at] = chunk.into();
        }
        if !rest.is_empty() {
            chunks.push(rest.into());
        }
        self.chunks.store(Arc::new(chunks));
        self.pushing_back.fetch_sub(usize::from(inbox.pushes_back()), Ordering::Relaxed);
    }

    /// Calls `visit` for each subscriber of this moment.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(&Arc<Inbox>)) {
        let chunks = self.chunks.load();
        chunks.iter().flat_map(|chunk| chunk.iter()).for_each(&mut visit);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.chunks.load().is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.chunks.load().iter().map(|chunk| chunk.len()).sum()
    }

    /// Whether any subscriber may hold on to the credit of a message. Kept as a count: asking
    /// each subscriber for each message would double the cost of a delivery.
    pub(crate) fn pushes_back(&self) -> bool {
        self.pushing_back.load(Ordering::Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        pattern::Pattern,
        subscription::{SubscribeOptions, SubscriptionId},
    };

    fn inbox(id: u64) -> Arc<Inbox> {
        Arc::new(Inbox::new(SubscriptionId(id), Pattern::everything(), SubscribeOptions::default()))
    }

    proptest! {
        #[test]
        fn a_roster_holds_what_was_added_and_not_removed(steps in proptest::collection::vec((0_u64..200, any::<bool>()), 0..400)) {
            let inboxes: Vec<_> = (0..200).map(inbox).collect();
            let roster = Roster::default();
            let mut model = BTreeSet::new();
            for (id, add) in steps {
                let inbox = &inboxes[usize::try_from(id).unwrap()];
                if add && model.insert(id) {
                    roster.add(Arc::clone(inbox));
                } else if !add {
                    model.remove(&id);
                    roster.remove(inbox);
                }
                prop_assert_eq!(roster.len(), model.len());
                prop_assert_eq!(roster.is_empty(), model.is_empty());
            }
            let mut held = BTreeSet::new();
            roster.for_each(|inbox| assert!(held.insert(inbox.id.0), "listed once"));
            prop_assert_eq!(held, model);
            prop_assert!(roster.chunks.load().iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK));
        }
    }
}
