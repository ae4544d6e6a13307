use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[call]
    fn add(&mut self) {}
}

fn main() {}
