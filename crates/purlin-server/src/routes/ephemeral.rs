//! Ephemeral values: small, everywhere, in memory, and gone when their time is over.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, Uri},
    response::Response,
};
use purlin_core::HlcTimestamp;
use purlin_replica::{Change, Kind};

use super::state::{rest_of, value, value_response, written_response};
use crate::{
    app::App,
    input::Params,
    problem::{Problem, ReadRefusals, WriteRefusals},
    shapes::{EphemeralChange, EphemeralReport, RemovedReport},
    state::{Page, absent, entry, pair_key, refused, text_or_base64},
};

const PREFIX: &str = "/v1/ephemeral/";

/// The longest time to live: a year. Longer is not ephemeral.
const TTL_MS_MAX: u64 = 366 * 24 * 3_600_000;

/// A value, raw, with `Purlin-Version`, `Purlin-Origin` and `Purlin-Expires-In-Ms`.
#[utoipa::path(
    get, path = "/v1/ephemeral/{key}", tag = "ephemeral", security((), ("token" = [])),
    params(("key" = String, Path, description = "Slashes as they are or as %2F")),
    responses((status = 200, description = "The value", content_type = "application/octet-stream", body = Vec<u8>), ReadRefusals),
)]
pub(super) async fn get(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    Params::read(&uri, &[])?;
    let key = rest_of(&uri, PREFIX)?;
    let cell = app.host.ephemeral().get(key.as_bytes());
    let written = cell.as_ref().and_then(|cell| cell.register());
    written.map(|written| value_response(&app, written)).ok_or_else(|| absent("key", &key))
}

/// Writes a value: the body. Conditions are checked against what this node has seen; two sides of a
/// partition may both succeed, and the later write holds.
#[utoipa::path(
    put, path = "/v1/ephemeral/{key}", tag = "ephemeral", security((), ("token" = [])),
    params(
        ("key" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("ttl_ms" = Option<u64>, Query, description = "How long it counts: 1 to a year of milliseconds; default for ever"),
        ("if_version" = Option<String>, Query, description = "Only if this is the version there"),
        ("if_absent" = Option<bool>, Query, description = "`true`: only if there is no value"),
    ),
    request_body(content = Vec<u8>, description = "At most 1 MiB", content_type = "application/octet-stream"),
    responses((status = 200, body = crate::shapes::WrittenReport), WriteRefusals),
)]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["ttl_ms", "if_version", "if_absent"])?;
    let key = rest_of(&uri, PREFIX)?;
    let ttl = params.number("ttl_ms", &(1..=TTL_MS_MAX))?.map(Duration::from_millis);
    let expected = version(&params)?;
    let if_absent = params.flag("if_absent")?.unwrap_or(false);
    if if_absent && expected.is_some() {
        let detail = "if_version and if_absent=true exclude each other";
        return Err(Problem::bad_input("if_absent", "true", "one condition", detail));
    }
    let value = value(&app, &headers, body).await?;
    let set = app.host.ephemeral();
    let written = match (expected, if_absent) {
        (None, false) => set.put(key, value, ttl),
        (expected, _) => set.put_if(key, value, ttl, expected),
    };
    written.map(written_response).map_err(|error| refused(&error))
}

fn version(params: &Params) -> Result<Option<HlcTimestamp>, Problem> {
    let parse = |text: &str| {
        text.parse::<HlcTimestamp>().map_err(|error| {
            let bound = "a version as in Purlin-Version";
            Problem::bad_input("if_version", text, bound, error.to_string())
        })
    };
    params.get("if_version").map(parse).transpose()
}

/// Removes a value, as far as it was seen here.
#[utoipa::path(
    delete, path = "/v1/ephemeral/{key}", tag = "ephemeral", security((), ("token" = [])),
    params(
        ("key" = String, Path, description = "The key"),
        ("if_version" = Option<String>, Query, description = "Only if this is the version there"),
    ),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<RemovedReport>, Problem> {
    let params = Params::read(&uri, &["if_version"])?;
    let key = rest_of(&uri, PREFIX)?;
    let set = app.host.ephemeral();
    let done = match version(&params)? {
        Some(expected) => set.remove_if(key, expected),
        None => set.remove_kind(key, Kind::Register),
    };
    Ok(Json(RemovedReport { removed: done.map_err(|error| refused(&error))? }))
}

/// Values whose keys begin with a prefix, in key order, a page at a time.
#[utoipa::path(
    get, path = "/v1/ephemeral", tag = "ephemeral", security((), ("token" = [])),
    params(
        ("prefix" = Option<String>, Query, description = "Only keys that begin with this"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000; a page also ends at 4 MiB"),
    ),
    responses((status = 200, body = EphemeralReport), ReadRefusals),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<EphemeralReport>, Problem> {
    let params = Params::read(&uri, &["prefix", "after", "limit"])?;
    let page = Page::read(&params)?;
    let prefix = params.get("prefix").unwrap_or_default().as_bytes();
    let set = app.host.ephemeral();
    let found = set.scan(prefix, page.after.as_deref(), page.limit + 1);
    let written =
        |(key, cell): (bytes::Bytes, purlin_replica::Cell)| Some((key, cell.register()?.clone()));
    let mut rows: Vec<_> = found.into_iter().filter_map(written).collect();
    let next = page.cut(&mut rows, pair_key, |(key, it)| key.len() + it.value.len());
    let now = app.host.wall();
    let entries = rows.iter().map(|(key, it)| entry(key, it, app.host.origins(), now)).collect();
    Ok(Json(EphemeralReport { entries, next }))
}

/// Changes of ephemeral values, as they happen.
///
/// Events: `ready` once, then `change`, and `lag` where this reader was too slow and changes are
/// missing: list the prefix again then. Changes before `ready` are not told; list first, or after.
#[utoipa::path(
    get, path = "/v1/ephemeral-watch", tag = "ephemeral", security((), ("token" = [])),
    params(("prefix" = Option<String>, Query, description = "Only keys that begin with this")),
    responses(
        (status = 200, description = "Server-Sent Events", content_type = "text/event-stream", body = EphemeralChange),
        ReadRefusals,
    ),
)]
pub(super) async fn watch(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["prefix"])?;
    let prefix = params.get("prefix").unwrap_or_default().to_owned();
    let set = app.host.ephemeral().clone();
    super::watch::watch(app, &set, prefix, change_report)
}

fn change_report(app: &App, change: &Change) -> EphemeralChange {
    let (key, key_base64) = text_or_base64(&change.key);
    let written = change.now.as_ref().and_then(|cell| cell.register());
    let now = written.map(|it| entry(&change.key, it, app.host.origins(), app.host.wall()));
    let (cause, told_by) = super::watch::cause(change);
    EphemeralChange { key, key_base64, now, cause, told_by }
}
