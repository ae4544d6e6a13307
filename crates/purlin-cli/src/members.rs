//! `purlin members` and `purlin status`: who is there.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::{
    args::MembersArgs,
    client::Client,
    exit::{Done, Failure},
    output::{Output, Tone, human_micros, table},
};

/// How often `--watch` looks again. Fast enough to see a suspicion pass by.
const WATCH_EVERY: Duration = Duration::from_millis(500);
/// How long `--watch` waits for any node to answer again before it gives up.
const WATCH_PATIENCE: u32 = 60;

/// `GET /v1/members`, the part the commands use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Members {
    pub(crate) epoch: u64,
    pub(crate) members: Vec<Member>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) incarnation: u64,
    pub(crate) state: String,
    #[serde(default)]
    pub(crate) cluster_addr: Option<String>,
    #[serde(default)]
    pub(crate) http_addr: Option<String>,
    #[serde(default)]
    pub(crate) zone: Option<String>,
    #[serde(default)]
    pub(crate) roles: Vec<String>,
    #[serde(default)]
    pub(crate) rtt_us: Option<u64>,
    #[serde(default)]
    pub(crate) draining: bool,
    #[serde(default)]
    pub(crate) suspected_by: Vec<String>,
}

impl Members {
    pub(crate) async fn of(client: &Client) -> Result<Self, Failure> {
        client.get("/v1/members").await
    }

    /// The life of `name` that counts: the one in the cluster, else the last one.
    pub(crate) fn find(&self, name: &str) -> Option<&Member> {
        let is_present = |member: &&Member| matches!(member.state.as_str(), "alive" | "suspect");
        let lives = || self.members.iter().filter(|member| member.name == name);
        lives().find(is_present).or_else(|| lives().max_by_key(|member| member.incarnation))
    }

    pub(crate) fn count(&self, state: &str) -> usize {
        self.members.iter().filter(|member| member.state == state).count()
    }
}

impl Member {
    /// The word to show: a draining member is alive, but that is not the news.
    fn standing(&self) -> &str {
        if self.draining && self.state == "alive" { "draining" } else { &self.state }
    }
}

/// What the server sends, unabridged, so that `--output json` never hides a field from a program.
async fn raw(client: &Client) -> Result<serde_json::Value, Failure> {
    client.get("/v1/members").await
}

pub(crate) async fn members(client: &Client, args: &MembersArgs, output: &mut Output) -> Done {
    if args.watch {
        return watch(client, output).await;
    }
    if output.is_json() {
        let members = raw(client).await?;
        return output.json(&members);
    }
    let members = Members::of(client).await?;
    print(&members, output)
}

async fn watch(client: &Client, output: &mut Output) -> Done {
    let mut shown = None;
    let mut misses = 0;
    loop {
        match raw(client).await {
            Ok(value) => {
                misses = 0;
                let members: Members = serde_json::from_value(value.clone()).map_err(|error| {
                    Failure::NotDone(format!("cannot read the members: {error}"))
                })?;
                // The round-trip time changes with every look; that alone is worth a redraw only
                // where a redraw replaces the old picture.
                if output.is_terminal() || shown.as_ref() != Some(&essence(&members)) {
                    if output.is_json() {
                        output.json(&value)?;
                    } else {
                        output.clear_screen()?;
                        print(&members, output)?;
                        if !output.is_terminal() {
                            output.line("")?;
                        }
                    }
                    output.flush()?;
                    shown = Some(essence(&members));
                }
            }
            Err(failure @ Failure::Unreachable(_)) => {
                misses += 1;
                if shown.is_none() || misses > WATCH_PATIENCE {
                    return Err(failure);
                }
                if misses == 1 {
                    output.note(failure.text().unwrap_or_default());
                }
            }
            Err(other) => return Err(other),
        }
        tokio::time::sleep(WATCH_EVERY).await;
    }
}

fn essence(members: &Members) -> Vec<(String, u64, String, Vec<String>)> {
    members
        .members
        .iter()
        .map(|member| {
            (
                member.name.clone(),
                member.incarnation,
                member.standing().to_owned(),
                member.suspected_by.clone(),
            )
        })
        .collect()
}

fn print(members: &Members, output: &mut Output) -> Done {
    let dash = || "-".to_owned();
    let rows: Vec<_> = members
        .members
        .iter()
        .map(|member| {
            let suspected_by = if member.suspected_by.is_empty() {
                String::new()
            } else {
                format!("suspected by {}", member.suspected_by.join(", "))
            };
            vec![
                (Tone::Strong, member.name.clone()),
                (Tone::of_state(member.standing()), member.standing().to_owned()),
                (Tone::Quiet, member.incarnation.to_string()),
                (Tone::Quiet, member.cluster_addr.clone().unwrap_or_else(dash)),
                (Tone::Quiet, member.http_addr.clone().unwrap_or_else(dash)),
                (Tone::Quiet, member.zone.clone().unwrap_or_else(dash)),
                (Tone::Quiet, member.rtt_us.map_or_else(dash, human_micros)),
                (Tone::Doubtful, suspected_by),
            ]
        })
        .collect();
    table(&["NAME", "STATE", "INCARNATION", "CLUSTER", "HTTP", "ZONE", "RTT", ""], &rows, output)?;
    output.line(&summary(members))
}

fn summary(members: &Members) -> String {
    let counts: Vec<_> = ["alive", "suspect", "down", "left"]
        .into_iter()
        .map(|state| (state, members.count(state)))
        .filter(|&(state, count)| count > 0 || state == "alive")
        .map(|(state, count)| format!("{count} {state}"))
        .collect();
    format!("{}, epoch {}", counts.join(", "), members.epoch)
}

/// `GET /v1/node`, the part `status` prints.
#[derive(Debug, Deserialize)]
struct NodeFacts {
    name: String,
    #[serde(default)]
    cluster: Option<String>,
    #[serde(default)]
    incarnation: Option<u64>,
    #[serde(default)]
    state: Option<String>,
    #[serde(default)]
    version: Option<String>,
    #[serde(default)]
    uptime_ms: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Status {
    node: serde_json::Value,
    epoch: u64,
    alive: usize,
    suspect: usize,
    down: usize,
    left: usize,
}

pub(crate) async fn status(client: &Client, output: &mut Output) -> Done {
    let node: serde_json::Value = client.get("/v1/node").await?;
    let members = Members::of(client).await?;
    if output.is_json() {
        let count = |state| members.count(state);
        return output.json(&Status {
            node,
            epoch: members.epoch,
            alive: count("alive"),
            suspect: count("suspect"),
            down: count("down"),
            left: count("left"),
        });
    }
    let facts: NodeFacts = serde_json::from_value(node)
        .map_err(|error| Failure::NotDone(format!("cannot read the node's answer: {error}")))?;
    let uptime = facts
        .uptime_ms
        .map(|ms| format!(", up {}", human_micros(ms.saturating_mul(1000))))
        .unwrap_or_default();
    let cluster = facts.cluster.unwrap_or_else(|| "?".to_owned());
    output.line(&format!(
        "cluster  {}: {}",
        output.toned(Tone::Strong, &cluster),
        summary(&members)
    ))?;
    output.line(&format!(
        "asked    {} {}, incarnation {}, version {}{uptime}",
        output.toned(Tone::Strong, &facts.name),
        facts.state.unwrap_or_default(),
        facts.incarnation.map_or_else(|| "?".to_owned(), |incarnation| incarnation.to_string()),
        facts.version.unwrap_or_else(|| "?".to_owned()),
    ))?;
    for member in
        members.members.iter().filter(|member| !matches!(member.standing(), "alive" | "left"))
    {
        let standing = output.toned(Tone::of_state(member.standing()), member.standing());
        let by = if member.suspected_by.is_empty() {
            String::new()
        } else {
            format!(" (by {})", member.suspected_by.join(", "))
        };
        output.line(&format!("{:<8} {} {standing}{by}", "", member.name))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn members(text: &str) -> Members {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn fields_of_a_later_release_do_no_harm() {
        let members = members(
            r#"{"epoch":7,"new":1,"members":[{"name":"n1","id":"x","incarnation":3,"state":"alive","later":[]}]}"#,
        );
        assert_eq!(summary(&members), "1 alive, epoch 7");
    }

    #[test]
    fn of_two_lives_the_present_one_is_meant() {
        let members = members(
            r#"{"epoch":1,"members":[{"name":"n2","incarnation":1,"state":"down"},{"name":"n2","incarnation":2,"state":"alive"},
                {"name":"n3","incarnation":5,"state":"left"},{"name":"n3","incarnation":4,"state":"down"}]}"#,
        );
        assert_eq!(members.find("n2").unwrap().incarnation, 2);
        assert_eq!(members.find("n3").unwrap().incarnation, 5);
        assert!(members.find("n9").is_none());
    }
}
