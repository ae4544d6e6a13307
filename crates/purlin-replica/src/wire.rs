//! What replicas say to each other. Part of the wire format; bounded before it is decoded.
//!
//! The first byte of a message is the version it is written in. Version 0 is the greeting and the
//! answer to something unreadable, whose layout never changes: any two releases can tell each other
//! what they speak. The rule for everything else: a release speaks its own version and the one
//! before; messages gain kinds and fields only under a new version; two replicas use the highest
//! that both speak, and where there is none each says so, counts it and shows the other as
//! incompatible instead of dropping what it sends.

use purlin_core::hlc::NodeTag;
use serde::{Deserialize, Serialize};

use crate::{
    digest::{FANOUT, Leaf},
    interest::Interest,
    knowledge::Claims,
    log::Seq,
    slot::Slot,
    store::{Entries, Update},
};

/// The version this release writes.
pub const VERSION: u8 = 1;
/// The oldest version this release reads.
pub const OLDEST: u8 = 1;

/// Greetings and their like: the same in all releases.
const TIMELESS: u8 = 0;
const GREET: u8 = 1;
const UNREADABLE: u8 = 2;

/// What versions somebody speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The oldest.
    pub oldest: u8,
    /// The newest.
    pub newest: u8,
}

impl Versions {
    /// What this release speaks.
    pub const OURS: Self = Self { oldest: OLDEST, newest: VERSION };

    /// The version to speak with somebody who speaks `theirs`; `None` if there is none.
    #[must_use]
    pub fn common(self, theirs: Self) -> Option<u8> {
        let newest = self.newest.min(theirs.newest);
        (newest >= self.oldest && newest >= theirs.oldest).then_some(newest)
    }
}

impl std::fmt::Display for Versions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.oldest == self.newest {
            true => write!(f, "version {}", self.newest),
            false => write!(f, "versions {} to {}", self.oldest, self.newest),
        }
    }
}

/// The first thing two replicas say to each other, and again when what they keep changes.
///
/// Later releases may append fields; what follows the ones known here is skipped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Greeting {
    /// What the sender speaks.
    pub speaks: Versions,
    /// The number of this greeting: it grows when what the sender keeps changes.
    pub number: u32,
    /// The number of the receiver's greeting that the sender has heard; 0 for none.
    pub heard: u32,
    /// Whether the sender does not know yet that the receiver has heard its greeting.
    pub asks: bool,
    /// Which keys the sender keeps.
    pub keeps: Interest,
    /// Which of them it wants to go on keeping.
    pub wants: Interest,
    /// Whether the sender has kept every key it ever wrote, in this life.
    pub keeps_own: bool,
}

/// What both sides of a comparison take each other to keep, by the numbers of their greetings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// The asker's.
    pub asker: u32,
    /// The answerer's.
    pub answerer: u32,
}

/// One comparison of two states, numbered by the side that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Session(pub u32);

/// A message between two replicas of one set. Kinds are only ever appended, under a new version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// Who I am, as far as you need to know.
    Greet(Greeting),
    /// "I cannot read what you say in the version `heard`; I speak these."
    Unreadable {
        /// The version of what was unreadable.
        heard: u8,
        /// What the sender speaks.
        speaks: Versions,
    },
    /// The sender's log up to `upto`, as one update.
    Updates {
        /// The place in the sender's log.
        upto: Seq,
        /// Everything between the receiver's last confirmation and there.
        #[serde(with = "crate::pack")]
        update: Update,
        /// By which of the receiver's greetings keys were left out that the receiver does not keep.
        by: u32,
        /// Whether none was left out.
        whole: bool,
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
        /// What is compared: the keys both keep.
        terms: Terms,
        /// The asker's root digest.
        root: u64,
        /// What the asker has seen.
        seen: Claims,
        /// Of which lives the asker will hear nothing more from themselves.
        ended: Vec<NodeTag>,
    },
    /// "No."
    Equal {
        /// Which comparison.
        session: Session,
        /// As in [`Message::Branches`].
        ended: Vec<NodeTag>,
    },
    /// "Perhaps: compare these."
    Branches {
        /// Which comparison.
        session: Session,
        /// Everything the answerer has seen; every later piece is at least as new.
        seen: Claims,
        /// Of which lives that the asker knows it will hear nothing more from themselves.
        ended: Vec<NodeTag>,
        /// Its branch digests, in order; exactly [`FANOUT`].
        hashes: Vec<u64>,
    },
    /// "In this branch I have these leaves; send me what differs, from `from` on."
    Fetch {
        /// Which comparison.
        session: Session,
        /// As in the question.
        terms: Terms,
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
    #[serde(with = "crate::pack::entries")]
    pub entries: Entries,
}

/// Why a message was refused: it was counted and dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// It is written in a version that this release does not speak.
    #[error("replica message in version {0}; this release speaks versions {OLDEST} to {VERSION}")]
    Version(u8),
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
        let written = match self {
            Self::Greet(greeting) => postcard::to_extend(greeting, vec![TIMELESS, GREET]),
            Self::Unreadable { heard, speaks } => {
                postcard::to_extend(&(heard, speaks), vec![TIMELESS, UNREADABLE])
            }
            other => postcard::to_extend(other, vec![VERSION]),
        };
        written.expect("maps, numbers and bytes can always be written")
    }

    /// Reads a message and checks what its parts promise each other.
    ///
    /// # Errors
    /// [`MessageError`]: count it and drop the message; its sender will say it again.
    pub fn decode(bytes: &[u8]) -> Result<Self, MessageError> {
        let undecodable = |error: postcard::Error| MessageError::Undecodable(error.to_string());
        let message = match bytes {
            [TIMELESS, GREET, rest @ ..] => {
                Self::Greet(postcard::take_from_bytes(rest).map_err(undecodable)?.0)
            }
            [TIMELESS, UNREADABLE, rest @ ..] => {
                let (heard, speaks) = postcard::take_from_bytes(rest).map_err(undecodable)?.0;
                Self::Unreadable { heard, speaks }
            }
            [OLDEST..=VERSION, rest @ ..] => postcard::from_bytes(rest).map_err(undecodable)?,
            [version, ..] if *version != TIMELESS => return Err(MessageError::Version(*version)),
            _ => return Err(MessageError::Undecodable("no known greeting".to_owned())),
        };
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
            | Self::Greet(_)
            | Self::Unreadable { .. }
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
