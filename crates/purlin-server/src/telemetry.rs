//! The node's metrics in Prometheus text form, and the meters of this crate itself.

use std::{sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Why metrics cannot be collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MetricsError {
    /// The program installed another `metrics` recorder first; `/metrics` then answers 501 and
    /// the program's own exporter has the figures.
    #[error("another metrics recorder is already installed in this process")]
    AnotherRecorder,
}

/// Histogram bounds in seconds: from an in-memory answer to a drain.
const SECONDS: [f64; 15] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    30.0,
];

/// How often histogram samples are folded into their buckets; until then each takes 8 bytes.
pub(crate) const UPKEEP: Duration = Duration::from_secs(10);

static RECORDER: OnceLock<Result<PrometheusHandle, MetricsError>> = OnceLock::new();

/// Makes this process collect metrics for `/metrics`. Call it before starting a node: figures
/// recorded earlier are lost. [`crate::serve`] calls it too; calling it again changes nothing.
///
/// One recorder serves the whole process, so several nodes in one program share their counters.
///
/// # Errors
/// [`MetricsError::AnotherRecorder`] when the program already has one; nothing is changed.
pub fn install_metrics() -> Result<(), MetricsError> {
    recorder().map(|_| ())
}

pub(crate) fn recorder() -> Result<&'static PrometheusHandle, MetricsError> {
    RECORDER.get_or_init(install).as_ref().map_err(|&error| error)
}

fn install() -> Result<PrometheusHandle, MetricsError> {
    let recorder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .expect("the list of bounds is not empty")
        .build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|_occupied| MetricsError::AnotherRecorder)?;
    describe();
    Ok(handle)
}

fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!(
        "purlin_server_requests_total",
        "HTTP requests answered, by method, route and status"
    );
    describe_histogram!(
        "purlin_server_request_seconds",
        Unit::Seconds,
        "Time to the head of the response, by method and route"
    );
    describe_counter!(
        "purlin_server_requests_refused_total",
        "Requests refused for lack of authority, by code"
    );
    describe_gauge!("purlin_server_connections", "Open HTTP connections");
    describe_gauge!("purlin_server_streams", "Open event streams");
    describe_gauge!(
        "purlin_server_process_resident_bytes",
        Unit::Bytes,
        "Resident memory of this process"
    );
    describe_gauge!(
        "purlin_server_process_cpu_seconds",
        Unit::Seconds,
        "Processor time this process has used"
    );
    describe_gauge!("purlin_server_process_threads", "Threads of this process");
    describe_gauge!("purlin_server_members", "Members in this node's view, by state");
    describe_gauge!("purlin_server_epoch", "How often this node's view has changed");
    describe_gauge!(
        "purlin_server_uptime_seconds",
        Unit::Seconds,
        "Time since this process started"
    );
}
