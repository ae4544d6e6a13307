//! How fast messages go between two processes on this machine, TLS on, beside a raw TCP echo.
//!
//! `cargo run --release -p purlin-net --example pingpong [round-trip|callers|casts|all] [seconds]`
#![expect(clippy::print_stdout, reason = "it prints a table")]

use std::{
    error::Error,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use purlin_core::{
    Clock as _, ClusterName, Deadline, Incarnation, NodeId, NodeName, Rng, SystemClock,
};
use purlin_net::{
    Authority, CallOptions, ChannelId, GossipKeys, Incoming, Method, PartitionKey, Peer, Rpc,
    SendError, Service, ServiceId, TlsIdentity, Transport, TransportConfig, Urgency, certs,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

type Failure = Box<dyn Error + Send + Sync>;

const ECHO: Method<u64, u64> = Method::new("bench.echo");
const COUNT: Method<(), u64> = Method::new("bench.count");
const NOTE: Method<[u8; 16], ()> = Method::new("bench.note");
const FLOOD: ServiceId = ServiceId(16);

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().collect();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    if let [_, serve, dir] = &arguments[..]
        && serve == "serve"
    {
        return runtime.block_on(serve_in(dir.clone().into()));
    }
    let what = arguments.get(1).cloned().unwrap_or_else(|| "all".to_owned());
    let seconds = arguments.get(2).map_or(Ok(3), |text| text.parse())?;
    // A task, as services have them: the thread of `block_on` would pay for every wake-up.
    runtime
        .block_on(async move { tokio::spawn(measure(what, Duration::from_secs(seconds))).await? })
}

fn files(dir: &Path, node: &str) -> Result<TransportConfig, Failure> {
    let tls = TlsIdentity::from_pem_files(
        &dir.join("ca.pem"),
        &dir.join(format!("{node}.pem")),
        &dir.join(format!("{node}.key")),
    )?;
    Ok(TransportConfig::new(
        ClusterName::parse("bench")?,
        NodeId::new(NodeName::parse(node)?, Incarnation(1)),
        "127.0.0.1:0".parse()?,
        tls,
        GossipKeys::parse(&"5a".repeat(32))?,
    ))
}

#[derive(Default)]
struct Counter(AtomicU64);

impl Service for Counter {
    fn on_frame(&self, frame: Incoming<'_>) {
        assert_eq!(frame.payload().len(), 16, "casts of the flood have 16 bytes");
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

async fn serve_in(dir: PathBuf) -> Result<(), Failure> {
    let clock = Arc::new(SystemClock::new());
    let transport = Transport::bind(files(&dir, "n2")?, clock, Rng::from_os()).await?;
    let rpc = Rpc::new(&transport);
    let counter = Arc::new(Counter::default());
    transport.register(FLOOD, Arc::<Counter>::clone(&counter));
    rpc.serve(ECHO, async |_, number| Ok(number))?;
    let noted = Arc::clone(&counter);
    rpc.serve(NOTE, move |_, _: [u8; 16]| {
        noted.0.fetch_add(1, Ordering::Relaxed);
        async { Ok(()) }
    })?;
    let count = Arc::clone(&counter);
    rpc.serve(COUNT, move |_, ()| {
        let count = count.0.load(Ordering::Relaxed);
        async move { Ok(count) }
    })?;
    let echo = TcpListener::bind("127.0.0.1:0").await?;
    println!("{} {}", transport.local_addr(), echo.local_addr()?);
    loop {
        let (mut stream, _) = echo.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(async move {
            let mut buffer = [0; 64];
            while let Ok(bytes) = stream.read(&mut buffer).await
                && bytes > 0
                && stream.write_all(&buffer[..bytes]).await.is_ok()
            {}
        });
    }
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

async fn measure(what: String, lasts: Duration) -> Result<(), Failure> {
    let dir = std::env::temp_dir().join(format!("purlin-pingpong-{}", std::process::id()));
    let now = SystemClock::new().wall();
    let authority = Authority::generate(&ClusterName::parse("bench")?, now)?;
    authority.store(&dir)?;
    for node in ["n1", "n2"] {
        authority
            .issue(&NodeName::parse(node)?, now, certs::NODE_VALID_FOR)?
            .store(&dir.join(format!("{node}.pem")), &dir.join(format!("{node}.key")))?;
    }
    let mut child = Command::new(std::env::current_exe()?)
        .arg("serve")
        .arg(&dir)
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = child.stdout.take().ok_or("the child has no output")?;
    let _server = Server(child);
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let (addr, echo) = line.trim().split_once(' ').ok_or("the child printed no addresses")?;
    let (addr, echo): (SocketAddr, SocketAddr) = (addr.parse()?, echo.parse()?);

    let clock = Arc::new(SystemClock::new());
    let transport = Transport::bind(files(&dir, "n1")?, clock, Rng::from_os()).await?;
    let rpc = Rpc::new(&transport);
    let peer = transport.add_peer(NodeId::new(NodeName::parse("n2")?, Incarnation(1)), addr)?;
    while !peer.is_up() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    std::fs::remove_dir_all(&dir)?;

    if matches!(&*what, "round-trip" | "all") {
        for _ in 0..3 {
            let raw = raw_round_trip(echo, lasts / 3).await?;
            let ours = round_trip(&rpc, &peer, lasts / 3).await?;
            println!(
                "round trip: raw TCP {:.1} us, call {:.1} us, ratio {:.2}",
                raw,
                ours,
                ours / raw
            );
        }
    }
    if matches!(&*what, "callers" | "all") {
        for callers in [8, 64, 256] {
            let rate = callers_rate(&rpc, &peer, callers, lasts).await?;
            println!("{callers} callers: {rate:.0} calls/s");
        }
    }
    if matches!(&*what, "casts" | "all") {
        let rate = flood(&transport, &rpc, &peer, lasts).await?;
        println!("one sender, 16 B to a service: {rate:.0} messages/s");
        let rate = casts(&transport, &rpc, &peer, lasts).await?;
        println!("one sender, 16 B rpc casts: {rate:.0} casts/s");
    }
    Ok(())
}

fn micros(elapsed: Duration, count: u32) -> f64 {
    elapsed.as_secs_f64() * 1e6 / f64::from(count)
}

fn per_second(count: u64, elapsed: Duration) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX)) / elapsed.as_secs_f64()
}

async fn raw_round_trip(echo: SocketAddr, lasts: Duration) -> Result<f64, Failure> {
    let mut stream = TcpStream::connect(echo).await?;
    stream.set_nodelay(true)?;
    let clock = SystemClock::new();
    let (mut count, begin) = (0_u32, clock.now());
    let mut buffer = [0; 16];
    while clock.now() - begin < lasts {
        for _ in 0..100 {
            stream.write_all(&buffer).await?;
            stream.read_exact(&mut buffer).await?;
        }
        count += 100;
    }
    Ok(micros(clock.now() - begin, count))
}

async fn round_trip(rpc: &Rpc, peer: &Peer, lasts: Duration) -> Result<f64, Failure> {
    let clock = SystemClock::new();
    let (mut count, begin) = (0_u32, clock.now());
    while clock.now() - begin < lasts {
        for _ in 0..100 {
            rpc.call(peer, ECHO, &7, Duration::from_secs(5)).await?;
        }
        count += 100;
    }
    Ok(micros(clock.now() - begin, count))
}

async fn callers_rate(
    rpc: &Rpc,
    peer: &Peer,
    callers: u64,
    lasts: Duration,
) -> Result<f64, Failure> {
    let clock = SystemClock::new();
    let begin = clock.now();
    let tasks: Vec<_> = (0..callers)
        .map(|caller| {
            let (rpc, peer) = (rpc.clone(), peer.clone());
            tokio::spawn(async move {
                let mut count = 0_u64;
                while !count.is_multiple_of(64) || clock.now() - begin < lasts {
                    let echoed = rpc.call(&peer, ECHO, &caller, Duration::from_secs(5)).await?;
                    assert_eq!(echoed, caller, "a reply for somebody else");
                    count += 1;
                }
                Ok::<_, Failure>(count)
            })
        })
        .collect();
    let mut total = 0;
    for task in tasks {
        total += task.await??;
    }
    Ok(per_second(total, clock.now() - begin))
}

/// Sends until the time is up, then waits until the other side has counted all of it.
async fn flood(
    transport: &Transport,
    rpc: &Rpc,
    peer: &Peer,
    lasts: Duration,
) -> Result<f64, Failure> {
    let clock = transport.clock();
    let before = rpc.call(peer, COUNT, &(), Duration::from_secs(30)).await?;
    let begin = clock.now();
    let mut sent = 0_u64;
    while clock.now() - begin < lasts {
        for _ in 0..1000 {
            let send = |payload: &mut purlin_net::PayloadBuf<'_>| payload.put(&[7; 16]);
            let key = PartitionKey::ZERO;
            match peer.send(ChannelId::STREAM, FLOOD, key, Urgency::Batch, send) {
                Ok(()) => {}
                Err(SendError::Full { .. }) => {
                    let deadline = Deadline::after(clock.now(), Duration::from_secs(30));
                    peer.send_wait(ChannelId::STREAM, FLOOD, key, deadline, send).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        sent += 1000;
    }
    finish(transport, rpc, peer, before + sent).await?;
    Ok(per_second(sent, clock.now() - begin))
}

async fn casts(
    transport: &Transport,
    rpc: &Rpc,
    peer: &Peer,
    lasts: Duration,
) -> Result<f64, Failure> {
    let clock = transport.clock();
    let before = rpc.call(peer, COUNT, &(), Duration::from_secs(30)).await?;
    let begin = clock.now();
    let mut sent = 0_u64;
    let options = CallOptions { within: Duration::from_secs(30), ..CallOptions::default() };
    while clock.now() - begin < lasts {
        for _ in 0..1000 {
            rpc.cast_wait(peer, NOTE, &[7; 16], options).await?;
        }
        sent += 1000;
    }
    finish(transport, rpc, peer, before + sent).await?;
    Ok(per_second(sent, clock.now() - begin))
}

async fn finish(
    transport: &Transport,
    rpc: &Rpc,
    peer: &Peer,
    expected: u64,
) -> Result<(), Failure> {
    let give_up = Deadline::after(transport.clock().now(), Duration::from_secs(30));
    while rpc.call(peer, COUNT, &(), Duration::from_secs(30)).await? < expected {
        if give_up.is_past(transport.clock().now()) {
            return Err("messages were lost".into());
        }
    }
    Ok(())
}
