//! A reload: which caches stay, which revocations new caches inherit, and which caches are closed.

use std::sync::Arc;

use tls_sessiond_core::{
    cache::{NotStored, revocation::Selector},
    session::{Format, RemovalReason},
    store::memory::Limits,
};
use tls_sessiond_types::{Role, Version};

use super::{
    IDS, ResumeCriteria as AskedOn, Setup,
    model::{Held, Key, ModelCache, Peer},
    real::{id, seconds, serial, terms},
    world::{TOTAL, World},
};

impl World {
    pub(super) fn reload(&mut self, setup: Setup) {
        let next = self
            .core
            .registry()
            .rebuild(&setup.config(&self.folder).settings())
            .unwrap();
        self.model.told = self.model.told.max(self.now());
        self.core.swap(Arc::new(next));
        let kept = self.adopt(setup);
        for event in self.heard() {
            let holder = self.model.holder(serial(&event.facts)).unwrap();
            if holder < kept {
                assert!(
                    self.model.caches[holder].over_limits(),
                    "this eviction was not necessary: {event:?}"
                );
                self.leaves(&event, RemovalReason::CacheFull);
            } else {
                self.leaves(&event, RemovalReason::ScopeChanged);
            }
        }
        for gone in self.model.caches.drain(kept..) {
            assert_eq!(
                gone.sessions,
                [],
                "{:?} is closed but has sessions",
                gone.key
            );
        }
        self.closed.extend(self.caches.drain(kept..));
        assert!(!self.model.caches.iter().any(ModelCache::over_limits));
        for closed in &self.closed {
            let held = Held {
                serial: 0,
                id: 0,
                single_use: false,
                name: 0,
                peer: Peer::One,
                authenticated: self.now(),
                timeout: seconds(1),
                secret: 1,
                account: 0,
            };
            let now = self.core.now();
            self.model.told = now.at.as_millis();
            assert_eq!(
                closed.put(self.new_session(&held), now).unwrap_err(),
                NotStored::Revoked
            );
            let terms = terms(AskedOn::Good, 0, Version::Tls12, &Format::Rustls);
            assert!((0..IDS).all(|number| closed.find(&id(number), &terms, now).is_err()));
            assert!(closed.newest(&terms, now).is_none() && closed.is_empty());
        }
    }

    /// Takes over the registry that the table has now. Its caches come first, then those that no
    /// context has any more. Returns how many caches the registry has.
    pub(super) fn adopt(&mut self, setup: Setup) -> usize {
        let registry = Arc::clone(&self.core.registry());
        let before: Vec<_> = self.setup.contexts();
        let mut gone: Vec<_> = std::mem::take(&mut self.model.caches)
            .into_iter()
            .zip(std::mem::take(&mut self.caches))
            .collect();
        let old: Vec<_> = gone.iter().map(|(model, _)| model.key.clone()).collect();
        for plan in setup.contexts() {
            let context = registry.get(plan.name).unwrap();
            let known = self
                .accounts
                .iter()
                .any(|account| Arc::ptr_eq(account, &context.stats));
            let stays = !old.is_empty() && before.iter().any(|before| before.name == plan.name);
            assert_eq!(known, stays, "a context that stays keeps its account");
            if !known {
                self.accounts.push(Arc::clone(&context.stats));
            }
            for server in [true, false] {
                let key = plan.key(server);
                let real = context.cache(if server { Role::Server } else { Role::Client });
                let limits = Limits {
                    entries_max: plan.entries_max,
                    bytes_max: plan.bytes_max,
                };
                if let Some(place) = self.model.caches.iter().position(|cache| cache.key == key) {
                    assert!(
                        Arc::ptr_eq(&self.caches[place], real),
                        "one scope has one cache"
                    );
                    continue;
                }
                self.caches_made += 1;
                let mut cache =
                    ModelCache::new(key, self.caches_made, limits, plan.session_bytes_max);
                if let Some(place) = gone.iter().position(|(old, _)| old.key == cache.key) {
                    let (old, same) = gone.remove(place);
                    assert!(
                        Arc::ptr_eq(&same, real),
                        "a scope that stays keeps its cache"
                    );
                    cache.number = old.number;
                    (cache.sessions, cache.revocations) = (old.sessions, old.revocations);
                } else {
                    if !old.is_empty() {
                        // Sessions authenticated before belong to another scope.
                        cache
                            .revocations
                            .push((Selector::All, self.core.now().at.as_millis()));
                    }
                    let mut others = self
                        .caches
                        .iter()
                        .chain(gone.iter().map(|(_, cache)| cache));
                    assert!(
                        !others.any(|other| Arc::ptr_eq(other, real)),
                        "two scopes share a cache"
                    );
                }
                self.model.caches.push(cache);
                self.caches.push(Arc::clone(real));
            }
        }
        self.model.share(&TOTAL);
        let kept = self.caches.len();
        for (model, real) in gone {
            self.model.caches.push(model);
            self.caches.push(real);
        }
        self.inherit(setup, &old);
        self.setup = setup;
        kept
    }

    /// Lets each cache inherit the revocations of its context's former cache or, for a new context,
    /// of all former caches. It does so twice, as the daemon does, because a revocation may come in
    /// between.
    fn inherit(&mut self, setup: Setup, old: &[Key]) {
        for plan in setup.contexts().iter().chain(&setup.contexts()) {
            for server in [true, false] {
                let had = self
                    .setup
                    .contexts()
                    .iter()
                    .find(|had| had.name == plan.name)
                    .map(|had| had.key(server));
                let from = had.map_or(old.to_vec(), |had| vec![had]);
                for from in self
                    .model
                    .caches
                    .clone()
                    .iter()
                    .filter(|cache| from.contains(&cache.key))
                {
                    let heir = self
                        .model
                        .caches
                        .iter_mut()
                        .find(|cache| cache.key == plan.key(server))
                        .unwrap();
                    for revocation in &from.revocations {
                        if !heir.revocations.contains(revocation) {
                            heir.revocations.push(revocation.clone());
                        }
                    }
                }
            }
        }
    }
}
