//! The address of a child: calls find it where it is, also while it moves.
//!
//! A process's address goes stale when the process moves, and a proxy in front of it is one more
//! hop that can loop. Here the caller's own node knows the places of all children, so a call goes
//! straight to where the child is. What arrives too late, at a process that has just given its
//! state away, is refused there with nothing done, waits here until the new place is known and is
//! sent once more: at most [`HOPS_MAX`] times, never from one server to another.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use purlin_core::{Instant, TraceContext};
use purlin_process::{
    Address, Answer, CALL_WITHIN, CallError, Callee, CastError, DownSink, Encode, EncodeError,
    ExitReason, Handle, Inbound, MessageKind, MonitorId, Monitored, Outbound, Pid, ProcessId,
    RemoteMessage, RemoteRef, RemoteServer, RemoteTarget, ReplyRoute, ReplySlot, ReplyTo, Server,
    Swept, Target, Unwatch,
};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::{
    record::{PlaceState, Spec},
    shell::{Hub, Room},
};

/// How often a message that was refused with nothing done is sent to another place.
pub const HOPS_MAX: u8 = 2;
/// How many messages may wait for children that are on the way, in KiB, each at least one.
pub(crate) const WAITING_CALLS_MAX: usize = 64 << 10;

/// A child of a supervisor, wherever it is: an address that follows it.
///
/// Cheap to clone. With `#[purlin::server]`, the handle of the server is made from
/// [`Child::address`].
///
/// # Guarantees
/// Healthy: as [`RemoteRef`]. While the child moves, is started again or wakes: messages wait, up to
/// 64 MiB of them per supervisor, until it is there or their deadline is over; what its old process
/// had not begun to handle is sent to the new one, what it had is unknown as ever. A cast that had
/// arrived at a process that ends is lost. Partitioned: as the records on this side say.
/// One caller's messages arrive in order, but not across a move.
pub struct Child<S: Server> {
    route: Arc<Route>,
    server: PhantomData<fn() -> S>,
}

impl<S: Server> Clone for Child<S> {
    fn clone(&self) -> Self {
        Self { route: Arc::clone(&self.route), server: PhantomData }
    }
}

impl<S: Server> fmt::Debug for Child<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({}/{})", S::KIND, self.route.room.name, self.route.id)
    }
}

impl<S: RemoteServer> Child<S> {
    pub(crate) fn new(
        hub: Arc<Hub>,
        room: Arc<Room>,
        id: Arc<str>,
        actor: Option<Arc<Spec>>,
    ) -> Self {
        let nowhere = Pid { node: hub.me.clone(), process: ProcessId(0) };
        let route = Arc::new_cyclic(|weak| Route {
            weak: Weak::clone(weak),
            hub,
            room,
            id,
            actor,
            nowhere,
            known: Mutex::new(None),
            calls: Mutex::default(),
            next: AtomicU64::new(1),
        });
        Self { route, server: PhantomData }
    }

    /// What it is called.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.route.id
    }

    /// Its process now, as far as this node knows.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        match self.route.find() {
            Found::At(pid) => Some(pid),
            Found::Wait | Found::Activate | Found::Nowhere => None,
        }
    }

    /// The address that follows it, as other code takes one. Its own
    /// [`pid`](Address::pid) says nothing: the child may be another process by then.
    #[must_use]
    pub fn address(&self) -> Address<S> {
        let target: Arc<dyn RemoteTarget> = Arc::clone(&self.route) as Arc<dyn RemoteTarget>;
        Address::Remote(RemoteRef::new(target))
    }

    /// Sends `message` and waits for its reply, 5 s at most; see [`Child::call_within`].
    ///
    /// # Errors
    /// See [`Child::call_within`].
    pub async fn call<M: RemoteMessage>(&self, message: M) -> Result<M::Reply, CallError>
    where
        S: Handle<M>,
    {
        self.call_within(message, CALL_WITHIN).await
    }

    /// Sends `message` and waits for its reply, `within` at most, waiting for the child included.
    ///
    /// # Errors
    /// Every [`CallError`] says whether the child may have acted. [`CallError::NoProcess`] by name
    /// when there is no such child, or it is in quarantine.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the reply, not the work: treat it as unknown.
    pub async fn call_within<M: RemoteMessage>(
        &self,
        message: M,
        within: Duration,
    ) -> Result<M::Reply, CallError>
    where
        S: Handle<M>,
    {
        self.address().call_within(message, within).await
    }

    /// Sends `message` without waiting for it to be handled.
    ///
    /// # Errors
    /// [`CastError`]; nothing was sent then.
    ///
    /// # Cancel safety
    /// Dropping the future before it is done sends nothing.
    pub async fn cast<M: RemoteMessage>(&self, message: M) -> Result<(), CastError>
    where
        S: Handle<M>,
    {
        self.address().cast(message).await
    }
}

/// Where a message goes.
enum Found {
    At(Pid),
    /// It is on the way.
    Wait,
    /// It is there once somebody starts it.
    Activate,
    Nowhere,
}

pub(crate) struct Route {
    weak: Weak<Self>,
    hub: Arc<Hub>,
    room: Arc<Room>,
    id: Arc<str>,
    /// What to start when it is not there.
    actor: Option<Arc<Spec>>,
    nowhere: Pid,
    /// Where the last message went. If that is wrong by now, the refusal tells.
    known: Mutex<Option<Pid>>,
    calls: Mutex<Calls>,
    next: AtomicU64,
}

#[derive(Default)]
struct Calls {
    pending: BTreeMap<u64, Arc<Routed>>,
    /// Whether their deadlines are looked at.
    is_watched: bool,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.room.name, self.id)
    }
}

/// Bytes of a message, encoded once.
struct Encoded<'a>(&'a [u8]);

impl Encode for Encoded<'_> {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        out.extend_from_slice(self.0);
        Ok(())
    }
}

/// One call until it has its answer.
struct Routed {
    route: Weak<Route>,
    number: u64,
    kind: MessageKind,
    bytes: Vec<u8>,
    trace: Option<TraceContext>,
    within: Duration,
    deadline: Instant,
    slot: Arc<dyn ReplySlot>,
    state: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    hops: u8,
    is_over: bool,
    /// What was sent, to another node.
    sent: Option<(Arc<dyn RemoteTarget>, u64)>,
    /// Where it was sent.
    at: Option<Pid>,
}

/// Nothing was done, and the child may be elsewhere.
fn is_elsewhere(error: &CallError) -> bool {
    matches!(
        error,
        CallError::NoProcess(_)
            | CallError::Stale { .. }
            | CallError::ExitedBefore(_)
            | CallError::Unreachable(_)
            | CallError::Draining
    )
}

impl Route {
    /// Where the child is by the records here.
    fn find(&self) -> Found {
        let state = self.room.state.lock();
        match state.core.child(&self.id) {
            // Where it is known may be on its way to a node that has just come.
            None if self.actor.is_some() && !state.core.is_complete() => Found::Wait,
            None if self.actor.is_some() => Found::Activate,
            None => Found::Nowhere,
            Some((_, None)) => Found::Wait,
            Some((_, Some(place))) => match &place.state {
                PlaceState::Running(process) => {
                    Found::At(Pid { node: place.node.clone(), process: *process })
                }
                PlaceState::Assigned { .. } | PlaceState::Refused { .. } => Found::Wait,
                PlaceState::Asleep(_) => Found::Activate,
                PlaceState::Quarantined => Found::Nowhere,
            },
        }
    }

    fn no_such(&self) -> CallError {
        CallError::NoProcess(Callee::Name(Box::from(&*self.id)))
    }

    /// To hear when the child's records change, or where it is by now if that is not `failed`.
    fn find_or_wait(&self, failed: Option<&Pid>) -> Result<Found, oneshot::Receiver<()>> {
        let mut state = self.room.state.lock();
        let told = state.wait_elsewhere(&self.id);
        drop(state);
        match self.find() {
            Found::At(pid) if Some(&pid) == failed => Err(told),
            Found::Wait => Err(told),
            found => Ok(found),
        }
    }

    /// How long to wait before looking without being told: shortly while records are still coming,
    /// of whose end nobody is told.
    fn patience(&self) -> Duration {
        if self.room.state.lock().core.is_complete() { LOOK_AGAIN } else { ACTIVATE_AGAIN }
    }

    /// Waits until the child is somewhere else than `failed`, and starts it if that is up to us.
    async fn settle(&self, failed: Option<&Pid>, deadline: Instant) -> Result<Pid, Unsettled> {
        loop {
            let left = deadline.saturating_since(self.hub.clock.now());
            if left.is_zero() {
                return Err(Unsettled::Late);
            }
            match self.find_or_wait(failed) {
                Ok(Found::At(pid)) => return Ok(pid),
                Ok(Found::Activate) => {
                    let activated = self.room.activate(&self.hub, &self.id, self.actor.as_ref());
                    match tokio::time::timeout(left, activated).await {
                        Ok(true) => {}
                        // Somebody else may have better luck, or this one, a moment later.
                        Ok(false) => tokio::time::sleep(left.min(ACTIVATE_AGAIN)).await,
                        Err(_) => return Err(Unsettled::Late),
                    }
                }
                Ok(Found::Nowhere | Found::Wait) => return Err(Unsettled::Nowhere),
                // Now and then it looks without being told.
                Err(told) => drop(tokio::time::timeout(left.min(self.patience()), told).await),
            }
        }
    }
}

/// How long to wait before a child that could not be woken is tried again.
const ACTIVATE_AGAIN: Duration = Duration::from_millis(50);
/// How often a message that waits looks by itself.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

enum Unsettled {
    Late,
    Nowhere,
}

impl Routed {
    /// Sends it to the process `pid`.
    fn send(self: &Arc<Self>, route: &Route, pid: Pid) {
        let now = route.hub.clock.now();
        let left = self.deadline.saturating_since(now);
        {
            let mut state = self.state.lock();
            if state.is_over {
                return;
            }
            (state.at, state.sent) = (Some(pid.clone()), None);
        }
        if pid.node == route.hub.me {
            let reply = ReplyTo::new(Arc::clone(self) as Arc<dyn ReplyRoute>, self.number);
            let (deadline, trace) = (Some(self.deadline), self.trace);
            let inbound = Inbound { reply: Some(reply), consumed: None, deadline, trace };
            let target = Target::Id(pid.process);
            let life = pid.node.incarnation;
            // An error has gone to the reply by then.
            route.hub.processes.deliver(life, target, self.kind, &self.bytes, inbound).ok();
            return;
        }
        let target = route.hub.remote.target(&pid);
        let bytes = Encoded(&self.bytes);
        let message = Outbound { kind: self.kind, message: &bytes, trace: self.trace.as_ref() };
        let slot = Arc::new(Hop { call: Arc::clone(self), at: pid }) as Arc<dyn ReplySlot>;
        match target.call(message, left, slot) {
            Ok(request) => self.state.lock().sent = Some((target, request)),
            Err(error) => self.settle(Err(error)),
        }
    }

    /// It has an answer, or is sent elsewhere.
    fn settle(self: &Arc<Self>, answer: Result<&[u8], CallError>) {
        let Some(route) = self.route.upgrade() else {
            self.complete(None, answer);
            return;
        };
        match answer {
            Err(error) if is_elsewhere(&error) => {
                let failed = {
                    let mut state = self.state.lock();
                    if state.is_over {
                        return;
                    }
                    state.hops += 1;
                    (state.hops <= HOPS_MAX).then(|| state.at.take())
                };
                *route.known.lock() = None;
                match failed {
                    Some(failed) => self.wait(&route, failed, error),
                    None => self.complete(Some(&route), Err(error)),
                }
            }
            answer => self.complete(Some(&route), answer),
        }
    }

    fn complete(&self, route: Option<&Route>, answer: Result<&[u8], CallError>) {
        if std::mem::replace(&mut self.state.lock().is_over, true) {
            return;
        }
        self.slot.complete(answer);
        if let Some(route) = route {
            route.calls.lock().pending.remove(&self.number);
        }
    }

    /// Waits for the child in a task of its own, then sends it there.
    fn wait(self: &Arc<Self>, route: &Arc<Route>, failed: Option<Pid>, error: CallError) {
        let Some(permit) = route.permit(self.bytes.len()) else {
            self.complete(Some(route), Err(error));
            return;
        };
        let (call, route) = (Arc::clone(self), Arc::clone(route));
        let waiting = async move {
            let found = route.settle(failed.as_ref(), call.deadline).await;
            drop(permit);
            match found {
                Ok(pid) => {
                    *route.known.lock() = Some(pid.clone());
                    call.send(&route, pid);
                }
                Err(Unsettled::Late) => {
                    call.complete(Some(&route), Err(CallError::Expired(call.within)));
                }
                Err(Unsettled::Nowhere) => call.complete(Some(&route), Err(route.no_such())),
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(waiting)),
            // The runtime is just ending.
            Err(_) => self.complete(None, Err(error)),
        }
    }
}

impl Route {
    fn permit(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(bytes / 1_024 + 1).ok()?;
        Arc::clone(&self.room.waiting_calls).try_acquire_many_owned(kib).ok()
    }

    fn known(&self) -> Option<Pid> {
        let mut known = self.known.lock();
        if known.is_none()
            && let Found::At(pid) = self.find()
        {
            *known = Some(pid);
        }
        known.clone()
    }
}

/// The answer to a call from the place it was sent to last.
struct Hop {
    call: Arc<Routed>,
    at: Pid,
}

impl ReplySlot for Hop {
    fn complete(&self, answer: Result<&[u8], CallError>) {
        // An earlier place has nothing more to say.
        if self.call.state.lock().at.as_ref() == Some(&self.at) {
            self.call.settle(answer);
        }
    }
}

impl ReplyRoute for Routed {
    fn answer(&self, _request: u64, answer: Answer<'_>) {
        let Some(route) = self.route.upgrade() else { return };
        let Some(call) = route.calls.lock().pending.get(&self.number).cloned() else { return };
        match answer {
            Answer::Reply(value) => {
                let mut bytes = Vec::new();
                match value.encode(&mut bytes) {
                    Ok(()) => call.settle(Ok(&bytes)),
                    Err(error) => call.settle(Err(CallError::ReplyUndecodable(error.0))),
                }
            }
            Answer::Failed(error) => call.settle(Err(error.clone())),
        }
    }
}

impl Swept for Route {
    fn sweep(&self, now: Instant) -> bool {
        let mut late = Vec::new();
        {
            let calls = self.calls.lock();
            late.extend(calls.pending.values().filter(|call| call.deadline <= now).cloned());
        }
        for call in late {
            // Sent: it may be at it right now. Not sent: it never was.
            let was_sent = call.state.lock().at.is_some();
            let error = if was_sent {
                CallError::NoReply(call.within)
            } else {
                CallError::Expired(call.within)
            };
            call.complete(Some(self), Err(error));
        }
        let mut calls = self.calls.lock();
        calls.is_watched = !calls.pending.is_empty();
        calls.is_watched
    }
}

impl RemoteTarget for Route {
    fn pid(&self) -> &Pid {
        &self.nowhere
    }

    fn call(
        &self,
        message: Outbound<'_>,
        within: Duration,
        slot: Arc<dyn ReplySlot>,
    ) -> Result<u64, CallError> {
        let Some(me) = self.weak.upgrade() else { return Err(self.no_such()) };
        let mut bytes = Vec::new();
        message.message.encode(&mut bytes).map_err(|error| CallError::Unencodable(error.0))?;
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let call = Arc::new(Routed {
            route: Weak::clone(&self.weak),
            number,
            kind: message.kind,
            bytes,
            trace: message.trace.copied(),
            within,
            deadline: self.hub.clock.now() + within,
            slot,
            state: Mutex::default(),
        });
        let was_watched = {
            let mut calls = self.calls.lock();
            calls.pending.insert(number, Arc::clone(&call));
            std::mem::replace(&mut calls.is_watched, true)
        };
        if !was_watched {
            self.hub.processes.watch_deadlines(Arc::clone(&me) as Arc<dyn Swept>);
        }
        match self.known() {
            Some(pid) => call.send(self, pid),
            None => call.wait(&me, None, CallError::Full(self.hub.me.clone())),
        }
        Ok(number)
    }

    fn cancel(&self, request: u64) {
        let Some(call) = self.calls.lock().pending.remove(&request) else { return };
        let sent = {
            let mut state = call.state.lock();
            state.is_over = true;
            state.sent.take()
        };
        if let Some((target, request)) = sent {
            target.cancel(request);
        }
    }

    fn cast(&self, message: Outbound<'_>) -> Result<(), CastError> {
        let mut bytes = Vec::new();
        message.message.encode(&mut bytes).map_err(|error| CastError::Unencodable(error.0))?;
        let trace = message.trace.copied();
        if let Some(pid) = self.known() {
            match self.cast_to(&pid, message.kind, &bytes, trace) {
                Err(
                    CastError::NoProcess(_)
                    | CastError::Stale { .. }
                    | CastError::Unreachable(_)
                    | CastError::Draining,
                ) => *self.known.lock() = None,
                settled => return settled,
            }
            return self.cast_later(Some(pid), message.kind, bytes, trace);
        }
        self.cast_later(None, message.kind, bytes, trace)
    }

    fn room(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            match self.known() {
                Some(pid) if pid.node != self.hub.me => {
                    self.hub.remote.target(&pid).room().await;
                }
                // Of the mailbox of a process here nobody tells.
                _ => tokio::time::sleep(Duration::from_millis(1)).await,
            }
        })
    }

    fn watch(&self, monitor: MonitorId, sink: Arc<dyn DownSink>) -> Unwatch {
        match self.known() {
            Some(pid) if pid.node == self.hub.me => {
                if let Some(process) = self.hub.processes.get(pid.process) {
                    return process.watch(monitor, sink);
                }
                sink.down(monitor, &pid, &ExitReason::NoProcess);
            }
            Some(pid) => return self.hub.remote.target(&pid).watch(monitor, sink),
            None => sink.down(monitor, &self.nowhere, &ExitReason::NoProcess),
        }
        Unwatch::new(|| {})
    }
}

/// How long a cast may wait for its child.
const CAST_WITHIN: Duration = Duration::from_secs(5);

impl Route {
    fn cast_to(
        &self,
        pid: &Pid,
        kind: MessageKind,
        bytes: &[u8],
        trace: Option<TraceContext>,
    ) -> Result<(), CastError> {
        if pid.node != self.hub.me {
            let message = Outbound { kind, message: &Encoded(bytes), trace: trace.as_ref() };
            return self.hub.remote.target(pid).cast(message);
        }
        let inbound = Inbound { trace, ..Inbound::default() };
        let target = Target::Id(pid.process);
        let delivered =
            self.hub.processes.deliver(pid.node.incarnation, target, kind, bytes, inbound);
        delivered.map_err(|error| match error {
            CallError::Overloaded { .. } => CastError::Full(self.hub.me.clone()),
            CallError::Draining => CastError::Draining,
            _ => CastError::NoProcess(Callee::Id(pid.process)),
        })
    }

    fn cast_later(
        &self,
        failed: Option<Pid>,
        kind: MessageKind,
        bytes: Vec<u8>,
        trace: Option<TraceContext>,
    ) -> Result<(), CastError> {
        let no_such = || CastError::NoProcess(Callee::Name(Box::from(&*self.id)));
        if matches!(self.find(), Found::Nowhere) {
            return Err(no_such());
        }
        let me = self.weak.upgrade().ok_or_else(no_such)?;
        let full = || CastError::Full(self.hub.me.clone());
        let permit = self.permit(bytes.len()).ok_or_else(full)?;
        let runtime = tokio::runtime::Handle::try_current().map_err(|_ending| no_such())?;
        runtime.spawn(async move {
            let deadline = me.hub.clock.now() + CAST_WITHIN;
            if let Ok(pid) = me.settle(failed.as_ref(), deadline).await {
                let sent = me.cast_to(&pid, kind, &bytes, trace);
                if let Err(error) = sent {
                    tracing::debug!(child = ?me, %error, "cast lost while its child moved");
                }
            }
            drop(permit);
        });
        Ok(())
    }
}
