//! No write is lost, and none comes back after it was removed.
//!
//! A replicated store may drop a write for one reason: somebody who had *seen* it overwrote or
//! removed it. So a history notes for each operation what its author had seen, and the end state
//! is compared with that alone; no clock, no order of arrival.
//!
//! # Source
//! Bieniusa et al. 2012 (observed-remove sets); "lost update" and "resurrected delete" are the
//! two ways in which delta-CRDT libraries have failed in the field.

use std::collections::{BTreeMap, BTreeSet};

/// The number of an operation in its history.
pub type Op = usize;

/// What somebody did to a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Did<K> {
    /// To which key.
    pub key: K,
    /// Whether it wrote (`true`) or removed.
    pub wrote: bool,
    /// Which earlier operations its author had seen; those it had not are concurrent with it.
    pub seen: BTreeSet<Op>,
    /// Whether it may be missing without blame: its author lost its memory before telling anybody.
    pub may_be_missing: bool,
}

/// What a store did with concurrent writes of one key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concurrent {
    /// All of them are readable.
    Kept,
    /// One of them is readable, whichever.
    OneWins,
}

/// A violation.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Violation<K: std::fmt::Debug> {
    /// A write that nobody overwrote or removed knowingly cannot be read.
    #[error("write {op} of {key:?} is lost: nobody who had seen it overwrote or removed it")]
    Lost {
        /// The write.
        op: Op,
        /// Its key.
        key: K,
    },
    /// A write can be read although somebody who had seen it overwrote or removed it.
    #[error("write {op} of {key:?} came back: operation {by} had seen it and put an end to it")]
    Resurrected {
        /// The write.
        op: Op,
        /// Its key.
        key: K,
        /// Who ended it.
        by: Op,
    },
    /// Something can be read that nobody wrote.
    #[error("{key:?} shows write {op}, which is none of that key")]
    Invented {
        /// What is read.
        op: Op,
        /// Under which key.
        key: K,
    },
}

/// Checks the end state of a store, `readable` writes per key, against the history `did`.
///
/// # Errors
/// The first [`Violation`].
pub fn check<K: Ord + Clone + std::fmt::Debug>(
    did: &[Did<K>],
    readable: &BTreeMap<K, BTreeSet<Op>>,
    concurrent: Concurrent,
) -> Result<(), Violation<K>> {
    // Ended for certain, and ended by somebody whose word may be missing.
    let enders = |op: Op| {
        did.iter()
            .enumerate()
            .filter(move |(_, later)| later.key == did[op].key && later.seen.contains(&op))
    };
    for (key, ops) in readable {
        for &op in ops {
            if did.get(op).is_none_or(|write| !write.wrote || write.key != *key) {
                return Err(Violation::Invented { op, key: key.clone() });
            }
            if let Some((by, _)) = enders(op).find(|(_, later)| !later.may_be_missing) {
                return Err(Violation::Resurrected { op, key: key.clone(), by });
            }
        }
    }
    let none = BTreeSet::new();
    for (op, write) in did.iter().enumerate() {
        if !write.wrote || write.may_be_missing || enders(op).next().is_some() {
            continue;
        }
        let read = readable.get(&write.key).unwrap_or(&none);
        let survives = match concurrent {
            Concurrent::Kept => read.contains(&op),
            Concurrent::OneWins => !read.is_empty(),
        };
        if !survives {
            return Err(Violation::Lost { op, key: write.key.clone() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn did(key: &'static str, wrote: bool, seen: &[Op]) -> Did<&'static str> {
        Did { key, wrote, seen: seen.iter().copied().collect(), may_be_missing: false }
    }

    fn readable(entries: &[(&'static str, &[Op])]) -> BTreeMap<&'static str, BTreeSet<Op>> {
        entries.iter().map(|(key, ops)| (*key, ops.iter().copied().collect())).collect()
    }

    #[test]
    fn an_add_survives_a_remove_that_had_not_seen_it() {
        let history = [did("k", true, &[]), did("k", false, &[])];
        assert_eq!(check(&history, &readable(&[("k", &[0])]), Concurrent::Kept), Ok(()));
    }

    #[test]
    fn a_forged_loss_is_caught() {
        let history = [did("k", true, &[]), did("other", false, &[0])];
        let error = check(&history, &readable(&[]), Concurrent::OneWins).unwrap_err();
        assert_eq!(error, Violation::Lost { op: 0, key: "k" });
    }

    #[test]
    fn a_forged_resurrection_is_caught() {
        let history = [did("k", true, &[]), did("k", false, &[0])];
        let error = check(&history, &readable(&[("k", &[0])]), Concurrent::Kept).unwrap_err();
        assert_eq!(error, Violation::Resurrected { op: 0, key: "k", by: 1 });
    }

    #[test]
    fn one_of_two_concurrent_writes_may_win_only_where_that_is_the_promise() {
        let history = [did("k", true, &[]), did("k", true, &[])];
        let read = readable(&[("k", &[1])]);
        assert_eq!(check(&history, &read, Concurrent::OneWins), Ok(()));
        let error = check(&history, &read, Concurrent::Kept).unwrap_err();
        assert_eq!(error, Violation::Lost { op: 0, key: "k" });
    }

    #[test]
    fn a_write_whose_author_lost_its_memory_may_be_missing_or_there() {
        let mut history = [did("k", true, &[])];
        history[0].may_be_missing = true;
        assert_eq!(check(&history, &readable(&[]), Concurrent::Kept), Ok(()));
        assert_eq!(check(&history, &readable(&[("k", &[0])]), Concurrent::Kept), Ok(()));
    }

    #[test]
    fn a_forged_value_that_nobody_wrote_is_caught() {
        let history = [did("k", true, &[]), did("j", true, &[])];
        let error = check(&history, &readable(&[("k", &[0, 1])]), Concurrent::Kept).unwrap_err();
        assert_eq!(error, Violation::Invented { op: 1, key: "k" });
    }
}
