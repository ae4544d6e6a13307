use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Default for Cart {
    fn default() -> Self {
        Self
    }
}

fn main() {}
