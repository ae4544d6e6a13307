//! scratch shim until the facade
use std::sync::Arc;
use std::time::Duration;

use purlin_core::*;
use purlin_net::*;
use purlin_process::Processes;
use purlin_pubsub::PubSub;

use crate::failure::Failure;

#[derive(Clone)]
pub(crate) struct Node {
    transport: Transport,
    pubsub: PubSub,
    processes: Processes,
}
impl Node {
    pub(crate) fn pubsub(&self) -> &PubSub {
        &self.pubsub
    }
    pub(crate) fn processes(&self) -> &Processes {
        &self.processes
    }
    pub(crate) fn cluster_addr(&self) -> std::net::SocketAddr {
        self.transport.local_addr()
    }
}

pub(crate) async fn start(dir: &str, name: &str, seeds: &[String]) -> Result<Node, Failure> {
    let dir = std::path::Path::new(dir);
    let clock = Arc::new(SystemClock::new());
    if !dir.join("ca.key").exists() {
        std::fs::create_dir_all(dir).unwrap();
        let ca =
            Authority::generate(&ClusterName::parse("bench").unwrap(), SystemClock::new().wall())
                .unwrap();
        ca.store(&dir).unwrap();
        std::fs::write(dir.join("gossip"), GossipKeys::generate()).unwrap();
    }
    let ca = Authority::load(dir).unwrap();
    let name = NodeName::parse(name).unwrap();
    let cert = ca.issue(&name, clock.wall(), certs::NODE_VALID_FOR).unwrap();
    let tls = TlsIdentity::from_issued(ca.certificate_pem(), &cert).unwrap();
    let keys = GossipKeys::parse(&std::fs::read_to_string(dir.join("gossip")).unwrap()).unwrap();
    let node = NodeId::new(name, Incarnation(1));
    let config = TransportConfig::new(
        ClusterName::parse("bench").unwrap(),
        node.clone(),
        "127.0.0.1:0".parse().unwrap(),
        tls,
        keys,
    );
    let transport = Transport::bind(config, clock.clone(), Rng::from_os()).await.unwrap();
    let pubsub = PubSub::start(&transport, Default::default()).unwrap();
    let processes = Processes::new(node, clock);
    for s in seeds {
        let d = Deadline::after(transport.clock().now(), Duration::from_secs(5));
        let c = transport.contact(s.parse().unwrap(), d).await.unwrap();
        let p = transport.add_peer(c.node, c.advertise).unwrap();
        for _ in 0..500 {
            if p.is_up() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    Ok(Node { transport, pubsub, processes })
}
