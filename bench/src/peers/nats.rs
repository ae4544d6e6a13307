//! NATS: Debian's `nats-server` with a client of ours that speaks its text protocol.
//!
//! Configuration: the server as shipped, on loopback, without TLS, authentication and JetStream,
//! except that `write_deadline` is raised so that a subscriber that is behind for a moment is not
//! cut off (a cut connection would lose messages, and the round); a larger `max_pending` made no
//! row faster. The client does what a well-made one does: the publisher encodes into a buffer and
//! writes 64 KiB at a time, `verbose` and `pedantic` off; the subscriber reads up to 256 KiB at a
//! time and walks through it in place. It blocks in plain threads of its own.

use std::fs;
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::sync::mpsc;

use crate::failure::Failure;
use crate::machine::NATS_SERVER;
use crate::puppet::{Arguments, Puppet};
use crate::rig::{Daemon, Rig};
use crate::workshop::{Workshop, free_port, wait_for_listener};

const WRITE_BYTES: usize = 64 * 1024;
const READ_BYTES: usize = 256 * 1024;

/// How the subscribers of a contest are spread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Audience {
    /// Processes that subscribe.
    pub(crate) processes: u64,
    /// Connections of each.
    pub(crate) connections: u64,
    /// Subscriptions of each connection.
    pub(crate) subscriptions: u64,
}

/// A server, `audience`, and one publisher of `payload` bytes.
pub(crate) fn start(
    workshop: &Workshop,
    audience: Audience,
    payload: usize,
) -> Result<Rig, Failure> {
    let port = free_port()?;
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let config = workshop.scratch().join(format!("nats-{port}.conf"));
    fs::write(&config, format!("listen: \"{address}\"\nwrite_deadline: \"60s\"\n"))
        .map_err(Failure::os("writing the configuration of nats-server"))?;
    let mut command = Command::new(NATS_SERVER.find()?);
    command.arg("-c").arg(&config);
    let mut rig = Rig::default().daemon(Daemon::start("nats-server", command)?);
    wait_for_listener("nats-server", address)?;
    let address = address.to_string();
    for _ in 0..audience.processes {
        let arguments =
            [&address, &audience.connections.to_string(), &audience.subscriptions.to_string()];
        let subscriber = workshop.role("nats-subscriber", &arguments.map(String::as_str))?;
        rig = rig.receiver(subscriber, audience.connections * audience.subscriptions);
    }
    let publisher = workshop.role("nats-publisher", &[&address, &payload.to_string()])?;
    Ok(rig.driver(publisher, 1))
}

/// Opens a connection and waits until the server has taken `first`.
fn connect(address: SocketAddr, first: &str) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(address).map_err(Failure::os("connecting to nats-server"))?;
    stream.set_nodelay(true).map_err(Failure::os("setting TCP_NODELAY"))?;
    let mut lines = BufReader::new(&stream);
    let mut line = String::new();
    lines.read_line(&mut line).map_err(Failure::os("reading INFO"))?;
    let hello = format!("CONNECT {{\"verbose\":false,\"pedantic\":false}}\r\n{first}PING\r\n");
    (&stream).write_all(hello.as_bytes()).map_err(Failure::os("writing CONNECT"))?;
    line.clear();
    lines.read_line(&mut line).map_err(Failure::os("reading PONG"))?;
    if line == "PONG\r\n" {
        Ok(stream)
    } else {
        Err(Failure::Role(format!("nats-server said {}", line.trim())))
    }
}

/// Publishes a round as fast as the server takes it.
pub(crate) fn publisher(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let mut stream = connect(arguments.address(0)?, "")?;
    let payload = vec![b'x'; arguments.text(1)?.parse().map_err(Failure::role("reading a size"))?];
    let mut buffer = Vec::with_capacity(WRITE_BYTES * 2);
    puppet.ready("");
    while let Some(messages) = puppet.next_round() {
        for _ in 0..messages {
            write!(buffer, "PUB feed {}\r\n", payload.len()).expect("writing to a Vec succeeds");
            buffer.extend_from_slice(&payload);
            buffer.extend_from_slice(b"\r\n");
            if buffer.len() >= WRITE_BYTES {
                stream.write_all(&buffer).map_err(Failure::os("publishing"))?;
                buffer.clear();
            }
        }
        stream.write_all(&buffer).map_err(Failure::os("publishing"))?;
        buffer.clear();
        puppet.done(messages);
    }
    Ok(())
}

/// Counts what arrives, one thread per connection.
pub(crate) fn subscriber(puppet: &mut Puppet, arguments: &Arguments) -> Result<(), Failure> {
    let address = arguments.address(0)?;
    let (connections, subscriptions) = (arguments.number(1)?, arguments.number(2)?);
    let (tell, finished) = mpsc::channel();
    let mut rounds = Vec::new();
    for _ in 0..connections {
        let wishes: String = (1..=subscriptions).map(|id| format!("SUB feed {id}\r\n")).collect();
        let stream = connect(address, &wishes)?;
        let (round, next) = mpsc::channel();
        rounds.push(round);
        let tell = tell.clone();
        std::thread::spawn(move || {
            let mut feed = Feed::new(stream);
            for messages in next {
                // The main thread is gone only when the whole process is about to be.
                drop(tell.send(feed.receive(messages)));
            }
        });
    }
    puppet.ready("");
    while let Some(messages) = puppet.next_round() {
        for round in &rounds {
            round.send(messages * subscriptions).map_err(Failure::role("telling a reader"))?;
        }
        puppet.armed();
        let mut count = 0;
        for _ in &rounds {
            count += finished.recv().map_err(Failure::role("waiting for a reader"))??;
        }
        puppet.done(count);
    }
    Ok(())
}

/// The incoming half of a connection, parsed in place.
struct Feed {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Bytes before `start` are consumed, those from `end` on are not yet read.
    start: usize,
    end: usize,
}

impl Feed {
    fn new(stream: TcpStream) -> Self {
        Self { stream, buffer: vec![0; READ_BYTES], start: 0, end: 0 }
    }

    /// Returns when `expected` messages have arrived.
    fn receive(&mut self, expected: u64) -> Result<u64, Failure> {
        let mut count = 0;
        while count < expected {
            match next_message(&self.buffer[self.start..self.end])? {
                Parsed::Message(length) => {
                    self.start += length;
                    count += 1;
                }
                Parsed::Ping(length) => {
                    self.start += length;
                    self.stream.write_all(b"PONG\r\n").map_err(Failure::os("answering PING"))?;
                }
                Parsed::Part => self.read_more()?,
            }
        }
        Ok(count)
    }

    fn read_more(&mut self) -> Result<(), Failure> {
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        match self.stream.read(&mut self.buffer[self.end..]) {
            Ok(0) => Err(Failure::Role("nats-server closed the connection".to_owned())),
            Ok(read) => {
                self.end += read;
                Ok(())
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => Ok(()),
            Err(error) => Err(Failure::os("reading from nats-server")(error)),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    /// A whole message of that many bytes, its line and its payload.
    Message(usize),
    Ping(usize),
    /// The rest has not arrived.
    Part,
}

/// Looks at the front of what has arrived: `MSG subject id size`, a line end, the payload, a line end.
fn next_message(bytes: &[u8]) -> Result<Parsed, Failure> {
    let Some(line_end) = bytes.iter().position(|&byte| byte == b'\n') else {
        return Ok(Parsed::Part);
    };
    let line = bytes[..line_end].trim_ascii_end();
    if line.starts_with(b"MSG ") {
        let digits = line.rsplit(|&byte| byte == b' ').next().unwrap_or_default();
        let size = digits.iter().fold(0_usize, |size, digit| size * 10 + usize::from(digit - b'0'));
        let whole = line_end + 1 + size + 2;
        return Ok(if bytes.len() < whole { Parsed::Part } else { Parsed::Message(whole) });
    }
    if line == b"PING" {
        return Ok(Parsed::Ping(line_end + 1));
    }
    Err(Failure::Role(format!("nats-server said {}", String::from_utf8_lossy(line))))
}

#[cfg(test)]
mod tests {
    use super::{Parsed, next_message};

    #[test]
    fn messages_are_found_whole_or_not_at_all() {
        let text = b"MSG feed 1 5\r\nhello\r\nPING\r\n";
        assert_eq!(next_message(text).unwrap(), Parsed::Message(21));
        for part in 0..21 {
            assert_eq!(next_message(&text[..part]).unwrap(), Parsed::Part, "{part} bytes");
        }
        assert_eq!(next_message(&text[21..]).unwrap(), Parsed::Ping(6));
    }

    #[test]
    fn an_error_of_the_server_is_passed_on() {
        assert!(
            next_message(b"-ERR 'Slow Consumer'\r\n")
                .unwrap_err()
                .to_string()
                .contains("Slow Consumer")
        );
    }
}
