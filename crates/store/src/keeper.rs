//! The heartbeats of one daemon in one bucket, and the removals that must come before them.
//!
//! A keeper has at most one request under way. [`Keeper::poll`] returns the next one, and
//! [`Keeper::answered`] takes its answer. After a loss, answers to earlier requests count no more.
//!
//! A heartbeat is made only when the store has acknowledged every removal that was decided before. So
//! "alive" means "the store has all that this daemon knows to be bad". While a removal cannot be
//! delivered, the heartbeat lapses, and no daemon finds a session that this one holds.
//!
//! ```text
//!             removals of the last minute      time known        heartbeat written
//!   Lost ───────────────────────────────▶ probe ─────────▶ beat ──────────────────▶ Beating
//!    ▲                                                                                 │
//!    └─────────── the store does not have the last heartbeat, or is another ───────────┘
//! ```
//!
//! After a loss the daemon takes another holder: the store may be as old as its file, and may have
//! sessions again that this daemon held and removed long ago. Finds are refused for [`QUARANTINE`]:
//! until then each daemon has noticed the loss, and has repeated its removals.

use std::{
    collections::{HashMap, VecDeque},
    fmt,
};

use aws_lc_rs::hmac;
use zeroize::Zeroizing;

use crate::{
    layout::{Bucket, Name},
    script::{Answer, Claim, ENTRIES_MAX, Expected, Holder, Note, Reason, Request, Token},
};

/// How long a heartbeat lasts by the store's clock, in milliseconds.
pub const LIFE: u64 = 2_500;
/// How late the store may run a heartbeat after it was made, in milliseconds. A store that hung
/// refuses it then, because a removal may have been decided since.
pub const BEAT_VALID: u64 = 500;
/// The longest time from the unclosed end of a connection until no daemon finds its sessions, in
/// milliseconds: the last heartbeat before the end is run at most [`BEAT_VALID`] later, and lasts
/// [`LIFE`].
pub const UNCLOSED_MAX: u64 = LIFE + BEAT_VALID;
/// The time between two heartbeats, in milliseconds.
pub const BEAT_EVERY: u64 = 1_000;
/// How long finds are refused after a loss, in milliseconds.
pub const QUARANTINE: u64 = 2_000;
/// How long before the last heartbeat a removal is remembered, to repeat it after a loss, in
/// milliseconds.
pub const REMEMBERED: u64 = 60_000;
/// The time after a request that failed until the next one, in milliseconds.
const RETRY: u64 = 250;
/// The time after a heartbeat that came too late until the next one, in milliseconds.
const BEAT_AGAIN: u64 = 20;
/// How long a release waits for others, in milliseconds.
const RELEASE_WAIT: u64 = 20;
/// The most removals that are remembered. Beyond it the oldest is forgotten.
const REMEMBERED_MAX: usize = 65_536;
/// The most removals that wait before the life is abandoned. A loss adds those that are remembered.
const WAITING_MAX: usize = 2 * REMEMBERED_MAX;
/// The most releases that wait. Beyond it the oldest is dropped: its session then counts as open.
const RELEASES_MAX: usize = 65_536;

/// A time of the daemon's monotonic clock, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct LocalTime(pub u64);

impl LocalTime {
    fn after(self, millis: u64) -> Self {
        Self(self.0.saturating_add(millis))
    }

    fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Why the daemon may not use the bucket now. Each is a miss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Away {
    /// No heartbeat is in the store: the daemon has just started, or the store has lost it.
    Lost,
    /// The last heartbeat has lapsed.
    Late,
    /// The time after a loss in which other daemons repeat their removals.
    Quarantine,
}

/// The request failed, or its answer did not come in time. The store may have run it, or run it
/// later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAnswer;

/// Names a request of the keeper, so that its answer finds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId(u64);

/// What became of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It will be delivered before the next heartbeat.
    Queued,
    /// Too many removals wait. The daemon has taken another holder instead, so nothing that it held
    /// until now is found again.
    Abandoned,
}

#[derive(Debug)]
enum Standing {
    Lost,
    Beating {
        /// By the store's clock.
        deadline: u64,
        /// The deadline of the first heartbeat after the start or the last loss.
        first: u64,
        /// When finds are answered again.
        opens: LocalTime,
        /// When the next heartbeat is due.
        next: LocalTime,
        /// When the last heartbeat was acknowledged.
        acknowledged: LocalTime,
    },
}

#[derive(Debug)]
enum UnderWay {
    /// The first removals of the queue: this many.
    Removals(usize),
    /// The time is asked for.
    Probe,
    /// A heartbeat, made at this time.
    Beat(LocalTime),
    /// Releases of this holder. They are repeated until the store has acknowledged them, or the
    /// holder is another one.
    Releases(Holder, Vec<(Name, Token)>),
}

/// 32 random bytes of one daemon and one start, from which the holders of its lives are derived.
pub struct Seed(Zeroizing<[u8; 32]>);

impl Seed {
    /// Takes the bytes.
    pub fn new(bytes: Zeroizing<[u8; 32]>) -> Self {
        Self(bytes)
    }
}

impl fmt::Debug for Seed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seed(…)")
    }
}

/// The state of one daemon in one bucket.
#[derive(Debug)]
pub struct Keeper {
    bucket: Bucket,
    seed: Seed,
    lives: u64,
    holder: Holder,
    tokens: u32,
    standing: Standing,
    /// How far the store's clock is ahead, in milliseconds; a lower bound, because the answer took
    /// time. `None`: unknown.
    ahead: Option<i64>,
    revision: u64,
    /// Removals that the store has not acknowledged, oldest first.
    removals: VecDeque<(Name, Option<Note>)>,
    /// How often each name is in `removals`.
    removing: HashMap<Name, u32>,
    /// Sessions that this daemon has removed or taken, with the time, oldest first. Those of tickets have
    /// their note: the store has nothing else of them.
    ring: VecDeque<(LocalTime, Name, Option<Note>)>,
    releases: VecDeque<(LocalTime, Name, Token)>,
    under_way: Option<(RequestId, UnderWay)>,
    sent: u64,
    retry: LocalTime,
}

impl Keeper {
    /// Makes the keeper of a bucket.
    pub fn new(bucket: Bucket, seed: Seed) -> Self {
        Self {
            bucket,
            holder: holder(&seed, bucket, 0),
            seed,
            lives: 0,
            tokens: 0,
            standing: Standing::Lost,
            ahead: None,
            revision: 0,
            removals: VecDeque::new(),
            removing: HashMap::new(),
            ring: VecDeque::new(),
            releases: VecDeque::new(),
            under_way: None,
            sent: 0,
            retry: LocalTime::default(),
        }
    }

    /// Returns the holder of the present life.
    pub fn holder(&self) -> Holder {
        self.holder
    }

    /// Returns a token that this life has not used.
    pub fn token(&mut self) -> Token {
        self.tokens = self.tokens.wrapping_add(1);
        Token(self.tokens)
    }

    /// Returns the claim of a find, and the time of the store's clock until which it is valid.
    ///
    /// `waits`: how long the daemon waits for the answer, in milliseconds. It ends the hold that the
    /// find may have made then, and no later run makes another.
    ///
    /// # Errors
    /// Why the find would miss.
    pub fn may_find(&self, now: LocalTime, waits: u64) -> Result<(Claim, u64), Away> {
        let (claim, opens) = self.claim(now)?;
        if now < opens {
            return Err(Away::Quarantine);
        }
        let store = self.store_time(now).ok_or(Away::Lost)?;
        Ok((claim, store.saturating_add(waits)))
    }

    /// Returns the claim of a put, and the time of the store's clock until which it is valid.
    ///
    /// `waits`: how long the daemon waits for the answer, in milliseconds. It removes the session then.
    /// So no put is run after its removal, even if the note of the removal is lost.
    ///
    /// # Errors
    /// Why the put would be refused.
    pub fn may_put(&self, now: LocalTime, waits: u64) -> Result<(Claim, u64), Away> {
        let (claim, _) = self.claim(now)?;
        let store = self.store_time(now).ok_or(Away::Lost)?;
        Ok((claim, store.saturating_add(waits)))
    }

    fn claim(&self, now: LocalTime) -> Result<(Claim, LocalTime), Away> {
        let Standing::Beating {
            deadline, opens, ..
        } = self.standing
        else {
            return Err(Away::Lost);
        };
        if self.store_time(now).is_none_or(|store| store >= deadline) {
            return Err(Away::Late);
        }
        let claim = Claim {
            holder: self.holder,
            deadline,
            revision: self.revision,
        };
        Ok((claim, opens))
    }

    /// Returns a lower bound of the store's time.
    fn store_time(&self, now: LocalTime) -> Option<u64> {
        Some(now.0.saturating_add_signed(self.ahead?))
    }

    /// Returns whether a claim is of the present life. An answer to a claim of an earlier one counts as
    /// none: the store that gave it may be an old file.
    pub fn is_present(&self, claim: &Claim) -> bool {
        claim.holder == self.holder
    }

    /// Returns whether the removal of this session has not reached the store. This daemon does not
    /// ask for it then.
    pub fn is_removing(&self, name: Name) -> bool {
        self.removing.contains_key(&name)
    }

    /// Removes a session of this daemon's family. `reason` is written into its note; without one
    /// there is no note.
    pub fn remove(&mut self, name: Name, reason: Option<Reason>) -> Removal {
        self.remove_noted(name, reason.map(Note::from))
    }

    /// Removes a session of this daemon's family, and writes this note.
    pub fn remove_noted(&mut self, name: Name, note: Option<Note>) -> Removal {
        if self.removals.len() < WAITING_MAX {
            self.queue(name, note);
            return Removal::Queued;
        }
        // What this holder holds is not found again under another one. What others may hold stays in
        // the queue: takes, removals that are repeated, and those that a caller asked for.
        self.begin_life();
        self.standing = Standing::Lost;
        self.ahead = None;
        self.under_way = None;
        let mut kept = std::mem::take(&mut self.removals);
        self.removing.clear();
        kept.push_back((name, note));
        kept.retain(|(_, note)| match note.map(|note| note.reason) {
            None | Some(Reason::Removed | Reason::Revoked | Reason::Spent) => true,
            Some(Reason::Unclosed | Reason::FatalAlert | Reason::Withdrawn) => false,
        });
        for (name, note) in kept.into_iter().take(REMEMBERED_MAX) {
            self.queue(name, note);
        }
        Removal::Abandoned
    }

    fn queue(&mut self, name: Name, note: Option<Note>) {
        self.removals.push_back((name, note));
        *self.removing.entry(name).or_default() += 1;
    }

    /// Records that this daemon has taken a single-use session, or may have taken it: also if the
    /// answer did not come. `claim` is that of the find.
    pub fn took(&mut self, name: Name, claim: &Claim, now: LocalTime) {
        self.spent(name, None, claim, now);
    }

    /// Records that this daemon has spent the session of a ticket, or may have spent it, with this note.
    pub fn spent(&mut self, name: Name, note: Option<Note>, claim: &Claim, now: LocalTime) {
        let is_present =
            matches!(self.standing, Standing::Beating { first, .. } if claim.deadline >= first);
        if is_present && claim.holder == self.holder {
            self.remember(name, note, now);
        } else {
            // The store may have lost the take, and what it lost is being repeated already.
            self.queue(name, note);
        }
    }

    /// Ends a hold, whose connection was closed. A hold of an earlier life is over already.
    pub fn release(&mut self, by: Holder, name: Name, token: Token, now: LocalTime) {
        if by != self.holder {
            return;
        }
        if self.releases.len() >= RELEASES_MAX {
            self.releases.pop_front();
        }
        self.releases.push_back((now, name, token));
    }

    /// Sets the version of the revocations that this daemon knows.
    pub fn knows(&mut self, revision: u64) {
        self.revision = revision;
    }

    /// Records that the store has lost what it had, or that another store answers.
    ///
    /// Nothing that this daemon holds is found again: see the head of this module.
    pub fn lost(&mut self, now: LocalTime) {
        self.retry = now;
        self.begin_life();
        self.standing = Standing::Lost;
        self.ahead = None;
        // What the store acknowledged may be lost as well, also an answer that is still to come.
        self.under_way = None;
        // The newest first: a file lacks the last seconds.
        let older = std::mem::take(&mut self.removals);
        self.removing.clear();
        for (_, name, note) in std::mem::take(&mut self.ring).into_iter().rev() {
            self.queue(name, note);
        }
        for (name, note) in older {
            self.queue(name, note);
        }
    }

    /// Takes another holder. What the last one held is not found again.
    fn begin_life(&mut self) {
        self.lives += 1;
        self.holder = holder(&self.seed, self.bucket, self.lives);
        self.releases.clear();
    }

    /// Returns the next request, if one is due and none is under way.
    pub fn poll(&mut self, now: LocalTime) -> Option<(RequestId, Request)> {
        if self.under_way.is_some() || now < self.retry {
            return None;
        }
        self.forget();
        let (request, under_way) = self.next(now)?;
        self.sent += 1;
        let id = RequestId(self.sent);
        self.under_way = Some((id, under_way));
        Some((id, request))
    }

    fn next(&mut self, now: LocalTime) -> Option<(Request, UnderWay)> {
        if !self.removals.is_empty() {
            let entries: Vec<_> = self.removals.iter().take(ENTRIES_MAX).copied().collect();
            let count = entries.len();
            return Some((Request::Remove { entries }, UnderWay::Removals(count)));
        }
        let expected = match self.standing {
            Standing::Lost => Some(Expected::Any),
            Standing::Beating { deadline, next, .. } => {
                (now >= next).then_some(Expected::Deadline(deadline))
            }
        };
        if let Some(expected) = expected {
            let beat = |valid_until| Request::Beat {
                bucket: self.bucket,
                holder: self.holder,
                life: LIFE,
                expected,
                valid_until,
            };
            return Some(match self.store_time(now) {
                None => (beat(0), UnderWay::Probe),
                Some(store) => (beat(store + BEAT_VALID), UnderWay::Beat(now)),
            });
        }
        let (oldest, ..) = self.releases.front()?;
        if self.releases.len() < ENTRIES_MAX && now < oldest.after(RELEASE_WAIT) {
            return None;
        }
        let count = self.releases.len().min(ENTRIES_MAX);
        let holds: Vec<_> = self
            .releases
            .drain(..count)
            .map(|(_, name, token)| (name, token))
            .collect();
        let holder = self.holder;
        let under_way = UnderWay::Releases(holder, holds.clone());
        Some((Request::Release { holder, holds }, under_way))
    }

    /// Returns when [`Self::poll`] may have a request, if nothing else happens before. `None`: when
    /// the answer of the request that is under way has come.
    pub fn due(&self, now: LocalTime) -> Option<LocalTime> {
        if self.under_way.is_some() {
            return None;
        }
        let due = match (&self.standing, self.releases.front()) {
            _ if !self.removals.is_empty() || self.releases.len() >= ENTRIES_MAX => now,
            (Standing::Lost, _) => now,
            (Standing::Beating { next, .. }, Some((oldest, ..))) => {
                (*next).min(oldest.after(RELEASE_WAIT))
            }
            (Standing::Beating { next, .. }, None) => *next,
        };
        Some(due.max(self.retry))
    }

    /// Takes the answer of a request. Ignores it if the request is not under way any more. An answer
    /// that the request cannot have counts as none.
    pub fn answered(&mut self, id: RequestId, answer: Result<Answer, NoAnswer>, now: LocalTime) {
        let under_way = self.under_way.take_if(|(sent, _)| *sent == id);
        let is_beat = matches!(&under_way, Some((_, UnderWay::Beat(_))));
        match (under_way.map(|(_, under_way)| under_way), answer) {
            (Some(UnderWay::Removals(count)), Ok(Answer::Done(_))) => {
                for _ in 0..count {
                    let Some((name, note)) = self.removals.pop_front() else {
                        break;
                    };
                    if let Some(times) = self.removing.get_mut(&name) {
                        *times -= 1;
                        if *times == 0 {
                            self.removing.remove(&name);
                        }
                    }
                    // The note of a stored session need not be repeated.
                    let note = note.filter(|note| note.ticket_life.is_some());
                    self.remember(name, note, now);
                }
            }
            (
                Some(UnderWay::Probe | UnderWay::Beat(_)),
                Ok(Answer::Overdue {
                    now: Some(store),
                    revision: Some(_),
                }),
            ) => {
                self.ahead = Some(difference(store, now));
                if is_beat {
                    self.retry = now.after(BEAT_AGAIN);
                }
            }
            (
                Some(UnderWay::Beat(made)),
                Ok(Answer::Beaten {
                    now: store,
                    deadline,
                    ..
                }),
            ) => {
                let (opens, first) = match self.standing {
                    Standing::Lost => (now.after(QUARANTINE), deadline),
                    Standing::Beating { opens, first, .. } => (opens, first),
                };
                self.ahead = Some(difference(store, now));
                self.standing = Standing::Beating {
                    deadline,
                    first,
                    opens,
                    next: made.after(BEAT_EVERY),
                    acknowledged: now,
                };
            }
            (Some(UnderWay::Beat(_)), Ok(Answer::BeatLost { .. })) => {
                let again = matches!(self.standing, Standing::Lost);
                self.lost(now);
                // A store that refuses every heartbeat is not asked at its own speed.
                if again {
                    self.retry = now.after(RETRY);
                }
            }
            (Some(UnderWay::Releases(..)), Ok(Answer::Done(_))) | (None, _) => {}
            (Some(UnderWay::Releases(holder, holds)), _) => {
                self.retry = now.after(RETRY);
                if holder == self.holder {
                    for (name, token) in holds.into_iter().rev() {
                        self.releases.push_front((now, name, token));
                    }
                    self.releases.truncate(RELEASES_MAX);
                }
            }
            (Some(_), _) => self.retry = now.after(RETRY),
        }
    }

    /// Returns the request that ends the life of this daemon in the bucket. `server`: what the process of
    /// the store calls itself.
    pub fn resign(&self, server: &str) -> Request {
        Request::Resign {
            bucket: self.bucket,
            holder: self.holder,
            server: server.into(),
        }
    }

    /// Returns whether everything that the daemon decided has reached the store.
    pub fn is_flushed(&self) -> bool {
        self.removals.is_empty() && self.releases.is_empty() && self.under_way.is_none()
    }

    fn remember(&mut self, name: Name, note: Option<Note>, now: LocalTime) {
        self.forget();
        if self.ring.len() >= REMEMBERED_MAX {
            self.ring.pop_front();
        }
        self.ring.push_back((now, name, note));
    }

    /// Forgets removals from long before the last heartbeat. While there is none, nothing is
    /// forgotten: a store that is away for an hour may come back without its last second.
    fn forget(&mut self) {
        let Standing::Beating { acknowledged, .. } = self.standing else {
            return;
        };
        while let Some((at, ..)) = self.ring.front()
            && acknowledged.since(*at) > REMEMBERED
        {
            self.ring.pop_front();
        }
    }
}

/// Returns how far the store's clock was ahead when it answered. The answer took time, so this is a
/// lower bound.
fn difference(store: u64, now: LocalTime) -> i64 {
    let (store, now) = (i128::from(store), i128::from(now.0));
    i64::try_from(store - now).unwrap_or(i64::MAX)
}

/// Returns the holder of one life.
fn holder(seed: &Seed, bucket: Bucket, life: u64) -> Holder {
    let key = hmac::Key::new(hmac::HMAC_SHA256, &*seed.0);
    let mut context = hmac::Context::with_key(&key);
    context.update(&(bucket.index() as u64).to_be_bytes());
    context.update(&life.to_be_bytes());
    let tag = context.sign();
    let mut first = [0; 8];
    first.copy_from_slice(&tag.as_ref()[..8]);
    Holder(first)
}

#[cfg(test)]
mod tests;
