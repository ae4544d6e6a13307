//! `purlin run`, `ps`, `logs` and `stop`: programs that run somewhere in the cluster.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use futures_util::StreamExt as _;
use purlin_server::shapes::{
    End, LogLineReport, LogSourceReport, ProgramReport, RanReport, RunRequest, StoppedReport,
    SupervisedReport,
};
use reqwest::Method;

use crate::{
    args::{LogsArgs, PsArgs, RunArgs, StopArgs},
    client::{Client, segment},
    exit::{Done, Failure},
    listing::{Page, Row, list},
    output::{Output, Tone},
    sse::{Event, Parser},
};

const RETRY_EVERY: Duration = Duration::from_millis(500);
const RETRIES: u32 = 60;

pub(crate) async fn run(client: &Client, args: &RunArgs, output: &mut Output) -> Done {
    let request = RunRequest {
        command: args.command.clone(),
        env: args.env.iter().cloned().collect::<BTreeMap<_, _>>(),
        cwd: args.cwd.clone().or_else(|| here(client)),
        user: args.user.clone(),
        stop_signal: Some(args.stop_signal.clone()),
        grace_ms: Some(u64::try_from(args.grace.as_millis()).unwrap_or(u64::MAX)),
        restart: Some(args.restart.as_str().to_owned()),
        memory_max: args.memory_max,
        cpus: args.cpus,
        singleton: args.singleton,
    };
    let body = serde_json::to_vec(&request).map_err(Failure::not_done)?;
    let ran: RanReport = client.send(Method::PUT, &path(&args.name), body).await?;
    if output.is_json() {
        return output.json(&ran);
    }
    let ProgramReport { name, node, fence, state, .. } = &ran.program;
    let text = match (ran.ran.as_str(), node) {
        (_, None) if state == "over" => format!("{name} has run and is over"),
        // Where it is may not have been heard here yet.
        ("already", None) => format!("{name} is there already: {state}"),
        (_, None) => format!("{name} is being started"),
        ("already", Some(node)) => format!("{name} is there already: {state} on {node}"),
        ("released", Some(node)) => format!("{name} is started again on {node}"),
        (_, Some(node)) => format!("{name} runs on {node}, fence {fence}"),
    };
    output.line(&text)?;
    output.note(&format!("purlin logs -f {name} shows what it writes"));
    Ok(())
}

/// The directory we are in, if the node asked is on this machine: elsewhere it means nothing.
fn here(client: &Client) -> Option<String> {
    let url = reqwest::Url::parse(&client.endpoints().first()?.url).ok()?;
    let host = url.host_str()?.trim_matches(['[', ']']);
    let is_here = host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback());
    let dir = std::env::current_dir().ok().filter(|_| is_here)?;
    dir.into_os_string().into_string().ok()
}

pub(crate) async fn ps(client: &Client, args: &PsArgs, output: &mut Output) -> Done {
    let path = format!("/v1/supervised?limit=10000&prefix={}", segment(&args.prefix));
    let head = ["NAME", "STATE", "NODE", "FENCE", "RESTARTS", "COMMAND"];
    list::<SupervisedReport>(client, &path, &head, output).await
}

impl Page for SupervisedReport {
    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn rows(&self) -> Vec<Row> {
        self.programs.iter().map(row).collect()
    }
}

fn row(program: &ProgramReport) -> Row {
    let tone = match program.state.as_str() {
        "running" => Tone::Good,
        "quarantined" => Tone::Bad,
        _ => Tone::Doubtful,
    };
    let mut command = program.command.join(" ").replace(char::is_control, " ");
    if program.state == "quarantined"
        && let Some(cause) = &program.cause
    {
        command.push_str(&format!("   ({cause}; `purlin run` it again to release it)"));
    }
    vec![
        (Tone::Strong, program.name.clone()),
        (tone, program.state.clone()),
        (Tone::Quiet, program.node.clone().unwrap_or_else(|| "-".to_owned())),
        (Tone::Quiet, program.fence.to_string()),
        (Tone::Quiet, program.restarts.to_string()),
        (Tone::Quiet, command),
    ]
}

pub(crate) async fn stop(client: &Client, args: &StopArgs, output: &mut Output) -> Done {
    let stopped: StoppedReport = client.send(Method::DELETE, &path(&args.name), Vec::new()).await?;
    if output.is_json() {
        return output.json(&stopped);
    }
    if stopped.ended {
        return output.line(&format!("{} has ended", args.name));
    }
    output.line(&format!("{} is stopped; its node ends it within its grace", args.name))
}

pub(crate) async fn logs(client: &Client, args: &LogsArgs, output: &mut Output) -> Done {
    let mut path = format!("{}/logs?follow={}", path(&args.name), args.follow);
    if let Some(tail) = args.tail {
        path.push_str(&format!("&tail={tail}"));
    }
    if let Some(node) = &args.on {
        path.push_str(&format!("&node={}", segment(node)));
    }
    let mut printer = Printer { timestamps: args.timestamps, last_id: None, open: None };
    let mut misses = 0;
    loop {
        let (endpoint, response) = match client.stream(&path, printer.last_id.as_deref()).await {
            Ok(opened) => opened,
            Err(failure @ Failure::Unreachable(_))
                if args.follow && printer.last_id.is_some() && misses < RETRIES =>
            {
                if misses == 0 {
                    output.note(failure.text().unwrap_or_default());
                }
                misses += 1;
                tokio::time::sleep(RETRY_EVERY).await;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        misses = 0;
        let (mut parser, mut batch) = (Parser::default(), Vec::new());
        let mut body = response.bytes_stream();
        while let Some(Ok(chunk)) = body.next().await {
            parser.feed(&chunk, &mut batch).map_err(Failure::not_done)?;
            for event in batch.drain(..) {
                if let Some(end) = printer.take(&event, output)? {
                    match end.reason.as_str() {
                        "finished" => return printer.finish(output),
                        "closed" => return Err(Failure::NotDone(end.detail)),
                        _ => output.note(&format!("{}: {}", endpoint.url, end.detail)),
                    }
                }
            }
            output.flush()?;
        }
        if !args.follow {
            let text = format!("the connection to {} broke before the last line", endpoint.url);
            return Err(Failure::NotDone(text));
        }
        tokio::time::sleep(RETRY_EVERY).await;
    }
}

/// Prints output as it was written: what went to standard error goes there.
struct Printer {
    timestamps: bool,
    last_id: Option<String>,
    /// The stream whose last line has not ended.
    open: Option<String>,
}

impl Printer {
    fn take(&mut self, event: &Event, output: &mut Output) -> Result<Option<End>, Failure> {
        if event.id.is_some() {
            self.last_id.clone_from(&event.id);
        }
        let unreadable =
            |error| Failure::NotDone(format!("cannot read an event of the stream: {error}"));
        match event.kind.as_str() {
            "line" if output.is_json() => output.line(&event.data)?,
            "line" => {
                self.print(&serde_json::from_str(&event.data).map_err(unreadable)?, output)?
            }
            "source" => {
                let source: LogSourceReport =
                    serde_json::from_str(&event.data).map_err(unreadable)?;
                output.note(&format!("output kept by {}", source.node));
            }
            "gap" => output.note(&format!("lines may be missing here: {}", event.data)),
            "end" => return serde_json::from_str(&event.data).map(Some).map_err(unreadable),
            // Whatever a later release adds.
            _ => {}
        }
        Ok(None)
    }

    fn print(&mut self, line: &LogLineReport, output: &mut Output) -> Done {
        let goes_on = self.open.as_deref() == Some(&*line.stream);
        if !goes_on {
            self.finish(output)?;
        }
        let is_error = line.stream != "stdout";
        let mut text = String::new();
        if self.timestamps && !goes_on {
            text.push_str(&format!("{} {} ", crate::events::time_of_day(line.at_ms), line.node));
        }
        if line.stream == "purlin" {
            text.push_str("-- ");
        }
        text.push_str(&if output.is_terminal() { harmless(&line.text) } else { line.text.clone() });
        self.open = line.part.then(|| line.stream.clone());
        if !line.part {
            text.push('\n');
        }
        output.program(is_error, text.as_bytes())
    }

    /// Ends a line that goes no further.
    fn finish(&mut self, output: &mut Output) -> Done {
        match self.open.take() {
            Some(stream) => output.program(stream != "stdout", b"\n"),
            None => Ok(()),
        }
    }
}

/// Without what would make a terminal beep, clear or speak; colours stay.
fn harmless(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\t' && c != '\u{1b}' { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

fn path(name: &str) -> String {
    format!("/v1/supervised/{}", segment(name))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_terminal_is_shown_no_control_characters_but_colours() {
        let text = "a\tb\u{1b}[31mred\u{1b}[0m\0\u{7}";
        assert_eq!(super::harmless(text), "a\tb\u{1b}[31mred\u{1b}[0m\u{fffd}\u{fffd}");
    }
}
