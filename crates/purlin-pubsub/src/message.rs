//! What is published, and what a subscriber gets.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use purlin_core::{HlcTimestamp, NodeId};

use crate::topic::Topic;

/// The most headers one message may carry.
pub const HEADERS_MAX: usize = 16;

/// The most bytes all headers of a message may have, names and values with three bytes for each.
///
/// Headers are for routing and decoding, not for content: that is what the payload is for.
pub const HEADERS_BYTES_MAX: usize = 1024;

/// The header that says how to decode the payload.
pub const CONTENT_TYPE: &str = "content-type";

/// The header a conflating subscription keeps the newest message of.
pub const KEY: &str = "key";

/// Something to publish: a payload and, if wanted, a few small headers.
///
/// Anything that turns into [`Bytes`] turns into a publication without headers. The payload is
/// not copied for local subscribers.
///
/// ```
/// use purlin_pubsub::Publication;
/// let quote = Publication::new("101.25").content_type("text/plain").key("EUR/CHF");
/// assert_eq!(quote.payload(), "101.25");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publication {
    payload: Bytes,
    headers: Headers,
}

impl Publication {
    /// A publication of `payload` without headers.
    #[must_use]
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: payload.into(), headers: Headers::default() }
    }

    /// Says how to decode the payload, such as `application/json`.
    #[must_use]
    pub fn content_type(self, content_type: &str) -> Self {
        self.header(CONTENT_TYPE, content_type)
    }

    /// The key under which a conflating subscription keeps only the newest message. Without it,
    /// such a subscription keeps the newest message of the topic.
    #[must_use]
    pub fn key(self, key: &str) -> Self {
        self.header(KEY, key)
    }

    /// Adds a header, or replaces the one of that name. Bounds are checked when publishing.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.set(name, value);
        self
    }

    /// The payload.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// The headers, in the order they were added.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    pub(crate) fn into_parts(self) -> (Bytes, Headers) {
        (self.payload, self.headers)
    }
}

impl<T: Into<Bytes>> From<T> for Publication {
    fn from(payload: T) -> Self {
        Self::new(payload)
    }
}

/// Small named texts beside the payload: at most [`HEADERS_MAX`] and [`HEADERS_BYTES_MAX`].
///
/// Names compare byte for byte; by custom they are lower case.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(Box<str>, Box<str>)>);

impl Headers {
    /// The value of the header called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| **n == *name).map(|(_, value)| &**value)
    }

    /// Names and values, in the order they were added.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    /// How many headers there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Their size as [`HEADERS_BYTES_MAX`] counts it.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len() + 3).sum()
    }

    pub(crate) fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(n, _)| **n == *name) {
            Some((_, old)) => *old = value.into(),
            None => self.0.push((name.into(), value.into())),
        }
    }

    pub(crate) fn check(&self) -> Result<(), HeadersError> {
        if self.len() > HEADERS_MAX {
            return Err(HeadersError::TooMany { headers: self.len() });
        }
        if let Some((name, _)) =
            self.iter().find(|(name, _)| name.is_empty() || name.len() > usize::from(u8::MAX))
        {
            return Err(HeadersError::Name { name: name.to_owned() });
        }
        let bytes = self.bytes();
        if bytes > HEADERS_BYTES_MAX {
            return Err(HeadersError::TooLarge { bytes });
        }
        Ok(())
    }
}

impl fmt::Debug for Headers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Why headers were refused. The publisher made them; nothing was sent; shorten them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeadersError {
    /// More than [`HEADERS_MAX`].
    #[error("{headers} headers exceed limit {HEADERS_MAX}")]
    TooMany {
        /// How many there were.
        headers: usize,
    },
    /// Together above [`HEADERS_BYTES_MAX`].
    #[error("headers of {bytes} bytes exceed limit {HEADERS_BYTES_MAX}")]
    TooLarge {
        /// Their size as the limit counts it.
        bytes: usize,
    },
    /// A name that is empty or above 255 bytes.
    #[error("header name {name:?} has {} bytes, needs 1 to 255", name.len())]
    Name {
        /// The name.
        name: String,
    },
}

/// A published message. Clones share one allocation, and so do all subscribers of a node.
#[derive(Clone)]
pub struct Message(Arc<Envelope>);

struct Envelope {
    topic: Topic,
    payload: Bytes,
    headers: Headers,
    publisher: NodeId,
    published_at: HlcTimestamp,
}

impl Message {
    pub(crate) fn new(
        topic: Topic,
        payload: Bytes,
        headers: Headers,
        publisher: NodeId,
        published_at: HlcTimestamp,
    ) -> Self {
        Self(Arc::new(Envelope { topic, payload, headers, publisher, published_at }))
    }

    /// The topic it was published under.
    #[must_use]
    pub fn topic(&self) -> &Topic {
        &self.0.topic
    }

    /// What was published.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.0.payload
    }

    /// The headers that came with it.
    #[must_use]
    pub fn headers(&self) -> &Headers {
        &self.0.headers
    }

    /// How to decode the payload, if the publisher said.
    #[must_use]
    pub fn content_type(&self) -> Option<&str> {
        self.headers().get(CONTENT_TYPE)
    }

    /// What a conflating subscription groups by: the `key` header, or else the topic.
    #[must_use]
    pub fn conflation_key(&self) -> &str {
        self.headers().get(KEY).unwrap_or_else(|| self.topic().as_str())
    }

    /// The node it was published on.
    #[must_use]
    pub fn publisher(&self) -> &NodeId {
        &self.0.publisher
    }

    /// When it was published, on the publisher's hybrid logical clock: later messages of one
    /// publisher have later timestamps, and so has an answer compared with its question.
    #[must_use]
    pub fn published_at(&self) -> HlcTimestamp {
        self.0.published_at
    }

    /// What it counts against a subscription's byte bound: payload and headers.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.payload.len() + self.0.headers.bytes()
    }
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Message")
            .field("topic", self.topic())
            .field("publisher", self.publisher())
            .field("published_at", &self.published_at())
            .field("headers", self.headers())
            .field("payload_bytes", &self.payload().len())
            .finish()
    }
}
