//! Server-Sent Events: framing, keep-alive and an end that is said aloud.
//!
//! A stream that just stops looks the same as a lost network. So every stream here ends with an
//! `end` event that says why, and a silent one sends a comment every [`KEEP_ALIVE`], which lets
//! both ends notice a dead peer. Messages that are ready together leave in one chunk: one write
//! carries hundreds of small events.

use std::{convert::Infallible, fmt::Write as _, future::Future, pin::pin, time::Duration};

use axum::{
    body::Body,
    http::{HeaderValue, header},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::shapes::End;

/// How long a stream may be silent before a comment is sent. Below the 30 s at which common
/// proxies close a silent connection.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A chunk is handed to the connection once it holds this many bytes, even if more is ready.
pub(crate) const CHUNK_BYTES: usize = 32 * 1024;

/// A growing piece of an event stream.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    text: Vec<u8>,
}

impl Frames {
    /// Appends one event whose data is `data` as JSON (one line, so one `data:` field).
    pub(crate) fn json<T: Serialize>(&mut self, event: &str, id: Option<&str>, data: &T) {
        self.head(event, id);
        self.text.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.text, data)
            .expect("stream shapes serialize into memory: string keys, no failing impl");
        self.text.extend_from_slice(b"\n\n");
    }

    fn head(&mut self, event: &str, id: Option<&str>) {
        debug_assert!(!event.contains(['\r', '\n']), "an event name is one line");
        if let Some(id) = id {
            debug_assert!(!id.contains(['\r', '\n', '\0']), "an event id is one line");
            self.text.extend_from_slice(b"id: ");
            self.text.extend_from_slice(id.as_bytes());
            self.text.push(b'\n');
        }
        self.text.extend_from_slice(b"event: ");
        self.text.extend_from_slice(event.as_bytes());
        self.text.push(b'\n');
    }

    /// Appends a comment, which clients skip.
    pub(crate) fn comment(&mut self, text: &str) {
        let mut line = String::with_capacity(text.len() + 4);
        write!(line, ": {text}\n\n").expect("writing to a String cannot fail");
        self.text.extend_from_slice(line.as_bytes());
    }

    pub(crate) fn is_full(&self) -> bool {
        self.text.len() >= CHUNK_BYTES
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    fn take(&mut self) -> Bytes {
        Bytes::from(std::mem::take(&mut self.text))
    }
}

impl End {
    pub(crate) fn new(reason: &str, detail: impl Into<String>) -> Self {
        Self { reason: reason.to_owned(), detail: detail.into() }
    }

    pub(crate) fn finished() -> Self {
        Self::new("finished", "nothing more to send")
    }
}

/// What a [`Source`] has to say next.
#[derive(Debug)]
pub(crate) enum Next {
    /// Frames were appended; send them.
    More,
    /// Frames may have been appended; send them, then this end.
    Ended(End),
}

/// Where the events of one stream come from.
pub(crate) trait Source: Send + 'static {
    /// Waits for something to say and appends it to `frames`, as much as is ready and fits.
    ///
    /// # Cancel safety
    /// Implementations lose nothing when the future is dropped while it waits.
    fn fill(&mut self, frames: &mut Frames) -> impl Future<Output = Next> + Send;
}

struct Running<S> {
    source: S,
    closing: CancellationToken,
    frames: Frames,
    ended: bool,
}

/// Answers with the events of `source` until it ends, the client goes, or `closing` is cancelled.
pub(crate) fn respond<S: Source>(source: S, closing: CancellationToken) -> Response {
    let mut frames = Frames::default();
    // Something at once, so that a client sees the stream open before the first event.
    frames.comment("purlin");
    let running = Running { source, closing, frames, ended: false };
    let body = Body::from_stream(stream::unfold(running, step));
    let mut response = body.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // nginx buffers streams unless told not to.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

async fn step<S: Source>(
    mut running: Running<S>,
) -> Option<(Result<Bytes, Infallible>, Running<S>)> {
    if running.ended {
        return None;
    }
    if running.frames.is_empty() {
        let next = {
            let fill = pin!(running.source.fill(&mut running.frames));
            tokio::select! {
                biased;
                () = running.closing.cancelled() => Some(Next::Ended(End::new(
                    "shutdown",
                    "this node is stopping; other nodes of the cluster serve the same streams",
                ))),
                next = fill => Some(next),
                () = tokio::time::sleep(KEEP_ALIVE) => None,
            }
        };
        match next {
            Some(Next::More) => {}
            Some(Next::Ended(end)) => {
                running.frames.json("end", None, &end);
                running.ended = true;
            }
            None => running.frames.comment("still here"),
        }
    }
    let chunk = running.frames.take();
    Some((Ok(chunk), running))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;

    use super::*;

    struct Counting(u32);

    impl Source for Counting {
        async fn fill(&mut self, frames: &mut Frames) -> Next {
            if self.0 == 3 {
                return Next::Ended(End::finished());
            }
            if self.0 > 3 {
                std::future::pending::<()>().await;
            }
            self.0 += 1;
            frames.json("tick", Some(&self.0.to_string()), &"a\nb\u{2028}");
            Next::More
        }
    }

    async fn text_of(response: Response) -> String {
        let mut body = response.into_body().into_data_stream();
        let mut text = Vec::new();
        while let Some(chunk) = body.next().await {
            text.extend_from_slice(&chunk.unwrap());
        }
        String::from_utf8(text).unwrap()
    }

    #[tokio::test]
    async fn a_stream_says_when_it_is_finished() {
        let text = text_of(respond(Counting(0), CancellationToken::new())).await;
        assert!(text.contains("id: 3\nevent: tick\ndata: \"a\\nb\u{2028}\"\n\n"), "{text}");
        assert!(text.trim_end().ends_with("\"detail\":\"nothing more to send\"}"), "{text}");
    }

    #[tokio::test]
    async fn a_stopping_node_ends_its_streams_with_a_reason() {
        let closing = CancellationToken::new();
        let response = respond(Counting(4), closing.clone());
        closing.cancel();
        let text = text_of(response).await;
        assert!(text.contains("event: end\ndata: {\"reason\":\"shutdown\""), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_sends_a_comment() {
        let mut body =
            respond(Counting(4), CancellationToken::new()).into_body().into_data_stream();
        assert_eq!(body.next().await.unwrap().unwrap(), ": purlin\n\n");
        assert_eq!(body.next().await.unwrap().unwrap(), ": still here\n\n");
    }
}
