//! One local call: the message on its way in, the reply on its way out, in one allocation.
//!
//! The cell is shared by the caller's future and the mailbox. It is taken out of the queue, not
//! merely marked, when the caller gives up or the deadline passes while the message still waits:
//! then the message provably never runs, and the caller is told "not done" instead of "unknown".

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Poll, Waker, ready},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{task::coop, time::Sleep};

use crate::{
    CallError, Callee, Context, Handle, Message, Overload, ProcessRef, Server,
    deadline::PRECISE_BELOW,
    mailbox::{Asked, Body, Envelope, Handling, Refused, far},
    remote::current_trace,
};

/// How long a call waits unless told otherwise.
pub const CALL_WITHIN: Duration = Duration::from_secs(5);

enum State<M: Message> {
    Waiting(M),
    Handling,
    Answered(Result<M::Reply, CallError>),
    /// The caller has its answer, or has gone.
    Finished,
}

struct Cell<M: Message> {
    slot: Mutex<Slot<M>>,
    within: Duration,
}

struct Slot<M: Message> {
    state: State<M>,
    caller: Option<Waker>,
}

impl<M: Message> Cell<M> {
    fn answer(&self, answer: Result<M::Reply, CallError>) {
        let mut slot = self.slot.lock();
        match slot.state {
            State::Waiting(_) | State::Handling => {
                let old = std::mem::replace(&mut slot.state, State::Answered(answer));
                let caller = slot.caller.take();
                drop(slot);
                if let Some(caller) = caller {
                    caller.wake();
                }
                // The message of a refused call may own anything; dropped without the lock.
                drop(old);
            }
            // Late: the caller was told "unknown" and must not get two answers.
            State::Answered(_) | State::Finished => {}
        }
    }

    fn start(&self) -> Option<M> {
        let mut slot = self.slot.lock();
        match std::mem::replace(&mut slot.state, State::Handling) {
            State::Waiting(message) => Some(message),
            other @ (State::Handling | State::Answered(_) | State::Finished) => {
                slot.state = other;
                None
            }
        }
    }

    fn abandon(&self) {
        let mut slot = self.slot.lock();
        let old = std::mem::replace(&mut slot.state, State::Finished);
        slot.caller = None;
        drop(slot);
        drop(old);
    }
}

impl<S: Handle<M>, M: Message> Asked<S> for Cell<M> {
    fn handle<'a>(
        self: Arc<Self>,
        server: &'a mut S,
        ctx: &'a mut Context<S>,
    ) -> Option<Handling<'a>> {
        let message = match server.handle_now(self.start()?, ctx) {
            Ok(reply) => {
                self.answer(Ok(reply));
                return None;
            }
            Err(message) => message,
        };
        Some(Box::pin(async move {
            let reply = server.handle(message, ctx).await;
            self.answer(Ok(reply));
        }))
    }

    fn fail(&self, error: CallError) {
        self.answer(Err(error));
    }

    fn expire(&self) {
        let started = matches!(self.slot.lock().state, State::Handling);
        // Between the look and the answer the process may have started on it: then "unknown" is
        // the honest answer, so take the message out first.
        let error = if !started && self.start().is_some() {
            CallError::Expired(self.within)
        } else {
            CallError::NoReply(self.within)
        };
        self.answer(Err(error));
    }

    fn name(&self) -> &'static str {
        M::NAME
    }
}

/// A call on its way: the future of [`ProcessRef::call`].
///
/// # Cancel safety
/// Dropping it withdraws the request if the process has not begun with it; otherwise the work
/// goes on and its reply is dropped: treat it as unknown.
#[must_use = "a call does nothing unless awaited"]
pub struct Call<'a, S: Handle<M>, M: Message> {
    to: &'a ProcessRef<S>,
    within: Duration,
    stage: Stage<'a, S, M>,
}

type Queueing<'a, M> = Pin<Box<dyn Future<Output = Result<Arc<Cell<M>>, CallError>> + Send + 'a>>;

enum Stage<'a, S: Server, M: Message> {
    Start(M),
    /// The mailbox is full and its policy is to wait.
    Queueing(Queueing<'a, M>),
    Waiting(Waiting<M>, Option<Pin<Box<Sleep>>>),
    Done(std::marker::PhantomData<fn() -> S>),
}

// Nothing in a call is pinned structurally: what needs pinning is boxed.
impl<S: Handle<M>, M: Message> Unpin for Call<'_, S, M> {}

impl<S: Handle<M>, M: Message> fmt::Debug for Call<'_, S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("message", &M::NAME).field("to", self.to).finish()
    }
}

impl<'a, S: Handle<M>, M: Message> Call<'a, S, M> {
    pub(crate) fn new(to: &'a ProcessRef<S>, message: M, within: Duration) -> Self {
        Self { to, within, stage: Stage::Start(message) }
    }

    fn start(&mut self, message: M, caller: &Waker) -> Result<(), CallError> {
        let process = &self.to.0;
        if process.core.is_current_task() {
            return Err(CallError::CallsItself);
        }
        let bytes = message.bytes();
        let cell = Arc::new(Cell {
            slot: Mutex::new(Slot { state: State::Waiting(message), caller: Some(caller.clone()) }),
            within: self.within,
        });
        let envelope = Envelope {
            body: Body::Call(Arc::clone(&cell) as Arc<dyn Asked<S>>),
            bytes,
            deadline: far(),
            trace: current_trace().map(Box::new),
        };
        let precise = self.within < PRECISE_BELOW;
        match process.push(envelope, Some(self.within)) {
            Ok(()) => {
                let timer = precise.then(|| Box::pin(tokio::time::sleep(self.within)));
                self.stage = Stage::Waiting(Waiting(cell), timer);
                Ok(())
            }
            Err(Refused::Closed(_)) => Err(CallError::NoProcess(Callee::Id(self.to.id()))),
            Err(Refused::Full(envelope, fill)) => {
                let Overload::Wait(at_most) = process.mailbox.limits.overload else {
                    return Err(process.overloaded(fill).into());
                };
                let (to, within) = (self.to, self.within);
                self.stage = Stage::Queueing(Box::pin(async move {
                    to.0.push_within(envelope, at_most.min(within), Some(within)).await?;
                    Ok(cell)
                }));
                Ok(())
            }
        }
    }
}

impl<S: Handle<M>, M: Message> Future for Call<'_, S, M> {
    type Output = Result<M::Reply, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        loop {
            match &mut this.stage {
                Stage::Start(_) => {
                    let stage =
                        std::mem::replace(&mut this.stage, Stage::Done(std::marker::PhantomData));
                    let Stage::Start(message) = stage else { unreachable!("matched above") };
                    if let Err(error) = this.start(message, cx.waker()) {
                        return Poll::Ready(Err(error));
                    }
                    if matches!(this.stage, Stage::Waiting(_, None)) {
                        // The cell holds this task's waker already.
                        return Poll::Pending;
                    }
                }
                Stage::Queueing(queueing) => match ready!(queueing.as_mut().poll(cx)) {
                    Ok(cell) => this.stage = Stage::Waiting(Waiting(cell), None),
                    Err(error) => {
                        this.stage = Stage::Done(std::marker::PhantomData);
                        return Poll::Ready(Err(error));
                    }
                },
                Stage::Waiting(Waiting(cell), timer) => {
                    let progress = ready!(coop::poll_proceed(cx));
                    let mut slot = cell.slot.lock();
                    match std::mem::replace(&mut slot.state, State::Finished) {
                        State::Answered(answer) => {
                            progress.made_progress();
                            drop(slot);
                            this.stage = Stage::Done(std::marker::PhantomData);
                            return Poll::Ready(answer);
                        }
                        unanswered => slot.state = unanswered,
                    }
                    match &mut slot.caller {
                        Some(caller) => caller.clone_from(cx.waker()),
                        none => *none = Some(cx.waker().clone()),
                    }
                    drop(slot);
                    let Some(timer) = timer else { return Poll::Pending };
                    ready!(timer.as_mut().poll(cx));
                    Asked::<S>::expire(&**cell);
                    // Answered now, or already before: the next round takes it out.
                    *timer = Box::pin(tokio::time::sleep(Duration::MAX));
                }
                Stage::Done(_) => panic!("a call was polled after it had its answer"),
            }
        }
    }
}

/// The caller's hold on its cell; letting go abandons the call.
struct Waiting<M: Message>(Arc<Cell<M>>);

impl<M: Message> Drop for Waiting<M> {
    fn drop(&mut self) {
        self.0.abandon();
    }
}
