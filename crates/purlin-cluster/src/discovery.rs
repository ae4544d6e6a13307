//! Where the other nodes may be found: addresses worth contacting, from many kinds of source.
//!
//! A node that starts knows nobody. Reading a list once at start is the easy answer, and it fails
//! when the list is not there yet, when a name moves, or when all seeds were replaced while the
//! node was cut off. A [`Discovery`] therefore goes on for as long as the node runs: it reports
//! complete lists, as they change, and its troubles in between. Who is a *member* is not its
//! business; it only proposes whom to ask.
//!
//! In reading order: `seed` (one address as people write it), [`StaticSeeds`], [`SeedFile`],
//! [`DnsSeeds`] with `refresh` (when to look again and what to keep: pure), [`Combined`], and
//! [`conformance`], which checks an implementation of your own.

mod combined;
pub mod conformance;
mod dns;
mod refresh;
mod seed;
mod seed_file;
mod static_seeds;

use std::{collections::BTreeSet, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use futures_util::future::BoxFuture;

pub use combined::Combined;
pub use dns::{DnsConfig, DnsName, DnsRecord, DnsSeeds};
pub use refresh::Schedule;
pub use seed::SeedAddr;
pub use seed_file::SeedFile;
pub use static_seeds::StaticSeeds;

/// A source of addresses of nodes that may be contacted to join a cluster.
///
/// Implement it for a source Purlin does not know: a cloud's tags, a service catalogue. Run
/// [`conformance::check`] against it.
///
/// # What an implementation promises
/// - [`Discovery::next`] resolves with the first list as soon as it is known, and after that only
///   when the list has changed or something went wrong; otherwise it waits.
/// - A list is complete: it replaces the one before. It may be empty.
/// - After an error the last list stays in force, and the source tries again by itself, backing off.
/// - `next` is cancel safe: a dropped future loses nothing that was not yet returned.
/// - It never ends; a source that can never change waits for ever.
pub trait Discovery: Send + fmt::Debug {
    /// What this source is, for logs and listings, such as `dns SRV _purlin._tcp.example.org`.
    fn describe(&self) -> String;

    /// Waits for the next complete list, or the next trouble.
    ///
    /// # Errors
    /// [`DiscoveryError`]; the last list stays in force and the next call goes on.
    fn next(&mut self) -> BoxFuture<'_, Result<BTreeSet<SocketAddr>, DiscoveryError>>;
}

/// Why a source could not say where nodes are. The last list stays in force; the source tries
/// again by itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DiscoveryError {
    /// A text is no `host:port`. Correct the configuration.
    #[error("seed {text:?} is no `host:port`: {reason}")]
    Seed {
        /// What was written.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A text is no `host:port` and no `srv:name`. Correct the configuration.
    #[error("DNS seed {text:?} is neither `host:port` nor `srv:name`: {reason}")]
    DnsName {
        /// What was written.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The operating system could not resolve the host of a seed.
    #[error("cannot resolve seed {seed}: {reason}; next attempt in {retry_in:?}")]
    Resolve {
        /// The seed, as configured.
        seed: String,
        /// What the system says.
        reason: String,
        /// When it is tried again.
        retry_in: Duration,
    },
    /// A DNS lookup failed: no server answered, or it could not. The last list stays in force for
    /// as long as this lasts.
    #[error("DNS lookup of {record} {host} failed: {reason}; next attempt in {retry_in:?}")]
    Dns {
        /// The name that was looked up.
        host: String,
        /// The record type.
        record: DnsRecord,
        /// What the resolver says.
        reason: String,
        /// When it is tried again.
        retry_in: Duration,
    },
    /// DNS says that the name does not exist or has no such record.
    #[error(
        "DNS has no {record} record for {host}; the last known addresses are kept for {kept_for:?}"
    )]
    Absent {
        /// The name that was looked up.
        host: String,
        /// The record type.
        record: DnsRecord,
        /// How long the last list stays in force; zero when there is none.
        kept_for: Duration,
    },
    /// The seed file cannot be read. The last list stays in force.
    #[error("cannot read seed file {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// A line of the seed file is wrong. The whole new content is refused and the last good list
    /// stays in force: half a list may be a file that is still being written.
    #[error("seed file {}, line {line}: {text:?} is no `host:port`: {reason}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Which line, counted from 1.
        line: usize,
        /// What is written there.
        text: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A source of another kind failed.
    #[error("{discovery}: {reason}")]
    Other {
        /// Which source, as [`Discovery::describe`] says.
        discovery: String,
        /// What went wrong.
        reason: String,
    },
}

#[cfg(test)]
mod tests;
