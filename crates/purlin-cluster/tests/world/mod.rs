//! A simulated network of membership cores: one thread, one seed, virtual time.
//!
//! The second loop around the core, beside the driver. Same seed, same trace.
#![expect(clippy::unwrap_used, reason = "a broken simulation is a failed test")]
#![expect(clippy::print_stderr, reason = "a failing seed says how to replay it")]

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    time::Duration,
};

use purlin_cluster::swim::{
    Config, ConfigBuilder, Event, Input, Meta, Output, Path, Sighting, State, Swim, Why,
};
use purlin_core::{Incarnation, Instant, NodeId, NodeName, Rng};

/// IPv4 and UDP headers, and what sealing adds: version, key, sender, nonce, tag.
pub(crate) const DATAGRAM_OVERHEAD: u64 = 28 + 60;
/// TCP/IP headers and the TLS record around a control frame, and the ACK it causes.
pub(crate) const CONTROL_OVERHEAD: u64 = 40 + 22 + 40;

pub(crate) fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

pub(crate) fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

pub(crate) fn name(n: usize) -> NodeName {
    NodeName::parse(&format!("n{n}")).unwrap()
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Action {
    Deliver { to: usize, to_id: NodeId, from: NodeId, control: bool, bytes: Vec<u8> },
    Contacted { at: usize, who: usize },
    Met { at: usize, who: usize },
    Refused { at: usize, whom: NodeId },
    Wake { node: usize, plan: u64 },
}

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) swim: Swim,
    pub(crate) running: bool,
    pub(crate) paused: bool,
    pub(crate) superseded: bool,
    pub(crate) announced: usize,
    pub(crate) events: Vec<(Instant, Event)>,
    pub(crate) bytes_sent: u64,
    pub(crate) kept: BTreeSet<NodeId>,
    plan: u64,
    missed: Vec<Action>,
}

/// Nodes 0 to n-1 called `n0`, `n1`, ..., and the network between them.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) nodes: BTreeMap<usize, Node>,
    /// Chance that a datagram is lost.
    pub(crate) loss: f64,
    /// Chance that a datagram arrives twice.
    pub(crate) duplicates: f64,
    pub(crate) delay_min: Duration,
    pub(crate) delay_max: Duration,
    /// Extra delay of everything one node receives: a slow node.
    pub(crate) slow: BTreeMap<usize, Duration>,
    /// Directions in which nothing passes.
    pub(crate) cuts: BTreeSet<(usize, usize)>,
    /// Whether the control channel carries anything at all.
    pub(crate) control: bool,
    /// Whether a crash is seen by its peers as reset and refused.
    pub(crate) resets: bool,
    pub(crate) trace: u64,
    pub(crate) steps: u64,
    config: ConfigBuilder,
    rng: Rng,
    queue: BinaryHeap<Reverse<(Instant, u64, Action)>>,
    order: u64,
}

impl World {
    /// `count` nodes that do not know each other yet.
    pub(crate) fn new(seed: u64, count: usize, config: ConfigBuilder) -> Self {
        let mut world = Self {
            now: Instant::from_start(secs(1)),
            nodes: BTreeMap::new(),
            loss: 0.0,
            duplicates: 0.0,
            delay_min: Duration::from_micros(100),
            delay_max: ms(1),
            slow: BTreeMap::new(),
            cuts: BTreeSet::new(),
            control: true,
            resets: false,
            trace: 0,
            steps: 0,
            config,
            rng: Rng::from_seed(seed),
            queue: BinaryHeap::new(),
            order: 0,
        };
        for n in 0..count {
            world.start(n, 1_000);
        }
        world
    }

    /// `count` nodes that all know each other.
    pub(crate) fn formed(seed: u64, count: usize, config: ConfigBuilder) -> Self {
        let mut world = Self::new(seed, count, config);
        for n in 1..count {
            world.meet(n, 0);
        }
        world.until("all nodes see each other", secs(30), Self::agrees);
        world.run_for(secs(2));
        world.clear_records();
        world
    }

    pub(crate) fn start(&mut self, n: usize, incarnation: u64) {
        let id = NodeId::new(name(n), Incarnation(incarnation));
        let mut meta = Meta::new(addr(n));
        meta.version = "0.1.0".to_owned();
        meta.zone = Some(format!("z{}", n % 3));
        let rng = self.rng.fork();
        let config = self.config.clone().build().unwrap();
        let swim = Swim::new(config, id, meta, self.now, rng).unwrap();
        let node = Node {
            swim,
            running: true,
            paused: false,
            superseded: false,
            announced: 0,
            events: Vec::new(),
            bytes_sent: 0,
            kept: BTreeSet::new(),
            plan: 0,
            missed: Vec::new(),
        };
        self.nodes.insert(n, node);
        self.plan_wake(n);
    }

    /// `a` contacts `b`: both learn who the other is.
    pub(crate) fn meet(&mut self, a: usize, b: usize) {
        if !self.linked(a, b) || !self.is_up(a) || !self.is_up(b) {
            return;
        }
        let delay = self.delay();
        self.push(delay, Action::Contacted { at: a, who: b });
    }

    /// The transport of `a` has a control channel to `b`, if there is a way.
    fn connect(&mut self, a: usize, b: usize) {
        if self.linked(a, b) && self.is_up(a) && self.is_up(b) {
            for (at, who) in [(a, b), (b, a)] {
                let delay = self.delay();
                self.push(delay, Action::Met { at, who });
            }
        }
    }

    pub(crate) fn crash(&mut self, n: usize) {
        let node = self.nodes.get_mut(&n).unwrap();
        node.running = false;
        node.paused = false;
        let whom = node.swim.node().clone();
        if self.resets {
            for at in self.others(n) {
                if self.linked(at, n) {
                    let delay = self.delay();
                    self.push(delay, Action::Refused { at, whom: whom.clone() });
                }
            }
        }
    }

    pub(crate) fn restart(&mut self, n: usize, seed_node: usize) {
        let incarnation = self.nodes[&n].swim.node().incarnation.0 + 1_000;
        self.start(n, incarnation);
        self.meet(n, seed_node);
    }

    pub(crate) fn pause(&mut self, n: usize) {
        self.nodes.get_mut(&n).unwrap().paused = true;
    }

    pub(crate) fn resume(&mut self, n: usize) {
        let node = self.nodes.get_mut(&n).unwrap();
        node.paused = false;
        // What waited in the socket's buffer comes in the order it arrived, the timer anywhere.
        let missed = std::mem::take(&mut node.missed);
        for action in missed {
            self.push(Duration::from_micros(10), action);
        }
        let plan = self.nodes[&n].plan;
        self.push(Duration::from_micros(10), Action::Wake { node: n, plan });
    }

    pub(crate) fn cut(&mut self, from: usize, to: usize) {
        self.cuts.insert((from, to));
    }

    /// Cuts both ways between every node of `a` and every node of `b`.
    pub(crate) fn partition(&mut self, a: &[usize], b: &[usize]) {
        for &x in a {
            for &y in b {
                self.cut(x, y);
                self.cut(y, x);
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cuts.clear();
        let kept: Vec<_> = self
            .nodes
            .iter()
            .flat_map(|(n, node)| node.kept.iter().map(|id| (*n, number(id))))
            .collect();
        for (a, b) in kept {
            self.connect(a, b);
        }
    }

    pub(crate) fn input(&mut self, n: usize, input: Input<'_>) {
        let mut out = Vec::new();
        let now = self.now;
        let node = self.nodes.get_mut(&n).unwrap();
        node.swim.step(now, input, &mut out);
        self.steps += 1;
        for output in out {
            self.apply(n, output);
        }
        self.plan_wake(n);
    }

    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.step_before(end) {}
        self.now = end;
    }

    /// Runs until `done`, and says how long that took.
    pub(crate) fn until(
        &mut self,
        what: &str,
        within: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Duration {
        let start = self.now;
        let end = start + within;
        while !done(self) {
            let next = (self.now + ms(5)).min(end);
            while self.step_before(next) {}
            self.now = next;
            assert!(self.now < end, "not within {within:?}: {what}\n{}", self.describe());
        }
        self.now - start
    }

    fn step_before(&mut self, end: Instant) -> bool {
        match self.queue.peek() {
            Some(Reverse((at, ..))) if *at <= end => {}
            _ => return false,
        }
        let Some(Reverse((at, order, action))) = self.queue.pop() else { return false };
        self.now = self.now.max(at);
        self.note(order, &action);
        match action {
            Action::Wake { node, plan } => {
                let n = &self.nodes[&node];
                if n.running && !n.paused && n.plan == plan {
                    self.input(node, Input::Woke);
                }
            }
            Action::Contacted { at, who } => {
                if self.is_up(at) && self.is_up(who) {
                    let node = self.nodes[&who].swim.node().clone();
                    self.input(at, Input::Contacted { node, addr: addr(who) });
                }
            }
            Action::Met { at, who } => {
                if self.is_up(at) && self.is_up(who) {
                    let node = self.nodes[&who].swim.node().clone();
                    self.input(at, Input::Met { node });
                }
            }
            Action::Refused { at, whom } => {
                if self.is_up(at) {
                    self.input(at, Input::Refused { node: whom });
                }
            }
            Action::Deliver { to, to_id, from, control, bytes } => {
                let node = self.nodes.get_mut(&to).unwrap();
                if !node.running || *node.swim.node() != to_id {
                    return true;
                }
                if node.paused {
                    // A socket buffer holds a few hundred packets of this size.
                    if node.missed.len() < 400 {
                        node.missed.push(Action::Deliver { to, to_id, from, control, bytes });
                    }
                    return true;
                }
                let path = if control { Path::Control } else { Path::Datagram };
                let addr = (!control).then(|| addr(number(&from)));
                self.input(to, Input::Packet { from, addr, path, bytes: &bytes });
            }
        }
        true
    }

    fn apply(&mut self, n: usize, output: Output) {
        let now = self.now;
        match output {
            Output::Send { to, path, bytes, .. } => self.send(n, to, path, bytes),
            Output::Event(event) => self.nodes.get_mut(&n).unwrap().events.push((now, event)),
            Output::Keep { node, .. } => {
                let who = number(&node);
                self.nodes.get_mut(&n).unwrap().kept.insert(node);
                self.connect(n, who);
            }
            Output::Forget { node } | Output::Release { node } => {
                self.nodes.get_mut(&n).unwrap().kept.remove(&node);
            }
            Output::Recontact { addr, .. } => {
                let who = usize::from(addr.port());
                self.meet(n, who);
            }
            Output::Announced => self.nodes.get_mut(&n).unwrap().announced += 1,
            Output::Superseded => self.nodes.get_mut(&n).unwrap().superseded = true,
            Output::Changed => {}
        }
    }

    fn send(&mut self, n: usize, to_id: NodeId, path: Path, bytes: Vec<u8>) {
        let to = number(&to_id);
        let control = path == Path::Control;
        let len = u64::try_from(bytes.len()).unwrap();
        let from = self.nodes[&n].swim.node().clone();
        if control {
            if !self.control || !self.linked(n, to) || !self.is_up(to) {
                return;
            }
            self.nodes.get_mut(&n).unwrap().bytes_sent += len + CONTROL_OVERHEAD;
            let delay = self.delay() * 2;
            self.push(delay, Action::Deliver { to, to_id, from, control, bytes });
            return;
        }
        assert!(bytes.len() <= 1_200, "a datagram of {len} bytes");
        self.nodes.get_mut(&n).unwrap().bytes_sent += len + DATAGRAM_OVERHEAD;
        if self.cuts.contains(&(n, to)) || self.rng.chance(self.loss) {
            return;
        }
        if self.rng.chance(self.duplicates) {
            let delay = self.delay();
            let (to_id, from, bytes) = (to_id.clone(), from.clone(), bytes.clone());
            self.push(delay, Action::Deliver { to, to_id, from, control, bytes });
        }
        let delay = self.delay() + self.slow.get(&to).copied().unwrap_or_default();
        self.push(delay, Action::Deliver { to, to_id, from, control, bytes });
    }

    fn delay(&mut self) -> Duration {
        self.delay_min + self.rng.jitter(self.delay_max - self.delay_min)
    }

    fn plan_wake(&mut self, n: usize) {
        let now = self.now;
        let node = self.nodes.get_mut(&n).unwrap();
        node.plan += 1;
        let plan = node.plan;
        let wake = node.swim.wake_at();
        self.push(wake - now, Action::Wake { node: n, plan });
    }

    fn push(&mut self, delay: Duration, action: Action) {
        self.order += 1;
        self.queue.push(Reverse((self.now + delay, self.order, action)));
    }

    fn note(&mut self, order: u64, action: &Action) {
        let size = match action {
            Action::Deliver { bytes, to, .. } => bytes.len() + to * 7,
            Action::Contacted { at, who } | Action::Met { at, who } => at * 31 + who,
            Action::Refused { at, .. } => at + 1,
            Action::Wake { node, .. } => *node,
        };
        let at = u64::try_from(self.now.since_start().as_nanos()).unwrap();
        let word = at ^ order.rotate_left(40) ^ u64::try_from(size).unwrap().rotate_left(20);
        self.trace = (self.trace ^ word).wrapping_mul(0x100_0000_01b3).rotate_left(5);
    }

    pub(crate) fn is_up(&self, n: usize) -> bool {
        self.nodes.get(&n).is_some_and(|node| node.running)
    }

    pub(crate) fn linked(&self, a: usize, b: usize) -> bool {
        !self.cuts.contains(&(a, b)) && !self.cuts.contains(&(b, a))
    }

    pub(crate) fn others(&self, n: usize) -> Vec<usize> {
        self.nodes.keys().copied().filter(|other| *other != n).collect()
    }

    pub(crate) fn up(&self) -> Vec<usize> {
        self.nodes.keys().copied().filter(|n| self.is_up(*n)).collect()
    }

    /// What `n` believes of `of`.
    pub(crate) fn belief(&self, n: usize, of: usize) -> Option<State> {
        self.nodes[&n].swim.state_of(&name(of)).map(|(_, state)| state)
    }

    /// Whether every running node has every running node alive in its present life.
    pub(crate) fn agrees(&self) -> bool {
        let up: Vec<_> = self.up().iter().map(|n| &self.nodes[n].swim).collect();
        up.iter().all(|a| {
            up.iter()
                .map(|b| b.node())
                .filter(|b| *b != a.node())
                .all(|b| a.state_of(&b.name) == Some((b.incarnation, State::Alive)))
        })
    }

    pub(crate) fn all_believe(&self, observers: &[usize], of: usize, state: State) -> bool {
        observers.iter().all(|n| self.belief(*n, of) == Some(state))
    }

    pub(crate) fn clear_records(&mut self) {
        for node in self.nodes.values_mut() {
            node.events.clear();
            node.bytes_sent = 0;
        }
    }

    /// Every verdict, as (observer, event), except that an old life made way for a new one.
    pub(crate) fn verdicts(&self) -> Vec<(usize, Instant, NodeId)> {
        let mut verdicts = Vec::new();
        for (n, node) in &self.nodes {
            for (at, event) in &node.events {
                if let Event::Down { node, why } = event
                    && *why != Why::Superseded
                {
                    verdicts.push((*n, *at, node.clone()));
                }
            }
        }
        verdicts
    }

    pub(crate) fn bytes_per_node_second(&self, over: Duration) -> f64 {
        let bytes: u64 = self.nodes.values().map(|node| node.bytes_sent).sum();
        let nodes = f64::from(u32::try_from(self.nodes.len()).unwrap());
        f64::from(u32::try_from(bytes / 1_000).unwrap()) * 1_000.0 / nodes / over.as_secs_f64()
    }

    pub(crate) fn sightings(&self, n: usize) -> Vec<Sighting> {
        self.nodes[&n].swim.sightings()
    }

    /// What every node believes, for the failure report.
    pub(crate) fn describe(&self) -> String {
        use std::fmt::Write as _;
        let mut text = format!("at {:?}\n", self.now);
        for (n, node) in &self.nodes {
            let other: Vec<_> = node
                .swim
                .sightings()
                .iter()
                .filter(|s| s.state != State::Alive)
                .map(|s| format!("{}={} by {:?}", s.node, s.state, s.accusers))
                .collect();
            let known = node.swim.sightings().len();
            let flags = (node.running, node.paused, node.superseded);
            writeln!(text, "n{n} {flags:?} knows {known}, not alive: {other:?}").unwrap();
            writeln!(text, "    {:?}", node.swim.counters()).unwrap();
            if self.nodes.len() <= 8 {
                for (at, event) in node.events.iter().rev().take(12).rev() {
                    writeln!(text, "    {at:?} {event:?}").unwrap();
                }
            }
        }
        text
    }
}

pub(crate) fn addr(n: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], u16::try_from(n).unwrap()))
}

fn number(node: &NodeId) -> usize {
    node.name.as_str()[1..].parse().unwrap()
}

/// Runs `scenario` for many seeds; `PURLIN_SIM_SEED` replays one, `PURLIN_SIM_SEEDS` sets how many.
pub(crate) fn sweep(test: &str, seeds: u64, scenario: impl Fn(u64)) {
    let env = |key| std::env::var(key).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = env("PURLIN_SIM_SEED") {
        scenario(seed);
        return;
    }
    for seed in 0..env("PURLIN_SIM_SEEDS").unwrap_or(seeds) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scenario(seed))) {
            eprintln!(
                "replay: PURLIN_SIM_SEED={seed} cargo test -p purlin-cluster --test swim_simulation {test}"
            );
            resume_unwind(panic);
        }
    }
}

pub(crate) fn lan() -> ConfigBuilder {
    Config::lan()
}

impl World {
    /// Starts `n` again under a later incarnation than `old` had.
    pub(crate) fn restart_as(&mut self, n: usize, old: &Node) {
        self.start(n, old.swim.node().incarnation.0 + 1);
        self.meet(n, 0);
    }
}
