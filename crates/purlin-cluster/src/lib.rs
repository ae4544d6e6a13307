//! Who is in the cluster, and how one leaves it well.
//!
//! In reading order:
//! - [`swim`]: the failure detector, a pure state machine
//! - [`discovery`]: where the first contact may be found

pub mod discovery;
pub mod swim;
