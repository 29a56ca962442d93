//! Roles, and the table of rights: which roles may call each method.

use std::fmt;

use tls_sessiond_core::access::AccessRole;

use crate::rpc::status::Refusal;

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
    pub(super) const ALL: Self = Self(7);

    /// Returns the union of both sets.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns whether the sets have a role in common.
    pub const fn meet(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub(super) fn of(role: AccessRole) -> Self {
        match role {
            AccessRole::Worker => Self::WORKER,
            AccessRole::Observer => Self::OBSERVER,
            // An administrator must see the sessions that it may remove.
            AccessRole::Admin => Self::OBSERVER.or(Self::ADMIN),
        }
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(Self::WORKER, "worker"), (Self::OBSERVER, "observer"), (Self::ADMIN, "admin")];
        let held: Vec<_> = names.iter().filter(|(role, _)| role.meet(*self)).map(|(_, name)| *name).collect();
        f.write_str(&held.join(" or "))
    }
}

const WORKER: Roles = Roles::WORKER;
/// The roles that may see a context and the ids of its sessions.
pub(in crate::rpc) const SEES: Roles = Roles::WORKER.or(Roles::OBSERVER);
const OBSERVER: Roles = Roles::OBSERVER;
const ADMIN: Roles = Roles::ADMIN;
const ANYONE: Roles = Roles::ANYONE;

/// The roles that may call each method. A method that is not in this table is refused to every
/// caller. A worker sees only its own connections. SECURITY.md has the same table, and a test
/// compares both with the daemon.
pub const RIGHTS: [(&str, Roles); 26] = [
    ("/tls.sessiond.v1.ConnectionService/New", WORKER),
    ("/tls.sessiond.v1.ConnectionService/Clear", WORKER),
    ("/tls.sessiond.v1.ConnectionService/Shutdown", WORKER),
    ("/tls.sessiond.v1.ConnectionService/SetShutdown", WORKER),
    ("/tls.sessiond.v1.ConnectionService/Free", WORKER),
    ("/tls.sessiond.v1.ConnectionService/GetConnection", SEES),
    ("/tls.sessiond.v1.ConnectionService/ListConnections", SEES),
    ("/tls.sessiond.v1.ConnectionService/SetSession", WORKER),
    ("/tls.sessiond.v1.ConnectionService/GetSession", SEES),
    ("/tls.sessiond.v1.ConnectionService/ReportAlert", WORKER),
    ("/tls.sessiond.v1.ConnectionService/Exchange", WORKER),
    ("/tls.sessiond.v1.ConnectionService/Drive", WORKER),
    ("/tls.sessiond.v1.SessionService/PutSession", WORKER),
    ("/tls.sessiond.v1.SessionService/LookupSession", WORKER),
    ("/tls.sessiond.v1.SessionService/RemoveSession", ADMIN),
    ("/tls.sessiond.v1.SessionService/RevokeSessions", ADMIN),
    ("/tls.sessiond.v1.SessionService/ListSessions", OBSERVER),
    ("/tls.sessiond.v1.SessionService/ExplainSession", OBSERVER),
    ("/tls.sessiond.v1.SessionService/WatchSessions", OBSERVER),
    ("/tls.sessiond.v1.ContextService/ListContexts", SEES),
    ("/tls.sessiond.v1.ContextService/GetContext", SEES),
    ("/tls.sessiond.v1.WorkerService/Attach", WORKER),
    // These reveal only the contract and whether the daemon serves.
    ("/grpc.health.v1.Health/Check", ANYONE),
    ("/grpc.health.v1.Health/Watch", ANYONE),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", ANYONE),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", ANYONE),
];

/// Returns the roles that may call a method.
///
/// # Errors
/// The table does not list the method. `served` decides which of two refusals is returned.
pub(super) fn rights(
    table: &[(&str, Roles)],
    path: &str,
    served: impl FnOnce(&str) -> bool,
) -> Result<Roles, Refusal> {
    match table.iter().find(|(method, _)| *method == path) {
        Some((_, roles)) => Ok(*roles),
        None if served(path) => Err(Refusal::MethodUnlisted),
        None => Err(Refusal::MethodUnknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn method_that_the_table_does_not_list_is_refused() {
        let get = "/tls.sessiond.v1.ConnectionService/GetConnection";
        assert_eq!(rights(&RIGHTS, get, crate::rpc::serves).unwrap(), SEES);
        let without: Vec<_> = RIGHTS.into_iter().filter(|(path, _)| *path != get).collect();
        let refused = |path| rights(&without, path, crate::rpc::serves).unwrap_err();
        assert!(matches!(refused(get), Refusal::MethodUnlisted));
        for path in ["/tls.sessiond.v1.ConnectionService/Get", "/other.Service/Call", "/", "", "*"] {
            assert!(matches!(refused(path), Refusal::MethodUnknown), "{path}");
        }
        for (path, _) in RIGHTS {
            assert!(crate::rpc::serves(path), "{path}");
        }
    }
}
