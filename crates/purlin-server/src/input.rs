//! Reading what clients send: query parameters, path texts, bodies. Every refusal names the input,
//! its value and the bound, and an unknown parameter is refused rather than ignored: an option
//! that is silently dropped looks exactly like one that was obeyed.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, Uri, header},
};
use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use percent_encoding::percent_decode_str;
use purlin_core::{Advice, Outcome};

use crate::problem::Problem;

/// The query of one request.
#[derive(Debug)]
pub(crate) struct Params(Vec<(String, String)>);

impl Params {
    /// Reads the query of `uri`, which may hold only `known` parameters, each at most once.
    pub(crate) fn read(uri: &Uri, known: &[&str]) -> Result<Self, Problem> {
        let mut params = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode_query("query", name)?, decode_query(name, value)?);
            if !known.contains(&name.as_str()) {
                let bound =
                    if known.is_empty() { "no parameters".to_owned() } else { known.join(", ") };
                let detail =
                    format!("query parameter {name:?} is not known here; this route takes {bound}");
                return Err(Problem::bad_input(&name, &value, &bound, detail));
            }
            if params.iter().any(|(other, _)| *other == name) {
                return Err(Problem::bad_input(
                    &name,
                    &value,
                    "once",
                    format!("query parameter {name:?} is given twice"),
                ));
            }
            params.push((name, value));
        }
        Ok(Self(params))
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// A number within `bound`, if given.
    pub(crate) fn number<N>(
        &self,
        name: &str,
        bound: &RangeInclusive<N>,
    ) -> Result<Option<N>, Problem>
    where
        N: FromStr + PartialOrd + Display,
    {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.parse::<N>() {
            Ok(number) if bound.contains(&number) => Ok(Some(number)),
            Ok(_) | Err(_) => {
                let range = format!("{} to {}", bound.start(), bound.end());
                Err(Problem::bad_input(
                    name,
                    text,
                    &range,
                    format!("{name} of {text:?} is not a number from {range}"),
                ))
            }
        }
    }

    /// `true` or `false`, if given.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, Problem> {
        self.get(name)
            .map(|text| match text {
                "true" => Ok(true),
                "false" => Ok(false),
                _ => Err(Problem::bad_input(
                    name,
                    text,
                    "true or false",
                    format!("{name} of {text:?} is neither true nor false"),
                )),
            })
            .transpose()
    }
}

fn decode_query(field: &str, text: &str) -> Result<String, Problem> {
    let spaced = text.replace('+', " ");
    match percent_decode_str(&spaced).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err(not_text(field, text)),
    }
}

/// Decodes a piece of the path, slashes and all.
pub(crate) fn decode_path(field: &str, raw: &str) -> Result<String, Problem> {
    match percent_decode_str(raw).decode_utf8() {
        Ok(decoded) => Ok(decoded.into_owned()),
        Err(_) => Err(not_text(field, raw)),
    }
}

fn not_text(field: &str, raw: &str) -> Problem {
    Problem::bad_input(field, raw, "UTF-8", format!("{field} does not decode to UTF-8 text"))
}

/// The media type of the body without its parameters, in lower case.
pub(crate) fn media_type(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    Some(text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// Refuses a body encoded in a way nobody here undoes: publishing gzip bytes by mistake helps no one.
pub(crate) fn refuse_encoded(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(header::CONTENT_ENCODING).map(|value| value.to_str().unwrap_or("(not text)"))
    {
        None | Some("identity") => Ok(()),
        Some(encoding) => Err(unsupported("content-encoding", encoding, "identity")),
    }
}

/// 415: the body is of a kind this route does not read.
pub(crate) fn unsupported(field: &str, value: &str, bound: &str) -> Problem {
    Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "unsupported_media",
        "The body is of a kind this route does not read",
        format!("{field} of {value:?} is not read here; send {bound}"),
    )
    .about(field, value, bound)
}

/// Reads a whole body of at most `bytes_max` within `within`.
pub(crate) async fn whole_body(
    what: &str,
    body: Body,
    bytes_max: usize,
    within: Duration,
) -> Result<Bytes, Problem> {
    match tokio::time::timeout(within, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(Problem::too_large(what, bytes_max))
        }
        Ok(Err(_broken)) => Err(cut_off(format!("the connection broke while {what} was read"))),
        Err(_late) => Err(cut_off(format!("{what} did not arrive within {} s", within.as_secs()))),
    }
}

/// 408: the body did not come to its end.
pub(crate) fn cut_off(detail: String) -> Problem {
    Problem::new(
        StatusCode::REQUEST_TIMEOUT,
        "body_cut_off",
        "The body did not arrive in full",
        detail,
    )
    .ended(Outcome::NotDone, &Advice::Retry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Params, Problem> {
        Params::read(&format!("/x?{query}").parse().unwrap(), &["buffer", "policy"])
    }

    #[test]
    fn an_unknown_or_repeated_parameter_is_refused_by_name() {
        let unknown = read("bufer=1").unwrap_err();
        assert_eq!(unknown.document().field.as_deref(), Some("bufer"));
        assert_eq!(unknown.document().bound.as_deref(), Some("buffer, policy"));
        assert_eq!(
            read("buffer=1&buffer=2").unwrap_err().document().bound.as_deref(),
            Some("once")
        );
    }

    #[test]
    fn values_are_decoded_and_bounded() {
        let params = read("policy=a%2Fb+c&buffer=7").unwrap();
        assert_eq!(params.get("policy"), Some("a/b c"));
        assert_eq!(params.number("buffer", &(1..=9_u32)).unwrap(), Some(7));
        let problem = params.number("buffer", &(1..=6_u32)).unwrap_err();
        assert_eq!(problem.document().value.as_deref(), Some("7"));
        assert_eq!(problem.document().bound.as_deref(), Some("1 to 6"));
        assert!(read("policy=%ff").is_err());
    }

    #[tokio::test]
    async fn a_body_above_its_bound_is_413_and_one_that_never_ends_408() {
        let within = Duration::from_millis(20);
        let problem = whole_body("the message", Body::from("12345"), 4, within).await.unwrap_err();
        assert_eq!(problem.document().status, 413);
        let endless =
            Body::from_stream(futures_util::stream::pending::<Result<Bytes, std::io::Error>>());
        assert_eq!(
            whole_body("the message", endless, 4, within).await.unwrap_err().document().status,
            408
        );
        assert_eq!(whole_body("the message", Body::from("1234"), 4, within).await.unwrap(), "1234");
    }
}
