//! One connection: an outbox, and once the handshake is over a socket and a TLS session.
//!
//! The outbox exists before the socket, so that the first message to a peer may open the
//! connection and wait in it. Sending encodes into the outbox under its lock; [`Outbox`] then says
//! who writes. At most one task writes at a time and the reader only needs the session while it
//! decrypts, so the two locks are held for microseconds and never across an await.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use purlin_core::{Clock, Deadline, Instant, NodeId};
use tokio::sync::Notify;

use crate::{
    channel::ChannelId,
    error::{Bound, Cause, SendError},
    fault::{Direction, Faults, Lane},
    frame::{Farewell, Kind, ServiceId},
    handshake::Window,
    link::ConnectionNumber,
    network::WriteHalf,
    outbox::{Bounds, Outbox, Refused, Sent, Step, Urgency},
    payload::PayloadBuf,
    peer::WeakPeer,
    stats::Counters,
    tls::{Session, Written},
};

/// What a connection needs from its surroundings.
#[derive(Debug)]
pub(crate) struct Surroundings {
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) faults: Faults,
    pub(crate) counters: Counters,
}

#[derive(Debug)]
pub(crate) struct Wire {
    session: Mutex<Session>,
    socket: WriteHalf,
    number: ConnectionNumber,
}

pub(crate) struct Connection {
    me: Weak<Self>,
    /// Unique on this node.
    pub(crate) id: u64,
    pub(crate) node: NodeId,
    pub(crate) channel: ChannelId,
    pub(crate) index: u8,
    pub(crate) peer: WeakPeer,
    around: Arc<Surroundings>,
    outbox: Mutex<Outbox>,
    wire: OnceLock<Wire>,
    turn_bytes: usize,
    /// Wakes the flusher.
    flush: Notify,
    /// Wakes those who wait for room.
    room: Notify,
    /// How many wait for room: spares the writer a call when nobody does.
    waiting: AtomicU64,
    /// Payload bytes we allow the peer to have outstanding.
    credit_bytes: u64,
    /// Consumed here and not yet given back to the peer.
    consumed_bytes: AtomicU64,
    /// Received and not given back: what the peer's credit is measured against.
    outstanding_bytes: AtomicU64,
    pub(crate) received_frames: AtomicU64,
    pub(crate) received_bytes: AtomicU64,
    /// Nanoseconds on the clock; when anything was last received.
    heard_at: AtomicU64,
    pinged_at: AtomicU64,
    delayed: Mutex<VecDeque<Delayed>>,
    /// The reader hands out frames: what it does not hear meanwhile is no silence.
    is_delivering: AtomicBool,
    /// Whether `delayed` holds anything: what follows must not overtake it.
    has_delayed: AtomicBool,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "connection {} to {} on {:?}", self.id, self.node, self.channel)
    }
}

#[derive(Debug)]
struct Delayed {
    due: Instant,
    service: ServiceId,
    payload: Vec<u8>,
}

/// What happened in a writing turn.
enum Turn {
    /// Nothing is left.
    Idle,
    /// More is left; the flusher goes on.
    More,
    /// The socket is full.
    Blocked,
    /// The socket is broken.
    Failed(Cause),
}

impl Connection {
    #[expect(clippy::too_many_arguments, reason = "one constructor, called in one place")]
    pub(crate) fn new(
        id: u64,
        node: NodeId,
        channel: ChannelId,
        index: u8,
        peer: WeakPeer,
        around: Arc<Surroundings>,
        bounds: Bounds,
        turn_bytes: usize,
    ) -> Arc<Self> {
        let now = nanos(around.clock.now());
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            id,
            node,
            channel,
            index,
            peer,
            around,
            outbox: Mutex::new(Outbox::new(bounds)),
            wire: OnceLock::new(),
            turn_bytes,
            flush: Notify::new(),
            room: Notify::new(),
            waiting: AtomicU64::new(0),
            credit_bytes: bounds.credit_bytes,
            consumed_bytes: AtomicU64::new(0),
            outstanding_bytes: AtomicU64::new(0),
            received_frames: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            heard_at: AtomicU64::new(now),
            pinged_at: AtomicU64::new(now),
            delayed: Mutex::new(VecDeque::new()),
            is_delivering: AtomicBool::new(false),
            has_delayed: AtomicBool::new(false),
        })
    }

    /// Gives the connection its socket; the caller spawns flusher and reader.
    pub(crate) fn attach(
        &self,
        session: Session,
        socket: WriteHalf,
        number: ConnectionNumber,
        theirs: Window,
    ) {
        self.heard_at.store(nanos(self.around.clock.now()), Ordering::Relaxed);
        let has_more = session.wants_write();
        let wire = Wire { session: Mutex::new(session), socket, number };
        self.wire.set(wire).expect("a connection gets one socket in its life");
        let step = self.outbox.lock().attach(theirs);
        if step != Step::Done {
            self.flush.notify_one();
        } else if has_more {
            self.push_own(|outbox| outbox.wake_for_session());
        }
    }

    fn push_own(&self, append: impl FnOnce(&mut Outbox) -> Step) {
        let step = append(&mut self.outbox.lock());
        self.follow(step);
    }

    pub(crate) fn number(&self) -> Option<ConnectionNumber> {
        self.wire.get().map(|wire| wire.number)
    }

    pub(crate) fn is_open(&self) -> bool {
        self.wire.get().is_some() && !self.is_closed()
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.outbox.lock().closed().is_some()
    }

    /// Appends a message and sees to its being written.
    #[inline]
    pub(crate) fn send(
        &self,
        service: ServiceId,
        urgency: Urgency,
        write: impl FnOnce(&mut PayloadBuf<'_>),
    ) -> Result<(), SendError> {
        if self.around.faults.is_active() || self.has_delayed.load(Ordering::Relaxed) {
            return self.send_through_faults(service, urgency, write);
        }
        self.send_now(service, urgency, write)
    }

    #[inline]
    fn send_now(
        &self,
        service: ServiceId,
        urgency: Urgency,
        write: impl FnOnce(&mut PayloadBuf<'_>),
    ) -> Result<(), SendError> {
        let appended = self.outbox.lock().append(service, urgency, write);
        match appended {
            Ok(step) => {
                self.follow(step);
                Ok(())
            }
            Err(refused) => Err(self.send_error(refused)),
        }
    }

    fn send_error(&self, refused: Refused) -> SendError {
        match refused {
            Refused::Full { bound, bytes, max } => SendError::Full { bound, bytes, max },
            Refused::TooLarge { bytes, max } => SendError::TooLarge { bytes, max },
            Refused::Encode(text) => SendError::Encode(text),
            Refused::Closed(cause) => SendError::NotConnected { peer: self.node.clone(), cause },
        }
    }

    /// Waits for room in the bound that was full, at most until `deadline`.
    pub(crate) async fn wait_for_room(
        &self,
        bound: Bound,
        deadline: Deadline,
    ) -> Result<(), SendError> {
        let remaining =
            deadline.remaining(self.around.clock.now()).ok_or(SendError::Deadline { bound })?;
        let room = self.room.notified();
        tokio::pin!(room);
        room.as_mut().enable();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _leave = Leave(&self.waiting);
        {
            let outbox = self.outbox.lock();
            let has_room = match bound {
                Bound::Credit => outbox.credit_left() > 0,
                Bound::Backlog => outbox.has_room(),
            };
            if has_room || outbox.closed().is_some() {
                return Ok(());
            }
        }
        tokio::time::timeout(remaining, room)
            .await
            .map_err(|_elapsed| SendError::Deadline { bound })
    }

    #[inline]
    fn follow(&self, step: Step) {
        match step {
            Step::Done => {}
            Step::Wake => self.flush.notify_one(),
            Step::Write => self.write_from_here(),
        }
    }

    fn write_from_here(&self) {
        match self.write_turn() {
            Turn::Idle => {}
            Turn::More | Turn::Blocked => self.flush.notify_one(),
            Turn::Failed(cause) => self.close(cause, None),
        }
    }

    /// Writes as the only writer until nothing is left, the socket is full, or the turn is over.
    fn write_turn(&self) -> Turn {
        let wire = self.wire.get().expect("there is no writer before the socket");
        let mut session = wire.session.lock();
        let mut socket = wire.socket.writer();
        let mut written = 0;
        loop {
            match session.write_to(&mut socket) {
                Ok(Written::All) => {}
                Ok(Written::Blocked) => {
                    self.outbox.lock().block(session.batch_left());
                    self.tell_room();
                    return Turn::Blocked;
                }
                Err(error) => return Turn::Failed(Cause::of_io(&error)),
            }
            let mut outbox = self.outbox.lock();
            if written >= self.turn_bytes && outbox.has_pending() {
                outbox.give_way(0);
                drop(outbox);
                self.tell_room();
                return Turn::More;
            }
            if !outbox.take(&mut session.batch) {
                drop(outbox);
                if written > 0 {
                    self.tell_room();
                }
                return Turn::Idle;
            }
            written += session.batch.len();
        }
    }

    #[inline]
    fn tell_room(&self) {
        if self.waiting.load(Ordering::Relaxed) > 0 {
            self.room.notify_waiters();
        }
    }

    /// The flusher: writes what nobody wrote from their own task. Ends with the connection.
    pub(crate) async fn flush_loop(self: Arc<Self>) {
        loop {
            self.flush.notified().await;
            // Let everybody who is ready to run append first: one write for all of them.
            tokio::task::yield_now().await;
            if self.is_closed() {
                return;
            }
            if !self.outbox.lock().begin_turn() {
                continue;
            }
            loop {
                match self.write_turn() {
                    Turn::Idle => break,
                    Turn::More => tokio::task::yield_now().await,
                    Turn::Blocked => {
                        let wire = self.wire.get().expect("there is no writer before the socket");
                        tokio::select! {
                            // The flusher's bell only says that the connection may be closed.
                            biased;
                            ready = wire.socket.writable() => if let Err(error) = ready {
                                return self.close(Cause::of_io(&error), None);
                            },
                            () = self.flush.notified() => {}
                        }
                    }
                    Turn::Failed(cause) => return self.close(cause, None),
                }
                if self.is_closed() {
                    return;
                }
                if !self.outbox.lock().begin_turn() {
                    break;
                }
            }
        }
    }

    /// Decrypts what the socket delivered. `true` when the peer sends no more.
    pub(crate) fn decrypt(&self, records: &[u8], plain: &mut Vec<u8>) -> Result<bool, Cause> {
        let wire = self.wire.get().expect("there is no reader before the socket");
        let mut session = wire.session.lock();
        let end = session.receive(records, plain);
        let answers = session.wants_control_write();
        drop(session);
        if answers {
            // A key update or an alert: the writer takes it along.
            self.push_own(Outbox::wake_for_session);
        }
        end.map_err(|error| Cause::Tls(error.to_string()))
    }

    pub(crate) fn cork(&self) {
        self.outbox.lock().cork();
        self.is_delivering.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_pending(&self) -> bool {
        self.outbox.lock().has_pending()
    }

    pub(crate) fn uncork(&self, messages: usize) {
        if self.is_delivering.swap(false, Ordering::Relaxed) && !self.around.faults.is_active() {
            self.heard();
        }
        let step = self.outbox.lock().uncork(messages);
        self.follow(step);
    }

    /// Something arrived. The time of the last sign of life is what the keepalive looks at.
    pub(crate) fn heard(&self) {
        self.heard_at.store(nanos(self.around.clock.now()), Ordering::Relaxed);
    }

    /// Counts a received message against the credit we gave. `false` when the peer exceeds it by
    /// more than the one message it may overshoot.
    pub(crate) fn on_received(&self, bytes: u64, payload_bytes_max: u64) -> bool {
        let outstanding = self.outstanding_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        outstanding <= self.credit_bytes.saturating_add(payload_bytes_max)
    }

    /// Gives `bytes` back to the peer, in portions worth a frame.
    pub(crate) fn return_credit(&self, bytes: u64) {
        let portion = (self.credit_bytes / 2).max(1);
        let consumed = self.consumed_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        if consumed < portion {
            return;
        }
        let all = self.consumed_bytes.swap(0, Ordering::AcqRel);
        if all == 0 {
            return;
        }
        self.outstanding_bytes.fetch_sub(all, Ordering::Relaxed);
        self.push_own(|outbox| {
            outbox.append_own(Kind::Credit, ServiceId(0), &all.to_le_bytes(), Urgency::Batch)
        });
    }

    /// The peer consumed `bytes`. `false` when it claims more than it got.
    pub(crate) fn on_credit(&self, bytes: u64) -> bool {
        let fits = self.outbox.lock().give_back(bytes);
        self.tell_room();
        fits
    }

    pub(crate) fn send_own(&self, kind: Kind, service: ServiceId, payload: &[u8]) {
        if self.own_is_lost() {
            return;
        }
        self.push_own(|outbox| outbox.append_own(kind, service, payload, Urgency::Batch));
    }

    /// Whether a fault rule loses a frame of the connection itself.
    fn own_is_lost(&self) -> bool {
        let (faults, lane) = (&self.around.faults, Lane::Channel(self.channel));
        faults.is_active() && faults.fate(&self.node.name, lane, Direction::Outgoing).lost
    }

    /// One look of the keepalive: pings a quiet peer, closes on a silent one.
    pub(crate) fn keep_alive(&self, now: Instant, interval: Duration, silent_after: Duration) {
        if !self.is_open() {
            return;
        }
        let quiet_for = since(now, &self.heard_at);
        if quiet_for >= silent_after && !self.is_delivering.load(Ordering::Relaxed) {
            self.around.counters.silent(1);
            self.close(Cause::Silent, None);
            return;
        }
        if since(now, &self.pinged_at) >= interval {
            self.pinged_at.store(nanos(now), Ordering::Relaxed);
            if self.own_is_lost() {
                return;
            }
            self.push_own(|outbox| {
                let sent_at = nanos(now).to_le_bytes();
                outbox.append_own(Kind::Ping, ServiceId(0), &sent_at, Urgency::Now)
            });
        }
    }

    /// Ends the connection: what waits is lost and counted, services and peer are told. Only the
    /// first cause counts. With a farewell the peer is told why.
    pub(crate) fn close(&self, cause: Cause, farewell: Option<Farewell>) {
        if let (Some(farewell), Some(wire)) = (farewell, self.wire.get()) {
            self.say_goodbye(wire, farewell);
        }
        let (lost, first) = self.outbox.lock().close(cause.clone());
        if !first {
            return;
        }
        self.around.counters.bytes_lost(lost as u64);
        self.flush.notify_one();
        self.room.notify_waiters();
        self.delayed.lock().clear();
        if let Some(wire) = self.wire.get() {
            let how = match farewell {
                // The peer reads the farewell and closes; a full shutdown here could overtake it.
                Some(_) => std::net::Shutdown::Write,
                None => std::net::Shutdown::Both,
            };
            // It may be gone already, and then there is nothing to shut down.
            drop(wire.socket.shutdown(how));
            if farewell.is_some() {
                self.linger();
            }
        }
        if let (Some(peer), Some(me)) = (self.peer.upgrade(), self.me.upgrade()) {
            peer.on_connection_closed(&me, &cause);
        }
    }

    /// A peer that does not answer the farewell by closing is cut off.
    fn linger(&self) {
        let (Some(me), Ok(runtime)) = (self.me.upgrade(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        runtime.spawn(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            if let Some(wire) = me.wire.get() {
                drop(wire.socket.shutdown(std::net::Shutdown::Both));
            }
        });
    }

    fn say_goodbye(&self, wire: &Wire, farewell: Farewell) {
        let mut frame = Vec::new();
        crate::frame::append(&mut frame, Kind::Goodbye, ServiceId(0), 0, &[farewell as u8]);
        // Best effort, behind what the writer already took: a peer that misses it sees a reset.
        let Some(mut session) = wire.session.try_lock_for(Duration::from_millis(5)) else {
            return;
        };
        session.push(&frame);
        let mut socket = wire.socket.writer();
        if matches!(session.write_to(&mut socket), Ok(Written::All)) {
            session.push_close_notify();
            drop(session.write_to(&mut socket));
        }
    }

    fn send_through_faults(
        &self,
        service: ServiceId,
        urgency: Urgency,
        write: impl FnOnce(&mut PayloadBuf<'_>),
    ) -> Result<(), SendError> {
        let lane = Lane::Channel(self.channel);
        let fate = self.around.faults.fate(&self.node.name, lane, Direction::Outgoing);
        if fate.lost {
            self.around.counters.faults_lost(1);
            return Ok(());
        }
        let mut delayed = self.delayed.lock();
        if fate.delay.is_zero() && !fate.doubled && delayed.is_empty() {
            drop(delayed);
            return self.send_now(service, urgency, write);
        }
        let mut payload = Vec::new();
        let mut buffer = PayloadBuf::new(&mut payload);
        write(&mut buffer);
        if let Some(text) = buffer.take_failure() {
            return Err(SendError::Encode(text));
        }
        let held: usize = delayed.iter().map(|message| message.payload.len()).sum();
        let max = self.outbox.lock().backlog_bytes_max();
        if held + payload.len() > max {
            return Err(SendError::Full { bound: Bound::Backlog, bytes: held, max });
        }
        let now = self.around.clock.now();
        // Order holds: nothing overtakes what is already held.
        let due = delayed.back().map_or(now, |last| last.due.max(now)).max(now + fate.delay);
        let was_empty = delayed.is_empty();
        self.has_delayed.store(true, Ordering::Relaxed);
        if fate.doubled {
            delayed.push_back(Delayed { due, service, payload: payload.clone() });
        }
        delayed.push_back(Delayed { due, service, payload });
        drop(delayed);
        if was_empty && let Some(me) = self.me.upgrade() {
            tokio::spawn(me.delay_loop());
        }
        Ok(())
    }

    /// Releases delayed messages when they are due; ends when none is left.
    pub(crate) async fn delay_loop(self: Arc<Self>) {
        loop {
            let now = self.around.clock.now();
            let wait = {
                let mut delayed = self.delayed.lock();
                while let Some(message) = delayed.front()
                    && message.due <= now
                {
                    let message = delayed.pop_front().expect("there is a front");
                    // A full outbox loses it, as a congested network would.
                    if self
                        .send_now(message.service, Urgency::Batch, |p| p.put(&message.payload))
                        .is_err()
                    {
                        self.around.counters.faults_lost(1);
                    }
                }
                self.has_delayed.store(!delayed.is_empty(), Ordering::Relaxed);
                delayed.front().map(|message| message.due - now)
            };
            match wait {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return,
            }
        }
    }

    pub(crate) fn sent(&self) -> Sent {
        self.outbox.lock().sent()
    }

    pub(crate) fn backlog_and_credit(&self) -> (u64, u64) {
        let outbox = self.outbox.lock();
        (outbox.backlog_bytes() as u64, outbox.credit_left())
    }

    pub(crate) fn around(&self) -> &Arc<Surroundings> {
        &self.around
    }
}

struct Leave<'a>(&'a AtomicU64);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(crate) fn nanos(at: Instant) -> u64 {
    u64::try_from(at.since_start().as_nanos()).unwrap_or(u64::MAX)
}

fn since(now: Instant, then: &AtomicU64) -> Duration {
    Duration::from_nanos(nanos(now).saturating_sub(then.load(Ordering::Relaxed)))
}
