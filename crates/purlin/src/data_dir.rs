//! The directory a node keeps between lives: its lock, its last incarnation, its clock's mark.
//!
//! Two processes in one directory would take the same name with interleaved incarnations and each
//! would supersede the other, so the directory is locked before anything is read from it. The lock
//! is the operating system's: it ends with the process, however that ends.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use purlin_core::{Incarnation, WallTime};

const LOCK: &str = "lock";
const INCARNATION: &str = "incarnation";
const HIGH_WATER: &str = "high_water";

/// Why a data directory cannot be used. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DataDirError {
    /// It cannot be made, read or written; the operator must see to rights, space or the path.
    #[error("data dir {} is not usable: cannot {action} {}: {source}", dir.display(), path.display())]
    Io {
        /// The data directory.
        dir: PathBuf,
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the operating system answered.
        source: io::Error,
    },
    /// Another process runs a node in it. Stop that one or choose another directory.
    #[error("data dir {} is in use by another node{}", dir.display(), holder.map(|pid| format!(" (pid {pid})")).unwrap_or_default())]
    InUse {
        /// The data directory.
        dir: PathBuf,
        /// The process that holds it, when it said so.
        holder: Option<u32>,
    },
    /// A recorded number is none. Guessing could reuse an old identity or an old timestamp.
    #[error(
        "data dir {} is damaged: {} holds {found:?} instead of a number; put back a number higher than any it has held, or use a new data dir",
        dir.display(), path.display()
    )]
    Damaged {
        /// The data directory.
        dir: PathBuf,
        /// The damaged file.
        path: PathBuf,
        /// What it holds.
        found: String,
    },
}

/// A data directory held by this process until dropped.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    // Held for the lock on it.
    _lock: File,
}

impl DataDir {
    /// Makes the directory if needed and locks it.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] when another process holds it, [`DataDirError::Io`] when the file
    /// system refuses.
    pub fn open(path: &Path) -> Result<Self, DataDirError> {
        let refused = |action, at: PathBuf| {
            move |source| DataDirError::Io { dir: path.to_owned(), action, path: at, source }
        };
        fs::create_dir_all(path).map_err(refused("create", path.to_owned()))?;
        let lock_path = path.join(LOCK);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_path)
            .map_err(refused("open", lock_path.clone()))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let holder =
                    lock.read_to_string(&mut pid).ok().and_then(|_| pid.trim().parse().ok());
                return Err(DataDirError::InUse { dir: path.to_owned(), holder });
            }
            Err(TryLockError::Error(source)) => return Err(refused("lock", lock_path)(source)),
        }
        // The pid is for the message above only; the lock itself is what counts.
        lock.set_len(0)
            .and_then(|()| lock.seek(SeekFrom::Start(0)))
            .and_then(|_| writeln!(lock, "{}", std::process::id()))
            .map_err(refused("write", lock_path))?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the next incarnation and records it durably before returning it.
    ///
    /// # Errors
    /// [`DataDirError::Damaged`] when the record is not a number, [`DataDirError::Io`] when it
    /// cannot be read or written. No incarnation was taken.
    ///
    /// # Guarantees
    /// Greater than every incarnation taken from this directory before, power loss included.
    pub fn next_incarnation(&self, wall: WallTime) -> Result<Incarnation, DataDirError> {
        let recorded = self.number(INCARNATION)?.map(Incarnation);
        let next = Incarnation::at_start(wall, recorded);
        self.replace(&self.path.join(INCARNATION), &format!("{next}\n"))?;
        Ok(next)
    }

    /// The mark below which earlier lives have issued all their hybrid timestamps.
    ///
    /// # Errors
    /// [`DataDirError::Damaged`] when the record is not a number, [`DataDirError::Io`] when it
    /// cannot be read.
    pub fn high_water(&self) -> Result<Option<WallTime>, DataDirError> {
        Ok(self.number(HIGH_WATER)?.map(WallTime::from_millis))
    }

    /// Records that timestamps up to `mark` may be issued; durable when it returns.
    ///
    /// # Errors
    /// [`DataDirError::Io`]; the earlier mark then holds.
    pub fn record_high_water(&self, mark: WallTime) -> Result<(), DataDirError> {
        self.replace(&self.path.join(HIGH_WATER), &format!("{}\n", mark.as_millis()))
    }

    fn number(&self, name: &str) -> Result<Option<u64>, DataDirError> {
        let path = self.path.join(name);
        match fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(DataDirError::Damaged { dir: self.path.clone(), path, found: text }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.io("read", path, source)),
        }
    }

    /// Old or new content, never half of one: write aside, sync, rename, sync the directory.
    fn replace(&self, path: &Path, content: &str) -> Result<(), DataDirError> {
        let aside = path.with_extension("new");
        File::create(&aside)
            .and_then(|mut file| file.write_all(content.as_bytes()).and_then(|()| file.sync_all()))
            .and_then(|()| fs::rename(&aside, path))
            .and_then(|()| File::open(&self.path)?.sync_all())
            .map_err(|source| self.io("write", path.to_owned(), source))
    }

    fn io(&self, action: &'static str, path: PathBuf, source: io::Error) -> DataDirError {
        DataDirError::Io { dir: self.path.clone(), action, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> WallTime {
        WallTime::from_millis(millis)
    }

    #[test]
    fn an_incarnation_grows_even_when_the_wall_clock_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.next_incarnation(at(1_000)).unwrap(), Incarnation(1_000));
        assert_eq!(data.next_incarnation(at(500)).unwrap(), Incarnation(1_001));
        drop(data);
        let data = DataDir::open(dir.path()).unwrap();
        assert_eq!(data.next_incarnation(at(0)).unwrap(), Incarnation(1_002));
    }

    #[test]
    fn two_holders_never_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = DataDir::open(dir.path()).unwrap();
        let error = DataDir::open(dir.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("in use by another node (pid {})", std::process::id())),
            "{error}"
        );
        drop(first);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_told_in_one_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = DataDir::open(&file.join("data")).unwrap_err().to_string();
        assert!(error.contains("is not usable: cannot create"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn a_damaged_record_is_refused_and_not_guessed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(INCARNATION), "12x").unwrap();
        let error =
            DataDir::open(dir.path()).unwrap().next_incarnation(at(5)).unwrap_err().to_string();
        assert!(error.contains("holds \"12x\" instead of a number"), "{error}");
    }
}
