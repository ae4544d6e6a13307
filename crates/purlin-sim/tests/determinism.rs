//! The same seed gives the same run: in one process, and in another.
#![expect(clippy::unwrap_used, reason = "a simulation that cannot go on should fail loudly")]

use std::{env, fs, process::Command};

use purlin_sim::{Failure, World, condition::members, ms, secs};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Whole nodes with traffic on every service, and faults of every kind; the trace as text.
fn run(seed: u64) -> Result<String, Failure> {
    let mut world = World::builder(seed).record().build();
    for name in NAMES {
        world.start(name)?;
    }
    world.until(members(NAMES), secs(10))?;
    for name in NAMES {
        world.on(name, async |node| {
            let mut news = node.pubsub().subscribe("news/*").unwrap();
            tokio::spawn(async move {
                let _node = node;
                while news.recv().await.is_some() {}
            });
        })?;
    }
    let mut rng = world.rng();
    for round in 0..60 {
        let name = NAMES[rng.below(NAMES.len())];
        let other = NAMES[rng.below(NAMES.len())];
        match rng.below(14) {
            0 => drop(world.loss(0.2)),
            1 => drop(world.delay(ms(5), ms(30)).duplicate(0.1)),
            2 if name != other => drop(world.partition([name], [other])),
            3 if name != other => drop(world.cut_one_way(name, other)),
            4 => drop(world.pause(name, ms(700))),
            5 => drop(world.slow(name, ms(50))),
            6 => drop(world.jump_clock(name, 4_000)),
            7 if world.is_running(name) => drop(world.crash(name)),
            8 if world.is_running(name) => drop(world.power_off(name)),
            9 | 10 if !world.is_running(name) => drop(world.restart(name)?),
            11 | 12 => drop(world.heal()),
            _ => {}
        }
        for name in NAMES {
            world.at(name, |node| {
                drop(node.crdt().add("rounds", 1));
                drop(node.ephemeral().put(format!("round-{round}"), "x", Some(secs(3))));
                drop(node.pubsub().publish("news/local", "it is round now"));
            });
        }
        world.run_for(rng.jitter(ms(400)))?;
    }
    world.heal();
    for name in NAMES {
        if !world.is_running(name) {
            world.restart(name)?;
        }
    }
    world.run_for(secs(5))?;
    for name in NAMES {
        let state = world.at(name, |node| format!("{:?}", node.crdt().scan(b"", None, 1_000)));
        world.note(format!("{name}: {state:?}"));
    }
    Ok(world.with_trace(|trace| format!("{}{:x}\n", trace.text(), trace.digest())))
}

/// Set for the process that only writes down its trace.
const INTO: &str = "PURLIN_SIM_TRACE_INTO";

fn assert_equal(one: &str, other: &str) {
    let at = one.lines().zip(other.lines()).position(|(one, other)| one != other);
    if let Some(at) = at {
        let around = |text: &str| {
            text.lines()
                .skip(at.saturating_sub(5))
                .take(10)
                .map(|l| format!("{l}\n"))
                .collect::<String>()
        };
        panic!("line {at} differs:\n{}---\n{}", around(one), around(other));
    }
    assert_eq!(one.len(), other.len(), "one trace goes on longer");
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() -> Result<(), Failure> {
    let first = run(42)?;
    assert_equal(&first, &run(42)?);
    assert_ne!(first, run(43)?);
    Ok(())
}

#[test]
fn another_process_gives_the_same_trace() -> Result<(), Failure> {
    let trace = run(7)?;
    if let Some(into) = env::var_os(INTO) {
        fs::write(into, trace).unwrap();
        return Ok(());
    }
    let dir = tempfile::tempdir().unwrap();
    let into = dir.path().join("trace");
    let child = Command::new(env::current_exe().unwrap())
        .args(["--exact", "another_process_gives_the_same_trace"])
        .env(INTO, &into)
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stdout));
    assert_equal(&trace, &fs::read_to_string(into).unwrap());
    Ok(())
}
