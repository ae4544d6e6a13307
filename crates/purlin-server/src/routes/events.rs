//! What happens, as it happens.

use std::sync::Arc;

use crate::{
    app::{App, StreamPlace},
    input::Params,
    live::LiveSource,
    problem::{Problem, ProblemDocument},
    shapes::End,
    sse::{self, Frames, Next, Source},
    timeline::{Place, TimelineReader},
};
use axum::{
    extract::State,
    http::{HeaderMap, HeaderName, Uri},
    response::Response,
};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// What this node saw happen, oldest first, then as it happens.
///
/// Each event is named by its `kind` and carries an id; a reader that comes back with
/// `Last-Event-ID` gets exactly what followed, after a `gap` event if the node no longer has it all.
#[utoipa::path(
    get, path = "/v1/events", tag = "cluster", security((), ("token" = [])),
    params(
        ("follow" = Option<bool>, Query, description = "`false`: end after what is remembered; default true"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last event seen"),
    ),
    responses(
        (status = 200, description = "Server-Sent Events", content_type = "text/event-stream", body = crate::shapes::EventReport),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "Too many streams", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn events(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["follow"])?;
    let follow = params.flag("follow")?.unwrap_or(true);
    let place = app.stream_place()?;
    let reader = reader(&app, &headers)?;
    Ok(sse::respond(EventSource { reader, follow, _place: place }, app.closing.clone()))
}

/// Everything a console shows, in one stream: `node`, `members`, `links`, `topics` and `state` whenever
/// they change (at most once a second), `flags` when flags changed, and `event` for each event of `/v1/events`, with its id.
///
/// The node samples only while somebody reads this.
#[utoipa::path(
    get, path = "/v1/live", tag = "console", security((), ("token" = [])),
    params(("Last-Event-ID" = Option<String>, Header, description = "The id of the last `event` seen")),
    responses(
        (status = 200, description = "Server-Sent Events", content_type = "text/event-stream", body = String),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "Too many streams", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn live(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    Params::read(&uri, &[])?;
    let place = app.stream_place()?;
    let reader = reader(&app, &headers)?;
    Ok(sse::respond(LiveSource::new(&app, reader, place), app.closing.clone()))
}

fn reader(app: &App, headers: &HeaderMap) -> Result<TimelineReader, Problem> {
    let me = app.host.id().incarnation;
    let place = place_of(app, headers)?;
    Ok(TimelineReader::new(app.host.events_after(place.seq()), me, place))
}

/// Where a reader goes on that comes back with the id of the last event it saw.
pub(super) fn place_of(app: &App, headers: &HeaderMap) -> Result<Place, Problem> {
    let me = app.host.id().incarnation;
    match headers.get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or("(not text)")) {
        None | Some("") => Ok(Place::Start),
        Some(id) => Place::parse(id, me).ok_or_else(|| {
            let detail = format!("last-event-id of {id:?} is no id this node gives");
            Problem::bad_input("last-event-id", id, "INCARNATION.SEQ as in an event's id", detail)
        }),
    }
}

struct EventSource {
    reader: TimelineReader,
    follow: bool,
    _place: StreamPlace,
}

impl Source for EventSource {
    async fn fill(&mut self, frames: &mut Frames) -> Next {
        loop {
            self.reader.write(frames, None);
            if !self.follow && !frames.is_full() {
                return Next::Ended(End::finished());
            }
            if !frames.is_empty() {
                return Next::More;
            }
            let next = self.reader.next().await;
            self.reader.write_one(frames, None, next);
        }
    }
}
