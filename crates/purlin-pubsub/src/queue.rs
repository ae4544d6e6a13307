//! The bounded queue in front of one subscriber, as a pure state machine.
//!
//! A subscriber that falls behind must not take memory without end, and must not slow the others
//! without having asked for it. So every queue has a bound in messages and in bytes, and one stated
//! behaviour at the bound. What was lost is counted and reported in the place where it is missing.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use purlin_core::Instant;

use crate::message::Message;

/// What happens to a subscription whose queue is at its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Overflow {
    /// The oldest waiting message makes room. For feeds where fresh beats complete.
    DropOldest,
    /// A message replaces the waiting one with the same [`crate::message::KEY`] header (without one: of the same
    /// topic), at the place in the queue that one had, so a busy key cannot starve the others.
    /// At the bound, the oldest makes room. For states, prices, positions.
    ConflateByKey,
    /// The subscription ends; what was queued can still be received. For consumers that would
    /// rather start over than miss one.
    Disconnect,
    /// Nothing is lost: publishers are slowed down. A local publisher that never waits is told,
    /// one that waits does; a remote node is not given back its credit for messages above the
    /// bound until they are received. That holds up everything that node publishes to this one,
    /// so the patience is bounded.
    PushBack {
        /// How long a full queue may go without the subscriber receiving anything before the
        /// subscription is ended. Default 10 s (a guess); sane from 1 s to a minute.
        stall_max: Duration,
    },
}

impl Overflow {
    /// [`Overflow::PushBack`] with the default patience.
    #[must_use]
    pub fn push_back() -> Self {
        Self::PushBack { stall_max: Duration::from_secs(10) }
    }

    /// The name used in listings and metrics.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::DropOldest => "drop_oldest",
            Self::ConflateByKey => "conflate_by_key",
            Self::Disconnect => "disconnect",
            Self::PushBack { .. } => "push_back",
        }
    }
}

/// Why a subscription ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Closed {
    /// The subscriber unsubscribed.
    #[error("unsubscribed")]
    Unsubscribed,
    /// The queue of an [`Overflow::Disconnect`] subscription was full.
    #[error("the queue overflowed with {messages} messages of {bytes} bytes waiting")]
    Overflow {
        /// Messages waiting at that moment.
        messages: usize,
        /// Their bytes.
        bytes: usize,
    },
    /// An [`Overflow::PushBack`] subscriber received nothing for too long with a full queue.
    #[error("nothing was received for {0:?} with a full queue")]
    Stalled(Duration),
    /// The node's pubsub was shut down.
    #[error("pubsub was shut down")]
    ShutDown,
}

/// What became of a pushed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// It waits. `lost` older messages made room or were replaced.
    Queued { lost: u64 },
    /// There is no room, and this queue loses nothing: try again after a receive.
    Full,
    /// The subscription has ended, perhaps by this very push.
    Closed,
}

/// One message as the subscriber takes it.
#[derive(Debug)]
pub(crate) struct Taken<H> {
    pub(crate) message: Message,
    pub(crate) missed: u64,
    /// Gives the credit back when dropped.
    pub(crate) hold: Option<H>,
}

#[derive(Debug)]
struct Entry<H> {
    message: Message,
    /// How many messages this one replaced.
    replaced: u32,
    hold: Option<H>,
}

/// See the module. `H` is the transport's credit for a message; tests put a counter there.
#[derive(Debug)]
pub(crate) struct Queue<H> {
    overflow: Overflow,
    messages_max: usize,
    bytes_max: usize,
    entries: VecDeque<Entry<H>>,
    bytes: usize,
    /// Place of the front entry in the endless sequence of all entries ever queued.
    front: u64,
    /// Conflation only: the place of each waiting key.
    places: HashMap<Box<str>, u64>,
    /// Dropped in front of the front entry since the last take.
    gap: u64,
    lagged: u64,
    takes: u64,
    /// Since when the queue was seen full, and the takes at that time.
    full_since: Option<(Instant, u64)>,
    closed: Option<Closed>,
}

impl<H> Queue<H> {
    pub(crate) fn new(overflow: Overflow, messages_max: usize, bytes_max: usize) -> Self {
        assert!(
            messages_max > 0 && bytes_max > 0,
            "a queue of {messages_max} messages and {bytes_max} bytes holds nothing"
        );
        Self {
            overflow,
            messages_max,
            bytes_max,
            entries: VecDeque::new(),
            bytes: 0,
            front: 0,
            places: HashMap::new(),
            gap: 0,
            lagged: 0,
            takes: 0,
            full_since: None,
            closed: None,
        }
    }

    /// Adds a message from a publisher that can be told to wait.
    pub(crate) fn push(&mut self, message: &Message) -> Pushed {
        self.admit(message, None::<fn() -> Option<H>>)
    }

    /// Adds a message that has already crossed the network. A push-back queue takes it even above
    /// its bound, and then asks for its `hold`: the sender's credit is what bounds it.
    pub(crate) fn push_held(
        &mut self,
        message: &Message,
        hold: impl FnOnce() -> Option<H>,
    ) -> Pushed {
        self.admit(message, Some(hold))
    }

    fn admit(&mut self, message: &Message, hold: Option<impl FnOnce() -> Option<H>>) -> Pushed {
        if self.closed.is_some() {
            return Pushed::Closed;
        }
        match self.overflow {
            Overflow::DropOldest => {
                let lost = self.make_room(message.bytes());
                self.append(message, None);
                Pushed::Queued { lost }
            }
            Overflow::ConflateByKey => self.conflate(message),
            Overflow::Disconnect if self.is_full_for(message.bytes()) => {
                self.close(Closed::Overflow { messages: self.entries.len(), bytes: self.bytes });
                self.lagged += 1;
                Pushed::Closed
            }
            Overflow::PushBack { .. } if self.is_full_for(message.bytes()) => match hold {
                None => Pushed::Full,
                Some(hold) => {
                    self.append(message, hold());
                    Pushed::Queued { lost: 0 }
                }
            },
            Overflow::Disconnect | Overflow::PushBack { .. } => {
                self.append(message, None);
                Pushed::Queued { lost: 0 }
            }
        }
    }

    fn conflate(&mut self, message: &Message) -> Pushed {
        let key = message.conflation_key();
        if let Some(&place) = self.places.get(key) {
            let at =
                usize::try_from(place - self.front).expect("a waiting entry is within the queue");
            let entry = &mut self.entries[at];
            self.bytes = self.bytes - entry.message.bytes() + message.bytes();
            entry.message = message.clone();
            entry.replaced = entry.replaced.saturating_add(1);
            self.lagged += 1;
            // A newer value may be larger than the one it replaces.
            return Pushed::Queued { lost: 1 + self.shrink() };
        }
        let lost = self.make_room(message.bytes());
        let place = self.front + self.entries.len() as u64;
        self.places.insert(key.into(), place);
        self.append(message, None);
        Pushed::Queued { lost }
    }

    /// Takes the oldest message, with the number lost directly before it.
    pub(crate) fn take(&mut self) -> Option<Taken<H>> {
        let entry = self.pop_front()?;
        self.takes += 1;
        let missed = std::mem::take(&mut self.gap) + u64::from(entry.replaced);
        Some(Taken { message: entry.message, missed, hold: entry.hold })
    }

    /// Ends the subscription. Waiting messages can still be taken; the first reason stays.
    pub(crate) fn close(&mut self, reason: Closed) {
        self.closed.get_or_insert(reason);
    }

    /// Ends a push-back subscription whose queue was full, with nothing taken, for its whole
    /// patience. True if this call ended it. To be called now and then: time is measured between
    /// calls, so a late call only makes the patience longer.
    ///
    /// Credit held for waiting messages comes back with `released`: the messages stay, within the
    /// bound that the credit already gave them.
    pub(crate) fn close_if_stalled(&mut self, now: Instant, released: &mut Vec<H>) -> bool {
        let Overflow::PushBack { stall_max } = self.overflow else { return false };
        if self.closed.is_some() || !self.is_full() {
            self.full_since = None;
            return false;
        }
        match self.full_since {
            Some((since, takes)) if takes == self.takes => {
                if now.saturating_since(since) < stall_max {
                    return false;
                }
                self.close(Closed::Stalled(stall_max));
                released.extend(self.entries.iter_mut().filter_map(|entry| entry.hold.take()));
                true
            }
            Some(_) | None => {
                self.full_since = Some((now, self.takes));
                false
            }
        }
    }

    pub(crate) fn closed(&self) -> Option<Closed> {
        self.closed
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Messages of this subscription dropped or replaced so far.
    pub(crate) fn lagged(&self) -> u64 {
        self.lagged
    }

    pub(crate) fn overflow(&self) -> Overflow {
        self.overflow
    }

    /// Whether not even an empty message would be within the bound.
    pub(crate) fn is_full(&self) -> bool {
        self.entries.len() >= self.messages_max || self.bytes >= self.bytes_max
    }

    /// An empty queue takes any message, even one above `bytes_max`: it could never come otherwise.
    fn is_full_for(&self, bytes: usize) -> bool {
        !self.entries.is_empty()
            && (self.entries.len() >= self.messages_max || self.bytes + bytes > self.bytes_max)
    }

    fn append(&mut self, message: &Message, hold: Option<H>) {
        self.bytes += message.bytes();
        self.entries.push_back(Entry { message: message.clone(), replaced: 0, hold });
    }

    fn make_room(&mut self, bytes: usize) -> u64 {
        let mut lost = 0;
        while self.is_full_for(bytes) {
            lost += self.drop_front();
        }
        lost
    }

    fn shrink(&mut self) -> u64 {
        let mut lost = 0;
        while self.bytes > self.bytes_max && self.entries.len() > 1 {
            lost += self.drop_front();
        }
        lost
    }

    fn drop_front(&mut self) -> u64 {
        let entry = self.pop_front().expect("a full queue is not empty");
        self.gap += 1 + u64::from(entry.replaced);
        self.lagged += 1;
        1
    }

    fn pop_front(&mut self) -> Option<Entry<H>> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.message.bytes();
        self.front += 1;
        if matches!(self.overflow, Overflow::ConflateByKey) {
            self.places.remove(entry.message.conflation_key());
        }
        Some(entry)
    }
}

#[cfg(test)]
mod tests;
