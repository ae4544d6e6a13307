//! Supervisors: who starts processes again, in which order, and when to stop trying.
//!
//! Restarting what failed is a loop of one line. What makes it hard: a child that fails at once
//! turns the loop into a fire; children that depend on each other must go down and come up in
//! order; a child that hangs in its end must not hang the node; and all of it while children are
//! added and removed. [`lifecycle`] decides, as a pure core; `driver` waits; [`spec`] says what
//! can be asked for.

mod driver;
pub mod lifecycle;
pub mod spec;

pub use driver::{ChildCounts, ChildError, ChildInfo, Supervisor, SupervisorRef};
pub use lifecycle::ChildState;
pub use spec::{Backoff, ChildSpec, Intensity, Restart, Shutdown, Strategy, SupervisorSpec};
