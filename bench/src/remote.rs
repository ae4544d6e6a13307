//! Messages between processes on two nodes, each an OS process of its own, over loopback.

use crate::case::{Bar, Case, Contender, Contest, RowSpec, Unit};
use crate::machine::{ERL, ERLC, NATS_SERVER};
use crate::peers::{erlang, nats, ractor_cluster, tcp_echo};
use crate::puppet::Role;

/// What this program can be re-executed as for the remote rows.
pub(crate) const ROLES: &[(&str, Role)] = &[];

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
                Contender { name: "ours", needs: &[], start: tcp_echo::start },
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
                Contender { name: "ours", needs: &[], start: tcp_echo::start },
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
                Contender { name: "ours", needs: &[], start: tcp_echo::start },
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
