use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[timer(every = "soon")]
    fn tick(&mut self) {}
}

fn main() {}
