//! What contenders need to start: paths, free ports, one private `epmd` for all Erlang nodes.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::failure::Failure;
use crate::peers::erlang::Erlang;
use crate::rig::Process;

/// Shared by all cases of one run.
#[derive(Debug)]
pub(crate) struct Workshop {
    scratch: TempDir,
    exe: PathBuf,
    erlang: OnceLock<Erlang>,
}

impl Workshop {
    pub(crate) fn open() -> Result<Self, Failure> {
        let scratch = tempfile::Builder::new()
            .prefix("purlin-bench-")
            .tempdir()
            .map_err(Failure::os("making a scratch directory"))?;
        let exe =
            std::env::current_exe().map_err(Failure::os("finding this program's own path"))?;
        Ok(Self { scratch, exe, erlang: OnceLock::new() })
    }

    /// A directory that is removed with everything in it at the end.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// A new, empty directory for a contender, as text.
    pub(crate) fn new_folder(&self, purpose: &str) -> Result<String, Failure> {
        let folder = tempfile::Builder::new()
            .prefix(purpose)
            .tempdir_in(self.scratch())
            .map_err(Failure::os("making a directory"))?;
        Ok(folder.keep().display().to_string())
    }

    /// Starts this program again in a hidden role.
    pub(crate) fn role(&self, role: &str, arguments: &[&str]) -> Result<Process, Failure> {
        let mut command = Command::new(&self.exe);
        command.arg("--role").arg(role).args(arguments);
        Process::start(role, command)
    }

    /// The Erlang side: modules compiled, `epmd` running. Done once.
    pub(crate) fn erlang(&self) -> Result<&Erlang, Failure> {
        if let Some(erlang) = self.erlang.get() {
            return Ok(erlang);
        }
        let erlang = Erlang::prepare(self.scratch())?;
        Ok(self.erlang.get_or_init(|| erlang))
    }

    /// The `purlin` binary next to this one.
    pub(crate) fn purlin(&self) -> Result<PathBuf, Failure> {
        let path = self.exe.with_file_name("purlin");
        if path.is_file() {
            Ok(path)
        } else {
            Err(Failure::NotBuilt { path: path.display().to_string() })
        }
    }
}

/// A loopback port that was free a moment ago.
pub(crate) fn free_port() -> Result<u16, Failure> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(Failure::os("looking for a free port"))
}

/// Waits until something listens at `address`.
pub(crate) fn wait_for_listener(who: &str, address: SocketAddr) -> Result<(), Failure> {
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match TcpStream::connect(address) {
            Ok(_) => return Ok(()),
            Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(5)),
            Err(error) => {
                return Err(Failure::os(format!("waiting for {who} at {address}"))(error));
            }
        }
    }
}
