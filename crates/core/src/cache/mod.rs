//! The session cache of one scope and role: the policy over a store.
//!
//! Contexts whose scopes agree share one cache, so a session is never even looked for outside its own scope.
//!
//! Invariants:
//!   - a removed, taken, revoked or expired session is never handed out again
//!   - a single-use session is handed out at most once
//!   - a full cache makes room; it never fails a handshake

use std::sync::Arc;

use aws_lc_rs::rand;
use tls_sessiond_types::{Role, server_name::ServerName};

use crate::{
    cache::{
        by_server_name::Pool,
        revocation::{Revocations, Selector},
        shared::Ledger,
        tombstones::{Departure, Group},
    },
    clock::{Now, Timestamp},
    session::{
        Facts, Kind, LIFETIME_MAX, Miss, NewSession, RemovalReason, Session, SessionId, Terms,
        events::{MissEvent, What},
        stats::Account,
    },
    store::memory::{Limits, Memory, Refused},
    sync::{AtomicUsize, Ordering},
};

pub mod budget;
mod by_server_name;
mod recycle;
pub mod revocation;
pub mod shared;
pub mod tombstones;

/// How many lookups [`Cache::expect`] prepares for.
pub use crate::store::memory::TOUCHED_MAX as EXPECTED_MAX;

/// Whether a new client connection may be offered sessions that nobody named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offering {
    /// Newest first, from any worker.
    Shared,
    /// Only what New or SetSession names, as OpenSSL does.
    Explicit,
}

/// Why a session was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotStored {
    /// There is no life in it: its time, counted from the authentication and cut by the peer's certificate, is over.
    Expired,
    /// It is over the size limit.
    TooLarge,
    /// Another session has its id.
    IdTaken,
    /// The system has no random numbers for an id.
    NoRandomness,
    /// Its peer's sessions of that time are revoked, or what decides who may resume has changed.
    Revoked,
}

/// What is known of an id.
#[derive(Debug)]
pub enum Known {
    /// It is there; with the miss that every lookup gets all the same.
    Held(Arc<Session>, Option<Miss>),
    /// It was there.
    Departed(Departure),
    /// Nothing.
    Nothing,
}

/// What a cache is made for.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Whose sessions.
    pub role: Role,
    /// Whether clients are offered sessions that they did not name.
    pub offering: Offering,
    /// How much it holds.
    pub limits: Limits,
    /// Most bytes of one session: secret, binding and names.
    pub session_bytes_max: usize,
}

/// So many sessions do not lie near any processor.
const FAR: usize = 50_000;

/// Sessions of one scope and role.
pub struct Cache {
    role: Role,
    group: Group,
    session_bytes_max: AtomicUsize,
    store: Memory<Session>,
    pool: Option<Pool>,
    revocations: Revocations,
    ledger: Arc<Ledger>,
}

/// How many, and nothing of what.
impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache")
            .field("role", &self.role)
            .field("sessions", &self.len())
            .finish_non_exhaustive()
    }
}

impl Cache {
    /// An empty cache.
    pub fn new(plan: &Plan, ledger: &Arc<Ledger>) -> Self {
        let pooled = plan.role == Role::Client && plan.offering == Offering::Shared;
        Self {
            role: plan.role,
            group: ledger.journal.new_group(),
            session_bytes_max: AtomicUsize::new(plan.session_bytes_max),
            store: Memory::new(plan.limits, Arc::clone(ledger.budget.held())),
            pool: pooled.then(Pool::default),
            revocations: Revocations::default(),
            ledger: Arc::clone(ledger),
        }
    }

    /// Stores the session that a handshake made.
    ///
    /// # Errors
    /// [`NotStored`] says why it was not; a handshake goes on without.
    pub fn put(&self, new: NewSession, now: Now) -> Result<Arc<Session>, NotStored> {
        self.ledger.tell_time(now.at);
        let session = recycle::fill(self.session(new, now)?);
        if session.told() > self.session_bytes_max.load(Ordering::Relaxed) {
            return Err(NotStored::TooLarge);
        }
        if self.revocations.cover(session.facts()) {
            return Err(NotStored::Revoked);
        }
        self.store_or_replace(&session, now)?;
        // A revocation that came meanwhile has looked through the store before this was in it, or finds it there.
        if self.revocations.cover(session.facts()) {
            self.withdraw(&session, RemovalReason::Revoked);
            return Err(NotStored::Revoked);
        }
        if let Some(pool) = &self.pool {
            pool.push(&session, &self.store);
        }
        self.ledger.watchers.tell(&session, What::Added, now.at);
        self.ledger.budget.settle(self, &session);
        Ok(session)
    }

    fn session(&self, new: NewSession, now: Now) -> Result<Session, NotStored> {
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
        let id = match new.id {
            Some(id) => id,
            None => random_id().ok_or(NotStored::NoRandomness)?,
        };
        let kind = Kind {
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
        let facts = Facts { id, kind, authenticated: new.authenticated, created_after, lives };
        Ok(Session::new(facts, new.secret))
    }

    /// A free id, or one whose session is over.
    fn store_or_replace(&self, session: &Arc<Session>, now: Now) -> Result<(), NotStored> {
        let put = || self.store.put(Arc::clone(session), |evicted| self.made_room(evicted));
        let mut stored = put();
        if stored == Err(Refused::Taken)
            && let Some(old) = self.store.peek(session.id().as_bytes()).filter(|old| old.expired(now))
        {
            self.withdraw(&old, RemovalReason::Expired);
            stored = put();
        }
        stored.map_err(|refused| match refused {
            Refused::TooLarge => NotStored::TooLarge,
            Refused::Taken => NotStored::IdTaken,
        })
    }

    /// The session under this id, on these terms; a single-use one is gone with the answer.
    ///
    /// # Errors
    /// [`Miss`] says why there is none.
    pub fn find(&self, id: &SessionId, terms: &Terms<'_>, now: Now) -> Result<Arc<Session>, Miss> {
        self.tell_time(now.at);
        let Some(session) = self.store.get(id.as_bytes()) else {
            let departure = self.ledger.journal.find(self.group, self.role, id);
            return Err(departure.map_or(Miss::Unknown, |departure| departure.miss()));
        };
        if !session.kind().fits(terms) {
            return Err(Miss::Scope);
        }
        // This very session was looked at, and no other that may have its id by now.
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
        self.ledger.watchers.tell(&session, What::Hit, now.at);
        Ok(session)
    }

    /// Counts and tells a lookup of this cache that missed, under a context.
    pub fn missed(
        &self,
        account: &Account,
        id: &SessionId,
        server_name: &ServerName<'_>,
        why: Miss,
        now: Now,
    ) {
        account.misses.count(why);
        self.tell_missed(&account.name, id, server_name, why, now);
    }

    /// Tells those that watch of a lookup of this cache that missed, under a context.
    pub fn tell_missed(
        &self,
        context: &Arc<str>,
        id: &SessionId,
        server_name: &ServerName<'_>,
        why: Miss,
        now: Now,
    ) {
        self.ledger.watchers.tell_miss(|| MissEvent {
            at: now.at,
            id: id.clone(),
            role: self.role,
            context: Arc::clone(context),
            server_name: server_name.clone().into_owned(),
            why,
        });
    }

    /// Prepares for lookups of these ids, which come next, where there are so many sessions that each would wait for memory
    /// of its own: [`EXPECTED_MAX`] of them at most. Elsewhere no id is asked for.
    pub fn expect(&self, ids: impl Iterator<Item = SessionId>) {
        if self.len() >= FAR {
            self.store.touch(ids);
        }
    }

    /// Tells the time, so that no session is said to have left before what made it leave.
    pub fn tell_time(&self, now: Timestamp) {
        self.ledger.tell_time(now);
    }

    /// The session under this id, which stays, whatever its version. Not for resuming.
    pub fn peek(&self, id: &SessionId, now: Now) -> Option<Arc<Session>> {
        self.store.peek(id.as_bytes()).filter(|session| self.alive(session, now))
    }

    /// What is known of an id; it stays as it is.
    pub fn explain(&self, id: &SessionId, now: Now) -> Known {
        if let Some(session) = self.store.peek(id.as_bytes()) {
            let miss = if session.expired(now) {
                Some(Miss::Expired)
            } else {
                self.revocations.cover(session.facts()).then_some(Miss::Revoked)
            };
            return Known::Held(session, miss);
        }
        match self.ledger.journal.find(self.group, self.role, id) {
            Some(departure) => Known::Departed(departure),
            None => Known::Nothing,
        }
    }

    /// What names this cache in the journal, also after it was closed.
    pub fn group(&self) -> Group {
        self.group
    }

    /// Returns the last departure of a session with this id from another cache of this role.
    pub fn departure_from(&self, other: Group, id: &SessionId) -> Option<Departure> {
        self.ledger.journal.find(other, self.role, id)
    }

    /// The newest session with this server on these terms, where the cache offers any; a single-use one is gone with the
    /// answer.
    pub fn newest(&self, terms: &Terms<'_>, now: Now) -> Option<Arc<Session>> {
        let pool = self.pool.as_ref()?;
        // Each round either returns, or takes a session out of the pool that is not to be had any more.
        loop {
            let session = pool.newest(terms, &self.store)?;
            if let Ok(found) = self.find(session.id(), terms, now) {
                return Some(found);
            }
        }
    }

    /// Takes whatever has this id out for good; says whether it was there.
    pub fn remove(&self, id: &SessionId, now: Now) -> bool {
        self.tell_time(now.at);
        let Some(session) = self.store.take(id.as_bytes()) else { return false };
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

    /// Takes this very session out for good, not another that has its id by now; says whether it was there.
    pub fn withdraw(&self, session: &Arc<Session>, reason: RemovalReason) -> bool {
        let removed = self.store.remove(session);
        if removed {
            self.departed(session, reason);
        }
        removed
    }

    /// From now on what this matches and was authenticated before `before` is not resumed, nor stored. What the cache holds
    /// of it leaves with [`Self::withdraw_revoked`], or when it is looked up.
    pub fn revoke(&self, selector: Selector, before: Timestamp) {
        self.revocations.revoke(selector, before);
    }

    /// Takes out what is revoked of one of [`Self::parts`], in one piece; says how many.
    pub fn purge(&self, part: usize) -> usize {
        self.withdraw_revoked(&self.revoked(part))
    }

    /// What is revoked of one of [`Self::parts`], and there still, for [`Self::withdraw_revoked`].
    pub fn revoked(&self, part: usize) -> Vec<Arc<Session>> {
        let mut revoked = Vec::new();
        self.store.scan(part, |session| {
            if self.revocations.cover(session.facts()) {
                revoked.push(Arc::clone(session));
            }
        });
        revoked
    }

    /// Takes these out; says how many were there.
    pub fn withdraw_revoked(&self, sessions: &[Arc<Session>]) -> usize {
        sessions.iter().filter(|session| self.withdraw(session, RemovalReason::Revoked)).count()
    }

    /// Nothing is found here any more, nor stored, and what there is leaves: no context has this scope now. `see` is shown each
    /// session that leaves.
    pub fn close(&self, mut see: impl FnMut(&Session)) {
        self.revocations.close();
        self.store.drain(|session| {
            self.departed(&session, RemovalReason::ScopeChanged);
            see(&session);
        });
    }

    /// Takes over the revocations of a cache that it follows.
    pub fn inherit(&self, from: &Self) {
        self.revocations.inherit(&from.revocations);
    }

    /// How many revocations hold.
    pub fn revocations(&self) -> usize {
        self.revocations.len()
    }

    /// Drops what has expired, and what pool and revocations no longer need.
    pub fn reap(&self, now: Timestamp) {
        self.ledger.tell_time(now);
        self.store.expire(now, |session| self.departed(&session, RemovalReason::Expired));
        self.revocations.forget(now);
        if let Some(pool) = &self.pool {
            pool.shrink(&self.store);
        }
    }

    /// In how many parts [`Self::scan_part`] and [`Self::revoked`] look through it.
    pub fn parts(&self) -> usize {
        self.store.parts()
    }

    /// Shows every session that may be resumed, in no order.
    pub fn scan(&self, now: Now, mut visit: impl FnMut(&Arc<Session>)) {
        (0..self.parts()).for_each(|part| self.scan_part(part, now, &mut visit));
    }

    /// The same, of one of [`Self::parts`]: nothing enters that part or leaves it meanwhile.
    pub fn scan_part(&self, part: usize, now: Now, mut visit: impl FnMut(&Arc<Session>)) {
        self.store.scan(part, |session| {
            if self.alive(session, now) {
                visit(session);
            }
        });
    }

    /// How many sessions it holds, expired ones that nobody asked for included.
    pub fn len(&self) -> usize {
        self.store.amount().entries()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What they take, in bytes; see [`Session::size`].
    pub fn bytes(&self) -> usize {
        self.store.amount().bytes()
    }

    /// How much it may hold.
    pub fn limits(&self) -> Limits {
        self.store.limits()
    }

    /// Changes how much it may hold, in all and of one session. What has to go for it leaves.
    pub fn resize(&self, limits: Limits, session_bytes_max: usize) {
        self.session_bytes_max.store(session_bytes_max, Ordering::Relaxed);
        self.store.resize(limits, |evicted| self.made_room(evicted));
    }

    /// Gives up one session for others, and not the newest, where that is here. Whoever gets it calls [`Self::made_room`].
    pub(super) fn make_room(&self, newest: Option<&Session>) -> Option<Arc<Session>> {
        self.store.evict(newest)
    }

    /// Tells that this session had to make room.
    pub(super) fn made_room(&self, gone: Arc<Session>) {
        self.departed(&gone, RemovalReason::CacheFull);
        recycle::leave(gone);
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
