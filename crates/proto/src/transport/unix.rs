//! A Unix stream for tokio that registers for writability only after a write would block.
//!
//! tokio's own stream registers for both directions. On a Unix socket a reader then wakes the
//! writer at the other end, because there is room again. The reader pays for this before it handles
//! what it has read. For a request and its response this costs as much as everything else together.

use std::{
    io::{self, IoSlice, Read, Write},
    net::Shutdown,
    os::unix::net::UnixStream,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// A connected Unix stream.
pub struct Unix {
    stream: AsyncFd<UnixStream>,
    /// A second registration of the same socket, for writability. Made when a write would block for
    /// the first time, and kept.
    full: Option<AsyncFd<UnixStream>>,
    /// The number of bytes that the next read asks for.
    room: usize,
}

/// The smallest read. The buffer is zeroed before it is read into, and most messages are short.
const ROOM_MIN: usize = 1 << 10;

impl Unix {
    /// Registers a non-blocking stream with the runtime.
    ///
    /// # Errors
    /// Fails if the runtime cannot register it.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        Ok(Self {
            stream: watch(stream, Interest::READABLE)?,
            full: None,
            room: ROOM_MIN,
        })
    }

    /// Becomes ready when the peer has sent data or closed its side.
    ///
    /// # Errors
    /// Errors of the runtime.
    pub fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_read_ready(cx).map_ok(|_| ())
    }
}

impl AsyncRead for Unix {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            let mut ready = ready!(this.stream.poll_read_ready(cx))?;
            let room = buf.initialize_unfilled_to(this.room.min(buf.remaining()));
            let Ok(read) = ready.try_io(|stream| stream.get_ref().read(room)) else {
                continue;
            };
            let read = read?;
            // A read that does not fill the buffer has emptied the socket. Clearing the readiness
            // spares the next read a call that would block.
            if (1..room.len()).contains(&read) {
                ready.clear_ready();
            }
            // After a full buffer more data may wait. The next message is probably about as long as
            // this one.
            this.room = if read == room.len() {
                8 * room.len()
            } else {
                2 * read
            }
            .max(ROOM_MIN);
            buf.advance(read);
            return Poll::Ready(Ok(()));
        }
    }
}

impl AsyncWrite for Unix {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
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
            let waits = full
                .poll_write_ready(cx)
                .map_ok(|mut ready| ready.clear_ready());
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
    reason = "its replacement is unsafe, to allow for types that change their descriptor; UnixStream does not"
)]
fn watch(stream: UnixStream, interest: Interest) -> io::Result<AsyncFd<UnixStream>> {
    AsyncFd::with_interest(stream, interest)
}
