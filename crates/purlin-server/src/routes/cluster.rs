//! The cluster as the answering node sees it.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri},
};
use purlin_core::NodeName;

use crate::{
    app::App,
    input::{Params, media_type, unsupported, whole_body},
    problem::{Problem, ProblemDocument},
    shapes::{DrainReport, DrainRequest, LinksReport, MembersReport, NodeReport, PingReport},
};

/// A drain may not be given longer than this.
const DRAIN_MS_MAX: u64 = 3_600_000;

/// A drain request is one small object.
const DRAIN_BYTES_MAX: usize = 1024;

/// This node: who it is and what it costs.
#[utoipa::path(
    get, path = "/v1/node", tag = "cluster", security((), ("token" = [])),
    responses(
        (status = 200, body = NodeReport),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn node(State(app): State<Arc<App>>) -> Json<NodeReport> {
    Json(app.host.node_report(app.process_cost()))
}

/// Every member this node knows, with state, round trip and who suspects whom.
#[utoipa::path(
    get, path = "/v1/members", tag = "cluster", security((), ("token" = [])),
    responses(
        (status = 200, body = MembersReport),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn members(State(app): State<Arc<App>>) -> Json<MembersReport> {
    Json(app.host.members_report())
}

/// Who can talk to whom: every reachable member is asked for its own links, for at most a second.
#[utoipa::path(
    get, path = "/v1/links", tag = "cluster", security((), ("token" = [])),
    responses(
        (status = 200, body = LinksReport),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn links(State(app): State<Arc<App>>) -> Json<LinksReport> {
    Json(app.host.links_report().await)
}

/// One round trip to a member and back, through the cluster's own transport.
#[utoipa::path(
    get, path = "/v1/ping/{node}", tag = "cluster", security((), ("token" = [])),
    params(("node" = String, Path, description = "A member's name")),
    responses(
        (status = 200, body = PingReport),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "No such member", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, description = "Not a node name", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "The member cannot be reached", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 504, description = "No answer in time", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn ping(
    State(app): State<Arc<App>>,
    Path(node): Path<String>,
) -> Result<Json<PingReport>, Problem> {
    let name = NodeName::parse(&node).map_err(|error| {
        Problem::bad_input("node", &node, "letters, digits and inner hyphens", error.to_string())
    })?;
    app.host.ping(&name).await.map(Json)
}

/// Lets this node go: it takes no new work, hands over what it has, and leaves the cluster.
///
/// Answers as soon as the drain has begun. The deadline may stand in the query or in a JSON body.
#[utoipa::path(
    post, path = "/v1/drain", tag = "cluster", security(("token" = [])),
    params(("deadline_ms" = Option<u64>, Query, description = "1 to 3,600,000; default: the node's configuration")),
    request_body(content = Option<DrainRequest>, content_type = "application/json"),
    responses(
        (status = 202, body = DrainReport),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 408, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 415, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn drain(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<DrainReport>), Problem> {
    let params = Params::read(&uri, &["deadline_ms"])?;
    let in_query = params.number("deadline_ms", &(1..=DRAIN_MS_MAX))?;
    let body =
        whole_body("the drain request", body, DRAIN_BYTES_MAX, app.config.body_within).await?;
    let in_body =
        if body.is_empty() { None } else { read_drain_request(&headers, &body)?.deadline_ms };
    let deadline = in_query.or(in_body).map(Duration::from_millis);
    Ok((StatusCode::ACCEPTED, Json(app.host.begin_drain(deadline).await)))
}

fn read_drain_request(headers: &HeaderMap, body: &[u8]) -> Result<DrainRequest, Problem> {
    match media_type(headers).as_deref() {
        None | Some("application/json" | "application/octet-stream") => {}
        Some(other) => return Err(unsupported("content-type", other, "application/json")),
    }
    let request: DrainRequest = serde_json::from_slice(body).map_err(|error| {
        let text = String::from_utf8_lossy(body);
        Problem::bad_input(
            "body",
            &text,
            "{\"deadline_ms\": 1 to 3600000}",
            format!("the drain request cannot be read: {error}"),
        )
    })?;
    match request.deadline_ms {
        Some(ms) if !(1..=DRAIN_MS_MAX).contains(&ms) => {
            let bound = format!("1 to {DRAIN_MS_MAX}");
            Err(Problem::bad_input(
                "deadline_ms",
                &ms.to_string(),
                &bound,
                format!("deadline_ms of {ms} is not within {bound}"),
            ))
        }
        Some(_) | None => Ok(request),
    }
}
