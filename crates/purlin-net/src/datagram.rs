//! Datagrams: small sealed messages that overtake everything, for failure detectors.
//!
//! A probe that queues behind a megabyte on a stream says nothing about its peer. These messages
//! go over UDP: at most once, unordered, bounded to one packet. Each is sealed under the cluster's
//! gossip key and bound to its sender, receiver and cluster ([`seal`]), and a copy is recognised
//! and dropped ([`replay`]). There is no task and no queue in between: `recv` reads the socket.

pub mod replay;
pub mod seal;

use std::{
    future::poll_fn,
    net::SocketAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::Mutex;
use purlin_core::{ClusterName, NodeId, Rng};

use crate::{
    certs::{self, CertError},
    connection::Surroundings,
    fault::{Direction, Lane},
    network::DatagramSocket,
};

use self::{
    replay::{ReplayGuard, Seen},
    seal::{GossipKey, Opener, Sealer, UnsealError},
};

/// The largest datagram on the wire: fits every path that carries IPv6 (1280) with room for
/// tunnels.
pub const DATAGRAM_BYTES_MAX: usize = 1200;

/// The most bytes of payload in one datagram, whatever the node's name.
pub const DATAGRAM_PAYLOAD_BYTES_MAX: usize = DATAGRAM_BYTES_MAX - seal::OVERHEAD_BYTES_MAX;

/// The cluster's gossip keys: the first seals, any opens. So a key is rotated by adding the new
/// one behind on all nodes, then moving it to the front, then removing the old one.
#[derive(Debug, Clone)]
pub struct GossipKeys(Vec<GossipKey>);

/// The text holds no usable gossip keys.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GossipKeysError {
    /// There is none.
    #[error("no gossip key; at least one line of 64 hex digits is needed")]
    Empty,
    /// A line is no key.
    #[error("line {line} of the gossip keys is not 64 hex digits")]
    Line {
        /// Counted from one.
        line: usize,
    },
    /// More than eight keys.
    #[error("{keys} gossip keys exceed limit 8")]
    TooMany {
        /// How many there are.
        keys: usize,
    },
}

impl GossipKeys {
    /// Reads one key of 64 hex digits per line; empty lines and lines that start with `#` are
    /// skipped.
    ///
    /// # Errors
    /// [`GossipKeysError`]; keys are never quoted.
    pub fn parse(text: &str) -> Result<Self, GossipKeysError> {
        let mut keys = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            keys.push(GossipKey::from_hex(text).ok_or(GossipKeysError::Line { line })?);
        }
        match keys.len() {
            0 => Err(GossipKeysError::Empty),
            1..=8 => Ok(Self(keys)),
            count => Err(GossipKeysError::TooMany { keys: count }),
        }
    }

    /// Reads a file of keys, which only its owner may be able to read.
    ///
    /// # Errors
    /// [`CertError`], naming the file.
    pub fn from_file(path: &Path) -> Result<Self, CertError> {
        let text = certs::read_key(path)?;
        Self::parse(&text)
            .map_err(|error| CertError::Malformed { path: path.to_owned(), why: error.to_string() })
    }

    /// A fresh key as the text of a key file; store it with [`certs::write_key`].
    ///
    /// # Panics
    /// When the operating system gives no randomness.
    #[must_use]
    pub fn generate() -> String {
        use ring::rand::SecureRandom as _;
        let mut key = [0; 32];
        ring::rand::SystemRandom::new()
            .fill(&mut key)
            .expect("the operating system gives randomness after boot");
        let mut text: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        text.push('\n');
        text
    }
}

/// Why a datagram was not sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DatagramError {
    /// It does not fit into one packet.
    #[error("datagram of {bytes} bytes exceeds limit {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// [`DATAGRAM_PAYLOAD_BYTES_MAX`].
        max: usize,
    },
    /// The system took it not: its buffer is full or there is no way. Counted; send again later.
    #[error("the system did not send it: {0}")]
    Unsent(String),
}

/// The datagram side of a transport. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Datagrams(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    socket: Box<dyn DatagramSocket>,
    around: Arc<Surroundings>,
    sealer: Sealer,
    counter: AtomicU64,
    opener: Mutex<(Opener, ReplayGuard)>,
}

impl Datagrams {
    pub(crate) fn new(
        cluster: &ClusterName,
        node: NodeId,
        keys: &GossipKeys,
        socket: Box<dyn DatagramSocket>,
        around: Arc<Surroundings>,
        rng: &mut Rng,
    ) -> Self {
        let salt = rng.next_u64().to_le_bytes();
        Self(Arc::new(Inner {
            sealer: Sealer::new(&keys.0[0], cluster, node.clone(), salt),
            opener: Mutex::new((
                Opener::new(keys.0.clone(), cluster.clone(), node),
                ReplayGuard::new(),
            )),
            counter: AtomicU64::new(0),
            socket,
            around,
        }))
    }

    /// Seals `payload` for `to` and sends it to `addr`. Does not wait: a full system buffer is an
    /// error.
    ///
    /// # Units and limits
    /// At most [`DATAGRAM_PAYLOAD_BYTES_MAX`] bytes.
    ///
    /// # Errors
    /// [`DatagramError`].
    ///
    /// # Guarantees
    /// At most once, unordered. Only this very incarnation of `to` can open it.
    pub fn send(&self, to: &NodeId, addr: SocketAddr, payload: &[u8]) -> Result<(), DatagramError> {
        if payload.len() > DATAGRAM_PAYLOAD_BYTES_MAX {
            let max = DATAGRAM_PAYLOAD_BYTES_MAX;
            return Err(DatagramError::TooLarge { bytes: payload.len(), max });
        }
        let inner = &self.0;
        let number = inner.counter.fetch_add(1, Ordering::Relaxed);
        let sealed = inner.sealer.seal(to, number, payload);
        if inner.around.faults.is_active() {
            let fate = inner.around.faults.fate(&to.name, Lane::Datagrams, Direction::Outgoing);
            if fate.lost {
                inner.around.counters.faults_lost(1);
                return Ok(());
            }
            if fate.doubled {
                self.put(&sealed, addr)?;
            }
            if !fate.delay.is_zero() {
                let later = self.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(fate.delay).await;
                    drop(later.put(&sealed, addr));
                });
                return Ok(());
            }
        }
        self.put(&sealed, addr)
    }

    fn put(&self, sealed: &[u8], addr: SocketAddr) -> Result<(), DatagramError> {
        match self.0.socket.try_send_to(sealed, addr) {
            Ok(()) => {
                self.0.around.counters.datagrams_sent(1);
                Ok(())
            }
            Err(error) => {
                self.0.around.counters.datagrams_unsent(1);
                Err(DatagramError::Unsent(error.to_string()))
            }
        }
    }

    /// The next datagram that is genuine, meant for this incarnation and new. Everything else is
    /// counted and dropped. The address is where it came from, which the sender can forge only
    /// with a key of the cluster. For one receiver at a time.
    ///
    /// # Cancel safety
    /// Dropping the future loses nothing.
    pub async fn recv(&self) -> (NodeId, SocketAddr, Bytes) {
        let mut buffer = [0; DATAGRAM_BYTES_MAX + 1];
        loop {
            let received = poll_fn(|cx| self.0.socket.poll_recv_from(cx, &mut buffer)).await;
            let (bytes, addr) = match received {
                Ok(received) => received,
                Err(error) => {
                    // An ICMP answer to an earlier send arrives here; it says nothing new.
                    tracing::trace!(%error, "datagram socket");
                    tokio::task::yield_now().await;
                    continue;
                }
            };
            let Some((from, payload)) = self.open(&mut buffer[..bytes]) else { continue };
            let faults = &self.0.around.faults;
            if faults.is_active()
                && faults.fate(&from.name, Lane::Datagrams, Direction::Incoming).lost
            {
                self.0.around.counters.faults_lost(1);
                continue;
            }
            return (from, addr, payload);
        }
    }

    fn open(&self, sealed: &mut [u8]) -> Option<(NodeId, Bytes)> {
        let counters = &self.0.around.counters;
        let (opener, guard) = &mut *self.0.opener.lock();
        let opened = match opener.open(sealed) {
            Ok(opened) => opened,
            Err(error) => {
                match error {
                    UnsealError::Malformed => counters.datagrams_malformed(1),
                    UnsealError::UnknownKey => counters.datagrams_unknown_key(1),
                    UnsealError::Forged => counters.datagrams_forged(1),
                }
                return None;
            }
        };
        match guard.check(&opened.sender, opened.salt, opened.number) {
            Seen::New => {
                counters.datagrams_received(1);
                Some((opened.sender, Bytes::copy_from_slice(opened.payload)))
            }
            Seen::Before => {
                counters.datagrams_replayed(1);
                None
            }
            Seen::Stale => {
                counters.datagrams_stale(1);
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_files_hold_a_key_per_line() {
        let text = format!("# rotated today\n{}\n{}", "ab".repeat(32), "CD".repeat(32));
        assert_eq!(GossipKeys::parse(&text).unwrap().0.len(), 2);
        assert_eq!(GossipKeys::parse("# none\n").unwrap_err(), GossipKeysError::Empty);
        let short = GossipKeys::parse("abc").unwrap_err();
        assert_eq!(short.to_string(), "line 1 of the gossip keys is not 64 hex digits");
        let many = format!("{}\n", "ab".repeat(32)).repeat(9);
        assert_eq!(GossipKeys::parse(&many).unwrap_err(), GossipKeysError::TooMany { keys: 9 });
    }

    #[test]
    fn generated_keys_parse_and_differ() {
        assert!(GossipKeys::parse(&GossipKeys::generate()).is_ok());
        assert_ne!(GossipKeys::generate(), GossipKeys::generate());
    }
}
