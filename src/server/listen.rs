//! The listening sockets: TCP on loopback, Unix sockets, TCP with mutual TLS, and sockets that
//! systemd passes.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt, MetadataExt, PermissionsExt, chown},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode, flock},
    io::Errno,
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, socket_with, sockopt},
    process::umask,
};
use tokio::{
    net::{TcpListener, UnixListener},
    time::{Sleep, sleep},
};
use tokio_stream::Stream;

use super::write_buffer::BufferedSocket;
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
/// Most sockets that the daemon takes from systemd.
const PASSED_MAX: u32 = 64;
/// Most connections that the system queues until they are accepted (listen(2)).
const BACKLOG: i32 = 1024;

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
}

/// The file of a Unix socket. Dropping it removes the file if the daemon created it.
struct SocketFile {
    path: PathBuf,
    made: Option<FileNumber>,
}

/// Device and inode number of a file. They tell whether the file at a path is still the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileNumber(u64, u64);

impl FileNumber {
    fn of(path: &Path) -> io::Result<Self> {
        fs::symlink_metadata(path).map(|there| Self(there.dev(), there.ino()))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Some(made) = self.made else { return };
        let removed = match FileNumber::of(&self.path) {
            Ok(there) if there == made => fs::remove_file(&self.path),
            // Another daemon has created its own socket there since.
            Ok(_) => Ok(()),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(err),
        };
        if let Err(err) = removed {
            tracing::warn!(path = %self.path.display(), %err, "cannot remove the file of the Unix socket");
        }
    }
}

impl Listeners {
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
                    sockets.push(Listener::Tcp(bind_tcp("tcp", *address, endpoints)?));
                }
                Endpoint::Tls(address) => {
                    sockets.push(Listener::Tls(bind_tcp("tls", *address, endpoints)?));
                }
                Endpoint::Systemd => sockets.extend(passed(tls)?),
                Endpoint::Unix { path, optional } => match bind_unix(path, file) {
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
                Listener::Tcp(tcp) => tcp.local_addr().ok().map(Endpoint::Tcp),
                Listener::Tls(tcp) => tcp.local_addr().ok().map(Endpoint::Tls),
                Listener::Unix(file, _) => Some(Endpoint::Unix {
                    path: file.path.clone(),
                    optional: false,
                }),
            })
            .collect()
    }
}

fn named(err: io::Error, what: &dyn std::fmt::Display) -> io::Error {
    io::Error::new(err.kind(), format!("cannot listen on {what}: {err}"))
}

/// Binds an address. `scheme` is that of its endpoint, for the error.
fn bind_tcp(scheme: &str, address: SocketAddr, endpoints: &[Endpoint]) -> io::Result<TcpListener> {
    let bind = || {
        let family = if address.is_ipv6() {
            AddressFamily::INET6
        } else {
            AddressFamily::INET
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        sockopt::set_socket_reuseaddr(&socket, true)?;
        if address.is_ipv6() && leaves_ipv4(address, endpoints) {
            sockopt::set_ipv6_v6only(&socket, true)?;
        }
        rustix::net::bind(&socket, &address)?;
        rustix::net::listen(&socket, BACKLOG)?;
        TcpListener::from_std(socket.into())
    };
    bind().map_err(|err| named(err, &format_args!("{scheme}://{address}")))
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
    // listenfd adds to this number without a check, so a large one would overflow.
    let count = std::env::var("LISTEN_FDS")
        .ok()
        .and_then(|count| count.parse::<u32>().ok());
    if count.is_some_and(|count| count > PASSED_MAX) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("invalid LISTEN_FDS: at most {PASSED_MAX} sockets can be taken from systemd"),
        ));
    }
    let mut passed = listenfd::ListenFd::from_env();
    let mut sockets = Vec::new();
    for number in 0..passed.len() {
        if let Ok(Some(listener)) = passed.take_unix_listener(number) {
            let path = listener
                .local_addr()?
                .as_pathname()
                .map(Path::to_owned)
                .unwrap_or_default();
            listener.set_nonblocking(true)?;
            let file = SocketFile { path, made: None };
            sockets.push(Listener::Unix(file, UnixListener::from_std(listener)?));
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

/// Binds a Unix socket with the configured owner and mode. Replaces the socket file of a dead
/// daemon, but not a socket that a process listens on.
fn bind_unix(path: &Path, file: UnixFile) -> io::Result<(SocketFile, UnixListener)> {
    let bind = || {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        // The lock orders two daemons that start at once. The later one then sees the socket of the
        // earlier.
        let _looking = lock_folder(path)?;
        if let Ok(there) = fs::symlink_metadata(path) {
            if !there.file_type().is_socket() {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "the path exists and is not a socket",
                ));
            }
            match is_served(path)? {
                true => {
                    return Err(io::Error::new(
                        io::ErrorKind::AddrInUse,
                        "another daemon answers there",
                    ));
                }
                false => fs::remove_file(path)?,
            }
        }
        // No client may connect before the file has its owner and mode.
        let others = umask(Mode::from_raw_mode(0o777));
        let listener = UnixListener::bind(path);
        umask(others);
        let listener = listener?;
        // From here on, an error drops this value and so removes the file.
        let made = SocketFile {
            path: path.to_owned(),
            made: Some(FileNumber::of(path)?),
        };
        if let Some((user, group)) = file.owner {
            chown(path, Some(user), Some(group))?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(file.mode))?;
        Ok((made, listener))
    };
    bind().map_err(|err| named(err, &format_args!("unix://{}", path.display())))
}

/// Returns whether a process listens on a socket's file. Does not block. A socket whose backlog is
/// full has a listener.
fn is_served(path: &Path) -> io::Result<bool> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) | Err(Errno::AGAIN | Errno::INPROGRESS) => Ok(true),
        Err(Errno::CONNREFUSED) => Ok(false),
        Err(err) => Err(err.into()),
    }
}

/// How long to wait for the lock of the folder.
const LOCKED: Duration = Duration::from_secs(2);

/// Locks the folder of a socket's file with flock(2). The lock is held until the returned file is
/// dropped.
fn lock_folder(path: &Path) -> io::Result<fs::File> {
    let folder = fs::File::open(path.parent().unwrap_or(Path::new("/")))?;
    let until = Instant::now() + LOCKED;
    loop {
        match flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(folder),
            Err(Errno::WOULDBLOCK) if Instant::now() < until => thread::sleep(LOCKED / 100),
            Err(Errno::WOULDBLOCK) => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    "another process holds the lock of the folder of the socket",
                ));
            }
            Err(err) => return Err(err.into()),
        }
    }
}

impl Stream for Listeners {
    type Item = Accepted;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Accepted>> {
        let this = self.get_mut();
        if let Some(pause) = &mut this.pause {
            ready!(pause.as_mut().poll(cx));
            this.pause = None;
        }
        let (before, from) = this.sockets.split_at(this.next);
        for listener in from.iter().chain(before) {
            // The next poll begins with the listener after this one, so that a flood at one
            // endpoint does not starve another.
            this.next = (this.next + 1) % this.sockets.len();
            let accepted = match listener {
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
        let own = rustix::process::geteuid().as_raw();
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
