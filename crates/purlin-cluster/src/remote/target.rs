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
    peer: Option<Peer>,
    /// The connection they went out on; what another one carried is lost and counts no more.
    connection: u64,
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
        let window = Window { peer: None, connection: 0, outstanding: 0, full: None };
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
        if window.connection != connection {
            return;
        }
        window.outstanding = window.outstanding.saturating_sub(count);
        drop(window);
        self.room.notify_waiters();
    }

    pub(crate) fn disconnected(&self, connection: u64) {
        let mut window = self.window.lock();
        if window.connection == connection {
            window.connection = 0;
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
        let mut window = self.window.lock();
        let peer = match &window.peer {
            Some(peer) => peer.clone(),
            None => {
                let peer = remote.transport.peer(&self.pid.node);
                let peer = peer.ok_or_else(|| remote.absent(&self.pid))?;
                window.peer = Some(peer.clone());
                peer
            }
        };
        // Its connections stay open for what is under way. A call begun now would be refused at
        // best, and at worst be cut off without anybody knowing whether it ran.
        if peer.is_released() {
            return Err(CallError::Unreachable(self.pid.node.clone()));
        }
        Ok(peer)
    }

    fn path(&self, remote: &Inner) -> Result<ReturnPath, CallError> {
        let path = self.peer(remote)?.path(ChannelId::RPC, self.key());
        path.map_err(|error| self.failed(remote, error))
    }

    /// What a failed send means; the peer is looked up afresh next time, it may have been
    /// replaced.
    fn failed(&self, remote: &Inner, error: SendError) -> CallError {
        if matches!(error, SendError::NotConnected { .. } | SendError::NotAPeer(_)) {
            self.window.lock().peer = None;
        }
        remote.unsent(error, &self.pid)
    }

    /// Counts one more cast on `connection`; false if the window is full.
    fn admit(&self, connection: u64, window_max: u32) -> bool {
        let mut window = self.window.lock();
        if window.connection != connection {
            window.connection = connection;
            window.outstanding = 0;
        }
        let has_room = window.outstanding < window_max;
        if has_room {
            window.outstanding += 1;
        } else {
            window.full = None;
        }
        has_room
    }

    fn unadmit(&self, connection: u64, full: Option<Bound>) {
        let mut window = self.window.lock();
        window.full = full;
        if window.connection == connection {
            window.outstanding = window.outstanding.saturating_sub(1);
        }
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
        let path = self.path(&remote)?;
        let now = remote.transport.clock().now();
        let begun = remote
            .pending
            .begin(slot, path.connection(), now, within)
            .ok_or_else(|| CallError::Full(self.pid.node.clone()))?;
        let request = begun.request;
        if begun.watch
            && let Some(remote) = remote.me.upgrade()
        {
            let processes = remote.processes.clone();
            processes.watch_deadlines(remote);
        }
        let head = Message::Call {
            request,
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
            remote.pending.forget(request);
            return Err(self.failed(&remote, error));
        }
        count(&remote.counts.calls);
        Ok(request)
    }

    fn cancel(&self, request: u64) {
        if let Some(remote) = self.remote.upgrade() {
            remote.pending.forget(request);
        }
    }

    fn cast(&self, message: Outbound<'_>) -> Result<(), CastError> {
        let remote = self.remote().map_err(as_cast)?;
        let path = self.path(&remote).map_err(as_cast)?;
        let connection = path.connection();
        if !self.admit(connection, remote.limits.window) {
            count(&remote.counts.window_full);
            return Err(CastError::Full(self.pid.node.clone()));
        }
        let head = Message::Cast {
            process: self.pid.process,
            kind: message.kind,
            trace: message.trace.copied(),
            body: &[],
        };
        let sent = path.send(SERVICE, Urgency::Batch, |payload| {
            head.write(|part| payload.put(part));
            payload.append(|buffer| message.message.encode(buffer));
        });
        match sent {
            Ok(()) => {
                count(&remote.counts.casts);
                Ok(())
            }
            Err(error) => {
                let full = match error {
                    SendError::Full { bound, .. } => Some(bound),
                    _ => None,
                };
                self.unadmit(connection, full);
                Err(as_cast(self.failed(&remote, error)))
            }
        }
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
