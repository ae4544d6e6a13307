//! Whether the tests in network namespaces can run here.

use std::process::{self, Command};

use crate::checkout::{Failure, capture};
use crate::packages;

/// The variable by which `crates/purlin-cli/tests/namespaces.rs` learns that it must not skip.
pub(crate) const REQUIRED: &str = "PURLIN_NAMESPACES_REQUIRED";

/// Makes sure that a namespace can be made here, or says in one sentence why not.
pub(crate) fn available() -> Result<(), Failure> {
    packages::ensure(packages::FOR_NAMESPACES)?;
    if !packages::is_root() {
        return Err(Failure::new("making network namespaces needs root"));
    }
    let name = format!("purlin-probe-{}", process::id());
    capture(Command::new("ip").args(["netns", "add", &name])).map_err(|Failure(why)| {
        Failure(format!("the kernel refused a network namespace: {why}"))
    })?;
    // nft in it as well: some containers allow the one and not the other.
    let rules = capture(
        Command::new("ip").args(["netns", "exec", &name, "nft", "add", "table", "inet", "probe"]),
    );
    capture(Command::new("ip").args(["netns", "delete", &name]))?;
    rules.map(|_| ()).map_err(|Failure(why)| Failure(format!("the kernel refused nftables: {why}")))
}
