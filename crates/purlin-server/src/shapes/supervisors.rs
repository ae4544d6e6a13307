//! Distributed supervisors and their children, as clients see them.

use purlin::dist::supervisor::{ChildInfo, events::Happened, placement::Move};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/supervisors`: the distributed supervisors of the cluster, as the answering node knows
/// them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SupervisorsReport {
    /// One per supervisor, by name.
    pub supervisors: Vec<SupervisorReport>,
}

/// One supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SupervisorReport {
    /// Its name.
    #[schema(example = "rooms")]
    pub name: String,
    /// How many children it has.
    pub children: u64,
    /// How many of them each node has or is to start, by node.
    pub nodes: Vec<SupervisorNode>,
    /// The node that places children whose node is lost; `null` while none may.
    pub planner: Option<String>,
    /// Whether moves that level the load wait, on all nodes.
    pub paused: bool,
    /// Moves of the answering node's plan that are still to be made.
    pub pending_moves: u64,
    /// `open`, `waiting` (what runs goes on, nothing is started) or `shut` (nothing may run): what
    /// the answering node's side of a cut may do.
    pub gate: String,
    /// Why it is shut.
    pub gate_reason: Option<String>,
}

/// How many children a node has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SupervisorNode {
    /// The node.
    pub node: String,
    /// How many children.
    pub children: u64,
}

/// `GET /v1/supervisors/{name}/children`: the children of one supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChildrenReport {
    /// How many it has in all.
    pub count: u64,
    /// Those whose id starts with the prefix, by id.
    pub children: Vec<ChildReport>,
    /// What to give as `after` to go on; `null` at the end.
    pub next: Option<String>,
}

/// One child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChildReport {
    /// What it is called.
    pub id: String,
    /// Its kind.
    pub kind: String,
    /// `starting`, `running`, `asleep`, `quarantined` or `refused`.
    pub state: String,
    /// The node it is on or is to be started on.
    pub node: Option<String>,
    /// Its process, if it runs: `node@incarnation#number`.
    pub pid: Option<String>,
    /// The number of its latest start; 0 before the first.
    pub fence: u64,
    /// How often it was started again because it or its node failed.
    pub restarts: u64,
    /// Why it is where it is, or as it is.
    pub cause: Option<String>,
}

impl From<&ChildInfo> for ChildReport {
    fn from(child: &ChildInfo) -> Self {
        Self {
            id: child.id.to_string(),
            kind: child.kind.to_string(),
            state: child.state().to_owned(),
            node: child.node().map(|node| node.name.to_string()),
            pid: child.pid().map(|pid| pid.to_string()),
            fence: child.fence().0,
            restarts: u64::from(child.restarts()),
            cause: child.cause().map(ToString::to_string),
        }
    }
}

/// `GET /v1/supervisors/{name}/plan`: what would move now, none of which is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanReport {
    /// The moves, the most needed first.
    pub moves: Vec<MoveReport>,
    /// Whether there are more than that.
    pub truncated: bool,
}

/// One move of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MoveReport {
    /// Which child.
    pub id: String,
    /// Where it is.
    pub from: String,
    /// Where it would be.
    pub to: String,
    /// What makes it so.
    pub why: String,
}

impl From<&Move> for MoveReport {
    fn from(it: &Move) -> Self {
        let (from, to) = (it.from.name.to_string(), it.to.name.to_string());
        Self { id: it.id.clone(), from, to, why: it.why.to_string() }
    }
}

/// Answer to `POST /v1/supervisors/{name}/rebalance`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RebalanceReport {
    /// How many moves it will be, at the configured rate.
    pub moves: u64,
    /// Whether they wait because the supervisor is paused.
    pub paused: bool,
}

/// The data of `child` in `GET /v1/supervisors/{name}/events`: what happened to a child.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChildEvent {
    /// Its number on the answering node.
    pub revision: u64,
    /// When the answering node saw it, in milliseconds of its wall clock.
    pub at_ms: u64,
    /// Which child.
    pub id: String,
    /// `started`, `restarted`, `moved`, `quarantined`, `slept`, `refused`, `removed`, `replaced`,
    /// `lost`, `hand_off_failed` or `split_stopped`.
    pub what: String,
    /// On which node.
    pub node: Option<String>,
    /// The number of its latest start.
    pub fence: u64,
    /// Why, as far as that is known.
    pub cause: Option<String>,
}

impl From<&Happened> for ChildEvent {
    fn from(happened: &Happened) -> Self {
        let event = &happened.event;
        Self {
            revision: happened.revision,
            at_ms: happened.at.as_millis(),
            id: event.id.to_string(),
            what: event.what.as_str().to_owned(),
            node: event.node.as_ref().map(|node| node.name.to_string()),
            fence: event.fence.0,
            cause: event.cause.as_ref().map(ToString::to_string),
        }
    }
}
