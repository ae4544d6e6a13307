//! Faults at random, from a seed: what a sweep lets loose on a scenario.

use std::collections::{BTreeMap, BTreeSet};

use purlin_core::Rng;
use purlin_net::ChannelName;

use crate::{Failure, World, ms, secs};

/// A kind of fault that [`Chaos`] may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// Up to 30 % of all packets are lost, everywhere or one way between two hosts.
    Loss,
    /// Everything takes up to 100 ms longer and overtakes.
    Delay,
    /// Up to 20 % of all datagrams are doubled.
    Duplicate,
    /// Two halves, one host alone, or a ring in which everybody sees only its neighbours.
    Partition,
    /// One way between two hosts is cut.
    OneWay,
    /// Only datagrams, or only streams, are cut between two hosts.
    Partial,
    /// One channel is cut between two hosts.
    Channel,
    /// A host stands still for up to 6 s: longer than peers wait for a sign of life.
    Pause,
    /// A host runs one step in up to 200 ms.
    Slow,
    /// A wall clock is up to 3 s wrong: two clocks differ by less than nodes accept.
    Skew,
    /// A process is killed.
    Crash,
    /// A host loses power; what was not flushed is kept, lost or torn.
    PowerLoss,
    /// A host that is down comes back with an empty disk.
    DiskLoss,
    /// A disk takes nothing more.
    DiskFull,
    /// Flushing takes up to 300 ms.
    SlowDisk,
    /// The next flush reports an error.
    FlushFailure,
}

impl Fault {
    /// Every kind.
    pub const ALL: [Self; 16] = [
        Self::Loss,
        Self::Delay,
        Self::Duplicate,
        Self::Partition,
        Self::OneWay,
        Self::Partial,
        Self::Channel,
        Self::Pause,
        Self::Slow,
        Self::Skew,
        Self::Crash,
        Self::PowerLoss,
        Self::DiskLoss,
        Self::DiskFull,
        Self::SlowDisk,
        Self::FlushFailure,
    ];
}

/// What a strike did to a host, for scenarios that keep books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Struck {
    /// Nothing that a book must know.
    Nobody,
    /// What ran on this host is gone; its disk is there.
    Died(String),
    /// What was on this host's disk is gone too.
    LostDisk(String),
    /// This host runs again.
    Restarted(String),
}

/// Chooses faults, their places and their ends from a seed.
///
/// Hosts that are down come back in the end: three strikes in ten restart one if there is one, and
/// one in ten heals everything.
#[derive(Debug)]
pub struct Chaos {
    rng: Rng,
    names: Vec<String>,
    faults: Vec<Fault>,
    /// The furthest each clock ever was ahead. A host that comes back without its disk knows its
    /// last incarnation by the clock alone, so that clock must not be behind where it was.
    ahead: BTreeMap<String, i64>,
    /// Hosts that lost their disks and have not come back yet.
    diskless: BTreeSet<String>,
    happened: BTreeSet<Fault>,
}

impl Chaos {
    /// All kinds of faults for all hosts of `world` that run now, drawn from its seed.
    #[must_use]
    pub fn new(world: &mut World) -> Self {
        Self {
            rng: world.rng(),
            names: world.running(),
            faults: Fault::ALL.to_vec(),
            ahead: BTreeMap::new(),
            diskless: BTreeSet::new(),
            happened: BTreeSet::new(),
        }
    }

    /// Only these kinds.
    #[must_use]
    pub fn only(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        self.faults = faults.into_iter().collect();
        self
    }

    /// All kinds but these.
    #[must_use]
    pub fn without(mut self, faults: impl IntoIterator<Item = Fault>) -> Self {
        let not: BTreeSet<Fault> = faults.into_iter().collect();
        self.faults.retain(|fault| !not.contains(fault));
        self
    }

    /// The kinds that have struck so far.
    #[must_use]
    pub fn happened(&self) -> &BTreeSet<Fault> {
        &self.happened
    }

    fn any(&mut self) -> String {
        let at = self.rng.below(self.names.len());
        self.names[at].clone()
    }

    fn two(&mut self) -> (String, String) {
        let mut names = self.names.clone();
        self.rng.shuffle(&mut names);
        (names[0].clone(), names[1 % names.len()].clone())
    }

    fn share(&mut self, of: f64) -> f64 {
        let percent = u32::try_from(self.rng.below(100)).expect("below 100");
        of * f64::from(percent + 1) / 100.0
    }

    /// Something goes wrong, or ends being wrong.
    ///
    /// # Errors
    /// [`Failure`] when a node does not come back.
    pub fn strike(&mut self, world: &mut World) -> Result<Struck, Failure> {
        let down: Vec<String> =
            self.names.iter().filter(|name| !world.is_running(name)).cloned().collect();
        if !down.is_empty() && self.rng.chance(0.3) {
            let name = down[self.rng.below(down.len())].clone();
            return self.bring_back(world, name);
        }
        if self.rng.chance(0.1) || self.faults.is_empty() {
            world.heal();
            return Ok(Struck::Nobody);
        }
        let fault = self.faults[self.rng.below(self.faults.len())];
        let struck = self.let_loose(fault, world);
        Ok(struck)
    }

    /// Ends everything: faults, wrong clocks, and hosts that are down come back. Returns which did.
    ///
    /// # Errors
    /// [`Failure`] when a node does not come back.
    pub fn end(&mut self, world: &mut World) -> Result<Vec<String>, Failure> {
        world.heal();
        let mut back = Vec::new();
        for name in self.names.clone() {
            if !world.is_running(&name) {
                self.bring_back(world, name.clone())?;
                back.push(name);
            }
        }
        Ok(back)
    }

    fn bring_back(&mut self, world: &mut World, name: String) -> Result<Struck, Failure> {
        // Somebody made room and changed the cable first: a node refuses to start on a bad disk.
        world.disk(&name).limit(u64::MAX);
        world.disk(&name).fail_syncs(0);
        world.restart(&name)?;
        self.diskless.remove(&name);
        Ok(Struck::Restarted(name))
    }

    fn let_loose(&mut self, fault: Fault, world: &mut World) -> Struck {
        self.happened.insert(fault);
        let (a, b) = self.two();
        match fault {
            Fault::Loss if self.rng.chance(0.5) => {
                let share = self.share(0.3);
                world.loss(share);
            }
            Fault::Loss => {
                let share = self.share(0.3);
                world.loss_between(&a, &b, share);
            }
            Fault::Delay => {
                let (by, jitter) = (self.rng.jitter(ms(50)), self.rng.jitter(ms(100)));
                world.delay(by, jitter);
            }
            Fault::Duplicate => {
                let share = self.share(0.2);
                world.duplicate(share);
            }
            Fault::Partition => self.partition(world),
            Fault::OneWay => drop(world.cut_one_way(&a, &b)),
            Fault::Partial if self.rng.chance(0.5) => drop(world.cut_datagrams(&a, &b)),
            Fault::Partial => drop(world.cut_streams(&a, &b)),
            Fault::Channel => {
                let channel = ["control", "rpc", "stream", "bulk"][self.rng.below(4)];
                let channel = ChannelName::parse(channel).expect("built in");
                if world.is_running(&a) && world.is_running(&b) {
                    world.cut_channel(&a, &b, &channel);
                }
            }
            Fault::Pause => {
                let time = self.rng.jitter(secs(6));
                world.pause(&a, time);
            }
            Fault::Slow => {
                let every = self.rng.jitter(ms(200));
                world.slow(&a, every);
            }
            Fault::Skew => {
                let off = i64::try_from(self.rng.below(6_001)).expect("small") - 3_000;
                let ahead = self.ahead.entry(a.clone()).or_default();
                *ahead = off.max(*ahead);
                let off = if self.diskless.contains(&a) { *ahead } else { off };
                world.jump_clock(&a, off);
            }
            Fault::Crash if world.is_running(&a) => {
                world.crash(&a);
                return Struck::Died(a);
            }
            Fault::PowerLoss if world.is_running(&a) => {
                world.power_off(&a);
                return Struck::Died(a);
            }
            Fault::DiskLoss => {
                let ahead = self.ahead.get(&a).copied().unwrap_or_default();
                world.lose_disk(&a).jump_clock(&a, ahead);
                self.diskless.insert(a.clone());
                return Struck::LostDisk(a);
            }
            Fault::Crash | Fault::PowerLoss => {}
            Fault::DiskFull => drop(world.fill_disk(&a)),
            Fault::SlowDisk => {
                let time = self.rng.jitter(ms(300));
                world.slow_disk(&a, time);
            }
            Fault::FlushFailure => drop(world.fail_flushes(&a, 1)),
        }
        Struck::Nobody
    }

    fn partition(&mut self, world: &mut World) {
        let mut names = self.names.clone();
        self.rng.shuffle(&mut names);
        match self.rng.below(4) {
            0 => {
                let alone = self.any();
                world.isolate(&alone);
            }
            // A ring: only neighbours see each other.
            1 if names.len() > 3 => {
                let size = names.len();
                for (at, one) in names.iter().enumerate() {
                    for (other_at, other) in names.iter().enumerate().skip(at + 2) {
                        if (other_at + 1) % size != at {
                            world.partition([one], [other]);
                        }
                    }
                }
            }
            _ => {
                let (one, other) = names.split_at(names.len() / 2);
                world.partition(one, other);
            }
        }
    }
}
