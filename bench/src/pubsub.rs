//! One publisher, many subscribers on other nodes.

use std::time::Duration;

use bytes::Bytes;
use purlin::Node;
use purlin_pubsub::{Delivery, Overflow, SubscribeOptions, Subscription};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

use crate::case::{Bar, Case, Contender, Contest, RowSpec, Unit};
use crate::failure::Failure;
use crate::machine::{ERL, ERLC, NATS_SERVER};
use crate::nodes;
use crate::peers::erlang::{self, Broadcast};
use crate::peers::nats;
use crate::puppet::{Arguments, Puppet, Role, perform, runtime};
use crate::rig::Rig;
use crate::workshop::Workshop;

/// What this program can be re-executed as for the pubsub rows.
pub(crate) const ROLES: &[(&str, Role)] =
    &[("node-publisher", publisher), ("node-subscriber", subscriber)];

/// Bytes that a published message carries.
const PAYLOAD: usize = 128;

/// The pubsub rows.
pub(crate) fn cases() -> Vec<Case> {
    vec![
        Case::Contest(Contest {
            name: "pubsub-16",
            about: "128 bytes to 8 subscribers on each of two other nodes",
            contenders: &[
                Contender { name: "ours", needs: &[], start: |workshop| ours(workshop, 8, 0) },
                Contender {
                    name: NATS_SHARED,
                    needs: &[NATS_SERVER],
                    start: |workshop| nats(workshop, 1, 8),
                },
                Contender {
                    name: NATS_OWN,
                    needs: &[NATS_SERVER],
                    start: |workshop| nats(workshop, 8, 1),
                },
            ],
            rows: &[RowSpec {
                name: "pubsub-16-nats",
                unit: Unit::PerSecond("deliveries", 16),
                peers: &[NATS_SHARED, NATS_OWN],
                bar: Bar::AtLeast(1.0),
            }],
        }),
        Case::Contest(Contest {
            name: "pubsub-64",
            about: "128 bytes to 32 subscribers on each of two other nodes",
            contenders: &[
                Contender { name: "ours", needs: &[], start: |workshop| ours(workshop, 32, 0) },
                Contender {
                    name: NATS_SHARED,
                    needs: &[NATS_SERVER],
                    start: |workshop| nats(workshop, 1, 32),
                },
                Contender {
                    name: NATS_OWN,
                    needs: &[NATS_SERVER],
                    start: |workshop| nats(workshop, 32, 1),
                },
            ],
            rows: &[RowSpec {
                name: "pubsub-64-nats",
                unit: Unit::PerSecond("deliveries", 64),
                peers: &[NATS_SHARED, NATS_OWN],
                bar: Bar::AtLeast(1.0),
            }],
        }),
        Case::Contest(Contest {
            name: "pubsub-1000",
            about: "128 bytes to 1,000 subscribers on each of three nodes",
            contenders: &[
                Contender {
                    name: "ours",
                    needs: &[],
                    start: |workshop| ours(workshop, 1_000, 1_000),
                },
                Contender {
                    name: "Erlang pg",
                    needs: &[ERL, ERLC],
                    start: |workshop| {
                        erlang::broadcast(workshop, Broadcast::Members, 1_000, PAYLOAD)
                    },
                },
                Contender {
                    name: "Erlang pg, relays",
                    needs: &[ERL, ERLC],
                    start: |workshop| {
                        erlang::broadcast(workshop, Broadcast::Relays, 1_000, PAYLOAD)
                    },
                },
            ],
            rows: &[
                RowSpec {
                    name: "pubsub-1000-pg",
                    unit: Unit::PerSecond("deliveries", 3_000),
                    peers: &["Erlang pg"],
                    bar: Bar::AtLeast(5.0),
                },
                RowSpec {
                    name: "pubsub-1000-relays",
                    unit: Unit::PerSecond("deliveries", 3_000),
                    peers: &["Erlang pg, relays"],
                    bar: Bar::AtLeast(3.0),
                },
            ],
        }),
    ]
}

/// NATS with one connection for all subscriptions of a process. Each still gets its own copy.
const NATS_SHARED: &str = "NATS, shared connections";
/// NATS with a connection for each subscription.
const NATS_OWN: &str = "NATS, own connections";

/// Two subscribing processes with `connections` each of `subscriptions`.
fn nats(workshop: &Workshop, connections: u64, subscriptions: u64) -> Result<Rig, Failure> {
    nats::start(workshop, nats::Audience { processes: 2, connections, subscriptions }, PAYLOAD)
}

/// Three of our nodes: `remote` subscribers on each of two, `local` ones beside the publisher.
fn ours(workshop: &Workshop, remote: u64, local: u64) -> Result<Rig, Failure> {
    let cluster = workshop.new_folder("pubsub")?;
    let (remote_text, local_text) = (remote.to_string(), local.to_string());
    let second = workshop.role("node-subscriber", &[&cluster, "n2", &remote_text])?;
    let third = workshop.role("node-subscriber", &[&cluster, "n3", &remote_text, &second.ready])?;
    let publisher =
        workshop.role("node-publisher", &[&cluster, &local_text, &second.ready, &third.ready])?;
    Ok(Rig::default()
        .receiver(second, remote)
        .receiver(third, remote)
        .driver(publisher, local.max(1)))
}

const TOPIC: &str = "bench/feed";
/// As much as a subscriber takes at once.
const TAKE_MAX: usize = 1_024;

/// A node with subscribers only.
fn subscriber(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let node = runtime.block_on(nodes::start(
        arguments.text(0)?,
        arguments.text(1)?,
        arguments.rest(3),
    ))?;
    let mut audience = Audience::seat(&runtime, &node, arguments.number(2)?)?;
    puppet.ready(&node.cluster_addr().to_string());
    while let Some(messages) = puppet.next_round() {
        audience.expect(messages)?;
        puppet.armed();
        puppet.done(runtime.block_on(audience.heard()));
    }
    Ok(())
}

/// The node that publishes; it may have subscribers too.
fn publisher(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let seeds = arguments.rest(2);
    let node = runtime.block_on(nodes::start(arguments.text(0)?, "n1", seeds))?;
    let mut audience = Audience::seat(&runtime, &node, arguments.number(1)?)?;
    runtime.block_on(wait_for_interest(&node, seeds.len()))?;
    let topic = node.pubsub().topic(TOPIC).map_err(Failure::role("naming the topic"))?;
    puppet.ready("");
    while let Some(messages) = puppet.next_round() {
        audience.expect(messages)?;
        let topic = topic.clone();
        let round = async move {
            let payload = Bytes::from_static(&[b'x'; PAYLOAD]);
            for _ in 0..messages {
                topic.publish_within(payload.clone(), Duration::from_secs(30)).await?;
            }
            Ok::<_, purlin_pubsub::PublishError>(messages)
        };
        let published = perform(&runtime, round)?;
        let heard = runtime.block_on(audience.heard());
        puppet.done(if audience.listeners.is_empty() { published } else { heard });
    }
    Ok(())
}

/// Returns once as many other nodes want the topic.
async fn wait_for_interest(node: &Node, nodes: usize) -> Result<(), Failure> {
    for _ in 0..1_000 {
        let interested =
            node.pubsub().interested(TOPIC).map_err(Failure::role("asking for interest"))?;
        if interested.len() == nodes {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(Failure::Role(format!("{nodes} nodes did not show interest within 10 s")))
}

/// The subscribers of one node, a task each.
struct Audience {
    /// One per subscriber: how many messages to wait for.
    listeners: Vec<mpsc::UnboundedSender<u64>>,
    counts: mpsc::UnboundedReceiver<u64>,
}

impl Audience {
    fn seat(runtime: &Runtime, node: &Node, subscribers: u64) -> Result<Self, Failure> {
        let (tell, counts) = mpsc::unbounded_channel();
        let mut listeners = Vec::new();
        for _ in 0..subscribers {
            // Push-back loses nothing: the publisher waits for the slowest, as the peers' do.
            let options = SubscribeOptions::new(Overflow::push_back());
            let subscription = node
                .pubsub()
                .subscribe_with(TOPIC, options)
                .map_err(Failure::role("subscribing"))?;
            let (listener, rounds) = mpsc::unbounded_channel();
            listeners.push(listener);
            runtime.spawn(listen(subscription, rounds, tell.clone()));
        }
        Ok(Self { listeners, counts })
    }

    /// Tells all subscribers that a round begins.
    fn expect(&self, messages: u64) -> Result<(), Failure> {
        let told = self.listeners.iter().try_for_each(|listener| listener.send(messages));
        told.map_err(Failure::role("telling a subscriber"))
    }

    /// What all of them got, once they have their messages.
    async fn heard(&mut self) -> u64 {
        let mut count = 0;
        for _ in &self.listeners {
            count += self.counts.recv().await.unwrap_or(0);
        }
        count
    }
}

/// One subscriber.
async fn listen(
    mut subscription: Subscription,
    mut rounds: mpsc::UnboundedReceiver<u64>,
    tell: mpsc::UnboundedSender<u64>,
) {
    let mut taken: Vec<Delivery> = Vec::new();
    while let Some(expected) = rounds.recv().await {
        let mut count = 0;
        while count < expected && subscription.recv_many(&mut taken, TAKE_MAX).await > 0 {
            count +=
                taken.iter().filter(|delivery| delivery.payload().len() == PAYLOAD).count() as u64;
            taken.clear();
        }
        if tell.send(count).is_err() {
            return;
        }
    }
}
