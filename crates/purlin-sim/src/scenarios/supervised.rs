//! Children under faults: none is lost, none is doubled for long, and what two copies of one knew
//! comes together.
//!
//! Three to five nodes, and one that joins later; a step starts, stops, moves or calls a child,
//! sometimes lets loose a fault or a drain, and pauses. Children keep numbers, which move with
//! them. A child may be missing in the end only if it was stopped or if all nodes that knew of it
//! died before they told another. In the end everything heals; then each child that is written
//! down runs once, and nothing else runs.

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
    core::{NodeId, Outcome},
    dist::supervisor::{
        Birth, ChildOptions, Fence, Kind, KindError, LostCopy, StartChildError, Supervisor,
    },
    process::{Context, Pid},
};
use purlin_core::Rng;

use super::{Scenario, start_all};
use crate::{Chaos, Failure, World, condition::members, ms, secs};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "supervised",
    about: "children of a supervisor on 3 to 6 nodes under every fault, with joins, drains and \
            moves: none is lost, and after the heal each runs once and knows what its copies knew",
    steps: 60,
    one_in: 1,
    run,
    build: |world| world.latency(ms(2), ms(5)),
};

const IDS: usize = 8;
const SUPERVISOR: &str = "rooms";

type Numbers = Arc<Mutex<BTreeSet<u32>>>;

/// A start of a child.
struct Start {
    id: String,
    /// What it was started from: of two starts of one id the later one's stays, and the other
    /// child is no copy of it.
    first: u32,
    fence: Fence,
    numbers: Numbers,
}

/// Every process that was ever started as a child.
type Starts = Arc<Mutex<BTreeMap<Pid, Start>>>;

/// A child, which keeps numbers.
struct Room {
    numbers: Numbers,
    is_sealed: bool,
}

#[purlin::server(kind = "sim.Room")]
impl Room {
    #[init]
    fn open(
        starts: Starts,
        child: (String, u32),
        fence: Fence,
        numbers: BTreeSet<u32>,
        ctx: &mut Context<Self>,
    ) -> Self {
        let numbers: Numbers = Arc::new(Mutex::new(numbers));
        let (id, first) = child;
        let start = Start { id, first, fence, numbers: Arc::clone(&numbers) };
        starts.lock().insert(ctx.pid().clone(), start);
        Self { numbers, is_sealed: false }
    }

    /// Tells what it has, and takes nothing any more: another copy stays.
    #[call]
    fn seal(&mut self) -> BTreeSet<u32> {
        self.is_sealed = true;
        self.numbers.lock().clone()
    }

    /// Takes these, too; whether it did.
    #[call]
    fn absorb(&mut self, numbers: BTreeSet<u32>) -> bool {
        if !self.is_sealed {
            self.numbers.lock().extend(numbers);
        }
        !self.is_sealed
    }
}

struct Rooms(Starts);

impl Kind for Rooms {
    const NAME: &'static str = "room";
    type Server = Room;
    type Args = u32;
    type State = BTreeSet<u32>;

    fn args(
        &self,
        first: u32,
        birth: Birth<BTreeSet<u32>>,
    ) -> Result<(Starts, (String, u32), Fence, BTreeSet<u32>), KindError> {
        let numbers = birth.state.unwrap_or_else(|| BTreeSet::from([first]));
        Ok((Arc::clone(&self.0), (birth.id.to_string(), first), birth.fence, numbers))
    }

    fn hand_off(&self, room: &mut Room) -> Option<BTreeSet<u32>> {
        Some(room.numbers.lock().clone())
    }
}

/// Brings what the copy that ends has to the one that stays.
async fn merge(lost: LostCopy, supervisor: Supervisor) {
    let Some(loser) = lost.process.downcast::<Room>() else { return };
    let Ok(numbers) = RoomHandle::from(loser).seal().await else { return };
    loop {
        let child = supervisor.child::<Room>(&lost.id);
        let given = child.call_within(RoomAbsorb { numbers: numbers.clone() }, secs(1)).await;
        if matches!(given, Ok(true)) {
            return;
        }
        tokio::time::sleep(ms(50)).await;
    }
}

fn rooms(node: &Node) -> Supervisor {
    node.supervisor(SUPERVISOR).expect("one supervisor of a plain name")
}

/// Which children are written down on a node, and which processes of them run there.
struct Seen {
    of: NodeId,
    listed: BTreeSet<String>,
    running: Vec<Pid>,
}

#[derive(Default)]
struct Book {
    starts: Starts,
    /// Children that somebody asked to stop, or whose start failed: they may be there or not.
    given_up: Arc<Mutex<BTreeSet<String>>>,
    /// Who knew of which child at the last look.
    known_by: BTreeMap<String, BTreeSet<NodeId>>,
    lives: BTreeMap<String, NodeId>,
    leaving: BTreeMap<String, Arc<AtomicBool>>,
    next: u32,
}

impl Book {
    fn in_service(&self, world: &World) -> Vec<String> {
        world.running().into_iter().filter(|host| !self.leaving.contains_key(host)).collect()
    }

    fn act(&mut self, world: &mut World, rng: &mut Rng) {
        let hosts = self.in_service(world);
        if hosts.is_empty() {
            return;
        }
        let host = hosts[rng.below(hosts.len())].clone();
        self.next += 1;
        let (number, id) = (self.next, format!("room-{}", rng.below(IDS)));
        match rng.below(20) {
            0..8 => self.start(world, &host, id, number),
            8..10 => self.stop(world, &host, id),
            10..12 => {
                let to = hosts[rng.below(hosts.len())].clone();
                let to = world.at(&to, |node| node.id().clone());
                let Some(to) = to else { return };
                world.spawn(&host, async move |node| {
                    // Wherever it is, and whether or not it can.
                    drop(rooms(&node).move_child(&id, &to).await);
                });
            }
            12 => drop(world.at(&host, |node| rooms(node).rebalance())),
            _ => drop(world.spawn(&host, async move |node| {
                let numbers = BTreeSet::from([number]);
                let child = rooms(&node).child::<Room>(&id);
                drop(child.call_within(RoomAbsorb { numbers }, secs(2)).await);
            })),
        }
    }

    /// Starts a child of a new id now and then, and of one that was there otherwise.
    fn start(&mut self, world: &mut World, host: &str, id: String, number: u32) {
        let given_up = Arc::clone(&self.given_up);
        world.spawn(host, async move |node| {
            let options = ChildOptions::default();
            let started = rooms(&node).start_child::<Rooms>(&id, &number, options).await;
            match started {
                Ok(_) => drop(given_up.lock().remove(&id)),
                Err(StartChildError::Exists { .. }) => {}
                // A start that was not done is taken back, and with it maybe another's.
                Err(error) if error.outcome() == Outcome::NotDone => {
                    given_up.lock().insert(id);
                }
                Err(_) => {}
            }
        });
    }

    fn stop(&mut self, world: &mut World, host: &str, id: String) {
        let given_up = Arc::clone(&self.given_up);
        world.spawn(host, async move |node| {
            if rooms(&node).which(&id).is_some() {
                given_up.lock().insert(id.clone());
                drop(rooms(&node).stop_child(&id).await);
            }
        });
    }

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
            node.drain(Some(secs(3))).await;
            has_left.store(true, Ordering::Relaxed);
        });
    }

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

    /// Lets nodes that have started anew run children.
    fn enlist(&mut self, world: &World) {
        for host in world.running() {
            world.at(&host, |node| {
                if self.lives.get(&host) == Some(node.id()) {
                    return;
                }
                self.lives.insert(host.clone(), node.id().clone());
                let supervisor = rooms(node);
                let at = supervisor.clone();
                supervisor.on_conflict(move |lost| merge(lost, at.clone()));
                // What the disk refuses is said later, see `Supervisor`; here it only takes part.
                drop(supervisor.register_kind(Rooms(Arc::clone(&self.starts))));
            });
        }
    }

    fn see(&self, world: &World) -> Vec<Seen> {
        let starts = self.starts.lock();
        let see = |host: &String| {
            world.at(host, |node| {
                let supervisor = rooms(node);
                let children = supervisor.children("", None, usize::MAX);
                let processes = node.processes().all();
                let running =
                    processes.iter().filter(|it| it.is_alive()).map(|it| it.pid().clone());
                Seen {
                    of: node.id().clone(),
                    listed: children.iter().map(|child| child.id.to_string()).collect(),
                    running: running.filter(|pid| starts.contains_key(pid)).collect(),
                }
            })
        };
        world.running().iter().filter_map(see).collect()
    }

    /// No node forgets a child that nobody gave up.
    fn look(&mut self, world: &World) -> Result<(), String> {
        self.enlist(world);
        let seen = self.see(world);
        let given_up = self.given_up.lock();
        let mut known_by: BTreeMap<String, BTreeSet<NodeId>> = BTreeMap::new();
        for Seen { of, listed, .. } in &seen {
            for id in listed {
                known_by.entry(id.clone()).or_default().insert(of.clone());
            }
        }
        for (id, knew) in &self.known_by {
            let alive: Vec<_> =
                knew.iter().filter(|of| seen.iter().any(|it| it.of == **of)).collect();
            if !alive.is_empty() && !known_by.contains_key(id) && !given_up.contains(id) {
                return Err(format!("{id} was known to {alive:?}, and nobody knows it now"));
            }
        }
        self.known_by = known_by;
        Ok(())
    }

    /// What each child that is written down somewhere and given up by nobody has, all copies
    /// together.
    fn have(&self, world: &World) -> BTreeMap<(String, u32), BTreeSet<u32>> {
        let (starts, given_up) = (self.starts.lock(), self.given_up.lock());
        let mut have: BTreeMap<(String, u32), BTreeSet<u32>> = BTreeMap::new();
        for pid in self.see_running(world) {
            let Some(start) = starts.get(&pid) else { continue };
            if !given_up.contains(&start.id) {
                have.entry((start.id.clone(), start.first))
                    .or_default()
                    .extend(start.numbers.lock().iter());
            }
        }
        have
    }

    fn see_running(&self, world: &World) -> Vec<Pid> {
        let hosts = world.running();
        let of = |host: &String| world.at(host, |node| node.processes().all());
        let all = hosts.iter().filter_map(of).flatten();
        all.filter(|it| it.is_alive()).map(|it| it.pid().clone()).collect()
    }

    /// Whether each child that is written down runs once, and nothing else.
    fn each_once(&self, world: &World) -> Result<(), String> {
        let seen = self.see(world);
        let starts = self.starts.lock();
        let mut copies: BTreeMap<&str, Vec<(&Pid, Fence)>> = BTreeMap::new();
        for pid in seen.iter().flat_map(|it| &it.running) {
            let start = &starts[pid];
            copies.entry(&start.id).or_default().push((pid, start.fence));
        }
        if let Some((id, copies)) = copies.iter().find(|(_, copies)| copies.len() > 1) {
            return Err(format!("{id} runs as {copies:?}"));
        }
        for it in &seen {
            if let Some(id) = it.listed.iter().find(|id| !copies.contains_key(id.as_str())) {
                return Err(format!("{} lists {id}, which runs nowhere", it.of));
            }
            if let Some(id) = copies.keys().find(|id| !it.listed.contains(**id)) {
                return Err(format!("{} does not list {id}, which runs", it.of));
            }
        }
        Ok(())
    }
}

fn run(world: &mut World, steps: u32) -> Result<(), Failure> {
    let mut rng = world.rng();
    let mut names = start_all(world, 3 + rng.below(3))?;
    let mut book = Book::default();
    book.enlist(world);
    world.until(members(&names), secs(20))?;
    let mut chaos = Chaos::new(world);
    let joins_at = rng.below(usize::try_from(steps.max(1)).expect("few steps"));
    for step in 0..steps {
        book.act(world, &mut rng);
        if rng.chance(0.12) {
            chaos.strike(world)?;
            book.enlist(world);
        }
        if rng.chance(0.03) {
            book.drain(world, &mut rng);
        }
        if usize::try_from(step) == Ok(joins_at) {
            world.start("late")?;
            names.push("late".to_owned());
        }
        book.let_go(world, false);
        book.look(world).map_err(|what| world.failure(what))?;
        world.run_for(rng.jitter(ms(300)))?;
        book.look(world).map_err(|what| world.failure(what))?;
    }
    book.let_go(world, true);
    chaos.end(world)?;
    for name in &names {
        if !world.is_running(name) {
            world.restart(name)?;
        }
    }
    book.enlist(world);
    settle(world, book, &names)
}

/// After the heal each child runs once, with what its copies had when they found each other.
fn settle(world: &mut World, book: Book, names: &[String]) -> Result<(), Failure> {
    let was = book.have(world);
    let book = Arc::new(Mutex::new(book));
    let looking = Arc::clone(&book);
    let each_once = move |world: &World| {
        let mut book = looking.lock();
        book.look(world)?;
        book.each_once(world)
    };
    world.until(members(names), secs(60))?;
    world.until(("each child to run once", each_once), secs(20))?;
    // And it stays so, also while the load is levelled.
    world.run_for(secs(5))?;
    let mut book = book.lock();
    book.look(world).map_err(|what| world.failure(what))?;
    let have = book.have(world);
    let given_up = book.given_up.lock().clone();
    for ((id, first), numbers) in was {
        let is_replaced = have.keys().any(|(other, later)| *other == id && *later > first);
        let kept = have.get(&(id.clone(), first));
        if !kept.is_some_and(|kept| kept.is_superset(&numbers))
            && !is_replaced
            && !given_up.contains(&id)
        {
            return Err(world.failure(format!("{id} had {numbers:?}, and now {kept:?}")));
        }
    }
    Ok(())
}
