//! Messages within one node.

use crate::case::{Bar, Case, Contender, Contest, RowSpec, Unit};
use crate::machine::{ERL, ERLC};
use crate::peers::erlang;
use crate::puppet::Role;
use crate::rig::Rig;

/// What this program can be re-executed as for the local rows.
pub(crate) const ROLES: &[(&str, Role)] = &[];

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
                    start: |workshop| workshop.role("mpsc-call", &[]).map(Rig::alone),
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
                    start: |workshop| workshop.role("mpsc-cast", &[]).map(Rig::alone),
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
