//! Programs that run somewhere in the cluster: listed, run, stopped, and their output.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, Uri},
    response::Response,
};
use purlin::dist::{
    exec::{LogError, Programs, Ran, ReadFrom, ReadLog, RunError, SpecError, check_name},
    supervisor::{StartChildError, Stopped, SupervisorError},
};
use purlin_core::{Advice, Incarnation, NodeId, NodeName, Outcome};

use super::names::limit;
use crate::{
    app::{App, StreamPlace},
    input::{Params, refuse_encoded, whole_body},
    problem::{Problem, ReadRefusals, WriteRefusals},
    shapes::{
        End, GapReport, LogLineReport, LogSourceReport, ProgramReport, RanReport, RunRequest,
        StoppedReport, SupervisedReport,
    },
    sse::{self, Frames, Next, Source},
    state::absent,
};

/// The most bytes of a request to run something: its bound, with the JSON around it.
const BODY_BYTES_MAX: usize = 256 << 10;
/// Most lines a reader may ask for to begin with.
const TAIL_MAX: u32 = 1_000_000;
/// How long one question for lines waits at the node that has them.
const WAIT_MS: u32 = 2_000;
/// How long after a node that does not answer is asked again, or where the program is by now.
const RETRY: Duration = Duration::from_millis(250);
/// Bytes of lines per question.
const PAGE_BYTES: u32 = 64 << 10;

/// Programs that are to run in the cluster, as the answering node knows them.
#[utoipa::path(
    get, path = "/v1/supervised", tag = "programs", security((), ("token" = [])),
    params(
        ("prefix" = Option<String>, Query, description = "Only names that start with this; default: all"),
        ("after" = Option<String>, Query, description = "The `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "1 to 10,000, default 1,000"),
    ),
    responses((status = 200, body = SupervisedReport), ReadRefusals),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<SupervisedReport>, Problem> {
    let params = Params::read(&uri, &["prefix", "after", "limit"])?;
    let limit = limit(&params)?;
    let prefix = params.get("prefix").unwrap_or_default();
    let mut found = app.host.programs().list(prefix, params.get("after"), limit + 1);
    let is_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| is_more).map(|last| last.child.id.to_string());
    Ok(Json(SupervisedReport { programs: found.iter().map(ProgramReport::from).collect(), next }))
}

/// One program: where it is and how it stands.
#[utoipa::path(
    get, path = "/v1/supervised/{name}", tag = "programs", security((), ("token" = [])),
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, body = ProgramReport), ReadRefusals),
)]
pub(super) async fn get(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<ProgramReport>, Problem> {
    Params::read(&uri, &[])?;
    report(app.host.programs(), &name).map(Json)
}

/// Has a program run on some node of the cluster, from now on, and waits until it does.
///
/// It is started again elsewhere when its node dies. Asking again for exactly the same changes
/// nothing, except that a program in quarantine is started again. Runs as the user of the node unless
/// `user` says otherwise; needs the token.
#[utoipa::path(
    put, path = "/v1/supervised/{name}", tag = "programs", security(("token" = [])),
    params(("name" = String, Path, description = "1 to 128 of a-z, A-Z, 0-9, '.', '_' and '-', the first a letter or digit")),
    request_body(content = RunRequest, content_type = "application/json"),
    responses(
        (status = 200, description = "It was there already, exactly so", body = RanReport),
        (status = 201, description = "It runs", body = RanReport),
        WriteRefusals,
    ),
)]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<(StatusCode, Json<RanReport>), Problem> {
    Params::read(&uri, &[])?;
    check(&name)?;
    refuse_encoded(&headers)?;
    let body = whole_body("what to run", body, BODY_BYTES_MAX, app.config.body_within).await?;
    let request: RunRequest = serde_json::from_slice(&body).map_err(|error| {
        let detail = format!("the body is no request to run something: {error}");
        Problem::bad_input("body", &String::from_utf8_lossy(&body), "a RunRequest", detail)
    })?;
    let programs = app.host.programs();
    let spec = request.spec().map_err(|error| out_of_bounds(&error))?;
    let ran = programs.run(&name, spec).await.map_err(|error| not_run(&name, &error))?;
    let (status, ran) = match ran {
        Ran::Started => (StatusCode::CREATED, "started"),
        Ran::Released => (StatusCode::CREATED, "released"),
        Ran::Already => (StatusCode::OK, "already"),
    };
    // One that runs once may be over, and forgotten, by now.
    let program = report(programs, &name).unwrap_or_else(|_over| ProgramReport::over(&name));
    Ok((status, Json(RanReport { ran: ran.to_owned(), program })))
}

/// Stops a program for good: its stop signal, its grace, its end. Its output can still be read.
#[utoipa::path(
    delete, path = "/v1/supervised/{name}", tag = "programs", security(("token" = [])),
    params(("name" = String, Path, description = "Its name")),
    responses((status = 200, body = StoppedReport), WriteRefusals),
)]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
) -> Result<Json<StoppedReport>, Problem> {
    Params::read(&uri, &[])?;
    match app.host.programs().stop(&name).await {
        Ok(stopped) => Ok(Json(StoppedReport { ended: stopped == Stopped::Ended })),
        Err(SupervisorError::Absent(_)) => Err(no_program(&name)),
        Err(error) => Err(unwritable(&error.to_string())),
    }
}

/// What a program wrote, from the node it runs on, or the node that has the latest of it.
///
/// Events: `source` says whose lines follow, then `line` with an id; `gap` where lines are missing.
/// A reader that comes back with `Last-Event-ID` gets what followed. When the program is started on
/// another node, the stream goes on there. It ends when the program has been stopped, or without
/// `follow` with the last line. Needs the token: output may hold secrets.
#[utoipa::path(
    get, path = "/v1/supervised/{name}/logs", tag = "programs", security(("token" = [])),
    params(
        ("name" = String, Path, description = "Its name"),
        ("follow" = Option<bool>, Query, description = "`false`: end after the last line there is; default true"),
        ("tail" = Option<u32>, Query, description = "Begin with so many of the last lines, 0 to 1,000,000; default: all that is kept in memory"),
        ("node" = Option<String>, Query, description = "What this node has of it, instead of the latest"),
        ("Last-Event-ID" = Option<String>, Header, description = "The id of the last line seen"),
    ),
    responses(
        (status = 200, description = "Server-Sent Events", content_type = "text/event-stream", body = LogLineReport),
        ReadRefusals,
    ),
)]
pub(super) async fn logs(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let params = Params::read(&uri, &["follow", "tail", "node"])?;
    check(&name)?;
    let follow = params.flag("follow")?.unwrap_or(true);
    let tail = params.number("tail", &(0..=TAIL_MAX))?.unwrap_or(TAIL_MAX);
    let resumed = headers
        .get("last-event-id")
        .map(|id| id.to_str().unwrap_or("(not text)"))
        .filter(|id| !id.is_empty())
        .map(|id| LineId::parse(id).ok_or_else(|| bad_id(id)))
        .transpose()?;
    let fixed = params.get("node").map(node_name).transpose()?;
    let place = app.stream_place()?;
    let programs = app.host.programs().clone();
    let node = match &fixed {
        Some(node) => node.clone(),
        None => programs.has_log(&name).await.map_err(|error| no_log(&name, &error))?,
    };
    let from = match &resumed {
        Some(id) if id.node == node => ReadFrom::After { life: id.incarnation.0, seq: id.seq },
        // It has moved meanwhile.
        Some(_) => ReadFrom::Run,
        None => ReadFrom::Last(tail),
    };
    let mut source = LogSource {
        programs,
        name,
        node,
        is_fixed: fixed.is_some(),
        from,
        follow,
        life: resumed.map(|id| NodeId { name: id.node, incarnation: id.incarnation }),
        is_lost: false,
        first: None,
        _place: place,
    };
    // Asked once before the stream begins, so that what is not there is a refusal and no stream.
    source.first = Some(source.read(0).await.map_err(|error| no_log(&source.name, &error))?);
    Ok(sse::respond(source, app.closing.clone()))
}

/// The id of a line: `NODE@INCARNATION.SEQ`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LineId {
    node: NodeName,
    incarnation: Incarnation,
    seq: u64,
}

impl LineId {
    fn parse(text: &str) -> Option<Self> {
        let (node, rest) = text.split_once('@')?;
        let (incarnation, seq) = rest.split_once('.')?;
        Some(Self {
            node: NodeName::parse(node).ok()?,
            incarnation: Incarnation(incarnation.parse().ok()?),
            seq: seq.parse().ok()?,
        })
    }

    fn text(node: &NodeId, seq: u64) -> String {
        format!("{}@{}.{seq}", node.name, node.incarnation.0)
    }
}

/// One reader of output, wherever it is.
struct LogSource {
    programs: Programs,
    name: String,
    /// The node that is asked.
    node: NodeName,
    /// Whether the reader wants this node's, wherever the program is by now.
    is_fixed: bool,
    from: ReadFrom,
    follow: bool,
    /// Whose lines were last told.
    life: Option<NodeId>,
    /// Whether the node did not answer last time.
    is_lost: bool,
    first: Option<purlin::dist::exec::LogRead>,
    _place: StreamPlace,
}

impl LogSource {
    async fn read(&self, wait_ms: u32) -> Result<purlin::dist::exec::LogRead, LogError> {
        let (name, from) = (self.name.clone(), self.from);
        let request = ReadLog { name, from, bytes_max: PAGE_BYTES, wait_ms };
        self.programs.read_log(&self.node, &request).await
    }

    /// Tells the lines of one answer; whether there were any.
    fn tell(&mut self, read: purlin::dist::exec::LogRead, frames: &mut Frames) -> bool {
        self.is_lost = false;
        if self.life.as_ref() != Some(&read.node) {
            let (node, incarnation) = (read.node.name.to_string(), read.node.incarnation.0);
            frames.json("source", None, &LogSourceReport { node, incarnation });
        }
        if read.is_other_life {
            frames.json("gap", None, &GapReport { reason: "restarted".to_owned(), missed: None });
        } else if read.page.missed > 0 && matches!(self.from, ReadFrom::After { .. }) {
            let missed = Some(read.page.missed);
            frames.json("gap", None, &GapReport { reason: "forgotten".to_owned(), missed });
        }
        let any = !read.page.lines.is_empty();
        for line in read.page.lines {
            let id = LineId::text(&read.node, line.seq);
            let line = LogLineReport::of(read.node.name.as_str(), line);
            frames.json("line", Some(&id), &line);
        }
        self.from = ReadFrom::After { life: read.node.incarnation.0, seq: read.page.next };
        self.life = Some(read.node);
        any
    }

    /// Where the program is by now, if not where it was read last.
    fn moved_to(&self) -> Option<NodeId> {
        if self.is_fixed {
            return None;
        }
        let child = self.programs.which(&self.name)?.child;
        // Only once it runs: until then there is nothing to read.
        let node = child.pid()?.node;
        (self.life.as_ref() != Some(&node)).then_some(node)
    }

    fn is_over(&self) -> bool {
        !self.is_fixed && self.programs.which(&self.name).is_none()
    }
}

impl Source for LogSource {
    async fn fill(&mut self, frames: &mut Frames) -> Next {
        if let Some(first) = self.first.take() {
            self.tell(first, frames);
            return Next::More;
        }
        loop {
            // Looked at before the question, so that what was written before an end is still read.
            let (moved, is_over) = (self.moved_to(), self.is_over());
            let wait_ms = if self.follow && moved.is_none() && !is_over { WAIT_MS } else { 0 };
            match self.read(wait_ms).await {
                Ok(read) => {
                    if self.tell(read, frames) || !frames.is_empty() {
                        return Next::More;
                    }
                    if !self.follow {
                        return Next::Ended(End::finished());
                    }
                    if is_over {
                        let detail = "the program has been stopped or is over";
                        return Next::Ended(End::new("finished", detail));
                    }
                }
                Err(error) => {
                    if !self.follow || is_over {
                        return Next::Ended(End::new("closed", error.to_string()));
                    }
                    if moved.is_none() {
                        if !self.is_lost {
                            self.is_lost = true;
                            let reason = "unreachable".to_owned();
                            frames.json("gap", None, &GapReport { reason, missed: None });
                            return Next::More;
                        }
                        tokio::time::sleep(RETRY).await;
                    }
                }
            }
            if let Some(node) = moved {
                (self.node, self.from) = (node.name, ReadFrom::Run);
            }
        }
    }
}

fn report(programs: &Programs, name: &str) -> Result<ProgramReport, Problem> {
    programs
        .which(name)
        .map(|program| ProgramReport::from(&program))
        .ok_or_else(|| no_program(name))
}

fn check(name: &str) -> Result<(), Problem> {
    check_name(name).map_err(|error| out_of_bounds(&error))
}

fn node_name(text: &str) -> Result<NodeName, Problem> {
    NodeName::parse(text).map_err(|error| {
        Problem::bad_input("node", text, "letters, digits and inner hyphens", error.to_string())
    })
}

fn bad_id(id: &str) -> Problem {
    let detail = format!("last-event-id of {id:?} is no id this stream gives");
    Problem::bad_input("last-event-id", id, "NODE@INCARNATION.SEQ as in a line's id", detail)
}

fn out_of_bounds(error: &SpecError) -> Problem {
    let text = error.to_string();
    Problem::bad_input(error.field(), "", "what the message says", text)
}

fn no_program(name: &str) -> Problem {
    let detail = format!("nobody runs a program {name:?}");
    Problem::new(StatusCode::NOT_FOUND, "absent", "There is no program of that name", detail).about(
        "name",
        name,
        "a program of GET /v1/supervised",
    )
}

fn no_log(name: &str, error: &LogError) -> Problem {
    match error {
        LogError::Absent(_) => absent("log", name),
        error => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unreachable",
            "The node that has the output did not answer",
            error.to_string(),
        )
        .ended(Outcome::NotDone, &Advice::Retry),
    }
}

fn unwritable(detail: &str) -> Problem {
    let title = "This node cannot write it now";
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "not_now", title, detail)
        .ended(Outcome::NotDone, &Advice::Retry)
}

fn not_run(name: &str, error: &RunError) -> Problem {
    let text = error.to_string();
    let new = |status, code, title| Problem::new(status, code, title, text.clone());
    let problem = match error {
        RunError::Spec(error) => return out_of_bounds(error),
        RunError::NoHost => {
            let title = "No node of the cluster runs programs";
            new(StatusCode::CONFLICT, "exec_disabled", title)
        }
        RunError::Start(StartChildError::Exists { .. }) => {
            let detail =
                format!("{name} is something else already: stop it first, or choose another name");
            let title = "There is another program of that name";
            Problem::new(StatusCode::CONFLICT, "exists", title, detail)
        }
        RunError::Start(StartChildError::Kind(_)) => {
            new(StatusCode::UNPROCESSABLE_ENTITY, "cannot_start", "The program did not start")
        }
        RunError::Start(StartChildError::TooMany { .. }) => {
            let title = "There are as many programs as there may be";
            new(StatusCode::INSUFFICIENT_STORAGE, "too_many", title)
        }
        RunError::Start(StartChildError::Unknown { .. }) => new(
            StatusCode::GATEWAY_TIMEOUT,
            "no_answer",
            "The node that was to start it did not answer",
        ),
        _ => new(StatusCode::SERVICE_UNAVAILABLE, "not_now", "No node can start it now"),
    };
    problem.ended(error.outcome(), &error.advice())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_of_a_line_names_the_node_and_its_life() {
        let node = NodeId { name: NodeName::parse("n2").unwrap(), incarnation: Incarnation(7) };
        let id = LineId::parse(&LineId::text(&node, 12)).unwrap();
        assert_eq!((id.node, id.incarnation, id.seq), (node.name, node.incarnation, 12));
        for bad in ["", "7.12", "n2@7", "n2@x.1", "@7.1", "n2@7.x"] {
            assert_eq!(LineId::parse(bad), None, "{bad}");
        }
    }
}
