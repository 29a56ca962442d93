//! Lookups in the shared store.

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use tls_sessiond_store::{
    keeper::LocalTime,
    layout::Name,
    script::{Answer, Claim, Head, Mode, Reason, Request, Token},
};

use super::{Failure, FleetStore, Hold, Refusal, Value};
use crate::{
    clock::Timestamp,
    session::{ResumeCriteria, SessionInfo},
};

/// What a lookup is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A lookup that belongs to no connection. Takes a single-use session, and reads any other.
    Lookup,
    /// A handshake of the daemon's engine. Takes a single-use session, and holds any other.
    Resume,
    /// A connection whose worker names the session. Holds it.
    Join,
    /// An explanation. Reads the session, and changes nothing.
    Peek,
}

/// Why a lookup found nothing in the shared store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FindMiss {
    /// The store is away, or did not answer in time.
    Away,
    /// The store does not have it.
    Unknown,
    /// It was removed, for this reason as far as it is known.
    Gone(Option<Reason>),
    /// It does not match.
    Scope,
    /// A daemon that holds it is not alive.
    HolderLost,
    /// What the store has does not open.
    Unopened,
}

/// A lookup that is to be sent.
///
/// Dropping it without its answer counts as an answer that was lost: the session may be taken or
/// held.
pub struct Find {
    store: Arc<FleetStore>,
    name: Name,
    claim: Claim,
    token: Token,
    purpose: Purpose,
    request: Request,
    is_settled: bool,
}

/// A session that the store has.
pub struct Hit {
    pub(crate) name: Name,
    pub(crate) value: Value<'static>,
    pub(crate) head: Head,
    /// How many other connections hold it.
    pub(crate) holds: u8,
    is_taken: bool,
    /// The hold that the lookup made.
    hold: Option<(Arc<FleetStore>, Name, Claim, Token)>,
}

impl FleetStore {
    /// Makes a lookup. `terms`: what it must match, for a lookup and for a handshake.
    pub(crate) fn find(
        self: &Arc<Self>,
        name: Name,
        purpose: Purpose,
        terms: Option<&ResumeCriteria<'_>>,
        now: Timestamp,
    ) -> Result<Find, Refusal> {
        let mode = match (purpose, terms) {
            (Purpose::Lookup, Some(terms)) => Mode::Lookup(self.criteria(terms)),
            (Purpose::Resume, Some(terms)) => Mode::Resume(self.criteria(terms)),
            (Purpose::Join, _) => Mode::Join,
            (Purpose::Lookup | Purpose::Resume | Purpose::Peek, _) => Mode::Peek,
        };
        let (claim, valid_until, token) = self.may_find(name, now)?;
        Ok(Find {
            store: Arc::clone(self),
            name,
            claim,
            token,
            purpose,
            request: Request::Find {
                name,
                claim,
                token,
                mode,
                valid_until,
            },
            is_settled: false,
        })
    }
}

impl Find {
    /// Returns the request to send.
    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Takes the answer.
    pub(crate) fn answered(
        mut self,
        answer: Result<Answer, Failure>,
        now: Timestamp,
    ) -> Result<Hit, FindMiss> {
        self.is_settled = true;
        self.store.note(self.name, &self.claim, &answer, now);
        match answer {
            Ok(Answer::Found {
                head,
                holds,
                sealed,
            }) => self.found(head, holds, &sealed, now),
            Ok(Answer::None) => Err(FindMiss::Unknown),
            Ok(Answer::Gone { reason, .. }) => Err(FindMiss::Gone(reason)),
            Ok(Answer::Scope) => Err(FindMiss::Scope),
            Ok(Answer::HolderLost) => Err(FindMiss::HolderLost),
            Ok(Answer::Malformed) => {
                self.count_unopened();
                Err(FindMiss::Unopened)
            }
            Ok(Answer::Refused(_) | Answer::Full | Answer::Overdue { .. })
            | Err(Failure::NotRun) => Err(FindMiss::Away),
            Ok(_) | Err(Failure::NoAnswer) => {
                self.outcome_unknown(now);
                Err(FindMiss::Away)
            }
        }
    }

    fn found(&self, head: Head, holds: u8, sealed: &[u8], now: Timestamp) -> Result<Hit, FindMiss> {
        let may_take = matches!(self.purpose, Purpose::Lookup | Purpose::Resume);
        let is_taken = may_take && head.single_use;
        let is_held = match self.purpose {
            Purpose::Resume => !is_taken,
            Purpose::Join => true,
            Purpose::Lookup | Purpose::Peek => false,
        };
        let mut keeper = self.store.part(self.name.bucket()).keeper.lock();
        // The store has lost what it had since the lookup was made, so this answer may be of an old
        // file.
        if !keeper.is_present(&self.claim) {
            drop(keeper);
            self.outcome_unknown(now);
            return Err(FindMiss::Away);
        }
        // A connection that held it here may have ended while the lookup was under way.
        let is_removing = keeper.is_removing(self.name);
        if is_taken {
            keeper.took(self.name, &self.claim, LocalTime(now.as_millis()));
        }
        drop(keeper);
        let entry = self.store.layout().entry(self.name);
        let opened = self.store.keys().open(&entry, self.name, &head, sealed);
        let refused = match opened.ok().and_then(|bytes| Value::decode(&bytes)) {
            _ if is_removing => FindMiss::Gone(None),
            // The script has checked that, but the store may not have run the script.
            Some(_) if !self.fits(&head) => FindMiss::Scope,
            Some(value) => {
                return Ok(Hit {
                    name: self.name,
                    value,
                    head,
                    holds,
                    is_taken,
                    hold: is_held
                        .then(|| (Arc::clone(&self.store), self.name, self.claim, self.token)),
                });
            }
            None => {
                self.count_unopened();
                FindMiss::Unopened
            }
        };
        if is_held {
            self.release(now);
        }
        Err(refused)
    }

    fn fits(&self, head: &Head) -> bool {
        let Request::Find {
            mode: Mode::Lookup(criteria) | Mode::Resume(criteria),
            ..
        } = &self.request
        else {
            return true;
        };
        head.fit == criteria.fit
            && criteria.versions.contains(&head.version)
            && criteria
                .cipher_suite
                .is_none_or(|suite| suite == head.cipher_suite)
    }

    fn count_unopened(&self) {
        let counter = &self.store.counters.unopened;
        counter.fetch_add(1, Ordering::Relaxed);
    }

    fn release(&self, now: Timestamp) {
        let mut keeper = self.store.part(self.name.bucket()).keeper.lock();
        let at = LocalTime(now.as_millis());
        keeper.release(self.claim.holder, self.name, self.token, at);
        drop(keeper);
        self.store.wake();
    }

    /// Records that the session may be taken or held.
    fn outcome_unknown(&self, now: Timestamp) {
        if matches!(self.purpose, Purpose::Lookup | Purpose::Resume) {
            let mut keeper = self.store.part(self.name.bucket()).keeper.lock();
            keeper.took(self.name, &self.claim, LocalTime(now.as_millis()));
        }
        if matches!(self.purpose, Purpose::Resume | Purpose::Join) {
            self.release(now);
        }
    }
}

impl Hit {
    /// Returns whether the lookup has taken the session out of the store.
    pub(crate) fn is_taken(&self) -> bool {
        self.is_taken
    }

    /// Returns the hold that the lookup made, with the public part of the session.
    pub(crate) fn into_hold(self, facts: SessionInfo) -> Option<Hold> {
        let (store, name, claim, token) = self.hold?;
        let hold = Hold::new(&store, name, claim.holder, token, facts, true);
        Some(hold)
    }
}

impl fmt::Debug for Find {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Find")
            .field("name", &self.name)
            .field("purpose", &self.purpose)
            .finish_non_exhaustive()
    }
}

impl Drop for Find {
    fn drop(&mut self) {
        if !self.is_settled {
            let latest = Timestamp::from_millis(self.store.latest().0);
            self.outcome_unknown(latest);
        }
    }
}
