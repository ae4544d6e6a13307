//! For those who run the node: health, metrics, the API description and the console's files.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use purlin_core::{Advice, Outcome};
use utoipa::OpenApi as _;

use super::Description;
use crate::{
    app::App,
    console,
    problem::{Problem, ProblemDocument},
    shapes::HealthReport,
};

/// Whether the process makes progress; restart it if not.
///
/// Says nothing about the cluster: a node cut off from its peers is alive.
#[utoipa::path(get, path = "/v1/health/live", tag = "operate", responses((status = 200, body = HealthReport)))]
pub(super) async fn live() -> Json<HealthReport> {
    Json(HealthReport { status: "live".to_owned() })
}

/// Whether to send work here: 503 while the node drains, has left or stops.
#[utoipa::path(
    get, path = "/v1/health/ready", tag = "operate",
    responses((status = 200, body = HealthReport), (status = 503, body = ProblemDocument, content_type = "application/problem+json")),
)]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<Json<HealthReport>, Problem> {
    let state = if app.closing.is_cancelled() { "stopping" } else { app.host.state() };
    if state == "running" {
        return Ok(Json(HealthReport { status: "ready".to_owned() }));
    }
    let title = "This node takes no new work";
    Err(Problem::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "not_ready",
        title,
        format!("the node is {state}"),
    )
    .ended(Outcome::NotDone, &Advice::RetryElsewhere(None)))
}

/// All metrics of the process as Prometheus text.
#[utoipa::path(
    get, path = "/metrics", tag = "operate", security((), ("token" = [])),
    responses(
        (status = 200, body = String, content_type = "text/plain"),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 501, description = "The program exports its metrics elsewhere", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Problem> {
    let recorder = app.recorder.map_err(|error| {
        Problem::new(
            StatusCode::NOT_IMPLEMENTED,
            "metrics_elsewhere",
            "This node has no metrics to show",
            error.to_string(),
        )
    })?;
    app.host.measure(&app.process_cost());
    let mut response = recorder.render().into_response();
    let media = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, media);
    Ok(response)
}

/// This description.
#[utoipa::path(
    get, path = "/openapi.json", tag = "operate", security((), ("token" = [])),
    responses(
        (status = 200, description = "An OpenAPI 3.1 document", content_type = "application/json"),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(Description::openapi())
}

/// The console: a page for people.
#[utoipa::path(get, path = "/", tag = "console", responses((status = 200, content_type = "text/html", body = String)))]
pub(super) async fn console() -> Response {
    console::page()
}

/// A file of the console.
#[utoipa::path(
    get, path = "/console/{file}", tag = "console", params(("file" = String, Path, description = "File name")),
    responses(
        (status = 200, description = "A style sheet, module or image"),
        (status = 304, description = "The browser's copy is current"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn asset(Path(file): Path<String>, headers: HeaderMap) -> Response {
    console::asset(&file, &headers)
}
