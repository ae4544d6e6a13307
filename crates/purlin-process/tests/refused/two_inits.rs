use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[init]
    fn open_again() -> Self {
        Self
    }
}

fn main() {}
