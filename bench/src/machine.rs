//! What this machine is, what it was busy with, and whose software is on it.

use std::fmt;
use std::fs;

use crate::failure::Failure;

/// A program from a Debian package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Software {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// The Erlang runtime: `erl`, and `epmd` with it.
pub(crate) const ERL: Software = Software { program: "erl", package: "erlang-base" };
/// The Erlang compiler.
pub(crate) const ERLC: Software = Software { program: "erlc", package: "erlang-base" };
/// The NATS server.
pub(crate) const NATS_SERVER: Software =
    Software { program: "nats-server", package: "nats-server" };

impl Software {
    /// Is it in `PATH`, or in an `sbin` that a user's `PATH` may leave out?
    pub(crate) fn find(self) -> Result<std::path::PathBuf, Failure> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
            .map(|folder| folder.join(self.program))
            .find(|candidate| candidate.is_file())
            .ok_or(Failure::Missing { program: self.program, package: self.package })
    }
}

/// A reading of the machine's counters, to be compared with a later one.
#[derive(Debug)]
pub(crate) struct Machine {
    load_before: String,
    stolen: u64,
    total: u64,
}

impl Machine {
    pub(crate) fn look() -> Self {
        let (stolen, total) = cpu_ticks();
        Self { load_before: load(), stolen, total }
    }

    /// One line about the time between `look` and now.
    pub(crate) fn line(&self) -> String {
        let (stolen, total) = cpu_ticks();
        let share = 100.0 * (stolen - self.stolen) as f64 / (total - self.total).max(1) as f64;
        format!(
            "{} cores ({}), Linux {}; load average {} before, {} after; {share:.1} % of processor time stolen by the host",
            std::thread::available_parallelism().map_or(1, usize::from),
            processor(),
            fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim(),
            self.load_before,
            load(),
        )
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())
    }
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().unwrap_or("?").to_owned()
}

fn processor() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("model name")).map_or_else(
        || "unknown processor".to_owned(),
        |rest| rest.trim_start_matches([' ', '\t', ':']).to_owned(),
    )
}

/// Ticks stolen by the hypervisor, and all ticks, since boot.
fn cpu_ticks() -> (u64, u64) {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<u64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq steal; guest time is part of user time already.
    (fields.get(7).copied().unwrap_or(0), fields.iter().take(8).sum())
}

/// The text of `/proc/PID/FILE`.
pub(crate) fn proc_file(pid: u32, file: &str) -> Result<String, Failure> {
    fs::read_to_string(format!("/proc/{pid}/{file}"))
        .map_err(Failure::os(format!("reading /proc/{pid}/{file}")))
}

/// User and system time so far.
pub(crate) fn processor_seconds(pid: u32) -> Result<f64, Failure> {
    // /proc/PID/schedstat counts in nanoseconds, but only the main thread; the sum over the
    // process in `stat` comes in ticks of 10 ms, fine enough over 20 s.
    let stat = proc_file(pid, "stat")?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: Vec<f64> = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse().ok())
        .collect();
    if ticks.len() == 2 {
        Ok((ticks[0] + ticks[1]) / 100.0)
    } else {
        Err(Failure::Role(format!("no times for process {pid}")))
    }
}

#[cfg(test)]
mod tests {
    use super::{Machine, Software, processor_seconds};

    #[test]
    fn what_is_missing_names_its_package() {
        let missing = Software { program: "no-such-program", package: "no-such-package" };
        let sentence = missing.find().unwrap_err().to_string();
        assert!(
            sentence.contains("no-such-program")
                && sentence.contains("apt-get install no-such-package"),
            "{sentence}"
        );
    }

    #[test]
    fn processor_time_only_grows() {
        let pid = std::process::id();
        let before = processor_seconds(pid).unwrap();
        assert!(processor_seconds(pid).unwrap() >= before);
    }

    #[test]
    fn the_machine_is_described_in_one_line() {
        let line = Machine::look().line();
        assert!(
            line.contains("cores") && line.contains("load average") && !line.contains('\n'),
            "{line}"
        );
    }
}
