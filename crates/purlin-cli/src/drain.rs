//! `purlin drain [NODE]`: let a node go, and wait until it has gone.

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{
    args::DrainArgs,
    client::Client,
    exit::{Done, Failure},
    members::{Member, Members},
    output::Output,
};

/// How often the members are asked whether it has left.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long after the deadline of the drain itself the rest of the cluster may take to hear of it.
const MARGIN: Duration = Duration::from_secs(15);

#[derive(Debug, Serialize)]
struct Drained<'a> {
    node: &'a str,
    incarnation: u64,
    state: &'a str,
    took_ms: u128,
}

pub(crate) async fn drain(client: &Client, args: &DrainArgs, output: &mut Output) -> Done {
    let members = Members::of(client).await?;
    let name = match &args.member {
        Some(name) => name.clone(),
        None if client.is_chosen() => {
            let node: serde_json::Value = client.get("/v1/node").await?;
            node["name"]
                .as_str()
                .map(str::to_owned)
                .ok_or_else(|| Failure::not_done("the node did not say its name"))?
        }
        None => {
            return Err(Failure::Usage(
                "say which node: purlin drain NODE, or purlin drain --node URL".to_owned(),
            ));
        }
    };
    let target = members.find(&name).cloned().ok_or_else(|| {
        let known: Vec<_> = members.members.iter().map(|member| member.name.as_str()).collect();
        Failure::NotDone(format!("no member is called {name}; members are {}", known.join(", ")))
    })?;
    if !matches!(target.state.as_str(), "alive" | "suspect") {
        return Err(Failure::NotDone(format!("{name} is {} already", target.state)));
    }
    let address = target.http_addr.as_deref().ok_or_else(|| {
        Failure::NotDone(format!("{name} serves no HTTP that others know of; stop its process with SIGTERM instead, which drains too"))
    })?;
    let path = match args.deadline {
        Some(deadline) => format!("/v1/drain?deadline_ms={}", deadline.as_millis()),
        None => "/v1/drain".to_owned(),
    };
    let started = Instant::now();
    let _: serde_json::Value =
        client.at(&format!("http://{address}")).post(&path, Vec::new()).await?;
    if !output.is_json() {
        output.note(&format!("{name} is draining"));
    }
    // The default deadline is the node's own and at most an hour; whoever waits can press Ctrl-C.
    let patience = args.deadline.unwrap_or(Duration::from_secs(3600)) + MARGIN;
    let state = wait_until_gone(client, &target, started, patience).await?;
    let took_ms = started.elapsed().as_millis();
    if output.is_json() {
        output.json(&Drained {
            node: &name,
            incarnation: target.incarnation,
            state: &state,
            took_ms,
        })
    } else if state == "left" {
        output.line(&format!("{name} has left after {} ms", took_ms))
    } else {
        Err(Failure::NotDone(format!(
            "{name} is {state}: it stopped before its drain was finished"
        )))
    }
}

async fn wait_until_gone(
    client: &Client,
    target: &Member,
    started: Instant,
    patience: Duration,
) -> Result<String, Failure> {
    let mut last = target.state.clone();
    while started.elapsed() < patience {
        match Members::of(client).await {
            Ok(members) => {
                let now = members.members.iter().find(|member| {
                    member.name == target.name && member.incarnation == target.incarnation
                });
                match now.map(|member| member.state.as_str()) {
                    // Forgotten is past left.
                    None | Some("left") => return Ok("left".to_owned()),
                    Some("down") => return Ok("down".to_owned()),
                    Some(state) => state.clone_into(&mut last),
                }
            }
            // The node asked may be the one that left, and with it the only one we know.
            Err(Failure::Unreachable(_)) if client.endpoints().len() == 1 => {
                return Ok("left".to_owned());
            }
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Err(Failure::Unknown(format!(
        "{} was asked to drain but is still {last} after {patience:?}",
        target.name
    )))
}
