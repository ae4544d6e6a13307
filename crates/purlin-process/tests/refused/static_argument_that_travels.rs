use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[call]
    fn put(&mut self, item: &'static str) {
        drop(item.len());
    }
}

fn main() {}
