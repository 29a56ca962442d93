//! The caller of one HTTP/2 connection, and its current rights.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;
use tls_sessiond_core::{
    context::{Context, Registry},
    state::CoreState,
};

use super::{
    Access,
    identity::Peer,
    rights::{IN_ALL_CONTEXTS, RIGHTS, rights},
    rules::Grants,
};
use crate::api::{
    error::Refusal,
    quota::{
        Accounts, Holder,
        streams::{Class, StreamLimits, StreamTotals, Streams},
    },
    role::Roles,
};

/// Longest interval between two comparisons of the certificate's end with the wall clock. The clock
/// may be set forward while a stream waits.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(5);

/// Returns the context name of a request. An empty name means `default`.
pub(crate) fn named(name: &str) -> &str {
    if name.is_empty() { "default" } else { name }
}

/// The caller of one HTTP/2 connection. Each question about its rights takes the [`Registry`] that
/// the call uses, so that rights and contexts come from one configuration.
#[derive(Debug)]
pub(crate) struct Caller {
    peer: Peer,
    access: Arc<Access>,
    /// The version of the newest registry asked about, and the grants by its rules.
    grants: Mutex<(u64, Arc<Grants>)>,
    streams: Streams,
    holder: Arc<Holder>,
}

impl Caller {
    /// Creates a caller. Its stream limit follows from the roles it has now. Later changes of the
    /// rules do not change that limit.
    pub(crate) fn new(
        peer: Peer,
        access: &Arc<Access>,
        registry: &Registry,
        limits: &StreamLimits,
        totals: &Arc<StreamTotals>,
        accounts: &Arc<Accounts>,
    ) -> Self {
        let grants = Arc::new(Grants::of(registry.rules(), &peer));
        let class = match (grants.any(Roles::WORKER), grants.any(Roles::ALL)) {
            (true, _) => Class::Worker,
            (false, true) => Class::OtherRole,
            (false, false) => Class::NoRole,
        };
        let streams = Streams::new(limits, class, totals);
        let holder = accounts.holder(peer.owner.name());
        let grants = Mutex::new((registry.version(), grants));
        Self {
            peer,
            access: Arc::clone(access),
            grants,
            streams,
            holder,
        }
    }

    /// Returns the account of its identity.
    pub(crate) fn holder(&self) -> &Arc<Holder> {
        &self.holder
    }

    /// Returns the long streams of its connection.
    pub(crate) fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Returns the owner name of its connection objects.
    pub(crate) fn owner(&self) -> &Arc<str> {
        self.peer.owner.name()
    }

    /// Returns the grants to the caller by the rules of this registry.
    pub(crate) fn grants(&self, registry: &Registry) -> Arc<Grants> {
        let version = registry.version();
        let mut held = self.grants.lock();
        if held.0 == version {
            return Arc::clone(&held.1);
        }
        let grants = Arc::new(Grants::of(registry.rules(), &self.peer));
        // A call that began before a reload must not replace newer grants.
        if held.0 < version {
            *held = (version, Arc::clone(&grants));
        }
        grants
    }

    /// Returns whether the caller has one of these roles in a context. The first rule that matches
    /// both the caller and the context decides.
    pub(crate) fn may(&self, registry: &Registry, roles: Roles, context: &str) -> bool {
        self.grants(registry).in_context(roles, context)
    }

    /// Checks that the caller may call this method in at least one context.
    ///
    /// # Errors
    /// * The certificate of the caller has expired.
    /// * The method is not in the table of rights.
    /// * The caller has no identity, or no role that may call the method.
    pub(crate) fn may_call(&self, path: &str, state: &CoreState) -> Result<(), Refusal> {
        if self
            .peer
            .ends
            .is_some_and(|ends| ends <= state.now().wall())
        {
            return Err(Refusal::CertificateEnded);
        }
        let roles = rights(&RIGHTS, path, crate::api::methods::serves)?;
        if roles.meet(Roles::ANYONE) {
            return Ok(());
        }
        if self.peer.identities.is_empty() {
            return Err(Refusal::Unauthenticated);
        }
        let grants = self.grants(&state.registry());
        match IN_ALL_CONTEXTS.contains(&path) {
            true if !grants.in_all(roles) => Err(self.denied(roles, Some("*"))),
            false if !grants.any(roles) => Err(self.denied(roles, None)),
            _ => Ok(()),
        }
    }

    /// Returns whether the caller has one of these roles in any context.
    pub(crate) fn has_any(&self, registry: &Registry, roles: Roles) -> bool {
        self.grants(registry).any(roles)
    }

    /// Returns a context in which the caller has one of these roles. An empty name means `default`.
    ///
    /// # Errors
    /// * The caller has none of the roles. This comes first, so the error does not tell whether the
    ///   context exists.
    /// * The context does not exist.
    pub(crate) fn context<'r>(
        &self,
        registry: &'r Registry,
        name: &str,
        roles: Roles,
    ) -> Result<&'r Arc<Context>, Refusal> {
        let name = named(name);
        if !self.may(registry, roles, name) {
            let refusal = self.denied(roles, Some(name));
            self.audit(&refusal, None);
            return Err(refusal);
        }
        registry
            .get(name)
            .ok_or_else(|| Refusal::ContextNotFound(name.to_owned()))
    }

    /// Writes an audit line about a refused call.
    pub(crate) fn audit(&self, refusal: &Refusal, path: Option<&str>) {
        self.access.audit(self.owner(), refusal, path);
    }

    /// Returns whether the caller has one of these roles for a ring of ticket keys: in its context, or
    /// in all contexts if it has none.
    pub(crate) fn may_ring(
        &self,
        registry: &Registry,
        roles: Roles,
        context: Option<&str>,
    ) -> bool {
        let grants = self.grants(registry);
        match context {
            Some(context) => grants.in_context(roles, context),
            None => grants.in_all(roles),
        }
    }

    /// Waits until the caller has lost all of these roles for a ring. Returns the refusal.
    pub(crate) async fn loses_ring(
        self: Arc<Self>,
        roles: Roles,
        context: Option<Arc<str>>,
        state: Arc<CoreState>,
    ) -> Refusal {
        let named = context.clone().unwrap_or_else(|| "*".into());
        let held = {
            let (by, state) = (Arc::clone(&self), Arc::clone(&state));
            move || by.may_ring(&state.registry(), roles, context.as_deref())
        };
        self.loses_what(held, roles, Some(&named), &state).await
    }

    pub(crate) fn denied(&self, roles: Roles, context: Option<&str>) -> Refusal {
        Refusal::PermissionDenied {
            owner: Arc::clone(self.owner()),
            roles,
            context: context.map(ToOwned::to_owned),
        }
    }

    /// Returns whether the caller may drive a connection object of this owner and context.
    pub(crate) fn drives(&self, registry: &Registry, owner: &str, context: &str) -> bool {
        **self.owner() == *owner && self.may(registry, Roles::WORKER, context)
    }

    /// Returns whether the caller may see a connection object of this owner and context.
    pub(crate) fn sees(&self, registry: &Registry, owner: &str, context: &str) -> bool {
        self.may(registry, Roles::OBSERVER, context) || self.drives(registry, owner, context)
    }

    /// Waits until the caller has lost all of these roles, because the rules changed or its
    /// certificate expired. Returns the refusal. Looks at `context` or, if that is `None`, at all
    /// contexts.
    pub(crate) async fn loses(
        self: Arc<Self>,
        roles: Roles,
        context: Option<Arc<str>>,
        state: Arc<CoreState>,
    ) -> Refusal {
        let held = || match &context {
            Some(context) => self.may(&state.registry(), roles, context),
            None => self.has_any(&state.registry(), roles),
        };
        self.loses_what(held, roles, context.as_deref(), &state)
            .await
    }

    async fn loses_what(
        &self,
        held: impl Fn() -> bool,
        roles: Roles,
        context: Option<&str>,
        state: &CoreState,
    ) -> Refusal {
        let mut changed = self.access.changed.subscribe();
        let end = async {
            let Some(ends) = self.peer.ends else {
                return std::future::pending().await;
            };
            loop {
                let left = ends.since(state.now().wall());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(CERTIFICATE_CHECK)).await;
            }
        };
        let lost = async {
            // The rules may have changed since admission, so check once before waiting.
            while held() {
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let refusal = tokio::select! {
            () = end => Refusal::CertificateEnded,
            () = lost => self.denied(roles, context),
        };
        self.audit(&refusal, None);
        refusal
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use tls_sessiond_core::{
        access::{Access as Rule, AccessRole, IdentityPattern},
        session::PeerIdentity,
    };

    fn rule(identity: IdentityPattern, contexts: &[&str], role: AccessRole) -> Rule {
        Rule {
            identity,
            contexts: contexts.iter().map(|&name| name.to_owned()).collect(),
            roles: vec![role],
        }
    }

    fn config(rules: &[Rule]) -> Config {
        let mut config = Config::defaults();
        config.access = rules.to_vec();
        config
    }

    fn registry(rules: &[Rule]) -> Registry {
        Registry::build(&config(rules).settings()).unwrap()
    }

    fn followed_by(registry: &Registry, rules: &[Rule]) -> Registry {
        registry.rebuild(&config(rules).settings()).unwrap()
    }

    fn caller(peer: Peer, registry: &Registry) -> Caller {
        let limits = StreamLimits::new(8, 1);
        let accounts = Arc::new(Accounts::new(&crate::config::Config::defaults().limits));
        Caller::new(
            peer,
            &Arc::new(Access::new()),
            registry,
            &limits,
            &Arc::new(StreamTotals::new()),
            &accounts,
        )
    }

    #[test]
    fn first_rule_about_the_caller_and_the_context_counts() {
        let rules = [
            rule(IdentityPattern::Uid(7), &["web"], AccessRole::Observer),
            rule(IdentityPattern::Local, &["web", "mail"], AccessRole::Worker),
            rule(IdentityPattern::Uid(7), &["*"], AccessRole::Admin),
        ];
        let now = registry(&rules);
        let seven = caller(Peer::unix(7, 1), &now);
        assert!(seven.may(&now, Roles::OBSERVER, "web") && !seven.may(&now, Roles::WORKER, "web"));
        assert!(seven.may(&now, Roles::WORKER, "mail") && !seven.may(&now, Roles::ADMIN, "mail"));
        assert!(
            seven.may(&now, Roles::ADMIN, "other") && seven.may(&now, Roles::OBSERVER, "other")
        );
        let eight = caller(Peer::unix(8, 7), &now);
        assert!(eight.may(&now, Roles::WORKER, "web"));
        assert!(!eight.may(&now, Roles::WORKER.or(Roles::ADMIN), "other"));

        let now = followed_by(&now, &rules[..1]);
        assert!(seven.may(&now, Roles::OBSERVER, "web") && !seven.may(&now, Roles::WORKER, "mail"));
        assert!(!eight.may(&now, Roles::ALL, "web"));
        // A later rule about the same contexts grants nothing and keeps no stream alive.
        let now = followed_by(&now, &[rules[2].clone(), rules[1].clone()]);
        assert!(!seven.has_any(&now, Roles::WORKER) && eight.has_any(&now, Roles::WORKER));
        let now = followed_by(
            &now,
            &[
                rule(
                    IdentityPattern::Local,
                    &["web", "mail"],
                    AccessRole::Observer,
                ),
                rule(IdentityPattern::Uid(7), &["mail"], AccessRole::Worker),
            ],
        );
        assert!(!seven.has_any(&now, Roles::WORKER) && seven.may(&now, Roles::OBSERVER, "mail"));
        let now = followed_by(&now, &[]);
        assert!(eight.may(&now, Roles::ADMIN, "other") && eight.may(&now, Roles::WORKER, "other"));
    }

    #[test]
    fn each_registry_is_asked_by_its_own_rules() {
        let before = registry(&[rule(IdentityPattern::Local, &["a"], AccessRole::Worker)]);
        let after = followed_by(
            &before,
            &[rule(IdentityPattern::Local, &["b"], AccessRole::Worker)],
        );
        let caller = caller(Peer::local(), &before);
        // A call from before the reload may alternate with calls from after it.
        for _ in 0..2 {
            assert!(
                caller.may(&before, Roles::WORKER, "a") && !caller.may(&before, Roles::WORKER, "b")
            );
            assert!(
                caller.may(&after, Roles::WORKER, "b") && !caller.may(&after, Roles::WORKER, "a")
            );
        }
    }

    #[test]
    fn without_rules_only_a_local_caller_may_do_something() {
        let registry = registry(&[]);
        let certificate = PeerIdentity {
            subject: "CN=a".into(),
            ..PeerIdentity::default()
        };
        assert!(caller(Peer::local(), &registry).may(&registry, Roles::ADMIN, "any"));
        let certified = caller(Peer::certified(&certificate), &registry);
        assert!(!certified.may(&registry, Roles::ALL, "any"));
    }

    #[test]
    fn worker_of_any_context_has_the_workers_stream_limit() {
        let rules = [
            rule(IdentityPattern::Uid(7), &["web"], AccessRole::Worker),
            rule(IdentityPattern::Local, &["*"], AccessRole::Admin),
        ];
        let ruled = registry(&rules);
        assert_eq!(caller(Peer::unix(7, 1), &ruled).streams().limit(), 8);
        assert_eq!(caller(Peer::unix(8, 1), &ruled).streams().limit(), 1);
        assert_eq!(caller(Peer::local(), &registry(&[])).streams().limit(), 8);
    }
}
