//! Where the daemon listens: TCP on loopback, Unix sockets, TCP with mutual TLS, and what systemd passes.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt, chown},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::{fs::Mode, process::umask};
use tokio::{
    net::{TcpListener, UnixListener},
    time::{Sleep, sleep},
};
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;

use super::{access::Peer, socket::Socket};
use crate::config::{Endpoint, UnixFile};

/// How long to wait when the system has no file descriptor for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bound sockets that wait for callers.
pub struct Listeners {
    sockets: Vec<Listener>,
    pause: Option<Pin<Box<Sleep>>>,
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
    /// Plaintext, on loopback.
    Tcp(TcpListener),
    Tls(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A socket's file, which goes with it where the daemon has made it.
struct SocketFile {
    path: PathBuf,
    ours: bool,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        if let Err(err) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %err, "cannot remove the socket's file");
        }
    }
}

impl Listeners {
    /// Binds all endpoints. An optional Unix socket that cannot be made is left out, unless another daemon has it.
    ///
    /// # Errors
    /// The endpoint that cannot be bound, and why.
    pub fn bind(endpoints: &[Endpoint], file: UnixFile, tls: bool) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for endpoint in endpoints {
            match endpoint {
                Endpoint::Tcp(address) => sockets.push(Listener::Tcp(bind_tcp(*address)?)),
                Endpoint::Tls(address) => sockets.push(Listener::Tls(bind_tcp(*address)?)),
                Endpoint::Systemd => sockets.extend(passed(tls)?),
                Endpoint::Unix { path, optional } => match bind_unix(path, file) {
                    Ok(listener) => {
                        let file = SocketFile { path: path.clone(), ours: true };
                        sockets.push(Listener::Unix(listener, file));
                    }
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
        Ok(Self { sockets, pause: None })
    }

    /// Where it listens, with the ports that the system chose.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        self.sockets
            .iter()
            .filter_map(|listener| match listener {
                Listener::Tcp(tcp) => tcp.local_addr().ok().map(Endpoint::Tcp),
                Listener::Tls(tcp) => tcp.local_addr().ok().map(Endpoint::Tls),
                Listener::Unix(_, file) => Some(Endpoint::Unix { path: file.path.clone(), optional: false }),
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

/// Takes what systemd has bound. What is no loopback address is served with TLS, or not at all.
fn passed(tls: bool) -> io::Result<Vec<Listener>> {
    let mut passed = listenfd::ListenFd::from_env();
    let mut sockets = Vec::new();
    for number in 0..passed.len() {
        if let Ok(Some(listener)) = passed.take_unix_listener(number) {
            let path = listener.local_addr()?.as_pathname().map(Path::to_owned).unwrap_or_default();
            listener.set_nonblocking(true)?;
            let file = SocketFile { path, ours: false };
            sockets.push(Listener::Unix(UnixListener::from_std(listener)?, file));
            continue;
        }
        let taken = passed.take_tcp_listener(number)?;
        let Some(listener) = taken else { continue };
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        sockets.push(match (address.ip().is_loopback(), tls) {
            (true, _) => Listener::Tcp(listener),
            (false, true) => Listener::Tls(listener),
            (false, false) => {
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

/// Binds a socket that only those may use whom its mode names. A file that a dead daemon left behind is replaced; one that
/// somebody answers on is not.
fn bind_unix(path: &Path, file: UnixFile) -> io::Result<UnixListener> {
    let bind = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        if let Ok(there) = fs::symlink_metadata(path) {
            if !there.file_type().is_socket() {
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is there, and is no socket"));
            }
            match StdUnixStream::connect(path) {
                Err(err) if err.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)?,
                Ok(_) => {
                    return Err(io::Error::new(io::ErrorKind::AddrInUse, "another daemon answers there"));
                }
                Err(err) => return Err(err),
            }
        }
        // Nobody gets in before the file is what it shall be.
        let others = umask(Mode::from_raw_mode(0o777));
        let listener = UnixListener::bind(path);
        umask(others);
        let listener = listener?;
        if let Some((user, group)) = file.owner {
            chown(path, Some(user), Some(group))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(file.mode))?;
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
                Listener::Tcp(tcp) | Listener::Tls(tcp) => tcp.poll_accept(cx).map(|accepted| {
                    let (stream, _) = accepted?;
                    // An answer that waits for an acknowledgement costs a handshake 40 ms.
                    let delayed = stream.set_nodelay(true);
                    if let Err(err) = delayed {
                        tracing::debug!(%err, "cannot set TCP_NODELAY");
                    }
                    let stream = stream.into_std()?;
                    Ok(match listener {
                        Listener::Tls(_) => Waiting::Tls(stream),
                        _ => Waiting::Tcp(stream),
                    })
                }),
                Listener::Unix(unix, _) => unix.poll_accept(cx).map(|accepted| {
                    let (stream, _) = accepted?;
                    let cred = stream.peer_cred()?;
                    Ok(Waiting::Unix(stream.into_std()?, Peer::unix(cred.uid(), cred.gid())))
                }),
            };
            match accepted {
                Poll::Pending => {}
                Poll::Ready(Ok(socket)) => {
                    return Poll::Ready(Some(Accepted { socket, counted: None }));
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
    counted: Option<Counted>,
}

enum Waiting {
    Tcp(std::net::TcpStream),
    Tls(std::net::TcpStream),
    Unix(StdUnixStream, Peer),
}

/// How to find out who is at the other end.
pub(super) enum Known {
    /// The system tells.
    Peer(Peer),
    /// A handshake will.
    ByHandshake,
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
    pub(super) fn adopt(self) -> io::Result<(Socket, Known, Option<Counted>)> {
        let (socket, known) = match self.socket {
            Waiting::Tcp(tcp) => (Socket::tcp(tcp)?, Known::Peer(Peer::local())),
            Waiting::Tls(tcp) => (Socket::tcp(tcp)?, Known::ByHandshake),
            Waiting::Unix(unix, peer) => (Socket::unix(unix)?, Known::Peer(peer)),
        };
        Ok((socket, known, self.counted))
    }
}
