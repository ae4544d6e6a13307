//! Names, groups and presences, as clients see them.

use std::{collections::BTreeMap, sync::Arc};

use purlin::dist::{Change, Counted, Diff, Entry, Event, Field, Page, Update, Why};
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
                Why::Crashed(text) => Some(text.to_string()),
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
    /// Which presence: no other, before or after, has this.
    pub id: String,
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
            id: id_of(entry),
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
    /// What of the metadata differs, for one that changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fields: Vec<PresenceField>,
}

/// One name of the metadata whose value changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresenceField {
    /// Which.
    pub name: String,
    /// Its value before; `null` when it had none.
    pub before: Option<String>,
    /// Its value now; `null` when it has none any more.
    pub now: Option<String>,
}

impl From<Field<'_>> for PresenceField {
    fn from(field: Field<'_>) -> Self {
        let text = |it: Option<&str>| it.map(str::to_owned);
        Self { name: field.name.to_owned(), before: text(field.before), now: text(field.now) }
    }
}

fn fields_of(update: &Update) -> Vec<PresenceField> {
    update.fields().into_iter().map(PresenceField::from).collect()
}

/// The data of `page` in `GET /v1/presence-sync`: some of those who are in the topic, by key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresencePage {
    /// Whether it is the first: forget everything known of the topic.
    pub first: bool,
    /// Whether it is the last: the copy is complete.
    pub last: bool,
    /// How many are in the topic now.
    pub count: u64,
    /// Who.
    pub entries: Vec<PresenceEntry>,
}

impl From<&Page> for PresencePage {
    fn from(page: &Page) -> Self {
        Self {
            first: page.first,
            last: page.last,
            count: page.count as u64,
            entries: page.entries.iter().map(|entry| PresenceEntry::from(&**entry)).collect(),
        }
    }
}

/// The data of `diff` in `GET /v1/presence-sync`. Its parts may be applied in any order; of what has
/// the same `id` the later `version` holds: compare its milliseconds, then its counter, as numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresenceDiff {
    /// Who is there now that was not.
    pub joins: Vec<PresenceEntry>,
    /// Who was there before and after.
    pub updates: Vec<PresenceUpdate>,
    /// Who is there no more.
    pub leaves: Vec<PresenceLeave>,
}

/// Somebody who was present before and after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresenceUpdate {
    /// The `id` it had: another one when its client came back elsewhere after a drain.
    pub was: String,
    /// How it is now.
    pub entry: PresenceEntry,
    /// What of the metadata differs.
    pub fields: Vec<PresenceField>,
}

/// Somebody who is present no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresenceLeave {
    /// Which presence.
    pub id: String,
    /// Who.
    pub key: String,
    /// The node that kept it.
    pub node: String,
    /// Why, as in `/v1/presence-watch`.
    pub why: String,
}

impl From<&Diff> for PresenceDiff {
    fn from(diff: &Diff) -> Self {
        let leave = |(entry, why): &(Arc<Entry>, Why)| PresenceLeave {
            id: id_of(entry),
            key: entry.key.to_string(),
            node: entry.at.owner.name.to_string(),
            why: why.as_str().to_owned(),
        };
        let update = |update: &Update| PresenceUpdate {
            was: id_of(&update.before),
            entry: PresenceEntry::from(&*update.now),
            fields: fields_of(update),
        };
        Self {
            joins: diff.joins.iter().map(|entry| PresenceEntry::from(&**entry)).collect(),
            updates: diff.updates.iter().map(update).collect(),
            leaves: diff.leaves.iter().map(leave).collect(),
        }
    }
}

/// The data of `counts` in `GET /v1/presence-counts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresenceCounts {
    /// Whether everything known so far is to be forgotten.
    pub first: bool,
    /// Whether all topics have been told by now.
    pub last: bool,
    /// How many are in each; those that nobody is in any more with 0.
    pub topics: Vec<PresenceCount>,
}

/// How many are in a topic, and on which nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PresenceCount {
    /// Which.
    pub topic: String,
    /// How many.
    pub count: u64,
    /// How many of them each node keeps.
    pub nodes: BTreeMap<String, u64>,
}

impl From<&Counted> for PresenceCounts {
    fn from(counted: &Counted) -> Self {
        let topics = counted.topics.iter().map(|it| {
            let mut nodes = BTreeMap::new();
            for (node, count) in &it.nodes {
                // Two lives of a node are one name, for a moment.
                *nodes.entry(node.name.to_string()).or_default() += *count as u64;
            }
            PresenceCount { topic: it.topic.to_string(), count: it.count as u64, nodes }
        });
        Self { first: counted.first, last: counted.last, topics: topics.collect() }
    }
}

impl From<&Event> for PresenceChange {
    fn from(event: &Event) -> Self {
        let Change { before, now, why } = &event.change;
        let side = |it: &Option<Arc<Entry>>| it.as_deref().map(PresenceEntry::from);
        let both = before.clone().zip(now.clone());
        let fields = both.map(|(before, now)| fields_of(&Update { before, now }));
        Self {
            fields: fields.unwrap_or_default(),
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

fn id_of(entry: &Entry) -> String {
    format!("{}/{}", entry.at.owner, entry.at.number)
}

fn pid_of(entry: &Entry) -> String {
    entry.pid().map(|pid| pid.to_string()).unwrap_or_default()
}

fn metadata_of(entry: &Entry) -> BTreeMap<String, String> {
    entry.metadata.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
