//! Plays scenarios in simulated worlds: one seed, or many.
//!
//! `cargo xtask sim` builds and runs it. Exit code 0 when every promise held, 1 when one was broken,
//! 2 for arguments that make no sense.
#![expect(clippy::print_stdout, reason = "what it finds is what it prints")]

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    process::ExitCode,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use purlin_sim::scenarios::{self, Play, Played, Scenario};
use serde::Deserialize;

/// Plays scenarios in simulated worlds.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim", bin_name = "cargo xtask sim")]
struct Arguments {
    /// Which scenario; without it, all of them.
    #[arg(long)]
    scenario: Option<String>,
    /// Plays this seed only, and prints its trace's digest.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Plays so many seeds of each scenario.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    from: u64,
    /// How many things are done before the world heals. Each scenario has its own default.
    #[arg(long)]
    steps: Option<u32>,
    /// Plays past offenders from this file first.
    #[arg(long, value_name = "FILE")]
    offenders: Option<PathBuf>,
    /// One more seed of each scenario, new for each commit or run: any text.
    #[arg(long, value_name = "TEXT")]
    fresh: Option<String>,
    /// Worlds at once. Default: one for each processor.
    #[arg(long)]
    threads: Option<usize>,
    /// Prints the last so many lines of the trace of a single seed.
    #[arg(long, default_value_t = 0)]
    trace: usize,
    /// Lists the scenarios.
    #[arg(long)]
    list: bool,
}

/// The file of past offenders.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Offenders {
    #[serde(default)]
    offender: Vec<Offender>,
}

/// A seed that once broke a promise.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Offender {
    scenario: String,
    seed: u64,
    steps: u32,
    /// What it found.
    #[expect(dead_code, reason = "for people who read the file")]
    found: String,
}

type Job = (&'static Scenario, Play);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        for scenario in scenarios::ALL {
            println!("{:<22} {}", scenario.name, scenario.about);
        }
        return ExitCode::SUCCESS;
    }
    match jobs(&arguments) {
        Ok(jobs) => sweep(&jobs, &arguments),
        Err(sentence) => {
            println!("{sentence}");
            ExitCode::from(2)
        }
    }
}

fn find(name: &str) -> Result<&'static Scenario, String> {
    scenarios::find(name).ok_or_else(|| {
        format!("no scenario is called {name:?}; `cargo xtask sim --list` shows all")
    })
}

fn jobs(arguments: &Arguments) -> Result<Vec<Job>, String> {
    let chosen: Vec<&Scenario> = match &arguments.scenario {
        Some(name) => vec![find(name)?],
        None => scenarios::ALL.iter().collect(),
    };
    let play =
        |scenario: &Scenario, seed| Play { seed, steps: arguments.steps.unwrap_or(scenario.steps) };
    let mut jobs = Vec::new();
    if let Some(path) = &arguments.offenders {
        jobs.extend(offenders(path)?);
    }
    let fresh = arguments.fresh.as_deref().map(purlin_sim::seed_of);
    for scenario in &chosen {
        if let Some(seed) = arguments.seed {
            jobs.push((*scenario, play(scenario, seed)));
            continue;
        }
        // The largest have one seed in a short sweep anyway.
        let fresh = fresh.filter(|_| scenario.one_in == 1);
        jobs.extend(fresh.map(|seed| (*scenario, play(scenario, seed))));
    }
    // Seed by seed over all scenarios: an interrupted sweep has seen something of each.
    let alone = u64::from(arguments.seed.is_none() && fresh.is_none());
    let seeds = arguments.seeds.unwrap_or(alone);
    for seed in arguments.from..arguments.from.saturating_add(seeds) {
        let due = chosen.iter().filter(|it| (seed - arguments.from).is_multiple_of(it.one_in));
        jobs.extend(due.map(|scenario| (*scenario, play(scenario, seed))));
    }
    Ok(jobs)
}

fn offenders(path: &PathBuf) -> Result<Vec<Job>, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let read: Offenders =
        toml::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    let job = |offender: Offender| {
        Ok((find(&offender.scenario)?, Play { seed: offender.seed, steps: offender.steps }))
    };
    read.offender.into_iter().map(job).collect()
}

/// How often a sweep says how far it is.
const PROGRESS_EVERY: Duration = Duration::from_secs(10);

fn sweep(jobs: &[Job], arguments: &Arguments) -> ExitCode {
    let processors = || thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = arguments.threads.unwrap_or_else(processors).clamp(1, jobs.len().max(1));
    let (started, next) = (Instant::now(), AtomicU64::new(0));
    let mut failed = Vec::new();
    let (mut done, mut virtual_millis, mut told) = (0, 0, Instant::now());
    thread::scope(|scope| {
        let (tell, told_by) = mpsc::channel();
        for _ in 0..threads {
            let (tell, next) = (tell.clone(), &next);
            scope.spawn(move || {
                while let Ok(at) = usize::try_from(next.fetch_add(1, Ordering::Relaxed))
                    && let Some(job) = jobs.get(at)
                {
                    if tell.send((job, play(job, arguments.trace))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(tell);
        for ((scenario, play), outcome) in told_by {
            done += 1;
            match outcome {
                Ok(played) => {
                    virtual_millis += played.virtual_millis;
                    if arguments.seed.is_some() {
                        let Played { virtual_millis, events, digest } = played;
                        println!(
                            "{} held for seed {}: {:.1} virtual s, {events} events, trace {digest:016x}",
                            scenario.name,
                            play.seed,
                            seconds(virtual_millis),
                        );
                    }
                }
                Err(failure) => {
                    println!("\nFAILED: {} with seed {}\n{failure}\n", scenario.name, play.seed);
                    failed.push(format!(
                        "cargo xtask sim --scenario {} --seed {} --steps {}",
                        scenario.name, play.seed, play.steps
                    ));
                }
            }
            if told.elapsed() >= PROGRESS_EVERY {
                told = Instant::now();
                println!("{done} of {} played, {} failed", jobs.len(), failed.len());
            }
        }
    });
    let took = started.elapsed().as_secs_f64();
    println!(
        "{done} runs on {threads} threads in {took:.1} s, {:.0} virtual s ({:.0} per second): {} failed",
        seconds(virtual_millis),
        seconds(virtual_millis) / took,
        failed.len(),
    );
    for line in &failed {
        println!("  replay: {line}");
    }
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn seconds(millis: u64) -> f64 {
    Duration::from_millis(millis).as_secs_f64()
}

fn play((scenario, play): &Job, lines: usize) -> Result<Played, String> {
    let play = || scenario.play_tracing(*play, lines, |line| println!("{line}"));
    match catch_unwind(AssertUnwindSafe(play)) {
        Ok(played) => played.map_err(|failure| failure.to_string()),
        Err(_) => Err("the scenario itself panicked; the message is above".to_owned()),
    }
}
