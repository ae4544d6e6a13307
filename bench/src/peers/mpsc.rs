//! The floor of every local call: a bare tokio task behind a bare tokio channel.
//!
//! Configuration: a bounded channel, because every mailbox of ours is bounded too and an unbounded
//! one would be compared with something it does not promise; its capacity is that of our default
//! mailbox. Caller and callee are spawned tasks of the same multi-threaded runtime (a caller that
//! blocks the main thread instead would pay a thread wake per call).

use tokio::sync::{mpsc, oneshot};

use crate::failure::Failure;
use crate::puppet::{Arguments, Puppet, runtime};

/// As large as the mailbox that ours gets by default.
const CAPACITY: usize = 16_384;

enum Message {
    /// Adds, and answers the new sum.
    Call(u64, oneshot::Sender<u64>),
    /// Adds.
    Cast(u64),
}

/// Adds what it is sent.
fn spawn_adder() -> mpsc::Sender<Message> {
    let (mailbox, mut messages) = mpsc::channel(CAPACITY);
    tokio::spawn(async move {
        let mut sum: u64 = 0;
        while let Some(message) = messages.recv().await {
            match message {
                Message::Call(amount, reply) => {
                    sum += amount;
                    reply.send(sum).expect("every caller waits for its sum");
                }
                Message::Cast(amount) => sum += amount,
            }
        }
    });
    mailbox
}

async fn ask(mailbox: &mpsc::Sender<Message>, amount: u64) -> u64 {
    let (reply, answer) = oneshot::channel();
    mailbox
        .send(Message::Call(amount, reply))
        .await
        .expect("the adder lives as long as its mailbox");
    answer.await.expect("the adder answers every call")
}

/// One caller, one call after the other.
pub(crate) fn call(puppet: &mut Puppet, _: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let mailbox = runtime.block_on(async { spawn_adder() });
    puppet.ready("");
    while let Some(calls) = puppet.next_round() {
        let mailbox = mailbox.clone();
        let round = runtime.spawn(async move {
            let before = ask(&mailbox, 0).await;
            for _ in 0..calls {
                ask(&mailbox, 1).await;
            }
            ask(&mailbox, 0).await - before
        });
        puppet.done(runtime.block_on(round).map_err(Failure::role("calling"))?);
    }
    Ok(())
}

/// One sender; the sum is asked for at the end, so that every message has been handled.
pub(crate) fn cast(puppet: &mut Puppet, _: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let mailbox = runtime.block_on(async { spawn_adder() });
    puppet.ready("");
    while let Some(casts) = puppet.next_round() {
        let mailbox = mailbox.clone();
        let round = runtime.spawn(async move {
            let before = ask(&mailbox, 0).await;
            for _ in 0..casts {
                mailbox
                    .send(Message::Cast(1))
                    .await
                    .expect("the adder lives as long as its mailbox");
            }
            ask(&mailbox, 0).await - before
        });
        puppet.done(runtime.block_on(round).map_err(Failure::role("casting"))?);
    }
    Ok(())
}
