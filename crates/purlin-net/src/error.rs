//! Why a message was not sent, and why connections end.

use std::fmt;

use purlin_core::{Advice, NodeId, Outcome};

use crate::{ChannelId, handshake::Refusal};

/// Which bound a sender ran into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bound {
    /// Bytes waiting to be written, [`crate::ChannelSpec::backlog_bytes_max`]: the network is
    /// slower than the sender.
    Backlog,
    /// Bytes the peer has not consumed yet, [`crate::ChannelSpec::credit_bytes`]: the receiving
    /// service is slower than the sender.
    Credit,
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Backlog => "backlog",
            Self::Credit => "credit",
        })
    }
}

/// Why a message was not sent. In every case nothing of it left this node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// A bound is reached. Slow down, use another channel, or wait with
    /// [`Peer::send_wait`](crate::Peer::send_wait).
    #[error("{bound} of {bytes} bytes is full, limit {max}")]
    Full {
        /// Which bound.
        bound: Bound,
        /// How many bytes it holds.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The message exceeds the channel's [`crate::ChannelSpec::payload_bytes_max`] here or there.
    #[error("payload of {bytes} bytes exceeds limit {max}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// There is no connection, and the last attempt to make one failed just now.
    #[error("no connection to {peer}: {cause}")]
    NotConnected {
        /// Whom it was for.
        peer: NodeId,
        /// Why the last connection ended or was not made.
        cause: Cause,
    },
    /// The peer was removed, or is another incarnation than the one known.
    #[error("{0} is not a peer")]
    NotAPeer(NodeId),
    /// No channel has this number.
    #[error("channel {0:?} is not configured")]
    UnknownChannel(ChannelId),
    /// The value cannot be encoded.
    #[error("cannot encode: {0}")]
    Encode(String),
    /// [`Peer::send_wait`](crate::Peer::send_wait) waited in vain for room.
    #[error("no room in the {bound} by the deadline")]
    Deadline {
        /// Which bound stayed full.
        bound: Bound,
    },
}

impl SendError {
    /// Always [`Outcome::NotDone`]: the message never left this node.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        Outcome::NotDone
    }

    /// What to do now.
    #[must_use]
    pub fn advice(&self) -> Advice {
        match self {
            Self::Full { .. } | Self::Deadline { .. } => Advice::Retry,
            Self::NotConnected { .. } | Self::NotAPeer(_) => Advice::RetryElsewhere(None),
            Self::TooLarge { .. } | Self::UnknownChannel(_) | Self::Encode(_) => Advice::GiveUp,
        }
    }
}

/// Why a connection ended, was not made, or a peer is down.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// The peer's operating system reset or closed the connection without a goodbye: the process
    /// died or the path changed.
    Reset,
    /// The peer's machine answers and says nobody listens: the process is gone.
    Refused,
    /// Nothing was heard for [`crate::KeepAlive::silent_after`].
    Silent,
    /// The peer could not be reached in time, or the network says there is no way.
    Unreachable,
    /// One side closed on purpose.
    Closed,
    /// A newer connection for the same channel took over.
    Replaced,
    /// A later incarnation of the same node was seen; this one never comes back.
    Superseded,
    /// The handshake was refused, by us or by them.
    Handshake(Refusal),
    /// TLS failed: certificate, key or a broken record.
    Tls(String),
    /// The peer sent what no peer of this version sends.
    Malformed(String),
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reset => f.write_str("connection reset"),
            Self::Refused => f.write_str("connection refused"),
            Self::Silent => f.write_str("peer silent"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Closed => f.write_str("closed"),
            Self::Replaced => f.write_str("replaced by a newer connection"),
            Self::Superseded => f.write_str("superseded by a later incarnation"),
            Self::Handshake(refusal) => write!(f, "handshake refused: {refusal}"),
            Self::Tls(text) => write!(f, "tls: {text}"),
            Self::Malformed(text) => write!(f, "malformed: {text}"),
        }
    }
}

impl Cause {
    /// A short word for metrics and logs.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Reset => "reset",
            Self::Refused => "refused",
            Self::Silent => "silent",
            Self::Unreachable => "unreachable",
            Self::Closed => "closed",
            Self::Replaced => "replaced",
            Self::Superseded => "superseded",
            Self::Handshake(_) => "handshake",
            Self::Tls(_) => "tls",
            Self::Malformed(_) => "malformed",
        }
    }

    pub(crate) fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Kind;
        match error.kind() {
            Kind::ConnectionRefused => Self::Refused,
            Kind::TimedOut
            | Kind::HostUnreachable
            | Kind::NetworkUnreachable
            | Kind::AddrNotAvailable
            | Kind::NetworkDown
            | Kind::PermissionDenied => Self::Unreachable,
            _ => Self::Reset,
        }
    }
}
