//! The session cache of one scope and role: the policy over a store.
//!
//! Contexts with equal scopes share one cache, so a lookup never reaches a session of another
//! scope.
//!
//! * [`budget`]: the limit on all caches together, and each cache's share of it
//! * `by_server_name`: client sessions by server name
//! * `fleet`: lookups and puts where a store is shared with other daemons
//! * `handles`: handles of sealed sessions that may not be resumed any more
//! * `recycle`: reuse of the memory of evicted sessions
//! * [`sealed`]: sessions that are sealed in the tickets of their clients
//! * [`revocation`]: sessions that may not be resumed any more, whatever the cache holds
//! * [`shared`]: state that all caches share
//! * `shared_revocations`: revocations that all daemons of a shared store know
//! * [`tombstones`]: why a session was removed
//!
//! Invariants:
//!   - a removed, consumed, revoked or expired session is never handed out again
//!   - a single-use session is handed out at most once
//!   - a full cache evicts; it never fails a handshake

use std::sync::Arc;

use aws_lc_rs::rand;
use tls_sessiond_types::{Role, server_name::ServerName};

use crate::{
    cache::{
        by_server_name::ServerNameIndex,
        handles::RefusedHandles,
        revocation::{Revocations, Selector},
        shared::SharedState,
        tombstones::{Group, Tombstone},
    },
    clock::{Now, Timestamp},
    session::{
        Attributes, LIFETIME_MAX, Miss, NewSession, RemovalReason, ResumeCriteria, Session,
        SessionId, SessionInfo,
        events::{EventKind, MissEvent},
        stats::Account,
    },
    store::memory::{Limits, Memory, Refused},
    sync::{AtomicUsize, Ordering},
};

pub mod budget;
mod by_server_name;
mod fleet;
mod handles;
mod recycle;
pub mod revocation;
pub mod sealed;
pub mod shared;
mod shared_revocations;
pub mod tombstones;

pub use fleet::{Ask, Found, Kept, Look, PendingPut, PoolMembers, PoolSearch, Unreached};
pub use shared_revocations::{CLOCKS_DIFFER_MAX, SharedRevocations};

/// Maximum number of lookups that [`Cache::expect`] prefetches for.
pub use crate::store::memory::TOUCHED_MAX as EXPECTED_MAX;

/// Whether a new client connection may be offered sessions that its worker did not name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offering {
    /// The newest session, made by any worker.
    Shared,
    /// Only a session that `New` or `SetSession` names, as OpenSSL does.
    Explicit,
}

/// Why a session was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStored {
    /// The session has already expired. Its lifetime counts from the authentication and ends at the
    /// latest with the peer's certificate.
    Expired,
    /// The session is over a size limit.
    TooLarge,
    /// The id belongs to another session.
    IdTaken,
    /// The system has no random numbers for an id.
    NoRandomness,
    /// A revocation covers the session, or a reload has replaced the scope.
    Revoked,
    /// The shared store is away, or did not answer in time.
    StoreAway,
}

/// The state of an id.
#[derive(Debug)]
pub enum Known {
    /// The session is stored. The miss, if any, is the answer to every lookup: the session has
    /// expired or is revoked, and has yet to be removed.
    Held(Arc<Session>, Option<Miss>),
    /// The session was removed, and its tombstone is kept.
    Departed(Tombstone),
    /// Nothing is known of the id.
    Nothing,
}

/// A lookup that found nothing to resume.
#[derive(Clone, Copy, Debug)]
pub struct Missed<'m> {
    /// The id that was looked up.
    pub id: &'m SessionId,
    /// The name under which it was looked up, or none.
    pub server_name: &'m ServerName<'m>,
    /// The identity that looked it up, or that owns the connection.
    pub owner: &'m Arc<str>,
    /// The reason of the miss.
    pub why: Miss,
}

/// The parameters of a new cache.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// The role of its sessions.
    pub role: Role,
    /// Whether clients are offered sessions that they did not name.
    pub offering: Offering,
    /// Limits on the sessions held.
    pub limits: Limits,
    /// Maximum size of one session in bytes: secret, binding and names.
    pub session_bytes_max: usize,
}

/// From this number of sessions on, they do not fit into the caches of a processor.
const FAR: usize = 50_000;

/// The sessions of one scope and role.
pub struct Cache {
    role: Role,
    /// Names the cache in a shared store: two daemons with equal scopes share its sessions.
    scope: Box<[u8]>,
    group: Group,
    session_bytes_max: AtomicUsize,
    store: Memory<Session>,
    pool: Option<ServerNameIndex>,
    revocations: Revocations,
    /// Sealed sessions that are not good any more.
    refused: RefusedHandles,
    ledger: Arc<SharedState>,
}

/// Shows the number of sessions and no content.
impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("role", &self.role)
            .field("sessions", &self.len())
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// Creates an empty cache.
    pub fn new(plan: &Plan, ledger: &Arc<SharedState>) -> Self {
        let pooled = plan.role == Role::Client && plan.offering == Offering::Shared;
        let refused = RefusedHandles::default();
        refused.resize(plan.limits.bytes_max);
        Self {
            role: plan.role,
            scope: Box::default(),
            group: ledger.tombstones.new_group(),
            session_bytes_max: AtomicUsize::new(plan.session_bytes_max),
            store: Memory::new(plan.limits, Arc::clone(ledger.budget.held())),
            pool: pooled.then(ServerNameIndex::default),
            revocations: Revocations::default(),
            refused,
            ledger: Arc::clone(ledger),
        }
    }

    /// Names the cache in a shared store.
    #[must_use]
    pub fn in_scope(self, scope: &[u8]) -> Self {
        Self {
            scope: scope.into(),
            ..self
        }
    }

    /// Stores the session that a handshake made, in the memory of this process.
    ///
    /// # Errors
    /// Returns [`NotStored`] with the reason. The handshake goes on without the session.
    pub fn put(&self, new: NewSession, now: Now) -> Result<Arc<Session>, NotStored> {
        self.ledger.tell_time(now.at);
        let session = recycle::reuse(self.session(new, now)?);
        if session.told() > self.session_bytes_max.load(Ordering::Relaxed) {
            return Err(NotStored::TooLarge);
        }
        if self.revocations.cover(session.facts()) {
            return Err(NotStored::Revoked);
        }
        self.store_or_replace(&session, now)?;
        // A revocation that came in the meantime may have scanned the store before this session was
        // in it. So the revocations are checked again.
        if self.revocations.cover(session.facts()) {
            self.withdraw(&session, RemovalReason::Revoked);
            return Err(NotStored::Revoked);
        }
        if let Some(pool) = &self.pool {
            pool.push(&session, &self.store);
        }
        self.ledger
            .watchers
            .publish(&session, EventKind::Added, now.at);
        self.ledger.budget.settle(self, &session);
        Ok(session)
    }

    fn session(&self, mut new: NewSession, now: Now) -> Result<Session, NotStored> {
        let mut expires = new.authenticated.after(new.timeout.min(LIFETIME_MAX));
        if let Some(peer) = &new.peer {
            expires = expires.min(now.offset.at(peer.not_after));
        }
        let after = |moment: Timestamp| u32::try_from(moment.since(new.authenticated).as_millis());
        let (Ok(created_after), Ok(lives)) = (after(now.at), after(expires)) else {
            return Err(NotStored::Expired);
        };
        if now.at >= expires {
            return Err(NotStored::Expired);
        }
        let id = match new.id.take() {
            Some(id) => id,
            None => random_id().ok_or(NotStored::NoRandomness)?,
        };
        let kind = Attributes {
            role: self.role,
            version: new.version,
            cipher_suite: new.cipher_suite,
            server_name: new.server_name,
            format: new.format,
            binding: new.binding,
            single_use: new.single_use,
            account: new.account,
            peer: new.peer,
        };
        let kind = self.ledger.kinds.intern(kind, &id);
        let facts = SessionInfo {
            id,
            kind,
            authenticated: new.authenticated,
            created_after,
            lives,
        };
        Ok(Session::new(facts, new.secret))
    }

    /// Stores a session if its id is free or belongs to an expired session.
    fn store_or_replace(&self, session: &Arc<Session>, now: Now) -> Result<(), NotStored> {
        let put = || {
            self.store
                .put(Arc::clone(session), |evicted| self.made_room(evicted))
        };
        let mut stored = put();
        if stored == Err(Refused::Taken)
            && let Some(old) = self
                .store
                .peek(session.id().as_bytes())
                .filter(|old| old.expired(now))
        {
            self.withdraw(&old, RemovalReason::Expired);
            stored = put();
        }
        stored.map_err(|refused| match refused {
            Refused::TooLarge => NotStored::TooLarge,
            Refused::Taken => NotStored::IdTaken,
        })
    }

    /// Returns the session with this id if the memory of this process has it and it matches `terms`.
    /// Consumes a single-use session.
    ///
    /// # Errors
    /// Returns [`Miss`] with the reason where there is none.
    pub fn find(
        &self,
        id: &SessionId,
        terms: &ResumeCriteria<'_>,
        now: Now,
    ) -> Result<Arc<Session>, Miss> {
        self.tell_time(now.at);
        let Some(session) = self.store.get(id.as_bytes()) else {
            let departure = self.ledger.tombstones.find(self.group, self.role, id);
            return Err(departure.map_or(Miss::Unknown, |departure| departure.miss()));
        };
        if !session.kind().fits(terms) {
            return Err(Miss::Scope);
        }
        // Only the session that was checked is withdrawn, not one that has taken its id since.
        if session.expired(now) {
            self.withdraw(&session, RemovalReason::Expired);
            return Err(Miss::Expired);
        }
        if self.revocations.cover(session.facts()) {
            self.withdraw(&session, RemovalReason::Revoked);
            return Err(Miss::Revoked);
        }
        if session.kind().single_use && !self.withdraw(&session, RemovalReason::Taken) {
            return Err(Miss::Removed);
        }
        self.ledger
            .watchers
            .publish(&session, EventKind::Hit, now.at);
        Ok(session)
    }

    /// Counts a lookup of this cache that missed under a context, and publishes it as
    /// [`Self::tell_missed`] does.
    pub fn missed(&self, account: &Account, missed: Missed<'_>, now: Now) {
        account.misses.count(missed.why);
        self.tell_missed(&account.name, missed, now);
    }

    /// Publishes a lookup of this cache that missed under a context: to watchers, to the list of
    /// recent misses, and to the totals of its identity.
    pub fn tell_missed(&self, context: &Arc<str>, missed: Missed<'_>, now: Now) {
        let event = || MissEvent {
            at: now.at,
            id: missed.id.clone(),
            role: self.role,
            context: Arc::clone(context),
            server_name: missed.server_name.clone().into_owned(),
            owner: Arc::clone(missed.owner),
            why: missed.why,
        };
        let owners = &self.ledger.owners;
        owners.count(missed.owner, |totals| totals.misses.count());
        self.ledger.recent.misses.keep(now.at, event);
        self.ledger.watchers.publish_miss(event);
    }

    /// Prefetches the memory that lookups of these ids, which come next, will read.
    ///
    /// Takes [`EXPECTED_MAX`] ids at most. Does nothing, and reads no id, in a small cache: its
    /// sessions fit into the caches of a processor.
    pub fn expect(&self, ids: impl Iterator<Item = SessionId>) {
        if self.len() >= FAR {
            self.store.prefetch(ids);
        }
    }

    /// Returns the state that all caches share.
    pub fn ledger(&self) -> &Arc<SharedState> {
        &self.ledger
    }

    /// Records the time `now`, so that no removal is dated before its cause.
    pub fn tell_time(&self, now: Timestamp) {
        self.ledger.tell_time(now);
    }

    /// Returns the session with this id, of any version, without consuming it. Not for resuming.
    pub fn peek(&self, id: &SessionId, now: Now) -> Option<Arc<Session>> {
        self.store
            .peek(id.as_bytes())
            .filter(|session| self.alive(session, now))
    }

    /// Returns the state of an id without changing anything.
    pub fn explain(&self, id: &SessionId, now: Now) -> Known {
        if let Some(session) = self.store.peek(id.as_bytes()) {
            let miss = if session.expired(now) {
                Some(Miss::Expired)
            } else {
                self.revocations
                    .cover(session.facts())
                    .then_some(Miss::Revoked)
            };
            return Known::Held(session, miss);
        }
        match self.ledger.tombstones.find(self.group, self.role, id) {
            Some(departure) => Known::Departed(departure),
            None => Known::Nothing,
        }
    }

    /// Returns the key of this cache's tombstones. It stays valid after the cache was closed.
    pub fn group(&self) -> Group {
        self.group
    }

    /// Returns the latest tombstone of a session with this id in another cache of this role.
    pub fn departure_from(&self, other: Group, id: &SessionId) -> Option<Tombstone> {
        self.ledger.tombstones.find(other, self.role, id)
    }

    /// Returns the newest session with this server that matches `terms`. Consumes a single-use
    /// session.
    ///
    /// Returns `None` if the cache offers no sessions that clients did not name.
    pub fn newest(&self, terms: &ResumeCriteria<'_>, now: Now) -> Option<Arc<Session>> {
        let pool = self.pool.as_ref()?;
        // Each round returns, or removes a session that cannot be resumed from the index.
        loop {
            let session = pool.newest(terms, &self.store)?;
            if let Ok(found) = self.find(session.id(), terms, now) {
                return Some(found);
            }
        }
    }

    /// Removes the session with this id. Returns `true` if it was stored and neither expired nor
    /// revoked.
    pub fn remove(&self, id: &SessionId, now: Now) -> bool {
        self.tell_time(now.at);
        let Some(session) = self.store.take(id.as_bytes()) else {
            return false;
        };
        let reason = if session.expired(now) {
            RemovalReason::Expired
        } else if self.revocations.cover(session.facts()) {
            RemovalReason::Revoked
        } else {
            RemovalReason::Removed
        };
        self.departed(&session, reason);
        reason == RemovalReason::Removed
    }

    /// Removes this session, not another that has its id by now. Returns whether it was stored.
    pub fn withdraw(&self, session: &Arc<Session>, reason: RemovalReason) -> bool {
        let removed = self.store.remove(session);
        if removed {
            self.departed(session, reason);
        }
        removed
    }

    /// Revokes sessions that `selector` matches and that were authenticated before `before`.
    ///
    /// From then on they are neither resumed nor stored. Those in the cache are removed by
    /// [`Self::withdraw_revoked`], or when a lookup finds them.
    pub fn revoke(&self, selector: Selector, before: Timestamp) {
        self.revocations.revoke(selector, before);
    }

    /// Removes the revoked sessions of one of [`Self::shards`]. Returns how many it removed.
    pub fn purge(&self, part: usize) -> usize {
        self.withdraw_revoked(&self.revoked(part))
    }

    /// Returns the revoked sessions still stored in one of [`Self::shards`], for
    /// [`Self::withdraw_revoked`].
    pub fn revoked(&self, part: usize) -> Vec<Arc<Session>> {
        let mut revoked = Vec::new();
        self.store.scan(part, |session| {
            if self.revocations.cover(session.facts()) {
                revoked.push(Arc::clone(session));
            }
        });
        revoked
    }

    /// Removes these sessions. Returns how many of them were stored.
    pub fn withdraw_revoked(&self, sessions: &[Arc<Session>]) -> usize {
        sessions
            .iter()
            .filter(|session| self.withdraw(session, RemovalReason::Revoked))
            .count()
    }

    /// Closes the cache because no context has its scope any more.
    ///
    /// Removes all sessions and passes each to `see`. From then on the cache finds and stores
    /// nothing.
    pub fn close(&self, mut see: impl FnMut(&Session)) {
        self.revocations.close();
        self.store.drain(|session| {
            self.departed(&session, RemovalReason::ScopeChanged);
            see(&session);
        });
    }

    /// Copies the revocations of the cache that this one replaces.
    pub fn inherit(&self, from: &Self) {
        self.revocations.inherit(&from.revocations);
    }

    /// Returns the number of revocations in force.
    pub fn revocations(&self) -> usize {
        self.revocations.len()
    }

    /// Removes expired sessions, and what index and revocations no longer need.
    pub fn reap(&self, now: Timestamp) {
        self.ledger.tell_time(now);
        self.store.expire(now, |session| {
            self.departed(&session, RemovalReason::Expired);
        });
        self.revocations.forget(now);
        self.forget_handles(now);
        if let Some(pool) = &self.pool {
            pool.shrink(&self.store);
        }
    }

    /// Returns the number of parts that [`Self::scan_part`] and [`Self::revoked`] take one of.
    pub fn shards(&self) -> usize {
        self.store.shards()
    }

    /// Passes every session that may be resumed to `visit`, in no order.
    pub fn scan(&self, now: Now, mut visit: impl FnMut(&Arc<Session>)) {
        (0..self.shards()).for_each(|part| self.scan_part(part, now, &mut visit));
    }

    /// Passes every session of one of [`Self::shards`] that may be resumed to `visit`, in no order.
    ///
    /// No session is added to that part or removed from it in the meantime.
    pub fn scan_part(&self, part: usize, now: Now, mut visit: impl FnMut(&Arc<Session>)) {
        self.store.scan(part, |session| {
            if self.alive(session, now) {
                visit(session);
            }
        });
    }

    /// Returns the number of sessions held, including expired ones that have yet to be removed.
    pub fn len(&self) -> usize {
        self.store.amount().entries()
    }

    /// Returns whether the cache holds no session.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the size of all sessions in bytes; see [`Session::size`].
    pub fn bytes(&self) -> usize {
        self.store.amount().bytes()
    }

    /// Returns the limits on the sessions held.
    pub fn limits(&self) -> Limits {
        self.store.limits()
    }

    /// Changes the limits on the cache and on one session. Evicts sessions until the new limits are
    /// kept.
    pub fn resize(&self, limits: Limits, session_bytes_max: usize) {
        self.session_bytes_max
            .store(session_bytes_max, Ordering::Relaxed);
        self.refused.resize(limits.bytes_max);
        self.store.resize(limits, |evicted| self.made_room(evicted));
    }

    /// Evicts one session for the sake of other caches, but not `newest`. The caller passes the
    /// session to [`Self::made_room`].
    pub(super) fn make_room(&self, newest: Option<&Session>) -> Option<Arc<Session>> {
        self.store.evict(newest)
    }

    /// Records that this session was evicted.
    pub(super) fn made_room(&self, gone: Arc<Session>) {
        self.departed(&gone, RemovalReason::CacheFull);
        recycle::recycle(gone);
    }

    fn alive(&self, session: &Session, now: Now) -> bool {
        !session.expired(now) && !self.revocations.cover(session.facts())
    }

    fn departed(&self, session: &Session, reason: RemovalReason) {
        self.ledger.departed(self.group, session, reason);
    }
}

fn random_id() -> Option<SessionId> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).ok()?;
    SessionId::new(&bytes)
}

#[cfg(test)]
mod tests;
