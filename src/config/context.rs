//! What connections inherit: `[[context]]`.

use std::{path::PathBuf, time::Duration};

pub use tls_sessiond_types::Version;

use super::{ConfigError, check::Check, raw};

/// Whether a server asks its clients for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// SSL_VERIFY_NONE.
    None,
    /// SSL_VERIFY_PEER.
    Request,
    /// SSL_VERIFY_PEER with SSL_VERIFY_FAIL_IF_NO_PEER_CERT.
    Require,
}

/// Whether a new client connection may be offered sessions that nobody named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offering {
    /// Newest first, from any worker.
    Shared,
    /// Only what New or SetSession names, as OpenSSL does.
    Explicit,
}

/// What of a context's certificates decides who may resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeBy {
    /// The certificates themselves: a renewed one begins a new scope.
    Certificate,
    /// The names that they prove, and the authority at the end of each chain: a renewed certificate for the same names keeps the
    /// scope.
    Names,
}

/// How strict a context is about the close rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosePolicy {
    /// SSL_clear(3): the SENT flag decides.
    Flag,
    /// Only a close_notify that was made counts.
    Written,
    /// Only fatal alerts remove sessions.
    ErrorsOnly,
}

/// Whom to trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The anchors of this system.
    System,
    /// Those of a PEM file.
    File(PathBuf),
}

/// SSL_CTX_set_options(3), by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// SSL_OP_CIPHER_SERVER_PREFERENCE.
    pub cipher_server_preference: bool,
    /// SSL_OP_IGNORE_UNEXPECTED_EOF.
    pub ignore_unexpected_eof: bool,
    /// SSL_CTX_set_quiet_shutdown(3).
    pub quiet_shutdown: bool,
    /// SSL_SESS_CACHE_OFF.
    pub no_session_cache: bool,
}

/// One `[[context]]`.
#[derive(Clone, Debug, PartialEq)]
pub struct ContextConfig {
    /// Its name.
    pub name: String,
    /// Certificate chain and key, for each server name or kind of key. Empty: it cannot be a server, unless it is
    /// the built-in one, which makes its own.
    pub certificates: Vec<(PathBuf, PathBuf)>,
    /// Whether it makes a certificate for localhost at start: only where no file defines contexts.
    pub self_made: bool,
    /// What a client chooses from when a server asks.
    pub client_certificates: Vec<(PathBuf, PathBuf)>,
    /// Whom to trust.
    pub trust: Trust,
    /// Whether clients must show a certificate.
    pub client_auth: ClientAuth,
    /// Versions, older first.
    pub versions: Vec<Version>,
    /// Names of cipher suites; empty: all that rustls has by default.
    pub cipher_suites: Vec<String>,
    /// Names of key exchange groups; empty: all that rustls has by default.
    pub key_exchange: Vec<String>,
    /// Application protocols in the order of preference.
    pub alpn: Vec<String>,
    /// SSL_CTX_set_options(3).
    pub options: Options,
    /// SSL_CTX_set_session_id_context(3).
    pub session_id_context: String,
    /// What of its certificates decides who may resume.
    pub scope_by: ScopeBy,
    /// Whether client connections are offered sessions that nobody named.
    pub offering: Offering,
    /// TLS 1.3 tickets of a full handshake.
    pub tickets: usize,
    /// How strict it is about the close rule.
    pub close_policy: ClosePolicy,
    /// How long after the authentication a session lives.
    pub session_timeout: Duration,
    /// Largest session, in bytes.
    pub session_bytes_max: usize,
    /// Most sessions in the cache of each role.
    pub cache_entries_max: usize,
    /// Most bytes in the cache of each role.
    pub cache_bytes_max: usize,
    /// How long a connection may lie unused before it is freed as unclosed.
    pub idle_timeout: Duration,
}

/// The longest idle time-out of a connection: a day.
pub const IDLE_TIMEOUT_MAX: Duration = Duration::from_secs(86_400);
/// Longest life of a session after its authentication: seven days (RFC 8446 section 4.6.1).
pub const SESSION_TIMEOUT_MAX: Duration = Duration::from_secs(604_800);

/// Checks one context. Opens no file.
pub(super) fn context(
    check: &Check<'_>,
    place: usize,
    raw: &raw::Context,
) -> Result<ContextConfig, ConfigError> {
    let key = |name: &str| format!("context[{place}].{name}");
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    for (field, name) in [("name", &raw.name), ("session_id_context", &raw.session_id_context)] {
        if name.len() > 64 || !name.chars().all(plain) || (field == "name" && name.is_empty()) {
            let message = format!("`{name}` is not 1 to 64 of a-z, A-Z, 0-9, `-`, `_` and `.`");
            return Err(check.refuse(&key(field), message));
        }
    }
    let relative = |path: &PathBuf| check.origin.folder().join(path);
    let (chains, keys) = (raw.certificate.paths(), raw.key.paths());
    if chains.len() != keys.len() {
        let message = format!("{} certificates, but {} keys: they go in pairs", chains.len(), keys.len());
        return Err(check.refuse(&key("key"), message));
    }
    let mut versions = Vec::new();
    for (at, text) in raw.versions.iter().enumerate() {
        versions.push(check.word(
            &key(&format!("versions[{at}]")),
            text,
            &[("1.2", Version::Tls12), ("1.3", Version::Tls13)],
        )?);
    }
    versions.sort_unstable();
    versions.dedup();
    if versions.is_empty() {
        return Err(
            check.refuse(&key("versions"), "there must be at least one of \"1.2\" and \"1.3\"".into())
        );
    }
    for (at, protocol) in raw.alpn.iter().enumerate() {
        // RFC 7301 section 3.1: a name has 1 to 255 bytes.
        if !(1..=255).contains(&protocol.len()) {
            let message = "a protocol name has 1 to 255 bytes".into();
            return Err(check.refuse(&key(&format!("alpn[{at}]")), message));
        }
    }
    let mut options = Options::default();
    for (at, text) in raw.options.iter().enumerate() {
        let set: fn(&mut Options) = check.word(
            &key(&format!("options[{at}]")),
            text,
            &[
                ("cipher-server-preference", (|o| o.cipher_server_preference = true) as fn(&mut Options)),
                ("ignore-unexpected-eof", |o| o.ignore_unexpected_eof = true),
                ("quiet-shutdown", |o| o.quiet_shutdown = true),
                ("no-session-cache", |o| o.no_session_cache = true),
            ],
        )?;
        set(&mut options);
    }
    // Each ticket costs a signature of the key schedule and an entry; OpenSSL's own clients keep two.
    if raw.tickets > 16 {
        return Err(check.refuse(&key("tickets"), format!("{} is more than 16", raw.tickets)));
    }
    Ok(ContextConfig {
        name: raw.name.clone(),
        certificates: chains.iter().zip(keys).map(|(c, k)| (relative(c), relative(k))).collect(),
        self_made: false,
        client_certificates: raw
            .client_certificates
            .iter()
            .map(|pair| (relative(&pair.certificate), relative(&pair.key)))
            .collect(),
        trust: if raw.ca == "system" {
            Trust::System
        } else {
            Trust::File(relative(&PathBuf::from(&raw.ca)))
        },
        client_auth: check.word(
            &key("client_auth"),
            &raw.client_auth,
            &[("none", ClientAuth::None), ("request", ClientAuth::Request), ("require", ClientAuth::Require)],
        )?,
        versions,
        cipher_suites: raw.cipher_suites.clone(),
        key_exchange: raw.key_exchange.clone(),
        alpn: raw.alpn.clone(),
        options,
        session_id_context: if raw.session_id_context.is_empty() {
            raw.name.clone()
        } else {
            raw.session_id_context.clone()
        },
        scope_by: check.word(
            &key("scope_by"),
            &raw.scope_by,
            &[("certificate", ScopeBy::Certificate), ("names", ScopeBy::Names)],
        )?,
        offering: check.word(
            &key("client_sessions"),
            &raw.client_sessions,
            &[("shared", Offering::Shared), ("explicit", Offering::Explicit)],
        )?,
        tickets: raw.tickets,
        close_policy: check.word(
            &key("close_policy"),
            &raw.close_policy,
            &[
                ("flag", ClosePolicy::Flag),
                ("written", ClosePolicy::Written),
                ("errors-only", ClosePolicy::ErrorsOnly),
            ],
        )?,
        session_timeout: check.duration_within(
            &key("session_timeout"),
            &raw.session_timeout,
            SESSION_TIMEOUT_MAX,
        )?,
        session_bytes_max: check.size(&key("session_bytes_max"), &raw.session_bytes_max)?,
        cache_entries_max: check.at_least_one(&key("cache_entries_max"), raw.cache_entries_max)?,
        cache_bytes_max: check.size(&key("cache_bytes_max"), &raw.cache_bytes_max)?,
        idle_timeout: check.duration_within(&key("idle_timeout"), &raw.idle_timeout, IDLE_TIMEOUT_MAX)?,
    })
}
