//! What users hold: the node's pubsub, and a topic resolved once.

use std::{sync::Arc, time::Duration};

use purlin_core::{Clock, NodeId};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    driver,
    error::{PublishError, SubscribeError},
    hub::{Hub, Published, Reach},
    limits::Limits,
    message::Publication,
    pattern::Pattern,
    registry::Slot,
    stats::{Stats, SubscriptionStats, TopicStats},
    subscription::{SubscribeOptions, Subscription},
    topic::{Topic, TopicError},
    typed::TypedTopic,
};

/// Publish and subscribe by topic, on this node and across the cluster. Cheap to clone.
///
/// For telling many, now: feeds, notifications, cache invalidations. Not for work that must be
/// done: nothing is stored, and who is not connected misses it.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(async {
/// use purlin_core::{Incarnation, NodeId, NodeName};
/// use purlin_pubsub::{Limits, PubSub};
///
/// let node = NodeId::new(NodeName::parse("n1")?, Incarnation(1));
/// let pubsub = PubSub::on_one_node(node, Limits::default(), std::sync::Arc::new(purlin_core::SystemClock::new()));
/// let mut orders = pubsub.subscribe("orders/**")?;
/// pubsub.publish("orders/eu/created", "42")?;
/// let delivery = orders.recv().await.expect("the subscription is open");
/// assert_eq!(delivery.payload(), "42");
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
///
/// # Guarantees
/// Healthy: each subscriber gets each message at most once; those of one publisher in the order
/// they were published. Only nodes with subscribers are sent anything. A message is lost to a
/// subscriber only by its own overflow policy, and then counted; to a node only when its
/// connection is full or breaks, and then the publisher is told ([`Published`]).
/// Partitioned: each side goes on by itself; messages do not cross, and are not kept for later.
/// Restarted: subscriptions and counts end with the process.
#[derive(Debug, Clone)]
pub struct PubSub {
    hub: Arc<Hub>,
}

impl PubSub {
    /// Pubsub without a network, for tests and programs of a single node. The same code later
    /// runs on a cluster.
    ///
    /// Inside a Tokio runtime a small task measures rates and ends stalled subscriptions; outside
    /// of one, nobody does.
    #[must_use]
    pub fn on_one_node(node: NodeId, limits: Limits, clock: Arc<dyn Clock>) -> Self {
        let hub = Arc::new(Hub::new(node, limits, clock));
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(driver::keep(Arc::downgrade(&hub)));
        }
        Self::new(hub)
    }

    pub(crate) fn new(hub: Arc<Hub>) -> Self {
        Self { hub }
    }

    /// Subscribes to a topic or pattern with the default options: 4,096 messages or 8 MiB may
    /// wait, then the oldest make room.
    ///
    /// Other nodes learn of it within a round trip; [`Subscription::propagated`] waits for that.
    ///
    /// # Errors
    /// [`SubscribeError`]; nothing was changed.
    pub fn subscribe(&self, pattern: &str) -> Result<Subscription, SubscribeError> {
        self.subscribe_with(pattern, SubscribeOptions::default())
    }

    /// Subscribes with a bound, an overflow policy and metadata of the caller's choice.
    ///
    /// # Errors
    /// [`SubscribeError`]; nothing was changed.
    pub fn subscribe_with(
        &self,
        pattern: &str,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError> {
        self.hub.subscribe(Pattern::parse(pattern)?, options)
    }

    /// Resolves `topic` once, for publishing to it many times.
    ///
    /// # Errors
    /// [`TopicError`] when it is no topic.
    pub fn topic(&self, topic: &str) -> Result<TopicHandle, TopicError> {
        let slot = self.hub.slot(&Topic::parse(topic)?);
        Ok(TopicHandle { hub: Arc::clone(&self.hub), slot })
    }

    /// Publishes to all subscribers of the cluster. Never waits: who is full does not get it, and
    /// is counted in [`Published::full`].
    ///
    /// # Units and limits
    /// Payloads up to [`Limits::message_bytes_max`], headers up to
    /// [`crate::message::HEADERS_BYTES_MAX`].
    ///
    /// # Errors
    /// [`PublishError`]; nothing was sent.
    ///
    /// # Guarantees
    /// See [`PubSub`]. Returning says that local subscribers have it and connections took it, not
    /// that other nodes have received it.
    #[doc(alias = "broadcast")]
    pub fn publish(
        &self,
        topic: &str,
        publication: impl Into<Publication>,
    ) -> Result<Published, PublishError> {
        self.topic(topic)?.publish(publication)
    }

    /// Publishes to all subscribers of the cluster but `from`.
    ///
    /// # Errors
    /// As [`PubSub::publish`].
    #[doc(alias = "broadcast_from")]
    pub fn publish_from(
        &self,
        from: &Subscription,
        topic: &str,
        publication: impl Into<Publication>,
    ) -> Result<Published, PublishError> {
        self.topic(topic)?.publish_from(from, publication)
    }

    /// Publishes to the subscribers on this node only.
    ///
    /// # Errors
    /// As [`PubSub::publish`].
    #[doc(alias = "local_broadcast")]
    pub fn publish_local(
        &self,
        topic: &str,
        publication: impl Into<Publication>,
    ) -> Result<Published, PublishError> {
        self.topic(topic)?.publish_local(publication)
    }

    /// Publishes to the subscribers on `node` only, which may be this one. A node without
    /// subscribers for the topic is sent nothing.
    ///
    /// # Errors
    /// As [`PubSub::publish`], and [`PublishError::NotAPeer`].
    #[doc(alias = "direct_broadcast")]
    pub fn publish_to(
        &self,
        node: &NodeId,
        topic: &str,
        publication: impl Into<Publication>,
    ) -> Result<Published, PublishError> {
        self.topic(topic)?.publish_to(node, publication)
    }

    /// Publishes to all subscribers of the cluster and waits up to `within` for push-back
    /// subscribers and connections that are full. With a single publisher that awaits each of
    /// these, push-back subscribers miss nothing while they are connected.
    ///
    /// # Errors
    /// As [`PubSub::publish`], and [`PublishError::Full`] when some stayed full: the others have
    /// the message.
    ///
    /// # Cancel safety
    /// Not safe: when dropped while waiting, some have the message and some do not.
    pub async fn publish_within(
        &self,
        topic: &str,
        publication: impl Into<Publication>,
        within: Duration,
    ) -> Result<Published, PublishError> {
        self.topic(topic)?.publish_within(publication, within).await
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        self.hub.node()
    }

    /// The bounds it runs with.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        self.hub.limits()
    }

    /// Counts since the start, and what is known of the peers.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.hub.stats()
    }

    /// The `limit` busiest topics: by rate, then by messages so far, then by subscribers.
    #[must_use]
    pub fn topics(&self, limit: usize) -> Vec<TopicStats> {
        self.hub.topics(limit)
    }

    /// Up to `limit` subscriptions of this node, in order of their ids.
    #[must_use]
    pub fn subscriptions(&self, limit: usize) -> Vec<SubscriptionStats> {
        self.hub.subscriptions(limit)
    }

    /// The other nodes that would be sent a message of `topic` now.
    ///
    /// # Errors
    /// [`TopicError`] when it is no topic.
    pub fn interested(&self, topic: &str) -> Result<Vec<NodeId>, TopicError> {
        Ok(self.hub.interested(&Topic::parse(topic)?))
    }

    /// Ends every subscription with [`crate::Closed::ShutDown`], refuses new ones and publishes,
    /// and tells the peers that nothing is wanted here any more. What waits can still be received.
    /// For a node that leaves.
    pub fn shut_down(&self) {
        self.hub.shut_down();
    }
}

/// A topic resolved once: publishing through it looks nothing up. Cheap to clone.
#[derive(Debug, Clone)]
pub struct TopicHandle {
    hub: Arc<Hub>,
    slot: Arc<Slot>,
}

impl TopicHandle {
    /// The topic.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.slot.topic
    }

    /// As [`PubSub::publish`].
    ///
    /// # Errors
    /// As [`PubSub::publish`].
    pub fn publish(&self, publication: impl Into<Publication>) -> Result<Published, PublishError> {
        self.hub.publish(&self.slot, publication.into(), Reach::Cluster, None, None)
    }

    /// As [`PubSub::publish_from`].
    ///
    /// # Errors
    /// As [`PubSub::publish_from`].
    pub fn publish_from(
        &self,
        from: &Subscription,
        publication: impl Into<Publication>,
    ) -> Result<Published, PublishError> {
        self.hub.publish(&self.slot, publication.into(), Reach::Cluster, Some(from.id()), None)
    }

    /// As [`PubSub::publish_local`].
    ///
    /// # Errors
    /// As [`PubSub::publish_local`].
    pub fn publish_local(
        &self,
        publication: impl Into<Publication>,
    ) -> Result<Published, PublishError> {
        self.hub.publish(&self.slot, publication.into(), Reach::Local, None, None)
    }

    /// As [`PubSub::publish_to`].
    ///
    /// # Errors
    /// As [`PubSub::publish_to`].
    pub fn publish_to(
        &self,
        node: &NodeId,
        publication: impl Into<Publication>,
    ) -> Result<Published, PublishError> {
        self.hub.publish(&self.slot, publication.into(), Reach::Node(node), None, None)
    }

    /// As [`PubSub::publish_within`].
    ///
    /// # Errors
    /// As [`PubSub::publish_within`].
    ///
    /// # Cancel safety
    /// As [`PubSub::publish_within`].
    pub async fn publish_within(
        &self,
        publication: impl Into<Publication>,
        within: Duration,
    ) -> Result<Published, PublishError> {
        self.hub.publish_within(&self.slot, publication.into(), Reach::Cluster, None, within).await
    }

    /// Subscribes to this topic with the default options.
    ///
    /// # Errors
    /// [`SubscribeError`]; nothing was changed.
    pub fn subscribe(&self) -> Result<Subscription, SubscribeError> {
        self.subscribe_with(SubscribeOptions::default())
    }

    /// Subscribes to this topic.
    ///
    /// # Errors
    /// [`SubscribeError`]; nothing was changed.
    pub fn subscribe_with(
        &self,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError> {
        self.hub.subscribe(self.topic().clone().into(), options)
    }

    /// This topic with values of `T` instead of bytes.
    #[must_use]
    pub fn typed<T: Serialize + DeserializeOwned>(self) -> TypedTopic<T> {
        TypedTopic::new(self)
    }
}
