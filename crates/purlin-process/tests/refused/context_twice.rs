use purlin_process::{Context, server};

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[call]
    fn put(&mut self, _a: &mut Context<Self>, _b: &mut Context<Self>) {}
}

fn main() {}
