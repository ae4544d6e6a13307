//! What is kept under a key, and what changes do to it. Pure.

use std::time::Duration;

use bytes::Bytes;
use purlin_core::{HlcTimestamp, Instant};
use serde::{Deserialize, Serialize};

/// How long it is remembered that a key was removed, so that a copy on its way from another node,
/// or a load that began earlier, cannot bring the old value back.
pub const REMOVED_FOR: Duration = Duration::from_secs(300);

/// What a key stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Held {
    /// A value.
    Value(Bytes),
    /// A load found nothing.
    Absent,
    /// It was removed, and older copies must not come back.
    Removed,
}

/// What is kept under a key on one node. Times are this node's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The later one holds, on every node.
    pub version: HlcTimestamp,
    /// What it is.
    pub held: Held,
    /// When it was written here, or its load began: it may miss what others wrote since.
    pub known_at: Instant,
    /// From when on it is stale.
    pub stale_at: Option<Instant>,
    /// From when on it is gone.
    pub ends_at: Option<Instant>,
}

/// How long something is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Life {
    /// Until it is stale; `None` for never.
    pub ttl: Option<Duration>,
    /// How long it stays after that.
    pub stale_for: Duration,
}

/// An entry between nodes: durations instead of times, because nodes share no clock. Time on the
/// way is added to its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packed {
    version: HlcTimestamp,
    held: Held,
    stale_ms: Option<u64>,
    ends_ms: Option<u64>,
}

impl Packed {
    /// Its version.
    #[must_use]
    pub fn version(&self) -> HlcTimestamp {
        self.version
    }

    /// The size of its value.
    #[must_use]
    pub fn value_bytes(&self) -> usize {
        match &self.held {
            Held::Value(value) => value.len(),
            Held::Absent | Held::Removed => 0,
        }
    }

    /// The entry it is on a node where it is `now`.
    #[must_use]
    pub fn unpack(self, now: Instant) -> Entry {
        // A hostile duration must not overflow the clock: a year is for ever for a cache.
        let year = 365 * 24 * 3600 * 1000;
        let at = |ms: u64| now + Duration::from_millis(ms.min(year));
        Entry {
            version: self.version,
            held: self.held,
            known_at: now,
            stale_at: self.stale_ms.map(at),
            ends_at: self.ends_ms.map(at),
        }
    }
}

impl Entry {
    /// `held` from `now` on, for as long as `life` says.
    #[must_use]
    pub fn new(version: HlcTimestamp, held: Held, now: Instant, life: Life) -> Self {
        let stale_at = life.ttl.map(|ttl| now + ttl);
        let ends_at = stale_at.map(|at| at + life.stale_for);
        Self { version, held, known_at: now, stale_at, ends_at }
    }

    /// The memory of a removal.
    #[must_use]
    pub fn removed(version: HlcTimestamp, now: Instant) -> Self {
        let life = Life { ttl: Some(REMOVED_FOR), stale_for: Duration::ZERO };
        Self::new(version, Held::Removed, now, life)
    }

    /// As it travels.
    #[must_use]
    pub fn pack(&self, now: Instant) -> Packed {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let left = |at: Instant| ms(at.saturating_since(now));
        Packed {
            version: self.version,
            held: self.held.clone(),
            stale_ms: self.stale_at.map(left),
            ends_ms: self.ends_at.map(left),
        }
    }

    /// Its value, while it has one.
    #[must_use]
    pub fn value(&self) -> Option<&Bytes> {
        match &self.held {
            Held::Value(value) => Some(value),
            Held::Absent | Held::Removed => None,
        }
    }

    /// Whether it counts at all at `now`.
    #[must_use]
    pub fn is_live(&self, now: Instant) -> bool {
        self.ends_at.is_none_or(|at| now < at)
    }

    /// Whether it is within its TTL at `now`.
    #[must_use]
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.stale_at.is_none_or(|at| now < at)
    }

    /// Whether a reader who accepts nothing stale finds a value here at `now`.
    #[must_use]
    pub fn has_fresh_value(&self, now: Instant) -> bool {
        self.value().is_some() && self.is_fresh(now)
    }
}

/// A write that depends on what is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Writes only where there is no value.
    PutNew(Packed),
    /// Writes only where there is a value.
    Replace(Packed),
    /// Removes and gives the value.
    Take,
    /// Gives the value a new TTL in milliseconds; `None` for no end.
    Touch {
        /// Until stale.
        ttl_ms: Option<u64>,
        /// After that.
        stale_ms: u64,
    },
    /// Adds to the number under the key, decimal text; nothing there is 0.
    Add {
        /// What is added.
        by: i64,
        /// If there was nothing: milliseconds until stale; `None` for no end.
        ttl_ms: Option<u64>,
        /// After that.
        stale_ms: u64,
    },
}

/// The number that a value is, if it is decimal text.
#[must_use]
pub fn number(value: &[u8]) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// What a [`Change`] did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether the condition held and the change was made.
    pub done: bool,
    /// The value taken; of an addition the sum, or what it could not be added to.
    pub value: Option<Bytes>,
}

impl Change {
    /// What becomes of `existing`, with `version` being later than it. `None` leaves it.
    #[must_use]
    pub fn decide(
        &self,
        existing: Option<&Entry>,
        version: HlcTimestamp,
        now: Instant,
    ) -> (Option<Entry>, Answer) {
        let present = existing.filter(|entry| entry.has_fresh_value(now));
        let done = Answer { done: true, value: None };
        let refused = (None, Answer { done: false, value: None });
        let life = |ttl_ms: Option<u64>, stale_ms| Life {
            ttl: ttl_ms.map(Duration::from_millis),
            stale_for: Duration::from_millis(stale_ms),
        };
        let stamped = |packed: &Packed| Entry { version, ..packed.clone().unpack(now) };
        match (self, present) {
            (Self::PutNew(packed), None) | (Self::Replace(packed), Some(_)) => {
                (Some(stamped(packed)), done)
            }
            (Self::Take, Some(entry)) => {
                let value = entry.value().cloned();
                (Some(Entry::removed(version, now)), Answer { done: true, value })
            }
            (&Self::Touch { ttl_ms, stale_ms }, Some(entry)) => {
                let life = life(ttl_ms, stale_ms);
                let touched = Entry::new(version, entry.held.clone(), now, life);
                (Some(Entry { known_at: entry.known_at, ..touched }), done)
            }
            (&Self::Add { by, ttl_ms, stale_ms }, present) => {
                let there = present.and_then(Entry::value);
                let before = there.map_or(Some(0), |value| number(value));
                let Some(sum) = before.and_then(|before| before.checked_add(by)) else {
                    return (None, Answer { done: false, value: there.cloned() });
                };
                let value = Bytes::from(sum.to_string());
                let held = Held::Value(value.clone());
                let counted = match present {
                    // Counting is no reason to live longer.
                    Some(entry) => Entry { version, held, ..entry.clone() },
                    None => Entry::new(version, held, now, life(ttl_ms, stale_ms)),
                };
                (Some(counted), Answer { done: true, value: Some(value) })
            }
            (Self::PutNew(_), Some(_))
            | (Self::Replace(_) | Self::Take | Self::Touch { .. }, None) => refused,
        }
    }
}

#[cfg(test)]
mod tests {
    use purlin_core::{Hlc, Incarnation, NodeId, NodeName, WallTime};

    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_start(Duration::from_millis(ms))
    }

    fn version(ms: u64) -> HlcTimestamp {
        let node = NodeId::new(NodeName::parse("n1").unwrap(), Incarnation(1));
        Hlc::new(&node).now(WallTime::from_millis(ms)).unwrap()
    }

    fn added(existing: Option<&Entry>, by: i64, now: Instant) -> (Option<Entry>, Answer) {
        let add = Change::Add { by, ttl_ms: Some(100), stale_ms: 0 };
        add.decide(existing, version(9), now)
    }

    #[test]
    fn an_addition_begins_at_nothing_and_keeps_the_end_that_was_set() {
        let (first, answer) = added(None, 5, at(0));
        assert_eq!((answer.done, answer.value), (true, Some("5".into())));
        let (second, answer) = added(first.as_ref(), -7, at(60));
        assert_eq!(answer.value.unwrap(), "-2");
        assert_eq!(second.as_ref().unwrap().stale_at, Some(at(100)));
        let (third, answer) = added(second.as_ref(), 1, at(100));
        assert_eq!(answer.value.unwrap(), "1", "what has ended counts as nothing");
        assert_eq!(third.unwrap().stale_at, Some(at(200)));
    }

    #[test]
    fn what_is_no_number_and_what_overflows_stays_as_it_is() {
        for (there, by) in [("apples", 1), ("9223372036854775807", 1), ("", 1), ("1.5", 1)] {
            let held = Held::Value(Bytes::from(there));
            let entry = Entry::new(version(1), held, at(0), Life::default());
            let (next, answer) = added(Some(&entry), by, at(1));
            assert_eq!(next, None);
            assert_eq!((answer.done, answer.value), (false, Some(Bytes::from(there))));
        }
    }
}
