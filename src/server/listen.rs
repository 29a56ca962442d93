//! The listening sockets: TCP on loopback, Unix sockets, TCP with mutual TLS, and sockets that
//! systemd passes.

use std::{
    io,
    net::SocketAddr,
    os::unix::net::UnixStream as StdUnixStream,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use rustix::process::{getegid, geteuid};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    time::{Sleep, sleep},
};
use tokio_stream::Stream;

use super::{
    bind::{self, SocketFile},
    passed::{PassedSocket, PassedSockets},
    write_buffer::BufferedSocket,
};
use crate::{
    api::{
        access::{Identity, Peer},
        quota::line_budget::LineBudget,
    },
    config::{Endpoint, UnixFile},
};

/// How long to wait after an accept failed, for example because no file descriptor was free.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Shortest interval between two log lines about failed accepts.
const ACCEPT_LINE: Duration = Duration::from_secs(10);

/// The bound sockets, as a stream of accepted connections.
pub struct Listeners {
    sockets: Vec<Listener>,
    /// Index of the listener that is polled first. It was polled least recently.
    next: usize,
    pause: Option<Pin<Box<Sleep>>>,
    errors: LineBudget,
}

enum Listener {
    /// Plaintext, on loopback.
    Tcp(TcpListener),
    Tls(TcpListener),
    /// The file comes first, so it is dropped first. While the socket is open, no other file can
    /// have the inode number of its file.
    Unix(SocketFile, UnixListener),
    /// Sockets that this process makes.
    Inside(UnboundedReceiver<StdUnixStream>),
}

/// Makes connections to a daemon of the same process. Clones reach the same daemon.
#[derive(Clone, Debug)]
pub struct Inside(UnboundedSender<StdUnixStream>);

impl Inside {
    /// Returns one end of a new pair of sockets, whose other end the daemon serves.
    ///
    /// # Errors
    /// Those of socketpair(2), or the daemon has ended.
    pub fn connect(&self) -> io::Result<StdUnixStream> {
        let (ours, theirs) = StdUnixStream::pair()?;
        theirs.set_nonblocking(true)?;
        let sent = self.0.send(theirs);
        sent.map_err(|_| io::Error::new(io::ErrorKind::BrokenPipe, "the daemon has ended"))?;
        Ok(ours)
    }
}

impl Listeners {
    /// Returns listeners that serve this process alone, and the way to them.
    pub fn inside() -> (Self, Inside) {
        let (sender, receiver) = unbounded_channel();
        let listeners = Self {
            sockets: vec![Listener::Inside(receiver)],
            next: 0,
            pause: None,
            errors: LineBudget::new(1, ACCEPT_LINE),
        };
        (listeners, Inside(sender))
    }

    /// Binds all endpoints. An optional Unix socket that cannot be bound is left out, unless
    /// another daemon listens on it.
    ///
    /// # Errors
    /// An endpoint cannot be bound. The text names the endpoint and the reason.
    pub fn bind(endpoints: &[Endpoint], file: UnixFile, tls: bool) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for endpoint in endpoints {
            match endpoint {
                Endpoint::Tcp(address) => {
                    sockets.push(Listener::Tcp(bind::tcp(
                        "tcp",
                        *address,
                        leaves_ipv4(*address, endpoints),
                    )?));
                }
                Endpoint::Tls(address) => {
                    sockets.push(Listener::Tls(bind::tcp(
                        "tls",
                        *address,
                        leaves_ipv4(*address, endpoints),
                    )?));
                }
                Endpoint::Systemd => sockets.extend(passed(tls)?),
                Endpoint::Unix { path, optional } => match bind::unix(path, file) {
                    Ok((file, listener)) => sockets.push(Listener::Unix(file, listener)),
                    Err(err) if *optional && err.kind() != io::ErrorKind::AddrInUse => {
                        tracing::info!(%err, "cannot bind the default Unix socket; continuing without it");
                    }
                    Err(err) => return Err(err),
                },
            }
        }
        if sockets.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "listen.api has no usable endpoint",
            ));
        }
        Ok(Self {
            sockets,
            next: 0,
            pause: None,
            errors: LineBudget::new(1, ACCEPT_LINE),
        })
    }

    /// Returns the bound endpoints, with the ports that the system chose.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.sockets
            .iter()
            .filter_map(|listener| match listener {
                Listener::Inside(_) => None,
                Listener::Tcp(tcp) => tcp.local_addr().ok().map(Endpoint::Tcp),
                Listener::Tls(tcp) => tcp.local_addr().ok().map(Endpoint::Tls),
                Listener::Unix(file, _) => Some(Endpoint::Unix {
                    path: file.path().to_owned(),
                    optional: false,
                }),
            })
            .collect()
    }
}

/// Returns whether an endpoint on `[::]` must serve IPv6 only, because another endpoint names an
/// IPv4 address with the same port. Otherwise `[::]` serves IPv4 too.
fn leaves_ipv4(address: SocketAddr, endpoints: &[Endpoint]) -> bool {
    address.ip().is_unspecified()
        && address.port() != 0
        && endpoints.iter().any(|endpoint| match endpoint {
            Endpoint::Tcp(other) | Endpoint::Tls(other) => {
                other.is_ipv4() && other.port() == address.port()
            }
            Endpoint::Systemd | Endpoint::Unix { .. } => false,
        })
}

/// Takes the sockets that systemd has bound. A TCP socket on another address than loopback is
/// served with TLS, and is an error if no TLS is configured.
fn passed(tls: bool) -> io::Result<Vec<Listener>> {
    let mut sockets = Vec::new();
    for socket in PassedSockets::of_environment()?.into_all() {
        sockets.push(match socket {
            PassedSocket::Unix(file, listener) => Listener::Unix(file, listener),
            PassedSocket::Tcp(listener, address) if address.ip().is_loopback() => {
                Listener::Tcp(listener)
            }
            PassedSocket::Tcp(listener, _) if tls => Listener::Tls(listener),
            PassedSocket::Tcp(_, address) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidInput,
                    format!("systemd passed tcp://{address}, which is not loopback: that needs [listen.tls]"),
                ));
            }
        });
    }
    if sockets.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "listen.api has `systemd`, but systemd has passed no socket (LISTEN_FDS, LISTEN_PID)",
        ));
    }
    Ok(sockets)
}

impl Stream for Listeners {
    type Item = Accepted;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Accepted>> {
        let this = self.get_mut();
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        let count = this.sockets.len();
        let (before, from) = this.sockets.split_at_mut(this.next);
        for listener in from.iter_mut().chain(before) {
            // The next poll begins with the listener after this one, so that a flood at one
            // endpoint does not starve another.
            this.next = (this.next + 1) % count;
            let accepted = match listener {
                Listener::Inside(made) => match made.poll_recv(cx) {
                    Poll::Ready(Some(stream)) => {
                        let (user, group) = (geteuid().as_raw(), getegid().as_raw());
                        Poll::Ready(Ok(Waiting::Unix(stream, Peer::unix(user, group))))
                    }
                    // Without a sender, no connection will come.
                    Poll::Ready(None) | Poll::Pending => Poll::Pending,
                },
                Listener::Tcp(tcp) | Listener::Tls(tcp) => tcp.poll_accept(cx).map(|accepted| {
                    let (stream, peer) = accepted?;
                    // With Nagle's algorithm, an answer that waits for an acknowledgement delays a
                    // handshake by 40 ms.
                    let delayed = stream.set_nodelay(true);
                    if let Err(err) = delayed {
                        tracing::debug!(%err, "cannot set TCP_NODELAY");
                    }
                    let stream = stream.into_std()?;
                    Ok(match listener {
                        Listener::Tls(_) => Waiting::Tls(stream, peer),
                        _ => Waiting::Tcp(stream),
                    })
                }),
                Listener::Unix(_, unix) => unix.poll_accept(cx).map(|accepted| {
                    let (stream, _) = accepted?;
                    let cred = stream.peer_cred()?;
                    Ok(Waiting::Unix(
                        stream.into_std()?,
                        Peer::unix(cred.uid(), cred.gid()),
                    ))
                }),
            };
            match accepted {
                Poll::Pending => {}
                Poll::Ready(Ok(socket)) => {
                    return Poll::Ready(Some(Accepted {
                        socket,
                        counted: None,
                        beyond: None,
                    }));
                }
                Poll::Ready(Err::<_, io::Error>(err)) => {
                    if let Some(left_out) = this.errors.take(Instant::now()) {
                        tracing::warn!(%err, left_out, "cannot accept a connection; the next attempt is in 100 ms");
                    }
                    this.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        Poll::Pending
    }
}

/// An accepted connection that no server thread has taken yet. Dropping it closes the connection.
pub struct Accepted {
    socket: Waiting,
    counted: Option<Counted>,
    beyond: Option<Beyond>,
}

/// Marks a socket beyond the limit. Its caller gets an error that names the limit, and may call
/// health and reflection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beyond {
    /// The limit of sockets.
    pub(crate) sockets_max: usize,
}

enum Waiting {
    Tcp(std::net::TcpStream),
    Tls(std::net::TcpStream, SocketAddr),
    Unix(StdUnixStream, Peer),
}

/// How the identity of the peer becomes known.
pub(crate) enum Known {
    /// Known from the listener, or from the credentials of the Unix socket.
    Peer(Peer),
    /// Proved by a TLS handshake with the peer at this address.
    ByHandshake(SocketAddr),
}

/// Counts one open connection of a thread until it is dropped.
pub(crate) struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Accepted {
    /// Counts the connection as open, in this counter of a thread.
    pub(crate) fn count_on(&mut self, open: &Arc<AtomicUsize>) {
        open.fetch_add(1, Ordering::Relaxed);
        self.counted = Some(Counted(Arc::clone(open)));
    }

    /// Marks the connection as beyond the limit of sockets.
    pub(crate) fn is_beyond(&mut self, sockets_max: usize) {
        self.beyond = Some(Beyond { sockets_max });
    }

    /// Returns whether the connection came over a plaintext listener: loopback or a Unix socket.
    pub(crate) fn is_local(&self) -> bool {
        !matches!(self.socket, Waiting::Tls(..))
    }

    /// Returns whether the caller at the other end of a Unix socket is the daemon's own user, or root.
    pub(crate) fn is_own(&self) -> bool {
        let Waiting::Unix(_, peer) = &self.socket else {
            return false;
        };
        let own = geteuid().as_raw();
        let is_own =
            |identity: &Identity| matches!(identity, Identity::Uid(uid) if [0, own].contains(uid));
        peer.identities.iter().any(is_own)
    }

    /// Returns the mark of a connection beyond the limit of sockets.
    pub(crate) fn beyond(&self) -> Option<Beyond> {
        self.beyond
    }

    /// Registers the socket with the runtime of this thread. The connection counts as open until
    /// the returned [`Counted`] is dropped.
    pub(crate) fn adopt(self) -> io::Result<(BufferedSocket, Known, Option<Counted>)> {
        let (socket, known) = match self.socket {
            Waiting::Tcp(tcp) => (BufferedSocket::tcp(tcp)?, Known::Peer(Peer::local())),
            Waiting::Tls(tcp, peer) => (BufferedSocket::tcp(tcp)?, Known::ByHandshake(peer)),
            Waiting::Unix(unix, peer) => (BufferedSocket::unix(unix)?, Known::Peer(peer)),
        };
        Ok((socket, known, self.counted))
    }
}
