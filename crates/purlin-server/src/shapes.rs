//! Every JSON body this API sends or takes, one type each.
//!
//! These are promises to clients in any language: fields are added, never renamed or re-typed.
//! The same types are the schemas of `/openapi.json`. Times are Unix milliseconds (`_at_ms`) or
//! durations in the unit their name ends in; absent facts are `null`, not left out.

use std::collections::BTreeMap;

mod flags;
mod names;
mod state;
mod supervised;
mod supervisors;

pub use flags::{
    AskerRequest, AuditReport, EvaluationReport, FlagDefinition, FlagReport, FlagsChanged,
    FlagsReport, KillRequest, RolloutDefinition, RuleDefinition,
};
pub use names::{
    GroupMember, GroupMembersReport, GroupReport, GroupsReport, NameChange, PresenceChange,
    PresenceCount, PresenceCounts, PresenceDiff, PresenceEntry, PresenceField, PresenceLeave,
    PresencePage, PresenceReport, PresenceTopic, PresenceTracked, PresenceUpdate, PresencesReport,
    ReadyReport, RegistryEntry, RegistryReport, ScopesReport,
};
pub use state::{
    CatalogueReport, CounterReport, CounterRequest, ElementReport, EntryReport, EphemeralChange,
    EphemeralReport, MapReport, NamedStateReport, RemovedReport, ReplicaContext, ReplicaCounters,
    ReplicaPeerReport, ReplicaSetReport, SetReport, SpliceReport, SpliceRequest, StateChange,
    StateReport, SwitchReport, SwitchRequest, TextReport, ValueReport, ValuesReport, WatchReport,
    WrittenReport,
};

pub use supervised::{
    LogLineReport, LogSourceReport, ProgramReport, RanReport, RunRequest, StoppedReport,
    SupervisedReport,
};
pub use supervisors::{
    ChildEvent, ChildReport, ChildrenReport, MoveReport, PlanReport, RebalanceReport,
    SupervisorNode, SupervisorReport, SupervisorsReport,
};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `GET /v1/node`: the node that answers, as it sees itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct NodeReport {
    /// What operators call it.
    #[schema(example = "n1")]
    pub name: String,
    /// `name@incarnation`.
    #[schema(example = "n1@1763617920000")]
    pub id: String,
    /// This process start; grows with every restart.
    pub incarnation: u64,
    /// The cluster it belongs to.
    pub cluster: String,
    /// `running`, `draining` or `left`.
    #[schema(example = "running")]
    pub state: String,
    /// The release, as `purlin --version` prints it.
    pub version: String,
    /// Where other nodes reach it: `host:port`.
    pub cluster_addr: String,
    /// Where this API is: `host:port`.
    pub http_addr: Option<String>,
    /// Failure domain inside the region.
    pub zone: Option<String>,
    /// Where it stands.
    pub region: Option<String>,
    /// What it is for, in the operator's words.
    pub roles: Vec<String>,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// How long this process has been up.
    pub uptime_ms: u64,
    /// How often this node's view of the cluster has changed.
    pub epoch: u64,
    /// Members in this node's view, by state.
    pub members: MemberCounts,
    /// What the process costs.
    pub process: ProcessCost,
}

/// How many members are in each state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberCounts {
    /// Answer, or are vouched for.
    pub alive: usize,
    /// Did not answer; have time to refute.
    pub suspect: usize,
    /// Judged unreachable.
    pub down: usize,
    /// Left in peace.
    pub left: usize,
}

/// What the operating system says of this process. `null` where it says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProcessCost {
    /// Resident memory.
    pub rss_bytes: Option<u64>,
    /// Processor time used since the start, in seconds.
    pub cpu_seconds: Option<f64>,
    /// Share of one core since the previous report, in percent.
    pub cpu_percent: Option<f64>,
    /// Threads.
    pub threads: Option<u64>,
}

/// `GET /v1/members`: the cluster as the answering node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MembersReport {
    /// Grows with every change of *this* node's view; not comparable between nodes.
    pub epoch: u64,
    /// Every member this node remembers, itself included, by name.
    pub members: Vec<MemberReport>,
}

/// One member as another node sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MemberReport {
    /// What operators call it.
    #[schema(example = "n2")]
    pub name: String,
    /// `name@incarnation`.
    #[schema(example = "n2@1763617920037")]
    pub id: String,
    /// The process start meant; a restarted node has a higher one.
    pub incarnation: u64,
    /// `alive`, `suspect`, `down` or `left`.
    #[schema(example = "alive")]
    pub state: String,
    /// Where nodes reach it: `host:port`.
    pub cluster_addr: String,
    /// Where its HTTP API is, if it said so.
    pub http_addr: Option<String>,
    /// Failure domain inside the region.
    pub zone: Option<String>,
    /// Where it stands.
    pub region: Option<String>,
    /// What it is for.
    pub roles: Vec<String>,
    /// Free-form labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it takes no new work because it is about to leave.
    pub draining: bool,
    /// Smoothed round trip from the answering node, in microseconds; `null` to itself or if never
    /// measured.
    pub rtt_us: Option<u64>,
    /// Why it is `down`: `silent`, `refused` or `superseded`.
    pub why: Option<String>,
    /// The release it runs.
    pub version: Option<String>,
    /// Names of the members that get no answer from it, while it is `suspect` or `down`.
    pub suspected_by: Vec<String>,
}

/// One event of `GET /v1/events`: something the answering node saw happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EventReport {
    /// Counts this node's events from 1; also the end of the SSE id.
    pub seq: u64,
    /// When, by this node's wall clock.
    pub at_ms: u64,
    /// A stable word: `joined`, `suspected`, `refuted`, `down`, `left`, `meta_changed`, `draining`
    /// and what later releases add.
    #[schema(example = "suspected")]
    pub kind: String,
    /// The member it is about.
    pub node: Option<String>,
    /// Its incarnation.
    pub incarnation: Option<u64>,
    /// The epoch of the first view that shows it.
    pub epoch: u64,
    /// One short sentence for people.
    #[schema(example = "n3 is suspect")]
    pub text: String,
    /// More for people: by whom, why.
    pub detail: Option<String>,
    /// Mood for colouring: `alive`, `suspect`, `down`, `left` or `plain`.
    #[schema(example = "suspect")]
    pub tone: String,
}

/// The data of a `gap` event: events existed that this stream can no longer show.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GapReport {
    /// `forgotten`: older than what the node keeps. `restarted`: the id is of an earlier life.
    pub reason: String,
    /// How many are missing, if it can be known.
    pub missed: Option<u64>,
}

/// Answer to `POST /v1/topics/{topic}`: this node accepted the messages and sent them on.
///
/// Delivery is at most once: subscribers that connect later, or are cut off now, do not get them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PublishReport {
    /// Where to.
    pub topic: String,
    /// How many messages: 1, or the lines of a streamed body.
    pub published: u64,
    /// Their payload bytes together.
    pub bytes: u64,
    /// Subscriptions on this node that got the last message.
    pub local_subscribers: u64,
    /// Other nodes the last message was sent to.
    pub remote_nodes: u64,
    /// Messages that were kept from some other node because it could not be reached.
    pub undelivered: u64,
    /// One sentence for people.
    pub summary: String,
}

/// The data of the `ready` event, the first of every topic stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StreamReport {
    /// What is listened to.
    pub pattern: String,
    /// `push-back`, `drop-oldest`, `conflate` or `disconnect`.
    #[schema(example = "push-back")]
    pub policy: String,
    /// How many messages may wait for this reader.
    pub buffer: u32,
    /// Whether every connected node already knew of the subscription when the stream began: if
    /// not, the first messages published on others may be missed.
    pub everywhere: bool,
}

/// The data of a `message` event of `GET /v1/topics/{pattern}/stream`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MessageReport {
    /// The topic it was published to.
    pub topic: String,
    /// The payload, if it is UTF-8 text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// The payload in base64 (RFC 4648, padded), if it is not text. Exactly one of the two is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload_base64: Option<String>,
    /// The id of the publishing node.
    pub publisher: String,
    /// Headers the publisher set, if any.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, String>,
}

/// The data of a `lag` event: messages were lost right here in the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LagReport {
    /// How many, since the previous message.
    pub missed: u64,
}

/// `GET /v1/topics`: what flows through the answering node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TopicsReport {
    /// Messages per second over all topics, as last sampled.
    pub rate_per_s: f64,
    /// Topics with subscribers or recent messages here; the busiest first, at most 256.
    pub topics: Vec<TopicReport>,
}

/// One topic as the answering node sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TopicReport {
    /// The topic.
    pub topic: String,
    /// Messages per second, over the last second or so.
    pub rate_per_s: f64,
    /// Messages since this node started (published here, or received for a subscriber here).
    pub messages: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Subscriptions on this node to exactly this topic; those of patterns are not counted.
    pub local_subscribers: u64,
    /// Messages queued for subscribers here, patterns included: one for ten of them counts ten times.
    pub delivered: u64,
    /// Messages dropped or replaced in subscribers' queues here.
    pub lost: u64,
    /// One line for people.
    pub summary: String,
}

/// `GET /v1/processes`: the processes of the answering node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessesReport {
    /// The node they run on.
    pub node: String,
    /// Those that were asked for, oldest first.
    pub processes: Vec<ProcessReport>,
    /// Whether there were more than that.
    pub truncated: bool,
    /// How many run on the node, asked for or not.
    pub running: u64,
    /// With `?everywhere=true`: those of every member, the answering node included.
    pub nodes: Vec<NodeProcessesReport>,
}

/// The processes of one member, or why they are not known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeProcessesReport {
    /// The node they run on.
    pub node: String,
    /// Those that were asked for, oldest first.
    pub processes: Vec<ProcessReport>,
    /// Whether there were more than that.
    pub truncated: bool,
    /// How many run on the node, asked for or not; `null` if it did not answer.
    pub running: Option<u64>,
    /// Why nothing is known of it.
    pub problem: Option<String>,
}

/// One process, seen from outside; counts are a moment old.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProcessReport {
    /// `node@incarnation#number`: unique in the cluster, for ever.
    #[schema(example = "n1@1763617920000#7")]
    pub pid: String,
    /// The unique name it was started with.
    pub name: Option<String>,
    /// What kind of server it is.
    pub kind: String,
    /// Where it is in its life, in one word.
    pub phase: String,
    /// The message it is at; `null` while it waits.
    pub handling: Option<String>,
    /// Messages waiting.
    pub mailbox_messages: u64,
    /// How many may wait.
    pub mailbox_messages_max: u64,
    /// Their bytes, as far as known.
    pub mailbox_bytes: u64,
    /// Messages handled so far.
    pub handled: u64,
    /// Messages dropped to make room for newer ones.
    pub dropped: u64,
    /// How often its supervisor started it again.
    pub restarts: u64,
    /// How long it has lived.
    pub age_ms: u64,
    /// Whether other nodes may send to it.
    pub remote: bool,
    /// With `?summaries=true`: its state in its own words; `null` if it was too busy to say.
    pub summary: Option<String>,
}

/// `GET /v1/config`: what the node was told, key by key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigReport {
    /// Every key, in the order of the documentation.
    pub keys: Vec<ConfigKey>,
}

/// One configuration key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ConfigKey {
    /// `section.key`, as in `purlin.toml`.
    #[schema(example = "http.bind")]
    pub key: String,
    /// The value in effect; `null` if there is none. Secrets stand in files; the value is the
    /// file's name.
    pub value: Option<String>,
    /// Who set it: `default`, a file, a variable or a flag.
    pub origin: String,
}

/// `GET /v1/ping/{node}`: one round trip through the cluster's transport and back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PingReport {
    /// Who was asked.
    pub node: String,
    /// Which life answered.
    pub incarnation: u64,
    /// From this node's handler and back, in microseconds: more than the bare link's round trip.
    pub rtt_us: u64,
}

/// Body of `POST /v1/drain`; an empty body means all defaults. The query may say the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DrainRequest {
    /// The most time handing over may take before the node leaves anyway: 1 to 3,600,000.
    /// Default: the node's configuration.
    #[serde(default)]
    pub deadline_ms: Option<u64>,
}

/// Answer to `POST /v1/drain` (202): the drain has begun. It is over when this incarnation's state
/// is `left` in any other node's members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DrainReport {
    /// The node that drains: the one asked.
    pub node: String,
    /// The life that will have left.
    pub incarnation: u64,
    /// `draining`; the same if it was already.
    #[schema(example = "draining")]
    pub state: String,
    /// How long handing over may take, from now.
    pub deadline_ms: u64,
}

/// `GET /v1/links`: who can talk to whom, asked of every reachable member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinksReport {
    /// One entry per member that answered, by name.
    pub nodes: Vec<NodeLinks>,
    /// Members that are thought to be there but did not answer in time.
    pub silent: Vec<String>,
}

/// The links of one node as that node sees them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeLinks {
    /// Whose links.
    pub name: String,
    /// One per other member, by name.
    pub links: Vec<LinkReport>,
}

/// One end's view of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkReport {
    /// The far end.
    pub to: String,
    /// `up`, `suspect` or `down`.
    #[schema(example = "up")]
    pub state: String,
    /// Smoothed round trip in microseconds.
    pub rtt_us: Option<u64>,
}

/// `GET /v1/health/live` and `/v1/health/ready`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HealthReport {
    /// `live`, or `ready`.
    pub status: String,
}

/// The data of `end`, the last event of every stream: why it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct End {
    /// `shutdown`: the node stops, go to another. `finished`: there is no more. `slow`: the reader
    /// was too slow for the policy it chose. `closed`: the source went away, come back later.
    #[schema(example = "shutdown")]
    pub reason: String,
    /// More about it, for people.
    pub detail: String,
}

/// `GET /v1/caches`: the caches of the answering node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CachesReport {
    /// One per cache, by name.
    pub caches: Vec<CacheReport>,
    /// With `everywhere`: those of every member, the answering one included, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<NodeCachesReport>,
}

/// The caches of one member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NodeCachesReport {
    /// Whose.
    #[schema(example = "n1")]
    pub node: String,
    /// One per cache, by name.
    pub caches: Vec<CacheReport>,
    /// Why it did not answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// `GET /v1/caches/{cache}`: what a cache holds on the answering node, and did since it was opened
/// there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheReport {
    /// Its name.
    #[schema(example = "cart")]
    pub name: String,
    /// `local`, `near`, `partitioned` or `replicated`.
    #[schema(example = "partitioned")]
    pub kind: String,
    /// Entries held here, memories of removals included.
    pub entries: u64,
    /// Bytes held here, keys and overhead included.
    pub bytes: u64,
    /// The most it holds here.
    pub bytes_max: u64,
    /// Bytes of copies held here in front of other nodes.
    pub near_bytes: u64,
    /// Hits that such a copy served.
    pub near_hits: u64,
    /// Reads from here that found a value.
    pub hits: u64,
    /// Reads from here that found none.
    pub misses: u64,
    /// Values given out after their time while they were loaded anew.
    pub stale_hits: u64,
    /// Writes from here.
    pub writes: u64,
    /// Removals from here.
    pub removes: u64,
    /// Entries pushed out for lack of room.
    pub evictions: u64,
    /// Entries whose time was over.
    pub expirations: u64,
    /// Values refused for their size.
    pub refused_too_large: u64,
    /// Loads run here.
    pub loads: u64,
    /// Loads that failed.
    pub load_failures: u64,
    /// Readers who shared somebody else's load.
    pub loads_shared: u64,
    /// Entries of a near cache held back because a writer was not heard in time.
    pub distrusted: u64,
    /// Second replicas asked because the first was slow.
    pub hedges: u64,
    /// Entries sent to other nodes because the members changed.
    pub moved: u64,
    /// Reads that found a value only where it was before the members changed.
    pub found_elsewhere: u64,
    /// Writes that did not reach every node they should have.
    pub writes_incomplete: u64,
    /// The keys most read from here lately, the hottest first; at most 32.
    #[serde(default)]
    pub hottest: Vec<HotKeyReport>,
}

/// A key and its part of the reads.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HotKeyReport {
    /// The key, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The key, if it is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_base64: Option<String>,
    /// At least so many of a thousand reads lately were of it.
    pub per_mille: u16,
}

impl From<purlin::cache::HotKey> for HotKeyReport {
    fn from(hot: purlin::cache::HotKey) -> Self {
        let (key, key_base64) = crate::state::text_or_base64(&hot.key);
        Self { key, key_base64, per_mille: hot.per_mille }
    }
}

impl From<purlin::cache::CacheStats> for CacheReport {
    fn from(stats: purlin::cache::CacheStats) -> Self {
        use purlin::cache::Kind;
        let kind = match stats.kind {
            Kind::Local => "local",
            Kind::Near => "near",
            Kind::Partitioned => "partitioned",
            Kind::Replicated => "replicated",
        };
        Self {
            name: stats.name,
            kind: kind.to_owned(),
            entries: stats.entries,
            bytes: stats.bytes,
            bytes_max: stats.bytes_max,
            near_bytes: stats.near_bytes,
            near_hits: stats.near_hits,
            hits: stats.hits,
            misses: stats.misses,
            stale_hits: stats.stale_hits,
            writes: stats.writes,
            removes: stats.removes,
            evictions: stats.evictions,
            expirations: stats.expirations,
            refused_too_large: stats.refused_too_large,
            loads: stats.loads,
            load_failures: stats.load_failures,
            loads_shared: stats.loads_shared,
            distrusted: stats.distrusted,
            hedges: stats.hedges,
            moved: stats.moved,
            found_elsewhere: stats.found_elsewhere,
            writes_incomplete: stats.writes_incomplete,
            hottest: stats.hottest.into_iter().map(HotKeyReport::from).collect(),
        }
    }
}

/// `POST /v1/caches/{cache}/{key}`: what became of the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheAnswer {
    /// `false` only when there was no value to take or to give a new life.
    pub done: bool,
    /// The value taken, or the sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The value taken, when it is not text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_base64: Option<String>,
}

/// `PUT` and `DELETE /v1/caches/{cache}/{key}`, `DELETE /v1/caches/{cache}`: whether it was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CacheWritten {
    /// `false` only when the condition of the request did not hold.
    pub written: bool,
}
