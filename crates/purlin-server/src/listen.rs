//! The listening socket: accepting, bounding and gracefully ending connections.
//!
//! Written over hyper directly because three bounds matter here that a plain accept loop does not
//! give: how many connections there are, how long a client may take over its request head (an
//! idle connection counts as one that has not begun), and how long the end may take.

use std::{
    convert::Infallible, future::Future, net::SocketAddr, pin::pin, sync::Arc, time::Duration,
};

use axum::{Router, body::Body, extract::Request, response::Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::Service as _;

/// Who sent a request; put into every request's extensions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PeerAddr(pub(crate) SocketAddr);

/// The bounds of a listener.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    pub(crate) connections_max: usize,
    pub(crate) head_within: Duration,
    pub(crate) head_bytes_max: usize,
}

/// The two steps of an ending: `closing` lets open requests finish, `cut` drops what is left.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ending {
    pub(crate) closing: CancellationToken,
    pub(crate) cut: CancellationToken,
}

/// Serves connections until told to end; the tasks of open ones are in `open`.
pub(crate) async fn run(
    listener: TcpListener,
    router: Router,
    bounds: Bounds,
    ending: Ending,
    open: TaskTracker,
) {
    let Ending { closing, cut } = ending;
    let room = Arc::new(Semaphore::new(bounds.connections_max));
    loop {
        // At the bound new connections wait in the kernel's backlog: nobody here is evicted.
        let permit = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            permit = Arc::clone(&room).acquire_owned() => permit.expect("the semaphore is never closed"),
        };
        let accepted = tokio::select! {
            biased;
            () = closing.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Mostly EMFILE: the same error comes back at once until something is closed.
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let serving = serve_connection(stream, peer, router.clone(), bounds, closing.clone());
        let cut = cut.clone();
        open.spawn(async move {
            metrics::gauge!("purlin_server_connections").increment(1.0);
            tokio::select! {
                biased;
                () = serving => {}
                () = cut.cancelled() => tracing::debug!(%peer, "an HTTP connection was cut at shutdown"),
            }
            metrics::gauge!("purlin_server_connections").decrement(1.0);
            drop(permit);
        });
    }
}

fn serve_connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    bounds: Bounds,
    closing: CancellationToken,
) -> impl Future<Output = ()> + Send {
    // Events are small and each is wanted now. Failing to set it costs latency, nothing else.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %peer, "cannot set TCP_NODELAY");
    }
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(PeerAddr(peer));
        let mut router = router.clone();
        async move {
            Ok::<Response<Body>, Infallible>(
                router.call(request).await.unwrap_or_else(|never| match never {}),
            )
        }
    });
    async move {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(bounds.head_within)
            .max_buf_size(bounds.head_bytes_max)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = tokio::select! {
            biased;
            ended = connection.as_mut() => ended,
            () = closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, %peer, "an HTTP connection ended early");
        }
    }
}
