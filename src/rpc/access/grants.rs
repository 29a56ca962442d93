//! What the rules of `[[access]]` grant to one caller.

use tls_sessiond_core::access::Access as Rule;

use super::{
    peer::{Identity, Peer},
    rights::Roles,
};

/// What the rules grant to one caller, in their order.
#[derive(Debug)]
pub(super) struct Grants(Vec<Grant>);

impl Grants {
    /// To this peer. Without rules a local one may do everything.
    pub(super) fn of(rules: &[Rule], peer: &Peer) -> Self {
        if rules.is_empty() {
            let local = peer.identities.contains(&Identity::Local);
            return Self(local.then_some(Grant { contexts: None, roles: Roles::ALL }).into_iter().collect());
        }
        let about = |rule: &&Rule| peer.identities.iter().any(|identity| identity.fits(&rule.identity));
        let mut grants: Vec<Grant> = Vec::new();
        for rule in rules.iter().filter(about) {
            let every = rule.contexts.iter().any(|name| name == "*");
            // What an earlier rule says of a context is not said again: a caller that has nothing else has lost it.
            let new = |name: &&String| !grants.iter().any(|grant| grant.covers(name));
            let contexts: Vec<_> = rule.contexts.iter().filter(new).cloned().collect();
            if every || !contexts.is_empty() {
                grants.push(Grant { contexts: (!every).then_some(contexts), roles: Roles::of(rule.role) });
            }
            if every {
                break;
            }
        }
        Self(grants)
    }

    /// Whether one of these roles is granted in any context.
    pub(super) fn any(&self, roles: Roles) -> bool {
        self.0.iter().any(|grant| grant.roles.meet(roles))
    }

    /// Whether one of these roles is granted in this context: the first grant about it counts.
    pub(super) fn in_context(&self, roles: Roles, context: &str) -> bool {
        self.0.iter().find(|grant| grant.covers(context)).is_some_and(|grant| grant.roles.meet(roles))
    }
}

#[derive(Debug)]
struct Grant {
    /// None: in every context.
    contexts: Option<Vec<String>>,
    roles: Roles,
}

impl Grant {
    fn covers(&self, context: &str) -> bool {
        self.contexts.as_ref().is_none_or(|names| names.iter().any(|name| name == context))
    }
}
