//! An established connection, which sends reports to the daemon.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::server;

use super::{
    Options, Rewind, fatal_alert,
    handshake_store::{HandshakeStore, NewSession},
};
use crate::{Connection, PeerIdentity, Put, Version};

/// A server's connection. How it ends decides whether the sessions that it made or resumed stay in
/// the cache:
///
/// * `shutdown` completed: the close_notify was written, and the sessions stay.
/// * A fatal alert was received, or an error made rustls send one: the sessions are removed.
/// * The stream failed, or ended without a close_notify: the sessions are removed, because an
///   attacker may have truncated the data (RFC 8446 section 6.1). A later `shutdown` does not
///   restore them.
/// * The connection was dropped without any of these: the sessions are removed.
///
/// An alert from the peer and the end of the stream are noticed only when the connection is read.
pub struct TlsStream<IO> {
    tls: server::TlsStream<Rewind<IO>>,
    /// `None`: the connection failed, and the daemon knows.
    connection: Option<Connection>,
    resumption: Arc<HandshakeStore>,
    agreed: Agreed,
    options: Arc<Options>,
}

/// The negotiated parameters, which are stored with every session of the connection.
pub(super) struct Agreed {
    pub(super) version: Version,
    pub(super) cipher_suite: &'static str,
    pub(super) server_name: String,
    pub(super) resumed: bool,
    pub(super) authenticate_time: Option<SystemTime>,
    /// The longest lifetime of a session. Zero: none is stored.
    pub(super) timeout: Option<Duration>,
    pub(super) peer: Option<PeerIdentity>,
}

impl<IO> TlsStream<IO> {
    pub(super) fn new(
        tls: server::TlsStream<Rewind<IO>>,
        connection: Connection,
        resumption: Arc<HandshakeStore>,
        agreed: Agreed,
        options: Arc<Options>,
    ) -> Self {
        let this = Self {
            tls,
            connection: Some(connection),
            resumption,
            agreed,
            options,
        };
        this.put();
        this
    }

    /// Returns whether the handshake resumed a session.
    pub fn resumed(&self) -> bool {
        self.agreed.resumed
    }

    /// Returns the IANA name of the cipher suite.
    pub fn cipher_suite(&self) -> &'static str {
        self.agreed.cipher_suite
    }

    /// Returns the negotiated version.
    pub fn version(&self) -> Version {
        self.agreed.version
    }

    /// Returns the client's certificate, if it has shown one.
    pub fn peer(&self) -> Option<&PeerIdentity> {
        self.agreed.peer.as_ref()
    }

    /// Returns the stream of tokio-rustls, with the socket and the negotiated parameters.
    pub fn get_ref(&self) -> &server::TlsStream<Rewind<IO>> {
        &self.tls
    }

    /// Puts the sessions that were made since the last call. rustls may make a TLS 1.3 ticket at
    /// any time.
    fn put(&self) {
        let Some(connection) = &self.connection else {
            return;
        };
        let made = self.resumption.take_made();
        // The daemon refuses a lifetime of zero: the certificate of the client has expired.
        let is_expired = self.agreed.timeout.is_some_and(|timeout| timeout.is_zero());
        for NewSession { id, mut data } in made.into_iter().filter(|_| !is_expired) {
            connection.put(Put {
                session_id: id,
                timeout: self.agreed.timeout,
                cipher_suite: self.agreed.cipher_suite.to_owned(),
                server_name: self.agreed.server_name.clone(),
                binding: self.options.binding.clone(),
                peer: self.agreed.peer.clone(),
                authenticate_time: self.agreed.authenticate_time,
                ..Put::new(self.agreed.version, std::mem::take(&mut *data))
            });
        }
    }

    /// Reports an error. The connection ends unclosed, unless this side has sent its close_notify
    /// before.
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
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let polled = Pin::new(&mut this.tls).poll_read(cx, buf);
        this.put();
        this.settle(polled)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for TlsStream<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
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
