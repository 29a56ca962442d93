//! The contenders: the caches that are measured.

use std::{hint::black_box, sync::Arc, time::Duration};

use dashmap::DashMap;
use tls_sessiond_core::{
    cache::{Cache, Offering, Plan, shared::SharedState},
    clock::{Now, Timestamp},
    session::{Format, NewSession, ResumeCriteria, Secret, SessionId, stats::Account},
    store::memory::{Entry, EntryState, Limits, Memory, Usage},
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};

/// A session id as TLS libraries make it.
pub(crate) type Id = [u8; 32];
/// About the size of an OpenSSL session.
pub(crate) const DATA: usize = 200;
pub(crate) type Data = [u8; DATA];

const NOW: Now = Now::from_millis(1_000_000_000);
const HOUR: Duration = Duration::from_secs(3600);

/// Whether a session is single-use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Uses {
    Once,
    Many,
}

/// A cache. The value that it returns goes through [`black_box`] and is dropped, as a user would
/// drop it in the end.
pub(crate) trait Contender: Sync {
    /// The key of a session, made before the clock starts.
    type Key;
    /// State that one thread needs for its calls.
    type Hand;

    fn key(id: &Id) -> Self::Key;
    fn hand(&self) -> Self::Hand;
    /// Looks a session up. Returns whether it is found.
    fn get(&self, hand: &mut Self::Hand, key: &Self::Key) -> bool;
    /// Puts a session. The data is copied into the cache.
    fn put(&self, hand: &mut Self::Hand, key: &Self::Key, data: &Data, uses: Uses);
    /// Takes a single-use session. Returns whether it was found.
    fn take(&self, hand: &mut Self::Hand, key: &Self::Key) -> bool;
    /// Does the work that the cache has deferred.
    fn settle(&self) {}
    /// Removes these sessions from a cache that does not evict. Called while the clock is stopped.
    fn trim(&self, _: &[Self::Key]) {}
}

/// The session cache with all its checks and records: terms, time, revocations, tombstones,
/// watchers and the total of all caches.
pub(crate) struct Ours {
    cache: Cache,
    server_name: ServerName<'static>,
    account: Arc<Account>,
}

impl Ours {
    pub(crate) fn new(size: usize) -> Self {
        let limits = Limits {
            entries_max: size,
            bytes_max: usize::MAX,
        };
        let plan = Plan {
            role: Role::Server,
            offering: Offering::Explicit,
            limits,
            session_bytes_max: 16 * 1024,
        };
        Self {
            cache: Cache::new(&plan, &Arc::new(SharedState::new(limits))),
            server_name: ServerName::new("www.example.com").into_owned(),
            account: Arc::new(Account::new("default")),
        }
    }
}

impl Contender for Ours {
    type Key = SessionId;
    type Hand = ();

    fn key(id: &Id) -> SessionId {
        SessionId::new(id).unwrap()
    }

    fn hand(&self) {}

    fn get(&self, (): &mut (), key: &SessionId) -> bool {
        let terms = ResumeCriteria {
            format: &Format::Rustls,
            binding: b"",
            versions: &[Version::Tls12, Version::Tls13],
            server_name: &self.server_name,
            cipher_suite: None,
        };
        black_box(self.cache.find(key, &terms, NOW)).is_ok()
    }

    fn put(&self, (): &mut (), key: &SessionId, data: &Data, uses: Uses) {
        let (version, cipher_suite) = match uses {
            Uses::Once => (Version::Tls13, "TLS13_AES_128_GCM_SHA256"),
            Uses::Many => (Version::Tls12, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
        };
        let new = NewSession {
            id: Some(key.clone()),
            version,
            cipher_suite: cipher_suite.into(),
            server_name: self.server_name.clone(),
            format: Format::Rustls,
            binding: [].into(),
            single_use: uses == Uses::Once,
            account: Arc::clone(&self.account),
            peer: None,
            authenticated: NOW.at,
            timeout: HOUR,
            secret: Secret::copied(data),
        };
        black_box(self.cache.put(new, NOW).unwrap());
    }

    // A lookup consumes a single-use session.
    fn take(&self, hand: &mut (), key: &SessionId) -> bool {
        self.get(hand, key)
    }
}

/// The store below the session cache, without any policy.
pub(crate) struct Bare(Memory<Value>);

struct Value {
    id: Id,
    data: Box<Data>,
    mark: EntryState,
}

impl Entry for Value {
    fn key(&self) -> &[u8] {
        &self.id
    }

    fn weight(&self) -> usize {
        self.data.len()
    }

    fn expires(&self) -> Timestamp {
        NOW.at
    }

    fn mark(&self) -> &EntryState {
        &self.mark
    }
}

impl Bare {
    pub(crate) fn new(size: usize) -> Self {
        let limits = Limits {
            entries_max: size,
            bytes_max: usize::MAX,
        };
        Self(Memory::new(limits, Arc::new(Usage::default())))
    }
}

impl Contender for Bare {
    type Key = Id;
    type Hand = ();

    fn key(id: &Id) -> Id {
        *id
    }

    fn hand(&self) {}

    fn get(&self, (): &mut (), key: &Id) -> bool {
        black_box(self.0.get(key)).is_some()
    }

    fn put(&self, (): &mut (), key: &Id, data: &Data, _: Uses) {
        let value = Value {
            id: *key,
            data: Box::new(*data),
            mark: EntryState::default(),
        };
        self.0
            .put(Arc::new(value), |evicted| drop(black_box(evicted)))
            .unwrap();
    }

    fn take(&self, (): &mut (), key: &Id) -> bool {
        black_box(self.0.take(key)).is_some()
    }
}

/// A concurrent map. It does not evict, so the sessions of each turn of puts are removed after the
/// turn.
pub(crate) struct Raw(DashMap<Id, Arc<Data>>);

impl Raw {
    pub(crate) fn new(_: usize) -> Self {
        Self(DashMap::new())
    }
}

impl Contender for Raw {
    type Key = Id;
    type Hand = ();

    fn key(id: &Id) -> Id {
        *id
    }

    fn hand(&self) {}

    fn get(&self, (): &mut (), key: &Id) -> bool {
        black_box(self.0.get(key).map(|held| Arc::clone(&held))).is_some()
    }

    fn put(&self, (): &mut (), key: &Id, data: &Data, _: Uses) {
        drop(black_box(self.0.insert(*key, Arc::new(*data))));
    }

    fn take(&self, (): &mut (), key: &Id) -> bool {
        black_box(self.0.remove(key)).is_some()
    }

    fn trim(&self, keys: &[Id]) {
        keys.iter().for_each(|key| _ = self.0.remove(key));
    }
}

/// A TinyLFU cache, which defers most of its work.
pub(crate) struct Moka(moka::sync::Cache<Id, Arc<Data>>);

impl Moka {
    pub(crate) fn new(size: usize) -> Self {
        Self(moka::sync::Cache::new(size as u64))
    }
}

impl Contender for Moka {
    type Key = Id;
    type Hand = ();

    fn key(id: &Id) -> Id {
        *id
    }

    fn hand(&self) {}

    fn get(&self, (): &mut (), key: &Id) -> bool {
        black_box(self.0.get(key)).is_some()
    }

    fn put(&self, (): &mut (), key: &Id, data: &Data, _: Uses) {
        self.0.insert(*key, Arc::new(*data));
    }

    fn take(&self, (): &mut (), key: &Id) -> bool {
        black_box(self.0.remove(key)).is_some()
    }

    fn settle(&self) {
        self.0.run_pending_tasks();
    }
}

/// An S3-FIFO cache, like ours.
pub(crate) struct Quick(quick_cache::sync::Cache<Id, Arc<Data>>);

impl Quick {
    pub(crate) fn new(size: usize) -> Self {
        Self(quick_cache::sync::Cache::new(size))
    }
}

impl Contender for Quick {
    type Key = Id;
    type Hand = ();

    fn key(id: &Id) -> Id {
        *id
    }

    fn hand(&self) {}

    fn get(&self, (): &mut (), key: &Id) -> bool {
        black_box(self.0.get(key)).is_some()
    }

    fn put(&self, (): &mut (), key: &Id, data: &Data, _: Uses) {
        self.0.insert(*key, Arc::new(*data));
    }

    fn take(&self, (): &mut (), key: &Id) -> bool {
        black_box(self.0.remove(key)).is_some()
    }
}
