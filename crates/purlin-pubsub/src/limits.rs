//! The bounds of one node's pubsub.

use std::num::NonZeroUsize;

/// Everything that can grow, and how far. The defaults suit a node with 1 GiB of memory.
///
/// Per node: peers may have other limits. A message above a receiver's limit for the `stream`
/// channel is refused by the sender's transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The largest payload. At most the `stream` channel's largest message less 2 KiB, which
    /// [`crate::PubSub::start`] checks. Larger messages hold up what is behind them. Default
    /// 1 MiB (guess).
    pub message_bytes_max: NonZeroUsize,
    /// Subscriptions on this node; above it, subscribing is refused. About 1 KiB each while empty.
    /// Default 100,000 (guess).
    pub subscriptions_max: NonZeroUsize,
    /// Topics and patterns a node announces one by one, and keeps per peer. Above it a node is
    /// sent everything and sorts it out itself: memory is traded for traffic. About 100 bytes per
    /// entry and peer. Default 50,000 (guess).
    pub interest_max: NonZeroUsize,
    /// Topics without a subscriber here whose counts and route are remembered; about 500 bytes
    /// each. Above it, idle ones are forgotten and their counts start again from zero. Default
    /// 4,096 (guess).
    pub idle_topics_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        let literal = |value| NonZeroUsize::new(value).expect("a literal above zero");
        Self {
            message_bytes_max: literal(1 << 20),
            subscriptions_max: literal(100_000),
            interest_max: literal(50_000),
            idle_topics_max: 4_096,
        }
    }
}
