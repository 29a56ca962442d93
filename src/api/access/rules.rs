//! The roles that the `[[access]]` rules grant to one caller.

use tls_sessiond_core::access::Access as Rule;

use super::identity::{Identity, Peer};
use crate::api::role::Roles;

/// The grants to one caller, in the order of the rules.
#[derive(Debug)]
pub(crate) struct Grants(Vec<Grant>);

impl Grants {
    /// Returns the grants to this peer. Without rules, a local peer has all roles and others have
    /// none.
    pub(crate) fn of(rules: &[Rule], peer: &Peer) -> Self {
        if rules.is_empty() {
            let local = peer.identities.contains(&Identity::Local);
            return Self(
                local
                    .then_some(Grant {
                        contexts: None,
                        roles: Roles::ALL,
                    })
                    .into_iter()
                    .collect(),
            );
        }
        let about = |rule: &&Rule| {
            peer.identities
                .iter()
                .any(|identity| identity.fits(&rule.identity))
        };
        let mut grants: Vec<Grant> = Vec::new();
        for rule in rules.iter().filter(about) {
            let every = rule.contexts.iter().any(|name| name == "*");
            // The first rule about a context decides. A context that an earlier grant covers is
            // left out, or `any` would count a role that the caller has nowhere.
            let new = |name: &&String| !grants.iter().any(|grant| grant.covers(name));
            let contexts: Vec<_> = rule.contexts.iter().filter(new).cloned().collect();
            if every || !contexts.is_empty() {
                grants.push(Grant {
                    contexts: (!every).then_some(contexts),
                    roles: Roles::of(&rule.roles),
                });
            }
            if every {
                break;
            }
        }
        Self(grants)
    }

    /// Returns whether one of these roles is granted in any context.
    pub(crate) fn any(&self, roles: Roles) -> bool {
        self.0.iter().any(|grant| grant.roles.meet(roles))
    }

    /// Returns whether one of these roles is granted in every context, also in those of a later
    /// configuration.
    pub(crate) fn in_all(&self, roles: Roles) -> bool {
        self.0.last().is_some_and(|grant| grant.contexts.is_none())
            && self.0.iter().all(|grant| grant.roles.meet(roles))
    }

    /// Returns whether one of these roles is granted in this context. The first grant that covers
    /// it decides.
    pub(crate) fn in_context(&self, roles: Roles, context: &str) -> bool {
        self.0
            .iter()
            .find(|grant| grant.covers(context))
            .is_some_and(|grant| grant.roles.meet(roles))
    }
}

#[derive(Debug)]
struct Grant {
    /// `None` means every context.
    contexts: Option<Vec<String>>,
    roles: Roles,
}

impl Grant {
    fn covers(&self, context: &str) -> bool {
        self.contexts
            .as_ref()
            .is_none_or(|names| names.iter().any(|name| name == context))
    }
}
