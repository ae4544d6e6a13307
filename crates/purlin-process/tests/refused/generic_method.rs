use purlin_process::server;

struct Cart;

#[server(crate = "::purlin_process")]
impl Cart {
    #[init]
    fn open() -> Self {
        Self
    }

    #[call]
    fn put<T: Into<String>>(&mut self, _item: T) {
        
    }
}

fn main() {}
