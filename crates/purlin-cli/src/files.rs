//! Writing small files whole, and secrets for their owner alone.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Who may read a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Its owner.
    Private,
    /// Everybody.
    Public,
}

/// Makes `path` and its parents, for the owner alone where they are new.
pub(crate) fn private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes `content` to `path`: the old or the new file is there, never half of one.
pub(crate) fn write(path: &Path, content: &[u8], access: Access) -> io::Result<()> {
    let mode = match access {
        Access::Private => 0o600,
        Access::Public => 0o644,
    };
    let aside = path.with_added_extension("new");
    // One left by a crash may have other rights.
    match fs::remove_file(&aside) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let mut file = OpenOptions::new().create_new(true).write(true).mode(mode).open(&aside)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&aside, path)
}

/// `N` random bytes of the operating system as hexadecimal digits.
pub(crate) fn random_hex<const N: usize>() -> String {
    let mut rng = purlin::core::Rng::from_os();
    let mut text = String::with_capacity(2 * N);
    for _ in 0..N.div_ceil(8) {
        text.push_str(&format!("{:016x}", rng.next_u64()));
    }
    text.truncate(2 * N);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_text_has_the_length_asked_for_and_differs() {
        let (one, other) = (random_hex::<32>(), random_hex::<32>());
        assert_eq!(one.len(), 64);
        assert_ne!(one, other);
        assert_eq!(random_hex::<3>().len(), 6);
    }

    #[test]
    fn writing_replaces_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.b");
        write(&path, b"one", Access::Public).unwrap();
        write(&path, b"two", Access::Private).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
