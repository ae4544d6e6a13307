//! ractor_cluster, remote casts: two processes, one sender, one counting actor.
//!
//! Configuration: plain TCP without TLS (its default and its fastest; ours has TLS on), no span
//! propagation, the counter found through a process group as its documentation shows. Its queues
//! are unbounded, so the sender never waits; the round ends when the counter has counted the last
//! message.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};
use ractor_cluster::{NodeServer, NodeServerMessage, RactorClusterMessage, client_connect};

use crate::failure::Failure;
use crate::puppet::{Arguments, Puppet, runtime};
use crate::rig::Rig;
use crate::workshop::{Workshop, free_port};

const COOKIE: &str = "purlin-bench";
const GROUP: &str = "counters";
const PAYLOAD: [u8; 16] = [7; 16];

/// A counter in one process and a sender in another.
pub(crate) fn start(workshop: &Workshop) -> Result<Rig, Failure> {
    let port = free_port()?.to_string();
    let counter = workshop.role("ractor-cluster-counter", &[&port])?;
    let caster = workshop.role("ractor-cluster-caster", &[&port])?;
    Ok(Rig::alone(caster).passive(counter))
}

#[derive(RactorClusterMessage)]
enum Message {
    /// One of the messages that are counted.
    Count(Vec<u8>),
    /// Answers how many there were.
    #[rpc]
    Total(RpcReplyPort<u64>),
}

struct Counter;

impl Actor for Counter {
    type Msg = Message;
    type State = u64;
    type Arguments = ();

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        (): (),
    ) -> Result<u64, ActorProcessingErr> {
        ractor::pg::join(GROUP.to_owned(), vec![myself.get_cell()]);
        Ok(0)
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        count: &mut u64,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Count(payload) => *count += u64::from(payload.len() == PAYLOAD.len()),
            Message::Total(reply) => reply.send(*count)?,
        }
        Ok(())
    }
}

async fn node_server(port: u16, name: &str) -> Result<ActorRef<NodeServerMessage>, Failure> {
    let server = NodeServer::new(
        port,
        COOKIE.to_owned(),
        name.to_owned(),
        "127.0.0.1".to_owned(),
        None,
        None,
    )
    .with_listen_addr(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let (server, _task) = Actor::spawn(None, server, ())
        .await
        .map_err(Failure::role("starting a ractor_cluster node"))?;
    Ok(server)
}

/// The receiving node.
pub(crate) fn counter(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let port = port(arguments)?;
    let (_server, _counter) = runtime.block_on(async {
        let server = node_server(port, "counter").await?;
        let (counter, _task) = Actor::spawn(None, Counter, ())
            .await
            .map_err(Failure::role("spawning a ractor actor"))?;
        Ok::<_, Failure>((server, counter))
    })?;
    puppet.ready("");
    while puppet.next_round().is_some() {}
    Ok(())
}

/// The sending node.
pub(crate) fn caster(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let port = port(arguments)?;
    let (_server, counter) = runtime.block_on(async {
        let server = node_server(0, "caster").await?;
        client_connect(&server, ("127.0.0.1", port))
            .await
            .map_err(Failure::role("connecting ractor_cluster"))?;
        Ok::<_, Failure>((server, find_counter().await?))
    })?;
    puppet.ready("");
    while let Some(casts) = puppet.next_round() {
        let counter = counter.clone();
        let round = runtime.spawn(async move {
            let before = total(&counter).await?;
            for _ in 0..casts {
                counter.cast(Message::Count(PAYLOAD.to_vec())).map_err(Failure::role("casting"))?;
            }
            Ok::<_, Failure>(total(&counter).await? - before)
        });
        puppet.done(runtime.block_on(round).map_err(Failure::role("casting"))??);
    }
    Ok(())
}

/// The other node's group member appears some time after the connection.
async fn find_counter() -> Result<ActorRef<Message>, Failure> {
    for _ in 0..1_000 {
        if let Some(cell) = ractor::pg::get_members(&GROUP.to_owned()).into_iter().next() {
            return Ok(cell.into());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Err(Failure::Role("the remote actor did not appear in its group within 10 s".to_owned()))
}

async fn total(counter: &ActorRef<Message>) -> Result<u64, Failure> {
    counter
        .call(Message::Total, None)
        .await
        .map_err(Failure::role("asking for the total"))?
        .success_or(Failure::Role("the counter did not answer".to_owned()))
}

fn port(arguments: &Arguments) -> Result<u16, Failure> {
    arguments.text(0)?.parse().map_err(Failure::role("reading a port"))
}
