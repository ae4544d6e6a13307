//! Counts as metrics. Reported from the totals once a second: a counter of the metrics facade per
//! message would cost more than the message.

use crate::stats::Stats;

pub(crate) fn report(stats: &Stats) {
    let totals = [
        ("purlin_pubsub_published_total", stats.published),
        ("purlin_pubsub_received_total", stats.received),
        ("purlin_pubsub_delivered_total", stats.delivered),
        ("purlin_pubsub_lost_total", stats.lost),
        ("purlin_pubsub_unwanted_total", stats.unwanted),
        ("purlin_pubsub_malformed_total", stats.malformed),
        ("purlin_pubsub_stalled_total", stats.stalled),
        ("purlin_pubsub_clock_ahead_total", stats.clock_ahead),
    ];
    for (name, value) in totals {
        metrics::counter!(name).absolute(value);
    }
    metrics::gauge!("purlin_pubsub_subscriptions").set(lossy(stats.subscriptions));
    metrics::gauge!("purlin_pubsub_topics_tracked").set(lossy(stats.topics_tracked));
    metrics::gauge!("purlin_pubsub_interest_entries").set(lossy(stats.interest_entries));
    for peer in &stats.peers {
        let node = || peer.node.name.as_str().to_owned();
        metrics::counter!("purlin_pubsub_sent_total", "peer" => node())
            .absolute(peer.messages_sent);
        metrics::counter!("purlin_pubsub_sent_bytes_total", "peer" => node())
            .absolute(peer.bytes_sent);
        metrics::counter!("purlin_pubsub_full_total", "peer" => node()).absolute(peer.full);
        metrics::counter!("purlin_pubsub_unreachable_total", "peer" => node())
            .absolute(peer.unreachable);
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floats; 2^53 is enough for display")]
fn lossy(value: usize) -> f64 {
    value as f64
}
