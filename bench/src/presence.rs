//! Presence: how soon others list it, how soon a dead node's are gone, what a join costs.
//!
//! Three of our nodes, each an OS process, through the façade, TLS and failure detection on. The
//! peer is Elixir's Phoenix.Tracker, which most machines that run this lack: on the machine where
//! the limits were set it listed 10,000 on two other nodes in about 0.5 s, up to 1.5 s of waiting
//! for its next broadcast aside, and showed those of a dead node for 26 s.

use std::time::{Duration, Instant};

use purlin::Node;
use purlin::dist::Tracked;
use purlin::process::Metadata;
use tokio::runtime::Runtime;

use crate::case::{Case, Gauge, GaugeRow, Readings};
use crate::failure::Failure;
use crate::nodes;
use crate::puppet::{Arguments, Puppet, Role, runtime};
use crate::rig::Process;
use crate::stats::Median;
use crate::workshop::Workshop;

/// What this program can be re-executed as for the rows of presence.
pub(crate) const ROLES: &[(&str, Role)] = &[("presence-node", node)];

const TOPIC: &str = "bench/room";
/// How many one node keeps when others are to list them.
const MANY: u64 = 10_000;
/// How many a hot topic has.
const HOT: u64 = 100_000;
/// How many join it, one by one.
const JOINS: u64 = 100;
/// What a message costs on the wire above its payload: our frame header (16), a TLS record (22), and
/// TCP over IPv4 with timestamps (52), there and as the acknowledgement back.
const AROUND_A_FRAME: u64 = 16 + 22 + 2 * 52;
/// How long anything may take before the row counts as not measured.
const WITHIN: Duration = Duration::from_secs(120);

/// The rows of presence.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::Gauge(Gauge {
            name: "presence-10k",
            about: "10,000 presences tracked on one node, one by one, until two others list them all",
            rows: &[GaugeRow { name: "presence-10k", unit: "ms", limit: 300.0 }],
            read: many,
        }),
        Case::Gauge(Gauge {
            name: "presence-dead",
            about: "a node with 1,000 presences is killed, or stopped so that its sockets stay open, until two others list none of them",
            rows: &[
                GaugeRow { name: "presence-dead-kill", unit: "s", limit: 2.5 },
                GaugeRow { name: "presence-dead-silent", unit: "s", limit: 2.5 },
            ],
            read: dead,
        }),
        Case::Gauge(Gauge {
            name: "presence-join",
            about: "100,000 in one topic on three nodes, and 100 more join it one by one: what a node sends and receives for one of them, everything counted",
            rows: &[GaugeRow { name: "presence-join-bytes", unit: "B a node", limit: 1_024.0 }],
            read: join,
        }),
    ]
}

/// Nodes that do what they are told.
struct Nodes {
    cluster: String,
    all: Vec<Process>,
}

impl Nodes {
    fn start(workshop: &Workshop, count: usize) -> Result<Self, Failure> {
        let mut nodes = Self { cluster: workshop.new_folder("presence")?, all: Vec::new() };
        for n in 1..=count {
            let process = nodes.enter(workshop, &format!("n{n}"))?;
            nodes.all.push(process);
        }
        Ok(nodes)
    }

    /// Starts another node, which is not one of `all`.
    fn enter(&self, workshop: &Workshop, name: &str) -> Result<Process, Failure> {
        let mut arguments = vec![self.cluster.as_str(), name];
        arguments.extend(self.all.iter().map(|node| node.ready.as_str()));
        workshop.role("presence-node", &arguments)
    }

    /// Has all `nodes` wait until each lists `count`; returns once they do wait.
    fn expect(nodes: &mut [Process], count: u64) -> Result<(), Failure> {
        for node in &mut *nodes {
            node.tell(&format!("expect {count}"))?;
        }
        nodes.iter_mut().try_for_each(|node| node.expect("armed", WITHIN).map(drop))
    }

    /// Waits until all `nodes` list what they expect.
    fn listed(nodes: &mut [Process]) -> Result<(), Failure> {
        nodes.iter_mut().try_for_each(|node| node.expect("done", WITHIN).map(drop))
    }
}

/// Tells a node something and waits until it is done; returns the number it answers.
fn does(node: &mut Process, what: &str) -> Result<u64, Failure> {
    node.tell(what)?;
    node.expect("done", WITHIN)?.parse().map_err(Failure::role("reading a number"))
}

fn many(workshop: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let mut nodes = Nodes::start(workshop, 3)?;
    let (holder, others) = nodes.all.split_first_mut().expect("three were started");
    let mut times = Vec::new();
    for _ in 0..if brief { 3 } else { 9 } {
        Nodes::expect(others, MANY)?;
        let started = Instant::now();
        does(holder, &format!("hold {MANY}"))?;
        Nodes::listed(others)?;
        times.push(started.elapsed().as_secs_f64() * 1e3);
        Nodes::expect(others, 0)?;
        does(holder, "hold 0")?;
        Nodes::listed(others)?;
    }
    Ok(vec![vec![Median::of(&times).value]])
}

fn dead(workshop: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let mut nodes = Nodes::start(workshop, 2)?;
    let mut readings = vec![Vec::new(), Vec::new()];
    for round in 0..if brief { 1 } else { 5 } {
        for (times, signal) in readings.iter_mut().zip(["KILL", "STOP"]) {
            let mut victim =
                nodes.enter(workshop, &format!("v{round}-{}", signal.to_lowercase()))?;
            Nodes::expect(&mut nodes.all, 1_000)?;
            does(&mut victim, "hold 1000")?;
            Nodes::listed(&mut nodes.all)?;
            Nodes::expect(&mut nodes.all, 0)?;
            let started = Instant::now();
            victim.signal(signal)?;
            Nodes::listed(&mut nodes.all)?;
            times.push(started.elapsed().as_secs_f64());
        }
    }
    Ok(readings)
}

#[expect(clippy::cast_precision_loss, reason = "bytes here are far below 2^52")]
fn join(workshop: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let hot = if brief { HOT / 10 } else { HOT };
    let mut nodes = Nodes::start(workshop, 3)?;
    Nodes::expect(&mut nodes.all[1..], hot)?;
    does(&mut nodes.all[0], &format!("hold {hot}"))?;
    Nodes::listed(&mut nodes.all[1..])?;
    let mut readings = Vec::new();
    for round in 1..=if brief { 1 } else { 3 } {
        let count = |nodes: &mut Nodes| -> Result<Vec<u64>, Failure> {
            nodes.all.iter_mut().map(|node| does(node, "bytes")).collect()
        };
        let before = count(&mut nodes)?;
        let (joining, others) = nodes.all.split_last_mut().expect("three were started");
        Nodes::expect(others, hot + round * JOINS)?;
        does(joining, &format!("join {JOINS}"))?;
        Nodes::listed(others)?;
        let after = count(&mut nodes)?;
        // The worst of the three: the limit binds each.
        let worst = before.into_iter().zip(after).map(|(before, after)| after - before).max();
        readings.push(worst.unwrap_or_default() as f64 / JOINS as f64);
    }
    Ok(vec![readings])
}

/// A node that keeps presences, lists them, and says what it sent and received.
fn node(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let _inside = runtime.enter();
    let seeds = arguments.rest(2);
    let (cluster, name) = (arguments.text(0)?, arguments.text(1)?);
    let node = runtime.block_on(nodes::start(cluster, name, seeds))?;
    let in_touch = || node.dist().rows().status().lag.len() >= seeds.len();
    until(&runtime, "all are in touch", in_touch)?;
    puppet.ready(&node.cluster_addr().to_string());
    let mut held: Vec<Tracked> = Vec::new();
    while let Some(line) = puppet.next_line() {
        let (what, number) = line.split_once(' ').unwrap_or((&line, "0"));
        let number: usize = number.parse().map_err(Failure::role("reading a number"))?;
        let done = match what {
            "hold" => {
                held.truncate(number);
                for n in held.len()..number {
                    held.push(track(&node, name, n)?);
                }
                held.len() as u64
            }
            "join" => {
                for _ in 0..number {
                    held.push(track(&node, name, held.len())?);
                    // Alone, so that none shares a message with another.
                    runtime.block_on(tokio::time::sleep(Duration::from_millis(20)));
                }
                held.len() as u64
            }
            "expect" => {
                puppet.armed();
                let presence = node.presence();
                until(&runtime, "all are listed", || {
                    presence.count(TOPIC) == number
                        && presence.list(TOPIC, None, usize::MAX).len() == number
                })?;
                number as u64
            }
            "bytes" => on_the_wire(&node),
            _ => return Err(Failure::Role(format!("nobody knows how to `{line}`"))),
        };
        puppet.done(done);
    }
    Ok(())
}

fn track(node: &Node, name: &str, n: usize) -> Result<Tracked, Failure> {
    let metadata = Metadata::from_iter([("device", "phone"), ("status", "online")]);
    let tracked = node.presence().track_while_held(TOPIC, &format!("{name}:user:{n:06}"), metadata);
    tracked.map_err(Failure::role("tracking"))
}

/// All that this node's connections carried so far, both ways, with what the wire adds.
fn on_the_wire(node: &Node) -> u64 {
    let channels = node.transport().stats().channels;
    channels
        .iter()
        .map(|it| {
            let frames = it.frames_sent + it.frames_received;
            it.bytes_sent + it.bytes_received + frames * AROUND_A_FRAME
        })
        .sum()
}

fn until(runtime: &Runtime, what: &str, holds: impl Fn() -> bool) -> Result<(), Failure> {
    let deadline = Instant::now() + WITHIN;
    while !holds() {
        if Instant::now() > deadline {
            return Err(Failure::Role(format!("waited {WITHIN:?} in vain until {what}")));
        }
        runtime.block_on(tokio::time::sleep(Duration::from_millis(1)));
    }
    Ok(())
}
