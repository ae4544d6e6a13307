//! Sending to one process elsewhere.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use purlin_core::Deadline;
use purlin_net::{Bound, ChannelId, PartitionKey, Peer, ReturnPath, SendError, Urgency};
use purlin_process::{
    CallError, Callee, CastError, DownSink, ExitReason, MonitorId, Outbound, Pid, RemoteTarget,
    ReplySlot, Unwatch,
};
use tokio::sync::Notify;

use super::{Inner, SERVICE, count, wire::Message};

/// One process elsewhere, shared by all references to it.
pub(crate) struct Target {
    remote: Weak<Inner>,
    pid: Pid,
    window: Mutex<Window>,
    room: Notify,
    /// The process is not there and never will be again: numbers are not reused.
    gone: AtomicBool,
}

/// Casts that were sent and not taken out of the mailbox yet, as far as we were told.
struct Window {
    /// The connection they went out on; what another one carried is lost and counts no more.
    way: Option<(Peer, ReturnPath)>,
    outstanding: u32,
    /// Which bound was full at the last refusal; `None` for the window itself.
    full: Option<Bound>,
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Target").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Some(remote) = self.remote.upgrade() {
            remote.forget_target(&self.pid);
        }
    }
}

impl Target {
    pub(crate) fn new(remote: Weak<Inner>, pid: Pid) -> Self {
        let window = Window { way: None, outstanding: 0, full: None };
        Self {
            remote,
            pid,
            window: Mutex::new(window),
            room: Notify::new(),
            gone: AtomicBool::new(false),
        }
    }

    /// The other node took `count` more of our casts out of the mailbox.
    pub(crate) fn consumed(&self, connection: u64, count: u32) {
        let mut window = self.window.lock();
        if !window.is_on(connection) {
            return;
        }
        window.outstanding = window.outstanding.saturating_sub(count);
        drop(window);
        self.room.notify_waiters();
    }

    pub(crate) fn disconnected(&self, connection: u64) {
        let mut window = self.window.lock();
        if window.is_on(connection) {
            window.way = None;
            window.outstanding = 0;
        }
        drop(window);
        self.room.notify_waiters();
    }

    /// The other node says that the process is not there.
    pub(crate) fn gone(&self) {
        self.gone.store(true, Ordering::Relaxed);
        self.room.notify_waiters();
    }

    fn remote(&self) -> Result<Arc<Inner>, CallError> {
        if self.gone.load(Ordering::Relaxed) {
            return Err(CallError::NoProcess(Callee::Id(self.pid.process)));
        }
        self.remote.upgrade().ok_or_else(|| CallError::Unreachable(self.pid.node.clone()))
    }

    fn key(&self) -> PartitionKey {
        PartitionKey(self.pid.process.0)
    }

    fn peer(&self, remote: &Inner) -> Result<Peer, CallError> {
        remote.transport.peer(&self.pid.node).ok_or_else(|| remote.absent(&self.pid))
    }

    /// The connection to send on. Kept from one message to the next: finding the way anew costs
    /// more than the message.
    fn path(&self, remote: &Inner) -> Result<ReturnPath, CallError> {
        let mut window = self.window.lock();
        self.path_of(&mut window, remote)
    }

    fn path_of(&self, window: &mut Window, remote: &Inner) -> Result<ReturnPath, CallError> {
        let (peer, path) = match &window.way {
            Some((peer, path)) => (peer, path.clone()),
            None => {
                let peer = self.peer(remote)?;
                let path = peer.path(ChannelId::RPC, self.key());
                let path = path.map_err(|error| remote.unsent(error, &self.pid))?;
                window.outstanding = 0;
                let (peer, path) = window.way.insert((peer, path));
                (&*peer, path.clone())
            }
        };
        // Its connections stay open for what is under way. A call begun now would be refused at
        // best, and at worst be cut off without anybody knowing whether it ran.
        if peer.is_released() {
            return Err(CallError::Unreachable(self.pid.node.clone()));
        }
        Ok(path)
    }

    /// The connection to send one more cast on, which is counted.
    fn admit(&self, remote: &Inner) -> Result<ReturnPath, CallError> {
        let mut window = self.window.lock();
        if window.outstanding >= remote.limits.window {
            window.full = None;
            count(&remote.counts.window_full);
            return Err(CallError::Full(self.pid.node.clone()));
        }
        let path = self.path_of(&mut window, remote)?;
        window.outstanding += 1;
        Ok(path)
    }

    /// A cast that was counted did not leave.
    fn unadmit(&self, path: &ReturnPath, error: &SendError) {
        let mut window = self.window.lock();
        if window.is_on(path.connection()) {
            window.outstanding = window.outstanding.saturating_sub(1);
        }
        window.full = match error {
            SendError::Full { bound, .. } => Some(*bound),
            _ => None,
        };
    }

    fn call_once(
        &self,
        remote: &Inner,
        message: &Outbound<'_>,
        within: Duration,
        slot: Arc<dyn ReplySlot>,
    ) -> Result<u64, Unsent> {
        let path = self.path(remote)?;
        let now = remote.transport.clock().now();
        let begun = remote.pending.begin(slot, path.connection(), now, within);
        let begun = begun.ok_or_else(|| CallError::Full(self.pid.node.clone()))?;
        if begun.watch
            && let Some(me) = remote.me.upgrade()
        {
            remote.processes.watch_deadlines(me);
        }
        let head = Message::Call {
            request: begun.request,
            process: self.pid.process,
            kind: message.kind,
            remaining: within,
            trace: message.trace.copied(),
            body: &[],
        };
        let sent = path.send(SERVICE, Urgency::Now, |payload| {
            head.write(|part| payload.put(part));
            payload.append(|buffer| message.message.encode(buffer));
        });
        if let Err(error) = sent {
            if !remote.pending.forget(begun.request) {
                // The end of the connection was faster and has answered the caller; a second try
                // would run behind its back.
                return Ok(begun.request);
            }
            return Err(self.unsent(remote, &path, error));
        }
        count(&remote.counts.calls);
        Ok(begun.request)
    }

    fn cast_once(&self, remote: &Inner, message: &Outbound<'_>) -> Result<(), Unsent> {
        let path = self.admit(remote)?;
        let head = Message::Cast {
            process: self.pid.process,
            kind: message.kind,
            trace: message.trace.copied(),
            body: &[],
        };
        // Without the window's lock: a send can find the connection broken, and then everybody on
        // it is told, this target too.
        let sent = path.send(SERVICE, Urgency::Batch, |payload| {
            head.write(|part| payload.put(part));
            payload.append(|buffer| message.message.encode(buffer));
        });
        if let Err(error) = sent {
            self.unadmit(&path, &error);
            return Err(self.unsent(remote, &path, error));
        }
        count(&remote.counts.casts);
        Ok(())
    }

    fn unsent(&self, remote: &Inner, path: &ReturnPath, error: SendError) -> Unsent {
        if matches!(error, SendError::NotConnected { .. }) {
            self.disconnected(path.connection());
            return Unsent::Ended(remote.unsent(error, &self.pid));
        }
        Unsent::Refused(remote.unsent(error, &self.pid))
    }
}

/// Why nothing was sent.
enum Unsent {
    /// The connection kept from last time has ended; another may be had.
    Ended(CallError),
    Refused(CallError),
}

impl From<CallError> for Unsent {
    fn from(error: CallError) -> Self {
        Self::Refused(error)
    }
}

/// Tries once more if only the kept connection was at fault.
fn twice<T>(mut once: impl FnMut() -> Result<T, Unsent>) -> Result<T, CallError> {
    let first = match once() {
        Err(Unsent::Ended(_)) => once(),
        settled => settled,
    };
    first.map_err(|unsent| match unsent {
        Unsent::Ended(error) | Unsent::Refused(error) => error,
    })
}

impl Window {
    fn is_on(&self, connection: u64) -> bool {
        self.way.as_ref().is_some_and(|(_, path)| path.connection() == connection)
    }
}

impl RemoteTarget for Target {
    fn pid(&self) -> &Pid {
        &self.pid
    }

    fn call(
        &self,
        message: Outbound<'_>,
        within: Duration,
        slot: Arc<dyn ReplySlot>,
    ) -> Result<u64, CallError> {
        let remote = self.remote()?;
        twice(|| self.call_once(&remote, &message, within, Arc::clone(&slot)))
    }

    fn cancel(&self, request: u64) {
        if let Some(remote) = self.remote.upgrade() {
            remote.pending.forget(request);
        }
    }

    fn cast(&self, message: Outbound<'_>) -> Result<(), CastError> {
        let remote = self.remote().map_err(as_cast)?;
        twice(|| self.cast_once(&remote, &message)).map_err(as_cast)
    }

    fn room(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        /// How long to wait at most before the caller looks again by itself.
        const LOOK_AGAIN: Duration = Duration::from_millis(100);
        Box::pin(async move {
            let notified = self.room.notified();
            let mut notified = std::pin::pin!(notified);
            notified.as_mut().enable();
            let Ok(remote) = self.remote() else { return };
            let (full, outstanding) = {
                let window = self.window.lock();
                (window.full, window.outstanding)
            };
            let deadline = Deadline::after(remote.transport.clock().now(), LOOK_AGAIN);
            match full {
                Some(bound) => {
                    if let Ok(peer) = self.peer(&remote) {
                        // Whatever became of it: the next send tells.
                        drop(peer.wait_for_room(ChannelId::RPC, self.key(), bound, deadline).await);
                    }
                }
                None if outstanding < remote.limits.window => {}
                None => drop(tokio::time::timeout(LOOK_AGAIN, notified).await),
            }
        })
    }

    fn watch(&self, monitor: MonitorId, sink: Arc<dyn DownSink>) -> Unwatch {
        match self.remote() {
            Ok(remote) => remote.watch(&self.pid, monitor, sink),
            Err(error) => {
                let reason = match error {
                    CallError::NoProcess(_) => ExitReason::NoProcess,
                    _ => ExitReason::NodeDown(self.pid.node.clone()),
                };
                sink.down(monitor, &self.pid, &reason);
                Unwatch::new(|| {})
            }
        }
    }
}

/// The errors of a call that can keep a cast from being sent.
fn as_cast(error: CallError) -> CastError {
    match error {
        CallError::NoProcess(callee) => CastError::NoProcess(callee),
        CallError::Stale { process, asked, now } => CastError::Stale { process, asked, now },
        CallError::Full(node) => CastError::Full(node),
        CallError::Unencodable(reason) => CastError::Unencodable(reason),
        CallError::TooLarge { bytes, bytes_max } => CastError::TooLarge { bytes, bytes_max },
        CallError::Unreachable(node) | CallError::Disconnected(node) => {
            CastError::Unreachable(node)
        }
        CallError::Draining => CastError::Draining,
        other => CastError::Unencodable(other.to_string()),
    }
}
