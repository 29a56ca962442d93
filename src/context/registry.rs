//! Contexts by name, and which of them share a cache.

use std::{collections::HashMap, sync::Arc};

use super::{
    Context,
    build::{self, ClientTrust, Refusal},
    scope::Scope,
};
use crate::{
    clock::Timestamp,
    config::{Config, ConfigError},
    session::Cache,
    store::memory::Limits,
};

/// All contexts of the daemon.
#[derive(Debug)]
pub struct Registry {
    contexts: Vec<Arc<Context>>,
    caches: Vec<Arc<Cache>>,
}

impl Registry {
    /// Opens the files that the configuration names and makes its contexts.
    ///
    /// # Errors
    /// The first thing that is wrong, with its key and where that stands.
    pub fn build(config: &Config) -> Result<Self, ConfigError> {
        let mut shared = Interned::default();
        let mut contexts = Vec::with_capacity(config.contexts.len());
        for (place, context) in config.contexts.iter().enumerate() {
            let context = build::build(context, &mut shared)
                .map_err(|refusal| config.context_error(place, refusal.key, refusal.why))?;
            contexts.push(Arc::new(context));
        }
        let caches = shared.caches.into_values().map(|(_, cache)| cache).collect();
        Ok(Self { contexts, caches })
    }

    /// The context of this name.
    pub fn get(&self, name: &str) -> Option<&Arc<Context>> {
        self.contexts.iter().find(|context| &*context.name == name)
    }

    /// All contexts in the order of the configuration.
    pub fn all(&self) -> &[Arc<Context>] {
        &self.contexts
    }

    /// Every cache once, though contexts share some.
    pub fn caches(&self) -> impl Iterator<Item = &Arc<Cache>> {
        self.caches.iter()
    }

    /// Drops expired sessions from every cache.
    pub fn reap(&self, now: Timestamp) {
        self.caches().for_each(|cache| cache.reap(now));
    }
}

/// What contexts of the same scope hold in common.
#[derive(Default)]
pub(super) struct Interned {
    caches: HashMap<Scope, (Limits, Arc<Cache>)>,
    trust: HashMap<Scope, ClientTrust>,
}

impl Interned {
    /// The cache of a scope. Contexts that share one must agree on its size.
    pub(super) fn cache(
        &mut self,
        scope: Scope,
        limits: Limits,
        make: impl FnOnce() -> Cache,
    ) -> Result<Arc<Cache>, Refusal> {
        let (agreed, cache) = self.caches.entry(scope).or_insert_with(|| (limits, Arc::new(make())));
        if *agreed != limits {
            return Err(Refusal {
                key: "cache_entries_max",
                why:
                    "this context shares the cache of one above, which has other limits: they must agree in \
                      cache_entries_max, cache_bytes_max and session_bytes_max, or differ in session_id_context"
                        .into(),
            });
        }
        Ok(Arc::clone(cache))
    }

    /// What every client context of a scope must hold by the same address.
    pub(super) fn trust(&mut self, scope: Scope, made: ClientTrust) -> ClientTrust {
        self.trust.entry(scope).or_insert(made).clone()
    }
}
