//! The per-user file in which `up` leaves its URLs and token for the other commands.
//!
//! `$XDG_STATE_HOME/purlin/clusters.json`, or `~/.local/state/purlin/clusters.json`; readable by
//! its owner alone, because it names the token file. Several clusters may run at once: the one
//! started last is the default, and each token is only ever sent to the URLs it belongs to.

use std::{
    env, fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// One running `up`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalCluster {
    /// Its directory.
    pub(crate) dir: PathBuf,
    /// The process id of `up`.
    pub(crate) pid: u32,
    /// File with the token of its nodes.
    pub(crate) token_file: PathBuf,
    /// Its nodes, in order.
    pub(crate) nodes: Vec<LocalNode>,
}

/// A node of a [`LocalCluster`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LocalNode {
    pub(crate) name: String,
    pub(crate) url: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct StateFile {
    clusters: Vec<LocalCluster>,
}

/// Where the file is; `None` when the user has no home.
pub(crate) fn path() -> Option<PathBuf> {
    xdg("XDG_STATE_HOME", ".local/state").map(|dir| dir.join("purlin/clusters.json"))
}

/// Where `up` keeps its cluster when nobody says otherwise.
pub(crate) fn default_cluster_dir() -> Option<PathBuf> {
    xdg("XDG_DATA_HOME", ".local/share").map(|dir| dir.join("purlin/up"))
}

fn xdg(variable: &str, under_home: &str) -> Option<PathBuf> {
    // The specification says that relative values are to be ignored.
    let set = env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    set.or_else(|| {
        env::var_os("HOME")
            .filter(|home| !home.is_empty())
            .map(|home| Path::new(&home).join(under_home))
    })
}

/// The clusters that were announced and still run, the newest last. An absent or unreadable file
/// means none: the commands work without it.
pub(crate) fn clusters() -> Vec<LocalCluster> {
    let mut clusters = path().map(|path| read(&path).clusters).unwrap_or_default();
    // One that was killed could not take its announcement back; its nodes went with it.
    clusters.retain(|cluster| is_running(cluster.pid));
    clusters
}

fn read(path: &Path) -> StateFile {
    fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Announces `cluster`, replacing what was said about its directory or by processes now gone.
pub(crate) fn announce(cluster: LocalCluster) -> io::Result<()> {
    update(|clusters| {
        clusters.retain(|other| other.dir != cluster.dir && is_running(other.pid));
        clusters.push(cluster);
    })
}

/// Takes back what process `pid` announced.
pub(crate) fn withdraw(pid: u32) -> io::Result<()> {
    update(|clusters| clusters.retain(|cluster| cluster.pid != pid))
}

fn update(change: impl FnOnce(&mut Vec<LocalCluster>)) -> io::Result<()> {
    let Some(path) = path() else { return Ok(()) };
    let dir = path.parent().expect("the path ends in purlin/clusters.json");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    // Two `up`s may start in the same moment.
    let lock = fs::OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(dir.join("clusters.lock"))?;
    lock.lock()?;
    let mut state = read(&path);
    change(&mut state.clusters);
    let aside = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&aside)?;
    file.write_all(&serde_json::to_vec_pretty(&state)?)?;
    fs::rename(&aside, &path)
}

/// Whether a process with this id exists.
pub(crate) fn is_running(pid: u32) -> bool {
    i32::try_from(pid).is_ok_and(|pid| {
        !matches!(
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None),
            Err(nix::errno::Errno::ESRCH)
        )
    })
}
