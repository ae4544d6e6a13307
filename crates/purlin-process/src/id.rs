//! Which process: numbers that are never reused within one life of a node.

use std::fmt;

use purlin_core::NodeId;
use serde::{Deserialize, Serialize};

/// The number of a process on its node. Never reused within one life of the node.
///
/// Means nothing on another node; [`Pid`] is the identity that travels.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessId(pub u64);

impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A process anywhere in the cluster: the life of its node, and its number there.
///
/// It carries the incarnation, so a message to a process of an earlier life of a node is refused
/// as stale instead of reaching whoever has the number now.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Pid {
    /// The life of the node it runs on.
    pub node: NodeId,
    /// Its number there.
    pub process: ProcessId,
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{}", self.node, self.process)
    }
}

impl fmt::Debug for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// One act of monitoring; names it in [`Info::Down`](crate::Info::Down) and when cancelling.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MonitorId(pub u64);
