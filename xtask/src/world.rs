//! Floors 0 to 7 take time, randomness, sockets, files and threads from outside.
//!
//! A simulation repeats itself only as long as nobody reaches past its environment, and one line is
//! enough to break it: a clock read in passing, a `select!` that polls in a random order. Such a
//! line works in every other test, so it is looked for here. The few places where the world may
//! enter are listed beside what may enter there.

use std::{collections::BTreeSet, fs, path::Path};

use crate::{
    checkout::{Checkout, Failure},
    docs::files_below,
    floors::{Place, place},
};

/// The highest floor that a simulated node is made of.
const TOP: u64 = 7;

/// What stands for a part of the world, and the files it may stand in.
const DOORS: &[(&str, &[&str])] = &[
    ("Instant::now()", &["purlin-core/src/time.rs"]),
    ("SystemTime::now()", &["purlin-core/src/time.rs"]),
    // A registry of processes without a node, and certificates for development.
    (
        "SystemClock::new()",
        &["purlin-process/src/system.rs", "purlin/src/dev.rs", "purlin/src/environment.rs"],
    ),
    ("Rng::from_os", &["purlin/src/environment.rs"]),
    ("SysRng", &["purlin-core/src/rng.rs"]),
    ("SystemRandom", &["purlin-net/src/datagram.rs"]),
    // A guard is a process of its own, beside a node and not in it; no simulated node starts one.
    ("thread::spawn", &["purlin-dist/src/exec/guard.rs"]),
    ("thread::sleep", &["purlin-dist/src/exec/os.rs"]),
    ("thread::Builder", &["purlin-store/src/log.rs"]),
    ("spawn_blocking", &["purlin/src/data_dir.rs"]),
    ("block_in_place", &[]),
    ("TcpStream::connect", &["purlin-net/src/network.rs"]),
    ("TcpListener::bind", &["purlin-net/src/network.rs"]),
    ("UdpSocket::bind", &["purlin-net/src/network.rs"]),
    ("lookup_host", &["purlin-cluster/src/discovery/static_seeds.rs"]),
    // The output of programs, which no simulated node runs.
    ("tokio::fs", &["purlin-cluster/src/discovery/seed_file.rs", "purlin-dist/src/exec/files.rs"]),
    (
        "std::fs::",
        &["purlin-store/src/disk.rs", "purlin/src/config.rs", "purlin/src/config/source.rs"],
    ),
];

/// Every line of the house that lets the world in where it should not, and every door that nobody
/// uses any more.
fn leaks(checkout: &Checkout) -> Result<Vec<String>, Failure> {
    let mut found = Vec::new();
    let mut used = BTreeSet::new();
    for package in checkout.metadata.workspace_packages() {
        if !matches!(place(package), Ok(Place::Floor(floor)) if floor <= TOP) {
            continue;
        }
        let folder = package.manifest_path.with_file_name("src");
        for path in files_below(folder.as_std_path(), "rs")? {
            let name = path.strip_prefix(checkout.root.join("crates")).unwrap_or(&path);
            let Some(name) = name.to_str().filter(|_| !is_test(name)) else { continue };
            let text = fs::read_to_string(&path)
                .map_err(|error| Failure(format!("cannot read {}: {error}", path.display())))?;
            for (line, what) in leaks_in(&text, name, &mut used) {
                found.push(format!("crates/{name}:{line}: {what}"));
            }
        }
    }
    for (what, files) in DOORS {
        let unused = files.iter().filter(|file| !used.contains(&(*what, **file)));
        found.extend(
            unused.map(|file| format!("crates/{file} has no `{what}`: take it off the list")),
        );
    }
    Ok(found)
}

fn is_test(path: &Path) -> bool {
    path.components().any(|part| matches!(part.as_os_str().to_str(), Some("tests.rs" | "tests")))
}

/// The leaks of one file with their line numbers; its doors are noted in `used`.
fn leaks_in<'a>(
    text: &str,
    name: &str,
    used: &mut BTreeSet<(&'a str, &'a str)>,
) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    // A module of tests written out ends the file; one in a file of its own does not.
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let code: Vec<(usize, &str)> = (1..)
        .zip(text[..end].lines())
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .collect();
    for (at, (number, line)) in code.iter().enumerate() {
        for (what, files) in DOORS {
            // Tokio's clock is the runtime's, which a simulation drives.
            if !line.contains(what) || line.contains("tokio::time::Instant::now()") {
                continue;
            }
            match files.iter().find(|file| **file == name) {
                Some(file) => drop(used.insert((*what, *file))),
                None => found.push((*number, format!("`{what}` is for the environment to give"))),
            }
        }
        let next = code.get(at + 1).map_or("", |(_, next)| next.trim());
        if line.contains("select! {") && next != "biased;" {
            found.push((*number, "`select!` without `biased;` polls in a random order".to_owned()));
        }
        if line.contains("sync::") && line.contains("watch") && !line.contains("purlin_core") {
            let what = "tokio's `watch` wakes in a random order; `purlin_core::watch` does not";
            found.push((*number, what.to_owned()));
        }
    }
    found
}

#[test]
fn nobody_below_the_facade_reaches_past_the_environment() {
    assert_eq!(leaks(&Checkout::find().unwrap()).unwrap(), Vec::<String>::new());
}

#[test]
fn a_leak_is_found_in_code_and_not_in_comments_or_tests() {
    let text = "// Instant::now() is not for us\nlet at = std::time::Instant::now();\n\
                tokio::select! {\n    // Why.\n    biased;\n}\ntokio::select! {\n    a = b => {}\n}\n\
                use tokio::sync::{mpsc, watch};\nlet at = tokio::time::Instant::now();\n\
                #[cfg(test)]\nmod tests {\nfn now() { Instant::now() }\n}\n";
    let lines = |name| -> Vec<usize> {
        leaks_in(text, name, &mut BTreeSet::new()).into_iter().map(|(line, _)| line).collect()
    };
    assert_eq!(lines("purlin-net/src/peer.rs"), [2, 7, 10]);
    assert_eq!(lines("purlin-core/src/time.rs"), [7, 10], "it has a door there");
}
