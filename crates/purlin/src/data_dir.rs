//! The directory a node keeps between lives: its lock, its last incarnation, its clock's mark.
//!
//! Two processes in one directory would take the same name with interleaved incarnations and each
//! would supersede the other, so the directory is locked before anything is read from it. The lock
//! is the operating system's: it ends with the process, however that ends.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use purlin_core::{Incarnation, WallTime};
use purlin_store::{
    Disk, DiskLock, LockError,
    disk::{self, Pace},
};

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
    disk: Arc<dyn Disk>,
    path: PathBuf,
    // Held for the lock on it.
    _lock: Box<dyn DiskLock>,
}

impl DataDir {
    /// Makes the directory on `disk` if needed and locks it.
    ///
    /// # Errors
    /// [`DataDirError::InUse`] when another process holds it, [`DataDirError::Io`] when the file
    /// system refuses.
    pub fn open(disk: Arc<dyn Disk>, path: &Path) -> Result<Self, DataDirError> {
        let dir = path.to_owned();
        let refused = |action, at| {
            let dir = dir.clone();
            move |source| DataDirError::Io { dir, action, path: at, source }
        };
        disk.create_dir(path).map_err(refused("create", dir.clone()))?;
        let lock_path = path.join(LOCK);
        match disk.lock(&lock_path) {
            Ok(lock) => Ok(Self { disk, path: dir, _lock: lock }),
            Err(LockError::Held { holder }) => Err(DataDirError::InUse { dir, holder }),
            Err(LockError::Io(source)) => Err(refused("lock", lock_path)(source)),
            Err(error) => Err(refused("lock", lock_path)(io::Error::other(error))),
        }
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

    /// The disk it is on.
    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    /// Does `work`, which writes here, without keeping a thread of the runtime waiting.
    pub(crate) async fn without_blocking<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        match self.disk.pace() {
            // None when the runtime is shutting down, and then nobody wants the result.
            Pace::Blocks => tokio::task::spawn_blocking(move || work(&self)).await.ok(),
            Pace::Sleeps(flush_takes) => {
                tokio::time::sleep(flush_takes).await;
                Some(work(&self))
            }
        }
    }

    fn number(&self, name: &str) -> Result<Option<u64>, DataDirError> {
        let path = self.path.join(name);
        let bytes = match disk::read(&*self.disk, &path) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(None),
            Err(source) => return Err(self.io("read", path, source)),
        };
        let found = String::from_utf8_lossy(&bytes);
        match found.trim().parse() {
            Ok(number) => Ok(Some(number)),
            Err(_) => {
                let found = found.into_owned();
                Err(DataDirError::Damaged { dir: self.path.clone(), path, found })
            }
        }
    }

    /// Old or new content, never half of one.
    fn replace(&self, path: &Path, content: &str) -> Result<(), DataDirError> {
        disk::replace(&*self.disk, path, content.as_bytes())
            .map_err(|source| self.io("write", path.to_owned(), source))
    }

    fn io(&self, action: &'static str, path: PathBuf, source: io::Error) -> DataDirError {
        DataDirError::Io { dir: self.path.clone(), action, path, source }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use purlin_store::{FaultyDisk, RealDisk, disk::CrashStyle};

    use super::*;

    fn open(path: &Path) -> Result<DataDir, DataDirError> {
        DataDir::open(RealDisk::shared(), path)
    }

    fn at(millis: u64) -> WallTime {
        WallTime::from_millis(millis)
    }

    #[test]
    fn an_incarnation_grows_even_when_the_wall_clock_goes_back() {
        let dir = tempfile::tempdir().unwrap();
        let data = open(dir.path()).unwrap();
        assert_eq!(data.next_incarnation(at(1_000)).unwrap(), Incarnation(1_000));
        assert_eq!(data.next_incarnation(at(500)).unwrap(), Incarnation(1_001));
        drop(data);
        let data = open(dir.path()).unwrap();
        assert_eq!(data.next_incarnation(at(0)).unwrap(), Incarnation(1_002));
    }

    #[test]
    fn two_holders_never_share_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let first = open(dir.path()).unwrap();
        let error = open(dir.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains(&format!("in use by another node (pid {})", std::process::id())),
            "{error}"
        );
        drop(first);
        open(dir.path()).unwrap();
    }

    #[test]
    fn a_file_in_the_way_is_told_in_one_sentence() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = open(&file.join("data")).unwrap_err().to_string();
        assert!(error.contains("is not usable: cannot create"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }

    #[test]
    fn a_damaged_record_is_refused_and_not_guessed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(INCARNATION), "12x").unwrap();
        let error = open(dir.path()).unwrap().next_incarnation(at(5)).unwrap_err().to_string();
        assert!(error.contains("holds \"12x\" instead of a number"), "{error}");
    }

    #[test]
    fn no_crash_of_the_machine_gives_an_incarnation_twice() {
        let styles = [CrashStyle::Killed, CrashStyle::Kept, CrashStyle::Lost, CrashStyle::Torn];
        for (seed, skip) in (0..50).zip((0..4).cycle()) {
            let disk = FaultyDisk::new(seed);
            let mut last = Incarnation(0);
            for style in styles.iter().cycle().skip(skip).take(12) {
                let data = DataDir::open(disk.mount(), Path::new("/data")).unwrap();
                let next = data.next_incarnation(at(7)).unwrap();
                assert!(next > last, "seed {seed}: {next} after {last}");
                last = next;
                disk.crash(*style);
            }
        }
    }
}
