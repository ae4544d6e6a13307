//! The processes of this node, and of the others when somebody asks for all.
//!
//! Each node searches its own and sends only what fits: a million processes elsewhere cost the
//! asking node no more than a page.

use std::time::Duration;

use futures_util::future::join_all;
use purlin::Node;
use purlin_cluster::view::Selector;
use purlin_net::rpc::Method;
use purlin_process::{AnyProcess, Phase, ProcessInfo, Processes};
use serde::{Deserialize, Serialize};

use crate::shapes::{NodeProcessesReport, ProcessReport, ProcessesReport};

/// The most rows a node lists of its own.
pub(crate) const ROWS_MAX: usize = 10_000;
/// How many processes are asked for a summary, and how long each may take.
const SUMMARIES_MAX: usize = 256;
const SUMMARY_WITHIN: Duration = Duration::from_millis(250);
/// How long other nodes have to answer.
const EVERYWHERE_WITHIN: Duration = Duration::from_secs(2);

/// JSON on the wire: what a later release adds to a row is skipped by this one.
const PROCESSES: Method<Ask, Vec<u8>> = Method::new("purlin.processes");

/// Which processes are asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ask {
    /// Part of the name, kind or identity, in any case.
    pub(crate) search: String,
    /// How many at most.
    pub(crate) limit: usize,
    /// Whether they are asked for their state, too.
    pub(crate) summaries: bool,
}

impl Ask {
    fn fits(&self, process: &AnyProcess) -> bool {
        let holds = |text: &str| text.to_lowercase().contains(&self.search);
        self.search.is_empty()
            || holds(process.kind())
            || process.name().is_some_and(holds)
            || holds(&process.pid().to_string())
    }
}

/// Answers the questions of other nodes from now on.
pub(crate) fn answer(node: &Node) {
    // Not the node itself: it holds what answers, and would never be dropped.
    let processes = node.processes().clone();
    let served = node.rpc().serve(PROCESSES, move |_, ask: Ask| {
        let processes = processes.clone();
        async move {
            let report = here(&processes, &ask).await;
            Ok(serde_json::to_vec(&report).expect("rows are plain data"))
        }
    });
    if let Err(error) = served {
        tracing::debug!(%error, "processes are told already");
    }
}

/// Those of this node, oldest first.
pub(crate) async fn here(processes: &Processes, ask: &Ask) -> ProcessesReport {
    let ask = Ask { search: ask.search.to_lowercase(), ..*ask };
    let all = processes.all();
    let mut fitting = all.iter().filter(|process| ask.fits(process));
    let shown: Vec<&AnyProcess> = fitting.by_ref().take(ask.limit.min(ROWS_MAX)).collect();
    let truncated = fitting.next().is_some();
    let asked = if ask.summaries { &shown[..shown.len().min(SUMMARIES_MAX)] } else { &[] };
    let told = join_all(asked.iter().map(|process| process.summary(SUMMARY_WITHIN))).await;
    let told = told.into_iter().map(Result::ok).chain(std::iter::repeat(None));
    let rows = shown.iter().map(|process| process.info()).zip(told);
    ProcessesReport {
        node: processes.node().name.to_string(),
        processes: rows.map(|(info, summary)| report(info, summary)).collect(),
        truncated,
        running: processes.live() as u64,
        nodes: Vec::new(),
    }
}

/// Those of every member; one that does not answer is there with the reason.
pub(crate) async fn everywhere(node: &Node, ask: &Ask) -> Vec<NodeProcessesReport> {
    let all = Selector::all();
    let (own, others) = tokio::join!(
        here(node.processes(), ask),
        node.rpc().multi_call(&all, PROCESSES, ask, EVERYWHERE_WITHIN),
    );
    let mut nodes = vec![node_report(own)];
    for (id, answer) in others {
        let read = |bytes: Vec<u8>| serde_json::from_slice(&bytes).map_err(|e| e.to_string());
        nodes.push(match answer.map_err(|error| error.to_string()).and_then(read) {
            Ok(report) => node_report(report),
            Err(problem) => NodeProcessesReport {
                node: id.name.to_string(),
                processes: Vec::new(),
                truncated: false,
                running: None,
                problem: Some(problem),
            },
        });
    }
    nodes.sort_by(|a, b| a.node.cmp(&b.node));
    nodes
}

fn node_report(report: ProcessesReport) -> NodeProcessesReport {
    let ProcessesReport { node, processes, truncated, running, nodes: _ } = report;
    NodeProcessesReport { node, processes, truncated, running: Some(running), problem: None }
}

fn report(info: ProcessInfo, summary: Option<String>) -> ProcessReport {
    let millis = u64::try_from(info.age.as_millis()).unwrap_or(u64::MAX);
    ProcessReport {
        pid: info.pid.to_string(),
        name: info.name,
        kind: info.kind.to_owned(),
        phase: phase_word(info.phase).to_owned(),
        handling: info.handling.map(str::to_owned),
        mailbox_messages: info.mailbox_messages as u64,
        mailbox_messages_max: info.mailbox_messages_max as u64,
        mailbox_bytes: info.mailbox_bytes as u64,
        handled: info.handled,
        dropped: info.dropped,
        restarts: u64::from(info.restarts),
        age_ms: millis,
        remote: info.remote,
        summary,
    }
}

fn phase_word(phase: Phase) -> &'static str {
    match phase {
        Phase::Starting => "starting",
        Phase::Running => "running",
        Phase::Draining => "draining",
        Phase::Terminating => "terminating",
    }
}
