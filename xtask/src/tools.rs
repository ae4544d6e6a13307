//! cargo-deny, at one version, installed where only this checkout sees it.

use std::path::PathBuf;
use std::process::Command;

use crate::checkout::{Checkout, Failure, capture, run};

/// Bump by hand: a new cargo-deny may know new lints, and CI must not fail on a day nobody changed
/// anything.
const CARGO_DENY: &str = "0.20.2";

/// The pinned cargo-deny, installed into the target directory unless it is already there.
pub(crate) fn cargo_deny(checkout: &Checkout) -> Result<PathBuf, Failure> {
    let root = checkout.target().join("tools");
    let binary = root.join("bin/cargo-deny");
    if has_version(&binary) {
        return Ok(binary);
    }
    println!("installing cargo-deny {CARGO_DENY} into {}", root.display());
    // A debug build takes a quarter of the time of a release build and checks this tree in seconds.
    run(checkout
        .cargo()
        .args(["install", "--quiet", "--locked", "--debug", "--force"])
        .args(["cargo-deny", "--version", CARGO_DENY])
        .arg("--root")
        .arg(&root)
        .env("CARGO_TARGET_DIR", root.join("build")))?;
    // Half a gigabyte that nobody needs again.
    let build = root.join("build");
    std::fs::remove_dir_all(&build)
        .map_err(|error| Failure(format!("cannot remove {}: {error}", build.display())))?;
    Ok(binary)
}

/// Whether `binary` is the pinned version.
fn has_version(binary: &PathBuf) -> bool {
    capture(Command::new(binary).arg("--version"))
        .is_ok_and(|text| text.trim() == format!("cargo-deny {CARGO_DENY}"))
}
