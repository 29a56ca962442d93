//! The objects that contexts of one scope share.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::AtomicU64},
};

use rustls::client::danger::ServerCertVerifier;
use tls_sessiond_types::Role;

use super::{
    Context, Former, Refusal,
    credentials::{ClientCredentials, Credential},
    scope::Scope,
};
use crate::{
    cache::{Cache, Plan, shared::SharedState},
    session::{sealing::Sealers, stats::Account},
    store::memory::Limits,
};

/// A cache, and the limits that its contexts configure.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) cache: Arc<Cache>,
    pub(super) limits: Limits,
    pub(super) session_bytes_max: usize,
}

/// The verifier and the client certificates that contexts of one client scope share. rustls
/// compares both by address before it resumes a session. So contexts that may resume each other's
/// sessions must hold the same objects.
#[derive(Clone)]
pub(super) struct ClientTrust {
    pub(super) verifier: Arc<dyn ServerCertVerifier>,
    pub(super) credentials: Arc<ClientCredentials>,
}

/// The objects that contexts of the same scope share, while a registry is built.
pub(super) struct Interned {
    pub(super) caches: HashMap<Scope, Kept>,
    pub(super) trust: HashMap<Scope, ClientTrust>,
    pub(super) ledger: Arc<SharedState>,
    /// The caches of the registry that the new one replaces.
    pub(super) before: HashMap<Scope, Kept>,
    pub(super) trust_before: HashMap<Scope, ClientTrust>,
    pub(super) renewed: Vec<(Arc<ClientCredentials>, Arc<ClientCredentials>)>,
    /// Client certificates of each scope in this configuration.
    pub(super) certificates: HashMap<Scope, Arc<ClientCredentials>>,
    pub(super) self_made: Option<Credential>,
    pub(super) contexts_before: Vec<Arc<Context>>,
    pub(super) next_version: Arc<AtomicU64>,
    pub(super) sealers: Sealers,
}

impl Interned {
    pub(super) fn new(ledger: Arc<SharedState>) -> Self {
        Self {
            caches: HashMap::new(),
            trust: HashMap::new(),
            ledger,
            before: HashMap::new(),
            trust_before: HashMap::new(),
            renewed: Vec::new(),
            certificates: HashMap::new(),
            self_made: None,
            contexts_before: Vec::new(),
            next_version: Arc::default(),
            sealers: Sealers::new(),
        }
    }

    /// Returns the cache of a scope.
    ///
    /// # Errors
    /// A context that shares the cache has other limits.
    pub(super) fn cache(&mut self, scope: Scope, plan: &Plan) -> Result<Arc<Cache>, Refusal> {
        let Plan {
            limits,
            session_bytes_max,
            ..
        } = *plan;
        let kept = self.caches.entry(scope).or_insert_with(|| {
            let before = self
                .before
                .get(&scope)
                .map(|before| Arc::clone(&before.cache));
            let cache = before.unwrap_or_else(|| {
                Arc::new(Cache::new(plan, &self.ledger).in_scope(scope.as_bytes()))
            });
            Kept {
                cache,
                limits,
                session_bytes_max,
            }
        });
        if (kept.limits, kept.session_bytes_max) != (limits, session_bytes_max) {
            return Err(Refusal {
                key: "cache_entries_max".into(),
                why:
                    "this context shares the cache of a context above it, which has other limits: give both the same \
                      cache_entries_max, cache_bytes_max and session_bytes_max, or different session_id_context"
                        .into(),
            });
        }
        Ok(Arc::clone(&kept.cache))
    }

    /// Returns the verifier and the client certificates that every context of a client scope must
    /// hold by address.
    ///
    /// # Errors
    /// A context of the scope has other client certificates. Under `scope_by = "names"` such
    /// contexts can have equal scopes.
    pub(super) fn trust(
        &mut self,
        scope: Scope,
        made: ClientTrust,
    ) -> Result<ClientTrust, Refusal> {
        let fresh = self
            .certificates
            .entry(scope)
            .or_insert_with(|| Arc::clone(&made.credentials));
        if !Arc::ptr_eq(fresh, &made.credentials) {
            return match (fresh.shows_as(&made.credentials), self.trust.get(&scope)) {
                (true, Some(trust)) => Ok(trust.clone()),
                _ => Err(Refusal {
                    key: "client_certificates".into(),
                    why: "this context shares sessions by names with a context above it, which has other certificates for \
                          these names: give both the same client_certificates, or different session_id_context"
                        .into(),
                }),
            };
        }
        let held = match self.trust_before.get(&scope) {
            Some(held) => {
                self.renewed
                    .push((Arc::clone(&held.credentials), Arc::clone(&made.credentials)));
                held.clone()
            }
            None => made,
        };
        Ok(self.trust.entry(scope).or_insert(held).clone())
    }

    /// Returns the certificate that the daemon makes for itself. It is made once.
    pub(super) fn self_made(
        &mut self,
        make: impl FnOnce() -> Result<Credential, Refusal>,
    ) -> Result<Credential, Refusal> {
        match &self.self_made {
            Some(made) => Ok(made.clone()),
            None => Ok(self.self_made.insert(make()?).clone()),
        }
    }

    /// Returns the statistics of a context, which continue those of the replaced registry.
    pub(super) fn account(&self, name: &str) -> Arc<Account> {
        let before = self.context_before(name);
        before.map_or_else(
            || Arc::new(Account::new(name)),
            |before| Arc::clone(&before.stats),
        )
    }

    /// Returns the replaced caches of a context that now has the caches `server` and `client`.
    pub(super) fn former(&self, name: &str, server: &Arc<Cache>, client: &Arc<Cache>) -> Former {
        self.context_before(name)
            .map_or_else(Former::default, |before| Former {
                server: before.former_beside(Role::Server, server),
                client: before.former_beside(Role::Client, client),
            })
    }

    fn context_before(&self, name: &str) -> Option<&Arc<Context>> {
        self.contexts_before
            .iter()
            .find(|context| &*context.name == name)
    }
}
