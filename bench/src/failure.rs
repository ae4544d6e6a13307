//! Why something could not be measured.

use std::fmt;

/// A reason that stops one case, never the whole run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// A peer's software is not on this machine.
    #[error(
        "`{program}` is not installed: install the Debian package `{package}` (apt-get install {package})"
    )]
    Missing {
        /// The program that was looked for in `PATH`.
        program: &'static str,
        /// The Debian package that has it.
        package: &'static str,
    },
    /// Our own binary is not there to be measured.
    #[error("{path} is not there: build it first (cargo build --release -p purlin-cli)")]
    NotBuilt {
        /// Where it was looked for.
        path: String,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Os {
        /// What was being done.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A process of a contender ended, answered nonsense or fell silent.
    #[error("{who}: {what}")]
    Process {
        /// Which process of which contender.
        who: String,
        /// What it did.
        what: String,
    },
    /// Work was lost, so the time it took means nothing.
    #[error("{who}: {got} of {expected} messages arrived")]
    Lost {
        /// Which process of which contender.
        who: String,
        /// What arrived.
        got: u64,
        /// What was sent.
        expected: u64,
    },
    /// Something inside a contender's own process went wrong.
    #[error("{0}")]
    Role(String),
}

impl Failure {
    /// An operating system error with what was being done.
    pub(crate) fn os(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Os { what, source }
    }

    /// An error of a library inside a role, with what was being done.
    pub(crate) fn role<E: fmt::Display>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self::Role(format!("{what}: {error}"))
    }
}
