//! The mailbox: a queue bounded in messages and bytes, emptied in batches.
//!
//! A channel per process would be the easy answer, but a channel cannot see its own contents:
//! it could not drop the oldest message, withdraw a call whose deadline has passed, or tell how
//! many bytes wait. So the queue is ours: senders push under a short lock, the process swaps the
//! whole queue out at once and then works without touching the senders' lock. Only a parked
//! process is woken, and once.
//!
//! Two locks, always taken in this order: `queue` (senders, sweeper, swap), then `batch` (the
//! process at each message, the sweeper and `DropOldest` rarely).

use std::{
    collections::VecDeque,
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use purlin_core::{Instant, TraceContext};
use tokio::sync::{Notify, oneshot};

use crate::{CallError, Context, ExitReason, Info, Server, deadline::Deadlines};

/// What a full mailbox does with one more message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Overload {
    /// The sender waits for room, at most this long and never beyond its own deadline; then the
    /// message is refused. What cannot wait (`try_cast`, messages from other nodes) is refused at
    /// once.
    Wait(Duration),
    /// The message is refused at once.
    Reject,
    /// The oldest waiting message makes room; its caller, if it has one, is told.
    DropOldest,
}

/// The bounds of one mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MailboxLimits {
    /// How many messages may wait. More absorbs longer bursts, and adds as much latency under
    /// overload. Sane: 16 to 100,000. Default 16,384 (guess): four nodes' windows of casts.
    pub messages_max: usize,
    /// How many bytes of messages may wait; a single larger message is accepted into an empty
    /// mailbox. Sane: 64 KiB to 1 GiB. Default 16 MiB (guess).
    pub bytes_max: usize,
    /// What happens at either bound. Default: wait up to 5 s.
    pub overload: Overload,
}

impl Default for MailboxLimits {
    fn default() -> Self {
        Self {
            messages_max: 16_384,
            bytes_max: 16 * 1024 * 1024,
            overload: Overload::Wait(Duration::from_secs(5)),
        }
    }
}

/// A future that borrows the server and its context while one message is handled.
pub(crate) type Handling<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// A call that waits in a mailbox or is being handled.
pub(crate) trait Asked<S: Server>: Send + Sync {
    /// Takes the message out and handles it; `None` when that is done, or the caller has gone.
    fn handle<'a>(
        self: Arc<Self>,
        server: &'a mut S,
        ctx: &'a mut Context<S>,
    ) -> Option<Handling<'a>>;
    /// Answers `error`, unless an answer was given.
    fn fail(&self, error: CallError);
    /// Answers that the deadline passed; whether the message was withdrawn in time or is being
    /// handled makes the difference between "not done" and "unknown".
    fn expire(&self);
    /// What the message is called.
    fn name(&self) -> &'static str;
}

/// A message nobody of this node waits for.
pub(crate) trait Told<S: Server>: Send {
    /// Handles it; `None` when that is done.
    fn handle<'a>(
        self: Box<Self>,
        server: &'a mut S,
        ctx: &'a mut Context<S>,
    ) -> Option<Handling<'a>>;
    /// Tells a remote caller, if there is one, that it was not handled.
    fn fail(self: Box<Self>, error: CallError);
    /// What the message is called.
    fn name(&self) -> &'static str;
}

pub(crate) enum Body<S: Server> {
    Call(Arc<dyn Asked<S>>),
    Cast(Box<dyn Told<S>>),
    Info(Info),
}

/// A typed message on its way into a mailbox; made by [`Inbound::decode`](crate::Inbound::decode).
pub struct Envelope<S: Server> {
    pub(crate) body: Body<S>,
    pub(crate) bytes: usize,
    /// When the caller stops waiting; [`far`] for what has no caller.
    pub(crate) deadline: Instant,
    /// The trace it belongs to; boxed, because most messages have none.
    pub(crate) trace: Option<Box<TraceContext>>,
}

impl<S: Server> fmt::Debug for Envelope<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope").field("message", &self.name()).finish_non_exhaustive()
    }
}

impl<S: Server> Envelope<S> {
    pub(crate) fn name(&self) -> &'static str {
        match &self.body {
            Body::Call(asked) => asked.name(),
            Body::Cast(told) => told.name(),
            Body::Info(_) => "info",
        }
    }

    pub(crate) fn info(info: Info) -> Self {
        Self { body: Body::Info(info), bytes: size_of::<Info>(), deadline: far(), trace: None }
    }

    pub(crate) fn fail(self, error: CallError) {
        match self.body {
            Body::Call(asked) => asked.fail(error),
            Body::Cast(told) => told.fail(error),
            Body::Info(_) => {}
        }
    }
}

/// The deadline of what has none.
pub(crate) fn far() -> Instant {
    Instant::ZERO + Duration::MAX
}

/// A request that overtakes the messages waiting.
#[derive(Debug)]
pub(crate) enum Signal {
    /// End at the next await point; run nothing more.
    Kill,
    /// A linked process failed and this one does not trap exits.
    Exit(ExitReason),
    /// Finish the current message, then end without handling the rest.
    Stop(ExitReason),
    /// Take no more messages, handle those waiting, then end.
    Drain(ExitReason),
    /// Tell the state.
    Summarize(oneshot::Sender<String>),
}

/// No signal asks for the end.
const CALM: u8 = 0;
/// The end can wait for the callback that runs.
const POLITE: u8 = 1;
/// The callback that runs is dropped; `terminate` still runs.
const EXIT: u8 = 2;
/// Everything is dropped.
const KILL: u8 = 3;

/// How many summary requests may wait; a stuck process must not collect them.
const SIGNALS_MAX: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Open,
    /// Takes nothing new; what waits is still handled.
    Draining,
    Closed,
}

struct Queue<S: Server> {
    items: VecDeque<Envelope<S>>,
    bytes: usize,
    gate: Gate,
    signals: VecDeque<Signal>,
    /// Whom to wake: the process's task, parked for messages or waiting inside a callback.
    waker: Option<Waker>,
    /// Whether a message (and not only a signal) may wake it.
    parked: bool,
    /// No call in queue, batch or hands has an earlier deadline.
    earliest: Instant,
    /// Whether the deadline sweeper looks at this mailbox.
    watched: bool,
}

struct Batch<S: Server> {
    items: VecDeque<Envelope<S>>,
    /// The call being handled, so that its deadline is honoured while the server is stuck.
    current: Option<(Arc<dyn Asked<S>>, Instant)>,
    current_name: &'static str,
}

pub(crate) struct Mailbox<S: Server> {
    pub(crate) limits: MailboxLimits,
    queue: Mutex<Queue<S>>,
    batch: Mutex<Batch<S>>,
    signalled: AtomicBool,
    /// How pressing the end is: [`CALM`], [`POLITE`], [`EXIT`] or [`KILL`]. Only grows.
    urgency: AtomicU8,
    /// What the batch still holds; written under the batch lock only.
    batch_messages: AtomicUsize,
    batch_bytes: AtomicUsize,
    handled: AtomicU64,
    dropped: AtomicU64,
    waiting: AtomicUsize,
    room: Notify,
}

/// Why a message did not get in; it comes back to the sender.
pub(crate) enum Refused<S: Server> {
    /// At a bound; the sender may wait for room.
    Full(Envelope<S>, Fill),
    Closed(Envelope<S>),
}

/// Whether the deadline sweeper has yet to be told to visit this mailbox.
#[must_use]
pub(crate) struct Watch(pub(crate) bool);

/// How full a mailbox is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Fill {
    pub(crate) messages: usize,
    pub(crate) bytes: usize,
}

/// What the process does next.
pub(crate) enum Next<S: Server> {
    Message(Envelope<S>),
    /// The batch is used up.
    Empty,
}

impl<S: Server> Mailbox<S> {
    pub(crate) fn new(limits: MailboxLimits) -> Self {
        Self {
            limits,
            queue: Mutex::new(Queue {
                items: VecDeque::new(),
                bytes: 0,
                gate: Gate::Open,
                signals: VecDeque::new(),
                waker: None,
                parked: false,
                earliest: far(),
                watched: false,
            }),
            batch: Mutex::new(Batch { items: VecDeque::new(), current: None, current_name: "" }),
            signalled: AtomicBool::new(false),
            urgency: AtomicU8::new(CALM),
            batch_messages: AtomicUsize::new(0),
            batch_bytes: AtomicUsize::new(0),
            handled: AtomicU64::new(0),
            dropped: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            room: Notify::new(),
        }
    }

    /// Puts a message in, or says why not. Wakes the process if it is parked.
    ///
    /// A call passes how long its caller waits; its deadline is set here, where a recent reading
    /// of the clock is at hand. The answer says whether the sweeper must be told about this mailbox.
    pub(crate) fn push(
        &self,
        mut envelope: Envelope<S>,
        within: Option<Duration>,
        deadlines: &Deadlines,
    ) -> Result<Watch, Refused<S>> {
        let mut evicted = Vec::new();
        let mut queue = self.queue.lock();
        if queue.gate != Gate::Open {
            return Err(Refused::Closed(envelope));
        }
        let fill = self.fill_of(&queue);
        if fill.messages >= self.limits.messages_max
            || (fill.messages > 0
                && fill.bytes.saturating_add(envelope.bytes) > self.limits.bytes_max)
        {
            if self.limits.overload != Overload::DropOldest {
                return Err(Refused::Full(envelope, fill));
            }
            evicted = self.drop_oldest(&mut queue, envelope.bytes, fill);
        }
        let mut watch = Watch(false);
        if let Some(within) = within {
            watch = Watch(!queue.watched);
            envelope.deadline = deadlines.deadline(within, watch.0);
            queue.watched = true;
            queue.earliest = queue.earliest.min(envelope.deadline);
        }
        queue.bytes += envelope.bytes;
        queue.items.push_back(envelope);
        let waker = if queue.parked {
            queue.parked = false;
            queue.waker.take()
        } else {
            None
        };
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        // Without the lock: telling a caller on another node can lead anywhere, back here too.
        for envelope in evicted {
            envelope.fail(self.overloaded(fill));
        }
        Ok(watch)
    }

    /// Puts an info in whatever the bounds say: their number is bounded by links, monitors and
    /// timers, and losing one would break a promise. Dropped when the mailbox is closed.
    pub(crate) fn push_info(&self, info: Info) {
        let mut queue = self.queue.lock();
        if queue.gate == Gate::Closed {
            return;
        }
        let envelope = Envelope::info(info);
        queue.bytes += envelope.bytes;
        queue.items.push_back(envelope);
        queue.parked = false;
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Raises a signal; false when there is nobody to raise it to.
    pub(crate) fn raise(&self, signal: Signal) -> bool {
        let mut queue = self.queue.lock();
        if queue.gate == Gate::Closed && !matches!(signal, Signal::Kill) {
            return false;
        }
        match &signal {
            Signal::Kill => self.press(KILL),
            Signal::Exit(_) => self.press(EXIT),
            Signal::Stop(_) => self.press(POLITE),
            Signal::Drain(_) => {
                self.press(POLITE);
                if queue.gate == Gate::Open {
                    queue.gate = Gate::Draining;
                }
            }
            Signal::Summarize(_) if queue.signals.len() >= SIGNALS_MAX => return false,
            Signal::Summarize(_) => {}
        }
        if matches!(signal, Signal::Kill) {
            queue.signals.push_front(signal);
        } else {
            queue.signals.push_back(signal);
        }
        self.signalled.store(true, Ordering::Release);
        queue.parked = false;
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// The next signal, if any.
    pub(crate) fn next_signal(&self) -> Option<Signal> {
        if !self.signalled.load(Ordering::Acquire) {
            return None;
        }
        let mut queue = self.queue.lock();
        let signal = queue.signals.pop_front();
        if queue.signals.is_empty() {
            self.signalled.store(false, Ordering::Release);
        }
        signal
    }

    /// Whether a signal asks for the running callback to be dropped. Stays set.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.urgency.load(Ordering::Acquire) >= EXIT
    }

    /// Whether the process was killed: nothing of it may run any more.
    pub(crate) fn is_killed(&self) -> bool {
        self.urgency.load(Ordering::Acquire) >= KILL
    }

    /// Whether any signal, however polite, asks the process to end.
    pub(crate) fn must_end(&self) -> bool {
        self.urgency.load(Ordering::Acquire) > CALM
    }

    /// The most urgent signal that asks the process to end.
    pub(crate) fn next_end(&self) -> Option<Signal> {
        let mut queue = self.queue.lock();
        queue.signals.retain(|signal| !matches!(signal, Signal::Summarize(_)));
        queue.signals.pop_front()
    }

    /// Takes the next message of the batch and marks it as the one being handled.
    pub(crate) fn next(&self) -> Next<S> {
        let mut batch = self.batch.lock();
        let finished = batch.current.take();
        let Some(envelope) = batch.items.pop_front() else {
            batch.current_name = "";
            drop(batch);
            drop(finished);
            return Next::Empty;
        };
        batch.current_name = envelope.name();
        if let Body::Call(asked) = &envelope.body {
            batch.current = Some((Arc::clone(asked), envelope.deadline));
        }
        self.batch_messages.store(batch.items.len(), Ordering::Relaxed);
        let bytes = self.batch_bytes.load(Ordering::Relaxed);
        self.batch_bytes.store(bytes.saturating_sub(envelope.bytes), Ordering::Relaxed);
        drop(batch);
        drop(finished);
        self.handled.store(self.handled.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        if self.waiting.load(Ordering::Acquire) > 0 {
            self.room.notify_one();
        }
        Next::Message(envelope)
    }

    /// Moves what waits into the batch, or parks the task. Ready(false) means: there is nothing
    /// and there never will be, the mailbox drains.
    pub(crate) fn poll_batch(&self, cx: &mut std::task::Context<'_>) -> Poll<bool> {
        let mut queue = self.queue.lock();
        if !queue.items.is_empty() {
            let mut batch = self.batch.lock();
            debug_assert!(batch.items.is_empty(), "the batch is used up before the next swap");
            std::mem::swap(&mut queue.items, &mut batch.items);
            self.batch_messages.store(batch.items.len(), Ordering::Relaxed);
            self.batch_bytes.store(queue.bytes, Ordering::Relaxed);
            queue.bytes = 0;
            return Poll::Ready(true);
        }
        if !queue.signals.is_empty() {
            return Poll::Ready(true);
        }
        if queue.gate != Gate::Open {
            return Poll::Ready(false);
        }
        match &mut queue.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        queue.parked = true;
        Poll::Pending
    }

    /// Lets signals, and only signals, wake a task that waits inside a callback.
    pub(crate) fn wake_on_signal(&self, waker: &Waker) {
        let mut queue = self.queue.lock();
        queue.parked = false;
        match &mut queue.waker {
            Some(old) => old.clone_from(waker),
            none => *none = Some(waker.clone()),
        }
    }

    /// Whether new messages are taken.
    pub(crate) fn is_open(&self) -> bool {
        self.queue.lock().gate == Gate::Open
    }

    /// Takes no more messages and answers all that wait: what was being handled with
    /// [`CallError::ExitedDuring`], the rest with [`CallError::ExitedBefore`].
    pub(crate) fn close(&self, reason: &ExitReason) {
        let mut queue = self.queue.lock();
        queue.gate = Gate::Closed;
        queue.bytes = 0;
        queue.parked = false;
        let queued = std::mem::take(&mut queue.items);
        // Who asked for a summary learns from the dropped sender that there will be none.
        queue.signals.retain(|signal| matches!(signal, Signal::Kill));
        let mut batch = self.batch.lock();
        let batched = std::mem::take(&mut batch.items);
        let current = batch.current.take();
        batch.current_name = "";
        self.batch_messages.store(0, Ordering::Relaxed);
        self.batch_bytes.store(0, Ordering::Relaxed);
        drop(batch);
        drop(queue);
        if let Some((asked, _)) = current {
            asked.fail(CallError::ExitedDuring(reason.clone()));
        }
        for envelope in batched.into_iter().chain(queued) {
            envelope.fail(CallError::ExitedBefore(reason.clone()));
        }
        // Those who wait for room learn that there will be none.
        self.room.notify_waiters();
    }

    /// Messages and bytes waiting: the queue and what is left of the batch.
    pub(crate) fn fill(&self) -> Fill {
        self.fill_of(&self.queue.lock())
    }

    /// Messages taken out to be handled so far.
    pub(crate) fn handled(&self) -> u64 {
        self.handled.load(Ordering::Relaxed)
    }

    /// Messages dropped to make room for newer ones so far.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// What the message being handled is called; empty between messages.
    pub(crate) fn current_name(&self) -> &'static str {
        self.batch.lock().current_name
    }

    /// Waits until there may be room. May return early; try again then.
    pub(crate) async fn room(&self, seen: Fill) {
        // Registered before the bounds are looked at again: room made in between is not missed.
        let notified = self.room.notified();
        tokio::pin!(notified);
        notified.as_mut().enable();
        let _count = Count::add(&self.waiting);
        let now = {
            let queue = self.queue.lock();
            if queue.gate != Gate::Open {
                return;
            }
            self.fill_of(&queue)
        };
        if now.messages < seen.messages || now.bytes < seen.bytes {
            return;
        }
        notified.await;
    }

    /// Passes on a wake-up that made room for more than one.
    pub(crate) fn pass_on_room(&self) {
        if self.waiting.load(Ordering::Acquire) > 0 {
            let fill = self.fill();
            if fill.messages < self.limits.messages_max && fill.bytes < self.limits.bytes_max {
                self.room.notify_one();
            }
        }
    }

    fn press(&self, urgency: u8) {
        self.urgency.fetch_max(urgency, Ordering::AcqRel);
    }

    fn fill_of(&self, queue: &Queue<S>) -> Fill {
        Fill {
            messages: queue.items.len() + self.batch_messages.load(Ordering::Relaxed),
            bytes: queue.bytes + self.batch_bytes.load(Ordering::Relaxed),
        }
    }

    fn overloaded(&self, fill: Fill) -> CallError {
        CallError::Overloaded {
            messages: fill.messages,
            bytes: fill.bytes,
            messages_max: self.limits.messages_max,
            bytes_max: self.limits.bytes_max,
        }
    }

    fn drop_oldest(&self, queue: &mut Queue<S>, bytes: usize, fill: Fill) -> Vec<Envelope<S>> {
        let mut evicted = Vec::new();
        let (mut messages, mut left) = (fill.messages, fill.bytes);
        let mut batch = self.batch.lock();
        // Infos carry promises (an exit, a timer) and stay; they are few.
        let fits = |messages: usize, left: usize| {
            messages < self.limits.messages_max
                && (messages == 0 || left.saturating_add(bytes) <= self.limits.bytes_max)
        };
        let mut in_batch = self.batch_bytes.load(Ordering::Relaxed);
        while !fits(messages, left)
            && let Some(at) = oldest_message(&batch.items)
            && let Some(envelope) = batch.items.remove(at)
        {
            messages -= 1;
            left = left.saturating_sub(envelope.bytes);
            in_batch = in_batch.saturating_sub(envelope.bytes);
            evicted.push(envelope);
        }
        self.batch_messages.store(batch.items.len(), Ordering::Relaxed);
        self.batch_bytes.store(in_batch, Ordering::Relaxed);
        drop(batch);
        while !fits(messages, left)
            && let Some(at) = oldest_message(&queue.items)
            && let Some(envelope) = queue.items.remove(at)
        {
            messages -= 1;
            left = left.saturating_sub(envelope.bytes);
            queue.bytes = queue.bytes.saturating_sub(envelope.bytes);
            evicted.push(envelope);
        }
        let dropped = evicted.len() as u64;
        self.dropped.fetch_add(dropped, Ordering::Relaxed);
        metrics::counter!("purlin_process_messages_dropped_total", "kind" => S::KIND)
            .increment(dropped);
        evicted
    }
}

fn oldest_message<S: Server>(items: &VecDeque<Envelope<S>>) -> Option<usize> {
    items.iter().position(|envelope| !matches!(envelope.body, Body::Info(_)))
}

impl<S: Server> Mailbox<S> {
    /// Expires the calls that are due; whether there may be more later.
    pub(crate) fn sweep(&self, now: Instant) -> bool {
        let mut expired: Vec<Arc<dyn Asked<S>>> = Vec::new();
        let mut queue = self.queue.lock();
        let batch = self.batch.lock();
        if queue.items.is_empty() && batch.items.is_empty() && batch.current.is_none() {
            queue.watched = false;
            queue.earliest = far();
            return false;
        }
        drop(batch);
        if now < queue.earliest {
            return true;
        }
        let mut earliest = far();
        let mut take_expired = |items: &mut VecDeque<Envelope<S>>| {
            let mut bytes = 0;
            items.retain(|envelope| match &envelope.body {
                Body::Call(asked) if envelope.deadline <= now => {
                    expired.push(Arc::clone(asked));
                    bytes += envelope.bytes;
                    false
                }
                Body::Call(_) => {
                    earliest = earliest.min(envelope.deadline);
                    true
                }
                Body::Cast(_) | Body::Info(_) => true,
            });
            bytes
        };
        queue.bytes -= take_expired(&mut queue.items).min(queue.bytes);
        let mut batch = self.batch.lock();
        let freed = take_expired(&mut batch.items);
        self.batch_messages.store(batch.items.len(), Ordering::Relaxed);
        let bytes = self.batch_bytes.load(Ordering::Relaxed);
        self.batch_bytes.store(bytes.saturating_sub(freed), Ordering::Relaxed);
        if let Some((asked, deadline)) = &batch.current {
            if *deadline <= now {
                expired.push(Arc::clone(asked));
            } else {
                earliest = earliest.min(*deadline);
            }
        }
        drop(batch);
        queue.earliest = earliest;
        drop(queue);
        for asked in &expired {
            asked.expire();
        }
        if self.waiting.load(Ordering::Acquire) > 0 && !expired.is_empty() {
            self.room.notify_one();
        }
        true
    }
}

struct Count<'a>(&'a AtomicUsize);

impl<'a> Count<'a> {
    fn add(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::AcqRel);
        Self(count)
    }
}

impl Drop for Count<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}
