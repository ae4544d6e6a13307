//! Starting and ending the HTTP side of a node.

use std::{io, net::SocketAddr, sync::Arc};

use purlin::Node;
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    access::Gate,
    app::App,
    config::HttpConfig,
    cost::CostMeter,
    host::Host,
    listen::{self, Bounds, Ending},
    live::Sampler,
    routes, telemetry,
};

/// Why HTTP cannot be served. Nothing was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address is reachable from other machines and nobody would have to show a token.
    /// Configure one, or bind loopback.
    #[error(
        "http.bind {bind} is reachable beyond this machine and no token is set: set http.token_file, or bind 127.0.0.1"
    )]
    OpenBeyondLoopback {
        /// The address asked for.
        bind: SocketAddr,
    },
    /// The address cannot be bound; most often another program has the port.
    #[error("cannot listen on http.bind {bind}: {source}; choose another with http.bind")]
    Bind {
        /// The address asked for.
        bind: SocketAddr,
        /// What the operating system said.
        source: io::Error,
    },
}

/// An address that is taken but not served yet.
///
/// A node tells its peers where its HTTP is, so the port is settled before the node starts.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    local_addr: SocketAddr,
    config: HttpConfig,
}

/// Takes the address of `config` without serving it yet. Clients that connect now wait.
///
/// # Errors
/// [`ServeError`] when the address is taken, or open to other machines without a token.
pub async fn bind(config: HttpConfig) -> Result<Bound, ServeError> {
    let bind = config.bind;
    if config.token.is_none() && !bind.ip().to_canonical().is_loopback() {
        return Err(ServeError::OpenBeyondLoopback { bind });
    }
    let listener =
        TcpListener::bind(bind).await.map_err(|source| ServeError::Bind { bind, source })?;
    let local_addr = listener.local_addr().map_err(|source| ServeError::Bind { bind, source })?;
    Ok(Bound { listener, local_addr, config })
}

impl Bound {
    /// The address, with the port the system chose if port 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Serves `node` here until [`Server::shutdown`]. The node lives on after that.
    #[must_use]
    pub fn serve(self, node: Node) -> Server {
        let recorder = telemetry::recorder();
        if let Err(error) = recorder {
            tracing::warn!(%error, "/metrics has nothing to show");
        }
        let ending = Ending::default();
        let closing = ending.closing.clone();
        let tasks = TaskTracker::new();
        let host = Host::new(node);
        host.answer_questions();
        let bounds = Bounds {
            connections_max: self.config.connections_max,
            head_within: self.config.head_within,
            head_bytes_max: HEAD_BYTES_MAX,
        };
        let shutdown_within = self.config.shutdown_within;
        let mut own_names = self.config.own_names.clone();
        own_names.extend(host.http_addr());
        let node_limit = host.pubsub().limits().message_bytes_max;
        let message_limit = self.config.message_bytes_max.unwrap_or(node_limit).min(node_limit);
        let app = Arc::new(App {
            message_bytes_max: message_limit.get(),
            gate: Gate::new(self.config.token.clone(), self.local_addr, &own_names),
            host,
            sampler: Sampler::default(),
            cost: CostMeter::default(),
            clock: purlin_core::SystemClock::new(),
            closing: closing.clone(),
            recorder,
            streams: Arc::new(Semaphore::new(self.config.streams_max)),
            config: self.config,
        });
        if let Ok(recorder) = recorder {
            tasks.spawn(keep_metrics_small(recorder, closing.clone()));
        }
        tasks.spawn(note_members(Arc::clone(&app)));
        let router = routes::router(&app);
        tasks.spawn(listen::run(self.listener, router, bounds, ending.clone(), tasks.clone()));
        tracing::info!(addr = %self.local_addr, "serving HTTP");
        Server { local_addr: self.local_addr, ending, tasks, shutdown_within }
    }
}

async fn note_members(app: Arc<App>) {
    tokio::select! {
        biased;
        () = app.closing.cancelled() => {}
        () = app.host.note_members() => {}
    }
}

/// The largest request head; a longer one is answered 431 by hyper.
const HEAD_BYTES_MAX: usize = 64 * 1024;

async fn keep_metrics_small(
    recorder: &'static metrics_exporter_prometheus::PrometheusHandle,
    closing: CancellationToken,
) {
    loop {
        tokio::select! {
            biased;
            () = closing.cancelled() => return,
            () = tokio::time::sleep(telemetry::UPKEEP) => recorder.run_upkeep(),
        }
    }
}

/// Serves `node` over HTTP as `config` says. See [`bind`] for settling the port first.
///
/// # Errors
/// As [`bind`].
pub async fn serve(node: Node, config: HttpConfig) -> Result<Server, ServeError> {
    Ok(bind(config).await?.serve(node))
}

/// The running HTTP side of a node.
///
/// Dropping it stops serving too, without waiting for open requests.
#[derive(Debug)]
pub struct Server {
    local_addr: SocketAddr,
    ending: Ending,
    tasks: TaskTracker,
    shutdown_within: std::time::Duration,
}

impl Server {
    /// Where it listens.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops accepting, ends every event stream with an `end` event, lets open requests finish
    /// for at most [`HttpConfig::shutdown_within`], and returns. `false` if some were cut off.
    ///
    /// # Cancel safety
    /// Dropping the future still stops accepting and ends the streams; it only does not wait.
    pub async fn shutdown(self) -> bool {
        self.ending.closing.cancel();
        self.tasks.close();
        let ended_in_time =
            tokio::time::timeout(self.shutdown_within, self.tasks.wait()).await.is_ok();
        self.ending.cut.cancel();
        self.tasks.wait().await;
        ended_in_time
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ending.closing.cancel();
        self.tasks.close();
    }
}
