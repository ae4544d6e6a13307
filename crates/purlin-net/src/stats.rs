//! Counts: what went through, and everything that was refused.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{ChannelName, handshake::RefusalCode};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident => $metric:literal,)*) => {
        /// One number per kind of trouble, counted where it is found.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: Count,)*
            pub(crate) refused: [AtomicU64; 16],
        }

        /// Counts since the transport was bound. All of these are survivable: the node stays up.
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct TransportStats {
            $($(#[$doc])* pub $name: u64,)*
            /// Handshakes refused, by either side, per reason; reasons that never occurred are
            /// left out.
            pub handshakes_refused: Vec<(RefusalCode, u64)>,
            /// Traffic per channel, in the order of configuration.
            pub channels: Vec<ChannelStats>,
        }

        impl Counters {
            $(pub(crate) fn $name(&self, by: u64) {
                self.$name.0.fetch_add(by, Ordering::Relaxed);
                metrics::counter!($metric).increment(by);
            })*

            pub(crate) fn snapshot(&self) -> TransportStats {
                TransportStats {
                    $($name: self.$name.0.load(Ordering::Relaxed),)*
                    handshakes_refused: RefusalCode::ALL
                        .into_iter()
                        .map(|code| (code, self.refusals(code)))
                        .filter(|(_, count)| *count > 0)
                        .collect(),
                    channels: Vec::new(),
                }
            }
        }
    };
}

#[derive(Debug, Default)]
pub(crate) struct Count(AtomicU64);

counters! {
    /// Connections accepted, before any check.
    connections_accepted => "purlin_net_connections_accepted_total",
    /// Handshakes that TLS ended: another authority, no certificate, or no TLS at all.
    tls_failed => "purlin_net_tls_failed_total",
    /// Connections that were closed before their handshake was complete.
    handshakes_cut => "purlin_net_handshakes_cut_total",
    /// Handshakes that took too long.
    handshakes_slow => "purlin_net_handshakes_slow_total",
    /// Connections closed because of a malformed frame.
    frames_malformed => "purlin_net_frames_malformed_total",
    /// Connections closed because the peer exceeded its credit or broke fragmentation.
    violations => "purlin_net_violations_total",
    /// Frames for a service that nobody registered; the sender was told.
    unknown_service => "purlin_net_unknown_service_total",
    /// Error frames received: the peer could not use what we sent.
    errors_received => "purlin_net_errors_received_total",
    /// Services that panicked while handling a frame; the frame counts as consumed.
    service_panics => "purlin_net_service_panics_total",
    /// Bytes accepted for sending whose connection ended before they were written.
    bytes_lost => "purlin_net_bytes_lost_total",
    /// Connections that ended because the peer was silent.
    silent => "purlin_net_silent_total",
    /// Attempts to connect.
    dials => "purlin_net_dials_total",
    /// Attempts to connect that failed.
    dials_failed => "purlin_net_dials_failed_total",
    /// Datagrams sent.
    datagrams_sent => "purlin_net_datagrams_sent_total",
    /// Datagrams received and accepted.
    datagrams_received => "purlin_net_datagrams_received_total",
    /// Datagrams too short, too long or of an unknown version.
    datagrams_malformed => "purlin_net_datagrams_malformed_total",
    /// Datagrams under a key this node does not have.
    datagrams_unknown_key => "purlin_net_datagrams_unknown_key_total",
    /// Datagrams whose seal is broken: forged, damaged, or for another cluster or receiver.
    datagrams_forged => "purlin_net_datagrams_forged_total",
    /// Datagrams seen before, or too old to tell.
    datagrams_replayed => "purlin_net_datagrams_replayed_total",
    /// Datagrams of an incarnation that a later one replaced.
    datagrams_stale => "purlin_net_datagrams_stale_total",
    /// Datagrams the system would not send, its buffer being full or the address unreachable.
    datagrams_unsent => "purlin_net_datagrams_unsent_total",
    /// Messages, dials and datagrams lost by a fault rule.
    faults_lost => "purlin_net_faults_lost_total",
}

impl Counters {
    pub(crate) fn refused(&self, code: RefusalCode) {
        let slot = usize::from(code as u8).min(self.refused.len() - 1);
        self.refused[slot].fetch_add(1, Ordering::Relaxed);
        metrics::counter!("purlin_net_handshakes_refused_total", "reason" => code.as_str())
            .increment(1);
    }

    fn refusals(&self, code: RefusalCode) -> u64 {
        let slot = usize::from(code as u8).min(self.refused.len() - 1);
        self.refused[slot].load(Ordering::Relaxed)
    }
}

impl TransportStats {
    /// How many handshakes were refused for `code`.
    #[must_use]
    pub fn refused(&self, code: RefusalCode) -> u64 {
        self.handshakes_refused.iter().find(|(other, _)| *other == code).map_or(0, |(_, n)| *n)
    }
}

/// Traffic of one channel over all peers.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChannelStats {
    /// Which channel.
    pub name: ChannelName,
    /// Connections open now.
    pub connections: u64,
    /// Messages sent since start.
    pub frames_sent: u64,
    /// Payload bytes sent since start.
    pub bytes_sent: u64,
    /// Messages received since start.
    pub frames_received: u64,
    /// Payload bytes received since start.
    pub bytes_received: u64,
    /// Sends refused because a bound was full, since start.
    pub full: u64,
    /// Bytes waiting to be written now.
    pub backlog_bytes: u64,
    /// Bytes that may still be sent now before the receivers must consume, over all connections.
    pub credit_bytes: u64,
}

impl ChannelStats {
    pub(crate) fn new(name: ChannelName) -> Self {
        Self {
            name,
            connections: 0,
            frames_sent: 0,
            bytes_sent: 0,
            frames_received: 0,
            bytes_received: 0,
            full: 0,
            backlog_bytes: 0,
            credit_bytes: 0,
        }
    }

    pub(crate) fn publish(&self) {
        let name = || self.name.as_str().to_owned();
        metrics::gauge!("purlin_net_connections", "channel" => name()).set(lossy(self.connections));
        metrics::counter!("purlin_net_frames_sent_total", "channel" => name())
            .absolute(self.frames_sent);
        metrics::counter!("purlin_net_sent_bytes_total", "channel" => name())
            .absolute(self.bytes_sent);
        metrics::counter!("purlin_net_frames_received_total", "channel" => name())
            .absolute(self.frames_received);
        metrics::counter!("purlin_net_received_bytes_total", "channel" => name())
            .absolute(self.bytes_received);
        metrics::counter!("purlin_net_full_total", "channel" => name()).absolute(self.full);
        metrics::gauge!("purlin_net_backlog_bytes", "channel" => name())
            .set(lossy(self.backlog_bytes));
        metrics::gauge!("purlin_net_credit_bytes", "channel" => name())
            .set(lossy(self.credit_bytes));
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floats; 2^53 is enough for display")]
fn lossy(value: u64) -> f64 {
    value as f64
}
