//! `purlin pub`: one message, or a line each from standard input.
//!
//! Lines travel in batches of whole lines, one batch at a time on one connection: order is kept,
//! a slow producer's line leaves at once, a fast one's share a request, and when something breaks
//! the count of what is known to be published is exact up to one batch.

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::{Deserialize, Serialize};
use tokio::{io::AsyncReadExt as _, sync::mpsc};

use crate::{
    args::PubArgs,
    client::{Client, segment},
    exit::{Done, Failure},
    output::{Output, human_bytes},
};

/// A batch is sent when it holds this much, or earlier when nothing more is waiting.
const BATCH_BYTES: usize = 256 << 10;
/// Chunks read ahead while a batch is on its way.
const CHUNKS_AHEAD: usize = 8;
const CHUNK_BYTES: usize = 64 << 10;

#[derive(Debug, Deserialize)]
struct Published {
    published: u64,
    /// Messages that did not go out to some other node: its backlog was full or its link broken.
    #[serde(default)]
    undelivered: u64,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    topic: &'a str,
    published: u64,
    undelivered: u64,
    bytes: u64,
    took_ms: u128,
}

pub(crate) async fn publish(client: &Client, args: &PubArgs, output: &mut Output) -> Done {
    let path = format!("/v1/topics/{}", segment(&args.topic));
    match args.text.as_deref() {
        Some(text) if text != "-" => {
            let started = Instant::now();
            let answer: Published = client.post(&path, text).await?;
            report(args, &answer, text.len() as u64, started.elapsed(), output)
        }
        _ => publish_lines(client, &format!("{path}?split=lines"), args, output).await,
    }
}

async fn publish_lines(client: &Client, path: &str, args: &PubArgs, output: &mut Output) -> Done {
    let started = Instant::now();
    let mut chunks = read_ahead();
    let mut lines = Lines::default();
    let mut total = Published { published: 0, undelivered: 0 };
    let mut bytes = 0_u64;
    let progress = progress();
    // Finding a node is part of the first batch only: later batches stay with it, for their order.
    let mut node: Option<Client> = None;
    let outcome = loop {
        let batch = match lines.next_batch(&mut chunks).await {
            Ok(Some(batch)) => batch,
            Ok(None) => break Ok(()),
            Err(error) => {
                break Err(Failure::NotDone(format!("cannot read standard input: {error}")));
            }
        };
        let expected = count_lines(&batch);
        let size = batch.len() as u64;
        let sent = match &node {
            Some(node) => node.post_to(&node.endpoints()[0], path, batch).await,
            None => first_batch(client, path, batch, &mut node).await,
        };
        match sent {
            Ok(batch) => {
                total.published += batch.published;
                total.undelivered += batch.undelivered;
                bytes += size;
                progress.set_position(total.published);
                if batch.published != expected {
                    break Err(Failure::NotDone(format!(
                        "the node published {} of a batch of {expected} lines",
                        batch.published
                    )));
                }
            }
            Err(failure) => break Err(failure),
        }
    };
    progress.finish_and_clear();
    match outcome {
        Ok(()) => report(args, &total, bytes, started.elapsed(), output),
        Err(failure) => Err(with_count(failure, total.published)),
    }
}

async fn first_batch(
    client: &Client,
    path: &str,
    batch: Bytes,
    node: &mut Option<Client>,
) -> Result<Published, Failure> {
    let mut last = None;
    for endpoint in client.endpoints() {
        match client.post_to(endpoint, path, batch.clone()).await {
            Err(Failure::Unreachable(why)) => last = Some(why),
            answer => {
                *node = Some(Client::of(vec![endpoint.clone()])?);
                return answer;
            }
        }
    }
    Err(Failure::Unreachable(format!("cannot reach a node: {}", last.unwrap_or_default())))
}

/// Adds to a failure what is known to have gone well before it.
fn with_count(failure: Failure, published: u64) -> Failure {
    let add = |text: String| format!("{text}; {published} lines before were published");
    match failure {
        Failure::Unknown(text) => Failure::Unknown(add(text)),
        Failure::Unreachable(text) if published == 0 => Failure::Unreachable(text),
        // Nothing of this batch was sent, but the task as a whole was begun.
        Failure::Unreachable(text) | Failure::NotDone(text) => Failure::NotDone(add(text)),
        other @ (Failure::Usage(_) | Failure::OutputClosed) => other,
    }
}

fn report(
    args: &PubArgs,
    total: &Published,
    bytes: u64,
    took: Duration,
    output: &mut Output,
) -> Done {
    let Published { published, undelivered } = *total;
    if output.is_json() {
        return output.json(&Report {
            topic: &args.topic,
            published,
            undelivered,
            bytes,
            took_ms: took.as_millis(),
        });
    }
    let messages = if published == 1 { "message" } else { "messages" };
    output.line(&format!(
        "published {published} {messages} to {} ({}, {} ms)",
        args.topic,
        human_bytes(bytes),
        took.as_millis()
    ))?;
    if undelivered > 0 {
        output.note(&format!(
            "{undelivered} of them did not go out to some other node: its link was down or full"
        ));
    }
    Ok(())
}

fn progress() -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {human_pos} lines  {per_sec}  {elapsed}")
        .expect("the template is a constant and names known keys");
    // Draws nothing when standard error is not a terminal.
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(10)).with_style(style)
}

type Chunk = std::io::Result<Bytes>;

/// Reads standard input from a task, so that reading goes on while a batch is on its way.
fn read_ahead() -> mpsc::Receiver<Chunk> {
    let (chunks, receiver) = mpsc::channel(CHUNKS_AHEAD);
    tokio::spawn(async move {
        let mut input = tokio::io::stdin();
        loop {
            let mut chunk = BytesMut::with_capacity(CHUNK_BYTES);
            let read = input.read_buf(&mut chunk).await;
            let item = match read {
                Ok(0) => return,
                Ok(_) => Ok(chunk.freeze()),
                Err(error) => Err(error),
            };
            if chunks.send(item).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// Gathers chunks into batches of whole lines.
#[derive(Debug, Default)]
struct Lines {
    pending: BytesMut,
    at_end: bool,
}

impl Lines {
    /// The next batch; `None` when the input is over and everything was handed out.
    async fn next_batch(
        &mut self,
        chunks: &mut mpsc::Receiver<Chunk>,
    ) -> std::io::Result<Option<Bytes>> {
        loop {
            while !self.at_end && self.pending.len() < BATCH_BYTES {
                match chunks.try_recv() {
                    Ok(chunk) => self.pending.extend_from_slice(&chunk?),
                    Err(_) => break,
                }
            }
            if let Some(end) = self.pending.iter().rposition(|&byte| byte == b'\n') {
                return Ok(Some(self.pending.split_to(end + 1).freeze()));
            }
            if self.at_end {
                let rest = self.pending.split().freeze();
                return Ok((!rest.is_empty()).then_some(rest));
            }
            match chunks.recv().await {
                Some(chunk) => self.pending.extend_from_slice(&chunk?),
                None => self.at_end = true,
            }
        }
    }
}

fn count_lines(batch: &[u8]) -> u64 {
    let ended = batch.iter().filter(|&&byte| byte == b'\n').count() as u64;
    ended + u64::from(batch.last().is_some_and(|&byte| byte != b'\n'))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn batches(chunks: &[&'static str]) -> Vec<String> {
        let (sender, mut receiver) = mpsc::channel(64);
        for chunk in chunks {
            sender.send(Ok(Bytes::from_static(chunk.as_bytes()))).await.unwrap();
        }
        drop(sender);
        let mut lines = Lines::default();
        let mut batches = Vec::new();
        while let Some(batch) = lines.next_batch(&mut receiver).await.unwrap() {
            batches.push(String::from_utf8(batch.to_vec()).unwrap());
        }
        batches
    }

    #[tokio::test]
    async fn what_waits_together_travels_together() {
        assert_eq!(batches(&["a\nb", "c\n", "d"]).await, ["a\nbc\n", "d"]);
    }

    #[tokio::test]
    async fn no_line_is_cut_and_none_is_lost() {
        let chunks =
            ["x".repeat(100_000), "y\n\n".to_owned(), "z".repeat(300_000), "\nend\n".to_owned()];
        let text = chunks.concat();
        let leaked: Vec<&'static str> = chunks.into_iter().map(|chunk| &*chunk.leak()).collect();
        let batches = batches(&leaked).await;
        assert_eq!(batches.concat(), text);
        assert!(batches.iter().all(|batch| batch.ends_with('\n')));
        assert_eq!(batches.iter().map(|batch| count_lines(batch.as_bytes())).sum::<u64>(), 4);
    }

    #[test]
    fn empty_lines_and_a_last_piece_count() {
        assert_eq!(count_lines(b"\n\na"), 3);
        assert_eq!(count_lines(b""), 0);
    }
}
