//! What `up` tells the person who started it.

use std::time::Duration;

use serde::Serialize;

use super::layout::Layout;
use crate::{
    exit::Done,
    output::{Output, Tone, human_micros, table},
};

#[derive(Debug, Serialize)]
struct Story<'a> {
    dir: &'a std::path::Path,
    token_file: &'a std::path::Path,
    took_ms: u128,
    nodes: Vec<StoryNode<'a>>,
}

#[derive(Debug, Serialize)]
struct StoryNode<'a> {
    name: &'a str,
    pid: u32,
    url: String,
    console: String,
    cluster_addr: String,
    dir: &'a std::path::Path,
}

pub(super) fn tell(layout: &Layout, pids: &[u32], took: Duration, output: &mut Output) -> Done {
    let nodes: Vec<_> = layout
        .nodes
        .iter()
        .zip(pids)
        .map(|(node, &pid)| StoryNode {
            name: &node.name,
            pid,
            url: node.url(),
            // In the fragment, which browsers never send: it stays out of every log.
            console: format!("{}/#token={}", node.url(), layout.token),
            cluster_addr: node.cluster_addr.to_string(),
            dir: &node.dir,
        })
        .collect();
    if output.is_json() {
        return output.json(&Story {
            dir: &layout.dir,
            token_file: &layout.token_file,
            took_ms: took.as_millis(),
            nodes,
        });
    }
    let count = match nodes.len() {
        1 => "one node".to_owned(),
        2 => "two nodes".to_owned(),
        3 => "three nodes".to_owned(),
        more => format!("{more} nodes"),
    };
    let took = human_micros(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    output.line(&format!(
        "{}, one cluster, up in {took}; files in {}",
        output.toned(Tone::Strong, &count),
        layout.dir.display()
    ))?;
    output.line("")?;
    let rows: Vec<_> = nodes
        .iter()
        .map(|node| {
            vec![
                (Tone::Good, format!("  {}", node.name)),
                (Tone::Quiet, node.pid.to_string()),
                (Tone::Quiet, node.cluster_addr.clone()),
                (Tone::Strong, node.console.clone()),
            ]
        })
        .collect();
    table(&["  NODE", "PID", "CLUSTER", "CONSOLE"], &rows, output)?;
    output.line("")?;
    output.line("Try in another terminal:")?;
    let first = &nodes[0];
    let last = &nodes[nodes.len() - 1];
    let mut hints = vec![
        ("purlin members --watch".to_owned(), "who is alive, as it changes".to_owned()),
        (format!("purlin sub feed --node {}", last.name), format!("listen on {}", last.name)),
        (
            format!("purlin pub feed hello --node {}", first.name),
            format!("publish on {}", first.name),
        ),
        (format!("curl {}/v1/members", first.url), "the same over HTTP".to_owned()),
        (
            "purlin run web -- sleep 1000".to_owned(),
            "keep a command running on some node".to_owned(),
        ),
    ];
    if let Some(second) = nodes.get(1) {
        hints.push((
            format!("kill -9 {}", second.pid),
            format!("see the others notice that {} is gone", second.name),
        ));
        hints.push((
            format!("purlin node --data {}", second.dir.display()),
            "and bring it back".to_owned(),
        ));
        hints.push((
            format!("purlin drain {}", last.name),
            format!("let {} leave in peace", last.name),
        ));
    }
    let width = hints.iter().map(|(command, _)| command.len()).max().unwrap_or(0).min(44);
    for (command, why) in hints {
        let command = output.toned_cell(Tone::Strong, &command, width);
        output.line(&format!("  {command}  {}", output.toned(Tone::Quiet, &why)))?;
    }
    output.line("")?;
    output.line("Ctrl-C drains all nodes; a second one stops them at once.")
}
