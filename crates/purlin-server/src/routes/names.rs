//! Names and groups of processes: listed, found and followed.

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{HeaderMap, Uri},
    response::Response,
};
use purlin::dist::{Cursor, DistError, Event, Groups, Registry};

use super::{follow::follow, state::rest_of};
use crate::{
    app::App,
    input::Params,
    problem::{Problem, ReadRefusals},
    shapes::{
        GroupMember, GroupMembersReport, GroupReport, GroupsReport, NameChange, RegistryEntry,
        RegistryReport, ScopesReport,
    },
    sse::Frames,
    state::absent,
};

/// The most entries of one page, and how many it has by default.
const PAGE_MAX: usize = 10_000;
const PAGE: usize = 1_000;

/// How far back a reader who has seen nothing may begin.
const RECENT_MAX: u64 = 10_000;

const REGISTRY: &str = "/v1/registry/";
const GROUPS: &str = "/v1/groups/";

/// Names of processes in the cluster that start with `prefix`, as the answering node knows them.
///
/// `shared=true` lists processes under keys that several may share; `local=true` the names that
/// only the answering node knows.
#[utoipa::path(
    get, path = "/v1/registry", tag = "names", security((), ("token" = [])),
    params(
        ("prefix" = Option<String>, Query, description = "Only names that start with this; default: all"),
        ("scope" = Option<String>, Query, description = "Names of this scope; default `default`"),
        ("shared" = Option<bool>, Query, description = "`true`: shared keys instead of unique names"),
        ("local" = Option<bool>, Query, description = "`true`: names and keys that only the answering node knows, at most 10,000"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000"),
    ),
    responses((status = 200, body = RegistryReport), ReadRefusals),
)]
pub(super) async fn registry(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<RegistryReport>, Problem> {
    let known = ["prefix", "scope", "shared", "local", "after", "limit"];
    let params = Params::read(&uri, &known)?;
    let prefix = params.get("prefix").unwrap_or_default();
    if params.flag("local")?.unwrap_or(false) {
        if let Some(other) = ["scope", "shared", "after", "limit"]
            .into_iter()
            .find(|name| params.get(name).is_some())
        {
            let detail = format!("local=true lists everything of this node; {other} is not for it");
            return Err(Problem::bad_input(other, "given", "no local=true", detail));
        }
        return Ok(Json(app.host.local_registry(prefix)));
    }
    let registry = names_of(&app, &params)?;
    let limit = limit(&params)?;
    let after = params.get("after");
    let is_shared = params.flag("shared")?.unwrap_or(false);
    let mut found = if is_shared {
        registry.scan_shared(prefix, cursor(after)?.as_ref(), limit + 1)
    } else {
        registry.scan(prefix, after, limit + 1)
    };
    let truncated = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| truncated).map(|last| match is_shared {
        true => Cursor::after(last).to_string(),
        false => last.key.to_string(),
    });
    Ok(Json(RegistryReport {
        node: app.host.id().name.to_string(),
        scope: Some(registry.scope_name().to_owned()),
        entries: found.iter().map(|entry| RegistryEntry::from(&**entry)).collect(),
        truncated,
        next,
    }))
}

/// The scopes that hold names, by name.
#[utoipa::path(
    get, path = "/v1/registry-scopes", tag = "names", security((), ("token" = [])),
    params(
        ("prefix" = Option<String>, Query, description = "Only scopes that start with this; default: all"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000"),
    ),
    responses((status = 200, body = ScopesReport), ReadRefusals),
)]
pub(super) async fn scopes(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<ScopesReport>, Problem> {
    let params = Params::read(&uri, &["prefix", "after", "limit"])?;
    let limit = limit(&params)?;
    let prefix = params.get("prefix").unwrap_or_default();
    let mut found = app.host.dist().registry().scopes(prefix, params.get("after"), limit + 1);
    let is_more = found.len() > limit;
    found.truncate(limit);
    let scopes: Vec<String> = found.iter().map(ToString::to_string).collect();
    Ok(Json(ScopesReport { next: scopes.last().filter(|_| is_more).cloned(), scopes }))
}

/// The process that has a name, as the answering node knows it.
#[utoipa::path(
    get, path = "/v1/registry/{name}", tag = "names", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "Slashes as they are or as %2F"),
        ("scope" = Option<String>, Query, description = "A name of this scope; default `default`"),
    ),
    responses(
        (status = 200, body = RegistryEntry),
        (status = 404, description = "Nobody has it", body = crate::problem::ProblemDocument, content_type = "application/problem+json"),
        ReadRefusals,
    ),
)]
pub(super) async fn name(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<RegistryEntry>, Problem> {
    let params = Params::read(&uri, &["scope"])?;
    let name = rest_of(&uri, REGISTRY)?;
    let found = names_of(&app, &params)?.lookup(&name);
    found.map(|entry| Json(RegistryEntry::from(&*entry))).ok_or_else(|| absent("name", &name))
}

/// Changes of names and shared keys, as they happen.
///
/// Events: `ready` once, then `change` with an id. A reader that comes back with `Last-Event-ID`
/// gets exactly what followed, after a `gap` event if the node no longer has it all: list again
/// then. Changes before the first `ready` are not told unless `recent` asks for some; list after it.
#[utoipa::path(
    get, path = "/v1/registry-watch", tag = "names", security((), ("token" = [])),
    params(
        ("prefix" = Option<String>, Query, description = "Only names that start with this"),
        ("scope" = Option<String>, Query, description = "Names of this scope; default `default`"),
        ("recent" = Option<u64>, Query, description = "How many of the latest changes, of all scopes, are looked through first when no id is given; 0 to 10,000, default 0"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event seen"),
    ),
    responses(
        (status = 200, description = "Server-Sent Events", content_type = "text/event-stream", body = NameChange),
        ReadRefusals,
    ),
)]
pub(super) async fn watch_registry(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["prefix", "scope", "recent"])?;
    let registry = names_of(&app, &params)?;
    let prefix = params.get("prefix").unwrap_or_default();
    let watch = |after| registry.watch(prefix, after);
    let recent = params.number("recent", &(0..=RECENT_MAX))?.unwrap_or(0);
    let begin = registry.revision().saturating_sub(recent);
    follow(&app, &headers, begin..=registry.revision(), watch, write_name)
}

/// Groups of processes whose names start with `prefix`, as the answering node knows them.
#[utoipa::path(
    get, path = "/v1/groups", tag = "names", security((), ("token" = [])),
    params(
        ("prefix" = Option<String>, Query, description = "Only groups that start with this; default: all"),
        ("scope" = Option<String>, Query, description = "Groups of this scope; default `default`"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000"),
    ),
    responses((status = 200, body = GroupsReport), ReadRefusals),
)]
pub(super) async fn groups(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<GroupsReport>, Problem> {
    let params = Params::read(&uri, &["prefix", "scope", "after", "limit"])?;
    let groups = groups_of(&app, &params)?;
    let limit = limit(&params)?;
    let prefix = params.get("prefix").unwrap_or_default();
    let mut found = groups.list(prefix, params.get("after"), limit + 1);
    let is_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| is_more).map(|(name, _)| name.to_string());
    let groups_found = found
        .into_iter()
        .map(|(name, members)| GroupReport { name: name.to_string(), members: members as u64 })
        .collect();
    let scope = groups.scope_name().to_owned();
    Ok(Json(GroupsReport { scope, groups: groups_found, next }))
}

/// The members of a group, as the answering node knows them. A group nobody is in has none.
#[utoipa::path(
    get, path = "/v1/groups/{group}", tag = "names", security((), ("token" = [])),
    params(
        ("group" = String, Path, description = "Slashes as they are or as %2F"),
        ("scope" = Option<String>, Query, description = "A group of this scope; default `default`"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000"),
    ),
    responses((status = 200, body = GroupMembersReport), ReadRefusals),
)]
pub(super) async fn members(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<GroupMembersReport>, Problem> {
    let params = Params::read(&uri, &["scope", "after", "limit"])?;
    let name = rest_of(&uri, GROUPS)?;
    let groups = groups_of(&app, &params)?;
    let limit = limit(&params)?;
    let after = cursor(params.get("after"))?;
    let mut found = groups.page(&name, after.as_ref(), limit + 1);
    let is_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| is_more).map(|last| Cursor::after(last).to_string());
    let members = found.iter().map(|entry| GroupMember::from(&**entry)).collect();
    let count = groups.count(&name) as u64;
    Ok(Json(GroupMembersReport { name, count, members, next }))
}

/// Who joins and leaves groups, as it happens; see `/v1/registry-watch`.
#[utoipa::path(
    get, path = "/v1/groups-watch", tag = "names", security((), ("token" = [])),
    params(
        ("prefix" = Option<String>, Query, description = "Only groups that start with this"),
        ("scope" = Option<String>, Query, description = "Groups of this scope; default `default`"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event seen"),
    ),
    responses(
        (status = 200, description = "Server-Sent Events", content_type = "text/event-stream", body = NameChange),
        ReadRefusals,
    ),
)]
pub(super) async fn watch_groups(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["prefix", "scope"])?;
    let groups = groups_of(&app, &params)?;
    let prefix = params.get("prefix").unwrap_or_default();
    let watch = |after| groups.watch(prefix, after);
    let revision = groups.revision();
    follow(&app, &headers, revision..=revision, watch, write_name)
}

fn names_of(app: &App, params: &Params) -> Result<Registry, Problem> {
    let registry = app.host.dist().registry();
    let scope = params.get("scope").unwrap_or_else(|| registry.scope_name());
    registry.scope(scope).map_err(|error| refused(scope, &error))
}

fn groups_of(app: &App, params: &Params) -> Result<Groups, Problem> {
    let groups = app.host.dist().groups();
    let scope = params.get("scope").unwrap_or_else(|| groups.scope_name());
    groups.scope(scope).map_err(|error| refused(scope, &error))
}

/// A reader can only get the scope wrong.
fn refused(scope: &str, error: &DistError) -> Problem {
    let bound = "1 to 255 bytes without a zero byte, and of a scope that may be opened";
    Problem::bad_input("scope", scope, bound, error.to_string())
        .ended(error.outcome(), &error.advice())
}

pub(super) fn limit(params: &Params) -> Result<usize, Problem> {
    Ok(params.number("limit", &(1..=PAGE_MAX))?.unwrap_or(PAGE))
}

pub(super) fn cursor(after: Option<&str>) -> Result<Option<Cursor>, Problem> {
    let parse = |text: &str| {
        text.parse::<Cursor>().map_err(|error| {
            Problem::bad_input("after", text, "the `next` of a page", error.to_string())
        })
    };
    after.map(parse).transpose()
}

fn write_name(frames: &mut Frames, id: &str, event: &Event) {
    frames.json("change", Some(id), &NameChange::from(event));
}
