//! Mutual TLS to a daemon, with the files that the options name.

use std::{io, path::PathBuf, sync::Arc};

use clap::Args;
use rustls::{
    ClientConfig, crypto::aws_lc_rs::default_provider, pki_types::ServerName,
    sign::SingleCertAndKey, version::TLS13,
};
use tls_sessiond_core::pem::{self, PairError};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{address::HostPort, failure::Failure};

/// The files and the name for `tls://`.
#[derive(Clone, Debug, Args)]
pub(super) struct ClientFiles {
    /// For tls://: the trust anchors that verify the daemon (PEM).
    #[arg(long, value_name = "FILE", global = true)]
    ca: Option<PathBuf>,
    /// For tls://: the certificate that proves the identity of the caller, with its chain (PEM).
    #[arg(long, value_name = "FILE", global = true)]
    certificate: Option<PathBuf>,
    /// For tls://: the private key of --certificate (PEM).
    #[arg(long, value_name = "FILE", global = true)]
    key: Option<PathBuf>,
    /// For tls://: the name in the certificate of the daemon. Default: the host of --address.
    #[arg(long, value_name = "NAME", global = true)]
    tls_server_name: Option<String>,
}

impl ClientFiles {
    /// Connects, and performs the handshake. The inner error is that of the network or of TLS.
    ///
    /// # Errors
    /// An option is missing, or its file cannot be used.
    pub(super) async fn connect(
        &self,
        at: &HostPort,
    ) -> Result<io::Result<TlsStream<TcpStream>>, Failure> {
        let connector = TlsConnector::from(Arc::new(self.config()?));
        let name = self.tls_server_name.as_deref().unwrap_or(&at.host);
        let name = ServerName::try_from(name.to_owned()).map_err(|_| {
            Failure::Usage(format!(
                "invalid --tls-server-name {name:?}: expected a DNS name or an IP address"
            ))
        })?;
        let connecting = async {
            let socket = TcpStream::connect((at.host.as_str(), at.port)).await?;
            socket.set_nodelay(true)?;
            connector.connect(name, socket).await
        };
        Ok(connecting.await)
    }

    fn config(&self) -> Result<ClientConfig, Failure> {
        let (Some(ca), Some(certificate), Some(key)) = (&self.ca, &self.certificate, &self.key)
        else {
            return Err(Failure::Usage(
                "tls:// needs --ca, --certificate and --key: the daemon requires a certificate"
                    .into(),
            ));
        };
        let unusable = |option, cause| Failure::File { option, cause };
        let roots = pem::read_anchors(ca).map_err(|err| unusable("--ca", err))?;
        let certified = pem::read_pair(certificate, key).map_err(|err| match err {
            PairError::Certificate(err) => unusable("--certificate", err),
            PairError::Key(err) => unusable("--key", err),
        })?;
        let mut config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}
