//! The simulated network: what is under way, where, and what becomes of it.
//!
//! One state for the whole world, behind one lock that is never contended, because a world is one
//! thread. Sending puts an arrival on the receiver's queue; the receiver takes it off when its own
//! time has come to it. Nothing arrives before the next step of the world, so the order in which
//! hosts are stepped is never seen by them.
//!
//! Datagrams may be lost, doubled and overtaken. A stream is what TCP makes of such a network: in
//! order, complete, late. A piece that is lost or meets a cut is sent again after 200 ms, 400 ms
//! and so on, and everything behind it waits; after [`GIVE_UP_AFTER`] the stream is broken. Of TCP
//! are left out: handshakes of its own beyond one round trip, congestion windows, packet sizes.

mod sockets;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    task::Waker,
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use purlin_core::Rng;

use crate::{
    link::Links,
    trace::{HostId, Trace, Traffic},
};

pub(crate) use sockets::{HostNetwork, node_addr};

/// How long a stream tries to get something through before it is broken, as Linux does with
/// `tcp_user_timeout` or `tcp_retries2` set for a cluster; its defaults take 15 minutes.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(15);

/// The first wait before something is sent again; doubled each time.
const RETRY_AFTER: Duration = Duration::from_millis(200);
/// The same for opening a stream.
const REDIAL_AFTER: Duration = Duration::from_secs(1);
/// What a stream takes from its writer beyond what the other side has read.
const STREAM_BYTES_MAX: usize = 512 << 10;
/// How much room a reader makes before the writer hears of it.
const ROOM_BYTES: usize = 64 << 10;
/// What a socket keeps of datagrams nobody has read.
const DATAGRAMS_MAX: usize = 1 << 10;

/// One end of a stream: 0 dialled, 1 accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct EndId {
    stream: u64,
    side: usize,
}

impl EndId {
    fn other(self) -> Self {
        Self { side: 1 - self.side, ..self }
    }
}

/// Something on its way through a stream.
#[derive(Debug)]
enum Piece {
    Dial,
    Welcome,
    Bytes(Bytes),
    End,
}

#[derive(Debug)]
enum Arrival {
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        bytes: Bytes,
    },
    /// For this end, from the other.
    Piece(EndId, Piece),
    Reset(EndId),
    Refused(EndId),
    Room(EndId, usize),
}

/// Why a stream is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Broken {
    Refused,
    Reset,
    TimedOut,
}

/// One direction of a stream, at its sender.
#[derive(Debug, Default)]
struct Pipe {
    /// Taken from the writer and not yet read by the other side.
    outstanding: usize,
    /// Waits for a retry, in order.
    stalled: VecDeque<Piece>,
    /// When the next retry is due and how long the one after that waits.
    retry: Option<(Duration, Duration)>,
    /// Since when nothing has got through, or nothing was acknowledged.
    stuck_since: Option<Duration>,
    last_arrival: Duration,
    is_shut: bool,
}

#[derive(Debug)]
struct End {
    host: HostId,
    /// The life of the host it belongs to.
    life: u64,
    addr: SocketAddr,
    is_open: bool,
    /// Its owner has dropped it: whatever comes now is answered by a reset.
    is_closed: bool,
    received: VecDeque<Bytes>,
    at_end: bool,
    broken: Option<Broken>,
    /// Read and not yet told to the writer.
    room: usize,
    read: Option<Waker>,
    write: Option<Waker>,
    pipe: Pipe,
}

impl End {
    fn new(host: HostId, life: u64, addr: SocketAddr) -> Self {
        Self {
            host,
            life,
            addr,
            is_open: false,
            is_closed: false,
            received: VecDeque::new(),
            at_end: false,
            broken: None,
            room: 0,
            read: None,
            write: None,
            pipe: Pipe::default(),
        }
    }

    fn break_with(&mut self, why: Broken, wake: &mut Wake) {
        self.broken.get_or_insert(why);
        self.pipe.stalled.clear();
        self.pipe.retry = None;
        self.pipe.stuck_since = None;
        wake.extend(self.read.take());
        wake.extend(self.write.take());
    }
}

/// Wakers to be called once the lock is released.
pub(crate) type Wake = Vec<Waker>;

/// A port somebody listens on.
#[derive(Debug, Default)]
struct Port {
    life: u64,
    accepts: bool,
    dialled: VecDeque<EndId>,
    accept: Option<Waker>,
    datagrams: VecDeque<(Bytes, SocketAddr)>,
    recv: Option<Waker>,
}

/// A host as the network sees it: a kernel, with or without power and a process.
#[derive(Debug)]
struct Kernel {
    ip: IpAddr,
    has_power: bool,
    /// The process that may use sockets; 0 is none.
    life: u64,
    arrivals: BTreeMap<(Duration, u64), Arrival>,
    ports: BTreeMap<u16, Port>,
    next_port: u16,
}

/// The whole network.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) links: Links,
    pub(crate) trace: Trace,
    rng: Rng,
    kernels: Vec<Kernel>,
    by_ip: BTreeMap<IpAddr, HostId>,
    streams: BTreeMap<u64, [End; 2]>,
    retries: BTreeSet<(Duration, EndId)>,
    /// Ends whose reader made room that the writer could not be told of.
    owing: BTreeSet<EndId>,
    /// Ends whose writer got something through that was not acknowledged.
    unacknowledged: BTreeSet<EndId>,
    /// When acknowledgements are looked at next.
    look_again: Duration,
    next_stream: u64,
    next_arrival: u64,
}

pub(crate) type SharedNet = Arc<Mutex<Net>>;

/// The address of the host `id`: 10.0.0.1 is the first.
fn ip_of(id: HostId) -> IpAddr {
    let [_, high, middle, low] = (id.0 + 1).to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, high, middle, low))
}

impl Net {
    pub(crate) fn new(links: Links, trace: Trace, rng: Rng) -> Self {
        Self {
            links,
            trace,
            rng,
            kernels: Vec::new(),
            by_ip: BTreeMap::new(),
            streams: BTreeMap::new(),
            retries: BTreeSet::new(),
            owing: BTreeSet::new(),
            unacknowledged: BTreeSet::new(),
            look_again: Duration::ZERO,
            next_stream: 1,
            next_arrival: 0,
        }
    }

    /// A new host without power.
    pub(crate) fn add_host(&mut self, name: &str) -> HostId {
        let id = HostId(u32::try_from(self.kernels.len()).expect("fewer hosts than addresses"));
        let ip = ip_of(id);
        self.trace.host(name);
        self.by_ip.insert(ip, id);
        self.kernels.push(Kernel {
            ip,
            has_power: false,
            life: 0,
            arrivals: BTreeMap::new(),
            ports: BTreeMap::new(),
            next_port: 40_000,
        });
        id
    }

    pub(crate) fn ip(&self, host: HostId) -> IpAddr {
        self.kernels[host.index()].ip
    }

    /// A process starts on a host: power is on, and sockets are this life's.
    pub(crate) fn start(&mut self, host: HostId, life: u64) {
        let kernel = &mut self.kernels[host.index()];
        kernel.has_power = true;
        kernel.life = life;
    }

    /// The process on `host` ends without a word; its kernel closes its streams as kernels do.
    pub(crate) fn kill(&mut self, host: HostId, now: Duration) {
        let life = std::mem::take(&mut self.kernels[host.index()].life);
        self.kernels[host.index()].ports.clear();
        for end in self.ends_of(host, life) {
            self.close(end, now);
        }
    }

    /// The power of `host` goes: nobody is told, and what is under way to it is lost.
    pub(crate) fn power_off(&mut self, host: HostId) {
        let kernel = &mut self.kernels[host.index()];
        kernel.has_power = false;
        let life = std::mem::take(&mut kernel.life);
        kernel.ports.clear();
        kernel.arrivals.clear();
        for end in self.ends_of(host, life) {
            let this = self.end_mut(end).expect("it was just found");
            this.is_closed = true;
            this.pipe = Pipe::default();
            self.forget_if_over(end);
        }
    }

    fn ends_of(&self, host: HostId, life: u64) -> Vec<EndId> {
        let mut found = Vec::new();
        for (&stream, ends) in &self.streams {
            for (side, end) in ends.iter().enumerate() {
                if end.host == host && end.life == life && !end.is_closed {
                    found.push(EndId { stream, side });
                }
            }
        }
        found
    }

    fn end(&self, id: EndId) -> Option<&End> {
        self.streams.get(&id.stream).map(|ends| &ends[id.side])
    }

    fn end_mut(&mut self, id: EndId) -> Option<&mut End> {
        self.streams.get_mut(&id.stream).map(|ends| &mut ends[id.side])
    }

    /// From the host of `id` to the host of the other end.
    fn way(&self, id: EndId) -> Option<(HostId, HostId)> {
        let ends = self.streams.get(&id.stream)?;
        Some((ends[id.side].host, ends[1 - id.side].host))
    }

    fn note(&mut self, at: Duration, id: EndId, what: Traffic) {
        if let Some((from, to)) = self.way(id) {
            self.trace.traffic(at, from, to, what);
        }
    }

    fn arrive(&mut self, at: Duration, host: HostId, arrival: Arrival) {
        let number = self.next_arrival;
        self.next_arrival += 1;
        let kernel = &mut self.kernels[host.index()];
        if kernel.has_power {
            kernel.arrivals.insert((at, number), arrival);
        }
    }

    fn port(&mut self, host: HostId) -> u16 {
        let kernel = &mut self.kernels[host.index()];
        let port = kernel.next_port;
        kernel.next_port = if port == u16::MAX { 40_000 } else { port + 1 };
        port
    }

    // ---- datagrams ----

    fn send_datagram(
        &mut self,
        now: Duration,
        host: HostId,
        from: SocketAddr,
        to: SocketAddr,
        bytes: &[u8],
    ) {
        let Some(&receiver) = self.by_ip.get(&to.ip()) else { return };
        let size = bytes.len();
        let wrong = self.links.wrong(host, receiver);
        self.trace.traffic(now, host, receiver, Traffic::DatagramSent(size));
        if wrong.datagrams_cut || self.rng.chance(wrong.loss) {
            return self.trace.traffic(now, host, receiver, Traffic::DatagramLost(size));
        }
        let bytes = Bytes::copy_from_slice(bytes);
        if wrong.duplicate > 0.0 && self.rng.chance(wrong.duplicate) {
            self.trace.traffic(now, host, receiver, Traffic::DatagramDoubled(size));
            let at = now + self.links.delay(&wrong, &mut self.rng);
            self.arrive(at, receiver, Arrival::Datagram { from, to, bytes: bytes.clone() });
        }
        let at = now + self.links.delay(&wrong, &mut self.rng);
        self.arrive(at, receiver, Arrival::Datagram { from, to, bytes });
    }

    // ---- streams: sending ----

    fn dial(&mut self, now: Duration, host: HostId, life: u64, to: SocketAddr) -> Option<EndId> {
        let &receiver = self.by_ip.get(&to.ip())?;
        let stream = self.next_stream;
        self.next_stream += 1;
        let addr = SocketAddr::new(self.ip(host), self.port(host));
        // The other end belongs to nobody until somebody accepts it.
        self.streams.insert(stream, [End::new(host, life, addr), End::new(receiver, 0, to)]);
        let id = EndId { stream, side: 0 };
        self.note(now, id, Traffic::Dialled(stream));
        self.push(now, id, Piece::Dial);
        Some(id)
    }

    /// Sends a piece, or lets it wait behind those that did not get through.
    fn push(&mut self, now: Duration, id: EndId, piece: Piece) {
        let Some(end) = self.end_mut(id) else { return };
        end.pipe.stalled.push_back(piece);
        if end.pipe.stalled.len() == 1 {
            self.transmit(now, id);
        }
    }

    /// Tries to get everything through that waits.
    fn transmit(&mut self, now: Duration, id: EndId) {
        let Some((from, to)) = self.way(id) else { return };
        let wrong = self.links.wrong(from, to);
        let blocked = wrong.streams_cut || !self.kernels[to.index()].has_power;
        let lost = blocked || (wrong.loss > 0.0 && self.rng.chance(wrong.loss));
        if lost {
            return self.stall(now, id);
        }
        let delay = self.links.delay(&wrong, &mut self.rng);
        let end = self.end_mut(id).expect("it has a way");
        end.pipe.retry = None;
        end.pipe.stuck_since = None;
        let at = end.pipe.last_arrival.max(now + delay);
        end.pipe.last_arrival = at;
        for piece in std::mem::take(&mut end.pipe.stalled) {
            self.arrive(at, to, Arrival::Piece(id.other(), piece));
        }
        self.forget_if_over(id);
    }

    fn stall(&mut self, now: Duration, id: EndId) {
        self.note(now, id, Traffic::Stalled(id.stream));
        let end = self.end_mut(id).expect("it has a way");
        let first = match end.pipe.stalled.front() {
            Some(Piece::Dial | Piece::Welcome) => REDIAL_AFTER,
            _ => RETRY_AFTER,
        };
        end.pipe.stuck_since.get_or_insert(now);
        let wait = end.pipe.retry.map_or(first, |(_, wait)| wait);
        let due = now + wait;
        end.pipe.retry = Some((due, wait * 2));
        self.retries.insert((due, id));
    }

    /// What nobody's code has to run for: sends again, gives up, tells writers of room.
    pub(crate) fn tend(&mut self, now: Duration, wake: &mut Wake) {
        while let Some(&(due, id)) = self.retries.first()
            && due <= now
        {
            self.retries.pop_first();
            let Some(end) = self.end(id) else { continue };
            if end.pipe.retry.is_none_or(|(at, _)| at != due) {
                continue;
            }
            if end.pipe.stuck_since.is_some_and(|since| now - since >= GIVE_UP_AFTER) {
                self.give_up(now, id, wake);
            } else {
                self.transmit(now, id);
            }
        }
        // Acknowledgements are repeated all the time; it is enough to look now and then.
        if now < self.look_again {
            return;
        }
        self.look_again = now + RETRY_AFTER;
        for id in std::mem::take(&mut self.unacknowledged) {
            let Some((from, to)) = self.way(id) else { continue };
            let end = self.end_mut(id).expect("it has a way");
            let Some(since) = end.pipe.stuck_since else { continue };
            if !end.pipe.stalled.is_empty() {
                continue;
            }
            if !self.links.wrong(to, from).streams_cut {
                self.end_mut(id).expect("it has a way").pipe.stuck_since = None;
            } else if now - since >= GIVE_UP_AFTER {
                self.give_up(now, id, wake);
            } else {
                self.unacknowledged.insert(id);
            }
        }
        for id in std::mem::take(&mut self.owing) {
            self.tell_room(now, id);
        }
    }

    fn give_up(&mut self, now: Duration, id: EndId, wake: &mut Wake) {
        self.note(now, id, Traffic::TimedOut(id.stream));
        if let Some(end) = self.end_mut(id) {
            end.break_with(Broken::TimedOut, wake);
        }
        self.forget_if_over(id);
    }

    /// Tells the other side, if it hears it, that this stream is no more.
    fn reset(&mut self, now: Duration, id: EndId) {
        let Some((from, to)) = self.way(id) else { return };
        let wrong = self.links.wrong(from, to);
        // One packet that nobody sends again.
        if wrong.streams_cut || self.rng.chance(wrong.loss) {
            return;
        }
        let at = now + self.links.delay(&wrong, &mut self.rng);
        self.arrive(at, to, Arrival::Reset(id.other()));
    }

    /// The owner of an end drops it.
    fn close(&mut self, id: EndId, now: Duration) {
        let Some(end) = self.end_mut(id) else { return };
        if end.is_closed {
            return;
        }
        end.is_closed = true;
        let is_orderly = end.received.is_empty() && end.is_open;
        let is_told = end.broken.is_some() || (end.pipe.is_shut && is_orderly);
        (end.read, end.write) = (None, None);
        if !is_told && is_orderly {
            end.pipe.is_shut = true;
            self.push(now, id, Piece::End);
        } else if !is_told {
            end.received.clear();
            end.pipe.stalled.clear();
            end.pipe.retry = None;
            self.reset(now, id);
        }
        self.forget_if_over(id);
    }

    /// Removes a stream that both sides are done with.
    fn forget_if_over(&mut self, id: EndId) {
        let is_over = |end: &End| end.is_closed && end.pipe.stalled.is_empty();
        // The accepting end of a stream nobody has accepted yet belongs to nobody.
        let is_nobodys = |end: &End| end.life == 0;
        let over = self.streams.get(&id.stream).is_some_and(|ends| {
            ends.iter().all(|end| is_over(end) || (is_nobodys(end) && is_over(&ends[0])))
        });
        if over && let Some(ends) = self.streams.remove(&id.stream) {
            // Whoever still dials here hears at once that nobody does any more.
            let host = ends[1].host;
            for port in self.kernels[host.index()].ports.values_mut() {
                port.dialled.retain(|end| end.stream != id.stream);
            }
        }
    }

    fn tell_room(&mut self, now: Duration, id: EndId) {
        let Some((from, to)) = self.way(id) else { return };
        let wrong = self.links.wrong(from, to);
        if wrong.streams_cut {
            self.owing.insert(id);
            return;
        }
        let at = now + self.links.delay(&wrong, &mut self.rng);
        let room = std::mem::take(&mut self.end_mut(id).expect("it has a way").room);
        self.arrive(at, to, Arrival::Room(id.other(), room));
    }

    // ---- arriving ----

    /// Hands `host` what has arrived by `now`. Returns when the next thing arrives.
    pub(crate) fn deliver(
        &mut self,
        host: HostId,
        now: Duration,
        wake: &mut Wake,
    ) -> Option<Duration> {
        loop {
            let arrivals = &mut self.kernels[host.index()].arrivals;
            let (&(at, _), _) = arrivals.first_key_value()?;
            if at > now {
                return Some(at);
            }
            let (_, arrival) = arrivals.pop_first().expect("there is a first");
            match arrival {
                Arrival::Datagram { from, to, bytes } => {
                    self.on_datagram(now, host, from, to, bytes, wake)
                }
                Arrival::Piece(id, piece) => self.on_piece(now, id, piece, wake),
                Arrival::Reset(id) => self.on_broken(now, id, Broken::Reset, wake),
                Arrival::Refused(id) => self.on_broken(now, id, Broken::Refused, wake),
                Arrival::Room(id, bytes) => {
                    if let Some(end) = self.end_mut(id) {
                        end.pipe.outstanding = end.pipe.outstanding.saturating_sub(bytes);
                        wake.extend(end.write.take());
                    }
                }
            }
        }
    }

    fn on_datagram(
        &mut self,
        now: Duration,
        host: HostId,
        from: SocketAddr,
        to: SocketAddr,
        bytes: Bytes,
        wake: &mut Wake,
    ) {
        let sender = self.by_ip[&from.ip()];
        let size = bytes.len();
        let port = self.kernels[host.index()].ports.get_mut(&to.port());
        let what = match port {
            Some(port) if port.datagrams.len() < DATAGRAMS_MAX => {
                port.datagrams.push_back((bytes, from));
                wake.extend(port.recv.take());
                Traffic::DatagramArrived(size)
            }
            _ => Traffic::DatagramDropped(size),
        };
        self.trace.traffic(now, sender, host, what);
    }

    fn on_broken(&mut self, now: Duration, id: EndId, why: Broken, wake: &mut Wake) {
        let what = match why {
            Broken::Refused => Traffic::Refused(id.stream),
            Broken::Reset => Traffic::Reset(id.stream),
            Broken::TimedOut => Traffic::TimedOut(id.stream),
        };
        self.note(now, id.other(), what);
        if let Some(end) = self.end_mut(id) {
            end.break_with(why, wake);
        }
        self.forget_if_over(id);
    }

    fn on_piece(&mut self, now: Duration, id: EndId, piece: Piece, wake: &mut Wake) {
        let Some((here, there)) = self.way(id) else { return };
        // The acknowledgement goes the other way, which may be cut.
        if self.links.wrong(here, there).streams_cut {
            let sender = self.end_mut(id.other()).expect("a stream has two ends");
            sender.pipe.stuck_since.get_or_insert(now);
            self.unacknowledged.insert(id.other());
        }
        match piece {
            Piece::Dial => return self.on_dial(now, id, wake),
            Piece::Welcome => self.note(now, id.other(), Traffic::Opened(id.stream)),
            Piece::Bytes(_) => self.note(now, id.other(), Traffic::PieceArrived(id.stream)),
            Piece::End => self.note(now, id.other(), Traffic::Ended(id.stream)),
        }
        let end = self.end_mut(id).expect("it has a way");
        if end.is_closed {
            // Whose end this was is gone; an end needs no answer.
            if !matches!(piece, Piece::End) {
                self.reset(now, id);
            }
            return;
        }
        match piece {
            Piece::Dial => unreachable!("handled above"),
            Piece::Welcome => {
                end.is_open = true;
                wake.extend(end.write.take());
            }
            Piece::Bytes(bytes) => end.received.push_back(bytes),
            Piece::End => end.at_end = true,
        }
        wake.extend(end.read.take());
    }

    fn on_dial(&mut self, now: Duration, id: EndId, wake: &mut Wake) {
        let end = self.end(id).expect("it has a way");
        let (host, port) = (end.host, end.addr.port());
        let (here, there) = self.way(id).expect("it has a way");
        match self.kernels[host.index()].ports.get_mut(&port) {
            Some(port) if port.accepts => {
                port.dialled.push_back(id);
                wake.extend(port.accept.take());
                let life = port.life;
                let end = self.end_mut(id).expect("it has a way");
                end.is_open = true;
                end.life = life;
                self.note(now, id.other(), Traffic::Accepted(id.stream));
                self.push(now, id, Piece::Welcome);
            }
            _ => {
                self.end_mut(id).expect("it has a way").is_closed = true;
                let wrong = self.links.wrong(here, there);
                if !wrong.streams_cut && !self.rng.chance(wrong.loss) {
                    let at = now + self.links.delay(&wrong, &mut self.rng);
                    self.arrive(at, there, Arrival::Refused(id.other()));
                }
            }
        }
    }
}
