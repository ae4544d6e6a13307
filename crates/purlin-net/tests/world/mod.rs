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
    Authority, ChannelId, Credit, GossipKeys, Incoming, IssuedCertificate, PartitionKey, Peer,
    PeerEvent, Service, ServiceId, TlsIdentity, Transport, TransportConfig, Urgency,
};
use tokio::sync::broadcast;

pub const SERVICE: ServiceId = ServiceId(20);

/// Under load of a busy machine everything takes its time; a test that fails waits this long.
pub const PATIENCE: Duration = Duration::from_secs(20);

static AUTHORITY: LazyLock<Authority> = LazyLock::new(|| authority("shop"));

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
    Transport::bind(config, Arc::new(SystemClock::new()), Rng::from_os()).await.unwrap()
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
