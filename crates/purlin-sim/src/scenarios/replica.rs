//! Replicated data under every fault: replicas become equal, no acknowledged write is lost, none
//! that was removed comes back.
//!
//! Three to five nodes; a step is a write of a random kind on a random node, sometimes a fault, and
//! a pause. Every write carries its number, so that what can be read tells who wrote it. For each
//! write the book says what its author had seen and what may have become of it: a write may be
//! missing in the end only if its author died before its disk had it *and* nobody alive showed it
//! then, or if the only ones who had it died later. In the end everything heals, and the book is
//! held against what can be read, by the checkers of `purlin-check`.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use bytes::Bytes;
use parking_lot::Mutex;
use purlin::{
    Node,
    core::HlcTimestamp,
    replica::{
        ReplicaSet, Set, StateError,
        cell::{Cell, Wins},
        flag::Flag,
        flags::{FlagsError, Reason},
    },
};
use purlin_check::updates::{self, Concurrent, Did, Op};
use purlin_core::Rng;

use super::{Scenario, start_all};
use crate::{
    Chaos, Failure, World,
    chaos::Struck,
    condition::{converged, members},
    ms, secs,
};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "replica",
    about: "random writes of every replicated type on 3 to 5 nodes under every fault: nothing \
            acknowledged is lost, nothing removed comes back, all end equal",
    steps: 120,
    one_in: 1,
    run,
    build: |world| world.latency(ms(2), ms(5)),
};

pub(super) const MERGE: Scenario = Scenario {
    name: "merge-after-split",
    about: "five nodes split in two or three parts, all write, all parts merge: every single write \
            is accounted for (hazelcast #11542)",
    steps: 120,
    one_in: 1,
    run: merge_after_split,
    build: |world| world.latency(ms(2), ms(5)),
};

/// Which kind of value a key holds, and so which promises hold for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    Register,
    MultiValue,
    /// An element of a set in one cell, inserted by one write and removable.
    Element,
    /// A field of a map in one cell that everybody writes and nobody removes.
    SharedField,
    /// A field of a map in one cell, written once and removable.
    OwnField,
    /// An entry of a map of any size.
    Entry,
    /// An element of a set of any size.
    Member,
    /// An element of a set of any size from which nothing is removed.
    Kept,
    /// An element of a set of any size in which removals win.
    Barred,
    /// A leaf of a nested map.
    Leaf,
    /// A word in a text that everybody edits.
    Word,
    Counter,
    Growing,
    /// Counters that are reset and switches: what they show names no write, so for these it only
    /// matters that all nodes show the same in the end.
    Resettable,
    Enabling,
    Disabling,
    Ephemeral,
    Flag,
}

const FAMILIES: [Family; 18] = [
    Family::Register,
    Family::MultiValue,
    Family::Element,
    Family::SharedField,
    Family::OwnField,
    Family::Entry,
    Family::Member,
    Family::Kept,
    Family::Barred,
    Family::Leaf,
    Family::Word,
    Family::Counter,
    Family::Growing,
    Family::Resettable,
    Family::Enabling,
    Family::Disabling,
    Family::Ephemeral,
    Family::Flag,
];

impl Family {
    /// What the store did with concurrent writes that nobody ended.
    fn concurrent(self) -> Concurrent {
        match self {
            Self::SharedField | Self::Flag => Concurrent::OneWins,
            _ => Concurrent::Kept,
        }
    }

    fn set(self, node: &Node) -> &ReplicaSet {
        match self {
            Self::Ephemeral => node.ephemeral(),
            Self::Flag => node.flags().set(),
            _ => node.crdt(),
        }
    }

    /// What has no value of its own to carry its number is written once, under its number.
    fn is_numbered_by_name(self) -> bool {
        matches!(
            self,
            Self::Element
                | Self::OwnField
                | Self::Member
                | Self::Kept
                | Self::Barred
                | Self::Leaf
                | Self::Word
        )
    }

    /// Whether what can be read tells which writes it comes from.
    fn tells_writes(self) -> bool {
        !self.is_counted() && !matches!(self, Self::Resettable | Self::Enabling | Self::Disabling)
    }

    /// Whether what can be read is the sum of what was written.
    fn is_counted(self) -> bool {
        matches!(self, Self::Counter | Self::Growing)
    }
}

/// Where a write went: the family, and a name within it.
type Key = (Family, String);

/// A line of the book.
struct Line {
    did: Did<Key>,
    host: String,
    /// Which life of the host wrote it.
    life: u32,
    adds: i64,
    at: Option<HlcTimestamp>,
}

struct Book {
    lines: Vec<Line>,
    /// Which life each host is in, and whether it runs.
    lives: BTreeMap<String, u32>,
    /// Writes whose authors' disks have them.
    durable: Arc<Mutex<BTreeSet<Op>>>,
    rng: Rng,
}

fn number(bytes: &[u8]) -> Op {
    let digits = std::str::from_utf8(bytes).ok().and_then(|text| text.parse().ok());
    // No write has this number: the checker calls it invented.
    digits.unwrap_or(Op::MAX)
}

fn cell(node: &Node, family: Family, key: &str) -> Option<Cell> {
    family.set(node).get(key.as_bytes()).map(|cell| Cell::clone(&cell))
}

/// Which writes of `key` can be read on `node`.
fn readable(node: &Node, key: &Key) -> BTreeSet<Op> {
    let (family, name) = key;
    let (family, crdt) = (*family, node.crdt());
    let values = |cell: Option<Cell>| -> BTreeSet<Op> {
        cell.iter().flat_map(|cell| cell.concurrent().map(|it| number(&it.value))).collect()
    };
    match family {
        Family::Register | Family::Ephemeral => values(cell(node, family, name)),
        Family::MultiValue => {
            let cell = cell(node, family, name);
            cell.iter().flat_map(|cell| cell.values().map(|value| number(value))).collect()
        }
        Family::Element => {
            let there = cell(node, family, "elements");
            there
                .iter()
                .filter(|cell| cell.contains(name.as_bytes()))
                .map(|_| number(name.as_bytes()))
                .collect()
        }
        Family::SharedField | Family::OwnField => {
            let there = cell(node, family, field_map(family));
            there
                .iter()
                .filter_map(|cell| Some(number(&cell.field(name.as_bytes())?.value)))
                .collect()
        }
        Family::Entry => {
            // The map shows the latest write; those that lost against it are under its key.
            values(cell(node, family, &format!("entries\0m{name}")))
        }
        Family::Member => {
            let set = crdt.set("members").expect("a name without zero bytes");
            set.contains(name).then(|| number(name.as_bytes())).into_iter().collect()
        }
        Family::Kept | Family::Barred => {
            let set = set_of(crdt, family).expect("a name without zero bytes");
            set.contains(name).then(|| number(name.as_bytes())).into_iter().collect()
        }
        Family::Leaf => {
            let there = cell(node, family, "nested");
            let path = leaf(name).into_iter().collect();
            let leaf = there.as_ref().and_then(|cell| cell.leaf(&path));
            leaf.iter().map(|it| number(&it.value)).collect()
        }
        Family::Word => {
            let is_there = crdt.text(TEXT).contains(&word(name));
            is_there.then(|| number(name.as_bytes())).into_iter().collect()
        }
        Family::Flag => {
            let flag = node.flags().get(name);
            flag.iter().map(|flag| number(flag.flag.description.as_bytes())).collect()
        }
        Family::Counter
        | Family::Growing
        | Family::Resettable
        | Family::Enabling
        | Family::Disabling => BTreeSet::new(),
    }
}

fn set_of(crdt: &ReplicaSet, family: Family) -> Result<Set, StateError> {
    match family {
        Family::Kept => crdt.grow_set("kept"),
        Family::Barred => crdt.remove_wins_set("barred"),
        _ => crdt.set("members"),
    }
}

/// Where the leaf of this name is in the nested map.
fn leaf(name: &str) -> [Bytes; 2] {
    let branch = ["oak", "elm", "ash"][name.len() % 3];
    [Bytes::from_static(branch.as_bytes()), Bytes::copy_from_slice(name.as_bytes())]
}

const TEXT: &[u8] = b"text";

/// The word of this name: nothing but a write of its own may come between its letters.
fn word(name: &str) -> String {
    format!("<{name}>")
}

/// Adds a word at a place between words that the number decides.
fn write_word(crdt: &ReplicaSet, name: &str, op: Op) -> Result<(), StateError> {
    let text = crdt.text(TEXT);
    let ends = text.chars().enumerate().filter(|(_, letter)| *letter == '>').map(|(at, _)| at + 1);
    let places: Vec<usize> = std::iter::once(0).chain(ends).collect();
    crdt.insert_text(TEXT, places[op % places.len()], &word(name))
}

fn remove_word(crdt: &ReplicaSet, name: &str) -> Result<bool, StateError> {
    let (text, word) = (crdt.text(TEXT), word(name));
    // All letters are of one byte.
    let Some(at) = text.find(&word) else { return Ok(false) };
    crdt.delete_text(TEXT, at..at + word.len())?;
    Ok(true)
}

fn field_map(family: Family) -> &'static str {
    if family == Family::SharedField { "shared-fields" } else { "own-fields" }
}

/// What a write came to.
enum Wrote {
    /// Done; with the version where the type has one.
    Done(Option<HlcTimestamp>),
    /// There was nothing to remove.
    Nothing,
}

fn write(node: &Node, key: &Key, op: Op, adds: i64) -> Result<Wrote, StateError> {
    let (family, name) = key;
    let (crdt, value) = (node.crdt(), op.to_string());
    let version = match family {
        Family::Register => Some(crdt.put(name.clone(), value, None)?),
        Family::MultiValue => crdt.set_value(name.clone(), value).map(|()| None)?,
        Family::Element => crdt.insert("elements", name.clone()).map(|()| None)?,
        Family::SharedField | Family::OwnField => {
            Some(crdt.put_field(field_map(*family), name.clone(), value)?)
        }
        Family::Entry => Some(crdt.map("entries")?.put(name, value)?),
        Family::Member => crdt.set("members")?.insert(name).map(|()| None)?,
        Family::Kept | Family::Barred => set_of(crdt, *family)?.insert(name).map(|()| None)?,
        Family::Leaf => Some(crdt.put_at("nested", leaf(name), value)?),
        Family::Word => write_word(crdt, name, op).map(|()| None)?,
        Family::Counter => crdt.add(name.clone(), adds).map(|_| None)?,
        Family::Growing => crdt.grow(name.clone(), adds.unsigned_abs()).map(|_| None)?,
        Family::Resettable => crdt.add_resettable(name.clone(), adds).map(|_| None)?,
        Family::Enabling => crdt.switch(name.clone(), Wins::Enabling, true).map(|()| None)?,
        Family::Disabling => crdt.switch(name.clone(), Wins::Disabling, true).map(|()| None)?,
        Family::Ephemeral => Some(node.ephemeral().put(name.clone(), value, None)?),
        Family::Flag => {
            let flag = Flag { description: value, ..Flag::default() };
            let reason = Reason { who: "the scenario".to_owned(), why: "at random".to_owned() };
            match node.flags().define(name, flag, &reason) {
                Ok(version) => Some(version),
                Err(FlagsError::State(error)) => return Err(error),
                Err(error) => panic!("a sound definition was refused: {error}"),
            }
        }
    };
    Ok(Wrote::Done(version))
}

fn remove(node: &Node, key: &Key) -> Result<Wrote, StateError> {
    let (family, name) = key;
    let crdt = node.crdt();
    let element = Bytes::copy_from_slice(name.as_bytes());
    let removed = match family {
        Family::Register | Family::MultiValue => crdt.remove(name.clone())?,
        Family::Element => crdt.remove_element("elements", &element)?,
        Family::OwnField => crdt.remove_field(field_map(*family), &element)?,
        Family::Entry => crdt.map("entries")?.remove(name)?,
        Family::Member => crdt.set("members")?.remove(name)?,
        Family::Ephemeral => node.ephemeral().remove(name.clone())?,
        // Also where the element has not arrived yet.
        Family::Barred => set_of(crdt, *family)?.remove(name).map(|_was_there| true)?,
        Family::Leaf => crdt.remove_at("nested", leaf(name))?,
        Family::Word => remove_word(crdt, name)?,
        Family::Resettable => crdt.reset(name.clone())?,
        Family::Enabling => crdt.switch(name.clone(), Wins::Enabling, false).map(|()| true)?,
        Family::Disabling => crdt.switch(name.clone(), Wins::Disabling, false).map(|()| true)?,
        Family::SharedField | Family::Kept | Family::Counter | Family::Growing | Family::Flag => {
            false
        }
    };
    Ok(if removed { Wrote::Done(None) } else { Wrote::Nothing })
}

impl Book {
    fn new(world: &mut World, names: &[String]) -> Self {
        Self {
            lines: Vec::new(),
            lives: names.iter().map(|name| (name.clone(), 1)).collect(),
            durable: Arc::default(),
            rng: world.rng(),
        }
    }

    fn key(&mut self, op: Op) -> Key {
        let family = FAMILIES[self.rng.below(FAMILIES.len())];
        let shared = format!("{family:?}-{}", self.rng.below(4)).to_lowercase();
        (family, if family.is_numbered_by_name() { op.to_string() } else { shared })
    }

    /// Something that was written before, to be removed if it can be read.
    fn old_key(&mut self) -> Option<Key> {
        if self.lines.is_empty() {
            return None;
        }
        let line = &self.lines[self.rng.below(self.lines.len())];
        Some(line.did.key.clone())
    }

    /// One write or removal on a random node that runs.
    fn act(&mut self, world: &mut World) -> Result<(), Failure> {
        let running = world.running();
        if running.is_empty() {
            return Ok(());
        }
        let host = running[self.rng.below(running.len())].clone();
        let op = self.lines.len();
        let removes = self.rng.chance(0.3);
        let key = if removes { self.old_key() } else { None };
        let key = key.unwrap_or_else(|| self.key(op));
        // A key that was numbered by its name is written once.
        let removes = removes && op > 0 || key.0.is_numbered_by_name() && key.1 != op.to_string();
        let adds = i64::try_from(self.rng.below(9)).expect("small") + 1;
        let acted = world.at(&host, |node| {
            let seen = readable(node, &key);
            let acted = if removes { remove(node, &key) } else { write(node, &key, op, adds) };
            let now = readable(node, &key);
            (seen, acted, now)
        });
        let Some((seen, acted, now)) = acted else { return Ok(()) };
        let at = match acted {
            Ok(Wrote::Done(at)) => at,
            Ok(Wrote::Nothing) => return Ok(()),
            // The clock may refuse while it is far behind what was read: nothing was done.
            Err(StateError::Clock(_)) => return Ok(()),
            Err(error) => return Err(world.failure(format!("{host} refuses {key:?}: {error}"))),
        };
        let what = if removes { "removes" } else { "writes" };
        world.note(format!("{host} {what} {op}: {:?} {}", key.0, key.1));
        let shows = match (key.0, removes) {
            (family, _) if !family.tells_writes() => true,
            (_, true) => now.is_empty(),
            (_, false) => now.contains(&op),
        };
        if !shows {
            let what = format!("{host} does not read its own write {op} of {key:?}: {now:?}");
            return Err(world.failure(what));
        }
        // What was read before a write is older than the write, whatever the clocks say.
        let newer = seen
            .iter()
            .find(|seen| at.is_some() && at <= self.lines.get(**seen).and_then(|line| line.at));
        if let Some(newer) = newer {
            let before = self.lines[*newer].at;
            let what = format!(
                "{host} saw {newer} of {before:?} and its write {op} of {key:?} counts as older: {at:?}"
            );
            return Err(world.failure(what));
        }
        // A removal that wins ends also what its author has not seen.
        let seen = match key.0 {
            Family::Barred if removes => BTreeSet::from([number(key.1.as_bytes())]),
            _ => seen,
        };
        // Nobody ends what everybody may write at once and only one of which is shown.
        let seen = if key.0.concurrent() == Concurrent::OneWins { BTreeSet::new() } else { seen };
        let did = Did { key: key.clone(), wrote: !removes, seen, may_be_missing: false };
        let life = self.lives[&host];
        self.lines.push(Line { did, host: host.clone(), life, adds, at });
        if key.0 != Family::Ephemeral && self.rng.chance(0.5) {
            self.ask_whether_durable(world, &host, key.0);
        }
        Ok(())
    }

    /// Notes, when the disk says so, that everything its node wrote so far is on it.
    fn ask_whether_durable(&self, world: &mut World, host: &str, family: Family) {
        let life = self.lives[host];
        let is_flag = family == Family::Flag;
        let covered = |line: &Line| {
            let same_set =
                (line.did.key.0 == Family::Flag) == is_flag && line.did.key.0 != Family::Ephemeral;
            line.host == host && line.life == life && same_set
        };
        let lines = self.lines.iter().enumerate().filter(|(_, line)| covered(line));
        let ops: Vec<Op> = lines.map(|(op, _)| op).collect();
        let durable = Arc::clone(&self.durable);
        world.spawn(host, async move |node| {
            if family.set(&node).persisted().await.is_ok() {
                durable.lock().extend(ops);
            }
        });
    }

    /// Keeps the book after something died, or came back.
    fn on(&mut self, world: &World, struck: &Struck) {
        match struck {
            Struck::Nobody => return,
            Struck::Restarted(host) => {
                *self.lives.get_mut(host).expect("every host has a line") += 1;
                return;
            }
            Struck::Died(_) => {}
            Struck::LostDisk(host) => {
                let lines = &self.lines;
                self.durable.lock().retain(|&op| lines[op].host != *host);
            }
        }
        let durable = self.durable.lock().clone();
        let mut visible = BTreeMap::new();
        for op in (0..self.lines.len()).rev() {
            let line = &self.lines[op];
            let is_held = world.is_running(&line.host) && self.lives[&line.host] == line.life;
            if line.did.may_be_missing || durable.contains(&op) || is_held {
                continue;
            }
            let key = &line.did.key;
            let shown = visible.entry(key.clone()).or_insert_with(|| {
                let running = world.running();
                let shown =
                    running.iter().filter_map(|host| world.at(host, |node| readable(node, key)));
                shown.flatten().collect::<BTreeSet<Op>>()
            });
            // Shown, or put an end to by something that is shown.
            let is_there = line.did.wrote
                && (shown.contains(&op) || shown.iter().any(|later| self.ended_by(op, *later)));
            self.lines[op].did.may_be_missing = !is_there;
            // Whoever shows it may have it from a comparison that its author's death cut short:
            // then they do not know what it ended, and that may come back beside it.
            let line = &mut self.lines[op];
            if is_there && !line.did.seen.is_empty() {
                let seen = std::mem::take(&mut line.did.seen);
                let did = Did { wrote: false, seen, may_be_missing: true, ..line.did.clone() };
                let (host, life) = (line.host.clone(), line.life);
                self.lines.push(Line { did, host, life, adds: 0, at: None });
            }
        }
    }

    /// Whether `later` has seen `op`, or something that has.
    fn ended_by(&self, op: Op, later: Op) -> bool {
        let Some(line) = self.lines.get(later) else { return false };
        line.did.seen.contains(&op)
            || line.did.seen.iter().any(|&between| between > op && self.ended_by(op, between))
    }

    /// Holds the book against what can be read in the end.
    fn check(&self, world: &World) -> Result<(), String> {
        let name = &world.running()[0];
        let of = |wanted: Concurrent| {
            let dids = self.lines.iter().map(|line| line.did.clone()).collect::<Vec<_>>();
            let keys: BTreeSet<Key> = dids.iter().map(|did| did.key.clone()).collect();
            let keys = keys
                .into_iter()
                .filter(|(family, _)| *family != Family::Counter && family.concurrent() == wanted);
            let mut read = BTreeMap::new();
            for key in keys {
                let ops = world.at(name, |node| readable(node, &key)).unwrap_or_default();
                read.insert(key, ops);
            }
            // Keys of the other sort are out of the question here: nothing is expected of them.
            let ours = |did: Did<Key>| {
                let other = did.key.0.concurrent() != wanted || !did.key.0.tells_writes();
                Did { may_be_missing: did.may_be_missing || other, ..did }
            };
            let dids: Vec<Did<Key>> = dids.into_iter().map(ours).collect();
            updates::check(&dids, &read, wanted).map_err(|violation| violation.to_string())
        };
        of(Concurrent::Kept)?;
        of(Concurrent::OneWins)?;
        self.check_counters(world, name)
    }

    /// A counter shows at least what must be there and at most what was ever added.
    fn check_counters(&self, world: &World, name: &str) -> Result<(), String> {
        let mut bounds: BTreeMap<&Key, (i128, i128)> = BTreeMap::new();
        for line in self.lines.iter().filter(|line| line.did.key.0.is_counted()) {
            let (least, most) = bounds.entry(&line.did.key).or_default();
            *most += i128::from(line.adds);
            if !line.did.may_be_missing {
                *least += i128::from(line.adds);
            }
        }
        for ((family, counter), (least, most)) in bounds {
            let shows = |cell: Cell| match family {
                Family::Growing => i128::try_from(cell.grown()).unwrap_or(i128::MAX),
                _ => cell.count(),
            };
            let count = world.at(name, |node| node.crdt().get(counter.as_bytes()).map_or(0, shows));
            let count = count.unwrap_or_default();
            if count < least || count > most {
                return Err(format!("{counter} shows {count}, which is not {least} to {most}"));
            }
        }
        Ok(())
    }
}

fn run(world: &mut World, steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let size = [3, 3, 3, 3, 4, 5][rng.below(6)];
    let names = start_all(world, size)?;
    world.until(members(&names), secs(20))?;
    let mut chaos = Chaos::new(world);
    let mut book = Book::new(world, &names);
    for _ in 0..steps {
        book.act(world)?;
        if rng.chance(0.15) {
            let struck = chaos.strike(world)?;
            book.on(world, &struck);
        }
        world.run_for(rng.jitter(ms(150)))?;
    }
    for name in chaos.end(world)? {
        book.on(world, &Struck::Restarted(name));
    }
    world.until(members(&names), secs(60))?.until(converged(), secs(60))?;
    book.check(world).map_err(|violation| world.failure(violation))
}

fn merge_after_split(world: &mut World, steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let names = start_all(world, 5)?;
    world.until(members(&names), secs(20))?;
    let mut book = Book::new(world, &names);
    for split in 0..3 {
        let mut order = names.clone();
        rng.shuffle(&mut order);
        let (one, other) = order.split_at(1 + rng.below(2));
        world.partition(one, other);
        if rng.chance(0.5) {
            let (two, three) = other.split_at(1 + rng.below(2));
            world.partition(two, three);
        }
        // Long enough for the parts to see each other down, now and then.
        let pause = ms(if rng.chance(0.5) { 20 } else { 200 });
        for _ in 0..steps / 3 {
            book.act(world)?;
            world.run_for(rng.jitter(pause))?;
        }
        // Not always in one piece: clocks go wrong in between.
        let skewed = &names[rng.below(5)];
        world.jump_clock(skewed, if split == 1 { 2_500 } else { -2_500 });
        world.heal();
        if rng.chance(0.5) {
            world.until(converged(), secs(30))?;
        }
    }
    world.until(members(&names), secs(30))?.until(converged(), secs(30))?;
    // Nobody died: not one write may be missing.
    book.check(world).map_err(|violation| world.failure(violation))
}
