//! How to test a service of your own under a partition: in virtual time, in a second, the same
//! every time.
//!
//! The service counts page visits on whichever node they happen, and any node can be asked. The
//! test plays what takes minutes and a second machine elsewhere: a cut, visits on both sides, a
//! call into the dark, a heal. With another seed other messages are early and late.

use purlin::{
    core::Outcome,
    net::rpc::{Method, Rejection},
    prelude::*,
};
use purlin_sim::{Failure, World, condition::members, ms, secs};

const VISIT: Method<String, i64> = Method::new("pages.visit");

/// The service: a visit of a page is counted here; the answer is what this node knows of.
async fn pages(node: Node) {
    let counts = node.crdt().clone();
    let visit = move |_context, page: String| {
        let counted = counts.add(page, 1).map_err(|error| Rejection::new(error.to_string()));
        async move { counted.map(|count| i64::try_from(count).unwrap_or(i64::MAX)) }
    };
    node.rpc().serve(VISIT, visit).expect("served once per node");
    node.stopped().await;
}

fn visit(world: &mut World, from: &str, at: &'static str) -> Result<Result<i64, Outcome>, Failure> {
    world.on(from, async move |node| {
        let (at, page) = (NodeName::parse(at).expect("a name"), "/home".to_owned());
        let called = node.rpc().call(&at, VISIT, &page, secs(1)).await;
        called.map_err(|error| error.outcome())
    })
}

#[test]
fn visits_are_counted_on_both_sides_of_a_cut_and_none_is_lost() -> Result<(), Failure> {
    let mut world = World::new(7);
    for name in ["paris", "lyon", "nice"] {
        world.start_running(name, pages)?;
    }
    world.until(members(["paris", "lyon", "nice"]), secs(10))?;
    assert_eq!(visit(&mut world, "lyon", "paris")?, Ok(1));

    world.partition(["paris"], ["lyon", "nice"]);
    // Sent, and never answered: it may have been counted, and here it was not.
    assert_eq!(visit(&mut world, "lyon", "paris")?, Err(Outcome::Unknown));
    for _ in 0..3 {
        visit(&mut world, "lyon", "nice")?.expect("they see each other");
    }
    world.at("paris", |node| node.crdt().add("/home", 1).is_ok());
    world.crash("nice").run_for(ms(500))?.restart("nice")?;

    world.heal().until(
        ("everybody to know all visits", |world: &World| {
            for name in world.running() {
                let count = world.at(&name, |node| node.crdt().get(b"/home").map(|it| it.count()));
                if count.flatten() != Some(5) {
                    return Err(format!("{name} knows of {count:?}"));
                }
            }
            Ok(())
        }),
        secs(10),
    )?;
    Ok(())
}
