//! How long a delivery to a local subscriber takes: one publisher, many subscribers, one process.
//!
//! `cargo run --release -p purlin-pubsub --example fan_out`
#![expect(clippy::print_stdout, reason = "prints its measurements")]

use std::{sync::Arc, time::Duration};

use purlin_core::{Clock as _, Incarnation, NodeId, NodeName, SystemClock};
use purlin_pubsub::{Limits, Overflow, PubSub, SubscribeOptions};

const WITHIN: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    for (subscribers, messages) in
        [(1_usize, 2_000_000_usize), (16, 500_000), (64, 150_000), (1_000, 10_000)]
    {
        let node = NodeId::new(NodeName::parse("n1")?, Incarnation(1));
        let pubsub = PubSub::on_one_node(node, Limits::default(), Arc::new(SystemClock::new()));
        let mut readers = Vec::new();
        for _ in 0..subscribers {
            let mut subscription =
                pubsub.subscribe_with("feed", SubscribeOptions::new(Overflow::push_back()))?;
            readers.push(tokio::spawn(async move {
                let (mut batch, mut received) = (Vec::new(), 0);
                while received < messages {
                    received += subscription.recv_many(&mut batch, 256).await;
                    batch.clear();
                }
            }));
        }
        let clock = SystemClock::new();
        let topic = pubsub.topic("feed")?;
        let payload = bytes::Bytes::from(vec![7; 128]);
        let publisher = tokio::spawn(async move {
            for _ in 0..messages {
                topic.publish_within(payload.clone(), WITHIN).await?;
            }
            Ok::<_, purlin_pubsub::PublishError>(())
        });
        publisher.await??;
        for reader in readers {
            reader.await?;
        }
        let elapsed = clock.now().since_start();
        let deliveries = subscribers * messages;
        let nanos = elapsed.as_nanos() / deliveries as u128;
        let millions = deliveries as f64 / elapsed.as_secs_f64() / 1e6;
        println!("1 -> {subscribers:>5}: {millions:>6.2} M deliveries/s, {nanos} ns each");
    }
    Ok(())
}
