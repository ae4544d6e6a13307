//! Sockets of the simulated network, as the transport wants them.

use std::{
    fmt,
    future::poll_fn,
    io::{self, ErrorKind, IoSlice},
    net::{IpAddr, Shutdown, SocketAddr},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use purlin_net::{
    Accept, DatagramSocket, Listening, Network, Stream, StreamSocket, network::BoxFuture,
};

use super::{Broken, EndId, Net, Piece, Port, ROOM_BYTES, STREAM_BYTES_MAX, SharedNet};
use crate::{time::HostTime, trace::HostId};

/// What sockets of one life of a host have in common.
#[derive(Clone)]
struct Process {
    net: SharedNet,
    host: HostId,
    life: u64,
    time: Arc<HostTime>,
}

impl Process {
    fn now(&self) -> Duration {
        self.time.now()
    }

    /// Does something with the network, unless this process is dead: then nothing has an effect
    /// any more, whatever its remains do while they are cleared away.
    fn with<T>(&self, act: impl FnOnce(&mut Net, Duration) -> io::Result<T>) -> io::Result<T> {
        let now = self.now();
        let mut net = self.net.lock();
        if net.kernels[self.host.index()].life != self.life {
            return Err(io::Error::new(ErrorKind::NotConnected, "this process has ended"));
        }
        act(&mut net, now)
    }
}

/// The network as one life of a host sees it.
pub(crate) struct HostNetwork(Process);

impl HostNetwork {
    pub(crate) fn new(net: SharedNet, host: HostId, life: u64, time: Arc<HostTime>) -> Self {
        Self(Process { net, host, life, time })
    }
}

impl fmt::Debug for HostNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated network of host {}", self.0.host.0)
    }
}

fn remember(slot: &mut Option<Waker>, cx: &Context<'_>) -> Option<Waker> {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => None,
        // The old one is dropped by the caller, outside the lock.
        other => other.replace(cx.waker().clone()),
    }
}

impl Network for HostNetwork {
    fn listen(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Listening>> {
        let listening = self.0.with(|net, _| {
            let ip = net.ip(self.0.host);
            let is_mine = addr.ip() == ip || addr.ip().is_unspecified();
            if !is_mine {
                let why = format!("{} is not {ip}, the address of this host", addr.ip());
                return Err(io::Error::new(ErrorKind::AddrNotAvailable, why));
            }
            let port = if addr.port() == 0 { net.port(self.0.host) } else { addr.port() };
            let ports = &mut net.kernels[self.0.host.index()].ports;
            if ports.contains_key(&port) {
                return Err(ErrorKind::AddrInUse.into());
            }
            ports.insert(port, Port { life: self.0.life, accepts: true, ..Port::default() });
            Ok(SocketAddr::new(ip, port))
        });
        let listening = listening.map(|addr| Listening {
            addr,
            streams: Box::new(SimListener { process: self.0.clone(), port: addr.port() }),
            datagrams: Box::new(SimDatagrams { process: self.0.clone(), addr }),
        });
        Box::pin(std::future::ready(listening))
    }

    fn connect(&self, addr: SocketAddr) -> BoxFuture<'_, io::Result<Stream>> {
        Box::pin(async move {
            let dialled =
                self.0.with(|net, now| Ok(net.dial(now, self.0.host, self.0.life, addr)))?;
            let Some(id) = dialled else {
                // Nobody has that address, so nobody answers.
                return std::future::pending().await;
            };
            // Dropping the future drops the stream, which closes it.
            let stream = SimStream { process: self.0.clone(), id };
            poll_fn(|cx| stream.poll_open(cx)).await?;
            Ok(Stream::Other(Box::new(stream)))
        })
    }
}

struct SimListener {
    process: Process,
    port: u16,
}

impl fmt::Debug for SimListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated listener on port {}", self.port)
    }
}

impl Accept for SimListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(Stream, SocketAddr)>> {
        let (process, port) = (&self.process, self.port);
        Box::pin(poll_fn(move |cx| {
            let mut old = None;
            let polled = process.with(|net, _| {
                let kernel = &mut net.kernels[process.host.index()];
                let port = kernel.ports.get_mut(&port).expect("it is open until it is dropped");
                let Some(id) = port.dialled.pop_front() else {
                    old = remember(&mut port.accept, cx);
                    return Ok(None);
                };
                let from = net.end(id.other()).expect("streams over are taken out").addr;
                Ok(Some((id, from)))
            });
            match polled {
                Err(error) => Poll::Ready(Err(error)),
                Ok(None) => Poll::Pending,
                Ok(Some((id, from))) => {
                    let stream = SimStream { process: process.clone(), id };
                    Poll::Ready(Ok((Stream::Other(Box::new(stream)), from)))
                }
            }
        }))
    }
}

impl Drop for SimListener {
    fn drop(&mut self) {
        let closed = self.process.with(|net, now| {
            let ports = &mut net.kernels[self.process.host.index()].ports;
            let Some(port) = ports.get_mut(&self.port) else { return Ok(None) };
            port.accepts = false;
            let waiting = std::mem::take(&mut port.dialled);
            let waker = port.accept.take();
            for id in waiting {
                net.close(id, now);
            }
            Ok(waker)
        });
        // Dead already: its kernel has closed everything.
        drop(closed);
    }
}

struct SimDatagrams {
    process: Process,
    addr: SocketAddr,
}

impl fmt::Debug for SimDatagrams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated datagrams at {}", self.addr)
    }
}

impl DatagramSocket for SimDatagrams {
    fn try_send_to(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.process.with(|net, now| {
            net.send_datagram(now, self.process.host, self.addr, to, datagram);
            Ok(())
        })
    }

    fn poll_recv_from(
        &self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<(usize, SocketAddr)>> {
        let mut old = None;
        let received = self.process.with(|net, _| {
            let kernel = &mut net.kernels[self.process.host.index()];
            let port = kernel.ports.get_mut(&self.addr.port()).ok_or(ErrorKind::NotConnected)?;
            let received = port.datagrams.pop_front();
            if received.is_none() {
                old = remember(&mut port.recv, cx);
            }
            Ok(received)
        });
        match received {
            // A dead process waits for nothing; an error would only make its remains try again.
            Err(_) | Ok(None) => Poll::Pending,
            Ok(Some((bytes, from))) => {
                let size = bytes.len().min(into.len());
                into[..size].copy_from_slice(&bytes[..size]);
                Poll::Ready(Ok((size, from)))
            }
        }
    }
}

impl Drop for SimDatagrams {
    fn drop(&mut self) {
        let closed = self.process.with(|net, _| {
            Ok(net.kernels[self.process.host.index()].ports.remove(&self.addr.port()))
        });
        drop(closed);
    }
}

struct SimStream {
    process: Process,
    id: EndId,
}

impl fmt::Debug for SimStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "simulated stream {}", self.id.stream)
    }
}

impl From<Broken> for io::Error {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Refused => ErrorKind::ConnectionRefused.into(),
            Broken::Reset => ErrorKind::ConnectionReset.into(),
            Broken::TimedOut => ErrorKind::TimedOut.into(),
        }
    }
}

impl SimStream {
    fn poll_open(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        let mut old = None;
        let open = self.process.with(|net, _| {
            let end = net.end_mut(self.id).ok_or(Broken::Reset)?;
            if let Some(broken) = end.broken {
                return Err(broken.into());
            }
            if !end.is_open {
                old = remember(&mut end.write, cx);
            }
            Ok(end.is_open)
        });
        match open {
            Err(error) => Poll::Ready(Err(error)),
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
        }
    }

    fn write(&self, bytes: usize, take: impl FnOnce(usize) -> Bytes) -> io::Result<usize> {
        self.process.with(|net, now| {
            let end = net.end_mut(self.id).ok_or(ErrorKind::BrokenPipe)?;
            if let Some(broken) = end.broken {
                return Err(broken.into());
            }
            if end.pipe.is_shut {
                return Err(ErrorKind::BrokenPipe.into());
            }
            let taken = bytes.min(STREAM_BYTES_MAX.saturating_sub(end.pipe.outstanding));
            if taken == 0 {
                return if bytes == 0 { Ok(0) } else { Err(ErrorKind::WouldBlock.into()) };
            }
            end.pipe.outstanding += taken;
            net.push(now, self.id, Piece::Bytes(take(taken)));
            Ok(taken)
        })
    }
}

impl StreamSocket for SimStream {
    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut old = None;
        let ready = self.process.with(|net, _| {
            let end = net.end_mut(self.id).ok_or(Broken::Reset)?;
            let ready = !end.received.is_empty() || end.at_end || end.broken.is_some();
            if !ready {
                old = remember(&mut end.read, cx);
            }
            Ok(ready)
        });
        match ready {
            Err(error) => Poll::Ready(Err(error)),
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
        }
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut old = None;
        let ready = self.process.with(|net, _| {
            let end = net.end_mut(self.id).ok_or(Broken::Reset)?;
            let ready =
                end.pipe.outstanding < STREAM_BYTES_MAX || end.pipe.is_shut || end.broken.is_some();
            if !ready {
                old = remember(&mut end.write, cx);
            }
            Ok(ready)
        });
        match ready {
            Err(error) => Poll::Ready(Err(error)),
            Ok(true) => Poll::Ready(Ok(())),
            Ok(false) => Poll::Pending,
        }
    }

    fn try_read(&self, into: &mut [u8]) -> io::Result<usize> {
        self.process.with(|net, now| {
            let end = net.end_mut(self.id).ok_or(Broken::Reset)?;
            let mut read = 0;
            while read < into.len()
                && let Some(front) = end.received.front_mut()
            {
                let size = front.len().min(into.len() - read);
                into[read..read + size].copy_from_slice(&front.split_to(size));
                read += size;
                if front.is_empty() {
                    end.received.pop_front();
                }
            }
            if read > 0 {
                end.room += read;
                if end.room >= ROOM_BYTES {
                    net.tell_room(now, self.id);
                }
                return Ok(read);
            }
            match end.broken {
                Some(broken) => Err(broken.into()),
                None if end.at_end || into.is_empty() => Ok(0),
                None => Err(ErrorKind::WouldBlock.into()),
            }
        })
    }

    fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        self.write(bytes.len(), |taken| Bytes::copy_from_slice(&bytes[..taken]))
    }

    fn try_write_vectored(&self, pieces: &[IoSlice<'_>]) -> io::Result<usize> {
        let total = pieces.iter().map(|piece| piece.len()).sum();
        self.write(total, |taken| {
            let mut bytes = Vec::with_capacity(taken);
            for piece in pieces {
                let size = piece.len().min(taken - bytes.len());
                bytes.extend_from_slice(&piece[..size]);
            }
            bytes.into()
        })
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        let waker = self.process.with(|net, now| {
            let end = net.end_mut(self.id).ok_or(ErrorKind::NotConnected)?;
            let mut waker = None;
            if how != Shutdown::Write {
                end.at_end = true;
                end.received.clear();
                waker = end.read.take();
            }
            if how != Shutdown::Read && !end.pipe.is_shut {
                end.pipe.is_shut = true;
                net.push(now, self.id, Piece::End);
            }
            Ok(waker)
        })?;
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        let closed = self.process.with(|net, now| {
            net.close(self.id, now);
            Ok(())
        });
        drop(closed);
    }
}

/// The address on which a host's node listens.
pub(crate) fn node_addr(ip: IpAddr) -> SocketAddr {
    SocketAddr::new(ip, 7400)
}
