//! The socket under one HTTP/2 connection: what HTTP/2 writes and flushes piece by piece leaves in one system call.

use std::{
    future::Future,
    io::{self, IoSlice},
    os::unix::net::UnixStream as StdUnixStream,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::TcpStream,
    time::{Sleep, sleep},
};

use crate::unix::Unix;

/// A connected socket, and what waits to leave by it.
///
/// HTTP/2 flushes after the frames of each call, though the calls that came in one read are answered one right after the
/// other. So a flush asks to be polled again behind the tasks that are ready now, and what they add goes out with it.
/// Who does not ask again, as a TLS handshake does not, needs it prompt.
pub(super) struct Socket {
    stream: Stream,
    writes: Writes,
    kept: Vec<u8>,
    flush: Flush,
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
    /// Small ones are kept until the flush that ends a turn.
    Gathered,
    /// What is written leaves.
    Prompt,
}

#[derive(PartialEq)]
enum Flush {
    /// Nobody waits for what is kept.
    Unasked,
    /// HTTP/2 flushed in this turn. It is told that this is done, so that it adds the frames that it has yet.
    Asked,
    /// The turn is over: what is kept goes out.
    Due,
}

/// A write below this is kept until the flush.
const KEPT: usize = 2048;
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
        Self { stream, writes: Writes::Gathered, kept: Vec::new(), flush: Flush::Unasked, stalled: None }
    }

    /// Keeps nothing from now on, until it gathers.
    pub(super) fn prompt(&mut self) {
        self.writes = Writes::Prompt;
    }

    /// Gathers from now on what HTTP/2 writes, as it does from the beginning.
    pub(super) fn gather(&mut self) {
        self.writes = Writes::Gathered;
    }

    /// Waits until the peer has sent something, or has ended.
    ///
    /// # Errors
    /// Those of the socket.
    pub(super) async fn readable(&self) -> io::Result<()> {
        match &self.stream {
            Stream::Tcp(tcp) => tcp.ready(Interest::READABLE).await.map(|_| ()),
            Stream::Unix(unix) => unix.readable().await,
        }
    }

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
            if self.kept.is_empty() {
                self.flush = Flush::Unasked;
                if written > of_kept || more.is_empty() {
                    return Poll::Ready(Ok(written - of_kept));
                }
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
        let this = self.get_mut();
        // HTTP/2 reads at the beginning of each turn.
        if this.flush == Flush::Asked {
            this.flush = Flush::Due;
        }
        match &mut this.stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Unix(unix) => Pin::new(unix).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.writes == Writes::Gathered && buf.len() < KEPT && this.kept.len() + buf.len() <= ROOM {
            this.kept.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        this.write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.kept.is_empty() {
            return Poll::Ready(Ok(()));
        }
        match this.flush {
            Flush::Unasked => {
                this.flush = Flush::Asked;
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
        match &mut this.stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Unix(unix) => Pin::new(unix).poll_shutdown(cx),
        }
    }
}
