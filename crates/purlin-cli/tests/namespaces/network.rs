//! A small real network: one namespace per host, all on a bridge in a namespace of its own.
//!
//! Faults are nftables rules on the *receiving* host: dropped on the way out, a datagram would come
//! back to its sender as an error, which no real network does.

use std::fs::File;
use std::path::Path;
use std::process::{self, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns};

/// Set by whoever knows that namespaces work here: then a test may not skip itself.
const REQUIRED: &str = "PURLIN_NAMESPACES_REQUIRED";

/// Hosts joined by a bridge; everything is removed when dropped, whatever the test did.
#[derive(Debug)]
pub(crate) struct Network {
    /// Common beginning of the namespaces' names; carries our pid, so that leftovers of a killed
    /// run can be told from those of a running one.
    prefix: String,
    hosts: usize,
}

impl Network {
    /// A network of `hosts` hosts, or `None` with the reason printed when this machine has no
    /// namespaces for us.
    ///
    /// # Panics
    /// When namespaces are declared to work here and do not.
    pub(crate) fn of(hosts: usize) -> Option<Self> {
        sweep();
        match Self::build(hosts) {
            Ok(network) => Some(network),
            Err(why) if std::env::var_os(REQUIRED).is_some() => {
                panic!("{REQUIRED} is set, and there is no network namespace to be had: {why}")
            }
            Err(why) => {
                println!("SKIPPED: network namespaces are not available here: {why}");
                None
            }
        }
    }

    fn build(hosts: usize) -> Result<Self, String> {
        static NETWORKS: AtomicUsize = AtomicUsize::new(0);
        let number = NETWORKS.fetch_add(1, Ordering::Relaxed);
        // From here on its drop removes what was made, also half of it.
        let network = Self { prefix: format!("purlin-{}-{number}", process::id()), hosts };
        let hub = network.hub();
        command("ip", &["netns", "add", &hub])?;
        command("ip", &["-n", &hub, "link", "add", "bridge", "type", "bridge"])?;
        command("ip", &["-n", &hub, "link", "set", "bridge", "up"])?;
        for host in 1..=hosts {
            let name = network.namespace(host);
            let port = format!("port{host}");
            command("ip", &["netns", "add", &name])?;
            command("ip", &["-n", &name, "link", "set", "lo", "up"])?;
            command(
                "ip",
                &[
                    "-n", &name, "link", "add", "eth0", "type", "veth", "peer", "name", &port,
                    "netns", &hub,
                ],
            )?;
            command("ip", &["-n", &hub, "link", "set", &port, "master", "bridge"])?;
            command("ip", &["-n", &hub, "link", "set", &port, "up"])?;
            let address = format!("{}/24", network.address(host));
            command("ip", &["-n", &name, "address", "add", &address, "dev", "eth0"])?;
            command("ip", &["-n", &name, "link", "set", "eth0", "up"])?;
            network.nft(host, "add table inet faults")?;
            network.nft(
                host,
                "add chain inet faults input { type filter hook input priority 0; policy accept; }",
            )?;
        }
        Ok(network)
    }

    /// The address of a host; the first is 1.
    pub(crate) fn address(&self, host: usize) -> String {
        assert!((1..=self.hosts).contains(&host), "no host {host}");
        // Namespaces are separate worlds, so every network may use the same range.
        format!("10.77.0.{host}")
    }

    /// A command that will run on a host.
    pub(crate) fn command(&self, host: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        // `ip netns exec` becomes the program: the child's pid is the program's.
        command.args(["netns", "exec", &self.namespace(host), program]);
        command
    }

    /// Runs `work` on a thread that sees the network as a host does.
    pub(crate) fn on_host<T: Send + 'static>(
        &self,
        host: usize,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let path = format!("/run/netns/{}", self.namespace(host));
        thread::spawn(move || {
            let namespace = File::open(&path).expect("the namespace exists as long as its network");
            // A namespace belongs to a thread: this one alone moves, and ends with its work.
            setns(namespace, CloneFlags::CLONE_NEWNET)
                .expect("we made this namespace, so we may enter it");
            work()
        })
    }

    /// Drops everything that `from` sends to `to`, and nothing the other way.
    pub(crate) fn cut_one_way(&self, from: usize, to: usize) {
        let source = self.address(from);
        self.must_nft(to, &format!("add rule inet faults input ip saddr {source} counter drop"));
    }

    /// Drops everything between the two sides, both ways.
    pub(crate) fn cut(&self, one_side: &[usize], other_side: &[usize]) {
        for &one in one_side {
            for &other in other_side {
                self.cut_one_way(one, other);
                self.cut_one_way(other, one);
            }
        }
    }

    /// Drops this share of all datagrams that arrive at a host, each by a throw of its own.
    pub(crate) fn lose_datagrams(&self, host: usize, percent: u32) {
        self.must_nft(
            host,
            &format!(
                "add rule inet faults input meta l4proto udp iifname eth0 \
                 numgen random mod 100 < {percent} counter drop"
            ),
        );
    }

    /// Ends all faults and tells how many packets they dropped: a fault that hit nothing proves
    /// nothing.
    pub(crate) fn heal(&self) -> u64 {
        (1..=self.hosts)
            .map(|host| {
                let rules = self
                    .nft(host, "list chain inet faults input")
                    .expect("the chain lives as long as the network");
                self.must_nft(host, "flush chain inet faults input");
                dropped(&rules)
            })
            .sum()
    }

    fn must_nft(&self, host: usize, rule: &str) {
        self.nft(host, rule).expect("the rule is valid");
    }

    fn nft(&self, host: usize, statement: &str) -> Result<String, String> {
        let namespace = self.namespace(host);
        command("ip", &["netns", "exec", &namespace, "nft", statement])
    }

    fn namespace(&self, host: usize) -> String {
        format!("{}-n{host}", self.prefix)
    }

    fn hub(&self) -> String {
        format!("{}-hub", self.prefix)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for host in 1..=self.hosts {
            remove(&self.namespace(host));
        }
        remove(&self.hub());
    }
}

/// The packets counted by all rules of a chain.
fn dropped(rules: &str) -> u64 {
    rules
        .split("counter packets ")
        .skip(1)
        .filter_map(|rest| rest.split(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// Removes what runs of this test left behind that were killed before they could.
fn sweep() {
    let Ok(names) = command("ip", &["netns", "list"]) else {
        return;
    };
    for name in names.lines().filter_map(|line| line.split(' ').next()) {
        let owner = name
            .strip_prefix("purlin-")
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if let Some(pid) = owner
            && !Path::new(&format!("/proc/{pid}")).exists()
        {
            remove(name);
        }
    }
}

/// Removes a namespace, and first whatever still runs in it.
fn remove(name: &str) {
    if let Ok(pids) = command("ip", &["netns", "pids", name]) {
        for pid in pids.lines() {
            // It may have ended between the two commands.
            command("kill", &["-9", pid.trim()]).ok();
        }
    }
    // Half-built networks lack some; nothing useful can be done about another failure in a drop.
    command("ip", &["netns", "delete", name]).ok();
}

/// What a command printed, or what it complained about.
fn command(program: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| format!("cannot run {program}: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!(
            "{program} {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        ))
    }
}
