//! The roles of callers.

use std::fmt;

use tls_sessiond_core::access::AccessRole;

/// A set of roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles(u8);

impl Roles {
    /// May create and drive connections, and put and look up sessions with their secrets.
    pub const WORKER: Self = Self(1);
    /// May see connections and sessions, without secrets.
    pub const OBSERVER: Self = Self(2);
    /// May remove and revoke sessions.
    pub const ADMIN: Self = Self(4);
    /// Every caller that has a connection, with or without a role.
    pub const ANYONE: Self = Self(8);
    /// May get ticket keys, and open and seal tickets.
    pub const KEYS: Self = Self(16);
    pub(crate) const ALL: Self = Self(7 | 16);

    /// Returns the union of both sets.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns whether the sets have a role in common.
    pub const fn meet(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(crate) fn of(roles: &[AccessRole]) -> Self {
        let each = roles.iter().map(|role| Self::of_one(*role));
        each.fold(Self(0), Self::or)
    }

    fn of_one(role: AccessRole) -> Self {
        match role {
            AccessRole::Worker => Self::WORKER,
            AccessRole::Observer => Self::OBSERVER,
            // An administrator must see the sessions that it may remove.
            AccessRole::Admin => Self::OBSERVER.or(Self::ADMIN),
            AccessRole::Keys => Self::KEYS,
        }
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (Self::WORKER, "worker"),
            (Self::OBSERVER, "observer"),
            (Self::ADMIN, "admin"),
            (Self::KEYS, "keys"),
        ];
        let held: Vec<_> = names
            .iter()
            .filter(|(role, _)| role.meet(*self))
            .map(|(_, name)| *name)
            .collect();
        f.write_str(&held.join(" or "))
    }
}

/// The roles that may see a context and the ids of its sessions.
pub(crate) const SEES: Roles = Roles::WORKER.or(Roles::OBSERVER);
