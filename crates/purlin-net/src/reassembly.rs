//! Putting fragmented messages together again, within a bound.
//!
//! A message larger than one frame travels as fragments, back to back on its connection, so that
//! order per partition key holds for large and small messages alike. The first fragment announces
//! the total, but the announcement reserves nothing: memory grows only with bytes that arrived.

use bytes::Bytes;

use crate::frame::{FLAG_FIRST, FLAG_LAST, Header, ServiceId};

/// Why fragments do not make a message. The peer broke the protocol; its connection is closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReassemblyError {
    /// The announced total exceeds the channel's bound.
    #[error("payload of {bytes} bytes exceeds limit {max}")]
    TooLong {
        /// What the first fragment announces.
        bytes: u64,
        /// The bound, [`crate::ChannelSpec::payload_bytes_max`].
        max: u64,
    },
    /// A first fragment without room for the total.
    #[error("first fragment of {bytes} bytes has no total length; it takes 4")]
    NoTotal {
        /// How long the fragment is.
        bytes: usize,
    },
    /// A first fragment while another message is incomplete.
    #[error("a message began after {have} of {total} bytes of the one before")]
    Interleaved {
        /// Bytes received of the incomplete message.
        have: usize,
        /// Bytes it announced.
        total: usize,
    },
    /// A later fragment without a first one, or for another service.
    #[error("a fragment continues a message that never began")]
    Orphan,
    /// The pieces are longer or shorter than announced.
    #[error("message of {have} bytes was announced as {total}")]
    WrongTotal {
        /// Bytes received.
        have: usize,
        /// Bytes announced.
        total: usize,
    },
}

/// The one message of a connection that is incomplete, if any.
#[derive(Debug)]
pub struct Reassembly {
    payload_bytes_max: usize,
    partial: Option<Partial>,
}

#[derive(Debug)]
struct Partial {
    service: ServiceId,
    total: usize,
    bytes: Vec<u8>,
}

impl Reassembly {
    /// Accepts messages of up to `payload_bytes_max` bytes.
    #[must_use]
    pub fn new(payload_bytes_max: usize) -> Self {
        Self { payload_bytes_max, partial: None }
    }

    /// Whether a message is incomplete.
    #[must_use]
    pub fn is_partial(&self) -> bool {
        self.partial.is_some()
    }

    /// How many bytes are held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.bytes.capacity())
    }

    /// Adds one fragment; returns the message when it was the last.
    ///
    /// # Errors
    /// [`ReassemblyError`]; the incomplete message is forgotten.
    pub fn push(
        &mut self,
        header: Header,
        payload: &[u8],
    ) -> Result<Option<Bytes>, ReassemblyError> {
        let (mut partial, piece) = if header.flags & FLAG_FIRST == 0 {
            (self.partial.take().ok_or(ReassemblyError::Orphan)?, payload)
        } else {
            self.begin(header.service, payload)?
        };
        if partial.service != header.service {
            return Err(ReassemblyError::Orphan);
        }
        let have = partial.bytes.len() + piece.len();
        let is_last = header.flags & FLAG_LAST != 0;
        if have > partial.total || (is_last && have != partial.total) {
            return Err(ReassemblyError::WrongTotal { have, total: partial.total });
        }
        partial.bytes.extend_from_slice(piece);
        if is_last {
            return Ok(Some(partial.bytes.into()));
        }
        self.partial = Some(partial);
        Ok(None)
    }

    fn begin<'a>(
        &mut self,
        service: ServiceId,
        payload: &'a [u8],
    ) -> Result<(Partial, &'a [u8]), ReassemblyError> {
        if let Some(before) = self.partial.take() {
            return Err(ReassemblyError::Interleaved {
                have: before.bytes.len(),
                total: before.total,
            });
        }
        let (total, piece) = payload
            .split_first_chunk::<4>()
            .ok_or(ReassemblyError::NoTotal { bytes: payload.len() })?;
        let total = u32::from_le_bytes(*total) as usize;
        if total > self.payload_bytes_max {
            return Err(ReassemblyError::TooLong {
                bytes: total as u64,
                max: self.payload_bytes_max as u64,
            });
        }
        Ok((Partial { service, total, bytes: Vec::with_capacity(piece.len()) }, piece))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame::Kind;

    fn header(service: u8, flags: u8) -> Header {
        Header { kind: Kind::Fragment, service: ServiceId(service), flags, payload_bytes: 0 }
    }

    fn first(total: u32, piece: &[u8]) -> Vec<u8> {
        [&total.to_le_bytes()[..], piece].concat()
    }

    #[test]
    fn an_announcement_above_the_limit_is_refused_and_reserves_nothing() {
        let mut reassembly = Reassembly::new(100);
        let refused = reassembly.push(header(1, FLAG_FIRST), &first(101, b"x")).unwrap_err();
        assert_eq!(refused, ReassemblyError::TooLong { bytes: 101, max: 100 });
        assert_eq!(reassembly.held_bytes(), 0);
        assert_eq!(reassembly.push(header(1, FLAG_FIRST), &first(100, b"x")), Ok(None));
        assert_eq!(reassembly.held_bytes(), 1);
    }

    #[test]
    fn a_fragment_without_a_beginning_is_an_orphan() {
        let mut reassembly = Reassembly::new(100);
        assert_eq!(reassembly.push(header(1, FLAG_LAST), b"x"), Err(ReassemblyError::Orphan));
        reassembly.push(header(1, FLAG_FIRST), &first(2, b"x")).unwrap();
        assert_eq!(reassembly.push(header(2, FLAG_LAST), b"y"), Err(ReassemblyError::Orphan));
    }

    #[test]
    fn more_or_less_than_announced_is_refused() {
        for (total, piece) in [(3, &b"yz!"[..]), (3, b"y")] {
            let mut reassembly = Reassembly::new(100);
            reassembly.push(header(1, FLAG_FIRST), &first(total, b"x")).unwrap();
            assert!(matches!(
                reassembly.push(header(1, FLAG_LAST), piece),
                Err(ReassemblyError::WrongTotal { total: 3, .. })
            ));
        }
    }

    proptest! {
        #[test]
        fn pieces_make_the_message(message in prop::collection::vec(any::<u8>(), 1..500), size in 1_usize..100) {
            let mut reassembly = Reassembly::new(500);
            let count = message.len().div_ceil(size);
            let mut done = None;
            for (at, piece) in message.chunks(size).enumerate() {
                prop_assert!(done.is_none());
                let mut flags = 0;
                let mut payload = piece.to_vec();
                if at == 0 {
                    flags |= FLAG_FIRST;
                    payload = first(u32::try_from(message.len()).unwrap(), piece);
                }
                if at + 1 == count { flags |= FLAG_LAST; }
                done = reassembly.push(header(3, flags), &payload).unwrap();
            }
            let done = done.unwrap();
            prop_assert_eq!(&done[..], &message[..]);
            prop_assert!(!reassembly.is_partial());
        }

        #[test]
        fn hostile_fragments_hold_no_more_than_the_limit(
            pieces in prop::collection::vec((0_u8..4, 0_u8..3, prop::collection::vec(any::<u8>(), 0..40)), 0..50)
        ) {
            let mut reassembly = Reassembly::new(64);
            for (flags, service, payload) in pieces {
                drop(reassembly.push(header(service, flags), &payload));
                prop_assert!(reassembly.held_bytes() <= 2 * 64);
            }
        }
    }
}
