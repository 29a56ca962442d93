//! The cipher suites of rustls, with two changes in each: a faster key schedule
//! ([`cached_hmac`](super::cached_hmac)), and a record of each alert before it is encrypted
//! ([`sent_alerts`](super::sent_alerts)).

use std::sync::LazyLock;

use rustls::{
    SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite,
    crypto::{CipherSuiteCommon, aws_lc_rs::default_provider},
};

use super::{cached_hmac, sent_alerts};

/// Returns the suites, in the order of rustls.
pub(super) fn cipher_suites() -> Vec<SupportedCipherSuite> {
    static SUITES: LazyLock<Vec<SupportedCipherSuite>> =
        LazyLock::new(|| default_provider().cipher_suites.iter().map(ours).collect());
    SUITES.clone()
}

/// Wraps a suite of rustls. The memory is leaked: each suite is made once in the life of a process.
fn ours(suite: &SupportedCipherSuite) -> SupportedCipherSuite {
    match suite {
        SupportedCipherSuite::Tls13(suite) => {
            SupportedCipherSuite::Tls13(Box::leak(Box::new(tls13(suite))))
        }
        SupportedCipherSuite::Tls12(suite) => {
            SupportedCipherSuite::Tls12(Box::leak(Box::new(tls12(suite))))
        }
    }
}

fn tls13(suite: &Tls13CipherSuite) -> Tls13CipherSuite {
    Tls13CipherSuite {
        common: common(&suite.common),
        hkdf_provider: cached_hmac::over_hmac(suite),
        aead_alg: Box::leak(Box::new(sent_alerts::Tls13(suite.aead_alg))),
        quic: suite.quic,
    }
}

fn tls12(suite: &Tls12CipherSuite) -> Tls12CipherSuite {
    Tls12CipherSuite {
        common: common(&suite.common),
        prf_provider: suite.prf_provider,
        kx: suite.kx,
        sign: suite.sign,
        aead_alg: Box::leak(Box::new(sent_alerts::Tls12(suite.aead_alg))),
    }
}

fn common(common: &CipherSuiteCommon) -> CipherSuiteCommon {
    CipherSuiteCommon {
        suite: common.suite,
        hash_provider: common.hash_provider,
        confidentiality_limit: common.confidentiality_limit,
    }
}
