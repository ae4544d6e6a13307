//! What is going on, on standard error, so that standard output holds the table alone.

use std::io::{IsTerminal as _, Write as _};

/// A status line on a terminal; plain lines elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    terminal: bool,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal() }
    }

    /// Replaces the status line.
    pub(crate) fn say(&self, what: &str) {
        let mut err = std::io::stderr().lock();
        // Progress that cannot be shown is no reason to stop measuring.
        if self.terminal {
            drop(write!(err, "\r\x1b[2K{what}").and_then(|()| err.flush()));
        } else {
            drop(writeln!(err, "{what}"));
        }
    }

    /// A line that stays.
    pub(crate) fn note(&self, what: &str) {
        if self.terminal {
            self.say("");
        }
        drop(writeln!(std::io::stderr().lock(), "{what}"));
    }
}
