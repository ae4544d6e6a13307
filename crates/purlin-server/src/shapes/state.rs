//! Replicated state.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET|POST /v1/counters/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CounterReport {
    /// Its name.
    pub name: String,
    /// Its kind, such as `counter` or `grow_counter`; what a write would make of a name that holds
    /// nothing.
    pub kind: String,
    /// The sum of what all nodes added, as far as it is known here. Wider than 64 bits.
    #[schema(value_type = i64)]
    pub value: i128,
}

/// Body of `POST /v1/counters/{name}`: one of the two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CounterRequest {
    /// What to add; may be negative, except for a `grow_counter`.
    pub by: Option<i64>,
    /// `true`: back to zero; for a `resettable_counter`. What others add meanwhile counts.
    pub reset: bool,
}

/// `GET|PUT /v1/switches/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SwitchReport {
    /// Its name.
    pub name: String,
    /// `enable_wins` or `disable_wins`: what holds when both happen on two sides of a cut.
    #[schema(example = "enable_wins")]
    pub kind: String,
    /// Whether it is on. A switch that nobody touched is off.
    pub on: bool,
}

/// Body of `PUT /v1/switches/{name}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SwitchRequest {
    /// Whether it shall be on.
    pub on: bool,
}

/// Answer to a change of `/v1/texts/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TextReport {
    /// Its name.
    pub name: String,
    /// How many characters (Unicode scalar values) it has now.
    pub chars: u64,
}

/// Body of `POST /v1/texts/{name}`: one change, made as one. Characters count from 0 in the text as
/// the answering node has it when the request arrives.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct SpliceRequest {
    /// Before which character; left out: at the end.
    pub at: Option<u64>,
    /// How many characters from there on are taken out.
    pub delete: u64,
    /// What is put in there.
    pub insert: String,
}

/// Answer to every `DELETE` of replicated state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RemovedReport {
    /// Whether there was anything to remove here.
    pub removed: bool,
}

/// Answer to `PUT` of a value: when it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WrittenReport {
    /// The version written: a hybrid timestamp, `<ms>.<counter>.<tag of the writer>`. `null` for
    /// multi-value registers, whose values have none.
    pub version: Option<String>,
}

/// `GET /v1/sets/{name}`: elements in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetReport {
    /// Its name.
    pub name: String,
    /// Its kind, such as `counter` or `grow_counter`; what a write would make of a name that holds
    /// nothing.
    pub kind: String,
    /// The elements of this page that are text.
    pub elements: Vec<String>,
    /// Those that are not, in base64; left out when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub elements_base64: Vec<String>,
    /// Ask with `?after=` this for the next page; `null` after the last.
    pub next: Option<String>,
}

/// `GET|PUT /v1/sets/{name}/{element}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ElementReport {
    /// The set.
    pub name: String,
    /// Its kind, such as `counter` or `grow_counter`; what a write would make of a name that holds
    /// nothing.
    pub kind: String,
    /// The element.
    pub element: String,
    /// Always true: an element that is absent is a 404.
    pub present: bool,
}

/// `GET /v1/maps/{name}`: entries in key order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MapReport {
    /// Its name.
    pub name: String,
    /// Its kind, such as `counter` or `grow_counter`; what a write would make of a name that holds
    /// nothing.
    pub kind: String,
    /// The entries of this page.
    pub entries: Vec<EntryReport>,
    /// Ask with `?after=` this for the next page; `null` after the last.
    pub next: Option<String>,
}

/// One entry with its value, who wrote it and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EntryReport {
    /// The key, if it is text. In a nested map the path: keys divided by slashes, a slash in one of
    /// them as `%2F`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key in base64, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// The value, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The value in base64 (RFC 4648, padded), if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
    /// When it was written: a hybrid timestamp, which is also its version.
    pub hlc: String,
    /// The node that wrote it; the tag in `hlc` when this node never met that life of it.
    pub origin: String,
    /// For ephemeral ones: how long they still count; `null` for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in_ms: Option<u64>,
}

/// `GET /v1/values/{name}`: a register that keeps concurrent values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ValuesReport {
    /// Its name.
    pub name: String,
    /// One value, or several written on sides that did not know of each other, those that are text.
    pub values: Vec<String>,
    /// Those that are not, in base64; left out when there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values_base64: Vec<String>,
}

/// `GET /v1/ephemeral`: values whose keys begin with the prefix.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EphemeralReport {
    /// The entries of this page, in key order.
    pub entries: Vec<EntryReport>,
    /// Ask with `?after=` this for the next page; `null` after the last.
    pub next: Option<String>,
}

/// The data of a `change` event of `GET /v1/ephemeral-watch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EphemeralChange {
    /// The key, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key in base64, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// What it holds now; `null` when it is gone.
    pub now: Option<EntryReport>,
    /// `here`: written on this node. `told`: another node said so. `expired`: its time is over.
    /// `dropped`: this node does not keep such keys any more.
    #[schema(example = "told")]
    pub cause: String,
    /// With `told`: which node.
    pub told_by: Option<String>,
}

/// The data of `ready`, the first event of every watch: changes from here on follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WatchReport {
    /// Only keys that begin with this.
    pub prefix: String,
}

/// The data of a `change` event of `GET /v1/state/crdt/watch`: what changed, what it is now, and
/// where the change came from. Changes of one node arrive in the order in which its readers saw them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateChange {
    /// The name, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The name in base64, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_base64: Option<String>,
    /// Of a map or set: which key or element, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The same in base64, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// What it is, or was.
    #[schema(example = "counter")]
    pub kind: String,
    /// What it holds now; `null` when it is gone.
    pub now: Option<ValueReport>,
    /// Of a counter: what was added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub by: Option<i128>,
    /// Of a text: what makes the text now of the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub splice: Option<SpliceReport>,
    /// Of a map kept as one: values written or rewritten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub entries: Vec<EntryReport>,
    /// Of a set kept as one: new elements, those that are not text as `base64:`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub added: Vec<String>,
    /// Of a map or set kept as one: keys, paths or elements that are gone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub removed: Vec<String>,
    /// Whose writes it holds.
    pub writers: Vec<String>,
    /// `here`: written on this node. `told`: another node said so. `expired`: its time is over.
    /// `dropped`: this node does not keep such keys any more.
    #[schema(example = "told")]
    pub cause: String,
    /// With `told`: which node.
    pub told_by: Option<String>,
}

/// What a name holds, as far as it fits a line; which fields are there follows from the kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct ValueReport {
    /// Of a register or an entry of a map: the value, if it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The value in base64, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
    /// When that was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hlc: Option<String>,
    /// The node that wrote it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub origin: Option<String>,
    /// Of a multi-value register: every value, those that are not text as `base64:`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// Of a counter.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<i64>)]
    pub count: Option<i128>,
    /// Of a switch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on: Option<bool>,
    /// Of a text: how many characters it has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chars: Option<u64>,
}

/// A change of a text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SpliceReport {
    /// Before which character, counted from 0.
    pub at: u64,
    /// How many characters went.
    pub delete: u64,
    /// What came in their place.
    pub insert: String,
}

/// `GET /v1/state`: the replica sets of the answering node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StateReport {
    /// `crdt`, `ephemeral` and `flags`.
    pub sets: Vec<ReplicaSetReport>,
}

/// One replica set on the answering node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaSetReport {
    /// Which.
    #[schema(example = "crdt")]
    pub name: String,
    /// Whether it is kept on disk.
    pub durable: bool,
    /// How many keys it has; each entry of a map or set is one.
    pub keys: u64,
    /// Beginnings of the keys that this node keeps; an empty one means every key.
    #[schema(example = json!([""]))]
    pub keeps: Vec<String>,
    /// Of these, what it wants to go on keeping: the rest goes once others are known to have it.
    #[schema(example = json!([""]))]
    pub wants: Vec<String>,
    /// What is remembered besides the keys.
    pub context: ReplicaContext,
    /// How many changes this node has seen since it started: moves whenever anything does.
    pub changes: u64,
    /// How every neighbour stands, by name.
    pub peers: Vec<ReplicaPeerReport>,
    /// Messages that found no connection; they are sent again.
    pub unsent: u64,
    /// Changes the disk refused since the start.
    pub unpersisted: u64,
    /// What happened so far.
    pub counters: ReplicaCounters,
}

/// How one neighbour stands with a replica set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaPeerReport {
    /// Its name.
    pub node: String,
    /// `name@incarnation`.
    pub id: String,
    /// The version of replica messages both speak; `null` before it has answered.
    pub version: Option<u8>,
    /// Why nothing is exchanged with it: there is no version that both speak.
    pub incompatible: Option<String>,
    /// Beginnings of the keys it keeps; `null` before it has said so.
    pub keeps: Option<Vec<String>>,
    /// Why it last refused what was sent to it, unless it has taken something in since.
    pub refused: Option<String>,
    /// Writes it has not confirmed: the replication lag.
    pub unconfirmed_writes: u64,
    /// How long ago its whole state was last taken in; `null` if never.
    pub caught_up_ms_ago: Option<u64>,
}

/// What a replica set remembers besides its keys.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaContext {
    /// Lives of nodes in its causal contexts.
    pub lives: u64,
    /// Runs of writes kept apart because something before them has not been heard.
    pub gaps: u64,
    /// Contexts: more than one while it catches up with keys it began to keep.
    pub claims: u64,
    /// Lives that are over and take 16 bytes each.
    pub pruned: u64,
}

/// What happened to a replica set; everything only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaCounters {
    /// Updates taken in from neighbours.
    pub updates_joined: u64,
    /// Updates and pieces of which something was refused.
    pub updates_refused: u64,
    /// Entries refused because they were written in the future.
    pub future: u64,
    /// Entries refused because a value in them is too large.
    pub too_large: u64,
    /// Messages that were none.
    pub malformed: u64,
    /// Messages and greetings in versions that this release does not speak.
    pub incompatible: u64,
    /// Claims of writes of this node that it never made.
    pub forged: u64,
    /// Messages from somebody who was no neighbour at that moment.
    pub strangers: u64,
    /// Neighbours that came back under a life that had been taken to be over.
    pub revenants: u64,
    /// Keys that were heard to hold two kinds of value.
    pub mixed: u64,
    /// Comparisons begun.
    pub compared: u64,
    /// Comparisons that found a difference.
    pub differed: u64,
    /// Entries received in pieces.
    pub entries_pulled: u64,
    /// Lives forgotten because everybody had seen all of them and nothing of them was left.
    pub pruned: u64,
}

/// `GET /v1/state/{set}/keys`: a catalogue of names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CatalogueReport {
    /// `crdt` or `ephemeral`.
    pub set: String,
    /// One row per name, in order.
    pub rows: Vec<NamedStateReport>,
    /// Ask with `?after=` this for the next page; `null` after the last.
    pub next: Option<String>,
}

/// What is kept under one name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NamedStateReport {
    /// The name, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The name in base64, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name_base64: Option<String>,
    /// Its kind, such as `register`, `counter`, `text`; two only if two sides of a partition chose
    /// differently.
    pub kinds: Vec<String>,
    /// How many entries a map or set has, counted up to 1,000; 1 for other kinds.
    pub entries: u64,
    /// About how many bytes they have.
    pub bytes: u64,
    /// The latest write by hybrid time; `null` for counters and multi-value registers, which keep
    /// none.
    pub hlc: Option<String>,
    /// The wall clock part of `hlc`.
    pub written_at_ms: Option<u64>,
    /// Who made the latest write; for kinds without times, `null`.
    pub origin: Option<String>,
    /// Whose writes it holds.
    pub writers: Vec<String>,
}
