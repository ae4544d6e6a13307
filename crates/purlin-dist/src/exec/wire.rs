//! What a node and a guard say to each other, over one socket.
//!
//! Both ends are the same program in the same version, so there is nothing to negotiate.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest message: an order with its environment, with room to spare.
pub(super) const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// To the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Ask {
    /// Run this. The first message, and only the first.
    Run(Box<Order>),
    /// Send this signal to the program and all in its group.
    Signal(i32),
    /// The node is there.
    Beat,
}

/// From the guard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Told {
    /// It runs, with this process number, which is its group's too.
    Started(i32),
    /// It cannot run, and why.
    Refused(String),
    /// It has ended, and nothing it started is left.
    Ended(End),
}

/// What to run: a spec as this node runs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Order {
    pub(super) name: String,
    pub(super) command: String,
    pub(super) args: Vec<String>,
    /// The whole environment, as bytes: what a node inherits need not be UTF-8.
    pub(super) env: Vec<(Vec<u8>, Vec<u8>)>,
    pub(super) cwd: String,
    pub(super) user: Option<String>,
    pub(super) limits: Limits,
    /// After this much silence of the node the program is killed.
    pub(super) silent_max_ms: Option<u64>,
}

/// Limits as the kernel is asked for them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Limits {
    /// Below which directory of a cgroup v2 the program gets one of its own.
    pub(super) cgroup: Option<String>,
    pub(super) memory_max: Option<u64>,
    pub(super) cpu_millis: Option<u32>,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    /// Its exit status, if it exited.
    pub(super) status: Option<i32>,
    /// The signal that ended it otherwise.
    pub(super) signal: Option<i32>,
    /// Whether it left a core dump.
    pub(super) dumped: bool,
    /// How many processes it had left behind when it exited, which were killed.
    pub(super) left: u32,
}

/// One message with its length in front.
pub(super) fn encode<T: Serialize>(message: &T) -> io::Result<Vec<u8>> {
    let body = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).ok().filter(|_| body.len() <= MESSAGE_BYTES_MAX);
    let length = length.ok_or_else(|| {
        io::Error::other(format!("{} bytes exceed limit {MESSAGE_BYTES_MAX}", body.len()))
    })?;
    let mut framed = Vec::with_capacity(4 + body.len());
    framed.extend_from_slice(&length.to_le_bytes());
    framed.extend_from_slice(&body);
    Ok(framed)
}

/// The length that `head` announces, within its bound.
pub(super) fn length(head: [u8; 4]) -> io::Result<usize> {
    let length = usize::try_from(u32::from_le_bytes(head)).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES_MAX {
        return Err(io::Error::other(format!(
            "message of {length} bytes exceeds limit {MESSAGE_BYTES_MAX}"
        )));
    }
    Ok(length)
}

pub(super) fn decode<T: DeserializeOwned>(body: &[u8]) -> io::Result<T> {
    postcard::from_bytes(body).map_err(io::Error::other)
}

/// Writes one message.
pub(super) fn write<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    to.write_all(&encode(message)?)
}

/// Reads one message.
pub(super) fn read<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<T> {
    let mut head = [0; 4];
    from.read_exact(&mut head)?;
    let mut body = vec![0; length(head)?];
    from.read_exact(&mut body)?;
    decode(&body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_and_a_length_beyond_the_bound_is_refused_before_it_is_allocated() {
        let mut bytes = Vec::new();
        let end = End { status: Some(3), signal: None, dumped: false, left: 2 };
        write(&mut bytes, &Told::Ended(end)).unwrap();
        write(&mut bytes, &Told::Started(7)).unwrap();
        let mut from = &*bytes;
        assert_eq!(read::<Told>(&mut from).unwrap(), Told::Ended(end));
        assert_eq!(read::<Told>(&mut from).unwrap(), Told::Started(7));
        assert_eq!(read::<Told>(&mut from).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(read::<Told>(&mut &u32::MAX.to_le_bytes()[..]).is_err());
        assert!(encode(&Told::Refused("x".repeat(MESSAGE_BYTES_MAX))).is_err());
    }
}
