//! Registers: one value, or every concurrent value.

use axum::{Json, body::Body, http::HeaderMap, response::Response};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use purlin_core::Advice;
use purlin_replica::Kind;

use super::{
    Family, Target,
    body::{value, value_response, written_response},
};
use crate::{
    problem::{Problem, ReadRefusals, WriteRefusals},
    shapes::{RemovedReport, ValuesReport, WrittenReport},
    state::absent,
};

#[derive(Debug)]
pub(in crate::routes) struct Registers;

impl Family for Registers {
    const PREFIX: &'static str = "/v1/registers/";
    const KINDS: &'static [Kind] = &[Kind::Register];
}

#[derive(Debug)]
pub(in crate::routes) struct Values;

impl Family for Values {
    const PREFIX: &'static str = "/v1/values/";
    const KINDS: &'static [Kind] = &[Kind::MultiValue];
}

/// A register's value, raw, with `Purlin-Version` and `Purlin-Origin`.
#[utoipa::path(
    get, path = "/v1/registers/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`register`; default: the one it has"),
    ),
    responses((status = 200, description = "The value", content_type = "application/octet-stream", body = Vec<u8>), ReadRefusals),
)]
pub(in crate::routes) async fn register(of: Target<Registers>) -> Result<Response, Problem> {
    let cell = of.set().get(of.name.as_bytes());
    let written = cell.as_ref().and_then(|cell| cell.register());
    written.map(|it| value_response(&of.app, it)).ok_or_else(|| absent("register", &of.name))
}

/// Writes a register: the body is the value. Of two concurrent writes the later by hybrid time holds.
#[utoipa::path(
    put, path = "/v1/registers/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`register`; default: the one it has"),
    ),
    request_body(content = Vec<u8>, description = "At most 1 MiB", content_type = "application/octet-stream"),
    responses((status = 200, body = WrittenReport), WriteRefusals),
)]
pub(in crate::routes) async fn put_register(
    of: Target<Registers>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let value = value(&of.app, &headers, body).await?;
    let done = of.set().put(of.name.clone(), value, None);
    Ok(written_response(of.written(done, &Advice::Retry).await?))
}

/// Removes a register's value, as far as it was seen here.
#[utoipa::path(
    delete, path = "/v1/registers/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`register`; default: the one it has"),
    ),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(in crate::routes) async fn remove_register(
    of: Target<Registers>,
) -> Result<Json<RemovedReport>, Problem> {
    of.remove().await
}

/// Every value of a multi-value register: one, or several written by sides that did not know of
/// each other. 404 if there is none.
#[utoipa::path(
    get, path = "/v1/values/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`multi_value`; default: the one it has"),
    ),
    responses((status = 200, body = ValuesReport), ReadRefusals),
)]
pub(in crate::routes) async fn values(of: Target<Values>) -> Result<Json<ValuesReport>, Problem> {
    let cell = of.set().get(of.name.as_bytes()).ok_or_else(|| absent("name", &of.name))?;
    let is_text = |value: &&Bytes| std::str::from_utf8(value).is_ok();
    let (text, other): (Vec<&Bytes>, Vec<&Bytes>) = cell.values().partition(is_text);
    Ok(Json(ValuesReport {
        name: of.name,
        values: text.iter().map(|it| String::from_utf8_lossy(it).into_owned()).collect(),
        values_base64: other.iter().map(|it| STANDARD.encode(it)).collect(),
    }))
}

/// Writes a multi-value register over every value seen here; one written elsewhere meanwhile stands
/// beside it until somebody who saw both writes again.
#[utoipa::path(
    put, path = "/v1/values/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`multi_value`; default: the one it has"),
    ),
    request_body(content = Vec<u8>, description = "At most 1 MiB", content_type = "application/octet-stream"),
    responses((status = 200, body = WrittenReport), WriteRefusals),
)]
pub(in crate::routes) async fn put_value(
    of: Target<Values>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<WrittenReport>, Problem> {
    let value = value(&of.app, &headers, body).await?;
    of.written(of.set().set_value(of.name.clone(), value), &Advice::Retry).await?;
    Ok(Json(WrittenReport { version: None }))
}

/// Removes every value of a multi-value register that was seen here.
#[utoipa::path(
    delete, path = "/v1/values/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`multi_value`; default: the one it has"),
    ),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(in crate::routes) async fn remove_values(
    of: Target<Values>,
) -> Result<Json<RemovedReport>, Problem> {
    of.remove().await
}
