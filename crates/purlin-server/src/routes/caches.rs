//! Caches over HTTP: raw values, and what each cache does and holds.

use std::{sync::Arc, time::Duration};

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::Response,
};
use base64::{Engine as _, prelude::BASE64_STANDARD as STANDARD};
use purlin::cache::{
    CacheConfig, CacheError, CacheStats, Kind, RawCache, cache::Ttl, config::VALUE_BYTES_LIMIT,
};
use purlin_core::Outcome;

use crate::{
    app::App,
    input::{Params, decode_path, refuse_encoded, whole_body},
    problem::{Problem, ProblemDocument},
    shapes::{CacheAnswer, CacheReport, CacheWritten, CachesReport, NodeCachesReport},
};

const PREFIX: &str = "/v1/caches/";

/// The longest time to live: a year.
const TTL_MS_MAX: u64 = 366 * 24 * 3_600_000;

/// How long a member may take to tell of its caches.
const EVERYWHERE_WITHIN: Duration = Duration::from_secs(2);

/// The caches of this node, those included that others keep entries of here.
#[utoipa::path(
    get, path = "/v1/caches", tag = "caches", security((), ("token" = [])),
    params(("everywhere" = Option<bool>, Query, description = "`true`: those of every member, too; it has 2 s to answer")),
    responses(
        (status = 200, body = CachesReport),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<CachesReport>, Problem> {
    let params = Params::read(&uri, &["everywhere"])?;
    let all = app.host.caches();
    let reports = |stats: Vec<CacheStats>| stats.into_iter().map(CacheReport::from).collect();
    let mut nodes = Vec::new();
    if params.flag("everywhere")?.unwrap_or(false) {
        for (node, end) in all.stats_everywhere(EVERYWHERE_WITHIN).await {
            let (caches, problem) = match end {
                Ok(stats) => (reports(stats), None),
                Err(error) => (Vec::new(), Some(error.to_string())),
            };
            nodes.push(NodeCachesReport { node: node.name.to_string(), caches, problem });
        }
    }
    Ok(Json(CachesReport { caches: reports(all.stats()), nodes }))
}

/// What one cache did and holds on this node.
#[utoipa::path(
    get, path = "/v1/caches/{cache}", tag = "caches", security((), ("token" = [])),
    params(("cache" = String, Path, description = "Its name")),
    responses(
        (status = 200, body = CacheReport),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, description = "It is not open on this node", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn stats(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<CacheReport>, Problem> {
    Params::read(&uri, &[])?;
    let raw = uri.path().strip_prefix(PREFIX).expect("the router matched the prefix");
    let name = decode_path("cache", raw)?;
    let cache = app.host.caches().get(&name).ok_or_else(|| absent("cache", &name))?;
    Ok(Json(cache.stats().into()))
}

/// The value under a key, raw; `Purlin-Expires-In-Ms` says how long it counts.
///
/// A cache that is not open on this node is looked for on the others.
#[utoipa::path(
    get, path = "/v1/caches/{cache}/{key}", tag = "caches", security((), ("token" = [])),
    params(
        ("cache" = String, Path, description = "Its name"),
        ("key" = String, Path, description = "Slashes as they are or as %2F"),
    ),
    responses(
        (status = 200, description = "The value", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 404, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "Nobody who should hold it answered", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn get(State(app): State<Arc<App>>, uri: Uri) -> Result<Response, Problem> {
    Params::read(&uri, &[])?;
    let (name, key) = name_and_key(&uri)?;
    let cache = app.host.caches().look_up(&name).map_err(|error| refused(&error))?;
    let value = cache.get(&key).await.map_err(|error| refused(&error))?;
    let value = value.ok_or_else(|| absent("key", &key))?;
    let ttl = cache.ttl(&key).await.map_err(|error| refused(&error))?.flatten();
    let mut response = Response::new(Body::from(value));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Some(left) = ttl {
        let left = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        headers.insert("purlin-expires-in-ms", HeaderValue::from(left));
    }
    Ok(response)
}

/// Writes a value: the body. A cache that is not open yet is opened with the default bounds.
#[utoipa::path(
    put, path = "/v1/caches/{cache}/{key}", tag = "caches", security((), ("token" = [])),
    params(
        ("cache" = String, Path, description = "1 to 64 letters, digits, '.', '_' or '-'"),
        ("key" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("ttl_ms" = Option<u64>, Query, description = "How long it counts: 1 to a year of milliseconds; default as the cache says"),
        ("if_absent" = Option<bool>, Query, description = "`true`: only if there is no value"),
        ("if_present" = Option<bool>, Query, description = "`true`: only if there is a value"),
        ("kind" = Option<String>, Query, description = "What to open it as if need be: `partitioned` (default), `replicated`, `near` or `local`"),
    ),
    request_body(content = Vec<u8>, description = "At most 1 MiB", content_type = "application/octet-stream"),
    responses(
        (status = 200, body = CacheWritten),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "A foreign page or name", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 408, description = "The body did not arrive", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 413, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 415, description = "An encoded body", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "Not on all nodes that should hold it; `outcome` says whether on some", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 507, description = "As many caches as there may be", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn put(
    State(app): State<Arc<App>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<CacheWritten>, Problem> {
    let params = Params::read(&uri, &["ttl_ms", "if_absent", "if_present", "kind"])?;
    let (name, key) = name_and_key(&uri)?;
    let ttl = ttl(&params)?;
    let if_absent = params.flag("if_absent")?.unwrap_or(false);
    let if_present = params.flag("if_present")?.unwrap_or(false);
    if if_absent && if_present {
        let detail = "if_absent and if_present cannot both hold".to_owned();
        return Err(Problem::bad_input("if_present", "true", "one of the two conditions", detail));
    }
    let kind = params.get("kind").map(kind).transpose()?;
    let cache = open(&app, &name, kind)?;
    refuse_encoded(&headers)?;
    let within = app.config.body_within;
    let value = whole_body("the value", body, VALUE_BYTES_LIMIT, within).await?;
    let written = if if_absent {
        cache.put_new(&key, value, ttl).await
    } else if if_present {
        cache.replace(&key, value, ttl).await
    } else {
        cache.put(&key, value, ttl).await.map(|()| true)
    };
    Ok(Json(CacheWritten { written: written.map_err(|error| refused(&error))? }))
}

/// Changes a value where it is kept: adds to a number, takes the value away, or gives it a new
/// life. Each counts once; after an unknown outcome asking again may count twice.
#[utoipa::path(
    post, path = "/v1/caches/{cache}/{key}", tag = "caches", security((), ("token" = [])),
    params(
        ("cache" = String, Path, description = "1 to 64 letters, digits, '.', '_' or '-'; opened with the default bounds if need be"),
        ("key" = String, Path, description = "1 to 1,024 bytes; slashes as they are or as %2F"),
        ("op" = String, Query, description = "`increment`: adds `by` to decimal text, nothing there being 0; `take`: removes the value and gives it; `touch`: a new `ttl_ms` from now"),
        ("by" = Option<i64>, Query, description = "For `increment`; default 1"),
        ("ttl_ms" = Option<u64>, Query, description = "For `touch`, and for a number that begins: 1 to a year of milliseconds; default as the cache says"),
    ),
    responses(
        (status = 200, body = CacheAnswer),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "A foreign page or name", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 409, description = "What is there is no number, or the sum exceeds 64 bits", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "Not on all nodes that should hold it; `outcome` says whether on some", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 507, description = "As many caches as there may be", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn change(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<CacheAnswer>, Problem> {
    let params = Params::read(&uri, &["op", "by", "ttl_ms"])?;
    let (name, key) = name_and_key(&uri)?;
    let ttl = ttl(&params)?;
    let by = params.number("by", &(i64::MIN..=i64::MAX))?.unwrap_or(1);
    let op = op(params.get("op").unwrap_or_default())?;
    let cache = open(&app, &name, None)?;
    let none = CacheAnswer { done: false, value: None, value_base64: None };
    let answer = match op {
        Op::Increment => cache.incr(&key, by, ttl).await.map(|sum| CacheAnswer {
            done: true,
            value: Some(sum.to_string()),
            ..none
        }),
        Op::Touch => cache.touch(&key, ttl).await.map(|done| CacheAnswer { done, ..none }),
        Op::Take => cache.take(&key).await.map(|taken| match taken {
            None => none,
            Some(value) => match String::from_utf8(value.to_vec()) {
                Ok(text) => CacheAnswer { done: true, value: Some(text), ..none },
                Err(_) => {
                    CacheAnswer { done: true, value_base64: Some(STANDARD.encode(&value)), ..none }
                }
            },
        }),
    };
    Ok(Json(answer.map_err(|error| refused(&error))?))
}

#[derive(Debug, Clone, Copy)]
enum Op {
    Increment,
    Take,
    Touch,
}

fn op(text: &str) -> Result<Op, Problem> {
    match text {
        "increment" => Ok(Op::Increment),
        "take" => Ok(Op::Take),
        "touch" => Ok(Op::Touch),
        other => {
            let bound = "increment, take or touch";
            Err(Problem::bad_input("op", other, bound, format!("op {other:?} is not known")))
        }
    }
}

fn ttl(params: &Params) -> Result<Ttl, Problem> {
    let ttl = params.number("ttl_ms", &(1..=TTL_MS_MAX))?;
    Ok(ttl.map_or(Ttl::Usual, |ms| Ttl::For(Duration::from_millis(ms))))
}

fn open(app: &App, name: &str, wanted: Option<Kind>) -> Result<RawCache, Problem> {
    let caches = app.host.caches();
    match (caches.get(name), wanted) {
        (Some(cache), None) => Ok(cache),
        (Some(cache), Some(kind)) if cache.kind() == kind => Ok(cache),
        (Some(_), Some(_)) => Err(refused(&CacheError::Differs(name.to_owned()))),
        (None, wanted) => caches
            .open_raw(name, CacheConfig::new(wanted.unwrap_or(Kind::Partitioned)))
            .map_err(|error| refused(&error)),
    }
}

/// Removes the value under a key, whether there is one or not.
#[utoipa::path(
    delete, path = "/v1/caches/{cache}/{key}", tag = "caches", security((), ("token" = [])),
    params(
        ("cache" = String, Path, description = "Its name"),
        ("key" = String, Path, description = "Slashes as they are or as %2F"),
    ),
    responses(
        (status = 200, body = CacheWritten),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "A foreign page or name", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "Not on all nodes that should hold it; `outcome` says whether on some", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn remove(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<CacheWritten>, Problem> {
    Params::read(&uri, &[])?;
    let (name, key) = name_and_key(&uri)?;
    let cache = app.host.caches().look_up(&name).map_err(|error| refused(&error))?;
    cache.remove(&key).await.map_err(|error| refused(&error))?;
    Ok(Json(CacheWritten { written: true }))
}

/// Removes everything of a cache, on all nodes that can be reached.
#[utoipa::path(
    delete, path = "/v1/caches/{cache}", tag = "caches", security((), ("token" = [])),
    params(("cache" = String, Path, description = "Its name")),
    responses(
        (status = 200, body = CacheWritten),
        (status = 401, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 403, description = "A foreign page or name", body = ProblemDocument, content_type = "application/problem+json"),
        (status = 422, body = ProblemDocument, content_type = "application/problem+json"),
        (status = 503, description = "A node did not confirm; `outcome` says whether others may have", body = ProblemDocument, content_type = "application/problem+json"),
    ),
)]
pub(super) async fn clear(
    State(app): State<Arc<App>>,
    uri: Uri,
) -> Result<Json<CacheWritten>, Problem> {
    Params::read(&uri, &[])?;
    let raw = uri.path().strip_prefix(PREFIX).expect("the router matched the prefix");
    let name = decode_path("cache", raw)?;
    let cache = app.host.caches().look_up(&name).map_err(|error| refused(&error))?;
    cache.clear().await.map_err(|error| refused(&error))?;
    Ok(Json(CacheWritten { written: true }))
}

/// A cache's name, which is one segment, and the key behind it, slashes and all.
fn name_and_key(uri: &Uri) -> Result<(String, String), Problem> {
    let raw = uri.path().strip_prefix(PREFIX).expect("the router matched the prefix");
    let (name, key) = raw.split_once('/').expect("the router matched two segments");
    Ok((decode_path("cache", name)?, decode_path("key", key)?))
}

fn kind(text: &str) -> Result<Kind, Problem> {
    match text {
        "local" => Ok(Kind::Local),
        "near" => Ok(Kind::Near),
        "partitioned" => Ok(Kind::Partitioned),
        "replicated" => Ok(Kind::Replicated),
        other => {
            let bound = "local, near, partitioned or replicated";
            Err(Problem::bad_input("kind", other, bound, format!("kind {other:?} is not known")))
        }
    }
}

fn absent(field: &str, name: &str) -> Problem {
    let detail = format!("{field} {name:?} holds nothing");
    let title = "There is nothing of that name";
    Problem::new(StatusCode::NOT_FOUND, "absent", title, detail).about(
        field,
        name,
        "something that was written and has not ended",
    )
}

fn refused(error: &CacheError) -> Problem {
    let problem = match error {
        CacheError::TooLarge { max, .. } => Problem::too_large("the value", *max),
        CacheError::TooManyCaches { .. } => Problem::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "too_many_caches",
            "This node has as many caches as it may",
            error.to_string(),
        ),
        CacheError::NotANumber { .. } | CacheError::Overflow { .. } => Problem::new(
            StatusCode::CONFLICT,
            "not_addable",
            "The value under this key cannot be added to",
            error.to_string(),
        ),
        _ if error.outcome() == Outcome::Unknown => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not_on_all_nodes",
            "Not on all nodes that should hold it",
            error.to_string(),
        ),
        CacheError::Unreachable(_) | CacheError::Clock(_) => Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unreachable",
            "Nobody who should hold it took part",
            error.to_string(),
        ),
        _ => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "bad_input",
            "An input has a value this route cannot use",
            error.to_string(),
        ),
    };
    problem.ended(error.outcome(), &error.advice())
}
