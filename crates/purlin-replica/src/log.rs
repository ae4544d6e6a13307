//! Recent writes, kept until every neighbour has confirmed them, within a bound.
//!
//! One log serves all neighbours; each has a place in it. A neighbour whose place falls off the
//! end is no longer sent single writes but compared with as a whole: slowness costs the slow one
//! a comparison, never memory here, and never a lost write.

use std::collections::VecDeque;

use purlin_core::NodeId;
use purlin_crdt::Lattice;

use crate::store::Update;

/// The place of a write in the log, from 1.
pub type Seq = u64;

#[derive(Debug)]
struct Entry {
    update: Update,
    bytes: usize,
    /// Who told us, if it was not written here: it need not be told.
    from: Option<NodeId>,
}

/// The log of one replica.
#[derive(Debug)]
pub(crate) struct Log {
    entries: VecDeque<Entry>,
    /// The place before the first entry.
    before: Seq,
    bytes: usize,
    bytes_max: usize,
}

/// What a neighbour at some place in the log is to be sent.
#[derive(Debug)]
pub(crate) enum Next {
    /// Nothing: it has everything.
    Nothing,
    /// This, which brings it to `upto`. `None` when all of it came from the neighbour itself.
    Batch { upto: Seq, update: Option<Update> },
    /// Its place has fallen off the end: compare.
    TooOld,
}

impl Log {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { entries: VecDeque::new(), before: 0, bytes: 0, bytes_max }
    }

    /// The place of the last write.
    pub(crate) fn last(&self) -> Seq {
        self.before + self.entries.len() as u64
    }

    /// About how many bytes it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn push(&mut self, update: Update, bytes: usize, from: Option<NodeId>) {
        self.bytes += bytes;
        self.entries.push_back(Entry { update, bytes, from });
        while self.bytes > self.bytes_max && self.entries.len() > 1 {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some(entry) = self.entries.pop_front() {
            self.bytes -= entry.bytes;
            self.before += 1;
        }
    }

    /// Forgets everything up to `seq`, which all neighbours have confirmed.
    pub(crate) fn confirmed(&mut self, seq: Seq) {
        while self.before < seq && !self.entries.is_empty() {
            self.pop();
        }
    }

    /// What `to`, which has everything up to `seq`, lacks, merged into one update of about
    /// `batch_bytes` at most; a single larger write goes alone.
    pub(crate) fn after(&self, seq: Seq, to: &NodeId, batch_bytes: usize) -> Next {
        if seq >= self.last() {
            return Next::Nothing;
        }
        let Some(skip) = seq.checked_sub(self.before) else { return Next::TooOld };
        let skip = usize::try_from(skip).expect("less than the number of entries");
        let (mut upto, mut bytes) = (seq, 0);
        let mut update: Option<Update> = None;
        for entry in self.entries.iter().skip(skip) {
            if entry.from.as_ref() != Some(to) {
                if update.is_some() && bytes + entry.bytes > batch_bytes {
                    break;
                }
                bytes += entry.bytes;
                match &mut update {
                    Some(batch) => batch.join(&entry.update),
                    none => *none = Some(entry.update.clone()),
                }
            }
            upto += 1;
        }
        Next::Batch { upto, update }
    }
}
