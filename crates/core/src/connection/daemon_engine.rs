//! TLS over memory: bytes and the time in, bytes and an ending out. No I/O, no clock, no waiting.

use std::{
    io::{BufRead, Read},
    sync::Arc,
};

use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Connection, Error, HandshakeKind, ServerConfig,
    ServerConnection, client::Resumption as ClientResumption, pki_types::ServerName,
};
use tls_sessiond_types::{Version, alert::Alert, cipher_suite::iana_name};

use crate::{
    clock::WallTime,
    connection::handshake_store::{Made, Resumption},
    context::sent_alerts,
    session::Session,
};

/// One handshake and the traffic after it.
pub(super) struct Engine {
    tls: Connection,
    resumption: Arc<Resumption>,
}

/// What ended the peer's side.
#[derive(Debug)]
pub(super) enum End {
    /// close_notify came.
    CloseNotify,
    /// A fatal alert came.
    AlertReceived(Alert),
    /// The peer did something that TLS forbids.
    Refused(Refused),
}

/// What the peer did, and the alert that answered it.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) error: String,
    /// AlertDescription. `None`: none was sent that is encrypted; one in the clear is among the records of [`Engine::flush`].
    pub(super) alert: Option<u8>,
}

impl Refused {
    fn new(error: &Error) -> Self {
        Self { error: error.to_string(), alert: sent_alerts::take() }
    }
}

impl Engine {
    /// Accepts a handshake. `tickets`: how many TLS 1.3 tickets its end makes.
    pub(super) fn server(
        config: &ServerConfig,
        tickets: usize,
        resumption: Arc<Resumption>,
        now: WallTime,
    ) -> Result<Self, Error> {
        resumption.set_now(now);
        let mut config = config.clone();
        config.session_storage = resumption.clone();
        config.time_provider = resumption.clone();
        config.send_tls13_tickets = tickets;
        let tls = ServerConnection::new(Arc::new(config))?.into();
        Ok(Self::over(tls, resumption))
    }

    /// Begins a handshake: the ClientHello is there to be written.
    pub(super) fn client(
        config: &ClientConfig,
        server: ServerName<'static>,
        resumption: Arc<Resumption>,
        now: WallTime,
    ) -> Result<Self, Error> {
        resumption.set_now(now);
        let mut config = config.clone();
        config.resumption = ClientResumption::store(resumption.clone());
        config.time_provider = resumption.clone();
        let tls = ClientConnection::new(Arc::new(config), server)?.into();
        Ok(Self::over(tls, resumption))
    }

    fn over(mut tls: Connection, resumption: Arc<Resumption>) -> Self {
        // Every call empties what it fills, and the size of a call is limited before it comes here.
        tls.set_buffer_limit(None);
        Self { tls, resumption }
    }

    /// Takes records from the peer and appends the application data in them. What follows a close_notify is ignored
    /// (RFC 8446 section 6.1).
    pub(super) fn read(&mut self, mut records: &[u8], now: WallTime, plaintext: &mut Vec<u8>) -> Option<End> {
        self.resumption.set_now(now);
        // What another connection's step has left.
        sent_alerts::take();
        while !records.is_empty() {
            match self.tls.read_tls(&mut records as &mut dyn Read) {
                Ok(0) => break,
                Ok(_) => {}
                Err(err) => return Some(End::Refused(Refused { error: err.to_string(), alert: None })),
            }
            let processed = self.tls.process_new_packets();
            self.drain(plaintext);
            match processed {
                Ok(state) if state.peer_has_closed() => return Some(End::CloseNotify),
                Ok(_) => {}
                // In a handshake, where rustls takes it for a warning, which TLS 1.3 does not have.
                Err(Error::AlertReceived(AlertDescription::CloseNotify)) => return Some(End::CloseNotify),
                Err(Error::AlertReceived(description)) => {
                    return Some(End::AlertReceived(Alert { code: description.into(), received: true }));
                }
                Err(error) => return Some(End::Refused(Refused::new(&error))),
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
        debug_assert_eq!(written.ok(), Some(plaintext.len()), "the buffer has no limit");
    }

    /// Makes a close_notify; a second one makes nothing.
    pub(super) fn close_notify(&mut self) {
        self.tls.send_close_notify();
    }

    /// Appends the records that the peer shall get.
    pub(super) fn flush(&mut self, ciphertext: &mut Vec<u8>) {
        while self.tls.wants_write() {
            if self.tls.write_tls(ciphertext).is_err() {
                break;
            }
        }
    }

    /// Whether a HelloRetryRequest has left, and no ServerHello that resumes a session.
    pub(super) fn retried(&self) -> bool {
        self.tls.handshake_kind() == Some(HandshakeKind::FullWithHelloRetryRequest)
    }

    /// Gives a server the session that the ClientHello after a HelloRetryRequest offers, and room for the one ticket that its
    /// resumption makes.
    pub(super) fn offer(&self, session: Arc<Session>) {
        self.resumption.offer(Some(session));
        self.resumption.limit_tickets(1);
    }

    /// The sessions that the handshake made since the last call.
    pub(super) fn take_made(&self) -> Vec<Made> {
        self.resumption.take_made()
    }

    pub(super) fn is_handshaking(&self) -> bool {
        self.tls.is_handshaking()
    }

    /// Whether the handshake resumes a session, once that is decided.
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
        self.tls.negotiated_cipher_suite().map_or("", |suite| iana_name(suite.suite()))
    }

    pub(super) fn alpn(&self) -> Option<&[u8]> {
        self.tls.alpn_protocol()
    }

    /// The SNI that a client sent, in lower case, with the dot at its end if it has one.
    pub(super) fn server_name(&self) -> Option<&str> {
        match &self.tls {
            Connection::Server(server) => server.server_name(),
            Connection::Client(_) => None,
        }
    }

    /// The peer's leaf certificate.
    pub(super) fn peer_certificate(&self) -> Option<&[u8]> {
        self.tls.peer_certificates()?.first().map(AsRef::as_ref)
    }
}
