//! Caches that survive a deploy, never exceed their bytes, and say how stale they may be.
//!
//! A cache that is empty after every rolling restart sends its whole load to the database at the
//! worst moment; one that keeps what a lost connection should have removed serves the past. Here a
//! drain hands entries over before the node leaves, copies follow the members by an exact plan,
//! and a near cache trusts an entry only while every writer was heard within a stated bound.
//!
//! | kind | where a value is | a write | on another node it may be stale for |
//! |---|---|---|---|
//! | [`Kind::Local`] | here | local | its TTL: nobody else is told |
//! | [`Kind::Near`] | on every node that loaded it | local, tells the others | a round trip; at most [`CacheConfig::lease`] under a cut |
//! | [`Kind::Partitioned`] | on [`CacheConfig::replicas`] nodes, by key | to all of them | nothing while connected; each side of a cut goes on |
//! | with [`CacheConfig::near_bytes_max`] | also where it was read | to all of them, who tell the others | as a near cache |
//! | [`Kind::Replicated`] | on every node | local, travels to all | a round trip; each side of a cut goes on |
//!
//! In reading order:
//! - [`config`]: [`CacheConfig`]; [`error`]: what may go wrong; [`stats`], [`heat`] and [`events`]
//! - [`cache`]: [`Cache`], typed by serde, and [`RawCache`] below it
//! - [`caches`]: [`Caches`], all caches of a node; [`decorate`]: after `#[cache_put]` and `#[cache_evict]`
//! - [`entry`], [`store`]: what is kept, and the byte budget
//! - [`flight`]: one load per key
//! - [`placement`], [`coherence`], [`invalidation`]: the decisions, pure
//! - `partitioned`, `copies`, `near`, `replicated`: the shells around them; [`wire`]: what they say

pub mod cache;
pub mod caches;
pub mod coherence;
pub mod config;
mod copies;
pub mod decorate;
pub mod entry;
pub mod error;
pub mod events;
pub mod flight;
pub mod heat;
pub mod invalidation;
mod near;
mod partitioned;
pub mod placement;
mod replicated;
pub mod stats;
pub mod store;
pub mod wire;

pub use cache::{Cache, RawCache};
pub use caches::Caches;
pub use config::{CacheConfig, ConfigError, Kind};
pub use error::{CacheError, LoadError};
pub use events::CacheEvent;
pub use heat::HotKey;
pub use stats::CacheStats;
