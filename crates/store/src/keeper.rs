//! The heartbeats of one daemon in one bucket, and the removals that must come before them.
//!
//! A keeper has at most one request under way. [`Keeper::poll`] returns the next one, and
//! [`Keeper::answered`] takes its answer. After a loss, answers to earlier requests count no more. A heartbeat is made only when the store has acknowledged
//! every removal that was decided before. So "alive" means "the store has all that this daemon knows
//! to be bad". While a removal cannot be delivered, the heartbeat lapses, and no daemon finds a
//! session that this one holds.
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
    script::{Answer, Claim, ENTRIES_MAX, Expected, Holder, Reason, Request, Token},
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
/// How late the store may run a put after it was made, in milliseconds. The daemon waits as long for
/// the answer, and then removes the session. So no put is run after its removal, even if the note of
/// the removal is lost.
pub const PUT_VALID: u64 = 50;
/// The time after a request that failed until the next one, in milliseconds.
const RETRY: u64 = 250;
/// How long a release waits for others, in milliseconds.
const RELEASE_WAIT: u64 = 20;
/// The most removals that wait, and the most that are remembered. A loss adds the second to the
/// first.
const REMOVALS_MAX: usize = 65_536;
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
    /// Releases. They are not repeated.
    Releases,
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
    removals: VecDeque<(Name, Option<Reason>)>,
    /// How often each name is in `removals`.
    removing: HashMap<Name, u32>,
    /// Sessions that this daemon has removed or taken, with the time, oldest first.
    ring: VecDeque<(LocalTime, Name)>,
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

    /// Returns the claim of a find.
    ///
    /// # Errors
    /// Why the find would miss.
    pub fn may_find(&self, now: LocalTime) -> Result<Claim, Away> {
        let (claim, opens) = self.claim(now)?;
        if now < opens {
            return Err(Away::Quarantine);
        }
        Ok(claim)
    }

    /// Returns the claim of a put, and the time of the store's clock until which it is valid.
    ///
    /// # Errors
    /// Why the put would be refused.
    pub fn may_put(&self, now: LocalTime) -> Result<(Claim, u64), Away> {
        let (claim, _) = self.claim(now)?;
        let store = self.store_time(now).ok_or(Away::Lost)?;
        Ok((claim, store.saturating_add(PUT_VALID)))
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

    /// Returns whether the removal of this session has not reached the store. This daemon does not
    /// ask for it then.
    pub fn is_removing(&self, name: Name) -> bool {
        self.removing.contains_key(&name)
    }

    /// Removes a session of this daemon's family. `reason` is written into its note; without one
    /// there is no note.
    pub fn remove(&mut self, name: Name, reason: Option<Reason>) -> Removal {
        if self.removals.len() < 2 * REMOVALS_MAX {
            self.queue(name, reason);
            return Removal::Queued;
        }
        // What this holder holds is not found again under another one. What others hold stays in the
        // queue: takes, and removals that are repeated.
        self.begin_life();
        self.standing = Standing::Lost;
        self.ahead = None;
        self.under_way = None;
        let mut kept = std::mem::take(&mut self.removals);
        self.removing.clear();
        kept.retain(|(_, reason)| reason.is_none());
        for (name, reason) in kept.into_iter().take(REMOVALS_MAX) {
            self.queue(name, reason);
        }
        Removal::Abandoned
    }

    fn queue(&mut self, name: Name, reason: Option<Reason>) {
        self.removals.push_back((name, reason));
        *self.removing.entry(name).or_default() += 1;
    }

    /// Records that this daemon has taken a single-use session, or may have taken it: also if the
    /// answer did not come. `claim` is that of the find.
    pub fn took(&mut self, name: Name, claim: &Claim, now: LocalTime) {
        let is_present =
            matches!(self.standing, Standing::Beating { first, .. } if claim.deadline >= first);
        if is_present && claim.holder == self.holder {
            self.remember(name, now);
        } else {
            // The store may have lost the take, and what it lost is being repeated already.
            self.queue(name, None);
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
        self.begin_life();
        self.standing = Standing::Lost;
        self.ahead = None;
        self.retry = now;
        // What the store acknowledged may be lost as well, also an answer that is still to come.
        self.under_way = None;
        // The newest first: a file lacks the last seconds.
        let older = std::mem::take(&mut self.removals);
        self.removing.clear();
        for (_, name) in std::mem::take(&mut self.ring).into_iter().rev() {
            self.queue(name, None);
        }
        for (name, reason) in older {
            self.queue(name, reason);
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
        let holds = self
            .releases
            .drain(..count)
            .map(|(_, name, token)| (name, token))
            .collect();
        let holder = self.holder;
        Some((Request::Release { holder, holds }, UnderWay::Releases))
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
        match (under_way.map(|(_, under_way)| under_way), answer) {
            (Some(UnderWay::Removals(count)), Ok(Answer::Done(_))) => {
                for _ in 0..count {
                    let Some((name, _)) = self.removals.pop_front() else {
                        break;
                    };
                    if let Some(times) = self.removing.get_mut(&name) {
                        *times -= 1;
                        if *times == 0 {
                            self.removing.remove(&name);
                        }
                    }
                    self.remember(name, now);
                }
            }
            (
                Some(UnderWay::Probe | UnderWay::Beat(_)),
                Ok(Answer::Overdue {
                    now: Some(store),
                    revision: Some(_),
                }),
            ) => self.ahead = Some(difference(store, now)),
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
            (Some(UnderWay::Beat(_)), Ok(Answer::BeatLost { .. })) => self.lost(now),
            (Some(UnderWay::Releases) | None, _) => {}
            (Some(_), _) => self.retry = now.after(RETRY),
        }
    }

    /// Returns the request that ends the life of this daemon in the bucket.
    pub fn resign(&self) -> Request {
        Request::Resign {
            bucket: self.bucket,
            holder: self.holder,
        }
    }

    /// Returns whether everything that the daemon decided has reached the store.
    pub fn is_flushed(&self) -> bool {
        self.removals.is_empty() && self.releases.is_empty() && self.under_way.is_none()
    }

    fn remember(&mut self, name: Name, now: LocalTime) {
        self.forget();
        if self.ring.len() >= REMOVALS_MAX {
            self.ring.pop_front();
        }
        self.ring.push_back((now, name));
    }

    /// Forgets removals from long before the last heartbeat. While there is none, nothing is
    /// forgotten: a store that is away for an hour may come back without its last second.
    fn forget(&mut self) {
        let Standing::Beating { acknowledged, .. } = self.standing else {
            return;
        };
        while let Some((at, _)) = self.ring.front()
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
mod tests {
    use tls_sessiond_types::Role;

    use super::*;
    use crate::layout::NameKey;

    /// The store's clock is this far ahead in these tests.
    const AHEAD: u64 = 1_000_000;

    fn at(millis: u64) -> LocalTime {
        LocalTime(10_000 + millis)
    }

    fn name(number: usize) -> Name {
        NameKey::new(&[1; 32]).name(b"scope", Role::Server, &number.to_be_bytes())
    }

    fn keeper() -> Keeper {
        Keeper::new(name(0).bucket(), Seed::new(Zeroizing::new([7; 32])))
    }

    /// Answers a probe or a beat as the store does.
    fn beaten(request: &Request, now: LocalTime) -> Answer {
        let Request::Beat {
            life, valid_until, ..
        } = request
        else {
            panic!("not a beat: {request:?}")
        };
        let now = now.0 + AHEAD;
        if now > *valid_until {
            return Answer::Overdue {
                now: Some(now),
                revision: Some(0),
            };
        }
        Answer::Beaten {
            now,
            deadline: now + life,
            revision: 0,
        }
    }

    fn alive(now: LocalTime) -> Keeper {
        let mut keeper = keeper();
        for _ in 0..2 {
            beat(&mut keeper, now);
        }
        keeper
    }

    /// Answers the next request, which must be a probe or a beat.
    fn beat(keeper: &mut Keeper, now: LocalTime) -> Request {
        let (id, request) = keeper.poll(now).unwrap();
        keeper.answered(id, Ok(beaten(&request, now)), now);
        request
    }

    #[test]
    fn first_heartbeat_comes_after_the_time_is_known() {
        let mut keeper = keeper();
        assert_eq!(keeper.may_find(at(0)), Err(Away::Lost));
        assert_eq!(keeper.may_put(at(0)), Err(Away::Lost));
        let (id, probe) = keeper.poll(at(0)).unwrap();
        assert!(
            matches!(probe, Request::Beat { valid_until: 0, .. }),
            "{probe:?}"
        );
        assert_eq!(keeper.poll(at(1)), None, "one request at a time");
        keeper.answered(id, Ok(beaten(&probe, at(5))), at(5));
        let (id, first) = keeper.poll(at(5)).unwrap();
        keeper.answered(id, Ok(beaten(&first, at(10))), at(10));
        assert_eq!(keeper.may_find(at(10)), Err(Away::Quarantine));
        let (claim, valid_until) = keeper.may_put(at(10)).unwrap();
        assert_eq!(claim.deadline, at(10).0 + AHEAD + LIFE);
        assert_eq!(valid_until, at(10).0 + AHEAD + PUT_VALID);
        assert_eq!(keeper.poll(at(500)), None);
        for second in 1..=3 {
            beat(&mut keeper, at(5 + second * BEAT_EVERY));
        }
        assert!(keeper.may_find(at(3_100)).is_ok());
        assert_eq!(keeper.may_find(at(3_005 + LIFE)), Err(Away::Late));
    }

    #[test]
    fn no_heartbeat_is_made_before_the_removals_are_acknowledged() {
        let mut keeper = alive(at(0));
        for number in 0..100 {
            keeper.remove(name(number), Some(Reason::Unclosed));
        }
        assert!(keeper.is_removing(name(99)));
        let mut now = at(BEAT_EVERY);
        let (mut id, first) = keeper.poll(now).unwrap();
        assert!(
            matches!(&first, Request::Remove { entries } if entries.len() == ENTRIES_MAX),
            "{first:?}"
        );
        // The answer does not come. The same removals are sent again, and nothing else.
        for _ in 0..5 {
            keeper.answered(id, Err(NoAnswer), now);
            assert_eq!(keeper.poll(now), None);
            now = now.after(RETRY);
            let again = keeper.poll(now).unwrap();
            assert_eq!(again.1, first);
            keeper.answered(id, Ok(Answer::Done(64)), now);
            assert!(keeper.is_removing(name(0)), "an answer that came too late");
            id = again.0;
        }
        keeper.answered(id, Ok(Answer::Done(64)), now);
        assert!(!keeper.is_removing(name(0)) && keeper.is_removing(name(99)));
        let (id, second) = keeper.poll(now).unwrap();
        assert!(matches!(&second, Request::Remove { entries } if entries.len() == 36));
        keeper.answered(id, Ok(Answer::Done(36)), now);
        assert!(matches!(keeper.poll(now), Some((_, Request::Beat { .. }))));
    }

    #[test]
    fn removals_of_the_last_minute_are_repeated_after_a_loss() {
        let mut keeper = alive(at(0));
        let claim = keeper.may_put(at(0)).unwrap().0;
        keeper.took(name(1), &claim, at(0));
        keeper.took(name(2), &claim, at(30_000));
        keeper.remove(name(3), Some(Reason::Unclosed));
        let (id, _) = keeper.poll(at(30_000)).unwrap();
        keeper.answered(id, Ok(Answer::Done(1)), at(30_000));
        beat(&mut keeper, at(30_000));
        let holder = keeper.holder();
        keeper.lost(at(61_000));
        assert_eq!(keeper.may_put(at(61_000)), Err(Away::Lost));
        // The store is lost twice: before its answer comes, and after it.
        for _ in 0..2 {
            let (id, again) = keeper.poll(at(61_000)).unwrap();
            let Request::Remove { entries } = &again else {
                panic!("{again:?}")
            };
            let repeated: Vec<_> = entries.iter().map(|(name, _)| *name).collect();
            assert!(repeated.contains(&name(2)) && repeated.contains(&name(3)));
            keeper.lost(at(61_000));
            keeper.answered(id, Ok(Answer::Done(0)), at(61_000));
            let (id, again) = keeper.poll(at(61_000)).unwrap();
            assert!(matches!(&again, Request::Remove { .. }), "{again:?}");
            keeper.answered(id, Ok(Answer::Done(0)), at(61_000));
            assert!(!keeper.is_removing(name(3)));
            keeper.lost(at(61_000));
            assert!(keeper.is_removing(name(3)));
        }
        let (id, _) = keeper.poll(at(61_000)).unwrap();
        keeper.answered(id, Ok(Answer::Done(0)), at(61_000));
        beat(&mut keeper, at(61_000));
        let first = beat(&mut keeper, at(61_000));
        assert!(matches!(
            first,
            Request::Beat {
                expected: Expected::Any,
                ..
            }
        ));
        assert_ne!(
            keeper.holder(),
            holder,
            "the store may be an old file, and have what this holder removed long ago"
        );
        assert_eq!(keeper.may_find(at(61_000)), Err(Away::Quarantine));
        beat(&mut keeper, at(62_500));
        assert!(keeper.may_find(at(63_000)).is_ok());
        // The answer of a take comes after the loss. The store may have lost the take.
        keeper.took(name(4), &claim, at(63_000));
        assert!(keeper.is_removing(name(4)));
        let claim = keeper.may_find(at(63_000)).unwrap();
        keeper.took(name(5), &claim, at(63_000));
        assert!(!keeper.is_removing(name(5)));
    }

    #[test]
    fn newest_removals_are_repeated_first() {
        let mut keeper = alive(at(0));
        let claim = keeper.may_put(at(0)).unwrap().0;
        for number in 0..100 {
            keeper.took(name(number), &claim, at(0));
        }
        keeper.remove(name(200), Some(Reason::Unclosed));
        keeper.lost(at(0));
        let (_, Request::Remove { entries }) = keeper.poll(at(0)).unwrap() else {
            panic!("no removal")
        };
        let newest: Vec<_> = (36..100).rev().map(|number| (name(number), None)).collect();
        assert_eq!(entries, newest);
    }

    #[test]
    fn nothing_is_forgotten_while_the_store_is_away() {
        let mut keeper = alive(at(0));
        let claim = keeper.may_put(at(0)).unwrap().0;
        keeper.took(name(1), &claim, at(0));
        for second in 1..200 {
            if let Some((id, _)) = keeper.poll(at(1_000 * second)) {
                keeper.answered(id, Err(NoAnswer), at(1_000 * second));
            }
        }
        keeper.lost(at(200_000));
        assert!(keeper.is_removing(name(1)));
        // A minute of heartbeats later it is forgotten.
        let mut keeper = alive(at(0));
        keeper.took(name(1), &claim, at(0));
        for second in 1..=62 {
            beat(&mut keeper, at(1_000 * second));
        }
        assert_eq!(keeper.poll(at(62_001)), None);
        assert_eq!(keeper.ring.len(), 0);
    }

    #[test]
    fn life_is_abandoned_when_too_much_waits() {
        let mut keeper = alive(at(0));
        let first = keeper.holder();
        let claim = keeper.may_put(at(0)).unwrap().0;
        for number in 0..=REMOVALS_MAX {
            keeper.took(name(number), &claim, at(0));
        }
        assert_eq!(keeper.ring.len(), REMOVALS_MAX);
        keeper.lost(at(0));
        let second = keeper.holder();
        assert_ne!(second, first);
        for number in 0..REMOVALS_MAX {
            let reason = Some(Reason::Unclosed);
            assert_eq!(keeper.remove(name(number), reason), Removal::Queued);
        }
        assert_eq!(
            keeper.remove(name(0), Some(Reason::Unclosed)),
            Removal::Abandoned
        );
        assert_ne!(keeper.holder(), second);
        assert_eq!(
            keeper.removals.len(),
            REMOVALS_MAX,
            "takes do not depend on the holder"
        );
        assert!(keeper.removals.iter().all(|(_, reason)| reason.is_none()));
        assert_eq!(keeper.may_find(at(0)), Err(Away::Lost));
    }

    #[test]
    fn releases_go_together_and_only_for_the_present_life() {
        let mut keeper = alive(at(0));
        let holder = keeper.holder();
        let (one, two) = (keeper.token(), keeper.token());
        assert_ne!(one, two);
        keeper.release(holder, name(1), one, at(0));
        keeper.release(Holder([0; 8]), name(3), one, at(0));
        assert_eq!(keeper.poll(at(1)), None);
        assert_eq!(keeper.due(at(1)), Some(at(RELEASE_WAIT)));
        keeper.release(holder, name(2), two, at(10));
        let (id, sent) = keeper.poll(at(RELEASE_WAIT)).unwrap();
        let holds = vec![(name(1), one), (name(2), two)];
        assert_eq!(sent, Request::Release { holder, holds });
        keeper.answered(id, Err(NoAnswer), at(RELEASE_WAIT));
        assert!(keeper.is_flushed(), "a release is not repeated");
        for _ in 0..=RELEASES_MAX {
            keeper.release(holder, name(1), one, at(30));
        }
        assert_eq!(keeper.releases.len(), RELEASES_MAX);
    }

    #[test]
    fn debug_form_shows_no_seed() {
        assert!(format!("{:?}", keeper()).contains("Seed(…)"));
    }

    #[test]
    fn heartbeat_that_came_too_late_is_made_again_with_the_right_time() {
        let mut keeper = alive(at(0));
        // The store's clock was set forward by a minute.
        let (id, beat) = keeper.poll(at(BEAT_EVERY)).unwrap();
        let told = Answer::Overdue {
            now: Some(at(BEAT_EVERY).0 + AHEAD + 60_000),
            revision: Some(0),
        };
        keeper.answered(id, Ok(told), at(BEAT_EVERY));
        let (_, again) = keeper.poll(at(BEAT_EVERY)).unwrap();
        let validity = |request: &Request| match request {
            Request::Beat { valid_until, .. } => *valid_until,
            _ => 0,
        };
        assert_eq!(validity(&again), validity(&beat) + 60_000);
        assert_eq!(keeper.may_find(at(BEAT_EVERY)), Err(Away::Late));
    }
}
