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
    Interest,
    cell::Written,
    journal::Record,
    slot::Slot,
    store::{Store, Update, WriteError},
    sync::{Counters, Input, Membership, Output, Sync, SyncConfig},
    wire::Message,
};

struct Node {
    id: NodeId,
    sync: Sync,
    hlc: Hlc,
    /// What it wrote down, byte by byte.
    disk: Vec<Vec<u8>>,
    /// Left, and comes back then.
    away_until: Option<Instant>,
    /// The newest membership it has heard of.
    epoch: u64,
}

/// What a world is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Everybody next to everybody.
    Mesh,
    /// Each next to two.
    Ring,
    /// Everybody next to everybody, and all but the first keep some of the keys, sometimes others.
    Partial,
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
    kind: Kind,
    epoch: u64,
    left: Vec<NodeId>,
    /// Of lives that are over.
    counted: Vec<Counters>,
}

/// The beginnings of keys that are kept or not.
const BEGINNINGS: [&str; 5] = ["kept:", "removed:", "shared:", "shared:1", "shared:4"];

impl World {
    fn new(seed: u64, size: usize, kind: Kind) -> Self {
        Self::with(seed, size, kind, |config| config)
    }

    fn with(
        seed: u64,
        size: usize,
        kind: Kind,
        but: impl FnOnce(SyncConfig) -> SyncConfig,
    ) -> Self {
        let ring = kind == Kind::Ring;
        let config = SyncConfig {
            log_bytes_max: 2_000,
            batch_bytes: 300,
            forward: ring,
            durable: true,
            // Whoever begins here knows all members: stability alone must be safe.
            prune_after: Duration::ZERO,
            ..SyncConfig::default()
        };
        let config = but(config);
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
            kind,
            epoch: 0,
            left: Vec::new(),
            counted: Vec::new(),
        };
        for n in 0..size {
            let node = world.born(n, 1, Vec::new());
            world.nodes.push(node);
        }
        world.membership_changed();
        for (a, b) in world.edges.clone() {
            let to = world.nodes[b].id.clone();
            world.input(a, Input::Up(to));
        }
        world
    }

    fn born(&mut self, n: usize, life: u64, disk: Vec<Vec<u8>>) -> Node {
        let id = NodeId::new(NodeName::parse(&format!("n{n}")).unwrap(), Incarnation(life));
        let rng = self.rng.fork();
        let mut sync = Sync::new(self.config, &id, self.now, rng);
        for bytes in &disk {
            sync.recover(&Record::decode(bytes).unwrap());
        }
        let wants = self.some_interest(n);
        let mut out = Vec::new();
        sync.begin(&wants, &mut out);
        let hlc = Hlc::new(&id);
        let mut node = Node { hlc, sync, id, disk, away_until: None, epoch: 0 };
        for output in out {
            if let Output::Persist(record) = output {
                node.disk.push(record.encode());
            }
        }
        node
    }

    /// What the node `n` may keep: the first of them everything, always.
    fn some_interest(&mut self, n: usize) -> Interest {
        if self.kind != Kind::Partial || n == 0 || self.rng.chance(0.3) {
            return Interest::all();
        }
        let some = BEGINNINGS.iter().filter(|_| self.rng.chance(0.5)).copied();
        Interest::prefixes(some).unwrap()
    }

    fn change_interest(&mut self) {
        let n = self.rng.below(self.nodes.len());
        let wants = self.some_interest(n);
        let mut out = Vec::new();
        // Refused while too much is being caught up with: fine.
        let _refused = self.nodes[n].sync.set_interest(self.now, wants, &mut out).is_err();
        self.carry_out(n, out);
    }

    /// Somebody came, went or was restarted; everybody hears of it sooner or later.
    fn membership_changed(&mut self) {
        self.epoch += 1;
    }

    fn hear_membership(&mut self, n: usize) {
        if self.nodes[n].epoch == self.epoch || self.nodes[n].away_until.is_some() {
            return;
        }
        self.nodes[n].epoch = self.epoch;
        let others = self.nodes.iter().enumerate();
        let others = others.filter(|(m, node)| *m != n && node.away_until.is_none());
        let others = others.map(|(_, node)| node.id.clone()).collect();
        let membership = Membership { epoch: self.epoch, others, left: self.left.clone() };
        self.input(n, Input::Members(membership));
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
            if let Output::Persist(record) = &output {
                self.nodes[n].disk.push(record.encode());
            }
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
                .filter(|&n| self.nodes[n].away_until.is_none())
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
                let here = |node: &Node| node.id == to && node.away_until.is_none();
                let n = self.nodes.iter().position(here);
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
        if !self.nodes[n].sync.interest().1.covers(key.as_bytes()) {
            let never = |_: &mut Store| -> Result<Option<Update>, WriteError> { unreachable!() };
            let refused = self.nodes[n].sync.write(now, &slot, never, &mut Vec::new());
            assert!(refused.is_err(), "{key:?} is not kept and yet written");
            return;
        }
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
        for n in 0..self.nodes.len() {
            if self.nodes[n].away_until.is_some_and(|until| until <= self.now) {
                self.restart(n, true);
            }
            if self.rng.chance(0.3) {
                self.hear_membership(n);
            }
        }
        let n = self.rng.below(self.nodes.len());
        if self.nodes[n].away_until.is_some() {
            return;
        }
        if self.kind == Kind::Partial && self.rng.chance(0.1) {
            self.change_interest();
        }
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
        match self.rng.below(9) {
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
            7 => {
                let n = self.rng.below(size);
                // The one that keeps everything may be the only one that keeps some of it.
                let with_disk = self.rng.chance(0.5) || (self.kind == Kind::Partial && n == 0);
                self.restart(n, with_disk);
            }
            _ => self.leave(),
        }
    }

    /// A node ends and comes back under a new incarnation, with its disk or with nothing.
    fn restart(&mut self, n: usize, with_disk: bool) {
        let old = self.nodes[n].id.clone();
        self.counted.push(self.nodes[n].sync.counters());
        let disk = std::mem::take(&mut self.nodes[n].disk);
        if !with_disk {
            // What any of its lives wrote may have been nowhere else.
            let lives = 1..=old.incarnation.0;
            let life = |life| NodeId::new(old.name.clone(), Incarnation(life));
            self.lost_lives.extend(lives.map(life));
        }
        let disk = if with_disk { disk } else { Vec::new() };
        let node = self.born(n, old.incarnation.0 + 1, disk);
        let new = node.id.clone();
        self.nodes[n] = node;
        for (a, b) in self.edges.clone() {
            if a == n && self.nodes[b].away_until.is_none() {
                let to = self.nodes[b].id.clone();
                self.input(n, Input::Up(to));
                self.input(b, Input::Down(old.clone()));
                self.input(b, Input::Up(new.clone()));
            }
        }
        self.membership_changed();
    }

    /// A node leaves for good, as far as the others can know, and comes back all the same: later,
    /// as a new life, with its old disk.
    fn leave(&mut self) {
        let n = self.rng.below(self.nodes.len());
        let here = self.nodes.iter().filter(|node| node.away_until.is_none()).count();
        if n == 0 || here < 3 || self.nodes[n].away_until.is_some() {
            return;
        }
        let id = self.nodes[n].id.clone();
        let away = self.rng.jitter(Duration::from_secs(120));
        self.nodes[n].away_until = Some(self.now + away);
        for (a, b) in self.edges.clone() {
            if a == n && self.nodes[b].away_until.is_none() {
                self.input(b, Input::Down(id.clone()));
            }
        }
        // It did not drain: what it had not told anybody may be forgotten.
        self.lost_lives
            .extend((1..=id.incarnation.0).map(|n| NodeId::new(id.name.clone(), Incarnation(n))));
        self.left.push(id);
        self.membership_changed();
    }

    fn heal(&mut self) {
        self.cut.clear();
        self.loss = 0.0;
        for n in 0..self.nodes.len() {
            if self.nodes[n].away_until.is_some() {
                self.restart(n, true);
            }
        }
        for n in 0..self.nodes.len() {
            self.hear_membership(n);
        }
    }

    /// All are equal on the keys that two of them keep, nobody keeps more than it wants, and the
    /// first has everything.
    fn converged(&self) -> Result<(), String> {
        for one in &self.nodes {
            let (keeps, wants) = one.sync.interest();
            if keeps != wants {
                return Err(format!("{} keeps {keeps} and wants {wants}", one.id));
            }
            let both = keeps.intersection(self.nodes[0].sync.interest().0);
            let entries = |node: &Node| {
                let all = node.sync.store().iter();
                let of_both = all.filter(|(slot, _)| both.covers(slot.key()));
                let entries = of_both.map(|(slot, cell)| (slot.clone(), cell.clone()));
                (node.id.clone(), entries.collect::<Vec<_>>())
            };
            let replicas = [entries(&self.nodes[0]), entries(one)];
            purlin_check::convergence::check(&replicas).map_err(|error| error.to_string())?;
            if let Some((slot, _)) =
                one.sync.store().iter().find(|(slot, _)| !keeps.covers(slot.key()))
            {
                return Err(format!("{} keeps {slot:?} all the same", one.id));
            }
        }
        Ok(())
    }

    fn counters(&self) -> impl Iterator<Item = Counters> {
        self.counted.iter().copied().chain(self.nodes.iter().map(|node| node.sync.counters()))
    }

    fn until_converged(&mut self, within: Duration, seed: u64) {
        let deadline = self.now + within;
        while let Err(difference) = self.converged() {
            if self.now >= deadline {
                let stand = |node: &Node| {
                    format!(
                        "{}: {:?} {:#?}",
                        node.id,
                        node.sync.counters(),
                        node.sync.lag(self.now)
                    )
                };
                let nodes: Vec<String> = self.nodes.iter().map(stand).collect();
                let nodes = nodes.join("\n");
                panic!("seed {seed}: {within:?} after the heal: {difference}\n{nodes}");
            }
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

fn scenario(seed: u64) -> World {
    let size = 2 + usize::try_from(seed % 4).unwrap();
    let kind = match seed % 3 {
        0 if size > 2 => Kind::Ring,
        1 => Kind::Partial,
        _ => Kind::Mesh,
    };
    let mut world = World::new(seed, size, kind);
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
    world
}

#[test]
fn every_replica_ends_equal_and_nothing_is_lost_or_resurrected() {
    if let Ok(seed) = std::env::var("PURLIN_SIM_SEED") {
        scenario(seed.parse().unwrap());
        return;
    }
    let seeds: u64 = std::env::var("PURLIN_SIM_SEEDS").map_or(150, |n| n.parse().unwrap());
    let mut pruned = 0;
    for seed in 0..seeds {
        let world = scenario(seed);
        pruned += world.counters().map(|counters| counters.pruned).sum::<u64>();
        assert_eq!(world.counters().map(|counters| counters.forged).sum::<u64>(), 0, "{seed}");
    }
    assert!(pruned > seeds / 4, "lives are forgotten on the way: {pruned}");
}

/// Comparing states makes up for much, also for a confirmation believed too soon. Without it only
/// what is sent until it is confirmed arrives.
#[test]
fn writes_reach_everybody_through_a_lossy_network_without_any_comparison() {
    const NEVER: Duration = Duration::from_secs(1 << 30);
    for seed in 0..20 {
        let mut world = World::with(seed, 3, Kind::Mesh, |config| SyncConfig {
            log_bytes_max: 1 << 20,
            compare_every: (NEVER, NEVER),
            ..config
        });
        // Everybody greets everybody and compares once.
        world.run(world.now + Duration::from_secs(10));
        let compared = |world: &World| world.counters().map(|all| all.compared).sum::<u64>();
        let before = compared(&world);
        world.loss = 0.4;
        for _ in 0..60 {
            let (n, key) = (world.rng.below(3), world.rng.below(9));
            world.write(n, &format!("shared:{key}"), true);
            let until = world.now + world.rng.jitter(Duration::from_millis(200));
            world.run(until);
        }
        world.loss = 0.0;
        world.until_converged(Duration::from_secs(30), seed);
        world.check_updates(seed);
        assert_eq!(compared(&world), before, "seed {seed}: states were compared");
    }
}

#[test]
fn contexts_do_not_grow_with_restarts() {
    for seed in 0..5 {
        let mut world = World::new(seed, 3, Kind::Mesh);
        for _ in 0..40 {
            for n in 0..3 {
                world.write(n, &format!("shared:{n}"), true);
                let until = world.now + Duration::from_millis(200);
                world.run(until);
            }
            let n = world.rng.below(3);
            world.restart(n, true);
            (0..3).for_each(|n| world.hear_membership(n));
        }
        world.heal();
        world.until_converged(Duration::from_secs(120), seed);
        let until = world.now + Duration::from_secs(1_800);
        world.run(until);
        for node in &world.nodes {
            let size = node.sync.context_size();
            // Its own and the others' lives, and those that wrote what is still read.
            assert!(size.lives <= 6, "seed {seed}: {size:?}");
            assert!(size.pruned >= 30 && size.gaps == 0, "seed {seed}: {size:?}");
        }
        world.check_updates(seed);
    }
}

#[test]
fn the_same_seed_ends_in_the_same_state() {
    let run = |seed| {
        let mut world = World::new(seed, 3, Kind::Partial);
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
