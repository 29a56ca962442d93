//! The session cache of one scope and role: the policy over a store.
//!
//! Contexts whose scopes agree share one cache, so a session is never even looked for outside its own scope.
//!
//! Invariants:
//!   - a removed, taken or expired session is never handed out again
//!   - a single-use session is handed out at most once
//!   - a full cache makes room; it never fails a handshake

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicUsize, Ordering},
};

use aws_lc_rs::rand;
use dashmap::DashMap;

use super::{NewSession, Role, Session, SessionId, Terms, stats::Counter};
use crate::{
    clock::Timestamp,
    config::Offering,
    store::memory::{Limits, Memory, Refused},
};

/// What a lookup answers where there is nothing to resume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Miss {
    /// Never seen, removed or taken.
    Unknown,
    /// It was found, but its lifetime is over. Now it is gone.
    Expired,
    /// It is there, but not on these terms.
    Scope,
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
}

/// Sessions of one scope and role.
pub struct Cache {
    role: Role,
    store: Memory<SessionId, Session>,
    pool: Option<Pool>,
    /// SSL_CTX_sess_cache_full: sessions evicted.
    pub cache_full: Counter,
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
    pub fn new(role: Role, offering: Offering, limits: Limits) -> Self {
        let pooled = role == Role::Client && offering == Offering::Shared;
        Self {
            role,
            store: Memory::new(limits, Session::size),
            pool: pooled.then(Pool::default),
            cache_full: Counter::default(),
        }
    }

    /// Stores the session that a handshake made.
    ///
    /// # Errors
    /// [`NotStored`] says why it was not; a handshake goes on without.
    pub fn put(&self, new: NewSession, now: Timestamp) -> Result<Arc<Session>, NotStored> {
        let mut expires = new.authenticated.after(new.timeout);
        if let Some(peer) = &new.peer {
            expires = expires.min(peer.not_after);
        }
        if now >= expires {
            return Err(NotStored::Expired);
        }
        let id = match new.id {
            Some(id) => id,
            None => random_id().ok_or(NotStored::NoRandomness)?,
        };
        if let Some(old) = self.store.get(&id).filter(|old| old.expired(now)) {
            self.store.remove(&old);
        }
        let session = Arc::new(Session {
            id,
            role: self.role,
            version: new.version,
            cipher_suite: new.cipher_suite,
            server_name: new.server_name,
            format: new.format,
            binding: new.binding,
            single_use: new.single_use,
            context: new.context,
            peer: new.peer,
            created: now,
            authenticated: new.authenticated,
            expires,
            secret: new.secret,
            open: AtomicU32::new(0),
        });
        let evicted = self.store.put(Arc::clone(&session)).map_err(|refused| match refused {
            Refused::TooLarge => NotStored::TooLarge,
            Refused::Taken => NotStored::IdTaken,
        })?;
        for _ in 0..evicted {
            self.cache_full.count();
        }
        if let Some(pool) = &self.pool {
            pool.push(&session, &self.store);
        }
        Ok(session)
    }

    /// The session under this id, on these terms; a single-use one is gone with the answer.
    ///
    /// # Errors
    /// [`Miss`] says why there is none.
    pub fn find(&self, id: &SessionId, terms: &Terms<'_>, now: Timestamp) -> Result<Arc<Session>, Miss> {
        let session = self.store.get(id).ok_or(Miss::Unknown)?;
        if !session.fits(terms) {
            return Err(Miss::Scope);
        }
        // This very session was looked at, and no other that may have its id by now.
        if session.expired(now) {
            self.store.remove(&session);
            return Err(Miss::Expired);
        }
        if session.single_use && !self.store.remove(&session) {
            return Err(Miss::Unknown);
        }
        Ok(session)
    }

    /// The session under this id, which stays, whatever its version. Not for resuming.
    pub fn peek(&self, id: &SessionId, now: Timestamp) -> Option<Arc<Session>> {
        self.store.get(id).filter(|session| !session.expired(now))
    }

    /// The newest session with this server on these terms, where the cache offers any; a single-use one is gone with the
    /// answer.
    pub fn newest(&self, server_name: &str, terms: &Terms<'_>, now: Timestamp) -> Option<Arc<Session>> {
        let pool = self.pool.as_ref()?;
        // Each round either returns, or takes a session out of the pool that is not to be had any more.
        loop {
            let session = pool.newest(server_name, terms, &self.store)?;
            if let Ok(found) = self.find(&session.id, terms, now) {
                return Some(found);
            }
        }
    }

    /// Takes whatever has this id out for good; says whether it was there.
    pub fn remove(&self, id: &SessionId, now: Timestamp) -> bool {
        self.store.take(id).is_some_and(|session| !session.expired(now))
    }

    /// Takes this very session out for good, not another that has its id by now; says whether it was there.
    pub fn withdraw(&self, session: &Arc<Session>) -> bool {
        self.store.remove(session)
    }

    /// Drops what has expired, oldest first, and what the pool no longer needs.
    pub fn reap(&self, now: Timestamp) {
        self.store.reap(|session| session.expired(now));
        if let Some(pool) = &self.pool {
            pool.shrink(&self.store);
        }
    }

    /// Shows every session that has not expired, in no order.
    pub fn scan(&self, now: Timestamp, mut visit: impl FnMut(&Arc<Session>)) {
        self.store.scan(|session| {
            if !session.expired(now) {
                visit(session);
            }
        });
    }

    /// How many sessions it holds, expired ones that nobody asked for included.
    pub fn len(&self) -> usize {
        self.store.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.store.is_empty()
    }

    /// What they take, in bytes; see [`Session::size`].
    pub fn bytes(&self) -> usize {
        self.store.bytes()
    }
}

fn random_id() -> Option<SessionId> {
    let mut bytes = [0; 16];
    rand::fill(&mut bytes).ok()?;
    SessionId::new(&bytes)
}

/// Client sessions by server name, newest last. Ids of sessions that have left the store stay until they are met.
///
/// Here and nowhere else one map is asked while a guard of another is held: always pool first, store second.
#[derive(Default)]
struct Pool {
    by_name: DashMap<Arc<str>, Vec<SessionId>>,
    /// How many ids there are in all, nearly.
    ids: AtomicUsize,
}

/// How many sessions that do not fit are looked past.
const LOOK_PAST_MAX: usize = 64;

impl Pool {
    fn push(&self, session: &Session, store: &Memory<SessionId, Session>) {
        let mut ids = self.by_name.entry(Arc::clone(&session.server_name)).or_default();
        if ids.len() >= 16 && ids.len() == ids.capacity() {
            self.retain(&mut ids, store);
            // Where most of them live there is more room now, so that the next search is far away.
            if ids.len() > ids.capacity() / 2 {
                let more = ids.capacity();
                ids.reserve(more);
            }
        }
        ids.push(session.id.clone());
        self.ids.fetch_add(1, Ordering::Relaxed);
    }

    fn newest(
        &self,
        server_name: &str,
        terms: &Terms<'_>,
        store: &Memory<SessionId, Session>,
    ) -> Option<Arc<Session>> {
        let mut ids = self.by_name.get_mut(server_name)?;
        let mut place = ids.len();
        for _ in 0..LOOK_PAST_MAX {
            place = place.checked_sub(1)?;
            match store.get(&ids[place]) {
                Some(session) if session.fits(terms) => return Some(session),
                Some(_) => {}
                None => {
                    ids.remove(place);
                    self.ids.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        None
    }

    /// Forgets ids without sessions, and names without ids, once they are many.
    fn shrink(&self, store: &Memory<SessionId, Session>) {
        let most = 2 * store.len() + 64;
        if self.ids.load(Ordering::Relaxed) > most || self.by_name.len() > most {
            self.by_name.retain(|_, ids| {
                self.retain(ids, store);
                !ids.is_empty()
            });
        }
    }

    fn retain(&self, ids: &mut Vec<SessionId>, store: &Memory<SessionId, Session>) {
        let before = ids.len();
        ids.retain(|id| store.get(id).is_some());
        self.ids.fetch_sub(before - ids.len(), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use zeroize::Zeroizing;

    use super::*;
    use crate::session::{Format, PeerIdentity, Secret, Version};

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);
    const HOUR: Duration = Duration::from_secs(3600);

    fn cache() -> Cache {
        let limits = Limits { entries_max: 10, bytes_max: 1000, value_bytes_max: 100 };
        Cache::new(Role::Server, Offering::Shared, limits)
    }

    fn new(id: u8, version: Version) -> NewSession {
        NewSession {
            id: SessionId::new(&[id]),
            version,
            cipher_suite: "TLS_AES_128_GCM_SHA256".into(),
            server_name: "a.test".into(),
            format: Format::Rustls,
            binding: [].into(),
            single_use: version == Version::Tls13,
            context: "default".into(),
            peer: None,
            authenticated: NOW,
            timeout: HOUR,
            secret: Secret::Server(Zeroizing::new(vec![1; 50])),
        }
    }

    fn find(
        cache: &Cache,
        id: u8,
        version: Version,
        name: &str,
        now: Timestamp,
    ) -> Result<Arc<Session>, Miss> {
        let terms =
            Terms { format: &Format::Rustls, binding: &[], versions: &[version], server_name: Some(name) };
        cache.find(&self::id(id), &terms, now)
    }

    fn id(id: u8) -> SessionId {
        SessionId::new(&[id]).unwrap()
    }

    #[test]
    fn life_is_counted_from_the_authentication_and_ends_with_the_certificate() {
        let cache = cache();
        let soon = NOW.after(Duration::from_secs(60));
        let peer = PeerIdentity { not_after: soon, ..PeerIdentity::default() };
        let cut = NewSession { peer: Some(Arc::new(peer)), ..new(1, Version::Tls12) };
        assert_eq!(cache.put(cut, NOW).unwrap().expires, soon);
        let later = NOW.after(HOUR / 2);
        assert_eq!(cache.put(new(2, Version::Tls12), later).unwrap().expires, NOW.after(HOUR));
        assert!(cache.put(new(3, Version::Tls12), NOW.after(HOUR)).is_err(), "nothing is left of it");

        let last = Timestamp::from_millis(soon.as_millis() - 1);
        assert!(find(&cache, 1, Version::Tls12, "a.test", last).is_ok());
        assert_eq!(find(&cache, 1, Version::Tls12, "a.test", soon).unwrap_err(), Miss::Expired);
        assert_eq!(find(&cache, 1, Version::Tls12, "a.test", NOW).unwrap_err(), Miss::Unknown, "it is gone");
    }

    #[test]
    fn session_is_found_with_its_version_and_name_only_and_a_miss_spends_no_ticket() {
        let cache = cache();
        cache.put(new(1, Version::Tls13), NOW).unwrap();
        assert!(find(&cache, 1, Version::Tls12, "a.test", NOW).is_err());
        assert!(find(&cache, 1, Version::Tls13, "b.test", NOW).is_err());
        assert!(find(&cache, 1, Version::Tls13, "", NOW).is_err());
        assert!(find(&cache, 1, Version::Tls13, "a.test", NOW).is_ok());
        assert!(find(&cache, 1, Version::Tls13, "a.test", NOW).is_err(), "a ticket is handed out once");
        cache.put(new(2, Version::Tls12), NOW).unwrap();
        for _ in 0..2 {
            assert!(find(&cache, 2, Version::Tls12, "a.test", NOW).is_ok());
        }
        assert!(cache.remove(&id(2), NOW) && !cache.remove(&id(2), NOW));
    }

    #[test]
    fn session_goes_back_to_its_own_library_and_binding_only() {
        let cache = cache();
        let openssl = Format::Worker("openssl".into());
        let alike = Format::Worker("rustls".into());
        let put =
            NewSession { format: openssl.clone(), binding: (*b"vhost").into(), ..new(1, Version::Tls13) };
        cache.put(put, NOW).unwrap();
        let terms =
            |format, binding| Terms { format, binding, versions: &[Version::Tls13], server_name: None };
        for (format, binding) in [
            (&Format::Rustls, &b"vhost"[..]),
            (&alike, b"vhost"),
            (&openssl, b"vhos"),
            (&openssl, b""),
            (&openssl, b"vhost2"),
        ] {
            assert_eq!(cache.find(&id(1), &terms(format, binding), NOW).unwrap_err(), Miss::Scope);
        }
        assert!(cache.find(&id(1), &terms(&openssl, b"vhost"), NOW).is_ok(), "no miss has spent it");
    }

    #[test]
    fn taken_id_is_not_replaced_unless_its_session_is_over() {
        let cache = cache();
        cache.put(new(1, Version::Tls12), NOW).unwrap();
        assert_eq!(cache.put(new(1, Version::Tls12), NOW).unwrap_err(), NotStored::IdTaken);
        let later = NOW.after(HOUR);
        let next = NewSession { authenticated: later, ..new(1, Version::Tls12) };
        assert_eq!(cache.put(next, later).unwrap().created, later);
    }

    #[test]
    fn session_over_the_size_limit_is_not_kept() {
        let cache = cache();
        let large =
            NewSession { secret: Secret::Server(Zeroizing::new(vec![1; 101])), ..new(1, Version::Tls12) };
        assert_eq!(cache.put(large, NOW).unwrap_err(), NotStored::TooLarge);
        assert!(cache.is_empty() && cache.bytes() == 0);
    }
}
