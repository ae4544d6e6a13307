//! What one key holds: a value of one kind, and the rules for when two sides chose differently.

use std::{collections::BTreeSet, fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use purlin_core::{Dot, HlcTimestamp, WallTime, hlc::NodeTag};
use purlin_crdt::{DotFun, DotMap, DotSet, DotStore, Knows, TextStore, store::Scope};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

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
    /// One write of a register and nothing else: the counter of its dot, whose life is the one that
    /// its time names.
    One(u64, Written),
    /// Anything else.
    Parts(Box<Parts>),
}

fn dot_of(counter: u64, written: &Written) -> Dot<NodeTag> {
    Dot { node: written.at.node(), counter }
}

/// The table of kinds. A row is a word, and the part of a cell that keeps the kind; everything that
/// treats all kinds alike is made from it.
macro_rules! kinds {
    ($(
        $(#[doc = $doc:literal])*
        $kind:ident = $word:literal $(, $part:ident: $store:ty)?;
    )*) => {
        /// The kinds of value a key or a name may hold.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Kind {
            $($(#[doc = $doc])* $kind,)*
        }

        impl Kind {
            /// Every kind there is.
            pub const ALL: &'static [Self] = &[$(Self::$kind,)*];

            /// The word for it.
            #[must_use]
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$kind => $word,)*
                }
            }
        }

        /// Every kind that one cell can hold, side by side.
        #[derive(Debug, Clone, PartialEq, Eq, Default)]
        pub(crate) struct Parts {
            $($(pub(crate) $part: $store,)?)*
        }

        /// A part on its way: only those that hold something travel.
        #[derive(Serialize)]
        enum PartOut<'a> {
            $($($kind(&'a $store),)?)*
        }

        /// A part that arrived.
        #[derive(Deserialize)]
        enum PartIn {
            $($($kind($store),)?)*
        }

        impl Parts {
            /// What it holds of one kind.
            fn only(&self, kind: Kind) -> Self {
                let mut only = Self::default();
                match kind {
                    $(Kind::$kind => { $(only.$part = self.$part.clone();)? })*
                }
                only
            }

            fn kinds(&self) -> Vec<Kind> {
                let mut kinds = Vec::new();
                $($(
                    if !DotStore::<NodeTag>::is_empty(&self.$part) {
                        kinds.push(Kind::$kind);
                    }
                )?)*
                kinds
            }
        }

        impl Serialize for Parts {
            fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
                let mut parts = Vec::new();
                $($(
                    if !DotStore::<NodeTag>::is_empty(&self.$part) {
                        parts.push(PartOut::$kind(&self.$part));
                    }
                )?)*
                parts.serialize(output)
            }
        }

        impl<'de> Deserialize<'de> for Parts {
            /// Refuses parts that repeat, stand out of order or are empty: equal cells must have
            /// one form.
            fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
                let mut parts = Self::default();
                let mut held: Vec<Kind> = Vec::new();
                for part in Vec::<PartIn>::deserialize(input)? {
                    match part {
                        $($(PartIn::$kind($part) => {
                            held.push(Kind::$kind);
                            parts.$part = $part;
                        })?)*
                    }
                }
                if parts.kinds() == held {
                    Ok(parts)
                } else {
                    Err(serde::de::Error::custom("parts of a cell repeat or stand out of order"))
                }
            }
        }

        impl DotStore<NodeTag> for Parts {
            fn is_empty(&self) -> bool {
                true $($(&& DotStore::<NodeTag>::is_empty(&self.$part))?)*
            }

            fn dots(&self, visit: &mut dyn FnMut(&Dot<NodeTag>)) {
                $($(self.$part.dots(visit);)?)*
            }

            fn join(
                &mut self,
                ours: &impl Knows<NodeTag>,
                other: &Self,
                theirs: &impl Knows<NodeTag>,
                scope: Scope,
            ) {
                $($(self.$part.join(ours, &other.$part, theirs, scope);)?)*
            }

            fn merge(
                &mut self,
                ours: &impl Knows<NodeTag>,
                other: &Self,
                theirs: &impl Knows<NodeTag>,
            ) {
                $($(self.$part.merge(ours, &other.$part, theirs);)?)*
            }

            fn emptied(&self) -> Self {
                Self { $($($part: DotStore::<NodeTag>::emptied(&self.$part),)?)* }
            }
        }
    };
}

kinds! {
    /// One value; the later write by hybrid time wins.
    Register = "register", register: DotFun<NodeTag, Written>;
    /// Every concurrent value.
    MultiValue = "multi_value", multi_value: DotFun<NodeTag, Bytes>;
    /// A number that is added to and taken from.
    Counter = "counter", counter: DotFun<NodeTag, i64>;
    /// A set in which an add wins over a concurrent remove.
    Set = "set", set: DotMap<Bytes, DotSet<NodeTag>>;
    /// Fields with values, each like a register; an update wins over a concurrent remove.
    Map = "map", map: DotMap<Bytes, DotFun<NodeTag, Written>>;
    /// A number that only grows.
    GrowCounter = "grow_counter", grow_counter: DotFun<NodeTag, u64>;
    /// A counter that can be set back to zero; what others add meanwhile counts.
    ResettableCounter = "resettable_counter", resettable_counter: DotMap<Account, Tallies>;
    /// A set that only grows. Its elements are keys of their own.
    GrowSet = "grow_set";
    /// A set in which a remove wins over a concurrent add. Its elements are keys of their own.
    RemoveWinsSet = "remove_wins_set";
    /// A switch in which enabling wins over concurrent disabling.
    EnableWins = "enable_wins", enable_wins: DotSet<NodeTag>;
    /// A switch in which disabling wins over concurrent enabling.
    DisableWins = "disable_wins", disable_wins: (DotSet<NodeTag>, DotSet<NodeTag>);
    /// Maps in maps; an update wins over a concurrent remove of any map it is in.
    NestedMap = "nested_map", nested_map: DotMap<Path, DotFun<NodeTag, Written>>;
    /// Text that several people write at once.
    Text = "text", text: TextStore<NodeTag>;
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// There is no kind of that name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no kind {0:?}")]
pub struct UnknownKind(pub String);

impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(word: &str) -> Result<Self, UnknownKind> {
        let known = Self::ALL.iter().find(|kind| kind.word() == word);
        known.copied().ok_or_else(|| UnknownKind(word.to_owned()))
    }
}

/// Which change of a switch wins when both happen on two sides of a cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wins {
    /// Enabling: for what must not be missed, such as an alarm.
    Enabling,
    /// Disabling: for what must stop when anybody says so.
    Disabling,
}

impl Wins {
    /// The kind of such a switch.
    #[must_use]
    pub fn kind(self) -> Kind {
        match self {
            Self::Enabling => Kind::EnableWins,
            Self::Disabling => Kind::DisableWins,
        }
    }
}

/// Where a value stands in a nested map: the key in the outermost map first.
pub type Path = Vec<Bytes>;

/// What one life added to a resettable counter since it first did, named by its first dot. A life
/// whose numbers were removed begins another account, so that no reset of the old one touches it.
pub(crate) type Account = (NodeTag, u64);

/// What was added and taken, and how much of each a reset has seen. Both only grow.
pub(crate) type Tallies = (DotFun<NodeTag, Tally>, DotFun<NodeTag, Tally>);

/// Added, and taken.
pub(crate) type Tally = (u64, u64);

impl Parts {
    /// The cell that holds this, in its one form.
    fn shaped(self) -> Cell {
        if DotStore::is_empty(&self) {
            return Cell(None);
        }
        let is_register = self.kinds() == [Kind::Register];
        let mut written = self.register.iter();
        let shape = match (written.next(), written.next()) {
            (Some((&dot, written)), None) if is_register && dot.node == written.at.node() => {
                Shape::One(dot.counter, written.clone())
            }
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
            Some(Shape::One(counter, written)) => visit(&dot_of(*counter, written)),
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
        self.parts().map_or_else(Self::default, |parts| parts.emptied().shaped())
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
        if dot.node == written.at.node() {
            return Self(Some(Arc::new(Shape::One(dot.counter, written))));
        }
        Parts { register: DotFun::one(dot, written), ..Parts::default() }.shaped()
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
    pub(crate) fn as_one(&self) -> Option<(Dot<NodeTag>, &Written)> {
        match self.0.as_deref() {
            Some(Shape::One(counter, written)) => Some((dot_of(*counter, written), written)),
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
            Some(Shape::One(counter, written)) => {
                let dot = dot_of(counter, &written);
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
        let keeps = mine.is_some_and(|dot| !theirs.contains(&dot));
        let takes = heard.is_some_and(|dot| !ours.contains(&dot));
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
        let one = self.as_one().map(|_| Kind::Register);
        one.into_iter().chain(self.parts().into_iter().flat_map(Parts::kinds))
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
        self.parts().into_iter().flat_map(|parts| latest_of_each(&parts.counter)).copied()
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

    /// The value of the counter that only grows.
    #[must_use]
    pub fn grown(&self) -> u128 {
        let counts = self.parts().into_iter().flat_map(|parts| latest_of_each(&parts.grow_counter));
        counts.map(|&count| u128::from(count)).sum()
    }

    /// The value of the resettable counter: what was added since the last reset, net.
    #[must_use]
    pub fn since_reset(&self) -> i128 {
        let accounts = self.parts().into_iter().flat_map(|parts| parts.resettable_counter.iter());
        accounts
            .map(|(_, tallies)| {
                let (total, seen) = totals(tallies);
                i128::from(total.0 - seen.0) - i128::from(total.1 - seen.1)
            })
            .sum()
    }

    /// Whether the switch of that kind is on. A switch nobody touched is off.
    #[must_use]
    pub fn is_on(&self, wins: Wins) -> bool {
        let Some(parts) = self.parts() else { return false };
        let (enables, disables) = &parts.disable_wins;
        match wins {
            Wins::Enabling => !DotStore::is_empty(&parts.enable_wins),
            Wins::Disabling => !DotStore::is_empty(enables) && DotStore::is_empty(disables),
        }
    }

    /// The values of the nested map with their paths, in order.
    pub fn leaves(&self) -> impl Iterator<Item = (&Path, &Written)> {
        let leaves = self.parts().into_iter().flat_map(|parts| parts.nested_map.iter());
        leaves.filter_map(|(path, written)| Some((path, written.values().max()?)))
    }

    /// The value at `path` of the nested map.
    #[must_use]
    pub fn leaf(&self, path: &Path) -> Option<&Written> {
        self.parts()?.nested_map.get(path)?.values().max()
    }

    /// The text. `None` when there is none; text whose characters were all deleted is empty.
    #[must_use]
    pub fn text(&self) -> Option<&TextStore<NodeTag>> {
        self.parts().map(|parts| &parts.text).filter(|text| !DotStore::is_empty(*text))
    }

    /// Every write in it that has a time.
    pub(crate) fn writes(&self) -> impl Iterator<Item = &Written> {
        let fields = self.parts().into_iter().flat_map(|parts| parts.map.iter());
        let leaves = self.parts().into_iter().flat_map(|parts| parts.nested_map.iter());
        let inner = fields.map(|(_, it)| it).chain(leaves.map(|(_, it)| it));
        self.concurrent().chain(inner.flat_map(DotFun::values))
    }

    /// About how many bytes its values have, field names and elements included.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let values: usize = self.values().map(Bytes::len).sum();
        let elements: usize = self.elements().map(Bytes::len).sum();
        let fields: usize = self.fields().map(|(field, _)| field.len()).sum();
        let paths: usize = self.leaves().flat_map(|(path, _)| path).map(Bytes::len).sum();
        let written: usize = self.writes().map(|it| it.value.len()).sum();
        let text = self.text().map_or(0, TextStore::bytes);
        let numbers = self.parts().map_or(0, |parts| {
            parts.counter.values().count()
                + parts.grow_counter.values().count()
                + 4 * parts.resettable_counter.len()
        });
        values + elements + fields + paths + written + text + 8 * numbers
    }

    /// How many bytes the longest of its values, elements and field names has.
    pub(crate) fn longest(&self) -> usize {
        let names = self.elements().map(Bytes::len).chain(self.fields().map(|(it, _)| it.len()));
        let values = self.values().map(Bytes::len).chain(self.writes().map(|it| it.value.len()));
        names.chain(values).max().unwrap_or(0)
    }

    /// When the latest write in it was made; `None` for kinds that keep no time.
    #[must_use]
    pub fn last_written(&self) -> Option<HlcTimestamp> {
        self.writes().map(|written| written.at).max()
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
        parts.only(kind).shaped()
    }
}

/// The latest number of each life. It holds all before it, of which one may still stand beside it
/// here: when it came by another way, and the writes between the two have not arrived.
fn latest_of_each<V>(numbers: &DotFun<NodeTag, V>) -> impl Iterator<Item = &V> {
    let mut numbers = numbers.iter().peekable();
    std::iter::from_fn(move || {
        loop {
            let (dot, number) = numbers.next()?;
            if numbers.peek().is_none_or(|(next, _)| next.node != dot.node) {
                return Some(number);
            }
        }
    })
}

/// What an account holds: the total, and how much of it a reset has seen. A reset that arrives
/// before what it saw proves that the total had come that far.
pub(crate) fn totals((total, seen): &Tallies) -> (Tally, Tally) {
    let most = |of: &DotFun<NodeTag, Tally>| {
        of.values().fold((0, 0), |most: Tally, &(up, down)| (most.0.max(up), most.1.max(down)))
    };
    let (total, seen) = (most(total), most(seen));
    ((total.0.max(seen.0), total.1.max(seen.1)), seen)
}
