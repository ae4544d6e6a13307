//! A feature goes to staff, then to a quarter of the users, then is killed: on every node at once.
//!
//! `cargo run -p examples --bin feature_flags`

use std::{
    collections::BTreeSet,
    error::Error,
    io::{Write as _, stdout},
    time::Duration,
};

use purlin::{
    prelude::*,
    replica::{
        flag::{Asker, Flag, Rollout, Rule},
        flags::Reason,
    },
};

const CART: &str = "shop/new-cart";

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut out = stdout();
    let authority = DevAuthority::new()?;
    let n1 = Node::builder().name("n1").dev(&authority).start().await?;
    let n2 = Node::builder().name("n2").dev(&authority).join([n1.cluster_addr()]).start().await?;
    n1.cluster().wait_for_members(2, Duration::from_secs(60)).await?;

    // Rules are read from the top; the first that matches decides.
    let staff =
        Rule { groups: BTreeSet::from(["staff".to_owned()]), then: Rollout::On, ..Rule::default() };
    let mut flag = Flag { rules: vec![staff], ..Flag::default() };
    n1.flags().define(CART, flag.clone(), &because("ada", "staff first"))?;
    until("n2 knows", || is_on(&n2, &member("staff"))).await?;
    writeln!(out, "on n2, staff: on; customers: {}", word(is_on(&n2, &user(7))))?;

    // A share is sticky: the same users on every node, and nobody loses it while it grows.
    flag.otherwise = Rollout::BasisPoints(2_500);
    n2.flags().define(CART, flag, &because("ada", "a quarter"))?;
    until("n1 knows", || quarter(&n1) > 0).await?;
    let same = (0..1_000).all(|n| is_on(&n1, &user(n)) == is_on(&n2, &user(n)));
    writeln!(out, "{} of 1000 customers have it, on both nodes the same: {same}", quarter(&n1))?;

    // The kill switch stands above every rule.
    n1.flags().kill(CART, true, &because("bob", "it loses carts"))?;
    until("n2 knows", || !is_on(&n2, &member("staff"))).await?;
    writeln!(out, "killed: staff {}, on n2 too", word(is_on(&n2, &member("staff"))))?;

    until("n2 has the history", || n2.flags().audit(CART).len() == 3).await?;
    for change in n2.flags().audit(CART) {
        writeln!(out, "{} on {}: {}", change.who, change.node, change.why)?;
    }
    n2.shutdown().await;
    n1.shutdown().await;
    Ok(())
}

fn because(who: &str, why: &str) -> Reason {
    Reason { who: who.to_owned(), why: why.to_owned() }
}

fn user(number: u32) -> Asker {
    Asker { actor: Some(format!("user-{number}")), ..Asker::default() }
}

fn member(group: &str) -> Asker {
    Asker { groups: BTreeSet::from([group.to_owned()]), ..Asker::default() }
}

fn is_on(node: &Node, asker: &Asker) -> bool {
    node.flags().evaluate(CART, asker).on
}

fn quarter(node: &Node) -> usize {
    (0..1_000).filter(|&n| is_on(node, &user(n))).count()
}

fn word(is_on: bool) -> &'static str {
    if is_on { "on" } else { "off" }
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
