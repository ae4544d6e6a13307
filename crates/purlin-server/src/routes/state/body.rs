//! Bodies of requests and answers: JSON objects, and values as they are.

use axum::{
    Json,
    body::Body,
    http::{HeaderMap, HeaderValue, Uri, header},
    response::{IntoResponse as _, Response},
};
use bytes::Bytes;
use purlin_core::HlcTimestamp;
use purlin_replica::{VALUE_BYTES_MAX, Written};

use crate::{
    app::App,
    input::{decode_path, media_type, refuse_encoded, unsupported, whole_body},
    problem::Problem,
    shapes::WrittenReport,
};

/// A request body that is a JSON object. A text of a mebibyte in it may be escaped.
const OBJECT_BYTES_MAX: usize = 2 << 20;

/// What stands behind `prefix` in the path, slashes and all.
pub(in crate::routes) fn rest_of(uri: &Uri, prefix: &str) -> Result<String, Problem> {
    let raw = uri.path().strip_prefix(prefix).expect("the router matched the prefix");
    decode_path("name", raw)
}

/// Reads a small JSON object.
pub(in crate::routes) async fn object(
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
pub(in crate::routes) fn shape<T: serde::de::DeserializeOwned>(
    value: serde_json::Value,
    bound: &str,
) -> Result<T, Problem> {
    let text = value.to_string();
    serde_json::from_value(value).map_err(|error| {
        Problem::bad_input("body", &text, bound, format!("the body cannot be used: {error}"))
    })
}

/// Reads a value, whatever its bytes.
pub(in crate::routes) async fn value(
    app: &App,
    headers: &HeaderMap,
    body: Body,
) -> Result<Bytes, Problem> {
    refuse_encoded(headers)?;
    whole_body("the value", body, VALUE_BYTES_MAX, app.config.body_within).await
}

/// A value as a response: its bytes, and who wrote it and when in headers.
pub(in crate::routes) fn value_response(app: &App, written: &Written) -> Response {
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
pub(in crate::routes) fn written_response(at: HlcTimestamp) -> Response {
    let version = at.to_string();
    let header = HeaderValue::try_from(&version).expect("a timestamp is ASCII");
    let mut response = Json(WrittenReport { version: Some(version) }).into_response();
    response.headers_mut().insert(header::HeaderName::from_static("purlin-version"), header);
    response
}
