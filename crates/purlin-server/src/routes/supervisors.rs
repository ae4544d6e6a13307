//! Distributed supervisors: their children, what would move, and what happened.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use purlin::dist::supervisor::{Supervisor, SupervisorError, core::Gate};
use purlin_core::{Advice, Outcome};

use super::{follow::follow, names::limit};
use crate::{
    app::App,
    input::Params,
    problem::{Problem, ProblemDocument, ReadRefusals},
    shapes::{
        ChildEvent, ChildReport, ChildrenReport, MoveReport, PlanReport, RebalanceReport,
        SupervisorNode, SupervisorReport, SupervisorsReport,
    },
    state::absent,
};

/// The most moves of one plan, and how many it has by default.
const MOVES_MAX: usize = 100_000;
const MOVES: usize = 1_000;
/// How far back a reader who has seen nothing may begin.
const RECENT_MAX: u64 = 10_000;

/// Every supervisor of the cluster, as the answering node knows it.
#[utoipa::path(
    get, path = "/v1/supervisors", tag = "supervisors", security((), ("token" = [])),
    responses((status = 200, body = SupervisorsReport), ReadRefusals),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<SupervisorsReport>, Problem> {
    Params::read(&uri, &[])?;
    let all = app.host.supervisors();
    let known = all.names().into_iter().filter_map(|name| all.get(&name).ok());
    Ok(Json(SupervisorsReport { supervisors: known.map(|it| report(&it)).collect() }))
}

fn report(supervisor: &Supervisor) -> SupervisorReport {
    let node = |(node, children): (purlin_core::NodeId, usize)| SupervisorNode {
        node: node.name.to_string(),
        children: children as u64,
    };
    let (gate, gate_reason) = match supervisor.gate() {
        Gate::Open => ("open", None),
        Gate::Waiting => ("waiting", None),
        Gate::Shut(why) => ("shut", Some(why.to_string())),
    };
    SupervisorReport {
        name: supervisor.name().to_owned(),
        children: supervisor.count() as u64,
        nodes: supervisor.counts().into_iter().map(node).collect(),
        planner: supervisor.planner().map(|node| node.name.to_string()),
        paused: supervisor.is_paused(),
        pending_moves: supervisor.pending_moves() as u64,
        gate: gate.to_owned(),
        gate_reason,
    }
}

/// The children of one supervisor, by id.
#[utoipa::path(
    get, path = "/v1/supervisors/{name}/children", tag = "supervisors", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "The supervisor"),
        ("prefix" = Option<String>, Query, description = "Only ids that start with this; default: all"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000"),
    ),
    responses(
        (status = 200, body = ChildrenReport),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
        ReadRefusals,
    ),
)]
pub(super) async fn children(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<ChildrenReport>, Problem> {
    let params = Params::read(&uri, &["prefix", "after", "limit"])?;
    let supervisor = known(&app, &name)?;
    let limit = limit(&params)?;
    let prefix = params.get("prefix").unwrap_or_default();
    let mut found = supervisor.children(prefix, params.get("after"), limit + 1);
    let is_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| is_more).map(|last| last.id.to_string());
    let children = found.iter().map(ChildReport::from).collect();
    Ok(Json(ChildrenReport { count: supervisor.count() as u64, children, next }))
}

/// What would move now to level the load and to satisfy all wishes; nothing is moved.
#[utoipa::path(
    get, path = "/v1/supervisors/{name}/plan", tag = "supervisors", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "The supervisor"),
        ("limit" = Option<u32>, Query, description = "1 to 100,000 moves, default 1,000"),
    ),
    responses(
        (status = 200, body = PlanReport),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
        ReadRefusals,
    ),
)]
pub(super) async fn plan(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<PlanReport>, Problem> {
    let params = Params::read(&uri, &["limit"])?;
    let limit = params.number("limit", &(1..=MOVES_MAX))?.unwrap_or(MOVES);
    let mut moves = known(&app, &name)?.plan(limit + 1);
    let truncated = moves.len() > limit;
    moves.truncate(limit);
    Ok(Json(PlanReport { moves: moves.iter().map(MoveReport::from).collect(), truncated }))
}

/// Levels the load now, at the configured rate.
#[utoipa::path(
    post, path = "/v1/supervisors/{name}/rebalance", tag = "supervisors", security(("token" = [])),
    params(("name" = String, Path, description = "The supervisor")),
    responses(
        (status = 202, description = "The moves are made one after the other", body = RebalanceReport),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
        ReadRefusals,
    ),
)]
pub(super) async fn rebalance(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<(StatusCode, Json<RebalanceReport>), Problem> {
    Params::read(&uri, &[])?;
    let supervisor = known(&app, &name)?;
    let (moves, paused) = (supervisor.rebalance() as u64, supervisor.is_paused());
    Ok((StatusCode::ACCEPTED, Json(RebalanceReport { moves, paused })))
}

/// Has moves that level the load wait, on all nodes. Failover and drains go on.
#[utoipa::path(
    post, path = "/v1/supervisors/{name}/pause", tag = "supervisors", security(("token" = [])),
    params(("name" = String, Path, description = "The supervisor")),
    responses(
        (status = 200, body = SupervisorReport),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
        ReadRefusals,
    ),
)]
pub(super) async fn pause(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<SupervisorReport>, Problem> {
    Params::read(&uri, &[])?;
    let supervisor = known(&app, &name)?;
    supervisor.pause().map_err(|error| refused(&name, &error))?;
    Ok(Json(report(&supervisor)))
}

/// Takes a pause back.
#[utoipa::path(
    post, path = "/v1/supervisors/{name}/resume", tag = "supervisors", security(("token" = [])),
    params(("name" = String, Path, description = "The supervisor")),
    responses(
        (status = 200, body = SupervisorReport),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
        ReadRefusals,
    ),
)]
pub(super) async fn resume(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<SupervisorReport>, Problem> {
    Params::read(&uri, &[])?;
    let supervisor = known(&app, &name)?;
    supervisor.resume().map_err(|error| refused(&name, &error))?;
    Ok(Json(report(&supervisor)))
}

/// What happened to children, as the answering node saw it, and then as it happens.
///
/// Events: `ready` once, then `child` with an id. A reader that comes back with `Last-Event-ID` gets
/// exactly what followed, after a `gap` event if the node no longer has it all.
#[utoipa::path(
    get, path = "/v1/supervisors/{name}/events", tag = "supervisors", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "The supervisor"),
        ("recent" = Option<u64>, Query, description = "How many of the latest events are told first when no id is given; 0 to 10,000, default 0"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event seen"),
    ),
    responses(
        (status = 200, description = "Server-Sent Events", content_type = "text/event-stream", body = ChildEvent),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
        ReadRefusals,
    ),
)]
pub(super) async fn events(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["recent"])?;
    let recent = params.number("recent", &(0..=RECENT_MAX))?.unwrap_or(0);
    let supervisor = known(&app, &name)?;
    let last = supervisor.events().revision();
    let events = |after| supervisor.events_after(after);
    follow(&app, &headers, last.saturating_sub(recent)..=last, events, |frames, id, happened| {
        frames.json("child", Some(id), &ChildEvent::from(happened));
    })
}

/// The supervisor `name`, if anybody has opened it: to look makes none.
fn known(app: &App, name: &str) -> Result<Supervisor, Problem> {
    let all = app.host.supervisors();
    if !all.names().iter().any(|known| **known == *name) {
        return Err(absent("supervisor", name));
    }
    all.get(name).map_err(|error| refused(name, &error))
}

fn refused(name: &str, error: &SupervisorError) -> Problem {
    let bound = "a supervisor that this node can write to";
    Problem::bad_input("supervisor", name, bound, error.to_string())
        .ended(Outcome::NotDone, &Advice::GiveUp)
}
