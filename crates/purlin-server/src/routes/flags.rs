//! Feature flags: defined anywhere, evaluated where they are asked for, every change accounted for.

use std::{collections::BTreeSet, sync::Arc};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use purlin_core::{Advice, HlcTimestamp};
use purlin_replica::{
    flag::{Asker, Because, Flag, FlagError, Rollout},
    flags::{AuditEntry, FlagChange, FlagsError, NamedFlag, Reason},
};
use serde_json::Value;

use super::state::{object, rest_of, shape, written_response};
use crate::{
    app::App,
    input::Params,
    problem::{Problem, ReadRefusals, WriteRefusals},
    shapes::{
        AskerRequest, AuditReport, EvaluationReport, FlagDefinition, FlagReport, FlagsReport,
        KillRequest, RemovedReport, RolloutDefinition, RuleDefinition, WrittenReport,
    },
    state::{Page, absent, persisted, refused},
};

const PREFIX: &str = "/v1/flags/";

/// Who changed it, when nobody said.
const NOBODY: &str = "anonymous";

/// Every flag, by name, with how it stands and its last change.
#[utoipa::path(
    get, path = "/v1/flags", tag = "flags", security((), ("token" = [])),
    params(
        ("prefix" = Option<String>, Query, description = "Only names that begin with this"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000"),
    ),
    responses((status = 200, body = FlagsReport), ReadRefusals),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<FlagsReport>, Problem> {
    let params = Params::read(&uri, &["prefix", "after", "limit"])?;
    let page = Page::read(&params)?;
    let prefix = params.get("prefix").unwrap_or_default();
    let flags = app.host.flags();
    let mut found = flags.list(prefix, params.get("after"), page.limit + 1);
    let next = page.cut(&mut found, |flag| flag.name.as_bytes(), |flag| flag.name.len());
    let report = |flag: &Arc<NamedFlag>| {
        flag_report(flag, flags.audit(&flag.name).first().map(audit_report))
    };
    Ok(Json(FlagsReport { flags: found.iter().map(report).collect(), next }))
}

/// A flag's definition, and its changes with who, when and why, the newest first. Those are shown
/// to administrators: without the token `audit_note` says so, and the rest is there all the same.
#[utoipa::path(
    get, path = "/v1/flags/{name}", tag = "flags", security((), ("token" = [])),
    params(("name" = String, Path, description = "Letters, digits, `-`, `_`, `.` and `/`")),
    responses((status = 200, body = FlagReport), ReadRefusals),
)]
pub(super) async fn get(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Json<FlagReport>, Problem> {
    Params::read(&uri, &[])?;
    let name = rest_of(&uri, PREFIX)?;
    let flags = app.host.flags();
    let flag = flags.get(&name).ok_or_else(|| absent("flag", &name))?;
    let audit: Vec<AuditReport> = flags.audit(&name).iter().map(audit_report).collect();
    let mut report = flag_report(&flag, audit.first().cloned());
    match app.gate.check_token(&headers) {
        Ok(()) => report.audit = Some(audit),
        Err(how) => report.audit_note = Some(format!("the audit trail needs the token: {how}")),
    }
    Ok(Json(report))
}

/// Gives a flag a definition, new or in place of the old one. On disk here when it answers, and on
/// every connected node a round trip later.
#[utoipa::path(
    put, path = "/v1/flags/{name}", tag = "flags", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 256 letters, digits, `-`, `_`, `.` and `/`"),
        ("if_version" = Option<String>, Query, description = "Only if nobody changed it since, as far as it is known here"),
        ("Purlin-Who" = Option<String>, Header, description = "Who changes it, unless the body says"),
        ("Purlin-Why" = Option<String>, Header, description = "Why, unless the body says"),
    ),
    request_body(content = FlagDefinition, content_type = "application/json"),
    responses((status = 200, body = WrittenReport), WriteRefusals),
)]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["if_version"])?;
    let name = rest_of(&uri, PREFIX)?;
    let mut body = object(&app, &headers, body).await?;
    let reason = reason(&headers, &mut body)?;
    let says_killed = body.get("killed").is_some();
    let mut flag: Flag =
        shape(body, "a flag's definition: description, killed, otherwise, rules, who, why")?;
    let flags = app.host.flags();
    let present = flags.get(&name);
    if let Some(expected) = params.get("if_version") {
        check_version(expected, present.as_ref().map(|flag| flag.version))?;
    }
    if !says_killed {
        // An edit must not take back a kill that its author may not have seen.
        flag.killed = present.is_some_and(|present| present.flag.killed);
    }
    let version = flags.define(&name, flag, &reason).map_err(|error| flag_refused(&error))?;
    persisted(flags.set(), &Advice::Retry).await?;
    Ok(written_response(version))
}

fn check_version(expected: &str, is: Option<HlcTimestamp>) -> Result<(), Problem> {
    let expected: HlcTimestamp = expected.parse().map_err(|error| {
        let bound = "a version as in GET /v1/flags/{name}";
        Problem::bad_input("if_version", expected, bound, format!("{error}"))
    })?;
    if is == Some(expected) {
        return Ok(());
    }
    let now = is.map(|version| version.to_string());
    let detail = match &now {
        Some(version) => format!("the flag was changed meanwhile; its version is {version}"),
        None => "the flag was removed meanwhile".to_owned(),
    };
    let title = "The value there has another version";
    Err(Problem::new(StatusCode::CONFLICT, "version_mismatch", title, detail)
        .ended(purlin_core::Outcome::NotDone, &Advice::Retry)
        .found_version(now))
}

/// Removes a flag: it is off for everybody then. Its history stays.
#[utoipa::path(
    delete, path = "/v1/flags/{name}", tag = "flags", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "The flag"),
        ("Purlin-Who" = Option<String>, Header, description = "Who removes it"),
        ("Purlin-Why" = Option<String>, Header, description = "Why"),
    ),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<RemovedReport>, Problem> {
    Params::read(&uri, &[])?;
    let name = rest_of(&uri, PREFIX)?;
    let mut body = object(&app, &headers, body).await?;
    let reason = reason(&headers, &mut body)?;
    let flags = app.host.flags();
    // Their histories are kept beside the flags and are not theirs to remove.
    Flag::default().check(&name).map_err(|error| flag_refused(&error.into()))?;
    let removed = flags.remove(&name, &reason).map_err(|error| flag_refused(&error))?;
    persisted(flags.set(), &Advice::Retry).await?;
    Ok(Json(RemovedReport { removed }))
}

/// Puts the kill switch on or off: while it is on, the flag is off for everybody.
#[utoipa::path(
    post, path = "/v1/flags/{name}/kill", tag = "flags", security((), ("token" = [])),
    params(("name" = String, Path, description = "The flag")),
    request_body(content = KillRequest, content_type = "application/json"),
    responses((status = 200, body = FlagReport), WriteRefusals),
)]
pub(super) async fn kill(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<FlagReport>, Problem> {
    Params::read(&uri, &[])?;
    let name = act_on(&uri, "/kill")?;
    let mut body = object(&app, &headers, body).await?;
    let reason = reason(&headers, &mut body)?;
    let request: KillRequest = shape(body, "{\"killed\": true or false, \"who\", \"why\"}")?;
    let flags = app.host.flags();
    flags.kill(&name, request.killed, &reason).map_err(|error| flag_refused(&error))?;
    persisted(flags.set(), &Advice::Retry).await?;
    let flag = flags.get(&name).ok_or_else(|| absent("flag", &name))?;
    Ok(Json(flag_report(&flag, flags.audit(&name).first().map(audit_report))))
}

/// Whether a feature is on for somebody, and why. Local: asks nobody. An unknown flag is off.
#[utoipa::path(
    post, path = "/v1/flags/{name}/evaluate", tag = "flags", security((), ("token" = [])),
    params(("name" = String, Path, description = "The flag")),
    request_body(content = AskerRequest, content_type = "application/json"),
    responses((status = 200, body = EvaluationReport), ReadRefusals),
)]
pub(super) async fn evaluate(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<EvaluationReport>, Problem> {
    Params::read(&uri, &[])?;
    let name = act_on(&uri, "/evaluate")?;
    let body = object(&app, &headers, body).await?;
    let request: AskerRequest = shape(body, "{\"actor\", \"groups\", \"attributes\"}")?;
    let asker = Asker {
        actor: request.actor,
        groups: request.groups.into_iter().collect(),
        attributes: request.attributes,
    };
    let flags = app.host.flags();
    let answer = flags.evaluate(&name, &asker);
    let flag = flags.get(&name);
    Ok(Json(explain(answer.on, answer.because, flag.as_deref(), &asker)))
}

/// The name before `act` in the path.
fn act_on(uri: &Uri, act: &str) -> Result<String, Problem> {
    let rest = rest_of(uri, PREFIX)?;
    Ok(rest.strip_suffix(act).expect("the dispatcher looked").to_owned())
}

/// `POST` under a flag: names may hold slashes, so the last segment says which act is meant.
pub(super) async fn act(
    state: State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    use axum::response::IntoResponse as _;
    if uri.path().ends_with("/kill") {
        kill(state, uri, headers, body).await.map(axum::response::IntoResponse::into_response)
    } else if uri.path().ends_with("/evaluate") {
        evaluate(state, uri, headers, body).await.map(|answer| answer.into_response())
    } else {
        let detail = format!("{} ends neither in /kill nor in /evaluate", uri.path());
        Err(Problem::new(
            StatusCode::NOT_FOUND,
            "no_such_route",
            "There is nothing at this path",
            detail,
        ))
    }
}

/// Who and why: fields of the body, which are taken out of it, else headers.
fn reason(headers: &HeaderMap, body: &mut Value) -> Result<Reason, Problem> {
    let mut said = |field: &str, header: &str| -> Result<Option<String>, Problem> {
        match body.as_object_mut().and_then(|body| body.remove(field)) {
            Some(Value::String(text)) => Ok(Some(text)),
            None | Some(Value::Null) => Ok(headers
                .get(header)
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())),
            Some(other) => {
                let detail = format!("{field} of {other} is no text");
                Err(Problem::bad_input(field, &other.to_string(), "text", detail))
            }
        }
    };
    let who = said("who", "purlin-who")?.filter(|who| !who.trim().is_empty());
    let why = said("why", "purlin-why")?.unwrap_or_default();
    Ok(Reason { who: who.unwrap_or_else(|| NOBODY.to_owned()), why })
}

fn flag_refused(error: &FlagsError) -> Problem {
    match error {
        FlagsError::State(error) => refused(error),
        FlagsError::Unknown(name) => absent("flag", name),
        FlagsError::Flag(refusal) => {
            let (field, bound) = match refusal {
                FlagError::TooLong { field, max, .. } => (*field, format!("at most {max}")),
                FlagError::BasisPoints(_) => ("basis_points", "0 to 10000".to_owned()),
                FlagError::Name(_) | _ => (
                    "name",
                    "1 to 256 letters, digits, `-`, `_`, `.` or `/`, not under audit/".to_owned(),
                ),
            };
            Problem::bad_input(field, &refusal.to_string(), &bound, refusal.to_string())
        }
        _ => Problem::bad_input("flag", "", "a flag", error.to_string()),
    }
}

fn flag_report(named: &NamedFlag, last_change: Option<AuditReport>) -> FlagReport {
    let definition = definition(&named.flag);
    FlagReport {
        name: named.name.clone(),
        version: named.version.to_string(),
        summary: summary(&named.flag),
        description: definition.description,
        killed: definition.killed,
        otherwise: definition.otherwise,
        rules: definition.rules,
        last_change,
        audit: None,
        audit_note: None,
    }
}

fn definition(flag: &Flag) -> FlagDefinition {
    let list = |texts: &BTreeSet<String>| texts.iter().cloned().collect();
    let rules = flag.rules.iter().map(|rule| RuleDefinition {
        actors: list(&rule.actors),
        groups: list(&rule.groups),
        attributes: rule
            .attributes
            .iter()
            .map(|(name, values)| (name.clone(), list(values)))
            .collect(),
        from: rule.from.map(|at| at.as_millis()),
        until: rule.until.map(|at| at.as_millis()),
        then: rollout(rule.then),
    });
    FlagDefinition {
        description: flag.description.clone(),
        killed: flag.killed,
        otherwise: rollout(flag.otherwise),
        rules: rules.collect(),
    }
}

fn rollout(rollout: Rollout) -> RolloutDefinition {
    match rollout {
        Rollout::Off => RolloutDefinition::Off,
        Rollout::On => RolloutDefinition::On,
        Rollout::BasisPoints(points) => RolloutDefinition::BasisPoints(points),
    }
}

fn audit_report(entry: &AuditEntry) -> AuditReport {
    let (what, definition) = match &entry.change {
        FlagChange::Set(flag) => (format!("set to {}", summary(flag)), Some(definition(flag))),
        FlagChange::Killed(true) => ("killed".to_owned(), None),
        FlagChange::Killed(false) => ("brought back".to_owned(), None),
        FlagChange::Removed => ("removed".to_owned(), None),
    };
    AuditReport {
        at_ms: entry.at.as_millis(),
        who: entry.who.clone(),
        why: entry.why.clone(),
        node: entry.node.to_string(),
        what,
        definition,
    }
}

/// `on for everybody, 2 rules`
fn summary(flag: &Flag) -> String {
    let rules = match flag.rules.len() {
        0 => String::new(),
        1 => ", 1 rule".to_owned(),
        count => format!(", {count} rules"),
    };
    let killed = if flag.killed { "killed; else " } else { "" };
    format!("{killed}{}{rules}", share(flag.otherwise))
}

fn share(rollout: Rollout) -> String {
    match rollout {
        Rollout::Off => "off for everybody".to_owned(),
        Rollout::On => "on for everybody".to_owned(),
        Rollout::BasisPoints(points) if points % 100 == 0 => {
            format!("{} % of actors", points / 100)
        }
        Rollout::BasisPoints(points) => {
            format!("{}.{:02} % of actors", points / 100, points % 100)
        }
    }
}

fn explain(
    on: bool,
    because: Because,
    flag: Option<&NamedFlag>,
    asker: &Asker,
) -> EvaluationReport {
    let who = asker
        .actor
        .as_deref()
        .map_or_else(|| "nobody in particular".to_owned(), |actor| format!("{actor:?}"));
    let is = if on { "on" } else { "off" };
    let decided = |rollout: Rollout| match rollout {
        Rollout::BasisPoints(_) if asker.actor.is_none() => {
            format!("{}, and without an actor there is nobody to count", share(rollout))
        }
        Rollout::BasisPoints(_) if on => format!("{}, and {who} is among them", share(rollout)),
        Rollout::BasisPoints(_) => format!("{}, and {who} is not among them", share(rollout)),
        Rollout::Off | Rollout::On => share(rollout),
    };
    let (because, rule, reason) = match because {
        Because::Unknown => ("unknown", None, "there is no flag of that name".to_owned()),
        Because::Killed => ("killed", None, "the kill switch is on".to_owned()),
        Because::Rule(at) => {
            let then = flag.and_then(|flag| flag.flag.rules.get(at)).map(|rule| decided(rule.then));
            let then = then.unwrap_or_default();
            ("rule", Some(at as u64), format!("rule {} matches: {then}", at + 1))
        }
        Because::Otherwise => {
            let then = flag.map(|flag| decided(flag.flag.otherwise)).unwrap_or_default();
            ("otherwise", None, format!("no rule matches: {then}"))
        }
    };
    EvaluationReport {
        on,
        because: because.to_owned(),
        rule,
        explanation: format!("{is} for {who}: {reason}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_described_definition_is_the_one_that_is_kept() {
        let given = json!({
            "description": "new cart", "killed": true, "otherwise": {"basis_points": 1250},
            "rules": [{"actors": ["ada"], "groups": ["staff"], "attributes": {"country": ["de"]},
                "from": 1, "until": 2, "then": "on"}],
        });
        let kept: Flag = serde_json::from_value(given.clone()).unwrap();
        assert_eq!(serde_json::to_value(definition(&kept)).unwrap(), given);
        assert_eq!(serde_json::to_value(&kept).unwrap(), given);
        assert_eq!(summary(&kept), "killed; else 12.50 % of actors, 1 rule");
    }

    #[test]
    fn who_and_why_stand_in_the_body_or_in_headers_and_the_body_wins() {
        let mut headers = HeaderMap::new();
        headers.insert("purlin-who", "bob".parse().unwrap());
        headers.insert("purlin-why", "because".parse().unwrap());
        let mut body = json!({"who": "ada", "otherwise": "on"});
        let said = reason(&headers, &mut body).unwrap();
        assert_eq!((said.who.as_str(), said.why.as_str()), ("ada", "because"));
        assert_eq!(body, json!({"otherwise": "on"}));
        assert_eq!(reason(&HeaderMap::new(), &mut json!({})).unwrap().who, NOBODY);
        assert!(reason(&headers, &mut json!({"why": 7})).is_err());
    }
}
