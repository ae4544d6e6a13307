//! Real processes of the real binary, each test with its own directory and ports.
//!
//! Everything waits on conditions; a deadline only ends a wait that has failed.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, LazyLock, Mutex},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

/// Long enough for a machine that compiles something else at the same time: only a wait that has
/// failed lasts so long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// How long one answer may take. Only a node that was stopped needs all of it.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

pub(crate) fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_purlin")
}

/// A member as `/v1/members` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) incarnation: u64,
    pub(crate) state: String,
}

/// A directory of its own for one test: data and per-user state.
pub(crate) struct Scene {
    pub(crate) dir: tempfile::TempDir,
}

impl Scene {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary with `args`, blind to whatever clusters and settings the developer has.
    pub(crate) fn purlin(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PURLIN_"))
        {
            command.env_remove(name);
        }
        command
            .args(args)
            .env("XDG_STATE_HOME", self.path("state"))
            .env("XDG_DATA_HOME", self.path("share"))
            .current_dir(self.dir.path())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.purlin(args).output().unwrap()
    }
}

/// The exit code, standard output and standard error of `output`, as text.
pub(crate) fn told(output: &Output) -> (Option<i32>, String, String) {
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// A running `purlin up`; dropping it ends all its nodes.
pub(crate) struct Cluster {
    pub(crate) scene: Scene,
    pub(crate) http_port: u16,
    pub(crate) cluster_port: u16,
    pub(crate) nodes: u16,
    up: Child,
    said: Arc<Mutex<Vec<String>>>,
    by_hand: Vec<Child>,
}

impl Cluster {
    pub(crate) fn start(nodes: u16) -> Self {
        Self::start_with(Scene::new(), nodes, &[])
    }

    /// Starts `up` in `scene` and waits until it says that all is ready.
    pub(crate) fn start_with(scene: Scene, nodes: u16, more: &[&str]) -> Self {
        for _ in 0..20 {
            let (http_port, cluster_port) = free_ports(nodes);
            let mut cluster =
                Self::launch(scene.path("up"), &scene, nodes, http_port, cluster_port, more);
            if cluster.wait_until_ready() {
                return Self {
                    scene,
                    http_port,
                    cluster_port,
                    nodes,
                    up: cluster.up,
                    said: cluster.said,
                    by_hand: Vec::new(),
                };
            }
        }
        panic!("no free ports found in twenty tries");
    }

    fn launch(
        dir: PathBuf,
        scene: &Scene,
        nodes: u16,
        http_port: u16,
        cluster_port: u16,
        more: &[&str],
    ) -> Launched {
        let mut up = scene
            .purlin(&["up", "--nodes", &nodes.to_string(), "--data", dir.to_str().unwrap()])
            .args([
                "--http-port",
                &http_port.to_string(),
                "--cluster-port",
                &cluster_port.to_string(),
            ])
            .args(more)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(Vec::new()));
        let readers = vec![
            collect(up.stdout.take().unwrap(), Arc::clone(&said)),
            collect(up.stderr.take().unwrap(), Arc::clone(&said)),
        ];
        Launched { up, said, readers, dir }
    }

    pub(crate) fn dir(&self) -> PathBuf {
        self.scene.path("up")
    }

    pub(crate) fn url(&self, node: u16) -> String {
        format!("http://127.0.0.1:{}", self.http_port + node - 1)
    }

    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().join("\n")
    }

    pub(crate) fn wait_until_said(&self, text: &str) {
        wait_until(&format!("up says {text:?}"), PATIENCE, || {
            self.said().contains(text).then_some(())
        });
    }

    pub(crate) fn pid(&self, node: u16) -> i32 {
        let path = self.dir().join(format!("n{node}/pid"));
        fs::read_to_string(&path).unwrap().trim().parse().unwrap()
    }

    pub(crate) fn signal(&self, node: u16, signal: Signal) {
        kill(Pid::from_raw(self.pid(node)), signal).unwrap();
    }

    pub(crate) fn signal_up(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.up.id()).unwrap()), signal).unwrap();
    }

    /// Waits for `up` itself to end; its exit code.
    pub(crate) fn wait_for_end(&mut self) -> Option<i32> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.up.try_wait().unwrap() {
                return status.code();
            }
            assert!(Instant::now() < deadline, "up did not end; it said:\n{}", self.said());
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts a node of this cluster by hand, the way `up` advises.
    pub(crate) fn start_by_hand(&mut self, node: u16) {
        let dir = self.dir().join(format!("n{node}"));
        let log = fs::OpenOptions::new().append(true).create(true).open(dir.join("log")).unwrap();
        let child = self
            .scene
            .purlin(&["node", "--data", dir.to_str().unwrap()])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.by_hand.push(child);
    }

    /// What `node` says of the cluster now; `None` when it does not answer.
    pub(crate) fn members(&self, node: u16) -> Option<Vec<Member>> {
        let value = get_json(self.http_port + node - 1, "/v1/members")?;
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let members = value["members"].as_array()?.iter().map(|member| Member {
            name: text(&member["name"]),
            incarnation: member["incarnation"].as_u64().unwrap(),
            state: text(&member["state"]),
        });
        Some(members.collect())
    }

    /// The state of the latest life of `name` in the eyes of `node`.
    pub(crate) fn latest(&self, node: u16, name: &str) -> Option<Member> {
        self.members(node)?
            .into_iter()
            .filter(|member| member.name == name)
            .max_by_key(|member| member.incarnation)
    }

    pub(crate) fn wait_for_state(
        &self,
        node: u16,
        name: &str,
        state: &str,
        within: Duration,
    ) -> Member {
        let what = format!("n{node} sees {name} {state}");
        let logs = || self.logs();
        wait_until_or(
            &what,
            within,
            || self.latest(node, name).filter(|member| member.state == state),
            logs,
        )
    }

    /// The end of every node's log, for the failure message.
    pub(crate) fn logs(&self) -> String {
        format!("up said:\n{}\n{}", self.said(), node_logs(&self.dir()))
    }

    /// A command pointed at `node`.
    pub(crate) fn at(&self, node: u16, args: &[&str]) -> Command {
        let mut command = self.scene.purlin(args);
        command.args(["--node", &self.url(node)]);
        command
    }
}

/// The last lines of each log in `dir`.
fn node_logs(dir: &Path) -> String {
    let mut text = String::new();
    for node in 1..=9 {
        let Ok(log) = fs::read_to_string(dir.join(format!("n{node}/log"))) else { continue };
        let lines: Vec<_> = log.lines().collect();
        let last = lines[lines.len().saturating_sub(40)..].join("\n");
        text.push_str(&format!("--- n{node}\n{last}\n"));
    }
    text
}

struct Launched {
    up: Child,
    said: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
    dir: PathBuf,
}

impl Launched {
    /// Whether it became ready; `false` when somebody else took a port first.
    fn wait_until_ready(&mut self) -> bool {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.said.lock().unwrap().join("\n");
            if said.contains("Ctrl-C drains") || said.starts_with("{") {
                return true;
            }
            if let Some(status) = self.up.try_wait().unwrap() {
                // Its last words may still be on their way.
                self.readers.drain(..).for_each(|reader| reader.join().unwrap());
                let said = self.said.lock().unwrap().join("\n");
                if said.contains("is taken") || said.contains("is in use") {
                    return false;
                }
                panic!("up ended ({status}) and said:\n{said}\n{}", node_logs(&self.dir));
            }
            assert!(Instant::now() < deadline, "up is not ready; it said:\n{said}");
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in &mut self.by_hand {
            drop(child.kill());
            drop(child.wait());
        }
        // Its nodes notice by their pipe, but only when they are not stopped.
        for node in 1..=self.nodes {
            let pid = fs::read_to_string(self.dir().join(format!("n{node}/pid")));
            if let Some(pid) = pid.ok().and_then(|pid| pid.trim().parse().ok()) {
                kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
            }
        }
        drop(self.up.kill());
        drop(self.up.wait());
    }
}

/// Puts every line of `from` into `into`, until its end.
pub(crate) fn collect(
    from: impl std::io::Read + Send + 'static,
    into: Arc<Mutex<Vec<String>>>,
) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            into.lock().unwrap().push(line);
        }
    })
}

/// Waits until `look` finds something.
pub(crate) fn wait_until<T>(what: &str, within: Duration, look: impl FnMut() -> Option<T>) -> T {
    wait_until_or(what, within, look, String::new)
}

pub(crate) fn wait_until_or<T>(
    what: &str,
    within: Duration,
    mut look: impl FnMut() -> Option<T>,
    why_not: impl FnOnce() -> String,
) -> T {
    let deadline = Instant::now() + within;
    loop {
        if let Some(found) = look() {
            return found;
        }
        if Instant::now() > deadline {
            panic!("waited {within:?} in vain until {what}\n{}", why_not());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The JSON at `path` of the node on `port`; `None` when there is no good answer.
pub(crate) fn get_json(port: u16, path: &str) -> Option<Value> {
    let mut stream =
        TcpStream::connect_timeout(&([127, 0, 0, 1], port).into(), ANSWER_WITHIN).ok()?;
    stream.set_read_timeout(Some(ANSWER_WITHIN)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n\r\n")
        .ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    if !head.starts_with("HTTP/1.1 200") {
        return None;
    }
    serde_json::from_str(body).ok()
}

/// The first of `nodes` HTTP ports and the first of `nodes` cluster ports that are free in a row.
///
/// No port is given out twice: whoever got it may not have bound it yet.
pub(crate) fn free_ports(nodes: u16) -> (u16, u16) {
    // Below the range from which the kernel hands out ports to outgoing connections.
    const PORTS: std::ops::Range<u16> = 10_000..32_000;
    static NEXT: LazyLock<Mutex<u16>> = LazyLock::new(|| {
        Mutex::new(PORTS.start + u16::try_from(random() % PORTS.len() as u64).unwrap())
    });
    let is_free = |port: u16| {
        TcpListener::bind(("127.0.0.1", port)).is_ok()
            && UdpSocket::bind(("127.0.0.1", port)).is_ok()
    };
    let mut next = NEXT.lock().unwrap();
    for _ in 0..2_000 {
        if PORTS.end - *next < 2 * nodes {
            *next = PORTS.start;
        }
        let first = *next;
        *next += 2 * nodes;
        if (first..*next).all(is_free) {
            return (first, first + nodes);
        }
    }
    panic!("no {nodes} free ports in a row");
}

/// Whether the process has ended, reaped or not: whose parent was killed is reaped by the first
/// process of the machine, if that does so.
pub(crate) fn is_gone(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

fn random() -> u64 {
    use std::hash::{BuildHasher as _, Hasher as _};
    std::collections::hash_map::RandomState::new().build_hasher().finish()
}

/// A real text of at least `lines` lines, in which no two lines are equal.
pub(crate) fn big_file(dir: &Path, lines: usize) -> PathBuf {
    let path = dir.join("lines.txt");
    let mut text = String::with_capacity(lines * 90);
    let words = [
        "purlin",
        "rafter",
        "joist",
        "beam",
        "ridge",
        "truss",
        "grün",
        "\ttab",
        "\"quote\"",
        "\\back",
        "",
        "日本",
    ];
    for line in 0..lines {
        let word = words[line % words.len()];
        let filling = ".".repeat(line % 61);
        text.push_str(&format!("{line:07} {word} {filling} end of line {line}\n"));
    }
    fs::write(&path, text).unwrap();
    path
}
