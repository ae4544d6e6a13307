//! Whole nodes in a simulated world.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use purlin::process::{Metadata, SpawnOptions};
use purlin_sim::{
    Failure, World,
    condition::{converged, down, members},
    ms, secs,
};

fn three(seed: u64) -> Result<World, Failure> {
    let mut world = World::builder(seed).record().build();
    for name in ["a", "b", "c"] {
        world.start(name)?;
    }
    world.until(members(["a", "b", "c"]), secs(10))?;
    Ok(world)
}

#[test]
fn three_nodes_meet_and_a_killed_one_is_noticed_and_comes_back() -> Result<(), Failure> {
    let mut world = three(1)?;
    world.crash("c").until(down("a", "c"), secs(1))?.until(down("b", "c"), secs(1))?;
    world.restart("c")?.until(members(["a", "b", "c"]), secs(10))?;
    Ok(())
}

#[test]
fn both_sides_of_a_cut_write_and_are_equal_after_the_heal() -> Result<(), Failure> {
    let mut world = three(2)?;
    world.partition(["a", "b"], ["c"]);
    world.until(members(["a", "b"]), secs(10))?.until(members(["c"]), secs(10))?;
    for name in ["a", "c"] {
        world.at(name, |node| node.crdt().add("visits", 1).unwrap()).unwrap();
    }
    world.run_for(ms(500))?;
    assert_eq!(world.at("b", |node| node.crdt().get(b"visits").unwrap().count()), Some(1));
    world.heal().until(converged(), secs(10))?.until(members(["a", "b", "c"]), secs(10))?;
    assert_eq!(world.at("b", |node| node.crdt().get(b"visits").unwrap().count()), Some(2));
    Ok(())
}

#[test]
fn interest_is_known_again_when_only_one_side_had_lost_the_other() -> Result<(), Failure> {
    let mut world = three(3)?;
    // `b` hears nothing of `a` and takes it for gone; `a` hears `b` all the time.
    world.cut_one_way("a", "b").run_for(secs(5))?.heal();
    world.until(members(["a", "b", "c"]), secs(10))?.run_for(secs(5))?;
    let heard = Arc::new(AtomicBool::new(false));
    let hears = Arc::clone(&heard);
    world.spawn("b", async move |node| {
        let subscribed = node.pubsub().subscribe("news");
        let mut news = subscribed.expect("a plain topic is a pattern");
        hears.store(news.recv().await.is_some(), Ordering::Relaxed);
    });
    let publish = move |world: &World| {
        world.at("a", |node| node.pubsub().publish("news", "hello").is_ok());
        heard.load(Ordering::Relaxed).then_some(()).ok_or_else(|| "nothing".to_owned())
    };
    world.until(("b to hear what a publishes", publish), secs(5))?;
    Ok(())
}

#[test]
fn the_end_of_a_name_that_the_clock_refuses_to_tell_is_told_later_without_haste()
-> Result<(), Failure> {
    let mut world = three(4)?;
    let key = "desk";
    let registered = world.on("a", async move |node| {
        let desk = node.processes().spawn_remote::<Desk>((), SpawnOptions::default()).await;
        let desk = desk.expect("there is room for a process");
        node.registry().register(key, &desk, Metadata::default()).is_ok()
    })?;
    assert!(registered);
    let seen = move |world: &World| match world.at("b", |node| node.registry().lookup(key)) {
        Some(Some(_)) => Ok(()),
        other => Err(format!("b finds {other:?}")),
    };
    world.until(("b to find it", seen), secs(10))?;
    // Nothing may be issued beyond the mark on disk, and the disk takes no higher one. Whoever
    // retries at once never lets time pass.
    world.fill_disk("a").jump_clock("a", 600_000);
    world.at("a", |node| node.registry().unregister(key).expect("it is there"));
    world.run_for(secs(2))?;
    assert!(world.at("b", |node| node.registry().lookup(key).is_some()).unwrap(), "it was told");
    world.heal().jump_clock("a", -600_000);
    let gone = move |world: &World| match world.at("b", |node| node.registry().lookup(key)) {
        Some(None) => Ok(()),
        other => Err(format!("b finds {other:?}")),
    };
    world.until(("b to find it no more", gone), secs(10))?;
    Ok(())
}

#[test]
fn all_that_a_life_left_behind_is_removed_however_much_it_is() -> Result<(), Failure> {
    let mut world = three(5)?;
    let registered = world.on("c", async move |node| {
        let desk = node.processes().spawn_remote::<Desk>((), SpawnOptions::default()).await;
        let desk = desk.expect("there is room for a process");
        let register =
            |n| node.registry().register(&format!("desk-{n}"), &desk, Metadata::default()).is_ok();
        (0..2_500).filter(|&n| register(n)).count()
    })?;
    assert_eq!(registered, 2_500);
    let known = |world: &World| match world
        .at("a", |node| node.registry().scan("desk-", None, usize::MAX).len())
    {
        Some(2_500) => Ok(()),
        other => Err(format!("a sees {other:?} names")),
    };
    world.until(("a to see all names", known), secs(20))?;
    world.crash("c").restart("c")?;
    let swept = |world: &World| match world.at("a", |node| node.dist().stats().swept) {
        Some(2_500) => Ok(()),
        other => Err(format!("a has removed {other:?}")),
    };
    world.until(("a to have removed all of them", swept), secs(20))?;
    Ok(())
}

/// Somebody to have a name.
struct Desk;

#[purlin::server]
impl Desk {
    #[init]
    fn open() -> Self {
        Self
    }
}
