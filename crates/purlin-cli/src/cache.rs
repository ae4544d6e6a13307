//! `purlin cache`: values that may be forgotten at any time, on the nodes their cache says.

use std::time::Duration;

use base64::{Engine as _, prelude::BASE64_STANDARD as STANDARD};
use purlin_server::shapes::{CacheAnswer, CacheReport, CacheWritten, CachesReport};
use reqwest::Method;

use crate::{
    args::CacheCommand,
    client::{Client, segment},
    exit::{Done, Failure},
    output::{Output, Tone, human_bytes, table},
    replicated::{read, value_of},
};

pub(crate) async fn cache(client: &Client, command: &CacheCommand, output: &mut Output) -> Done {
    let whole = |cache: &str| format!("/v1/caches/{}", segment(cache));
    let one = |cache: &str, key: &str| format!("{}/{}", whole(cache), segment(key));
    match command {
        CacheCommand::Get { cache, key } => read(client, &one(cache, key), key, output).await,
        CacheCommand::Put { cache, key, value, ttl, kind, if_absent, if_present } => {
            let mut query =
                vec![format!("if_absent={if_absent}"), format!("if_present={if_present}")];
            query.extend(ttl.map(ttl_ms));
            if let Some(kind) = kind {
                query.push(format!("kind={}", segment(kind)));
            }
            let path = format!("{}?{}", one(cache, key), query.join("&"));
            let value = value_of(value.as_deref())?;
            let done: CacheWritten = client.send(Method::PUT, &path, value).await?;
            if output.is_json() {
                output.json(&done)?;
            }
            if done.written {
                return Ok(());
            }
            let held = if *if_absent { "a value already" } else { "nothing" };
            Err(Failure::NotDone(format!("{key:?} holds {held}")))
        }
        CacheCommand::Incr { cache, key, by, ttl } => {
            let query = [Some(format!("op=increment&by={by}")), ttl.map(ttl_ms)];
            change(client, &one(cache, key), key, query, output).await
        }
        CacheCommand::Take { cache, key } => {
            change(client, &one(cache, key), key, [Some("op=take".into()), None], output).await
        }
        CacheCommand::Touch { cache, key, ttl } => {
            let query = [Some("op=touch".into()), ttl.map(ttl_ms)];
            change(client, &one(cache, key), key, query, output).await
        }
        CacheCommand::Clear { cache } => {
            let done: CacheWritten = client.send(Method::DELETE, &whole(cache), Vec::new()).await?;
            if output.is_json() { output.json(&done) } else { Ok(()) }
        }
        CacheCommand::Delete { cache, key } => {
            let done: CacheWritten =
                client.send(Method::DELETE, &one(cache, key), Vec::new()).await?;
            if output.is_json() { output.json(&done) } else { Ok(()) }
        }
        CacheCommand::Stats { cache: Some(cache), everywhere: _ } => {
            let caches = vec![client.get::<CacheReport>(&whole(cache)).await?];
            stats(CachesReport { caches, nodes: Vec::new() }, output)
        }
        CacheCommand::Stats { cache: None, everywhere } => {
            stats(client.get(&format!("/v1/caches?everywhere={everywhere}")).await?, output)
        }
    }
}

fn ttl_ms(ttl: Duration) -> String {
    format!("ttl_ms={}", ttl.as_millis())
}

/// Changes a value where it is kept, and prints what came of it.
async fn change(
    client: &Client,
    path: &str,
    key: &str,
    query: [Option<String>; 2],
    output: &mut Output,
) -> Done {
    let query: Vec<String> = query.into_iter().flatten().collect();
    let answer: CacheAnswer =
        client.send(Method::POST, &format!("{path}?{}", query.join("&")), Vec::new()).await?;
    if !answer.done {
        return Err(Failure::NotDone(format!("{key:?} holds nothing")));
    }
    if output.is_json() {
        return output.json(&answer);
    }
    match (answer.value, answer.value_base64) {
        (Some(text), _) => output.value(text.as_bytes()),
        (None, Some(encoded)) => {
            let decoded = STANDARD.decode(encoded);
            let value = decoded.map_err(|error| Failure::Unknown(format!("{key:?}: {error}")))?;
            output.value(&value)
        }
        (None, None) => Ok(()),
    }
}

fn stats(report: CachesReport, output: &mut Output) -> Done {
    if output.is_json() {
        return output.json(&report);
    }
    let is_everywhere = !report.nodes.is_empty();
    let mut rows = Vec::new();
    if is_everywhere {
        for node in report.nodes {
            match node.problem {
                Some(problem) => {
                    let mut row = vec![(Tone::Strong, node.node), (Tone::Bad, problem)];
                    row.resize(HEADS.len() + 1, (Tone::Quiet, String::new()));
                    rows.push(row);
                }
                None => rows.extend(node.caches.into_iter().map(|cache| {
                    let mut row = vec![(Tone::Strong, node.node.clone())];
                    row.extend(row_of(cache));
                    row
                })),
            }
        }
    } else {
        rows.extend(report.caches.into_iter().map(row_of));
    }
    let mut heads = Vec::from(HEADS);
    if is_everywhere {
        heads.insert(0, "NODE");
    }
    table(&heads, &rows, output)
}

const HEADS: [&str; 10] = [
    "CACHE", "KIND", "ENTRIES", "BYTES", "HIT RATE", "HITS", "MISSES", "EVICTED", "LOADS", "MOVED",
];

/// The share of reads that found a value, in whole percent.
fn hit_rate(cache: &CacheReport) -> String {
    let found = u128::from(cache.hits) + u128::from(cache.stale_hits);
    let reads = found + u128::from(cache.misses);
    (found * 100).checked_div(reads).map_or_else(|| "-".to_owned(), |rate| format!("{rate} %"))
}

fn row_of(cache: CacheReport) -> Vec<(Tone, String)> {
    let used = format!("{} of {}", human_bytes(cache.bytes), human_bytes(cache.bytes_max));
    let numbers = [cache.hits, cache.misses, cache.evictions, cache.loads, cache.moved];
    let rate = hit_rate(&cache);
    let mut row = vec![
        (Tone::Strong, cache.name),
        (Tone::Quiet, cache.kind),
        (Tone::Quiet, cache.entries.to_string()),
        (Tone::Quiet, used),
        (Tone::Quiet, rate),
    ];
    row.extend(numbers.map(|number| (Tone::Quiet, number.to_string())));
    row
}
