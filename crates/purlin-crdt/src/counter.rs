//! Counters: each life counts its own, the value is the sum.
//!
//! # Source
//! Shapiro et al. 2011 (G- and PN-Counter). The resettable counter is ours: a reset records what
//! it saw as a baseline per life, so that an increment concurrent with it survives.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Lattice, Replica};

/// The change would take a life's own count past 2^64 - 1. Nothing was changed; start another
/// counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("adding {by} to a life's own count of {count} exceeds limit {}", u64::MAX)]
pub struct CounterOverflow {
    /// The life's own count.
    pub count: u64,
    /// What was to be added.
    pub by: u64,
}

fn add(count: &mut u64, by: u64) -> Result<(), CounterOverflow> {
    *count = count.checked_add(by).ok_or(CounterOverflow { count: *count, by })?;
    Ok(())
}

/// A counter that only grows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GCounter<R: Ord>(BTreeMap<R, u64>);

impl<R: Ord> Default for GCounter<R> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<R: Replica> GCounter<R> {
    /// Adds `by` as `replica` and returns the delta.
    ///
    /// # Errors
    /// [`CounterOverflow`]; nothing was changed.
    pub fn increment(&mut self, replica: &R, by: u64) -> Result<Self, CounterOverflow> {
        let count = self.0.entry(replica.clone()).or_insert(0);
        add(count, by)?;
        Ok(Self(BTreeMap::from([(replica.clone(), *count)])))
    }

    /// The sum over all lives; wider than a life's own count, so it cannot overflow.
    #[must_use]
    pub fn value(&self) -> u128 {
        self.0.values().map(|&count| u128::from(count)).sum()
    }
}

impl<R: Replica> Lattice for GCounter<R> {
    fn join(&mut self, other: &Self) {
        for (replica, &count) in &other.0 {
            let ours = self.0.entry(replica.clone()).or_insert(0);
            *ours = count.max(*ours);
        }
    }
}

/// A counter that grows and shrinks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(serialize = "R: Serialize", deserialize = "R: Deserialize<'de>"))]
pub struct PnCounter<R: Ord> {
    up: GCounter<R>,
    down: GCounter<R>,
}

impl<R: Ord> Default for PnCounter<R> {
    fn default() -> Self {
        Self { up: GCounter::default(), down: GCounter::default() }
    }
}

impl<R: Replica> PnCounter<R> {
    /// Adds `by`, which may be negative, as `replica` and returns the delta.
    ///
    /// # Errors
    /// [`CounterOverflow`]; nothing was changed.
    pub fn add(&mut self, replica: &R, by: i64) -> Result<Self, CounterOverflow> {
        let side = if by < 0 { &mut self.down } else { &mut self.up };
        let delta = side.increment(replica, by.unsigned_abs())?;
        Ok(if by < 0 {
            Self { down: delta, ..Self::default() }
        } else {
            Self { up: delta, ..Self::default() }
        })
    }

    /// The sum of all that was added and taken.
    #[must_use]
    pub fn value(&self) -> i128 {
        let side = |counter: &GCounter<R>| {
            i128::try_from(counter.value()).expect("2^64 lives would have to count to the end")
        };
        side(&self.up) - side(&self.down)
    }
}

impl<R: Replica> Lattice for PnCounter<R> {
    fn join(&mut self, other: &Self) {
        self.up.join(&other.up);
        self.down.join(&other.down);
    }
}

/// A counter that grows, shrinks and can be set back to zero.
///
/// A reset takes away what it has seen and nothing else: what others add at the same time counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(serialize = "R: Serialize", deserialize = "R: Deserialize<'de>"))]
pub struct ResettableCounter<R: Ord> {
    total: PnCounter<R>,
    /// What resets have seen of `total`, per life and direction; never above it.
    baseline: PnCounter<R>,
}

impl<R: Ord> Default for ResettableCounter<R> {
    fn default() -> Self {
        Self { total: PnCounter::default(), baseline: PnCounter::default() }
    }
}

impl<R: Replica> ResettableCounter<R> {
    /// Adds `by`, which may be negative, as `replica` and returns the delta.
    ///
    /// # Errors
    /// [`CounterOverflow`]; nothing was changed.
    pub fn add(&mut self, replica: &R, by: i64) -> Result<Self, CounterOverflow> {
        Ok(Self { total: self.total.add(replica, by)?, ..Self::default() })
    }

    /// Takes away everything seen so far and returns the delta.
    pub fn reset(&mut self) -> Self {
        self.baseline = self.total.clone();
        // The total travels along: a baseline must never arrive before what it takes away.
        self.clone()
    }

    /// What was added since the last reset, net.
    #[must_use]
    pub fn value(&self) -> i128 {
        self.total.value() - self.baseline.value()
    }
}

impl<R: Replica> Lattice for ResettableCounter<R> {
    fn join(&mut self, other: &Self) {
        self.total.join(&other.total);
        self.baseline.join(&other.baseline);
    }
}
