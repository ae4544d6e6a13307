//! Structured logs on standard error.

use std::io::IsTerminal as _;

use purlin::config::{LogFormat, LogSection};
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::exit::{Done, Failure};

/// Starts logging as configured, for the rest of the process.
pub(crate) fn start(log: &LogSection) -> Done {
    let filter = EnvFilter::try_new(&log.level).map_err(|error| {
        Failure::NotDone(format!("log.level {:?} is not a level or filter: {error}", log.level))
    })?;
    let registry = tracing_subscriber::registry().with(filter);
    let already = |error| Failure::NotDone(format!("cannot start logging: {error}"));
    match log.format {
        LogFormat::Json => registry
            .with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr))
            .try_init()
            .map_err(already),
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            registry
                .with(fmt::layer().with_ansi(colour).with_writer(std::io::stderr))
                .try_init()
                .map_err(already)
        }
    }
}
