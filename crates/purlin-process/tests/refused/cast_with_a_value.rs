use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[cast]
    fn clear(&mut self) -> u32 {
        0
    }
}

fn main() {}
