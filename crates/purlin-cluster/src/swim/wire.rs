//! What travels: one packet is a message, followed by as much news as fits.
//!
//! Who sent it and to whom is not in the packet: the datagram seal and the TLS channel both
//! authenticate the two identities, incarnations included.

use std::sync::Arc;

use purlin_core::{NodeId, NodeName};
use serde::{Deserialize, Serialize};

use super::member::{Meta, Refutation, Standing, Why};

/// The packet layout below. A node that reads another number drops the packet and counts it.
pub(crate) const WIRE_VERSION: u8 = 1;
/// The largest packet on the control channel; a longer state is sent in several.
pub(crate) const CONTROL_BYTES_MAX: usize = 64 * 1024;
/// The most accusers or pieces of news read from one packet; the rest is ignored.
pub(crate) const NEWS_MAX: usize = 4_096;

/// In front of every packet: what the sender says of itself, at two bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    pub(crate) version: u8,
    pub(crate) refutation: Refutation,
    pub(crate) meta_version: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Message {
    /// Answer with `Ack` of the same number.
    Ping {
        seq: u32,
    },
    Ack {
        seq: u32,
    },
    /// Ping `target` for me; answer `IndirectAck`, or `Nack` if it does not answer in time.
    PingReq {
        seq: u32,
        target: NodeId,
    },
    IndirectAck {
        seq: u32,
        refutation: Refutation,
    },
    /// "I am alive, but I got no answer either."
    Nack {
        seq: u32,
    },
    /// Only the news matters.
    Gossip,
    /// "My state hashes to this; if yours does not, send it."
    SyncDigest {
        digest: u64,
    },
    /// The news is a part of the sender's whole state; answer with yours if asked to.
    SyncState {
        answer: bool,
    },
    /// "Confirm that you have read the news in this packet."
    Announce {
        seq: u32,
    },
    Seen {
        seq: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Rumour {
    /// A changed belief about a member that the reader should know already.
    Standing { name: NodeName, standing: Standing, why: Option<Why>, by: Vec<NodeName> },
    /// Everything about a member.
    Whole {
        name: NodeName,
        standing: Standing,
        why: Option<Why>,
        meta_version: u32,
        meta: Arc<Meta>,
    },
}

/// A packet being written: never longer than its bound.
#[derive(Debug)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
    bytes_max: usize,
}

impl Writer {
    pub(crate) fn new(bytes_max: usize, header: Header, message: &Message) -> Self {
        let bytes = encode(&(header, message), Vec::with_capacity(64));
        assert!(bytes.len() <= bytes_max, "a bare message of {} bytes fits", bytes.len());
        Self { bytes, bytes_max }
    }

    /// Appends `rumour` if it fits whole.
    pub(crate) fn push(&mut self, rumour: &Rumour) -> bool {
        let before = self.bytes.len();
        self.bytes = encode(rumour, std::mem::take(&mut self.bytes));
        if self.bytes.len() > self.bytes_max {
            self.bytes.truncate(before);
            return false;
        }
        true
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

fn encode<T: Serialize>(value: &T, onto: Vec<u8>) -> Vec<u8> {
    postcard::to_extend(value, onto).expect("our own types have a length and fit memory")
}

pub(crate) fn encoded_len<T: Serialize>(value: &T) -> usize {
    encode(value, Vec::new()).len()
}

/// A packet as read; malformed ones never get this far.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) header: Header,
    pub(crate) message: Message,
    pub(crate) news: Vec<Rumour>,
}

/// Why a packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("membership packet of {0} bytes exceeds limit {CONTROL_BYTES_MAX}")]
    TooLong(usize),
    #[error("membership packet has version {0}, expected {WIRE_VERSION}")]
    Version(u8),
    #[error("membership packet is malformed at byte {0}")]
    Malformed(usize),
}

pub(crate) fn read(bytes: &[u8]) -> Result<Packet, ReadError> {
    if bytes.len() > CONTROL_BYTES_MAX {
        return Err(ReadError::TooLong(bytes.len()));
    }
    match bytes.first() {
        Some(&WIRE_VERSION) => {}
        Some(&other) => return Err(ReadError::Version(other)),
        None => return Err(ReadError::Malformed(0)),
    }
    let malformed = |rest: &[u8]| ReadError::Malformed(bytes.len() - rest.len());
    let ((header, message), mut rest) =
        postcard::take_from_bytes::<(Header, Message)>(bytes).map_err(|_cause| malformed(bytes))?;
    let mut news = Vec::new();
    while !rest.is_empty() && news.len() < NEWS_MAX {
        let (rumour, after) =
            postcard::take_from_bytes::<Rumour>(rest).map_err(|_cause| malformed(rest))?;
        news.push(rumour);
        rest = after;
    }
    Ok(Packet { header, message, news })
}

/// 64-bit FNV-1a: the same on every node and release, which `std`'s hasher does not promise.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fnv(u64);

impl Fnv {
    pub(crate) fn new() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn write(mut self, bytes: &[u8]) -> Self {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
        self
    }

    /// The hash, its bits spread: FNV alone leaves names that differ in the last letter close.
    pub(crate) fn finish(self) -> u64 {
        let mut hash = self.0;
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use purlin_core::Incarnation;

    use super::{super::member::State, *};

    fn header() -> Header {
        Header { version: WIRE_VERSION, refutation: Refutation(3), meta_version: 1 }
    }

    fn name() -> impl Strategy<Value = NodeName> {
        "[a-z][a-z0-9]{0,10}".prop_map(|name| NodeName::parse(&name).unwrap())
    }

    fn rumour() -> impl Strategy<Value = Rumour> {
        (name(), any::<u64>(), any::<u32>(), 0_usize..4, proptest::collection::vec(name(), 0..4))
            .prop_map(|(name, incarnation, refutation, state, by)| {
                let standing = Standing {
                    incarnation: Incarnation(incarnation),
                    refutation: Refutation(refutation),
                    state: [State::Alive, State::Suspect, State::Down, State::Left][state],
                };
                if by.len() % 2 == 0 {
                    Rumour::Standing { name, standing, why: Some(Why::Silent), by }
                } else {
                    let mut meta = Meta::new("[::1]:7400".parse().unwrap());
                    meta.roles = by.iter().map(ToString::to_string).collect();
                    Rumour::Whole {
                        name,
                        standing,
                        why: None,
                        meta_version: refutation,
                        meta: Arc::new(meta),
                    }
                }
            })
    }

    proptest! {
        #[test]
        fn a_packet_survives_the_wire(news in proptest::collection::vec(rumour(), 0..30), seq: u32) {
            let message = Message::Announce { seq };
            let mut writer = Writer::new(CONTROL_BYTES_MAX, header(), &message);
            for rumour in &news { prop_assert!(writer.push(rumour)); }
            prop_assert_eq!(read(&writer.finish()), Ok(Packet { header: header(), message, news }));
        }

        #[test]
        fn a_packet_never_exceeds_its_bound_and_stays_readable(
            news in proptest::collection::vec(rumour(), 0..60), bytes_max in 400_usize..1_200,
        ) {
            let mut writer = Writer::new(bytes_max, header(), &Message::Gossip);
            let taken: Vec<_> = news.into_iter().filter(|rumour| writer.push(rumour)).collect();
            let bytes = writer.finish();
            prop_assert!(bytes.len() <= bytes_max);
            prop_assert_eq!(read(&bytes).unwrap().news, taken);
        }

        #[test]
        fn garbage_is_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _read_or_refused = read(&bytes);
        }

        #[test]
        fn a_damaged_packet_is_read_or_refused_without_a_panic(
            news in proptest::collection::vec(rumour(), 0..10), at: prop::sample::Index, with: u8,
        ) {
            let mut writer = Writer::new(CONTROL_BYTES_MAX, header(), &Message::Gossip);
            for rumour in &news { writer.push(rumour); }
            let mut bytes = writer.finish();
            let at = at.index(bytes.len());
            bytes[at] = with;
            let _read_or_refused = read(&bytes);
            let _read_or_refused = read(&bytes[..at]);
        }
    }

    #[test]
    fn another_version_is_named() {
        assert_eq!(read(&[9, 0, 0]), Err(ReadError::Version(9)));
        assert_eq!(read(&[]), Err(ReadError::Malformed(0)));
    }

    #[test]
    fn an_idle_ping_is_small() {
        let bytes = Writer::new(1_100, header(), &Message::Ping { seq: 100_000 }).finish();
        assert!(bytes.len() <= 8, "{} bytes", bytes.len());
    }
}
