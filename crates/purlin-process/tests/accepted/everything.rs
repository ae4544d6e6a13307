//! Every form a block may take, without a warning.
#![deny(warnings)]

use purlin_process::{Context, ExitReason, Info, server};

pub struct Shop {
    open: bool,
}

#[server(crate = "::purlin_process", kind = "shop", handle = "Counter")]
impl Shop {
    #[init]
    async fn open(
        name: String,
        ctx: &mut Context<Self>,
        _stock: u32,
    ) -> Result<Self, std::io::Error> {
        ctx.trap_exit(true);
        std::future::ready(()).await;
        Ok(Self { open: !name.is_empty() })
    }

    /// Documented.
    #[call]
    pub async fn wait(&mut self, ctx: &mut Context<Self>, message: String, r#type: u8) -> Option<u8> {
        std::future::ready(()).await;
        (ctx.restarts() == 0 && !message.is_empty()).then_some(r#type)
    }

    #[call]
    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    #[call]
    fn nothing(&mut self) -> () {}

    #[cfg(any())]
    #[call]
    fn not_compiled(&mut self, missing: Missing) {}

    #[cast]
    pub async fn close(&mut self) {
        self.open = false;
        std::future::ready(()).await;
    }

    #[timer]
    fn now_and_then(&mut self) {}

    #[timer(every = "1h")]
    async fn hourly(&mut self, _ctx: &mut Context<Self>) {
        std::future::ready(()).await;
    }

    #[info]
    async fn heard(&mut self, _ctx: &mut Context<Self>, info: Info) {
        drop(info);
        std::future::ready(()).await;
    }

    #[terminate]
    async fn shut(&mut self, _reason: &ExitReason, _ctx: &mut Context<Self>) {
        std::future::ready(()).await;
    }

    #[summary]
    fn sign(&self) -> String {
        if self.open { "open" } else { "closed" }.to_owned()
    }
}

pub mod inner {
    use purlin_process::server;

    pub struct Empty;

    #[server(local, crate = "::purlin_process")]
    impl Empty {
        #[init]
        pub(super) fn new() -> Self {
            Self
        }

        #[terminate]
        fn end(&mut self) {}
    }
}

fn main() {
    async fn uses(counter: Counter) -> Option<bool> {
        counter.close().await.ok()?;
        counter.nothing().await.ok()?;
        counter.wait("x".to_owned(), 1).await.ok()??;
        counter.is_open().await.ok()
    }
    let _ = uses;
}
