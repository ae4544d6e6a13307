//! The working copy: where it is, what cargo says about it, and how a program is run in it.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cargo_metadata::{Metadata, MetadataCommand};

/// A task that did not succeed, as one sentence for the person at the terminal.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) String);

impl Failure {
    pub(crate) fn new(sentence: impl fmt::Display) -> Self {
        Self(sentence.to_string())
    }

    /// One failure out of a list of findings, each on its own line below `headline`.
    pub(crate) fn list(headline: &str, findings: &[String]) -> Self {
        Self(format!("{headline}\n  {}", findings.join("\n  ")))
    }
}

/// The repository this xtask was built from.
#[derive(Debug)]
pub(crate) struct Checkout {
    pub(crate) root: PathBuf,
    pub(crate) metadata: Metadata,
}

impl Checkout {
    /// Asks cargo about the workspace above this crate.
    pub(crate) fn find() -> Result<Self, Failure> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .expect("xtask/ lies in the repository's root")
            .to_owned();
        let metadata = MetadataCommand::new()
            .current_dir(&root)
            .no_deps()
            .exec()
            .map_err(|error| Failure(format!("cargo metadata failed: {error}")))?;
        Ok(Self { root, metadata })
    }

    /// Where cargo puts what it builds, whatever `CARGO_TARGET_DIR` says.
    pub(crate) fn target(&self) -> PathBuf {
        self.metadata.target_directory.clone().into_std_path_buf()
    }

    /// A `cargo` command in the root, free of what `cargo run` told *this* program.
    pub(crate) fn cargo(&self) -> Command {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(&self.root);
        // `cargo run` describes xtask to us in these. Build scripts that watch them (ring's does)
        // would rebuild on every switch between `cargo test` and `cargo xtask test`.
        for (key, _) in env::vars_os() {
            let name = key.to_string_lossy();
            if name.starts_with("CARGO_PKG_")
                || name.starts_with("CARGO_MANIFEST_")
                || name == "CARGO_CRATE_NAME"
                || name == "CARGO_BIN_NAME"
                || name == "CARGO_PRIMARY_PACKAGE"
            {
                command.env_remove(&key);
            }
        }
        // Incremental state is written for a next build that a CI machine never does.
        if env::var_os("CI").is_some() {
            command.env("CARGO_INCREMENTAL", "0");
        }
        command
    }

    /// The text of a file of the repository.
    pub(crate) fn read(&self, path: &str) -> Result<String, Failure> {
        std::fs::read_to_string(self.root.join(path))
            .map_err(|error| Failure(format!("cannot read {path}: {error}")))
    }
}

/// Runs `command` with our terminal and fails unless it exits with 0.
pub(crate) fn run(command: &mut Command) -> Result<(), Failure> {
    let status = command
        .status()
        .map_err(|error| Failure(format!("cannot start `{}`: {error}", line(command))))?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure(format!("`{}` ended with {status}", line(command))))
    }
}

/// Runs `command` silently; its standard output when it exits with 0, what it complained otherwise.
pub(crate) fn capture(command: &mut Command) -> Result<String, Failure> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure(format!("cannot start `{}`: {error}", line(command))))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Failure(complaint))
    }
}

/// Whether a program of this name is on the search path.
pub(crate) fn on_path(program: &str) -> bool {
    // Debian keeps `ip` and `nft` in sbin, which an ordinary user's PATH often lacks.
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).is_file())
}

/// The command as a person would type it.
fn line(command: &Command) -> String {
    let mut words = vec![
        Path::new(command.get_program())
            .file_name()
            .unwrap_or_else(|| command.get_program())
            .to_string_lossy()
            .into_owned(),
    ];
    words.extend(command.get_args().map(|word| word.to_string_lossy().into_owned()));
    words.join(" ")
}
