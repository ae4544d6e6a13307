//! Measures local calls and casts beside bare tokio channels, and what a process costs to start and
//! to have, in one run.
//!
//! `cargo run --release -p purlin-process --example local_messages [-- rounds]`

use std::time::{Duration, Instant};

use purlin_process::{
    Context, ExitReason, Handle, MailboxLimits, Message, Overload, Processes, Server, SpawnOptions,
};
use tokio::sync::{mpsc, oneshot};

struct Counter(u64);

struct Add(u64);

impl Message for Add {
    type Reply = u64;
    const NAME: &'static str = "Counter.add";
}

impl Server for Counter {
    const KIND: &'static str = "Counter";
    type Args = ();
    async fn init((): (), _ctx: &mut Context<Self>) -> Result<Self, ExitReason> {
        Ok(Self(0))
    }
}

impl Handle<Add> for Counter {
    async fn handle(&mut self, add: Add, _ctx: &mut Context<Self>) -> u64 {
        self.0 += add.0;
        self.0
    }
}

const CALLS: u32 = 300_000;
const CASTS: u32 = 1_000_000;

async fn bare_call() -> Duration {
    let (to, mut inbox) = mpsc::channel::<(u64, oneshot::Sender<u64>)>(4_096);
    let server = tokio::spawn(async move {
        let mut sum = 0;
        while let Some((add, reply)) = inbox.recv().await {
            sum += add;
            reply.send(sum).expect("the caller waits");
        }
    });
    let start = Instant::now();
    for _ in 0..CALLS {
        let (reply, answer) = oneshot::channel();
        to.send((1, reply)).await.expect("the server runs");
        answer.await.expect("the server answers");
    }
    let took = start.elapsed();
    drop(to);
    server.await.expect("the server ends");
    took / CALLS
}

async fn bare_cast() -> Duration {
    let (to, mut inbox) = mpsc::channel::<u64>(4_096);
    let server = tokio::spawn(async move {
        let mut sum = 0;
        while let Some(add) = inbox.recv().await {
            sum += add;
        }
        sum
    });
    let start = Instant::now();
    for _ in 0..CASTS {
        to.send(1).await.expect("the server runs");
    }
    let took = start.elapsed();
    drop(to);
    assert_eq!(server.await.expect("the server ends"), u64::from(CASTS));
    took / CASTS
}

fn options() -> SpawnOptions {
    SpawnOptions::default().mailbox(MailboxLimits {
        messages_max: 4_096,
        overload: Overload::Wait(Duration::from_secs(60)),
        ..MailboxLimits::default()
    })
}

async fn purlin_call(processes: Processes) -> Duration {
    let counter = processes.spawn::<Counter>((), options()).await.expect("init succeeds");
    let start = Instant::now();
    for _ in 0..CALLS {
        counter.call(Add(1)).await.expect("the server answers");
    }
    let took = start.elapsed();
    counter.drain();
    counter.exited().await;
    took / CALLS
}

async fn purlin_cast(processes: Processes) -> Duration {
    let counter = processes.spawn::<Counter>((), options()).await.expect("init succeeds");
    let start = Instant::now();
    for _ in 0..CASTS {
        counter.cast(Add(1)).await.expect("the server runs");
    }
    let took = start.elapsed();
    let sum = counter.call(Add(0)).await.expect("the server answers");
    assert_eq!(sum, u64::from(CASTS));
    took / CASTS
}

const PROCESSES: u32 = 50_000;

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm")
        .ok()
        .and_then(|text| text.split_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * 4_096
}

/// Nanoseconds to start a process, and bytes it occupies.
async fn purlin_spawn(processes: Processes) -> (Duration, u64) {
    let before = resident_bytes();
    let start = Instant::now();
    let mut all = Vec::new();
    for _ in 0..PROCESSES {
        let started = processes.spawn::<Counter>((), SpawnOptions::default()).await;
        all.push(started.expect("init succeeds"));
    }
    let took = start.elapsed();
    let bytes = resident_bytes().saturating_sub(before) / u64::from(PROCESSES);
    for process in &all {
        process.kill();
    }
    while processes.live() > 0 {
        tokio::task::yield_now().await;
    }
    (took / PROCESSES, bytes)
}

fn median(mut all: Vec<Duration>) -> Duration {
    all.sort();
    all[all.len() / 2]
}

#[tokio::main]
#[expect(clippy::print_stdout, reason = "the figures are the point")]
async fn main() {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(7);
    let processes = Processes::for_tests();
    let (spawned, bytes) = tokio::spawn(purlin_spawn(processes.clone())).await.expect("no panic");
    println!("spawn: {spawned:?}, {bytes} bytes each");
    let (mut calls, mut casts) = (Vec::new(), Vec::new());
    let (mut bare_calls, mut bare_casts) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        bare_calls.push(tokio::spawn(bare_call()).await.expect("no panic"));
        calls.push(tokio::spawn(purlin_call(processes.clone())).await.expect("no panic"));
        bare_casts.push(tokio::spawn(bare_cast()).await.expect("no panic"));
        casts.push(tokio::spawn(purlin_cast(processes.clone())).await.expect("no panic"));
    }
    for (what, bare, ours) in
        [("call", median(bare_calls), median(calls)), ("cast", median(bare_casts), median(casts))]
    {
        let ratio = ours.as_secs_f64() / bare.as_secs_f64();
        println!("{what}: bare {bare:?}, purlin {ours:?}, ratio {ratio:.2}");
    }
}
