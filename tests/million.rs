//! A million sessions: what they take, that it goes back, and that a flood of them is nobody else's business.
//!
//! A binary of its own, for it counts what the whole process holds on the heap.

// Always so here; clippy allows unwrap where it is said.
#![cfg(test)]

use std::{
    alloc::System,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cap::Cap;
use tls_sessiond::config::Config;
use tls_sessiond_core::{
    cache::{Cache, Offering, Plan, shared::Ledger, tombstones::DEPARTURES_MAX},
    clock::Now,
    context::Registry,
    session::{Format, NewSession, Secret, SessionId, Terms, stats::Account},
    store::memory::Limits,
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

const MILLION: u32 = 1_000_000;
const NOW: Now = Now::from_millis(1_700_000_000_000);
const SECRET: usize = 150;

/// What every session is asked for on.
fn terms() -> Terms<'static> {
    static NAME: LazyLock<ServerName<'static>> = LazyLock::new(|| "a.test".into());
    Terms {
        format: &Format::Rustls,
        binding: &[],
        versions: &[Version::Tls12],
        server_name: &NAME,
        cipher_suite: None,
    }
}

/// The heap is one for all tests: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// As long as those that OpenSSL makes.
fn id(number: u32) -> SessionId {
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    SessionId::new(&bytes).unwrap()
}

fn put(cache: &Cache, number: u32, account: &Arc<Account>, name: &ServerName<'static>, timeout: Duration) {
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

#[test]
fn a_million_sessions_take_what_they_count_for_and_give_it_back_when_they_expire() {
    const HOURS: u32 = 10;
    const HOUR: Duration = Duration::from_secs(3_600);
    /// What the journal of departures grows to, and keeps; twice what a departure takes, for lists double.
    const JOURNAL: usize = 100 * DEPARTURES_MAX;
    let _alone = alone();
    let limits = Limits { entries_max: MILLION as usize, bytes_max: 1 << 30 };
    let ledger = Arc::new(Ledger::new(limits));
    let plan = Plan { role: Role::Server, offering: Offering::Explicit, limits, session_bytes_max: 1 << 14 };
    let cache = Cache::new(&plan, &ledger);
    let (account, name) = (Arc::new(Account::new("web")), ServerName::new("a.test").into_owned());

    let before = HEAP.allocated();
    for number in 0..MILLION {
        put(&cache, number, &account, &name, HOUR * (1 + number % HOURS));
    }
    let full = HEAP.allocated() - before;
    assert_eq!(cache.len(), MILLION as usize);
    let counted = cache.bytes();
    // All have one kind, which lies in memory a few times and counts for each of them.
    let kind = cache.peek(&id(0), NOW).unwrap().kind().size();
    let own = counted - MILLION as usize * kind;
    assert!(
        full.abs_diff(own) < own / 10 && full <= counted,
        "{} bytes of heap a session, and {} are counted, of which {kind} for its kind",
        full / MILLION as usize,
        counted / MILLION as usize
    );

    for hour in 1..=HOURS {
        // What is over leaves up to four seconds late.
        cache.reap(NOW.at.after(HOUR * hour + Duration::from_secs(5)));
        let left = (MILLION / HOURS * (HOURS - hour)) as usize;
        assert_eq!(cache.len(), left);
        // Slots and tables go back when three quarters of them are free; each session's own bytes at once.
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

#[test]
fn a_flood_of_a_million_sessions_in_one_context_takes_none_of_another() {
    const TOTAL: usize = 20_000;
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("million.toml");
    let context = |name| format!("[[context]]\nname = \"{name}\"\ncache_entries_max = {TOTAL}\n");
    let text = format!("[limits]\nsessions = {TOTAL}\n{}{}", context("web"), context("flooded"));
    std::fs::write(&file, text).unwrap();
    let registry =
        Registry::build(&Config::load(Some(&file), std::iter::empty(), &[]).unwrap().settings()).unwrap();
    let [web, flooded] = ["web", "flooded"].map(|name| Arc::clone(registry.get(name).unwrap()));
    let share = TOTAL / registry.caches().count();
    let name = ServerName::new("a.test").into_owned();
    let timeout = Duration::from_secs(7_200);
    let grow = |from: usize, to: usize| {
        for number in from..to {
            put(&web.server_cache, u32::try_from(number).unwrap(), &web.stats, &name, timeout);
        }
    };
    let all_resume = |sessions: usize| {
        assert_eq!(web.server_cache.len(), sessions);
        for number in 0..sessions {
            let id = id(u32::try_from(number).unwrap());
            assert!(web.server_cache.find(&id, &terms(), NOW).is_ok(), "session {number} is gone");
        }
    };

    let early = share / 5 * 4;
    grow(0, early);
    for number in 0..MILLION {
        put(&flooded.server_cache, number, &flooded.stats, &name, timeout);
        if number % 1_000 == 0 {
            assert!(registry.ledger().budget.held().entries() <= TOTAL);
        }
    }
    assert_eq!(flooded.server_cache.len(), TOTAL - early, "it has all that nobody else uses");
    all_resume(early);

    // What the flood has borrowed it gives back to whoever has a right to it.
    grow(early, share);
    all_resume(share);
    assert_eq!(flooded.server_cache.len(), TOTAL - share);
}
