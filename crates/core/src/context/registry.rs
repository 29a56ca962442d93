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
    Context, ContextRefusal, Settings, build,
    credentials::{ClientCredentials, Credential},
    scope::Scope,
    shared::{ClientTrust, Interned, Kept},
};
use crate::{
    access::Access,
    cache::{Cache, revocation::Selector, shared::SharedState},
    clock::Timestamp,
    fleet::FleetStore,
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

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry")
            .field("contexts", &self.contexts)
            .finish_non_exhaustive()
    }
}

impl Registry {
    /// Reads the files that the configuration names, and makes its contexts.
    ///
    /// # Errors
    /// The first fault of the configuration, with its key and line.
    pub fn build(settings: &Settings) -> Result<Self, ContextRefusal> {
        Self::build_over(settings, None)
    }

    /// Does the same as [`Self::build`], for contexts whose sessions other daemons share.
    ///
    /// # Errors
    /// Those of [`Self::build`].
    pub fn build_over(
        settings: &Settings,
        fleet: Option<Arc<FleetStore>>,
    ) -> Result<Self, ContextRefusal> {
        let ledger = SharedState::new(settings.total).over(fleet);
        let registry = Self::make(settings, Interned::new(Arc::new(ledger)))?;
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
        shared.sealers.clone_from(&settings.sealers);
        for (place, context) in settings.contexts.iter().enumerate() {
            let context = build::build(context, &mut shared)
                .map_err(|refusal| ContextRefusal { place, refusal })?;
            contexts.push(Arc::new(context));
        }
        let by_name = contexts
            .iter()
            .enumerate()
            .map(|(place, context)| (Arc::clone(&context.name), place))
            .collect();
        let Interned {
            caches,
            trust,
            renewed,
            self_made,
            ledger,
            next_version,
            ..
        } = shared;
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
        self.renewed
            .iter()
            .for_each(|(used, fresh)| used.renew(fresh));
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
                from.into_iter()
                    .filter(|old| !Arc::ptr_eq(old, cache))
                    .for_each(|old| cache.inherit(old));
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
                    *dropped
                        .entry(Arc::clone(&session.kind().account.name))
                        .or_default() += 1;
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
    /// use. Returns the number of caches whose list of refused tickets was full since the last call.
    pub fn reap(&self, now: Timestamp) -> usize {
        let overflows = self
            .caches()
            .filter(|cache| {
                cache.reap(now);
                cache.take_overflow()
            })
            .count();
        self.ledger().reap();
        overflows
    }
}
