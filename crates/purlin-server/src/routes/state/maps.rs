//! Maps, and maps in maps.

use axum::{Json, body::Body, http::HeaderMap, response::Response};
use bytes::Bytes;
use purlin_core::Advice;
use purlin_replica::{Kind, Map, Written};

use super::{
    Family, Target,
    body::{value, value_response, written_response},
    target::{path_of, path_text},
};
use crate::{
    problem::{Problem, ReadRefusals, WriteRefusals},
    shapes::{MapReport, RemovedReport, WrittenReport},
    state::{Page, absent, entry, pair_key, refused},
};

#[derive(Debug)]
pub(in crate::routes) struct Maps;

impl Family for Maps {
    const PREFIX: &'static str = "/v1/maps/";
    const KINDS: &'static [Kind] = &[Kind::Map, Kind::NestedMap];
    const HAS_ENTRIES: bool = true;
}

impl Target<Maps> {
    fn map(&self) -> Result<Map, Problem> {
        self.set().map(&self.name).map_err(|error| refused(&error))
    }

    fn is_nested(&self) -> bool {
        self.kind == Kind::NestedMap
    }

    /// The values of a nested map with their paths as texts, from the page's place on.
    fn leaves(&self, page: &Page) -> Result<Vec<(Bytes, Written)>, Problem> {
        let after = match &page.after {
            Some(after) => path_of(&String::from_utf8_lossy(after))?,
            None => Vec::new(),
        };
        let cell = self.set().get(self.name.as_bytes()).unwrap_or_default();
        let rest = cell.leaves().filter(|(path, _)| **path > after).take(page.limit + 1);
        Ok(rest.map(|(path, it)| (path_text(path).into(), it.clone())).collect())
    }
}

/// The entries of a map in key order, a page at a time, with who wrote each and when. A map that
/// nobody wrote to is empty.
#[utoipa::path(
    get, path = "/v1/maps/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "One segment; slashes in it as %2F"),
        ("type" = Option<String>, Query, description = "`map` (a new one; of any size) or `nested_map` (maps in maps, 1 MiB together); default: the one it has"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000; a page also ends at 4 MiB"),
    ),
    responses((status = 200, body = MapReport), ReadRefusals),
)]
pub(in crate::routes) async fn map(of: Target<Maps>) -> Result<Json<MapReport>, Problem> {
    let page = of.page()?;
    let mut found = if of.is_nested() {
        of.leaves(&page)?
    } else {
        of.map()?.entries(page.after.as_deref(), page.limit + 1)
    };
    let next = page.cut(&mut found, pair_key, |(key, written)| key.len() + written.value.len());
    let (origins, now) = (of.app.host.origins(), of.app.host.wall());
    let entries = found.iter().map(|(key, it)| entry(key, it, origins, now)).collect();
    Ok(Json(MapReport { kind: of.word(), name: of.name, entries, next }))
}

/// Removes every entry of a map that was seen here; what others write meanwhile stays.
#[utoipa::path(
    delete, path = "/v1/maps/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "One segment; slashes in it as %2F"),
        ("type" = Option<String>, Query, description = "`map` (a new one; of any size) or `nested_map` (maps in maps, 1 MiB together); default: the one it has"),
    ),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(in crate::routes) async fn remove_map(
    of: Target<Maps>,
) -> Result<Json<RemovedReport>, Problem> {
    if of.is_nested() {
        return of.remove().await;
    }
    of.removed(of.map()?.clear().map(|count| count > 0)).await
}

/// The value of a key of a map, raw, with `Purlin-Version` and `Purlin-Origin`.
#[utoipa::path(
    get, path = "/v1/maps/{name}/{key}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "One segment; slashes in it as %2F"),
        ("key" = String, Path, description = "Slashes as they are or as %2F; with the name at most 1,022 bytes. In a `nested_map` the path: slashes divide its keys, and stand in them as %2F"),
        ("type" = Option<String>, Query, description = "`map` (a new one; of any size) or `nested_map` (maps in maps, 1 MiB together); default: the one it has"),
    ),
    responses((status = 200, description = "The value", content_type = "application/octet-stream", body = Vec<u8>), ReadRefusals),
)]
pub(in crate::routes) async fn field(of: Target<Maps>) -> Result<Response, Problem> {
    let key = of.entry()?;
    let written = if of.is_nested() {
        let cell = of.set().get(of.name.as_bytes()).unwrap_or_default();
        cell.leaf(&of.path()?).cloned()
    } else {
        of.map()?.get(&key)
    };
    Ok(value_response(&of.app, &written.ok_or_else(|| absent("key", &key))?))
}

/// Writes a key of a map: the body is the value. Wins over a removal that did not know of it; of two
/// concurrent writes the later by hybrid time holds. In a `nested_map` it takes the place of a value
/// or map seen there.
#[utoipa::path(
    put, path = "/v1/maps/{name}/{key}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "One segment; slashes in it as %2F"),
        ("key" = String, Path, description = "Slashes as they are or as %2F; with the name at most 1,022 bytes. In a `nested_map` the path: slashes divide its keys, and stand in them as %2F"),
        ("type" = Option<String>, Query, description = "`map` (a new one; of any size) or `nested_map` (maps in maps, 1 MiB together); default: the one it has"),
    ),
    request_body(content = Vec<u8>, description = "At most 1 MiB", content_type = "application/octet-stream"),
    responses((status = 200, body = WrittenReport), WriteRefusals),
)]
pub(in crate::routes) async fn put_field(
    of: Target<Maps>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let value = value(&of.app, &headers, body).await?;
    let done = if of.is_nested() {
        of.set().put_at(of.name.clone(), of.path()?, value)
    } else {
        of.map()?.put(of.entry()?, value)
    };
    Ok(written_response(of.written(done, &Advice::Retry).await?))
}

/// Removes a key of a map, as far as its writes were seen here; of a `nested_map` a value, or a
/// whole map.
#[utoipa::path(
    delete, path = "/v1/maps/{name}/{key}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "One segment; slashes in it as %2F"),
        ("key" = String, Path, description = "Slashes as they are or as %2F; with the name at most 1,022 bytes. In a `nested_map` the path: slashes divide its keys, and stand in them as %2F"),
        ("type" = Option<String>, Query, description = "`map` (a new one; of any size) or `nested_map` (maps in maps, 1 MiB together); default: the one it has"),
    ),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(in crate::routes) async fn remove_field(
    of: Target<Maps>,
) -> Result<Json<RemovedReport>, Problem> {
    let done = if of.is_nested() {
        of.set().remove_at(of.name.clone(), of.path()?)
    } else {
        of.map()?.remove(of.entry()?)
    };
    of.removed(done).await
}
