use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[call]
    fn put(&mut self, (a, b): (u32, u32)) -> u32 {
        a + b
    }
}

fn main() {}
