//! Flags: on or off, with a chosen winner between concurrent changes. Both start off.
//!
//! # Source
//! Almeida et al. 2018, §7 (enable-wins flag); the disable-wins flag keeps dots of both kinds, so
//! that "never touched" is off and not on.

use serde::{Deserialize, Serialize};

use crate::{Causal, Delta, DotSet, DotStore, Lattice, Replica, causal::Change};

/// A flag in which enabling wins over concurrent disabling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(serialize = "R: Serialize", deserialize = "R: Deserialize<'de>"))]
pub struct EwFlag<R: Replica>(Causal<R, DotSet<R>>);

/// A flag in which disabling wins over concurrent enabling.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(bound(serialize = "R: Serialize", deserialize = "R: Deserialize<'de>"))]
pub struct DwFlag<R: Replica>(Causal<R, (DotSet<R>, DotSet<R>)>);

impl<R: Replica> Default for EwFlag<R> {
    fn default() -> Self {
        Self(Causal::default())
    }
}

impl<R: Replica> Default for DwFlag<R> {
    fn default() -> Self {
        Self(Causal::default())
    }
}

impl<R: Replica> EwFlag<R> {
    /// Switches it on as `replica`.
    pub fn enable(&mut self, replica: &R) -> Delta<R, DotSet<R>> {
        self.0.write(replica, |present, dot| Change {
            store: DotSet::one(dot),
            replaced: present.clone(),
        })
    }

    /// Switches it off, as far as it was seen to be on.
    pub fn disable(&mut self) -> Delta<R, DotSet<R>> {
        self.0.withdraw(|present| Change { store: DotSet::default(), replaced: present.clone() })
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        !self.0.store().is_empty()
    }

    /// Takes in an update.
    pub fn join_delta(&mut self, delta: &Delta<R, DotSet<R>>) {
        self.0.join_delta(delta);
    }
}

impl<R: Replica> DwFlag<R> {
    /// Switches it on as `replica`, over every change seen here.
    pub fn enable(&mut self, replica: &R) -> Delta<R, (DotSet<R>, DotSet<R>)> {
        self.0.write(replica, |present, dot| Change {
            store: (DotSet::one(dot), DotSet::default()),
            replaced: present.clone(),
        })
    }

    /// Switches it off as `replica`, and wins over enabling made meanwhile elsewhere.
    pub fn disable(&mut self, replica: &R) -> Delta<R, (DotSet<R>, DotSet<R>)> {
        self.0.write(replica, |present, dot| Change {
            store: (DotSet::default(), DotSet::one(dot)),
            replaced: present.clone(),
        })
    }

    /// Whether it is on.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        let (enables, disables) = self.0.store();
        !enables.is_empty() && disables.is_empty()
    }

    /// Takes in an update.
    pub fn join_delta(&mut self, delta: &Delta<R, (DotSet<R>, DotSet<R>)>) {
        self.0.join_delta(delta);
    }
}

impl<R: Replica> Lattice for EwFlag<R> {
    fn join(&mut self, other: &Self) {
        self.0.join(&other.0);
    }
}

impl<R: Replica> Lattice for DwFlag<R> {
    fn join(&mut self, other: &Self) {
        self.0.join(&other.0);
    }
}
