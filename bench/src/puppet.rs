//! The other end of the line protocol: a process of this program that does rounds on request.

use std::fmt;
use std::io::{BufRead as _, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;

use tokio::runtime::Runtime;

use crate::failure::Failure;

/// The main function of a hidden role: what this binary does when the harness re-executes it.
pub(crate) type Role = fn(&mut Puppet, &Arguments) -> Result<(), Failure>;

/// Runs a role until the harness closes stdin.
pub(crate) fn play(role: Role, arguments: &Arguments) -> ExitCode {
    let mut puppet = Puppet;
    match role(&mut puppet, arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            puppet.say(&format!("failed {failure}"));
            ExitCode::FAILURE
        }
    }
}

/// The harness, as seen from a role.
#[derive(Debug)]
pub(crate) struct Puppet;

impl Puppet {
    /// Says that work can begin, with whatever the next process has to know.
    pub(crate) fn ready(&self, info: &str) {
        self.say(&format!("ready {info}"));
    }

    /// Waits for the next round; `None` means that the harness is through with us.
    pub(crate) fn next_round(&self) -> Option<u64> {
        self.next_line()?.strip_prefix("round ")?.parse().ok()
    }

    /// Waits for the next line, for roles that can be told more than rounds.
    pub(crate) fn next_line(&self) -> Option<String> {
        let mut line = String::new();
        let read = std::io::stdin().lock().read_line(&mut line).ok()?;
        if read == 0 { None } else { Some(line.trim_end().to_owned()) }
    }

    /// Waits for the next question; `None` means that the harness is through with us.
    pub(crate) fn next_question(&self) -> Option<String> {
        Some(self.next_line()?.strip_prefix("ask ")?.to_owned())
    }

    /// Answers the question.
    pub(crate) fn answer(&self, answer: &str) {
        self.say(&format!("answer {answer}"));
    }

    /// Says that the next message will be counted as the first of the round.
    pub(crate) fn armed(&self) {
        self.say("armed");
    }

    /// Says how much of the round's work was seen.
    pub(crate) fn done(&self, count: u64) {
        self.say(&format!("done {count}"));
    }

    fn say(&self, line: &str) {
        let mut out = std::io::stdout().lock();
        // A harness that is gone reads nothing; the end of stdin will tell us next.
        drop(writeln!(out, "{line}").and_then(|()| out.flush()));
    }
}

/// The words after a role's name.
#[derive(Debug)]
pub(crate) struct Arguments(pub(crate) Vec<String>);

impl Arguments {
    /// The argument at `place`, which its harness side always passes.
    pub(crate) fn text(&self, place: usize) -> Result<&str, Failure> {
        self.0
            .get(place)
            .map(String::as_str)
            .ok_or_else(|| Failure::Role(format!("argument {place} is missing")))
    }

    /// All arguments from `place` on.
    pub(crate) fn rest(&self, place: usize) -> &[String] {
        self.0.get(place..).unwrap_or_default()
    }

    pub(crate) fn number(&self, place: usize) -> Result<u64, Failure> {
        self.text(place)?.parse().map_err(Failure::role("reading a number"))
    }

    pub(crate) fn address(&self, place: usize) -> Result<SocketAddr, Failure> {
        self.text(place)?.parse().map_err(Failure::role("reading an address"))
    }
}

/// The runtime every Rust contender runs on: multi-threaded, one worker per core.
pub(crate) fn runtime() -> Result<Runtime, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(Failure::os("starting the runtime"))
}

/// Runs one round as a task of the runtime and waits for its count.
pub(crate) fn perform<E: fmt::Display + Send + 'static>(
    runtime: &Runtime,
    round: impl Future<Output = Result<u64, E>> + Send + 'static,
) -> Result<u64, Failure> {
    let round = runtime.spawn(round);
    runtime
        .block_on(round)
        .map_err(Failure::role("running a round"))?
        .map_err(Failure::role("working"))
}
