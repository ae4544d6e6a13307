//! Values instead of bytes, for topics that carry one type.

use std::{fmt, marker::PhantomData, time::Duration};

use serde::{Serialize, de::DeserializeOwned};

use crate::{
    error::{PublishError, SubscribeError},
    hub::Published,
    message::Publication,
    pubsub::TopicHandle,
    queue::Closed,
    subscription::{Delivery, SubscribeOptions, Subscription},
};

/// The content type of typed payloads.
pub const POSTCARD: &str = "application/postcard";

/// A topic that carries values of `T`, encoded with postcard.
///
/// Both ends must agree on `T`: postcard has no field names, so an added or reordered field is
/// another type. For values that must outlive a release, or that other languages read, publish
/// JSON bytes.
pub struct TypedTopic<T> {
    topic: TopicHandle,
    value: PhantomData<fn() -> T>,
}

impl<T: Serialize + DeserializeOwned> TypedTopic<T> {
    pub(crate) fn new(topic: TopicHandle) -> Self {
        Self { topic, value: PhantomData }
    }

    /// The topic underneath, for bytes and the other ways to publish.
    #[must_use]
    pub fn as_untyped(&self) -> &TopicHandle {
        &self.topic
    }

    /// `value` as a publication, to add headers such as a conflation key.
    ///
    /// # Errors
    /// [`PublishError::Encode`].
    pub fn encode(&self, value: &T) -> Result<Publication, PublishError> {
        let bytes = postcard::to_stdvec(value).map_err(|error| PublishError::Encode {
            topic: self.topic.topic().to_string(),
            reason: error.to_string(),
        })?;
        Ok(Publication::new(bytes).content_type(POSTCARD))
    }

    /// As [`crate::PubSub::publish`].
    ///
    /// # Errors
    /// As [`crate::PubSub::publish`], and [`PublishError::Encode`].
    pub fn publish(&self, value: &T) -> Result<Published, PublishError> {
        self.topic.publish(self.encode(value)?)
    }

    /// As [`crate::PubSub::publish_within`].
    ///
    /// # Errors
    /// As [`crate::PubSub::publish_within`], and [`PublishError::Encode`].
    ///
    /// # Cancel safety
    /// As [`crate::PubSub::publish_within`].
    pub async fn publish_within(
        &self,
        value: &T,
        within: Duration,
    ) -> Result<Published, PublishError> {
        self.topic.publish_within(self.encode(value)?, within).await
    }

    /// Subscribes with the default options.
    ///
    /// # Errors
    /// [`SubscribeError`]; nothing was changed.
    pub fn subscribe(&self) -> Result<TypedSubscription<T>, SubscribeError> {
        self.subscribe_with(SubscribeOptions::default())
    }

    /// Subscribes.
    ///
    /// # Errors
    /// [`SubscribeError`]; nothing was changed.
    pub fn subscribe_with(
        &self,
        options: SubscribeOptions,
    ) -> Result<TypedSubscription<T>, SubscribeError> {
        Ok(TypedSubscription {
            subscription: self.topic.subscribe_with(options)?,
            value: PhantomData,
        })
    }
}

impl<T> Clone for TypedTopic<T> {
    fn clone(&self) -> Self {
        Self { topic: self.topic.clone(), value: PhantomData }
    }
}

impl<T> fmt::Debug for TypedTopic<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TypedTopic<{}>({})", std::any::type_name::<T>(), self.topic.topic())
    }
}

/// A subscription to a topic that carries values of `T`.
pub struct TypedSubscription<T> {
    subscription: Subscription,
    value: PhantomData<fn() -> T>,
}

/// A payload that is no `T`: the publisher has another idea of the type. The message is consumed.
#[derive(Debug, thiserror::Error)]
#[error("message on topic {} is no {expected}: {reason}", delivery.topic())]
pub struct NotA {
    /// The type that was expected.
    pub expected: &'static str,
    /// What the decoder says.
    pub reason: String,
    /// The message.
    pub delivery: Delivery,
}

impl<T: DeserializeOwned> TypedSubscription<T> {
    /// Waits for the next value, with the message it came in; `None` once the subscription has
    /// ended.
    ///
    /// # Errors
    /// [`NotA`] for a payload that is no `T`; the next call goes on with the next message.
    ///
    /// # Cancel safety
    /// Dropping the future loses no message.
    pub async fn recv(&mut self) -> Option<Result<(T, Delivery), NotA>> {
        let delivery = self.subscription.recv().await?;
        Some(match postcard::from_bytes(delivery.payload()) {
            Ok(value) => Ok((value, delivery)),
            Err(error) => Err(NotA {
                expected: std::any::type_name::<T>(),
                reason: error.to_string(),
                delivery,
            }),
        })
    }

    /// The subscription underneath.
    #[must_use]
    pub fn as_untyped(&self) -> &Subscription {
        &self.subscription
    }

    /// Why it ended, if it has.
    #[must_use]
    pub fn closed(&self) -> Option<Closed> {
        self.subscription.closed()
    }
}

impl<T> fmt::Debug for TypedSubscription<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TypedSubscription<{}>({:?})", std::any::type_name::<T>(), self.subscription)
    }
}
