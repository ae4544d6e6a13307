//! Debian packages by name: what tests and benches need beyond Rust.

use std::process::Command;

use crate::checkout::{Failure, capture, on_path};

/// A program and the Debian package that brings it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Package {
    pub(crate) program: &'static str,
    pub(crate) package: &'static str,
}

/// What the tests in network namespaces call.
pub(crate) const FOR_NAMESPACES: &[Package] = &[
    Package { program: "ip", package: "iproute2" },
    Package { program: "nft", package: "nftables" },
];

/// What the tests of pages look at them with.
pub(crate) const FOR_PAGES: &[Package] = &[Package { program: "chromium", package: "chromium" }];

/// The peers that the benches run beside us.
pub(crate) const FOR_BENCHES: &[Package] = &[
    Package { program: "erl", package: "erlang-base" },
    Package { program: "nats-server", package: "nats-server" },
];

/// Installs what is missing of `wanted`, with apt-get, as root or through sudo without a password.
///
/// # Errors
/// One sentence naming the packages and why they could not be installed.
pub(crate) fn ensure(wanted: &[Package]) -> Result<(), Failure> {
    let missing = missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = missing.iter().map(|wanted| wanted.package).collect();
    let names_text = names.join(" ");
    let cannot = |why: String| {
        Failure(format!(
            "cannot install {names_text}: {why}; install by hand: apt-get install {names_text}"
        ))
    };
    if !on_path("apt-get") {
        return Err(cannot("this is not Debian or Ubuntu (no apt-get)".into()));
    }
    let prefix = elevation().ok_or_else(|| {
        cannot("neither root nor sudo without a password is available".to_owned())
    })?;
    println!("installing {names_text}");
    apt(prefix, &["update", "-qq"]).map_err(|Failure(why)| cannot(why))?;
    let mut arguments = vec!["install", "-qq", "-y", "--no-install-recommends"];
    arguments.extend(names);
    apt(prefix, &arguments).map_err(|Failure(why)| cannot(why))?;
    match self::missing(wanted).first() {
        None => Ok(()),
        Some(still) => Err(Failure(format!(
            "{} was installed and still brings no `{}`",
            still.package, still.program
        ))),
    }
}

/// What of `wanted` is not on this machine.
pub(crate) fn missing(wanted: &[Package]) -> Vec<Package> {
    wanted.iter().copied().filter(|wanted| !on_path(wanted.program)).collect()
}

/// Whether this program runs as root.
pub(crate) fn is_root() -> bool {
    capture(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// The words to put before a command that needs root, or `None` when we cannot become root.
fn elevation() -> Option<&'static [&'static str]> {
    if is_root() {
        return Some(&[]);
    }
    let silent_sudo = on_path("sudo") && capture(Command::new("sudo").args(["-n", "true"])).is_ok();
    silent_sudo.then_some(&["sudo", "-n"])
}

fn apt(prefix: &[&str], arguments: &[&str]) -> Result<String, Failure> {
    let mut words = prefix.to_vec();
    // Through env(1), because sudo drops the environment it was given.
    words.extend(["env", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
    words.extend(arguments);
    capture(Command::new(words[0]).args(&words[1..])).map_err(|Failure(complaint)| {
        let last = complaint.lines().last().unwrap_or("no reason given");
        Failure(format!("apt-get {} failed: {last}", arguments[0]))
    })
}
