//! What must never have happened, as functions over a history.
//!
//! A test that looks at the end state alone misses the lock that two holders had for a moment. So
//! tests write down what happened, and a checker reads it afterwards: pure, with a name and a
//! source, and with tests of its own in which a forged history must be caught. Simulations, process
//! tests and namespace tests share them, and so may yours.
//!
//! - [`convergence`]: after healing, all replicas are equal
//! - [`updates`]: no write is lost, none comes back after it was removed
//! - [`linearizability`]: every operation takes effect at one moment between invocation and return
//! - [`ownership`]: at most one owner at any time
//! - [`fencing`]: tokens only grow, and nothing older is accepted after something newer

pub mod convergence;
pub mod fencing;
pub mod linearizability;
pub mod ownership;
pub mod updates;
