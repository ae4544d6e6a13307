//! Channels: named lanes between two nodes, each with its own connections and bounds.
//!
//! On one shared link a large payload or a slow consumer holds up everything behind it, and the
//! first casualty is the message that would have told us so. Each channel therefore has its own
//! TCP connections, backlog and credit; what fills one leaves the others untouched.

use std::fmt;

/// A channel's name on the wire, equal on all nodes: 1 to 32 of `a-z`, `0-9` and `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelName(std::sync::Arc<str>);

/// The text is no channel name; choose another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("channel name {0:?} is not 1 to 32 characters of `a-z`, `0-9` and `-`")]
pub struct ChannelNameError(pub String);

impl ChannelName {
    /// Checks `text` and makes it a name.
    ///
    /// # Errors
    /// [`ChannelNameError`] when it is empty, too long or holds another character.
    pub fn parse(text: &str) -> Result<Self, ChannelNameError> {
        let known = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if text.is_empty() || text.len() > 32 || !text.bytes().all(known) {
            return Err(ChannelNameError(text.chars().take(64).collect()));
        }
        Ok(Self(text.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A channel of one [`Transport`](crate::Transport): the position of its [`ChannelSpec`] in the
/// configuration. The numbers are local; on the wire channels go by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u8);

impl ChannelId {
    /// `control`: membership, monitors, interest. Always kept up to every added peer.
    pub const CONTROL: Self = Self(0);
    /// `rpc`: calls, casts and replies.
    pub const RPC: Self = Self(1);
    /// `stream`: publish/subscribe.
    pub const STREAM: Self = Self(2);
    /// `bulk`: large payloads, which would hold up the others.
    pub const BULK: Self = Self(3);

    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Which of a channel's parallel connections a message takes: messages of one sender with equal
/// keys arrive in the order they were sent while the connection lasts.
///
/// Across a reconnect there is no order between what was lost and what follows, and nothing is
/// sent twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct PartitionKey(pub u64);

impl PartitionKey {
    /// For messages whose order only matters among themselves.
    pub const ZERO: Self = Self(0);
}

/// Who goes first when the machine or the network is busy.
///
/// Marks a channel's packets (`SO_PRIORITY` and the DSCP field) and decides how much its writer
/// sends before it gives way to other work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Gives way after 64 KiB.
    Low,
    /// Gives way after 512 KiB.
    Normal,
    /// Gives way after 4 MiB.
    High,
}

impl Priority {
    pub(crate) fn turn_bytes(self) -> usize {
        match self {
            Self::Low => 64 << 10,
            Self::Normal => 512 << 10,
            Self::High => 4 << 20,
        }
    }

    /// Linux packet priority and the class selector for the TOS byte (RFC 2474).
    pub(crate) fn marks(self) -> (u32, u32) {
        match self {
            Self::Low => (2, 0x20),
            Self::Normal => (0, 0x00),
            Self::High => (6, 0xc0),
        }
    }
}

/// How one channel behaves. Both sides of a link should be configured alike; the name must exist
/// on both, or the connection is refused with the reason.
#[derive(Debug, Clone)]
pub struct ChannelSpec {
    /// What it is called on all nodes.
    pub name: ChannelName,
    /// How many connections share its traffic, 1 to 16. More use more cores and file
    /// descriptors; order holds per [`PartitionKey`]. Default 1 (measured: one connection carries
    /// more than one core can produce).
    pub parallelism: u8,
    /// Who goes first when the machine is busy.
    pub priority: Priority,
    /// How many bytes may wait to be written per connection; above it senders get
    /// [`SendError::Full`](crate::SendError::Full). At least `payload_bytes_max` and its headers.
    pub backlog_bytes_max: usize,
    /// How many payload bytes a peer may send us, per connection, before our services have
    /// consumed them. A peer with unused credit may start one more message, so a receiver holds at
    /// most `credit_bytes` + `payload_bytes_max`.
    pub credit_bytes: u32,
    /// The largest message. Larger than a frame travels as fragments; larger than this is refused
    /// on both sides.
    pub payload_bytes_max: usize,
}

impl ChannelSpec {
    /// A channel with the bounds of `stream`.
    #[must_use]
    pub fn named(name: ChannelName) -> Self {
        Self {
            name,
            parallelism: 1,
            priority: Priority::Normal,
            backlog_bytes_max: 16 << 20,
            credit_bytes: 8 << 20,
            payload_bytes_max: 4 << 20,
        }
    }

    /// The four channels every node has, in the order of the [`ChannelId`] constants. Users append
    /// their own. Bounds are guesses that fit 64 peers into 2 GiB at worst.
    #[must_use]
    pub fn built_in() -> Vec<Self> {
        let named = |name| Self::named(ChannelName::parse(name).expect("a literal that fits"));
        vec![
            Self { priority: Priority::High, ..named("control") },
            named("rpc"),
            named("stream"),
            Self {
                priority: Priority::Low,
                backlog_bytes_max: 72 << 20,
                credit_bytes: 16 << 20,
                payload_bytes_max: 64 << 20,
                ..named("bulk")
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_short_and_lower_case() {
        assert_eq!(ChannelName::parse("my-lane-2").unwrap().as_str(), "my-lane-2");
        for bad in ["", "Upper", "under_score", &"x".repeat(33)] {
            assert!(ChannelName::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_constants_are_the_positions_of_the_built_in_channels() {
        let names: Vec<_> =
            ChannelSpec::built_in().iter().map(|spec| spec.name.to_string()).collect();
        assert_eq!(names[ChannelId::CONTROL.index()], "control");
        assert_eq!(names[ChannelId::RPC.index()], "rpc");
        assert_eq!(names[ChannelId::STREAM.index()], "stream");
        assert_eq!(names[ChannelId::BULK.index()], "bulk");
    }
}
