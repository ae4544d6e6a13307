//! Names, groups and presences, as clients see them.

use std::{collections::BTreeMap, sync::Arc};

use purlin::dist::{Change, Entry, Event};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/registry`: names of processes, known on every node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegistryReport {
    /// The answering node.
    pub node: String,
    /// Which scope was asked for; `null` for names that only the answering node knows (`local`).
    pub scope: Option<String>,
    /// Entries whose name starts with the prefix, by name.
    pub entries: Vec<RegistryEntry>,
    /// Whether there were more than that.
    pub truncated: bool,
    /// What to give as `after` to go on; `null` at the end.
    pub next: Option<String>,
}

/// `GET /v1/registry-scopes`: the scopes that hold names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ScopesReport {
    /// Scopes whose name starts with the prefix, by name.
    pub scopes: Vec<String>,
    /// What to give as `after` to go on; `null` at the end.
    pub next: Option<String>,
}

/// One registered name, or one process under a shared key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegistryEntry {
    /// The name, or the key that several processes share.
    pub name: String,
    /// Whether no other process can have it.
    pub unique: bool,
    /// The process: `node@incarnation#number`.
    pub pid: String,
    /// The node it runs on.
    pub node: String,
    /// The kind of server behind it.
    pub kind: String,
    /// What was said about it when it was registered, or since.
    pub metadata: BTreeMap<String, String>,
    /// When it was registered, by hybrid logical time; `null` for names of the answering node only.
    pub since: Option<String>,
    /// When it was last changed, by hybrid logical time; `null` as `since`.
    pub version: Option<String>,
}

impl From<&Entry> for RegistryEntry {
    fn from(entry: &Entry) -> Self {
        Self {
            name: entry.key.to_string(),
            unique: entry.space == purlin::dist::Space::Unique,
            pid: pid_of(entry),
            node: entry.at.owner.name.to_string(),
            kind: entry.kind.to_string(),
            metadata: metadata_of(entry),
            since: Some(entry.since.to_string()),
            version: Some(entry.version.to_string()),
        }
    }
}

/// `GET /v1/groups`: groups of processes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupsReport {
    /// Which scope was asked for.
    pub scope: String,
    /// Groups whose name starts with the prefix, by name.
    pub groups: Vec<GroupReport>,
    /// What to give as `after` to go on; `null` at the end.
    pub next: Option<String>,
}

/// One group and how many are in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupReport {
    /// Its name.
    pub name: String,
    /// How many members it has.
    pub members: u64,
}

/// `GET /v1/groups/{group}`: the members of one group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupMembersReport {
    /// The group.
    pub name: String,
    /// How many members it has.
    pub count: u64,
    /// Its members, by node.
    pub members: Vec<GroupMember>,
    /// What to give as `after` to go on; `null` at the end.
    pub next: Option<String>,
}

/// One member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GroupMember {
    /// The process: `node@incarnation#number`.
    pub pid: String,
    /// The node it runs on.
    pub node: String,
    /// The kind of server it is.
    pub kind: String,
    /// What was said about it when it joined, or since.
    pub metadata: BTreeMap<String, String>,
    /// When it joined, by hybrid logical time.
    pub since: String,
}

impl From<&Entry> for GroupMember {
    fn from(entry: &Entry) -> Self {
        Self {
            pid: pid_of(entry),
            node: entry.at.owner.name.to_string(),
            kind: entry.kind.to_string(),
            metadata: metadata_of(entry),
            since: entry.since.to_string(),
        }
    }
}

/// The data of `ready`, the first event of a watch: what changes from here on follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReadyReport {
    /// The number of the last event before.
    pub revision: u64,
}

/// The data of `change`: what a name or group holds now, what it held, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NameChange {
    /// Its number on the answering node.
    pub revision: u64,
    /// When the answering node saw it, in milliseconds of its wall clock.
    pub at_ms: u64,
    /// The name or group.
    pub name: String,
    /// Why: `registered`, `updated`, `unregistered`, `normal`, `crashed`, `conflict`, `node_down`,
    /// `node_back`, `node_left`, `node_drained`, `node_restarted`, `node_forgotten` or
    /// `unexplained`.
    pub why: String,
    /// The failure's own words, when it is `crashed`.
    pub error: Option<String>,
    /// The process that was there.
    pub before: Option<RegistryEntry>,
    /// The process that is there now.
    pub now: Option<RegistryEntry>,
}

impl From<&Event> for NameChange {
    fn from(event: &Event) -> Self {
        let Change { before, now, why } = &event.change;
        let side = |it: &Option<Arc<Entry>>| it.as_deref().map(RegistryEntry::from);
        Self {
            revision: event.revision,
            at_ms: event.at.as_millis(),
            name: event.change.entry().key.to_string(),
            why: why.as_str().to_owned(),
            error: match why {
                purlin::dist::Why::Crashed(text) => Some(text.to_string()),
                _ => None,
            },
            before: side(before),
            now: side(now),
        }
    }
}

/// `GET /v1/presence`: topics in which somebody is present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresencesReport {
    /// Topics whose name starts with the prefix, by name.
    pub topics: Vec<PresenceTopic>,
    /// What to give as `after` to go on; `null` at the end.
    pub next: Option<String>,
}

/// One topic and how many are present in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresenceTopic {
    /// Its name.
    pub topic: String,
    /// How many presences it has; one key may have several.
    pub count: u64,
}

/// `GET /v1/presence/{topic}[/{key}]`: who is present in one topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresenceReport {
    /// The topic.
    pub topic: String,
    /// How many presences it has, in all.
    pub count: u64,
    /// Who is present, by key.
    pub entries: Vec<PresenceEntry>,
    /// What to give as `after` to go on; `null` at the end.
    pub next: Option<String>,
}

/// One presence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresenceEntry {
    /// Who is present.
    pub key: String,
    /// The node that keeps it.
    pub node: String,
    /// The process it goes with; `null` for one kept by a handle or a lease.
    pub pid: Option<String>,
    /// What was said about it.
    pub metadata: BTreeMap<String, String>,
    /// Since when it is present, by hybrid logical time.
    pub since: String,
    /// When it was last changed, by hybrid logical time.
    pub version: String,
}

impl From<&Entry> for PresenceEntry {
    fn from(entry: &Entry) -> Self {
        Self {
            key: entry.key.to_string(),
            node: entry.at.owner.name.to_string(),
            pid: entry.pid().map(|pid| pid.to_string()),
            metadata: metadata_of(entry),
            since: entry.since.to_string(),
            version: entry.version.to_string(),
        }
    }
}

/// Answer to `PUT /v1/presence/{topic}/{key}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresenceTracked {
    /// The presence as it is now.
    pub entry: PresenceEntry,
    /// When it ends unless the request is made again before, on the same node.
    pub expires_in_ms: u64,
}

/// The data of `change` in `GET /v1/presence-watch`: somebody came, changed or went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresenceChange {
    /// Its number on the answering node.
    pub revision: u64,
    /// When the answering node saw it, in milliseconds of its wall clock.
    pub at_ms: u64,
    /// The topic.
    pub topic: String,
    /// Who it is about.
    pub key: String,
    /// Why: as for names, and `expired` for a lease that was not renewed.
    pub why: String,
    /// The presence before; `null` when it is new.
    pub before: Option<PresenceEntry>,
    /// The presence now; `null` when it is over.
    pub now: Option<PresenceEntry>,
}

impl From<&Event> for PresenceChange {
    fn from(event: &Event) -> Self {
        let Change { before, now, why } = &event.change;
        let side = |it: &Option<Arc<Entry>>| it.as_deref().map(PresenceEntry::from);
        Self {
            revision: event.revision,
            at_ms: event.at.as_millis(),
            topic: event.change.entry().scope.to_string(),
            key: event.change.entry().key.to_string(),
            why: why.as_str().to_owned(),
            before: side(before),
            now: side(now),
        }
    }
}

fn pid_of(entry: &Entry) -> String {
    entry.pid().map(|pid| pid.to_string()).unwrap_or_default()
}

fn metadata_of(entry: &Entry) -> BTreeMap<String, String> {
    entry.metadata.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
