//! The HTTP API and the web console of a node.
//!
//! Services in other languages and operators see a cluster through this crate: JSON under `/v1`,
//! Server-Sent Events for whatever goes on, Prometheus text at `/metrics`, a description of it all
//! at `/openapi.json`, and one page at `/`. Every node serves all of it, about the cluster as *that*
//! node sees it.
//!
//! Start reading at [`routes`]' table: a route exists by standing in it, with the trust it asks for
//! ([`access`]). [`shapes`] holds every JSON body. Errors are [`problem`] documents that keep "not
//! done" apart from "unknown".
//!
//! - Nothing here decides anything about the cluster; it asks the node's parts and translates.
//! - Nothing runs while nobody asks: sampling (rates, links) starts with the first watcher and
//!   stops with the last; the only standing tasks wait for a connection or an event.

mod access;
mod app;
mod config;
mod console;
mod cost;
mod host;
mod input;
mod lines;
mod links;
mod listen;
mod live;
mod origins;
mod problem;
mod processes;
mod routes;
mod serve;
pub mod shapes;
mod sse;
mod state;
mod telemetry;
mod timeline;

pub use access::{TOKEN_CHARS_MAX, TOKEN_CHARS_MIN, Token, TokenError};
pub use config::HttpConfig;
pub use problem::{PROBLEM_JSON, ProblemDocument};
pub use serve::{Bound, ServeError, Server, bind, serve};
pub use telemetry::{MetricsError, install_metrics};
