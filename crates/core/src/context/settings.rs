//! The settings of a context, as the configuration has them: `[[context]]`.

use std::{path::PathBuf, time::Duration};

use tls_sessiond_types::Version;

use crate::cache::Offering;
use crate::{access::Access, session::sealing::Sealers, store::memory::Limits};

/// The settings of all contexts, and of all that they share.
#[derive(Clone, Debug)]
pub struct Settings {
    /// At least one, with names that differ.
    pub contexts: Vec<ContextConfig>,
    /// The limits of all caches together.
    pub total: Limits,
    /// The rules of access to the contexts, in the order in which they are tried.
    pub rules: Vec<Access>,
    /// The rings that contexts with [`ContextConfig::ticket_ring`] name.
    pub sealers: Sealers,
}

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

/// The part of a context's certificates that belongs to its scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScopeBy {
    /// The certificates themselves: a renewed certificate begins a new scope.
    Certificate,
    /// The names that they prove, and the authority at the end of each chain. A renewed certificate
    /// for the same names keeps the scope.
    Names,
}

/// How strictly a context applies the close rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClosePolicy {
    /// SSL_clear(3): the SENT flag decides.
    Flag,
    /// Only a close_notify that was made counts.
    Written,
    /// Only fatal alerts remove sessions.
    ErrorsOnly,
}

/// The trust anchors of a context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trust {
    /// The anchors of this system.
    System,
    /// The anchors in a PEM file.
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
    /// The context's name.
    pub name: String,
    /// Certificate chain and key, for each server name or type of key. Without any, the context
    /// cannot be a server, except the built-in one, which makes its own.
    pub certificates: Vec<(PathBuf, PathBuf)>,
    /// Whether the context makes a certificate for localhost at start. Only the built-in context
    /// does.
    pub self_made: bool,
    /// The certificates that a client chooses from when a server asks for one.
    pub client_certificates: Vec<(PathBuf, PathBuf)>,
    /// The trust anchors.
    pub trust: Trust,
    /// Whether clients must show a certificate.
    pub client_auth: ClientAuth,
    /// Protocol versions, oldest first.
    pub versions: Vec<Version>,
    /// Names of cipher suites. Empty: the defaults of rustls.
    pub cipher_suites: Vec<String>,
    /// Names of key exchange groups. Empty: the defaults of rustls.
    pub key_exchange: Vec<String>,
    /// Application protocols, in order of preference.
    pub alpn: Vec<String>,
    /// SSL_CTX_set_options(3).
    pub options: Options,
    /// SSL_CTX_set_session_id_context(3).
    pub session_id_context: String,
    /// The part of the certificates that belongs to the scope.
    pub scope_by: ScopeBy,
    /// Whether client connections are offered sessions that their worker did not name.
    pub offering: Offering,
    /// Number of TLS 1.3 tickets after a full handshake.
    pub tickets: usize,
    /// The ring that seals the sessions of servers in tickets. `None`: they are stored.
    pub ticket_ring: Option<String>,
    /// How strictly the close rule is applied.
    pub close_policy: ClosePolicy,
    /// Lifetime of a session, counted from its authentication.
    pub session_timeout: Duration,
    /// Maximum size of a session, in bytes.
    pub session_bytes_max: usize,
    /// Maximum number of sessions in the cache of each role.
    pub cache_entries_max: usize,
    /// Maximum number of bytes in the cache of each role.
    pub cache_bytes_max: usize,
    /// Time without use after which a connection is freed as unclosed.
    pub idle_timeout: Duration,
}

/// The longest idle time-out of a connection: a day.
pub const IDLE_TIMEOUT_MAX: Duration = Duration::from_secs(86_400);
