use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[info]
    fn heard(&mut self, _info: &purlin_process::Info) {}
}

fn main() {}
