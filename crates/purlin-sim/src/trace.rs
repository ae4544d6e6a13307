//! What happened, in order: the proof that a run can be repeated.
//!
//! A trace names every message, connection, fault, start and end with its virtual time. It holds no
//! byte of what TLS made of a message and no size of a piece of a stream: keys and signatures come
//! from the operating system and differ from run to run, although nothing depends on them.

use std::{
    collections::{VecDeque, hash_map::DefaultHasher},
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

/// How many of the last events are kept when not all are.
pub(crate) const KEPT: usize = 2_000;

/// A host, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct HostId(pub(crate) u32);

impl HostId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Something that happened on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Traffic {
    DatagramSent(usize),
    DatagramLost(usize),
    DatagramDoubled(usize),
    DatagramArrived(usize),
    /// Its queue was full, or nobody listens.
    DatagramDropped(usize),
    Dialled(u64),
    Accepted(u64),
    Opened(u64),
    Refused(u64),
    /// A piece of a stream did not get through; it is sent again.
    Stalled(u64),
    PieceArrived(u64),
    Ended(u64),
    Reset(u64),
    /// Nothing got through for too long.
    TimedOut(u64),
}

impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DatagramSent(bytes) => write!(f, "datagram of {bytes} B sent"),
            Self::DatagramLost(bytes) => write!(f, "datagram of {bytes} B lost"),
            Self::DatagramDoubled(bytes) => write!(f, "datagram of {bytes} B doubled"),
            Self::DatagramArrived(bytes) => write!(f, "datagram of {bytes} B arrived"),
            Self::DatagramDropped(bytes) => write!(f, "datagram of {bytes} B dropped on arrival"),
            Self::Dialled(stream) => write!(f, "stream {stream} dialled"),
            Self::Accepted(stream) => write!(f, "stream {stream} accepted"),
            Self::Opened(stream) => write!(f, "stream {stream} open"),
            Self::Refused(stream) => write!(f, "stream {stream} refused"),
            Self::Stalled(stream) => write!(f, "stream {stream} stalled"),
            Self::PieceArrived(stream) => write!(f, "stream {stream} brought something"),
            Self::Ended(stream) => write!(f, "stream {stream} ended"),
            Self::Reset(stream) => write!(f, "stream {stream} reset"),
            Self::TimedOut(stream) => write!(f, "stream {stream} timed out"),
        }
    }
}

#[derive(Debug, Clone, Hash)]
enum What {
    Traffic { from: HostId, to: HostId, what: Traffic },
    Note(Arc<str>),
}

#[derive(Debug, Clone, Hash)]
struct Event {
    at: Duration,
    what: What,
}

/// What happened in a world so far.
///
/// The digest covers everything; of the events themselves the last 2,000 are kept, or all of them
/// when the world was built with [`record`](crate::Builder::record). Notes are always kept.
#[derive(Debug)]
pub struct Trace {
    names: Vec<String>,
    events: VecDeque<Event>,
    notes: Vec<(Duration, Arc<str>)>,
    keeps_all: bool,
    total: u64,
    hasher: DefaultHasher,
}

impl Trace {
    pub(crate) fn new(keeps_all: bool) -> Self {
        Self {
            names: Vec::new(),
            events: VecDeque::new(),
            notes: Vec::new(),
            keeps_all,
            total: 0,
            // Its keys are fixed: the same events give the same digest in every process.
            hasher: DefaultHasher::new(),
        }
    }

    pub(crate) fn host(&mut self, name: &str) {
        self.names.push(name.to_owned());
    }

    pub(crate) fn traffic(&mut self, at: Duration, from: HostId, to: HostId, what: Traffic) {
        self.push(Event { at, what: What::Traffic { from, to, what } });
    }

    pub(crate) fn note(&mut self, at: Duration, note: &str) {
        let note: Arc<str> = note.into();
        self.notes.push((at, Arc::clone(&note)));
        self.push(Event { at, what: What::Note(note) });
    }

    fn push(&mut self, event: Event) {
        event.hash(&mut self.hasher);
        self.total += 1;
        if !self.keeps_all && self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// A number that is equal for equal traces, and for others almost never.
    #[must_use]
    pub fn digest(&self) -> u64 {
        self.hasher.finish()
    }

    /// How many events there were.
    #[must_use]
    pub fn events(&self) -> u64 {
        self.total
    }

    /// The events that are kept, one line each.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.last_lines(self.events.len())
    }

    /// The last `count` of them.
    pub fn last_lines(&self, count: usize) -> impl Iterator<Item = String> {
        let skipped = self.events.len().saturating_sub(count);
        self.events.iter().skip(skipped).map(|event| match &event.what {
            What::Note(note) => line(event.at, note),
            What::Traffic { from, to, what } => {
                let (from, to) = (&self.names[from.index()], &self.names[to.index()]);
                line(event.at, &format!("{from} -> {to}: {what}"))
            }
        })
    }

    /// All events that are kept, as text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in self.lines() {
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    /// The last `count` notes: what the scenario did, which hosts started and ended, which faults.
    pub fn last_notes(&self, count: usize) -> impl Iterator<Item = String> {
        let skipped = self.notes.len().saturating_sub(count);
        self.notes[skipped..].iter().map(|(at, note)| line(*at, note))
    }
}

fn line(at: Duration, what: &str) -> String {
    format!("{:>10.3} s  {what}", at.as_secs_f64())
}
