//! Nodes in an environment of their own: no socket, no file, no thread, no time but the runtime's.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Write as _,
    io::{self, ErrorKind, IoSlice},
    net::{Shutdown, SocketAddr},
    sync::{Arc, Mutex},
    task::{Context, Poll, Waker},
    time::Duration,
};

use purlin::{
    DevAuthority, Environment, Node,
    core::{Clock, Instant, NodeId, Rng, WallTime},
    net::{Accept, DatagramSocket, Listening, Network, Stream, StreamSocket, network::BoxFuture},
    store::{FaultyDisk, disk::CrashStyle},
};
use tokio::sync::mpsc;

const PATIENCE: Duration = Duration::from_secs(30);

/// Wires without loss or delay, and a note of everything that travels on them.
#[derive(Debug, Clone)]
struct Wires {
    ports: Arc<Mutex<BTreeMap<SocketAddr, Port>>>,
    notes: Arc<Mutex<String>>,
    start: tokio::time::Instant,
}

#[derive(Debug)]
struct Port {
    streams: mpsc::UnboundedSender<(Stream, SocketAddr)>,
    datagrams: mpsc::UnboundedSender<(SocketAddr, Vec<u8>)>,
}

impl Wires {
    fn new() -> Self {
        let start = tokio::time::Instant::now();
        Self { ports: Arc::default(), notes: Arc::default(), start }
    }

    fn note(&self, from: SocketAddr, to: SocketAddr, what: &str, bytes: usize) {
        let at = self.start.elapsed().as_micros();
        writeln!(self.notes.lock().unwrap(), "{at} {from} {to} {what} {bytes}").unwrap();
    }
}

/// The wires as one machine sees them.
#[derive(Debug)]
struct Plug {
    wires: Wires,
    here: SocketAddr,
}

impl Network for Plug {
    fn listen(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Listening>> {
        let (streams, accepted) = mpsc::unbounded_channel();
        let (datagrams, received) = mpsc::unbounded_channel();
        self.wires.ports.lock().unwrap().insert(addr, Port { streams, datagrams });
        let post = Post { wires: self.wires.clone(), here: addr, received: Mutex::new(received) };
        let (streams, datagrams) = (Box::new(Door(accepted)), Box::new(post));
        Box::pin(async move { Ok(Listening { addr, streams, datagrams }) })
    }

    fn connect(&self, there: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        let (to, from) = (Arc::<Mutex<Pipe>>::default(), Arc::<Mutex<Pipe>>::default());
        let end = |reads: &Arc<_>, writes: &Arc<_>, here, there| {
            let (reads, writes) = (Arc::clone(reads), Arc::clone(writes));
            Stream::Other(Box::new(End { reads, writes, wires: self.wires.clone(), here, there }))
        };
        let theirs = end(&to, &from, there, self.here);
        let ports = self.wires.ports.lock().unwrap();
        let heard = ports.get(&there).and_then(|p| p.streams.send((theirs, self.here)).ok());
        let ours = end(&from, &to, self.here, there);
        let stream = heard.map(|()| ours).ok_or_else(|| ErrorKind::ConnectionRefused.into());
        Box::pin(async move { stream })
    }
}

#[derive(Debug)]
struct Door(mpsc::UnboundedReceiver<(Stream, SocketAddr)>);

impl Accept for Door {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>> {
        Box::pin(async move { self.0.recv().await.ok_or_else(|| ErrorKind::NotConnected.into()) })
    }
}

#[derive(Debug)]
struct Post {
    wires: Wires,
    here: SocketAddr,
    received: Mutex<mpsc::UnboundedReceiver<(SocketAddr, Vec<u8>)>>,
}

impl DatagramSocket for Post {
    fn try_send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.wires.note(self.here, to, "datagram", datagram.len());
        if let Some(port) = self.wires.ports.lock().unwrap().get(&to) {
            drop(port.datagrams.send((self.here, datagram.to_vec())));
        }
        Ok(())
    }

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        self.received.lock().unwrap().poll_recv(cx).map(|received| {
            let (from, bytes) = received.ok_or(ErrorKind::NotConnected)?;
            into[..bytes.len()].copy_from_slice(&bytes);
            Ok((bytes.len(), from))
        })
    }
}

/// One direction of a stream.
#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    is_closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

const PIPE_BYTES: usize = 16 << 10;

impl Pipe {
    fn close(&mut self) {
        self.is_closed = true;
        self.wake();
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

#[derive(Debug)]
struct End {
    reads: Arc<Mutex<Pipe>>,
    writes: Arc<Mutex<Pipe>>,
    wires: Wires,
    here: SocketAddr,
    there: SocketAddr,
}

impl StreamSocket for End {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.reads.lock().unwrap();
        if !pipe.bytes.is_empty() || pipe.is_closed {
            return Poll::Ready(Ok(()));
        }
        pipe.reader = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut pipe = self.writes.lock().unwrap();
        if pipe.bytes.len() < PIPE_BYTES || pipe.is_closed {
            return Poll::Ready(Ok(()));
        }
        pipe.writer = Some(cx.waker().clone());
        Poll::Pending
    }

    fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        let mut pipe = self.reads.lock().unwrap();
        if pipe.bytes.is_empty() && !pipe.is_closed {
            return Err(ErrorKind::WouldBlock.into());
        }
        let count = into.len().min(pipe.bytes.len());
        for (to, byte) in into.iter_mut().zip(pipe.bytes.drain(..count)) {
            *to = byte;
        }
        pipe.wake();
        Ok(count)
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        let mut pipe = self.writes.lock().unwrap();
        if pipe.is_closed {
            return Err(ErrorKind::BrokenPipe.into());
        }
        let count = bytes.len().min(PIPE_BYTES - pipe.bytes.len());
        if count == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        pipe.bytes.extend(&bytes[..count]);
        pipe.wake();
        self.wires.note(self.here, self.there, "stream", count);
        Ok(count)
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| &**piece).collect();
        self.try_write(&pieces.concat())
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        if how != Shutdown::Read {
            self.writes.lock().unwrap().close();
        }
        if how != Shutdown::Write {
            self.reads.lock().unwrap().close();
        }
        Ok(())
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.writes.lock().unwrap().close();
        self.reads.lock().unwrap().close();
    }
}

/// The runtime's paused clock, and a wall that began long ago.
#[derive(Debug)]
struct Virtual(tokio::time::Instant);

impl Clock for Virtual {
    fn now(&self) -> Instant {
        Instant::from_start(self.0.elapsed())
    }

    fn wall(&self) -> WallTime {
        let elapsed = u64::try_from(self.0.elapsed().as_millis()).unwrap();
        WallTime::from_millis(1_000_000_000_000 + elapsed)
    }
}

/// Two machines that can be switched on and off together.
struct World {
    authority: DevAuthority,
    disks: [FaultyDisk; 2],
    rng: Rng,
}

const ADDRS: [&str; 2] = ["10.0.0.1:7400", "10.0.0.2:7400"];

impl World {
    fn new(seed: u64) -> Self {
        let disks = [FaultyDisk::new(seed), FaultyDisk::new(seed + 1)];
        disks.iter().for_each(|disk| disk.slow_down(Duration::from_millis(3)));
        Self { authority: DevAuthority::timeless().unwrap(), disks, rng: Rng::from_seed(seed) }
    }

    /// Starts both nodes, lets `life` happen and cuts the power; returns what it made and a note
    /// of everything that was sent.
    fn life<T>(&mut self, life: impl AsyncFnOnce(&[Node; 2]) -> T) -> (T, String) {
        // Without IO: whoever opens a real socket panics.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let (made, notes) = runtime.block_on(async {
            let wires = Wires::new();
            let nodes = [self.start(0, &wires).await, self.start(1, &wires).await];
            for node in &nodes {
                node.cluster().wait_for_members(2, PATIENCE).await.unwrap();
            }
            let made = life(&nodes).await;
            tokio::time::sleep(Duration::from_secs(20)).await;
            for name in threads() {
                assert!(!name.starts_with("tokio-") && !name.starts_with("purlin-log"), "{name}");
            }
            let notes = wires.notes.lock().unwrap().clone();
            (made, notes)
        });
        self.disks.iter().for_each(|disk| disk.crash(CrashStyle::Lost));
        drop(runtime);
        (made, notes)
    }

    async fn start(&mut self, at: usize, wires: &Wires) -> Node {
        let here = ADDRS[at].parse().unwrap();
        let clock = Arc::new(Virtual(wires.start));
        let network = Arc::new(Plug { wires: wires.clone(), here });
        let environment = Environment::new(clock, self.rng.fork(), network, self.disks[at].mount());
        Node::builder()
            .name(format!("n{}", at + 1))
            .dev(&self.authority)
            .bind(here)
            .join(ADDRS)
            .data_dir("/nowhere/data")
            .environment(environment)
            .start()
            .await
            .unwrap()
    }
}

/// The threads of this process by name: those of the runtime and of logs would be among them.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).ok();
    tasks.filter_map(name).map(|name| name.trim().to_owned()).collect()
}

async fn write_and_hear([n1, n2]: &[Node; 2]) -> NodeId {
    let mut subscriber = n2.pubsub().subscribe("news").unwrap();
    n1.crdt().put("key", "value", None).unwrap();
    n1.crdt().persisted().await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    n1.pubsub().publish("news", "hello").unwrap();
    let heard = tokio::time::timeout(PATIENCE, subscriber.recv()).await.unwrap();
    assert!(heard.is_some());
    n1.id().clone()
}

#[test]
fn a_cluster_lives_and_starts_again_without_touching_the_machine_it_runs_on() {
    let mut world = World::new(7);
    let (first, _) = world.life(write_and_hear);
    let (second, _) = world.life(async |[n1, n2]| {
        for node in [n1, n2] {
            let cell = node.crdt().get(b"key").expect("it was acknowledged");
            assert_eq!(&cell.register().unwrap().value[..], b"value");
        }
        n1.id().clone()
    });
    assert!(second.incarnation > first.incarnation);
    assert!(!std::path::Path::new("/nowhere").exists());
}

#[test]
fn the_same_seed_sends_the_same_bytes_at_the_same_times() {
    let run = |seed| World::new(seed).life(write_and_hear).1;
    let (one, other) = (run(3), run(3));
    let at = one.lines().zip(other.lines()).position(|(one, other)| one != other);
    if let Some(at) = at {
        let around = |notes: &str| -> Vec<String> {
            notes.lines().skip(at.saturating_sub(5)).take(10).map(str::to_owned).collect()
        };
        panic!("line {at}: {:#?}\n{:#?}", around(&one), around(&other));
    }
    assert_eq!(one.len(), other.len());
    assert!(one.lines().count() > 100);
    assert_ne!(one, run(4));
}
