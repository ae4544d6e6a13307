//! How a node is told what to be, and how its parts are put together.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use purlin_cache::Caches;
use purlin_cluster::{
    Cluster, ClusterConfig, MembersRpc, Meta, Remote,
    discovery::{
        Combined, Discovery, DnsConfig, DnsName, DnsSeeds, Schedule, SeedFile, StaticSeeds,
    },
    swim,
};
use purlin_core::{Clock, Hlc, NodeId, Rng};
use purlin_dist::{
    Dist, DistConfig, Ground,
    supervisor::{Footing, Supervisors},
};
use purlin_net::{ChannelSpec, GossipKeys, Limits, Rpc, TlsIdentity, Transport, TransportConfig};
use purlin_process::{ProcessLimits, Processes};
use purlin_pubsub::PubSub;
use purlin_replica::{Flags, Interest, ReplicaConfig, ReplicaSet, replica};

#[cfg(unix)]
use crate::programs;
use crate::{
    Config, DataDir, DevAuthority, Environment, LocalBuilder, Node, Sources, StartError,
    config::{Profile, Raw},
    high_water, local,
    node::{Parts, State},
};

/// Collects what a node starts from; made by [`Node::builder`].
///
/// Every setting here is a key of `purlin.toml` under its own name and with the same bounds; what
/// is not set has the default [`Key::all`](crate::config::Key::all) states. With
/// [`config`](NodeBuilder::config) a file is the base and what is set here wins over it.
#[derive(Debug, Default)]
pub struct NodeBuilder {
    settings: Sources,
    keeps_data: bool,
    dev: Option<DevAuthority>,
    identity: Option<(TlsIdentity, GossipKeys)>,
    http_addr: Option<SocketAddr>,
    discovery: Vec<Box<dyn Discovery>>,
    channels: Vec<ChannelSpec>,
    environment: Option<Environment>,
}

impl NodeBuilder {
    /// Starts from `config`: a node as `purlin.toml` describes it, data dir included.
    ///
    /// Call it first; what was set before is forgotten.
    #[must_use]
    pub fn config(self, config: &Config) -> Self {
        Self { settings: Sources::over(config), keeps_data: true, ..self }
    }

    /// The node's name, unique in its cluster: 1 to 63 letters, digits and inner `-`.
    #[must_use]
    pub fn name(self, name: impl Into<String>) -> Self {
        self.set("node.name", name)
    }

    /// Where the node keeps what must outlive the process, its last incarnation to begin with.
    /// Without one nothing is kept.
    #[must_use]
    pub fn data_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.keeps_data = true;
        // The one setting that may not be UTF-8; a config file could not name it either.
        let dir = dir.into();
        self.set("node.data_dir", dir.to_string_lossy())
    }

    /// The cluster's name; nodes of another are refused.
    #[must_use]
    pub fn cluster_name(self, name: impl Into<String>) -> Self {
        self.set("cluster.name", name)
    }

    /// Where to listen for other nodes, TCP and UDP alike; port 0 takes a free one.
    #[must_use]
    pub fn bind(self, addr: impl ToString) -> Self {
        self.set("cluster.bind", addr.to_string())
    }

    /// What to tell others to dial when it differs from where this node listens.
    #[must_use]
    pub fn advertise(self, addr: impl ToString) -> Self {
        self.set("cluster.advertise", addr.to_string())
    }

    /// Nodes to contact first, each `host:port`. Those that are not there yet are tried again for
    /// as long as this node runs.
    #[must_use]
    pub fn join<T: ToString>(self, seeds: impl IntoIterator<Item = T>) -> Self {
        self.set_list("cluster.seeds", seeds)
    }

    /// Finds other nodes in a way of your own, beside seeds, seed file and DNS.
    #[must_use]
    pub fn discovery(mut self, discovery: Box<dyn Discovery>) -> Self {
        self.discovery.push(discovery);
        self
    }

    /// Whom the others see: a failure domain.
    #[must_use]
    pub fn zone(self, zone: impl Into<String>) -> Self {
        self.set("node.zone", zone)
    }

    /// The wider place the zone is in.
    #[must_use]
    pub fn region(self, region: impl Into<String>) -> Self {
        self.set("node.region", region)
    }

    /// What this node is for.
    #[must_use]
    pub fn roles<T: ToString>(self, roles: impl IntoIterator<Item = T>) -> Self {
        self.set_list("node.roles", roles)
    }

    /// Further facts that others may select on.
    #[must_use]
    pub fn labels(mut self, labels: impl IntoIterator<Item = (String, String)>) -> Self {
        let labels: BTreeMap<_, _> = labels.into_iter().collect();
        let table = labels.into_iter().map(|(key, value)| (key, Raw::Text(value))).collect();
        self.settings.give("node.labels", Raw::Table(table), "NodeBuilder::labels");
        self
    }

    /// How long a drain waits for accepted work before the node leaves anyway.
    #[must_use]
    pub fn drain_deadline(self, within: Duration) -> Self {
        self.set("node.drain_deadline", format!("{}ms", within.as_millis()))
    }

    /// Any other key of `purlin.toml`, as in `set("limits.message_bytes_max", "4MiB")`.
    #[must_use]
    pub fn set(mut self, key: &str, value: impl Into<String>) -> Self {
        self.settings = self.settings.set(key, value, "NodeBuilder");
        self
    }

    /// Certificate, key and gossip key from an authority of this program or machine: for tests,
    /// examples and development. Unless an address was given, listens on a free loopback port.
    #[must_use]
    pub fn dev(mut self, authority: &DevAuthority) -> Self {
        self.dev = Some(authority.clone());
        self
    }

    /// Certificate, key and gossip keys that the program got elsewhere than from files.
    #[must_use]
    pub fn identity(mut self, tls: TlsIdentity, gossip: GossipKeys) -> Self {
        self.identity = Some((tls, gossip));
        self
    }

    /// Tells the other members where this node's HTTP API is.
    #[must_use]
    pub fn http_addr(mut self, addr: SocketAddr) -> Self {
        self.http_addr = Some(addr);
        self
    }

    /// Adds a channel with connections of its own. All nodes must have it.
    #[must_use]
    pub fn channel(mut self, spec: ChannelSpec) -> Self {
        self.channels.push(spec);
        self
    }

    /// Time, randomness, network and disk to run on. Default [`Environment::system`]; a simulator
    /// puts its own here, and the node then uses no other.
    #[must_use]
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = Some(environment);
        self
    }

    /// Stand alone, without a network: level 0 of the ladder. Name and data dir are kept.
    #[must_use]
    pub fn local(self) -> LocalBuilder {
        LocalBuilder {
            settings: self.settings,
            keeps_data: self.keeps_data,
            environment: self.environment,
        }
    }

    /// Starts the node and returns as soon as it listens; it then joins the cluster by itself.
    ///
    /// [`Cluster::wait_for_members`] is the barrier for programs that need the others. Must run
    /// inside a multi-threaded or single-threaded tokio runtime with time, and with IO when the
    /// network is the kernel's.
    ///
    /// # Errors
    /// [`StartError`], in one sentence; nothing is left running.
    ///
    /// # Cancel safety
    /// Dropping the future stops what was started.
    pub async fn start(mut self) -> Result<Node, StartError> {
        if self.dev.is_some() && !self.settings.is_given("cluster.bind") {
            self = self.set("cluster.bind", "127.0.0.1:0");
        }
        let config = self.settings.clone().load()?;
        let (tls, gossip) = match (self.identity, &self.dev) {
            (Some(identity), _) => identity,
            (None, Some(dev)) => dev.identity(&config.node.name)?,
            (None, None) => config.identity()?,
        };
        let environment = self.environment.unwrap_or_else(Environment::system);
        let (data, id) = local::identity(&config, self.keeps_data, &environment)?;
        let data = data.map(Arc::new);
        let Environment { clock, mut rng, network, .. } = environment;
        let hlc = high_water::clock(&id, data.as_ref(), &clock)?;
        let mut transport_config =
            transport_config(&config, id.clone(), tls, gossip, self.channels);
        transport_config.network = network;
        let transport = Transport::bind(transport_config, Arc::clone(&clock), rng.fork()).await?;
        let limits = ProcessLimits { processes_max: config.limits.processes_max };
        let processes = Processes::with_limits(id, Arc::clone(&clock), limits);
        // At once: the first frame of a peer that connects now must find its service.
        let rpc = Rpc::new(&transport);
        let pubsub = PubSub::start(&transport, local::pubsub_limits(&config))?;
        let remote = Remote::start(&transport, &processes);
        let discovery = discovery(&config, self.discovery, &clock, &mut rng)?;
        let cluster_config = cluster_config(&config, &transport, self.http_addr);
        let cluster = Cluster::start(cluster_config, transport.clone(), discovery, rng.fork())?;
        let interest = &config.replica.interest;
        let state = state(&transport, &hlc, &clock, &mut rng, data.as_deref(), interest)?;
        cluster.add_intake(Arc::new(remote.clone()));
        let rpc = MembersRpc::new(cluster.clone(), transport.clone(), rpc);
        let cached = ReplicaConfig::new(replica::CACHES, "caches");
        let cached = ReplicaSet::start(cached, &transport, Arc::clone(&hlc), rng.fork())?;
        for set in [&state.crdt, &state.ephemeral, state.flags.set(), &cached] {
            set.follow(&cluster);
        }
        let caches = Caches::start(
            cluster.clone(),
            rpc.clone(),
            cached,
            Arc::clone(&hlc),
            Arc::clone(&clock),
            rng.fork(),
        )?;
        let rows = DistConfig::replica();
        let rows = ReplicaSet::start(rows, &transport, Arc::clone(&hlc), rng.fork())?;
        let ground = Ground {
            cluster: cluster.clone(),
            rpc: rpc.clone(),
            remote: remote.clone(),
            processes: processes.clone(),
            rows,
        };
        let dist = Dist::start(config.dist, ground, rng.fork())?;
        let mut records = Supervisors::replica();
        if let Some(data) = &data {
            records.dir = Some(data.path().join(records.name));
            records.disk = Arc::clone(data.disk());
        }
        let footing = Footing {
            cluster: cluster.clone(),
            rpc: rpc.clone(),
            remote: remote.clone(),
            processes: processes.clone(),
            records: ReplicaSet::start(records, &transport, Arc::clone(&hlc), rng.fork())?,
        };
        let supervisors = Supervisors::start(footing)?;
        #[cfg(unix)]
        let programs = {
            let at = self.http_addr.map(programs::url);
            let host = programs::host(&config, transport.node(), &clock, data.as_deref(), at)?;
            programs::take_part(&config, &supervisors, &rpc, transport.node(), &clock, host)?
        };
        #[cfg(not(unix))]
        if config.exec.enabled {
            return Err(StartError::Exec("programs run on Unix only".to_owned()));
        }
        let parts = Parts {
            config,
            clock,
            transport,
            rpc,
            processes,
            remote,
            cluster,
            pubsub,
            hlc,
            state,
            caches,
            dist,
            supervisors,
            #[cfg(unix)]
            programs,
            _data: data,
        };
        Ok(Node::assemble(parts))
    }

    fn set_list<T: ToString>(mut self, key: &str, items: impl IntoIterator<Item = T>) -> Self {
        let items = items.into_iter().map(|item| Raw::Text(item.to_string())).collect();
        self.settings.give(key, Raw::List(items), "NodeBuilder");
        self
    }
}

/// The replica sets every node has: in step with whoever is a peer.
fn state(
    transport: &Transport,
    hlc: &Arc<Hlc>,
    clock: &Arc<dyn Clock>,
    rng: &mut Rng,
    data: Option<&DataDir>,
    interest: &Interest,
) -> Result<State, StartError> {
    let mut start = |service, name, durable: bool| {
        let mut config = ReplicaConfig::new(service, name);
        if service != replica::FLAGS {
            config.interest = interest.clone();
        }
        if let Some(data) = data.filter(|_| durable) {
            config.dir = Some(data.path().join(name));
            config.disk = Arc::clone(data.disk());
        }
        ReplicaSet::start(config, transport, Arc::clone(hlc), rng.fork())
    };
    let flags = start(replica::FLAGS, "flags", true)?;
    let node = transport.node().name.clone();
    Ok(State {
        crdt: start(replica::CRDT, "crdt", true)?,
        ephemeral: start(replica::EPHEMERAL, "ephemeral", false)?,
        flags: Flags::new(flags, Arc::clone(clock), node),
    })
}

fn transport_config(
    config: &Config,
    id: NodeId,
    tls: TlsIdentity,
    gossip: GossipKeys,
    own_channels: Vec<ChannelSpec>,
) -> TransportConfig {
    let bounds = &config.limits;
    let mut transport =
        TransportConfig::new(config.cluster.name.clone(), id, config.cluster.bind, tls, gossip);
    transport.advertise = config.cluster.advertise;
    transport.limits = Limits {
        frame_bytes_max: u32::try_from(bounds.frame_bytes_max)
            .expect("at most 16 MiB: its key says so"),
        peers_max: bounds.peers_max,
        ..Limits::default()
    };
    for channel in &mut transport.channels {
        channel.backlog_bytes_max = channel.backlog_bytes_max.max(bounds.backlog_bytes_max);
        channel.credit_bytes =
            u32::try_from(bounds.credit_bytes).expect("at most 1 GiB: its key says so");
        // Room for a message with its topic, headers and trace beside the payload itself.
        channel.payload_bytes_max =
            channel.payload_bytes_max.max(bounds.message_bytes_max + MESSAGE_HEAD_BYTES);
    }
    transport.channels.extend(own_channels);
    transport
}

/// What travels with a message beside its payload, at most: topic, headers, ids, trace.
const MESSAGE_HEAD_BYTES: usize = 64 << 10;

fn cluster_config(
    config: &Config,
    transport: &Transport,
    http_addr: Option<SocketAddr>,
) -> ClusterConfig {
    let mut meta = Meta::new(transport.advertise());
    // Bound to every interface, it is reached where the cluster port is.
    meta.http_addr = http_addr.map(|addr| match addr.ip().is_unspecified() {
        true => SocketAddr::new(transport.advertise().ip(), addr.port()),
        false => addr,
    });
    meta.version = env!("CARGO_PKG_VERSION").to_owned();
    meta.zone.clone_from(&config.node.zone);
    meta.region.clone_from(&config.node.region);
    meta.roles = config.node.roles.iter().cloned().collect();
    meta.labels = config.node.labels.clone();
    let mut cluster = ClusterConfig::new(meta);
    let preset = match config.cluster.profile {
        Profile::Lan => swim::Config::lan(),
        Profile::Wan => swim::Config::wan(),
    };
    cluster.swim = preset.build().expect("presets are within their bounds");
    cluster
}

fn discovery(
    config: &Config,
    mut sources: Vec<Box<dyn Discovery>>,
    clock: &Arc<dyn Clock>,
    rng: &mut Rng,
) -> Result<Box<dyn Discovery>, StartError> {
    let cluster = &config.cluster;
    if !cluster.seeds.is_empty() {
        let seeds =
            StaticSeeds::parse(&cluster.seeds, Schedule::default(), Arc::clone(clock), rng.fork())?;
        sources.push(Box::new(seeds));
    }
    if let Some(path) = &cluster.seed_file {
        let file =
            SeedFile::watch(path.clone(), Schedule::default(), Arc::clone(clock), rng.fork());
        sources.push(Box::new(file));
    }
    for name in &cluster.dns {
        let name = name.parse::<DnsName>()?;
        sources.push(Box::new(DnsSeeds::new(
            name,
            &DnsConfig::default(),
            Arc::clone(clock),
            rng.fork(),
        )?));
    }
    Ok(Box::new(Combined::new(sources)))
}
