//! `cargo xtask bench`: what the benches need, then the benches.

use std::ffi::OsString;

use clap::Args;

use crate::checkout::{Checkout, Failure, run as execute};
use crate::packages;

/// Passed on to the bench program, which documents them.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// For example `--only NAME`, `--json FILE` or `--help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Builds both programs in release and runs the benches with the given arguments.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<(), Failure> {
    let only_looks =
        options.arguments.iter().any(|word| word == "--help" || word == "-h" || word == "--list");
    if !only_looks {
        // Without a peer there is no ratio, so a missing peer is a failure and not a skip.
        packages::ensure(packages::FOR_BENCHES)?;
        execute(checkout.cargo().args(["build", "--release", "--package", "purlin-cli"]))?;
    }
    execute(
        checkout
            .cargo()
            .args(["run", "--release", "--package", "bench", "--"])
            .args(&options.arguments),
    )
}
