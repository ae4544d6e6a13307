//! What one key holds: a value of one kind, and the rules for when two sides chose differently.

use std::{collections::BTreeSet, fmt};

use bytes::Bytes;
use purlin_core::{Dot, HlcTimestamp, WallTime, hlc::NodeTag};
use purlin_crdt::{DotFun, DotMap, DotSet, DotStore, Knows, store::Scope};
use serde::{Deserialize, Serialize};

/// The kinds of value a key may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One value; the later write by hybrid time wins.
    Register,
    /// Every concurrent value.
    MultiValue,
    /// A number that is added to.
    Counter,
    /// A set in which an add wins over a concurrent remove.
    Set,
    /// Fields with values, each like a register; an update wins over a concurrent remove.
    Map,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Register => "register",
            Self::MultiValue => "multi_value",
            Self::Counter => "counter",
            Self::Set => "set",
            Self::Map => "map",
        })
    }
}

/// A value with the time of its write and, for ephemeral ones, of its end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Written {
    /// When it was written, and by whom.
    pub at: HlcTimestamp,
    /// From when on it no longer counts.
    pub expires: Option<WallTime>,
    /// The value.
    pub value: Bytes,
}

/// The dots and values under one key.
///
/// All kinds stand side by side, mostly empty: when two sides of a partition give one new key two
/// kinds, both survive the heal and can be seen, instead of one being lost. A writer never mixes
/// kinds knowingly.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cell {
    pub(crate) register: DotFun<NodeTag, Written>,
    pub(crate) multi_value: DotFun<NodeTag, Bytes>,
    pub(crate) counter: DotFun<NodeTag, i64>,
    pub(crate) set: DotMap<Bytes, DotSet<NodeTag>>,
    pub(crate) map: DotMap<Bytes, DotFun<NodeTag, Written>>,
}

/// Calls `$each` for every part of a cell.
macro_rules! each {
    ($cell:expr, |$part:ident| $each:expr) => {{
        let Cell { register, multi_value, counter, set, map } = $cell;
        {
            let $part = register;
            $each
        };
        {
            let $part = multi_value;
            $each
        };
        {
            let $part = counter;
            $each
        };
        {
            let $part = set;
            $each
        };
        {
            let $part = map;
            $each
        };
    }};
}

/// Calls `$each` for every part of two cells.
macro_rules! each_two {
    ($one:expr, $two:expr, |$a:ident, $b:ident| $each:expr) => {{
        let (one, two) = ($one, $two);
        {
            let ($a, $b) = (&mut one.register, &two.register);
            $each
        };
        {
            let ($a, $b) = (&mut one.multi_value, &two.multi_value);
            $each
        };
        {
            let ($a, $b) = (&mut one.counter, &two.counter);
            $each
        };
        {
            let ($a, $b) = (&mut one.set, &two.set);
            $each
        };
        {
            let ($a, $b) = (&mut one.map, &two.map);
            $each
        };
    }};
}

impl DotStore<NodeTag> for Cell {
    fn is_empty(&self) -> bool {
        let mut empty = true;
        each!(self, |part| empty &= DotStore::<NodeTag>::is_empty(part));
        empty
    }

    fn dots(&self, visit: &mut dyn FnMut(&Dot<NodeTag>)) {
        each!(self, |part| part.dots(visit));
    }

    fn join(
        &mut self,
        ours: &impl Knows<NodeTag>,
        other: &Self,
        theirs: &impl Knows<NodeTag>,
        scope: Scope,
    ) {
        each_two!(self, other, |a, b| a.join(ours, b, theirs, scope));
    }

    fn merge(&mut self, ours: &impl Knows<NodeTag>, other: &Self, theirs: &impl Knows<NodeTag>) {
        each_two!(self, other, |a, b| a.merge(ours, b, theirs));
    }

    fn emptied(&self) -> Self {
        Self {
            set: DotStore::<NodeTag>::emptied(&self.set),
            map: DotStore::<NodeTag>::emptied(&self.map),
            ..Self::default()
        }
    }
}

impl Cell {
    /// Which kinds it holds: one, unless a partition gave the key two.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        let held = [
            (Kind::Register, !DotStore::is_empty(&self.register)),
            (Kind::MultiValue, !DotStore::is_empty(&self.multi_value)),
            (Kind::Counter, !DotStore::is_empty(&self.counter)),
            (Kind::Set, !self.set.is_empty()),
            (Kind::Map, !self.map.is_empty()),
        ];
        held.into_iter().filter_map(|(kind, held)| held.then_some(kind))
    }

    /// The register's value: of concurrent writes the latest.
    #[must_use]
    pub fn register(&self) -> Option<&Written> {
        self.register.values().max()
    }

    /// Every concurrent write of the register; [`Cell::register`] is the latest of them.
    pub fn concurrent(&self) -> impl Iterator<Item = &Written> {
        self.register.values()
    }

    /// Every concurrent value.
    pub fn values(&self) -> impl Iterator<Item = &Bytes> {
        self.multi_value.values()
    }

    /// The counter's value; wide enough not to overflow.
    #[must_use]
    pub fn count(&self) -> i128 {
        self.counter.values().map(|&count| i128::from(count)).sum()
    }

    /// The set's elements, in order.
    pub fn elements(&self) -> impl Iterator<Item = &Bytes> {
        self.set.iter().map(|(element, _)| element)
    }

    /// The map's fields with their latest values, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&Bytes, &Written)> {
        self.map.iter().filter_map(|(field, written)| Some((field, written.values().max()?)))
    }

    /// The value of `field` of the map.
    #[must_use]
    pub fn field(&self, field: &[u8]) -> Option<&Written> {
        self.map.get(field)?.values().max()
    }

    /// Whether `element` is in the set.
    #[must_use]
    pub fn contains(&self, element: &[u8]) -> bool {
        self.set.get(element).is_some()
    }

    /// About how many bytes its values have, field names and elements included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let written = |it: &Written| it.value.len();
        let registers: usize = self.register.values().map(written).sum();
        let values: usize = self.multi_value.values().map(Bytes::len).sum();
        let elements: usize = self.elements().map(Bytes::len).sum();
        let fields: usize = self.fields().map(|(field, it)| field.len() + written(it)).sum();
        registers + values + elements + fields + 8 * self.counter.values().count()
    }

    /// When the latest write in it was made; `None` for kinds that keep no time.
    #[must_use]
    pub fn last_written(&self) -> Option<HlcTimestamp> {
        let registers = self.register.values();
        registers.chain(self.fields().map(|(_, it)| it)).map(|written| written.at).max()
    }

    /// Whose writes it holds.
    #[must_use]
    pub fn writers(&self) -> BTreeSet<NodeTag> {
        let mut writers = BTreeSet::new();
        self.dots(&mut |dot| {
            writers.insert(dot.node);
        });
        writers
    }

    /// What it holds of one kind.
    pub(crate) fn only(&self, kind: Kind) -> Self {
        let nothing = Self::default();
        match kind {
            Kind::Register => Self { register: self.register.clone(), ..nothing },
            Kind::MultiValue => Self { multi_value: self.multi_value.clone(), ..nothing },
            Kind::Counter => Self { counter: self.counter.clone(), ..nothing },
            Kind::Set => Self { set: self.set.clone(), ..nothing },
            Kind::Map => Self { map: self.map.clone(), ..nothing },
        }
    }
}
