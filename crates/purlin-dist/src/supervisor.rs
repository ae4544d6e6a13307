//! Processes that survive their node.
//!
//! In reading order:
//! - [`kind`]: how any node makes a process out of a name and bytes
//! - [`placement`]: which node a child goes to, and what moves when nodes come and go; pure
//! - [`split`]: who goes on when the cluster is cut; pure

#[expect(dead_code, reason = "what runs kinds comes next")]
pub mod kind;
pub mod placement;
pub mod split;

pub use kind::{Birth, Fence, Handed, Kind, KindError};
