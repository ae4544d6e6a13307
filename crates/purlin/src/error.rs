use purlin_cluster::discovery::DiscoveryError;
use purlin_net::{BindError, CertError};

use crate::{ConfigError, DataDirError};

/// Why a node did not start. Nothing is left running; an incarnation may have been used up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting is missing, out of bounds, or names a file that is not what it should be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The data dir cannot be used; another process may hold it.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The development authority could not issue a certificate.
    #[error(transparent)]
    Certificate(#[from] CertError),
    /// The cluster address cannot be listened on, or the certificate is not for this node.
    #[error("cluster.bind: {0}")]
    Bind(#[from] BindError),
    /// A seed, seed file or DNS name cannot be used.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// The largest message does not fit the channel it would travel on.
    #[error("limits.message_bytes_max: {0}")]
    PubSub(#[from] purlin_pubsub::StartError),
    /// What the node says of itself is too much to tell everybody.
    #[error(transparent)]
    Cluster(#[from] purlin_cluster::StartError),
    /// What the node kept of the cluster's state cannot be read.
    #[error(transparent)]
    State(#[from] purlin_replica::replica::StartError),
    /// `exec.enabled` is set, but the program's `main` does not begin with `guarded()`, or this is no
    /// Unix.
    #[error("exec.enabled: {0}")]
    Exec(String),
    /// Remote calls of the node's own are served already, which no program can bring about.
    #[error("own calls: {0}")]
    Calls(#[from] purlin_net::rpc::ServeError),
}
