//! `purlin node`: one node in the foreground.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use purlin::{Config, Node, Stop};
use purlin_server::{HttpConfig, Token};

use crate::{
    args::NodeArgs,
    config,
    exit::{Done, Failure},
    files, logging,
    output::Output,
};

pub(crate) fn run(args: &NodeArgs, output: &mut Output) -> Done {
    let config = config::load_with(&args.config, &args.log)?;
    config.check().map_err(Failure::not_done)?;
    logging::start(&config.log)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.node.worker_threads)
        .thread_name("purlin")
        .enable_all()
        .build()
        .map_err(|error| {
            Failure::NotDone(format!(
                "cannot start {} threads: {error}",
                config.node.worker_threads
            ))
        })?;
    let done = runtime.block_on(serve(&config, args));
    // Whatever still runs after the drain is not worth waiting for.
    runtime.shutdown_background();
    output.flush()?;
    done
}

async fn serve(config: &Config, args: &NodeArgs) -> Done {
    if let Err(error) = purlin_server::install_metrics() {
        tracing::warn!(%error, "/metrics will have nothing to show");
    }
    // The port first: a node that cannot serve must not appear in the cluster for a moment.
    let bound = purlin_server::bind(http(config)?).await.map_err(Failure::not_done)?;
    let node = Node::builder()
        .config(config)
        .http_addr(bound.local_addr())
        .start()
        .await
        .map_err(Failure::not_done)?;
    let pid = args.config.data.as_deref().map(PidFile::write).transpose()?;
    let server = bound.serve(node.clone());
    tracing::info!(node = %node.id(), cluster = %config.cluster.name, addr = %node.cluster_addr(), http = %server.local_addr(), "node is up");
    if args.stop_with_stdin {
        drain_at_end_of_input(node.clone());
    }
    let stop = node
        .until_signal()
        .await
        .map_err(|error| Failure::NotDone(format!("cannot listen for signals: {error}")))?;
    server.shutdown().await;
    drop(pid);
    match stop {
        Stop::Drained => {
            tracing::info!("node has left");
            Ok(())
        }
        Stop::Superseded => {
            Err(Failure::NotDone("a later process has taken this node's name".to_owned()))
        }
        Stop::AtOnce => {
            Err(Failure::NotDone("stopped at once; the node did not finish draining".to_owned()))
        }
        other => Err(Failure::NotDone(format!("stopped: {other:?}"))),
    }
}

fn http(config: &Config) -> Result<HttpConfig, Failure> {
    let http = HttpConfig::new(config.http.bind);
    let Some(path) = &config.http.token_file else { return Ok(http) };
    let refused = |error: &dyn std::fmt::Display| {
        Failure::NotDone(format!("http.token_file {}: {error}", path.display()))
    };
    let text = fs::read_to_string(path).map_err(|error| refused(&error))?;
    let token =
        Token::new(text.lines().next().unwrap_or_default()).map_err(|error| refused(&error))?;
    Ok(http.with_token(token))
}

/// `purlin up` holds the other end of our standard input; when it is gone, nobody would ever stop
/// this node.
fn drain_at_end_of_input(node: Node) {
    let (ended, end) = tokio::sync::oneshot::channel();
    // A thread of its own: reading blocks, and tokio's would keep the runtime from stopping.
    std::thread::spawn(move || {
        // Whatever arrives means nothing, and an error is an end too.
        drop(io::copy(&mut io::stdin().lock(), &mut io::sink()));
        ended.send(()).ok();
    });
    tokio::spawn(async move {
        if end.await.is_ok() {
            tracing::info!("whoever started this node is gone; draining");
            node.drain(None).await;
        }
    });
}

/// `DIR/pid`, there while the node runs.
#[derive(Debug)]
struct PidFile(PathBuf);

impl PidFile {
    fn write(dir: &Path) -> Result<Self, Failure> {
        let path = dir.join("pid");
        files::write(&path, format!("{}\n", std::process::id()).as_bytes(), files::Access::Public)
            .map_err(|error| {
                Failure::NotDone(format!("cannot write {}: {error}", path.display()))
            })?;
        Ok(Self(path))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // A pid left behind names a process that is gone; readers check that anyway.
        drop(fs::remove_file(&self.0));
    }
}
