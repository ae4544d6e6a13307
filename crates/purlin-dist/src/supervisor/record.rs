//! What is known of children on every node, whoever runs them.
//!
//! A child has two records in the replica set, written by different hands for different reasons, so
//! that neither overwrites the other:
//!
//! - its [`Spec`], written by whoever starts it and removed by whoever stops it: as long as it is
//!   there, the child is to run somewhere;
//! - its [`Place`], written by the node that runs it, or by the planner when that node is lost.
//!
//! Of two writes of one record the later by hybrid time holds, on all nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use purlin_core::{HlcTimestamp, NodeId, NodeName};
use purlin_process::{Backoff, Intensity, ProcessId, Restart};
use serde::{Deserialize, Serialize};

use super::{
    kind::{Fence, Handed, KIND_BYTES_MAX},
    placement::Wish,
};
use crate::row::{KEY_BYTES_MAX, SCOPE_BYTES_MAX};

/// The most bytes the encoded arguments of a child may have.
pub const ARGS_BYTES_MAX: usize = 64 << 10;
/// The most bytes of words about why something happened that travel.
const CAUSE_BYTES_MAX: usize = 256;
/// The only version of the records' bytes so far; records of another are counted and not acted on.
const VERSION: u8 = 1;
/// How many sets of options are kept once for all children that have them.
const INTERNED_MAX: usize = 1_024;

/// How a child is kept running.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChildOptions {
    /// Whether it is started again when it ends; one that is not is forgotten. A temporary child
    /// ends with its node. Default [`Restart::Permanent`].
    pub restart: Restart,
    /// What it asks of its node. Default nothing.
    pub wish: Wish,
    /// The wait before it is started again after a failure. Default 50 ms, doubled up to 30 s.
    pub backoff: Backoff,
    /// How many failures are still fine; with one more it is left alone until somebody releases
    /// it. Default 5 in 60 s. Each node counts its own: a child that moved starts over.
    pub quarantine: Intensity,
    /// Whether it is left where it is when load is levelled; a drain moves it all the same.
    /// Default false.
    pub stays: bool,
    /// After how long without a message it is put to sleep, until the next call through its
    /// address. Default never. Seen up to half of that later.
    pub idle_for: Option<Duration>,
}

impl Default for ChildOptions {
    fn default() -> Self {
        Self {
            restart: Restart::Permanent,
            wish: Wish::default(),
            backoff: Backoff { first: Duration::from_millis(50), most: Duration::from_secs(30) },
            quarantine: Intensity { restarts_max: 5, within: Duration::from_secs(60) },
            stays: false,
            idle_for: None,
        }
    }
}

/// What a child is: that it is to run, and how to start it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The name of its kind.
    pub kind: Arc<str>,
    /// Its arguments, as the kind encoded them.
    pub args: Bytes,
    /// How it is kept running.
    pub options: Arc<ChildOptions>,
}

/// Where a child is, or is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The version of the [`Spec`] it is about; of another it says nothing but the fence.
    pub spec: HlcTimestamp,
    /// The node that has it, or had it last.
    pub node: NodeId,
    /// The number of its latest start.
    pub fence: Fence,
    /// How often it was started again because it or its node failed.
    pub restarts: u32,
    /// How it stands there.
    pub state: PlaceState,
    /// Why it is there.
    pub cause: Cause,
}

/// How a child stands on its node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum PlaceState {
    /// The node is to start it.
    Assigned {
        /// Nodes that could not start it; not asked again.
        refused: Vec<NodeName>,
    },
    /// It runs.
    Running(ProcessId),
    /// The nodes before and this one could not start it; another one may.
    Refused {
        /// Which nodes.
        refused: Vec<NodeName>,
    },
    /// It was idle and ended; the next call through its address wakes it.
    Asleep(Option<Box<Handed>>),
    /// It failed too often, or no node can start it. Left alone until it is released.
    Quarantined,
}

impl PlaceState {
    /// The word used in HTTP bodies, logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Assigned { .. } => "starting",
            Self::Running(_) => "running",
            Self::Refused { .. } => "refused",
            Self::Asleep(_) => "asleep",
            Self::Quarantined => "quarantined",
        }
    }
}

/// Why a child is where it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum Cause {
    /// Somebody started it.
    Asked,
    /// It was called while it was asleep.
    Woken,
    /// It was released from quarantine.
    Released,
    /// Its process ended; in its own words.
    Ended(Arc<str>),
    /// The node it was on is lost.
    NodeLost(NodeId),
    /// It was handed over by this node, which is being drained.
    Drained(NodeId),
    /// It was handed over by this node to level the load or to satisfy its wish.
    Rebalanced(NodeId),
    /// A second copy of it ran here since a cut, and ended.
    Conflict(NodeId),
    /// A node could not start it, in its own words.
    Refused(Arc<str>),
    /// It had been idle.
    Idle,
    /// Its node was on a side of a cut that had to stop its children, and is back.
    SplitHealed,
}

impl Cause {
    /// The word used in HTTP bodies, logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Woken => "woken",
            Self::Released => "released",
            Self::Ended(_) => "ended",
            Self::NodeLost(_) => "node_lost",
            Self::Drained(_) => "drained",
            Self::Rebalanced(_) => "rebalanced",
            Self::Conflict(_) => "conflict",
            Self::Refused(_) => "refused",
            Self::Idle => "idle",
            Self::SplitHealed => "split_healed",
        }
    }

    pub(crate) fn words(text: &impl fmt::Display) -> Arc<str> {
        let mut text = text.to_string();
        text.truncate(text.floor_char_boundary(CAUSE_BYTES_MAX));
        text.into()
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Asked => f.write_str("somebody asked for it"),
            Self::Woken => f.write_str("it was called while asleep"),
            Self::Released => f.write_str("released from quarantine"),
            Self::Ended(why) => write!(f, "its process ended: {why}"),
            Self::NodeLost(node) => write!(f, "node {node} is lost"),
            Self::Drained(node) => write!(f, "node {node} is being drained"),
            Self::Rebalanced(node) => write!(f, "moved from node {node}"),
            Self::Conflict(node) => write!(f, "a second copy ran on node {node}"),
            Self::Refused(why) => write!(f, "could not be started: {why}"),
            Self::Idle => f.write_str("it was idle"),
            Self::SplitHealed => f.write_str("its side of a cut may run children again"),
        }
    }
}

/// What a node says of itself to a supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Since when it takes children: the one that has longest plans for all.
    pub since: HlcTimestamp,
    /// The kinds it can start.
    pub kinds: BTreeSet<Arc<str>>,
}

/// What is said to all nodes about a supervisor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Whether moves that level the load wait.
    pub paused: bool,
}

/// Which record.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKey {
    /// What a child is.
    Spec(Arc<str>, Arc<str>),
    /// Where it is.
    Place(Arc<str>, Arc<str>),
    /// What a node says of itself.
    Host(Arc<str>, NodeId),
    /// What is said to all.
    Control(Arc<str>),
}

impl RecordKey {
    /// The supervisor it is about.
    #[must_use]
    pub fn supervisor(&self) -> &Arc<str> {
        match self {
            Self::Spec(of, _) | Self::Place(of, _) | Self::Host(of, _) | Self::Control(of) => of,
        }
    }

    /// The key of the replica set it is kept under.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let join = |tag: u8, of: &str, rest: &str| {
            let mut bytes = Vec::with_capacity(of.len() + rest.len() + 2);
            bytes.push(tag);
            bytes.extend_from_slice(of.as_bytes());
            bytes.push(0);
            bytes.extend_from_slice(rest.as_bytes());
            Bytes::from(bytes)
        };
        match self {
            // Before the places, in which order many changes at once are taken in.
            Self::Spec(of, id) => join(b'k', of, id),
            Self::Place(of, id) => join(b'p', of, id),
            Self::Host(of, node) => join(b'h', of, &node.to_string()),
            Self::Control(of) => join(b'c', of, ""),
        }
    }

    /// The record kept under `bytes`, unless it is no such key.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (&tag, rest) = bytes.split_first()?;
        let (of, rest) = std::str::from_utf8(rest).ok()?.split_once('\0')?;
        if of.is_empty() || of.len() > SCOPE_BYTES_MAX || rest.len() > KEY_BYTES_MAX {
            return None;
        }
        match tag {
            b'k' if !rest.is_empty() => Some(Self::Spec(of.into(), rest.into())),
            b'p' if !rest.is_empty() => Some(Self::Place(of.into(), rest.into())),
            b'h' => Some(Self::Host(of.into(), rest.parse().ok()?)),
            b'c' if rest.is_empty() => Some(Self::Control(of.into())),
            _ => None,
        }
    }
}

/// Why bytes are not a record. It is counted, and nothing is done about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// It was written by a release whose records this one cannot read.
    #[error("record of version {0}, this release reads {VERSION}")]
    Version(u8),
    /// The bytes are not such a record.
    #[error("record cannot be decoded")]
    Undecodable,
}

/// The part of a spec that many children have in common.
#[derive(Serialize, Deserialize)]
struct Head {
    kind: Arc<str>,
    restart: u8,
    wish: Option<Wish>,
    backoff: (Duration, Duration),
    quarantine: (u32, Duration),
    stays: bool,
    idle_for: Option<Duration>,
}

impl Head {
    fn of(spec: &Spec) -> Self {
        let options = &*spec.options;
        Self {
            kind: Arc::clone(&spec.kind),
            restart: match options.restart {
                Restart::Permanent => 0,
                Restart::Transient => 1,
                Restart::Temporary => 2,
            },
            wish: (options.wish != Wish::default()).then(|| options.wish.clone()),
            backoff: (options.backoff.first, options.backoff.most),
            quarantine: (options.quarantine.restarts_max, options.quarantine.within),
            stays: options.stays,
            idle_for: options.idle_for,
        }
    }

    fn read(bytes: &[u8]) -> Result<(Arc<str>, Arc<ChildOptions>), RecordError> {
        // Left over bytes are what a later release says in addition.
        let (head, _) =
            postcard::take_from_bytes::<Self>(bytes).map_err(|_why| RecordError::Undecodable)?;
        let wish = head.wish.unwrap_or_default();
        if head.kind.len() > KIND_BYTES_MAX || wish.check().is_err() {
            return Err(RecordError::Undecodable);
        }
        let options = ChildOptions {
            restart: match head.restart {
                0 => Restart::Permanent,
                1 => Restart::Transient,
                2 => Restart::Temporary,
                _ => return Err(RecordError::Undecodable),
            },
            wish,
            backoff: Backoff { first: head.backoff.0, most: head.backoff.1 },
            quarantine: Intensity { restarts_max: head.quarantine.0, within: head.quarantine.1 },
            stays: head.stays,
            idle_for: head.idle_for,
        };
        Ok((head.kind, Arc::new(options)))
    }
}

/// Reads specs, and keeps what they have in common once.
#[derive(Debug, Default)]
pub struct SpecReader {
    heads: BTreeMap<Bytes, (Arc<str>, Arc<ChildOptions>)>,
}

impl SpecReader {
    /// Reads a spec; its arguments stay in `value`.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn read(&mut self, value: &Bytes) -> Result<Spec, RecordError> {
        let (&version, rest) = value.split_first().ok_or(RecordError::Undecodable)?;
        if version != VERSION {
            return Err(RecordError::Version(version));
        }
        let (len, rest) = rest.split_first_chunk::<4>().ok_or(RecordError::Undecodable)?;
        let len =
            usize::try_from(u32::from_le_bytes(*len)).map_err(|_why| RecordError::Undecodable)?;
        let head = rest.get(..len).ok_or(RecordError::Undecodable)?;
        let args = value.slice(5 + len..);
        if args.len() > ARGS_BYTES_MAX {
            return Err(RecordError::Undecodable);
        }
        if let Some((kind, options)) = self.heads.get(head) {
            return Ok(Spec { kind: Arc::clone(kind), args, options: Arc::clone(options) });
        }
        let (kind, options) = Head::read(head)?;
        if self.heads.len() >= INTERNED_MAX {
            self.heads.retain(|_, (_, options)| Arc::strong_count(options) > 1);
        }
        if self.heads.len() < INTERNED_MAX {
            let known = (Arc::clone(&kind), Arc::clone(&options));
            self.heads.insert(Bytes::copy_from_slice(head), known);
        }
        Ok(Spec { kind, args, options })
    }
}

impl Spec {
    /// The bytes that say it.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let mut bytes = vec![VERSION, 0, 0, 0, 0];
        bytes = postcard::to_extend(&Head::of(self), bytes)
            .expect("a head is plain data and grows a vector");
        let len = u32::try_from(bytes.len() - 5).expect("wish and kind are bounded");
        bytes[1..5].copy_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&self.args);
        Bytes::from(bytes)
    }
}

/// The bytes that say `record`: of a place, a host or a control.
pub(crate) fn encode<T: Serialize>(record: &T) -> Bytes {
    let bytes = postcard::to_extend(record, vec![VERSION]);
    Bytes::from(bytes.expect("records are plain data and grow a vector"))
}

/// Reads what [`encode`] wrote.
///
/// # Errors
/// [`RecordError`].
pub(crate) fn decode<'a, T: Deserialize<'a>>(value: &'a [u8]) -> Result<T, RecordError> {
    let (&version, body) = value.split_first().ok_or(RecordError::Undecodable)?;
    if version != VERSION {
        return Err(RecordError::Version(version));
    }
    match postcard::take_from_bytes::<T>(body) {
        Ok((record, _)) => Ok(record),
        Err(_) => Err(RecordError::Undecodable),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use purlin_core::{Hlc, WallTime};

    use super::*;

    #[test]
    fn records_read_back_as_they_were_written() {
        let node: NodeId = "n1@7".parse().unwrap();
        let at = Hlc::new(&node).now(WallTime::from_millis(5)).unwrap();
        let options = ChildOptions {
            restart: Restart::Transient,
            wish: Wish { zone: Some("a".into()), ..Wish::default() },
            idle_for: Some(Duration::from_secs(3)),
            stays: true,
            ..ChildOptions::default()
        };
        let spec = Spec {
            kind: "room".into(),
            args: Bytes::from_static(b"seven"),
            options: Arc::new(options),
        };
        let mut reader = SpecReader::default();
        let (one, two) = (reader.read(&spec.to_bytes()), reader.read(&spec.to_bytes()));
        assert_eq!(one.as_ref(), Ok(&spec));
        assert!(Arc::ptr_eq(&one.unwrap().options, &two.unwrap().options));
        let handed = Handed { version: 3, bytes: Bytes::from_static(b"state") };
        for state in [
            PlaceState::Running(ProcessId(9)),
            PlaceState::Asleep(Some(Box::new(handed))),
            PlaceState::Refused { refused: vec![node.name.clone()] },
        ] {
            let cause = Cause::NodeLost(node.clone());
            let node = node.clone();
            let place = Place { spec: at, node, fence: Fence(7), restarts: 2, state, cause };
            assert_eq!(decode::<Place>(&encode(&place)), Ok(place));
        }
        for key in [
            RecordKey::Spec("s".into(), "a/b".into()),
            RecordKey::Place("s".into(), "a/b".into()),
            RecordKey::Host("s".into(), node),
            RecordKey::Control("s".into()),
        ] {
            assert_eq!(RecordKey::from_bytes(&key.to_bytes()), Some(key));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_refused(key: Vec<u8>, bytes: Vec<u8>) {
            drop(RecordKey::from_bytes(&key));
            let framed: Bytes = [VERSION].into_iter().chain(bytes.iter().copied()).collect();
            for bytes in [Bytes::from(bytes), framed] {
                drop(SpecReader::default().read(&bytes));
                drop(decode::<Place>(&bytes));
                drop(decode::<Host>(&bytes));
            }
        }
    }
}
