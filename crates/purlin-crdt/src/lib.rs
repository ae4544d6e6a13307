//! Replicated data that every side of a partition may write, and that loses nothing.
//!
//! A state-based CRDT is a join-semilattice: replicas that have heard the same updates are equal,
//! in whatever order, however often, and through whomever they heard them. A *delta* is a small
//! state that holds just one update; joining it has the same effect as joining the whole state it
//! came from. This crate is that algebra and nothing else: no clock, no socket, no task.
//!
//! In reading order:
//! - [`context`]: [`CausalContext`], exactly which updates were seen
//! - [`store`]: [`DotSet`], [`DotFun`], [`DotMap`]: what is kept under which dots, and how it joins
//! - [`causal`]: [`Causal`] states and their [`Delta`]s
//! - [`counter`]: [`GCounter`], [`PnCounter`], [`ResettableCounter`]
//! - [`set`]: [`GSet`], add-wins [`OrSet`], remove-wins [`RwSet`]
//! - [`register`]: [`LwwRegister`], [`MvRegister`]
//! - [`flag`]: enable-wins [`EwFlag`], disable-wins [`DwFlag`]
//! - [`map`]: [`OrMap`] of any of the causal types, [`AwLwwMap`]
//! - [`text`]: [`Text`] that several people write at once
//!
//! # Guarantees
//! Healthy, partitioned or restarted, joins lose no update: an entry goes away only when somebody
//! who had seen it removed it. What a replica has not seen is never inferred to be deleted.
//!
//! # Source
//! Shapiro et al. 2011 (CRDTs); Almeida, Shoker, Baquero 2018 (delta states). Each module says
//! where it differs.

pub mod causal;
pub mod context;
pub mod counter;
pub mod flag;
pub mod map;
pub mod register;
pub mod set;
pub mod store;
pub mod text;

pub use causal::{Causal, Delta};
pub use context::{CausalContext, Dots, Knows};
pub use counter::{CounterOverflow, GCounter, PnCounter, ResettableCounter};
pub use flag::{DwFlag, EwFlag};
pub use map::{AwLwwMap, OrMap};
pub use register::{LwwRegister, MvRegister};
pub use set::{GSet, OrSet, RwSet};
pub use store::{DotFun, DotMap, DotSet, DotStore};
pub use text::{Text, TextError, TextStore};

use std::{fmt::Debug, hash::Hash};

/// A name for one life of a writer: small, ordered, never reused by another life.
///
/// Purlin uses [`purlin_core::hlc::NodeTag`] and refuses a member whose tag is taken; tests use
/// integers.
pub trait Replica: Clone + Ord + Hash + Debug {}

impl<T: Clone + Ord + Hash + Debug> Replica for T {}

/// A join-semilattice: the one law every replicated type obeys.
///
/// `join` is commutative, associative and idempotent, and never takes information away; each type
/// proves it by property tests.
pub trait Lattice {
    /// Takes in everything `other` knows.
    fn join(&mut self, other: &Self);
}
