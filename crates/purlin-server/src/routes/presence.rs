//! Who is present in which topic: said, listed and followed.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use purlin::dist::{CALM_FOR, Counts, Cursor, DistError, Event, Fed, Feed, FeedOptions};
use purlin_core::{Advice, Incarnation, Outcome};

use super::{
    events::place_of,
    follow::follow,
    names::{cursor, limit},
};
use crate::{
    app::{App, StreamPlace},
    input::{Params, decode_path, refuse_encoded, whole_body},
    problem::{Problem, ReadRefusals, WriteRefusals},
    shapes::{
        PresenceChange, PresenceCounts, PresenceDiff, PresenceEntry, PresencePage, PresenceReport,
        PresenceTopic, PresenceTracked, PresencesReport, RemovedReport,
    },
    sse::{self, Frames, Next, Source},
    state::absent,
    timeline::Place,
};

const PREFIX: &str = "/v1/presence/";

/// The shortest and longest lease, and the one if none is given.
const LEASE_MS: std::ops::RangeInclusive<u64> = 100..=24 * 3_600_000;
const LEASE_MS_DEFAULT: u64 = 30_000;

/// How many presences a page of a stream has; an `event` then fits into what proxies buffer.
const SYNC_PAGE: usize = 200;
/// How long leaves of a drained node may be held back.
const CALM_MS: std::ops::RangeInclusive<u64> = 0..=60_000;
/// How often counts are told.
const EVERY_MS: std::ops::RangeInclusive<u64> = 10..=60_000;
const EVERY_MS_DEFAULT: u64 = 100;

/// The most bytes of a body: metadata within its bound, with the JSON around it.
const BODY_BYTES_MAX: usize = 128 << 10;

/// Topics in which somebody is present, with how many.
#[utoipa::path(
    get, path = "/v1/presence", tag = "presence", security((), ("token" = [])),
    params(
        ("prefix" = Option<String>, Query, description = "Only topics that start with this; default: all"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000"),
    ),
    responses((status = 200, body = PresencesReport), ReadRefusals),
)]
pub(super) async fn topics(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<PresencesReport>, Problem> {
    let params = Params::read(&uri, &["prefix", "after", "limit"])?;
    let limit = limit(&params)?;
    let prefix = params.get("prefix").unwrap_or_default();
    let presence = app.host.dist().presence();
    let mut found = presence.topics(prefix, params.get("after"), limit + 1);
    let is_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| is_more).map(|(topic, _)| topic.to_string());
    let topics = found
        .into_iter()
        .map(|(topic, count)| PresenceTopic { topic: topic.to_string(), count: count as u64 })
        .collect();
    Ok(Json(PresencesReport { topics, next }))
}

/// Who is present in a topic, as the answering node knows it. A topic nobody is in is empty.
#[utoipa::path(
    get, path = "/v1/presence/{topic}", tag = "presence", security((), ("token" = [])),
    params(
        ("topic" = String, Path, description = "Slashes as %2F"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000"),
    ),
    responses((status = 200, body = PresenceReport), ReadRefusals),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<PresenceReport>, Problem> {
    let params = Params::read(&uri, &["after", "limit"])?;
    let raw = uri.path().strip_prefix(PREFIX).expect("the router matched the prefix");
    let topic = decode_path("topic", raw)?;
    let limit = limit(&params)?;
    let after = cursor(params.get("after"))?;
    let presence = app.host.dist().presence();
    let mut found = presence.list(&topic, after.as_ref(), limit + 1);
    let is_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| is_more).map(|last| Cursor::after(last).to_string());
    let entries = found.iter().map(|entry| PresenceEntry::from(&**entry)).collect();
    let count = presence.count(&topic) as u64;
    Ok(Json(PresenceReport { topic, count, entries, next }))
}

/// The presences of one key in a topic.
#[utoipa::path(
    get, path = "/v1/presence/{topic}/{key}", tag = "presence", security((), ("token" = [])),
    params(
        ("topic" = String, Path, description = "Slashes as %2F"),
        ("key" = String, Path, description = "Slashes as they are or as %2F"),
    ),
    responses((status = 200, body = PresenceReport), ReadRefusals),
)]
pub(super) async fn get(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<PresenceReport>, Problem> {
    Params::read(&uri, &[])?;
    let (topic, key) = topic_and_key(&uri)?;
    let presence = app.host.dist().presence();
    let found = presence.get(&topic, &key);
    if found.is_empty() {
        return Err(absent("key", &key));
    }
    let entries = found.iter().map(|entry| PresenceEntry::from(&**entry)).collect();
    let count = presence.count(&topic) as u64;
    Ok(Json(PresenceReport { topic, count, entries, next: None }))
}

/// Makes a key present in a topic for a while; made again before that is over, it stays.
///
/// The body is its metadata: a JSON object of texts, or nothing. The answering node keeps it: renew
/// it there. `session` tells apart several presences of one key, such as the devices of a user.
#[utoipa::path(
    put, path = "/v1/presence/{topic}/{key}", tag = "presence", security((), ("token" = [])),
    params(
        ("topic" = String, Path, description = "1 to 255 bytes; slashes as %2F"),
        ("key" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("session" = Option<String>, Query, description = "At most 255 bytes; default: the only one"),
        ("ttl_ms" = Option<u64>, Query, description = "100 to 86,400,000, default 30,000"),
    ),
    request_body(content = BTreeMap<String, String>, description = "At most 4 KiB of names and values", content_type = "application/json"),
    responses((status = 200, body = PresenceTracked), WriteRefusals),
)]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PresenceTracked>, Problem> {
    let params = Params::read(&uri, &["session", "ttl_ms"])?;
    let (topic, key) = topic_and_key(&uri)?;
    let ttl_ms = params.number("ttl_ms", &LEASE_MS)?.unwrap_or(LEASE_MS_DEFAULT);
    refuse_encoded(&headers)?;
    let body = whole_body("the metadata", body, BODY_BYTES_MAX, app.config.body_within).await?;
    let metadata: BTreeMap<String, String> = match body.is_empty() {
        true => BTreeMap::new(),
        false => serde_json::from_slice(&body).map_err(|error| {
            let bound = "a JSON object of texts";
            let detail = format!("the metadata is not {bound}: {error}");
            Problem::bad_input("body", &String::from_utf8_lossy(&body), bound, detail)
        })?,
    };
    let (session, lease) =
        (params.get("session").unwrap_or_default(), Duration::from_millis(ttl_ms));
    let metadata = metadata.into_iter().collect();
    let presence = app.host.dist().presence();
    let entry =
        presence.lease(&topic, &key, session, metadata, lease).map_err(|it| refused(&it))?;
    Ok(Json(PresenceTracked { entry: PresenceEntry::from(&*entry), expires_in_ms: ttl_ms }))
}

/// Ends the presence of a key in a topic that the answering node keeps for a session.
#[utoipa::path(
    delete, path = "/v1/presence/{topic}/{key}", tag = "presence", security((), ("token" = [])),
    params(
        ("topic" = String, Path, description = "Slashes as %2F"),
        ("key" = String, Path, description = "Slashes as they are or as %2F"),
        ("session" = Option<String>, Query, description = "As it was given; default: the only one"),
    ),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<RemovedReport>, Problem> {
    let params = Params::read(&uri, &["session"])?;
    let (topic, key) = topic_and_key(&uri)?;
    let session = params.get("session").unwrap_or_default();
    let removed = app.host.dist().presence().release(&topic, &key, session);
    Ok(Json(RemovedReport { removed }))
}

/// Who comes and goes in a topic, as it happens; see `/v1/registry-watch`.
#[utoipa::path(
    get, path = "/v1/presence-watch", tag = "presence", security((), ("token" = [])),
    params(
        ("topic" = String, Query, description = "The topic"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event seen"),
    ),
    responses(
        (status = 200, description = "Server-Sent Events", content_type = "text/event-stream", body = PresenceChange),
        ReadRefusals,
    ),
)]
pub(super) async fn watch(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["topic"])?;
    let topic = topic_of(&params)?;
    let presence = app.host.dist().presence();
    let revision = presence.revision();
    follow(&app, &headers, revision..=revision, |after| presence.watch(topic, after), write)
}

/// A copy of a topic: everybody in it in `page` events, and then what changes in `diff` events.
///
/// Diffs come between the pages too; none is missed. An id says where the copy stands: a reader that
/// comes back to the same node with `Last-Event-ID` gets what followed, or a `first` page when that
/// is no longer remembered, or after it went to another node. Leaves of a node that was drained are
/// held back for a moment, in which their clients connect elsewhere.
#[utoipa::path(
    get, path = "/v1/presence-sync", tag = "presence", security((), ("token" = [])),
    params(
        ("topic" = String, Query, description = "The topic"),
        ("calm_ms" = Option<u64>, Query, description = "How long leaves of a drained node are held back: 0 to 60,000, default 5,000"),
        ("Last-Event-ID" = Option<String>, Header, description = "The last id seen"),
    ),
    responses(
        (status = 200, description = "Server-Sent Events", content_type = "text/event-stream", body = PresencePage),
        ReadRefusals,
    ),
)]
pub(super) async fn sync(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["topic", "calm_ms"])?;
    let topic = topic_of(&params)?;
    let calm_for = params.number("calm_ms", &CALM_MS)?.map_or(CALM_FOR, Duration::from_millis);
    let after = after_of(&app, &headers)?;
    let place = app.stream_place()?;
    let options = FeedOptions { page: SYNC_PAGE, calm_for };
    let feed = app.host.dist().presence().feed(topic, after, options);
    let (me, closing) = (app.host.id().incarnation, app.closing.clone());
    Ok(sse::respond(Syncing { feed, me, _place: place }, closing))
}

/// One reader's copy of a topic.
struct Syncing {
    feed: Feed,
    me: Incarnation,
    _place: StreamPlace,
}

impl Syncing {
    fn write(&self, frames: &mut Frames, fed: &Fed) {
        let id = self.feed.place().map(|place| format!("{}.{place}", self.me));
        match fed {
            Fed::Page(page) => frames.json("page", id.as_deref(), &PresencePage::from(page)),
            Fed::Diff(diff) => frames.json("diff", id.as_deref(), &PresenceDiff::from(diff)),
        }
    }
}

impl Source for Syncing {
    async fn fill(&mut self, frames: &mut Frames) -> Next {
        let fed = self.feed.next().await;
        self.write(frames, &fed);
        while !frames.is_full()
            && let Some(fed) = self.feed.try_next()
        {
            self.write(frames, &fed);
        }
        Next::More
    }
}

/// How many are in each topic that starts with `prefix`, and on which nodes: all of them first, then
/// those where it changes. Whoever wants the numbers is not sent the rows.
///
/// A reader that comes back to the same node with `Last-Event-ID` gets the topics that have changed
/// since.
#[utoipa::path(
    get, path = "/v1/presence-counts", tag = "presence", security((), ("token" = [])),
    params(
        ("prefix" = Option<String>, Query, description = "Only topics that start with this; default: all"),
        ("every_ms" = Option<u64>, Query, description = "Changes are told at most this often: 10 to 60,000, default 100"),
        ("Last-Event-ID" = Option<String>, Header, description = "The last id seen"),
    ),
    responses(
        (status = 200, description = "Server-Sent Events", content_type = "text/event-stream", body = PresenceCounts),
        ReadRefusals,
    ),
)]
pub(super) async fn counts(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["prefix", "every_ms"])?;
    let prefix = params.get("prefix").unwrap_or_default();
    let every_ms = params.number("every_ms", &EVERY_MS)?.unwrap_or(EVERY_MS_DEFAULT);
    let after = after_of(&app, &headers)?;
    let place = app.stream_place()?;
    let every = Duration::from_millis(every_ms);
    let counts = app.host.dist().presence().watch_counts(prefix, after, every);
    let (me, closing) = (app.host.id().incarnation, app.closing.clone());
    Ok(sse::respond(Counting { counts, me, _place: place }, closing))
}

/// One reader of numbers.
struct Counting {
    counts: Counts,
    me: Incarnation,
    _place: StreamPlace,
}

impl Source for Counting {
    async fn fill(&mut self, frames: &mut Frames) -> Next {
        let counted = self.counts.next().await;
        let id = self.counts.place().map(|place| format!("{}.{place}", self.me));
        frames.json("counts", id.as_deref(), &PresenceCounts::from(&counted));
        Next::More
    }
}

/// Where a reader goes on; nowhere when it is new, or when this node's life is another.
fn after_of(app: &App, headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    Ok(match place_of(app, headers)? {
        Place::After(seq) => Some(seq),
        Place::Start | Place::OtherLife => None,
    })
}

fn topic_of(params: &Params) -> Result<&str, Problem> {
    params.get("topic").ok_or_else(|| {
        let detail = "query parameter \"topic\" says whose presences to watch";
        Problem::bad_input("topic", "", "a topic", detail)
    })
}

fn write(frames: &mut Frames, id: &str, event: &Event) {
    frames.json("change", Some(id), &PresenceChange::from(event));
}

fn topic_and_key(uri: &Uri) -> Result<(String, String), Problem> {
    let raw = uri.path().strip_prefix(PREFIX).expect("the router matched the prefix");
    let (topic, key) = raw.split_once('/').expect("the router matched two segments");
    Ok((decode_path("topic", topic)?, decode_path("key", key)?))
}

fn refused(error: &DistError) -> Problem {
    let problem = match error {
        DistError::TooMany { .. } => Problem::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "too_many_presences",
            "This node keeps as many presences as it may",
            error.to_string(),
        ),
        DistError::TooManyOfKey { .. } => Problem::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "too_many_presences_of_key",
            "This key has as many presences in this topic as it may",
            error.to_string(),
        ),
        DistError::State(_) => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not_now",
            "This node cannot write it now",
            error.to_string(),
        ),
        _ => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad_input",
            "An input has a value this route cannot use",
            error.to_string(),
        ),
    };
    let advice = match error {
        DistError::TooMany { .. } => Advice::RetryElsewhere(None),
        error => error.advice(),
    };
    problem.ended(Outcome::NotDone, &advice)
}
