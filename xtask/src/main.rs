//! What cargo lacks: `cargo xtask <task>`.
//!
//! Read in this order: [`checkout`] knows where things are and runs programs, [`suite`] is
//! `cargo xtask test`, the rest are its steps ([`packages`], [`floors`], [`unused`], [`docs`], [`tools`]) and
//! the long tasks ([`bench`], [`fuzz`], [`sim`]).
#![expect(
    clippy::print_stdout,
    reason = "a task's result is what it prints; there is no other reader"
)]

mod bench;
mod checkout;
mod docs;
mod floors;
mod fuzz;
mod namespaces;
mod packages;
mod sim;
mod suite;
mod tools;
mod unused;
#[cfg(test)]
mod world;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use checkout::{Checkout, Failure};

/// Project tasks of Purlin.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Installs what the tests need, then runs every check; stops at the first that fails.
    Test(suite::Options),
    /// Builds purlin and the benches in release and prints the table of bars beside our peers.
    Bench(bench::Options),
    /// Checks that every crate depends only on lower floors.
    Floors,
    /// Checks what the documents claim about the tree: paths, links, tests, dependencies, commands.
    DocsCheck,
    /// Plays scenarios in simulated worlds: one seed again, or many.
    Sim(sim::Options),
    /// Feeds the frame and datagram decoders hostile bytes for a while.
    Fuzz(fuzz::Options),
}

fn main() -> ExitCode {
    match run(Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(sentence)) => {
            println!("xtask: {sentence}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<(), Failure> {
    let checkout = Checkout::find()?;
    match task {
        Task::Test(options) => suite::run(&checkout, &options),
        Task::Bench(options) => bench::run(&checkout, &options),
        Task::Floors => floors::run(&checkout),
        Task::DocsCheck => docs::run(&checkout),
        Task::Sim(options) => sim::run(&checkout, &options),
        Task::Fuzz(options) => fuzz::run(&checkout, &options),
    }
}
