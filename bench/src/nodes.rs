//! Our nodes as a service would start them: through the façade, TLS and failure detection on.

use purlin::{DevAuthority, Node};

use crate::failure::Failure;

/// Starts a node of the cluster whose keys are in the folder `cluster`, on a free loopback port.
pub(crate) async fn start(cluster: &str, name: &str, seeds: &[String]) -> Result<Node, Failure> {
    let authority =
        DevAuthority::in_dir(cluster).map_err(Failure::role("making keys for the cluster"))?;
    Node::builder()
        .name(name)
        .dev(&authority)
        .join(seeds)
        .start()
        .await
        .map_err(Failure::role("starting a node"))
}
