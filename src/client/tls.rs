//! The line to a daemon that is not on this host: TLS on both sides, by rustls.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::{codegen::Service, transport::Uri};

/// Makes the connections of a channel.
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
        // An address of IPv6 stands in brackets in a URI.
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let mut config = config.clone();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Some(Self { config: Arc::new(config), server: ServerName::try_from(host.to_owned()).ok()? })
    }
}

impl Service<Uri> for Tls {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, address: Uri) -> Self::Future {
        let (config, server) = (Arc::clone(&self.config), self.server.clone());
        Box::pin(async move {
            let host = address.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
            let socket = TcpStream::connect((host, address.port_u16().unwrap_or(443))).await?;
            socket.set_nodelay(true)?;
            Ok(TokioIo::new(TlsConnector::from(config).connect(server, socket).await?))
        })
    }
}
