//! Questions between the HTTP sides of nodes: a ping, and "whom can you talk to?".
//!
//! One node sees only its own ends of links. A drawing of the cluster that shows a one-way fault
//! needs both, so every node asks the others, over the cluster's own calls.

use std::time::Duration;

use purlin::Node;
use purlin_cluster::{Cluster, swim::State, view::Member};
use purlin_core::{NodeName, Outcome};
use purlin_net::{
    Transport,
    rpc::{CallError, Method},
};
use serde::{Deserialize, Serialize};

use axum::http::StatusCode;

use crate::{
    problem::Problem,
    shapes::{LinkReport, LinksReport, NodeLinks, PingReport},
};

const PING: Method<(), ()> = Method::new("purlin.ping");
const LINKS: Method<(), Vec<Link>> = Method::new("purlin.links");

/// How long members have to say whom they can talk to. Healthy ones need a millisecond.
const LINKS_WITHIN: Duration = Duration::from_secs(1);
const PING_WITHIN: Duration = Duration::from_secs(3);

/// One end of a link as it travels between nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Link {
    to: NodeName,
    state: LinkState,
    rtt_us: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum LinkState {
    Up,
    Suspect,
    Down,
}

impl LinkState {
    fn of(member: State, is_connected: bool) -> Self {
        match member {
            State::Alive if is_connected => Self::Up,
            State::Suspect => Self::Suspect,
            State::Alive | State::Down | State::Left => Self::Down,
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Suspect => "suspect",
            Self::Down => "down",
        }
    }
}

/// Answers the questions of other nodes from now on.
pub(crate) fn answer(node: &Node) {
    let rpc = node.rpc();
    // Not the node itself: it holds what answers, and would never be dropped, its data dir with it.
    let (cluster, transport) = (node.cluster().clone(), node.transport().clone());
    let served = rpc.serve(PING, |_, ()| async { Ok(()) }).and_then(|()| {
        let links = move || own_links(&cluster, &transport);
        rpc.serve(LINKS, move |_, ()| std::future::ready(Ok(links())))
    });
    if let Err(error) = served {
        // A second HTTP side of the same node: the first one answers, the same way.
        tracing::debug!(%error, "links are answered already");
    }
}

fn own_links(cluster: &Cluster, transport: &Transport) -> Vec<Link> {
    let (view, me) = (cluster.view(), transport.node());
    let others =
        view.members.iter().filter(|member| member.id != *me && member.state != State::Left);
    others.map(|member| own_link(transport, member)).collect()
}

fn own_link(transport: &Transport, member: &Member) -> Link {
    let peer = transport.peer(&member.id);
    let is_connected = peer.as_ref().is_some_and(purlin_net::Peer::is_up);
    let rtt = member.rtt.or_else(|| peer?.rtt());
    Link {
        to: member.id.name.clone(),
        state: LinkState::of(member.state, is_connected),
        rtt_us: rtt.map(|rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX)),
    }
}

fn report(name: &NodeName, links: Vec<Link>) -> NodeLinks {
    let link = |link: Link| LinkReport {
        to: link.to.to_string(),
        state: link.state.as_str().to_owned(),
        rtt_us: link.rtt_us.map(u64::from),
    };
    NodeLinks { name: name.to_string(), links: links.into_iter().map(link).collect() }
}

/// Asks every member that is thought to be there. Those that are not connected are not waited for.
pub(crate) async fn collect(node: &Node) -> LinksReport {
    let view = node.cluster().view();
    let me = &node.id().name;
    let mut nodes = vec![report(me, own_links(node.cluster(), node.transport()))];
    let mut silent = Vec::new();
    let mut peers = Vec::new();
    for member in
        view.members.iter().filter(|member| member.is_reachable() && member.id != *node.id())
    {
        match node.transport().peer(&member.id) {
            Some(peer) if peer.is_up() => peers.push(peer),
            Some(_) | None => silent.push(member.id.name.to_string()),
        }
    }
    for (id, answer) in node.rpc().rpc().multi_call(&peers, LINKS, &(), LINKS_WITHIN).await {
        match answer {
            Ok(links) => nodes.push(report(&id.name, links)),
            Err(_no_answer) => silent.push(id.name.to_string()),
        }
    }
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    silent.sort();
    LinksReport { nodes, silent }
}

/// Calls `name` and waits for any answer.
pub(crate) async fn ping(node: &Node, name: &NodeName) -> Result<PingReport, Problem> {
    let member = node.cluster().member(name).ok_or_else(|| no_such_member(node, name))?;
    let started = node.clock().now();
    if member.id != *node.id() {
        let peer = node.transport().peer(&member.id).ok_or_else(|| {
            let detail =
                format!("{name} is {}, and this node keeps no connection to it", member.state);
            unreachable(StatusCode::SERVICE_UNAVAILABLE, detail)
        })?;
        match node.rpc().rpc().call(&peer, PING, &(), PING_WITHIN).await {
            // A node that serves no HTTP answers that it knows no such method: an answer, too.
            Ok(()) | Err(CallError::NoMethod(_)) => {}
            Err(error) => {
                let status = match error {
                    CallError::Deadline => StatusCode::GATEWAY_TIMEOUT,
                    _ => StatusCode::SERVICE_UNAVAILABLE,
                };
                // A ping changes nothing, so even one that may have arrived was not "done".
                let advice = error.advice();
                return Err(unreachable(status, format!("{name}: {error}"))
                    .ended(Outcome::NotDone, &advice));
            }
        }
    }
    let rtt = node.clock().now().saturating_since(started);
    Ok(PingReport {
        node: name.to_string(),
        incarnation: member.id.incarnation.0,
        rtt_us: u64::try_from(rtt.as_micros()).unwrap_or(u64::MAX),
    })
}

fn unreachable(status: StatusCode, detail: String) -> Problem {
    Problem::new(status, "unreachable", "The member did not answer", detail)
}

fn no_such_member(node: &Node, name: &NodeName) -> Problem {
    let known: Vec<String> =
        node.cluster().view().members.iter().map(|member| member.id.name.to_string()).collect();
    let known = known.join(", ");
    let detail = format!("no member is called {name}; this node knows {known}");
    Problem::new(StatusCode::NOT_FOUND, "no_such_member", "No member has this name", detail).about(
        "node",
        name.as_str(),
        &known,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_up_only_if_membership_and_connection_agree() {
        assert_eq!(LinkState::of(State::Alive, true), LinkState::Up);
        assert_eq!(LinkState::of(State::Alive, false), LinkState::Down);
        assert_eq!(LinkState::of(State::Suspect, true), LinkState::Suspect);
        assert_eq!(LinkState::of(State::Down, true), LinkState::Down);
    }
}
