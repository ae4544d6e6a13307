//! Messages and calls under faults: what arrives, how often, in which order, and what callers learn.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use purlin::{Node, core::Outcome, net::rpc::Method};
use purlin_core::NodeName;

use super::{Scenario, start_all};
use crate::{Chaos, Failure, Fault, World, condition::members, ms, secs};

pub(super) const PUBSUB: Scenario = Scenario {
    name: "pubsub",
    about: "publishers and subscribers on 3 to 5 nodes under every fault: each publisher's messages \
            arrive at most once and in order",
    steps: 80,
    one_in: 1,
    run: pubsub,
    build: |world| world.latency(ms(2), ms(5)),
};

pub(super) const CALLS: Scenario = Scenario {
    name: "calls",
    about: "calls between 3 to 5 nodes under every fault: what is done ran once, what is not done \
            never ran, what is unknown ran at most once, and every caller hears in time",
    steps: 150,
    one_in: 1,
    run: calls,
    build: |world| world.latency(ms(2), ms(5)),
};

const ECHO: Method<u32, u32> = Method::new("sim.echo");
const WORK: Method<u64, u64> = Method::new("sim.work");
const TOPIC: &str = "sim/rounds";

/// Makes every node answer echoes and note what it hears; also after a restart it must be asked
/// again.
pub(super) fn listen(world: &mut World, names: &[String]) -> Result<(), Failure> {
    for name in names {
        let done = world.at(name, |node| {
            node.rpc().serve(ECHO, |_context, number| async move { Ok(number) }).is_ok()
        });
        if done != Some(true) {
            return Err(world.failure(format!("{name} cannot serve")));
        }
    }
    Ok(())
}

/// One call that nobody waits for.
pub(super) fn call_somebody(world: &mut World, from: &str, to: &str) {
    let to = NodeName::parse(to).expect("hosts have node names");
    world.spawn(from, async move |node| {
        // Calling oneself is refused, and as good as any other call here.
        drop(node.rpc().call(&to, ECHO, &0, secs(1)).await);
    });
}

/// Calls until an answer comes, for 15 s at most. A connection that went through the cut may end
/// with the first call on it, as unknown; that is what the caller is told, and the next one works.
async fn reach(node: Node, to: NodeName, number: u32) -> Result<(), String> {
    let until = node.clock().now() + secs(15);
    loop {
        match node.rpc().call(&to, ECHO, &number, secs(5)).await {
            Ok(answer) if answer == number => return Ok(()),
            Ok(answer) => return Err(format!("{to}: {answer} for {number}")),
            Err(error) if node.clock().now() >= until => return Err(format!("{to}: {error}")),
            Err(_) => tokio::time::sleep(ms(100)).await,
        }
    }
}

/// Every node calls every other, and hears what every other publishes and writes.
pub(super) fn everybody_reaches_everybody(
    world: &mut World,
    names: &[String],
    round: u32,
) -> Result<(), Failure> {
    let heard: Arc<Mutex<BTreeSet<(String, String)>>> = Arc::default();
    for name in names {
        let (me, into) = (name.clone(), Arc::clone(&heard));
        world.spawn(name, async move |node| {
            let subscribed = node.pubsub().subscribe(TOPIC);
            let mut news = subscribed.expect("a plain topic is a pattern");
            // Until the world has moved on to another round.
            let until = tokio::time::Instant::now() + secs(20);
            while let Ok(Some(delivery)) = tokio::time::timeout_at(until, news.recv()).await {
                let message = delivery.into_message();
                into.lock().insert((message.publisher().name.to_string(), me.clone()));
            }
        });
    }
    for from in names {
        for to in names.iter().filter(|to| *to != from) {
            let to = NodeName::parse(to).expect("hosts have node names");
            let called = world.on(from, async move |node| reach(node, to, round).await)?;
            if let Err(error) = called {
                return Err(world.failure(format!("{from} cannot call {error}")));
            }
        }
    }
    let all: Vec<String> = names.to_vec();
    let pairs: BTreeSet<(String, String)> =
        names.iter().flat_map(|a| names.iter().map(|b| (a.clone(), b.clone()))).collect();
    let listening = Arc::clone(&heard);
    let everywhere = move |world: &World| {
        for name in &all {
            // Again and again: a publication is at most once, and interest may still be on its way.
            world.at(name, |node| node.pubsub().publish(TOPIC, "round").is_ok());
        }
        match pairs.difference(&listening.lock()).next() {
            None => Ok(()),
            Some((from, to)) => Err(format!("{to} hears nothing of {from}")),
        }
    };
    world.until(("every node to hear what every node publishes", everywhere), secs(15))?;
    for name in names {
        world.at(name, |node| node.crdt().put(format!("{name}-{round}"), "x", None).is_ok());
    }
    world.until(crate::condition::converged(), secs(15))?;
    Ok(())
}

/// What one subscriber heard: per publisher's life the numbers, in order.
type Heard = BTreeMap<String, Vec<u64>>;

async fn follow(node: Node, into: Arc<Mutex<Heard>>) {
    let mut news = node.pubsub().subscribe("sim/*").expect("a sound pattern");
    while let Some(delivery) = news.recv().await {
        let message = delivery.into_message();
        let number = std::str::from_utf8(message.payload()).ok().and_then(|text| text.parse().ok());
        let number = number.expect("every message is a number");
        into.lock().entry(message.publisher().to_string()).or_default().push(number);
    }
}

fn pubsub(world: &mut World, steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let names = start_all(world, 3 + rng.below(3))?;
    world.until(members(&names), secs(20))?;
    let mut all: Vec<(String, Arc<Mutex<Heard>>)> = Vec::new();
    let subscribe = |world: &mut World, name: &str| {
        let heard: Arc<Mutex<Heard>> = Arc::default();
        let into = Arc::clone(&heard);
        world.spawn(name, async move |node| follow(node, into).await);
        heard
    };
    for name in &names {
        let heard = subscribe(world, name);
        all.push((name.clone(), heard));
    }
    let mut chaos = Chaos::new(world);
    let mut number = 0_u64;
    for _ in 0..steps {
        for name in world.running() {
            number += 1;
            let text = number.to_string();
            world.at(&name, |node| node.pubsub().publish(TOPIC, text).is_ok());
        }
        if rng.chance(0.15)
            && let crate::chaos::Struck::Restarted(name) = chaos.strike(world)?
        {
            let heard = subscribe(world, &name);
            all.push((name, heard));
        }
        world.run_for(rng.jitter(ms(150)))?;
    }
    for name in chaos.end(world)? {
        let heard = subscribe(world, &name);
        all.push((name, heard));
    }
    world.until(members(&names), secs(60))?;
    world.run_for(secs(5))?;
    for (name, heard) in &all {
        for (publisher, numbers) in heard.lock().iter() {
            if let Some(pair) = numbers.windows(2).find(|pair| pair[0] >= pair[1]) {
                let what = format!("{name} heard {} after {} of {publisher}", pair[1], pair[0]);
                return Err(world.failure(what));
            }
        }
    }
    Ok(())
}

/// How each call ended, and how often it ran.
#[derive(Default)]
struct Calls {
    ended: BTreeMap<u64, Result<(), Outcome>>,
    ran: BTreeMap<u64, u32>,
    late: Option<String>,
}

const DEADLINE: Duration = Duration::from_secs(2);

fn serve_work(node: &Node, calls: &Arc<Mutex<Calls>>) -> bool {
    let calls = Arc::clone(calls);
    let work = move |_context, number: u64| {
        let calls = Arc::clone(&calls);
        async move {
            *calls.lock().ran.entry(number).or_default() += 1;
            // Some work takes longer than its caller waits.
            tokio::time::sleep(ms(number * 37 % 2_500)).await;
            Ok(number)
        }
    };
    node.rpc().serve(WORK, work).is_ok()
}

fn calls(world: &mut World, steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let names = start_all(world, 3 + rng.below(3))?;
    world.until(members(&names), secs(20))?;
    let calls: Arc<Mutex<Calls>> = Arc::default();
    for name in &names {
        world.at(name, |node| serve_work(node, &calls));
    }
    // A host that stands still cannot hear in time.
    let mut chaos = Chaos::new(world).without([Fault::Pause, Fault::Slow]);
    for number in 0..u64::from(steps) {
        let running = world.running();
        if running.len() > 1 {
            let from = running[rng.below(running.len())].clone();
            let to = names.iter().filter(|name| **name != from).nth(rng.below(names.len() - 1));
            let to = NodeName::parse(to.expect("one of the others")).expect("a node's name");
            let into = Arc::clone(&calls);
            world.spawn(&from, async move |node| {
                let began = node.clock().now();
                let called = node.rpc().call(&to, WORK, &number, DEADLINE).await;
                let took = node.clock().now() - began;
                let mut calls = into.lock();
                if took > DEADLINE + ms(100) {
                    calls.late.get_or_insert_with(|| format!("call {number} ended after {took:?}"));
                }
                calls.ended.insert(number, called.map(drop).map_err(|error| error.outcome()));
            });
        }
        if rng.chance(0.1)
            && let crate::chaos::Struck::Restarted(name) = chaos.strike(world)?
        {
            world.at(&name, |node| serve_work(node, &calls));
        }
        world.run_for(rng.jitter(ms(150)))?;
    }
    for name in chaos.end(world)? {
        world.at(&name, |node| serve_work(node, &calls));
    }
    world.run_for(DEADLINE + secs(3))?;
    let Calls { ended, ran, late } = &*calls.lock();
    if let Some(late) = late {
        return Err(world.failure(late.clone()));
    }
    for (number, outcome) in ended {
        let count = ran.get(number).copied().unwrap_or_default();
        let is_right = match outcome {
            Ok(()) => count == 1,
            Err(Outcome::NotDone) => count == 0,
            Err(Outcome::Unknown) => count <= 1,
        };
        if !is_right {
            let what = format!("call {number} ended as {outcome:?} and ran {count} times");
            return Err(world.failure(what));
        }
    }
    Ok(())
}
