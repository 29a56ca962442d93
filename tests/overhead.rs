//! The memory of a session besides its data. A program of its own, because the counting allocator
//! serves the whole process.

#![cfg(test)]
#![allow(unsafe_code, reason = "a counting allocator")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tls_sessiond_core::{
    cache::{
        Cache, Offering, Plan,
        shared::SharedState,
        tombstones::{KINDS_BYTES_MAX, TOMBSTONES_MAX},
    },
    clock::Now,
    session::{
        Format, NewSession, OVERHEAD, PeerIdentity, ResumeCriteria, Secret, SessionId,
        events::{EVENTS_BYTES_MAX, EVENTS_MAX},
        stats::Account,
    },
    store::memory::Limits,
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};

struct Counting;

/// Bytes that are allocated and not yet freed.
static LIVE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: every call goes to the system's allocator. The methods not defined here use these two.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(place, layout) }
    }
}

/// Runs one test at a time, because they share the heap.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

const ID: usize = 32;
const DATA: usize = 200;
const ROOM: usize = 200_000;
const NOW: Now = Now::from_millis(1_000_000_000);

fn cache(ledger: &Arc<SharedState>) -> Cache {
    let plan = Plan {
        role: Role::Server,
        offering: Offering::Explicit,
        limits: Limits {
            entries_max: ROOM,
            bytes_max: usize::MAX,
        },
        session_bytes_max: 1024,
    };
    Cache::new(&plan, ledger)
}

/// Stores sessions with equal attributes. Calls `look` with the number of sessions after each.
fn fill(cache: &Cache, numbers: std::ops::Range<usize>, mut look: impl FnMut(usize)) {
    let account = Arc::new(Account::new("default"));
    let server_name = ServerName::new("a.test").into_owned();
    for number in numbers {
        let mut id = [0; ID];
        id[..8].copy_from_slice(&number.to_be_bytes());
        let new = NewSession {
            id: SessionId::new(&id),
            version: Version::Tls12,
            cipher_suite: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".into(),
            server_name: server_name.clone(),
            format: Format::Rustls,
            binding: [].into(),
            single_use: false,
            account: Arc::clone(&account),
            peer: None,
            authenticated: NOW.at,
            // Sessions expire at many different times.
            timeout: Duration::from_secs(3600 + number as u64 % 600),
            secret: Secret::copied(&[1; DATA]),
        };
        cache.put(new, NOW).unwrap();
        look(cache.len());
    }
}

/// The names of one session. They differ for each number.
type Names = fn(number: usize) -> (PeerIdentity, Box<[u8]>, Format, ServerName<'static>, String);

/// Names that use much more heap than their bytes, and names of many bytes.
const SHAPES: [(&str, Names); 6] = [
    ("a subject", |number| {
        plain(number, |peer| peer.subject = format!("CN={number}"))
    }),
    ("a long subject", |number| {
        plain(number, |peer| peer.subject = format!("{number:08000}"))
    }),
    ("64 empty names", |number| {
        plain(number, |peer| peer.uris = vec![String::new(); 64])
    }),
    ("64 names of a byte", |number| {
        plain(number, |peer| peer.dns_names = vec!["a".to_owned(); 64])
    }),
    ("32 names of 200 bytes", |number| {
        plain(number, |peer| peer.uris = vec!["u".repeat(200); 32])
    }),
    ("the rest", |number| {
        let (peer, ..) = plain(number, |_| ());
        let name = format!("{number:0255}");
        (
            peer,
            [7; 1024].into(),
            Format::Worker("openssl-3.5.0-with-a-long-name-32".into()),
            ServerName::new(&name).into_owned(),
            "S".repeat(64),
        )
    }),
];

fn plain(
    number: usize,
    change: impl FnOnce(&mut PeerIdentity),
) -> (PeerIdentity, Box<[u8]>, Format, ServerName<'static>, String) {
    let mut peer = PeerIdentity {
        not_after: tls_sessiond_core::clock::WallTime::MAX,
        ..PeerIdentity::default()
    };
    peer.certificate_sha256[..8].copy_from_slice(&number.to_be_bytes());
    change(&mut peer);
    (
        peer,
        [].into(),
        Format::Rustls,
        ServerName::new("a.test").into_owned(),
        String::new(),
    )
}

fn id(number: usize) -> SessionId {
    let mut id = [0; ID];
    id[..8].copy_from_slice(&number.to_be_bytes());
    // The last bytes select the shard of the attributes.
    id[ID - 8..].copy_from_slice(&number.to_be_bytes());
    SessionId::new(&id).unwrap()
}

fn put_named(cache: &Cache, account: &Arc<Account>, number: usize, names: Names) {
    let (peer, binding, format, server_name, cipher_suite) = names(number);
    let new = NewSession {
        id: Some(id(number)),
        version: Version::Tls12,
        cipher_suite: cipher_suite.into(),
        server_name,
        format,
        binding,
        single_use: true,
        account: Arc::clone(account),
        peer: Some(Arc::new(peer)),
        authenticated: NOW.at,
        timeout: Duration::from_secs(3600),
        secret: Secret::copied(&[1; DATA]),
    };
    cache.put(new, NOW).unwrap();
}

fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

fn small_cache(ledger: &Arc<SharedState>) -> Cache {
    let plan = Plan {
        role: Role::Server,
        offering: Offering::Explicit,
        limits: Limits {
            entries_max: ROOM,
            bytes_max: 64 << 20,
        },
        session_bytes_max: 16 << 10,
    };
    Cache::new(&plan, ledger)
}

#[test]
fn names_are_counted_with_their_heap_and_return_it() {
    let _alone = alone();
    let account = Arc::new(Account::new("default"));
    for (shape, names) in SHAPES {
        let ledger = Arc::new(SharedState::new(Limits {
            entries_max: ROOM,
            bytes_max: usize::MAX,
        }));
        let cache = small_cache(&ledger);
        let before = live();
        // Until the cache is full and beyond. The heap stays within the limit, whatever the names
        // are.
        let mut most = 0;
        for number in 0..60_000 {
            put_named(&cache, &account, number, names);
            most = most.max(live().saturating_sub(before));
        }
        let (counted, journal) = (cache.bytes(), KINDS_BYTES_MAX / 2 + TOMBSTONES_MAX * 128);
        println!(
            "{shape}: {most} bytes at most, {counted} counted, {} sessions",
            cache.len()
        );
        assert!(most < (64 << 20) + journal, "{shape}: {most} bytes of heap");
        assert!(counted <= 64 << 20);
        cache.close(|_| ());
        (0..2_000).for_each(|_| ledger.reap());
        let left = live().saturating_sub(before);
        assert!(
            left < KINDS_BYTES_MAX + 2 * TOMBSTONES_MAX * 128,
            "{shape}: {left} bytes are left"
        );
    }
}

#[test]
fn sessions_of_distinct_names_take_no_more_heap_than_is_counted() {
    let _alone = alone();
    let account = Arc::new(Account::new("default"));
    for (shape, names) in SHAPES {
        let ledger = Arc::new(SharedState::new(Limits {
            entries_max: ROOM,
            bytes_max: usize::MAX,
        }));
        let cache = small_cache(&ledger);
        let before = live();
        (0..4_000).for_each(|number| put_named(&cache, &account, number, names));
        let (took, counted) = (live() - before, cache.bytes());
        println!("{shape}: {took} bytes taken, {counted} counted");
        assert!(
            took <= counted,
            "{shape}: {took} bytes of heap, but {counted} are counted"
        );
        assert!(
            counted < 2 * took,
            "{shape}: {took} bytes of heap, but {counted} are counted"
        );
    }
}

#[test]
fn tombstones_and_watchers_keep_their_byte_limits() {
    let _alone = alone();
    let account = Arc::new(Account::new("default"));
    let (_, long) = SHAPES[1];
    let ledger = Arc::new(SharedState::new(Limits {
        entries_max: ROOM,
        bytes_max: usize::MAX,
    }));
    let cache = small_cache(&ledger);
    let watches: Vec<_> = (0..8)
        .map(|_| ledger.watchers.watch(|_| true).unwrap())
        .collect();
    let terms = ResumeCriteria {
        format: &Format::Rustls,
        binding: &[],
        versions: &[Version::Tls12],
        server_name: &ServerName::new("a.test"),
        cipher_suite: None,
    };
    let before = live();
    let mut most = 0;
    for number in 0..70_000 {
        put_named(&cache, &account, number, long);
        // Both kinds of tombstones.
        match number % 2 {
            0 => drop(cache.find(&id(number), &terms, NOW).unwrap()),
            _ => assert!(cache.remove(&id(number), NOW)),
        }
        most = most.max(live().saturating_sub(before));
    }
    let events = EVENTS_BYTES_MAX + EVENTS_MAX * 256;
    let bound = KINDS_BYTES_MAX + 2 * TOMBSTONES_MAX * 128 + watches.len() * events;
    println!("{most} bytes at most, of {bound}");
    assert!(
        most < bound,
        "{most} bytes of heap, but {bound} are allowed"
    );
    assert!(
        most > KINDS_BYTES_MAX / 2,
        "the tombstones do not use their limit"
    );
}

#[test]
fn session_takes_at_most_its_overhead_besides_its_data() {
    let _alone = alone();
    let ledger = Arc::new(SharedState::new(Limits {
        entries_max: 10 * ROOM,
        bytes_max: usize::MAX,
    }));
    {
        // The tombstones are full before the measurement, so they do not grow with the sessions.
        let before = cache(&ledger);
        fill(&before, 0..ROOM * 5 / 4, |_| {});
    }
    let before = LIVE.load(Ordering::Relaxed);
    let cache = cache(&ledger);
    let mut most = 0;
    let mut look = |held: usize| {
        // Few sessions would bear the fixed memory of the cache, which exists from the beginning.
        if held >= ROOM / 2 {
            most = most.max((LIVE.load(Ordering::Relaxed) - before).div_ceil(held));
        }
    };
    fill(&cache, 0..ROOM * 5 / 4, &mut look);
    assert_eq!(cache.len(), ROOM);
    println!("{} bytes besides {DATA} of data, at most", most - DATA);
    assert!(
        most <= OVERHEAD + DATA,
        "{} of {OVERHEAD} bytes",
        most - DATA
    );
}
