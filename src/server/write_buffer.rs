//! The buffered socket under one HTTP/2 connection. Small writes of HTTP/2 leave in one system
//! call, although HTTP/2 flushes after each of them.

use std::{
    future::{Future, poll_fn},
    io::{self, IoSlice},
    os::unix::net::UnixStream as StdUnixStream,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use parking_lot::Mutex;
use tls_sessiond_proto::transport::Unix;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::busy_poll::BusyPoll;

/// A connected socket with a write buffer.
///
/// h2 flushes after each frame, although calls that arrived in one read are answered right after
/// each other. So the socket buffers small writes until the turn of the connection ends, and
/// [`FlushHandle::end`] writes the buffer. Requests that arrived together are then answered together. A
/// TLS handshake has no turns. It needs the unbuffered mode, which [`Self::set_unbuffered`] sets.
pub(crate) struct BufferedSocket(Arc<Mutex<Wire>>);

/// The flush handle of one [`BufferedSocket`]. A turn is one poll of the HTTP/2 connection. The same task
/// holds the socket and this handle, so the lock is never contended.
pub(crate) struct FlushHandle {
    wire: Arc<Mutex<Wire>>,
    /// The busy polling of the server thread.
    lookout: Arc<BusyPoll>,
}

struct Wire {
    stream: Stream,
    writes: Writes,
    kept: Vec<u8>,
    /// Whether a read returned since [`FlushHandle::heard`] was last called.
    heard: bool,
    /// Bytes read in this turn.
    read: usize,
    /// The timer of [`STALLED_MAX`], while the peer accepts no bytes.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// How long a peer may accept no bytes of a write.
const STALLED_MAX: Duration = Duration::from_secs(30);

enum Stream {
    Tcp(TcpStream),
    Unix(Unix),
}

#[derive(PartialEq)]
enum Writes {
    /// Small writes are buffered until the turn ends.
    Gathered,
    /// Every write goes to the system.
    Prompt,
}

/// A write shorter than this is buffered until the turn ends, in bytes.
const KEPT: usize = 2048;
/// Bytes after which a turn reads no further: some thousand of the shortest frames.
const TURN: usize = 32 << 10;
/// Capacity of the write buffer, in bytes.
const ROOM: usize = 32 << 10;

impl BufferedSocket {
    /// Creates a socket over TCP. The stream must be non-blocking.
    ///
    /// # Errors
    /// The runtime cannot register the stream.
    pub(crate) fn tcp(stream: std::net::TcpStream) -> io::Result<Self> {
        Ok(Self::over(Stream::Tcp(TcpStream::from_std(stream)?)))
    }

    /// Creates a socket over a Unix stream. The stream must be non-blocking.
    ///
    /// # Errors
    /// The runtime cannot register the stream.
    pub(crate) fn unix(stream: StdUnixStream) -> io::Result<Self> {
        Ok(Self::over(Stream::Unix(Unix::new(stream)?)))
    }

    fn over(stream: Stream) -> Self {
        let wire = Wire {
            stream,
            writes: Writes::Gathered,
            kept: Vec::new(),
            heard: false,
            read: 0,
            stalled: None,
        };
        Self(Arc::new(Mutex::new(wire)))
    }

    /// Returns the handle that ends turns.
    pub(crate) fn turn(&self, lookout: Arc<BusyPoll>) -> FlushHandle {
        FlushHandle {
            wire: Arc::clone(&self.0),
            lookout,
        }
    }

    /// Sets the unbuffered mode: every write goes to the system, until [`Self::set_buffered`].
    pub(crate) fn set_unbuffered(&mut self) {
        self.0.lock().writes = Writes::Prompt;
    }

    /// Sets the buffered mode, which is also the initial one.
    pub(crate) fn set_buffered(&mut self) {
        self.0.lock().writes = Writes::Gathered;
    }

    /// Waits until the peer has sent data or closed the connection.
    ///
    /// # Errors
    /// An error of the socket.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        poll_fn(|cx| match &self.0.lock().stream {
            Stream::Tcp(tcp) => tcp.poll_read_ready(cx),
            Stream::Unix(unix) => unix.poll_readable(cx),
        })
        .await
    }
}

impl FlushHandle {
    /// Returns whether a read of the socket returned since the last call of this.
    pub(crate) fn heard(&self) -> bool {
        std::mem::take(&mut self.wire.lock().heard)
    }

    /// Ends a turn: writes the buffer. If the peer does not accept all of it, the task is woken
    /// later and a later turn writes the rest.
    ///
    /// # Errors
    /// An error of the socket, or `TimedOut` if the peer has accepted nothing for [`STALLED_MAX`].
    pub(crate) fn end(&self, cx: &mut Context<'_>) -> io::Result<()> {
        self.lookout.turned();
        let mut wire = self.wire.lock();
        wire.read = 0;
        match wire.write_kept(cx) {
            Poll::Ready(Err(err)) => Err(err),
            _ => Ok(()),
        }
    }
}

impl Wire {
    /// Writes the buffer, and then bytes of `more`. Returns how many bytes of `more` were written.
    fn write(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let bufs = [IoSlice::new(&self.kept), IoSlice::new(more)];
            let written = match &mut self.stream {
                Stream::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, &bufs),
                Stream::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, &bufs),
            };
            let Poll::Ready(written) = written else {
                let stalled = self
                    .stalled
                    .get_or_insert_with(|| Box::pin(sleep(STALLED_MAX)));
                ready!(stalled.as_mut().poll(cx));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            };
            let written = written?;
            self.stalled = None;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            let of_kept = written.min(self.kept.len());
            self.kept.drain(..of_kept);
            if self.kept.is_empty() && (written > of_kept || more.is_empty()) {
                return Poll::Ready(Ok(written - of_kept));
            }
        }
    }

    fn write_kept(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.kept.is_empty() {
            true => Poll::Ready(Ok(())),
            false => self.write(cx, &[]).map_ok(|_| ()),
        }
    }
}

impl AsyncRead for BufferedSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut wire = self.0.lock();
        if wire.writes == Writes::Gathered && wire.read >= TURN {
            // The rest is read in the next turn, after other connections of the thread had theirs.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = match &mut wire.stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
        };
        wire.heard |= read.is_ready();
        wire.read += buf.filled().len() - before;
        read
    }
}

impl AsyncWrite for BufferedSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut wire = self.0.lock();
        if wire.writes == Writes::Gathered
            && buf.len() < KEPT
            && wire.kept.len() + buf.len() <= ROOM
        {
            wire.kept.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        wire.write(cx, buf)
    }

    /// Does nothing, because the end of the turn writes the buffer.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.lock();
        ready!(wire.write_kept(cx))?;
        match &mut wire.stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
        }
    }
}
