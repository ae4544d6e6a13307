use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[cal]
    fn add(&mut self) {}

    #[handle_cast]
    fn clear(&mut self) {}
}

fn main() {}
