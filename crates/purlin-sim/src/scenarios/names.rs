//! Names under faults: nothing is lost without a reason, one's own is always found, and of two
//! holders one stays, with what both knew.
//!
//! Three to five nodes, and one that joins later; a step is something done to a few contested
//! names, sometimes a fault or a drain, and a pause. Every holder keeps numbers. The book follows
//! the events of every node and holds them against what can be looked up, at every step; in the
//! end everything heals, and what all nodes see is held against which processes are alive.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use purlin::{
    Node,
    core::NodeId,
    dist::{
        DistError, Entry, Lost, OnConflict, RegisterOptions, Registry, RowKey, Watch,
        directory::{Change, Why},
    },
    process::{AnyProcess, ExitReason, Metadata, SpawnOptions},
};
use purlin_core::Rng;

use super::{Scenario, start_all};
use crate::{Chaos, Failure, World, condition::members, ms, secs};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "names",
    about: "names on 3 to 6 nodes under every fault, with joins and drains: none goes without a \
            reason, one's own is always found, and 5 s after the heal each has one holder, who \
            knows what all knew",
    steps: 80,
    one_in: 1,
    run,
    build: |world| world.latency(ms(2), ms(5)),
};

/// So few that nodes meet under them all the time.
const KEYS: usize = 6;

type Numbers = Arc<Mutex<BTreeSet<u32>>>;

/// A process with a name, which keeps numbers.
struct Holder {
    numbers: Numbers,
    is_sealed: bool,
}

#[purlin::server(kind = "sim.Holder")]
impl Holder {
    #[init]
    fn open(numbers: Numbers) -> Self {
        Self { numbers, is_sealed: false }
    }

    /// Tells what it has, and takes nothing any more: it has lost its name.
    #[call]
    fn seal(&mut self) -> Vec<u32> {
        self.is_sealed = true;
        self.numbers.lock().iter().copied().collect()
    }

    /// Takes these, too; whether it did.
    #[call]
    fn absorb(&mut self, numbers: Vec<u32>) -> bool {
        if !self.is_sealed {
            self.numbers.lock().extend(numbers);
        }
        !self.is_sealed
    }
}

/// Brings what the loser has to whoever has the name, also if that one loses it meanwhile.
async fn merge(lost: Lost, registry: Registry) {
    let Some(loser) = lost.process.downcast::<Holder>() else { return };
    // It may have ended of itself; then there is nothing to bring.
    let Ok(numbers) = HolderHandle::from(loser).seal().await else { return };
    loop {
        if let Ok(Some(winner)) = registry.address::<Holder>(&lost.mine.key)
            && winner.pid() != lost.process.pid()
            && let Ok(true) =
                HolderHandle::from(winner).within(secs(1)).absorb(numbers.clone()).await
        {
            return;
        }
        tokio::time::sleep(ms(50)).await;
    }
}

/// A registration that was made.
struct Registration {
    key: String,
    on: NodeId,
    at: RowKey,
    process: AnyProcess,
    numbers: Numbers,
    /// Somebody took the name from it on purpose.
    is_unregistered: bool,
    /// Its process was asked to end.
    is_ending: bool,
    /// Why it ended, as its own node tells.
    ended: Option<Why>,
}

/// What a node has told in this life of it.
struct Follower {
    of: NodeId,
    watch: Watch,
    /// Who has which name, by its events alone.
    told: BTreeMap<String, Arc<Entry>>,
}

#[derive(Default)]
struct Book {
    made: Arc<Mutex<Vec<Registration>>>,
    followers: BTreeMap<String, Follower>,
    /// Hosts that are being drained, and whether they have left.
    leaving: BTreeMap<String, Arc<AtomicBool>>,
    next: u32,
}

impl Book {
    /// Something is done to a random name on a random node.
    fn act(&mut self, world: &mut World, rng: &mut Rng) {
        let hosts = self.in_service(world);
        if hosts.is_empty() {
            return;
        }
        let host = hosts[rng.below(hosts.len())].clone();
        let key = format!("name-{}", rng.below(KEYS));
        match rng.below(20) {
            0..9 => self.register(world, &host, key),
            9..12 => self.unregister(world, &host, &key),
            12..14 => self.end(world, &host, rng),
            14..16 => {
                let stamp = Metadata::from_iter([("step", self.next.to_string())]);
                world
                    .at(&host, |node| node.registry().update_with(&key, |_| stamp.clone()).is_ok());
            }
            _ => self.tell(world, &host, key),
        }
    }

    fn in_service(&self, world: &World) -> Vec<String> {
        world.running().into_iter().filter(|host| !self.leaving.contains_key(host)).collect()
    }

    /// A new process takes the name, unless its node knows that somebody has it.
    fn register(&mut self, world: &mut World, host: &str, key: String) {
        self.next += 1;
        let (number, made) = (self.next, Arc::clone(&self.made));
        world.spawn(host, async move |node| {
            let numbers: Numbers = Arc::new(Mutex::new([number].into()));
            let options = SpawnOptions::default();
            let spawned = node.processes().spawn_remote::<Holder>(Arc::clone(&numbers), options);
            let Ok(process) = spawned.await else { return };
            let options =
                RegisterOptions { on_conflict: OnConflict::Stop, ..RegisterOptions::default() };
            match node.registry().register(&key, &process, options) {
                Ok(entry) => made.lock().push(Registration {
                    key,
                    on: node.id().clone(),
                    at: entry.at.clone(),
                    process: process.untyped(),
                    numbers,
                    is_unregistered: false,
                    is_ending: false,
                    ended: None,
                }),
                Err(DistError::NameTaken { .. } | _) => process.stop(ExitReason::Normal),
            }
        });
    }

    fn unregister(&mut self, world: &World, host: &str, key: &str) {
        world.at(host, |node| {
            let mine = node.registry().lookup(key);
            if let Some(mine) = mine
                && node.registry().unregister(key).is_ok()
            {
                let mut made = self.made.lock();
                made.iter_mut()
                    .filter(|it| it.at == mine.at)
                    .for_each(|it| it.is_unregistered = true);
            }
        });
    }

    /// A process of this node ends, one way or another.
    fn end(&mut self, world: &World, host: &str, rng: &mut Rng) {
        let mut made = self.made.lock();
        let mine = |it: &&mut Registration| it.on.name.as_str() == host && it.process.is_alive();
        let mut of_host: Vec<_> = made.iter_mut().filter(mine).collect();
        if of_host.is_empty() {
            return;
        }
        let at = rng.below(of_host.len());
        of_host[at].is_ending = true;
        let process = &of_host[at].process;
        world.at(host, |_| match rng.below(3) {
            0 => process.kill(),
            1 => process.stop(ExitReason::Normal),
            _ => process.drain(),
        });
    }

    /// Whoever has the name is given a number.
    fn tell(&mut self, world: &mut World, host: &str, key: String) {
        self.next += 1;
        let number = self.next;
        world.spawn(host, async move |node| {
            if let Ok(Some(holder)) = node.registry().address::<Holder>(&key) {
                drop(HolderHandle::from(holder).within(secs(1)).absorb(vec![number]).await);
            }
        });
    }

    /// A node leaves in peace, if enough others are there.
    fn drain(&mut self, world: &mut World, rng: &mut Rng) {
        let hosts = self.in_service(world);
        if hosts.len() < 3 {
            return;
        }
        let host = hosts[rng.below(hosts.len())].clone();
        let has_left = Arc::new(AtomicBool::new(false));
        self.leaving.insert(host.clone(), Arc::clone(&has_left));
        world.note(format!("{host} is drained"));
        world.spawn(&host, async move |node| {
            node.drain(Some(secs(2))).await;
            has_left.store(true, Ordering::Relaxed);
        });
    }

    /// Ends the processes of nodes that have left, or of all that were asked to.
    fn let_go(&mut self, world: &mut World, all: bool) {
        self.leaving.retain(|host, has_left| {
            let is_running = world.is_running(host);
            if is_running && (all || has_left.load(Ordering::Relaxed)) {
                world.crash(host);
                return false;
            }
            is_running
        });
    }

    /// Reads what every node has told since the last look, and holds it against what it shows.
    fn look(&mut self, world: &World) -> Result<(), String> {
        for host in self.in_service(world) {
            let looked = world.at(&host, |node| self.look_at(&host, node));
            looked.unwrap_or(Ok(())).map_err(|what| format!("{host}: {what}"))?;
        }
        Ok(())
    }

    fn look_at(&mut self, host: &str, node: &Node) -> Result<(), String> {
        let registry = node.registry();
        if self.followers.get(host).is_none_or(|follower| follower.of != *node.id()) {
            let at = registry.clone();
            registry.on_conflict(move |lost| merge(lost, at.clone()));
            let (of, watch) = (node.id().clone(), registry.watch("", 0));
            self.followers.insert(host.to_owned(), Follower { of, watch, told: BTreeMap::new() });
        }
        let follower = self.followers.get_mut(host).expect("it was made above");
        let mut made = self.made.lock();
        while let Some(event) = follower.watch.try_next() {
            let event = event.map_err(|missed| missed.to_string())?;
            follower.hear(&event.change)?;
            own_end(&event.change, &follower.of, &mut made)?;
        }
        let shown: BTreeMap<String, Arc<Entry>> = registry
            .scan("", None, usize::MAX)
            .into_iter()
            .map(|entry| (entry.key.to_string(), entry))
            .collect();
        // A process that has ended is hidden at once, and its end told a moment later.
        let is_over = |entry: &Entry| {
            let own = made.iter().find(|it| it.at == entry.at && it.on == follower.of);
            own.is_some_and(|it| !it.process.is_alive())
        };
        for key in shown.keys().chain(follower.told.keys()) {
            let (shown, told) = (shown.get(key), follower.told.get(key));
            if shown.map(|it| &it.at) != told.map(|it| &it.at)
                && !told.is_some_and(|it| is_over(it))
            {
                return Err(format!("shows {shown:?} as {key}, and told of {told:?}"));
            }
        }
        let own = made.iter().filter(|it| it.on == follower.of && it.is_held());
        for it in own {
            let found = registry.lookup(&it.key);
            if found.as_ref().is_none_or(|entry| entry.at != it.at) {
                return Err(format!("finds {found:?} as {}, which is its own {:?}", it.key, it.at));
            }
        }
        Ok(())
    }

    /// Which registrations hold, as their own nodes see it, of those that run; with or without
    /// those that are about to end.
    fn held(&self, world: &World, ending: bool) -> Vec<(String, RowKey, BTreeSet<u32>)> {
        let running: BTreeSet<NodeId> = world
            .running()
            .iter()
            .filter_map(|host| world.at(host, |node| node.id().clone()))
            .collect();
        let made = self.made.lock();
        let held = made
            .iter()
            .filter(|it| running.contains(&it.on) && it.is_held() && (ending || !it.is_ending));
        held.map(|it| (it.key.clone(), it.at.clone(), it.numbers.lock().clone())).collect()
    }

    /// Processes that lost their names, and still run.
    fn losers(&self, world: &World) -> usize {
        let is_running = |it: &Registration| {
            world.at(it.on.name.as_str(), |node| *node.id() == it.on).unwrap_or(false)
        };
        let made = self.made.lock();
        let lost = made.iter().filter(|it| it.ended == Some(Why::Conflict));
        lost.filter(|it| it.process.is_alive() && is_running(it)).count()
    }
}

impl Registration {
    fn is_held(&self) -> bool {
        self.ended.is_none() && !self.is_unregistered && self.process.is_alive()
    }
}

impl Follower {
    /// Takes in a change, which must begin where the last one ended.
    fn hear(&mut self, change: &Change) -> Result<(), String> {
        let key = change.entry().key.to_string();
        let told = match &change.now {
            Some(now) => self.told.insert(key, Arc::clone(now)),
            None => self.told.remove(&key),
        };
        let (was, before) = (told.map(|it| it.at.clone()), change.before.as_ref().map(|it| &it.at));
        if was.as_ref() == before {
            return Ok(());
        }
        Err(format!("tells {change:?} when {was:?} was there"))
    }
}

/// Notes that a registration of the node that tells has ended, which must be for what was done.
fn own_end(change: &Change, of: &NodeId, made: &mut [Registration]) -> Result<(), String> {
    let is_same = |entry: &Entry| Some(&entry.at) == change.now.as_ref().map(|now| &now.at);
    let Some(before) = change.before.as_ref().filter(|entry| !is_same(entry)) else {
        return Ok(());
    };
    let Some(it) = made.iter_mut().find(|it| it.at == before.at && it.on == *of) else {
        return Ok(());
    };
    let is_right = match &change.why {
        Why::Unregistered => it.is_unregistered,
        Why::Normal | Why::Crashed(_) => !it.process.is_alive(),
        Why::Conflict => true,
        _ => false,
    };
    if !is_right {
        return Err(format!("its own {} ended as {:?}", it.key, change.why));
    }
    it.ended = Some(change.why.clone());
    Ok(())
}

fn run(world: &mut World, steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let mut names = start_all(world, 3 + rng.below(3))?;
    world.until(members(&names), secs(20))?;
    let mut book = Book::default();
    let mut chaos = Chaos::new(world);
    let joins_at = rng.below(usize::try_from(steps.max(1)).expect("few steps"));
    for step in 0..steps {
        book.act(world, &mut rng);
        if rng.chance(0.15) {
            chaos.strike(world)?;
        }
        if rng.chance(0.02) {
            book.drain(world, &mut rng);
        }
        if usize::try_from(step) == Ok(joins_at) {
            world.start("late")?;
            names.push("late".to_owned());
        }
        book.let_go(world, false);
        book.look(world).map_err(|what| world.failure(what))?;
        world.run_for(rng.jitter(ms(150)))?;
        book.look(world).map_err(|what| world.failure(what))?;
    }
    book.let_go(world, true);
    let was = book.held(world, false);
    chaos.end(world)?;
    for name in &names {
        if !world.is_running(name) {
            world.restart(name)?;
        }
    }
    settle(world, book, &names, was)
}

/// Five seconds after the heal, each name has one holder, for all, who knows what all knew.
fn settle(
    world: &mut World,
    book: Book,
    names: &[String],
    was: Vec<(String, RowKey, BTreeSet<u32>)>,
) -> Result<(), Failure> {
    let book = Arc::new(Mutex::new(book));
    let looking = Arc::clone(&book);
    let single = move |world: &World| {
        let mut book = looking.lock();
        book.look(world)?;
        let held = book.held(world, true);
        let keys: BTreeSet<&String> = held.iter().map(|(key, ..)| key).collect();
        match (held.len() - keys.len(), book.losers(world)) {
            (0, 0) => Ok(()),
            (twice, losers) => Err(format!("{twice} names twice, and {losers} losers that run")),
        }
    };
    world.until(("every name to have one holder", single), secs(5))?;
    let looking = Arc::clone(&book);
    let everywhere = move |world: &World| {
        let mut book = looking.lock();
        book.look(world)?;
        let held: BTreeMap<String, RowKey> =
            book.held(world, true).into_iter().map(|(key, at, _)| (key, at)).collect();
        for host in world.running() {
            let seen = world.at(&host, |node| node.registry().scan("", None, usize::MAX));
            let seen: BTreeMap<String, RowKey> = seen
                .unwrap_or_default()
                .into_iter()
                .map(|entry| (entry.key.to_string(), entry.at.clone()))
                .collect();
            if seen != held {
                return Err(format!("{host} sees {seen:?}, and there is {held:?}"));
            }
        }
        Ok(())
    };
    world.until(members(names), secs(60))?;
    world.until(("everybody to see who has which name", everywhere), secs(15))?;
    let held: BTreeMap<String, BTreeSet<u32>> =
        book.lock().held(world, true).into_iter().map(|(key, _, numbers)| (key, numbers)).collect();
    for (key, at, numbers) in was {
        let kept = held.get(&key).is_some_and(|kept| kept.is_superset(&numbers));
        if !kept {
            let what = format!("{key} had {numbers:?} at {at:?}, and now {:?}", held.get(&key));
            return Err(world.failure(what));
        }
    }
    Ok(())
}
