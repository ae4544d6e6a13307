//! What caches of different nodes say to each other.

use std::num::NonZeroUsize;

use bytes::Bytes;
use purlin_core::HlcTimestamp;
use purlin_net::Method;
use serde::{Deserialize, Serialize};

use crate::{
    config::{CacheConfig, Kind},
    entry::{Answer, Change, Packed},
    invalidation::{Catchup, Invalidation, Position},
    stats::CacheStats,
};

/// Which partitioned cache is meant, and what it is to be on a node that has not opened it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Its name.
    pub name: String,
    /// [`CacheConfig::bytes_max`].
    pub bytes_max: u64,
    /// [`CacheConfig::value_bytes_max`].
    pub value_bytes_max: u32,
    /// [`CacheConfig::replicas`].
    pub replicas: u8,
    /// [`CacheConfig::move_bytes_per_second`].
    pub move_bytes_per_second: u64,
    /// Whether somebody keeps copies in front of it, who is to be told of writes.
    pub is_copied: bool,
}

impl Spec {
    /// The part of `config` that other nodes need.
    #[must_use]
    pub fn of(name: &str, config: &CacheConfig) -> Self {
        Self {
            name: name.to_owned(),
            bytes_max: config.bytes_max,
            value_bytes_max: u32::try_from(config.value_bytes_max).unwrap_or(u32::MAX),
            replicas: u8::try_from(config.replicas.get()).unwrap_or(u8::MAX),
            move_bytes_per_second: config.move_bytes_per_second,
            is_copied: config.has_copies(),
        }
    }

    /// A configuration that fits it.
    #[must_use]
    pub fn to_config(&self) -> CacheConfig {
        let replicas = NonZeroUsize::new(usize::from(self.replicas)).unwrap_or(NonZeroUsize::MIN);
        CacheConfig {
            bytes_max: self.bytes_max,
            value_bytes_max: usize::try_from(self.value_bytes_max).unwrap_or(usize::MAX),
            replicas,
            move_bytes_per_second: self.move_bytes_per_second,
            ..CacheConfig::new(Kind::Partitioned)
        }
    }
}

/// Where a reader of near caches stands, and how long it trusts what it hears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// The last write it knows of.
    pub at: Option<Position>,
    /// Its shortest lease.
    pub lease_ms: u64,
}

/// A write to a near cache, told as it happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Its number.
    pub at: Position,
    /// What it ends.
    pub write: Invalidation,
}

/// When entries sent to another node replace what is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// When their version is later: a write.
    IfLater,
    /// When their version is later: a copy of what another node has, and no news to anybody.
    Copy,
    /// When nothing happened to the key since its load began.
    IfStill {
        /// The version that was there then, if any was: a later one is somebody's write.
        seen: Option<HlcTimestamp>,
        /// When that was, for what is cleared meanwhile.
        began: HlcTimestamp,
    },
}

/// Keys with what is kept under them.
pub type Entries = Vec<(Bytes, Packed)>;
/// Keys with the versions of what is kept under them.
pub type Versions = Vec<(Bytes, HlcTimestamp)>;

/// What is kept under a key.
pub const GET: Method<(Spec, Bytes), Option<Packed>> = Method::new("cache.get");
/// Take these in; answered with the latest version that was there already and is later.
pub const STORE: Method<(Spec, Entries, How), Option<HlcTimestamp>> = Method::new("cache.store");
/// Which of these are not there yet, by place in the list.
pub const OFFER: Method<(Spec, Versions), Vec<u32>> = Method::new("cache.offer");
/// Decide this change and tell the other owners. `None`: decided, but they did not all confirm.
pub const CHANGE: Method<(Spec, Bytes, Change), Option<Answer>> = Method::new("cache.change");
/// Forget everything up to a version.
pub const CLEAR: Method<(Spec, HlcTimestamp), ()> = Method::new("cache.clear");
/// What your caches did and hold.
pub const STATS: Method<(), Vec<CacheStats>> = Method::new("cache.stats");
/// What of your writes to near caches did I miss?
pub const MISSED: Method<Question, Catchup> = Method::new("cache.missed");
/// I wrote to a near cache.
pub const TOLD: Method<Told, ()> = Method::new("cache.told");
