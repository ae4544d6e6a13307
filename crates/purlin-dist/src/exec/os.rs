//! What is asked of the kernel, in the guard's two processes.
//!
//! Everything here blocks, and none of it runs in a node: a name service that hangs, a directory on
//! a dead file server, costs one guard.

use std::{
    ffi::CString,
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill, killpg},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Gid, Group, Pid, Uid, User},
};

use super::wire::Limits;

/// Processes left behind are looked for this often, this long apart: a fork bomb must not hold up
/// the end for ever.
const ROUNDS: u32 = 500;
const ROUND: Duration = Duration::from_millis(10);

/// Takes the place of init for whatever the program leaves behind, so that it can be ended.
pub(super) fn adopt_orphans() {
    #[cfg(target_os = "linux")]
    // An old kernel: then only the program's own group is ended.
    nix::sys::prctl::set_child_subreaper(true).ok();
}

/// Asks the kernel to kill this process when `parent` is gone. Changing user undoes it, so it comes
/// after that.
pub(super) fn die_with(parent: i32) -> Result<(), String> {
    #[cfg(target_os = "linux")]
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|error| format!("cannot tie it to its guard: {error}"))?;
    // It may have gone before we asked.
    if nix::unistd::getppid() == Pid::from_raw(parent) {
        Ok(())
    } else {
        Err("its guard is gone".to_owned())
    }
}

/// Waits until `program` has ended and leaves it to be waited for, so that its number stays its own.
/// Reaps whatever else of ours ends meanwhile.
pub(super) fn wait_until_ended(program: Pid) {
    #[cfg(target_os = "linux")]
    loop {
        use nix::sys::wait::{Id, waitid};
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        match waitid(Id::All, flags).map(|status| status.pid()) {
            Ok(Some(pid)) if pid == program => return,
            Ok(Some(orphan)) => drop(waitpid(orphan, None)),
            Ok(None) | Err(Errno::EINTR) => {}
            // There is nothing to wait for any more.
            Err(_) => return,
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = program;
}

/// Sends `signal` to `group`. One that stopped is woken, so that it hears.
pub(super) fn signal_group(group: Pid, signal: Signal) {
    // Nobody left to hear it is as good.
    killpg(group, signal).ok();
    if signal != Signal::SIGKILL {
        killpg(group, Signal::SIGCONT).ok();
    }
}

/// Kills everything that is still a child of this process, and what becomes one by that. How many
/// had to be killed.
pub(super) fn kill_orphans() -> u32 {
    let mut killed = 0;
    for _ in 0..ROUNDS {
        for orphan in own_children() {
            kill(orphan, Signal::SIGKILL).ok();
        }
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _)) => killed += 1,
                Ok(WaitStatus::StillAlive) | Err(Errno::EINTR) => break,
                Ok(_) => {}
                Err(_no_child_left) => return killed,
            }
        }
        thread::sleep(ROUND);
    }
    killed
}

/// Empty where the kernel keeps no such list.
fn own_children() -> Vec<Pid> {
    let mut found = Vec::new();
    for task in fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
        found.extend(children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
    }
    found.into_iter().map(Pid::from_raw).collect()
}

/// Somebody to run as.
#[derive(Debug)]
pub(super) struct Account {
    uid: Uid,
    gid: Gid,
    /// The entry of the user database, if there is one.
    pub(super) entry: Option<User>,
}

impl Account {
    /// Looks `text` up: `USER` or `USER:GROUP`, each a name or a number.
    pub(super) fn find(text: &str) -> Result<Self, String> {
        let (user, group) = text.split_once(':').map_or((text, None), |(u, g)| (u, Some(g)));
        let asked = |error: Errno| format!("user {user:?} cannot be looked up: {error}");
        let (uid, entry) = match user.parse().map(Uid::from_raw) {
            Ok(uid) => (uid, User::from_uid(uid).map_err(asked)?),
            Err(_) => {
                let entry = User::from_name(user).map_err(asked)?;
                let entry = entry.ok_or_else(|| format!("there is no user {user:?} here"))?;
                (entry.uid, Some(entry))
            }
        };
        let gid = match (group, &entry) {
            (Some(group), _) => find_group(group)?,
            (None, Some(entry)) => entry.gid,
            (None, None) => {
                return Err(format!(
                    "user {user} has no entry here, so its group must be given, as in {user}:{user}"
                ));
            }
        };
        Ok(Self { uid, gid, entry })
    }

    /// Becomes it.
    pub(super) fn become_it(&self) -> Result<(), String> {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        if (uid, gid) == (self.uid, self.gid) {
            return Ok(());
        }
        if !uid.is_root() {
            return Err(format!(
                "cannot run as user {}: this node runs as user {uid}, and only root can change that",
                self.uid
            ));
        }
        self.leave_root().map_err(|error| format!("cannot run as user {}: {error}", self.uid))
    }

    #[cfg(not(target_vendor = "apple"))]
    fn leave_root(&self) -> nix::Result<()> {
        use nix::unistd::{initgroups, setgid, setgroups, setuid};
        let name = self.entry.as_ref().and_then(|entry| CString::new(&*entry.name).ok());
        match name {
            Some(name) => initgroups(&name, self.gid)?,
            None => setgroups(&[self.gid])?,
        }
        setgid(self.gid)?;
        // Last: after it nothing of the above is allowed.
        setuid(self.uid)
    }

    #[cfg(target_vendor = "apple")]
    fn leave_root(&self) -> nix::Result<()> {
        Err(Errno::ENOTSUP)
    }
}

fn find_group(text: &str) -> Result<Gid, String> {
    if let Ok(gid) = text.parse() {
        return Ok(Gid::from_raw(gid));
    }
    let found = Group::from_name(text)
        .map_err(|error| format!("group {text:?} cannot be looked up: {error}"))?;
    found.map(|group| group.gid).ok_or_else(|| format!("there is no group {text:?} here"))
}

/// Bounds the address space of this process and each it starts.
pub(super) fn limit_address_space(bytes: u64) -> Result<(), String> {
    use nix::sys::resource::{Resource, setrlimit};
    setrlimit(Resource::RLIMIT_AS, bytes, bytes)
        .map_err(|error| format!("memory cannot be limited to {bytes} bytes: {error}"))
}

/// A cgroup of one program, in which its limits hold for all its processes together.
#[derive(Debug)]
pub(super) struct Cgroup(PathBuf);

impl Cgroup {
    /// Makes it and sets `limits`. Ends what an earlier guard of `name`, killed itself, left there.
    pub(super) fn make(base: &Path, name: &str, limits: &Limits) -> Result<Self, String> {
        sweep(base, name);
        let dir = base.join(format!("{name}@{}", std::process::id()));
        let refused = |what: &str, error: io::Error| {
            format!("cgroup {}: cannot {what}: {error}", dir.display())
        };
        fs::create_dir(&dir).map_err(|error| refused("make it", error))?;
        let group = Self(dir.clone());
        let set = |file: &str, value: String| {
            // Opened, not made: a file the kernel did not put there is a controller that is off.
            let opened = fs::OpenOptions::new().write(true).open(dir.join(file));
            opened
                .and_then(|mut file| file.write_all(value.as_bytes()))
                .map_err(|error| refused(&format!("write {value:?} to {file}"), error))
        };
        let done = limits.memory_max.map_or(Ok(()), |bytes| set("memory.max", bytes.to_string()));
        let done = done.and_then(|()| match limits.cpu_millis {
            // The quota of each period of 100 ms, in microseconds.
            Some(millis) => set("cpu.max", format!("{} 100000", u64::from(millis) * 100)),
            None => Ok(()),
        });
        match done {
            Ok(()) => Ok(group),
            Err(error) => {
                group.remove();
                Err(error)
            }
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.0
    }

    /// Kills what is in it and removes it.
    pub(super) fn remove(&self) {
        end_cgroup(&self.0);
    }
}

/// Moves this process into `dir`.
pub(super) fn join_cgroup(dir: &str) -> Result<(), String> {
    fs::write(Path::new(dir).join("cgroup.procs"), "0")
        .map_err(|error| format!("cgroup {dir}: cannot enter it: {error}"))
}

fn sweep(base: &Path, name: &str) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let file_name = entry.file_name();
        let guard = file_name.to_str().and_then(|text| text.rsplit_once('@'));
        let Some((owner, guard)) = guard else { continue };
        let is_gone = guard.parse().is_ok_and(|pid| kill(Pid::from_raw(pid), None).is_err());
        if owner == name && is_gone {
            end_cgroup(&entry.path());
        }
    }
}

fn end_cgroup(dir: &Path) {
    for _ in 0..ROUNDS {
        // Older kernels lack the file; then the guard's own ways have to do.
        let kill = fs::OpenOptions::new().write(true).open(dir.join("cgroup.kill"));
        drop(kill.and_then(|mut kill| kill.write_all(b"1")));
        match fs::remove_dir(dir) {
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => thread::sleep(ROUND),
            Ok(()) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_number_and_an_unknown_number_needs_a_group() {
        let root = Account::find("root").unwrap();
        assert_eq!((root.uid.as_raw(), root.gid.as_raw()), (0, 0));
        assert_eq!(Account::find("0").unwrap().entry.unwrap().name, "root");
        let nobody_knows = Account::find("3999999999:7").unwrap();
        assert_eq!((nobody_knows.uid.as_raw(), nobody_knows.gid.as_raw()), (3_999_999_999, 7));
        for (bad, text) in [
            ("3999999999", "its group must be given"),
            ("no-such-user", "there is no user"),
            ("root:no-such-group", "there is no group"),
        ] {
            assert!(Account::find(bad).unwrap_err().contains(text), "{bad}");
        }
    }

    #[test]
    fn a_controller_that_is_off_is_a_refusal_and_leaves_nothing() {
        let base = tempfile::tempdir().unwrap();
        let limits = Limits { memory_max: Some(1 << 20), ..Limits::default() };
        let error = Cgroup::make(base.path(), "job", &limits).unwrap_err();
        assert!(error.contains("memory.max"), "{error}");
        assert_eq!(fs::read_dir(base.path()).unwrap().count(), 0);
        let missing = base.path().join("missing");
        let error = Cgroup::make(&missing, "job", &limits).unwrap_err();
        assert!(error.contains("cannot make it"), "{error}");
    }
}
