//! A simulated world for whole clusters: real nodes, virtual time, one thread, one seed.
//!
//! A test of a distributed program on real machines sees the network it happens to get and the
//! timing it happens to have; what it found once it will not find again. Here the program is
//! the real one, down to the channel and its TLS sessions, and what surrounds it is not: network,
//! clocks, disks and power are simulated, fail on purpose in every way that real ones do by
//! accident, and do it again exactly when the seed is given again.
//!
//! ```
//! use purlin_sim::{World, condition::{converged, members}, secs};
//!
//! # fn main() -> Result<(), purlin_sim::Failure> {
//! let mut world = World::new(3053);
//! world.start("a")?.start("b")?.start("c")?;
//! world.until(members(["a", "b", "c"]), secs(10))?;
//! world.cut_one_way("a", "b").skew("b", secs(3)).crash("c").run_for(secs(5))?;
//! world.at("b", |node| node.crdt().put("greeting", "hello", None).is_ok());
//! world.restart("c")?.heal().until(converged(), secs(10))?;
//! # Ok(()) }
//! ```
//!
//! # How it works
//! Each host has a tokio runtime of its own with a paused clock; all run on one thread. The world
//! advances in steps as long as the shortest way through the network: in a step every host runs by
//! itself, and what it sends arrives in the next step at the earliest, so that no host can have
//! missed anything. A crash drops a runtime with everything in it; a restart makes a new one on the
//! same disk.
//!
//! # What it does not show
//! Code takes no time in here: throughput and contention are for benches. A host is one thread:
//! races between threads of one process are for loom and for stress tests. The memory model, the
//! kernel's sockets and real disks are what `cargo xtask test` covers with real processes.
//!
//! # In reading order
//! - [`World`]: hosts, faults, time
//! - [`condition`]: what a scenario waits for
//! - [`Chaos`]: faults at random; [`scenarios`]: Purlin's own promises, held against them
//! - [`Trace`]: what happened; [`Failure`]: what went wrong
//! - [`Latency`], [`net`]: how the network behaves
//! - Clocks are in [`time`]
//!
//! # Source
//! Zhou et al. 2021 (FoundationDB: one thread, one seed, faults as a matter of course); TigerBeetle's
//! simulator (safety under faults first, then liveness after healing); Chandy and Misra 1979 (time
//! steps no longer than the least latency).

pub mod chaos;
pub mod condition;
mod failure;
mod host;
mod link;
pub mod net;
mod panics;
pub mod scenarios;
pub mod time;
mod trace;
mod world;

use std::time::Duration;

pub use chaos::{Chaos, Fault};
pub use condition::Condition;
pub use failure::Failure;
pub use link::Latency;
pub use trace::Trace;
pub use world::{Builder, World};

/// `count` seconds.
#[must_use]
pub const fn secs(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// `count` milliseconds.
#[must_use]
pub const fn ms(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// The seed that `text` stands for, such as a commit's hash: the same in every process.
#[must_use]
pub fn seed_of(text: &str) -> u64 {
    use std::hash::Hasher as _;
    // Its keys are fixed.
    let mut hasher = std::collections::hash_map::DefaultHasher::new();
    hasher.write(text.as_bytes());
    hasher.finish()
}
