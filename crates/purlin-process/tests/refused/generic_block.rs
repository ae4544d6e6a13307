use purlin_process::server;

struct Cart<T>(T);

#[server(crate = "::purlin_process")]
impl<T> Cart<T> {
    #[init]
    fn open(inner: T) -> Self {
        Self(inner)
    }
}

fn main() {}
