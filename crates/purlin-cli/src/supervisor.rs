//! `purlin supervisor`: children that any node can run, where they are and what would move.

mod simulate;

use purlin_server::shapes::{
    ChildEvent, ChildReport, ChildrenReport, PlanReport, RebalanceReport, SupervisorReport,
    SupervisorsReport,
};

use crate::{
    args::{Global, SupervisorCommand},
    client::{Client, segment},
    exit::Done,
    listing::{Page, Row, list},
    output::{Output, Tone, table},
    watching::watch,
};

pub(crate) async fn supervisor(
    global: &Global,
    command: &SupervisorCommand,
    output: &mut Output,
) -> Done {
    let client = || Client::new(global);
    match command {
        SupervisorCommand::SimulateSplit(args) => {
            simulate::simulate_split(global, args, output).await
        }
        SupervisorCommand::Ls { name: None, .. } => all(&client()?, output).await,
        SupervisorCommand::Ls { name: Some(name), prefix } => {
            let (name, prefix) = (segment(name), segment(prefix));
            let path = format!("/v1/supervisors/{name}/children?limit=10000&prefix={prefix}");
            let head = ["CHILD", "NODE", "STATE", "FENCE", "RESTARTS", "KIND", "CAUSE"];
            list::<ChildrenReport>(&client()?, &path, &head, output).await
        }
        SupervisorCommand::Plan { name, limit } => {
            let path = format!("/v1/supervisors/{}/plan?limit={limit}", segment(name));
            list::<PlanReport>(&client()?, &path, &["CHILD", "FROM", "TO", "WHY"], output).await
        }
        SupervisorCommand::Pause { name } => set(&client()?, name, "pause", output).await,
        SupervisorCommand::Resume { name } => set(&client()?, name, "resume", output).await,
        SupervisorCommand::Rebalance { name } => rebalance(&client()?, name, output).await,
        SupervisorCommand::Events { name, recent, count } => {
            let path = format!("/v1/supervisors/{}/events?recent={recent}", segment(name));
            watch(&client()?, &path, "child", *count, output, happened).await
        }
    }
}

async fn all(client: &Client, output: &mut Output) -> Done {
    let report: SupervisorsReport = client.get("/v1/supervisors").await?;
    if output.is_json() {
        return output.json(&report);
    }
    let rows: Vec<Row> = report.supervisors.iter().map(row).collect();
    table(&["SUPERVISOR", "CHILDREN", "MOVES", "CUT", "PLANNER", "NODES"], &rows, output)
}

fn row(it: &SupervisorReport) -> Row {
    let moves = match (it.paused, it.pending_moves) {
        (true, pending) => (Tone::Doubtful, format!("{pending}, paused")),
        (false, pending) => (Tone::Quiet, pending.to_string()),
    };
    let tone = match it.gate.as_str() {
        "open" => Tone::Good,
        "waiting" => Tone::Doubtful,
        _ => Tone::Bad,
    };
    let reason = it.gate_reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let nodes: Vec<_> =
        it.nodes.iter().map(|node| format!("{} {}", node.node, node.children)).collect();
    vec![
        (Tone::Strong, it.name.clone()),
        (Tone::Quiet, it.children.to_string()),
        moves,
        (tone, format!("{}{reason}", it.gate)),
        (Tone::Quiet, it.planner.clone().unwrap_or_else(|| "-".to_owned())),
        (Tone::Quiet, nodes.join(", ")),
    ]
}

impl Page for ChildrenReport {
    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn rows(&self) -> Vec<Row> {
        let row = |child: &ChildReport| {
            let tone = match child.state.as_str() {
                "running" => Tone::Good,
                "starting" | "asleep" => Tone::Quiet,
                _ => Tone::Bad,
            };
            vec![
                (Tone::Strong, child.id.clone()),
                (Tone::Quiet, child.node.clone().unwrap_or_else(|| "-".to_owned())),
                (tone, child.state.clone()),
                (Tone::Quiet, child.fence.to_string()),
                (Tone::Quiet, child.restarts.to_string()),
                (Tone::Quiet, child.kind.clone()),
                (Tone::Quiet, child.cause.clone().unwrap_or_default()),
            ]
        };
        self.children.iter().map(row).collect()
    }
}

impl Page for PlanReport {
    fn next(&self) -> Option<&str> {
        None
    }

    fn is_cut_short(&self) -> bool {
        self.truncated
    }

    fn rows(&self) -> Vec<Row> {
        let moves = self.moves.iter();
        let row = moves.map(|it| {
            vec![
                (Tone::Strong, it.id.clone()),
                (Tone::Quiet, it.from.clone()),
                (Tone::Quiet, it.to.clone()),
                (Tone::Quiet, it.why.clone()),
            ]
        });
        row.collect()
    }
}

async fn set(client: &Client, name: &str, verb: &str, output: &mut Output) -> Done {
    let path = format!("/v1/supervisors/{}/{verb}", segment(name));
    let report: SupervisorReport = client.post(&path, Vec::new()).await?;
    if output.is_json() {
        return output.json(&report);
    }
    let does = if report.paused { "no longer levels the load" } else { "levels the load" };
    let name = output.toned(Tone::Strong, &report.name);
    output.line(&format!("{name} {does}, on all nodes"))
}

async fn rebalance(client: &Client, name: &str, output: &mut Output) -> Done {
    let path = format!("/v1/supervisors/{}/rebalance", segment(name));
    let report: RebalanceReport = client.post(&path, Vec::new()).await?;
    if output.is_json() {
        return output.json(&report);
    }
    let moves = match report.moves {
        0 => "nothing has to move".to_owned(),
        1 => "1 child moves".to_owned(),
        more => format!("{more} children move, one after the other"),
    };
    let waits = if report.paused && report.moves > 0 { ", once it is resumed" } else { "" };
    output.line(&format!("{moves}{waits}"))
}

fn happened(event: &ChildEvent, output: &Output) -> String {
    let tone = match event.what.as_str() {
        "started" | "restarted" | "moved" => Tone::Good,
        "slept" | "removed" | "replaced" => Tone::Quiet,
        _ => Tone::Bad,
    };
    let what = output.toned_cell(tone, &event.what, 15);
    let node = event.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
    let cause = event.cause.as_ref().map(|cause| format!("  {cause}")).unwrap_or_default();
    format!("{what}  {}{node}, fence {}{cause}", event.id, event.fence)
}
