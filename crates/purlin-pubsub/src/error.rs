//! Why a subscribe or a publish did not do what was asked.

use std::time::Duration;

use purlin_core::{Advice, NodeId, Outcome};

use crate::{
    hub::Published, message::HeadersError, subscription::METADATA_BYTES_MAX, topic::TopicError,
};

/// Why there is no subscription. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// The pattern breaks a rule; correct it.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The node has as many subscriptions as [`crate::Limits::subscriptions_max`] allows. End
    /// some, or subscribe once and share.
    #[error("this node already has its limit of {limit} subscriptions")]
    TooMany {
        /// The limit.
        limit: usize,
    },
    /// The metadata is above [`METADATA_BYTES_MAX`]; shorten it.
    #[error("subscription metadata of {bytes} bytes exceeds limit {METADATA_BYTES_MAX}")]
    Metadata {
        /// Its size.
        bytes: usize,
    },
    /// The node is shutting down; subscribe on another.
    #[error("pubsub was shut down")]
    ShutDown,
}

impl SubscribeError {
    /// Always [`Outcome::NotDone`].
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::NotDone
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Topic(_) | Self::Metadata { .. } => Advice::GiveUp,
            Self::TooMany { .. } | Self::ShutDown => Advice::RetryElsewhere(None),
        }
    }
}

/// Why a publish was refused or fell short.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The topic breaks a rule; correct it. Nothing was sent.
    #[error(transparent)]
    Topic(#[from] TopicError),
    /// The headers are above their bounds; shorten them. Nothing was sent.
    #[error(transparent)]
    Headers(#[from] HeadersError),
    /// The payload is above [`crate::Limits::message_bytes_max`]; split it, or send a reference.
    /// Nothing was sent.
    #[error("payload of {bytes} bytes exceeds limit {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// A typed value could not be encoded. Nothing was sent.
    #[error("cannot encode a value for topic {topic}: {reason}")]
    Encode {
        /// The topic it was for.
        topic: String,
        /// What the encoder says.
        reason: String,
    },
    /// Some receivers stayed full for the whole time. The others have the message: publishing it
    /// again gives it to them twice.
    #[error("{} of the receivers stayed full for {within:?}", published.full)]
    Full {
        /// How far the message got; `full` counts those without it.
        published: Published,
        /// How long was waited.
        within: Duration,
    },
    /// A message for one node, which is not connected. Nothing was sent.
    #[error("{0} is not a connected peer")]
    NotAPeer(NodeId),
    /// The node is shutting down. Nothing was sent.
    #[error("pubsub was shut down")]
    ShutDown,
}

impl PublishError {
    /// [`Outcome::Unknown`] if some receivers may have the message, else [`Outcome::NotDone`].
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Full { published, .. } if published.subscribers + published.nodes > 0 => {
                Outcome::Unknown
            }
            Self::Full { .. }
            | Self::Topic(_)
            | Self::Headers(_)
            | Self::TooLarge { .. }
            | Self::Encode { .. }
            | Self::NotAPeer(_)
            | Self::ShutDown => Outcome::NotDone,
        }
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Full { .. } if self.outcome() == Outcome::Unknown => Advice::SameRequestIdOnly,
            Self::Full { .. } | Self::NotAPeer(_) => Advice::Retry,
            Self::ShutDown => Advice::RetryElsewhere(None),
            Self::Topic(_) | Self::Headers(_) | Self::TooLarge { .. } | Self::Encode { .. } => {
                Advice::GiveUp
            }
        }
    }
}
