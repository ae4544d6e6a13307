use std::sync::atomic::{AtomicU32, Ordering};

use hickory_server::{
    Server,
    net::runtime::TokioRuntimeProvider as ServerRuntime,
    proto::rr::{
        LowerName, Name, RecordSet, RrKey,
        rdata::{A, AAAA, SOA, SRV},
    },
    store::in_memory::InMemoryZoneHandler,
    zone_handler::{AxfrPolicy, Catalog, ZoneType},
};
use purlin_core::SystemClock;

use super::*;
use crate::discovery::conformance::{self, Harness};

/// A real name server for `example.test.` on loopback, UDP and TCP.
pub(crate) struct NameServer {
    pub(crate) addr: SocketAddr,
    zone: Arc<InMemoryZoneHandler<ServerRuntime>>,
    server: Option<Server<Catalog>>,
    serial: AtomicU32,
}

impl NameServer {
    pub(crate) async fn start() -> Self {
        let zone =
            InMemoryZoneHandler::empty(name("example.test."), ZoneType::Primary, AxfrPolicy::Deny);
        // TCP first: the system then picks a port that UDP can nearly always have, too.
        let addr = loop {
            let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let addr = tcp.local_addr().unwrap();
            if tokio::net::UdpSocket::bind(addr).await.is_ok() {
                break addr;
            }
        };
        let mut server =
            Self { addr, zone: Arc::new(zone), server: None, serial: AtomicU32::new(1) };
        server.set([]).await;
        server.resume().await;
        server
    }

    /// Answers again.
    pub(crate) async fn resume(&mut self) {
        let mut catalog = Catalog::new();
        catalog.upsert(LowerName::new(&name("example.test.")), vec![Arc::clone(&self.zone) as _]);
        let mut server = Server::new(catalog);
        server.register_socket(tokio::net::UdpSocket::bind(self.addr).await.unwrap());
        let tcp = tokio::net::TcpListener::bind(self.addr).await.unwrap();
        server.register_listener(tcp, Duration::from_secs(5), 32);
        self.server = Some(server);
    }

    /// Stops answering.
    pub(crate) async fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.shutdown_gracefully().await.unwrap();
        }
    }

    /// Replaces everything in the zone.
    pub(crate) async fn set(&self, records: impl IntoIterator<Item = (&'static str, u32, RData)>) {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let soa =
            SOA::new(name("ns.example.test."), name("admin.example.test."), serial, 60, 60, 60, 1);
        let records = records.into_iter().map(|(host, ttl, data)| (name(host), ttl, data));
        let mut zone = self.zone.records_mut().await;
        zone.clear();
        for (host, ttl, data) in
            [(name("example.test."), 60, RData::SOA(soa))].into_iter().chain(records)
        {
            let record = Record::from_rdata(host.clone(), ttl, data);
            let key = RrKey::new(LowerName::new(&host), record.record_type());
            let set = zone
                .entry(key)
                .or_insert_with(|| Arc::new(RecordSet::new(host, record.record_type(), serial)));
            let mut records = RecordSet::clone(set);
            records.insert(record, serial);
            *set = Arc::new(records);
        }
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn a(last: u8) -> RData {
    RData::A(A::new(127, 0, 0, last))
}

fn config(server: &NameServer) -> DnsConfig {
    DnsConfig {
        nameservers: vec![server.addr],
        attempt_within: Duration::from_millis(300),
        schedule: Schedule {
            refresh_min: Duration::from_millis(100),
            refresh_max: Duration::from_secs(1),
            keep_absent: Duration::from_secs(2),
        },
    }
}

fn seeds(text: &str, config: &DnsConfig) -> DnsSeeds {
    DnsSeeds::new(text.parse().unwrap(), config, Arc::new(SystemClock::new()), Rng::from_seed(1))
        .unwrap()
}

async fn next(seeds: &mut DnsSeeds) -> Result<Vec<String>, DiscoveryError> {
    let news =
        tokio::time::timeout(Duration::from_secs(30), seeds.next()).await.expect("news in time");
    news.map(|list| list.iter().map(SocketAddr::to_string).collect())
}

#[tokio::test]
async fn both_address_families_of_a_host_are_found() {
    let server = NameServer::start().await;
    let v6 = RData::AAAA(AAAA::new(0xfd00, 0, 0, 0, 0, 0, 0, 2));
    server
        .set([
            ("n.example.test.", 1, a(1)),
            ("n.example.test.", 1, a(2)),
            ("n.example.test.", 1, v6),
        ])
        .await;
    let mut seeds = seeds("n.example.test:7400", &config(&server));
    assert_eq!(
        next(&mut seeds).await.unwrap(),
        ["127.0.0.1:7400", "127.0.0.2:7400", "[fd00::2]:7400"]
    );
}

#[tokio::test]
async fn a_service_gives_hosts_and_ports() {
    let server = NameServer::start().await;
    let srv = |port, target: &str| RData::SRV(SRV::new(10, 1, port, name(target)));
    server
        .set([
            ("_purlin._tcp.example.test.", 1, srv(7400, "n1.example.test.")),
            ("_purlin._tcp.example.test.", 1, srv(7401, "n2.example.test.")),
            ("n1.example.test.", 1, a(1)),
            ("n2.example.test.", 1, a(2)),
        ])
        .await;
    let mut seeds = seeds("srv:_purlin._tcp.example.test", &config(&server));
    assert_eq!(seeds.describe(), "dns SRV _purlin._tcp.example.test");
    assert_eq!(next(&mut seeds).await.unwrap(), ["127.0.0.1:7400", "127.0.0.2:7401"]);
    server
        .set([
            ("_purlin._tcp.example.test.", 1, srv(7401, "n2.example.test.")),
            ("n2.example.test.", 1, a(2)),
        ])
        .await;
    assert_eq!(next(&mut seeds).await.unwrap(), ["127.0.0.2:7401"]);
}

#[tokio::test]
async fn a_time_to_live_decides_when_the_next_lookup_is_due() {
    let server = NameServer::start().await;
    server.set([("n.example.test.", 7, a(1)), ("m.example.test.", 7_000, a(1))]).await;
    let mut config = config(&server);
    config.schedule.refresh_max = Duration::from_secs(60);
    for (host, due) in [("n.example.test:1", 7), ("m.example.test:1", 60)] {
        let mut seeds = seeds(host, &config);
        next(&mut seeds).await.unwrap();
        let left = seeds.refresh_in();
        assert!(
            left <= Duration::from_secs(due)
                && left + Duration::from_secs(5) > Duration::from_secs(due),
            "{left:?}"
        );
    }
}

#[tokio::test]
async fn a_silent_server_keeps_the_list_and_is_named_with_host_and_type() {
    let mut server = NameServer::start().await;
    server.set([("n.example.test.", 0, a(1))]).await;
    let mut seeds = seeds("n.example.test:7400", &config(&server));
    assert_eq!(next(&mut seeds).await.unwrap(), ["127.0.0.1:7400"]);
    server.stop().await;
    let error = next(&mut seeds).await.unwrap_err();
    assert!(error.to_string().starts_with("DNS lookup of A n.example.test failed: "), "{error}");
    assert!(matches!(error, DiscoveryError::Dns { record: DnsRecord::A, .. }));
    server.set([("n.example.test.", 0, a(2))]).await;
    server.resume().await;
    loop {
        match next(&mut seeds).await {
            Ok(list) => break assert_eq!(list, ["127.0.0.2:7400"], "no empty list in between"),
            Err(error) => assert!(matches!(error, DiscoveryError::Dns { .. }), "{error}"),
        }
    }
}

#[tokio::test]
async fn a_name_that_is_gone_keeps_its_addresses_for_the_stated_time() {
    let server = NameServer::start().await;
    server.set([("n.example.test.", 0, a(1))]).await;
    let mut seeds = seeds("n.example.test:7400", &config(&server));
    assert_eq!(next(&mut seeds).await.unwrap(), ["127.0.0.1:7400"]);
    let clock = SystemClock::new();
    let gone = clock.now();
    server.set([]).await;
    let error = next(&mut seeds).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "DNS has no A record for n.example.test; the last known addresses are kept for 2s"
    );
    assert_eq!(next(&mut seeds).await.unwrap(), Vec::<String>::new());
    assert!(clock.now() - gone >= Duration::from_secs(2), "not before the stated time");
    server.set([("n.example.test.", 0, a(3))]).await;
    assert_eq!(next(&mut seeds).await.unwrap(), ["127.0.0.3:7400"]);
}

#[tokio::test]
async fn a_name_that_never_was_is_told_and_looked_for() {
    let server = NameServer::start().await;
    let mut seeds = seeds("srv:_none._tcp.example.test", &config(&server));
    let error = next(&mut seeds).await.unwrap_err();
    let DiscoveryError::Absent { host, record, kept_for } = error else { panic!("{error}") };
    assert_eq!(
        (host.as_str(), record, kept_for),
        ("_none._tcp.example.test", DnsRecord::Srv, Duration::ZERO)
    );
}

#[test]
fn names_to_look_up_are_hosts_with_ports_or_services() {
    assert_eq!("srv:_p._tcp.x".parse::<DnsName>().unwrap(), DnsName::Service("_p._tcp.x".into()));
    assert_eq!("n.x:1".parse::<DnsName>().unwrap().to_string(), "n.x:1");
    assert_eq!(
        "n.x".parse::<DnsName>().unwrap_err().to_string(),
        "DNS seed \"n.x\" is neither `host:port` nor `srv:name`: there is no port"
    );
    assert!("srv:".parse::<DnsName>().is_err());
}

struct DnsHarness {
    server: NameServer,
}

impl DnsHarness {
    /// SRV records can carry ports, so a service stands for any list.
    async fn set(&self, addrs: &BTreeSet<SocketAddr>) {
        let mut records = vec![("n.example.test.", 0, a(1))];
        for addr in addrs {
            let target = SRV::new(1, 1, addr.port(), name("n.example.test."));
            records.push(("_p._tcp.example.test.", 0, RData::SRV(target)));
        }
        self.server.set(records).await;
    }
}

impl Harness for DnsHarness {
    fn start<'a>(
        &'a mut self,
        addrs: &'a BTreeSet<SocketAddr>,
    ) -> BoxFuture<'a, Box<dyn Discovery>> {
        async move {
            self.set(addrs).await;
            Box::new(seeds("srv:_p._tcp.example.test", &config(&self.server))) as Box<dyn Discovery>
        }
        .boxed()
    }

    fn publish<'a>(&'a mut self, addrs: &'a BTreeSet<SocketAddr>) -> BoxFuture<'a, bool> {
        async move {
            self.set(addrs).await;
            if self.server.server.is_none() {
                self.server.resume().await;
            }
            true
        }
        .boxed()
    }

    fn fail(&mut self) -> BoxFuture<'_, bool> {
        async move {
            self.server.stop().await;
            true
        }
        .boxed()
    }
}

#[tokio::test]
async fn dns_keeps_the_promises_of_a_discovery() {
    let mut harness = DnsHarness { server: NameServer::start().await };
    conformance::check(&mut harness, Duration::from_secs(20)).await.unwrap();
}
