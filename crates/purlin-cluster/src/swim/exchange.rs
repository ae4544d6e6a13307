//! Packets in and out: composing, reading, full sync and announcements.

use std::{collections::BTreeSet, net::SocketAddr};

use purlin_core::{Instant, NodeId, NodeName};

use super::{
    MeState, Output, Path, Swim,
    beliefs::Hearing,
    dissemination::{Kind, transmissions},
    member::{Standing, State},
    wire::{self, CONTROL_BYTES_MAX, Fnv, Header, Message, Packet, Rumour, WIRE_VERSION, Writer},
};

/// After this many pieces of news that did not fit, a packet is full.
const MISFITS_MAX: usize = 3;
/// No more news is looked at for one packet; a datagram holds about as many.
const NEWS_PER_PACKET_MAX: usize = 64;
/// The least pause between two pulls of somebody's state out of turn.
const PULL_PAUSE: std::time::Duration = std::time::Duration::from_secs(1);

/// News of ourselves that everybody must have read.
#[derive(Debug)]
pub(crate) struct Announcement {
    seq: u32,
    pub(crate) waiting: BTreeSet<NodeName>,
    pub(crate) resend_at: Instant,
    tries: u32,
}

/// How a packet came.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Road<'a> {
    pub(crate) from: &'a NodeId,
    pub(crate) addr: Option<SocketAddr>,
    pub(crate) path: Path,
}

impl Swim {
    fn header(&self) -> Header {
        Header {
            version: WIRE_VERSION,
            refutation: self.me.refutation,
            meta_version: self.me.meta_version,
        }
    }

    /// Sends `message` to the member `to`, with news about `first` in front of other news.
    ///
    /// Whoever we think badly of hears so first and can answer (Lifeguard's buddy system).
    pub(super) fn send(
        &mut self,
        to: &NodeName,
        path: Path,
        message: &Message,
        first: &[NodeName],
        out: &mut Vec<Output>,
    ) {
        let Some(member) = self.members.get(to) else { return };
        let (node, addr) = (member.id.clone(), member.meta.cluster_addr);
        let mut leading: Vec<&NodeName> = Vec::new();
        if self.me.state != MeState::Here {
            leading.push(&self.me.id.name);
        }
        if member.state != State::Alive {
            leading.push(to);
        }
        leading.extend(first);
        let leading: Vec<_> = leading
            .into_iter()
            .filter_map(|name| self.rumour_about(name, Kind::Standing))
            .collect();
        let bytes = self.compose(path, message, &leading);
        self.dispatch(node, Some(addr), path, bytes, out);
    }

    fn dispatch(
        &mut self,
        to: NodeId,
        addr: Option<SocketAddr>,
        path: Path,
        bytes: Vec<u8>,
        out: &mut Vec<Output>,
    ) {
        self.counters.packets_sent += 1;
        out.push(Output::Send { to, addr, path, bytes });
    }

    fn compose(&mut self, path: Path, message: &Message, leading: &[Rumour]) -> Vec<u8> {
        let bytes_max = match path {
            Path::Datagram => self.config.settings().datagram_bytes_max,
            Path::Control => CONTROL_BYTES_MAX,
        };
        let mut writer = Writer::new(bytes_max, self.header(), message);
        for rumour in leading {
            writer.push(rumour);
        }
        if self.rumours.is_empty() || self.me.state == MeState::Superseded {
            return writer.finish();
        }
        let limit = transmissions(self.members.len() + 1);
        let mut misfits = 0;
        for key in self.rumours.first(NEWS_PER_PACKET_MAX) {
            let Some(rumour) = self.rumour_about(&key.0, key.1) else {
                self.rumours.forget(&key.0);
                continue;
            };
            if leading.contains(&rumour) || writer.push(&rumour) {
                self.rumours.sent(&key, limit);
            } else {
                misfits += 1;
                if misfits == MISFITS_MAX {
                    break;
                }
            }
        }
        writer.finish()
    }

    pub(super) fn handle_packet(
        &mut self,
        now: Instant,
        road: Road<'_>,
        bytes: &[u8],
        out: &mut Vec<Output>,
    ) {
        let Road { from, path, .. } = road;
        if self.me.state == MeState::Superseded || from.name == self.me.id.name {
            return;
        }
        self.counters.packets_received += 1;
        let packet = match wire::read(bytes) {
            Ok(packet) => packet,
            Err(_malformed) => {
                self.counters.malformed += 1;
                return;
            }
        };
        if self.is_over(from) {
            self.tell_that_it_is_over(road, out);
            return;
        }
        let is_state = matches!(packet.message, Message::SyncState { .. });
        // What a newcomer, who knows its seed at most, learns from its first sync, all others
        // know already.
        self.pass_on = !(is_state && self.members.len() <= 1);
        let mut hearing = Hearing::default();
        self.hear_sender(now, from, &packet, &mut hearing, out);
        let Packet { header, message, news } = packet;
        for rumour in news {
            self.hear(now, rumour, &mut hearing, out);
        }
        self.pass_on = true;
        if self.me.state == MeState::Superseded {
            return;
        }
        let is_stranger = self.members.get(&from.name).is_none_or(|m| m.id != *from);
        if (hearing.pull || is_stranger) && !is_state {
            self.due.pull_from = Some(from.name.clone());
            self.due.pull_id = Some(from.clone());
        }
        let correct: Vec<_> = hearing.correct.into_iter().collect();
        self.answer(now, from, path, header, message, &correct, out);
    }

    /// Whether `from` is a life that can never be a member again, and that we no longer even list.
    fn is_over(&self, from: &NodeId) -> bool {
        match self.members.get(&from.name) {
            Some(member) => member.id.supersedes(from),
            None => self.tombstones.get(&from.name).is_some_and(|barred| {
                barred.incarnation > from.incarnation
                    || barred.incarnation == from.incarnation && barred.state == State::Left
            }),
        }
    }

    fn tell_that_it_is_over(&mut self, road: Road<'_>, out: &mut Vec<Output>) {
        let rumour = self.rumour_about(&road.from.name, Kind::Standing);
        let bytes = self.compose(road.path, &Message::Gossip, rumour.as_slice());
        self.dispatch(road.from.clone(), road.addr, road.path, bytes, out);
    }

    /// Everything a packet proves about its sender.
    fn hear_sender(
        &mut self,
        now: Instant,
        from: &NodeId,
        packet: &Packet,
        hearing: &mut Hearing,
        out: &mut Vec<Output>,
    ) {
        let Some(member) = self.members.get_mut(&from.name).filter(|m| m.id == *from) else {
            // A stranger or a later life; earlier ones do not get this far. Perhaps it says more
            // about itself in the same packet.
            return;
        };
        member.heard_at = Some(now);
        if packet.header.meta_version > member.meta_version {
            hearing.pull = true;
        }
        let standing = Standing {
            refutation: packet.header.refutation,
            state: State::Alive,
            ..member.standing()
        };
        let known = member.standing();
        if standing > known {
            self.believe(now, &from.name, standing, None, &[], out);
        } else if matches!(known.state, State::Suspect | State::Down) {
            // It talks, but does not know yet what is said about it.
            hearing.correct.insert(from.name.clone());
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one packet")]
    fn answer(
        &mut self,
        now: Instant,
        from: &NodeId,
        path: Path,
        header: Header,
        message: Message,
        correct: &[NodeName],
        out: &mut Vec<Output>,
    ) {
        match message {
            Message::Ping { seq } => {
                self.handle_ping(&from.name, path, seq, correct, out);
                return;
            }
            Message::PingReq { seq, target } => {
                self.handle_ping_request(now, from, seq, &target, correct, out);
            }
            Message::Ack { seq } => {
                if !self.relay_ack(&from.name, seq, header.refutation, out) {
                    self.handle_ack(now, &from.name, seq);
                }
            }
            Message::IndirectAck { seq, refutation } => {
                self.handle_indirect_ack(now, &from.name, seq, refutation, out);
            }
            Message::Nack { seq } => self.handle_nack(&from.name, seq),
            Message::Gossip => {}
            Message::SyncDigest { digest } => {
                if digest != self.digest() {
                    self.send_state(from, true, out);
                }
            }
            Message::SyncState { answer } => {
                if answer {
                    self.send_state(from, false, out);
                }
            }
            Message::Announce { seq } => {
                self.send(&from.name, path, &Message::Seen { seq }, correct, out);
                return;
            }
            Message::Seen { seq } => self.handle_seen(&from.name, seq, out),
        }
        if !correct.is_empty() {
            self.send(&from.name, path, &Message::Gossip, correct, out);
        }
    }

    /// A hash of everything about members that should agree in the long run. Suspicions are left
    /// out, and so are the departed, which nodes forget at different times.
    pub(super) fn digest(&self) -> u64 {
        let entry = |name: &NodeName, standing: Standing, meta_version: u32| {
            Fnv::new()
                .write(name.as_str().as_bytes())
                .write(&[0])
                .write(&standing.incarnation.0.to_le_bytes())
                .write(&standing.refutation.0.to_le_bytes())
                .write(&meta_version.to_le_bytes())
                .finish()
        };
        let here = self.members.values().filter(|m| m.is_contactable());
        here.map(|m| entry(&m.id.name, m.standing(), m.meta_version))
            .fold(entry(&self.me.id.name, self.my_standing(), self.me.meta_version), |a, b| a ^ b)
    }

    /// Says who we are to `to`, which need not be a member yet, and what we think of it if that is
    /// nothing good. With `compare`, asks for its state if that differs from ours.
    pub(super) fn greet(&mut self, to: &NodeId, compare: bool, out: &mut Vec<Output>) {
        let me = self.me.id.name.clone();
        let mut leading: Vec<_> = self.rumour_about(&me, Kind::Whole).into_iter().collect();
        let known = self.members.get(&to.name);
        if self.is_over(to) || known.is_some_and(|m| m.state != State::Alive) {
            leading.extend(self.rumour_about(&to.name, Kind::Standing));
        }
        let message = if compare {
            self.counters.syncs += 1;
            Message::SyncDigest { digest: self.digest() }
        } else {
            Message::Gossip
        };
        let bytes = self.compose(Path::Control, &message, &leading);
        self.dispatch(to.clone(), None, Path::Control, bytes, out);
    }

    /// Sends everything we believe to `to`, which need not be a member yet.
    pub(super) fn send_state(&mut self, to: &NodeId, answer: bool, out: &mut Vec<Output>) {
        let names = [&self.me.id.name].into_iter().chain(self.members.keys());
        let state: Vec<_> = names.filter_map(|name| self.rumour_about(name, Kind::Whole)).collect();
        let header = self.header();
        let writer =
            |answer| Writer::new(CONTROL_BYTES_MAX, header, &Message::SyncState { answer });
        let mut packets = Vec::new();
        let mut part = writer(false);
        for rumour in &state {
            if !part.push(rumour) {
                packets.push(std::mem::replace(&mut part, writer(false)).finish());
                let fits = part.push(rumour);
                assert!(fits, "one member of at most META_BYTES_MAX fits a control packet");
            }
        }
        packets.push(part.finish());
        if answer {
            packets.push(writer(true).finish());
        }
        for bytes in packets {
            self.dispatch(to.clone(), None, Path::Control, bytes, out);
        }
    }

    /// Full sync when its time has come, and pulls out of turn.
    pub(super) fn sync_due(&mut self, now: Instant, out: &mut Vec<Output>) {
        if let Some(from) = self.due.pull_from.clone()
            && self.due.pull_free <= now
        {
            self.due.pull_from = None;
            self.due.pull_free = now + PULL_PAUSE;
            let stranger = self.due.pull_id.take().filter(|id| id.name == from);
            if let Some(to) = stranger.or_else(|| self.members.get(&from).map(|m| m.id.clone())) {
                self.send_digest(&to, out);
            }
        }
        if self.due.sync > now {
            return;
        }
        let interval = self.config.settings().sync_interval;
        self.due.sync = now + interval.mul_f64(0.8) + self.rng.jitter(interval.mul_f64(0.4));
        if let Some(to) = self.some_members(1).pop()
            && let Some(to) = self.members.get(&to).map(|m| m.id.clone())
        {
            self.send_digest(&to, out);
        }
    }

    fn send_digest(&mut self, to: &NodeId, out: &mut Vec<Output>) {
        self.counters.syncs += 1;
        let message = Message::SyncDigest { digest: self.digest() };
        let bytes = self.compose(Path::Control, &message, &[]);
        self.dispatch(to.clone(), None, Path::Control, bytes, out);
    }

    /// Sends urgent news on its own, until it has been told often enough.
    pub(super) fn gossip_due(&mut self, now: Instant, out: &mut Vec<Output>) {
        if self.due.gossip.is_none_or(|at| at > now) {
            return;
        }
        for to in self.some_members(self.config.settings().gossip_fanout) {
            if !self.rumours.is_empty() {
                self.send(&to, Path::Datagram, &Message::Gossip, &[], out);
            }
        }
        let again = now + self.config.settings().gossip_interval;
        self.due.gossip = self.rumours.has_urgent().then_some(again);
    }

    /// Up to `count` different members at random that news goes to.
    fn some_members(&mut self, count: usize) -> Vec<NodeName> {
        let mut names: Vec<_> =
            self.members.values().filter(|m| m.is_contactable()).map(|m| &m.id.name).collect();
        let mut some = Vec::new();
        while some.len() < count && !names.is_empty() {
            some.push(names.swap_remove(self.rng.below(names.len())).clone());
        }
        some
    }

    /// Starts telling everybody what we now say of ourselves.
    pub(super) fn announce(&mut self, now: Instant, out: &mut Vec<Output>) {
        let waiting = self
            .members
            .values()
            .filter(|m| m.is_contactable())
            .map(|m| m.id.name.clone())
            .collect();
        let seq = self.next_seq();
        self.announcement = Some(Announcement { seq, waiting, resend_at: now, tries: 0 });
        self.announcement_due(now, out);
    }

    pub(super) fn announcement_due(&mut self, now: Instant, out: &mut Vec<Output>) {
        let Some(mut announcement) = self.announcement.take() else { return };
        announcement
            .waiting
            .retain(|name| self.members.get(name).is_some_and(super::Member::is_contactable));
        if announcement.waiting.is_empty() {
            out.push(Output::Announced);
            return;
        }
        if announcement.resend_at <= now {
            // Both roads in turn: either may be blocked.
            let path =
                if announcement.tries.is_multiple_of(2) { Path::Control } else { Path::Datagram };
            announcement.tries += 1;
            announcement.resend_at = now + self.config.settings().ack_timeout * 2;
            let message = Message::Announce { seq: announcement.seq };
            let about_me = self.rumour_about(&self.me.id.name, Kind::Whole);
            for name in &announcement.waiting {
                let Some(member) = self.members.get(name) else { continue };
                let (node, addr) = (member.id.clone(), member.meta.cluster_addr);
                let bytes = self.compose(path, &message, about_me.as_slice());
                self.dispatch(node, Some(addr), path, bytes, out);
            }
        }
        self.announcement = Some(announcement);
    }

    fn handle_seen(&mut self, from: &NodeName, seq: u32, out: &mut Vec<Output>) {
        let Some(announcement) = self.announcement.as_mut().filter(|a| a.seq == seq) else {
            return;
        };
        announcement.waiting.remove(from);
        if announcement.waiting.is_empty() {
            self.announcement = None;
            out.push(Output::Announced);
        }
    }
}
