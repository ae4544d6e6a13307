//! Replicated state: what a write and a read cost here, and what it takes to be equal elsewhere.
//!
//! The peer is Elixir's `delta_crdt`, which most machines that run this lack; the limits are multiples
//! of what it did on the machine where they were set: 70,000 puts a second. Its gets, each a call to
//! its one process, are taken to be no faster. Nodes are started through the façade, TLS on, all in
//! this process; bytes and rounds among a million keys are counted on the pure core, where no clock
//! can change them.

use std::collections::VecDeque;
use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use purlin::Node;
use purlin_core::{Hlc, Incarnation, NodeId, NodeName, Rng, WallTime, hlc::NodeTag};
use purlin_replica::slot::Slot;
use purlin_replica::sync::{Input, Output, Sync, SyncConfig};
use purlin_replica::wire::Message;
use purlin_replica::{Interest, Written};
use tokio::runtime::Runtime;

use crate::case::{Case, Gauge, GaugeRow, Readings};
use crate::failure::Failure;
use crate::idle::resident_megabytes;
use crate::nodes;
use crate::puppet::runtime;
use crate::stats::Median;
use crate::workshop::Workshop;

/// Keys that are written and read again and again.
const KEYS: usize = 10_000;
const VALUE: &[u8; 16] = b"0123456789abcdef";
/// Bytes of a key and a value.
const ENTRY_BYTES: usize = 12 + VALUE.len();

/// The rows of replicated state.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::Gauge(Gauge {
            name: "crdt-map",
            about: "one put over a value, and one get, among 10,000 keys of a node that stands alone",
            rows: &[
                // 20 times 70,000 a second, and 100 times.
                GaugeRow { name: "crdt-map-put", unit: "ns", limit: 714.0 },
                GaugeRow { name: "crdt-map-get", unit: "ns", limit: 143.0 },
            ],
            read: local,
        }),
        Case::Gauge(Gauge {
            name: "crdt-converge",
            about: "10,000 puts of new keys on one of three connected nodes, until the other two have them all; and the payload sent between all of them, by the bytes of keys and values times two",
            rows: &[
                GaugeRow { name: "crdt-converge-time", unit: "ms", limit: 300.0 },
                GaugeRow { name: "crdt-converge-bytes", unit: "x", limit: 2.0 },
            ],
            read: converge,
        }),
        Case::Gauge(Gauge {
            name: "crdt-million",
            about: "a million keys: memory of one above its key and value; and one change while two nodes were apart: bytes and round trips until both are equal, greetings included",
            rows: &[
                GaugeRow { name: "crdt-memory", unit: "B a key", limit: 300.0 },
                GaugeRow { name: "crdt-change-bytes", unit: "B", limit: 50_000.0 },
                GaugeRow { name: "crdt-change-rounds", unit: "round trips", limit: 3.0 },
            ],
            read: million,
        }),
    ]
}

fn key(n: usize) -> Bytes {
    format!("key:{n:08}").into()
}

fn local(workshop: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let runtime = runtime()?;
    let node = runtime.block_on(nodes::start(&workshop.new_folder("crdt")?, "alone", &[]))?;
    let keys: Vec<Bytes> = (0..KEYS).map(key).collect();
    let count = if brief { 100_000 } else { 1_000_000 };
    let rounds = if brief { 3 } else { 7 };
    let (mut puts, mut gets) = (Vec::new(), Vec::new());
    for _ in 0..=rounds {
        let started = Instant::now();
        for n in 0..count {
            let put = node.crdt().put(keys[n % KEYS].clone(), &VALUE[..], None);
            put.map_err(Failure::role("putting"))?;
        }
        puts.push(nanos(started, count));
        let started = Instant::now();
        // In an order that no cache can guess.
        let found =
            (0..count).filter(|n| black_box(node.crdt().get(&keys[n * 7_919 % KEYS])).is_some());
        if found.count() != count {
            return Err(Failure::Role("a key that was put is not there".to_owned()));
        }
        gets.push(nanos(started, count));
    }
    // The first round makes the keys.
    Ok([puts, gets].map(|readings| vec![Median::of(&readings[1..]).value]).into())
}

#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
fn nanos(started: Instant, count: usize) -> f64 {
    started.elapsed().as_secs_f64() * 1e9 / count as f64
}

fn converge(workshop: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let runtime = runtime()?;
    let _inside = runtime.enter();
    let folder = workshop.new_folder("crdt-three")?;
    let mut three: Vec<Node> = Vec::new();
    for name in ["a", "b", "c"] {
        let seeds: Vec<String> = three.iter().map(|node| node.cluster_addr().to_string()).collect();
        three.push(runtime.block_on(nodes::start(&folder, name, &seeds))?);
    }
    let in_touch = |node: &Node| {
        let lag = node.crdt().status().lag;
        lag.len() == 2 && lag.iter().all(|peer| peer.caught_up.is_some() && peer.writes == 0)
    };
    until(&runtime, "all three are in touch", || three.iter().all(in_touch))?;
    let life = NodeTag::of(three[0].id());
    let (mut times, mut ratios) = (Vec::new(), Vec::new());
    for round in 0..if brief { 3 } else { 7 } {
        let before = sent(&three);
        let started = Instant::now();
        for n in 0..KEYS {
            let put = three[0].crdt().put(key(round * KEYS + n), &VALUE[..], None);
            put.map_err(Failure::role("putting"))?;
        }
        let written = three[0].crdt().written();
        let has_all = |node: &Node| node.crdt().seen(life) >= written;
        until(&runtime, "the others have it", || three[1..].iter().all(has_all))?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
        until(&runtime, "all is confirmed", || three.iter().all(in_touch))?;
        ratios.push(ratio(sent(&three) - before, 2 * KEYS * ENTRY_BYTES));
    }
    Ok(vec![vec![Median::of(&times).value], ratios])
}

#[expect(clippy::cast_precision_loss, reason = "bytes here are far below 2^52")]
fn ratio(sent: u64, entries: usize) -> f64 {
    sent as f64 / entries as f64
}

/// Bytes that replicas handed to their channels: nothing else uses the one they are on.
fn sent(nodes: &[Node]) -> u64 {
    let of = |node: &Node| -> u64 {
        let stats = node.transport().stats();
        let stream = stats.channels.iter().filter(|channel| channel.name.as_str() == "stream");
        stream.map(|channel| channel.bytes_sent).sum()
    };
    nodes.iter().map(of).sum()
}

fn until(runtime: &Runtime, what: &str, mut holds: impl FnMut() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        if Instant::now() > deadline {
            return Err(Failure::Role(format!("waited 30 s in vain until {what}")));
        }
        runtime.block_on(tokio::time::sleep(Duration::from_micros(500)));
    }
    Ok(())
}

fn million(workshop: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let keys = if brief { 100_000 } else { 1_000_000 };
    let memory = memory_per_key(workshop, keys)?;
    let mut pair = Pair::new()?;
    for n in 0..keys {
        pair.put(n)?;
    }
    pair.connect()?;
    pair.disconnect();
    pair.put(keys / 2)?;
    let (bytes, rounds) = pair.connect()?;
    Ok(vec![vec![memory], vec![bytes], vec![rounds]])
}

/// Resident memory that a key costs above its own bytes and those of its value.
#[expect(clippy::cast_precision_loss, reason = "keys here are far below 2^52")]
fn memory_per_key(workshop: &Workshop, keys: usize) -> Result<f64, Failure> {
    let runtime = runtime()?;
    let _inside = runtime.enter();
    let node = runtime.block_on(nodes::start(&workshop.new_folder("crdt-big")?, "big", &[]))?;
    let before = resident_megabytes(std::process::id())?;
    for n in 0..keys {
        let put = node.crdt().put(key(n), VALUE.to_vec(), None);
        put.map_err(Failure::role("putting"))?;
    }
    let grown = (resident_megabytes(std::process::id())? - before) * 1e6;
    Ok(grown / keys as f64 - ENTRY_BYTES as f64)
}

/// Two replicas' cores, and what is on its way between them.
struct Pair {
    ids: [NodeId; 2],
    cores: [Sync; 2],
    clock: Hlc,
}

impl Pair {
    fn new() -> Result<Self, Failure> {
        let id = |name| -> Result<NodeId, Failure> {
            let name = NodeName::parse(name).map_err(Failure::role("naming a node"))?;
            Ok(NodeId::new(name, Incarnation(1)))
        };
        let ids = [id("a")?, id("b")?];
        let core = |id| {
            let start = purlin_core::Instant::ZERO;
            let mut core = Sync::new(SyncConfig::default(), id, start, Rng::from_seed(1));
            core.begin(&Interest::all(), &mut Vec::new());
            core
        };
        Ok(Self { cores: [core(&ids[0]), core(&ids[1])], clock: Hlc::new(&ids[0]), ids })
    }

    fn put(&mut self, n: usize) -> Result<(), Failure> {
        let slot = Slot::new(key(n)).map_err(Failure::role("making a key"))?;
        let at = self.clock.now(WallTime::from_millis(1)).map_err(Failure::role("stamping"))?;
        let written = Written { at, expires: None, value: VALUE.to_vec().into() };
        let change =
            |store: &mut purlin_replica::store::Store| store.put(slot.clone(), written).map(Some);
        let done = self.cores[0].write(purlin_core::Instant::ZERO, &slot, change, &mut Vec::new());
        done.map(drop).map_err(Failure::role("putting"))
    }

    /// Brings them together, and delivers what they say until they have nothing more to say.
    /// Returns the bytes, and how long the longest chain of messages was, in round trips.
    #[expect(clippy::cast_precision_loss, reason = "bytes here are far below 2^52")]
    fn connect(&mut self) -> Result<(f64, f64), Failure> {
        let mut wire: VecDeque<(usize, usize, Vec<u8>)> = VecDeque::new();
        for n in 0..2 {
            let other = self.ids[1 - n].clone();
            self.step(n, Input::Up(other), 1, &mut wire);
        }
        let (mut bytes, mut hops) = (0, 0);
        while let Some((to, hop, message)) = wire.pop_front() {
            bytes += message.len();
            hops = hop.max(hops);
            let message = Message::decode(&message).map_err(Failure::role("reading a message"))?;
            let from = self.ids[1 - to].clone();
            self.step(to, Input::Heard(from, message), hop + 1, &mut wire);
        }
        if self.cores[0].store().len() != self.cores[1].store().len() {
            return Err(Failure::Role("the two are not equal".to_owned()));
        }
        Ok((bytes as f64, hops as f64 / 2.0))
    }

    fn disconnect(&mut self) {
        for n in 0..2 {
            let other = self.ids[1 - n].clone();
            self.step(n, Input::Down(other), 0, &mut VecDeque::new());
        }
    }

    fn step(
        &mut self,
        n: usize,
        input: Input,
        hop: usize,
        wire: &mut VecDeque<(usize, usize, Vec<u8>)>,
    ) {
        let mut out = Vec::new();
        self.cores[n].step(purlin_core::Instant::ZERO, WallTime::from_millis(1), input, &mut out);
        let sent = out.into_iter().filter_map(|output| match output {
            Output::Send(_, message) => Some((1 - n, hop, message.encode())),
            Output::Changed { .. }
            | Output::Expired(_)
            | Output::Dropped(_)
            | Output::CaughtUp(_)
            | Output::Persist(_)
            | Output::Refused(..)
            | Output::Incompatible(..)
            | Output::Revenant(_) => None,
        });
        wire.extend(sent);
    }
}

#[cfg(test)]
mod tests {
    use super::Pair;

    #[test]
    fn two_cores_become_equal_and_say_what_it_took() {
        let mut pair = Pair::new().unwrap();
        (0..1_000).for_each(|n| pair.put(n).unwrap());
        let (bytes, rounds) = pair.connect().unwrap();
        assert!(bytes > 1_000.0 * 28.0 && rounds >= 3.0);
        pair.disconnect();
        pair.put(500).unwrap();
        let (bytes, rounds) = pair.connect().unwrap();
        assert!(bytes < 50_000.0 && rounds <= 3.0, "{bytes} {rounds}");
    }
}
