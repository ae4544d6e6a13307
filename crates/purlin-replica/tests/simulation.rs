//! Whole replica sets under loss, reordering, doubling, partitions and restarts, from one seed.
//!
//! Faults first, while every step checks what must never happen; then the network heals, and all
//! replicas must become equal with every write accounted for. A failure prints its seed:
//! `PURLIN_SIM_SEED=7 cargo test -p purlin-replica --test simulation`.
#![expect(clippy::unwrap_used, reason = "a simulation that cannot go on should fail loudly")]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use purlin_check::updates::{self, Concurrent, Did};
use purlin_core::{Hlc, Incarnation, Instant, NodeId, NodeName, Rng, WallTime};
use purlin_replica::{
    cell::Written,
    slot::Slot,
    store::Store,
    sync::{Input, Output, Sync, SyncConfig},
    wire::Message,
};

struct Node {
    id: NodeId,
    sync: Sync,
    hlc: Hlc,
}

struct World {
    rng: Rng,
    now: Instant,
    nodes: Vec<Node>,
    /// (arrives, tie, from, to, bytes)
    wire: BTreeMap<(Instant, u64), (NodeId, NodeId, Vec<u8>)>,
    tie: u64,
    cut: BTreeSet<(usize, usize)>,
    loss: f64,
    config: SyncConfig,
    /// Everything anybody did, with what they had seen, and who did it.
    history: Vec<(Did<String>, NodeId)>,
    lost_lives: BTreeSet<NodeId>,
    next_key: u32,
    edges: BTreeSet<(usize, usize)>,
}

impl World {
    fn new(seed: u64, size: usize, ring: bool) -> Self {
        let config = SyncConfig {
            log_bytes_max: 2_000,
            batch_bytes: 300,
            forward: ring,
            ..SyncConfig::default()
        };
        let mut edges = BTreeSet::new();
        for a in 0..size {
            for b in 0..size {
                if a != b && (!ring || (a + 1) % size == b || (b + 1) % size == a) {
                    edges.insert((a, b));
                }
            }
        }
        let mut world = Self {
            rng: Rng::from_seed(seed),
            now: Instant::ZERO,
            nodes: Vec::new(),
            wire: BTreeMap::new(),
            tie: 0,
            cut: BTreeSet::new(),
            loss: 0.0,
            config,
            history: Vec::new(),
            lost_lives: BTreeSet::new(),
            next_key: 0,
            edges,
        };
        for n in 0..size {
            let node = world.born(n, 1);
            world.nodes.push(node);
        }
        for (a, b) in world.edges.clone() {
            let to = world.nodes[b].id.clone();
            world.input(a, Input::Up(to));
        }
        world
    }

    fn born(&mut self, n: usize, life: u64) -> Node {
        let id = NodeId::new(NodeName::parse(&format!("n{n}")).unwrap(), Incarnation(life));
        let rng = self.rng.fork();
        Node { hlc: Hlc::new(&id), sync: Sync::new(self.config, &id, self.now, rng), id }
    }

    fn wall(&self) -> WallTime {
        WallTime::from_millis(
            1_000_000 + u64::try_from(self.now.since_start().as_millis()).unwrap(),
        )
    }

    fn input(&mut self, n: usize, input: Input) {
        let (now, wall) = (self.now, self.wall());
        let mut out = Vec::new();
        self.nodes[n].sync.step(now, wall, input, &mut out);
        self.carry_out(n, out);
    }

    fn carry_out(&mut self, n: usize, out: Vec<Output>) {
        for output in out {
            let Output::Send(to, message) = output else { continue };
            let m = self.nodes.iter().position(|node| node.id.name == to.name).unwrap();
            if self.cut.contains(&(n, m)) || self.rng.chance(self.loss) {
                continue;
            }
            let copies = if self.rng.chance(self.loss / 4.0) { 2 } else { 1 };
            for _ in 0..copies {
                let arrives = self.now + self.rng.jitter(Duration::from_millis(40));
                self.tie += 1;
                let from = self.nodes[n].id.clone();
                self.wire.insert((arrives, self.tie), (from, to.clone(), message.encode()));
            }
        }
    }

    /// Lets time pass until `until`, delivering and waking in order.
    fn run(&mut self, until: Instant) {
        loop {
            let wall = self.wall();
            let wake = (0..self.nodes.len())
                .map(|n| (self.nodes[n].sync.wake_at(self.now, wall), n))
                .min()
                .unwrap();
            let arrival = self.wire.first_key_value().map(|(&(at, _), _)| at);
            let next = arrival.map_or(wake.0, |at| at.min(wake.0)).max(self.now);
            if next > until {
                self.now = until;
                return;
            }
            self.now = next;
            if arrival.is_some_and(|at| at <= next) {
                let (_, (from, to, bytes)) = self.wire.pop_first().unwrap();
                let n = self.nodes.iter().position(|node| node.id == to);
                if let Some(n) = n {
                    let message = Message::decode(&bytes).unwrap();
                    self.input(n, Input::Heard(from, message));
                }
            } else {
                self.input(wake.1, Input::Woke);
            }
        }
    }

    /// Writes to or removes `key` on the node `n`. A write's value is its number in the history.
    fn write(&mut self, n: usize, key: &str, wrote: bool) {
        let (now, wall) = (self.now, self.wall());
        let at = self.nodes[n].hlc.now(wall).unwrap();
        let slot = Slot::new(key.to_owned()).unwrap();
        let seen = readable(&self.nodes[n].sync, &slot);
        let op = self.history.len() as u64;
        let did = Did { key: key.to_owned(), wrote, seen, may_be_missing: false };
        self.history.push((did, self.nodes[n].id.clone()));
        let mut out = Vec::new();
        let change = |store: &mut Store| {
            if !wrote {
                return Ok(store.remove(&slot));
            }
            let value = op.to_le_bytes().to_vec().into();
            store.put(slot.clone(), Written { at, expires: None, value }).map(Some)
        };
        self.nodes[n].sync.write(now, &slot, change, &mut out).unwrap();
        self.carry_out(n, out);
    }

    fn act(&mut self) {
        let n = self.rng.below(self.nodes.len());
        match self.rng.below(10) {
            // A key of its own, kept for good.
            0..=3 => {
                self.next_key += 1;
                self.write(n, &format!("kept:{}", self.next_key), true);
            }
            // A key of its own, written and soon removed by the same node.
            4 => {
                self.next_key += 1;
                let key = format!("removed:{}", self.next_key);
                self.write(n, &key, true);
                let until = self.now + self.rng.jitter(Duration::from_millis(100));
                self.run(until);
                self.write(n, &key, false);
            }
            // Keys everybody fights over.
            _ => {
                let key = format!("shared:{}", self.rng.below(6));
                let wrote = !self.rng.chance(0.3);
                self.write(n, &key, wrote);
            }
        }
    }

    fn fault(&mut self) {
        let size = self.nodes.len();
        match self.rng.below(8) {
            0 => self.loss = 0.5,
            1 => self.loss = 0.0,
            2 => {
                let (a, b) = (self.rng.below(size), self.rng.below(size));
                self.cut.insert((a, b));
            }
            3 => {
                let alone = self.rng.below(size);
                for other in 0..size {
                    self.cut.insert((alone, other));
                    self.cut.insert((other, alone));
                }
            }
            4 | 5 => self.cut.clear(),
            6 => {
                // A connection breaks and comes back: both sides hear of it.
                let edge = self.rng.below(self.edges.len());
                let (a, b) = *self.edges.iter().nth(edge).unwrap();
                let (one, two) = (self.nodes[a].id.clone(), self.nodes[b].id.clone());
                self.input(a, Input::Down(two.clone()));
                self.input(b, Input::Down(one.clone()));
                self.input(a, Input::Up(two));
                self.input(b, Input::Up(one));
            }
            _ => self.restart(),
        }
    }

    /// A node loses everything and comes back under a new incarnation.
    fn restart(&mut self) {
        let n = self.rng.below(self.nodes.len());
        let old = self.nodes[n].id.clone();
        self.lost_lives.insert(old.clone());
        let node = self.born(n, old.incarnation.0 + 1);
        let new = node.id.clone();
        self.nodes[n] = node;
        for (a, b) in self.edges.clone() {
            if a == n {
                let to = self.nodes[b].id.clone();
                self.input(n, Input::Up(to));
                self.input(b, Input::Down(old.clone()));
                self.input(b, Input::Up(new.clone()));
            }
        }
    }

    fn heal(&mut self) {
        self.cut.clear();
        self.loss = 0.0;
    }

    fn converged(&self) -> Result<(), String> {
        let entries = |node: &Node| {
            let entries = node.sync.store().iter().map(|(slot, cell)| (slot.clone(), cell.clone()));
            (node.id.clone(), entries.collect::<Vec<_>>())
        };
        let replicas: Vec<_> = self.nodes.iter().map(entries).collect();
        purlin_check::convergence::check(&replicas).map_err(|error| error.to_string())?;
        let first = self.nodes[0].sync.store().context();
        let equal = self.nodes.iter().all(|node| node.sync.store().context() == first);
        if equal { Ok(()) } else { Err("they have seen different things".to_owned()) }
    }

    fn until_converged(&mut self, within: Duration, seed: u64) {
        let deadline = self.now + within;
        while let Err(difference) = self.converged() {
            assert!(self.now < deadline, "seed {seed}: {within:?} after the heal: {difference}");
            let until = self.now + Duration::from_millis(50);
            self.run(until);
        }
    }

    /// Holds the end state against everything that was done.
    fn check_updates(&self, seed: u64) {
        let did: Vec<Did<String>> = self
            .history
            .iter()
            // A node that lost its memory may not have told anybody of what it did.
            .map(|(did, by)| Did { may_be_missing: self.lost_lives.contains(by), ..did.clone() })
            .collect();
        let sync = &self.nodes[0].sync;
        let read = sync.store().iter().map(|(slot, _)| {
            (String::from_utf8(slot.key().to_vec()).unwrap(), readable(sync, slot))
        });
        if let Err(violation) = updates::check(&did, &read.collect(), Concurrent::Kept) {
            panic!("seed {seed}: {violation}");
        }
    }
}

/// Which writes, by their numbers, can be read under `slot`.
fn readable(sync: &Sync, slot: &Slot) -> BTreeSet<usize> {
    let number = |written: &Written| {
        let bytes: [u8; 8] = written.value.as_ref().try_into().unwrap();
        usize::try_from(u64::from_le_bytes(bytes)).unwrap()
    };
    let cell = sync.store().get(slot);
    cell.into_iter().flat_map(|cell| cell.concurrent().map(number)).collect()
}

fn scenario(seed: u64) {
    let size = 2 + usize::try_from(seed % 4).unwrap();
    let mut world = World::new(seed, size, seed.is_multiple_of(3) && size > 2);
    for _ in 0..150 {
        world.act();
        if world.rng.chance(0.2) {
            world.fault();
        }
        let until = world.now + world.rng.jitter(Duration::from_millis(200));
        world.run(until);
    }
    world.heal();
    world.until_converged(Duration::from_secs(120), seed);
    world.check_updates(seed);
}

#[test]
fn every_replica_ends_equal_and_nothing_is_lost_or_resurrected() {
    if let Ok(seed) = std::env::var("PURLIN_SIM_SEED") {
        return scenario(seed.parse().unwrap());
    }
    let seeds: u64 = std::env::var("PURLIN_SIM_SEEDS").map_or(150, |n| n.parse().unwrap());
    for seed in 0..seeds {
        scenario(seed);
    }
}

#[test]
fn the_same_seed_ends_in_the_same_state() {
    let run = |seed| {
        let mut world = World::new(seed, 3, false);
        for _ in 0..60 {
            world.act();
            world.fault();
            let until = world.now + world.rng.jitter(Duration::from_millis(200));
            world.run(until);
        }
        let states: Vec<String> =
            world.nodes.iter().map(|node| format!("{:?}", node.sync.store())).collect();
        (world.now, states)
    };
    assert_eq!(run(7), run(7));
    assert_ne!(run(7), run(8));
}
