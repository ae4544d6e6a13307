//! What the kinds beyond registers, sets and maps do: counters that only grow or can be reset,
//! switches, nested maps, text.

use std::ops::Range;

use bytes::Bytes;
use purlin_core::{HlcTimestamp, hlc::NodeTag};
use purlin_crdt::{DotFun, DotMap, DotSet, DotStore, Dots, Lattice as _, TextError, TextStore};

use crate::{
    cell::{Account, Cell, Kind, Parts, Path, Tallies, Tally, Wins, Written, totals},
    replica::{ReplicaSet, StateError},
    slot::{KEY_BYTES_MAX, Slot},
    store::{PATH_KEYS_MAX, Store, Update, WriteError},
};

fn dots_of(store: &impl DotStore<NodeTag>) -> Dots<NodeTag> {
    let mut dots = Dots::default();
    store.dots(&mut |dot| dots.insert(*dot));
    dots
}

fn overflow(count: u64, by: i64) -> WriteError {
    WriteError::Overflow { count: i64::try_from(count).unwrap_or(i64::MAX), by }
}

impl Store {
    /// Adds to a counter that only grows.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`], [`WriteError::Overflow`].
    pub fn grow(&mut self, slot: Slot, by: u64) -> Result<Update, WriteError> {
        self.writable(&slot, Kind::GrowCounter, 0)?;
        let me = self.me();
        let counts = self.get(&slot).and_then(Cell::parts).map(|parts| &parts.grow_counter);
        let own = counts.and_then(|counts| counts.iter().find(|(dot, _)| dot.node == me));
        let count = own.map_or(0, |(_, &count)| count);
        // Each life counts as far as other counters do, so that sums stay within theirs.
        let sum = count.checked_add(by).filter(|&sum| i64::try_from(sum).is_ok());
        let sum = sum.ok_or_else(|| overflow(count, i64::try_from(by).unwrap_or(i64::MAX)))?;
        Ok(self.write(slot, |present, dot| {
            let replaced = present.edit(|it| it.grow_counter.replace_own(dot, sum));
            let grow_counter = DotFun::one(dot, sum);
            (Cell::of(Parts { grow_counter, ..Parts::default() }), replaced)
        }))
    }

    /// Adds to a counter that can be reset.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`], [`WriteError::Overflow`].
    pub fn add_resettable(&mut self, slot: Slot, by: i64) -> Result<Update, WriteError> {
        self.writable(&slot, Kind::ResettableCounter, 0)?;
        let me = self.me();
        let accounts = self.get(&slot).and_then(Cell::parts).map(|parts| &parts.resettable_counter);
        let own = accounts.and_then(|accounts| {
            accounts.iter().find(|(account, it)| account.0 == me && !DotStore::is_empty(&it.0))
        });
        let account = own.map(|(account, _)| *account);
        let (mut total, _) = own.map_or_else(Default::default, |(_, it)| totals(it));
        let side = if by < 0 { &mut total.1 } else { &mut total.0 };
        let sum = side.checked_add(by.unsigned_abs()).filter(|&sum| i64::try_from(sum).is_ok());
        *side = sum.ok_or_else(|| overflow(*side, by))?;
        Ok(self.write(slot, |present, dot| {
            let account: Account = account.unwrap_or((me, dot.counter));
            let replaced =
                present.edit(|it| it.resettable_counter.entry(account).0.replace(dot, total));
            let tallies: Tallies = (DotFun::one(dot, total), DotFun::default());
            let resettable_counter = DotMap::one(account, tallies);
            (Cell::of(Parts { resettable_counter, ..Parts::default() }), replaced)
        }))
    }

    /// Takes everything away that was added to a counter and seen here; what others add meanwhile
    /// counts. `None` when there is nothing.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`].
    pub fn reset(&mut self, slot: Slot) -> Result<Option<Update>, WriteError> {
        self.writable(&slot, Kind::ResettableCounter, 0)?;
        let seen: Vec<(Account, Tally)> = match self.get(&slot).and_then(Cell::parts) {
            None => return Ok(None),
            Some(parts) => {
                let accounts = parts.resettable_counter.iter();
                accounts.map(|(account, it)| (*account, totals(it).0)).collect()
            }
        };
        Ok(Some(self.write(slot, |present, dot| {
            let mut replaced = Dots::default();
            present.edit(|it| {
                for &(account, total) in &seen {
                    let (_, baseline) = it.resettable_counter.entry(account);
                    replaced.join(&baseline.replace(dot, total));
                }
            });
            let baseline = |(account, total): (Account, Tally)| {
                (account, (DotFun::default(), DotFun::one(dot, total)))
            };
            let resettable_counter = seen.into_iter().map(baseline).collect();
            (Cell::of(Parts { resettable_counter, ..Parts::default() }), replaced)
        })))
    }

    /// Turns a switch on or off. `None` when nothing needs to be said: nobody switched it on.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`].
    pub fn switch(
        &mut self,
        slot: Slot,
        wins: Wins,
        on: bool,
    ) -> Result<Option<Update>, WriteError> {
        self.writable(&slot, wins.kind(), 0)?;
        let mut parts = Parts::default();
        match wins {
            Wins::Enabling if !on => self.remove_kind(&slot, Kind::EnableWins),
            Wins::Enabling => Ok(Some(self.write(slot, |present, dot| {
                parts.enable_wins = DotSet::one(dot);
                (Cell::of(parts), present.edit(|it| it.enable_wins.replace(dot)))
            }))),
            Wins::Disabling => Ok(Some(self.write(slot, |present, dot| {
                let (it, nothing) = (DotSet::one(dot), DotSet::default());
                parts.disable_wins = if on { (it, nothing) } else { (nothing, it) };
                let now = parts.disable_wins.clone();
                let replaced = present.edit(|it| std::mem::replace(&mut it.disable_wins, now));
                (Cell::of(parts), dots_of(&replaced))
            }))),
        }
    }

    /// Writes the value at `path` of a nested map, in place of what was seen there: a value, or a
    /// whole map; and of values on the way to it.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`], [`WriteError::Path`], [`WriteError::TooLarge`] also when the map
    /// as a whole would become too large.
    pub fn put_at(
        &mut self,
        slot: Slot,
        path: Path,
        written: Written,
    ) -> Result<Update, WriteError> {
        check_path(&path)?;
        let held = self.get(&slot).map_or(0, Cell::bytes);
        let new = path.iter().map(Bytes::len).sum::<usize>() + written.value.len();
        self.writable(&slot, Kind::NestedMap, held + new)?;
        Ok(self.write(slot, |present, dot| {
            let replaced = present.edit(|it| {
                let replaced = seen_on(&it.nested_map, &path, true);
                let mut dots = dots_of(&replaced);
                for (at, _) in replaced.iter() {
                    it.nested_map.remove(at);
                }
                dots.join(&it.nested_map.entry(path.clone()).replace(dot, written.clone()));
                (dots, replaced)
            });
            let (dots, replaced) = replaced;
            let mut nested_map: DotMap<Path, _> = DotStore::<NodeTag>::emptied(&replaced);
            nested_map.set(path, DotFun::one(dot, written));
            (Cell::of(Parts { nested_map, ..Parts::default() }), dots)
        }))
    }

    /// Removes the value or map at `path` of a nested map, as far as it was seen here. `None` when
    /// there is nothing.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`], [`WriteError::Path`].
    pub fn remove_at(&mut self, slot: &Slot, path: &Path) -> Result<Option<Update>, WriteError> {
        check_path(path)?;
        self.writable(slot, Kind::NestedMap, 0)?;
        let Some(parts) = self.get(slot).and_then(Cell::parts) else { return Ok(None) };
        let nested_map = seen_on(&parts.nested_map, path, false);
        if nested_map.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.withdraw(slot, Cell::of(Parts { nested_map, ..Parts::default() }))))
    }

    /// Puts `text` in place of the characters of `range` of a text. `None` when that changes nothing.
    ///
    /// # Errors
    /// [`WriteError::WrongKind`], [`WriteError::Text`]; nothing was changed.
    pub fn splice_text(
        &mut self,
        slot: &Slot,
        range: Range<usize>,
        text: &str,
    ) -> Result<Option<Update>, WriteError> {
        self.writable(slot, Kind::Text, 0)?;
        let me = self.me();
        let nothing = TextStore::default();
        let present = self.get(slot).and_then(Cell::text).unwrap_or(&nothing);
        let chars = present.chars();
        if let Some(at) = [range.start, range.end].into_iter().find(|&at| at > chars) {
            return Err(TextError::OutOfRange { at, chars }.into());
        }
        // Behind the characters that go: an insert may find its bunch's end there and go on.
        let insertion = present.insertion(&me, range.end, text)?;
        let mut done = None;
        if insertion.dots() > 0 {
            done = Some(self.write_with(insertion.dots(), slot.clone(), |present, dot| {
                let text = present.edit(|it| it.text.insert(insertion, dot));
                (Cell::of(Parts { text, ..Parts::default() }), Dots::default())
            }));
        }
        if !range.is_empty() {
            let deleted = self.withdraw_in_place(slot, |present| {
                present.edit(|it| it.text.delete(range)).expect("the range was checked above")
            });
            match &mut done {
                Some(done) => done.join(&deleted),
                None => done = Some(deleted),
            }
        }
        Ok(done)
    }

    /// Makes a text read `text` by changing no more than what differs: what both begin and end with
    /// stays, with whatever others write in it meanwhile. `None` when it reads so already.
    ///
    /// # Errors
    /// As [`Store::splice_text`].
    pub fn replace_text(&mut self, slot: &Slot, text: &str) -> Result<Option<Update>, WriteError> {
        let present = self.get(slot).and_then(Cell::text).map(ToString::to_string);
        let splice = Splice::between(present.as_deref().unwrap_or_default(), text);
        self.splice_text(slot, splice.at..splice.at + splice.delete, &splice.insert)
    }
}

/// One change of a text: at a character, so many taken out, and these put in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Splice {
    /// Before which character, counted from 0.
    pub at: usize,
    /// How many characters go.
    pub delete: usize,
    /// What comes in their place.
    pub insert: String,
}

impl Splice {
    /// The one splice that makes `after` of `before`: all between what both begin and end with.
    #[must_use]
    pub fn between(before: &str, after: &str) -> Self {
        let same = before.chars().zip(after.chars()).take_while(|(a, b)| a == b);
        let at = same.clone().count();
        let bytes: usize = same.map(|(one, _)| one.len_utf8()).sum();
        let (old, new) = (&before[bytes..], &after[bytes..]);
        let tail = old.chars().rev().zip(new.chars().rev()).take_while(|(a, b)| a == b);
        let tail: usize = tail.map(|(one, _)| one.len_utf8()).sum();
        Self {
            at,
            delete: old[..old.len() - tail].chars().count(),
            insert: new[..new.len() - tail].to_owned(),
        }
    }
}

fn check_path(path: &Path) -> Result<(), WriteError> {
    let (keys, bytes) = (path.len(), path.iter().map(Bytes::len).sum());
    let fits = (1..=PATH_KEYS_MAX).contains(&keys) && bytes <= KEY_BYTES_MAX;
    if fits && !path.iter().any(Bytes::is_empty) {
        Ok(())
    } else {
        Err(WriteError::Path { keys, bytes })
    }
}

type Nested = DotMap<Path, DotFun<NodeTag, Written>>;

/// What is kept at `path` and in the map there; with `on_the_way` also the values that stand where
/// there has to be a map, and without what is at `path` itself, which the writer replaces.
fn seen_on(map: &Nested, path: &Path, on_the_way: bool) -> Nested {
    let below = map.range(std::ops::Bound::Included(path), std::ops::Bound::Unbounded);
    let below = below.take_while(|(at, _)| at.starts_with(path));
    let below = below.filter(|(at, _)| !on_the_way || at.len() > path.len());
    let above = (1..path.len()).filter(|_| on_the_way).filter_map(|keys| {
        let at: Path = path[..keys].to_vec();
        map.get(&at).map(|kept| (at, kept.clone()))
    });
    above.chain(below.map(|(at, kept)| (at.clone(), kept.clone()))).collect()
}

/// Kinds beyond registers, sets and maps.
impl ReplicaSet {
    /// Adds to a counter that only grows, and returns its value here.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn grow(&self, key: impl Into<Bytes>, by: u64) -> Result<u128, StateError> {
        let key = key.into();
        self.write(key.clone(), |store, slot| store.grow(slot, by).map(Some))?;
        Ok(self.get(&key).map_or(0, |cell| cell.grown()))
    }

    /// Adds to a counter that can be reset, and returns its value here.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn add_resettable(&self, key: impl Into<Bytes>, by: i64) -> Result<i128, StateError> {
        let key = key.into();
        self.write(key.clone(), |store, slot| store.add_resettable(slot, by).map(Some))?;
        Ok(self.get(&key).map_or(0, |cell| cell.since_reset()))
    }

    /// Sets a counter that can be reset back to zero, as far as it was seen here: what others add
    /// meanwhile counts. Returns its value here; `false` inside when nobody had added anything.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn reset(&self, key: impl Into<Bytes>) -> Result<bool, StateError> {
        self.write(key.into(), Store::reset)
    }

    /// Turns a switch on or off; `wins` says which of the two holds when both happen on two sides
    /// of a cut.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn switch(&self, key: impl Into<Bytes>, wins: Wins, on: bool) -> Result<(), StateError> {
        self.write(key.into(), |store, slot| store.switch(slot, wins, on)).map(drop)
    }

    /// Whether the switch `key`, of either kind, is on here.
    #[must_use]
    pub fn is_on(&self, key: &[u8]) -> bool {
        let cell = self.get(key);
        cell.is_some_and(|cell| cell.is_on(Wins::Enabling) || cell.is_on(Wins::Disabling))
    }

    /// Writes the value at `path` of a nested map, in place of a value or map seen there. Returns
    /// the version written. The whole map is one entry of the set, of at most a mebibyte.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn put_at<P: Into<Bytes>>(
        &self,
        key: impl Into<Bytes>,
        path: impl IntoIterator<Item = P>,
        value: impl Into<Bytes>,
    ) -> Result<HlcTimestamp, StateError> {
        let path = path.into_iter().map(Into::into).collect();
        let written = self.stamp(value.into(), None)?;
        let at = written.at;
        self.write(key.into(), |store, slot| store.put_at(slot, path, written).map(Some))?;
        Ok(at)
    }

    /// Removes the value or the whole map at `path` of a nested map, as far as it was seen here: a
    /// value written in it meanwhile stays. `false` when there is nothing.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn remove_at<P: Into<Bytes>>(
        &self,
        key: impl Into<Bytes>,
        path: impl IntoIterator<Item = P>,
    ) -> Result<bool, StateError> {
        let path = path.into_iter().map(Into::into).collect();
        self.write(key.into(), |store, slot| store.remove_at(&slot, &path))
    }

    /// Inserts `text` into the text `key` before the character `at`, counted from 0 in the text as
    /// it stands here.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed. [`TextError`] inside it for an index beyond the end,
    /// and for a text that would become too long.
    pub fn insert_text(
        &self,
        key: impl Into<Bytes>,
        at: usize,
        text: &str,
    ) -> Result<(), StateError> {
        self.splice_text(key, at..at, text)
    }

    /// Deletes the characters of `range` of the text `key`, counted in the text as it stands here.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn delete_text(
        &self,
        key: impl Into<Bytes>,
        range: Range<usize>,
    ) -> Result<(), StateError> {
        self.splice_text(key, range, "")
    }

    /// Puts `text` in place of the characters of `range` of the text `key`, as one change.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn splice_text(
        &self,
        key: impl Into<Bytes>,
        range: Range<usize>,
        text: &str,
    ) -> Result<(), StateError> {
        self.write(key.into(), |store, slot| store.splice_text(&slot, range, text)).map(drop)
    }

    /// Appends `text` to the text `key`.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn append_text(&self, key: impl Into<Bytes>, text: &str) -> Result<(), StateError> {
        let append = |store: &mut Store, slot: Slot| {
            let end = store.get(&slot).and_then(Cell::text).map_or(0, TextStore::chars);
            store.splice_text(&slot, end..end, text)
        };
        self.write(key.into(), append).map(drop)
    }

    /// Makes the text `key` read `text`. What both begin and end with stays as it is, so what
    /// others write there meanwhile stays in its place.
    ///
    /// # Errors
    /// [`StateError`]; nothing was changed.
    pub fn replace_text(&self, key: impl Into<Bytes>, text: &str) -> Result<(), StateError> {
        self.write(key.into(), |store, slot| store.replace_text(&slot, text)).map(drop)
    }

    /// The text `key` as it stands here; empty when there is none.
    #[must_use]
    pub fn text(&self, key: &[u8]) -> String {
        let cell = self.get(key);
        cell.as_ref().and_then(|cell| cell.text()).map(ToString::to_string).unwrap_or_default()
    }
}
