//! `purlin registry` and `purlin groups`: processes by name, as a node of the cluster knows them.

use std::collections::BTreeMap;

use purlin_server::shapes::{
    GroupMembersReport, GroupsReport, NameChange, RegistryEntry, RegistryReport,
};

use crate::{
    args::{GroupsCommand, RegistryCommand},
    client::{Client, segment},
    exit::{Done, Failure},
    listing::{Page, Row, list},
    output::{Output, Tone},
    watching::watch,
};

const NAMES: [&str; 4] = ["NAME", "PROCESS", "KIND", "METADATA"];

pub(crate) async fn registry(
    client: &Client,
    command: &RegistryCommand,
    output: &mut Output,
) -> Done {
    match command {
        RegistryCommand::Ls { prefix, local: true, .. } => {
            let path = format!("/v1/registry?local=true&prefix={}", segment(prefix));
            list::<RegistryReport>(client, &path, &NAMES, output).await
        }
        RegistryCommand::Ls { prefix, scope, shared, local: false } => {
            let (prefix, scope) = (segment(prefix), segment(&scope.scope));
            let path =
                format!("/v1/registry?limit=10000&prefix={prefix}&scope={scope}&shared={shared}");
            list::<RegistryReport>(client, &path, &NAMES, output).await
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
            let (what, scope) = (format!("names {prefix:?}"), segment(&scope.scope));
            let path = format!("/v1/registry-watch?prefix={}&scope={scope}", segment(prefix));
            watch(client, &path, &what, *count, output, change_line).await
        }
    }
}

impl Page for RegistryReport {
    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn is_cut_short(&self) -> bool {
        self.truncated && self.next.is_none()
    }

    fn rows(&self) -> Vec<Row> {
        let row = |entry: &RegistryEntry| {
            vec![
                (Tone::Strong, entry.name.clone()),
                (Tone::Quiet, entry.pid.clone()),
                (Tone::Quiet, entry.kind.clone()),
                (Tone::Quiet, words(&entry.metadata).trim_start().to_owned()),
            ]
        };
        self.entries.iter().map(row).collect()
    }
}

pub(crate) async fn groups(client: &Client, command: &GroupsCommand, output: &mut Output) -> Done {
    match command {
        GroupsCommand::Ls { group: Some(group), scope, .. } => {
            let (group, scope) = (segment(group), segment(&scope.scope));
            let path = format!("/v1/groups/{group}?limit=10000&scope={scope}");
            let head = ["PROCESS", "KIND", "METADATA"];
            list::<GroupMembersReport>(client, &path, &head, output).await
        }
        GroupsCommand::Ls { group: None, prefix, scope } => {
            let (prefix, scope) = (segment(prefix), segment(&scope.scope));
            let path = format!("/v1/groups?limit=10000&prefix={prefix}&scope={scope}");
            list::<GroupsReport>(client, &path, &["GROUP", "MEMBERS"], output).await
        }
        GroupsCommand::Watch { prefix, scope, count } => {
            let (what, scope) = (format!("groups {prefix:?}"), segment(&scope.scope));
            let path = format!("/v1/groups-watch?prefix={}&scope={scope}", segment(prefix));
            watch(client, &path, &what, *count, output, change_line).await
        }
    }
}

impl Page for GroupsReport {
    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn rows(&self) -> Vec<Row> {
        let groups = self.groups.iter();
        groups
            .map(|group| {
                vec![(Tone::Strong, group.name.clone()), (Tone::Quiet, group.members.to_string())]
            })
            .collect()
    }
}

impl Page for GroupMembersReport {
    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn rows(&self) -> Vec<Row> {
        let members = self.members.iter();
        members
            .map(|member| {
                vec![
                    (Tone::Strong, member.pid.clone()),
                    (Tone::Quiet, member.kind.clone()),
                    (Tone::Quiet, words(&member.metadata).trim_start().to_owned()),
                ]
            })
            .collect()
    }
}

/// Metadata as `  key=value key=value`; nothing for none.
pub(crate) fn words(metadata: &BTreeMap<String, String>) -> String {
    let words = metadata.iter().map(|(key, value)| format!(" {key}={value}"));
    let words: String = words.collect();
    if words.is_empty() { words } else { format!(" {words}") }
}

fn change_line(change: &NameChange, output: &Output) -> String {
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
    let error = change.error.as_ref().map(|error| format!("  {error}")).unwrap_or_default();
    format!("{why}  {}  {who}{error}", change.name)
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
