//! The world: hosts, the network between them, and time.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use parking_lot::Mutex;
use purlin::{DevAuthority, Environment, Node, NodeBuilder};
use purlin_core::{NodeName, Rng};
use purlin_net::{
    ChannelName,
    fault::{Direction, Effect, FaultRule, Lane},
};
use purlin_store::{FaultyDisk, disk::CrashStyle};

use crate::{
    condition::Condition,
    failure::Failure,
    host::{Host, Life, Pace, Program, Setup},
    link::{Latency, Links, Wrong},
    net::{Net, SharedNet, Wake, node_addr},
    panics,
    time::Skew,
    trace::{HostId, Trace},
};

/// How long [`World::on`] and [`World::start`] let the world go on for a result.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often [`World::until`] looks.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How many notes a failure shows.
const NOTES_SHOWN: usize = 25;

/// A safety property: checked after every step.
type Invariant = Box<dyn FnMut(&World) -> Result<(), String>>;

/// What a [`World`] is made from.
#[derive(Debug)]
pub struct Builder {
    seed: u64,
    latency: Latency,
    records: bool,
    tolerates_panics: bool,
    replay: Option<String>,
}

impl Builder {
    /// How long messages take when nothing is wrong. Default 1 to 2 ms.
    #[must_use]
    pub fn latency(mut self, min: Duration, max: Duration) -> Self {
        self.latency = Latency::new(min, max);
        self
    }

    /// Keeps every event of the trace, not only the last 2,000: for comparing traces.
    #[must_use]
    pub fn record(mut self) -> Self {
        self.records = true;
        self
    }

    /// A panic in a task is no failure: for programs whose processes may crash.
    #[must_use]
    pub fn tolerate_panics(mut self) -> Self {
        self.tolerates_panics = true;
        self
    }

    /// The command that a failure names for seeing it again. The default names the seed.
    #[must_use]
    pub fn replay(mut self, command: impl Into<String>) -> Self {
        self.replay = Some(command.into());
        self
    }

    /// The world, at its beginning: no host, time 0.
    #[must_use]
    pub fn build(self) -> World {
        panics::watch();
        // One left over from before is not this world's.
        drop(panics::take());
        let mut rng = Rng::from_seed(self.seed);
        let net = Net::new(Links::new(self.latency), Trace::new(self.records), rng.fork());
        let replay = self.replay.unwrap_or_else(|| format!("World::new({})", self.seed));
        World {
            seed: self.seed,
            replay,
            window: self.latency.min,
            tolerates_panics: self.tolerates_panics,
            net: Arc::new(Mutex::new(net)),
            rng,
            hosts: Vec::new(),
            by_name: BTreeMap::new(),
            now: Duration::ZERO,
            lives: 0,
            steps: 0,
            invariants: Vec::new(),
            wake: Wake::new(),
        }
    }
}

/// Hosts with whole nodes on them in virtual time, on this thread, from one seed.
///
/// Time passes only inside [`World::run_for`], [`World::until`], [`World::on`] and
/// [`World::start`]. Everything random comes from the seed: the same seed and the same calls give
/// the same [`Trace`], byte by byte, also in another process.
///
/// Must not be used inside a tokio runtime: it brings its own, one for each host.
///
/// Methods that name a host panic when there is none of that name: a scenario that names one is
/// wrong, whatever the seed.
///
/// ```
/// use purlin_sim::{World, condition::members, ms, secs};
///
/// # fn main() -> Result<(), purlin_sim::Failure> {
/// let mut world = World::new(7);
/// for name in ["a", "b", "c"] {
///     world.start(name)?;
/// }
/// world.until(members(["a", "b", "c"]), secs(10))?;
/// world.partition(["a", "b"], ["c"]).run_for(secs(5))?;
/// world.on("c", async |node| node.crdt().add("visits", 1))?.expect("a cut refuses no write");
/// world.heal();
/// let counted = |world: &World| world.at("a", |node| node.crdt().get(b"visits")).flatten();
/// world.until(("a has c's visit", move |world: &World| {
///     counted(world).map(drop).ok_or("nothing yet".to_owned())
/// }), secs(10))?;
/// # Ok(()) }
/// ```
pub struct World {
    seed: u64,
    replay: String,
    window: Duration,
    tolerates_panics: bool,
    net: SharedNet,
    rng: Rng,
    hosts: Vec<Host>,
    by_name: BTreeMap<String, usize>,
    now: Duration,
    lives: u64,
    steps: u64,
    invariants: Vec<(String, Invariant)>,
    wake: Wake,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("seed", &self.seed)
            .field("now", &self.now)
            .field("hosts", &self.hosts)
            .finish_non_exhaustive()
    }
}

/// One authority for all worlds of a process: keys are expensive and no part of a scenario.
fn authority() -> &'static DevAuthority {
    static AUTHORITY: OnceLock<DevAuthority> = OnceLock::new();
    AUTHORITY.get_or_init(|| DevAuthority::timeless().expect("the system gives randomness"))
}

// ---- making it and letting time pass ----

impl World {
    /// A world with the default network.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::builder(seed).build()
    }

    /// For other networks, and for recording.
    #[must_use]
    pub fn builder(seed: u64) -> Builder {
        Builder {
            seed,
            latency: Latency::default(),
            records: false,
            tolerates_panics: false,
            replay: None,
        }
    }

    /// The seed everything comes from.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Virtual time since the beginning.
    #[must_use]
    pub fn now(&self) -> Duration {
        self.now
    }

    /// A generator for the scenario's own choices, drawn from the seed.
    #[must_use]
    pub fn rng(&mut self) -> Rng {
        self.rng.fork()
    }

    /// Looks at what happened so far.
    pub fn with_trace<T>(&self, look: impl FnOnce(&Trace) -> T) -> T {
        look(&self.net.lock().trace)
    }

    /// Writes a line into the trace, and into failures.
    pub fn note(&mut self, note: impl AsRef<str>) -> &mut Self {
        self.net.lock().trace.note(self.now, note.as_ref());
        self
    }

    /// A failure of the scenario's own finding, with everything a failure shows.
    #[must_use]
    pub fn failure(&self, what: impl Into<String>) -> Failure {
        let net = self.net.lock();
        let notes = net.trace.last_notes(NOTES_SHOWN).collect();
        Failure::new(what.into(), self.now, notes, self.replay.clone())
    }

    /// From now on `check` must hold after every step of the world, whatever fails. Keep it cheap.
    pub fn always(
        &mut self,
        property: impl Into<String>,
        check: impl FnMut(&Self) -> Result<(), String> + 'static,
    ) -> &mut Self {
        self.invariants.push((property.into(), Box::new(check)));
        self
    }

    /// Lets `time` pass, rounded up to whole steps.
    ///
    /// # Errors
    /// [`Failure`] when an invariant does not hold or a task panics.
    pub fn run_for(&mut self, time: Duration) -> Result<&mut Self, Failure> {
        let end = self.now + time;
        while self.now < end {
            self.step()?;
        }
        Ok(self)
    }

    /// Lets time pass until `condition` holds, looking every 10 ms.
    ///
    /// # Errors
    /// [`Failure`] when `within` has passed first: it says what was waited for and what was seen
    /// instead. Also as [`World::run_for`].
    pub fn until(
        &mut self,
        condition: impl Into<Condition>,
        within: Duration,
    ) -> Result<&mut Self, Failure> {
        let mut condition = condition.into();
        let end = self.now + within;
        loop {
            let Err(seen) = condition.check(self) else { return Ok(self) };
            if self.now >= end {
                let what = format!("waited {within:?} for {}: {seen}", condition.name());
                return Err(self.failure(what));
            }
            self.run_for(LOOK_EVERY)?;
        }
    }

    /// One step: every host runs for as long as nothing that another does now can reach it.
    fn step(&mut self) -> Result<(), Failure> {
        let (from, end) = (self.now, self.now + self.window);
        self.net.lock().tend(from, &mut self.wake);
        self.call_wakers();
        for host in &mut self.hosts {
            let Some(life) = &host.life else {
                // Nobody is there, but its kernel answers while there is power.
                self.net.lock().deliver(host.id, from, &mut self.wake);
                continue;
            };
            let runs = match &mut host.pace {
                Pace::Steady => true,
                Pace::Paused { until } => match until {
                    Some(until) if *until <= from => {
                        host.pace = Pace::Steady;
                        true
                    }
                    _ => false,
                },
                Pace::Slow { every, next } if *next <= from => {
                    *next = from + *every;
                    true
                }
                Pace::Slow { .. } => false,
            };
            if runs {
                life.step(from, end, &mut self.wake);
            } else {
                self.net.lock().deliver(host.id, from, &mut self.wake);
                self.wake.drain(..).for_each(std::task::Waker::wake);
            }
        }
        self.call_wakers();
        self.now = end;
        self.steps += 1;
        self.check()
    }

    fn call_wakers(&mut self) {
        self.wake.drain(..).for_each(std::task::Waker::wake);
    }

    fn check(&mut self) -> Result<(), Failure> {
        if let Some(panic) = panics::take()
            && !self.tolerates_panics
        {
            return Err(self.failure(panic));
        }
        let mut invariants = std::mem::take(&mut self.invariants);
        let mut broken = None;
        for (property, check) in &mut invariants {
            if let Err(seen) = check(self) {
                broken = Some(format!("it must always hold that {property}: {seen}"));
                break;
            }
        }
        self.invariants = invariants;
        broken.map_or(Ok(()), |what| Err(self.failure(what)))
    }
}

// ---- hosts and what runs on them ----

impl World {
    fn find(&self, name: &str) -> usize {
        let found = self.by_name.get(name);
        *found.unwrap_or_else(|| panic!("no host is called {name:?}; there are {:?}", self.names()))
    }

    fn host(&self, name: &str) -> &Host {
        &self.hosts[self.find(name)]
    }

    fn host_mut(&mut self, name: &str) -> &mut Host {
        let at = self.find(name);
        &mut self.hosts[at]
    }

    fn id(&self, name: &str) -> HostId {
        self.host(name).id
    }

    /// All hosts, in the order in which they were made.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.hosts.iter().map(|host| host.name.clone()).collect()
    }

    /// The hosts on which something runs, in the order in which they were made.
    #[must_use]
    pub fn running(&self) -> Vec<String> {
        let running = self.hosts.iter().filter(|host| host.life.is_some());
        running.map(|host| host.name.clone()).collect()
    }

    /// Whether something runs on `name`.
    #[must_use]
    pub fn is_running(&self, name: &str) -> bool {
        self.host(name).life.is_some()
    }

    /// Where the node of `name` listens.
    #[must_use]
    pub fn addr(&self, name: &str) -> SocketAddr {
        self.host(name).addr
    }

    /// The disk of `name`: how it may fail, and how often it did.
    #[must_use]
    pub fn disk(&self, name: &str) -> &FaultyDisk {
        &self.host(name).disk
    }

    fn add(&mut self, name: &str, setup: Option<Setup>, program: Option<Program>) {
        assert!(!self.by_name.contains_key(name), "there is a host called {name:?} already");
        let disk = FaultyDisk::new(self.rng.next_u64());
        let mut net = self.net.lock();
        let id = net.add_host(name);
        let addr = node_addr(net.ip(id));
        drop(net);
        self.by_name.insert(name.to_owned(), self.hosts.len());
        self.hosts.push(Host {
            id,
            name: name.to_owned(),
            addr,
            disk,
            skew: Arc::new(Skew::default()),
            setup,
            program,
            pace: Pace::Steady,
            life: None,
            channel_cuts: Vec::new(),
        });
    }

    /// Makes the host `name` with a node on it: durable, joined to the hosts made so far. Returns
    /// when the node listens.
    ///
    /// # Errors
    /// [`Failure`] when the node refuses to start; also as [`World::run_for`].
    ///
    /// # Panics
    /// When there is a host of that name.
    pub fn start(&mut self, name: &str) -> Result<&mut Self, Failure> {
        self.start_with(name, |node| node)
    }

    /// As [`World::start`], with settings of your own, at this and every later start.
    ///
    /// # Errors
    /// As [`World::start`].
    pub fn start_with(
        &mut self,
        name: &str,
        setup: impl Fn(NodeBuilder) -> NodeBuilder + Send + Sync + 'static,
    ) -> Result<&mut Self, Failure> {
        self.add(name, Some(Arc::new(setup)), None);
        self.boot(name)
    }

    /// As [`World::start`], with a program of your own that runs beside the node from this and
    /// every later start on: the service under test.
    ///
    /// # Errors
    /// As [`World::start`].
    pub fn start_running<F: Future<Output = ()> + Send + 'static>(
        &mut self,
        name: &str,
        program: impl Fn(Node) -> F + Send + Sync + 'static,
    ) -> Result<&mut Self, Failure> {
        let program: Program = Arc::new(move |node| Box::pin(program(node)));
        self.add(name, Some(Arc::new(|node| node)), Some(program));
        self.boot(name)
    }

    /// Makes a host without a node: for code that needs no more than a network, a disk and a clock.
    ///
    /// # Panics
    /// When there is a host of that name.
    pub fn start_bare(&mut self, name: &str) -> &mut Self {
        self.add(name, None, None);
        self.begin(name);
        self
    }

    /// Starts `name` again after a crash, on its disk.
    ///
    /// # Errors
    /// As [`World::start`].
    ///
    /// # Panics
    /// When it runs.
    pub fn restart(&mut self, name: &str) -> Result<&mut Self, Failure> {
        assert!(!self.is_running(name), "{name:?} runs; crash it first");
        self.host_mut(name).pace = Pace::Steady;
        self.boot(name)
    }

    fn begin(&mut self, name: &str) {
        self.note(format!("{name} starts"));
        self.lives += 1;
        let life = Life::begin(self.lives, self.host(name), &self.net, self.now);
        self.host_mut(name).life = Some(life);
    }

    fn boot(&mut self, name: &str) -> Result<&mut Self, Failure> {
        self.begin(name);
        let Some(setup) = self.host(name).setup.clone() else { return Ok(self) };
        let others: Vec<SocketAddr> =
            self.hosts.iter().filter(|host| host.name != name).map(|host| host.addr).collect();
        let rng = self.rng.fork();
        let host = self.host(name);
        let life = host.life.as_ref().expect("it has just begun");
        let builder = Node::builder()
            .name(name)
            .dev(authority())
            .bind(host.addr)
            .join(others)
            .data_dir("/data")
            .environment(life.environment(rng));
        let starting = life.spawn(setup(builder).start());
        let end = self.now + PATIENCE;
        while !starting.is_finished() {
            if self.now >= end {
                return Err(self.failure(format!("{name} did not start within {PATIENCE:?}")));
            }
            self.step()?;
        }
        let life = self.host(name).life.as_ref().expect("nothing ends it while it starts");
        let node = match life.result(starting) {
            Some(Ok(node)) => node,
            Some(Err(error)) => {
                let failure = self.failure(format!("{name} refuses to start: {error}"));
                self.end(name);
                return Err(failure);
            }
            None => return Err(self.failure(format!("{name} panicked while it started"))),
        };
        let host = self.host_mut(name);
        let life = host.life.as_mut().expect("nothing ends it while it starts");
        if let Some(program) = &host.program {
            let future = life.inside(|| program(node.clone()));
            drop(life.spawn(future));
        }
        let cuts = &host.channel_cuts;
        for rule in cuts {
            let added = life.inside(|| node.transport().faults().add(rule.clone()));
            debug_assert!(added.is_some(), "far fewer cuts than rules fit");
        }
        life.node = Some(node);
        Ok(self)
    }

    /// What a host without a node has to work with, for [`World::on_bare`].
    fn environment(&mut self, name: &str) -> Option<Environment> {
        let rng = self.rng.fork();
        Some(self.host(name).life.as_ref()?.environment(rng))
    }

    /// Runs `act` on the host `name` with its node and lets the world go on until it is done.
    ///
    /// # Errors
    /// [`Failure`] when nothing runs on `name`, when it ends meanwhile, or when `act` takes
    /// longer than two virtual minutes; also as [`World::run_for`].
    pub fn on<T, F>(&mut self, name: &str, act: impl FnOnce(Node) -> F) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let running = self.host(name).life.as_ref();
        let Some((life, node)) = running.and_then(|life| Some((life, life.node.clone()?))) else {
            return Err(self.failure(format!("no node runs on {name}")));
        };
        let future = life.inside(|| act(node));
        self.finish(name, future)
    }

    /// As [`World::on`], on a host without a node.
    ///
    /// # Errors
    /// As [`World::on`].
    pub fn on_bare<T, F>(
        &mut self,
        name: &str,
        act: impl FnOnce(Environment) -> F,
    ) -> Result<T, Failure>
    where
        T: Send + 'static,
        F: Future<Output = T> + Send + 'static,
    {
        let Some(environment) = self.environment(name) else {
            return Err(self.failure(format!("nothing runs on {name}")));
        };
        let life = self.host(name).life.as_ref().expect("it has an environment");
        let future = life.inside(|| act(environment));
        self.finish(name, future)
    }

    fn finish<T: Send + 'static>(
        &mut self,
        name: &str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, Failure> {
        let at = self.find(name);
        let life = self.hosts[at].life.as_ref().expect("the caller has looked");
        let (number, task) = (life.number, life.spawn(future));
        let end = self.now + PATIENCE;
        loop {
            let life = self.hosts[at].life.as_ref().filter(|life| life.number == number);
            let Some(life) = life else {
                return Err(self.failure(format!("{name} ended before it had an answer")));
            };
            if task.is_finished() {
                let result = life.result(task);
                return result.ok_or_else(|| self.failure(format!("the code on {name} panicked")));
            }
            if self.now >= end {
                return Err(self.failure(format!("the code on {name} takes over {PATIENCE:?}")));
            }
            self.step()?;
        }
    }

    /// Starts `act` on the host `name` and does not wait for it. It ends with the process.
    ///
    /// # Panics
    /// When no node runs on `name`.
    pub fn spawn<F>(&mut self, name: &str, act: impl FnOnce(Node) -> F) -> &mut Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let life = self.host(name).life.as_ref();
        let life = life.unwrap_or_else(|| panic!("nothing runs on {name}"));
        let node = life.node.clone().unwrap_or_else(|| panic!("no node runs on {name}"));
        let future = life.inside(|| act(node));
        drop(life.spawn(future));
        self
    }

    /// As [`World::spawn`], on a host without a node.
    ///
    /// # Panics
    /// When nothing runs on `name`.
    pub fn spawn_bare<F>(&mut self, name: &str, act: impl FnOnce(Environment) -> F) -> &mut Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let environment = self.environment(name);
        let environment = environment.unwrap_or_else(|| panic!("nothing runs on {name}"));
        let life = self.host(name).life.as_ref().expect("it has an environment");
        let future = life.inside(|| act(environment));
        drop(life.spawn(future));
        self
    }

    /// Looks at, or writes through, the node of `name` now, without time passing; `None` when none
    /// runs there.
    pub fn at<T>(&self, name: &str, look: impl FnOnce(&Node) -> T) -> Option<T> {
        let life = self.host(name).life.as_ref()?;
        let node = life.node.as_ref()?;
        Some(life.inside(|| look(node)))
    }
}

// ---- ends ----

impl World {
    fn end(&mut self, name: &str) {
        if let Some(life) = self.host_mut(name).life.take() {
            life.end();
        }
        // Whatever its remains have said while they were cleared away.
        drop(panics::take());
    }

    /// The process on `name` is killed: no code of its own has a say, its kernel closes its
    /// sockets, and what it wrote to disk is there although it may not be flushed.
    pub fn crash(&mut self, name: &str) -> &mut Self {
        self.note(format!("{name} is killed"));
        let host = self.host(name);
        self.net.lock().kill(host.id, self.now);
        host.disk.crash(CrashStyle::Killed);
        self.end(name);
        self
    }

    /// The power of `name` goes: nobody is told, and what was not flushed is kept, lost or torn,
    /// write by write, as the seed decides.
    pub fn power_off(&mut self, name: &str) -> &mut Self {
        self.note(format!("{name} loses power"));
        let host = self.host(name);
        self.net.lock().power_off(host.id);
        host.disk.crash(CrashStyle::Torn);
        self.end(name);
        self
    }

    /// The disk of `name` is replaced by an empty one. What runs there loses power first.
    pub fn lose_disk(&mut self, name: &str) -> &mut Self {
        if self.is_running(name) {
            self.power_off(name);
        }
        self.note(format!("{name} loses its disk"));
        let disk = FaultyDisk::new(self.rng.next_u64());
        self.host_mut(name).disk = disk;
        self
    }
}

// ---- faults of hosts ----

impl World {
    /// The code on `name` stops for `time` while everything else goes on, as with `SIGSTOP`, a long
    /// collection of garbage or a migration of a virtual machine.
    pub fn pause(&mut self, name: &str, time: Duration) -> &mut Self {
        self.note(format!("{name} pauses for {time:?}"));
        let until = Some(self.now + time);
        self.host_mut(name).pace = Pace::Paused { until };
        self
    }

    /// The code on `name` runs one step in every `every`: a machine without enough processor.
    pub fn slow(&mut self, name: &str, every: Duration) -> &mut Self {
        self.note(format!("{name} runs once in {every:?}"));
        let next = self.now;
        self.host_mut(name).pace = Pace::Slow { every, next };
        self
    }

    /// The wall clock of `name` is ahead by `ahead` from now on.
    pub fn skew(&mut self, name: &str, ahead: Duration) -> &mut Self {
        let millis = i64::try_from(ahead.as_millis()).unwrap_or(i64::MAX);
        self.jump_clock(name, millis)
    }

    /// The wall clock of `name` jumps to `millis` away from the truth: positive is ahead.
    pub fn jump_clock(&mut self, name: &str, millis: i64) -> &mut Self {
        self.note(format!("the wall clock of {name} is {millis} ms off"));
        self.host(name).skew.set(millis);
        self
    }

    /// How far the wall clock of `name` is ahead, in milliseconds.
    #[must_use]
    pub fn clock_error_millis(&self, name: &str) -> i64 {
        self.host(name).skew.get()
    }

    /// The disk of `name` is full: it takes nothing beyond what it holds.
    pub fn fill_disk(&mut self, name: &str) -> &mut Self {
        self.note(format!("the disk of {name} is full"));
        let disk = &self.host(name).disk;
        disk.limit(disk.bytes());
        self
    }

    /// Flushing on `name` takes `time` from now on.
    pub fn slow_disk(&mut self, name: &str, time: Duration) -> &mut Self {
        self.note(format!("flushing on {name} takes {time:?}"));
        self.host(name).disk.slow_down(time);
        self
    }

    /// The next `count` flushes on `name` fail, and take what they were to flush with them.
    pub fn fail_flushes(&mut self, name: &str, count: u32) -> &mut Self {
        self.note(format!("the next {count} flushes on {name} fail"));
        self.host(name).disk.fail_syncs(count);
        self
    }
}

// ---- faults of the network ----

impl World {
    fn ids<S: AsRef<str>>(&self, names: impl IntoIterator<Item = S>) -> Vec<HostId> {
        names.into_iter().map(|name| self.id(name.as_ref())).collect()
    }

    fn names_of(&self, ids: &[HostId]) -> String {
        let names: Vec<&str> = ids.iter().map(|id| &*self.hosts[id.index()].name).collect();
        names.join(", ")
    }

    fn change(&mut self, from: HostId, to: HostId, change: impl FnOnce(&mut Wrong)) {
        change(self.net.lock().links.way(from, to));
    }

    /// Cuts every way between one side and the other. What was sent before still arrives; streams
    /// find out as they would: by silence.
    pub fn partition<A: AsRef<str>, B: AsRef<str>>(
        &mut self,
        one: impl IntoIterator<Item = A>,
        other: impl IntoIterator<Item = B>,
    ) -> &mut Self {
        let (one, other) = (self.ids(one), self.ids(other));
        self.note(format!("cut between {} and {}", self.names_of(&one), self.names_of(&other)));
        for &a in &one {
            for &b in &other {
                self.change(a, b, Wrong::cut);
                self.change(b, a, Wrong::cut);
            }
        }
        self
    }

    /// Cuts `name` off from everybody.
    pub fn isolate(&mut self, name: &str) -> &mut Self {
        let others: Vec<String> = self.names().into_iter().filter(|other| other != name).collect();
        self.partition([name], others)
    }

    /// Nothing gets from `from` to `to` any more; the other way is open.
    pub fn cut_one_way(&mut self, from: &str, to: &str) -> &mut Self {
        self.note(format!("cut from {from} to {to}"));
        let (from, to) = (self.id(from), self.id(to));
        self.change(from, to, Wrong::cut);
        self
    }

    /// No datagram gets through between `a` and `b`; streams do.
    pub fn cut_datagrams(&mut self, a: &str, b: &str) -> &mut Self {
        self.note(format!("datagrams cut between {a} and {b}"));
        let (a, b) = (self.id(a), self.id(b));
        for (from, to) in [(a, b), (b, a)] {
            self.change(from, to, |wrong| wrong.datagrams_cut = true);
        }
        self
    }

    /// No stream gets anything through between `a` and `b`; datagrams do.
    pub fn cut_streams(&mut self, a: &str, b: &str) -> &mut Self {
        self.note(format!("streams cut between {a} and {b}"));
        let (a, b) = (self.id(a), self.id(b));
        for (from, to) in [(a, b), (b, a)] {
            self.change(from, to, |wrong| wrong.streams_cut = true);
        }
        self
    }

    /// Loses every message on one channel between `a` and `b`, both ways, inside their transports;
    /// the other channels go on. Survives restarts until [`World::heal`].
    ///
    /// # Panics
    /// When there is no such channel on a node that runs.
    pub fn cut_channel(&mut self, a: &str, b: &str, channel: &ChannelName) -> &mut Self {
        self.note(format!("channel {channel} cut between {a} and {b}"));
        for (here, there) in [(a, b), (b, a)] {
            let find = |node: &Node| node.transport().channel(channel);
            let id = self.at(here, find).flatten();
            let id = id.unwrap_or_else(|| panic!("{here} runs no node with a channel {channel}"));
            let rule = FaultRule {
                peer: Some(NodeName::parse(there).expect("hosts with nodes have node names")),
                lane: Lane::Channel(id),
                direction: Direction::Outgoing,
                effect: Effect::Drop { probability: 1.0 },
            };
            let added = self.at(here, |node| node.transport().faults().add(rule.clone()));
            debug_assert!(added.is_some(), "it runs: its channel was just found");
            self.host_mut(here).channel_cuts.push(rule);
        }
        self
    }

    /// So many of all packets are lost, from 0 to 1: datagrams for good, pieces of streams until
    /// they are sent again.
    pub fn loss(&mut self, probability: f64) -> &mut Self {
        self.note(format!("{:.0} % of all packets are lost", probability * 100.0));
        self.net.lock().links.everywhere.loss = probability;
        self
    }

    /// As [`World::loss`], one way between two hosts.
    pub fn loss_between(&mut self, from: &str, to: &str, probability: f64) -> &mut Self {
        self.note(format!("{:.0} % are lost from {from} to {to}", probability * 100.0));
        let (from, to) = (self.id(from), self.id(to));
        self.change(from, to, |wrong| wrong.loss = probability);
        self
    }

    /// So many of all datagrams arrive twice, from 0 to 1. (Streams are not doubled: TCP sees to
    /// that.)
    pub fn duplicate(&mut self, probability: f64) -> &mut Self {
        self.note(format!("{:.0} % of all datagrams are doubled", probability * 100.0));
        self.net.lock().links.everywhere.duplicate = probability;
        self
    }

    /// Everything takes `by` longer, and up to `jitter` more: datagrams overtake each other then.
    pub fn delay(&mut self, by: Duration, jitter: Duration) -> &mut Self {
        self.note(format!("everything takes {by:?} longer, and up to {jitter:?} more"));
        let mut net = self.net.lock();
        (net.links.everywhere.delay, net.links.everywhere.jitter) = (by, jitter);
        drop(net);
        self
    }

    /// As [`World::delay`], one way between two hosts.
    pub fn delay_between(
        &mut self,
        from: &str,
        to: &str,
        by: Duration,
        jitter: Duration,
    ) -> &mut Self {
        self.note(format!("from {from} to {to} takes {by:?} longer, and up to {jitter:?} more"));
        let (from, to) = (self.id(from), self.id(to));
        self.change(from, to, |wrong| (wrong.delay, wrong.jitter) = (by, jitter));
        self
    }

    /// Ends what is wrong with the network, and with the speed and the disks of hosts. Hosts that
    /// are down stay down, clocks that are wrong stay wrong.
    pub fn heal(&mut self) -> &mut Self {
        self.note("healed");
        self.net.lock().links.heal();
        for host in &mut self.hosts {
            host.pace = Pace::Steady;
            host.disk.limit(u64::MAX);
            host.disk.slow_down(Duration::ZERO);
            host.disk.fail_syncs(0);
            host.channel_cuts.clear();
            if let Some(life) = &host.life
                && let Some(node) = &life.node
            {
                life.inside(|| node.transport().faults().clear());
            }
        }
        self
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for host in std::mem::take(&mut self.hosts) {
            self.net.lock().power_off(host.id);
            if let Some(life) = host.life {
                life.end();
            }
        }
    }
}
