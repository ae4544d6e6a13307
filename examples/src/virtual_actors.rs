//! A thousand meters that are always somewhere: virtual actors under a rolling restart.
//!
//! ```text
//! cargo run -p examples --bin virtual_actors
//! ```
//! starts five nodes and a reader that calls the meters 500 times a second, then drains and
//! restarts one node after the other. A meter is activated by its first call, moves with its
//! count when its node drains, and in the end every meter has counted every call.

use std::{
    collections::BTreeMap,
    env,
    error::Error,
    io::{BufRead as _, BufReader, Write as _, stdin, stdout},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use purlin::{
    dist::supervisor::{Birth, Kind, KindError, SupervisorConfig},
    prelude::*,
};
use tokio::time::{Instant, interval};

const NODES: usize = 5;
const METERS: usize = 1_000;
const CALLS_PER_S: u64 = 500;
/// How long one call may take, all moves of its meter included.
const WITHIN: Duration = Duration::from_secs(60);
/// How often a call that was refused with nothing done is made again.
const RETRIES: u32 = 1;
const PATIENCE: Duration = Duration::from_secs(60);

/// Counts what it is told.
struct Meter(u64);

#[purlin::server]
impl Meter {
    #[init]
    fn open(count: u64) -> Self {
        Self(count)
    }

    /// Adds `amount` and returns the sum.
    #[call]
    fn add(&mut self, amount: u64) -> u64 {
        self.0 += amount;
        self.0
    }
}

/// How any node makes a meter, and what a meter gives to its successor.
struct Meters;

impl Kind for Meters {
    const NAME: &'static str = "meter";
    type Server = Meter;
    type Args = ();
    type State = u64;

    fn args(&self, (): (), birth: Birth<u64>) -> Result<u64, KindError> {
        Ok(birth.state.unwrap_or(0))
    }

    fn hand_off(&self, meter: &mut Meter) -> Option<u64> {
        Some(meter.0)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => show(),
        ["host", keys, name, seeds @ ..] => host(Path::new(keys), name, seeds).await,
        ["read", keys, seeds @ ..] => read(Path::new(keys), seeds).await,
        _ => Err("usage: virtual_actors [host KEYS NAME [SEED ...] | read KEYS SEED ...]".into()),
    }
}

/// A process of this demonstration, and what it says.
struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Process {
    fn start(args: &[String]) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(env::current_exe()?)
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().ok_or("stdin is piped")?;
        let out = BufReader::new(child.stdout.take().ok_or("stdout is piped")?);
        let (tell, lines) = mpsc::channel();
        thread::spawn(move || {
            out.lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        Ok(Self { child, stdin, lines })
    }

    /// The next line; an error if it says nothing for too long.
    fn hear(&self) -> Result<String, Box<dyn Error>> {
        Ok(self.lines.recv_timeout(PATIENCE * 2)?)
    }

    /// Lets it go in peace: the end of its standard input tells it so.
    fn finish(mut self) -> Result<(), Box<dyn Error>> {
        drop(self.stdin);
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(format!("a process ended with {status}").into()) }
    }
}

/// Starts nodes and reader, restarts the nodes one by one, and repeats what the reader saw.
fn show() -> Result<(), Box<dyn Error>> {
    let mut out = stdout();
    let keys = env::temp_dir().join(format!("purlin-meters-{}", std::process::id()));
    let words = |role: &str, rest: &[String]| {
        let head = [role.to_owned(), keys.to_string_lossy().into_owned()];
        head.into_iter().chain(rest.iter().cloned()).collect::<Vec<_>>()
    };
    // Name and address of every node.
    let mut nodes: BTreeMap<String, (Process, String)> = BTreeMap::new();
    let host = |name: &str, nodes: &BTreeMap<String, (Process, String)>| {
        let seeds = nodes.values().map(|(_, address)| address.clone());
        let rest: Vec<String> = [name.to_owned()].into_iter().chain(seeds).collect();
        let process = Process::start(&words("host", &rest))?;
        let address = process.hear()?;
        Ok::<_, Box<dyn Error>>((process, address))
    };
    for n in 1..=NODES {
        let name = format!("n{n}");
        let node = host(&name, &nodes)?;
        nodes.insert(name, node);
    }
    let seeds: Vec<String> = nodes.values().map(|(_, address)| address.clone()).collect();
    let reader = Process::start(&words("read", &seeds))?;
    writeln!(out, "{}", reader.hear()?)?;
    for n in 1..=NODES {
        let name = format!("n{n}");
        let (process, _) = nodes.remove(&name).ok_or("every node is there")?;
        process.finish()?;
        let node = host(&name, &nodes)?;
        nodes.insert(name.clone(), node);
        writeln!(out, "{name} was drained and started again")?;
    }
    let Process { mut child, stdin, lines } = reader;
    drop(stdin);
    lines.iter().try_for_each(|line| writeln!(out, "{line}"))?;
    let read = child.wait()?;
    nodes.into_values().try_for_each(|(process, _)| process.finish())?;
    std::fs::remove_dir_all(&keys)?;
    if read.success() { Ok(()) } else { Err("the reader was not content".into()) }
}

async fn start(keys: &Path, name: &str, seeds: &[&str]) -> Result<Node, Box<dyn Error>> {
    let seeds = seeds.iter().map(ToString::to_string);
    Ok(Node::builder().name(name).dev(&DevAuthority::in_dir(keys)?).join(seeds).start().await?)
}

/// A node that runs meters, until its standard input ends; then it drains.
async fn host(keys: &Path, name: &str, seeds: &[&str]) -> Result<(), Box<dyn Error>> {
    let node = start(keys, name, seeds).await?;
    let supervisor = node.supervisor("meters")?;
    // A count that is late is better than one that begins again.
    supervisor.configure(SupervisorConfig { hand_off_within: PATIENCE, ..Default::default() })?;
    supervisor.register_kind(Meters)?;
    let others = NODES.min(seeds.len() + 1);
    node.cluster().wait_for_members(others, PATIENCE).await?;
    writeln!(stdout(), "{}", node.cluster_addr())?;
    wait_for_the_end_of_input().await?;
    node.drain(Some(PATIENCE)).await;
    Ok(())
}

async fn wait_for_the_end_of_input() -> Result<(), Box<dyn Error>> {
    Ok(tokio::task::spawn_blocking(|| stdin().lines().for_each(drop)).await?)
}

/// What became of the calls.
#[derive(Default)]
struct Tally {
    done: AtomicU64,
    retried: AtomicU64,
    failed: AtomicU64,
    slowest_ms: AtomicU64,
    first_error: Mutex<Option<String>>,
}

/// Calls meters until its standard input ends, then compares what each counted.
async fn read(keys: &Path, seeds: &[&str]) -> Result<(), Box<dyn Error>> {
    let node = start(keys, "reader", seeds).await?;
    node.cluster().wait_for_members(NODES + 1, PATIENCE).await?;
    let supervisor = node.supervisor("meters")?;
    let meters: Vec<MeterHandle> = (0..METERS)
        .map(|n| supervisor.actor::<Meters>(&format!("meter/{n}")))
        .map(|meter| MeterHandle::from(meter.address()).within(WITHIN))
        .collect();
    let told: Arc<Vec<AtomicU64>> = Arc::new((0..METERS).map(|_| AtomicU64::new(0)).collect());
    let tally = Arc::new(Tally::default());
    // Every meter once, so that all are awake.
    for (n, meter) in meters.iter().enumerate() {
        call(meter, &told[n], &tally).await;
    }
    writeln!(stdout(), "{} meters are awake", tally.done.load(Ordering::Relaxed))?;

    let mut pace = interval(Duration::from_secs(1) / u32::try_from(CALLS_PER_S)?);
    // A slow machine gets fewer calls, not all of them at once.
    pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let end = wait_for_the_end_of_input();
    tokio::pin!(end);
    let mut calls = tokio::task::JoinSet::new();
    for n in (0..METERS).cycle() {
        tokio::select! {
            ended = &mut end => {
                ended?;
                break;
            }
            _ = pace.tick() => {}
        }
        let (meter, told, tally) = (meters[n].clone(), Arc::clone(&told), Arc::clone(&tally));
        calls.spawn(async move { call(&meter, &told[n], &tally).await });
        while calls.try_join_next().is_some() {}
    }
    calls.join_all().await;

    let mut wrong = 0;
    for (n, meter) in meters.iter().enumerate() {
        let counted = meter.add(0).await?;
        if counted != told[n].load(Ordering::Relaxed) {
            wrong += 1;
            writeln!(stdout(), "meter/{n} counted {counted}, was told {:?}", told[n])?;
        }
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    writeln!(
        stdout(),
        "{} calls, {} retried once, {} failed, slowest {} ms, {wrong} meters with a wrong count",
        count(&tally.done),
        count(&tally.retried),
        count(&tally.failed),
        count(&tally.slowest_ms),
    )?;
    if let Some(error) = tally.first_error.lock().ok().and_then(|mut first| first.take()) {
        return Err(error.into());
    }
    node.shutdown().await;
    if wrong == 0 { Ok(()) } else { Err(format!("{wrong} meters with a wrong count").into()) }
}

/// Tells one meter to add one; again only when nothing was done.
async fn call(meter: &MeterHandle, told: &AtomicU64, tally: &Tally) {
    let began = Instant::now();
    for attempt in 0..=RETRIES {
        match meter.add(1).await {
            Ok(_sum) => {
                told.fetch_add(1, Ordering::Relaxed);
                tally.done.fetch_add(1, Ordering::Relaxed);
                let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                tally.slowest_ms.fetch_max(took, Ordering::Relaxed);
                return;
            }
            Err(error) if error.outcome() == Outcome::NotDone && attempt < RETRIES => {
                tally.retried.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                tally.failed.fetch_add(1, Ordering::Relaxed);
                if let Ok(mut first) = tally.first_error.lock() {
                    first.get_or_insert_with(|| format!("{error} ({:?})", error.outcome()));
                }
                return;
            }
        }
    }
}
