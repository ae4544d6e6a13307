use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[call(fast)]
    fn add(&mut self) {}
}

fn main() {}
