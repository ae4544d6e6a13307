//! What nodes say about processes. Pure.
//!
//! ```text
//! call      | 1 | flags | request (8) | process (8) | kind (8) | remaining ms (4) | [trace (25)] | body
//! cast      | 2 | flags | process (8) | kind (8) | [trace (25)] | body
//! reply     | 3 | request (8) | body
//! failure   | 4 | request (8) | failure
//! consumed  | 5 | process (8) | count (4)
//! whereis   | 6 | request (8) | name                        answered by a reply: process and kind
//! monitor   | 7 | monitor (8) | process (8)
//! demonitor | 8 | monitor (8)
//! down      | 9 | monitor (8) | process (8) | reason
//! gone      | 10 | process (8)                             for casts to a process that is not there
//! ```
//!
//! Numbers are little-endian; failures and reasons are postcard. The receiver's incarnation is not
//! repeated here: the connection's handshake has agreed on it, and a sender takes the connection
//! to the very life of the node that a `Pid` names.

use std::time::Duration;

use purlin_core::{NodeId, TraceContext};
use purlin_process::{CallError, Callee, ExitReason, MessageKind, MonitorId, ProcessId};
use serde::{Deserialize, Serialize};

/// After how many casts taken out of a mailbox their sender is told.
///
/// At three million casts a second these are 47,000 messages of 13 bytes back; a window must be
/// larger than this, since up to so many stay untold.
pub const RETURN_EVERY: u32 = 64;

const CALL: u8 = 1;
const CAST: u8 = 2;
const REPLY: u8 = 3;
const FAILURE: u8 = 4;
const CONSUMED: u8 = 5;
const WHEREIS: u8 = 6;
const MONITOR: u8 = 7;
const DEMONITOR: u8 = 8;
const DOWN: u8 = 9;
const GONE: u8 = 10;

const FLAG_TRACE: u8 = 1;

/// One message, borrowed from the bytes it came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message<'a> {
    /// A call.
    Call {
        /// The caller's number for it.
        request: u64,
        /// To whom.
        process: ProcessId,
        /// What.
        kind: MessageKind,
        /// How long the caller still waits.
        remaining: Duration,
        /// The trace it belongs to.
        trace: Option<TraceContext>,
        /// The encoded message.
        body: &'a [u8],
    },
    /// A cast.
    Cast {
        /// To whom.
        process: ProcessId,
        /// What.
        kind: MessageKind,
        /// The trace it belongs to.
        trace: Option<TraceContext>,
        /// The encoded message.
        body: &'a [u8],
    },
    /// The reply to a call.
    Reply {
        /// To which.
        request: u64,
        /// The encoded reply.
        body: &'a [u8],
    },
    /// That there will be no reply.
    Failure {
        /// To which call.
        request: u64,
        /// Why, encoded.
        failure: &'a [u8],
    },
    /// That casts were taken out of a mailbox.
    Consumed {
        /// Whose.
        process: ProcessId,
        /// How many more.
        count: u32,
    },
    /// A question for a name.
    Whereis {
        /// The asker's number for it.
        request: u64,
        /// The name.
        name: &'a str,
    },
    /// The wish to hear of a process's end.
    Monitor {
        /// The wisher's number for it.
        monitor: MonitorId,
        /// Whose end.
        process: ProcessId,
    },
    /// That the wish is withdrawn.
    Demonitor {
        /// Which.
        monitor: MonitorId,
    },
    /// That a process ended.
    Down {
        /// Which wish this fulfils.
        monitor: MonitorId,
        /// Whose end.
        process: ProcessId,
        /// Why, encoded.
        reason: &'a [u8],
    },
    /// That casts reach a process no more: it is not there, and never will be again.
    Gone {
        /// Which.
        process: ProcessId,
    },
}

impl<'a> Message<'a> {
    /// Reads one message; `None` if it makes no sense.
    #[must_use]
    pub fn read(bytes: &'a [u8]) -> Option<Self> {
        let (&tag, bytes) = bytes.split_first()?;
        Some(match tag {
            CALL => {
                let (&flags, bytes) = bytes.split_first()?;
                let (request, bytes) = number(bytes)?;
                let (process, bytes) = number(bytes)?;
                let (kind, bytes) = number(bytes)?;
                let (millis, bytes) = bytes.split_first_chunk()?;
                let (trace, body) = trace(flags, bytes)?;
                Self::Call {
                    request,
                    process: ProcessId(process),
                    kind: MessageKind(kind),
                    remaining: Duration::from_millis(u64::from(u32::from_le_bytes(*millis))),
                    trace,
                    body,
                }
            }
            CAST => {
                let (&flags, bytes) = bytes.split_first()?;
                let (process, bytes) = number(bytes)?;
                let (kind, bytes) = number(bytes)?;
                let (trace, body) = trace(flags, bytes)?;
                let (process, kind) = (ProcessId(process), MessageKind(kind));
                Self::Cast { process, kind, trace, body }
            }
            REPLY => {
                let (request, body) = number(bytes)?;
                Self::Reply { request, body }
            }
            FAILURE => {
                let (request, failure) = number(bytes)?;
                Self::Failure { request, failure }
            }
            CONSUMED => {
                let (process, bytes) = number(bytes)?;
                let count = u32::from_le_bytes(bytes.try_into().ok()?);
                Self::Consumed { process: ProcessId(process), count }
            }
            WHEREIS => {
                let (request, name) = number(bytes)?;
                Self::Whereis { request, name: std::str::from_utf8(name).ok()? }
            }
            MONITOR => {
                let (monitor, bytes) = number(bytes)?;
                let (process, rest) = number(bytes)?;
                rest.is_empty().then_some(())?;
                Self::Monitor { monitor: MonitorId(monitor), process: ProcessId(process) }
            }
            DEMONITOR => {
                let (monitor, rest) = number(bytes)?;
                rest.is_empty().then_some(())?;
                Self::Demonitor { monitor: MonitorId(monitor) }
            }
            DOWN => {
                let (monitor, bytes) = number(bytes)?;
                let (process, reason) = number(bytes)?;
                Self::Down { monitor: MonitorId(monitor), process: ProcessId(process), reason }
            }
            GONE => {
                let (process, rest) = number(bytes)?;
                rest.is_empty().then_some(())?;
                Self::Gone { process: ProcessId(process) }
            }
            _ => return None,
        })
    }

    /// Writes the message in pieces; `body` may be left empty and written afterwards instead.
    pub fn write(&self, mut put: impl FnMut(&[u8])) {
        match *self {
            Self::Call { request, process, kind, remaining, trace, body } => {
                put(&[CALL, flags(trace.as_ref())]);
                put(&request.to_le_bytes());
                put(&process.0.to_le_bytes());
                put(&kind.0.to_le_bytes());
                let millis = u32::try_from(remaining.as_millis()).unwrap_or(u32::MAX);
                put(&millis.to_le_bytes());
                put_trace(&mut put, trace.as_ref());
                put(body);
            }
            Self::Cast { process, kind, trace, body } => {
                put(&[CAST, flags(trace.as_ref())]);
                put(&process.0.to_le_bytes());
                put(&kind.0.to_le_bytes());
                put_trace(&mut put, trace.as_ref());
                put(body);
            }
            Self::Reply { request, body } => {
                put(&[REPLY]);
                put(&request.to_le_bytes());
                put(body);
            }
            Self::Failure { request, failure } => {
                put(&[FAILURE]);
                put(&request.to_le_bytes());
                put(failure);
            }
            Self::Consumed { process, count } => {
                put(&[CONSUMED]);
                put(&process.0.to_le_bytes());
                put(&count.to_le_bytes());
            }
            Self::Whereis { request, name } => {
                put(&[WHEREIS]);
                put(&request.to_le_bytes());
                put(name.as_bytes());
            }
            Self::Monitor { monitor, process } => {
                put(&[MONITOR]);
                put(&monitor.0.to_le_bytes());
                put(&process.0.to_le_bytes());
            }
            Self::Demonitor { monitor } => {
                put(&[DEMONITOR]);
                put(&monitor.0.to_le_bytes());
            }
            Self::Down { monitor, process, reason } => {
                put(&[DOWN]);
                put(&monitor.0.to_le_bytes());
                put(&process.0.to_le_bytes());
                put(reason);
            }
            Self::Gone { process } => {
                put(&[GONE]);
                put(&process.0.to_le_bytes());
            }
        }
    }
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (number, rest) = bytes.split_first_chunk()?;
    Some((u64::from_le_bytes(*number), rest))
}

fn flags(trace: Option<&TraceContext>) -> u8 {
    if trace.is_some() { FLAG_TRACE } else { 0 }
}

fn put_trace(put: &mut impl FnMut(&[u8]), trace: Option<&TraceContext>) {
    if let Some(trace) = trace {
        put(&trace.trace_id);
        put(&trace.parent_id);
        put(&[trace.flags]);
    }
}

/// Flags this release does not know are ignored, so that a later one may add some.
fn trace(flags: u8, bytes: &[u8]) -> Option<(Option<TraceContext>, &[u8])> {
    if flags & FLAG_TRACE == 0 {
        return Some((None, bytes));
    }
    let (trace_id, bytes) = bytes.split_first_chunk()?;
    let (parent_id, bytes) = bytes.split_first_chunk()?;
    let (&flags, bytes) = bytes.split_first()?;
    Some((Some(TraceContext { trace_id: *trace_id, parent_id: *parent_id, flags }), bytes))
}

/// An exit reason on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// See [`ExitReason::Normal`].
    Normal,
    /// See [`ExitReason::Shutdown`].
    Shutdown,
    /// See [`ExitReason::Stopped`].
    Stopped(String),
    /// See [`ExitReason::Killed`].
    Killed,
    /// See [`ExitReason::Panicked`].
    Panicked(String),
    /// See [`ExitReason::Failed`].
    Failed(String),
    /// See [`ExitReason::NoProcess`].
    NoProcess,
    /// See [`ExitReason::NodeDown`].
    NodeDown(NodeId),
}

impl From<&ExitReason> for Reason {
    fn from(reason: &ExitReason) -> Self {
        match reason {
            ExitReason::Normal => Self::Normal,
            ExitReason::Shutdown => Self::Shutdown,
            ExitReason::Stopped(why) => Self::Stopped(why.as_ref().to_owned()),
            ExitReason::Killed => Self::Killed,
            ExitReason::Panicked(text) => Self::Panicked(text.as_ref().to_owned()),
            ExitReason::Failed(error) => Self::Failed(error.as_ref().to_owned()),
            ExitReason::NoProcess => Self::NoProcess,
            ExitReason::NodeDown(node) => Self::NodeDown(node.clone()),
            // A reason this release does not send; its text says all there is.
            other => Self::Failed(other.to_string()),
        }
    }
}

impl From<Reason> for ExitReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Normal => Self::Normal,
            Reason::Shutdown => Self::Shutdown,
            Reason::Stopped(why) => Self::Stopped(why.into()),
            Reason::Killed => Self::Killed,
            Reason::Panicked(text) => Self::Panicked(text.into()),
            Reason::Failed(error) => Self::Failed(error.into()),
            Reason::NoProcess => Self::NoProcess,
            Reason::NodeDown(node) => Self::NodeDown(node),
        }
    }
}

/// Why a call from another node has no reply, on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// See [`CallError::NoProcess`].
    NoProcess(u64),
    /// See [`CallError::Overloaded`]: messages, bytes and their limits.
    Overloaded(u64, u64, u64, u64),
    /// See [`CallError::Expired`].
    Expired,
    /// See [`CallError::ExitedBefore`].
    ExitedBefore(Reason),
    /// See [`CallError::ExitedDuring`].
    ExitedDuring(Reason),
    /// See [`CallError::UnknownMessage`].
    UnknownMessage(u64, String),
    /// See [`CallError::Undecodable`].
    Undecodable(u64, String),
    /// See [`CallError::Draining`].
    Draining,
    /// The reply could not be sent: the callee did run.
    ReplyUnsendable(String),
}

impl Failure {
    /// What to tell the caller elsewhere.
    #[must_use]
    pub fn of(error: &CallError) -> Self {
        match error {
            CallError::NoProcess(Callee::Id(process)) => Self::NoProcess(process.0),
            CallError::NoProcess(Callee::Name(_)) => Self::NoProcess(0),
            CallError::Overloaded { messages, bytes, messages_max, bytes_max } => Self::Overloaded(
                *messages as u64,
                *bytes as u64,
                *messages_max as u64,
                *bytes_max as u64,
            ),
            CallError::Expired(_) => Self::Expired,
            CallError::ExitedBefore(reason) => Self::ExitedBefore(reason.into()),
            CallError::ExitedDuring(reason) => Self::ExitedDuring(reason.into()),
            CallError::UnknownMessage { kind, server } => {
                Self::UnknownMessage(kind.0, server.clone())
            }
            CallError::Undecodable { kind, reason } => Self::Undecodable(kind.0, reason.clone()),
            CallError::Draining => Self::Draining,
            // Not errors of a callee; that the callee may have acted is the safe reading.
            other => Self::ReplyUnsendable(other.to_string()),
        }
    }

    /// What the caller here is told about its call that would have waited `within`.
    #[must_use]
    pub fn into_error(self, within: Duration) -> CallError {
        let size = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        match self {
            Self::NoProcess(process) => CallError::NoProcess(Callee::Id(ProcessId(process))),
            Self::Overloaded(messages, bytes, messages_max, bytes_max) => CallError::Overloaded {
                messages: size(messages),
                bytes: size(bytes),
                messages_max: size(messages_max),
                bytes_max: size(bytes_max),
            },
            Self::Expired => CallError::Expired(within),
            Self::ExitedBefore(reason) => CallError::ExitedBefore(reason.into()),
            Self::ExitedDuring(reason) => CallError::ExitedDuring(reason.into()),
            Self::UnknownMessage(kind, server) => {
                CallError::UnknownMessage { kind: MessageKind(kind), server }
            }
            Self::Undecodable(kind, reason) => {
                CallError::Undecodable { kind: MessageKind(kind), reason }
            }
            Self::Draining => CallError::Draining,
            Self::ReplyUnsendable(text) => CallError::ReplyUndecodable(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn traces() -> impl Strategy<Value = Option<TraceContext>> {
        let trace = any::<([u8; 16], [u8; 8], u8)>()
            .prop_map(|(trace_id, parent_id, flags)| TraceContext { trace_id, parent_id, flags });
        proptest::option::of(trace)
    }

    fn written(message: &Message<'_>) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.write(|part| bytes.extend_from_slice(part));
        bytes
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            a: u64,
            b: u64,
            c: u64,
            millis: u32,
            trace in traces(),
            body: Vec<u8>,
            name: String,
        ) {
            let (process, kind, monitor) = (ProcessId(a), MessageKind(b), MonitorId(b));
            let remaining = Duration::from_millis(u64::from(millis));
            for message in [
                Message::Call { request: c, process, kind, remaining, trace, body: &body },
                Message::Cast { process, kind, trace, body: &body },
                Message::Reply { request: c, body: &body },
                Message::Failure { request: c, failure: &body },
                Message::Consumed { process, count: millis },
                Message::Whereis { request: c, name: &name },
                Message::Monitor { monitor, process },
                Message::Demonitor { monitor },
                Message::Down { monitor, process, reason: &body },
                Message::Gone { process },
            ] {
                let bytes = written(&message);
                prop_assert_eq!(Message::read(&bytes), Some(message));
            }
        }

        #[test]
        fn any_bytes_are_a_message_or_nothing_and_never_a_panic(bytes: Vec<u8>) {
            if let Some(message) = Message::read(&bytes) {
                drop(written(&message));
            }
        }

        #[test]
        fn a_message_cut_short_is_never_read_as_another_kind(process: u64, cut in 0_usize..17) {
            let message = Message::Monitor { monitor: MonitorId(1), process: ProcessId(process) };
            let bytes = written(&message);
            prop_assert_eq!(Message::read(&bytes[..cut]), None);
        }
    }

    #[test]
    fn a_failure_reaches_the_caller_as_what_it_was() {
        let within = Duration::from_secs(5);
        for error in [
            CallError::NoProcess(Callee::Id(ProcessId(7))),
            CallError::Overloaded { messages: 1, bytes: 2, messages_max: 3, bytes_max: 4 },
            CallError::Expired(within),
            CallError::ExitedBefore(ExitReason::Panicked("x".into())),
            CallError::ExitedDuring(ExitReason::stopped("y")),
            CallError::UnknownMessage { kind: MessageKind(9), server: "Cart".to_owned() },
            CallError::Undecodable { kind: MessageKind(9), reason: "short".to_owned() },
            CallError::Draining,
        ] {
            let wire = postcard::to_stdvec(&Failure::of(&error)).unwrap();
            let back: Failure = postcard::from_bytes(&wire).unwrap();
            assert_eq!(back.into_error(within), error);
        }
    }
}
