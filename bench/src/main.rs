//! Purlin beside its peers: the same work in the same run on the same machine, as ratios.
//!
//! Absolute figures say more about the machine than about the program, so every row is ours over
//! a peer's, both taken in turns (peers, ours, peers, ours, …), each by processes of its own.
//! Reading order: [`case`] has the words, the topic files ([`local`], [`remote`], [`pubsub`],
//! [`idle`], [`pure`], [`replica`], [`presence`], [`membership`], [`simulator`]) have the rows, [`run`] measures
//! them, [`rig`] drives the processes, [`peers`] has the other side. `docs/benchmarks.md` says what each row means and how it is kept fair.

mod adder;
mod case;
mod children;
mod failure;
mod idle;
mod local;
mod machine;
mod membership;
mod nodes;
mod peers;
mod presence;
mod progress;
mod pubsub;
mod puppet;
mod pure;
mod registry;
mod remote;
mod replica;
mod report;
mod rig;
mod run;
mod simulator;
mod stats;
mod workshop;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::case::Case;
use crate::failure::Failure;
use crate::machine::Machine;
use crate::progress::Progress;
use crate::puppet::{Arguments, Role, play};
use crate::report::Row;
use crate::run::{Effort, run};
use crate::workshop::Workshop;

/// Measures purlin beside its peers and prints a table of ratios.
///
/// Exit code: 0 when every bar measured holds, 1 when one does not, 2 when something could not be
/// measured.
#[derive(Debug, Parser)]
#[command(name = "bench", version)]
struct Cli {
    /// Only cases or rows whose name contains NAME; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Write the rows as a JSON array to FILE
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Name the cases and rows and measure nothing
    #[arg(long)]
    list: bool,
    /// A quick look: short rounds and few of them
    #[arg(long)]
    quick: bool,
    /// Rounds per contender [default: 7, or 3 with --quick]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    rounds: Option<u16>,
    /// What a contender's process does, and with what; used by this program on itself
    #[arg(long, hide = true, num_args = 1.., allow_hyphen_values = true)]
    role: Vec<String>,
}

/// Every case, in the order of the table. A later topic adds its line here.
fn cases() -> Vec<Case> {
    [
        local::cases(),
        remote::cases(),
        pubsub::cases(),
        idle::cases(),
        pure::cases(),
        replica::cases(),
        presence::cases(),
        registry::cases(),
        children::cases(),
        membership::cases(),
        simulator::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Every hidden role by name.
fn role(name: &str) -> Option<Role> {
    [
        local::ROLES,
        remote::ROLES,
        pubsub::ROLES,
        presence::ROLES,
        pure::ROLES,
        peers::ROLES,
        registry::ROLES,
        children::ROLES,
    ]
    .into_iter()
    .flatten()
    .find(|(known, _)| *known == name)
    .map(|&(_, role)| role)
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Some((name, arguments)) = cli.role.split_first() {
        return match role(name) {
            Some(role) => play(role, &Arguments(arguments.to_vec())),
            None => ExitCode::from(2),
        };
    }
    let progress = Progress::new();
    match bench(&cli, &progress) {
        Ok(code) => code,
        Err(failure) => {
            progress.note(&format!("bench: {failure}"));
            ExitCode::from(2)
        }
    }
}

fn bench(cli: &Cli, progress: &Progress) -> Result<ExitCode, Failure> {
    let mut cases = cases();
    cases.retain(|case| !wanted_rows(case, &cli.only).is_empty());
    if cases.is_empty() {
        return Err(Failure::Role(format!(
            "no case or row is called {}; --list names them",
            cli.only.join(" or ")
        )));
    }
    if cli.list {
        return list(&cases).map(|()| ExitCode::SUCCESS);
    }
    let effort = effort(cli);
    let machine = Machine::look();
    let workshop = Workshop::open()?;
    let (mut rows, mut unmeasured) = (Vec::new(), 0_usize);
    for case in &cases {
        let wanted = wanted_rows(case, &cli.only);
        match run(case, &wanted, &workshop, effort, progress) {
            Ok(measured) => rows.extend(measured),
            Err(failure) => {
                unmeasured += 1;
                progress.note(&format!("{} could not be measured: {failure}", case.name()));
            }
        }
    }
    progress.note("");
    show(&rows, &machine, effort)?;
    if let Some(file) = &cli.json {
        write_json(file, &rows)?;
    }
    Ok(match (unmeasured, rows.iter().all(|row| row.holds)) {
        (0, true) => ExitCode::SUCCESS,
        (0, false) => ExitCode::from(1),
        _ => ExitCode::from(2),
    })
}

fn effort(cli: &Cli) -> Effort {
    let (rounds, round) =
        if cli.quick { (3, Duration::from_millis(150)) } else { (7, Duration::from_millis(600)) };
    Effort { rounds: cli.rounds.map_or(rounds, usize::from), round, brief: cli.quick }
}

/// The names of the rows of `case` that `only` asks for, by their own name or the case's.
fn wanted_rows(case: &Case, only: &[String]) -> Vec<&'static str> {
    let asked = |row: &str| {
        only.is_empty() || only.iter().any(|name| case.name().contains(name) || row.contains(name))
    };
    case.rows().into_iter().map(|(row, _)| row).filter(|row| asked(row)).collect()
}

fn list(cases: &[Case]) -> Result<(), Failure> {
    let mut text = String::new();
    for case in cases {
        text.push_str(&format!("{}: {}\n", case.name(), case.about()));
        for (row, bar) in case.rows() {
            text.push_str(&format!("  {row:<24} {bar}\n"));
        }
    }
    print(&text)
}

fn show(rows: &[Row], machine: &Machine, effort: Effort) -> Result<(), Failure> {
    let missed: Vec<&str> = rows.iter().filter(|row| !row.holds).map(|row| row.name).collect();
    let verdict = if missed.is_empty() {
        format!("all {} bars hold", rows.len())
    } else {
        format!("{} of {} bars missed: {}", missed.len(), rows.len(), missed.join(", "))
    };
    let how = format!(
        "medians of {} interleaved rounds of about {} ms; ±% is half the range of the rounds",
        effort.rounds,
        effort.round.as_millis()
    );
    print(&format!("{}\n{how}\n{}\n{verdict}\n", report::table(rows), machine.line()))
}

fn print(text: &str) -> Result<(), Failure> {
    std::io::stdout().lock().write_all(text.as_bytes()).map_err(Failure::os("printing"))
}

fn write_json(file: &std::path::Path, rows: &[Row]) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(rows).map_err(Failure::role("writing JSON"))?;
    fs::write(file, json + "\n").map_err(Failure::os(format!("writing {}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::{Case, Cli, cases, wanted_rows};
    use clap::CommandFactory as _;
    use std::collections::BTreeSet;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn rows_are_asked_for_by_their_name_or_their_case() {
        let cases = cases();
        let case = cases.iter().find(|case| case.name() == "local-call").unwrap();
        assert_eq!(wanted_rows(case, &["local-call-floor".into()]), ["local-call-floor"]);
        assert_eq!(wanted_rows(case, &["local".into()]).len(), case.rows().len());
        assert!(wanted_rows(case, &["pubsub".into()]).is_empty());
    }

    #[test]
    fn every_row_has_a_name_of_its_own() {
        let cases = cases();
        let names: Vec<&str> =
            cases.iter().flat_map(|case| case.rows()).map(|(name, _)| name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "{names:?}");
    }

    #[test]
    fn every_row_names_peers_that_take_part_and_not_ours() {
        for case in cases() {
            let Case::Contest(contest) = case else {
                continue;
            };
            let peers: Vec<&str> =
                contest.contenders.iter().skip(1).map(|contender| contender.name).collect();
            for row in contest.rows {
                assert!(
                    !row.peers.is_empty() && row.peers.iter().all(|name| peers.contains(name)),
                    "{}",
                    row.name
                );
            }
        }
    }
}
