//! What happens to the entries of a cache, for those who watch.

use std::sync::OnceLock;

use bytes::Bytes;
use tokio::sync::broadcast::{self, Receiver, Sender};

/// Events kept for watchers that are behind; of more the oldest go and the watcher is told how
/// many it missed.
pub const EVENTS_KEPT: usize = 1_024;

/// What happened on this node.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CacheEvent {
    /// A read found a value.
    Hit(Bytes),
    /// A read found none.
    Miss(Bytes),
    /// An entry was pushed out for lack of room.
    Evicted(Bytes),
    /// An entry's time was over, and it was swept.
    Expired(Bytes),
}

/// The events of one cache; costs one load each while nobody watches.
#[derive(Debug, Default)]
pub(crate) struct Events(OnceLock<Sender<CacheEvent>>);

impl Events {
    pub(crate) fn watch(&self) -> Receiver<CacheEvent> {
        self.0.get_or_init(|| broadcast::channel(EVENTS_KEPT).0).subscribe()
    }

    pub(crate) fn tell(&self, event: impl FnOnce() -> CacheEvent) {
        if let Some(watchers) = self.0.get()
            && watchers.receiver_count() > 0
        {
            // The last one may just have gone: then nobody wants it.
            drop(watchers.send(event()));
        }
    }
}
