//! Which keys a replica keeps: all, or those that begin with certain prefixes.
//!
//! # Source
//! Partial replication as in Preguiça et al. 2003 and lasp's topics; ours is by prefix, because a
//! prefix is what names, collections and tenants already have.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Deserializer, Serialize};

use crate::slot::KEY_BYTES_MAX;

/// The most prefixes an interest may have.
pub const PREFIXES_MAX: usize = 1_024;

/// A set of keys, by their beginnings.
///
/// Has one form per set it can name: sorted, and no prefix that another one begins with.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Interest(Vec<Bytes>);

/// The prefixes are no interest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InterestError {
    /// There are too many.
    #[error("{0} prefixes exceed limit {PREFIXES_MAX}")]
    TooMany(usize),
    /// One is longer than a key.
    #[error("prefix of {0} bytes exceeds limit {KEY_BYTES_MAX}")]
    TooLong(usize),
}

impl Default for Interest {
    fn default() -> Self {
        Self::all()
    }
}

impl Interest {
    /// Every key.
    #[must_use]
    pub fn all() -> Self {
        Self(vec![Bytes::new()])
    }

    /// No key.
    #[must_use]
    pub fn none() -> Self {
        Self(Vec::new())
    }

    /// The keys that begin with one of `prefixes`; the empty prefix is every key.
    ///
    /// # Errors
    /// [`InterestError`] above [`PREFIXES_MAX`] prefixes or [`KEY_BYTES_MAX`] bytes in one.
    pub fn prefixes(
        prefixes: impl IntoIterator<Item = impl Into<Bytes>>,
    ) -> Result<Self, InterestError> {
        let prefixes: Vec<Bytes> = prefixes.into_iter().map(Into::into).collect();
        if let Some(long) = prefixes.iter().find(|prefix| prefix.len() > KEY_BYTES_MAX) {
            return Err(InterestError::TooLong(long.len()));
        }
        let interest = Self::formed(prefixes);
        match interest.0.len() {
            many if many > PREFIXES_MAX => Err(InterestError::TooMany(many)),
            _ => Ok(interest),
        }
    }

    fn formed(mut prefixes: Vec<Bytes>) -> Self {
        prefixes.sort_unstable();
        let mut formed: Vec<Bytes> = Vec::with_capacity(prefixes.len());
        for prefix in prefixes {
            if !formed.last().is_some_and(|last| prefix.starts_with(last)) {
                formed.push(prefix);
            }
        }
        Self(formed)
    }

    /// Its prefixes, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Bytes> {
        self.0.iter()
    }

    /// Whether it is every key.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.0.first().is_some_and(Bytes::is_empty)
    }

    /// Whether it is no key.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether `key` is one of its keys.
    #[must_use]
    pub fn covers(&self, key: &[u8]) -> bool {
        if self.is_all() {
            return true;
        }
        // What stands between a prefix and a key that begins with it begins with it too, so only
        // the last prefix before the key can be the one.
        let after = self.0.partition_point(|prefix| &prefix[..] <= key);
        after > 0 && key.starts_with(&self.0[after - 1])
    }

    /// Whether every key of it is a key of `other`.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.0.iter().all(|prefix| other.covers(prefix))
    }

    /// The keys of both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let ours = self.0.iter().filter(|prefix| other.covers(prefix));
        let theirs = other.0.iter().filter(|prefix| self.covers(prefix));
        Self::formed(ours.chain(theirs).cloned().collect())
    }

    /// The keys of either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::formed(self.0.iter().chain(&other.0).cloned().collect())
    }
}

impl fmt::Debug for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Interest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.is_all(), self.is_none()) {
            (true, _) => f.write_str("every key"),
            (_, true) => f.write_str("no key"),
            (false, false) => {
                let prefixes = self.0.iter().map(|prefix| String::from_utf8_lossy(prefix));
                write!(f, "keys from {}", prefixes.collect::<Vec<_>>().join(", "))
            }
        }
    }
}

impl<'de> Deserialize<'de> for Interest {
    /// Refuses what is out of form or bounds.
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let given = Vec::<Bytes>::deserialize(input)?;
        match Self::prefixes(given.clone()) {
            Ok(interest) if interest.0 == given => Ok(interest),
            Ok(_) => Err(serde::de::Error::custom("prefixes out of order, or one within another")),
            Err(error) => Err(serde::de::Error::custom(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn interest() -> impl Strategy<Value = Interest> {
        prop::collection::vec("[ab]{0,3}", 0..4)
            .prop_map(|prefixes| Interest::prefixes(prefixes).unwrap())
    }

    #[test]
    fn bounds_are_named() {
        let many = (0..=PREFIXES_MAX).map(|n| format!("{n:05}"));
        assert_eq!(
            Interest::prefixes(many).unwrap_err().to_string(),
            "1025 prefixes exceed limit 1024"
        );
        let long = Interest::prefixes([vec![b'x'; KEY_BYTES_MAX + 1]]).unwrap_err();
        assert_eq!(long.to_string(), "prefix of 1025 bytes exceeds limit 1024");
    }

    proptest! {
        #[test]
        fn it_is_the_set_of_its_keys(a in interest(), b in interest(), key in "[ab]{1,5}") {
            let in_a = a.iter().any(|prefix| key.as_bytes().starts_with(prefix));
            let in_b = b.iter().any(|prefix| key.as_bytes().starts_with(prefix));
            let key = key.as_bytes();
            prop_assert_eq!(a.covers(key), in_a);
            prop_assert_eq!(a.intersection(&b).covers(key), in_a && in_b);
            prop_assert_eq!(a.union(&b).covers(key), in_a || in_b);
            prop_assert!(a.intersection(&b).is_within(&a) && a.is_within(&a.union(&b)));
            if a.is_within(&b) && in_a {
                prop_assert!(in_b);
            }
            let bytes = postcard::to_stdvec(&a).unwrap();
            prop_assert_eq!(postcard::from_bytes::<Interest>(&bytes).unwrap(), a);
        }
    }
}
