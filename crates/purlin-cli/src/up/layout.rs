//! The directory of a local cluster: `DIR/{admin.token,ca/}` and `DIR/nI/`.
//!
//! What makes the cluster itself (authority, gossip key, token, data) is made once and kept; what
//! follows from the command line (ports, certificates) is written on every start.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use purlin::DevAuthority;

use super::{Planned, absolute};
use crate::{args::UpArgs, exit::Failure, files, state};

/// A log longer than this is set aside when its node starts; one old log is kept.
const LOG_BYTES_MAX: u64 = 16 << 20;
const CLUSTER_NAME: &str = "local";
/// How much of a log is shown when its node did not start.
const LAST_LINES: usize = 8;

/// The directory, ready for its nodes to start; held by this process.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) dir: PathBuf,
    pub(super) token: String,
    pub(super) token_file: PathBuf,
    pub(super) nodes: Vec<NodeFiles>,
    // Held for the lock on it.
    _lock: File,
}

/// The files and addresses of one node.
#[derive(Debug, Clone)]
pub(super) struct NodeFiles {
    pub(super) name: String,
    pub(super) dir: PathBuf,
    pub(super) log: PathBuf,
    pub(super) http_addr: SocketAddr,
    pub(super) cluster_addr: SocketAddr,
}

impl Layout {
    /// Makes or completes the directory and takes hold of it.
    pub(super) fn prepare(dir: &Path, plan: &[Planned], args: &UpArgs) -> Result<Self, Failure> {
        let dir = absolute(dir);
        let refused = |error: io::Error| {
            Failure::NotDone(format!("directory {} (--data) is not usable: {error}", dir.display()))
        };
        files::private_dir(&dir).map_err(refused)?;
        let lock = hold(&dir)?;
        let authority = DevAuthority::in_dir(dir.join("ca")).map_err(Failure::not_done)?;
        let token_file = dir.join("admin.token");
        let token = ensure_token(&token_file).map_err(refused)?;
        let mut nodes = Vec::with_capacity(plan.len());
        for node in plan {
            let files = NodeFiles::of(&dir, node);
            files::private_dir(&files.dir).map_err(refused)?;
            authority.store_for(&node.name, &files.dir).map_err(Failure::not_done)?;
            let config = files.config(plan, args);
            files::write(&files.dir.join("purlin.toml"), config.as_bytes(), files::Access::Private)
                .map_err(refused)?;
            nodes.push(files);
        }
        Ok(Self { dir, token, token_file, nodes, _lock: lock })
    }
}

/// Takes the directory for this process, or says who has it.
fn hold(dir: &Path) -> Result<File, Failure> {
    let path = dir.join("up.lock");
    let refused = |error: io::Error| {
        Failure::NotDone(format!("directory {} (--data) is not usable: {error}", dir.display()))
    };
    let mut lock = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(refused)?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            // Who holds it is a courtesy; that somebody does is the point.
            let holder = lock
                .read_to_string(&mut pid)
                .map(|_| format!(" (pid {})", pid.trim()))
                .unwrap_or_default();
            return Err(Failure::NotDone(format!(
                "the cluster in {} is already running{holder}: stop it, or choose another directory with --data",
                dir.display()
            )));
        }
        Err(TryLockError::Error(error)) => return Err(refused(error)),
    }
    lock.set_len(0)
        .and_then(|()| lock.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(lock, "{}", std::process::id()))
        .map_err(refused)?;
    Ok(lock)
}

fn ensure_token(path: &Path) -> io::Result<String> {
    match fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) => fresh_token(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => fresh_token(path),
        Err(error) => Err(error),
    }
}

fn fresh_token(path: &Path) -> io::Result<String> {
    let token = files::random_hex::<32>();
    files::write(path, format!("{token}\n").as_bytes(), files::Access::Private)?;
    Ok(token)
}

impl NodeFiles {
    fn of(dir: &Path, node: &Planned) -> Self {
        let here = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let dir = dir.join(&node.name);
        Self {
            name: node.name.clone(),
            log: dir.join("log"),
            dir,
            http_addr: here(node.http_port),
            cluster_addr: here(node.cluster_port),
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.http_addr)
    }

    /// Variables that would give every node the identity of one.
    pub(super) fn own_variables(&self) -> impl Iterator<Item = String> {
        let own = [
            "node.name",
            "node.data_dir",
            "node.zone",
            "cluster.name",
            "cluster.bind",
            "cluster.advertise",
            "cluster.seeds",
        ];
        let files =
            ["http.bind", "http.token_file", "tls.ca", "tls.cert", "tls.key", "gossip.key_file"];
        let keys = purlin::config::Key::all().iter();
        keys.filter(move |key| own.iter().chain(&files).any(|own| *own == key.path()))
            .map(purlin::config::Key::env)
    }

    fn config(&self, plan: &[Planned], args: &UpArgs) -> String {
        let seeds: Vec<_> = plan
            .iter()
            .filter(|node| node.name != self.name)
            .map(|node| format!("\"127.0.0.1:{}\"", node.cluster_port))
            .collect();
        let mut log = String::new();
        if let Some(level) = &args.log.log_level {
            log.push_str(&format!("level = {}\n", toml::Value::String(level.clone())));
        }
        if let Some(format) = args.log.log_format {
            log.push_str(&format!("format = \"{}\"\n", format.as_str()));
        }
        format!(
            "\
# Written by `purlin up` on every start, so edits here do not last.
# Run this node by itself with: purlin node --data {dir}
# All keys with their defaults:  purlin config show --data {dir}

[node]
name = \"{name}\"
data_dir = \"data\"
zone = \"{zone}\"

[cluster]
name = \"{CLUSTER_NAME}\"
bind = \"{cluster_addr}\"
seeds = [{seeds}]

[http]
bind = \"{http_addr}\"
token_file = \"../admin.token\"

[tls]
ca = \"../ca/ca.pem\"
cert = \"node.pem\"
key = \"node.key\"

[gossip]
key_file = \"../ca/gossip.key\"

[exec]
enabled = true

[log]
{log}",
            dir = self.dir.display(),
            name = self.name,
            // One machine is one failure domain; the zone is there so that zones can be seen.
            zone = format_args!("zone-{}", self.name.trim_start_matches('n')),
            cluster_addr = self.cluster_addr,
            http_addr = self.http_addr,
            seeds = seeds.join(", "),
        )
    }

    /// Whether a process runs this node, whoever started it.
    pub(super) fn is_running(&self) -> bool {
        let pid =
            fs::read_to_string(self.dir.join("pid")).ok().and_then(|text| text.trim().parse().ok());
        pid.is_some_and(state::is_running)
    }

    pub(super) fn keep_log_bounded(&self) -> io::Result<()> {
        match fs::metadata(&self.log) {
            Ok(log) if log.len() > LOG_BYTES_MAX => {
                fs::rename(&self.log, self.log.with_extension("old"))
            }
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The end of the log, for a node that did not start.
    pub(super) fn last_words(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<_> = text.lines().collect();
        let shown = lines[lines.len().saturating_sub(LAST_LINES)..]
            .iter()
            .map(|line| format!("  {line}\n"));
        format!("{}  (from {})", shown.collect::<String>(), self.log.display())
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    fn args() -> UpArgs {
        match Cli::try_parse_from(["purlin", "up", "--log-level", "debug", "--log-format", "json"])
            .unwrap()
            .command
        {
            Command::Up(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn plan() -> Vec<Planned> {
        vec![
            Planned { name: "n1".into(), http_port: 5001, cluster_port: 6001 },
            Planned { name: "n2".into(), http_port: 5002, cluster_port: 6002 },
        ]
    }

    #[test]
    fn what_up_writes_is_a_valid_config() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::prepare(dir.path(), &plan(), &args()).unwrap();
        let config =
            purlin::Sources::new().file(layout.nodes[1].dir.join("purlin.toml")).load().unwrap();
        config.check().unwrap();
        assert_eq!(config.node.name.as_str(), "n2");
        assert_eq!(config.cluster.seeds, ["127.0.0.1:6001"]);
        assert_eq!(config.http.bind, layout.nodes[1].http_addr);
        assert_eq!(config.log.level, "debug");
        assert!(config.exec.enabled);
        assert_eq!(config.node.data_dir, layout.nodes[1].dir.join("data"));
    }

    #[test]
    fn a_second_start_keeps_authority_key_and_token() {
        let dir = tempfile::tempdir().unwrap();
        let first = Layout::prepare(dir.path(), &plan(), &args()).unwrap();
        let keep = |name: &str| fs::read(dir.path().join(name)).unwrap();
        let before = [keep("ca/ca.pem"), keep("ca/gossip.key"), keep("admin.token")];
        let Err(Failure::NotDone(text)) = Layout::prepare(dir.path(), &plan(), &args()) else {
            panic!("held twice")
        };
        assert!(text.contains("already running (pid"), "{text}");
        drop(first);
        Layout::prepare(dir.path(), &plan(), &args()).unwrap();
        assert_eq!(before, [keep("ca/ca.pem"), keep("ca/gossip.key"), keep("admin.token")]);
    }

    #[test]
    fn secrets_are_for_their_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        drop(Layout::prepare(dir.path(), &plan(), &args()).unwrap());
        for name in ["admin.token", "ca/gossip.key", "ca/ca.key", "n1/node.key"] {
            let mode = fs::metadata(dir.path().join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "{name} has mode {mode:o}");
        }
    }
}
