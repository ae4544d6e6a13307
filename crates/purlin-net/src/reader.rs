//! The reader: one task per connection that turns bytes into calls of services.
//!
//! One read may carry hundreds of frames. They are decrypted together and handed out inline, in
//! order; the connection is corked meanwhile, so that the answers of a batch leave in one write.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use crate::{
    connection::{Connection, nanos},
    error::Cause,
    fault::{Direction, Lane},
    frame::{ErrorCode, ErrorReport, Farewell, Frame, Kind, ServiceId},
    network::ReadHalf,
    peer::Peer,
    reassembly::Reassembly,
    service::{Incoming, ReturnPath},
    transport::Services,
};

const READ_BYTES_MIN: usize = 16 << 10;
/// Enough for a socket buffer; larger reads gain nothing (measured).
const READ_BYTES_MAX: usize = 256 << 10;

/// With this much waiting to be written, pings and refused frames are not answered any more.
const OWN_BACKLOG_BYTES: u64 = 64 << 10;

pub(crate) struct Reader {
    pub(crate) connection: Arc<Connection>,
    pub(crate) peer: Peer,
    pub(crate) half: ReadHalf,
    /// Decrypted and not yet used.
    pub(crate) plain: Vec<u8>,
    pub(crate) frame_bytes_max: u32,
    pub(crate) payload_bytes_max: usize,
}

/// How a batch of frames ended.
enum Batch {
    /// So many messages were handed out.
    Delivered(usize),
    /// The connection cannot go on.
    Broken(Cause, Option<Farewell>),
}

/// State that lives as long as the connection.
struct Desk {
    path: ReturnPath,
    reassembly: Reassembly,
    /// Services that got something in this batch, a bit each.
    touched: [u64; 4],
}

impl Reader {
    pub(crate) async fn run(mut self) {
        let mut desk = Desk {
            path: ReturnPath(Arc::clone(&self.connection)),
            reassembly: Reassembly::new(self.payload_bytes_max),
            touched: [0; 4],
        };
        let mut records = vec![0; READ_BYTES_MIN];
        let mut at_end = false;
        loop {
            match self.deliver(&mut desk) {
                Batch::Delivered(count) => self.finish_batch(&mut desk, count).await,
                Batch::Broken(cause, farewell) => {
                    self.end_batch(&mut desk);
                    return self.connection.close(cause, farewell);
                }
            }
            if at_end {
                return self.connection.close(Cause::Reset, None);
            }
            let bytes = match self.half.read(&mut records).await {
                Ok(0) => return self.connection.close(Cause::Reset, None),
                Ok(bytes) => bytes,
                Err(error) => return self.connection.close(Cause::of_io(&error), None),
            };
            if !self.connection.around().faults.is_active() {
                self.connection.heard();
            }
            match self.connection.decrypt(&records[..bytes], &mut self.plain) {
                Ok(end) => at_end = end,
                Err(cause) => return self.connection.close(cause, None),
            }
            if bytes == records.len() && bytes < READ_BYTES_MAX {
                records.resize(bytes * 2, 0);
            }
            if self.connection.around().faults.is_active() {
                self.hold_back().await;
            }
        }
    }

    async fn hold_back(&self) {
        let lane = Lane::Channel(self.connection.channel);
        let faults = &self.connection.around().faults;
        let fate = faults.fate(self.peer.name(), lane, Direction::Incoming);
        if !fate.delay.is_zero() {
            tokio::time::sleep(fate.delay).await;
        }
    }

    async fn finish_batch(&self, desk: &mut Desk, count: usize) {
        if count == 0 {
            return;
        }
        self.end_batch(desk);
        if count > 1 && !self.connection.has_pending() {
            // Whoever was woken by this batch will likely send: one write for all of them.
            tokio::task::yield_now().await;
        }
        self.connection.uncork(count);
    }

    /// Tells the services that got something that their batch is complete.
    fn end_batch(&self, desk: &mut Desk) {
        let services = self.peer.services();
        for word in 0..desk.touched.len() {
            let mut bits = std::mem::take(&mut desk.touched[word]);
            while bits != 0 {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                let id = word * 64 + usize::try_from(bit).expect("a bit of 64");
                if let Some(service) = &services[id] {
                    service.on_batch_end(&self.peer);
                }
            }
        }
    }

    /// Hands out all complete frames.
    fn deliver(&mut self, desk: &mut Desk) -> Batch {
        let plain = std::mem::take(&mut self.plain);
        let (mut at, mut count, mut consumed) = (0, 0_usize, 0_u64);
        let mut received_bytes = 0_u64;
        let services = self.peer.services();
        let outcome = loop {
            let (frame, used) = match Frame::decode(&plain[at..], self.frame_bytes_max) {
                Ok(Some(found)) => found,
                Ok(None) => break Batch::Delivered(count),
                Err(error) => {
                    self.connection.around().counters.frames_malformed(1);
                    tracing::warn!(peer = %self.peer.node(), %error, "malformed frame");
                    let cause = Cause::Malformed(error.to_string());
                    break Batch::Broken(cause, Some(Farewell::Malformed));
                }
            };
            if count == 0 {
                self.connection.cork();
            }
            at += used;
            count += 1;
            if self.connection.around().faults.is_active() {
                if self.is_lost(&frame, &mut consumed) {
                    continue;
                }
                // With faults about, only what survives them is a sign of life.
                self.connection.heard();
            }
            match self.on_frame(desk, &services, frame) {
                Ok((received, given_back)) => {
                    consumed += given_back;
                    received_bytes += received;
                }
                Err((cause, farewell)) => break Batch::Broken(cause, farewell),
            }
        };
        if count > 0 {
            let c = &self.connection;
            c.received_frames.fetch_add(count as u64, std::sync::atomic::Ordering::Relaxed);
            c.received_bytes.fetch_add(received_bytes, std::sync::atomic::Ordering::Relaxed);
        }
        if consumed > 0 {
            self.connection.return_credit(consumed);
        }
        self.plain = plain;
        self.plain.drain(..at);
        if self.plain.is_empty() && self.plain.capacity() > 4 * READ_BYTES_MAX {
            self.plain = Vec::new();
        }
        outcome
    }

    /// Handles one frame; returns how many payload bytes came and how many are consumed already.
    fn on_frame(
        &self,
        desk: &mut Desk,
        services: &Services,
        frame: Frame<'_>,
    ) -> Result<(u64, u64), (Cause, Option<Farewell>)> {
        let malformed = |text: String| {
            self.connection.around().counters.frames_malformed(1);
            tracing::warn!(peer = %self.peer.node(), error = text, "malformed frame");
            (Cause::Malformed(text), Some(Farewell::Malformed))
        };
        let violation = |text: String| {
            self.connection.around().counters.violations(1);
            tracing::warn!(peer = %self.peer.node(), error = text, "protocol violation");
            (Cause::Malformed(text), Some(Farewell::Violation))
        };
        let number = || frame.number().map_err(|error| malformed(error.to_string()));
        let mut traffic = (0, 0);
        match frame.header.kind {
            Kind::Data => {
                let bytes = frame.payload.len() as u64;
                if !self.connection.on_received(bytes, self.payload_bytes_max as u64) {
                    return Err(violation("credit exceeded".to_owned()));
                }
                let kept =
                    self.hand_over(desk, services, frame.header.service, frame.payload, None);
                traffic = (bytes, if kept { 0 } else { bytes });
            }
            Kind::Fragment => {
                let whole = desk.reassembly.push(frame.header, frame.payload);
                if let Some(whole) = whole.map_err(|error| violation(error.to_string()))? {
                    let bytes = whole.len() as u64;
                    if !self.connection.on_received(bytes, self.payload_bytes_max as u64) {
                        return Err(violation("credit exceeded".to_owned()));
                    }
                    let service = frame.header.service;
                    let kept = self.hand_over(desk, services, service, &whole, Some(&whole));
                    traffic = (bytes, if kept { 0 } else { bytes });
                }
            }
            Kind::Credit => {
                if !self.connection.on_credit(number()?) {
                    return Err(violation("more credit returned than was used".to_owned()));
                }
            }
            // A peer that pings and does not read makes us queue no answers without end.
            Kind::Ping if self.connection.backlog_and_credit().0 >= OWN_BACKLOG_BYTES => {}
            Kind::Ping => self.connection.send_own(Kind::Pong, ServiceId(0), frame.payload),
            Kind::Pong => {
                let now = nanos(self.connection.around().clock.now());
                if let Some(nanos) = now.checked_sub(number()?) {
                    self.peer.on_round_trip(std::time::Duration::from_nanos(nanos));
                }
            }
            Kind::Error => {
                self.connection.around().counters.errors_received(1);
                let report = ErrorReport::decode(frame.payload)
                    .map_err(|error| malformed(error.to_string()))?;
                if let Some(service) = &services[usize::from(frame.header.service.0)] {
                    service.on_refused(&desk.path, report);
                }
            }
            Kind::Goodbye => {
                let cause = match Farewell::from_wire(frame.payload.first().copied()) {
                    Farewell::Closing => Cause::Closed,
                    Farewell::Replaced => Cause::Replaced,
                    Farewell::Malformed => {
                        Cause::Malformed("the peer calls our frames malformed".to_owned())
                    }
                    Farewell::Violation => {
                        Cause::Malformed("the peer says we broke the protocol".to_owned())
                    }
                };
                return Err((cause, None));
            }
        }
        Ok(traffic)
    }

    /// Calls the service; whether it kept the credit.
    fn hand_over(
        &self,
        desk: &mut Desk,
        services: &Services,
        id: ServiceId,
        payload: &[u8],
        whole: Option<&bytes::Bytes>,
    ) -> bool {
        let Some(service) = &services[usize::from(id.0)] else {
            self.connection.around().counters.unknown_service(1);
            let report = ErrorReport::encode(ErrorCode::UnknownService, payload);
            // A peer that floods an unknown service makes us queue no answers without end.
            if self.connection.backlog_and_credit().0 < OWN_BACKLOG_BYTES {
                self.connection.send_own(Kind::Error, id, &report);
            }
            return false;
        };
        desk.touched[usize::from(id.0) / 64] |= 1 << (id.0 % 64);
        let mut credit_taken = false;
        let incoming = Incoming {
            peer: &self.peer,
            path: &desk.path,
            payload,
            whole,
            credit_taken: &mut credit_taken,
        };
        let handled = catch_unwind(AssertUnwindSafe(|| service.on_frame(incoming)));
        if handled.is_err() {
            self.connection.around().counters.service_panics(1);
            tracing::error!(service = id.0, "a service panicked on a frame");
        }
        credit_taken
    }

    fn is_lost(&self, frame: &Frame<'_>, consumed: &mut u64) -> bool {
        let faults = &self.connection.around().faults;
        // Credit is the link's own bookkeeping: losing it would not be loss but a wedged link.
        let can_be_lost = match frame.header.kind {
            Kind::Data | Kind::Ping | Kind::Pong => true,
            Kind::Fragment | Kind::Credit | Kind::Error | Kind::Goodbye => false,
        };
        let lane = Lane::Channel(self.connection.channel);
        if !can_be_lost || !faults.fate(self.peer.name(), lane, Direction::Incoming).lost {
            return false;
        }
        self.connection.around().counters.faults_lost(1);
        if frame.header.kind == Kind::Data {
            let bytes = frame.payload.len() as u64;
            let _fits = self.connection.on_received(bytes, self.payload_bytes_max as u64);
            *consumed += bytes;
        }
        true
    }
}
