//! The first bytes of an HTTP/2 connection. h2 waits for them without a time limit, and a stop
//! waits for every connection. So the daemon reads them before, with a time limit.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

/// The connection preface of a client (RFC 9113 section 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A connection whose first bytes were read ahead. A read returns these bytes first.
pub(crate) struct Greeted<I> {
    io: I,
    first: [u8; PREFACE.len()],
    /// The range of `first` that has not been returned yet.
    from: usize,
    to: usize,
}

/// Waits for the preface, or for the first bytes that differ from it. HTTP/2 then fails on those.
///
/// # Errors
/// An error of the socket, or its end before the first byte.
pub(crate) async fn preface<I: AsyncRead + Unpin>(io: I) -> io::Result<Greeted<I>> {
    let mut greeted = Greeted {
        io,
        first: [0; PREFACE.len()],
        from: 0,
        to: 0,
    };
    while greeted.to < PREFACE.len() && greeted.first[..greeted.to] == PREFACE[..greeted.to] {
        match greeted.io.read(&mut greeted.first[greeted.to..]).await? {
            0 if greeted.to == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            0 => break,
            read => greeted.to += read,
        }
    }
    Ok(greeted)
}

impl<I> Greeted<I> {
    /// Returns whether the peer speaks HTTP/1. Its first bytes are then an HTTP method (RFC 9110
    /// section 9.1).
    pub(crate) fn speaks_http1(&self) -> bool {
        let first = &self.first[..self.to];
        [
            &b"GET "[..],
            b"HEAD ",
            b"POST ",
            b"PUT ",
            b"DELETE ",
            b"OPTIONS ",
            b"PATCH ",
        ]
        .iter()
        .any(|method| first.starts_with(method))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Greeted<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.from == this.to {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let piece = (this.to - this.from).min(buf.remaining());
        buf.put_slice(&this.first[this.from..this.from + piece]);
        this.from += piece;
        Poll::Ready(Ok(()))
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Greeted<I> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;

    use tokio::io::{AsyncWriteExt, duplex};

    use super::*;

    async fn read_through(written: &[u8]) -> Vec<u8> {
        let (mut peer, io) = duplex(1024);
        peer.write_all(written).await.unwrap();
        drop(peer);
        let mut greeted = preface(io).await.unwrap();
        let mut read = Vec::new();
        greeted.read_to_end(&mut read).await.unwrap();
        read
    }

    #[tokio::test]
    async fn bytes_that_were_read_ahead_are_read_once_more() {
        for written in [
            &b"P"[..],
            &PREFACE[..],
            b"GET / HTTP/1.1\r\n\r\n",
            &[&PREFACE[..], b"and more"].concat(),
        ] {
            assert_eq!(read_through(written).await, written);
        }
        let (peer, io) = duplex(1024);
        drop(peer);
        assert!(preface(io).await.is_err(), "the peer sent no byte");
    }

    #[tokio::test]
    async fn http1_is_known_by_its_method() {
        for (first, is) in [
            (&b"GET / HTTP/1.1\r\n"[..], true),
            (b"POST /x", true),
            (PREFACE, false),
            (b"GETS", false),
        ] {
            let (mut peer, io) = duplex(1024);
            peer.write_all(first).await.unwrap();
            drop(peer);
            assert_eq!(preface(io).await.unwrap().speaks_http1(), is);
        }
    }

    #[tokio::test]
    async fn preface_that_is_not_whole_is_waited_for() {
        let (mut peer, io) = duplex(1024);
        peer.write_all(&PREFACE[..23]).await.unwrap();
        let mut waiting = Box::pin(preface(io));
        let polled =
            std::future::poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await;
        assert!(polled);
        peer.write_all(&PREFACE[23..]).await.unwrap();
        assert!(waiting.await.is_ok());
    }
}
