//! An established connection, which tells the daemon of itself.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server;

use super::{
    Options, Replay, fatal_alert,
    resumption::{Made, Resumption},
};
use crate::client::{Connection, PeerIdentity, Put, Version};

/// A server's connection. How it ends decides about the sessions that it made or resumed:
///
/// * `shutdown` has completed: its close_notify is written, and they stay.
/// * A fatal alert came, or an error made rustls send one: they leave the cache. So they do when the stream fails or
///   ends without a close_notify, for then somebody may have cut it (RFC 8446 section 6.1); a `shutdown` after that
///   brings none back. Both show when it is read.
/// * It is dropped without any of this: they leave the cache.
pub struct TlsStream<IO> {
    tls: server::TlsStream<Replay<IO>>,
    /// None: it has failed, and the daemon knows.
    connection: Option<Connection>,
    resumption: Arc<Resumption>,
    agreed: Agreed,
    options: Arc<Options>,
}

/// What the peers agreed on, which goes with every session that they make.
pub(super) struct Agreed {
    pub(super) version: Version,
    pub(super) cipher_suite: &'static str,
    pub(super) server_name: String,
    pub(super) resumed: bool,
    pub(super) authenticate_time: Option<SystemTime>,
    pub(super) peer: Option<PeerIdentity>,
}

impl<IO> TlsStream<IO> {
    pub(super) fn new(
        tls: server::TlsStream<Replay<IO>>,
        connection: Connection,
        resumption: Arc<Resumption>,
        agreed: Agreed,
        options: Arc<Options>,
    ) -> Self {
        let this = Self { tls, connection: Some(connection), resumption, agreed, options };
        this.put();
        this
    }

    /// Whether the handshake resumed a session.
    pub fn resumed(&self) -> bool {
        self.agreed.resumed
    }

    /// IANA name of the cipher suite.
    pub fn cipher_suite(&self) -> &'static str {
        self.agreed.cipher_suite
    }

    /// The stream of tokio-rustls: the socket below, and what the peers agreed on.
    pub fn get_ref(&self) -> &server::TlsStream<Replay<IO>> {
        &self.tls
    }

    /// Tells of the sessions that were made. A TLS 1.3 ticket may come at any time.
    fn put(&self) {
        let Some(connection) = &self.connection else { return };
        for Made { id, mut data } in self.resumption.take_made() {
            connection.put(Put {
                session_id: id,
                timeout: self.options.timeout,
                cipher_suite: self.agreed.cipher_suite.to_owned(),
                server_name: self.agreed.server_name.clone(),
                binding: self.options.binding.clone(),
                peer: self.agreed.peer.clone(),
                authenticate_time: self.agreed.authenticate_time,
                ..Put::new(self.agreed.version, std::mem::take(&mut *data))
            });
        }
    }

    /// Tells of an error. What it ends is open, unless this side has closed before.
    fn settle<T>(&mut self, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(err)) = &polled
            && let Some(connection) = self.connection.take()
            && let Some(alert) = fatal_alert(err)
        {
            connection.alert(alert.code, alert.received);
        }
        polled
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for TlsStream<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.tls).poll_read(cx, buf);
        this.put();
        this.settle(polled)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.tls).poll_write(cx, bytes);
        this.settle(polled)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.tls).poll_write_vectored(cx, bytes);
        this.settle(polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.tls).poll_flush(cx);
        this.settle(polled)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.tls).poll_shutdown(cx);
        if let (Poll::Ready(Ok(())), Some(connection)) = (&polled, &this.connection) {
            connection.shutdown();
        }
        this.settle(polled)
    }
}
