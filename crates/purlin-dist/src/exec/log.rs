//! The last lines a program wrote, bounded in bytes.
//!
//! Whoever reads falls behind or comes back later; what is gone by then is counted, not hidden. A
//! position is the number of a line in one life of a node; it means nothing to another.

use std::collections::VecDeque;

use parking_lot::Mutex;
use purlin_core::WallTime;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

/// What a line costs beside its text: time, number, stream, the place it takes.
const LINE_COST: usize = 64;

/// Bounds on what is kept of the output of one name, and how fast it is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes in memory; the oldest lines go first. At least four lines. Default 1 MiB (guess).
    pub memory_bytes_max: usize,
    /// Longest line in bytes; longer ones are cut into pieces. Default 16 KiB (guess).
    pub line_bytes_max: usize,
    /// Bytes of one file; then the next is begun. Default 4 MiB (guess).
    pub file_bytes_max: u64,
    /// Files per name, the current one included. Default 4.
    pub files_max: usize,
    /// Names whose output is kept on this node; beyond it that which ended longest ago goes, files
    /// included. Default 256.
    pub names_max: usize,
    /// Bytes per second taken from each of a program's two streams; what writes faster waits.
    /// Default 8 MiB, so that a flood costs the node a few per cent of a core (measured).
    pub bytes_per_second: usize,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            memory_bytes_max: 1 << 20,
            line_bytes_max: 16 << 10,
            file_bytes_max: 4 << 20,
            files_max: 4,
            names_max: 256,
            bytes_per_second: 8 << 20,
        }
    }
}

/// Where a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogStream {
    /// The program's standard output.
    Out,
    /// Its standard error.
    Err,
    /// The node: that it started and how it ended.
    Note,
}

impl LogStream {
    /// `stdout`, `stderr` or `purlin`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Out => "stdout",
            Self::Err => "stderr",
            Self::Note => "purlin",
        }
    }

    pub(super) fn parse(text: &str) -> Option<Self> {
        [Self::Out, Self::Err, Self::Note].into_iter().find(|stream| stream.as_str() == text)
    }
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its number; each line of a name in a node's life has the next.
    pub seq: u64,
    /// When its end, or its last piece, was read, by the wall clock of the node.
    pub at: WallTime,
    /// Where it comes from.
    pub stream: LogStream,
    /// Whether it goes on in the next line of the same stream: it was too long, or had not ended
    /// for a while.
    pub is_part: bool,
    /// The text without the newline; what was not UTF-8 is replaced.
    pub text: String,
}

impl Line {
    fn cost(&self) -> usize {
        self.text.len() + LINE_COST
    }
}

/// Some lines in order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// The lines.
    pub lines: Vec<Line>,
    /// How many before them are gone that the reader has not seen.
    pub missed: u64,
    /// What to read after next.
    pub next: u64,
}

/// The lines there are.
#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Line>,
    bytes: usize,
    /// The number of the last line there was; numbers begin at 1.
    last: u64,
    /// That of the last line before the latest start.
    run_after: u64,
}

impl Ring {
    fn push(&mut self, mut line: Line, bytes_max: usize) {
        self.last += 1;
        line.seq = self.last;
        self.bytes += line.cost();
        self.lines.push_back(line);
        while self.bytes > bytes_max
            && self.lines.len() > 1
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.cost();
        }
    }

    /// Lines after number `after`, at least one if there is one, up to `bytes_max`.
    fn after(&self, after: u64, bytes_max: usize) -> Page {
        // A number never given is one of another life: the reader is shown all there is.
        let after = if after > self.last { 0 } else { after };
        let first = self.last + 1 - self.lines.len() as u64;
        let skipped = usize::try_from((after + 1).saturating_sub(first)).unwrap_or(usize::MAX);
        let (mut lines, mut bytes) = (Vec::new(), 0);
        for line in self.lines.iter().skip(skipped) {
            bytes += line.cost();
            if bytes > bytes_max && !lines.is_empty() {
                break;
            }
            lines.push(line.clone());
        }
        let missed = first.saturating_sub(after + 1);
        let next = lines.last().map_or(self.last, |line| line.seq);
        Page { lines, missed, next }
    }

    /// The number after which the last `count` lines follow.
    fn before_last(&self, count: usize) -> u64 {
        self.last - (count.min(self.lines.len()) as u64)
    }
}

/// The output of one name on this node.
#[derive(Debug)]
pub struct Log {
    limits: LogLimits,
    ring: Mutex<Ring>,
    changed: Notify,
}

impl Log {
    pub(super) fn new(limits: LogLimits) -> Self {
        Self { limits, ring: Mutex::default(), changed: Notify::new() }
    }

    pub(super) fn limits(&self) -> &LogLimits {
        &self.limits
    }

    pub(super) fn push(&self, at: WallTime, stream: LogStream, is_part: bool, text: String) {
        let line = Line { seq: 0, at, stream, is_part, text };
        let bytes_max =
            self.limits.memory_bytes_max.max(4 * (self.limits.line_bytes_max + LINE_COST));
        self.ring.lock().push(line, bytes_max);
        self.changed.notify_waiters();
    }

    /// Lines after number `after`, up to `bytes_max` bytes of text and cost, at least one if there
    /// is one. 0 is before the first.
    #[must_use]
    pub fn after(&self, after: u64, bytes_max: usize) -> Page {
        self.ring.lock().after(after, bytes_max)
    }

    /// The number after which the last `count` lines follow.
    #[must_use]
    pub fn before_last(&self, count: usize) -> u64 {
        self.ring.lock().before_last(count)
    }

    /// The number of the last line there was; 0 before the first.
    #[must_use]
    pub fn last(&self) -> u64 {
        self.ring.lock().last
    }

    pub(super) fn begin_run(&self) {
        let mut ring = self.ring.lock();
        ring.run_after = ring.last;
    }

    /// The number after which the lines of the latest start follow.
    #[must_use]
    pub fn run_began_after(&self) -> u64 {
        self.ring.lock().run_after
    }

    /// Waits until there is a line after number `after`.
    ///
    /// # Cancel safety
    /// Safe: it only looks.
    pub async fn wait(&self, after: u64) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Before looking, so that a line in between is not missed.
            changed.as_mut().enable();
            if self.ring.lock().last > after {
                return;
            }
            changed.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn log(memory_bytes_max: usize) -> Log {
        Log::new(LogLimits { memory_bytes_max, line_bytes_max: 8, ..LogLimits::default() })
    }

    fn say(log: &Log, text: &str) {
        log.push(WallTime::from_millis(1), LogStream::Out, false, text.to_owned());
    }

    fn texts(page: &Page) -> Vec<&str> {
        page.lines.iter().map(|line| &*line.text).collect()
    }

    #[test]
    fn a_reader_that_fell_behind_is_told_how_many_lines_it_missed() {
        let log = log(4 * 72);
        (1..=6).for_each(|n| say(&log, &n.to_string()));
        let page = log.after(1, 1 << 20);
        assert_eq!((texts(&page), page.missed, page.next), (vec!["3", "4", "5", "6"], 1, 6));
        let page = log.after(4, 1 << 20);
        assert_eq!((texts(&page), page.missed, page.next), (vec!["5", "6"], 0, 6));
        let page = log.after(6, 1 << 20);
        assert_eq!((texts(&page), page.missed, page.next), (vec![], 0, 6));
    }

    #[test]
    fn a_page_is_bounded_but_never_empty_while_there_are_lines() {
        let log = log(1 << 20);
        (1..=3).for_each(|n| say(&log, &n.to_string()));
        let page = log.after(0, 1);
        assert_eq!((texts(&page), page.next), (vec!["1"], 1));
        assert_eq!(texts(&log.after(page.next, 130)), ["2", "3"]);
        assert_eq!(log.before_last(2), 1);
        assert_eq!(log.before_last(9), 0);
    }

    #[test]
    fn a_number_of_another_life_shows_all_there_is() {
        let log = log(1 << 20);
        say(&log, "new");
        assert_eq!(texts(&log.after(500, 1 << 20)), ["new"]);
    }

    #[tokio::test]
    async fn a_wait_ends_with_the_next_line() {
        let log = std::sync::Arc::new(log(1 << 20));
        let waiting = tokio::spawn({
            let log = std::sync::Arc::clone(&log);
            async move { log.wait(0).await }
        });
        tokio::task::yield_now().await;
        say(&log, "now");
        waiting.await.unwrap();
        log.wait(0).await;
    }

    proptest! {
        #[test]
        fn the_bound_holds_and_what_is_read_in_pages_is_what_was_written(
            sizes in prop::collection::vec(0_usize..40, 1..80),
            page_bytes in 1_usize..500,
        ) {
            let log = log(1_000);
            for (at, size) in sizes.iter().enumerate() {
                log.push(WallTime::from_millis(at as u64), LogStream::Err, false, "x".repeat(*size));
            }
            let bytes: usize = log.ring.lock().lines.iter().map(Line::cost).sum();
            prop_assert_eq!(bytes, log.ring.lock().bytes);
            prop_assert!(bytes <= 1_000);
            let (mut after, mut seen, mut missed) = (0, 0_u64, 0);
            loop {
                let page = log.after(after, page_bytes);
                missed += page.missed;
                if page.lines.is_empty() {
                    break;
                }
                for line in &page.lines {
                    prop_assert_eq!(line.text.len(), sizes[usize::try_from(line.seq).unwrap() - 1]);
                }
                seen += page.lines.len() as u64;
                after = page.next;
            }
            prop_assert_eq!(seen + missed, sizes.len() as u64);
        }
    }
}
