//! Remote calls on the wire. Pure.
//!
//! ```text
//! request | 1 | flags | call (8) | method (8) | remaining ms (4) | [trace (25)] | body
//! cast    | 2 | flags | method (8) | [trace (25)] | body
//! reply   | 3 | call (8) | body
//! failure | 4 | call (8) | code | text
//! cancel  | 5 | call (8)
//! ```

use std::{fmt, time::Duration};

use purlin_core::TraceContext;

use crate::payload::PayloadBuf;

const REQUEST: u8 = 1;
const CAST: u8 = 2;
const REPLY: u8 = 3;
const FAILURE: u8 = 4;
const CANCEL: u8 = 5;

const FLAG_TRACE: u8 = 1;

/// A method's number on the wire: a hash of its name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MethodId(pub u64);

impl MethodId {
    /// The number of the method called `name` (FNV-1a, 64 bits).
    #[must_use]
    pub const fn of(name: &str) -> Self {
        let bytes = name.as_bytes();
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut at = 0;
        while at < bytes.len() {
            hash ^= bytes[at] as u64;
            hash = hash.wrapping_mul(0x0000_0100_0000_01b3);
            at += 1;
        }
        Self(hash)
    }
}

impl fmt::Debug for MethodId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Why a call failed at the callee, as sent to the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum FailureCode {
    /// Nobody serves the method there.
    NoMethod = 1,
    /// The request could not be decoded.
    Undecodable = 2,
    /// The handler refused and did nothing.
    Rejected = 3,
    /// The handler refused and did nothing; another node may accept.
    RejectedHere = 4,
    /// Too many handlers run.
    Overloaded = 5,
    /// The handler panicked.
    Panicked = 6,
    /// The handler ended without an answer.
    Abandoned = 7,
    /// The handler ran, its reply could not be sent.
    ReplyUnsendable = 8,
    /// The handler was stopped at the caller's deadline.
    Deadline = 9,
    /// The process called does not exist.
    NoProcess = 10,
    /// The process called is a later life than the one meant.
    Stale = 11,
    /// The node is being drained and takes no new calls.
    Draining = 12,
    /// A code of a later version.
    Other = 255,
}

impl FailureCode {
    fn from_wire(byte: u8) -> Self {
        match byte {
            1 => Self::NoMethod,
            2 => Self::Undecodable,
            3 => Self::Rejected,
            4 => Self::RejectedHere,
            5 => Self::Overloaded,
            6 => Self::Panicked,
            7 => Self::Abandoned,
            8 => Self::ReplyUnsendable,
            9 => Self::Deadline,
            10 => Self::NoProcess,
            11 => Self::Stale,
            12 => Self::Draining,
            _ => Self::Other,
        }
    }
}

/// What requests and casts have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Which method.
    pub method: MethodId,
    /// The caller's trace.
    pub trace: Option<TraceContext>,
}

impl Head {
    fn flags(&self) -> u8 {
        if self.trace.is_some() { FLAG_TRACE } else { 0 }
    }

    fn put_trace(&self, payload: &mut PayloadBuf<'_>) {
        if let Some(trace) = self.trace {
            payload.put(&trace.trace_id);
            payload.put(&trace.parent_id);
            payload.put_u8(trace.flags);
        }
    }
}

/// Writes everything of a request but its body.
#[inline]
pub(crate) fn request(payload: &mut PayloadBuf<'_>, call: u64, within: Duration, head: &Head) {
    // Rounded up: a callee that stops a little late is better than one that never begins.
    let millis = within.as_nanos().div_ceil(1_000_000);
    let millis = u32::try_from(millis).unwrap_or(u32::MAX);
    let mut fixed = [0; 22];
    fixed[0] = REQUEST;
    fixed[1] = head.flags();
    fixed[2..10].copy_from_slice(&call.to_le_bytes());
    fixed[10..18].copy_from_slice(&head.method.0.to_le_bytes());
    fixed[18..22].copy_from_slice(&millis.to_le_bytes());
    payload.put(&fixed);
    head.put_trace(payload);
}

/// Writes everything of a cast but its body.
#[inline]
pub(crate) fn cast(payload: &mut PayloadBuf<'_>, head: &Head) {
    let mut fixed = [0; 10];
    fixed[0] = CAST;
    fixed[1] = head.flags();
    fixed[2..10].copy_from_slice(&head.method.0.to_le_bytes());
    payload.put(&fixed);
    head.put_trace(payload);
}

/// Writes everything of a reply but its body.
#[inline]
pub(crate) fn reply(payload: &mut PayloadBuf<'_>, call: u64) {
    let mut fixed = [0; 9];
    fixed[0] = REPLY;
    fixed[1..9].copy_from_slice(&call.to_le_bytes());
    payload.put(&fixed);
}

pub(crate) fn failure(payload: &mut PayloadBuf<'_>, call: u64, code: FailureCode, text: &str) {
    payload.put_u8(FAILURE);
    payload.put(&call.to_le_bytes());
    payload.put_u8(code as u8);
    let end = text.char_indices().map(|(at, _)| at).find(|at| *at >= 512).unwrap_or(text.len());
    payload.put(&text.as_bytes()[..end]);
}

pub(crate) fn cancel(payload: &mut PayloadBuf<'_>, call: u64) {
    payload.put_u8(CANCEL);
    payload.put(&call.to_le_bytes());
}

/// A message of the call protocol, borrowed from its frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Message<'a> {
    /// Run this and answer.
    Request {
        /// The caller's number for it.
        call: u64,
        /// How long the caller still waits.
        within: Duration,
        /// Method and trace.
        head: Head,
        /// The encoded request.
        body: &'a [u8],
    },
    /// Run this.
    Cast {
        /// Method and trace.
        head: Head,
        /// The encoded message.
        body: &'a [u8],
    },
    /// The answer.
    Reply {
        /// The caller's number.
        call: u64,
        /// The encoded reply.
        body: &'a [u8],
    },
    /// Why there is no answer.
    Failure {
        /// The caller's number; zero for casts.
        call: u64,
        /// Why.
        code: FailureCode,
        /// For people.
        text: &'a str,
    },
    /// The caller waits no more.
    Cancel {
        /// The caller's number.
        call: u64,
    },
}

/// The bytes are no message of the call protocol; they are counted and dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("rpc message of kind {kind:?} with {bytes} bytes is malformed")]
pub struct WireError {
    /// The first byte, if any.
    pub kind: Option<u8>,
    /// How long it is.
    pub bytes: usize,
}

impl<'a> Message<'a> {
    /// Reads a frame's payload.
    ///
    /// # Errors
    /// [`WireError`].
    #[inline]
    pub fn decode(payload: &'a [u8]) -> Result<Self, WireError> {
        Self::parse(payload)
            .ok_or_else(|| WireError { kind: payload.first().copied(), bytes: payload.len() })
    }

    #[inline]
    fn parse(payload: &'a [u8]) -> Option<Self> {
        let (&kind, rest) = payload.split_first()?;
        Some(match kind {
            REQUEST => {
                let (&flags, rest) = rest.split_first()?;
                let (call, rest) = number(rest)?;
                let (method, rest) = number(rest)?;
                let (millis, rest) = rest.split_first_chunk::<4>()?;
                let (trace, body) = trace(flags, rest)?;
                Self::Request {
                    call,
                    within: Duration::from_millis(u64::from(u32::from_le_bytes(*millis))),
                    head: Head { method: MethodId(method), trace },
                    body,
                }
            }
            CAST => {
                let (&flags, rest) = rest.split_first()?;
                let (method, rest) = number(rest)?;
                let (trace, body) = trace(flags, rest)?;
                Self::Cast { head: Head { method: MethodId(method), trace }, body }
            }
            REPLY => {
                let (call, body) = number(rest)?;
                Self::Reply { call, body }
            }
            FAILURE => {
                let (call, rest) = number(rest)?;
                let (&code, text) = rest.split_first()?;
                let text = std::str::from_utf8(text).ok()?;
                Self::Failure { call, code: FailureCode::from_wire(code), text }
            }
            CANCEL => Self::Cancel { call: number(rest)?.0 },
            _ => return None,
        })
    }

    /// The call's number from the first bytes of a request that was refused as a frame.
    #[must_use]
    pub fn call_of_head(head: &[u8]) -> Option<u64> {
        (head.first() == Some(&REQUEST)).then(|| number(head.get(2..)?).map(|(call, _)| call))?
    }
}

fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first_chunk::<8>()?;
    Some((u64::from_le_bytes(*head), rest))
}

fn trace(flags: u8, bytes: &[u8]) -> Option<(Option<TraceContext>, &[u8])> {
    if flags & FLAG_TRACE == 0 {
        return Some((None, bytes));
    }
    let (trace_id, rest) = bytes.split_first_chunk::<16>()?;
    let (parent_id, rest) = rest.split_first_chunk::<8>()?;
    let (&flags, rest) = rest.split_first()?;
    Some((Some(TraceContext { trace_id: *trace_id, parent_id: *parent_id, flags }), rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut PayloadBuf<'_>)) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut PayloadBuf::new(&mut bytes));
        bytes
    }

    fn traces() -> impl Strategy<Value = Option<TraceContext>> {
        prop::option::of(
            any::<([u8; 16], [u8; 8], u8)>().prop_map(|(trace_id, parent_id, flags)| {
                TraceContext { trace_id, parent_id, flags }
            }),
        )
    }

    #[test]
    fn a_method_has_the_number_of_its_name() {
        // The published FNV-1a test vector for "a".
        assert_eq!(MethodId::of("a"), MethodId(0xaf63_dc4c_8601_ec8c));
    }

    #[test]
    fn remaining_time_is_rounded_up() {
        let head = Head { method: MethodId(1), trace: None };
        let bytes = written(|p| request(p, 1, Duration::from_micros(1), &head));
        let Ok(Message::Request { within, .. }) = Message::decode(&bytes) else { panic!() };
        assert_eq!(within, Duration::from_millis(1));
    }

    #[test]
    fn long_texts_are_cut_between_characters() {
        let bytes = written(|p| failure(p, 7, FailureCode::Panicked, &"é".repeat(500)));
        let Ok(Message::Failure { text, .. }) = Message::decode(&bytes) else { panic!() };
        assert_eq!(text.len(), 512);
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire(
            call: u64, method: u64, millis: u32, trace in traces(),
            body in prop::collection::vec(any::<u8>(), 0..50)
        ) {
            let head = Head { method: MethodId(method), trace };
            let within = Duration::from_millis(u64::from(millis));
            let bytes = written(|p| { request(p, call, within, &head); p.put(&body); });
            prop_assert_eq!(Message::call_of_head(&bytes), Some(call));
            prop_assert_eq!(
                Message::decode(&bytes),
                Ok(Message::Request { call, within, head, body: &body })
            );
            let bytes = written(|p| { cast(p, &head); p.put(&body); });
            prop_assert_eq!(Message::call_of_head(&bytes), None);
            prop_assert_eq!(Message::decode(&bytes), Ok(Message::Cast { head, body: &body }));
            let bytes = written(|p| { reply(p, call); p.put(&body); });
            prop_assert_eq!(Message::decode(&bytes), Ok(Message::Reply { call, body: &body }));
            let bytes = written(|p| cancel(p, call));
            prop_assert_eq!(Message::decode(&bytes), Ok(Message::Cancel { call }));
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            drop(Message::decode(&bytes));
            let _call = Message::call_of_head(&bytes);
        }
    }
}
