//! Text that several people write at once.
//!
//! A position must mean the same place everywhere, whatever was typed or deleted meanwhile, so it
//! cannot be a number. Here it is a place in a tree: characters that one life types behind each
//! other form a *bunch*, a bunch hangs before or after a character of another bunch, and reading
//! the tree from left to right gives the text. A character is kept under a dot of its own, so the
//! one rule of [`crate::store`] decides every join and a deleted character leaves nothing but its
//! place in the context. What stays of deleted text is its bunches, about one for every jump of a
//! cursor, until [`Text::prune`] is told that nobody can still hang something there.
//!
//! # Source
//! Weidner, Kleppmann 2023, "The Art of the Fugue" (the tree, and non-interleaving); Weidner's
//! list-positions (bunches). Ours: dots as characters' names, so that deletes need no marks;
//! bunches that grow to the left, so that a text written from its end does not make a deep tree;
//! 64 characters together as one bit mask and one string.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    sync::{Arc, OnceLock},
};

use purlin_core::Dot;
use serde::{Deserialize, Serialize};

use crate::{
    Causal, CausalContext, Delta, DotStore, Knows, Replica,
    context::{Dots, WINDOW},
    store::Scope,
};

/// The most bytes a text may have before another insert is refused. Two sides of a partition may
/// together exceed it; nothing is lost then.
pub const TEXT_BYTES_MAX: usize = 1 << 20;

/// The most bunches a text may have before an insert that needs another is refused.
pub const BUNCHES_MAX: usize = 1 << 16;

/// Windows whose dots have 64 bits.
const WINDOW_MAX: u64 = u64::MAX / WINDOW;

/// Why a text was not changed. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TextError {
    /// The index is beyond the end, as the text stands here. Read it again.
    #[error("character index {at} is beyond the end of a text of {chars} characters")]
    OutOfRange {
        /// The index asked for.
        at: usize,
        /// How many characters there are.
        chars: usize,
    },
    /// The text would become too long. Begin another one.
    #[error("text of {bytes} bytes exceeds limit {TEXT_BYTES_MAX}")]
    TooLong {
        /// How long it would be.
        bytes: usize,
    },
    /// The text was written in too many places. Remove it and write it anew.
    #[error("text written in {bunches} places reaches limit {BUNCHES_MAX}")]
    TooManyBunches {
        /// In how many.
        bunches: usize,
    },
}

/// On which side of a character a bunch hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Side {
    Before,
    After,
}

/// Where the next character of a bunch goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Grows {
    Right,
    Left,
}

/// Beside which character a bunch hangs; the character need not be there any more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Anchor<R> {
    bunch: Dot<R>,
    at: u64,
    side: Side,
}

/// What a bunch is, for ever: its name is the dot it is kept under.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Bunch<R> {
    /// `None` at the root: the text was empty when it began.
    anchor: Option<Anchor<R>>,
    grows: Grows,
}

/// The characters of one bunch whose dots are in one window, by dot.
///
/// Shared, for a text is cloned with every write that readers are shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Run {
    mask: u64,
    chars: Arc<str>,
}

impl Serialize for Run {
    fn serialize<S: serde::Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        (self.mask, &*self.chars).serialize(output)
    }
}

impl<'de> Deserialize<'de> for Run {
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let (mask, chars) = <(u64, String)>::deserialize(input)?;
        Ok(Self { mask, chars: chars.into() })
    }
}

impl Run {
    fn is_well_formed(&self) -> bool {
        let chars = self.chars.chars().count();
        self.mask != 0 && u32::try_from(chars).is_ok_and(|chars| chars == self.mask.count_ones())
    }

    fn iter(&self) -> impl Iterator<Item = (u64, char)> {
        (0..WINDOW).filter(|bit| self.mask & (1 << bit) != 0).zip(self.chars.chars())
    }

    /// The characters of `mask` alone.
    fn only(&self, mask: u64) -> Self {
        let chars = self.iter().filter(|&(bit, _)| mask & (1 << bit) != 0).map(|(_, it)| it);
        Self { mask: self.mask & mask, chars: chars.collect::<String>().into() }
    }

    /// Adds the characters of `other`, of which none is here.
    fn add(&mut self, other: &Self) {
        if self.mask == 0 {
            self.chars = Arc::clone(&other.chars);
        } else if self.mask.leading_zeros() + other.mask.trailing_zeros() >= u64::BITS {
            self.chars = [&*self.chars, &*other.chars].concat().into();
        } else {
            let mut all: Vec<(u64, char)> = self.iter().chain(other.iter()).collect();
            all.sort_unstable();
            self.chars = all.into_iter().map(|(_, it)| it).collect::<String>().into();
        }
        self.mask |= other.mask;
    }
}

/// Which run: the bunch, and the window of the dots.
type RunKey<R> = (Dot<R>, u64);

/// What is kept of a text: its characters and the tree they hang in.
#[derive(Clone)]
pub struct TextStore<R> {
    bunches: BTreeMap<Dot<R>, Bunch<R>>,
    runs: BTreeMap<RunKey<R>, Run>,
    /// Derived from the two above when first asked for; kept up with changes made here.
    order: OnceLock<Order<R>>,
}

/// The text in reading order.
#[derive(Debug, Clone)]
struct Order<R> {
    segments: Vec<Segment<R>>,
    chars: usize,
    bytes: usize,
}

/// Characters of one run that stand together.
#[derive(Debug, Clone)]
struct Segment<R> {
    key: RunKey<R>,
    mask: u64,
    grows: Grows,
}

impl<R> Segment<R> {
    fn len(&self) -> usize {
        usize::try_from(self.mask.count_ones()).expect("at most 64")
    }

    /// The bits of its first `count` characters in reading order.
    fn first(&self, count: usize) -> u64 {
        let mut rest = self.mask;
        for _ in 0..count {
            rest &= !self.grows.first_bit(rest);
        }
        self.mask & !rest
    }

    /// The dot's counter of the character `at` in reading order.
    fn counter(&self, at: usize) -> u64 {
        let bit = self.grows.first_bit(self.mask & !self.first(at));
        self.key.1 * WINDOW + u64::from(bit.trailing_zeros())
    }
}

impl Grows {
    /// The bit that is read first.
    fn first_bit(self, mask: u64) -> u64 {
        match self {
            Self::Right => mask & mask.wrapping_neg(),
            Self::Left => mask.checked_ilog2().map_or(0, |bit| 1 << bit),
        }
    }

    /// Those of `mask` that are read before the dot `bound`; with [`Grows::Left`] it is among them.
    fn before(self, mask: u64, window: u64, bound: u64) -> u64 {
        let below = match bound.saturating_sub(window * WINDOW) {
            bits @ 0..WINDOW => (1 << bits) - 1,
            _ => u64::MAX,
        };
        match self {
            Self::Right => mask & below,
            Self::Left => mask & !below,
        }
    }
}

/// A character of the text.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place<R> {
    bunch: Dot<R>,
    at: u64,
}

impl<R: Clone> Place<R> {
    fn anchor(&self, side: Side) -> Anchor<R> {
        Anchor { bunch: self.bunch.clone(), at: self.at, side }
    }
}

/// A checked insert: where it goes, and what.
#[derive(Debug)]
pub struct Insertion<R> {
    at: usize,
    text: String,
    target: Target<R>,
}

#[derive(Debug)]
enum Target<R> {
    /// A bunch of the writer that goes on.
    Extend(Dot<R>, Grows),
    Begin(Bunch<R>),
}

impl<R> Insertion<R> {
    /// How many dots it takes; none when there is nothing to insert.
    #[must_use]
    pub fn dots(&self) -> u64 {
        let chars = u64::try_from(self.text.chars().count()).expect("at most 2^20");
        match &self.target {
            Target::Begin(_) if chars > 0 => chars + 1,
            Target::Begin(_) | Target::Extend(..) => chars,
        }
    }
}

impl<R> Default for TextStore<R> {
    fn default() -> Self {
        Self { bunches: BTreeMap::new(), runs: BTreeMap::new(), order: OnceLock::new() }
    }
}

impl<R: PartialEq> PartialEq for TextStore<R> {
    fn eq(&self, other: &Self) -> bool {
        self.bunches == other.bunches && self.runs == other.runs
    }
}

impl<R: Eq> Eq for TextStore<R> {}

impl<R: fmt::Debug> fmt::Debug for TextStore<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bunches = |f: &mut fmt::Formatter<'_>| f.debug_map().entries(&self.bunches).finish();
        let runs = |f: &mut fmt::Formatter<'_>| f.debug_map().entries(&self.runs).finish();
        f.debug_struct("TextStore")
            .field("bunches", &fmt::from_fn(bunches))
            .field("runs", &fmt::from_fn(runs))
            .finish()
    }
}

impl<R: Serialize> Serialize for TextStore<R> {
    fn serialize<S: serde::Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        (Pairs(&self.bunches), Pairs(&self.runs)).serialize(output)
    }
}

/// A map as its pairs: keys may be anything.
struct Pairs<'a, K, V>(&'a BTreeMap<K, V>);

impl<K: Serialize, V: Serialize> Serialize for Pairs<'_, K, V> {
    fn serialize<S: serde::Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.collect_seq(self.0)
    }
}

impl<'de, R: Ord + Deserialize<'de>> Deserialize<'de> for TextStore<R> {
    /// Refuses what stands out of order or does not fit together: equal texts must have one form.
    fn deserialize<D: serde::Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        type Raw<R> = (Vec<(Dot<R>, Bunch<R>)>, Vec<(RunKey<R>, Run)>);
        let (bunches, runs) = Raw::<R>::deserialize(input)?;
        let bad = |what: &str| Err(serde::de::Error::custom(what));
        if !bunches.is_sorted_by(|a, b| a.0 < b.0) || !runs.is_sorted_by(|a, b| a.0 < b.0) {
            return bad("pieces of a text repeat or stand out of order");
        }
        if runs.iter().any(|((_, window), run)| *window > WINDOW_MAX || !run.is_well_formed()) {
            return bad("a piece of a text has more or fewer characters than dots");
        }
        Ok(Self {
            bunches: bunches.into_iter().collect(),
            runs: runs.into_iter().collect(),
            order: OnceLock::new(),
        })
    }
}

/// Reading.
impl<R: Replica> TextStore<R> {
    /// How many characters it has.
    #[must_use]
    pub fn chars(&self) -> usize {
        self.order().chars
    }

    /// How many bytes it has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let sum = || self.runs.values().map(|run| run.chars.len()).sum();
        self.order.get().map_or_else(sum, |order| order.bytes)
    }

    /// How many bunches are kept, of deleted characters too.
    #[must_use]
    pub fn bunches(&self) -> usize {
        self.bunches.len()
    }

    /// About how many bytes it takes on the wire, beside its characters.
    #[must_use]
    pub fn overhead(&self) -> usize {
        24 * (self.bunches.len() + self.runs.len())
    }

    fn order(&self) -> &Order<R> {
        self.order.get_or_init(|| self.read())
    }

    /// Derives the reading order: the tree from left to right, without recursion, for a tree may
    /// be as deep as the text is long.
    fn read(&self) -> Order<R> {
        let known = |dot: &Dot<R>| {
            self.bunches.contains_key(dot)
                || self.runs.range((dot.clone(), 0)..).next().is_some_and(|(key, _)| key.0 == *dot)
        };
        let mut hanging: Vec<(&Dot<R>, Hanging<'_, R>)> = Vec::new();
        let (mut roots, mut orphans) = (Vec::new(), Vec::new());
        for (dot, bunch) in &self.bunches {
            match &bunch.anchor {
                None => roots.push(dot),
                Some(anchor) if known(&anchor.bunch) => {
                    hanging.push((&anchor.bunch, (anchor.at, anchor.side, dot)));
                }
                // What it hung beside was removed as a whole, or has not arrived: it goes last.
                Some(_) => orphans.push(dot),
            }
        }
        for (bunch, _) in self.runs.keys() {
            if !self.bunches.contains_key(bunch) && orphans.last() != Some(&bunch) {
                orphans.push(bunch);
            }
        }
        orphans.sort_unstable();
        hanging.sort_unstable();
        let hanging_in = |bunch: &Dot<R>| -> Vec<Hanging<'_, R>> {
            let begin = hanging.partition_point(|(anchor, _)| *anchor < bunch);
            let here = hanging[begin..].iter().take_while(|(anchor, _)| *anchor == bunch);
            here.map(|(_, it)| *it).collect()
        };
        let mut segments = Vec::new();
        let mut todo: Vec<Item<'_, R>> =
            roots.into_iter().chain(orphans).rev().map(Item::Bunch).collect();
        while let Some(item) = todo.pop() {
            match item {
                Item::Segment(segment) => segments.push(segment),
                Item::Bunch(bunch) => {
                    let begin = todo.len();
                    self.read_bunch(bunch, hanging_in(bunch), &mut todo);
                    todo[begin..].reverse();
                }
            }
        }
        let chars = segments.iter().map(Segment::len).sum();
        let bytes = self.runs.values().map(|run| run.chars.len()).sum();
        Order { segments, chars, bytes }
    }

    /// Pushes the characters of `bunch` and what is `hanging` beside them, in reading order.
    fn read_bunch<'a>(
        &self,
        bunch: &Dot<R>,
        mut hanging: Vec<Hanging<'a, R>>,
        todo: &mut Vec<Item<'a, R>>,
    ) {
        let grows = self.grows(bunch);
        match grows {
            // As they stand.
            Grows::Right => {}
            Grows::Left => hanging.sort_unstable_by(|a, b| (b.0, a.1, a.2).cmp(&(a.0, b.1, b.2))),
        }
        let runs = self.runs.range((bunch.clone(), 0)..=(bunch.clone(), u64::MAX));
        let mut runs: Vec<(u64, u64)> = runs.map(|(key, run)| (key.1, run.mask)).collect();
        // Taken from the back.
        match grows {
            Grows::Right => runs.reverse(),
            Grows::Left => {}
        }
        let mut read_to = |bound: Option<u64>, todo: &mut Vec<Item<'a, R>>| {
            while let Some((window, rest)) = runs.last_mut() {
                let mask = bound.map_or(*rest, |bound| grows.before(*rest, *window, bound));
                if mask != 0 {
                    let key = (bunch.clone(), *window);
                    todo.push(Item::Segment(Segment { key, mask, grows }));
                }
                *rest &= !mask;
                if *rest != 0 {
                    return;
                }
                runs.pop();
            }
        };
        for (at, side, dot) in hanging {
            let bound = match (grows, side) {
                (Grows::Right, Side::Before) | (Grows::Left, Side::After) => at,
                (Grows::Right, Side::After) | (Grows::Left, Side::Before) => at.saturating_add(1),
            };
            read_to(Some(bound), todo);
            todo.push(Item::Bunch(dot));
        }
        read_to(None, todo);
    }

    fn grows(&self, bunch: &Dot<R>) -> Grows {
        self.bunches.get(bunch).map_or(Grows::Right, |bunch| bunch.grows)
    }

    /// The segment with the character `at`, and how many characters of it come before that; looked
    /// for from the nearer end.
    fn find(&self, at: usize) -> (usize, usize) {
        let Order { segments, chars, .. } = self.order();
        if at > *chars / 2 {
            let mut after = *chars;
            for (n, segment) in segments.iter().enumerate().rev() {
                if after <= at {
                    return (n + 1, at - after);
                }
                after -= segment.len();
            }
            return (0, at);
        }
        let mut before = 0;
        for (n, segment) in segments.iter().enumerate() {
            let len = segment.len();
            if at < before + len {
                return (n, at - before);
            }
            before += len;
        }
        (segments.len(), 0)
    }

    fn place(&self, (segment, within): (usize, usize)) -> Option<Place<R>> {
        let segment = self.order().segments.get(segment)?;
        Some(Place { bunch: segment.key.0.clone(), at: segment.counter(within) })
    }

    /// By which anchor `bunch` or a bunch it hangs in hangs in `root`: the outer `None` when it
    /// does not, the inner one when it is `root`.
    #[expect(clippy::option_option, reason = "two different questions")]
    fn within(&self, bunch: &Dot<R>, root: &Dot<R>) -> Option<Option<(u64, Side)>> {
        let mut by = None;
        let mut at = bunch;
        // Nobody's tree is deeper than it has bunches; a forged one may go in circles.
        for _ in 0..=self.bunches.len() {
            if at == root {
                return Some(by);
            }
            let anchor = self.bunches.get(at)?.anchor.as_ref()?;
            by = Some((anchor.at, anchor.side));
            at = &anchor.bunch;
        }
        None
    }
}

impl<R: Replica> fmt::Display for TextStore<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for segment in &self.order().segments {
            let run = &self.runs[&segment.key];
            match segment.grows {
                Grows::Right if segment.mask == run.mask => f.write_str(&run.chars)?,
                Grows::Right => f.write_str(&run.only(segment.mask).chars)?,
                Grows::Left => {
                    let chars = run.only(segment.mask).chars;
                    chars.chars().rev().try_for_each(|one| f.write_char(one))?;
                }
            }
        }
        Ok(())
    }
}

/// A bunch, and beside which character of another one it hangs.
type Hanging<'a, R> = (u64, Side, &'a Dot<R>);

enum Item<'a, R> {
    Bunch(&'a Dot<R>),
    Segment(Segment<R>),
}

/// Writing.
impl<R: Replica> TextStore<R> {
    /// Checks an insert of `text` before the character `at`, by `writer`.
    ///
    /// # Errors
    /// [`TextError`].
    pub fn insertion(
        &self,
        writer: &R,
        at: usize,
        text: impl Into<String>,
    ) -> Result<Insertion<R>, TextError> {
        let text = text.into();
        let Order { chars, bytes, .. } = *self.order();
        if at > chars {
            return Err(TextError::OutOfRange { at, chars });
        }
        let bytes = bytes.saturating_add(text.len());
        if bytes > TEXT_BYTES_MAX {
            return Err(TextError::TooLong { bytes });
        }
        let left = at.checked_sub(1).and_then(|before| self.place(self.find(before)));
        let right = self.place(self.find(at));
        let target = self.target(writer, left.as_ref(), right.as_ref());
        let bunches = self.bunches.len();
        if bunches >= BUNCHES_MAX && matches!(target, Target::Begin(_)) {
            return Err(TextError::TooManyBunches { bunches });
        }
        Ok(Insertion { at, text, target })
    }

    /// Where in the tree a text of `writer` between two characters goes.
    fn target(&self, writer: &R, left: Option<&Place<R>>, right: Option<&Place<R>>) -> Target<R> {
        // Whether the right neighbour hangs to the right in what the left one is part of: what is
        // typed between them then belongs to the right one. That is Fugue's rule.
        let encloses = match (left, right) {
            (Some(left), Some(right)) => match self.within(&right.bunch, &left.bunch) {
                None => false,
                Some(by) => match self.grows(&left.bunch) {
                    Grows::Right => true,
                    Grows::Left => by == Some((left.at, Side::After)),
                },
            },
            (None, Some(_)) => true,
            (_, None) => false,
        };
        if let Some(left) = left
            && !encloses
            && self.is_of(writer, &left.bunch, Grows::Right)
        {
            return Target::Extend(left.bunch.clone(), Grows::Right);
        }
        // Nothing of the right neighbour's bunch, nor of what hangs in it, is to its left.
        let is_first = |right: &Place<R>| {
            left.is_none_or(|left| self.within(&left.bunch, &right.bunch).is_none())
        };
        if let Some(right) = right
            && self.is_of(writer, &right.bunch, Grows::Left)
            && is_first(right)
        {
            return Target::Extend(right.bunch.clone(), Grows::Left);
        }
        let bunch = match (left, right) {
            (_, Some(right)) if encloses => {
                // Whoever writes in front of what was written in front goes on doing so.
                let again = is_first(right)
                    && right.bunch.node == *writer
                    && self.bunches.get(&right.bunch).is_some_and(|bunch| {
                        bunch.anchor.as_ref().is_some_and(|it| it.side == Side::Before)
                    });
                Bunch {
                    anchor: Some(right.anchor(Side::Before)),
                    grows: if again { Grows::Left } else { Grows::Right },
                }
            }
            (Some(left), _) => {
                Bunch { anchor: Some(left.anchor(Side::After)), grows: Grows::Right }
            }
            (None, _) => Bunch { anchor: None, grows: Grows::Right },
        };
        Target::Begin(bunch)
    }

    fn is_of(&self, writer: &R, bunch: &Dot<R>, grows: Grows) -> bool {
        bunch.node == *writer && self.bunches.get(bunch).is_some_and(|it| it.grows == grows)
    }

    /// Makes a checked insert, whose dots begin with `first`. Returns what a delta holds of it.
    #[must_use]
    pub fn insert(&mut self, insertion: Insertion<R>, first: Dot<R>) -> Self {
        let Insertion { at, text, target } = insertion;
        let mut delta = Self::default();
        if text.is_empty() {
            return delta;
        }
        let mut counter = first.counter;
        let (bunch, grows) = match target {
            Target::Extend(bunch, grows) => (bunch, grows),
            Target::Begin(bunch) => {
                counter += 1;
                let grows = bunch.grows;
                delta.bunches.insert(first.clone(), bunch);
                (first, grows)
            }
        };
        let mut chars: Vec<char> = text.chars().collect();
        if grows == Grows::Left {
            chars.reverse();
        }
        let mut rest = &chars[..];
        while !rest.is_empty() {
            let (window, bit) = (counter / WINDOW, counter % WINDOW);
            let room = usize::try_from(WINDOW - bit).expect("at most 64");
            let (now, later) = rest.split_at(room.min(rest.len()));
            let mask = now.iter().enumerate().fold(0, |mask, (n, _)| mask | (1 << bit) << n);
            let run = Run { mask, chars: now.iter().collect::<String>().into() };
            delta.runs.insert((bunch.clone(), window), run);
            counter += now.len() as u64;
            rest = later;
        }
        self.show_inserted(at, &delta, grows);
        self.bunches.extend(delta.bunches.iter().map(|(dot, bunch)| (dot.clone(), bunch.clone())));
        for (key, run) in &delta.runs {
            self.runs.entry(key.clone()).or_default().add(run);
        }
        delta
    }

    /// Keeps the order up with an insert before the character `at`.
    fn show_inserted(&mut self, at: usize, delta: &Self, grows: Grows) {
        let (mut n, within) = self.find(at);
        let Some(order) = self.order.get_mut() else { return };
        if within > 0 {
            let segment = &mut order.segments[n];
            let mask = segment.first(within);
            let rest = segment.mask & !mask;
            let rest = Segment { mask: rest, key: segment.key.clone(), grows: segment.grows };
            segment.mask = mask;
            n += 1;
            order.segments.insert(n, rest);
        }
        let new = |(key, run): (&RunKey<R>, &Run)| {
            order.chars += run.chars.chars().count();
            order.bytes += run.chars.len();
            Segment { key: key.clone(), mask: run.mask, grows }
        };
        let mut new: Vec<Segment<R>> = delta.runs.iter().map(new).collect();
        // A bunch that goes on in the same window is one segment with what it follows.
        let neighbour = match grows {
            Grows::Right => n.checked_sub(1),
            Grows::Left => Some(n),
        };
        let neighbour = neighbour.and_then(|n| order.segments.get_mut(n));
        if let (Some(neighbour), Some(first)) = (neighbour, new.first())
            && neighbour.key == first.key
        {
            neighbour.mask |= first.mask;
            new.remove(0);
        }
        if grows == Grows::Left {
            new.reverse();
        }
        drop(order.segments.splice(n..n, new));
    }

    /// Takes out the characters of `range`. Returns their dots.
    ///
    /// # Errors
    /// [`TextError::OutOfRange`].
    pub fn delete(&mut self, range: Range<usize>) -> Result<Dots<R>, TextError> {
        let chars = self.chars();
        if let Some(at) = [range.start, range.end].into_iter().find(|&at| at > chars) {
            return Err(TextError::OutOfRange { at, chars });
        }
        let mut dots = Dots::default();
        if range.is_empty() {
            return Ok(dots);
        }
        let (mut n, mut within) = self.find(range.start);
        let order = self.order.get_mut().expect("it was read above");
        let mut left = range.len();
        let begin = n;
        let mut gone = Vec::new();
        while left > 0 {
            let segment = &mut order.segments[n];
            let count = left.min(segment.len() - within);
            let mask = segment.first(within + count) & !segment.first(within);
            gone.push((segment.key.clone(), mask));
            segment.mask &= !mask;
            left -= count;
            (n, within) = (n + 1, 0);
        }
        // Those in the midst are empty, the first and the last may be.
        let emptied = order.segments.extract_if(begin..n, |segment| segment.mask == 0);
        emptied.for_each(drop);
        order.chars -= range.len();
        for (key, mask) in gone {
            let run = self.runs.get_mut(&key).expect("a segment shows what a run holds");
            let bytes = run.chars.len();
            *run = run.only(!mask);
            order.bytes -= bytes - run.chars.len();
            if run.mask == 0 {
                self.runs.remove(&key);
            }
            each_dot(&key, mask, &mut |dot| dots.insert(dot.clone()));
        }
        Ok(dots)
    }

    /// Forgets bunches without characters, and without others that hang in them, of which `stable`
    /// says that everybody has seen them. Sound only if no insert made without having seen the
    /// deletes can still arrive: it would find its place gone, and stand at the end of the text.
    fn prune(&mut self, stable: &CausalContext<R>) {
        loop {
            let mut used: std::collections::BTreeSet<&Dot<R>> =
                self.runs.keys().map(|key| &key.0).collect();
            let anchors = self.bunches.values().filter_map(|bunch| bunch.anchor.as_ref());
            used.extend(anchors.map(|anchor| &anchor.bunch));
            let gone: Vec<Dot<R>> = self
                .bunches
                .keys()
                .filter(|dot| !used.contains(dot) && Knows::contains(stable, dot))
                .cloned()
                .collect();
            if gone.is_empty() {
                return;
            }
            gone.iter().for_each(|dot| drop(self.bunches.remove(dot)));
        }
    }
}

fn each_dot<R: Clone>(key: &RunKey<R>, mask: u64, visit: &mut dyn FnMut(&Dot<R>)) {
    for bit in (0..WINDOW).filter(|bit| mask & (1 << bit) != 0) {
        visit(&Dot { node: key.0.node.clone(), counter: key.1 * WINDOW + bit });
    }
}

impl<R: Replica> DotStore<R> for TextStore<R> {
    fn is_empty(&self) -> bool {
        self.bunches.is_empty() && self.runs.is_empty()
    }

    fn dots(&self, visit: &mut dyn FnMut(&Dot<R>)) {
        self.bunches.keys().for_each(&mut *visit);
        self.runs.iter().for_each(|(key, run)| each_dot(key, run.mask, visit));
    }

    fn join(&mut self, ours: &impl Knows<R>, other: &Self, theirs: &impl Knows<R>, _: Scope) {
        let mut changed = false;
        self.bunches.retain(|dot, _| {
            let keep = !theirs.contains(dot) || other.bunches.contains_key(dot);
            changed |= !keep;
            keep
        });
        self.runs.retain(|key, run| {
            let kept_there = other.runs.get(key).map_or(0, |run| run.mask);
            let gone = run.mask & theirs.window(&key.0.node, key.1) & !kept_there;
            if gone != 0 {
                changed = true;
                *run = run.only(!gone);
            }
            run.mask != 0
        });
        for (dot, bunch) in &other.bunches {
            if !ours.contains(dot) && !self.bunches.contains_key(dot) {
                changed = true;
                self.bunches.insert(dot.clone(), bunch.clone());
            }
        }
        for (key, run) in &other.runs {
            let kept_here = self.runs.get(key).map_or(0, |run| run.mask);
            let new = run.mask & !ours.window(&key.0.node, key.1) & !kept_here;
            if new != 0 {
                changed = true;
                self.runs.entry(key.clone()).or_default().add(&run.only(new));
            }
        }
        if changed {
            self.order = OnceLock::new();
        }
    }

    fn merge(&mut self, ours: &impl Knows<R>, other: &Self, theirs: &impl Knows<R>) {
        self.join(ours, other, theirs, Scope::Named);
    }

    fn emptied(&self) -> Self {
        Self::default()
    }
}

/// A text that every replica may change anywhere.
///
/// Indices count characters (Unicode scalar values) of the text as it stands here.
///
/// # Guarantees
/// A character keeps its place among all others. What two replicas insert at one place at the same
/// time stands one behind the other, never mixed. A character that one deletes while another
/// deletes it too is deleted once; text inserted meanwhile in the midst of deleted text stays.
/// While an insert has arrived and the one it hangs in has not, it stands at the end.
///
/// # Units and limits
/// An insert is refused beyond [`TEXT_BYTES_MAX`] and [`BUNCHES_MAX`]. An insert or delete costs a
/// walk over the text's pieces, of up to 64 characters each; the first one after a join derives
/// their order anew.
pub type Text<R> = Causal<R, TextStore<R>>;

impl<R: Replica> Text<R> {
    /// Inserts `text` before the character `at`, as `replica`.
    ///
    /// # Errors
    /// [`TextError`]; nothing was changed.
    pub fn insert(
        &mut self,
        replica: &R,
        at: usize,
        text: &str,
    ) -> Result<Delta<R, TextStore<R>>, TextError> {
        let insertion = self.store().insertion(replica, at, text)?;
        Ok(match insertion.dots() {
            0 => self.withdraw_with(|_| Dots::default()),
            dots => self.write_with(replica, dots, |store, first| store.insert(insertion, first)),
        })
    }

    /// Deletes the characters of `range`, as far as they were seen here.
    ///
    /// # Errors
    /// [`TextError::OutOfRange`]; nothing was changed.
    pub fn delete(&mut self, range: Range<usize>) -> Result<Delta<R, TextStore<R>>, TextError> {
        let mut done = Ok(());
        let delta = self.withdraw_with(|store| match store.delete(range) {
            Ok(dots) => dots,
            Err(error) => {
                done = Err(error);
                Dots::default()
            }
        });
        done.map(|()| delta)
    }

    /// How many characters it has.
    #[must_use]
    pub fn chars(&self) -> usize {
        self.store().chars()
    }

    /// Forgets what is left of deleted text and seen by everybody, as `stable` says. Sound only if
    /// no update made without having seen the deletes can still arrive.
    pub fn prune(&mut self, stable: &CausalContext<R>) {
        self.change_unseen(|store| store.prune(stable));
    }
}

impl<R: Replica> fmt::Display for Text<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.store().fmt(f)
    }
}
