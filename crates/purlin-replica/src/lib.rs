//! Replicated state that every side of a partition may write.
pub mod cell;
pub mod digest;
mod expiry;
pub mod flag;
pub mod log;
pub mod slot;
pub mod store;
pub mod sync;
pub mod wire;
