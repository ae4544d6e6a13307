//! The receiving end: options, the handle a subscriber reads from, and what it reads.

use std::{
    fmt,
    num::NonZeroUsize,
    ops::Deref,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use tokio::task::coop;

use crate::{
    hub::{Hub, Place},
    inbox::{Hold, Inbox},
    message::Message,
    pattern::Pattern,
    queue::{Closed, Overflow},
};

/// The most bytes of metadata on one subscription.
pub const METADATA_BYTES_MAX: usize = 256;

/// Names one subscription on its node, for as long as the node runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SubscriptionId(pub u64);

impl fmt::Display for SubscriptionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How a subscription behaves.
///
/// ```
/// use purlin_pubsub::{Overflow, SubscribeOptions};
/// let options = SubscribeOptions::new(Overflow::ConflateByKey).messages_max(500).metadata("price board");
/// # let _ = options;
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubscribeOptions {
    /// What happens at the bound.
    pub overflow: Overflow,
    /// How many messages may wait. Default 4,096: a tenth of a second of a busy topic (guess).
    pub messages_max: NonZeroUsize,
    /// How many bytes of payload and headers may wait; one larger message still fits into an empty
    /// queue. Default 8 MiB (guess). A message waits once per node, however many queues it is in.
    pub bytes_max: NonZeroUsize,
    /// A note for listings, such as who subscribes; at most [`METADATA_BYTES_MAX`] bytes.
    pub metadata: String,
}

impl SubscribeOptions {
    /// The default bounds, with `overflow` at the bound.
    #[must_use]
    pub fn new(overflow: Overflow) -> Self {
        Self { overflow, ..Self::default() }
    }

    /// Sets how many messages may wait; zero counts as one.
    #[must_use]
    pub fn messages_max(self, messages: usize) -> Self {
        Self { messages_max: NonZeroUsize::new(messages).unwrap_or(NonZeroUsize::MIN), ..self }
    }

    /// Sets how many bytes may wait; zero counts as one.
    #[must_use]
    pub fn bytes_max(self, bytes: usize) -> Self {
        Self { bytes_max: NonZeroUsize::new(bytes).unwrap_or(NonZeroUsize::MIN), ..self }
    }

    /// Sets the note for listings.
    #[must_use]
    pub fn metadata(self, metadata: impl Into<String>) -> Self {
        Self { metadata: metadata.into(), ..self }
    }
}

impl Default for SubscribeOptions {
    fn default() -> Self {
        Self {
            overflow: Overflow::DropOldest,
            messages_max: NonZeroUsize::new(4_096).expect("a literal above zero"),
            bytes_max: NonZeroUsize::new(8 << 20).expect("a literal above zero"),
            metadata: String::new(),
        }
    }
}

/// One received message.
///
/// Dereferences to [`Message`]. A push-back subscription gives the sender's credit back when this
/// is dropped or turned into its message.
#[derive(Clone)]
pub struct Delivery {
    pub(crate) message: Message,
    pub(crate) missed: u64,
    pub(crate) _hold: Option<Hold>,
}

impl Delivery {
    /// How many messages of this subscription were dropped or replaced directly before this one.
    /// Zero for subscriptions that lose none.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// The message, to keep; what it may have held of the sender's credit is given back.
    #[must_use]
    pub fn into_message(self) -> Message {
        self.message
    }
}

impl Deref for Delivery {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("message", &self.message)
            .field("missed", &self.missed)
            .finish_non_exhaustive()
    }
}

/// A subscription on this node. Dropping it unsubscribes; what waits in it is dropped, too.
///
/// Not shared: one reader at a time. Two readers want two subscriptions.
///
/// # Guarantees
/// Healthy: messages of one publisher to this subscription arrive in the order they were
/// published, each at most once.
/// Partitioned: messages from the other side are missing, without notice here: watch the
/// membership to know. Nothing is replayed after healing.
/// Restarted: a subscription ends with its node.
pub struct Subscription {
    inbox: Arc<Inbox>,
    hub: Arc<Hub>,
    place: Place,
}

impl Subscription {
    pub(crate) fn new(inbox: Arc<Inbox>, hub: Arc<Hub>, place: Place) -> Self {
        Self { inbox, hub, place }
    }

    /// Waits for the next message; `None` once the subscription has ended and nothing waits
    /// ([`Subscription::closed`] then says why).
    ///
    /// # Cancel safety
    /// A message is taken only when it is returned: dropping the future loses none.
    pub async fn recv(&mut self) -> Option<Delivery> {
        coop::cooperative(std::future::poll_fn(|cx| self.inbox.poll_take_one(cx))).await
    }

    /// Waits until at least one message is there, then appends up to `max` of them to `out` and
    /// returns how many. Zero means that the subscription has ended (or `max` is zero).
    ///
    /// For busy topics: one lock and one turn of the scheduler for many messages.
    ///
    /// # Cancel safety
    /// Messages are taken only when they are returned: dropping the future loses none.
    pub async fn recv_many(&mut self, out: &mut Vec<Delivery>, max: usize) -> usize {
        coop::cooperative(std::future::poll_fn(|cx| self.inbox.poll_take(cx, out, max))).await
    }

    /// The next message, if one waits.
    pub fn try_recv(&mut self) -> Option<Delivery> {
        self.inbox.try_take()
    }

    /// Names this subscription in listings and for [`crate::PubSub::publish_from`].
    #[must_use]
    pub fn id(&self) -> SubscriptionId {
        self.inbox.id
    }

    /// What it listens to.
    #[must_use]
    pub fn pattern(&self) -> &Pattern {
        &self.inbox.pattern
    }

    /// The note given when subscribing.
    #[must_use]
    pub fn metadata(&self) -> &str {
        &self.inbox.metadata
    }

    /// How many messages this subscription has lost so far: dropped, or replaced by a newer one of
    /// their key. [`Delivery::missed`] says where.
    #[must_use]
    pub fn lagged(&self) -> u64 {
        self.inbox.load().2
    }

    /// How many messages wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.inbox.load().0
    }

    /// Why it ended, if it has; messages may still wait.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        self.inbox.closed()
    }

    /// Waits until every peer knows about this subscription, so that what they publish from then
    /// on arrives here. True if they do, false if `within` passed first.
    ///
    /// # Guarantees
    /// Covers the peers that are connected or about to be: a peer that cannot be reached is waited
    /// for until the cluster gives it up. A node that joins later learns of it when it connects.
    ///
    /// # Cancel safety
    /// Safe: it only waits.
    pub async fn propagated(&self, within: Duration) -> bool {
        self.hub.propagated(within).await
    }

    /// Ends the subscription, as dropping it does.
    pub fn unsubscribe(self) {
        drop(self);
    }
}

impl Stream for Subscription {
    type Item = Delivery;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Delivery>> {
        self.inbox.poll_take_one(cx)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.unsubscribe(&self.inbox, &self.place);
    }
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inbox.fmt(f)
    }
}
