//! What a durable replica writes down, and how it reads itself back.
//!
//! Every change is a record in the log, in the order in which it was made; reading them all in
//! that order makes the same state again. So that the log does not grow with every write for ever,
//! the whole state is now and then written behind the changes: first all that was seen, then what is
//! kept, part by part while writers go on. What lies before is forgotten. A log from which the disk
//! refused a record takes no further one until the whole state is written again: a later record may
//! claim to have seen what the refused one brought.

use purlin_core::hlc::NodeTag;
use serde::{Deserialize, Serialize};

use crate::{
    digest::Leaf,
    interest::Interest,
    knowledge::{Claims, Knowledge},
    store::{Entries, Store, Update},
    sync::KnownLives,
    wire::Piece,
};

/// How many bytes of changes are kept, at least, before the whole state is written again.
pub(crate) const COMPACT_AFTER_BYTES: usize = 8 << 20;

/// One record of a durable replica.
///
/// Stored as postcard under a version byte. A record is never changed: a new kind goes to the end
/// under a new version, and a release reads every version from [`OLDEST`] to [`VERSION`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A write, made here or heard.
    Update(#[serde(with = "crate::pack")] Update),
    /// A piece of another replica's state.
    Piece {
        /// The piece.
        piece: Piece,
        /// The keys both keep: of no other does the piece say anything.
        keys: Interest,
        /// All that the other had seen.
        theirs: Claims,
    },
    /// All of this has been seen: the pieces of another's state are in.
    Absorb(Claims, Option<NodeTag>),
    /// Exactly this has been seen, at this place of the log.
    Known(Knowledge),
    /// Everything one keeps in some leaves, as it is at this place of the log.
    Part(Part),
    /// More keys are kept from here on.
    Widened(Interest),
    /// Only these keys are kept from here on.
    Narrowed(Interest),
    /// What is known of lives, at this place of the log.
    Lives(KnownLives),
    /// A life that is over: everybody has seen all of it and nothing of it is left.
    Pruned(NodeTag),
    /// Exactly this has been seen, at this place of the log, and the whole state follows. It counts
    /// once all of that is there: what lies before may lack changes that the disk refused, and what
    /// is seen and not kept passes for removed.
    Rewriting(Knowledge),
}

/// How many kinds of records this release knows.
const KINDS: u8 = 10;

/// Everything a replica keeps from one leaf up to another.
///
/// Reading it back *sets* those leaves; it is not joined. A join asks what was seen, and the log may
/// hold an [`Record::Absorb`] whose pieces have been forgotten: joined behind it, entries that were
/// kept all along would pass for seen and deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The first leaf.
    pub from: Leaf,
    /// The first leaf behind it; `None` for the end.
    pub to: Option<Leaf>,
    /// All that is kept there.
    #[serde(with = "crate::pack::entries")]
    pub entries: Entries,
}

/// The format this release writes.
pub const VERSION: u8 = 3;
/// The oldest format this release reads.
pub const OLDEST: u8 = 2;

/// Why a record cannot be read. The replica does not start: what it would lose was acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It was written by another release.
    #[error("record of version {0}; this release reads versions {OLDEST} to {VERSION}")]
    Version(u8),
    /// It is of a kind that this release does not know.
    #[error("record of unknown kind {kind} in version {VERSION}, which has kinds 0 to {last}")]
    Kind {
        /// Which.
        kind: u8,
        /// The last kind that this release knows.
        last: u8,
    },
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
            Some((OLDEST..=VERSION, [kind, ..])) if *kind >= KINDS => {
                Err(RecordError::Kind { kind: *kind, last: KINDS - 1 })
            }
            Some((OLDEST..=VERSION, rest)) => postcard::from_bytes(rest)
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
            Record::Piece { piece, keys, theirs } => {
                let (from, to) = piece.range();
                drop(self.join_piece(keys, &from, to.as_ref(), &piece.entries, theirs));
            }
            Record::Absorb(theirs, author) => self.absorb(theirs, *author),
            Record::Known(known) => self.set_known(known.clone()),
            Record::Part(part) => self.restore(part),
            Record::Widened(keys) => {
                self.known_mut().widen(keys.clone());
            }
            Record::Narrowed(keys) => drop(self.narrow(keys)),
            Record::Pruned(life) => {
                self.known_mut().prune(*life);
            }
            // No part of the state: for whoever deals with neighbours, and with what follows.
            Record::Lives(_) | Record::Rewriting(_) => {}
        }
    }

    /// The leaves from `from` on, about `bytes` of them, for writing the whole state in parts; the
    /// next part begins where this one ends.
    #[must_use]
    pub fn part(&self, from: Leaf, bytes: usize) -> Part {
        let (start, _) = from.range();
        let mut entries = Entries::default();
        let mut held = 0;
        let mut last = None;
        for (slot, cell) in self.range(&start, None) {
            let leaf = Leaf::of(slot);
            // Whole leaves, so that the next part begins at a leaf.
            if held > bytes && last != Some(leaf) {
                return Part { from, to: Some(leaf), entries };
            }
            held += crate::sync::cell_weight(slot, cell);
            last = Some(leaf);
            entries.set(slot.clone(), cell.clone());
        }
        Part { from, to: None, entries }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use purlin_core::{Hlc, Incarnation, NodeId, NodeName, WallTime};

    use super::*;
    use crate::{
        cell::{Cell, Written},
        slot::Slot,
    };

    #[derive(Debug, Clone)]
    enum Act {
        Put(u8),
        Remove(u8),
        /// The other replica does something of its own.
        Theirs(u8),
        /// Takes over the whole state of the other, in pieces.
        Pull,
        /// Goes on with writing the whole state, or begins to.
        Compact,
        /// Forgets as many records as it may; each byte of it picks how many it does.
        Forget(u8),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            4 => (0..20_u8).prop_map(Act::Put),
            2 => (0..20_u8).prop_map(Act::Remove),
            3 => (0..20_u8).prop_map(Act::Theirs),
            1 => Just(Act::Pull),
            4 => Just(Act::Compact),
            2 => any::<u8>().prop_map(Act::Forget),
        ];
        prop::collection::vec(act, 0..80)
    }

    struct World {
        here: Store,
        there: Store,
        clock: Hlc,
        log: Vec<Record>,
        forgotten: usize,
        /// Where the whole state may be read from, once it has been written from there on.
        complete: usize,
        writing: Option<(usize, Leaf)>,
    }

    fn slot(n: u8) -> Slot {
        Slot::new(format!("key:{n}")).unwrap()
    }

    impl World {
        fn new() -> Self {
            let node = |name: &str| NodeId::new(NodeName::parse(name).unwrap(), Incarnation(1));
            let (here, there) = (node("here"), node("there"));
            Self {
                here: Store::new(NodeTag::of(&here)),
                there: Store::new(NodeTag::of(&there)),
                clock: Hlc::new(&here),
                log: Vec::new(),
                forgotten: 0,
                complete: 0,
                writing: None,
            }
        }

        fn written(&self) -> Written {
            let at = self.clock.now(WallTime::from_millis(1)).unwrap();
            Written { at, expires: None, value: vec![7].into() }
        }

        fn act(&mut self, act: &Act) {
            match act {
                Act::Put(n) => {
                    let written = self.written();
                    let update = self.here.put(slot(*n), written).unwrap();
                    self.log.push(Record::Update(update));
                }
                Act::Remove(n) => self.log.extend(self.here.remove(&slot(*n)).map(Record::Update)),
                Act::Theirs(n) => {
                    let written = self.written();
                    let update = self.there.put(slot(*n), written).unwrap();
                    // Every other write is heard at once; the rest waits for a pull.
                    if n % 2 == 0 {
                        self.here.join(&update);
                        self.log.push(Record::Update(update));
                    }
                }
                Act::Pull => {
                    let theirs = self.there.known().claims().clone();
                    let all = Interest::all();
                    for (slot, cell) in self.there.iter() {
                        let (leaf, from) = (Leaf::of(slot), Some(slot.clone()));
                        let entries = Entries::one(slot.clone(), cell.clone());
                        let piece = Piece { leaf, from, to: None, entries };
                        let (start, end) = piece.range();
                        self.here.join_piece(&all, &start, end.as_ref(), &piece.entries, &theirs);
                        let (keys, theirs) = (all.clone(), theirs.clone());
                        self.log.push(Record::Piece { piece, keys, theirs });
                    }
                    self.here.absorb(&theirs, None);
                    self.log.push(Record::Absorb(theirs, None));
                }
                Act::Compact => {
                    let (from, leaf) = match self.writing.take() {
                        Some(writing) => writing,
                        None => {
                            let from = self.log.len();
                            self.log.push(Record::Known(self.here.known().clone()));
                            (from, Leaf(0))
                        }
                    };
                    let part = self.here.part(leaf, 40);
                    let next = part.to;
                    self.log.push(Record::Part(part));
                    match next {
                        Some(leaf) => self.writing = Some((from, leaf)),
                        None => self.complete = from,
                    }
                }
                // Segments end anywhere: some records before the whole state may stay.
                Act::Forget(some) => {
                    let may = self.complete.saturating_sub(self.forgotten);
                    self.forgotten += may * usize::from(*some) / 255;
                }
            }
        }
    }

    #[test]
    fn a_record_of_another_release_is_named_and_not_guessed_at() {
        let bytes = Record::Pruned(NodeTag(1)).encode();
        let with = |at: usize, value: u8| {
            let mut bytes = bytes.clone();
            bytes[at] = value;
            Record::decode(&bytes).unwrap_err().to_string()
        };
        assert_eq!(with(0, 9), "record of version 9; this release reads versions 2 to 3");
        assert_eq!(with(1, 10), "record of unknown kind 10 in version 3, which has kinds 0 to 9");
        assert!(Record::decode(&[]).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

        #[test]
        fn what_is_left_of_the_log_makes_the_same_state_again(acts in acts()) {
            let mut world = World::new();
            acts.iter().for_each(|act| world.act(act));
            let mut again = Store::new(NodeTag(0));
            for record in &world.log[world.forgotten..] {
                let record = Record::decode(&record.encode()).unwrap();
                again.redo(&record);
            }
            let entries = |store: &Store| -> Vec<(Slot, Cell)> {
                store.iter().map(|(slot, cell)| (slot.clone(), cell.clone())).collect()
            };
            prop_assert_eq!(entries(&again), entries(&world.here));
            prop_assert_eq!(again.known(), world.here.known());
            let all = Interest::all();
            prop_assert_eq!(again.digests(&all).root(), world.here.digests(&all).root());
        }
    }
}
