//! Sealing datagrams: authenticated encryption bound to cluster, sender and receiver. Pure.
//!
//! ```text
//! 0         1        5      13       21            29          30
//! | version | key id | salt | number | incarnation | name size | name | sealed payload | tag |
//! ```
//!
//! One key per cluster is shared by many senders, and ChaCha20-Poly1305 must never use a nonce
//! twice under one key. So no sender uses the shared key itself: each derives its own from it
//! (HKDF-SHA256 over its identity and a salt drawn at its start) and counts its packets in the
//! nonce. The tag also covers version, cluster, sender and receiver, so a packet recorded
//! elsewhere, or meant for an earlier life of the receiver, does not open.
//!
//! # Source
//! RFC 8439 (the cipher), RFC 5869 (the derivation).

use std::{collections::BTreeMap, fmt};

use purlin_core::{ClusterName, Incarnation, NodeId, NodeName};
use ring::{
    aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey},
    digest, hkdf,
};

const VERSION: u8 = 1;
const TAG_BYTES: usize = 16;
const FIXED_BYTES: usize = 30;

/// What sealing adds at most: the header with the longest name, and the tag.
pub const OVERHEAD_BYTES_MAX: usize = FIXED_BYTES + purlin_core::ids::NAME_BYTES_MAX + TAG_BYTES;

/// At most so many derived keys are kept; then all are derived again.
const DERIVED_MAX: usize = 4096;

/// A key shared by the cluster.
#[derive(Clone)]
pub struct GossipKey {
    id: [u8; 4],
    secret: [u8; 32],
}

impl fmt::Debug for GossipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GossipKey({:02x?})", self.id)
    }
}

impl GossipKey {
    /// A key of 32 bytes. Its id on the wire is a hash, which reveals nothing about it.
    #[must_use]
    pub fn new(secret: [u8; 32]) -> Self {
        let hash =
            digest::digest(&digest::SHA256, &[&b"purlin gossip key id"[..], &secret].concat());
        let id = *hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes");
        Self { id, secret }
    }

    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return None;
        }
        let mut secret = [0; 32];
        for (byte, pair) in secret.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |digit: u8| char::from(digit).to_digit(16);
            *byte = u8::try_from(nibble(pair[0])? << 4 | nibble(pair[1])?).ok()?;
        }
        Some(Self::new(secret))
    }

    fn derive(&self, cluster: &ClusterName, sender: &NodeId, salt: [u8; 8]) -> LessSafeKey {
        struct Length;
        impl hkdf::KeyType for Length {
            fn len(&self) -> usize {
                32
            }
        }
        let incarnation = sender.incarnation.0.to_le_bytes();
        let info = [
            &b"purlin datagram"[..],
            &[0],
            cluster.as_str().as_bytes(),
            &[0],
            sender.name.as_str().as_bytes(),
            &[0],
            &incarnation,
        ];
        let mut bytes = [0; 32];
        hkdf::Salt::new(hkdf::HKDF_SHA256, &salt)
            .extract(&self.secret)
            .expand(&info, Length)
            .and_then(|okm| okm.fill(&mut bytes))
            .expect("32 bytes are within what HKDF-SHA256 expands to");
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes).expect("a key of 32 bytes");
        LessSafeKey::new(key)
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// The header, the cluster and the receiver: everything the tag covers besides the payload.
fn associated(header: &[u8], cluster: &ClusterName, receiver: &NodeId) -> Vec<u8> {
    let mut data = Vec::with_capacity(header.len() + 150);
    data.extend_from_slice(header);
    data.extend_from_slice(cluster.as_str().as_bytes());
    data.push(0);
    data.extend_from_slice(receiver.name.as_str().as_bytes());
    data.push(0);
    data.extend_from_slice(&receiver.incarnation.0.to_le_bytes());
    data
}

/// Seals what one node sends.
pub struct Sealer {
    key_id: [u8; 4],
    key: LessSafeKey,
    cluster: ClusterName,
    node: NodeId,
    salt: [u8; 8],
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealer({})", self.node)
    }
}

impl Sealer {
    /// Seals under `key` as `node`. `salt` must be random; even a repeated one is harmless while
    /// incarnations are unique.
    #[must_use]
    pub fn new(key: &GossipKey, cluster: &ClusterName, node: NodeId, salt: [u8; 8]) -> Self {
        let derived = key.derive(cluster, &node, salt);
        Self { key_id: key.id, key: derived, cluster: cluster.clone(), node, salt }
    }

    /// The packet number `number`, which must be used once only, for `receiver`.
    ///
    /// # Panics
    /// Never: the cipher refuses only payloads of gigabytes.
    #[must_use]
    pub fn seal(&self, receiver: &NodeId, number: u64, payload: &[u8]) -> Vec<u8> {
        let name = self.node.name.as_str().as_bytes();
        let mut packet = Vec::with_capacity(FIXED_BYTES + name.len() + payload.len() + TAG_BYTES);
        packet.push(VERSION);
        packet.extend_from_slice(&self.key_id);
        packet.extend_from_slice(&self.salt);
        packet.extend_from_slice(&number.to_le_bytes());
        packet.extend_from_slice(&self.node.incarnation.0.to_le_bytes());
        packet.push(u8::try_from(name.len()).expect("names have at most 63 bytes"));
        packet.extend_from_slice(name);
        let header_bytes = packet.len();
        let aad = Aad::from(associated(&packet, &self.cluster, receiver));
        packet.extend_from_slice(payload);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(number), aad, &mut packet[header_bytes..])
            .expect("a datagram is far below the cipher's limit");
        packet.extend_from_slice(tag.as_ref());
        packet
    }
}

/// Why a packet does not open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    /// Too short, too long, another version, or no valid name.
    #[error("not a datagram of this version")]
    Malformed,
    /// Sealed under a key that is not here.
    #[error("sealed under an unknown key")]
    UnknownKey,
    /// The tag does not fit: forged, damaged, of another cluster or for another receiver.
    #[error("the seal is broken")]
    Forged,
}

/// A packet that opened.
#[derive(Debug, PartialEq, Eq)]
pub struct Opened<'a> {
    /// Who sealed it.
    pub sender: NodeId,
    /// The salt of that sender's start.
    pub salt: [u8; 8],
    /// Its packet number.
    pub number: u64,
    /// What was sealed.
    pub payload: &'a [u8],
}

/// Opens what others sealed for one node.
pub struct Opener {
    keys: Vec<GossipKey>,
    cluster: ClusterName,
    node: NodeId,
    derived: BTreeMap<(NodeId, [u8; 8], [u8; 4]), LessSafeKey>,
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Opener({})", self.node)
    }
}

impl Opener {
    /// Opens under any of `keys`, as `node`.
    #[must_use]
    pub fn new(keys: Vec<GossipKey>, cluster: ClusterName, node: NodeId) -> Self {
        Self { keys, cluster, node, derived: BTreeMap::new() }
    }

    /// Opens `packet` in place. Whether it is a copy is for [`super::replay`] to say.
    ///
    /// # Errors
    /// [`UnsealError`].
    pub fn open<'a>(&mut self, packet: &'a mut [u8]) -> Result<Opened<'a>, UnsealError> {
        if packet.len() > super::DATAGRAM_BYTES_MAX {
            return Err(UnsealError::Malformed);
        }
        let header = Header::decode(packet).ok_or(UnsealError::Malformed)?;
        let key =
            self.keys.iter().find(|key| key.id == header.key_id).ok_or(UnsealError::UnknownKey)?;
        let Header { sender, salt, number, bytes, .. } = header;
        let (clear, sealed) = packet.split_at_mut(bytes);
        let aad = associated(clear, &self.cluster, &self.node);
        let name = (sender.clone(), salt, key.id);
        let payload = match self.derived.get(&name) {
            Some(derived) => derived
                .open_in_place(nonce(number), Aad::from(aad), sealed)
                .map_err(|_unspecified| UnsealError::Forged)?,
            None => {
                let derived = key.derive(&self.cluster, &sender, salt);
                let opened = derived
                    .open_in_place(nonce(number), Aad::from(aad), sealed)
                    .map_err(|_unspecified| UnsealError::Forged)?;
                // Kept only for genuine senders, so that forgers cannot fill it.
                if self.derived.len() >= DERIVED_MAX {
                    self.derived.clear();
                }
                self.derived.insert(name, derived);
                opened
            }
        };
        Ok(Opened { sender, salt, number, payload })
    }
}

struct Header {
    key_id: [u8; 4],
    salt: [u8; 8],
    number: u64,
    sender: NodeId,
    bytes: usize,
}

impl Header {
    fn decode(packet: &[u8]) -> Option<Self> {
        let (&version, rest) = packet.split_first()?;
        if version != VERSION {
            return None;
        }
        let (key_id, rest) = rest.split_first_chunk::<4>()?;
        let (salt, rest) = rest.split_first_chunk::<8>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let (incarnation, rest) = rest.split_first_chunk::<8>()?;
        let (&name_bytes, rest) = rest.split_first()?;
        let (name, sealed) = rest.split_at_checked(usize::from(name_bytes))?;
        if sealed.len() < TAG_BYTES {
            return None;
        }
        let name = NodeName::parse(std::str::from_utf8(name).ok()?).ok()?;
        Some(Self {
            key_id: *key_id,
            salt: *salt,
            number: u64::from_le_bytes(*number),
            sender: NodeId::new(name, Incarnation(u64::from_le_bytes(*incarnation))),
            bytes: FIXED_BYTES + usize::from(name_bytes),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn node(name: &str, incarnation: u64) -> NodeId {
        NodeId::new(NodeName::parse(name).unwrap(), Incarnation(incarnation))
    }

    fn cluster(name: &str) -> ClusterName {
        ClusterName::parse(name).unwrap()
    }

    fn key(byte: u8) -> GossipKey {
        GossipKey::new([byte; 32])
    }

    fn sealed(payload: &[u8]) -> Vec<u8> {
        Sealer::new(&key(1), &cluster("shop"), node("n1", 5), [9; 8]).seal(
            &node("n2", 6),
            77,
            payload,
        )
    }

    fn opener(keys: Vec<GossipKey>) -> Opener {
        Opener::new(keys, cluster("shop"), node("n2", 6))
    }

    #[test]
    fn what_was_sealed_opens_at_its_receiver() {
        let mut packet = sealed(b"ping");
        let mut opener = opener(vec![key(1)]);
        let opened = opener.open(&mut packet).unwrap();
        assert_eq!(
            opened,
            Opened { sender: node("n1", 5), salt: [9; 8], number: 77, payload: b"ping" }
        );
    }

    #[test]
    fn any_of_several_keys_opens_and_a_missing_one_is_named() {
        assert!(opener(vec![key(2), key(1)]).open(&mut sealed(b"x")).is_ok());
        assert_eq!(opener(vec![key(2)]).open(&mut sealed(b"x")), Err(UnsealError::UnknownKey));
    }

    #[test]
    fn another_cluster_receiver_or_life_does_not_open_it() {
        for (name, receiver) in
            [("bank", node("n2", 6)), ("shop", node("n3", 6)), ("shop", node("n2", 7))]
        {
            let mut opener = Opener::new(vec![key(1)], cluster(name), receiver);
            assert_eq!(opener.open(&mut sealed(b"x")), Err(UnsealError::Forged));
        }
    }

    #[test]
    fn every_changed_bit_breaks_the_seal() {
        let good = sealed(b"payload");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(opener(vec![key(1)]).open(&mut bad).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn two_senders_never_share_a_key() {
        let seal = |sender| {
            Sealer::new(&key(1), &cluster("shop"), sender, [9; 8]).seal(&node("n2", 6), 0, b"same")
        };
        let tail = |packet: Vec<u8>| packet[packet.len() - 20..].to_vec();
        assert_ne!(tail(seal(node("n1", 5))), tail(seal(node("n1", 6))));
        assert_ne!(tail(seal(node("n1", 5))), tail(seal(node("n3", 5))));
    }

    #[test]
    fn the_largest_payload_fits_with_the_longest_name() {
        let name = "x".repeat(63);
        let payload = vec![7; super::super::DATAGRAM_PAYLOAD_BYTES_MAX];
        let packet = Sealer::new(&key(1), &cluster("shop"), node(&name, 5), [9; 8]).seal(
            &node("n2", 6),
            0,
            &payload,
        );
        assert_eq!(packet.len(), super::super::DATAGRAM_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn hostile_packets_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(first) = bytes.first_mut() { *first = VERSION; }
            prop_assert!(opener(vec![key(1)]).open(&mut bytes).is_err());
        }
    }
}
