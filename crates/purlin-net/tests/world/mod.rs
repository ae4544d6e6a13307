//! A small world of transports on loopback, for the tests of this crate.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test file uses a part of it"
)]

use std::{
    future::Future,
    sync::{Arc, LazyLock},
    time::Duration,
};

use parking_lot::Mutex;
use purlin_core::{
    Clock as _, ClusterName, Incarnation, NodeId, NodeName, Rng, SystemClock, WallTime,
};
use purlin_net::{
    Authority, BindError, ChannelId, Credit, GossipKeys, Incoming, IssuedCertificate, PartitionKey,
    Peer, PeerEvent, Service, ServiceId, TlsIdentity, Transport, TransportConfig, Urgency,
};
use tokio::sync::broadcast;

pub const SERVICE: ServiceId = ServiceId(20);

/// Under load of a busy machine everything takes its time; a test that fails waits this long.
pub const PATIENCE: Duration = Duration::from_secs(60);

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| authority("shop"));

pub fn authority_pem() -> String {
    AUTHORITY.certificate_pem().to_owned()
}

pub fn now() -> WallTime {
    SystemClock::new().wall()
}

pub fn authority(cluster: &str) -> Authority {
    Authority::generate(&ClusterName::parse(cluster).unwrap(), now()).unwrap()
}

pub fn name(name: &str) -> NodeName {
    NodeName::parse(name).unwrap()
}

pub fn node(text: &str, incarnation: u64) -> NodeId {
    NodeId::new(name(text), Incarnation(incarnation))
}

pub fn issued(authority: &Authority, node: &str) -> IssuedCertificate {
    authority.issue(&name(node), now(), purlin_net::certs::NODE_VALID_FOR).unwrap()
}

pub fn identity(node: &str) -> TlsIdentity {
    TlsIdentity::from_issued(AUTHORITY.certificate_pem(), &issued(&AUTHORITY, node)).unwrap()
}

pub fn identity_of(authority: &Authority, node: &str) -> TlsIdentity {
    TlsIdentity::from_issued(authority.certificate_pem(), &issued(authority, node)).unwrap()
}

pub fn keys() -> GossipKeys {
    GossipKeys::parse(&"5a".repeat(32)).unwrap()
}

pub fn config(text: &str, incarnation: u64) -> TransportConfig {
    TransportConfig::new(
        ClusterName::parse("shop").unwrap(),
        node(text, incarnation),
        "127.0.0.1:0".parse().unwrap(),
        identity(text),
        keys(),
    )
}

pub async fn start(config: TransportConfig) -> Transport {
    within("a free port", async {
        loop {
            let clock = Arc::new(SystemClock::new());
            match Transport::bind(config.clone(), clock, Rng::from_os()).await {
                Ok(transport) => return transport,
                // An earlier life's listener closes in its own task.
                Err(BindError::InUse { .. }) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    })
    .await
}

/// An address at which nobody listens, nor will: the port is taken, and stays so.
pub fn nobody() -> std::net::SocketAddr {
    static TAKEN: Mutex<Vec<tokio::net::TcpSocket>> = Mutex::new(Vec::new());
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = socket.local_addr().unwrap();
    TAKEN.lock().push(socket);
    addr
}

pub async fn transport(text: &str) -> Transport {
    start(config(text, 1)).await
}

/// Two nodes, `n1` and `n2`, the first with the second as its peer and up.
pub async fn pair() -> (Transport, Transport, Peer) {
    pair_of(config("n1", 1), config("n2", 1)).await
}

pub async fn pair_of(one: TransportConfig, two: TransportConfig) -> (Transport, Transport, Peer) {
    let (one, two) = (start(one).await, start(two).await);
    let peer = one.add_peer(two.node().clone(), two.local_addr()).unwrap();
    until("the peers are up", || peer.is_up() && two.peers().iter().any(Peer::is_up)).await;
    (one, two, peer)
}

pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(PATIENCE, async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    assert!(waited.await.is_ok(), "waited {PATIENCE:?} in vain until {what}");
}

pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("waited {PATIENCE:?} in vain for {what}"),
    }
}

pub async fn event<T>(
    events: &mut broadcast::Receiver<PeerEvent>,
    what: &str,
    mut pick: impl FnMut(PeerEvent) -> Option<T>,
) -> T {
    within(what, async {
        loop {
            if let Some(found) = pick(events.recv().await.unwrap()) {
                return found;
            }
        }
    })
    .await
}

pub fn send(peer: &Peer, message: &[u8]) {
    peer.send(ChannelId::STREAM, SERVICE, PartitionKey::ZERO, Urgency::Batch, |payload| {
        payload.put(message);
    })
    .unwrap();
}

/// A service that remembers what it got and may hold on to the credit.
#[derive(Debug, Default)]
pub struct Collector {
    pub messages: Mutex<Vec<Vec<u8>>>,
    pub hold: std::sync::atomic::AtomicBool,
    pub held: Mutex<Vec<Credit>>,
}

impl Collector {
    pub fn on(transport: &Transport) -> Arc<Self> {
        let collector = Arc::new(Self::default());
        transport.register(SERVICE, Arc::<Self>::clone(&collector));
        collector
    }

    pub fn count(&self) -> usize {
        self.messages.lock().len()
    }

    pub fn release(&self) {
        self.hold.store(false, std::sync::atomic::Ordering::Relaxed);
        self.held.lock().clear();
    }
}

impl Service for Collector {
    fn on_frame(&self, mut frame: Incoming<'_>) {
        self.messages.lock().push(frame.payload().to_vec());
        if self.hold.load(std::sync::atomic::Ordering::Relaxed) {
            self.held.lock().push(frame.take_credit());
        }
    }
}

/// A peer that speaks TLS with a good certificate and then says whatever it likes. Blocking.
pub struct RawPeer(rustls::StreamOwned<rustls::ClientConnection, std::net::TcpStream>);

impl RawPeer {
    /// Connects as `me`, expecting `them` at `addr`.
    pub fn connect(addr: std::net::SocketAddr, me: &str, them: &str) -> Self {
        Self::connect_as(addr, &issued(&AUTHORITY, me), AUTHORITY.certificate_pem(), them)
    }

    pub fn connect_as(
        addr: std::net::SocketAddr,
        me: &IssuedCertificate,
        root: &str,
        them: &str,
    ) -> Self {
        use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(root.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(
                vec![CertificateDer::from_pem_slice(me.certificate_pem.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(me.key_pem.as_bytes()).unwrap(),
            )
            .unwrap();
        let name = ServerName::try_from(them.to_owned()).unwrap();
        let session = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let socket = std::net::TcpStream::connect(addr).unwrap();
        socket.set_nodelay(true).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(rustls::StreamOwned::new(session, socket))
    }

    pub fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        use std::io::Write as _;
        self.0.write_all(bytes)?;
        self.0.flush()
    }

    /// Ends TLS as if nothing followed, and sends more bytes all the same.
    pub fn close_notify_and_write(&mut self, bytes: &[u8]) {
        use std::io::Write as _;
        self.0.conn.send_close_notify();
        while self.0.conn.wants_write() {
            self.0.conn.write_tls(&mut self.0.sock).unwrap();
        }
        drop(self.0.sock.write_all(bytes));
    }

    /// Reads until the other side closes or resets.
    pub fn read_to_end(&mut self) -> Vec<u8> {
        use std::io::Read as _;
        let (mut all, mut chunk) = (Vec::new(), [0; 4096]);
        while let Ok(bytes) = self.0.read(&mut chunk) {
            if bytes == 0 {
                break;
            }
            all.extend_from_slice(&chunk[..bytes]);
        }
        all
    }

    pub fn read_exactly(&mut self, bytes: usize) -> Vec<u8> {
        use std::io::Read as _;
        let mut all = vec![0; bytes];
        self.0.read_exact(&mut all).unwrap();
        all
    }

    /// Reads one handshake message's body.
    pub fn read_handshake(&mut self) -> Vec<u8> {
        use purlin_net::handshake::{PROLOGUE_BYTES, Prologue};
        let head = self.read_exactly(PROLOGUE_BYTES);
        let prologue = Prologue::decode(&head).unwrap().unwrap();
        self.read_exactly(prologue.body_bytes as usize)
    }
}

/// A hello as `me` would say it on the stream channel.
pub fn hello(me: NodeId) -> purlin_net::handshake::Hello {
    use purlin_net::handshake::{Capabilities, Hello, Purpose, VERSION, VERSION_MIN, Window};
    Hello {
        versions: (VERSION_MIN, VERSION),
        cluster: ClusterName::parse("shop").unwrap(),
        node: me,
        expects: None,
        advertise: "127.0.0.1:1".parse().unwrap(),
        capabilities: Capabilities::OURS,
        purpose: Purpose::Channel {
            name: purlin_net::ChannelName::parse("stream").unwrap(),
            index: 0,
            connection: 77,
            last: 0,
            window: Window {
                frame_bytes_max: 1 << 18,
                payload_bytes_max: 1 << 22,
                credit_bytes: 1 << 20,
            },
        },
    }
}
