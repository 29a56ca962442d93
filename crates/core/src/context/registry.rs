//! Contexts by name, which of them share a cache, and the rules of access to them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tls_sessiond_types::Role;

use super::{
    Context, ContextRefusal, Former, Refusal, Settings,
    build::{self, ClientTrust},
    credentials::{ClientCredentials, Credential},
    scope::Scope,
};
use crate::{
    access::Access,
    cache::{Cache, Plan, revocation::Selector, shared::SharedState},
    clock::Timestamp,
    session::stats::Account,
    store::memory::Limits,
};

/// All contexts of the daemon, and the rules of access of the same configuration.
///
/// A call takes both from one registry. So a reload gives a call neither new rights on old contexts
/// nor old rights on new contexts (decision 33).
pub struct Registry {
    contexts: Vec<Arc<Context>>,
    by_name: HashMap<Arc<str>, usize>,
    caches: HashMap<Scope, Kept>,
    trust: HashMap<Scope, ClientTrust>,
    /// Pairs of client certificates: those in use, and those that replace them in [`Self::follow`].
    renewed: Vec<(Arc<ClientCredentials>, Arc<ClientCredentials>)>,
    self_made: Option<Credential>,
    ledger: Arc<SharedState>,
    /// Limits on all caches together.
    total: Limits,
    rules: Vec<Access>,
    version: u64,
    /// The version of the next registry that is built. Shared with the registries that follow this
    /// one.
    next_version: Arc<AtomicU64>,
}

/// How many sessions a reload dropped, by the context that they were made under.
pub type Dropped = BTreeMap<Arc<str>, u64>;

/// A cache, and the limits that its contexts configure.
#[derive(Clone, Debug)]
struct Kept {
    cache: Arc<Cache>,
    limits: Limits,
    session_bytes_max: usize,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").field("contexts", &self.contexts).finish_non_exhaustive()
    }
}

impl Registry {
    /// Reads the files that the configuration names, and makes its contexts.
    ///
    /// # Errors
    /// The first fault of the configuration, with its key and line.
    pub fn build(settings: &Settings) -> Result<Self, ContextRefusal> {
        let registry = Self::make(settings, Interned::new(Arc::new(SharedState::new(settings.total))))?;
        registry.share();
        Ok(registry)
    }

    /// Builds the registry of a new configuration, which is to replace this one. A scope that is in
    /// both keeps its cache. No cache changes before [`Self::follow`].
    ///
    /// # Errors
    /// As [`Self::build`].
    pub fn rebuild(&self, settings: &Settings) -> Result<Self, ContextRefusal> {
        let mut shared = Interned::new(Arc::clone(&self.ledger));
        shared.next_version = Arc::clone(&self.next_version);
        shared.before = self.caches.clone();
        shared.trust_before = self.trust.clone();
        shared.self_made.clone_from(&self.self_made);
        shared.contexts_before.clone_from(&self.contexts);
        Self::make(settings, shared)
    }

    fn make(settings: &Settings, mut shared: Interned) -> Result<Self, ContextRefusal> {
        let mut contexts = Vec::with_capacity(settings.contexts.len());
        for (place, context) in settings.contexts.iter().enumerate() {
            let context =
                build::build(context, &mut shared).map_err(|refusal| ContextRefusal { place, refusal })?;
            contexts.push(Arc::new(context));
        }
        let by_name =
            contexts.iter().enumerate().map(|(place, context)| (Arc::clone(&context.name), place)).collect();
        let Interned { caches, trust, renewed, self_made, ledger, next_version, .. } = shared;
        let version = next_version.fetch_add(1, Ordering::Relaxed);
        let rules = settings.rules.clone();
        Ok(Self {
            contexts,
            by_name,
            caches,
            trust,
            renewed,
            self_made,
            ledger,
            total: settings.total,
            rules,
            version,
            next_version,
        })
    }

    /// Prepares the caches to replace those of `before` at the time `since`:
    ///
    /// * Every cache gets its configured limits.
    /// * A new cache gets the revocations of the caches that it replaces.
    /// * A new cache stores no session that authenticated before `since`, because that
    ///   authentication belongs to another scope.
    pub fn follow(&self, before: &Self, since: Timestamp) {
        self.renewed.iter().for_each(|(used, fresh)| used.renew(fresh));
        for (scope, kept) in &self.caches {
            if before.caches.contains_key(scope) {
                kept.cache.resize(kept.limits, kept.session_bytes_max);
            } else {
                kept.cache.revoke(Selector::All, since);
            }
        }
        for context in &self.contexts {
            for role in [Role::Server, Role::Client] {
                let cache = context.cache(role);
                let of_that_name = before.get(&context.name).map(|before| before.cache(role));
                // A context with a new name inherits from all: a worker may move sessions of any
                // context to it.
                let from: Vec<_> = match of_that_name {
                    Some(old) => vec![old],
                    None => before.caches().collect(),
                };
                from.into_iter().filter(|old| !Arc::ptr_eq(old, cache)).for_each(|old| cache.inherit(old));
            }
        }
        self.share();
    }

    /// Closes the caches that the next registry does not have. Returns how many sessions that
    /// dropped, by the context that each was made under.
    pub fn retire(&self, after: &Self) -> Dropped {
        let mut dropped = Dropped::new();
        for (scope, kept) in &self.caches {
            if !after.caches.contains_key(scope) {
                kept.cache.close(|session| {
                    *dropped.entry(Arc::clone(&session.kind().account.name)).or_default() += 1;
                });
            }
        }
        dropped
    }

    fn share(&self) {
        self.ledger.budget.resize(self.total);
        self.ledger.budget.share(self.caches());
    }

    /// Returns the context with this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Context>> {
        self.contexts.get(*self.by_name.get(name)?)
    }

    /// Returns all contexts, in the order of the configuration.
    pub fn all(&self) -> &[Arc<Context>] {
        &self.contexts
    }

    /// Returns the rules of access, in the order of the configuration.
    pub fn rules(&self) -> &[Access] {
        &self.rules
    }

    /// Returns a number that no other registry of this daemon has. A later registry has a higher
    /// number.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Returns every cache once, even if contexts share it.
    pub fn caches(&self) -> impl Iterator<Item = &Arc<Cache>> + Clone {
        self.caches.values().map(|kept| &kept.cache)
    }

    /// Returns the state that all caches share.
    pub fn ledger(&self) -> &Arc<SharedState> {
        &self.ledger
    }

    /// Removes expired sessions from every cache, and frees the shared state that they no longer
    /// use.
    pub fn reap(&self, now: Timestamp) {
        self.caches().for_each(|cache| cache.reap(now));
        self.ledger().reap();
    }
}

/// The objects that contexts of the same scope share, while a registry is built.
pub(super) struct Interned {
    caches: HashMap<Scope, Kept>,
    trust: HashMap<Scope, ClientTrust>,
    ledger: Arc<SharedState>,
    /// The caches of the registry that the new one replaces.
    before: HashMap<Scope, Kept>,
    trust_before: HashMap<Scope, ClientTrust>,
    renewed: Vec<(Arc<ClientCredentials>, Arc<ClientCredentials>)>,
    /// Client certificates of each scope in this configuration.
    certificates: HashMap<Scope, Arc<ClientCredentials>>,
    self_made: Option<Credential>,
    contexts_before: Vec<Arc<Context>>,
    next_version: Arc<AtomicU64>,
}

impl Interned {
    fn new(ledger: Arc<SharedState>) -> Self {
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
        }
    }

    /// Returns the cache of a scope.
    ///
    /// # Errors
    /// A context that shares the cache has other limits.
    pub(super) fn cache(&mut self, scope: Scope, plan: &Plan) -> Result<Arc<Cache>, Refusal> {
        let Plan { limits, session_bytes_max, .. } = *plan;
        let kept = self.caches.entry(scope).or_insert_with(|| {
            let before = self.before.get(&scope).map(|before| Arc::clone(&before.cache));
            let cache = before.unwrap_or_else(|| Arc::new(Cache::new(plan, &self.ledger)));
            Kept { cache, limits, session_bytes_max }
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
    pub(super) fn trust(&mut self, scope: Scope, made: ClientTrust) -> Result<ClientTrust, Refusal> {
        let fresh = self.certificates.entry(scope).or_insert_with(|| Arc::clone(&made.credentials));
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
                self.renewed.push((Arc::clone(&held.credentials), Arc::clone(&made.credentials)));
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
        before.map_or_else(|| Arc::new(Account::new(name)), |before| Arc::clone(&before.stats))
    }

    /// Returns the replaced caches of a context that now has the caches `server` and `client`.
    pub(super) fn former(&self, name: &str, server: &Arc<Cache>, client: &Arc<Cache>) -> Former {
        self.context_before(name).map_or_else(Former::default, |before| Former {
            server: before.former_beside(Role::Server, server),
            client: before.former_beside(Role::Client, client),
        })
    }

    fn context_before(&self, name: &str) -> Option<&Arc<Context>> {
        self.contexts_before.iter().find(|context| &*context.name == name)
    }
}
