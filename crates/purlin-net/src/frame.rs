//! Frames: what travels on a connection once the handshake is over.
//!
//! A stream of bytes has no message borders, and a peer that lies about a length must not make us
//! allocate what it claims. So every frame starts with a fixed header whose length is checked
//! against a bound before anything else happens, and the codec is pure: bytes in, frames out, no
//! sockets and no buffers of its own.
//!
//! ```text
//! 0        4      5         6       7          8
//! | length | kind | service | flags | reserved | payload ...
//! ```
//!
//! Numbers are little-endian. `length` counts the payload only. `reserved` is written as zero and
//! ignored when read, so that a later version may use it.

use std::fmt;

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 8;

/// Which service a frame is for; the receiver hands it to whoever registered that number.
///
/// Numbers below 16 belong to Purlin's own crates, the rest to users:
/// 1 remote calls, 2 membership, 3 publish/subscribe, 4 remote processes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceId(pub u8);

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "service {}", self.0)
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A whole message for a service.
    Data = 1,
    /// A piece of a message that is larger than one frame; see [`crate::reassembly`].
    Fragment = 2,
    /// Bytes of credit given back to the sender: a `u64`.
    Credit = 3,
    /// "Are you there?": eight bytes the other side repeats in a [`Kind::Pong`].
    Ping = 4,
    /// The answer to a [`Kind::Ping`].
    Pong = 5,
    /// The receiver could not use a frame: see [`ErrorReport`].
    Error = 6,
    /// The sender closes this connection on purpose: one byte, a [`Farewell`].
    Goodbye = 7,
}

impl Kind {
    fn from_wire(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Data,
            2 => Self::Fragment,
            3 => Self::Credit,
            4 => Self::Ping,
            5 => Self::Pong,
            6 => Self::Error,
            7 => Self::Goodbye,
            _ => return None,
        })
    }
}

/// First piece of a fragmented message: its payload starts with the message's total length (`u32`).
pub const FLAG_FIRST: u8 = 1;
/// Last piece of a fragmented message.
pub const FLAG_LAST: u8 = 2;

/// The fixed part in front of every payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the frame is.
    pub kind: Kind,
    /// Whom it is for; zero where the kind needs no service.
    pub service: ServiceId,
    /// [`FLAG_FIRST`] and [`FLAG_LAST`] on fragments; otherwise zero.
    pub flags: u8,
    /// How many payload bytes follow.
    pub payload_bytes: u32,
}

impl Header {
    /// The header as it travels.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let [a, b, c, d] = self.payload_bytes.to_le_bytes();
        [a, b, c, d, self.kind as u8, self.service.0, self.flags, 0]
    }
}

/// Why bytes are not a frame. The stream cannot be trusted after it: the connection is closed, the
/// error counted, and the node stays up.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The header claims more payload than this side accepts. Nothing was allocated for it.
    #[error("frame of {bytes} bytes exceeds limit {max}")]
    TooLong {
        /// What the header claims.
        bytes: u32,
        /// The bound in force, [`crate::Limits::frame_bytes_max`].
        max: u32,
    },
    /// The kind byte has no meaning in this protocol version.
    #[error("frame kind {kind} is unknown; this version knows 1 to 7")]
    UnknownKind {
        /// The byte found.
        kind: u8,
    },
    /// A frame of a fixed-size kind has another size.
    #[error("{kind:?} frame of {bytes} bytes; expected {expected}")]
    WrongSize {
        /// The frame's kind.
        kind: Kind,
        /// How many bytes it has.
        bytes: usize,
        /// How many it needs at least.
        expected: usize,
    },
}

/// One frame, borrowed from the receive buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The fixed part.
    pub header: Header,
    /// The rest.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// The first frame in `buffer` and how many bytes it takes, or `None` when more bytes are
    /// needed.
    ///
    /// # Errors
    /// [`FrameError`], decided from the header alone: a frame that claims 4 GiB is refused after
    /// eight bytes.
    #[inline]
    pub fn decode(
        buffer: &'a [u8],
        frame_bytes_max: u32,
    ) -> Result<Option<(Self, usize)>, FrameError> {
        let Some((head, rest)) = buffer.split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [a, b, c, d, kind, service, flags, _reserved] = *head;
        let payload_bytes = u32::from_le_bytes([a, b, c, d]);
        if payload_bytes > frame_bytes_max {
            return Err(FrameError::TooLong { bytes: payload_bytes, max: frame_bytes_max });
        }
        let kind = Kind::from_wire(kind).ok_or(FrameError::UnknownKind { kind })?;
        let length = payload_bytes as usize;
        let Some(payload) = rest.get(..length) else {
            return Ok(None);
        };
        let header = Header { kind, service: ServiceId(service), flags, payload_bytes };
        Ok(Some((Frame { header, payload }, HEADER_BYTES + length)))
    }

    /// The payload of a [`Kind::Credit`], [`Kind::Ping`] or [`Kind::Pong`] frame.
    ///
    /// # Errors
    /// [`FrameError::WrongSize`] when there are not exactly eight bytes.
    pub fn number(&self) -> Result<u64, FrameError> {
        self.payload.try_into().map(u64::from_le_bytes).map_err(|_shorter_or_longer| {
            FrameError::WrongSize { kind: self.header.kind, bytes: self.payload.len(), expected: 8 }
        })
    }
}

/// Appends a frame with a copy of `payload`.
///
/// # Panics
/// When `payload` is longer than `u32::MAX`; senders check their bound first.
pub fn append(into: &mut Vec<u8>, kind: Kind, service: ServiceId, flags: u8, payload: &[u8]) {
    let payload_bytes = u32::try_from(payload.len()).expect("senders check the bound first");
    into.extend_from_slice(&Header { kind, service, flags, payload_bytes }.to_bytes());
    into.extend_from_slice(payload);
}

/// Why a connection is closed on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum Farewell {
    /// The node stops or no longer wants this peer.
    Closing = 1,
    /// The receiver found malformed frames.
    Malformed = 2,
    /// A newer connection for the same channel took over.
    Replaced = 3,
    /// The peer broke the rules of credit or reassembly.
    Violation = 4,
}

impl Farewell {
    /// The reason behind a wire byte; unknown ones read as [`Farewell::Closing`].
    #[must_use]
    pub fn from_wire(byte: Option<u8>) -> Self {
        match byte {
            Some(2) => Self::Malformed,
            Some(3) => Self::Replaced,
            Some(4) => Self::Violation,
            _ => Self::Closing,
        }
    }
}

/// Why a receiver could not use a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum ErrorCode {
    /// Nobody registered the frame's [`ServiceId`] there.
    UnknownService = 1,
    /// A code of a newer version.
    Other = 255,
}

/// The payload of a [`Kind::Error`] frame: the code, then the first bytes of the refused payload,
/// from which the sending service can tell which message is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorReport<'a> {
    /// What was wrong.
    pub code: ErrorCode,
    /// At most [`ErrorReport::HEAD_BYTES`] bytes of the payload that was refused.
    pub head: &'a [u8],
}

impl<'a> ErrorReport<'a> {
    /// How much of a refused payload is sent back.
    pub const HEAD_BYTES: usize = 32;

    /// Reads the payload of an error frame.
    ///
    /// # Errors
    /// [`FrameError::WrongSize`] when it is empty.
    pub fn decode(payload: &'a [u8]) -> Result<Self, FrameError> {
        let (&code, head) = payload.split_first().ok_or(FrameError::WrongSize {
            kind: Kind::Error,
            bytes: 0,
            expected: 1,
        })?;
        let code = if code == 1 { ErrorCode::UnknownService } else { ErrorCode::Other };
        Ok(Self { code, head })
    }

    /// The payload of an error frame about `refused`.
    #[must_use]
    pub fn encode(code: ErrorCode, refused: &[u8]) -> Vec<u8> {
        let mut payload = vec![code as u8];
        payload.extend_from_slice(&refused[..refused.len().min(Self::HEAD_BYTES)]);
        payload
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MAX: u32 = 1024;

    fn kinds() -> impl Strategy<Value = Kind> {
        (1_u8..=7).prop_map(|byte| Kind::from_wire(byte).unwrap())
    }

    #[test]
    fn a_frame_that_claims_four_gibibytes_is_refused_from_its_header() {
        let header = [0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0];
        let refused = Frame::decode(&header, MAX).unwrap_err();
        assert_eq!(refused, FrameError::TooLong { bytes: u32::MAX, max: MAX });
        assert_eq!(refused.to_string(), "frame of 4294967295 bytes exceeds limit 1024");
    }

    #[test]
    fn a_payload_at_the_limit_passes_and_one_byte_more_does_not() {
        let mut wire = Vec::new();
        append(&mut wire, Kind::Data, ServiceId(1), 0, &vec![7; MAX as usize]);
        assert_eq!(Frame::decode(&wire, MAX).unwrap().unwrap().1, wire.len());
        assert!(Frame::decode(&wire, MAX - 1).is_err());
    }

    #[test]
    fn kind_zero_and_kind_eight_mean_nothing() {
        for kind in [0, 8, 255] {
            let header = [0, 0, 0, 0, kind, 0, 0, 0];
            assert_eq!(Frame::decode(&header, MAX), Err(FrameError::UnknownKind { kind }));
        }
    }

    #[test]
    fn numbers_need_exactly_eight_bytes() {
        let header = Header { kind: Kind::Ping, service: ServiceId(0), flags: 0, payload_bytes: 8 };
        assert_eq!(Frame { header, payload: &7_u64.to_le_bytes() }.number(), Ok(7));
        assert!(Frame { header, payload: &[0; 7] }.number().is_err());
        assert!(Frame { header, payload: &[0; 9] }.number().is_err());
    }

    proptest! {
        #[test]
        fn what_was_appended_is_decoded(
            kind in kinds(), service: u8, flags: u8, payload in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let mut wire = Vec::new();
            append(&mut wire, kind, ServiceId(service), flags, &payload);
            let (frame, used) = Frame::decode(&wire, MAX).unwrap().unwrap();
            prop_assert_eq!(used, wire.len());
            prop_assert_eq!(frame.header.kind, kind);
            prop_assert_eq!(frame.header.service, ServiceId(service));
            prop_assert_eq!(frame.header.flags, flags);
            prop_assert_eq!(frame.payload, &payload[..]);
        }

        #[test]
        fn half_a_frame_is_no_frame(payload in prop::collection::vec(any::<u8>(), 0..64), cut in 0_usize..1000) {
            let mut wire = Vec::new();
            append(&mut wire, Kind::Data, ServiceId(1), 0, &payload);
            let cut = cut % wire.len();
            prop_assert_eq!(Frame::decode(&wire[..cut], MAX), Ok(None));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut at = 0;
            while let Ok(Some((frame, used))) = Frame::decode(&bytes[at..], MAX) {
                prop_assert!(frame.payload.len() <= MAX as usize);
                at += used;
            }
        }
    }
}
