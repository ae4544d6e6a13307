//! Programs that run somewhere in the cluster, as clients see them.

use std::{collections::BTreeMap, time::Duration};

use purlin::dist::exec::{ExecRestart, ExecSpec, Line, Program, SpecError, StopSignal};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// `PUT /v1/supervised/{name}`: what to run. Only `command` is required.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// The program and its arguments. The program is a path, absolute or relative to `cwd`, or a name
    /// to be looked for in `PATH`.
    #[schema(example = json!(["./job.sh", "--all"]))]
    pub command: Vec<String>,
    /// Variables beside those that the node gives.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The absolute directory it starts in; default `/`.
    #[serde(default)]
    pub cwd: Option<String>,
    /// `USER` or `USER:GROUP`, names or numbers; default the node's own.
    #[serde(default)]
    pub user: Option<String>,
    /// `TERM` (default), `INT`, `QUIT`, `HUP`, `USR1`, `USR2` or `KILL`.
    #[serde(default)]
    pub stop_signal: Option<String>,
    /// How long it has from the stop signal until it is killed, in milliseconds: at most 3,600,000,
    /// default 10,000.
    #[serde(default)]
    pub grace_ms: Option<u64>,
    /// `always` (default), `on-failure` or `never`.
    #[serde(default)]
    pub restart: Option<String>,
    /// Most memory in bytes, at least 1 MiB.
    #[serde(default)]
    pub memory_max: Option<u64>,
    /// Most processors, such as 0.5; needs `exec.cgroup` on the node it runs on.
    #[serde(default)]
    pub cpus: Option<f64>,
    /// Whether two copies at once do harm: then a node that does not move for five seconds loses its.
    #[serde(default)]
    pub singleton: bool,
}

impl RunRequest {
    /// What a supervisor is asked for.
    ///
    /// # Errors
    /// A [`SpecError`] names the field and its bound.
    pub fn spec(self) -> Result<ExecSpec, SpecError> {
        let mut command = self.command.into_iter();
        let mut spec = ExecSpec::new(command.next().unwrap_or_default()).args(command);
        spec.env = self.env;
        spec.cwd = self.cwd;
        spec.user = self.user;
        if let Some(signal) = self.stop_signal {
            spec.stop_signal = signal.parse::<StopSignal>()?;
        }
        if let Some(grace_ms) = self.grace_ms {
            spec.grace = Duration::from_millis(grace_ms);
        }
        if let Some(restart) = self.restart {
            spec.restart = restart.parse::<ExecRestart>()?;
        }
        spec.memory_max = self.memory_max;
        spec.cpu_millis = self.cpus.map(millis);
        spec.singleton = self.singleton;
        spec.check()?;
        Ok(spec)
    }
}

/// Thousandths; what is no such number becomes one that is out of bounds.
fn millis(cpus: f64) -> u32 {
    let thousandths = (cpus * 1_000.0).round();
    // By its text: a cast would turn what does not fit into what does.
    format!("{thousandths:.0}").parse().unwrap_or(if cpus > 0.0 { u32::MAX } else { 0 })
}

/// `GET /v1/supervised`: the programs of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SupervisedReport {
    /// Those whose name starts with the prefix, by name.
    pub programs: Vec<ProgramReport>,
    /// What to give as `after` to go on; `null` at the end.
    pub next: Option<String>,
}

/// A program that is to run somewhere.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProgramReport {
    /// Its name.
    #[schema(example = "nightly")]
    pub name: String,
    /// The node it is on, or is to be started on.
    #[schema(example = "n2")]
    pub node: Option<String>,
    /// The life of that node.
    pub incarnation: Option<u64>,
    /// `starting`, `running`, `quarantined` (it failed too often and waits to be run again), `refused`
    /// or, in the answer to `PUT` only, `over`: it has run and is forgotten.
    pub state: String,
    /// The number of its latest start, which the program finds in `PURLIN_FENCE`.
    pub fence: u64,
    /// How often it was started again because it or its node failed.
    pub restarts: u64,
    /// Why it is where it is, or as it is.
    pub cause: Option<String>,
    /// The program and its arguments; empty when a later release wrote them.
    pub command: Vec<String>,
    /// The names of its own variables; their values may be secrets.
    pub env: Vec<String>,
    /// The directory it starts in.
    pub cwd: Option<String>,
    /// The user it runs as, if not the node's.
    pub user: Option<String>,
    /// What asks it to stop.
    pub stop_signal: Option<String>,
    /// How long it has then, in milliseconds.
    pub grace_ms: Option<u64>,
    /// `always`, `on-failure` or `never`.
    pub restart: Option<String>,
    /// Most memory in bytes.
    pub memory_max: Option<u64>,
    /// Most processors.
    pub cpus: Option<f64>,
    /// Whether two copies at once do harm.
    pub singleton: bool,
}

impl ProgramReport {
    /// One that is forgotten.
    pub(crate) fn over(name: &str) -> Self {
        Self { name: name.to_owned(), state: "over".to_owned(), ..Self::default() }
    }
}

impl From<&Program> for ProgramReport {
    fn from(program: &Program) -> Self {
        let (child, spec) = (&program.child, program.spec.as_ref());
        let command =
            |spec: &ExecSpec| std::iter::once(&spec.command).chain(&spec.args).cloned().collect();
        Self {
            name: child.id.to_string(),
            node: child.node().map(|node| node.name.to_string()),
            incarnation: child.node().map(|node| node.incarnation.0),
            state: child.state().to_owned(),
            fence: child.fence().0,
            restarts: child.restarts().into(),
            cause: child.cause().map(ToString::to_string),
            command: spec.map(command).unwrap_or_default(),
            env: spec.map(|spec| spec.env.keys().cloned().collect()).unwrap_or_default(),
            cwd: spec.and_then(|spec| spec.cwd.clone()),
            user: spec.and_then(|spec| spec.user.clone()),
            stop_signal: spec.map(|spec| spec.stop_signal.as_str().to_owned()),
            grace_ms: spec.map(|spec| u64::try_from(spec.grace.as_millis()).unwrap_or(u64::MAX)),
            restart: spec.map(|spec| spec.restart.as_str().to_owned()),
            memory_max: spec.and_then(|spec| spec.memory_max),
            cpus: spec.and_then(|spec| spec.cpu_millis).map(|millis| f64::from(millis) / 1_000.0),
            singleton: spec.is_some_and(|spec| spec.singleton),
        }
    }
}

/// Answer to `PUT /v1/supervised/{name}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RanReport {
    /// `started` by this request; `released`: it had failed too often and is started again;
    /// `already`: it is there, exactly so.
    pub ran: String,
    /// How it stands.
    #[serde(flatten)]
    pub program: ProgramReport,
}

/// Answer to `DELETE /v1/supervised/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoppedReport {
    /// Whether it has ended. If not, it is forgotten, and its node ends it: within its grace, or once
    /// it hears of it.
    pub ended: bool,
}

/// The data of a `line` in `GET /v1/supervised/{name}/logs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogLineReport {
    /// The node that kept it.
    pub node: String,
    /// When it was read, in milliseconds of that node's wall clock.
    pub at_ms: u64,
    /// `stdout`, `stderr`, or `purlin` for what the node says about it.
    pub stream: String,
    /// The text without the line end; what was not UTF-8 is replaced.
    pub text: String,
    /// Whether the line goes on in the next one of the same stream.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub part: bool,
}

impl LogLineReport {
    pub(crate) fn of(node: &str, line: Line) -> Self {
        Self {
            node: node.to_owned(),
            at_ms: line.at.as_millis(),
            stream: line.stream.as_str().to_owned(),
            text: line.text,
            part: line.is_part,
        }
    }
}

/// The data of `source` in `GET /v1/supervised/{name}/logs`: whose lines follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogSourceReport {
    /// The node that has them.
    pub node: String,
    /// The life of that node.
    pub incarnation: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> RunRequest {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_request_says_everything_a_spec_can_and_defaults_are_the_libraries() {
        let spec = parse(r#"{"command": ["a", "b"]}"#).spec().unwrap();
        assert_eq!(spec, ExecSpec::new("a").args(["b"]));
        let all = r#"{"command": ["a"], "env": {"X": "1"}, "cwd": "/tmp", "user": "nobody",
            "stop_signal": "int", "grace_ms": 1, "restart": "never", "memory_max": 1048576,
            "cpus": 0.5, "singleton": true}"#;
        let spec = parse(all).spec().unwrap();
        assert_eq!(spec.cpu_millis, Some(500));
        assert_eq!((spec.restart, spec.stop_signal), (ExecRestart::Never, StopSignal::Int));
        assert_eq!((spec.grace, spec.memory_max), (Duration::from_millis(1), Some(1 << 20)));
        assert!(spec.singleton);
    }

    #[test]
    fn what_is_out_of_bounds_names_its_field() {
        for (json, field) in [
            (r#"{"command": []}"#, "command"),
            (r#"{"command": ["a"], "cpus": 0}"#, "cpus in thousandths"),
            (r#"{"command": ["a"], "cpus": -1}"#, "cpus in thousandths"),
            (r#"{"command": ["a"], "cpus": 1e300}"#, "cpus in thousandths"),
            (r#"{"command": ["a"], "restart": "often"}"#, "restart"),
            (r#"{"command": ["a"], "grace_ms": 3600001}"#, "grace in ms"),
        ] {
            assert_eq!(parse(json).spec().unwrap_err().field(), field, "{json}");
        }
        assert!(serde_json::from_str::<RunRequest>(r#"{"command": ["a"], "cpu": 1}"#).is_err());
    }
}
