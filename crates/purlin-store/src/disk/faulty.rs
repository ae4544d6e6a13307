//! A disk in memory that fails as real ones do, from a seed.

use std::{
    collections::BTreeMap,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use purlin_core::Rng;

use super::{Disk, DiskFile, DiskLock, LockError, Pace};

/// What a crash leaves of writes that were not flushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CrashStyle {
    /// The process ends and the machine stays: the next life reads everything that was written,
    /// and what was not flushed may still be lost when the power goes later.
    Killed,
    /// The power goes when all of them happen to have reached the platter: the kindest crash.
    Kept,
    /// The power goes and takes all of them.
    Lost,
    /// The power goes; each is kept, lost or torn in the middle, as the seed decides, and of the
    /// files made, renamed and removed in a directory the first few are.
    Torn,
}

/// How often a disk failed so far, so that a test can tell that it did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskFaults {
    /// Writes refused or cut short because the disk was full.
    pub writes_refused: u64,
    /// Flushes that reported an error.
    pub flushes_failed: u64,
    /// Crashes of either kind.
    pub crashes: u64,
    /// Writes that a crash took.
    pub writes_lost: u64,
    /// Writes of which a crash left a part.
    pub writes_torn: u64,
}

/// A disk in memory with faults. Clones share it: what one holds, the other sees, also after
/// [`FaultyDisk::crash`]. It never waits: a log on it is written by a task.
#[derive(Debug, Clone)]
pub struct FaultyDisk {
    shared: Arc<Mutex<State>>,
    /// The life of the machine it is mounted in; `None` serves every life.
    life: Option<u64>,
}

#[derive(Debug)]
struct State {
    files: BTreeMap<PathBuf, Shared>,
    /// The names a crash leaves: as of the last flush of their directory.
    flushed_names: BTreeMap<PathBuf, Shared>,
    /// What was done to names since, in order.
    pending_names: Vec<NameChange>,
    locks: BTreeMap<PathBuf, u64>,
    next_lock: u64,
    life: u64,
    rng: Rng,
    bytes_max: u64,
    flush_takes: Duration,
    fail_syncs: u32,
    fail_writes: u32,
    faults: DiskFaults,
}

type Shared = Arc<Mutex<Contents>>;

#[derive(Debug)]
enum NameChange {
    Made(PathBuf, Shared),
    Removed(PathBuf),
    Renamed { from: PathBuf, to: PathBuf },
}

#[derive(Debug, Default)]
struct Contents {
    now: Image,
    flushed: Image,
    /// Changes since the last flush, in order.
    pending: Vec<Change>,
}

/// A file's bytes. Those from the last one written on are zeros and take no room.
#[derive(Debug, Default, Clone)]
struct Image {
    written: Vec<u8>,
    len: usize,
}

#[derive(Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Len(usize),
}

#[derive(Debug)]
struct FaultyFile {
    shared: Arc<Mutex<State>>,
    life: u64,
    contents: Shared,
}

#[derive(Debug)]
struct FaultyLock {
    shared: Arc<Mutex<State>>,
    path: PathBuf,
    number: u64,
}

impl FaultyDisk {
    /// An empty disk that fails by itself only in crashes.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            files: BTreeMap::new(),
            flushed_names: BTreeMap::new(),
            pending_names: Vec::new(),
            locks: BTreeMap::new(),
            next_lock: 0,
            life: 0,
            rng: Rng::from_seed(seed),
            bytes_max: u64::MAX,
            flush_takes: Duration::ZERO,
            fail_syncs: 0,
            fail_writes: 0,
            faults: DiskFaults::default(),
        };
        Self { shared: Arc::new(Mutex::new(state)), life: None }
    }

    /// The disk as the machine sees it in its present life: after the next crash everything done
    /// through this is refused, so that what is left of the old life cannot touch the new one.
    #[must_use]
    pub fn mount(&self) -> Arc<dyn Disk> {
        let life = self.shared.lock().life;
        Arc::new(Self { shared: Arc::clone(&self.shared), life: Some(life) })
    }

    /// From now on the disk holds at most `bytes_max` bytes in all; a write gets as far as there is
    /// room.
    pub fn limit(&self, bytes_max: u64) {
        self.shared.lock().bytes_max = bytes_max;
    }

    /// From now on a flush takes so long, on the clock of the runtime.
    pub fn slow_down(&self, flush_takes: Duration) {
        self.shared.lock().flush_takes = flush_takes;
    }

    /// The next `count` flushes of files fail, and what they were to flush stays unflushed for
    /// good.
    pub fn fail_syncs(&self, count: u32) {
        self.shared.lock().fail_syncs = count;
    }

    /// The next `count` writes stop half-way, as on a disk that fills up.
    pub fn fail_writes(&self, count: u32) {
        self.shared.lock().fail_writes = count;
    }

    /// How many bytes the disk holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.shared.lock().bytes()
    }

    /// How often it failed so far.
    #[must_use]
    pub fn faults(&self) -> DiskFaults {
        self.shared.lock().faults
    }

    /// Turns the bit `bit` of the byte at `offset` of `path`, on the platter.
    ///
    /// # Panics
    /// When no such byte was ever written: a test that damages nothing proves nothing.
    pub fn flip_bit(&self, path: &Path, offset: usize, bit: u8) {
        let state = self.shared.lock();
        let mut contents = state.files[path].lock();
        contents.now.written[offset] ^= 1 << bit;
        contents.flushed.written[offset] ^= 1 << bit;
    }

    /// Process or machine ends, as `style` says. Locks are gone; files opened and disks mounted
    /// before are refused from now on.
    pub fn crash(&self, style: CrashStyle) {
        let mut state = self.shared.lock();
        state.life += 1;
        state.locks.clear();
        state.faults.crashes += 1;
        if style != CrashStyle::Killed {
            state.lose_names(style);
            state.lose_writes(style);
        }
    }

    /// The state, if this is the life it was mounted in.
    fn live(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.shared.lock();
        match self.life {
            Some(life) if life != state.life => Err(dead()),
            _ => Ok(state),
        }
    }
}

impl State {
    fn bytes(&self) -> u64 {
        self.files.values().map(|contents| contents.lock().now.written.len() as u64).sum()
    }

    fn lose_names(&mut self, style: CrashStyle) {
        if style == CrashStyle::Kept {
            self.flush_names(|_| true);
            return;
        }
        // A journal keeps what was done in a directory in order, up to some point.
        let mut left = BTreeMap::<PathBuf, usize>::new();
        for change in &self.pending_names {
            *left.entry(change.dir().to_owned()).or_default() += 1;
        }
        for count in left.values_mut() {
            *count = if style == CrashStyle::Torn { self.rng.below(*count + 1) } else { 0 };
        }
        self.flush_names(|change| {
            let left = left.get_mut(change.dir()).expect("counted above");
            let keeps = *left > 0;
            *left = left.saturating_sub(1);
            keeps
        });
        self.pending_names.clear();
        self.files.clone_from(&self.flushed_names);
    }

    fn flush_names(&mut self, mut flushes: impl FnMut(&NameChange) -> bool) {
        for change in std::mem::take(&mut self.pending_names) {
            if !flushes(&change) {
                self.pending_names.push(change);
                continue;
            }
            match change {
                NameChange::Made(path, contents) => {
                    self.flushed_names.insert(path, contents);
                }
                NameChange::Removed(path) => drop(self.flushed_names.remove(&path)),
                NameChange::Renamed { from, to } => {
                    if let Some(contents) = self.flushed_names.remove(&from) {
                        self.flushed_names.insert(to, contents);
                    }
                }
            }
        }
    }

    fn lose_writes(&mut self, style: CrashStyle) {
        let Self { files, rng, faults, .. } = self;
        for contents in files.values() {
            let Contents { now, flushed, pending } = &mut *contents.lock();
            if style == CrashStyle::Kept {
                flushed.clone_from(now);
                pending.clear();
                continue;
            }
            for change in pending.drain(..) {
                let fate = if style == CrashStyle::Torn { rng.below(3) } else { 0 };
                match (change, fate) {
                    (_, 0) => faults.writes_lost += 1,
                    (change, 1) => flushed.apply(&change),
                    (Change::Len(len), _) => flushed.set_len(len),
                    // Disks write sectors, but nothing here relies on their size.
                    (Change::Write(offset, bytes), _) => {
                        faults.writes_torn += 1;
                        flushed.write(offset, &bytes[..rng.below(bytes.len() + 1)]);
                    }
                }
            }
            now.clone_from(flushed);
        }
    }
}

impl NameChange {
    fn dir(&self) -> &Path {
        let (Self::Made(path, _) | Self::Removed(path) | Self::Renamed { to: path, .. }) = self;
        path.parent().unwrap_or(path)
    }
}

impl Image {
    fn write(&mut self, offset: usize, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let end = offset + bytes.len();
        if self.written.len() < end {
            self.written.resize(end, 0);
        }
        self.written[offset..end].copy_from_slice(bytes);
        self.len = self.len.max(end);
    }

    fn set_len(&mut self, len: usize) {
        self.written.truncate(len);
        self.len = len;
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::Write(offset, bytes) => self.write(*offset, bytes),
            Change::Len(len) => self.set_len(*len),
        }
    }

    fn read(&self, into: &mut [u8], offset: usize) -> io::Result<()> {
        if offset.checked_add(into.len()).is_none_or(|end| end > self.len) {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        let there = self.written.get(offset..).unwrap_or_default();
        let there = &there[..there.len().min(into.len())];
        into[..there.len()].copy_from_slice(there);
        into[there.len()..].fill(0);
        Ok(())
    }
}

impl Contents {
    fn change(&mut self, change: Change) {
        self.now.apply(&change);
        self.pending.push(change);
    }
}

fn missing(path: &Path) -> io::Error {
    io::Error::new(ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

fn dead() -> io::Error {
    io::Error::other("the machine has crashed since")
}

fn full() -> io::Error {
    io::Error::new(ErrorKind::StorageFull, "no space left on device")
}

fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, create: bool) -> io::Result<Box<dyn DiskFile>> {
        let mut state = self.live()?;
        let contents = match state.files.get(path) {
            Some(contents) => Arc::clone(contents),
            None if create => {
                let contents = Shared::default();
                state.files.insert(path.to_owned(), Arc::clone(&contents));
                let change = NameChange::Made(path.to_owned(), Arc::clone(&contents));
                state.pending_names.push(change);
                contents
            }
            None => return Err(missing(path)),
        };
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(FaultyFile { shared, life: state.life, contents }))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.live()?;
        let inside = state.files.keys().filter(|path| path.parent() == Some(dir));
        let name = |path: &PathBuf| path.file_name()?.to_str().map(str::to_owned);
        Ok(inside.filter_map(name).collect())
    }

    fn create_dir(&self, _dir: &Path) -> io::Result<()> {
        self.live().map(drop)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.live()?;
        state.files.remove(path).ok_or_else(|| missing(path))?;
        state.pending_names.push(NameChange::Removed(path.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.live()?;
        let contents = state.files.remove(from).ok_or_else(|| missing(from))?;
        state.files.insert(to.to_owned(), contents);
        let (from, to) = (from.to_owned(), to.to_owned());
        state.pending_names.push(NameChange::Renamed { from, to });
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.live()?.flush_names(|change| change.dir() == dir);
        Ok(())
    }

    fn lock(&self, path: &Path) -> Result<Box<dyn DiskLock>, LockError> {
        let mut state = self.live()?;
        if state.locks.contains_key(path) {
            return Err(LockError::Held { holder: None });
        }
        let number = state.next_lock;
        state.next_lock += 1;
        state.locks.insert(path.to_owned(), number);
        let shared = Arc::clone(&self.shared);
        Ok(Box::new(FaultyLock { shared, path: path.to_owned(), number }))
    }

    fn pace(&self) -> Pace {
        Pace::Sleeps(self.shared.lock().flush_takes)
    }
}

impl DiskLock for FaultyLock {}

impl Drop for FaultyLock {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        // After a crash the path may be locked by the next life.
        if state.locks.get(&self.path) == Some(&self.number) {
            state.locks.remove(&self.path);
        }
    }
}

impl FaultyFile {
    fn live(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.shared.lock();
        if state.life == self.life { Ok(state) } else { Err(dead()) }
    }
}

impl DiskFile for FaultyFile {
    fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let _state = self.live()?;
        self.contents.lock().now.read(into, place(offset)?)
    }

    fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.live()?;
        let offset = place(offset)?;
        let room = place(state.bytes_max.saturating_sub(state.bytes()))?;
        let mut contents = self.contents.lock();
        let held = contents.now.written.len();
        let mut fits = bytes.len().min((held + room.min(usize::MAX - held)).saturating_sub(offset));
        if state.fail_writes > 0 {
            state.fail_writes -= 1;
            fits = fits.min(bytes.len() / 2);
        }
        // A part of it is there all the same.
        contents.change(Change::Write(offset, bytes[..fits].to_vec()));
        if fits < bytes.len() {
            state.faults.writes_refused += 1;
            return Err(full());
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.live()?;
        let Contents { flushed, pending, .. } = &mut *self.contents.lock();
        if state.fail_syncs > 0 {
            state.fail_syncs -= 1;
            state.faults.flushes_failed += 1;
            // As Linux does: the pages count as clean from now on, and nobody writes them again.
            pending.clear();
            return Err(io::Error::other("input/output error"));
        }
        for change in pending.drain(..) {
            flushed.apply(&change);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let _state = self.live()?;
        self.contents.lock().change(Change::Len(place(len)?));
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        let _state = self.live()?;
        Ok(self.contents.lock().now.len as u64)
    }
}
