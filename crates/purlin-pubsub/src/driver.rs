//! The task behind a node's pubsub: tells peers what is wanted, measures rates, ends stalls.
//!
//! It decides nothing about messages; they pass from connection to subscriber without it.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use crate::{hub::Hub, metrics};

/// How often rates are measured, unanswered announcements repeated and stalls ended. Rates are
/// shown per second, so finer is of no use.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// Announces changes of interest as they come. Ends with the hub.
pub(crate) async fn announce(hub: Weak<Hub>) {
    let Some(due) = hub.upgrade().map(|hub| Arc::clone(&hub.announce)) else { return };
    loop {
        due.notified().await;
        let Some(hub) = hub.upgrade().filter(|hub| !hub.is_shut_down()) else { return };
        hub.flush_interest();
    }
}

/// Looks after what depends on time. Ends with the hub.
pub(crate) async fn keep(hub: Weak<Hub>) {
    let mut quiet = false;
    let mut seen = 0;
    let Some(mut sampled_at) = hub.upgrade().map(|hub| hub.clock().now()) else { return };
    loop {
        tokio::time::sleep(TICK).await;
        let Some(hub) = hub.upgrade().filter(|hub| !hub.is_shut_down()) else { return };
        hub.flush_interest();
        hub.end_stalled();
        let total = hub.activity();
        let now = hub.clock().now();
        if !quiet || total != seen {
            quiet = !hub.sample_rates(now - sampled_at);
            seen = total;
        }
        metrics::report(&hub.stats());
        sampled_at = now;
    }
}
