//! The node's end of the line to one guard, and of the program's output.

use std::{
    future::pending,
    io,
    os::{fd::OwnedFd, unix::net::UnixStream as StdStream},
    pin::pin,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use purlin_core::watch;
use purlin_process::ExitReason;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
    sync::mpsc,
    task::JoinHandle,
    time::{MissedTickBehavior, interval, sleep, sleep_until, timeout},
};

use super::{
    lines::Lines,
    log::LogStream,
    logs::Writer,
    os,
    wire::{self, Ask, End, Order, Told},
};

/// Often enough that a few lost to a busy moment are no silence.
const BEAT_EVERY: Duration = Duration::from_secs(1);
/// A guard takes a message at once; one that does not has been stopped by somebody.
const WRITE_WITHIN: Duration = Duration::from_secs(1);
/// How long the last output and the guard's own end may take after the program's. Something that
/// escaped may hold its output open for ever.
const LAST_WORDS_WITHIN: Duration = Duration::from_secs(2);
/// A line that has not ended after this long is shown as far as it is: a prompt, for instance.
const LINE_WITHIN: Duration = Duration::from_secs(1);
const READ_BYTES: usize = 32 << 10;
/// In how many slices of a second the rate of output is kept.
const SLICES: usize = 10;

/// Why a program did not start.
#[derive(Debug, thiserror::Error)]
pub(super) enum StartError {
    /// The guard cannot be started or went away: the machine is out of something.
    #[error("no guard: {0}")]
    Guard(#[from] io::Error),
    /// It said why the program cannot run as asked.
    #[error("{0}")]
    Refused(String),
}

/// How a program's run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// By itself or by a signal.
    Ended(End),
    /// The guard went away; the program was killed with it.
    GuardLost,
}

impl Outcome {
    /// As a process says it.
    pub(super) fn reason(&self) -> ExitReason {
        match self {
            Self::Ended(End { status: Some(0), .. }) => ExitReason::Normal,
            Self::Ended(_) | Self::GuardLost => ExitReason::failed(self),
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self::Ended(end) = self else { return f.write_str("its guard was killed") };
        match (end.status, end.signal) {
            (Some(status), _) => write!(f, "exit status {status}"),
            (None, Some(signal)) => match Signal::try_from(signal) {
                Ok(known) => write!(f, "killed by {}", known.as_str()),
                Err(_) => write!(f, "killed by signal {signal}"),
            },
            (None, None) => f.write_str("ended"),
        }?;
        if end.dumped {
            f.write_str(", core dumped")?;
        }
        match end.left {
            0 => Ok(()),
            1 => f.write_str("; a process it had left behind was killed"),
            left => write!(f, "; {left} processes it had left behind were killed"),
        }
    }
}

/// A program that runs. Dropped, the program is killed.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) pid: i32,
    signals: mpsc::Sender<Signal>,
    ended: watch::Receiver<Option<Outcome>>,
}

impl Running {
    /// Sends `signal` to the program and its group.
    pub(super) async fn signal(&self, signal: Signal) {
        // It has ended: then it needs no signal.
        self.signals.send(signal).await.ok();
    }

    /// Waits for its end, `within` at most.
    pub(super) async fn ended(&mut self, within: Duration) -> Option<Outcome> {
        let ended = timeout(within, self.ended.wait_for(Option::is_some)).await;
        ended.ok()?.ok().and_then(|outcome| *outcome)
    }
}

/// Starts `order` beside a guard started by `guard`, and returns once the program runs. `at_end` is
/// called when it has ended, its output has been read and its end noted.
///
/// # Cancel safety
/// Dropping the future kills what was started.
pub(super) async fn start(
    guard: std::process::Command,
    order: Order,
    log: Arc<Writer>,
    at_end: impl FnOnce(Outcome) + Send + 'static,
) -> Result<Running, StartError> {
    let beats = order.silent_max_ms.is_some();
    let (ours, theirs) = StdStream::pair()?;
    ours.set_nonblocking(true)?;
    let (mut reader, mut writer) = UnixStream::from_std(ours)?.into_split();
    let mut guard = spawn(guard, theirs)?;
    let readers = [
        guard.stdout.take().map(|out| tokio::spawn(read_output(out, LogStream::Out, log.clone()))),
        guard.stderr.take().map(|out| tokio::spawn(read_output(out, LogStream::Err, log.clone()))),
    ];
    writer.write_all(&wire::encode(&Ask::Run(Box::new(order)))?).await?;
    let pid = match read_told(&mut reader).await? {
        Told::Started(pid) => pid,
        Told::Refused(why) => return Err(StartError::Refused(why)),
        Told::Ended(_) => return Err(io::Error::other("it spoke out of turn").into()),
    };
    let (signals, to_send) = mpsc::channel(8);
    let (end, ended) = watch::channel(None);
    let attending = Attending { pid, reader, writer: Some(writer), to_send, beats, guard, readers };
    tokio::spawn(async move {
        let outcome = attending.until_end().await;
        log.note(format_args!("ended: {outcome}"));
        end.send_replace(Some(outcome));
        at_end(outcome);
    });
    Ok(Running { pid, signals, ended })
}

fn spawn(guard: std::process::Command, theirs: StdStream) -> io::Result<Child> {
    // The command holds the guard's end of the socket as long as it lives, so it must not outlive
    // this function: the end of the socket is how each side learns of the other's.
    Command::from(guard)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A terminal's Ctrl-C is for the node, which then decides.
        .process_group(0)
        .spawn()
}

struct Attending {
    pid: i32,
    reader: OwnedReadHalf,
    /// None once nobody holds the program any more; the guard sees its end of the socket close.
    writer: Option<OwnedWriteHalf>,
    to_send: mpsc::Receiver<Signal>,
    beats: bool,
    guard: Child,
    readers: [Option<JoinHandle<()>>; 2],
}

impl Attending {
    async fn until_end(mut self) -> Outcome {
        let outcome = self.until_told().await;
        if outcome == Outcome::GuardLost {
            // The kernel has killed the program with its guard, not what it had started itself.
            os::signal_group(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
        for mut reader in self.readers.into_iter().flatten() {
            if timeout(LAST_WORDS_WITHIN, &mut reader).await.is_err() {
                reader.abort();
            }
        }
        // Left alone it would be reaped when it ends; waited for it is gone when we say so.
        drop(timeout(LAST_WORDS_WITHIN, self.guard.wait()).await);
        outcome
    }

    async fn until_told(&mut self) -> Outcome {
        let mut told = pin!(read_told(&mut self.reader));
        let mut beat = interval(BEAT_EVERY);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ask = tokio::select! {
                biased;
                told = &mut told => return match told {
                    Ok(Told::Ended(end)) => Outcome::Ended(end),
                    Ok(Told::Started(_) | Told::Refused(_)) | Err(_) => Outcome::GuardLost,
                },
                signal = self.to_send.recv(), if self.writer.is_some() => match signal {
                    Some(signal) => Ask::Signal(signal as i32),
                    None => {
                        self.writer = None;
                        continue;
                    }
                },
                _ = beat.tick(), if self.beats && self.writer.is_some() => Ask::Beat,
            };
            if let (Some(writer), Ok(bytes)) = (&mut self.writer, wire::encode(&ask)) {
                // A guard that is gone says so at the other end; one that is stopped hears later.
                drop(timeout(WRITE_WITHIN, writer.write_all(&bytes)).await);
            }
        }
    }
}

async fn read_told(reader: &mut OwnedReadHalf) -> io::Result<Told> {
    let mut head = [0; 4];
    reader.read_exact(&mut head).await?;
    let mut body = vec![0; wire::length(head)?];
    reader.read_exact(&mut body).await?;
    wire::decode(&body)
}

/// Reads one stream to its end, whatever comes, no faster than its rate.
async fn read_output(mut from: impl AsyncRead + Unpin, stream: LogStream, log: Arc<Writer>) {
    let limits = *log.log().limits();
    let mut lines = Lines::new(limits.line_bytes_max);
    let mut buffer = vec![0; READ_BYTES];
    let mut rate = Rate::new(limits.bytes_per_second);
    loop {
        let line_ends = async {
            match lines.is_waiting() {
                true => sleep(LINE_WITHIN).await,
                false => pending().await,
            }
        };
        let read = tokio::select! {
            biased;
            read = from.read(&mut buffer) => read,
            () = line_ends => {
                if let Some(cut) = lines.rest(false) {
                    log.push(stream, cut.is_part, cut.text);
                }
                continue;
            }
        };
        let bytes = match read {
            Ok(0) | Err(_) => break,
            Ok(bytes) => bytes,
        };
        lines.push(&buffer[..bytes], |cut| log.push(stream, cut.is_part, cut.text));
        rate.took(bytes).await;
    }
    if let Some(cut) = lines.rest(true) {
        log.push(stream, cut.is_part, cut.text);
    }
}

/// So many bytes in each slice of a second; who took more waits for the next.
struct Rate {
    per_slice: usize,
    taken: usize,
    slice_ends: tokio::time::Instant,
}

impl Rate {
    fn new(bytes_per_second: usize) -> Self {
        let per_slice = (bytes_per_second / SLICES).max(1);
        Self { per_slice, taken: 0, slice_ends: tokio::time::Instant::now() }
    }

    async fn took(&mut self, bytes: usize) {
        let now = tokio::time::Instant::now();
        if now >= self.slice_ends {
            self.slice_ends = now + Duration::from_secs(1) / u32::try_from(SLICES).unwrap_or(1);
            self.taken = 0;
        }
        self.taken += bytes;
        if self.taken >= self.per_slice {
            sleep_until(self.slice_ends).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exec::{LogLimits, Logs};

    #[test]
    fn an_end_is_named_by_status_or_signal() {
        let end = |status, signal| Outcome::Ended(End { status, signal, dumped: false, left: 0 });
        assert_eq!(end(Some(0), None).reason(), ExitReason::Normal);
        assert_eq!(end(Some(3), None).reason().to_string(), "failed: exit status 3");
        assert_eq!(end(None, Some(9)).reason().to_string(), "failed: killed by SIGKILL");
        assert_eq!(end(None, Some(64)).reason().to_string(), "failed: killed by signal 64");
        let dumped = Outcome::Ended(End { status: None, signal: Some(11), dumped: true, left: 2 });
        assert_eq!(
            dumped.to_string(),
            "killed by SIGSEGV, core dumped; 2 processes it had left behind were killed"
        );
    }

    async fn writer() -> Arc<Writer> {
        let clock = Arc::new(purlin_core::SystemClock::new());
        Arc::new(Logs::new(LogLimits::default(), None, clock).open("job").await)
    }

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_slowed_and_bounded_and_never_stops_being_read() {
        let log = writer().await;
        let (mut program, output) = tokio::io::duplex(64 << 10);
        let reading = tokio::spawn(read_output(output, LogStream::Out, Arc::clone(&log)));
        let began = tokio::time::Instant::now();
        let garbage: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
        for _ in 0..32 {
            program.write_all(&garbage).await.unwrap();
        }
        drop(program);
        reading.await.unwrap();
        // 32 MiB at 8 MiB a second, less the slice it may be ahead.
        assert!(began.elapsed() >= Duration::from_millis(3_700), "{:?}", began.elapsed());
        let page = log.log().after(0, usize::MAX);
        assert!(page.missed > 0);
        let bytes: usize = page.lines.iter().map(|line| line.text.len()).sum();
        assert!(bytes <= log.log().limits().memory_bytes_max);
    }

    #[tokio::test(start_paused = true)]
    async fn a_prompt_is_shown_before_its_line_ends() {
        let log = writer().await;
        let (mut program, output) = tokio::io::duplex(1 << 10);
        let reading = tokio::spawn(read_output(output, LogStream::Err, Arc::clone(&log)));
        program.write_all(b"continue? ").await.unwrap();
        log.log().wait(0).await;
        program.write_all(b"yes\nbye").await.unwrap();
        drop(program);
        reading.await.unwrap();
        let page = log.log().after(0, usize::MAX);
        let lines: Vec<_> = page.lines.iter().map(|line| (&*line.text, line.is_part)).collect();
        assert_eq!(lines, [("continue? ", true), ("yes", false), ("bye", false)]);
    }
}
