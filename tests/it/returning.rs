//! A returning client: rustls with a session store of its own, and a certificate that it trusts.

use std::{path::PathBuf, sync::Arc};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, SupportedProtocolVersion,
    pki_types::{CertificateDer, ServerName},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Duration, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::process::PATIENCE;

/// A certificate for localhost, in files.
pub(crate) struct Certificate {
    folder: TempDir,
    der: CertificateDer<'static>,
}

impl Certificate {
    pub(crate) fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("cert.pem"), made.cert.pem()).unwrap();
        std::fs::write(
            folder.path().join("key.pem"),
            made.signing_key.serialize_pem(),
        )
        .unwrap();
        Self {
            folder,
            der: made.cert.der().clone(),
        }
    }

    pub(crate) fn chain(&self) -> PathBuf {
        self.folder.path().join("cert.pem")
    }

    pub(crate) fn key(&self) -> PathBuf {
        self.folder.path().join("key.pem")
    }

    /// Returns a configuration whose default context shows this certificate and trusts it.
    pub(crate) fn context(&self) -> String {
        let (chain, key) = (self.chain(), self.key());
        format!("[[context]]\ncertificate = {chain:?}\nkey = {key:?}\nca = {chain:?}\n")
    }
}

/// One client that may make many connections.
pub(crate) struct Returning(Arc<ClientConfig>);

impl Returning {
    pub(crate) fn new(trusted: &Certificate, version: &'static SupportedProtocolVersion) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.der.clone()).unwrap();
        let config = ClientConfig::builder_with_protocol_versions(&[version])
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self(Arc::new(config))
    }

    /// Returns the next connection, over memory.
    pub(crate) fn tls(&self) -> ClientConnection {
        ClientConnection::new(Arc::clone(&self.0), localhost()).unwrap()
    }

    /// Returns the next connection over TCP, established, after its session or first ticket has
    /// arrived.
    pub(crate) async fn connect(&self, address: &str) -> TlsStream<TcpStream> {
        let socket = TcpStream::connect(address).await.unwrap();
        let connector = TlsConnector::from(Arc::clone(&self.0));
        let handshake = async {
            let mut tls = connector.connect(localhost(), socket).await.unwrap();
            // Tickets arrive after the handshake, and a client gets them only when it reads.
            while tls.get_ref().1.protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3)
                && tls.get_ref().1.tls13_tickets_received() == 0
            {
                let read = timeout(Duration::from_millis(10), tls.read(&mut [0])).await;
                assert!(
                    read.is_err(),
                    "the server sent data or closed before the request"
                );
            }
            tls
        };
        timeout(PATIENCE, handshake).await.expect("a handshake")
    }

    /// Fetches the page of a `tls_server`, to the last byte and the close_notify.
    pub(crate) async fn fetch(&self, address: &str) -> String {
        let mut tls = self.connect(address).await;
        tls.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        let mut page = String::new();
        timeout(PATIENCE, tls.read_to_string(&mut page))
            .await
            .expect("a page")
            .unwrap();
        tls.shutdown().await.unwrap();
        page
    }
}

fn localhost() -> ServerName<'static> {
    ServerName::try_from("localhost").unwrap()
}
