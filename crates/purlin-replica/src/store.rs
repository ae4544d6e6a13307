//! One replica's state, without time or network: writes make deltas, deltas make changes.

use std::ops::Bound;

use bytes::Bytes;
use purlin_core::{Dot, HlcTimestamp, WallTime, hlc::NodeTag};
use purlin_crdt::{
    Causal, CausalContext, Delta, DotFun, DotMap, DotSet, DotStore, Dots, TextError,
};

use crate::{
    cell::{Cell, Kind, Parts, Written},
    digest::{DigestTree, Leaf},
    journal::Part,
    slot::{KEY_BYTES_MAX, Slot},
};

/// One or more writes on their way to other replicas.
pub type Update = Delta<NodeTag, DotMap<Slot, Cell>>;

/// The entries of a range of slots, on their way to another replica.
pub type Entries = DotMap<Slot, Cell>;

/// The most bytes a value, element or field may have.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// The most keys a path of a nested map may have.
pub const PATH_KEYS_MAX: usize = 32;

/// Why a write was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WriteError {
    /// The key holds a value of another kind. Remove it first, or use another key.
    #[error("key {key:?} holds a {is}, not a {asked}")]
    WrongKind {
        /// The key.
        key: Slot,
        /// What it holds.
        is: Kind,
        /// What the write asked for.
        asked: Kind,
    },
    /// The value is too large.
    #[error("value of {bytes} bytes exceeds limit {VALUE_BYTES_MAX}")]
    TooLarge {
        /// How large it is.
        bytes: usize,
    },
    /// This node's share of the counter would leave the range of 64 bits.
    #[error("adding {by} to this node's count of {count} leaves the range of 64 bits")]
    Overflow {
        /// This node's count.
        count: i64,
        /// What was to be added.
        by: i64,
    },
    /// What was to be taken out can never be: the set only grows.
    #[error("key {key:?} holds a {kind}, which nothing is removed from")]
    OnlyGrows {
        /// The key.
        key: Slot,
        /// What it holds.
        kind: Kind,
    },
    /// The text does not take it.
    #[error(transparent)]
    Text(#[from] TextError),
    /// A path of a nested map has no key, an empty one, too many or too long ones.
    #[error(
        "path of {keys} keys and {bytes} bytes; it has 1 to {PATH_KEYS_MAX} keys, none of them \
         empty, of at most {KEY_BYTES_MAX} bytes together"
    )]
    Path {
        /// How many keys it has.
        keys: usize,
        /// How many bytes they have.
        bytes: usize,
    },
    /// The value read has been overwritten meanwhile. Read again.
    #[error("key {key:?} was written at {is:?}, not at {expected:?}")]
    Overwritten {
        /// The key.
        key: Slot,
        /// When the present value was written, if there is one.
        is: Option<HlcTimestamp>,
        /// When the caller's value was.
        expected: Option<HlcTimestamp>,
    },
}

/// A key whose entry changed, with the entry now; `None` when it is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The key.
    pub slot: Slot,
    /// What it holds now.
    pub now: Option<Cell>,
}

/// One replica's whole state.
#[derive(Debug)]
pub struct Store {
    me: NodeTag,
    state: Causal<NodeTag, DotMap<Slot, Cell>>,
    digests: DigestTree,
}

impl Store {
    /// An empty store, written to as `me`: a tag no other life of any node uses.
    #[must_use]
    pub fn new(me: NodeTag) -> Self {
        Self { me, state: Causal::default(), digests: DigestTree::default() }
    }

    /// What is kept under `slot`.
    #[must_use]
    pub fn get(&self, slot: &Slot) -> Option<&Cell> {
        self.state.store().get(slot)
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.store().len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.state.store().is_empty()
    }

    /// Everything seen.
    #[must_use]
    pub fn context(&self) -> &CausalContext<NodeTag> {
        self.state.context()
    }

    pub(crate) fn digests(&self) -> &DigestTree {
        &self.digests
    }

    pub(crate) fn me(&self) -> NodeTag {
        self.me
    }

    pub(crate) fn writable(
        &self,
        slot: &Slot,
        asked: Kind,
        bytes: usize,
    ) -> Result<(), WriteError> {
        if bytes > VALUE_BYTES_MAX {
            return Err(WriteError::TooLarge { bytes });
        }
        let is = self.get(slot).and_then(|cell| cell.kinds().find(|&kind| kind != asked));
        match is {
            Some(is) => Err(WriteError::WrongKind { key: slot.clone(), is, asked }),
            None => Ok(()),
        }
    }

    /// Changes the entry in place; `change` returns what the update holds and what it replaced.
    pub(crate) fn write(
        &mut self,
        slot: Slot,
        change: impl FnOnce(&mut Cell, Dot<NodeTag>) -> (Cell, Dots<NodeTag>),
    ) -> Update {
        self.write_with(1, slot, change)
    }

    /// As [`Store::write`], for a change that takes `dots` dots.
    pub(crate) fn write_with(
        &mut self,
        dots: u64,
        slot: Slot,
        change: impl FnOnce(&mut Cell, Dot<NodeTag>) -> (Cell, Dots<NodeTag>),
    ) -> Update {
        let update = self.state.update_with(&self.me, dots, slot.clone(), change);
        self.digests.change_dots(&slot, update.context().iter());
        update
    }

    /// Takes out a part of the entry in place; `change` returns the dots of it.
    pub(crate) fn withdraw_in_place(
        &mut self,
        slot: &Slot,
        change: impl FnOnce(&mut Cell) -> Dots<NodeTag>,
    ) -> Update {
        let update = self.state.withdraw_in_place(slot.clone(), change);
        self.digests.change_dots(slot, update.context().iter());
        update
    }

    /// Writes a register.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`], [`WriteError::TooLarge`].
    pub fn put(&mut self, slot: Slot, written: Written) -> Result<Update, WriteError> {
        self.writable(&slot, Kind::Register, written.value.len())?;
        Ok(self.write(slot, |present, dot| {
            let mut replaced = Dots::default();
            present.dots(&mut |dot| replaced.insert(*dot));
            *present = Cell::one(dot, written);
            (present.clone(), replaced)
        }))
    }

    /// Writes a register if its present value was written at `expected`; `None` expects none.
    ///
    /// Checked against what this replica has seen and nothing else: two sides of a partition may
    /// both succeed, and the later write wins.
    ///
    /// # Errors
    /// [`WriteError::Overwritten`], and as for [`Store::put`].
    pub fn put_if(
        &mut self,
        slot: Slot,
        written: Written,
        expected: Option<HlcTimestamp>,
    ) -> Result<Update, WriteError> {
        let is = self.live_version(&slot, written.at.millis());
        if is != expected {
            return Err(WriteError::Overwritten { key: slot, is, expected });
        }
        self.put(slot, written)
    }

    /// Writes a multi-value register over every value seen here.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`], [`WriteError::TooLarge`].
    pub fn set_value(&mut self, slot: Slot, value: Bytes) -> Result<Update, WriteError> {
        self.writable(&slot, Kind::MultiValue, value.len())?;
        Ok(self.write(slot, |present, dot| {
            let replaced = present.edit(|it| it.multi_value.replace(dot, value.clone()));
            let multi_value = DotFun::one(dot, value);
            (Cell::of(Parts { multi_value, ..Parts::default() }), replaced)
        }))
    }

    /// Adds to a counter.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`], [`WriteError::Overflow`].
    pub fn add(&mut self, slot: Slot, by: i64) -> Result<Update, WriteError> {
        self.writable(&slot, Kind::Counter, 0)?;
        let me = self.me;
        let count = self.get(&slot).map_or(0, |cell| own_count(cell, me));
        let sum = count.checked_add(by).ok_or(WriteError::Overflow { count, by })?;
        Ok(self.write(slot, |present, dot| {
            // One dot per life: what it added before is inside the new number.
            let replaced = present.edit(|it| it.counter.replace_own(dot, sum));
            let counter = DotFun::one(dot, sum);
            (Cell::of(Parts { counter, ..Parts::default() }), replaced)
        }))
    }

    /// Adds an element to a set.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`], [`WriteError::TooLarge`].
    pub fn insert(&mut self, slot: Slot, element: Bytes) -> Result<Update, WriteError> {
        self.writable(&slot, Kind::Set, element.len())?;
        Ok(self.write(slot, |present, dot| {
            let replaced = present.edit(|it| it.set.entry(element.clone()).replace(dot));
            let set = DotMap::one(element, DotSet::one(dot));
            (Cell::of(Parts { set, ..Parts::default() }), replaced)
        }))
    }

    /// Writes a field of a map.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`], [`WriteError::TooLarge`].
    pub fn put_field(
        &mut self,
        slot: Slot,
        field: Bytes,
        written: Written,
    ) -> Result<Update, WriteError> {
        self.writable(&slot, Kind::Map, field.len().max(written.value.len()))?;
        Ok(self.write(slot, |present, dot| {
            let put = written.clone();
            let replaced = present.edit(|it| it.map.entry(field.clone()).replace(dot, put));
            let map = DotMap::one(field, DotFun::one(dot, written));
            (Cell::of(Parts { map, ..Parts::default() }), replaced)
        }))
    }

    /// Removes everything seen under `slot`, whatever its kind. `None` when there is nothing.
    pub fn remove(&mut self, slot: &Slot) -> Option<Update> {
        let present = self.get(slot)?.clone();
        Some(self.withdraw(slot, present))
    }

    /// Removes what is seen of one kind under `slot`. `None` when there is nothing.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`] when there are only other kinds.
    pub fn remove_kind(&mut self, slot: &Slot, kind: Kind) -> Result<Option<Update>, WriteError> {
        let Some(present) = self.get(slot) else { return Ok(None) };
        if let Some(is) = present.kinds().next()
            && !present.kinds().any(|held| held == kind)
        {
            return Err(WriteError::WrongKind { key: slot.clone(), is, asked: kind });
        }
        let seen = present.only(kind);
        Ok(Some(self.withdraw(slot, seen)))
    }

    /// Removes a register if its value, live at `now`, was written at `expected`.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`], [`WriteError::Overwritten`].
    pub fn remove_if(
        &mut self,
        slot: &Slot,
        expected: HlcTimestamp,
        now: WallTime,
    ) -> Result<Option<Update>, WriteError> {
        let is = self.live_version(slot, now);
        if is != Some(expected) {
            let key = slot.clone();
            return Err(WriteError::Overwritten { key, is, expected: Some(expected) });
        }
        self.remove_kind(slot, Kind::Register)
    }

    /// When the register under `slot` was written, unless its time is over at `now`.
    fn live_version(&self, slot: &Slot, now: WallTime) -> Option<HlcTimestamp> {
        let present = self.get(slot).and_then(Cell::register)?;
        present.expires.is_none_or(|expires| expires > now).then_some(present.at)
    }

    /// Removes an element of a set. `None` when it is not in it.
    pub fn remove_element(&mut self, slot: &Slot, element: &Bytes) -> Option<Update> {
        let seen = self.get(slot)?.parts()?.set.get(element)?.clone();
        let set = DotMap::one(element.clone(), seen);
        Some(self.withdraw(slot, Cell::of(Parts { set, ..Parts::default() })))
    }

    /// Removes a field of a map. `None` when it has none of that name.
    pub fn remove_field(&mut self, slot: &Slot, field: &Bytes) -> Option<Update> {
        let seen = self.get(slot)?.parts()?.map.get(field)?.clone();
        let map = DotMap::one(field.clone(), seen);
        Some(self.withdraw(slot, Cell::of(Parts { map, ..Parts::default() })))
    }

    pub(crate) fn withdraw(&mut self, slot: &Slot, seen: Cell) -> Update {
        let update = self.state.remove_within(slot.clone(), seen);
        self.digests.change_dots(slot, update.context().iter());
        update
    }

    /// Takes in somebody's writes. Returns the keys that changed: none when all of it was known.
    pub fn join(&mut self, update: &Update) -> Vec<Changed> {
        let slots: Vec<Slot> = update.store().iter().map(|(slot, _)| slot.clone()).collect();
        self.changing(slots, |state| state.join_delta(update))
    }

    /// Takes in all that another replica, which has seen `theirs`, keeps from `from` on up to
    /// `to`: a piece of its state. Notes as seen only what the piece holds.
    pub(crate) fn join_piece(
        &mut self,
        from: &Slot,
        to: Option<&Slot>,
        entries: &Entries,
        theirs: &CausalContext<NodeTag>,
    ) -> Vec<Changed> {
        let here: Vec<Slot> = self.range(from, to).map(|(slot, _)| slot.clone()).collect();
        let mut slots: Vec<Slot> = entries.iter().map(|(slot, _)| slot.clone()).collect();
        slots.extend(here.iter().filter(|slot| entries.get(*slot).is_none()).cloned());
        self.changing(slots, |state| state.join_piece(entries, here, theirs))
    }

    /// Sets some leaves to what they once held here, whatever is there now.
    pub(crate) fn restore(&mut self, part: &Part) {
        let (start, _) = part.from.range();
        let end = part.to.map(|leaf| leaf.range().0);
        let here: Vec<Slot> =
            self.range(&start, end.as_ref()).map(|(slot, _)| slot.clone()).collect();
        let gone = here.into_iter().filter(|slot| part.entries.get(slot).is_none());
        let gone: Vec<_> = gone.map(|slot| (slot, None)).collect();
        let kept = part.entries.iter().map(|(slot, cell)| (slot.clone(), Some(cell.clone())));
        for (slot, cell) in gone.into_iter().chain(kept.collect::<Vec<_>>()) {
            self.digests.change(&slot, self.state.store().get(&slot), cell.as_ref());
            self.state.restore(slot, cell);
        }
    }

    /// Notes that every piece of a state seen as `theirs` has arrived.
    pub(crate) fn absorb(&mut self, theirs: &CausalContext<NodeTag>) {
        self.state.absorb(theirs);
    }

    fn changing(
        &mut self,
        slots: Vec<Slot>,
        change: impl FnOnce(&mut Causal<NodeTag, DotMap<Slot, Cell>>),
    ) -> Vec<Changed> {
        let before: Vec<Option<Cell>> = slots.iter().map(|slot| self.get(slot).cloned()).collect();
        change(&mut self.state);
        let mut changed = Vec::new();
        for (slot, before) in slots.into_iter().zip(before) {
            let now = self.state.store().get(&slot);
            if now != before.as_ref() {
                self.digests.change(&slot, before.as_ref(), now);
                changed.push(Changed { now: now.cloned(), slot });
            }
        }
        changed
    }

    /// The entries from `from` on up to `to`.
    pub(crate) fn range<'a>(
        &'a self,
        from: &Slot,
        to: Option<&Slot>,
    ) -> impl Iterator<Item = (&'a Slot, &'a Cell)> + use<'a> {
        let end = to.map_or(Bound::Unbounded, Bound::Excluded);
        self.state.store().range(Bound::Included(from), end)
    }

    /// The entries of `leaf`.
    pub(crate) fn leaf(&self, leaf: Leaf) -> impl Iterator<Item = (&Slot, &Cell)> {
        let (from, to) = leaf.range();
        self.range(&from, to.as_ref())
    }

    /// Every entry, in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (&Slot, &Cell)> {
        self.state.store().iter()
    }

    /// Removes registers whose time is over at `now`; everybody does the same by themselves, so
    /// nothing needs to be sent.
    pub fn expire(&mut self, slot: &Slot, now: WallTime) -> Option<Update> {
        let written = self.get(slot)?.register()?;
        if written.expires.is_some_and(|expires| expires <= now) { self.remove(slot) } else { None }
    }
}

fn own_count(cell: &Cell, me: NodeTag) -> i64 {
    let counts = cell.parts().into_iter().flat_map(|parts| parts.counter.iter());
    counts.into_iter().find(|(dot, _)| dot.node == me).map_or(0, |(_, &count)| count)
}
