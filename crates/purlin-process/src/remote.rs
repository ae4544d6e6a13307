//! The seam between processes and the network.
//!
//! This crate knows no sockets. What sends to another node implements [`RemoteTarget`]; what
//! receives from one calls [`Processes::deliver`](crate::Processes::deliver). In between, a
//! message is a [`MessageKind`] and postcard bytes. Replies are decoded on the reader's task into
//! the slot of the call that waits, so an answer wakes exactly one task: the caller.

use std::{
    fmt,
    future::{Future, poll_fn},
    marker::PhantomData,
    sync::Arc,
    task::{Poll, Waker},
    time::Duration,
};

use parking_lot::Mutex;
use purlin_core::{Instant, TraceContext};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    CallError, CastError, Context, DownSink, Envelope, ExitReason, Handle, Message, MessageKind,
    MonitorId, Monitored, Overload, Pid, ProcessId, Server, Unwatch,
    call::CALL_WITHIN,
    mailbox::{Body, Handling, Told, far},
};

tokio::task_local! {
    pub(crate) static TRACE: TraceContext;
}

/// Runs `work` as part of `trace`: calls and casts it makes carry it on, here and to other nodes.
pub async fn with_trace<F: Future>(trace: TraceContext, work: F) -> F::Output {
    TRACE.scope(trace, work).await
}

/// The trace the current task works for, if any.
#[must_use]
pub fn current_trace() -> Option<TraceContext> {
    TRACE.try_with(|trace| *trace).ok()
}

/// A value that can write itself into a frame.
pub trait Encode {
    /// Appends the encoded value to `out`.
    ///
    /// # Errors
    /// What the encoder said; `out` may hold a part of the value then.
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError>;
}

/// Why a value could not be encoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EncodeError(pub String);

struct Appending<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for Appending<'_> {
    type Output = ();

    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

impl<T: Serialize> Encode for T {
    fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        postcard::serialize_with_flavor(self, Appending(out))
            .map_err(|error| EncodeError(error.to_string()))
    }
}

/// A message that can travel between nodes, and so can its reply. Implemented for all that can.
pub trait RemoteMessage:
    Message<Reply: Serialize + DeserializeOwned> + Serialize + DeserializeOwned
{
}

impl<M> RemoteMessage for M where
    M: Message<Reply: Serialize + DeserializeOwned> + Serialize + DeserializeOwned
{
}

/// A server other nodes may send to: it knows how to decode what it handles.
///
/// `#[server]` writes this table. By hand:
///
/// ```
/// # use purlin_process::{Context, Envelope, ExitReason, Handle, Inbound, Message, MessageKind, RemoteServer, Server, Undelivered};
/// # struct Counter(u64);
/// # #[derive(serde::Serialize, serde::Deserialize)] struct Add(u64);
/// # impl Message for Add { type Reply = u64; const NAME: &'static str = "Counter.add"; }
/// # impl Server for Counter {
/// #     const KIND: &'static str = "Counter";
/// #     type Args = u64;
/// #     async fn init(start: u64, _ctx: &mut Context<Self>) -> Result<Self, ExitReason> { Ok(Counter(start)) }
/// # }
/// # impl Handle<Add> for Counter {
/// #     async fn handle(&mut self, add: Add, _ctx: &mut Context<Self>) -> u64 { self.0 += add.0; self.0 }
/// # }
/// impl RemoteServer for Counter {
///     fn receive(kind: MessageKind, payload: &[u8], inbound: Inbound)
///         -> Result<Envelope<Self>, Undelivered>
///     {
///         match kind {
///             Add::KIND => inbound.decode::<Self, Add>(payload),
///             _ => Err(inbound.unknown::<Self>(kind)),
///         }
///     }
/// }
/// ```
pub trait RemoteServer: Server {
    /// Decodes one message.
    ///
    /// # Errors
    /// Holds `inbound`, so that the sender can be told.
    fn receive(
        kind: MessageKind,
        payload: &[u8],
        inbound: Inbound,
    ) -> Result<Envelope<Self>, Undelivered>;
}

/// Bytes from another node that are not a message of the server they were meant for, and what came
/// with them.
#[derive(Debug)]
pub struct Undelivered(Box<(Inbound, DecodeError)>);

impl Undelivered {
    /// Why they are not a message.
    #[must_use]
    pub fn error(&self) -> &DecodeError {
        &self.0.1
    }

    /// Tells the sender, if it waits for a reply, and gives the error back.
    pub(crate) fn refuse(self) -> CallError {
        let (inbound, error) = *self.0;
        inbound.refuse(error.into())
    }
}

/// Why bytes from another node are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The server does not handle this kind.
    #[error("{server} does not handle messages of kind {kind}")]
    UnknownMessage {
        /// The kind that was sent.
        kind: MessageKind,
        /// What kind of server it is.
        server: &'static str,
    },
    /// The bytes are not of this kind.
    #[error("message of kind {kind} cannot be decoded: {reason}")]
    Undecodable {
        /// The kind that was sent.
        kind: MessageKind,
        /// What the decoder said.
        reason: String,
    },
}

impl From<DecodeError> for CallError {
    fn from(error: DecodeError) -> Self {
        match error {
            DecodeError::UnknownMessage { kind, server } => {
                Self::UnknownMessage { kind, server: server.to_owned() }
            }
            DecodeError::Undecodable { kind, reason } => Self::Undecodable { kind, reason },
        }
    }
}

/// Whom a message from another node is meant for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A process by number.
    Id(ProcessId),
    /// A process by its unique name.
    Name(&'a str),
}

/// What is sent back for a call from another node.
pub enum Answer<'a> {
    /// The reply, ready to be written into a frame.
    Reply(&'a dyn Encode),
    /// Why there is none.
    Failed(&'a CallError),
}

impl fmt::Debug for Answer<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reply(_) => f.write_str("Reply"),
            Self::Failed(error) => f.debug_tuple("Failed").field(error).finish(),
        }
    }
}

/// The way back to callers on one other node; shared by all calls from there.
pub trait ReplyRoute: Send + Sync {
    /// Sends the answer to `request`. Must not block; called from the process's task.
    fn answer(&self, request: u64, answer: Answer<'_>);
}

/// The way back to one caller on another node. Dropped without an answer, it says that the
/// process exited.
pub struct ReplyTo {
    route: Option<Arc<dyn ReplyRoute>>,
    request: u64,
}

impl fmt::Debug for ReplyTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplyTo").field("request", &self.request).finish_non_exhaustive()
    }
}

impl ReplyTo {
    /// Answers go to `request` by `route`.
    #[must_use]
    pub fn new(route: Arc<dyn ReplyRoute>, request: u64) -> Self {
        Self { route: Some(route), request }
    }

    fn answer(mut self, answer: Answer<'_>) {
        if let Some(route) = self.route.take() {
            route.answer(self.request, answer);
        }
    }
}

impl Drop for ReplyTo {
    fn drop(&mut self) {
        if let Some(route) = self.route.take() {
            let reason = if std::thread::panicking() {
                ExitReason::Panicked("while handling this request".into())
            } else {
                ExitReason::Killed
            };
            route.answer(self.request, Answer::Failed(&CallError::ExitedDuring(reason)));
        }
    }
}

/// Told how much of what a sender has outstanding was consumed; shared by all its messages.
pub trait ConsumeRoute: Send + Sync {
    /// `amount` was taken out of a mailbox, or refused. Must not block.
    fn consumed(&self, amount: u64);
}

/// One message's part of a sender's window or credit; given back when dropped, which is when the
/// message leaves the mailbox.
pub struct Consumed {
    route: Arc<dyn ConsumeRoute>,
    amount: u64,
}

impl Consumed {
    /// Gives `amount` back by `route` when dropped.
    #[must_use]
    pub fn new(route: Arc<dyn ConsumeRoute>, amount: u64) -> Self {
        Self { route, amount }
    }
}

impl Drop for Consumed {
    fn drop(&mut self) {
        self.route.consumed(self.amount);
    }
}

impl fmt::Debug for Consumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumed").field("amount", &self.amount).finish_non_exhaustive()
    }
}

/// What comes with a message from another node.
#[derive(Debug, Default)]
pub struct Inbound {
    /// Where the reply goes; none for a cast.
    pub reply: Option<ReplyTo>,
    /// Given back when the message leaves the mailbox.
    pub consumed: Option<Consumed>,
    /// After this nobody wants the answer: the message is dropped instead of handled.
    pub deadline: Option<Instant>,
    /// The trace it belongs to.
    pub trace: Option<TraceContext>,
}

impl Inbound {
    /// Decodes `payload` as a message of type `M` for a server of type `S`.
    ///
    /// # Errors
    /// [`DecodeError::Undecodable`], when bytes are missing, left over or wrong.
    pub fn decode<S, M>(mut self, payload: &[u8]) -> Result<Envelope<S>, Undelivered>
    where
        S: Handle<M>,
        M: RemoteMessage,
    {
        match postcard::take_from_bytes::<M>(payload) {
            Ok((message, [])) => {
                let bytes = message.bytes();
                let (trace, deadline) = (self.trace.take().map(Box::new), self.deadline);
                let told: Box<dyn Told<S>> = match self {
                    // Most messages by far, so kept small.
                    Self { reply: None, deadline: None, consumed, .. } => {
                        Box::new(ReceivedCast { message, consumed })
                    }
                    inbound => Box::new(Received { message, inbound }),
                };
                let deadline = deadline.unwrap_or_else(far);
                Ok(Envelope { body: Body::Cast(told), bytes, deadline, trace })
            }
            Ok((_, rest)) => {
                Err(self.undecodable(M::KIND, format!("{} bytes are left over", rest.len())))
            }
            Err(error) => Err(self.undecodable(M::KIND, error.to_string())),
        }
    }

    fn undecodable(self, kind: MessageKind, reason: String) -> Undelivered {
        Undelivered(Box::new((self, DecodeError::Undecodable { kind, reason })))
    }

    /// The refusal of a kind that `S` does not handle.
    #[must_use]
    pub fn unknown<S: Server>(self, kind: MessageKind) -> Undelivered {
        Undelivered(Box::new((self, DecodeError::UnknownMessage { kind, server: S::KIND })))
    }

    /// Tells the caller, if there is one, and gives the error back.
    pub(crate) fn refuse(self, error: CallError) -> CallError {
        if let Some(reply) = self.reply {
            reply.answer(Answer::Failed(&error));
        }
        error
    }
}

/// A plain cast from another node, waiting in a mailbox.
struct ReceivedCast<M> {
    message: M,
    consumed: Option<Consumed>,
}

impl<S: Handle<M>, M: Message> Told<S> for ReceivedCast<M> {
    fn handle<'a>(
        self: Box<Self>,
        server: &'a mut S,
        ctx: &'a mut Context<S>,
    ) -> Option<Handling<'a>> {
        let Self { message, consumed } = *self;
        drop(consumed);
        let message = server.handle_now(message, ctx).err()?;
        Some(Box::pin(async move {
            drop(server.handle(message, ctx).await);
        }))
    }

    fn fail(self: Box<Self>, _error: CallError) {}

    fn name(&self) -> &'static str {
        M::NAME
    }
}

/// A message from another node, waiting in a mailbox.
struct Received<M> {
    message: M,
    inbound: Inbound,
}

impl<S: Handle<M>, M: RemoteMessage> Told<S> for Received<M> {
    fn handle<'a>(
        self: Box<Self>,
        server: &'a mut S,
        ctx: &'a mut Context<S>,
    ) -> Option<Handling<'a>> {
        let Self { message, inbound: Inbound { reply, consumed, deadline, .. } } = *self;
        drop(consumed);
        if deadline.is_some_and(|deadline| deadline <= ctx.now()) {
            // The caller has answered itself; its time is the sender's business.
            if let Some(reply) = reply {
                reply.answer(Answer::Failed(&CallError::Expired(Duration::ZERO)));
            }
            return None;
        }
        match server.handle_now(message, ctx) {
            Ok(value) => {
                if let Some(reply) = reply {
                    reply.answer(Answer::Reply(&value));
                }
                None
            }
            Err(message) => Some(Box::pin(answer(server, ctx, message, reply))),
        }
    }

    fn fail(self: Box<Self>, error: CallError) {
        self.inbound.refuse(error);
    }

    fn name(&self) -> &'static str {
        M::NAME
    }
}

async fn answer<S: Handle<M>, M: RemoteMessage>(
    server: &mut S,
    ctx: &mut Context<S>,
    message: M,
    reply: Option<ReplyTo>,
) {
    let value = server.handle(message, ctx).await;
    if let Some(reply) = reply {
        reply.answer(Answer::Reply(&value));
    }
}

/// One message on its way to another node.
#[derive(Clone, Copy)]
pub struct Outbound<'a> {
    /// Its kind.
    pub kind: MessageKind,
    /// Its body, written straight into the connection's buffer.
    pub message: &'a dyn Encode,
    /// The trace it belongs to.
    pub trace: Option<&'a TraceContext>,
}

impl fmt::Debug for Outbound<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outbound").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Where the answer to a call to another node goes.
pub trait ReplySlot: Send + Sync {
    /// Fills the slot and wakes the caller; a second time does nothing.
    fn complete(&self, answer: Result<&[u8], CallError>);
}

/// A process on another node, as the network sees it. Implemented by the cluster.
pub trait RemoteTarget: Send + Sync + fmt::Debug {
    /// The process.
    fn pid(&self) -> &Pid;

    /// Sends a call. `slot` is completed exactly once, at the deadline `within` from now at the
    /// latest, unless this fails or the call is cancelled. Never blocks.
    ///
    /// # Errors
    /// Nothing was sent.
    fn call(
        &self,
        message: Outbound<'_>,
        within: Duration,
        slot: Arc<dyn ReplySlot>,
    ) -> Result<u64, CallError>;

    /// Forgets the call `request`; its answer, if one comes, is dropped.
    fn cancel(&self, request: u64);

    /// Sends a cast, within this node's window to the process. Never blocks.
    ///
    /// # Errors
    /// Nothing was sent. [`CastError::Full`] when the window or the connection is full.
    fn cast(&self, message: Outbound<'_>) -> Result<(), CastError>;

    /// Resolves when the window or connection that was full may have room again.
    fn room(&self) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// See [`Monitored::watch`].
    fn watch(&self, monitor: MonitorId, sink: Arc<dyn DownSink>) -> Unwatch;
}

/// A reference to a process on another node. Cheap to clone.
pub struct RemoteRef<S> {
    target: Arc<dyn RemoteTarget>,
    overload: Overload,
    server: PhantomData<fn() -> S>,
}

impl<S> Clone for RemoteRef<S> {
    fn clone(&self) -> Self {
        Self { target: Arc::clone(&self.target), overload: self.overload, server: PhantomData }
    }
}

impl<S: Server> fmt::Debug for RemoteRef<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({})", S::KIND, self.target.pid())
    }
}

impl<S: Server> RemoteRef<S> {
    /// The process behind `target`, taken to be of type `S`; if it is not, it refuses what it
    /// does not handle.
    #[must_use]
    pub fn new(target: Arc<dyn RemoteTarget>) -> Self {
        Self { target, overload: Overload::Wait(Duration::from_secs(5)), server: PhantomData }
    }

    /// The same reference with another behaviour of [`RemoteRef::cast`] at a full window:
    /// [`Overload::Wait`] waits, everything else refuses.
    #[must_use]
    pub fn overload(self, overload: Overload) -> Self {
        Self { overload, ..self }
    }

    /// Its identity.
    #[must_use]
    pub fn pid(&self) -> &Pid {
        self.target.pid()
    }

    /// Sends `message` and waits for its reply, 5 s at most; see [`RemoteRef::call_within`].
    ///
    /// # Errors
    /// See [`RemoteRef::call_within`].
    pub async fn call<M: RemoteMessage>(&self, message: M) -> Result<M::Reply, CallError>
    where
        S: Handle<M>,
    {
        self.call_within(message, CALL_WITHIN).await
    }

    /// Sends `message` and waits for its reply, `within` at most.
    ///
    /// # Errors
    /// Every [`CallError`] says whether the process may have acted.
    ///
    /// # Guarantees
    /// Healthy: handled at most once; one task's calls arrive in order. Partitioned:
    /// [`CallError::NoReply`] or [`CallError::Disconnected`], both unknown. Callee's node
    /// restarted: [`CallError::Stale`] or [`CallError::Unreachable`], not done.
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
        let slot = Arc::new(Slot::<M::Reply>(Mutex::new(SlotState::Empty(None))));
        let trace = current_trace();
        let outbound = Outbound { kind: M::KIND, message: &message, trace: trace.as_ref() };
        let waiting = Arc::clone(&slot) as Arc<dyn ReplySlot>;
        let request = self.target.call(outbound, within, waiting)?;
        drop(message);
        let mut cancel = CancelOnDrop { target: &*self.target, request, armed: true };
        let answer = poll_fn(|cx| slot.poll(cx)).await;
        cancel.armed = false;
        answer
    }

    /// Sends `message` without waiting for it to be handled. Waits for room in the window to the
    /// process, 5 s at most, unless [`RemoteRef::overload`] says otherwise.
    ///
    /// # Errors
    /// [`CastError`]; nothing was sent then. That it was sent does not mean that it arrives.
    ///
    /// # Guarantees
    /// One task's casts to one process are handled in the order they were sent, while connected.
    ///
    /// # Cancel safety
    /// Dropping the future before it is done sends nothing.
    pub async fn cast<M: RemoteMessage>(&self, message: M) -> Result<(), CastError>
    where
        S: Handle<M>,
    {
        match self.try_cast(&message) {
            Err(CastError::Full(node)) => {
                let Overload::Wait(at_most) = self.overload else {
                    return Err(CastError::Full(node));
                };
                let sending = async {
                    loop {
                        self.target.room().await;
                        match self.try_cast(&message) {
                            Err(CastError::Full(_)) => {}
                            settled => return settled,
                        }
                    }
                };
                // Boxed: this rare wait must not make every cast's future large.
                match Box::pin(tokio::time::timeout(at_most, sending)).await {
                    Ok(settled) => settled,
                    Err(_elapsed) => Err(CastError::Full(node)),
                }
            }
            settled => settled,
        }
    }

    /// Sends `message` now or not at all.
    ///
    /// # Errors
    /// [`CastError`]; nothing was sent then.
    pub fn try_cast<M: RemoteMessage>(&self, message: &M) -> Result<(), CastError>
    where
        S: Handle<M>,
    {
        let trace = current_trace();
        self.target.cast(Outbound { kind: M::KIND, message, trace: trace.as_ref() })
    }
}

impl<S: Server> Monitored for RemoteRef<S> {
    fn watch(&self, monitor: MonitorId, sink: Arc<dyn DownSink>) -> Unwatch {
        self.target.watch(monitor, sink)
    }
}

struct CancelOnDrop<'a> {
    target: &'a dyn RemoteTarget,
    request: u64,
    armed: bool,
}

impl Drop for CancelOnDrop<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.target.cancel(self.request);
        }
    }
}

struct Slot<R>(Mutex<SlotState<R>>);

enum SlotState<R> {
    Empty(Option<Waker>),
    Full(Result<R, CallError>),
    Taken,
}

impl<R> Slot<R> {
    fn poll(&self, cx: &mut std::task::Context<'_>) -> Poll<Result<R, CallError>> {
        let mut state = self.0.lock();
        match std::mem::replace(&mut *state, SlotState::Taken) {
            SlotState::Full(answer) => Poll::Ready(answer),
            SlotState::Empty(waker) => {
                let waker = match waker {
                    Some(waker) if waker.will_wake(cx.waker()) => waker,
                    Some(_) | None => cx.waker().clone(),
                };
                *state = SlotState::Empty(Some(waker));
                Poll::Pending
            }
            SlotState::Taken => panic!("a call was polled after it had its answer"),
        }
    }
}

impl<R: DeserializeOwned + Send> ReplySlot for Slot<R> {
    fn complete(&self, answer: Result<&[u8], CallError>) {
        let answer = answer.and_then(|bytes| {
            postcard::from_bytes(bytes)
                .map_err(|error| CallError::ReplyUndecodable(error.to_string()))
        });
        let mut state = self.0.lock();
        if let SlotState::Empty(waker) = &mut *state {
            let waker = waker.take();
            *state = SlotState::Full(answer);
            drop(state);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}
