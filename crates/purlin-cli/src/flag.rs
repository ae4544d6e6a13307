//! `purlin flag`: who gets a feature, and who decided that.

use std::collections::BTreeMap;

use purlin_server::shapes::{
    AskerRequest, EvaluationReport, FlagDefinition, FlagReport, FlagsReport, RolloutDefinition,
    WrittenReport,
};
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    args::{FlagCommand, Signature},
    client::{Client, segment},
    exit::{Done, Failure},
    listing::{Page, Row, list},
    output::{Output, Tone, table},
    replicated::{delete, standard_input},
};

fn path(name: &str) -> String {
    format!("/v1/flags/{}", segment(name))
}

pub(crate) async fn flag(client: &Client, command: &FlagCommand, output: &mut Output) -> Done {
    match command {
        FlagCommand::Ls { prefix } => {
            let path = format!("/v1/flags?limit=10000&prefix={}", segment(prefix));
            list::<FlagsReport>(client, &path, &["FLAG", "STANDS", "BY", "WHY"], output).await
        }
        FlagCommand::Get { name } => {
            let report = get(client, name).await?;
            if output.is_json() {
                return output.json(&report);
            }
            let text = serde_json::to_string_pretty(&definition(report))
                .map_err(|error| Failure::NotDone(error.to_string()))?;
            output.line(&text)
        }
        FlagCommand::Set { name, definition, signature } => {
            set(client, name, definition, signature, output).await
        }
        FlagCommand::On { name, signature } => {
            otherwise(client, name, RolloutDefinition::On, signature, output).await
        }
        FlagCommand::Off { name, signature } => {
            otherwise(client, name, RolloutDefinition::Off, signature, output).await
        }
        FlagCommand::Percent { name, percent, signature } => {
            let share = RolloutDefinition::BasisPoints(*percent);
            otherwise(client, name, share, signature, output).await
        }
        FlagCommand::Kill { name, signature } => kill(client, name, true, signature, output).await,
        FlagCommand::Unkill { name, signature } => {
            kill(client, name, false, signature, output).await
        }
        FlagCommand::Eval { name, actor, groups, attributes } => {
            let asker = AskerRequest {
                actor: actor.clone(),
                groups: groups.clone(),
                attributes: attributes.iter().cloned().collect::<BTreeMap<_, _>>(),
            };
            eval(client, name, &asker, output).await
        }
        FlagCommand::Audit { name } => audit(client, name, output).await,
        FlagCommand::Delete { name, signature } => {
            let Signature { who, why } = signature;
            let body = json!({ "who": who, "why": why }).to_string();
            delete(client, &path(name), body, output).await
        }
    }
}

async fn get(client: &Client, name: &str) -> Result<FlagReport, Failure> {
    find(client, name).await?.ok_or_else(|| Failure::NotDone(format!("there is no flag {name:?}")))
}

async fn find(client: &Client, name: &str) -> Result<Option<FlagReport>, Failure> {
    let Some(bytes) = client.find(&path(name)).await? else { return Ok(None) };
    serde_json::from_slice(&bytes)
        .map(Some)
        .map_err(|error| Failure::NotDone(format!("the answer cannot be read: {error}")))
}

fn definition(report: FlagReport) -> FlagDefinition {
    FlagDefinition {
        description: report.description,
        killed: report.killed,
        otherwise: report.otherwise,
        rules: report.rules,
    }
}

impl Page for FlagsReport {
    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn rows(&self) -> Vec<Row> {
        self.flags.iter().map(row).collect()
    }
}

fn row(flag: &FlagReport) -> Row {
    let tone = match flag.otherwise {
        _ if flag.killed => Tone::Bad,
        RolloutDefinition::On => Tone::Good,
        RolloutDefinition::BasisPoints(_) => Tone::Doubtful,
        RolloutDefinition::Off => Tone::Quiet,
    };
    let (who, why) = match &flag.last_change {
        Some(change) => (change.who.clone(), change.why.clone()),
        None => (String::new(), String::new()),
    };
    vec![
        (Tone::Strong, flag.name.clone()),
        (tone, flag.summary.clone()),
        (Tone::Quiet, who),
        (Tone::Quiet, why),
    ]
}

async fn set(
    client: &Client,
    name: &str,
    given: &str,
    signature: &Signature,
    output: &mut Output,
) -> Done {
    let bytes = if given == "-" { standard_input()? } else { given.as_bytes().to_vec() };
    let mut body: Value = serde_json::from_slice(&bytes)
        .map_err(|error| Failure::Usage(format!("the definition is no JSON: {error}")))?;
    let Some(fields) = body.as_object_mut() else {
        return Err(Failure::Usage("the definition is no JSON object".to_owned()));
    };
    fields.insert("who".to_owned(), json!(signature.who));
    fields.insert("why".to_owned(), json!(signature.why));
    put(client, &path(name), &body, output).await
}

/// Changes only what holds when no rule matches, and only if nobody changed the flag meanwhile.
async fn otherwise(
    client: &Client,
    name: &str,
    rollout: RolloutDefinition,
    signature: &Signature,
    output: &mut Output,
) -> Done {
    let present = find(client, name).await?;
    let condition = present.as_ref().map(|flag| format!("?if_version={}", segment(&flag.version)));
    let (description, rules) =
        present.map(|flag| (flag.description, flag.rules)).unwrap_or_default();
    let Signature { who, why } = signature;
    let body = json!({
        "description": description, "rules": rules, "otherwise": rollout, "who": who, "why": why,
    });
    put(client, &format!("{}{}", path(name), condition.unwrap_or_default()), &body, output).await
}

async fn put(client: &Client, path: &str, body: &Value, output: &mut Output) -> Done {
    let done: WrittenReport = client.send(Method::PUT, path, body.to_string()).await?;
    match &done.version {
        _ if output.is_json() => output.json(&done),
        Some(version) => output.line(version),
        None => Ok(()),
    }
}

async fn kill(
    client: &Client,
    name: &str,
    killed: bool,
    signature: &Signature,
    output: &mut Output,
) -> Done {
    let Signature { who, why } = signature;
    let body = json!({ "killed": killed, "who": who, "why": why }).to_string();
    let report: FlagReport = client.post(&format!("{}/kill", path(name)), body).await?;
    if output.is_json() { output.json(&report) } else { output.line(&report.summary) }
}

async fn eval(client: &Client, name: &str, asker: &AskerRequest, output: &mut Output) -> Done {
    let body = json!(asker).to_string();
    let report: EvaluationReport = client.post(&format!("{}/evaluate", path(name)), body).await?;
    if output.is_json() { output.json(&report) } else { output.line(&report.explanation) }
}

async fn audit(client: &Client, name: &str, output: &mut Output) -> Done {
    let report = get(client, name).await?;
    let Some(changes) = report.audit else {
        // Told apart from a flag nobody changed: the node keeps it from whoever brings no token.
        let why = report.audit_note.unwrap_or_else(|| "the node does not show it".to_owned());
        return Err(Failure::NotDone(why));
    };
    if output.is_json() {
        return output.json(&changes);
    }
    let rows: Vec<Vec<(Tone, String)>> = changes
        .iter()
        .map(|change| {
            vec![
                (Tone::Quiet, utc(change.at_ms)),
                (Tone::Strong, change.who.clone()),
                (Tone::Strong, change.what.clone()),
                (Tone::Quiet, change.why.clone()),
            ]
        })
        .collect();
    table(&["WHEN", "WHO", "WHAT", "WHY"], &rows, output)
}

/// `2026-11-20 06:46:03Z`: the same on every machine whose notes are compared.
fn utc(ms: u64) -> String {
    let (days, second) = (ms / 86_400_000, ms / 1_000 % 86_400);
    // Days to a date in the Gregorian calendar, counted from 1 March of the year 0 (Hinnant,
    // "chrono-compatible low-level date algorithms").
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_moment_reads_as_utc() {
        assert_eq!(super::utc(0), "1970-01-01 00:00:00Z");
        assert_eq!(super::utc(951_782_400_000), "2000-02-29 00:00:00Z");
        assert_eq!(super::utc(1_700_000_000_000), "2023-11-14 22:13:20Z");
    }
}
