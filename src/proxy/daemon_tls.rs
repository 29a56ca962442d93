//! TLS to a daemon that has sessions. A reload renews the files, and the worker goes on with its
//! configuration.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::{
    ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs::default_provider,
    pki_types::{CertificateDer, ServerName, UnixTime},
    sign::CertifiedKey,
};
use tls_sessiond_core::pem::{self, PairError};

use crate::config::{Config, ConfigError, SessionsTls};

/// The files for TLS to a daemon, as they were read last.
#[derive(Debug)]
pub(super) struct DaemonTls(ArcSwap<Files>);

#[derive(Debug)]
struct Files {
    verifier: Arc<WebPkiServerVerifier>,
    /// The certificate and the key of this proxy. `None`: it shows none.
    identity: Option<Arc<CertifiedKey>>,
}

impl DaemonTls {
    /// Reads the files that a proxy names.
    ///
    /// # Errors
    /// Names the key, the file and the fault.
    pub(super) fn read(
        config: &Config,
        proxy: usize,
        tls: &SessionsTls,
    ) -> Result<Arc<Self>, ConfigError> {
        let refuse = |key: &str, why: String| config.proxy_error(proxy, key, why);
        let roots = match &tls.ca {
            Some(file) => {
                pem::read_anchors(file).map_err(|err| refuse("sessions_ca", err.to_string()))?
            }
            None => {
                let mut roots = RootCertStore::empty();
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
                roots
            }
        };
        let provider = Arc::new(default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|err| refuse("sessions_ca", err.to_string()))?;
        let identity = match &tls.identity {
            None => None,
            Some((certificate, key)) => {
                let pair = pem::read_pair(certificate, key).map_err(|err| match err {
                    PairError::Certificate(err) => refuse("sessions_certificate", err.to_string()),
                    PairError::Key(err) => refuse("sessions_key", err.to_string()),
                })?;
                Some(Arc::new(pair))
            }
        };
        Ok(Arc::new(Self(ArcSwap::from_pointee(Files {
            verifier,
            identity,
        }))))
    }

    /// Makes new connections use what `read` has read.
    pub(super) fn renew(&self, read: &Self) {
        self.0.store(read.0.load_full());
    }

    /// Returns the configuration of connections to the daemon.
    ///
    /// # Errors
    /// Those of rustls.
    pub(super) fn client(self: &Arc<Self>) -> Result<ClientConfig, Error> {
        let builder = ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(self.clone());
        Ok(builder.with_client_cert_resolver(self.clone()))
    }
}

/// All checks are those of webpki.
impl ServerCertVerifier for DaemonTls {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = &self.0.load().verifier;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = &self.0.load().verifier;
        verifier.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let verifier = &self.0.load().verifier;
        verifier.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.load().verifier.supported_verify_schemes()
    }
}

impl ResolvesClientCert for DaemonTls {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.load().identity.clone()
    }

    fn has_certs(&self) -> bool {
        self.0.load().identity.is_some()
    }
}
