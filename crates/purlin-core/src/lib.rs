//! The words every floor of Purlin speaks: who, when, in what order, and how it ended.
//!
//! Nothing here opens a socket, spawns a task or reads a clock behind the caller's back. Time and
//! randomness are inputs ([`Clock`], [`Rng`]), so that the same protocol code runs under tokio, in
//! a unit test and in a seeded simulation.
//!
//! In reading order:
//! - [`ids`]: [`NodeName`], [`Incarnation`], [`NodeId`], [`ClusterName`], [`Epoch`]
//! - [`time`]: [`Instant`], [`WallTime`], [`Clock`], [`Deadline`]
//! - [`rng`]: [`Rng`], the one source of randomness
//! - [`hlc`]: hybrid logical clocks, [`Hlc`] and [`HlcTimestamp`]
//! - [`version`]: [`Dot`]s and [`VersionVector`]s
//! - [`error`]: [`Outcome`] and [`Advice`]: done, not done, **unknown**
//! - [`watch`]: a value that others wait for, in order
//! - [`trace`]: [`TraceContext`], the W3C `traceparent` that travels with every call

pub mod error;
pub mod hlc;
pub mod ids;
pub mod rng;
pub mod time;
pub mod trace;
pub mod version;
pub mod watch;

pub use error::{Advice, Outcome};
pub use hlc::{Hlc, HlcError, HlcTimestamp, LocalHlc};
pub use ids::{ClusterName, Epoch, Incarnation, NameError, NodeId, NodeName};
pub use rng::Rng;
pub use time::{Clock, Deadline, Instant, SystemClock, WallTime};
pub use trace::TraceContext;
pub use version::{Dot, VersionVector};
