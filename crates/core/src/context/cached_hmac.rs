//! A key schedule of TLS 1.3 that hashes each of its keys once.
//!
//! The provider of rustls hashes a key again for every secret that is derived from it, which is two
//! of four blocks. rustls can also run HKDF over an HMAC, and here the HMAC key is hashed once,
//! when it is made. A resumed handshake with SHA-384 then takes 7 % less CPU
//! (docs/benchmarks-log.md).
//!
//! HKDF is that of rustls. HMAC is that of aws-lc-rs, which the provider of rustls uses too. This
//! module only connects the two.

use aws_lc_rs::hmac;
use rustls::{
    Tls13CipherSuite,
    crypto::{
        hash::HashAlgorithm,
        hmac::{Hmac, Key, Tag},
        tls13::{Hkdf, HkdfUsingHmac},
    },
};

/// Returns the HKDF of a suite, over HMAC.
pub(super) fn over_hmac(suite: &Tls13CipherSuite) -> &'static dyn Hkdf {
    match suite.common.hash_provider.algorithm() {
        HashAlgorithm::SHA256 => &HkdfUsingHmac(&Hash {
            hmac: hmac::HMAC_SHA256,
            length: 32,
        }),
        HashAlgorithm::SHA384 => &HkdfUsingHmac(&Hash {
            hmac: hmac::HMAC_SHA384,
            length: 48,
        }),
        // No suite uses another hash now. A future one keeps the key schedule of rustls.
        _ => suite.hkdf_provider,
    }
}

struct Hash {
    hmac: hmac::Algorithm,
    length: usize,
}

impl Hmac for Hash {
    fn with_key(&self, key: &[u8]) -> Box<dyn Key> {
        Box::new(Hashed {
            key: hmac::Key::new(self.hmac, key),
            length: self.length,
        })
    }

    fn hash_output_len(&self) -> usize {
        self.length
    }
}

/// An HMAC key that is already hashed.
struct Hashed {
    key: hmac::Key,
    length: usize,
}

impl Key for Hashed {
    fn sign_concat(&self, first: &[u8], middle: &[&[u8]], last: &[u8]) -> Tag {
        let mut context = hmac::Context::with_key(&self.key);
        context.update(first);
        middle.iter().for_each(|part| context.update(part));
        context.update(last);
        Tag::new(context.sign().as_ref())
    }

    fn tag_len(&self) -> usize {
        self.length
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::{aws_lc_rs::default_provider, tls13::OkmBlock};

    use crate::context::suites::cipher_suites;

    /// Compares every operation of the key schedule with that of rustls' own provider.
    #[test]
    fn every_suite_derives_what_rustls_derives() {
        let theirs = default_provider().cipher_suites;
        let ours = cipher_suites();
        assert_eq!(
            theirs, ours,
            "the suites and their order are those of rustls"
        );
        let mut compared = 0;
        for (theirs, ours) in theirs.iter().zip(&ours) {
            let (Some(theirs), Some(ours)) = (theirs.tls13(), ours.tls13()) else {
                continue;
            };
            compared += 1;
            let (theirs, ours) = (theirs.hkdf_provider, ours.hkdf_provider);
            let length = theirs.extract_from_zero_ikm(None).hash_len();
            let secret: Vec<u8> = (0..=u8::MAX).take(length).collect();
            let okm = OkmBlock::new(&secret);
            let expanders = [
                (
                    theirs.extract_from_zero_ikm(None),
                    ours.extract_from_zero_ikm(None),
                ),
                (
                    theirs.extract_from_zero_ikm(Some(b"salt")),
                    ours.extract_from_zero_ikm(Some(b"salt")),
                ),
                (
                    theirs.extract_from_secret(None, &secret),
                    ours.extract_from_secret(None, &secret),
                ),
                (
                    theirs.extract_from_secret(Some(&[7; 200]), &secret),
                    ours.extract_from_secret(Some(&[7; 200]), &secret),
                ),
                (theirs.expander_for_okm(&okm), ours.expander_for_okm(&okm)),
            ];
            for (theirs, ours) in expanders {
                assert_eq!(theirs.hash_len(), ours.hash_len());
                let infos: [&[&[u8]]; 3] = [&[], &[b"tls13 key"], &[b"a", b"", &[3; 300]]];
                for info in infos {
                    assert_eq!(
                        theirs.expand_block(info).as_ref(),
                        ours.expand_block(info).as_ref()
                    );
                    for length in [0, 1, 12, 32, 48, 49, 500] {
                        let (mut a, mut b) = (vec![0; length], vec![1; length]);
                        theirs.expand_slice(info, &mut a).unwrap();
                        ours.expand_slice(info, &mut b).unwrap();
                        assert_eq!(a, b);
                    }
                }
            }
            assert_eq!(
                theirs.hmac_sign(&okm, b"finished").as_ref(),
                ours.hmac_sign(&okm, b"finished").as_ref()
            );
        }
        assert_eq!(compared, 3);
    }
}
