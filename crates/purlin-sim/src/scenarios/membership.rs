//! Who is here, under faults: the scenarios that membership alone can answer for.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use purlin::cluster::swim::State;
use purlin_core::{Epoch, Incarnation, Rng};

use super::{Scenario, names, start_all};
use crate::{
    Chaos, Failure, Fault, World,
    condition::{converged, down, members, reachable},
    ms, secs,
};

/// After this long nobody may still be wrong about a cut that has healed (the promise is 5 s) or
/// about nodes that were restarted, on a network that loses nothing.
const SETTLED_WITHIN: Duration = Duration::from_secs(15);

pub(super) const CHAOS: Scenario = Scenario {
    name: "membership",
    about: "3 to 7 nodes under every fault: no view ever goes back to an earlier life or an \
            earlier epoch, and after the heal everybody sees everybody",
    steps: 60,
    one_in: 1,
    run: chaos,
    build: |world| world.latency(ms(2), ms(5)),
};

pub(super) const UNREACHABLE: Scenario = Scenario {
    name: "unreachable-member",
    about: "an unreachable member holds up neither joins nor leaves (akka #66)",
    steps: 0,
    one_in: 1,
    run: unreachable_member,
    build: |world| world.latency(ms(2), ms(5)),
};

pub(super) const MASS_RESTART: Scenario = Scenario {
    name: "mass-restart",
    about: "a restart of all nodes in a few seconds leaves nobody dead for anybody (memberlist #345)",
    steps: 0,
    one_in: 1,
    run: mass_restart,
    build: |world| world.latency(ms(2), ms(5)),
};

pub(super) const STARVED: Scenario = Scenario {
    name: "starved-observers",
    about: "three of sixteen nodes get hardly any processor and take no healthy one down (consul #5567)",
    steps: 0,
    one_in: 5,
    run: starved_observers,
    build: |world| world.latency(ms(2), ms(5)),
};

pub(super) const DEAD_LIVES: Scenario = Scenario {
    name: "dead-incarnations",
    about: "a node in a crash loop leaves one member and one life behind, and its lives do not add \
            up in what nodes say to each other (chitchat #161)",
    steps: 12,
    one_in: 1,
    run: dead_incarnations,
    build: |world| world.latency(ms(2), ms(5)),
};

pub(super) const POWER_LOSS: Scenario = Scenario {
    name: "whole-cluster-power-loss",
    about: "when the power of all nodes goes at once, all are back at once, with everything that \
            was acknowledged (orleans #8353)",
    steps: 30,
    one_in: 1,
    run: whole_cluster_power_loss,
    build: |world| world.latency(ms(2), ms(5)),
};

pub(super) const SILENT: Scenario = Scenario {
    name: "silent-death",
    about: "a node whose machine loses power is down for all others within 3 s, and nobody else is, \
            at 25 % loss",
    steps: 0,
    one_in: 1,
    run: silent_death,
    build: |world| world.latency(ms(2), ms(5)),
};

/// No view goes back: not in its epoch, and for no name to an earlier life.
fn never_backwards(world: &mut World) {
    let mut epochs: BTreeMap<(String, Incarnation), Epoch> = BTreeMap::new();
    let mut lives: BTreeMap<(String, Incarnation, String), Incarnation> = BTreeMap::new();
    world.always("no view goes back", move |world| {
        for name in world.running() {
            let Some(view) = world.at(&name, |node| node.cluster().view()) else { continue };
            let me = (name.clone(), view.me.incarnation);
            let epoch = epochs.entry(me.clone()).or_insert(view.epoch);
            if view.epoch < *epoch {
                return Err(format!("{name} is at epoch {:?} after {epoch:?}", view.epoch));
            }
            if *epoch == view.epoch && view.epoch != Epoch(0) {
                continue;
            }
            *epoch = view.epoch;
            for member in &view.members {
                let key = (me.0.clone(), me.1, member.name().to_string());
                let life = lives.entry(key).or_insert(member.id.incarnation);
                if member.id.incarnation < *life {
                    return Err(format!("{name} sees {} after life {life:?}", member.id));
                }
                *life = member.id.incarnation;
            }
        }
        Ok(())
    });
}

fn chaos(world: &mut World, steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let names = start_all(world, 3 + rng.below(5))?;
    world.until(members(&names), secs(20))?;
    never_backwards(world);
    let mut chaos = Chaos::new(world);
    for _ in 0..steps {
        chaos.strike(world)?;
        world.run_for(rng.jitter(ms(800)))?;
    }
    chaos.end(world)?;
    world.until(members(&names), secs(60))?.until(converged(), secs(60))?;
    Ok(())
}

fn unreachable_member(world: &mut World, _steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let names = start_all(world, 4)?;
    world.until(members(&names), secs(20))?;
    let lost = names[rng.below(4)].clone();
    // Gone without a word, or there and not to be reached.
    if rng.chance(0.5) {
        world.power_off(&lost);
    } else {
        world.isolate(&lost);
    }
    // Right away: the others may not even have noticed.
    world.run_for(rng.jitter(secs(4)))?;
    world.start("late")?;
    world.isolate(&lost);
    let mut rest: Vec<String> = names.into_iter().filter(|name| *name != lost).collect();
    rest.push("late".to_owned());
    world.until(members(&rest), SETTLED_WITHIN)?;
    let leaver = rest.remove(rng.below(3));
    world.on(&leaver, async |node| node.drain(Some(secs(5))).await)?;
    let (rest_names, gone) = (rest.clone(), leaver.clone());
    let left = move |world: &World| {
        for name in &rest_names {
            let state = world.at(name, |node| {
                let view = node.cluster().view();
                let member = view.members.iter().find(|member| member.name().as_str() == gone);
                member.map(|member| member.state)
            });
            if !matches!(state, Some(None | Some(State::Left))) {
                return Err(format!("{name} sees {gone} as {state:?}"));
            }
        }
        Ok(())
    };
    world.until((format!("{leaver} to have left for everybody"), left), secs(3))?;
    Ok(())
}

fn mass_restart(world: &mut World, _steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let names = start_all(world, 5 + rng.below(4))?;
    world.until(members(&names), secs(20))?;
    never_backwards(world);
    let mut waiting = names.clone();
    let mut order = names.clone();
    rng.shuffle(&mut order);
    for name in &order {
        if rng.chance(0.5) {
            world.crash(name);
        } else {
            world.power_off(name);
        }
        world.run_for(rng.jitter(ms(1_000)))?;
        // Some come back while others still go.
        if rng.chance(0.5) {
            let back = bring_one_back(world, &mut waiting, &mut rng)?;
            world.run_for(if back { rng.jitter(ms(300)) } else { ms(1) })?;
        }
    }
    while bring_one_back(world, &mut waiting, &mut rng)? {
        world.run_for(rng.jitter(ms(300)))?;
    }
    for name in &names {
        if !world.is_running(name) {
            world.restart(name)?;
        }
    }
    world.until(members(&names), SETTLED_WITHIN)?;
    // And it stays so.
    let all: BTreeSet<String> = names.iter().cloned().collect();
    world.always("nobody is dead for anybody after the restart", move |world| {
        for name in world.running() {
            let seen = world.at(&name, reachable).unwrap_or_default();
            if seen != all {
                return Err(format!("{name} sees {seen:?}"));
            }
        }
        Ok(())
    });
    world.run_for(secs(20))?;
    Ok(())
}

fn bring_one_back(
    world: &mut World,
    waiting: &mut Vec<String>,
    rng: &mut Rng,
) -> Result<bool, Failure> {
    let down: Vec<String> =
        waiting.iter().filter(|name| !world.is_running(name)).cloned().collect();
    if down.is_empty() {
        return Ok(false);
    }
    let name = &down[rng.below(down.len())];
    waiting.retain(|other| other != name);
    world.restart(name)?;
    Ok(true)
}

fn starved_observers(world: &mut World, _steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let names = start_all(world, 16)?;
    world.until(members(&names), secs(30))?;
    let (starved, healthy) = names.split_at(3);
    let healthy: BTreeSet<String> = healthy.iter().cloned().collect();
    let watched = healthy.clone();
    world.always("no healthy node is down for another healthy one", move |world| {
        for name in &watched {
            let seen = world.at(name, reachable).unwrap_or_default();
            if let Some(missing) = watched.difference(&seen).next() {
                return Err(format!("{name} sees {missing} down"));
            }
        }
        Ok(())
    });
    for name in starved {
        let every = ms(300) + rng.jitter(ms(1_200));
        world.slow(name, every);
    }
    world.run_for(secs(30))?;
    world.heal().until(members(&names), SETTLED_WITHIN)?;
    Ok(())
}

fn dead_incarnations(world: &mut World, steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let names = start_all(world, 4)?;
    world.until(members(&names), secs(20))?;
    never_backwards(world);
    let looping = names[rng.below(4)].clone();
    for round in 0..steps {
        world.at(&looping, |node| node.crdt().add("starts", 1).is_ok());
        world.run_for(rng.jitter(ms(600)))?;
        if rng.chance(0.5) {
            world.crash(&looping);
        } else {
            world.power_off(&looping);
        }
        world.run_for(rng.jitter(ms(600)))?;
        // Every third time without its disk: another life that nobody can tell of.
        if round % 3 == 2 {
            world.lose_disk(&looping);
        }
        world.restart(&looping)?;
    }
    world.until(members(&names), SETTLED_WITHIN)?.until(converged(), SETTLED_WITHIN)?;
    for name in &names {
        let view = world.at(name, |node| node.cluster().view());
        let view = view.ok_or_else(|| world.failure(format!("{name} is down")))?;
        if view.members.len() != names.len() {
            let seen: Vec<String> = view.members.iter().map(|it| it.id.to_string()).collect();
            return Err(world.failure(format!("{name} still remembers {}", seen.join(", "))));
        }
    }
    Ok(())
}

fn whole_cluster_power_loss(world: &mut World, steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let names = start_all(world, 3 + rng.below(3))?;
    world.until(members(&names), secs(20))?;
    never_backwards(world);
    let mut acknowledged: BTreeSet<String> = BTreeSet::new();
    for step in 0..steps {
        let name = names[rng.below(names.len())].clone();
        let key = format!("write-{step}");
        let kept = key.clone();
        let is_durable = world.on(&name, async move |node| {
            node.crdt().put(kept, "x", None).is_ok() && node.crdt().persisted().await.is_ok()
        })?;
        if is_durable {
            acknowledged.insert(key);
        }
        // One more that nobody waits for.
        world.at(&name, |node| node.crdt().put(format!("{step}"), "x", None).is_ok());
    }
    for name in &names {
        world.power_off(name);
    }
    world.run_for(rng.jitter(secs(3)))?;
    for name in &names {
        world.restart(name)?;
    }
    world.until(members(&names), SETTLED_WITHIN)?.until(converged(), SETTLED_WITHIN)?;
    for key in &acknowledged {
        let there = world.at(&names[0], |node| node.crdt().get(key.as_bytes()).is_some());
        if there != Some(true) {
            return Err(world.failure(format!("{key} was acknowledged and is gone")));
        }
    }
    Ok(())
}

fn silent_death(world: &mut World, _steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let names = start_all(world, 8)?;
    world.until(members(&names), secs(20))?;
    world.loss(0.25);
    let victim = names[rng.below(8)].clone();
    let others: BTreeSet<String> = names.iter().filter(|name| **name != victim).cloned().collect();
    let watched = others.clone();
    world.always("nobody but the one without power is down", move |world| {
        for name in &watched {
            let seen = world.at(name, reachable).unwrap_or_default();
            if let Some(missing) = watched.difference(&seen).next() {
                return Err(format!("{name} sees {missing} down"));
            }
        }
        Ok(())
    });
    world.run_for(secs(10))?;
    world.power_off(&victim);
    let noticed_by = world.now() + secs(3);
    for name in &others {
        let left = noticed_by.saturating_sub(world.now());
        world.until(down(name, &victim), left)?;
    }
    world.run_for(secs(20))?;
    Ok(())
}

pub(super) const STUCK: Scenario = Scenario {
    name: "stuck-partition",
    about: "after every heal of every shape of cut, everybody reaches everybody again by every \
            service (restate #2655)",
    steps: 6,
    one_in: 1,
    run: stuck_partition,
    build: |world| world.latency(ms(2), ms(5)),
};

fn stuck_partition(world: &mut World, steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let names = start_all(world, 3 + rng.below(3))?;
    world.until(members(&names), secs(20))?;
    super::services::listen(world, &names)?;
    let cuts = [Fault::Partition, Fault::OneWay, Fault::Partial, Fault::Channel];
    let mut chaos = Chaos::new(world).only(cuts);
    for round in 0..steps {
        // One cut for long, or several that come and go.
        for _ in 0..=rng.below(3) {
            chaos.strike(world)?;
            world.run_for(rng.jitter(secs(4)))?;
        }
        // Longer than anybody waits before giving up a stream, now and then.
        if rng.chance(0.3) {
            world.run_for(secs(18))?;
        }
        chaos.end(world)?;
        world.until(members(&names), SETTLED_WITHIN)?;
        super::services::everybody_reaches_everybody(world, &names, round)?;
    }
    Ok(())
}

pub(super) const SIXTY_FOUR: Scenario = Scenario {
    name: "sixty-four",
    about: "64 nodes that start one after the other all see each other, and one's write is everywhere",
    steps: 0,
    one_in: 50,
    run: sixty_four,
    build: |world| world.latency(ms(5), ms(10)),
};

fn sixty_four(world: &mut World, _steps: u32) -> Result<(), Failure> {
    let names = names(64);
    for name in &names {
        world.start(name)?;
    }
    world.until(members(&names), secs(30))?;
    world.at("n7", |node| node.crdt().put("greeting", "hello", None).is_ok());
    world.until(converged(), secs(10))?;
    Ok(())
}
