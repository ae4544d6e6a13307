//! The disk as a port: files at offsets, flushes, renames, locks.
//!
//! Everything durable goes through [`Disk`], so that tests can fail what real disks fail: writes
//! that were never flushed vanish or tear in a crash, space runs out, a flush reports an error.

use std::{
    fmt,
    fs::{File, OpenOptions, TryLockError},
    io::{self, ErrorKind, Read as _, Seek as _, Write as _},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

mod faulty;

pub use faulty::{CrashStyle, DiskFaults, FaultyDisk};

/// Files by path. Cheap to share.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens `path` for reading and writing; creates it when `create` says so.
    ///
    /// # Errors
    /// As the operating system says.
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>>;
    /// The names of the files in `dir`, sorted.
    ///
    /// # Errors
    /// As the operating system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Makes `dir` and all above it.
    ///
    /// # Errors
    /// As the operating system says.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Removes the file `path`.
    ///
    /// # Errors
    /// As the operating system says.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Renames `from` to `to` in the same directory, replacing it; durable once
    /// [`Disk::sync_dir`] returns.
    ///
    /// # Errors
    /// As the operating system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Flushes the names in `dir`: files made, renamed or removed there.
    ///
    /// # Errors
    /// As the operating system says; what was not flushed may be gone after a crash.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Locks the file `path`, which is made if need be, for this process alone. The lock ends with
    /// the guard, and with the process, however that ends.
    ///
    /// # Errors
    /// [`LockError`].
    fn lock(&self, path: &Path) -> Result<Box<dyn DiskLock>, LockError>;
    /// What its operations cost whoever calls them.
    fn pace(&self) -> Pace {
        Pace::Blocks
    }
}

/// What an operation of a disk costs whoever calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// It keeps the calling thread waiting. Who must not wait calls it on a thread of its own.
    Blocks,
    /// It returns at once, and a task that flushes sleeps for so long beforehand: a disk in virtual
    /// time. No thread is involved, so that a run can be repeated exactly.
    Sleeps(Duration),
}

/// A lock held until it is dropped.
pub trait DiskLock: Send + Sync + fmt::Debug {}

/// Why a file was not locked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another process holds it.
    #[error("it is locked{}", holder.map(|pid| format!(" by process {pid}")).unwrap_or_default())]
    Held {
        /// Which, when it said so.
        holder: Option<u32>,
    },
    /// The disk refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// All that the file `path` holds; `None` when there is none.
///
/// # Errors
/// As the disk says.
pub fn read(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut bytes = vec![0; usize::try_from(file.len()?).map_err(io::Error::other)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(Some(bytes))
}

/// Replaces what the file `path` holds by `contents`: after a crash the old or the new, never half
/// of one. Durable when it returns. For small files: they are written whole.
///
/// # Errors
/// As the disk says; the file then holds the old or the new contents.
///
/// # Source
/// Pillai et al. 2014: write beside, flush, rename, flush the directory.
pub fn replace(disk: &dyn Disk, path: &Path, contents: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let file = disk.open(&beside, true)?;
    file.set_len(contents.len() as u64)?;
    file.write_all_at(contents, 0)?;
    file.sync_data()?;
    disk.rename(&beside, path)?;
    disk.sync_dir(&parent(path))
}

fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// An open file.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Reads exactly `into.len()` bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends before.
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`.
    ///
    /// # Errors
    /// Some of it may have been written.
    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Flushes the contents and what is needed to find them.
    ///
    /// # Errors
    /// After an error nothing is known about any write since the last success.
    fn sync_data(&self) -> io::Result<()>;
    /// Makes the file `len` bytes long, filling with zeros.
    ///
    /// # Errors
    /// As the operating system says.
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// How long the file is.
    ///
    /// # Errors
    /// As the operating system says.
    fn len(&self) -> io::Result<u64>;
    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// As the operating system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// The operating system's files.
#[derive(Debug, Clone, Copy, Default)]
pub struct RealDisk;

impl RealDisk {
    /// The real disk, ready to share.
    #[must_use]
    pub fn shared() -> Arc<dyn Disk> {
        Arc::new(Self)
    }
}

#[derive(Debug)]
struct RealFile(File);

impl Disk for RealDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(create).truncate(false);
        Ok(Box::new(RealFile(options.open(path)?)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        names.sort_unstable();
        Ok(names)
    }

    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        std::fs::create_dir_all(dir)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn DiskLock>, LockError> {
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let read = file.read_to_string(&mut pid).ok();
                return Err(LockError::Held { holder: read.and_then(|_| pid.trim().parse().ok()) });
            }
            Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
        // The pid is for the error above only; the lock itself is what counts.
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Box::new(RealLock(file)))
    }
}

#[derive(Debug)]
struct RealLock(#[expect(dead_code, reason = "held for the lock on it")] File);

impl DiskLock for RealLock {}

impl DiskFile for RealFile {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(into, offset)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}
