//! Who is in the cluster, and how one leaves it well.
//!
//! A node starts with a [`Transport`](purlin_net::Transport) and a [`discovery::Discovery`] and
//! becomes a [`Cluster`]: it finds the others, tells them who it is, and sees them join, fall
//! silent, come back and leave. What it sees is a [`view::View`] with an epoch; what happened are
//! numbered [`view::ClusterEvent`]s with reasons.
//!
//! In reading order:
//! - [`cluster`]: the public face
//! - [`view`]: the membership as others see it: snapshots, watching, events, selectors
//! - [`members_rpc`]: remote calls by member name and selector
//! - [`swim`]: the failure detector, a pure state machine
//! - [`discovery`]: where other nodes may be found; `seeding`: which of them to contact when
//! - [`drain`]: leaving well, a pure state machine
//! - [`remote`]: processes across nodes
//! - `driver`, `drainer`: the loops around the two, without protocol decisions

pub mod cluster;
pub mod discovery;
pub mod drain;
mod drainer;
mod driver;
pub mod members_rpc;
pub mod remote;
mod seeding;
pub mod swim;
pub mod view;

pub use cluster::{Cluster, ClusterConfig, StartError, Stopped, TooFewMembers, UpdateMetaError};
pub use drain::{DrainHook, DrainProgress, Intake, Phase, Stage};
pub use members_rpc::{MemberCallError, MembersRpc};
pub use remote::{Remote, RemoteLimits, RemoteStats, WhereisError};
pub use swim::{Event, Meta, MetaError, State, Why};
pub use view::{ClusterEvent, Events, Member, Missed, Selector, View, Watch};
