//! Dependencies that no source file names: build time and risk for nothing.
//!
//! Rust's own lint for this sees one target at a time and cannot tell a dependency of the tests
//! from one of the library. This looks for the crate's name as a word, which errs on the side of
//! silence.

use std::collections::BTreeMap;
use std::path::Path;

use cargo_metadata::{Dependency, DependencyKind, Package};

use crate::checkout::{Checkout, Failure};
use crate::docs::{files_below, read};

/// Libraries whose crate name differs from their package's by more than dashes.
const RENAMED: &[(&str, &str)] = &[("md-5", "md5"), ("rustls-webpki", "webpki")];

/// Prints that every dependency is used, or fails naming each that is not.
pub(crate) fn run(checkout: &Checkout) -> Result<(), Failure> {
    let unused = unused(checkout)?;
    if unused.is_empty() {
        println!("every direct dependency is named by a source file");
        Ok(())
    } else {
        Err(Failure::list("dependencies that no source file names:", &unused))
    }
}

fn unused(checkout: &Checkout) -> Result<Vec<String>, Failure> {
    let renamed: BTreeMap<&str, &str> = RENAMED.iter().copied().collect();
    let mut found = Vec::new();
    for package in checkout.metadata.workspace_packages() {
        let sources = Sources::of(package)?;
        for dependency in &package.dependencies {
            let name = dependency.rename.as_ref().unwrap_or(&dependency.name);
            let word = renamed
                .get(name.as_str())
                .map_or_else(|| name.replace('-', "_"), |&crate_name| crate_name.to_owned());
            // A library listed for tests too is there for its features.
            let twice = dependency.kind == DependencyKind::Development
                && package.dependencies.iter().any(|other| is_the_same(other, dependency));
            if !twice && !has_word(sources.seen_by(dependency.kind), &word) {
                found.push(format!("{}: {}", package.name, dependency.name));
            }
        }
    }
    Ok(found)
}

fn is_the_same(other: &Dependency, dependency: &Dependency) -> bool {
    other.name == dependency.name && other.kind == DependencyKind::Normal
}

/// The text of a package's Rust files.
struct Sources {
    library: String,
    all: String,
}

impl Sources {
    fn of(package: &Package) -> Result<Self, Failure> {
        let root = package.manifest_path.as_std_path().parent().expect("a manifest has a folder");
        Ok(Self { library: text_below(&root.join("src"))?, all: text_below(root)? })
    }

    fn seen_by(&self, kind: DependencyKind) -> &str {
        if kind == DependencyKind::Normal { &self.library } else { &self.all }
    }
}

fn text_below(folder: &Path) -> Result<String, Failure> {
    files_below(folder, "rs")?.iter().map(|file| read(file)).collect()
}

/// Whether `word` occurs in `text` and is not a part of a longer one.
fn has_word(text: &str, word: &str) -> bool {
    let continues = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        !text[..at].ends_with(continues) && !text[at + word.len()..].starts_with(continues)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_direct_dependency_is_named_by_a_source_file() {
        assert_eq!(unused(&Checkout::find().unwrap()).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_part_of_a_longer_word_is_not_the_word() {
        assert!(has_word("use serde::Serialize;", "serde"));
        assert!(!has_word("use serde_json::Value;", "serde"));
        assert!(!has_word("use my_serde::Value;", "serde"));
    }
}
