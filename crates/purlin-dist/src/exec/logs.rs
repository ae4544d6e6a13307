//! The output of all programs of a node: of those that run, and of those that ended not long ago.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

use parking_lot::Mutex;
use purlin_cluster::{MemberCallError, MembersRpc};
use purlin_core::{Clock, NodeId, NodeName};
use purlin_net::rpc::{Method, ServeError};
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use super::{
    files::{self, Files},
    log::{Log, LogLimits, LogStream, Page},
};

/// Bytes of lines per write to a file.
const WRITE_BYTES: usize = 256 << 10;
/// How long a disk that refuses is left alone.
const DISK_PAUSE: Duration = Duration::from_secs(1);
/// Most bytes of lines in one answer to another node.
const REPLY_BYTES_MAX: u32 = 256 << 10;
/// Longest wait of another node for a line.
const WAIT_MAX: Duration = Duration::from_secs(20);

pub(super) const READ: Method<ReadLog, LogRead> = Method::new("purlin.exec.log");

/// See the module. Cheap to clone.
#[derive(Clone)]
pub struct Logs {
    inner: Arc<Inner>,
}

struct Inner {
    limits: LogLimits,
    dir: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    names: Mutex<Names>,
}

#[derive(Default)]
struct Names {
    kept: BTreeMap<String, Kept>,
    /// Counts openings and ends, to tell which end was longest ago.
    turn: u64,
}

struct Kept {
    log: Arc<Log>,
    /// How many starts of it run. Two can, for the moment in which one ends.
    running: usize,
    turn: u64,
    /// Writes its files, if there is a directory.
    writer: Option<AbortHandle>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        if let Some(writer) = &self.writer {
            writer.abort();
        }
    }
}

impl fmt::Debug for Logs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.inner.names.lock().kept.len();
        f.debug_struct("Logs").field("names", &names).field("dir", &self.inner.dir).finish()
    }
}

/// What to read of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadLog {
    /// Whose.
    pub name: String,
    /// From where on.
    pub from: ReadFrom,
    /// Bytes of lines wanted, at most 256 KiB; at least one line comes if there is one.
    pub bytes_max: u32,
    /// How long to wait for the first line, in milliseconds, at most 20 s.
    pub wait_ms: u32,
}

/// Where to begin reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ReadFrom {
    /// The last so many lines.
    Last(u32),
    /// At the latest start of it there.
    Run,
    /// After this line of this life of the node; in another life at the first there is.
    After {
        /// The incarnation of the node that numbered the line.
        life: u64,
        /// Its number.
        seq: u64,
    },
}

/// Lines, and whose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogRead {
    /// The node that kept them. Its incarnation belongs to every number in `page`.
    pub node: NodeId,
    /// Whether the node has a log of that name at all.
    pub is_known: bool,
    /// Whether the reader came from another life of the node: what is between is not known here.
    pub is_other_life: bool,
    /// The lines.
    pub page: Page,
}

impl Logs {
    /// Keeps output within `limits`, on disk too if there is a `dir`.
    #[must_use]
    pub fn new(limits: LogLimits, dir: Option<PathBuf>, clock: Arc<dyn Clock>) -> Self {
        let names = Mutex::default();
        Self { inner: Arc::new(Inner { limits, dir, clock, names }) }
    }

    /// Takes up `name` for one start of it.
    pub(super) async fn open(&self, name: &str) -> Writer {
        self.load(name, true).await;
        let log = {
            let mut names = self.inner.names.lock();
            let turn = names.next_turn();
            let kept = names.kept.entry(name.to_owned()).or_insert_with(|| self.fresh());
            kept.running += 1;
            kept.log.begin_run();
            kept.turn = turn;
            if let Some(dir) = self.inner.dir.as_ref().filter(|_| kept.writer.is_none()) {
                let files = Files::of(dir, name, self.inner.limits);
                // What is in it so far was read from there.
                let after = kept.log.last();
                let writing = write_files(Arc::clone(&kept.log), files, after);
                kept.writer = Some(tokio::spawn(writing).abort_handle());
            }
            Arc::clone(&kept.log)
        };
        self.tidy().await;
        Writer { logs: self.clone(), name: name.to_owned(), log }
    }

    /// The log of `name`, if this node has one, from memory or from an earlier life's files.
    pub async fn get(&self, name: &str) -> Option<Arc<Log>> {
        self.load(name, false).await;
        self.inner.names.lock().kept.get(name).map(|kept| Arc::clone(&kept.log))
    }

    fn fresh(&self) -> Kept {
        let log = Arc::new(Log::new(self.inner.limits));
        Kept { log, running: 0, turn: 0, writer: None }
    }

    /// Brings in what an earlier life of the node left on disk.
    async fn load(&self, name: &str, even_if_empty: bool) {
        let Some(dir) = &self.inner.dir else { return };
        if super::check_name(name).is_err() || self.inner.names.lock().kept.contains_key(name) {
            return;
        }
        let limits = self.inner.limits;
        let tail = Files::of(dir, name, limits).tail(limits.memory_bytes_max).await;
        if tail.is_empty() && !even_if_empty {
            return;
        }
        let kept = self.fresh();
        for (at, stream, is_part, text) in tail {
            kept.log.push(at, stream, is_part, text);
        }
        // Somebody else may have been as quick.
        self.inner.names.lock().kept.entry(name.to_owned()).or_insert(kept);
    }

    /// Lets go what ended longest ago, until there are no more names than there may be.
    async fn tidy(&self) {
        let gone = {
            let mut names = self.inner.names.lock();
            let mut gone = Vec::new();
            while names.kept.len() > self.inner.limits.names_max
                && let Some(oldest) = names.ended_longest_ago()
            {
                names.kept.remove(&oldest);
                gone.push(oldest);
            }
            gone
        };
        let Some(dir) = &self.inner.dir else { return };
        for name in gone {
            Files::of(dir, &name, self.inner.limits).remove().await;
        }
        let on_disk = files::names(dir).await;
        let too_many = on_disk.len().saturating_sub(self.inner.limits.names_max);
        for name in on_disk.into_iter().take(too_many) {
            if !self.inner.names.lock().kept.contains_key(&name) {
                Files::of(dir, &name, self.inner.limits).remove().await;
            }
        }
    }

    /// Reads this node's log of `request.name`.
    pub async fn read_here(&self, me: &NodeId, request: &ReadLog) -> LogRead {
        let Some(log) = self.get(&request.name).await else {
            let (is_known, is_other_life, page) = (false, false, Page::default());
            return LogRead { node: me.clone(), is_known, is_other_life, page };
        };
        let (after, is_other_life) = match request.from {
            ReadFrom::Last(count) => {
                (log.before_last(usize::try_from(count).unwrap_or(usize::MAX)), false)
            }
            ReadFrom::Run => (log.run_began_after(), false),
            ReadFrom::After { life, seq } if life == me.incarnation.0 => (seq, false),
            ReadFrom::After { .. } => (0, true),
        };
        let wait = Duration::from_millis(request.wait_ms.into()).min(WAIT_MAX);
        if !wait.is_zero() {
            // Nothing came: then that is the answer.
            drop(tokio::time::timeout(wait, log.wait(after)).await);
        }
        let bytes_max = request.bytes_max.min(REPLY_BYTES_MAX);
        let page = log.after(after, usize::try_from(bytes_max).unwrap_or(usize::MAX));
        LogRead { node: me.clone(), is_known: true, is_other_life, page }
    }

    /// Answers other nodes that read the logs of this one, `me`.
    ///
    /// # Errors
    /// [`ServeError`] when this was done before on the same `rpc`.
    pub fn serve(&self, rpc: &MembersRpc, me: NodeId) -> Result<(), ServeError> {
        let logs = self.clone();
        rpc.serve(READ, move |_, request: ReadLog| {
            let (logs, me) = (logs.clone(), me.clone());
            async move { Ok(logs.read_here(&me, &request).await) }
        })
    }
}

/// Reads the log of `request.name` on the member `node`, another one than this.
///
/// # Errors
/// [`MemberCallError`]; reading changes nothing, so asking again is always right.
///
/// # Cancel safety
/// Safe: it only looks.
pub async fn read_there(
    rpc: &MembersRpc,
    node: &NodeName,
    request: &ReadLog,
) -> Result<LogRead, MemberCallError> {
    let wait = Duration::from_millis(request.wait_ms.into()).min(WAIT_MAX);
    rpc.call(node, READ, request, wait + Duration::from_secs(5)).await
}

impl Names {
    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }

    fn ended_longest_ago(&self) -> Option<String> {
        let ended = self.kept.iter().filter(|(_, kept)| kept.running == 0);
        ended.min_by_key(|(_, kept)| kept.turn).map(|(name, _)| name.clone())
    }
}

/// Writes to the log of one name; as long as there is one, the name counts as running.
#[derive(Debug)]
pub(super) struct Writer {
    logs: Logs,
    name: String,
    log: Arc<Log>,
}

impl Writer {
    pub(super) fn log(&self) -> &Arc<Log> {
        &self.log
    }

    pub(super) fn note(&self, text: impl fmt::Display) {
        let text = text.to_string().replace(['\n', '\r'], " ");
        self.push(LogStream::Note, false, text);
    }

    pub(super) fn push(&self, stream: LogStream, is_part: bool, text: String) {
        self.log.push(self.logs.inner.clock.wall(), stream, is_part, text);
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let mut names = self.logs.inner.names.lock();
        let turn = names.next_turn();
        if let Some(kept) = names.kept.get_mut(&self.name) {
            kept.running = kept.running.saturating_sub(1);
            kept.turn = turn;
        }
    }
}

/// Copies lines after number `after` to disk as they come. A disk that refuses costs the lines their
/// copy, never the program its progress.
async fn write_files(log: Arc<Log>, mut files: Files, mut after: u64) {
    loop {
        log.wait(after).await;
        let page = log.after(after, WRITE_BYTES);
        if page.missed > 0 {
            tracing::warn!(
                missed = page.missed,
                ?files,
                "lines came faster than the disk takes them"
            );
        }
        after = page.next;
        if let Err(error) = files.append(&page.lines).await {
            tracing::warn!(%error, ?files, lost = page.lines.len(), "output cannot be written to disk");
            tokio::time::sleep(DISK_PAUSE).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use purlin_core::{Incarnation, SystemClock};

    use super::*;

    fn logs(dir: Option<PathBuf>, names_max: usize) -> Logs {
        let limits = LogLimits { names_max, ..LogLimits::default() };
        Logs::new(limits, dir, Arc::new(SystemClock::new()))
    }

    fn me(incarnation: u64) -> NodeId {
        NodeId { name: "n1".parse().unwrap(), incarnation: Incarnation(incarnation) }
    }

    fn request(from: ReadFrom) -> ReadLog {
        ReadLog { name: "job".to_owned(), from, bytes_max: 1 << 20, wait_ms: 0 }
    }

    fn texts(read: &LogRead) -> Vec<&str> {
        read.page.lines.iter().map(|line| &*line.text).collect()
    }

    #[tokio::test]
    async fn output_is_there_after_its_program_and_after_its_node() {
        let dir = tempfile::tempdir().unwrap();
        let before = logs(Some(dir.path().join("exec")), 8);
        let writer = before.open("job").await;
        writer.push(LogStream::Out, false, "hello".to_owned());
        writer.note("ended: exit\nstatus 0");
        drop(writer);
        let read = before.read_here(&me(1), &request(ReadFrom::Last(10))).await;
        assert_eq!(texts(&read), ["hello", "ended: exit status 0"]);
        let path = dir.path().join("exec/job.log");
        let is_written = || std::fs::read_to_string(&path).is_ok_and(|text| text.contains("ended"));
        tokio::time::timeout(Duration::from_secs(60), async {
            while !is_written() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        // The next life numbers anew and says so.
        let after = logs(Some(dir.path().join("exec")), 8);
        let read = after.read_here(&me(2), &request(ReadFrom::After { life: 1, seq: 1 })).await;
        assert!(read.is_known && read.is_other_life);
        assert_eq!(texts(&read), ["hello", "ended: exit status 0"]);
        let read = after.read_here(&me(2), &request(ReadFrom::After { life: 2, seq: 1 })).await;
        assert_eq!(texts(&read), ["ended: exit status 0"]);
        // And goes on in the same file, without repeating what is in it.
        let writer = after.open("job").await;
        writer.note("started");
        tokio::time::timeout(Duration::from_secs(60), async {
            while !std::fs::read_to_string(&path).unwrap().contains("started") {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap().matches("hello").count(), 1);
    }

    #[tokio::test]
    async fn what_ended_longest_ago_goes_first_and_what_runs_stays() {
        let dir = tempfile::tempdir().unwrap();
        let logs = logs(Some(dir.path().to_owned()), 2);
        let runs = logs.open("runs").await;
        runs.note("here");
        drop(logs.open("first").await);
        drop(logs.open("second").await);
        assert!(logs.get("first").await.is_none());
        assert!(logs.get("second").await.is_some() && logs.get("runs").await.is_some());
        let request = ReadLog { name: "first".into(), ..request(ReadFrom::Last(1)) };
        assert!(!logs.read_here(&me(1), &request).await.is_known);
    }

    #[tokio::test]
    async fn a_reader_that_waits_gets_the_line_and_one_that_waits_in_vain_an_empty_page() {
        let logs = logs(None, 8);
        let writer = logs.open("job").await;
        let late = ReadLog { wait_ms: 1, ..request(ReadFrom::After { life: 1, seq: 0 }) };
        assert_eq!(texts(&logs.read_here(&me(1), &late).await), Vec::<&str>::new());
        let me = me(1);
        let patient = ReadLog { wait_ms: 20_000, ..late };
        let (read, ()) = tokio::join!(logs.read_here(&me, &patient), async { writer.note("now") });
        assert_eq!(texts(&read), ["now"]);
    }
}
