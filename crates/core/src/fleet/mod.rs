//! Sessions in a store that several daemons share, without I/O.
//!
//! A lookup or a put is a request as data: [`Find`] and [`Put`]. The caller sends it, and passes the
//! answer back. Ends of connections need no answer: [`Hold`] queues them for the keeper of the
//! session's bucket, so a destructor never waits.
//!
//! * `find`: lookups
//! * `hold`: the hold of a connection on a session
//! * `put`: sessions on their way to the store
//! * `ticket`: sessions that are sealed in the tickets of their clients
//! * `value`: the sealed part of a session as bytes

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, MutexGuard};
use tls_sessiond_store::{
    keeper::{Away, Keeper, LocalTime, NoAnswer, RequestId, Seed},
    layout::{BUCKETS, Bucket, Layout, Name},
    script::{Answer, Claim, Criteria, Refused, Request, Token},
    seal::SealingKeys,
};
use zeroize::Zeroizing;

use crate::{
    clock::Timestamp,
    session::{Format, ResumeCriteria},
};

mod find;
mod hold;
mod put;
mod ticket;
mod value;

pub(crate) use find::FindMiss;
pub use find::{Find, Hit, Purpose};
pub use hold::Hold;
pub(crate) use hold::reason;
pub use put::Put;
pub(crate) use put::PutRefused;
pub use ticket::TicketLook;
use value::Value;

/// Why a request has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The store has not run the request, and will not run it.
    NotRun,
    /// The answer did not come in time, or cannot be read. The store may have run the request, or
    /// run it later.
    NoAnswer,
}

/// Requests of a bucket that may fail in a row before the daemon stops to ask for sessions there. It
/// asks again when the bucket has answered a heartbeat.
pub const FAILURES_MAX: u32 = 5;

/// Counts since the start.
#[derive(Debug, Default)]
pub struct FleetCounters {
    /// Lookups and puts that were sent.
    pub requests: AtomicU64,
    /// Of these, how many had no answer.
    pub failures: AtomicU64,
    /// Lookups and puts that were not sent, because the bucket was away.
    pub shed: AtomicU64,
    /// Values that did not open.
    pub unopened: AtomicU64,
    /// Losses of the store, counted for each bucket.
    pub losses: AtomicU64,
    /// Times that a bucket had too many removals waiting, and what this daemon held there was given
    /// up.
    pub abandoned: AtomicU64,
}

struct Part {
    keeper: Mutex<Keeper>,
    failures: AtomicU32,
}

/// The state of one daemon in the shared store: a keeper for each bucket, and the sealing keys.
pub struct FleetStore {
    layout: Layout,
    keys: ArcSwap<SealingKeys>,
    parts: Box<[Part]>,
    /// How long the daemon waits for the answer to a lookup or a put, in milliseconds.
    deadline: u64,
    /// Wakes the task that delivers what the keepers decide.
    wake: Box<dyn Fn() + Send + Sync>,
    /// Whether the task was woken since it last looked. Only the first wake costs a call.
    woken: AtomicBool,
    /// The latest time that an operation told, in milliseconds.
    latest: AtomicU64,
    /// What the process of the store calls itself.
    server: Mutex<Option<Box<str>>>,
    processes: AtomicU64,
    /// The version of the revocations that this daemon knows.
    revision: AtomicU64,
    /// The highest version that a bucket has told.
    told: AtomicU64,
    /// Whether a bucket has another version.
    is_stale: AtomicBool,
    /// Counts since the start.
    pub counters: FleetCounters,
}

impl fmt::Debug for FleetStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FleetStore")
            .field("layout", &self.layout)
            .field("counters", &self.counters)
            .finish_non_exhaustive()
    }
}

impl FleetStore {
    /// Makes the state of a daemon that has just started. It finds and stores nothing until its
    /// heartbeats are in the store.
    ///
    /// `seed`: random bytes of this start. `deadline`: how long the caller waits for the answer to a
    /// lookup or a put. `wake` is called when [`Self::poll`] may have a request that it did not have
    /// before.
    pub fn new(
        layout: Layout,
        keys: SealingKeys,
        seed: &Zeroizing<[u8; 32]>,
        deadline: Duration,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let part = |bucket| Part {
            keeper: Mutex::new(Keeper::new(bucket, Seed::new(seed.clone()))),
            failures: AtomicU32::new(0),
        };
        Self {
            layout,
            keys: ArcSwap::from_pointee(keys),
            parts: Bucket::all().map(part).collect(),
            deadline: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
            wake: Box::new(wake),
            woken: AtomicBool::new(false),
            latest: AtomicU64::new(0),
            server: Mutex::default(),
            processes: AtomicU64::new(0),
            revision: AtomicU64::new(0),
            told: AtomicU64::new(0),
            is_stale: AtomicBool::new(false),
            counters: FleetCounters::default(),
        }
    }

    /// Returns the keys under which the store has the sessions.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the sealing keys.
    pub fn keys(&self) -> arc_swap::Guard<Arc<SealingKeys>> {
        self.keys.load()
    }

    /// Replaces the sealing keys.
    pub fn rotate(&self, keys: SealingKeys) {
        self.keys.store(Arc::new(keys));
    }

    fn part(&self, bucket: Bucket) -> &Part {
        &self.parts[bucket.index() % BUCKETS]
    }

    /// Records the time of the next operation.
    pub(crate) fn tell_time(&self, now: Timestamp) {
        self.latest.fetch_max(now.as_millis(), Ordering::Relaxed);
    }

    fn latest(&self) -> LocalTime {
        LocalTime(self.latest.load(Ordering::Relaxed))
    }

    fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            (self.wake)();
        }
    }

    /// Returns the name of the format in the store. That of the daemon's own engine has the version
    /// of rustls, because only an equal version reads its sessions.
    pub(crate) fn format(format: &Format) -> &str {
        match format {
            Format::Rustls => "rustls/0.23",
            Format::Worker(name) => name,
        }
    }

    fn criteria(&self, terms: &ResumeCriteria<'_>) -> Criteria {
        let fit =
            self.keys()
                .names()
                .fit(Self::format(terms.format), terms.binding, terms.server_name);
        Criteria {
            fit,
            versions: terms.versions.to_vec(),
            cipher_suite: terms.cipher_suite.map(value::suite_number),
        }
    }

    /// Returns the keeper of the name's bucket, unless too many requests failed there in a row.
    fn keeper(&self, name: Name, now: Timestamp) -> Result<MutexGuard<'_, Keeper>, Refusal> {
        self.tell_time(now);
        let part = self.part(name.bucket());
        if part.failures.load(Ordering::Relaxed) >= FAILURES_MAX {
            return Err(self.shed());
        }
        Ok(part.keeper.lock())
    }

    /// Returns the claim of a lookup, the time of the store after which it may not run, and a token
    /// for its hold.
    fn may_find(&self, name: Name, now: Timestamp) -> Result<(Claim, u64, Token), Refusal> {
        let mut keeper = self.keeper(name, now)?;
        if keeper.is_removing(name) {
            return Err(Refusal::Removing);
        }
        match keeper.may_find(LocalTime(now.as_millis()), self.deadline) {
            Ok((claim, valid_until)) => Ok((claim, valid_until, keeper.token())),
            Err(Away::Lost | Away::Late | Away::Quarantine) => Err(self.shed()),
        }
    }

    /// Returns the claim of a put, the time of the store after which it may not run, and a token for
    /// its hold.
    fn may_put(&self, name: Name, now: Timestamp) -> Result<(Claim, u64, Token), Refusal> {
        let mut keeper = self.keeper(name, now)?;
        match keeper.may_put(LocalTime(now.as_millis()), self.deadline) {
            Ok((claim, valid_until)) => Ok((claim, valid_until, keeper.token())),
            Err(Away::Lost | Away::Late | Away::Quarantine) => Err(self.shed()),
        }
    }

    fn shed(&self) -> Refusal {
        self.counters.shed.fetch_add(1, Ordering::Relaxed);
        Refusal::Away
    }

    /// Counts the answer of a lookup or a put, and tells the keeper what it says of the bucket.
    fn note(&self, name: Name, claim: &Claim, answer: &Result<Answer, Failure>, now: Timestamp) {
        self.tell_time(now);
        self.counters.requests.fetch_add(1, Ordering::Relaxed);
        let part = self.part(name.bucket());
        match answer {
            Err(_) => {
                self.counters.failures.fetch_add(1, Ordering::Relaxed);
                part.failures.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => {
                part.failures.store(0, Ordering::Relaxed);
                match answer {
                    Answer::Refused(Refused::Lost) => self.lost(part, Some(claim), now),
                    Answer::Refused(Refused::Revised(revision)) => self.told_revision(*revision),
                    _ => {}
                }
            }
        }
    }

    /// Records that the store has lost the heartbeat of `claim`, or every heartbeat.
    fn lost(&self, part: &Part, claim: Option<&Claim>, now: Timestamp) {
        let mut keeper = part.keeper.lock();
        if claim.is_none_or(|claim| claim.holder == keeper.holder()) {
            keeper.lost(LocalTime(now.as_millis()));
            drop(keeper);
            self.counters.losses.fetch_add(1, Ordering::Relaxed);
            self.wake();
        }
    }

    fn told_revision(&self, revision: u64) {
        self.told.fetch_max(revision, Ordering::AcqRel);
        if revision != self.revision() && !self.is_stale.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    /// Returns whether a bucket has another version of the revocations than this daemon: one that it
    /// has to read, or one of a store that has lost some.
    pub fn is_stale(&self) -> bool {
        self.is_stale.load(Ordering::Acquire)
    }

    /// Returns the highest version of the revocations that the store has told. A list with a lower one
    /// has lost something.
    pub fn told(&self) -> u64 {
        self.told.load(Ordering::Acquire).max(self.revision())
    }

    /// Returns the version of the revocations that this daemon knows.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Records that this daemon knows the revocations of a version. Buckets of another version answer
    /// neither lookup nor put.
    pub fn knows(&self, revision: u64) {
        self.revision.store(revision, Ordering::Release);
        self.is_stale.store(false, Ordering::Release);
        for part in &self.parts {
            part.keeper.lock().knows(revision);
        }
    }

    /// Records that a connection to the store was opened, and how its process calls itself. If it
    /// is another one than before, what the store had is lost. Returns whether it is.
    pub fn connected(&self, server: &str, now: Timestamp) -> bool {
        self.tell_time(now);
        // Held until all parts know: another connection of that process must not be used before.
        let mut known = self.server.lock();
        let is_other = known.as_ref().is_some_and(|before| **before != *server);
        if is_other {
            self.processes.fetch_add(1, Ordering::AcqRel);
            for part in &self.parts {
                self.lost(part, None, now);
            }
        }
        *known = Some(server.into());
        is_other
    }

    /// Returns what the process of the store calls itself. Empty: there was no connection yet.
    fn server(&self) -> Box<str> {
        self.server.lock().clone().unwrap_or_default()
    }

    /// Returns how often another process has answered as the store. A request that was made before
    /// such a change is not sent after it.
    pub fn processes(&self) -> u64 {
        self.processes.load(Ordering::Acquire)
    }

    /// Returns the next request of a bucket's keeper, if one is due and none is under way.
    pub fn poll(&self, bucket: Bucket, now: Timestamp) -> Option<(RequestId, Request)> {
        let mut keeper = self.part(bucket).keeper.lock();
        keeper.poll(LocalTime(now.as_millis()))
    }

    /// Returns when [`Self::poll`] may have a request. `None`: when the answer to the one that is
    /// under way has come.
    pub fn due(&self, bucket: Bucket, now: Timestamp) -> Option<Timestamp> {
        let keeper = self.part(bucket).keeper.lock();
        keeper
            .due(LocalTime(now.as_millis()))
            .map(|due| Timestamp::from_millis(due.0))
    }

    /// Records that the task looks at all keepers now. Later decisions wake it again.
    pub fn looks(&self, now: Timestamp) {
        self.tell_time(now);
        self.woken.store(false, Ordering::Release);
    }

    /// Takes the answer to a request of [`Self::poll`].
    pub fn answered(
        &self,
        bucket: Bucket,
        id: RequestId,
        answer: Result<Answer, Failure>,
        now: Timestamp,
    ) {
        self.tell_time(now);
        let part = self.part(bucket);
        let revision = match &answer {
            Ok(Answer::Beaten { revision, .. } | Answer::BeatLost { revision, .. }) => {
                Some(*revision)
            }
            Ok(Answer::Overdue { revision, .. }) => *revision,
            _ => None,
        };
        if matches!(answer, Ok(Answer::BeatLost { .. })) {
            self.counters.losses.fetch_add(1, Ordering::Relaxed);
        }
        if answer.is_ok() {
            part.failures.store(0, Ordering::Relaxed);
        }
        part.keeper
            .lock()
            .answered(id, answer.map_err(|_| NoAnswer), LocalTime(now.as_millis()));
        if let Some(revision) = revision {
            self.told_revision(revision);
        }
    }

    /// Returns in how many buckets sessions can be found now.
    pub fn open_buckets(&self, now: Timestamp) -> usize {
        let now = LocalTime(now.as_millis());
        self.parts
            .iter()
            .filter(|part| part.keeper.lock().may_find(now, 0).is_ok())
            .count()
    }

    /// Returns whether the store has everything that this daemon decided in a bucket.
    pub fn is_flushed(&self, bucket: Bucket) -> bool {
        self.part(bucket).keeper.lock().is_flushed()
    }

    /// Returns the request that ends the life of this daemon in a bucket.
    pub fn resign(&self, bucket: Bucket) -> Request {
        self.part(bucket).keeper.lock().resign(&self.server())
    }
}

/// Why no request is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The bucket is away.
    Away,
    /// This daemon has removed the session.
    Removing,
}
