//! kameo, local calls.
//!
//! Configuration: no default features (no tracing span per message), the bounded mailbox that
//! `spawn` gives, plain `ask` without timeouts.

use kameo::Actor;
use kameo::actor::{ActorRef, Spawn as _};
use kameo::message::{Context, Message};

use crate::failure::Failure;
use crate::puppet::{Arguments, Puppet, runtime};

struct Adder(u64);

impl Actor for Adder {
    type Args = Self;
    type Error = kameo::error::Infallible;

    async fn on_start(adder: Self, _: ActorRef<Self>) -> Result<Self, Self::Error> {
        Ok(adder)
    }
}

/// Adds, and answers the new sum.
struct Add(u64);

impl Message<Add> for Adder {
    type Reply = u64;

    async fn handle(&mut self, Add(amount): Add, _: &mut Context<Self, u64>) -> u64 {
        self.0 += amount;
        self.0
    }
}

async fn ask(adder: &ActorRef<Adder>, amount: u64) -> u64 {
    adder.ask(Add(amount)).await.expect("the adder answers every call")
}

/// One caller, one call after the other.
pub(crate) fn call(puppet: &mut Puppet, _: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let adder = runtime.block_on(async { Adder::spawn(Adder(0)) });
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
