//! Names of processes: what it takes to give one, to find one, and to have others find it.
//!
//! The peer for unique names is Erlang's `global`, run beside us. Elixir's Horde is not on most
//! machines; the limits are multiples of what it did on the machine where they were set: 1,300
//! registrations a second, seen elsewhere after 111 ms (median), 0.94 million lookups. Ours are
//! three OS processes, TLS on.

use std::hint::black_box;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use purlin::Node;
use purlin::dist::Watch;
use purlin_process::{AnyProcess, Metadata, SpawnOptions};
use tokio::runtime::Runtime;

use crate::adder::Adder;
use crate::case::{Bar, Case, Contender, Contest, Gauge, GaugeRow, Readings, RowSpec, Unit};
use crate::failure::Failure;
use crate::machine::{ERL, ERLC};
use crate::nodes;
use crate::peers::erlang;
use crate::puppet::{Arguments, Puppet, Role, runtime};
use crate::rig::{Process, Rig};
use crate::stats::Median;
use crate::workshop::Workshop;

/// What this program can be re-executed as for the rows of names.
pub(crate) const ROLES: &[(&str, Role)] =
    &[("names-caller", caller), ("names-other", other), ("names-node", node)];

/// How long the others may take to see what was registered.
const SEEN_WITHIN: Duration = Duration::from_secs(60);
/// Names that are looked up, spread over three nodes.
const LOOKED_UP: u64 = 9_999;

/// What names begin with that carry the time of their registration.
const STAMPED: &str = "stamped:";

/// The rows of names.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::Contest(Contest {
            name: "names",
            about: "unique names given by one caller one after the other, until all three nodes have them",
            contenders: &[
                Contender { name: "ours", needs: &[], start: ours },
                Contender {
                    name: "Erlang global",
                    needs: &[ERL, ERLC],
                    start: erlang::global_names,
                },
            ],
            rows: &[RowSpec {
                name: "names-global",
                unit: Unit::PerSecond("names", 1),
                peers: &["Erlang global"],
                bar: Bar::AtLeast(50.0),
            }],
        }),
        Case::Gauge(Gauge {
            name: "registry",
            about: "three nodes, each an OS process: one registration by one caller; one lookup among 10,000 names of all three; and at idle, from the call of one registration until a watcher on another node is told, the 99th of 100",
            rows: &[
                // 50 times 1,300 a second; 10 million a second.
                GaugeRow { name: "registry-register", unit: "ns", limit: 15_385.0 },
                GaugeRow { name: "registry-lookup", unit: "ns", limit: 100.0 },
                GaugeRow { name: "registry-visible", unit: "ms", limit: 5.0 },
            ],
            read,
        }),
    ]
}

fn ours(workshop: &Workshop) -> Result<Rig, Failure> {
    let cluster = workshop.new_folder("names")?;
    let second = workshop.role("names-other", &[&cluster, "n2"])?;
    let third = workshop.role("names-other", &[&cluster, "n3", &second.ready])?;
    let caller = workshop.role("names-caller", &[&cluster, &second.ready, &third.ready])?;
    Ok(Rig::default().receiver(second, 1).receiver(third, 1).driver(caller, 1))
}

/// One node with a process to give names to.
struct Named {
    runtime: Runtime,
    node: Node,
    process: AnyProcess,
}

impl Named {
    fn start(cluster: &str, name: &str, seeds: &[String]) -> Result<Self, Failure> {
        let runtime = runtime()?;
        let node = runtime.block_on(nodes::start(cluster, name, seeds))?;
        let process = runtime
            .block_on(node.processes().spawn_remote::<Adder>((), SpawnOptions::default()))
            .map_err(Failure::role("spawning a process"))?;
        Ok(Self { process: (&process).into(), node, runtime })
    }

    /// Waits until all `nodes` are members, and have taken over each other's names.
    fn join(&self, nodes: usize) -> Result<(), Failure> {
        let within = Duration::from_secs(10);
        self.runtime
            .block_on(self.node.cluster().wait_for_members(nodes, within))
            .map_err(Failure::role("joining"))
            .map(drop)?;
        self.until("all are in touch", || {
            let lag = self.node.dist().rows().status().lag;
            lag.len() + 1 == nodes && lag.iter().all(|peer| peer.caught_up.is_some())
        })
    }

    /// Gives `names` names, one after the other.
    fn register(&self, names: u64) -> Result<(), Failure> {
        for n in 0..names {
            let name = self.name(n);
            let done = self.node.registry().register(&name, &self.process, Metadata::default());
            done.map_err(Failure::role("registering"))?;
        }
        Ok(())
    }

    fn unregister(&self, names: u64) -> Result<(), Failure> {
        for n in 0..names {
            let done = self.node.registry().unregister(&self.name(n));
            done.map_err(Failure::role("unregistering"))?;
        }
        Ok(())
    }

    fn name(&self, n: u64) -> String {
        name(self.node.id().name.as_str(), n)
    }

    /// Waits until so many names of all nodes are visible here.
    fn see(&self, names: u64) -> Result<(), Failure> {
        self.until("the names are there", || {
            let counts = self.node.registry().counts();
            counts.iter().map(|(_, count)| *count as u64).sum::<u64>() == names
        })
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) -> Result<(), Failure> {
        let deadline = Instant::now() + SEEN_WITHIN;
        while !holds() {
            if Instant::now() > deadline {
                return Err(Failure::Role(format!("waited {SEEN_WITHIN:?} in vain until {what}")));
            }
            self.runtime.block_on(async { tokio::time::sleep(Duration::from_micros(500)).await });
        }
        Ok(())
    }
}

fn name(node: &str, n: u64) -> String {
    format!("{node}:cart:{n:07}")
}

/// The node with the caller.
fn caller(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let named = Named::start(arguments.text(0)?, "n1", arguments.rest(1))?;
    named.join(1 + arguments.rest(1).len())?;
    puppet.ready("");
    while let Some(names) = puppet.next_round() {
        named.register(names)?;
        puppet.done(names);
        // The others count them first, and begin no round before they are gone.
        named.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(200)).await });
        named.unregister(names)?;
    }
    Ok(())
}

/// A node that waits for the caller's names.
fn other(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let named = Named::start(arguments.text(0)?, arguments.text(1)?, arguments.rest(2))?;
    puppet.ready(&named.node.cluster_addr().to_string());
    while let Some(names) = puppet.next_round() {
        named.see(0)?;
        puppet.armed();
        named.see(names)?;
        puppet.done(names);
    }
    Ok(())
}

/// A node of which one thing after the other is asked.
fn node(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let named = Named::start(arguments.text(0)?, arguments.text(1)?, arguments.rest(2))?;
    puppet.ready(&named.node.cluster_addr().to_string());
    let mut watch = None;
    while let Some(asked) = puppet.next_question() {
        let (what, number) = asked.split_once(' ').unwrap_or((&asked, "0"));
        let number: u64 = number.parse().map_err(Failure::role("reading a number"))?;
        puppet.answer(&named.answer(what, number, &mut watch)?);
    }
    Ok(())
}

impl Named {
    fn answer(
        &self,
        what: &str,
        number: u64,
        watch: &mut Option<Watch>,
    ) -> Result<String, Failure> {
        match what {
            "join" => {
                self.join(usize::try_from(number).map_err(Failure::role("counting nodes"))?)?;
            }
            "register" => {
                let started = Instant::now();
                self.register(number)?;
                return Ok(nanos(started, number).to_string());
            }
            "unregister" => self.unregister(number)?,
            "see" => self.see(number)?,
            "lookup" => return self.look_up(number).map(|nanos| nanos.to_string()),
            "tell" => self.tell(number)?,
            "watch" => {
                let registry = self.node.registry();
                *watch = Some(registry.watch(STAMPED, registry.revision()));
            }
            "hear" => {
                let watch = watch.as_mut();
                let watch = watch.ok_or_else(|| Failure::Role("heard unwatched".to_owned()))?;
                return self.runtime.block_on(hear(watch, number));
            }
            _ => return Err(Failure::Role(format!("asked for {what}"))),
        }
        Ok(String::new())
    }

    fn look_up(&self, lookups: u64) -> Result<f64, Failure> {
        let each = LOOKED_UP / 3;
        let names: Vec<String> =
            ["n1", "n2", "n3"].iter().flat_map(|node| (0..each).map(|n| name(node, n))).collect();
        let started = Instant::now();
        let mut at = 0;
        for _ in 0..lookups {
            // In an order that no cache can guess.
            at = (at + 7_919) % names.len();
            if black_box(self.node.registry().lookup(&names[at])).is_none() {
                return Err(Failure::Role(format!("{} was not found", names[at])));
            }
        }
        Ok(nanos(started, lookups))
    }

    /// Registers one name now and then, with the time of it.
    fn tell(&self, names: u64) -> Result<(), Failure> {
        for n in 0..names {
            self.runtime.block_on(async { tokio::time::sleep(Duration::from_millis(5)).await });
            let stamp = Metadata::from_iter([("at", now()?.as_nanos().to_string())]);
            let name = format!("{STAMPED}{n}");
            let done = self.node.registry().register(&name, &self.process, stamp);
            done.map_err(Failure::role("registering"))?;
        }
        Ok(())
    }
}

/// How many milliseconds after its registration each of `names` names was told of here.
async fn hear(watch: &mut Watch, names: u64) -> Result<String, Failure> {
    let mut late = String::new();
    for _ in 0..names {
        let event = watch.next().await.map_err(Failure::role("watching"))?;
        let now = now()?;
        let stamp = event.change.entry().metadata.get("at").map(str::parse::<u64>);
        let stamp = stamp.and_then(Result::ok).map(Duration::from_nanos);
        let stamp = stamp.ok_or_else(|| Failure::Role("a name without a time".to_owned()))?;
        late.push_str(&format!(" {}", now.saturating_sub(stamp).as_secs_f64() * 1e3));
    }
    Ok(late)
}

/// The clock that all processes of a machine share.
fn now() -> Result<Duration, Failure> {
    SystemTime::now().duration_since(UNIX_EPOCH).map_err(Failure::role("reading the clock"))
}

#[expect(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
fn nanos(started: Instant, count: u64) -> f64 {
    started.elapsed().as_secs_f64() * 1e9 / count as f64
}

fn read(workshop: &Workshop, brief: bool) -> Result<Readings, Failure> {
    let (rounds, registrations, lookups, told) =
        if brief { (3, 5_000, 300_000, 200) } else { (7, 20_000, 2_000_000, 1_000) };
    let cluster = workshop.new_folder("registry")?;
    let mut first = workshop.role("names-node", &[&cluster, "n1"])?;
    let mut second = workshop.role("names-node", &[&cluster, "n2", &first.ready])?;
    let mut third = workshop.role("names-node", &[&cluster, "n3", &first.ready, &second.ready])?;
    let mut all = [&mut first, &mut second, &mut third];
    of_all(&mut all, "join 3")?;

    let mut registered = Vec::new();
    for _ in 0..rounds {
        registered.push(number(&all[0].question(&format!("register {registrations}"))?)?);
        of_all(&mut all, &format!("see {registrations}"))?;
        all[0].question(&format!("unregister {registrations}"))?;
        of_all(&mut all, "see 0")?;
    }

    of_all(&mut all, &format!("register {}", LOOKED_UP / 3))?;
    of_all(&mut all, &format!("see {LOOKED_UP}"))?;
    let looked_up: Result<Vec<f64>, Failure> =
        (0..rounds).map(|_| number(&all[0].question(&format!("lookup {lookups}"))?)).collect();

    of_all(&mut all[1..], "watch")?;
    for watcher in &mut all[1..] {
        watcher.ask(&format!("hear {told}"))?;
    }
    all[0].question(&format!("tell {told}"))?;
    let mut visible = Vec::new();
    for watcher in &mut all[1..] {
        let late: Result<Vec<f64>, Failure> =
            watcher.answer()?.split_whitespace().map(number).collect();
        visible.push(percentile_99(late?));
    }
    let median = |readings: &[f64]| vec![Median::of(readings).value];
    Ok(vec![median(&registered), median(&looked_up?), visible])
}

fn of_all(nodes: &mut [&mut Process], what: &str) -> Result<(), Failure> {
    nodes.iter_mut().try_for_each(|node| node.question(what).map(drop))
}

fn number(text: &str) -> Result<f64, Failure> {
    text.trim().parse().map_err(Failure::role("reading a number"))
}

fn percentile_99(mut readings: Vec<f64>) -> f64 {
    readings.sort_by(f64::total_cmp);
    let at = (readings.len() * 99 / 100).min(readings.len().saturating_sub(1));
    readings.get(at).copied().unwrap_or(f64::INFINITY)
}

#[cfg(test)]
mod tests {
    use super::percentile_99;

    #[test]
    fn the_99th_of_100_is_above_99_of_them() {
        assert_eq!(percentile_99((0..100).rev().map(f64::from).collect()), 99.0);
        assert_eq!(percentile_99((0..1_000).map(f64::from).collect()), 990.0);
        assert_eq!(percentile_99(vec![7.0]), 7.0);
        assert_eq!(percentile_99(Vec::new()), f64::INFINITY);
    }
}
