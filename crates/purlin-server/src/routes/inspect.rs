//! What is inside the answering node: processes, configuration.

use std::sync::Arc;

use axum::{Json, extract::State, http::Uri};

use crate::{
    app::App,
    input::Params,
    problem::{Problem, ProblemDocument},
    shapes::{ConfigReport, ProcessesReport},
};

/// The processes of this node, oldest first.
#[utoipa::path(
    get, path = "/v1/processes", tag = "inspect", security((), ("token" = [])),
    params(("summaries" = Option<bool>, Query, description = "`true`: ask the first 256 for a word about their state, for at most 250 ms")),
    responses(
        (status = 200, body = ProcessesReport),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn processes(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<ProcessesReport>, Problem> {
    let summaries = Params::read(&uri, &["summaries"])?.flag("summaries")?.unwrap_or(false);
    Ok(Json(app.host.processes(summaries).await))
}

/// Every configuration key of this node with its value and where that came from. Secrets are files;
/// their names are shown, their contents never.
#[utoipa::path(
    get, path = "/v1/config", tag = "inspect", security((), ("token" = [])),
    responses(
        (status = 200, body = ConfigReport),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn config(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<ConfigReport>, Problem> {
    Params::read(&uri, &[])?;
    Ok(Json(app.host.config()))
}
