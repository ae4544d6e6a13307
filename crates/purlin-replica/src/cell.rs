//! What one key holds: a value of one kind, and the rules for when two sides chose differently.

use std::{collections::BTreeSet, fmt, sync::Arc};

use bytes::Bytes;
use purlin_core::{Dot, HlcTimestamp, WallTime, hlc::NodeTag};
use purlin_crdt::{DotFun, DotMap, DotSet, DotStore, Knows, store::Scope};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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

/// The dots and values under one key. Cheap to clone: clones share what they hold.
///
/// All kinds stand side by side, mostly empty: when two sides of a partition give one new key two
/// kinds, both survive the heal and can be seen, instead of one being lost. A writer never mixes
/// kinds knowingly.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Cell(Option<Arc<Shape>>);

/// What nearly every key holds takes no more than it needs; all the rest is boxed. Equal cells have
/// one form: see [`Parts::shaped`].
#[derive(Debug, Clone, PartialEq, Eq)]
enum Shape {
    /// One write of a register and nothing else.
    One(Dot<NodeTag>, Written),
    /// Anything else.
    Parts(Box<Parts>),
}

/// Every kind side by side.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Parts {
    pub(crate) register: DotFun<NodeTag, Written>,
    pub(crate) multi_value: DotFun<NodeTag, Bytes>,
    pub(crate) counter: DotFun<NodeTag, i64>,
    pub(crate) set: DotMap<Bytes, DotSet<NodeTag>>,
    pub(crate) map: DotMap<Bytes, DotFun<NodeTag, Written>>,
}

/// Calls `$each` for every part of a cell.
macro_rules! each {
    ($cell:expr, |$part:ident| $each:expr) => {{
        let Parts { register, multi_value, counter, set, map } = $cell;
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

impl DotStore<NodeTag> for Parts {
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

impl Parts {
    /// The cell that holds this, in its one form.
    fn shaped(self) -> Cell {
        if DotStore::is_empty(&self) {
            return Cell(None);
        }
        let is_register = DotStore::is_empty(&self.multi_value)
            && DotStore::is_empty(&self.counter)
            && self.set.is_empty()
            && self.map.is_empty();
        let mut written = self.register.iter();
        let shape = match (written.next(), written.next()) {
            (Some((&dot, written)), None) if is_register => Shape::One(dot, written.clone()),
            _ => {
                drop(written);
                Shape::Parts(Box::new(self))
            }
        };
        Cell(Some(Arc::new(shape)))
    }
}

impl DotStore<NodeTag> for Cell {
    fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    fn dots(&self, visit: &mut dyn FnMut(&Dot<NodeTag>)) {
        match self.0.as_deref() {
            None => {}
            Some(Shape::One(dot, _)) => visit(dot),
            Some(Shape::Parts(parts)) => parts.dots(visit),
        }
    }

    fn join(
        &mut self,
        ours: &impl Knows<NodeTag>,
        other: &Self,
        theirs: &impl Knows<NodeTag>,
        scope: Scope,
    ) {
        if !self.join_ones(ours, other, theirs) {
            let other = other.clone().into_parts();
            self.edit(|parts| parts.join(ours, &other, theirs, scope));
        }
    }

    fn merge(&mut self, ours: &impl Knows<NodeTag>, other: &Self, theirs: &impl Knows<NodeTag>) {
        if !self.join_ones(ours, other, theirs) {
            let other = other.clone().into_parts();
            self.edit(|parts| parts.merge(ours, &other, theirs));
        }
    }

    fn emptied(&self) -> Self {
        self.parts().map_or_else(Self::default, |parts| {
            let set = DotStore::<NodeTag>::emptied(&parts.set);
            let map = DotStore::<NodeTag>::emptied(&parts.map);
            Parts { set, map, ..Parts::default() }.shaped()
        })
    }
}

impl fmt::Debug for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_deref() {
            None => f.write_str("Nothing"),
            Some(shape) => shape.fmt(f),
        }
    }
}

impl Serialize for Cell {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        self.clone().into_parts().serialize(output)
    }
}

impl<'de> Deserialize<'de> for Cell {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        Parts::deserialize(input).map(Parts::shaped)
    }
}

/// What is kept and what is changed.
impl Cell {
    /// A register with one write.
    pub(crate) fn one(dot: Dot<NodeTag>, written: Written) -> Self {
        Self(Some(Arc::new(Shape::One(dot, written))))
    }

    /// A cell of these parts.
    pub(crate) fn of(parts: Parts) -> Self {
        parts.shaped()
    }

    /// Whether both are clones of one cell: equal without looking.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        match (&self.0, &other.0) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// Changes its parts.
    pub(crate) fn edit<T>(&mut self, change: impl FnOnce(&mut Parts) -> T) -> T {
        let mut parts = std::mem::take(self).into_parts();
        let done = change(&mut parts);
        *self = parts.shaped();
        done
    }

    /// The one write of a register, if it is all there is.
    pub(crate) fn as_one(&self) -> Option<(&Dot<NodeTag>, &Written)> {
        match self.0.as_deref() {
            Some(Shape::One(dot, written)) => Some((dot, written)),
            Some(Shape::Parts(_)) | None => None,
        }
    }

    /// Its parts, unless it is empty or one write of a register.
    pub(crate) fn parts(&self) -> Option<&Parts> {
        match self.0.as_deref() {
            Some(Shape::Parts(parts)) => Some(parts),
            Some(Shape::One(..)) | None => None,
        }
    }

    fn into_parts(self) -> Parts {
        match self.0.map(Arc::unwrap_or_clone) {
            None => Parts::default(),
            Some(Shape::One(dot, written)) => {
                Parts { register: DotFun::one(dot, written), ..Parts::default() }
            }
            Some(Shape::Parts(parts)) => *parts,
        }
    }

    /// Joins two cells of which each is empty or one write of a register, which nearly all are:
    /// without a copy. `false` when one of them is anything else; nothing was done.
    fn join_ones(
        &mut self,
        ours: &impl Knows<NodeTag>,
        other: &Self,
        theirs: &impl Knows<NodeTag>,
    ) -> bool {
        if self.parts().is_some() || other.parts().is_some() {
            return false;
        }
        let (mine, heard) = (self.as_one().map(|(dot, _)| dot), other.as_one().map(|(dot, _)| dot));
        let keeps = mine.is_some_and(|dot| !theirs.contains(dot));
        let takes = heard.is_some_and(|dot| !ours.contains(dot));
        match (mine, heard) {
            (Some(mine), Some(heard)) if mine == heard => {}
            (Some(_), Some(_)) if keeps && takes => return false,
            _ if keeps => {}
            _ if takes => *self = other.clone(),
            _ => *self = Self::default(),
        }
        true
    }
}

impl Cell {
    /// Which kinds it holds: one, unless a partition gave the key two.
    pub fn kinds(&self) -> impl Iterator<Item = Kind> {
        let parts = self.parts();
        let held = |has: fn(&Parts) -> bool| parts.is_some_and(has);
        let held = [
            (
                Kind::Register,
                self.as_one().is_some() || held(|it| !DotStore::is_empty(&it.register)),
            ),
            (Kind::MultiValue, held(|it| !DotStore::is_empty(&it.multi_value))),
            (Kind::Counter, held(|it| !DotStore::is_empty(&it.counter))),
            (Kind::Set, held(|it| !it.set.is_empty())),
            (Kind::Map, held(|it| !it.map.is_empty())),
        ];
        held.into_iter().filter_map(|(kind, held)| held.then_some(kind))
    }

    /// The register's value: of concurrent writes the latest.
    #[must_use]
    pub fn register(&self) -> Option<&Written> {
        self.concurrent().max()
    }

    /// Every concurrent write of the register; [`Cell::register`] is the latest of them.
    pub fn concurrent(&self) -> impl Iterator<Item = &Written> {
        let one = self.as_one().map(|(_, written)| written);
        one.into_iter().chain(self.parts().into_iter().flat_map(|parts| parts.register.values()))
    }

    /// Every concurrent value.
    pub fn values(&self) -> impl Iterator<Item = &Bytes> {
        self.parts().into_iter().flat_map(|parts| parts.multi_value.values())
    }

    /// The counter's value; wide enough not to overflow.
    #[must_use]
    pub fn count(&self) -> i128 {
        self.counts().map(i128::from).sum()
    }

    fn counts(&self) -> impl Iterator<Item = i64> {
        self.parts().into_iter().flat_map(|parts| parts.counter.values()).copied()
    }

    /// The set's elements, in order.
    pub fn elements(&self) -> impl Iterator<Item = &Bytes> {
        let parts = self.parts().into_iter();
        parts.flat_map(|parts| parts.set.iter()).map(|(element, _)| element)
    }

    /// The map's fields with their latest values, in order.
    pub fn fields(&self) -> impl Iterator<Item = (&Bytes, &Written)> {
        let fields = self.parts().into_iter().flat_map(|parts| parts.map.iter());
        fields.filter_map(|(field, written)| Some((field, written.values().max()?)))
    }

    /// The value of `field` of the map.
    #[must_use]
    pub fn field(&self, field: &[u8]) -> Option<&Written> {
        self.parts()?.map.get(field)?.values().max()
    }

    /// Whether `element` is in the set.
    #[must_use]
    pub fn contains(&self, element: &[u8]) -> bool {
        self.parts().is_some_and(|parts| parts.set.get(element).is_some())
    }

    /// About how many bytes its values have, field names and elements included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let written = |it: &Written| it.value.len();
        let registers: usize = self.concurrent().map(written).sum();
        let values: usize = self.values().map(Bytes::len).sum();
        let elements: usize = self.elements().map(Bytes::len).sum();
        let fields: usize = self.fields().map(|(field, it)| field.len() + written(it)).sum();
        registers + values + elements + fields + 8 * self.counts().count()
    }

    /// When the latest write in it was made; `None` for kinds that keep no time.
    #[must_use]
    pub fn last_written(&self) -> Option<HlcTimestamp> {
        self.concurrent().chain(self.fields().map(|(_, it)| it)).map(|written| written.at).max()
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
        let Some(parts) = self.parts() else {
            return if kind == Kind::Register { self.clone() } else { Self::default() };
        };
        let nothing = Parts::default();
        let only = match kind {
            Kind::Register => Parts { register: parts.register.clone(), ..nothing },
            Kind::MultiValue => Parts { multi_value: parts.multi_value.clone(), ..nothing },
            Kind::Counter => Parts { counter: parts.counter.clone(), ..nothing },
            Kind::Set => Parts { set: parts.set.clone(), ..nothing },
            Kind::Map => Parts { map: parts.map.clone(), ..nothing },
        };
        only.shaped()
    }
}
