//! A contender at work: OS processes that speak one line protocol on stdin and stdout.
//!
//! Every contender, ours and peers', in Rust and in Erlang, is driven the same way, so that none
//! gets a better clock or a cheaper start than another:
//!
//! ```text
//! process:  ready [ANYTHING]        once, when it can work (an address, for the next process)
//! harness:  round N                 to each receiver, then to the driver
//! process:  armed                   a receiver, when it will count from zero
//! process:  done COUNT              when its part of the N operations is over, with what it saw
//! process:  failed SENTENCE         instead of any of these
//! ```
//!
//! What is no contest, but takes several processes, is asked one question after the other:
//!
//! ```text
//! harness:  ask WORDS
//! process:  answer WORDS
//! ```
//!
//! The harness takes the time from its `round` line to the driver until the last `done`, some
//! hundred microseconds more than the work itself; rounds are several hundred milliseconds. A
//! `done` with another count than expected fails the round: lost work is never counted as fast.
//! A process ends when its stdin does.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::machine::processor_seconds;

/// How long a process may take to say `ready`, connecting and compiling included.
const READY_WITHIN: Duration = Duration::from_secs(30);
/// How long one round may take before the contender counts as stuck.
const ROUND_WITHIN: Duration = Duration::from_secs(60);

/// The processes of one contender, in the order they were started.
#[derive(Debug, Default)]
pub(crate) struct Rig {
    /// Receivers, with how many messages each sees per operation.
    receivers: Vec<(Process, u64)>,
    driver: Option<(Process, u64)>,
    /// Kept alive only: servers that do not speak the protocol or take no part in rounds.
    passive: Vec<Process>,
    daemons: Vec<Daemon>,
}

impl Rig {
    /// A rig that consists of a driver alone.
    pub(crate) fn alone(driver: Process) -> Self {
        Self::default().driver(driver, 1)
    }

    /// Adds a process that is told of each round first and counts `per_operation` messages.
    pub(crate) fn receiver(mut self, process: Process, per_operation: u64) -> Self {
        self.receivers.push((process, per_operation));
        self
    }

    /// Sets the process that starts the work; it counts `per_operation` itself.
    pub(crate) fn driver(mut self, process: Process, per_operation: u64) -> Self {
        self.driver = Some((process, per_operation));
        self
    }

    /// Adds a process that only has to stay.
    pub(crate) fn passive(mut self, process: Process) -> Self {
        self.passive.push(process);
        self
    }

    /// Adds a server that knows nothing of rounds.
    pub(crate) fn daemon(mut self, daemon: Daemon) -> Self {
        self.daemons.push(daemon);
        self
    }

    /// Processor time of all its processes so far, in seconds.
    pub(crate) fn processor_seconds(&self) -> Result<f64, Failure> {
        let spoken = self.receivers.iter().chain(&self.driver).map(|(process, _)| process);
        let children = spoken.chain(&self.passive).map(|process| &process.child);
        children
            .chain(self.daemons.iter().map(|daemon| &daemon.child))
            .map(|child| processor_seconds(child.id()))
            .sum()
    }

    /// Does `operations` and returns what it took.
    pub(crate) fn round(&mut self, operations: u64) -> Result<Duration, Failure> {
        let (driver, per_operation) =
            self.driver.as_mut().expect("every rig is built with a driver");
        for (receiver, _) in &mut self.receivers {
            receiver.tell(&format!("round {operations}"))?;
        }
        for (receiver, _) in &mut self.receivers {
            receiver.expect("armed", READY_WITHIN)?;
        }
        let started = Instant::now();
        driver.tell(&format!("round {operations}"))?;
        driver.expect_count(operations * *per_operation)?;
        for (receiver, per_operation) in &mut self.receivers {
            receiver.expect_count(operations * *per_operation)?;
        }
        Ok(started.elapsed())
    }
}

/// One process that speaks the protocol. Dropping it closes its stdin, and kills it if that is
/// not enough.
#[derive(Debug)]
pub(crate) struct Process {
    who: String,
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
    /// What it said after `ready`.
    pub(crate) ready: String,
}

impl Process {
    /// Starts it and waits for its `ready`.
    pub(crate) fn start(who: impl Into<String>, mut command: Command) -> Result<Self, Failure> {
        let who = who.into();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .map_err(Failure::os(format!(
                "starting {who} ({})",
                command.get_program().display()
            )))?;
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("stdout was piped above");
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if tell.send(line).is_err() {
                    return;
                }
            }
        });
        let mut process = Self { who, child, stdin, lines, ready: String::new() };
        process.ready = process.expect("ready", READY_WITHIN)?;
        Ok(process)
    }

    /// The number of its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Kills it (`SIGKILL`), and waits for its end.
    pub(crate) fn kill(&mut self) -> Result<(), Failure> {
        let failed = || format!("killing {}", self.who);
        self.child.kill().map_err(Failure::os(failed()))?;
        self.child.wait().map(drop).map_err(Failure::os(failed()))
    }

    /// Asks something that takes its time; [`Process::answer`] waits for it.
    pub(crate) fn ask(&mut self, what: &str) -> Result<(), Failure> {
        self.tell(&format!("ask {what}"))
    }

    /// Waits for the answer to what was asked.
    pub(crate) fn answer(&mut self) -> Result<String, Failure> {
        self.expect("answer", ROUND_WITHIN)
    }

    /// Asks, and waits for the answer.
    pub(crate) fn question(&mut self, what: &str) -> Result<String, Failure> {
        self.ask(what)?;
        self.answer()
    }

    /// Tells it one line.
    pub(crate) fn tell(&mut self, line: &str) -> Result<(), Failure> {
        let stdin = self.stdin.as_mut().expect("stdin is closed only by drop");
        writeln!(stdin, "{line}").map_err(Failure::os(format!("telling {} `{line}`", self.who)))
    }

    /// Waits for a line that starts with `word`; returns the rest of it.
    pub(crate) fn expect(&mut self, word: &str, within: Duration) -> Result<String, Failure> {
        let line = self.lines.recv_timeout(within).map_err(|error| {
            self.failed(match error {
                RecvTimeoutError::Timeout => {
                    format!("said nothing for {within:?} (`{word}` was expected)")
                }
                RecvTimeoutError::Disconnected => format!("ended ({}) before `{word}`", self.end()),
            })
        })?;
        match line.strip_prefix(word) {
            Some(rest) => Ok(rest.trim().to_owned()),
            None => Err(self.failed(line)),
        }
    }

    /// Sends it a signal by name, such as `KILL`.
    pub(crate) fn signal(&self, signal: &str) -> Result<(), Failure> {
        let mut kill = Command::new("kill");
        kill.arg(format!("-{signal}")).arg(self.child.id().to_string());
        let done = kill.status().map_err(Failure::os("running kill"))?;
        if done.success() { Ok(()) } else { Err(self.failed(format!("took no {signal}"))) }
    }

    fn expect_count(&mut self, expected: u64) -> Result<(), Failure> {
        let said = self.expect("done", ROUND_WITHIN)?;
        let got =
            said.parse().map_err(|_error| self.failed(format!("`done {said}` has no count")))?;
        if got == expected {
            Ok(())
        } else {
            Err(Failure::Lost { who: self.who.clone(), got, expected })
        }
    }

    fn failed(&self, what: String) -> Failure {
        Failure::Process { who: self.who.clone(), what }
    }

    fn end(&self) -> String {
        format!("process {}; see its standard error above", self.child.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.stdin.take());
        end_within(&mut self.child, Duration::from_secs(2));
    }
}

/// A server that is simply there until dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
}

impl Daemon {
    /// Starts it with nothing on stdin and its output thrown away.
    pub(crate) fn start(who: &str, mut command: Command) -> Result<Self, Failure> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Failure::os(format!("starting {who}")))?;
        Ok(Self { child })
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        end_within(&mut self.child, Duration::ZERO);
    }
}

/// Waits for `child` to end by itself, then kills it.
fn end_within(child: &mut Child, patience: Duration) {
    let until = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return,
            Ok(None) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            // Kill fails only when it has ended meanwhile, which is what was wanted.
            Ok(None) | Err(_) => {
                drop(child.kill());
                drop(child.wait());
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Process, Rig};
    use crate::failure::Failure;
    use std::process::Command;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start("shell", command).unwrap()
    }

    #[test]
    fn a_round_ends_when_everyone_is_done() {
        let receiver =
            shell("echo ready; while read w n; do echo armed; echo done $((n * 2)); done");
        let driver = shell("echo ready here; while read w n; do echo done $n; done");
        assert_eq!(driver.ready, "here");
        let mut rig = Rig::default().receiver(receiver, 2).driver(driver, 1);
        rig.round(10).unwrap();
        rig.round(20).unwrap();
    }

    #[test]
    fn lost_messages_fail_the_round() {
        let mut rig =
            Rig::alone(shell("echo ready; while read w n; do echo done $((n - 1)); done"));
        assert!(matches!(rig.round(10), Err(Failure::Lost { got: 9, expected: 10, .. })));
    }

    #[test]
    fn a_process_that_fails_says_why() {
        let mut rig = Rig::alone(shell("echo ready; read line; echo failed no more tea"));
        assert_eq!(rig.round(1).unwrap_err().to_string(), "shell: failed no more tea");
    }
}
