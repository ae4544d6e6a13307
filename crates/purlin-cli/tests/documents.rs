//! What README.md says about the binary, checked against the binary.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// Every `purlin …` in a code block of README.md names commands and flags that its help knows.
#[test]
fn every_command_in_the_readme_is_one_the_binary_knows() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    let commands = commands(&text);
    assert!(!commands.is_empty(), "README.md shows no command");
    let wrong: Vec<String> =
        commands.iter().flat_map(|command| complaints(command, help)).collect();
    assert_eq!(wrong, Vec::<String>::new());
}

#[test]
fn a_forged_command_and_a_forged_flag_are_caught() {
    let help = |path: &[&str]| match path {
        [] => "Commands:\n  up    start\n  cert  keys\n\nOptions:\n  -h, --help\n".to_owned(),
        ["cert"] => "Commands:\n  issue  one\n\nOptions:\n  -h, --help\n".to_owned(),
        _ => "Options:\n      --nodes <N>\n".to_owned(),
    };
    assert_eq!(complaints("up --nodes 3", help), Vec::<String>::new());
    assert_eq!(complaints("cert issue n1", help), Vec::<String>::new());
    assert_eq!(complaints("upp", help).len(), 1);
    assert_eq!(complaints("cert isue n1", help).len(), 1);
    assert_eq!(complaints("up --node 3", help).len(), 1);
}

#[test]
fn commands_are_found_behind_prompts_pipes_and_cargo() {
    let text = "`purlin no` \n```sh\n$ cat f | purlin pub feed -   # all of it\n\
                cargo run --release -- up\nnot a command\n```\n";
    assert_eq!(commands(text), ["pub feed -", "up"]);
}

/// The arguments of every invocation of the binary in fenced code.
fn commands(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    for line in text.lines() {
        if line.starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            let code = line.split(" #").next().unwrap_or_default();
            for part in code.split(['|', ';']).flat_map(|part| part.split("&&")) {
                let part = part.trim().trim_start_matches("$ ");
                let arguments = part
                    .strip_prefix("purlin ")
                    .or_else(|| part.strip_prefix("target/release/purlin "))
                    .or_else(|| part.strip_prefix("cargo run --release -- "));
                if let Some(arguments) = arguments {
                    found.push(arguments.trim().to_owned());
                }
            }
        }
    }
    found
}

/// What of a command its help does not know.
fn complaints(command: &str, help: impl Fn(&[&str]) -> String) -> Vec<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    let mut path: Vec<&str> = Vec::new();
    for word in &words {
        let known = subcommands(&help(&path));
        if known.contains(*word) {
            path.push(word);
        } else if known.is_empty() || word.starts_with('-') {
            break;
        } else {
            return vec![format!("`purlin {command}`: {word} is not a command")];
        }
    }
    let flags = flags(&help(&path));
    words
        .iter()
        .filter(|word| word.starts_with("--") && word.len() > 2)
        .map(|word| word.split('=').next().unwrap_or(word))
        .filter(|flag| !flags.contains(*flag))
        .map(|flag| format!("`purlin {command}`: no option {flag}"))
        .collect()
}

/// The words below `Commands:` in a help text.
fn subcommands(help: &str) -> BTreeSet<String> {
    help.lines()
        .skip_while(|line| !line.starts_with("Commands:"))
        .skip(1)
        .take_while(|line| line.starts_with("  "))
        .filter(|line| !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// Every long option a help text names.
fn flags(help: &str) -> BTreeSet<String> {
    help.split(|c: char| c.is_whitespace() || ",[]=".contains(c))
        .filter(|word| word.starts_with("--"))
        .map(str::to_owned)
        .collect()
}

fn help(path: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_purlin"))
        .args(path)
        .arg("--help")
        .output()
        .expect("the purlin binary");
    assert!(output.status.success(), "purlin {path:?} --help failed");
    String::from_utf8(output.stdout).expect("help is text")
}
