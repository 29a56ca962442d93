//! A session's secret is overwritten when the session ends. The process searches its own memory for
//! it.
//!
//! A binary of its own, so that its memory is small. The search covers every mapping that can be
//! read and written. The test never holds the whole secret: it keeps two random halves and combines
//! them byte by byte. The search must find the secret while the session lives, which shows that it
//! works.
//!
//! The buffers of the gRPC and TLS libraries are not searched (SECURITY.md).

// Always true here. Clippy allows `unwrap` in tests only where `cfg(test)` is written.
#![cfg(test)]

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use aws_lc_rs::rand;
use tls_sessiond::config::Config;
use tls_sessiond_core::{
    cache::{Cache, NotStored, Offering, Plan, revocation::Selector, shared::SharedState},
    clock::{Clock, ManualClock, Now},
    connection::{
        ConnectionPlan, EngineKind,
        table::Most,
        worker_engine::{Put, PutOutcome},
    },
    context::Registry,
    session::{
        Format, NewSession, RemovalReason, ResumeCriteria, Secret, Session, SessionId,
        events::Watch, stats::Account,
    },
    state::CoreState,
    store::memory::Limits,
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};

const LENGTH: usize = 64;
/// The length of the parts that are searched for one by one, and their offsets.
const PART: usize = 16;
const PARTS: [usize; 3] = [16, 32, 48];

/// A secret that exists in this process only where it was put.
struct Marker {
    halves: [[u8; LENGTH]; 2],
}

impl Marker {
    fn new() -> Self {
        let mut halves = [[0; LENGTH]; 2];
        halves.iter_mut().for_each(|half| rand::fill(half).unwrap());
        Self { halves }
    }

    fn byte(&self, place: usize) -> u8 {
        self.halves[0][place] ^ self.halves[1][place]
    }

    /// Returns the only copy, with spare capacity or without.
    fn secret(&self, room: usize) -> Secret {
        let mut bytes = Vec::with_capacity(LENGTH + room);
        (0..LENGTH).for_each(|place| bytes.push(self.byte(place)));
        Secret::bytes(bytes)
    }

    /// Returns whether this is a part of the secret. The first part is left out, because an
    /// allocator overwrites it when memory is freed.
    fn is_part(&self, bytes: &[u8]) -> bool {
        PARTS.into_iter().any(|part| {
            bytes.len() >= PART && (0..PART).all(|place| bytes[place] == self.byte(part + place))
        })
    }

    /// Returns whether a part of the secret is anywhere in the memory of this process.
    fn is_in_memory(&self) -> bool {
        // One search at a time, because the buffer of another search is a copy.
        static ONE: Mutex<()> = Mutex::new(());
        let _alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        const STEP: usize = 1 << 20;
        let memory = File::open("/proc/self/mem").unwrap();
        // Steps overlap, so that a part at the boundary of two steps is found.
        let mut buffer = vec![0; STEP + LENGTH];
        let mut found = false;
        for (from, to) in writable() {
            for start in (from..to).step_by(STEP) {
                let length = buffer.len().min(usize::try_from(to - start).unwrap());
                // A mapping may have disappeared since the list was read.
                let read = memory.read_at(&mut buffer[..length], start).unwrap_or(0);
                let [one, two, three] = PARTS.map(|part| self.byte(part));
                let mut places = memchr::memchr3_iter(one, two, three, &buffer[..read]);
                found |= places.any(|place| self.is_part(&buffer[place..read]));
                // The buffer is in memory as well.
                buffer.fill(0);
            }
        }
        found
    }
}

/// Returns the mappings that can be read and written.
fn writable() -> Vec<(u64, u64)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines()
        .filter_map(|line| {
            let (range, rest) = line.split_once(' ')?;
            let (from, to) = range.split_once('-')?;
            let read = |address| u64::from_str_radix(address, 16).unwrap();
            rest.starts_with("rw").then(|| (read(from), read(to)))
        })
        .collect()
}

const NOW: Now = Now::from_millis(1_700_000_000_000);
const HOUR: Duration = Duration::from_secs(3_600);
const ROOM: Limits = Limits {
    entries_max: 4,
    bytes_max: 100_000,
};

/// The criteria of every lookup.
fn terms() -> ResumeCriteria<'static> {
    static NAME: LazyLock<ServerName<'static>> = LazyLock::new(|| "a.test".into());
    ResumeCriteria {
        format: &Format::Rustls,
        binding: &[],
        versions: &[Version::Tls12, Version::Tls13],
        server_name: &NAME,
        cipher_suite: None,
    }
}

fn id(id: u8) -> SessionId {
    SessionId::new(&[id; 32]).unwrap()
}

fn new(number: u8, secret: Secret) -> NewSession {
    NewSession {
        id: Some(id(number)),
        version: Version::Tls12,
        cipher_suite: "".into(),
        server_name: "a.test".into(),
        format: Format::Rustls,
        binding: [].into(),
        single_use: false,
        account: Arc::new(Account::new("default")),
        peer: None,
        authenticated: NOW.at,
        timeout: HOUR,
        secret,
    }
}

/// Two caches that may hold four sessions together, with a watcher.
struct Caches {
    one: Arc<Cache>,
    other: Arc<Cache>,
    _watch: Watch,
}

impl Caches {
    fn new(role: Role) -> Self {
        let ledger = Arc::new(SharedState::new(ROOM));
        let plan = Plan {
            role,
            offering: Offering::Shared,
            limits: ROOM,
            session_bytes_max: 1_000,
        };
        let [one, other] = [(); 2].map(|()| Arc::new(Cache::new(&plan, &ledger)));
        ledger.budget.share([&one, &other].into_iter());
        Self {
            one,
            other,
            _watch: ledger.watchers.watch(|_| true).unwrap(),
        }
    }
}

fn fill(cache: &Cache, from: u8) {
    for number in from..from + 4 {
        cache
            .put(new(number, Secret::copied(&[number])), NOW)
            .unwrap();
    }
}

fn purge(cache: &Cache) {
    (0..cache.shards()).for_each(|part| {
        cache.purge(part);
    });
}

/// Ends session 1 of the first cache with `end`, and asserts that its secret is nowhere in memory.
/// The return value of `end` lives on meanwhile. In a client's cache the session is in the pool as
/// well.
fn assert_overwritten(end: fn(Caches) -> Option<Caches>) {
    for role in [Role::Server, Role::Client] {
        for room in [0, LENGTH] {
            let (marker, caches) = (Marker::new(), Caches::new(role));
            assert!(!marker.is_in_memory());
            drop(caches.one.put(new(1, marker.secret(room)), NOW).unwrap());
            assert!(marker.is_in_memory(), "the search does not find the secret");
            let caches = end(caches);
            assert!(!marker.is_in_memory(), "a copy is left: {role:?}, {room}");
            drop(caches);
        }
    }
}

// Invariant 7.
#[test]
fn removed_session_leaves_no_secret() {
    assert_overwritten(|caches| {
        assert!(caches.one.remove(&id(1), NOW));
        Some(caches)
    });
}

#[test]
fn consumed_ticket_leaves_no_secret_once_dropped() {
    for role in [Role::Server, Role::Client] {
        let (marker, caches) = (Marker::new(), Caches::new(role));
        let ticket = NewSession {
            single_use: true,
            ..new(1, marker.secret(0))
        };
        drop(caches.one.put(ticket, NOW).unwrap());
        let taken: Arc<Session> = match role {
            Role::Server => caches.one.find(&id(1), &terms(), NOW).unwrap(),
            Role::Client => caches.one.newest(&terms(), NOW).unwrap(),
        };
        assert!(
            caches.one.is_empty() && marker.is_in_memory(),
            "the holder of the ticket has the secret"
        );
        drop(taken);
        assert!(!marker.is_in_memory(), "a copy is left: {role:?}");
    }
}

#[test]
fn session_evicted_by_its_own_cache_leaves_no_secret() {
    assert_overwritten(|caches| {
        fill(&caches.one, 2);
        // Any session may be evicted, but with so many puts all of the first ones are.
        fill(&caches.one, 6);
        assert!(caches.one.peek(&id(1), NOW).is_none());
        Some(caches)
    });
}

#[test]
fn session_evicted_for_another_cache_leaves_no_secret() {
    assert_overwritten(|caches| {
        for number in 2..4 {
            caches
                .one
                .put(new(number, Secret::copied(&[number])), NOW)
                .unwrap();
        }
        fill(&caches.other, 10);
        assert!(caches.one.peek(&id(1), NOW).is_none());
        Some(caches)
    });
}

#[test]
fn expired_session_leaves_no_secret_when_it_is_reaped() {
    assert_overwritten(|caches| {
        caches.one.reap(NOW.at.after(HOUR + Duration::from_secs(5)));
        assert!(caches.one.is_empty());
        Some(caches)
    });
}

#[test]
fn expired_session_leaves_no_secret_after_a_lookup() {
    assert_overwritten(|caches| {
        assert!(caches.one.find(&id(1), &terms(), NOW.after(HOUR)).is_err());
        Some(caches)
    });
}

#[test]
fn expired_session_leaves_no_secret_when_its_id_is_reused() {
    assert_overwritten(|caches| {
        let later = NOW.after(HOUR);
        let next = NewSession {
            authenticated: later.at,
            ..new(1, Secret::copied(&[1]))
        };
        drop(caches.one.put(next, later).unwrap());
        Some(caches)
    });
}

#[test]
fn revoked_session_leaves_no_secret() {
    assert_overwritten(|caches| {
        caches.one.revoke(
            Selector::ServerName("a.test".into()),
            NOW.at.after(HOUR / 2),
        );
        purge(&caches.one);
        Some(caches)
    });
}

#[test]
fn withdrawn_session_leaves_no_secret() {
    assert_overwritten(|caches| {
        let session = caches.one.peek(&id(1), NOW).unwrap();
        assert!(caches.one.withdraw(&session, RemovalReason::FatalAlert));
        Some(caches)
    });
}

#[test]
fn shrunk_cache_leaves_no_secret() {
    assert_overwritten(|caches| {
        caches.one.resize(
            Limits {
                entries_max: 0,
                ..ROOM
            },
            1_000,
        );
        Some(caches)
    });
}

#[test]
fn closed_cache_leaves_no_secret() {
    assert_overwritten(|caches| {
        caches.one.close(|_| ());
        Some(caches)
    });
}

#[test]
fn dropped_cache_leaves_no_secret() {
    assert_overwritten(|caches| {
        drop(caches);
        None
    });
}

#[test]
fn refused_session_leaves_no_secret() {
    let caches = Caches::new(Role::Server);
    let refused = |marker: &Marker, why: NotStored, change: fn(NewSession) -> NewSession| {
        let new = change(new(1, marker.secret(LENGTH)));
        assert!(marker.is_in_memory(), "the search does not find the secret");
        assert_eq!(caches.one.put(new, NOW).unwrap_err(), why);
        assert!(!marker.is_in_memory(), "a copy is left: {why:?}");
    };
    refused(&Marker::new(), NotStored::Expired, |new| NewSession {
        timeout: Duration::ZERO,
        ..new
    });
    refused(&Marker::new(), NotStored::TooLarge, |new| NewSession {
        binding: vec![0; 1_000].into(),
        ..new
    });
    drop(caches.one.put(new(1, Secret::copied(&[1])), NOW).unwrap());
    refused(&Marker::new(), NotStored::IdTaken, |new| new);
    caches.one.close(|_| ());
    refused(&Marker::new(), NotStored::Revoked, |new| new);
}

/// Returns a configuration with one context, whose scope depends on this value.
fn config(alpn: &str) -> Config {
    let mut config = Config::defaults();
    config.contexts[0].alpn = vec![alpn.into()];
    config
}

/// Stores a session through a connection that stays open.
fn table_with(marker: &Marker) -> (CoreState, ManualClock) {
    let clock = ManualClock::starting(Clock::System.now().wall());
    let registry = Arc::new(Registry::build(&config("one").settings()).unwrap());
    let core = CoreState::new(registry, Clock::Manual(clock.clone()), Most::all(100));
    let plan = ConnectionPlan {
        context: Arc::clone(core.registry().get("default").unwrap()),
        role: Role::Server,
        engine: EngineKind::Worker,
        server_name: String::new(),
        owner: "test".into(),
        idle_timeout: Some(HOUR),
        peer_address: String::new(),
    };
    let connection = core
        .connections()
        .create(plan, None, |connection, _| connection.id())
        .unwrap();
    let put = Put {
        id: Some(id(1)),
        secret: marker.secret(LENGTH),
        format: Format::Worker("test".into()),
        binding: [].into(),
        single_use: false,
        version: Version::Tls12,
        cipher_suite: String::new(),
        server_name: ServerName::NONE,
        peer: None,
        timeout: None,
        authenticated: None,
    };
    let stored = core
        .connections()
        .with_exclusive(connection, |connection, now| {
            connection.put_session(put, now)
        })
        .unwrap();
    assert!(matches!(stored, PutOutcome::Stored(..)), "{stored:?}");
    assert!(marker.is_in_memory(), "the search does not find the secret");
    (core, clock)
}

#[test]
fn session_of_an_unclosed_connection_leaves_no_secret() {
    let marker = Marker::new();
    let (core, clock) = table_with(&marker);
    clock.advance(HOUR);
    assert_eq!(core.connections().sweep(), 1);
    assert!(!marker.is_in_memory(), "a copy is left");
}

#[test]
fn session_of_a_replaced_scope_leaves_no_secret() {
    let marker = Marker::new();
    let (core, _) = table_with(&marker);
    let next = core.registry().rebuild(&config("two").settings()).unwrap();
    core.swap(Arc::new(next));
    core.connections().free_all();
    assert!(!marker.is_in_memory(), "a copy is left");
}
