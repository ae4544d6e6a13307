//! `purlin registry` and `purlin groups`: processes by name, as a node of the cluster knows them.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt as _;
use purlin_server::shapes::{
    GroupMembersReport, GroupsReport, NameChange, RegistryEntry, RegistryReport,
};

use crate::{
    args::{GroupsCommand, RegistryCommand},
    client::{Client, segment},
    exit::{Done, Failure},
    output::{Output, Tone, table},
    sse::{Event, Parser},
};

const RETRY_EVERY: Duration = Duration::from_millis(500);
const RETRIES: u32 = 60;

pub(crate) async fn registry(
    client: &Client,
    command: &RegistryCommand,
    output: &mut Output,
) -> Done {
    match command {
        RegistryCommand::Ls { prefix, local: true, .. } => {
            let path = format!("/v1/registry?local=true&prefix={}", segment(prefix));
            names(client, &path, true, output).await
        }
        RegistryCommand::Ls { prefix, scope, shared, local: false } => {
            let (prefix, scope) = (segment(prefix), segment(&scope.scope));
            let path =
                format!("/v1/registry?limit=10000&prefix={prefix}&scope={scope}&shared={shared}");
            names(client, &path, false, output).await
        }
        RegistryCommand::Whereis { name, scope } => {
            let path = format!("/v1/registry/{}?scope={}", segment(name), segment(&scope.scope));
            let Some(found) = client.find(&path).await? else {
                return Err(Failure::NotDone(format!("nobody has the name {name:?}")));
            };
            let found: RegistryEntry = serde_json::from_slice(&found)
                .map_err(|error| Failure::NotDone(format!("the answer cannot be read: {error}")))?;
            if output.is_json() {
                return output.json(&found);
            }
            let kind = output.toned(Tone::Quiet, &found.kind);
            output.line(&format!("{}  {kind}{}", found.pid, words(&found.metadata)))
        }
        RegistryCommand::Watch { prefix, scope, count } => {
            let (prefix, scope) = (segment(prefix), segment(&scope.scope));
            let path = format!("/v1/registry-watch?prefix={prefix}&scope={scope}");
            watch(client, &path, *count, output, print).await
        }
    }
}

async fn names(client: &Client, path: &str, is_local: bool, output: &mut Output) -> Done {
    let (mut after, mut rows) = (String::new(), Vec::new());
    loop {
        let page: RegistryReport = client.get(&format!("{path}{after}")).await?;
        if output.is_json() {
            output.json(&page)?;
        }
        rows.extend(page.entries.into_iter().map(|entry| {
            let metadata = words(&entry.metadata);
            vec![
                (Tone::Strong, entry.name),
                (Tone::Quiet, entry.pid),
                (Tone::Quiet, entry.kind),
                (Tone::Quiet, metadata.trim_start().to_owned()),
            ]
        }));
        match page.next {
            Some(next) => after = format!("&after={}", segment(&next)),
            None => {
                if is_local && page.truncated {
                    output.note("there are more than these");
                }
                if output.is_json() {
                    return Ok(());
                }
                return table(&["NAME", "PROCESS", "KIND", "METADATA"], &rows, output);
            }
        }
    }
}

pub(crate) async fn groups(client: &Client, command: &GroupsCommand, output: &mut Output) -> Done {
    match command {
        GroupsCommand::Ls { group: Some(group), scope, .. } => {
            let (group, scope) = (segment(group), segment(&scope.scope));
            members(client, &format!("/v1/groups/{group}?limit=10000&scope={scope}"), output).await
        }
        GroupsCommand::Ls { group: None, prefix, scope } => {
            let (prefix, scope) = (segment(prefix), segment(&scope.scope));
            list(client, &format!("/v1/groups?limit=10000&prefix={prefix}&scope={scope}"), output)
                .await
        }
        GroupsCommand::Watch { prefix, scope, count } => {
            let (prefix, scope) = (segment(prefix), segment(&scope.scope));
            let path = format!("/v1/groups-watch?prefix={prefix}&scope={scope}");
            watch(client, &path, *count, output, print).await
        }
    }
}

async fn list(client: &Client, path: &str, output: &mut Output) -> Done {
    let (mut after, mut rows) = (String::new(), Vec::new());
    loop {
        let page: GroupsReport = client.get(&format!("{path}{after}")).await?;
        if output.is_json() {
            output.json(&page)?;
        }
        rows.extend(page.groups.into_iter().map(|group| {
            vec![(Tone::Strong, group.name), (Tone::Quiet, group.members.to_string())]
        }));
        match page.next {
            Some(next) => after = format!("&after={}", segment(&next)),
            None if output.is_json() => return Ok(()),
            None => return table(&["GROUP", "MEMBERS"], &rows, output),
        }
    }
}

async fn members(client: &Client, path: &str, output: &mut Output) -> Done {
    let (mut after, mut rows) = (String::new(), Vec::new());
    loop {
        let page: GroupMembersReport = client.get(&format!("{path}{after}")).await?;
        if output.is_json() {
            output.json(&page)?;
        }
        rows.extend(page.members.into_iter().map(|member| {
            let metadata = words(&member.metadata);
            vec![
                (Tone::Strong, member.pid),
                (Tone::Quiet, member.kind),
                (Tone::Quiet, metadata.trim_start().to_owned()),
            ]
        }));
        match page.next {
            Some(next) => after = format!("&after={}", segment(&next)),
            None if output.is_json() => return Ok(()),
            None => return table(&["PROCESS", "KIND", "METADATA"], &rows, output),
        }
    }
}

/// Metadata as `  key=value key=value`; nothing for none.
pub(crate) fn words(metadata: &BTreeMap<String, String>) -> String {
    let words = metadata.iter().map(|(key, value)| format!(" {key}={value}"));
    let words: String = words.collect();
    if words.is_empty() { words } else { format!(" {words}") }
}

/// Prints changes until there were `count`; goes on where it was when a connection breaks.
pub(crate) async fn watch(
    client: &Client,
    path: &str,
    count: Option<u64>,
    output: &mut Output,
    print: fn(&Event, &mut Output) -> Result<bool, Failure>,
) -> Done {
    let (mut left, mut misses) = (count, 0);
    let mut last: Option<(String, String)> = None;
    while left != Some(0) {
        let last_id = last.as_ref().map(|(_, id)| id.as_str());
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
            None => output.note(&format!("watching on {}", endpoint.url)),
            // Ids are a node's own: another begins anew, and says so.
            Some((url, _)) if *url != endpoint.url => output.note(&format!(
                "now watching on {}; changes in between may be missing",
                endpoint.url
            )),
            Some(_) => {}
        }
        misses = 0;
        let (mut parser, mut batch) = (Parser::default(), Vec::new());
        let mut body = response.bytes_stream();
        while left != Some(0)
            && let Some(Ok(chunk)) = body.next().await
        {
            parser.feed(&chunk, &mut batch).map_err(Failure::not_done)?;
            for event in batch.drain(..) {
                if let Some(id) = &event.id {
                    last = Some((endpoint.url.clone(), id.clone()));
                }
                match event.kind.as_str() {
                    "change" if left != Some(0) && print(&event, output)? => {
                        left = left.map(|left| left - 1);
                    }
                    "gap" => output
                        .note(&format!("changes are missing here, list again: {}", event.data)),
                    _ => {}
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
fn print(event: &Event, output: &mut Output) -> Result<bool, Failure> {
    if output.is_json() {
        output.line(&event.data)?;
        return Ok(true);
    }
    let change: NameChange = serde_json::from_str(&event.data)
        .map_err(|error| Failure::NotDone(format!("a change cannot be read: {error}")))?;
    let tone = match (&change.before, &change.now) {
        (Some(_), None) => Tone::Bad,
        (Some(_), Some(_)) => Tone::Doubtful,
        (None, _) => Tone::Good,
    };
    let why = output.toned_cell(tone, &change.why, 14);
    let pid = |side: &Option<RegistryEntry>| side.as_ref().map(|entry| entry.pid.clone());
    let who = match (pid(&change.before), pid(&change.now)) {
        (Some(before), Some(now)) if before != now => format!("{before} -> {now}"),
        (_, Some(now)) => now,
        (before, None) => before.unwrap_or_default(),
    };
    let error = change.error.map(|error| format!("  {error}")).unwrap_or_default();
    output.line(&format!("{why}  {}  {who}{error}", change.name))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_a_few_words() {
        assert_eq!(words(&BTreeMap::new()), "");
        let two = [("a", "1"), ("b", "x y")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(words(&two.into()), "  a=1 b=x y");
    }
}
