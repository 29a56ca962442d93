//! The names in a certificate.

use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use tls_sessiond_types::server_name::ServerName;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer, ParsedExtension},
};

use crate::{access::DistinguishedName, clock::WallTime, session::PeerIdentity};

/// Reads the names of a DER certificate that rustls has verified.
///
/// webpki and x509-parser may disagree about a certificate. One that x509-parser cannot parse
/// proves no name, and counts as expired.
pub fn identity(der: &[u8]) -> Arc<PeerIdentity> {
    let mut identity = PeerIdentity::default();
    identity
        .certificate_sha256
        .copy_from_slice(digest(&SHA256, der).as_ref());
    if let Ok((_, certificate)) = X509Certificate::from_der(der) {
        let subject = DistinguishedName::from_der(certificate.subject().as_raw());
        identity.subject = subject
            .map(|subject| subject.to_string())
            .unwrap_or_default();
        identity.not_after = not_after(&certificate);
        for name in alternative_names(&certificate) {
            match name {
                GeneralName::DNSName(name) => {
                    // A name that consists of dots is empty in canonical form.
                    let name = ServerName::new(name);
                    identity
                        .dns_names
                        .extend((!name.is_empty()).then(|| name.to_string()));
                }
                GeneralName::URI(uri) => identity.uris.push((*uri).to_owned()),
                _ => {}
            }
        }
    }
    Arc::new(identity)
}

/// Returns the common name of a DER certificate's subject, the last one if it has several. `None`: it
/// has none, or one that is not text.
pub fn common_name(der: &[u8]) -> Option<String> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let names = certificate.subject().iter_common_name();
    names.last()?.as_str().ok().map(str::to_owned)
}

/// Returns the subject alternative names of a certificate.
pub(super) fn alternative_names<'c>(
    certificate: &'c X509Certificate<'_>,
) -> impl Iterator<Item = &'c GeneralName<'c>> {
    certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
}

/// Returns when a certificate expires: the end of its notAfter second.
pub(super) fn not_after(certificate: &X509Certificate<'_>) -> WallTime {
    WallTime::from_secs(
        certificate
            .validity()
            .not_after
            .timestamp()
            .saturating_add(1),
    )
}
