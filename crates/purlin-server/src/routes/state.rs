//! Counters, sets, maps and registers that every side of a cut may write.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use purlin_core::{Advice, HlcTimestamp};
use purlin_replica::{Kind, ReplicaSet, VALUE_BYTES_MAX, Written};

use crate::{
    app::App,
    input::{Params, decode_path, media_type, refuse_encoded, unsupported, whole_body},
    problem::{Problem, ReadRefusals, WriteRefusals},
    shapes::{
        CatalogueReport, CounterReport, CounterRequest, ElementReport, MapReport, RemovedReport,
        SetReport, StateReport, ValuesReport, WrittenReport,
    },
    state::{Page, absent, entry, named, pair_key, persisted, refused, text_or_base64},
};

/// A request body that is a small JSON object.
pub(super) const OBJECT_BYTES_MAX: usize = 1 << 20;

/// The most rows of a catalogue: each may cost a look at a thousand entries.
const CATALOGUE_MAX: u32 = 500;

const COUNTERS: &str = "/v1/counters/";
const SETS: &str = "/v1/sets/";
const MAPS: &str = "/v1/maps/";
const REGISTERS: &str = "/v1/registers/";
const VALUES: &str = "/v1/values/";

/// What stands behind `prefix` in the path, slashes and all.
pub(super) fn rest_of(uri: &Uri, prefix: &str) -> Result<String, Problem> {
    let raw = uri.path().strip_prefix(prefix).expect("the router matched the prefix");
    decode_path("name", raw)
}

/// A collection's name, which is one segment, and the entry behind it, slashes and all.
fn name_and_entry(uri: &Uri, prefix: &str) -> Result<(String, String), Problem> {
    let raw = uri.path().strip_prefix(prefix).expect("the router matched the prefix");
    let (name, entry) = raw.split_once('/').expect("the router matched two segments");
    Ok((decode_path("name", name)?, decode_path("key", entry)?))
}

fn of_kind(set: &ReplicaSet, name: &str, kind: Kind) -> Result<(), Problem> {
    set.expect_kind(name.as_bytes(), kind).map_err(|error| refused(&error))
}

/// Reads a small JSON object.
pub(super) async fn object(
    app: &App,
    headers: &HeaderMap,
    body: Body,
) -> Result<serde_json::Value, Problem> {
    refuse_encoded(headers)?;
    match media_type(headers).as_deref() {
        None
        | Some(
            "application/json" | "application/octet-stream" | "application/x-www-form-urlencoded",
        ) => {}
        Some(other) => return Err(unsupported("content-type", other, "application/json")),
    }
    let body = whole_body("the request", body, OBJECT_BYTES_MAX, app.config.body_within).await?;
    let body = if body.is_empty() { Bytes::from_static(b"{}") } else { body };
    serde_json::from_slice(&body).map_err(|error| {
        let text = String::from_utf8_lossy(&body);
        Problem::bad_input("body", &text, "a JSON object", format!("the body is no JSON: {error}"))
    })
}

/// Reads `value` as `T`, naming what is wrong with it.
pub(super) fn shape<T: serde::de::DeserializeOwned>(
    value: serde_json::Value,
    bound: &str,
) -> Result<T, Problem> {
    let text = value.to_string();
    serde_json::from_value(value).map_err(|error| {
        Problem::bad_input("body", &text, bound, format!("the body cannot be used: {error}"))
    })
}

/// Reads a value, whatever its bytes.
pub(super) async fn value(app: &App, headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
    refuse_encoded(headers)?;
    whole_body("the value", body, VALUE_BYTES_MAX, app.config.body_within).await
}

/// A value as a response: its bytes, and who wrote it and when in headers.
pub(super) fn value_response(app: &App, written: &Written) -> Response {
    let mut response = Response::new(Body::from(written.value.clone()));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let mut say = |name: &'static str, text: String| {
        let text = HeaderValue::try_from(text).expect("timestamps and node names are ASCII");
        headers.insert(header::HeaderName::from_static(name), text);
    };
    say("purlin-version", written.at.to_string());
    say("purlin-origin", app.host.origins().name(written.at.node()));
    if let Some(ms) = crate::state::expires_in_ms(written, app.host.wall()) {
        say("purlin-expires-in-ms", ms.to_string());
    }
    response
}

/// The answer to a write, with the version also as a header.
pub(super) fn written_response(at: HlcTimestamp) -> Response {
    let version = at.to_string();
    let header = HeaderValue::try_from(&version).expect("a timestamp is ASCII");
    let mut response = Json(WrittenReport { version: Some(version) }).into_response();
    response.headers_mut().insert(header::HeaderName::from_static("purlin-version"), header);
    response
}

async fn removed(app: &App, removed: bool) -> Result<Json<RemovedReport>, Problem> {
    persisted(app.host.crdt(), &Advice::Retry).await?;
    Ok(Json(RemovedReport { removed }))
}

/// A counter's value here: the sum of what all sides added. One that nobody added to is 0.
#[utoipa::path(
    get, path = "/v1/counters/{name}", tag = "state", security((), ("token" = [])),
    params(("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F")),
    responses((status = 200, body = CounterReport), ReadRefusals),
)]
pub(super) async fn counter(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<CounterReport>, Problem> {
    Params::read(&uri, &[])?;
    let name = rest_of(&uri, COUNTERS)?;
    of_kind(app.host.crdt(), &name, Kind::Counter)?;
    let value = app.host.crdt().get(name.as_bytes()).map_or(0, |cell| cell.count());
    Ok(Json(CounterReport { name, value }))
}

/// Adds to a counter. On disk here when it answers; sent to the others at once.
///
/// Not idempotent: when the outcome is `unknown`, read the counter before repeating.
#[utoipa::path(
    post, path = "/v1/counters/{name}", tag = "state", security((), ("token" = [])),
    params(("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F")),
    request_body(content = CounterRequest, content_type = "application/json"),
    responses((status = 200, body = CounterReport), WriteRefusals),
)]
pub(super) async fn add(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<CounterReport>, Problem> {
    Params::read(&uri, &[])?;
    let name = rest_of(&uri, COUNTERS)?;
    let request: CounterRequest =
        shape(object(&app, &headers, body).await?, "{\"by\": a number of 64 bits}")?;
    let set = app.host.crdt();
    of_kind(set, &name, Kind::Counter)?;
    let value = set.add(name.clone(), request.by).map_err(|error| refused(&error))?;
    persisted(set, &Advice::GiveUp).await?;
    Ok(Json(CounterReport { name, value }))
}

/// Removes what was added to a counter, as far as it was seen here; additions not yet seen stay.
#[utoipa::path(
    delete, path = "/v1/counters/{name}", tag = "state", security((), ("token" = [])),
    params(("name" = String, Path, description = "The counter")),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(super) async fn remove_counter(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<RemovedReport>, Problem> {
    Params::read(&uri, &[])?;
    remove_plain(&app, rest_of(&uri, COUNTERS)?, Kind::Counter).await
}

async fn remove_plain(app: &App, name: String, kind: Kind) -> Result<Json<RemovedReport>, Problem> {
    of_kind(app.host.crdt(), &name, kind)?;
    let done = app.host.crdt().remove_kind(name, kind).map_err(|error| refused(&error))?;
    removed(app, done).await
}

/// The elements of a set in order, a page at a time. A set that nobody added to is empty.
#[utoipa::path(
    get, path = "/v1/sets/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "One segment; slashes in it as %2F"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000; a page also ends at 4 MiB"),
    ),
    responses((status = 200, body = SetReport), ReadRefusals),
)]
pub(super) async fn set(State(app): State<Arc<App>>, uri: Uri) -> Result<Json<SetReport>, Problem> {
    let page = Page::read(&Params::read(&uri, &["after", "limit"])?)?;
    let name = rest_of(&uri, SETS)?;
    of_kind(app.host.crdt(), &name, Kind::Set)?;
    let set = app.host.crdt().set(&name).map_err(|error| refused(&error))?;
    let mut found = set.elements(page.after.as_deref(), page.limit + 1);
    let next = page.cut(&mut found, |element| element, Bytes::len);
    let (text, other) =
        found.into_iter().map(|element| text_or_base64(&element)).unzip::<_, _, Vec<_>, Vec<_>>();
    Ok(Json(SetReport {
        name,
        elements: text.into_iter().flatten().collect(),
        elements_base64: other.into_iter().flatten().collect(),
        next,
    }))
}

/// Removes every element of a set that was seen here; what others add meanwhile stays.
#[utoipa::path(
    delete, path = "/v1/sets/{name}", tag = "state", security((), ("token" = [])),
    params(("name" = String, Path, description = "The set")),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(super) async fn remove_set(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<RemovedReport>, Problem> {
    Params::read(&uri, &[])?;
    let name = rest_of(&uri, SETS)?;
    of_kind(app.host.crdt(), &name, Kind::Set)?;
    let set = app.host.crdt().set(&name).map_err(|error| refused(&error))?;
    let count = set.clear().map_err(|error| refused(&error))?;
    removed(&app, count > 0).await
}

/// Whether an element is in a set: 404 if it is not.
#[utoipa::path(
    get, path = "/v1/sets/{name}/{element}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "The set"),
        ("element" = String, Path, description = "Slashes as they are or as %2F"),
    ),
    responses((status = 200, body = ElementReport), ReadRefusals),
)]
pub(super) async fn element(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<ElementReport>, Problem> {
    Params::read(&uri, &[])?;
    let (name, element) = name_and_entry(&uri, SETS)?;
    of_kind(app.host.crdt(), &name, Kind::Set)?;
    let set = app.host.crdt().set(&name).map_err(|error| refused(&error))?;
    if !set.contains(&element) {
        return Err(absent("element", &element));
    }
    Ok(Json(ElementReport { name, element, present: true }))
}

/// Adds an element to a set; the add wins over a removal that did not know of it.
#[utoipa::path(
    put, path = "/v1/sets/{name}/{element}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "The set; one segment"),
        ("element" = String, Path, description = "Slashes as they are or as %2F; with the name at most 1,022 bytes"),
    ),
    responses((status = 200, body = ElementReport), WriteRefusals),
)]
pub(super) async fn insert(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<ElementReport>, Problem> {
    Params::read(&uri, &[])?;
    let (name, element) = name_and_entry(&uri, SETS)?;
    let set = app.host.crdt().set(&name).map_err(|error| refused(&error))?;
    set.insert(&element).map_err(|error| refused(&error))?;
    persisted(app.host.crdt(), &Advice::Retry).await?;
    Ok(Json(ElementReport { name, element, present: true }))
}

/// Removes an element of a set, as far as its adds were seen here.
#[utoipa::path(
    delete, path = "/v1/sets/{name}/{element}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "The set"),
        ("element" = String, Path, description = "The element"),
    ),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(super) async fn remove_element(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<RemovedReport>, Problem> {
    Params::read(&uri, &[])?;
    let (name, element) = name_and_entry(&uri, SETS)?;
    of_kind(app.host.crdt(), &name, Kind::Set)?;
    let set = app.host.crdt().set(&name).map_err(|error| refused(&error))?;
    let done = set.remove(&element).map_err(|error| refused(&error))?;
    removed(&app, done).await
}

/// The entries of a map in key order, a page at a time, with who wrote each and when. A map that
/// nobody wrote to is empty.
#[utoipa::path(
    get, path = "/v1/maps/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "One segment; slashes in it as %2F"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000; a page also ends at 4 MiB"),
    ),
    responses((status = 200, body = MapReport), ReadRefusals),
)]
pub(super) async fn map(State(app): State<Arc<App>>, uri: Uri) -> Result<Json<MapReport>, Problem> {
    let page = Page::read(&Params::read(&uri, &["after", "limit"])?)?;
    let name = rest_of(&uri, MAPS)?;
    of_kind(app.host.crdt(), &name, Kind::Map)?;
    let map = app.host.crdt().map(&name).map_err(|error| refused(&error))?;
    let mut found = map.entries(page.after.as_deref(), page.limit + 1);
    let next = page.cut(&mut found, pair_key, |(key, written)| key.len() + written.value.len());
    let now = app.host.wall();
    let entries =
        found.iter().map(|(key, written)| entry(key, written, app.host.origins(), now)).collect();
    Ok(Json(MapReport { name, entries, next }))
}

/// Removes every entry of a map that was seen here; what others write meanwhile stays.
#[utoipa::path(
    delete, path = "/v1/maps/{name}", tag = "state", security((), ("token" = [])),
    params(("name" = String, Path, description = "The map")),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(super) async fn remove_map(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<RemovedReport>, Problem> {
    Params::read(&uri, &[])?;
    let name = rest_of(&uri, MAPS)?;
    of_kind(app.host.crdt(), &name, Kind::Map)?;
    let map = app.host.crdt().map(&name).map_err(|error| refused(&error))?;
    let count = map.clear().map_err(|error| refused(&error))?;
    removed(&app, count > 0).await
}

/// The value of a key of a map, raw, with `Purlin-Version` and `Purlin-Origin`.
#[utoipa::path(
    get, path = "/v1/maps/{name}/{key}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "The map"),
        ("key" = String, Path, description = "Slashes as they are or as %2F"),
    ),
    responses((status = 200, description = "The value", content_type = "application/octet-stream", body = Vec<u8>), ReadRefusals),
)]
pub(super) async fn field(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    Params::read(&uri, &[])?;
    let (name, key) = name_and_entry(&uri, MAPS)?;
    of_kind(app.host.crdt(), &name, Kind::Map)?;
    let map = app.host.crdt().map(&name).map_err(|error| refused(&error))?;
    let written = map.get(&key).ok_or_else(|| absent("key", &key))?;
    Ok(value_response(&app, &written))
}

/// Writes a key of a map: the body is the value. Wins over a removal that did not know of it; of two
/// concurrent writes the later by hybrid time holds.
#[utoipa::path(
    put, path = "/v1/maps/{name}/{key}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "The map; one segment"),
        ("key" = String, Path, description = "Slashes as they are or as %2F; with the name at most 1,022 bytes"),
    ),
    request_body(content = Vec<u8>, description = "At most 1 MiB", content_type = "application/octet-stream"),
    responses((status = 200, body = WrittenReport), WriteRefusals),
)]
pub(super) async fn put_field(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Params::read(&uri, &[])?;
    let (name, key) = name_and_entry(&uri, MAPS)?;
    let value = value(&app, &headers, body).await?;
    let map = app.host.crdt().map(&name).map_err(|error| refused(&error))?;
    let at = map.put(&key, value).map_err(|error| refused(&error))?;
    persisted(app.host.crdt(), &Advice::Retry).await?;
    Ok(written_response(at))
}

/// Removes a key of a map, as far as its writes were seen here.
#[utoipa::path(
    delete, path = "/v1/maps/{name}/{key}", tag = "state", security((), ("token" = [])),
    params(("name" = String, Path, description = "The map"), ("key" = String, Path, description = "The key")),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(super) async fn remove_field(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<RemovedReport>, Problem> {
    Params::read(&uri, &[])?;
    let (name, key) = name_and_entry(&uri, MAPS)?;
    of_kind(app.host.crdt(), &name, Kind::Map)?;
    let map = app.host.crdt().map(&name).map_err(|error| refused(&error))?;
    let done = map.remove(&key).map_err(|error| refused(&error))?;
    removed(&app, done).await
}

/// A register's value, raw, with `Purlin-Version` and `Purlin-Origin`.
#[utoipa::path(
    get, path = "/v1/registers/{name}", tag = "state", security((), ("token" = [])),
    params(("name" = String, Path, description = "Slashes as they are or as %2F")),
    responses((status = 200, description = "The value", content_type = "application/octet-stream", body = Vec<u8>), ReadRefusals),
)]
pub(super) async fn register(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    Params::read(&uri, &[])?;
    let name = rest_of(&uri, REGISTERS)?;
    of_kind(app.host.crdt(), &name, Kind::Register)?;
    let cell = app.host.crdt().get(name.as_bytes());
    let written = cell.as_ref().and_then(|cell| cell.register());
    written.map(|written| value_response(&app, written)).ok_or_else(|| absent("register", &name))
}

/// Writes a register: the body is the value. Of two concurrent writes the later by hybrid time holds.
#[utoipa::path(
    put, path = "/v1/registers/{name}", tag = "state", security((), ("token" = [])),
    params(("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F")),
    request_body(content = Vec<u8>, description = "At most 1 MiB", content_type = "application/octet-stream"),
    responses((status = 200, body = WrittenReport), WriteRefusals),
)]
pub(super) async fn put_register(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    Params::read(&uri, &[])?;
    let name = rest_of(&uri, REGISTERS)?;
    let value = value(&app, &headers, body).await?;
    of_kind(app.host.crdt(), &name, Kind::Register)?;
    let at = app.host.crdt().put(name, value, None).map_err(|error| refused(&error))?;
    persisted(app.host.crdt(), &Advice::Retry).await?;
    Ok(written_response(at))
}

/// Removes a register's value, as far as it was seen here.
#[utoipa::path(
    delete, path = "/v1/registers/{name}", tag = "state", security((), ("token" = [])),
    params(("name" = String, Path, description = "The register")),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(super) async fn remove_register(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<RemovedReport>, Problem> {
    Params::read(&uri, &[])?;
    remove_plain(&app, rest_of(&uri, REGISTERS)?, Kind::Register).await
}

/// Every value of a multi-value register: one, or several written by sides that did not know of
/// each other. 404 if there is none.
#[utoipa::path(
    get, path = "/v1/values/{name}", tag = "state", security((), ("token" = [])),
    params(("name" = String, Path, description = "Slashes as they are or as %2F")),
    responses((status = 200, body = ValuesReport), ReadRefusals),
)]
pub(super) async fn values(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<ValuesReport>, Problem> {
    Params::read(&uri, &[])?;
    let name = rest_of(&uri, VALUES)?;
    of_kind(app.host.crdt(), &name, Kind::MultiValue)?;
    let Some(cell) = app.host.crdt().get(name.as_bytes()) else {
        return Err(absent("name", &name));
    };
    let is_text = |value: &&Bytes| std::str::from_utf8(value).is_ok();
    let (text, other): (Vec<&Bytes>, Vec<&Bytes>) = cell.values().partition(is_text);
    Ok(Json(ValuesReport {
        name,
        values: text.iter().map(|it| String::from_utf8_lossy(it).into_owned()).collect(),
        values_base64: other.iter().map(|it| STANDARD.encode(it)).collect(),
    }))
}

/// Writes a multi-value register over every value seen here; one written elsewhere meanwhile stands
/// beside it until somebody who saw both writes again.
#[utoipa::path(
    put, path = "/v1/values/{name}", tag = "state", security((), ("token" = [])),
    params(("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F")),
    request_body(content = Vec<u8>, description = "At most 1 MiB", content_type = "application/octet-stream"),
    responses((status = 200, body = WrittenReport), WriteRefusals),
)]
pub(super) async fn put_value(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<WrittenReport>, Problem> {
    Params::read(&uri, &[])?;
    let name = rest_of(&uri, VALUES)?;
    let value = value(&app, &headers, body).await?;
    of_kind(app.host.crdt(), &name, Kind::MultiValue)?;
    app.host.crdt().set_value(name, value).map_err(|error| refused(&error))?;
    persisted(app.host.crdt(), &Advice::Retry).await?;
    Ok(Json(WrittenReport { version: None }))
}

/// Removes every value of a multi-value register that was seen here.
#[utoipa::path(
    delete, path = "/v1/values/{name}", tag = "state", security((), ("token" = [])),
    params(("name" = String, Path, description = "The register")),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(super) async fn remove_values(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<RemovedReport>, Problem> {
    Params::read(&uri, &[])?;
    remove_plain(&app, rest_of(&uri, VALUES)?, Kind::MultiValue).await
}

/// The replica sets of this node: keys, lag of every neighbour, what happened so far.
#[utoipa::path(
    get, path = "/v1/state", tag = "state", security((), ("token" = [])),
    responses((status = 200, body = StateReport), ReadRefusals),
)]
pub(super) async fn status(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<StateReport>, Problem> {
    Params::read(&uri, &[])?;
    Ok(Json(app.host.state_report()))
}

/// What is kept in a replica set: one row per name, with kind, size, who wrote last and when.
#[utoipa::path(
    get, path = "/v1/state/{set}/keys", tag = "state", security((), ("token" = [])),
    params(
        ("set" = String, Path, description = "`crdt` or `ephemeral`; flags are at /v1/flags"),
        ("prefix" = Option<String>, Query, description = "Only names that begin with this"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 500, default 500"),
    ),
    responses((status = 200, body = CatalogueReport), ReadRefusals),
)]
pub(super) async fn catalogue(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<CatalogueReport>, Problem> {
    let params = Params::read(&uri, &["prefix", "after", "limit"])?;
    let page = Page::read_up_to(&params, CATALOGUE_MAX)?;
    let path = uri.path().strip_prefix("/v1/state/").and_then(|path| path.strip_suffix("/keys"));
    let name = path.expect("the router matched the path");
    let set = match name {
        "crdt" => app.host.crdt(),
        "ephemeral" => app.host.ephemeral(),
        other => {
            let detail = format!("there is no catalogue of a set {other:?}");
            return Err(Problem::new(
                StatusCode::NOT_FOUND,
                "absent",
                "There is nothing of that name",
                detail,
            )
            .about("set", other, "crdt or ephemeral"));
        }
    };
    let prefix = params.get("prefix").unwrap_or_default().as_bytes();
    let mut rows = set.catalogue(prefix, page.after.as_deref(), page.limit + 1);
    let next = page.cut(&mut rows, |row| &row.name, |row| row.name.len());
    let rows = rows.iter().map(|row| named(row, app.host.origins())).collect();
    Ok(Json(CatalogueReport { set: name.to_owned(), rows, next }))
}
