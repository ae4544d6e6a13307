//! `purlin config check|show`, and how the flags of `node` become configuration.

use std::path::PathBuf;

use purlin::{Config, Sources};
use serde_json::{Map, json};

use crate::{
    args::{ConfigArgs, ConfigCommand, LogArgs},
    exit::{Done, Failure},
    output::{Output, Tone},
};

/// Reads what `args` point to: file, environment, flags.
pub(crate) fn load(args: &ConfigArgs) -> Result<Config, Failure> {
    sources(args).load().map_err(Failure::not_done)
}

/// As [`load`], with the flags about logs.
pub(crate) fn load_with(args: &ConfigArgs, log: &LogArgs) -> Result<Config, Failure> {
    let mut sources = sources(args);
    if let Some(level) = &log.log_level {
        sources = sources.set("log.level", level, "--log-level");
    }
    if let Some(format) = log.log_format {
        sources = sources.set("log.format", format.as_str(), "--log-format");
    }
    sources.load().map_err(Failure::not_done)
}

fn sources(args: &ConfigArgs) -> Sources {
    let mut sources = Sources::new().process_env();
    if let Some(file) = file(args) {
        sources = sources.file(file);
    }
    if let Some(dir) = &args.data {
        // Also when --config names a file elsewhere: --data says where this node's things are.
        let data = std::path::absolute(dir.join("data")).unwrap_or_else(|_| dir.join("data"));
        sources = sources.set("node.data_dir", data.display().to_string(), "--data");
    }
    let flags = [
        ("node.name", "--name", &args.name),
        ("cluster.bind", "--cluster-bind", &args.cluster_bind),
        ("cluster.seeds", "--join", &args.join),
        ("http.bind", "--http-bind", &args.http_bind),
        ("node.zone", "--zone", &args.zone),
        ("node.region", "--region", &args.region),
        ("node.roles", "--roles", &args.roles),
    ];
    for (key, flag, value) in flags {
        if let Some(value) = value {
            sources = sources.set(key, value, flag);
        }
    }
    for (key, value) in &args.set {
        sources = sources.set(key, value, "--set");
    }
    sources
}

fn file(args: &ConfigArgs) -> Option<PathBuf> {
    args.config.clone().or_else(|| {
        args.data.as_ref().map(|dir| dir.join("purlin.toml")).filter(|file| file.exists())
    })
}

pub(crate) fn run(command: &ConfigCommand, output: &mut Output) -> Done {
    match command {
        ConfigCommand::Check(args) => {
            let config = load(args)?;
            config.check().map_err(Failure::not_done)?;
            if output.is_json() {
                output.json(&json!({ "ok": true, "node": config.node.name.as_str() }))
            } else {
                output.line(&format!("the configuration of {} is usable", config.node.name))
            }
        }
        ConfigCommand::Show(args) => show(&load(args)?, output),
    }
}

fn show(config: &Config, output: &mut Output) -> Done {
    if output.is_json() {
        let keys: Map<_, _> = config
            .shown()
            .into_iter()
            .map(|shown| {
                let entry = json!({ "value": shown.value, "origin": shown.origin.to_string(), "env": shown.key.env(), "doc": shown.key.doc });
                (shown.key.path(), entry)
            })
            .collect();
        return output.json(&keys);
    }
    let mut section = "";
    for shown in config.shown() {
        if shown.key.section != section {
            if !section.is_empty() {
                output.line("")?;
            }
            section = shown.key.section;
            let head = output.toned(Tone::Strong, &format!("[{section}]"));
            output.line(&head)?;
        }
        let setting = match &shown.value {
            Some(value) => format!("{} = {value}", shown.key.name),
            // A comment, so that what is printed can be read back as it is.
            None => format!("# {} =", shown.key.name),
        };
        let remark = output.toned(Tone::Quiet, &format!("# {}: {}", shown.origin, shown.key.doc));
        output.line(&format!("{setting:<40} {remark}"))?;
    }
    Ok(())
}
