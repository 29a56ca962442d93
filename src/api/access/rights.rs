//! The table of rights: which roles may call each method.

use crate::api::{
    error::Refusal,
    role::{Roles, SEES},
};

const WORKER: Roles = Roles::WORKER;
const OBSERVER: Roles = Roles::OBSERVER;
const ADMIN: Roles = Roles::ADMIN;
const KEYS: Roles = Roles::KEYS;
const ANYONE: Roles = Roles::ANYONE;

/// The roles that may call each method. A method that is not in this table is refused to every
/// caller. A worker sees only its own connections. SECURITY.md has the same table, and a test
/// compares both with the daemon.
pub const RIGHTS: [(&str, Roles); 44] = [
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
    ("/tls.sessiond.v1.AdminService/GetStatus", OBSERVER),
    ("/tls.sessiond.v1.AdminService/ListMisses", OBSERVER),
    ("/tls.sessiond.v1.AdminService/ListFailures", OBSERVER),
    ("/tls.sessiond.v1.AdminService/FreeConnection", ADMIN),
    ("/tls.sessiond.v1.AdminService/Reload", ADMIN),
    ("/tls.sessiond.v1.AdminService/Drain", ADMIN),
    ("/tls.sessiond.v1.AdminService/SetLogLevel", ADMIN),
    ("/tls.sessiond.v1.AdminService/GetConfig", ADMIN),
    ("/tls.sessiond.v1.TicketKeyService/WatchTicketKeys", KEYS),
    ("/tls.sessiond.v1.TicketKeyService/ListRings", OBSERVER),
    ("/tls.sessiond.v1.TicketKeyService/GetRing", OBSERVER),
    ("/tls.sessiond.v1.TicketKeyService/RotateRing", ADMIN),
    ("/tls.sessiond.v1.TicketKeyService/FenceMember", ADMIN),
    ("/tls.sessiond.v1.TicketKeyService/SealTicket", KEYS),
    ("/tls.sessiond.v1.TicketKeyService/OpenTicket", KEYS),
    (
        "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
        KEYS,
    ),
    (
        "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
        KEYS,
    ),
    (
        "/envoy.service.secret.v3.SecretDiscoveryService/FetchSecrets",
        KEYS,
    ),
    // These reveal only the contract and whether the daemon serves.
    ("/grpc.health.v1.Health/Check", ANYONE),
    ("/grpc.health.v1.Health/Watch", ANYONE),
    (
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        ANYONE,
    ),
    (
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        ANYONE,
    ),
];

/// The methods that a caller may call only if it has the role in every context: they change or show
/// the daemon as a whole.
pub const IN_ALL_CONTEXTS: [&str; 4] = [
    "/tls.sessiond.v1.AdminService/Reload",
    "/tls.sessiond.v1.AdminService/Drain",
    "/tls.sessiond.v1.AdminService/SetLogLevel",
    "/tls.sessiond.v1.AdminService/GetConfig",
];

/// Returns the roles that may call a method.
///
/// # Errors
/// The table does not list the method. `served` decides which of two refusals is returned.
pub(crate) fn rights(
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
        assert_eq!(
            rights(&RIGHTS, get, crate::api::methods::serves).unwrap(),
            SEES
        );
        let without: Vec<_> = RIGHTS
            .into_iter()
            .filter(|(path, _)| *path != get)
            .collect();
        let refused = |path| rights(&without, path, crate::api::methods::serves).unwrap_err();
        assert!(matches!(refused(get), Refusal::MethodUnlisted));
        for path in [
            "/tls.sessiond.v1.ConnectionService/Get",
            "/other.Service/Call",
            "/",
            "",
            "*",
        ] {
            assert!(matches!(refused(path), Refusal::MethodUnknown), "{path}");
        }
        for (path, _) in RIGHTS {
            assert!(crate::api::methods::serves(path), "{path}");
        }
    }
}
