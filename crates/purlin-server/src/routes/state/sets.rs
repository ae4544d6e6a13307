//! Sets, an element a key of its own.

use axum::Json;
use bytes::Bytes;
use purlin_core::Advice;
use purlin_replica::{Kind, Set};

use super::{Family, Target};
use crate::{
    problem::{Problem, ReadRefusals, WriteRefusals},
    shapes::{ElementReport, RemovedReport, SetReport},
    state::{absent, refused, text_or_base64},
};

#[derive(Debug)]
pub(in crate::routes) struct Sets;

impl Family for Sets {
    const PREFIX: &'static str = "/v1/sets/";
    const KINDS: &'static [Kind] = &[Kind::Set, Kind::GrowSet, Kind::RemoveWinsSet];
    const HAS_ENTRIES: bool = true;
}

impl Target<Sets> {
    fn elements(&self) -> Result<Set, Problem> {
        let set = match self.kind {
            Kind::GrowSet => self.set().grow_set(&self.name),
            Kind::RemoveWinsSet => self.set().remove_wins_set(&self.name),
            _ => self.set().set(&self.name),
        };
        set.map_err(|error| refused(&error))
    }

    fn report(&self, element: String) -> Json<ElementReport> {
        Json(ElementReport { name: self.name.clone(), kind: self.word(), element, present: true })
    }
}

/// The elements of a set in order, a page at a time. A set that nobody added to is empty.
#[utoipa::path(
    get, path = "/v1/sets/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "One segment; slashes in it as %2F"),
        ("type" = Option<String>, Query, description = "`set` (a new one; an add wins), `grow_set` or `remove_wins_set`; default: the one it has"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000; a page also ends at 4 MiB"),
    ),
    responses((status = 200, body = SetReport), ReadRefusals),
)]
pub(in crate::routes) async fn set(of: Target<Sets>) -> Result<Json<SetReport>, Problem> {
    let page = of.page()?;
    let mut found = of.elements()?.elements(page.after.as_deref(), page.limit + 1);
    let next = page.cut(&mut found, |element| element, Bytes::len);
    let (text, other) =
        found.into_iter().map(|element| text_or_base64(&element)).unzip::<_, _, Vec<_>, Vec<_>>();
    Ok(Json(SetReport {
        kind: of.word(),
        name: of.name,
        elements: text.into_iter().flatten().collect(),
        elements_base64: other.into_iter().flatten().collect(),
        next,
    }))
}

/// Removes every element of a set that was seen here; what others add meanwhile stays. Nothing is
/// removed from a `grow_set`.
#[utoipa::path(
    delete, path = "/v1/sets/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "One segment; slashes in it as %2F"),
        ("type" = Option<String>, Query, description = "`set` (a new one; an add wins), `grow_set` or `remove_wins_set`; default: the one it has"),
    ),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(in crate::routes) async fn remove_set(
    of: Target<Sets>,
) -> Result<Json<RemovedReport>, Problem> {
    of.removed(of.elements()?.clear().map(|count| count > 0)).await
}

/// Whether an element is in a set: 404 if it is not.
#[utoipa::path(
    get, path = "/v1/sets/{name}/{element}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "One segment; slashes in it as %2F"),
        ("element" = String, Path, description = "Slashes as they are or as %2F; with the name at most 1,022 bytes"),
        ("type" = Option<String>, Query, description = "`set` (a new one; an add wins), `grow_set` or `remove_wins_set`; default: the one it has"),
    ),
    responses((status = 200, body = ElementReport), ReadRefusals),
)]
pub(in crate::routes) async fn element(of: Target<Sets>) -> Result<Json<ElementReport>, Problem> {
    let element = of.entry()?;
    if of.elements()?.contains(&element) {
        Ok(of.report(element))
    } else {
        Err(absent("element", &element))
    }
}

/// Adds an element to a set. In a `set` the add wins over a removal that did not know of it, in a
/// `remove_wins_set` the removal.
#[utoipa::path(
    put, path = "/v1/sets/{name}/{element}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "One segment; slashes in it as %2F"),
        ("element" = String, Path, description = "Slashes as they are or as %2F; with the name at most 1,022 bytes"),
        ("type" = Option<String>, Query, description = "`set` (a new one; an add wins), `grow_set` or `remove_wins_set`; default: the one it has"),
    ),
    responses((status = 200, body = ElementReport), WriteRefusals),
)]
pub(in crate::routes) async fn insert(of: Target<Sets>) -> Result<Json<ElementReport>, Problem> {
    let element = of.entry()?;
    of.written(of.elements()?.insert(&element), &Advice::Retry).await?;
    Ok(of.report(element))
}

/// Removes an element of a set, as far as its adds were seen here; in a `remove_wins_set` also
/// where it is on its way.
#[utoipa::path(
    delete, path = "/v1/sets/{name}/{element}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "One segment; slashes in it as %2F"),
        ("element" = String, Path, description = "Slashes as they are or as %2F; with the name at most 1,022 bytes"),
        ("type" = Option<String>, Query, description = "`set` (a new one; an add wins), `grow_set` or `remove_wins_set`; default: the one it has"),
    ),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(in crate::routes) async fn remove_element(
    of: Target<Sets>,
) -> Result<Json<RemovedReport>, Problem> {
    of.removed(of.elements()?.remove(of.entry()?)).await
}
