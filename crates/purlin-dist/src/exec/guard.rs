//! The process beside the node that ends a program when the node cannot.
//!
//! A node that is killed with `kill -9` runs nothing more, and its children live on: on the machine
//! where nobody looks, beside the copy that another node has started meanwhile. What could end
//! them?
//!
//! - The kernel, by a signal at the parent's death (`PR_SET_PDEATHSIG`). But it fires when the
//!   *thread* that started the child ends, and a runtime's threads come and go; it must be asked for
//!   between fork and exec, which is `unsafe` in Rust; it reaches the child and not the child's
//!   children; and other systems have nothing like it.
//! - The next life of the node, by a list of what ran. But there may be none.
//! - cgroups. But few nodes may make them.
//! - A second process, which this is: the node's own program, started a second time, at the other
//!   end of a socket. When the node is gone the kernel closes the socket, and the guard kills the
//!   program and all it started. The guard has one thread that starts things and lives as long as it
//!   does, so here the signal at the parent's death is sound, and it covers the guard's own death.
//!   Orphans become the guard's children (`PR_SET_CHILD_SUBREAPER`), so what left the group by
//!   `setsid` is ended too.
//!
//! A third start of the same program stands between: it takes the directory, user and limits, asks
//! for the signal, and becomes the program by `exec`. All of it is safe code.
//!
//! What remains: if node and guard are killed in the same moment, the program goes with the guard, but
//! processes it had started itself stay, unless they are in a cgroup (`exec.cgroup`), which the
//! next start of the name clears.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::{
            ffi::OsStringExt as _, net::UnixStream, process::CommandExt as _,
            process::ExitStatusExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::{
    os,
    server::HostError,
    wire::{self, Ask, End, Order, Told},
};

/// A node that has been silent for this long no longer has its singletons: the guard cannot tell a
/// paused node from one that others have replaced. Well above the second between two beats, well
/// below a pause that others would not notice.
pub const SILENT_MAX: Duration = Duration::from_secs(5);

const GUARD: &str = "__exec-guard";
const START: &str = "__exec-start";
/// Longest sentence about why a program did not start.
const REFUSAL_BYTES_MAX: u64 = 4 << 10;

/// Whether `main` has passed through [`guarded`].
static PASSED: AtomicBool = AtomicBool::new(false);

/// Does a guard's work if this process was started as one, and returns what to exit with.
///
/// The first line of `main` in a program whose nodes run programs as children:
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     if let Some(code) = purlin_dist::exec::guarded() {
///         return code;
///     }
///     // a node, and whatever else
///     std::process::ExitCode::SUCCESS
/// }
/// ```
///
/// It must come before a runtime is made and before arguments are read: a guard is this very
/// program with arguments of its own. In every other process it returns `None` at once.
#[must_use]
pub fn guarded() -> Option<ExitCode> {
    let mut args = env::args_os().skip(1);
    let role = args.next();
    match role.as_deref().and_then(OsStr::to_str) {
        Some(GUARD) => Some(settle(guard())),
        Some(START) => Some(settle(start(args))),
        Some(_) | None => {
            PASSED.store(true, Ordering::Relaxed);
            None
        }
    }
}

/// How to start a guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardCommand {
    program: PathBuf,
    name: OsString,
}

impl GuardCommand {
    /// This program itself.
    ///
    /// # Errors
    /// [`HostError::NotGuarded`] when its `main` has not passed through [`guarded`]: started again, it
    /// would do whatever it usually does.
    pub fn this_program() -> Result<Self, HostError> {
        if !PASSED.load(Ordering::Relaxed) {
            return Err(HostError::NotGuarded);
        }
        Ok(Self { program: own_program(), name: own_name() })
    }

    /// Another program whose `main` passes through [`guarded`], such as `purlin`.
    #[must_use]
    pub fn program(path: impl Into<PathBuf>) -> Self {
        let program = path.into();
        Self { name: program.clone().into_os_string(), program }
    }

    pub(super) fn command(&self, of: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg0(&self.name).arg(GUARD).arg(of);
        command
    }
}

/// Whatever the file at our path is by now, this is what runs: an upgrade in place replaces the file.
fn own_program() -> PathBuf {
    let own = Path::new("/proc/self/exe");
    if own.exists() { own.to_owned() } else { env::current_exe().unwrap_or_default() }
}

fn own_name() -> OsString {
    env::args_os().next().unwrap_or_else(|| "purlin".into())
}

fn settle(done: io::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Standard error is the program's log.
            drop(writeln!(io::stderr(), "purlin guard: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// The program's number while it is one's own; taken by whoever may signal it.
type Running = Arc<Mutex<Option<Pid>>>;

fn guard() -> io::Result<()> {
    let mut node = own_stdin()?;
    let order = match wire::read(&mut node)? {
        Ask::Run(order) => order,
        other => return Err(io::Error::other(format!("expected an order, got {other:?}"))),
    };
    os::adopt_orphans();
    let told = run(&order, &node).unwrap_or_else(Told::Refused);
    // The node may be gone; then nobody wants to know.
    wire::write(&mut node, &told).ok();
    Ok(())
}

/// Runs the program to its end, and the end of all it started.
fn run(order: &Order, node: &UnixStream) -> Result<Told, String> {
    let limits = &order.limits;
    let base = limits.cgroup.as_deref().map(Path::new);
    let cgroup = base.map(|base| os::Cgroup::make(base, &order.name, limits)).transpose()?;
    let ended = start_and_wait(order, node, cgroup.as_ref());
    if let Some(cgroup) = cgroup {
        cgroup.remove();
    }
    ended
}

fn start_and_wait(
    order: &Order,
    node: &UnixStream,
    cgroup: Option<&os::Cgroup>,
) -> Result<Told, String> {
    let failed = |error: io::Error| format!("cannot start a process: {error}");
    let (mut report, theirs) = UnixStream::pair().map_err(failed)?;
    let mut node = node.try_clone().map_err(failed)?;
    let listener = node.try_clone().map_err(failed)?;
    let child = spawn(order, cgroup, theirs).map_err(failed)?;
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("process numbers are positive i32"));
    let running = Arc::new(Mutex::new(Some(pid)));
    let silent_max = order.silent_max_ms.map(Duration::from_millis);
    // Before anything is waited for: a start can hang, and the node can go away meanwhile.
    let listening = Arc::clone(&running);
    thread::spawn(move || listen(listener, silent_max, &listening));
    let refusal = refusal(&mut report);
    if refusal.is_none() {
        wire::write(&mut node, &Told::Started(pid.as_raw())).ok();
    }
    let (status, left) = end(child, pid, &running).map_err(failed)?;
    Ok(match refusal {
        Some(refusal) => Told::Refused(refusal),
        None => Told::Ended(End {
            status: status.code(),
            signal: status.signal(),
            dumped: status.core_dumped(),
            // Whoever is killed has not left anything behind: all of it was killed together.
            left: status.code().map_or(0, |_| left),
        }),
    })
}

fn spawn(order: &Order, cgroup: Option<&os::Cgroup>, report: UnixStream) -> io::Result<Child> {
    let settings = Settings {
        cwd: order.cwd.clone(),
        user: order.user.clone(),
        cgroup: cgroup.map(|cgroup| cgroup.dir().to_string_lossy().into_owned()),
        address_space_max: order.limits.memory_max.filter(|_| cgroup.is_none()),
        guard: i32::try_from(std::process::id()).expect("process numbers are positive i32"),
    };
    let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
    let child = Command::new(own_program())
        .arg0(own_name())
        .args([START, &settings.encode()?, &order.command])
        .args(&order.args)
        .env_clear()
        .envs(order.env.iter().map(|(name, value)| (text(name), text(value))))
        .stdin(Stdio::from(OwnedFd::from(report)))
        .process_group(0)
        .spawn()?;
    Ok(child)
}

/// Waits for the program, and ends what it leaves behind.
fn end(mut child: Child, pid: Pid, running: &Running) -> io::Result<(ExitStatus, u32)> {
    os::wait_until_ended(pid);
    #[cfg(not(target_os = "linux"))]
    let early = child.wait()?;
    // From here on its number may become another's as soon as it is waited for.
    *running.lock() = None;
    os::signal_group(pid, Signal::SIGKILL);
    let status = child.wait()?;
    Ok((status, os::kill_orphans()))
}

/// Does what the node asks, until it is gone.
fn listen(mut node: UnixStream, silent_max: Option<Duration>, running: &Running) {
    let signal = |signal| {
        if let Some(group) = *running.lock() {
            os::signal_group(group, signal);
        }
    };
    if node.set_read_timeout(silent_max).is_ok() {
        while let Ok(ask) = wire::read::<Ask>(&mut node) {
            match ask {
                Ask::Signal(number) => {
                    if let Ok(known) = Signal::try_from(number) {
                        signal(known);
                    }
                }
                Ask::Beat | Ask::Run(_) => {}
            }
        }
    }
    // Gone, or silent for too long. There is nobody to wait for: another node may be starting it.
    signal(Signal::SIGKILL);
}

/// Why the program did not start; `None` once it has.
fn refusal(report: &mut UnixStream) -> Option<String> {
    let mut text = Vec::new();
    // The kernel closes the other end when the program takes the place of our own.
    drop(report.take(REFUSAL_BYTES_MAX).read_to_end(&mut text));
    (!text.is_empty()).then(|| String::from_utf8_lossy(&text).into_owned())
}

fn own_stdin() -> io::Result<UnixStream> {
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

/// What the process that becomes the program has to do first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Settings {
    cwd: String,
    user: Option<String>,
    cgroup: Option<String>,
    address_space_max: Option<u64>,
    guard: i32,
}

impl Settings {
    fn encode(&self) -> io::Result<String> {
        let bytes = postcard::to_stdvec(self).map_err(io::Error::other)?;
        Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn decode(text: &str) -> Option<Self> {
        let digits = text.as_bytes().chunks(2);
        let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
        postcard::from_bytes(&digits.map(byte).collect::<Option<Vec<u8>>>()?).ok()
    }
}

/// Becomes the program, or says on standard input why not.
fn start(mut args: impl Iterator<Item = OsString>) -> io::Result<()> {
    let mut report = own_stdin()?;
    let settings = args.next().and_then(|text| Settings::decode(text.to_str()?));
    let (Some(settings), Some(command)) = (settings, args.next()) else {
        return Err(io::Error::other("this is for guards to start"));
    };
    let error = become_program(&settings, &command, args);
    report.write_all(error.as_bytes())
}

fn become_program(
    settings: &Settings,
    command: &OsStr,
    args: impl Iterator<Item = OsString>,
) -> String {
    let mut program = Command::new(command);
    if let Err(error) = prepare(settings, &mut program) {
        return error;
    }
    if let Err(error) = forget_ignored_signals() {
        return format!("cannot reset its signals: {error}");
    }
    let error = program.args(args).stdin(Stdio::null()).exec();
    format!("cannot run {}: {error}", command.display())
}

/// Has the program start with the usual handling of every signal it may be stopped with.
///
/// What a process ignores, those it starts ignore, and a shell cannot even trap it: a node that was
/// started in the background of a script ignores `SIGINT`. What is caught is forgotten by `exec`, and
/// to catch is safe code.
fn forget_ignored_signals() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let _entered = runtime.enter();
    for kind in [
        SignalKind::hangup(),
        SignalKind::interrupt(),
        SignalKind::quit(),
        SignalKind::terminate(),
        SignalKind::user_defined1(),
        SignalKind::user_defined2(),
    ] {
        drop(signal(kind)?);
    }
    Ok(())
}

fn prepare(settings: &Settings, program: &mut Command) -> Result<(), String> {
    if let Some(dir) = &settings.cgroup {
        os::join_cgroup(dir)?;
    }
    if let Some(user) = &settings.user {
        let account = os::Account::find(user)?;
        account.become_it()?;
        if let Some(entry) = &account.entry {
            let home = [("HOME", entry.dir.as_os_str()), ("SHELL", entry.shell.as_os_str())];
            let name = OsStr::new(&entry.name);
            let all = home.into_iter().chain([("USER", name), ("LOGNAME", name)]);
            program.envs(all.filter(|(variable, _)| env::var_os(variable).is_none()));
        }
    }
    env::set_current_dir(&settings.cwd)
        .map_err(|error| format!("cannot start in {:?}: {error}", settings.cwd))?;
    os::die_with(settings.guard)?;
    // Last, as it holds for us as well.
    settings.address_space_max.map_or(Ok(()), os::limit_address_space)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_survive_the_command_line() {
        let settings = Settings {
            cwd: "/tmp/grün".to_owned(),
            user: Some("nobody".to_owned()),
            cgroup: None,
            address_space_max: Some(1 << 30),
            guard: 4711,
        };
        assert_eq!(Settings::decode(&settings.encode().unwrap()), Some(settings));
        for bad in ["", "zz", "0", "ffffffffff", "grün"] {
            assert_eq!(Settings::decode(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_program_that_never_passed_through_it_is_not_started_again() {
        // The harness of this test has a main of its own.
        assert!(matches!(GuardCommand::this_program(), Err(HostError::NotGuarded)));
    }
}
