//! A million sessions: their memory, its return, and the protection of other contexts from a flood
//! of them.
//!
//! A binary of its own, because it counts the whole heap of the process.

// Always true here. Clippy allows `unwrap` in tests only where `cfg(test)` is written.
#![cfg(test)]

use std::{
    alloc::System,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cap::Cap;
use tls_sessiond::config::Config;
use tls_sessiond_core::{
    cache::{Cache, Offering, Plan, shared::SharedState, tombstones::TOMBSTONES_MAX},
    clock::Now,
    context::Registry,
    session::{Format, NewSession, ResumeCriteria, Secret, SessionId, stats::Account},
    store::memory::Limits,
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

const MILLION: u32 = 1_000_000;
const NOW: Now = Now::from_millis(1_700_000_000_000);
const SECRET: usize = 150;

/// The criteria of every lookup.
fn terms() -> ResumeCriteria<'static> {
    static NAME: LazyLock<ServerName<'static>> = LazyLock::new(|| "a.test".into());
    ResumeCriteria {
        format: &Format::Rustls,
        binding: &[],
        versions: &[Version::Tls12],
        server_name: &NAME,
        cipher_suite: None,
    }
}

/// Runs one test at a time, because they share the heap.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns an id as long as those of OpenSSL.
fn id(number: u32) -> SessionId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    SessionId::new(&bytes).unwrap()
}

fn put(
    cache: &Cache,
    number: u32,
    account: &Arc<Account>,
    name: &ServerName<'static>,
    timeout: Duration,
) {
    let new = NewSession {
        id: Some(id(number)),
        version: Version::Tls12,
        cipher_suite: "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256".into(),
        server_name: name.clone(),
        format: Format::Rustls,
        binding: [].into(),
        single_use: false,
        account: Arc::clone(account),
        peer: None,
        authenticated: NOW.at,
        timeout,
        secret: Secret::bytes(vec![7; SECRET]),
    };
    cache.put(new, NOW).unwrap();
}

// Invariant 7.
#[test]
fn million_sessions_use_their_counted_memory_and_return_it() {
    const HOURS: u32 = 10;
    const HOUR: Duration = Duration::from_secs(3_600);
    /// The most that the tombstones grow to and keep: twice the size of each, because lists double
    /// their capacity.
    const JOURNAL: usize = 100 * TOMBSTONES_MAX;
    let _alone = alone();
    let limits = Limits {
        entries_max: MILLION as usize,
        bytes_max: 1 << 30,
    };
    let ledger = Arc::new(SharedState::new(limits));
    let plan = Plan {
        role: Role::Server,
        offering: Offering::Explicit,
        limits,
        session_bytes_max: 1 << 14,
    };
    let cache = Cache::new(&plan, &ledger);
    let (account, name) = (
        Arc::new(Account::new("web")),
        ServerName::new("a.test").into_owned(),
    );

    let before = HEAP.allocated();
    for number in 0..MILLION {
        put(&cache, number, &account, &name, HOUR * (1 + number % HOURS));
    }
    let full = HEAP.allocated() - before;
    assert_eq!(cache.len(), MILLION as usize);
    let counted = cache.bytes();
    // All sessions share their attributes. Memory holds these a few times, but they count for each.
    let kind = cache.peek(&id(0), NOW).unwrap().kind().size();
    let own = counted - MILLION as usize * kind;
    assert!(
        full.abs_diff(own) < own / 10 && full <= counted,
        "{} bytes of heap a session, and {} are counted, of which {kind} for its kind",
        full / MILLION as usize,
        counted / MILLION as usize
    );

    for hour in 1..=HOURS {
        // Expired sessions may be removed up to four seconds late.
        cache.reap(NOW.at.after(HOUR * hour + Duration::from_secs(5)));
        let left = (MILLION / HOURS * (HOURS - hour)) as usize;
        assert_eq!(cache.len(), left);
        // The slots and tables shrink when three quarters of them are free. A session's own bytes
        // are freed at once.
        let held = HEAP.allocated().saturating_sub(before);
        let own = full / MILLION as usize * left;
        assert!(
            held < own + full / 4 + JOURNAL,
            "after {hour} hours {held} bytes are held for {left} sessions"
        );
    }
    let left = HEAP.allocated().saturating_sub(before);
    assert!(left < JOURNAL, "{left} bytes of {full} have not come back");
}

// Invariant 4.
#[test]
fn flood_in_one_context_evicts_nothing_of_another() {
    const TOTAL: usize = 20_000;
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("million.toml");
    let context = |name| format!("[[context]]\nname = \"{name}\"\ncache_entries_max = {TOTAL}\n");
    let text = format!(
        "[limits]\nsessions = {TOTAL}\n{}{}",
        context("web"),
        context("flooded")
    );
    std::fs::write(&file, text).unwrap();
    let registry = Registry::build(
        &Config::load(Some(&file), std::iter::empty(), &[])
            .unwrap()
            .settings(),
    )
    .unwrap();
    let [web, flooded] = ["web", "flooded"].map(|name| Arc::clone(registry.get(name).unwrap()));
    let share = TOTAL / registry.caches().count();
    let name = ServerName::new("a.test").into_owned();
    let timeout = Duration::from_secs(7_200);
    let grow = |from: usize, to: usize| {
        for number in from..to {
            put(
                &web.server_cache,
                u32::try_from(number).unwrap(),
                &web.stats,
                &name,
                timeout,
            );
        }
    };
    let all_resume = |sessions: usize| {
        assert_eq!(web.server_cache.len(), sessions);
        for number in 0..sessions {
            let id = id(u32::try_from(number).unwrap());
            assert!(
                web.server_cache.find(&id, &terms(), NOW).is_ok(),
                "session {number} was evicted"
            );
        }
    };

    let early = share / 5 * 4;
    grow(0, early);
    for number in 0..MILLION {
        put(
            &flooded.server_cache,
            number,
            &flooded.stats,
            &name,
            timeout,
        );
        if number % 1_000 == 0 {
            assert!(registry.ledger().budget.held().entries() <= TOTAL);
        }
    }
    assert_eq!(
        flooded.server_cache.len(),
        TOTAL - early,
        "the flooded cache has all unused room"
    );
    all_resume(early);

    // The flooded cache gives back the room it borrowed when another cache claims its share.
    grow(early, share);
    all_resume(share);
    assert_eq!(flooded.server_cache.len(), TOTAL - share);
}
