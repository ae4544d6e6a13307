//! `cargo xtask test`: every check, in the order in which a mistake is cheapest to hear about.

use std::process::Command;
use std::time::{Duration, Instant};

use clap::Args;

use crate::checkout::{Checkout, Failure, capture, run as execute};
use crate::{docs, floors, namespaces, packages, sim, tools, unused};

/// What to run of the suite.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Runs only this step; may be given several times.
    #[arg(long = "only", value_name = "STEP", value_parser = step_names())]
    only: Vec<String>,
}

/// A step: its name on the command line, what it is for, and how it is done.
struct Step {
    name: &'static str,
    does: &'static str,
    run: fn(&Checkout, &mut Log) -> Result<(), Failure>,
}

const STEPS: &[Step] = &[
    Step { name: "packages", does: "what the tests need from Debian", run: needed_packages },
    Step { name: "fmt", does: "formatting", run: fmt },
    Step { name: "floors", does: "who may know whom", run: |checkout, _| floors::run(checkout) },
    Step {
        name: "unused",
        does: "dependencies that nobody needs",
        run: |checkout, _| unused::run(checkout),
    },
    Step {
        name: "docs-check",
        does: "what the documents claim about the tree",
        run: |checkout, _| docs::run(checkout),
    },
    Step { name: "clippy", does: "lints, warnings are errors", run: clippy },
    Step { name: "rustdoc", does: "doc comments and the links between them", run: rustdoc },
    Step { name: "deny", does: "licences, bans, sources, advisories", run: deny },
    Step { name: "tests", does: "all tests, and every example in a test of its own", run: tests },
    Step {
        name: "sim",
        does: "past offenders, some seeds and a fresh one of every scenario",
        run: |checkout, _| sim::budget(checkout),
    },
    Step { name: "doc-tests", does: "the code in doc comments and in README.md", run: doc_tests },
];

/// What the steps leave behind for the summary.
#[derive(Debug, Default)]
struct Log {
    /// Things that were not checked, each with its reason.
    skipped: Vec<String>,
    /// Whether the tests in network namespaces can run here; unknown until somebody looked.
    namespaces: Option<bool>,
    /// Whether pages can be looked at here; unknown until somebody looked.
    browser: Option<bool>,
}

impl Log {
    /// Says now, and again in the summary, that something was not checked.
    fn skip(&mut self, sentence: String) {
        println!("NOT CHECKED: {sentence}");
        self.skipped.push(sentence);
    }
}

fn step_names() -> Vec<&'static str> {
    STEPS.iter().map(|step| step.name).collect()
}

/// Runs the chosen steps in order and stops at the first that fails.
pub(crate) fn run(checkout: &Checkout, options: &Options) -> Result<(), Failure> {
    let chosen =
        |step: &&Step| options.only.is_empty() || options.only.iter().any(|o| o == step.name);
    let mut log = Log::default();
    let mut taken: Vec<(&str, Duration)> = Vec::new();
    let mut failed = None;
    for step in STEPS.iter().filter(chosen) {
        println!("\n==> {}: {}", step.name, step.does);
        let started = Instant::now();
        let outcome = (step.run)(checkout, &mut log);
        taken.push((step.name, started.elapsed()));
        if let Err(Failure(why)) = outcome {
            failed = Some(Failure(format!("step `{}` failed: {why}", step.name)));
            break;
        }
    }
    summarize(&taken, &log);
    failed.map_or(Ok(()), Err)
}

fn summarize(taken: &[(&str, Duration)], log: &Log) {
    println!("\n==> time per step");
    for (name, time) in taken {
        println!("{name:>12} {:>8.1} s", time.as_secs_f64());
    }
    let total: Duration = taken.iter().map(|(_, time)| *time).sum();
    println!("{:>12} {:>8.1} s", "total", total.as_secs_f64());
    for sentence in &log.skipped {
        println!("NOT CHECKED: {sentence}");
    }
}

fn needed_packages(_: &Checkout, log: &mut Log) -> Result<(), Failure> {
    look_for_namespaces(log);
    look_for_browser(log);
    Ok(())
}

/// Finds out once whether namespaces work here, and says so when they do not.
fn look_for_namespaces(log: &mut Log) -> bool {
    if let Some(known) = log.namespaces {
        return known;
    }
    let answer = namespaces::available();
    log.namespaces = Some(answer.is_ok());
    if let Err(Failure(why)) = &answer {
        log.skip(format!(
            "partitions in network namespaces (crates/purlin-cli/tests/namespaces.rs): {why}"
        ));
    }
    answer.is_ok()
}

/// The variable by which `crates/purlin-browser` learns that its tests must not skip.
const BROWSER_REQUIRED: &str = "PURLIN_BROWSER_REQUIRED";

/// Finds out once whether there is a browser that runs, and says so when there is none.
fn look_for_browser(log: &mut Log) -> bool {
    if let Some(known) = log.browser {
        return known;
    }
    let runs = || capture(Command::new("chromium").arg("--version"));
    let answer = packages::ensure(packages::FOR_PAGES).and_then(|()| runs());
    log.browser = Some(answer.is_ok());
    if let Err(Failure(why)) = &answer {
        log.skip(format!("pages in a browser (crates/purlin-browser): {why}"));
    }
    answer.is_ok()
}

fn fmt(checkout: &Checkout, _: &mut Log) -> Result<(), Failure> {
    execute(checkout.cargo().args(["fmt", "--all", "--check"]))
}

fn clippy(checkout: &Checkout, _: &mut Log) -> Result<(), Failure> {
    execute(checkout.cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ]))
}

fn rustdoc(checkout: &Checkout, _: &mut Log) -> Result<(), Failure> {
    // `--lib`: the binary is called purlin like the façade, and their pages would collide.
    execute(
        checkout
            .cargo()
            .args(["doc", "--workspace", "--no-deps", "--lib", "--locked", "--keep-going"])
            // A module's reading order names private modules too: links for us, text for users.
            .env("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links"),
    )
}

fn deny(checkout: &Checkout, log: &mut Log) -> Result<(), Failure> {
    let binary = tools::cargo_deny(checkout)?;
    let deny = || {
        let mut command = Command::new(&binary);
        command.current_dir(&checkout.root);
        command
    };
    execute(deny().args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"]))?;
    match capture(deny().args(["fetch", "db"])) {
        Ok(_) => execute(deny().args(["check", "--disable-fetch", "advisories"])),
        Err(Failure(complaint)) => {
            let why = complaint.lines().last().unwrap_or("no reason given");
            log.skip(format!(
                "security advisories: the RustSec database cannot be fetched here ({why})"
            ));
            Ok(())
        }
    }
}

fn tests(checkout: &Checkout, log: &mut Log) -> Result<(), Failure> {
    let mut command = checkout.cargo();
    command.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    command.args(["--lib", "--bins", "--tests", "--examples"]);
    if look_for_namespaces(log) {
        command.env(namespaces::REQUIRED, "1");
    }
    if look_for_browser(log) {
        command.env(BROWSER_REQUIRED, "1");
    }
    execute(&mut command)
}

fn doc_tests(checkout: &Checkout, _: &mut Log) -> Result<(), Failure> {
    execute(checkout.cargo().args(["test", "--workspace", "--locked", "--no-fail-fast", "--doc"]))
}
