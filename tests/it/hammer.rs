//! Stress test: threads store, look up and remove sessions with a few ids in two caches. After a
//! removal was acknowledged the session is not handed out, and no ticket is consumed twice.
//!
//! One logical clock orders all steps: each step advances it. The caches get it as their time. The
//! authentication time of a session is unique, so it identifies the session. A lookup that began
//! before a removal was acknowledged may still return the session. A lookup that began afterwards
//! must not.

use std::{
    array,
    collections::BTreeSet,
    sync::{
        Arc, LazyLock, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use tls_sessiond_core::{
    cache::{Cache, Offering, Plan, revocation::Selector, shared::SharedState},
    clock::{Now, Timestamp},
    session::{
        Format, NewSession, RemovalReason, ResumeCriteria, Secret, Session, SessionId,
        events::{Delivery, EventKind, Watch},
        stats::Account,
    },
    store::memory::Limits,
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};

const THREADS: u64 = 32;
const KEYS: usize = 12;
const ENTRIES_MAX: usize = 8;
/// Limit of both caches together. It is less than the sum of their own limits, so that each evicts
/// for the other.
const TOTAL: usize = 12;
/// The test ends after this time or after [`MOMENTS`], whichever is first.
const TIME: Duration = Duration::from_secs(2);
const MOMENTS: u32 = 1 << 21;
/// The lifetime of a session: a millisecond is one moment.
const LIFE: Duration = Duration::from_millis(300);
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

/// The history of one session.
#[derive(Default)]
struct Fate {
    /// The moment after its put returned, or 0.
    stored: AtomicU32,
    /// The moment after its removal was acknowledged, or 0.
    gone: AtomicU32,
    /// Whether one thread took it exclusively: consumed it by a lookup, or withdrew it.
    got: AtomicBool,
    /// Whether the watcher was told of its removal.
    told: AtomicBool,
}

struct World {
    moment: AtomicU32,
    caches: [Arc<Cache>; 2],
    account: Arc<Account>,
    watch: Watch,
    fates: Box<[Fate]>,
    /// For each id in a cache: sessions stored before this moment are removed.
    swept: [[AtomicU32; KEYS]; 2],
    /// For each cache: sessions authenticated before this moment are revoked.
    revoked: [AtomicU32; 2],
    /// The kinds of outcomes that have occurred.
    happened: Mutex<BTreeSet<String>>,
}

fn id(key: usize) -> SessionId {
    SessionId::new(&[u8::try_from(key).unwrap(); 32]).unwrap()
}

fn at(moment: u32) -> Timestamp {
    Timestamp::from_millis(moment.into())
}

fn reading(moment: u32) -> Now {
    Now::from_millis(moment.into())
}

fn number(authenticated: Timestamp) -> u32 {
    u32::try_from(authenticated.as_millis()).unwrap()
}

fn limits(entries_max: usize) -> Limits {
    Limits {
        entries_max,
        bytes_max: 1 << 20,
    }
}

impl World {
    fn new(ledger: &Arc<SharedState>) -> Self {
        let plan = Plan {
            role: Role::Server,
            offering: Offering::Explicit,
            limits: limits(ENTRIES_MAX),
            session_bytes_max: 1 << 10,
        };
        let caches = [(); 2].map(|()| Arc::new(Cache::new(&plan, ledger)));
        ledger.budget.share(caches.iter());
        Self {
            moment: AtomicU32::new(1),
            caches,
            account: Arc::new(Account::new("hammer")),
            watch: ledger.watchers.watch(|_| true).unwrap(),
            fates: (0..MOMENTS + 1_000).map(|_| Fate::default()).collect(),
            swept: array::from_fn(|_| array::from_fn(|_| AtomicU32::new(0))),
            revoked: array::from_fn(|_| AtomicU32::new(0)),
            happened: Mutex::default(),
        }
    }

    /// Returns a new moment, later than all before.
    fn tick(&self) -> u32 {
        self.moment.fetch_add(1, Ordering::SeqCst)
    }

    fn fate(&self, authenticated: Timestamp) -> &Fate {
        &self.fates[number(authenticated) as usize]
    }

    fn happened(&self, what: &str) {
        let mut happened = self.happened.lock().unwrap();
        if !happened.contains(what) {
            happened.insert(what.to_owned());
        }
    }

    /// Does one random step.
    fn step(&self, dice: &mut Dice) {
        let (cache, key) = (dice.below(2), dice.below(KEYS));
        match dice.below(100) {
            0..40 => self.put(cache, key, dice.below(2) == 0),
            40..80 => self.find(cache, key),
            80..88 => self.withdraw(cache, key),
            88..95 => self.remove(cache, key),
            95 => self.revoke(cache),
            96 => self.caches[cache].reap(at(self.tick())),
            97 => self.caches[cache].resize(limits(ENTRIES_MAX - dice.below(4)), 1 << 10),
            _ => self.listen(),
        }
    }

    fn put(&self, cache: usize, key: usize, single_use: bool) {
        let number = self.tick();
        let new = NewSession {
            id: Some(id(key)),
            version: if single_use {
                Version::Tls13
            } else {
                Version::Tls12
            },
            cipher_suite: "".into(),
            server_name: "a.test".into(),
            format: Format::Rustls,
            binding: [].into(),
            single_use,
            account: Arc::clone(&self.account),
            peer: None,
            authenticated: at(number),
            timeout: LIFE,
            secret: Secret::bytes(number.to_be_bytes().to_vec()),
        };
        match self.caches[cache].put(new, reading(number)) {
            Ok(_) => self.fates[number as usize]
                .stored
                .store(self.tick(), Ordering::SeqCst),
            Err(why) => self.happened(&format!("{why:?}")),
        }
    }

    fn find(&self, cache: usize, key: usize) {
        let swept = self.swept[cache][key].load(Ordering::SeqCst);
        let revoked = self.revoked[cache].load(Ordering::SeqCst);
        let began = self.tick();
        let session = match self.caches[cache].find(&id(key), &terms(), reading(began)) {
            Ok(session) => session,
            Err(why) => return self.happened(&format!("{why:?}")),
        };
        let (number, fate) = (
            number(session.authenticated()),
            self.fate(session.authenticated()),
        );
        assert_eq!(session.id(), &id(key));
        assert_eq!(session.secret().as_bytes(), Some(&number.to_be_bytes()[..]));
        assert!(
            !session.expired(reading(began)),
            "{number} had expired at {began}"
        );
        assert!(number >= revoked, "{number} was revoked before {began}");
        let gone = fate.gone.load(Ordering::SeqCst);
        assert!(
            gone == 0 || gone > began,
            "{number} was removed at {gone} and found at {began}"
        );
        let stored = fate.stored.load(Ordering::SeqCst);
        assert!(
            stored == 0 || stored > swept,
            "{number}, stored at {stored}, found after {swept}"
        );
        if session.kind().single_use {
            self.got(&session, "consumed");
        }
    }

    /// Records that this thread took the session exclusively.
    fn got(&self, session: &Session, how: &str) {
        let fate = self.fate(session.authenticated());
        assert!(
            !fate.got.swap(true, Ordering::SeqCst),
            "{:?} was {how} and taken before",
            session.id()
        );
        self.gone(fate);
        self.happened(how);
    }

    fn gone(&self, fate: &Fate) {
        // Only the first moment is kept.
        let _ = fate
            .gone
            .compare_exchange(0, self.tick(), Ordering::SeqCst, Ordering::SeqCst);
    }

    fn withdraw(&self, cache: usize, key: usize) {
        let Some(session) = self.caches[cache].peek(&id(key), reading(self.tick())) else {
            return;
        };
        if self.caches[cache].withdraw(&session, RemovalReason::Unclosed) {
            self.got(&session, "withdrawn");
        }
    }

    fn remove(&self, cache: usize, key: usize) {
        let began = self.tick();
        if self.caches[cache].remove(&id(key), reading(began)) {
            self.happened("removed");
        }
        self.swept[cache][key].fetch_max(began, Ordering::SeqCst);
    }

    fn revoke(&self, cache: usize) {
        let before = self.tick();
        self.caches[cache].revoke(Selector::All, at(before));
        let purged: usize = (0..self.caches[cache].shards())
            .map(|part| self.caches[cache].purge(part))
            .sum();
        if purged > 0 {
            self.happened("purged");
        }
        self.revoked[cache].fetch_max(before, Ordering::SeqCst);
    }

    /// Reads the removals that the watcher was told of, evictions included. Dropped events are
    /// missing.
    fn listen(&self) {
        let Poll::Ready(news) = self.watch.poll(Waker::noop()) else {
            return;
        };
        for news in news {
            let Delivery::Event(event) = news else {
                continue;
            };
            let EventKind::Removed(reason) = event.what else {
                continue;
            };
            let fate = self.fate(event.facts.authenticated);
            assert!(
                !fate.told.swap(true, Ordering::SeqCst),
                "{:?} was removed twice",
                event.facts
            );
            self.gone(fate);
            self.happened(&format!("{reason:?}"));
        }
    }
}

/// A pseudo-random generator (SplitMix, Steele et al.). Each thread has the same numbers in every
/// run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % sides as u64).unwrap()
    }
}

// Invariant 2.
#[test]
fn no_session_is_found_after_removal_or_consumed_twice() {
    let ledger = Arc::new(SharedState::new(limits(TOTAL)));
    let world = World::new(&ledger);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let world = &world;
            scope.spawn(move || {
                let mut dice = Dice(thread);
                while start.elapsed() < TIME && world.moment.load(Ordering::SeqCst) < MOMENTS {
                    (0..16).for_each(|_| world.step(&mut dice));
                }
            });
        }
    });
    world.listen();

    let mut held = 0;
    for cache in &world.caches {
        let mut entries = 0;
        (0..cache.shards()).for_each(|part| {
            cache.scan_part(part, Now::default(), |session| {
                let fate = world.fate(session.authenticated());
                assert_eq!(
                    fate.gone.load(Ordering::SeqCst),
                    0,
                    "{session:?} is held, but removed"
                );
                entries += 1;
            });
        });
        // Each revocation purged the revoked sessions in the same step, so the length counts no
        // hidden ones.
        assert_eq!(cache.len(), entries);
        held += entries;
    }
    assert_eq!(ledger.budget.held().entries(), held);
    assert!(held <= TOTAL);
    // The test proves something only if every outcome occurred.
    let happened = world.happened.lock().unwrap();
    for what in [
        "consumed",
        "withdrawn",
        "removed",
        "purged",
        "IdTaken",
        "Unknown",
        "Taken",
        "Unclosed",
        "Removed",
        "Revoked",
        "CacheFull",
        "Expired",
    ] {
        assert!(
            happened.contains(what),
            "{what} never occurred; only {happened:?}"
        );
    }
}
