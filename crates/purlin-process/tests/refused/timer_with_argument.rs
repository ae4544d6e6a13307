use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[timer(every = "1s")]
    fn tick(&mut self, _count: u32) {}
}

fn main() {}
