//! Writers that never stop, what they were promised, and what can be read in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;
use std::time::Duration;

use purlin_check::updates::{self, Concurrent, Did};
use serde_json::Value;

use crate::network::Network;

/// Keys that each writer has for itself.
const OWN_KEYS: usize = 400;

/// Keys that all writers write.
const SHARED_KEYS: usize = 50;

/// How long an answer may take before its outcome counts as unknown.
const PATIENCE: Duration = Duration::from_secs(10);

const MAP: &str = "soak-map";
const SET: &str = "soak-set";

/// How an operation ended, as its writer was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// Acknowledged.
    Done,
    /// The node did not take it.
    NotDone,
    /// The answer never came, or said so.
    Unknown,
}

/// One operation of one writer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Act {
    /// Writes `value` under a key of the map.
    Put { key: String, value: String },
    /// Adds an element to the set.
    Add { element: String },
    /// Removes an element that this writer added.
    Remove { element: String },
    /// Adds 1 to the writer's counter.
    Count,
}

/// What one writer did, in its order.
#[derive(Debug)]
pub(crate) struct Record {
    writer: usize,
    acts: Vec<(Act, Told, Fate)>,
}

/// What was to become of the node that took an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Fate {
    /// Its disk stays.
    Lasting = 0,
    /// It is cut off from everybody, and its disk is about to be lost.
    Doomed = 1,
    /// The writer is to stop.
    Over = 2,
}

/// A writer at work on a host.
#[derive(Debug)]
pub(crate) struct Writer {
    fate: Arc<AtomicU8>,
    thread: thread::JoinHandle<Record>,
}

impl Writer {
    /// Starts to write to the node on `host`, from that host.
    pub(crate) fn start(network: &Network, host: usize, api: SocketAddr) -> Self {
        let fate = Arc::new(AtomicU8::new(Fate::Lasting as u8));
        let told = Arc::clone(&fate);
        let thread = network.on_host(host, move || write(host, api, &told));
        Self { fate, thread }
    }

    pub(crate) fn expects(&self, fate: Fate) {
        self.fate.store(fate as u8, Ordering::SeqCst);
    }

    pub(crate) fn stop(self) -> Record {
        self.expects(Fate::Over);
        self.thread.join().expect("a writer only writes")
    }
}

fn write(writer: usize, api: SocketAddr, fate: &AtomicU8) -> Record {
    let mut client = Client { api, connection: None };
    let mut acts = Vec::new();
    for turn in 0.. {
        let now = match fate.load(Ordering::SeqCst) {
            0 => Fate::Lasting,
            1 => Fate::Doomed,
            _ => break,
        };
        let act = next(writer, turn);
        let told = client.act(writer, &act);
        if told == Told::NotDone {
            // Its node is down; the next try is another operation.
            thread::sleep(Duration::from_millis(50));
        }
        // Doomed as soon as either end of the operation was.
        let now =
            if fate.load(Ordering::SeqCst) == Fate::Doomed as u8 { Fate::Doomed } else { now };
        acts.push((act, told, now));
    }
    Record { writer, acts }
}

/// What a writer does in this turn: half of it writes keys, its own more often than shared ones.
fn next(writer: usize, turn: usize) -> Act {
    let value = format!("{writer}.{turn}");
    let round = turn / 8;
    match turn % 8 {
        0 | 2 | 4 => Act::Put { key: format!("own-{writer}-{}", turn % OWN_KEYS), value },
        1 => Act::Put { key: format!("shared-{}", round % SHARED_KEYS), value },
        3 | 5 => Act::Add { element: value },
        6 => Act::Count,
        _ => Act::Remove { element: format!("{writer}.{}", turn - 4) },
    }
}

/// A connection that is kept, and made again when it broke.
struct Client {
    api: SocketAddr,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    fn act(&mut self, writer: usize, act: &Act) -> Told {
        let (method, path, body) = match act {
            Act::Put { key, value } => ("PUT", format!("/v1/maps/{MAP}/{key}"), value.clone()),
            Act::Add { element } => ("PUT", format!("/v1/sets/{SET}/{element}"), String::new()),
            Act::Remove { element } => {
                ("DELETE", format!("/v1/sets/{SET}/{element}"), String::new())
            }
            Act::Count => ("POST", counter(writer), r#"{"by": 1}"#.to_owned()),
        };
        match self.ask(method, &path, &body) {
            Ok((200, _)) => Told::Done,
            Ok((_, body)) => match serde_json::from_slice::<Value>(&body) {
                Ok(problem) if problem["outcome"] == "not_done" => Told::NotDone,
                _ => Told::Unknown,
            },
            Err(outcome) => outcome,
        }
    }

    /// One request. Without a connection nothing was asked, so nothing was done.
    fn ask(&mut self, method: &str, path: &str, body: &str) -> Result<(u16, Vec<u8>), Told> {
        if self.connection.is_none() {
            let stream = TcpStream::connect_timeout(&self.api, PATIENCE)
                .map_err(|_refused| Told::NotDone)?;
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout that is not zero");
            stream.set_nodelay(true).expect("an open socket");
            self.connection = Some(BufReader::new(stream));
        }
        let answer = self.exchange(method, path, body);
        if answer.is_none() {
            self.connection = None;
        }
        answer.ok_or(Told::Unknown)
    }

    fn exchange(&mut self, method: &str, path: &str, body: &str) -> Option<(u16, Vec<u8>)> {
        let reader = self.connection.as_mut()?;
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.api,
            body.len()
        );
        reader.get_mut().write_all(request.as_bytes()).ok()?;
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let status = line.split(' ').nth(1)?.parse().ok()?;
        let mut bytes = 0;
        loop {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            if line == "\r\n" {
                break;
            }
            let (name, value) = line.split_once(':')?;
            if name.eq_ignore_ascii_case("content-length") {
                bytes = value.trim().parse().ok()?;
            }
        }
        let mut answer = vec![0; bytes];
        reader.read_exact(&mut answer).ok()?;
        Some((status, answer))
    }

    fn get(&mut self, path: &str) -> Option<Value> {
        match self.ask("GET", path, "") {
            Ok((200, body)) => serde_json::from_slice(&body).ok(),
            _ => None,
        }
    }

    /// All entries of a listing, page by page.
    fn pages(&mut self, path: &str) -> Option<Vec<Value>> {
        let mut entries = Vec::new();
        let mut after = String::new();
        loop {
            let page = self.get(&format!("{path}?limit=10000{after}"))?;
            entries.extend(
                page["entries"].as_array().or_else(|| page["elements"].as_array())?.clone(),
            );
            match page["next"].as_str() {
                Some(next) => after = format!("&after={next}"),
                None => return Some(entries),
            }
        }
    }
}

fn counter(writer: usize) -> String {
    format!("/v1/counters/soak-{writer}")
}

/// Everything that can be read at one node.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Readable {
    map: BTreeMap<String, String>,
    set: BTreeSet<String>,
    counters: BTreeMap<usize, i64>,
}

impl Readable {
    /// Reads all of it at the node of the calling thread's own network.
    pub(crate) fn at(api: SocketAddr, writers: &[usize]) -> Option<Self> {
        let mut client = Client { api, connection: None };
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let map = client.pages(&format!("/v1/maps/{MAP}"))?;
        let set = client.pages(&format!("/v1/sets/{SET}"))?;
        let mut counters = BTreeMap::new();
        for &writer in writers {
            counters.insert(writer, client.get(&counter(writer))?["value"].as_i64()?);
        }
        Some(Self {
            map: map
                .iter()
                .map(|entry| Some((text(&entry["key"])?, text(&entry["value"])?)))
                .collect::<Option<_>>()?,
            set: set
                .iter()
                .map(|entry| text(entry).or_else(|| text(&entry["element"])))
                .collect::<Option<_>>()?,
            counters,
        })
    }

    pub(crate) fn size(&self) -> String {
        format!(
            "{} keys, {} elements, counters {:?}",
            self.map.len(),
            self.set.len(),
            self.counters
        )
    }
}

/// What the comparison of promises and state came to.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) acknowledged: usize,
    pub(crate) unknown: usize,
    pub(crate) refused: usize,
    /// Acknowledged by a node that lost its disk before it could tell anybody, and gone.
    pub(crate) lost_with_the_disk: Vec<String>,
}

/// Compares what was promised with what can be read.
///
/// # Errors
/// What is missing without excuse, came back, or was never written.
pub(crate) fn check(records: &[Record], readable: &Readable) -> Result<Verdict, String> {
    let mut verdict = Verdict::default();
    let mut keys: BTreeMap<&str, Story<'_>> = BTreeMap::new();
    let mut elements: BTreeMap<&str, Story<'_>> = BTreeMap::new();
    for record in records {
        let mut counted = (0, 0, 0);
        for (act, told, fate) in &record.acts {
            match told {
                Told::Done => verdict.acknowledged += 1,
                Told::Unknown => verdict.unknown += 1,
                Told::NotDone => {
                    verdict.refused += 1;
                    continue;
                }
            }
            let is_sure = *told == Told::Done && *fate == Fate::Lasting;
            let excused = (*told == Told::Done && !is_sure).then_some(record.writer);
            match act {
                Act::Put { key, value } => keys.entry(key).or_default().write(
                    record.writer,
                    value,
                    is_sure,
                    excused.is_some(),
                ),
                Act::Add { element } => elements.entry(element).or_default().write(
                    record.writer,
                    element,
                    is_sure,
                    excused.is_some(),
                ),
                Act::Remove { element } => {
                    elements.entry(element).or_default().remove(record.writer, is_sure);
                }
                Act::Count => match (told, is_sure) {
                    (_, true) => counted.0 += 1,
                    (Told::Done, false) => counted.1 += 1,
                    _ => counted.2 += 1,
                },
            }
        }
        let (sure, doomed, unknown) = counted;
        let value = readable.counters.get(&record.writer).copied().unwrap_or_default();
        if value < sure || value > sure + doomed + unknown {
            return Err(format!(
                "counter of writer {} is {value}: {sure} additions were acknowledged and safe, \
                 {doomed} acknowledged on a doomed disk, {unknown} unknown",
                record.writer
            ));
        }
        let gone = (sure + doomed).saturating_sub(value);
        if gone > 0 {
            verdict
                .lost_with_the_disk
                .push(format!("{gone} additions of writer {}", record.writer));
        }
    }
    let none = BTreeSet::new();
    for key in readable.map.keys() {
        keys.entry(key).or_default();
    }
    for (key, story) in &keys {
        let read: BTreeSet<&str> =
            readable.map.get(*key).map_or_else(BTreeSet::new, |value| BTreeSet::from([&**value]));
        story.check(key, &read, Concurrent::OneWins)?;
        story.note_losses(key, &read, &mut verdict);
    }
    for element in &readable.set {
        elements.entry(element).or_default();
    }
    for (element, story) in &elements {
        let read =
            if readable.set.contains(*element) { &BTreeSet::from([*element]) } else { &none };
        story.check(element, read, Concurrent::Kept)?;
        story.note_losses(element, read, &mut verdict);
    }
    Ok(verdict)
}

/// What happened to one key.
#[derive(Debug, Default)]
struct Story<'a> {
    did: Vec<Did<()>>,
    /// Who did each, what it wrote, and whether it was acknowledged on a doomed disk.
    by: Vec<(usize, Option<&'a str>, bool)>,
}

impl<'a> Story<'a> {
    fn write(&mut self, writer: usize, value: &'a str, is_sure: bool, doomed: bool) {
        self.did(writer, Some(value), is_sure, doomed);
    }

    fn remove(&mut self, writer: usize, is_sure: bool) {
        self.did(writer, None, is_sure, false);
    }

    /// A writer has seen what it did before: it asks one node, which reads its own writes.
    fn did(&mut self, writer: usize, value: Option<&'a str>, is_sure: bool, doomed: bool) {
        let seen = self.by.iter().enumerate().filter(|(_, (by, ..))| *by == writer);
        let seen = seen.map(|(op, _)| op).collect();
        self.did.push(Did { key: (), wrote: value.is_some(), seen, may_be_missing: !is_sure });
        self.by.push((writer, value, doomed));
    }

    fn check(
        &self,
        key: &str,
        read: &BTreeSet<&str>,
        concurrent: Concurrent,
    ) -> Result<(), String> {
        let mut ops = BTreeSet::new();
        for value in read {
            let op = self.by.iter().position(|(_, wrote, _)| *wrote == Some(*value));
            ops.insert(op.ok_or_else(|| format!("{key} shows {value}, which nobody wrote"))?);
        }
        updates::check(&self.did, &BTreeMap::from([((), ops)]), concurrent)
            .map_err(|violation| format!("{key}: {violation}; read {read:?}, told {:?}", self.by))
    }

    /// Notes the last doomed write of each writer that nothing readable shows.
    fn note_losses(&self, key: &str, read: &BTreeSet<&str>, verdict: &mut Verdict) {
        for (op, (writer, value, doomed)) in self.by.iter().enumerate() {
            let later = self.by[op + 1..].iter().any(|(by, ..)| by == writer);
            if let Some(value) = value
                && *doomed
                && !later
                && !read.contains(value)
            {
                verdict.lost_with_the_disk.push(format!("{key} = {value}"));
            }
        }
    }
}

#[test]
fn a_forged_loss_is_found_unless_the_disk_was_doomed() {
    let put = |fate| Record {
        writer: 1,
        acts: vec![(Act::Put { key: "k".to_owned(), value: "1.0".to_owned() }, Told::Done, fate)],
    };
    let nothing = Readable::default();
    assert!(check(&[put(Fate::Lasting)], &nothing).unwrap_err().contains("is lost"));
    let verdict = check(&[put(Fate::Doomed)], &nothing).unwrap();
    assert_eq!(verdict.lost_with_the_disk, ["k = 1.0"]);
    let count = Record { writer: 1, acts: vec![(Act::Count, Told::Done, Fate::Lasting)] };
    assert!(check(&[count], &nothing).unwrap_err().contains("counter of writer 1 is 0"));
}
