//! Sockets: TCP on loopback and Unix sockets, and a guard around each that ends it when it must.
//!
//! hyper waits for every connection before it stops, also for one that never said a word (hyper issue 4170). So the guard
//! ends a connection that stays mute for [`FIRST_BYTE`], one that is mute when the daemon begins to stop, and
//! every connection once the drain time-out is over.

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
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    time::{Sleep, sleep},
};
use tokio_stream::Stream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use crate::config::Endpoint;

/// How long a connection may be open before it sends its first byte.
const FIRST_BYTE: Duration = Duration::from_secs(20);
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
struct Counted(Arc<AtomicUsize>);

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
}

enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

type Signal = Pin<Box<WaitForCancellationFutureOwned>>;

/// A socket that ends when it must.
pub struct Guarded {
    socket: Socket,
    peer: Peer,
    kill: Signal,
    mute: Option<Mute>,
    answers: Answers,
    _counted: Option<Counted>,
}

/// Answers on their way out. HTTP/2 writes and flushes those of each call by themselves, though the calls that came in one
/// read are answered one right after the other. So a flush asks to be polled again behind the tasks that are ready
/// now, and what they add goes out with it in one system call.
#[derive(Default)]
struct Answers {
    kept: Vec<u8>,
    flush: Flush,
}

#[derive(Default, PartialEq)]
enum Flush {
    /// Nobody waits for what is kept.
    #[default]
    Unasked,
    /// HTTP/2 flushed in this turn. It is told that this is done, so that it adds the frames that it has yet.
    Asked,
    /// The turn is over: what is kept goes out.
    Due,
}

impl Answers {
    /// A write below this is kept until the flush.
    const KEPT: usize = 4096;
    /// Most of what is kept.
    const ROOM: usize = 32 << 10;
}

/// Nothing has come yet.
struct Mute {
    until: Pin<Box<Sleep>>,
    draining: Signal,
}

impl Guarded {
    /// Takes a socket over into this thread's runtime.
    pub(super) fn adopt(accepted: Accepted, signals: &Signals) -> io::Result<Self> {
        let socket = match accepted.socket {
            Waiting::Tcp(tcp) => Socket::Tcp(TcpStream::from_std(tcp)?),
            Waiting::Unix(unix) => Socket::Unix(UnixStream::from_std(unix)?),
        };
        Ok(Self {
            socket,
            peer: accepted.peer,
            _counted: accepted.counted,
            kill: Box::pin(signals.kill.clone().cancelled_owned()),
            mute: Some(Mute {
                until: Box::pin(sleep(FIRST_BYTE)),
                draining: Box::pin(signals.draining.clone().cancelled_owned()),
            }),
            answers: Answers::default(),
        })
    }

    /// Asked where either direction waits, for a blocked socket may be waited for in that one alone.
    fn killed(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        match self.kill.as_mut().poll(cx) {
            Poll::Ready(()) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the daemon stops")),
            Poll::Pending => Ok(()),
        }
    }

    fn ends(&mut self, cx: &mut Context<'_>) -> Option<io::Error> {
        if let Err(stopped) = self.killed(cx) {
            return Some(stopped);
        }
        let mute = self.mute.as_mut()?;
        if mute.draining.as_mut().poll(cx).is_ready() || mute.until.as_mut().poll(cx).is_ready() {
            return Some(io::Error::new(io::ErrorKind::TimedOut, "the peer never sent a byte"));
        }
        None
    }
}

impl Connected for Guarded {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(end) = this.ends(cx) {
            return Poll::Ready(Err(end));
        }
        // HTTP/2 reads at the beginning of each turn.
        if this.answers.flush == Flush::Asked {
            this.answers.flush = Flush::Due;
        }
        let before = buf.filled().len();
        let read = match &mut this.socket {
            Socket::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Socket::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
        };
        if buf.filled().len() > before {
            this.mute = None;
        }
        read
    }
}

impl Socket {
    fn poll_write(&mut self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        match self {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, bufs),
        }
    }
}

impl Guarded {
    /// Writes what was kept back, and some of `more` behind it. Tells how much of that.
    fn write(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let kept = &mut self.answers.kept;
            let bufs = [io::IoSlice::new(kept), io::IoSlice::new(more)];
            let Poll::Ready(written) = self.socket.poll_write(cx, &bufs) else {
                self.killed(cx)?;
                return Poll::Pending;
            };
            let written = written?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_kept = written.min(kept.len());
            kept.drain(..of_kept);
            if kept.is_empty() {
                self.answers.flush = Flush::Unasked;
            }
            if self.answers.kept.is_empty() && (written > of_kept || more.is_empty()) {
                return Poll::Ready(Ok(written - of_kept));
            }
        }
    }

    fn write_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.answers.kept.is_empty() {
            true => Poll::Ready(Ok(())),
            false => self.write(cx, &[]).map_ok(|_| ()),
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let kept = &mut this.answers.kept;
        if buf.len() < Answers::KEPT && kept.len() + buf.len() <= Answers::ROOM {
            kept.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        this.write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.answers.kept.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match this.answers.flush {
            Flush::Unasked => {
                this.answers.flush = Flush::Asked;
                cx.waker().wake_by_ref();
                Poll::Ready(Ok(()))
            }
            Flush::Asked => Poll::Ready(Ok(())),
            Flush::Due => this.write_kept(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.write_kept(cx))?;
        match &mut this.socket {
            Socket::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Socket::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
        }
    }
}
