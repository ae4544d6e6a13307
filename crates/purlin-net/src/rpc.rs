//! Remote calls: named, typed, with a deadline, three outcomes and no retries of their own.
//!
//! A call that went unanswered may have run. Hiding that behind a retry runs payments twice, so a
//! call ends as done, not done or **unknown** ([`CallError::outcome`]) and the caller decides.
//!
//! # How to use it
//! ```no_run
//! # use std::time::Duration;
//! # use purlin_net::{Transport, Peer};
//! use purlin_net::rpc::{Method, Rpc};
//!
//! // The name goes on the wire as a hash; request and reply are any serde types.
//! const ADD: Method<(u64, u64), u64> = Method::new("calc.add");
//!
//! # async fn example(transport: &Transport, peer: &Peer) -> Result<(), Box<dyn std::error::Error>> {
//! let rpc = Rpc::new(transport);
//! rpc.serve(ADD, async |_context, (a, b)| Ok(a + b))?;
//!
//! let sum = rpc.call(peer, ADD, &(1, 2), Duration::from_secs(1)).await?;
//! assert_eq!(sum, 3);
//! # Ok(()) }
//! ```
//!
//! # What it costs
//! A handler that is ready at its first poll runs on the connection's reader task, and its reply
//! leaves with the other replies of the batch: no task, no wake-up. One that waits becomes a task
//! of its own. So a handler must not block; it may await as it likes.
//!
//! Handlers that answer later from elsewhere (a mailbox, say) implement [`RawHandler`] and keep
//! the [`Responder`].

mod error;
mod handlers;
mod pending;
pub mod wire;

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use purlin_core::{Clock, Deadline, Instant, NodeId, TraceContext};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    channel::{ChannelId, PartitionKey},
    error::Cause,
    error::SendError,
    frame::{ErrorReport, ServiceId},
    outbox::Urgency,
    payload::PayloadBuf,
    peer::Peer,
    service::{Credit, Incoming, ReturnPath, Service},
    transport::Transport,
};

pub use self::{
    error::{CallError, Rejection, ServeError},
    wire::{FailureCode, MethodId},
};

use self::{
    handlers::{Handlers, TypedHandler},
    pending::{CallId, Ended, Pending},
    wire::{Head, Message},
};

/// The service number of remote calls.
pub const RPC: ServiceId = ServiceId(1);

/// A named operation with its request and reply types. Both sides must mean the same by the name.
pub struct Method<Q, R> {
    name: &'static str,
    id: MethodId,
    types: PhantomData<fn(Q) -> R>,
}

impl<Q, R> Method<Q, R> {
    /// The method called `name`, by convention `area.verb`.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        Self { name, id: MethodId::of(name), types: PhantomData }
    }

    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        self.name
    }

    /// Its number on the wire.
    #[must_use]
    pub const fn id(&self) -> MethodId {
        self.id
    }
}

impl<Q, R> Clone for Method<Q, R> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<Q, R> Copy for Method<Q, R> {}

impl<Q, R> fmt::Debug for Method<Q, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// How a call is made. A plain [`Duration`] is the deadline, the rest as by default.
#[derive(Debug, Clone, Copy)]
pub struct CallOptions {
    /// How long to wait for the reply, connecting included. Default 5 s.
    pub within: Duration,
    /// The trace the call belongs to; it travels along.
    pub trace: Option<TraceContext>,
    /// Calls with equal keys arrive in order.
    pub key: PartitionKey,
    /// Which channel carries it. Large requests belong on [`ChannelId::BULK`].
    pub channel: ChannelId,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self {
            within: Duration::from_secs(5),
            trace: None,
            key: PartitionKey::ZERO,
            channel: ChannelId::RPC,
        }
    }
}

impl From<Duration> for CallOptions {
    fn from(within: Duration) -> Self {
        Self { within, ..Self::default() }
    }
}

/// Bounds of one node's calls.
#[derive(Debug, Clone, Copy)]
pub struct RpcLimits {
    /// Calls of this node that wait for replies; more end as [`CallError::TooMany`]. Default
    /// 100,000.
    pub calls_max: usize,
    /// Requests of others that are being handled here; more are refused as
    /// [`CallError::Overloaded`]. Default 10,000.
    pub handlers_max: usize,
}

impl Default for RpcLimits {
    fn default() -> Self {
        Self { calls_max: 100_000, handlers_max: 10_000 }
    }
}

/// What a handler knows about the call it handles.
#[derive(Debug, Clone)]
pub struct RpcContext {
    /// Who calls.
    pub from: NodeId,
    /// When the caller stops waiting; `None` for casts. A handler that is still running then is
    /// dropped at its next await.
    pub deadline: Option<Deadline>,
    /// The caller's trace.
    pub trace: Option<TraceContext>,
}

/// A request before it is decoded.
#[derive(Debug)]
pub struct RawRequest<'a, 'b> {
    /// Who sent it.
    pub peer: &'a Peer,
    /// Which method it names.
    pub method: MethodId,
    /// The encoded request.
    pub body: &'a [u8],
    /// When the caller stops waiting; `None` for casts.
    pub deadline: Option<Deadline>,
    /// The caller's trace.
    pub trace: Option<TraceContext>,
    /// The way to answer; `None` for casts.
    pub responder: Option<Responder>,
    frame: &'a mut Incoming<'b>,
}

impl RawRequest<'_, '_> {
    /// Holds the sender's credit for this request until the token is dropped.
    #[must_use]
    pub fn take_credit(&mut self) -> Credit {
        self.frame.take_credit()
    }
}

/// Handles requests without decoding them here, and may answer from anywhere later. Called on the
/// reader task: hand over and return.
pub trait RawHandler: Send + Sync + 'static {
    /// A request arrived.
    fn on_request(&self, request: RawRequest<'_, '_>);
}

/// The duty to answer one call. Dropped unanswered, the caller hears [`CallError::Abandoned`].
pub struct Responder {
    path: ReturnPath,
    call: CallId,
    rpc: Arc<RpcInner>,
    is_answered: bool,
    /// Whether something is registered to run when the caller gives up.
    watches_cancel: bool,
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Responder({:?} of {})", self.call, self.path.node())
    }
}

impl Responder {
    /// Answers with what `write` encodes.
    ///
    /// # Errors
    /// [`SendError`]: the answer did not leave. The caller will end as unknown, except when the
    /// answer was too large, which it is told.
    pub fn reply(mut self, write: impl FnOnce(&mut PayloadBuf<'_>)) -> Result<(), SendError> {
        self.is_answered = true;
        let call = self.call;
        let sent = self.path.send(RPC, Urgency::Now, |payload| {
            wire::reply(payload, call.0);
            write(payload);
        });
        if let Err(error) = &sent {
            self.rpc.stats.replies_unsent.fetch_add(1, Ordering::Relaxed);
            if matches!(error, SendError::TooLarge { .. } | SendError::Encode(_)) {
                self.send_failure(FailureCode::ReplyUnsendable, &error.to_string());
            }
        }
        sent
    }

    /// Refuses: nothing was done.
    pub fn reject(mut self, rejection: &Rejection) {
        self.is_answered = true;
        self.send_failure(rejection.code(), rejection.text());
    }

    /// Ends the call with a failure.
    pub fn fail(mut self, code: FailureCode, text: &str) {
        self.is_answered = true;
        self.send_failure(code, text);
    }

    /// The caller waits no more: no answer is due.
    fn discard(mut self) {
        self.is_answered = true;
    }

    /// Who waits for the answer.
    #[must_use]
    pub fn caller(&self) -> &NodeId {
        self.path.node()
    }

    /// Whether nobody can hear the answer any more because the connection ended.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        self.path.is_closed()
    }

    /// Runs `then` when the caller gives up (it dropped the call, or its connection ended) before
    /// this responder answered. At most once; it must not block.
    pub fn on_cancel(&mut self, then: impl FnOnce() + Send + 'static) {
        self.watches_cancel = true;
        let at = (self.path.connection(), self.call);
        self.rpc.handlers.watch_cancel(at, Box::new(then));
        // The connection may have ended before this was registered; then nobody else looks.
        if self.path.is_closed() {
            let _ran = self.rpc.handlers.cancel(at);
        }
    }

    fn send_failure(&self, code: FailureCode, text: &str) {
        send_failure(&self.path, self.call, code, text);
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if self.watches_cancel {
            self.rpc.handlers.forget_cancel((self.path.connection(), self.call));
        }
        self.rpc.handlers.running.fetch_sub(1, Ordering::Relaxed);
        if !self.is_answered {
            self.rpc.stats.abandoned.fetch_add(1, Ordering::Relaxed);
            self.send_failure(FailureCode::Abandoned, "the handler ended without an answer");
        }
    }
}

fn send_failure(path: &ReturnPath, call: CallId, code: FailureCode, text: &str) {
    // If it cannot leave, the caller's deadline or the end of the connection ends the call.
    drop(path.send(RPC, Urgency::Now, |payload| wire::failure(payload, call.0, code, text)));
}

/// Calls to peers and handlers for their calls. Cheap to clone.
///
/// One per transport: a second one replaces the first as receiver.
#[derive(Clone)]
pub struct Rpc(Arc<RpcInner>);

impl fmt::Debug for Rpc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rpc").field("stats", &self.stats()).finish()
    }
}

struct RpcInner {
    me: Weak<Self>,
    clock: Arc<dyn Clock>,
    pending: Pending,
    handlers: Handlers,
    stats: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    calls: AtomicU64,
    casts: AtomicU64,
    requests: AtomicU64,
    replies_late: AtomicU64,
    replies_unsent: AtomicU64,
    unknown_method: AtomicU64,
    undecodable: AtomicU64,
    panics: AtomicU64,
    overloaded: AtomicU64,
    draining: AtomicU64,
    abandoned: AtomicU64,
    cancelled: AtomicU64,
    expired: AtomicU64,
    casts_refused: AtomicU64,
    malformed: AtomicU64,
}

/// Counts since start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RpcStats {
    /// Calls made from here.
    pub calls: u64,
    /// Casts sent from here.
    pub casts: u64,
    /// Calls of this node that wait for a reply now.
    pub calls_pending: u64,
    /// Requests and casts received.
    pub requests: u64,
    /// Requests being handled here now.
    pub handlers_running: u64,
    /// Replies that came after their call had ended; dropped.
    pub replies_late: u64,
    /// Replies that could not be sent, the caller being gone or the reply too large.
    pub replies_unsent: u64,
    /// Requests for a method nobody serves here; the sender was told.
    pub unknown_method: u64,
    /// Requests that could not be decoded; the sender was told.
    pub undecodable: u64,
    /// Handlers that panicked; the caller was told.
    pub panics: u64,
    /// Requests refused because [`RpcLimits::handlers_max`] was reached.
    pub overloaded: u64,
    /// Requests refused because this node drains.
    pub draining: u64,
    /// Responders dropped without an answer.
    pub abandoned: u64,
    /// Handlers stopped because their caller gave up.
    pub cancelled: u64,
    /// Calls of this node that ended at their deadline.
    pub expired: u64,
    /// Casts of this node that the receiver could not use.
    pub casts_refused: u64,
    /// Messages that make no sense; dropped.
    pub malformed: u64,
}

impl Rpc {
    /// Serves and makes calls over `transport`, within the default limits.
    #[must_use]
    pub fn new(transport: &Transport) -> Self {
        Self::with_limits(transport, RpcLimits::default())
    }

    /// Serves and makes calls over `transport`. Call it inside the transport's runtime.
    #[must_use]
    pub fn with_limits(transport: &Transport, limits: RpcLimits) -> Self {
        let inner = Arc::new_cyclic(|me| RpcInner {
            me: Weak::clone(me),
            clock: Arc::clone(transport.clock()),
            pending: Pending::new(limits.calls_max),
            handlers: Handlers::new(limits.handlers_max),
            stats: Counts::default(),
        });
        transport.register(RPC, Arc::<RpcInner>::clone(&inner));
        tokio::spawn(expire_loop(Arc::downgrade(&inner)));
        Self(inner)
    }

    /// Answers calls of `method` with `handler` from now on.
    ///
    /// The handler's first poll runs on the reader task, in the order in which requests of one
    /// sender and key arrive. See the module for what that asks of it.
    ///
    /// # Errors
    /// [`ServeError`] when the name is served already or its hash equals another's.
    pub fn serve<Q, R, F, Fut>(&self, method: Method<Q, R>, handler: F) -> Result<(), ServeError>
    where
        Q: DeserializeOwned + Send + 'static,
        R: Serialize + Send + 'static,
        F: Fn(RpcContext, Q) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<R, Rejection>> + Send + 'static,
    {
        let typed = TypedHandler::new(Weak::clone(&self.0.me), handler);
        self.serve_raw(method.name(), Arc::new(typed))
    }

    /// Hands requests for the method called `name` to `handler`, undecoded.
    ///
    /// # Errors
    /// As [`Rpc::serve`].
    pub fn serve_raw(&self, name: &str, handler: Arc<dyn RawHandler>) -> Result<(), ServeError> {
        self.0.handlers.add(name, handler)
    }

    /// Serves the method called `name` no more; its callers hear [`CallError::NoMethod`].
    pub fn stop_serving(&self, name: &str) {
        self.0.handlers.remove(name);
    }

    /// Calls `method` on `peer` and waits for its reply.
    ///
    /// # Units and limits
    /// The deadline runs on the local monotonic clock from this call, connecting included; the
    /// remaining time travels along and stops the handler there. Request and reply are bounded by
    /// the channel's `payload_bytes_max`.
    ///
    /// # Errors
    /// [`CallError`]; [`CallError::outcome`] says whether it may have run.
    ///
    /// # Guarantees
    /// Healthy: runs at most once. Partitioned: ends by its deadline as unknown, or at once when
    /// the peer is found down; a late reply is dropped and counted. Restarted peer: ends as
    /// unknown with the connection.
    ///
    /// # Cancel safety
    /// Dropping the future tells the peer, whose handler is dropped at its next await. Treat it as
    /// unknown.
    ///
    /// # Source
    /// Birrell and Nelson, "Implementing remote procedure calls" (1984); we never retry.
    pub async fn call<Q, R>(
        &self,
        peer: &Peer,
        method: Method<Q, R>,
        request: &Q,
        options: impl Into<CallOptions>,
    ) -> Result<R, CallError>
    where
        Q: Serialize,
        R: DeserializeOwned,
    {
        let reply =
            self.call_raw(peer, method.id(), options, |payload| payload.encode(request))?.await?;
        postcard::from_bytes(&reply).map_err(|error| CallError::BadReply(error.to_string()))
    }

    /// Sends a call whose request `write` encodes; the returned future is the encoded reply. The
    /// request is on its way when this returns.
    ///
    /// # Errors
    /// [`CallError::NotSent`] or [`CallError::TooMany`]; nothing left this node.
    #[inline]
    pub fn call_raw(
        &self,
        peer: &Peer,
        method: MethodId,
        options: impl Into<CallOptions>,
        write: impl FnOnce(&mut PayloadBuf<'_>),
    ) -> Result<PendingCall, CallError> {
        let options = options.into();
        let path = peer.path(options.channel, options.key).map_err(CallError::NotSent)?;
        let inner = &self.0;
        let now = inner.clock.now();
        let deadline = Deadline::after(now, options.within);
        let call = inner.pending.begin(path.connection(), deadline)?;
        let head = Head { method, trace: options.trace };
        let sent = path.send(RPC, Urgency::Now, |payload| {
            wire::request(payload, call.0, options.within, &head);
            write(payload);
        });
        if let Err(error) = sent {
            inner.pending.forget(call);
            return Err(CallError::NotSent(error));
        }
        inner.stats.calls.fetch_add(1, Ordering::Relaxed);
        Ok(PendingCall { rpc: Arc::clone(inner), call, path, is_done: false })
    }

    /// Sends `message` to `method` on `peer` and does not wait.
    ///
    /// # Errors
    /// [`SendError`]; nothing left this node. What happens there is not told, only counted
    /// ([`RpcStats::casts_refused`]).
    ///
    /// # Guarantees
    /// At most once; casts and calls of equal channel and key arrive in order.
    #[inline]
    pub fn cast<Q: Serialize, R>(
        &self,
        peer: &Peer,
        method: Method<Q, R>,
        message: &Q,
        options: CallOptions,
    ) -> Result<(), SendError> {
        self.cast_raw(peer, method.id(), options, |payload| payload.encode(message))
    }

    /// Like [`Rpc::cast`], with a message that `write` encodes.
    ///
    /// # Errors
    /// As [`Rpc::cast`].
    #[inline]
    pub fn cast_raw(
        &self,
        peer: &Peer,
        method: MethodId,
        options: CallOptions,
        write: impl FnOnce(&mut PayloadBuf<'_>),
    ) -> Result<(), SendError> {
        let head = Head { method, trace: options.trace };
        peer.send(options.channel, RPC, options.key, Urgency::Batch, |payload| {
            wire::cast(payload, &head);
            write(payload);
        })?;
        self.0.stats.casts.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Like [`Rpc::cast`], but waits for room as long as `options.within`.
    ///
    /// # Errors
    /// As [`Rpc::cast`]; [`SendError::Deadline`] when there was no room in time.
    ///
    /// # Cancel safety
    /// Dropping the future before it is ready sends nothing.
    pub async fn cast_wait<Q: Serialize, R>(
        &self,
        peer: &Peer,
        method: Method<Q, R>,
        message: &Q,
        options: CallOptions,
    ) -> Result<(), SendError> {
        let deadline = Deadline::after(self.0.clock.now(), options.within);
        loop {
            match self.cast(peer, method, message, options) {
                Err(SendError::Full { bound, .. }) => {
                    peer.wait_for_room(options.channel, options.key, bound, deadline).await?;
                }
                done => return done,
            }
        }
    }

    /// Calls `method` on all `peers` at once; one outcome per peer, in their order. The request is
    /// encoded once. Ready when the last one is, at the deadline at the latest.
    ///
    /// # Cancel safety
    /// As [`Rpc::call`], for every peer.
    pub async fn multi_call<Q, R>(
        &self,
        peers: &[Peer],
        method: Method<Q, R>,
        request: &Q,
        options: impl Into<CallOptions>,
    ) -> Vec<(NodeId, Result<R, CallError>)>
    where
        Q: Serialize,
        R: DeserializeOwned,
    {
        let options = options.into();
        let mut body = Vec::new();
        if let Err(error) = crate::payload::encode_to_vec(request, &mut body) {
            let failed = || CallError::NotSent(SendError::Encode(error.to_string()));
            return peers.iter().map(|peer| (peer.node().clone(), Err(failed()))).collect();
        }
        let calls: Vec<_> = peers
            .iter()
            .map(|peer| {
                let call = self.call_raw(peer, method.id(), options, |payload| payload.put(&body));
                (peer.node().clone(), call)
            })
            .collect();
        let mut outcomes = Vec::with_capacity(calls.len());
        for (node, call) in calls {
            let outcome = match call {
                Ok(call) => call.await.and_then(|reply| {
                    postcard::from_bytes(&reply)
                        .map_err(|error| CallError::BadReply(error.to_string()))
                }),
                Err(error) => Err(error),
            };
            outcomes.push((node, outcome));
        }
        outcomes
    }

    /// From now on refuses new calls with [`CallError::Draining`], nothing done; those accepted
    /// before are answered. Casts are still handled: nobody would hear the refusal. There is no
    /// way back.
    pub fn refuse_new(&self) {
        self.0.handlers.is_draining.store(true, Ordering::SeqCst);
    }

    /// Calls accepted here and not answered yet. After [`Rpc::refuse_new`] it only falls. An
    /// answer may still wait to be written when this is 0: see [`ConnectionStats`].
    ///
    /// [`ConnectionStats`]: crate::ConnectionStats
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.handlers.running.load(Ordering::SeqCst)
    }

    /// Counts since start.
    #[must_use]
    pub fn stats(&self) -> RpcStats {
        let counts = &self.0.stats;
        let get = |count: &AtomicU64| count.load(Ordering::Relaxed);
        RpcStats {
            calls: get(&counts.calls),
            casts: get(&counts.casts),
            calls_pending: self.0.pending.len() as u64,
            requests: get(&counts.requests),
            handlers_running: self.0.handlers.running.load(Ordering::Relaxed) as u64,
            replies_late: get(&counts.replies_late),
            replies_unsent: get(&counts.replies_unsent),
            unknown_method: get(&counts.unknown_method),
            undecodable: get(&counts.undecodable),
            panics: get(&counts.panics),
            overloaded: get(&counts.overloaded),
            draining: get(&counts.draining),
            abandoned: get(&counts.abandoned),
            cancelled: get(&counts.cancelled),
            expired: get(&counts.expired),
            casts_refused: get(&counts.casts_refused),
            malformed: get(&counts.malformed),
        }
    }

    /// Publishes the counts as metrics; call it now and then, for instance at every scrape.
    pub fn publish_metrics(&self) {
        let stats = self.stats();
        for (name, value) in [
            ("purlin_net_rpc_calls_total", stats.calls),
            ("purlin_net_rpc_casts_total", stats.casts),
            ("purlin_net_rpc_requests_total", stats.requests),
            ("purlin_net_rpc_replies_late_total", stats.replies_late),
            ("purlin_net_rpc_replies_unsent_total", stats.replies_unsent),
            ("purlin_net_rpc_unknown_method_total", stats.unknown_method),
            ("purlin_net_rpc_undecodable_total", stats.undecodable),
            ("purlin_net_rpc_panics_total", stats.panics),
            ("purlin_net_rpc_overloaded_total", stats.overloaded),
            ("purlin_net_rpc_draining_total", stats.draining),
            ("purlin_net_rpc_abandoned_total", stats.abandoned),
            ("purlin_net_rpc_cancelled_total", stats.cancelled),
            ("purlin_net_rpc_expired_total", stats.expired),
            ("purlin_net_rpc_casts_refused_total", stats.casts_refused),
            ("purlin_net_rpc_malformed_total", stats.malformed),
        ] {
            metrics::counter!(name).absolute(value);
        }
    }
}

/// A call that is on its way: the future of its encoded reply.
///
/// # Cancel safety
/// Dropping it tells the peer.
#[must_use = "a call that is not awaited is cancelled"]
pub struct PendingCall {
    rpc: Arc<RpcInner>,
    call: CallId,
    path: ReturnPath,
    is_done: bool,
}

impl fmt::Debug for PendingCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingCall({:?} to {})", self.call, self.path.node())
    }
}

impl Future for PendingCall {
    type Output = Result<Vec<u8>, CallError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.rpc.pending.poll(self.call, context.waker()) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(ended) => {
                self.is_done = true;
                Poll::Ready(match ended {
                    Ended::Reply(body) => Ok(body),
                    Ended::Failed(error) => Err(*error),
                    // Also while still connecting: it waits in the backlog and may yet be sent.
                    Ended::Expired => Err(CallError::Deadline),
                })
            }
        }
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        if !self.is_done && self.rpc.pending.forget(self.call) {
            // Best effort: the deadline stops the handler otherwise.
            drop(self.path.send(RPC, Urgency::Batch, |payload| wire::cancel(payload, self.call.0)));
        }
    }
}

/// Ends calls at their deadlines. One timer for all of them: it sleeps until the earliest.
async fn expire_loop(rpc: Weak<RpcInner>) {
    loop {
        let Some(inner) = rpc.upgrade() else { return };
        let now = inner.clock.now();
        let (expired, next) = inner.pending.expire(now);
        inner.stats.expired.fetch_add(expired, Ordering::Relaxed);
        let alarm = inner.pending.alarm();
        drop(inner);
        // A minute at most, so that the task ends soon after the last clone is dropped.
        let sleep = next.map_or(Duration::from_secs(60), |at: Instant| at - now);
        tokio::select! {
            biased;
            () = alarm.notified() => {}
            () = tokio::time::sleep(sleep.min(Duration::from_secs(60))) => {}
        }
    }
}

impl Service for RpcInner {
    fn on_frame(&self, mut frame: Incoming<'_>) {
        match Message::decode(frame.payload()) {
            Ok(Message::Reply { call, body }) => {
                if !self.pending.finish(CallId(call), Ended::Reply(body.to_vec())) {
                    self.stats.replies_late.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(Message::Failure { call: 0, code, text }) => {
                tracing::debug!(peer = %frame.peer().node(), ?code, text, "cast refused");
                self.stats.casts_refused.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Message::Failure { call, code, text }) => {
                let error = CallError::of_failure(code, text);
                if !self.pending.finish(CallId(call), Ended::Failed(Box::new(error))) {
                    self.stats.replies_late.fetch_add(1, Ordering::Relaxed);
                }
            }
            Ok(Message::Request { call, within, head, body }) => {
                let deadline = Deadline::after(self.clock.now(), within);
                self.on_request(&mut frame, Some((CallId(call), deadline)), &head, body);
            }
            Ok(Message::Cast { head, body }) => self.on_request(&mut frame, None, &head, body),
            Ok(Message::Cancel { call }) => {
                if self.handlers.cancel((frame.path().connection(), CallId(call))) {
                    self.stats.cancelled.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(error) => {
                self.stats.malformed.fetch_add(1, Ordering::Relaxed);
                tracing::warn!(peer = %frame.peer().node(), %error, "malformed rpc message");
            }
        }
    }

    fn on_refused(&self, path: &ReturnPath, report: ErrorReport<'_>) {
        match Message::call_of_head(report.head) {
            Some(call) => {
                let error = CallError::NoService(path.node().clone());
                self.pending.finish(CallId(call), Ended::Failed(Box::new(error)));
            }
            None => {
                self.stats.casts_refused.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn on_close(&self, path: &ReturnPath, was_open: bool, cause: &Cause) {
        let peer = path.node();
        self.pending.fail_all(path.connection(), || {
            let (peer, cause) = (peer.clone(), cause.clone());
            if was_open {
                CallError::Lost { peer, cause }
            } else {
                CallError::NotSent(SendError::NotConnected { peer, cause })
            }
        });
        let cancelled = self.handlers.cancel_all(path.connection());
        self.stats.cancelled.fetch_add(cancelled, Ordering::Relaxed);
    }
}

impl RpcInner {
    fn on_request(
        &self,
        frame: &mut Incoming<'_>,
        call: Option<(CallId, Deadline)>,
        head: &Head,
        body: &[u8],
    ) {
        self.stats.requests.fetch_add(1, Ordering::Relaxed);
        let (path, peer) = (frame.path(), frame.peer());
        // Casts have no call; their failures travel under number zero.
        let number = call.map_or(CallId(0), |(call, _)| call);
        let refuse = |code, text: &str| send_failure(path, number, code, text);
        let Some(handler) = self.handlers.get(head.method) else {
            self.stats.unknown_method.fetch_add(1, Ordering::Relaxed);
            let text = format!("no method {:?} here", head.method);
            return refuse(FailureCode::NoMethod, &text);
        };
        let responder = match call {
            None => None,
            Some((call, _)) => {
                // Counted before the drain is looked at, and `Rpc::refuse_new` is followed by a
                // look at the count: no call slips through between the two.
                let running = self.handlers.running.fetch_add(1, Ordering::SeqCst);
                if self.handlers.is_draining.load(Ordering::SeqCst) {
                    self.handlers.running.fetch_sub(1, Ordering::Relaxed);
                    self.stats.draining.fetch_add(1, Ordering::Relaxed);
                    return refuse(FailureCode::Draining, "this node takes no new calls");
                }
                if running >= self.handlers.running_max {
                    self.handlers.running.fetch_sub(1, Ordering::Relaxed);
                    self.stats.overloaded.fetch_add(1, Ordering::Relaxed);
                    let max = self.handlers.running_max;
                    let text = format!("{running} running handlers reach limit {max}");
                    return refuse(FailureCode::Overloaded, &text);
                }
                let Some(rpc) = self.me.upgrade() else { return };
                let path = path.clone();
                Some(Responder { path, call, rpc, is_answered: false, watches_cancel: false })
            }
        };
        handler.on_request(RawRequest {
            peer,
            method: head.method,
            body,
            deadline: call.map(|(_, deadline)| deadline),
            trace: head.trace,
            responder,
            frame,
        });
    }
}
