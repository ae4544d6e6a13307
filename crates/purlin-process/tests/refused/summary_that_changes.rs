use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[summary]
    fn tell(&mut self) -> String {
        String::new()
    }
}

fn main() {}
