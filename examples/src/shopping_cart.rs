//! A shopping cart that two cut-off nodes both fill, and that loses nothing when they meet again.
//!
//! `cargo run -p examples --bin shopping_cart`
//!
//! The cart is a replicated map: every node writes to its own copy at once, and the copies become
//! equal by themselves. A database with one leader would have refused one of the two sides.

use std::{
    error::Error,
    io::{Write as _, stdout},
    time::Duration,
};

use purlin::{net::FaultRule, prelude::*};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut out = stdout();
    let authority = DevAuthority::new()?;
    let kitchen = Node::builder().name("kitchen").dev(&authority).start().await?;
    let seed = kitchen.cluster_addr();
    let phone = Node::builder().name("phone").dev(&authority).join([seed]).start().await?;
    kitchen.cluster().wait_for_members(2, Duration::from_secs(60)).await?;

    let (at_home, on_the_way) = (kitchen.crdt().map("cart")?, phone.crdt().map("cart")?);
    at_home.put("milk", "1 l")?;
    at_home.put("flour", "500 g")?;
    until("the phone has both", || on_the_way.entries(None, 10).len() == 2).await?;
    writeln!(out, "the phone sees {}", shown(&on_the_way))?;

    // The train enters a tunnel: nothing passes between the two any more, either way.
    for (one, other) in [(&kitchen, &phone), (&phone, &kitchen)] {
        let cut = FaultRule::cut(other.id().name.clone());
        one.transport().faults().add(cut).ok_or("a transport takes some rules")?;
    }
    at_home.put("eggs", "6")?;
    at_home.remove("milk")?;
    on_the_way.put("apples", "1 kg")?;
    on_the_way.put("milk", "2 l")?;
    writeln!(out, "cut off, the kitchen has {}", shown(&at_home))?;
    writeln!(out, "cut off, the phone has {}", shown(&on_the_way))?;

    // Daylight. The kitchen removed the milk it knew of; the two litres it never saw stay.
    kitchen.transport().faults().clear();
    phone.transport().faults().clear();
    let all = "apples 1 kg, eggs 6, flour 500 g, milk 2 l";
    until("both have everything", || shown(&at_home) == all && shown(&on_the_way) == all).await?;
    writeln!(out, "together again, both have {all}")?;

    phone.shutdown().await;
    kitchen.shutdown().await;
    Ok(())
}

fn shown(cart: &purlin::replica::Map) -> String {
    let line = |(item, written): &(_, purlin::replica::Written)| {
        format!("{} {}", text(item), text(&written.value))
    };
    cart.entries(None, 100).iter().map(line).collect::<Vec<_>>().join(", ")
}

fn text(bytes: &impl AsRef<[u8]>) -> String {
    String::from_utf8_lossy(bytes.as_ref()).into_owned()
}

async fn until(what: &str, is_so: impl Fn() -> bool) -> Result<(), Box<dyn Error>> {
    let look = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let within = Duration::from_secs(60);
    tokio::time::timeout(within, look).await.map_err(|_elapsed| format!("never seen: {what}"))?;
    Ok(())
}
