//! Messages between processes on two nodes, each an OS process of its own, over loopback.

use std::time::Duration;

use purlin::Node;
use purlin_core::NodeName;
use purlin_process::{Address, CallError, SpawnOptions};

use crate::adder::{Add, Adder, Count, Echo, Payload};
use crate::case::{Bar, Case, Contender, Contest, RowSpec, Unit};
use crate::failure::Failure;
use crate::machine::{ERL, ERLC, NATS_SERVER};
use crate::nodes;
use crate::peers::{erlang, nats, ractor_cluster, tcp_echo};
use crate::puppet::{Arguments, Puppet, Role, perform, runtime};
use crate::rig::Rig;
use crate::workshop::Workshop;

/// What this program can be re-executed as for the remote rows.
pub(crate) const ROLES: &[(&str, Role)] =
    &[("node-server", server), ("node-caller", caller), ("node-caster", caster)];

const CALLS: Unit = Unit::PerSecond("calls", 1);
const CASTS: Unit = Unit::PerSecond("casts", 1);
/// Bytes that a remote message carries.
const PAYLOAD: usize = 16;

/// The remote rows.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::Contest(Contest {
            name: "remote-call",
            about: "one task calls a process on another node, 16 bytes each way",
            contenders: &[
                Contender { name: "ours", needs: &[], start: |workshop| calls(workshop, 1) },
                Contender { name: "tokio TCP echo", needs: &[], start: tcp_echo::start },
                Contender {
                    name: "Erlang gen_server",
                    needs: &[ERL, ERLC],
                    start: erlang::remote_call,
                },
            ],
            rows: &[
                RowSpec {
                    name: "remote-call-floor",
                    unit: Unit::Micros,
                    peers: &["tokio TCP echo"],
                    bar: Bar::AtMost(1.5),
                },
                RowSpec {
                    name: "remote-call-erlang",
                    unit: CALLS,
                    peers: &["Erlang gen_server"],
                    bar: Bar::AtLeast(2.0),
                },
            ],
        }),
        Case::Contest(Contest {
            name: "remote-call-64",
            about: "64 tasks call one process on another node, 16 bytes each way",
            contenders: &[
                Contender { name: "ours", needs: &[], start: |workshop| calls(workshop, 64) },
                Contender {
                    name: "Erlang gen_server",
                    needs: &[ERL, ERLC],
                    start: erlang::remote_call_64,
                },
            ],
            rows: &[RowSpec {
                name: "remote-call-64-erlang",
                unit: CALLS,
                peers: &["Erlang gen_server"],
                bar: Bar::AtLeast(5.0),
            }],
        }),
        Case::Contest(Contest {
            name: "remote-cast",
            about: "one task casts 16 bytes to a process on another node; all are handled at the end",
            contenders: &[
                Contender { name: "ours", needs: &[], start: casts },
                Contender {
                    name: "Erlang gen_server",
                    needs: &[ERL, ERLC],
                    start: erlang::remote_cast,
                },
                Contender { name: "ractor_cluster", needs: &[], start: ractor_cluster::start },
                Contender {
                    name: "NATS",
                    needs: &[NATS_SERVER],
                    start: |workshop| {
                        let audience =
                            nats::Audience { processes: 1, connections: 1, subscriptions: 1 };
                        nats::start(workshop, audience, PAYLOAD)
                    },
                },
            ],
            rows: &[
                RowSpec {
                    name: "remote-cast-erlang",
                    unit: CASTS,
                    peers: &["Erlang gen_server"],
                    bar: Bar::AtLeast(3.0),
                },
                RowSpec {
                    name: "remote-cast-ractor",
                    unit: CASTS,
                    peers: &["ractor_cluster"],
                    bar: Bar::AtLeast(5.0),
                },
                RowSpec {
                    name: "remote-cast-nats",
                    unit: CASTS,
                    peers: &["NATS"],
                    bar: Bar::AtLeast(0.7),
                },
            ],
        }),
    ]
}

/// What the process is called on its node.
const NAME: &str = "adder";
/// The node it runs on.
const SERVER: &str = "server";

/// Two of our nodes, `callers` tasks on one of them.
fn calls(workshop: &Workshop, callers: u64) -> Result<Rig, Failure> {
    let cluster = workshop.new_folder("calls")?;
    let server = workshop.role("node-server", &[&cluster])?;
    let caller = workshop.role("node-caller", &[&cluster, &callers.to_string(), &server.ready])?;
    Ok(Rig::alone(caller).passive(server))
}

/// Two of our nodes, one task that casts.
fn casts(workshop: &Workshop) -> Result<Rig, Failure> {
    let cluster = workshop.new_folder("casts")?;
    let server = workshop.role("node-server", &[&cluster])?;
    let caster = workshop.role("node-caster", &[&cluster, &server.ready])?;
    Ok(Rig::alone(caster).passive(server))
}

/// The node with the process that is called.
fn server(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let node = runtime.block_on(nodes::start(arguments.text(0)?, SERVER, &[]))?;
    runtime
        .block_on(node.processes().spawn_remote::<Adder>((), SpawnOptions::named(NAME)))
        .map_err(Failure::role("spawning a process"))?;
    puppet.ready(&node.cluster_addr().to_string());
    while puppet.next_round().is_some() {}
    Ok(())
}

/// Finds the process on the other node.
async fn find(node: &Node) -> Result<Address<Adder>, Failure> {
    let within = Duration::from_secs(10);
    node.cluster().wait_for_members(2, within).await.map_err(Failure::role("joining"))?;
    let server = NodeName::parse(SERVER).map_err(Failure::role("naming a node"))?;
    node.remote()
        .whereis(&server, NAME, within)
        .await
        .map_err(Failure::role("looking the process up"))?
        .ok_or_else(|| Failure::Role(format!("{SERVER} has no process called {NAME}")))
}

/// The node whose tasks call.
fn caller(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let node = runtime.block_on(nodes::start(arguments.text(0)?, "caller", arguments.rest(2)))?;
    let callers = arguments.number(1)?;
    let adder = runtime.block_on(find(&node))?;
    puppet.ready("");
    while let Some(calls) = puppet.next_round() {
        let adder = adder.clone();
        let round = async move {
            let before = adder.call(Add(0)).await?;
            if callers == 1 {
                echo(adder.clone(), calls).await?;
            } else {
                let tasks: Vec<_> = (0..callers)
                    .map(|_| tokio::spawn(echo(adder.clone(), calls / callers)))
                    .collect();
                for task in tasks {
                    task.await.expect("a caller does not panic")?;
                }
            }
            Ok::<_, CallError>(adder.call(Add(0)).await? - before)
        };
        puppet.done(perform(&runtime, round)?);
    }
    Ok(())
}

/// One caller, one call after the other; the answer has to be what was sent.
async fn echo(adder: Address<Adder>, calls: u64) -> Result<(), CallError> {
    for _ in 0..calls {
        let payload = Payload([7; PAYLOAD]);
        assert_eq!(adder.call(Echo(payload)).await?, payload, "an echo is what was said");
    }
    Ok(())
}

/// The node whose task casts; it waits when the window to the process is full.
fn caster(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let node = runtime.block_on(nodes::start(arguments.text(0)?, "caster", arguments.rest(1)))?;
    let adder = runtime.block_on(find(&node))?;
    puppet.ready("");
    while let Some(casts) = puppet.next_round() {
        let adder = adder.clone();
        let round = async move {
            let before = adder.call(Add(0)).await?;
            for _ in 0..casts {
                adder.cast(Count(Payload([7; PAYLOAD]))).await?;
            }
            Ok::<_, CallError>(adder.call(Add(0)).await? - before)
        };
        puppet.done(perform(&runtime, round)?);
    }
    Ok(())
}
