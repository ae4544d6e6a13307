//! Changes of a replica set as an event stream: in the order in which readers here saw them, each
//! with where it came from.

use std::sync::Arc;

use axum::response::Response;
use purlin_replica::{Change, Origin, ReplicaSet};
use serde::Serialize;
use tokio::sync::broadcast::{Receiver, error::RecvError, error::TryRecvError};

use crate::{
    app::{App, StreamPlace},
    problem::Problem,
    shapes::{End, LagReport, WatchReport},
    sse::{self, Frames, Next, Source},
};

/// Streams changes of `set` under `prefix` from now on, as `report` says them.
pub(super) fn watch<T: Serialize + 'static>(
    app: Arc<App>,
    set: &ReplicaSet,
    prefix: String,
    report: fn(&App, &Change) -> T,
) -> Result<Response, Problem> {
    let place = app.stream_place()?;
    let (changes, closing) = (set.watch(), app.closing.clone());
    let source = Watching { app, prefix, changes, report, is_begun: false, _place: place };
    Ok(sse::respond(source, closing))
}

/// Where a change came from: a word, and which node told it.
pub(super) fn cause(change: &Change) -> (String, Option<String>) {
    let (word, told_by) = match &change.origin {
        Origin::Here => ("here", None),
        Origin::Told(node) => ("told", Some(node.name.to_string())),
        Origin::Expired => ("expired", None),
        Origin::Dropped => ("dropped", None),
    };
    (word.to_owned(), told_by)
}

struct Watching<T> {
    app: Arc<App>,
    prefix: String,
    changes: Receiver<Change>,
    report: fn(&App, &Change) -> T,
    is_begun: bool,
    _place: StreamPlace,
}

impl<T: Serialize> Watching<T> {
    fn write(&self, frames: &mut Frames, change: &Change) {
        if change.key.starts_with(self.prefix.as_bytes()) {
            frames.json("change", None, &(self.report)(&self.app, change));
        }
    }
}

impl<T: Serialize + 'static> Source for Watching<T> {
    async fn fill(&mut self, frames: &mut Frames) -> Next {
        if !self.is_begun {
            self.is_begun = true;
            frames.json("ready", None, &WatchReport { prefix: self.prefix.clone() });
            return Next::More;
        }
        while frames.is_empty() {
            match self.changes.recv().await {
                Ok(change) => self.write(frames, &change),
                Err(RecvError::Lagged(missed)) => frames.json("lag", None, &LagReport { missed }),
                Err(RecvError::Closed) => return Next::Ended(End::finished()),
            }
        }
        // What waits leaves with it, up to a chunk.
        while !frames.is_full() {
            match self.changes.try_recv() {
                Ok(change) => self.write(frames, &change),
                Err(TryRecvError::Lagged(missed)) => {
                    frames.json("lag", None, &LagReport { missed });
                }
                Err(TryRecvError::Empty | TryRecvError::Closed) => break,
            }
        }
        Next::More
    }
}
