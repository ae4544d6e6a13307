//! Whether an entry of a near cache may still be given out. Pure.
//!
//! Other nodes tell us what they write. When a connection is lost nobody tells us anything, and
//! the easy answer, to go on until it is back, serves the past for as long as the cut lasts. So an
//! entry is trusted while it is younger than a lease, or while **every** other writer was heard
//! within a lease: heard means that it answered a question of ours with everything we had missed,
//! counted from when we asked. Then no write older than a lease can be unknown to us.
//!
//! # Source
//! Gray and Cheriton 1989 (leases), turned around: the reader asks, so the writer keeps no promise
//! and never waits.

use std::{collections::BTreeMap, time::Duration};

use purlin_core::{Instant, NodeId};

use crate::invalidation::{Catchup, Invalidation, Position};

/// What this node knows of the other writers.
#[derive(Debug, Default)]
pub struct Coherence {
    writers: BTreeMap<NodeId, Writer>,
    /// Entries known before this may miss a write that nobody remembers.
    distrusted_before: Option<Instant>,
}

#[derive(Debug, Default)]
struct Writer {
    applied: Option<Position>,
    heard_at: Option<Instant>,
    /// It said that it writes no more, and we have all it wrote.
    is_final: bool,
}

/// What readers need, small enough to be copied to where they look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trust {
    /// Entries known before this are not given out.
    pub distrusted_before: Option<Instant>,
    /// The writer heard longest ago; `None` when one was never heard.
    pub all_heard_at: Option<Instant>,
    /// Whether there is nobody else.
    pub is_alone: bool,
}

impl Trust {
    /// Whether an entry known since `known_at` misses no write older than `lease` at `now`.
    #[must_use]
    pub fn covers(&self, known_at: Instant, lease: Duration, now: Instant) -> bool {
        if self.distrusted_before.is_some_and(|before| known_at < before) {
            return false;
        }
        let within = |since: Instant| now < since + lease;
        self.is_alone || within(known_at) || self.all_heard_at.is_some_and(within)
    }
}

impl Coherence {
    /// Sets who may write: all members but those that left, were replaced, or whose process is
    /// known to be gone. One that is merely silent stays: it may be writing on its side of a cut.
    ///
    /// Who goes without having said that it writes no more may have written last what nobody
    /// heard: then everything known before is distrusted. A drain costs nothing, a crash does.
    pub fn writers(&mut self, ids: impl IntoIterator<Item = NodeId>, now: Instant) {
        let mut before = std::mem::take(&mut self.writers);
        self.writers = ids
            .into_iter()
            .map(|node| {
                let known = before.remove(&node).unwrap_or_default();
                (node, known)
            })
            .collect();
        if before.values().any(|gone| !gone.is_final) {
            self.distrust_before(now);
        }
    }

    fn distrust_before(&mut self, at: Instant) {
        self.distrusted_before = Some(self.distrusted_before.map_or(at, |old| old.max(at)));
    }

    /// Whom to ask, and after which position.
    pub fn questions(&self) -> impl Iterator<Item = (&NodeId, Option<Position>)> {
        self.writers.iter().map(|(node, writer)| (node, writer.applied))
    }

    /// A writer told of a write by itself. To be applied in any case; that nothing before it was
    /// missed is only known when its number is the next.
    pub fn told(&mut self, by: &NodeId, at: Position) {
        if let Some(writer) = self.writers.get_mut(by)
            && let Some(applied) = &mut writer.applied
            && applied.stream == at.stream
            && applied.seq + 1 == at.seq
        {
            *applied = at;
        }
    }

    /// A writer answered the question of `asked_at`. Returns what is to be applied.
    pub fn answered(
        &mut self,
        by: &NodeId,
        asked_at: Instant,
        catchup: Catchup,
    ) -> Vec<Invalidation> {
        let Some(writer) = self.writers.get_mut(by) else { return Vec::new() };
        // An answer that was overtaken by a later one knows less than we do.
        if writer.heard_at.is_some_and(|heard| heard > asked_at) {
            return catchup.missed.unwrap_or_default();
        }
        writer.heard_at = Some(asked_at);
        writer.is_final = catchup.is_final;
        let is_ahead = writer
            .applied
            .is_some_and(|at| at.stream == catchup.now.stream && at.seq > catchup.now.seq);
        if !is_ahead {
            writer.applied = Some(catchup.now);
        }
        catchup.missed.unwrap_or_else(|| {
            // What was missed is forgotten, so everything we knew before asking may be the past.
            self.distrust_before(asked_at);
            Vec::new()
        })
    }

    /// For readers.
    #[must_use]
    pub fn trust(&self) -> Trust {
        let unheard = self.writers.values().any(|writer| writer.heard_at.is_none());
        let oldest = self.writers.values().filter_map(|writer| writer.heard_at).min();
        Trust {
            distrusted_before: self.distrusted_before,
            all_heard_at: oldest.filter(|_| !unheard),
            is_alone: self.writers.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use bytes::Bytes;
    use proptest::prelude::*;
    use purlin_core::{Hlc, HlcTimestamp, Incarnation, NodeName, WallTime};

    use super::*;
    use crate::invalidation::{LOG_BYTES_MAX, Log};

    const LEASE: Duration = Duration::from_millis(100);

    fn at(ms: u64) -> Instant {
        Instant::from_start(Duration::from_millis(ms))
    }

    fn node(number: usize, life: u64) -> NodeId {
        NodeId::new(NodeName::parse(&format!("n{number}")).unwrap(), Incarnation(life))
    }

    fn version(ms: u64) -> HlcTimestamp {
        Hlc::new(&node(0, 1)).now(WallTime::from_millis(ms)).unwrap()
    }

    fn write(key: &str, ms: u64) -> Invalidation {
        let key = Some(Bytes::copy_from_slice(key.as_bytes()));
        Invalidation { cache: "c".into(), key, version: version(ms) }
    }

    #[test]
    fn what_a_short_cut_hid_is_told_after_it_and_nothing_else_is_forgotten() {
        let (mut log, mut reader) = (Log::new(1), Coherence::default());
        let writer = node(1, 1);
        reader.writers([writer.clone()], at(0));
        assert!(reader.answered(&writer, at(1), log.since(None)).is_empty());
        log.record(write("a", 10));
        log.record(write("b", 11));
        let (_, applied) = reader.questions().next().unwrap();
        let missed = reader.answered(&writer, at(500), log.since(applied));
        assert_eq!(missed, [write("a", 10), write("b", 11)]);
        assert!(reader.trust().covers(at(0), LEASE, at(550)), "old entries are trusted again");
    }

    #[test]
    fn when_the_writer_has_forgotten_what_we_missed_everything_older_is_distrusted() {
        let (mut log, mut reader) = (Log::new(1), Coherence::default());
        let writer = node(1, 1);
        reader.writers([writer.clone()], at(0));
        reader.answered(&writer, at(1), log.since(None));
        let long = "k".repeat(1_000);
        for n in 0..2 * LOG_BYTES_MAX as u64 / 1_000 {
            log.record(write(&long, 10 + n));
        }
        let (_, applied) = reader.questions().next().unwrap();
        assert!(reader.answered(&writer, at(50), log.since(applied)).is_empty());
        assert!(!reader.trust().covers(at(49), LEASE, at(51)));
        assert!(reader.trust().covers(at(50), LEASE, at(51)));
    }

    #[test]
    fn a_new_writer_that_never_wrote_costs_no_entry() {
        let mut reader = Coherence::default();
        reader.writers([node(1, 1)], at(0));
        reader.answered(&node(1, 1), at(1), Log::new(1).since(None));
        reader.writers([node(1, 1), node(2, 1)], at(0));
        assert!(!reader.trust().covers(at(0), LEASE, at(150)), "not heard yet");
        reader.answered(&node(1, 1), at(140), Log::new(1).since(None));
        reader.answered(&node(2, 1), at(140), Log::new(1).since(None));
        assert!(reader.trust().covers(at(0), LEASE, at(150)));
    }

    #[test]
    fn a_writer_that_said_farewell_costs_no_entry_and_one_that_crashed_all_of_them() {
        for is_final in [true, false] {
            let mut reader = Coherence::default();
            reader.writers([node(1, 1)], at(0));
            let last = Catchup { is_final, ..Log::new(1).since(None) };
            reader.answered(&node(1, 1), at(10), last);
            reader.writers([], at(20));
            assert_eq!(reader.trust().covers(at(5), LEASE, at(21)), is_final);
        }
    }

    #[derive(Debug, Clone)]
    enum Event {
        Write { writer: usize, key: u8, push_arrives: bool },
        Load(u8),
        Ask { writer: usize, lasts: u64, arrives: bool },
        Restart(usize),
        Wait(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            4 => (0..3_usize, 0..4_u8, any::<bool>())
                .prop_map(|(writer, key, push_arrives)| Event::Write { writer, key, push_arrives }),
            3 => (0..4_u8).prop_map(Event::Load),
            4 => (0..3_usize, 0..30_u64, any::<bool>())
                .prop_map(|(writer, lasts, arrives)| Event::Ask { writer, lasts, arrives }),
            1 => (0..3_usize).prop_map(Event::Restart),
            3 => (1..80_u64).prop_map(Event::Wait),
        ]
    }

    proptest! {
        /// Whatever is lost or delayed, no entry is trusted that misses a write older than the
        /// lease.
        #[test]
        fn no_trusted_entry_misses_a_write_older_than_the_lease(
            events in proptest::collection::vec(event(), 1..120),
        ) {
            let mut now = 1_000;
            let mut lives = [1_u64; 3];
            let mut logs: Vec<Log> = (0..3).map(|_| Log::new(1)).collect();
            let mut reader = Coherence::default();
            let ids = |lives: &[u64; 3]| (0..3).map(|n| node(n, lives[n])).collect::<Vec<_>>();
            reader.writers(ids(&lives), at(now));
            // key -> when our copy was known; and when the key was written last.
            let mut copies: BTreeMap<u8, u64> = BTreeMap::new();
            let mut written: BTreeMap<u8, BTreeSet<u64>> = BTreeMap::new();
            let key_of = |write: &Invalidation| write.key.as_ref().unwrap()[0];
            for event in events {
                match event {
                    Event::Write { writer, key, push_arrives } => {
                        now += 1;
                        written.entry(key).or_default().insert(now);
                        let position = logs[writer].record(Invalidation {
                            cache: "c".into(),
                            key: Some(Bytes::copy_from_slice(&[key])),
                            version: version(now),
                        });
                        let position = position.unwrap();
                        if push_arrives {
                            reader.told(&node(writer, lives[writer]), position);
                            copies.remove(&key);
                        }
                    }
                    Event::Load(key) => {
                        now += 1;
                        copies.insert(key, now);
                    }
                    Event::Ask { writer, lasts, arrives } => {
                        let asked = now;
                        now += lasts;
                        let id = node(writer, lives[writer]);
                        let applied = reader.questions().find(|(n, _)| **n == id).unwrap().1;
                        let answer = logs[writer].since(applied);
                        if arrives {
                            for write in reader.answered(&id, at(asked), answer) {
                                // Only copies older than the write are the past.
                                let key = key_of(&write);
                                let when = write.version.millis().as_millis();
                                copies.retain(|k, known| *k != key || *known >= when);
                            }
                        }
                    }
                    Event::Restart(writer) => {
                        lives[writer] += 1;
                        logs[writer] = Log::new(lives[writer]);
                        reader.writers(ids(&lives), at(now));
                    }
                    Event::Wait(ms) => now += ms,
                }
                for (key, known) in &copies {
                    let lease_ms = 100;
                    let missed = written.get(key).and_then(|w| w.range(known + 1..).next());
                    if reader.trust().covers(at(*known), LEASE, at(now)) {
                        prop_assert!(
                            missed.is_none_or(|when| now - when <= lease_ms),
                            "copy of {known} at {now} misses the write of {missed:?}"
                        );
                    }
                }
            }
        }
    }
}
