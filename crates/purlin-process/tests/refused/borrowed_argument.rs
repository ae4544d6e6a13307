use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[call]
    fn put(&mut self, item: &str) {
        drop(item.len());
    }

    #[cast]
    fn put_all(&mut self, items: Vec<Option<&[u8]>>) {
        drop(items);
    }
}

fn main() {}
