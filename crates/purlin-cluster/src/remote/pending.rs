//! Calls of this node that wait for answers from others.
//!
//! A slot per call, reused under another generation, so that a late answer never reaches the next
//! call in its place. The only allocation of a call is the slot its caller waits at.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use purlin_core::Instant;
use purlin_process::{CallError, ReplySlot};

const SHARD_BITS: u32 = 3;
const SHARDS: usize = 1 << SHARD_BITS;

struct Waiting {
    slot: Arc<dyn ReplySlot>,
    connection: u64,
    deadline: Instant,
    within: Duration,
}

struct Place {
    generation: u32,
    waiting: Option<Waiting>,
}

#[derive(Default)]
struct Shard {
    places: Vec<Place>,
    free: Vec<u32>,
}

pub(crate) struct Pending {
    shards: [Mutex<Shard>; SHARDS],
    next: AtomicUsize,
    len: AtomicUsize,
    len_max: usize,
    /// No call has an earlier deadline, in nanoseconds.
    earliest: AtomicU64,
    /// Whether the deadline sweeper comes by.
    watched: AtomicBool,
}

/// What the sweeper has yet to be told.
#[must_use]
pub(crate) struct Begun {
    pub(crate) request: u64,
    pub(crate) watch: bool,
}

impl Pending {
    pub(crate) fn new(len_max: usize) -> Self {
        Self {
            shards: Default::default(),
            next: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            len_max,
            earliest: AtomicU64::new(u64::MAX),
            watched: AtomicBool::new(false),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Takes a place for a call; `None` if there are too many.
    pub(crate) fn begin(
        &self,
        slot: Arc<dyn ReplySlot>,
        connection: u64,
        now: Instant,
        within: Duration,
    ) -> Option<Begun> {
        if self.len.fetch_add(1, Ordering::AcqRel) >= self.len_max {
            self.len.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let deadline = now + within;
        let waiting = Some(Waiting { slot, connection, deadline, within });
        let at = self.next.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let mut shard = self.shards[at].lock();
        let (index, generation) = if let Some(index) = shard.free.pop() {
            let place = &mut shard.places[index as usize];
            place.waiting = waiting;
            (index, place.generation)
        } else {
            let index = u32::try_from(shard.places.len()).expect("bounded by `len_max` per shard");
            shard.places.push(Place { generation: 1, waiting });
            (index, 1)
        };
        drop(shard);
        let due = nanos(deadline);
        if due < self.earliest.load(Ordering::Acquire) {
            self.earliest.fetch_min(due, Ordering::AcqRel);
        }
        let watch =
            !self.watched.load(Ordering::Acquire) && !self.watched.swap(true, Ordering::AcqRel);
        let place = u64::from(index) << SHARD_BITS | at as u64;
        Some(Begun { request: u64::from(generation) << 32 | place, watch })
    }

    /// Ends a call with its answer; false if it had ended before. `answer` learns how long the
    /// call would have waited.
    pub(crate) fn end<'a>(
        &self,
        request: u64,
        answer: impl FnOnce(Duration) -> Result<&'a [u8], CallError>,
    ) -> bool {
        match self.take(request) {
            Some(waiting) => {
                waiting.slot.complete(answer(waiting.within));
                true
            }
            None => false,
        }
    }

    /// Frees the place of a call that nobody waits for any more; false if it had ended before.
    pub(crate) fn forget(&self, request: u64) -> bool {
        self.take(request).is_some()
    }

    /// Ends all calls that went out on a connection.
    pub(crate) fn fail_all(&self, connection: u64, error: impl Fn() -> CallError) {
        self.end_where(|waiting| waiting.connection == connection, |_| error());
    }

    /// Ends all calls that are due; whether there may be more later.
    pub(crate) fn sweep(&self, now: Instant) -> bool {
        if self.len() == 0 {
            self.watched.store(false, Ordering::Release);
            // A call begun in between found itself watched; then stay.
            if self.len() == 0 || self.watched.swap(true, Ordering::AcqRel) {
                return false;
            }
            return true;
        }
        if nanos(now) < self.earliest.load(Ordering::Acquire) {
            return true;
        }
        // Whoever begins a call from here on lowers it again.
        self.earliest.store(u64::MAX, Ordering::Release);
        let mut earliest = u64::MAX;
        self.end_where(
            |waiting| {
                let due = waiting.deadline <= now;
                if !due {
                    earliest = earliest.min(nanos(waiting.deadline));
                }
                due
            },
            CallError::NoReply,
        );
        self.earliest.fetch_min(earliest, Ordering::AcqRel);
        true
    }

    fn take(&self, request: u64) -> Option<Waiting> {
        let at = usize::try_from(request).ok()? % SHARDS;
        let index = usize::try_from((request & 0xffff_ffff) >> SHARD_BITS).ok()?;
        let mut shard = self.shards[at].lock();
        let place = shard.places.get_mut(index)?;
        if u64::from(place.generation) != request >> 32 {
            return None;
        }
        let waiting = place.waiting.take()?;
        place.generation = place.generation.wrapping_add(1).max(1);
        shard.free.push(u32::try_from(index).expect("it was one before"));
        drop(shard);
        self.len.fetch_sub(1, Ordering::AcqRel);
        Some(waiting)
    }

    fn end_where(
        &self,
        mut ends: impl FnMut(&Waiting) -> bool,
        error: impl Fn(Duration) -> CallError,
    ) {
        let mut ended = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let Shard { places, free } = &mut *shard;
            for (place, index) in places.iter_mut().zip(0..) {
                if place.waiting.as_ref().is_some_and(&mut ends) {
                    ended.extend(place.waiting.take());
                    place.generation = place.generation.wrapping_add(1).max(1);
                    free.push(index);
                }
            }
        }
        self.len.fetch_sub(ended.len(), Ordering::AcqRel);
        // Completing wakes callers, who must not find our locks taken.
        for waiting in ended {
            waiting.slot.complete(Err(error(waiting.within)));
        }
    }
}

fn nanos(at: Instant) -> u64 {
    u64::try_from(at.since_start().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Slot(Mutex<Vec<Result<Vec<u8>, CallError>>>);

    impl ReplySlot for Slot {
        fn complete(&self, answer: Result<&[u8], CallError>) {
            self.0.lock().push(answer.map(<[u8]>::to_vec));
        }
    }

    fn at(ms: u64) -> Instant {
        Instant::from_start(Duration::from_millis(ms))
    }

    fn begin(pending: &Pending, connection: u64, ms: u64) -> (Arc<Slot>, Begun) {
        let slot = Arc::new(Slot::default());
        let waiting = Arc::clone(&slot) as Arc<dyn ReplySlot>;
        let begun = pending.begin(waiting, connection, at(0), Duration::from_millis(ms)).unwrap();
        (slot, begun)
    }

    #[test]
    fn an_answer_reaches_its_call_once_and_a_late_one_nobody() {
        let pending = Pending::new(100);
        let (slot, begun) = begin(&pending, 1, 10);
        assert!(begun.watch);
        assert!(pending.end(begun.request, |_| Ok(b"yes")));
        assert!(!pending.end(begun.request, |_| Ok(b"again")));
        let others: Vec<_> = (0..2 * SHARDS).map(|_| begin(&pending, 1, 10)).collect();
        assert!(!pending.end(begun.request, |_| Ok(b"late")));
        assert_eq!(slot.0.lock()[..], [Ok(b"yes".to_vec())]);
        assert!(others.iter().all(|(slot, begun)| slot.0.lock().is_empty() && !begun.watch));
    }

    #[test]
    fn deadlines_and_lost_connections_end_theirs_and_no_others() {
        let pending = Pending::new(100);
        let (early, _) = begin(&pending, 1, 10);
        let (late, _) = begin(&pending, 2, 20);
        assert!(pending.sweep(at(9)));
        assert!(early.0.lock().is_empty());
        assert!(pending.sweep(at(10)));
        assert_eq!(early.0.lock()[..], [Err(CallError::NoReply(Duration::from_millis(10)))]);
        pending.fail_all(1, || CallError::Draining);
        assert!(late.0.lock().is_empty());
        pending.fail_all(2, || CallError::Draining);
        assert_eq!(late.0.lock()[..], [Err(CallError::Draining)]);
        assert_eq!(pending.len(), 0);
        assert!(!pending.sweep(at(11)), "nothing is left to come back for");
        assert!(begin(&pending, 1, 10).1.watch, "the next one asks to be watched again");
    }

    #[test]
    fn the_number_of_calls_is_bounded() {
        let pending = Pending::new(1);
        let (_slot, begun) = begin(&pending, 1, 10);
        let more = Arc::new(Slot::default());
        assert!(
            pending
                .begin(Arc::clone(&more) as Arc<dyn ReplySlot>, 1, at(0), Duration::MAX)
                .is_none()
        );
        pending.forget(begun.request);
        assert!(pending.begin(more, 1, at(0), Duration::MAX).is_some());
    }
}
