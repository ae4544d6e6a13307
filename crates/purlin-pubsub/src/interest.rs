//! Which nodes want which topics, as two pure state machines and the frames between them.
//!
//! Sending every message to every node makes the whole cluster pay for one subscriber. So each
//! node *announces* its interest (the topics and patterns it has subscribers for) to its peers, and
//! a publisher sends only where a match was announced. Frames travel in order on the `control`
//! channel, and each carries the version it leads to, so a gap is noticed and healed by asking for
//! a snapshot. A node that has announced nothing yet gets nothing: at most once stays true.
//!
//! [`Announcer`] is the announcing side, [`PeerInterest`] what the other side keeps per peer.
//!
//! Bounds: a node with more than [`InterestLimits::entries_max`] topics and patterns announces
//! `**` instead, until half of the bound is left; a receiver whose own bound is lower does the same
//! on its side. Both trade traffic for memory and lose no message.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
    time::Duration,
};

use purlin_core::{Instant, NodeId};
use serde::{Deserialize, Serialize};

use crate::{
    pattern::{Pattern, PatternTree},
    topic::Topic,
};

/// The most bytes of topics and patterns in one frame.
const FRAME_TEXT_BYTES_MAX: usize = 32 * 1024;

/// The largest interest frame that is read: the text, and postcard's lengths around it.
pub(crate) const FRAME_BYTES_MAX: usize = 128 * 1024;

/// How long an announcement may stay unacknowledged before a snapshot replaces it, and a question
/// unanswered before it is asked again. Three round trips of a bad network; a guess.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// Bounds of interest tracking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InterestLimits {
    /// Topics and patterns announced by one node, and kept for one peer.
    pub(crate) entries_max: usize,
}

/// What travels on `control`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum InterestFrame {
    /// One part of everything announced as of `version`; the parts of a version come in order.
    Snapshot { version: u64, part: u32, last: bool, entries: Vec<Arc<str>> },
    /// What changed from version `from` to `from + 1`.
    Delta { from: u64, added: Vec<Arc<str>>, removed: Vec<Arc<str>> },
    /// Everything up to `version` is known here.
    Known { version: u64 },
    /// Please send a snapshot.
    Ask,
}

impl InterestFrame {
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_stdvec(self).expect("strings and integers always encode")
    }

    /// Decodes a frame, refusing more than [`FRAME_BYTES_MAX`] before looking inside.
    pub(crate) fn decode(frame: &[u8]) -> Option<Self> {
        (frame.len() <= FRAME_BYTES_MAX).then_some(())?;
        postcard::from_bytes(frame).ok()
    }
}

/// A frame to send to a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Send {
    pub(crate) to: NodeId,
    pub(crate) frame: InterestFrame,
}

/// What this node announces, and how far each peer knows it.
#[derive(Debug)]
pub(crate) struct Announcer {
    limits: InterestLimits,
    /// Subscriptions per topic or pattern.
    wanted: BTreeMap<Arc<str>, usize>,
    announced: BTreeSet<Arc<str>>,
    touched: BTreeSet<Arc<str>>,
    /// More is wanted than may be announced one by one.
    coarse: bool,
    /// Nothing is wanted any more, whatever is still subscribed.
    withdrawn: bool,
    version: u64,
    peers: BTreeMap<NodeId, Link>,
}

/// How far one peer is.
#[derive(Debug, Default)]
struct Link {
    /// It asked, or may have missed something: a snapshot is due.
    stale: bool,
    /// It has asked at least once, so deltas make sense to it.
    asked: bool,
    known: u64,
    /// When the oldest unacknowledged announcement was sent.
    unanswered: Option<Instant>,
}

impl Announcer {
    pub(crate) fn new(limits: InterestLimits) -> Self {
        Self {
            limits,
            wanted: BTreeMap::new(),
            announced: BTreeSet::new(),
            touched: BTreeSet::new(),
            coarse: false,
            withdrawn: false,
            // The empty announcement is version 1: a peer that knows version 0 knows nothing.
            version: 1,
            peers: BTreeMap::new(),
        }
    }

    /// A local subscription began. True if the peers must be told: call [`Announcer::flush`].
    pub(crate) fn subscribed(&mut self, pattern: &Pattern) -> bool {
        let count = self.wanted.entry(Arc::clone(pattern.text())).or_default();
        *count += 1;
        *count == 1 && self.touched.insert(Arc::clone(pattern.text()))
    }

    /// A local subscription ended. True if the peers must be told.
    pub(crate) fn unsubscribed(&mut self, pattern: &Pattern) -> bool {
        let count =
            self.wanted.get_mut(pattern.text()).expect("every unsubscribe follows its subscribe");
        *count -= 1;
        if *count > 0 {
            return false;
        }
        self.wanted.remove(pattern.text());
        self.touched.insert(Arc::clone(pattern.text()));
        true
    }

    /// Announces from now on that nothing is wanted: this node stops.
    pub(crate) fn withdraw(&mut self) {
        self.withdrawn = true;
        self.announced.clear();
        self.version += 1;
        self.peers.values_mut().for_each(|link| link.stale = link.asked);
    }

    pub(crate) fn peer_up(&mut self, peer: NodeId) {
        self.peers.entry(peer).or_default();
    }

    pub(crate) fn peer_down(&mut self, peer: &NodeId) {
        self.peers.remove(peer);
    }

    /// `peer` asked, a frame to it could not be sent, or its control connection was replaced.
    pub(crate) fn resend(&mut self, peer: &NodeId, asked: bool) {
        if let Some(link) = self.peers.get_mut(peer) {
            link.asked |= asked;
            link.stale = link.asked;
        }
    }

    /// `peer` has acknowledged `version`.
    pub(crate) fn known(&mut self, now: Instant, peer: &NodeId, version: u64) {
        let newest = self.version;
        // A version this node never announced is junk: believing it would fake propagation.
        if let Some(link) =
            self.peers.get_mut(peer).filter(|link| link.known <= version && version <= newest)
        {
            link.known = version;
            link.unanswered = (version < newest).then_some(now);
        }
    }

    /// The version of what has been announced; covers everything subscribed before the last flush.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// Whether `expected`, and every peer that listens, have acknowledged `version`.
    pub(crate) fn is_known_everywhere(&self, version: u64, expected: &[NodeId]) -> bool {
        self.version >= version
            && self.peers.values().all(|link| link.known >= version)
            && expected.iter().all(|node| self.peers.contains_key(node))
    }

    /// Whether anything waits for an acknowledgement or could not be sent.
    #[cfg(test)]
    pub(crate) fn is_waiting(&self) -> bool {
        self.peers.values().any(|link| link.stale || link.unanswered.is_some())
    }

    /// Topics and patterns wanted here.
    pub(crate) fn entries(&self) -> usize {
        self.wanted.len()
    }

    /// Whether this node announces `**` because it is above its bound.
    pub(crate) fn is_coarse(&self) -> bool {
        self.coarse
    }

    /// Says what to send now. To be called after changes and now and then.
    pub(crate) fn flush(&mut self, now: Instant, out: &mut Vec<Send>) {
        for link in self.peers.values_mut() {
            if link.unanswered.is_some_and(|since| now.saturating_since(since) >= ANSWER_WITHIN) {
                link.stale = true;
            }
        }
        self.announce_changes(now, out);
        let mut snapshot = None;
        for (peer, link) in self.peers.iter_mut().filter(|(_, link)| link.stale) {
            let frames =
                snapshot.get_or_insert_with(|| snapshot_frames(self.version, &self.announced));
            out.extend(frames.iter().map(|frame| Send { to: peer.clone(), frame: frame.clone() }));
            link.stale = false;
            link.unanswered = Some(now);
        }
    }

    fn announce_changes(&mut self, now: Instant, out: &mut Vec<Send>) {
        if self.touched.is_empty() || self.withdrawn {
            return;
        }
        if self.switch_coarseness() {
            self.version += 1;
            self.touched.clear();
            self.peers.values_mut().for_each(|link| link.stale = link.asked);
            return;
        }
        let touched = std::mem::take(&mut self.touched);
        if self.coarse {
            // `**` already says it. The version moves so that waiting for it makes sense.
            self.delta(now, Vec::new(), Vec::new(), out);
            return;
        }
        let (mut added, mut removed, mut bytes) = (Vec::new(), Vec::new(), 0);
        let mut deltas = 0;
        for entry in touched {
            let list = match (self.wanted.contains_key(&entry), self.announced.contains(&entry)) {
                (true, false) => &mut added,
                (false, true) => &mut removed,
                (true, true) | (false, false) => continue,
            };
            bytes += entry.len();
            list.push(entry);
            if bytes >= FRAME_TEXT_BYTES_MAX {
                deltas += 1;
                self.delta(now, std::mem::take(&mut added), std::mem::take(&mut removed), out);
                bytes = 0;
            }
        }
        if deltas == 0 || bytes > 0 {
            self.delta(now, added, removed, out);
        }
    }

    /// Goes to announcing `**` or back. True if it did: everybody then needs a snapshot.
    fn switch_coarseness(&mut self) -> bool {
        if !self.coarse && self.wanted.len() > self.limits.entries_max {
            self.coarse = true;
            self.announced = BTreeSet::from([Arc::clone(Pattern::everything().text())]);
            return true;
        }
        if self.coarse && self.wanted.len() <= self.limits.entries_max / 2 {
            self.coarse = false;
            self.announced = self.wanted.keys().cloned().collect();
            return true;
        }
        false
    }

    fn delta(
        &mut self,
        now: Instant,
        added: Vec<Arc<str>>,
        removed: Vec<Arc<str>>,
        out: &mut Vec<Send>,
    ) {
        self.announced.extend(added.iter().cloned());
        removed.iter().for_each(|entry| {
            assert!(self.announced.remove(entry), "removed {entry} was announced")
        });
        let from = self.version;
        self.version += 1;
        // Who never asked has nothing to build on; who is stale gets a snapshot anyway.
        for (peer, link) in self.peers.iter_mut().filter(|(_, link)| link.asked && !link.stale) {
            let frame =
                InterestFrame::Delta { from, added: added.clone(), removed: removed.clone() };
            out.push(Send { to: peer.clone(), frame });
            link.unanswered.get_or_insert(now);
        }
    }
}

fn snapshot_frames(version: u64, announced: &BTreeSet<Arc<str>>) -> Vec<InterestFrame> {
    let mut parts = vec![Vec::new()];
    let mut bytes = 0;
    for entry in announced {
        if bytes >= FRAME_TEXT_BYTES_MAX {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += entry.len();
        parts.last_mut().expect("starts with one part").push(Arc::clone(entry));
    }
    let count = parts.len();
    let number =
        |part: usize| u32::try_from(part).expect("the interest bound keeps parts far below 2^32");
    parts
        .into_iter()
        .enumerate()
        .map(|(part, entries)| InterestFrame::Snapshot {
            version,
            part: number(part),
            last: part + 1 == count,
            entries,
        })
        .collect()
}

/// What one peer has announced.
#[derive(Debug)]
pub(crate) struct PeerInterest {
    limits: InterestLimits,
    /// `None` until the first snapshot is complete.
    version: Option<u64>,
    topics: HashSet<Topic>,
    patterns: PatternTree<()>,
    /// Above the bound: treated as wanting everything until the next snapshot.
    coarse: bool,
    staging: Option<Staging>,
    asked_at: Option<Instant>,
}

#[derive(Debug)]
struct Staging {
    version: u64,
    parts: u32,
    topics: HashSet<Topic>,
    patterns: PatternTree<()>,
    coarse: bool,
}

/// What an applied frame changed here, and what to answer.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Applied {
    /// Routes of these topics are out of date.
    pub(crate) topics: Vec<Topic>,
    /// All routes are out of date.
    pub(crate) patterns: bool,
    pub(crate) answer: Option<InterestFrame>,
    /// Entries that were no topics or patterns: the peer sent junk.
    pub(crate) malformed: usize,
}

impl PeerInterest {
    pub(crate) fn new(limits: InterestLimits) -> Self {
        Self {
            limits,
            version: None,
            topics: HashSet::new(),
            patterns: PatternTree::default(),
            coarse: false,
            staging: None,
            asked_at: None,
        }
    }

    /// Whether messages of `topic` go to this peer.
    pub(crate) fn wants(&self, topic: &str) -> bool {
        self.coarse || self.topics.contains(topic) || self.patterns.matches(topic)
    }

    /// Topics and patterns kept for this peer.
    pub(crate) fn entries(&self) -> usize {
        self.topics.len() + self.patterns.len()
    }

    /// Whether it is treated as wanting everything.
    pub(crate) fn is_coarse(&self) -> bool {
        self.coarse || self.patterns.get(&Pattern::everything()).is_some()
    }

    /// Whether its interest is known yet.
    pub(crate) fn is_known(&self) -> bool {
        self.version.is_some()
    }

    /// The question to send, if a snapshot is due and none is on its way.
    pub(crate) fn question(&mut self, now: Instant) -> Option<InterestFrame> {
        let due = self.version.is_none()
            && self.asked_at.is_none_or(|at| now.saturating_since(at) >= ANSWER_WITHIN);
        due.then(|| {
            self.asked_at = Some(now);
            InterestFrame::Ask
        })
    }

    /// Something may have been lost on the way: ask again, and keep what is known until then.
    pub(crate) fn doubt(&mut self) {
        self.version = None;
        self.asked_at = None;
        self.staging = None;
    }

    /// Applies a part of a snapshot or a delta.
    pub(crate) fn apply(&mut self, now: Instant, frame: InterestFrame) -> Applied {
        match frame {
            InterestFrame::Snapshot { version, part, last, entries } => {
                self.apply_snapshot(now, version, part, last, &entries)
            }
            InterestFrame::Delta { from, added, removed } => {
                self.apply_delta(now, from, &added, &removed)
            }
            InterestFrame::Known { .. } | InterestFrame::Ask => Applied::default(),
        }
    }

    fn apply_snapshot(
        &mut self,
        now: Instant,
        version: u64,
        part: u32,
        last: bool,
        entries: &[Arc<str>],
    ) -> Applied {
        if part == 0 {
            self.staging = Some(Staging {
                version,
                parts: 0,
                topics: HashSet::new(),
                patterns: PatternTree::default(),
                coarse: false,
            });
        }
        let limits = self.limits;
        let Some(staging) =
            self.staging.as_mut().filter(|s| s.version == version && s.parts == part)
        else {
            return self.lost_track(now);
        };
        staging.parts += 1;
        let mut applied = Applied::default();
        for entry in entries {
            if staging.coarse {
                break;
            }
            match Pattern::parse(entry) {
                Ok(pattern) => match pattern.as_topic() {
                    Some(topic) => drop(staging.topics.insert(topic)),
                    None => drop(staging.patterns.insert(&pattern, ())),
                },
                Err(_) => applied.malformed += 1,
            }
            if staging.topics.len() + staging.patterns.len() > limits.entries_max {
                (staging.topics, staging.patterns, staging.coarse) =
                    (HashSet::new(), PatternTree::default(), true);
            }
        }
        if last && let Some(staged) = self.staging.take() {
            (self.topics, self.patterns, self.coarse) =
                (staged.topics, staged.patterns, staged.coarse);
            (self.version, self.asked_at) = (Some(version), None);
            applied.patterns = true;
            applied.answer = Some(InterestFrame::Known { version });
        }
        applied
    }

    fn apply_delta(
        &mut self,
        now: Instant,
        from: u64,
        added: &[Arc<str>],
        removed: &[Arc<str>],
    ) -> Applied {
        // During a snapshot the delta comes too early; the snapshot that answers is newer.
        if self.version != Some(from) || self.staging.is_some() {
            return self.lost_track(now);
        }
        let version = from.saturating_add(1);
        self.version = Some(version);
        let mut applied =
            Applied { answer: Some(InterestFrame::Known { version }), ..Applied::default() };
        if self.coarse {
            return applied;
        }
        for (entry, add) in
            added.iter().map(|e| (e, true)).chain(removed.iter().map(|e| (e, false)))
        {
            let Ok(pattern) = Pattern::parse(entry) else {
                applied.malformed += 1;
                continue;
            };
            match (pattern.as_topic(), add) {
                (Some(topic), true) => {
                    self.topics.insert(topic.clone());
                    applied.topics.push(topic);
                }
                (Some(topic), false) => {
                    self.topics.remove(&topic);
                    applied.topics.push(topic);
                }
                (None, true) => {
                    self.patterns.insert(&pattern, ());
                    applied.patterns = true;
                }
                (None, false) => {
                    self.patterns.remove(&pattern);
                    applied.patterns = true;
                }
            }
        }
        if self.entries() > self.limits.entries_max {
            (self.topics, self.patterns, self.coarse) =
                (HashSet::new(), PatternTree::default(), true);
            applied.patterns = true;
        }
        applied
    }

    fn lost_track(&mut self, now: Instant) -> Applied {
        let in_step = self.version.take().is_some();
        if in_step {
            self.asked_at = None;
        }
        self.staging = None;
        Applied { answer: self.question(now), ..Applied::default() }
    }
}

#[cfg(test)]
mod tests;
