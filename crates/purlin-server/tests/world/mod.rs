//! A small cluster in this process, each node with its HTTP side, and a client that reads streams.

use std::{future::Future, sync::Mutex, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use purlin::{DevAuthority, Node};
use purlin_server::{HttpConfig, Server, Token};
use reqwest::StatusCode;
use serde_json::Value;

/// The token of every node here.
pub(crate) const TOKEN: &str = "test-token-0123456789-abcdef";

/// How long anything may take before a test gives up on it: machines under load are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `look` finds something.
pub(crate) async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut look: impl FnMut() -> F,
) -> T {
    let found = async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("never seen: {what}"))
}

/// One server-sent event.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) data: Value,
}

impl Event {
    /// The payload bytes of a `message`.
    pub(crate) fn payload(&self) -> Vec<u8> {
        match (self.data["payload"].as_str(), self.data["payload_base64"].as_str()) {
            (Some(text), None) => text.as_bytes().to_vec(),
            (None, Some(text)) => STANDARD.decode(text).unwrap(),
            both => panic!("exactly one payload: {both:?}"),
        }
    }
}

/// Reads events from a response.
pub(crate) struct SseReader {
    chunks: std::pin::Pin<Box<dyn Stream<Item = reqwest::Result<Bytes>> + Send>>,
    text: Vec<u8>,
    at: usize,
    /// The id of the first event that had one.
    pub(crate) first_id: Option<String>,
}

impl SseReader {
    fn new(response: reqwest::Response) -> Self {
        Self { chunks: Box::pin(response.bytes_stream()), text: Vec::new(), at: 0, first_id: None }
    }

    /// The next event; `None` when the connection has ended.
    pub(crate) async fn next(&mut self) -> Option<Event> {
        tokio::time::timeout(PATIENCE, self.read()).await.expect("an event within a minute")
    }

    async fn read(&mut self) -> Option<Event> {
        loop {
            if let Some(end) = self.text[self.at..].windows(2).position(|pair| pair == b"\n\n") {
                let block = String::from_utf8(self.text[self.at..self.at + end].to_vec()).unwrap();
                self.at += end + 2;
                if self.at > 1 << 20 {
                    self.text.drain(..self.at);
                    self.at = 0;
                }
                if let Some(event) = parse(&block) {
                    if self.first_id.is_none() {
                        self.first_id.clone_from(&event.id);
                    }
                    return Some(event);
                }
                continue;
            }
            self.text.extend_from_slice(&self.chunks.next().await?.ok()?);
        }
    }
}

fn parse(block: &str) -> Option<Event> {
    let field =
        |name: &str| block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    Some(Event {
        name: field("event")?.to_owned(),
        id: field("id").map(str::to_owned),
        data: serde_json::from_str(field("data")?).unwrap(),
    })
}

/// The nodes n1, n2, ..., each in its own zone. Dropping it leaves them to the runtime's end.
pub(crate) struct World {
    nodes: Vec<Node>,
    servers: Mutex<Vec<Option<Server>>>,
    urls: Vec<String>,
    pub(crate) http: reqwest::Client,
}

impl World {
    pub(crate) async fn start(count: usize) -> Self {
        Self::start_with(count, |_| {}).await
    }

    pub(crate) async fn start_with(count: usize, tune: fn(&mut HttpConfig)) -> Self {
        Self::start_in(count, tune, None).await
    }

    /// As [`World::start`], with each node's data in a folder of `dir`.
    pub(crate) async fn start_kept(count: usize, dir: &std::path::Path) -> Self {
        Self::start_in(count, |_| {}, Some(dir)).await
    }

    async fn start_in(
        count: usize,
        tune: fn(&mut HttpConfig),
        dir: Option<&std::path::Path>,
    ) -> Self {
        let authority = DevAuthority::new().unwrap();
        let mut world = Self {
            nodes: Vec::new(),
            servers: Mutex::default(),
            urls: Vec::new(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
        };
        purlin_server::install_metrics().unwrap();
        for at in 1..=count {
            let mut config = HttpConfig::new("127.0.0.1:0".parse().unwrap())
                .with_token(Token::new(TOKEN).unwrap());
            tune(&mut config);
            let bound = purlin_server::bind(config).await.unwrap();
            let addr = bound.local_addr();
            let seeds = world
                .nodes
                .iter()
                .map(|node: &Node| node.cluster().view().get(&node.id().name).unwrap().addr());
            let seeds = seeds.collect::<Vec<_>>();
            let start = async || {
                let builder = match dir {
                    Some(dir) => Node::builder().data_dir(dir.join(format!("n{at}"))),
                    None => Node::builder(),
                };
                builder
                    .name(format!("n{at}"))
                    .cluster_name("test")
                    .zone(format!("zone-n{at}"))
                    .dev(&authority)
                    .join(seeds.clone())
                    .http_addr(addr)
                    .start()
                    .await
                    .ok()
            };
            // An earlier node of this process keeps its data dir until its last task has ended.
            let node = eventually("the node starts", start).await;
            world.servers.get_mut().unwrap().push(Some(bound.serve(node.clone())));
            world.nodes.push(node);
            world.urls.push(format!("http://{addr}"));
        }
        world
    }

    pub(crate) fn node(&self, at: usize) -> &Node {
        &self.nodes[at]
    }

    pub(crate) fn url(&self, at: usize) -> &str {
        &self.urls[at]
    }

    pub(crate) fn urls(&self) -> impl Iterator<Item = &str> {
        self.urls.iter().map(String::as_str)
    }

    /// Waits until every node sees every node alive, and its caches know where keys belong.
    pub(crate) async fn all_alive(&self) {
        for node in &self.nodes {
            node.cluster().wait_for_members(self.nodes.len(), PATIENCE).await.unwrap();
            eventually("the caches know all nodes", async || {
                (node.caches().hosts().len() == self.nodes.len()).then_some(())
            })
            .await;
        }
    }

    pub(crate) async fn try_get(&self, url: &str) -> (StatusCode, Value) {
        let response = self.http.get(url).send().await.unwrap();
        (response.status(), response.json().await.unwrap())
    }

    pub(crate) async fn get(&self, url: &str) -> Value {
        let (status, body) = self.try_get(url).await;
        assert_eq!(status, StatusCode::OK, "{url}: {body}");
        body
    }

    pub(crate) async fn post(&self, at: usize, path: &str, body: &[u8]) -> Value {
        let request = self.http.post(format!("{}{path}", self.urls[at])).body(body.to_vec());
        let response = request.send().await.unwrap();
        let status = response.status();
        let body: Value = response.json().await.unwrap();
        assert_eq!(status, StatusCode::OK, "{path}: {body}");
        body
    }

    /// Subscribes at a node; every node knows of it and what it publishes from now on arrives.
    ///
    /// Returns the `ready` event too.
    pub(crate) async fn subscribe(&self, at: usize, path: &str) -> (SseReader, Event) {
        eventually("everybody knows of the subscription", async || {
            let mut stream = self.open(at, path).await;
            let ready = stream.next().await.unwrap();
            assert_eq!(ready.name, "ready", "{}", ready.data);
            (ready.data["everywhere"] == true).then_some((stream, ready))
        })
        .await
    }

    pub(crate) async fn open(&self, at: usize, path: &str) -> SseReader {
        self.open_after(at, path, None).await
    }

    pub(crate) async fn open_after(
        &self,
        at: usize,
        path: &str,
        last_id: Option<&str>,
    ) -> SseReader {
        self.try_open(at, path, last_id)
            .await
            .unwrap_or_else(|(status, body)| panic!("{path}: {status} {body}"))
    }

    pub(crate) async fn try_open(
        &self,
        at: usize,
        path: &str,
        last_id: Option<&str>,
    ) -> Result<SseReader, (StatusCode, Value)> {
        let mut request = self.http.get(format!("{}{path}", self.urls[at]));
        if let Some(id) = last_id {
            request = request.header("last-event-id", id);
        }
        let response = request.send().await.unwrap();
        if response.status() != StatusCode::OK {
            return Err((response.status(), response.json().await.unwrap()));
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Ok(SseReader::new(response))
    }

    /// Ends the HTTP side of one node; the node goes on.
    pub(crate) async fn shutdown_http(&self, at: usize) {
        let server = self.servers.lock().unwrap()[at].take().expect("it was running");
        server.shutdown().await;
    }

    /// Takes one node out of the cluster in peace, HTTP first.
    pub(crate) async fn stop_node(&self, at: usize) {
        self.shutdown_http(at).await;
        self.nodes[at].shutdown().await;
    }

    pub(crate) async fn stop(self) {
        for at in 0..self.nodes.len() {
            let server = self.servers.lock().unwrap()[at].take();
            if let Some(server) = server {
                server.shutdown().await;
            }
        }
        for node in &self.nodes {
            node.shutdown().await;
        }
    }
}
