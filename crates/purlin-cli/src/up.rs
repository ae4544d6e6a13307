//! `purlin up`: a local cluster, one operating-system process per node.
//!
//! Real processes, not tasks: a node can be killed, paused and restarted by hand, and what the
//! others then do is what they do in production. This process only starts the nodes, tells the
//! person what there is to try, says when a node dies, and passes on Ctrl-C. Nodes are tied to it
//! by a pipe: should it be killed itself, they drain.

mod child;
mod layout;
mod ports;
mod story;

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use self::{
    child::{Ending, NodeProcess},
    layout::{Layout, NodeFiles},
};
use crate::{
    args::UpArgs,
    client::{Client, Endpoint},
    exit::{Done, Failure},
    members::Members,
    output::Output,
    signals::Signals,
    state::{self, LocalCluster, LocalNode},
};

/// How long the nodes may take to find each other before `up` gives up.
const READY_WITHIN: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(25);
/// How often to see whether a dead node was brought back by hand.
const LOOK_FOR_RETURN_EVERY: Duration = Duration::from_secs(1);
/// Signals this close together are one: `timeout` signals a process and then its whole group.
const ONE_REQUEST: Duration = Duration::from_millis(250);
/// With `--restart`: a node that ends this soon after its start counts as failing.
const FAILS_WITHIN: Duration = Duration::from_secs(5);
/// With `--restart`: so many failures in a row and the node is left alone.
const FAILURES_MAX: u32 = 5;

pub(crate) async fn up(args: &UpArgs, output: &mut Output) -> Done {
    let started = Instant::now();
    let dir = match &args.data {
        Some(dir) => dir.clone(),
        None => state::default_cluster_dir().ok_or_else(|| {
            Failure::Usage(
                "there is no home directory to keep the cluster in: say where with --data DIR"
                    .to_owned(),
            )
        })?,
    };
    let plan = ports::plan(args)?;
    ports::probe(&plan)?;
    let layout = Layout::prepare(&dir, &plan, args)?;
    let mut signals = Signals::new()?;

    let (ended, mut endings) = mpsc::channel(64);
    let mut cluster = Running { nodes: Vec::new(), ended };
    for files in &layout.nodes {
        cluster.start(files.clone())?;
    }
    let client = layout.client()?;
    tokio::select! {
        ready = cluster.until_ready(&layout, &mut endings) => ready?,
        () = signals.next() => {
            cluster.kill_all();
            return Err(Failure::NotDone("stopped before the cluster was up".to_owned()));
        }
    }
    announce(&layout, output);
    story::tell(&layout, &cluster.pids(), started.elapsed(), output)?;
    output.flush()?;

    cluster.watch(args.restart, &client, &mut endings, &mut signals, output).await?;
    let stopped = cluster.drain_all(&mut endings, &mut signals, output).await;
    if let Err(error) = state::withdraw(std::process::id()) {
        output.note(&format!(
            "could not tidy {}: {error}",
            state::path().unwrap_or_default().display()
        ));
    }
    stopped
}

fn announce(layout: &Layout, output: &mut Output) {
    let cluster = LocalCluster {
        dir: layout.dir.clone(),
        pid: std::process::id(),
        token_file: layout.token_file.clone(),
        nodes: layout
            .nodes
            .iter()
            .map(|node| LocalNode { name: node.name.clone(), url: node.url() })
            .collect(),
    };
    // The cluster runs all the same; only the other commands will need --node.
    if let Err(error) = state::announce(cluster) {
        output.note(&format!(
            "other commands will not find these nodes by themselves ({}: {error}); use --node and --token-file",
            state::path().unwrap_or_default().display()
        ));
    }
}

/// The nodes and their present processes.
struct Running {
    nodes: Vec<Slot>,
    ended: mpsc::Sender<Ending>,
}

struct Slot {
    files: NodeFiles,
    /// The process started from here; `None` once it has ended.
    process: Option<NodeProcess>,
    started: Instant,
    failures: u32,
    /// It ended and nobody has seen it answer since.
    missing: bool,
}

impl Running {
    fn start(&mut self, files: NodeFiles) -> Done {
        let process = NodeProcess::spawn(&files, self.ended.clone())?;
        self.nodes.push(Slot {
            files,
            process: Some(process),
            started: Instant::now(),
            failures: 0,
            missing: false,
        });
        Ok(())
    }

    fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(|slot| slot.process.as_ref().map_or(0, NodeProcess::pid)).collect()
    }

    fn slot(&mut self, name: &str) -> &mut Slot {
        self.nodes
            .iter_mut()
            .find(|slot| slot.files.name == name)
            .expect("endings come from our own nodes")
    }

    /// Waits until every node sees every other alive.
    async fn until_ready(&mut self, layout: &Layout, endings: &mut mpsc::Receiver<Ending>) -> Done {
        let deadline = Instant::now() + READY_WITHIN;
        let mut waiting: Vec<&NodeFiles> = layout.nodes.iter().collect();
        while let Some(files) = waiting.last() {
            let client = Client::of(vec![files.endpoint(&layout.token)])?;
            tokio::select! {
                members = Members::of(&client) => {
                    if members.is_ok_and(|members| members.count("alive") == layout.nodes.len()) {
                        waiting.pop();
                        continue;
                    }
                }
                Some(ending) = endings.recv() => {
                    let text = self.slot(&ending.name).files.last_words();
                    self.kill_all();
                    return Err(Failure::NotDone(format!("{} ended while starting ({ending}):\n{text}", ending.name)));
                }
            }
            if Instant::now() > deadline {
                let logs = layout.dir.join("n*/log");
                let name = files.name.clone();
                self.kill_all();
                return Err(Failure::NotDone(format!(
                    "{name} did not see all {} nodes alive within {READY_WITHIN:?}; see {}",
                    layout.nodes.len(),
                    logs.display()
                )));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Says what happens to the nodes until somebody wants everything to stop.
    async fn watch(
        &mut self,
        restart: bool,
        client: &Client,
        endings: &mut mpsc::Receiver<Ending>,
        signals: &mut Signals,
        output: &mut Output,
    ) -> Done {
        let mut look = tokio::time::interval(LOOK_FOR_RETURN_EVERY);
        loop {
            tokio::select! {
                () = signals.next() => return Ok(()),
                Some(ending) = endings.recv() => self.ended(&ending, restart, output).await?,
                _ = look.tick(), if self.nodes.iter().any(|slot| slot.missing) => self.look_for_returned(client, output).await?,
            }
            output.flush()?;
            if self.nodes.iter().all(|slot| slot.process.is_none() && !slot.missing)
                && !self.any_returned()
            {
                output.line("all nodes have left")?;
                return Ok(());
            }
        }
    }

    fn any_returned(&self) -> bool {
        self.nodes.iter().any(|slot| slot.process.is_none() && slot.files.is_running())
    }

    async fn ended(&mut self, ending: &Ending, restart: bool, output: &mut Output) -> Done {
        let slot = self.slot(&ending.name);
        slot.process = None;
        let command = format!("purlin node --data {}", slot.files.dir.display());
        if ending.is_drained() {
            return output
                .line(&format!("{} has left; start it again with: {command}", ending.name));
        }
        slot.missing = true;
        if !restart {
            return output
                .line(&format!("{} died ({ending}); bring it back with: {command}", ending.name));
        }
        slot.failures = if slot.started.elapsed() < FAILS_WITHIN { slot.failures + 1 } else { 0 };
        if slot.failures >= FAILURES_MAX {
            return output.line(&format!(
                "{} died ({ending}) {FAILURES_MAX} times soon after its start and is left alone; see {}; start it with: {command}",
                ending.name,
                slot.files.log.display()
            ));
        }
        output.line(&format!("{} died ({ending}); restarting it", ending.name))?;
        output.flush()?;
        // Doubling, so that a node that cannot start does not burn a core with trying.
        tokio::time::sleep(Duration::from_millis(100) * 2_u32.pow(slot.failures)).await;
        let files = slot.files.clone();
        let process = NodeProcess::spawn(&files, self.ended.clone())?;
        let slot = self.slot(&ending.name);
        slot.process = Some(process);
        slot.started = Instant::now();
        Ok(())
    }

    async fn look_for_returned(&mut self, client: &Client, output: &mut Output) -> Done {
        let Ok(members) = Members::of(client).await else { return Ok(()) };
        for slot in self.nodes.iter_mut().filter(|slot| slot.missing) {
            let Some(member) =
                members.find(&slot.files.name).filter(|member| member.state == "alive")
            else {
                continue;
            };
            // Right after a death the others may not have noticed; only a running process is back.
            if slot.process.is_some() || slot.files.is_running() {
                slot.missing = false;
                output.line(&format!(
                    "{} is back (incarnation {})",
                    slot.files.name, member.incarnation
                ))?;
            }
        }
        Ok(())
    }

    /// Lets every node drain; a second signal stops them at once.
    async fn drain_all(
        &mut self,
        endings: &mut mpsc::Receiver<Ending>,
        signals: &mut Signals,
        output: &mut Output,
    ) -> Done {
        for slot in &mut self.nodes {
            if slot.process.is_none() && slot.files.is_running() {
                output.note(&format!("{} was started by hand and keeps running", slot.files.name));
            }
            if let Some(process) = &slot.process {
                process.ask_to_drain();
            }
        }
        let deaf_until = Instant::now() + ONE_REQUEST;
        let running = |nodes: &[Slot]| nodes.iter().filter(|slot| slot.process.is_some()).count();
        if running(&self.nodes) > 0 {
            output.note(&format!(
                "draining {} nodes; Ctrl-C again stops them at once",
                running(&self.nodes)
            ));
        }
        while running(&self.nodes) > 0 {
            tokio::select! {
                Some(ending) = endings.recv() => {
                    self.slot(&ending.name).process = None;
                    if !ending.is_drained() {
                        output.note(&format!("{} ended without draining ({ending})", ending.name));
                    }
                }
                () = signals.next() => {
                    if Instant::now() < deaf_until {
                        continue;
                    }
                    self.kill_all();
                    return Err(Failure::NotDone("stopped at once; nodes did not drain".to_owned()));
                }
            }
        }
        output.line("all nodes have left")?;
        output.flush()
    }

    fn kill_all(&mut self) {
        for slot in &mut self.nodes {
            if let Some(process) = &slot.process {
                process.kill();
            }
        }
    }
}

/// What one node of the plan listens on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Planned {
    name: String,
    http_port: u16,
    cluster_port: u16,
}

impl NodeFiles {
    fn endpoint(&self, token: &str) -> Endpoint {
        Endpoint { url: self.url(), token: Some(token.to_owned()) }
    }
}

impl Layout {
    fn client(&self) -> Result<Client, Failure> {
        Client::of(self.nodes.iter().map(|node| node.endpoint(&self.token)).collect())
    }
}

/// `path` without `.` and links where possible, so that what is printed works from anywhere.
fn absolute(path: &std::path::Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}
