//! `purlin ephemeral`: values that are everywhere, in memory, and may end by themselves.

use purlin_server::shapes::{EntryReport, EphemeralChange, EphemeralReport};

use crate::{
    args::EphemeralCommand,
    client::{Client, segment},
    exit::Done,
    listing::{Page, Row, list},
    output::{Output, Tone, human_micros},
    replicated::{delete, key_text, read, value_text, write},
    watching,
};

pub(crate) async fn ephemeral(
    client: &Client,
    command: &EphemeralCommand,
    output: &mut Output,
) -> Done {
    let path = |key: &str| format!("/v1/ephemeral/{}", segment(key));
    match command {
        EphemeralCommand::Get { key } => read(client, &path(key), key, output).await,
        EphemeralCommand::Put { key, value, ttl, if_version, if_absent } => {
            let mut query = Vec::new();
            if let Some(ttl) = ttl {
                query.push(format!("ttl_ms={}", ttl.as_millis()));
            }
            if let Some(version) = if_version {
                query.push(format!("if_version={}", segment(version)));
            }
            if *if_absent {
                query.push("if_absent=true".to_owned());
            }
            let path = format!("{}?{}", path(key), query.join("&"));
            write(client, &path, value.as_deref(), output).await
        }
        EphemeralCommand::Delete { key, if_version } => {
            let query = if_version.as_ref().map(|it| format!("?if_version={}", segment(it)));
            let path = format!("{}{}", path(key), query.unwrap_or_default());
            delete(client, &path, String::new(), output).await
        }
        EphemeralCommand::Ls { prefix } => {
            let path = format!("/v1/ephemeral?limit=10000&prefix={}", segment(prefix));
            list::<EphemeralReport>(client, &path, &["KEY", "BY", "ENDS", "VALUE"], output).await
        }
        EphemeralCommand::Watch { prefix, count } => watch(client, prefix, *count, output).await,
    }
}

impl Page for EphemeralReport {
    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn rows(&self) -> Vec<Row> {
        let row = |entry: &EntryReport| {
            let ends = entry.expires_in_ms.map_or_else(
                || "stays".to_owned(),
                |ms| format!("ends in {}", human_micros(ms.saturating_mul(1_000))),
            );
            vec![
                (Tone::Strong, key_text(entry)),
                (Tone::Quiet, entry.origin.clone()),
                (Tone::Quiet, ends),
                (Tone::Quiet, value_text(entry)),
            ]
        };
        self.entries.iter().map(row).collect()
    }
}

async fn watch(client: &Client, prefix: &str, count: Option<u64>, output: &mut Output) -> Done {
    let path = format!("/v1/ephemeral-watch?prefix={}", segment(prefix));
    let what = format!("{prefix:?}");
    watching::watch(client, &path, &what, count, output, |change: &EphemeralChange, output| {
        let coded = || format!("base64:{}", change.key_base64.as_deref().unwrap_or_default());
        let key = change.key.clone().unwrap_or_else(coded);
        match &change.now {
            Some(entry) => {
                format!("{} {key} = {}", output.toned(Tone::Good, "set"), value_text(entry))
            }
            None if change.cause == "expired" => {
                format!("{} {key}", output.toned(Tone::Doubtful, "expired"))
            }
            None => format!("{} {key}", output.toned(Tone::Bad, "deleted")),
        }
    })
    .await
}
