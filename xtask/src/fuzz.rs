//! `cargo xtask fuzz`: hostile bytes for the decoders, for as long as asked.
//!
//! cargo-fuzz needs a nightly compiler for its instrumentation and this project builds on stable,
//! so the generator is proptest: the same properties that `cargo test` runs briefly, in release and
//! until the time is up.

use clap::Args;

use crate::checkout::{Checkout, Failure, run as execute};

/// How long to fuzz.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Minutes for the whole run, shared by the decoders.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
}

/// Runs the fuzzing tests for the given time.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<(), Failure> {
    println!("fuzzing the decoders for {} min", options.minutes);
    execute(
        checkout
            .cargo()
            .args(["test", "--release", "--package", "purlin-net"])
            .args(["--test", "fuzz_decoders", "--", "--nocapture"])
            .env("PURLIN_FUZZ_SECONDS", (options.minutes * 60).to_string()),
    )
}
