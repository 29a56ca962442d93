//! The plaintext of one connection, as an `AsyncRead` and `AsyncWrite`.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tls_sessiond_proto as pb;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    carrier::Carrier,
    wakers::{Direction, TaskWakers},
};
use crate::{PeerIdentity, Version};

/// A client's connection whose TLS runs in the daemon. How it ends decides whether the sessions
/// that it made or resumed stay in the daemon's cache:
///
/// * `shutdown` completed: the close_notify was written, and the sessions stay.
/// * A fatal alert was received or sent: the sessions are removed.
/// * The socket failed, or ended without a close_notify of the peer: the sessions are removed,
///   because an attacker may have truncated the data (RFC 8446 section 6.1).
/// * The stream was dropped without any of these, or its process has died: the sessions are
///   removed.
///
/// Bytes move only while the stream is polled, for either direction. A read returns the end after
/// the peer's close_notify; what is left to write still goes out then. A flush completes when the
/// records of all plaintext are written to the socket. A TLS 1.3 server sends its tickets after the
/// handshake, so a program reads up to the end if it wants all of them.
///
/// Its errors have an [`EngineError`](super::EngineError) as their inner error. Before an error that
/// this side tells the peer, the alert is written to the socket.
pub struct EngineStream<IO> {
    carrier: Carrier<IO>,
    wakers: Arc<TaskWakers>,
    /// The waker of both tasks.
    waker: Waker,
    agreed: pb::Connection,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> EngineStream<IO> {
    pub(super) fn new(carrier: Carrier<IO>) -> Self {
        let wakers = Arc::new(TaskWakers::default());
        Self {
            agreed: carrier.drive().established().cloned().unwrap_or_default(),
            carrier,
            waker: Waker::from(Arc::clone(&wakers)),
            wakers,
        }
    }

    /// Returns whether the handshake resumed a session.
    pub fn resumed(&self) -> bool {
        self.agreed.session_reused
    }

    /// Returns the negotiated version.
    pub fn version(&self) -> Version {
        match self.agreed.version() {
            pb::ProtocolVersion::Tls12 => Version::Tls12,
            // An established connection has a version, and the daemon speaks only these two.
            pb::ProtocolVersion::Tls13 | pb::ProtocolVersion::Unspecified => Version::Tls13,
        }
    }

    /// Returns the IANA name of the cipher suite.
    pub fn cipher_suite(&self) -> &str {
        &self.agreed.cipher_suite
    }

    /// Returns the agreed application protocol (ALPN), or an empty string. The daemon's context has
    /// the protocols that are offered.
    pub fn alpn(&self) -> &str {
        &self.agreed.alpn
    }

    /// Returns the identity in the server's certificate. After a resumption it is that of the full
    /// handshake.
    pub fn peer(&self) -> Option<&PeerIdentity> {
        self.agreed.peer.as_ref()
    }

    /// Returns the id of the connection in the daemon: 32 hex digits, as logs and lists have it.
    pub fn connection_id(&self) -> &str {
        &self.agreed.id
    }

    /// Returns the socket.
    pub fn get_ref(&self) -> &IO {
        self.carrier.socket()
    }

    /// Polls the carrier for one direction. The task of the other direction is woken if something
    /// was moved, because it may be able to go on.
    fn poll_by<T, E: Into<io::Error>>(
        &mut self,
        direction: Direction,
        cx: &mut Context<'_>,
        poll: impl FnOnce(&mut Carrier<IO>, &mut Context<'_>) -> Poll<Result<T, E>>,
    ) -> Poll<io::Result<T>> {
        self.wakers.register(direction, cx.waker());
        let before = self.carrier.moves;
        let polled = poll(&mut self.carrier, &mut Context::from_waker(&self.waker));
        if self.carrier.moves != before {
            self.wakers.wake_other(direction);
        }
        if polled.is_ready() {
            self.wakers.clear(direction);
        }
        polled.map_err(Into::into)
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for EngineStream<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.get_mut().poll_by(Direction::Read, cx, |carrier, cx| {
            carrier.poll_read(cx, buf)
        })
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for EngineStream<IO> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_by(Direction::Write, cx, |carrier, cx| {
            carrier.poll_write(cx, data)
        })
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut()
            .poll_by(Direction::Write, cx, Carrier::poll_flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut()
            .poll_by(Direction::Write, cx, Carrier::poll_shutdown)
    }
}
