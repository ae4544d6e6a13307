//! The bounds and identity of the HTTP side of a node.

use std::{net::SocketAddr, num::NonZeroUsize, time::Duration};

use crate::access::Token;

/// How a node serves HTTP. Start from [`HttpConfig::new`] and change what differs.
///
/// Every bound has a stated behaviour: too many connections wait in the kernel's backlog, too many
/// streams get 503, too large a message gets 413, a head that takes too long is cut off.
#[derive(Debug, Clone)]
pub struct HttpConfig {
    /// Where to listen. Without [`HttpConfig::token`] only a loopback address is accepted.
    pub bind: SocketAddr,
    /// The secret for everything beyond loopback and for administrative acts anywhere.
    pub token: Option<Token>,
    /// Further hosts (`node1.example` or `node1.example:4900`) under which clients may address
    /// this node without a token from loopback: names it is known by in `/etc/hosts`, say.
    pub own_names: Vec<String>,
    /// The largest message, and the longest line of a streamed body. Less keeps clients from
    /// making this node hold as much as its peers may; more than the node's own message limit
    /// (the default) has no effect.
    pub message_bytes_max: Option<NonZeroUsize>,
    /// Open connections. Each costs ~10 KiB idle. Default 1024 (guess).
    pub connections_max: usize,
    /// Open event streams, which hold subscriptions. Default 256 (guess); below
    /// [`HttpConfig::connections_max`], so that watchers cannot shut out requests.
    pub streams_max: usize,
    /// How long a client may take to send a request head, idle time on a kept connection included.
    /// Default 60 s: longer keeps idle clients connected, shorter frees connections earlier.
    pub head_within: Duration,
    /// How long a client may take over a body that is not streamed line by line. Default 30 s.
    pub body_within: Duration,
    /// How long [`crate::Server::shutdown`] waits for open requests before it cuts them off.
    /// Default 10 s; keep it below the process supervisor's kill timeout.
    pub shutdown_within: Duration,
}

impl HttpConfig {
    /// The defaults for a node that listens on `bind` and has no token.
    #[must_use]
    pub fn new(bind: SocketAddr) -> Self {
        Self {
            bind,
            token: None,
            own_names: Vec::new(),
            message_bytes_max: None,
            connections_max: 1024,
            streams_max: 256,
            head_within: Duration::from_secs(60),
            body_within: Duration::from_secs(30),
            shutdown_within: Duration::from_secs(10),
        }
    }

    /// The same with a token.
    #[must_use]
    pub fn with_token(mut self, token: Token) -> Self {
        self.token = Some(token);
        self
    }
}
