//! A chat in the browser: every node serves a page, and whoever has it open is present on all nodes.
//!
//! ```text
//! cargo run -p examples --bin chat_web -- n1 127.0.0.1:8001 127.0.0.1:7601
//! cargo run -p examples --bin chat_web -- n2 127.0.0.1:8002 127.0.0.1:7602 127.0.0.1:7601
//! ```
//! Then open both pages. Close one, or kill its node: the other sees who went, and why. A presence
//! lasts as long as the event stream of its page; lines are published to whoever listens on any
//! node. There is no login: whoever says a name has it.

use std::{collections::VecDeque, convert::Infallible, env, error::Error, sync::Arc};

use axum::{
    Router,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{
        Html, IntoResponse, Response, Sse,
        sse::{Event, KeepAlive},
    },
    routing::{get, post},
};
use futures_util::{Stream, stream};
use purlin::{
    dist::{Diff, Entry, Fed, Feed, FeedOptions, Tracked},
    prelude::*,
    process::Metadata,
    pubsub::{Delivery, Subscription},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const ROOM: &str = "chat/room";
const NAME_BYTES_MAX: usize = 40;
const LINE_BYTES_MAX: usize = 2_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let usage = "usage: chat_web NAME PAGE-ADDRESS NODE-ADDRESS [NODE-ADDRESS-OF-ANOTHER ...]";
    let [name, page, address] = [(); 3].map(|()| args.next().ok_or(usage));
    // Nodes on one machine share certificates through a directory.
    let keys = env::var_os("CHAT_KEYS")
        .map_or_else(|| env::temp_dir().join("purlin-chat-web"), Into::into);
    let listener = TcpListener::bind(page?).await?;
    let node = Node::builder()
        .name(name?)
        .dev(&DevAuthority::in_dir(keys)?)
        .bind(&address?)
        .join(args)
        .start()
        .await?;
    let routes = Router::new()
        .route("/", get(|| async { Html(include_str!("chat_web.html")) }))
        .route("/room", get(enter))
        .route("/say", post(say))
        .with_state(node.clone());
    print(&format!("{} listens on {}", node.id().name, node.cluster_addr()))?;
    print(&format!("its page is http://{}", listener.local_addr()?))?;
    tokio::select! {
        served = axum::serve(listener, routes).into_future() => served?,
        asked = tokio::signal::ctrl_c() => asked?,
    }
    // Those who are present here have a moment to open the page of another node.
    node.drain(Some(std::time::Duration::from_secs(5))).await;
    Ok(())
}

#[derive(serde::Deserialize)]
struct Who {
    who: String,
}

/// An event stream for a page. While it is open, whoever opened it is present.
async fn enter(State(node): State<Node>, Query(Who { who }): Query<Who>) -> Response {
    if who.is_empty() || who.len() > NAME_BYTES_MAX {
        return refuse(format!("a name has 1 to {NAME_BYTES_MAX} bytes, not {}", who.len()));
    }
    match Visit::begin(&node, &who) {
        Ok(visit) => Sse::new(visit.events()).keep_alive(KeepAlive::default()).into_response(),
        Err(error) => refuse(error.to_string()),
    }
}

/// Says a line to everybody in the room, on all nodes.
async fn say(State(node): State<Node>, Query(Who { who }): Query<Who>, line: String) -> Response {
    if who.is_empty() || who.len() > NAME_BYTES_MAX || line.len() > LINE_BYTES_MAX {
        return refuse(format!("a line has at most {LINE_BYTES_MAX} bytes, not {}", line.len()));
    }
    match node.pubsub().publish(ROOM, json!({"who": who, "line": line}).to_string()) {
        Ok(_) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => refuse(error.to_string()),
    }
}

fn refuse(why: String) -> Response {
    let plain = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (StatusCode::UNPROCESSABLE_ENTITY, plain, why).into_response()
}

/// A page that is open.
struct Visit {
    /// Dropped with the stream, and then whoever it was has gone.
    _present: Tracked,
    room: Subscription,
    people: Feed,
    ready: VecDeque<Event>,
}

impl Visit {
    fn begin(node: &Node, who: &str) -> Result<Self, Box<dyn Error>> {
        // Listening before being seen: nobody speaks to deaf ears.
        let room = node.pubsub().subscribe(ROOM)?;
        let present = node.presence().track_while_held(ROOM, who, Metadata::default())?;
        let people = node.presence().feed(ROOM, None, FeedOptions::default());
        let hello = json!({"node": node.id().name.to_string()});
        let hello = Event::default().event("hello").data(hello.to_string());
        let ready = VecDeque::from([hello.retry(std::time::Duration::from_secs(1))]);
        Ok(Self { _present: present, room, people, ready })
    }

    fn events(self) -> impl Stream<Item = Result<Event, Infallible>> {
        stream::unfold(self, |mut visit| async move {
            loop {
                if let Some(event) = visit.ready.pop_front() {
                    return Some((Ok(event), visit));
                }
                tokio::select! {
                    fed = visit.people.next() => visit.ready.push_back(told(&fed)),
                    said = visit.room.recv() => visit.ready.push_back(heard(&said?)),
                }
            }
        })
    }
}

/// Who is here, as the page hears it.
fn told(fed: &Fed) -> Event {
    let (name, data) = match fed {
        Fed::Page(page) => {
            let people: Vec<Value> = page.entries.iter().map(person).collect();
            ("people", json!({"first": page.first, "people": people}))
        }
        Fed::Diff(Diff { joins, updates, leaves, .. }) => {
            let moved = updates.iter().map(|it| json!([place(&it.before), person(&it.now)]));
            let went = leaves.iter().map(
                |(left, why)| json!({"id": place(left), "who": left.key, "why": why.as_str()}),
            );
            let came: Vec<Value> = joins.iter().map(person).collect();
            let (moved, went) = (moved.collect::<Vec<_>>(), went.collect::<Vec<_>>());
            ("change", json!({"came": came, "moved": moved, "went": went}))
        }
    };
    Event::default().event(name).data(data.to_string())
}

fn person(entry: &Arc<Entry>) -> Value {
    json!({"id": place(entry), "who": entry.key, "node": entry.at.owner.name.to_string()})
}

/// Which presence: somebody may have two pages open.
fn place(entry: &Entry) -> String {
    format!("{}/{}", entry.at.owner, entry.at.number)
}

/// What was said, and through which node.
fn heard(said: &Delivery) -> Event {
    let words = serde_json::from_slice(said.payload()).unwrap_or(Value::Null);
    let node = said.publisher().name.to_string();
    let data = json!({"who": words["who"], "line": words["line"], "node": node});
    Event::default().event("said").data(data.to_string())
}

fn print(line: &str) -> std::io::Result<()> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    // Somebody reads along, perhaps through a pipe.
    out.flush()
}
