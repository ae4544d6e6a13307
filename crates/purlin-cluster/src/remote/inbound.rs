//! Receiving: from a connection's reader into mailboxes, and answers back.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use purlin_net::{ChannelId, Incoming, PartitionKey, Peer, ReturnPath, SendError, Urgency};
use purlin_process::{
    Answer, AnyProcess, CallError, ConsumeRoute, Consumed, Inbound, MessageKind, Pid, ProcessId,
    ReplyRoute, ReplySlot, ReplyTo, Target,
};
use tokio::sync::oneshot;

use super::{
    Inner, SERVICE, count,
    wire::{Failure, Message, RETURN_EVERY},
};

/// What is remembered about one connection: the way back, and whom it sends casts to.
pub(crate) struct Route {
    path: ReturnPath,
    remote: std::sync::Weak<Inner>,
    inlets: Mutex<Inlets>,
    unanswered: Arc<AtomicUsize>,
}

/// Processes that a connection sent to lately, so that each message does not look them up anew.
#[derive(Default)]
struct Inlets {
    by_process: BTreeMap<ProcessId, Inlet>,
    /// When so many are remembered, those that have ended are forgotten.
    tidy_at: usize,
}

struct Inlet {
    process: AnyProcess,
    window: Arc<WindowReturn>,
}

/// Tells a sender how far its casts to one process got.
struct WindowReturn {
    path: ReturnPath,
    process: ProcessId,
    untold: AtomicU32,
}

impl ConsumeRoute for WindowReturn {
    fn consumed(&self, amount: u64) {
        let amount = u32::try_from(amount).unwrap_or(u32::MAX);
        let untold = self.untold.fetch_add(amount, Ordering::AcqRel).saturating_add(amount);
        if untold < RETURN_EVERY {
            return;
        }
        let count = self.untold.swap(0, Ordering::AcqRel);
        if count == 0 {
            return;
        }
        let told = Message::Consumed { process: self.process, count };
        let sent =
            self.path.send(SERVICE, Urgency::Batch, |payload| told.write(|part| payload.put(part)));
        if matches!(sent, Err(SendError::Full { .. })) {
            // The backlog has no room: tell it with the next ones.
            self.untold.fetch_add(count, Ordering::AcqRel);
        }
        // Otherwise the connection has ended, and the sender's window with it.
    }
}

impl ReplyRoute for Route {
    fn answer(&self, request: u64, answer: Answer<'_>) {
        self.send_answer(request, answer);
        // In this order: a drain goes on to look for unwritten answers when this is zero.
        self.unanswered.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Route {
    fn send_answer(&self, request: u64, answer: Answer<'_>) {
        let sent = match answer {
            Answer::Reply(value) => self.path.send(SERVICE, Urgency::Now, |payload| {
                Message::Reply { request, body: &[] }.write(|part| payload.put(part));
                payload.append(|buffer| value.encode(buffer));
            }),
            Answer::Failed(error) => self.fail(request, &Failure::of(error)),
        };
        let Err(error) = sent else { return };
        if let Some(remote) = self.remote.upgrade() {
            count(&remote.counts.answers_unsent);
        }
        if matches!(error, SendError::TooLarge { .. } | SendError::Encode(_)) {
            // If this does not leave either, the caller's deadline ends the call.
            drop(self.fail(request, &Failure::ReplyUnsendable(error.to_string())));
        }
    }

    fn fail(&self, request: u64, failure: &Failure) -> Result<(), SendError> {
        self.path.send(SERVICE, Urgency::Now, |payload| {
            Message::Failure { request, failure: &[] }.write(|part| payload.put(part));
            payload.encode(failure);
        })
    }

    fn tell_gone(&self, process: ProcessId) {
        let gone = Message::Gone { process };
        // If it does not leave, the next cast is another occasion.
        drop(
            self.path.send(SERVICE, Urgency::Batch, |payload| gone.write(|part| payload.put(part))),
        );
    }

    /// Hands `deliver` what is known about a process that this connection sends to; `None` if there
    /// is no such process. Under the lock of this connection, which only its own reader takes.
    fn with_inlet<T>(
        &self,
        remote: &Inner,
        process: ProcessId,
        deliver: impl FnOnce(&Inlet) -> T,
    ) -> Option<T> {
        let mut inlets = self.inlets.lock();
        if let Some(inlet) = inlets.by_process.get(&process) {
            return Some(deliver(inlet));
        }
        let found = remote.processes.get(process)?;
        if inlets.by_process.len() >= inlets.tidy_at {
            inlets.by_process.retain(|_, inlet| inlet.process.is_alive());
            inlets.tidy_at = 2 * inlets.by_process.len() + 64;
        }
        let window = WindowReturn { path: self.path.clone(), process, untold: AtomicU32::new(0) };
        let inlet = Inlet { process: found, window: Arc::new(window) };
        Some(deliver(inlets.by_process.entry(process).or_insert(inlet)))
    }
}

impl Inner {
    /// Handles one frame, on the connection's reader task.
    pub(crate) fn receive(&self, frame: Incoming<'_>) {
        let Some(message) = Message::read(frame.payload()) else {
            count(&self.counts.malformed);
            tracing::debug!(peer = %frame.peer().node(), bytes = frame.payload().len(), "a message about processes makes no sense");
            return;
        };
        match message {
            Message::Call { request, process, kind, remaining, trace, body } => {
                let route = self.route(frame.path());
                // Each `ReplyTo` answers exactly once, dropped or not.
                self.unanswered.fetch_add(1, Ordering::SeqCst);
                let reply = ReplyTo::new(Arc::clone(&route) as Arc<dyn ReplyRoute>, request);
                let deadline = Some(self.transport.clock().now() + remaining);
                let inbound = Inbound { reply: Some(reply), consumed: None, deadline, trace };
                // The caller is told by the route, and the refusal counted by the processes.
                drop(self.deliver(&route, process, kind, body, inbound));
            }
            Message::Cast { process, kind, trace, body } => {
                let route = self.route(frame.path());
                let inbound = Inbound { trace, ..Inbound::default() };
                let delivered = self.deliver(&route, process, kind, body, inbound);
                if let Err(error) = delivered {
                    count(&self.counts.casts_refused);
                    if matches!(error, CallError::NoProcess(_)) {
                        route.tell_gone(process);
                    }
                    tracing::debug!(peer = %frame.peer().node(), %process, %error, "a cast was refused");
                }
            }
            Message::Reply { request, body } => {
                if !self.pending.end(request, |_| Ok(body)) {
                    count(&self.counts.answers_late);
                }
            }
            Message::Failure { request, failure } => self.failed(request, failure),
            Message::Consumed { process, count } => {
                let pid = Pid { node: frame.peer().node().clone(), process };
                let target = self.targets.lock().get(&pid).and_then(std::sync::Weak::upgrade);
                if let Some(target) = target {
                    target.consumed(frame.path().connection(), count);
                }
            }
            Message::Gone { process } => {
                let pid = Pid { node: frame.peer().node().clone(), process };
                let target = self.targets.lock().get(&pid).and_then(std::sync::Weak::upgrade);
                if let Some(target) = target {
                    target.gone();
                }
            }
            Message::Whereis { request, name } => self.answer_whereis(frame.path(), request, name),
            Message::Monitor { monitor, process } => {
                self.watched_by(frame.peer(), monitor, process);
            }
            Message::Demonitor { monitor } => self.unwatched_by(frame.peer(), monitor),
            Message::Down { monitor, process, reason } => {
                let pid = Pid { node: frame.peer().node().clone(), process };
                self.ended(monitor, &pid, reason);
            }
        }
    }

    fn deliver(
        &self,
        route: &Route,
        process: ProcessId,
        kind: MessageKind,
        body: &[u8],
        inbound: Inbound,
    ) -> Result<(), CallError> {
        let mut inbound = Some(inbound);
        let mut take = || inbound.take().expect("it is delivered once");
        let delivered = route.with_inlet(self, process, |inlet| {
            let mut inbound = take();
            if inbound.reply.is_none() {
                let window = Arc::clone(&inlet.window) as Arc<dyn ConsumeRoute>;
                inbound.consumed = Some(Consumed::new(window, 1));
            }
            self.processes.deliver_to(&inlet.process, kind, body, inbound)
        });
        delivered.unwrap_or_else(|| {
            // Refused and counted in the usual way.
            let incarnation = self.processes.node().incarnation;
            self.processes.deliver(incarnation, Target::Id(process), kind, body, take())
        })
    }

    fn failed(&self, request: u64, failure: &[u8]) {
        let failure = postcard::from_bytes::<Failure>(failure);
        let ended = self.pending.end(request, |within| {
            Err(match failure {
                Ok(failure) => failure.into_error(within),
                // A later release may fail in ways this one does not know.
                Err(error) => CallError::ReplyUndecodable(error.to_string()),
            })
        });
        if !ended {
            count(&self.counts.answers_late);
        }
    }

    fn route(&self, path: &ReturnPath) -> Arc<Route> {
        let connection = path.connection();
        let known = |routes: &[(u64, Arc<Route>)]| {
            let found = routes.iter().find(|(id, _)| *id == connection);
            found.map(|(_, route)| Arc::clone(route))
        };
        if let Some(route) = known(&self.routes.read()) {
            return route;
        }
        let mut routes = self.routes.write();
        if let Some(route) = known(&routes) {
            return route;
        }
        let route = Arc::new(Route {
            path: path.clone(),
            remote: std::sync::Weak::clone(&self.me),
            inlets: Mutex::new(Inlets { tidy_at: 64, ..Inlets::default() }),
            unanswered: Arc::clone(&self.unanswered),
        });
        // A connection that closed meanwhile is never told again.
        routes.retain(|(_, route)| !route.path.is_closed());
        routes.push((connection, Arc::clone(&route)));
        route
    }

    fn answer_whereis(&self, path: &ReturnPath, request: u64, name: &str) {
        let found = self.processes.registry().whereis(name);
        let found = found.filter(AnyProcess::is_remote);
        let answer = found.map(|process| (process.id(), process.kind().to_owned()));
        let sent = path.send(SERVICE, Urgency::Now, |payload| {
            Message::Reply { request, body: &[] }.write(|part| payload.put(part));
            payload.encode(&answer);
        });
        if sent.is_err() {
            count(&self.counts.answers_unsent);
        }
    }

    /// Asks another node for a name.
    pub(crate) async fn ask_whereis(
        &self,
        peer: &Peer,
        name: &str,
        within: Duration,
    ) -> Result<Option<(ProcessId, String)>, CallError> {
        type Asker = oneshot::Sender<Result<Vec<u8>, CallError>>;
        struct Asked(Mutex<Option<Asker>>);
        impl ReplySlot for Asked {
            fn complete(&self, answer: Result<&[u8], CallError>) {
                if let Some(asker) = self.0.lock().take() {
                    // The asker may have gone.
                    drop(asker.send(answer.map(<[u8]>::to_vec)));
                }
            }
        }
        struct Forget<'a>(&'a Inner, u64);
        impl Drop for Forget<'_> {
            fn drop(&mut self) {
                self.0.pending.forget(self.1);
            }
        }
        let node = Pid { node: peer.node().clone(), process: ProcessId(0) };
        let path = peer.path(ChannelId::RPC, PartitionKey::ZERO);
        let path = path.map_err(|error| self.unsent(error, &node))?;
        let (tell, told) = oneshot::channel();
        let slot = Arc::new(Asked(Mutex::new(Some(tell))));
        let now = self.transport.clock().now();
        let begun = self.pending.begin(slot, path.connection(), now, within);
        let begun = begun.ok_or_else(|| CallError::Full(node.node.clone()))?;
        let forget = Forget(self, begun.request);
        if begun.watch
            && let Some(me) = self.me.upgrade()
        {
            self.processes.watch_deadlines(me);
        }
        path.send(SERVICE, Urgency::Now, |payload| {
            Message::Whereis { request: begun.request, name }.write(|part| payload.put(part));
        })
        .map_err(|error| self.unsent(error, &node))?;
        let answer = told.await.unwrap_or_else(|_| Err(CallError::Disconnected(node.node.clone())));
        drop(forget);
        postcard::from_bytes(&answer?)
            .map_err(|error| CallError::ReplyUndecodable(error.to_string()))
    }
}
