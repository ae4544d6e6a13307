//! The node behind the API: translates its parts into the shapes of this crate, and nothing else.

use std::time::Duration;

use purlin::{
    Node,
    cache::Caches,
    config::Shown,
    dist::{Dist, supervisor::Supervisors},
};
use purlin_cluster::{
    drain::Phase as DrainPhase,
    swim::State,
    view::{Events, Member, View, Watch},
};
use purlin_core::{NodeId, NodeName, WallTime};
use purlin_process::{Processes, Registration};
use purlin_pubsub::{PubSub, TopicStats};
use purlin_replica::{Flags, ReplicaSet};

use crate::{
    links,
    origins::Origins,
    problem::Problem,
    processes::{self, Ask, ROWS_MAX},
    shapes::{
        ConfigKey, ConfigReport, DrainReport, LinksReport, MemberCounts, MemberReport,
        MembersReport, NodeReport, PingReport, ProcessCost, ProcessesReport, RegistryEntry,
        RegistryReport, StateReport, TopicReport, TopicsReport,
    },
    state,
};

/// The most topics a listing has: the busiest.
const TOPICS_MAX: usize = 256;

/// See the module.
#[derive(Debug)]
pub(crate) struct Host {
    node: Node,
    origins: Origins,
}

impl Host {
    pub(crate) fn new(node: Node) -> Self {
        let origins = Origins::default();
        origins.note_one(node.id());
        Self { node, origins }
    }

    /// Who is behind the tags that stored writes carry.
    pub(crate) fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Remembers the members there are, so that their writes can be named once they are gone.
    /// Never returns.
    pub(crate) async fn note_members(&self) {
        let mut views = self.view_changes();
        self.origins.note(&self.node.cluster().view());
        loop {
            let view = views.changed().await;
            self.origins.note(&view);
        }
    }

    pub(crate) fn wall(&self) -> WallTime {
        self.node.clock().wall()
    }

    pub(crate) fn crdt(&self) -> &ReplicaSet {
        self.node.crdt()
    }

    pub(crate) fn ephemeral(&self) -> &ReplicaSet {
        self.node.ephemeral()
    }

    pub(crate) fn caches(&self) -> &Caches {
        self.node.caches()
    }

    pub(crate) fn flags(&self) -> &Flags {
        self.node.flags()
    }

    pub(crate) fn state_report(&self) -> StateReport {
        let sets = [self.crdt(), self.ephemeral(), self.flags().set()];
        StateReport { sets: sets.map(state::set_report).to_vec() }
    }

    pub(crate) fn id(&self) -> &NodeId {
        self.node.id()
    }

    /// `host:port` as the node tells its peers, if it does.
    pub(crate) fn http_addr(&self) -> Option<String> {
        Some(self.me(&self.node.cluster().view())?.meta.http_addr?.to_string())
    }

    /// `running`, `draining` or `left`.
    pub(crate) fn state(&self) -> &'static str {
        match self.node.cluster().drain_progress().borrow().phase {
            DrainPhase::Serving => "running",
            DrainPhase::Left => "left",
            DrainPhase::Announcing
            | DrainPhase::HandingOff
            | DrainPhase::Transferring
            | DrainPhase::Finishing
            | DrainPhase::Leaving => "draining",
        }
    }

    /// Begins the drain, or hurries the one under way. Once this returns, the node is not ready.
    pub(crate) async fn begin_drain(&self, deadline: Option<Duration>) -> DrainReport {
        let within = deadline.unwrap_or_else(|| self.node.config().node.drain_deadline);
        let node = self.node.clone();
        // The node ends in a task of its own; whoever asked sees it leave in the members.
        tokio::spawn(async move { node.drain(Some(within)).await });
        let mut progress = self.node.cluster().drain_progress();
        // An error means that the membership is gone: then the node has ended already.
        drop(progress.wait_for(|progress| progress.phase != DrainPhase::Serving).await);
        DrainReport {
            node: self.id().name.to_string(),
            incarnation: self.id().incarnation.0,
            state: "draining".to_owned(),
            deadline_ms: millis(within),
        }
    }

    /// Lets the other nodes ask this one about its links.
    pub(crate) fn answer_questions(&self) {
        links::answer(&self.node);
        processes::answer(&self.node);
    }

    pub(crate) async fn links_report(&self) -> LinksReport {
        links::collect(&self.node).await
    }

    pub(crate) async fn ping(&self, name: &NodeName) -> Result<PingReport, Problem> {
        links::ping(&self.node, name).await
    }

    pub(crate) fn config(&self) -> ConfigReport {
        let key = |shown: Shown| ConfigKey {
            key: shown.key.path(),
            value: shown.value,
            origin: shown.origin.to_string(),
        };
        ConfigReport { keys: self.node.config().shown().into_iter().map(key).collect() }
    }

    fn me<'a>(&self, view: &'a View) -> Option<&'a Member> {
        view.get(&self.id().name)
    }

    pub(crate) fn members_report(&self) -> MembersReport {
        let view = self.node.cluster().view();
        MembersReport {
            epoch: view.epoch.0,
            members: view.members.iter().map(member_report).collect(),
        }
    }

    pub(crate) fn node_report(&self, process: ProcessCost) -> NodeReport {
        let view = self.node.cluster().view();
        let me = self.me(&view).expect("a view holds the node whose view it is");
        NodeReport {
            name: me.id.name.to_string(),
            id: me.id.to_string(),
            incarnation: me.id.incarnation.0,
            cluster: self.node.config().cluster.name.to_string(),
            state: self.state().to_owned(),
            version: me.meta.version.clone(),
            cluster_addr: me.meta.cluster_addr.to_string(),
            http_addr: me.meta.http_addr.map(|addr| addr.to_string()),
            zone: me.meta.zone.clone(),
            region: me.meta.region.clone(),
            roles: me.meta.roles.iter().cloned().collect(),
            labels: me.meta.labels.clone(),
            uptime_ms: millis(self.node.uptime()),
            epoch: view.epoch.0,
            members: member_counts(&view),
            process,
        }
    }

    /// The story of the cluster, after event number `seq`.
    pub(crate) fn events_after(&self, seq: u64) -> Events {
        self.node.cluster().events_after(seq)
    }

    pub(crate) fn view_changes(&self) -> Watch {
        self.node.cluster().watch()
    }

    pub(crate) fn pubsub(&self) -> &PubSub {
        self.node.pubsub()
    }

    pub(crate) fn dist(&self) -> &Dist {
        self.node.dist()
    }

    pub(crate) fn programs(&self) -> &purlin::dist::exec::Programs {
        self.node.programs()
    }

    pub(crate) fn supervisors(&self) -> &Supervisors {
        self.node.supervisors()
    }

    /// Names that only this node knows.
    pub(crate) fn local_registry(&self, prefix: &str) -> RegistryReport {
        registry_report(self.node.processes(), prefix)
    }

    /// The processes of this node, and with `everywhere` those of every member.
    pub(crate) async fn processes(&self, ask: &Ask, everywhere: bool) -> ProcessesReport {
        let mut report = processes::here(self.node.processes(), ask).await;
        if everywhere {
            report.nodes = processes::everywhere(&self.node, ask).await;
        }
        report
    }

    pub(crate) fn topics_report(&self) -> TopicsReport {
        topics_report(self.node.pubsub())
    }

    /// Sets the gauges that are only worth setting when somebody reads them.
    pub(crate) fn measure(&self, process: &ProcessCost) {
        self.node.rpc().rpc().publish_metrics();
        self.node.caches().publish_metrics();
        self.node.dist().publish_metrics();
        let view = self.node.cluster().view();
        let counts = member_counts(&view);
        let states = [
            ("alive", counts.alive),
            ("suspect", counts.suspect),
            ("down", counts.down),
            ("left", counts.left),
        ];
        for (state, count) in states {
            metrics::gauge!("purlin_server_members", "state" => state).set(to_f64(count as u64));
        }
        metrics::gauge!("purlin_server_epoch").set(to_f64(view.epoch.0));
        metrics::gauge!("purlin_server_uptime_seconds").set(self.node.uptime().as_secs_f64());
        let facts = [
            ("purlin_server_process_resident_bytes", process.rss_bytes.map(to_f64)),
            ("purlin_server_process_cpu_seconds", process.cpu_seconds),
            ("purlin_server_process_threads", process.threads.map(to_f64)),
        ];
        for (name, fact) in facts {
            if let Some(fact) = fact {
                metrics::gauge!(name).set(fact);
            }
        }
    }
}

/// For gauges and rates, where the 53 bits of a double are plenty.
fn to_f64(count: u64) -> f64 {
    let (high, low) = (count >> 32, count & u64::from(u32::MAX));
    let part = |half: u64| f64::from(u32::try_from(half).expect("half of 64 bits are 32"));
    part(high) * 4_294_967_296.0 + part(low)
}

fn member_report(member: &Member) -> MemberReport {
    let meta = &member.meta;
    MemberReport {
        name: member.id.name.to_string(),
        id: member.id.to_string(),
        incarnation: member.id.incarnation.0,
        state: member.state.as_str().to_owned(),
        cluster_addr: meta.cluster_addr.to_string(),
        http_addr: meta.http_addr.map(|addr| addr.to_string()),
        zone: meta.zone.clone(),
        region: meta.region.clone(),
        roles: meta.roles.iter().cloned().collect(),
        labels: meta.labels.clone(),
        draining: meta.draining,
        rtt_us: member.rtt.map(micros),
        why: member.why.map(|why| why.as_str().to_owned()),
        version: Some(meta.version.clone()),
        suspected_by: member.suspected_by.iter().map(ToString::to_string).collect(),
    }
}

fn member_counts(view: &View) -> MemberCounts {
    let mut counts = MemberCounts::default();
    for member in &view.members {
        *match member.state {
            State::Alive => &mut counts.alive,
            State::Suspect => &mut counts.suspect,
            State::Down => &mut counts.down,
            State::Left => &mut counts.left,
        } += 1;
    }
    counts
}

fn registry_report(processes: &Processes, prefix: &str) -> RegistryReport {
    let mut entries: Vec<RegistryEntry> =
        processes.registry().select(prefix).iter().map(entry).collect();
    let truncated = entries.len() > ROWS_MAX;
    entries.truncate(ROWS_MAX);
    let node = processes.node().name.to_string();
    RegistryReport { node, scope: None, entries, truncated, next: None }
}

fn entry(registration: &Registration) -> RegistryEntry {
    RegistryEntry {
        name: registration.key.to_string(),
        unique: registration.unique,
        pid: registration.process.pid().to_string(),
        node: registration.process.pid().node.name.to_string(),
        kind: registration.process.kind().to_owned(),
        metadata: registration
            .metadata
            .iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect(),
        since: None,
        version: None,
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn topics_report(pubsub: &PubSub) -> TopicsReport {
    let topics: Vec<TopicReport> = pubsub.topics(TOPICS_MAX).iter().map(topic_report).collect();
    TopicsReport { rate_per_s: topics.iter().map(|topic| topic.rate_per_s).sum(), topics }
}

fn topic_report(stats: &TopicStats) -> TopicReport {
    let messages = stats.published + stats.received;
    TopicReport {
        topic: stats.topic.as_str().to_owned(),
        rate_per_s: to_f64(stats.rate),
        messages,
        bytes: stats.bytes,
        local_subscribers: stats.subscribers as u64,
        delivered: stats.delivered,
        lost: stats.lost,
        summary: format!("{messages} so far, {} delivered here", stats.delivered),
    }
}
