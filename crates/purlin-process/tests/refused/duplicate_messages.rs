use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[call]
    fn add_item(&mut self) {}

    #[cast]
    fn add__item(&mut self) {}
}

fn main() {}
