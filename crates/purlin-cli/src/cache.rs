//! `purlin cache`: values that may be forgotten at any time, on the nodes their cache says.

use purlin_server::shapes::{CacheReport, CacheWritten, CachesReport};
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
        CacheCommand::Put { cache, key, value, ttl, kind, if_absent } => {
            let mut query = vec![format!("if_absent={if_absent}")];
            if let Some(ttl) = ttl {
                query.push(format!("ttl_ms={}", ttl.as_millis()));
            }
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
            Err(Failure::NotDone(format!("{key:?} holds a value already")))
        }
        CacheCommand::Delete { cache, key } => {
            let done: CacheWritten =
                client.send(Method::DELETE, &one(cache, key), Vec::new()).await?;
            if output.is_json() { output.json(&done) } else { Ok(()) }
        }
        CacheCommand::Stats { cache } => {
            let caches = match cache {
                Some(cache) => vec![client.get::<CacheReport>(&whole(cache)).await?],
                None => client.get::<CachesReport>("/v1/caches").await?.caches,
            };
            stats(CachesReport { caches }, output)
        }
    }
}

fn stats(report: CachesReport, output: &mut Output) -> Done {
    if output.is_json() {
        return output.json(&report);
    }
    let rows: Vec<_> = report
        .caches
        .into_iter()
        .map(|cache| {
            let used = format!("{} of {}", human_bytes(cache.bytes), human_bytes(cache.bytes_max));
            let numbers = [cache.hits, cache.misses, cache.evictions, cache.loads, cache.moved];
            let mut row = vec![
                (Tone::Strong, cache.name),
                (Tone::Quiet, cache.kind),
                (Tone::Quiet, cache.entries.to_string()),
                (Tone::Quiet, used),
            ];
            row.extend(numbers.map(|number| (Tone::Quiet, number.to_string())));
            row
        })
        .collect();
    let heads =
        ["CACHE", "KIND", "ENTRIES", "BYTES", "HITS", "MISSES", "EVICTED", "LOADS", "MOVED"];
    table(&heads, &rows, output)
}
