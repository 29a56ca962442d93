//! Where the daemon listens: TCP on loopback and Unix sockets.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{fs::PermissionsExt, net::UnixStream as StdUnixStream},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    net::{TcpListener, UnixListener},
    time::{Sleep, sleep},
};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use super::socket::Socket;
use crate::config::Endpoint;

/// How long to wait when the system has no file descriptor for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who calls.
#[derive(Clone, Debug)]
pub struct Peer {
    /// `local` over TCP, `uid:N` over a Unix socket.
    pub owner: Arc<str>,
}

/// Bound sockets that wait for callers.
pub struct Listeners {
    sockets: Vec<Listener>,
    pause: Option<Pin<Box<Sleep>>>,
    local: Arc<str>,
}

/// When connections have to end.
#[derive(Clone, Debug, Default)]
pub struct Signals {
    /// The daemon begins to stop.
    pub draining: CancellationToken,
    /// Whatever is still open is closed hard.
    pub kill: CancellationToken,
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A socket's file, which goes with it.
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_file(&self.0) {
            tracing::warn!(path = %self.0.display(), %err, "cannot remove the socket's file");
        }
    }
}

impl Listeners {
    /// Binds all endpoints. An optional Unix socket that cannot be made is left out, unless another daemon has it.
    ///
    /// # Errors
    /// The endpoint that cannot be bound, and why.
    pub fn bind(endpoints: &[Endpoint]) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for endpoint in endpoints {
            match endpoint {
                Endpoint::Tcp(address) => sockets.push(Listener::Tcp(bind_tcp(*address)?)),
                Endpoint::Unix { path, optional } => match bind_unix(path) {
                    Ok(listener) => sockets.push(Listener::Unix(listener, SocketFile(path.clone()))),
                    Err(err) if *optional && err.kind() != io::ErrorKind::AddrInUse => {
                        tracing::info!(%err, "the default Unix socket is left out");
                    }
                    Err(err) => return Err(err),
                },
            }
        }
        if sockets.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "listen.api names nothing to listen on"));
        }
        Ok(Self { sockets, pause: None, local: "local".into() })
    }

    /// Where it listens, with the ports that the system chose.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.sockets
            .iter()
            .filter_map(|listener| match listener {
                Listener::Tcp(tcp) => tcp.local_addr().ok().map(Endpoint::Tcp),
                Listener::Unix(_, file) => Some(Endpoint::Unix { path: file.0.clone(), optional: false }),
            })
            .collect()
    }
}

fn named(err: io::Error, what: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(err.kind(), format!("cannot listen on {what}: {err}"))
}

fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    std::net::TcpListener::bind(address)
        .and_then(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        })
        .map_err(|err| named(err, &format_args!("tcp://{address}")))
}

/// Binds a socket that only its owner and group may use. A file that a dead daemon left behind is replaced; one that
/// somebody answers on is not.
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    let bind = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        if path.exists() {
            match StdUnixStream::connect(path) {
                Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
                Ok(_) => {
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon answers there"));
                }
                Err(err) => return Err(err),
            }
        }
        let listener = UnixListener::bind(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660))?;
        Ok(listener)
    };
    bind().map_err(|err| named(err, &format_args!("unix://{}", path.display())))
}

impl Stream for Listeners {
    type Item = Accepted;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Accepted>> {
        let this = self.get_mut();
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        for listener in &this.sockets {
            let accepted = match listener {
                Listener::Tcp(tcp) => tcp.poll_accept(cx).map(|accepted| {
                    let (stream, _) = accepted?;
                    // An answer that waits for an acknowledgement costs a handshake 40 ms.
                    let delayed = stream.set_nodelay(true);
                    if let Err(err) = delayed {
                        tracing::debug!(%err, "cannot set TCP_NODELAY");
                    }
                    Ok((Waiting::Tcp(stream.into_std()?), Arc::clone(&this.local)))
                }),
                Listener::Unix(unix, _) => unix.poll_accept(cx).map(|accepted| {
                    let (stream, _) = accepted?;
                    let owner = match stream.peer_cred() {
                        Ok(cred) => format!("uid:{}", cred.uid()).into(),
                        Err(_) => Arc::clone(&this.local),
                    };
                    Ok((Waiting::Unix(stream.into_std()?), owner))
                }),
            };
            match accepted {
                Poll::Pending => {}
                Poll::Ready(Ok((socket, owner))) => {
                    return Poll::Ready(Some(Accepted { socket, peer: Peer { owner }, counted: None }));
                }
                Poll::Ready(Err::<_, io::Error>(err)) => {
                    tracing::warn!(%err, "cannot accept a connection");
                    this.pause = Some(Box::pin(sleep(ACCEPT_PAUSE)));
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
        Poll::Pending
    }
}

/// A connection that no thread has yet. Dropping it closes it.
pub struct Accepted {
    socket: Waiting,
    peer: Peer,
    counted: Option<Counted>,
}

enum Waiting {
    Tcp(std::net::TcpStream),
    Unix(StdUnixStream),
}

/// One open connection of a thread.
pub(super) struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Accepted {
    /// Counts as open from now on.
    pub(super) fn count_on(&mut self, open: &Arc<AtomicUsize>) {
        open.fetch_add(1, Ordering::Relaxed);
        self.counted = Some(Counted(Arc::clone(open)));
    }

    /// Takes the socket over into this thread's runtime. It counts as open until what comes with it is dropped.
    pub(super) fn adopt(self) -> io::Result<(Socket, Peer, Option<Counted>)> {
        let socket = match self.socket {
            Waiting::Tcp(tcp) => Socket::tcp(tcp)?,
            Waiting::Unix(unix) => Socket::unix(unix)?,
        };
        Ok((socket, self.peer, self.counted))
    }
}
