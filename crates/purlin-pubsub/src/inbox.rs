//! A subscriber's queue with what concurrency adds: a lock, a waker, and publishers that wait.
//!
//! A delivery is one short lock, one clone of a shared message, and a wake only if the subscriber
//! is parked. A batch from the network takes the lock once for the whole batch.

use std::{
    any::Any,
    fmt,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use purlin_core::Instant;
use tokio::sync::Notify;

use crate::{
    message::Message,
    pattern::Pattern,
    queue::{Closed, Overflow, Pushed, Queue, Taken},
    subscription::{Delivery, SubscribeOptions, SubscriptionId},
};

/// The transport's credit for a batch of messages, given back when the last clone is dropped.
pub(crate) type Hold = Arc<dyn Any + Send + Sync>;

/// What became of some deliveries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) queued: u64,
    pub(crate) lost: u64,
}

pub(crate) struct Inbox {
    pub(crate) id: SubscriptionId,
    pub(crate) pattern: Pattern,
    pub(crate) metadata: Box<str>,
    pushes_back: bool,
    state: Mutex<State>,
    room: Notify,
}

struct State {
    queue: Queue<Hold>,
    waker: Option<Waker>,
}

impl State {
    fn close(&mut self, reason: Closed) -> Option<Waker> {
        self.queue.close(reason);
        self.waker.take()
    }
}

impl Inbox {
    pub(crate) fn new(id: SubscriptionId, pattern: Pattern, options: SubscribeOptions) -> Self {
        let queue =
            Queue::new(options.overflow, options.messages_max.get(), options.bytes_max.get());
        Self {
            id,
            pattern,
            metadata: options.metadata.into(),
            pushes_back: matches!(options.overflow, Overflow::PushBack { .. }),
            state: Mutex::new(State { queue, waker: None }),
            room: Notify::new(),
        }
    }

    /// Whether credit of messages for this subscriber may have to be held.
    pub(crate) fn pushes_back(&self) -> bool {
        self.pushes_back
    }

    /// Delivers a message of a publisher on this node.
    pub(crate) fn push(&self, message: &Message) -> Pushed {
        let (pushed, waker) = {
            let mut state = self.state.lock();
            (state.queue.push(message), state.waker.take())
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        pushed
    }

    /// Delivers a batch from the network; `hold` is its credit, if somebody may have to keep it.
    pub(crate) fn push_arrived(&self, batch: &[Message], hold: Option<&Hold>, tally: &mut Tally) {
        let waker = {
            let mut state = self.state.lock();
            for message in batch {
                match state.queue.push_held(message, || hold.cloned()) {
                    Pushed::Queued { lost } => {
                        tally.queued += 1;
                        tally.lost += lost;
                    }
                    Pushed::Full | Pushed::Closed => tally.lost += 1,
                }
            }
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Delivers as [`Inbox::push`] does, but waits for room in a push-back queue.
    pub(crate) async fn push_when_room(&self, message: &Message) -> Pushed {
        loop {
            let room = self.room.notified();
            let mut room = std::pin::pin!(room);
            // Registered before the attempt, so room made in between is not missed.
            room.as_mut().enable();
            match self.push(message) {
                Pushed::Full => room.await,
                done @ (Pushed::Queued { .. } | Pushed::Closed) => return done,
            }
        }
    }

    /// Takes up to `max` messages; `Ready(0)` once closed and empty.
    pub(crate) fn poll_take(
        &self,
        cx: &mut Context<'_>,
        out: &mut Vec<Delivery>,
        max: usize,
    ) -> Poll<usize> {
        let mut state = self.state.lock();
        let taken = Self::take_locked(&mut state, out, max);
        if taken == 0 && state.queue.closed().is_none() && max > 0 {
            if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        drop(state);
        self.made_room(taken);
        Poll::Ready(taken)
    }

    /// As [`Inbox::poll_take`] for one message, without a vector.
    pub(crate) fn poll_take_one(&self, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        let mut state = self.state.lock();
        let Some(taken) = state.queue.take() else {
            if state.queue.closed().is_some() {
                return Poll::Ready(None);
            }
            if !state.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                state.waker = Some(cx.waker().clone());
            }
            return Poll::Pending;
        };
        drop(state);
        self.made_room(1);
        Poll::Ready(Some(delivery(taken)))
    }

    /// Takes a message if one waits.
    pub(crate) fn try_take(&self) -> Option<Delivery> {
        let taken = self.state.lock().queue.take()?;
        self.made_room(1);
        Some(delivery(taken))
    }

    fn take_locked(state: &mut State, out: &mut Vec<Delivery>, max: usize) -> usize {
        let count = max.min(state.queue.len());
        out.reserve(count);
        // Credit travels on inside the deliveries: giving it back may write to a connection, which
        // must not happen under this lock.
        for _ in 0..count {
            out.push(delivery(
                state.queue.take().expect("as many wait as were counted under this lock"),
            ));
        }
        count
    }

    fn made_room(&self, taken: usize) {
        if self.pushes_back && taken > 0 {
            self.room.notify_waiters();
        }
    }

    /// Ends the subscription; the subscriber still gets what waits.
    pub(crate) fn close(&self, reason: Closed) {
        let waker = self.state.lock().close(reason);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.room.notify_waiters();
    }

    /// See [`Queue::close_if_stalled`].
    pub(crate) fn close_if_stalled(&self, now: Instant) -> bool {
        let mut released = Vec::new();
        let waker = {
            let mut state = self.state.lock();
            if !state.queue.close_if_stalled(now, &mut released) {
                return false;
            }
            state.waker.take()
        };
        drop(released);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.room.notify_waiters();
        true
    }

    pub(crate) fn closed(&self) -> Option<Closed> {
        self.state.lock().queue.closed()
    }

    /// Messages and bytes waiting, and messages lost so far.
    pub(crate) fn load(&self) -> (usize, usize, u64) {
        let state = self.state.lock();
        (state.queue.len(), state.queue.bytes(), state.queue.lagged())
    }

    pub(crate) fn overflow(&self) -> Overflow {
        self.state.lock().queue.overflow()
    }
}

fn delivery(taken: Taken<Hold>) -> Delivery {
    Delivery { message: taken.message, missed: taken.missed, _hold: taken.hold }
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (messages, bytes, lagged) = self.load();
        f.debug_struct("Inbox")
            .field("id", &self.id)
            .field("pattern", &self.pattern)
            .field("messages", &messages)
            .field("bytes", &bytes)
            .field("lagged", &lagged)
            .finish_non_exhaustive()
    }
}
