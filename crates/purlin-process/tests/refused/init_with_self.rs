use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open(&self) -> Self {
        Self
    }
}

fn main() {}
