//! What every handler shares, and the guard that stands in front of each of them.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use metrics_exporter_prometheus::PrometheusHandle;
use purlin_core::{Advice, Clock, Outcome, SystemClock};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{Access, Caller, Gate},
    config::HttpConfig,
    console::CONTENT_POLICY,
    cost::CostMeter,
    host::Host,
    listen::PeerAddr,
    live::Sampler,
    problem::Problem,
    shapes::ProcessCost,
    telemetry::MetricsError,
};

/// The one thing handlers are given.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) host: Host,
    pub(crate) config: HttpConfig,
    pub(crate) message_bytes_max: usize,
    pub(crate) gate: Gate,
    pub(crate) sampler: Sampler,
    pub(crate) cost: CostMeter,
    pub(crate) clock: SystemClock,
    pub(crate) closing: CancellationToken,
    pub(crate) recorder: Result<&'static PrometheusHandle, MetricsError>,
    pub(crate) streams: Arc<Semaphore>,
}

/// A place among the open streams; dropping it gives the place back.
#[derive(Debug)]
pub(crate) struct StreamPlace {
    _permit: OwnedSemaphorePermit,
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        metrics::gauge!("purlin_server_streams").decrement(1.0);
    }
}

impl App {
    /// What this process costs now.
    pub(crate) fn process_cost(&self) -> ProcessCost {
        self.cost.read(self.clock.now())
    }

    /// Takes a place for one more event stream, or refuses.
    pub(crate) fn stream_place(&self) -> Result<StreamPlace, Problem> {
        match Arc::clone(&self.streams).try_acquire_owned() {
            Ok(permit) => {
                metrics::gauge!("purlin_server_streams").increment(1.0);
                Ok(StreamPlace { _permit: permit })
            }
            Err(_full) => Err(Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "too_many_streams",
                "This node serves as many streams as it may",
                format!("all {} event streams of this node are taken", self.config.streams_max),
            )
            .ended(Outcome::NotDone, &Advice::RetryElsewhere(None))),
        }
    }
}

/// What the guard knows about the route it stands before.
#[derive(Debug, Clone)]
pub(crate) struct Guarded {
    pub(crate) app: Arc<App>,
    pub(crate) template: &'static str,
    pub(crate) access: Access,
}

/// Checks authority, then measures. Labels are route templates: their number is fixed, however
/// many topics or nodes clients ask for.
pub(crate) async fn guard(
    State(guarded): State<Guarded>,
    request: Request,
    next: Next,
) -> Response {
    let started = guarded.app.clock.now();
    let method = method_word(request.method());
    let peer = request
        .extensions()
        .get::<PeerAddr>()
        .expect("the listener sets the peer of every request")
        .0;
    let caller = Caller { peer, headers: request.headers() };
    let response = match guarded.app.gate.check(guarded.access, &caller) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let elapsed = guarded.app.clock.now().saturating_since(started);
    let route = guarded.template;
    metrics::histogram!("purlin_server_request_seconds", "method" => method, "route" => route)
        .record(elapsed.as_secs_f64());
    let status = response.status().as_str().to_owned();
    metrics::counter!("purlin_server_requests_total", "method" => method, "route" => route, "status" => status).increment(1);
    response
}

fn method_word(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        _ => "other",
    }
}

/// Headers that every response carries, errors included.
pub(crate) async fn harden(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}
