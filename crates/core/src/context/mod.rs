//! Contexts, the counterpart of SSL_CTX in OpenSSL. A connection keeps the context that it was made
//! from.
//!
//! * [`registry`]: contexts by name, and which of them share a cache
//! * [`scope`]: the digest of everything that decides which sessions a context may resume
//! * [`identity`]: the names in a certificate
//! * `credentials`: certificate chains and keys, and the choice of one for a handshake
//! * `shared`: the objects that contexts of one scope share
//! * `settings`, `refusal`: the settings of contexts, and why they cannot be used
//! * [`warnings`]: warnings about valid configurations that are probably mistakes
//! * `suites`: the cipher suites of rustls, with a faster key schedule (`cached_hmac`) and a record of the
//!   alerts that were sent ([`sent_alerts`])

use std::{sync::Arc, time::Duration};

use rustls::{ClientConfig, ServerConfig};
use tls_sessiond_types::{Role, Version};

use crate::{
    cache::{
        Cache,
        tombstones::{Group, Tombstone},
    },
    clock::WallTime,
    session::{SessionId, sealing::SealsTickets, stats::Account},
};

mod build;
mod cached_hmac;
mod credentials;
pub mod identity;
mod refusal;
pub mod registry;
pub mod scope;
pub mod sent_alerts;
mod settings;
mod shared;
mod suites;
pub mod warnings;

pub use refusal::{ContextRefusal, Refusal};
pub use registry::{Dropped, Registry};
pub use scope::Scope;
pub use settings::{
    ClientAuth, ClosePolicy, ContextConfig, IDLE_TIMEOUT_MAX, Options, ScopeBy, Settings, Trust,
};

/// The configuration that connections of a kind share. It never changes.
pub struct Context {
    /// Its name in the configuration.
    pub name: Arc<str>,
    /// Versions it speaks, older first.
    pub versions: Vec<Version>,
    /// IANA names of its cipher suites, in the order of preference.
    pub cipher_suites: Vec<&'static str>,
    /// Application protocols, in the order of preference.
    pub alpn: Vec<String>,
    /// SSL_CTX_set_options(3).
    pub options: Options,
    /// When a connection counts as closed.
    pub close_policy: ClosePolicy,
    /// The lifetime of a session, counted from the authentication.
    pub session_timeout: Duration,
    /// How long a connection may be unused before it is freed.
    pub idle_timeout: Duration,
    /// Most sessions in the cache of each role.
    pub cache_entries_max: usize,
    /// Most bytes in the cache of each role.
    pub cache_bytes_max: usize,
    /// How many TLS 1.3 tickets a full handshake makes.
    pub tickets: usize,
    /// The ring that seals the sessions of servers in tickets. `None`: they are stored.
    pub sealing: Option<Sealing>,
    /// When the first of its certificates expires, by the wall clock.
    pub certificate_ends: Option<WallTime>,
    /// The configuration of rustls for servers. `None`: the context has no certificate.
    pub server: Option<Side<ServerConfig>>,
    /// The configuration of rustls for clients. `None`: the context has no trust anchors.
    pub client: Option<Side<ClientConfig>>,
    /// Sessions that servers made, shared with contexts of the same scope.
    pub server_cache: Arc<Cache>,
    /// Sessions that clients got, shared with contexts of the same scope.
    pub client_cache: Arc<Cache>,
    /// The digest of the scopes of both roles.
    pub scope: Scope,
    /// The digest of everything that decides which sessions its servers may resume.
    pub server_scope: Scope,
    /// Statistics of the connections.
    pub stats: Arc<Account>,
    /// The caches that reloads replaced under this context's name.
    former: Former,
}

/// A ring that seals sessions.
#[derive(Clone, Debug)]
pub struct Sealing {
    /// Its name.
    pub ring: Box<str>,
    /// Its keys.
    pub sealer: Arc<dyn SealsTickets>,
}

/// Most replaced caches of each role that a context remembers.
const FORMER_MAX: usize = 4;

/// Groups of replaced caches, the newest first: at most [`FORMER_MAX`] of each role.
#[derive(Clone, Debug, Default)]
struct Former {
    server: Vec<Group>,
    client: Vec<Group>,
}

impl Former {
    fn of(&self, role: Role) -> &[Group] {
        match role {
            Role::Client => &self.client,
            Role::Server => &self.server,
        }
    }
}

impl Context {
    /// Returns the cache of one role.
    pub fn cache(&self, role: Role) -> &Arc<Cache> {
        match role {
            Role::Client => &self.client_cache,
            Role::Server => &self.server_cache,
        }
    }

    /// Returns the tombstone of a session that was made under this context before a reload replaced
    /// the scope of the context. Only for ExplainSession: no lookup or resumption finds such a
    /// session.
    pub fn formerly(&self, role: Role, id: &SessionId) -> Option<Tombstone> {
        let cache = self.cache(role);
        let mut departures = self
            .former
            .of(role)
            .iter()
            .filter_map(|group| cache.departure_from(*group, id));
        // Another context may have had that scope as well, and may still have it.
        departures.find(|departure| departure.kind.account.name == self.name)
    }

    /// Returns the replaced caches of the next context with this name, which has the cache `next`.
    fn former_beside(&self, role: Role, next: &Arc<Cache>) -> Vec<Group> {
        let own = self.cache(role);
        let replaced = (!Arc::ptr_eq(own, next)).then(|| own.group());
        replaced
            .into_iter()
            .chain(self.former.of(role).iter().copied())
            .take(FORMER_MAX)
            .collect()
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context")
            .field("name", &self.name)
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

/// The configuration of rustls for one role: one for all versions of the context, and one for each
/// single version, which a pinned connection uses.
pub struct Side<C> {
    all: Arc<C>,
    tls12: Option<Arc<C>>,
    tls13: Option<Arc<C>>,
}

impl<C> Side<C> {
    /// Returns the configuration for all versions.
    pub fn all(&self) -> &Arc<C> {
        &self.all
    }

    /// Returns the configuration for a pinned version. `None`: the context does not speak that
    /// version.
    pub fn pinned(&self, pin: Option<Version>) -> Option<&Arc<C>> {
        match pin {
            None => Some(&self.all),
            Some(Version::Tls12) => self.tls12.as_ref(),
            Some(Version::Tls13) => self.tls13.as_ref(),
        }
    }
}
