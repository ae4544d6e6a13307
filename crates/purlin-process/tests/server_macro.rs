//! `#[server]`: what a user writes, and what the handle does with it.

#![allow(missing_docs, reason = "a test has no readers of its docs")]

use std::time::Duration;

use purlin_process::{
    CallError, Context, ExitReason, Info, Message, ProcessRef, Processes, SpawnError, SpawnOptions,
    server,
};
use tokio::sync::mpsc;

struct Cart {
    owner: String,
    items: Vec<(String, u32)>,
    ticks: u32,
    infos: u32,
}

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    async fn open(owner: String, items: Vec<(String, u32)>) -> Result<Self, String> {
        tokio::task::yield_now().await;
        if owner.is_empty() {
            return Err("a cart needs an owner".to_owned());
        }
        Ok(Self { owner, items, ticks: 0, infos: 0 })
    }

    /// Adds `count` of `sku` and tells how many items there are now.
    #[call]
    async fn add_item(&mut self, sku: String, count: u32) -> u32 {
        tokio::task::yield_now().await;
        self.items.push((sku, count));
        self.total()
    }

    #[call]
    fn owner(&self) -> String {
        self.owner.clone()
    }

    #[call]
    fn remove(&mut self, sku: String) -> Result<u32, String> {
        let at = self.items.iter().position(|(have, _)| *have == sku);
        at.map(|at| self.items.remove(at).1).ok_or_else(|| format!("no {sku}"))
    }

    #[call]
    fn restock(&mut self, items: Vec<(String, u32)>) {
        self.items = items;
    }

    #[cast]
    fn clear(&mut self) {
        self.items.clear();
    }

    #[call]
    fn my_number(&self, ctx: &mut Context<Self>) -> u64 {
        ctx.id().0
    }

    #[call]
    fn ticks(&self) -> (u32, u32) {
        (self.ticks, self.infos)
    }

    #[timer(every = "5ms")]
    fn tick(&mut self, ctx: &mut Context<Self>) {
        self.ticks += 1;
        if self.ticks == 3 {
            ctx.timer_cancel("tick");
        }
    }

    #[info]
    fn other(&mut self, info: Info) {
        assert!(matches!(info, Info::Message(_)), "{info:?}");
        self.infos += 1;
    }

    #[summary]
    fn in_a_word(&self) -> String {
        format!("{} items of {}", self.total(), self.owner)
    }

    fn total(&self) -> u32 {
        self.items.iter().map(|(_, count)| count).sum()
    }
}

/// What cannot be serialised is fine for a server of this node only.
struct Inbox(Vec<mpsc::UnboundedSender<u32>>);

#[server(local, kind = "inbox", handle = "InboxClient", crate = "::purlin_process")]
impl Inbox {
    #[init]
    fn new() -> Self {
        Self(Vec::new())
    }

    #[call]
    pub(crate) fn subscribe(&mut self, to: mpsc::UnboundedSender<u32>) {
        self.0.push(to);
    }

    #[cast]
    pub(crate) fn publish(&mut self, value: u32) {
        self.0.retain(|to| to.send(value).is_ok());
    }

    #[terminate]
    fn close(&mut self, reason: &ExitReason) {
        self.publish(if reason.is_normal() { 0 } else { 1 });
    }
}

#[tokio::test]
async fn methods_become_calls_with_typed_replies() {
    let processes = Processes::for_tests();
    let cart = CartHandle::spawn(&processes, "ada".into(), vec![]).await.unwrap();
    assert_eq!(cart.add_item("beam".into(), 2).await, Ok(2));
    assert_eq!(cart.add_item("nail".into(), 40).await, Ok(42));
    assert_eq!(cart.owner().await.unwrap(), "ada");
    assert_eq!(cart.remove("rope".into()).await.unwrap(), Err("no rope".to_owned()));
    assert_eq!(cart.remove("nail".into()).await.unwrap(), Ok(40));
    cart.clear().await.unwrap();
    assert_eq!(cart.add_item("beam".into(), 1).await, Ok(1));
    assert_eq!(cart.my_number().await, Ok(cart.pid().process.0));
    let process = cart.address().local().unwrap().untyped();
    assert_eq!(process.summary(Duration::from_secs(5)).await.unwrap(), "1 items of ada");
}

#[tokio::test]
async fn an_init_that_fails_says_why() {
    let processes = Processes::for_tests();
    let error = CartHandle::spawn(&processes, String::new(), vec![]).await.unwrap_err();
    assert_eq!(error, SpawnError::Init(ExitReason::failed("a cart needs an owner")));
    assert_eq!(processes.live(), 0);
}

#[tokio::test]
async fn timers_and_infos_reach_their_methods() {
    let processes = Processes::for_tests();
    let options = SpawnOptions::named("cart");
    let cart = CartHandle::spawn_with(&processes, options, "ada".into(), vec![]).await.unwrap();
    let process: ProcessRef<Cart> = processes.whereis("cart").unwrap();
    process.send_info("hello").unwrap();
    while cart.ticks().await.unwrap() != (3, 1) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_handle_keeps_its_own_deadline() {
    let processes = Processes::for_tests();
    let cart = CartHandle::spawn(&processes, "ada".into(), vec![]).await.unwrap();
    let hasty = cart.within(Duration::ZERO);
    assert!(matches!(
        hasty.owner().await,
        Err(CallError::Expired(_) | CallError::NoReply(_)) | Ok(_)
    ));
    assert_eq!(cart.owner().await.unwrap(), "ada");
}

#[tokio::test]
async fn a_local_server_may_pass_what_cannot_travel() {
    let processes = Processes::for_tests();
    let inbox = InboxClient::spawn(&processes).await.unwrap();
    let (to, mut values) = mpsc::unbounded_channel();
    inbox.subscribe(to).await.unwrap();
    inbox.publish(7).await.unwrap();
    assert_eq!(values.recv().await, Some(7));
    inbox.address().stop(ExitReason::Normal);
    assert_eq!(values.recv().await, Some(0));
    assert_eq!(values.recv().await, None);
    assert_eq!(<InboxPublish as Message>::NAME, "inbox.publish");
}

#[test]
fn a_message_counts_the_text_and_bytes_it_owns() {
    let message = CartAddItem { sku: "x".repeat(1_000), count: 1 };
    assert_eq!(message.bytes(), size_of::<CartAddItem>() + 1_000);
    let opened = size_of::<(String, u32)>();
    assert_eq!(CartRestock { items: vec![(String::new(), 1); 3] }.bytes(), 24 + 3 * opened);
    let small = CartRemove { sku: String::new() };
    assert_eq!(small.bytes(), size_of::<CartRemove>());
}
