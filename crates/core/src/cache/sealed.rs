//! Sessions that are sealed in the tickets of their clients: the same policy without storing them.
//!
//! A ticket has all that a lookup checks. So the cache has no sealed session, only the
//! handles of those that are not good any more.

use std::{sync::Arc, time::Duration};

use tls_sessiond_store::script::{Holder, Note, Reason};
use tls_sessiond_types::Version;

pub use super::handles::Run;
use super::{Ask, CLOCKS_DIFFER_MAX, Cache, Found, Look, NotStored, handles::NotAdmitted};
use crate::{
    clock::{Now, Timestamp},
    fleet::{Refusal, reason},
    session::{
        Attributes, LIFETIME_MAX, Miss, NewSession, RemovalReason, ResumeCriteria, Session,
        SessionId, SessionInfo,
        events::EventKind,
        sealing::{HANDLE_BYTES, Handle},
    },
    sync::Ordering,
};

/// A sealed session, as its ticket has it.
pub struct OpenedSession {
    /// The run that the ticket is bound to.
    pub run: Run,
    /// The session. Its lifetime is of no effect.
    pub session: NewSession,
    /// Milliseconds from the authentication until the handshake made the session.
    pub created_after: u32,
    /// Milliseconds from the authentication until the session expires.
    pub lives: u32,
    /// Milliseconds from the authentication until the last ticket of its handle expires.
    pub handle_lives: u32,
    /// The daemon that sealed it, where a store has the list of bad handles.
    pub sealer: Holder,
}

impl Cache {
    /// Returns the run that tickets are bound to when they are sealed. `None`: the system has no random
    /// numbers.
    pub fn run(&self) -> Option<Run> {
        match self.fleet() {
            // The list is in the store, and lasts as long as the life of the daemon that sealed a ticket.
            Some(_) => Some(Run::default()),
            None => self.refused.run(),
        }
    }

    /// Returns what a ticket says of the daemon that seals it. `None`: the store that has the list of bad
    /// handles is away.
    pub fn sealer(&self, id: &SessionId, now: Timestamp) -> Option<Holder> {
        match self.fleet() {
            Some(fleet) => fleet.sealer(self.name(fleet, id), now).ok(),
            None => Some(Holder([0; 8])),
        }
    }

    /// Returns what a ticket of this cache is bound to in this run: its scope and its role.
    pub fn bound(&self, run: &Run) -> Vec<u8> {
        [run, &[self.role as u8][..], &self.scope].concat()
    }

    /// Makes the session that is to be sealed. `new.id` is its handle. `lives_max`: its lifetime is no
    /// longer than this many milliseconds from the authentication.
    ///
    /// # Errors
    /// Returns [`NotStored`] with the reason. The handshake goes on without a ticket.
    pub fn to_seal(
        &self,
        new: NewSession,
        lives_max: Option<u32>,
        now: Now,
    ) -> Result<Session, NotStored> {
        self.ledger.tell_time(now.at);
        let mut session = self.session(new, now)?;
        if let Some(most) = lives_max {
            session.facts.lives = session.facts.lives.min(most);
        }
        if session.told() > self.session_bytes_max.load(Ordering::Relaxed) {
            return Err(NotStored::TooLarge);
        }
        if self.revocations.cover(session.facts()) {
            return Err(NotStored::Revoked);
        }
        Ok(session)
    }

    /// Tells watchers of a session whose ticket a client has now.
    pub fn sealed(&self, session: &SessionInfo, now: Now) {
        let watchers = &self.ledger.watchers;
        watchers.publish_facts(session, EventKind::Added, now.at);
    }

    /// Returns the session of a ticket that has opened, if it matches `terms`. Puts a single-use session
    /// on the list. Where a store has the list, that is asked.
    pub fn admit(
        self: &Arc<Self>,
        opened: OpenedSession,
        terms: &ResumeCriteria<'_>,
        now: Now,
    ) -> Look {
        self.tell_time(now.at);
        let (run, sealer) = (opened.run, opened.sealer);
        let lives = Duration::from_millis(opened.handle_lives.into());
        let until = opened.session.authenticated.after(lives);
        let account = Arc::clone(&opened.session.account);
        let session = match self.checked(opened, terms, now) {
            Ok(session) => session,
            Err(miss) => return Look::Done(Err(miss)),
        };
        let Some(fleet) = self.fleet() else {
            return Look::Done(self.admit_here(&run, session, until, now));
        };
        let facts = session.facts();
        let asked = fleet.look_at_ticket(
            self.name(fleet, &facts.id),
            sealer,
            facts.kind.single_use,
            life(until, now.at),
            now.at,
        );
        match asked {
            Ok(look) => Look::Ask(Box::new(Ask::of_ticket(
                self, account, look, session, until,
            ))),
            Err(Refusal::Away) => Look::Done(Err(Miss::StoreUnavailable)),
            Err(Refusal::Removing) => Look::Done(Err(Miss::Removed)),
        }
    }

    /// Makes the session of a ticket, and checks all that the ticket has.
    fn checked(
        &self,
        opened: OpenedSession,
        terms: &ResumeCriteria<'_>,
        now: Now,
    ) -> Result<Session, Miss> {
        let OpenedSession {
            session: new,
            created_after,
            lives,
            ..
        } = opened;
        let Some(id) = new.id.clone() else {
            return Err(Miss::Unknown);
        };
        let secret = new.secret;
        let kind = Attributes {
            role: self.role,
            version: new.version,
            cipher_suite: new.cipher_suite,
            server_name: new.server_name,
            format: new.format,
            binding: new.binding,
            single_use: new.version == Version::Tls13,
            account: new.account,
            peer: new.peer,
        };
        if !kind.fits(terms) {
            return Err(Miss::Scope);
        }
        let facts = SessionInfo {
            kind: self.ledger.kinds.intern(kind, &id),
            id,
            authenticated: new.authenticated,
            created_after,
            lives,
        };
        let session = Session::new(facts, secret);
        self.still_good(&session, now).map(|()| session)
    }

    /// Returns whether a session has neither expired nor is revoked.
    fn still_good(&self, session: &Session, now: Now) -> Result<(), Miss> {
        if session.expired(now) {
            return Err(Miss::Expired);
        }
        match self.revocations.cover(session.facts()) {
            true => Err(Miss::Revoked),
            false => Ok(()),
        }
    }

    /// Admits a session by the list of this daemon.
    fn admit_here(
        &self,
        run: &Run,
        session: Session,
        until: Timestamp,
        now: Now,
    ) -> Result<Found, Miss> {
        let facts = session.facts();
        let handle = handle(&facts.id).ok_or(Miss::Unknown)?;
        let spent_until = facts.kind.single_use.then_some(until);
        match self.refused.admit(run, &handle, spent_until) {
            Ok(()) => Ok(self.admitted(session, until, now)),
            Err(NotAdmitted::OtherRun) => Err(Miss::Unknown),
            Err(NotAdmitted::Listed) => {
                let tombstones = &self.ledger.tombstones;
                let tombstone = tombstones.find(self.group, self.role, &facts.id);
                Err(tombstone.map_or(Miss::Removed, |tombstone| tombstone.miss()))
            }
        }
    }

    /// Admits a session by the list of the store.
    pub(super) fn admit_shared(
        &self,
        session: Session,
        until: Timestamp,
        now: Now,
    ) -> Result<Found, Miss> {
        self.still_good(&session, now)?;
        Ok(self.admitted(session, until, now))
    }

    fn admitted(&self, session: Session, until: Timestamp, now: Now) -> Found {
        let facts = session.facts();
        let watchers = &self.ledger.watchers;
        watchers.publish_facts(facts, EventKind::Hit, now.at);
        if facts.kind.single_use {
            self.ledger
                .departed_from_fleet(self.group, facts, RemovalReason::Taken);
        }
        Found::sealed(Arc::new(session), until)
    }

    /// Removes a sealed session: its ticket is not resumed any more. Returns whether it was good.
    ///
    /// `until`: when the last of its tickets expires.
    pub fn withdraw_sealed(
        &self,
        session: &SessionInfo,
        until: Timestamp,
        why: RemovalReason,
    ) -> bool {
        let now = self.ledger.latest();
        let Some(handle) = handle(&session.id).filter(|_| until > now) else {
            return false;
        };
        let removed = match self.fleet() {
            None => self.refused.refuse(&handle, until),
            Some(fleet) => {
                let note = Note {
                    reason: reason(why).unwrap_or(Reason::Removed),
                    ticket_life: Some(life(until, now)),
                };
                fleet.remove_noted(self.name(fleet, &session.id), note);
                true
            }
        };
        if removed {
            self.ledger.departed_from_fleet(self.group, session, why);
        }
        removed
    }

    /// Removes the sealed session with this id, if there is one. Returns whether the id can be that of a
    /// sealed session and was not removed before. Not where a store has the list: see [`Self::removal`].
    pub fn remove_sealed(&self, id: &SessionId, now: Now) -> bool {
        if self.fleet().is_some() {
            return false;
        }
        // The ticket is elsewhere, so only the longest lifetime is known.
        let until = now.at.after(LIFETIME_MAX);
        handle(id).is_some_and(|handle| self.refused.refuse(&handle, until))
    }

    /// Returns how many handles of sealed sessions are remembered because their tickets are not good any
    /// more.
    pub fn refused_handles(&self) -> usize {
        self.refused.len()
    }

    /// Returns how many handles there is room for.
    pub fn refused_handles_max(&self) -> usize {
        self.refused.most()
    }

    /// Returns whether there was no room for another handle since the last call, so that no ticket was
    /// good any more.
    pub fn take_overflow(&self) -> bool {
        self.refused.take_overflow()
    }

    pub(super) fn forget_handles(&self, now: Timestamp) {
        self.refused.forget(now);
    }
}

/// Returns how long a store has to know that a ticket is bad which expires at `until`, in milliseconds: also
/// daemons whose clocks are behind must find it expired then.
fn life(until: Timestamp, now: Timestamp) -> u64 {
    let life = until.since(now) + CLOCKS_DIFFER_MAX;
    u64::try_from(life.as_millis()).unwrap_or(u64::MAX)
}

/// Returns whether the id can be that of a sealed session.
pub(super) fn may_be_sealed(id: &SessionId) -> bool {
    handle(id).is_some()
}

/// Returns the handle of a sealed session. `None`: no sealed session has this id.
fn handle(id: &SessionId) -> Option<Handle> {
    const _: () = assert!(HANDLE_BYTES == 16, "SessionId::new takes it");
    id.as_bytes().try_into().ok()
}
