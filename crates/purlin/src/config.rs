//! `purlin.toml`: read once, checked whole, then a plain value.
//!
//! A setting that is silently ignored is worse than one that is refused, so nothing here is
//! ignored: a key nobody knows, a value of the wrong shape and a number out of bounds are all
//! reported, together, each with the place it came from. The same table of keys ([`Key::all`])
//! reads the file, the environment and the command line, so one name works in all three:
//! `[http] bind` is `PURLIN_HTTP__BIND` and, for the binary, `--http-bind`.

mod error;
mod key;
mod show;
mod source;
mod value;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use purlin_core::{ClusterName, NodeName};
use purlin_dist::DistConfig;
use purlin_dist::supervisor::split::{Policy, PolicyError, SplitConfig};
use purlin_net::{CertError, GossipKeys, TlsIdentity};
use purlin_replica::Interest;

pub(crate) use self::value::Raw;
pub use self::{
    error::{ConfigError, Problem},
    key::{Key, Kind},
    show::Shown,
    source::{Origin, Sources},
    value::parse_duration,
};
use self::{source::Settings, value::Value};

/// Everything a node is told before it starts, checked.
///
/// Made by [`Config::load`] or [`Sources::load`]; the [builder](crate::NodeBuilder) takes it with
/// [`config`](crate::NodeBuilder::config). A value of this type obeys every bound its keys state;
/// [`Config::check`] in addition opens the files it names.
///
/// ```
/// let config = purlin::Sources::new()
///     .text("[node]\nname = \"n1\"\n[cluster]\nseeds = [\"10.0.0.2:7400\"]\n")
///     .load()?;
/// assert_eq!(config.node.name.as_str(), "n1");
/// assert_eq!(config.http.bind.port(), 4900);
/// # Ok::<(), purlin::ConfigError>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Config {
    /// `[node]`: who this node is.
    pub node: NodeSection,
    /// `[cluster]`: whom it joins and how it is reached.
    pub cluster: ClusterSection,
    /// `[http]`: the API and console of the `purlin` binary.
    pub http: HttpSection,
    /// `[tls]`: the certificates nodes show each other.
    pub tls: TlsSection,
    /// `[gossip]`: the key that authenticates datagrams.
    pub gossip: GossipSection,
    /// `[limits]`: bounds on what peers may make this node hold.
    pub limits: LimitsSection,
    /// `[replica]`: which replicated state this node keeps.
    pub replica: ReplicaSection,
    /// `[dist]`: bounds of names, groups and presences.
    pub dist: DistConfig,
    /// `[exec]`: whether this node runs programs.
    pub exec: ExecSection,
    /// `[log]`: what is logged and in which form.
    pub log: LogSection,
    settings: Settings,
}

/// `[node]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeSection {
    /// Unique in the cluster; certificates carry it.
    pub name: NodeName,
    /// Where incarnation and later all durable state live. One process at a time.
    pub data_dir: PathBuf,
    /// Failure domain, for instance an availability zone.
    pub zone: Option<String>,
    /// The wider place the zone is in.
    pub region: Option<String>,
    /// What this node is for; free words that placement may select on.
    pub roles: Vec<String>,
    /// Further facts about this node that others may select on.
    pub labels: BTreeMap<String, String>,
    /// Threads that run the node's tasks.
    pub worker_threads: usize,
    /// How long a drain waits for accepted work before it leaves anyway.
    pub drain_deadline: Duration,
}

/// `[cluster]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClusterSection {
    /// Nodes of another cluster name are refused at the handshake.
    pub name: ClusterName,
    /// TCP and UDP address that peers connect to.
    pub bind: SocketAddr,
    /// The address told to peers when it differs from `bind`.
    pub advertise: Option<SocketAddr>,
    /// `host:port` of nodes to contact first.
    pub seeds: Vec<String>,
    /// A watched file with one `host:port` a line.
    pub seed_file: Option<PathBuf>,
    /// DNS names to resolve for seeds: `srv:NAME` or `host:port`.
    pub dns: Vec<String>,
    /// How patient failure detection is.
    pub profile: Profile,
}

/// How far apart the members are: sets the pace of probes and suspicion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// One data centre or one machine: a silent node is down within two seconds.
    #[default]
    Lan,
    /// Several regions: slower probes, fewer mistakes on long links.
    Wan,
}

/// `[http]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpSection {
    /// Address of the API and console.
    pub bind: SocketAddr,
    /// File whose first line is the bearer token; without one only loopback may be bound.
    pub token_file: Option<PathBuf>,
}

/// `[tls]`: PEM files. All three or none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TlsSection {
    /// The authority that signed every node's certificate.
    pub ca: Option<PathBuf>,
    /// This node's certificate; its DNS name is the node's name.
    pub cert: Option<PathBuf>,
    /// The certificate's private key.
    pub key: Option<PathBuf>,
}

/// `[gossip]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct GossipSection {
    /// One key a line in hexadecimal: the first sends, all receive.
    pub key_file: Option<PathBuf>,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LimitsSection {
    /// Largest message that can be published or called with.
    pub message_bytes_max: usize,
    /// Longest frame on the wire; longer messages travel in pieces.
    pub frame_bytes_max: usize,
    /// Bytes waiting to be written to one connection before sends answer `Full`.
    pub backlog_bytes_max: usize,
    /// Unconsumed bytes one connection may have at its receiver.
    pub credit_bytes: usize,
    /// Other nodes connected at once.
    pub peers_max: usize,
    /// Processes alive at once.
    pub processes_max: usize,
}

/// `[replica]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReplicaSection {
    /// Of which names this node keeps named state and ephemeral values. Flags and replicated caches
    /// are kept whole everywhere.
    pub interest: Interest,
}

/// `[exec]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExecSection {
    /// Whether this node runs programs. The program that starts the node must begin its `main` with
    /// `purlin::dist::exec::guarded()`, as the `purlin` binary does.
    pub enabled: bool,
    /// Below which directory of a cgroup v2 programs with limits get one of their own.
    pub cgroup: Option<PathBuf>,
    /// Which side of a cut runs programs, and who counts.
    pub split: SplitConfig,
    /// Bytes of output of one program per file.
    pub log_file_bytes_max: u64,
}

/// `[log]`.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LogSection {
    /// A level, or a filter such as `info,purlin_net=debug`.
    pub level: String,
    /// Lines for people or objects for machines.
    pub format: LogFormat,
}

/// The form of a log record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// One readable line.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads `path`, then the process environment over it.
    ///
    /// # Errors
    /// [`ConfigError`] names every problem found, not only the first.
    pub fn load(path: impl AsRef<Path>) -> Result<Self, ConfigError> {
        Sources::new().file(path).process_env().load()
    }

    /// Every key with its value and where the value came from, in the order of [`Key::all`].
    ///
    /// Secrets live in files and only their paths are settings, so nothing here needs hiding.
    #[must_use]
    pub fn shown(&self) -> Vec<Shown> {
        show::shown(&self.settings)
    }

    /// Opens what the config names, to find out before a start what a start would find.
    ///
    /// # Errors
    /// [`ConfigError`] with every file that is missing, unreadable or not what it should be, and
    /// every pair of settings that do not go together.
    pub fn check(&self) -> Result<(), ConfigError> {
        // A seed file may appear later (an orchestrator writes it), so its absence is no problem.
        let mut problems = Vec::new();
        if let Err(error) = self.identity() {
            problems.extend_from_slice(error.problems());
        }
        if let Some(path) = &self.http.token_file {
            problems.extend(unreadable(path).map(|why| self.problem("http.token_file", why)));
        }
        if let Some(dir) = self.exec.cgroup.as_ref().filter(|_| self.exec.enabled)
            && !dir.join("cgroup.controllers").exists()
        {
            let text = format!("{} is no directory of a cgroup v2", dir.display());
            problems.push(self.problem("exec.cgroup", text));
        }
        ConfigError::unless_empty(problems)
    }

    /// Reads what this node proves itself with: its certificate and the gossip keys.
    pub(crate) fn identity(&self) -> Result<(TlsIdentity, GossipKeys), ConfigError> {
        let mut problems = Vec::new();
        let tls = match (&self.tls.ca, &self.tls.cert, &self.tls.key) {
            (Some(ca), Some(cert), Some(key)) => match TlsIdentity::from_pem_files(ca, cert, key) {
                Ok(tls) if tls.is_for(&self.node.name) => Some(tls),
                Ok(tls) => {
                    let names = tls.summary().names.join(", ");
                    let text = format!(
                        "is a certificate for {names}, but this node is {}",
                        self.node.name
                    );
                    problems.push(self.problem("tls.cert", text));
                    None
                }
                Err(error) => {
                    problems.push(self.problem(file_key(&error, ca, cert), error.to_string()));
                    None
                }
            },
            (None, None, None) => {
                problems.push(self.problem(
                    "tls.ca",
                    "is not set: nodes only speak over mutual TLS; `purlin cert new-ca` and `purlin cert issue` make the files".into(),
                ));
                None
            }
            (ca, cert, key) => {
                for (name, path) in [("tls.ca", ca), ("tls.cert", cert), ("tls.key", key)] {
                    if path.is_none() {
                        problems.push(
                            self.problem(name, "is not set: ca, cert and key go together".into()),
                        );
                    }
                }
                None
            }
        };
        let gossip = match &self.gossip.key_file {
            Some(path) => match GossipKeys::from_file(path) {
                Ok(keys) => Some(keys),
                Err(error) => {
                    problems.push(self.problem("gossip.key_file", error.to_string()));
                    None
                }
            },
            None => {
                let text = "is not set: failure detection needs a shared key; `purlin cert gossip-key` makes one";
                problems.push(self.problem("gossip.key_file", text.to_owned()));
                None
            }
        };
        match (tls, gossip) {
            (Some(tls), Some(gossip)) if problems.is_empty() => Ok((tls, gossip)),
            _ => Err(ConfigError::of(problems)),
        }
    }

    fn problem(&self, key: &str, text: String) -> Problem {
        Problem { origin: self.settings.origin(key), key: key.to_owned(), text }
    }

    fn build(settings: Settings) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        if settings.get("node.name").is_none() {
            problems.push(Problem {
                origin: Origin::Default,
                key: "node.name".to_owned(),
                text: "is required: set it in the file, in PURLIN_NODE__NAME or with --name"
                    .to_owned(),
            });
        }
        if let (Some(Value::Address(bind)), None) =
            (settings.get("cluster.bind"), settings.get("cluster.advertise"))
            && bind.ip().is_unspecified()
        {
            problems.push(Problem {
                origin: settings.origin("cluster.bind"),
                key: "cluster.bind".to_owned(),
                text: format!("{bind} says nothing others could dial: set cluster.advertise too"),
            });
        }
        if let (Some(Value::Address(bind)), None) =
            (settings.get("http.bind"), settings.get("http.token_file"))
            && !bind.ip().is_loopback()
        {
            problems.push(Problem {
                origin: settings.origin("http.bind"),
                key: "http.bind".to_owned(),
                text: format!("{bind} can be reached from other machines: set http.token_file, or bind a loopback address"),
            });
        }
        let (message, backlog) = (
            settings.count("limits.message_bytes_max"),
            settings.count("limits.backlog_bytes_max"),
        );
        if message > backlog / 4 {
            problems.push(Problem {
                origin: settings.origin("limits.message_bytes_max"),
                key: "limits.message_bytes_max".to_owned(),
                text: format!("of {message} exceeds a quarter of limits.backlog_bytes_max, {backlog}: raise that too"),
            });
        }
        let beginnings = settings.list("replica.interest");
        let interest = match beginnings.is_empty() {
            true => Ok(Interest::all()),
            false => Interest::prefixes(beginnings),
        };
        let interest = interest.unwrap_or_else(|error| {
            problems.push(Problem {
                origin: settings.origin("replica.interest"),
                key: "replica.interest".to_owned(),
                text: error.to_string(),
            });
            Interest::all()
        });
        let split = split(&settings).unwrap_or_else(|problem| {
            problems.push(problem);
            SplitConfig::new(Policy::None)
        });
        ConfigError::unless_empty(problems)?;
        Ok(Self {
            replica: ReplicaSection { interest },
            node: NodeSection {
                name: settings.node_name("node.name"),
                data_dir: settings.path("node.data_dir").expect("node.data_dir has a default"),
                zone: settings.text("node.zone"),
                region: settings.text("node.region"),
                roles: settings.list("node.roles"),
                labels: settings.labels("node.labels"),
                worker_threads: settings.count("node.worker_threads"),
                drain_deadline: settings.duration("node.drain_deadline"),
            },
            cluster: ClusterSection {
                name: settings.cluster_name("cluster.name"),
                bind: settings.address("cluster.bind").expect("cluster.bind has a default"),
                advertise: settings.address("cluster.advertise"),
                seeds: settings.list("cluster.seeds"),
                seed_file: settings.path("cluster.seed_file"),
                dns: settings.list("cluster.dns"),
                profile: match settings.text("cluster.profile").as_deref() {
                    Some("wan") => Profile::Wan,
                    _ => Profile::Lan,
                },
            },
            http: HttpSection {
                bind: settings.address("http.bind").expect("http.bind has a default"),
                token_file: settings.path("http.token_file"),
            },
            tls: TlsSection {
                ca: settings.path("tls.ca"),
                cert: settings.path("tls.cert"),
                key: settings.path("tls.key"),
            },
            gossip: GossipSection { key_file: settings.path("gossip.key_file") },
            limits: LimitsSection {
                message_bytes_max: settings.count("limits.message_bytes_max"),
                frame_bytes_max: settings.count("limits.frame_bytes_max"),
                backlog_bytes_max: settings.count("limits.backlog_bytes_max"),
                credit_bytes: settings.count("limits.credit_bytes"),
                peers_max: settings.count("limits.peers_max"),
                processes_max: settings.count("limits.processes_max"),
            },
            dist: DistConfig {
                entries_max: settings.count("dist.entries_max"),
                presences_per_key_max: settings.count("dist.presences_per_key_max"),
                metadata_bytes_max: settings.count("dist.metadata_bytes_max"),
                events_max: settings.count("dist.events_max"),
                scopes_max: settings.count("dist.scopes_max"),
                unknown_for: settings.duration("dist.unknown_for"),
            },
            exec: ExecSection {
                enabled: settings.switch("exec.enabled"),
                cgroup: settings.path("exec.cgroup"),
                split,
                log_file_bytes_max: settings.count("exec.log_file_bytes_max") as u64,
            },
            log: LogSection {
                level: settings.text("log.level").expect("log.level has a default"),
                format: match settings.text("log.format").as_deref() {
                    Some("json") => LogFormat::Json,
                    _ => LogFormat::Text,
                },
            },
            settings,
        })
    }
}

/// Reads `exec.split` and `exec.voters`.
fn split(settings: &Settings) -> Result<SplitConfig, Problem> {
    let wrong = |key: &str, text: String| Problem {
        origin: settings.origin(key),
        key: key.to_owned(),
        text,
    };
    let text = settings.text("exec.split").expect("exec.split has a default");
    let policy: Policy =
        text.parse().map_err(|error: PolicyError| wrong("exec.split", error.to_string()))?;
    if policy == Policy::Lease {
        let text = "is lease, but nobody gives leases in this release: programs would run nowhere";
        return Err(wrong("exec.split", text.to_owned()));
    }
    let mut split = SplitConfig::new(policy);
    for name in settings.list("exec.voters") {
        let voter = NodeName::parse(&name)
            .map_err(|error| wrong("exec.voters", format!("holds {name:?}: {error}")))?;
        split.voters.insert(voter);
    }
    split.check().map_err(|error| wrong("exec.split", error.to_string()))?;
    Ok(split)
}

fn unreadable(path: &Path) -> Option<String> {
    match std::fs::read(path) {
        Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => {
            Some(format!("{} is empty", path.display()))
        }
        Ok(_) => None,
        Err(error) => Some(format!("cannot read {}: {error}", path.display())),
    }
}

/// Which setting named the file that `error` is about.
fn file_key(error: &CertError, ca: &Path, cert: &Path) -> &'static str {
    let (CertError::Io { path, .. }
    | CertError::KeyReadable { path, .. }
    | CertError::Malformed { path, .. }) = error
    else {
        return "tls.cert";
    };
    if path == ca {
        "tls.ca"
    } else if path == cert {
        "tls.cert"
    } else {
        "tls.key"
    }
}
