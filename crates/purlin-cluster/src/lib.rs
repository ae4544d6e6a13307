//! Who is in the cluster, and how one leaves it well.
//!
//! In reading order:
//! - [`swim`]: the failure detector, a pure state machine

pub mod swim;
