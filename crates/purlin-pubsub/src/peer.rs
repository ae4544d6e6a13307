//! One peer as pubsub sees it: a port to send through, and counts of what was sent.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::future::BoxFuture;
use purlin_core::NodeId;

use crate::interest::InterestFrame;

/// Why something was not sent. Nothing of it left this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsent {
    /// The peer's credit or the backlog is used up.
    Full,
    /// There is no connection, or it ended, or the peer takes no message as large as this.
    Unreachable,
}

/// The way to one peer: the transport in a node, a queue in tests.
pub(crate) trait PeerPort: Send + Sync + fmt::Debug {
    /// Sends a message as one frame of `head` and `payload`, in order with all others.
    fn send_message(&self, head: &[u8], payload: &[u8]) -> Result<(), Unsent>;

    /// As [`PeerPort::send_message`], but waits for room up to `within`.
    fn send_message_within<'a>(
        &'a self,
        head: &'a [u8],
        payload: &'a [u8],
        within: Duration,
    ) -> BoxFuture<'a, Result<(), Unsent>>;

    /// Sends an interest frame on `control`, in order with all others.
    fn send_interest(&self, frame: &[u8]) -> Result<(), Unsent>;

    /// Whether the peer is connected.
    fn is_up(&self) -> bool;
}

/// Who is to be connected: the transport in a node.
pub(crate) trait Expected: Send + Sync + fmt::Debug {
    /// The peers that are connected, or about to be.
    fn peers(&self) -> Vec<NodeId>;
}

/// See the module.
#[derive(Debug)]
pub(crate) struct PeerLink {
    pub(crate) node: NodeId,
    pub(crate) port: Box<dyn PeerPort>,
    counts: Arc<LinkCounts>,
}

#[derive(Debug, Default)]
struct LinkCounts {
    sent: AtomicU64,
    sent_bytes: AtomicU64,
    full: AtomicU64,
    unreachable: AtomicU64,
}

impl PeerLink {
    pub(crate) fn new(node: NodeId, port: Box<dyn PeerPort>) -> Self {
        Self { node, port, counts: Arc::default() }
    }

    /// The same peer through another port.
    pub(crate) fn through(&self, port: Box<dyn PeerPort>) -> Self {
        Self { node: self.node.clone(), port, counts: Arc::clone(&self.counts) }
    }

    pub(crate) fn send_message(&self, head: &[u8], payload: &[u8]) -> Result<(), Unsent> {
        let result = self.port.send_message(head, payload);
        self.count(result, head.len() + payload.len());
        result
    }

    pub(crate) async fn send_message_within(
        &self,
        head: &[u8],
        payload: &[u8],
        within: Duration,
    ) -> Result<(), Unsent> {
        let result = self.port.send_message_within(head, payload, within).await;
        self.count(result, head.len() + payload.len());
        result
    }

    /// True if the connection took it. Interest heals by itself, so nobody needs to know why not.
    pub(crate) fn send_interest(&self, frame: &InterestFrame) -> bool {
        self.port.send_interest(&frame.encode()).is_ok()
    }

    fn count(&self, result: Result<(), Unsent>, bytes: usize) {
        match result {
            Ok(()) => {
                self.counts.sent.fetch_add(1, Ordering::Relaxed);
                self.counts.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            Err(Unsent::Full) => {
                self.counts.full.fetch_add(1, Ordering::Relaxed);
            }
            Err(Unsent::Unreachable) => {
                self.counts.unreachable.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Messages and bytes sent, and messages refused because of a bound or a missing connection.
    pub(crate) fn counts(&self) -> [u64; 4] {
        let LinkCounts { sent, sent_bytes, full, unreachable } = &*self.counts;
        [sent, sent_bytes, full, unreachable].map(|count| count.load(Ordering::Relaxed))
    }
}
