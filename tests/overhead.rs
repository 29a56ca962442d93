//! What a session takes besides its id and its data. A process of its own, for the allocator that counts is everybody's.

#![cfg(test)]
#![allow(unsafe_code, reason = "an allocator that counts")]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tls_sessiond::{
    clock::Now,
    config::Offering,
    session::{
        Cache, Format, NewSession, OVERHEAD, Role, Secret, SessionId, Version, cache::Plan, ledger::Ledger,
        stats::Account,
    },
    store::memory::Limits,
};

struct Counting;

/// Bytes that were asked for and not given back.
static LIVE: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: all is left to the system's allocator; what is not here is made of these two.
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

const ID: usize = 32;
const DATA: usize = 200;
const ROOM: usize = 200_000;
const NOW: Now = Now::from_millis(1_000_000_000);

fn cache(ledger: &Arc<Ledger>) -> Cache {
    let plan = Plan {
        role: Role::Server,
        offering: Offering::Explicit,
        limits: Limits { entries_max: ROOM, bytes_max: usize::MAX },
        session_bytes_max: 1024,
        session_id_context: "",
    };
    Cache::new(&plan, ledger)
}

/// Puts sessions of one kind; after each `look` is told how many there are.
fn fill(cache: &Cache, numbers: std::ops::Range<usize>, mut look: impl FnMut(usize)) {
    let account = Arc::new(Account::new("default"));
    let server_name: Arc<str> = "a.test".into();
    for number in numbers {
        let mut id = [0; ID];
        id[..8].copy_from_slice(&number.to_be_bytes());
        let new = NewSession {
            id: SessionId::new(&id),
            version: Version::Tls12,
            cipher_suite: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".into(),
            server_name: Arc::clone(&server_name),
            format: Format::Rustls,
            binding: [].into(),
            single_use: false,
            account: Arc::clone(&account),
            peer: None,
            authenticated: NOW.at,
            // They end at many times.
            timeout: Duration::from_secs(3600 + number as u64 % 600),
            secret: Secret::copied(&[1; DATA]),
        };
        cache.put(new, NOW).unwrap();
        look(cache.len());
    }
}

#[test]
fn session_takes_at_most_its_overhead_besides_id_and_data() {
    let ledger = Arc::new(Ledger::new(Limits { entries_max: 10 * ROOM, bytes_max: usize::MAX }));
    {
        // The journal is full before anything is measured: it does not grow with the sessions.
        let before = cache(&ledger);
        fill(&before, 0..ROOM * 5 / 4, |_| {});
    }
    let before = LIVE.load(Ordering::Relaxed);
    let cache = cache(&ledger);
    let mut most = 0;
    let mut look = |held: usize| {
        // A few sessions pay for the parts of the cache, which are there from the beginning.
        if held >= ROOM / 2 {
            most = most.max((LIVE.load(Ordering::Relaxed) - before).div_ceil(held));
        }
    };
    fill(&cache, 0..ROOM * 5 / 4, &mut look);
    assert_eq!(cache.len(), ROOM);
    println!("{} bytes besides {ID} of id and {DATA} of data, at most", most - ID - DATA);
    assert!(most <= OVERHEAD + ID + DATA, "{} of {OVERHEAD} bytes", most - ID - DATA);
}
