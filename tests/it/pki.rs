//! Certificates for tests, generated on demand.

use std::{fs, path::Path};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};

/// A certificate authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A certificate chain and its key, in PEM.
pub(crate) struct Leaf {
    pub(crate) chain: String,
    pub(crate) key: String,
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let pem = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            pem,
        }
    }

    /// Returns its key in PEM, for another program that signs with it.
    pub(crate) fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Returns a leaf for these DNS names and URIs.
    pub(crate) fn leaf(&self, names: &[&str]) -> Leaf {
        self.sign(names, |_| {})
    }

    /// Returns a leaf as [`Self::leaf`] does, with parameters that `change` has edited before
    /// signing.
    pub(crate) fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let (uris, dns): (Vec<&str>, Vec<&str>) =
            names.iter().partition(|name| name.contains("://"));
        let mut params =
            CertificateParams::new(dns.iter().map(|&name| name.to_owned()).collect::<Vec<_>>())
                .unwrap();
        params.distinguished_name.push(
            DnType::CommonName,
            names.first().copied().unwrap_or_default(),
        );
        params.subject_alt_names.extend(
            uris.iter()
                .map(|&uri| SanType::URI(uri.try_into().unwrap())),
        );
        change(&mut params);
        Leaf {
            chain: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }
}

impl Leaf {
    /// Writes `NAME.crt` and `NAME.key`.
    pub(crate) fn write(&self, folder: &Path, name: &str) {
        fs::write(folder.join(name).with_extension("crt"), &self.chain).unwrap();
        fs::write(folder.join(name).with_extension("key"), &self.key).unwrap();
    }
}

/// Writes `ca.pem`, `tls.crt` and `tls.key` for localhost to a folder.
pub(crate) fn localhost(folder: &Path) {
    let authority = Authority::new("test");
    fs::write(folder.join("ca.pem"), &authority.pem).unwrap();
    authority.leaf(&["localhost"]).write(folder, "tls");
}
