//! `purlin presence`: who is present in which topic.

use std::collections::BTreeMap;

use purlin_server::shapes::{
    PresenceChange, PresenceReport, PresenceTracked, PresencesReport, RemovedReport,
};
use reqwest::Method;

use crate::{
    args::PresenceCommand,
    client::{Client, segment},
    exit::{Done, Failure},
    names::{watch, words},
    output::{Output, Tone, table},
    signals::Signals,
    sse::Event,
};

pub(crate) async fn presence(
    client: &Client,
    command: &PresenceCommand,
    output: &mut Output,
) -> Done {
    match command {
        PresenceCommand::Ls { topic: None, prefix } => topics(client, prefix, output).await,
        PresenceCommand::Ls { topic: Some(topic), .. } => list(client, topic, output).await,
        PresenceCommand::Watch { topic, count } => {
            let path = format!("/v1/presence-watch?topic={}", segment(topic));
            watch(client, &path, *count, output, print).await
        }
        PresenceCommand::Track { topic, key, meta, session, lease } => {
            let path = format!("/v1/presence/{}/{}", segment(topic), segment(key));
            let session = segment(session);
            let renew = format!("{path}?session={session}&ttl_ms={}", lease.as_millis());
            let end = format!("{path}?session={session}");
            let meta: BTreeMap<&str, &str> =
                meta.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let meta = serde_json::to_vec(&meta).map_err(Failure::not_done)?;
            track(client, &renew, &end, meta, *lease, output).await
        }
    }
}

async fn topics(client: &Client, prefix: &str, output: &mut Output) -> Done {
    let (mut after, mut rows) = (String::new(), Vec::new());
    let prefix = segment(prefix);
    loop {
        let path = format!("/v1/presence?limit=10000&prefix={prefix}{after}");
        let page: PresencesReport = client.get(&path).await?;
        if output.is_json() {
            output.json(&page)?;
        }
        rows.extend(page.topics.into_iter().map(|topic| {
            vec![(Tone::Strong, topic.topic), (Tone::Quiet, topic.count.to_string())]
        }));
        match page.next {
            Some(next) => after = format!("&after={}", segment(&next)),
            None if output.is_json() => return Ok(()),
            None => return table(&["TOPIC", "PRESENT"], &rows, output),
        }
    }
}

async fn list(client: &Client, topic: &str, output: &mut Output) -> Done {
    let (mut after, mut rows) = (String::new(), Vec::new());
    let topic = segment(topic);
    loop {
        let path = format!("/v1/presence/{topic}?limit=10000{after}");
        let page: PresenceReport = client.get(&path).await?;
        if output.is_json() {
            output.json(&page)?;
        }
        rows.extend(page.entries.into_iter().map(|entry| {
            let metadata = words(&entry.metadata);
            vec![
                (Tone::Strong, entry.key),
                (Tone::Quiet, entry.node),
                (Tone::Quiet, metadata.trim_start().to_owned()),
            ]
        }));
        match page.next {
            Some(next) => after = format!("&after={}", segment(&next)),
            None if output.is_json() => return Ok(()),
            None => return table(&["KEY", "NODE", "METADATA"], &rows, output),
        }
    }
}

/// Renews a presence until somebody wants this to end, then ends it.
async fn track(
    client: &Client,
    renew: &str,
    end: &str,
    meta: Vec<u8>,
    lease: std::time::Duration,
    output: &mut Output,
) -> Done {
    // Before anything is said: whoever reads that somebody is present may ask for the end at once,
    // and whoever asks during a renewal is heard after it.
    let mut stop = Signals::new()?;
    let mut kept_by = None;
    let mut missed = false;
    loop {
        match client.send::<PresenceTracked>(Method::PUT, renew, meta.clone()).await {
            Ok(tracked) => {
                if output.is_json() && kept_by.is_none() {
                    output.json(&tracked)?;
                    output.flush()?;
                }
                // Another node keeps it when the first one is gone.
                if kept_by.as_ref() != Some(&tracked.entry.node) || missed {
                    output.note(&format!(
                        "{} is present, kept by {}; Ctrl-C ends it",
                        tracked.entry.key, tracked.entry.node
                    ));
                }
                (kept_by, missed) = (Some(tracked.entry.node), false);
            }
            // Nobody can be reached for the moment: the lease may outlast it.
            Err(failure @ (Failure::Unreachable(_) | Failure::Unknown(_))) if kept_by.is_some() => {
                if !missed {
                    output.note(failure.text().unwrap_or_default());
                }
                missed = true;
            }
            Err(failure) => return Err(failure),
        }
        tokio::select! {
            biased;
            () = stop.next() => {
                let _: RemovedReport = client.send(Method::DELETE, end, Vec::new()).await?;
                return Ok(());
            }
            // Two may be lost before the lease is over.
            () = tokio::time::sleep(lease / 3) => {}
        }
    }
}

/// Prints a change; says whether it was one.
fn print(event: &Event, output: &mut Output) -> Result<bool, Failure> {
    if output.is_json() {
        output.line(&event.data)?;
        return Ok(true);
    }
    let change: PresenceChange = serde_json::from_str(&event.data)
        .map_err(|error| Failure::NotDone(format!("a change cannot be read: {error}")))?;
    let (tone, what, entry) = match (&change.before, &change.now) {
        (None, now) => (Tone::Good, "join", now),
        (Some(_), Some(now)) => (Tone::Doubtful, "update", &Some(now.clone())),
        (before, None) => (Tone::Bad, "leave", before),
    };
    let what = output.toned_cell(tone, what, 6);
    let entry = entry.as_ref();
    let node = entry.map(|entry| entry.node.clone()).unwrap_or_default();
    let metadata = entry.map(|entry| words(&entry.metadata)).unwrap_or_default();
    output.line(&format!("{what}  {}  {node}  {}{metadata}", change.key, change.why))?;
    Ok(true)
}
