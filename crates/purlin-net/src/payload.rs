//! The place a message is encoded into: the connection's own send buffer.

use std::io;

use serde::Serialize;

/// Where a sender writes one message, straight into the buffer that will be encrypted.
///
/// Handed to the closure of [`Peer::send`](crate::Peer::send). It only appends, so a sender cannot
/// harm the messages in front of its own.
#[derive(Debug)]
pub struct PayloadBuf<'a> {
    buffer: &'a mut Vec<u8>,
    start: usize,
    failed: Option<String>,
}

impl<'a> PayloadBuf<'a> {
    pub(crate) fn new(buffer: &'a mut Vec<u8>) -> Self {
        let start = buffer.len();
        Self { buffer, start, failed: None }
    }

    /// How many bytes this message has so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len() - self.start
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends `bytes`.
    #[inline]
    pub fn put(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Appends one byte.
    #[inline]
    pub fn put_u8(&mut self, byte: u8) {
        self.buffer.push(byte);
    }

    /// Appends `value` in postcard's encoding.
    ///
    /// A value that postcard cannot encode (a sequence of unknown length, say) makes the send fail
    /// with [`SendError::Encode`](crate::SendError::Encode); nothing leaves the node.
    #[inline]
    pub fn encode<T: Serialize + ?Sized>(&mut self, value: &T) {
        if let Err(error) = postcard::serialize_with_flavor(value, VecFlavor(&mut *self.buffer)) {
            self.failed = Some(error.to_string());
        }
    }

    /// Appends what `write` appends to the buffer, which holds earlier messages too: it must only
    /// append. If it fails, the whole message is refused with
    /// [`SendError::Encode`](crate::SendError::Encode).
    #[inline]
    pub fn append<E: std::fmt::Display>(
        &mut self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) {
        if let Err(error) = write(self.buffer) {
            self.failed = Some(error.to_string());
        }
    }

    pub(crate) fn take_failure(&mut self) -> Option<String> {
        self.failed.take()
    }
}

impl io::Write for PayloadBuf<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.put(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Appends `value` to `buffer` in postcard's encoding.
///
/// # Errors
/// What postcard says about a value it cannot encode; `buffer` may hold a part of it.
pub fn encode_to_vec<T: Serialize + ?Sized>(
    value: &T,
    buffer: &mut Vec<u8>,
) -> Result<(), postcard::Error> {
    postcard::serialize_with_flavor(value, VecFlavor(buffer))
}

struct VecFlavor<'a>(&'a mut Vec<u8>);

impl postcard::ser_flavors::Flavor for VecFlavor<'_> {
    type Output = ();

    #[inline]
    fn try_push(&mut self, byte: u8) -> postcard::Result<()> {
        self.0.push(byte);
        Ok(())
    }

    #[inline]
    fn try_extend(&mut self, bytes: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}
