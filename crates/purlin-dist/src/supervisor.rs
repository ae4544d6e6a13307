//! Processes that survive their node.
//!
//! In reading order:
//! - [`kind`]: how any node makes a process out of a name and bytes
//! - [`placement`]: which node a child goes to, and what moves when nodes come and go; pure

#[expect(dead_code, reason = "what runs kinds comes next")]
pub mod kind;
pub mod placement;

pub use kind::{Birth, Fence, Handed, Kind, KindError};
