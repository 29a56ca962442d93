//! Sessions that are sealed in the tickets of their clients: the same policy without storing them.
//!
//! A ticket has all that a lookup checks. So the cache has no sealed session, only the
//! handles of those that are not good any more.

use std::sync::Arc;

use tls_sessiond_types::Version;

pub use super::handles::Run;
use super::{Cache, Found, NotStored, handles::NotAdmitted};
use crate::{
    clock::{Now, Timestamp},
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
}

impl Cache {
    /// Returns the run that tickets are bound to when they are sealed. `None`: the system has no random
    /// numbers.
    pub fn run(&self) -> Option<Run> {
        self.refused.run()
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
    /// on the list.
    ///
    /// # Errors
    /// Returns [`Miss`] with the reason where it may not be resumed.
    pub fn admit(
        &self,
        opened: OpenedSession,
        terms: &ResumeCriteria<'_>,
        now: Now,
    ) -> Result<Found, Miss> {
        self.tell_time(now.at);
        let OpenedSession {
            run,
            session: new,
            created_after,
            lives,
        } = opened;
        let Some(id) = new.id.clone() else {
            return Err(Miss::Unknown);
        };
        let Some(handle) = handle(&id) else {
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
        if facts.expired(now) {
            return Err(Miss::Expired);
        }
        if self.revocations.cover(&facts) {
            return Err(Miss::Revoked);
        }
        let single_use = facts.kind.single_use;
        let spent_until = single_use.then(|| facts.expires());
        match self.refused.admit(&run, &handle, spent_until) {
            Ok(()) => {}
            Err(NotAdmitted::OtherRun) => return Err(Miss::Unknown),
            Err(NotAdmitted::Listed) => {
                let tombstone = self
                    .ledger
                    .tombstones
                    .find(self.group, self.role, &facts.id);
                return Err(tombstone.map_or(Miss::Removed, |tombstone| tombstone.miss()));
            }
        }
        let watchers = &self.ledger.watchers;
        watchers.publish_facts(&facts, EventKind::Hit, now.at);
        if single_use {
            self.ledger
                .departed_from_fleet(self.group, &facts, RemovalReason::Taken);
        }
        Ok(Found::sealed(Arc::new(Session::new(facts, secret))))
    }

    /// Removes a sealed session: its ticket is not resumed any more. Returns whether it was good.
    pub fn withdraw_sealed(&self, session: &SessionInfo, reason: RemovalReason) -> bool {
        let expires = session.expires();
        let Some(handle) = handle(&session.id).filter(|_| expires > self.ledger.latest()) else {
            return false;
        };
        let removed = self.refused.refuse(&handle, expires);
        if removed {
            self.ledger.departed_from_fleet(self.group, session, reason);
        }
        removed
    }

    /// Removes the sealed session with this id, if there is one. Returns whether the id can be that of a
    /// sealed session and was not removed before.
    pub fn remove_sealed(&self, id: &SessionId, now: Now) -> bool {
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

/// Returns the handle of a sealed session. `None`: no sealed session has this id.
fn handle(id: &SessionId) -> Option<Handle> {
    const _: () = assert!(HANDLE_BYTES == 16, "SessionId::new takes it");
    id.as_bytes().try_into().ok()
}
