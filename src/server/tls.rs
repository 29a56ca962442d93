//! Mutual TLS for API connections. A client must present a certificate of the authority in
//! `client_ca`.

use std::{io, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rustls::{
    ServerConfig, crypto::aws_lc_rs::default_provider, pki_types::CertificateDer,
    server::WebPkiClientVerifier, sign::SingleCertAndKey, version::TLS13,
};
use tls_sessiond_core::{
    clock::WallTime,
    context::identity::identity,
    pem::{self, PairError},
};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::write_buffer::BufferedSocket;
use crate::{
    api::access::Peer,
    config::{Config, ConfigError, ListenTls},
};

/// Time limit of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Performs TLS handshakes with clients. After a reload, new handshakes use the new files. Existing
/// connections continue.
pub struct Acceptor(ArcSwap<ApiTls>);

/// The files of `[listen.tls]`, as they were read.
pub struct ApiTls {
    /// For the API.
    server: Arc<ServerConfig>,
    /// For the admin address: the same, with HTTP/1.1 as well.
    http: Arc<ServerConfig>,
    /// When the certificate expires.
    ends: WallTime,
}

impl Acceptor {
    /// Reads the files that the configuration names. Returns `None` if no TLS is configured.
    ///
    /// # Errors
    /// A file cannot be used. The error names the configuration key and the reason.
    pub fn load(config: &Config) -> Result<Option<Arc<Self>>, ConfigError> {
        let server = Self::reload(config)?;
        Ok(server.map(|server| Arc::new(Self(ArcSwap::new(server)))))
    }

    /// Reads the files for [`Self::swap`].
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn reload(config: &Config) -> Result<Option<Arc<ApiTls>>, ConfigError> {
        config
            .tls
            .as_ref()
            .map(|tls| server(config, tls))
            .transpose()
    }

    /// Makes new handshakes use this configuration.
    pub fn swap(&self, server: Arc<ApiTls>) {
        self.0.store(server);
    }

    /// Returns when the certificate in use expires.
    pub fn ends(&self) -> WallTime {
        self.0.load().ends
    }

    /// Performs a handshake. Returns the TLS stream and the caller that the certificate proves.
    ///
    /// # Errors
    /// The handshake failed, or took longer than [`HANDSHAKE`].
    pub(crate) async fn accept(
        &self,
        mut socket: BufferedSocket,
    ) -> io::Result<(TlsStream<BufferedSocket>, Peer)> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.0.load().server));
        // A handshake waits for the peer's answer after each flush, and no turn ends meanwhile.
        socket.set_unbuffered();
        let mut stream = timeout(HANDSHAKE, acceptor.accept(socket)).await??;
        let (socket, tls) = stream.get_mut();
        socket.set_buffered();
        let peer = peer(tls.peer_certificates())?;
        Ok((stream, peer))
    }

    /// Performs a handshake of the admin address.
    ///
    /// # Errors
    /// As [`Self::accept`].
    pub(crate) async fn accept_http(
        &self,
        socket: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Peer)> {
        let acceptor = TlsAcceptor::from(Arc::clone(&self.0.load().http));
        let stream = timeout(HANDSHAKE, acceptor.accept(socket)).await??;
        let (_, tls) = stream.get_ref();
        let peer = peer(tls.peer_certificates())?;
        Ok((stream, peer))
    }
}

/// Returns the caller that a certificate chain proves.
fn peer(chain: Option<&[CertificateDer<'static>]>) -> io::Result<Peer> {
    // Always present, because the verifier requires a certificate.
    let certificate = chain.and_then(|chain| chain.first());
    let certificate =
        certificate.ok_or_else(|| io::Error::other("the client sent no certificate"))?;
    Ok(Peer::certified(&identity(certificate)))
}

fn server(config: &Config, tls: &ListenTls) -> Result<Arc<ApiTls>, ConfigError> {
    let certified = pem::read_pair(&tls.certificate, &tls.key).map_err(|err| match err {
        PairError::Certificate(err) => config.tls_error("certificate", err),
        PairError::Key(err) => config.tls_error("key", err),
    })?;
    let leaf = certified.cert.first();
    let ends = leaf.map_or_else(WallTime::default, |leaf| identity(leaf).not_after);
    let roots =
        pem::read_anchors(&tls.client_ca).map_err(|err| config.tls_error("client_ca", err))?;
    let provider = Arc::new(default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|err| config.tls_error("client_ca", err))?;
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])
        .map_err(|err| config.tls_error("certificate", err))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
    server.alpn_protocols = vec![b"h2".to_vec()];
    // No resumption: it would not verify the certificate again, against the current authority.
    server.send_tls13_tickets = 0;
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    let mut http = server.clone();
    http.alpn_protocols.push(b"http/1.1".to_vec());
    Ok(Arc::new(ApiTls {
        server: Arc::new(server),
        http: Arc::new(http),
        ends,
    }))
}
