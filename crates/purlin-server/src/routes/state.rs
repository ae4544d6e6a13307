//! Counters, sets, maps, registers, switches and texts that every side of a cut may write.

mod body;
pub(super) mod counters;
pub(super) mod maps;
pub(super) mod registers;
pub(super) mod sets;
pub(super) mod switches;
mod target;
pub(super) mod texts;

use std::sync::Arc;

use axum::{
    Json,
    extract::State,
    http::{StatusCode, Uri},
    response::Response,
};
use purlin_replica::{
    Cell, Change, Kind, ReplicaSet, Splice, Wins,
    collection::{entry_of, is_in},
};

pub(super) use self::{
    body::{object, rest_of, shape, value, value_response, written_response},
    target::{Family, Target},
};
use super::watch::{cause, watch as stream};
use crate::{
    app::App,
    input::Params,
    problem::{Problem, ReadRefusals},
    shapes::{CatalogueReport, SpliceReport, StateChange, StateReport, ValueReport},
    state::{Page, entry, named, text_or_base64},
};

/// The most rows of a catalogue: each may cost a look at a thousand entries.
const CATALOGUE_MAX: u32 = 500;

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
    let (name, set) = set_of(&app, &uri, "/keys")?;
    let prefix = params.get("prefix").unwrap_or_default().as_bytes();
    let mut rows = set.catalogue(prefix, page.after.as_deref(), page.limit + 1);
    let next = page.cut(&mut rows, |row| &row.name, |row| row.name.len());
    let rows = rows.iter().map(|row| named(row, app.host.origins())).collect();
    Ok(Json(CatalogueReport { set: name.to_owned(), rows, next }))
}

/// The replica set named between `/v1/state/` and `end`.
fn set_of<'a>(app: &'a App, uri: &'a Uri, end: &str) -> Result<(&'a str, &'a ReplicaSet), Problem> {
    let path = uri.path().strip_prefix("/v1/state/").and_then(|path| path.strip_suffix(end));
    match path.expect("the router matched the path") {
        name @ "crdt" => Ok((name, app.host.crdt())),
        name @ "ephemeral" => Ok((name, app.host.ephemeral())),
        other => {
            let detail = format!("there is no set {other:?} to be looked through");
            let title = "There is nothing of that name";
            Err(Problem::new(StatusCode::NOT_FOUND, "absent", title, detail).about(
                "set",
                other,
                "crdt or ephemeral",
            ))
        }
    }
}

/// Changes of a replica set, as they happen: what changed, how, and where the change came from.
///
/// Events: `ready` once, then `change`, and `lag` where this reader was too slow and changes are
/// missing: read again then. Changes before `ready` are not told; read first, or after.
#[utoipa::path(
    get, path = "/v1/state/{set}/watch", tag = "state", security((), ("token" = [])),
    params(
        ("set" = String, Path, description = "`crdt` or `ephemeral`"),
        ("prefix" = Option<String>, Query, description = "Only names that begin with this"),
    ),
    responses(
        (status = 200, description = "Server-Sent Events", content_type = "text/event-stream", body = StateChange),
        ReadRefusals,
    ),
)]
pub(super) async fn watch(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["prefix"])?;
    let set = set_of(&app, &uri, "/watch")?.1.clone();
    let prefix = params.get("prefix").unwrap_or_default().to_owned();
    stream(app, &set, prefix, change_report)
}

fn change_report(app: &App, change: &Change) -> StateChange {
    let (name, of, key) = match entry_of(&change.key) {
        Some((name, kind, key)) => (name, Some(kind), Some(key)),
        None => (change.key.clone(), None, None),
    };
    let nothing = Cell::default();
    let before = change.before.as_ref().unwrap_or(&nothing);
    let now = change.now.as_ref().unwrap_or(&nothing);
    // What it is now comes first; of something that is gone, what it was.
    let held = of.or_else(|| now.kinds().chain(before.kinds()).next());
    let kind = held.unwrap_or(Kind::Register);
    let key_is_given = key.is_some();
    let ((name, name_base64), key) = (text_or_base64(&name), key.map(|key| text_or_base64(&key)));
    let (key, key_base64) = key.unwrap_or_default();
    let (cause, told_by) = cause(change);
    let report = StateChange {
        name,
        name_base64,
        key,
        key_base64,
        kind: kind.word().to_owned(),
        now: value_report(app, kind, key_is_given, now),
        by: None,
        splice: None,
        entries: Vec::new(),
        added: Vec::new(),
        removed: Vec::new(),
        writers: now.writers().into_iter().map(|tag| app.host.origins().name(tag)).collect(),
        cause,
        told_by,
    };
    match kind {
        Kind::Counter | Kind::GrowCounter | Kind::ResettableCounter => {
            let by = counters::count(now, kind).saturating_sub(counters::count(before, kind));
            StateChange { by: Some(by), ..report }
        }
        Kind::Text => {
            let text = |cell: &Cell| cell.text().map(ToString::to_string).unwrap_or_default();
            let Splice { at, delete, insert } = Splice::between(&text(before), &text(now));
            let splice = SpliceReport { at: at as u64, delete: delete as u64, insert };
            StateChange { splice: Some(splice), ..report }
        }
        Kind::Map if !key_is_given => {
            let (origins, wall) = (app.host.origins(), app.host.wall());
            let new = now.fields().filter(|(key, it)| before.field(key) != Some(it));
            let entries = new.map(|(key, it)| entry(key, it, origins, wall)).collect();
            let gone = before.fields().filter(|(key, _)| now.field(key).is_none());
            StateChange { entries, removed: gone.map(|(key, _)| listed(key)).collect(), ..report }
        }
        Kind::Set if !key_is_given => {
            let new = now.elements().filter(|one| !before.contains(one));
            let gone = before.elements().filter(|one| !now.contains(one));
            let (added, removed) = (new.map(listed).collect(), gone.map(listed).collect());
            StateChange { added, removed, ..report }
        }
        Kind::NestedMap => {
            let (origins, wall) = (app.host.origins(), app.host.wall());
            let path = target::path_text;
            let new = now.leaves().filter(|(at, it)| before.leaf(at) != Some(it));
            let entries = new.map(|(at, it)| entry(path(at).as_bytes(), it, origins, wall));
            let gone = before.leaves().filter(|(at, _)| now.leaf(at).is_none());
            let removed = gone.map(|(at, _)| path(at)).collect();
            StateChange { entries: entries.collect(), removed, ..report }
        }
        _ => report,
    }
}

/// Bytes in a list of texts.
fn listed(bytes: &bytes::Bytes) -> String {
    match text_or_base64(bytes) {
        (Some(text), _) => text,
        (None, coded) => format!("base64:{}", coded.unwrap_or_default()),
    }
}

/// What a cell holds of one kind; `None` for nothing. The cell of an entry says whether that is in.
fn value_report(app: &App, kind: Kind, is_entry: bool, cell: &Cell) -> Option<ValueReport> {
    let nothing = ValueReport::default();
    let held = if is_entry { is_in(cell) } else { cell.kinds().any(|held| held == kind) };
    if !held {
        return None;
    }
    Some(match kind {
        Kind::Map if !is_entry => nothing,
        Kind::Register | Kind::Map => {
            let written = cell.register()?;
            let (value, value_base64) = text_or_base64(&written.value);
            let hlc = Some(written.at.to_string());
            let origin = Some(app.host.origins().name(written.at.node()));
            ValueReport { value, value_base64, hlc, origin, ..nothing }
        }
        Kind::MultiValue => ValueReport { values: cell.values().map(listed).collect(), ..nothing },
        Kind::Counter | Kind::GrowCounter | Kind::ResettableCounter => {
            ValueReport { count: Some(counters::count(cell, kind)), ..nothing }
        }
        Kind::EnableWins => ValueReport { on: Some(cell.is_on(Wins::Enabling)), ..nothing },
        Kind::DisableWins => ValueReport { on: Some(cell.is_on(Wins::Disabling)), ..nothing },
        Kind::Text => ValueReport { chars: cell.text().map(|text| text.chars() as u64), ..nothing },
        Kind::Set | Kind::GrowSet | Kind::RemoveWinsSet | Kind::NestedMap => nothing,
    })
}
