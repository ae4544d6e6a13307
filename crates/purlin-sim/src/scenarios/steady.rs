//! Nothing goes wrong: how fast the simulator is.

use super::{Scenario, start_all};
use crate::{
    Failure, World,
    condition::{converged, members},
    ms, secs,
};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "steady",
    about: "five nodes with traffic on every service and no fault, a second of it per step: how many \
            virtual seconds a real one is worth",
    steps: 20,
    one_in: 5,
    run,
    build: |world| world,
};

fn run(world: &mut World, steps: u32) -> Result<(), Failure> {
    let names = start_all(world, 5)?;
    world.until(members(&names), secs(20))?;
    super::services::listen(world, &names)?;
    for name in &names {
        world.spawn(name, async move |node| {
            let subscribed = node.pubsub().subscribe("steady");
            let mut news = subscribed.expect("a plain topic is a pattern");
            while news.recv().await.is_some() {}
        });
    }
    let mut rng = world.rng();
    for _second in 0..steps {
        // A hundred writes, ten publications and ten calls a second.
        for tenth in 0..10 {
            let name = &names[rng.below(5)];
            world.at(name, |node| node.pubsub().publish("steady", "news").is_ok());
            super::services::call_somebody(world, name, &names[tenth % 5]);
            for _ in 0..10 {
                let name = &names[rng.below(5)];
                let key = format!("key-{}", rng.below(1_000));
                world.at(name, |node| node.crdt().put(key, "value", None).is_ok());
                world.run_for(ms(10))?;
            }
        }
    }
    world.until(converged(), secs(5))?;
    Ok(())
}
