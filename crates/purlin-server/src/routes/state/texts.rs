//! Text that several people write at once.

use axum::{
    Json,
    body::Body,
    http::{HeaderMap, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use purlin_core::Advice;
use purlin_replica::{Kind, StateError, TextError, WriteError};

use super::{
    Family, Target,
    body::{object, shape, value},
};
use crate::{
    problem::{Problem, ReadRefusals, WriteRefusals},
    shapes::{RemovedReport, SpliceRequest, TextReport},
    state::absent,
};

#[derive(Debug)]
pub(in crate::routes) struct Texts;

impl Family for Texts {
    const PREFIX: &'static str = "/v1/texts/";
    const KINDS: &'static [Kind] = &[Kind::Text];
}

impl Target<Texts> {
    fn chars(&self) -> u64 {
        let cell = self.set().get(self.name.as_bytes());
        cell.as_ref().and_then(|cell| cell.text()).map_or(0, |text| text.chars() as u64)
    }

    async fn changed(&self, done: Result<(), StateError>) -> Result<Json<TextReport>, Problem> {
        // Repeated it would be made twice.
        self.written(done, &Advice::GiveUp).await?;
        Ok(Json(TextReport { name: self.name.clone(), chars: self.chars() }))
    }
}

/// The text, with `Purlin-Chars`: how many characters it has. 404 if there is none.
#[utoipa::path(
    get, path = "/v1/texts/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`text`; default: the one it has"),
    ),
    responses((status = 200, description = "The text", content_type = "text/plain", body = String), ReadRefusals),
)]
pub(in crate::routes) async fn text(of: Target<Texts>) -> Result<Response, Problem> {
    let cell = of.set().get(of.name.as_bytes());
    let text = cell.as_ref().and_then(|cell| cell.text());
    let text = text.ok_or_else(|| absent("text", &of.name))?;
    let chars = HeaderValue::from(text.chars());
    let kind = (header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    let headers = [kind, (header::HeaderName::from_static("purlin-chars"), chars)];
    Ok((headers, text.to_string()).into_response())
}

/// Makes the text read as the body does, which is UTF-8 of at most 1 MiB. What both begin and end
/// with stays untouched, with what others write there meanwhile.
#[utoipa::path(
    put, path = "/v1/texts/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`text`; default: the one it has"),
    ),
    request_body(content = String, content_type = "text/plain"),
    responses((status = 200, body = TextReport), WriteRefusals),
)]
pub(in crate::routes) async fn put_text(
    of: Target<Texts>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TextReport>, Problem> {
    let body = value(&of.app, &headers, body).await?;
    let text = std::str::from_utf8(&body).map_err(|error| {
        Problem::bad_input("body", "(not text)", "UTF-8", format!("the body is no text: {error}"))
    })?;
    of.changed(of.set().replace_text(of.name.clone(), text)).await
}

/// Changes a text at one place. Others may have moved that place meanwhile: characters count in the
/// text as this node has it when the request arrives.
///
/// Not idempotent: when the outcome is `unknown`, read the text before repeating.
#[utoipa::path(
    post, path = "/v1/texts/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`text`; default: the one it has"),
    ),
    request_body(content = SpliceRequest, content_type = "application/json"),
    responses((status = 200, body = TextReport), WriteRefusals),
)]
pub(in crate::routes) async fn splice(
    of: Target<Texts>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<TextReport>, Problem> {
    let body = object(&of.app, &headers, body).await?;
    let request: SpliceRequest = shape(body, "{\"at\", \"delete\", \"insert\"}")?;
    let index = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    let (name, set) = (of.name.clone(), of.set());
    let done = match request.at {
        Some(at) => {
            let end = index(at.saturating_add(request.delete));
            set.splice_text(name, index(at)..end, &request.insert)
        }
        None if request.delete == 0 => set.append_text(name, &request.insert),
        None => {
            let chars = index(of.chars());
            let at = chars.saturating_add(1);
            Err(WriteError::from(TextError::OutOfRange { at, chars }).into())
        }
    };
    of.changed(done).await
}

/// Removes a text, as far as it was seen here.
#[utoipa::path(
    delete, path = "/v1/texts/{name}", tag = "state", security((), ("token" = [])),
    params(
        ("name" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("type" = Option<String>, Query, description = "`text`; default: the one it has"),
    ),
    responses((status = 200, body = RemovedReport), WriteRefusals),
)]
pub(in crate::routes) async fn remove_text(
    of: Target<Texts>,
) -> Result<Json<RemovedReport>, Problem> {
    of.remove().await
}
