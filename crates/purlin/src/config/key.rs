use std::time::Duration;

/// A key of `purlin.toml`: its name, the shape and bounds of its value, and its default.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Key {
    /// The table it is in.
    pub section: &'static str,
    /// Its name in that table.
    pub name: &'static str,
    /// Shape and bounds.
    pub kind: Kind,
    /// The default as it would be written in the environment; `None` means unset.
    pub default: Option<&'static str>,
    /// What it does, what it trades and where the default comes from.
    pub doc: &'static str,
}

/// The shape of a value and its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// A node's name: 1 to 63 letters, digits and inner `-`.
    NodeName,
    /// A cluster's name, same alphabet.
    ClusterName,
    /// Any text that is not empty.
    Text,
    /// A path; relative ones start at the config file's directory.
    Path,
    /// `IP:PORT`, or `localhost:PORT`.
    Address,
    /// A list of texts; in the environment separated by commas.
    List,
    /// A list of `HOST:PORT`.
    HostPorts,
    /// A table of texts; in the environment `key=value,key=value`.
    Labels,
    /// A whole number.
    Count {
        /// Smallest allowed.
        min: usize,
        /// Largest allowed.
        max: usize,
    },
    /// Bytes: a whole number, or text with `KiB`, `MiB` or `GiB`.
    Bytes {
        /// Smallest allowed.
        min: usize,
        /// Largest allowed.
        max: usize,
    },
    /// Text with a unit: `250ms`, `5s`, `2m`.
    Duration {
        /// Shortest allowed.
        min: Duration,
        /// Longest allowed.
        max: Duration,
    },
    /// One of these words.
    Choice(&'static [&'static str]),
    /// `true` or `false`.
    Switch,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

const KEYS: &[Key] = &[
    Key {
        section: "node",
        name: "name",
        kind: Kind::NodeName,
        default: None,
        doc: "unique in the cluster; required; the certificate's DNS name",
    },
    Key {
        section: "node",
        name: "data_dir",
        kind: Kind::Path,
        default: Some("data"),
        doc: "durable state; one process at a time",
    },
    Key {
        section: "node",
        name: "zone",
        kind: Kind::Text,
        default: None,
        doc: "failure domain, told to all members",
    },
    Key {
        section: "node",
        name: "region",
        kind: Kind::Text,
        default: None,
        doc: "the place the zone is in, told to all members",
    },
    Key {
        section: "node",
        name: "roles",
        kind: Kind::List,
        default: None,
        doc: "what this node is for, told to all members",
    },
    Key {
        section: "node",
        name: "labels",
        kind: Kind::Labels,
        default: None,
        doc: "further facts, told to all members",
    },
    Key {
        section: "node",
        name: "worker_threads",
        kind: Kind::Count { min: 1, max: 256 },
        default: Some("2"),
        doc: "threads that run tasks; more help only when cores are idle and one is busy",
    },
    Key {
        section: "node",
        name: "drain_deadline",
        kind: Kind::Duration { min: Duration::ZERO, max: Duration::from_secs(3600) },
        default: Some("20s"),
        doc: "longest wait for accepted work before leaving anyway; below the 30 s that orchestrators usually grant",
    },
    Key {
        section: "cluster",
        name: "name",
        kind: Kind::ClusterName,
        default: Some("purlin"),
        doc: "nodes of another cluster are refused",
    },
    Key {
        section: "cluster",
        name: "bind",
        kind: Kind::Address,
        default: Some("127.0.0.1:7400"),
        doc: "TCP and UDP address for peers",
    },
    Key {
        section: "cluster",
        name: "advertise",
        kind: Kind::Address,
        default: None,
        doc: "address told to peers when it differs from bind",
    },
    Key {
        section: "cluster",
        name: "seeds",
        kind: Kind::HostPorts,
        default: None,
        doc: "nodes to contact first; dead ones are retried",
    },
    Key {
        section: "cluster",
        name: "seed_file",
        kind: Kind::Path,
        default: None,
        doc: "watched file with one HOST:PORT a line",
    },
    Key {
        section: "cluster",
        name: "dns",
        kind: Kind::List,
        default: None,
        doc: "names resolved for seeds: HOST:PORT (A, AAAA) or srv:NAME",
    },
    Key {
        section: "cluster",
        name: "profile",
        kind: Kind::Choice(&["lan", "wan"]),
        default: Some("lan"),
        doc: "pace of failure detection",
    },
    Key {
        section: "http",
        name: "bind",
        kind: Kind::Address,
        default: Some("127.0.0.1:4900"),
        doc: "API and console",
    },
    Key {
        section: "http",
        name: "token_file",
        kind: Kind::Path,
        default: None,
        doc: "bearer token, first line of the file; required off loopback",
    },
    Key {
        section: "tls",
        name: "ca",
        kind: Kind::Path,
        default: None,
        doc: "PEM of the authority that signed every node",
    },
    Key {
        section: "tls",
        name: "cert",
        kind: Kind::Path,
        default: None,
        doc: "PEM certificate of this node",
    },
    Key {
        section: "tls",
        name: "key",
        kind: Kind::Path,
        default: None,
        doc: "PEM private key of this node",
    },
    Key {
        section: "gossip",
        name: "key_file",
        kind: Kind::Path,
        default: None,
        doc: "hexadecimal keys, one a line: the first sends, all receive",
    },
    Key {
        section: "limits",
        name: "message_bytes_max",
        kind: Kind::Bytes { min: KIB, max: 64 * MIB },
        default: Some("1MiB"),
        doc: "largest message published or called with; at most a quarter of backlog_bytes_max (guess)",
    },
    Key {
        section: "limits",
        name: "frame_bytes_max",
        kind: Kind::Bytes { min: KIB, max: 16 * MIB },
        default: Some("256KiB"),
        doc: "longer messages travel in pieces of this size, so that short ones need not wait (guess)",
    },
    Key {
        section: "limits",
        name: "backlog_bytes_max",
        kind: Kind::Bytes { min: MIB, max: 1024 * MIB },
        default: Some("16MiB"),
        doc: "unwritten bytes per connection before sends answer Full (guess)",
    },
    Key {
        section: "limits",
        name: "credit_bytes",
        kind: Kind::Bytes { min: 64 * KIB, max: 1024 * MIB },
        default: Some("8MiB"),
        doc: "bytes a peer may send per connection before they are consumed (guess)",
    },
    Key {
        section: "limits",
        name: "peers_max",
        kind: Kind::Count { min: 1, max: 65_536 },
        default: Some("1024"),
        doc: "other nodes connected at once; more are refused",
    },
    Key {
        section: "limits",
        name: "processes_max",
        kind: Kind::Count { min: 1, max: 100_000_000 },
        default: Some("1000000"),
        doc: "processes alive at once; an idle one costs about 2 KB",
    },
    Key {
        section: "replica",
        name: "interest",
        kind: Kind::List,
        default: None,
        doc: "beginnings of the names whose state and ephemeral values this node keeps; unset: all",
    },
    Key {
        section: "dist",
        name: "entries_max",
        kind: Kind::Count { min: 1, max: 100_000_000 },
        default: Some("1000000"),
        doc: "names, memberships and presences of this node, each kind by itself; one costs about 1.5 KB on every node",
    },
    Key {
        section: "dist",
        name: "presences_per_key_max",
        kind: Kind::Count { min: 1, max: 100_000_000 },
        default: Some("1000"),
        doc: "presences of one key in one topic, so that one client cannot use up the place of all (guess)",
    },
    Key {
        section: "dist",
        name: "metadata_bytes_max",
        kind: Kind::Bytes { min: 0, max: purlin_dist::row::METADATA_BYTES_LIMIT },
        default: Some("4KiB"),
        doc: "metadata of one entry (guess)",
    },
    Key {
        section: "dist",
        name: "events_max",
        kind: Kind::Count { min: 1, max: 10_000_000 },
        default: Some("16384"),
        doc: "changes kept for watchers that come later or fall behind (guess)",
    },
    Key {
        section: "dist",
        name: "scopes_max",
        kind: Kind::Count { min: 1, max: 1_000_000 },
        default: Some("1024"),
        doc: "scopes of names, and of groups, before this node may open no other (guess)",
    },
    Key {
        section: "dist",
        name: "unknown_for",
        kind: Kind::Duration { min: Duration::from_secs(1), max: Duration::from_secs(3600) },
        default: Some("60s"),
        doc: "how long entries of a node that this one has not met are kept (guess)",
    },
    Key {
        section: "exec",
        name: "enabled",
        kind: Kind::Switch,
        default: Some("false"),
        doc: "whether this node runs programs for whoever has the token; they run as its own user",
    },
    Key {
        section: "exec",
        name: "cgroup",
        kind: Kind::Path,
        default: None,
        doc: "directory of a cgroup v2 for limits of programs; it and its controllers must be the node's to use. \
              Unset: memory is limited by address space, processor time cannot be",
    },
    Key {
        section: "exec",
        name: "split",
        kind: Kind::Text,
        default: Some("none"),
        doc: "which side of a cut runs programs, the same on all nodes: none (all sides), keep-majority, static-quorum=N, \
              keep-oldest, keep-oldest-even-alone or down-all",
    },
    Key {
        section: "exec",
        name: "voters",
        kind: Kind::List,
        default: None,
        doc: "names of the nodes that exec.split counts, whether they are seen or not; unset: the members last agreed on",
    },
    Key {
        section: "exec",
        name: "log_file_bytes_max",
        kind: Kind::Bytes { min: 64 * KIB, max: 1024 * MIB },
        default: Some("4MiB"),
        doc: "output of one program per file, of which 4 are kept (guess)",
    },
    Key {
        section: "log",
        name: "level",
        kind: Kind::Text,
        default: Some("info"),
        doc: "level or filter, e.g. info,purlin_net=debug",
    },
    Key {
        section: "log",
        name: "format",
        kind: Kind::Choice(&["text", "json"]),
        default: Some("text"),
        doc: "lines for people or objects for machines",
    },
];

impl Key {
    /// Every key there is, by section.
    #[must_use]
    pub const fn all() -> &'static [Self] {
        KEYS
    }

    /// `section.key`, as error messages and [`Sources::set`](super::Sources::set) name it.
    #[must_use]
    pub fn path(&self) -> String {
        format!("{}.{}", self.section, self.name)
    }

    /// The environment variable that overrides it: `PURLIN_SECTION__KEY`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("PURLIN_{}__{}", self.section.to_uppercase(), self.name.to_uppercase())
    }

    pub(super) fn find(path: &str) -> Option<&'static Self> {
        let (section, name) = path.split_once('.')?;
        KEYS.iter().find(|key| key.section == section && key.name == name)
    }

    /// Says what the writer of an unknown key most likely meant.
    pub(super) fn suggest(unknown: &str) -> String {
        let (section, name) = unknown.split_once('.').unwrap_or((unknown, ""));
        // A key put into the wrong table is right by its name and resembles nothing by its path.
        let misplaced = KEYS.iter().find(|key| key.name == name).map(Self::path);
        let nearest =
            misplaced.or_else(|| nearest(unknown, KEYS.iter().map(Self::path))).or_else(|| {
                let siblings = KEYS.iter().filter(|key| key.section == section);
                nearest(name, siblings.map(|key| key.name.to_owned()))
                    .map(|key| format!("{section}.{key}"))
            });
        match nearest {
            Some(nearest) => format!("is unknown; did you mean {nearest}?"),
            None if KEYS.iter().any(|key| key.section == section) => {
                let known: Vec<_> =
                    KEYS.iter().filter(|key| key.section == section).map(|key| key.name).collect();
                format!("is unknown; [{section}] knows {}", known.join(", "))
            }
            None => {
                let mut known: Vec<_> = KEYS.iter().map(|key| key.section).collect();
                known.dedup();
                format!("is unknown; sections are {}", known.join(", "))
            }
        }
    }

    /// As [`Key::suggest`], for the name of a table.
    pub(super) fn suggest_section(unknown: &str) -> String {
        let mut known: Vec<_> = KEYS.iter().map(|key| key.section).collect();
        known.dedup();
        if let Some(key) = KEYS.iter().find(|key| key.name == unknown) {
            return format!("is unknown at the top; did you mean {}?", key.path());
        }
        match nearest(unknown, known.iter().map(|&section| section.to_owned())) {
            Some(nearest) => format!("is unknown; did you mean [{nearest}]?"),
            None => format!("is unknown; sections are {}", known.join(", ")),
        }
    }
}

fn nearest(word: &str, known: impl Iterator<Item = String>) -> Option<String> {
    known
        .map(|candidate| (strsim::jaro_winkler(word, &candidate), candidate))
        // Below this two unrelated words of one section already look alike (tried on all pairs).
        .filter(|(likeness, _)| *likeness > 0.85)
        .max_by(|(one, _), (other, _)| one.total_cmp(other))
        .map(|(_, candidate)| candidate)
}

impl Kind {
    pub(super) fn wants(self) -> String {
        match self {
            Self::NodeName | Self::ClusterName => {
                "a name of 1 to 63 letters, digits and inner '-'".to_owned()
            }
            Self::Text => "text that is not empty".to_owned(),
            Self::Path => "a path".to_owned(),
            Self::Address => "an address such as \"127.0.0.1:7400\"".to_owned(),
            Self::List => "a list of texts".to_owned(),
            Self::HostPorts => "a list of \"host:port\"".to_owned(),
            Self::Labels => "a table of texts".to_owned(),
            Self::Count { min, max } => format!("a whole number from {min} to {max}"),
            Self::Bytes { min, max } => {
                format!("bytes from {min} to {max}, for instance \"64KiB\"")
            }
            Self::Duration { min, max } => {
                format!("a duration from {min:?} to {max:?}, for instance \"250ms\"")
            }
            Self::Choice(words) => format!("one of {}", words.join(", ")),
            Self::Switch => "true or false".to_owned(),
        }
    }
}
