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
    cache::{Cache, Plan, revocation::Selector, shared::Ledger},
    clock::Timestamp,
    session::stats::Account,
    store::memory::Limits,
};

/// All contexts of the daemon, and the rules of access that came with them in one configuration. A call takes both from one
/// registry, so that a reload gives it neither new rights on old contexts nor old rights on new ones (decision 33).
pub struct Registry {
    contexts: Vec<Arc<Context>>,
    by_name: HashMap<Arc<str>, usize>,
    caches: HashMap<Scope, Kept>,
    trust: HashMap<Scope, ClientTrust>,
    /// Client certificates in use, and those that take their place once this registry follows.
    renewed: Vec<(Arc<ClientCredentials>, Arc<ClientCredentials>)>,
    self_made: Option<Credential>,
    ledger: Arc<Ledger>,
    /// What all caches may hold together.
    total: Limits,
    rules: Vec<Access>,
    version: u64,
    /// The version of the next one that is built. Registries that follow each other share it.
    next_version: Arc<AtomicU64>,
}

/// Numbers of sessions that a reload dropped, by the context that they were made under.
pub type Dropped = BTreeMap<Arc<str>, u64>;

/// A cache, and how much it shall hold.
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
    /// Opens the files that the settings name and makes the contexts.
    ///
    /// # Errors
    /// The first fault, with its context and key.
    pub fn build(settings: &Settings) -> Result<Self, ContextRefusal> {
        let registry = Self::make(settings, Interned::new(Arc::new(Ledger::new(settings.total))))?;
        registry.share();
        Ok(registry)
    }

    /// The same, to follow this one. Scopes that stay keep their caches. Nothing changes before [`Self::follow`].
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

    /// Begins to be what connections are made from, after another, at a moment: caches get their sizes, and new ones the
    /// revocations of those that they take the place of. Nothing that authenticated before the moment is stored in a new
    /// one, because it authenticated under another scope.
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
                // Of one that is in neither, a worker may carry over sessions of any context.
                let from: Vec<_> = match of_that_name {
                    Some(old) => vec![old],
                    None => before.caches().collect(),
                };
                from.into_iter().filter(|old| !Arc::ptr_eq(old, cache)).for_each(|old| cache.inherit(old));
            }
        }
        self.share();
    }

    /// Ends to be what connections are made from: caches that the next one does not have are closed. Returns how many sessions
    /// that dropped, by the context that each was made under.
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

    /// The context of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Context>> {
        self.contexts.get(*self.by_name.get(name)?)
    }

    /// All contexts in the order of the configuration.
    pub fn all(&self) -> &[Arc<Context>] {
        &self.contexts
    }

    /// The rules of access, in the order of the configuration.
    pub fn rules(&self) -> &[Access] {
        &self.rules
    }

    /// A number that no other registry of this daemon has. One that is built later has a higher number.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Every cache once, though contexts share some.
    pub fn caches(&self) -> impl Iterator<Item = &Arc<Cache>> + Clone {
        self.caches.values().map(|kept| &kept.cache)
    }

    /// What its caches have in common.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// Drops expired sessions from every cache, and what they leave behind in the ledger.
    pub fn reap(&self, now: Timestamp) {
        self.caches().for_each(|cache| cache.reap(now));
        self.ledger().reap();
    }
}

/// What contexts of the same scope hold in common.
pub(super) struct Interned {
    caches: HashMap<Scope, Kept>,
    trust: HashMap<Scope, ClientTrust>,
    ledger: Arc<Ledger>,
    /// Of the registry that this one follows.
    before: HashMap<Scope, Kept>,
    trust_before: HashMap<Scope, ClientTrust>,
    renewed: Vec<(Arc<ClientCredentials>, Arc<ClientCredentials>)>,
    /// Client certificates of each scope, as this configuration has them.
    certificates: HashMap<Scope, Arc<ClientCredentials>>,
    self_made: Option<Credential>,
    contexts_before: Vec<Arc<Context>>,
    next_version: Arc<AtomicU64>,
}

impl Interned {
    fn new(ledger: Arc<Ledger>) -> Self {
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

    /// The cache of a scope. Contexts that share one must agree on its size.
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
                    "this context shares the cache of one above, which has other limits: they must agree in \
                      cache_entries_max, cache_bytes_max and session_bytes_max, or differ in session_id_context"
                        .into(),
            });
        }
        Ok(Arc::clone(&kept.cache))
    }

    /// What every client context of a scope must hold by the same address. Contexts that share it must agree on the certificates,
    /// which a scope by names does not settle.
    pub(super) fn trust(&mut self, scope: Scope, made: ClientTrust) -> Result<ClientTrust, Refusal> {
        let fresh = self.certificates.entry(scope).or_insert_with(|| Arc::clone(&made.credentials));
        if !Arc::ptr_eq(fresh, &made.credentials) {
            return match (fresh.shows_as(&made.credentials), self.trust.get(&scope)) {
                (true, Some(trust)) => Ok(trust.clone()),
                _ => Err(Refusal {
                    key: "client_certificates".into(),
                    why: "this context shares sessions by names with one above, which has other certificates for these names: \
                          they must have the same client_certificates, or differ in session_id_context"
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

    /// The certificate that the daemon makes for itself, once.
    pub(super) fn self_made(
        &mut self,
        make: impl FnOnce() -> Result<Credential, Refusal>,
    ) -> Result<Credential, Refusal> {
        match &self.self_made {
            Some(made) => Ok(made.clone()),
            None => Ok(self.self_made.insert(make()?).clone()),
        }
    }

    /// The account of a context, as it was before.
    pub(super) fn account(&self, name: &str) -> Arc<Account> {
        let before = self.context_before(name);
        before.map_or_else(|| Arc::new(Account::new(name)), |before| Arc::clone(&before.stats))
    }

    /// The replaced caches of a context that has these now.
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
