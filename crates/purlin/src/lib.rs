//! Purlin ties processes on many machines together: a service becomes a node of a cluster with a
//! few lines.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use purlin::prelude::*;
//!
//! let authority = DevAuthority::new()?; // in production: certificates from files, see `Config`
//! let node = Node::builder().name("n1").dev(&authority).start().await?;
//! assert_eq!(node.cluster().view().members.len(), 1);
//! # node.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! # The ladder
//! Every capability sits on a rung; code written at one rung keeps working at the next, and a
//! service pays only for what it uses.
//!
//! | level | accessor | guarantee |
//! |---|---|---|
//! | 0 | [`Node::processes`], also on [`LocalNode`] | local |
//! | 1 | [`Node::cluster`] | each side of a cut sees itself |
//! | 1 | [`Node::remote`] | at most once; done, not done or unknown |
//! | 1 | [`Node::rpc`] | at most once; done, not done or unknown |
//! | 1 | [`Node::pubsub`], also on [`LocalNode`] | at most once, ordered per publisher while connected |
//! | 2 | [`Node::registry`], [`Node::groups`], [`Node::presence`] | eventual; a writer reads what it wrote |
//! | 4 | [`Node::crdt`], [`Node::ephemeral`], [`Node::flags`] | strong eventual consistency; every side stays writable |
//! | 4 | [`Node::cache`], also on [`LocalNode`] | may forget at any time; how stale it may be is stated by its kind |
//!
//! # In reading order
//! - [`Node`] and [`NodeBuilder`]; [`LocalNode`], the node without a network
//! - [`Config`], [`Sources`]: `purlin.toml`, environment, flags
//! - [`DataDir`]: what a node keeps between its lives
//! - [`Environment`]: the world a node runs in, real or simulated
//! - [`DevAuthority`]: certificates for tests and one machine
//! - [`core`], [`crdt`], [`ring`], [`process`], [`net`], [`cluster`], [`pubsub`], [`replica`],
//!   [`cache`], [`dist`], [`store`]: the floors below, whole
//!
//! This crate is wiring: it holds no protocol and decides nothing that a floor below could decide.

mod builder;
pub mod config;
mod data_dir;
mod dev;
mod environment;
mod error;
mod high_water;
mod local;
mod node;
#[cfg(unix)]
mod programs;

pub use builder::NodeBuilder;
pub use config::{Config, ConfigError, Sources};
pub use data_dir::{DataDir, DataDirError};
pub use dev::DevAuthority;
pub use environment::Environment;
pub use error::StartError;
pub use local::{LocalBuilder, LocalNode};
pub use node::{Node, Stop};

pub use purlin_cache as cache;
pub use purlin_cluster as cluster;
pub use purlin_core as core;
pub use purlin_crdt as crdt;
pub use purlin_dist as dist;
pub use purlin_macros::{cache_evict, cache_put, cached, server};
pub use purlin_net as net;
pub use purlin_process as process;
pub use purlin_pubsub as pubsub;
pub use purlin_replica as replica;
pub use purlin_ring as ring;
pub use purlin_store as store;

/// What most programs need.
pub mod prelude {
    pub use purlin_core::{Advice, NodeId, NodeName, Outcome};
    pub use purlin_process::{
        CallError, CastError, Context, ExitReason, Info, ProcessRef, Processes, SpawnOptions,
    };

    pub use crate::{Config, DevAuthority, LocalNode, Node, StartError, Stop, server};
}

/// The program in README.md compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
