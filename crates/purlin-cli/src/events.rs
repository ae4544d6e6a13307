//! `purlin events [--follow]`: what happened.

use std::time::Duration;

use futures_util::StreamExt as _;
use serde::Deserialize;

use crate::{
    args::EventsArgs,
    client::Client,
    exit::{Done, Failure},
    output::{Output, Tone},
    sse::{Event, Parser},
};

const RETRY_EVERY: Duration = Duration::from_millis(500);
const RETRIES: u32 = 60;

pub(crate) async fn events(client: &Client, args: &EventsArgs, output: &mut Output) -> Done {
    let path = if args.follow { "/v1/events" } else { "/v1/events?follow=false" };
    let mut last_id: Option<String> = None;
    let mut last_url: Option<String> = None;
    let mut misses = 0;
    loop {
        // Ids are a node's own: they mean nothing to another.
        let (endpoint, response) = match client.stream(path, last_id.as_deref()).await {
            Ok(opened) => opened,
            Err(failure @ Failure::Unreachable(_)) if last_url.is_some() && misses < RETRIES => {
                if misses == 0 {
                    output.note(failure.text().unwrap_or_default());
                }
                misses += 1;
                tokio::time::sleep(RETRY_EVERY).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        misses = 0;
        if last_url.as_ref().is_some_and(|url| *url != endpoint.url) {
            output.note(&format!(
                "now listening to {}; what happened in between may be missing",
                endpoint.url
            ));
        }
        last_url = Some(endpoint.url);
        let mut parser = Parser::default();
        let mut batch = Vec::new();
        let mut body = response.bytes_stream();
        while let Some(Ok(chunk)) = body.next().await {
            parser.feed(&chunk, &mut batch).map_err(Failure::not_done)?;
            for event in batch.drain(..) {
                if let Some(id) = &event.id {
                    last_id = Some(id.clone());
                }
                print(&event, output)?;
            }
            output.flush()?;
        }
        if !args.follow {
            return Ok(());
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

#[derive(Debug, Default, Deserialize)]
struct Happening {
    at_ms: Option<u64>,
    kind: Option<String>,
    node: Option<String>,
    text: Option<String>,
    detail: Option<String>,
    tone: Option<String>,
}

fn print(event: &Event, output: &mut Output) -> Done {
    match event.kind.as_str() {
        "end" | "ready" => return Ok(()),
        "gap" => {
            output.note(&format!("events are missing here: {}", event.data));
            return Ok(());
        }
        _ => {}
    }
    if output.is_json() {
        return output.line(&event.data);
    }
    let happening: Happening = serde_json::from_str(&event.data).unwrap_or_default();
    let kind = happening.kind.as_deref().unwrap_or(&event.kind);
    let tone = match happening.tone.as_deref() {
        None | Some("plain") => Tone::Strong,
        Some(mood) => Tone::of_state(mood),
    };
    let time = happening.at_ms.map_or_else(|| "        ".to_owned(), time_of_day);
    let kind = output.toned_cell(tone, kind, 16);
    let rest = match (happening.text, happening.detail, happening.node) {
        (Some(text), Some(detail), _) => format!("{text}: {detail}"),
        (Some(text), None, _) => text,
        (None, _, Some(node)) => node,
        (None, _, None) => event.data.clone(),
    };
    output.line(&format!("{time}  {kind}  {rest}"))
}

/// `HH:MM:SS` in UTC: the same on every machine whose logs are compared.
pub(crate) fn time_of_day(ms: u64) -> String {
    let seconds = ms / 1000 % 86_400;
    format!("{:02}:{:02}:{:02}Z", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_time_of_day_is_utc() {
        assert_eq!(super::time_of_day(1_700_000_000_000), "22:13:20Z");
    }
}
