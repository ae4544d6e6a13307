//! `purlin state`: what is kept of replicated state, how it changes, how far copies are behind.

use purlin_server::shapes::{CatalogueReport, NamedStateReport, StateChange, StateReport};

use crate::{
    args::StateCommand,
    client::{Client, segment},
    exit::Done,
    listing::{Page, Row, list},
    output::{Output, Tone, human_bytes, human_micros, table},
    watching,
};

pub(crate) async fn catalogue(
    client: &Client,
    command: &StateCommand,
    output: &mut Output,
) -> Done {
    match command {
        StateCommand::Ls { prefix, set } => {
            let path = format!("/v1/state/{set}/keys?prefix={}", segment(prefix));
            let head = ["NAME", "KIND", "ENTRIES", "SIZE", "LAST BY"];
            list::<CatalogueReport>(client, &path, &head, output).await
        }
        StateCommand::Watch { prefix, set, count } => {
            let path = format!("/v1/state/{set}/watch?prefix={}", segment(prefix));
            let what = format!("{prefix:?}");
            watching::watch(client, &path, &what, *count, output, change_line).await
        }
        StateCommand::Lag => lag(client, output).await,
    }
}

impl Page for CatalogueReport {
    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn rows(&self) -> Vec<Row> {
        self.rows.iter().map(row).collect()
    }
}

fn row(row: &NamedStateReport) -> Row {
    // Some kinds keep no time, so nobody is the last: then all who wrote.
    let last = row.origin.clone().unwrap_or_else(|| row.writers.join(", "));
    vec![
        (Tone::Strong, text_of(row.name.as_deref(), row.name_base64.as_deref())),
        (Tone::Quiet, row.kinds.join(" and ")),
        (Tone::Quiet, row.entries.to_string()),
        (Tone::Quiet, human_bytes(row.bytes)),
        (Tone::Quiet, last),
    ]
}

fn text_of(text: Option<&str>, coded: Option<&str>) -> String {
    text.map_or_else(|| format!("base64:{}", coded.unwrap_or_default()), ToOwned::to_owned)
}

fn change_line(change: &StateChange, output: &Output) -> String {
    let mut name = text_of(change.name.as_deref(), change.name_base64.as_deref());
    if change.key.is_some() || change.key_base64.is_some() {
        let key = text_of(change.key.as_deref(), change.key_base64.as_deref());
        name = format!("{name} {key}");
    }
    let told = change.told_by.as_ref().map(|node| format!(", told by {node}"));
    let (tone, how) = match &change.now {
        None if change.cause == "expired" => (Tone::Doubtful, "expired".to_owned()),
        None => (Tone::Bad, "deleted".to_owned()),
        Some(_) => (Tone::Good, how(change)),
    };
    let kind = output.toned(Tone::Quiet, &format!("({}{})", change.kind, told.unwrap_or_default()));
    format!("{name} {} {kind}", output.toned(tone, &how))
}

/// What a change did, in a few words.
fn how(change: &StateChange) -> String {
    let now = change.now.clone().unwrap_or_default();
    if let (Some(by), Some(count)) = (change.by, now.count) {
        return format!("{by:+} = {count}");
    }
    if let Some(splice) = &change.splice {
        let (at, delete) = (splice.at, splice.delete);
        return format!("at {at}: -{delete} +{:?}", splice.insert);
    }
    let written = change.entries.iter().map(|entry| {
        let key = text_of(entry.key.as_deref(), entry.key_base64.as_deref());
        format!("{key} = {:?}", text_of(entry.value.as_deref(), entry.value_base64.as_deref()))
    });
    let removed = change.removed.iter().map(|path| format!("without {path}"));
    let nested: Vec<String> = written.chain(removed).collect();
    match now.on {
        Some(on) => (if on { "on" } else { "off" }).to_owned(),
        None if !nested.is_empty() => nested.join(", "),
        None if !now.values.is_empty() => format!("= {:?}", now.values),
        None if now.value.is_some() || now.value_base64.is_some() => {
            format!("= {:?}", text_of(now.value.as_deref(), now.value_base64.as_deref()))
        }
        None => "added".to_owned(),
    }
}

async fn lag(client: &Client, output: &mut Output) -> Done {
    let report: StateReport = client.get("/v1/state").await?;
    if output.is_json() {
        return output.json(&report);
    }
    let rows = report.sets.iter().flat_map(|set| {
        set.peers.iter().map(move |peer| {
            let caught_up = match peer.caught_up_ms_ago {
                Some(ms) => format!("{} ago", human_micros(ms.saturating_mul(1_000))),
                None => "never".to_owned(),
            };
            let tone = if peer.unconfirmed_writes == 0 { Tone::Good } else { Tone::Doubtful };
            vec![
                (Tone::Strong, set.name.clone()),
                (Tone::Quiet, set.keys.to_string()),
                (Tone::Strong, peer.node.clone()),
                (tone, peer.unconfirmed_writes.to_string()),
                (Tone::Quiet, caught_up),
            ]
        })
    });
    let rows: Vec<_> = rows.collect();
    table(&["SET", "KEYS", "NODE", "UNCONFIRMED", "COMPARED"], &rows, output)
}
