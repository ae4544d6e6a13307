//! Seeds in a file that somebody else writes and rewrites.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::BoxFuture;
use purlin_core::{Clock, Instant, Rng};
use tokio::io::AsyncReadExt;

use super::{Discovery, DiscoveryError, SeedAddr, refresh::Schedule, static_seeds::Resolving};

/// The largest seed file that is read: some 40,000 addresses.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A watched file with one `host:port` per line.
///
/// `#` begins a comment, blank lines do not count. A change is noticed within
/// [`SeedFile::LOOK_EVERY`], however it is made: written in place, renamed over, or through a
/// switched symbolic link, as Kubernetes does. The content is compared, not the time stamp. A file
/// that is missing, unreadable or has a bad line leaves the last good list in force; a bad line
/// is named with its number.
#[derive(Debug)]
pub struct SeedFile {
    path: PathBuf,
    clock: Arc<dyn Clock>,
    look_at: Instant,
    seen: Option<Vec<u8>>,
    told: Option<DiscoveryError>,
    /// False until there was a good list.
    has_list: bool,
    resolving: Resolving,
}

impl SeedFile {
    /// How often the file is looked at. It is small, and reading it costs some 20 µs.
    pub const LOOK_EVERY: Duration = Duration::from_secs(1);

    /// Watches `path`, which need not exist yet. `schedule` is for host names in it.
    #[must_use]
    pub fn watch(path: PathBuf, schedule: Schedule, clock: Arc<dyn Clock>, rng: Rng) -> Self {
        let resolving = Resolving::new(Vec::new(), schedule, Arc::clone(&clock), rng);
        Self {
            path,
            clock,
            look_at: Instant::ZERO,
            seen: None,
            told: None,
            has_list: false,
            resolving,
        }
    }

    async fn next_list(&mut self) -> Result<BTreeSet<SocketAddr>, DiscoveryError> {
        loop {
            if self.look_at <= self.clock.now() {
                let content = read(&self.path).await;
                self.look_at = self.clock.now() + Self::LOOK_EVERY;
                self.on_content(content)?;
            }
            let wait = tokio::time::sleep(self.look_at.saturating_since(self.clock.now()));
            if !self.has_list {
                wait.await;
                continue;
            }
            tokio::select! {
                biased;
                news = self.resolving.next() => return news,
                () = wait => {}
            }
        }
    }

    /// Takes a content that differs from the last one; says each trouble once.
    fn on_content(&mut self, content: io::Result<Vec<u8>>) -> Result<(), DiscoveryError> {
        let trouble = match content {
            Ok(content) if self.seen.as_ref() == Some(&content) => return Ok(()),
            Ok(content) => {
                let parsed = parse(&self.path, &content);
                self.seen = Some(content);
                match parsed {
                    Ok(seeds) => {
                        self.resolving.replace(seeds);
                        (self.has_list, self.told) = (true, None);
                        return Ok(());
                    }
                    Err(trouble) => trouble,
                }
            }
            Err(error) => {
                // The same content is news again once the file is back.
                self.seen = None;
                DiscoveryError::File { path: self.path.clone(), reason: error.to_string() }
            }
        };
        if self.told.as_ref() == Some(&trouble) {
            return Ok(());
        }
        self.told = Some(trouble.clone());
        Err(trouble)
    }
}

impl Discovery for SeedFile {
    fn describe(&self) -> String {
        format!("seed file {}", self.path.display())
    }

    fn next(&mut self) -> BoxFuture<'_, Result<BTreeSet<SocketAddr>, DiscoveryError>> {
        Box::pin(self.next_list())
    }
}

async fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut file = tokio::fs::File::open(path).await?.take(FILE_BYTES_MAX + 1);
    file.read_to_end(&mut content).await?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it exceeds limit {FILE_BYTES_MAX} bytes")));
    }
    Ok(content)
}

/// All seeds of a file, or the first bad line.
fn parse(path: &Path, content: &[u8]) -> Result<Vec<SeedAddr>, DiscoveryError> {
    let mut seeds = Vec::new();
    for (at, line) in content.split(|byte| *byte == b'\n').enumerate() {
        let text = String::from_utf8_lossy(line);
        let seed = text.split('#').next().unwrap_or_default().trim();
        if seed.is_empty() {
            continue;
        }
        let bad = |reason| DiscoveryError::Line {
            path: path.to_owned(),
            line: at + 1,
            text: seed.to_owned(),
            reason,
        };
        seeds.push(SeedAddr::parse(seed).map_err(bad)?);
    }
    Ok(seeds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_blank_lines_do_not_count_and_bad_lines_are_named() {
        let path = Path::new("seeds");
        let seeds = parse(path, b"# ours\n\n10.0.0.1:1 # first\r\n  [fd00::1]:2\n").unwrap();
        assert_eq!(
            seeds.iter().map(SeedAddr::to_string).collect::<Vec<_>>(),
            ["10.0.0.1:1", "[fd00::1]:2"]
        );
        let error = parse(path, b"10.0.0.1:1\n\nn2:http\nn3\n").unwrap_err();
        assert_eq!(
            error.to_string(),
            "seed file seeds, line 3: \"n2:http\" is no `host:port`: the port is no number from 1 to 65535"
        );
        assert!(parse(path, b"\xff\xfe:1").is_err());
    }
}
