//! A typed server called across operating-system processes.
//!
//! `cargo run -p examples --bin counter_service`
//!
//! The program starts itself twice more: once as the process that owns the counter and once as a
//! process that calls it. What the caller writes is what it would write were the counter in its own
//! program: `counter.add(5).await?`.

use std::{
    env,
    error::Error,
    io::{BufRead as _, BufReader, Write as _, stdin, stdout},
    process::{Child, Command, Stdio},
    time::Duration,
};

use purlin::prelude::*;

const WITHIN: Duration = Duration::from_secs(60);

/// A number that many may add to.
struct Counter {
    value: u64,
}

#[purlin::server]
impl Counter {
    #[init]
    fn start(value: u64) -> Self {
        Self { value }
    }

    /// Adds `by` and tells the new value.
    #[call]
    fn add(&mut self, by: u64) -> u64 {
        self.value += by;
        self.value
    }

    #[call]
    fn value(&self) -> u64 {
        self.value
    }

    /// Nobody waits for this one.
    #[cast]
    fn reset(&mut self) {
        self.value = 0;
    }

    #[summary]
    fn summary(&self) -> String {
        format!("at {}", self.value)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<_> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => show(),
        ["own", keys] => own(keys).await,
        ["call", keys, seed] => call(keys, seed).await,
        _ => Err("usage: counter_service [own KEYS | call KEYS ADDRESS]".into()),
    }
}

/// Starts the two other processes and repeats what they say.
fn show() -> Result<(), Box<dyn Error>> {
    let keys = env::temp_dir().join(format!("purlin-counter-{}", std::process::id()));
    let keys_text = keys.to_string_lossy().into_owned();
    let mut owner = start(&["own", &keys_text])?;
    let mut owner_says = BufReader::new(owner.stdout.take().ok_or("stdout is piped")?).lines();
    let address = owner_says.next().ok_or("the owner says where it is")??;

    let caller = start(&["call", &keys_text, &address])?.wait_with_output()?;
    stdout().write_all(&caller.stdout)?;
    // The end of its standard input tells the owner that it may go.
    drop(owner.stdin.take());
    let owner = owner.wait()?;
    std::fs::remove_dir_all(keys)?;
    if caller.status.success() && owner.success() { Ok(()) } else { Err("a process failed".into()) }
}

fn start(args: &[&str]) -> std::io::Result<Child> {
    Command::new(env::current_exe()?)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
}

/// The process that owns the counter.
async fn own(keys: &str) -> Result<(), Box<dyn Error>> {
    let node = Node::builder().name("owner").dev(&DevAuthority::in_dir(keys)?).start().await?;
    let options = SpawnOptions::named("counter");
    let counter = CounterHandle::spawn_with(node.processes(), options, 40).await?;
    writeln!(stdout(), "{}", node.cluster_addr())?;

    let end_of_input = tokio::task::spawn_blocking(|| stdin().lines().for_each(drop));
    end_of_input.await?;
    assert_eq!(counter.value().await?, 0, "the caller reset it last");
    node.drain(None).await;
    Ok(())
}

/// The process that calls it.
async fn call(keys: &str, seed: &str) -> Result<(), Box<dyn Error>> {
    let mut out = stdout();
    let node = Node::builder()
        .name("caller")
        .dev(&DevAuthority::in_dir(keys)?)
        .join([seed])
        .start()
        .await?;
    node.cluster().wait_for_members(2, WITHIN).await?;

    let owner = "owner".parse()?;
    let counter = node.remote().whereis::<Counter>(&owner, "counter", WITHIN).await?;
    let counter = CounterHandle::from(counter.ok_or("the owner has a counter")?);
    writeln!(out, "the counter is {counter:?}")?;
    writeln!(out, "40 + 2 = {}", counter.add(2).await?)?;

    // Many callers, one counter: each addition happens once.
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let counter = counter.clone();
        callers.spawn(async move { counter.add(1).await });
    }
    while let Some(added) = callers.join_next().await {
        added??;
    }
    writeln!(out, "after a hundred more: {}", counter.value().await?)?;

    counter.reset().await?;
    writeln!(out, "after a reset: {}", counter.value().await?)?;
    node.shutdown().await;
    Ok(())
}
