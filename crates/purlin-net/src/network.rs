//! Where streams and datagrams come from: the seam between the transport and a network.
//!
//! A protocol that can only be tried on the network at hand is never tried on a bad one. So the
//! transport asks a [`Network`] for its sockets: [`Kernel`] is the operating system's, a simulator
//! brings its own, and everything above is the same code. [`Stream`] is an enum and no trait
//! object, so that the real path pays no virtual call and no allocation per read or write.
//!
//! An implementation owes the transport what TCP and UDP would give: streams are ordered and
//! reliable until they end; datagrams may be lost, repeated and reordered, never cut.

use std::{
    fmt,
    future::{Future, poll_fn},
    io::{self, IoSlice, Write},
    net::{Shutdown, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncReadExt as _, ReadBuf},
    net::{
        TcpListener, TcpStream, UdpSocket,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

/// A future behind a pointer; the same type as `futures_util`'s.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Makes sockets. One per node: what it binds and dials is on this node's behalf.
pub trait Network: Send + Sync + fmt::Debug + 'static {
    /// Listens for streams and for datagrams on one port; port 0 takes any that is free for both.
    ///
    /// # Errors
    /// [`io::ErrorKind::AddrInUse`] when somebody listens there; otherwise what the system says.
    fn listen(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Listening>>;

    /// Opens a stream to `addr`. May wait for long; the caller has a deadline and drops it then.
    ///
    /// # Errors
    /// [`io::ErrorKind::ConnectionRefused`] when nobody listens there, others when there is no way.
    ///
    /// # Cancel safety
    /// Dropping the future abandons the attempt.
    fn connect(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Stream>>;
}

/// A port that is listened on.
#[derive(Debug)]
pub struct Listening {
    /// The address, with the port that was taken.
    pub addr: SocketAddr,
    /// Its streams. Dropping it closes the port; accepted streams stay.
    pub streams: Box<dyn Accept>,
    /// Its datagrams.
    pub datagrams: Box<dyn DatagramSocket>,
}

/// The accepting side of a port.
pub trait Accept: Send + fmt::Debug {
    /// The next stream and the address it came from.
    ///
    /// # Errors
    /// What the system says. The transport reports it, waits a little and calls again.
    ///
    /// # Cancel safety
    /// Dropping the future loses no stream.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>>;
}

/// A byte stream: readiness, and reads and writes that never wait.
///
/// Used by one reading and one writing task at a time; each direction has to remember only the
/// waker it was given last. Dropping it closes as TCP does: orderly if everything received was
/// read, by a reset otherwise.
pub trait StreamSocket: Send + Sync + fmt::Debug {
    /// Ready when [`StreamSocket::try_read`] would not say `WouldBlock`: bytes, the end, an error.
    ///
    /// # Errors
    /// The stream is broken; [`StreamSocket::try_read`] may say the same instead.
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ready when [`StreamSocket::try_write`] would not say `WouldBlock`.
    ///
    /// # Errors
    /// The stream is broken; [`StreamSocket::try_write`] may say the same instead.
    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Reads what is there; 0 is the end of the stream.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when nothing is there yet;
    /// [`io::ErrorKind::ConnectionReset`] and the like when it is broken.
    fn try_read(&self, into: &mut [u8]) -> io::Result<usize>;

    /// Writes as much as there is room for, at least one byte.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] without room; [`io::ErrorKind::BrokenPipe`] and the like when
    /// it is broken or was shut down.
    fn try_write(&self, bytes: &[u8]) -> io::Result<usize>;

    /// [`StreamSocket::try_write`] of several pieces, in order, as if they were one.
    ///
    /// # Errors
    /// As [`StreamSocket::try_write`].
    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Ends one direction or both. [`Shutdown::Write`]: what was written arrives, then the end.
    /// [`Shutdown::Both`]: reads end here too, which wakes a waiting reader.
    ///
    /// # Errors
    /// It is broken already; callers have nothing left to do then.
    fn shutdown(&self, how: Shutdown) -> io::Result<()>;
}

/// The datagram side of a port.
pub trait DatagramSocket: Send + Sync + fmt::Debug {
    /// Hands a datagram to the network, without waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when the send buffer is full, or what the system says. Ok does
    /// not mean that it arrives.
    fn try_send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()>;

    /// The next datagram and where it came from; what exceeds `into` is cut. One task waits at a
    /// time: only the waker given last is remembered.
    ///
    /// # Errors
    /// What the system says about earlier sends; the caller goes on.
    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>>;
}

/// A stream of some network.
#[derive(Debug)]
pub enum Stream {
    /// The operating system's.
    Tcp(TcpStream),
    /// Another network's.
    Other(Box<dyn StreamSocket>),
}

impl Stream {
    pub(crate) async fn readable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.readable().await,
            Self::Other(socket) => poll_fn(|cx| socket.poll_readable(cx)).await,
        }
    }

    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.writable().await,
            Self::Other(socket) => poll_fn(|cx| socket.poll_writable(cx)).await,
        }
    }

    pub(crate) fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_read(into),
            Self::Other(socket) => socket.try_read(into),
        }
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => socket2::SockRef::from(stream).shutdown(how),
            Self::Other(socket) => socket.shutdown(how),
        }
    }

    /// The stream as a writer that never waits.
    pub(crate) fn writer(&self) -> Writer<'_> {
        match self {
            Self::Tcp(stream) => Writer::Tcp(stream),
            Self::Other(socket) => Writer::Other(&**socket),
        }
    }

    pub(crate) fn into_split(self) -> (ReadHalf, WriteHalf) {
        match self {
            Self::Tcp(stream) => {
                let (read, write) = stream.into_split();
                (ReadHalf::Tcp(read), WriteHalf::Tcp(write))
            }
            Self::Other(socket) => {
                let socket: Arc<dyn StreamSocket> = Arc::from(socket);
                (ReadHalf::Other(Arc::clone(&socket)), WriteHalf::Other(socket))
            }
        }
    }
}

/// What the reader of a connection has of its stream.
#[derive(Debug)]
pub(crate) enum ReadHalf {
    Tcp(OwnedReadHalf),
    Other(Arc<dyn StreamSocket>),
}

impl ReadHalf {
    /// Reads once, waiting for the first byte; 0 is the end.
    pub(crate) async fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let socket = match self {
            // Not by readiness: tokio's own read knows that a short one has emptied the socket,
            // and spares the next read a system call.
            Self::Tcp(half) => return half.read(into).await,
            Self::Other(socket) => socket,
        };
        loop {
            poll_fn(|cx| socket.poll_readable(cx)).await?;
            match socket.try_read(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
        }
    }
}

/// What the writers of a connection have of its stream.
#[derive(Debug)]
pub(crate) enum WriteHalf {
    Tcp(OwnedWriteHalf),
    Other(Arc<dyn StreamSocket>),
}

impl WriteHalf {
    pub(crate) async fn writable(&self) -> io::Result<()> {
        match self {
            Self::Tcp(half) => half.writable().await,
            Self::Other(socket) => poll_fn(|cx| socket.poll_writable(cx)).await,
        }
    }

    pub(crate) fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        match self {
            Self::Tcp(half) => socket2::SockRef::from(half.as_ref()).shutdown(how),
            Self::Other(socket) => socket.shutdown(how),
        }
    }

    /// The stream as a writer that never waits.
    pub(crate) fn writer(&self) -> Writer<'_> {
        match self {
            Self::Tcp(half) => Writer::Tcp(half.as_ref()),
            Self::Other(socket) => Writer::Other(&**socket),
        }
    }
}

/// A stream as a writer that never waits.
pub(crate) enum Writer<'a> {
    Tcp(&'a TcpStream),
    Other(&'a dyn StreamSocket),
}

impl Write for Writer<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write(bytes),
            Self::Other(socket) => socket.try_write(bytes),
        }
    }

    #[inline]
    fn write_vectored(&mut self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(stream) => stream.try_write_vectored(pieces),
            Self::Other(socket) => socket.try_write_vectored(pieces),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The operating system's sockets: TCP and UDP.
///
/// Call it inside a tokio runtime with IO.
#[derive(Debug, Clone, Copy, Default)]
pub struct Kernel;

impl Network for Kernel {
    fn listen(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Listening>> {
        Box::pin(async move {
            // With port 0 the system picks a free TCP port whose UDP twin may be taken: try again.
            let mut attempts = if addr.port() == 0 { 32 } else { 1 };
            loop {
                let listener = TcpListener::bind(addr).await?;
                let addr = listener.local_addr()?;
                match UdpSocket::bind(addr).await {
                    Ok(socket) => {
                        // Probes of a thousand nodes fit; a burst that does not is lost, as
                        // datagrams may be. A smaller buffer works too.
                        drop(socket2::SockRef::from(&socket).set_recv_buffer_size(1 << 20));
                        return Ok(Listening {
                            addr,
                            streams: Box::new(listener),
                            datagrams: Box::new(socket),
                        });
                    }
                    Err(error) => {
                        attempts -= 1;
                        if attempts == 0 {
                            return Err(error);
                        }
                    }
                }
            }
        })
    }

    fn connect(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move { TcpStream::connect(addr).await.map(Stream::Tcp) })
    }
}

impl Accept for TcpListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>> {
        Box::pin(async move {
            let (stream, addr) = Self::accept(self).await?;
            Ok((Stream::Tcp(stream), addr))
        })
    }
}

impl DatagramSocket for UdpSocket {
    fn try_send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        // Straight to the system: whether tokio has seen the socket writable does not matter.
        socket2::SockRef::from(self).send_to(datagram, &to.into()).map(|_bytes| ())
    }

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut into = ReadBuf::new(into);
        let polled = Self::poll_recv_from(self, cx, &mut into);
        polled.map_ok(|from| (into.filled().len(), from))
    }
}
