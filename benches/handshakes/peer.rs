//! The certificate, the clients, and plain rustls as a server.

use std::{fs, io::Read, sync::Arc};

use rustls::{
    ClientConfig, ClientConnection, Connection, HandshakeKind, RootCertStore, ServerConfig,
    ServerConnection, SupportedProtocolVersion,
    client::Resumption,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    server::ServerSessionMemoryCache,
};
use tempfile::TempDir;

/// The number of handshakes in flight.
pub(crate) const IN_FLIGHT: usize = 16;

/// The kind of a handshake.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Full,
    Resumed,
}

/// The certificate of both sides of every comparison: ECDSA with P-256.
pub(crate) struct Setup {
    pub(crate) folder: TempDir,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

impl Setup {
    /// Writes the daemon's files into the folder: tls.crt, tls.key and bench.toml.
    pub(crate) fn make() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let (chain, key) = (folder.path().join("tls.crt"), folder.path().join("tls.key"));
        fs::write(&chain, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let config = format!(
            "[listen]\napi = [\"tcp://127.0.0.1:0\", \"unix://{}\"]\n\
             [[context]]\nname = \"default\"\ncertificate = {chain:?}\nkey = {key:?}\nca = {chain:?}\n",
            folder.path().join("api.sock").display()
        );
        fs::write(folder.path().join("bench.toml"), config).unwrap();
        let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
        Self {
            folder,
            certificate: made.cert.der().clone(),
            key,
        }
    }

    /// Returns plain rustls as its users configure it: with the same provider and a stateful cache.
    pub(crate) fn plain(&self, tickets: usize) -> Arc<ServerConfig> {
        let mut config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.clone()], self.key.clone_key())
            .unwrap();
        config.session_storage = ServerSessionMemoryCache::new(20_480);
        config.send_tls13_tickets = tickets;
        Arc::new(config)
    }

    /// Returns a client with its own session store, or with none.
    pub(crate) fn client(
        &self,
        version: &'static SupportedProtocolVersion,
        kind: Kind,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        let mut config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.resumption = match kind {
            Kind::Full => Resumption::disabled(),
            Kind::Resumed => Resumption::in_memory_sessions(16),
        };
        Arc::new(config)
    }

    pub(crate) fn clients(
        &self,
        version: &'static SupportedProtocolVersion,
        kind: Kind,
    ) -> Vec<Arc<ClientConfig>> {
        (0..IN_FLIGHT).map(|_| self.client(version, kind)).collect()
    }
}

/// One side of a TLS connection over memory, by rustls.
pub(crate) struct Peer(pub(crate) Connection);

impl Peer {
    pub(crate) fn client(config: &Arc<ClientConfig>) -> Self {
        Self(
            ClientConnection::new(Arc::clone(config), "localhost".try_into().unwrap())
                .unwrap()
                .into(),
        )
    }

    pub(crate) fn server(config: &Arc<ServerConfig>) -> Self {
        Self(ServerConnection::new(Arc::clone(config)).unwrap().into())
    }

    /// Takes records and returns the records to send.
    pub(crate) fn step(&mut self, mut records: &[u8]) -> Vec<u8> {
        while !records.is_empty() {
            self.0.read_tls(&mut records as &mut dyn Read).unwrap();
            self.0.process_new_packets().unwrap();
        }
        self.flush()
    }

    pub(crate) fn flush(&mut self) -> Vec<u8> {
        let mut records = Vec::new();
        while self.0.wants_write() {
            self.0.write_tls(&mut records).unwrap();
        }
        records
    }

    pub(crate) fn close(&mut self) -> Vec<u8> {
        self.0.send_close_notify();
        self.flush()
    }

    /// Checks that the handshake was of this kind and that the connection was closed. A failure
    /// ends the run.
    pub(crate) fn check(&mut self, kind: Kind) {
        let wanted = match kind {
            Kind::Full => HandshakeKind::Full,
            Kind::Resumed => HandshakeKind::Resumed,
        };
        assert_eq!(self.0.handshake_kind(), Some(wanted));
        assert!(
            self.0.process_new_packets().unwrap().peer_has_closed(),
            "no close_notify came"
        );
    }
}
