//! `cargo xtask sim`: scenarios in simulated worlds, one seed or many.
//!
//! The work is done by the binary of `purlin-sim`; this builds it, in release when there is so much
//! to play that the longer build pays, and knows where past offenders are kept.

use clap::Args;

use crate::checkout::{Checkout, Failure, capture, run as execute};

/// From so many seeds on the optimised build is worth its time.
const RELEASE_FROM: u64 = 200;
/// How many seeds of each scenario a run of all tests plays, besides a fresh one and past offenders.
const SEEDS_IN_TESTS: u64 = 8;
/// Where past offenders are kept.
const OFFENDERS: &str = "sim/seeds.toml";

/// What to play.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Which scenario; without it, all of them.
    #[arg(long)]
    scenario: Option<String>,
    /// Plays this seed again.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Plays so many seeds of each scenario, past offenders first.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first of them.
    #[arg(long)]
    from: Option<u64>,
    /// How many things are done before the world heals. Each scenario has its own default.
    #[arg(long)]
    steps: Option<u32>,
    /// Prints the last so many lines of the trace.
    #[arg(long, requires = "seed")]
    trace: Option<usize>,
    /// Worlds at once. Default: one for each processor.
    #[arg(long)]
    threads: Option<usize>,
    /// Lists the scenarios.
    #[arg(long)]
    list: bool,
    /// Builds in release also for a few seeds.
    #[arg(long)]
    release: bool,
}

impl Options {
    /// The arguments of the binary: each that was given, by its name.
    fn arguments(&self) -> Vec<String> {
        let Self { scenario, seed, seeds, from, steps, trace, threads, list, release: _ } = self;
        let text = |number: Option<u64>| number.map(|number| number.to_string());
        let given = [
            ("--scenario", scenario.clone()),
            ("--seed", text(*seed)),
            ("--seeds", text(*seeds)),
            ("--from", text(*from)),
            ("--steps", steps.map(|steps| steps.to_string())),
            ("--trace", trace.map(|lines| lines.to_string())),
            ("--threads", threads.map(|threads| threads.to_string())),
        ];
        let given = given.into_iter().filter_map(|(name, value)| Some([name.to_owned(), value?]));
        let mut arguments: Vec<String> = given.flatten().collect();
        if *list {
            arguments.push("--list".to_owned());
        }
        arguments
    }
}

fn play(checkout: &Checkout, release: bool, arguments: &[String]) -> Result<(), Failure> {
    let mut command = checkout.cargo();
    command.args(["run", "--quiet", "--locked", "--package", "purlin-sim", "--bin", "purlin-sim"]);
    if release {
        command.arg("--release");
    }
    execute(command.arg("--").args(arguments))
}

/// Plays what was asked for.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<(), Failure> {
    let release = options.release || options.seeds.is_some_and(|seeds| seeds >= RELEASE_FROM);
    let mut arguments = options.arguments();
    // A replay is about one run alone, and so is a sweep of one scenario.
    if options.seeds.is_some() && options.scenario.is_none() {
        arguments.extend(["--offenders".to_owned(), OFFENDERS.to_owned()]);
    }
    play(checkout, release, &arguments)
}

/// What `cargo xtask test` plays: past offenders, the same few seeds every time, and one that is
/// new for each commit.
pub(crate) fn budget(checkout: &Checkout) -> Result<(), Failure> {
    let commit = capture(
        std::process::Command::new("git").current_dir(&checkout.root).args(["rev-parse", "HEAD"]),
    );
    let fresh = commit.map_or_else(|_| "no commit".to_owned(), |hash| hash.trim().to_owned());
    let arguments =
        ["--offenders", OFFENDERS, "--seeds", &SEEDS_IN_TESTS.to_string(), "--fresh", &fresh];
    play(checkout, false, &arguments.map(str::to_owned))
}
