//! What a replica keeps: in the order of slots, and found without a search for the place.
//!
//! A balanced tree is compared through from its root on every write, a cache miss per level. But
//! slots are ordered by hash, and hashes are spread evenly: their top bits alone say where in the
//! order a slot stands, to within a few. So the entries lie in as many short sorted lists as the
//! digest tree has leaves, and a list is a leaf: it has its digest beside it, which every write changes.

use crate::{
    cell::Cell,
    digest::{Digests, FANOUT, Leaf},
    slot::Slot,
};

/// Lists that are made together, when the first of them is needed.
const BLOCK: usize = 64;
const BLOCKS: usize = (u16::MAX as usize + 1) / BLOCK;

#[derive(Debug)]
struct List {
    digest: u64,
    entries: Vec<(Slot, Cell)>,
}

impl List {
    const EMPTY: Self = Self { digest: 0, entries: Vec::new() };

    fn find(&self, slot: &Slot) -> Result<usize, usize> {
        self.entries.binary_search_by(|(held, _)| held.cmp(slot))
    }
}

type Block = Box<[List; BLOCK]>;

/// The entries of one replica, in slot order. None of them is empty, except for the moment between
/// [`Leaves::entry`] and what its caller puts there.
#[derive(Debug, Default)]
pub(crate) struct Leaves {
    /// Empty as long as there was no entry.
    blocks: Vec<Option<Block>>,
    len: usize,
}

/// Which block the list of a leaf is in, and where.
fn place(leaf: Leaf) -> (usize, usize) {
    (usize::from(leaf.0) / BLOCK, usize::from(leaf.0) % BLOCK)
}

/// The list that `slot` belongs to, made now if there is none.
fn list_of<'a>(blocks: &'a mut Vec<Option<Block>>, slot: &Slot) -> &'a mut List {
    if blocks.is_empty() {
        blocks.resize_with(BLOCKS, || None);
    }
    let (block, at) = place(Leaf::of(slot));
    let block = blocks[block].get_or_insert_with(|| Box::new([List::EMPTY; BLOCK]));
    &mut block[at]
}

impl Digests for Leaves {
    fn leaves(&self, branch: u8) -> Option<[u64; FANOUT]> {
        let digest = |within| self.list(Leaf::at(branch, within)).map(|list| list.digest);
        let mut some = false;
        let hashes = std::array::from_fn(|within| {
            let within = u8::try_from(within).expect("as many as a byte counts");
            let digest = digest(within);
            some |= digest.is_some();
            digest.unwrap_or(0)
        });
        some.then_some(hashes)
    }
}

impl Leaves {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn get(&self, slot: &Slot) -> Option<&Cell> {
        let list = self.list(Leaf::of(slot))?;
        list.find(slot).ok().map(|at| &list.entries[at].1)
    }

    /// The slot of `key` as it is kept, if anything is kept under it.
    pub(crate) fn slot(&self, hash: u64, key: &[u8]) -> Option<&Slot> {
        let list = self.list(Leaf::of_hash(hash))?;
        let found = list.entries.binary_search_by(|(held, _)| held.is_where(hash, key));
        found.ok().map(|at| &list.entries[at].0)
    }

    fn list(&self, leaf: Leaf) -> Option<&List> {
        let (block, at) = place(leaf);
        Some(&self.blocks.get(block)?.as_ref()?[at])
    }

    /// What is kept under `slot`, to be changed in place; made empty if there is nothing.
    pub(crate) fn entry(&mut self, slot: &Slot) -> &mut Cell {
        let list = list_of(&mut self.blocks, slot);
        let at = list.find(slot).unwrap_or_else(|at| {
            if list.entries.len() == list.entries.capacity() {
                // Doubling would leave a third of the memory of a million keys unused.
                list.entries.reserve_exact((list.entries.len() / 4).max(2));
            }
            list.entries.insert(at, (slot.clone(), Cell::default()));
            self.len += 1;
            at
        });
        &mut list.entries[at].1
    }

    /// Notes that under `slot` dots came or went whose digests make up `delta`.
    pub(crate) fn toggle(&mut self, slot: &Slot, delta: u64) {
        list_of(&mut self.blocks, slot).digest ^= delta;
    }

    pub(crate) fn set(&mut self, slot: &Slot, cell: Cell) {
        *self.entry(slot) = cell;
    }

    /// Takes `slot` out without a trace: not a removal, which others would hear of.
    pub(crate) fn forget(&mut self, slot: &Slot) {
        let (block, at) = place(Leaf::of(slot));
        let Some(Some(block)) = self.blocks.get_mut(block) else { return };
        let list = &mut block[at];
        if let Ok(at) = list.find(slot) {
            list.entries.remove(at);
            self.len -= 1;
            if list.entries.is_empty() {
                list.entries = Vec::new();
            }
        }
    }

    /// Every entry, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Slot, &Cell)> {
        let lists = self.blocks.iter().flatten().flat_map(|block| block.iter());
        lists.flat_map(|list| &list.entries).map(|(slot, cell)| (slot, cell))
    }

    /// The entries from `from` on up to `to`, in order.
    pub(crate) fn range<'a>(
        &'a self,
        from: &Slot,
        to: Option<&Slot>,
    ) -> impl Iterator<Item = (&'a Slot, &'a Cell)> + use<'a> {
        let (first, last) = (Leaf::of(from), to.map_or(Leaf(u16::MAX), Leaf::of));
        let lists = (first.0..=last.0)
            .map(|leaf| self.list(Leaf(leaf)).map_or(&[][..], |list| &list.entries));
        // Only the lists at the two ends hold anything beyond them.
        let (first, last) = (usize::from(first.0), usize::from(last.0));
        let ends = (from.clone(), to.cloned());
        lists.enumerate().flat_map(move |(at, list)| {
            let (from, to) = &ends;
            let start = match at == 0 {
                true => list.partition_point(|(slot, _)| slot < from),
                false => 0,
            };
            let end = match to {
                Some(to) if at == last - first => list.partition_point(|(slot, _)| slot < to),
                Some(_) | None => list.len(),
            };
            list.get(start..end).unwrap_or_default().iter().map(|(slot, cell)| (slot, cell))
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, ops::Bound};

    use purlin_core::{Dot, Hlc, Incarnation, NodeId, NodeName, Rng, WallTime, hlc::NodeTag};

    use super::*;
    use crate::cell::Written;

    #[test]
    fn it_is_a_map_in_slot_order() {
        let node = NodeId::new(NodeName::parse("a").unwrap(), Incarnation(1));
        let at = Hlc::new(&node).now(WallTime::from_millis(1)).unwrap();
        let (mut leaves, mut model) = (Leaves::default(), BTreeMap::new());
        let mut rng = Rng::from_seed(1);
        let slot = |n: usize| Slot::new(format!("k{n}")).unwrap();
        for counter in 1..100_000_u64 {
            let slot = slot(rng.below(40_000));
            if rng.chance(0.3) {
                leaves.forget(&slot);
                model.remove(&slot);
            } else {
                let dot = Dot { node: NodeTag(1), counter };
                let written = Written { at, expires: None, value: counter.to_string().into() };
                let cell = Cell::one(dot, written);
                leaves.set(&slot, cell.clone());
                model.insert(slot, cell);
            }
        }
        assert_eq!((leaves.len(), leaves.is_empty()), (model.len(), false));
        assert!(leaves.iter().eq(&model));
        for n in 0..40_000 {
            assert_eq!(leaves.get(&slot(n)), model.get(&slot(n)));
        }
        for n in 0..200 {
            let (a, b) = (slot(rng.below(40_000)), slot(rng.below(40_000)));
            let (from, to) = if a <= b { (a, b) } else { (b, a) };
            // Ends that are slots, and ends that are where leaves begin.
            let (from, to) = match n % 3 {
                0 => (from, Some(to)),
                1 => (Leaf::of(&from).range().0, Leaf::of(&to).range().1),
                _ => (from, None),
            };
            let end = to.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
            let wanted = model.range((Bound::Included(&from), end));
            assert!(leaves.range(&from, to.as_ref()).eq(wanted), "{from:?} {to:?}");
        }
        let all: Vec<Slot> = model.keys().cloned().collect();
        all.iter().for_each(|slot| leaves.forget(slot));
        assert!(leaves.is_empty() && leaves.iter().next().is_none());
        assert!(leaves.range(&Leaf(0).range().0, None).next().is_none());
    }
}
