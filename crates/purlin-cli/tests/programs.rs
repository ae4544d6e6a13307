//! Programs of the operating system as processes, guarded by the real binary.

#![expect(clippy::unwrap_used, reason = "a test that cannot set up its scene has failed")]

use std::{
    fs::Permissions,
    future::Future,
    os::unix::fs::PermissionsExt as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use purlin::{
    core::{Incarnation, NodeId, SystemClock},
    dist::exec::{
        Exec, ExecArgs, ExecHost, ExecSpec, GuardCommand, LogLimits, LogStream, Logs,
        ProgramStatus, StopSignal,
    },
    process::{ExitReason, ProcessRef, Processes, SpawnError, SpawnOptions},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A node as far as programs need one.
struct Scene {
    processes: Processes,
    host: Arc<ExecHost>,
    fence: AtomicU64,
}

struct Program {
    process: ProcessRef<Exec>,
    logs: Logs,
    me: NodeId,
}

impl Scene {
    fn new() -> Self {
        Self::guarded_by(GuardCommand::program(env!("CARGO_BIN_EXE_purlin")))
    }

    fn guarded_by(guard: GuardCommand) -> Self {
        let clock = Arc::new(SystemClock::new());
        let host = ExecHost {
            node: NodeId { name: "n2".parse().unwrap(), incarnation: Incarnation(3) },
            clock: clock.clone(),
            guard,
            logs: Logs::new(LogLimits::default(), None, clock),
            cgroup: None,
            url: None,
        };
        Self { processes: Processes::for_tests(), host: Arc::new(host), fence: AtomicU64::new(7) }
    }

    async fn try_start(&self, spec: ExecSpec) -> Result<Program, SpawnError> {
        let args = ExecArgs {
            host: Arc::clone(&self.host),
            name: "job".into(),
            spec,
            fence: self.fence.fetch_add(1, Ordering::Relaxed),
            restarts: 2,
        };
        let options = SpawnOptions { terminate_within: PATIENCE, ..SpawnOptions::default() };
        let process = self.processes.spawn_remote::<Exec>(args, options).await?;
        Ok(Program { process, logs: self.host.logs.clone(), me: self.host.node.clone() })
    }

    async fn start(&self, script: &str) -> Program {
        self.try_start(sh(script)).await.unwrap()
    }
}

fn sh(script: &str) -> ExecSpec {
    ExecSpec::new("sh").args(["-c", script])
}

impl Program {
    /// What was written so far, by `stream`.
    async fn said(&self, stream: LogStream) -> Vec<String> {
        let Some(log) = self.logs.get("job").await else { return Vec::new() };
        let page = log.after(0, usize::MAX);
        let lines = page.lines.into_iter().filter(|line| line.stream == stream);
        lines.map(|line| line.text).collect()
    }

    async fn wait_for_line(&self, begins: &str) -> String {
        until(&format!("it says {begins:?}"), || async {
            self.said(LogStream::Out).await.into_iter().find(|line| line.starts_with(begins))
        })
        .await
    }

    /// The number behind `word` in a line of its own.
    async fn wait_for_pid(&self, word: &str) -> i32 {
        let line = self.wait_for_line(word).await;
        line[word.len()..].trim().parse().unwrap()
    }

    async fn status(&self) -> ProgramStatus {
        purlin::dist::exec::ExecHandle::from(self.process.clone()).status().await.unwrap()
    }

    async fn end(&self) -> ExitReason {
        tokio::time::timeout(PATIENCE, self.process.exited()).await.unwrap()
    }

    /// The last thing the node noted.
    async fn last_note(&self) -> String {
        self.said(LogStream::Note).await.pop().unwrap()
    }
}

async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut look: impl FnMut() -> F) -> T {
    let looking = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

fn is_gone(pid: i32) -> bool {
    // Whose parent was killed is reaped by the first process of the machine, if that does so.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let is_dead = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
    is_dead || kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH)
}

async fn wait_until_gone(pid: i32) {
    until(&format!("{pid} is gone"), || async { is_gone(pid).then_some(()) }).await;
}

#[tokio::test]
async fn a_program_is_told_who_it_is_and_its_output_and_status_are_kept() {
    let scene = Scene::new();
    let script = "echo $PURLIN_CHILD $PURLIN_FENCE $PURLIN_RESTARTS $PURLIN_NODE_NAME $FRUIT; \
                  pwd; echo oops >&2; cat; exit 3";
    let mut spec = sh(script);
    spec.env.insert("FRUIT".to_owned(), "two pears".to_owned());
    spec.cwd = Some("/usr".to_owned());
    // The end may come before the start has been told of.
    let program = scene.try_start(spec).await.unwrap();
    let reason = program.end().await;
    until("the end is noted", || async {
        program.last_note().await.starts_with("ended").then_some(())
    })
    .await;
    assert_eq!(program.said(LogStream::Out).await, ["job 7 2 n2 two pears", "/usr"]);
    assert_eq!(program.said(LogStream::Err).await, ["oops"]);
    assert_eq!(program.last_note().await, "ended: exit status 3");
    let expected = ExitReason::failed("exit status 3");
    assert!(reason == expected || reason == ExitReason::NoProcess, "{reason}");
}

#[tokio::test]
async fn the_end_of_a_program_is_the_end_of_its_process_and_says_how() {
    let scene = Scene::new();
    for (script, expected) in [
        ("exit 0", ExitReason::Normal),
        ("exit 3", ExitReason::failed("exit status 3")),
        ("ulimit -c 0; kill -SEGV $$", ExitReason::failed("killed by SIGSEGV")),
    ] {
        // Held back until somebody waits for its end.
        let dir = tempfile::tempdir().unwrap();
        let go = dir.path().join("go");
        let wait = format!("while [ ! -e {} ]; do sleep 0.02; done; {script}", go.display());
        let program = scene.start(&wait).await;
        let status = program.status().await;
        assert_eq!((&*status.name, status.restarts, status.node), ("job", 2, program.me.clone()));
        let end = tokio::spawn({
            let process = program.process.clone();
            async move { process.exited().await }
        });
        until("somebody waits", || async {
            (program.process.untyped().info().monitors > 0).then_some(())
        })
        .await;
        std::fs::write(go, "").unwrap();
        let reason = tokio::time::timeout(PATIENCE, end).await.unwrap().unwrap();
        assert_eq!(reason, expected, "{script}");
        assert!(is_gone(status.pid));
    }
}

#[tokio::test]
async fn asked_to_stop_it_gets_its_signal_and_its_last_words_are_kept() {
    let scene = Scene::new();
    let mut spec = sh("trap 'echo bye; exit 0' INT; echo ready; while :; do sleep 0.05; done");
    spec.stop_signal = StopSignal::Int;
    spec.grace = PATIENCE;
    let program = scene.try_start(spec).await.unwrap();
    program.wait_for_line("ready").await;
    program.process.stop(ExitReason::Shutdown);
    program.end().await;
    assert_eq!(program.said(LogStream::Out).await, ["ready", "bye"]);
    let notes = program.said(LogStream::Note).await;
    assert_eq!(notes[1..], ["stopping with SIGINT: shutdown", "ended: exit status 0"]);
}

#[tokio::test]
async fn it_hears_a_signal_that_its_node_was_started_to_ignore() {
    // As a node does that is started in the background of a script.
    let script = "echo $$; trap - INT; while :; do sleep 0.05; done";
    let ignoring = format!("trap '' INT; exec {} \"$@\"", env!("CARGO_BIN_EXE_purlin"));
    let dir = tempfile::tempdir().unwrap();
    let wrapper = dir.path().join("ignoring.sh");
    std::fs::write(&wrapper, format!("#!/bin/sh\n{ignoring}\n")).unwrap();
    std::fs::set_permissions(&wrapper, Permissions::from_mode(0o755)).unwrap();
    let scene = Scene::guarded_by(GuardCommand::program(&wrapper));
    let mut spec = sh(script);
    spec.stop_signal = StopSignal::Int;
    spec.grace = PATIENCE;
    let program = scene.try_start(spec).await.unwrap();
    let pid = program.status().await.pid;
    program.wait_for_line(&pid.to_string()).await;
    program.process.stop(ExitReason::Shutdown);
    program.end().await;
    assert_eq!(program.last_note().await, "ended: killed by SIGINT");
}

#[tokio::test]
async fn one_that_ignores_its_signal_is_killed_with_all_it_started() {
    let scene = Scene::new();
    let mut spec =
        sh("trap '' TERM; sleep 1000 & echo same $!; setsid sleep 1000 & echo other $!; \
         setsid setsid sh -c 'echo grand $$; exec sleep 1000' & while :; do sleep 0.05; done");
    spec.grace = Duration::from_millis(50);
    let program = scene.try_start(spec).await.unwrap();
    let mut pids = vec![program.status().await.pid];
    for word in ["same", "other", "grand"] {
        pids.push(program.wait_for_pid(word).await);
    }
    assert!(pids.iter().all(|pid| !is_gone(*pid)));
    program.process.stop(ExitReason::Shutdown);
    program.end().await;
    // Not "soon": when the process has ended, they have.
    for pid in pids {
        assert!(is_gone(pid), "{pid}");
    }
}

#[tokio::test]
async fn what_a_program_leaves_behind_ends_with_it() {
    let scene = Scene::new();
    let program = scene.start("setsid sleep 1000 & echo left $!; exit 0").await;
    let left = program.wait_for_pid("left").await;
    until("it has ended", || async { (!program.process.is_alive()).then_some(()) }).await;
    wait_until_gone(left).await;
    let note = program.last_note().await;
    assert_eq!(note, "ended: exit status 0; a process it had left behind was killed");
}

#[tokio::test]
async fn a_process_that_is_killed_takes_its_program_along() {
    let scene = Scene::new();
    let program = scene.start("trap '' TERM; setsid sleep 1000 & echo left $!; wait").await;
    let (pid, left) = (program.status().await.pid, program.wait_for_pid("left").await);
    program.process.kill();
    wait_until_gone(pid).await;
    wait_until_gone(left).await;
}

#[tokio::test]
async fn a_guard_that_is_killed_takes_the_program_along_and_the_process_says_so() {
    let scene = Scene::new();
    let program = scene.start("sleep 1000 & echo same $!; wait").await;
    let (pid, same) = (program.status().await.pid, program.wait_for_pid("same").await);
    let stat = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let guard = stat.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap();
    kill(Pid::from_raw(guard.trim().parse().unwrap()), Signal::SIGKILL).unwrap();
    program.end().await;
    wait_until_gone(pid).await;
    wait_until_gone(same).await;
    until("it is noted", || async {
        (program.last_note().await == "ended: its guard was killed").then_some(())
    })
    .await;
}

/// The runtime does nothing meanwhile, as if the node were stopped, swapped out or paused.
#[tokio::test]
async fn a_singleton_does_not_outlast_the_silence_of_its_node() {
    let scene = Scene::new();
    let mut spec = sh("echo ready; sleep 1000");
    spec.singleton = true;
    let program = scene.try_start(spec).await.unwrap();
    program.wait_for_line("ready").await;
    let pid = program.status().await.pid;
    for _ in 0..600 {
        // A zombie until its guard has reaped it, which needs nothing of us.
        if is_gone(pid) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(is_gone(pid));
    program.end().await;
    assert_eq!(program.last_note().await, "ended: killed by SIGKILL");
}

#[tokio::test]
async fn what_cannot_start_says_why_and_leaves_nothing() {
    let scene = Scene::new();
    type Spoil = fn(&mut ExecSpec);
    let cases: [(Spoil, &str); 8] = [
        (|spec| spec.command = "/no/such/program".into(), "cannot run /no/such/program: No such"),
        (|spec| spec.command = "no-such-program".into(), "cannot run no-such-program: No such"),
        (|spec| spec.command = "/etc/passwd".into(), "cannot run /etc/passwd: Permission denied"),
        (
            |spec| spec.cwd = Some("/no/such/dir".into()),
            "cannot start in \"/no/such/dir\": No such",
        ),
        (|spec| spec.user = Some("no-such-user".into()), "there is no user \"no-such-user\" here"),
        (|spec| spec.cpu_millis = Some(500), "cpus of 0.500 needs a cgroup"),
        (|spec| spec.cwd = Some("here".into()), "cwd \"here\" is not an absolute path"),
        (|spec| spec.args = vec!["x".repeat(65 << 10)], "exceeds limit 57344"),
    ];
    for (spoil, expected) in cases {
        let mut spec = sh("echo never");
        spoil(&mut spec);
        let error = scene.try_start(spec).await.err().unwrap().to_string();
        assert!(error.contains(expected), "{error:?} does not say {expected:?}");
    }
    let log = scene.host.logs.get("job").await.unwrap().after(0, usize::MAX);
    assert!(log.lines.iter().all(|line| line.text.starts_with("cannot start: ")), "{log:?}");
}

#[tokio::test]
async fn memory_is_limited_for_real() {
    let scene = Scene::new();
    let mut spec = ExecSpec::new("dd").args(["if=/dev/zero", "of=/dev/null", "bs=256M", "count=1"]);
    spec.memory_max = Some(64 << 20);
    let program = scene.try_start(spec).await.unwrap();
    until("it has ended", || async { (!program.process.is_alive()).then_some(()) }).await;
    let said = program.said(LogStream::Err).await.join(" ");
    assert!(said.contains("memory exhausted"), "{said}");
}

#[tokio::test]
async fn a_program_runs_as_another_user_if_the_node_may_change_it() {
    let scene = Scene::new();
    let mut spec = sh("id -u; id -G; echo $HOME $USER; grep -c . /proc/self/fd/0; sleep 1000");
    spec.user = Some("nobody".to_owned());
    match scene.try_start(spec).await {
        Ok(program) if nix::unistd::geteuid().is_root() => {
            program.wait_for_line("/").await;
            let said = program.said(LogStream::Out).await;
            assert_ne!(said[0], "0");
            assert!(!said[1].split(' ').any(|group| group == "0"), "{said:?}");
            assert!(said[2].ends_with(" nobody"), "{said:?}");
        }
        Ok(_) => panic!("not root, and it runs as another user"),
        Err(error) => {
            assert!(!nix::unistd::geteuid().is_root(), "{error}");
            assert!(error.to_string().contains("only root can change that"), "{error}");
        }
    }
}

#[tokio::test]
async fn a_flood_of_garbage_is_bounded_and_holds_up_nobody() {
    let scene = Scene::new();
    let program = scene.start("cat /dev/zero & cat /dev/urandom >&2").await;
    let limits = LogLimits::default();
    let log = until("there is a log", || scene.host.logs.get("job")).await;
    until("it has been filled over and over", || async {
        (log.after(1, 1).missed > 0).then_some(())
    })
    .await;
    assert_eq!(program.status().await.fence, 7);
    let bytes: usize = log.after(0, usize::MAX).lines.iter().map(|line| line.text.len()).sum();
    assert!(bytes <= limits.memory_bytes_max);
    program.process.stop(ExitReason::Shutdown);
    program.end().await;
}
