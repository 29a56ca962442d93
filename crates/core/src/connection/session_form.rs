//! The form in which rustls gives a server's session to its storage (`ServerSessionValue`).
//!
//! The form is private to rustls. A test reads sessions of the real rustls, so that an update that
//! changes it fails. A session that cannot be read is not sealed, and the handshake goes on.

use rustls::{CipherSuite, crypto::aws_lc_rs::ALL_CIPHER_SUITES};
use tls_sessiond_types::{Version, cipher_suite::iana_name};

/// The public part of a session, and its master secret.
pub(super) struct SessionForm<'s> {
    /// The SNI, as the client wrote it but in lower case.
    pub(super) server_name: Option<&'s str>,
    pub(super) version: Version,
    /// The IANA name.
    pub(super) cipher_suite: &'static str,
    /// TLS 1.2: the master secret. TLS 1.3: the PSK.
    pub(super) secret: &'s [u8],
    /// The leaf of the client's chain, as DER.
    pub(super) certificate: Option<&'s [u8]>,
}

impl<'s> SessionForm<'s> {
    /// Reads a session. `None`: this rustls does not write such a session.
    pub(super) fn read(bytes: &'s [u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        let server_name = match rest.is_present()? {
            true => Some(std::str::from_utf8(rest.vector::<1>()?).ok()?),
            false => None,
        };
        let version = match rest.number::<2>()? {
            0x0303 => Version::Tls12,
            0x0304 => Version::Tls13,
            _ => return None,
        };
        let suite = CipherSuite::from(u16::try_from(rest.number::<2>()?).ok()?);
        let mut known = ALL_CIPHER_SUITES.iter().map(|suite| suite.suite());
        let cipher_suite = iana_name(known.find(|known| *known == suite)?);
        let secret = rest.vector::<1>()?;
        // Whether the master secret is an extended one.
        rest.is_present()?;
        let certificate = match rest.is_present()? {
            true => Some(Rest(rest.vector::<3>()?).vector::<3>()?),
            false => None,
        };
        if rest.is_present()? {
            // The application protocol.
            rest.vector::<1>()?;
        }
        // Data of the application, which the daemon does not set.
        rest.vector::<2>()?;
        // When it was made, and what obfuscates its age.
        rest.take(8 + 4)?;
        rest.0.is_empty().then_some(Self {
            server_name,
            version,
            cipher_suite,
            secret,
            certificate,
        })
    }
}

/// Takes values off the front of a slice.
struct Rest<'s>(&'s [u8]);

impl<'s> Rest<'s> {
    fn take(&mut self, count: usize) -> Option<&'s [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number<const BYTES: usize>(&mut self) -> Option<usize> {
        let bytes = self.take(BYTES)?.iter();
        Some(bytes.fold(0, |number, &byte| number << 8 | usize::from(byte)))
    }

    /// Takes a vector behind its length of this many bytes.
    fn vector<const BYTES: usize>(&mut self) -> Option<&'s [u8]> {
        let length = self.number::<BYTES>()?;
        self.take(length)
    }

    fn is_present(&mut self) -> Option<bool> {
        match self.number::<1>()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use rustls::{
        ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
        SupportedProtocolVersion,
        pki_types::{CertificateDer, PrivateKeyDer, ServerName},
        server::{ProducesTickets, WebPkiClientVerifier},
        version::{TLS12, TLS13},
    };

    use super::*;

    /// Keeps what rustls wants sealed.
    #[derive(Debug, Default)]
    struct Kept(Mutex<Vec<Vec<u8>>>);

    impl ProducesTickets for Kept {
        fn enabled(&self) -> bool {
            true
        }
        fn lifetime(&self) -> u32 {
            60
        }
        fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
            self.0.lock().unwrap().push(plain.to_vec());
            Some(vec![7; 80])
        }
        fn decrypt(&self, _: &[u8]) -> Option<Vec<u8>> {
            None
        }
    }

    /// What the sides of a handshake show.
    struct Shown {
        version: &'static SupportedProtocolVersion,
        server_name: &'static str,
        certificate: bool,
        alpn: bool,
    }

    /// Returns a session of the real rustls, the suite of its handshake, and the client's certificate.
    fn session(shown: &Shown) -> (Vec<u8>, &'static str, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()]);
        let made = made.unwrap();
        let certificate = made.cert.der().clone();
        let chain = || vec![certificate.clone()];
        let key = || PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let roots = Arc::new(roots);
        let verifier = WebPkiClientVerifier::builder(Arc::clone(&roots));
        let verifier = verifier.allow_unauthenticated().build().unwrap();
        let kept = Arc::new(Kept::default());
        let mut server = ServerConfig::builder_with_protocol_versions(&[shown.version])
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain(), key())
            .unwrap();
        server.ticketer = kept.clone();
        server.alpn_protocols = vec![b"h2".to_vec()];
        let client = ClientConfig::builder_with_protocol_versions(&[shown.version])
            .with_root_certificates(roots);
        let mut client = match shown.certificate {
            true => client.with_client_auth_cert(chain(), key()).unwrap(),
            false => client.with_no_client_auth(),
        };
        if shown.alpn {
            client.alpn_protocols = vec![b"h2".to_vec()];
        }
        let name = ServerName::try_from(shown.server_name).unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        for _ in 0..4 {
            let mut records = Vec::new();
            while client.wants_write() {
                client.write_tls(&mut records).unwrap();
            }
            server.read_tls(&mut &*records).unwrap();
            server.process_new_packets().unwrap();
            records.clear();
            while server.wants_write() {
                server.write_tls(&mut records).unwrap();
            }
            let mut rest = &*records;
            while !rest.is_empty() {
                client.read_tls(&mut rest).unwrap();
                client.process_new_packets().unwrap();
            }
        }
        let suite = iana_name(server.negotiated_cipher_suite().unwrap().suite());
        let session = kept.0.lock().unwrap().pop().expect("a session");
        (session, suite, certificate)
    }

    #[test]
    fn sessions_of_the_real_rustls_are_read() {
        for version in [&TLS12, &TLS13] {
            for (server_name, certificate, alpn) in [
                ("localhost", false, false),
                ("localhost", true, true),
                // An address is no SNI.
                ("127.0.0.1", true, false),
            ] {
                let shown = Shown {
                    version,
                    server_name,
                    certificate,
                    alpn,
                };
                let (bytes, suite, leaf) = session(&shown);
                let form = SessionForm::read(&bytes).expect("the form has changed");
                let name = Some(server_name).filter(|name| *name == "localhost");
                assert_eq!(form.server_name, name);
                assert_eq!(
                    form.version == Version::Tls13,
                    version.version == TLS13.version
                );
                assert_eq!(form.cipher_suite, suite);
                assert!(matches!(form.secret.len(), 32 | 48));
                assert_eq!(form.certificate, certificate.then_some(&*leaf));
                for length in 0..bytes.len() {
                    assert!(SessionForm::read(&bytes[..length]).is_none(), "{length}");
                }
                assert!(SessionForm::read(&[&*bytes, &[0]].concat()).is_none());
                for at in 0..bytes.len() {
                    let mut changed = bytes.clone();
                    changed[at] ^= 0xff;
                    // It may be another session, and does not panic.
                    let _ = SessionForm::read(&changed);
                }
            }
        }
    }
}
