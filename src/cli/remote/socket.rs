//! A socket to a daemon that remembers why it ended.
//!
//! In TLS 1.3 a daemon refuses a certificate with an alert after the handshake of the client. By
//! then the channel owns the socket, and reports only that it is not connected.

use std::{
    io,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream of bytes to a daemon, with or without TLS.
pub(super) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for S {}

/// Why a socket ended. Empty while it is open.
#[derive(Clone, Debug, Default)]
pub(super) struct EndCause(Arc<OnceLock<String>>);

impl EndCause {
    /// Returns the cause as an error of a connection that is gone.
    pub(super) fn error(&self) -> io::Error {
        match self.0.get() {
            Some(cause) => io::Error::other(cause.clone()),
            None => io::ErrorKind::NotConnected.into(),
        }
    }

    /// Only the first cause counts.
    fn set(&self, cause: impl FnOnce() -> String) {
        self.0.get_or_init(cause);
    }
}

/// A socket whose end is recorded.
pub(super) struct RecordedSocket {
    stream: Box<dyn ByteStream>,
    end: EndCause,
}

impl RecordedSocket {
    pub(super) fn new(stream: Box<dyn ByteStream>, end: EndCause) -> Self {
        Self { stream, end }
    }
}

impl RecordedSocket {
    /// Records why a write failed. A daemon that refuses the caller sends an alert before it
    /// closes the socket, so the rest of the stream is read first: an alert in it is the cause.
    fn recorded<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let Poll::Ready(Err(err)) = &written else {
            return written;
        };
        let mut bytes = [0; 1024];
        loop {
            let mut rest = ReadBuf::new(&mut bytes);
            // A socket that cannot be written becomes readable: its end is read.
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut rest)) {
                Ok(()) if !rest.filled().is_empty() => {}
                Ok(()) => {
                    self.end.set(|| err.to_string());
                    return written;
                }
                Err(alert) => {
                    self.end.set(|| alert.to_string());
                    return written;
                }
            }
        }
    }
}

impl AsyncRead for RecordedSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        match &read {
            Poll::Ready(Err(err)) => self.end.set(|| err.to_string()),
            Poll::Ready(Ok(())) if buf.filled().len() == before => {
                self.end.set(|| "the daemon closed the connection".into());
            }
            _ => {}
        }
        read
    }
}

impl AsyncWrite for RecordedSocket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.recorded(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.recorded(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
