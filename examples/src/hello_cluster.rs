//! Three nodes in one program find each other, call each other and part.
//!
//! `cargo run -p examples --bin hello_cluster`

use std::{
    error::Error,
    io::{Write as _, stdout},
    time::Duration,
};

use purlin::{
    cluster::{Member, State},
    net::Method,
    prelude::*,
};

/// Both sides mean the same by a method: its name, what is asked and what is answered.
const GREET: Method<String, String> = Method::new("example.greet");

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut out = stdout();

    // Certificates and keys for the nodes of this program; in production they come from files.
    let authority = DevAuthority::new()?;
    let n1 = Node::builder().name("n1").dev(&authority).start().await?;
    let n2 = Node::builder().name("n2").dev(&authority).join([n1.cluster_addr()]).start().await?;
    // One seed is enough: n2 tells n3 about n1.
    let n3 = Node::builder().name("n3").dev(&authority).join([n2.cluster_addr()]).start().await?;

    let within = Duration::from_secs(60);
    for node in [&n1, &n2, &n3] {
        let view = node.cluster().wait_for_members(3, within).await?;
        let names: Vec<_> = view.alive().map(|member| member.name().as_str()).collect();
        writeln!(out, "{} sees {}", node.id().name, names.join(", "))?;
    }

    // A named call: n3 answers, n1 asks.
    n3.rpc().serve(GREET, |call, name: String| async move {
        Ok(format!("hello {name}, says n3 to {}", call.from.name))
    })?;
    writeln!(out, "{}", n1.rpc().call(&n3.id().name, GREET, &"world".to_owned(), within).await?)?;

    // A message to whom it may concern.
    let mut news = n2.pubsub().subscribe("news/**")?;
    if !news.propagated(within).await {
        return Err("not everybody has heard of the subscription".into());
    }
    n1.pubsub().publish("news/today", "three nodes make a cluster")?;
    let delivery = news.recv().await.ok_or("the subscription is open")?;
    let text = String::from_utf8_lossy(delivery.payload());
    writeln!(out, "n2 heard on {}: {text}", delivery.topic())?;

    // Whoever drains has left for the others, not died.
    n3.drain(None).await;
    let mut views = n1.cluster().watch();
    let gone = async {
        let mut view = views.view();
        let is_over = |n3: &Member| matches!(n3.state, State::Left | State::Down);
        while !view.get(&n3.id().name).is_none_or(is_over) {
            view = views.changed().await;
        }
        view
    };
    let view = tokio::time::timeout(within, gone).await?;
    let left = view.get(&n3.id().name).ok_or("n3 is remembered")?;
    writeln!(out, "n3 is {}", left.state)?;
    n2.shutdown().await;
    n1.shutdown().await;
    Ok(())
}
