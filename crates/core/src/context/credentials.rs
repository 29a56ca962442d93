//! Certificate chains and keys, and the choice of one for a handshake.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;
use rustls::{
    SignatureScheme,
    client::ResolvesClientCert,
    pki_types::CertificateDer,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tls_sessiond_types::server_name::ServerName;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer, ParsedExtension},
};

use super::identity::{alternative_names, not_after};
use crate::clock::WallTime;

/// A certificate chain, its key, and the properties of its certificates.
#[derive(Clone, Debug)]
pub(super) struct Credential {
    pub(super) key: Arc<CertifiedKey>,
    dns_names: Vec<ServerName<'static>>,
    /// The DNS, IP and URI subject alternative names of the leaf, each prefixed with its kind.
    names: BTreeSet<Vec<u8>>,
    /// Identifies the issuer of the last certificate of the chain.
    authority: Vec<u8>,
    /// DER of the issuer of each certificate of the chain.
    issuers: Vec<Vec<u8>>,
    pub(super) not_after: WallTime,
}

impl Credential {
    /// Takes a chain and its key, and parses the certificates.
    ///
    /// # Errors
    /// The place in the chain, from 1, of a certificate that cannot be parsed. The parser's error
    /// is dropped, as in [`crate::pem`].
    pub(super) fn new(key: CertifiedKey) -> Result<Self, usize> {
        let (mut dns_names, mut names) = (Vec::new(), BTreeSet::new());
        let (mut issuers, mut authority) = (Vec::new(), Vec::new());
        let mut ends = None;
        for (place, der) in key.cert.iter().enumerate() {
            let (_, certificate) = X509Certificate::from_der(der).map_err(|_| place + 1)?;
            issuers.push(certificate.issuer().as_raw().to_vec());
            authority = self::authority(&certificate);
            if ends.is_none() {
                ends = Some(not_after(&certificate));
                names = alternative_names(&certificate)
                    .filter_map(kind_and_name)
                    .collect();
                dns_names = alternative_names(&certificate)
                    .filter_map(|name| match name {
                        GeneralName::DNSName(name) => Some(ServerName::new(name).into_owned()),
                        _ => None,
                    })
                    .collect();
            }
        }
        Ok(Self {
            key: Arc::new(key),
            dns_names,
            names,
            authority,
            issuers,
            not_after: ends.unwrap_or_default(),
        })
    }

    /// Returns all certificates of the chain, leaf first.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.key.cert
    }

    /// Returns the properties that a renewed certificate shares with this one: the names that it
    /// proves, and the issuer at the end of its chain. `None`: the certificate proves no name.
    pub(super) fn proves(&self) -> Option<(&BTreeSet<Vec<u8>>, &[u8])> {
        (!self.names.is_empty()).then_some((&self.names, &self.authority))
    }

    fn signs(&self, schemes: &[SignatureScheme]) -> bool {
        self.key.key.choose_scheme(schemes).is_some()
    }
}

/// Returns a DNS, IP or URI name with its kind as a prefix. Other kinds give `None`.
fn kind_and_name(name: &GeneralName<'_>) -> Option<Vec<u8>> {
    match name {
        GeneralName::DNSName(name) => Some(format!("dns:{}", ServerName::new(name)).into_bytes()),
        GeneralName::IPAddress(address) => Some([&b"ip:"[..], address].concat()),
        GeneralName::URI(uri) => Some(format!("uri:{uri}").into_bytes()),
        _ => None,
    }
}

/// Returns bytes that identify the issuer of a certificate: its name, the identifier of its key
/// (RFC 5280 section 4.2.1.1), and the key itself if the certificate is its own issuer.
fn authority(certificate: &X509Certificate<'_>) -> Vec<u8> {
    let key_id =
        certificate
            .extensions()
            .iter()
            .find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::AuthorityKeyIdentifier(authority) => {
                    authority.key_identifier.as_ref().map(|id| id.0)
                }
                _ => None,
            });
    let own = certificate.issuer().as_raw() == certificate.subject().as_raw();
    let key = if own {
        certificate.public_key().raw
    } else {
        &[]
    };
    let mut all = Vec::new();
    for part in [
        certificate.issuer().as_raw(),
        key_id.unwrap_or_default(),
        key,
    ] {
        all.extend_from_slice(&(part.len() as u64).to_be_bytes());
        all.extend_from_slice(part);
    }
    all
}

/// Server certificates, chosen by SNI (RFC 6066 section 3).
///
/// The choice is a certificate with the exact name, then one with a wildcard, then the first of the
/// list. Of several certificates, the first is chosen whose key the client can verify.
#[derive(Debug)]
pub(super) struct ServerCredentials {
    all: Vec<Credential>,
    by_name: HashMap<ServerName<'static>, Vec<usize>>,
}

impl ServerCredentials {
    pub(super) fn new(all: Vec<Credential>) -> Self {
        let mut by_name: HashMap<_, Vec<usize>> = HashMap::new();
        for (place, credential) in all.iter().enumerate() {
            for name in &credential.dns_names {
                by_name.entry(name.clone()).or_default().push(place);
            }
        }
        Self { all, by_name }
    }

    fn select(
        &self,
        server_name: Option<&str>,
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let named = server_name.map(ServerName::new).and_then(|name| {
            self.by_name.get(&*name).or_else(|| {
                let (_, parent) = name.split_once('.')?;
                self.by_name.get(format!("*.{parent}").as_str())
            })
        });
        let fitting = |credential: &&Credential| credential.signs(schemes);
        let chosen = match named {
            Some(places) => places.iter().map(|&place| &self.all[place]).find(fitting),
            None => None,
        };
        chosen
            .or_else(|| self.all.iter().find(fitting))
            .or_else(|| self.all.first())
            .map(|credential| Arc::clone(&credential.key))
    }
}

impl ResolvesServerCert for ServerCredentials {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.select(hello.server_name(), hello.signature_schemes())
    }
}

/// Client certificates, chosen by the server's request, as SSL_CTX_set_client_cert_cb(3) does.
///
/// rustls resumes a session only with the same resolver object that its handshake had. So a scope
/// that survives a renewal keeps this object, and only the certificates in it are replaced.
#[derive(Debug)]
pub(super) struct ClientCredentials(ArcSwap<Vec<Credential>>);

impl ClientCredentials {
    pub(super) fn new(all: Vec<Credential>) -> Self {
        Self(ArcSwap::from_pointee(all))
    }

    /// Returns whether `other` has the same certificates, in the same order.
    pub(super) fn shows_as(&self, other: &Self) -> bool {
        let (one, other) = (self.0.load(), other.0.load());
        one.iter()
            .map(Credential::chain)
            .eq(other.iter().map(Credential::chain))
    }

    /// Takes the certificates of `from` for all later handshakes.
    pub(super) fn renew(&self, from: &Self) {
        self.0.store(from.0.load_full());
    }
}

impl ResolvesClientCert for ClientCredentials {
    /// Returns the first certificate that one of the named authorities issued and whose key the
    /// server can verify. A server that names no authority accepts any (RFC 8446 section 4.2.4).
    /// `None`: no certificate is sent.
    fn resolve(
        &self,
        authorities: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.0
            .load()
            .iter()
            .filter(|credential| credential.signs(schemes))
            .find(|credential| {
                authorities.is_empty()
                    || credential
                        .issuers
                        .iter()
                        .any(|issuer| authorities.contains(&issuer.as_slice()))
            })
            .map(|credential| Arc::clone(&credential.key))
    }

    fn has_certs(&self) -> bool {
        !self.0.load().is_empty()
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, IsCa, Issuer, KeyPair};
    use rustls::{crypto::aws_lc_rs::default_provider, pki_types::PrivateKeyDer};

    use super::*;

    fn credential(names: &[&str], issuer: Option<&Issuer<'_, KeyPair>>) -> Credential {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(
            names
                .iter()
                .map(|&name| name.to_owned())
                .collect::<Vec<_>>(),
        )
        .unwrap();
        let certificate = match issuer {
            Some(issuer) => params.signed_by(&key, issuer).unwrap(),
            None => params.self_signed(&key).unwrap(),
        };
        let der = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let chain = vec![certificate.der().clone()];
        Credential::new(CertifiedKey::from_der(chain, der, &default_provider()).unwrap()).unwrap()
    }

    fn authority(name: &str) -> (Issuer<'static, KeyPair>, Vec<u8>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        let (_, parsed) = X509Certificate::from_der(certificate.der()).unwrap();
        let subject = parsed.subject().as_raw().to_vec();
        (Issuer::new(params, key), subject)
    }

    const SCHEMES: [SignatureScheme; 1] = [SignatureScheme::ECDSA_NISTP256_SHA256];

    #[test]
    fn server_certificate_is_chosen_by_name() {
        let all = vec![
            credential(&["first.test"], None),
            credential(&["exact.example.test"], None),
            credential(&["*.Example.test"], None),
        ];
        let keys: Vec<_> = all
            .iter()
            .map(|credential| Arc::clone(&credential.key))
            .collect();
        let credentials = ServerCredentials::new(all);
        for (name, place) in [
            (Some("first.test"), 0),
            (Some("exact.example.test"), 1),
            (Some("other.example.test"), 2),
            (Some("exact.example.test."), 1),
            (Some("Other.example.test."), 2),
            (Some("a.other.example.test"), 0),
            (Some("unknown.test"), 0),
            (None, 0),
        ] {
            let chosen = credentials.select(name, &SCHEMES).unwrap();
            assert!(Arc::ptr_eq(&chosen, &keys[place]), "{name:?}");
        }
    }

    #[test]
    fn client_certificate_is_chosen_by_issuing_authority() {
        let (one, one_name) = authority("one");
        let (two, two_name) = authority("two");
        let (_, three_name) = authority("three");
        let all = vec![
            credential(&["a"], Some(&one)),
            credential(&["b"], Some(&two)),
        ];
        let keys: Vec<_> = all
            .iter()
            .map(|credential| Arc::clone(&credential.key))
            .collect();
        let credentials = ClientCredentials::new(all);
        let resolve = |authorities: &[&[u8]]| {
            let chosen = credentials.resolve(authorities, &SCHEMES)?;
            keys.iter().position(|key| Arc::ptr_eq(key, &chosen))
        };
        assert_eq!(resolve(&[&one_name]), Some(0));
        assert_eq!(resolve(&[&three_name, &two_name]), Some(1));
        assert_eq!(resolve(&[]), Some(0));
        assert_eq!(resolve(&[&three_name]), None);
        assert!(
            credentials
                .resolve(&[], &[SignatureScheme::ED25519])
                .is_none()
        );
    }
}
