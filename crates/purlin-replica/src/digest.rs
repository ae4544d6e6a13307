//! Where two replicas differ, found by comparing a few hashes.
//!
//! Every write has a dot of its own, so the dots under a key identify what it holds: the digest
//! of an entry is made of its key's hash and its dots, never of its values. Entries are gathered
//! into 65,536 leaves by the top bits of their keys' hashes, leaves into 256 branches. Combining
//! is exclusive-or, so one change costs one update whatever the size.
//!
//! # Source
//! Merkle 1987; DeCandia et al. 2007 (Dynamo, §4.7). A digest here only ever says where to look:
//! what is deleted is decided by dots.

use purlin_core::Dot;
use purlin_core::hlc::NodeTag;
use purlin_ring::hash::mix;

use crate::slot::Slot;

/// Leaves of a branch, and branches of the tree.
pub const FANOUT: usize = 256;

/// A leaf: the top 16 bits of its keys' hashes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Leaf(pub u16);

impl Leaf {
    /// The leaf `slot` belongs to.
    pub(crate) fn of(slot: &Slot) -> Self {
        Self::of_hash(slot.hash())
    }

    /// The leaf of slots with this hash.
    pub(crate) fn of_hash(hash: u64) -> Self {
        Self(u16::try_from(hash >> 48).expect("16 bits"))
    }

    /// The branch it belongs to.
    pub(crate) fn branch(self) -> u8 {
        self.0.to_be_bytes()[0]
    }

    fn within(self) -> usize {
        usize::from(self.0.to_be_bytes()[1])
    }

    /// The leaf `within` the branch `branch`.
    pub(crate) fn at(branch: u8, within: u8) -> Self {
        Self(u16::from_be_bytes([branch, within]))
    }

    /// The slots that belong to it: from the first (included) to the second (excluded), if any.
    pub(crate) fn range(self) -> (Slot, Option<Slot>) {
        let start = u64::from(self.0) << 48;
        let end = self.0.checked_add(1).map(|next| Slot::first_of(u64::from(next) << 48));
        (Slot::first_of(start), end)
    }
}

/// Hashes of entries, to be compared with somebody else's.
pub(crate) trait Digests {
    /// The hashes of the leaves of `branch`, unless it is empty.
    fn leaves(&self, branch: u8) -> Option<[u64; FANOUT]>;

    /// One hash of everything.
    fn root(&self) -> u64 {
        (0..=u8::MAX)
            .fold(0, |root, branch| root ^ self.branch(branch).rotate_left(u32::from(branch) % 64))
    }

    /// One hash of the branch `branch`.
    fn branch(&self, branch: u8) -> u64 {
        // Position enters the hash: two leaves that swapped contents must not cancel out.
        self.leaves(branch).map_or(0, |leaves| {
            (0_u64..)
                .zip(leaves)
                .filter(|&(_, hash)| hash != 0)
                .fold(0, |all, (at, hash)| all ^ mix(hash ^ mix(at + 1)))
        })
    }

    /// The hashes of the branches, in order.
    fn branches(&self) -> Vec<u64> {
        (0..=u8::MAX).map(|branch| self.branch(branch)).collect()
    }
}

/// The digest tree of a part of a replica. Branches without entries cost a pointer.
#[derive(Debug, Default)]
pub struct DigestTree {
    branches: Vec<Option<Box<[u64; FANOUT]>>>,
}

impl DigestTree {
    /// Notes that under `slot` dots came or went whose digests make up `delta`.
    pub(crate) fn toggle(&mut self, slot: &Slot, delta: u64) {
        if delta == 0 {
            return;
        }
        if self.branches.is_empty() {
            self.branches.resize_with(FANOUT, || None);
        }
        let leaf = Leaf::of(slot);
        let branch =
            self.branches[usize::from(leaf.branch())].get_or_insert_with(|| Box::new([0; FANOUT]));
        branch[leaf.within()] ^= delta;
    }
}

impl Digests for DigestTree {
    fn leaves(&self, branch: u8) -> Option<[u64; FANOUT]> {
        self.branches.get(usize::from(branch))?.as_deref().copied()
    }
}

/// The digest of one dot under `slot`: comes and goes by exclusive-or.
pub(crate) fn digest(slot: &Slot, dot: &Dot<NodeTag>) -> u64 {
    mix(slot.hash() ^ mix(dot.node.0 ^ mix(dot.counter)))
}
