//! The session cache: no removed session is handed out, a ticket is consumed once, and each removal
//! is reported once.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Poll, Waker},
    time::Duration,
};

use tls_sessiond_core::{
    cache::{Cache, NotStored, Offering, Plan, revocation::Selector, shared::SharedState},
    clock::Now,
    session::{
        Format, Miss, NewSession, RemovalReason, ResumeCriteria, Secret, Session, SessionId,
        events::{Delivery, EventKind, Watch},
        stats::Account,
    },
    store::memory::Limits,
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};

use crate::{Check, together};

pub(crate) const CHECKS: &[Check] = &[
    (
        "concurrent_evictions_keep_each_cache_at_its_share",
        concurrent_evictions_keep_each_cache_at_its_share,
    ),
    (
        "ticket_is_consumed_and_reported_removed_once",
        ticket_is_consumed_and_reported_removed_once,
    ),
    (
        "revoked_sessions_are_never_found",
        revoked_sessions_are_never_found,
    ),
    (
        "closed_cache_is_empty_and_finds_nothing",
        closed_cache_is_empty_and_finds_nothing,
    ),
    (
        "inherited_revocations_hold_at_once",
        inherited_revocations_hold_at_once,
    ),
    (
        "lookup_and_withdrawal_meet_an_eviction",
        lookup_and_withdrawal_meet_an_eviction,
    ),
    (
        "one_of_two_puts_reuses_an_expired_id",
        one_of_two_puts_reuses_an_expired_id,
    ),
    (
        "total_holds_and_no_cache_loses_its_share",
        total_holds_and_no_cache_loses_its_share,
    ),
];

const NOW: Now = Now::from_millis(1_000_000);
const HOUR: Duration = Duration::from_secs(3600);

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

fn limits(entries_max: usize) -> Limits {
    Limits {
        entries_max,
        bytes_max: 100_000,
    }
}

fn cache(entries_max: usize, ledger: &Arc<SharedState>) -> Arc<Cache> {
    let plan = Plan {
        role: Role::Server,
        offering: Offering::Explicit,
        limits: limits(entries_max),
        session_bytes_max: 100,
    };
    Arc::new(Cache::new(&plan, ledger))
}

fn lonely(entries_max: usize) -> (Arc<Cache>, Arc<SharedState>, Watch) {
    let ledger = Arc::new(SharedState::new(limits(1_000)));
    let watch = ledger.watchers.watch(|_| true).unwrap();
    (cache(entries_max, &ledger), ledger, watch)
}

fn new(id: u8, version: Version) -> NewSession {
    NewSession {
        id: SessionId::new(&[id]),
        version,
        cipher_suite: "".into(),
        server_name: "a.test".into(),
        format: Format::Rustls,
        binding: [].into(),
        single_use: version == Version::Tls13,
        account: Arc::new(Account::new("default")),
        peer: None,
        authenticated: NOW.at,
        timeout: HOUR,
        secret: Secret::bytes(vec![1; 8]),
    }
}

fn put(cache: &Cache, id: u8) -> Result<Arc<Session>, NotStored> {
    cache.put(new(id, Version::Tls12), NOW)
}

fn id(id: u8) -> SessionId {
    SessionId::new(&[id]).unwrap()
}

/// Returns the reported removals and their reasons.
fn told(watch: &Watch) -> Vec<(u8, RemovalReason)> {
    let Poll::Ready(news) = watch.poll(Waker::noop()) else {
        return Vec::new();
    };
    let mut told = Vec::new();
    for news in news {
        let Delivery::Event(event) = news else {
            panic!("events are missing")
        };
        if let EventKind::Removed(reason) = event.what {
            told.push((event.facts.id.as_bytes()[0], reason));
        }
    }
    told
}

// Invariant 2.
fn ticket_is_consumed_and_reported_removed_once() {
    let (cache, _, watch) = lonely(10);
    let ticket = cache.put(new(1, Version::Tls13), NOW).unwrap();
    let got = Arc::new(AtomicU32::new(0));
    let ways: [fn(&Cache, &Arc<Session>) -> bool; 4] = [
        |cache, _| cache.find(&id(1), &terms(), NOW).is_ok(),
        |cache, _| cache.find(&id(1), &terms(), NOW).is_ok(),
        |cache, _| cache.remove(&id(1), NOW),
        |cache, ticket| cache.withdraw(ticket, RemovalReason::Unclosed),
    ];
    together(ways.map(|way| {
        let (cache, ticket, got) = (Arc::clone(&cache), Arc::clone(&ticket), Arc::clone(&got));
        Box::new(move || {
            got.fetch_add(u32::from(way(&cache, &ticket)), Ordering::SeqCst);
        }) as Box<dyn FnOnce() + Send>
    }));
    assert_eq!(got.load(Ordering::SeqCst), 1);
    let told = told(&watch);
    assert_eq!(told.len(), 1, "{told:?}");
    let counted = |reason| ticket.kind().account.removals.get(reason);
    assert_eq!(RemovalReason::ALL.map(counted).iter().sum::<u64>(), 1);
    assert_eq!(counted(told[0].1), 1);
    assert_eq!(
        cache.find(&id(1), &terms(), NOW).unwrap_err(),
        Miss::Removed
    );
}

/// Stores sessions, ends those authenticated until now with `end`, and looks them up, all at the
/// same time. Fails if a put or lookup that began after `end` had returned succeeds.
fn end_while_put_and_asked(end: fn(&Cache)) {
    let (cache, _, watch) = lonely(10);
    put(&cache, 1).unwrap();
    let ended = Arc::new(AtomicBool::new(false));
    let put = {
        let (cache, ended) = (Arc::clone(&cache), Arc::clone(&ended));
        Box::new(move || {
            let was_ended = ended.load(Ordering::SeqCst);
            let stored = put(&cache, 2);
            assert!(
                !(was_ended && stored.is_ok()),
                "the session was stored afterwards"
            );
            assert!(stored.is_ok() || stored.unwrap_err() == NotStored::Revoked);
        })
    };
    let asked = {
        let (cache, ended) = (Arc::clone(&cache), Arc::clone(&ended));
        Box::new(move || {
            for session in [2, 1, 2] {
                let was_ended = ended.load(Ordering::SeqCst);
                let found = cache.find(&id(session), &terms(), NOW).is_ok();
                assert!(
                    !(was_ended && found),
                    "session {session} was found afterwards"
                );
            }
        })
    };
    let end = {
        let cache = Arc::clone(&cache);
        Box::new(move || {
            end(&cache);
            ended.store(true, Ordering::SeqCst);
        })
    };
    together([put, asked, end]);
    assert!(cache.is_empty(), "a removed session stays in the cache");
    let reasons = [RemovalReason::Revoked, RemovalReason::ScopeChanged];
    assert!(
        told(&watch)
            .iter()
            .all(|(_, reason)| reasons.contains(reason))
    );
}

// Invariant 15.
fn revoked_sessions_are_never_found() {
    end_while_put_and_asked(|cache| {
        cache.revoke(Selector::All, NOW.at.after(Duration::from_millis(1)));
        (0..cache.shards()).for_each(|part| {
            cache.purge(part);
        });
    });
}

fn closed_cache_is_empty_and_finds_nothing() {
    end_while_put_and_asked(|cache| cache.close(|_| ()));
}

fn inherited_revocations_hold_at_once() {
    let (before, ledger, _watch) = lonely(10);
    let after = cache(10, &ledger);
    before.revoke(
        Selector::ServerName("a.test".into()),
        NOW.at.after(Duration::from_millis(1)),
    );
    let inherited = Arc::new(AtomicBool::new(false));
    let (heir, told) = (Arc::clone(&after), Arc::clone(&inherited));
    together([
        Box::new(move || {
            heir.inherit(&before);
            told.store(true, Ordering::SeqCst);
        }),
        Box::new(move || {
            let (cache, was_inherited) = (&after, inherited.load(Ordering::SeqCst));
            let stored = put(cache, 1).is_ok();
            assert!(
                !(was_inherited && stored),
                "the session was stored afterwards"
            );
            let was_inherited = inherited.load(Ordering::SeqCst);
            let found = cache.find(&id(1), &terms(), NOW).is_ok();
            assert!(
                !(was_inherited && found),
                "the session was found afterwards"
            );
            // Reaping forgets revocations that have expired, and must keep these.
            cache.reap(NOW.at);
        }),
    ]);
}

fn lookup_and_withdrawal_meet_an_eviction() {
    let (cache, _, watch) = lonely(1);
    let first = put(&cache, 1).unwrap();
    let gone = Arc::new(AtomicBool::new(false));
    let evict = {
        let (cache, gone) = (Arc::clone(&cache), Arc::clone(&gone));
        Box::new(move || {
            put(&cache, 2).unwrap();
            gone.store(true, Ordering::SeqCst);
        })
    };
    let ask = {
        let (cache, gone) = (Arc::clone(&cache), Arc::clone(&gone));
        Box::new(move || {
            for _ in 0..3 {
                let was_gone = gone.load(Ordering::SeqCst);
                assert!(
                    !(was_gone && cache.find(&id(1), &terms(), NOW).is_ok()),
                    "it was found afterwards"
                );
            }
        })
    };
    let withdraw = {
        let (cache, first) = (Arc::clone(&cache), Arc::clone(&first));
        Box::new(move || {
            if cache.withdraw(&first, RemovalReason::Unclosed) {
                gone.store(true, Ordering::SeqCst);
            }
        })
    };
    together([evict, ask, withdraw]);
    assert_eq!(
        (cache.len(), cache.bytes()),
        (1, cache.peek(&id(2), NOW).unwrap().size())
    );
    let told = told(&watch);
    assert!(matches!(told[..], [(1, _)]), "{told:?}");
}

fn one_of_two_puts_reuses_an_expired_id() {
    let (cache, ledger, watch) = lonely(10);
    let old = put(&cache, 1).unwrap();
    let later = NOW.after(HOUR);
    let stored = Arc::new(AtomicU32::new(0));
    together([(); 2].map(|()| {
        let (cache, stored) = (Arc::clone(&cache), Arc::clone(&stored));
        Box::new(move || {
            let new = NewSession {
                authenticated: later.at,
                ..new(1, Version::Tls12)
            };
            match cache.put(new, later) {
                Ok(_) => {
                    stored.fetch_add(1, Ordering::SeqCst);
                }
                Err(refused) => assert_eq!(refused, NotStored::IdTaken),
            }
        }) as Box<dyn FnOnce() + Send>
    }));
    assert_eq!(stored.load(Ordering::SeqCst), 1);
    assert_eq!(told(&watch), [(1, RemovalReason::Expired)]);
    let held = cache.find(&id(1), &terms(), later).unwrap();
    assert!(!Arc::ptr_eq(&held, &old));
    assert_eq!((cache.len(), ledger.budget.held().entries()), (1, 1));
}

fn total_holds_and_no_cache_loses_its_share() {
    // Each cache may hold four alone, and its share of the total is two.
    let ledger = Arc::new(SharedState::new(limits(4)));
    let caches = [(); 2].map(|()| cache(4, &ledger));
    ledger.budget.share(caches.iter());
    let [modest, greedy] = caches;
    put(&modest, 1).unwrap();
    let [one, two] = [3, 5].map(|first| {
        let greedy = Arc::clone(&greedy);
        Box::new(move || (first..first + 2).for_each(|id| drop(put(&greedy, id).unwrap())))
            as Box<_>
    });
    let last = Arc::clone(&modest);
    together([
        one,
        two,
        Box::new(move || drop(put(&last, 2).unwrap())) as Box<dyn FnOnce() + Send>,
    ]);
    let held = ledger.budget.held();
    assert_eq!(held.entries(), modest.len() + greedy.len());
    assert!(held.entries() <= 4, "{} are held", held.entries());
    assert_eq!(modest.len(), 2, "a cache within its share lost a session");
}

fn concurrent_evictions_keep_each_cache_at_its_share() {
    let ledger = Arc::new(SharedState::new(limits(4)));
    let caches = [(); 2].map(|()| cache(4, &ledger));
    ledger.budget.share(caches.iter());
    for (place, cache) in (0..).zip(&caches) {
        (0..2).for_each(|number| drop(put(cache, 2 * place + number).unwrap()));
    }
    let [modest, greedy] = caches;
    together([10, 11].map(|id| {
        let greedy = Arc::clone(&greedy);
        Box::new(move || drop(put(&greedy, id).unwrap())) as Box<dyn FnOnce() + Send>
    }));
    assert_eq!((modest.len(), greedy.len()), (2, 2));
}
