//! TLS over memory. The caller passes bytes and the time; the engine does no I/O, reads no clock
//! and never waits.

use std::{
    io::{BufRead, Read},
    sync::Arc,
};

use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Connection, Error, HandshakeKind,
    ServerConfig, ServerConnection, client::Resumption as ClientResumption, pki_types::ServerName,
};
use tls_sessiond_types::{Version, alert::Alert, cipher_suite::iana_name};

use crate::{
    cache::Found,
    clock::{Now, Timestamp},
    connection::handshake_store::{HandshakeStore, NewTicket},
    context::sent_alerts,
    session::SessionInfo,
};

/// Runs one handshake and the traffic after it.
pub(super) struct Engine {
    tls: Connection,
    resumption: Arc<HandshakeStore>,
}

/// The reason why no more data comes from the peer.
#[derive(Debug)]
pub(super) enum End {
    /// The peer sent a close_notify.
    CloseNotify,
    /// The peer sent a fatal alert.
    AlertReceived(Alert),
    /// The peer violated TLS.
    Violation(Violation),
}

/// A violation of TLS by the peer, and the alert that answered it.
#[derive(Debug)]
pub(super) struct Violation {
    pub(super) error: String,
    /// The AlertDescription. `None`: no encrypted alert was sent. An unencrypted alert, if any, is
    /// among the records of [`Engine::flush`].
    pub(super) alert: Option<u8>,
}

impl Violation {
    fn new(error: &Error) -> Self {
        Self {
            error: error.to_string(),
            alert: sent_alerts::take(),
        }
    }
}

impl Engine {
    /// Accepts a handshake as a server. `tickets`: how many TLS 1.3 tickets a finished handshake
    /// makes.
    pub(super) fn server(
        config: &ServerConfig,
        tickets: usize,
        resumption: Arc<HandshakeStore>,
        now: Now,
    ) -> Result<Self, Error> {
        resumption.set_now(now);
        let mut config = config.clone();
        config.session_storage = resumption.clone();
        config.ticketer = resumption.clone();
        config.time_provider = resumption.clone();
        config.send_tls13_tickets = tickets;
        let tls = ServerConnection::new(Arc::new(config))?.into();
        Ok(Self::over(tls, resumption))
    }

    /// Begins a handshake as a client. [`Self::flush`] then returns the ClientHello.
    pub(super) fn client(
        config: &ClientConfig,
        server: ServerName<'static>,
        resumption: Arc<HandshakeStore>,
        now: Now,
    ) -> Result<Self, Error> {
        resumption.set_now(now);
        let mut config = config.clone();
        config.resumption = ClientResumption::store(resumption.clone());
        config.time_provider = resumption.clone();
        let tls = ClientConnection::new(Arc::new(config), server)?.into();
        Ok(Self::over(tls, resumption))
    }

    fn over(mut tls: Connection, resumption: Arc<HandshakeStore>) -> Self {
        // Every call empties the buffers that it fills, and the size of a call is limited before.
        tls.set_buffer_limit(None);
        Self { tls, resumption }
    }

    /// Reads records from the peer and appends their application data to `plaintext`. Ignores all
    /// data after a close_notify (RFC 8446 section 6.1).
    pub(super) fn read(
        &mut self,
        mut records: &[u8],
        now: Now,
        plaintext: &mut Vec<u8>,
    ) -> Option<End> {
        self.resumption.set_now(now);
        // Discards an alert that a step of another connection has noted on this thread.
        sent_alerts::take();
        while !records.is_empty() {
            match self.tls.read_tls(&mut records as &mut dyn Read) {
                Ok(0) => break,
                Ok(_) => {}
                Err(err) => {
                    return Some(End::Violation(Violation {
                        error: err.to_string(),
                        alert: None,
                    }));
                }
            }
            let processed = self.tls.process_new_packets();
            self.drain(plaintext);
            match processed {
                Ok(state) if state.peer_has_closed() => return Some(End::CloseNotify),
                Ok(_) => {}
                // During a handshake rustls treats a close_notify as a warning alert, which TLS 1.3
                // does not have.
                Err(Error::AlertReceived(AlertDescription::CloseNotify)) => {
                    return Some(End::CloseNotify);
                }
                Err(Error::AlertReceived(description)) => {
                    return Some(End::AlertReceived(Alert {
                        code: description.into(),
                        received: true,
                    }));
                }
                Err(error) => return Some(End::Violation(Violation::new(&error))),
            }
        }
        None
    }

    fn drain(&mut self, plaintext: &mut Vec<u8>) {
        let mut reader = self.tls.reader();
        while let Ok(chunk) = reader.fill_buf() {
            if chunk.is_empty() {
                break;
            }
            plaintext.extend_from_slice(chunk);
            let length = chunk.len();
            reader.consume(length);
        }
    }

    /// Encrypts application data.
    pub(super) fn write(&mut self, plaintext: &[u8]) {
        let written = std::io::Write::write(&mut self.tls.writer(), plaintext);
        debug_assert_eq!(
            written.ok(),
            Some(plaintext.len()),
            "the buffer has no limit"
        );
    }

    /// Makes a close_notify. A second call has no effect.
    pub(super) fn close_notify(&mut self) {
        self.tls.send_close_notify();
    }

    /// Appends the records for the peer to `ciphertext`.
    pub(super) fn flush(&mut self, ciphertext: &mut Vec<u8>) {
        while self.tls.wants_write() {
            if self.tls.write_tls(ciphertext).is_err() {
                break;
            }
        }
    }

    /// Returns whether a HelloRetryRequest was sent, and no ServerHello that resumes a session.
    pub(super) fn retried(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest)
    }

    /// Passes a server the session that the ClientHello after a HelloRetryRequest offers, and
    /// limits the new tickets to the one that a resumption makes.
    pub(super) fn offer(&self, found: &Found) {
        let session = Arc::clone(&found.session);
        match found.sealed_until {
            Some(until) => self.resumption.offer_sealed(session, until),
            None => self.resumption.offer(Some(session)),
        }
        self.resumption.limit_tickets(1);
    }

    /// Returns the sessions that the handshake made since the last call.
    pub(super) fn take_made(&self) -> Vec<NewTicket> {
        self.resumption.take_made()
    }

    /// Returns the sessions that were sealed in tickets since the last call, and when their tickets expire.
    pub(super) fn take_sealed(&self) -> Vec<(SessionInfo, Timestamp)> {
        self.resumption.take_sealed()
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Returns whether the handshake resumes a session. `false` until that is decided.
    pub(super) fn resumed(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::Resumed)
    }

    pub(super) fn version(&self) -> Option<Version> {
        match self.tls.protocol_version()? {
            rustls::ProtocolVersion::TLSv1_2 => Some(Version::Tls12),
            rustls::ProtocolVersion::TLSv1_3 => Some(Version::Tls13),
            _ => None,
        }
    }

    pub(super) fn cipher_suite(&self) -> &'static str {
        self.tls
            .negotiated_cipher_suite()
            .map_or("", |suite| iana_name(suite.suite()))
    }

    pub(super) fn alpn(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// Returns the SNI that a client sent, in lower case, with its trailing dot if it has one.
    pub(super) fn server_name(&self) -> Option<&str> {
        match &self.tls {
            Connection::Server(server) => server.server_name(),
            Connection::Client(_) => None,
        }
    }

    /// Returns the peer's leaf certificate, as DER.
    pub(super) fn peer_certificate(&self) -> Option<&[u8]> {
        self.tls.peer_certificates()?.first().map(AsRef::as_ref)
    }
}
