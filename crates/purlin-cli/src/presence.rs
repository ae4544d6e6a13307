//! `purlin presence`: who is present in which topic.

use std::collections::BTreeMap;

use purlin_server::shapes::{
    PresenceChange, PresenceCounts, PresenceReport, PresenceTracked, PresencesReport, RemovedReport,
};
use reqwest::Method;

use crate::{
    args::PresenceCommand,
    client::{Client, segment},
    exit::{Done, Failure},
    listing::{Page, Row, list},
    names::words,
    output::{Output, Tone},
    signals::Signals,
    watching::watch,
};

pub(crate) async fn presence(
    client: &Client,
    command: &PresenceCommand,
    output: &mut Output,
) -> Done {
    match command {
        PresenceCommand::Ls { topic: None, prefix } => {
            let path = format!("/v1/presence?limit=10000&prefix={}", segment(prefix));
            list::<PresencesReport>(client, &path, &["TOPIC", "PRESENT"], output).await
        }
        PresenceCommand::Ls { topic: Some(topic), .. } => {
            let path = format!("/v1/presence/{}?limit=10000", segment(topic));
            list::<PresenceReport>(client, &path, &["KEY", "NODE", "METADATA"], output).await
        }
        PresenceCommand::Watch { topic, count } => {
            let path = format!("/v1/presence-watch?topic={}", segment(topic));
            let what = format!("presences of {topic:?}");
            watch(client, &path, &what, *count, output, change_line).await
        }
        PresenceCommand::Counts { prefix, count } => {
            let path = format!("/v1/presence-counts?prefix={}", segment(prefix));
            watch(client, &path, "counts of presences", *count, output, counts_line).await
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

impl Page for PresencesReport {
    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn rows(&self) -> Vec<Row> {
        let topics = self.topics.iter();
        topics
            .map(|topic| {
                vec![(Tone::Strong, topic.topic.clone()), (Tone::Quiet, topic.count.to_string())]
            })
            .collect()
    }
}

impl Page for PresenceReport {
    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn rows(&self) -> Vec<Row> {
        let entries = self.entries.iter();
        entries
            .map(|entry| {
                vec![
                    (Tone::Strong, entry.key.clone()),
                    (Tone::Quiet, entry.node.clone()),
                    (Tone::Quiet, words(&entry.metadata).trim_start().to_owned()),
                ]
            })
            .collect()
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

fn change_line(change: &PresenceChange, output: &Output) -> String {
    let (tone, what, entry) = match (&change.before, &change.now) {
        (None, now) => (Tone::Good, "join", now),
        (Some(_), Some(_)) => (Tone::Doubtful, "update", &change.now),
        (before, None) => (Tone::Bad, "leave", before),
    };
    let what = output.toned_cell(tone, what, 6);
    let entry = entry.as_ref();
    let node = entry.map(|entry| entry.node.clone()).unwrap_or_default();
    let metadata = entry.map(|entry| words(&entry.metadata)).unwrap_or_default();
    let said = |it: &Option<String>| it.clone().unwrap_or_else(|| "nothing".to_owned());
    let fields = change.fields.iter();
    let fields = fields.map(|it| format!("{} {} -> {}", it.name, said(&it.before), said(&it.now)));
    let fields = match fields.collect::<Vec<_>>().join(", ") {
        fields if fields.is_empty() => fields,
        fields => format!("  ({fields})"),
    };
    format!("{what}  {}  {node}  {}{metadata}{fields}", change.key, change.why)
}

fn counts_line(counts: &PresenceCounts, output: &Output) -> String {
    let line = |topic: &purlin_server::shapes::PresenceCount| {
        let nodes = topic.nodes.iter().map(|(node, count)| format!("{node} {count}"));
        let nodes = nodes.collect::<Vec<_>>().join(", ");
        let count = output.toned_cell(Tone::Strong, &topic.count.to_string(), 7);
        format!("{count}  {}  {nodes}", topic.topic).trim_end().to_owned()
    };
    match counts.topics.is_empty() {
        true => "nobody is present anywhere".to_owned(),
        false => counts.topics.iter().map(line).collect::<Vec<_>>().join("\n"),
    }
}
