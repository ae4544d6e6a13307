//! The loop around the failure detector: the only code here that waits.
//!
//! It feeds [`Swim`] with datagrams, control frames, the transport's events, discovered addresses
//! and time, and carries out what comes back. What any of it means is decided in [`crate::swim`]
//! and [`crate::seeding`].

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use purlin_core::{Clock, Deadline, Instant, NodeId, WallTime, watch};
use purlin_net::{
    Cause, ChannelId, Contact, ContactError, Incoming, PartitionKey, PeerEvent, RefusalCode,
    Service, ServiceId, Transport, Urgency,
};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    task::JoinSet,
};

use crate::{
    cluster::Troubles,
    discovery::{Discovery, DiscoveryError},
    seeding::Seeding,
    swim::{Event, Input, Meta, MetaError, Output, Path, State, Swim},
    view::Board,
};

/// After so many packets, what is due or waits behind them has its turn.
const HEARD_IN_A_ROW: u32 = 32;

/// Membership packets on the control channel.
pub(crate) const SERVICE: ServiceId = ServiceId(2);
/// Control frames waiting for the loop. Full sync and announcements only, so a full queue means
/// that the loop stands; what is dropped is sent again.
pub(crate) const FRAMES_MAX: usize = 1_024;
/// Contacts to down members under way at once; further ones wait for their next turn.
const RECONTACTS_MAX: usize = 8;
/// How long a contact may take. Longer than a TLS handshake on a loaded machine, short enough
/// that a black hole is tried again soon.
const CONTACT_WITHIN: Duration = Duration::from_secs(2);
/// How often round trips in the view and the metrics are refreshed.
const REFRESH: Duration = Duration::from_secs(1);

/// What the rest of the process wants from the loop.
pub(crate) enum Command {
    /// Change what we say of ourselves.
    Meta(Box<dyn FnOnce(&mut Meta) + Send>, oneshot::Sender<Result<(), MetaError>>),
    /// Make sure that all members have read it; answered when they have.
    Announce(oneshot::Sender<()>),
    /// Say goodbye; answered when all members have read it.
    Leave(oneshot::Sender<()>),
    /// End the loop.
    Stop,
}

/// Hands control frames to the loop.
pub(crate) struct Frames(pub(crate) mpsc::Sender<(NodeId, Bytes)>);

impl Service for Frames {
    fn on_frame(&self, frame: Incoming<'_>) {
        let packet = (frame.peer().node().clone(), frame.to_bytes());
        if self.0.try_send(packet).is_err() {
            metrics::counter!("purlin_cluster_frames_dropped_total").increment(1);
        }
    }
}

/// Why an address was contacted.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Reason {
    Seed,
    Down,
}

pub(crate) type Contacted = (Reason, SocketAddr, Result<Contact, ContactError>);

/// Something the loop woke up for.
enum Happened {
    Command(Option<Command>),
    Frame(NodeId, Bytes),
    Datagram(NodeId, SocketAddr, Bytes),
    Peer(Result<PeerEvent, broadcast::error::RecvError>),
    Contacted(Contacted),
    Discovered(Result<BTreeSet<SocketAddr>, DiscoveryError>),
    Woke,
}

pub(crate) struct Driver {
    pub(crate) swim: Swim,
    pub(crate) seeding: Seeding,
    pub(crate) board: Arc<Board>,
    pub(crate) transport: Transport,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) discovery: Box<dyn Discovery>,
    pub(crate) troubles: Arc<Troubles>,
    pub(crate) superseded: watch::Sender<bool>,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) frames: mpsc::Receiver<(NodeId, Bytes)>,
    pub(crate) peer_events: broadcast::Receiver<PeerEvent>,
    pub(crate) contacts: JoinSet<Contacted>,
    pub(crate) announced: Option<oneshot::Sender<()>>,
    /// Packets, since time and waiting control frames had their turn.
    pub(crate) heard_in_a_row: u32,
    pub(crate) refresh_at: Instant,
}

impl Driver {
    pub(crate) async fn run(mut self) {
        let mut out = Vec::new();
        let mut events = Vec::new();
        loop {
            self.contact_seeds();
            let happened = self.wait().await;
            let now = self.clock.now();
            match happened {
                Happened::Command(None | Some(Command::Stop)) => break,
                Happened::Command(Some(command)) => self.command(now, command, &mut out),
                Happened::Frame(from, bytes) => {
                    let (addr, path) = (None, Path::Control);
                    let packet = Input::Packet { from, addr, path, bytes: &bytes };
                    self.swim.step(now, packet, &mut out);
                }
                Happened::Datagram(from, addr, bytes) => {
                    let (addr, path) = (Some(addr), Path::Datagram);
                    let packet = Input::Packet { from, addr, path, bytes: &bytes };
                    self.swim.step(now, packet, &mut out);
                }
                Happened::Peer(event) => self.peer_event(now, event, &mut out),
                Happened::Contacted(contacted) => self.contacted(now, contacted, &mut out),
                Happened::Discovered(list) => self.discovered(now, list),
                Happened::Woke => self.swim.step(now, Input::Woke, &mut out),
            }
            let mut changed = now >= self.refresh_at;
            for output in out.drain(..) {
                changed |= self.carry_out(output, &mut events);
            }
            if changed {
                self.publish(now, std::mem::take(&mut events));
            }
        }
        tracing::debug!(node = %self.swim.node(), "membership stopped");
    }

    async fn wait(&mut self) -> Happened {
        let mut wake = self.swim.wake_at().min(self.refresh_at);
        if let Some(at) = self.seeding.wake_at() {
            wake = wake.min(at);
        }
        let now = self.clock.now();
        if self.heard_in_a_row >= HEARD_IN_A_ROW {
            self.heard_in_a_row = 0;
            if wake <= now {
                return Happened::Woke;
            }
            if let Ok((from, bytes)) = self.frames.try_recv() {
                return Happened::Frame(from, bytes);
            }
        }
        let sleep = tokio::time::sleep(wake - now);
        let datagrams = self.transport.datagrams();
        tokio::select! {
            // What this node brings about itself comes first; it is little. Then what others say,
            // probes before bulk. Time comes last: an answer that is here already must be heard
            // before its deadline is held against the one who gave it. A flood of packets would
            // keep time and frames waiting for ever; the count above does not let it.
            biased;
            command = self.commands.recv() => Happened::Command(command),
            event = self.peer_events.recv() => Happened::Peer(event),
            Some(Ok(contacted)) = self.contacts.join_next() => Happened::Contacted(contacted),
            list = self.discovery.next() => Happened::Discovered(list),
            (from, addr, bytes) = datagrams.recv() => {
                self.heard_in_a_row += 1;
                Happened::Datagram(from, addr, bytes)
            }
            Some((from, bytes)) = self.frames.recv() => {
                self.heard_in_a_row += 1;
                Happened::Frame(from, bytes)
            }
            () = sleep => {
                self.heard_in_a_row = 0;
                Happened::Woke
            }
        }
    }

    fn command(&mut self, now: Instant, command: Command, out: &mut Vec<Output>) {
        match command {
            Command::Meta(change, done) => {
                let mut meta = self.swim.meta().as_ref().clone();
                change(&mut meta);
                let checked = meta.check();
                if checked.is_ok() {
                    self.swim.step(now, Input::Meta(meta), out);
                }
                // Who asked may have gone; the change stands.
                done.send(checked).ok();
            }
            Command::Announce(done) => {
                self.announced = Some(done);
                self.swim.step(now, Input::Announce, out);
            }
            Command::Leave(done) => {
                self.announced = Some(done);
                self.swim.step(now, Input::Leave, out);
            }
            Command::Stop => {}
        }
    }

    fn peer_event(
        &mut self,
        now: Instant,
        event: Result<PeerEvent, broadcast::error::RecvError>,
        out: &mut Vec<Output>,
    ) {
        let input = match event {
            Ok(PeerEvent::Up { peer }) => Input::Met { node: peer.node().clone() },
            Ok(PeerEvent::Down { peer, cause: Cause::Refused }) => Input::Refused { node: peer },
            Ok(PeerEvent::Down { peer, .. }) => Input::Silent { node: peer },
            Ok(PeerEvent::HandshakeRefused { by_us: false, reason, .. })
                if reason.code == RefusalCode::Superseded =>
            {
                Input::Outlived
            }
            Ok(_) => return,
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::warn!(missed, "membership fell behind the transport's events");
                for peer in self.transport.peers().into_iter().filter(purlin_net::Peer::is_up) {
                    self.swim.step(now, Input::Met { node: peer.node().clone() }, out);
                }
                return;
            }
            Err(broadcast::error::RecvError::Closed) => return,
        };
        self.swim.step(now, input, out);
    }

    fn contacted(&mut self, now: Instant, contacted: Contacted, out: &mut Vec<Output>) {
        let (reason, addr, result) = contacted;
        if matches!(reason, Reason::Seed) {
            self.seeding.contacted(now, addr);
            self.troubles.contact(addr, result.as_ref().err());
        }
        if let Ok(contact) = result {
            self.swim.step(
                now,
                Input::Contacted { node: contact.node, addr: contact.advertise },
                out,
            );
        }
    }

    fn discovered(&mut self, now: Instant, list: Result<BTreeSet<SocketAddr>, DiscoveryError>) {
        match list {
            Ok(addrs) => {
                tracing::debug!(?addrs, discovery = self.discovery.describe(), "discovered");
                self.seeding.replace(now, &addrs);
                self.troubles.discovered(&addrs);
            }
            Err(error) => {
                tracing::warn!(%error, "discovery");
                metrics::counter!("purlin_cluster_discovery_errors_total").increment(1);
                self.troubles.discovery(&error);
            }
        }
    }

    fn contact_seeds(&mut self) {
        let now = self.clock.now();
        if self.seeding.wake_at().is_none_or(|at| at > now) {
            return;
        }
        let here = self.swim.sightings().into_iter().filter(|s| s.state == State::Alive);
        let mut occupied: BTreeSet<_> = here.map(|s| s.meta.cluster_addr).collect();
        occupied.insert(self.transport.local_addr());
        for addr in self.seeding.due(now, &occupied) {
            self.contact(Reason::Seed, addr);
        }
    }

    fn contact(&mut self, reason: Reason, addr: SocketAddr) {
        let transport = self.transport.clone();
        let deadline = Deadline::after(self.clock.now(), CONTACT_WITHIN);
        self.contacts.spawn(async move {
            let result = transport.contact(addr, deadline).await;
            (reason, addr, result)
        });
    }

    /// True if the view changed.
    fn carry_out(&mut self, output: Output, events: &mut Vec<Event>) -> bool {
        match output {
            Output::Send { to, addr, path, bytes } => {
                self.send(&to, addr, path, &bytes);
                false
            }
            Output::Event(event) => {
                events.push(event);
                true
            }
            Output::Changed => true,
            Output::Keep { node, addr } => {
                if let Err(error) = self.transport.add_peer(node.clone(), addr) {
                    tracing::warn!(%node, %error, "cannot keep connections");
                }
                false
            }
            Output::Release { node } => {
                self.transport.release_peer(&node);
                false
            }
            Output::Forget { node } => {
                self.transport.remove_peer(&node);
                false
            }
            Output::Recontact { addr, .. } => {
                if self.contacts.len() < RECONTACTS_MAX {
                    self.contact(Reason::Down, addr);
                }
                false
            }
            Output::Announced => {
                if let Some(done) = self.announced.take() {
                    done.send(()).ok();
                }
                false
            }
            Output::Superseded => {
                tracing::error!(node = %self.swim.node(), "a later life of this node is in the cluster");
                self.superseded.send_replace(true);
                false
            }
        }
    }

    /// Losing a packet is fine, so no error here goes further than a counter.
    fn send(&self, to: &NodeId, addr: Option<SocketAddr>, path: Path, bytes: &[u8]) {
        let sent = match (path, addr) {
            (Path::Datagram, Some(addr)) => {
                self.transport.datagrams().send(to, addr, bytes).is_ok()
            }
            (Path::Datagram, None) => false,
            (Path::Control, _) => self.transport.peer(to).is_some_and(|peer| {
                peer.is_up()
                    && peer
                        .send(
                            ChannelId::CONTROL,
                            SERVICE,
                            PartitionKey::ZERO,
                            Urgency::Now,
                            |buf| {
                                buf.put(bytes);
                            },
                        )
                        .is_ok()
            }),
        };
        if !sent {
            metrics::counter!("purlin_cluster_packets_unsent_total").increment(1);
        }
    }

    fn publish(&mut self, now: Instant, events: Vec<Event>) {
        for event in &events {
            tracing::info!(node = %event.node(), what = event.as_str(), ?event, "membership");
            metrics::counter!("purlin_cluster_events_total", "event" => event.as_str())
                .increment(1);
        }
        let wall: WallTime = self.clock.wall();
        self.board.publish(wall, self.swim.sightings(), events);
        if now >= self.refresh_at {
            self.refresh_at = now + REFRESH;
            self.report();
        }
    }

    fn report(&self) {
        let view = self.board.view();
        for state in [State::Alive, State::Suspect, State::Down, State::Left] {
            let count = view.members.iter().filter(|m| m.state == state).count();
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            metrics::gauge!("purlin_cluster_members", "state" => state.as_str()).set(count);
        }
        let counters = self.swim.counters();
        for (name, value) in [
            ("purlin_cluster_packets_sent_total", counters.packets_sent),
            ("purlin_cluster_packets_received_total", counters.packets_received),
            ("purlin_cluster_packets_malformed_total", counters.malformed),
            ("purlin_cluster_pings_total", counters.pings),
            ("purlin_cluster_ping_requests_total", counters.ping_requests),
            ("purlin_cluster_probes_failed_total", counters.probes_failed),
            ("purlin_cluster_refutations_total", counters.refutations),
            ("purlin_cluster_objections_total", counters.objections),
            ("purlin_cluster_stalls_total", counters.stalls),
            ("purlin_cluster_syncs_total", counters.syncs),
            ("purlin_cluster_members_refused_total", counters.refused_members),
        ] {
            metrics::counter!(name).absolute(value);
        }
        metrics::gauge!("purlin_cluster_local_health_score").set(counters.local_health);
    }
}
