//! Real `purlin node` processes, one on each host of a [`Network`].

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::members::{History, Sample, name};
use crate::network::Network;

/// How often each node is asked. Far below every promise that is timed here.
const EVERY: Duration = Duration::from_millis(100);

/// Patience with a start and with a settling on a machine that does other things as well.
const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster over a network whose cables can be cut.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) network: Network,
    pub(crate) size: usize,
    nodes: Vec<Child>,
    folder: TempDir,
}

impl Cluster {
    /// Starts as many nodes as the network has hosts and waits until all see all alive.
    pub(crate) fn start(network: Network, size: usize) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut cluster = Self { network, size, nodes: Vec::new(), folder };
        make_keys(cluster.folder.path(), size);
        fs::write(cluster.folder.path().join("token"), "token-of-the-namespaces\n")
            .expect("a token file");
        for host in 1..=size {
            let node = cluster.spawn(host);
            cluster.nodes.push(node);
        }
        cluster.wait_until_all_alive(PATIENCE);
        cluster
    }

    /// Waits until every node calls every node alive, and tells how long that took.
    ///
    /// # Panics
    /// When it takes longer than `within`, with everything that was said meanwhile.
    pub(crate) fn wait_until_all_alive(&self, within: Duration) -> Duration {
        let members = self.size;
        self.wait_until("everybody calls everybody alive", within, |latest| {
            latest.iter().all(|sample| sample.all_alive(members))
        })
    }

    /// Waits until the latest samples, one of each node, satisfy `holds`.
    ///
    /// # Panics
    /// As [`Cluster::wait_until_all_alive`].
    pub(crate) fn wait_until(
        &self,
        what: &str,
        within: Duration,
        holds: impl Fn(&[Sample]) -> bool,
    ) -> Duration {
        let started = Instant::now();
        let mut history = History::default();
        let mut latest: Vec<Option<Sample>> = vec![None; self.size];
        let watch = self.watch();
        while started.elapsed() < within {
            let Ok(sample) = watch.samples.recv_timeout(EVERY) else {
                continue;
            };
            latest[sample.host - 1] = Some(sample.clone());
            history.samples.push(sample);
            let known: Vec<Sample> = latest.iter().flatten().cloned().collect();
            if known.len() == self.size && holds(&known) {
                return started.elapsed();
            }
        }
        panic!(
            "not within {within:?}: {what}\nwhat the nodes said:\n{}\n{}",
            history.told(started),
            self.logs()
        );
    }

    /// The incarnation of every node, as the first one tells it.
    pub(crate) fn lives(&self) -> BTreeMap<String, u64> {
        let sample = self.network.on_host(1, || Sample::take(1, api())).join();
        let said = sample.expect("the thread only asks").said.expect("n1 answers");
        said.into_iter().map(|(name, (_, incarnation))| (name, incarnation)).collect()
    }

    /// Lets time pass and tells everything that was said.
    pub(crate) fn observe(&self, period: Duration) -> History {
        let started = Instant::now();
        let mut history = History::default();
        let watch = self.watch();
        while let Some(left) = period.checked_sub(started.elapsed()) {
            if let Ok(sample) = watch.samples.recv_timeout(left) {
                history.samples.push(sample);
            }
        }
        history
    }

    /// What `purlin` with `arguments` says to the node of a host, if it is content.
    pub(crate) fn ask(&self, host: usize, arguments: &[&str]) -> Option<String> {
        let output = self
            .network
            .command(host, binary())
            .args(["--node", &format!("http://{}", api()), "--token-file"])
            .arg(self.folder.path().join("token"))
            .args(arguments)
            .output()
            .expect("the purlin binary");
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The end of each node's log, for a failing test's output.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for host in 1..=self.size {
            let log = fs::read_to_string(self.log(host)).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = lines[lines.len().saturating_sub(40)..].join("\n");
            text.push_str(&format!("--- log of n{host}\n{tail}\n"));
        }
        text
    }

    /// Begins to ask every node, each from its own host.
    fn watch(&self) -> Watch {
        let (told, samples) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (1..=self.size)
            .map(|host| {
                let (told, stop) = (told.clone(), Arc::clone(&stop));
                self.network.on_host(host, move || {
                    while !stop.load(Ordering::Relaxed) {
                        if told.send(Sample::take(host, api())).is_err() {
                            break;
                        }
                        thread::sleep(EVERY);
                    }
                })
            })
            .collect();
        Watch { samples, stop, threads }
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self, host: usize) {
        let node = &mut self.nodes[host - 1];
        node.kill().expect("the node runs");
        node.wait().expect("our child");
    }

    /// Starts the node of a host again, on whatever its disk still has.
    pub(crate) fn restart(&mut self, host: usize) {
        self.nodes[host - 1] = self.spawn(host);
    }

    /// Takes the data of a node that does not run.
    pub(crate) fn lose_disk(&self, host: usize) {
        let data = self.folder.path().join(name(host)).join("data");
        fs::remove_dir_all(data).expect("the node kept data there");
    }

    fn spawn(&self, host: usize) -> Child {
        let folder = self.folder.path().join(name(host));
        fs::create_dir_all(&folder).expect("a folder for the node");
        let config = folder.join("purlin.toml");
        let (address, seed) = (self.network.address(host), self.network.address(1));
        let second_seed = self.network.address(2);
        fs::write(
            &config,
            format!(
                "[node]\nname = \"{name}\"\ndata_dir = \"data\"\n\
                 [cluster]\nbind = \"{address}:7400\"\nseeds = [\"{seed}:7400\", \"{second_seed}:7400\"]\n\
                 [http]\nbind = \"{api}\"\ntoken_file = \"../token\"\n\
                 [exec]\nenabled = true\nsplit = \"keep-majority\"\n\
                 [tls]\nca = \"../ca/ca.pem\"\ncert = \"node.pem\"\nkey = \"node.key\"\n\
                 [gossip]\nkey_file = \"../gossip.key\"\n",
                name = name(host),
                api = api(),
            ),
        )
        .expect("a config file");
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.log(host))
            .expect("a log file");
        let errors = log.try_clone().expect("the log file twice");
        self.network
            .command(host, binary())
            .args(["node", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .expect("a node process")
    }

    fn log(&self, host: usize) -> PathBuf {
        self.folder.path().join(name(host)).join("log")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // Already gone, when a node died in the test.
            node.kill().ok();
            node.wait().ok();
        }
    }
}

/// Threads that ask the nodes; they end when this is dropped.
struct Watch {
    samples: mpsc::Receiver<Sample>,
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there was printed there.
            thread.join().ok();
        }
    }
}

/// Where every node serves its API: on the loopback of its own host.
pub(crate) fn api() -> SocketAddr {
    "127.0.0.1:4900".parse().expect("an address")
}

fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_purlin")
}

/// An authority, a certificate for each node and a key for datagrams, as an operator makes them.
fn make_keys(folder: &Path, size: usize) {
    let cert = |arguments: &[&str]| {
        let output = Command::new(binary())
            .current_dir(folder)
            .arg("cert")
            .args(arguments)
            .output()
            .expect("the purlin binary");
        assert!(output.status.success(), "purlin cert {arguments:?}: {output:?}");
    };
    cert(&["new-ca", "--out", "ca"]);
    cert(&["gossip-key", "--out", "gossip.key"]);
    for host in 1..=size {
        let name = name(host);
        cert(&["issue", &name, "--ca", "ca", "--out", &name]);
    }
}
