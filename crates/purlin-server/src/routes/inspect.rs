//! What is inside the answering node: processes, configuration.

use std::sync::Arc;

use axum::{Json, extract::State, http::Uri};

use crate::{
    app::App,
    input::Params,
    problem::{Problem, ProblemDocument},
    processes::{Ask, ROWS_MAX},
    shapes::{ConfigReport, ProcessesReport},
};

/// The processes of this node, oldest first; with `everywhere` those of every member, too.
#[utoipa::path(
    get, path = "/v1/processes", tag = "inspect", security((), ("token" = [])),
    params(
        ("search" = Option<String>, Query, description = "Only those whose name, kind or identity holds this, in any case"),
        ("limit" = Option<usize>, Query, description = "How many of each node, 1 to 10,000; default 10,000"),
        ("everywhere" = Option<bool>, Query, description = "`true`: those of every member, too; it has 2 s to answer"),
        ("summaries" = Option<bool>, Query, description = "`true`: ask the first 256 for a word about their state, for at most 250 ms"),
    ),
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
    let params = Params::read(&uri, &["search", "limit", "everywhere", "summaries"])?;
    let ask = Ask {
        search: params.get("search").unwrap_or_default().to_owned(),
        limit: params.number("limit", &(1..=ROWS_MAX))?.unwrap_or(ROWS_MAX),
        summaries: params.flag("summaries")?.unwrap_or(false),
    };
    let everywhere = params.flag("everywhere")?.unwrap_or(false);
    Ok(Json(app.host.processes(&ask, everywhere).await))
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
