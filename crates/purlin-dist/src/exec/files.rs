//! Output on disk: a text file per name that people can read, and a few older ones.
//!
//! A line is its time, where it comes from and its text: `2026-11-20T12:00:00.123Z stdout hello`. A
//! `+` behind the word says that the line goes on in the next. Nothing is flushed: these are notes
//! for people, and a node that is killed loses the last milliseconds of them.

use std::{
    fmt,
    io::{self, ErrorKind},
    ops::Range,
    path::{Path, PathBuf},
};

use purlin_core::WallTime;
use tokio::fs::{self, File, OpenOptions};
use tokio::io::AsyncWriteExt as _;

use super::log::{Line, LogLimits, LogStream};

/// The files of one name.
pub(super) struct Files {
    path: PathBuf,
    limits: LogLimits,
    current: Option<(File, u64)>,
}

impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.fmt(f)
    }
}

impl Files {
    /// Of the program `name`, in `dir`.
    pub(super) fn of(dir: &Path, name: &str, limits: LogLimits) -> Self {
        Self { path: path(dir, name), limits, current: None }
    }

    /// Appends `lines`, beginning another file where one is full.
    pub(super) async fn append(&mut self, lines: &[Line]) -> io::Result<()> {
        let mut text = String::new();
        for line in lines {
            write_line(&mut text, line);
        }
        let (mut file, bytes) = match self.current.take() {
            Some(current) => current,
            None => self.open().await?,
        };
        file.write_all(text.as_bytes()).await?;
        // Tokio writes in the background; an error of that write would be told to nobody.
        file.flush().await?;
        let bytes = bytes + text.len() as u64;
        if bytes < self.limits.file_bytes_max {
            self.current = Some((file, bytes));
            return Ok(());
        }
        drop(file);
        self.rotate().await
    }

    async fn open(&self) -> io::Result<(File, u64)> {
        if let Some(dir) = self.path.parent() {
            fs::create_dir_all(dir).await?;
        }
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        // What a program writes is for its operators alone.
        #[cfg(unix)]
        options.mode(0o600);
        let file = options.open(&self.path).await?;
        let bytes = file.metadata().await?.len();
        Ok((file, bytes))
    }

    /// `log` becomes `log.1`, that `log.2` and so on; the last one goes.
    async fn rotate(&self) -> io::Result<()> {
        let kept = self.limits.files_max.saturating_sub(1);
        if kept == 0 {
            return allow_absent(fs::remove_file(&self.path).await);
        }
        for older in (1..kept).rev() {
            let from = numbered(&self.path, older);
            allow_absent(fs::rename(&from, numbered(&self.path, older + 1)).await)?;
        }
        allow_absent(fs::rename(&self.path, numbered(&self.path, 1)).await)
    }

    /// The last lines of an earlier life of the node, about `bytes_max` bytes of them, oldest first.
    pub(super) async fn tail(&self, bytes_max: usize) -> Vec<(WallTime, LogStream, bool, String)> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for path in [numbered(&self.path, 1), self.path.clone()] {
            // Absent or unreadable: then there is nothing to show.
            let text = fs::read(&path).await.unwrap_or_default();
            found.extend(String::from_utf8_lossy(&text).lines().filter_map(read_line));
        }
        let keep = found.iter().rev().take_while(|(.., text): &&(_, _, _, String)| {
            bytes += text.len();
            bytes <= bytes_max
        });
        let skip = found.len() - keep.count();
        found.split_off(skip)
    }

    /// Removes them all.
    pub(super) async fn remove(&self) {
        let older = (1..self.limits.files_max).map(|age| numbered(&self.path, age));
        for path in older.chain([self.path.clone()]) {
            drop(fs::remove_file(path).await);
        }
    }
}

/// The names that have files in `dir`, the one that was written longest ago first.
pub(super) async fn names(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let Ok(mut entries) = fs::read_dir(dir).await else { return Vec::new() };
    while let Ok(Some(entry)) = entries.next_entry().await {
        let file = entry.file_name();
        let name = file.to_str().and_then(|file| file.strip_suffix(SUFFIX));
        let written = entry.metadata().await.and_then(|data| data.modified()).ok();
        if let Some(name) = name.filter(|name| super::check_name(name).is_ok()) {
            found.push((written, name.to_owned()));
        }
    }
    found.sort();
    found.into_iter().map(|(_, name)| name).collect()
}

const SUFFIX: &str = ".log";

fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}{SUFFIX}"))
}

fn numbered(path: &Path, age: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{age}"));
    PathBuf::from(name)
}

fn allow_absent(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn write_line(text: &mut String, line: &Line) {
    let goes_on = if line.is_part { "+" } else { "" };
    text.push_str(&format!("{} {}{goes_on} ", utc(line.at), line.stream.as_str()));
    text.push_str(&line.text);
    text.push('\n');
}

fn read_line(text: &str) -> Option<(WallTime, LogStream, bool, String)> {
    let (at, rest) = text.split_once(' ')?;
    let (word, text) = rest.split_once(' ')?;
    let stream = LogStream::parse(word.strip_suffix('+').unwrap_or(word))?;
    Some((parse_utc(at)?, stream, word.ends_with('+'), text.to_owned()))
}

const DAY_MS: u64 = 86_400_000;

/// RFC 3339 in UTC with milliseconds.
fn utc(at: WallTime) -> String {
    // 9999 is the last year that has four digits.
    let ms = at.as_millis().min(253_402_300_799_999);
    let (year, month, day) = date(ms / DAY_MS);
    let ms = ms % DAY_MS;
    let (hour, minute) = (ms / 3_600_000, ms / 60_000 % 60);
    let (second, ms) = (ms / 1_000 % 60, ms % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

/// Reads what [`utc`] wrote, to the millisecond.
fn parse_utc(text: &str) -> Option<WallTime> {
    let number = |range: Range<usize>| text.get(range)?.parse::<u64>().ok();
    let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
    let (hour, minute, second, ms) =
        (number(11..13)?, number(14..16)?, number(17..19)?, number(20..23)?);
    // Found by halving: the inverse of what writes it, whatever that does.
    let (mut low, mut high) = (0, 2_932_897_u64);
    while low < high {
        let middle = (low + high) / 2;
        if date(middle) < (year, month, day) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    let ms = low * DAY_MS + hour * 3_600_000 + minute * 60_000 + second * 1_000 + ms;
    let at = WallTime::from_millis(ms);
    (utc(at) == text).then_some(at)
}

/// The date of a day since 1970-01-01.
///
/// # Source
/// Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
fn date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = year + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn line(text: &str, is_part: bool) -> Line {
        let at = WallTime::from_millis(1_795_176_000_123);
        Line { seq: 0, at, stream: LogStream::Err, is_part, text: text.to_owned() }
    }

    #[tokio::test]
    async fn what_is_appended_is_there_for_the_next_life_and_the_bound_holds() {
        let dir = tempfile::tempdir().unwrap();
        let limits = LogLimits { file_bytes_max: 200, files_max: 3, ..LogLimits::default() };
        let mut files = Files::of(dir.path(), "job", limits);
        for n in 0..40 {
            files.append(&[line(&format!("line {n}"), n == 38)]).await.unwrap();
        }
        let texts = |tail: Vec<(_, _, _, String)>| {
            tail.into_iter().map(|(.., text)| text).collect::<Vec<_>>()
        };
        // Another life goes on in the same file.
        let mut files = Files::of(dir.path(), "job", limits);
        let tail = files.tail(20).await;
        assert_eq!(tail[0].0, WallTime::from_millis(1_795_176_000_123));
        assert_eq!((tail[0].2, tail[1].2), (true, false));
        assert_eq!(texts(tail), ["line 38", "line 39"]);
        files.append(&[line("more", false)]).await.unwrap();
        assert_eq!(texts(files.tail(5).await), ["more"]);
        let sizes: Vec<u64> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .collect();
        assert!(sizes.len() <= 3 && sizes.iter().all(|bytes| *bytes < 300), "{sizes:?}");
        assert_eq!(names(dir.path()).await, ["job"]);
        files.remove().await;
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_is_not_a_line_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let good = "2026-11-20T12:00:00.123Z stdout good line";
        let bad =
            ["", "x", "2026-13-20T12:00:00.123Z stdout x", "2026-11-20T12:00:00.123Z stdfoo x"];
        std::fs::write(dir.path().join("job.log"), format!("{}\n{good}", bad.join("\n"))).unwrap();
        let tail = Files::of(dir.path(), "job", LogLimits::default()).tail(1_000).await;
        assert_eq!(tail.len(), 1);
        assert_eq!((tail[0].1, &*tail[0].3), (LogStream::Out, "good line"));
    }

    #[test]
    fn moments_are_written_as_everybody_writes_them() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_795_176_000_123, "2026-11-20T12:00:00.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
        ] {
            assert_eq!(utc(WallTime::from_millis(ms)), text);
        }
    }

    proptest! {
        #[test]
        fn a_moment_is_read_as_it_was_written(ms in 0_u64..253_402_300_800_000) {
            let at = WallTime::from_millis(ms);
            prop_assert_eq!(parse_utc(&utc(at)), Some(at));
        }
    }
}
