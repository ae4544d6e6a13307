//! Messages within one node.

use std::sync::Arc;

use purlin_core::{Incarnation, NodeId, NodeName, SystemClock};
use purlin_process::{CallError, ProcessRef, Processes, SpawnOptions};
use tokio::runtime::Runtime;

use crate::adder::{Add, Adder};
use crate::case::{Bar, Case, Contender, Contest, RowSpec, Unit};
use crate::failure::Failure;
use crate::machine::{ERL, ERLC};
use crate::peers::erlang;
use crate::puppet::{Arguments, Puppet, Role, perform, runtime};
use crate::rig::Rig;

/// What this program can be re-executed as for the local rows.
pub(crate) const ROLES: &[(&str, Role)] = &[("local-call", call), ("local-cast", cast)];

const CALLS: Unit = Unit::PerSecond("calls", 1);
const CASTS: Unit = Unit::PerSecond("casts", 1);

/// The local rows.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::Contest(Contest {
            name: "local-call",
            about: "one task calls one process and waits for the reply",
            contenders: &[
                Contender {
                    name: "ours",
                    needs: &[],
                    start: |workshop| workshop.role("local-call", &[]).map(Rig::alone),
                },
                Contender {
                    name: "mpsc+oneshot",
                    needs: &[],
                    start: |workshop| workshop.role("mpsc-call", &[]).map(Rig::alone),
                },
                Contender {
                    name: "ractor",
                    needs: &[],
                    start: |workshop| workshop.role("ractor-call", &[]).map(Rig::alone),
                },
                Contender {
                    name: "kameo",
                    needs: &[],
                    start: |workshop| workshop.role("kameo-call", &[]).map(Rig::alone),
                },
                Contender {
                    name: "Erlang gen_server",
                    needs: &[ERL, ERLC],
                    start: erlang::local_call,
                },
            ],
            rows: &[
                RowSpec {
                    name: "local-call-floor",
                    unit: Unit::Nanos,
                    peers: &["mpsc+oneshot"],
                    bar: Bar::AtMost(1.5),
                },
                RowSpec {
                    name: "local-call-actors",
                    unit: CALLS,
                    peers: &["ractor", "kameo"],
                    bar: Bar::AtLeast(1.2),
                },
                RowSpec {
                    name: "local-call-erlang",
                    unit: CALLS,
                    peers: &["Erlang gen_server"],
                    bar: Bar::AtLeast(1.5),
                },
            ],
        }),
        Case::Contest(Contest {
            name: "local-cast",
            about: "one task casts to one process; all are handled at the end",
            contenders: &[
                Contender {
                    name: "ours",
                    needs: &[],
                    start: |workshop| workshop.role("local-cast", &[]).map(Rig::alone),
                },
                Contender {
                    name: "mpsc",
                    needs: &[],
                    start: |workshop| workshop.role("mpsc-cast", &[]).map(Rig::alone),
                },
                Contender {
                    name: "Erlang gen_server",
                    needs: &[ERL, ERLC],
                    start: erlang::local_cast,
                },
            ],
            rows: &[
                RowSpec {
                    name: "local-cast-floor",
                    unit: Unit::Nanos,
                    peers: &["mpsc"],
                    bar: Bar::AtMost(2.0),
                },
                RowSpec {
                    name: "local-cast-erlang",
                    unit: CASTS,
                    peers: &["Erlang gen_server"],
                    bar: Bar::AtLeast(1.0),
                },
            ],
        }),
    ]
}

/// A process that adds, on a node without a network.
fn spawn_adder(runtime: &Runtime) -> Result<ProcessRef<Adder>, Failure> {
    let name = NodeName::parse("bench").map_err(Failure::role("naming the node"))?;
    let node = NodeId { name, incarnation: Incarnation(1) };
    let processes = Processes::new(node, Arc::new(SystemClock::new()));
    runtime
        .block_on(processes.spawn::<Adder>((), SpawnOptions::default()))
        .map_err(Failure::role("spawning a process"))
}

/// One caller, one call after the other.
fn call(puppet: &mut Puppet, _: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let adder = spawn_adder(&runtime)?;
    puppet.ready("");
    while let Some(calls) = puppet.next_round() {
        let adder = adder.clone();
        let round = async move {
            let before = adder.call(Add(0)).await?;
            for _ in 0..calls {
                adder.call(Add(1)).await?;
            }
            Ok::<_, CallError>(adder.call(Add(0)).await? - before)
        };
        puppet.done(perform(&runtime, round)?);
    }
    Ok(())
}

/// One sender; the sum is asked for at the end, so that every message has been handled.
fn cast(puppet: &mut Puppet, _: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let adder = spawn_adder(&runtime)?;
    puppet.ready("");
    while let Some(casts) = puppet.next_round() {
        let adder = adder.clone();
        let round = async move {
            let before = adder.call(Add(0)).await?;
            for _ in 0..casts {
                adder.cast(Add(1)).await?;
            }
            Ok::<_, CallError>(adder.call(Add(0)).await? - before)
        };
        puppet.done(perform(&runtime, round)?);
    }
    Ok(())
}
