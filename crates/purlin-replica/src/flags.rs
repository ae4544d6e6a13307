//! The flags of a cluster: kept in a replica set, evaluated where they are asked for.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use parking_lot::RwLock;
use purlin_core::{Advice, Clock, HlcTimestamp, NodeName, Outcome, WallTime};
use serde::{Deserialize, Serialize};

use crate::{
    cell::Cell,
    flag::{Asker, Because, Evaluation, Flag, FlagError},
    replica::{ReplicaSet, StateError},
};

/// How many changes of a flag are remembered; the oldest go first.
pub const AUDIT_MAX: usize = 100;

const DEFINITION: &[u8] = b"definition";
const KILLED: &[u8] = b"killed";
const AUDIT: &[u8] = b"audit/";

/// One change of a flag, for those who ask later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// When, as milliseconds since 1970; never earlier than a change its author had seen.
    pub at: WallTime,
    /// Who said so.
    pub who: String,
    /// Why, in their words.
    pub why: String,
    /// On which node.
    pub node: NodeName,
    /// What was done.
    pub change: FlagChange,
}

/// What was done to a flag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlagChange {
    /// It was given this definition.
    Set(Box<Flag>),
    /// Its kill switch was put on (`true`) or taken off.
    Killed(bool),
    /// It was removed.
    Removed,
}

/// Who changes a flag, and why: kept with the change.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Reason {
    /// Who.
    pub who: String,
    /// Why.
    pub why: String,
}

/// Why a flag was not changed. Nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FlagsError {
    /// The flag breaks a bound.
    #[error(transparent)]
    Flag(#[from] FlagError),
    /// The set refused the write.
    #[error(transparent)]
    State(#[from] StateError),
    /// There is no flag of that name.
    #[error("there is no flag {0:?}")]
    Unknown(String),
}

impl FlagsError {
    /// Always "not done".
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::NotDone
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::State(error) => error.advice(),
            Self::Flag(_) | Self::Unknown(_) => Advice::GiveUp,
        }
    }
}

/// A flag with its name and the version of its definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NamedFlag {
    /// Its name.
    pub name: String,
    /// When its definition was written last.
    pub version: HlcTimestamp,
    /// What it says.
    #[serde(flatten)]
    pub flag: Flag,
}

/// The flags of the cluster, as this node sees them. Cheap to clone.
///
/// The kill switch and the definition are written apart, so that an edit made during a partition
/// cannot take back a kill. Evaluation is local and takes no part in the network.
///
/// # Guarantees
/// Healthy: a change counts on every node a round trip later. Partitioned: each side goes on with
/// what it has seen; after the heal the later definition holds, and so does the later use of the
/// kill switch.
#[derive(Debug, Clone)]
pub struct Flags {
    set: ReplicaSet,
    clock: Arc<dyn Clock>,
    node: NodeName,
    decoded: Arc<RwLock<HashMap<String, Decoded>>>,
}

#[derive(Debug)]
struct Decoded {
    from: Cell,
    flag: Option<Arc<NamedFlag>>,
}

impl Flags {
    /// Flags kept in `set`, changed in the name of `node`.
    #[must_use]
    pub fn new(set: ReplicaSet, clock: Arc<dyn Clock>, node: NodeName) -> Self {
        Self { set, clock, node, decoded: Arc::default() }
    }

    /// The set they are kept in.
    #[must_use]
    pub fn set(&self) -> &ReplicaSet {
        &self.set
    }

    /// Gives the flag `name` this definition; its kill switch is set as the definition says.
    ///
    /// # Errors
    /// [`FlagsError`]; nothing was changed.
    pub fn define(
        &self,
        name: &str,
        flag: Flag,
        reason: &Reason,
    ) -> Result<HlcTimestamp, FlagsError> {
        flag.check(name)?;
        let killed = self.get(name).is_some_and(|present| present.flag.killed);
        if flag.killed != killed {
            self.put_killed(name, flag.killed)?;
        }
        let version = self.set.put_field(name.to_owned(), DEFINITION, json(&flag))?;
        self.note(name, FlagChange::Set(Box::new(flag)), reason)?;
        Ok(version)
    }

    /// Puts the kill switch of `name` on or off.
    ///
    /// # Errors
    /// [`FlagsError::Unknown`] when there is no such flag; nothing was changed.
    pub fn kill(&self, name: &str, killed: bool, reason: &Reason) -> Result<(), FlagsError> {
        if self.get(name).is_none() {
            return Err(FlagsError::Unknown(name.to_owned()));
        }
        self.put_killed(name, killed)?;
        self.note(name, FlagChange::Killed(killed), reason)
    }

    fn put_killed(&self, name: &str, killed: bool) -> Result<(), FlagsError> {
        let value = if killed { &b"1"[..] } else { b"0" };
        self.set.put_field(name.to_owned(), KILLED, value)?;
        Ok(())
    }

    /// Removes the flag `name`; its history stays.
    ///
    /// # Errors
    /// [`FlagsError`]; nothing was changed.
    pub fn remove(&self, name: &str, reason: &Reason) -> Result<bool, FlagsError> {
        let removed = self.set.remove(name.to_owned())?;
        if removed {
            self.note(name, FlagChange::Removed, reason)?;
        }
        Ok(removed)
    }

    /// The flag `name`, as seen here.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<NamedFlag>> {
        let cell = self.set.get(name.as_bytes())?;
        if let Some(decoded) = self.decoded.read().get(name)
            && decoded.from.is_same(&cell)
        {
            return decoded.flag.clone();
        }
        let flag = decode(name, &cell).map(Arc::new);
        let decoded = Decoded { from: cell, flag: flag.clone() };
        self.decoded.write().insert(name.to_owned(), decoded);
        flag
    }

    /// Every flag whose name begins with `prefix`, by name, after the name `after`.
    #[must_use]
    pub fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Vec<Arc<NamedFlag>> {
        let mut found = Vec::new();
        let mut after = after.map(|after| Bytes::copy_from_slice(after.as_bytes()));
        while found.len() < limit {
            let page = self.set.scan(prefix.as_bytes(), after.as_deref(), limit);
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            let names = page.iter().filter(|(key, _)| !key.starts_with(AUDIT));
            let flags = names.filter_map(|(key, _)| self.get(std::str::from_utf8(key).ok()?));
            found.extend(flags.take(limit - found.len()));
        }
        found
    }

    /// Whether the feature `name` is on for `asker`, and why. An unknown flag is off.
    #[must_use]
    pub fn evaluate(&self, name: &str, asker: &Asker) -> Evaluation {
        match self.get(name) {
            Some(found) => found.flag.evaluate(name, asker, self.clock.wall()),
            None => Evaluation { on: false, because: Because::Unknown },
        }
    }

    /// The last changes of the flag `name`, the newest first, at most [`AUDIT_MAX`].
    #[must_use]
    pub fn audit(&self, name: &str) -> Vec<AuditEntry> {
        let Some(cell) = self.set.get(&audit_key(name)) else { return Vec::new() };
        let mut entries: Vec<AuditEntry> =
            cell.fields().filter_map(|(_, it)| serde_json::from_slice(&it.value).ok()).collect();
        entries.reverse();
        entries
    }

    fn note(&self, name: &str, change: FlagChange, reason: &Reason) -> Result<(), FlagsError> {
        let key = Bytes::from(audit_key(name));
        let at = self.set.now()?;
        let entry = AuditEntry {
            at: at.millis(),
            who: cut(&reason.who),
            why: cut(&reason.why),
            node: self.node.clone(),
            change,
        };
        // Its bytes sort by time, and no other change has the same.
        self.set.put_field(key.clone(), at.to_bytes().to_vec(), json(&entry))?;
        if let Some(cell) = self.set.get(&key) {
            let fields: Vec<&Bytes> = cell.fields().map(|(field, _)| field).collect();
            for old in &fields[..fields.len().saturating_sub(AUDIT_MAX)] {
                self.set.remove_field(key.clone(), old)?;
            }
        }
        Ok(())
    }
}

fn audit_key(name: &str) -> Vec<u8> {
    [AUDIT, name.as_bytes()].concat()
}

fn cut(text: &str) -> String {
    text.chars().take(crate::flag::TEXT_BYTES_MAX).collect()
}

fn json<T: Serialize>(value: &T) -> Vec<u8> {
    serde_json::to_vec(value).expect("flags are maps with text keys, which JSON can hold")
}

/// The flag in `cell`; `None` when it is no flag, or one of a newer release that this one cannot
/// read: off is what an unknown flag is.
fn decode(name: &str, cell: &Cell) -> Option<NamedFlag> {
    let field = |wanted: &[u8]| cell.fields().find(|(field, _)| *field == wanted).map(|(_, it)| it);
    let definition = field(DEFINITION)?;
    let mut flag: Flag = serde_json::from_slice(&definition.value).ok()?;
    flag.killed = field(KILLED).is_some_and(|it| it.value == "1");
    Some(NamedFlag { name: name.to_owned(), version: definition.at, flag })
}
