//! What travels: rows that belong to one life of one node, and why they end.
//!
//! A row is written only by its owner, under a key that holds the owner's identity and a number
//! the owner never uses twice. So no two nodes ever write one key, and merging two replicas never
//! has to choose between two owners' words: the choice between two holders of one name is made
//! above, in [`directory`](crate::directory), where it can be explained and told.

use std::{fmt, sync::Arc};

use purlin_core::{HlcTimestamp, NodeId};
use purlin_process::{AnyProcess, Metadata, Pid, ProcessId};
use serde::{Deserialize, Serialize};

/// The most bytes a key, a group's name or a presence's key may have.
pub const KEY_BYTES_MAX: usize = 1_024;
/// The most bytes the name of a scope or of a presence topic may have.
pub const SCOPE_BYTES_MAX: usize = 255;
/// The most bytes of metadata that are believed of another node, whatever its own bound.
pub const METADATA_BYTES_LIMIT: usize = 64 << 10;
/// The most bytes of the words in which a process's failure travels.
const FAILURE_BYTES_MAX: usize = 256;
/// The only version of a row's bytes so far; rows of another are counted and not shown.
const VERSION: u8 = 1;

/// What kind of thing a row states.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Space {
    /// A process has a name that nobody else has.
    Unique,
    /// A process is under a key that others may be under too.
    Shared,
    /// A process is a member of a group.
    Group,
    /// Somebody is present in a topic.
    Presence,
}

/// Why its owner ended a row.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum End {
    /// It was asked to: unregistered, left, untracked.
    Asked,
    /// Its process ended as planned.
    Normal,
    /// Its process failed, in its own words.
    Crashed(Arc<str>),
    /// The name went to a process that registered later, see
    /// [`directory`](crate::directory#conflicts).
    Conflict,
    /// Its lease was not renewed.
    Expired,
}

impl End {
    /// A failure described by `why`, cut to what may travel.
    pub(crate) fn crashed(why: &impl fmt::Display) -> Self {
        let mut text = why.to_string();
        if text.len() > FAILURE_BYTES_MAX {
            text.truncate(text.floor_char_boundary(FAILURE_BYTES_MAX));
        }
        Self::Crashed(text.into())
    }
}

/// Which row: its owner and its number there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// The life of the node that wrote it.
    pub owner: NodeId,
    /// Never used twice by that life.
    pub number: u64,
}

impl RowKey {
    /// The key of the replica set it is kept under.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.owner.to_string().into_bytes();
        bytes.push(0);
        bytes.extend_from_slice(&self.number.to_be_bytes());
        bytes
    }

    /// The row kept under `bytes`, unless it is no such key.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (owner, number) = bytes.split_last_chunk::<8>()?;
        let owner = std::str::from_utf8(owner.strip_suffix(&[0])?).ok()?.parse().ok()?;
        Some(Self { owner, number: u64::from_be_bytes(*number) })
    }
}

impl fmt::Debug for RowKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.number)
    }
}

/// One row as readers see it; immutable, and replaced when it changes.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Which row.
    pub at: RowKey,
    /// What it states.
    pub space: Space,
    /// The scope of a name or group; the topic of a presence.
    pub scope: Arc<str>,
    /// The name, the shared key, the group, or who is present.
    pub key: Arc<str>,
    /// The process it is about; a presence may have none.
    pub process: Option<ProcessId>,
    /// What kind of server the process is.
    pub kind: Arc<str>,
    /// What was said about it.
    pub metadata: Metadata,
    /// When it was first written: what decides between two holders of a name.
    pub since: HlcTimestamp,
    /// When it was last written.
    pub version: HlcTimestamp,
    /// The process itself, on its own node.
    pub(crate) local: Option<AnyProcess>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        // One owner wrote it, and writes every version once.
        self.at == other.at && self.version == other.version
    }
}

impl Eq for Entry {}

impl Entry {
    /// The process's identity, if it is about one.
    #[must_use]
    pub fn pid(&self) -> Option<Pid> {
        Some(Pid { node: self.at.owner.clone(), process: self.process? })
    }

    /// Whether its process still takes messages, as far as this node knows.
    pub(crate) fn is_live(&self) -> bool {
        self.local.as_ref().is_none_or(AnyProcess::is_alive)
    }

    /// What decides between two holders of one name: later first registrations over earlier ones.
    pub(crate) fn precedence(&self) -> (HlcTimestamp, &RowKey) {
        (self.since, &self.at)
    }
}

/// What the bytes of a row say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Word {
    /// It holds.
    Held(Arc<Entry>),
    /// Its owner ended it.
    Ended(End),
}

/// Why bytes are not a row. It is counted, and shown to nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// It was written by a release whose rows this one cannot read.
    #[error("row of version {0}, this release reads {VERSION}")]
    Version(u8),
    /// The bytes are not a row.
    #[error("row cannot be decoded")]
    Undecodable,
    /// A text or the metadata is longer than any node may write.
    #[error("{field} of {bytes} bytes exceeds limit {max}")]
    TooLong {
        /// Which.
        field: &'static str,
        /// How long it is.
        bytes: usize,
        /// The bound.
        max: usize,
    },
}

#[derive(Serialize, Deserialize)]
enum Said {
    Held {
        space: Space,
        scope: Arc<str>,
        key: Arc<str>,
        process: Option<ProcessId>,
        kind: Arc<str>,
        metadata: Vec<(String, String)>,
        since: [u8; 16],
    },
    Ended(End),
}

/// The bytes that say that `entry` holds.
pub(crate) fn held(entry: &Entry) -> Vec<u8> {
    let metadata = entry.metadata.iter();
    encode(&Said::Held {
        space: entry.space,
        scope: Arc::clone(&entry.scope),
        key: Arc::clone(&entry.key),
        process: entry.process,
        kind: Arc::clone(&entry.kind),
        metadata: metadata.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        since: entry.since.to_bytes(),
    })
}

/// The bytes that say why a row ended.
pub(crate) fn ended(end: &End) -> Vec<u8> {
    encode(&Said::Ended(end.clone()))
}

fn encode(said: &Said) -> Vec<u8> {
    postcard::to_extend(said, vec![VERSION]).expect("rows are plain data and grow a vector")
}

/// Reads what the owner of the row `at` said at `version`.
///
/// # Errors
/// [`RowError`].
pub fn decode(at: &RowKey, version: HlcTimestamp, bytes: &[u8]) -> Result<Word, RowError> {
    let (&format, body) = bytes.split_first().ok_or(RowError::Undecodable)?;
    if format != VERSION {
        return Err(RowError::Version(format));
    }
    // Left over bytes are what a later release says in addition.
    let Ok((said, _)) = postcard::take_from_bytes::<Said>(body) else {
        return Err(RowError::Undecodable);
    };
    match said {
        Said::Ended(end) => Ok(Word::Ended(end)),
        Said::Held { space, scope, key, process, kind, metadata, since } => {
            let metadata_bytes = metadata.iter().map(|(key, value)| key.len() + value.len()).sum();
            for (field, bytes, max) in [
                ("scope", scope.len(), SCOPE_BYTES_MAX),
                ("key", key.len(), KEY_BYTES_MAX),
                ("kind", kind.len(), KEY_BYTES_MAX),
                ("metadata", metadata_bytes, METADATA_BYTES_LIMIT),
            ] {
                if bytes > max {
                    return Err(RowError::TooLong { field, bytes, max });
                }
            }
            Ok(Word::Held(Arc::new(Entry {
                at: at.clone(),
                space,
                scope,
                key,
                process,
                kind,
                metadata: metadata.into_iter().collect(),
                since: HlcTimestamp::from_bytes(since),
                version,
                local: None,
            })))
        }
    }
}

/// How many bytes `metadata` counts against its bound.
pub(crate) fn metadata_bytes(metadata: &Metadata) -> usize {
    metadata.iter().map(|(key, value)| key.len() + value.len()).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use purlin_core::{Hlc, Incarnation, NodeName, WallTime};

    use super::*;

    fn at(number: u64) -> RowKey {
        let name = NodeName::parse("n1").unwrap();
        RowKey { owner: NodeId::new(name, Incarnation(7)), number }
    }

    proptest! {
        #[test]
        fn a_row_reads_back_as_it_was_written(
            number: u64,
            key in "[^\0]{1,40}",
            process: Option<u64>,
            pairs in prop::collection::btree_map("[a-z]{1,4}", ".{0,9}", 0..4),
        ) {
            let at = at(number);
            let version = Hlc::new(&at.owner).now(WallTime::from_millis(5)).unwrap();
            let entry = Entry {
                at: at.clone(),
                space: Space::Group,
                scope: "default".into(),
                key: key.as_str().into(),
                process: process.map(ProcessId),
                kind: "Cart".into(),
                metadata: pairs.into_iter().collect(),
                since: version,
                version,
                local: None,
            };
            prop_assert_eq!(RowKey::from_bytes(&at.to_bytes()), Some(at.clone()));
            let Ok(Word::Held(read)) = decode(&at, version, &held(&entry)) else {
                return Err(TestCaseError::fail("not held"));
            };
            prop_assert_eq!(
                (&read.key, read.process, &read.metadata, read.since, read.space),
                (&entry.key, entry.process, &entry.metadata, entry.since, entry.space)
            );
        }

        #[test]
        fn any_bytes_are_a_row_or_refused(key: Vec<u8>, bytes: Vec<u8>) {
            drop(RowKey::from_bytes(&key));
            let version = HlcTimestamp::from_bytes([0; 16]);
            drop(decode(&at(1), version, &bytes));
            let framed: Vec<u8> = [VERSION].into_iter().chain(bytes).collect();
            drop(decode(&at(1), version, &framed));
        }
    }

    #[test]
    fn a_row_of_a_later_release_is_refused_by_its_version() {
        let version = HlcTimestamp::from_bytes([0; 16]);
        assert_eq!(decode(&at(1), version, &[9, 0]), Err(RowError::Version(9)));
        let end = End::crashed(&"é".repeat(300));
        let mut bytes = ended(&end);
        assert!(bytes.len() < 300);
        bytes.extend_from_slice(b"something a later release appends");
        assert_eq!(decode(&at(1), version, &bytes), Ok(Word::Ended(end)));
    }
}
