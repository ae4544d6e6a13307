//! An append-only log: segments on disk, one writer, one flush for whoever waits.
//!
//! The writer is a thread, because a real disk keeps it waiting; on a disk in virtual time
//! ([`Pace::Sleeps`]) it is a task that does the same, so that a run with such a disk depends on no
//! scheduler but the runtime's.
//!
//! # Source
//! DeWitt et al. 1984 (group commit). The writer takes whatever has gathered while the last flush
//! ran: no timer, no batch size to tune; a lone writer pays one flush, a thousand pay one too.

use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use parking_lot::{Condvar, Mutex};
use purlin_core::{Advice, Outcome};
use tokio::sync::{Notify, oneshot};

use crate::{
    disk::{Disk, DiskFile, Pace},
    record::{self, Lsn, RECORD_BYTES_MAX},
    segment::{self, End, HeaderError, SEGMENT_HEADER_BYTES},
};

/// The bounds of a log.
#[derive(Debug, Clone)]
pub struct LogConfig {
    /// How large a segment is made; preallocated, so that a flush need not write its size. A
    /// record larger than that gets a segment of its own. Sane: 1 MiB to 1 GiB. Default 64 MiB.
    pub segment_bytes: u64,
    /// How many bytes may wait for the disk; above it appends are refused. Default 64 MiB.
    pub waiting_bytes_max: usize,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, waiting_bytes_max: 64 << 20 }
    }
}

/// Why a record was not appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The record is empty or too large. Nothing was written.
    #[error("record of {0} bytes is outside 1 to {RECORD_BYTES_MAX}")]
    Size(usize),
    /// Too much waits for the disk. Nothing was written; slow down.
    #[error("{waiting} bytes wait for the disk, limit {max}")]
    Busy {
        /// How much waits.
        waiting: usize,
        /// The bound.
        max: usize,
    },
    /// The disk refused the write, for example because it is full. The record is not in the log;
    /// the log goes on, and later appends may succeed.
    #[error("write failed: {0}")]
    Write(String),
    /// A flush failed, now or earlier. Whether the record survives a crash is unknown, and so the
    /// log takes nothing more until the node is restarted.
    #[error("flush failed, the log is stopped: {0}")]
    Flush(String),
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
}

impl AppendError {
    /// Whether the record may be in the log all the same.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Flush(_) => Outcome::Unknown,
            Self::Size(_) | Self::Busy { .. } | Self::Write(_) | Self::Closed => Outcome::NotDone,
        }
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Busy { .. } | Self::Write(_) => Advice::Retry,
            Self::Flush(_) => Advice::SameRequestIdOnly,
            Self::Size(_) => Advice::GiveUp,
            Self::Closed => Advice::RetryElsewhere(None),
        }
    }
}

/// Why a log was not opened. Nothing was changed on disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The disk refused.
    #[error("{path}: {error}")]
    Io {
        /// Which file or directory.
        path: PathBuf,
        /// What the disk said.
        error: io::Error,
    },
    /// Acknowledged records are damaged. Restore the file from a copy or from another node; to
    /// give up everything behind the damage, cut the file off there by hand.
    #[error(
        "{path} is damaged at byte {offset}: record {expected} does not check but record {next} \
         behind it does; restore the file, or remove the directory to start without it"
    )]
    Damaged {
        /// The segment.
        path: PathBuf,
        /// Where the damage begins.
        offset: usize,
        /// The record that should be there.
        expected: Lsn,
        /// The next whole one.
        next: Lsn,
    },
    /// Records are missing between two segments.
    #[error(
        "{path} begins with record {found}, but record {expected} is the next: a segment is missing"
    )]
    Hole {
        /// The later segment.
        path: PathBuf,
        /// Its first record.
        found: Lsn,
        /// The record it should begin with.
        expected: Lsn,
    },
    /// A segment was written by another release.
    #[error("{path}: {error}")]
    Header {
        /// The segment.
        path: PathBuf,
        /// What is wrong with its header.
        error: HeaderError,
    },
}

/// What was found when a log was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recovered {
    /// The first record kept; one more than `last` when there is none.
    pub first: Lsn,
    /// The last record.
    pub last: Lsn,
    /// How many bytes of an unfinished write were cut off. None of it had been acknowledged.
    pub torn_bytes: usize,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    first: Lsn,
}

#[derive(Debug)]
struct Tail {
    file: Box<dyn DiskFile>,
    offset: u64,
    len: u64,
}

/// Why waiting records were given up together.
#[derive(Debug, Clone)]
enum Halt {
    Closed,
    Flush(String),
}

type Acks = Vec<(Lsn, oneshot::Sender<Result<Lsn, AppendError>>)>;

struct Waiting {
    bytes: Vec<u8>,
    acks: Acks,
    /// The number of the next record to be appended.
    next: Lsn,
    /// Segments whose records are all below this are to be removed.
    keep_from: Lsn,
    /// How often records were refused after they had been taken.
    refusals: u64,
    halt: Option<Halt>,
}

struct Shared {
    waiting: Mutex<Waiting>,
    wake: Wake,
    config: LogConfig,
}

/// How the writer hears that something waits.
enum Wake {
    Thread(Condvar),
    Task(Notify),
}

impl Wake {
    fn ring(&self) {
        match self {
            Self::Thread(condvar) => drop(condvar.notify_one()),
            Self::Task(notify) => notify.notify_one(),
        }
    }
}

/// Who writes.
enum Work {
    Thread(Option<thread::JoinHandle<()>>),
    Task(Arc<Mutex<Writer>>),
}

/// An append-only log in a directory of its own. Clones share it; the last one closes it.
///
/// # Guarantees
/// A record whose append returned is read back after any crash. Records are kept in the order of
/// their numbers, without gaps. An append that was refused is not in the log; one that ended
/// [`AppendError::Flush`], or whose future was dropped, may be.
#[derive(Clone)]
pub struct Log {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    work: Work,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let next = self.handle.shared.waiting.lock().next;
        f.debug_struct("Log").field("next", &next).finish_non_exhaustive()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.waiting.lock().halt.get_or_insert(Halt::Closed);
        self.shared.wake.ring();
        match &mut self.work {
            // It panicked, or it is done; in both cases there is nothing left to do.
            Work::Thread(thread) => drop(thread.take().map(thread::JoinHandle::join)),
            // Here and now, so that whoever opens the log next finds it complete.
            Work::Task(writer) => {
                let mut writer = writer.lock();
                writer.finish();
                while writer.begin() {
                    writer.finish();
                }
            }
        }
    }
}

impl Log {
    /// In which file of the log in `dir` the record `lsn` is, for messages to people; the directory
    /// when that cannot be told.
    #[must_use]
    pub fn file_of(disk: &dyn Disk, dir: &Path, lsn: Lsn) -> PathBuf {
        let names = disk.list(dir).unwrap_or_default();
        let first = |name: &String| name.strip_suffix(".seg")?.parse::<u64>().ok();
        let files = names.iter().filter_map(|name| Some((first(name)?, name)));
        let file = files.filter(|&(first, _)| first <= lsn.0).max();
        file.map_or_else(|| dir.to_owned(), |(_, name)| dir.join(name))
    }

    /// Opens the log in `dir`, making it if need be; calls `each` for every record in order. What
    /// it calls `each` for is on disk when it returns, acknowledged or not.
    ///
    /// # Errors
    /// [`OpenError`] when the disk refuses or acknowledged records are missing; then nothing was
    /// changed.
    ///
    /// # Panics
    /// Outside a tokio runtime, with a disk that [sleeps](Pace::Sleeps).
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: LogConfig,
        mut each: impl FnMut(Lsn, &[u8]),
    ) -> Result<(Self, Recovered), OpenError> {
        let io_error = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::Io { path, error }
        };
        disk.create_dir(dir).map_err(io_error(dir))?;
        let names = disk.list(dir).map_err(io_error(dir))?;
        let paths: Vec<PathBuf> =
            names.iter().filter(|name| name.ends_with(".seg")).map(|name| dir.join(name)).collect();
        let mut segments: Vec<Segment> = Vec::new();
        let mut tail = None;
        let mut next = Lsn(1);
        let mut torn_bytes = 0;
        for (n, path) in paths.iter().enumerate() {
            let is_last = n + 1 == paths.len();
            let file = disk.open(path, false).map_err(io_error(path))?;
            let len = file.len().map_err(io_error(path))?;
            let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
            file.read_exact_at(&mut bytes, 0).map_err(io_error(path))?;
            let first = match segment::read_header(&bytes) {
                Ok(first) => first,
                // The crash came while the segment was made; nothing can be in it.
                Err(HeaderError::Unfinished) if is_last => {
                    torn_bytes += bytes.iter().filter(|&&byte| byte != 0).count();
                    disk.remove(path).map_err(io_error(path))?;
                    continue;
                }
                Err(error) => return Err(OpenError::Header { path: path.clone(), error }),
            };
            if !segments.is_empty() && first != next {
                return Err(OpenError::Hole { path: path.clone(), found: first, expected: next });
            }
            let (offset, after, end) = segment::scan(&bytes, first, &mut each);
            next = after;
            match end {
                End::Clean => {}
                End::Torn { bytes } if is_last => torn_bytes += bytes,
                End::Torn { .. } => {
                    let path = path.clone();
                    return Err(OpenError::Damaged {
                        path,
                        offset,
                        expected: after,
                        next: after.next(),
                    });
                }
                End::Damaged { offset, next } => {
                    let path = path.clone();
                    return Err(OpenError::Damaged { path, offset, expected: after, next });
                }
            }
            if torn_bytes > 0 {
                // The next crash must not find old bytes behind new ones.
                let zeros = vec![0; bytes.len() - offset];
                file.write_all_at(&zeros, offset as u64).map_err(io_error(path))?;
            }
            if is_last {
                // A process that was killed leaves records that were read just now and that a
                // power cut would still take. After a failed flush the system even takes them
                // for clean: a flush alone would not write them, so they are written again.
                file.write_all_at(&bytes[..offset], 0).map_err(io_error(path))?;
                file.sync_data().map_err(io_error(path))?;
            }
            tail = Some(Tail { file, offset: offset as u64, len });
            segments.push(Segment { path: path.clone(), first });
        }
        // The same holds for the name of the last segment.
        disk.sync_dir(dir).map_err(io_error(dir))?;
        let first = segments.first().map_or(next, |segment| segment.first);
        let recovered = Recovered { first, last: Lsn(next.0 - 1), torn_bytes };
        let shared = Arc::new(Shared {
            waiting: Mutex::new(Waiting {
                bytes: Vec::new(),
                acks: Vec::new(),
                next,
                keep_from: first,
                refusals: 0,
                halt: None,
            }),
            wake: match disk.pace() {
                Pace::Blocks => Wake::Thread(Condvar::new()),
                Pace::Sleeps(_) => Wake::Task(Notify::new()),
            },
            config,
        });
        let mut writer = Writer {
            disk,
            dir: dir.to_owned(),
            segments,
            tail,
            shared: Arc::clone(&shared),
            under_way: None,
        };
        let work = match &shared.wake {
            Wake::Thread(_) => {
                let thread = thread::Builder::new().name("purlin-log".to_owned());
                let thread = thread.spawn(move || writer.run_thread()).map_err(io_error(dir))?;
                Work::Thread(Some(thread))
            }
            Wake::Task(_) => {
                let writer = Arc::new(Mutex::new(writer));
                tokio::spawn(run_task(Arc::clone(&writer), Arc::clone(&shared)));
                Work::Task(writer)
            }
        };
        let handle = Arc::new(Handle { shared, work });
        Ok((Self { handle }, recovered))
    }

    /// Appends `payload` and waits until it is on disk. Returns its number.
    ///
    /// # Errors
    /// [`AppendError`] says whether the record may be in the log.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the answer, not the record: treat it as unknown.
    pub async fn append(&self, payload: Vec<u8>) -> Result<Lsn, AppendError> {
        self.append_later(payload)?.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Appends `payload`; the receiver tells when it is on disk. Records are numbered in the order
    /// of these calls.
    ///
    /// # Errors
    /// [`AppendError`] when the record is refused at once; nothing was written.
    pub fn append_later(
        &self,
        payload: Vec<u8>,
    ) -> Result<oneshot::Receiver<Result<Lsn, AppendError>>, AppendError> {
        self.append_if(payload, |_refusals| true)
    }

    /// As [`Log::append_later`], unless a record was refused since there were `refusals` of them
    /// ([`Log::refusals`]): for records that mean something only behind all before them.
    ///
    /// # Errors
    /// [`AppendError::Write`] when one was; otherwise as [`Log::append_later`].
    pub fn append_without_gap(
        &self,
        payload: Vec<u8>,
        refusals: u64,
    ) -> Result<oneshot::Receiver<Result<Lsn, AppendError>>, AppendError> {
        self.append_if(payload, |now| now == refusals)
    }

    /// How often records were refused after [`Log::append_later`] had taken them.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.handle.shared.waiting.lock().refusals
    }

    fn append_if(
        &self,
        payload: Vec<u8>,
        accepts: impl FnOnce(u64) -> bool,
    ) -> Result<oneshot::Receiver<Result<Lsn, AppendError>>, AppendError> {
        if payload.is_empty() || payload.len() > RECORD_BYTES_MAX {
            return Err(AppendError::Size(payload.len()));
        }
        let shared = &self.handle.shared;
        let mut waiting = shared.waiting.lock();
        match &waiting.halt {
            Some(Halt::Closed) => return Err(AppendError::Closed),
            Some(Halt::Flush(error)) => return Err(AppendError::Flush(error.clone())),
            None => {}
        }
        if !accepts(waiting.refusals) {
            return Err(AppendError::Write("a record before it was refused".to_owned()));
        }
        let max = shared.config.waiting_bytes_max;
        let held: usize = waiting.bytes.len();
        if held > 0 && held + payload.len() > max {
            return Err(AppendError::Busy { waiting: held, max });
        }
        let (ack, done) = oneshot::channel();
        let lsn = waiting.next;
        waiting.next = lsn.next();
        record::append(&mut waiting.bytes, lsn, &payload);
        waiting.acks.push((lsn, ack));
        drop(waiting);
        shared.wake.ring();
        Ok(done)
    }

    /// The number the next record will get.
    #[must_use]
    pub fn next(&self) -> Lsn {
        self.handle.shared.waiting.lock().next
    }

    /// Allows the log to forget records below `first`: whole segments of them are removed, soon.
    pub fn forget_before(&self, first: Lsn) {
        let mut waiting = self.handle.shared.waiting.lock();
        waiting.keep_from = waiting.keep_from.max(first);
        drop(waiting);
        self.handle.shared.wake.ring();
    }
}

struct Writer {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    segments: Vec<Segment>,
    tail: Option<Tail>,
    shared: Arc<Shared>,
    under_way: Option<Batch>,
}

/// What was written and not flushed yet.
struct Batch {
    acks: Acks,
    bytes: u64,
}

enum WriteFailure {
    /// Nothing of it counts; it may be tried again.
    Write(io::Error),
    /// Nothing is known any more.
    Flush(io::Error),
}

impl Writer {
    fn run_thread(&mut self) {
        let shared = Arc::clone(&self.shared);
        let Wake::Thread(wake) = &shared.wake else { return };
        loop {
            {
                let mut waiting = shared.waiting.lock();
                while waiting.acks.is_empty()
                    && waiting.halt.is_none()
                    && !self.can_forget(waiting.keep_from)
                {
                    wake.wait(&mut waiting);
                }
                if waiting.acks.is_empty() && waiting.halt.is_some() {
                    return;
                }
            }
            self.begin();
            self.finish();
        }
    }

    /// Takes what has gathered and writes it, unflushed. `false` when nothing had.
    fn begin(&mut self) -> bool {
        let (bytes, acks) = {
            let mut waiting = self.shared.waiting.lock();
            (std::mem::take(&mut waiting.bytes), std::mem::take(&mut waiting.acks))
        };
        let Some(&(first, _)) = acks.first() else { return false };
        match self.write(&bytes, first) {
            Ok(()) => self.under_way = Some(Batch { acks, bytes: bytes.len() as u64 }),
            Err(failure) => self.answer(first, acks, Err(failure)),
        }
        true
    }

    /// Flushes what is under way, answers for it, and forgets what may be forgotten.
    fn finish(&mut self) {
        if let Some(Batch { acks, bytes }) = self.under_way.take() {
            let tail = self.tail.as_mut().expect("what is under way is in the tail");
            let flushed = tail.file.sync_data().map_err(WriteFailure::Flush);
            if flushed.is_ok() {
                tail.offset += bytes;
            }
            let (first, _) = acks[0];
            self.answer(first, acks, flushed);
        }
        let keep_from = self.shared.waiting.lock().keep_from;
        self.forget(keep_from);
    }

    fn answer(&self, first: Lsn, acks: Acks, result: Result<(), WriteFailure>) {
        let error = match result {
            Ok(()) => {
                for (lsn, ack) in acks {
                    // The caller may have gone; the record stays.
                    drop(ack.send(Ok(lsn)));
                }
                return;
            }
            Err(WriteFailure::Write(error)) => {
                let error = AppendError::Write(error.to_string());
                // The numbers are given again: what gathered meanwhile is refused with these, so
                // that no gap arises.
                let mut waiting = self.shared.waiting.lock();
                waiting.bytes.clear();
                waiting.next = first;
                waiting.refusals += 1;
                let later = std::mem::take(&mut waiting.acks);
                drop(waiting);
                for (_, ack) in later {
                    drop(ack.send(Err(error.clone())));
                }
                error
            }
            Err(WriteFailure::Flush(error)) => {
                let mut waiting = self.shared.waiting.lock();
                if waiting.halt.is_none() {
                    let dir = self.dir.display();
                    tracing::error!(%dir, %error, "flush failed, the log is stopped");
                }
                waiting.halt = Some(Halt::Flush(error.to_string()));
                waiting.bytes.clear();
                let error = AppendError::Flush(error.to_string());
                let later = std::mem::take(&mut waiting.acks);
                drop(waiting);
                for (_, ack) in later {
                    drop(ack.send(Err(error.clone())));
                }
                error
            }
        };
        for (_, ack) in acks {
            drop(ack.send(Err(error.clone())));
        }
    }

    /// Writes behind the tail, without flushing.
    fn write(&mut self, bytes: &[u8], first: Lsn) -> Result<(), WriteFailure> {
        let need = bytes.len() as u64;
        let fits = self.tail.as_ref().is_some_and(|tail| tail.offset + need <= tail.len);
        if !fits {
            self.roll(first, need)?;
        }
        let tail = self.tail.as_mut().expect("rolling makes a tail");
        if let Err(error) = tail.file.write_all_at(bytes, tail.offset) {
            // Whole records of it may be there. They are refused, so they must be gone before
            // anybody hears of it: their numbers will be given again. Cutting them off takes no
            // room, as writing zeros over them would on a disk that is full.
            let scrubbed = tail.file.set_len(tail.offset);
            let scrubbed = scrubbed.and_then(|()| tail.file.set_len(tail.len));
            return match scrubbed.and_then(|()| tail.file.sync_data()) {
                Ok(()) => Err(WriteFailure::Write(error)),
                Err(error) => Err(WriteFailure::Flush(error)),
            };
        }
        Ok(())
    }

    /// Begins a segment whose first record is `first`.
    fn roll(&mut self, first: Lsn, need: u64) -> Result<(), WriteFailure> {
        let path = self.dir.join(format!("{:020}.seg", first.0));
        let header_bytes = SEGMENT_HEADER_BYTES as u64;
        let len = self.shared.config.segment_bytes.max(header_bytes + need);
        let make = || -> io::Result<Box<dyn DiskFile>> {
            let file = self.disk.open(&path, true)?;
            // One of that name is there when all that was ever written to it was refused.
            file.set_len(0)?;
            file.set_len(len)?;
            file.write_all_at(&segment::header(first), 0)?;
            Ok(file)
        };
        let file = make().map_err(|error| {
            // An unfinished segment would be taken for the tail; nothing is in it.
            drop(self.disk.remove(&path));
            WriteFailure::Write(error)
        })?;
        self.disk.sync_dir(&self.dir).map_err(WriteFailure::Flush)?;
        if self.segments.last().is_none_or(|last| last.first != first) {
            self.segments.push(Segment { path, first });
        }
        self.tail = Some(Tail { file, offset: header_bytes, len });
        Ok(())
    }

    fn can_forget(&self, keep_from: Lsn) -> bool {
        self.segments.get(1).is_some_and(|second| second.first <= keep_from)
    }

    fn forget(&mut self, keep_from: Lsn) {
        while self.can_forget(keep_from) {
            let oldest = self.segments.remove(0);
            if let Err(error) = self.disk.remove(&oldest.path) {
                tracing::warn!(path = %oldest.path.display(), %error, "cannot remove a segment");
            }
        }
    }
}

/// The writer as a task: for a disk whose flushes take time on the clock of the runtime.
async fn run_task(writer: Arc<Mutex<Writer>>, shared: Arc<Shared>) {
    let Wake::Task(wake) = &shared.wake else { return };
    loop {
        wake.notified().await;
        while writer.lock().begin() {
            let pace = writer.lock().disk.pace();
            if let Pace::Sleeps(flush_takes) = pace
                && !flush_takes.is_zero()
            {
                tokio::time::sleep(flush_takes).await;
            }
            writer.lock().finish();
        }
        writer.lock().finish();
        if shared.waiting.lock().halt.is_some() {
            return;
        }
    }
}
