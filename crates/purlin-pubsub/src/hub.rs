//! The shared heart of one node's pubsub: what publishing, subscribing and peers' frames do.
//!
//! Locks, in the order they may nest: `announcer`, `tables`, a registry shard, a roster, an inbox.
//! A publish to a topic whose route is fresh takes at most one shard's read lock and, per local
//! subscriber, that subscriber's own.

use std::{
    cell::Cell,
    collections::BTreeMap,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use purlin_core::{Clock, Deadline, Hlc, NodeId, hlc::NodeTag};
use tokio::sync::Notify;

use crate::{
    error::{PublishError, SubscribeError},
    inbox::{Hold, Inbox, Tally},
    interest::{Announcer, InterestFrame, InterestLimits, PeerInterest},
    limits::Limits,
    message::{Message, Publication},
    pattern::{Pattern, PatternTree},
    peer::{Expected, PeerLink, PeerPort, Unsent},
    queue::{Closed, Pushed},
    registry::{Registry, Route, Slot},
    roster::Roster,
    stats::{PeerStats, Stats, SubscriptionStats, TopicStats},
    subscription::{METADATA_BYTES_MAX, SubscribeOptions, Subscription, SubscriptionId},
    topic::Topic,
    wire,
};

/// How often whoever waits for peers looks again whether they still are.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(100);

thread_local! {
    /// Reused by every publish of this thread, so that a head costs no allocation.
    static HEAD: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Where a subscription is listed.
#[derive(Debug)]
pub(crate) enum Place {
    /// In the roster of its topic.
    Topic(Arc<Slot>),
    /// In the roster of its pattern, found through the tables.
    Pattern,
}

/// Whom a publish is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reach<'a> {
    Cluster,
    Local,
    Node(&'a NodeId),
}

/// How far a publish got.
///
/// Accepted is not yet received: a connection that breaks afterwards takes what is in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Published {
    /// Subscribers on this node that got it.
    pub subscribers: usize,
    /// Other nodes with subscribers whose connection took it.
    pub nodes: usize,
    /// Push-back subscribers here, and nodes, that did not take it because they are full.
    pub full: usize,
    /// Nodes with subscribers that could not be reached.
    pub unreachable: usize,
}

/// Who did not take a message for lack of room, for a publisher that waits.
#[derive(Debug, Default)]
pub(crate) struct Refused {
    links: Vec<Arc<PeerLink>>,
    inboxes: Vec<Arc<Inbox>>,
    message: Option<Message>,
}

/// A message from a peer that somebody here wants.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) slot: Arc<Slot>,
    pub(crate) message: Message,
    /// A subscriber may have to keep the sender's credit.
    pub(crate) pushes_back: bool,
}

#[derive(Debug)]
struct Tables {
    patterns: PatternTree<Arc<Roster>>,
    peers: BTreeMap<NodeId, PeerEntry>,
}

#[derive(Debug)]
struct PeerEntry {
    link: Arc<PeerLink>,
    interest: PeerInterest,
}

/// Counts since the start.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) published: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) delivered: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) unwanted: AtomicU64,
    pub(crate) malformed: AtomicU64,
    pub(crate) stalled: AtomicU64,
    pub(crate) clock_ahead: AtomicU64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Hub {
    node: NodeId,
    clock: Arc<dyn Clock>,
    hlc: Hlc,
    limits: Limits,
    registry: Registry,
    tables: RwLock<Tables>,
    /// Counts changes that may concern every route.
    generation: AtomicU64,
    announcer: Mutex<Announcer>,
    /// The announcer has something to say.
    pub(crate) announce: Arc<Notify>,
    /// A peer has acknowledged an announcement, or left.
    settled: Notify,
    /// Who is to be connected, whether it is already or not.
    expected: OnceLock<Box<dyn Expected>>,
    subscriptions: AtomicUsize,
    next_id: AtomicU64,
    push_back: Mutex<Vec<Weak<Inbox>>>,
    pub(crate) totals: Totals,
    closed: AtomicBool,
}

impl Hub {
    pub(crate) fn new(node: NodeId, limits: Limits, clock: Arc<dyn Clock>) -> Self {
        let interest = InterestLimits { entries_max: limits.interest_max.get() };
        Self {
            hlc: Hlc::new(&node),
            node,
            clock,
            registry: Registry::new(limits.idle_topics_max),
            limits,
            tables: RwLock::new(Tables {
                patterns: PatternTree::default(),
                peers: BTreeMap::new(),
            }),
            generation: AtomicU64::new(0),
            announcer: Mutex::new(Announcer::new(interest)),
            announce: Arc::default(),
            settled: Notify::new(),
            expected: OnceLock::new(),
            subscriptions: AtomicUsize::new(0),
            next_id: AtomicU64::new(1),
            push_back: Mutex::new(Vec::new()),
            totals: Totals::default(),
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn node(&self) -> &NodeId {
        &self.node
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(crate) fn slot(&self, topic: &Topic) -> Arc<Slot> {
        self.registry.get_or_insert(topic)
    }

    // Subscribing.

    pub(crate) fn subscribe(
        self: &Arc<Self>,
        pattern: Pattern,
        options: SubscribeOptions,
    ) -> Result<Subscription, SubscribeError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(SubscribeError::ShutDown);
        }
        if options.metadata.len() > METADATA_BYTES_MAX {
            return Err(SubscribeError::Metadata { bytes: options.metadata.len() });
        }
        let limit = self.limits.subscriptions_max.get();
        if self.subscriptions.fetch_add(1, Ordering::AcqRel) >= limit {
            self.subscriptions.fetch_sub(1, Ordering::AcqRel);
            return Err(SubscribeError::TooMany { limit });
        }
        let id = SubscriptionId(self.next_id.fetch_add(1, Ordering::Relaxed));
        let inbox = Arc::new(Inbox::new(id, pattern, options));
        if inbox.pushes_back() {
            self.push_back.lock().push(Arc::downgrade(&inbox));
        }
        // Listed before it is announced: a peer that hears of it must find it.
        let place = self.list(&inbox);
        if self.announcer.lock().subscribed(&inbox.pattern) {
            self.announce.notify_one();
        }
        let subscription = Subscription::new(inbox, Arc::clone(self), place);
        // A shutdown that ran in between has not seen this one.
        if self.closed.load(Ordering::Acquire) {
            return Err(SubscribeError::ShutDown);
        }
        Ok(subscription)
    }

    fn list(&self, inbox: &Arc<Inbox>) -> Place {
        if let Some(topic) = inbox.pattern.as_topic() {
            let slot = self.slot(&topic);
            slot.roster.add(Arc::clone(inbox));
            return Place::Topic(slot);
        }
        let mut tables = self.tables.write();
        match tables.patterns.get(&inbox.pattern) {
            Some(roster) => roster.add(Arc::clone(inbox)),
            None => {
                let roster = Arc::new(Roster::default());
                roster.add(Arc::clone(inbox));
                tables.patterns.insert(&inbox.pattern, roster);
                self.invalidate_all();
            }
        }
        Place::Pattern
    }

    pub(crate) fn unsubscribe(&self, inbox: &Arc<Inbox>, place: &Place) {
        inbox.close(Closed::Unsubscribed);
        match place {
            Place::Topic(slot) => slot.roster.remove(inbox),
            Place::Pattern => {
                let mut tables = self.tables.write();
                let roster = tables
                    .patterns
                    .get(&inbox.pattern)
                    .expect("a pattern stays while it has subscribers");
                roster.remove(inbox);
                if roster.is_empty() {
                    tables.patterns.remove(&inbox.pattern);
                    self.invalidate_all();
                }
            }
        }
        self.subscriptions.fetch_sub(1, Ordering::AcqRel);
        if self.announcer.lock().unsubscribed(&inbox.pattern) {
            self.announce.notify_one();
        }
    }

    /// Ends every subscription and takes no new ones.
    pub(crate) fn shut_down(&self) {
        self.closed.store(true, Ordering::Release);
        for slot in self.registry.sorted() {
            slot.roster.for_each(|inbox| inbox.close(Closed::ShutDown));
        }
        let everything =
            |roster: &Arc<Roster>| roster.for_each(|inbox| inbox.close(Closed::ShutDown));
        self.tables.read().patterns.for_each(everything);
        self.announcer.lock().withdraw();
        self.flush_interest();
        // The announcing task finds the hub shut down and ends.
        self.announce.notify_one();
    }

    pub(crate) fn is_shut_down(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    // Routes.

    /// To be called with the tables locked for writing, so that no route is computed meanwhile.
    fn invalidate_all(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    fn invalidate(&self, topics: &[Topic]) {
        for slot in topics.iter().filter_map(|topic| self.registry.get(topic.as_str())) {
            slot.route.store(None);
        }
    }

    fn route(&self, slot: &Slot) -> Arc<Route> {
        let cached = slot.route.load_full();
        match cached.filter(|route| route.generation == self.generation.load(Ordering::Acquire)) {
            Some(route) => route,
            None => self.compute_route(slot),
        }
    }

    fn compute_route(&self, slot: &Slot) -> Arc<Route> {
        let tables = self.tables.read();
        let topic = slot.topic.as_str();
        let mut patterns = Vec::new();
        tables.patterns.for_each_match(topic, |roster| patterns.push(Arc::clone(roster)));
        let interested = tables.peers.values().filter(|peer| peer.interest.wants(topic));
        let peers = interested.map(|peer| Arc::clone(&peer.link)).collect();
        let route = Arc::new(Route {
            generation: self.generation.load(Ordering::Acquire),
            patterns,
            peers,
        });
        slot.route.store(Some(Arc::clone(&route)));
        route
    }

    // Publishing.

    /// Hands a publication to everybody who takes it at once. Who is full is counted, and listed
    /// in `refused` if the caller wants to wait for them.
    pub(crate) fn publish(
        &self,
        slot: &Slot,
        publication: Publication,
        reach: Reach<'_>,
        skip: Option<SubscriptionId>,
        mut refused: Option<&mut Refused>,
    ) -> Result<Published, PublishError> {
        let (payload, headers) = publication.into_parts();
        self.check(&payload)?;
        headers.check()?;
        let published_at =
            self.hlc.now(self.clock.wall()).expect("a clock without a durable mark always issues");
        let route = self.route(slot);
        let mut published = Published::default();
        let mut head = HEAD.take();
        head.clear();
        let mut send = |link: &Arc<PeerLink>| {
            if head.is_empty() {
                wire::encode_head(slot.topic.as_str(), published_at, &headers, &mut head);
            }
            match link.send_message(&head, &payload) {
                Ok(()) => published.nodes += 1,
                Err(Unsent::Unreachable) => published.unreachable += 1,
                Err(Unsent::Full) => {
                    published.full += 1;
                    if let Some(refused) = &mut refused {
                        refused.links.push(Arc::clone(link));
                    }
                }
            }
        };
        let mut here = true;
        match reach {
            Reach::Cluster => route.peers.iter().for_each(send),
            Reach::Local => {}
            Reach::Node(node) if *node == self.node => {}
            Reach::Node(node) => {
                here = false;
                self.wanting_link(node, slot)?.iter().for_each(&mut send);
            }
        }
        HEAD.set(head);
        let bytes = payload.len() as u64;
        let has_local = here && !(slot.roster.is_empty() && route.patterns.is_empty());
        if has_local || refused.as_ref().is_some_and(|refused| !refused.links.is_empty()) {
            let message =
                Message::new(slot.topic.clone(), payload, headers, self.node.clone(), published_at);
            if has_local {
                self.deliver(slot, &route, &message, skip, &mut published, refused.as_deref_mut());
            }
            if let Some(refused) = refused {
                refused.message = Some(message);
            }
        }
        slot.counts.published.fetch_add(1, Ordering::Relaxed);
        slot.counts.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.totals.published.fetch_add(1, Ordering::Relaxed);
        Ok(published)
    }

    fn check(&self, payload: &Bytes) -> Result<(), PublishError> {
        let limit = self.limits.message_bytes_max.get();
        if payload.len() > limit {
            return Err(PublishError::TooLarge { bytes: payload.len(), limit });
        }
        if self.closed.load(Ordering::Acquire) {
            return Err(PublishError::ShutDown);
        }
        Ok(())
    }

    /// The link to `node` if it has subscribers for the topic; an error if it is no peer.
    fn wanting_link(
        &self,
        node: &NodeId,
        slot: &Slot,
    ) -> Result<Option<Arc<PeerLink>>, PublishError> {
        let tables = self.tables.read();
        let peer = tables.peers.get(node).ok_or_else(|| PublishError::NotAPeer(node.clone()))?;
        Ok(peer.interest.wants(slot.topic.as_str()).then(|| Arc::clone(&peer.link)))
    }

    fn deliver(
        &self,
        slot: &Slot,
        route: &Route,
        message: &Message,
        skip: Option<SubscriptionId>,
        published: &mut Published,
        mut refused: Option<&mut Refused>,
    ) {
        let mut tally = Tally::default();
        let mut push = |inbox: &Arc<Inbox>| {
            if skip == Some(inbox.id) {
                return;
            }
            match inbox.push(message) {
                Pushed::Queued { lost } => {
                    tally.queued += 1;
                    tally.lost += lost;
                }
                Pushed::Closed => tally.lost += 1,
                Pushed::Full => {
                    published.full += 1;
                    if let Some(refused) = &mut refused {
                        refused.inboxes.push(Arc::clone(inbox));
                    }
                }
            }
        };
        slot.roster.for_each(&mut push);
        route.patterns.iter().for_each(|roster| roster.for_each(&mut push));
        published.subscribers +=
            usize::try_from(tally.queued).expect("counts subscribers in memory");
        self.count_deliveries(slot, tally);
    }

    fn count_deliveries(&self, slot: &Slot, tally: Tally) {
        slot.counts.delivered.fetch_add(tally.queued, Ordering::Relaxed);
        self.totals.delivered.fetch_add(tally.queued, Ordering::Relaxed);
        if tally.lost > 0 {
            slot.counts.lost.fetch_add(tally.lost, Ordering::Relaxed);
            self.totals.lost.fetch_add(tally.lost, Ordering::Relaxed);
        }
    }

    /// Publishes and waits for those who are full, up to `within`.
    pub(crate) async fn publish_within(
        &self,
        slot: &Slot,
        publication: Publication,
        reach: Reach<'_>,
        skip: Option<SubscriptionId>,
        within: Duration,
    ) -> Result<Published, PublishError> {
        let mut refused = Refused::default();
        let mut published = self.publish(slot, publication, reach, skip, Some(&mut refused))?;
        let Some(message) = refused.message.take().filter(|_| published.full > 0) else {
            // A publisher that never has to wait must still let others run.
            tokio::task::coop::consume_budget().await;
            return Ok(published);
        };
        let deadline = Deadline::after(self.clock.now(), within);
        published.full = 0;
        self.wait_for_links(slot, &message, &refused.links, deadline, &mut published).await;
        self.wait_for_inboxes(slot, &message, &refused.inboxes, deadline, &mut published).await;
        if published.full > 0 {
            return Err(PublishError::Full { published, within });
        }
        Ok(published)
    }

    async fn wait_for_links(
        &self,
        slot: &Slot,
        message: &Message,
        links: &[Arc<PeerLink>],
        deadline: Deadline,
        published: &mut Published,
    ) {
        if links.is_empty() {
            return;
        }
        let mut head = Vec::new();
        wire::encode_head(
            slot.topic.as_str(),
            message.published_at(),
            message.headers(),
            &mut head,
        );
        for link in links {
            let left = deadline.remaining(self.clock.now()).unwrap_or_default();
            match link.send_message_within(&head, message.payload(), left).await {
                Ok(()) => published.nodes += 1,
                Err(Unsent::Full) => published.full += 1,
                Err(Unsent::Unreachable) => published.unreachable += 1,
            }
        }
    }

    async fn wait_for_inboxes(
        &self,
        slot: &Slot,
        message: &Message,
        inboxes: &[Arc<Inbox>],
        deadline: Deadline,
        published: &mut Published,
    ) {
        let mut tally = Tally::default();
        for inbox in inboxes {
            let left = deadline.remaining(self.clock.now()).unwrap_or_default();
            match tokio::time::timeout(left, inbox.push_when_room(message)).await {
                Ok(Pushed::Queued { .. }) => {
                    tally.queued += 1;
                    published.subscribers += 1;
                }
                Ok(Pushed::Closed) => tally.lost += 1,
                Ok(Pushed::Full) | Err(_) => published.full += 1,
            }
        }
        self.count_deliveries(slot, tally);
    }

    // Receiving.

    /// Reads a message frame from `from`; `None` if nobody here wants it.
    pub(crate) fn accept(&self, from: &NodeId, frame: &[u8]) -> Option<Accepted> {
        self.totals.received.fetch_add(1, Ordering::Relaxed);
        let decoded = match wire::decode(frame) {
            Ok(decoded) => decoded,
            Err(error) => {
                self.malformed(from, &error);
                return None;
            }
        };
        let slot = match self.registry.get(decoded.topic) {
            Some(slot) => slot,
            None => match Topic::parse(decoded.topic) {
                Ok(topic) => self.slot(&topic),
                Err(error) => {
                    self.malformed(from, &error);
                    return None;
                }
            },
        };
        let route = self.route(&slot);
        if slot.roster.is_empty() && route.patterns.is_empty() {
            // An unsubscribe and this message met on the way.
            self.totals.unwanted.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let pushes_back =
            slot.roster.pushes_back() || route.patterns.iter().any(|roster| roster.pushes_back());
        let payload = Bytes::copy_from_slice(&frame[decoded.payload_at..]);
        slot.counts.bytes.fetch_add(payload.len() as u64, Ordering::Relaxed);
        let published_at = decoded.published_at(NodeTag::of(from));
        let message =
            Message::new(slot.topic.clone(), payload, decoded.headers, from.clone(), published_at);
        Some(Accepted { slot, message, pushes_back })
    }

    /// Delivers messages of one topic that arrived together. `hold` is the sender's credit for
    /// them, if a subscriber may have to keep it.
    pub(crate) fn deliver_arrived(&self, slot: &Slot, batch: &[Message], hold: Option<&Hold>) {
        let Some(last) = batch.last() else { return };
        // Only the newest matters to the clock. A message from a clock too far ahead is still a
        // message; this node's clock does not follow it.
        if self.hlc.observe(last.published_at(), self.clock.wall()).is_err() {
            self.totals.clock_ahead.fetch_add(1, Ordering::Relaxed);
        }
        let route = self.route(slot);
        let mut tally = Tally::default();
        let mut push = |inbox: &Arc<Inbox>| inbox.push_arrived(batch, hold, &mut tally);
        slot.roster.for_each(&mut push);
        route.patterns.iter().for_each(|roster| roster.for_each(&mut push));
        slot.counts.received.fetch_add(batch.len() as u64, Ordering::Relaxed);
        self.count_deliveries(slot, tally);
    }

    fn malformed(&self, from: &NodeId, error: &dyn std::error::Error) {
        // Logged once per doubling, so that a broken peer cannot fill the log.
        let count = self.totals.malformed.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::warn!(peer = %from, count, %error, "dropped a malformed pubsub frame");
        }
    }

    // Peers and interest.

    /// A peer is connected, perhaps again: ask for its interest.
    pub(crate) fn peer_up(&self, node: &NodeId, port: Box<dyn PeerPort>) {
        {
            let mut tables = self.tables.write();
            match tables.peers.get_mut(node) {
                // It may have been away without notice, and its old port lead nowhere.
                Some(entry) => {
                    entry.link = Arc::new(entry.link.through(port));
                    entry.interest.doubt();
                    self.invalidate_all();
                }
                None => drop(tables.peers.insert(node.clone(), self.peer_entry(node, port))),
            }
        }
        {
            let mut announcer = self.announcer.lock();
            announcer.peer_up(node.clone());
            announcer.resend(node, false);
        }
        self.announce.notify_one();
    }

    /// The connection to a peer was replaced. If the other side had lost the old one, it has
    /// forgotten that we know its interest, and tells us of changes only when asked again.
    pub(crate) fn peer_again(&self, node: &NodeId) {
        match self.tables.write().peers.get_mut(node) {
            Some(entry) => entry.interest.doubt(),
            // It is being met for the first time.
            None => return,
        }
        self.announcer.lock().resend(node, false);
        self.announce.notify_one();
    }

    /// A peer is gone: nothing is sent to it, and its interest is forgotten. Unless it is back
    /// already: then its first frames may have come before this news, and must not be undone.
    pub(crate) fn peer_down(&self, node: &NodeId) {
        {
            let mut tables = self.tables.write();
            if tables.peers.get(node).is_some_and(|peer| peer.link.port.is_up()) {
                return;
            }
            if tables.peers.remove(node).is_some() {
                self.invalidate_all();
            }
        }
        self.announcer.lock().peer_down(node);
        self.settled.notify_waiters();
    }

    /// Events about peers were missed: asks who is still up, and drops who is not.
    pub(crate) fn look_at_peers(&self) {
        let mut gone = Vec::new();
        for (node, peer) in &mut self.tables.write().peers {
            if peer.link.port.is_up() {
                peer.interest.doubt();
            } else {
                gone.push(node.clone());
            }
        }
        gone.iter().for_each(|node| self.peer_down(node));
        self.announce.notify_one();
    }

    /// A frame of the interest protocol arrived.
    pub(crate) fn on_interest(
        &self,
        from: &NodeId,
        frame: &[u8],
        port: impl FnOnce() -> Box<dyn PeerPort>,
    ) {
        let now = self.clock.now();
        let Some(frame) = InterestFrame::decode(frame) else {
            self.malformed(from, &MalformedInterest { bytes: frame.len() });
            return;
        };
        match frame {
            InterestFrame::Ask => {
                self.tables
                    .write()
                    .peers
                    .entry(from.clone())
                    .or_insert_with(|| self.peer_entry(from, port()));
                {
                    let mut announcer = self.announcer.lock();
                    announcer.peer_up(from.clone());
                    announcer.resend(from, true);
                }
                self.announce.notify_one();
            }
            InterestFrame::Known { version } => {
                self.announcer.lock().known(now, from, version);
                self.settled.notify_waiters();
            }
            frame @ (InterestFrame::Snapshot { .. } | InterestFrame::Delta { .. }) => {
                let mut tables = self.tables.write();
                let entry = tables
                    .peers
                    .entry(from.clone())
                    .or_insert_with(|| self.peer_entry(from, port()));
                let applied = entry.interest.apply(now, frame);
                if applied.patterns {
                    self.invalidate_all();
                }
                self.invalidate(&applied.topics);
                if applied.malformed > 0 {
                    self.totals.malformed.fetch_add(applied.malformed as u64, Ordering::Relaxed);
                }
                let link = Arc::clone(&entry.link);
                drop(tables);
                if let Some(answer) = applied.answer {
                    // Unsent answers are made up for: the announcer sends again, or we ask again.
                    link.send_interest(&answer);
                }
            }
        }
    }

    fn peer_entry(&self, node: &NodeId, port: Box<dyn PeerPort>) -> PeerEntry {
        let limits = InterestLimits { entries_max: self.limits.interest_max.get() };
        PeerEntry {
            link: Arc::new(PeerLink::new(node.clone(), port)),
            interest: PeerInterest::new(limits),
        }
    }

    /// Sends what the announcer has to say, and asks peers whose interest is not known.
    pub(crate) fn flush_interest(&self) {
        let now = self.clock.now();
        let mut due = Vec::new();
        let mut announcer = self.announcer.lock();
        announcer.flush(now, &mut due);
        for send in due {
            let link = self.tables.read().peers.get(&send.to).map(|peer| Arc::clone(&peer.link));
            if !link.is_some_and(|link| link.send_interest(&send.frame)) {
                announcer.resend(&send.to, false);
            }
        }
        drop(announcer);
        let mut questions = Vec::new();
        for peer in self.tables.write().peers.values_mut() {
            questions
                .extend(peer.interest.question(now).map(|frame| (Arc::clone(&peer.link), frame)));
        }
        for (link, frame) in questions {
            // Asked again in a while if it does not arrive.
            link.send_interest(&frame);
        }
    }

    /// Tells whom to wait for, beside those that are connected. To be called once, at the start.
    pub(crate) fn expect(&self, expected: Box<dyn Expected>) {
        assert!(self.expected.set(expected).is_ok(), "a hub is started once");
    }

    /// See [`Subscription::propagated`].
    pub(crate) async fn propagated(&self, within: Duration) -> bool {
        self.flush_interest();
        let version = self.announcer.lock().version();
        let known = async {
            loop {
                let mut settled = std::pin::pin!(self.settled.notified());
                settled.as_mut().enable();
                let expected = self.expected.get().map(|who| who.peers()).unwrap_or_default();
                if self.announcer.lock().is_known_everywhere(version, &expected) {
                    return;
                }
                // Nobody tells when a peer is given up that never was connected.
                drop(tokio::time::timeout(LOOK_AGAIN_AFTER, settled).await);
            }
        };
        tokio::time::timeout(within, known).await.is_ok()
    }

    // Housekeeping and listings.

    /// Ends push-back subscriptions that stall. To be called every second or so.
    pub(crate) fn end_stalled(&self) {
        let now = self.clock.now();
        let mut watched = Vec::new();
        self.push_back.lock().retain(|weak| {
            weak.upgrade().is_some_and(|inbox| {
                watched.push(inbox);
                true
            })
        });
        for inbox in watched.iter().filter(|inbox| inbox.close_if_stalled(now)) {
            self.totals.stalled.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(subscription = %inbox.id, pattern = %inbox.pattern, metadata = %inbox.metadata,
                "ended a push-back subscription that received nothing with a full queue");
        }
    }

    /// Measures rates over the last `elapsed`. True while any topic is not quiet.
    pub(crate) fn sample_rates(&self, elapsed: Duration) -> bool {
        self.registry.sample(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }

    /// Grows with every message.
    pub(crate) fn activity(&self) -> u64 {
        self.totals.published.load(Ordering::Relaxed) + self.totals.received.load(Ordering::Relaxed)
    }

    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    pub(crate) fn stats(&self) -> Stats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let totals = &self.totals;
        let (interest_entries, interest_coarse) = {
            let announcer = self.announcer.lock();
            (announcer.entries(), announcer.is_coarse())
        };
        Stats {
            published: count(&totals.published),
            received: count(&totals.received),
            delivered: count(&totals.delivered),
            lost: count(&totals.lost),
            unwanted: count(&totals.unwanted),
            malformed: count(&totals.malformed),
            stalled: count(&totals.stalled),
            clock_ahead: count(&totals.clock_ahead),
            subscriptions: self.subscriptions.load(Ordering::Relaxed),
            topics_tracked: self.registry.len(),
            interest_entries,
            interest_coarse,
            peers: self.tables.read().peers.values().map(PeerEntry::stats).collect(),
        }
    }

    pub(crate) fn topics(&self, limit: usize) -> Vec<TopicStats> {
        let mut topics = Vec::new();
        self.registry.for_each(|slot| topics.push(TopicStats::of(slot)));
        topics.sort_by(|a, b| b.busyness().cmp(&a.busyness()).then_with(|| a.topic.cmp(&b.topic)));
        topics.truncate(limit);
        topics
    }

    pub(crate) fn subscriptions(&self, limit: usize) -> Vec<SubscriptionStats> {
        let mut all: Vec<Arc<Inbox>> = Vec::new();
        let mut list = |inbox: &Arc<Inbox>| all.push(Arc::clone(inbox));
        self.registry.for_each(|slot| slot.roster.for_each(&mut list));
        self.tables.read().patterns.for_each(|roster| roster.for_each(&mut list));
        all.sort_by_key(|inbox| inbox.id);
        all.iter().take(limit).map(|inbox| SubscriptionStats::of(inbox)).collect()
    }

    /// Nodes that would be sent a message of `topic` now.
    pub(crate) fn interested(&self, topic: &Topic) -> Vec<NodeId> {
        let tables = self.tables.read();
        let wants = tables.peers.values().filter(|peer| peer.interest.wants(topic.as_str()));
        wants.map(|peer| peer.link.node.clone()).collect()
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        // The announcing task waits for this, and finds the hub gone.
        self.announce.notify_one();
    }
}

impl PeerEntry {
    fn stats(&self) -> PeerStats {
        let [messages_sent, bytes_sent, full, unreachable] = self.link.counts();
        PeerStats {
            node: self.link.node.clone(),
            messages_sent,
            bytes_sent,
            full,
            unreachable,
            interest_known: self.interest.is_known(),
            interest_entries: self.interest.entries(),
            interest_coarse: self.interest.is_coarse(),
        }
    }
}

#[derive(Debug, thiserror::Error)]
#[error("interest frame of {bytes} bytes cannot be decoded")]
struct MalformedInterest {
    bytes: usize,
}

#[cfg(test)]
mod tests;
