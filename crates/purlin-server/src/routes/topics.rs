//! Publish and subscribe over HTTP.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri, header},
    response::Response,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::StreamExt as _;
use purlin_core::{Advice, Outcome};
use purlin_pubsub::{
    Closed, Delivery, Overflow, Pattern, Publication, PublishError, Published, SubscribeOptions,
    Subscription, TopicError, TopicHandle,
};
use serde::Serialize;

use crate::{
    app::{App, StreamPlace},
    input::{Params, cut_off, decode_path, media_type, refuse_encoded, whole_body},
    lines::Lines,
    problem::{Problem, ProblemDocument},
    shapes::{End, LagReport, PublishReport, StreamReport, TopicsReport},
    sse::{self, Frames, Next, Source},
};

/// Media types whose bodies are split into one message per line.
const LINES: [&str; 2] = ["text/x-lines", "application/x-ndjson"];

/// How many messages may wait for one reader unless it says otherwise.
const BUFFER_DEFAULT: u32 = 1024;

/// The largest buffer a reader may ask for. Bytes are bounded too.
const BUFFER_MAX: u32 = 65_536;

/// The most bytes that may wait for one reader; one larger message still fits an empty buffer.
const BUFFER_BYTES_MAX: usize = 4 << 20;

/// How long one message waits for subscribers that push back.
const MESSAGE_WITHIN: Duration = Duration::from_secs(5);

/// How long one line waits. Longer than the patience of push-back itself, which ends subscriptions
/// whose reader has stopped: a line then goes on to the others.
const LINE_WITHIN: Duration = Duration::from_secs(30);

/// How long a new stream waits for other nodes to hear of it before it begins anyway: longer than a
/// lost announcement takes to be repeated, and than a silent member is believed in.
const PROPAGATE_WITHIN: Duration = Duration::from_secs(5);

/// What flows through this node: rates and subscribers per topic.
#[utoipa::path(
    get, path = "/v1/topics", tag = "topics", security((), ("token" = [])),
    responses(
        (status = 200, body = TopicsReport),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<TopicsReport>, Problem> {
    Params::read(&uri, &[])?;
    Ok(Json(app.host.topics_report()))
}

/// Publishes the body: as one message, or as one message per line.
///
/// One message: the body is the payload, whatever its type; a `content-type` other than a form's
/// travels along. Lines (`content-type: text/x-lines` or `application/x-ndjson`, or `?split=lines`):
/// the body is read as it comes, and every line, without its line feed, is one message; empty lines
/// are empty messages. Push-back subscribers anywhere slow the reading down. Delivery is at most
/// once; the answer says where messages were sent, not who handled them.
#[utoipa::path(
    post, path = "/v1/topics/{topic}", tag = "topics", security((), ("token" = [])),
    params(
        ("topic" = String, Path, description = "Slashes as they are or as %2F"),
        ("split" = Option<String>, Query, description = "`lines`: one message per line"),
        ("key" = Option<String>, Query, description = "For subscribers that conflate: only the newest message of a key is kept"),
    ),
    request_body(description = "The payload, or lines", content((String = "text/plain"), (Vec<u8> = "application/octet-stream"), (String = "text/x-lines"), (String = "application/x-ndjson"))),
    responses(
        (status = 200, body = PublishReport),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "A foreign page or name", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 408, description = "The body broke off; `published` lines of it went out", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 415, description = "An encoded body", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "No room; `published` lines went out", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn publish(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<PublishReport>, Problem> {
    let params = Params::read(&uri, &["split", "key"])?;
    let raw = uri.path().strip_prefix(PREFIX).expect("the router matched the prefix");
    let text = decode_path("topic", raw)?;
    let topic =
        app.host.pubsub().topic(&text).map_err(|error| bad_topic("topic", &text, &error))?;
    refuse_encoded(&headers)?;
    let media = media_type(&headers);
    let is_split = match params.get("split") {
        None => media.as_deref().is_some_and(|media| LINES.contains(&media)),
        Some("lines") => true,
        Some(other) => {
            return Err(Problem::bad_input(
                "split",
                other,
                "lines",
                format!("split of {other:?} is not known"),
            ));
        }
    };
    let stamp = Stamp {
        content_type: payload_type(&headers, media.as_deref(), is_split),
        key: params.get("key"),
    };
    if is_split {
        return publish_lines(&app, &topic, &stamp, body).await.map(Json);
    }
    let payload =
        whole_body("the message", body, app.message_bytes_max, app.config.body_within).await?;
    let mut tally = Tally::default();
    tally.publish(&topic, stamp.on(payload), MESSAGE_WITHIN).await?;
    Ok(Json(tally.report(&topic)))
}

const PREFIX: &str = "/v1/topics/";

/// What every message of one request carries.
struct Stamp<'a> {
    content_type: Option<&'a str>,
    key: Option<&'a str>,
}

impl Stamp<'_> {
    fn on(&self, payload: Bytes) -> Publication {
        let publication = Publication::new(payload);
        let publication = match self.content_type {
            Some(media) => publication.content_type(media),
            None => publication,
        };
        match self.key {
            Some(key) => publication.key(key),
            None => publication,
        }
    }
}

/// The type worth passing on: clients such as curl name a form when nobody said anything.
fn payload_type<'a>(
    headers: &'a HeaderMap,
    media: Option<&str>,
    is_split: bool,
) -> Option<&'a str> {
    match media {
        None
        | Some("application/x-www-form-urlencoded" | "application/octet-stream" | "text/x-lines") => {
            None
        }
        Some("application/x-ndjson") if is_split => Some("application/json"),
        Some(_) => headers.get(header::CONTENT_TYPE)?.to_str().ok(),
    }
}

/// Reads a body as it comes and publishes its lines in order. The next chunk is read only when all
/// lines of this one are on their way, so a slow subscriber slows the client down through TCP.
async fn publish_lines(
    app: &Arc<App>,
    topic: &TopicHandle,
    stamp: &Stamp<'_>,
    body: Body,
) -> Result<PublishReport, Problem> {
    let mut tally = Tally::default();
    let mut cutter = Lines::new(app.message_bytes_max);
    let mut lines = Vec::new();
    let mut chunks = body.into_data_stream();
    loop {
        let chunk = tokio::select! {
            // First: a sender that never pauses must not hold up the end.
            biased;
            () = app.closing.cancelled() => return Err(stopping(tally.published)),
            chunk = chunks.next() => chunk,
        };
        let cut = match chunk {
            Some(Ok(chunk)) => cutter.feed(chunk, &mut lines),
            Some(Err(_broken)) => {
                return Err(cut_off("the connection broke inside the lines".to_owned())
                    .after_publishing(tally.published));
            }
            None => break,
        };
        for line in lines.drain(..) {
            tally.publish(topic, stamp.on(line), LINE_WITHIN).await?;
        }
        cut.map_err(|_too_long| {
            let line = format!("line {}", tally.published + 1);
            Problem::too_large(&line, app.message_bytes_max).after_publishing(tally.published)
        })?;
    }
    if let Some(last) = cutter.last() {
        tally.publish(topic, stamp.on(last), LINE_WITHIN).await?;
    }
    Ok(tally.report(topic))
}

fn stopping(published: u64) -> Problem {
    let detail = format!("the node is stopping; {published} lines were published");
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "stopping", "This node is stopping", detail)
        .ended(Outcome::NotDone, &Advice::RetryElsewhere(None))
        .after_publishing(published)
}

/// Counts what one request has published.
#[derive(Debug, Default)]
struct Tally {
    published: u64,
    bytes: u64,
    local_subscribers: u64,
    remote_nodes: u64,
    undelivered: u64,
}

impl Tally {
    /// Publishes one message, waiting for push-back up to `within`.
    async fn publish(
        &mut self,
        topic: &TopicHandle,
        publication: Publication,
        within: Duration,
    ) -> Result<(), Problem> {
        let bytes = publication.payload().len() as u64;
        match topic.publish_within(publication, within).await {
            Ok(sent) => self.count(bytes, &sent),
            // Who stayed full for that long is lost to this message; the problem says so.
            Err(error) => return Err(refused(&error).after_publishing(self.published)),
        }
        Ok(())
    }

    fn count(&mut self, bytes: u64, sent: &Published) {
        self.published += 1;
        self.bytes += bytes;
        self.local_subscribers = sent.subscribers as u64;
        self.remote_nodes = sent.nodes as u64;
        self.undelivered += u64::from(sent.unreachable > 0);
    }

    fn report(self, topic: &TopicHandle) -> PublishReport {
        let plural = |count: u64| if count == 1 { "" } else { "s" };
        let places = match (self.local_subscribers, self.remote_nodes) {
            (0, 0) => "nobody listens".to_owned(),
            (local, 0) => format!("{local} subscriber{} here", plural(local)),
            (0, remote) => format!("{remote} other node{} listen", plural(remote)),
            (local, remote) => {
                format!(
                    "{local} subscriber{} here, {remote} other node{}",
                    plural(local),
                    plural(remote)
                )
            }
        };
        PublishReport {
            topic: topic.topic().as_str().to_owned(),
            published: self.published,
            bytes: self.bytes,
            local_subscribers: self.local_subscribers,
            remote_nodes: self.remote_nodes,
            undelivered: self.undelivered,
            summary: format!(
                "published {} message{}; {places}",
                self.published,
                plural(self.published)
            ),
        }
    }
}

fn refused(error: &PublishError) -> Problem {
    let problem = match error {
        PublishError::TooLarge { limit, .. } => Problem::too_large("the message", *limit),
        PublishError::Full { .. } => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "subscribers_full",
            "Some subscribers had no room for too long",
            error.to_string(),
        ),
        PublishError::ShutDown | PublishError::NotAPeer(_) => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "stopping",
            "This node is stopping",
            error.to_string(),
        ),
        PublishError::Headers(_) | PublishError::Topic(_) | PublishError::Encode { .. } | _ => {
            Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "bad_input",
                "An input has a value this route cannot use",
                error.to_string(),
            )
        }
    };
    problem.ended(error.outcome(), &error.advice())
}

/// Follows a topic or pattern (`*` one level, `**` any number at the end).
///
/// Events: `ready` once, then `message`, `lag` where messages are missing, and `end`. Nothing is
/// kept for readers that are away, so a stream cannot be resumed. The default policy `push-back`
/// loses nothing and slows publishers down to this reader, for a bounded time; the others lose what
/// they say: `drop-oldest`, `conflate` (all but the newest of a key), `disconnect`.
#[utoipa::path(
    get, path = "/v1/topics/{pattern}/stream", tag = "topics", security((), ("token" = [])),
    params(
        ("pattern" = String, Path, description = "Slashes as they are or as %2F"),
        ("policy" = Option<String>, Query, description = "`push-back` (default), `drop-oldest`, `conflate` or `disconnect`"),
        ("buffer" = Option<u32>, Query, description = "Messages that may wait: 1 to 65536, default 1024"),
    ),
    responses(
        (status = 200, description = "Server-Sent Events", content_type = "text/event-stream", body = crate::shapes::MessageReport),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "The path does not end in /stream", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "Too many streams", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn stream(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    let raw = uri.path().strip_prefix(PREFIX).expect("the router matched the prefix");
    let Some(raw) = raw.strip_suffix("/stream") else {
        let detail =
            "a topic has no value to read; its messages are at /v1/topics/{pattern}/stream";
        return Err(Problem::new(
            StatusCode::NOT_FOUND,
            "no_such_route",
            "There is nothing at this path",
            detail,
        ));
    };
    let params = Params::read(&uri, &["policy", "buffer"])?;
    let text = decode_path("pattern", raw)?;
    Pattern::parse(&text).map_err(|error| bad_topic("pattern", &text, &error))?;
    let policy = params.get("policy").unwrap_or("push-back");
    let overflow = overflow(policy)?;
    let buffer = params.number("buffer", &(1..=BUFFER_MAX))?.unwrap_or(BUFFER_DEFAULT);
    let place = app.stream_place()?;
    let options = SubscribeOptions::new(overflow)
        .messages_max(usize::try_from(buffer).expect("a buffer is at most 65536"))
        .bytes_max(BUFFER_BYTES_MAX)
        .metadata("http stream");
    let subscription = app.host.pubsub().subscribe_with(&text, options).map_err(|error| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not_subscribed",
            "This node takes no more subscriptions",
            error.to_string(),
        )
        .ended(error.outcome(), &error.advice())
    })?;
    // Whoever sees the head of this response and then publishes anywhere expects the message here.
    let everywhere = subscription.propagated(PROPAGATE_WITHIN).await;
    let ready = StreamReport { pattern: text, policy: policy.to_owned(), buffer, everywhere };
    let source = TopicSource { subscription, ready: Some(ready), _place: place };
    Ok(sse::respond(source, app.closing.clone()))
}

fn overflow(policy: &str) -> Result<Overflow, Problem> {
    match policy {
        "push-back" => Ok(Overflow::push_back()),
        "drop-oldest" => Ok(Overflow::DropOldest),
        "conflate" => Ok(Overflow::ConflateByKey),
        "disconnect" => Ok(Overflow::Disconnect),
        other => {
            let bound = "push-back, drop-oldest, conflate or disconnect";
            Err(Problem::bad_input(
                "policy",
                other,
                bound,
                format!("policy of {other:?} is not one of {bound}"),
            ))
        }
    }
}

fn bad_topic(field: &str, text: &str, error: &TopicError) -> Problem {
    let bound = match field {
        "topic" => "1 to 255 bytes, levels divided by /, no wildcards, no white space",
        _ => "1 to 255 bytes, levels divided by /, * for one level, ** at the end, no white space",
    };
    Problem::bad_input(field, text, bound, error.to_string())
}

struct TopicSource {
    subscription: Subscription,
    ready: Option<StreamReport>,
    _place: StreamPlace,
}

impl Source for TopicSource {
    async fn fill(&mut self, frames: &mut Frames) -> Next {
        if let Some(ready) = self.ready.take() {
            frames.json("ready", None, &ready);
            return Next::More;
        }
        let Some(first) = self.subscription.recv().await else {
            return Next::Ended(end_of(self.subscription.closed()));
        };
        write_message(frames, &first);
        // What waits leaves with it, up to a chunk. The next chunk is asked for only when the
        // connection has room, and until then messages wait in the queue, where policy rules.
        while !frames.is_full() {
            match self.subscription.try_recv() {
                Some(delivery) => write_message(frames, &delivery),
                None => break,
            }
        }
        Next::More
    }
}

fn end_of(closed: Option<Closed>) -> End {
    match closed {
        Some(reason @ (Closed::Overflow { .. } | Closed::Stalled(_))) => {
            End::new("slow", reason.to_string())
        }
        Some(reason) => End::new("closed", reason.to_string()),
        None => End::finished(),
    }
}

/// [`crate::shapes::MessageReport`] without copying the payload; a test holds them together.
#[derive(Serialize)]
struct MessageLine<'a> {
    topic: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    publisher: &'a str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    headers: BTreeMap<&'a str, &'a str>,
}

fn write_message(frames: &mut Frames, delivery: &Delivery) {
    if delivery.missed() > 0 {
        frames.json("lag", None, &LagReport { missed: delivery.missed() });
    }
    let payload = std::str::from_utf8(delivery.payload()).ok();
    let line = MessageLine {
        topic: delivery.topic().as_str(),
        payload,
        payload_base64: payload.is_none().then(|| STANDARD.encode(delivery.payload())),
        publisher: &delivery.publisher().to_string(),
        headers: delivery.headers().iter().collect(),
    };
    frames.json("message", None, &line);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shapes::MessageReport;

    #[test]
    fn what_is_written_is_what_the_shape_promises() {
        for (payload, payload_base64) in [(Some("a\nb"), None), (None, Some("/w==".to_owned()))] {
            let line = MessageLine {
                topic: "a/b",
                payload,
                payload_base64: payload_base64.clone(),
                publisher: "n1@1",
                headers: BTreeMap::from([("key", "k")]),
            };
            let report: MessageReport =
                serde_json::from_str(&serde_json::to_string(&line).unwrap()).unwrap();
            assert_eq!(report.payload.as_deref(), payload);
            assert_eq!(report.payload_base64, payload_base64);
            assert_eq!(
                serde_json::to_value(&report).unwrap(),
                serde_json::to_value(&line).unwrap()
            );
        }
    }
}
