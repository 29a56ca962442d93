//! The transport to a remote daemon: TLS by rustls.

use std::{io, sync::Arc};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A TLS connection to the daemon.
pub(crate) type TlsTransport = TlsStream<TcpStream>;

/// Connects with TLS to one host.
#[derive(Clone)]
pub(crate) struct Tls {
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
}

// Leaves out the configuration, which has certificates and keys.
impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// Makes a connector for this host. `None`: the host is not a valid server name.
    pub(crate) fn new(config: &ClientConfig, host: &str) -> Option<Self> {
        let mut config = config.clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Some(Self {
            config: Arc::new(config),
            server: ServerName::try_from(host.to_owned()).ok()?,
        })
    }

    /// Does the TLS handshake.
    ///
    /// # Errors
    /// Errors of the socket and of the handshake.
    pub(crate) async fn connect(&self, socket: TcpStream) -> io::Result<TlsTransport> {
        TlsConnector::from(Arc::clone(&self.config))
            .connect(self.server.clone(), socket)
            .await
    }
}
