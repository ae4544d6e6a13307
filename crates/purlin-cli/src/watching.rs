//! Following a stream of changes through restarts of the node that is asked.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;

use crate::{
    client::Client,
    exit::{Done, Failure},
    output::Output,
    sse::{Event, Parser},
};

const RETRY_EVERY: Duration = Duration::from_millis(500);
const RETRIES: u32 = 60;

/// Prints the changes of `path`, up to `count`, each as `line` says it, or as JSON. Goes on where it
/// was when a connection breaks, if the node gives its changes ids.
pub(crate) async fn watch<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    what: &str,
    count: Option<u64>,
    output: &mut Output,
    line: impl Fn(&T, &Output) -> String,
) -> Done {
    let (mut left, mut misses) = (count, 0);
    let mut last: Option<Place> = None;
    while left != Some(0) {
        let last_id = last.as_ref().and_then(|last| last.id.as_deref());
        let (endpoint, response) = match client.stream(path, last_id).await {
            Ok(opened) => opened,
            Err(failure @ Failure::Unreachable(_)) if last.is_some() && misses < RETRIES => {
                if misses == 0 {
                    output.note(failure.text().unwrap_or_default());
                }
                misses += 1;
                tokio::time::sleep(RETRY_EVERY).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        match &last {
            None => output.note(&format!("watching {what} on {}", endpoint.url)),
            // A node that gave an id tells itself what it can no longer say; another, and one that
            // gives none, begins anew.
            Some(last) if last.id.is_some() && last.url == endpoint.url => {}
            Some(_) => output.note(&format!(
                "watching {what} on {} again; changes in between may be missing",
                endpoint.url
            )),
        }
        misses = 0;
        let mut place = Place { url: endpoint.url, id: None };
        let (mut parser, mut batch) = (Parser::default(), Vec::new());
        let mut body = response.bytes_stream();
        while left != Some(0)
            && let Some(Ok(chunk)) = body.next().await
        {
            parser.feed(&chunk, &mut batch).map_err(Failure::not_done)?;
            for event in batch.drain(..) {
                if let Some(id) = &event.id {
                    place.id = Some(id.clone());
                }
                if left != Some(0) && print(&event, output, &line)? {
                    left = left.map(|left| left - 1);
                }
            }
            output.flush()?;
        }
        // A connection that brought nothing leaves the place where it was.
        let earlier = last.take().filter(|last| last.url == place.url).and_then(|last| last.id);
        place.id = place.id.or(earlier);
        last = Some(place);
        if left != Some(0) {
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }
    Ok(())
}

/// How far one node's changes were read.
struct Place {
    url: String,
    /// A node's own: it means nothing to another.
    id: Option<String>,
}

/// Prints a change; says whether it was one.
fn print<T: DeserializeOwned>(
    event: &Event,
    output: &mut Output,
    line: impl Fn(&T, &Output) -> String,
) -> Result<bool, Failure> {
    match event.kind.as_str() {
        "change" | "counts" => {}
        "lag" | "gap" => {
            output.note(&format!("changes are missing here, list again: {}", event.data));
            return Ok(false);
        }
        _ => return Ok(false),
    }
    if output.is_json() {
        output.line(&event.data)?;
        return Ok(true);
    }
    let change: T = serde_json::from_str(&event.data)
        .map_err(|error| Failure::NotDone(format!("a change cannot be read: {error}")))?;
    let text = line(&change, output);
    output.line(&text)?;
    Ok(true)
}
