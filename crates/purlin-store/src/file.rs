//! Small files replaced whole: the old one or the new one, never a mixture.
//!
//! # Source
//! Pillai et al. 2014: write beside, flush, rename, flush the directory.

use std::{
    io::{self, ErrorKind},
    path::Path,
};

use crate::{
    disk::{self, Disk},
    record::{self, Found, Lsn},
};

/// Replaces what `path` holds by `contents`, durably.
///
/// # Errors
/// As the disk says; `path` then holds what it held before, or `contents`.
pub fn replace(disk: &dyn Disk, path: &Path, contents: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut bytes = Vec::with_capacity(record::size_of(contents.len()));
    record::append(&mut bytes, Lsn(0), contents);
    let file = disk.open(&beside, true)?;
    file.set_len(bytes.len() as u64)?;
    file.write_all_at(&bytes, 0)?;
    file.sync_data()?;
    disk.rename(&beside, path)?;
    disk.sync_dir(&disk::parent(path)?)
}

/// What `path` holds; `None` when there is no such file.
///
/// # Errors
/// `InvalidData` when the contents do not check, with a sentence that says which file; otherwise
/// as the disk says.
pub fn read(disk: &dyn Disk, path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match disk.open(path, false) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = usize::try_from(file.len()?).unwrap_or(usize::MAX);
    let damaged = || {
        let text = format!("{} is damaged: its checksum does not hold", path.display());
        io::Error::new(ErrorKind::InvalidData, text)
    };
    if len > record::size_of(record::RECORD_BYTES_MAX) {
        return Err(damaged());
    }
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0)?;
    match record::read(&bytes) {
        Found::Record { payload, .. } => Ok(Some(payload.to_vec())),
        Found::End | Found::Broken => Err(damaged()),
    }
}
