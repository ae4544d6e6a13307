//! ractor, local calls.
//!
//! Configuration: `tokio_runtime` with native async functions (no boxed futures), without
//! `message_span_propogation`, so that no tracing span is captured per message. The `cluster`
//! feature is on, because the remote rows of the same program need it; local messages then carry
//! an empty slot for a serialized form and are not serialized.

use ractor::{Actor, ActorProcessingErr, ActorRef, RpcReplyPort};

use crate::failure::Failure;
use crate::puppet::{Arguments, Puppet, runtime};

struct Adder;

enum Message {
    /// Adds, and answers the new sum.
    Add(u64, RpcReplyPort<u64>),
}

impl ractor::Message for Message {}

impl Actor for Adder {
    type Msg = Message;
    type State = u64;
    type Arguments = ();

    async fn pre_start(&self, _: ActorRef<Message>, (): ()) -> Result<u64, ActorProcessingErr> {
        Ok(0)
    }

    async fn handle(
        &self,
        _: ActorRef<Message>,
        message: Message,
        sum: &mut u64,
    ) -> Result<(), ActorProcessingErr> {
        let Message::Add(amount, reply) = message;
        *sum += amount;
        reply.send(*sum)?;
        Ok(())
    }
}

async fn ask(adder: &ActorRef<Message>, amount: u64) -> u64 {
    // `call` without a timeout: the cheapest form it has.
    adder
        .call(|reply| Message::Add(amount, reply), None)
        .await
        .expect("the adder lives as long as this process")
        .expect("the adder answers every call")
}

/// One caller, one call after the other.
pub(crate) fn call(puppet: &mut Puppet, _: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let (adder, _task) = runtime
        .block_on(Actor::spawn(None, Adder, ()))
        .map_err(Failure::role("spawning a ractor actor"))?;
    puppet.ready("");
    while let Some(calls) = puppet.next_round() {
        let adder = adder.clone();
        let round = runtime.spawn(async move {
            let before = ask(&adder, 0).await;
            for _ in 0..calls {
                ask(&adder, 1).await;
            }
            ask(&adder, 0).await - before
        });
        puppet.done(runtime.block_on(round).map_err(Failure::role("calling"))?);
    }
    Ok(())
}
