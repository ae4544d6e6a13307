//! Hybrid logical clocks: timestamps close to wall time that respect cause and effect.
//!
//! Wall clocks of different nodes disagree and jump, so "the later write wins" decided by them
//! loses writes. A hybrid logical clock keeps 48 bits of wall milliseconds and a 16-bit counter:
//! it never goes back, always moves past what it has heard, and stays within a bounded distance
//! of real time. The node's tag makes every timestamp unique and the order total.
//!
//! # Source
//! Kulkarni, Demirbas et al. 2014, "Logical Physical Clocks". We differ where the paper is silent:
//! a counter that overflows carries into the next millisecond instead of failing, and a remote
//! time too far in the future is refused instead of believed.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{NodeId, WallTime};

const COUNTER_BITS: u32 = 16;
const MILLIS_MAX: u64 = (1 << 48) - 1;

/// The future drift accepted by default: what unsynchronised virtual machines show after a
/// resume, and far above any NTP error. A guess, to be tuned per cluster.
pub const DRIFT_MAX_DEFAULT: Duration = Duration::from_secs(10);

/// A compact, stable tag of one life of a node: breaks ties between equal times.
///
/// 64 bits of FNV-1a over `name@incarnation`, the same on every release. Among 10,000 lives two
/// share a tag with a probability of about 3 in a trillion; equal tags would make two timestamps
/// equal, not wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeTag(pub u64);

impl NodeTag {
    /// The tag of `node`.
    #[must_use]
    pub fn of(node: &NodeId) -> Self {
        let mix =
            |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        let name = node.name.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, mix);
        Self(node.incarnation.0.to_be_bytes().into_iter().fold(mix(name, b'@'), mix))
    }
}

impl fmt::Debug for NodeTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// One moment of hybrid logical time: totally ordered, unique per issuing node.
///
/// Text form: `<milliseconds>.<counter>.<tag in hex>`. Bytes: [`HlcTimestamp::to_bytes`], which
/// sort like the timestamps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HlcTimestamp {
    time: u64,
    node: NodeTag,
}

impl HlcTimestamp {
    /// The wall milliseconds in it; may run ahead of every wall clock, never by more than the
    /// accepted drift.
    #[must_use]
    pub fn millis(self) -> WallTime {
        WallTime::from_millis(self.time >> COUNTER_BITS)
    }

    /// The counter within its millisecond.
    #[must_use]
    pub fn counter(self) -> u16 {
        u16::try_from(self.time & u64::from(u16::MAX)).expect("masked to 16 bits")
    }

    /// Which life of which node issued it.
    #[must_use]
    pub fn node(self) -> NodeTag {
        self.node
    }

    /// 16 bytes, big endian, that sort like the timestamps.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.time) << 64 | u128::from(self.node.0)).to_be_bytes()
    }

    /// The timestamp that [`HlcTimestamp::to_bytes`] wrote. Every 16 bytes are a timestamp.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let [time, node] = [0, 8].map(|at| {
            u64::from_be_bytes(bytes[at..at + 8].try_into().expect("8 bytes of a 16-byte array"))
        });
        Self { time, node: NodeTag(node) }
    }
}

impl fmt::Display for HlcTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{:016x}", self.millis().as_millis(), self.counter(), self.node.0)
    }
}

impl fmt::Debug for HlcTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Why a text is not a timestamp.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a timestamp: expected `<milliseconds>.<counter up to 65535>.<16 hex digits>`")]
pub struct HlcTextError;

impl FromStr for HlcTimestamp {
    type Err = HlcTextError;

    fn from_str(text: &str) -> Result<Self, HlcTextError> {
        let mut parts = text.split('.');
        let mut next = || parts.next().ok_or(HlcTextError);
        let parsed =
            (next()?.parse::<u64>(), next()?.parse::<u16>(), u64::from_str_radix(next()?, 16));
        match (parsed, parts.next()) {
            ((Ok(millis), Ok(counter), Ok(tag)), None) if millis <= MILLIS_MAX => {
                Ok(Self { time: millis << COUNTER_BITS | u64::from(counter), node: NodeTag(tag) })
            }
            _ => Err(HlcTextError),
        }
    }
}

/// Why the clock issued nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HlcError {
    /// A remote timestamp lies further in the future than the accepted drift.
    ///
    /// Caused by a wrong clock, there or here; believing it would drag every clock of the
    /// cluster along. Compare the clocks of both nodes.
    #[error("timestamp is {ahead:?} ahead of this node's clock, more than the accepted {bound:?}")]
    FutureDrift {
        /// How far ahead of this node's wall clock it lies.
        ahead: Duration,
        /// The accepted drift.
        bound: Duration,
    },
    /// The next timestamp would pass the durable high-water mark, so that a restart could issue
    /// it a second time. Persist a higher mark and call [`Hlc::raise_ceiling`].
    #[error("the durable high-water mark {ceiling:?} is used up; persist a higher one")]
    CeilingReached {
        /// The mark.
        ceiling: WallTime,
    },
}

/// A hybrid logical clock: lock-free, shared by reference between threads.
///
/// Owned by a node, which feeds it wall readings. Not a source of unguessable numbers.
///
/// # Guarantees
/// Within one life, every timestamp issued is greater than all issued or observed before. Across
/// restarts the same holds when the caller persists the high-water mark: issue timestamps only
/// below a mark that is already on disk ([`Hlc::raise_ceiling`] after the fsync), and start the
/// next life from that mark ([`Hlc::resume`]).
///
/// ```
/// use purlin_core::{Hlc, Incarnation, NodeId, NodeName, WallTime};
/// let node = NodeId::new(NodeName::parse("n1")?, Incarnation(1));
/// let clock = Hlc::new(&node);
/// let wall = WallTime::from_millis(1_000);
/// let first = clock.now(wall)?;
/// assert!(clock.now(wall)? > first, "one millisecond, two timestamps, still in order");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Hlc {
    last: Last,
    /// No time at or above this is issued.
    ceiling: AtomicU64,
    /// Set by whoever met the ceiling, so that others do not count on in vain.
    met_ceiling: AtomicBool,
    node: NodeTag,
    drift_max: Duration,
}

/// The last time issued or observed: 48 bits of milliseconds, 16 bits of counter.
///
/// Apart from what is only read: threads that share the clock pass this cache line on, and the
/// one beside it, which processors fetch along with it.
#[derive(Debug)]
#[repr(align(128))]
struct Last(AtomicU64);

/// Where a clock without a mark ends, in the year 10889. What is left above it is room for the
/// threads that step over the end at once, so that the number never starts anew.
const NO_CEILING: u64 = u64::MAX - (1 << 20);

impl Hlc {
    /// A clock without a durable high-water mark: for nodes that keep nothing on disk.
    #[must_use]
    pub fn new(node: &NodeId) -> Self {
        Self {
            last: Last(AtomicU64::new(0)),
            ceiling: AtomicU64::new(NO_CEILING),
            met_ceiling: AtomicBool::new(false),
            node: NodeTag::of(node),
            drift_max: DRIFT_MAX_DEFAULT,
        }
    }

    /// A clock that continues after `high_water`, the mark its last life persisted, and issues
    /// nothing until [`Hlc::raise_ceiling`] is called with a higher mark.
    #[must_use]
    pub fn resume(node: &NodeId, high_water: WallTime) -> Self {
        let mark = pack(high_water).min(NO_CEILING);
        let last = Last(AtomicU64::new(mark));
        Self { last, ceiling: AtomicU64::new(mark), ..Self::new(node) }
    }

    /// The same clock with another accepted future drift.
    #[must_use]
    pub fn with_drift_max(self, drift_max: Duration) -> Self {
        Self { drift_max, ..self }
    }

    /// Allows timestamps up to `mark`, which the caller has made durable. A lower mark than the
    /// present one changes nothing.
    pub fn raise_ceiling(&self, mark: WallTime) {
        self.ceiling.fetch_max(pack(mark).min(NO_CEILING), Ordering::AcqRel);
        self.met_ceiling.store(false, Ordering::Release);
    }

    /// The durable mark: nothing at or above it is issued.
    #[must_use]
    pub fn ceiling(&self) -> WallTime {
        WallTime::from_millis(self.ceiling.load(Ordering::Acquire) >> COUNTER_BITS)
    }

    /// The last time issued or observed, as wall milliseconds rounded up: a mark that covers it.
    #[must_use]
    pub fn high_water(&self) -> WallTime {
        WallTime::from_millis((self.last.0.load(Ordering::Acquire) >> COUNTER_BITS) + 1)
    }

    /// Issues the next timestamp, given the wall clock's reading.
    ///
    /// # Errors
    /// [`HlcError::CeilingReached`] on a clock with a durable mark, when it is used up.
    #[inline]
    pub fn now(&self, wall: WallTime) -> Result<HlcTimestamp, HlcError> {
        self.advance(pack(wall), 0)
    }

    /// Takes note of `remote` and issues a timestamp after it and after all before.
    ///
    /// # Errors
    /// [`HlcError::FutureDrift`] when `remote` is too far ahead of `wall`: it is not believed.
    /// [`HlcError::CeilingReached`] as for [`Hlc::now`]; `remote` is noted all the same, and nothing
    /// is issued until the mark is above it.
    pub fn observe(&self, remote: HlcTimestamp, wall: WallTime) -> Result<HlcTimestamp, HlcError> {
        within_drift(remote, wall, self.drift_max)?;
        // Also above the mark: rather no timestamp for a while than one below what was read.
        self.last.0.fetch_max(remote.time.min(NO_CEILING), Ordering::AcqRel);
        self.advance(pack(wall), remote.time.saturating_add(1))
    }

    /// Nearly always the clock stands in the wall's millisecond or ahead of it, and the next
    /// timestamp is one more: a single addition, which is never tried again however many threads
    /// share the clock.
    #[inline]
    fn advance(&self, wall: u64, at_least: u64) -> Result<HlcTimestamp, HlcError> {
        let floor = wall.max(at_least);
        if !self.met_ceiling.load(Ordering::Acquire) {
            let ceiling = self.ceiling.load(Ordering::Acquire);
            // Adding one to a full counter carries into the milliseconds: the clock borrows from
            // the next millisecond instead of refusing.
            let next = self.last.0.fetch_add(1, Ordering::AcqRel) + 1;
            if next >= floor && next < ceiling {
                return Ok(HlcTimestamp { time: next, node: self.node });
            }
        }
        self.advance_to(floor)
    }

    #[cold]
    fn advance_to(&self, floor: u64) -> Result<HlcTimestamp, HlcError> {
        let mut last = self.last.0.load(Ordering::Relaxed);
        loop {
            let ceiling = self.ceiling.load(Ordering::Acquire);
            let Some(next) = after(last, floor, ceiling) else {
                self.met_ceiling.store(true, Ordering::Release);
                let ceiling = WallTime::from_millis(ceiling >> COUNTER_BITS);
                return Err(HlcError::CeilingReached { ceiling });
            };
            let set =
                self.last.0.compare_exchange_weak(last, next, Ordering::AcqRel, Ordering::Relaxed);
            match set {
                Ok(_) => {
                    self.met_ceiling.store(false, Ordering::Release);
                    return Ok(HlcTimestamp { time: next, node: self.node });
                }
                Err(newer) => last = newer,
            }
        }
    }
}

/// The time after `last`, not before `floor`; `None` when that is not below `ceiling`.
#[inline]
fn after(last: u64, floor: u64, ceiling: u64) -> Option<u64> {
    let next = floor.max(last.saturating_add(1));
    (next < ceiling).then_some(next)
}

fn within_drift(remote: HlcTimestamp, wall: WallTime, bound: Duration) -> Result<(), HlcError> {
    let ahead = remote.millis().as_millis().saturating_sub(wall.as_millis());
    let ahead = Duration::from_millis(ahead);
    if ahead > bound { Err(HlcError::FutureDrift { ahead, bound }) } else { Ok(()) }
}

/// A hybrid logical clock with one owner, who does not share it: several times faster than [`Hlc`].
///
/// For state machines that stamp what they do. It keeps no mark, so its owner must have an
/// incarnation of its own in every life. Otherwise as [`Hlc`].
///
/// ```
/// use purlin_core::{Incarnation, LocalHlc, NodeId, NodeName, WallTime};
/// let mut clock = LocalHlc::new(&NodeId::new(NodeName::parse("n1")?, Incarnation(1)));
/// let wall = WallTime::from_millis(1_000);
/// let first = clock.now(wall)?;
/// assert!(clock.now(wall)? > first);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct LocalHlc {
    last: u64,
    node: NodeTag,
    drift_max: Duration,
}

impl LocalHlc {
    /// The clock of `node`, at its beginning.
    #[must_use]
    pub fn new(node: &NodeId) -> Self {
        Self { last: 0, node: NodeTag::of(node), drift_max: DRIFT_MAX_DEFAULT }
    }

    /// The same clock with another accepted future drift.
    #[must_use]
    pub fn with_drift_max(self, drift_max: Duration) -> Self {
        Self { drift_max, ..self }
    }

    /// Issues the next timestamp, given the wall clock's reading.
    ///
    /// # Errors
    /// [`HlcError::CeilingReached`] in the year 10889.
    #[inline]
    pub fn now(&mut self, wall: WallTime) -> Result<HlcTimestamp, HlcError> {
        self.advance(pack(wall))
    }

    /// Takes note of `remote` and issues a timestamp after it and after all before.
    ///
    /// # Errors
    /// As [`Hlc::observe`].
    pub fn observe(
        &mut self,
        remote: HlcTimestamp,
        wall: WallTime,
    ) -> Result<HlcTimestamp, HlcError> {
        within_drift(remote, wall, self.drift_max)?;
        self.advance(pack(wall).max(remote.time.saturating_add(1)))
    }

    #[inline]
    fn advance(&mut self, floor: u64) -> Result<HlcTimestamp, HlcError> {
        let Some(time) = after(self.last, floor, NO_CEILING) else {
            let ceiling = WallTime::from_millis(NO_CEILING >> COUNTER_BITS);
            return Err(HlcError::CeilingReached { ceiling });
        };
        self.last = time;
        Ok(HlcTimestamp { time, node: self.node })
    }
}

#[inline]
fn pack(wall: WallTime) -> u64 {
    wall.as_millis().min(MILLIS_MAX) << COUNTER_BITS
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Incarnation, NodeName};

    fn node(name: &str) -> NodeId {
        NodeId::new(NodeName::parse(name).unwrap(), Incarnation(1))
    }

    fn wall(millis: u64) -> WallTime {
        WallTime::from_millis(millis)
    }

    #[test]
    fn a_full_counter_carries_into_the_next_millisecond() {
        let clock = Hlc::new(&node("n1"));
        let mut last = clock.now(wall(5)).unwrap();
        for _ in 0..70_000 {
            let next = clock.now(wall(5)).unwrap();
            assert!(next > last);
            last = next;
        }
        assert_eq!(last.millis(), wall(6));
    }

    #[test]
    fn a_clock_set_back_does_not_set_the_timestamps_back() {
        let clock = Hlc::new(&node("n1"));
        let before = clock.now(wall(1_000)).unwrap();
        assert!(clock.now(wall(1)).unwrap() > before);
    }

    #[test]
    fn a_remote_time_within_the_drift_is_passed_and_beyond_it_refused() {
        let here = Hlc::new(&node("n1")).with_drift_max(Duration::from_millis(100));
        let there = Hlc::new(&node("n2"));
        let near = there.now(wall(1_100)).unwrap();
        assert!(here.observe(near, wall(1_000)).unwrap() > near);
        let far = there.now(wall(1_101)).unwrap();
        assert_eq!(
            here.observe(far, wall(1_000)),
            Err(HlcError::FutureDrift {
                ahead: Duration::from_millis(101),
                bound: Duration::from_millis(100),
            })
        );
        assert!(here.now(wall(1_000)).unwrap().millis() < wall(1_101), "a refusal changes nothing");
    }

    #[test]
    fn what_was_observed_above_the_mark_is_never_undercut() {
        let here = Hlc::resume(&node("n1"), wall(0));
        here.raise_ceiling(wall(5_000));
        let remote = Hlc::new(&node("n2")).now(wall(6_000)).unwrap();
        let reached = HlcError::CeilingReached { ceiling: wall(5_000) };
        assert_eq!(here.observe(remote, wall(1_000)), Err(reached));
        assert_eq!(here.now(wall(1_000)), Err(reached), "better none than one that is older");
        assert!(here.high_water() > wall(6_000), "whoever raises the mark knows how far");
        here.raise_ceiling(wall(7_000));
        assert!(here.now(wall(1_000)).unwrap() > remote);
    }

    #[test]
    fn after_a_restart_from_the_mark_no_timestamp_comes_twice() {
        let first = Hlc::resume(&node("n1"), wall(0));
        assert!(matches!(first.now(wall(10)), Err(HlcError::CeilingReached { .. })));
        first.raise_ceiling(wall(5_000));
        let mut issued = first.now(wall(4_999)).unwrap();
        while let Ok(next) = first.now(wall(4_999)) {
            issued = next;
        }
        // The crash: all that is left is the mark. The clock was even set back.
        let second = Hlc::resume(&node("n1"), wall(5_000));
        second.raise_ceiling(wall(10_000));
        assert!(second.now(wall(1)).unwrap() > issued);
    }

    #[test]
    fn threads_never_share_a_timestamp() {
        let clock = Hlc::new(&node("n1"));
        let mut all: Vec<HlcTimestamp> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        (0..10_000).map(|_| clock.now(wall(1)).unwrap()).collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 40_000);
    }

    #[test]
    fn threads_that_meet_the_ceiling_issue_nothing_above_it_and_go_on_when_it_rises() {
        let clock = Hlc::resume(&node("n1"), wall(0));
        let mut all = Vec::new();
        for mark in 1..=10 {
            clock.raise_ceiling(wall(mark));
            let issued: Vec<HlcTimestamp> = std::thread::scope(|scope| {
                let until_refused = || {
                    let mut issued = Vec::new();
                    while let Ok(time) = clock.now(wall(0)) {
                        issued.push(time);
                    }
                    issued
                };
                let threads: Vec<_> = (0..3).map(|_| scope.spawn(until_refused)).collect();
                threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
            });
            assert!(issued.iter().all(|time| time.millis() < wall(mark)), "{mark}");
            assert!(!issued.is_empty());
            assert!(clock.now(wall(0)).is_err(), "until the mark is raised");
            all.extend(issued);
        }
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count, "none twice");
    }

    #[test]
    fn a_clock_at_the_end_of_time_refuses_and_does_not_start_anew() {
        let end = WallTime::from_millis((NO_CEILING >> COUNTER_BITS) - 1);
        let clock = Hlc::new(&node("n1"));
        let mut last = clock.now(end).unwrap();
        while let Ok(next) = clock.now(end) {
            assert!(next > last);
            last = next;
        }
        for _ in 0..100 {
            assert!(clock.now(wall(1)).is_err());
        }
        let mut local = LocalHlc::new(&node("n1"));
        while local.now(end).is_ok() {}
        assert!(local.now(wall(1)).is_err());
    }

    #[test]
    fn tags_are_stable_across_releases() {
        assert_eq!(NodeTag::of(&node("n1")), NodeTag(0x71d9_af9f_a6ca_c733));
    }

    proptest! {
        #[test]
        fn effects_come_after_their_causes(steps in prop::collection::vec((0..3_usize, 0..3_usize, 0..200_u64), 1..60)) {
            let clocks = ["a", "b", "c"].map(|name| Hlc::new(&node(name)));
            for (from, to, millis) in steps {
                let sent = clocks[from].now(wall(millis)).unwrap();
                let received = clocks[to].observe(sent, wall(200 - millis)).unwrap();
                prop_assert!(received > sent);
            }
        }

        #[test]
        fn a_clock_with_one_owner_keeps_the_same_order_as_a_shared_one(
            steps in prop::collection::vec((any::<bool>(), 0..8_u64), 1..80),
        ) {
            let (shared, mut own) = (Hlc::new(&node("a")), LocalHlc::new(&node("a")));
            let other = Hlc::new(&node("b"));
            let mut last: Option<(HlcTimestamp, HlcTimestamp)> = None;
            for (observes, millis) in steps {
                let wall = wall(millis * 1_000);
                let remote = other.now(wall).unwrap();
                let next = if observes {
                    (shared.observe(remote, wall).unwrap(), own.observe(remote, wall).unwrap())
                } else {
                    (shared.now(wall).unwrap(), own.now(wall).unwrap())
                };
                prop_assert_eq!(next.0, next.1);
                prop_assert!(last.is_none_or(|last| next.0 > last.0));
                last = Some(next);
            }
        }

        #[test]
        fn bytes_and_text_keep_value_and_order(a: (u64, u64), b: (u64, u64)) {
            let [a, b] = [a, b].map(|(time, tag)| HlcTimestamp { time, node: NodeTag(tag) });
            prop_assert_eq!(HlcTimestamp::from_bytes(a.to_bytes()), a);
            prop_assert_eq!(a.to_bytes().cmp(&b.to_bytes()), a.cmp(&b));
            prop_assert_eq!(a.to_string().parse(), Ok(a));
        }

        #[test]
        fn any_text_is_a_timestamp_or_refused(text in "[0-9a-f.]{0,40}") {
            if let Ok(timestamp) = text.parse::<HlcTimestamp>() {
                prop_assert_eq!(timestamp.to_string().parse(), Ok(timestamp));
            }
        }
    }
}
