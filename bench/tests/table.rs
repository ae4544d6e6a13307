//! The program as people and other programs run it.

use std::process::{Command, Output};

fn bench(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bench")).args(arguments).output().expect("the program starts")
}

#[test]
fn one_row_is_measured_shown_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("rows.json");
    let json = file.to_str().unwrap();
    // Needs nobody else's software: the peer is a tokio channel.
    let output = bench(&["--quick", "--rounds", "1", "--only", "local-cast-floor", "--json", json]);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("local-cast-floor") && table.contains("load average"), "{table}");
    let rows: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 1);
    let (ours, peer) = (rows[0]["ours"].as_f64().unwrap(), rows[0]["peer"].as_f64().unwrap());
    assert!((rows[0]["ratio"].as_f64().unwrap() - ours / peer).abs() < 1e-9);
    // Whether the bar holds in an unoptimised build is nobody's business; that the code says so is.
    let holds = rows[0]["holds"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(!holds)));
}

#[test]
fn the_list_names_every_bar_of_a_case() {
    let output = bench(&["--list", "--only", "remote-cast"]);
    let list = String::from_utf8(output.stdout).unwrap();
    for row in ["remote-cast-erlang", "remote-cast-ractor", "remote-cast-nats"] {
        assert!(list.contains(row), "{list}");
    }
    assert!(output.status.success());
}

#[test]
fn a_name_that_fits_nothing_is_refused_with_a_sentence() {
    let output = bench(&["--only", "no-such-row"]);
    assert_eq!(output.status.code(), Some(2));
    let sentence = String::from_utf8(output.stderr).unwrap();
    assert!(sentence.contains("no-such-row"), "{sentence}");
}
