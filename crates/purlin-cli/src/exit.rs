//! How a command ends: four kinds of "no", each with its own exit code.

use std::{fmt, io, process::ExitCode};

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was not done; nothing changed. Exit code 1.
    NotDone(String),
    /// The command line makes no sense. Exit code 2.
    Usage(String),
    /// It may or may not have been done. Exit code 3.
    Unknown(String),
    /// No node could be asked. Exit code 4.
    Unreachable(String),
    /// Whoever read our output has seen enough. Exit code 0, silently.
    OutputClosed,
}

pub(crate) type Done = Result<(), Failure>;

impl Failure {
    pub(crate) fn not_done(text: impl fmt::Display) -> Self {
        Self::NotDone(text.to_string())
    }

    pub(crate) fn code(&self) -> ExitCode {
        match self {
            Self::OutputClosed => ExitCode::SUCCESS,
            Self::NotDone(_) => ExitCode::from(1),
            Self::Usage(_) => ExitCode::from(2),
            Self::Unknown(_) => ExitCode::from(3),
            Self::Unreachable(_) => ExitCode::from(4),
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::OutputClosed => None,
            Self::NotDone(text)
            | Self::Usage(text)
            | Self::Unknown(text)
            | Self::Unreachable(text) => Some(text),
        }
    }
}

/// Errors of writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // `purlin sub feed | head -1`: the reader is content, so are we.
            io::ErrorKind::BrokenPipe => Self::OutputClosed,
            _ => Self::NotDone(format!("cannot write output: {error}")),
        }
    }
}
