//! The transport of a Purlin node: channels between nodes, remote calls, sealed datagrams.
//!
//! Everything above talks to other nodes through this crate and nothing below knows there are
//! any. Connections use mutual TLS 1.3; a peer is authenticated by its certificate before a byte
//! of it is believed. Every queue has a byte bound and says [`SendError::Full`] there; slowness
//! never closes a connection, silence does.
//!
//! # How to use it
//! ```no_run
//! # use std::sync::Arc;
//! # use purlin_core::*;
//! # use purlin_net::*;
//! # async fn example(cluster: ClusterName, node: NodeId, tls: TlsIdentity, keys: GossipKeys,
//! #     other: NodeId, addr: std::net::SocketAddr) -> Result<(), Box<dyn std::error::Error>> {
//! let config = TransportConfig::new(cluster, node, "127.0.0.1:7400".parse()?, tls, keys);
//! let transport = Transport::bind(config, Arc::new(SystemClock::new()), Rng::from_os()).await?;
//!
//! // Who listens at a seed address? Then make it a peer: `control` is kept up from now on.
//! let deadline = Deadline::after(transport.clock().now(), std::time::Duration::from_secs(1));
//! let seed = transport.contact(addr, deadline).await?;
//! let peer = transport.add_peer(seed.node, seed.advertise)?;
//!
//! // One message on a channel; its connection opens at the first message.
//! const GREETER: ServiceId = ServiceId(16);
//! peer.send(ChannelId::STREAM, GREETER, PartitionKey::ZERO, Urgency::Batch, |payload| {
//!     payload.put(b"hello"); // or payload.encode(&value)
//! })?;
//!
//! // Receiving: called inline by the reader, in order.
//! struct Greeter;
//! impl Service for Greeter {
//!     fn on_frame(&self, frame: Incoming<'_>) {
//!         println!("{} says {:?}", frame.peer().node(), frame.payload());
//!     }
//! }
//! transport.register(GREETER, Arc::new(Greeter));
//!
//! // Remote calls: see the `rpc` module.
//! # Ok(()) }
//! ```
//!
//! # In reading order
//! - [`transport`]: [`Transport`], its configuration, its listener
//! - [`channel`], [`peer`], [`service`]: sending and receiving
//! - [`rpc`]: named, typed calls with deadlines
//! - [`network`]: where sockets come from
//! - [`datagram`]: small sealed messages that overtake everything
//! - [`handshake`], `link`, `dial`: how two nodes get one connection out of two dials
//! - [`frame`], `outbox`, `connection`, `reader`, [`reassembly`]: how a message travels
//! - [`tls`], [`certs`]: who may talk
//! - [`fault`]: bad networks on purpose

mod backoff;
pub mod certs;
pub mod channel;
mod connection;
pub mod datagram;
mod dial;
pub mod error;
pub mod event;
pub mod fault;
pub mod frame;
pub mod handshake;
mod link;
pub mod network;
mod outbox;
mod payload;
pub mod peer;
mod reader;
pub mod reassembly;
pub mod rpc;
pub mod service;
mod shaking;
pub mod stats;
pub mod tls;
pub mod transport;

pub use backoff::Reconnect;
pub use certs::{Authority, CertError, CertificateSummary, IssuedCertificate};
pub use channel::{ChannelId, ChannelName, ChannelSpec, PartitionKey, Priority};
pub use datagram::{DATAGRAM_PAYLOAD_BYTES_MAX, DatagramError, Datagrams, GossipKeys};
pub use dial::Contact;
pub use error::{Bound, Cause, SendError};
pub use event::PeerEvent;
pub use fault::{Direction, Effect, FaultId, FaultRule, Faults, Lane};
pub use frame::ServiceId;
pub use handshake::{Capabilities, Refusal, RefusalCode};
pub use network::{Accept, DatagramSocket, Kernel, Listening, Network, Stream, StreamSocket};
pub use outbox::Urgency;
pub use payload::{PayloadBuf, encode_to_vec};
pub use peer::{ConnectionStats, Peer};
pub use rpc::{CallError, CallOptions, Method, Rejection, Rpc, RpcContext};
pub use service::{Credit, Incoming, ReturnPath, Service};
pub use stats::{ChannelStats, TransportStats};
pub use tls::TlsIdentity;
pub use transport::{
    AddPeerError, Admission, BindError, ContactError, KeepAlive, Limits, Transport,
    TransportConfig, WeakTransport,
};
