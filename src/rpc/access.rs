//! Who may do what: identities against the rules of `[[access]]`, and calls against the table of rights.

use std::{
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    accounts::{Accounts, Holder},
    line_budget::LineBudget,
    status::Refusal,
    streams::{Class, StreamLimits, StreamTotals, Streams},
};
use crate::{
    clock::WallTime,
    config::{Access as Rule, AccessRole, DistinguishedName, IdentityPattern},
    connection::Table,
    context::{Context, Registry},
    session::PeerIdentity,
};

/// Roles, as a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Roles(u8);

impl Roles {
    /// Makes and drives connections, puts and looks up sessions with their secrets.
    pub const WORKER: Self = Self(1);
    /// Sees connections and sessions without secrets.
    pub const OBSERVER: Self = Self(2);
    /// Removes and revokes.
    pub const ADMIN: Self = Self(4);
    /// Every caller that has a connection, whatever the rules say of it.
    pub const ANYONE: Self = Self(8);
    const ALL: Self = Self(7);

    /// Both sets.
    pub const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether they have something in common.
    pub const fn meet(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn of(role: AccessRole) -> Self {
        match role {
            AccessRole::Worker => Self::WORKER,
            AccessRole::Observer => Self::OBSERVER,
            // The right to remove includes the right to look.
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
/// Of a context, and of the ids of its sessions.
pub(super) const SEES: Roles = Roles::WORKER.or(Roles::OBSERVER);
const OBSERVER: Roles = Roles::OBSERVER;
const ADMIN: Roles = Roles::ADMIN;
const ANYONE: Roles = Roles::ANYONE;

/// The roles that may call each method. A worker sees its own connections alone. A method that is not in this table is
/// refused to every caller. SECURITY.md has this table, and a test holds both to what the daemon does.
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
    // These tell nothing but the contract and whether the daemon serves.
    ("/grpc.health.v1.Health/Check", ANYONE),
    ("/grpc.health.v1.Health/Watch", ANYONE),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", ANYONE),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", ANYONE),
];

/// The roles that a table gives a method.
///
/// # Errors
/// The table does not list it: it is refused, whether the daemon serves it or not.
fn rights(table: &[(&str, Roles)], path: &str, served: impl FnOnce(&str) -> bool) -> Result<Roles, Refusal> {
    match table.iter().find(|(method, _)| *method == path) {
        Some((_, roles)) => Ok(*roles),
        None if served(path) => Err(Refusal::MethodUnlisted),
        None => Err(Refusal::MethodUnknown),
    }
}

/// A fact that is proved of a caller. Displays as a rule about it is written, and no two identities display alike: every
/// kind but `local` has its own prefix, and a subject is written with its escapes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It came over loopback or a Unix socket.
    Local,
    /// Its user, over a Unix socket.
    Uid(u32),
    /// Its primary group, over a Unix socket.
    Gid(u32),
    /// A URI of its certificate.
    Uri(String),
    /// A DNS name of its certificate, in lower case.
    Dns(String),
    /// The subject of its certificate.
    Subject(DistinguishedName),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local => f.write_str("local"),
            Self::Uid(id) => write!(f, "uid:{id}"),
            Self::Gid(id) => write!(f, "gid:{id}"),
            Self::Uri(uri) => write!(f, "uri:{uri}"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Subject(subject) => write!(f, "subject:{subject}"),
        }
    }
}

impl Identity {
    fn fits(&self, pattern: &IdentityPattern) -> bool {
        match (self, pattern) {
            (Self::Local, IdentityPattern::Local) => true,
            (Self::Uid(id), IdentityPattern::Uid(wanted)) | (Self::Gid(id), IdentityPattern::Gid(wanted)) => {
                id == wanted
            }
            (Self::Uri(name), IdentityPattern::Uri(text)) | (Self::Dns(name), IdentityPattern::Dns(text)) => {
                text.matches(name)
            }
            (Self::Subject(name), IdentityPattern::Subject(wanted)) => name == wanted,
            _ => false,
        }
    }
}

/// The name that connection objects belong to: that of one identity, or `nobody` where there is none. Equal names are
/// names of equal identities.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner(Arc<str>);

impl Owner {
    /// Of a caller that has this identity.
    pub fn of(identity: &Identity) -> Self {
        Self(identity.to_string().into())
    }

    fn nobody() -> Self {
        Self("nobody".into())
    }

    /// Its text, for maps and messages.
    pub fn name(&self) -> &Arc<str> {
        &self.0
    }
}

/// The caller at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Owner of its connection objects.
    pub owner: Owner,
    /// All that is proved of it.
    pub identities: Vec<Identity>,
    /// When its certificate ends, by the wall clock.
    pub ends: Option<WallTime>,
}

impl Peer {
    /// Over loopback. `local` owns.
    pub fn local() -> Self {
        Self::owned_by_first(vec![Identity::Local], None)
    }

    /// Over a Unix socket. The user owns.
    pub fn unix(uid: u32, gid: u32) -> Self {
        Self::owned_by_first(vec![Identity::Uid(uid), Identity::Gid(gid), Identity::Local], None)
    }

    /// With a certificate that was verified. Its first URI owns, or else its first DNS name, or else its subject. A subject
    /// that is no name in the form of RFC 4514, or is empty, proves nothing.
    pub fn certified(certificate: &PeerIdentity) -> Self {
        let subject = DistinguishedName::parse(&certificate.subject).ok().filter(|name| !name.is_empty());
        let identities: Vec<_> = (certificate.uris.iter().cloned().map(Identity::Uri))
            .chain(certificate.dns_names.iter().cloned().map(Identity::Dns))
            .chain(subject.map(Identity::Subject))
            .collect();
        Self::owned_by_first(identities, Some(certificate.not_after))
    }

    fn owned_by_first(identities: Vec<Identity>, ends: Option<WallTime>) -> Self {
        let owner = identities.first().map_or_else(Owner::nobody, Owner::of);
        Self { owner, identities, ends }
    }
}

/// Tells streams that the rules have changed, and the log which calls were refused. The rules themselves stand beside the
/// contexts in the [`Registry`], so that both change at once.
#[derive(Debug)]
pub struct Access {
    changed: watch::Sender<()>,
    /// Lines about calls that were refused.
    refusals: LineBudget,
    /// Lines about peers that have not proved an identity: a flood of them hides no refused call.
    strangers: LineBudget,
}

/// Lines in a second about refused calls, and about strangers: no more than a person can read.
const REFUSALS: u32 = 100;
const STRANGERS: u32 = 10;
const SECOND: Duration = Duration::from_secs(1);

/// How often a stream compares the end of its caller's certificate with the wall clock, which may have been set forward.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(5);

impl Access {
    /// Nothing has changed yet.
    pub fn new() -> Self {
        Self {
            changed: watch::Sender::new(()),
            refusals: LineBudget::new(REFUSALS, SECOND),
            strangers: LineBudget::new(STRANGERS, SECOND),
        }
    }

    /// The table has other rules now: every stream asks for its rights again.
    pub fn rules_changed(&self) {
        self.changed.send_replace(());
    }

    /// A line about a peer that proved no identity.
    pub(super) fn audit_stranger(&self, peer: SocketAddr, err: &dyn fmt::Display) {
        if let Some(left_out) = self.strangers.take(Instant::now()) {
            tracing::info!(target: "audit", %peer, %err, left_out, "API client refused: TLS handshake failed");
        }
    }

    /// A line about a caller without a role that has too many connections, or came when all of its kind have.
    pub(super) fn audit_crowd(&self, owner: &str) {
        if let Some(left_out) = self.strangers.take(Instant::now()) {
            tracing::info!(target: "audit", owner, left_out, "API client refused: too many sockets of callers without a role");
        }
    }

    /// Tells how many lines were left out, where no later line does.
    pub fn tell_left_out(&self) {
        for (budget, of) in [(&self.refusals, "refused calls"), (&self.strangers, "failed TLS handshakes")] {
            if let Some(left_out) = budget.left_out(Instant::now()) {
                tracing::info!(target: "audit", of, left_out, "audit lines left out: too many in one second");
            }
        }
    }
}

impl Default for Access {
    fn default() -> Self {
        Self::new()
    }
}

/// What the rules grant to one caller, in their order.
#[derive(Debug)]
struct Grants(Vec<Grant>);

impl Grants {
    /// To this peer. Without rules a local one may do everything.
    fn of(rules: &[Rule], peer: &Peer) -> Self {
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
    fn any(&self, roles: Roles) -> bool {
        self.0.iter().any(|grant| grant.roles.meet(roles))
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

/// The name of a context; an empty one means the default one.
pub(super) fn named(name: &str) -> &str {
    if name.is_empty() { "default" } else { name }
}

/// The caller of one connection. What it may do, it is asked together with the registry that its call works with.
#[derive(Debug)]
pub(super) struct Caller {
    peer: Peer,
    access: Arc<Access>,
    /// By the rules of the newest registry that was asked about, and the version of that.
    grants: Mutex<(u64, Arc<Grants>)>,
    streams: Streams,
    holder: Arc<Holder>,
}

impl Caller {
    /// The limit of its streams is that of the roles it has now; later changes of the rules do not move it.
    pub(super) fn new(
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
        Self { peer, access: Arc::clone(access), grants, streams, holder }
    }

    /// The account of its identity.
    pub(super) fn holder(&self) -> &Arc<Holder> {
        &self.holder
    }

    /// The long streams of its connection.
    pub(super) fn streams(&self) -> &Streams {
        &self.streams
    }

    /// What its connection objects belong to.
    pub(super) fn owner(&self) -> &Arc<str> {
        self.peer.owner.name()
    }

    fn grants(&self, registry: &Registry) -> Arc<Grants> {
        let version = registry.version();
        let mut held = self.grants.lock();
        if held.0 == version {
            return Arc::clone(&held.1);
        }
        let grants = Arc::new(Grants::of(registry.rules(), &self.peer));
        // A call that began before a reload leaves those of after it in place.
        if held.0 < version {
            *held = (version, Arc::clone(&grants));
        }
        grants
    }

    /// Whether it has one of these roles in a context: the first rule about it and the context counts.
    pub(super) fn may(&self, registry: &Registry, roles: Roles, context: &str) -> bool {
        self.grants(registry)
            .0
            .iter()
            .find(|grant| grant.covers(context))
            .is_some_and(|grant| grant.roles.meet(roles))
    }

    /// Whether it may call this at all, in one context or another.
    ///
    /// # Errors
    /// The method is not in the table of rights; the caller has no identity, or no role that may.
    pub(super) fn may_call(&self, path: &str, table: &Table) -> Result<(), Refusal> {
        if self.peer.ends.is_some_and(|ends| ends <= table.now().wall()) {
            return Err(Refusal::CertificateEnded);
        }
        let roles = rights(&RIGHTS, path, super::serves)?;
        if roles.meet(Roles::ANYONE) {
            return Ok(());
        }
        if self.peer.identities.is_empty() {
            return Err(Refusal::Unauthenticated);
        }
        match self.has_any(&table.registry(), roles) {
            true => Ok(()),
            false => Err(self.denied(roles, None)),
        }
    }

    fn has_any(&self, registry: &Registry, roles: Roles) -> bool {
        self.grants(registry).any(roles)
    }

    /// A context, where it has one of these roles; an empty name means the default one.
    ///
    /// # Errors
    /// It has none, whether there is that context or not; or there is not.
    pub(super) fn context<'r>(
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
        registry.get(name).ok_or_else(|| Refusal::ContextNotFound(name.to_owned()))
    }

    /// A line about a call that was refused.
    pub(super) fn audit(&self, refusal: &Refusal, path: Option<&str>) {
        let (all, of_one) = (&self.access.refusals, self.holder.refusals());
        if let Some(left_out) = all.take_of_one(of_one, Instant::now()) {
            tracing::info!(target: "audit", owner = %self.owner(), path, %refusal, left_out, "a call was refused");
        }
    }

    fn denied(&self, roles: Roles, context: Option<&str>) -> Refusal {
        Refusal::PermissionDenied {
            owner: Arc::clone(self.owner()),
            roles,
            context: context.map(ToOwned::to_owned),
        }
    }

    /// Whether it drives this connection object.
    pub(super) fn drives(&self, registry: &Registry, owner: &str, context: &str) -> bool {
        **self.owner() == *owner && self.may(registry, Roles::WORKER, context)
    }

    /// Whether it sees this connection object.
    pub(super) fn sees(&self, registry: &Registry, owner: &str, context: &str) -> bool {
        self.may(registry, Roles::OBSERVER, context) || self.drives(registry, owner, context)
    }

    /// Ready when it has none of these roles any more, in this context or, without one, in any: its rules have changed, or
    /// its certificate has ended.
    pub(super) async fn loses(
        self: Arc<Self>,
        roles: Roles,
        context: Option<Arc<str>>,
        table: Arc<Table>,
    ) -> Refusal {
        let mut changed = self.access.changed.subscribe();
        let end = async {
            let Some(ends) = self.peer.ends else { return std::future::pending().await };
            loop {
                let left = ends.since(table.now().wall());
                if left.is_zero() {
                    return;
                }
                tokio::time::sleep(left.min(CERTIFICATE_CHECK)).await;
            }
        };
        let lost = async {
            let held = || match &context {
                Some(context) => self.may(&table.registry(), roles, context),
                None => self.has_any(&table.registry(), roles),
            };
            // Looked at once before, for the rules may have changed since the call was let in.
            while held() {
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        let refusal = tokio::select! {
            () = end => Refusal::CertificateEnded,
            () = lost => self.denied(roles, context.as_deref()),
        };
        self.audit(&refusal, None);
        refusal
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::{Config, Text};

    fn rule(identity: IdentityPattern, contexts: &[&str], role: AccessRole) -> Rule {
        Rule { identity, contexts: contexts.iter().map(|&name| name.to_owned()).collect(), role }
    }

    fn config(rules: &[Rule]) -> Config {
        let mut config = Config::defaults();
        config.access = rules.to_vec();
        config
    }

    fn registry(rules: &[Rule]) -> Registry {
        Registry::build(&config(rules)).unwrap()
    }

    fn followed_by(registry: &Registry, rules: &[Rule]) -> Registry {
        registry.rebuild(&config(rules)).unwrap()
    }

    fn caller(peer: Peer, registry: &Registry) -> Caller {
        let limits = StreamLimits { worker: 8, non_worker: 1 };
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
        assert!(seven.may(&now, Roles::ADMIN, "other") && seven.may(&now, Roles::OBSERVER, "other"));
        let eight = caller(Peer::unix(8, 7), &now);
        assert!(eight.may(&now, Roles::WORKER, "web"));
        assert!(!eight.may(&now, Roles::WORKER.or(Roles::ADMIN), "other"));

        let now = followed_by(&now, &rules[..1]);
        assert!(seven.may(&now, Roles::OBSERVER, "web") && !seven.may(&now, Roles::WORKER, "mail"));
        assert!(!eight.may(&now, Roles::ALL, "web"));
        // What is said later of the same contexts gives nothing, and keeps no stream.
        let now = followed_by(&now, &[rules[2].clone(), rules[1].clone()]);
        assert!(!seven.has_any(&now, Roles::WORKER) && eight.has_any(&now, Roles::WORKER));
        let now = followed_by(
            &now,
            &[
                rule(IdentityPattern::Local, &["web", "mail"], AccessRole::Observer),
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
        let after = followed_by(&before, &[rule(IdentityPattern::Local, &["b"], AccessRole::Worker)]);
        let caller = caller(Peer::local(), &before);
        // A call that began before the reload may ask between calls that began after it.
        for _ in 0..2 {
            assert!(caller.may(&before, Roles::WORKER, "a") && !caller.may(&before, Roles::WORKER, "b"));
            assert!(caller.may(&after, Roles::WORKER, "b") && !caller.may(&after, Roles::WORKER, "a"));
        }
    }

    #[test]
    fn without_rules_only_a_local_caller_may_do_something() {
        let registry = registry(&[]);
        let certificate = PeerIdentity { subject: "CN=a".into(), ..PeerIdentity::default() };
        assert!(caller(Peer::local(), &registry).may(&registry, Roles::ADMIN, "any"));
        let certified = caller(Peer::certified(&certificate), &registry);
        assert!(!certified.may(&registry, Roles::ALL, "any"));
    }

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

    #[test]
    fn owner_of_a_certificate_is_its_first_name() {
        let mut certificate = PeerIdentity {
            subject: "CN=a".into(),
            dns_names: vec!["a.test".into()],
            uris: vec!["spiffe://a/b".into()],
            ..PeerIdentity::default()
        };
        let owner = |certificate: &PeerIdentity| Peer::certified(certificate).owner.name().to_string();
        assert_eq!(owner(&certificate), "uri:spiffe://a/b");
        for uri in ["uid:0", "local", "dns:a.test"] {
            certificate.uris = vec![uri.into()];
            assert_eq!(owner(&certificate), format!("uri:{uri}"), "no other kind has that name");
        }
        certificate.uris.clear();
        assert_eq!(owner(&certificate), "dns:a.test");
        certificate.dns_names.clear();
        assert_eq!(owner(&certificate), "subject:CN=a");
        for nothing in ["", "no name"] {
            certificate.subject = nothing.into();
            assert!(Peer::certified(&certificate).identities.is_empty());
            assert_eq!(owner(&certificate), "nobody");
        }
        let text = Text::Exactly("a.test".into());
        assert!(Identity::Dns("a.test".into()).fits(&IdentityPattern::Dns(text)));
    }

    #[test]
    fn subject_and_uri_that_read_alike_have_two_owners() {
        let with = |subject: &str, uris: &[&str]| {
            let uris = uris.iter().map(|&uri| uri.into()).collect();
            Peer::certified(&PeerIdentity { subject: subject.into(), uris, ..PeerIdentity::default() }).owner
        };
        assert_ne!(with("CN=a://b", &[]), with("", &["subject:CN=a://b"]));
        assert_ne!(with("CN=a\\,O=b", &[]), with("CN=a,O=b", &[]));
        assert_ne!(with("CN=local", &[]), Peer::local().owner);
    }

    fn identities() -> impl Strategy<Value = Identity> {
        let text = "(subject:|uri:|dns:|uid:|gid:|local|CN=)?[a-c:/0,=\\\\ ]{0,4}";
        prop_oneof![
            Just(Identity::Local),
            (0u32..3).prop_map(Identity::Uid),
            (0u32..3).prop_map(Identity::Gid),
            text.prop_map(Identity::Uri),
            text.prop_map(Identity::Dns),
            "CN=[a-c:/]{0,3}(,O=[a-c]{0,2})?".prop_map(|text| {
                Identity::Subject(DistinguishedName::parse(&text).expect("it has nothing to escape"))
            }),
        ]
    }

    proptest! {
        #[test]
        fn owners_are_equal_only_where_identities_are(a in identities(), b in identities()) {
            prop_assert_eq!(Owner::of(&a) == Owner::of(&b), a == b);
        }
    }
}
