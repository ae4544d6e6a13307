//! The IO of a handshake: a socket and a session before they become a connection.

use purlin_core::NodeName;

use crate::{
    error::Cause,
    handshake::{HandshakeError, PROLOGUE_BYTES, Prologue},
    network::Stream,
    tls::{Session, Written},
};

/// Why a handshake did not come to an end.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The bytes are no handshake.
    Message(HandshakeError),
    /// TLS says no.
    Tls(rustls::Error),
    /// The other side closed or the network failed.
    Lost(Cause),
}

impl From<std::io::Error> for Broken {
    fn from(error: std::io::Error) -> Self {
        Self::Lost(Cause::of_io(&error))
    }
}

#[derive(Debug)]
pub(crate) struct Shaking {
    pub(crate) stream: Stream,
    pub(crate) session: Session,
    /// Received and not yet used; after the handshake, the first frames.
    pub(crate) plain: Vec<u8>,
    records: Box<[u8]>,
}

impl Shaking {
    pub(crate) fn new(stream: Stream, session: Session) -> Self {
        Self { stream, session, plain: Vec::new(), records: vec![0; 8 << 10].into_boxed_slice() }
    }

    /// Brings TLS up.
    pub(crate) async fn secure(&mut self) -> Result<(), Broken> {
        loop {
            self.flush().await?;
            if !self.session.is_handshaking() {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    pub(crate) fn is_for(&self, node: &NodeName) -> bool {
        self.session.is_for(node)
    }

    pub(crate) async fn send(&mut self, message: &[u8]) -> Result<(), Broken> {
        self.session.push(message);
        self.flush().await
    }

    /// Sends the last message; whether it arrives does not matter to us.
    pub(crate) async fn send_last(&mut self, message: &[u8]) {
        if self.send(message).await.is_ok() {
            self.session.push_close_notify();
            drop(self.flush().await);
            // Let the other side read before the socket goes: a close with unread bytes resets.
            drop(self.stream.shutdown(std::net::Shutdown::Write));
            while self.fill().await.is_ok() {
                self.plain.clear();
            }
        }
    }

    pub(crate) async fn receive(&mut self) -> Result<(Prologue, Vec<u8>), Broken> {
        let prologue = loop {
            if let Some(prologue) = Prologue::decode(&self.plain).map_err(Broken::Message)? {
                break prologue;
            }
            self.fill().await?;
        };
        let end = PROLOGUE_BYTES + prologue.body_bytes as usize;
        while self.plain.len() < end {
            self.fill().await?;
        }
        let rest = self.plain.split_off(end);
        let mut message = std::mem::replace(&mut self.plain, rest);
        message.drain(..PROLOGUE_BYTES);
        Ok((prologue, message))
    }

    /// Reads once; used also to notice that the other side is gone.
    pub(crate) async fn fill(&mut self) -> Result<(), Broken> {
        let bytes = loop {
            self.stream.readable().await?;
            match self.stream.try_read(&mut self.records) {
                Ok(0) => return Err(Broken::Lost(Cause::Reset)),
                Ok(bytes) => break bytes,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        };
        match self.session.receive(&self.records[..bytes], &mut self.plain) {
            Ok(_closed) => Ok(()),
            Err(error) => {
                // The alert that tells the other side why.
                drop(self.flush().await);
                Err(Broken::Tls(error))
            }
        }
    }

    async fn flush(&mut self) -> Result<(), Broken> {
        while self.session.write_to(&mut self.stream.writer())? == Written::Blocked {
            self.stream.writable().await?;
        }
        Ok(())
    }
}
