//! Asking a node over HTTP, and keeping "no", "maybe" and "nobody there" apart.

use std::{fs, path::Path, time::Duration};

use reqwest::{Method, Response, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};

use crate::{args::Global, exit::Failure, state};

/// A node that can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// `http://host:port`, no slash at the end.
    pub(crate) url: String,
    /// Bearer token, when one is known for this URL.
    pub(crate) token: Option<String>,
}

/// The nodes a command may ask, best first.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    endpoints: Vec<Endpoint>,
    chosen: bool,
}

/// How long a question that changes nothing may take before the next node is asked. A paused
/// process still accepts connections, so connecting proves nothing.
const READ_TIMEOUT: Duration = Duration::from_secs(3);
/// The same when there is no other node to ask: a busy one is better than none.
const LAST_READ_TIMEOUT: Duration = Duration::from_secs(15);
/// How long a request that changes something may take before its outcome counts as unknown.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

impl Client {
    /// Chooses the nodes: `--node` or `PURLIN_NODE`, else the last `up`, else the usual port.
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        let given = global.token_file.as_deref().map(read_token).transpose()?;
        let clusters = state::clusters();
        let known: Vec<_> = clusters
            .iter()
            .rev()
            .flat_map(|cluster| cluster.nodes.iter().map(move |node| (cluster, node)))
            .collect();
        let token_of = |url: &str| {
            let cluster = known
                .iter()
                .find(|(_, node)| normal(&node.url) == normal(url))
                .map(|(cluster, _)| cluster);
            // A stale state file may name a token that is gone; reads work without one.
            given.clone().or_else(|| read_token(&cluster?.token_file).ok())
        };
        let urls: Vec<String> = match &global.node {
            Some(node) => {
                let by_name = known
                    .iter()
                    .find(|(_, known)| known.name == *node)
                    .map(|(_, known)| known.url.clone());
                vec![by_name.map_or_else(|| url(node), Ok)?]
            }
            None => match clusters.last() {
                Some(cluster) => cluster.nodes.iter().map(|node| node.url.clone()).collect(),
                None => vec!["http://127.0.0.1:4900".to_owned()],
            },
        };
        let endpoints =
            urls.into_iter().map(|url| Endpoint { token: token_of(&url), url }).collect();
        Ok(Self { http: http()?, endpoints, chosen: global.node.is_some() })
    }

    /// A client of these nodes only.
    pub(crate) fn of(endpoints: Vec<Endpoint>) -> Result<Self, Failure> {
        Ok(Self { http: http()?, endpoints, chosen: true })
    }

    pub(crate) fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// Whether somebody named the node, as opposed to it being the likely one.
    pub(crate) fn is_chosen(&self) -> bool {
        self.chosen
    }

    /// The same client asking `url` instead, with the token only if `url` is known to share it.
    pub(crate) fn at(&self, url: &str) -> Self {
        let token = self.endpoints.iter().find_map(|endpoint| endpoint.token.clone());
        Self {
            http: self.http.clone(),
            endpoints: vec![Endpoint { url: url.to_owned(), token }],
            chosen: true,
        }
    }

    /// Reads `path` from the first node that answers.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let mut silent = Vec::new();
        for (endpoint, within) in self.asked_in_turn() {
            let asked = self.request(Method::GET, endpoint, path).timeout(within).send().await;
            let answer = match asked {
                Ok(response) => accepted(response).await?.json().await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(value) => return Ok(value),
                Err(error) if error.is_decode() => {
                    return Err(Failure::NotDone(format!(
                        "{} answered something that is not this API: is a purlin node there?",
                        endpoint.url
                    )));
                }
                Err(error) => silent.push(format!("{} ({})", endpoint.url, cause(&error))),
            }
        }
        Err(self.unreachable(&silent))
    }

    /// Opens a stream on the first node that answers; says which.
    pub(crate) async fn stream(
        &self,
        path: &str,
        last_id: Option<&str>,
    ) -> Result<(Endpoint, Response), Failure> {
        let mut silent = Vec::new();
        for (endpoint, within) in self.asked_in_turn() {
            let mut request =
                self.request(Method::GET, endpoint, path).header("accept", "text/event-stream");
            if let Some(id) = last_id {
                request = request.header("last-event-id", id);
            }
            // The stream itself may last for ever, so only its beginning is timed.
            match tokio::time::timeout(within, request.send()).await {
                Ok(Ok(response)) => return Ok((endpoint.clone(), accepted(response).await?)),
                Ok(Err(error)) => silent.push(format!("{} ({})", endpoint.url, cause(&error))),
                Err(_) => silent.push(format!("{} (no answer in {within:?})", endpoint.url)),
            }
        }
        Err(self.unreachable(&silent))
    }

    /// Reads the bytes at `path` from the first node that answers; `None` when nothing is there.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<bytes::Bytes>, Failure> {
        let mut silent = Vec::new();
        for (endpoint, within) in self.asked_in_turn() {
            let asked = self.request(Method::GET, endpoint, path).timeout(within).send().await;
            let answer = match asked {
                Ok(response) if response.status() == StatusCode::NOT_FOUND => {
                    let problem: Problem = response.json().await.unwrap_or_default();
                    if problem.code.as_deref() == Some("absent") {
                        return Ok(None);
                    }
                    return Err(Failure::NotDone(format!("{} does not know this", endpoint.url)));
                }
                Ok(response) => accepted(response).await?.bytes().await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(bytes) => return Ok(Some(bytes)),
                Err(error) => silent.push(format!("{} ({})", endpoint.url, cause(&error))),
            }
        }
        Err(self.unreachable(&silent))
    }

    /// As [`Client::send`], as a `POST`.
    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: impl Into<Vec<u8>>,
    ) -> Result<T, Failure> {
        self.send(Method::POST, path, body).await
    }

    /// Sends something that changes things, to the first node that can be connected to, once.
    ///
    /// Only a refused connection moves on to the next node: anything later may have been done.
    pub(crate) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Vec<u8>>,
    ) -> Result<T, Failure> {
        let body: bytes::Bytes = body.into().into();
        let mut silent = Vec::new();
        for endpoint in &self.endpoints {
            match self.send_to(method.clone(), endpoint, path, body.clone()).await {
                Err(Failure::Unreachable(why)) => silent.push(why),
                other => return other,
            }
        }
        Err(self.unreachable(&silent))
    }

    /// As [`Client::post`], to one node.
    pub(crate) async fn post_to<T: DeserializeOwned>(
        &self,
        endpoint: &Endpoint,
        path: &str,
        body: bytes::Bytes,
    ) -> Result<T, Failure> {
        self.send_to(Method::POST, endpoint, path, body).await
    }

    async fn send_to<T: DeserializeOwned>(
        &self,
        method: Method,
        endpoint: &Endpoint,
        path: &str,
        body: bytes::Bytes,
    ) -> Result<T, Failure> {
        let request = self
            .request(method, endpoint, path)
            .header("content-type", "application/octet-stream")
            .timeout(WRITE_TIMEOUT)
            .body(body);
        let response = request.send().await.map_err(|error| {
            if error.is_connect() {
                Failure::Unreachable(format!("{} ({})", endpoint.url, cause(&error)))
            } else {
                Failure::Unknown(format!(
                    "{} did not answer: {}; it may or may not have been done",
                    endpoint.url,
                    cause(&error)
                ))
            }
        })?;
        accepted(response).await?.json().await.map_err(|error| {
            Failure::Unknown(format!(
                "the answer of {} was lost: {}; it may or may not have been done",
                endpoint.url,
                cause(&error)
            ))
        })
    }

    /// The nodes with how long each may take to answer before the next is asked.
    fn asked_in_turn(&self) -> impl Iterator<Item = (&Endpoint, Duration)> {
        let last = self.endpoints.len().saturating_sub(1);
        let within = move |at| if at == last { LAST_READ_TIMEOUT } else { READ_TIMEOUT };
        self.endpoints.iter().enumerate().map(move |(at, endpoint)| (endpoint, within(at)))
    }

    fn request(&self, method: Method, endpoint: &Endpoint, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", endpoint.url));
        match &endpoint.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    fn unreachable(&self, silent: &[String]) -> Failure {
        let advice = if self.chosen {
            "is the URL right and the node running?"
        } else {
            "start a local cluster with `purlin up`, or name a node with --node URL"
        };
        Failure::Unreachable(format!("cannot reach a node: {}; {advice}", silent.join(", ")))
    }
}

fn http() -> Result<reqwest::Client, Failure> {
    reqwest::Client::builder()
        // A proxy between an operator and a loopback node is never meant.
        .no_proxy()
        .connect_timeout(READ_TIMEOUT)
        .tcp_nodelay(true)
        .build()
        .map_err(|error| Failure::NotDone(format!("cannot make an HTTP client: {error}")))
}

/// Turns a problem document into the failure it stands for.
async fn accepted(response: Response) -> Result<Response, Failure> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let url = response.url().clone();
    let problem: Problem = response.json().await.unwrap_or_default();
    let mut text =
        problem.detail.or(problem.title).unwrap_or_else(|| format!("{url} answered {status}"));
    if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
        text.push_str("; give the token with --token-file or PURLIN_TOKEN_FILE");
    }
    if let Some(code) = problem.code {
        text = format!("{text} ({code})");
    }
    Err(if problem.outcome.as_deref() == Some("unknown") {
        Failure::Unknown(text)
    } else {
        Failure::NotDone(text)
    })
}

/// RFC 9457, the part people need.
#[derive(Debug, Default, Deserialize)]
struct Problem {
    title: Option<String>,
    detail: Option<String>,
    code: Option<String>,
    outcome: Option<String>,
}

/// The innermost reason: what the operating system said, without the layers around it.
fn cause(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

fn read_token(path: &Path) -> Result<String, Failure> {
    let text = fs::read_to_string(path).map_err(|error| {
        Failure::NotDone(format!("cannot read token file {}: {error}", path.display()))
    })?;
    let token = text.lines().next().unwrap_or_default().trim();
    if token.is_empty() {
        return Err(Failure::NotDone(format!(
            "token file {} has an empty first line",
            path.display()
        )));
    }
    Ok(token.to_owned())
}

/// `host:port` and `http://host:port/` alike.
fn url(text: &str) -> Result<String, Failure> {
    let bad = |why: &str| {
        Failure::Usage(format!(
            "--node {text:?}: {why}; expected a URL such as http://127.0.0.1:4900, or a node of the last `purlin up`"
        ))
    };
    let full = match text.split_once("://") {
        Some(("http", _)) => text.to_owned(),
        Some(("https", _)) => {
            return Err(bad("nodes speak plain HTTP; put a proxy in front for TLS"));
        }
        Some((scheme, _)) => return Err(bad(&format!("scheme {scheme} is not http"))),
        None if text.contains(':') => format!("http://{text}"),
        None => return Err(bad("no such node is known here")),
    };
    let parsed = reqwest::Url::parse(&full).map_err(|error| bad(&error.to_string()))?;
    if parsed.path() != "/" || parsed.query().is_some() {
        return Err(bad("only scheme, host and port belong in it"));
    }
    Ok(full.trim_end_matches('/').to_owned())
}

fn normal(url: &str) -> String {
    url.trim_end_matches('/').replace("//localhost:", "//127.0.0.1:")
}

/// `text` as one segment of a path.
pub(crate) fn segment(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    // A lone dot segment would be taken out by the URL parser, even encoded.
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_keeps_slashes_and_stars_inside() {
        assert_eq!(segment("a/*/c d"), "a%2F%2A%2Fc%20d");
        assert_eq!(segment("grün"), "gr%C3%BCn");
    }

    #[test]
    fn a_node_may_be_given_with_or_without_scheme() {
        assert_eq!(url("http://10.0.0.1:4900/").unwrap(), "http://10.0.0.1:4900");
        assert_eq!(url("localhost:4900").unwrap(), "http://localhost:4900");
        for bad in ["n9", "ftp://x:1", "https://x:1", "http://x:1/v1", "http://"] {
            assert!(matches!(url(bad), Err(Failure::Usage(_))), "{bad}");
        }
    }

    #[test]
    fn localhost_and_its_address_are_one() {
        assert_eq!(normal("http://localhost:4900"), normal("http://127.0.0.1:4900/"));
    }
}
