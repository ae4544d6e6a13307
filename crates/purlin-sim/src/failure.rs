//! What went wrong in a simulated world, and how to see it again.

use std::{fmt, time::Duration};

/// A simulation that did not go as it should: what, when, what had been done before, and the way
/// to see the very same thing again.
///
/// `Debug` prints the same as `Display`, so that a test that returns one is readable.
pub struct Failure(Box<Inner>);

struct Inner {
    what: String,
    at: Duration,
    notes: Vec<String>,
    replay: String,
}

impl Failure {
    pub(crate) fn new(what: String, at: Duration, notes: Vec<String>, replay: String) -> Self {
        Self(Box::new(Inner { what, at, notes, replay }))
    }

    /// What went wrong, without the rest.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.0.what
    }

    /// When, in virtual time since the start of the world.
    #[must_use]
    pub fn at(&self) -> Duration {
        self.0.at
    }

    /// How to see it again.
    #[must_use]
    pub fn replay(&self) -> &str {
        &self.0.replay
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { what, at, notes, replay } = &*self.0;
        write!(f, "after {:.3} s of virtual time: {what}", at.as_secs_f64())?;
        if !notes.is_empty() {
            write!(f, "\n  what was done before, last at the bottom:")?;
        }
        for note in notes {
            write!(f, "\n  {note}")?;
        }
        write!(f, "\n  replay: {replay}")
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Failure {}
