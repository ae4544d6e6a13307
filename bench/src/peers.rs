//! The other side: each peer in the best configuration we know for it, stated in its file.

pub(crate) mod erlang;
pub(crate) mod kameo;
pub(crate) mod mpsc;
pub(crate) mod nats;
pub(crate) mod ractor;
pub(crate) mod ractor_cluster;
pub(crate) mod tcp_echo;

use crate::puppet::Role;

/// What this program can be re-executed as on behalf of a peer.
pub(crate) const ROLES: &[(&str, Role)] = &[
    ("mpsc-call", mpsc::call),
    ("mpsc-cast", mpsc::cast),
    ("ractor-call", ractor::call),
    ("kameo-call", kameo::call),
    ("echo-server", tcp_echo::server),
    ("echo-client", tcp_echo::client),
    ("nats-publisher", nats::publisher),
    ("nats-subscriber", nats::subscriber),
    ("ractor-cluster-counter", ractor_cluster::counter),
    ("ractor-cluster-caster", ractor_cluster::caster),
];
