//! Pubsub on the transport: frames in, frames out, peers that come and go.

use std::{
    cell::RefCell,
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::{FutureExt, future::BoxFuture};
use purlin_core::{Clock, Deadline, NodeId};
use purlin_net::{
    Cause, ChannelId, Credit, Incoming, PartitionKey, Peer, PeerEvent, ReturnPath, SendError,
    Service, ServiceId, Transport, Urgency, WeakTransport,
};
use tokio::sync::broadcast::{self, error::RecvError};

use crate::{
    driver,
    hub::{Accepted, Hub},
    inbox::Hold,
    limits::Limits,
    message::Message,
    peer::{Expected, PeerPort, Unsent},
    pubsub::PubSub,
    registry::Slot,
    wire,
};

/// Messages come on `stream`, interest on `control`.
const SERVICE: ServiceId = ServiceId(3);

/// One key for everything: a publisher's messages stay in order even across topics.
const KEY: PartitionKey = PartitionKey::ZERO;

/// The most messages gathered before they are delivered, whatever the size of a read.
const BATCH_MAX: usize = 1_024;

/// Why pubsub cannot start. Correct the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The largest message would not fit through the `stream` channel.
    #[error(
        "message_bytes_max of {bytes} with {head} for topic and headers exceeds the stream channel's limit {limit}"
    )]
    MessageTooLarge {
        /// What the limits allow.
        bytes: usize,
        /// Room for topic and headers.
        head: usize,
        /// The channel's largest message.
        limit: usize,
    },
}

impl PubSub {
    /// Starts pubsub on `transport`: from now on its peers are asked for their interest.
    ///
    /// Spawns three small tasks; they end when the transport is closed or this is shut down. One
    /// pubsub per transport: a second would take over the first one's messages.
    ///
    /// # Errors
    /// [`StartError`]; nothing was started.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn start(transport: &Transport, limits: Limits) -> Result<Self, StartError> {
        let bytes = limits.message_bytes_max.get();
        let (head, limit) = (
            wire::HEAD_BYTES_MAX,
            transport.payload_bytes_max(ChannelId::STREAM).unwrap_or_default(),
        );
        if bytes.saturating_add(head) > limit {
            return Err(StartError::MessageTooLarge { bytes, head, limit });
        }
        let clock = Arc::clone(transport.clock());
        let hub = Arc::new(Hub::new(transport.node().clone(), limits, Arc::clone(&clock)));
        // Events first: a peer that comes up between the two steps is then seen twice, not never.
        let events = transport.events();
        hub.expect(Box::new(transport.downgrade()));
        transport.register(SERVICE, Arc::new(Frames { hub: Arc::clone(&hub) }));
        for peer in transport.peers().into_iter().filter(Peer::is_up) {
            hub.peer_up(peer.node(), port(&peer, &clock));
        }
        tokio::spawn(follow(events, Arc::downgrade(&hub)));
        tokio::spawn(driver::announce(Arc::downgrade(&hub)));
        tokio::spawn(driver::keep(Arc::downgrade(&hub)));
        Ok(Self::new(hub))
    }
}

/// Tells the hub which peers are up. Ends with the hub or the transport.
async fn follow(mut events: broadcast::Receiver<PeerEvent>, hub: Weak<Hub>) {
    loop {
        let event = events.recv().await;
        let Some(hub) = hub.upgrade() else { return };
        match event {
            Ok(PeerEvent::Up { peer }) => hub.peer_up(peer.node(), port(&peer, hub.clock())),
            // Without a `Down` before it: for us the peer was there all the time.
            Ok(PeerEvent::ChannelUp { peer, channel: ChannelId::CONTROL }) => hub.peer_again(&peer),
            Ok(PeerEvent::Down { peer, .. }) => hub.peer_down(&peer),
            Ok(_) => {}
            // Who is up asks us, so only those we know need another look.
            Err(RecvError::Lagged(_)) => hub.look_at_peers(),
            Err(RecvError::Closed) => return,
        }
    }
}

impl Expected for WeakTransport {
    fn peers(&self) -> Vec<NodeId> {
        Self::peers(self).iter().map(|peer| peer.node().clone()).collect()
    }
}

fn port(peer: &Peer, clock: &Arc<dyn Clock>) -> Box<dyn PeerPort> {
    Box::new(TransportPort { peer: peer.clone(), clock: Arc::clone(clock) })
}

#[derive(Debug)]
struct TransportPort {
    peer: Peer,
    clock: Arc<dyn Clock>,
}

impl PeerPort for TransportPort {
    fn send_message(&self, head: &[u8], payload: &[u8]) -> Result<(), Unsent> {
        let sent = self.peer.send(ChannelId::STREAM, SERVICE, KEY, Urgency::Batch, |frame| {
            frame.put(head);
            frame.put(payload);
        });
        sent.map_err(|error| unsent(&error))
    }

    fn send_message_within<'a>(
        &'a self,
        head: &'a [u8],
        payload: &'a [u8],
        within: Duration,
    ) -> BoxFuture<'a, Result<(), Unsent>> {
        let deadline = Deadline::after(self.clock.now(), within);
        let sent = self.peer.send_wait(ChannelId::STREAM, SERVICE, KEY, deadline, move |frame| {
            frame.put(head);
            frame.put(payload);
        });
        sent.map(|sent| sent.map_err(|error| unsent(&error))).boxed()
    }

    fn send_interest(&self, frame: &[u8]) -> Result<(), Unsent> {
        let sent = self
            .peer
            .send(ChannelId::CONTROL, SERVICE, KEY, Urgency::Now, |payload| payload.put(frame));
        sent.map_err(|error| unsent(&error))
    }

    fn is_up(&self) -> bool {
        self.peer.is_up()
    }
}

fn unsent(error: &SendError) -> Unsent {
    match error {
        SendError::Full { .. } | SendError::Deadline { .. } => Unsent::Full,
        // A peer with a smaller limit for messages is as good as out of reach for this one.
        _ => Unsent::Unreachable,
    }
}

thread_local! {
    /// Messages of the read that is being handed out on this thread, until its end.
    static BATCH: RefCell<Batch> = RefCell::default();
}

/// Messages of one connection in order of arrival, as runs of one topic.
#[derive(Default)]
struct Batch {
    /// Whose they are. One process may run several nodes.
    owner: Option<Arc<Hub>>,
    messages: Vec<Message>,
    /// Topic and end of each run.
    runs: Vec<(Arc<Slot>, usize)>,
    /// The sender's credit for those that push-back subscribers get. One token for the batch: a
    /// token for each message would cost more than the message.
    credit: Option<Credit>,
}

impl Batch {
    /// Whether `hub` may add one more message.
    fn has_room_for(&self, hub: &Arc<Hub>) -> bool {
        self.messages.len() < BATCH_MAX
            && self.owner.as_ref().is_none_or(|owner| Arc::ptr_eq(owner, hub))
    }

    fn push(&mut self, hub: &Arc<Hub>, slot: Arc<Slot>, message: Message) {
        self.owner.get_or_insert_with(|| Arc::clone(hub));
        self.messages.push(message);
        let end = self.messages.len();
        match self.runs.last_mut().filter(|(last, _)| Arc::ptr_eq(last, &slot)) {
            Some((_, last_end)) => *last_end = end,
            None => self.runs.push((slot, end)),
        }
    }

    /// Adds credit of the same connection; hands back that of another.
    fn absorb(&mut self, credit: Credit) -> Result<(), Credit> {
        match &mut self.credit {
            Some(held) => held.absorb(credit),
            None => {
                self.credit = Some(credit);
                Ok(())
            }
        }
    }

    fn deliver(&mut self) {
        let Some(hub) = self.owner.take() else { return };
        let hold: Option<Hold> = self.credit.take().map(|credit| Arc::new(credit) as Hold);
        let mut start = 0;
        for (slot, end) in self.runs.drain(..) {
            hub.deliver_arrived(&slot, &self.messages[start..end], hold.as_ref());
            start = end;
        }
        self.messages.clear();
    }
}

/// Delivers what was gathered on this thread.
fn deliver_batch() {
    // Taken out meanwhile: giving back credit may end a connection, which comes back to here.
    let mut batch = BATCH.take();
    batch.deliver();
    BATCH.replace(batch);
}

/// Receives pubsub's frames.
struct Frames {
    hub: Arc<Hub>,
}

impl Service for Frames {
    fn on_frame(&self, mut frame: Incoming<'_>) {
        let peer = frame.peer();
        if frame.channel() == ChannelId::CONTROL {
            self.hub.on_interest(peer.node(), frame.payload(), || port(peer, self.hub.clock()));
            return;
        }
        let Some(Accepted { slot, message, pushes_back }) =
            self.hub.accept(peer.node(), frame.payload())
        else {
            return;
        };
        if !BATCH.with_borrow(|batch| batch.has_room_for(&self.hub)) {
            deliver_batch();
        }
        if pushes_back
            && let Err(credit) = BATCH.with_borrow_mut(|batch| batch.absorb(frame.take_credit()))
        {
            // What is gathered came on another connection, which ended in the middle of a read.
            deliver_batch();
            BATCH.with_borrow_mut(|batch| batch.credit = Some(credit));
        }
        BATCH.with_borrow_mut(|batch| batch.push(&self.hub, slot, message));
    }

    fn on_batch_end(&self, _peer: &Peer) {
        deliver_batch();
    }

    fn on_close(&self, _path: &ReturnPath, _was_open: bool, _cause: &Cause) {
        // A read whose last frame is a goodbye may end without the end of its batch.
        deliver_batch();
    }
}
