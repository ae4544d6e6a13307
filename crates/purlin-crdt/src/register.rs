//! Registers: one value, or every concurrent value.
//!
//! # Source
//! Shapiro et al. 2011; the LWW order is a hybrid logical clock, never a wall clock alone.

use purlin_core::HlcTimestamp;
use serde::{Deserialize, Serialize};

use crate::{Causal, Delta, DotFun, Lattice, Replica, causal::Change};

/// A register in which the write with the later hybrid timestamp wins.
///
/// Concurrent writes are decided by the clock, so one of them is lost *by design*; where that
/// matters take [`MvRegister`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LwwRegister<V>(Option<(HlcTimestamp, V)>);

impl<V> Default for LwwRegister<V> {
    fn default() -> Self {
        Self(None)
    }
}

impl<V: Clone + Ord> LwwRegister<V> {
    /// Writes `value` at `at`, which the writer's clock issued for this write alone. Returns the
    /// delta. A write older than the present one changes nothing.
    #[must_use = "a delta that is not sent is an update nobody else hears of"]
    pub fn set(&mut self, at: HlcTimestamp, value: V) -> Self {
        let delta = Self(Some((at, value)));
        self.join(&delta);
        delta
    }

    /// The value, if one was ever written.
    #[must_use]
    pub fn get(&self) -> Option<&V> {
        self.0.as_ref().map(|(_, value)| value)
    }

    /// When the present value was written.
    #[must_use]
    pub fn written_at(&self) -> Option<HlcTimestamp> {
        self.0.as_ref().map(|&(at, _)| at)
    }
}

impl<V: Clone + Ord> Lattice for LwwRegister<V> {
    fn join(&mut self, other: &Self) {
        // Timestamps are unique; should two ever be equal, the greater value wins on every
        // replica alike, so that they still converge.
        if other.0 > self.0 {
            self.0.clone_from(&other.0);
        }
    }
}

/// A register that keeps every concurrent write until somebody who saw them all writes again.
pub type MvRegister<R, V> = Causal<R, DotFun<R, V>>;

impl<R: Replica, V: Clone> MvRegister<R, V> {
    /// Writes `value` as `replica`, over every value seen here.
    pub fn set(&mut self, replica: &R, value: V) -> Delta<R, DotFun<R, V>> {
        self.write(replica, |present, dot| Change {
            store: DotFun::one(dot, value),
            replaced: present.clone(),
        })
    }

    /// Empties the register of every value seen here.
    pub fn clear(&mut self) -> Delta<R, DotFun<R, V>> {
        self.withdraw(|present| Change { store: DotFun::default(), replaced: present.clone() })
    }

    /// The concurrent values: one in quiet times, none before the first write.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.store().values()
    }
}
