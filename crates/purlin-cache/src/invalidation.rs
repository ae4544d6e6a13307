//! What a node has written to near caches lately, numbered, for those who may have missed it. Pure.

use std::collections::VecDeque;

use bytes::Bytes;
use purlin_core::HlcTimestamp;
use serde::{Deserialize, Serialize};

/// The most bytes of keys and names that are remembered. Who missed more forgets everything it
/// holds instead.
pub const LOG_BYTES_MAX: usize = 1 << 20;

/// A write that ends older copies elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invalidation {
    /// Of which cache.
    pub cache: String,
    /// Of which key; `None` for all of them.
    pub key: Option<Bytes>,
    /// Copies up to this version are the past.
    pub version: HlcTimestamp,
}

impl Invalidation {
    fn bytes(&self) -> usize {
        self.cache.len() + self.key.as_ref().map_or(0, Bytes::len) + 32
    }
}

/// Where a reader of somebody's log stands: in which life of the writer, and after which number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The writer's incarnation: a new life counts anew.
    pub stream: u64,
    /// The number of the last write; 0 for none.
    pub seq: u64,
}

/// What a reader missed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catchup {
    /// Where it stands after this.
    pub now: Position,
    /// Everything since where it stood, in order; `None` when that is no longer remembered.
    pub missed: Option<Vec<Invalidation>>,
    /// Whether the writer has promised to write no more.
    pub is_final: bool,
}

/// One node's latest writes.
#[derive(Debug)]
pub struct Log {
    stream: u64,
    last: u64,
    recent: VecDeque<Invalidation>,
    bytes: usize,
    is_final: bool,
}

impl Log {
    /// The log of the life `stream` of a node.
    #[must_use]
    pub fn new(stream: u64) -> Self {
        Self { stream, last: 0, recent: VecDeque::new(), bytes: 0, is_final: false }
    }

    /// Takes a write in and says what number it got; `None` when none may be made any more.
    pub fn record(&mut self, write: Invalidation) -> Option<Position> {
        if self.is_final {
            return None;
        }
        self.last += 1;
        self.bytes += write.bytes();
        self.recent.push_back(write);
        while self.bytes > LOG_BYTES_MAX
            && let Some(oldest) = self.recent.pop_front()
        {
            self.bytes -= oldest.bytes();
        }
        Some(self.position())
    }

    /// No more writes from here: readers need not fear what they do not hear of this node.
    pub fn finish(&mut self) {
        self.is_final = true;
    }

    /// Whether it has been finished.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.is_final
    }

    /// Where it stands.
    #[must_use]
    pub fn position(&self) -> Position {
        Position { stream: self.stream, seq: self.last }
    }

    /// What a reader missed who stands at `at`, or who never heard this node.
    #[must_use]
    pub fn since(&self, at: Option<Position>) -> Catchup {
        let known = at.filter(|at| at.stream == self.stream).map_or(0, |at| at.seq);
        let behind = self.last.checked_sub(known).and_then(|count| usize::try_from(count).ok());
        let missed = behind
            .and_then(|behind| self.recent.len().checked_sub(behind))
            .map(|skip| self.recent.iter().skip(skip).cloned().collect());
        Catchup { now: self.position(), missed, is_final: self.is_final }
    }
}
