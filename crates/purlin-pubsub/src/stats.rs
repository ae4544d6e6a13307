//! Counts for consoles, metrics and tests.

use std::sync::atomic::Ordering;

use purlin_core::NodeId;

use crate::{
    inbox::Inbox, pattern::Pattern, queue::Overflow, registry::Slot, subscription::SubscriptionId,
    topic::Topic,
};

/// One node's pubsub since it started.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Messages published on this node.
    pub published: u64,
    /// Messages received from other nodes.
    pub received: u64,
    /// Messages queued for subscribers of this node; a message for ten of them counts ten times.
    pub delivered: u64,
    /// Messages dropped or replaced in subscribers' queues, or refused by ended subscriptions.
    pub lost: u64,
    /// Messages from other nodes that nobody here wanted any more.
    pub unwanted: u64,
    /// Frames, topics and interest entries from other nodes that broke a rule.
    pub malformed: u64,
    /// Push-back subscriptions ended because they received nothing with a full queue.
    pub stalled: u64,
    /// Batches of messages whose publisher's clock was further ahead than is believed.
    pub clock_ahead: u64,
    /// Subscriptions now.
    pub subscriptions: usize,
    /// Topics whose counts are kept now.
    pub topics_tracked: usize,
    /// Topics and patterns with subscribers here.
    pub interest_entries: usize,
    /// Whether they are too many, so that peers are asked for everything.
    pub interest_coarse: bool,
    /// Connected peers, in order of their names.
    pub peers: Vec<PeerStats>,
}

/// What this node knows of one peer, and has sent to it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStats {
    /// Which peer.
    pub node: NodeId,
    /// Messages its connection took. Zero as long as it has no subscriber for what is published.
    pub messages_sent: u64,
    /// Their bytes, topic and headers included.
    pub bytes_sent: u64,
    /// Messages not sent because its credit or the backlog was used up.
    pub full: u64,
    /// Messages not sent because there was no connection.
    pub unreachable: u64,
    /// Whether it has said what it wants.
    pub interest_known: bool,
    /// Topics and patterns it wants.
    pub interest_entries: usize,
    /// Whether it is sent everything.
    pub interest_coarse: bool,
}

/// What has happened on one topic on this node while it was tracked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct TopicStats {
    /// Which topic.
    pub topic: Topic,
    /// Subscribers here of exactly this topic; those of patterns are not counted.
    pub subscribers: usize,
    /// Messages per second of the last full second, published here or received.
    pub rate: u64,
    /// Messages published here.
    pub published: u64,
    /// Messages received from other nodes.
    pub received: u64,
    /// Messages queued for subscribers here, patterns included.
    pub delivered: u64,
    /// Messages dropped or replaced in queues.
    pub lost: u64,
    /// Payload bytes published here or received.
    pub bytes: u64,
}

impl TopicStats {
    pub(crate) fn of(slot: &Slot) -> Self {
        let counts = &slot.counts;
        let [rate, published, received, delivered, lost, bytes] = [
            &counts.rate,
            &counts.published,
            &counts.received,
            &counts.delivered,
            &counts.lost,
            &counts.bytes,
        ]
        .map(|count| count.load(Ordering::Relaxed));
        let subscribers = slot.roster.len();
        Self {
            topic: slot.topic.clone(),
            subscribers,
            rate,
            published,
            received,
            delivered,
            lost,
            bytes,
        }
    }

    /// What listings sort by, busiest first.
    pub(crate) fn busyness(&self) -> (u64, u64, usize) {
        (self.rate, self.published + self.received, self.subscribers)
    }
}

/// One subscription on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SubscriptionStats {
    /// Which subscription.
    pub id: SubscriptionId,
    /// What it listens to.
    pub pattern: Pattern,
    /// The note given when subscribing.
    pub metadata: String,
    /// What it does when it is full.
    pub overflow: Overflow,
    /// Messages waiting.
    pub waiting: usize,
    /// Their bytes.
    pub waiting_bytes: usize,
    /// Messages it has lost.
    pub lagged: u64,
}

impl SubscriptionStats {
    pub(crate) fn of(inbox: &Inbox) -> Self {
        let (waiting, waiting_bytes, lagged) = inbox.load();
        Self {
            id: inbox.id,
            pattern: inbox.pattern.clone(),
            metadata: inbox.metadata.to_string(),
            overflow: inbox.overflow(),
            waiting,
            waiting_bytes,
            lagged,
        }
    }
}
