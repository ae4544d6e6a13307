//! What a durable replica writes down, and how it reads itself back.
//!
//! Every change is a record in the log, in the order in which it was made; reading them all in
//! that order makes the same state again. So that the log does not grow with every write for ever,
//! the whole state is now and then written behind the changes, piece by piece while writers go
//! on, and what lies before the first piece is forgotten.

use purlin_core::hlc::NodeTag;
use purlin_crdt::CausalContext;
use serde::{Deserialize, Serialize};

use crate::{
    digest::Leaf,
    store::{Entries, Store, Update},
    wire::Piece,
};

/// How many bytes of changes are kept, at least, before the whole state is written again.
pub(crate) const COMPACT_AFTER_BYTES: usize = 8 << 20;

/// One record of a durable replica. Stored as postcard under a version byte; fields are appended
/// only together with a new version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A write, made here or heard.
    Update(Update),
    /// A piece of another replica's state, with all that one had seen.
    Piece(Piece, CausalContext<NodeTag>),
    /// All pieces of another's state, or of one's own, have been written.
    Absorb(CausalContext<NodeTag>),
    /// A part of one's own state.
    Part(Entries),
}

/// The format this release writes.
const VERSION: u8 = 1;

/// Why a record cannot be read. The replica does not start: what it would lose was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It was written by another release.
    #[error("record of version {0}; this release reads version {VERSION}")]
    Version(u8),
    /// It checks but cannot be decoded.
    #[error("undecodable record: {0}")]
    Undecodable(String),
}

impl Record {
    /// The record as bytes.
    ///
    /// # Panics
    /// Never: every record can be written.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION])
            .expect("maps, numbers and bytes can always be written")
    }

    /// The record that [`Record::encode`] wrote.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        match bytes.split_first() {
            Some((&VERSION, rest)) => postcard::from_bytes(rest)
                .map_err(|error| RecordError::Undecodable(error.to_string())),
            Some((&version, _)) => Err(RecordError::Version(version)),
            None => Err(RecordError::Undecodable("it is empty".to_owned())),
        }
    }
}

impl Store {
    /// Does again what `record` says was done.
    pub(crate) fn redo(&mut self, record: &Record) {
        match record {
            Record::Update(update) => drop(self.join(update)),
            Record::Piece(piece, theirs) => {
                let (from, to) = piece.range();
                drop(self.join_piece(&from, to.as_ref(), &piece.entries, theirs));
            }
            Record::Absorb(seen) => self.absorb(seen),
            Record::Part(entries) => drop(self.join_part(entries)),
        }
    }

    /// The entries of the leaves from `leaf` on, about `bytes` of them, and the leaf to go on
    /// with: for writing the whole state in parts.
    pub(crate) fn part(&self, leaf: Leaf, bytes: usize) -> (Entries, Option<Leaf>) {
        let (start, _) = leaf.range();
        let mut part = Entries::default();
        let mut held = 0;
        let mut last = None;
        for (slot, cell) in self.range(&start, None) {
            // Whole leaves, so that the next part begins at a leaf.
            if held > bytes && last != Some(Leaf::of(slot)) {
                return (part, Some(Leaf::of(slot)));
            }
            held += crate::sync::cell_weight(slot, cell);
            last = Some(Leaf::of(slot));
            part.set(slot.clone(), cell.clone());
        }
        (part, None)
    }
}
