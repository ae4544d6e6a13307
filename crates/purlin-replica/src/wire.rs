//! What replicas say to each other. Part of the wire format; bounded before it is decoded.

use purlin_core::hlc::NodeTag;
use purlin_crdt::CausalContext;
use serde::{Deserialize, Serialize};

use crate::{
    digest::{FANOUT, Leaf},
    log::Seq,
    slot::Slot,
    store::{Entries, Update},
};

/// One comparison of two states, numbered by the side that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Session(pub u32);

/// A message between two replicas of one set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The sender's log up to `upto`, as one update.
    Updates {
        /// The place in the sender's log.
        upto: Seq,
        /// Everything between the receiver's last confirmation and there.
        update: Update,
    },
    /// The sender has taken in the receiver's log up to `upto`.
    Confirm {
        /// The place in the receiver's log.
        upto: Seq,
    },
    /// The sender could not take in what it was sent; the receiver tries again later.
    Refuse {
        /// The place in the receiver's log.
        upto: Seq,
        /// Why, for people.
        reason: String,
    },
    /// "You lack something that I can no longer send you by itself: compare."
    Behind,
    /// "Do you have anything I lack?"
    Compare {
        /// Which comparison.
        session: Session,
        /// The asker's root digest.
        root: u64,
        /// What the asker has seen.
        seen: CausalContext<NodeTag>,
    },
    /// "No."
    Equal {
        /// Which comparison.
        session: Session,
    },
    /// "Perhaps: compare these."
    Branches {
        /// Which comparison.
        session: Session,
        /// Everything the answerer has seen; every later piece is at least as new.
        seen: CausalContext<NodeTag>,
        /// Its branch digests, in order; exactly [`FANOUT`].
        hashes: Vec<u64>,
    },
    /// "In this branch I have these leaves; send me what differs, from `from` on."
    Fetch {
        /// Which comparison.
        session: Session,
        /// The branch.
        branch: u8,
        /// The asker's leaf digests, in order; empty or exactly [`FANOUT`].
        hashes: Vec<u64>,
        /// Where to begin, when an earlier answer was cut short.
        from: Option<Slot>,
    },
    /// "These leaves differ, and this is all I have there."
    Pieces {
        /// Which comparison.
        session: Session,
        /// The branch.
        branch: u8,
        /// The pieces, in slot order.
        pieces: Vec<Piece>,
        /// Where the next fetch has to begin; `None` when the branch is done.
        next: Option<Slot>,
    },
}

/// Everything a replica keeps in a part of one leaf.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The leaf.
    pub leaf: Leaf,
    /// The first slot of the part; `None` for the start of the leaf.
    pub from: Option<Slot>,
    /// The first slot after the part; `None` for the end of the leaf.
    pub to: Option<Slot>,
    /// The entries.
    pub entries: Entries,
}

/// Why a message was refused: it was counted and dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The bytes are no message.
    #[error("undecodable replica message: {0}")]
    Undecodable(String),
    /// It holds the wrong number of digests.
    #[error("{found} digests in place of {FANOUT}")]
    Digests {
        /// How many it holds.
        found: usize,
    },
    /// A piece holds slots outside its own range.
    #[error("a piece of leaf {leaf:?} holds {slot:?}, which is outside of it")]
    OutsideOfPiece {
        /// The leaf.
        leaf: Leaf,
        /// The slot.
        slot: Slot,
    },
}

impl Message {
    /// Writes the message.
    ///
    /// # Panics
    /// Never: every message can be written.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("maps, numbers and bytes can always be written")
    }

    /// Reads a message and checks what its parts promise each other.
    ///
    /// # Errors
    /// [`MessageError`]: count it and drop the message; its sender will say it again.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let message = postcard::from_bytes::<Self>(bytes)
            .map_err(|error| MessageError::Undecodable(error.to_string()))?;
        match &message {
            Self::Branches { hashes, .. } if hashes.len() != FANOUT => {
                Err(MessageError::Digests { found: hashes.len() })
            }
            Self::Fetch { hashes, .. } if !hashes.is_empty() && hashes.len() != FANOUT => {
                Err(MessageError::Digests { found: hashes.len() })
            }
            Self::Pieces { pieces, .. } => {
                pieces.iter().try_for_each(Piece::check)?;
                Ok(message)
            }
            Self::Branches { .. }
            | Self::Fetch { .. }
            | Self::Updates { .. }
            | Self::Confirm { .. }
            | Self::Refuse { .. }
            | Self::Behind
            | Self::Compare { .. }
            | Self::Equal { .. } => Ok(message),
        }
    }
}

impl Piece {
    /// The part it covers: first slot, and the first after it.
    pub(crate) fn range(&self) -> (Slot, Option<Slot>) {
        let (start, end) = self.leaf.range();
        (self.from.clone().unwrap_or(start), self.to.clone().or(end))
    }

    fn check(&self) -> Result<(), MessageError> {
        let (start, end) = self.leaf.range();
        let (from, to) = self.range();
        let inside = |slot: &Slot| {
            *slot >= start
                && end.as_ref().is_none_or(|end| slot < end)
                && *slot >= from
                && to.as_ref().is_none_or(|to| slot < to)
        };
        let bounds = self.from.iter().filter(|&slot| Leaf::of(slot) != self.leaf);
        let outside = self.entries.iter().map(|(slot, _)| slot).filter(|slot| !inside(slot));
        match bounds.chain(outside).next() {
            Some(slot) => Err(MessageError::OutsideOfPiece { leaf: self.leaf, slot: slot.clone() }),
            None => Ok(()),
        }
    }
}
