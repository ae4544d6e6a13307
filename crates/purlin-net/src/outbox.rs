//! What waits to be written on one connection, and who writes it: the pure half of the send path.
//!
//! A message is encoded straight into the pending buffer. Then the question is who writes: waking
//! a task for every message costs more than the message, and a system call for every message
//! costs more still. So a sender whose reply is awaited writes at once when nobody else is
//! writing; everything else gathers until the buffer is worth a system call, a reader has finished
//! its batch, or the flusher task gets its turn. [`Outbox`] decides, the connection acts.

use crate::{
    error::{Bound, Cause},
    frame::{self, FLAG_FIRST, FLAG_LAST, HEADER_BYTES, Header, Kind, ServiceId},
    handshake::{FRAME_BYTES_LEAST, Window},
    payload::PayloadBuf,
};

/// From this many pending bytes on, a sender writes itself even if nobody waits for its message:
/// four full TLS records, about the size where a system call stops mattering (measured).
const WRITE_NOW_BYTES: usize = 64 << 10;

/// Buffers above this size are given back after a burst.
const KEEP_BYTES: usize = 1 << 20;

/// Whether somebody waits for an answer to the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// Write at once if the connection is idle.
    Now,
    /// Gather with others; written within a turn of the scheduler.
    Batch,
}

/// Who is writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// There is no socket yet.
    Detached,
    /// Nobody, and nothing is pending.
    Idle,
    /// The flusher was woken and will.
    Scheduled,
    /// Somebody holds the session and writes.
    Active,
    /// The socket is full; the flusher waits for it.
    Blocked,
}

/// What the sender has to do after an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing: somebody else will write it.
    Done,
    /// Wake the flusher.
    Wake,
    /// Write, as the only writer.
    Write,
}

/// The outbox refused an append; nothing was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    Full { bound: Bound, bytes: usize, max: usize },
    TooLarge { bytes: usize, max: usize },
    Encode(String),
    Closed(Cause),
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) backlog_bytes_max: usize,
    pub(crate) payload_bytes_max: usize,
    pub(crate) frame_bytes_max: usize,
    pub(crate) credit_bytes: u64,
}

/// Counts since the connection was made.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sent {
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    pub(crate) full: u64,
}

#[derive(Debug)]
pub(crate) struct Outbox {
    pending: Vec<u8>,
    /// Bytes handed to the writer and not yet on the socket.
    writing_bytes: usize,
    bounds: Bounds,
    /// Payload bytes sent and not yet given back by the receiver.
    unconsumed_bytes: u64,
    writer: Writer,
    corked: bool,
    /// The last batch received held several messages: more senders than one are at work, and the
    /// first of them should not write alone.
    is_busy: bool,
    closed: Option<Cause>,
    sent: Sent,
}

impl Outbox {
    pub(crate) fn new(bounds: Bounds) -> Self {
        Self {
            pending: Vec::new(),
            writing_bytes: 0,
            bounds,
            unconsumed_bytes: 0,
            writer: Writer::Detached,
            corked: false,
            is_busy: false,
            closed: None,
            sent: Sent::default(),
        }
    }

    /// Appends one message for a service.
    #[inline]
    pub(crate) fn append(
        &mut self,
        service: ServiceId,
        urgency: Urgency,
        write: impl FnOnce(&mut PayloadBuf<'_>),
    ) -> Result<Step, Refused> {
        self.check_room()?;
        let start = self.pending.len();
        // An unwinding writer must not leave half a message in front of the next one.
        let mut rollback = Rollback { buffer: &mut self.pending, start, armed: true };
        rollback.buffer.extend_from_slice(&[0; HEADER_BYTES]);
        let mut payload = PayloadBuf::new(rollback.buffer);
        write(&mut payload);
        let (bytes, failure) = (payload.len(), payload.take_failure());
        rollback.armed = false;
        drop(rollback);
        if let Some(text) = failure {
            self.pending.truncate(start);
            return Err(Refused::Encode(text));
        }
        if bytes > self.bounds.payload_bytes_max {
            self.pending.truncate(start);
            return Err(Refused::TooLarge { bytes, max: self.bounds.payload_bytes_max });
        }
        if self.backlog_bytes() > self.bounds.backlog_bytes_max {
            self.pending.truncate(start);
            self.sent.full += 1;
            return Err(self.full(Bound::Backlog));
        }
        self.finish(start, service, bytes);
        self.unconsumed_bytes += bytes as u64;
        self.sent.frames += 1;
        self.sent.bytes += bytes as u64;
        Ok(self.after_append(urgency))
    }

    fn check_room(&mut self) -> Result<(), Refused> {
        if let Some(cause) = &self.closed {
            return Err(Refused::Closed(cause.clone()));
        }
        // One message may overshoot: a credit smaller than a message would block it for ever.
        let bound = if self.unconsumed_bytes >= self.bounds.credit_bytes {
            Bound::Credit
        } else if self.backlog_bytes() >= self.bounds.backlog_bytes_max {
            Bound::Backlog
        } else {
            return Ok(());
        };
        self.sent.full += 1;
        Err(self.full(bound))
    }

    fn full(&self, bound: Bound) -> Refused {
        let (bytes, max) = match bound {
            Bound::Backlog => (self.backlog_bytes(), self.bounds.backlog_bytes_max),
            Bound::Credit => (
                usize::try_from(self.unconsumed_bytes).unwrap_or(usize::MAX),
                usize::try_from(self.bounds.credit_bytes).unwrap_or(usize::MAX),
            ),
        };
        Refused::Full { bound, bytes, max }
    }

    /// Fills in the header, or cuts a large message into fragments.
    fn finish(&mut self, start: usize, service: ServiceId, bytes: usize) {
        // Before the peer has said what it accepts, only the least that every peer accepts is safe.
        let frame_bytes_max = match self.writer {
            Writer::Detached => FRAME_BYTES_LEAST as usize,
            Writer::Idle | Writer::Scheduled | Writer::Active | Writer::Blocked => {
                self.bounds.frame_bytes_max
            }
        };
        if bytes <= frame_bytes_max {
            let payload_bytes = u32::try_from(bytes).expect("at most frame_bytes_max, a u32");
            let header = Header { kind: Kind::Data, service, flags: 0, payload_bytes };
            self.pending[start..start + HEADER_BYTES].copy_from_slice(&header.to_bytes());
            return;
        }
        let message = self.pending.split_off(start + HEADER_BYTES);
        self.pending.truncate(start);
        let total = u32::try_from(bytes).expect("at most payload_bytes_max, checked at bind");
        // The first piece leaves room for the total in front of it.
        let (head, tail) = message.split_at(frame_bytes_max - 4);
        let first = [&total.to_le_bytes()[..], head].concat();
        frame::append(&mut self.pending, Kind::Fragment, service, FLAG_FIRST, &first);
        let mut pieces = tail.chunks(frame_bytes_max).peekable();
        while let Some(piece) = pieces.next() {
            let flags = if pieces.peek().is_none() { FLAG_LAST } else { 0 };
            frame::append(&mut self.pending, Kind::Fragment, service, flags, piece);
        }
    }

    /// Appends a frame of the connection itself. Not bounded by backlog or credit: there is at most
    /// one such frame per half credit window, keepalive interval or refused frame.
    pub(crate) fn append_own(
        &mut self,
        kind: Kind,
        service: ServiceId,
        payload: &[u8],
        urgency: Urgency,
    ) -> Step {
        if self.closed.is_some() {
            return Step::Done;
        }
        frame::append(&mut self.pending, kind, service, 0, payload);
        self.after_append(urgency)
    }

    #[inline]
    fn after_append(&mut self, urgency: Urgency) -> Step {
        let worth_it = self.pending.len() >= WRITE_NOW_BYTES;
        match self.writer {
            Writer::Detached | Writer::Active | Writer::Blocked => Step::Done,
            Writer::Idle
                if worth_it || (urgency == Urgency::Now && !self.corked && !self.is_busy) =>
            {
                self.writer = Writer::Active;
                Step::Write
            }
            Writer::Scheduled if worth_it => {
                self.writer = Writer::Active;
                Step::Write
            }
            Writer::Idle if !self.corked => {
                self.writer = Writer::Scheduled;
                Step::Wake
            }
            Writer::Idle | Writer::Scheduled => Step::Done,
        }
    }

    /// A reader begins a batch: what its handlers append is written once, at the end.
    pub(crate) fn cork(&mut self) {
        self.corked = true;
    }

    /// The reader is done with a batch of `messages`. Whether it has to write.
    pub(crate) fn uncork(&mut self, messages: usize) -> Step {
        self.corked = false;
        self.is_busy = messages > 1;
        if self.writer == Writer::Idle && !self.pending.is_empty() {
            self.writer = Writer::Active;
            return Step::Write;
        }
        Step::Done
    }

    /// There is a socket now, and this is what the peer accepts.
    pub(crate) fn attach(&mut self, theirs: Window) -> Step {
        assert_eq!(self.writer, Writer::Detached, "a connection gets one socket in its life");
        let Window { frame_bytes_max, payload_bytes_max, credit_bytes } = theirs;
        self.bounds.credit_bytes = u64::from(credit_bytes);
        self.bounds.payload_bytes_max =
            self.bounds.payload_bytes_max.min(payload_bytes_max as usize);
        self.bounds.frame_bytes_max = self.bounds.frame_bytes_max.min(frame_bytes_max as usize);
        if self.pending.is_empty() {
            self.writer = Writer::Idle;
            return Step::Done;
        }
        self.writer = Writer::Scheduled;
        Step::Wake
    }

    /// The session itself has bytes to write, such as a key update.
    pub(crate) fn wake_for_session(&mut self) -> Step {
        if self.writer != Writer::Idle {
            return Step::Done;
        }
        self.writer = Writer::Scheduled;
        Step::Wake
    }

    pub(crate) fn has_room(&self) -> bool {
        self.backlog_bytes() < self.bounds.backlog_bytes_max
    }

    pub(crate) fn backlog_bytes_max(&self) -> usize {
        self.bounds.backlog_bytes_max
    }

    /// The flusher's turn has come: whether there is anything for it to do.
    pub(crate) fn begin_turn(&mut self) -> bool {
        let mine = matches!(self.writer, Writer::Scheduled | Writer::Blocked);
        if mine {
            self.writer = Writer::Active;
        }
        mine
    }

    /// The writer takes what is pending, in exchange for an empty buffer. `false`, and the writer
    /// is idle, when there is nothing.
    pub(crate) fn take(&mut self, batch: &mut Vec<u8>) -> bool {
        assert_eq!(self.writer, Writer::Active, "only the writer takes");
        assert!(batch.is_empty(), "the last batch is written: {} bytes left", batch.len());
        if batch.capacity() > KEEP_BYTES && self.pending.len() < KEEP_BYTES / 4 {
            *batch = Vec::new();
        }
        self.writing_bytes = 0;
        if self.pending.is_empty() {
            self.writer = Writer::Idle;
            return false;
        }
        std::mem::swap(&mut self.pending, batch);
        self.writing_bytes = batch.len();
        true
    }

    /// The writer gives way with bytes left to write; the flusher goes on.
    pub(crate) fn give_way(&mut self, left_bytes: usize) {
        assert_eq!(self.writer, Writer::Active, "only the writer gives way");
        self.writing_bytes = left_bytes;
        self.writer = Writer::Scheduled;
    }

    /// The socket took no more; the flusher waits for it.
    pub(crate) fn block(&mut self, left_bytes: usize) {
        assert_eq!(self.writer, Writer::Active, "only the writer blocks");
        self.writing_bytes = left_bytes;
        self.writer = Writer::Blocked;
    }

    pub(crate) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The receiver consumed `bytes`. `false` when it claims more than was sent.
    pub(crate) fn give_back(&mut self, bytes: u64) -> bool {
        let Some(left) = self.unconsumed_bytes.checked_sub(bytes) else {
            return false;
        };
        self.unconsumed_bytes = left;
        true
    }

    /// Ends the connection; returns how many bytes will never be written. `false` as the second
    /// part when it was closed before.
    pub(crate) fn close(&mut self, cause: Cause) -> (usize, bool) {
        if self.closed.is_some() {
            return (0, false);
        }
        let lost = self.backlog_bytes();
        self.closed = Some(cause);
        self.pending = Vec::new();
        self.writing_bytes = 0;
        (lost, true)
    }

    pub(crate) fn closed(&self) -> Option<&Cause> {
        self.closed.as_ref()
    }

    pub(crate) fn backlog_bytes(&self) -> usize {
        self.pending.len() + self.writing_bytes
    }

    pub(crate) fn credit_left(&self) -> u64 {
        self.bounds.credit_bytes.saturating_sub(self.unconsumed_bytes)
    }

    pub(crate) fn sent(&self) -> Sent {
        self.sent
    }
}

struct Rollback<'a> {
    buffer: &'a mut Vec<u8>,
    start: usize,
    armed: bool,
}

impl Drop for Rollback<'_> {
    fn drop(&mut self) {
        if self.armed {
            self.buffer.truncate(self.start);
        }
    }
}

#[cfg(test)]
mod tests;
