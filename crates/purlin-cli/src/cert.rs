//! `purlin cert`: the authority of a cluster, its nodes' certificates, and the gossip key.

use std::{
    fs,
    path::{Path, PathBuf},
};

use purlin::{
    core::{Clock as _, ClusterName, NodeName, SystemClock, WallTime},
    net::{
        Authority, CertificateSummary, GossipKeys,
        certs::{NODE_VALID_FOR, write_key},
    },
};
use serde::Serialize;

use crate::{
    args::CertCommand,
    exit::{Done, Failure},
    files,
    output::{Output, Tone},
};

pub(crate) fn run(command: &CertCommand, output: &mut Output) -> Done {
    match command {
        CertCommand::NewCa { cluster, out } => {
            let cluster =
                ClusterName::parse(cluster).map_err(|error| Failure::Usage(error.to_string()))?;
            if out.join("ca.key").exists() || out.join("ca.pem").exists() {
                return Err(Failure::NotDone(format!(
                    "{} has an authority already; replacing it would lock out every node it signed: choose another --out",
                    out.display()
                )));
            }
            new_ca(&cluster, out)?;
            wrote(&[&out.join("ca.pem"), &out.join("ca.key")], output)
        }
        CertCommand::Issue { name, ca, out } => {
            let dir = out.clone().unwrap_or_else(|| PathBuf::from(name));
            let name = NodeName::parse(name).map_err(|error| Failure::Usage(error.to_string()))?;
            issue(ca, &name, &dir)?;
            wrote(&[&dir.join("node.pem"), &dir.join("node.key")], output)
        }
        CertCommand::GossipKey { out } => {
            if out.exists() {
                return Err(Failure::NotDone(format!(
                    "{} exists; to rotate, put a new key on its first line and keep the old one below",
                    out.display()
                )));
            }
            write_key(out, &GossipKeys::generate()).map_err(Failure::not_done)?;
            wrote(&[out], output)
        }
        CertCommand::Show { file } => show(file, output),
    }
}

fn wrote(paths: &[&Path], output: &mut Output) -> Done {
    if output.is_json() {
        return output.json(&serde_json::json!({ "wrote": paths }));
    }
    for path in paths {
        output.line(&format!("wrote {}", path.display()))?;
    }
    Ok(())
}

fn now() -> WallTime {
    SystemClock::new().wall()
}

fn new_ca(cluster: &ClusterName, dir: &Path) -> Done {
    files::private_dir(dir)
        .map_err(|error| Failure::NotDone(format!("cannot create {}: {error}", dir.display())))?;
    Authority::generate(cluster, now())
        .and_then(|authority| authority.store(dir))
        .map_err(Failure::not_done)
}

fn issue(ca: &Path, name: &NodeName, dir: &Path) -> Done {
    let authority = Authority::load(ca).map_err(|error| {
        Failure::NotDone(format!("{error}; `purlin cert new-ca` makes an authority"))
    })?;
    files::private_dir(dir)
        .map_err(|error| Failure::NotDone(format!("cannot create {}: {error}", dir.display())))?;
    let issued = authority.issue(name, now(), NODE_VALID_FOR).map_err(Failure::not_done)?;
    issued.store(&dir.join("node.pem"), &dir.join("node.key")).map_err(Failure::not_done)
}

#[derive(Debug, Serialize)]
struct Shown {
    subject: String,
    issuer: String,
    names: Vec<String>,
    not_before_ms: u64,
    not_after_ms: u64,
    is_valid: bool,
}

fn show(file: &Path, output: &mut Output) -> Done {
    let text = fs::read_to_string(file)
        .map_err(|error| Failure::NotDone(format!("cannot read {}: {error}", file.display())))?;
    let summary = CertificateSummary::of_pem(&text)
        .map_err(|why| Failure::NotDone(format!("{}: {why}", file.display())))?;
    let now = now();
    let shown = Shown {
        is_valid: summary.not_before <= now && now < summary.not_after,
        subject: summary.subject,
        issuer: summary.issuer,
        names: summary.names,
        not_before_ms: summary.not_before.as_millis(),
        not_after_ms: summary.not_after.as_millis(),
    };
    if output.is_json() {
        return output.json(&shown);
    }
    let verdict = if shown.is_valid {
        output.toned(Tone::Good, "valid")
    } else {
        output.toned(Tone::Bad, "not valid now")
    };
    output.line(&format!("subject  {}", output.toned(Tone::Strong, &shown.subject)))?;
    output.line(&format!("issuer   {}", shown.issuer))?;
    output.line(&format!(
        "names    {}",
        if shown.names.is_empty() { "(none)".to_owned() } else { shown.names.join(", ") }
    ))?;
    output.line(&format!("from     {}", date(shown.not_before_ms)))?;
    output.line(&format!("until    {}  {verdict}", date(shown.not_after_ms)))
}

/// `2026-11-20 05:43:26Z`.
fn date(ms: u64) -> String {
    let seconds = ms / 1000;
    let (mut year, mut day) = (1970_u64, seconds / 86_400);
    let is_leap = |year: u64| {
        (year.is_multiple_of(4) && !year.is_multiple_of(100)) || year.is_multiple_of(400)
    };
    loop {
        let days = if is_leap(year) { 366 } else { 365 };
        if day < days {
            break;
        }
        day -= days;
        year += 1;
    }
    let february = if is_leap(year) { 29 } else { 28 };
    let mut month = 1;
    for days in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < days {
            break;
        }
        day -= days;
        month += 1;
    }
    let (hours, minutes, seconds) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{:02} {hours:02}:{minutes:02}:{seconds:02}Z", day + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00:00Z");
        assert_eq!(date(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(date(1_763_617_920_000), "2025-11-20 05:52:00Z");
        assert_eq!(date(4_102_444_799_000), "2099-12-31 23:59:59Z");
    }

    #[test]
    fn an_authority_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let mut output = Output::new(crate::args::OutputForm::Text);
        let command = CertCommand::NewCa { cluster: "shop".to_owned(), out: dir.path().to_owned() };
        run(&command, &mut output).unwrap();
        let before = fs::read(dir.path().join("ca.key")).unwrap();
        assert!(matches!(run(&command, &mut output), Err(Failure::NotDone(_))));
        assert_eq!(before, fs::read(dir.path().join("ca.key")).unwrap());
    }
}
