//! A disk in memory that fails as real ones do, from a seed.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;
use purlin_core::Rng;

use super::{Disk, DiskFile};

/// What a crash leaves of writes that were not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashStyle {
    /// All of them: the kindest crash.
    Kept,
    /// None of them.
    Lost,
    /// Each is kept, lost or torn in the middle, as the seed decides.
    Torn,
}

/// A disk in memory with faults. Clones share it: what one holds, the other sees, also after
/// [`FaultyDisk::crash`].
#[derive(Debug, Clone)]
pub struct FaultyDisk(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    files: BTreeMap<PathBuf, Arc<Mutex<Contents>>>,
    /// The names a crash leaves: as of the last flush of their directory.
    flushed_names: BTreeMap<PathBuf, Arc<Mutex<Contents>>>,
    rng: Rng,
    bytes_max: u64,
    fail_syncs: u32,
    fail_writes: u32,
}

#[derive(Debug, Default)]
struct Contents {
    now: Vec<u8>,
    flushed: Vec<u8>,
    /// Writes since the last flush: offset and bytes.
    pending: Vec<(usize, Vec<u8>)>,
}

#[derive(Debug)]
struct FaultyFile {
    disk: FaultyDisk,
    contents: Arc<Mutex<Contents>>,
}

impl FaultyDisk {
    /// An empty disk that fails by itself only in crashes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            files: BTreeMap::new(),
            flushed_names: BTreeMap::new(),
            rng: Rng::from_seed(seed),
            bytes_max: u64::MAX,
            fail_syncs: 0,
            fail_writes: 0,
        })))
    }

    /// From now on the disk holds at most `bytes_max` bytes in all.
    pub fn limit(&self, bytes_max: u64) {
        self.0.lock().bytes_max = bytes_max;
    }

    /// The next `count` flushes fail, and what they were to flush stays unflushed for good.
    pub fn fail_syncs(&self, count: u32) {
        self.0.lock().fail_syncs = count;
    }

    /// The next `count` writes stop half-way, as on a disk that fills up.
    pub fn fail_writes(&self, count: u32) {
        self.0.lock().fail_writes = count;
    }

    fn fails_this_write(&self) -> bool {
        let mut state = self.0.lock();
        let fails = state.fail_writes > 0;
        state.fail_writes = state.fail_writes.saturating_sub(1);
        fails
    }

    /// How many bytes the disk holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let state = self.0.lock();
        state.files.values().map(|contents| contents.lock().now.len() as u64).sum()
    }

    /// Turns the bit `bit` of the byte at `offset` of `path`, on the platter.
    ///
    /// # Panics
    /// When there is no such byte: a test that damages nothing proves nothing.
    pub fn flip_bit(&self, path: &Path, offset: usize, bit: u8) {
        let state = self.0.lock();
        let mut contents = state.files[path].lock();
        contents.now[offset] ^= 1 << bit;
        contents.flushed[offset] ^= 1 << bit;
    }

    /// The power goes and comes back: what was not flushed is treated as `style` says. Files
    /// opened before must not be used any more.
    pub fn crash(&self, style: CrashStyle) {
        let mut state = self.0.lock();
        let State { files, flushed_names, rng, .. } = &mut *state;
        if style != CrashStyle::Kept {
            files.clone_from(flushed_names);
        }
        for contents in files.values() {
            let mut contents = contents.lock();
            let pending = std::mem::take(&mut contents.pending);
            if style == CrashStyle::Kept {
                contents.flushed = contents.now.clone();
                continue;
            }
            contents.now = contents.flushed.clone();
            for (offset, bytes) in pending {
                let keep = match style {
                    CrashStyle::Kept | CrashStyle::Lost => 0,
                    CrashStyle::Torn => match rng.below(3) {
                        0 => bytes.len(),
                        1 => 0,
                        // Disks write sectors, but nothing here relies on their size.
                        _ => rng.below(bytes.len() + 1),
                    },
                };
                put(&mut contents.now, offset, &bytes[..keep]);
            }
            contents.flushed = contents.now.clone();
        }
    }
}

fn put(into: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if into.len() < end && !bytes.is_empty() {
        into.resize(end, 0);
    }
    if !bytes.is_empty() {
        into[offset..end].copy_from_slice(bytes);
    }
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.0.lock();
        let contents = match state.files.get(path) {
            Some(contents) => Arc::clone(contents),
            None if create => {
                let contents = Arc::<Mutex<Contents>>::default();
                state.files.insert(path.to_owned(), Arc::clone(&contents));
                contents
            }
            None => return Err(missing(path)),
        };
        Ok(Box::new(FaultyFile { disk: self.clone(), contents }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.0.lock();
        let inside = state.files.keys().filter(|path| path.parent() == Some(dir));
        let name = |path: &PathBuf| path.file_name()?.to_str().map(str::to_owned);
        Ok(inside.filter_map(name).collect())
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.0.lock().files.remove(path).map(drop).ok_or_else(|| missing(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.0.lock();
        let State { files, flushed_names, .. } = &mut *state;
        flushed_names.retain(|path, _| path.parent() != Some(dir));
        let inside = files.iter().filter(|(path, _)| path.parent() == Some(dir));
        flushed_names.extend(inside.map(|(path, contents)| (path.clone(), Arc::clone(contents))));
        Ok(())
    }
}

impl FaultyFile {
    fn grow(&self, len: usize) -> io::Result<()> {
        let more = len.saturating_sub(self.contents.lock().now.len()) as u64;
        let (held, max) = (self.disk.bytes(), self.disk.0.lock().bytes_max);
        if more > 0 && held + more > max {
            return Err(io::Error::new(ErrorKind::StorageFull, "no space left on device"));
        }
        Ok(())
    }
}

impl DiskFile for FaultyFile {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let contents = self.contents.lock();
        let start = place(offset)?;
        let bytes = contents.now.get(start..start + into.len()).ok_or(ErrorKind::UnexpectedEof)?;
        into.copy_from_slice(bytes);
        Ok(())
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let offset = place(offset)?;
        if self.disk.fails_this_write() {
            // A part of it is there all the same.
            let mut contents = self.contents.lock();
            let part = &bytes[..bytes.len() / 2];
            put(&mut contents.now, offset, part);
            contents.pending.push((offset, part.to_vec()));
            return Err(io::Error::new(ErrorKind::StorageFull, "no space left on device"));
        }
        self.grow(offset + bytes.len())?;
        let mut contents = self.contents.lock();
        put(&mut contents.now, offset, bytes);
        contents.pending.push((offset, bytes.to_vec()));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.0.lock();
        if state.fail_syncs > 0 {
            state.fail_syncs -= 1;
            // As Linux does: the pages count as clean from now on, and nobody writes them again.
            self.contents.lock().pending.clear();
            return Err(io::Error::other("input/output error"));
        }
        drop(state);
        let mut contents = self.contents.lock();
        contents.flushed = contents.now.clone();
        contents.pending.clear();
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = place(len)?;
        self.grow(len)?;
        let mut contents = self.contents.lock();
        contents.now.resize(len, 0);
        contents.flushed.resize(len, 0);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.contents.lock().now.len() as u64)
    }
}
