//! Programs of the cluster, on the command line.

use std::time::Duration;

use clap::{Args, ValueEnum};

use super::{duration, names::pair};

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// What it is called: letters, digits, '.', '_' and '-'
    pub(crate) name: String,
    /// The program and its arguments, behind --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
    /// Two copies at once do harm: a node that does not move for 5 s loses its copy
    #[arg(long)]
    pub(crate) singleton: bool,
    /// A variable, as NAME=VALUE; may be given several times
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    pub(crate) env: Vec<(String, String)>,
    /// The directory it starts in, on whichever node [default: this one, if the node asked is on this
    /// machine; else /]
    #[arg(long, value_name = "DIR")]
    pub(crate) cwd: Option<String>,
    /// Whom it runs as, on nodes that run as root: USER or USER:GROUP [default: the node's user]
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// What asks it to stop: TERM, INT, QUIT, HUP, USR1, USR2 or KILL
    #[arg(long, value_name = "SIGNAL", default_value = "TERM")]
    pub(crate) stop_signal: String,
    /// How long it has then before it is killed; at most 1h
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = duration)]
    pub(crate) grace: Duration,
    /// When to start it again after it ended by itself
    #[arg(long, value_enum, default_value_t = RestartWhen::Always)]
    pub(crate) restart: RestartWhen,
    /// Most memory, such as 512MiB; at least 1MiB
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) memory_max: Option<u64>,
    /// Most processors, such as 0.5; nodes need exec.cgroup for it
    #[arg(long, value_name = "N")]
    pub(crate) cpus: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RestartWhen {
    /// It is a service
    Always,
    /// When its status is not 0 or a signal ended it
    OnFailure,
    /// It runs once
    Never,
}

impl RestartWhen {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::OnFailure => "on-failure",
            Self::Never => "never",
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Only names that start with this
    #[arg(default_value = "")]
    pub(crate) prefix: String,
}

#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Which program
    pub(crate) name: String,
    /// Keep printing, wherever it runs by then, until it is stopped
    #[arg(long, short)]
    pub(crate) follow: bool,
    /// Begin with so many of the last lines [default: all that its node has in memory]
    #[arg(long, short = 'n', value_name = "LINES")]
    pub(crate) tail: Option<u32>,
    /// What this node has of it, for instance of before it moved [default: where it runs, or ran last]
    #[arg(long, value_name = "NODE")]
    pub(crate) on: Option<String>,
    /// Show when each line was read, and by which node
    #[arg(long, short)]
    pub(crate) timestamps: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Which program
    pub(crate) name: String,
}

/// `4096`, `64KiB`, `512MiB`, `1GiB`.
fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => 0,
    };
    let number = digits.parse::<u64>().ok().filter(|_| factor > 0);
    number
        .and_then(|number| number.checked_mul(factor))
        .ok_or_else(|| "expected bytes such as 4096, 64KiB, 512MiB or 1GiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn bytes_have_binary_units_or_none() {
        assert_eq!(bytes("4096"), Ok(4_096));
        assert_eq!(bytes("64KiB"), Ok(65_536));
        assert_eq!(bytes("1 GiB"), Ok(1 << 30));
        for bad in ["", "MiB", "1MB", "1.5GiB", "-1", "99999999999GiB", "ü"] {
            assert!(bytes(bad).is_err(), "{bad}");
        }
    }
}
