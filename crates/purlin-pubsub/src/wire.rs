//! How a message looks inside a frame of the `stream` channel.
//!
//! ```text
//! 1  version (high four bits, 1) and flags (bit 0: headers follow the topic)
//! 8  time of the publisher's hybrid logical clock, big endian; its node is the sending peer
//! 1  length of the topic, then the topic
//!    headers, if flagged: 1 count; each 1 name length, name, 2 value length (big endian), value
//!    payload: the rest of the frame
//! ```
//!
//! The head is built once per publish; every receiving node gets the same bytes.

use purlin_core::{HlcTimestamp, hlc::NodeTag};

use crate::message::{HEADERS_BYTES_MAX, HEADERS_MAX, Headers};

const VERSION: u8 = 1;
const HAS_HEADERS: u8 = 1;

/// The largest head: version, time, topic and headers.
pub(crate) const HEAD_BYTES_MAX: usize = 10 + crate::TOPIC_BYTES_MAX + 1 + HEADERS_BYTES_MAX;

/// Appends everything of a message but its payload. `headers` must have passed its check.
pub(crate) fn encode_head(
    topic: &str,
    published_at: HlcTimestamp,
    headers: &Headers,
    out: &mut Vec<u8>,
) {
    out.push(VERSION << 4 | if headers.is_empty() { 0 } else { HAS_HEADERS });
    out.extend_from_slice(&published_at.to_bytes()[..8]);
    out.push(
        u8::try_from(topic.len()).expect("a topic has at most 255 bytes: checked in Topic::parse"),
    );
    out.extend_from_slice(topic.as_bytes());
    if headers.is_empty() {
        return;
    }
    out.push(u8::try_from(headers.len()).expect("at most 16 headers: checked before publishing"));
    for (name, value) in headers.iter() {
        out.push(
            u8::try_from(name.len())
                .expect("a header name has at most 255 bytes: checked before publishing"),
        );
        out.extend_from_slice(name.as_bytes());
        let value_bytes = u16::try_from(value.len())
            .expect("headers have at most 1024 bytes: checked before publishing");
        out.extend_from_slice(&value_bytes.to_be_bytes());
        out.extend_from_slice(value.as_bytes());
    }
}

/// A message as it lies in a frame.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Decoded<'a> {
    /// Not yet checked against the rules of topics.
    pub(crate) topic: &'a str,
    time: [u8; 8],
    pub(crate) headers: Headers,
    /// Where the payload begins in the frame.
    pub(crate) payload_at: usize,
}

impl Decoded<'_> {
    pub(crate) fn published_at(&self, publisher: NodeTag) -> HlcTimestamp {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.time);
        bytes[8..].copy_from_slice(&publisher.0.to_be_bytes());
        HlcTimestamp::from_bytes(bytes)
    }
}

/// Why a frame is no message. The peer sent junk; the frame is dropped and counted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    #[error("message of version {0}, this node reads version {VERSION}")]
    Version(u8),
    #[error("message frame of {0} bytes ends inside its head")]
    Short(usize),
    #[error("message head is not UTF-8")]
    Text,
    #[error("message has headers above the limits")]
    Headers,
}

/// Reads the head of `frame`; the payload is everything from [`Decoded::payload_at`].
pub(crate) fn decode(frame: &[u8]) -> Result<Decoded<'_>, DecodeError> {
    let mut cursor = Cursor { frame, at: 0 };
    let [first] = cursor.array::<1>()?;
    if first >> 4 != VERSION {
        return Err(DecodeError::Version(first >> 4));
    }
    let time = cursor.array::<8>()?;
    let [topic_bytes] = cursor.array::<1>()?;
    let topic = cursor.text(usize::from(topic_bytes))?;
    let headers = if first & HAS_HEADERS == 0 { Headers::default() } else { cursor.headers()? };
    Ok(Decoded { topic, time, headers, payload_at: cursor.at })
}

struct Cursor<'a> {
    frame: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8], DecodeError> {
        let taken =
            self.frame.get(self.at..self.at + bytes).ok_or(DecodeError::Short(self.frame.len()))?;
        self.at += bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        Ok(self.take(N)?.try_into().expect("take gives as many bytes as asked for"))
    }

    fn text(&mut self, bytes: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.take(bytes)?).map_err(|_not_utf8| DecodeError::Text)
    }

    fn headers(&mut self) -> Result<Headers, DecodeError> {
        let [count] = self.array::<1>()?;
        if usize::from(count) > HEADERS_MAX {
            return Err(DecodeError::Headers);
        }
        let mut headers = Headers::default();
        for _ in 0..count {
            let [name_bytes] = self.array::<1>()?;
            let name = self.text(usize::from(name_bytes))?;
            let value_bytes = u16::from_be_bytes(self.array::<2>()?);
            headers.set(name, self.text(usize::from(value_bytes))?);
        }
        headers.check().map_err(|_above| DecodeError::Headers)?;
        Ok(headers)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(String, String)]) -> Headers {
        let mut headers = Headers::default();
        pairs.iter().for_each(|(name, value)| headers.set(name, value));
        headers
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(
            topic in "[a-z/]{1,40}",
            stamp in any::<[u8; 16]>(),
            pairs in proptest::collection::vec(("[a-z-]{1,12}", ".{0,20}"), 0..5),
            payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let stamp = HlcTimestamp::from_bytes(stamp);
            let headers = headers(&pairs);
            prop_assume!(headers.check().is_ok());
            let mut frame = Vec::new();
            encode_head(&topic, stamp, &headers, &mut frame);
            prop_assert!(frame.len() <= HEAD_BYTES_MAX);
            frame.extend_from_slice(&payload);
            let decoded = decode(&frame).unwrap();
            prop_assert_eq!(decoded.topic, topic.as_str());
            prop_assert_eq!(decoded.published_at(stamp.node()), stamp);
            prop_assert_eq!(&decoded.headers, &headers);
            prop_assert_eq!(&frame[decoded.payload_at..], payload.as_slice());
        }

        #[test]
        fn junk_is_refused_without_a_panic(frame in proptest::collection::vec(any::<u8>(), 0..64), force in any::<bool>()) {
            let mut frame = frame;
            if force && let Some(first) = frame.first_mut() {
                *first = VERSION << 4 | HAS_HEADERS;
            }
            if let Ok(decoded) = decode(&frame) {
                prop_assert!(decoded.payload_at <= frame.len());
            }
        }

        #[test]
        fn half_a_head_is_refused(topic in "[a-z]{1,20}", cut in 0_usize..30) {
            let mut frame = Vec::new();
            encode_head(&topic, HlcTimestamp::from_bytes([7; 16]), &headers(&[("k".into(), "v".into())]), &mut frame);
            prop_assume!(cut < frame.len());
            prop_assert_eq!(decode(&frame[..cut]), Err(DecodeError::Short(cut)));
        }
    }

    #[test]
    fn another_version_is_named() {
        assert_eq!(decode(&[0x20, 0, 0]), Err(DecodeError::Version(2)));
    }
}
