//! One replica's state, without time or network: writes make deltas, deltas make changes.

use std::collections::BTreeMap;

use bytes::Bytes;
use purlin_core::{Dot, HlcTimestamp, WallTime, hlc::NodeTag};
use purlin_crdt::{
    CausalContext, Delta, DotFun, DotMap, DotSet, DotStore, Dots, Knows, TextError, store::Scope,
};
use purlin_ring::key_hash;

use crate::{
    cell::{Cell, Kind, Parts, Written},
    digest::{DigestTree, Digests, Leaf, digest},
    interest::Interest,
    journal::Part,
    knowledge::{self, Claim, Knowledge},
    leaves::Leaves,
    slot::{KEY_BYTES_MAX, KeyError, Slot},
};

/// One or more writes on their way to other replicas.
pub type Update = Delta<NodeTag, DotMap<Slot, Cell>>;

/// What a write made: what there is to tell, if there is anybody to tell it to.
#[derive(Debug)]
pub enum Made {
    /// An update.
    Update(Update),
    /// One write of a register.
    Put(Put),
}

impl From<Update> for Made {
    fn from(update: Update) -> Self {
        Self::Update(update)
    }
}

impl From<Put> for Made {
    fn from(put: Put) -> Self {
        Self::Put(put)
    }
}

impl From<Made> for Update {
    fn from(made: Made) -> Self {
        match made {
            Made::Update(update) => update,
            Made::Put(put) => put.into(),
        }
    }
}

/// One write of a register, from which its update can be made.
#[derive(Debug)]
pub struct Put {
    slot: Slot,
    dot: Dot<NodeTag>,
    cell: Cell,
    replaced: Cell,
}

impl From<Put> for Update {
    fn from(put: Put) -> Self {
        let mut context = Dots::default();
        put.replaced.dots(&mut |dot| context.insert(*dot));
        context.insert(put.dot);
        Self::new(Entries::one(put.slot, put.cell), context)
    }
}

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
    /// This replica does not keep such keys. Write on a node that does.
    #[error("key {key:?} is outside of what this node keeps: {keeps}")]
    OutsideInterest {
        /// The key.
        key: Slot,
        /// What is kept here.
        keeps: Interest,
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
    entries: Leaves,
    known: Knowledge,
    /// The number of the last write here.
    written: u64,
    /// Digests over what is shared with neighbours that keep other keys.
    shared: Vec<(Interest, DigestTree)>,
    /// How many dots of each life are kept.
    alive: BTreeMap<NodeTag, u64>,
}

impl Store {
    /// An empty store of every key, written to as `me`: a tag no other life of any node uses.
    #[must_use]
    pub fn new(me: NodeTag) -> Self {
        Self {
            me,
            entries: Leaves::default(),
            known: Knowledge::default(),
            written: 0,
            shared: Vec::new(),
            alive: BTreeMap::new(),
        }
    }

    /// What is kept under `slot`.
    #[must_use]
    pub fn get(&self, slot: &Slot) -> Option<&Cell> {
        self.entries.get(slot)
    }

    /// The slot of `key`: the one that is kept, if anything is kept under it.
    ///
    /// # Errors
    /// [`KeyError`] as [`Slot::new`].
    pub fn slot(&self, key: &[u8]) -> Result<Slot, KeyError> {
        match self.entries.slot(key_hash(key).0, key) {
            Some(kept) => Ok(kept.clone()),
            None => Slot::of(key),
        }
    }

    /// How many keys there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no key.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Everything seen; of keys that were begun to be kept a moment ago it says nothing.
    #[must_use]
    pub fn context(&self) -> &CausalContext<NodeTag> {
        self.known.first()
    }

    /// What was seen of which keys.
    #[must_use]
    pub fn known(&self) -> &Knowledge {
        &self.known
    }

    pub(crate) fn known_mut(&mut self) -> &mut Knowledge {
        &mut self.known
    }

    /// Puts back what was known when it was written down.
    pub(crate) fn set_known(&mut self, known: Knowledge) {
        self.known = known;
    }

    /// The number of the last write here.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// How many of the dots kept are of `life`.
    pub(crate) fn alive(&self, life: NodeTag) -> u64 {
        self.alive.get(&life).copied().unwrap_or(0)
    }

    /// The digests of what is kept of `keys`: all there is, or what [`Store::share`] asked for.
    pub(crate) fn digests(&self, keys: &Interest) -> &dyn Digests {
        match self.shared.iter().find(|(of, _)| of == keys) {
            Some((_, tree)) => tree,
            None => &self.entries,
        }
    }

    /// Keeps digests for each of `wanted`, besides those of everything. Costs a look at every entry
    /// for each that is new.
    pub(crate) fn share(&mut self, mut wanted: Vec<Interest>) {
        wanted.sort_unstable();
        wanted.dedup();
        let mut had = std::mem::take(&mut self.shared);
        for keys in wanted {
            let tree = match had.iter().position(|(of, _)| *of == keys) {
                Some(at) => had.swap_remove(at).1,
                None => {
                    let mut tree = DigestTree::default();
                    for (slot, cell) in self.entries.iter() {
                        if keys.covers(slot.key()) {
                            each_dot_once(cell, |dot| tree.toggle(slot, digest(slot, dot)));
                        }
                    }
                    tree
                }
            };
            self.shared.push((keys, tree));
        }
    }

    fn toggle(&mut self, slot: &Slot, delta: u64) {
        self.entries.toggle(slot, delta);
        for (keys, tree) in &mut self.shared {
            if keys.covers(slot.key()) {
                tree.toggle(slot, delta);
            }
        }
    }

    /// Notes that the dots of `before` under `slot` gave way to those of `after`.
    fn change(&mut self, slot: &Slot, before: Option<&Cell>, after: Option<&Cell>) {
        let mut delta = 0;
        if let Some(cell) = before {
            each_dot_once(cell, |dot| {
                delta ^= digest(slot, dot);
                forget_dot(&mut self.alive, dot.node);
            });
        }
        if let Some(cell) = after {
            each_dot_once(cell, |dot| {
                delta ^= digest(slot, dot);
                *self.alive.entry(dot.node).or_default() += 1;
            });
        }
        self.toggle(slot, delta);
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

    /// As [`Store::write`] for a change that takes `count` dots, which follow each other: `change`
    /// gets the first and must put in all of them.
    pub(crate) fn write_with(
        &mut self,
        count: u64,
        slot: Slot,
        change: impl FnOnce(&mut Cell, Dot<NodeTag>) -> (Cell, Dots<NodeTag>),
    ) -> Update {
        let dot = Dot { node: self.me, counter: self.written + 1 };
        self.written += count;
        let mut fresh = Dots::default();
        fresh.insert_span(self.me, dot.counter, self.written);
        self.known.insert_all(&fresh);
        let (cell, mut context) = change(self.entries.entry(&slot), dot);
        let mut delta = 0;
        for replaced in context.iter() {
            delta ^= digest(&slot, &replaced);
            forget_dot(&mut self.alive, replaced.node);
        }
        for written in fresh.iter() {
            delta ^= digest(&slot, &written);
        }
        *self.alive.entry(self.me).or_default() += count;
        self.toggle(&slot, delta);
        context.join(&fresh);
        Update::new(Entries::one(slot, cell), context)
    }

    /// Takes out a part of the entry in place; `change` returns the dots of it.
    pub(crate) fn withdraw_in_place(
        &mut self,
        slot: &Slot,
        change: impl FnOnce(&mut Cell) -> Dots<NodeTag>,
    ) -> Update {
        let kept = self.entries.entry(slot);
        let context = change(kept);
        if DotStore::is_empty(kept) {
            self.entries.forget(slot);
        }
        let mut delta = 0;
        for gone in context.iter() {
            delta ^= digest(slot, &gone);
            forget_dot(&mut self.alive, gone.node);
        }
        self.toggle(slot, delta);
        Update::new(Entries::one(slot.clone(), Cell::default()), context)
    }

    /// Writes a register.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`], [`WriteError::TooLarge`].
    pub fn put(&mut self, slot: Slot, written: Written) -> Result<Update, WriteError> {
        self.put_over(slot, written).map(Update::from)
    }

    /// As [`Store::put`], without making an update that perhaps nobody asks for.
    pub(crate) fn put_over(&mut self, slot: Slot, written: Written) -> Result<Put, WriteError> {
        let bytes = written.value.len();
        if bytes > VALUE_BYTES_MAX {
            return Err(WriteError::TooLarge { bytes });
        }
        // The write that nearly every write is: one look for the place, and nothing made for it that
        // the update does not need.
        let present = self.entries.entry(&slot);
        if present.as_one().is_none()
            && let Some(is) = present.kinds().find(|&kind| kind != Kind::Register)
        {
            return Err(WriteError::WrongKind { key: slot, is, asked: Kind::Register });
        }
        self.written += 1;
        let dot = Dot { node: self.me, counter: self.written };
        self.known.insert(&dot);
        let mut delta = digest(&slot, &dot);
        *self.alive.entry(self.me).or_default() += 1;
        present.dots(&mut |replaced| {
            delta ^= digest(&slot, replaced);
            forget_dot(&mut self.alive, replaced.node);
        });
        let cell = Cell::one(dot, written);
        let replaced = std::mem::replace(present, cell.clone());
        self.toggle(&slot, delta);
        Ok(Put { slot, dot, cell, replaced })
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
        self.put_over_if(slot, written, expected).map(Update::from)
    }

    /// As [`Store::put_if`], without making an update that perhaps nobody asks for.
    pub(crate) fn put_over_if(
        &mut self,
        slot: Slot,
        written: Written,
        expected: Option<HlcTimestamp>,
    ) -> Result<Put, WriteError> {
        let is = self.live_version(&slot, written.at.millis());
        if is != expected {
            return Err(WriteError::Overwritten { key: slot, is, expected });
        }
        self.put_over(slot, written)
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
        let mut dots = Dots::default();
        seen.dots(&mut |dot| dots.insert(*dot));
        let update = Update::new(Entries::one(slot.clone(), seen.emptied()), dots);
        drop(self.join(&update));
        update
    }

    /// Takes in somebody's writes. Returns the keys that changed: none when all of it was known.
    pub fn join(&mut self, update: &Update) -> Vec<Changed> {
        let mut changed = Vec::new();
        for (slot, cell) in update.store().iter() {
            self.join_key(slot, cell, update.context(), Scope::Named, &mut changed);
        }
        self.known.insert_all(update.context());
        changed
    }

    /// Takes in all that another replica, which has seen `theirs`, keeps of `keys` from `from` on
    /// up to `to`: a piece of its state. Notes as seen only what the piece holds.
    pub(crate) fn join_piece(
        &mut self,
        keys: &Interest,
        from: &Slot,
        to: Option<&Slot>,
        entries: &Entries,
        theirs: &[Claim],
    ) -> Vec<Changed> {
        let here = self.range(from, to).map(|(slot, _)| slot);
        let absent: Vec<Slot> = here
            .filter(|slot| entries.get(*slot).is_none() && keys.covers(slot.key()))
            .cloned()
            .collect();
        let (mut changed, nothing) = (Vec::new(), Cell::default());
        for slot in &absent {
            let seen = knowledge::of_key(theirs, slot.key());
            self.join_key(slot, &nothing, &seen, Scope::Whole, &mut changed);
        }
        for (slot, cell) in entries.iter().filter(|(slot, _)| keys.covers(slot.key())) {
            let seen = knowledge::of_key(theirs, slot.key());
            self.join_key(slot, cell, &seen, Scope::Whole, &mut changed);
            cell.dots(&mut |dot| self.known.insert(dot));
        }
        changed
    }

    fn join_key(
        &mut self,
        slot: &Slot,
        cell: &Cell,
        theirs: &impl Knows<NodeTag>,
        scope: Scope,
        changed: &mut Vec<Changed>,
    ) {
        let before = self.entries.get(slot).cloned();
        let mut joined = before.clone().unwrap_or_default();
        joined.join(&self.known.of(slot.key()), cell, theirs, scope);
        let now = (!joined.is_empty()).then_some(joined);
        if now != before {
            self.set(slot, now.clone());
            self.change(slot, before.as_ref(), now.as_ref());
            changed.push(Changed { slot: slot.clone(), now });
        }
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
            let before = self.entries.get(&slot).cloned();
            self.change(&slot, before.as_ref(), cell.as_ref());
            if let Some(cell) = &cell {
                cell.dots(&mut |dot| self.known.insert(dot));
            }
            self.set(&slot, cell);
        }
    }

    fn set(&mut self, slot: &Slot, now: Option<Cell>) {
        match now {
            Some(cell) => self.entries.set(slot, cell),
            None => self.entries.forget(slot),
        }
    }

    /// Notes that every piece of a state seen as `theirs` has arrived; `author` as
    /// [`Knowledge::absorb`] has it.
    pub(crate) fn absorb(&mut self, theirs: &[Claim], author: Option<NodeTag>) {
        self.known.absorb(theirs, author);
        if self.known.is_whole() {
            return;
        }
        // What an entry of a claim holds is seen whatever other claims say: noted with all of them,
        // they soon say the same.
        let mut dots = Vec::new();
        self.entries.iter().for_each(|(_, cell)| cell.dots(&mut |dot| dots.push(*dot)));
        dots.iter().for_each(|dot| self.known.insert(dot));
        self.known.melt();
    }

    /// Keeps nothing but `keys` from now on. What goes is dropped here and nowhere else.
    pub(crate) fn narrow(&mut self, keys: &Interest) -> Vec<Changed> {
        let outside = self.entries.iter().map(|(slot, _)| slot);
        let outside: Vec<Slot> = outside.filter(|slot| !keys.covers(slot.key())).cloned().collect();
        for slot in &outside {
            let before = self.entries.get(slot).cloned();
            self.change(slot, before.as_ref(), None);
            self.entries.forget(slot);
        }
        self.known.narrow(keys);
        outside.into_iter().map(|slot| Changed { slot, now: None }).collect()
    }

    /// The entries from `from` on up to `to`.
    pub(crate) fn range<'a>(
        &'a self,
        from: &Slot,
        to: Option<&Slot>,
    ) -> impl Iterator<Item = (&'a Slot, &'a Cell)> + use<'a> {
        self.entries.range(from, to)
    }

    /// The entries of `leaf`.
    pub(crate) fn leaf(&self, leaf: Leaf) -> impl Iterator<Item = (&Slot, &Cell)> {
        let (from, to) = leaf.range();
        self.range(&from, to.as_ref())
    }

    /// Every entry, in slot order.
    pub fn iter(&self) -> impl Iterator<Item = (&Slot, &Cell)> {
        self.entries.iter()
    }

    /// Removes registers whose time is over at `now`; everybody does the same by themselves, so
    /// nothing needs to be sent.
    pub fn expire(&mut self, slot: &Slot, now: WallTime) -> Option<Update> {
        let written = self.get(slot)?.register()?;
        if written.expires.is_some_and(|expires| expires <= now) { self.remove(slot) } else { None }
    }
}

/// One write may stand in several places of a cell under its one dot.
fn each_dot_once(cell: &Cell, mut visit: impl FnMut(&Dot<NodeTag>)) {
    if let Some((dot, _)) = cell.as_one() {
        visit(&dot);
    } else {
        let mut dots = Dots::default();
        cell.dots(&mut |dot| dots.insert(*dot));
        dots.iter().for_each(|dot| visit(&dot));
    }
}

fn forget_dot(alive: &mut BTreeMap<NodeTag, u64>, life: NodeTag) {
    if let Some(dots) = alive.get_mut(&life) {
        *dots -= 1;
        if *dots == 0 {
            alive.remove(&life);
        }
    }
}

fn own_count(cell: &Cell, me: NodeTag) -> i64 {
    let counts = cell.parts().into_iter().flat_map(|parts| parts.counter.iter());
    counts.into_iter().find(|(dot, _)| dot.node == me).map_or(0, |(_, &count)| count)
}
