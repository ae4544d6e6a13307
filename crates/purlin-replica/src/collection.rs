//! Maps and sets of any size, by name.
//!
//! A map inside one [`Cell`] is read and replaced as one piece: right for a dozen fields, wrong for a
//! million, where every write would copy all of them. Here each entry of a map or set is a key of
//! its own, `name`, a zero byte, a letter for the kind, the entry's key. A write costs the same
//! however large the collection is, and entries travel, end and are compared one by one. They merge
//! as registers do: a write wins over a concurrent removal, and of two writes the later by hybrid time.
//!
//! What a writer put into one cell under the same name ([`ReplicaSet::insert`],
//! [`ReplicaSet::put_field`]) is read and removed here too: to a reader both are one map or set.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use purlin_core::{HlcTimestamp, hlc::NodeTag};

use crate::{
    cell::{Cell, Kind, Wins, Written},
    replica::{ReplicaSet, StateError},
    slot::Slot,
    store::WriteError,
};

/// Divides a collection's name from the keys of its entries.
const DIVIDER: u8 = 0;

/// The letter of each kind of collection.
const LETTERS: [(u8, Kind); 4] =
    [(b'm', Kind::Map), (b's', Kind::Set), (b'g', Kind::GrowSet), (b'r', Kind::RemoveWinsSet)];

fn letter_of(kind: Kind) -> Option<u8> {
    LETTERS.iter().find(|(_, of)| *of == kind).map(|(letter, _)| *letter)
}

fn kind_of(letter: u8) -> Option<Kind> {
    LETTERS.iter().find(|(of, _)| *of == letter).map(|(_, kind)| *kind)
}

/// The most entries that are counted for one row of a catalogue.
pub const COUNTED_MAX: usize = 1_000;

/// What is kept under one name: a row of a catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedState {
    /// The name.
    pub name: Bytes,
    /// What it is; two kinds only if two sides of a partition chose differently.
    pub kinds: Vec<Kind>,
    /// How many entries a map or set has, counted up to [`COUNTED_MAX`]; 1 for other kinds.
    pub entries: usize,
    /// About how many bytes they have, entry keys included.
    pub bytes: usize,
    /// The latest write; `None` for kinds that keep no time.
    pub last: Option<HlcTimestamp>,
    /// Whose writes it holds.
    pub writers: BTreeSet<NodeTag>,
}

/// A map of any size. Cheap to clone.
///
/// # Guarantees
/// As [`ReplicaSet`]; each entry stands for itself, and nothing spans two of them.
///
/// # Source
/// Almeida et al. 2018 (OR-Map), flattened into one causal map.
#[derive(Debug, Clone)]
pub struct Map(Entries);

/// A set of any size. Cheap to clone.
///
/// One that [`ReplicaSet::set`] gives lets an add win over a concurrent removal, one that
/// [`ReplicaSet::remove_wins_set`] gives the removal; from [`ReplicaSet::grow_set`] nothing is
/// ever removed.
///
/// # Guarantees
/// As [`ReplicaSet`]; each element stands for itself. A remove-wins set remembers what was removed,
/// one key each; the others forget it.
#[derive(Debug, Clone)]
pub struct Set(Entries);

impl ReplicaSet {
    /// The map called `name`; it exists while it has entries.
    ///
    /// # Errors
    /// [`StateError::Name`], [`StateError::Key`].
    pub fn map(&self, name: impl AsRef<[u8]>) -> Result<Map, StateError> {
        Entries::new(self, name.as_ref(), Kind::Map).map(Map)
    }

    /// The set called `name`, in which an add wins over a concurrent removal; it exists while it
    /// has elements.
    ///
    /// # Errors
    /// [`StateError::Name`], [`StateError::Key`].
    pub fn set(&self, name: impl AsRef<[u8]>) -> Result<Set, StateError> {
        Entries::new(self, name.as_ref(), Kind::Set).map(Set)
    }

    /// The set called `name`, from which nothing is ever removed.
    ///
    /// # Errors
    /// [`StateError::Name`], [`StateError::Key`].
    pub fn grow_set(&self, name: impl AsRef<[u8]>) -> Result<Set, StateError> {
        Entries::new(self, name.as_ref(), Kind::GrowSet).map(Set)
    }

    /// The set called `name`, in which a removal wins over a concurrent add.
    ///
    /// # Errors
    /// [`StateError::Name`], [`StateError::Key`].
    pub fn remove_wins_set(&self, name: impl AsRef<[u8]>) -> Result<Set, StateError> {
        Entries::new(self, name.as_ref(), Kind::RemoveWinsSet).map(Set)
    }

    /// What is kept under `name`, collections included: nothing, one kind, or after the heal of a
    /// partition more.
    #[must_use]
    pub fn kinds_of(&self, name: &[u8]) -> Vec<Kind> {
        let mut kinds = self.kinds(name);
        for (letter, kind) in LETTERS {
            let prefix = [name, &[DIVIDER, letter]].concat();
            if !kinds.contains(&kind) && !self.scan(&prefix, None, 1).is_empty() {
                kinds.push(kind);
            }
        }
        kinds
    }

    /// Whether `name` may be used as a `wanted`: nothing else is kept under it here.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`] inside [`StateError`]; [`StateError::Name`], [`StateError::Key`].
    pub fn expect_kind(&self, name: &[u8], wanted: Kind) -> Result<(), StateError> {
        if name.contains(&DIVIDER) {
            return Err(StateError::Name);
        }
        let key = Slot::new(Bytes::copy_from_slice(name))?;
        let kinds = self.kinds_of(name);
        match kinds.first() {
            Some(&is) if !kinds.contains(&wanted) => {
                Err(WriteError::WrongKind { key, is, asked: wanted }.into())
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Up to `limit` names that begin with `prefix`, in order, after the name `after`. Costs a look
    /// at up to [`COUNTED_MAX`] entries per collection.
    #[must_use]
    pub fn catalogue(&self, prefix: &[u8], after: Option<&[u8]>, limit: usize) -> Vec<NamedState> {
        let mut rows: Vec<NamedState> = Vec::new();
        // Past the name and every entry of a collection of that name.
        let mut place = after.map(|name| [name, &[DIVIDER, u8::MAX]].concat());
        while let Some((key, cell)) = self.scan(prefix, place.as_deref(), 1).pop() {
            let row = match key.iter().position(|&byte| byte == DIVIDER) {
                Some(end) if end + 1 < key.len() => {
                    let group = key.slice(..end + 2);
                    place = Some([&key[..=end], &[key[end + 1] + 1]].concat());
                    self.summary(&group)
                }
                Some(_) | None => {
                    place = Some(key.to_vec());
                    NamedState::of(key, &cell)
                }
            };
            let is_full = rows.len() == limit;
            match rows.last_mut().filter(|last| last.name == row.name) {
                // The same name in two kinds: one row.
                Some(last) => last.take_in(row),
                None if is_full => break,
                None => rows.push(row),
            }
        }
        rows
    }

    fn summary(&self, group: &Bytes) -> NamedState {
        let kind = group.last().copied().and_then(kind_of);
        let mut row = NamedState {
            name: group.slice(..group.len() - 2),
            kinds: kind.into_iter().collect(),
            entries: 0,
            bytes: 0,
            last: None,
            writers: BTreeSet::new(),
        };
        for (key, cell) in self.scan(group, None, COUNTED_MAX) {
            row.entries += usize::from(is_in(&cell));
            row.bytes += key.len() - group.len() + cell.bytes();
            row.last = row.last.max(cell.last_written());
            row.writers.extend(cell.writers());
        }
        row
    }
}

/// Takes the key of an entry of a collection apart: the collection's name, its kind, the entry's
/// key. `None` for a key that stands for itself.
#[must_use]
pub fn entry_of(key: &Bytes) -> Option<(Bytes, Kind, Bytes)> {
    let end = key.iter().position(|&byte| byte == DIVIDER)?;
    let kind = kind_of(*key.get(end + 1)?)?;
    Some((key.slice(..end), kind, key.slice(end + 2..)))
}

impl NamedState {
    fn of(name: Bytes, cell: &Cell) -> Self {
        let entries = cell.fields().count() + cell.elements().count() + cell.leaves().count();
        Self {
            name,
            kinds: cell.kinds().collect(),
            entries: entries.max(1),
            bytes: cell.bytes(),
            last: cell.last_written(),
            writers: cell.writers(),
        }
    }

    fn take_in(&mut self, other: Self) {
        for kind in other.kinds {
            if !self.kinds.contains(&kind) {
                self.kinds.push(kind);
            }
        }
        self.entries += other.entries;
        self.bytes += other.bytes;
        self.last = self.last.max(other.last);
        self.writers.extend(other.writers);
    }
}

impl Map {
    /// Writes the value of `key`. Returns the version written.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn put(
        &self,
        key: impl AsRef<[u8]>,
        value: impl Into<Bytes>,
    ) -> Result<HlcTimestamp, StateError> {
        self.0.put(key.as_ref(), value.into())
    }

    /// The value of `key`, with when it was written and by whom.
    #[must_use]
    pub fn get(&self, key: impl AsRef<[u8]>) -> Option<Written> {
        let in_cell = self.0.cell().field(key.as_ref()).cloned();
        self.0.get(key.as_ref()).max(in_cell)
    }

    /// Removes `key`; `false` when it has no value here.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn remove(&self, key: impl AsRef<[u8]>) -> Result<bool, StateError> {
        let removed = self.0.remove(key.as_ref())?;
        if self.0.cell().field(key.as_ref()).is_none() {
            return Ok(removed);
        }
        let key = Bytes::copy_from_slice(key.as_ref());
        Ok(self.0.set.remove_field(self.0.name_bytes(), &key)? || removed)
    }

    /// Up to `limit` entries in key order, after the key `after`. A moving picture, not a snapshot.
    #[must_use]
    pub fn entries(&self, after: Option<&[u8]>, limit: usize) -> Vec<(Bytes, Written)> {
        let page = self.0.page(after, limit);
        let cell = self.0.cell();
        let mut in_cell = cell.fields().filter(|(key, _)| is_after(key, after)).peekable();
        if in_cell.peek().is_none() {
            return page;
        }
        let mut all: BTreeMap<Bytes, Written> = page.into_iter().collect();
        for (key, written) in in_cell {
            let kept = all.entry(key.clone()).or_insert_with(|| written.clone());
            if *kept < *written {
                kept.clone_from(written);
            }
        }
        all.into_iter().take(limit).collect()
    }

    /// Removes every entry seen here, one by one; how many. Entries written elsewhere meanwhile stay.
    ///
    /// # Errors
    /// [`StateError`]; entries before the one refused are gone.
    pub fn clear(&self) -> Result<usize, StateError> {
        Ok(self.0.clear()? + self.0.clear_cell()?)
    }
}

impl Set {
    /// Adds an element.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn insert(&self, element: impl AsRef<[u8]>) -> Result<(), StateError> {
        if self.0.kind != Kind::RemoveWinsSet {
            return self.0.put(element.as_ref(), Bytes::new()).map(drop);
        }
        self.0.expect_kind()?;
        self.0.set.switch(self.0.key(element.as_ref()), Wins::Disabling, true)
    }

    /// Whether `element` is in the set, as seen here.
    #[must_use]
    pub fn contains(&self, element: impl AsRef<[u8]>) -> bool {
        self.0.set.get(&self.0.key(element.as_ref())).is_some_and(|cell| is_in(&cell))
            || self.0.kind == Kind::Set && self.0.cell().contains(element.as_ref())
    }

    /// Removes an element; `false` when it is not in the set here. From a remove-wins set it is
    /// removed also where it is on its way to be added.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed. [`WriteError::OnlyGrows`] inside it.
    pub fn remove(&self, element: impl AsRef<[u8]>) -> Result<bool, StateError> {
        match self.0.kind {
            Kind::GrowSet => Err(self.0.only_grows()),
            Kind::RemoveWinsSet => {
                self.0.expect_kind()?;
                let was_in = self.contains(element.as_ref());
                self.0.set.switch(self.0.key(element.as_ref()), Wins::Disabling, false)?;
                Ok(was_in)
            }
            _ => {
                let removed = self.0.remove(element.as_ref())?;
                if !self.0.cell().contains(element.as_ref()) {
                    return Ok(removed);
                }
                let element = Bytes::copy_from_slice(element.as_ref());
                Ok(self.0.set.remove_element(self.0.name_bytes(), &element)? || removed)
            }
        }
    }

    /// Up to `limit` elements in order, after the element `after`. A moving picture.
    #[must_use]
    pub fn elements(&self, after: Option<&[u8]>, limit: usize) -> Vec<Bytes> {
        let mut elements = Vec::new();
        let mut place = after.map(|element| self.0.key(element));
        // What was removed knowingly is passed over, so a page may take more than one look.
        while elements.len() < limit {
            let page = self.0.set.scan(&self.0.prefix, place.as_deref(), limit);
            let Some((last, _)) = page.last() else { break };
            place = Some(last.clone());
            let is_last = page.len() < limit;
            let found = page.into_iter().filter(|(_, cell)| is_in(cell));
            elements.extend(found.map(|(key, _)| key.slice(self.0.prefix.len()..)));
            if is_last {
                break;
            }
        }
        if self.0.kind == Kind::Set {
            let cell = self.0.cell();
            elements.extend(cell.elements().filter(|one| is_after(one, after)).cloned());
            elements.sort_unstable();
            elements.dedup();
        }
        elements.truncate(limit);
        elements
    }

    /// Removes every element seen here, one by one; how many. What others add meanwhile stays,
    /// except in a remove-wins set the same elements.
    ///
    /// # Errors
    /// [`StateError`]; elements before the one refused are gone. [`WriteError::OnlyGrows`] inside it.
    pub fn clear(&self) -> Result<usize, StateError> {
        match self.0.kind {
            Kind::GrowSet => Err(self.0.only_grows()),
            Kind::RemoveWinsSet => {
                let mut removed = 0;
                loop {
                    let page = self.elements(None, COUNTED_MAX);
                    if page.is_empty() {
                        return Ok(removed);
                    }
                    for element in page {
                        removed += usize::from(self.remove(&element)?);
                    }
                }
            }
            _ => Ok(self.0.clear()? + self.0.clear_cell()?),
        }
    }
}

/// The entries of one collection, each a key of its own.
#[derive(Debug, Clone)]
struct Entries {
    set: ReplicaSet,
    kind: Kind,
    /// The name, the divider, the letter.
    prefix: Bytes,
}

fn is_after(key: &[u8], after: Option<&[u8]>) -> bool {
    after.is_none_or(|after| key > after)
}

/// Whether the key of an element says that it is in its set.
#[must_use]
pub fn is_in(cell: &Cell) -> bool {
    cell.register().is_some() || cell.is_on(Wins::Disabling)
}

impl Entries {
    fn new(set: &ReplicaSet, name: &[u8], kind: Kind) -> Result<Self, StateError> {
        if name.contains(&DIVIDER) {
            return Err(StateError::Name);
        }
        Slot::new(Bytes::copy_from_slice(name))?;
        let letter = letter_of(kind).expect("every kind of collection has a letter");
        Ok(Self { set: set.clone(), kind, prefix: [name, &[DIVIDER, letter]].concat().into() })
    }

    fn name(&self) -> &[u8] {
        &self.prefix[..self.prefix.len() - 2]
    }

    fn name_bytes(&self) -> Bytes {
        self.prefix.slice(..self.prefix.len() - 2)
    }

    /// What is kept in one cell under the same name.
    fn cell(&self) -> Cell {
        self.set.get(self.name()).unwrap_or_default()
    }

    /// Empties that cell of this kind; how many entries it had.
    fn clear_cell(&self) -> Result<usize, StateError> {
        let cell = self.cell();
        if !cell.kinds().any(|kind| kind == self.kind) {
            return Ok(0);
        }
        self.set.remove_kind(self.name_bytes(), self.kind)?;
        Ok(if self.kind == Kind::Map { cell.fields().count() } else { cell.elements().count() })
    }

    fn expect_kind(&self) -> Result<(), StateError> {
        self.set.expect_kind(self.name(), self.kind)
    }

    fn only_grows(&self) -> StateError {
        let key = Slot::new(Bytes::copy_from_slice(self.name())).expect("it was one at the start");
        WriteError::OnlyGrows { key, kind: self.kind }.into()
    }

    fn key(&self, entry: &[u8]) -> Bytes {
        [&self.prefix, entry].concat().into()
    }

    fn put(&self, entry: &[u8], value: Bytes) -> Result<HlcTimestamp, StateError> {
        self.expect_kind()?;
        self.set.put(self.key(entry), value, None)
    }

    fn get(&self, entry: &[u8]) -> Option<Written> {
        self.set.get(&self.key(entry))?.register().cloned()
    }

    fn remove(&self, entry: &[u8]) -> Result<bool, StateError> {
        self.set.remove(self.key(entry))
    }

    fn page(&self, after: Option<&[u8]>, limit: usize) -> Vec<(Bytes, Written)> {
        let after = after.map(|entry| self.key(entry));
        let page = self.set.scan(&self.prefix, after.as_deref(), limit);
        let entry = |(key, cell): (Bytes, Cell)| {
            Some((key.slice(self.prefix.len()..), cell.register()?.clone()))
        };
        page.into_iter().filter_map(entry).collect()
    }

    fn clear(&self) -> Result<usize, StateError> {
        let mut removed = 0;
        loop {
            let page = self.set.scan(&self.prefix, None, COUNTED_MAX);
            if page.is_empty() {
                return Ok(removed);
            }
            for (key, _) in page {
                removed += usize::from(self.set.remove(key)?);
            }
        }
    }
}
