//! Revocations: sessions that may not be resumed any more, whatever the cache holds.
//!
//! A revocation covers the sessions that its selector matches and that were authenticated before
//! its time. It is checked at every put and every lookup. So it also covers sessions that are
//! stored later with an older authentication, and sessions already handed out. It is dropped when
//! all sessions that it could match have expired: [`LIFETIME_MAX`] after its time.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::Hash,
};

use tls_sessiond_types::server_name::ServerName;

use crate::{
    clock::Timestamp,
    session::{LIFETIME_MAX, SessionInfo},
    sync::{AtomicU64, Ordering, RwLock},
};

/// The sessions that a revocation matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// All sessions.
    All,
    /// Sessions of the peer with this certificate: SHA-256 of its DER form.
    Certificate([u8; 32]),
    /// Sessions of the peer with this URI name, for example a SPIFFE id.
    Uri(Box<str>),
    /// Sessions of the peer with this DNS name.
    DnsName(ServerName<'static>),
    /// Sessions made under this server name.
    ServerName(ServerName<'static>),
}

/// Maximum number of selectors held separately.
///
/// Beyond it, the older half becomes one revocation of all sessions. Some peers then make a full
/// handshake without need, but no revoked session is resumed.
pub const SELECTORS_MAX: usize = 4096;

/// The revocations of one cache.
#[derive(Debug, Default)]
pub struct Revocations {
    /// The latest time of all revocations, in milliseconds. Most sessions were authenticated later
    /// and need no further check.
    latest: AtomicU64,
    held: RwLock<Revoked>,
}

/// The time of each revocation.
#[derive(Clone, Debug, Default)]
struct Revoked {
    all: Timestamp,
    certificates: HashMap<[u8; 32], Timestamp>,
    uris: HashMap<Box<str>, Timestamp>,
    dns_names: HashMap<ServerName<'static>, Timestamp>,
    server_names: HashMap<ServerName<'static>, Timestamp>,
}

impl Revocations {
    /// Revokes sessions that `selector` matches and that were authenticated before `before`.
    pub fn revoke(&self, selector: Selector, before: Timestamp) {
        let mut held = self.held.write();
        held.raise(selector, before);
        held.bound();
        self.latest.fetch_max(before.as_millis(), Ordering::SeqCst);
    }

    /// Revokes all sessions, now and in future.
    pub fn close(&self) {
        self.revoke(Selector::All, Timestamp::from_millis(u64::MAX));
    }

    /// Returns whether a session is revoked.
    #[inline]
    pub fn cover(&self, session: &SessionInfo) -> bool {
        if session.authenticated.as_millis() >= self.latest.load(Ordering::SeqCst) {
            return false;
        }
        self.held.read().cover(session)
    }

    /// Copies the revocations of another cache.
    pub fn inherit(&self, from: &Self) {
        let from = from.held.read().clone();
        let mut latest = from.all;
        let mut held = self.held.write();
        held.all = held.all.max(from.all);
        raise_all(&mut held.certificates, from.certificates, &mut latest);
        raise_all(&mut held.uris, from.uris, &mut latest);
        raise_all(&mut held.dns_names, from.dns_names, &mut latest);
        raise_all(&mut held.server_names, from.server_names, &mut latest);
        held.bound();
        self.latest.fetch_max(latest.as_millis(), Ordering::SeqCst);
    }

    /// Drops revocations that can match only expired sessions.
    pub fn forget(&self, now: Timestamp) {
        if self.is_empty() {
            return;
        }
        let mut held = self.held.write();
        held.retain(|before| before.after(LIFETIME_MAX) > now);
        self.latest
            .store(held.latest().as_millis(), Ordering::SeqCst);
    }

    /// Returns the number of selectors.
    pub fn len(&self) -> usize {
        let held = self.held.read();
        held.selectors() + usize::from(held.all > Timestamp::default())
    }

    /// Returns whether there are no revocations.
    pub fn is_empty(&self) -> bool {
        self.latest.load(Ordering::SeqCst) == 0
    }
}

impl Revoked {
    fn cover(&self, session: &SessionInfo) -> bool {
        let covers = |before: Option<&Timestamp>| {
            before.is_some_and(|before| session.authenticated < *before)
        };
        session.authenticated < self.all
            || covers(self.server_names.get(&*session.kind.server_name))
            || session.kind.peer.as_deref().is_some_and(|peer| {
                covers(self.certificates.get(&peer.certificate_sha256))
                    || peer
                        .uris
                        .iter()
                        .any(|uri| covers(self.uris.get(uri.as_str())))
                    || peer
                        .dns_names
                        .iter()
                        .any(|name| covers(self.dns_names.get(name.as_str())))
            })
    }

    fn raise(&mut self, selector: Selector, before: Timestamp) {
        match selector {
            Selector::All => self.all = self.all.max(before),
            Selector::Certificate(digest) => raise(&mut self.certificates, digest, before),
            Selector::Uri(uri) => raise(&mut self.uris, uri, before),
            Selector::DnsName(name) => raise(&mut self.dns_names, name, before),
            Selector::ServerName(name) => raise(&mut self.server_names, name, before),
        }
    }

    fn selectors(&self) -> usize {
        self.certificates.len() + self.uris.len() + self.dns_names.len() + self.server_names.len()
    }

    fn moments(&self) -> impl Iterator<Item = Timestamp> {
        let names = [&self.dns_names, &self.server_names]
            .into_iter()
            .flat_map(HashMap::values);
        self.certificates
            .values()
            .chain(self.uris.values())
            .chain(names)
            .copied()
    }

    fn latest(&self) -> Timestamp {
        self.moments().fold(self.all, Timestamp::max)
    }

    fn retain(&mut self, alive: impl Fn(Timestamp) -> bool) {
        if !alive(self.all) {
            self.all = Timestamp::default();
        }
        self.certificates.retain(|_, before| alive(*before));
        self.uris.retain(|_, before| alive(*before));
        for names in [&mut self.dns_names, &mut self.server_names] {
            names.retain(|_, before| alive(*before));
        }
    }

    /// Keeps [`SELECTORS_MAX`]: makes the older half one revocation of all sessions.
    fn bound(&mut self) {
        if self.selectors() <= SELECTORS_MAX {
            return;
        }
        let mut moments: Vec<_> = self.moments().collect();
        let middle = moments.len() / 2;
        let before = *moments.select_nth_unstable(middle).1;
        self.all = self.all.max(before);
        // `all` covers the selectors with this time or an earlier one.
        self.retain(|other| other > before);
        self.all = self.all.max(before);
    }
}

fn raise<K: Eq + Hash>(held: &mut HashMap<K, Timestamp>, key: K, before: Timestamp) {
    match held.entry(key) {
        Entry::Occupied(mut entry) => *entry.get_mut() = before.max(*entry.get()),
        Entry::Vacant(entry) => {
            entry.insert(before);
        }
    }
}

fn raise_all<K: Eq + Hash>(
    held: &mut HashMap<K, Timestamp>,
    from: HashMap<K, Timestamp>,
    latest: &mut Timestamp,
) {
    for (key, before) in from {
        *latest = before.max(*latest);
        raise(held, key, before);
    }
}
