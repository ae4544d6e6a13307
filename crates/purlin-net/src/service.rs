//! Services: who gets the frames.

use std::{fmt, sync::Arc};

use bytes::Bytes;
use purlin_core::NodeId;

use crate::{
    ChannelId,
    connection::Connection,
    error::{Cause, SendError},
    frame::{ErrorReport, ServiceId},
    outbox::Urgency,
    payload::PayloadBuf,
    peer::Peer,
};

/// Receives the messages sent to one [`ServiceId`].
///
/// Methods are called from the connection's reader task, in the order of arrival, and hold up that
/// connection (no other) while they run: decide, hand over, return. A service that answers at once
/// uses [`Incoming::path`]; the answers of one batch leave in one write.
pub trait Service: Send + Sync + 'static {
    /// A message arrived.
    fn on_frame(&self, frame: Incoming<'_>);

    /// All messages of one read were delivered: the moment to wake whoever waits, once.
    fn on_batch_end(&self, peer: &Peer) {
        let _ = peer;
    }

    /// The peer could not use a message of this service.
    fn on_refused(&self, path: &ReturnPath, report: ErrorReport<'_>) {
        let _ = (path, report);
    }

    /// A connection ended; nothing more comes from it and nothing sent on it is answered.
    /// `was_open` is `false` when it was never established, so that nothing left this node.
    fn on_close(&self, path: &ReturnPath, was_open: bool, cause: &Cause) {
        let _ = (path, was_open, cause);
    }
}

/// A message on its way into a [`Service`].
pub struct Incoming<'a> {
    pub(crate) peer: &'a Peer,
    pub(crate) path: &'a ReturnPath,
    pub(crate) payload: &'a [u8],
    /// Present when the payload is already an owned buffer, for instance reassembled.
    pub(crate) whole: Option<&'a Bytes>,
    pub(crate) credit_taken: &'a mut bool,
}

impl fmt::Debug for Incoming<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Incoming({} bytes from {})", self.payload.len(), self.peer.node())
    }
}

impl<'a> Incoming<'a> {
    /// Who sent it.
    #[must_use]
    pub fn peer(&self) -> &'a Peer {
        self.peer
    }

    /// Which channel it came on.
    #[must_use]
    pub fn channel(&self) -> ChannelId {
        self.path.channel()
    }

    /// The message, borrowed from the receive buffer.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// The message as an owned buffer: a copy for small messages, none for reassembled ones.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        self.whole.map_or_else(|| Bytes::copy_from_slice(self.payload), Bytes::clone)
    }

    /// The connection it came on, for an answer that takes the same way back.
    #[must_use]
    pub fn path(&self) -> &'a ReturnPath {
        self.path
    }

    /// Takes the message's credit: the sender does not get these bytes back until the token is
    /// dropped. Without this call they go back when [`Service::on_frame`] returns. The second
    /// token for one message is empty.
    #[must_use]
    pub fn take_credit(&mut self) -> Credit {
        let bytes = if *self.credit_taken { 0 } else { self.payload.len() as u64 };
        *self.credit_taken = true;
        Credit { connection: Arc::clone(&self.path.0), bytes }
    }
}

/// The right to let the sender send as many bytes again, given back on drop.
///
/// Hold it until the message is really consumed; that is what slows a sender down to the pace of
/// its receiver. Holding it for ever stops that sender's channel, nobody else's.
pub struct Credit {
    connection: Arc<Connection>,
    bytes: u64,
}

impl Credit {
    /// How many bytes it stands for.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes one token of two for the same connection; hands `other` back if it is for another.
    /// For services that hold a batch as a whole.
    ///
    /// # Errors
    /// `other`, when it belongs to another connection.
    pub fn absorb(&mut self, mut other: Self) -> Result<(), Self> {
        if !Arc::ptr_eq(&self.connection, &other.connection) {
            return Err(other);
        }
        self.bytes += std::mem::take(&mut other.bytes);
        Ok(())
    }
}

impl fmt::Debug for Credit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credit({} bytes)", self.bytes)
    }
}

impl Drop for Credit {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.connection.return_credit(self.bytes);
        }
    }
}

/// A connection as seen by services: the way back for answers. Cheap to clone; it does not keep
/// the connection open.
#[derive(Clone)]
pub struct ReturnPath(pub(crate) Arc<Connection>);

impl fmt::Debug for ReturnPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReturnPath({} to {})", self.0.id, self.0.node)
    }
}

impl ReturnPath {
    /// The connection's number on this node; never used again for another.
    #[must_use]
    pub fn connection(&self) -> u64 {
        self.0.id
    }

    /// Who is at the other end.
    #[must_use]
    pub fn node(&self) -> &NodeId {
        &self.0.node
    }

    /// Which channel it belongs to.
    #[must_use]
    pub fn channel(&self) -> ChannelId {
        self.0.channel
    }

    /// Whether the connection ended; what it carried is answered no more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_closed()
    }

    /// Sends a message on this very connection.
    ///
    /// # Errors
    /// [`SendError`]; nothing left this node.
    #[inline]
    pub fn send(
        &self,
        service: ServiceId,
        urgency: Urgency,
        write: impl FnOnce(&mut PayloadBuf<'_>),
    ) -> Result<(), SendError> {
        self.0.send(service, urgency, write)
    }
}
