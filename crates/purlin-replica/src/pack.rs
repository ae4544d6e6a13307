//! Entries in few bytes, on the wire and on disk.
//!
//! A dot is 16 bytes and a timestamp another 16, twice what a small value needs. But the writes of
//! one message come from few lives and lie close together, so lives are named once, and counters
//! and times counted from the lowest.

use purlin_core::{Dot, HlcTimestamp, WallTime, hlc::NodeTag};
use purlin_crdt::{DotStore, Dots};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{
    cell::{Cell, Parts, Written},
    slot::Slot,
    store::{Entries, Update},
};

const BEYOND: &str = "a dot outside of 1 to 2^64 - 1";

/// The most dots that one update may replace or remove.
const GONE_MAX: u64 = 1 << 24;

#[derive(Serialize, Deserialize)]
struct Packed<'a> {
    /// Each life with the lowest of its counters here.
    lives: Vec<([u8; 8], u64)>,
    /// The lowest time here.
    time: u64,
    #[serde(borrow)]
    entries: Vec<(Raw<'a>, PackedCell<'a>)>,
    /// Dots that no entry holds, those that were replaced or removed: the first of some that follow
    /// each other, and how many more.
    gone: Vec<(PackedDot, u64)>,
}

/// The number of a life, and how far above its lowest counter.
type PackedDot = (u32, u64);

#[derive(Serialize, Deserialize)]
enum PackedCell<'a> {
    Nothing,
    /// One write of a register, made in the life of its dot.
    One(PackedDot, #[serde(borrow)] PackedWritten<'a>),
    Parts(Box<Parts>),
}

#[derive(Serialize, Deserialize)]
struct PackedWritten<'a> {
    /// How far above the lowest time.
    after: u64,
    expires: Option<WallTime>,
    #[serde(borrow)]
    value: Raw<'a>,
}

/// Bytes borrowed from the message.
struct Raw<'a>(&'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, output: S) -> Result<S::Ok, S::Error> {
        output.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Raw<'a> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        <&'de [u8]>::deserialize(input).map(Raw)
    }
}

fn time_of(at: HlcTimestamp) -> u64 {
    u64::from_be_bytes(at.to_bytes()[..8].try_into().expect("8 of 16 bytes"))
}

fn timestamp(time: u64, node: NodeTag) -> HlcTimestamp {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&time.to_be_bytes());
    bytes[8..].copy_from_slice(&node.0.to_be_bytes());
    HlcTimestamp::from_bytes(bytes)
}

/// The lives of a message while it is packed.
#[derive(Default)]
struct Lives(Vec<(NodeTag, u64)>);

impl Lives {
    fn note(&mut self, dot: &Dot<NodeTag>) {
        match self.0.iter_mut().find(|(life, _)| *life == dot.node) {
            Some((_, lowest)) => *lowest = dot.counter.min(*lowest),
            None => self.0.push((dot.node, dot.counter)),
        }
    }

    fn pack(&self, dot: &Dot<NodeTag>) -> PackedDot {
        let at = self.0.iter().position(|(life, _)| *life == dot.node);
        let at = at.expect("every dot was noted");
        (u32::try_from(at).expect("lives fit in a message"), dot.counter - self.0[at].1)
    }
}

fn pack<'a>(entries: &'a Entries, context: Option<&Dots<NodeTag>>) -> Packed<'a> {
    let mut lives = Lives::default();
    let mut time = u64::MAX;
    let mut held = Vec::new();
    for (_, cell) in entries.iter() {
        if context.is_some() {
            cell.dots(&mut |dot| held.push(*dot));
        }
        if let Some((dot, written)) = cell.as_one() {
            lives.note(&dot);
            time = time.min(time_of(written.at));
        }
    }
    held.sort_unstable();
    let all = context.into_iter().flat_map(Dots::iter);
    let gone: Dots<NodeTag> = all.filter(|dot| held.binary_search(dot).is_err()).collect();
    for (&node, counter, _) in gone.spans() {
        lives.note(&Dot { node, counter });
    }
    let spans = gone
        .spans()
        .map(|(&node, counter, last)| (lives.pack(&Dot { node, counter }), last - counter));
    let gone = spans.collect();
    let cell = |cell: &'a Cell| match (cell.as_one(), cell.parts()) {
        (Some((dot, written)), _) => {
            let (after, value) = (time_of(written.at) - time, Raw(&written.value));
            let expires = written.expires;
            PackedCell::One(lives.pack(&dot), PackedWritten { after, expires, value })
        }
        (None, Some(parts)) => PackedCell::Parts(Box::new(parts.clone())),
        (None, None) => PackedCell::Nothing,
    };
    Packed {
        time,
        entries: entries.iter().map(|(slot, held)| (Raw(slot.key()), cell(held))).collect(),
        gone,
        lives: lives.0.iter().map(|(life, lowest)| (life.0.to_be_bytes(), *lowest)).collect(),
    }
}

impl Packed<'_> {
    fn dot(&self, (life, above): PackedDot) -> Result<Dot<NodeTag>, &'static str> {
        let at = usize::try_from(life).ok().and_then(|at| self.lives.get(at));
        let &(life, lowest) = at.ok_or("a dot of a life that is not named")?;
        let counter = lowest.checked_add(above).filter(|&counter| counter > 0);
        let counter = counter.ok_or(BEYOND)?;
        Ok(Dot { node: NodeTag(u64::from_be_bytes(life)), counter })
    }

    fn entries(&self) -> Result<Entries, String> {
        let mut last: Option<Slot> = None;
        let mut entries = Vec::with_capacity(self.entries.len());
        for (key, cell) in &self.entries {
            let slot = Slot::of(key.0).map_err(|error| error.to_string())?;
            if last.as_ref().is_some_and(|last| *last >= slot) {
                return Err("keys repeat or stand out of order".to_owned());
            }
            last = Some(slot.clone());
            entries.push((slot, self.cell(cell)?));
        }
        Ok(entries.into_iter().collect())
    }

    fn cell(&self, cell: &PackedCell<'_>) -> Result<Cell, &'static str> {
        Ok(match cell {
            PackedCell::Nothing => Cell::default(),
            PackedCell::Parts(parts) => Cell::of((**parts).clone()),
            PackedCell::One(dot, written) => {
                let dot = self.dot(*dot)?;
                let time = self.time.checked_add(written.after).ok_or("a time beyond all time")?;
                let at = timestamp(time, dot.node);
                let value = bytes::Bytes::copy_from_slice(written.value.0);
                Cell::one(dot, Written { at, expires: written.expires, value })
            }
        })
    }
}

/// Entries alone.
pub(crate) mod entries {
    use super::{Deserialize, Deserializer, Entries, Packed, Serialize, Serializer, pack};
    use serde::de::Error as _;

    pub(crate) fn serialize<S: Serializer>(it: &Entries, output: S) -> Result<S::Ok, S::Error> {
        pack(it, None).serialize(output)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Entries, D::Error> {
        Packed::deserialize(input)?.entries().map_err(D::Error::custom)
    }
}

pub(crate) fn serialize<S: Serializer>(it: &Update, output: S) -> Result<S::Ok, S::Error> {
    pack(it.store(), Some(it.context())).serialize(output)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Update, D::Error> {
    let packed = Packed::deserialize(input)?;
    let entries = packed.entries().map_err(D::Error::custom)?;
    let mut context = Dots::default();
    let mut dots = 0_u64;
    for &(dot, more) in &packed.gone {
        let first = packed.dot(dot).map_err(D::Error::custom)?;
        let last = first.counter.checked_add(more).ok_or_else(|| D::Error::custom(BEYOND))?;
        // A few bytes may claim any number of dots; whoever looks at them one by one must be safe.
        dots = dots.saturating_add(more);
        if dots > GONE_MAX {
            return Err(D::Error::custom(format!("{dots} dots exceed limit {GONE_MAX}")));
        }
        context.insert_span(first.node, first.counter, last);
    }
    entries.dots(&mut |dot| context.insert(*dot));
    Ok(Update::new(entries, context))
}
