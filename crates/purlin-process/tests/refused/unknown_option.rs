use purlin_process::server;

struct Cart;

#[server(remote)]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }
}

fn main() {}
