//! What the documents claim about the tree, checked against the tree.
//!
//! A document rots silently: a renamed file, test or command leaves a sentence behind that nobody
//! runs. So every path in ARCHITECTURE.md, every link, every test named in the table of promises,
//! every `cargo xtask` command and every row of docs/dependencies.md is looked up. What README.md
//! says about the binary is checked by `crates/purlin-cli/tests/documents.rs`, which has the binary.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::DependencyKind;
use clap::Parser;

use crate::checkout::{Checkout, Failure};
use crate::floors::{self, Place};

/// Prints that all claims hold, or fails with every one that does not.
pub(crate) fn run(checkout: &Checkout) -> Result<(), Failure> {
    let mut wrong = Vec::new();
    wrong.extend(missing_paths(checkout)?);
    wrong.extend(missing_documents(checkout)?);
    wrong.extend(missing_tests(checkout)?);
    wrong.extend(broken_links(checkout)?);
    wrong.extend(unknown_tasks(checkout)?);
    wrong.extend(unlisted_dependencies(checkout)?);
    if wrong.is_empty() {
        println!("the documents agree with the tree");
        Ok(())
    } else {
        Err(Failure::list("documents that disagree with the tree:", &wrong))
    }
}

/// Paths named in ARCHITECTURE.md that are not in the tree.
fn missing_paths(checkout: &Checkout) -> Result<Vec<String>, Failure> {
    let text = checkout.read("ARCHITECTURE.md")?;
    Ok(code_spans(&text)
        .into_iter()
        .filter(|(_, span)| is_path(&checkout.root, span))
        .filter(|(_, span)| !checkout.root.join(span).exists())
        .map(|(line, span)| format!("ARCHITECTURE.md:{line}: `{span}` does not exist"))
        .collect())
}

/// Documents that a source file refers its reader to and that are not there.
fn missing_documents(checkout: &Checkout) -> Result<Vec<String>, Failure> {
    let mut wrong = Vec::new();
    for file in sources(&checkout.root)? {
        let text = read(&file)?;
        let shown = file.strip_prefix(&checkout.root).unwrap_or(&file).display();
        for (index, line) in text.lines().enumerate() {
            for path in documents_named(line) {
                if !checkout.root.join(path).exists() {
                    wrong.push(format!("{shown}:{}: `{path}` does not exist", index + 1));
                }
            }
        }
    }
    Ok(wrong)
}

/// The `docs/….md` paths in one line of a comment.
fn documents_named(line: &str) -> Vec<&str> {
    let Some((_, comment)) = line.split_once("//") else {
        return Vec::new();
    };
    comment
        .split(|c: char| !(c.is_ascii_alphanumeric() || "/._-".contains(c)))
        .filter(|word| word.starts_with("docs/") && word.ends_with(".md"))
        .collect()
}

/// Whether a piece of inline code claims to be a file or folder of this repository.
fn is_path(root: &Path, span: &str) -> bool {
    let plain = span.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c));
    let source = span.ends_with(".rs");
    let below_a_folder = span
        .split_once('/')
        .is_some_and(|(first, _)| !first.is_empty() && root.join(first).is_dir());
    let document = !span.contains('/')
        && Path::new(span).extension().is_some_and(|extension| extension == "md");
    plain && (source || below_a_folder || document)
}

/// Tests promised in ARCHITECTURE.md's tables that no file defines.
fn missing_tests(checkout: &Checkout) -> Result<Vec<String>, Failure> {
    let text = checkout.read("ARCHITECTURE.md")?;
    let defined = tests_in_tree(&checkout.root)?;
    let promised: Vec<(usize, &str)> =
        code_spans(&text).into_iter().filter(|(_, span)| is_test_name(span)).collect();
    let mut wrong: Vec<String> = promised
        .iter()
        .filter(|(_, name)| !defined.contains(*name))
        .map(|(line, name)| format!("ARCHITECTURE.md:{line}: no test is called `{name}`"))
        .collect();
    if promised.is_empty() {
        wrong.push("ARCHITECTURE.md: the table of promises names no test".to_owned());
    }
    Ok(wrong)
}

/// A test name is a sentence: at least three words, joined by underscores.
fn is_test_name(span: &str) -> bool {
    span.chars()
        .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && span.split('_').filter(|word| !word.is_empty()).count() > 2
        // Metrics are sentences too; they all start with our name.
        && !span.starts_with("purlin_")
}

/// The names of all functions under a test attribute.
fn tests_in_tree(root: &Path) -> Result<BTreeSet<String>, Failure> {
    let mut names = BTreeSet::new();
    for file in sources(root)? {
        names.extend(tests_in(&read(&file)?));
    }
    Ok(names)
}

/// All Rust files of the workspace.
fn sources(root: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    for folder in ["crates", "examples", "bench", "xtask"] {
        found.extend(files_below(&root.join(folder), "rs")?);
    }
    Ok(found)
}

/// The text of a file.
pub(crate) fn read(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file)
        .map_err(|error| Failure(format!("cannot read {}: {error}", file.display())))
}

/// The functions of one file that stand under an attribute like `#[test]` or `#[tokio::test(…)]`.
fn tests_in(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut under_test = false;
    for line in text.lines().map(str::trim) {
        let attribute = line.starts_with("#[");
        if attribute && (line.contains("test]") || line.contains("test(")) {
            under_test = true;
        } else if let Some(signature) =
            line.strip_prefix("fn ").or_else(|| line.strip_prefix("async fn "))
        {
            if under_test && let Some((name, _)) = signature.split_once('(') {
                names.push(name.trim().to_owned());
            }
            under_test = false;
        }
    }
    names
}

/// Links between documents, and into them, that lead nowhere.
fn broken_links(checkout: &Checkout) -> Result<Vec<String>, Failure> {
    let mut wrong = Vec::new();
    for file in documents(&checkout.root)? {
        let text = read(&file)?;
        let shown = file.strip_prefix(&checkout.root).unwrap_or(&file).display();
        let folder = file.parent().expect("a file has a folder");
        for (line, target) in links(&text) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
            let destination = if path.is_empty() { file.clone() } else { folder.join(path) };
            if !destination.exists() {
                wrong.push(format!("{shown}:{line}: link to {target}: no such file"));
            } else if !anchor.is_empty()
                && let Ok(there) = fs::read_to_string(&destination)
                && !anchors(&there).contains(anchor)
            {
                wrong.push(format!("{shown}:{line}: link to {target}: no such heading"));
            }
        }
    }
    Ok(wrong)
}

/// `cargo xtask` commands in documents that this program would refuse.
fn unknown_tasks(checkout: &Checkout) -> Result<Vec<String>, Failure> {
    let mut wrong = Vec::new();
    for document in ["README.md", "CONTRIBUTING.md", "ARCHITECTURE.md"] {
        let text = checkout.read(document)?;
        for (number, line) in text.lines().enumerate() {
            for command in line.split("cargo xtask ").skip(1) {
                let command =
                    command.split(['`', '#', '[', ';', ',', '|', '<']).next().unwrap_or_default();
                let words = ["xtask"].into_iter().chain(command.split_whitespace());
                if let Err(error) = crate::Arguments::try_parse_from(words)
                    && !matches!(
                        error.kind(),
                        clap::error::ErrorKind::DisplayHelp
                            | clap::error::ErrorKind::DisplayVersion
                    )
                {
                    wrong.push(format!(
                        "{document}:{}: `cargo xtask {}` is not a command",
                        number + 1,
                        command.trim()
                    ));
                }
            }
        }
    }
    Ok(wrong)
}

/// The sections of docs/dependencies.md, each with the direct dependencies it must list.
const IN_THE_HOUSE: &str = "In the house";
const IN_ITS_TESTS: &str = "In its tests";
const BESIDE_THE_HOUSE: &str = "Beside the house";

/// Direct dependencies that docs/dependencies.md does not list, and rows for ones we do not have.
fn unlisted_dependencies(checkout: &Checkout) -> Result<Vec<String>, Failure> {
    let text = checkout.read("docs/dependencies.md")?;
    let listed = listed_dependencies(&text);
    let direct = direct_dependencies(checkout);
    let nothing = BTreeSet::new();
    let mut wrong = Vec::new();
    for section in [IN_THE_HOUSE, IN_ITS_TESTS, BESIDE_THE_HOUSE] {
        let (want, have) =
            (direct.get(section).unwrap_or(&nothing), listed.get(section).unwrap_or(&nothing));
        for name in want.difference(have) {
            wrong.push(format!(
                "docs/dependencies.md: `{name}` is a direct dependency and \"{section}\" does not \
                 say why"
            ));
        }
        for name in have.difference(want) {
            wrong.push(format!(
                "docs/dependencies.md: \"{section}\" lists `{name}`, which is no direct dependency \
                 there"
            ));
        }
    }
    Ok(wrong)
}

/// Every direct external dependency, under the one section where its reason is due: a crate used
/// by the house is not listed again for a test or a tool.
fn direct_dependencies(checkout: &Checkout) -> BTreeMap<&'static str, BTreeSet<String>> {
    let members: BTreeSet<&str> = checkout
        .metadata
        .workspace_packages()
        .iter()
        .map(|package| package.name.as_str())
        .collect();
    let (mut house, mut tests, mut beside) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for package in checkout.metadata.workspace_packages() {
        let in_house = matches!(floors::place(package), Ok(Place::Floor(_)));
        for dependency in &package.dependencies {
            if members.contains(dependency.name.as_str()) {
                continue;
            }
            let set = match (in_house, dependency.kind) {
                (true, DependencyKind::Development) => &mut tests,
                (true, _) => &mut house,
                (false, _) => &mut beside,
            };
            set.insert(dependency.name.clone());
        }
    }
    tests.retain(|name| !house.contains(name));
    beside.retain(|name| !house.contains(name) && !tests.contains(name));
    BTreeMap::from([(IN_THE_HOUSE, house), (IN_ITS_TESTS, tests), (BESIDE_THE_HOUSE, beside)])
}

/// The first column of the table below each second-level heading.
fn listed_dependencies(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut listed: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut section = String::new();
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            heading.trim().clone_into(&mut section);
        } else if let Some(row) = line.strip_prefix("| `")
            && let Some((first, _)) = row.split_once(" |")
        {
            let names = format!("`{first}");
            listed
                .entry(section.clone())
                .or_default()
                .extend(code_spans(&names).into_iter().map(|(_, name)| name.to_owned()));
        }
    }
    listed
}

/// All Markdown files we wrote, in order.
fn documents(root: &Path) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    for folder in ["docs", "crates", "examples", "bench", "xtask"] {
        found.extend(files_below(&root.join(folder), "md")?);
    }
    let top =
        fs::read_dir(root).map_err(|error| Failure(format!("cannot list the root: {error}")))?;
    found.extend(
        top.filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "md")),
    );
    found.sort();
    Ok(found)
}

/// The files with this extension below `folder`; none when there is no such folder.
pub(crate) fn files_below(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, Failure> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        if !folder.is_dir() {
            continue;
        }
        let entries = fs::read_dir(&folder)
            .map_err(|error| Failure(format!("cannot list {}: {error}", folder.display())))?;
        for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
            if path.is_dir() {
                if !path.ends_with("target") {
                    open.push(path);
                }
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The lines of a document outside fenced code, with their numbers from 1.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter_map(move |(index, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        (!fenced).then_some((index + 1, line))
    })
}

/// Every piece of inline code outside fenced code, with its line.
fn code_spans(text: &str) -> Vec<(usize, &str)> {
    prose(text)
        .flat_map(|(number, line)| {
            line.split('`')
                .enumerate()
                .filter(|(piece, _)| piece % 2 == 1)
                .map(move |(_, span)| (number, span))
        })
        .collect()
}

/// The targets of all inline links outside code, with their lines.
fn links(text: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, line) in prose(text) {
        for (piece, outside) in line.split('`').enumerate() {
            // A link whose text ends in code continues after the closing backtick.
            if piece % 2 == 1 {
                continue;
            }
            for target in outside.split("](").skip(1) {
                if let Some((target, _)) = target.split_once(')') {
                    found.push((number, target));
                }
            }
        }
    }
    found
}

/// The anchors that GitHub makes of a document's headings.
fn anchors(text: &str) -> BTreeSet<String> {
    prose(text)
        .filter(|(_, line)| line.starts_with('#'))
        .map(|(_, line)| {
            line.trim_start_matches('#')
                .trim()
                .to_lowercase()
                .chars()
                .filter_map(|c| match c {
                    ' ' => Some('-'),
                    c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
                    _ => None,
                })
                .collect()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkout() -> Checkout {
        Checkout::find().unwrap()
    }

    const NOTHING: Vec<String> = Vec::new();

    #[test]
    fn every_path_in_the_architecture_document_exists() {
        assert_eq!(missing_paths(&checkout()).unwrap(), NOTHING);
    }

    #[test]
    fn every_document_that_code_refers_to_exists() {
        assert_eq!(missing_documents(&checkout()).unwrap(), NOTHING);
    }

    #[test]
    fn a_document_is_found_in_a_comment_and_not_in_code() {
        // Put together here, or this very file would refer to it.
        let path = ["docs", "a", "b-c.md"].join("/");
        assert_eq!(documents_named(&format!("//! see `{path}`.")), [path]);
        assert_eq!(documents_named("let x = \"docs/gone.md\";"), Vec::<&str>::new());
    }

    #[test]
    fn every_test_promised_in_the_architecture_document_exists() {
        assert_eq!(missing_tests(&checkout()).unwrap(), NOTHING);
    }

    #[test]
    fn every_internal_link_resolves() {
        assert_eq!(broken_links(&checkout()).unwrap(), NOTHING);
    }

    #[test]
    fn every_task_named_in_a_document_is_a_command() {
        assert_eq!(unknown_tasks(&checkout()).unwrap(), NOTHING);
    }

    #[test]
    fn the_dependency_document_lists_every_direct_dependency_and_no_other() {
        assert_eq!(unlisted_dependencies(&checkout()).unwrap(), NOTHING);
    }

    #[test]
    fn a_path_is_told_from_other_inline_code() {
        let root = checkout().root;
        for path in ["crates/purlin-net/src/lib.rs", "gone.rs", "docs/gone", "CHANGELOG.md"] {
            assert!(is_path(&root, path), "{path} is a path");
        }
        for other in ["/v1/members", "a/*/c", "Peer::send", "not/ours", "NodeId"] {
            assert!(!is_path(&root, other), "{other} is no path");
        }
    }

    #[test]
    fn a_function_is_a_test_only_under_a_test_attribute() {
        let text = "#[test]\nfn one() {}\nfn two() {}\n#[tokio::test(flavor = \"x\")]\n\
                    #[ignore = \"slow\"]\nasync fn three() {}\n#[cfg(test)]\nmod x {}\n";
        assert_eq!(tests_in(text), ["one", "three"]);
    }

    #[test]
    fn links_and_code_inside_fences_are_not_read() {
        let text = "[a](b.md) `x`\n```\n[c](d.md) `y`\n```\n[`e`](f.md#g)\n";
        assert_eq!(links(text), [(1, "b.md"), (5, "f.md#g")]);
        assert_eq!(code_spans(text), [(1, "x"), (5, "e")]);
    }

    #[test]
    fn a_heading_becomes_the_anchor_that_github_makes_of_it() {
        assert!(anchors("## What `up` does, and why").contains("what-up-does-and-why"));
    }

    #[test]
    fn a_row_may_name_several_dependencies() {
        let listed = listed_dependencies("## S\n| `a`, `b` | why `c` |\n");
        assert_eq!(listed["S"], BTreeSet::from(["a".to_owned(), "b".to_owned()]));
    }
}
