//! The naive model: plain lists that every call searches, and no redundant state.

use std::{
    collections::BTreeMap,
    sync::{Arc, LazyLock},
};

use tls_sessiond_core::{
    cache::revocation::Selector,
    session::{
        Attributes, Format, LIFETIME_MAX, Miss, OVERHEAD, PeerIdentity, RemovalReason,
        stats::Account,
    },
    store::memory::Limits,
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};

/// The key of a cache. Contexts with equal keys share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) session_id_context: &'static str,
    pub(super) alpn: u8,
    pub(super) server: bool,
}

/// A session as it was put.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Held {
    /// Unique, unlike the id.
    pub(super) serial: u32,
    pub(super) id: u8,
    pub(super) single_use: bool,
    pub(super) name: u8,
    pub(super) peer: Peer,
    /// Milliseconds, like all times here.
    pub(super) authenticated: u64,
    pub(super) timeout: u64,
    pub(super) secret: usize,
    /// Index of the account.
    pub(super) account: usize,
}

/// The authenticated identity of the peer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Peer {
    Nobody,
    /// Its certificate never expires.
    One,
    /// Its certificate expires at this time.
    Other(u64),
}

impl Peer {
    /// Returns the digest of the peer's certificate, for a selector.
    pub(super) fn digest(self) -> [u8; 32] {
        match self {
            Self::Nobody => [0; 32],
            Self::One => [1; 32],
            Self::Other(_) => [2; 32],
        }
    }

    pub(super) fn dns_name(self) -> &'static str {
        match self {
            Self::Nobody => "",
            Self::One => "one.test",
            Self::Other(_) => "other.test",
        }
    }

    pub(super) fn uri(self) -> &'static str {
        match self {
            Self::Nobody => "",
            Self::One => "spiffe://one",
            Self::Other(_) => "spiffe://other",
        }
    }
}

pub(super) fn server_name(name: u8) -> &'static ServerName<'static> {
    static NAMES: LazyLock<[ServerName<'static>; 2]> = LazyLock::new(|| {
        ["a.test", "long-name.test"].map(|name| ServerName::new(name).into_owned())
    });
    &NAMES[usize::from(name)]
}

fn millis(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap()
}

impl Held {
    pub(super) fn expires(&self) -> u64 {
        let timed = self.authenticated + self.timeout.min(millis(LIFETIME_MAX));
        match self.peer {
            Peer::Other(not_after) => timed.min(not_after),
            Peer::Nobody | Peer::One => timed,
        }
    }

    pub(super) fn expired(&self, now: u64) -> bool {
        now >= self.expires()
    }

    /// Returns the bytes whose number the worker and the peer decide. `session_bytes_max` limits
    /// them.
    pub(super) fn length(&self) -> usize {
        let names = self.peer.dns_name().len() + self.peer.uri().len();
        self.secret + server_name(self.name).len() + names
    }

    /// Returns the bytes that it counts: its overhead, its secret and its shared attributes, even
    /// if other sessions share these.
    pub(super) fn size(&self) -> usize {
        let peer = (self.peer != Peer::Nobody).then(|| {
            let (dns_name, uri) = (self.peer.dns_name().to_owned(), self.peer.uri().to_owned());
            Arc::new(PeerIdentity {
                dns_names: vec![dns_name],
                uris: vec![uri],
                ..PeerIdentity::default()
            })
        });
        let kind = Attributes {
            role: Role::Server,
            version: Version::Tls12,
            cipher_suite: self.serial.to_string().into(),
            server_name: server_name(self.name).clone(),
            format: Format::Rustls,
            binding: [].into(),
            single_use: false,
            account: Arc::new(Account::new("")),
            peer,
        };
        OVERHEAD + self.secret + kind.size()
    }

    fn matches(&self, selector: &Selector) -> bool {
        let known = self.peer != Peer::Nobody;
        match selector {
            Selector::All => true,
            Selector::Certificate(digest) => known && self.peer.digest() == *digest,
            Selector::Uri(uri) => known && self.peer.uri() == &**uri,
            Selector::DnsName(name) => known && self.peer.dns_name() == &**name,
            Selector::ServerName(name) => server_name(self.name) == name,
        }
    }
}

/// A cache. Its sessions are in the order of their puts.
#[derive(Clone, Debug)]
pub(super) struct ModelCache {
    pub(super) key: Key,
    /// Unique, unlike the key: a scope can return, its cache cannot.
    pub(super) number: u32,
    pub(super) limits: Limits,
    pub(super) session_bytes_max: usize,
    pub(super) share: Limits,
    pub(super) sessions: Vec<Held>,
    /// Each revokes the sessions that match the selector and were authenticated before the time.
    pub(super) revocations: Vec<(Selector, u64)>,
}

impl ModelCache {
    pub(super) fn new(key: Key, number: u32, limits: Limits, session_bytes_max: usize) -> Self {
        Self {
            key,
            number,
            limits,
            session_bytes_max,
            share: limits,
            sessions: Vec::new(),
            revocations: Vec::new(),
        }
    }

    pub(super) fn role(&self) -> Role {
        if self.key.server {
            Role::Server
        } else {
            Role::Client
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.sessions.iter().map(Held::size).sum()
    }

    pub(super) fn over_limits(&self) -> bool {
        self.sessions.len() > self.limits.entries_max || self.bytes() > self.limits.bytes_max
    }

    pub(super) fn revoked(&self, session: &Held) -> bool {
        let covers = |(selector, before): &(Selector, u64)| {
            session.matches(selector) && session.authenticated < *before
        };
        self.revocations.iter().any(covers)
    }

    pub(super) fn by_id(&self, id: u8) -> Option<&Held> {
        self.sessions.iter().find(|held| held.id == id)
    }

    /// Returns why a lookup does not find this stored session, or `None` if it does.
    pub(super) fn miss(&self, held: &Held, now: u64) -> Option<Miss> {
        if held.expired(now) {
            Some(Miss::Expired)
        } else {
            self.revoked(held).then_some(Miss::Revoked)
        }
    }

    pub(super) fn take(&mut self, serial: u32) -> Held {
        let place = self.sessions.iter().position(|held| held.serial == serial);
        self.sessions
            .remove(place.unwrap_or_else(|| panic!("{serial} was not stored in {:?}", self.key)))
    }
}

/// All caches, and their shared state.
#[derive(Debug, Default)]
pub(super) struct Model {
    pub(super) caches: Vec<ModelCache>,
    /// The last tombstone of an id in a cache: the reason and the time.
    pub(super) departures: BTreeMap<(u32, u8), (RemovalReason, u64)>,
    /// The number of removals, by account and reason.
    pub(super) removals: BTreeMap<(usize, usize), u64>,
    /// The latest time that a call passed to a cache.
    pub(super) told: u64,
}

impl Model {
    pub(super) fn held(&self) -> (usize, usize) {
        (
            self.caches.iter().map(|cache| cache.sessions.len()).sum(),
            self.caches.iter().map(ModelCache::bytes).sum(),
        )
    }

    pub(super) fn exceeds(&self, total: &Limits) -> bool {
        let (entries, bytes) = self.held();
        entries > total.entries_max || bytes > total.bytes_max
    }

    /// Returns the index of the cache that holds a session.
    pub(super) fn holder(&self, serial: u32) -> Option<usize> {
        self.caches
            .iter()
            .position(|cache| cache.sessions.iter().any(|held| held.serial == serial))
    }

    /// Returns how far a cache is above its share, in entries if the total of entries is exceeded,
    /// else in bytes.
    fn above(&self, cache: &ModelCache, total: &Limits) -> usize {
        if self.held().0 > total.entries_max {
            cache.sessions.len().saturating_sub(cache.share.entries_max)
        } else {
            cache.bytes().saturating_sub(cache.share.bytes_max)
        }
    }

    /// Returns whether this cache may have to evict after a put of `newest` exceeded the total.
    pub(super) fn gives_way(&self, cache: usize, total: &Limits, newest: u32) -> bool {
        let above = |cache: &ModelCache| {
            let others = cache.sessions.iter().any(|held| held.serial != newest);
            if others { self.above(cache, total) } else { 0 }
        };
        let most = self.caches.iter().map(above).max().unwrap_or(0);
        most > 0 && above(&self.caches[cache]) == most
    }

    /// Removes a session and records the removal.
    pub(super) fn leave(&mut self, cache: usize, serial: u32, reason: RemovalReason) -> Held {
        let cache = &mut self.caches[cache];
        let held = cache.take(serial);
        self.departures
            .insert((cache.number, held.id), (reason, self.told));
        *self
            .removals
            .entry((held.account, reason as usize))
            .or_default() += 1;
        held
    }

    /// Returns the miss of a lookup of an id that is not stored.
    pub(super) fn miss(&self, cache: usize, id: u8) -> Miss {
        match self.departures.get(&(self.caches[cache].number, id)) {
            None => Miss::Unknown,
            Some((RemovalReason::Expired, _)) => Miss::Expired,
            Some((RemovalReason::Revoked, _)) => Miss::Revoked,
            Some((RemovalReason::ScopeChanged, _)) => Miss::Scope,
            Some(_) => Miss::Removed,
        }
    }

    /// Divides the total among the caches. Each gets its limit, or if the limits exceed the total,
    /// a share in proportion to its limit.
    pub(super) fn share(&mut self, total: &Limits) {
        let part = |limit: usize, total: usize, all: usize| {
            if all <= total {
                limit
            } else {
                limit * total / all
            }
        };
        let entries = self
            .caches
            .iter()
            .map(|cache| cache.limits.entries_max)
            .sum();
        let bytes = self.caches.iter().map(|cache| cache.limits.bytes_max).sum();
        for cache in &mut self.caches {
            cache.share = Limits {
                entries_max: part(cache.limits.entries_max, total.entries_max, entries),
                bytes_max: part(cache.limits.bytes_max, total.bytes_max, bytes),
            };
        }
    }
}
