//! Who answers calls, and what runs for them.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    future::Future,
    hash::{BuildHasherDefault, Hasher},
    marker::PhantomData,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde::{Serialize, de::DeserializeOwned};

use super::{
    RawHandler, RawRequest, Responder, RpcContext, RpcInner,
    error::{Rejection, ServeError},
    pending::CallId,
    wire::{FailureCode, MethodId},
};

/// Method numbers are hashes already.
#[derive(Default)]
pub(crate) struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0 << 8 | u64::from(*byte);
        }
    }
    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

type Table = HashMap<MethodId, (Arc<str>, Arc<dyn RawHandler>), BuildHasherDefault<Identity>>;

/// Which call of which connection.
pub(crate) type At = (u64, CallId);
type OnCancel = Box<dyn FnOnce() + Send>;

pub(crate) struct Handlers {
    table: ArcSwap<Table>,
    /// What to do when a caller gives up.
    cancels: Mutex<BTreeMap<At, OnCancel>>,
    /// Calls not answered yet.
    pub(crate) running: AtomicUsize,
    /// New calls are refused, because the node drains.
    pub(crate) is_draining: AtomicBool,
    pub(crate) running_max: usize,
}

impl fmt::Debug for Handlers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handlers({} methods)", self.table.load().len())
    }
}

impl Handlers {
    pub(crate) fn new(running_max: usize) -> Self {
        Self {
            table: ArcSwap::from_pointee(Table::default()),
            cancels: Mutex::new(BTreeMap::new()),
            running: AtomicUsize::new(0),
            is_draining: AtomicBool::new(false),
            running_max,
        }
    }

    pub(crate) fn add(&self, name: &str, handler: Arc<dyn RawHandler>) -> Result<(), ServeError> {
        let id = MethodId::of(name);
        let mut refused = None;
        self.table.rcu(|table| {
            refused = table.get(&id).map(|(other, _)| {
                if **other == *name {
                    ServeError::Taken(name.to_owned())
                } else {
                    ServeError::Collision { name: name.to_owned(), other: other.to_string() }
                }
            });
            let mut table = Table::clone(table);
            if refused.is_none() {
                table.insert(id, (name.into(), Arc::clone(&handler)));
            }
            table
        });
        refused.map_or(Ok(()), Err)
    }

    pub(crate) fn remove(&self, name: &str) {
        self.table.rcu(|table| {
            let mut table = Table::clone(table);
            table.remove(&MethodId::of(name));
            table
        });
    }

    #[inline]
    pub(crate) fn get(&self, method: MethodId) -> Option<Arc<dyn RawHandler>> {
        self.table.load().get(&method).map(|(_, handler)| Arc::clone(handler))
    }

    pub(crate) fn watch_cancel(&self, at: At, then: OnCancel) {
        self.cancels.lock().insert(at, then);
    }

    pub(crate) fn forget_cancel(&self, at: At) {
        // Taken out under the lock, dropped outside of it: it may own anything.
        let forgotten = self.cancels.lock().remove(&at);
        drop(forgotten);
    }

    /// The caller gave up. Whether anything ran for it.
    pub(crate) fn cancel(&self, at: At) -> bool {
        let then = self.cancels.lock().remove(&at);
        then.map(|then| then()).is_some()
    }

    /// The connection ended: nobody can hear the answers.
    pub(crate) fn cancel_all(&self, connection: u64) -> u64 {
        let all: Vec<_> = {
            let mut cancels = self.cancels.lock();
            let first = (connection, CallId(0));
            let last = (connection, CallId(u64::MAX));
            let keys: Vec<_> = cancels.range(first..=last).map(|(at, _)| *at).collect();
            keys.into_iter().filter_map(|at| cancels.remove(&at)).collect()
        };
        let count = all.len() as u64;
        for then in all {
            then();
        }
        count
    }
}

/// Decodes, runs and encodes for a handler of plain types.
pub(crate) struct TypedHandler<Q, R, F> {
    rpc: Weak<RpcInner>,
    handler: F,
    types: PhantomData<fn(Q) -> R>,
}

impl<Q, R, F> TypedHandler<Q, R, F> {
    pub(crate) fn new(rpc: Weak<RpcInner>, handler: F) -> Self {
        Self { rpc, handler, types: PhantomData }
    }
}

type Running<R> = Pin<Box<dyn Future<Output = Result<R, Rejection>> + Send>>;

/// One poll of a handler: what came of it, or the text of its panic.
fn poll_guarded<R>(
    running: &mut Running<R>,
    context: &mut Context<'_>,
) -> Poll<Result<Result<R, Rejection>, String>> {
    match catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic_text(&*panic))),
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "a panic without text".to_owned())
}

impl<Q, R, F, Fut> RawHandler for TypedHandler<Q, R, F>
where
    Q: DeserializeOwned + Send + 'static,
    R: Serialize + Send + 'static,
    F: Fn(RpcContext, Q) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<R, Rejection>> + Send + 'static,
{
    fn on_request(&self, request: RawRequest<'_, '_>) {
        let Some(rpc) = self.rpc.upgrade() else { return };
        let decoded = match postcard::from_bytes(request.body) {
            Ok(decoded) => decoded,
            Err(error) => {
                rpc.stats.undecodable.fetch_add(1, Ordering::Relaxed);
                return match request.responder {
                    Some(responder) => {
                        responder.fail(FailureCode::Undecodable, &error.to_string());
                    }
                    None => super::send_failure(
                        request.frame.path(),
                        CallId(0),
                        FailureCode::Undecodable,
                        &error.to_string(),
                    ),
                };
            }
        };
        let context = RpcContext {
            from: request.peer.node().clone(),
            deadline: request.deadline,
            trace: request.trace,
        };
        let begun = catch_unwind(AssertUnwindSafe(|| (self.handler)(context, decoded)));
        let mut running: Running<R> = match begun {
            Ok(future) => Box::pin(future),
            Err(panic) => return finish::<R>(&rpc, request.responder, Err(panic_text(&*panic))),
        };
        // Most handlers are ready at once; only the others are worth a task.
        match poll_guarded(&mut running, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => finish::<R>(&rpc, request.responder, outcome),
            Poll::Pending => spawn(rpc, request.responder, running, request.deadline),
        }
    }
}

fn finish<R: Serialize>(
    rpc: &RpcInner,
    responder: Option<Responder>,
    outcome: Result<Result<R, Rejection>, String>,
) {
    if let Err(text) = &outcome {
        rpc.stats.panics.fetch_add(1, Ordering::Relaxed);
        tracing::error!(panic = text, "a handler panicked");
    }
    let Some(responder) = responder else { return };
    match outcome {
        // If it cannot leave, that is counted and the caller told as far as possible.
        Ok(Ok(reply)) => drop(responder.reply(|payload| payload.encode(&reply))),
        Ok(Err(rejection)) => responder.reject(&rejection),
        Err(text) => responder.fail(FailureCode::Panicked, &text),
    }
}

/// Goes on with a handler that waits, until it is done, its caller gives up or the deadline comes.
fn spawn<R: Serialize + Send + 'static>(
    rpc: Arc<RpcInner>,
    responder: Option<Responder>,
    mut running: Running<R>,
    deadline: Option<purlin_core::Deadline>,
) {
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut responder = responder;
    if let Some(responder) = &mut responder {
        responder.on_cancel(move || drop(stop));
    } else {
        // A cast has no caller to give up: its handler runs to its end.
        tokio::spawn(async move {
            let outcome = std::future::poll_fn(|context| poll_guarded(&mut running, context));
            finish(&rpc, None, outcome.await);
        });
        return;
    }
    let remaining =
        deadline.map(|deadline| deadline.remaining(rpc.clock.now()).unwrap_or_default());
    tokio::spawn(async move {
        let expiry = async {
            match remaining {
                Some(remaining) => tokio::time::sleep(remaining).await,
                None => std::future::pending().await,
            }
        };
        let outcome = std::future::poll_fn(|context| poll_guarded(&mut running, context));
        tokio::select! {
            biased;
            outcome = outcome => finish(&rpc, responder, outcome),
            _caller_gone = stopped => {
                if let Some(responder) = responder {
                    responder.discard();
                }
            }
            () = expiry => {
                if let Some(responder) = responder {
                    responder.fail(FailureCode::Deadline, "stopped at the deadline");
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Nobody;
    impl RawHandler for Nobody {
        fn on_request(&self, _request: RawRequest<'_, '_>) {}
    }

    #[test]
    fn a_name_is_served_once() {
        let handlers = Handlers::new(1);
        handlers.add("a.b", Arc::new(Nobody)).unwrap();
        assert_eq!(handlers.add("a.b", Arc::new(Nobody)), Err(ServeError::Taken("a.b".to_owned())));
        handlers.remove("a.b");
        assert!(handlers.get(MethodId::of("a.b")).is_none());
        assert!(handlers.add("a.b", Arc::new(Nobody)).is_ok());
    }

    #[test]
    fn two_names_of_one_hash_are_refused_by_name() {
        let handlers = Handlers::new(1);
        // No collision is known, so one is put there by hand.
        let mut table = Table::default();
        table.insert(MethodId::of("new.name"), ("old.name".into(), Arc::new(Nobody)));
        handlers.table.store(Arc::new(table));
        let refused = handlers.add("new.name", Arc::new(Nobody)).unwrap_err();
        assert_eq!(refused.to_string(), "methods `new.name` and `old.name` have the same hash");
    }

    #[test]
    fn a_cancel_runs_once_and_only_for_its_call() {
        let handlers = Handlers::new(1);
        let count = Arc::new(AtomicUsize::new(0));
        for call in 1..=3 {
            let count = Arc::clone(&count);
            handlers.watch_cancel(
                (7, CallId(call)),
                Box::new(move || {
                    count.fetch_add(1, Ordering::Relaxed);
                }),
            );
        }
        assert!(handlers.cancel((7, CallId(1))));
        assert!(!handlers.cancel((7, CallId(1))));
        assert!(!handlers.cancel((8, CallId(2))));
        handlers.forget_cancel((7, CallId(2)));
        assert_eq!(handlers.cancel_all(7), 1);
        assert_eq!(count.load(Ordering::Relaxed), 2);
    }
}
