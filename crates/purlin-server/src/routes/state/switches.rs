//! Switches: on or off, with a chosen winner between concurrent changes.

use axum::{Json, body::Body, http::HeaderMap};
use purlin_core::Advice;
use purlin_replica::{Kind, Wins};

use super::{
    Family, Target,
    body::{object, shape},
};
use crate::{
    problem::{Problem, ReadRefusals, WriteRefusals},
    shapes::{RemovedReport, SwitchReport, SwitchRequest},
};

#[derive(Debug)]
pub(in crate::routes) struct Switches;

impl Family for Switches {
    const PREFIX: &'static str = "/v1/switches/";
    const KINDS: &'static [Kind] = &[Kind::EnableWins, Kind::DisableWins];
}

impl Target<Switches> {
    fn wins(&self) -> Wins {
        if self.kind == Kind::DisableWins { Wins::Disabling } else { Wins::Enabling }
    }

    fn report(&self) -> Json<SwitchReport> {
        let on = self.set().get(self.name.as_bytes()).is_some_and(|it| it.is_on(self.wins()));
        Json(SwitchReport { name: self.name.clone(), kind: self.word(), on })
    }
}

/// Whether a switch is on here. One that nobody touched is off.
#[utoipa::path(
    get, path = "/v1/switches/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`enable_wins` (a new one) or `disable_wins`: what holds when both happen on two sides of a cut; default: the one it has"),
    ),
    responses((status = 200, body = SwitchReport), ReadRefusals),
)]
pub(in crate::routes) async fn switch(of: Target<Switches>) -> Json<SwitchReport> {
    of.report()
}

/// Turns a switch on or off.
#[utoipa::path(
    put, path = "/v1/switches/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`enable_wins` (a new one) or `disable_wins`: what holds when both happen on two sides of a cut; default: the one it has"),
    ),
    request_body(content = SwitchRequest, content_type = "application/json"),
    responses((status = 200, body = SwitchReport), WriteRefusals),
)]
pub(in crate::routes) async fn put_switch(
    of: Target<Switches>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SwitchReport>, Problem> {
    let body = object(&of.app, &headers, body).await?;
    let SwitchRequest { on } = shape(body, "{\"on\": true or false}")?;
    of.written(of.set().switch(of.name.clone(), of.wins(), on), &Advice::Retry).await?;
    Ok(of.report())
}

/// Removes a switch, as far as its changes were seen here: it is off then, of no kind.
#[utoipa::path(
    delete, path = "/v1/switches/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`enable_wins` (a new one) or `disable_wins`: what holds when both happen on two sides of a cut; default: the one it has"),
    ),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(in crate::routes) async fn remove_switch(
    of: Target<Switches>,
) -> Result<Json<RemovedReport>, Problem> {
    of.remove().await
}
