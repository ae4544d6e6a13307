//! Scenarios with a name: what Purlin promises, held against every fault.
//!
//! Each is a function of a seed and a number of steps, in a file of its own. `cargo xtask sim --list`
//! shows them, `cargo xtask sim --scenario replica --seed 7` plays one again, and a sweep plays them
//! for many seeds.

use crate::{Builder, Failure, World, trace::KEPT};

mod membership;
mod names;
mod replica;
mod services;
mod steady;
mod supervised;

/// What a scenario is played with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Play {
    /// Everything random comes from it.
    pub seed: u64,
    /// How many things are done before the world heals; what a step is, each scenario says.
    pub steps: u32,
}

/// How a scenario ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Played {
    /// How much virtual time it took, in milliseconds.
    pub virtual_millis: u64,
    /// How many events its trace has.
    pub events: u64,
    /// The trace's digest: equal for equal runs.
    pub digest: u64,
}

/// A scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What it is about, in one sentence.
    pub about: &'static str,
    /// How many steps it has when nobody says otherwise; 0 for one that always does the same.
    pub steps: u32,
    /// A sweep plays it for one in so many seeds: 1 but for the largest.
    pub one_in: u64,
    run: fn(&mut World, u32) -> Result<(), Failure>,
    build: fn(Builder) -> Builder,
}

/// All scenarios.
pub const ALL: &[Scenario] = &[
    replica::SCENARIO,
    replica::MERGE,
    membership::CHAOS,
    membership::UNREACHABLE,
    membership::MASS_RESTART,
    membership::STARVED,
    membership::DEAD_LIVES,
    membership::STUCK,
    membership::POWER_LOSS,
    membership::SILENT,
    membership::SIXTY_FOUR,
    services::PUBSUB,
    services::CALLS,
    names::SCENARIO,
    supervised::SCENARIO,
    steady::SCENARIO,
];

/// `count` names of hosts.
fn names(count: usize) -> Vec<String> {
    (1..=count).map(|n| format!("n{n}")).collect()
}

/// Starts `count` nodes; they need not have met when it returns.
fn start_all(world: &mut World, count: usize) -> Result<Vec<String>, Failure> {
    let names = names(count);
    for name in &names {
        world.start(name)?;
    }
    Ok(names)
}

/// The scenario `name`.
#[must_use]
pub fn find(name: &str) -> Option<&'static Scenario> {
    ALL.iter().find(|scenario| scenario.name == name)
}

impl Scenario {
    /// Plays it. The same `play` gives the same trace.
    ///
    /// # Errors
    /// [`Failure`] when a promise was broken, with the command that shows it again.
    pub fn play(&self, play: Play) -> Result<Played, Failure> {
        self.play_tracing(play, 0, |_| ())
    }

    /// Plays it and shows the last `lines` lines of its trace, however it ends.
    ///
    /// # Errors
    /// As [`Scenario::play`].
    pub fn play_tracing(
        &self,
        play: Play,
        lines: usize,
        show: impl FnMut(String),
    ) -> Result<Played, Failure> {
        let Play { seed, steps } = play;
        let name = self.name;
        let replay = format!("cargo xtask sim --scenario {name} --seed {seed} --steps {steps}");
        let builder = (self.build)(World::builder(seed).replay(replay));
        let mut world = if lines > KEPT { builder.record() } else { builder }.build();
        let ended = (self.run)(&mut world, steps);
        world.with_trace(|trace| {
            trace.last_lines(lines).for_each(show);
        });
        ended?;
        let virtual_millis = u64::try_from(world.now().as_millis()).expect("milliseconds fit");
        Ok(world.with_trace(|trace| Played {
            virtual_millis,
            events: trace.events(),
            digest: trace.digest(),
        }))
    }
}
