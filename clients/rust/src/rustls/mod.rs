//! Sessions of servers that run rustls: an acceptor that looks sessions up before rustls asks for
//! them, and a stream that reports how its connection ends.
//!
//! ```no_run
//! # async fn serve(config: rustls::ServerConfig) -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use tls_sessiond_client::{
//!     Options, Worker,
//!     rustls::{self as sessions, Acceptor},
//! };
//! use tokio::io::AsyncWriteExt;
//!
//! let worker = Worker::connect(Options::new("unix:///run/tls-sessiond/api.sock", sessions::FORMAT)?);
//! // The binding names what decides which clients this config admits. Unequal ones share no sessions.
//! let acceptor = Acceptor::new(worker, Arc::new(config), sessions::Options::new("public, no client certificates"));
//! let listener = tokio::net::TcpListener::bind("0.0.0.0:443").await?;
//! loop {
//!     let (socket, _) = listener.accept().await?;
//!     let acceptor = acceptor.clone();
//!     tokio::spawn(async move {
//!         // A peer may be slow: put a timeout around this.
//!         let mut tls = acceptor.accept(socket).await?;
//!         tls.write_all(b"hello\n").await?;
//!         tls.shutdown().await // without this, dropping the stream removes the session
//!     });
//! }
//! # }
//! ```
//!
//! rustls asks for sessions in the middle of a step, by a call that cannot wait. Therefore the
//! first flight is read beforehand, as in the daemon, and the sessions that it offers are looked
//! up. Then rustls gets all bytes.
//!
//! * `incoming`: a client whose first bytes were read
//! * `stream`: the connection and its reports
//! * `rewind`: a stream that first returns the bytes that were read beforehand
//! * `handshake_store`: rustls' session storage for one handshake

mod handshake_store;
mod incoming;
mod rewind;
mod stream;

use std::{
    io,
    sync::Arc,
    time::{Duration, SystemTime},
};

pub use incoming::Incoming;
pub use rewind::Rewind;
use rustls::{
    HandshakeKind, PeerIncompatible, ServerConfig, ServerConnection,
    crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    server::{ProducesTickets, ResolvesServerCertUsingSni},
};
pub use stream::TlsStream;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use self::{handshake_store::HandshakeStore, stream::Agreed};
use crate::{Found, Lookup, PeerIdentity, Role, Version, Worker};
use tls_sessiond_types::{
    alert::{self, Alert},
    cipher_suite::iana_name,
    client_hello::Offer,
};

/// The name of the encoding of sessions by this version of rustls, for [`crate::Options::new`].
///
/// The encoding is private to rustls and may change with its version. All workers that share
/// sessions must use the same name and the same version of rustls. The plain name `rustls` is
/// reserved for the daemon's own sessions.
pub const FORMAT: &str = "rustls-0.23";

/// Options of all connections of an acceptor.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// The binding: everything that must agree for a resumption to be safe, at most 1 KiB. A
    /// session is found only with the binding that it was made with.
    pub binding: Vec<u8>,
    /// The longest lifetime of a session, if it is shorter than the context's. Without
    /// [`Self::read_certificate`] the acceptor does not know when a client's certificate expires.
    /// With client certificates, set this to the time for which a session may outlive its
    /// certificate.
    pub timeout: Option<Duration>,
    /// Reads the certificate of a client that rustls has verified, in DER. `None`: sessions have the
    /// digest of the certificate only, so they cannot be revoked by its names.
    pub read_certificate: Option<fn(&[u8]) -> ClientCertificate>,
}

/// The contents of a client's certificate that decide about its sessions.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientCertificate {
    /// Its digest and its names, which a revocation may select.
    pub identity: PeerIdentity,
    /// When it expires. No session of it lives longer.
    pub not_after: SystemTime,
}

impl Options {
    /// Makes options with this binding.
    ///
    /// The binding has no default, because rustls does not show how a config verifies clients, and
    /// a resumption does not verify a client again. Two configs that admit different clients need
    /// different bindings. For example, they differ in the trust anchors for client certificates,
    /// or in whether a certificate is required. A name or a digest is a good binding.
    pub fn new(binding: impl Into<Vec<u8>>) -> Self {
        Self {
            binding: binding.into(),
            timeout: None,
            read_certificate: None,
        }
    }
}

/// Accepts handshakes with sessions that all workers share. Clones share its state.
#[derive(Clone)]
pub struct Acceptor {
    worker: Worker,
    config: Arc<ServerConfig>,
    options: Arc<Options>,
    speaks_tls13: bool,
}

impl Acceptor {
    /// Makes an acceptor with this config, except for its session storage and its ticketer, which
    /// are replaced.
    ///
    /// The ticketer is replaced because the daemon does not know a stateless ticket: such a ticket
    /// could be resumed after an unclean close of its connection.
    pub fn new(worker: Worker, config: Arc<ServerConfig>, options: Options) -> Self {
        let mut config = Arc::unwrap_or_clone(config);
        config.ticketer = Arc::new(NoTickets);
        let speaks_tls13 = speaks_tls13(&config);
        Self {
            worker,
            config: Arc::new(config),
            options: Arc::new(options),
            speaks_tls13,
        }
    }

    /// Does a handshake.
    ///
    /// All lookups of a handshake together wait for the lookup deadline at most. Without an answer
    /// the handshake is a full one. A silent peer holds the call up: put a timeout around it.
    ///
    /// # Errors
    /// Errors of the stream and of TLS, as tokio-rustls returns them. The daemon never causes one.
    pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: IO,
    ) -> io::Result<TlsStream<IO>> {
        self.accept_incoming(Incoming::read(stream).await?).await
    }

    /// Does the handshake of a client whose first bytes were read before, like [`Self::accept`]. A
    /// server with several configs reads them first, and chooses the acceptor by the server name.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub async fn accept_incoming<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        incoming: Incoming<IO>,
    ) -> io::Result<TlsStream<IO>> {
        let Incoming {
            offer,
            first: flight,
            stream,
            ..
        } = incoming;
        let found = self.find(&offer).await;
        let mut config = ServerConfig::clone(&self.config);
        // A resumption consumes one ticket and needs one new ticket. OpenSSL does the same, see
        // SSL_CTX_set_num_tickets(3).
        if found
            .as_ref()
            .is_some_and(|found| found.version() == Version::Tls13)
        {
            config.send_tls13_tickets = config.send_tls13_tickets.min(1);
            config.max_tls13_tickets = config.max_tls13_tickets.min(1);
        }
        let resumption = Arc::new(HandshakeStore::new(found.as_ref()));
        config.session_storage = resumption.clone();
        let stream = Rewind::new(flight, stream);
        match TlsAcceptor::from(Arc::new(config)).accept(stream).await {
            Ok(tls) => Ok(self.established(tls, resumption, found)),
            Err(err) => {
                self.failed(&err, &resumption, found.as_ref());
                Err(err)
            }
        }
    }

    /// Looks up the sessions that the peer offers, in the version that will be negotiated, and
    /// returns the first that is found. A session that was made without a server name is found only
    /// without one.
    async fn find(&self, offer: &Offer) -> Option<Found> {
        let (version, ids) = match offer.tls13 && self.speaks_tls13 {
            true => (Version::Tls13, offer.identities.as_slice()),
            false => (Version::Tls12, offer.session_id.as_slice()),
        };
        let lookups = ids.iter().map(|id| Lookup {
            server_name: &offer.server_name,
            binding: &self.options.binding,
            ..Lookup::server(id)
        });
        self.worker
            .lookup_first(lookups)
            .await
            .filter(|found| found.version() == version)
    }

    fn established<IO>(
        &self,
        tls: tokio_rustls::server::TlsStream<Rewind<IO>>,
        resumption: Arc<HandshakeStore>,
        found: Option<Found>,
    ) -> TlsStream<IO> {
        let (_, server) = tls.get_ref();
        let found = found.filter(|_| server.handshake_kind() == Some(HandshakeKind::Resumed));
        let resumed = found.as_ref().map(|found| found.session_id());
        let connection = self.worker.open(Role::Server, "", resumed);
        let agreed = Agreed {
            version: match server.protocol_version() {
                Some(rustls::ProtocolVersion::TLSv1_2) => Version::Tls12,
                _ => Version::Tls13,
            },
            cipher_suite: server
                .negotiated_cipher_suite()
                .map_or("", |suite| iana_name(suite.suite())),
            server_name: server.server_name().unwrap_or_default().to_owned(),
            resumed: found.is_some(),
            authenticate_time: found.as_ref().map(|found| found.authenticate_time()),
            timeout: self.options.timeout,
            peer: None,
        };
        let agreed = self.with_client(agreed, server, found.as_ref());
        TlsStream::new(
            tls,
            connection,
            resumption,
            agreed,
            Arc::clone(&self.options),
        )
    }

    /// Adds the client's certificate, which the session of a resumption has as well.
    fn with_client(
        &self,
        agreed: Agreed,
        server: &ServerConnection,
        found: Option<&Found>,
    ) -> Agreed {
        let Some(read) = self.options.read_certificate else {
            let peer = match found {
                Some(found) => found.peer().cloned(),
                None => peer(server),
            };
            return Agreed { peer, ..agreed };
        };
        let leaf = server.peer_certificates().and_then(<[_]>::first);
        let Some(ClientCertificate {
            identity,
            not_after,
        }) = leaf.map(|leaf| read(leaf))
        else {
            return agreed;
        };
        // Lifetimes count from the authentication.
        let begin = agreed.authenticate_time.unwrap_or_else(SystemTime::now);
        let left = not_after.duration_since(begin).unwrap_or_default();
        Agreed {
            peer: Some(identity),
            timeout: Some(agreed.timeout.map_or(left, |timeout| timeout.min(left))),
            ..agreed
        }
    }

    /// Reports the fatal alert of a handshake that was resuming a TLS 1.2 session: the alert
    /// removes the session (RFC 5246 section 7.2.2). A TLS 1.3 ticket was already consumed by the
    /// lookup.
    fn failed(&self, err: &io::Error, resumption: &HandshakeStore, found: Option<&Found>) {
        let handed = found.filter(|found| found.version() == Version::Tls12 && resumption.handed());
        if let (Some(found), Some(alert)) = (handed, fatal_alert(err)) {
            let connection = self.worker.open(Role::Server, "", Some(found.session_id()));
            connection.alert(alert.code, alert.received);
        }
    }
}

/// Returns the identity of a client's certificate. It has the digest only: names would need a
/// parser for certificates.
fn peer(server: &ServerConnection) -> Option<PeerIdentity> {
    let leaf = server.peer_certificates()?.first()?;
    let sha256 = TLS13_AES_128_GCM_SHA256
        .tls13()?
        .common
        .hash_provider
        .hash(leaf);
    Some(PeerIdentity {
        certificate_sha256: tls_sessiond_types::hex::string(sha256.as_ref()),
        ..PeerIdentity::default()
    })
}

/// Returns the alert that caused an error or that was sent because of it. `None`: the stream failed
/// without an alert.
fn fatal_alert(err: &io::Error) -> Option<Alert> {
    match err.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(description) => Some(Alert {
            code: (*description).into(),
            received: true,
        }),
        error => Some(alert::for_error(error)),
    }
}

/// Returns whether a config allows TLS 1.3. rustls does not show this, so the config is given a
/// ClientHello that offers TLS 1.3 only, and the error is inspected.
fn speaks_tls13(config: &ServerConfig) -> bool {
    #[rustfmt::skip]
    const HELLO: [u8; 75] = [
        22, 3, 1, 0, 70, // a record, and in it
        1, 0, 0, 66, 3, 3, // a ClientHello; its random bytes:
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        0, 0, 2, 0x13, 1, 1, 0, // no session id, one suite, no compression
        0, 23, 0, 10, 0, 4, 0, 2, 0, 29, // extensions: supported_groups,
        0, 13, 0, 4, 0, 2, 8, 4, // signature_algorithms,
        0, 43, 0, 3, 2, 3, 4, // supported_versions
    ];
    let mut config = config.clone();
    // Without a certificate the handshake goes no further.
    config.cert_resolver = Arc::new(ResolvesServerCertUsingSni::new());
    let Ok(mut server) = ServerConnection::new(Arc::new(config)) else {
        return true;
    };
    let read = server.read_tls(&mut HELLO.as_slice());
    debug_assert_eq!(
        read.ok(),
        Some(HELLO.len()),
        "the ClientHello fits into the buffer"
    );
    let refused = rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled);
    server.process_new_packets().err() != Some(refused)
}

/// A ticketer that makes no stateless tickets, so that every session is in the cache.
#[derive(Debug)]
struct NoTickets;

impl ProducesTickets for NoTickets {
    fn enabled(&self) -> bool {
        false
    }

    fn lifetime(&self) -> u32 {
        0
    }

    fn encrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }

    fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use rustls::{
        server::ServerConfig,
        version::{TLS12, TLS13},
    };

    use super::*;

    #[test]
    fn config_is_asked_whether_it_speaks_tls13() {
        for (versions, speaks) in [
            (&[&TLS12, &TLS13][..], true),
            (&[&TLS13], true),
            (&[&TLS12], false),
        ] {
            let config = ServerConfig::builder_with_protocol_versions(versions)
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
            assert_eq!(speaks_tls13(&config), speaks, "{versions:?}");
        }
    }
}
