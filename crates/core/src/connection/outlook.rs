//! Predicts how rustls answers a TLS 1.3 ClientHello, to decide which session to look up for it.
//!
//! rustls consumes a single-use session before it finds that the session does not fit, or that it
//! refuses the ClientHello. So a session is looked up only for a ClientHello that gets a
//! ServerHello, and only if the session has the cipher suite of that ServerHello.
//!
//! The prediction follows `choose_suite_and_kx_group` of rustls. A wrong prediction consumes a
//! session without resuming it, and has no other effect.

use rustls::{ServerConfig, SupportedCipherSuite, SupportedProtocolVersion, version::TLS13};
use tls_sessiond_types::{
    cipher_suite::iana_name,
    client_hello::{Offer, Parameters},
    server_name::ServerName,
};

/// The values of a ClientHello that the one after a HelloRetryRequest must repeat, or rustls
/// refuses it.
#[derive(Debug)]
pub(super) struct Retried {
    server_name: ServerName<'static>,
    dotted: bool,
    cipher_suite: Option<&'static str>,
}

impl Retried {
    /// Takes the values from the first ClientHello.
    pub(super) fn of(config: &ServerConfig, first: &Offer) -> Self {
        Self {
            server_name: first.server_name.clone(),
            dotted: first.dotted,
            cipher_suite: chosen(config, &first.parameters),
        }
    }

    /// Returns whether rustls accepts the second ClientHello.
    pub(super) fn goes_on_with(&self, config: &ServerConfig, second: &Offer) -> bool {
        (&self.server_name, self.dotted) == (&second.server_name, second.dotted)
            && self.cipher_suite == chosen(config, &second.parameters)
            && !second.parameters.early_data
    }
}

/// Returns the IANA name of the cipher suite of the ServerHello. `None`: the ClientHello is
/// refused, or answered with a HelloRetryRequest.
pub(super) fn tls13_suite(config: &ServerConfig, hello: &Parameters) -> Option<&'static str> {
    let provider = config.crypto_provider();
    let group = hello.groups.iter().copied().find(|&group| {
        let named = |ours: &&&dyn rustls::crypto::SupportedKxGroup| u16::from(ours.name()) == group;
        provider
            .kx_groups
            .iter()
            .find(named)
            .is_some_and(|ours| ours.usable_for_version(TLS13.version))
    })?;
    if !hello.key_shares.contains(&group) {
        return None;
    }
    let ours = &config.alpn_protocols;
    let agreed =
        |theirs: &Vec<Vec<u8>>| ours.is_empty() || theirs.iter().any(|name| ours.contains(name));
    if !hello.protocols.as_ref().is_none_or(agreed) {
        return None;
    }
    chosen(config, hello)
}

/// Returns the IANA name of the TLS 1.3 cipher suite that rustls chooses. `None`: the sides share
/// none.
fn chosen(config: &ServerConfig, hello: &Parameters) -> Option<&'static str> {
    let version: &SupportedProtocolVersion = &TLS13;
    let mut suites = config
        .crypto_provider()
        .cipher_suites
        .iter()
        .filter(|suite| suite.version() == version);
    let number = |suite: &&SupportedCipherSuite| u16::from(suite.suite());
    let chosen = if config.ignore_client_order {
        suites.find(|suite| hello.cipher_suites.contains(&number(suite)))
    } else {
        hello
            .cipher_suites
            .iter()
            .find_map(|&theirs| suites.clone().find(|suite| number(suite) == theirs))
    };
    chosen.map(|suite| iana_name(suite.suite()))
}
