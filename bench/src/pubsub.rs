//! One publisher, many subscribers on other nodes.

use crate::case::{Bar, Case, Contender, Contest, RowSpec, Unit};
use crate::failure::Failure;
use crate::machine::{ERL, ERLC, NATS_SERVER};
use crate::peers::{erlang, nats};
use crate::puppet::Role;
use crate::rig::Rig;
use crate::workshop::Workshop;

/// What this program can be re-executed as for the pubsub rows.
pub(crate) const ROLES: &[(&str, Role)] = &[];

/// Bytes that a published message carries.
const PAYLOAD: usize = 128;

/// The pubsub rows.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::Contest(Contest {
            name: "pubsub-16",
            about: "128 bytes to 8 subscribers on each of two other nodes",
            contenders: &[
                Contender { name: "ours", needs: &[], start: |workshop| nats(workshop, 1, 8) },
                Contender {
                    name: NATS_SHARED,
                    needs: &[NATS_SERVER],
                    start: |workshop| nats(workshop, 1, 8),
                },
                Contender {
                    name: NATS_OWN,
                    needs: &[NATS_SERVER],
                    start: |workshop| nats(workshop, 8, 1),
                },
            ],
            rows: &[RowSpec {
                name: "pubsub-16-nats",
                unit: Unit::PerSecond("deliveries", 16),
                peers: &[NATS_SHARED, NATS_OWN],
                bar: Bar::AtLeast(1.0),
            }],
        }),
        Case::Contest(Contest {
            name: "pubsub-64",
            about: "128 bytes to 32 subscribers on each of two other nodes",
            contenders: &[
                Contender { name: "ours", needs: &[], start: |workshop| nats(workshop, 1, 32) },
                Contender {
                    name: NATS_SHARED,
                    needs: &[NATS_SERVER],
                    start: |workshop| nats(workshop, 1, 32),
                },
                Contender {
                    name: NATS_OWN,
                    needs: &[NATS_SERVER],
                    start: |workshop| nats(workshop, 32, 1),
                },
            ],
            rows: &[RowSpec {
                name: "pubsub-64-nats",
                unit: Unit::PerSecond("deliveries", 64),
                peers: &[NATS_SHARED, NATS_OWN],
                bar: Bar::AtLeast(1.0),
            }],
        }),
        Case::Contest(Contest {
            name: "pubsub-1000",
            about: "128 bytes to 1,000 subscribers on each of three nodes",
            contenders: &[
                Contender {
                    name: "ours",
                    needs: &[ERL, ERLC],
                    start: |workshop| erlang::broadcast(workshop, 1_000, PAYLOAD),
                },
                Contender {
                    name: "Erlang pg",
                    needs: &[ERL, ERLC],
                    start: |workshop| erlang::broadcast(workshop, 1_000, PAYLOAD),
                },
            ],
            rows: &[RowSpec {
                name: "pubsub-1000-pg",
                unit: Unit::PerSecond("deliveries", 3_000),
                peers: &["Erlang pg"],
                bar: Bar::AtLeast(5.0),
            }],
        }),
    ]
}

/// NATS with one connection for all subscriptions of a process. Each still gets its own copy.
const NATS_SHARED: &str = "NATS, shared connections";
/// NATS with a connection for each subscription.
const NATS_OWN: &str = "NATS, own connections";

/// Two subscribing processes with `connections` each of `subscriptions`.
fn nats(workshop: &Workshop, connections: u64, subscriptions: u64) -> Result<Rig, Failure> {
    nats::start(workshop, nats::Audience { processes: 2, connections, subscriptions }, PAYLOAD)
}
