//! A chat room without a server: every participant is a node, every line a message.
//!
//! ```text
//! cargo run -p examples --bin chat -- ann 127.0.0.1:7501
//! cargo run -p examples --bin chat -- bob 127.0.0.1:7502 127.0.0.1:7501
//! ```
//! Type a line to say it, Ctrl-D to go. Who joins and who goes is told by the cluster.

use std::{
    env,
    error::Error,
    io::{Write as _, stdout},
    time::Duration,
};

use purlin::{
    cluster::{Event, Events},
    prelude::*,
    pubsub::Subscription,
};
use tokio::io::{AsyncBufReadExt as _, BufReader};

const ROOM: &str = "chat/room";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1);
    let usage = "usage: chat NAME ADDRESS [ADDRESS-OF-ANOTHER ...]";
    let (name, address) = (args.next().ok_or(usage)?, args.next().ok_or(usage)?);

    // Participants on one machine share certificates through a directory.
    let keys =
        env::var_os("CHAT_KEYS").map_or_else(|| env::temp_dir().join("purlin-chat"), Into::into);
    let node = Node::builder()
        .name(name)
        .dev(&DevAuthority::in_dir(keys)?)
        .bind(&address)
        .join(args)
        .start()
        .await?;

    let mut room = node.pubsub().subscribe(ROOM)?;
    // From the beginning: others may have been seen while this node started.
    let mut events = node.cluster().events_after(0);
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    say(&format!("you are {}, listening on {}", node.id().name, node.cluster_addr()))?;
    loop {
        tokio::select! {
            line = lines.next_line() => match line? {
                // Not to oneself: one has just typed it.
                Some(line) => drop(node.pubsub().publish_from(&room, ROOM, line)?),
                None => break,
            },
            heard = hear(&mut room) => match heard {
                Some(line) => say(&line)?,
                None => break,
            },
            happened = watch(&mut events, &node) => if let Some(line) = happened {
                say(&line)?;
            },
        }
    }
    node.drain(Some(Duration::from_secs(5))).await;
    Ok(())
}

async fn hear(room: &mut Subscription) -> Option<String> {
    let delivery = room.recv().await?;
    let text = String::from_utf8_lossy(delivery.payload());
    Some(format!("{}: {text}", delivery.publisher().name))
}

async fn watch(events: &mut Events, me: &Node) -> Option<String> {
    match events.next().await.ok()?.what {
        Event::Joined { node, .. } if node == *me.id() => None,
        Event::Joined { node, .. } => Some(format!("* {} is here", node.name)),
        Event::Left { node, .. } => Some(format!("* {} has gone", node.name)),
        Event::Down { node, .. } => Some(format!("* {} is lost", node.name)),
        _ => None,
    }
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{line}")?;
    // Somebody reads along, perhaps through a pipe.
    out.flush()
}
