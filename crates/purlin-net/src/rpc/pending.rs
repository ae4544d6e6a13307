//! Calls that wait for their replies: slots with generations.
//!
//! A reply names its slot directly, so nothing is looked up; the generation tells a late reply
//! from one for the call that has the slot now. Slots are spread over a few locks, because callers
//! on all cores begin and end calls at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
};

use parking_lot::Mutex;
use purlin_core::{Deadline, Instant};
use tokio::sync::Notify;

use super::error::CallError;
use crate::connection::nanos;

const SHARD_BITS: u32 = 3;
const SHARDS: usize = 1 << SHARD_BITS;

/// A call's number on the wire: generation, slot, shard. Never zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct CallId(pub(crate) u64);

impl CallId {
    fn new(generation: u32, slot: usize, shard: usize) -> Self {
        let place = (slot << SHARD_BITS | shard) as u64;
        Self(u64::from(generation) << 32 | place)
    }

    fn shard(self) -> usize {
        usize::try_from(self.0).unwrap_or(0) & (SHARDS - 1)
    }

    fn slot(self) -> usize {
        usize::try_from((self.0 & 0xffff_ffff) >> SHARD_BITS).expect("29 bits")
    }

    fn generation(self) -> u32 {
        u32::try_from(self.0 >> 32).expect("32 bits")
    }
}

/// How a call ended.
#[derive(Debug)]
pub(crate) enum Ended {
    Reply(Vec<u8>),
    Failed(Box<CallError>),
    Expired,
}

#[derive(Debug)]
enum State {
    Free,
    Waiting { waker: Option<Waker>, connection: u64, deadline: Instant },
    Ended(Ended),
}

#[derive(Debug)]
struct Slot {
    generation: u32,
    state: State,
}

#[derive(Debug, Default)]
struct Shard {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

impl Shard {
    fn slot(&mut self, call: CallId) -> Option<&mut Slot> {
        self.slots.get_mut(call.slot()).filter(|slot| slot.generation == call.generation())
    }

    fn release(&mut self, call: CallId) -> State {
        let slot = &mut self.slots[call.slot()];
        slot.generation = slot.generation.wrapping_add(1).max(1);
        self.free.push(call.slot());
        std::mem::replace(&mut slot.state, State::Free)
    }
}

#[derive(Debug)]
pub(crate) struct Pending {
    shards: [Mutex<Shard>; SHARDS],
    next: AtomicUsize,
    len: AtomicUsize,
    len_max: usize,
    /// When the expiry task wakes next; an earlier deadline must wake it.
    alarm_at: AtomicU64,
    alarm: Arc<Notify>,
}

impl Pending {
    pub(crate) fn new(len_max: usize) -> Self {
        Self {
            shards: Default::default(),
            next: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            len_max,
            alarm_at: AtomicU64::new(u64::MAX),
            alarm: Arc::new(Notify::new()),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }

    /// Takes a slot for a call on `connection`.
    #[inline]
    pub(crate) fn begin(&self, connection: u64, deadline: Deadline) -> Result<CallId, CallError> {
        let calls = self.len.fetch_add(1, Ordering::Relaxed);
        if calls >= self.len_max {
            self.len.fetch_sub(1, Ordering::Relaxed);
            return Err(CallError::TooMany { calls, max: self.len_max });
        }
        let at = self.next.fetch_add(1, Ordering::Relaxed) & (SHARDS - 1);
        let state = State::Waiting { waker: None, connection, deadline: deadline.at };
        let call = {
            let mut shard = self.shards[at].lock();
            match shard.free.pop() {
                Some(slot) => {
                    shard.slots[slot].state = state;
                    CallId::new(shard.slots[slot].generation, slot, at)
                }
                None => {
                    shard.slots.push(Slot { generation: 1, state });
                    CallId::new(1, shard.slots.len() - 1, at)
                }
            }
        };
        let due = nanos(deadline.at);
        if due < self.alarm_at.load(Ordering::Relaxed)
            && due < self.alarm_at.fetch_min(due, Ordering::AcqRel)
        {
            self.alarm.notify_one();
        }
        Ok(call)
    }

    /// Gives the slot back without waiting for an end. Whether the call was still waiting.
    pub(crate) fn forget(&self, call: CallId) -> bool {
        let mut shard = self.shards[call.shard()].lock();
        if shard.slot(call).is_none() {
            return false;
        }
        let state = shard.release(call);
        drop(shard);
        self.len.fetch_sub(1, Ordering::Relaxed);
        matches!(state, State::Waiting { .. })
    }

    /// The caller looks whether its call ended.
    #[inline]
    pub(crate) fn poll(&self, call: CallId, waker: &Waker) -> Poll<Ended> {
        let mut shard = self.shards[call.shard()].lock();
        let slot = shard.slot(call).expect("a pending call keeps its slot until it is taken");
        match &mut slot.state {
            State::Waiting { waker: Some(old), .. } if old.will_wake(waker) => {
                return Poll::Pending;
            }
            State::Waiting { waker: place, .. } => {
                *place = Some(waker.clone());
                return Poll::Pending;
            }
            State::Ended(_) => {}
            State::Free => unreachable!("a free slot has another generation"),
        }
        let state = shard.release(call);
        drop(shard);
        self.len.fetch_sub(1, Ordering::Relaxed);
        match state {
            State::Ended(ended) => Poll::Ready(ended),
            State::Free | State::Waiting { .. } => unreachable!("checked above"),
        }
    }

    /// Ends a call. `false` when nobody waits for it any more.
    #[inline]
    pub(crate) fn finish(&self, call: CallId, ended: Ended) -> bool {
        let mut shard = self.shards[call.shard()].lock();
        let Some(slot) = shard.slot(call) else { return false };
        let State::Waiting { waker, .. } = &mut slot.state else { return false };
        let waker = waker.take();
        slot.state = State::Ended(ended);
        drop(shard);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// Ends all calls that wait for `connection`.
    pub(crate) fn fail_all(&self, connection: u64, error: impl Fn() -> CallError) {
        self.end_where(|on, _| on == connection, || Ended::Failed(Box::new(error())));
    }

    /// Ends all calls whose deadline is past; returns how many, and the next deadline.
    pub(crate) fn expire(&self, now: Instant) -> (u64, Option<Instant>) {
        // Whoever begins a call from here on wakes us again if its deadline is earlier.
        self.alarm_at.store(u64::MAX, Ordering::Release);
        let mut next: Option<Instant> = None;
        let expired = self.end_where(
            |_, deadline| {
                let is_past = deadline <= now;
                if !is_past {
                    next = Some(next.map_or(deadline, |next| next.min(deadline)));
                }
                is_past
            },
            || Ended::Expired,
        );
        if let Some(next) = next {
            self.alarm_at.fetch_min(nanos(next), Ordering::AcqRel);
        }
        (expired, next)
    }

    pub(crate) fn alarm(&self) -> Arc<Notify> {
        Arc::clone(&self.alarm)
    }

    fn end_where(
        &self,
        mut ends: impl FnMut(u64, Instant) -> bool,
        ended: impl Fn() -> Ended,
    ) -> u64 {
        let mut count = 0;
        let mut wakers = Vec::new();
        for shard in &self.shards {
            for slot in &mut shard.lock().slots {
                if let State::Waiting { waker, connection, deadline } = &mut slot.state
                    && ends(*connection, *deadline)
                {
                    wakers.extend(waker.take());
                    slot.state = State::Ended(ended());
                    count += 1;
                }
            }
        }
        for waker in wakers {
            waker.wake();
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicBool, task::Wake, time::Duration};

    use proptest::prelude::*;

    use super::*;

    struct Flag(AtomicBool);

    impl Wake for Flag {
        fn wake(self: Arc<Self>) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    fn at(millis: u64) -> Deadline {
        Deadline { at: Instant::from_start(Duration::from_millis(millis)) }
    }

    fn noop() -> &'static Waker {
        Waker::noop()
    }

    #[test]
    fn a_reply_wakes_its_caller_and_nobody_takes_it_twice() {
        let pending = Pending::new(10);
        let flag = Arc::new(Flag(AtomicBool::new(false)));
        let call = pending.begin(1, at(5)).unwrap();
        assert!(pending.poll(call, &Arc::clone(&flag).into()).is_pending());
        assert!(pending.finish(call, Ended::Reply(b"yes".to_vec())));
        assert!(flag.0.load(Ordering::Relaxed));
        assert!(!pending.finish(call, Ended::Expired), "it has ended");
        let Poll::Ready(Ended::Reply(body)) = pending.poll(call, noop()) else { panic!() };
        assert_eq!(body, b"yes");
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn a_late_reply_never_reaches_the_next_call_in_the_slot() {
        let pending = Pending::new(1000);
        let first = pending.begin(1, at(5)).unwrap();
        assert!(pending.forget(first));
        let calls: Vec<_> = (0..SHARDS).map(|_| pending.begin(1, at(5)).unwrap()).collect();
        assert!(
            calls.iter().any(|call| call.slot() == first.slot() && call.shard() == first.shard())
        );
        assert!(!pending.finish(first, Ended::Expired));
        for call in calls {
            assert!(pending.poll(call, noop()).is_pending());
        }
    }

    #[test]
    fn the_number_of_calls_is_bounded() {
        let pending = Pending::new(2);
        let first = pending.begin(1, at(5)).unwrap();
        pending.begin(1, at(5)).unwrap();
        assert_eq!(pending.begin(1, at(5)), Err(CallError::TooMany { calls: 2, max: 2 }));
        pending.forget(first);
        assert!(pending.begin(1, at(5)).is_ok());
    }

    #[test]
    fn a_lost_connection_ends_its_calls_and_no_others() {
        let pending = Pending::new(10);
        let (on_one, on_two) = (pending.begin(1, at(5)).unwrap(), pending.begin(2, at(5)).unwrap());
        pending.fail_all(1, || CallError::Deadline);
        assert!(pending.poll(on_one, noop()).is_ready());
        assert!(pending.poll(on_two, noop()).is_pending());
    }

    #[test]
    fn calls_expire_at_their_deadline_and_the_next_is_told() {
        let pending = Pending::new(10);
        let early = pending.begin(1, at(5)).unwrap();
        let late = pending.begin(1, at(9)).unwrap();
        assert_eq!(pending.expire(at(4).at), (0, Some(at(5).at)));
        assert_eq!(pending.expire(at(5).at), (1, Some(at(9).at)));
        assert!(matches!(pending.poll(early, noop()), Poll::Ready(Ended::Expired)));
        assert!(pending.poll(late, noop()).is_pending());
        assert_eq!(pending.expire(at(9).at), (1, None));
    }

    proptest! {
        #[test]
        fn hostile_call_numbers_end_nothing(numbers in prop::collection::vec(any::<u64>(), 0..100)) {
            let pending = Pending::new(10);
            let call = pending.begin(1, at(5)).unwrap();
            for number in numbers {
                if number != call.0 {
                    prop_assert!(!pending.finish(CallId(number), Ended::Expired));
                }
            }
            prop_assert!(pending.poll(call, noop()).is_pending());
        }
    }
}
