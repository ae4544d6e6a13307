//! Processes that survive their node.
//!
//! In reading order:
//! - [`kind`]: how any node makes a process out of a name and bytes

#[expect(dead_code, reason = "what runs kinds comes next")]
pub mod kind;

pub use kind::{Birth, Fence, Handed, Kind, KindError};
