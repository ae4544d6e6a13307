//! What the transport tells about its peers.

use std::net::SocketAddr;

use purlin_core::NodeId;

use crate::{ChannelId, error::Cause, handshake::Refusal, peer::Peer};

/// Something happened to a peer or a connection; see
/// [`Transport::events`](crate::Transport::events).
///
/// Reachability only: whether a node is a member, suspected or gone is for the membership to say.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum PeerEvent {
    /// The control channel to a peer is up, for the first time or again. A peer that dialled us
    /// was not necessarily added by us.
    Up {
        /// Who.
        peer: Peer,
    },
    /// The peer cannot be reached. Told once until it is up again; the transport keeps trying
    /// while the peer is added.
    Down {
        /// Who.
        peer: NodeId,
        /// [`Cause::Refused`]: its process is gone, known within milliseconds.
        /// [`Cause::Silent`], [`Cause::Unreachable`]: nothing is known but that.
        /// [`Cause::Closed`]: it said goodbye. [`Cause::Superseded`]: a later life was seen.
        cause: Cause,
    },
    /// One of a channel's connections is up.
    ChannelUp {
        /// Who.
        peer: NodeId,
        /// Which channel.
        channel: ChannelId,
    },
    /// One of a channel's connections ended or could not be made.
    ChannelDown {
        /// Who.
        peer: NodeId,
        /// Which channel.
        channel: ChannelId,
        /// Why.
        cause: Cause,
    },
    /// A handshake failed, whoever refused.
    HandshakeRefused {
        /// The other side's address.
        addr: SocketAddr,
        /// Who it claimed to be, if it came that far.
        peer: Option<NodeId>,
        /// Whether this side refused.
        by_us: bool,
        /// Why.
        reason: Refusal,
    },
}
