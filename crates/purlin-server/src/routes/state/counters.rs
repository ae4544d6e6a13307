//! Counters: the sum of what all sides added.

use axum::{Json, body::Body, http::HeaderMap};
use purlin_core::Advice;
use purlin_replica::Kind;

use super::{
    Family, Target,
    body::{object, shape},
};
use crate::{
    problem::{Problem, ReadRefusals, WriteRefusals},
    shapes::{CounterReport, CounterRequest, RemovedReport},
};

#[derive(Debug)]
pub(in crate::routes) struct Counters;

impl Family for Counters {
    const PREFIX: &'static str = "/v1/counters/";
    const KINDS: &'static [Kind] = &[Kind::Counter, Kind::GrowCounter, Kind::ResettableCounter];
}

/// A counter's value here: the sum of what all sides added. One that nobody added to is 0.
#[utoipa::path(
    get, path = "/v1/counters/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`counter` (a new one), `grow_counter` or `resettable_counter`; default: the one it has"),
    ),
    responses((status = 200, body = CounterReport), ReadRefusals),
)]
pub(in crate::routes) async fn counter(of: Target<Counters>) -> Json<CounterReport> {
    report(&of)
}

fn report(of: &Target<Counters>) -> Json<CounterReport> {
    let cell = of.set().get(of.name.as_bytes()).unwrap_or_default();
    let value = count(&cell, of.kind);
    Json(CounterReport { name: of.name.clone(), kind: of.word(), value })
}

/// What a cell counts as a `kind`.
pub(in crate::routes) fn count(cell: &purlin_replica::Cell, kind: Kind) -> i128 {
    match kind {
        Kind::GrowCounter => i128::try_from(cell.grown()).unwrap_or(i128::MAX),
        Kind::ResettableCounter => cell.since_reset(),
        _ => cell.count(),
    }
}

/// Adds to a counter, or sets one that can be reset back to zero. On disk here when it answers;
/// sent to the others at once.
///
/// Adding is not idempotent: when the outcome is `unknown`, read the counter before repeating.
#[utoipa::path(
    post, path = "/v1/counters/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`counter` (a new one), `grow_counter` or `resettable_counter`; default: the one it has"),
    ),
    request_body(content = CounterRequest, content_type = "application/json"),
    responses((status = 200, body = CounterReport), WriteRefusals),
)]
pub(in crate::routes) async fn add(
    of: Target<Counters>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<CounterReport>, Problem> {
    let bound = "{\"by\": a number of 64 bits} or {\"reset\": true}";
    let body = object(&of.app, &headers, body).await?;
    let text = body.to_string();
    let (set, name) = (of.set(), of.name.clone());
    match (shape(body, bound)?, of.kind) {
        (CounterRequest { by: None, reset: true }, Kind::ResettableCounter) => {
            of.written(set.reset(name).map(drop), &Advice::Retry).await?;
        }
        (CounterRequest { by: None, reset: true }, kind) => {
            let detail = format!("a {kind} cannot be reset; ask for type=resettable_counter");
            return Err(Problem::bad_input("reset", "true", "a resettable_counter", detail));
        }
        (CounterRequest { by: Some(by), reset: false }, kind) => {
            let done = match (kind, u64::try_from(by)) {
                (Kind::GrowCounter, Ok(by)) => set.grow(name, by).map(drop),
                (Kind::GrowCounter, Err(_)) => {
                    let detail = format!("by of {by}: a grow_counter only grows");
                    return Err(Problem::bad_input("by", &by.to_string(), "0 or more", detail));
                }
                (Kind::ResettableCounter, _) => set.add_resettable(name, by).map(drop),
                _ => set.add(name, by).map(drop),
            };
            of.written(done, &Advice::GiveUp).await?;
        }
        _ => {
            let detail = format!("the body says neither or both: {text}");
            return Err(Problem::bad_input("body", &text, bound, detail));
        }
    }
    Ok(report(&of))
}

/// Removes what was added to a counter, as far as it was seen here; additions not yet seen stay.
#[utoipa::path(
    delete, path = "/v1/counters/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`counter` (a new one), `grow_counter` or `resettable_counter`; default: the one it has"),
    ),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(in crate::routes) async fn remove_counter(
    of: Target<Counters>,
) -> Result<Json<RemovedReport>, Problem> {
    of.remove().await
}
