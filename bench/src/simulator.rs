//! How fast the simulator is: whole nodes in virtual time.

use std::time::{Duration, Instant};

use purlin_sim::{World, condition::members, ms, secs};

use crate::case::{Case, Gauge, GaugeRow, Readings};
use crate::failure::Failure;
use crate::workshop::Workshop;

const NODES: usize = 5;
const MANY: usize = 64;
/// Each node writes and publishes so often a virtual second.
const PER_SECOND: u32 = 20;

/// The rows of the simulator.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::Gauge(Gauge {
            name: "simulator-traffic",
            about: "real time for a virtual second of 5 whole nodes that each write 20 replicated values and publish 20 messages to all a second",
            // 100 virtual seconds a second.
            rows: &[GaugeRow { name: "simulator-5", unit: "ms a virtual s", limit: 10.0 }],
            read: traffic,
        }),
        Case::Gauge(Gauge {
            name: "simulator-join",
            about: "real time for 64 whole nodes from their start until everybody sees everybody",
            rows: &[GaugeRow { name: "simulator-join-64", unit: "s", limit: f64::INFINITY }],
            read: join,
        }),
    ]
}

fn traffic(_: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let seconds = if brief { 5 } else { 60 };
    let mut world = World::new(1);
    let names: Vec<String> = start(&mut world, NODES)?;
    for name in &names {
        let heard = world.at(name, |node| node.pubsub().subscribe("news/*"));
        let mut heard = heard
            .ok_or_else(|| Failure::Role(format!("{name} is not there")))?
            .map_err(Failure::role("subscribing"))?;
        world.spawn(name, async move |_| while heard.recv().await.is_some() {});
    }
    world.run_for(secs(2)).map_err(Failure::role("warming up"))?;
    let started = Instant::now();
    for turn in 0..seconds * PER_SECOND {
        for name in &names {
            let done = world.at(name, |node| {
                let key = format!("{name}/{}", turn % 100);
                node.crdt().put(key, turn.to_string(), None).is_ok()
                    && node.pubsub().publish("news/all", turn.to_string()).is_ok()
            });
            if done != Some(true) {
                return Err(Failure::Role(format!("{name} refused its work in turn {turn}")));
            }
        }
        world.run_for(secs(1) / PER_SECOND).map_err(Failure::role("going on"))?;
    }
    Ok(vec![vec![started.elapsed().as_secs_f64() * 1e3 / f64::from(seconds)]])
}

fn join(_: &Workshop, _: bool) -> Result<Readings, Failure> {
    let started = Instant::now();
    start(&mut World::new(2), MANY)?;
    Ok(vec![vec![started.elapsed().as_secs_f64()]])
}

/// Starts so many nodes and waits until everybody sees everybody.
fn start(world: &mut World, count: usize) -> Result<Vec<String>, Failure> {
    let names: Vec<String> = (1..=count).map(|n| format!("n{n}")).collect();
    for name in &names {
        world.start(name).map_err(Failure::role("starting a simulated node"))?;
    }
    let within = Duration::from_secs(120);
    world
        .until(members(names.clone()), within)
        .map_err(Failure::role("waiting for the simulated nodes"))?;
    world.run_for(ms(100)).map_err(Failure::role("going on"))?;
    Ok(names)
}
