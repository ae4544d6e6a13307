//! Feature flags.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A flag's definition, as `PUT /v1/flags/{name}` takes it. Every field may be left out.
///
/// `who` and `why` may stand beside these fields, or in the headers `Purlin-Who` and `Purlin-Why`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FlagDefinition {
    /// What it is for, in a sentence.
    pub description: String,
    /// The kill switch: off for everybody, whatever the rules say. Left out: stays as it is.
    pub killed: bool,
    /// What holds when no rule matches.
    pub otherwise: RolloutDefinition,
    /// Read top-down; the first that matches decides. At most 64.
    pub rules: Vec<RuleDefinition>,
}

/// One rule of a flag: whom it is about, when, and what it says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RuleDefinition {
    /// Actors it is about. With actors and groups empty it is about everybody.
    pub actors: Vec<String>,
    /// Groups it is about: one in common is enough.
    pub groups: Vec<String>,
    /// Attributes that must all have one of the listed values.
    pub attributes: BTreeMap<String, Vec<String>>,
    /// From when on it counts, in Unix milliseconds.
    pub from: Option<u64>,
    /// Until when it counts, in Unix milliseconds.
    pub until: Option<u64>,
    /// What it says.
    pub then: RolloutDefinition,
}

/// For whom a feature is on: `"off"`, `"on"`, or `{"basis_points": 2500}` for a quarter of the
/// actors, always the same ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RolloutDefinition {
    /// For nobody.
    #[default]
    Off,
    /// For everybody.
    On,
    /// For this share of the actors, in hundredths of a percent.
    BasisPoints(u16),
}

/// A flag: its definition, how it stands, and who changed it last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlagReport {
    /// Its name.
    pub name: String,
    /// When its definition was written last: a hybrid timestamp.
    pub version: String,
    /// What it is for.
    pub description: String,
    /// Whether the kill switch is on.
    pub killed: bool,
    /// What holds when no rule matches.
    pub otherwise: RolloutDefinition,
    /// The rules.
    pub rules: Vec<RuleDefinition>,
    /// How it stands, in a few words for people: `on for everybody`, `25 % of actors, 2 rules`.
    pub summary: String,
    /// The last change; `null` if it is no longer remembered.
    pub last_change: Option<AuditReport>,
    /// In `GET /v1/flags/{name}` with the token: its changes, the newest first, at most 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<Vec<AuditReport>>,
    /// In `GET /v1/flags/{name}` without the token: why there is no `audit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit_note: Option<String>,
}

/// One change of a flag.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditReport {
    /// When.
    pub at_ms: u64,
    /// Who said so.
    pub who: String,
    /// Why, in their words.
    pub why: String,
    /// On which node.
    pub node: String,
    /// What was done, for people: `set to 25 % of actors`, `killed`, `brought back`, `removed`.
    pub what: String,
    /// The definition it was given, if that is what was done.
    pub definition: Option<FlagDefinition>,
}

/// `GET /v1/flags`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlagsReport {
    /// The flags of this page, by name, without their audit trails.
    pub flags: Vec<FlagReport>,
    /// Ask with `?after=` this for the next page; `null` after the last.
    pub next: Option<String>,
}

/// Body of `POST /v1/flags/{name}/kill`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct KillRequest {
    /// `true` puts the kill switch on, `false` takes it off.
    pub killed: bool,
    /// Who says so; default: the header `Purlin-Who`, then `anonymous`.
    #[serde(default)]
    pub who: Option<String>,
    /// Why; default: the header `Purlin-Why`.
    #[serde(default)]
    pub why: Option<String>,
}

/// Body of `POST /v1/flags/{name}/evaluate`: who asks. Every field may be left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
pub struct AskerRequest {
    /// The actor, such as a user's id. Without one, percentages are off.
    pub actor: Option<String>,
    /// Its groups.
    pub groups: Vec<String>,
    /// What else is known of it.
    pub attributes: BTreeMap<String, String>,
}

/// Answer to `POST /v1/flags/{name}/evaluate`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EvaluationReport {
    /// Whether the feature is on for the asker.
    pub on: bool,
    /// `unknown` (no such flag), `killed`, `rule` or `otherwise`.
    #[schema(example = "rule")]
    pub because: String,
    /// With `rule`: which, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<u64>,
    /// The same for people.
    pub explanation: String,
}

/// The data of `flags` in `GET /v1/live`: flags changed; read them again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FlagsChanged {
    /// How many changes of flags this node has seen since it started.
    pub changes: u64,
}
