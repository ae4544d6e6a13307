//! What a node that runs programs needs for it.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
};

use purlin_cluster::MembersRpc;
use purlin_core::{Clock, NodeId};
use purlin_dist::{
    exec::{ExecHost, GuardCommand, LogLimits, Logs, Programs, TakePartError},
    supervisor::Supervisors,
};

use crate::{Config, DataDir, StartError};

/// Where output is kept, in the data dir.
const LOGS: &str = "exec";

/// Where a program finds the API of its node, which listens at `addr`.
pub(crate) fn url(mut addr: SocketAddr) -> String {
    if addr.ip().is_unspecified() {
        addr.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    format!("http://{addr}")
}

/// What programs run on, if this node is to run any.
pub(crate) fn host(
    config: &Config,
    node: &NodeId,
    clock: &Arc<dyn Clock>,
    data: Option<&DataDir>,
    url: Option<String>,
) -> Result<Option<Arc<ExecHost>>, StartError> {
    let exec = &config.exec;
    if !exec.enabled {
        return Ok(None);
    }
    let guard =
        GuardCommand::this_program().map_err(|error| StartError::Exec(error.to_string()))?;
    let limits = LogLimits { file_bytes_max: exec.log_file_bytes_max, ..LogLimits::default() };
    let dir = data.map(|data| data.path().join(LOGS));
    Ok(Some(Arc::new(ExecHost {
        node: node.clone(),
        clock: Arc::clone(clock),
        guard,
        logs: Logs::new(limits, dir, Arc::clone(clock)),
        cgroup: exec.cgroup.clone(),
        url,
    })))
}

pub(crate) fn take_part(
    config: &Config,
    supervisors: &Supervisors,
    rpc: &MembersRpc,
    node: &NodeId,
    clock: &Arc<dyn Clock>,
    host: Option<Arc<ExecHost>>,
) -> Result<Programs, StartError> {
    let split = config.exec.split.clone();
    Programs::start(supervisors, rpc, node, clock, split, host).map_err(|error| match error {
        TakePartError::Calls(error) => StartError::Calls(error),
        other => StartError::Exec(other.to_string()),
    })
}
