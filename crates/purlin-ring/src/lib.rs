//! Which node owns a key, so that everybody who knows the members gives the same answer.
//!
//! "Hash modulo the number of nodes" moves nearly every key when one node comes or goes. The
//! functions here move about one key in N, never between two nodes that both stayed, and give the
//! same answer on every node, every architecture and every release (golden vectors hold that).
//!
//! In reading order:
//! - [`hash`]: [`key_hash`], the one stable hash of keys
//! - [`ring`]: [`Ring`], consistent hashing with virtual nodes, weights, zones and bounded loads
//! - [`jump`](mod@jump): [`jump()`], for numbered buckets that only come and go at the end
//! - [`rendezvous`]: [`rank`], highest random weight, for small sets and zone-spread replicas
//! - [`plan`]: [`MovePlan`], exactly what moves between two memberships
//! - [`shards`]: [`ShardMap`], a counted number of shards on nodes, by epoch
//! - [`shared`]: [`SharedRing`], the present ring for many readers
//! - [`ketama`]: the ring that memcached clients in other languages have
//!
//! Everything is pure and immutable: a new membership is a new [`Ring`], to be swapped in by
//! whoever owns it; look-ups take no lock.
//!
//! # Which published vectors hold
//! [`jump()`]: those of Guava and of the paper's Go port. [`ketama`]: libketama's digest over a million
//! keys, libmemcached's and spymemcached's tables. All others are our own, fixed at the first
//! release.
//!
//! # Source
//! Karger et al. 1997 (consistent hashing); Lamping and Veach 2014 (jump); Thaler and Ravishankar
//! 1998 (rendezvous); Mirrokni et al. 2018 (bounded loads).

pub mod hash;
pub mod jump;
pub mod ketama;
pub mod plan;
pub mod rendezvous;
pub mod ring;
pub mod shards;
pub mod shared;

pub use hash::{KeyHash, key_hash};
pub use jump::jump;
pub use plan::{Move, MovePlan};
pub use rendezvous::rank;
pub use ring::{Bucket, Ring, RingError};
pub use shards::ShardMap;
pub use shared::SharedRing;
