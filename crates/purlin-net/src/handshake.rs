//! The handshake: who are you, may we talk, and in which version. Pure: bytes and facts in,
//! decisions out.
//!
//! TLS has proved that the other side holds a certificate of our authority. That does not tell
//! which cluster, life or channel it means, and a node that connects to the wrong place must learn
//! why, or an operator searches for hours. So the dialler says [`Hello`], the acceptor answers
//! [`Answer::Welcome`] or a [`Refusal`] with the reason, and the dialler's [`Confirm`] decides
//! between simultaneous dials (the rule is in `link.rs`). Both sides report a refusal.
//!
//! ```text
//! | "PRLN" | version min (u16) | version max (u16) | length (u32) | body ...
//! ```
//!
//! The first twelve bytes have the same meaning in every version. Fields appended to a body by a
//! later version are ignored by an earlier one.

use std::{fmt, net::SocketAddr};

use purlin_core::{ClusterName, Incarnation, NodeId, NodeName};

use crate::channel::ChannelName;

/// The newest protocol version this build speaks.
pub const VERSION: u16 = 1;
/// The oldest it still speaks: one release back, once there is one.
pub const VERSION_MIN: u16 = 1;
/// Bytes in front of a body.
pub const PROLOGUE_BYTES: usize = 12;
/// The longest body accepted.
pub const BODY_BYTES_MAX: u32 = 4096;

/// What every node accepts as a frame's payload; a window below it is refused.
pub const FRAME_BYTES_LEAST: u32 = 16 << 10;

const MAGIC: [u8; 4] = *b"PRLN";

/// Why two nodes do not talk. The refusing side sends it, and both count and report it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Refusal {
    /// Which rule.
    pub code: RefusalCode,
    /// The field, the value found and the value expected, for people.
    pub detail: String,
}

impl Refusal {
    pub(crate) fn new(code: RefusalCode, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code.as_str(), self.detail)
    }
}

/// Which rule a handshake broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[non_exhaustive]
pub enum RefusalCode {
    /// The bytes are no handshake at all.
    Malformed = 1,
    /// No protocol version in common.
    Version = 2,
    /// The other side belongs to another cluster.
    Cluster = 3,
    /// The certificate is not for the node it claims to be.
    Certificate = 4,
    /// A later incarnation of that node is known, or this one was declared gone for good.
    Superseded = 5,
    /// The channel does not exist there.
    Channel = 6,
    /// Somebody else listens at that address.
    WrongNode = 7,
    /// The two sides dialled each other at once and the other connection is kept. Not a fault.
    Duplicate = 8,
    /// Too many handshakes or peers at once; try again later.
    Busy = 9,
    /// The membership does not admit this node.
    NotAdmitted = 10,
    /// The node is closing.
    Closing = 11,
    /// A code of a newer version.
    Other = 255,
}

impl RefusalCode {
    /// Every code a node of this version can send.
    pub const ALL: [Self; 11] = [
        Self::Malformed,
        Self::Version,
        Self::Cluster,
        Self::Certificate,
        Self::Superseded,
        Self::Channel,
        Self::WrongNode,
        Self::Duplicate,
        Self::Busy,
        Self::NotAdmitted,
        Self::Closing,
    ];

    fn from_wire(byte: u8) -> Self {
        Self::ALL.into_iter().find(|code| *code as u8 == byte).unwrap_or(Self::Other)
    }

    /// A short word for metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Version => "version",
            Self::Cluster => "cluster",
            Self::Certificate => "certificate",
            Self::Superseded => "superseded",
            Self::Channel => "channel",
            Self::WrongNode => "wrong_node",
            Self::Duplicate => "duplicate",
            Self::Busy => "busy",
            Self::NotAdmitted => "not_admitted",
            Self::Closing => "closing",
            Self::Other => "other",
        }
    }
}

/// What a side can do beyond the version's minimum, as bits. Unknown bits are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// What this build offers.
    pub const OURS: Self = Self(Self::FRAGMENTS);
    /// Messages larger than a frame.
    pub const FRAGMENTS: u64 = 1;

    /// What both sides can do.
    #[must_use]
    pub fn shared_with(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

/// What a side accepts on this connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The longest frame payload.
    pub frame_bytes_max: u32,
    /// The longest message.
    pub payload_bytes_max: u32,
    /// Bytes that may be sent before they are consumed.
    pub credit_bytes: u32,
}

/// What a connection is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// Only to learn who listens at an address.
    Contact,
    /// A channel between two peers.
    Channel {
        /// Which channel.
        name: ChannelName,
        /// Which of its parallel connections.
        index: u8,
        /// The connection's number, drawn by the dialler.
        connection: u64,
        /// The number of the last connection the dialler had here; zero for none.
        last: u64,
        /// What the dialler accepts.
        window: Window,
    },
}

/// The dialler's first message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// The oldest and newest version the dialler speaks.
    pub versions: (u16, u16),
    /// Its cluster.
    pub cluster: ClusterName,
    /// Who it is.
    pub node: NodeId,
    /// Whom it expects; `None` when it only knows an address.
    pub expects: Option<NodeId>,
    /// Where it can be reached.
    pub advertise: SocketAddr,
    /// What it can do.
    pub capabilities: Capabilities,
    /// What it wants.
    pub purpose: Purpose,
}

/// The acceptor's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Come in.
    Welcome(Welcome),
    /// No, because.
    Refused(Refusal),
}

/// The acceptor's consent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Welcome {
    /// The version that will be spoken: the newest both know.
    pub version: u16,
    /// Who the acceptor is.
    pub node: NodeId,
    /// Where it can be reached.
    pub advertise: SocketAddr,
    /// What it can do.
    pub capabilities: Capabilities,
    /// What it accepts.
    pub window: Window,
}

/// The dialler's last word on a welcome.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Confirm {
    /// This connection is the one.
    Go,
    /// It is not.
    Refused(Refusal),
}

/// Bytes that are no handshake message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The first bytes are not Purlin's.
    #[error("starts with {0:02x?}; a handshake starts with \"PRLN\"")]
    Magic([u8; 4]),
    /// The body is longer than any handshake.
    #[error("handshake of {bytes} bytes exceeds limit {max}")]
    TooLong {
        /// What the prologue claims.
        bytes: u32,
        /// [`BODY_BYTES_MAX`].
        max: u32,
    },
    /// No version in common.
    #[error("protocol versions {} to {}; this node speaks {} to {}", theirs.0, theirs.1, ours.0, ours.1)]
    Version {
        /// The other side's oldest and newest.
        theirs: (u16, u16),
        /// This side's oldest and newest.
        ours: (u16, u16),
    },
    /// A field is missing or makes no sense.
    #[error("field `{field}`: {why}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
}

impl HandshakeError {
    /// The refusal to send for it.
    #[must_use]
    pub fn refusal(&self) -> Refusal {
        let code = match self {
            Self::Version { .. } => RefusalCode::Version,
            Self::Magic(_) | Self::TooLong { .. } | Self::Field { .. } => RefusalCode::Malformed,
        };
        Refusal::new(code, self.to_string())
    }
}

/// The fixed part in front of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prologue {
    /// The versions the sender speaks.
    pub versions: (u16, u16),
    /// How long its body is.
    pub body_bytes: u32,
}

impl Prologue {
    /// Reads the first [`PROLOGUE_BYTES`] of `buffer`; `None` when there are fewer.
    ///
    /// # Errors
    /// [`HandshakeError::Magic`] as soon as one byte differs, [`HandshakeError::TooLong`] before
    /// anything is allocated.
    pub fn decode(buffer: &[u8]) -> Result<Option<Self>, HandshakeError> {
        let seen = buffer.len().min(4);
        if buffer[..seen] != MAGIC[..seen] {
            let mut found = [0; 4];
            found[..seen].copy_from_slice(&buffer[..seen]);
            return Err(HandshakeError::Magic(found));
        }
        let Some(head) = buffer.first_chunk::<PROLOGUE_BYTES>() else {
            return Ok(None);
        };
        let [_, _, _, _, a, b, c, d, e, f, g, h] = *head;
        let body_bytes = u32::from_le_bytes([e, f, g, h]);
        if body_bytes > BODY_BYTES_MAX {
            return Err(HandshakeError::TooLong { bytes: body_bytes, max: BODY_BYTES_MAX });
        }
        let versions = (u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d]));
        Ok(Some(Self { versions, body_bytes }))
    }

    /// The newest version that both sides speak.
    ///
    /// # Errors
    /// [`HandshakeError::Version`] when there is none.
    pub fn agree(&self, ours: (u16, u16)) -> Result<u16, HandshakeError> {
        let (min, max) = self.versions;
        let common = max.min(ours.1);
        if min > max || common < min || common < ours.0 {
            return Err(HandshakeError::Version { theirs: self.versions, ours });
        }
        Ok(common)
    }
}

fn message(versions: (u16, u16), body: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut writer = Writer(vec![0; PROLOGUE_BYTES]);
    body(&mut writer);
    let mut bytes = writer.0;
    let body_bytes = u32::try_from(bytes.len() - PROLOGUE_BYTES).expect("bodies are small");
    assert!(body_bytes <= BODY_BYTES_MAX, "a body of {body_bytes} bytes exceeds our own limit");
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&versions.0.to_le_bytes());
    bytes[6..8].copy_from_slice(&versions.1.to_le_bytes());
    bytes[8..12].copy_from_slice(&body_bytes.to_le_bytes());
    bytes
}

impl Hello {
    /// The message as it travels.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        message(self.versions, |w| {
            w.text(self.cluster.as_str());
            w.node(&self.node);
            match &self.expects {
                None => w.u8(0),
                Some(node) => {
                    w.u8(1);
                    w.node(node);
                }
            }
            w.text(&self.advertise.to_string());
            w.u64(self.capabilities.0);
            match &self.purpose {
                Purpose::Contact => w.u8(0),
                Purpose::Channel { name, index, connection, last, window } => {
                    w.u8(1);
                    w.text(name.as_str());
                    w.u8(*index);
                    w.u64(*connection);
                    w.u64(*last);
                    w.window(*window);
                }
            }
        })
    }

    /// Reads a body that followed `prologue`.
    ///
    /// # Errors
    /// [`HandshakeError::Field`] naming the field.
    pub fn decode(prologue: Prologue, body: &[u8]) -> Result<Self, HandshakeError> {
        let mut r = Reader(body);
        Ok(Self {
            versions: prologue.versions,
            cluster: r.parse("cluster")?,
            node: r.node("node")?,
            expects: match r.u8("expects")? {
                0 => None,
                _ => Some(r.node("expects")?),
            },
            advertise: r.parse("advertise")?,
            capabilities: Capabilities(r.u64("capabilities")?),
            purpose: match r.u8("purpose")? {
                0 => Purpose::Contact,
                1 => Purpose::Channel {
                    name: {
                        let text = r.text("channel")?;
                        ChannelName::parse(text).map_err(|error| field("channel", &error))?
                    },
                    index: r.u8("index")?,
                    connection: r.u64("connection")?,
                    last: r.u64("last")?,
                    window: r.window()?,
                },
                other => return Err(field("purpose", &format!("{other} is neither 0 nor 1"))),
            },
        })
    }
}

impl Answer {
    /// The message as it travels. `versions` are those of the sender.
    #[must_use]
    pub fn encode(&self, versions: (u16, u16)) -> Vec<u8> {
        message(versions, |w| match self {
            Self::Welcome(welcome) => {
                w.u8(0);
                w.u16(welcome.version);
                w.node(&welcome.node);
                w.text(&welcome.advertise.to_string());
                w.u64(welcome.capabilities.0);
                w.window(welcome.window);
            }
            Self::Refused(refusal) => w.refusal(refusal),
        })
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`HandshakeError::Field`] naming the field.
    pub fn decode(body: &[u8]) -> Result<Self, HandshakeError> {
        let mut r = Reader(body);
        Ok(match r.u8("answer")? {
            0 => Self::Welcome(Welcome {
                version: r.u16("version")?,
                node: r.node("node")?,
                advertise: r.parse("advertise")?,
                capabilities: Capabilities(r.u64("capabilities")?),
                window: r.window()?,
            }),
            code => Self::Refused(r.refusal(code)?),
        })
    }
}

impl Confirm {
    /// The message as it travels. `versions` are those of the sender.
    #[must_use]
    pub fn encode(&self, versions: (u16, u16)) -> Vec<u8> {
        message(versions, |w| match self {
            Self::Go => w.u8(0),
            Self::Refused(refusal) => w.refusal(refusal),
        })
    }

    /// Reads a body.
    ///
    /// # Errors
    /// [`HandshakeError::Field`] naming the field.
    pub fn decode(body: &[u8]) -> Result<Self, HandshakeError> {
        let mut r = Reader(body);
        Ok(match r.u8("confirm")? {
            0 => Self::Go,
            code => Self::Refused(r.refusal(code)?),
        })
    }
}

/// What a node knows about itself when somebody says hello.
#[derive(Debug, Clone)]
pub struct Acceptor<'a> {
    /// The versions it speaks.
    pub versions: (u16, u16),
    /// Its cluster.
    pub cluster: &'a ClusterName,
    /// Who it is.
    pub node: &'a NodeId,
    /// The latest incarnation it knows of the dialler's name.
    pub latest: Option<Incarnation>,
    /// Whether the dialler's certificate is for the name it claims.
    pub certificate_fits: bool,
}

impl Acceptor<'_> {
    /// Checks a hello; returns the version to speak.
    ///
    /// # Errors
    /// The refusal to send back.
    pub fn check(&self, hello: &Hello) -> Result<u16, Refusal> {
        let prologue = Prologue { versions: hello.versions, body_bytes: 0 };
        let version = prologue.agree(self.versions).map_err(|error| error.refusal())?;
        let refuse = |code, detail| Err(Refusal::new(code, detail));
        if hello.cluster != *self.cluster {
            let detail = format!(
                "cluster is `{}` there and `{}` here",
                hello.cluster.as_str(),
                self.cluster.as_str()
            );
            return refuse(RefusalCode::Cluster, detail);
        }
        if !self.certificate_fits {
            let detail = format!("certificate is not for node `{}`", hello.node.name);
            return refuse(RefusalCode::Certificate, detail);
        }
        if hello.node.name == self.node.name {
            let detail = format!("node name `{}` is taken by {}", hello.node.name, self.node);
            return refuse(RefusalCode::WrongNode, detail);
        }
        if let Some(latest) = self.latest
            && hello.node.incarnation < latest
        {
            let detail = format!("{} is superseded by incarnation {latest}", hello.node);
            return refuse(RefusalCode::Superseded, detail);
        }
        match &hello.expects {
            Some(expected) if expected != self.node => {
                let detail = format!("expected {expected}, this is {}", self.node);
                refuse(RefusalCode::WrongNode, detail)
            }
            Some(_) | None => Ok(version),
        }
    }
}

fn field(field: &'static str, why: &dyn fmt::Display) -> HandshakeError {
    HandshakeError::Field { field, why: why.to_string() }
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }
    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }
    fn text(&mut self, text: &str) {
        self.u16(u16::try_from(text.len()).expect("handshake texts are bounded"));
        self.0.extend_from_slice(text.as_bytes());
    }
    fn node(&mut self, node: &NodeId) {
        self.text(node.name.as_str());
        self.u64(node.incarnation.0);
    }
    fn window(&mut self, window: Window) {
        self.u32(window.frame_bytes_max);
        self.u32(window.payload_bytes_max);
        self.u32(window.credit_bytes);
    }
    fn refusal(&mut self, refusal: &Refusal) {
        self.u8(refusal.code as u8);
        // Details quote the peer's own words: keep them short.
        let short: String = refusal.detail.chars().take(512).collect();
        self.text(&short);
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self, name: &'static str) -> Result<[u8; N], HandshakeError> {
        let short = || field(name, &format!("needs {N} bytes, {} left", self.0.len()));
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or_else(short)?;
        self.0 = rest;
        Ok(*head)
    }
    fn u8(&mut self, name: &'static str) -> Result<u8, HandshakeError> {
        self.array::<1>(name).map(|[byte]| byte)
    }
    fn u16(&mut self, name: &'static str) -> Result<u16, HandshakeError> {
        self.array(name).map(u16::from_le_bytes)
    }
    fn u32(&mut self, name: &'static str) -> Result<u32, HandshakeError> {
        self.array(name).map(u32::from_le_bytes)
    }
    fn u64(&mut self, name: &'static str) -> Result<u64, HandshakeError> {
        self.array(name).map(u64::from_le_bytes)
    }
    fn text(&mut self, name: &'static str) -> Result<&'a str, HandshakeError> {
        let length = usize::from(self.u16(name)?);
        let (head, rest) = self
            .0
            .split_at_checked(length)
            .ok_or_else(|| field(name, &format!("needs {length} bytes, {} left", self.0.len())))?;
        self.0 = rest;
        std::str::from_utf8(head).map_err(|error| field(name, &error))
    }
    fn parse<T>(&mut self, name: &'static str) -> Result<T, HandshakeError>
    where
        T: std::str::FromStr<Err: fmt::Display>,
    {
        self.text(name)?.parse().map_err(|error| field(name, &error))
    }
    fn node(&mut self, name: &'static str) -> Result<NodeId, HandshakeError> {
        let node: NodeName = self.parse(name)?;
        Ok(NodeId::new(node, Incarnation(self.u64(name)?)))
    }
    fn window(&mut self) -> Result<Window, HandshakeError> {
        let window = Window {
            frame_bytes_max: self.u32("frame_bytes_max")?,
            payload_bytes_max: self.u32("payload_bytes_max")?,
            credit_bytes: self.u32("credit_bytes")?,
        };
        if window.frame_bytes_max < FRAME_BYTES_LEAST || window.credit_bytes == 0 {
            return Err(field("window", &format!("{window:?} is too small to talk through")));
        }
        Ok(window)
    }
    fn refusal(&mut self, code: u8) -> Result<Refusal, HandshakeError> {
        Ok(Refusal::new(RefusalCode::from_wire(code), self.text("detail")?))
    }
}

#[cfg(test)]
mod tests;
