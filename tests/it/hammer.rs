//! Threads that hammer a few ids of two caches: what was acknowledged to be gone is not handed out, and no ticket is spent
//! twice.
//!
//! There is one logical clock, and each step moves it. It is the time that the caches are told, and the moment at which a
//! session's peers authenticated is its number. So every session tells which one it is, and of two moments it is known
//! which came first: a lookup that began before a removal was acknowledged may still be answered, one that began
//! afterwards must not be.

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
    cache::{Cache, Offering, Plan, revocation::Selector, shared::Ledger},
    clock::{Now, Timestamp},
    session::{
        Format, NewSession, RemovalReason, Secret, Session, SessionId, Terms,
        events::{News, Watch, What},
        stats::Account,
    },
    store::memory::Limits,
};
use tls_sessiond_types::{Role, Version, server_name::ServerName};

const THREADS: u64 = 32;
const KEYS: usize = 12;
const ENTRIES_MAX: usize = 8;
/// Less than two caches may hold: they make room for each other.
const TOTAL: usize = 12;
/// It ends after so long, or after so many moments.
const TIME: Duration = Duration::from_secs(2);
const MOMENTS: u32 = 1 << 21;
/// How many moments a session lives.
const LIFE: Duration = Duration::from_millis(300);
/// What every session is asked for on.
fn terms() -> Terms<'static> {
    static NAME: LazyLock<ServerName<'static>> = LazyLock::new(|| "a.test".into());
    Terms {
        format: &Format::Rustls,
        binding: &[],
        versions: &[Version::Tls12, Version::Tls13],
        server_name: &NAME,
        cipher_suite: None,
    }
}

/// What is known of one session.
#[derive(Default)]
struct Fate {
    /// When its put had returned.
    stored: AtomicU32,
    /// When it was acknowledged to be gone.
    gone: AtomicU32,
    /// Whether somebody got it for himself alone: spent it, or withdrew it.
    got: AtomicBool,
    /// Whether a watcher was told that it left.
    told: AtomicBool,
}

struct World {
    moment: AtomicU32,
    caches: [Arc<Cache>; 2],
    account: Arc<Account>,
    watch: Watch,
    fates: Box<[Fate]>,
    /// Of an id in a cache: what had been stored before this moment is gone.
    swept: [[AtomicU32; KEYS]; 2],
    /// Of a cache: whoever authenticated before this moment is revoked.
    revoked: [AtomicU32; 2],
    /// What has happened at all.
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
    Limits { entries_max, bytes_max: 1 << 20 }
}

impl World {
    fn new(ledger: &Arc<Ledger>) -> Self {
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

    /// A moment after all that have been.
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

    /// One step of one thread.
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
            version: if single_use { Version::Tls13 } else { Version::Tls12 },
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
            Ok(_) => self.fates[number as usize].stored.store(self.tick(), Ordering::SeqCst),
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
        let (number, fate) = (number(session.authenticated()), self.fate(session.authenticated()));
        assert_eq!(session.id(), &id(key));
        assert_eq!(session.secret().as_bytes(), Some(&number.to_be_bytes()[..]));
        assert!(!session.expired(reading(began)), "{number} was over at {began}");
        assert!(number >= revoked, "{number} was revoked before {began}");
        let gone = fate.gone.load(Ordering::SeqCst);
        assert!(gone == 0 || gone > began, "{number} was gone at {gone}, and was found at {began}");
        let stored = fate.stored.load(Ordering::SeqCst);
        assert!(stored == 0 || stored > swept, "{number}, stored at {stored}, was removed at {swept}");
        if session.kind().single_use {
            self.got(&session, "spent");
        }
    }

    /// Somebody has this session for himself alone.
    fn got(&self, session: &Session, how: &str) {
        let fate = self.fate(session.authenticated());
        assert!(!fate.got.swap(true, Ordering::SeqCst), "{:?} was {how}, and gone already", session.id());
        self.gone(fate);
        self.happened(how);
    }

    fn gone(&self, fate: &Fate) {
        // The first moment counts.
        let _ = fate.gone.compare_exchange(0, self.tick(), Ordering::SeqCst, Ordering::SeqCst);
    }

    fn withdraw(&self, cache: usize, key: usize) {
        let Some(session) = self.caches[cache].peek(&id(key), reading(self.tick())) else { return };
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
        let purged: usize = (0..self.caches[cache].parts()).map(|part| self.caches[cache].purge(part)).sum();
        if purged > 0 {
            self.happened("purged");
        }
        self.revoked[cache].fetch_max(before, Ordering::SeqCst);
    }

    /// Hears what left, with what had to make room; some news may be missing.
    fn listen(&self) {
        let Poll::Ready(news) = self.watch.poll(Waker::noop()) else { return };
        for news in news {
            let News::Event(event) = news else { continue };
            let What::Removed(reason) = event.what else { continue };
            let fate = self.fate(event.facts.authenticated);
            assert!(!fate.told.swap(true, Ordering::SeqCst), "{:?} left twice", event.facts);
            self.gone(fate);
            self.happened(&format!("{reason:?}"));
        }
    }
}

/// Numbers that look random, the same for a thread at every run (Steele et al., SplitMix).
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((mixed ^ (mixed >> 31)) % sides as u64).unwrap()
    }
}

#[test]
fn nothing_is_handed_out_after_its_end_was_acknowledged_and_nothing_is_spent_twice() {
    let ledger = Arc::new(Ledger::new(limits(TOTAL)));
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
        (0..cache.parts()).for_each(|part| {
            cache.scan_part(part, Now::default(), |session| {
                let fate = world.fate(session.authenticated());
                assert_eq!(fate.gone.load(Ordering::SeqCst), 0, "{session:?} is there, and is gone");
                entries += 1;
            });
        });
        // Those that are revoked were taken out with it.
        assert_eq!(cache.len(), entries);
        held += entries;
    }
    assert_eq!(ledger.budget.held().entries(), held);
    assert!(held <= TOTAL);
    // A hammer that hits nothing proves nothing.
    let happened = world.happened.lock().unwrap();
    for what in [
        "spent",
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
        assert!(happened.contains(what), "never: {what}; only {happened:?}");
    }
}
