//! Servers on rustls: an acceptor that looks sessions up before rustls asks for them, and a stream that tells how its
//! connection ends.
//!
//! ```no_run
//! # async fn serve(config: rustls::ServerConfig) -> Result<(), Box<dyn std::error::Error>> {
//! use std::sync::Arc;
//!
//! use tls_sessiond::client::{
//!     Options, Worker,
//!     rustls::{self as sessions, Acceptor},
//! };
//! use tokio::io::AsyncWriteExt;
//!
//! let worker = Worker::connect(Options::new("unix:///run/tls-sessiond/api.sock", sessions::FORMAT)?);
//! // Sessions of one binding resume each other: name what decides whom this config lets in.
//! let acceptor = Acceptor::new(worker, Arc::new(config), sessions::Options::new("public, no client certificates"));
//! let listener = tokio::net::TcpListener::bind("0.0.0.0:443").await?;
//! loop {
//!     let (socket, _) = listener.accept().await?;
//!     let acceptor = acceptor.clone();
//!     tokio::spawn(async move {
//!         // A peer may take its time: put a timeout around this.
//!         let mut tls = acceptor.accept(socket).await?;
//!         tls.write_all(b"hello\n").await?;
//!         tls.shutdown().await // without it, the session leaves the cache when the stream is dropped
//!     });
//! }
//! # }
//! ```
//!
//! rustls asks for sessions in the middle of a step, by a call that cannot wait. So the first flight is read
//! beforehand, as in the daemon, and what it offers is looked up by then; rustls gets all bytes.
//!
//! * `stream`: the connection, and what it tells of itself · `replay`: a socket some of whose bytes were read
//! * `resumption`: rustls' storage trait, answered for one handshake

mod replay;
mod resumption;
mod stream;

use std::{io, sync::Arc, time::Duration};

pub use replay::Replay;
use rustls::{
    HandshakeKind, PeerIncompatible, ServerConfig, ServerConnection,
    crypto::aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
    server::{ProducesTickets, ResolvesServerCertUsingSni},
};
pub use stream::TlsStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use self::{resumption::Resumption, stream::Agreed};
use super::{Found, Lookup, PeerIdentity, Role, Version, Worker};
use tls_sessiond_types::{
    alert::{self, Alert},
    cipher_suite::iana_name,
    client_hello::{FirstFlight, Offer, Progress},
};

/// The encoding of this rustls' sessions, for [`super::Options::new`]. It is private to rustls and may change with its
/// version: all workers that share sessions must name the same one, and must have the same rustls behind it. The plain
/// name `rustls` is the daemon's own.
pub const FORMAT: &str = "rustls-0.23";

/// What connections of an acceptor have in common.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Whatever must agree for a resumption to be safe, at most 1 KiB: a session is found only with the binding that it
    /// was made with.
    pub binding: Vec<u8>,
    /// How long a session may live, if that is less than the context says. The end of a client's certificate is not
    /// looked at: where clients show some, set it to what a certificate may be over its time.
    pub timeout: Option<Duration>,
}

impl Options {
    /// There is no default for the binding, for rustls does not show how a config verifies clients. A resumption verifies
    /// nobody anew. So two configs that differ in whom they let in - in the roots of client certificates, in whether one
    /// is required - must have bindings that differ. A name does, or a digest.
    pub fn new(binding: impl Into<Vec<u8>>) -> Self {
        Self { binding: binding.into(), timeout: None }
    }
}

/// Accepts handshakes with sessions that all workers share. Clones share it.
#[derive(Clone)]
pub struct Acceptor {
    worker: Worker,
    config: Arc<ServerConfig>,
    options: Arc<Options>,
    speaks_tls13: bool,
}

impl Acceptor {
    /// All but two things of the config hold: its session storage is replaced, and its ticketer as well, for a ticket
    /// that the daemon does not know outlives every bad end of its connection.
    pub fn new(worker: Worker, config: Arc<ServerConfig>, options: Options) -> Self {
        let mut config = Arc::unwrap_or_clone(config);
        config.ticketer = Arc::new(NoTickets);
        let speaks_tls13 = speaks_tls13(&config);
        Self { worker, config: Arc::new(config), options: Arc::new(options), speaks_tls13 }
    }

    /// A handshake. The lookups for it wait for the daemon once the lookup deadline at most; where there is no answer it
    /// is a full one. A peer that is silent holds it up: put a timeout around it.
    ///
    /// # Errors
    /// Those of the stream, and what TLS forbids, as tokio-rustls tells it. The daemon is never the reason.
    pub async fn accept<IO: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut stream: IO,
    ) -> io::Result<TlsStream<IO>> {
        let (offer, flight) = first_flight(&mut stream).await?;
        let found = self.find(&offer).await;
        let mut config = ServerConfig::clone(&self.config);
        // Each resumption spends a ticket and needs one in return (OpenSSL's SSL_CTX_set_num_tickets(3)).
        if found.as_ref().is_some_and(|found| found.version() == Version::Tls13) {
            config.send_tls13_tickets = config.send_tls13_tickets.min(1);
            config.max_tls13_tickets = config.max_tls13_tickets.min(1);
        }
        let resumption = Arc::new(Resumption::new(found.as_ref()));
        config.session_storage = resumption.clone();
        let stream = Replay::new(flight, stream);
        match TlsAcceptor::from(Arc::new(config)).accept(stream).await {
            Ok(tls) => Ok(self.established(tls, resumption, found)),
            Err(err) => {
                self.failed(&err, &resumption, found.as_ref());
                Err(err)
            }
        }
    }

    /// The first session that the peer offers, in a version that both speak. Empty names are not compared.
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
        self.worker.lookup_first(lookups).await.filter(|found| found.version() == version)
    }

    fn established<IO>(
        &self,
        tls: tokio_rustls::server::TlsStream<Replay<IO>>,
        resumption: Arc<Resumption>,
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
            cipher_suite: server.negotiated_cipher_suite().map_or("", |suite| iana_name(suite.suite())),
            server_name: server.server_name().unwrap_or_default().to_owned(),
            resumed: found.is_some(),
            authenticate_time: found.as_ref().map(|found| found.authenticate_time()),
            peer: match found {
                Some(found) => found.peer().cloned(),
                None => peer(server),
            },
        };
        TlsStream::new(tls, connection, resumption, agreed, Arc::clone(&self.options))
    }

    /// A fatal alert ends the session also in a handshake that resumes it (RFC 5246 section 7.2.2). A ticket is spent
    /// already.
    fn failed(&self, err: &io::Error, resumption: &Resumption, found: Option<&Found>) {
        let handed = found.filter(|found| found.version() == Version::Tls12 && resumption.handed());
        if let (Some(found), Some(alert)) = (handed, fatal_alert(err)) {
            let connection = self.worker.open(Role::Server, "", Some(found.session_id()));
            connection.alert(alert.code, alert.received);
        }
    }
}

/// Reads until the ClientHello is whole or never will be. Its size is bounded by [`FirstFlight`].
async fn first_flight(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<(Offer, Vec<u8>)> {
    let mut flight = FirstFlight::default();
    let mut bytes = [0; 2048];
    loop {
        let length = stream.read(&mut bytes).await?;
        match flight.push(&bytes[..length]) {
            Progress::Whole(offer) => {
                // What rustls refuses spends no ticket.
                let offer = if flight.is_taken_by_rustls() { offer } else { Offer::default() };
                return Ok((offer, flight.into_bytes()));
            }
            // rustls finds out what the end means.
            Progress::Partial if length == 0 => return Ok((Offer::default(), flight.into_bytes())),
            Progress::Partial => {}
        }
    }
}

/// Who a client proved to be, without the names: those are for who reads certificates.
fn peer(server: &ServerConnection) -> Option<PeerIdentity> {
    let leaf = server.peer_certificates()?.first()?;
    let sha256 = TLS13_AES_128_GCM_SHA256.tls13()?.common.hash_provider.hash(leaf);
    Some(PeerIdentity {
        certificate_sha256: tls_sessiond_types::hex::string(sha256.as_ref()),
        ..PeerIdentity::default()
    })
}

/// The alert that an error came from or was answered with. None: the stream failed, and nothing was said.
fn fatal_alert(err: &io::Error) -> Option<Alert> {
    match err.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(description) => {
            Some(Alert { code: (*description).into(), received: true })
        }
        error => Some(alert::for_error(error)),
    }
}

/// rustls does not show the versions of a config, so it is asked: with a ClientHello that offers TLS 1.3 and nothing
/// else that could be agreed on.
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
    // It has no certificate, and so goes no further.
    config.cert_resolver = Arc::new(ResolvesServerCertUsingSni::new());
    let Ok(mut server) = ServerConnection::new(Arc::new(config)) else { return true };
    let read = server.read_tls(&mut HELLO.as_slice());
    debug_assert_eq!(read.ok(), Some(HELLO.len()), "it is shorter than any buffer");
    let refused = rustls::Error::PeerIncompatible(PeerIncompatible::Tls12NotOfferedOrEnabled);
    server.process_new_packets().err() != Some(refused)
}

/// Makes no stateless tickets: every session is in the cache.
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
        for (versions, speaks) in [(&[&TLS12, &TLS13][..], true), (&[&TLS13], true), (&[&TLS12], false)] {
            let config = ServerConfig::builder_with_protocol_versions(versions)
                .with_no_client_auth()
                .with_cert_resolver(Arc::new(ResolvesServerCertUsingSni::new()));
            assert_eq!(speaks_tls13(&config), speaks, "{versions:?}");
        }
    }
}
