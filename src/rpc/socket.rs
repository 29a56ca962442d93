//! The socket under one HTTP/2 connection: what HTTP/2 writes and flushes piece by piece leaves in one system call.

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
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use super::lookout::Lookout;
use crate::unix::Unix;

/// A connected socket, and what waits to leave by it.
///
/// HTTP/2 flushes after each frame, though the calls that came in one read are answered one right after the other. So what
/// it writes is kept until its turn is over, which [`Turn::end`] tells: what came together goes out together.
/// Who has no turns, as a TLS handshake has none, needs it prompt.
pub(super) struct Socket(Arc<Mutex<Wire>>);

/// The turns of the HTTP/2 connection over one [`Socket`]. One task has both: nobody waits for the lock.
pub(super) struct Turn {
    wire: Arc<Mutex<Wire>>,
    /// That of the thread.
    lookout: Arc<Lookout>,
}

struct Wire {
    stream: Stream,
    writes: Writes,
    kept: Vec<u8>,
    /// Something was read since it was last asked.
    heard: bool,
    /// Bytes that were read in this turn.
    read: usize,
    /// Since the peer takes nothing.
    stalled: Option<Pin<Box<Sleep>>>,
}

/// How long a peer may take nothing of what is written.
const STALLED_MAX: Duration = Duration::from_secs(30);

enum Stream {
    Tcp(TcpStream),
    Unix(Unix),
}

#[derive(PartialEq)]
enum Writes {
    /// Small ones are kept until the turn is over.
    Gathered,
    /// What is written leaves.
    Prompt,
}

/// A write below this is kept until the turn is over.
const KEPT: usize = 2048;
/// About so many bytes are read in one turn: some thousand of the shortest frames.
const TURN: usize = 32 << 10;
/// Most of what is kept.
const ROOM: usize = 32 << 10;

impl Socket {
    /// Over TCP. The stream does not block.
    ///
    /// # Errors
    /// The runtime does not take it.
    pub(super) fn tcp(stream: std::net::TcpStream) -> io::Result<Self> {
        Ok(Self::over(Stream::Tcp(TcpStream::from_std(stream)?)))
    }

    /// Over a Unix socket. The stream does not block.
    ///
    /// # Errors
    /// The runtime does not take it.
    pub(super) fn unix(stream: StdUnixStream) -> io::Result<Self> {
        Ok(Self::over(Stream::Unix(Unix::new(stream)?)))
    }

    fn over(stream: Stream) -> Self {
        let wire =
            Wire { stream, writes: Writes::Gathered, kept: Vec::new(), heard: false, read: 0, stalled: None };
        Self(Arc::new(Mutex::new(wire)))
    }

    /// Who tells when a turn is over.
    pub(super) fn turn(&self, lookout: Arc<Lookout>) -> Turn {
        Turn { wire: Arc::clone(&self.0), lookout }
    }

    /// Keeps nothing from now on, until it gathers.
    pub(super) fn prompt(&mut self) {
        self.0.lock().writes = Writes::Prompt;
    }

    /// Gathers from now on what HTTP/2 writes, as it does from the beginning.
    pub(super) fn gather(&mut self) {
        self.0.lock().writes = Writes::Gathered;
    }

    /// Waits until the peer has sent something, or has ended.
    ///
    /// # Errors
    /// Those of the socket.
    pub(super) async fn readable(&self) -> io::Result<()> {
        poll_fn(|cx| match &self.0.lock().stream {
            Stream::Tcp(tcp) => tcp.poll_read_ready(cx),
            Stream::Unix(unix) => unix.poll_readable(cx),
        })
        .await
    }
}

impl Turn {
    /// Whether the peer sent anything since this was last asked.
    pub(super) fn heard(&self) -> bool {
        std::mem::take(&mut self.wire.lock().heard)
    }

    /// Writes what was kept. Where the peer does not take it all, the rest goes with a later turn, and the task is woken
    /// for it.
    ///
    /// # Errors
    /// Those of the socket; the peer takes nothing for too long.
    pub(super) fn end(&self, cx: &mut Context<'_>) -> io::Result<()> {
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
    /// Writes what is kept, and some of `more` behind it. Tells how much of that.
    fn write(&mut self, cx: &mut Context<'_>, more: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let bufs = [IoSlice::new(&self.kept), IoSlice::new(more)];
            let written = match &mut self.stream {
                Stream::Tcp(tcp) => Pin::new(tcp).poll_write_vectored(cx, &bufs),
                Stream::Unix(unix) => Pin::new(unix).poll_write_vectored(cx, &bufs),
            };
            let Poll::Ready(written) = written else {
                let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(STALLED_MAX)));
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

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.0.lock();
        if wire.writes == Writes::Gathered && wire.read >= TURN {
            // The rest is read in the next turn, behind those of other connections.
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

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut wire = self.0.lock();
        if wire.writes == Writes::Gathered && buf.len() < KEPT && wire.kept.len() + buf.len() <= ROOM {
            wire.kept.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        wire.write(cx, buf)
    }

    /// Nothing is done for it: the turn ends soon.
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
