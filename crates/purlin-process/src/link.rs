//! Links and monitors: how processes learn of each other's end.
//!
//! A link is mutual and contagious: when one end fails, the other fails with it, unless it traps
//! exits. A monitor is one-way and harmless: its owner gets one [`Info::Down`]. Both fire at once
//! on a process that is already gone, so there is no moment at which an end can be missed.

use std::{collections::BTreeMap, fmt, sync::Arc};

use parking_lot::Mutex;

use crate::{
    AnyProcess, ExitReason, Info, MonitorId, Pid, ProcessId, mailbox::Signal, registry::Registered,
};

/// Told once when a monitored process ends.
pub trait DownSink: Send + Sync {
    /// `process`, watched under `monitor`, ended for `reason`. Must not block.
    fn down(&self, monitor: MonitorId, process: &Pid, reason: &ExitReason);
}

/// Anything that can be monitored: local references, remote ones, and addresses that are either.
pub trait Monitored {
    /// Tells `sink` once when the process ends; at once if it has ended already. A remote process
    /// also counts as ended, with [`ExitReason::NodeDown`], when its node is declared down.
    fn watch(&self, monitor: MonitorId, sink: Arc<dyn DownSink>) -> Unwatch;
}

/// Ends the watching it came from, if it still watches, when called or dropped.
#[must_use = "dropping it ends the watching"]
pub struct Unwatch(Option<Box<dyn FnOnce() + Send + Sync>>);

impl Unwatch {
    /// Runs `end` when this is dropped.
    pub fn new(end: impl FnOnce() + Send + Sync + 'static) -> Self {
        Self(Some(Box::new(end)))
    }

    /// Keeps watching for as long as the process lives; it cannot be ended any more.
    pub fn forever(mut self) {
        self.0 = None;
    }
}

impl Drop for Unwatch {
    fn drop(&mut self) {
        if let Some(end) = self.0.take() {
            end();
        }
    }
}

impl fmt::Debug for Unwatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unwatch").field("armed", &self.0.is_some()).finish()
    }
}

/// What must be told or undone when a process ends.
#[derive(Default)]
pub(crate) struct Ties(Mutex<Tied>);

#[derive(Default)]
struct Tied {
    /// Set once, at the end; nothing is tied to the process after that.
    ended: bool,
    links: BTreeMap<ProcessId, AnyProcess>,
    watchers: BTreeMap<MonitorId, Arc<dyn DownSink>>,
    registered: Vec<Registered>,
}

/// What was tied to a process that has just ended.
pub(crate) struct Untied {
    links: BTreeMap<ProcessId, AnyProcess>,
    watchers: BTreeMap<MonitorId, Arc<dyn DownSink>>,
}

impl Ties {
    /// Remembers a registration; false when the process has ended and it must be undone.
    pub(crate) fn register(&self, registered: Registered) -> bool {
        let mut tied = self.0.lock();
        if !tied.ended {
            tied.registered.push(registered);
        }
        !tied.ended
    }

    pub(crate) fn unregister(&self, registered: &Registered) {
        self.0.lock().registered.retain(|other| other != registered);
    }

    pub(crate) fn counts(&self) -> (usize, usize) {
        let tied = self.0.lock();
        (tied.links.len(), tied.watchers.len())
    }

    pub(crate) fn watch(&self, pid: &Pid, monitor: MonitorId, sink: Arc<dyn DownSink>) {
        let mut tied = self.0.lock();
        if tied.ended {
            drop(tied);
            sink.down(monitor, pid, &ExitReason::NoProcess);
        } else {
            tied.watchers.insert(monitor, sink);
        }
    }

    pub(crate) fn unwatch(&self, monitor: MonitorId) {
        let sink = self.0.lock().watchers.remove(&monitor);
        drop(sink);
    }

    fn link(&self, to: &AnyProcess) -> bool {
        let mut tied = self.0.lock();
        if !tied.ended {
            tied.links.insert(to.id(), to.clone());
        }
        !tied.ended
    }

    fn unlink(&self, from: ProcessId) -> bool {
        self.0.lock().links.remove(&from).is_some()
    }

    /// Marks the end; from now on every new tie fires at once.
    pub(crate) fn end(&self) -> (Untied, Vec<Registered>) {
        let mut tied = self.0.lock();
        tied.ended = true;
        let untied = Untied {
            links: std::mem::take(&mut tied.links),
            watchers: std::mem::take(&mut tied.watchers),
        };
        (untied, std::mem::take(&mut tied.registered))
    }
}

impl Untied {
    /// Tells everybody that `pid` ended for `reason`.
    pub(crate) fn tell(self, pid: &Pid, reason: &ExitReason) {
        for (monitor, sink) in self.watchers {
            sink.down(monitor, pid, reason);
        }
        for other in self.links.into_values() {
            if other.control().core().ties.unlink(pid.process) {
                carry_exit(&other, pid, reason);
            }
        }
    }
}

/// Links two processes. If one has ended, the other is told so at once.
pub(crate) fn link(a: &AnyProcess, b: &AnyProcess) {
    if a.id() == b.id() {
        return;
    }
    let (a_core, b_core) = (a.control().core(), b.control().core());
    if !a_core.ties.link(b) {
        carry_exit(b, &a_core.pid, &ExitReason::NoProcess);
    } else if !b_core.ties.link(a) && a_core.ties.unlink(b.id()) {
        carry_exit(a, &b_core.pid, &ExitReason::NoProcess);
    }
}

/// Ends a link; afterwards the end of one is nothing to the other.
pub(crate) fn unlink(a: &AnyProcess, b: &AnyProcess) {
    a.control().core().ties.unlink(b.id());
    b.control().core().ties.unlink(a.id());
}

fn carry_exit(to: &AnyProcess, from: &Pid, reason: &ExitReason) {
    let control = to.control();
    let core = control.core();
    if core.traps_exit() && core.parent == Some(from.process) {
        // Nobody is left to end it in order; as with OTP's behaviours this cannot be trapped.
        control.raise(Signal::Exit(reason.clone()));
    } else if core.traps_exit() {
        control.push_info(Info::Exit { from: from.clone(), reason: reason.clone() });
    } else if !reason.is_normal() {
        control.raise(Signal::Exit(reason.clone()));
    }
}

/// Delivers the end of a monitored process to the process that monitors it.
pub(crate) struct DownToProcess(pub(crate) AnyProcess);

impl DownSink for DownToProcess {
    fn down(&self, monitor: MonitorId, process: &Pid, reason: &ExitReason) {
        self.0.control().push_info(Info::Down {
            monitor,
            process: process.clone(),
            reason: reason.clone(),
        });
    }
}

/// Delivers the end of a monitored process to whoever awaits it.
pub(crate) struct DownToWaiter(pub(crate) Mutex<Option<tokio::sync::oneshot::Sender<ExitReason>>>);

impl DownSink for DownToWaiter {
    fn down(&self, _monitor: MonitorId, _process: &Pid, reason: &ExitReason) {
        if let Some(waiter) = self.0.lock().take() {
            // The waiter may have gone; nobody is left to tell then.
            drop(waiter.send(reason.clone()));
        }
    }
}
