use std::{net::SocketAddr, path::PathBuf, time::Duration};

use super::{Config, ConfigError, Key, LogFormat, Origin, Profile, Sources};

const NAMED: &str = "[node]\nname = \"n1\"\n";

fn read(text: &str) -> Result<Config, ConfigError> {
    Sources::new().text(text).load()
}

fn refusal(text: &str) -> String {
    read(text).unwrap_err().to_string()
}

fn env(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn defaults_fill_everything_but_the_name() {
    let config = read(NAMED).unwrap();
    assert_eq!(config.cluster.name.as_str(), "purlin");
    assert_eq!(config.cluster.bind, SocketAddr::from(([127, 0, 0, 1], 7400)));
    assert_eq!(config.cluster.profile, Profile::Lan);
    assert_eq!(config.node.drain_deadline, Duration::from_secs(20));
    assert_eq!(config.limits.message_bytes_max, 1 << 20);
    assert_eq!(config.log.format, LogFormat::Text);
    assert!(refusal("").contains("node.name is required"));
}

#[test]
fn every_default_obeys_its_own_bounds() {
    let config = read(NAMED).unwrap();
    for shown in config.shown() {
        assert_eq!(
            shown.value.is_some(),
            shown.key.default.is_some() || shown.key.name == "name",
            "{shown:?}"
        );
    }
}

#[test]
fn an_unknown_key_names_file_line_key_and_nearest_match() {
    let text = format!("{NAMED}\n[cluster]\nnmae = \"x\"\n");
    assert_eq!(
        refusal(&text),
        "purlin.toml:5: cluster.nmae is unknown; did you mean cluster.name?"
    );
}

#[test]
fn an_unknown_section_names_the_nearest() {
    assert_eq!(
        refusal(&format!("{NAMED}[clustr]\nname = \"x\"\n")),
        "purlin.toml:3: clustr is unknown; did you mean [cluster]?"
    );
}

#[test]
fn a_key_in_the_wrong_section_names_the_right_one() {
    assert!(
        refusal(&format!("{NAMED}[log]\nseeds = []\n")).ends_with("did you mean cluster.seeds?")
    );
    assert!(refusal(&format!("zone = \"a\"\n{NAMED}")).ends_with("did you mean node.zone?"));
}

#[test]
fn all_problems_are_told_at_once() {
    let error = read("[node]\nname = \"bad name\"\nworker_threads = 0\n[log]\nformat = \"xml\"\n")
        .unwrap_err();
    assert_eq!(error.problems().len(), 3, "{error}");
}

#[test]
fn a_refused_value_names_field_value_and_bound() {
    assert_eq!(
        refusal("[node]\nname = \"n1\"\nworker_threads = 1000\n"),
        "purlin.toml:3: node.worker_threads is 1000, but must be a whole number from 1 to 256"
    );
    assert!(
        refusal("[node]\nname = \"n1\"\ndrain_deadline = 5\n")
            .contains("drain_deadline is 5, but must be a duration")
    );
    assert!(
        refusal(&format!("{NAMED}[cluster]\nseeds = [\"nohost\"]\n")).contains("holds \"nohost\"")
    );
    assert!(
        refusal(&format!("{NAMED}[cluster]\nbind = \"nowhere\"\n"))
            .contains("is \"nowhere\", but must be an address")
    );
}

#[test]
fn broken_toml_names_the_line() {
    assert!(refusal("[node]\nname = \n").starts_with("purlin.toml:2: not TOML"));
}

#[test]
fn environment_beats_file_and_flags_beat_both() {
    let sources = Sources::new()
        .text("[node]\nname = \"file\"\nzone = \"file\"\nregion = \"file\"\n")
        .env([
            env("PURLIN_NODE__ZONE", "env"),
            env("PURLIN_NODE__REGION", "env"),
            env("PURLIN_NODE", "http://x"),
        ])
        .set("node.region", "flag", "--region");
    let config = sources.load().unwrap();
    assert_eq!(config.node.name.as_str(), "file");
    assert_eq!(config.node.zone.as_deref(), Some("env"));
    assert_eq!(config.node.region.as_deref(), Some("flag"));
    let origins: Vec<_> = config.shown().into_iter().map(|shown| shown.origin).collect();
    assert!(origins.contains(&Origin::Env("PURLIN_NODE__ZONE".into())));
    assert!(origins.contains(&Origin::Flag("--region".into())));
}

#[test]
fn an_unknown_variable_is_refused_with_the_nearest() {
    let error =
        Sources::new().text(NAMED).env([env("PURLIN_CLUSTER__SEED", "x:1")]).load().unwrap_err();
    assert_eq!(
        error.to_string(),
        "PURLIN_CLUSTER__SEED: cluster.seed is unknown; did you mean cluster.seeds?"
    );
}

#[test]
fn every_key_can_come_from_its_variable() {
    for key in Key::all() {
        let value = match key.path().as_str() {
            "node.name" => "other",
            "cluster.advertise" => "10.0.0.1:7400",
            "cluster.seeds" => "a:1,b:2",
            "node.labels" => "disk=ssd,rack=7",
            path => match path {
                "node.zone" | "node.region" | "node.roles" | "cluster.dns" => "x",
                _ => key.default.unwrap_or("file"),
            },
        };
        let config =
            Sources::new().text(NAMED).env([(key.env(), value.to_owned())]).load().unwrap();
        let shown = config.shown().into_iter().find(|shown| shown.key == key).unwrap();
        assert_eq!(shown.origin, Origin::Env(key.env()), "{}", key.path());
    }
}

#[test]
fn what_is_shown_can_be_read_back() {
    let config = read("[node]\nname = \"n1\"\nlabels = { rack = \"7\", \"a b\" = \"q\\\"q\" }\nroles = [\"web\"]\n").unwrap();
    let mut text = String::new();
    for shown in config.shown() {
        if let Some(value) = shown.value {
            text.push_str(&format!("{} = {value}\n", shown.key.path()));
        }
    }
    let again = read(&text).unwrap();
    assert_eq!(again.node, config.node);
    assert_eq!(again.cluster, config.cluster);
    assert_eq!(again.limits, config.limits);
}

#[test]
fn paths_start_at_the_file_but_flags_at_the_working_directory() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("purlin.toml");
    std::fs::write(&file, "[node]\nname = \"n1\"\n[tls]\nca = \"ca.crt\"\n").unwrap();
    let config = Sources::new().file(&file).set("tls.key", "my.key", "--tls-key").load().unwrap();
    assert_eq!(config.tls.ca, Some(dir.path().join("ca.crt")));
    assert_eq!(config.tls.key, Some(PathBuf::from("my.key")));
    assert_eq!(config.node.data_dir, dir.path().join("data"));
}

#[test]
fn a_message_must_fit_the_backlog_several_times() {
    let text = refusal(&format!("{NAMED}[limits]\nmessage_bytes_max = \"8MiB\"\n"));
    assert_eq!(
        text,
        "purlin.toml:4: limits.message_bytes_max of 8388608 exceeds a quarter of limits.backlog_bytes_max, 16777216: raise that too"
    );
    read(&format!(
        "{NAMED}[limits]\nmessage_bytes_max = \"8MiB\"\nbacklog_bytes_max = \"32MiB\"\n"
    ))
    .unwrap();
}

#[test]
fn a_wildcard_bind_needs_an_address_others_can_dial() {
    assert!(
        refusal(&format!("{NAMED}[cluster]\nbind = \"0.0.0.0:7400\"\n"))
            .contains("set cluster.advertise")
    );
}

#[test]
fn an_open_http_port_needs_a_token() {
    assert!(
        refusal(&format!("{NAMED}[http]\nbind = \"0.0.0.0:4900\"\n"))
            .contains("set http.token_file")
    );
}

#[test]
fn check_opens_the_files_it_names() {
    let error = read(&format!("{NAMED}[tls]\nca = \"/nonexistent/ca\"\n")).unwrap().check();
    let error = error.unwrap_err().to_string();
    assert!(error.contains("tls.cert is not set"), "{error}");
    assert!(read(NAMED).unwrap().check().unwrap_err().to_string().contains("purlin cert new-ca"));
}

#[test]
fn check_wants_a_certificate_of_this_very_node() {
    let dir = tempfile::tempdir().unwrap();
    crate::DevAuthority::in_dir(dir.path()).unwrap().store_for("n1", dir.path()).unwrap();
    let text = |name: &str| {
        format!(
            "[node]\nname = \"{name}\"\n[tls]\nca = \"ca.pem\"\ncert = \"node.pem\"\nkey = \"node.key\"\n\
             [gossip]\nkey_file = \"gossip.key\"\n"
        )
    };
    let file = dir.path().join("purlin.toml");
    std::fs::write(&file, text("n1")).unwrap();
    Sources::new().file(&file).load().unwrap().check().unwrap();
    std::fs::write(&file, text("n2")).unwrap();
    let error = Sources::new().file(&file).load().unwrap().check().unwrap_err().to_string();
    assert!(error.contains("tls.cert is a certificate for n1, but this node is n2"), "{error}");
    std::fs::write(dir.path().join("node.pem"), "junk").unwrap();
    let error = Sources::new().file(&file).load().unwrap().check().unwrap_err().to_string();
    assert!(error.contains("tls.cert ") && error.contains("node.pem"), "{error}");
}

#[test]
fn what_is_not_said_about_names_is_as_in_the_library() {
    let config = Sources::new().text("[node]\nname = \"n1\"\n").load().unwrap();
    assert_eq!(config.dist, purlin_dist::DistConfig::default());
    let text = "[node]\nname = \"n1\"\n[dist]\nentries_max = 0\nmetadata_bytes_max = \"65KiB\"\n";
    let problems = Sources::new().text(text).load().unwrap_err().to_string();
    for bound in ["dist.entries_max", "from 1 to", "dist.metadata_bytes_max", "0 to 65536"] {
        assert!(problems.contains(bound), "{bound} is not in {problems}");
    }
}
