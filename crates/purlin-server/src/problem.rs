//! What a refused or failed request gets back: an RFC 9457 problem document.
//!
//! A status code alone cannot tell a caller whether repeating the request is safe. So every error
//! body also says `code` (a stable word to branch on), `outcome` (`not_done` or `unknown`) and
//! `advice` (`retry`, `retry_elsewhere`, `same_request_id_only` or `give_up`), and, where an input
//! was at fault, which `field` held which `value` against which `bound`.

use std::collections::BTreeMap;

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use purlin_core::{Advice, Outcome};
use serde::{Deserialize, Serialize};
use utoipa::{
    ToSchema,
    openapi::{ContentBuilder, RefOr, ResponseBuilder},
};

/// The media type of a problem document (RFC 9457, section 6.1).
pub const PROBLEM_JSON: &str = "application/problem+json";

/// A problem document as it stands on the wire.
///
/// Clients branch on `code`, `outcome` and `advice`; `title` and `detail` are for people and may
/// be reworded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemDocument {
    /// A URI that names the kind of problem: `urn:purlin:problem:` and the `code`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What `code` means, in words; the same for every occurrence.
    pub title: String,
    /// The HTTP status, repeated for readers that see only the body.
    pub status: u16,
    /// What happened this time, with the values and bounds involved.
    pub detail: String,
    /// A stable word for programs, such as `token_required`.
    pub code: String,
    /// `not_done`: nothing was changed. `unknown`: it may have run.
    #[schema(example = "not_done")]
    pub outcome: String,
    /// `retry`, `retry_elsewhere`, `same_request_id_only` or `give_up`.
    #[schema(example = "give_up")]
    pub advice: String,
    /// With `retry_elsewhere`: the node to go to, if one is known to be better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice_node: Option<String>,
    /// The input at fault: a query parameter, header, path segment or body field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<String>,
    /// The offending value, shortened to 120 characters; never a secret.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// What the value was held against: a limit with its unit, or the allowed values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<String>,
    /// For a body of many messages: how many were published before the problem.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub published: Option<u64>,
    /// With `version_mismatch`: the version that is there; absent when there is no value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// With `wrong_kind`: the kind that the name holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind_held: Option<String>,
    /// With `wrong_kind`: the kind that the request is for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind_asked: Option<String>,
}

/// An error on its way out of a handler; becomes a [`ProblemDocument`].
#[derive(Debug, Clone)]
pub(crate) struct Problem {
    status: StatusCode,
    document: Box<ProblemDocument>,
}

/// The longest `value` a document repeats: enough to recognise, too little to be a copy.
const VALUE_CHARS_MAX: usize = 120;

impl Problem {
    /// A problem of kind `code`; not done and pointless to repeat until said otherwise.
    pub(crate) fn new(
        status: StatusCode,
        code: &str,
        title: &str,
        detail: impl Into<String>,
    ) -> Self {
        let document = ProblemDocument {
            kind: format!("urn:purlin:problem:{code}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            code: code.to_owned(),
            outcome: Outcome::NotDone.as_str().to_owned(),
            advice: Advice::GiveUp.as_str().to_owned(),
            advice_node: None,
            field: None,
            value: None,
            bound: None,
            published: None,
            version: None,
            kind_held: None,
            kind_asked: None,
        };
        Self { status, document: Box::new(document) }
    }

    /// An input that cannot be used as it stands.
    pub(crate) fn bad_input(
        field: &str,
        value: &str,
        bound: &str,
        detail: impl Into<String>,
    ) -> Self {
        Self::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad_input",
            "An input has a value this route cannot use",
            detail,
        )
        .about(field, value, bound)
    }

    /// A body above its bound. Nothing of the offending message was used.
    pub(crate) fn too_large(what: &str, bytes_max: usize) -> Self {
        let mut problem = Self::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "too_large",
            "A body or message exceeds its limit",
            format!("{what} exceeds limit {bytes_max} bytes"),
        );
        problem.document.field = Some(what.to_owned());
        problem.document.bound = Some(format!("{bytes_max} bytes"));
        problem
    }

    /// The same problem with what may have happened and what to do next.
    pub(crate) fn ended(mut self, outcome: Outcome, advice: &Advice) -> Self {
        outcome.as_str().clone_into(&mut self.document.outcome);
        advice.as_str().clone_into(&mut self.document.advice);
        self.document.advice_node = match advice {
            Advice::RetryElsewhere(Some(node)) => Some(node.to_string()),
            Advice::RetryElsewhere(None)
            | Advice::Retry
            | Advice::SameRequestIdOnly
            | Advice::GiveUp => None,
        };
        self
    }

    /// The same problem, naming the input at fault.
    pub(crate) fn about(mut self, field: &str, value: &str, bound: &str) -> Self {
        self.document.field = Some(field.to_owned());
        self.document.value = Some(value.chars().take(VALUE_CHARS_MAX).collect());
        self.document.bound = Some(bound.to_owned());
        self
    }

    /// The same problem, saying how many messages of the body went out before it.
    pub(crate) fn after_publishing(mut self, published: u64) -> Self {
        self.document.published = Some(published);
        self
    }

    /// The same problem, saying which version is there.
    pub(crate) fn found_version(mut self, version: Option<String>) -> Self {
        self.document.version = version;
        self
    }

    /// The same problem, saying which kind is there and which one was asked for.
    pub(crate) fn between_kinds(mut self, held: &str, asked: &str) -> Self {
        self.document.kind_held = Some(held.to_owned());
        self.document.kind_asked = Some(asked.to_owned());
        self
    }

    #[cfg(test)]
    pub(crate) fn document(&self) -> &ProblemDocument {
        &self.document
    }
}

/// How requests that only look may be refused, for the API description.
pub(crate) struct ReadRefusals;

/// How requests that change replicated state may be refused, for the API description.
pub(crate) struct WriteRefusals;

impl utoipa::IntoResponses for ReadRefusals {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        described(&[
            ("401", "The token is missing or wrong"),
            ("404", "There is nothing of that name"),
            ("409", "The name holds another kind of value"),
            ("422", "An input cannot be used"),
            ("503", "This node cannot serve it now"),
        ])
    }
}

impl utoipa::IntoResponses for WriteRefusals {
    fn responses() -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
        described(&[
            ("401", "The token is missing or wrong"),
            ("403", "The request comes from a page of somebody else"),
            ("404", "There is nothing of that name"),
            ("408", "The body did not arrive"),
            ("409", "The name holds another kind of value, or another version than expected"),
            ("413", "The value is too large"),
            ("422", "An input cannot be used"),
            ("500", "It holds in memory, but is not known to be on disk: outcome `unknown`"),
            ("503", "The clock refuses to stamp the write"),
            ("507", "The set has as many keys as it may"),
        ])
    }
}

fn described(statuses: &[(&str, &str)]) -> BTreeMap<String, RefOr<utoipa::openapi::Response>> {
    let schema = utoipa::openapi::Ref::from_schema_name("ProblemDocument");
    let content = ContentBuilder::new().schema(Some(schema)).build();
    let response = |what: &str| {
        ResponseBuilder::new().description(what).content(PROBLEM_JSON, content.clone()).build()
    };
    statuses.iter().map(|&(status, what)| (status.to_owned(), response(what).into())).collect()
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let body = serde_json::to_vec(&self.document)
            .expect("a problem document holds only strings and numbers");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(PROBLEM_JSON));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(
                header::WWW_AUTHENTICATE,
                HeaderValue::from_static("Bearer realm=\"purlin\""),
            );
        }
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_document_names_the_field_the_value_and_the_bound() {
        let problem =
            Problem::bad_input("buffer", "0", "1 to 65536 messages", "buffer of 0 holds nothing");
        let json = serde_json::to_value(problem.document()).unwrap();
        assert_eq!(json["status"], 422);
        assert_eq!(json["type"], "urn:purlin:problem:bad_input");
        assert_eq!(json["field"], "buffer");
        assert_eq!(json["value"], "0");
        assert_eq!(json["bound"], "1 to 65536 messages");
        assert_eq!(json["outcome"], "not_done");
        assert_eq!(json["advice"], "give_up");
        assert!(json.get("published").is_none());
    }

    #[test]
    fn a_long_value_is_shortened_at_a_character_not_inside_one() {
        let problem = Problem::bad_input("topic", &"ü".repeat(500), "x", "y");
        assert_eq!(problem.document().value.as_deref().unwrap().chars().count(), 120);
    }
}
