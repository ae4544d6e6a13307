//! Monitors across nodes.
//!
//! The watcher's node keeps the list of what it watches and is the one that makes it true: it asks
//! again whenever the connection comes back, and lets everything fire when the node is down. The
//! watched node only answers. So a lost message on either side delays an end, it does not hide it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use purlin_core::{Deadline, NodeId};
use purlin_net::{ChannelId, PartitionKey, PayloadBuf, Peer, SendError, Urgency};
use purlin_process::{DownSink, ExitReason, MonitorId, Monitored, Pid, ProcessId, Target, Unwatch};

use super::{
    Inner, SERVICE, count,
    wire::{Message, Reason},
};

/// What this node watches elsewhere, and what others watch here.
pub(crate) struct Watching {
    per_node_max: usize,
    watches: Mutex<BTreeMap<(NodeId, MonitorId), Watch>>,
    watched: Mutex<BTreeMap<(NodeId, MonitorId), Unwatch>>,
}

#[derive(Clone)]
struct Watch {
    process: ProcessId,
    sink: Arc<dyn DownSink>,
}

impl Watching {
    pub(crate) fn new(per_node_max: usize) -> Self {
        Self {
            per_node_max,
            watches: Mutex::new(BTreeMap::new()),
            watched: Mutex::new(BTreeMap::new()),
        }
    }
}

fn of_node(node: &NodeId) -> std::ops::RangeInclusive<(NodeId, MonitorId)> {
    (node.clone(), MonitorId(0))..=(node.clone(), MonitorId(u64::MAX))
}

/// How long a message about monitors may wait for room on the control channel.
const PATIENCE: Duration = Duration::from_secs(5);

impl Inner {
    /// Watches a process elsewhere.
    pub(crate) fn watch(&self, pid: &Pid, monitor: MonitorId, sink: Arc<dyn DownSink>) -> Unwatch {
        let Some(peer) = self.transport.peer(&pid.node) else {
            sink.down(monitor, pid, &ExitReason::NodeDown(pid.node.clone()));
            return Unwatch::new(|| {});
        };
        let key = (pid.node.clone(), monitor);
        let watch = Watch { process: pid.process, sink };
        self.watching.watches.lock().insert(key.clone(), watch);
        let said = self.say(&peer, Said::Monitor(monitor, pid.process));
        // The node may also have gone down between the look and the note.
        if !said || self.transport.peer(&pid.node).is_none() {
            let watch = self.watching.watches.lock().remove(&key);
            if let Some(watch) = watch {
                watch.sink.down(monitor, pid, &ExitReason::NodeDown(pid.node.clone()));
            }
        }
        let remote = Weak::clone(&self.me);
        Unwatch::new(move || {
            if let Some(remote) = remote.upgrade()
                && remote.watching.watches.lock().remove(&key).is_some()
                && let Some(peer) = remote.transport.peer(&key.0)
            {
                remote.say(&peer, Said::Demonitor(monitor));
            }
        })
    }

    /// A process we watch elsewhere has ended.
    pub(crate) fn ended(&self, monitor: MonitorId, pid: &Pid, reason: &[u8]) {
        let watch = self.watching.watches.lock().remove(&(pid.node.clone(), monitor));
        let Some(watch) = watch else { return };
        let reason = postcard::from_bytes::<Reason>(reason).map_or_else(
            |error| {
                ExitReason::failed(format_args!("for a reason this release cannot read: {error}"))
            },
            ExitReason::from,
        );
        watch.sink.down(monitor, pid, &reason);
    }

    /// Everything watched on `node` counts as ended, and it watches nothing here any more.
    pub(crate) fn node_down(&self, node: &NodeId) {
        let fired = take_range(&mut self.watching.watches.lock(), node);
        let unwatched = take_range(&mut self.watching.watched.lock(), node);
        let reason = ExitReason::NodeDown(node.clone());
        for ((node, monitor), watch) in fired {
            let pid = Pid { node, process: watch.process };
            watch.sink.down(monitor, &pid, &reason);
        }
        // Dropped without our locks: ending a watch takes the process's.
        drop(unwatched);
    }

    /// Asks again for everything watched on a node whose connection is new: what was said on the
    /// old one may be lost. Asking twice does no harm.
    pub(crate) fn watch_again(&self, peer: &Peer) {
        let watches: Vec<_> = self
            .watching
            .watches
            .lock()
            .range(of_node(peer.node()))
            .map(|((_, monitor), watch)| (*monitor, watch.process))
            .collect();
        for (monitor, process) in watches {
            self.say(peer, Said::Monitor(monitor, process));
        }
    }

    /// Events were missed: finds out by looking.
    pub(crate) fn look_around(&self) {
        let nodes: Vec<NodeId> = {
            let watches = self.watching.watches.lock();
            let mut nodes: Vec<_> = watches.keys().map(|(node, _)| node.clone()).collect();
            nodes.dedup();
            nodes
        };
        for node in nodes {
            match self.transport.peer(&node).filter(Peer::is_up) {
                Some(peer) => self.watch_again(&peer),
                None => self.node_down(&node),
            }
        }
    }

    /// Another node wants to hear of an end here.
    pub(crate) fn watched_by(&self, peer: &Peer, monitor: MonitorId, process: ProcessId) {
        let key = (peer.node().clone(), monitor);
        {
            let watched = self.watching.watched.lock();
            if watched.contains_key(&key) {
                return;
            }
            if watched.range(of_node(peer.node())).count() >= self.watching.per_node_max {
                drop(watched);
                let max = self.watching.per_node_max;
                let reason =
                    ExitReason::failed(format_args!("{max} monitors of one node is the limit"));
                self.say_down(peer, monitor, process, &reason);
                return;
            }
        }
        let incarnation = self.processes.node().incarnation;
        let found = self.processes.admit(incarnation, Target::Id(process));
        let Some(target) = found.ok().filter(purlin_process::AnyProcess::is_remote) else {
            self.say_down(peer, monitor, process, &ExitReason::NoProcess);
            return;
        };
        let sink = Arc::new(DownElsewhere {
            remote: Weak::clone(&self.me),
            peer: peer.clone(),
            monitor,
            fired: AtomicBool::new(false),
        });
        let local = self.processes.next_monitor();
        let unwatch = target.watch(local, Arc::clone(&sink) as Arc<dyn DownSink>);
        self.watching.watched.lock().insert(key.clone(), unwatch);
        // If it ended just now, it fired before the note was made.
        if sink.fired.load(Ordering::SeqCst) {
            let unwatch = self.watching.watched.lock().remove(&key);
            drop(unwatch);
        }
    }

    /// Another node no longer wants to hear of an end here.
    pub(crate) fn unwatched_by(&self, peer: &Peer, monitor: MonitorId) {
        let unwatch = self.watching.watched.lock().remove(&(peer.node().clone(), monitor));
        drop(unwatch);
    }

    fn say_down(&self, peer: &Peer, monitor: MonitorId, process: ProcessId, reason: &ExitReason) {
        let mut encoded = Vec::new();
        if let Err(error) = purlin_net::encode_to_vec(&Reason::from(reason), &mut encoded) {
            tracing::error!(%error, "an exit reason cannot be encoded");
        }
        // Unheard, it is asked for again with the next connection.
        self.say(peer, Said::Down(monitor, process, encoded));
    }

    /// Says something about monitors on the control channel, in a task of its own if there is no
    /// room now; false if there is no connection and none can be opened.
    fn say(&self, peer: &Peer, said: Said) -> bool {
        let (channel, key) = (ChannelId::CONTROL, PartitionKey::ZERO);
        let sent = peer.send(channel, SERVICE, key, Urgency::Now, |payload| {
            said.message().write(|part| payload.put(part));
        });
        if !matches!(sent, Err(SendError::Full { .. })) {
            return sent.is_ok();
        }
        let deadline = Deadline::after(self.transport.clock().now(), PATIENCE);
        let (peer, remote) = (peer.clone(), Weak::clone(&self.me));
        tokio::spawn(async move {
            let write = |payload: &mut PayloadBuf<'_>| {
                said.message().write(|part| payload.put(part));
            };
            let sent = peer.send_wait(channel, SERVICE, key, deadline, write).await;
            if sent.is_err()
                && let Some(remote) = remote.upgrade()
            {
                count(&remote.counts.answers_unsent);
            }
        });
        true
    }
}

/// Something said about monitors, kept until it can be said.
enum Said {
    Monitor(MonitorId, ProcessId),
    Demonitor(MonitorId),
    Down(MonitorId, ProcessId, Vec<u8>),
}

impl Said {
    fn message(&self) -> Message<'_> {
        match self {
            &Self::Monitor(monitor, process) => Message::Monitor { monitor, process },
            &Self::Demonitor(monitor) => Message::Demonitor { monitor },
            Self::Down(monitor, process, reason) => {
                Message::Down { monitor: *monitor, process: *process, reason }
            }
        }
    }
}

fn take_range<V>(
    map: &mut BTreeMap<(NodeId, MonitorId), V>,
    node: &NodeId,
) -> BTreeMap<(NodeId, MonitorId), V> {
    let mut taken = map.split_off(&(node.clone(), MonitorId(0)));
    let mut after = taken.split_off(&(node.clone(), MonitorId(u64::MAX)));
    map.append(&mut after);
    taken
}

/// Tells a watcher on another node.
struct DownElsewhere {
    remote: Weak<Inner>,
    peer: Peer,
    monitor: MonitorId,
    fired: AtomicBool,
}

impl DownSink for DownElsewhere {
    fn down(&self, _local: MonitorId, process: &Pid, reason: &ExitReason) {
        let Some(remote) = self.remote.upgrade() else { return };
        remote.say_down(&self.peer, self.monitor, process.process, reason);
        self.fired.store(true, Ordering::SeqCst);
        let key = (self.peer.node().clone(), self.monitor);
        let unwatch = remote.watching.watched.lock().remove(&key);
        drop(unwatch);
    }
}
