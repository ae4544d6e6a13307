//! Children of the cluster: what a start costs, what one that does nothing costs, how soon all run
//! again after a node was killed, and how many move when one joins.
//!
//! Elixir's Horde is not on most machines; the limits are multiples of what it did on the machine
//! where they were set: 2,200 starts a second. Ours are OS processes, TLS on; what moves at a join
//! is read off the plan, which nothing but the records goes into.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use purlin::Node;
use purlin::dist::supervisor::{
    Birth, ChildOptions, Kind, KindError, Supervisor,
    placement::{Candidate, Placed, Placer, Strategy, Wish},
};
use purlin_core::{Incarnation, NodeId, NodeName};
use tokio::runtime::Runtime;

use crate::adder::Adder;
use crate::case::{Case, Gauge, GaugeRow, Readings};
use crate::failure::Failure;
use crate::idle::resident_megabytes;
use crate::nodes;
use crate::puppet::{Arguments, Puppet, Role, runtime};
use crate::rig::Process;
use crate::stats::Median;
use crate::workshop::Workshop;

/// What this program can be re-executed as for the rows of children.
pub(crate) const ROLES: &[(&str, Role)] = &[("children-node", node)];

/// How long anything may take that is waited for.
const WITHIN: Duration = Duration::from_secs(50);
/// Children of which a third dies.
const CHILDREN: usize = 1_000;
/// Children of which some move.
const MANY: usize = 100_000;
/// By how many percent loads may differ before they are levelled: the default.
const SLACK_PERCENT: u32 = 10;

/// The rows of children.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::Gauge(Gauge {
            name: "supervisor-start",
            about: "children started on three nodes by one caller, one after the other; and with 64 starts under way",
            rows: &[
                // 10 times 2,200 a second.
                GaugeRow { name: "supervisor-start", unit: "us", limit: 45.4 },
                GaugeRow { name: "supervisor-start-64", unit: "us", limit: 45.4 },
            ],
            read: starts,
        }),
        Case::Gauge(Gauge {
            name: "supervisor-failover",
            about: "one of three nodes with 1,000 children is killed (SIGKILL): until all run once and are found from both others; the worst of 30 times",
            rows: &[GaugeRow { name: "supervisor-failover", unit: "ms", limit: 1_500.0 }],
            read: failover,
        }),
        Case::Gauge(Gauge {
            name: "supervisor-memory",
            about: "memory of one idle child on a node that stands alone, its record included",
            rows: &[GaugeRow { name: "supervisor-memory", unit: "B a child", limit: 3_072.0 }],
            read: memory,
        }),
        Case::Gauge(Gauge {
            name: "supervisor-join",
            about: "the share of 100,000 children on four nodes that moves when a fifth joins; and what it takes to plan that",
            rows: &[
                GaugeRow { name: "supervisor-join", unit: "%", limit: 25.0 },
                GaugeRow { name: "supervisor-join-plan", unit: "ms", limit: f64::INFINITY },
            ],
            read: join,
        }),
    ]
}

/// Children that do nothing until they are called.
struct Adders;

impl Kind for Adders {
    const NAME: &'static str = "adder";
    type Server = Adder;
    type Args = ();
    type State = ();

    fn args(&self, (): (), _: Birth<()>) -> Result<(), KindError> {
        Ok(())
    }
}

/// A node that takes children.
struct Host {
    runtime: Runtime,
    node: Node,
    supervisor: Supervisor,
}

/// A node of which one thing after the other is asked.
fn node(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let host = Host::start(arguments.text(0)?, arguments.text(1)?, arguments.rest(2))?;
    puppet.ready(&host.node.cluster_addr().to_string());
    while let Some(asked) = puppet.next_question() {
        let words: Vec<&str> = asked.split_whitespace().collect();
        puppet.answer(&host.answer(&words)?);
    }
    Ok(())
}

impl Host {
    fn start(cluster: &str, name: &str, seeds: &[String]) -> Result<Self, Failure> {
        let runtime = runtime()?;
        let node = runtime.block_on(nodes::start(cluster, name, seeds))?;
        let supervisor = node.supervisor("bench").map_err(Failure::role("naming a supervisor"))?;
        supervisor.register_kind(Adders).map_err(Failure::role("registering a kind"))?;
        Ok(Self { runtime, node, supervisor })
    }

    fn answer(&self, words: &[&str]) -> Result<String, Failure> {
        let number = |text: &str| text.parse::<usize>().map_err(Failure::role("reading a number"));
        match *words {
            ["hosts", nodes] => {
                let nodes = number(nodes)?;
                self.until("all take children", || {
                    self.supervisor.hosts(Adders::NAME).len() == nodes
                        && self.node.cluster().view().alive().count() == nodes
                })?;
            }
            ["start", name, children] => return self.start_one_by_one(name, number(children)?),
            ["start", name, children, at_once] => {
                return self.start_at_once(name, number(children)?, number(at_once)?);
            }
            ["know", children, nodes] => {
                let (children, nodes) = (number(children)?, number(nodes)?);
                self.until("all children run", || self.running(children, nodes))?;
            }
            ["here"] => return Ok(self.here().to_string()),
            _ => return Err(Failure::Role(format!("asked {words:?}"))),
        }
        Ok(String::new())
    }

    fn start_one_by_one(&self, name: &str, children: usize) -> Result<String, Failure> {
        let started = Instant::now();
        self.runtime.block_on(async {
            for n in 0..children {
                self.start_child(name, n).await?;
            }
            Ok::<_, Failure>(())
        })?;
        Ok(micros(started, children).to_string())
    }

    fn start_at_once(
        &self,
        name: &str,
        children: usize,
        at_once: usize,
    ) -> Result<String, Failure> {
        let started = Instant::now();
        self.runtime.block_on(async {
            let mut tasks = Vec::new();
            for first in 0..at_once {
                let (supervisor, name) = (self.supervisor.clone(), name.to_owned());
                tasks.push(tokio::spawn(async move {
                    for n in (first..children).step_by(at_once) {
                        start_child(&supervisor, &name, n).await?;
                    }
                    Ok::<_, Failure>(())
                }));
            }
            for task in tasks {
                task.await.map_err(Failure::role("starting"))??;
            }
            Ok::<_, Failure>(())
        })?;
        Ok(micros(started, children).to_string())
    }

    async fn start_child(&self, name: &str, n: usize) -> Result<(), Failure> {
        start_child(&self.supervisor, name, n).await
    }

    /// Whether so many children run on so many nodes, as far as this node knows: each on a node
    /// that is there, and those of this node with a process.
    fn running(&self, children: usize, nodes: usize) -> bool {
        let view = self.node.cluster().view();
        if view.alive().count() != nodes {
            return false;
        }
        let known = self.supervisor.children("", None, usize::MAX);
        let runs = |pid: purlin_process::Pid| {
            view.alive().any(|member| member.id == pid.node)
                && (pid.node != *self.node.id() || self.node.processes().get(pid.process).is_some())
        };
        known.len() == children && known.iter().all(|child| child.pid().is_some_and(runs))
    }

    /// How many processes of children run here, whoever knows of them.
    fn here(&self) -> usize {
        let processes = self.node.processes().list();
        processes.iter().filter(|process| process.kind == "Adder").count()
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) -> Result<(), Failure> {
        let deadline = Instant::now() + WITHIN;
        while !holds() {
            if Instant::now() > deadline {
                return Err(Failure::Role(format!("waited {WITHIN:?} in vain until {what}")));
            }
            self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(2)).await });
        }
        Ok(())
    }
}

async fn start_child(supervisor: &Supervisor, name: &str, n: usize) -> Result<(), Failure> {
    let id = format!("{name}-{n:06}");
    let started = supervisor.start_child::<Adders>(&id, &(), ChildOptions::default()).await;
    started.map(drop).map_err(Failure::role("starting a child"))
}

#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
fn micros(started: Instant, count: usize) -> f64 {
    started.elapsed().as_secs_f64() * 1e6 / count as f64
}

/// Three nodes that know each other as takers of children.
fn three(workshop: &Workshop) -> Result<[Process; 3], Failure> {
    let cluster = workshop.new_folder("children")?;
    let first = workshop.role("children-node", &[&cluster, "n1"])?;
    let second = workshop.role("children-node", &[&cluster, "n2", &first.ready])?;
    let third = workshop.role("children-node", &[&cluster, "n3", &first.ready, &second.ready])?;
    let mut all = [first, second, third];
    of_all(&mut all, "hosts 3")?;
    Ok(all)
}

fn of_all(nodes: &mut [Process], what: &str) -> Result<Vec<String>, Failure> {
    nodes.iter_mut().try_for_each(|node| node.ask(what))?;
    nodes.iter_mut().map(Process::answer).collect()
}

fn starts(workshop: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let (rounds, children) = if brief { (3, 1_000) } else { (7, 4_000) };
    let mut all = three(workshop)?;
    let (mut one_by_one, mut at_once) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let said = all[0].question(&format!("start one{round} {children}"))?;
        one_by_one.push(said.parse().map_err(Failure::role("reading a time"))?);
        let said = all[0].question(&format!("start many{round} {children} 64"))?;
        at_once.push(said.parse().map_err(Failure::role("reading a time"))?);
        of_all(&mut all, &format!("know {} 3", 2 * children * (round + 1)))?;
    }
    Ok([one_by_one, at_once].map(|readings: Vec<f64>| vec![Median::of(&readings).value]).into())
}

fn failover(workshop: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let runs = if brief { 3 } else { 30 };
    (0..runs).map(|_| one_failover(workshop)).collect::<Result<_, _>>().map(|times| vec![times])
}

fn one_failover(workshop: &Workshop) -> Result<f64, Failure> {
    let mut all = three(workshop)?;
    all[0].question(&format!("start child {CHILDREN} 64"))?;
    of_all(&mut all, &format!("know {CHILDREN} 3"))?;
    let [first, second, mut third] = all;
    let started = Instant::now();
    third.kill()?;
    let mut survivors = [first, second];
    of_all(&mut survivors, &format!("know {CHILDREN} 2"))?;
    let elapsed = started.elapsed();
    let here: Vec<usize> = of_all(&mut survivors, "here")?
        .iter()
        .map(|count| count.parse().map_err(Failure::role("reading a count")))
        .collect::<Result<_, Failure>>()?;
    match here.iter().sum::<usize>() {
        CHILDREN => Ok(elapsed.as_secs_f64() * 1e3),
        run => Err(Failure::Role(format!("{CHILDREN} children were started, {run} run: {here:?}"))),
    }
}

fn memory(workshop: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let children = if brief { 5_000 } else { 50_000 };
    let cluster = workshop.new_folder("children")?;
    let mut node = workshop.role("children-node", &[&cluster, "n1"])?;
    node.question("hosts 1")?;
    // What is made once is not the children's.
    node.question("start first 100 64")?;
    let before = resident_megabytes(node.id())?;
    node.question(&format!("start child {children} 64"))?;
    let grown = (resident_megabytes(node.id())? - before) * 1e6;
    Ok(vec![vec![grown / children as f64]])
}

#[expect(clippy::cast_precision_loss, reason = "children here are far below 2^52")]
fn join(_: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let many = if brief { MANY / 10 } else { MANY };
    let nodes = (1..=5)
        .map(|n| {
            let name = NodeName::parse(&format!("n{n}")).map_err(Failure::role("naming a node"))?;
            Ok(NodeId::new(name, Incarnation(1)))
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    let candidates =
        |nodes: &[NodeId]| nodes.iter().cloned().map(Candidate::new).collect::<Vec<_>>();
    let (mut placer, wish) = (Placer::new(Strategy::default()), Wish::default());
    placer.set_candidates(candidates(&nodes[..4])).map_err(Failure::role("naming nodes"))?;
    let mut placed: BTreeMap<String, NodeId> = BTreeMap::new();
    for n in 0..many {
        let id = format!("child-{n:06}");
        let node = placer.place(&id, &wish, |_| None).map_err(Failure::role("placing"))?;
        placer.add(&node, &wish);
        placed.insert(id, node);
    }
    placer.set_candidates(candidates(&nodes)).map_err(Failure::role("naming nodes"))?;
    let started = Instant::now();
    let children = placed.iter().map(|(id, node)| Placed { id, wish: &wish, node, stays: false });
    let moves = placer.moves(children, SLACK_PERCENT, usize::MAX);
    let took = started.elapsed().as_secs_f64() * 1e3;
    if let Some(other) = moves.iter().find(|one| one.to != nodes[4]) {
        return Err(Failure::Role(format!("{} would move to {}", other.id, other.to)));
    }
    Ok(vec![vec![moves.len() as f64 / many as f64 * 100.0], vec![took]])
}
