//! Contexts: what SSL_CTX is in OpenSSL. Connections inherit one as it is when they are made.
//!
//! * [`registry`]: contexts by name, and which of them share a cache
//! * [`scope`]: the digest of everything that decides who may resume
//! * [`identity`]: who a certificate names
//! * `credentials`: chains and keys, and which of them a handshake gets
//! * `warnings`: what a configuration allows and seldom means
//! * `suites`: rustls' cipher suites, over `hkdf`, a faster key schedule, and [`sent_alerts`], which tells the alerts that left

use std::{sync::Arc, time::Duration};

use rustls::{ClientConfig, ServerConfig};
use tls_sessiond_types::{Role, Version};

use crate::{
    cache::{
        Cache,
        tombstones::{Departure, Group},
    },
    clock::WallTime,
    session::{SessionId, stats::Account},
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
mod suites;
pub mod warnings;

pub use refusal::{ContextRefusal, Refusal};
pub use registry::{Dropped, Registry};
pub use scope::Scope;
pub use settings::{
    ClientAuth, ClosePolicy, ContextConfig, IDLE_TIMEOUT_MAX, Options, ScopeBy, Settings, Trust,
};

/// What connections inherit. Never changes.
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
    /// How strict it is about the close rule.
    pub close_policy: ClosePolicy,
    /// How long after the authentication a session lives.
    pub session_timeout: Duration,
    /// How long a connection may lie unused.
    pub idle_timeout: Duration,
    /// Most sessions in the cache of each role.
    pub cache_entries_max: usize,
    /// Most bytes in the cache of each role.
    pub cache_bytes_max: usize,
    /// TLS 1.3 tickets of a full handshake.
    pub tickets: usize,
    /// When the first of its certificates ends, by the wall clock.
    pub certificate_ends: Option<WallTime>,
    /// Accepting handshakes. `None`: it has no certificate.
    pub server: Option<Side<ServerConfig>>,
    /// Beginning handshakes. `None`: it trusts nobody.
    pub client: Option<Side<ClientConfig>>,
    /// Sessions that servers made, shared with contexts of the same scope.
    pub server_cache: Arc<Cache>,
    /// Sessions that clients got, shared with contexts of the same scope.
    pub client_cache: Arc<Cache>,
    /// Who may resume: both roles in one.
    pub scope: Scope,
    /// What happened on its connections.
    pub stats: Arc<Account>,
    /// The caches that reloads replaced under this context's name.
    former: Former,
}

/// How many replaced caches of each role a context remembers.
const FORMER_MAX: usize = 4;

/// Groups of replaced caches, the last one first: at most [`FORMER_MAX`] of each role.
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
    /// The cache of one role.
    pub fn cache(&self, role: Role) -> &Arc<Cache> {
        match role {
            Role::Client => &self.client_cache,
            Role::Server => &self.server_cache,
        }
    }

    /// Returns why a session left that was made under this context, before a reload replaced its scope. For explanations
    /// alone: such a session is void, and no lookup or resumption asks for it.
    pub fn formerly(&self, role: Role, id: &SessionId) -> Option<Departure> {
        let cache = self.cache(role);
        let mut departures = self.former.of(role).iter().filter_map(|group| cache.departure_from(*group, id));
        // Another context may have had that scope as well, and may have it still.
        departures.find(|departure| departure.kind.account.name == self.name)
    }

    /// The replaced caches of a context that follows this one under its name, with this cache.
    fn former_beside(&self, role: Role, next: &Arc<Cache>) -> Vec<Group> {
        let own = self.cache(role);
        let replaced = (!Arc::ptr_eq(own, next)).then(|| own.group());
        replaced.into_iter().chain(self.former.of(role).iter().copied()).take(FORMER_MAX).collect()
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

/// rustls' configuration for one role: for all versions of the context, and for each of them alone, which is what a
/// pinned connection uses.
pub struct Side<C> {
    all: Arc<C>,
    tls12: Option<Arc<C>>,
    tls13: Option<Arc<C>>,
}

impl<C> Side<C> {
    /// The configuration for all versions.
    pub fn all(&self) -> &Arc<C> {
        &self.all
    }

    /// The configuration for a pin. `None` where the context does not speak that version.
    pub fn pinned(&self, pin: Option<Version>) -> Option<&Arc<C>> {
        match pin {
            None => Some(&self.all),
            Some(Version::Tls12) => self.tls12.as_ref(),
            Some(Version::Tls13) => self.tls13.as_ref(),
        }
    }
}
