//! A Unix socket for tokio that wakes nobody for nothing.
//!
//! tokio asks for both directions of its own. With a Unix socket that means: who reads wakes who wrote, for there is room
//! again, and pays for it before it looks at what it has read; on a question and its answer that is as much as everything
//! else. This one asks for room only when a write found none.

use std::{
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// A connected Unix socket.
pub(crate) struct Unix {
    stream: AsyncFd<UnixStream>,
    /// The same socket, while a write waits for room.
    full: Option<AsyncFd<UnixStream>>,
    /// How much room the next read is given.
    room: usize,
}

/// The least room of a read. Room is zeroed before it is read into, and most messages are short.
const ROOM_MIN: usize = 1 << 10;

impl Unix {
    /// Of a stream that does not block.
    ///
    /// # Errors
    /// The runtime does not take it.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self { stream: watch(stream, Interest::READABLE)?, full: None, room: ROOM_MIN })
    }

    /// Ready when the peer has sent something, or has ended.
    ///
    /// # Errors
    /// Those of the runtime.
    #[cfg(feature = "daemon")]
    pub(crate) fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_read_ready(cx).map_ok(|_| ())
    }
}

impl AsyncRead for Unix {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let mut ready = ready!(this.stream.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled_to(this.room.min(buf.remaining()));
            let Ok(read) = ready.try_io(|stream| stream.get_ref().read(room)) else { continue };
            let read = read?;
            // Less than there is room for was all there was: the next read need not find that out.
            if (1..room.len()).contains(&read) {
                ready.clear_ready();
            }
            // More may wait than there was room for; the next is about as long.
            this.room = if read == room.len() { 8 * room.len() } else { 2 * read }.max(ROOM_MIN);
            buf.advance(read);
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for Unix {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        loop {
            match this.stream.get_ref().write_vectored(bufs) {
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
            let full = match this.full.take() {
                Some(full) => full,
                None => watch(this.stream.get_ref().try_clone()?, Interest::WRITABLE)?,
            };
            let waits = full.poll_write_ready(cx).map_ok(|mut ready| ready.clear_ready());
            this.full = Some(full);
            ready!(waits)?;
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.stream.get_ref().shutdown(Shutdown::Write))
    }
}

#[expect(
    deprecated,
    reason = "what replaces it is unsafe, for a type that changes its descriptor; this one does not"
)]
fn watch(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(stream, interest)
}
