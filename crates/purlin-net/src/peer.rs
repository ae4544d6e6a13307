//! Peers: the nodes we keep connections to, and the handle to send to them.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use purlin_core::{Deadline, Instant, NodeId, NodeName, watch};
use tokio::sync::oneshot;

use crate::{
    backoff::Backoff,
    channel::{ChannelId, PartitionKey},
    connection::Connection,
    dial,
    error::{Bound, Cause, SendError},
    event::PeerEvent,
    frame::{Farewell, ServiceId},
    handshake::Window,
    link::{ConnectionNumber, Link, Order},
    outbox::{Bounds, Urgency},
    payload::PayloadBuf,
    reader::Reader,
    service::ReturnPath,
    shaking::Shaking,
    transport::{Inner, Services},
};

/// A node that is a peer of this transport. Cheap to clone; it does not keep connections open.
#[derive(Clone)]
pub struct Peer(pub(crate) Arc<PeerInner>);

/// Does not keep the peer's state alive.
#[derive(Debug, Clone)]
pub(crate) struct WeakPeer(Weak<PeerInner>);

impl WeakPeer {
    pub(crate) fn upgrade(&self) -> Option<Peer> {
        self.0.upgrade().map(Peer)
    }
}

pub(crate) struct PeerInner {
    pub(crate) node: NodeId,
    address: Mutex<SocketAddr>,
    transport: Weak<Inner>,
    /// Per channel, per parallel connection.
    links: Vec<Box<[LinkSlot]>>,
    reach: Mutex<Reach>,
    /// Added by the user, not only by its own dial.
    is_added: watch::Sender<bool>,
    /// Is not dialled again once its connections have ended.
    is_released: AtomicBool,
    removed: watch::Sender<bool>,
    round_trip_nanos: AtomicU64,
}

impl fmt::Debug for PeerInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "peer {}", self.node)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    Unknown,
    Up,
    Down,
}

/// One of a channel's parallel connections: the tie-break's state and the connection of the day.
#[derive(Debug)]
pub(crate) struct LinkSlot {
    pub(crate) channel: ChannelId,
    pub(crate) index: u8,
    current: ArcSwapOption<Connection>,
    state: Mutex<LinkState>,
    pub(crate) established: watch::Sender<bool>,
}

#[derive(Debug)]
struct LinkState {
    link: Link,
    /// Handshakes in progress that wait for the tie-break.
    verdicts: Vec<(ConnectionNumber, oneshot::Sender<Verdict>)>,
    is_dialling: bool,
    /// Until when a failed lazy dial is not repeated, and why it failed.
    retry_at: Option<(Instant, Cause)>,
    backoff: Backoff,
}

/// The tie-break's word to a handshake in progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Confirm,
    Drop,
}

/// A moment of one connection's life, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionStats {
    /// Which channel.
    pub channel: ChannelId,
    /// Messages and payload bytes sent on it.
    pub sent: (u64, u64),
    /// Messages and payload bytes received on it.
    pub received: (u64, u64),
    /// Bytes waiting to be written.
    pub backlog_bytes: u64,
    /// Bytes that may still be sent before the peer must consume.
    pub credit_bytes: u64,
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Peer {
    /// Who it is.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.0.node
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &NodeName {
        &self.0.node.name
    }

    /// Where it is dialled.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        *self.0.address.lock()
    }

    /// Whether its control channel is up.
    #[must_use]
    pub fn is_up(&self) -> bool {
        *self.0.reach.lock() == Reach::Up
    }

    /// The smoothed round trip of keepalives; `None` before the first.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        let nanos = self.0.round_trip_nanos.load(Ordering::Relaxed);
        (nanos > 0).then(|| Duration::from_nanos(nanos))
    }

    /// Its open connections.
    #[must_use]
    pub fn stats(&self) -> Vec<ConnectionStats> {
        self.connections()
            .into_iter()
            .filter(|connection| connection.is_open())
            .map(|connection| {
                let sent = connection.sent();
                let (backlog_bytes, credit_bytes) = connection.backlog_and_credit();
                ConnectionStats {
                    channel: connection.channel,
                    sent: (sent.frames, sent.bytes),
                    received: (
                        connection.received_frames.load(Ordering::Relaxed),
                        connection.received_bytes.load(Ordering::Relaxed),
                    ),
                    backlog_bytes,
                    credit_bytes,
                }
            })
            .collect()
    }

    /// Sends one message: `write` encodes it straight into the connection's buffer.
    ///
    /// Opens the channel's connection if there is none; the message waits in its backlog. With
    /// [`Urgency::Now`] an idle connection is written to from this task.
    ///
    /// # Units and limits
    /// The message may have [`ChannelSpec::payload_bytes_max`](crate::ChannelSpec) bytes. `write`
    /// runs under the connection's lock: it encodes and does nothing else.
    ///
    /// # Errors
    /// [`SendError`]; in every case nothing left this node. [`SendError::Full`] is the moment to
    /// slow down.
    ///
    /// # Guarantees
    /// At most once. Messages of equal channel and `key` arrive in order while the connection
    /// lasts. When it ends, what was not written is lost and counted
    /// ([`TransportStats::bytes_lost`](crate::TransportStats)), and the service hears
    /// [`Service::on_close`](crate::Service::on_close).
    #[inline]
    pub fn send(
        &self,
        channel: ChannelId,
        service: ServiceId,
        key: PartitionKey,
        urgency: Urgency,
        write: impl FnOnce(&mut PayloadBuf<'_>),
    ) -> Result<(), SendError> {
        let slot = self.slot(channel, key)?;
        if let Some(connection) = &*slot.current.load() {
            return connection.send(service, urgency, write);
        }
        self.open(slot)?.send(service, urgency, write)
    }

    /// Like [`Peer::send`], but waits for room until `deadline` when a bound is full.
    ///
    /// # Errors
    /// [`SendError::Deadline`] when there was no room in time; otherwise as [`Peer::send`].
    ///
    /// # Cancel safety
    /// Dropping the future before it is ready sends nothing.
    pub async fn send_wait(
        &self,
        channel: ChannelId,
        service: ServiceId,
        key: PartitionKey,
        deadline: Deadline,
        mut write: impl FnMut(&mut PayloadBuf<'_>),
    ) -> Result<(), SendError> {
        loop {
            match self.send(channel, service, key, Urgency::Batch, &mut write) {
                Err(SendError::Full { bound, .. }) => {
                    self.wait_for_room(channel, key, bound, deadline).await?;
                }
                done => return done,
            }
        }
    }

    /// Waits until `bound` has room on the connection that `key` takes.
    ///
    /// # Errors
    /// [`SendError::Deadline`], or that there is no connection.
    pub async fn wait_for_room(
        &self,
        channel: ChannelId,
        key: PartitionKey,
        bound: Bound,
        deadline: Deadline,
    ) -> Result<(), SendError> {
        let connection = self.connection(channel, key)?;
        connection.wait_for_room(bound, deadline).await
    }

    /// The path that messages with `key` take now; opens it if need be. For a service that must
    /// know which connection its message went out on.
    ///
    /// # Errors
    /// [`SendError`] when there is none and none can be opened now.
    pub fn path(&self, channel: ChannelId, key: PartitionKey) -> Result<ReturnPath, SendError> {
        self.connection(channel, key).map(ReturnPath)
    }

    fn connection(
        &self,
        channel: ChannelId,
        key: PartitionKey,
    ) -> Result<Arc<Connection>, SendError> {
        let slot = self.slot(channel, key)?;
        match slot.current.load_full() {
            Some(connection) => Ok(connection),
            None => self.open(slot),
        }
    }

    fn slot(&self, channel: ChannelId, key: PartitionKey) -> Result<&LinkSlot, SendError> {
        let slots = self.0.links.get(channel.index()).ok_or(SendError::UnknownChannel(channel))?;
        if let [only] = &**slots {
            return Ok(only);
        }
        let count = slots.len() as u64;
        let at = usize::try_from(key.0 % count).expect("below the number of links");
        Ok(&slots[at])
    }

    // ---- below: the transport's side ----

    pub(crate) fn new(
        transport: &Arc<Inner>,
        node: NodeId,
        address: SocketAddr,
        is_added: bool,
    ) -> Self {
        let preferred = transport.node().name < node.name;
        let links = transport
            .config()
            .channels
            .iter()
            .zip(0..)
            .map(|(spec, channel)| {
                (0..spec.parallelism)
                    .map(|index| LinkSlot {
                        channel: ChannelId(channel),
                        index,
                        current: ArcSwapOption::empty(),
                        state: Mutex::new(LinkState {
                            link: Link::new(preferred),
                            verdicts: Vec::new(),
                            is_dialling: false,
                            retry_at: None,
                            backoff: Backoff::new(transport.config().reconnect),
                        }),
                        established: watch::Sender::new(false),
                    })
                    .collect()
            })
            .collect();
        Self(Arc::new(PeerInner {
            node,
            address: Mutex::new(address),
            transport: Arc::downgrade(transport),
            links,
            reach: Mutex::new(Reach::Unknown),
            is_added: watch::Sender::new(is_added),
            is_released: AtomicBool::new(false),
            removed: watch::Sender::new(false),
            round_trip_nanos: AtomicU64::new(0),
        }))
    }

    /// The user wants it, under this address.
    pub(crate) fn add(&self, address: SocketAddr) {
        *self.0.address.lock() = address;
        self.0.is_added.send_replace(true);
    }

    pub(crate) fn is_added(&self) -> bool {
        *self.0.is_added.borrow()
    }

    /// A peer that only dialled us is not dialled back: its own handshake is under way, and if we
    /// just removed it, dialling would bring back what neither side wants. Ready when its
    /// handshake succeeded, it was added after all, or nothing came of it in time.
    pub(crate) async fn worth_dialling(&self) {
        let Some(slot) = self.link(ChannelId::CONTROL, 0) else { return };
        let Some(within) = self.handshake_within() else { return };
        let mut established = slot.established.subscribe();
        let mut added = self.0.is_added.subscribe();
        tokio::select! {
            biased;
            _up = established.wait_for(|up| *up) => {}
            _added = added.wait_for(|added| *added) => {}
            () = tokio::time::sleep(within) => {}
        }
    }

    fn handshake_within(&self) -> Option<Duration> {
        Some(2 * self.transport()?.config().reconnect.connect_within)
    }

    pub(crate) fn downgrade(&self) -> WeakPeer {
        WeakPeer(Arc::downgrade(&self.0))
    }

    pub(crate) fn transport(&self) -> Option<Arc<Inner>> {
        self.0.transport.upgrade()
    }

    pub(crate) fn services(&self) -> Arc<Services> {
        self.transport().map_or_else(crate::transport::no_services, |inner| inner.services())
    }

    pub(crate) fn link(&self, channel: ChannelId, index: u8) -> Option<&LinkSlot> {
        self.0.links.get(channel.index())?.get(usize::from(index))
    }

    pub(crate) fn release(&self) {
        self.0.is_released.store(true, Ordering::Relaxed);
        self.0.is_added.send_replace(false);
    }

    /// Whether it said goodbye ([`Transport::release_peer`](crate::Transport::release_peer)): what
    /// is under way still arrives, but nothing new should be begun with it.
    #[must_use]
    pub fn is_released(&self) -> bool {
        self.0.is_released.load(Ordering::Relaxed)
    }

    pub(crate) fn is_removed(&self) -> bool {
        *self.0.removed.borrow()
    }

    pub(crate) fn removal(&self) -> watch::Receiver<bool> {
        self.0.removed.subscribe()
    }

    pub(crate) fn connections(&self) -> Vec<Arc<Connection>> {
        let slots = self.0.links.iter().flat_map(|slots| slots.iter());
        slots.filter_map(|slot| slot.current.load_full()).collect()
    }

    pub(crate) fn on_round_trip(&self, sample: Duration) {
        let sample = u64::try_from(sample.as_nanos()).unwrap_or(u64::MAX).max(1);
        let before = self.0.round_trip_nanos.load(Ordering::Relaxed);
        // The gain of 1/8 is TCP's (RFC 6298).
        let smoothed = if before == 0 { sample } else { before - before / 8 + sample / 8 };
        self.0.round_trip_nanos.store(smoothed, Ordering::Relaxed);
    }

    /// The connection being opened on `slot`, opening it if nobody does.
    pub(crate) fn open(&self, slot: &LinkSlot) -> Result<Arc<Connection>, SendError> {
        let not_connected = |cause| SendError::NotConnected { peer: self.node().clone(), cause };
        let Some(transport) = self.transport() else {
            return Err(not_connected(Cause::Closed));
        };
        if self.is_removed() {
            return Err(SendError::NotAPeer(self.node().clone()));
        }
        let mut state = slot.state.lock();
        if let Some(connection) = slot.current.load_full()
            && !connection.is_closed()
        {
            return Ok(connection);
        }
        if let Some((until, cause)) = &state.retry_at
            && transport.now() < *until
        {
            return Err(not_connected(cause.clone()));
        }
        let connection = self.new_connection(&transport, slot);
        slot.current.store(Some(Arc::clone(&connection)));
        // Control is dialled by its own task, which sees that a connection is wanted.
        if !state.is_dialling && slot.channel != ChannelId::CONTROL {
            state.is_dialling = true;
            drop(state);
            let (peer, channel, index) = (self.clone(), slot.channel, slot.index);
            transport.spawn(async move { dial::open_lazily(peer, channel, index).await });
        }
        Ok(connection)
    }

    fn new_connection(&self, transport: &Arc<Inner>, slot: &LinkSlot) -> Arc<Connection> {
        let spec = &transport.config().channels[slot.channel.index()];
        let frame_bytes_max = transport.config().limits.frame_bytes_max;
        Connection::new(
            transport.next_connection_id(),
            self.node().clone(),
            slot.channel,
            slot.index,
            self.downgrade(),
            Arc::clone(transport.around()),
            Bounds {
                backlog_bytes_max: spec.backlog_bytes_max,
                payload_bytes_max: spec.payload_bytes_max,
                frame_bytes_max: frame_bytes_max as usize,
                credit_bytes: u64::from(spec.credit_bytes),
            },
            spec.priority.turn_bytes(),
        )
    }

    /// Feeds the tie-break and carries out what concerns other handshakes. Returns the order for
    /// `own`, and whether to wait for a verdict.
    pub(crate) fn decide(
        &self,
        slot: &LinkSlot,
        own: ConnectionNumber,
        step: impl FnOnce(&mut Link, &mut Vec<Order>),
    ) -> (Option<Order>, Option<oneshot::Receiver<Verdict>>) {
        let mut orders = Vec::new();
        let (mut mine, mut verdict, mut replaced) = (None, None, None);
        {
            let mut state = slot.state.lock();
            step(&mut state.link, &mut orders);
            for order in orders {
                match order {
                    Order::Welcome(number) | Order::Hold(number) => {
                        debug_assert_eq!(number, own, "only the dial at hand is welcomed or held");
                        let (tell, told) = oneshot::channel();
                        state.verdicts.retain(|(other, _)| *other != number);
                        state.verdicts.push((number, tell));
                        (mine, verdict) = (Some(order), Some(told));
                    }
                    Order::RefuseDuplicate(number) | Order::Use(number) => {
                        debug_assert_eq!(number, own, "only the dial at hand is answered");
                        state.verdicts.retain(|(other, _)| *other != number);
                        mine = Some(order);
                    }
                    Order::Confirm(number) | Order::Drop(number) if number == own => {
                        mine = Some(order);
                    }
                    Order::Confirm(number) => state.tell(number, Verdict::Confirm),
                    Order::Drop(number) => state.tell(number, Verdict::Drop),
                    Order::Replace(number) => replaced = Some(number),
                }
            }
        }
        if let Some(number) = replaced
            && let Some(old) = slot.current.load_full()
            && old.number() == Some(number)
        {
            old.close(Cause::Replaced, Some(Farewell::Replaced));
        }
        (mine, verdict)
    }

    /// The handshake is over and this is the connection: puts it to work.
    pub(crate) fn establish(
        &self,
        slot: &LinkSlot,
        number: ConnectionNumber,
        shaking: Shaking,
        window: Window,
    ) {
        let Some(transport) = self.transport() else { return };
        let connection = {
            let mut state = slot.state.lock();
            state.retry_at = None;
            state.backoff.reset();
            if self.is_removed() || state.link.used() != Some(number) {
                return;
            }
            let opening = slot
                .current
                .load_full()
                .filter(|connection| connection.number().is_none() && !connection.is_closed());
            let connection = opening.unwrap_or_else(|| self.new_connection(&transport, slot));
            let Shaking { stream, session, plain, .. } = shaking;
            let (half, socket) = stream.into_split();
            connection.attach(session, socket, number, window);
            slot.current.store(Some(Arc::clone(&connection)));
            let spec = &transport.config().channels[slot.channel.index()];
            let reader = Reader {
                connection: Arc::clone(&connection),
                peer: self.clone(),
                half,
                plain,
                frame_bytes_max: transport.config().limits.frame_bytes_max,
                payload_bytes_max: spec.payload_bytes_max,
            };
            // Both end with the connection, so they need no other end.
            tokio::spawn(Arc::clone(&connection).flush_loop());
            tokio::spawn(reader.run());
            connection
        };
        if slot.channel == ChannelId::CONTROL && slot.index == 0 {
            self.now_up(&transport);
        }
        transport.tell(PeerEvent::ChannelUp { peer: self.node().clone(), channel: slot.channel });
        slot.established.send_replace(true);
        if connection.is_closed() {
            // It ended while it was put to work, and its end was noted before its beginning.
            slot.established.send_replace(false);
        }
        tracing::debug!(peer = %self.node(), ?connection, "connection established");
    }

    fn now_up(&self, transport: &Inner) {
        let before = std::mem::replace(&mut *self.0.reach.lock(), Reach::Up);
        if before != Reach::Up {
            // Whatever kept the other channels from opening is over.
            for slot in self.0.links.iter().flat_map(|slots| slots.iter()) {
                slot.state.lock().retry_at = None;
            }
            tracing::info!(peer = %self.node(), "peer up");
            transport.tell(PeerEvent::Up { peer: self.clone() });
        }
    }

    /// Our dial of its control channel failed.
    pub(crate) fn on_control_failed(&self, cause: &Cause) {
        // A peer that just dialled us on another channel is there, whatever its advertised
        // address says; its own control connection may be on the way.
        let is_new = *self.0.reach.lock() == Reach::Unknown;
        if is_new && self.connections().iter().any(|connection| connection.is_open()) {
            return;
        }
        self.now_down(cause);
    }

    /// The peer cannot be reached: told once, and everything else to it ends.
    pub(crate) fn now_down(&self, cause: &Cause) {
        let before = std::mem::replace(&mut *self.0.reach.lock(), Reach::Down);
        if before == Reach::Down {
            return;
        }
        tracing::info!(peer = %self.node(), %cause, "peer down");
        for connection in self.connections() {
            connection.close(cause.clone(), None);
        }
        if let Some(transport) = self.transport() {
            transport.tell(PeerEvent::Down { peer: self.node().clone(), cause: cause.clone() });
            if !self.is_added() {
                transport.forget(self);
            }
        }
    }

    /// Ends all connections for good; the peer hears a goodbye, and whoever listens that it is
    /// down, unless that is known.
    pub(crate) fn remove(&self, cause: &Cause) {
        self.0.removed.send_replace(true);
        // First, so that the ends of the connections below have nothing more to tell.
        let before = std::mem::replace(&mut *self.0.reach.lock(), Reach::Down);
        for connection in self.connections() {
            connection.close(cause.clone(), Some(Farewell::Closing));
        }
        if before != Reach::Down
            && let Some(transport) = self.transport()
        {
            transport.tell(PeerEvent::Down { peer: self.node().clone(), cause: cause.clone() });
        }
    }

    pub(crate) fn on_connection_closed(&self, connection: &Arc<Connection>, cause: &Cause) {
        let Some(slot) = self.link(connection.channel, connection.index) else { return };
        let was_open = connection.number().is_some();
        let was_current = {
            let mut state = slot.state.lock();
            if let Some(number) = connection.number() {
                let mut orders = Vec::new();
                state.link.on_gone(number, &mut orders);
                for order in orders {
                    if let Order::Confirm(number) = order {
                        state.tell(number, Verdict::Confirm);
                    }
                }
            }
            let is_current =
                slot.current.load().as_ref().is_some_and(|now| Arc::ptr_eq(now, connection));
            if is_current {
                slot.current.store(None);
            }
            // A message sent just now may have put a connection that is only wanted in its place;
            // that one carries nothing yet, so the link is lost all the same.
            is_current || slot.current.load().as_ref().is_none_or(|next| next.number().is_none())
        };
        let path = ReturnPath(Arc::clone(connection));
        for service in self.services().iter().flatten() {
            service.on_close(&path, was_open, cause);
        }
        let Some(transport) = self.transport() else { return };
        transport.retire(connection);
        if was_open {
            transport.tell(PeerEvent::ChannelDown {
                peer: self.node().clone(),
                channel: slot.channel,
                cause: cause.clone(),
            });
        }
        if was_current && was_open {
            // First the verdict, then the wake-up of who would dial again.
            if slot.channel == ChannelId::CONTROL && slot.index == 0 {
                if *cause == Cause::Closed {
                    slot.put_off(&transport, cause);
                }
                self.on_control_lost(cause);
            }
            slot.established.send_replace(false);
        }
    }

    /// Silence and goodbyes speak for themselves; anything else is settled by the next dial.
    fn on_control_lost(&self, cause: &Cause) {
        match cause {
            Cause::Silent | Cause::Closed | Cause::Superseded => self.now_down(cause),
            Cause::Reset
            | Cause::Refused
            | Cause::Unreachable
            | Cause::Replaced
            | Cause::Handshake(_)
            | Cause::Tls(_)
            | Cause::Malformed(_) => {}
        }
    }
}

impl LinkState {
    fn tell(&mut self, number: ConnectionNumber, verdict: Verdict) {
        if let Some(at) = self.verdicts.iter().position(|(other, _)| *other == number) {
            // The handshake may have given up meanwhile; then it said so to the link itself.
            let _gave_up = self.verdicts.swap_remove(at).1.send(verdict);
        }
    }
}

impl LinkSlot {
    pub(crate) fn is_established(&self) -> bool {
        *self.established.borrow()
    }

    pub(crate) fn last(&self) -> ConnectionNumber {
        self.state.lock().link.last()
    }

    pub(crate) fn set_dialling(&self, is_dialling: bool) {
        self.state.lock().is_dialling = is_dialling;
    }

    /// A handshake ended without success; whoever waited for it goes on.
    pub(crate) fn on_gone(&self, number: ConnectionNumber) {
        let mut state = self.state.lock();
        let mut orders = Vec::new();
        state.link.on_gone(number, &mut orders);
        state.verdicts.retain(|(other, _)| *other != number);
        for order in orders {
            if let Order::Confirm(number) = order {
                state.tell(number, Verdict::Confirm);
            }
        }
    }

    /// The next dial waits for the backoff.
    fn put_off(&self, transport: &Inner, cause: &Cause) {
        let mut state = self.state.lock();
        let delay = transport.with_rng(|rng| state.backoff.next_delay(rng));
        state.retry_at = Some((transport.now() + delay, cause.clone()));
    }

    /// How long the next dial waits yet.
    pub(crate) fn put_off_for(&self, now: Instant) -> Duration {
        let state = self.state.lock();
        state.retry_at.as_ref().map_or(Duration::ZERO, |(until, _)| *until - now)
    }

    /// A dial failed: what waits for it fails too, and the next one is put off.
    pub(crate) fn on_dial_failed(&self, transport: &Inner, cause: &Cause) {
        self.put_off(transport, cause);
        let opening = self.current.load_full().filter(|connection| connection.number().is_none());
        if let Some(opening) = opening {
            opening.close(cause.clone(), None);
        }
    }
}
