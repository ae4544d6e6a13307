//! The `purlin` binary.
fn main() {}
