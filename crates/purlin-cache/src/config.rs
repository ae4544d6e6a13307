//! What a cache is told to be.

use std::{num::NonZeroUsize, time::Duration};

use serde::{Deserialize, Serialize};

/// The largest value any cache takes: it must fit one message with room for its head.
pub const VALUE_BYTES_LIMIT: usize = 1 << 20;
/// The longest key.
pub const KEY_BYTES_MAX: usize = 1_024;
/// The longest name of a cache.
pub const NAME_BYTES_MAX: usize = 64;

/// Where the values of a cache are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// On this node only; others are not told of writes.
    Local,
    /// On this node; writes anywhere end the copies everywhere.
    Near,
    /// On a few nodes, chosen by the key.
    Partitioned,
    /// On every node.
    Replicated,
}

/// The bounds and habits of one cache. All nodes should give one name the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheConfig {
    /// Where its values are.
    pub kind: Kind,
    /// The most bytes it holds on each node, keys and [`crate::store::ENTRY_BYTES`] per entry
    /// included. What is used least leaves first; nothing is refused for lack of room. A
    /// replicated cache exceeds it for the moment between the arrival of another node's write and
    /// the removal of the oldest. Default 64 MiB (guess).
    pub bytes_max: u64,
    /// The largest value, refused beyond. At most [`VALUE_BYTES_LIMIT`], the default.
    pub value_bytes_max: usize,
    /// How long a value counts unless its writer says otherwise; `None` until it is pushed out.
    pub ttl: Option<Duration>,
    /// By how many per cent at most the TTL is shortened at random, so that values loaded together
    /// do not end together. Not applied to a TTL that a writer gave. Default 10, at most 90.
    pub ttl_jitter_percent: u8,
    /// How long after its TTL a value may still be given out by
    /// [`get_or_load`](crate::Cache::get_or_load) while one task loads it anew. Default 0.
    pub stale_for: Duration,
    /// How long it is remembered that a load found nothing; `None` asks every time. Default
    /// `None`.
    pub absent_for: Option<Duration>,
    /// How long a load may take before its waiters are told so. Default 30 s; below
    /// [`crate::entry::REMOVED_FOR`].
    pub load_within: Duration,
    /// Partitioned: on how many nodes a value is. Default 2.
    pub replicas: NonZeroUsize,
    /// Partitioned: how long a read or write may take, retries at other replicas included.
    /// Default 2 s.
    pub within: Duration,
    /// Partitioned: how long one replica may take to answer a read before the next is asked too.
    /// Default 5 ms (guess: ten round trips of a LAN).
    pub hedge_after: Duration,
    /// Partitioned: how many bytes a second a node sends when the members change. A drain does
    /// not wait for it. Default 64 MiB.
    pub move_bytes_per_second: u64,
    /// Partitioned: how many bytes of copies a node keeps of values that others hold, in front of
    /// them: a second read is local. 0, the default, for none. Such a copy may be as stale as in a
    /// near cache.
    pub near_bytes_max: u64,
    /// Near, and copies in front of a partitioned cache: how long another node's write may stay
    /// unseen here when nothing gets through. Shorter costs small calls: every node asks every
    /// other four times per lease. Default 2 s, at least 200 ms.
    pub lease: Duration,
}

/// A setting is out of bounds. Nothing was opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cache {field} {problem}")]
pub struct ConfigError {
    field: &'static str,
    problem: String,
}

impl CacheConfig {
    /// A cache of `kind` with the default bounds.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            kind,
            bytes_max: 64 << 20,
            value_bytes_max: VALUE_BYTES_LIMIT,
            ttl: None,
            ttl_jitter_percent: 10,
            stale_for: Duration::ZERO,
            absent_for: None,
            load_within: Duration::from_secs(30),
            replicas: NonZeroUsize::new(2).expect("2 is not 0"),
            within: Duration::from_secs(2),
            hedge_after: Duration::from_millis(5),
            move_bytes_per_second: 64 << 20,
            near_bytes_max: 0,
            lease: Duration::from_secs(2),
        }
    }

    /// [`Kind::Local`] with the default bounds.
    #[must_use]
    pub fn local() -> Self {
        Self::new(Kind::Local)
    }

    /// [`Kind::Near`] with the default bounds.
    #[must_use]
    pub fn near() -> Self {
        Self::new(Kind::Near)
    }

    /// [`Kind::Partitioned`] with the default bounds.
    #[must_use]
    pub fn partitioned() -> Self {
        Self::new(Kind::Partitioned)
    }

    /// [`Kind::Replicated`] with the default bounds.
    #[must_use]
    pub fn replicated() -> Self {
        Self::new(Kind::Replicated)
    }

    /// With this TTL.
    #[must_use]
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// With this budget per node.
    #[must_use]
    pub fn bytes_max(mut self, bytes: u64) -> Self {
        self.bytes_max = bytes;
        self
    }

    /// With values on so many nodes.
    #[must_use]
    pub fn replicas(mut self, replicas: NonZeroUsize) -> Self {
        self.replicas = replicas;
        self
    }

    /// With so many bytes of copies on each node, in front of a partitioned cache.
    #[must_use]
    pub fn near_bytes_max(mut self, bytes: u64) -> Self {
        self.near_bytes_max = bytes;
        self
    }

    /// Whether copies are kept in front of it.
    #[must_use]
    pub fn has_copies(&self) -> bool {
        self.kind == Kind::Partitioned && self.near_bytes_max > 0
    }

    /// Checks every bound.
    ///
    /// # Errors
    /// [`ConfigError`] naming the first setting that is out of bounds.
    pub fn check(&self) -> Result<(), ConfigError> {
        let refuse = |field, problem: String| Err(ConfigError { field, problem });
        if self.value_bytes_max == 0 || self.value_bytes_max > VALUE_BYTES_LIMIT {
            let got = self.value_bytes_max;
            return refuse("value_bytes_max", format!("{got} is outside 1 to {VALUE_BYTES_LIMIT}"));
        }
        let least = self.value_bytes_max as u64 + 4_096;
        let one_value = |bytes: u64| format!("{bytes} is below {least}: one value");
        if self.bytes_max < least {
            return refuse("bytes_max", one_value(self.bytes_max));
        }
        if self.near_bytes_max > 0 && self.kind != Kind::Partitioned {
            return refuse("near_bytes_max", "is for partitioned caches".into());
        }
        if self.near_bytes_max > 0 && self.near_bytes_max < least {
            return refuse("near_bytes_max", one_value(self.near_bytes_max));
        }
        if self.ttl_jitter_percent > 90 {
            return refuse("ttl_jitter_percent", format!("{} exceeds 90", self.ttl_jitter_percent));
        }
        if self.ttl.is_some_and(|ttl| ttl.is_zero()) {
            return refuse("ttl", "is 0: nothing would be kept".into());
        }
        if self.load_within >= crate::entry::REMOVED_FOR {
            let most = crate::entry::REMOVED_FOR;
            return refuse("load_within", format!("{:?} is not below {most:?}", self.load_within));
        }
        if self.replicas.get() > 16 {
            return refuse("replicas", format!("{} exceeds 16", self.replicas));
        }
        if self.move_bytes_per_second < 64 << 10 {
            return refuse("move_bytes_per_second", "is below 65536".into());
        }
        if self.lease < Duration::from_millis(200) {
            return refuse("lease", format!("{:?} is below 200ms", self.lease));
        }
        Ok(())
    }
}
