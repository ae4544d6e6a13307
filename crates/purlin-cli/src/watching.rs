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

/// Prints the changes of `path`, up to `count`, each as `line` says it, or as JSON.
pub(crate) async fn watch<T: DeserializeOwned>(
    client: &Client,
    path: &str,
    what: &str,
    count: Option<u64>,
    output: &mut Output,
    line: impl Fn(&T, &Output) -> String,
) -> Done {
    let (mut left, mut misses, mut was_open) = (count, 0, false);
    while left != Some(0) {
        let (endpoint, response) = match client.stream(path, None).await {
            Ok(opened) => opened,
            Err(failure @ Failure::Unreachable(_)) if was_open && misses < RETRIES => {
                if misses == 0 {
                    output.note(failure.text().unwrap_or_default());
                }
                misses += 1;
                tokio::time::sleep(RETRY_EVERY).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        output.note(&if was_open {
            format!("watching {what} on {}; changes in between are missing", endpoint.url)
        } else {
            format!("watching {what} on {}", endpoint.url)
        });
        (misses, was_open) = (0, true);
        let (mut parser, mut batch) = (Parser::default(), Vec::new());
        let mut body = response.bytes_stream();
        while left != Some(0)
            && let Some(Ok(chunk)) = body.next().await
        {
            parser.feed(&chunk, &mut batch).map_err(Failure::not_done)?;
            for event in batch.drain(..) {
                if left != Some(0) && print(&event, output, &line)? {
                    left = left.map(|left| left - 1);
                }
            }
            output.flush()?;
        }
        if left != Some(0) {
            tokio::time::sleep(RETRY_EVERY).await;
        }
    }
    Ok(())
}

/// Prints a change; says whether it was one.
fn print<T: DeserializeOwned>(
    event: &Event,
    output: &mut Output,
    line: impl Fn(&T, &Output) -> String,
) -> Result<bool, Failure> {
    match event.kind.as_str() {
        "change" => {}
        "lag" => {
            output.note(&format!("changes are missing here, list the keys again: {}", event.data));
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
