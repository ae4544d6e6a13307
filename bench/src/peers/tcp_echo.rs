//! The floor of every remote call: 16 bytes there and back over a bare tokio TCP connection.
//!
//! Configuration: two processes on loopback, `TCP_NODELAY` on both ends, no TLS, no framing, both
//! ends in spawned tasks of the runtime that every Rust contender uses.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::failure::Failure;
use crate::puppet::{Arguments, Puppet, runtime};
use crate::rig::Rig;
use crate::workshop::Workshop;

/// As large as what a remote call carries in the other contenders.
const PAYLOAD: [u8; 16] = [7; 16];

/// An echo server and one client that waits for each answer.
pub(crate) fn start(workshop: &Workshop) -> Result<Rig, Failure> {
    let server = workshop.role("echo-server", &[])?;
    let client = workshop.role("echo-client", &[&server.ready])?;
    Ok(Rig::alone(client).passive(server))
}

/// Echoes one connection, 16 bytes at a time.
pub(crate) fn server(puppet: &mut Puppet, _: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let listener =
        runtime.block_on(TcpListener::bind("127.0.0.1:0")).map_err(Failure::os("listening"))?;
    puppet.ready(&listener.local_addr().map_err(Failure::os("reading the port"))?.to_string());
    runtime.spawn(async move {
        let (mut stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let mut buffer = PAYLOAD;
        loop {
            stream.read_exact(&mut buffer).await?;
            stream.write_all(&buffer).await?;
        }
        #[expect(unreachable_code, reason = "gives the block its error type")]
        Ok::<(), std::io::Error>(())
    });
    while puppet.next_round().is_some() {}
    Ok(())
}

/// Sends and waits.
pub(crate) fn client(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let runtime = runtime()?;
    let address = arguments.address(0)?;
    let mut stream =
        runtime.block_on(TcpStream::connect(address)).map_err(Failure::os("connecting"))?;
    stream.set_nodelay(true).map_err(Failure::os("setting TCP_NODELAY"))?;
    puppet.ready("");
    while let Some(trips) = puppet.next_round() {
        let round = runtime.spawn(async move {
            let mut buffer = PAYLOAD;
            let mut done: u64 = 0;
            for _ in 0..trips {
                stream.write_all(&PAYLOAD).await?;
                stream.read_exact(&mut buffer).await?;
                done += u64::from(buffer == PAYLOAD);
            }
            Ok::<_, std::io::Error>((stream, done))
        });
        let done;
        (stream, done) = runtime
            .block_on(round)
            .map_err(Failure::role("echoing"))?
            .map_err(Failure::os("echoing"))?;
        puppet.done(done);
    }
    Ok(())
}
