//! Keys in the order of their hashes: the order in which digests are taken and pieces travel.

use std::{cmp::Ordering, fmt, sync::Arc};

use bytes::Bytes;
use purlin_ring::key_hash;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The most bytes a key may have.
pub const KEY_BYTES_MAX: usize = 1_024;

/// The key is empty or too long. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("key of {0} bytes is outside 1 to {KEY_BYTES_MAX}")]
pub struct KeyError(pub usize);

/// A key with its hash, ordered by hash first.
///
/// Hash order spreads keys evenly over the digest tree whatever they are called, and makes every
/// piece of a state a plain range.
#[derive(Clone, PartialEq, Eq)]
pub struct Slot {
    hash: u64,
    key: Arc<[u8]>,
}

impl Ord for Slot {
    fn cmp(&self, other: &Self) -> Ordering {
        other.is_where(self.hash, &self.key).reverse()
    }
}

impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Slot {
    /// The slot of `key`.
    ///
    /// # Errors
    /// [`KeyError`] when it is empty or longer than [`KEY_BYTES_MAX`].
    pub fn new(key: impl Into<Bytes>) -> Result<Self, KeyError> {
        Self::of(&key.into())
    }

    /// The slot of `key`, which is copied.
    pub(crate) fn of(key: &[u8]) -> Result<Self, KeyError> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX {
            return Err(KeyError(key.len()));
        }
        Ok(Self { hash: key_hash(key).0, key: Arc::from(key) })
    }

    /// Where it stands, seen from the slot of a key with its hash.
    pub(crate) fn is_where(&self, hash: u64, key: &[u8]) -> Ordering {
        // Mostly the very same key: no need to fetch its bytes.
        let by_key =
            || if std::ptr::eq(&*self.key, key) { Ordering::Equal } else { (*self.key).cmp(key) };
        self.hash.cmp(&hash).then_with(by_key)
    }

    /// The first slot, present or not, whose hash is `hash`.
    #[must_use]
    pub(crate) fn first_of(hash: u64) -> Self {
        Self { hash, key: Arc::from([]) }
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The key, for somebody else to keep without a copy.
    pub(crate) fn shared_key(&self) -> &Arc<[u8]> {
        &self.key
    }

    /// Its hash.
    #[must_use]
    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", String::from_utf8_lossy(&self.key))
    }
}

impl Serialize for Slot {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.serialize_bytes(&self.key)
    }
}

impl<'de> Deserialize<'de> for Slot {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        Self::new(Bytes::deserialize(input)?).map_err(serde::de::Error::custom)
    }
}
