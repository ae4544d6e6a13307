//! Seeds from DNS: the addresses of a name, or the targets of a service.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, join_all},
};
use hickory_resolver::{
    Resolver, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig},
    net::{DnsError, NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::ResponseCode,
        rr::{RData, Record, RecordType},
    },
};
use purlin_core::{Clock, Rng};

use super::{
    Discovery, DiscoveryError, SeedAddr,
    refresh::{Answer, Refresh, Report, Schedule},
    seed::check_host,
};

/// What to look up.
///
/// Written `host:port` (the A and AAAA records of the host, each with that port) or `srv:name` (the
/// targets and ports of a service, such as `srv:_purlin._tcp.example.org`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsName {
    /// A and AAAA records.
    Host(SeedAddr),
    /// SRV records, and then A and AAAA records of their targets.
    Service(String),
}

impl FromStr for DnsName {
    type Err = DiscoveryError;

    fn from_str(text: &str) -> Result<Self, DiscoveryError> {
        let bad = |reason: &str| DiscoveryError::DnsName {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        match text.strip_prefix("srv:") {
            Some(name) => {
                check_host(name).map_err(bad)?;
                Ok(Self::Service(name.to_owned()))
            }
            None => Ok(Self::Host(SeedAddr::parse(text).map_err(bad)?)),
        }
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(seed) => seed.fmt(f),
            Self::Service(name) => write!(f, "srv:{name}"),
        }
    }
}

/// A record type that is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DnsRecord {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// Hosts and ports of a service.
    Srv,
}

impl DnsRecord {
    fn record_type(self) -> RecordType {
        match self {
            Self::A => RecordType::A,
            Self::Aaaa => RecordType::AAAA,
            Self::Srv => RecordType::SRV,
        }
    }
}

impl fmt::Display for DnsRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Srv => "SRV",
        })
    }
}

/// Whom to ask, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsConfig {
    /// The name servers to ask, over UDP and then TCP. Empty: those of the system, with its search
    /// domains. Give them where the inside and the outside see different zones.
    pub nameservers: Vec<SocketAddr>,
    /// How long one attempt may take. Default 2 s; a lookup makes two.
    pub attempt_within: Duration,
    /// When to look again. Times to live are honoured within its bounds.
    pub schedule: Schedule,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self {
            nameservers: Vec::new(),
            attempt_within: Duration::from_secs(2),
            schedule: Schedule::default(),
        }
    }
}

/// The nodes behind one name in DNS.
///
/// Looked up when the shortest time to live of the answer is over, but not more often than
/// [`Schedule::refresh_min`] nor less often than [`Schedule::refresh_max`]. While no server
/// answers, lookups back off and the last list stays in force. When the servers say that the name
/// does not exist, it stays for [`Schedule::keep_absent`].
pub struct DnsSeeds {
    name: DnsName,
    clock: Arc<dyn Clock>,
    resolver: TokioResolver,
    refresh: Refresh,
    /// A trouble with a part of an answer that was good enough.
    trouble: Option<DiscoveryError>,
}

impl DnsSeeds {
    /// Prepares looking up `name`; nothing is sent yet.
    ///
    /// # Errors
    /// [`DiscoveryError::Other`] when the system's name servers cannot be found out.
    pub fn new(
        name: DnsName,
        config: &DnsConfig,
        clock: Arc<dyn Clock>,
        rng: Rng,
    ) -> Result<Self, DiscoveryError> {
        let resolver = resolver(config).map_err(|error| DiscoveryError::Other {
            discovery: format!("dns {name}"),
            reason: error.to_string(),
        })?;
        Ok(Self {
            name,
            clock,
            resolver,
            refresh: Refresh::new(config.schedule.clone(), rng),
            trouble: None,
        })
    }

    async fn next_list(&mut self) -> Result<BTreeSet<SocketAddr>, DiscoveryError> {
        loop {
            if let Some(trouble) = self.trouble.take() {
                return Err(trouble);
            }
            tokio::time::sleep(self.refresh.due().saturating_since(self.clock.now())).await;
            // The schedule honours times to live; a second memory would only make it late.
            self.resolver.clear_cache();
            let found = match &self.name {
                DnsName::Host(seed) => self.addresses(seed.host(), seed.port()).await,
                DnsName::Service(name) => self.targets(name).await,
            };
            if let Some(list) = self.on_found(found)? {
                return Ok(list);
            }
        }
    }

    /// What the schedule makes of a lookup.
    fn on_found(&mut self, found: Found) -> Result<Option<BTreeSet<SocketAddr>>, DiscoveryError> {
        let problem = found.problem;
        match self.refresh.on_answer(self.clock.now(), found.answer) {
            Some(Report::List(list)) => {
                self.trouble = problem.map(|problem| problem.error(self.refresh_in()));
                Ok(Some(list))
            }
            Some(Report::Failed { retry_in }) => {
                Err(problem.expect("a failed lookup says why").error(retry_in))
            }
            Some(Report::Absent { kept_for }) => {
                let (host, record) = found.absent;
                Err(DiscoveryError::Absent { host, record, kept_for })
            }
            None => problem.map_or(Ok(None), |problem| Err(problem.error(self.refresh_in()))),
        }
    }

    fn refresh_in(&self) -> Duration {
        self.refresh.due().saturating_since(self.clock.now())
    }

    /// The A and AAAA records of `host`, asked for at the same time.
    async fn addresses(&self, host: &str, port: u16) -> Found {
        let (v4, v6) = futures_util::join!(
            self.lookup(host, DnsRecord::A),
            self.lookup(host, DnsRecord::Aaaa)
        );
        let address = |record: &Record| match &record.data {
            RData::A(a) => Some(SocketAddr::new(IpAddr::V4(a.0), port)),
            RData::AAAA(aaaa) => Some(SocketAddr::new(IpAddr::V6(aaaa.0), port)),
            _ => None,
        };
        let parts = [v4, v6].map(|part| {
            part.map(|records| (records.iter().filter_map(address).collect(), ttl_of(&records)))
        });
        Found::sum(parts, (host.to_owned(), DnsRecord::A))
    }

    /// The addresses of all targets of a service.
    async fn targets(&self, name: &str) -> Found {
        let records = match self.lookup(name, DnsRecord::Srv).await {
            Ok(records) => records,
            Err(miss) => return Found::sum([Err(miss)], (name.to_owned(), DnsRecord::Srv)),
        };
        let targets = records.iter().filter_map(|record| match &record.data {
            // A lone dot says that the service is decidedly not there (RFC 2782).
            RData::SRV(srv) if !srv.target.is_root() => Some((srv.target.to_string(), srv.port)),
            _ => None,
        });
        let targets: BTreeSet<_> = targets.collect();
        let parts = join_all(targets.iter().map(|(host, port)| self.addresses(host, *port))).await;
        let ttl = ttl_of(&records);
        Found::of_targets(parts, ttl, name)
    }

    async fn lookup(&self, host: &str, record: DnsRecord) -> Result<Vec<Record>, Miss> {
        match self.resolver.lookup(host, record.record_type()).await {
            Ok(lookup) => {
                let wanted = lookup
                    .answers()
                    .iter()
                    .filter(|answer| answer.record_type() == record.record_type());
                Ok(wanted.cloned().collect())
            }
            Err(NetError::Dns(DnsError::NoRecordsFound(none))) if is_answer(none.response_code) => {
                Err(Miss::Absent {
                    ttl: none.negative_ttl.map(|ttl| Duration::from_secs(ttl.into())),
                })
            }
            Err(error) => Err(Miss::Failed(Problem {
                host: host.to_owned(),
                record,
                reason: error.to_string(),
            })),
        }
    }
}

impl Discovery for DnsSeeds {
    fn describe(&self) -> String {
        match &self.name {
            DnsName::Host(seed) => format!("dns A and AAAA {}", seed),
            DnsName::Service(name) => format!("dns SRV {name}"),
        }
    }

    fn next(&mut self) -> BoxFuture<'_, Result<BTreeSet<SocketAddr>, DiscoveryError>> {
        self.next_list().boxed()
    }
}

impl fmt::Debug for DnsSeeds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DnsSeeds")
            .field("name", &self.name)
            .field("refresh", &self.refresh)
            .finish_non_exhaustive()
    }
}

fn resolver(config: &DnsConfig) -> Result<TokioResolver, NetError> {
    let mut builder = if config.nameservers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let servers = config.nameservers.iter().map(|addr| {
            let connections =
                [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                    connection.port = addr.port();
                    connection
                });
            NameServerConfig::new(addr.ip(), true, connections.into())
        });
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.collect());
        Resolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    let options = builder.options_mut();
    options.timeout = config.attempt_within;
    // One more after the first: a single lost datagram is no failure. The schedule does the rest.
    options.attempts = 1;
    builder.build()
}

/// "No such name" and "no such record" are answers; other codes are failures to answer.
fn is_answer(code: ResponseCode) -> bool {
    matches!(code, ResponseCode::NXDomain | ResponseCode::NoError)
}

fn ttl_of(records: &[Record]) -> Duration {
    records
        .iter()
        .map(|record| Duration::from_secs(record.ttl.into()))
        .min()
        .unwrap_or(Duration::ZERO)
}

/// Why a lookup brought no records.
#[derive(Debug)]
enum Miss {
    Absent { ttl: Option<Duration> },
    Failed(Problem),
}

/// A lookup that failed.
#[derive(Debug)]
struct Problem {
    host: String,
    record: DnsRecord,
    reason: String,
}

impl Problem {
    fn error(self, retry_in: Duration) -> DiscoveryError {
        DiscoveryError::Dns { host: self.host, record: self.record, reason: self.reason, retry_in }
    }
}

/// The sum of the lookups one list takes.
#[derive(Debug)]
struct Found {
    answer: Answer,
    /// Why a part of it is missing.
    problem: Option<Problem>,
    /// What to name if the answer is that there is nothing.
    absent: (String, DnsRecord),
}

impl Found {
    /// Some addresses beat a failed part, which may be the family the network does not have; a
    /// failed part beats an absent one, because it might have had some.
    fn sum(
        parts: impl IntoIterator<Item = Result<(BTreeSet<SocketAddr>, Duration), Miss>>,
        absent: (String, DnsRecord),
    ) -> Self {
        let (mut addrs, mut ttl, mut absent_ttl, mut problem) =
            (BTreeSet::new(), Duration::MAX, None, None);
        for part in parts {
            match part {
                Ok((some, some_ttl)) => {
                    addrs.extend(some);
                    ttl = ttl.min(some_ttl);
                }
                Err(Miss::Absent { ttl }) => {
                    absent_ttl = absent_ttl.min(ttl).or(absent_ttl).or(ttl)
                }
                Err(Miss::Failed(failed)) => problem = problem.or(Some(failed)),
            }
        }
        let answer = match (addrs.is_empty(), &problem) {
            (false, _) => Answer::Found { addrs, ttl },
            (true, Some(_)) => Answer::Failed,
            // Without a stated time, the longest: a name that is not there comes back late anyway.
            (true, None) => Answer::Absent { ttl: absent_ttl.unwrap_or(Duration::MAX) },
        };
        Self { answer, problem, absent }
    }

    fn of_targets(targets: Vec<Self>, ttl: Duration, service: &str) -> Self {
        let parts = targets.into_iter().flat_map(|target| {
            let answer = match target.answer {
                Answer::Found { addrs, ttl } => Some(Ok((addrs, ttl))),
                Answer::Absent { ttl } => Some(Err(Miss::Absent { ttl: Some(ttl) })),
                Answer::Failed => None,
            };
            answer.into_iter().chain(target.problem.map(|problem| Err(Miss::Failed(problem))))
        });
        let records = Ok((BTreeSet::new(), ttl));
        Self::sum(parts.chain([records]), (service.to_owned(), DnsRecord::Srv))
    }
}

#[cfg(test)]
mod tests;
