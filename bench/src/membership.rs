//! Failure detection: the membership core of many nodes in a simulated network.
//!
//! What the cluster's own tests run, with more nodes and more seeds. Virtual time, so that the
//! figures are the same on every machine; a datagram is counted with its headers and its seal.

use std::time::Duration;

use purlin_cluster::swim::State;

use crate::case::{Case, Gauge, GaugeRow, Readings};
use crate::failure::Failure;
use crate::workshop::Workshop;

#[path = "../../crates/purlin-cluster/tests/world/mod.rs"]
#[allow(dead_code, reason = "the tests of purlin-cluster use all of it")]
mod world;

use world::{World, lan, secs};

const NODES: usize = 128;
const MANY: usize = 1_000;
/// How long each seed runs at a quarter of all datagrams lost: 128 nodes for that long are so many
/// node-hours.
const LOSSY: Duration = Duration::from_secs(60);

/// The rows of membership.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::Gauge(Gauge {
            name: "membership-128",
            about: "128 simulated nodes with default settings: idle traffic; a node falls silent, until the last of 127 has it down; the same at 25 % loss, with false verdicts counted over 17 node-hours in 8 seeds",
            rows: &[
                GaugeRow { name: "membership-idle", unit: "B/s a node", limit: 500.0 },
                GaugeRow { name: "membership-detection", unit: "s, last of 127", limit: 3.0 },
                GaugeRow { name: "membership-false-deaths", unit: "at 25 % loss", limit: 0.0 },
                GaugeRow {
                    name: "membership-detection-lossy",
                    unit: "s, last of 127",
                    limit: f64::INFINITY,
                },
            ],
            read: at_128,
        }),
        Case::Gauge(Gauge {
            name: "membership-1000",
            about: "1,000 simulated nodes that all join through one: until everybody sees everybody",
            rows: &[GaugeRow { name: "membership-join-1000", unit: "s", limit: f64::INFINITY }],
            read: at_1000,
        }),
    ]
}

fn at_128(_: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let seeds = if brief { 1 } else { 8 };
    let mut readings: Readings = vec![Vec::new(); 4];
    for seed in 0..seeds {
        let mut world = World::formed(seed, NODES, lan());
        world.run_for(secs(5));
        world.clear_records();
        world.run_for(secs(20));
        readings[0].push(world.bytes_per_node_second(secs(20)));
        readings[1].push(silenced(&mut world).as_secs_f64());

        let mut world = World::formed(seed, NODES, lan());
        // Datagrams only: the control channel would hide most of the loss.
        world.control = false;
        world.loss = 0.25;
        world.clear_records();
        world.run_for(LOSSY);
        readings[2].push(world.verdicts().len() as f64);
        readings[3].push(silenced(&mut world).as_secs_f64());
    }
    Ok(readings)
}

/// A node falls silent; how long until all others have it down.
fn silenced(world: &mut World) -> Duration {
    const VICTIM: usize = NODES / 2;
    let observers: Vec<usize> = world.up().into_iter().filter(|node| *node != VICTIM).collect();
    world.crash(VICTIM);
    world.until("all others see it down", secs(60), |world| {
        world.all_believe(&observers, VICTIM, State::Down)
    })
}

fn at_1000(_: &Workshop, _: bool) -> Result<Readings, Failure> {
    let mut world = World::new(1, MANY, lan());
    for node in 1..MANY {
        world.meet(node, 0);
    }
    let started = world.now;
    // Asking a million pairs takes longer than simulating them: not too often.
    while !world.agrees() {
        if world.now - started > secs(120) {
            return Err(Failure::Role("1,000 nodes do not see each other after 120 s".to_owned()));
        }
        world.run_for(Duration::from_millis(100));
    }
    Ok(vec![vec![(world.now - started).as_secs_f64()]])
}
