//! `purlin counter | set | map | register | switch | text`: state that every side of a cut may write.

use std::io::Read as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use purlin_server::shapes::{
    CounterReport, ElementReport, EntryReport, MapReport, RemovedReport, SetReport, SpliceRequest,
    SwitchReport, TextReport, ValuesReport, WrittenReport,
};
use reqwest::Method;
use serde_json::json;

use crate::{
    args::{CounterCommand, MapCommand, RegisterCommand, SetCommand, SwitchCommand, TextCommand},
    client::{Client, segment},
    exit::{Done, Failure},
    listing::{Page, Row, list},
    output::{Output, Tone},
};

/// How much of a value a table shows.
const SHOWN_CHARS: usize = 60;

pub(crate) async fn counter(
    client: &Client,
    command: &CounterCommand,
    output: &mut Output,
) -> Done {
    let path = |name: &str| format!("/v1/counters/{}", segment(name));
    let report: CounterReport = match command {
        CounterCommand::Get { name } => client.get(&path(name)).await?,
        CounterCommand::Add { name, by, kind } => {
            let path = of_type(path(name), kind.as_deref());
            client.post(&path, json!({ "by": by }).to_string()).await?
        }
        CounterCommand::Reset { name } => {
            client.post(&path(name), json!({ "reset": true }).to_string()).await?
        }
        CounterCommand::Delete { name } => {
            return delete(client, &path(name), String::new(), output).await;
        }
    };
    if output.is_json() { output.json(&report) } else { output.line(&report.value.to_string()) }
}

/// The same path for a new value of that type.
fn of_type(path: String, kind: Option<&str>) -> String {
    match kind {
        Some(kind) => format!("{path}?type={kind}"),
        None => path,
    }
}

pub(crate) async fn set(client: &Client, command: &SetCommand, output: &mut Output) -> Done {
    let whole = |name: &str| format!("/v1/sets/{}", segment(name));
    let one = |name: &str, element: &str| format!("{}/{}", whole(name), segment(element));
    match command {
        SetCommand::Ls { name } => list_set(client, &whole(name), output).await,
        SetCommand::Add { name, elements, kind } => {
            for element in elements {
                let path = of_type(one(name, element), kind.as_deref());
                let done: ElementReport = client.send(Method::PUT, &path, Vec::new()).await?;
                if output.is_json() {
                    output.json(&done)?;
                }
            }
            Ok(())
        }
        SetCommand::Remove { name, elements } => {
            for element in elements {
                delete(client, &one(name, element), String::new(), output).await?;
            }
            Ok(())
        }
        SetCommand::Has { name, element } => {
            let found = client.find(&one(name, element)).await?.is_some();
            if output.is_json() {
                output.json(&json!({ "name": name, "element": element, "present": found }))?;
            }
            if found {
                return Ok(());
            }
            Err(Failure::NotDone(format!("{element:?} is not in {name:?}")))
        }
    }
}

async fn list_set(client: &Client, path: &str, output: &mut Output) -> Done {
    let mut after = String::new();
    loop {
        let page: SetReport = client.get(&format!("{path}?limit=10000{after}")).await?;
        if output.is_json() {
            output.json(&page)?;
        } else {
            for element in &page.elements {
                output.line(element)?;
            }
            for element in &page.elements_base64 {
                output.note(&format!("not text, base64: {element}"));
            }
        }
        let Some(next) = page.next else { return Ok(()) };
        after = format!("&after={}", segment(&next));
    }
}

pub(crate) async fn map(client: &Client, command: &MapCommand, output: &mut Output) -> Done {
    let whole = |name: &str| format!("/v1/maps/{}", segment(name));
    let one = |name: &str, key: &str| format!("{}/{}", whole(name), key_path(key));
    match command {
        MapCommand::Ls { name } => {
            let path = format!("{}?limit=10000", whole(name));
            list::<MapReport>(client, &path, &["KEY", "BY", "VALUE"], output).await
        }
        MapCommand::Get { name, key } => read(client, &one(name, key), key, output).await,
        MapCommand::Put { name, key, value, kind } => {
            let path = of_type(one(name, key), kind.as_deref());
            write(client, &path, value.as_deref(), output).await
        }
        MapCommand::Delete { name, key: Some(key) } => {
            delete(client, &one(name, key), String::new(), output).await
        }
        MapCommand::Delete { name, key: None } => {
            delete(client, &whole(name), String::new(), output).await
        }
    }
}

/// A key as it stands in a path: its slashes as they are, for they divide the keys of a nested map.
fn key_path(key: &str) -> String {
    let keys = key.split('/').map(segment);
    if key.split('/').any(|key| key == "." || key == "..") {
        // Clients would take these for directions.
        return segment(key);
    }
    keys.collect::<Vec<_>>().join("/")
}

impl Page for MapReport {
    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn rows(&self) -> Vec<Row> {
        self.entries.iter().map(entry_row).collect()
    }
}

fn entry_row(entry: &EntryReport) -> Row {
    vec![
        (Tone::Strong, key_text(entry)),
        (Tone::Quiet, entry.origin.clone()),
        (Tone::Quiet, value_text(entry)),
    ]
}

/// The key as a table shows it.
pub(crate) fn key_text(entry: &EntryReport) -> String {
    let coded = || format!("base64:{}", entry.key_base64.as_deref().unwrap_or_default());
    entry.key.clone().unwrap_or_else(coded)
}

/// The value as a table shows it: one line of it.
pub(crate) fn value_text(entry: &EntryReport) -> String {
    let Some(text) = &entry.value else {
        let coded = entry.value_base64.as_deref().unwrap_or_default();
        return format!("base64:{}", shortened(coded));
    };
    shortened(&text.replace(['\n', '\r', '\t'], " "))
}

fn shortened(text: &str) -> String {
    let mut chars = text.chars();
    let mut short: String = chars.by_ref().take(SHOWN_CHARS).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}

pub(crate) async fn register(
    client: &Client,
    command: &RegisterCommand,
    output: &mut Output,
) -> Done {
    let path = |name: &str, multi: bool| {
        format!("/v1/{}/{}", if multi { "values" } else { "registers" }, segment(name))
    };
    match command {
        RegisterCommand::Get { name, multi: false } => {
            read(client, &path(name, false), name, output).await
        }
        RegisterCommand::Get { name, multi: true } => {
            let report: ValuesReport = client.get(&path(name, true)).await?;
            if output.is_json() {
                return output.json(&report);
            }
            for value in &report.values {
                output.line(value)?;
            }
            for value in &report.values_base64 {
                output.note(&format!("not text, base64: {value}"));
            }
            Ok(())
        }
        RegisterCommand::Put { name, value, multi } => {
            write(client, &path(name, *multi), value.as_deref(), output).await
        }
        RegisterCommand::Delete { name, multi } => {
            delete(client, &path(name, *multi), String::new(), output).await
        }
    }
}

pub(crate) async fn switch(client: &Client, command: &SwitchCommand, output: &mut Output) -> Done {
    let path = |name: &str| format!("/v1/switches/{}", segment(name));
    let (name, kind, on) = match command {
        SwitchCommand::Get { name } => {
            let report: SwitchReport = client.get(&path(name)).await?;
            let word = if report.on { "on" } else { "off" };
            return if output.is_json() { output.json(&report) } else { output.line(word) };
        }
        SwitchCommand::Delete { name } => {
            return delete(client, &path(name), String::new(), output).await;
        }
        SwitchCommand::On { name, kind } => (name, kind, true),
        SwitchCommand::Off { name, kind } => (name, kind, false),
    };
    let path = of_type(path(name), kind.as_deref());
    let body = json!({ "on": on }).to_string();
    let report: SwitchReport = client.send(Method::PUT, &path, body).await?;
    if output.is_json() { output.json(&report) } else { Ok(()) }
}

pub(crate) async fn text(client: &Client, command: &TextCommand, output: &mut Output) -> Done {
    let path = |name: &str| format!("/v1/texts/{}", segment(name));
    let report: TextReport = match command {
        TextCommand::Get { name } => return read(client, &path(name), name, output).await,
        TextCommand::Delete { name } => {
            return delete(client, &path(name), String::new(), output).await;
        }
        TextCommand::Put { name, text } => {
            client.send(Method::PUT, &path(name), value_of(text.as_deref())?).await?
        }
        TextCommand::Insert { name, text, at, delete } => {
            let insert = String::from_utf8(value_of(Some(text))?)
                .map_err(|error| Failure::NotDone(format!("standard input: {error}")))?;
            let request = SpliceRequest { at: *at, delete: *delete, insert };
            let body = serde_json::to_vec(&request).expect("text and numbers are JSON");
            client.send(Method::POST, &path(name), body).await?
        }
    };
    if output.is_json() { output.json(&report) } else { output.line(&report.chars.to_string()) }
}

/// Prints the value at `path` as it is.
pub(crate) async fn read(client: &Client, path: &str, key: &str, output: &mut Output) -> Done {
    let Some(value) = client.find(path).await? else {
        return Err(Failure::NotDone(format!("{key:?} holds nothing")));
    };
    if !output.is_json() {
        return output.value(&value);
    }
    match std::str::from_utf8(&value) {
        Ok(text) => output.json(&json!({ "key": key, "value": text })),
        Err(_) => output.json(&json!({ "key": key, "value_base64": STANDARD.encode(&value) })),
    }
}

/// Writes a value, and prints its version where it has one.
pub(crate) async fn write(
    client: &Client,
    path: &str,
    value: Option<&str>,
    output: &mut Output,
) -> Done {
    let done: WrittenReport = client.send(Method::PUT, path, value_of(value)?).await?;
    match &done.version {
        _ if output.is_json() => output.json(&done),
        Some(version) => output.line(version),
        None => Ok(()),
    }
}

/// The value given, or all of standard input.
pub(crate) fn value_of(given: Option<&str>) -> Result<Vec<u8>, Failure> {
    match given {
        Some(text) if text != "-" => Ok(text.as_bytes().to_vec()),
        Some(_) | None => standard_input(),
    }
}

pub(crate) fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::NotDone(format!("cannot read standard input: {error}")))?;
    Ok(bytes)
}

/// Deletes what is at `path`; to find nothing there is fine, and said.
pub(crate) async fn delete(client: &Client, path: &str, body: String, output: &mut Output) -> Done {
    let done: RemovedReport = client.send(Method::DELETE, path, body).await?;
    if output.is_json() {
        return output.json(&done);
    }
    if !done.removed {
        output.note("there was nothing to remove");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn slashes_divide_keys_and_nothing_in_a_key_is_a_direction() {
        for (key, path) in [
            ("a", "a"),
            ("eu/de/vat", "eu/de/vat"),
            ("a b/50%", "a%20b/50%25"),
            ("a/../b", "a%2F..%2Fb"),
        ] {
            assert_eq!(super::key_path(key), path);
        }
    }
}
