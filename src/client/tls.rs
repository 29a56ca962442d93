//! The line to a daemon that is not on this host: TLS on both sides, by rustls.

use std::{io, sync::Arc};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

/// A line that TLS protects.
pub(super) type TlsLine = TlsStream<TcpStream>;

/// Makes lines of sockets.
#[derive(Clone)]
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    server: ServerName<'static>,
}

/// Not what certificates and keys it has.
impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("server", &self.server).finish_non_exhaustive()
    }
}

impl Tls {
    /// `None`: the host is no name that a certificate could have.
    pub(super) fn new(config: &ClientConfig, host: &str) -> Option<Self> {
        let mut config = config.clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Some(Self { config: Arc::new(config), server: ServerName::try_from(host.to_owned()).ok()? })
    }

    /// A handshake.
    ///
    /// # Errors
    /// Those of the socket, and what either side refuses.
    pub(super) async fn connect(&self, socket: TcpStream) -> io::Result<TlsLine> {
        TlsConnector::from(Arc::clone(&self.config)).connect(self.server.clone(), socket).await
    }
}
