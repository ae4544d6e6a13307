//! Processes that survive their node.
//!
//! A supervisor of one node dies with it, and so do its children. Here a child is written down on
//! every node, by an id and a *kind*, which any node can start: some node runs it, another takes
//! over when that one dies, and its address follows. When a node is drained or joins, children
//! move with their state.
//!
//! In reading order:
//! - [`kind`]: how any node makes a process out of a name and bytes
//! - [`record`]: what is known of children on every node
//! - [`core`]: what one node does about them; pure
//! - [`placement`]: which node a child goes to, and what moves when nodes come and go; pure
//! - [`split`]: who goes on when the cluster is cut; pure
//! - [`events`]: what happened; `shell`: replica set, members, processes
//! - [`handle`]: [`Supervisors`], [`Supervisor`]; [`route`]: [`Child`], the address that follows

pub mod core;
pub mod events;
pub mod handle;
pub mod kind;
pub mod placement;
pub mod record;
pub mod route;
mod shell;
pub mod split;

pub use handle::{
    ACTOR_IDLE_FOR, ChildInfo, StartChildError, Stopped, Supervisor, SupervisorError, Supervisors,
};
pub use kind::{Birth, Fence, Handed, Kind, KindError};
pub use record::{Cause, ChildOptions, Place, PlaceState, Spec};
pub use route::Child;
pub use shell::{
    CHILDREN, Footing, LostCopy, MergeCopies, SUPERVISORS_MAX, SupervisorConfig, TooManySupervisors,
};
