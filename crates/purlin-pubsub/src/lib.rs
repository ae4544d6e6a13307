//! Publish and subscribe across the nodes of a cluster.
//!
//! The easy answer, one process per topic that sends everything to every node, has two costs that
//! only show under load: the whole cluster pays for one subscriber, and a hot topic runs at the
//! speed of one task. Here, each node tells its peers which topics it has subscribers for
//! (`interest`), so a message goes once to each node that wants it, and there it is handed to all
//! subscribers by whoever brought it: the publisher's own thread or the connection's reader, with
//! no task in between and one shared copy of the bytes.
//!
//! Delivery is at most once, in order per publisher while connected. A subscriber that cannot keep
//! up is bounded, and what happens at the bound is its own choice ([`Overflow`]).
//!
//! In reading order: [`topic`] and [`pattern`] (names), [`message`], `queue` (the bound of a
//! subscriber, pure) and `inbox` (its lock and waker), `roster` and `registry` (who gets what),
//! `interest` (which node wants what, pure), `hub` (publishing, delivering, peers' frames), `wire`,
//! `transport` and `driver` (the shells), [`typed`].

mod driver;
mod error;
mod hub;
mod inbox;
mod interest;
mod limits;
pub mod message;
mod metrics;
pub mod pattern;
mod peer;
mod pubsub;
mod queue;
mod registry;
mod roster;
mod stats;
mod subscription;
pub mod topic;
mod transport;
pub mod typed;
mod wire;

pub use error::{PublishError, SubscribeError};
pub use hub::Published;
pub use limits::Limits;
pub use message::{Headers, HeadersError, Message, Publication};
pub use pattern::{Pattern, PatternTree};
pub use pubsub::{PubSub, TopicHandle};
pub use queue::{Closed, Overflow};
pub use stats::{PeerStats, Stats, SubscriptionStats, TopicStats};
pub use subscription::{
    Delivery, METADATA_BYTES_MAX, SubscribeOptions, Subscription, SubscriptionId,
};
pub use topic::{TOPIC_BYTES_MAX, TOPIC_LEVELS_MAX, Topic, TopicError};
pub use transport::StartError;
pub use typed::{TypedSubscription, TypedTopic};
